// Reads a vector from MessagePack with @nats-io/transport-node and @msgpack/msgpack; NATS_URL says where.
import { decode, encode } from "@msgpack/msgpack";
import { connect, headers } from "@nats-io/transport-node";

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const timeout = 30_000;

async function embed(options) {
  const timed = headers();
  timed.set("Ml-Timeout-Ms", String(timeout));
  const request = encode({ text: "def hello(): pass", ...options });
  const message = await nc.request("ml.embed", request, { timeout, headers: timed });
  const error = message.headers?.get("Nats-Service-Error");
  if (error) throw new Error(error);
  return decode(message.data);
}

function show(encoding, vector) {
  const [first, second, last] = [0, 1, -1].map((index) => vector.at(index).toFixed(4));
  console.log(`${encoding}: ${vector.length} values, ${first} ${second} … ${last}`);
}

const reply = await embed();
const bytes = Uint8Array.from(reply.embedding); // a copy: a Float32Array begins at a multiple of four
const vector = new Float32Array(bytes.buffer); // not of the bytes: that is one number a byte
show("float32", vector);

show("array", (await embed({ encoding_format: "array" })).embedding);
await nc.close();
