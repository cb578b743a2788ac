// The best of several continuations.

package cos

import "context"

// Best is a text that [Session.BestOf] has chosen.
type Best struct {
	Tokens         []int32
	Finish         Finish
	LogProbability float64 // the mean log-probability of its tokens
}

// BestOf decodes count continuations of the session in common passes, and returns the one whose tokens have the highest
// mean log-probability. Its options need LogProbabilities, a Temperature above 0, and an end such as MaxTokens. The
// session stays as it is. If the context ends, BestOf returns ctx.Err() after the running pass.
func (s *Session) BestOf(ctx context.Context, count int, seed uint64) (Best, error) {
	if count < 1 {
		return Best{}, &Error{Code: ErrInvalidArgument, Message: "count is below 1; decode one continuation or more"}
	}
	texts := make([]Best, count)
	forks := make([]*Session, count)
	for i := range forks {
		fork, err := s.Fork(seed) // equal seeds give each fork numbers of its own
		if err != nil {
			return Best{}, err
		}
		defer fork.Close()
		forks[i] = fork
	}
	// The first fork computes the prompt, and the others find it.
	step, err := forks[0].Step(ctx)
	if err == nil {
		err = texts[0].add(step)
	}
	for err == nil {
		var open []*Session
		var indices []int
		for i, text := range texts {
			if text.Finish == FinishNone {
				open, indices = append(open, forks[i]), append(indices, i)
			}
		}
		if len(open) == 0 {
			break
		}
		if err = ctx.Err(); err != nil {
			break
		}
		for i, news := range StepMany(open) {
			if err == nil {
				err = news.Err
			}
			if err == nil {
				err = texts[indices[i]].add(news.Step)
			}
		}
	}
	if err != nil {
		return Best{}, err
	}
	var best *Best
	for i := range texts {
		texts[i].LogProbability /= float64(max(len(texts[i].Tokens), 1))
		if best == nil || texts[i].LogProbability > best.LogProbability {
			best = &texts[i]
		}
	}
	return *best, nil
}

// add appends a step to the text. Until it is whole, LogProbability is the sum.
func (b *Best) add(step Step) error {
	if len(step.LogProbabilities) < len(step.Tokens) {
		return &Error{Code: ErrInvalidArgument, Message: "LogProbabilities is off; set that option of the session"}
	}
	b.Tokens, b.Finish = append(b.Tokens, step.Tokens...), step.Finish
	for _, value := range step.LogProbabilities {
		b.LogProbability += float64(value)
	}
	return nil
}
