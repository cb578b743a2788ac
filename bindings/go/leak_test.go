// Tests that everything is freed.

package cos

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// watch makes a handle count in freed when it frees its object.
func watch[P any](h *handle[P], freed *atomic.Int32) {
	free := h.free
	h.cleanup.Stop()
	h.own(h.object, func(P) {
		free()
		freed.Add(1)
	})
}

// Unreachable objects are freed: engines, requests, and sessions with and without combine functions.
func TestUnreachableIsFreed(t *testing.T) {
	var freed atomic.Int32
	func() {
		engine, err := New(`{"models": [{"path": "tests/exports/llama/builder-fp32"}],
		                      "combine": {"kind": "target", "model": 0}}`)
		if err != nil {
			t.Fatal(err)
		}
		watch(&engine.handle, &freed)
		for i := range 100 {
			options := Options{}
			if i%2 == 1 {
				options.Combine = func(rows [][]float32, scores []float32) error { copy(scores, rows[0]); return nil }
			}
			session, err := engine.NewSession(options)
			if err != nil {
				t.Fatal(err)
			}
			watch(&session.handle, &freed)
			if err := session.Prompt([]int32{1, 2, 3}); err != nil {
				t.Fatal(err)
			}
			if _, err := session.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
			request, err := engine.NewRequest([]byte(`{"prompt": [1, 2, 3], "n": 2}`), RequestOptions{})
			if err != nil {
				t.Fatal(err)
			}
			watch(&request.handle, &freed)
			if _, err := request.Step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); freed.Load() < 201; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 201 were freed", freed.Load())
		}
		runtime.GC()
	}
}

// Close frees the object at once, and only once. The garbage collector does not free it again.
func TestCloseFrees(t *testing.T) {
	engine, err := New(`{"models": [{"path": "tests/exports/llama/builder-fp32"}],
	                      "combine": {"kind": "target", "model": 0}}`)
	if err != nil {
		t.Fatal(err)
	}
	defer engine.Close()
	var freed atomic.Int32
	session, err := engine.NewSession(Options{Combine: func([][]float32, []float32) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	watch(&session.handle, &freed)
	request, err := engine.NewRequest([]byte(`{"prompt": [1, 2, 3]}`), RequestOptions{})
	if err != nil {
		t.Fatal(err)
	}
	watch(&request.handle, &freed)
	for range 2 {
		session.Close()
		request.Close()
	}
	runtime.GC()
	time.Sleep(10 * time.Millisecond)
	if freed.Load() != 2 {
		t.Errorf("freed %d times", freed.Load())
	}
}
