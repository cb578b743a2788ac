// Many sessions that one goroutine drives.

package cos

// #include "cos.h"
import "C"

import (
	"fmt"
	"slices"
)

// News is what [StepMany] tells of a session. Without tokens, finish and error there is no news: the session is in the
// middle of a round, and the next call goes on there.
type News struct {
	Step
	Err error // an error of this session alone, such as those of [Session.Step]
}

// StepMany advances many sessions by one pass of each model, on the calling goroutine. It returns the news of each, in
// their order. Goroutines that call [Session.Step] at the same time share passes by themselves; StepMany is for
// programs where one goroutine drives all, and for thousands of sessions, since each goroutine inside a step occupies a
// thread.
//
// The sessions may belong to several engines. A session has an error of its own if it is nil or was given twice
// ([ErrInvalidArgument]), if another goroutine is using it ([ErrBusy]), or if it is closed ([ErrClosed]). A call is
// short, so it takes no context: [Session.Cancel] stops the round of a session.
func StepMany(sessions []*Session) []News {
	news := make([]News, len(sessions))
	indices := make([]int, 0, len(sessions))
	handles := make([]*C.cos_session, 0, len(sessions))
	for index, session := range sessions {
		handle, err := beginMany(sessions[:index], session)
		if err != nil {
			news[index].Err = err
			continue
		}
		defer session.end()
		session.functions.failure = nil
		indices, handles = append(indices, index), append(handles, handle)
	}
	if len(handles) == 0 {
		return news
	}
	results := make([]C.cos_step_result, len(handles))
	for i := range results {
		results[i].struct_size = C.sizeof_cos_step_result
	}
	errs := make([]*C.cos_error, len(handles))
	failure := check(C.cos_step_many(&handles[0], C.size_t(len(handles)), &results[0], &errs[0]))
	for i, index := range indices {
		session := sessions[index]
		session.result = results[i]
		if news[index].Err = session.functions.explain(check(errs[i])); news[index].Err == nil {
			news[index].Err = failure
		}
		if news[index].Err == nil {
			news[index] = session.news()
		}
	}
	return news
}

// beginMany begins a call with a session of StepMany.
func beginMany(before []*Session, session *Session) (*C.cos_session, error) {
	if session == nil {
		return nil, &Error{Code: ErrInvalidArgument, Message: fmt.Sprintf("sessions[%d] is nil", len(before))}
	}
	if slices.Contains(before, session) {
		message := fmt.Sprintf("sessions[%d] is the same as sessions[%d]", len(before), slices.Index(before, session))
		return nil, &Error{Code: ErrInvalidArgument, Message: message}
	}
	return session.begin()
}

// news are those of the result.
func (s *Session) news() News {
	if Finish(s.result.finish) != FinishCancelled {
		return News{Step: s.step()}
	}
	switch cancelled := s.cancelled.Swap(false); {
	case s.closed():
		return News{Err: ErrClosed}
	case cancelled:
		return News{Step: Step{Finish: FinishCancelled}}
	}
	// The context of an earlier step ended when that step had just finished; the next call goes on.
	return News{}
}
