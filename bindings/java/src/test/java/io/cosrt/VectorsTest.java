// Tests the tokens against those of PyTorch.

package io.cosrt;

import static org.junit.jupiter.api.Assertions.assertArrayEquals;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import java.io.IOException;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.stream.IntStream;
import java.util.stream.Stream;
import org.junit.jupiter.api.Test;

/** Replays the greedy records of {@code tests/vectors}: sessions of every strategy decode the tokens of PyTorch. */
class VectorsTest {
    private static final Set<String> SAMPLED = Set.of("sampled", "support", "next", "pair", "triple", "rest");

    private int cases;
    private int values;

    @Test
    void demo() throws IOException {
        replay("demo", 78, 936);
    }

    @Test
    void tiny() throws IOException {
        replay("tiny", 168, 1906);
    }

    private void replay(String folder, int expectedCases, int expectedValues) throws IOException {
        List<Path> files;
        try (Stream<Path> listed = Files.list(Path.of("tests/vectors", folder))) {
            files = listed.filter(file -> file.toString().endsWith(".txt")).sorted().toList();
        }
        for (Path file : files) {
            replay(Vectors.read(file));
        }
        System.out.printf("%s: %d cases, %d values%n", folder, cases, values);
        assertEquals(expectedCases, cases);
        assertEquals(expectedValues, values);
    }

    private void replay(Vectors vectors) {
        try (Engine engine = Engine.fromJson(vectors.engine)) {
            assertEquals(vectors.vocabulary, engine.vocabSize());
            for (Continuation continuation : vectors.continuations) {
                for (Way way : Way.all(engine.modelCount())) {
                    compare(engine, continuation, way, vectors.tolerance);
                }
            }
        }
    }

    private void compare(Engine engine, Continuation expected, Way way, double tolerance) {
        SessionOptions options = SessionOptions.builder()
                .strategy(way.strategy)
                .proposalLengths(way.lengths)
                .stopTokens()
                .maxTokens(expected.tokens.size())
                .logProbabilities(true)
                .build();
        int[] tokens = expected.tokens.stream().mapToInt(Integer::intValue).toArray();
        int position = 0;
        try (Session session = engine.newSession(options)) {
            session.prompt(expected.prompt);
            int[] found = {};
            StepResult step;
            do {
                step = session.step();
                found = IntStream.concat(IntStream.of(found), IntStream.of(step.tokens())).toArray();
                for (float logarithm : step.logProbabilities()) {
                    double difference = Math.abs(logarithm - expected.logarithms.get(position++));
                    assertTrue(difference <= tolerance, () -> "off by " + difference); // false for NaN
                    values++;
                }
            } while (step.finish() == Finish.NONE);
            assertEquals(Finish.MAX_TOKENS, step.finish());
            assertArrayEquals(tokens, found, () -> way.toString());
        }
        cases++;
    }

    /** A way to decode, of those that tests/vectors/README.md lists. */
    private record Way(Strategy strategy, int[] lengths) {
        static List<Way> all(int models) {
            List<Way> ways = new ArrayList<>();
            ways.add(new Way(Strategy.STANDARD, null));
            ways.add(new Way(Strategy.COS, IntStream.range(0, models).map(model -> model % 2 == 0 ? 3 : 2).toArray()));
            ways.add(new Way(Strategy.AUTO, null));
            for (int drafter = 0; drafter < models; drafter++) {
                int[] lengths = new int[models];
                lengths[drafter] = 4;
                ways.add(new Way(Strategy.SPECULATIVE, lengths));
            }
            return ways;
        }
    }

    private static final class Continuation {
        final int[] prompt;
        final List<Integer> tokens = new ArrayList<>();
        final List<Double> logarithms = new ArrayList<>();

        Continuation(int[] prompt) {
            this.prompt = prompt;
        }
    }

    /** The content of a file: an engine, and the tokens that it must decode. */
    private static final class Vectors {
        String engine;
        int vocabulary;
        double tolerance;
        final List<Continuation> continuations = new ArrayList<>();

        static Vectors read(Path file) throws IOException {
            Vectors vectors = new Vectors();
            Map<String, int[]> prompts = new HashMap<>();
            List<String> lines = Files.readAllLines(file);
            assertEquals("cos-vectors 1", lines.get(0));
            assertEquals("end", lines.get(lines.size() - 1), "the file was cut off");
            for (String line : lines.subList(1, lines.size() - 1)) {
                if (line.isEmpty() || line.startsWith("#")) {
                    continue;
                }
                String[] fields = line.split(" ");
                switch (fields[0]) {
                    case "engine" -> vectors.engine = line.substring("engine ".length());
                    case "vocabulary" -> vectors.vocabulary = Integer.parseInt(fields[1]);
                    case "tolerance" -> vectors.tolerance = Double.parseDouble(fields[1]);
                    case "prompt" ->
                            prompts.put(fields[1], Stream.of(fields).skip(2).mapToInt(Integer::parseInt).toArray());
                    case "greedy" -> vectors.continuations.add(new Continuation(prompts.get(fields[1])));
                    case "token" -> {
                        Continuation last = vectors.continuations.get(vectors.continuations.size() - 1);
                        last.tokens.add(Integer.parseInt(fields[1]));
                        last.logarithms.add(Double.parseDouble(fields[2]));
                    }
                    default -> assertTrue(SAMPLED.contains(fields[0]), () -> "unknown record: " + line);
                }
            }
            return vectors;
        }
    }
}
