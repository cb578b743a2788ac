// Replays tests/vectors through the public API: the tokens that PyTorch decoded, and calls that the library must
// refuse. tests/vectors/README.md defines the files and the checks.

package cos_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	cos "example.com/cos/bindings/go"
)

// Paths in vectors and configurations are relative to the root of the repository.
func TestMain(m *testing.M) {
	if err := os.Chdir("../.."); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// records returns the lines of a file that are not comments, each as its first word and the rest.
func records(t *testing.T, path, first string) [][2]string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var records [][2]string
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSuffix(line, "\n")
		if line != "" && !strings.HasPrefix(line, "#") {
			word, rest, _ := strings.Cut(line, " ")
			records = append(records, [2]string{word, rest})
		}
	}
	if len(records) < 2 || strings.Join(records[0][:], " ") != first || records[len(records)-1][0] != "end" {
		t.Fatalf("%s does not begin with %q or is cut off", path, first)
	}
	return records[1 : len(records)-1]
}

func number(t *testing.T, word string) float64 {
	t.Helper()
	value, err := strconv.ParseFloat(word, 64)
	if err != nil {
		t.Fatal(err)
	}
	return value
}

// numbers parses words or the elements of a list.
func numbers[T int32 | float32](t *testing.T, text string) []T {
	t.Helper()
	var values []T
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return r == ' ' || r == ',' }) {
		values = append(values, T(number(t, word)))
	}
	return values
}

func newEngine(t testing.TB, config string) *cos.Engine {
	t.Helper()
	engine, err := cos.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { engine.Close() })
	return engine
}

func newSession(t testing.TB, engine *cos.Engine, options cos.Options) *cos.Session {
	t.Helper()
	session, err := engine.NewSession(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close() })
	return session
}

func TestVectors(t *testing.T) {
	for _, folder := range []struct {
		name          string
		cases, values int
	}{{"demo", 78, 936}, {"tiny", 168, 1906}} {
		t.Run(folder.name, func(t *testing.T) {
			files, err := filepath.Glob("tests/vectors/" + folder.name + "/*.txt")
			if err != nil || len(files) == 0 {
				t.Fatal("there are no vectors", err)
			}
			var replay replay
			for _, file := range files {
				t.Run(filepath.Base(file), func(t *testing.T) { replay.file(t, file) })
			}
			fmt.Printf("%s: %d cases, %d values\n", folder.name, replay.cases, replay.values)
			if replay.cases != folder.cases || replay.values != folder.values {
				t.Errorf("there should be %d cases, %d values", folder.cases, folder.values)
			}
		})
	}
}

// replay counts what was compared.
type replay struct{ cases, values int }

// greedy is a greedy continuation: its tokens, and the logarithms of their probabilities.
type greedy struct {
	name           string
	prompt, tokens []int32
	logarithms     []float64
}

func (r *replay) file(t *testing.T, path string) {
	var engine *cos.Engine
	var tolerance float64
	var continuations []*greedy
	prompts := map[string][]int32{}
	for _, record := range records(t, path, "cos-vectors 1") {
		word, rest := record[0], record[1]
		switch word {
		case "engine":
			engine = newEngine(t, rest)
		case "vocabulary":
			if vocabulary := strconv.Itoa(engine.VocabSize()); vocabulary != rest {
				t.Fatalf("the vocabulary is %s, not %s", vocabulary, rest)
			}
		case "tolerance":
			tolerance = number(t, rest)
		case "prompt":
			name, tokens, _ := strings.Cut(rest, " ")
			prompts[name] = numbers[int32](t, tokens)
		case "greedy":
			continuations = append(continuations, &greedy{name: rest, prompt: prompts[rest]})
		case "token":
			fields := strings.Fields(rest)
			last := continuations[len(continuations)-1]
			last.tokens = append(last.tokens, int32(number(t, fields[0])))
			last.logarithms = append(last.logarithms, number(t, fields[1]))
		case "sampled", "support", "next", "pair", "triple", "rest":
			// The tests in Rust check these with random draws.
		default:
			t.Fatalf("%s: a record that this does not know", word)
		}
	}
	for _, greedy := range continuations {
		for _, way := range ways(engine.ModelCount()) {
			r.greedy(t, engine, greedy, way, tolerance)
		}
	}
}

// ways returns the ways to decode that tests/vectors/README.md lists.
func ways(models int) []cos.Options {
	turns := make([]int32, models)
	for model := range turns {
		turns[model] = []int32{3, 2}[model%2]
	}
	ways := []cos.Options{
		{Strategy: cos.StrategyStandard},
		{Strategy: cos.StrategyCoS, ProposalLengths: turns},
		{Strategy: cos.StrategyAuto},
	}
	for model := range models {
		lengths := make([]int32, models)
		lengths[model] = 4
		ways = append(ways, cos.Options{Strategy: cos.StrategySpeculative, ProposalLengths: lengths})
	}
	return ways
}

func (r *replay) greedy(t *testing.T, engine *cos.Engine, greedy *greedy, way cos.Options, tolerance float64) {
	way.StopTokens = []int32{}
	way.LogProbabilities = true
	way.MaxTokens = uint32(len(greedy.tokens))
	tokens, logarithms := decode(t, newSession(t, engine, way), greedy.prompt)
	r.cases++
	if !slices.Equal(tokens, greedy.tokens) {
		t.Errorf("%s, %v %v: %v, not %v", greedy.name, way.Strategy, way.ProposalLengths, tokens, greedy.tokens)
		return
	}
	for i, expected := range greedy.logarithms {
		r.values++
		if difference := math.Abs(float64(logarithms[i]) - expected); !(difference <= tolerance) {
			t.Errorf("%s, %v %v: ln r of token %d is %v, not %v",
				greedy.name, way.Strategy, way.ProposalLengths, i, logarithms[i], expected)
		}
	}
}

// decode prompts a session and steps until it is finished.
func decode(t testing.TB, session *cos.Session, prompt []int32) (tokens []int32, logarithms []float32) {
	t.Helper()
	if err := session.Prompt(prompt); err != nil {
		t.Fatal(err)
	}
	for step, err := range session.Steps(context.Background()) {
		if err != nil {
			t.Fatal(err)
		}
		tokens = append(tokens, step.Tokens...)
		logarithms = append(logarithms, step.LogProbabilities...)
	}
	return tokens, logarithms
}

func TestErrors(t *testing.T) {
	var engine *cos.Engine
	count := 0
	for _, record := range records(t, "tests/vectors/errors.txt", "cos-errors 1") {
		word, rest := record[0], record[1]
		switch word {
		case "engine":
			engine = newEngine(t, rest)
			continue
		case "vocabulary":
			if vocabulary := strconv.Itoa(engine.VocabSize()); vocabulary != rest {
				t.Fatalf("the vocabulary is %s, not %s", vocabulary, rest)
			}
			continue
		}
		code, rest, _ := strings.Cut(rest, " ")
		var err error
		switch word {
		case "refuse":
			_, err = cos.New(rest)
		case "options":
			err = tryOptions(t, engine, rest)
		case "prompt":
			err = newSession(t, engine, cos.Options{}).Prompt(numbers[int32](t, rest))
		case "step":
			_, err = newSession(t, engine, cos.Options{}).Step(context.Background())
		case "weights":
			err = newSession(t, engine, cos.Options{}).SetWeights(numbers[float32](t, rest))
		default:
			t.Fatalf("%s: a record that this does not know", word)
		}
		count++
		if expected := cos.Code(number(t, code)); !refusedWith(err, expected) {
			t.Errorf("%v: %v, not %d", record, err, expected)
		}
	}
	fmt.Printf("errors: %d records\n", count)
	if count != 82 {
		t.Error("there should be 82")
	}
}

// refusedWith tells whether an error has a code and a message. Code 0 is success.
func refusedWith(err error, code cos.Code) bool {
	if code == 0 || err == nil {
		return code == 0 && err == nil
	}
	var e *cos.Error
	return errors.As(err, &e) && e.Code == code && errors.Is(err, code) && e.Message != ""
}

// tryOptions makes a session with options of the form KEY=VALUE.
func tryOptions(t *testing.T, engine *cos.Engine, pairs string) error {
	var options cos.Options
	var biased []int32
	for _, pair := range strings.Fields(pairs) {
		key, value, _ := strings.Cut(pair, "=")
		if float := floatOption(&options, key); float != nil {
			*float = float32(number(t, value))
			continue
		}
		switch key {
		case "strategy":
			options.Strategy = cos.Strategy(number(t, value))
		case "top_k":
			options.TopK = int32(number(t, value))
		case "seed":
			options.Seed = uint64(number(t, value))
		case "max_tokens":
			options.MaxTokens = uint32(number(t, value))
		case "proposal_lengths":
			options.ProposalLengths = numbers[int32](t, value)
		case "weights":
			options.Weights = numbers[float32](t, value)
		case "stop_tokens":
			options.StopTokens = numbers[int32](t, value)
		case "targets":
			options.Targets = cos.Targets(number(t, value))
		case "routes":
			options.Routes = cos.Routes(number(t, value))
		case "priority":
			options.Priority = cos.Priority(number(t, value))
		case "min_tokens":
			options.MinTokens = uint32(number(t, value))
		case "no_repeat_ngram":
			options.NoRepeatNgram = int32(number(t, value))
		case "top_log_probabilities":
			options.TopLogProbabilities = int32(number(t, value))
		case "dry_allowed_length":
			options.DRYAllowedLength = int32(number(t, value))
		case "dry_breakers":
			options.DRYBreakers = numbers[int32](t, value)
		case "bias_tokens":
			biased = numbers[int32](t, value)
		case "bias_values":
			options.LogitBias = map[int32]float32{}
			for i, bias := range numbers[float32](t, value) {
				options.LogitBias[biased[i]] = bias
			}
		default:
			if value != "0" && value != "1" {
				// A bool cannot express this value.
				return &cos.Error{Code: cos.ErrInvalidArgument, Message: key + " is neither false nor true"}
			}
			setSwitch(t, &options, key, value == "1")
		}
	}
	session, err := engine.NewSession(options)
	if err == nil {
		session.Close()
	}
	return err
}

// floatOption is the member of this name, or nil if it is no float32.
func floatOption(options *cos.Options, key string) *float32 {
	return map[string]*float32{
		"temperature":        &options.Temperature,
		"top_p":              &options.TopP,
		"min_p":              &options.MinP,
		"repetition_penalty": &options.RepetitionPenalty,
		"presence_penalty":   &options.PresencePenalty,
		"frequency_penalty":  &options.FrequencyPenalty,
		"typical_p":          &options.TypicalP,
		"xtc_probability":    &options.XTCProbability,
		"xtc_threshold":      &options.XTCThreshold,
		"dry_multiplier":     &options.DRYMultiplier,
		"dry_base":           &options.DRYBase,
	}[key]
}

func setSwitch(t *testing.T, options *cos.Options, key string, on bool) {
	switch key {
	case "log_probabilities":
		options.LogProbabilities = on
	case "model_log_probabilities":
		options.ModelLogProbabilities = on
	case "log_probabilities_before":
		options.LogProbabilitiesBefore = on
	default:
		t.Fatalf("%s: an option that this does not know", key)
	}
}
