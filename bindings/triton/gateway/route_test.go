// Routing, and following names.

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
)

// fleetOf makes a fleet of ready replicas that nobody dials.
func fleetOf(count int, r routing) *fleet {
	f := &fleet{routing: r, metrics: newMetrics(), replicas: map[string]*replica{}}
	for i := range count {
		address := fmt.Sprintf("10.0.0.%d:8001", i+1)
		f.replicas[address] = &replica{address: address, ready: true}
	}
	return f
}

func (f *fleet) picked(t *testing.T, beginning string, tried ...*replica) *replica {
	t.Helper()
	r, err := f.pick(beginning, tried)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestPrefixesSpreadAndMoveLittle(t *testing.T) {
	const keys, count = 10_000, 10
	f := fleetOf(count, routing{batch: 1, limit: 1})
	homes, load := map[string]string{}, map[string]int{}
	for i := range keys {
		key := fmt.Sprint("prefix ", i)
		r := f.picked(t, key)
		f.release(r)
		homes[key] = r.address
		load[r.address]++
	}
	for address, got := range load {
		if got < keys/count*85/100 || got > keys/count*115/100 {
			t.Errorf("%s has %d of %d prefixes", address, got, keys)
		}
	}
	left := "10.0.0.3:8001"
	f.replicas[left].ready = false
	moved := map[string]int{}
	for key, home := range homes {
		r := f.picked(t, key)
		f.release(r)
		if r.address != home && home != left {
			t.Fatalf("%s moved from %s, which is still there", key, home)
		}
		if home == left {
			moved[r.address]++
		}
	}
	if len(moved) != count-1 {
		t.Errorf("what was at %s moved to %d replicas only", left, len(moved))
	}
}

func TestHotPrefixSpillsOver(t *testing.T) {
	f := fleetOf(4, routing{batch: 4, limit: 20})
	home := f.picked(t, "hot")
	for range 3 {
		if r := f.picked(t, "hot"); r != home {
			t.Fatal("a prefix leaves its replica before that has a batch")
		}
	}
	for i := 4; i < 80; i++ {
		f.picked(t, "hot")
		most, mean := 0, float64(i+1)/4
		for _, r := range f.replicas {
			most = max(most, r.load)
		}
		if float64(most) > max(4, overload*mean+1) {
			t.Fatalf("a replica has %d of %d requests", most, i+1)
		}
	}
	if _, err := f.pick("cold", nil); err != errFull {
		t.Fatalf("a full fleet says %v", err)
	}
	f.release(home)
	if r := f.picked(t, "cold"); r != home {
		t.Fatal("a request goes to a full replica")
	}
}

func TestTriedAndUnreadyReplicasGetNothing(t *testing.T) {
	f := fleetOf(3, routing{batch: 8, limit: 8})
	first := f.picked(t, "a")
	second := f.picked(t, "a", first)
	third := f.picked(t, "a", first, second)
	if first == second || second == third || first == third {
		t.Fatal("a replica is tried twice")
	}
	if _, err := f.pick("a", []*replica{first, second, third}); err != errNone {
		t.Fatalf("behind all tries: %v", err)
	}
	f.mark(first, false, nil)
	if r := f.picked(t, "a"); r != second {
		t.Fatal("the next replica in the order is not the next one")
	}
	f.mark(second, false, nil)
	f.mark(third, false, nil)
	if _, err := f.pick("a", nil); err != errNone || f.isReady() {
		t.Fatalf("a fleet without ready replicas: %v", err)
	}
}

func TestManyGoroutinesKeepTheLoadRight(t *testing.T) {
	f := fleetOf(3, routing{batch: 2, limit: 50})
	var group sync.WaitGroup
	for i := range 16 {
		group.Add(1)
		go func() {
			defer group.Done()
			for j := range 200 {
				if r, err := f.pick(fmt.Sprint(i, j%5), nil); err == nil {
					f.mark(r, true, nil)
					f.release(r)
				}
			}
		}()
	}
	group.Wait()
	for address, r := range f.replicas {
		if r.load != 0 {
			t.Errorf("%s has a load of %d without requests", address, r.load)
		}
	}
}

func TestBeginnings(t *testing.T) {
	long := strings.Repeat("x", 600)
	chat := func(texts ...string) string {
		messages := []object{{"role": "system", "content": "s"}}
		for i, text := range texts {
			messages = append(messages, object{"role": []string{"user", "assistant"}[i%2], "content": text})
		}
		text, _ := json.Marshal(object{"messages": messages, "max_tokens": len(texts)})
		return string(text)
	}
	for _, each := range []struct {
		a, b string
		same bool
	}{
		{chat("a"), chat("a", "b", "c"), true},
		{chat("a"), chat("b"), false},
		{`{"prompt": "a", "seed": 1}`, `{"prompt": "a", "seed": 2}`, true},
		{`{"prompt": "a"}`, `{"prompt": "b"}`, false},
		{`{"prompt": "` + long + `a"}`, `{"prompt": "` + long + `b"}`, true},
		{`{"prompt": "a", "cos": {"scope": "x"}}`, `{"prompt": "a", "cos": {"scope": "y"}}`, false},
		{`{"prompt": [1, 2]}`, `{"prompt": [1, 3]}`, false},
		{`{"cos": {"scope": "a"}}`, `{"prompt": "a"}`, false},
		{`{"prompt": "a", "cos": 7, "messages": 8}`, `{"prompt": "a"}`, true},
		{`{`, ``, true},
	} {
		f := &routing{prefix: 512}
		if same := f.beginning([]byte(each.a)) == f.beginning([]byte(each.b)); same != each.same {
			t.Errorf("%.60s and %.60s: %v", each.a, each.b, same)
		}
	}
}

func TestReplicasComeAndGo(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	f := fleetOf(0, routing{batch: 1, limit: 1})
	f.update(ctx, []string{"127.0.0.1:1", "127.0.0.1:2"})
	kept, going := f.replicas["127.0.0.1:1"], f.replicas["127.0.0.1:2"]
	for going.load == 0 { // its probe says meanwhile that nobody is there
		f.mark(going, true, nil)
		_, _ = f.pick("a", nil)
	}
	f.update(ctx, []string{"127.0.0.1:1", "127.0.0.1:3"})
	if f.replicas["127.0.0.1:1"] != kept || f.replicas["127.0.0.1:2"] != nil || f.replicas["127.0.0.1:3"] == nil {
		t.Fatal("the fleet is not what its name has")
	}
	if state := going.connection.GetState().String(); state == "SHUTDOWN" {
		t.Fatal("a replica that has a request is closed")
	}
	f.release(going)
	if state := going.connection.GetState().String(); state != "SHUTDOWN" {
		t.Fatalf("a replica that is gone stays connected: %s", state)
	}
	if _, err := f.pick("a", nil); err != errNone {
		t.Fatal("a replica that is gone gets a request")
	}
	f.update(ctx, nil)
	if state := kept.connection.GetState().String(); state != "SHUTDOWN" {
		t.Fatalf("a replica that is gone and idle stays connected: %s", state)
	}
}

func TestResolve(t *testing.T) {
	got, err := resolve(context.Background(), "localhost:8001")
	if err != nil || !slices.Equal(got, []string{"127.0.0.1:8001"}) {
		t.Errorf("localhost is %v, %v", got, err)
	}
	for _, name := range []string{"nowhere.invalid:8001", "nothing"} {
		if got, err := resolve(context.Background(), name); err == nil {
			t.Errorf("%s is %v", name, got)
		}
	}
	got, err = resolve(context.Background(), "[::1]:8001")
	if err != nil || !slices.Equal(got, []string{"[::1]:8001"}) {
		t.Errorf("an address of IPv6 is %v, %v", got, err)
	}
}

func TestArguments(t *testing.T) {
	if o, err := parse([]string{"--replicas", "a:1,b:2", "--model", "m"}, nil); err != nil || len(o.replicas) != 2 {
		t.Fatal(o, err)
	}
	for arguments, says := range map[string]string{
		"--model m":                          "--replicas has",
		"--replicas a:1":                     "usage",
		"--replicas a --model m":             `"a"`,
		"--replicas a:1, --model m":          `""`,
		"--replicas a:1 --model m x":         "usage",
		"--replicas a:1 --model m --tries 0": "--tries is 0",
	} {
		if _, err := parse(strings.Fields(arguments), nil); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v", arguments, err)
		}
	}
}
