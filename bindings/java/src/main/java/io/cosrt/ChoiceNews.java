// What is to be told of a choice.

package io.cosrt;

import java.util.List;

/**
 * What is to be told of a choice of a {@link Request}: what the last step brought if the body asks for a stream, and
 * otherwise all of it. Without news, all is empty. The arrays are copies that the caller owns.
 *
 * @param text                  it ends before a stop string, and may lag behind the tokens
 * @param tokens                the tokens, with those of a stop string or a stop token
 * @param logProbabilities      as in {@link StepResult}, as far as the body asks for them, as are the others
 * @param finish                whether and why the text ended
 * @param alternatives          as in {@link StepResult}
 * @param modelLogProbabilities as in {@link StepResult}
 * @param origins               as in {@link StepResult}
 */
public record ChoiceNews(String text, int[] tokens, float[] logProbabilities, Finish finish,
        List<List<Alternative>> alternatives, float[][] modelLogProbabilities, List<Origin> origins) {
    /** All but the text. */
    private StepResult step() {
        return new StepResult(tokens, logProbabilities, finish, alternatives, modelLogProbabilities, origins);
    }

    /** Compares the elements of the arrays. */
    @Override
    public boolean equals(Object other) {
        return other instanceof ChoiceNews that && text.equals(that.text) && step().equals(that.step());
    }

    @Override
    public int hashCode() {
        return 31 * text.hashCode() + step().hashCode();
    }

    @Override
    public String toString() {
        return "ChoiceNews[text=" + text + ", " + step().toString().substring("StepResult[".length());
    }
}
