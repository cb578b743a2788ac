// Weights functions: Go functions that give the models the weights of a position.

package cos

// #include "callbacks.h"
import "C"

import (
	"runtime/cgo"
	"unsafe"
)

// ModelSummary is what a model thinks of the next token, by the plain softmax of its logits.
type ModelSummary struct {
	// The probability of its best token. NaN for look-ups, and for models with the weight 0.
	Confidence float32
	// The entropy of its distribution in nats. NaN likewise.
	Entropy float32
	// Its best token. -1 likewise.
	Best int32
}

// WeighFunc gives the models the weights of one position. tokens are those before it, prompts included. weights holds
// those of the session, and the function may change them to such as [Options] takes. A model with the weight 0 in the
// session has not run, and must keep 0.
//
// Decoding is exact only if the weights depend on nothing but the arguments. [Session.Step] calls the function on its
// own goroutine for each position that is decided, possibly several times. It must not keep the slices, or change
// tokens and models. What a [CombineFunc] may do with its session, it may too, and errors and panics are those of one.
type WeighFunc func(tokens []int32, models []ModelSummary, weights []float32) error

//export cosGoWeigh
func cosGoWeigh(tokens *C.int32_t, count C.size_t, models *C.cos_model_summary, modelsCount C.size_t, weights *C.float,
	handle C.uintptr_t) C.int32_t {
	return cgo.Handle(handle).Value().(*functions).run(func(f *functions) error {
		f.summaries = f.summaries[:0]
		for _, of := range unsafe.Slice(models, modelsCount) {
			summary := ModelSummary{float32(of.confidence), float32(of.entropy), int32(of.best)}
			f.summaries = append(f.summaries, summary)
		}
		text := unsafe.Slice((*int32)(tokens), count)
		return f.weigh(text, f.summaries, unsafe.Slice((*float32)(weights), modelsCount))
	})
}
