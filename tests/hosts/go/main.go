// A program that uses ONNX Runtime by itself, through onnxruntime_go, and CoS beside it: one before the other, or the
// other way round.
//
//	host FIRST ONNXRUNTIME CONFIG MODEL     FIRST is "cos" or "onnxruntime"
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"

	cos "example.com/cos/bindings/go"
	ort "github.com/yalue/onnxruntime_go"
)

func main() {
	first, library, config, model := os.Args[1], os.Args[2], os.Args[3], os.Args[4]
	if first == "onnxruntime" {
		begin(library)
	}
	engine := must(cos.Open(config))
	before := decode(engine)
	if first == "cos" {
		begin(library)
	}
	inputs, outputs, err := ort.GetInputOutputInfo(model)
	if err != nil || len(inputs) == 0 || len(outputs) == 0 {
		log.Fatal("onnxruntime_go sees nothing of the model: ", err)
	}
	if after := decode(engine); fmt.Sprint(after) != fmt.Sprint(before) {
		log.Fatal("the text has become ", after)
	}
	var about struct {
		ThreadPool string   `json:"thread_pool"`
		Warnings   []string `json:"warnings"`
	}
	if err := json.Unmarshal([]byte(must(engine.Describe())), &about); err != nil {
		log.Fatal(err)
	}
	engine.Close()
	if err := ort.DestroyEnvironment(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(before, about.ThreadPool, len(about.Warnings))
}

func begin(library string) {
	ort.SetSharedLibraryPath(library)
	if err := ort.InitializeEnvironment(); err != nil {
		log.Fatal(err)
	}
}

func decode(engine *cos.Engine) []int32 {
	session := must(engine.NewSession(cos.Options{MaxTokens: 8}))
	defer session.Close()
	if err := session.Prompt([]int32{5, 6, 7, 8}); err != nil {
		log.Fatal(err)
	}
	var tokens []int32
	for {
		step := must(session.Step(context.Background()))
		tokens = append(tokens, step.Tokens...)
		if step.Finish != cos.FinishNone {
			return tokens
		}
	}
}

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}
