// Package inc runs the loop of a Go program in C instead, so that a benchmark can measure the cost of Go. (Test files
// cannot use cgo.)
package inc

/*
#cgo CFLAGS: -I${SRCDIR}/../..
#cgo LDFLAGS: -lcos
#include <stdlib.h>
#include "cos.h"

// Decodes greedily with a new session. Returns the number of steps, or the code of an error as a negative number.
static int64_t decode(cos_engine *engine, const int32_t *prompt, size_t count, uint32_t max_tokens) {
    const int32_t none[1] = {0};
    cos_session_options options = {.struct_size = sizeof options, .strategy = COS_STRATEGY_STANDARD,
                                   .max_tokens = max_tokens, .stop_tokens = none};
    cos_session *session = NULL;
    cos_step_result step = {.struct_size = sizeof step};
    int64_t steps = 0;
    cos_error *error = cos_session_new(engine, &options, &session);
    if (!error)
        error = cos_prompt(session, prompt, count);
    while (!error && !step.finish) {
        error = cos_step(session, &step);
        steps++;
    }
    int64_t code = cos_error_code(error);
    cos_error_free(error);
    cos_free(session);
    return code ? -code : steps;
}
*/
import "C"

import (
	"fmt"
	"unsafe"
)

// Engine is an engine of the C interface.
type Engine struct{ engine *C.cos_engine }

// New makes an engine. It is never freed.
func New(config string) (*Engine, error) {
	text := C.CString(config)
	defer C.free(unsafe.Pointer(text))
	e := new(Engine)
	if err := C.cos_engine_new(text, &e.engine); err != nil {
		defer C.cos_error_free(err)
		return nil, fmt.Errorf("%s", C.GoString(C.cos_error_message(err)))
	}
	return e, nil
}

// Decode decodes greedily and returns the number of steps.
func (e *Engine) Decode(prompt []int32, maxTokens int) (int, error) {
	steps := C.decode(e.engine, (*C.int32_t)(unsafe.SliceData(prompt)), C.size_t(len(prompt)), C.uint32_t(maxTokens))
	if steps < 0 {
		return 0, fmt.Errorf("code %d", -steps)
	}
	return int(steps), nil
}
