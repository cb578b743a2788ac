// Tests of requests of OpenAI's protocol.

package cos_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cos "example.com/cos/bindings/go"
)

type members = map[string]any

// newRequest starts a request of the demo. Its strategy repeats a text, unless the members say something else.
func newRequest(t *testing.T, endpoint cos.Endpoint, of members) *cos.Request {
	t.Helper()
	engine, err := demo()
	if err != nil {
		t.Fatal(err)
	}
	body := members{"model": "demo", "seed": 5, "max_tokens": 24, "cos": members{"strategy": "cos"}}
	if endpoint == cos.EndpointChat {
		body["messages"] = []members{{"role": "user", "content": "How many legs has a cat?"}}
	} else {
		body["prompt"] = "Question: How many legs do three cats have?\nAnswer:"
	}
	maps.Copy(body, of)
	text, err := json.Marshal(body)
	if err != nil {
		t.Fatal(err)
	}
	request, err := engine.NewRequest(text, cos.RequestOptions{Endpoint: endpoint, Model: "demo"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { request.Close() })
	return request
}

// answer steps until a request is done, and returns all parts of its answer and its last status.
func answer(t *testing.T, request *cos.Request) (string, cos.RequestStatus) {
	t.Helper()
	var sent strings.Builder
	for {
		status, err := request.Step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		part, err := request.Answer()
		if err != nil {
			t.Fatal(err)
		}
		sent.Write(part)
		if status.State != cos.RequestOpen {
			if status.State != cos.RequestDone {
				t.Fatal(status.State)
			}
			return sent.String(), status
		}
	}
}

// part is an answer or an event of one.
type part struct {
	Object  string
	Choices []struct {
		Index        int
		Text         string
		Message      struct{ Content string }
		Delta        struct{ Content string }
		FinishReason string `json:"finish_reason"`
	}
	Usage struct {
		Prompt     uint64 `json:"prompt_tokens"`
		Completion uint64 `json:"completion_tokens"`
	}
}

func parsePart(t *testing.T, text string) (p part) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		t.Fatal(err, text)
	}
	return p
}

// choice is the text of a choice, and why it has ended.
type choice struct{ text, reason string }

// streamed puts the events of a stream together.
func streamed(t *testing.T, sent string, n int) []choice {
	t.Helper()
	events := strings.Split(sent, "\n\n")
	if count := len(events); count < 3 || events[count-1] != "" || events[count-2] != "data: [DONE]" {
		t.Fatalf("%q", sent)
	}
	choices := make([]choice, n)
	for _, event := range events[:len(events)-2] {
		data, found := strings.CutPrefix(event, "data: ")
		if !found {
			t.Fatalf("%q", event)
		}
		for _, piece := range parsePart(t, data).Choices {
			choices[piece.Index].text += piece.Text + piece.Delta.Content
			choices[piece.Index].reason += piece.FinishReason
		}
	}
	return choices
}

func TestRequests(t *testing.T) {
	for _, endpoint := range []cos.Endpoint{cos.EndpointCompletion, cos.EndpointChat} {
		for _, n := range []int{1, 3} {
			t.Run(fmt.Sprintf("%v %d", endpoint, n), func(t *testing.T) {
				request := newRequest(t, endpoint, members{"n": n})
				text, status := answer(t, request)
				whole := parsePart(t, text)
				if request.Choices() != n || len(whole.Choices) != n || status.Streams || status.PromptTokens < 5 ||
					status.PromptTokens != whole.Usage.Prompt || status.CompletionTokens != whole.Usage.Completion {
					t.Fatal(request.Choices(), text, status)
				}
				events, status := answer(t, newRequest(t, endpoint, members{"n": n, "stream": true}))
				if !status.Streams {
					t.Error(status)
				}
				for i, piece := range streamed(t, events, n) {
					of := whole.Choices[i]
					if wanted := (choice{of.Text + of.Message.Content, of.FinishReason}); of.Index != i ||
						wanted.text == "" || piece != wanted {
						t.Errorf("%d: %q, not %q", i, piece, wanted)
					}
				}
			})
		}
	}
}

// news steps until a request is done, and tells the news of its choices.
func news(t *testing.T, request *cos.Request, tell func(int, cos.ChoiceNews)) {
	t.Helper()
	for state := cos.RequestOpen; state == cos.RequestOpen; {
		status, err := request.Step(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		state = status.State
		for i := range request.Choices() {
			switch news, err := request.Choice(i); {
			case err != nil:
				t.Fatal(err)
			case len(news.Tokens) > 0:
				tell(i, news)
			}
		}
	}
}

// A server of another protocol reads choices. Those of a stream have what is new, and those of others have all.
func TestChoices(t *testing.T) {
	of := members{"n": 2, "logprobs": 2, "cos": members{"strategy": "cos", "model_log_probabilities": true}}
	request := newRequest(t, cos.EndpointCompletion, of)
	if status, err := request.Status(); err != nil || status.State != cos.RequestOpen || status.PromptTokens == 0 {
		t.Fatal(status, err)
	}
	whole := make([]cos.ChoiceNews, 2)
	news(t, request, func(i int, news cos.ChoiceNews) { whole[i] = news })
	for _, choice := range whole {
		count := len(choice.Tokens)
		if count == 0 || choice.Text == "" || len(choice.LogProbabilities) != count ||
			len(choice.Alternatives) != count || len(choice.ModelLogProbabilities) != count ||
			choice.Finish == cos.FinishNone {
			t.Fatalf("%+v", choice)
		}
		for row := range count {
			if len(choice.Alternatives[row]) != 2 || len(choice.ModelLogProbabilities[row]) != 2 {
				t.Fatalf("%+v", choice)
			}
		}
	}
	for _, wrong := range []int{-1, 2} {
		if _, err := request.Choice(wrong); !refusedWith(err, cos.ErrInvalidArgument) {
			t.Error(wrong, err)
		}
	}

	of["stream"] = true
	request = newRequest(t, cos.EndpointCompletion, of)
	pieces := make([]cos.ChoiceNews, 2)
	news(t, request, func(i int, news cos.ChoiceNews) {
		pieces[i].Text += news.Text
		pieces[i].Tokens = append(pieces[i].Tokens, news.Tokens...)
		pieces[i].Finish = max(pieces[i].Finish, news.Finish)
	})
	for i, wanted := range whole {
		got := pieces[i]
		if got.Text != wanted.Text || !slices.Equal(got.Tokens, wanted.Tokens) || got.Finish != wanted.Finish {
			t.Errorf("%d: %+v, not %+v", i, got, wanted)
		}
	}

	// The text ends before a stop string, and says so.
	stop := whole[0].Text[3:6]
	request = newRequest(t, cos.EndpointCompletion, members{"stop": stop})
	before, _, _ := strings.Cut(whole[0].Text, stop)
	news(t, request, func(_ int, news cos.ChoiceNews) { pieces[0] = news })
	if last := pieces[0]; last.Text != before || last.Finish != cos.FinishStopString {
		t.Errorf("%+v", last)
	}
}

func TestRequestErrors(t *testing.T) {
	engine, err := demo()
	if err != nil {
		t.Fatal(err)
	}
	options := cos.RequestOptions{Model: "demo", MaxChoices: 2, MaxPromptTokens: 10, MaxTokens: 20}
	for body, wanted := range map[string]struct {
		code   cos.Code
		status int
		says   string
	}{
		``:                               {cos.ErrInvalidArgument, 400, `"invalid_request_error"`},
		"\xff":                           {cos.ErrInvalidArgument, 400, "UTF-8"},
		`{"model": "demo", "prompt": 7}`: {cos.ErrInvalidArgument, 400, "prompt"},
		`{"model": "demo", "prompt": "a", "n": 3}`:           {cos.ErrInvalidArgument, 400, "n is 3"},
		`{"model": "demo", "prompt": "a", "max_tokens": 21}`: {cos.ErrInvalidArgument, 400, "max_tokens is 21"},
		`{"model": "demo", "prompt": "a", "echo": true}`:     {cos.ErrUnsupported, 400, "echo"},
		`{"model": "other", "prompt": "a"}`:                  {cos.ErrNotFound, 404, `"model_not_found"`},
		`{"model": "demo", "prompt": "` + strings.Repeat("a ", 20) + `"}`: {
			cos.ErrContextFull, 400, `"context_length_exceeded"`},
	} {
		_, err := engine.NewRequest([]byte(body), options)
		var e *cos.Error
		if !refusedWith(err, wanted.code) || !errors.As(err, &e) || e.Status != wanted.status ||
			!strings.Contains(e.JSON, wanted.says) || !json.Valid([]byte(e.JSON)) {
			t.Errorf("%q: %#v", body, err)
		}
	}
	for _, options := range []cos.RequestOptions{{Endpoint: 2}, {Model: "a\x00b"}} {
		if _, err := engine.NewRequest([]byte(`{"prompt": "a"}`), options); !refusedWith(err, cos.ErrInvalidArgument) {
			t.Error(options, err)
		}
	}
	if request, err := engine.NewRequest([]byte(`{"prompt": "a"}`), cos.RequestOptions{}); err != nil {
		t.Error("a body without a model:", err)
	} else {
		request.Close()
	}
}

// long is a request that it takes long to decode.
func long(t *testing.T) *cos.Request {
	t.Helper()
	return newRequest(t, cos.EndpointCompletion, members{"ignore_eos": true, "max_tokens": 1500, "stream": true})
}

func TestRequestCancel(t *testing.T) {
	t.Run("from another goroutine", func(t *testing.T) {
		request := long(t)
		go func() {
			time.Sleep(50 * time.Millisecond)
			if err := request.Cancel(); err != nil {
				t.Error(err)
			}
		}()
		status := cos.RequestStatus{}
		for err := error(nil); status.State == cos.RequestOpen; {
			if status, err = request.Step(context.Background()); err != nil {
				t.Fatal(err)
			}
		}
		if status.State != cos.RequestCancelled || status.CompletionTokens >= 1500 {
			t.Error(status)
		}
		// It stays so.
		if status, err := request.Step(t.Context()); status.State != cos.RequestCancelled || err != nil {
			t.Error(status, err)
		}
		if part, err := request.Answer(); part != nil || err != nil {
			t.Errorf("%q, %v", part, err)
		}
	})
	t.Run("by a context", func(t *testing.T) {
		request := long(t)
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		var err error
		for err == nil {
			_, err = request.Step(ctx)
		}
		if err != context.DeadlineExceeded {
			t.Error(err)
		}
		// The request has ended, whatever the next context is.
		if status, err := request.Step(context.Background()); status.State != cos.RequestCancelled || err != nil {
			t.Error(status, err)
		}
	})
	t.Run("by a context that has ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		request := long(t)
		if _, err := request.Step(ctx); err != context.Canceled {
			t.Error(err)
		}
	})
	t.Run("by Close", func(t *testing.T) {
		request := long(t)
		go func() {
			time.Sleep(50 * time.Millisecond)
			request.Close()
		}()
		var err error
		for err == nil {
			_, err = request.Step(context.Background())
		}
		if err != cos.ErrClosed {
			t.Error(err)
		}
	})
}

func TestRequestOfTwoGoroutines(t *testing.T) {
	request := long(t)
	done := make(chan error)
	go func() {
		for {
			status, err := request.Step(context.Background())
			if errors.Is(err, cos.ErrBusy) { // because of the Answer below
				continue
			}
			if err != nil || status.State != cos.RequestOpen {
				done <- err
				return
			}
		}
	}()
	for {
		if _, err := request.Answer(); errors.Is(err, cos.ErrBusy) {
			break
		}
		runtime.Gosched()
	}
	if err := request.Cancel(); err != nil || request.Choices() != 1 {
		t.Error(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestClosedRequest(t *testing.T) {
	request := newRequest(t, cos.EndpointCompletion, nil)
	if err := errors.Join(request.Close(), request.Close()); err != nil {
		t.Error(err)
	}
	for _, none := range []*cos.Request{request, {}} {
		_, step := none.Step(context.Background())
		_, answer := none.Answer()
		_, choice := none.Choice(0)
		many := cos.StepRequests([]*cos.Request{none})
		for i, err := range []error{step, answer, choice, none.Cancel(), many[0].Err} {
			if err != cos.ErrClosed {
				t.Errorf("%d: %v", i, err)
			}
		}
	}
	if _, err := new(cos.Engine).NewRequest([]byte("{}"), cos.RequestOptions{}); err != cos.ErrClosed {
		t.Error(err)
	}
	// A request goes on after its engine is closed.
	engine := newEngine(t, small)
	request, err := engine.NewRequest([]byte(`{"prompt": "a", "max_tokens": 4}`), cos.RequestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer request.Close()
	engine.Close()
	answer(t, request)
}

// One goroutine drives requests that end at different times. Whatever happens to some, the others have the answer that
// they have alone.
func TestStepRequests(t *testing.T) {
	var requests []*cos.Request
	var alone []choice
	for i := range 6 {
		of := members{"temperature": 0, "max_tokens": 4 + i, "stream": true}
		sent, _ := answer(t, newRequest(t, cos.EndpointCompletion, of))
		alone = append(alone, streamed(t, sent, 1)[0])
		requests = append(requests, newRequest(t, cos.EndpointCompletion, of))
	}
	cancelled, closed := newRequest(t, cos.EndpointCompletion, nil), newRequest(t, cos.EndpointCompletion, nil)
	if err := errors.Join(cancelled.Cancel(), closed.Close()); err != nil {
		t.Fatal(err)
	}
	sent := make([]string, len(requests))
	open := slices.Clone(requests)
	for calls := 0; len(open) > 0; calls++ {
		if calls > 200 {
			t.Fatal("no end: ", sent)
		}
		all := append(slices.Clone(open), nil, open[0], closed, cancelled)
		news := cos.StepRequests(all)
		for i, request := range all[:len(open)] {
			part, err := request.Answer()
			if err = errors.Join(err, news[i].Err); err != nil {
				t.Fatal(i, err)
			}
			sent[slices.Index(requests, request)] += string(part)
			if news[i].State == cos.RequestDone {
				open = slices.DeleteFunc(open, func(r *cos.Request) bool { return r == request })
			}
		}
		others := news[len(all)-4:]
		if !errors.Is(others[0].Err, cos.ErrInvalidArgument) || !errors.Is(others[1].Err, cos.ErrBusy) ||
			!errors.Is(others[2].Err, cos.ErrClosed) || others[3].State != cos.RequestCancelled ||
			others[3].Err != nil {
			t.Fatal(others)
		}
	}
	for i, events := range sent {
		if got := streamed(t, events, 1)[0]; got != alone[i] {
			t.Errorf("request %d: %q, not %q", i, got, alone[i])
		}
	}
	if news := cos.StepRequests(nil); len(news) != 0 {
		t.Error(news)
	}
}

// Runs everything at once, for the race detector. Every call succeeds, or returns an error that it may return.
func TestRequestsAtOnce(t *testing.T) {
	for range 10 {
		request := long(t)
		var group sync.WaitGroup
		for worker := range 6 {
			group.Add(1)
			go func() {
				defer group.Done()
				for err := error(nil); err == nil || errors.Is(err, cos.ErrBusy); {
					switch worker {
					case 0, 1:
						_, err = request.Step(context.Background())
					case 2:
						_, err = request.Answer()
					case 3:
						_, err = request.Choice(0)
					case 4:
						err = cos.StepRequests([]*cos.Request{request})[0].Err
					case 5:
						time.Sleep(20 * time.Millisecond)
						if err := errors.Join(request.Cancel(), request.Close()); err != nil {
							t.Error(err)
						}
						err = cos.ErrClosed
					}
					if err != nil && !errors.Is(err, cos.ErrBusy) && !errors.Is(err, cos.ErrClosed) {
						t.Errorf("worker %d: %v", worker, err)
					}
				}
			}()
		}
		group.Wait()
	}
}
