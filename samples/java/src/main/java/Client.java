import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.nats.client.Connection;
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.Subscription;
import io.nats.client.impl.Headers;
import io.nats.client.impl.NatsMessage;
import io.nats.service.Discovery;
import java.io.IOException;
import java.time.Duration;
import java.util.List;
import java.util.Locale;
import java.util.Map;
import java.util.UUID;
import java.util.concurrent.TimeoutException;

/** Asks a worker of mlbus with jnats; NATS_URL says where. */
record Client(Connection nc) {
    static final Duration TIMEOUT = Duration.ofSeconds(30);
    static final ObjectMapper JSON = new ObjectMapper();

    static NatsMessage.Builder message(String subject, Map<String, ?> body) throws IOException {
        // The worker drops what nobody waits for any more.
        Headers headers = new Headers().put("Ml-Timeout-Ms", "" + TIMEOUT.toMillis());
        return NatsMessage.builder().subject(subject).headers(headers).data(JSON.writeValueAsBytes(body));
    }

    /** The body of a reply or frame; an error is one with two more headers. */
    static JsonNode checked(Message message) throws IOException {
        String code = message.hasHeaders() ? message.getHeaders().getFirst("Nats-Service-Error-Code") : null;
        if (code != null) {
            throw new IOException(code + " " + message.getHeaders().getFirst("Nats-Service-Error"));
        }
        return JSON.readTree(message.getData());
    }

    JsonNode ask(String subject, Map<String, ?> body) throws Exception {
        Message reply = nc.request(message(subject, body).build(), TIMEOUT);
        if (reply == null) { // nobody is there, or the time is over
            throw new TimeoutException("no answer on " + subject);
        }
        return checked(reply);
    }

    /** Prints the pieces of a text as they come, and how it ended. */
    void generate(Map<String, ?> body, int cancelAfter) throws Exception {
        String id = UUID.randomUUID().toString();
        Subscription frames = nc.subscribe(nc.createInbox());
        NatsMessage request = message("ml.generate", body).replyTo(frames.getSubject()).build();
        request.getHeaders().put("Ml-Stream", "true").put("Ml-Request-Id", id);
        nc.publish(request);
        long deadline = System.nanoTime() + TIMEOUT.toNanos();
        JsonNode done = null;
        for (int pieces = 0; ; ) {
            Message frame = frames.nextMessage(Duration.ofNanos(Math.max(1, deadline - System.nanoTime())));
            if (frame == null || frame.getData().length == 0) { // the time is over, or an empty message: the end
                break;
            }
            if (!frame.hasHeaders() || !id.equals(frame.getHeaders().getFirst("Ml-Request-Id"))) {
                continue; // somebody else's
            }
            JsonNode reply = checked(frame);
            String event = frame.getHeaders().getFirst("Ml-Event");
            if (event.equals("done")) {
                done = reply;
            } else if (event.equals("token")) {
                System.out.print(reply.get("text").asText());
                if (++pieces == cancelAfter) {
                    // Leaving is not enough: where a library has one inbox for all, the worker hears nothing.
                    nc.publish("ml.cancel." + id, null);
                }
            }
        }
        frames.unsubscribe();
        if (done == null) {
            throw new IOException("cut off: the stream ended without `done` and without an error");
        }
        System.out.println("\nfinish: " + done.get("finish_reason").asText());
    }

    void run() throws Exception {
        JsonNode reply = ask("ml.embed", Map.of("text", "def hello(): pass"));
        JsonNode e = reply.get("embedding");
        System.out.printf(Locale.ROOT, "embed: %s, %d dimensions, %.4f %.4f %.4f%n", reply.get("model").asText(),
                reply.get("dimensions").asInt(), e.get(0).asDouble(), e.get(1).asDouble(), e.get(2).asDouble());

        List<String> candidates = List.of("a + b", "open(path).read()", "requests.get(url)");
        JsonNode ranking = ask("ml.similarity", Map.of("query", "read a file", "candidates", candidates));
        for (JsonNode ranked : ranking.get("results")) {
            System.out.printf(Locale.ROOT, "rank: %d %.2f%n", ranked.get("index").asInt(), ranked.get("score").asDouble());
        }

        System.out.print("stream: ");
        generate(Map.of("prompt", "def fib(n):", "max_tokens", 48, "temperature", 0), 0);

        try {
            ask("ml.embed", Map.of("text", "def hello(): pass", "lang", "python"));
        } catch (IOException error) {
            System.out.println("error: " + error.getMessage());
        }

        System.out.print("cancel: ");
        generate(Map.of("prompt", "def fib(n):", "max_tokens", 1000, "min_tokens", 1000), 3);

        // Nobody knows how many workers there are: a second is enough for all.
        List<String> workers = new Discovery(nc, 1000, 1000).ping("ml").stream()
                .map(pong -> pong.getMetadata().get("models")).toList();
        System.out.println("workers: " + workers.size() + " " + String.join(" ", workers));
    }

    public static void main(String[] args) throws Exception {
        try (Connection nc = Nats.connect(System.getenv().getOrDefault("NATS_URL", "nats://127.0.0.1:4222"))) {
            new Client(nc).run();
        }
    }
}
