// The line of requests, and the end of the server.

package main

import (
	"context"
	"slices"
	"sync"
)

// line bounds the choices that are decoded at once. Requests without room wait in it, first come, first served.
type line struct {
	requests sync.WaitGroup // those that have begun and not ended
	mu       sync.Mutex
	draining bool
	free     int      // choices that have room
	places   int      // requests that may wait
	running  int      // requests with room
	waiting  []*place // one that needs much room holds up those behind it, or it would wait for ever
}

type place struct {
	choices int
	ready   chan struct{} // closed when there is room
}

// begin begins a request, unless the server drains.
func (l *line) begin() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.draining {
		l.requests.Add(1)
	}
	return !l.draining
}

// drain lets no request begin any more, and waits for those that have.
func (l *line) drain() {
	l.mu.Lock()
	l.draining = true
	l.mu.Unlock()
	l.requests.Wait()
}

// state is how many requests run and wait, and whether the server drains.
func (l *line) state() (running, waiting int, drains bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.running, len(l.waiting), l.draining
}

// enter waits for room, which leave gives back. It fails if the line is full, or if the context ends first.
func (l *line) enter(ctx context.Context, choices int) error {
	p := &place{choices, make(chan struct{})}
	l.mu.Lock()
	l.waiting = append(l.waiting, p)
	l.admit()
	if len(l.waiting) > l.places {
		l.waiting = l.waiting[:len(l.waiting)-1]
		l.mu.Unlock()
		return errFull
	}
	l.mu.Unlock()
	select {
	case <-p.ready:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	index := slices.Index(l.waiting, p)
	if index < 0 {
		return nil // there was room at the same time; the first step then sees that the context has ended
	}
	l.waiting = slices.Delete(l.waiting, index, index+1)
	l.admit() // those behind may be smaller
	return ctx.Err()
}

// leave gives back what enter got.
func (l *line) leave(choices int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.running--
	l.free += choices
	l.admit()
}

// admit lets the first ones in while they find room.
func (l *line) admit() {
	for len(l.waiting) > 0 && l.waiting[0].choices <= l.free {
		close(l.waiting[0].ready)
		l.running++
		l.free -= l.waiting[0].choices
		l.waiting = l.waiting[1:]
	}
}
