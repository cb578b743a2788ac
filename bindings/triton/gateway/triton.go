// Triton's protocol: a request of OpenAI's as a stream of gRPC, and back.

package main

import (
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"time"

	"example.com/cos/bindings/triton/gateway/wire"
)

type request = wire.ModelInferRequest

// pack makes a body a request of Triton.
func pack(model, endpoint, id string, body []byte) *request {
	type input = wire.ModelInferRequest_InferInputTensor
	type output = wire.ModelInferRequest_InferRequestedOutputTensor
	choice := &wire.InferParameter{ParameterChoice: &wire.InferParameter_StringParam{StringParam: endpoint}}
	return &request{ModelName: model, Id: id,
		Parameters:       map[string]*wire.InferParameter{"endpoint": choice},
		Inputs:           []*input{{Name: "request", Datatype: "BYTES", Shape: []int64{1}}},
		RawInputContents: [][]byte{append(binary.LittleEndian.AppendUint32(nil, uint32(len(body))), body...)},
		Outputs:          []*output{{Name: "response"}, {Name: "status"}}}
}

// unpack returns the outputs of a response: a part of the answer, and the status.
func unpack(response *wire.ModelInferResponse) (part []byte, code int, err error) {
	for i, output := range response.GetOutputs() {
		if i >= len(response.RawOutputContents) || len(response.RawOutputContents[i]) < 4 {
			return nil, 0, errStrange
		}
		raw := response.RawOutputContents[i]
		switch output.Name {
		case "response":
			part = raw[4:] // behind its length
		case "status":
			code = int(binary.LittleEndian.Uint32(raw))
		}
	}
	if code == 0 {
		return nil, 0, errStrange
	}
	return part, code, nil
}

// ask has a replica answer, and sends the parts of the answer as they come. When the context ends, Triton cancels what
// the replica decodes. But a stream that is cancelled at its very end stays in Triton, which then does not exit before
// its --exit-timeout-secs. So an answer that is whole cancels nothing, and its stream is read to the end.
func (r *replica) ask(ctx context.Context, packed *request, send func(code int, part []byte) error) error {
	streaming, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	detach := context.AfterFunc(ctx, cancel)
	defer detach()
	stream, err := r.client.ModelStreamInfer(streaming)
	if err != nil {
		return err
	}
	if err := stream.Send(packed); err == nil {
		_ = stream.CloseSend()
	} // else Recv says why
	end, isWhole := error(errCut), false
	whole := func(how error) {
		end, isWhole = how, true
		detach()
		time.AfterFunc(probeTimeout, cancel) // a stream that does not end is not waited for
	}
	for {
		got, err := stream.Recv()
		if err == io.EOF || err != nil && isWhole {
			return end
		} else if err != nil {
			return err
		}
		if got.ErrorMessage != "" { // of Triton itself
			whole(&failure{502, "server_error", "", "the replica refuses: " + got.ErrorMessage})
			continue
		}
		part, code, err := unpack(got.GetInferResponse())
		if err != nil {
			return err
		}
		if code != http.StatusOK {
			whole(refusal{code, part})
			continue
		}
		if got.InferResponse.Parameters["triton_final_response"].GetBoolParam() {
			whole(nil)
		}
		if len(part) > 0 && send(code, part) != nil {
			return errLeft
		}
	}
}
