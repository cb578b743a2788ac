// Answers to clients, and errors in OpenAI's form.

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"
)

// answer is the answer to a client, who has some time for each part of it.
type answer struct {
	http.ResponseWriter
	patience time.Duration
	start    time.Time
	first    time.Duration // from the start to the first part
	begun    bool
}

// send sends a whole answer, or a part of a stream. Each part is flushed, so that it is on its way when send returns.
func (a *answer) send(code int, part []byte) error {
	controller := http.NewResponseController(a.ResponseWriter)
	_ = controller.SetWriteDeadline(time.Now().Add(a.patience))
	if !a.begun {
		a.begun, a.first = true, time.Since(a.start)
		if bytes.HasPrefix(part, []byte("data: ")) {
			a.Header().Set("Content-Type", "text/event-stream")
			a.Header().Set("X-Accel-Buffering", "no") // NGINX would keep events back
		} else {
			a.Header().Set("Content-Type", "application/json")
			a.Header().Set("Content-Length", strconv.Itoa(len(part)))
		}
		a.WriteHeader(code)
	}
	_, err := a.Write(part)
	return errors.Join(err, controller.Flush())
}

func (a *answer) json(code int, value any) { _ = a.send(code, marshal(value)) }

// fail answers with an error: as an event if a stream has begun.
func (a *answer) fail(err error) {
	told := explain(err)
	if a.begun {
		told.body = fmt.Appendf(nil, "data: %s\n\n", told.body)
	} else if told.status == http.StatusTooManyRequests || told.status > 500 {
		a.Header().Set("Retry-After", "1")
	}
	_ = a.send(told.status, told.body)
}

// refusal is an answer of a replica that is an error.
type refusal struct {
	status int
	body   []byte
}

func (r refusal) Error() string { return string(r.body) }

// failure is an error of the gateway itself.
type failure struct {
	status              int
	kind, code, message string
}

func (f *failure) Error() string { return f.message }

var (
	errPath    = &failure{404, "invalid_request_error", "", "there is nothing at this path"}
	errMethod  = &failure{405, "invalid_request_error", "", "this path has other methods; see the header Allow"}
	errModel   = &failure{404, "invalid_request_error", "model_not_found", "there is no such model"}
	errSlow    = &failure{408, "invalid_request_error", "", "the body did not come in time"}
	errLarge   = &failure{413, "invalid_request_error", "", "the body is too large"}
	errFull    = &failure{429, "rate_limit_error", "rate_limit_exceeded", "all replicas are full; try again later"}
	errLeft    = &failure{499, "invalid_request_error", "", "the client left, or does not take the answer"}
	errCut     = &failure{502, "server_error", "", "the replica ended the answer early"}
	errStrange = &failure{502, "server_error", "", "the replica has no output status; update its backend"}
	errNone    = &failure{503, "server_error", "", "no replica is ready; try again later"}
	errTimeout = &failure{504, "server_error", "", "the answer took too long"}
)

// explain returns the status and the body for an error.
func explain(err error) refusal {
	if answered := (refusal{}); errors.As(err, &answered) {
		return answered
	}
	f := &failure{502, "server_error", "", "the replica was lost before it had answered: " + err.Error()}
	errors.As(err, &f)
	code := any(f.code)
	if f.code == "" {
		code = nil
	}
	told := object{"message": f.message, "type": f.kind, "param": nil, "code": code}
	return refusal{f.status, marshal(object{"error": told})}
}

type object = map[string]any

func marshal(value any) []byte {
	text, _ := json.Marshal(value) // all that this program has can be JSON
	return text
}
