package cos

import (
	"runtime"
	"sync"
)

// handle owns an object of the library and lets it be closed while calls on it run, as a file may be: it counts the calls,
// and the last one to leave frees the object.
//
// It is embedded by value, so that a deferred release keeps the whole embedding struct reachable, and with it the
// object, until the call is over. The zero handle is closed. P is a pointer to what C keeps to itself.
type handle[P any] struct {
	mu      sync.Mutex
	object  P
	open    bool
	calls   int
	free    func()
	cleanup runtime.Cleanup
}

// own takes an object that free frees. free must not refer to the handle, or it would never become unreachable.
func (h *handle[P]) own(object P, free func(P)) {
	h.object, h.open = object, true
	h.free = func() { free(object) }
	h.cleanup = runtime.AddCleanup(h, free, object)
}

// acquire begins a call. Unless there is an error, release must end it.
func (h *handle[P]) acquire() (object P, err error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.open {
		return object, ErrClosed
	}
	h.calls++
	return h.object, nil
}

// release ends a call.
func (h *handle[P]) release() {
	h.mu.Lock()
	h.calls--
	last := !h.open && h.calls == 0
	h.mu.Unlock()
	if last {
		h.free()
	}
}

// close lets no further call begin. It is called inside a call, whose release frees the object at the earliest.
func (h *handle[P]) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = false
	h.cleanup.Stop()
}

// closed tells a running call that close was called.
func (h *handle[P]) closed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.open
}

// exclusive is a handle that one goroutine at a time may use. The library would not refuse every second one, for what a
// call lends is copied after the call, and no other must begin until then.
type exclusive[P any] struct {
	handle[P]
	inUse sync.Mutex // only ever tried
}

// begin begins a call that no other may run beside. Unless there is an error, end must end it.
func (x *exclusive[P]) begin() (object P, err error) {
	if object, err = x.acquire(); err == nil && !x.inUse.TryLock() {
		x.release()
		err = &Error{Code: ErrBusy, Message: "in use by another goroutine"}
	}
	return object, err
}

// end ends a call.
func (x *exclusive[P]) end() {
	x.inUse.Unlock()
	x.release()
}
