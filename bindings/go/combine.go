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

// combination is the combine function of a session and its state. One goroutine at a time uses it.
type combination struct {
	function CombineFunc
	rows     [][]float32
	failure  error // the error of the last call
}

// explain adds the error of the function to that of a step. c may be nil.
func (c *combination) explain(err error) error {
	var e *Error
	if c != nil && errors.As(err, &e) && e.Code == ErrCallback {
		e.Cause = c.failure
	}
	return err
}

// call runs the function. A panic becomes an error.
func (c *combination) call(rows []*float32, scores []float32) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = newPanicError(value)
		}
	}()
	c.rows = c.rows[:0]
	for _, row := range rows {
		// A row that is not needed is NULL. Slice makes nil of it if the length is 0.
		length := len(scores)
		if row == nil {
			length = 0
		}
		c.rows = append(c.rows, unsafe.Slice(row, length))
	}
	return c.function(c.rows, scores)
}

//export cosGoCombine
func cosGoCombine(rows unsafe.Pointer, models, vocab C.size_t, scores *C.float, handle C.uintptr_t) C.int32_t {
	c := cgo.Handle(handle).Value().(*combination)
	c.failure = c.call(unsafe.Slice((**float32)(rows), models), unsafe.Slice((*float32)(scores), vocab))
	if c.failure != nil {
		return 1
	}
	return 0
}
