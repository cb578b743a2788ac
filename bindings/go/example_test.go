package cos_test

import (
	"context"
	"fmt"
	"log"

	cos "example.com/cos/bindings/go"
)

// Two models continue a text together, and each piece is printed as soon as it is decoded.
func Example() {
	engine, err := cos.Open("models/demo/engine.json") // two models, mixed half and half
	if err != nil {
		log.Fatal(err)
	}
	defer engine.Close()
	session, _ := engine.NewSession(cos.Options{MaxTokens: 60})
	defer session.Close()
	text, _ := engine.NewTextStream()
	defer text.Close()

	tokens, _ := engine.Encode("Question: How many legs do three cats have?\nAnswer:", true)
	if err := session.Prompt(tokens); err != nil {
		log.Fatal(err)
	}
	for step, err := range session.Steps(context.Background()) { // at least one token each, often several
		if err != nil {
			log.Fatal(err)
		}
		piece, _ := text.Push(step.Tokens)
		fmt.Print(piece)
	}
	// Output:
	// There are 3 * 2 = 6 cats in the neighborhood.
	// There are 4 * 3 = 12 legs.
	// There are 2 + 6 = 4 legs.
	// #### 4
}
