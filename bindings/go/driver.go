// A goroutine that decodes requests in common passes.

package cos

import (
	"context"
	"slices"
	"sync"
)

// Driver decodes requests on a goroutine of its own, all of them in common passes. So passes wait for no goroutine of a
// server, and [StrategyAuto] plans for all requests together. Other goroutines take what is to be sent when they come
// to it. The zero Driver is ready for use.
type Driver struct {
	mu   sync.Mutex
	open []*DrivenRequest
	runs bool // whether the goroutine is there, which is so while requests are open
}

// DrivenRequest is a request that a [Driver] decodes. Close the request to end it before its time.
type DrivenRequest struct {
	request *Request
	news    chan struct{} // has an element if there is something to tell

	mu     sync.Mutex
	status RequestStatus
	text   []byte
	err    error
}

// Start begins to decode a request, of which only Cancel and Close may be called from now on.
func (d *Driver) Start(request *Request) *DrivenRequest {
	driven := &DrivenRequest{request: request, news: make(chan struct{}, 1)}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, driven)
	if !d.runs {
		d.runs = true
		go d.run()
	}
	return driven
}

func (d *Driver) run() {
	for {
		d.mu.Lock()
		d.open = slices.DeleteFunc(d.open, (*DrivenRequest).hasEnded)
		driven := slices.Clone(d.open)
		d.runs = len(driven) > 0
		d.mu.Unlock()
		if len(driven) == 0 {
			return
		}
		requests := make([]*Request, len(driven))
		for i, each := range driven {
			requests[i] = each.request
		}
		for i, news := range StepRequests(requests) {
			driven[i].tell(news)
		}
	}
}

func (r *DrivenRequest) hasEnded() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err != nil || r.status.State != RequestOpen
}

// tell takes what a step has brought.
func (r *DrivenRequest) tell(news RequestNews) {
	var text []byte
	err := news.Err
	if err == nil {
		text, err = r.request.Answer()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err = err; err == nil {
		r.status, r.text = news.RequestStatus, append(r.text, text...)
	}
	if len(r.text) > 0 || err != nil || r.status.State != RequestOpen {
		select {
		case r.news <- struct{}{}:
		default:
		}
	}
}

// Next waits until there is something to send, or the request has ended. It returns how the request stands, and what a
// server sends of all steps since the last call, as [Request.Answer] has it. An error of the request comes behind what
// was decoded before it. For one goroutine at a time.
func (r *DrivenRequest) Next(ctx context.Context) (RequestStatus, []byte, error) {
	for {
		r.mu.Lock()
		status, text, err := r.status, r.text, r.err
		r.text = nil
		r.mu.Unlock()
		if len(text) > 0 {
			return status, text, nil
		} else if err != nil || status.State != RequestOpen {
			return status, nil, err
		}
		select {
		case <-r.news:
		case <-ctx.Done():
			return status, nil, ctx.Err()
		}
	}
}
