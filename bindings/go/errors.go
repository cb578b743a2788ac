// Errors and their codes.

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

// Code is the code of an [*Error]. It is an error itself, so that errors.Is can test for it.
type Code int32

// The codes of the library. Their numbers never change.
const (
	// An argument is out of range or of the wrong size.
	ErrInvalidArgument Code = C.COS_ERROR_INVALID_ARGUMENT
	// The engine configuration is wrong.
	ErrConfig Code = C.COS_ERROR_CONFIG
	// A model cannot be loaded, is not a language model, or does not fit the other models.
	ErrModel Code = C.COS_ERROR_MODEL
	// ONNX Runtime is missing, too old, or failed.
	ErrRuntime Code = C.COS_ERROR_RUNTIME
	// The tokens do not fit into the context of the models.
	ErrContextFull Code = C.COS_ERROR_CONTEXT_FULL
	// Logits or scores were NaN or plus infinity, or minus infinity for every token.
	ErrNumeric Code = C.COS_ERROR_NUMERIC
	// Another goroutine is using the session, the stream or the request.
	ErrBusy Code = C.COS_ERROR_BUSY
	// The request is valid, but this version does not support it.
	ErrUnsupported Code = C.COS_ERROR_UNSUPPORTED
	// A buffer is too small. This package makes its buffers large enough.
	ErrBufferTooSmall Code = C.COS_ERROR_BUFFER_TOO_SMALL
	// An earlier call on the session or the request returned ErrInternal. It can only be closed.
	ErrPoisoned Code = C.COS_ERROR_POISONED
	// A bug of the library. The process is unharmed.
	ErrInternal Code = C.COS_ERROR_INTERNAL
	// A function of the caller failed. The error wraps what it returned, or its panic.
	ErrCallback Code = C.COS_ERROR_CALLBACK
	// The caches of other sessions take all the memory that the configuration allows. Nothing is lost: try again later.
	ErrNoMemory Code = C.COS_ERROR_NO_MEMORY
	// A request names a model that is not there.
	ErrNotFound Code = C.COS_ERROR_NOT_FOUND
)

// Error returns the name of the code.
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
		return "cos: poisoned"
	case ErrInternal:
		return "cos: internal error"
	case ErrCallback:
		return "cos: callback failed"
	case ErrNoMemory:
		return "cos: no memory for another session"
	case ErrNotFound:
		return "cos: not found"
	}
	return fmt.Sprintf("cos: error %d", int32(c))
}

// Error is an error of the library.
type Error struct {
	Code    Code
	Message string // one sentence for people: what is wrong, and how to mend it where that is known
	Cause   error  // the error that a function of the caller returned, or nil

	// The status of HTTP and the body with which a server of OpenAI's protocol answers a request that met this error.
	// They are 0 and empty for an error of this package itself, such as [ErrBusy]: 500 is right then.
	Status int
	JSON   string
}

// Error returns the message.
func (e *Error) Error() string {
	if e.Cause != nil {
		return "cos: " + e.Message + ": " + e.Cause.Error()
	}
	return "cos: " + e.Message
}

// Unwrap returns the code and the cause, for errors.Is and errors.As.
func (e *Error) Unwrap() []error {
	if e.Cause != nil {
		return []error{e.Code, e.Cause}
	}
	return []error{e.Code}
}

// PanicError is the cause of an error if a function of the caller panicked, because a panic cannot pass through the
// library.
type PanicError struct {
	Value any
	Stack []byte
}

// Error returns the value of the panic, without the stack.
func (e *PanicError) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Unwrap returns the value of the panic if it is an error.
func (e *PanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

func newPanicError(value any) *PanicError { return &PanicError{Value: value, Stack: debug.Stack()} }

// check converts the result of a function of the library to an error, and frees it.
func check(e *C.cos_error) error {
	if e == nil {
		return nil
	}
	defer C.cos_error_free(e)
	return &Error{
		Code:    Code(C.cos_error_code(e)),
		Message: C.GoString(C.cos_error_message(e)),
		Status:  int(C.cos_error_status(e)),
		JSON:    C.GoString(C.cos_error_json(e)),
	}
}
