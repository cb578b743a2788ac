package cos

// #include "cos.h"
import "C"

import (
	"sync"
	"unsafe"
)

// TextStream turns a stream of tokens into a stream of text that is cut between characters only. One goroutine at a time
// may use it.
type TextStream struct {
	handle[*C.cos_text_stream]
	inUse sync.Mutex // only ever tried
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

// Push gives the text that further tokens complete, such as those of a step. The bytes of an unfinished character are held
// back until it is whole.
func (t *TextStream) Push(tokens []int32) (string, error) {
	return t.read(func(stream *C.cos_text_stream, text **C.char, bytes *C.size_t) *C.cos_error {
		return C.cos_text_stream_push(stream, cTokens(tokens), C.size_t(len(tokens)), text, bytes)
	})
}

// Finish gives the rest of the text: what was held back, with U+FFFD for bytes that are no character. The stream starts
// anew.
func (t *TextStream) Finish() (string, error) {
	return t.read(func(stream *C.cos_text_stream, text **C.char, bytes *C.size_t) *C.cos_error {
		return C.cos_text_stream_finish(stream, text, bytes)
	})
}

func (t *TextStream) read(call func(*C.cos_text_stream, **C.char, *C.size_t) *C.cos_error) (string, error) {
	stream, err := t.acquire()
	if err != nil {
		return "", err
	}
	defer t.release()
	if !t.inUse.TryLock() {
		return "", errBusy("the stream")
	}
	defer t.inUse.Unlock()
	var text *C.char
	var bytes C.size_t
	if err := check(call(stream, &text, &bytes)); err != nil || bytes == 0 {
		return "", err
	}
	return string(unsafe.Slice((*byte)(unsafe.Pointer(text)), bytes)), nil
}
