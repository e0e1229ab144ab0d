// Prints the frames of a streamed batch in MessagePack and of a text in JSON as one JSON document; NATS_URL says where.
import { decode, encode } from "@msgpack/msgpack";
import { connect, headers } from "@nats-io/transport-node";

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const timeout = 30_000;

async function frames(subject, request, read) {
  const streamed = headers();
  streamed.set("Ml-Stream", "true");
  streamed.set("Ml-Timeout-Ms", String(timeout));
  const options = { strategy: "sentinel", noMux: true, maxWait: timeout, headers: streamed };
  const got = [];
  for await (const frame of await nc.requestMany(subject, request, options)) {
    const [event, seq] = ["Ml-Event", "Ml-Seq"].map((name) => frame.headers?.get(name));
    got.push(frame.data.length === 0 ? { event: "sentinel" } : { event, seq: Number(seq), body: read(frame) });
  }
  return got;
}

const floats = (bytes) => [...new Float32Array(Uint8Array.from(bytes).buffer)];

const texts = Array.from({ length: 600 }, (_, i) => `text ${i}`);
const batch = await frames("ml.embed.batch", encode({ texts }), (frame) => {
  const body = decode(frame.data);
  return body.embeddings ? { ...body, embeddings: body.embeddings.map(floats) } : body;
});
const written = await frames(
  "ml.generate",
  JSON.stringify({ prompt: "def fib(n):", max_tokens: 50, seed: 7 }),
  (frame) => frame.json(),
);
console.log(JSON.stringify({ batch, written }));
await nc.close();
