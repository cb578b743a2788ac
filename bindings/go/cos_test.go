// Tests of engines, text and stop tokens.

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

	cos "example.com/cos/bindings/go"
)

const tiny = `{"models": [{"path": "tests/exports/llama/builder-fp32", "name": "one"},
                           {"path": "tests/exports/llama/optimum-fp32", "name": "two"}],
               "combine": {"kind": "weighted", "weights": [0.5, 0.5]}}`

// small is the quickest engine for text.
const small = `{"models": [{"path": "models/demo/small"}], "combine": {"kind": "target", "model": 0}}`

// demo is an engine with slow passes, so that tests can act during one. It is loaded once and never closed.
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

// push returns the text of tokens that are pushed one by one.
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

// The module has its own copy of the header, because a Go module cannot use files outside its folder.
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

func TestChat(t *testing.T) {
	engine := newEngine(t, small)
	const messages = `[{"role": "user", "content": "2+2? <|endoftext|>"}]`
	const whole = "Question: 2+2? <|endoftext|>\nAnswer:"
	if text, err := engine.Chat(messages, true); text != whole || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := engine.Chat(messages, false); text != "Question: 2+2? <|endoftext|>\n" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	safe, err := engine.ChatEncode(messages, true)
	if err != nil || slices.Contains(safe, 0) {
		t.Error(safe, err)
	}
	plain, err := engine.EncodePlain(whole, false)
	if err != nil || slices.Contains(plain, 0) {
		t.Error(plain, err)
	}
	parsed := encode(t, engine, whole)
	if !slices.Contains(parsed, 0) {
		t.Error(parsed)
	}
	if text, err := engine.Decode(safe); text != whole || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	if text, err := engine.DecodeSpecial(parsed); text != whole || err != nil {
		t.Errorf("%q, %v", text, err)
	}
	stream := newStream(t, engine)
	if err := errors.Join(stream.ShowSpecial(true), stream.Prompt(nil)); err != nil {
		t.Error(err)
	}
	if text := push(t, stream, parsed); text != whole {
		t.Errorf("%q", text)
	}
	if err := stream.ShowSpecial(false); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
	if _, err := engine.Chat("[]", true); !errors.Is(err, cos.ErrInvalidArgument) {
		t.Error(err)
	}
}

func TestStops(t *testing.T) {
	engine := newEngine(t, small)
	stream := newStream(t, engine, "never", "ree fo", "\x00")
	for range 2 { // Finish starts a new text with the same stop strings.
		// The stop string that is complete first ends the text, and it spans tokens.
		text := push(t, stream, encode(t, engine, "one two three four never"))
		if text != "one two th" || !stream.Stopped() {
			t.Errorf("%q, stopped: %v", text, stream.Stopped())
		}
		if text := push(t, stream, encode(t, engine, " five")) + finish(t, stream); text != "" || !stream.Stopped() {
			t.Errorf("behind the end %q, stopped: %v", text, stream.Stopped())
		}
	}
	// Text that may become a stop string is held back.
	if text := push(t, stream, encode(t, engine, "one two three")); text != "one two th" || stream.Stopped() {
		t.Errorf("%q, stopped: %v", text, stream.Stopped())
	}
	if text := finish(t, stream); text != "ree" {
		t.Errorf("%q was held back", text)
	}
	// The previous stop strings stay if new ones are refused.
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

func TestTextContinuesAPrompt(t *testing.T) {
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

func TestExtremeTexts(t *testing.T) {
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

func TestExtremePrompts(t *testing.T) {
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
	step, err := session.Step(context.Background())
	if step.Finish != cos.FinishStop || len(step.Tokens) != 0 || err != nil {
		t.Error(step, err)
	}
}
