// Requests of OpenAI's protocol: from the body that a client sends to the answer.

package cos

// #include <stdlib.h>
// #include "cos.h"
import "C"

import (
	"context"
	"fmt"
	"slices"
	"sync/atomic"
	"unsafe"
)

// Endpoint is what the body of a request is.
type Endpoint int32

const (
	// The body of POST /v1/completions.
	EndpointCompletion Endpoint = C.COS_REQUEST_COMPLETION
	// The body of POST /v1/chat/completions.
	EndpointChat Endpoint = C.COS_REQUEST_CHAT
)

// String is the name of the endpoint.
func (e Endpoint) String() string {
	switch e {
	case EndpointCompletion:
		return "completion"
	case EndpointChat:
		return "chat"
	}
	return fmt.Sprintf("Endpoint(%d)", int32(e))
}

// RequestOptions are what a server knows of a request, and how much it allows.
type RequestOptions struct {
	Endpoint Endpoint
	// The name of the model. A body with another one is [ErrNotFound]. Empty: any name is fine, and none too.
	Model string
	// Most choices of all prompts together; 0: 128.
	MaxChoices uint32
	// Most tokens of a prompt; 0: as many as the context has.
	MaxPromptTokens uint32
	// Most tokens of a choice; 0: as the body says.
	MaxTokens uint32
}

// RequestState says whether a request goes on.
type RequestState int32

const (
	// The request goes on.
	RequestOpen RequestState = C.COS_REQUEST_OPEN
	// All choices have ended.
	RequestDone RequestState = C.COS_REQUEST_DONE
	// Request.Cancel ended the request.
	RequestCancelled RequestState = C.COS_REQUEST_CANCELLED
)

// String is the name of the state.
func (s RequestState) String() string {
	switch s {
	case RequestOpen:
		return "open"
	case RequestDone:
		return "done"
	case RequestCancelled:
		return "cancelled"
	}
	return fmt.Sprintf("RequestState(%d)", int32(s))
}

// RequestStatus is how a request stands.
type RequestStatus struct {
	State            RequestState
	Streams          bool   // whether the body asks for a stream
	PromptTokens     uint64 // of all prompts
	CompletionTokens uint64 // of all choices
}

// ChoiceNews is what is to be told of a choice: what the last step brought if the body asks for a stream, and otherwise
// all of it. Without news, it is zero. Tokens include those of a stop string or a stop token. The body says which
// log-probabilities there are.
type ChoiceNews struct {
	Step
	Text string // ends before a stop string, and may lag behind the tokens
}

// Request is a request of OpenAI's protocol: the sequences and texts that a body asks for, and the answer. One
// goroutine at a time may use it, except for Choices, Cancel and Close.
type Request struct {
	exclusive[*C.cos_request]
	status  C.cos_request_status
	news    C.cos_choice_news
	models  int
	choices int

	isDriven atomic.Bool // whether a Driver has it
}

// NewRequest checks a body, which is JSON, and starts what it asks for. Nothing is decoded yet, but all faults of a
// body are found. docs/requests.md lists the members of a body. Status and JSON of an [*Error] are the answer to the
// client.
func (e *Engine) NewRequest(body []byte, options RequestOptions) (*Request, error) {
	engine, err := e.acquire()
	if err != nil {
		return nil, err
	}
	defer e.release()
	var given C.cos_request_options
	given.struct_size = C.sizeof_cos_request_options
	given.endpoint = C.int32_t(options.Endpoint)
	given.max_choices = C.uint32_t(options.MaxChoices)
	given.max_prompt_tokens = C.uint32_t(options.MaxPromptTokens)
	given.max_tokens = C.uint32_t(options.MaxTokens)
	if options.Model != "" {
		if given.model, err = cString(options.Model); err != nil {
			return nil, err
		}
		defer C.free(unsafe.Pointer(given.model))
	}
	var request *C.cos_request
	text := (*C.char)(unsafe.Pointer(unsafe.SliceData(body)))
	if err := check(C.cos_request_new(engine, &given, text, C.size_t(len(body)), &request)); err != nil {
		return nil, err
	}
	r := &Request{models: int(C.cos_engine_model_count(engine)), choices: int(C.cos_request_choices(request))}
	r.own(request, func(request *C.cos_request) { C.cos_request_free(request) })
	return r, nil
}

// Close frees the request. It cancels a running step, which returns [ErrClosed], and does not wait for it. It never
// fails.
func (r *Request) Close() error {
	if request, err := r.acquire(); err == nil {
		r.close()
		_ = check(C.cos_request_cancel(request)) // fails only for a poisoned request, in which no step runs
		r.release()
	}
	return nil
}

// Choices is the number of choices: prompts times "n". Each decodes in a sequence of its own, so a server may count
// them against what it decodes at once. It may be called at any time.
func (r *Request) Choices() int { return r.choices }

// Status is how the request stands, such as before its first step. It returns the error that has ended the request.
func (r *Request) Status() (RequestStatus, error) {
	request, err := r.begin()
	if err != nil {
		return RequestStatus{}, err
	}
	defer r.end()
	r.status.struct_size = C.sizeof_cos_request_status
	if err := check(C.cos_request_get_status(request, &r.status)); err != nil {
		return RequestStatus{}, err
	}
	return requestStatus(&r.status), nil
}

// Step decodes until a choice has news if the body asks for a stream, and otherwise to the end. All choices of the
// request share passes, and those of other goroutines too. An error ends the request, and each later step returns it
// again.
//
// If the context ends, so does the request: the running pass stops, and Step returns ctx.Err(). Later steps have
// [RequestCancelled].
func (r *Request) Step(ctx context.Context) (RequestStatus, error) {
	request, err := r.begin()
	if err != nil {
		return RequestStatus{}, err
	}
	defer r.end()
	if ctx.Err() != nil {
		_ = check(C.cos_request_cancel(request)) // as in Close
	} else if ctx.Done() != nil {
		defer context.AfterFunc(ctx, func() { _ = r.Cancel() })()
	}
	r.status.struct_size = C.sizeof_cos_request_status
	if err := check(C.cos_request_step(request, &r.status)); err != nil {
		return RequestStatus{}, err
	}
	status := requestStatus(&r.status)
	if status.State == RequestCancelled {
		switch {
		case r.closed():
			return RequestStatus{}, ErrClosed
		case ctx.Err() != nil:
			return RequestStatus{}, ctx.Err()
		}
	}
	return status, nil
}

func requestStatus(status *C.cos_request_status) RequestStatus {
	return RequestStatus{
		State:            RequestState(status.state),
		Streams:          status.streams != 0,
		PromptTokens:     uint64(status.prompt_tokens),
		CompletionTokens: uint64(status.completion_tokens),
	}
}

// Answer returns what a server sends for the last step. If the body asks for a stream, these are complete server-sent
// events, the last of which is "data: [DONE]", or nothing while text is held back. Otherwise it is the body of the
// answer once the request is done, and nothing before. If a step fails, the JSON of its [*Error] is the answer.
func (r *Request) Answer() ([]byte, error) {
	request, err := r.begin()
	if err != nil {
		return nil, err
	}
	defer r.end()
	var text *C.char
	var bytes C.size_t
	if err := check(C.cos_request_answer(request, &text, &bytes)); err != nil || bytes == 0 {
		return nil, err
	}
	return slices.Clone(unsafe.Slice((*byte)(unsafe.Pointer(text)), bytes)), nil
}

// Choice returns the news of a choice, for servers of another protocol. Choice i is of prompt i / "n".
func (r *Request) Choice(index int) (ChoiceNews, error) {
	request, err := r.begin()
	if err != nil {
		return ChoiceNews{}, err
	}
	defer r.end()
	r.news.struct_size = C.sizeof_cos_choice_news
	if err := check(C.cos_request_choice(request, C.size_t(index), &r.news)); err != nil {
		return ChoiceNews{}, err
	}
	news := ChoiceNews{Step: Step{Finish: Finish(r.news.finish)}}
	if r.news.tokens_count > 0 {
		news.Step = readStep(&C.cos_step_result{
			tokens:                  r.news.tokens,
			tokens_count:            r.news.tokens_count,
			finish:                  r.news.finish,
			log_probabilities:       r.news.log_probabilities,
			top_tokens:              r.news.top_tokens,
			top_log_probabilities:   r.news.top_log_probabilities,
			top_count:               r.news.top_count,
			model_log_probabilities: r.news.model_log_probabilities,
			origins:                 r.news.origins,
		}, r.models)
	}
	if bytes := r.news.text_bytes; bytes > 0 {
		news.Text = string(unsafe.Slice((*byte)(unsafe.Pointer(r.news.text)), bytes))
	}
	return news, nil
}

// Cancel ends the request: the running step ends early, or else the next one ends at once, with [RequestCancelled]. It
// may be called at any time, and never waits for a pass.
func (r *Request) Cancel() error {
	request, err := r.acquire()
	if err != nil {
		return err
	}
	defer r.release()
	return check(C.cos_request_cancel(request))
}

// RequestNews is what [StepRequests] tells of a request.
type RequestNews struct {
	RequestStatus
	Err error // an error of this request alone, such as those of [Request.Step]
}

// StepRequests advances many requests by one pass of each model, on the calling goroutine, as [StepMany] does with
// sessions. It returns how each stands, in their order. Call it with all requests that are open, again and again. One
// without news is in the middle of a round, and its Answer is empty.
//
// A request has an error of its own if it is nil ([ErrInvalidArgument]), if another goroutine is using it or it was
// given twice ([ErrBusy]), or if it is closed ([ErrClosed]). A call is short, so it takes no context: [Request.Cancel]
// ends a request.
func StepRequests(requests []*Request) []RequestNews {
	news := make([]RequestNews, len(requests))
	indices := make([]int, 0, len(requests))
	handles := make([]*C.cos_request, 0, len(requests))
	for index, request := range requests {
		if request == nil {
			message := fmt.Sprintf("requests[%d] is nil", index)
			news[index].Err = &Error{Code: ErrInvalidArgument, Message: message}
			continue
		}
		handle, err := request.begin()
		if err != nil {
			news[index].Err = err
			continue
		}
		defer request.end()
		indices, handles = append(indices, index), append(handles, handle)
	}
	if len(handles) == 0 {
		return news
	}
	results := make([]C.cos_request_status, len(handles))
	for i := range results {
		results[i].struct_size = C.sizeof_cos_request_status
	}
	errs := make([]*C.cos_error, len(handles))
	failure := check(C.cos_request_step_many(&handles[0], C.size_t(len(handles)), &results[0], &errs[0]))
	for i, index := range indices {
		switch err := check(errs[i]); {
		case err != nil:
			news[index].Err = err
		case failure != nil:
			news[index].Err = failure
		case RequestState(results[i].state) == RequestCancelled && requests[index].closed():
			news[index].Err = ErrClosed
		default:
			news[index].RequestStatus = requestStatus(&results[i])
		}
	}
	return news
}
