package cos

// #include "cos.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// TextStream turns a stream of tokens into a stream of text that is cut between characters only, and ends before a stop
// string if there are any. One goroutine at a time may use it.
//
// The text continues a prompt, so the space before its first word stays: the text of the prompt and the text of the stream
// together are the text of all tokens. Unless Prompt tells the prompt, the stream assumes one that ends with a whole word.
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

// Prompt tells the stream what its text continues: all tokens before it, or none. With some tokenizers the text depends on
// it if the prompt is empty, has no text (such as a start token alone), or ends within a word. The call is optional. It comes
// before the first Push, or after Finish. The stream gives no text for these tokens.
func (t *TextStream) Prompt(tokens []int32) error {
	stream, err := t.begin()
	if err != nil {
		return err
	}
	defer t.end()
	return check(C.cos_text_stream_prompt(stream, cTokens(tokens), C.size_t(len(tokens))))
}

// SetStops ends the text before the first of some strings that appears in it: the one that is complete first, and the
// longest of those. They must be valid UTF-8 and not empty, and may reach across tokens. Special tokens give no text, but a
// stop string that is the name of one, or contains it, is found all the same. They replace those set before, unless there is
// an error; what was given out stays.
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

// Stopped tells whether a stop string has ended the text, or did when that was finished: tokens then make no more text until
// Finish. It is false after Close.
func (t *TextStream) Stopped() bool {
	stream, err := t.acquire()
	if err != nil {
		return false
	}
	defer t.release()
	return C.cos_text_stream_stopped(stream) != 0
}

// Push gives the text that further tokens complete, such as those of a step. The bytes of an unfinished character are held
// back until it is whole, and what may become a stop string until that is certain.
func (t *TextStream) Push(tokens []int32) (string, error) {
	return t.read(func(stream *C.cos_text_stream, text **C.char, bytes *C.size_t) *C.cos_error {
		return C.cos_text_stream_push(stream, cTokens(tokens), C.size_t(len(tokens)), text, bytes)
	})
}

// Finish gives the rest of the text: what was held back, with U+FFFD for bytes that are no character, up to a stop string.
// The next Push starts anew, with the same stop strings, behind a prompt that is not known.
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
