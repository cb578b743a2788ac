// Requests for completions.

package io.cosrt.server;

import com.fasterxml.jackson.annotation.JsonFormat;
import com.fasterxml.jackson.annotation.Nulls;
import io.cosrt.*;
import io.vertx.core.buffer.Buffer;
import io.vertx.core.http.HttpServerResponse;
import io.vertx.core.json.JsonArray;
import io.vertx.core.json.JsonObject;
import java.math.BigInteger;
import java.util.*;
import tools.jackson.databind.*;
import tools.jackson.databind.cfg.*;
import tools.jackson.databind.json.JsonMapper;
import tools.jackson.databind.type.LogicalType;

/** The body of a request for a completion, and its answer. Jackson checks the types, and the library the ranges. */
record Completion(String model, Object prompt, Long maxTokens, Float temperature, Float topP, BigInteger seed,
        @JsonFormat(with = JsonFormat.Feature.ACCEPT_SINGLE_VALUE_AS_ARRAY) List<String> stop,
        boolean stream, StreamOptions streamOptions, Cos cos, Integer n, Integer bestOf, boolean echo, String suffix,
        Object logprobs, double presencePenalty, double frequencyPenalty, Map<String, Double> logitBias) {

    record StreamOptions(boolean includeUsage) {}

    record Cos(Strategy strategy, float[] weights, String scope, Priority priority) {}

    /**
     * Strict: refuses strings as numbers, fractions as integers, and null as an element. A member that is null counts
     * as missing.
     */
    private static final JsonMapper JSON = JsonMapper.builder()
            .propertyNamingStrategy(PropertyNamingStrategies.SNAKE_CASE)
            .disable(DeserializationFeature.ACCEPT_FLOAT_AS_INT, DeserializationFeature.FAIL_ON_NULL_FOR_PRIMITIVES)
            .disable(MapperFeature.ALLOW_COERCION_OF_SCALARS)
            .enable(MapperFeature.ACCEPT_CASE_INSENSITIVE_ENUMS)
            .enable(EnumFeature.FAIL_ON_NUMBERS_FOR_ENUMS)
            .withCoercionConfig(LogicalType.Textual, strings -> strings
                    .setCoercion(CoercionInputShape.Integer, CoercionAction.Fail)
                    .setCoercion(CoercionInputShape.Float, CoercionAction.Fail)
                    .setCoercion(CoercionInputShape.Boolean, CoercionAction.Fail))
            .changeDefaultNullHandling(nulls -> nulls.withContentNulls(Nulls.FAIL))
            .build();

    static Completion parse(Buffer body) {
        Completion completion = JSON.readValue(body == null ? new byte[0] : body.getBytes(), Completion.class);
        if (completion == null || completion.model == null || completion.prompt == null) {
            throw new ApiError(400, "model and prompt are required", null);
        }
        return completion;
    }

    private SessionOptions options() {
        if (n != null && n != 1 || bestOf != null && bestOf != 1 || echo || suffix != null && !suffix.isEmpty()
                || logprobs != null || presencePenalty != 0 || frequencyPenalty != 0
                || logitBias != null && !logitBias.isEmpty()) {
            String message = "n, best_of, echo, suffix, logprobs, penalties and logit_bias are not supported";
            throw new ApiError(400, message, null);
        }
        if (seed != null && (seed.signum() < 0 || seed.bitLength() > 64)) {
            throw new ApiError(400, "seed must be from 0 to 2^64 - 1", null);
        }
        return SessionOptions.builder()
                .maxTokens(maxTokens == null ? 16 : maxTokens)
                .temperature(temperature == null ? 1 : temperature)
                .topP(topP == null ? 1 : topP)
                .seed(seed == null ? new Random().nextLong() : seed.longValue())
                .strategy(cos == null || cos.strategy == null ? Strategy.AUTO : cos.strategy)
                .weights(cos == null ? null : cos.weights)
                .priority(cos == null || cos.priority == null ? Priority.INTERACTIVE : cos.priority)
                .build();
    }

    /** Decodes to the end, or until the client has left. Returns the text that is still to be sent. */
    String decode(Engine engine, HttpServerResponse response) {
        int[] tokens = prompt instanceof String text
                ? engine.encode(text, true) : JSON.convertValue(prompt, int[].class);
        try (Session session = engine.newSession(options()); TextStream text = engine.newTextStream()) {
            text.setStops(stop == null ? new String[0] : stop.toArray(String[]::new));
            session.setScope(cos == null || cos.scope == null ? "" : cos.scope);
            session.prompt(tokens);
            text.prompt(tokens);
            response.closeHandler(left -> session.cancel()); // Vert.x notices a client that leaves while this decodes
            JsonObject json = JsonObject.of("id", "cmpl-" + UUID.randomUUID(), "object", "text_completion",
                    "created", System.currentTimeMillis() / 1000, "model", model);
            StringBuilder whole = new StringBuilder();
            Finish finish = Finish.NONE;
            while (finish == Finish.NONE && !response.closed()) {
                StepResult step = session.step();
                String piece = text.push(step.tokens());
                if (text.stopped() || step.finish() != Finish.NONE) {
                    piece += text.finish();
                    finish = text.stopped() ? Finish.STOP : step.finish();
                }
                if (!stream) {
                    whole.append(piece);
                } else if (!piece.isEmpty() || finish != Finish.NONE) {
                    send(response, json.put("choices", choices(piece, finish)));
                }
            }
            long count = session.stats().tokens();
            JsonObject usage = JsonObject.of("prompt_tokens", tokens.length, "completion_tokens", count,
                    "total_tokens", tokens.length + count);
            if (!stream) {
                return json.put("choices", choices(whole.toString(), finish)).put("usage", usage).encode();
            }
            if (streamOptions != null && streamOptions.includeUsage) {
                send(response, json.put("choices", JsonArray.of()).put("usage", usage));
            }
            return event("[DONE]");
        }
    }

    private static JsonArray choices(String text, Finish finish) {
        String reason = finish == Finish.NONE ? null : finish == Finish.STOP ? "stop" : "length";
        return JsonArray.of(JsonObject.of("text", text, "index", 0, "logprobs", null, "finish_reason", reason));
    }

    /**
     * Waits until the chunk is sent, so that decoding is not faster than a slow client. If it cannot be sent, the
     * client has left, which the caller notices.
     */
    private static void send(HttpServerResponse response, JsonObject chunk) {
        if (!response.headWritten()) {
            response.setChunked(true).putHeader("Content-Type", "text/event-stream");
            response.putHeader("Cache-Control", "no-cache");
        }
        response.write(event(chunk.encode())).otherwiseEmpty().await();
    }

    static String event(String data) {
        return "data: " + data + "\n\n";
    }
}
