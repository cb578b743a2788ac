// The ways.

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	cos "example.com/cos/bindings/go"
	"example.com/cos/bindings/triton/gateway/wire"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// library decodes here: one goroutine drives all requests, and has the events written as a server does.
type library struct{ engine *cos.Engine }

func openLibrary(config string) (library, error) {
	engine, err := cos.Open(config)
	if err == nil {
		_, err = engine.Prepare(context.Background(), cos.PrepareOptions{Sessions: 64, Time: 10 * time.Second})
	}
	return library{engine}, err
}

func (l library) round(bodies [][]byte) []answer {
	start, answers := time.Now(), make([]answer, len(bodies))
	indices, open := []int{}, []*cos.Request{}
	for i, body := range bodies {
		request, err := l.engine.NewRequest(body, cos.RequestOptions{})
		if err != nil {
			answers[i].err = err
			continue
		}
		defer request.Close()
		indices, open = append(indices, i), append(open, request)
	}
	for len(open) > 0 {
		ended := map[*cos.Request]bool{}
		for j, news := range cos.StepRequests(open) {
			i := indices[j]
			if answers[i].err = news.Err; news.Err == nil {
				_, answers[i].err = open[j].Answer()
				if answers[i].tokens = int(news.CompletionTokens); answers[i].tokens > 0 && answers[i].first == 0 {
					answers[i].first = time.Since(start)
				}
			}
			if answers[i].err != nil || news.State != cos.RequestOpen {
				ended[open[j]] = true
			}
		}
		left := indices[:0]
		for j, request := range open {
			if !ended[request] {
				left = append(left, indices[j])
			}
		}
		indices, open = left, slices.DeleteFunc(open, func(request *cos.Request) bool { return ended[request] })
	}
	return answers
}

// overHTTP asks a server of OpenAI's protocol.
func overHTTP(url string, streams bool) func(int, []byte, func()) (int, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: 1024}
	return func(_ int, body []byte, seen func()) (int, error) {
		client := http.Client{Transport: transport}
		response, err := client.Post(url+"/v1/completions", "application/json", bytes.NewReader(body))
		if err != nil {
			return 0, err
		}
		defer response.Body.Close()
		var last []byte
		for lines := bufio.NewReader(response.Body); ; {
			line, err := lines.ReadBytes('\n')
			if event, is := bytes.CutPrefix(line, []byte("data: ")); is || !streams {
				seen()
				if is && bytes.HasPrefix(event, []byte("[DONE]")) {
					continue
				}
				if last = event; !is {
					last = line
				}
			}
			if err == io.EOF {
				break
			} else if err != nil {
				return 0, err
			}
		}
		var end struct {
			Usage struct {
				CompletionTokens int `json:"completion_tokens"`
			}
		}
		if err := json.Unmarshal(last, &end); err != nil || response.StatusCode != http.StatusOK {
			return 0, fmt.Errorf("status %d: %s", response.StatusCode, last)
		}
		return end.Usage.CompletionTokens, nil
	}
}

// overGRPC asks Triton. Each client has a connection and a stream that stay open.
func overGRPC(address, model string) func(int, []byte, func()) (int, error) {
	type input = wire.ModelInferRequest_InferInputTensor
	type output = wire.ModelInferRequest_InferRequestedOutputTensor
	type stream = grpc.BidiStreamingClient[wire.ModelInferRequest, wire.ModelStreamInferResponse]
	var mutex sync.Mutex
	streams := map[int]stream{}
	open := func(client int) (stream, error) {
		mutex.Lock()
		defer mutex.Unlock()
		if streams[client] != nil {
			return streams[client], nil
		}
		connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		streams[client], err = wire.NewGRPCInferenceServiceClient(connection).ModelStreamInfer(context.Background())
		return streams[client], err
	}
	return func(client int, body []byte, seen func()) (int, error) {
		stream, err := open(client)
		if err != nil {
			return 0, err
		}
		text := append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)
		err = stream.Send(&wire.ModelInferRequest{
			ModelName:        model,
			Inputs:           []*input{{Name: "request", Datatype: "BYTES", Shape: []int64{1}}},
			RawInputContents: [][]byte{text},
			Outputs:          []*output{{Name: "text_output"}, {Name: "tokens"}},
		})
		for tokens := 0; ; {
			if err != nil {
				return 0, err
			}
			var got *wire.ModelStreamInferResponse
			if got, err = stream.Recv(); err != nil {
				continue
			}
			if got.ErrorMessage != "" {
				err = errors.New(got.ErrorMessage)
				continue
			}
			for i, output := range got.InferResponse.Outputs {
				if output.Name == "tokens" {
					tokens += len(got.InferResponse.RawOutputContents[i]) / 4
				}
			}
			if tokens > 0 {
				seen()
			}
			if got.InferResponse.Parameters["triton_final_response"].GetBoolParam() {
				return tokens, nil
			}
		}
	}
}
