// Server serves the completions API of OpenAI from one engine. tests/servers/README.md specifies it.
//
//	server CONFIG.json [--port N] [--max-sessions N] [--prepare SECONDS]
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	cos "example.com/cos/bindings/go"
)

// patience limits how long a client may take to send or to read, so that it cannot delay the shutdown for ever.
const patience = 30 * time.Second

func main() {
	port := flag.Uint("port", 8080, "port on 127.0.0.1; 0: any free port")
	sessions := flag.Uint("max-sessions", 32, "most requests that are decoded at once")
	prepare := flag.Uint("prepare", 10, "most seconds to prepare the engine before it serves")
	flag.Usage = func() {
		fmt.Fprintln(os.Stderr, "usage: server CONFIG.json [--port N] [--max-sessions N] [--prepare SECONDS]")
	}
	flag.Parse() // exits by itself, also with --help
	config := flag.Arg(0)
	_ = flag.CommandLine.Parse(flag.Args()[min(1, flag.NArg()):])
	if config == "" || flag.NArg() > 0 || *port > 65535 || *sessions == 0 || *prepare > 86400 {
		flag.Usage()
		os.Exit(2)
	}
	signals, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	engine, err := cos.Open(config)
	listener, listenErr := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err := cmp.Or(err, listenErr); err != nil {
		log.Fatal(err)
	}
	if *prepare > 0 {
		load := cos.PrepareOptions{Sessions: uint32(min(*sessions, 1024)), Time: time.Duration(*prepare) * time.Second}
		share, err := engine.Prepare(signals, load)
		if err != nil && signals.Err() == nil {
			log.Fatal(err)
		}
		log.Printf("prepared %.0f %%", 100*share)
	}
	handler := newHandler(engine, strings.TrimSuffix(filepath.Base(config), ".json"), *sessions)
	server := &http.Server{Handler: handler, ReadTimeout: patience, WriteTimeout: patience}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			log.Fatal(err)
		}
	}()
	fmt.Printf("listening on %v\n", listener.Addr())
	<-signals.Done()
	stop()                                    // a second signal ends the process at once
	_ = server.Shutdown(context.Background()) // waits for the running requests
}

type service struct {
	engine   *cos.Engine
	model    string
	slots    chan struct{} // has one element for each running completion
	mu       sync.Mutex
	requests map[int]int // answered completions by status
}

func newHandler(engine *cos.Engine, model string, sessions uint) http.Handler {
	s := &service{engine: engine, model: model, slots: make(chan struct{}, sessions), requests: map[int]int{}}
	about := object{"id": model, "object": "model", "created": time.Now().Unix(), "owned_by": "cos"}
	models := object{"object": "list", "data": []object{about}}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", s.metrics)
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) { reply(w, models, nil) })
	mux.HandleFunc("POST /v1/completions", s.completions)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { reply(w, nil, errPath) })
	return mux
}

// metrics answers with the metrics of the engine and of the server.
func (s *service) metrics(w http.ResponseWriter, _ *http.Request) {
	text, _ := s.engine.Metrics() // fails only after Close
	w.Header().Set("Content-Type", "text/plain; version=0.0.4")
	fmt.Fprintf(w, "%s# TYPE cos_requests_running gauge\ncos_requests_running %d\n# TYPE cos_requests_total counter\n",
		text, len(s.slots))
	s.mu.Lock()
	defer s.mu.Unlock()
	for code, count := range s.requests {
		fmt.Fprintf(w, "cos_requests_total{code=\"%d\"} %d\n", code, count)
	}
}

// completions answers a request. It counts the request before it sends the last bytes, so that a client that has read
// them finds the request in the metrics.
func (s *service) completions(w http.ResponseWriter, r *http.Request) {
	id, created := fmt.Sprintf("cmpl-%016x", rand.Uint64()), time.Now().Unix()
	body := func(usage object, choices ...object) object {
		return object{"id": id, "object": "text_completion", "created": created, "model": s.model,
			"choices": append([]object{}, choices...), "usage": usage}
	}
	last, usage, streams := object(nil), object(nil), false // streams: a piece was sent
	c, err := s.read(w, r)
	if err == nil {
		last, usage, err = s.decode(r.Context(), c, func(piece string) {
			streams = true
			send(w, body(nil, choice(piece, nil)))
		})
	}
	status, failure := explain(nil, err)
	if r.Context().Err() != nil {
		status = 499 // the client has left
	}
	s.mu.Lock()
	s.requests[status]++
	s.mu.Unlock()
	switch {
	case err != nil && streams:
		send(w, failure)
	case err == nil && c.Stream:
		send(w, body(nil, last))
		if c.StreamOptions.IncludeUsage {
			send(w, body(usage))
		}
		fmt.Fprint(w, "data: [DONE]\n\n")
	default:
		reply(w, body(usage, last), err)
	}
}

// decode decodes until the sequence or its text ends. If the client wants a stream, it passes the text to give as it
// comes, and returns the rest.
func (s *service) decode(ctx context.Context, c *completion, give func(string)) (last, usage object, err error) {
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		return nil, nil, fmt.Errorf("%w: too many requests are running; try again later", cos.ErrBusy)
	}
	session, err := s.engine.NewSession(c.options)
	if err != nil {
		return nil, nil, err
	}
	defer session.Close()
	text, err := s.engine.NewTextStream()
	if err != nil {
		return nil, nil, err
	}
	defer text.Close()
	if err := cmp.Or(text.SetStops(c.Stop.array...), session.SetScope(c.Cos.Scope), session.Prompt(c.Prompt.array),
		text.Prompt(c.Prompt.array)); err != nil {
		return nil, nil, err
	}
	held, finish := "", "length"
	for step, err := range session.Steps(ctx) {
		piece, pushErr := text.Push(step.Tokens)
		if err := cmp.Or(err, pushErr); err != nil {
			return nil, nil, err
		}
		held += piece
		if step.Finish == cos.FinishStop || text.Stopped() {
			finish = "stop"
			break
		}
		if c.Stream && held != "" {
			give(held)
			held = ""
		}
	}
	rest, err := text.Finish()
	stats, statsErr := session.Stats()
	prompt, completion := len(c.Prompt.array), int(stats.Tokens)
	usage = object{"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
	return choice(held+rest, finish), usage, cmp.Or(err, statsErr)
}

type object = map[string]any

// choice is a text, or a piece of one. Only the last piece has a finish_reason.
func choice(text string, finish any) object {
	return object{"index": 0, "text": text, "logprobs": nil, "finish_reason": finish}
}

// reply answers with JSON: a body or an error. An error of writing means that the client has left, and is ignored.
func reply(w http.ResponseWriter, body object, err error) {
	status, body := explain(body, err)
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience))
	w.Header().Set("Content-Type", "application/json")
	if status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// send sends an event of a stream. If that fails, the context of the request ends.
func send(w http.ResponseWriter, body object) {
	controller := http.NewResponseController(w)
	_ = controller.SetWriteDeadline(time.Now().Add(patience))
	w.Header().Set("Content-Type", "text/event-stream")
	text, _ := json.Marshal(body)
	fmt.Fprintf(w, "data: %s\n\n", text)
	_ = controller.Flush()
}

// completion is the body of a request. A member that is null keeps its default.
type completion struct {
	Model         string         `json:"model"`
	Prompt        textOr[int32]  `json:"prompt"`
	MaxTokens     uint32         `json:"max_tokens"`
	Temperature   float32        `json:"temperature"`
	TopP          float32        `json:"top_p"`
	Seed          uint64         `json:"seed"`
	Stop          textOr[string] `json:"stop"`
	Stream        bool           `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	Cos struct {
		Strategy string          `json:"strategy"`
		Weights  textOr[float32] `json:"weights"`
		Scope    string          `json:"scope"`
		Priority string          `json:"priority"`
	} `json:"cos"`
	options cos.Options
}

// textOr is a text or an array.
type textOr[T any] struct {
	text  *string
	array []T
}

// UnmarshalJSON refuses null in an array, which encoding/json takes for zero.
func (t *textOr[T]) UnmarshalJSON(data []byte) error {
	if data[0] != '[' {
		return json.Unmarshal(data, &t.text)
	}
	var elements []*T
	if err := json.Unmarshal(data, &elements); err != nil || slices.Contains(elements, nil) {
		return cmp.Or(err, errors.New("null in an array"))
	}
	return json.Unmarshal(data, &t.array)
}

// read reads a request. It does not check what the library checks.
func (s *service) read(w http.ResponseWriter, r *http.Request) (*completion, error) {
	c := &completion{MaxTokens: 16, Temperature: 1, TopP: 1, Seed: rand.Uint64()}
	c.Cos.Strategy, c.Cos.Priority = "auto", "interactive"
	var members object
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4<<20))
	if err := cmp.Or(err, json.Unmarshal(body, &members), json.Unmarshal(body, c)); err != nil {
		return nil, fmt.Errorf("%w: %w", cos.ErrInvalidArgument, err)
	}
	// Members that are not supported must have their default.
	for name, only := range map[string]any{"n": 1.0, "best_of": 1.0, "echo": false, "suffix": "", "logprobs": nil,
		"presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": object{}} {
		if value := members[name]; value != nil && !reflect.DeepEqual(value, only) {
			return nil, fmt.Errorf("%w: %s", cos.ErrUnsupported, name)
		}
	}
	switch {
	case !utf8.Valid(body):
		return nil, fmt.Errorf("%w: the body is not UTF-8", cos.ErrInvalidArgument)
	case c.Cos.Weights.text != nil:
		return nil, fmt.Errorf("%w: weights must be an array", cos.ErrInvalidArgument)
	case c.Model != s.model:
		return nil, fmt.Errorf("%w: %q", errModel, c.Model)
	}
	if c.Stop.text != nil {
		c.Stop.array = []string{*c.Stop.text}
	}
	// The library refuses -1, which is an unknown name.
	priority := slices.Index([]string{"interactive", "batch"}, c.Cos.Priority)
	strategy := slices.Index([]string{"auto", "standard", "speculative", "cos"}, c.Cos.Strategy)
	c.options = cos.Options{Strategy: cos.Strategy(strategy), Temperature: c.Temperature, TopP: c.TopP, Seed: c.Seed,
		MaxTokens: c.MaxTokens, Weights: c.Cos.Weights.array, Priority: cos.Priority(priority)}
	if c.Prompt.text != nil {
		c.Prompt.array, err = s.engine.Encode(*c.Prompt.text, true)
	}
	return c, err
}

var errModel, errPath = errors.New("there is no such model"), errors.New("there is nothing at this path")

// explain returns the status and the body of an answer, or those of an error.
func explain(body object, err error) (int, object) {
	status, kind, code := http.StatusBadRequest, "invalid_request_error", any(nil)
	switch {
	case err == nil:
		return http.StatusOK, body
	case errors.Is(err, errPath):
		status = http.StatusNotFound
	case errors.Is(err, errModel):
		status, code = http.StatusNotFound, "model_not_found"
	case errors.Is(err, cos.ErrContextFull):
		code = "context_length_exceeded"
	case errors.Is(err, cos.ErrBusy):
		status, kind = http.StatusTooManyRequests, "rate_limit_error"
	case errors.Is(err, cos.ErrNoMemory):
		status, kind = http.StatusServiceUnavailable, "server_error"
	case !errors.Is(err, cos.ErrInvalidArgument) && !errors.Is(err, cos.ErrUnsupported):
		status, kind = http.StatusInternalServerError, "server_error"
	}
	return status, object{"error": object{"message": err.Error(), "type": kind, "param": nil, "code": code}}
}
