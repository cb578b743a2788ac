package cos

import (
	"runtime"
	"sync/atomic"
	"testing"
	"time"
)

// watch has a handle count when its object is freed.
func watch[P any](h *handle[P], freed *atomic.Int32) {
	free := h.free
	h.cleanup.Stop()
	h.own(h.object, func(P) {
		free()
		freed.Add(1)
	})
}

// What is forgotten is freed: sessions with and without combine functions, streams, engines.
func TestForgottenIsFreed(t *testing.T) {
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
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); freed.Load() < 101; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 101 were freed", freed.Load())
		}
		runtime.GC()
	}
}

// Close frees at once, and once only: nothing is left for the garbage collector.
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
	session.Close()
	session.Close()
	runtime.GC()
	time.Sleep(10 * time.Millisecond)
	if freed.Load() != 1 {
		t.Errorf("freed %d times", freed.Load())
	}
}
