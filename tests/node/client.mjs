// Asks a worker everything that a Node service may want: node client.mjs nats://127.0.0.1:4222
// Prints what came back as one JSON document, which tests/system/test_node.py checks.
import { decode, encode } from "@msgpack/msgpack";
import { connect, headers } from "@nats-io/transport-node";

const nc = await connect({ servers: process.argv[2] ?? "nats://127.0.0.1:4222" });
const timeout = 30_000;

// JSON in, JSON out: the vector is an array of numbers.
const one = await nc.request("ml.embed", JSON.stringify({ text: "def hello(): pass" }), { timeout });
const json = one.json();

// MessagePack in, MessagePack out: the vector is little-endian float32 bytes.
// They stand anywhere in the message; a Float32Array has to start at a multiple of four, hence the copy.
const floats = (bytes) => new Float32Array(Uint8Array.from(bytes).buffer);
const packed = await nc.request("ml.embed", encode({ text: "def hello(): pass" }), { timeout });
const msgpack = { ...decode(packed.data), embedding: floats(decode(packed.data).embedding) };

// A batch as a stream: chunks as they are ready, then `done` or an error, then an empty message.
const streamed = headers();
streamed.set("Ml-Stream", "true");
const texts = Array.from({ length: 600 }, (_, i) => `text ${i}`);
const frames = await nc.requestMany("ml.embed.batch", encode({ texts }), {
  strategy: "sentinel",
  maxWait: timeout,
  headers: streamed,
});
const events = [];
const vectors = [];
let done;
for await (const frame of frames) {
  if (frame.data.length === 0) break;
  events.push(`${frame.headers.get("Ml-Event")} ${frame.headers.get("Ml-Seq")}`);
  const body = decode(frame.data);
  if (body.error) throw new Error(body.error.message);
  if (body.embeddings) vectors.push(...body.embeddings.map(floats));
  else done = body;
}

// A text as it is written: its pieces, then `done` with what holds for all of it, or an error.
const asked = JSON.stringify({ prompt: "def fib(n):", max_tokens: 50, seed: 7 });
const written = { events: [], pieces: [], seqs: [], sentinels: 0 };
for await (const frame of await nc.requestMany("ml.generate", asked, {
  strategy: "sentinel",
  maxWait: timeout,
  headers: streamed,
})) {
  if (frame.data.length === 0) {
    written.sentinels += 1;
    continue;
  }
  const body = frame.json();
  written.events.push(frame.headers.get("Ml-Event"));
  written.seqs.push(body.seq);
  if (body.error) throw new Error(body.error.message);
  if (body.text) written.pieces.push(body.text);
  else written.done = body;
}

// An error is a reply with two headers more; its body says whether to try again.
const refused = await nc.request("ml.embed", JSON.stringify({ text: "x", lang: "en" }), { timeout });
const error = { code: Number(refused.headers.get("Nats-Service-Error-Code")), ...refused.json() };

// Every worker answers a PING; nobody knows how many there are, so listen until it is quiet.
const workers = [];
for await (const pong of await nc.requestMany("$SRV.PING.ml", "", { strategy: "stall", maxWait: 2000, stall: 200 })) {
  workers.push(pong.json());
}

await nc.close();
const plain = (_, value) => (value instanceof Float32Array ? [...value] : value);
console.log(JSON.stringify({ json, msgpack, events, vectors, done, written, error, workers }, plain));
