// Server serves OpenAI's completions and chats from one engine. The library reads requests and writes answers; this
// program carries bytes, and decides who may decode when. tests/servers/README.md specifies it.
package main

import (
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"maps"
	"math"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	cos "example.com/cos/bindings/go"
)

const usage = `usage: server CONFIG.json [OPTION VALUE]...

  --host ADDRESS       where it listens; default 127.0.0.1
  --port N             0 is any free port; default 8080
  --max-sessions N     choices that are decoded at once; default 32
  --queue N            requests that wait for that; default 64
  --prepare SECONDS    time to prepare the engine before it listens; default 10
  --api-keys FILE      keys, one a line; default: none are needed
  --rate N             requests a minute of each key, or of each address without keys; default 0: no limit
  --max-body BYTES     the largest body; default 4194304
  --max-prompt TOKENS  the longest prompt; default 0: as the context allows
  --max-tokens TOKENS  the longest choice; default 0: as the body says
  --timeout SECONDS    how long a client may take to send a request, or to take a part of an answer; default 30
`

type options struct {
	host, keys                                                                   string
	port, sessions, queue, prepare, rate, maxBody, maxPrompt, maxTokens, timeout uint64
}

// parse reads the arguments of the program.
func parse(arguments []string) (config string, o options, err error) {
	set := flag.NewFlagSet("server", flag.ContinueOnError)
	set.SetOutput(io.Discard) // main says what is wrong
	number := func(name string, value *uint64, preset, least, most uint64) {
		*value = preset
		set.Func(name, "", func(text string) (err error) {
			if *value, err = strconv.ParseUint(text, 10, 32); err == nil && (*value < least || *value > most) {
				err = strconv.ErrRange
			}
			return err
		})
	}
	set.StringVar(&o.host, "host", "127.0.0.1", "")
	set.StringVar(&o.keys, "api-keys", "", "")
	number("port", &o.port, 8080, 0, 65535)
	number("max-sessions", &o.sessions, 32, 1, math.MaxUint32)
	number("queue", &o.queue, 64, 0, 100_000)
	number("prepare", &o.prepare, 10, 0, 86400)
	number("rate", &o.rate, 0, 0, math.MaxUint32)
	number("max-body", &o.maxBody, 4<<20, 1, math.MaxUint32)
	number("max-prompt", &o.maxPrompt, 0, 0, math.MaxUint32)
	number("max-tokens", &o.maxTokens, 0, 0, math.MaxUint32)
	number("timeout", &o.timeout, 30, 1, 3600)
	if len(arguments) > 0 && !strings.HasPrefix(arguments[0], "-") {
		config, arguments = arguments[0], arguments[1:]
	}
	if err = set.Parse(arguments); err == nil && (config == "" || set.NArg() > 0) {
		err = errors.New("there is no configuration, or more than one")
	}
	return config, o, err
}

func main() {
	log.SetFlags(0)
	config, o, err := parse(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		fmt.Print(usage)
		return
	} else if err != nil {
		first, _, _ := strings.Cut(usage, "\n")
		fmt.Fprintln(os.Stderr, first)
		os.Exit(2)
	}
	signals, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	s := &service{options: o, patience: time.Duration(o.timeout) * time.Second,
		model: strings.TrimSuffix(filepath.Base(config), ".json"), started: time.Now().Unix(),
		line: line{free: int(o.sessions), places: int(o.queue)}, buckets: map[string]bucket{}, ended: map[int]int{}}
	if o.keys != "" {
		text, err := os.ReadFile(o.keys)
		if err != nil {
			log.Fatal(err)
		}
		s.readKeys(string(text))
	}
	if s.engine, err = cos.Open(config); err != nil {
		log.Fatal(err)
	}
	if o.prepare > 0 {
		load := cos.PrepareOptions{Sessions: uint32(min(o.sessions, 1024))}
		load.Time = time.Duration(o.prepare) * time.Second
		share, err := s.engine.Prepare(signals, load)
		if err != nil && signals.Err() == nil {
			log.Fatal(err)
		}
		log.Printf("prepared %.0f %%", 100*share)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(o.host, strconv.FormatUint(o.port, 10)))
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: s, ReadTimeout: s.patience, WriteTimeout: s.patience}
	go func() {
		if err := server.Serve(listener); err != http.ErrServerClosed {
			log.Fatal(err)
		}
	}()
	fmt.Printf("listening on %v\n", listener.Addr())
	<-signals.Done()
	stop()                             // a second signal ends the process at once
	server.SetKeepAlivesEnabled(false) // the next request of a client then goes to another server
	s.line.drain()                     // meanwhile, /ready and /metrics are answered
	ending, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = server.Shutdown(ending) // the last bytes go; clients that never send a whole request are not waited for
}

type service struct {
	options
	patience time.Duration // how long a client may take
	engine   *cos.Engine
	driver   cos.Driver
	model    string
	started  int64
	keys     [][sha256.Size]byte // nil: no key is needed
	line     line

	mu      sync.Mutex
	buckets map[string]bucket // by client
	swept   time.Time         // when buckets were last removed
	ended   map[int]int       // requests by status
}

type object = map[string]any

// ServeHTTP answers everything. An http.ServeMux would answer some requests by itself, and not in OpenAI's form.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &answer{ResponseWriter: w, kind: jsonType, patience: s.patience}
	about := object{"id": s.model, "object": "model", "created": s.started, "owned_by": "cos"}
	switch method, path := r.Method, r.URL.Path; {
	case method == "POST" && path == "/v1/completions":
		s.complete(a, r, cos.EndpointCompletion)
	case method == "POST" && path == "/v1/chat/completions":
		s.complete(a, r, cos.EndpointChat)
	case strings.HasPrefix(path, "/v1/") && s.client(r) == "":
		a.fail(errKey)
	case len(methods(path)) > 0 && !slices.Contains(methods(path), method):
		a.Header().Set("Allow", strings.Join(methods(path), ", "))
		a.fail(errMethod)
	case path == "/v1/models":
		_ = a.send(200, marshal(object{"object": "list", "data": []object{about}}))
	case path == "/v1/models/"+s.model:
		_ = a.send(200, marshal(about))
	case strings.HasPrefix(path, "/v1/models/"):
		a.fail(errModel)
	case path == "/ready":
		if _, _, drains := s.line.state(); drains {
			_ = a.send(503, marshal(object{"status": "draining"}))
			return
		}
		fallthrough
	case path == "/health":
		_ = a.send(200, marshal(object{"status": "ok"}))
	case path == "/metrics":
		a.kind = "text/plain; version=0.0.4"
		_ = a.send(200, s.metrics())
	default:
		a.fail(errPath)
	}
}

// methods are those of a path. There are none if nothing is there.
func methods(path string) []string {
	switch {
	case path == "/v1/completions", path == "/v1/chat/completions":
		return []string{"POST"}
	case path == "/v1/models", path == "/health", path == "/ready", path == "/metrics",
		strings.HasPrefix(path, "/v1/models/"):
		return []string{"GET", "HEAD"}
	}
	return nil
}

// entry is a line of the log.
type entry struct {
	start            time.Time
	Time             float64 `json:"time"`
	Path             string  `json:"path"`
	Status           int     `json:"status"`
	Choices          int     `json:"choices"`
	PromptTokens     uint64  `json:"prompt_tokens"`
	CompletionTokens uint64  `json:"completion_tokens"`
	Wait             float64 `json:"wait_ms"`
	First            float64 `json:"first_ms"`
	Total            float64 `json:"total_ms"`
}

// complete answers a request for a text. The request is counted and logged before its last bytes are sent. So a client
// that has read them finds it in the metrics.
func (s *service) complete(a *answer, r *http.Request, endpoint cos.Endpoint) {
	e := &entry{start: time.Now(), Path: r.URL.Path, Status: 200}
	last, err := []byte(nil), error(errDrains)
	if s.line.begin() {
		defer s.line.requests.Done()
		last, err = s.decode(a, r, endpoint, e)
	}
	left := errors.Is(err, context.Canceled)
	if left {
		e.Status = 499
	} else if err != nil {
		e.Status, _ = explain(err)
	}
	e.Time, e.Total = float64(time.Now().UnixMilli())/1000, milliseconds(e.start)
	s.mu.Lock()
	s.ended[e.Status]++
	s.mu.Unlock()
	log.Printf("%s", marshal(e))
	if err == nil {
		_ = a.send(200, last)
	} else if !left {
		a.fail(err)
	}
}

// decode decodes what a request asks for, and sends all parts of the answer but the last one, which it returns. If the
// client has left, the error is context.Canceled. A panic becomes an error, so that it has an answer too.
func (s *service) decode(a *answer, r *http.Request, endpoint cos.Endpoint, e *entry) (last []byte, err error) {
	defer func() {
		if value := recover(); value != nil {
			log.Printf("panic: %v\n%s", value, debug.Stack())
			err = errPanic
		}
	}()
	client := s.client(r)
	if client == "" {
		return nil, errKey
	}
	if wait := s.spend(client); wait > 0 {
		a.Header().Set("Retry-After", strconv.Itoa(int(math.Ceil(wait.Seconds()))))
		return nil, errRate
	}
	body, err := s.read(r)
	if err != nil {
		return nil, err
	}
	request, err := s.engine.NewRequest(body, cos.RequestOptions{Endpoint: endpoint, Model: s.model,
		MaxChoices: uint32(s.sessions), MaxPromptTokens: uint32(s.maxPrompt), MaxTokens: uint32(s.maxTokens)})
	if err != nil {
		return nil, err
	}
	defer request.Close()
	e.Choices = request.Choices()
	if status, err := request.Status(); err == nil {
		e.PromptTokens = status.PromptTokens
	}
	waits := time.Now()
	err = s.line.enter(r.Context(), e.Choices)
	e.Wait = milliseconds(waits)
	if err != nil {
		return nil, err
	}
	defer s.line.leave(e.Choices)
	driven := s.driver.Start(request)
	defer driven.Cancel() // its room is free in the next step, in which a request that takes its place begins
	for {
		status, part, err := driven.Next(r.Context()) // ends when the client leaves
		if err != nil {
			return nil, err
		}
		if e.First == 0 {
			e.First = milliseconds(e.start)
		}
		e.PromptTokens, e.CompletionTokens = status.PromptTokens, status.CompletionTokens
		if status.Streams {
			a.kind = eventType
		}
		if status.State != cos.RequestOpen {
			return part, nil
		}
		if a.send(200, part) != nil {
			return nil, context.Canceled
		}
	}
}

// read reads a body.
func (s *service) read(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, int64(s.maxBody)+1))
	var ofNet net.Error
	switch {
	case errors.As(err, &ofNet) && ofNet.Timeout():
		return nil, errSlow
	case r.Context().Err() != nil:
		return nil, context.Canceled
	case err != nil:
		return nil, &failure{400, "invalid_request_error", "", "the body cannot be read: " + err.Error()}
	case len(body) > int(s.maxBody):
		_, _ = io.CopyN(io.Discard, r.Body, 64<<20) // many clients read no answer before they have sent all
		return nil, errLarge
	}
	return body, nil
}

// client is who sends a request: a key, or an address if no key is needed. It is empty if the key is wrong. Keys are
// compared in a time that does not depend on them, so that nobody can guess them piece by piece.
func (s *service) client(r *http.Request) (client string) {
	if s.keys == nil {
		client, _, _ = net.SplitHostPort(r.RemoteAddr)
		return client
	}
	scheme, key, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	given := sha256.Sum256([]byte(strings.TrimSpace(key)))
	for i, known := range s.keys {
		if subtle.ConstantTimeCompare(given[:], known[:]) == 1 && strings.EqualFold(scheme, "Bearer") {
			client = fmt.Sprint("key ", i)
		}
	}
	return client
}

func (s *service) readKeys(text string) {
	s.keys = [][sha256.Size]byte{}
	for line := range strings.Lines(text) {
		if key := strings.TrimSpace(line); key != "" && !strings.HasPrefix(key, "#") {
			s.keys = append(s.keys, sha256.Sum256([]byte(key)))
		}
	}
}

// bucket holds the requests that a client may send now. It fills evenly, and a minute fills it.
type bucket struct {
	left float64
	at   time.Time
}

// spend takes a request from the bucket of a client. If there is none, it returns the time until there is.
func (s *service) spend(client string) time.Duration {
	if s.rate == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now, rate := time.Now(), float64(s.rate)
	if now.Sub(s.swept) > time.Minute { // those that are full need not be remembered
		s.swept = now
		maps.DeleteFunc(s.buckets, func(_ string, b bucket) bool { return now.Sub(b.at) > time.Minute })
	}
	b := s.buckets[client]
	left := min(rate, b.left+rate*now.Sub(b.at).Minutes())
	if left < 1 {
		return time.Duration((1 - left) / rate * float64(time.Minute))
	}
	s.buckets[client] = bucket{left - 1, now}
	return 0
}

// metrics are those of the engine and of the server.
func (s *service) metrics() []byte {
	text, _ := s.engine.Metrics() // fails only after Close
	running, waiting, _ := s.line.state()
	metrics := fmt.Appendf(nil, "%s# TYPE cos_requests_running gauge\ncos_requests_running %d\n"+
		"# TYPE cos_requests_waiting gauge\ncos_requests_waiting %d\n# TYPE cos_requests_total counter\n",
		text, running, waiting)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, code := range slices.Sorted(maps.Keys(s.ended)) {
		metrics = fmt.Appendf(metrics, "cos_requests_total{code=\"%d\"} %d\n", code, s.ended[code])
	}
	return metrics
}

const jsonType, eventType = "application/json", "text/event-stream"

// answer is the answer to a client, who has some time for each part of it.
type answer struct {
	http.ResponseWriter
	kind     string // its Content-Type
	patience time.Duration
	begun    bool
}

// send sends a whole answer, or a part of a stream. If the client does not take it in time, the context of the request
// ends. Each part is flushed, so that it is on its way when send returns.
func (a *answer) send(status int, text []byte) error {
	controller := http.NewResponseController(a.ResponseWriter)
	_ = controller.SetWriteDeadline(time.Now().Add(a.patience))
	if !a.begun {
		a.begun = true
		a.Header().Set("Content-Type", a.kind)
		if a.kind != eventType {
			a.Header().Set("Content-Length", strconv.Itoa(len(text)))
		}
		a.WriteHeader(status)
	}
	_, err := a.Write(text)
	return errors.Join(err, controller.Flush())
}

// fail answers with an error: as an event if a stream has begun.
func (a *answer) fail(err error) {
	status, text := explain(err)
	if a.begun {
		text = fmt.Appendf(nil, "data: %s\n\n", text)
	} else if a.kind = jsonType; status == http.StatusTooManyRequests || status == http.StatusServiceUnavailable {
		a.Header().Set("Retry-After", cmp.Or(a.Header().Get("Retry-After"), "1"))
	}
	_ = a.send(status, text)
}

// failure is an error of the server itself.
type failure struct {
	status              int
	kind, code, message string
}

func (f *failure) Error() string { return f.message }

var (
	errKey    = &failure{401, "authentication_error", "invalid_api_key", "the API key is missing or wrong"}
	errPath   = &failure{404, "invalid_request_error", "", "there is nothing at this path"}
	errMethod = &failure{405, "invalid_request_error", "", "this path has other methods; see the header Allow"}
	errModel  = &failure{404, "invalid_request_error", "model_not_found", "there is no such model"}
	errSlow   = &failure{408, "invalid_request_error", "", "the body did not come in time"}
	errLarge  = &failure{413, "invalid_request_error", "", "the body is too large"}
	errRate   = &failure{429, "rate_limit_error", "rate_limit_exceeded", "too many requests in a minute"}
	errFull   = &failure{429, "rate_limit_error", "rate_limit_exceeded", "too many requests wait"}
	errPanic  = &failure{500, "server_error", "", "the server has a bug"}
	errDrains = &failure{503, "server_error", "", "the server ends"}
)

// explain returns the status and the body for an error. The library knows those of its own errors.
func explain(err error) (int, []byte) {
	var ofLibrary *cos.Error
	if errors.As(err, &ofLibrary) && ofLibrary.JSON != "" {
		return ofLibrary.Status, []byte(ofLibrary.JSON)
	}
	f := &failure{500, "server_error", "", err.Error()}
	errors.As(err, &f)
	code := any(f.code)
	if f.code == "" {
		code = nil
	}
	return f.status, marshal(object{"error": object{"message": f.message, "type": f.kind, "param": nil, "code": code}})
}

func marshal(value any) []byte {
	text, _ := json.Marshal(value) // all that this program has can be JSON
	return text
}

func milliseconds(since time.Time) float64 { return float64(time.Since(since).Microseconds()) / 1000 }
