package io.cosrt.server;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cosrt.Engine;
import io.cosrt.Finish;
import io.cosrt.Session;
import io.cosrt.StepResult;
import io.cosrt.TextStream;
import io.vertx.core.Future;
import io.vertx.core.http.HttpServerResponse;
import java.util.UUID;
import java.util.concurrent.CompletionException;

/** One completion: decodes, and cuts the text into pieces that no stop string can reach back into. */
final class Answer {
    private final Engine engine;
    private final Request request;
    private final HttpServerResponse response;
    private final ObjectNode json = JsonNodeFactory.instance.objectNode().put("id", "cmpl-" + UUID.randomUUID())
            .put("object", "text_completion").put("created", System.currentTimeMillis() / 1000);
    /** Text that may become a stop string, and so is held back; without a stream, all of it. */
    private final StringBuilder held = new StringBuilder();
    private ObjectNode logprobs = noLogprobs();
    private String finish;
    private Session session;
    private boolean gone;

    Answer(Engine engine, Request request, HttpServerResponse response) {
        this.engine = engine;
        this.request = request;
        this.response = response;
        json.put("model", request.model());
        response.closeHandler(closed -> leave()); // Vert.x reads on while an answer is made, and so sees the end
    }

    private synchronized void leave() {
        gone = true;
        if (session != null) {
            session.cancel();
        }
    }

    /** What {@link #leave} may cancel; null once that is closed. */
    private synchronized void decodeBy(Session session) {
        this.session = session;
    }

    synchronized boolean gone() {
        return gone;
    }

    /** Decode to the end, or until the client is gone. Streams, or gives the whole answer. */
    ObjectNode run() {
        int[] prompt = request.tokens(engine);
        int count = 0;
        Metrics metrics = new Metrics();
        try (Session session = engine.newSession(request.options()); TextStream text = engine.newTextStream()) {
            decodeBy(session);
            session.prompt(prompt);
            while (finish == null && !gone()) {
                StepResult step = session.step();
                metrics.count(session.stats());
                for (int i = 0; i < step.tokens().length && finish == null; i++, count++) {
                    add(step, i, text.push(step.tokens()[i]));
                }
                if (finish == null && step.finish() != Finish.NONE && step.finish() != Finish.CANCELLED) {
                    held.append(text.finish());
                    finish = cut() || step.finish() == Finish.STOP ? "stop" : "length";
                }
                int length = held.length() - (finish == null ? beginningOfStop() : 0);
                if (finish != null || request.stream() && length > 0) {
                    send(held.substring(0, length));
                    held.delete(0, length);
                }
            }
        } finally {
            decodeBy(null);
        }
        if (!request.stream() || request.streamOptions() != null && request.streamOptions().includeUsage()) {
            json.putObject("usage").put("prompt_tokens", prompt.length).put("completion_tokens", count)
                    .put("total_tokens", prompt.length + count);
            if (request.stream()) {
                json.putArray("choices");
                event(json);
            }
        }
        return json;
    }

    private void add(StepResult step, int index, String text) {
        held.append(text);
        if (request.logprobs() != null) {
            logprobs.withArray("tokens").add(engine.decode(step.tokens()[index]));
            logprobs.withArray("token_logprobs").add(step.logProbabilities()[index]);
        }
        finish = cut() ? "stop" : null;
    }

    /** Cut the text before the first stop string, if one has appeared. */
    private boolean cut() {
        int first = request.stop().stream().mapToInt(held::indexOf).filter(at -> at >= 0).min().orElse(-1);
        if (first >= 0) {
            held.setLength(first);
        }
        return first >= 0;
    }

    /** How many characters at the end of the text a stop string may begin with. */
    private int beginningOfStop() {
        int length = Math.min(held.length(), request.stop().stream().mapToInt(String::length).max().orElse(0));
        while (length > 0 && !begins(held.substring(held.length() - length))) {
            length--;
        }
        return length;
    }

    private boolean begins(String end) {
        return request.stop().stream().anyMatch(stop -> stop.startsWith(end));
    }

    /** A piece of the text, or all of it, as the choice of the answer. */
    private void send(String text) {
        json.putArray("choices").addObject().put("text", text).put("index", 0).put("finish_reason", finish)
                .set("logprobs", request.logprobs() == null ? null : logprobs);
        logprobs = noLogprobs();
        if (request.stream()) {
            event(json);
        }
    }

    private static ObjectNode noLogprobs() {
        return JsonNodeFactory.instance.objectNode().putNull("top_logprobs");
    }

    /** Send an event, and wait until it is on its way: for who reads slowly is decoded slowly. */
    void event(ObjectNode event) {
        if (!response.headWritten()) {
            response.setChunked(true).putHeader("Content-Type", "text/event-stream").putHeader("Cache-Control", "no-cache");
        }
        try {
            join(response.write("data: " + event + "\n\n"));
        } catch (CompletionException e) {
            leave();
        }
    }

    private static void join(Future<Void> sent) {
        sent.toCompletionStage().toCompletableFuture().join();
    }
}
