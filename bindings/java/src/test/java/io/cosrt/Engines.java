// Engines for the tests.

package io.cosrt;

import java.nio.file.Path;
import java.util.ArrayList;
import java.util.List;

/** Small engines for tests: two models with random weights, 96 tokens, a context of 128. */
final class Engines {
    private static final String MODELS = "{\"models\": ["
            + "{\"path\": \"tests/exports/llama/builder-fp32\", \"name\": \"one\"}, "
            + "{\"path\": \"tests/exports/qwen3/builder-fp32\", \"name\": \"two\"}], \"combine\": ";

    static final int[] PROMPT = {1, 2, 3, 4, 5};

    private Engines() {}

    static Engine weighted() {
        return Engine.fromJson(MODELS + "{\"kind\": \"weighted\", \"weights\": [0.5, 0.5]}}");
    }

    /** The same with another name of the second model. */
    static Engine named(String name) {
        return Engine.fromJson(MODELS.replace("two", name) + "{\"kind\": \"weighted\", \"weights\": [0.5, 0.5]}}");
    }

    static Engine target(int model) {
        return Engine.fromJson(MODELS + "{\"kind\": \"target\", \"model\": " + model + "}}");
    }

    /** An engine with a tokenizer. It takes a second to load, so all tests share it, and none may close it. */
    static Engine demo() {
        return Demo.ENGINE;
    }

    private static final class Demo {
        static final Engine ENGINE = Engine.open(Path.of("models/demo/engine.json"));
    }

    /** Decodes with a new session until the sequence is finished. */
    static List<Integer> decode(Engine engine, SessionOptions options) {
        List<Integer> tokens = new ArrayList<>();
        try (Session session = engine.newSession(options)) {
            session.prompt(PROMPT);
            StepResult step;
            do {
                step = session.step();
                for (int token : step.tokens()) {
                    tokens.add(token);
                }
            } while (step.finish() == Finish.NONE);
        }
        return tokens;
    }
}
