// Vectors reads a vector from MessagePack with nats.go and vmihailenco/msgpack; NATS_URL says where.
package main

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/vmihailenco/msgpack/v5"
)

const timeout = 30 * time.Second

// A request is a map of fields, as this library encodes a struct unless told otherwise.
type request struct {
	Text           string `msgpack:"text"`
	EncodingFormat string `msgpack:"encoding_format"`
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}

func embed(nc *nats.Conn, encoding string, reply any) {
	msg := nats.NewMsg("ml.embed")
	msg.Data, _ = msgpack.Marshal(request{"def hello(): pass", encoding})
	msg.Header.Set("Ml-Timeout-Ms", fmt.Sprint(timeout.Milliseconds()))
	answer, err := nc.RequestMsg(msg, timeout)
	check(err)
	if text := answer.Header.Get("Nats-Service-Error"); text != "" {
		log.Fatal(text)
	}
	check(msgpack.Unmarshal(answer.Data, reply))
}

func show(encoding string, v []float32) {
	fmt.Printf("%s: %d values, %.4f %.4f … %.4f\n", encoding, len(v), v[0], v[1], v[len(v)-1])
}

func main() {
	nc, err := nats.Connect(cmp.Or(os.Getenv("NATS_URL"), nats.DefaultURL))
	check(err)
	defer nc.Close()

	var reply struct {
		Embedding []byte `msgpack:"embedding"`
	}
	embed(nc, "float32", &reply)
	vector := make([]float32, len(reply.Embedding)/4)
	_, err = binary.Decode(reply.Embedding, binary.LittleEndian, vector)
	check(err)
	show("float32", vector)

	var array struct {
		Embedding []float32 `msgpack:"embedding"`
	}
	embed(nc, "array", &array)
	show("array", array.Embedding)
}
