// Tests of weights, statistics and combine functions of sessions.

package cos_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	cos "example.com/cos/bindings/go"
)

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
	if err != nil || stats.Tokens != 12 || stats.Steps == 0 || stats.ModelTime <= 0 ||
		stats.TotalTime < stats.ModelTime {
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
		if stats.PlannedTime == 0 { // the plan is not evaluated at once
			if stats.ExpectedTime != 0 || stats.StandardTime != 0 || gain != nil {
				t.Errorf("%+v, %s", stats, text)
			}
		} else if !description.Planned || gain == nil ||
			math.Abs(*gain-float64(stats.StandardTime)/float64(stats.PlannedTime)) > 1e-6 {
			t.Errorf("%+v, %s", stats, text)
		}
	}
}

func TestRoutes(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{Strategy: cos.StrategyStandard, Temperature: 1, Targets: cos.TargetsRouted}
	for asked, says := range map[cos.Routes]string{
		cos.RoutesAuto: "own", cos.RoutesOwn: "own", cos.RoutesShared: "shared",
	} {
		options.Routes = asked
		session := newSession(t, engine, options)
		if err := session.Prompt([]int32{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		if _, err := session.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
		text, err := session.Describe()
		var description struct{ Routes string }
		if err != nil || json.Unmarshal([]byte(text), &description) != nil {
			t.Fatal(text, err)
		}
		if description.Routes != says {
			t.Errorf("%v: %s", asked, text)
		}
		session.Close()
	}
	options.Routes = 3
	_, err := engine.NewSession(options)
	if !errors.Is(err, cos.ErrInvalidArgument) || !strings.Contains(err.Error(), "routes is 3") {
		t.Error(err)
	}
}

func TestPriorities(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{MaxTokens: 8, StopTokens: []int32{}, Priority: cos.PriorityBatch}
	if tokens, _ := decode(t, newSession(t, engine, options), []int32{1, 2, 3}); len(tokens) != 8 {
		t.Errorf("%d tokens", len(tokens))
	}
	options.Priority = 2
	_, err := engine.NewSession(options)
	if !errors.Is(err, cos.ErrInvalidArgument) || !strings.Contains(err.Error(), "priority is 2") {
		t.Error(err)
	}
}

// samples returns the metrics of an engine by name and labels.
func samples(t *testing.T, engine *cos.Engine) map[string]float64 {
	text, err := engine.Metrics()
	if err != nil {
		t.Error(err)
	}
	values := map[string]float64{}
	for line := range strings.Lines(text) {
		if space := strings.LastIndexByte(line, ' '); !strings.HasPrefix(line, "#") {
			if values[line[:space]], err = strconv.ParseFloat(strings.TrimSpace(line[space:]), 64); err != nil {
				t.Error(line, err)
			}
		}
	}
	return values
}

// Goroutines decode, and others read the metrics meanwhile. Counters never shrink, and at the end they have all tokens.
func TestMetrics(t *testing.T) {
	engine := newEngine(t, tiny)
	var decoding, reading sync.WaitGroup
	done := make(chan struct{})
	for i := range 2 {
		options := cos.Options{Strategy: cos.StrategyCoS, Temperature: 1, Seed: uint64(i), MaxTokens: 100,
			StopTokens: []int32{}}
		session := newSession(t, engine, options)
		if err := session.Prompt([]int32{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		decoding.Add(1)
		go func() {
			defer decoding.Done()
			for _, err := range session.Steps(t.Context()) {
				if err != nil {
					t.Error(err)
				}
			}
		}()
		reading.Add(1)
		go func() {
			defer reading.Done()
			for before := samples(t, engine); ; {
				now := samples(t, engine)
				for _, name := range []string{"cos_tokens_total", "cos_wasted_total"} {
					if now[name] < before[name] {
						t.Errorf("%s: %v, then %v", name, before[name], now[name])
					}
				}
				before = now
				select {
				case <-done:
					return
				default:
				}
			}
		}()
	}
	decoding.Wait()
	close(done)
	reading.Wait()
	last := samples(t, engine)
	if last["cos_tokens_total"] != 200 || last["cos_first_token_seconds_count"] != 2 ||
		last["cos_wasted_total"] != last["cos_proposed_total"]-last["cos_accepted_total"] {
		t.Error(last)
	}
}

// Metrics that are longer than the first buffer are whole.
func TestLongMetrics(t *testing.T) {
	name := strings.Repeat("x", 2000)
	engine := newEngine(t, strings.Replace(tiny, "two", name, 1))
	last := `cos_pass_tokens_count{model="` + name + `"}`
	if text, _ := engine.Metrics(); len(text) < 1<<15 || !strings.Contains(text, last) {
		t.Errorf("%d bytes", len(text))
	}
}

// The statistics of an engine are the sums over its sessions, closed ones included.
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
	// A model with the weight 0 does not run.
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
			combine := func(rows [][]float32, scores []float32) error {
				if failing {
					return fail()
				}
				copy(scores, rows[0])
				return nil
			}
			session := newSession(t, engine, cos.Options{MaxTokens: 3, Combine: combine})
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

// A combine function may call Cancel, Stats and Close on its session. Other calls are refused.
func TestCombineUsesItsSession(t *testing.T) {
	engine := newEngine(t, tiny)
	var session *cos.Session
	var found []error
	session = newSession(t, engine, cos.Options{Combine: func(rows [][]float32, scores []float32) error {
		copy(scores, rows[0])
		_, busy := session.Step(context.Background())
		_, stats := session.Stats()
		found = append(found, busy, session.Prompt([]int32{1}), stats)
		found = append(found, session.Cancel(), session.Close(), session.Cancel())
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

// A fork and a rewound session go on as the session would: greedy ones with the same tokens.
func TestForkAndRewind(t *testing.T) {
	engine, prompt := newEngine(t, tiny), []int32{1, 2, 3}
	options := cos.Options{MaxTokens: 8, StopTokens: []int32{}}
	whole, _ := decode(t, newSession(t, engine, options), prompt)
	session := newSession(t, engine, options)
	if err := errors.Join(session.SetScope("tenant"), session.Prompt(prompt)); err != nil {
		t.Fatal(err)
	}
	if err := newSession(t, engine, options).SetScope("a\x00b"); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	if err := session.SetScope("late"); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	fork, err := session.Fork(7)
	if err != nil {
		t.Fatal(err)
	}
	defer fork.Close()
	rest := func(session *cos.Session) (tokens []int32) {
		for step, err := range session.Steps(context.Background()) {
			if err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, step.Tokens...)
		}
		return tokens
	}
	if of, text := rest(fork), rest(session); !slices.Equal(of, whole) || !slices.Equal(text, whole) {
		t.Errorf("%v and %v, not %v", of, text, whole)
	}
	if err := session.Rewind(len(prompt) + 2); err != nil {
		t.Fatal(err)
	}
	if text := rest(session); !slices.Equal(text, whole[2:]) {
		t.Errorf("%v, not %v", text, whole[2:])
	}
	if err := session.Rewind(1000); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	combine := func([][]float32, []float32) error { return nil }
	if _, err := newSession(t, engine, cos.Options{Combine: combine}).Fork(1); !errors.Is(err, cos.ErrUnsupported) {
		t.Error(err)
	}
}
