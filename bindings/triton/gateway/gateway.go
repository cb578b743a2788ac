// What clients see: paths, limits, the log, and another try where a replica fails.

package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// limits bound what clients send, and how long something takes.
type limits struct {
	tries    int
	maxBody  int64
	timeout  time.Duration // of a whole request
	patience time.Duration // for a client to send a request, or to take a part of an answer
}

type gateway struct {
	limits
	fleet   *fleet
	metrics *metrics
	started time.Time
	drains  atomic.Bool
}

// ServeHTTP answers everything. An http.ServeMux would answer some requests by itself, and not in OpenAI's form.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a := &answer{ResponseWriter: w, patience: g.patience, start: time.Now()}
	model := object{"id": g.fleet.model, "object": "model", "created": g.started.Unix(), "owned_by": "cos"}
	switch method, path := r.Method, r.URL.Path; {
	case method == "POST" && path == "/v1/completions":
		g.complete(a, r, "completion")
	case method == "POST" && path == "/v1/chat/completions":
		g.complete(a, r, "chat")
	case len(methods(path)) > 0 && !slices.Contains(methods(path), method):
		a.Header().Set("Allow", strings.Join(methods(path), ", "))
		a.fail(errMethod)
	case path == "/v1/models":
		a.json(200, object{"object": "list", "data": []object{model}})
	case path == "/v1/models/"+g.fleet.model:
		a.json(200, model)
	case strings.HasPrefix(path, "/v1/models/"):
		a.fail(errModel)
	case path == "/ready" && g.drains.Load():
		a.json(503, object{"status": "draining"})
	case path == "/ready" && !g.fleet.isReady():
		a.json(503, object{"status": "no replica is ready"})
	case path == "/ready" || path == "/health":
		a.json(200, object{"status": "ok"})
	case path == "/metrics":
		g.metrics.handler.ServeHTTP(w, r)
	default:
		a.fail(errPath)
	}
}

// methods are those of a path. There are none if nothing is there.
func methods(path string) []string {
	switch {
	case path == "/v1/completions", path == "/v1/chat/completions":
		return []string{"POST"}
	case path == "/v1/models", path == "/health", path == "/ready", path == "/metrics",
		strings.HasPrefix(path, "/v1/models/"):
		return []string{"GET", "HEAD"}
	}
	return nil
}

// complete answers a request for a text, and tells the log.
func (g *gateway) complete(a *answer, r *http.Request, endpoint string) {
	id := r.Header.Get("X-Request-Id")
	if id == "" || len(id) > 128 || !utf8.ValidString(id) {
		id = rand.Text()
	}
	a.Header().Set("X-Request-Id", id)
	body, err := g.read(r)
	var tried []*replica
	if err == nil {
		ctx, cancel := context.WithTimeoutCause(r.Context(), g.timeout, errTimeout)
		tried, err = g.carry(ctx, a, body, pack(g.fleet.model, endpoint, id, body))
		cancel()
	}
	code, last := http.StatusOK, ""
	if err != nil && r.Context().Err() != nil {
		err = errLeft
	}
	if err != nil {
		if code = explain(err).status; err != errLeft {
			a.fail(err)
		}
	}
	if len(tried) > 0 {
		last = tried[len(tried)-1].address
	}
	total := time.Since(a.start)
	g.metrics.request(code, a.first, total)
	slog.Info("request", "id", id, "path", r.URL.Path, "status", code, "replica", last, "tries", len(tried),
		"body_bytes", len(body), "first_ms", a.first.Milliseconds(), "total_ms", total.Milliseconds(),
		"error", text(err))
}

// read reads a body.
func (g *gateway) read(r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r.Body, g.maxBody+1))
	var ofNet net.Error
	switch {
	case errors.As(err, &ofNet) && ofNet.Timeout():
		return nil, errSlow
	case err != nil:
		return nil, &failure{400, "invalid_request_error", "", "the body cannot be read: " + err.Error()}
	case int64(len(body)) > g.maxBody:
		_, _ = io.CopyN(io.Discard, r.Body, 64<<20) // many clients read no answer before they have sent all
		return nil, errLarge
	}
	return body, nil
}

// carry has a replica answer a request, and returns which ones it has tried. Another one is tried if one fails before
// any part of the answer was sent.
func (g *gateway) carry(ctx context.Context, a *answer, body []byte, packed *request) (tried []*replica, err error) {
	begins := g.fleet.beginning(body)
	for len(tried) < g.tries {
		r, none := g.fleet.pick(begins, tried)
		if none != nil {
			return tried, cmp.Or(err, none)
		}
		if len(tried) > 0 {
			g.metrics.retries.Inc()
		}
		tried = append(tried, r)
		err = r.ask(ctx, packed, a.send)
		g.fleet.release(r)
		if err != nil && ctx.Err() != nil {
			return tried, context.Cause(ctx)
		}
		if status.Code(err) == codes.Unavailable {
			g.fleet.mark(r, false, err) // until the next probe
		}
		if err == nil || a.begun || !mayRetry(err) {
			break
		}
	}
	return tried, err
}

// mayRetry is whether another replica may do better: not with a wrong body, nor for a client that left.
func mayRetry(err error) bool {
	code := explain(err).status
	return code == http.StatusTooManyRequests || code >= 500
}
