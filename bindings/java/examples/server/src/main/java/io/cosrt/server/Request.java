package io.cosrt.server;

import com.fasterxml.jackson.annotation.JsonFormat;
import com.fasterxml.jackson.annotation.JsonProperty;
import com.fasterxml.jackson.databind.DeserializationFeature;
import com.fasterxml.jackson.databind.JsonMappingException;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.MapperFeature;
import com.fasterxml.jackson.databind.cfg.CoercionAction;
import com.fasterxml.jackson.databind.cfg.CoercionInputShape;
import com.fasterxml.jackson.databind.json.JsonMapper;
import com.fasterxml.jackson.databind.type.LogicalType;
import io.cosrt.Engine;
import io.cosrt.SessionOptions;
import io.cosrt.Strategy;
import java.io.IOException;
import java.math.BigInteger;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ThreadLocalRandom;

/** The body of a completion. Jackson checks the types; null is as good as missing. */
record Request(String model, JsonNode prompt, @JsonProperty("max_tokens") Long maxTokens, Double temperature,
        @JsonProperty("top_p") Double topP, BigInteger seed,
        @JsonFormat(with = JsonFormat.Feature.ACCEPT_SINGLE_VALUE_AS_ARRAY) List<String> stop,
        boolean stream, @JsonProperty("stream_options") StreamOptions streamOptions, Integer logprobs, Cos cos, Integer n,
        @JsonProperty("best_of") Integer bestOf, boolean echo, String suffix,
        @JsonProperty("presence_penalty") double presencePenalty,
        @JsonProperty("frequency_penalty") double frequencyPenalty, @JsonProperty("logit_bias") Map<String, Double> logitBias) {

    record StreamOptions(@JsonProperty("include_usage") boolean includeUsage) {}

    record Cos(Strategy strategy, @JsonProperty("top_k") int topK, @JsonProperty("min_p") float minP, float[] weights) {}

    private static final JsonMapper JSON = JsonMapper.builder()
            .disable(DeserializationFeature.FAIL_ON_UNKNOWN_PROPERTIES, DeserializationFeature.ACCEPT_FLOAT_AS_INT)
            .enable(DeserializationFeature.FAIL_ON_NUMBERS_FOR_ENUMS, DeserializationFeature.FAIL_ON_TRAILING_TOKENS)
            .disable(MapperFeature.ALLOW_COERCION_OF_SCALARS)
            .enable(MapperFeature.ACCEPT_CASE_INSENSITIVE_ENUMS)
            .withCoercionConfig(LogicalType.Textual, coercions -> coercions
                    .setCoercion(CoercionInputShape.Integer, CoercionAction.Fail)
                    .setCoercion(CoercionInputShape.Float, CoercionAction.Fail)
                    .setCoercion(CoercionInputShape.Boolean, CoercionAction.Fail))
            .build();

    /** The body, as far as it can be checked without an engine. */
    static Request parse(byte[] body, String model) {
        Request request;
        try {
            request = JSON.readValue(body, Request.class);
        } catch (JsonMappingException e) {
            String name = e.getPath().isEmpty() ? null : e.getPath().get(0).getFieldName();
            throw new ApiError(400, "the body is wrong: " + e.getOriginalMessage(), name, null);
        } catch (IOException e) {
            throw new ApiError(400, "the body is not JSON", null, null);
        }
        check(request != null && request.model != null, "model", "is missing");
        if (!request.model.equals(model)) {
            throw ApiError.unknownModel(request.model);
        }
        request.check();
        return request;
    }

    private void check() {
        check(prompt != null && (prompt.isTextual() ? !prompt.textValue().isEmpty() : prompt.isArray() && !prompt.isEmpty()),
                "prompt", "must be a string or an array of tokens, and not empty");
        check(maxTokens == null || maxTokens > 0, "max_tokens", "must be at least 1");
        check(temperature == null || temperature >= 0 && temperature <= 2, "temperature", "must be from 0 to 2");
        check(topP == null || topP > 0 && topP <= 1, "top_p", "must be above 0 and at most 1");
        check(seed == null || seed.signum() >= 0 && seed.bitLength() <= 64, "seed", "must be from 0 to 2^64 - 1");
        check(stop().size() <= 4 && stop().stream().noneMatch(s -> s == null || s.isEmpty()), "stop",
                "must be up to 4 strings, none of them empty");
        check(logprobs == null || logprobs >= 0 && logprobs <= 5, "logprobs", "must be from 0 to 5");
        check((n == null || n == 1) && (bestOf == null || bestOf == 1), "n", "and best_of must be 1");
        check(!echo && (suffix == null || suffix.isEmpty()) && presencePenalty == 0 && frequencyPenalty == 0
                && (logitBias == null || logitBias.isEmpty()), null,
                "echo, suffix, presence_penalty, frequency_penalty and logit_bias are not supported");
    }

    private static void check(boolean holds, String name, String what) {
        if (!holds) {
            throw new ApiError(400, name == null ? what : name + " " + what, name, null);
        }
    }

    int[] tokens(Engine engine) {
        try {
            return prompt.isTextual() ? engine.encode(prompt.textValue(), true) : JSON.readerFor(int[].class)
                    .with(DeserializationFeature.FAIL_ON_NULL_FOR_PRIMITIVES).readValue(prompt);
        } catch (IOException e) {
            throw new ApiError(400, "prompt must be a string or an array of tokens", "prompt", null);
        }
    }

    @Override
    public List<String> stop() {
        return stop == null ? List.of() : stop;
    }

    SessionOptions options() {
        SessionOptions.Builder options = SessionOptions.builder()
                .maxTokens(maxTokens == null ? 16 : maxTokens)
                .temperature(temperature == null ? 1 : temperature.floatValue())
                .topP(topP == null ? 1 : topP.floatValue())
                .seed(seed == null ? ThreadLocalRandom.current().nextLong() : seed.longValue())
                .logProbabilities(logprobs != null);
        if (cos != null) {
            options.strategy(cos.strategy == null ? Strategy.AUTO : cos.strategy).topK(cos.topK).minP(cos.minP)
                    .weights(cos.weights);
        }
        return options.build();
    }
}
