// Package cos decodes with several language models at once: weighted ensembles, contrastive decoding, products of
// experts, or any function of their logits. The tokens follow the combined distribution exactly, with every strategy.
// The package is a thin layer over libcos. cos.h is the manual, and this folder has a copy.
//
//	engine, err := cos.Open("engine.json")                     // load the models, once
//	session, err := engine.NewSession(cos.Options{})           // a sequence: greedy, with an automatic strategy
//	err = session.Prompt(tokens)
//	for step, err := range session.Steps(ctx) { ... }          // step.Tokens are the new tokens
//
// # Errors
//
// The library reports an [*Error], which wraps its [Code]. Test for a code with errors.Is(err, cos.ErrContextFull). A
// failed call changes nothing. Any use after Close returns [ErrClosed].
//
// # Goroutines
//
// Any number of goroutines may use an [Engine] at once. One goroutine at a time may use a [Session], a [TextStream] or
// a [Request], and it need not be the same one each time. If another goroutine is using it, a call returns [ErrBusy].
// [Session.Cancel], [Request.Cancel], [Session.Stats] and Close may be called at any time. A goroutine occupies a
// thread while it is inside a step.
//
// # Closing
//
// Close engines, sessions, streams and requests, because they hold memory that Go does not see. An object that is not
// closed is freed some time after it has become unreachable. Close may be called twice, and does not wait: it cancels a
// running step, and the last running call frees the memory. All others may be used after their engine is closed.
package cos
