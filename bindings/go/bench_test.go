// A benchmark of the cost of this package.

package cos_test

import (
	"context"
	"slices"
	"testing"
	"time"

	cos "example.com/cos/bindings/go"
	"example.com/cos/bindings/go/internal/inc"
)

// BenchmarkStep compares the time of a step inside C and through this package. It decodes in turns with the smallest
// model, whose passes cost the least. "ctx" is with a context that may end.
func BenchmarkStep(b *testing.B) {
	const config = `{"models": [{"path": "tests/exports/llama/builder-fp32"}], "threads": 1,
	                 "combine": {"kind": "target", "model": 0}}`
	const tokens = 100
	prompt := []int32{1, 2, 3}
	inC, err := inc.New(config)
	if err != nil {
		b.Fatal(err)
	}
	engine := newEngine(b, config)
	ending, cancel := context.WithCancel(context.Background())
	defer cancel()
	throughGo := func(ctx context.Context) func() int {
		return func() int {
			session, err := engine.NewSession(
				cos.Options{Strategy: cos.StrategyStandard, MaxTokens: tokens, StopTokens: []int32{}})
			if err != nil {
				b.Fatal(err)
			}
			defer session.Close()
			if err := session.Prompt(prompt); err != nil {
				b.Fatal(err)
			}
			steps := 0
			for _, err := range session.Steps(ctx) {
				if err != nil {
					b.Fatal(err)
				}
				steps++
			}
			return steps
		}
	}
	ways := []struct {
		name string
		run  func() int
		took []float64 // ns for each step
	}{
		{name: "C", run: func() int {
			steps, err := inC.Decode(prompt, tokens)
			if err != nil {
				b.Fatal(err)
			}
			return steps
		}},
		{name: "Go", run: throughGo(context.Background())},
		{name: "ctx", run: throughGo(ending)},
	}
	for b.Loop() {
		for i := range ways {
			start := time.Now()
			steps := ways[i].run()
			ways[i].took = append(ways[i].took, float64(time.Since(start).Nanoseconds())/float64(steps))
		}
	}
	median := func(values []float64) float64 {
		slices.Sort(values)
		return values[len(values)/2]
	}
	base := median(ways[0].took)
	for _, way := range ways {
		b.ReportMetric(median(way.took)/1000, way.name+"-µs/step")
		b.ReportMetric(median(way.took)/base, way.name+"/C")
	}
	b.ReportMetric(0, "ns/op")
}
