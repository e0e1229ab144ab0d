import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import io.nats.client.Connection;
import io.nats.client.Message;
import io.nats.client.Nats;
import io.nats.client.impl.Headers;
import java.io.IOException;
import java.nio.ByteBuffer;
import java.nio.ByteOrder;
import java.time.Duration;
import java.util.Locale;
import java.util.Map;
import org.msgpack.jackson.dataformat.MessagePackMapper;

/** Reads a vector from MessagePack with jnats and jackson-dataformat-msgpack; NATS_URL says where. */
class Vectors {
    static final Duration TIMEOUT = Duration.ofSeconds(30);
    static final ObjectMapper MSGPACK = new MessagePackMapper();

    static JsonNode embed(Connection nc, String encoding) throws Exception {
        byte[] body = MSGPACK.writeValueAsBytes(Map.of("text", "def hello(): pass", "encoding_format", encoding));
        Headers headers = new Headers().put("Ml-Timeout-Ms", "" + TIMEOUT.toMillis());
        Message reply = nc.request("ml.embed", headers, body, TIMEOUT);
        if (reply == null || reply.getHeaders().containsKey("Nats-Service-Error")) {
            throw new IOException(reply == null ? "no answer" : reply.getHeaders().getFirst("Nats-Service-Error"));
        }
        return MSGPACK.readTree(reply.getData());
    }

    static void show(String encoding, float[] v) {
        System.out.printf(Locale.ROOT, "%s: %d values, %.4f %.4f … %.4f%n", encoding, v.length, v[0], v[1], v[v.length - 1]);
    }

    public static void main(String[] args) throws Exception {
        try (Connection nc = Nats.connect(System.getenv().getOrDefault("NATS_URL", "nats://127.0.0.1:4222"))) {
            JsonNode reply = embed(nc, "float32");
            ByteBuffer bytes = ByteBuffer.wrap(reply.get("embedding").binaryValue()).order(ByteOrder.LITTLE_ENDIAN);
            float[] vector = new float[bytes.remaining() / 4];
            bytes.asFloatBuffer().get(vector);
            show("float32", vector);

            show("array", MSGPACK.treeToValue(embed(nc, "array").get("embedding"), float[].class));
        }
    }
}
