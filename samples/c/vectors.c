// Reads a vector from MessagePack with cnats and msgpack-c; NATS_URL says where.
#include <endian.h>
#include <msgpack.h>
#include <nats/nats.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_MS = 30000 };

static void check(natsStatus status) {
    if (status == NATS_OK) return;
    fprintf(stderr, "%s\n", natsStatus_GetText(status));
    exit(1);
}

static void pack_string(msgpack_packer *packer, const char *text) {
    msgpack_pack_str_with_body(packer, text, strlen(text));
}

static natsMsg *embed(natsConnection *nc, const char *encoding) {
    msgpack_sbuffer body;
    msgpack_packer packer;
    natsMsg *sent, *reply;
    const char *error;
    msgpack_sbuffer_init(&body);
    msgpack_packer_init(&packer, &body, msgpack_sbuffer_write);
    msgpack_pack_map(&packer, 2);
    pack_string(&packer, "text");
    pack_string(&packer, "def hello(): pass");
    pack_string(&packer, "encoding_format");
    pack_string(&packer, encoding);
    check(natsMsg_Create(&sent, "ml.embed", NULL, body.data, body.size));
    check(natsMsgHeader_Set(sent, "Ml-Timeout-Ms", "30000"));
    check(natsConnection_RequestMsg(&reply, nc, sent, TIMEOUT_MS));
    if (natsMsgHeader_Get(reply, "Nats-Service-Error", &error) == NATS_OK) {
        fprintf(stderr, "%s\n", error);
        exit(1);
    }
    natsMsg_Destroy(sent);
    msgpack_sbuffer_destroy(&body);
    return reply;
}

// The field of a map; exits where there is none.
static msgpack_object field(msgpack_object map, const char *name) {
    for (uint32_t i = 0; map.type == MSGPACK_OBJECT_MAP && i < map.via.map.size; i++) {
        msgpack_object_str key = map.via.map.ptr[i].key.via.str;
        if (key.size == strlen(name) && memcmp(key.ptr, name, key.size) == 0) return map.via.map.ptr[i].val;
    }
    fprintf(stderr, "no field %s\n", name);
    exit(1);
}

static float from_little_endian(const char *bytes) {
    uint32_t bits;
    float value;
    memcpy(&bits, bytes, sizeof bits);
    bits = le32toh(bits);
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void show(const char *encoding, const float *v, size_t size) {
    printf("%s: %zu values, %.4f %.4f … %.4f\n", encoding, size, v[0], v[1], v[size - 1]);
}

int main(void) {
    natsConnection *nc;
    msgpack_unpacked reply;
    const char *url = getenv("NATS_URL");
    check(natsConnection_ConnectTo(&nc, url ? url : "nats://127.0.0.1:4222"));
    msgpack_unpacked_init(&reply);

    natsMsg *got = embed(nc, "float32");
    msgpack_unpack_next(&reply, natsMsg_GetData(got), natsMsg_GetDataLength(got), NULL);
    msgpack_object_bin bin = field(reply.data, "embedding").via.bin;
    float *vector = malloc(bin.size);
    for (size_t i = 0; i < bin.size / 4; i++) vector[i] = from_little_endian(bin.ptr + 4 * i);
    show("float32", vector, bin.size / 4);
    natsMsg_Destroy(got);

    got = embed(nc, "array");
    msgpack_unpack_next(&reply, natsMsg_GetData(got), natsMsg_GetDataLength(got), NULL);
    msgpack_object_array array = field(reply.data, "embedding").via.array;
    for (size_t i = 0; i < array.size; i++) vector[i] = array.ptr[i].via.f64;
    show("array", vector, array.size);
    natsMsg_Destroy(got);

    free(vector);
    msgpack_unpacked_destroy(&reply);
    natsConnection_Destroy(nc);
    nats_Close();
}
