// Asks a worker of mlbus with cnats and cJSON; NATS_URL says where.
#include <cjson/cJSON.h>
#include <nats/nats.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TIMEOUT_MS = 30000 };

static natsConnection *nc;

static void check(natsStatus status) {
    if (status == NATS_OK) return;
    fprintf(stderr, "%s\n", natsStatus_GetText(status));
    exit(1);
}

static natsMsg *message(const char *subject, const char *reply, const char *body) {
    natsMsg *made;
    char timeout[16];
    snprintf(timeout, sizeof timeout, "%d", TIMEOUT_MS);
    check(natsMsg_Create(&made, subject, reply, body, strlen(body)));
    check(natsMsgHeader_Set(made, "Ml-Timeout-Ms", timeout)); // the worker drops what nobody waits for any more
    return made;
}

// The body of a reply or frame, which it frees; NULL for an error, which is one with two more headers.
static cJSON *take(natsMsg *got) {
    const char *code, *text = "";
    cJSON *body = NULL;
    if (natsMsgHeader_Get(got, "Nats-Service-Error-Code", &code) == NATS_OK) {
        natsMsgHeader_Get(got, "Nats-Service-Error", &text);
        printf("error: %s %s\n", code, text);
    } else {
        body = cJSON_ParseWithLength(natsMsg_GetData(got), natsMsg_GetDataLength(got));
    }
    natsMsg_Destroy(got);
    return body;
}

static cJSON *ask(const char *subject, const char *body) {
    natsMsg *sent = message(subject, NULL, body), *reply;
    check(natsConnection_RequestMsg(&reply, nc, sent, TIMEOUT_MS));
    natsMsg_Destroy(sent);
    return take(reply);
}

static double number(cJSON *in, const char *name) { return cJSON_GetNumberValue(cJSON_GetObjectItem(in, name)); }

static char *string(cJSON *in, const char *name) { return cJSON_GetStringValue(cJSON_GetObjectItem(in, name)); }

// Prints the pieces of a text as they come, and how it ended.
static void generate(const char *body, int cancel_after) {
    natsInbox *inbox;
    natsSubscription *frames;
    natsMsg *frame;
    char cancel[128];
    bool done = false;
    int64_t deadline = nats_Now() + TIMEOUT_MS;
    check(natsInbox_Create(&inbox));
    check(natsConnection_SubscribeSync(&frames, nc, inbox));
    const char *id = strchr(inbox, '.') + 1; // as unique as the inbox
    natsMsg *sent = message("ml.generate", inbox, body);
    check(natsMsgHeader_Set(sent, "Ml-Stream", "true"));
    check(natsMsgHeader_Set(sent, "Ml-Request-Id", id));
    check(natsConnection_PublishMsg(nc, sent));
    snprintf(cancel, sizeof cancel, "ml.cancel.%s", id);
    for (int pieces = 0; natsSubscription_NextMsg(&frame, frames, deadline - nats_Now()) == NATS_OK;) {
        if (natsMsg_GetDataLength(frame) == 0) { // the end
            natsMsg_Destroy(frame);
            break;
        }
        const char *event = "";
        natsMsgHeader_Get(frame, "Ml-Event", &event);
        bool is_token = strcmp(event, "token") == 0;
        done = strcmp(event, "done") == 0;
        cJSON *reply = take(frame);
        if (reply == NULL) exit(1);
        if (is_token) {
            printf("%s", string(reply, "text"));
            fflush(stdout);
            // Leaving is not enough: where a library has one inbox for all, the worker hears nothing.
            if (++pieces == cancel_after) check(natsConnection_PublishString(nc, cancel, ""));
        }
        if (done) printf("\nfinish: %s\n", string(reply, "finish_reason"));
        cJSON_Delete(reply);
    }
    if (!done) {
        fprintf(stderr, "cut off: the stream ended without `done` and without an error\n");
        exit(1);
    }
    natsMsg_Destroy(sent);
    natsSubscription_Destroy(frames);
    natsInbox_Destroy(inbox);
}

int main(void) {
    const char *url = getenv("NATS_URL");
    check(natsConnection_ConnectTo(&nc, url ? url : "nats://127.0.0.1:4222"));

    cJSON *reply = ask("ml.embed", "{\"text\": \"def hello(): pass\"}"), *item;
    if (reply == NULL) return 1;
    printf("embed: %s, %.0f dimensions,", string(reply, "model"), number(reply, "dimensions"));
    for (int i = 0; i < 3; i++)
        printf(" %.4f", cJSON_GetNumberValue(cJSON_GetArrayItem(cJSON_GetObjectItem(reply, "embedding"), i)));
    printf("\n");
    cJSON_Delete(reply);

    reply = ask("ml.similarity", "{\"query\": \"read a file\", "
                                 "\"candidates\": [\"a + b\", \"open(path).read()\", \"requests.get(url)\"]}");
    if (reply == NULL) return 1;
    cJSON_ArrayForEach(item, cJSON_GetObjectItem(reply, "results"))
        printf("rank: %.0f %.2f\n", number(item, "index"), number(item, "score"));
    cJSON_Delete(reply);

    printf("stream: ");
    generate("{\"prompt\": \"def fib(n):\", \"max_tokens\": 48, \"temperature\": 0}", 0);

    cJSON_Delete(ask("ml.embed", "{\"text\": \"def hello(): pass\", \"lang\": \"python\"}"));

    printf("cancel: ");
    generate("{\"prompt\": \"def fib(n):\", \"max_tokens\": 1000, \"min_tokens\": 1000}", 3);

    natsInbox *inbox;
    natsSubscription *pongs;
    natsMsg *pong;
    check(natsInbox_Create(&inbox));
    check(natsConnection_SubscribeSync(&pongs, nc, inbox));
    check(natsConnection_PublishRequestString(nc, "$SRV.PING.ml", inbox, ""));
    cJSON *workers = cJSON_CreateArray(); // nobody knows how many there are: listen until it is quiet
    while (natsSubscription_NextMsg(&pong, pongs, 500) == NATS_OK) cJSON_AddItemToArray(workers, take(pong));
    printf("workers: %d", cJSON_GetArraySize(workers));
    cJSON_ArrayForEach(item, workers) printf(" %s", string(cJSON_GetObjectItem(item, "metadata"), "models"));
    printf("\n");

    cJSON_Delete(workers);
    natsSubscription_Destroy(pongs);
    natsInbox_Destroy(inbox);
    natsConnection_Destroy(nc);
    nats_Close();
}
