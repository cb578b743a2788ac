// Sessions: one sequence of tokens each.

package cos

// #include <stdlib.h>
// #include "callbacks.h"
import "C"

import (
	"context"
	"fmt"
	"iter"
	"runtime"
	"runtime/cgo"
	"slices"
	"sync/atomic"
	"unsafe"
)

// Session is one sequence. One goroutine at a time may use it, except for Cancel, Stats and Close.
type Session struct {
	exclusive[*C.cos_session]
	result    C.cos_step_result
	functions *functions
	callbacks cgo.Handle // of functions
	models    int
	cancelled atomic.Bool // Cancel was called, and no step has reported it yet
}

// Finish says whether and why a sequence has ended.
type Finish int32

const (
	// The sequence goes on.
	FinishNone Finish = C.COS_FINISH_NONE
	// A stop token was committed. It is the last token.
	FinishStop Finish = C.COS_FINISH_STOP
	// Options.MaxTokens tokens were generated since the last prompt.
	FinishMaxTokens Finish = C.COS_FINISH_MAX_TOKENS
	// The context has no room for another token.
	FinishContextFull Finish = C.COS_FINISH_CONTEXT_FULL
	// Session.Cancel stopped the step. The next step goes on.
	FinishCancelled Finish = C.COS_FINISH_CANCELLED
	// The constraint is complete: no token may follow.
	FinishComplete Finish = C.COS_FINISH_COMPLETE
	// A stop string ended the text of a choice of a Request. Sessions have no such strings.
	FinishStopString Finish = C.COS_FINISH_STOP_STRING
)

// String is the name of the reason.
func (f Finish) String() string {
	switch f {
	case FinishNone:
		return "none"
	case FinishStop:
		return "stop"
	case FinishMaxTokens:
		return "max tokens"
	case FinishContextFull:
		return "context full"
	case FinishCancelled:
		return "cancelled"
	case FinishComplete:
		return "complete"
	case FinishStopString:
		return "stop string"
	}
	return fmt.Sprintf("Finish(%d)", int32(f))
}

// Step is the result of a step.
type Step struct {
	// The tokens that the step committed: at least one, unless the sequence is finished.
	Tokens []int32
	// The natural logarithm of each token's probability under the combined distribution; Options say which. Nil if they
	// did not ask for it.
	LogProbabilities []float32
	Finish           Finish
	// For each token, the most probable tokens, best first: as many as Options.TopLogProbabilities says, or fewer if
	// fewer are possible. Nil if Options did not ask for them.
	Alternatives [][]Alternative
	// For each token, its log-probability under each model, in the order of the configuration. NaN for look-ups, and
	// for models of weight 0 that have not scored it. Nil if Options did not ask for them.
	ModelLogProbabilities [][]float32
	// How each token came about. Nil without tokens, and for tokens that were scored.
	Origins []Origin
}

// Origin is how a token came about.
type Origin struct {
	Kind OriginKind
	// The index of the model or look-up that proposed the token, or the token that was replaced. Of a token that was
	// drawn from the distribution of one model, as with routed targets, that model. Otherwise -1.
	Model int
}

// OriginKind is the way in which a token came about.
type OriginKind int32

const (
	// Drawn from the target distribution, where nothing was proposed.
	OriginDrawn OriginKind = C.COS_ORIGIN_DRAWN
	// Proposed, and accepted.
	OriginAccepted OriginKind = C.COS_ORIGIN_ACCEPTED
	// Drawn in place of a proposal that was rejected.
	OriginReplaced OriginKind = C.COS_ORIGIN_REPLACED
	// The only token that the constraint allowed.
	OriginForced OriginKind = C.COS_ORIGIN_FORCED
)

// String is the name of the way, as in the answers of a [Request].
func (k OriginKind) String() string {
	switch k {
	case OriginDrawn:
		return "drawn"
	case OriginAccepted:
		return "accepted"
	case OriginReplaced:
		return "replaced"
	case OriginForced:
		return "forced"
	}
	return fmt.Sprintf("OriginKind(%d)", int32(k))
}

// Alternative is a token that might have come instead of another one, or that token itself.
type Alternative struct {
	Token          int32
	LogProbability float32
}

// NewSession starts an empty sequence.
func (e *Engine) NewSession(options Options) (*Session, error) {
	engine, err := e.acquire()
	if err != nil {
		return nil, err
	}
	defer e.release()
	f := &functions{combine: options.Combine, weigh: options.Weigh}
	return newSession(C.cos_engine_model_count(engine), f, func(handle cgo.Handle, out **C.cos_session) error {
		return f.with(options, handle, func(cOptions *C.cos_session_options) error {
			if options.Combine != nil {
				C.cos_go_set_combine(cOptions, C.uintptr_t(handle))
			}
			if options.Weigh != nil {
				C.cos_go_set_weigh(cOptions, C.uintptr_t(handle))
			}
			return check(C.cos_session_new(engine, cOptions, out))
		})
	})
}

// Restore makes a session of the bytes of [Session.Save], in this or in another process. The engine must have the same
// models, and combine them in the same way. Its first step computes all tokens, as after a prompt. Bytes that were
// changed are an error.
func (e *Engine) Restore(saved []byte) (*Session, error) {
	engine, err := e.acquire()
	if err != nil {
		return nil, err
	}
	defer e.release()
	models := C.cos_engine_model_count(engine)
	return newSession(models, new(functions), func(_ cgo.Handle, out **C.cos_session) error {
		bytes := unsafe.Pointer(unsafe.SliceData(saved))
		return check(C.cos_session_restore(engine, bytes, C.size_t(len(saved)), out))
	})
}

// newSession owns a session that a function makes, and the handle of its functions.
func newSession(models C.size_t, f *functions, create func(cgo.Handle, **C.cos_session) error) (*Session, error) {
	handle := cgo.NewHandle(f)
	var session *C.cos_session
	if err := create(handle, &session); err != nil {
		handle.Delete()
		return nil, err
	}
	s := &Session{functions: f, callbacks: handle, models: int(models)}
	s.own(session, func(session *C.cos_session) {
		C.cos_free(session)
		handle.Delete()
	})
	return s, nil
}

// with calls a function with options in C. If it succeeds, the constraint function of the options is that of the
// session.
func (f *functions) with(options Options, handle cgo.Handle, call func(*C.cos_session_options) error) error {
	var pinner runtime.Pinner
	defer pinner.Unpin()
	cOptions := options.c(&pinner)
	constrain := f.constrain
	if f.constrain = options.Constrain; f.constrain != nil {
		C.cos_go_set_constrain(&cOptions, C.uintptr_t(handle))
	}
	if err := call(&cOptions); err != nil {
		f.constrain = constrain
		return err
	}
	f.options = Options{}
	if f.constrain != nil {
		f.options = options.clone()
	}
	return nil
}

// Close frees the session. It cancels a running step, which returns [ErrClosed], and does not wait for it. It never
// fails.
func (s *Session) Close() error {
	if session, err := s.acquire(); err == nil {
		s.close()
		_ = check(C.cos_cancel(session)) // fails only for a poisoned session, in which no step runs
		s.release()
	}
	return nil
}

// Prompt appends tokens to the sequence: the first prompt, or the next turn of a chat. A finished sequence goes on. The
// next step runs the models over the tokens. On an error, nothing is appended.
func (s *Session) Prompt(tokens []int32) error {
	session, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end()
	return check(C.cos_prompt(session, cTokens(tokens), C.size_t(len(tokens))))
}

// SetScope lets the session share computed tokens with sessions of the same scope only, such as those of one tenant. It
// is called before the first prompt. The empty scope is none.
func (s *Session) SetScope(scope string) error {
	session, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end()
	text, err := cString(scope)
	if err != nil {
		return err
	}
	defer C.free(unsafe.Pointer(text))
	return check(C.cos_session_set_scope(session, text))
}

// Fork copies the session in its present state, with another seed. It costs no pass, and both share what was computed.
// A session with a [CombineFunc] or a [WeighFunc] cannot be forked ([ErrUnsupported]), because both would use it at the
// same time.
func (s *Session) Fork(seed uint64) (*Session, error) {
	session, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer s.end()
	if s.functions.combine != nil {
		return nil, &Error{Code: ErrUnsupported, Message: "a session with a combine function has no fork"}
	}
	if s.functions.weigh != nil {
		return nil, &Error{Code: ErrUnsupported, Message: "a session with a weights function has no fork"}
	}
	f := new(functions)
	fork, err := newSession(C.size_t(s.models), f, func(_ cgo.Handle, out **C.cos_session) error {
		return check(C.cos_session_fork(session, C.uint64_t(seed), out))
	})
	if err != nil || s.functions.constrain == nil {
		return fork, err
	}
	options := s.functions.options // its own function, whose error then reaches it
	options.Seed = seed
	if err := fork.SetOptions(options); err != nil {
		fork.Close()
		return nil, err
	}
	return fork, nil
}

// SetOptions decodes by other options from the next token on: what is decoded may change, and how may not. So Strategy,
// Targets, Seed, ProposalLengths, Routes and Priority must be the old ones (the seed of a fork is its own). Weights,
// Combine and Weigh are not read. All other members count. A text that MaxTokens or a constraint has ended goes on if
// the new options allow that. On an error, nothing changes.
func (s *Session) SetOptions(options Options) error {
	session, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end()
	return s.functions.with(options, s.callbacks, func(cOptions *C.cos_session_options) error {
		return check(C.cos_session_set_options(session, cOptions))
	})
}

// Save returns the session as bytes: its tokens, options and random numbers. [Engine.Restore] makes a session of them.
// They hold the prompt and the text. A session with a function of the caller cannot be saved ([ErrUnsupported]).
func (s *Session) Save() ([]byte, error) {
	session, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer s.end()
	return fill(1<<14, func(bytes *byte, capacity C.size_t, size *C.size_t) error {
		return check(C.cos_session_save(session, unsafe.Pointer(bytes), capacity, size))
	})
}

// Rewind forgets all tokens from index length on, those of prompts too. The sequence goes on, also if it had finished.
func (s *Session) Rewind(length int) error {
	session, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end()
	return check(C.cos_session_rewind(session, C.size_t(length)))
}

// SetWeights changes the weights from the next token on, for "weighted" and "logits". On an error, nothing changes.
func (s *Session) SetWeights(weights []float32) error {
	session, err := s.begin()
	if err != nil {
		return err
	}
	defer s.end()
	return check(C.cos_session_set_weights(session, (*C.float)(unsafe.SliceData(weights)), C.size_t(len(weights))))
}

// Step advances the sequence by one round of collaborative decoding. It commits at least one token, unless the sequence
// is finished: then it commits none, and Finish has the reason again.
//
// If the context ends, the running pass stops and Step returns ctx.Err(). No token is lost: tokens that were committed
// by then are returned without an error, and the next step goes on behind the last committed token.
func (s *Session) Step(ctx context.Context) (Step, error) {
	return s.run(ctx, func(session *C.cos_session) *C.cos_error { return C.cos_step(session, &s.result) })
}

// Score appends tokens as [Session.Prompt] does, and returns them with their log-probabilities under the combined
// distribution: of a prompt, or of an answer that is to be judged. Options say which log-probabilities there are;
// controls have no effect here. The first token of a sequence has NaN, and no alternatives.
//
// It takes as long as a step with such a prompt. If the context ends, the running pass stops and Score returns
// ctx.Err(). After [Session.Cancel], it has [FinishCancelled] and no tokens. In both cases, as on every other error,
// nothing is appended.
func (s *Session) Score(ctx context.Context, tokens []int32) (Step, error) {
	return s.run(ctx, func(session *C.cos_session) *C.cos_error {
		return C.cos_session_score(session, cTokens(tokens), C.size_t(len(tokens)), &s.result)
	})
}

// run calls a function that writes the result and may be cancelled.
func (s *Session) run(ctx context.Context, call func(*C.cos_session) *C.cos_error) (Step, error) {
	session, err := s.begin()
	if err != nil {
		return Step{}, err
	}
	defer s.end()
	if err := ctx.Err(); err != nil {
		return Step{}, err
	}
	if ctx.Done() != nil {
		defer context.AfterFunc(ctx, s.interrupt)()
	}
	for {
		s.result.struct_size = C.sizeof_cos_step_result
		s.functions.failure = nil
		if err := check(call(session)); err != nil {
			return Step{}, s.functions.explain(err)
		}
		if Finish(s.result.finish) != FinishCancelled {
			return s.step(), nil
		}
		cancelled := s.cancelled.Swap(false)
		switch {
		case s.closed():
			return Step{}, ErrClosed
		case ctx.Err() != nil:
			return Step{}, ctx.Err()
		case cancelled:
			return Step{Finish: FinishCancelled}, nil
		}
		// The context of an earlier step ended when that step had just finished, so the library cancelled this step.
	}
}

// step copies the result, which the library may overwrite in the next call.
func (s *Session) step() Step { return readStep(&s.result, s.models) }

// readStep copies a result. It does not read the pointers of empty arrays: they need not be addresses, and Go stops the
// program if it finds such a pointer on a stack.
func readStep(result *C.cos_step_result, models int) Step {
	step := Step{Finish: Finish(result.finish)}
	if count := result.tokens_count; count > 0 {
		step.Tokens = slices.Clone(unsafe.Slice((*int32)(result.tokens), count))
		if values := result.log_probabilities; values != nil {
			step.LogProbabilities = slices.Clone(unsafe.Slice((*float32)(values), count))
		}
		if result.top_tokens != nil {
			step.Alternatives = alternatives(result)
		}
		if values := result.model_log_probabilities; values != nil {
			all := slices.Clone(unsafe.Slice((*float32)(values), int(count)*models))
			step.ModelLogProbabilities = slices.Collect(slices.Chunk(all, models))
		}
		if result.origins != nil {
			step.Origins = make([]Origin, count)
			for i, origin := range unsafe.Slice(result.origins, count) {
				step.Origins[i] = Origin{OriginKind(origin.kind), int(origin.model)}
			}
		}
	}
	return step
}

func alternatives(result *C.cos_step_result) [][]Alternative {
	rows, columns := int(result.tokens_count), int(result.top_count)
	tokens := unsafe.Slice((*int32)(result.top_tokens), rows*columns)
	values := unsafe.Slice((*float32)(result.top_log_probabilities), rows*columns)
	alternatives := make([][]Alternative, rows)
	for i, token := range tokens {
		if row := i / columns; token >= 0 { // -1 where fewer tokens are possible
			alternatives[row] = append(alternatives[row], Alternative{token, values[i]})
		}
	}
	return alternatives
}

// Steps is a sequence of steps until the sequence is finished. The last step has the reason. If [Session.Step] returns
// an error, such as that of an ended context, the error comes last and without tokens.
func (s *Session) Steps(ctx context.Context) iter.Seq2[Step, error] {
	return func(yield func(Step, error) bool) {
		for {
			step, err := s.Step(ctx)
			if !yield(step, err) || err != nil || step.Finish != FinishNone {
				return
			}
		}
	}
}

// Describe returns how the session decodes now, and why, as JSON: for logs, bug reports, and a look at what
// [StrategyAuto] does. cos.h documents the members at cos_session_describe.
func (s *Session) Describe() (string, error) {
	session, err := s.begin()
	if err != nil {
		return "", err
	}
	defer s.end()
	var text *C.char
	if err := check(C.cos_session_describe(session, &text)); err != nil {
		return "", err
	}
	return C.GoString(text), nil
}

// Cancel stops the running step, or the next one if none is running. The step ends early with [FinishCancelled], and
// all committed tokens stay. It may be called at any time, and never waits for a pass.
func (s *Session) Cancel() error {
	session, err := s.acquire()
	if err != nil {
		return err
	}
	defer s.release()
	s.cancelled.Store(true)
	return check(C.cos_cancel(session))
}

// interrupt stops the running step because its context has ended. It may run late: in the next step, or after Close.
func (s *Session) interrupt() {
	if session, err := s.acquire(); err == nil {
		_ = check(C.cos_cancel(session)) // as in Close
		s.release()
	}
}
