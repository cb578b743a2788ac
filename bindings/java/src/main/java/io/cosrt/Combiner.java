// The combine function of a caller.

package io.cosrt;

import java.nio.FloatBuffer;
import java.util.List;

/**
 * A function of the caller that combines the models. For one position, it makes one row of scores from one row of
 * logits for each model. Tokens follow the distribution that temperature, top-k, top-p, min-p and softmax make of the
 * scores.
 *
 * <p>Decoding is exact only if the scores depend on nothing but the rows: the function may be called again for the same
 * rows. {@link Session#step} calls it on its own thread, possibly several times in a step, also for positions whose
 * tokens are dropped later. It may call {@link Session#cancel} and {@link Session#stats} on its session. Other calls on
 * the session fail with {@link ErrorCode#BUSY}.
 *
 * <p>If it throws, {@code step} throws a {@link CosException} with {@link ErrorCode#CALLBACK} and this cause. But a
 * step that has committed a token before returns it, and the next step throws.
 */
@FunctionalInterface
public interface Combiner {
    /**
     * Makes the scores of one position.
     *
     * <p><b>The buffers are memory of the library, not copies. Do not use them after this method has returned.</b>
     *
     * @param logits the logits of each model, in the order of the configuration: one for each token, read-only. Null
     *               for look-ups, and for models with the weight 0. No logit is NaN or plus infinity. Minus infinity
     *               marks a token that is impossible.
     * @param scores out: one score for each token, all of which must be written. Minus infinity makes a token
     *               impossible. {@code step} fails with {@link ErrorCode#NUMERIC} for NaN (also where nothing was
     *               written), for plus infinity, and if all scores are minus infinity.
     * @throws Exception to make the step fail
     */
    void combine(List<FloatBuffer> logits, FloatBuffer scores) throws Exception;
}
