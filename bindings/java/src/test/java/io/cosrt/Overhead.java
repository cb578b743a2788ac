// Measures the cost of Java.

package io.cosrt;

import java.nio.file.Path;
import java.util.Arrays;

/**
 * Compares the time of a step through Java and in C: the smallest model, in one process, in turns.
 * {@code bindings/java/overhead} runs it.
 */
final class Overhead {
    private static final int TOKENS = 100;
    private static final int ROUNDS = 400;
    private static int sum;

    private Overhead() {}

    private static native void open(String json);

    private static native long inC(int tokens);

    public static void main(String[] arguments) {
        Cos.version(); // loads libcos.so, which the library in C finds by its SONAME
        System.load(Path.of(arguments[0]).toAbsolutePath().toString());
        String json = "{\"models\": [{\"path\": \"tests/exports/llama/builder-fp32\"}], "
                + "\"combine\": {\"kind\": \"target\", \"model\": 0}}";
        open(json);
        double[] c = new double[ROUNDS];
        double[] java = new double[ROUNDS];
        double[] ratios = new double[ROUNDS];
        try (Engine engine = Engine.fromJson(json)) {
            for (int round = -100; round < ROUNDS; round++) { // rounds below 0 warm up
                boolean first = (round & 1) == 0;
                long before = first ? inC(TOKENS) : 0;
                long javaNs = inJava(engine);
                long cNs = first ? before : inC(TOKENS);
                if (round >= 0) {
                    c[round] = cNs / 1e3 / TOKENS;
                    java[round] = javaNs / 1e3 / TOKENS;
                    ratios[round] = java[round] / c[round];
                }
            }
        }
        Arrays.sort(c);
        Arrays.sort(java);
        Arrays.sort(ratios);
        System.out.printf("steps: C %.2f us, Java %.2f us each (medians of %d x %d); ", c[ROUNDS / 2], java[ROUNDS / 2],
                ROUNDS, TOKENS);
        System.out.printf("ratio %.3f (quartiles %.3f to %.3f); fastest %.2f and %.2f us%n", ratios[ROUNDS / 2],
                ratios[ROUNDS / 4], ratios[ROUNDS * 3 / 4], c[0], java[0]);
    }

    /** The time of all steps of a greedy session, in nanoseconds. */
    private static long inJava(Engine engine) {
        SessionOptions options = SessionOptions.builder().maxTokens(TOKENS).stopTokens().logProbabilities(true).build();
        try (Session session = engine.newSession(options)) {
            session.prompt(1, 2, 3, 4, 5);
            long start = System.nanoTime();
            StepResult step;
            do {
                step = session.step();
                for (int token : step.tokens()) {
                    sum += token;
                }
            } while (step.finish() == Finish.NONE);
            return System.nanoTime() - start;
        }
    }
}
