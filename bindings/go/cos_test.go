package cos_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	cos "example.com/cos/bindings/go"
)

const tiny = `{"models": [{"path": "tests/exports/llama/builder-fp32", "name": "one"},
                           {"path": "tests/exports/llama/optimum-fp32", "name": "two"}],
               "combine": {"kind": "weighted", "weights": [0.5, 0.5]}}`

// small is the quickest engine for text.
const small = `{"models": [{"path": "models/demo/small"}], "combine": {"kind": "target", "model": 0}}`

// demo is an engine whose passes take a while, to be met in the midst. It is loaded once, and never closed.
var demo = sync.OnceValues(func() (*cos.Engine, error) { return cos.Open("models/demo/engine.json") })

func newStream(t *testing.T, engine *cos.Engine, stops ...string) *cos.TextStream {
	t.Helper()
	stream, err := engine.NewTextStream()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close() })
	if err := stream.SetStops(stops...); err != nil {
		t.Fatal(err)
	}
	return stream
}

func encode(t *testing.T, engine *cos.Engine, text string) []int32 {
	t.Helper()
	tokens, err := engine.Encode(text, false)
	if err != nil {
		t.Fatal(err)
	}
	return tokens
}

// push gives the text of tokens that come one by one.
func push(t *testing.T, stream *cos.TextStream, tokens []int32) string {
	t.Helper()
	var text strings.Builder
	for i := range tokens {
		piece, err := stream.Push(tokens[i : i+1])
		if err != nil || strings.ContainsRune(piece, '\uFFFD') {
			t.Fatalf("%q, %v", piece, err)
		}
		text.WriteString(piece)
	}
	return text.String()
}

func finish(t *testing.T, stream *cos.TextStream) string {
	t.Helper()
	text, err := stream.Finish()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// The module ships its own copy of the header, because a Go module has nothing outside its folder.
func TestHeaderIsACopy(t *testing.T) {
	copied, err := os.ReadFile("bindings/go/cos.h")
	if err != nil {
		t.Fatal(err)
	}
	header, err := os.ReadFile("include/cos.h")
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(copied, header) {
		t.Error("bindings/go/cos.h is not include/cos.h: cp include/cos.h bindings/go")
	}
}

func TestEngine(t *testing.T) {
	engine := newEngine(t, tiny)
	if engine.VocabSize() != 96 || engine.ModelCount() != 2 {
		t.Errorf("%d tokens, %d models", engine.VocabSize(), engine.ModelCount())
	}
	text, err := engine.Describe()
	var description struct {
		Version   string
		VocabSize int `json:"vocab_size"`
		Models    []struct{ Name string }
	}
	if err != nil || json.Unmarshal([]byte(text), &description) != nil {
		t.Fatal(text, err)
	}
	if description.Version != cos.Version() || description.VocabSize != 96 || description.Models[1].Name != "two" {
		t.Errorf("%+v", description)
	}
	if table, err := engine.DescribeTable(); err != nil || !strings.Contains(table, "two") {
		t.Error(table, err)
	}
}

func TestText(t *testing.T) {
	engine := newEngine(t, small)
	const text = "Ünïcode, 漢字 and 🙂: 3 + 4 = 7"
	tokens := encode(t, engine, text)
	if back, err := engine.Decode(tokens); back != text || err != nil {
		t.Errorf("%q, %v", back, err)
	}
	stream := newStream(t, engine)
	if back := push(t, stream, tokens) + finish(t, stream); back != text {
		t.Errorf("%q", back)
	}
}

func TestStops(t *testing.T) {
	engine := newEngine(t, small)
	stream := newStream(t, engine, "never", "ree fo", "\x00")
	for range 2 { // Finish starts anew, with the same stop strings.
		// The first one that is complete ends the text, across tokens.
		if text := push(t, stream, encode(t, engine, "one two three four never")); text != "one two th" || !stream.Stopped() {
			t.Errorf("%q, stopped: %v", text, stream.Stopped())
		}
		if text := push(t, stream, encode(t, engine, " five")) + finish(t, stream); text != "" || !stream.Stopped() {
			t.Errorf("behind the end %q, stopped: %v", text, stream.Stopped())
		}
	}
	// What may become a stop string is held back.
	if text := push(t, stream, encode(t, engine, "one two three")); text != "one two th" || stream.Stopped() {
		t.Errorf("%q, stopped: %v", text, stream.Stopped())
	}
	if text := finish(t, stream); text != "ree" {
		t.Errorf("%q was held back", text)
	}
	// Those before stay where others are refused.
	for _, wrong := range []string{"", "\xff"} {
		if err := stream.SetStops("three", wrong); !refusedWith(err, cos.ErrInvalidArgument) {
			t.Errorf("%q: %v", wrong, err)
		}
	}
	if text := push(t, stream, encode(t, engine, "nul\x00, three four")); text != "nul" || !stream.Stopped() {
		t.Errorf("%q, stopped: %v", text, stream.Stopped())
	}
	finish(t, stream)
	if err := stream.SetStops(); err != nil {
		t.Error(err)
	}
	if text := push(t, stream, encode(t, engine, "three four")); text != "three four" {
		t.Errorf("without stop strings %q", text)
	}
}

func TestTextGoesOnBehindAPrompt(t *testing.T) {
	engine := newEngine(t, `{"models": [{"path": "tests/fixtures/tiny"}], "combine": {"kind": "target", "model": 0}}`)
	stream := newStream(t, engine)
	if text := push(t, stream, []int32{1, 2}); text != " a b" {
		t.Errorf("behind a prompt that is not known: %q", text)
	}
	if err := stream.Prompt([]int32{3}); !refusedWith(err, cos.ErrInvalidArgument) {
		t.Errorf("a prompt in the midst of a text: %v", err)
	}
	finish(t, stream)
	for prompt, wanted := range map[string]string{"": "a b", "c": " a b"} {
		if err := stream.Prompt(encode(t, engine, prompt)); err != nil {
			t.Error(err)
		}
		if text := push(t, stream, []int32{1, 2}) + finish(t, stream); text != wanted {
			t.Errorf("behind %q: %q", prompt, text)
		}
	}
}

func TestTextOfExtremes(t *testing.T) {
	engine := newEngine(t, small)
	if tokens, err := engine.Encode("", false); len(tokens) != 0 || err != nil {
		t.Error(tokens, err)
	}
	if text, err := engine.Decode(nil); text != "" || err != nil {
		t.Error(text, err)
	}
	if _, err := engine.Encode("\xff\xfe", false); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	if _, err := engine.Decode([]int32{-1, math.MaxInt32}); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	if tokens, err := engine.Encode("a\x00b", false); err != nil || len(tokens) == 0 {
		t.Error(tokens, err)
	}
	long := strings.Repeat("What is 2 and 3? ", 20_000)
	if text, err := engine.Decode(encode(t, engine, long)); text != long || err != nil {
		t.Error(len(text), err)
	}
	for _, path := range []string{"", "a\x00b", "\xff", "nowhere.json"} {
		if _, err := cos.Open(path); err == nil {
			t.Errorf("%q was opened", path)
		}
		if _, err := cos.New(path); !refusedWith(err, cos.ErrConfig) && !refusedWith(err, cos.ErrInvalidArgument) {
			t.Errorf("%q: %v", path, err)
		}
	}
	stream := newStream(t, engine)
	if text, err := stream.Push(nil); text != "" || err != nil {
		t.Error(text, err)
	}
	if _, err := stream.Push([]int32{-1}); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	if text := finish(t, stream); text != "" {
		t.Error(text)
	}
}

func TestPromptsOfExtremes(t *testing.T) {
	session := newSession(t, newEngine(t, tiny), cos.Options{})
	for _, tokens := range [][]int32{nil, {}, {96}, {math.MinInt32}} {
		if err := session.Prompt(tokens); !errors.Is(err, cos.ErrInvalidArgument) {
			t.Errorf("%v: %v", tokens, err)
		}
	}
	if err := session.Prompt(make([]int32, 1<<24)); !errors.Is(err, cos.ErrContextFull) {
		t.Error(err)
	}
	if err := session.SetWeights(nil); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	if err := session.SetWeights(make([]float32, 1<<20)); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	if tokens, _ := decode(t, session, []int32{1, 2, 3}); len(tokens) == 0 {
		t.Error("the session does not go on")
	}
}

func TestStopTokens(t *testing.T) {
	engine := newEngine(t, tiny)
	free, _ := decode(t, newSession(t, engine, cos.Options{MaxTokens: 20, StopTokens: []int32{}}), []int32{1, 2, 3})
	if len(free) != 20 {
		t.Fatalf("%d tokens", len(free))
	}
	last := free[5]
	session := newSession(t, engine, cos.Options{MaxTokens: 20, StopTokens: []int32{last}})
	stopped, _ := decode(t, session, []int32{1, 2, 3})
	if want := free[:slices.Index(free, last)+1]; !slices.Equal(stopped, want) {
		t.Errorf("%v, not %v", stopped, want)
	}
	if step, err := session.Step(context.Background()); step.Finish != cos.FinishStop || len(step.Tokens) != 0 || err != nil {
		t.Error(step, err)
	}
}

func TestSetWeightsAndStats(t *testing.T) {
	engine := newEngine(t, strings.Replace(tiny, "llama/optimum-fp32", "qwen3/optimum-fp32", 1))
	session := newSession(t, engine, cos.Options{MaxTokens: 12, StopTokens: []int32{}})
	if err := session.SetWeights([]float32{0, 1}); err != nil {
		t.Fatal(err)
	}
	changed, _ := decode(t, session, []int32{1, 2, 3})
	direct, _ := decode(t, newSession(t, engine,
		cos.Options{MaxTokens: 12, StopTokens: []int32{}, Weights: []float32{0, 1}}), []int32{1, 2, 3})
	if !slices.Equal(changed, direct) {
		t.Errorf("%v, not %v", changed, direct)
	}
	stats, err := session.Stats()
	if err != nil || stats.Tokens != 12 || stats.Steps == 0 || stats.ModelTime <= 0 || stats.TotalTime < stats.ModelTime {
		t.Errorf("%+v, %v", stats, err)
	}
}

func TestPlan(t *testing.T) {
	engine, err := demo()
	if err != nil {
		t.Fatal(err)
	}
	for _, strategy := range []cos.Strategy{cos.StrategyAuto, cos.StrategyStandard} {
		session := newSession(t, engine, cos.Options{Strategy: strategy, MaxTokens: 64, StopTokens: []int32{}})
		decode(t, session, []int32{1, 2, 3})
		text, err := session.Describe()
		var description struct {
			Strategy     string
			Planned      bool
			MeasuredGain *float64 `json:"measured_gain"`
			Models       []struct{ Name string }
		}
		if err != nil || json.Unmarshal([]byte(text), &description) != nil {
			t.Fatal(text, err)
		}
		if description.Planned != (strategy == cos.StrategyAuto) || len(description.Models) != engine.ModelCount() ||
			!description.Planned && description.Strategy != "standard" || description.Strategy == "" {
			t.Error(text)
		}
		stats, err := session.Stats()
		if err != nil || stats.PlannedTime < 0 || stats.PlannedTime > stats.TotalTime {
			t.Errorf("%+v, %v", stats, err)
		}
		gain := description.MeasuredGain
		if stats.PlannedTime == 0 { // so far, for it takes a while until the plan is looked at
			if stats.ExpectedTime != 0 || stats.StandardTime != 0 || gain != nil {
				t.Errorf("%+v, %s", stats, text)
			}
		} else if !description.Planned || gain == nil ||
			math.Abs(*gain-float64(stats.StandardTime)/float64(stats.PlannedTime)) > 1e-6 {
			t.Errorf("%+v, %s", stats, text)
		}
	}
}

// The totals of an engine are the sums of its sessions, also of those that were closed.
func TestEngineStats(t *testing.T) {
	engine := newEngine(t, tiny)
	var sum cos.Stats
	for i, strategy := range []cos.Strategy{cos.StrategyStandard, cos.StrategySpeculative, cos.StrategyCoS} {
		session := newSession(t, engine, cos.Options{Strategy: strategy, MaxTokens: 12, StopTokens: []int32{}})
		decode(t, session, []int32{1, 2, 3})
		stats, err := session.Stats()
		if err != nil {
			t.Fatal(err)
		}
		sum = cos.Stats{
			Steps: sum.Steps + stats.Steps, Tokens: sum.Tokens + stats.Tokens, Proposed: sum.Proposed + stats.Proposed,
			Tested: sum.Tested + stats.Tested, Accepted: sum.Accepted + stats.Accepted,
			Forwards: sum.Forwards + stats.Forwards, Positions: sum.Positions + stats.Positions,
			ModelTime: sum.ModelTime + stats.ModelTime, TotalTime: sum.TotalTime + stats.TotalTime,
			NearTies: sum.NearTies + stats.NearTies, PlannedTime: sum.PlannedTime + stats.PlannedTime,
			ExpectedTime: sum.ExpectedTime + stats.ExpectedTime, StandardTime: sum.StandardTime + stats.StandardTime,
			RowsCopied: sum.RowsCopied + stats.RowsCopied,
		}
		if i == 0 {
			session.Close()
		}
		if total, err := engine.Stats(); total != sum || err != nil {
			t.Errorf("%+v, not %+v; %v", total, sum, err)
		}
	}
	if sum.Tokens != 36 || sum.Proposed < sum.Tested || sum.Tested < sum.Accepted || sum.Accepted == 0 {
		t.Errorf("%+v", sum)
	}
}

func TestCombine(t *testing.T) {
	engine := newEngine(t, tiny)
	prompt := []int32{1, 2, 3}
	options := cos.Options{MaxTokens: 12, StopTokens: []int32{}, Strategy: cos.StrategyStandard}
	options.Combine = func(rows [][]float32, scores []float32) error {
		for i := range scores {
			scores[i] = rows[0][i]
		}
		return nil
	}
	combined, _ := decode(t, newSession(t, engine, options), prompt)
	options.Combine = nil
	options.Weights = []float32{1, 0}
	if alone, _ := decode(t, newSession(t, engine, options), prompt); !slices.Equal(combined, alone) {
		t.Errorf("%v, not %v", combined, alone)
	}
	// A model of weight 0 is not asked.
	options.Combine = func(rows [][]float32, scores []float32) error {
		if len(rows) != 2 || len(rows[0]) != 96 || rows[1] != nil {
			return errors.New("wrong rows")
		}
		copy(scores, rows[0])
		return nil
	}
	if tokens, _ := decode(t, newSession(t, engine, options), prompt); !slices.Equal(tokens, combined) {
		t.Error(tokens)
	}
}

func TestCombineFails(t *testing.T) {
	engine := newEngine(t, tiny)
	sorry := errors.New("sorry")
	for name, fail := range map[string]func() error{
		"error":         func() error { return sorry },
		"panic":         func() error { panic(sorry) },
		"runtime panic": func() error { var none []int; return errors.New(string(rune(none[3]))) },
	} {
		t.Run(name, func(t *testing.T) {
			failing := true
			session := newSession(t, engine, cos.Options{MaxTokens: 3, Combine: func(rows [][]float32, scores []float32) error {
				if failing {
					return fail()
				}
				copy(scores, rows[0])
				return nil
			}})
			if err := session.Prompt([]int32{1, 2, 3}); err != nil {
				t.Fatal(err)
			}
			_, err := session.Step(context.Background())
			var panicked *cos.PanicError
			if !errors.Is(err, cos.ErrCallback) || errors.As(err, &panicked) != (name != "error") {
				t.Fatalf("%v", err)
			}
			if name != "runtime panic" && !errors.Is(err, sorry) {
				t.Errorf("%v does not wrap its cause", err)
			}
			failing = false
			if step, err := session.Step(context.Background()); err != nil || len(step.Tokens) == 0 {
				t.Error("the session does not go on", step, err)
			}
		})
	}
}

// Inside a combine function its session may be cancelled, asked for statistics and even closed; the rest is refused.
func TestCombineUsesItsSession(t *testing.T) {
	engine := newEngine(t, tiny)
	var session *cos.Session
	var found []error
	session = newSession(t, engine, cos.Options{Combine: func(rows [][]float32, scores []float32) error {
		copy(scores, rows[0])
		_, busy := session.Step(context.Background())
		_, stats := session.Stats()
		found = append(found, busy, session.Prompt([]int32{1}), stats, session.Cancel(), session.Close(), session.Cancel())
		return nil
	}})
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	_, err := session.Step(context.Background())
	for i, expected := range []error{cos.ErrBusy, cos.ErrBusy, nil, nil, nil, cos.ErrClosed} {
		if !errors.Is(found[i], expected) {
			t.Errorf("%d: %v, not %v", i, found[i], expected)
		}
	}
	if err != nil && !errors.Is(err, cos.ErrClosed) {
		t.Error(err)
	}
	if _, err := session.Step(context.Background()); !errors.Is(err, cos.ErrClosed) {
		t.Error(err)
	}
}

// longPrompt is an engine and a prompt that takes it a while.
func longPrompt(t *testing.T) (*cos.Engine, []int32) {
	t.Helper()
	engine, err := demo()
	if err != nil {
		t.Fatal(err)
	}
	return engine, encode(t, engine, strings.Repeat("How many legs do three cats have? ", 200))[:1000]
}

// result is what a step gave.
type result struct {
	step cos.Step
	err  error
}

// startStep begins a step on another goroutine, and returns while it runs.
func startStep(ctx context.Context, session *cos.Session) <-chan result {
	done := make(chan result, 1)
	go func() {
		r := result{err: cos.ErrBusy}
		for errors.Is(r.err, cos.ErrBusy) { // with the look below
			r.step, r.err = session.Step(ctx)
		}
		done <- r
	}()
	for !errors.Is(session.Prompt(nil), cos.ErrBusy) {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(20 * time.Millisecond) // most likely into the first pass
	return done
}

func TestContextStopsTheRunningPass(t *testing.T) {
	engine, prompt := longPrompt(t)
	options := cos.Options{MaxTokens: 4, StopTokens: []int32{}}
	expected, _ := decode(t, newSession(t, engine, options), prompt)

	session := newSession(t, engine, options)
	if err := session.Prompt(prompt); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := startStep(ctx, session)
	cancel()
	if r := <-done; r.err != context.Canceled || r.step.Tokens != nil {
		t.Error(r)
	}
	// A context that has ended is seen before anything runs, and ends the loop.
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

// A context may end at any moment of a step. No later step must be taken for it, and no token lost.
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
	// Sessions and streams go on without their engine.
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
		for i, err := range []error{describe, table, encode, decode, session, stream, stats} {
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
		for i, err := range []error{step, stats, describe, none.Prompt([]int32{1}), none.SetWeights(nil), none.Cancel()} {
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

// Everything at once, for the race detector: every call ends well or with an error that it may have.
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
