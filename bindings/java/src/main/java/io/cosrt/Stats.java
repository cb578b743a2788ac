package io.cosrt;

/**
 * What a session did so far, or all sessions of an engine.
 *
 * @param steps      calls of {@link Session#step}
 * @param tokens     tokens committed, prompts excluded
 * @param proposed   proposals made
 * @param tested     proposals that reached an accept or reject decision; others were dropped behind a rejection or an end
 * @param accepted   proposals accepted
 * @param forwards   passes of all models, those over nothing but prompt excluded
 * @param positions  positions that all models scored, those of the prompt excluded
 * @param modelNs    nanoseconds inside ONNX Runtime, prompts included
 * @param totalNs    nanoseconds inside steps
 * @param nearTies   greedy choices between two nearly equal scores, which passes of other widths may decide otherwise
 * @param plannedNs  with {@link Strategy#AUTO}, nanoseconds inside steps since a first look at the plan, passes over prompts
 *                   excluded; 0 with any other, as the next two are. They are about the same tokens: standardNs / plannedNs
 *                   is the measured gain of planning, standardNs / expectedNs the one that was expected.
 * @param expectedNs nanoseconds that these tokens were expected to take, as the plans were chosen
 * @param standardNs nanoseconds that {@link Strategy#STANDARD} would have taken for them, by the measured times of the
 *                   models' passes
 * @param rowsCopied rows of logits that models on a GPU keep there, and that had to be copied to the host: for
 *                   functions of the caller, and other work that is not done on the GPU
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
        long rowsCopied) {

    static Stats of(long[] values) {
        return new Stats(values[0], values[1], values[2], values[3], values[4], values[5], values[6], values[7], values[8],
                values[9], values[10], values[11], values[12], values[13]);
    }
}
