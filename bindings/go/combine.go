package cos

// #include "combine.h"
import "C"

import (
	"errors"
	"runtime/cgo"
	"unsafe"
)

// CombineFunc makes one row of scores from the models' rows of logits, for one position. Tokens are then decoded from the
// distribution that temperature, top-k, top-p, min-p and softmax make of the scores.
//
// rows has a row of the vocabulary's size for each model, in the engine's order; nil for models that the engine's
// combination gives the weight 0, and for look-ups. All scores are to be written; minus infinity is impossible.
//
// Exactness asks that it depends on the rows alone, for they are unchanged where it is asked again. It is called inside
// [Session.Step], on its goroutine, possibly several times in a step. It must not keep or change the rows. It may call
// Cancel, Stats and Close on its session; other calls get [ErrBusy]. An error or a panic fails the step with
// [ErrCallback], which wraps it (a step that has committed a token by then ends well, and the next one asks again). It must
// not end its goroutine, as runtime.Goexit and testing's FailNow do.
//
// A function that refers to its session keeps it from being freed when it is forgotten: such a session must be closed.
type CombineFunc func(rows [][]float32, scores []float32) error

// combination is what a session's combine function works with. It is used by one goroutine at a time.
type combination struct {
	function CombineFunc
	rows     [][]float32
	failure  error // of the last call in this step
}

// explain adds to the error of a step what the function said. c may be nil.
func (c *combination) explain(err error) error {
	var e *Error
	if c != nil && errors.As(err, &e) && e.Code == ErrCallback {
		e.Cause = c.failure
	}
	return err
}

// call runs the function. Whatever happens inside becomes its error.
func (c *combination) call(rows []*float32, scores []float32) (err error) {
	defer func() {
		if value := recover(); value != nil {
			err = newPanicError(value)
		}
	}()
	c.rows = c.rows[:0]
	for _, row := range rows {
		// A row that is not needed is NULL, of which Slice makes nil if its length is 0.
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
