package io.cosrt;

import java.nio.FloatBuffer;
import java.util.List;

/**
 * A combination of the caller's own: makes one row of scores from the models' rows of logits, for one position. Tokens are
 * then decoded from the distribution that temperature, top-k, top-p, min-p and softmax make of the scores.
 *
 * <p>Exactness asks that it depends on the rows alone, for they are unchanged where it is asked again. It is called inside
 * {@link Session#step}, on its thread, possibly several times in a step and for positions whose tokens are dropped. It may
 * cancel its session and ask for its statistics; other calls on it get {@link ErrorCode#BUSY}.
 *
 * <p>What it throws becomes the cause of a {@link CosException} with {@link ErrorCode#CALLBACK} from {@code step}. A step
 * that has committed a token by then ends well, and the next one throws.
 */
@FunctionalInterface
public interface Combiner {
    /**
     * Make the scores of one position.
     *
     * <p><b>The buffers are the library's memory, not copies. Using one after this method has returned is undefined.</b>
     *
     * @param logits for each model in the engine's order its logits, one for each token of the vocabulary, read-only; null
     *               for models that the engine's combination gives the weight 0 and for look-ups. There is no NaN and no
     *               plus infinity; minus infinity is impossible.
     * @param scores to be filled, one for each token. Minus infinity is impossible. NaN (also where nothing was written),
     *               plus infinity, or minus infinity everywhere is {@link ErrorCode#NUMERIC}.
     * @throws Exception to make the step fail
     */
    void combine(List<FloatBuffer> logits, FloatBuffer scores) throws Exception;
}
