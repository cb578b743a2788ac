// A text that was chosen among several.

package io.cosrt;

import java.util.Arrays;

/**
 * A text that {@link Session#bestOf} has chosen.
 *
 * @param tokens         its tokens, which the caller owns
 * @param finish         why it ended
 * @param logProbability the mean log-probability of its tokens
 */
public record Best(int[] tokens, Finish finish, double logProbability) {
    /** Compares the elements of the array. */
    @Override
    public boolean equals(Object other) {
        return other instanceof Best that && Arrays.equals(tokens, that.tokens) && finish == that.finish
                && logProbability == that.logProbability;
    }

    @Override
    public int hashCode() {
        return 31 * (31 * Arrays.hashCode(tokens) + finish.hashCode()) + Double.hashCode(logProbability);
    }

    @Override
    public String toString() {
        return "Best[tokens=%s, finish=%s, logProbability=%s]"
                .formatted(Arrays.toString(tokens), finish, logProbability);
    }
}
