// Client asks a worker of mlbus with nats.go and orbit's natsext; NATS_URL says where.
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/synadia-io/orbit.go/natsext"
)

const timeout = 30 * time.Second

type object map[string]any

type ranked struct {
	Index int
	Score float64
}

type reply struct {
	Model, Text  string
	Dimensions   int
	Embedding    []float32
	Results      []ranked
	FinishReason string `json:"finish_reason"`
	Metadata     map[string]string
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

var caller = nats.NewInbox() // the worker finds out here whether this program is still there

func message(subject string, body object) *nats.Msg {
	msg := nats.NewMsg(subject)
	msg.Data = must(json.Marshal(body))
	msg.Header.Set("Ml-Timeout-Ms", fmt.Sprint(timeout.Milliseconds())) // the worker drops what nobody waits for
	msg.Header.Set("Ml-Caller", caller)
	return msg
}

// decode reads a reply or frame; an error is one with two more headers.
func decode(msg *nats.Msg, err error) (body reply, _ error) {
	if err != nil {
		return body, err
	}
	if code := msg.Header.Get("Nats-Service-Error-Code"); code != "" {
		return body, fmt.Errorf("%s %s", code, msg.Header.Get("Nats-Service-Error"))
	}
	return body, json.Unmarshal(msg.Data, &body)
}

// generate prints the pieces of a text as they come, and how it ended.
func generate(nc *nats.Conn, body object, cancelAfter int) {
	// Without a deadline natsext waits for two seconds. Either way it ends in silence when the time is over.
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	msg, id, pieces := message("ml.generate", body), rand.Text(), 0
	msg.Header.Set("Ml-Stream", "true")
	msg.Header.Set("Ml-Request-Id", id)
	toTheEnd := natsext.RequestManySentinel(natsext.DefaultSentinel) // an empty message
	for frame, err := range must(natsext.RequestManyMsg(ctx, nc, msg, toTheEnd)) {
		if err == nil && frame.Header.Get("Ml-Request-Id") != id {
			continue // somebody else's
		}
		body := must(decode(frame, err))
		switch frame.Header.Get("Ml-Event") {
		case "token":
			fmt.Print(body.Text)
			if pieces++; pieces == cancelAfter {
				// Leaving the loop is not enough: all requests share one inbox, and the worker hears nothing.
				nc.Publish("ml.cancel."+id, nil)
			}
		case "done":
			fmt.Println("\nfinish:", body.FinishReason)
			return
		}
	}
	log.Fatal("cut off: the stream ended without `done` and without an error")
}

func main() {
	nc := must(nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL)))
	defer nc.Close()
	must(nc.Subscribe(caller, func(*nats.Msg) {}))
	ask := func(subject string, body object) (reply, error) {
		return decode(nc.RequestMsg(message(subject, body), timeout))
	}

	embedded := must(ask("ml.embed", object{"text": "def hello(): pass"}))
	e := embedded.Embedding
	fmt.Printf("embed: %s, %d dimensions, %.4f %.4f %.4f\n", embedded.Model, embedded.Dimensions, e[0], e[1], e[2])

	candidates := []string{"a + b", "open(path).read()", "requests.get(url)"}
	for _, r := range must(ask("ml.similarity", object{"query": "read a file", "candidates": candidates})).Results {
		fmt.Printf("rank: %d %.2f\n", r.Index, r.Score)
	}

	fmt.Print("stream: ")
	generate(nc, object{"prompt": "def fib(n):", "max_tokens": 48, "temperature": 0}, 0)

	_, err := ask("ml.embed", object{"text": "def hello(): pass", "lang": "python"})
	fmt.Println("error:", err)

	fmt.Print("cancel: ")
	generate(nc, object{"prompt": "def fib(n):", "max_tokens": 1000, "min_tokens": 1000}, 3)

	// Nobody knows how many workers there are: listen until it is quiet.
	quiet := natsext.RequestManyStall(500 * time.Millisecond)
	workers := []any{}
	for pong, err := range must(natsext.RequestMany(context.Background(), nc, "$SRV.PING.ml", nil, quiet)) {
		workers = append(workers, must(decode(pong, err)).Metadata["models"])
	}
	fmt.Println(append([]any{"workers:", len(workers)}, workers...)...)
}
