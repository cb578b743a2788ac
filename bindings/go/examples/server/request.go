package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"unicode/utf8"

	cos "example.com/cos/bindings/go"
)

// request is the body of a completion. A member that is null keeps its default.
type request struct {
	Model         string         `json:"model"`
	Prompt        either[int32]  `json:"prompt"`
	MaxTokens     uint32         `json:"max_tokens"`
	Temperature   float32        `json:"temperature"`
	TopP          float32        `json:"top_p"`
	Seed          uint64         `json:"seed"`
	Stop          either[string] `json:"stop"`
	Stream        bool           `json:"stream"`
	StreamOptions struct {
		IncludeUsage bool `json:"include_usage"`
	} `json:"stream_options"`
	Logprobs *int `json:"logprobs"`
	Cos      struct {
		Strategy string    `json:"strategy"`
		TopK     int32     `json:"top_k"`
		MinP     float32   `json:"min_p"`
		Weights  []float32 `json:"weights"`
	} `json:"cos"`
}

// either is a text or a list.
type either[T any] struct {
	text *string
	list []T
}

// UnmarshalJSON refuses null inside a list, which encoding/json takes for zero.
func (e *either[T]) UnmarshalJSON(data []byte) error {
	if data[0] != '[' {
		return json.Unmarshal(data, &e.text)
	}
	var elements []*T
	if err := json.Unmarshal(data, &elements); err != nil {
		return err
	}
	for _, element := range elements {
		if element == nil {
			return errors.New("null in a list")
		}
		e.list = append(e.list, *element)
	}
	return nil
}

// unsupported members must be what they are by default.
var unsupported = map[string]string{"n": "1", "best_of": "1", "echo": "false", "suffix": `""`, "presence_penalty": "0",
	"frequency_penalty": "0", "logit_bias": "{}"}

// parse reads a request. What the library checks is left to it.
func (s *server) parse(body []byte) (*request, cos.Options, error) {
	r := &request{MaxTokens: 16, Temperature: 1, TopP: 1, Seed: rand.Uint64()}
	r.Cos.Strategy = "auto"
	var members map[string]json.RawMessage
	if err := cmp.Or(json.Unmarshal(body, &members), json.Unmarshal(body, r)); err != nil || !utf8.Valid(body) {
		return nil, cos.Options{}, refusal(http.StatusBadRequest, nil, nil, "the body is not what it must be: %v", err)
	}
	if r.Stop.text != nil {
		r.Stop.list = []string{*r.Stop.text}
	}
	strategy := slices.Index([]string{"auto", "standard", "speculative", "cos"}, r.Cos.Strategy)
	param, must := "", ""
	switch {
	case r.Model == "":
		param, must = "model", "be given"
	case r.Prompt.text == nil && len(r.Prompt.list) == 0 || r.Prompt.text != nil && *r.Prompt.text == "":
		param, must = "prompt", "be given"
	case r.MaxTokens < 1:
		param, must = "max_tokens", "be at least 1"
	case r.Temperature < 0 || r.Temperature > 2:
		param, must = "temperature", "be from 0 to 2"
	case r.TopP <= 0 || r.TopP > 1:
		param, must = "top_p", "be above 0 and at most 1"
	case len(r.Stop.list) > 4 || slices.Contains(r.Stop.list, ""):
		param, must = "stop", "be up to 4 texts"
	case r.Logprobs != nil && (*r.Logprobs < 0 || *r.Logprobs > 5):
		param, must = "logprobs", "be from 0 to 5"
	case strategy < 0:
		param, must = "cos", "have one of the strategies"
	}
	for name, only := range unsupported {
		if value := string(members[name]); value != "" && value != "null" && value != only {
			param, must = name, "be "+only
		}
	}
	switch {
	case must != "":
		return nil, cos.Options{}, refusal(http.StatusBadRequest, param, nil, "%s must %s", param, must)
	case r.Model != s.model:
		return nil, cos.Options{}, refusal(http.StatusNotFound, "model", "model_not_found", "there is no model %q", r.Model)
	}
	return r, cos.Options{Strategy: cos.Strategy(strategy), Temperature: r.Temperature, TopK: r.Cos.TopK, TopP: r.TopP,
		MinP: r.Cos.MinP, Seed: r.Seed, MaxTokens: r.MaxTokens, Weights: r.Cos.Weights, LogProbabilities: r.Logprobs != nil}, nil
}

// apiError is an error in OpenAI's form. Param and Code are null or names.
type apiError struct {
	status  int
	Message string `json:"message"`
	Type    string `json:"type"`
	Param   any    `json:"param"`
	Code    any    `json:"code"`
}

func (e *apiError) Error() string { return e.Message }

// refusal is the error of a request that is wrong.
func refusal(status int, param, code any, format string, arguments ...any) *apiError {
	return &apiError{status, fmt.Sprintf(format, arguments...), "invalid_request_error", param, code}
}

// toAPI says what an error means to a client.
func toAPI(err error) *apiError {
	var known *apiError
	switch {
	case err == nil || errors.As(err, &known):
		return known
	case errors.Is(err, cos.ErrContextFull):
		return refusal(http.StatusBadRequest, "prompt", "context_length_exceeded", "%v", err)
	case errors.Is(err, cos.ErrInvalidArgument), errors.Is(err, cos.ErrUnsupported):
		return refusal(http.StatusBadRequest, nil, nil, "%v", err)
	}
	return &apiError{http.StatusInternalServerError, err.Error(), "server_error", nil, nil}
}
