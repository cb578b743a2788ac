// Constraints: what a text must be.

package cos

// #include "callbacks.h"
import "C"

import (
	"encoding/json"
	"runtime/cgo"
	"unicode/utf8"
	"unsafe"
)

// Constraint says what the text behind the last prompt must be. The zero value is none. It needs the tokenizer.json of
// the models. A stop token may come where the text may end. A text that nothing can follow ends with [FinishComplete].
type Constraint struct {
	kind   int32
	source string
}

// JSONSchema makes the text a JSON value that the schema allows. llguidance says which keywords it knows; others are an
// error.
func JSONSchema(schema string) Constraint { return Constraint{C.COS_CONSTRAINT_JSON_SCHEMA, schema} }

// Regex makes the whole text match a regular expression, in the syntax of Rust's crate regex, without look-around.
func Regex(expression string) Constraint { return Constraint{C.COS_CONSTRAINT_REGEX, expression} }

// Lark makes the text follow a grammar in the dialect of Lark that llguidance has. Its first rule is "start".
func Lark(grammar string) Constraint { return Constraint{C.COS_CONSTRAINT_LARK, grammar} }

// Choices makes the text one of these strings.
func Choices(choices ...string) Constraint {
	for _, choice := range choices {
		if !utf8.ValidString(choice) { // which JSON would change, and the library refuses
			return Constraint{C.COS_CONSTRAINT_CHOICES, choice}
		}
	}
	list, _ := json.Marshal(choices) // fails for no strings
	return Constraint{C.COS_CONSTRAINT_CHOICES, string(list)}
}

// Text is a text that a [ConstrainFunc] is asked about. It begins behind the last prompt.
type Text struct {
	Tokens []int32 // the text so far, pending tokens included
	Kept   int     // so many tokens from the front are those of the last call with the same number
	Number uint64  // of the session; no other session of the process has it, nor has a fork
}

// ConstrainFunc says which tokens may come next in a text. mask has a bit for each token, token t in bit t%32 of word
// t/32, and all are set. The function clears those of the tokens that may not come. If no bit is left, the text is
// complete and ends.
//
// What it says must depend on the tokens of the text alone. [Session.Step] calls it on its own goroutine for each
// position that is drafted or decided, so texts go back. It must not keep the slices. What a [CombineFunc] may do with
// its session, it may too, and errors and panics are those of one. A fork calls the same function, perhaps at the same
// time.
type ConstrainFunc func(text Text, mask []uint32) error

//export cosGoConstrain
func cosGoConstrain(tokens *C.int32_t, count, kept C.size_t, mask *C.uint32_t, words C.size_t, number C.uint64_t,
	handle C.uintptr_t) C.int32_t {
	return cgo.Handle(handle).Value().(*functions).run(func(f *functions) error {
		text := Text{unsafe.Slice((*int32)(tokens), count), int(kept), uint64(number)}
		return f.constrain(text, unsafe.Slice((*uint32)(mask), words))
	})
}
