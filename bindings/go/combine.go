// Combine functions: Go functions that combine the models.

package cos

// #include "callbacks.h"
import "C"

import (
	"errors"
	"runtime/cgo"
	"unsafe"
)

// CombineFunc makes one row of scores from one row of logits for each model, for one position. Tokens follow the
// distribution that temperature, top-k, top-p, min-p and softmax make of the scores.
//
// rows has a row of the length of the vocabulary for each model, in the order of the configuration. It is nil for
// look-ups, and for models with the weight 0. The function must write all scores. Minus infinity makes a token
// impossible.
//
// Decoding is exact only if the scores depend on nothing but the rows: the function may be called again for the same
// rows. [Session.Step] calls it on its own goroutine, possibly several times in a step. It must not keep or change the
// rows. It may call Cancel, Stats and Close on its session; other calls return [ErrBusy]. An error or a panic makes the
// step fail with [ErrCallback], which wraps it. But a step that has committed a token before succeeds, and the next
// step calls the function again. It must not end its goroutine, as runtime.Goexit and FailNow of testing do.
//
// If the function refers to its session, close the session: otherwise it stays reachable and is never freed.
type CombineFunc func(rows [][]float32, scores []float32) error

// functions are the functions of a session and their state. One goroutine at a time uses them.
type functions struct {
	combine   CombineFunc
	constrain ConstrainFunc
	weigh     WeighFunc
	options   Options // those of constrain, which a fork is given
	rows      [][]float32
	summaries []ModelSummary
	failure   error // the first error since the step began
}

// explain adds the error of a function to that of a step.
func (f *functions) explain(err error) error {
	var e *Error
	if errors.As(err, &e) && e.Code == ErrCallback {
		e.Cause = f.failure
	}
	return err
}

// run calls a function, and keeps its error. A panic becomes an error.
func (f *functions) run(call func(*functions) error) (status C.int32_t) {
	fail := func(err error) {
		if status = 1; f.failure == nil {
			f.failure = err
		}
	}
	defer func() {
		if value := recover(); value != nil {
			fail(newPanicError(value))
		}
	}()
	if err := call(f); err != nil {
		fail(err)
	}
	return status
}

//export cosGoCombine
func cosGoCombine(rows unsafe.Pointer, models, vocab C.size_t, scores *C.float, handle C.uintptr_t) C.int32_t {
	return cgo.Handle(handle).Value().(*functions).run(func(f *functions) error {
		f.rows = f.rows[:0]
		for _, row := range unsafe.Slice((**float32)(rows), models) {
			// A row that is not needed is NULL. Slice makes nil of it if the length is 0.
			length := int(vocab)
			if row == nil {
				length = 0
			}
			f.rows = append(f.rows, unsafe.Slice(row, length))
		}
		return f.combine(f.rows, unsafe.Slice((*float32)(scores), vocab))
	})
}
