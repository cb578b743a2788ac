// Routing: requests that begin alike go to one replica, which has computed their beginning.

package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
)

// routing is how requests find their replicas.
type routing struct {
	model  string // the name of the model in Triton
	prefix int    // bytes of a prompt that count as its beginning
	batch  int    // requests that a replica gets before its prefixes go to others
	limit  int    // most requests of a replica
}

// How many times the mean load a replica may have before its prefixes go to others.
const overload = 1.25

// beginning returns a digest of how the prompt of a body begins, with its scope, outside of which nothing computed is
// shared. For chats these are the messages up to the first one of the user: all turns of a chat begin with them. For
// completions these are the first bytes of the prompt. A wrong body has some digest too: a replica says what is wrong.
func (f *routing) beginning(body []byte) string {
	var asked struct {
		Prompt   json.RawMessage
		Messages []json.RawMessage
		Cos      struct{ Scope json.RawMessage }
	}
	_ = json.Unmarshal(body, &asked)
	parts := [][]byte{asked.Cos.Scope, asked.Prompt[:min(len(asked.Prompt), f.prefix)]}
	for _, text := range asked.Messages {
		var message struct{ Role string }
		parts = append(parts, text)
		if _ = json.Unmarshal(text, &message); message.Role == "user" {
			break
		}
	}
	hash := sha256.New()
	for _, part := range parts {
		hash.Write(append(part[:len(part):len(part)], 0)) // no JSON has a 0, so parts cannot run into each other
	}
	return string(hash.Sum(nil))
}

// pick chooses a replica for requests that begin alike, and counts the request as its load until release. Each
// beginning has an order of all replicas, which is the same in all gateways. The request goes to the first replica in
// it that is ready and not overloaded.
func (f *fleet) pick(beginning string, tried []*replica) (*replica, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var able []*replica
	ready, load := 0, 0
	for _, r := range f.replicas {
		if r.ready {
			ready, load = ready+1, load+r.load
			if !slices.Contains(tried, r) {
				able = append(able, r)
			}
		}
	}
	if len(able) == 0 {
		return nil, errNone
	}
	slices.SortFunc(able, func(a, b *replica) int {
		return cmp.Compare(score(beginning, b.address), score(beginning, a.address))
	})
	even := int(math.Ceil(overload * float64(load+1) / float64(ready)))
	for _, most := range []int{min(f.limit, max(f.batch, even)), f.limit} {
		for i, r := range able {
			if r.load < most {
				if r.load++; i > 0 {
					f.metrics.spills.Inc()
				}
				return r, nil
			}
		}
	}
	return nil, errFull
}

// score orders the replicas for a beginning. If a replica leaves, only what was there moves (rendezvous hashing).
func score(beginning, address string) uint64 {
	sum := sha256.Sum256([]byte(beginning + address))
	return binary.BigEndian.Uint64(sum[:])
}
