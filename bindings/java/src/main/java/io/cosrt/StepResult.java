// The result of a step.

package io.cosrt;

import java.util.Arrays;
import java.util.List;

/**
 * The result of a step. The arrays are copies that the caller owns.
 *
 * @param tokens                the tokens that the step committed: at least one, unless the sequence is finished
 * @param logProbabilities      the natural logarithm of each token's probability under the combined distribution, as
 *                              {@link SessionOptions.Builder#logProbabilities} says. Null without tokens, or without
 *                              that option.
 * @param finish                whether and why the sequence ended
 * @param alternatives          for each token, the most probable tokens, best first: as many as {@link
 *                              SessionOptions.Builder#topLogProbabilities} says, or fewer if fewer are possible. Empty
 *                              without that option.
 * @param modelLogProbabilities for each token, its log-probability under each model, in the order of the configuration.
 *                              NaN for look-ups, and for models of weight 0 that have not scored it. Null without
 *                              tokens, or without {@link SessionOptions.Builder#modelLogProbabilities}.
 * @param origins               how each token came about. Empty without tokens, and for tokens that were scored.
 */
public record StepResult(int[] tokens, float[] logProbabilities, Finish finish, List<List<Alternative>> alternatives,
        float[][] modelLogProbabilities, List<Origin> origins) {
    /** Compares the elements of the arrays. */
    @Override
    public boolean equals(Object other) {
        return other instanceof StepResult that
                && Arrays.equals(tokens, that.tokens)
                && Arrays.equals(logProbabilities, that.logProbabilities)
                && finish == that.finish
                && alternatives.equals(that.alternatives)
                && Arrays.deepEquals(modelLogProbabilities, that.modelLogProbabilities)
                && origins.equals(that.origins);
    }

    @Override
    public int hashCode() {
        return 31 * (31 * Arrays.hashCode(tokens) + Arrays.hashCode(logProbabilities)) + finish.hashCode();
    }

    @Override
    public String toString() {
        return "StepResult[tokens=%s, logProbabilities=%s, finish=%s, alternatives=%s, modelLogProbabilities=%s, "
                + "origins=%s]"
                .formatted(Arrays.toString(tokens), Arrays.toString(logProbabilities), finish, alternatives,
                        Arrays.deepToString(modelLogProbabilities), origins);
    }
}
