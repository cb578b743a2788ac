// Ownership of an object of the library.

package cos

import (
	"runtime"
	"sync"
)

// handle owns an object of the library. The object may be closed while calls run, as a file may: the handle counts the
// running calls, and the last one frees the object.
//
// It is embedded by value. So a deferred release keeps the embedding struct reachable, and with it the object, until
// the call is over. The zero handle is closed. P is a pointer type of C.
type handle[P any] struct {
	mu      sync.Mutex
	object  P
	open    bool
	calls   int
	free    func()
	cleanup runtime.Cleanup
}

// own takes an object and the function that frees it. free must not refer to the handle, which would then never become
// unreachable.
func (h *handle[P]) own(object P, free func(P)) {
	h.object, h.open = object, true
	h.free = func() { free(object) }
	h.cleanup = runtime.AddCleanup(h, free, object)
}

// acquire begins a call. Without an error, the caller must end it with release.
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

// close makes further calls fail. The caller has acquired the handle, so the object is freed by its release or later.
func (h *handle[P]) close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.open = false
	h.cleanup.Stop()
}

// closed tells whether close was called.
func (h *handle[P]) closed() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return !h.open
}

// exclusive is a handle that one goroutine at a time may use. The library alone cannot ensure this: Go copies the
// results after a call has ended, and no other call may begin until then.
type exclusive[P any] struct {
	handle[P]
	inUse sync.Mutex // locked with TryLock only
}

// begin begins an exclusive call. Without an error, the caller must end it with end.
func (x *exclusive[P]) begin() (object P, err error) {
	if object, err = x.acquire(); err == nil && !x.inUse.TryLock() {
		x.release()
		err = &Error{Code: ErrBusy, Message: "another goroutine is using the object; let one at a time use it"}
	}
	return object, err
}

// end ends an exclusive call.
func (x *exclusive[P]) end() {
	x.inUse.Unlock()
	x.release()
}
