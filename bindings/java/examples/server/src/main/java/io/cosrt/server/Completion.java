package io.cosrt.server;

import com.fasterxml.jackson.databind.node.ArrayNode;
import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cosrt.Engine;
import io.cosrt.Finish;
import io.cosrt.Session;
import io.cosrt.StepResult;
import io.cosrt.TextStream;
import java.util.function.BooleanSupplier;
import java.util.function.Consumer;

/** One answer: decodes, and cuts the text into pieces that no stop string can reach back into. */
final class Completion {
    private static final JsonNodeFactory JSON = JsonNodeFactory.instance;

    private final Engine engine;
    private final Request request;
    /** Text that may become a stop string, and so is held back. */
    private final StringBuilder held = new StringBuilder();
    private ObjectNode logprobs;
    private String finish;
    private int tokens;

    Completion(Engine engine, Request request) {
        this.engine = engine;
        this.request = request;
        this.logprobs = noLogprobs();
    }

    /**
     * Decode to the end, or until the client is gone; {@code choices} gets each piece, or the whole text, as a choice in
     * OpenAI's form.
     */
    void run(Session session, BooleanSupplier gone, Consumer<ObjectNode> choices) {
        Metrics metrics = new Metrics();
        try (TextStream text = engine.newTextStream()) {
            while (finish == null && !gone.getAsBoolean()) {
                StepResult step = session.step();
                metrics.count(session.stats());
                for (int i = 0; i < step.tokens().length && finish == null; i++) {
                    add(text, step, i);
                }
                if (finish == null && step.finish() != Finish.NONE && step.finish() != Finish.CANCELLED) {
                    held.append(text.finish());
                    finish = cut() || step.finish() == Finish.STOP ? "stop" : "length";
                }
                int length = finish == null ? held.length() - beginningOfStop() : held.length();
                if (finish != null || request.stream() && length > 0) {
                    choices.accept(choice(held.substring(0, length)));
                    held.delete(0, length);
                }
            }
        }
    }

    private void add(TextStream text, StepResult step, int index) {
        int token = step.tokens()[index];
        tokens++;
        held.append(text.push(token));
        if (request.logprobs()) {
            ((ArrayNode) logprobs.get("tokens")).add(engine.decode(token));
            ((ArrayNode) logprobs.get("token_logprobs")).add(step.logProbabilities()[index]);
        }
        if (cut()) {
            finish = "stop";
        }
    }

    /** Cut the text before the first stop string, if one has appeared. */
    private boolean cut() {
        int first = request.stops().stream().mapToInt(held::indexOf).filter(at -> at >= 0).min().orElse(-1);
        if (first >= 0) {
            held.setLength(first);
        }
        return first >= 0;
    }

    /** How many characters at the end of the text a stop string may begin with. */
    private int beginningOfStop() {
        int most = request.stops().stream().mapToInt(String::length).max().orElse(1) - 1;
        for (int length = Math.min(most, held.length()); length > 0; length--) {
            String end = held.substring(held.length() - length);
            if (request.stops().stream().anyMatch(stop -> stop.startsWith(end))) {
                return length;
            }
        }
        return 0;
    }

    private ObjectNode choice(String text) {
        ObjectNode choice = JSON.objectNode().put("text", text).put("index", 0).put("finish_reason", finish);
        choice.set("logprobs", request.logprobs() ? logprobs : JSON.nullNode());
        logprobs = noLogprobs();
        return choice;
    }

    private static ObjectNode noLogprobs() {
        ObjectNode none = JSON.objectNode();
        none.putArray("tokens");
        none.putArray("token_logprobs");
        return none.putNull("top_logprobs");
    }

    ObjectNode usage() {
        return JSON.objectNode().put("prompt_tokens", request.prompt().length).put("completion_tokens", tokens)
                .put("total_tokens", request.prompt().length + tokens);
    }
}
