// Tests of the driver of requests.

package cos_test

import (
	"context"
	"errors"
	"reflect"
	"sync"
	"testing"
	"time"

	cos "example.com/cos/bindings/go"
)

// driven takes all pieces of a request until it has ended.
func driven(t *testing.T, of *cos.DrivenRequest) (string, cos.RequestStatus, error) {
	sent := ""
	for {
		status, part, err := of.Next(t.Context())
		sent += string(part)
		if err != nil || status.State != cos.RequestOpen {
			return sent, status, err
		}
	}
}

// What a driver decodes is what steps decode, streamed or not.
func TestDriver(t *testing.T) {
	var driver cos.Driver
	kinds := []members{{}, {"n": 2}, {"max_tokens": 5, "stop": []string{"."}}, {"temperature": 0}}
	var group sync.WaitGroup
	for i := range 12 {
		of := kinds[i%len(kinds)]
		of["return_token_ids"] = true
		wanted, end := answer(t, newRequest(t, cos.EndpointCompletion, of))
		request := newRequest(t, cos.EndpointCompletion, of)
		group.Add(1)
		go func() {
			defer group.Done()
			sent, status, err := driven(t, driver.Start(request))
			// The answers differ in their names and times.
			isSame := reflect.DeepEqual(parsePart(t, sent).Choices, parsePart(t, wanted).Choices)
			if err != nil || status != end || !isSame {
				t.Errorf("%v %v %v: %s, not %s", err, status, end, sent, wanted)
			}
		}()
	}
	group.Wait()
	request := newRequest(t, cos.EndpointChat, members{"stream": true, "max_tokens": 30})
	of := driver.Start(request)
	status, part, err := of.Next(t.Context())
	if err != nil || !status.Streams || len(part) == 0 {
		t.Fatal(status, string(part), err)
	}
	time.Sleep(100 * time.Millisecond) // the driver goes on meanwhile, and pieces are joined
	rest, status, err := driven(t, of)
	if err != nil || status.State != cos.RequestDone || rest[len(rest)-14:] != "data: [DONE]\n\n" {
		t.Error(status, rest, err)
	}
}

// Requests that end early hold nobody up.
func TestDriverEndsEarly(t *testing.T) {
	var driver cos.Driver
	long := members{"stream": true, "max_tokens": 400, "ignore_eos": true}
	var started []*cos.DrivenRequest
	requests := make([]*cos.Request, 4)
	for i := range requests {
		requests[i] = newRequest(t, cos.EndpointCompletion, long)
		started = append(started, driver.Start(requests[i]))
	}
	started[0].Cancel()
	if _, status, err := driven(t, started[0]); err != nil || status.State != cos.RequestCancelled {
		t.Error(status, err)
	}
	started[0].Cancel()
	requests[1].Close()
	if _, _, err := driven(t, started[1]); !errors.Is(err, cos.ErrClosed) {
		t.Error(err)
	}
	// The end of a context ends the waiting, also if there is text, but not the request.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	time.Sleep(10 * time.Millisecond)
	if _, part, err := started[2].Next(ctx); !errors.Is(err, context.Canceled) || len(part) > 0 {
		t.Error(string(part), err)
	}
	// A request cannot be driven twice.
	if _, _, err := driver.Start(requests[2]).Next(t.Context()); !errors.Is(err, cos.ErrBusy) {
		t.Error(err)
	}
	for _, each := range started[2:] {
		if _, status, err := driven(t, each); err != nil || status.State != cos.RequestDone {
			t.Error(status, err)
		}
	}
	for _, each := range requests { // the driver has closed them
		if _, err := each.Status(); !errors.Is(err, cos.ErrClosed) {
			t.Error(err)
		}
	}
	// A new request starts the goroutine anew.
	if _, status, err := driven(t, driver.Start(newRequest(t, cos.EndpointCompletion, nil))); err != nil ||
		status.State != cos.RequestDone {
		t.Error(status, err)
	}
}

// A client that reads slowly holds up its own request alone, and bounds its memory.
func TestDriverSlowReaders(t *testing.T) {
	var driver cos.Driver
	// 400 tokens with more than 300 kB.
	large := members{"stream": true, "max_tokens": 200, "ignore_eos": true, "n": 2, "logprobs": 20}
	start := func() *cos.DrivenRequest { return driver.Start(newRequest(t, cos.EndpointCompletion, large)) }
	slow, cancelled := start(), start()
	if sent, _, err := driven(t, start()); err != nil || len(sent) < 300_000 {
		t.Error(len(sent), err)
	}
	status, part, err := slow.Next(t.Context())
	if err != nil || status.State != cos.RequestOpen || len(part) < 256<<10 || len(part) > 300<<10 {
		t.Error(status, len(part), err)
	}
	rest, status, err := driven(t, slow)
	isWhole := len(part)+len(rest) > 300_000 && status.CompletionTokens == 400
	if err != nil || status.State != cos.RequestDone || !isWhole {
		t.Error(status, len(rest), err)
	}
	cancelled.Cancel()
	if _, status, err := driven(t, cancelled); err != nil || status.State != cos.RequestCancelled {
		t.Error(status, err)
	}
}
