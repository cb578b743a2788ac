// Preparation of an engine for load.

package cos

// #include "callbacks.h"
import "C"

import (
	"context"
	"runtime/cgo"
	"time"
)

// PrepareOptions says what [Engine.Prepare] prepares for, and for how long.
type PrepareOptions struct {
	// Most sessions that will decode at the same time, up to 1024; 0: 16.
	Sessions uint32
	// Most tokens of a usual text, with its prompt; 0: 1024.
	Tokens uint32
	// After it, no further pass begins; 0: 30 seconds.
	Time time.Duration
	// Is told which share is done, from 0 to 1, or nil. It is called before each pass, on the goroutine of Prepare. A
	// panic makes Prepare fail with [ErrCallback]. It must not end its goroutine, as runtime.Goexit does.
	Progress func(share float64)
}

// preparation is a call of Prepare, for its progress function.
type preparation struct {
	engine   *Engine
	ctx      context.Context
	progress func(share float64)
	failure  error // the panic of the function
}

// Prepare prepares the engine for load, before users wait: it runs the passes that sessions will need most. Else the
// first sessions are slow, above all on a GPU. It returns the share that was done. It counts in no statistics, and
// sessions may decode meanwhile. cos.h says more at cos_engine_prepare.
//
// If the context ends, no further pass begins, and Prepare returns ctx.Err() with the share. What was prepared stays
// so. After Close it returns [ErrClosed].
func (e *Engine) Prepare(ctx context.Context, options PrepareOptions) (float64, error) {
	engine, err := e.acquire()
	if err != nil {
		return 0, err
	}
	defer e.release()
	var given C.cos_prepare_options
	given.struct_size = C.sizeof_cos_prepare_options
	given.sessions = C.uint32_t(options.Sessions)
	given.tokens = C.uint32_t(options.Tokens)
	given.seconds = C.double(options.Time.Seconds())
	p := &preparation{engine: e, ctx: ctx, progress: options.Progress}
	handle := cgo.NewHandle(p)
	defer handle.Delete()
	C.cos_go_set_progress(&given, C.uintptr_t(handle))
	var share C.double
	if err := check(C.cos_engine_prepare(engine, &given, &share)); err != nil {
		return 0, err
	}
	switch {
	case p.failure != nil:
		err = &Error{Code: ErrCallback, Message: "the progress function failed", Cause: p.failure}
	case share < 1 && e.closed():
		err = ErrClosed
	case share < 1:
		err = ctx.Err()
	}
	return float64(share), err
}

// call tells the function, and returns whether to go on. A panic is kept.
func (p *preparation) call(share float64) (goesOn bool) {
	defer func() {
		if value := recover(); value != nil {
			p.failure, goesOn = newPanicError(value), false
		}
	}()
	if p.progress != nil {
		p.progress(share)
	}
	return p.ctx.Err() == nil && !p.engine.closed()
}

//export cosGoProgress
func cosGoProgress(share C.double, handle C.uintptr_t) C.int32_t {
	if cgo.Handle(handle).Value().(*preparation).call(float64(share)) {
		return 0
	}
	return 1
}
