// Tests which calls are refused.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertFalse;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.Arrays;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** Replays {@code tests/vectors/errors.txt}: calls that must be refused, and their codes. */
class ErrorsTest {
    @Test
    void whatMustBeRefusedIsRefused() throws IOException {
        List<String> lines = Files.readAllLines(Path.of("tests/vectors/errors.txt"));
        assertEquals("cos-errors 1", lines.get(0));
        assertEquals("end", lines.get(lines.size() - 1), "the file was cut off");
        Engine engine = null;
        int records = 0;
        for (String line : lines.subList(1, lines.size() - 1)) {
            if (line.isEmpty() || line.startsWith("#")) {
                continue;
            }
            String[] fields = line.split(" ", 3);
            switch (fields[0]) {
                case "engine" -> engine = Engine.fromJson(line.substring("engine ".length()));
                case "vocabulary" -> assertEquals(Integer.parseInt(fields[1]), engine.vocabSize());
                default -> {
                    String rest = fields.length > 2 ? fields[2] : "";
                    assertEquals(Integer.parseInt(fields[1]), code(engine, fields[0], rest), line);
                    records++;
                }
            }
        }
        engine.close();
        System.out.printf("errors: %d records%n", records);
        assertEquals(82, records);
    }

    private static int code(Engine engine, String record, String rest) {
        try {
            switch (record) {
                case "refuse" -> Engine.fromJson(rest).close();
                case "options" -> engine.newSession(options(rest)).close();
                case "prompt" -> with(engine, session -> session.prompt(ints(rest)));
                case "step" -> with(engine, Session::step);
                case "weights" -> with(engine, session -> session.setWeights(floats(rest)));
                default -> throw new AssertionError("a record that this does not know: " + record);
            }
            return 0;
        } catch (CosException e) {
            assertFalse(e.getMessage().isEmpty());
            assertEquals(e.number(), e.code().number());
            return e.number();
        } catch (Inexpressible e) {
            return ErrorCode.INVALID_ARGUMENT.number();
        }
    }

    private static void with(Engine engine, java.util.function.Consumer<Session> call) {
        try (Session session = engine.newSession()) {
            call.accept(session);
        }
    }

    /** A value that the types of this binding cannot express. It counts as refused. */
    private static final class Inexpressible extends RuntimeException {
        private static final long serialVersionUID = 1;
    }

    private static <T> T at(T[] values, String number) {
        int index = Integer.parseInt(number);
        if (index < 0 || index >= values.length) {
            throw new Inexpressible();
        }
        return values[index];
    }

    private static SessionOptions options(String pairs) {
        SessionOptions.Builder builder = SessionOptions.builder();
        int[] biased = {};
        for (String pair : pairs.split(" ")) {
            if (pair.isEmpty()) {
                continue;
            }
            String value = pair.substring(pair.indexOf('=') + 1);
            String key = pair.substring(0, pair.indexOf('='));
            switch (key) {
                case "strategy" -> builder.strategy(at(Strategy.values(), value));
                case "temperature" -> builder.temperature(number(value));
                case "top_k" -> builder.topK(Integer.parseInt(value));
                case "top_p" -> builder.topP(number(value));
                case "min_p" -> builder.minP(number(value));
                case "seed" -> builder.seed(Long.parseUnsignedLong(value));
                case "max_tokens" -> builder.maxTokens(Integer.parseInt(value));
                case "proposal_lengths" -> builder.proposalLengths(ints(value));
                case "weights" -> builder.weights(floats(value));
                case "stop_tokens" -> builder.stopTokens(ints(value));
                case "targets" -> builder.targets(at(Targets.values(), value));
                case "routes" -> builder.routes(at(Routes.values(), value));
                case "priority" -> builder.priority(at(Priority.values(), value));
                case "log_probabilities" -> builder.logProbabilities(at(new Boolean[] {false, true}, value));
                case "repetition_penalty" -> builder.repetitionPenalty(number(value));
                case "presence_penalty" -> builder.presencePenalty(number(value));
                case "frequency_penalty" -> builder.frequencyPenalty(number(value));
                case "min_tokens" -> builder.minTokens(Integer.parseInt(value));
                case "no_repeat_ngram" -> builder.noRepeatNgram(Integer.parseInt(value));
                case "top_log_probabilities" -> builder.topLogProbabilities(Integer.parseInt(value));
                case "model_log_probabilities" ->
                        builder.modelLogProbabilities(at(new Boolean[] {false, true}, value));
                case "log_probabilities_before" ->
                        builder.logProbabilitiesBefore(at(new Boolean[] {false, true}, value));
                case "typical_p" -> builder.typicalP(number(value));
                case "xtc_probability" -> builder.xtcProbability(number(value));
                case "xtc_threshold" -> builder.xtcThreshold(number(value));
                case "dry_multiplier" -> builder.dryMultiplier(number(value));
                case "dry_base" -> builder.dryBase(number(value));
                case "dry_allowed_length" -> builder.dryAllowedLength(Integer.parseInt(value));
                case "dry_breakers" -> builder.dryBreakers(ints(value));
                case "bias_tokens" -> biased = ints(value);
                case "bias_values" -> {
                    Map<Integer, Float> bias = new HashMap<>();
                    float[] values = floats(value);
                    for (int i = 0; i < values.length; i++) {
                        bias.put(biased[i], values[i]);
                    }
                    builder.logitBias(bias);
                }
                default -> throw new AssertionError("an option that this does not know: " + pair);
            }
        }
        return builder.build();
    }

    private static Stream<String> words(String list) {
        return Arrays.stream(list.split("[ ,]")).filter(word -> !word.isEmpty());
    }

    private static int[] ints(String list) {
        return words(list).mapToInt(Integer::parseInt).toArray();
    }

    private static float[] floats(String list) {
        List<Float> values = words(list).map(ErrorsTest::number).toList();
        float[] floats = new float[values.size()];
        for (int i = 0; i < floats.length; i++) {
            floats[i] = values.get(i);
        }
        return floats;
    }

    private static float number(String text) {
        return switch (text) {
            case "nan" -> Float.NaN;
            case "inf" -> Float.POSITIVE_INFINITY;
            case "-inf" -> Float.NEGATIVE_INFINITY;
            default -> Float.parseFloat(text);
        };
    }
}
