package io.cosrt.server;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import com.fasterxml.jackson.databind.node.MissingNode;
import io.cosrt.Engine;
import io.cosrt.SessionOptions;
import io.cosrt.Strategy;
import io.vertx.core.buffer.Buffer;
import java.io.IOException;
import java.math.BigInteger;
import java.util.Arrays;
import java.util.List;
import java.util.Map;
import java.util.concurrent.ThreadLocalRandom;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import java.util.stream.StreamSupport;

/** What a client asks for: the body of a completion, checked. */
record Request(int[] prompt, SessionOptions options, List<String> stops, boolean stream, boolean usage, boolean logprobs) {
    private static final ObjectMapper JSON = new ObjectMapper();
    private static final BigInteger SEEDS = BigInteger.ONE.shiftLeft(64);
    private static final Map<String, JsonNode> ONLY = Map.of("n", JSON.valueToTree(1), "best_of", JSON.valueToTree(1),
            "echo", JSON.valueToTree(false), "suffix", JSON.valueToTree(""), "presence_penalty", JSON.valueToTree(0),
            "frequency_penalty", JSON.valueToTree(0), "logit_bias", JSON.createObjectNode());

    static Request parse(Buffer text, Engine engine, String model) {
        JsonNode body;
        try {
            body = JSON.readTree(text == null ? new byte[0] : text.getBytes());
        } catch (IOException e) {
            throw ApiError.invalid(null, "the body is not JSON: " + e.getMessage().lines().findFirst().orElse(""));
        }
        check(body != null && body.isObject(), null, "the body must be a JSON object");
        String asked = get(body, "model").textValue();
        check(asked != null, "model", "must be a string");
        if (!asked.equals(model)) {
            throw ApiError.notFound("the model " + asked + " does not exist", "model", "model_not_found");
        }
        ONLY.forEach((name, value) -> {
            JsonNode given = get(body, name);
            boolean same = value.isNumber() ? given.isNumber() && given.doubleValue() == value.doubleValue()
                    : given.equals(value);
            check(given.isMissingNode() || same, name, "must be " + value + ", for nothing else is supported");
        });
        int[] prompt = prompt(engine, get(body, "prompt"));

        JsonNode cos = get(body, "cos");
        check(cos.isMissingNode() || cos.isObject(), "cos", "must be an object");
        JsonNode seed = get(body, "seed");
        check(seed.isMissingNode() || seed.isIntegralNumber() && seed.bigIntegerValue().signum() >= 0
                && seed.bigIntegerValue().compareTo(SEEDS) < 0, "seed", "must be an integer from 0 to 2^64 - 1");
        double topP = number(body, "top_p", 1, 0, 1);
        check(topP > 0, "top_p", "must be above 0");
        boolean logprobs = !get(body, "logprobs").isMissingNode();
        integer(body, "logprobs", 0, 0, 5);
        SessionOptions options = SessionOptions.builder()
                .maxTokens(integer(body, "max_tokens", 16, 1, (1L << 32) - 1))
                .temperature((float) number(body, "temperature", 1, 0, 2))
                .topP((float) topP)
                .seed(seed.isMissingNode() ? ThreadLocalRandom.current().nextLong() : seed.bigIntegerValue().longValue())
                .logProbabilities(logprobs)
                .strategy(strategy(get(cos, "strategy")))
                .topK((int) integer(cos, "top_k", 0, 0, Integer.MAX_VALUE))
                .minP((float) number(cos, "min_p", 0, 0, 1))
                .weights(weights(get(cos, "weights")))
                .build();
        JsonNode streamOptions = get(body, "stream_options");
        check(streamOptions.isMissingNode() || streamOptions.isObject(), "stream_options", "must be an object");
        return new Request(prompt, options, stops(get(body, "stop")), flag(body, "stream"), flag(streamOptions, "include_usage"),
                logprobs);
    }

    private static int[] prompt(Engine engine, JsonNode prompt) {
        if (prompt.isTextual()) {
            check(!prompt.textValue().isEmpty(), "prompt", "must not be empty");
            return engine.encode(prompt.textValue(), true);
        }
        check(prompt.isArray() && !prompt.isEmpty(), "prompt", "must be a string or an array of tokens, and not empty");
        return elements(prompt).mapToInt(token -> {
            check(token.isIntegralNumber() && token.canConvertToInt(), "prompt", "must have integers as tokens");
            return token.intValue(); // the library knows the vocabulary
        }).toArray();
    }

    private static List<String> stops(JsonNode stop) {
        List<JsonNode> stops = stop.isArray() ? elements(stop).toList() : stop.isMissingNode() ? List.of() : List.of(stop);
        check(stops.size() <= 4 && stops.stream().allMatch(one -> one.isTextual() && !one.textValue().isEmpty()), "stop",
                "must be a string or up to 4, none of them empty");
        return stops.stream().map(JsonNode::textValue).toList();
    }

    private static Strategy strategy(JsonNode name) {
        return name.isMissingNode() ? Strategy.AUTO : Arrays.stream(Strategy.values())
                .filter(strategy -> strategy.name().toLowerCase().equals(name.textValue()))
                .findAny()
                .orElseThrow(() -> ApiError.invalid("cos.strategy", "strategy must be auto, standard, speculative or cos"));
    }

    private static float[] weights(JsonNode weights) {
        if (weights.isMissingNode()) {
            return null;
        }
        check(weights.isArray() && elements(weights).allMatch(JsonNode::isNumber), "weights", "must be an array of numbers");
        float[] floats = new float[weights.size()];
        IntStream.range(0, floats.length).forEach(model -> floats[model] = weights.get(model).floatValue());
        return floats;
    }

    private static JsonNode get(JsonNode object, String name) {
        JsonNode member = object.path(name);
        return member.isNull() ? MissingNode.getInstance() : member; // null is as good as missing
    }

    private static Stream<JsonNode> elements(JsonNode array) {
        return StreamSupport.stream(array.spliterator(), false);
    }

    private static boolean flag(JsonNode object, String name) {
        JsonNode flag = get(object, name);
        check(flag.isMissingNode() || flag.isBoolean(), name, "must be true or false");
        return flag.booleanValue();
    }

    private static long integer(JsonNode object, String name, long otherwise, long least, long most) {
        JsonNode value = get(object, name);
        if (value.isMissingNode()) {
            return otherwise;
        }
        check(value.isIntegralNumber() && value.canConvertToLong() && value.longValue() >= least && value.longValue() <= most,
                name, "must be an integer from " + least + " to " + most);
        return value.longValue();
    }

    private static double number(JsonNode object, String name, double otherwise, double least, double most) {
        JsonNode value = get(object, name);
        if (value.isMissingNode()) {
            return otherwise;
        }
        check(value.isNumber() && value.doubleValue() >= least && value.doubleValue() <= most, name,
                "must be a number from " + least + " to " + most);
        return value.doubleValue();
    }

    private static void check(boolean holds, String name, String what) {
        if (!holds) {
            throw ApiError.invalid(name, name == null ? what : name + " " + what);
        }
    }
}
