package cos

// #include "cos.h"
import "C"

import "time"

// Stats is what a session did so far, or all sessions of an engine.
type Stats struct {
	Steps     uint64        // steps in the library: a step that met a cancellation nobody waited for counts twice
	Tokens    uint64        // tokens committed, prompts excluded
	Proposed  uint64        // proposals made
	Tested    uint64        // proposals that reached an accept or reject decision
	Accepted  uint64        // proposals accepted
	Forwards  uint64        // passes of all models, those over nothing but prompt excluded
	Positions uint64        // positions that all models scored, those of the prompt excluded
	ModelTime time.Duration // inside ONNX Runtime, prompts included
	TotalTime time.Duration // inside steps
	NearTies  uint64        // greedy choices between two nearly equal scores

	// With StrategyAuto, inside steps since a first look at the plan, passes over prompts excluded; 0 with any other, as
	// the next two are. They are about the same tokens: StandardTime / PlannedTime is the measured gain of planning,
	// StandardTime / ExpectedTime the one that was expected.
	PlannedTime time.Duration
	// What these tokens were expected to take, as the plans were chosen.
	ExpectedTime time.Duration
	// What StrategyStandard would have taken for them, by the measured times of the models' passes.
	StandardTime time.Duration

	// Rows of logits that models on a GPU keep there, and that had to be copied to the host: for functions of the caller,
	// and other work that is not done on the GPU.
	RowsCopied uint64
}

// Stats is what the session did so far, up to the last call that ended. It may be called at any time.
func (s *Session) Stats() (Stats, error) {
	session, err := s.acquire()
	if err != nil {
		return Stats{}, err
	}
	defer s.release()
	return readStats(func(stats *C.cos_stats) *C.cos_error { return C.cos_session_stats(session, stats) })
}

// Stats is what all sessions of the engine did so far, closed ones too: for the metrics of a server. It grows with each
// step that ends, and may be called at any time.
func (e *Engine) Stats() (Stats, error) {
	engine, err := e.acquire()
	if err != nil {
		return Stats{}, err
	}
	defer e.release()
	return readStats(func(stats *C.cos_stats) *C.cos_error { return C.cos_engine_stats(engine, stats) })
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
	}, nil
}
