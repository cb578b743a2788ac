// The result of a step.

package io.cosrt;

import java.util.Arrays;

/**
 * The result of a step. The arrays are copies that the caller owns.
 *
 * @param tokens           the tokens that the step committed: at least one, unless the sequence is finished
 * @param logProbabilities the natural logarithm of each token's probability under the combined distribution, after
 *                         temperature, top-k, top-p and min-p. For a greedy session, at temperature 1 without these
 *                         filters. Null without tokens, or without {@link SessionOptions.Builder#logProbabilities}.
 * @param finish           whether and why the sequence ended
 */
public record StepResult(int[] tokens, float[] logProbabilities, Finish finish) {
    /** Compares the elements of the arrays. */
    @Override
    public boolean equals(Object other) {
        return other instanceof StepResult that
                && Arrays.equals(tokens, that.tokens)
                && Arrays.equals(logProbabilities, that.logProbabilities)
                && finish == that.finish;
    }

    @Override
    public int hashCode() {
        return 31 * (31 * Arrays.hashCode(tokens) + Arrays.hashCode(logProbabilities)) + finish.hashCode();
    }

    @Override
    public String toString() {
        return "StepResult[tokens=%s, logProbabilities=%s, finish=%s]"
                .formatted(Arrays.toString(tokens), Arrays.toString(logProbabilities), finish);
    }
}
