// Package cos decodes with several language models at once: weighted ensembles, contrastive decoding, products of
// experts, or any function of their logits. What it emits follows the combined distribution exactly, whatever strategy
// makes it fast. It is a thin layer over libcos; cos.h, of which this folder has a copy, is the manual.
//
//	engine, err := cos.Open("engine.json")                     // load the models, once
//	session, err := engine.NewSession(cos.Options{})           // a sequence: greedy and automatic
//	err = session.Prompt(tokens)
//	for step, err := range session.Steps(ctx) { ... }          // step.Tokens are new
//
// # Errors
//
// What the library refuses is an [*Error], which wraps its [Code]; errors.Is(err, cos.ErrContextFull) asks for one.
// A failed call changes nothing. Any use after Close is [ErrClosed].
//
// # Goroutines
//
// An [Engine] may be used by any number of goroutines at once. A [Session] and a [TextStream] are for one goroutine at a
// time, any of them; a second one at the same moment gets [ErrBusy]. [Session.Cancel], [Session.Stats] and Close may be
// called at any time. No goroutine is tied to a thread, but one that is inside a step occupies a thread meanwhile.
//
// # Closing
//
// Engines, sessions and streams hold memory that Go does not see, so they should be closed; what is forgotten is freed
// some time after it has become unreachable. Close may be called twice and does not wait: a step that runs is cancelled,
// and the memory is freed as the last call leaves. Sessions and streams outlive their engine.
package cos
