// A map behind Go's net/http that speaks as much of Holdfast's line dialect as the benchmark needs: SET and GET of words
// without quotes. Nothing is on disk. It is what a server that does nothing but HTTP and JSON can reach.
//
//	GOMAXPROCS=1 mapserver 127.0.0.1:8081
package main

import (
	"encoding/json"
	"log"
	"net/http"
	"os"
	"strings"
	"sync"
)

var (
	lock   sync.RWMutex
	values = map[string]string{}
)

type request struct {
	Command string `json:"command"`
}

type reply struct {
	Value string `json:"value"`
}

type failure struct {
	Error string `json:"error"`
}

func answer(writer http.ResponseWriter, status int, body interface{}) {
	text, err := json.Marshal(body)
	if err != nil {
		panic(err)
	}
	writer.Header().Set("Content-Type", "application/json")
	writer.WriteHeader(status)
	writer.Write(text)
}

func handle(writer http.ResponseWriter, incoming *http.Request) {
	var asked request
	if err := json.NewDecoder(incoming.Body).Decode(&asked); err != nil {
		answer(writer, 400, failure{"invalid request"})
		return
	}
	words := strings.Fields(asked.Command)
	switch {
	case len(words) == 3 && words[0] == "SET":
		lock.Lock()
		values[words[1]] = words[2]
		lock.Unlock()
	case len(words) == 2 && words[0] == "GET":
		lock.RLock()
		value, found := values[words[1]]
		lock.RUnlock()
		if !found {
			answer(writer, 404, failure{"key not found"})
			return
		}
		answer(writer, 200, reply{value})
	default:
		answer(writer, 400, failure{"invalid command"})
	}
}

func main() {
	http.HandleFunc("/", handle)
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}
