// Tests of what controls tokens: bias, penalties, bans and constraints; alternatives; options that change; and saved
// sessions.

package cos_test

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	cos "example.com/cos/bindings/go"
)

// written returns the text that a new session of an engine with a tokenizer writes, and how it ends.
func written(t *testing.T, engine *cos.Engine, options cos.Options) (string, cos.Finish) {
	t.Helper()
	session := newSession(t, engine, options)
	tokens, _ := decode(t, session, encode(t, engine, "Question: what is it? Answer: "))
	step, err := session.Step(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	text, err := engine.Decode(tokens)
	if err != nil {
		t.Fatal(err)
	}
	return text, step.Finish
}

func TestConstraints(t *testing.T) {
	engine := newEngine(t, small)
	// Without white space, of which the model likes to write a lot.
	schema := `{"x-guidance": {"whitespace_flexible": false}, "type": "object", "properties": {
		"name": {"type": "string", "maxLength": 6},
		"age": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["name", "age"],
		"additionalProperties": false}`
	choices := []string{"ja", "\"nein\" \\ <&>\n", "vielleicht 漢"}
	for seed := range uint64(4) {
		options := cos.Options{Temperature: 1, Seed: seed, MaxTokens: 200, Constraint: cos.JSONSchema(schema)}
		text, finish := written(t, engine, options)
		var value struct {
			Name *string
			Age  *int
		}
		decoder := json.NewDecoder(strings.NewReader(text))
		decoder.DisallowUnknownFields()
		if err := decoder.Decode(&value); err != nil || value.Name == nil || value.Age == nil || *value.Age > 99 {
			t.Errorf("%q, %v", text, err)
		}
		if finish != cos.FinishComplete && finish != cos.FinishStop {
			t.Errorf("%q: %v", text, finish)
		}
		options.Constraint = cos.Choices(choices...)
		if text, _ := written(t, engine, options); !slices.Contains(choices, text) {
			t.Errorf("%q", text)
		}
		options.Constraint = cos.Regex("[ab]{3}-[0-9]")
		if text, _ := written(t, engine, options); len(text) != 5 || strings.Trim(text[:3], "ab") != "" {
			t.Errorf("%q", text)
		}
		options.Constraint = cos.Lark("start: \"x\" /[yz]/ \"!\"")
		if text, finish := written(t, engine, options); text != "xy!" && text != "xz!" || finish != cos.FinishComplete {
			t.Errorf("%q, %v", text, finish)
		}
	}
}

// counting allows token 10 + i at place i of the text, and then nothing.
func counting(length int) cos.ConstrainFunc {
	return func(text cos.Text, mask []uint32) error {
		clear(mask)
		if place := len(text.Tokens); place < length {
			mask[(10+place)/32] |= 1 << ((10 + place) % 32)
		}
		return nil
	}
}

func TestConstrain(t *testing.T) {
	engine := newEngine(t, tiny)
	expected := []int32{10, 11, 12, 13, 14}
	for _, strategy := range []cos.Strategy{cos.StrategyAuto, cos.StrategyStandard, cos.StrategyCoS} {
		var last []int32
		var number uint64
		count := counting(len(expected))
		options := cos.Options{Strategy: strategy, Constrain: func(text cos.Text, mask []uint32) error {
			if text.Kept > min(len(text.Tokens), len(last)) ||
				!slices.Equal(text.Tokens[:text.Kept], last[:text.Kept]) ||
				len(mask) != 3 || mask[2] != math.MaxUint32 || number != 0 && number != text.Number {
				return errors.New("a wrong text")
			}
			last, number = slices.Clone(text.Tokens), text.Number
			return count(text, mask)
		}}
		session := newSession(t, engine, options)
		if tokens, _ := decode(t, session, []int32{1, 2, 3}); !slices.Equal(tokens, expected) {
			t.Errorf("%v: %v", strategy, tokens)
		}
		if step, err := session.Step(t.Context()); step.Finish != cos.FinishComplete || err != nil {
			t.Error(step, err)
		}
		if cos.FinishComplete.String() != "complete" {
			t.Error(cos.FinishComplete)
		}
	}
}

func TestConstrainFails(t *testing.T) {
	engine := newEngine(t, tiny)
	sorry := errors.New("sorry")
	for name, fail := range map[string]func() error{
		"error": func() error { return sorry },
		"panic": func() error { panic(sorry) },
	} {
		failing := true
		session := newSession(t, engine, cos.Options{Constrain: func(text cos.Text, mask []uint32) error {
			if failing {
				return fail()
			}
			return counting(2)(text, mask)
		}})
		if err := session.Prompt([]int32{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			_, err := session.Step(t.Context())
			var panicked *cos.PanicError
			if !errors.Is(err, cos.ErrCallback) || !errors.Is(err, sorry) ||
				errors.As(err, &panicked) != (name == "panic") {
				t.Errorf("%s: %v", name, err)
			}
		}
		news := cos.StepMany([]*cos.Session{session})
		if err := news[0].Err; !errors.Is(err, cos.ErrCallback) || !errors.Is(err, sorry) {
			t.Errorf("%s: %v", name, err)
		}
		failing = false
		if step, err := session.Step(t.Context()); err != nil || len(step.Tokens) == 0 || step.Tokens[0] != 10 {
			t.Error("the session does not go on", step, err)
		}
	}
}

// The error of a function is that of its session, also if its parent decodes in the same call.
func TestForkHasItsOwnConstrain(t *testing.T) {
	engine := newEngine(t, tiny)
	numbers := map[uint64]bool{}
	second := uint64(0)
	session := newSession(t, engine, cos.Options{Strategy: cos.StrategyStandard, Constrain: func(text cos.Text,
		mask []uint32) error {
		numbers[text.Number] = true
		if len(numbers) == 2 && second == 0 {
			second = text.Number
		}
		if text.Number == second {
			return errors.New("the second text fails")
		}
		return counting(3)(text, mask)
	}})
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	fork, err := session.Fork(5)
	if err != nil {
		t.Fatal(err)
	}
	defer fork.Close()
	var tokens []int32
	for range 20 {
		news := cos.StepMany([]*cos.Session{session, fork})
		if news[0].Err != nil {
			t.Fatal(news[0].Err)
		}
		tokens = append(tokens, news[0].Tokens...)
		if err := news[1].Err; err == nil || !strings.Contains(err.Error(), "the second text fails") {
			t.Error(err)
		}
	}
	if !slices.Equal(tokens, []int32{10, 11, 12}) || len(numbers) != 2 {
		t.Error(tokens, numbers)
	}
}

func TestBiasPenaltiesAndBans(t *testing.T) {
	engine := newEngine(t, tiny)
	prompt := []int32{1, 2, 3}
	plain := cos.Options{MaxTokens: 24, StopTokens: []int32{}, Strategy: cos.StrategyCoS}
	text := func(change func(*cos.Options)) []int32 {
		options := plain
		change(&options)
		tokens, _ := decode(t, newSession(t, engine, options), prompt)
		return tokens
	}
	free := text(func(*cos.Options) {})
	infinity := float32(math.Inf(1))
	forced := text(func(o *cos.Options) { o.LogitBias = map[int32]float32{7: 1000} })
	if !slices.Equal(forced, slices.Repeat([]int32{7}, 24)) {
		t.Error("a huge bias forces a token", forced)
	}
	if banned := text(func(o *cos.Options) {
		o.LogitBias = map[int32]float32{free[0]: -infinity, 7: 1000}
		o.BannedTokens = [][]int32{{7, 7}}
	}); slices.Contains(banned, free[0]) || banned[0] != 7 || banned[1] == 7 || banned[2] != 7 {
		t.Error("bans hold", banned)
	}
	// Each token comes once at most.
	for name, change := range map[string]func(*cos.Options){
		"presence":  func(o *cos.Options) { o.PresencePenalty = 1000 },
		"frequency": func(o *cos.Options) { o.FrequencyPenalty = 1000 },
		"ngram":     func(o *cos.Options) { o.NoRepeatNgram = 1 },
	} {
		tokens := text(change)
		slices.Sort(tokens)
		if len(slices.Compact(tokens)) != 24 {
			t.Error(name, tokens)
		}
	}
	if same := text(func(o *cos.Options) { o.RepetitionPenalty = 1 }); !slices.Equal(same, free) {
		t.Error("a repetition penalty of 1 is off", same)
	}
	if punished := text(func(o *cos.Options) {
		o.LogitBias, o.RepetitionPenalty = map[int32]float32{7: 1000}, 1e6
	}); punished[0] != 7 || slices.Contains(punished[1:], 7) {
		t.Error("a large repetition penalty", punished)
	}
	stopped := func(least uint32) int {
		return len(text(func(o *cos.Options) {
			o.StopTokens, o.MinTokens, o.LogitBias = []int32{7}, least, map[int32]float32{7: 1000}
		}))
	}
	if stopped(0) != 1 || stopped(5) != 6 {
		t.Error("min_tokens", stopped(0), stopped(5))
	}
}

func TestOrigins(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{Strategy: cos.StrategyCoS, Temperature: 1, Seed: 3, MaxTokens: 40, StopTokens: []int32{}}
	session := newSession(t, engine, options)
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	counts := map[cos.OriginKind]uint64{}
	for step, err := range session.Steps(t.Context()) {
		if err != nil || len(step.Origins) != len(step.Tokens) {
			t.Fatalf("%+v %v", step, err)
		}
		for _, origin := range step.Origins {
			counts[origin.Kind]++
			if origin.Kind != cos.OriginDrawn && origin.Model != 0 && origin.Model != 1 {
				t.Errorf("%v", origin)
			}
		}
	}
	stats, err := session.Stats()
	accepted, replaced := counts[cos.OriginAccepted], counts[cos.OriginReplaced]
	if err != nil || accepted == 0 || accepted != stats.Accepted || accepted+replaced != stats.Tested {
		t.Errorf("%v %+v %v", counts, stats, err)
	}
	constrained := newSession(t, engine, cos.Options{Constrain: counting(4)})
	if err := constrained.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	forced := cos.Origin{Kind: cos.OriginForced, Model: -1}
	if step, err := constrained.Step(t.Context()); err != nil || step.Origins[0] != forced ||
		forced.Kind.String() != "forced" {
		t.Errorf("%+v %v", step, err)
	}
}

func TestAlternatives(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{MaxTokens: 8, StopTokens: []int32{}, LogProbabilities: true, TopLogProbabilities: 3,
		ModelLogProbabilities: true, LogitBias: map[int32]float32{7: 12}}
	for _, before := range []bool{false, true} {
		options.LogProbabilitiesBefore = before
		session := newSession(t, engine, options)
		if err := session.Prompt([]int32{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		for step, err := range session.Steps(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if len(step.Alternatives) != len(step.Tokens) || len(step.ModelLogProbabilities) != len(step.Tokens) {
				t.Fatalf("%+v", step)
			}
			for i, row := range step.Alternatives {
				if len(row) != 3 || len(step.ModelLogProbabilities[i]) != 2 ||
					row[0].LogProbability < row[1].LogProbability {
					t.Fatalf("%+v", step)
				}
				// Before the bias, token 7 is not the best one.
				chosen := cos.Alternative{Token: step.Tokens[i], LogProbability: step.LogProbabilities[i]}
				if (row[0] == chosen) == before {
					t.Errorf("%+v", step)
				}
			}
		}
	}
	// Where fewer tokens are possible, the rows are shorter.
	options.Constrain, options.LogProbabilitiesBefore, options.LogitBias = counting(4), false, nil
	session := newSession(t, engine, options)
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if step, err := session.Step(t.Context()); err != nil || len(step.Alternatives[0]) != 1 ||
		step.Alternatives[0][0].Token != 10 {
		t.Errorf("%+v %v", step, err)
	}
	plain := newSession(t, engine, cos.Options{})
	if err := plain.Prompt([]int32{1}); err != nil {
		t.Fatal(err)
	}
	step, err := plain.Step(t.Context())
	if err != nil || step.Alternatives != nil || step.ModelLogProbabilities != nil {
		t.Errorf("%+v %v", step, err)
	}
}

func TestSetOptions(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{MaxTokens: 2, StopTokens: []int32{}, Seed: 9}
	session := newSession(t, engine, options)
	if tokens, _ := decode(t, session, []int32{1, 2, 3}); len(tokens) != 2 {
		t.Fatal(tokens)
	}
	rest := func() (tokens []int32) {
		for step, err := range session.Steps(context.Background()) {
			if err != nil {
				t.Fatal(err)
			}
			tokens = append(tokens, step.Tokens...)
		}
		return tokens
	}
	options.MaxTokens, options.LogitBias = 4, map[int32]float32{7: 1000}
	if err := session.SetOptions(options); err != nil {
		t.Fatal(err)
	}
	if tokens := rest(); !slices.Equal(tokens, []int32{7, 7}) {
		t.Error("a text that has ended goes on", tokens)
	}
	options.MaxTokens, options.LogitBias = 0, nil
	options.Constrain = func(text cos.Text, mask []uint32) error {
		clear(mask)
		if len(text.Tokens) < 6 {
			mask[0] = 1 << 5
		}
		return nil
	}
	if err := session.SetOptions(options); err != nil {
		t.Fatal(err)
	}
	// A refused call leaves the function.
	wrong := options
	wrong.Constrain, wrong.Seed = func(cos.Text, []uint32) error { return errors.New("not in use") }, 10
	err := session.SetOptions(wrong)
	if !refusedWith(err, cos.ErrInvalidArgument) || !strings.Contains(err.Error(), "seed") {
		t.Error(err)
	}
	if tokens := rest(); !slices.Equal(tokens, []int32{5, 5}) {
		t.Error("a function that is set later", tokens)
	}
	session.Close()
	if err := session.SetOptions(options); !errors.Is(err, cos.ErrClosed) {
		t.Error(err)
	}
}

func TestSaveAndRestore(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{Strategy: cos.StrategyStandard, Temperature: 1, Seed: 3, MaxTokens: 16,
		StopTokens: []int32{}, LogProbabilities: true, ModelLogProbabilities: true, FrequencyPenalty: 0.5}
	whole, _ := decode(t, newSession(t, engine, options), []int32{1, 2, 3})
	session := newSession(t, engine, options)
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if _, err := session.Step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	saved, err := session.Save()
	if err != nil {
		t.Fatal(err)
	}
	restored, err := engine.Restore(saved)
	if err != nil {
		t.Fatal(err)
	}
	defer restored.Close()
	for _, session := range []*cos.Session{session, restored} {
		var tokens []int32
		for step, err := range session.Steps(t.Context()) {
			if err != nil || len(step.ModelLogProbabilities) != len(step.Tokens) {
				t.Fatal(step, err)
			}
			tokens = append(tokens, step.Tokens...)
		}
		if !slices.Equal(tokens, whole[5:]) {
			t.Errorf("%v, not %v", tokens, whole[5:])
		}
	}
	saved[len(saved)/2] ^= 1
	for _, wrong := range [][]byte{saved, saved[:20], nil} {
		if _, err := engine.Restore(wrong); !refusedWith(err, cos.ErrInvalidArgument) {
			t.Error(err)
		}
	}
	options.Constrain = counting(3)
	if _, err := newSession(t, engine, options).Save(); !refusedWith(err, cos.ErrUnsupported) {
		t.Error(err)
	}
	engine.Close()
	if _, err := engine.Restore(nil); !errors.Is(err, cos.ErrClosed) {
		t.Error(err)
	}
}

func TestWrongOptionsAreNamed(t *testing.T) {
	engine := newEngine(t, small)
	for says, options := range map[string]cos.Options{
		"min_tokens is 5, but max_tokens is 4": {MinTokens: 5, MaxTokens: 4},
		"constraint_kind and constrain":        {Constraint: cos.Regex("a"), Constrain: counting(1)},
		"bias_tokens holds 4096":               {LogitBias: map[int32]float32{4096: 1}},
		"banned_tokens holds -1":               {BannedTokens: [][]int32{{1, 2}, {-1}}},
		"banned_lengths[1] is 0":               {BannedTokens: [][]int32{{1, 2}, {}}},
		"top_log_probabilities is 21":          {LogProbabilities: true, TopLogProbabilities: 21},
		"typical_p is 2":                       {TypicalP: 2},
		"xtc_probability is -1":                {XTCProbability: -1},
		"xtc_threshold is 3":                   {XTCThreshold: 3},
		"dry_multiplier is -1":                 {DRYMultiplier: -1},
		"dry_base is 0":                        {DRYMultiplier: 1},
		"dry_allowed_length is 0":              {DRYMultiplier: 1, DRYBase: 2},
		"dry_breakers holds 4096":              {DRYBreakers: []int32{4096}},
		"not a JSON schema":                    {Constraint: cos.JSONSchema("{")},
		"not a regular expression":             {Constraint: cos.Regex("a(")},
		"not a Lark grammar":                   {Constraint: cos.Lark("start: nothing")},
		"a string or more":                     {Constraint: cos.Choices()},
		"choice 0 is empty":                    {Constraint: cos.Choices("")},
		"constraint is not":                    {Constraint: cos.Choices("a", "\xff")},
	} {
		_, err := engine.NewSession(options)
		if !refusedWith(err, cos.ErrInvalidArgument) || !strings.Contains(err.Error(), says) {
			t.Errorf("%q: %v", says, err)
		}
	}
	if _, err := newEngine(t, tiny).NewSession(cos.Options{Constraint: cos.Regex("a")}); err == nil {
		t.Log("the engine has a tokenizer")
	} else if !refusedWith(err, cos.ErrUnsupported) {
		t.Error(err)
	}
}

func TestBestOf(t *testing.T) {
	engine := newEngine(t, tiny)
	options := cos.Options{Temperature: 1, MaxTokens: 6, StopTokens: []int32{}, LogProbabilities: true}
	session := newSession(t, engine, options)
	if err := session.Prompt([]int32{1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	one, err := session.BestOf(t.Context(), 1, 7)
	if err != nil || len(one.Tokens) != 6 || one.Finish != cos.FinishMaxTokens || one.LogProbability >= 0 {
		t.Error(one, err)
	}
	many, err := session.BestOf(t.Context(), 8, 7)
	if err != nil || len(many.Tokens) != 6 || many.LogProbability < -10 {
		t.Error(many, err)
	}
	options.LogProbabilities = false
	if err := session.SetOptions(options); err != nil {
		t.Fatal(err)
	}
	if _, err := session.BestOf(t.Context(), 2, 7); !refusedWith(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	if _, err := session.BestOf(t.Context(), 0, 7); !refusedWith(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := session.BestOf(ended, 2, 7); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
