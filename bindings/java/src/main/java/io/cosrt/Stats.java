// Statistics of sessions and engines.

package io.cosrt;

/**
 * Counts and times of a session, or of all sessions of an engine.
 *
 * @param steps      calls of {@link Session#step}
 * @param tokens     tokens committed, without prompts
 * @param proposed   tokens proposed
 * @param tested     proposals accepted or rejected; others were dropped behind a rejection or an end
 * @param accepted   proposals accepted
 * @param forwards   passes of all models, without those over nothing but prompt
 * @param positions  positions that all models scored, without those of prompts
 * @param modelNs    nanoseconds inside ONNX Runtime, with prompts
 * @param totalNs    nanoseconds inside steps
 * @param nearTies   greedy choices between two nearly equal scores; a pass of another width may choose the other token
 * @param plannedNs  nanoseconds inside steps with {@link Strategy#AUTO}, from the first evaluation of the plan on,
 *                   without passes over prompts. 0 with any other strategy, as are the next two. All three are about
 *                   the same tokens: standardNs / plannedNs is the measured gain of planning, and standardNs /
 *                   expectedNs the expected gain.
 * @param expectedNs nanoseconds that these tokens were expected to take when their plan was chosen
 * @param standardNs nanoseconds that {@link Strategy#STANDARD} would have taken for these tokens, by the measured times
 *                   of passes
 * @param rowsCopied rows of logits that a GPU keeps and that had to be copied to the host: for combine functions, and
 *                   for other work that the GPU cannot do
 * @param prefixTokens     tokens that models did not have to compute, because a session with the same beginning had
 * @param recomputedTokens tokens that models computed once more, because other sessions had taken their memory
 */
public record Stats(
        long steps,
        long tokens,
        long proposed,
        long tested,
        long accepted,
        long forwards,
        long positions,
        long modelNs,
        long totalNs,
        long nearTies,
        long plannedNs,
        long expectedNs,
        long standardNs,
        long rowsCopied,
        long prefixTokens,
        long recomputedTokens) {

    static Stats of(long[] values) {
        return new Stats(values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7],
                values[8], values[9], values[10], values[11], values[12], values[13], values[14], values[15]);
    }
}
