// The gateway before replicas that misbehave in ways that a real Triton seldom does.

package main

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"example.com/cos/bindings/triton/gateway/wire"
)

type stream = grpc.BidiStreamingServer[wire.ModelInferRequest, wire.ModelStreamInferResponse]

// fake is a replica that answers as a test says.
type fake struct {
	wire.UnimplementedGRPCInferenceServiceServer
	answers func(s stream) error
	asked   atomic.Int32
}

func (*fake) ModelReady(context.Context, *wire.ModelReadyRequest) (*wire.ModelReadyResponse, error) {
	return &wire.ModelReadyResponse{Ready: true}, nil
}

func (f *fake) ModelStreamInfer(s stream) error {
	f.asked.Add(1)
	if _, err := s.Recv(); err != nil {
		return err
	}
	return f.answers(s)
}

// part is a response of the backend.
func part(code uint32, text string, final bool) *wire.ModelStreamInferResponse {
	type output = wire.ModelInferResponse_InferOutputTensor
	raw := append(binary.LittleEndian.AppendUint32(nil, uint32(len(text))), text...)
	end := &wire.InferParameter{ParameterChoice: &wire.InferParameter_BoolParam{BoolParam: final}}
	return &wire.ModelStreamInferResponse{InferResponse: &wire.ModelInferResponse{
		Parameters:        map[string]*wire.InferParameter{"triton_final_response": end},
		Outputs:           []*output{{Name: "response"}, {Name: "status"}},
		RawOutputContents: [][]byte{raw, binary.LittleEndian.AppendUint32(nil, code)}}}
}

// says answers with these parts, and then ends the stream.
func says(parts ...*wire.ModelStreamInferResponse) func(stream) error {
	return func(s stream) error {
		for _, each := range parts {
			if err := s.Send(each); err != nil {
				return err
			}
		}
		return nil
	}
}

// lost is what happens to a stream whose replica dies.
func lost(s stream) error { return status.Error(codes.Unavailable, "connection reset") }

// start starts a gateway before replicas. The first one is the first in the order of the empty prompt.
func start(t *testing.T, l limits, fakes ...*fake) (address string) {
	t.Helper()
	f := fleetOf(0, routing{model: "m", batch: 8, limit: 8})
	var addresses []string
	for range fakes {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addresses = append(addresses, listener.Addr().String())
		at := len(addresses) - 1
		server := grpc.NewServer()
		wire.RegisterGRPCInferenceServiceServer(server, fakes[at])
		go func() { _ = server.Serve(listener) }()
		t.Cleanup(server.Stop)
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	f.update(ctx, addresses)
	begins := f.beginning([]byte(`{}`))
	if len(fakes) == 2 && score(begins, addresses[0]) < score(begins, addresses[1]) {
		fakes[0].answers, fakes[1].answers = fakes[1].answers, fakes[0].answers
	}
	for ready := 0; ready < len(fakes); time.Sleep(5 * time.Millisecond) {
		f.mu.Lock()
		ready = 0
		for _, r := range f.replicas {
			if r.ready {
				ready++
			}
		}
		f.mu.Unlock()
	}
	server := httptest.NewServer(&gateway{limits: l, fleet: f, metrics: f.metrics})
	t.Cleanup(server.Close)
	return server.URL
}

var usual = limits{tries: 3, maxBody: 1000, timeout: 5 * time.Second, patience: 5 * time.Second}

func post(t *testing.T, address, body string) (*http.Response, string) {
	t.Helper()
	response, err := http.Post(address+"/v1/completions", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, _ := io.ReadAll(response.Body)
	return response, string(text)
}

func TestFailuresBeforeTheFirstByteAreTriedElsewhere(t *testing.T) {
	for name, first := range map[string]func(stream) error{
		"lost":            lost,
		"cut":             says(),
		"no text yet":     says(part(200, "", false)),
		"full":            says(part(429, `{"error": 1}`, true)),
		"no memory":       says(part(503, `{"error": 1}`, true)),
		"refused":         says(&wire.ModelStreamInferResponse{ErrorMessage: "Server is stopping"}),
		"another backend": says(&wire.ModelStreamInferResponse{InferResponse: &wire.ModelInferResponse{}}),
	} {
		a, b := &fake{answers: first}, &fake{answers: says(part(200, "good", true))}
		response, text := post(t, start(t, usual, a, b), `{}`)
		if response.StatusCode != 200 || text != "good" || a.asked.Load() != 1 || b.asked.Load() != 1 {
			t.Errorf("%s: %d %q, asked %d and %d", name, response.StatusCode, text, a.asked.Load(), b.asked.Load())
		}
	}
}

func TestWhatHasBegunEndsWithAnError(t *testing.T) {
	begun := part(200, "data: {}\n\n", false)
	for name, second := range map[string]func(stream) error{
		"lost": lost, "cut": says(), "refused": says(part(500, `{"error": {"message": "lost"}}`, true)),
	} {
		a := &fake{answers: func(s stream) error {
			_ = s.Send(begun)
			return second(s)
		}}
		b := &fake{answers: a.answers}
		response, text := post(t, start(t, usual, a, b), `{}`)
		events := strings.Split(strings.TrimSuffix(text, "\n\n"), "\n\n")
		if response.StatusCode != 200 || len(events) != 2 || !strings.HasPrefix(events[1], `data: {"error":`) {
			t.Errorf("%s: %d %q", name, response.StatusCode, text)
		}
		if asked := a.asked.Load() + b.asked.Load(); asked != 1 {
			t.Errorf("%s: asked %d times", name, asked)
		}
	}
}

func TestErrorsThatRemain(t *testing.T) {
	silent := func(s stream) error { <-s.Context().Done(); return nil }
	short := usual
	short.timeout = 50 * time.Millisecond
	for name, each := range map[string]struct {
		limits
		answers func(stream) error
		body    string
		status  int
		says    string
		asked   int32
	}{
		"all lost":     {usual, lost, `{}`, 502, "was lost", 2},
		"all full":     {usual, says(part(429, `{"error": {"message": "too many"}}`, true)), `{}`, 429, "too many", 2},
		"a wrong body": {usual, says(part(400, `{"error": {"message": "wrong"}}`, true)), `{}`, 400, "wrong", 1},
		"too slow":     {short, silent, `{}`, 504, "too long", 1},
		"too large":    {usual, silent, strings.Repeat(" ", 1001), 413, "too large", 0},
	} {
		a, b := &fake{answers: each.answers}, &fake{answers: each.answers}
		response, text := post(t, start(t, each.limits, a, b), each.body)
		asked := a.asked.Load() + b.asked.Load()
		if response.StatusCode != each.status || !strings.Contains(text, each.says) || asked != each.asked {
			t.Errorf("%s: %d %s, asked %d times", name, response.StatusCode, text, asked)
		}
		if wanted := each.status == 429 || each.status > 500; wanted != (response.Header.Get("Retry-After") == "1") {
			t.Errorf("%s: Retry-After is %q", name, response.Header.Get("Retry-After"))
		}
	}
}

// A client that has a whole answer may leave at once. If that cancelled the stream, Triton would not exit in time.
func TestWholeAnswersCancelNothing(t *testing.T) {
	ended := make(chan error, 1)
	a := &fake{answers: func(s stream) error {
		_ = s.Send(part(200, "all", true))
		select {
		case <-s.Context().Done():
			ended <- s.Context().Err()
		case <-time.After(200 * time.Millisecond):
			ended <- nil
		}
		return nil
	}}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	response, err := client.Post(start(t, usual, a)+"/v1/completions", "", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	text := make([]byte, 3)
	_, _ = io.ReadFull(response.Body, text)
	response.Body.Close()
	if err := <-ended; string(text) != "all" || err != nil {
		t.Fatalf("%q, and its stream ended with %v", text, err)
	}
}

func TestClientsThatLeaveCancel(t *testing.T) {
	begun, ended := make(chan bool), make(chan bool)
	a := &fake{answers: func(s stream) error {
		close(begun)
		<-s.Context().Done()
		close(ended)
		return nil
	}}
	ctx, cancel := context.WithCancel(context.Background())
	request, _ := http.NewRequestWithContext(ctx, "POST", start(t, usual, a)+"/v1/completions", strings.NewReader(`{}`))
	go func() { <-begun; cancel() }()
	if response, err := http.DefaultClient.Do(request); err == nil {
		t.Fatal(response.Status)
	}
	<-ended
}

// A client that takes nothing holds its request up for its time only.
func TestClientsThatDoNotReadAreLeft(t *testing.T) {
	ended := make(chan bool)
	a := &fake{answers: func(s stream) error {
		defer close(ended)
		for s.Send(part(200, "data: "+strings.Repeat("x", 1<<20)+"\n\n", false)) == nil {
		}
		return nil
	}}
	quick := usual
	quick.patience, quick.timeout = 200*time.Millisecond, time.Minute
	response, err := http.Post(start(t, quick, a)+"/v1/completions", "", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		t.Fatal("a client that reads nothing is served for ever")
	}
}
