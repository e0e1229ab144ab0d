// Asks a worker of mlbus with @nats-io/transport-node; NATS_URL says where.
import { connect, createInbox, headers } from "@nats-io/transport-node";

const nc = await connect({ servers: process.env.NATS_URL ?? "nats://127.0.0.1:4222" });
const timeout = 30_000; // a request waits for one second otherwise
const caller = createInbox();
nc.subscribe(caller, { callback: () => {} }); // the worker finds out here whether this program is still there

function sent(more = {}) {
  const set = headers();
  set.set("Ml-Timeout-Ms", String(timeout)); // the worker drops what nobody waits for any more
  set.set("Ml-Caller", caller);
  for (const [name, value] of Object.entries(more)) set.set(name, value);
  return set;
}

// The body of a reply or frame; an error is one with two more headers.
function checked(message) {
  const code = message.headers?.get("Nats-Service-Error-Code");
  if (code) throw new Error(`${code} ${message.headers.get("Nats-Service-Error")}`);
  return message.json();
}

async function ask(subject, body) {
  return checked(await nc.request(subject, JSON.stringify(body), { timeout, headers: sent() }));
}

// Prints the pieces of a text as they come, and how it ended.
async function generate(body, cancelAfter) {
  const id = crypto.randomUUID();
  const frames = await nc.requestMany("ml.generate", JSON.stringify(body), {
    strategy: "sentinel", // an empty message is the end
    noMux: true, // an inbox of its own: the worker hears when the stream is left
    maxWait: timeout,
    headers: sent({ "Ml-Stream": "true", "Ml-Request-Id": id }),
  });
  let done;
  let pieces = 0;
  for await (const frame of frames) {
    if (frame.data.length === 0) break;
    if (frame.headers?.get("Ml-Request-Id") !== id) continue; // somebody else's
    const reply = checked(frame);
    const event = frame.headers.get("Ml-Event");
    if (event === "token") {
      process.stdout.write(reply.text);
      // Leaving the loop is not enough: without noMux all requests share one inbox, and the worker hears nothing.
      if (++pieces === cancelAfter) nc.publish(`ml.cancel.${id}`);
    } else if (event === "done") done = reply;
  }
  // The loop ends in silence when maxWait is over.
  if (!done) throw new Error("cut off: the stream ended without `done` and without an error");
  console.log(`\nfinish: ${done.finish_reason}`);
}

const reply = await ask("ml.embed", { text: "def hello(): pass" });
const first = reply.embedding.slice(0, 3).map((value) => value.toFixed(4));
console.log(`embed: ${reply.model}, ${reply.dimensions} dimensions, ${first.join(" ")}`);

const candidates = ["a + b", "open(path).read()", "requests.get(url)"];
const ranking = await ask("ml.similarity", { query: "read a file", candidates });
for (const { index, score } of ranking.results) console.log(`rank: ${index} ${score.toFixed(2)}`);

process.stdout.write("stream: ");
await generate({ prompt: "def fib(n):", max_tokens: 48, temperature: 0 });

await ask("ml.embed", { text: "def hello(): pass", lang: "python" }).catch((error) => {
  console.log(`error: ${error.message}`);
});

process.stdout.write("cancel: ");
await generate({ prompt: "def fib(n):", max_tokens: 1000, min_tokens: 1000 }, 3);

// Nobody knows how many workers there are: listen until it is quiet.
const workers = [];
for await (const pong of await nc.requestMany("$SRV.PING.ml", "", { strategy: "stall", maxWait: 2000, stall: 500 })) {
  workers.push(pong.json().metadata.models);
}
console.log("workers:", workers.length, ...workers);
await nc.close();
