// Text streams: tokens to text as they come.

package cos

// #include "cos.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// TextStream decodes a stream of tokens to text. It gives out whole characters only, and can end the text before a stop
// string. One goroutine at a time may use it.
//
// The text continues a prompt: the text of the prompt and the text of the stream together are the text of all tokens.
// So the space before the first word stays. If Prompt does not set the prompt, the stream assumes that it ends with a
// whole word.
type TextStream struct {
	exclusive[*C.cos_text_stream]
}

// NewTextStream starts a stream of text.
func (e *Engine) NewTextStream() (*TextStream, error) {
	engine, err := e.acquire()
	if err != nil {
		return nil, err
	}
	defer e.release()
	var stream *C.cos_text_stream
	if err := check(C.cos_text_stream_new(engine, &stream)); err != nil {
		return nil, err
	}
	t := new(TextStream)
	t.own(stream, func(stream *C.cos_text_stream) { C.cos_text_stream_free(stream) })
	return t, nil
}

// Close frees the stream. It never fails.
func (t *TextStream) Close() error {
	if _, err := t.acquire(); err == nil {
		t.close()
		t.release()
	}
	return nil
}

// Prompt sets the prompt that the text continues: all tokens before it, or none. The call is optional. It must come
// before the first Push, or after Finish. The stream gives no text for these tokens. With some tokenizers, no space
// begins the text if the prompt is empty, has no text (such as a start token alone), or ends within a word.
func (t *TextStream) Prompt(tokens []int32) error {
	stream, err := t.begin()
	if err != nil {
		return err
	}
	defer t.end()
	return check(C.cos_text_stream_prompt(stream, cTokens(tokens), C.size_t(len(tokens))))
}

// ShowSpecial sets whether special tokens give their names as text. It must come before the first Push, or after
// Finish, and before Prompt: the prompt is unknown again.
func (t *TextStream) ShowSpecial(show bool) error {
	stream, err := t.begin()
	if err != nil {
		return err
	}
	defer t.end()
	return check(C.cos_text_stream_show_special(stream, number(show)))
}

// SetStops sets the stop strings: the text ends before the first one that is complete, or before the longest of several
// that are complete at the same place. They must be valid UTF-8 and not empty. A stop string may span tokens, and may
// be or contain the name of a special token. They replace those set before, and text that was given out stays. On an
// error, nothing changes.
func (t *TextStream) SetStops(stops ...string) error {
	stream, err := t.begin()
	if err != nil {
		return err
	}
	defer t.end()
	var pinner runtime.Pinner
	defer pinner.Unpin()
	texts := make([]*C.char, len(stops))
	lengths := make([]C.size_t, len(stops))
	for i, stop := range stops {
		texts[i] = (*C.char)(unsafe.Pointer(unsafe.StringData(stop)))
		pinner.Pin(texts[i])
		lengths[i] = C.size_t(len(stop))
	}
	return check(C.cos_text_stream_set_stops(stream, unsafe.SliceData(texts), unsafe.SliceData(lengths),
		C.size_t(len(stops))))
}

// Stopped tells whether a stop string has ended the text. Pushed tokens then give no text until Finish. After Finish,
// it is about the finished text until the next Push. It is false after Close.
func (t *TextStream) Stopped() bool {
	stream, err := t.acquire()
	if err != nil {
		return false
	}
	defer t.release()
	return C.cos_text_stream_stopped(stream) != 0
}

// Push takes tokens, such as those of a step, and returns the text that they complete. The stream holds back the bytes
// of an unfinished character, and text that may become a stop string.
func (t *TextStream) Push(tokens []int32) (string, error) {
	return t.read(func(stream *C.cos_text_stream, text **C.char, bytes *C.size_t) *C.cos_error {
		return C.cos_text_stream_push(stream, cTokens(tokens), C.size_t(len(tokens)), text, bytes)
	})
}

// Finish returns the rest of the text: what the stream held back, up to a stop string. Bytes that do not form a
// character become U+FFFD. The next Push starts a new text with the same stop strings, and without a prompt.
func (t *TextStream) Finish() (string, error) {
	return t.read(func(stream *C.cos_text_stream, text **C.char, bytes *C.size_t) *C.cos_error {
		return C.cos_text_stream_finish(stream, text, bytes)
	})
}

func (t *TextStream) read(call func(*C.cos_text_stream, **C.char, *C.size_t) *C.cos_error) (string, error) {
	stream, err := t.begin()
	if err != nil {
		return "", err
	}
	defer t.end()
	var text *C.char
	var bytes C.size_t
	if err := check(call(stream, &text, &bytes)); err != nil || bytes == 0 {
		return "", err
	}
	return string(unsafe.Slice((*byte)(unsafe.Pointer(text)), bytes)), nil
}
