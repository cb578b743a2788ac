// Ways compares the ways to plug CoS in: servers of OpenAI's protocol, Triton, and the library in this process. All
// decode the same requests, streamed, in rounds that alternate, so that noise of the machine hits all alike.
//
//	ways [OPTION]... CONFIG.json NAME=http://HOST:PORT... NAME=grpc://HOST:PORT...
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// answer is what a client has seen of an answer.
type answer struct {
	tokens int
	first  time.Duration // until the first token
	err    error
}

// A way answers bodies at the same time.
type way interface {
	round(bodies [][]byte) []answer
}

// clients asks for each body by a goroutine of its own.
type clients struct {
	// ask answers a body of the client of this number, and calls `seen` at the first token.
	ask func(client int, body []byte, seen func()) (tokens int, err error)
}

func (c clients) round(bodies [][]byte) []answer {
	answers := make([]answer, len(bodies))
	var group sync.WaitGroup
	start := time.Now()
	for i, body := range bodies {
		group.Add(1)
		go func() {
			defer group.Done()
			var first time.Duration
			tokens, err := c.ask(i, body, func() {
				if first == 0 {
					first = time.Since(start)
				}
			})
			answers[i] = answer{tokens, first, err}
		}()
	}
	group.Wait()
	return answers
}

// bodies are requests with prompts of their own.
func bodies(model string, count, tokens int, streams bool) [][]byte {
	all := make([][]byte, count)
	for i := range all {
		all[i], _ = json.Marshal(map[string]any{
			"model": model, "prompt": fmt.Sprintf("Question %d: How many legs do three cats have?\nAnswer:", i),
			"max_tokens": tokens, "temperature": 1, "seed": i, "ignore_eos": true, "stream": streams,
			"stream_options": map[string]any{"include_usage": true},
		})
	}
	return all
}

// measured is what rounds of a way have shown.
type measured struct {
	speeds, ratios []float64 // tokens per second, and that divided by the library's of the same round
	firsts         []time.Duration
}

func median[T int | float64 | time.Duration](values []T) T {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[len(sorted)/2]
}

func measure(w way, all [][]byte) (speed float64, firsts []time.Duration, err error) {
	start := time.Now()
	answers := w.round(all)
	elapsed, tokens := time.Since(start).Seconds(), 0
	for _, answer := range answers {
		if answer.err != nil {
			return 0, nil, answer.err
		}
		tokens += answer.tokens
		firsts = append(firsts, answer.first)
	}
	return float64(tokens) / elapsed, firsts, nil
}

// compare prints a line for each way.
func compare(names []string, ways map[string]way, all [][]byte, rounds int) error {
	results := map[string]*measured{}
	for _, name := range names {
		results[name] = &measured{}
	}
	for round := range rounds + 1 {
		alone := 0.0
		for _, name := range names {
			speed, firsts, err := measure(ways[name], all)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if name == names[0] {
				alone = speed
			}
			if round > 0 { // the first round warms all up
				of := results[name]
				of.speeds, of.ratios = append(of.speeds, speed), append(of.ratios, speed/alone)
				of.firsts = append(of.firsts, median(firsts))
			}
		}
	}
	for _, name := range names {
		of := results[name]
		least, most := slices.Min(of.ratios), slices.Max(of.ratios)
		fmt.Printf("| %d | %s | %.0f | %.2f (%.2f–%.2f) | %.0f ms |\n", len(all), name, median(of.speeds),
			median(of.ratios), least, most, float64(median(of.firsts))/1e6)
	}
	return nil
}

func run() error {
	counts := flag.String("clients", "1,16,64", "clients at once")
	rounds := flag.Int("rounds", 5, "rounds of each way")
	tokens := flag.Int("tokens", 64, "tokens of an answer")
	whole := flag.Bool("whole", false, "answers are not streamed")
	flag.Parse()
	if flag.NArg() == 0 {
		return fmt.Errorf("usage: ways [OPTION]... CONFIG.json NAME=http://HOST:PORT... NAME=grpc://HOST:PORT...")
	}
	config := flag.Arg(0)
	alone, err := openLibrary(config)
	if err != nil {
		return err
	}
	names, ways := []string{"in-process"}, map[string]way{"in-process": alone}
	model := strings.TrimSuffix(filepath.Base(config), ".json")
	for _, argument := range flag.Args()[1:] {
		name, url, _ := strings.Cut(argument, "=")
		scheme, address, _ := strings.Cut(url, "://")
		switch scheme {
		case "http":
			ways[name] = clients{overHTTP(url, !*whole)}
		case "grpc":
			ways[name] = clients{overGRPC(address, model)}
		default:
			return fmt.Errorf("%q is no way; give NAME=http://HOST:PORT or NAME=grpc://HOST:PORT", argument)
		}
		names = append(names, name)
	}
	fmt.Println("| clients | way | tokens/s | ratio to in-process | first token |\n| ---: | --- | ---: | ---: | ---: |")
	for _, word := range strings.Split(*counts, ",") {
		count, err := strconv.Atoi(word)
		if err != nil || count < 1 {
			return fmt.Errorf("--clients has %q; give numbers, such as 1,16,64", word)
		}
		if err := compare(names, ways, bodies(model, count, *tokens, !*whole), *rounds); err != nil {
			return err
		}
	}
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
