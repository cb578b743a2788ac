// Tests of weights functions, and of scores of given tokens.

package cos_test

import (
	"context"
	"errors"
	"math"
	"slices"
	"testing"

	cos "example.com/cos/bindings/go"
)

func TestWeigh(t *testing.T) {
	engine := newEngine(t, tiny)
	for only := range 2 {
		weights := []float32{0, 0}
		weights[only] = 1
		options := cos.Options{MaxTokens: 12, StopTokens: []int32{}, Weights: weights}
		expected, _ := decode(t, newSession(t, engine, options), []int32{1, 2, 3})
		options.Weights = nil
		options.Weigh = func(tokens []int32, models []cos.ModelSummary, given []float32) error {
			if len(tokens) < 3 || tokens[0] != 1 || len(models) != 2 || len(given) != 2 || given[0]+given[1] != 1 ||
				!(models[1].Confidence > 0 && models[1].Confidence <= 1 && models[1].Entropy >= 0) ||
				models[1].Best < 0 {
				return errors.New("wrong arguments")
			}
			copy(given, weights)
			return nil
		}
		session := newSession(t, engine, options)
		if tokens, _ := decode(t, session, []int32{1, 2, 3}); !slices.Equal(tokens, expected) {
			t.Errorf("%v instead of %v", tokens, expected)
		}
		if _, err := session.Fork(1); !refusedWith(err, cos.ErrUnsupported) {
			t.Error(err)
		}
		if _, err := session.Save(); !refusedWith(err, cos.ErrUnsupported) {
			t.Error(err)
		}
	}
}

func TestWeighFails(t *testing.T) {
	engine := newEngine(t, tiny)
	sorry := errors.New("sorry")
	failing := true
	session := newSession(t, engine, cos.Options{Weigh: func([]int32, []cos.ModelSummary, []float32) error {
		if failing {
			return sorry
		}
		return nil
	}})
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := session.Step(t.Context()); !errors.Is(err, cos.ErrCallback) || !errors.Is(err, sorry) {
		t.Error(err)
	}
	failing = false
	if step, err := session.Step(t.Context()); err != nil || len(step.Tokens) == 0 {
		t.Error("the session does not go on", step, err)
	}
	both := cos.Options{
		Weigh:   func([]int32, []cos.ModelSummary, []float32) error { return nil },
		Combine: func([][]float32, []float32) error { return nil },
	}
	if _, err := engine.NewSession(both); !refusedWith(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
}

// The log-probabilities of a text are those of the steps that wrote it.
func TestScore(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{MaxTokens: 8, StopTokens: []int32{}, LogProbabilities: true, TopLogProbabilities: 2,
		ModelLogProbabilities: true}
	session := newSession(t, engine, options)
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	var tokens []int32
	var logarithms []float32
	for step, err := range session.Steps(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		tokens, logarithms = append(tokens, step.Tokens...), append(logarithms, step.LogProbabilities...)
	}
	judge := newSession(t, engine, options)
	prompt, err := judge.Score(t.Context(), []int32{1, 2, 3})
	if err != nil || !slices.Equal(prompt.Tokens, []int32{1, 2, 3}) || len(prompt.Alternatives[0]) != 0 {
		t.Fatal(prompt, err)
	}
	for i, value := range prompt.LogProbabilities {
		if isNaN := math.IsNaN(float64(value)); isNaN != (i == 0) || math.IsInf(float64(value), 0) {
			t.Error(prompt.LogProbabilities)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := judge.Score(ended, tokens); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := judge.Cancel(); err != nil {
		t.Error(err)
	}
	if step, err := judge.Score(t.Context(), tokens); err != nil || step.Finish != cos.FinishCancelled {
		t.Error(step, err)
	}
	answer, err := judge.Score(t.Context(), tokens) // nothing was appended before
	if err != nil || !slices.Equal(answer.Tokens, tokens) || len(answer.ModelLogProbabilities) != len(tokens) {
		t.Fatal(answer, err)
	}
	for i, value := range answer.LogProbabilities {
		if math.Abs(float64(value-logarithms[i])) > 1e-4 {
			t.Errorf("%v instead of %v", answer.LogProbabilities, logarithms)
		}
	}
	if _, err := judge.Score(t.Context(), nil); !refusedWith(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	session = newSession(t, engine, cos.Options{})
	if _, err := session.Score(t.Context(), tokens); !refusedWith(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
}
