// Engines: open them, describe them, and convert between text and tokens.

package cos

// #include <stdlib.h>
// #include "cos.h"
import "C"

import (
	"errors"
	"strings"
	"unsafe"
)

// Version is the version of libcos, such as "0.1.0".
func Version() string { return C.GoString(C.cos_version()) }

// Engine is the loaded models and how they are combined. It is immutable; any number of goroutines may use it at once.
type Engine struct {
	handle[*C.cos_engine]
}

// Open makes an engine from a configuration file. Relative paths in it are relative to its folder. cos.h documents the
// format at cos_engine_open.
func Open(path string) (*Engine, error) {
	text, err := cString(path)
	if err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(text))
	var engine *C.cos_engine
	if err := check(C.cos_engine_open(text, &engine)); err != nil {
		return nil, err
	}
	return newEngine(engine), nil
}

// New makes an engine from the text of a configuration. Relative paths in it are relative to the working directory.
func New(config string) (*Engine, error) {
	text, err := cString(config)
	if err != nil {
		return nil, err
	}
	defer C.free(unsafe.Pointer(text))
	var engine *C.cos_engine
	if err := check(C.cos_engine_new(text, &engine)); err != nil {
		return nil, err
	}
	return newEngine(engine), nil
}

func newEngine(engine *C.cos_engine) *Engine {
	e := new(Engine)
	e.own(engine, func(engine *C.cos_engine) { C.cos_engine_free(engine) })
	return e
}

// Close frees the engine. Its sessions and streams go on. It never fails.
func (e *Engine) Close() error {
	if _, err := e.acquire(); err == nil {
		e.close()
		e.release()
	}
	return nil
}

// VocabSize is the number of tokens in the vocabulary that all models share. Tokens are 0 to VocabSize() - 1. It is 0
// after Close.
func (e *Engine) VocabSize() int {
	engine, err := e.acquire()
	if err != nil {
		return 0
	}
	defer e.release()
	return int(C.cos_engine_vocab_size(engine))
}

// ModelCount is the number of models, look-ups included. It is 0 after Close.
func (e *Engine) ModelCount() int {
	engine, err := e.acquire()
	if err != nil {
		return 0
	}
	defer e.release()
	return int(C.cos_engine_model_count(engine))
}

// Describe returns what was recognised of each model as JSON. cos.h documents the members at cos_engine_describe.
func (e *Engine) Describe() (string, error) {
	engine, err := e.acquire()
	if err != nil {
		return "", err
	}
	defer e.release()
	var text *C.char
	if err := check(C.cos_engine_describe(engine, &text)); err != nil {
		return "", err
	}
	return C.GoString(text), nil
}

// DescribeTable returns the content of [Engine.Describe] as a table for people.
func (e *Engine) DescribeTable() (string, error) {
	engine, err := e.acquire()
	if err != nil {
		return "", err
	}
	defer e.release()
	var text *C.char
	if err := check(C.cos_engine_describe_table(engine, &text)); err != nil {
		return "", err
	}
	return C.GoString(text), nil
}

// Encode returns the tokens of a text, which must be valid UTF-8. It uses the tokenizer.json beside the models. With
// addSpecial, the tokens include those that the tokenizer puts around a text, such as a start token.
func (e *Engine) Encode(text string, addSpecial bool) ([]int32, error) {
	return e.encode(text, addSpecial, 0)
}

// EncodePlain is [Engine.Encode], but names of special tokens in the text, such as "<|im_end|>", become tokens of plain
// text. It is for what users say.
func (e *Engine) EncodePlain(text string, addSpecial bool) ([]int32, error) {
	return e.encode(text, addSpecial, C.COS_ENCODE_PLAIN)
}

func (e *Engine) encode(text string, addSpecial bool, flags C.int32_t) ([]int32, error) {
	engine, err := e.acquire()
	if err != nil {
		return nil, err
	}
	defer e.release()
	if addSpecial {
		flags |= C.COS_ENCODE_ADD_SPECIAL
	}
	// One token for each byte and a few more are always enough.
	return fill(len(text)+16, func(tokens *int32, capacity C.size_t, count *C.size_t) error {
		bytes := (*C.char)(unsafe.Pointer(unsafe.StringData(text)))
		return check(C.cos_engine_encode(engine, bytes, C.size_t(len(text)), flags, (*C.int32_t)(tokens), capacity,
			count))
	})
}

// Chat renders messages to text with the chat template beside the models. The messages are JSON: an array of messages,
// or an object that has tools, documents and variables too; cos.h says which at cos_engine_chat. With
// addGenerationPrompt, the text ends with what begins an answer. For a prompt, use [Engine.ChatEncode].
func (e *Engine) Chat(messages string, addGenerationPrompt bool) (string, error) {
	engine, err := e.acquire()
	if err != nil {
		return "", err
	}
	defer e.release()
	text, err := fill(2*len(messages)+4096, func(text *byte, capacity C.size_t, length *C.size_t) error {
		json := (*C.char)(unsafe.Pointer(unsafe.StringData(messages)))
		return check(C.cos_engine_chat(engine, json, C.size_t(len(messages)), number(addGenerationPrompt),
			(*C.char)(unsafe.Pointer(text)), capacity, length))
	})
	return string(text), err
}

// ChatEncode renders messages as [Engine.Chat] does, and encodes the text. Names of control tokens in messages become
// tokens of plain text, so only the template writes control tokens. The tokens are the whole prompt.
func (e *Engine) ChatEncode(messages string, addGenerationPrompt bool) ([]int32, error) {
	engine, err := e.acquire()
	if err != nil {
		return nil, err
	}
	defer e.release()
	return fill(len(messages)+1024, func(tokens *int32, capacity C.size_t, count *C.size_t) error {
		json := (*C.char)(unsafe.Pointer(unsafe.StringData(messages)))
		return check(C.cos_engine_chat_encode(engine, json, C.size_t(len(messages)), number(addGenerationPrompt),
			(*C.int32_t)(tokens), capacity, count))
	})
}

// number is a truth value as C has it.
func number(truth bool) C.int32_t {
	if truth {
		return 1
	}
	return 0
}

// Decode returns the text of tokens. Special tokens give no text. Bytes that do not form a character become U+FFFD. To
// decode a sequence piece by piece, use a [TextStream].
func (e *Engine) Decode(tokens []int32) (string, error) {
	engine, err := e.acquire()
	if err != nil {
		return "", err
	}
	defer e.release()
	text, err := fill(16*len(tokens)+16, func(text *byte, capacity C.size_t, bytes *C.size_t) error {
		return check(C.cos_engine_decode(engine, cTokens(tokens), C.size_t(len(tokens)),
			(*C.char)(unsafe.Pointer(text)), capacity, bytes))
	})
	return string(text), err
}

// DecodeSpecial is [Engine.Decode], but special tokens give their names.
func (e *Engine) DecodeSpecial(tokens []int32) (string, error) {
	engine, err := e.acquire()
	if err != nil {
		return "", err
	}
	defer e.release()
	text, err := fill(16*len(tokens)+16, func(text *byte, capacity C.size_t, bytes *C.size_t) error {
		return check(C.cos_engine_decode_special(engine, cTokens(tokens), C.size_t(len(tokens)),
			(*C.char)(unsafe.Pointer(text)), capacity, bytes))
	})
	return string(text), err
}

// fill calls a function that fills a buffer of a guessed length. If that is too short, it asks for the length and calls
// the function again.
func fill[T any](guess int, call func(*T, C.size_t, *C.size_t) error) ([]T, error) {
	var count C.size_t
	buffer := make([]T, guess)
	err := call(unsafe.SliceData(buffer), C.size_t(guess), &count)
	if errors.Is(err, ErrBufferTooSmall) {
		if err = call(nil, 0, &count); err == nil {
			buffer = make([]T, count)
			err = call(unsafe.SliceData(buffer), count, &count)
		}
	}
	if err != nil {
		return nil, err
	}
	return buffer[:count:count], nil
}

// cString copies a text for C. A text with a NUL is an error, because it would end there.
func cString(text string) (*C.char, error) {
	if strings.IndexByte(text, 0) >= 0 {
		return nil, &Error{Code: ErrInvalidArgument, Message: "the text has a NUL byte; remove it"}
	}
	return C.CString(text), nil
}

func cTokens(tokens []int32) *C.int32_t { return (*C.int32_t)(unsafe.SliceData(tokens)) }
