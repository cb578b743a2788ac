// Statistics of sessions and engines.

package cos

// #include "cos.h"
import "C"

import (
	"errors"
	"time"
	"unsafe"
)

// Stats has counts and times of a session, or of all sessions of an engine.
type Stats struct {
	Steps     uint64        // steps in the library, which are two if the context of an earlier step cancelled the first
	Tokens    uint64        // tokens committed, without prompts
	Proposed  uint64        // tokens proposed
	Tested    uint64        // proposals accepted or rejected; others were dropped behind a rejection or an end
	Accepted  uint64        // proposals accepted
	Forwards  uint64        // passes of all models, without those over nothing but prompt
	Positions uint64        // positions that all models scored, without those of prompts
	ModelTime time.Duration // inside ONNX Runtime, with prompts
	TotalTime time.Duration // inside steps
	NearTies  uint64        // greedy choices between two nearly equal scores

	// Time inside steps with StrategyAuto, from the first evaluation of the plan on, without passes over prompts. It is
	// 0 with any other strategy, as are the next two. All three are about the same tokens: StandardTime / PlannedTime
	// is the measured gain of planning, and StandardTime / ExpectedTime the expected gain.
	PlannedTime time.Duration
	// Time that these tokens were expected to take when their plan was chosen.
	ExpectedTime time.Duration
	// Time that StrategyStandard would have taken for these tokens, by the measured times of passes.
	StandardTime time.Duration

	// Rows of logits that a GPU keeps and that had to be copied to the host: for combine functions, and for other work
	// that the GPU cannot do.
	RowsCopied uint64

	// Tokens that models did not have to compute, because a session with the same beginning had computed them.
	PrefixTokens uint64
	// Tokens that models computed once more, because other sessions had taken their memory.
	RecomputedTokens uint64
}

// Stats returns the statistics of the session up to the end of its last call. It may be called at any time.
func (s *Session) Stats() (Stats, error) {
	session, err := s.acquire()
	if err != nil {
		return Stats{}, err
	}
	defer s.release()
	return readStats(func(stats *C.cos_stats) *C.cos_error { return C.cos_session_stats(session, stats) })
}

// Stats returns the sums over all sessions of the engine, closed ones included. They grow at the end of each step. It
// may be called at any time.
func (e *Engine) Stats() (Stats, error) {
	engine, err := e.acquire()
	if err != nil {
		return Stats{}, err
	}
	defer e.release()
	return readStats(func(stats *C.cos_stats) *C.cos_error { return C.cos_engine_stats(engine, stats) })
}

// Metrics returns the metrics of the engine as text that Prometheus reads: counters, and histograms of what users wait
// for. cos.h lists them at cos_engine_metrics. It is a server's answer to GET /metrics, of the type "text/plain;
// version=0.0.4", and a server may append lines of its own. It may be called at any time.
func (e *Engine) Metrics() (string, error) {
	engine, err := e.acquire()
	if err != nil {
		return "", err
	}
	defer e.release()
	return growing(1<<15, func(text *byte, capacity C.size_t, bytes *C.size_t) error {
		return check(C.cos_engine_metrics(engine, (*C.char)(unsafe.Pointer(text)), capacity, bytes))
	})
}

// growing calls a function that fills a buffer with a text, which may grow between two calls. So the text has no size
// to ask for, and a buffer that is too short is doubled.
func growing(guess int, call func(*byte, C.size_t, *C.size_t) error) (string, error) {
	for ; ; guess *= 2 {
		var bytes C.size_t
		buffer := make([]byte, guess)
		err := call(unsafe.SliceData(buffer), C.size_t(guess), &bytes)
		if err == nil {
			return string(buffer[:bytes]), nil
		}
		if !errors.Is(err, ErrBufferTooSmall) {
			return "", err
		}
	}
}

func readStats(read func(*C.cos_stats) *C.cos_error) (Stats, error) {
	var stats C.cos_stats
	stats.struct_size = C.sizeof_cos_stats
	if err := check(read(&stats)); err != nil {
		return Stats{}, err
	}
	return Stats{
		Steps:     uint64(stats.steps),
		Tokens:    uint64(stats.tokens),
		Proposed:  uint64(stats.proposed),
		Tested:    uint64(stats.tested),
		Accepted:  uint64(stats.accepted),
		Forwards:  uint64(stats.forwards),
		Positions: uint64(stats.positions),
		ModelTime: time.Duration(stats.model_ns),
		TotalTime: time.Duration(stats.total_ns),
		NearTies:  uint64(stats.near_ties),

		PlannedTime:  time.Duration(stats.planned_ns),
		ExpectedTime: time.Duration(stats.expected_ns),
		StandardTime: time.Duration(stats.standard_ns),

		RowsCopied: uint64(stats.rows_copied),

		PrefixTokens:     uint64(stats.prefix_tokens),
		RecomputedTokens: uint64(stats.recomputed_tokens),
	}, nil
}
