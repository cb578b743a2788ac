// Tests of calls that run at the same time, and of contexts, cancellation and Close.

package cos_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cos "example.com/cos/bindings/go"
)

// longPrompt returns an engine, and a prompt that takes it long to process, because no other test begins like this one.
func longPrompt(t *testing.T) (*cos.Engine, []int32) {
	t.Helper()
	engine, err := demo()
	if err != nil {
		t.Fatal(err)
	}
	return engine, encode(t, engine, t.Name()+strings.Repeat("How many legs do three cats have? ", 200))[:1000]
}

// result is the result of a step.
type result struct {
	step cos.Step
	err  error
}

// startStep starts a step on another goroutine, and returns while the step runs.
func startStep(ctx context.Context, session *cos.Session) <-chan result {
	done := make(chan result, 1)
	go func() {
		r := result{err: cos.ErrBusy}
		for errors.Is(r.err, cos.ErrBusy) { // because of the Prompt below
			r.step, r.err = session.Step(ctx)
		}
		done <- r
	}()
	for !errors.Is(session.Prompt(nil), cos.ErrBusy) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // most likely, the first pass runs then
	return done
}

func TestContextStopsTheRunningPass(t *testing.T) {
	engine, prompt := longPrompt(t)
	options := cos.Options{MaxTokens: 4, StopTokens: []int32{}}
	expected, _ := decode(t, newSession(t, engine, options), prompt)

	session := newSession(t, engine, options)
	if err := errors.Join(session.SetScope("its passes run"), session.Prompt(prompt)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := startStep(ctx, session)
	cancel()
	if r := <-done; r.err != context.Canceled || r.step.Tokens != nil {
		t.Error(r)
	}
	// An ended context is found before anything runs, and ends the loop.
	steps := 0
	for step, err := range session.Steps(ctx) {
		steps++
		if err != context.Canceled || step.Tokens != nil {
			t.Error(step, err)
		}
	}
	if steps != 1 {
		t.Errorf("%d steps of a context that has ended", steps)
	}
	var tokens []int32
	for step, err := range session.Steps(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, step.Tokens...)
	}
	if !slices.Equal(tokens, expected) {
		t.Errorf("after a cancellation %v, not %v", tokens, expected)
	}
}

// A context may end at any moment of a step. It must not cancel a later step, and no token may be lost.
func TestContextEndsAtAnyTime(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{MaxTokens: 100, StopTokens: []int32{}}
	expected, _ := decode(t, newSession(t, engine, options), []int32{1, 2, 3})
	session := newSession(t, engine, options)
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	var tokens []int32
	for i := 0; ; i++ {
		ctx, cancel := context.WithCancel(context.Background())
		if i%2 == 0 {
			go func() {
				time.Sleep(time.Duration(i%40) * 20 * time.Microsecond)
				cancel()
			}()
		}
		step, err := session.Step(ctx)
		cancel()
		if err != nil && (i%2 == 1 || !errors.Is(err, context.Canceled)) || step.Finish == cos.FinishCancelled {
			t.Fatal(i, step, err)
		}
		tokens = append(tokens, step.Tokens...)
		if step.Finish != cos.FinishNone {
			break
		}
	}
	if !slices.Equal(tokens, expected) {
		t.Errorf("%v, not %v", tokens, expected)
	}
}

func TestCancel(t *testing.T) {
	session := newSession(t, newEngine(t, tiny), cos.Options{MaxTokens: 3})
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if err := session.Cancel(); err != nil {
		t.Fatal(err)
	}
	if step, err := session.Step(context.Background()); step.Finish != cos.FinishCancelled || err != nil {
		t.Error(step, err)
	}
	if step, err := session.Step(context.Background()); len(step.Tokens) == 0 || err != nil {
		t.Error(step, err)
	}
}

func TestStepsStopsWhenTheLoopDoes(t *testing.T) {
	session := newSession(t, newEngine(t, tiny), cos.Options{})
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	for range session.Steps(context.Background()) {
		break
	}
	if stats, err := session.Stats(); stats.Steps != 1 || err != nil {
		t.Error(stats, err)
	}
}

func TestUseAfterClose(t *testing.T) {
	engine := newEngine(t, small)
	session := newSession(t, engine, cos.Options{MaxTokens: 3})
	stream := newStream(t, engine, "stop")
	for range 2 {
		if err := engine.Close(); err != nil {
			t.Error(err)
		}
	}
	// Sessions and streams go on after their engine is closed.
	if tokens, _ := decode(t, session, []int32{1, 2, 3}); len(tokens) == 0 {
		t.Error("no tokens")
	}
	if _, err := stream.Push([]int32{40, 41}); err != nil {
		t.Error(err)
	}
	for range 2 {
		if session.Close() != nil || stream.Close() != nil {
			t.Error("a double Close is fine")
		}
	}
	for _, none := range []*cos.Engine{engine, {}} {
		_, describe := none.Describe()
		_, table := none.DescribeTable()
		_, encode := none.Encode("text", true)
		_, decode := none.Decode([]int32{1})
		_, session := none.NewSession(cos.Options{})
		_, stream := none.NewTextStream()
		_, stats := none.Stats()
		_, metrics := none.Metrics()
		_, prepare := none.Prepare(context.Background(), cos.PrepareOptions{})
		for i, err := range []error{describe, table, encode, decode, session, stream, stats, metrics, prepare} {
			if err != cos.ErrClosed {
				t.Errorf("engine %d: %v", i, err)
			}
		}
		if none.VocabSize() != 0 || none.ModelCount() != 0 || none.Close() != nil {
			t.Error("a closed engine has something")
		}
	}
	for _, none := range []*cos.Session{session, {}} {
		_, step := none.Step(context.Background())
		_, stats := none.Stats()
		_, describe := none.Describe()
		errs := []error{step, stats, describe, none.Prompt([]int32{1}), none.SetWeights(nil), none.Cancel()}
		for i, err := range errs {
			if err != cos.ErrClosed {
				t.Errorf("session %d: %v", i, err)
			}
		}
		for _, err := range none.Steps(context.Background()) {
			if err != cos.ErrClosed {
				t.Error(err)
			}
		}
	}
	for _, none := range []*cos.TextStream{stream, {}} {
		_, push := none.Push(nil)
		_, finish := none.Finish()
		for i, err := range []error{push, finish, none.Prompt(nil), none.SetStops("stop")} {
			if err != cos.ErrClosed {
				t.Errorf("stream %d: %v", i, err)
			}
		}
		if none.Stopped() || none.Close() != nil {
			t.Error("a closed stream has stopped")
		}
	}
}

func TestCloseStopsTheRunningStep(t *testing.T) {
	engine, prompt := longPrompt(t)
	session := newSession(t, engine, cos.Options{})
	if err := session.Prompt(prompt); err != nil {
		t.Fatal(err)
	}
	done := startStep(context.Background(), session)
	session.Close()
	if r := <-done; r.err != cos.ErrClosed {
		t.Error(r)
	}
}

func TestSecondGoroutine(t *testing.T) {
	engine, prompt := longPrompt(t)
	session := newSession(t, engine, cos.Options{})
	if err := session.Prompt(prompt); err != nil {
		t.Fatal(err)
	}
	done := startStep(context.Background(), session)
	if _, err := session.Step(context.Background()); !errors.Is(err, cos.ErrBusy) {
		t.Error(err)
	}
	if _, err := session.Describe(); !errors.Is(err, cos.ErrBusy) {
		t.Error(err)
	}
	if err := session.SetWeights([]float32{0.5, 0.5}); !errors.Is(err, cos.ErrBusy) {
		t.Error(err)
	}
	if _, err := session.Stats(); err != nil {
		t.Error(err)
	}
	if err := session.Cancel(); err != nil {
		t.Error(err)
	}
	if r := <-done; r.step.Finish != cos.FinishCancelled || r.err != nil {
		t.Error(r)
	}
}

// Runs everything at once, for the race detector. Every call succeeds, or returns an error that it may return.
func TestEverythingAtOnce(t *testing.T) {
	engine := newEngine(t, tiny)
	for range 20 {
		session, err := engine.NewSession(cos.Options{StopTokens: []int32{}})
		if err != nil {
			t.Fatal(err)
		}
		if err := session.Prompt([]int32{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Millisecond)
		var group sync.WaitGroup
		for worker := range 8 {
			group.Add(1)
			go func() {
				defer group.Done()
				for err := error(nil); err == nil || errors.Is(err, cos.ErrBusy); {
					switch worker {
					case 0, 1, 2:
						_, err = session.Step(ctx)
					case 3:
						err = session.Prompt([]int32{4})
					case 4:
						err = session.SetWeights([]float32{0.25, 0.75})
					case 5:
						_, err = session.Stats()
					case 6:
						err = session.Cancel()
					case 7:
						time.Sleep(5 * time.Millisecond)
						session.Close()
						err = cos.ErrClosed
					}
					if err != nil && !errors.Is(err, cos.ErrBusy) && !errors.Is(err, cos.ErrClosed) &&
						!errors.Is(err, cos.ErrContextFull) && ctx.Err() == nil {
						t.Errorf("worker %d: %v", worker, err)
					}
				}
			}()
		}
		group.Wait()
		cancel()
	}
}

// One goroutine drives sessions that end at different times. Whatever happens to some, the others have the text that
// they have alone.
func TestStepMany(t *testing.T) {
	engine := newEngine(t, tiny)
	prompt := []int32{1, 2, 3}
	var sessions []*cos.Session
	var alone [][]int32
	for tokens := range uint32(6) {
		options := cos.Options{Strategy: cos.Strategy(tokens % 4), MaxTokens: 4 + tokens, StopTokens: []int32{}}
		text, _ := decode(t, newSession(t, engine, options), prompt)
		session := newSession(t, engine, options)
		if err := session.Prompt(prompt); err != nil {
			t.Fatal(err)
		}
		sessions, alone = append(sessions, session), append(alone, text)
	}
	failing := newSession(t, engine, cos.Options{MaxTokens: 4, Combine: func([][]float32, []float32) error {
		return errors.ErrUnsupported
	}})
	closed, empty := newSession(t, engine, cos.Options{}), newSession(t, engine, cos.Options{})
	if err := errors.Join(failing.Prompt(prompt), sessions[5].Cancel(), closed.Close()); err != nil {
		t.Fatal(err)
	}
	texts := make([][]int32, len(sessions))
	finished, cancelled, failures := 0, 0, 0
	for calls := 0; finished < len(sessions); calls++ {
		if calls > 200 {
			t.Fatal("no end: ", texts)
		}
		finished = 0
		news := cos.StepMany(append(slices.Clone(sessions), nil, sessions[0], closed, empty, failing))
		for i, text := range texts {
			if news[i].Err != nil {
				t.Fatal(i, news[i].Err)
			}
			texts[i] = append(text, news[i].Tokens...)
			switch news[i].Finish {
			case cos.FinishCancelled:
				cancelled++
			case cos.FinishMaxTokens:
				finished++
			}
		}
		others := news[len(sessions):]
		if !errors.Is(others[0].Err, cos.ErrInvalidArgument) || !errors.Is(others[1].Err, cos.ErrInvalidArgument) ||
			!errors.Is(others[2].Err, cos.ErrClosed) || !errors.Is(others[3].Err, cos.ErrInvalidArgument) {
			t.Fatal(others)
		}
		if err := others[4].Err; err != nil {
			failures++
			if !errors.Is(err, cos.ErrCallback) || !errors.Is(err, errors.ErrUnsupported) {
				t.Fatal(err)
			}
		}
	}
	if cancelled != 1 || failures == 0 {
		t.Error(cancelled, failures)
	}
	for i, text := range texts {
		if !slices.Equal(text, alone[i]) {
			t.Errorf("session %d: %v, not %v", i, text, alone[i])
		}
	}
	if news := cos.StepMany(nil); len(news) != 0 {
		t.Error(news)
	}
}

// A session in a step of another goroutine is busy.
func TestStepManyWithABusySession(t *testing.T) {
	engine, prompt := longPrompt(t)
	busy, free := newSession(t, engine, cos.Options{}), newSession(t, engine, cos.Options{})
	if err := errors.Join(busy.Prompt(prompt), free.Prompt([]int32{1})); err != nil {
		t.Fatal(err)
	}
	results := startStep(context.Background(), busy)
	for {
		news := cos.StepMany([]*cos.Session{busy, free})
		if news[1].Err != nil {
			t.Fatal(news[1].Err)
		}
		if errors.Is(news[0].Err, cos.ErrBusy) {
			break
		}
		select {
		case <-results:
			t.Skip("the other goroutine was too late")
		default:
		}
	}
	if err := busy.Close(); err != nil {
		t.Fatal(err)
	}
	if result := <-results; result.err != nil && !errors.Is(result.err, cos.ErrClosed) {
		t.Error(result.err)
	}
}
