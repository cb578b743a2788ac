// A goroutine that decodes requests in common passes.

package cos

import (
	"context"
	"slices"
	"sync"
)

// unsentBytes bounds the memory of a client that reads slowly: a request with more text than this that nobody has taken
// is not decoded until it is taken.
const unsentBytes = 256 << 10

// Driver decodes requests on a goroutine of its own, all of them in common passes. So passes wait for no goroutine of a
// server, and [StrategyAuto] plans for all requests together. Other goroutines take what is to be sent when they come
// to it. A request with more than 256 KiB that nobody has taken waits until they are taken.
//
// The zero Driver is ready for use. It is not to be closed: its goroutine ends when there is nothing to decode.
type Driver struct {
	mu   sync.Mutex // guards the requests too
	open []*DrivenRequest
	runs bool // whether the goroutine is there
}

// DrivenRequest is a request that a [Driver] decodes.
type DrivenRequest struct {
	driver  *Driver
	request *Request
	news    chan struct{} // gets an element soon after there is something to tell, and sometimes without

	status      RequestStatus
	text        []byte
	err         error
	isCancelled bool
}

// Start begins to decode a request. It belongs to the driver then, which closes it when it has ended. The request fails
// with [ErrBusy] if a driver has it already.
func (d *Driver) Start(request *Request) *DrivenRequest {
	driven := &DrivenRequest{driver: d, request: request, news: make(chan struct{}, 1)}
	if request.isDriven.Swap(true) {
		driven.err = &Error{Code: ErrBusy, Message: "the request is driven already"}
		return driven
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = append(d.open, driven)
	d.wake()
	return driven
}

// wake starts the goroutine, if it is not there, with the lock held.
func (d *Driver) wake() {
	if !d.runs {
		d.runs = true
		go d.run()
	}
}

func (d *Driver) run() {
	for round := d.round(); len(round) > 0; round = d.round() {
		requests := make([]*Request, len(round))
		for i, each := range round {
			requests[i] = each.request
		}
		told := round[:0]
		for i, news := range StepRequests(requests) {
			if round[i].tell(news) {
				told = append(told, round[i])
			}
		}
		if len(told) > 0 {
			go announce(told)
		}
	}
}

// announce wakes those who wait for requests. That takes microseconds for each, and the next pass does not wait for it.
func announce(told []*DrivenRequest) {
	for _, each := range told {
		select {
		case each.news <- struct{}{}:
		default:
		}
	}
}

// round returns the requests that are to be stepped. If there are none, the goroutine has to end.
func (d *Driver) round() (round []*DrivenRequest) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.open = slices.DeleteFunc(d.open, (*DrivenRequest).hasEnded)
	for _, each := range d.open {
		if each.isCancelled || !each.isFull() {
			round = append(round, each)
		}
	}
	d.runs = len(round) > 0
	return round
}

func (r *DrivenRequest) hasEnded() bool { return r.err != nil || r.status.State != RequestOpen }

func (r *DrivenRequest) isFull() bool { return len(r.text) > unsentBytes }

// tell takes what a step has brought, and returns whether there is something to take.
func (r *DrivenRequest) tell(news RequestNews) bool {
	var text []byte
	err := news.Err
	if err == nil {
		text, err = r.request.Answer()
	}
	if err != nil || news.State != RequestOpen {
		r.request.Close()
	}
	r.driver.mu.Lock()
	defer r.driver.mu.Unlock()
	if r.err = err; err == nil {
		r.status, r.text = news.RequestStatus, append(r.text, text...)
	}
	return len(r.text) > 0 || r.hasEnded()
}

// Next waits until there is something to send, or the request has ended. It returns how the request stands, and what a
// server sends of all steps since the last call, as [Request.Answer] has it. An error of the request comes behind what
// was decoded before it. If the context ends, Next returns its error, and the request goes on: [DrivenRequest.Cancel]
// ends it. For one goroutine at a time.
func (r *DrivenRequest) Next(ctx context.Context) (RequestStatus, []byte, error) {
	for {
		if err := ctx.Err(); err != nil {
			return RequestStatus{}, nil, err
		}
		if status, text, err := r.take(); len(text) > 0 || err != nil || status.State != RequestOpen {
			return status, text, err
		}
		select {
		case <-r.news:
		case <-ctx.Done():
		}
	}
}

// take takes what there is.
func (r *DrivenRequest) take() (RequestStatus, []byte, error) {
	r.driver.mu.Lock()
	defer r.driver.mu.Unlock()
	if len(r.text) == 0 {
		return r.status, nil, r.err
	}
	if r.isFull() && !r.hasEnded() {
		r.driver.wake()
	}
	text := r.text
	r.text = nil
	return r.status, text, nil
}

// Cancel ends the request soon, with [RequestCancelled]. Any goroutine may call it at any time. It does not wait.
func (r *DrivenRequest) Cancel() {
	r.driver.mu.Lock()
	defer r.driver.mu.Unlock()
	if !r.hasEnded() {
		_ = r.request.Cancel() // the next step says if the request is broken
		r.isCancelled = true
		r.driver.wake()
	}
}
