// Tests of the preparation of an engine.

package cos_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	cos "example.com/cos/bindings/go"
)

func TestPrepare(t *testing.T) {
	engine := newEngine(t, tiny)
	var shares []float64
	options := cos.PrepareOptions{Sessions: 2, Tokens: 64, Time: time.Minute,
		Progress: func(share float64) { shares = append(shares, share) }}
	share, err := engine.Prepare(context.Background(), options)
	if err != nil || share != 1 || len(shares) < 20 || !slices.IsSorted(shares) || shares[0] != 0 ||
		shares[len(shares)-1] != 1 {
		t.Fatal(share, err, shares)
	}
	if stats, err := engine.Stats(); err != nil || stats.Tokens != 0 {
		t.Errorf("it counts: %+v, %v", stats, err)
	}
	options.Progress, options.Time = nil, time.Nanosecond
	if share, err := engine.Prepare(context.Background(), options); err != nil || share >= 1 {
		t.Error("the time is over:", share, err)
	}
	for options, says := range map[*cos.PrepareOptions]string{
		{Sessions: 1025}: "sessions is 1025", {Time: -time.Second}: "seconds is -1",
	} {
		_, err := engine.Prepare(context.Background(), *options)
		if !errors.Is(err, cos.ErrInvalidArgument) || !strings.Contains(err.Error(), says) {
			t.Errorf("%v does not say %q", err, says)
		}
	}
}

func TestPrepareEnds(t *testing.T) {
	engine := newEngine(t, tiny)
	ctx, cancel := context.WithCancel(context.Background())
	calls := 0
	options := cos.PrepareOptions{Progress: func(float64) {
		if calls++; calls == 10 {
			cancel()
		}
	}}
	if share, err := engine.Prepare(ctx, options); err != context.Canceled || share >= 1 || calls != 10 {
		t.Error("the context has ended:", share, err, calls)
	}

	failure := errors.New("mine")
	options.Progress = func(float64) { panic(failure) }
	_, err := engine.Prepare(context.Background(), options)
	var panicked *cos.PanicError
	if !errors.Is(err, cos.ErrCallback) || !errors.Is(err, failure) || !errors.As(err, &panicked) {
		t.Error("the function has panicked:", err)
	}

	options.Progress = func(float64) { _ = engine.Close() }
	if share, err := engine.Prepare(context.Background(), options); err != cos.ErrClosed || share >= 1 {
		t.Error("the engine is closed:", share, err)
	}
	if _, err := engine.Prepare(context.Background(), options); err != cos.ErrClosed {
		t.Error(err)
	}
}
