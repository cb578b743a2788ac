// Server serves OpenAI's completions from one engine. tests/servers/README.md says what it does.
//
//	server CONFIG.json [--port N] [--max-sessions N]
package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	cos "example.com/cos/bindings/go"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

func main() {
	flags := flag.NewFlagSet("server", flag.ExitOnError)
	port := flags.Int("port", 8080, "port on 127.0.0.1; 0 is any free one")
	sessions := flags.Int("max-sessions", 32, "requests that are decoded at once")
	if len(os.Args) < 2 || strings.HasPrefix(os.Args[1], "-") {
		log.Fatal("usage: server CONFIG.json [--port N] [--max-sessions N]")
	}
	_ = flags.Parse(os.Args[2:]) // exits by itself
	if err := run(os.Args[1], *port, *sessions); err != nil {
		log.Fatal(err)
	}
}

func run(config string, port, sessions int) error {
	stop, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	engine, err := cos.Open(config)
	if err != nil {
		return err
	}
	defer engine.Close()
	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	name := strings.TrimSuffix(filepath.Base(config), ".json")
	server := &http.Server{Handler: newServer(engine, name, sessions), ReadHeaderTimeout: 10 * time.Second}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Printf("listening on %v\n", listener.Addr())
	select {
	case err := <-failed:
		return err
	case <-stop.Done():
		return server.Shutdown(context.Background()) // waits for what runs
	}
}

type server struct {
	engine   *cos.Engine
	model    string
	slots    chan struct{} // one for each completion that runs
	requests *prometheus.CounterVec
	counters []counter
}

// counter is a metric that grows with a member of the statistics.
type counter struct {
	prometheus.Counter
	of func(cos.Stats) float64
}

func newServer(engine *cos.Engine, model string, sessions int) http.Handler {
	registry := prometheus.NewRegistry()
	metrics := promauto.With(registry)
	counts := func(what string, of func(cos.Stats) float64) counter {
		return counter{metrics.NewCounter(prometheus.CounterOpts{Name: "cos_" + what + "_total"}), of}
	}
	s := &server{engine: engine, model: model, slots: make(chan struct{}, sessions),
		requests: metrics.NewCounterVec(prometheus.CounterOpts{Name: "cos_requests_total"}, []string{"code"}),
		counters: []counter{
			counts("tokens", func(s cos.Stats) float64 { return float64(s.Tokens) }),
			counts("proposed", func(s cos.Stats) float64 { return float64(s.Proposed) }),
			counts("tested", func(s cos.Stats) float64 { return float64(s.Tested) }),
			counts("accepted", func(s cos.Stats) float64 { return float64(s.Accepted) }),
			counts("forwards", func(s cos.Stats) float64 { return float64(s.Forwards) }),
			counts("model_seconds", func(s cos.Stats) float64 { return s.ModelTime.Seconds() }),
			counts("step_seconds", func(s cos.Stats) float64 { return s.TotalTime.Seconds() }),
		}}
	metrics.NewGaugeFunc(prometheus.GaugeOpts{Name: "cos_requests_running"}, func() float64 { return float64(len(s.slots)) })

	about := object{"id": model, "object": "model", "created": time.Now().Unix(), "owned_by": "cos"}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, http.StatusOK, object{"object": "list", "data": []object{about}})
	})
	mux.HandleFunc("GET /v1/models/"+model, func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, about) })
	mux.HandleFunc("POST /v1/completions", s.completions)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		reply(w, http.StatusNotFound, object{"error": refusal(http.StatusNotFound, nil, nil, "there is no %s", r.URL.Path)})
	})
	return mux
}

// completions answers a request. It is over and counted before its last bytes are sent, so that a client finds it so.
func (s *server) completions(w http.ResponseWriter, r *http.Request) {
	c, err := s.begin(w, r)
	var last choice
	if err == nil {
		last, err = c.decode(r.Context(), func(piece choice) { send(w, c.body(nil, piece)) })
	}
	status, failure := http.StatusOK, toAPI(err)
	if r.Context().Err() != nil {
		status = 499 // the client left
	} else if err != nil {
		status = failure.status
	}
	s.requests.WithLabelValues(strconv.Itoa(status)).Inc()
	streams := c != nil && c.Stream
	switch {
	case err != nil && streams:
		send(w, object{"error": failure})
	case err != nil:
		reply(w, status, object{"error": failure})
	case streams:
		send(w, c.body(nil, last))
		if c.StreamOptions.IncludeUsage {
			send(w, c.body(c.usage()))
		}
		fmt.Fprint(w, "data: [DONE]\n\n")
	default:
		reply(w, status, c.body(c.usage(), last))
	}
}

type object = map[string]any

// reply answers with JSON. A client that left does not read it, which does no harm.
func reply(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}

// send sends an event of a stream.
func send(w http.ResponseWriter, body any) {
	fmt.Fprint(w, "data: ")
	_ = json.NewEncoder(w).Encode(body) // ends the line
	fmt.Fprintln(w)
	_ = http.NewResponseController(w).Flush()
}

// completion is a request that is decoded.
type completion struct {
	*request
	server         *server
	session        *cos.Session
	text           *cos.TextStream
	prompt, tokens int // how many
	id             string
}

// begin reads a request and makes its session, if there is a slot.
func (s *server) begin(w http.ResponseWriter, r *http.Request) (c *completion, err error) {
	select {
	case s.slots <- struct{}{}:
	default:
		return nil, &apiError{http.StatusTooManyRequests, "too many requests are running", "rate_limit_error", nil, nil}
	}
	c = &completion{server: s, id: "cmpl-" + rand.Text(), text: new(cos.TextStream), session: new(cos.Session)}
	defer func() {
		if err != nil {
			c.close()
			c = nil
		}
	}()
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 16<<20))
	if err != nil {
		return c, refusal(http.StatusBadRequest, nil, nil, "the body cannot be read: %v", err)
	}
	var options cos.Options
	if c.request, options, err = s.parse(body); err != nil {
		return c, err
	}
	tokens := c.Prompt.list
	if c.Prompt.text != nil {
		if tokens, err = s.engine.Encode(*c.Prompt.text, true); err != nil {
			return c, err
		}
	}
	session, err := s.engine.NewSession(options)
	if err != nil {
		return c, err
	}
	c.session = session
	if err = session.Prompt(tokens); err != nil {
		return c, err
	}
	text, err := s.engine.NewTextStream()
	if err != nil {
		return c, err
	}
	c.text = text
	c.prompt = len(tokens)
	if c.Stream {
		w.Header().Set("Content-Type", "text/event-stream")
		_ = http.NewResponseController(w).Flush()
	}
	return c, nil
}

func (c *completion) close() {
	_, _ = c.session.Close(), c.text.Close()
	<-c.server.slots
}

// choice is a text, or a piece of one. The last piece has a finish_reason.
type choice struct {
	Index        int       `json:"index"`
	Text         string    `json:"text"`
	Logprobs     *logprobs `json:"logprobs"`
	FinishReason *string   `json:"finish_reason"`
}

type logprobs struct {
	Tokens        []string  `json:"tokens"`
	TokenLogprobs []float32 `json:"token_logprobs"`
	TopLogprobs   *struct{} `json:"top_logprobs"`
}

// decode decodes until the sequence or the text ends, closes, and returns what was not yet given out. A stream gives text
// out as soon as it cannot become a stop string.
func (c *completion) decode(ctx context.Context, give func(choice)) (held choice, err error) {
	defer c.close()
	var counted cos.Stats
	for step, err := range c.session.Steps(ctx) {
		if stats, err := c.session.Stats(); err == nil {
			for _, counter := range c.server.counters {
				counter.Add(counter.of(stats) - counter.of(counted))
			}
			counted = stats
		}
		if err == nil {
			err = c.read(step, &held)
		}
		if err != nil {
			return held, err
		}
		ready, stopped := cut(held.Text, c.Stop.list)
		if stopped {
			held.Text, held.FinishReason = held.Text[:ready], &finishStop
		}
		if held.FinishReason != nil {
			break
		}
		if c.Stream && ready > 0 {
			piece := held
			piece.Text = held.Text[:ready]
			held = choice{Text: held.Text[ready:]}
			give(piece)
		}
	}
	return held, nil
}

var finishStop, finishLength = "stop", "length"

// read appends what a step decoded.
func (c *completion) read(step cos.Step, to *choice) error {
	piece, err := c.text.Push(step.Tokens)
	var rest string
	if step.Finish != cos.FinishNone && err == nil {
		to.FinishReason = &finishLength
		if step.Finish == cos.FinishStop {
			to.FinishReason = &finishStop
		}
		rest, err = c.text.Finish()
	}
	to.Text += piece + rest
	c.tokens += len(step.Tokens)
	if c.request.Logprobs == nil {
		return err
	}
	if to.Logprobs == nil {
		to.Logprobs = new(logprobs)
	}
	to.Logprobs.TokenLogprobs = append(to.Logprobs.TokenLogprobs, step.LogProbabilities...)
	for i := range step.Tokens {
		text, textErr := c.server.engine.Decode(step.Tokens[i : i+1])
		to.Logprobs.Tokens = append(to.Logprobs.Tokens, text)
		err = cmp.Or(err, textErr)
	}
	return err
}

// cut says how much of a text may be given out: up to the first stop string, or to what may become one.
func cut(text string, stops []string) (ready int, stopped bool) {
	ready = len(text)
	for at := range len(text) {
		for _, stop := range stops {
			if strings.HasPrefix(text[at:], stop) {
				return at, true
			}
			if strings.HasPrefix(stop, text[at:]) {
				ready = min(ready, at)
			}
		}
	}
	return ready, false
}

func (c *completion) usage() object {
	return object{"prompt_tokens": c.prompt, "completion_tokens": c.tokens, "total_tokens": c.prompt + c.tokens}
}

func (c *completion) body(usage object, choices ...choice) object {
	return object{"id": c.id, "object": "text_completion", "created": time.Now().Unix(), "model": c.server.model,
		"choices": append([]choice{}, choices...), "usage": usage}
}
