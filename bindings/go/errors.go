package cos

// #include "cos.h"
import "C"

import (
	"errors"
	"fmt"
	"runtime/debug"
)

// ErrClosed is the error of every use after Close.
var ErrClosed = errors.New("cos: use after Close")

// Code says what kind of error an [*Error] is. Codes are errors themselves, to be asked for with errors.Is.
type Code int32

// The codes of the library. Their numbers never change.
const (
	// An argument is wrong: out of range, or of the wrong size.
	ErrInvalidArgument Code = C.COS_ERROR_INVALID_ARGUMENT
	// The engine configuration is wrong.
	ErrConfig Code = C.COS_ERROR_CONFIG
	// A model cannot be loaded, is no language model, or does not fit the others.
	ErrModel Code = C.COS_ERROR_MODEL
	// ONNX Runtime is missing, too old, or failed.
	ErrRuntime Code = C.COS_ERROR_RUNTIME
	// The context of the models has no room for the tokens.
	ErrContextFull Code = C.COS_ERROR_CONTEXT_FULL
	// Logits were NaN or infinite, or left no token possible.
	ErrNumeric Code = C.COS_ERROR_NUMERIC
	// The session or stream is in use by another goroutine.
	ErrBusy Code = C.COS_ERROR_BUSY
	// The request is valid, but this version does not support it.
	ErrUnsupported Code = C.COS_ERROR_UNSUPPORTED
	// A buffer is too small. This package makes them large enough.
	ErrBufferTooSmall Code = C.COS_ERROR_BUFFER_TOO_SMALL
	// An earlier call on the session ended in ErrInternal; the session can only be closed.
	ErrPoisoned Code = C.COS_ERROR_POISONED
	// A bug of the library. The process is unharmed.
	ErrInternal Code = C.COS_ERROR_INTERNAL
	// A [CombineFunc] failed; the error wraps what it returned.
	ErrCallback Code = C.COS_ERROR_CALLBACK
)

// Error is the name of the code.
func (c Code) Error() string {
	switch c {
	case ErrInvalidArgument:
		return "cos: invalid argument"
	case ErrConfig:
		return "cos: wrong configuration"
	case ErrModel:
		return "cos: unusable model"
	case ErrRuntime:
		return "cos: ONNX Runtime failed"
	case ErrContextFull:
		return "cos: context full"
	case ErrNumeric:
		return "cos: numeric error"
	case ErrBusy:
		return "cos: busy"
	case ErrUnsupported:
		return "cos: unsupported"
	case ErrBufferTooSmall:
		return "cos: buffer too small"
	case ErrPoisoned:
		return "cos: poisoned session"
	case ErrInternal:
		return "cos: internal error"
	case ErrCallback:
		return "cos: combine function failed"
	}
	return fmt.Sprintf("cos: error %d", int32(c))
}

// Error is what the library refused, and why.
type Error struct {
	Code    Code
	Message string // one sentence for people, with the mend where there is one
	Cause   error  // what a [CombineFunc] returned, or nil
}

// Error is the message.
func (e *Error) Error() string {
	if e.Cause != nil {
		return "cos: " + e.Message + ": " + e.Cause.Error()
	}
	return "cos: " + e.Message
}

// Unwrap gives the code and the cause to errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Cause != nil {
		return []error{e.Code, e.Cause}
	}
	return []error{e.Code}
}

// PanicError is the cause of an error whose [CombineFunc] panicked: a panic cannot pass through the library.
type PanicError struct {
	Value any
	Stack []byte
}

// Error is the value that was thrown. The stack is not part of it.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap gives the value, where that is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

func newPanicError(value any) *PanicError { return &PanicError{Value: value, Stack: debug.Stack()} }

// check takes what a function of the library returned, and frees it.
func check(e *C.cos_error) error {
	if e == nil {
		return nil
	}
	defer C.cos_error_free(e)
	return &Error{Code: Code(C.cos_error_code(e)), Message: C.GoString(C.cos_error_message(e))}
}
