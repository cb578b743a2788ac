// Options of a session.

package cos

// #include "cos.h"
import "C"

import (
	"fmt"
	"maps"
	"runtime"
	"slices"
	"unsafe"
)

// Strategy says which models run when. It does not change the distribution of the tokens.
type Strategy int32

const (
	// The library chooses what is expected to be fastest.
	StrategyAuto Strategy = C.COS_STRATEGY_AUTO
	// Every model scores every position, and nobody drafts: the baseline.
	StrategyStandard Strategy = C.COS_STRATEGY_STANDARD
	// One model drafts, and all others verify.
	StrategySpeculative Strategy = C.COS_STRATEGY_SPECULATIVE
	// Collaborative decoding via speculation: the models take turns as the proposer.
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

// Targets is the distribution that positions are verified against. It does not change the distribution of the tokens.
type Targets int32

const (
	// Routed under StrategyAuto where it applies, otherwise combined.
	TargetsAuto Targets = C.COS_TARGETS_AUTO
	// The combined distribution, which needs every model with a weight other than 0.
	TargetsCombined Targets = C.COS_TARGETS_COMBINED
	// One model, drawn by the weights, so a position needs only that model. For "weighted" with a temperature above 0.
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

// Routes says whose numbers draw routed targets. It does not change the distribution of the tokens.
type Routes int32

const (
	// As "routes" in the configuration says; without it, shared under StrategyAuto, otherwise own.
	RoutesAuto Routes = C.COS_ROUTES_AUTO
	// Those of the session alone.
	RoutesOwn Routes = C.COS_ROUTES_OWN
	// Those of passes, which their sessions have in common: one pass serves more of them. Each session follows its
	// distribution exactly, but they depend on each other, and a seed does not repeat a text. Two sessions of one
	// scope that began with the same prompt never share, nor do forks.
	RoutesShared Routes = C.COS_ROUTES_SHARED
)

// String is the name of the routes.
func (r Routes) String() string {
	switch r {
	case RoutesAuto:
		return "auto"
	case RoutesOwn:
		return "own"
	case RoutesShared:
		return "shared"
	}
	return fmt.Sprintf("Routes(%d)", int32(r))
}

// Priority says how urgent the tokens are. It does not change the distribution of the tokens.
type Priority int32

const (
	// Somebody waits for them.
	PriorityInteractive Priority = C.COS_PRIORITY_INTERACTIVE
	// Only the end of the text matters. All batch sessions together make passes of interactive sessions at most twice
	// as long. If memory is short, a batch session counts as started after the next thousand others.
	PriorityBatch Priority = C.COS_PRIORITY_BATCH
)

// String is the name of the priority.
func (p Priority) String() string {
	switch p {
	case PriorityInteractive:
		return "interactive"
	case PriorityBatch:
		return "batch"
	}
	return fmt.Sprintf("Priority(%d)", int32(p))
}

// Options says how a session decodes. The zero value is greedy, with an automatic strategy. Slices are copied.
type Options struct {
	Strategy Strategy
	// Scores are divided by it. 0 is greedy: the token with the highest score, and the lowest such token among equal
	// scores. With "weighted", a small temperature (0.01 and less) is not greedy: the weights draw one of the models'
	// own best tokens. For the best token of the mixture, set 0, or set "greedy_below" in the configuration.
	Temperature float32
	// Sample among this many most probable tokens of each distribution; 0 is off.
	TopK int32
	// Sample among the fewest most probable tokens that together have this probability; 0 or 1 is off.
	TopP float32
	// Sample among the tokens that have at least this share of the highest probability; 0 is off.
	MinP float32
	// Seed of the random numbers. The tokens are the same for the same seed, strategy (other than auto) and number of
	// threads. They may be others behind a step that failed, or that was cancelled while it ran.
	Seed uint64
	// Most tokens to generate after each prompt; 0: until the context is full.
	MaxTokens uint32
	// How many tokens each model proposes in a row, 0 to 64, in the order of the configuration. Nil: the library
	// chooses. With StrategySpeculative, the cheapest model with a number above 0 drafts.
	ProposalLengths []int32
	// Weights in place of the engine's, for "weighted" and "logits". Nil: the engine's weights.
	Weights []float32
	// Tokens that end the sequence. Nil: the end-of-sequence tokens that came with the models. Empty but not nil: none.
	StopTokens []int32
	Targets    Targets
	Routes     Routes
	Priority   Priority
	// Whether steps have the log-probability of each token. These need the combined distribution, so TargetsAuto then
	// means combined, and TargetsRouted is an error. They are those of the distribution that tokens are drawn from. For
	// a greedy session, they are those at temperature 1 without filters.
	LogProbabilities bool
	// A combine function in place of the engine's combination, or nil.
	Combine CombineFunc

	// Scores of tokens of the prompt or the text: positive ones are divided by it, and all others multiplied. 0 or 1 is
	// off. Scores change in this order: bias, this penalty, the presence and the frequency penalty, bans and the
	// constraint, then temperature and filters. With "weighted", those of each model change before they are mixed.
	RepetitionPenalty float32
	// Subtracted from the scores of tokens behind the last prompt; 0 is off.
	PresencePenalty float32
	// Subtracted from the score of a token for each time that it is behind the last prompt; 0 is off.
	FrequencyPenalty float32
	// No stop token comes before so many tokens behind the last prompt; 0 is off.
	MinTokens uint32
	// What is added to the scores of tokens. Minus infinity bans a token.
	LogitBias map[int32]float32
	// Runs of tokens that must not come behind the last prompt, each of one token or more. A run that the end of the
	// prompt has begun is not completed either.
	BannedTokens [][]int32
	// No run of so many tokens comes twice in prompt and text; 0 is off.
	NoRepeatNgram int32
	// What the text must be. It excludes Constrain.
	Constraint Constraint
	// A function that says which tokens may come next, or nil.
	Constrain ConstrainFunc
	// How many of the most probable tokens steps have for each token, 0 to 20. It turns LogProbabilities on.
	TopLogProbabilities int32
	// Whether steps have the log-probabilities of tokens under each model. It turns LogProbabilities on.
	ModelLogProbabilities bool
	// Whether all log-probabilities are those before bias, penalties, bans and constraint, at temperature 1 and without
	// filters.
	LogProbabilitiesBefore bool

	// Locally typical sampling: keep the fewest tokens whose information is nearest to the entropy, and that together
	// have this probability; 0 or 1 is off. Judged behind penalties and the constraint, at temperature 1, and before
	// the filters. A greedy session does without.
	TypicalP float32
	// Exclude top choices: with this probability for each position, all tokens of at least the probability XTCThreshold
	// are dropped but for the least probable one of them. Judged as TypicalP, behind it; 0 is off.
	XTCProbability float32
	// See XTCProbability.
	XTCThreshold float32
	// DRY: a token that would go on with a run of n tokens that came before in prompt or text loses
	// DRYMultiplier * DRYBase^(n - DRYAllowedLength), if n is at least DRYAllowedLength; 0 is off.
	DRYMultiplier float32
	// At least 1, such as 1.75.
	DRYBase float32
	// At least 1, such as 2.
	DRYAllowedLength int32
	// Tokens that no run goes across, such as those of line ends.
	DRYBreakers []int32
	// A function that gives the models the weights of each position, for "weighted" and "logits", or nil. Targets are
	// then combined.
	Weigh WeighFunc
}

// c returns the options in C, except the functions. The pinner pins the arrays that they point to.
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
	options.routes = C.int32_t(o.Routes)
	options.priority = C.int32_t(o.Priority)
	options.log_probabilities = number(o.LogProbabilities)
	options.top_log_probabilities = C.int32_t(o.TopLogProbabilities)
	options.model_log_probabilities = number(o.ModelLogProbabilities)
	options.log_probabilities_before = number(o.LogProbabilitiesBefore)
	o.setControls(&options, pinner)
	return options
}

// setControls sets what changes the scores of tokens.
func (o *Options) setControls(options *C.cos_session_options, pinner *runtime.Pinner) {
	options.repetition_penalty = C.float(o.RepetitionPenalty)
	options.presence_penalty = C.float(o.PresencePenalty)
	options.frequency_penalty = C.float(o.FrequencyPenalty)
	options.min_tokens = C.uint32_t(o.MinTokens)
	tokens, values := make([]int32, 0, len(o.LogitBias)), make([]float32, 0, len(o.LogitBias))
	for token, value := range o.LogitBias {
		tokens, values = append(tokens, token), append(values, value)
	}
	options.bias_tokens = (*C.int32_t)(pin(pinner, tokens))
	options.bias_values = (*C.float)(pin(pinner, values))
	options.bias_count = C.size_t(len(tokens))
	var banned []int32
	lengths := make([]C.size_t, len(o.BannedTokens))
	for i, run := range o.BannedTokens {
		banned, lengths[i] = append(banned, run...), C.size_t(len(run))
	}
	options.banned_tokens = (*C.int32_t)(pin(pinner, banned))
	options.banned_lengths = (*C.size_t)(pin(pinner, lengths))
	options.banned_count = C.size_t(len(lengths))
	options.no_repeat_ngram = C.int32_t(o.NoRepeatNgram)
	options.typical_p = C.float(o.TypicalP)
	options.xtc_probability = C.float(o.XTCProbability)
	options.xtc_threshold = C.float(o.XTCThreshold)
	options.dry_multiplier = C.float(o.DRYMultiplier)
	options.dry_base = C.float(o.DRYBase)
	options.dry_allowed_length = C.int32_t(o.DRYAllowedLength)
	options.dry_breakers = (*C.int32_t)(pin(pinner, o.DRYBreakers))
	options.dry_breakers_count = C.size_t(len(o.DRYBreakers))
	options.constraint_kind = C.COS_CONSTRAINT_NONE
	if o.Constraint.kind != 0 {
		options.constraint_kind = C.int32_t(o.Constraint.kind)
		options.constraint = (*C.char)(pin(pinner, []byte(o.Constraint.source)))
		options.constraint_length = C.size_t(len(o.Constraint.source))
	}
}

// clone returns the options with copies of all slices and maps, which the caller may change.
func (o *Options) clone() Options {
	c := *o
	c.ProposalLengths, c.Weights = slices.Clone(o.ProposalLengths), slices.Clone(o.Weights)
	c.StopTokens, c.LogitBias = slices.Clone(o.StopTokens), maps.Clone(o.LogitBias)
	c.BannedTokens, c.DRYBreakers = slices.Clone(o.BannedTokens), slices.Clone(o.DRYBreakers)
	for i, run := range c.BannedTokens {
		c.BannedTokens[i] = slices.Clone(run)
	}
	return c
}

// pin pins a slice and returns a pointer to its elements, which memory that is passed to C may hold. The pointer is nil
// for nil, but not for an empty slice.
func pin[T any](pinner *runtime.Pinner, slice []T) unsafe.Pointer {
	if slice == nil {
		return nil
	}
	elements := unsafe.SliceData(slice)
	pinner.Pin(elements)
	return unsafe.Pointer(elements)
}
