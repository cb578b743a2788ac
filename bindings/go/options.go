package cos

// #include "cos.h"
import "C"

import (
	"fmt"
	"runtime"
	"unsafe"
)

// Strategy is how models share the work. All strategies follow the same distribution.
type Strategy int32

const (
	// Chosen by the library: what follows the same distribution at the least cost.
	StrategyAuto Strategy = C.COS_STRATEGY_AUTO
	// Every model scores every position, nobody proposes: the baseline.
	StrategyStandard Strategy = C.COS_STRATEGY_STANDARD
	// One model drafts, all others score.
	StrategySpeculative Strategy = C.COS_STRATEGY_SPECULATIVE
	// Collaborative decoding via speculation: the models take turns in proposing.
	StrategyCoS Strategy = C.COS_STRATEGY_COS
)

// String is the name of the strategy.
func (s Strategy) String() string {
	switch s {
	case StrategyAuto:
		return "auto"
	case StrategyStandard:
		return "standard"
	case StrategySpeculative:
		return "speculative"
	case StrategyCoS:
		return "cos"
	}
	return fmt.Sprintf("Strategy(%d)", int32(s))
}

// Targets is what positions are verified against. It does not change the distribution.
type Targets int32

const (
	// Routed under StrategyAuto where it applies, combined otherwise.
	TargetsAuto Targets = C.COS_TARGETS_AUTO
	// Every position is verified against the combined distribution, which needs all models.
	TargetsCombined Targets = C.COS_TARGETS_COMBINED
	// Every position is verified against one model that is drawn from the weights. For "weighted" with a temperature
	// above 0.
	TargetsRouted Targets = C.COS_TARGETS_ROUTED
)

// String is the name of the targets.
func (t Targets) String() string {
	switch t {
	case TargetsAuto:
		return "auto"
	case TargetsCombined:
		return "combined"
	case TargetsRouted:
		return "routed"
	}
	return fmt.Sprintf("Targets(%d)", int32(t))
}

// Options says how a session decodes. The zero value is greedy and automatic. Slices are copied.
type Options struct {
	Strategy Strategy
	// 0 is greedy: the token of the highest score, among equal ones the lowest. Otherwise scores are divided by it.
	// With "weighted", a small one (0.01 and less) is not greedy: one of the models' own best tokens is drawn. Set 0 for
	// the best token of the mixture, or "greedy_below" in the configuration of the engine.
	Temperature float32
	// Sample among this many best tokens of each distribution; 0 is off.
	TopK int32
	// Sample among the fewest best tokens with this share of the probability; 0 or 1 is off.
	TopP float32
	// Sample among tokens with at least this share of the best one's probability; 0 is off.
	MinP float32
	// Seed of the random numbers. The same seed, strategy (not auto) and number of threads give the same tokens.
	Seed uint64
	// Most tokens to generate after each prompt; 0 is until the context is full.
	MaxTokens uint32
	// Tokens that each model proposes in a row, in the engine's order, 0 to 64; nil: chosen by the library. With
	// StrategySpeculative the cheapest model with a length above 0 drafts.
	ProposalLengths []int32
	// Weights in place of the engine's, for "weighted" and "logits"; nil: the engine's.
	Weights []float32
	// Tokens that end the sequence; nil: the end-of-sequence tokens that came with the models. Empty but not nil: none.
	StopTokens []int32
	Targets    Targets
	// Ask for the log-probability of each token. That takes the combined distribution, so TargetsAuto then means
	// combined, and TargetsRouted is an error.
	LogProbabilities bool
	// A combination in place of the engine's, or nil.
	Combine CombineFunc
}

// c gives the options in C, except Combine. What they point to is pinned until the pinner lets go.
func (o *Options) c(pinner *runtime.Pinner) C.cos_session_options {
	var options C.cos_session_options
	options.struct_size = C.sizeof_cos_session_options
	options.strategy = C.int32_t(o.Strategy)
	options.temperature = C.float(o.Temperature)
	options.top_k = C.int32_t(o.TopK)
	options.top_p = C.float(o.TopP)
	options.min_p = C.float(o.MinP)
	options.seed = C.uint64_t(o.Seed)
	options.max_tokens = C.uint32_t(o.MaxTokens)
	options.proposal_lengths = (*C.int32_t)(pin(pinner, o.ProposalLengths))
	options.proposal_lengths_count = C.size_t(len(o.ProposalLengths))
	options.weights = (*C.float)(pin(pinner, o.Weights))
	options.weights_count = C.size_t(len(o.Weights))
	options.stop_tokens = (*C.int32_t)(pin(pinner, o.StopTokens))
	options.stop_tokens_count = C.size_t(len(o.StopTokens))
	options.targets = C.int32_t(o.Targets)
	if o.LogProbabilities {
		options.log_probabilities = 1
	}
	return options
}

// pin gives a pointer to the elements, so that it may be inside memory that is passed to C: nil for nil, but not for an
// empty slice.
func pin[T any](pinner *runtime.Pinner, slice []T) unsafe.Pointer {
	if slice == nil {
		return nil
	}
	elements := unsafe.SliceData(slice)
	pinner.Pin(elements)
	return unsafe.Pointer(elements)
}
