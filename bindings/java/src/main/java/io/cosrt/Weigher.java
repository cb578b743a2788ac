// The weights function of a caller.

package io.cosrt;

import java.nio.FloatBuffer;
import java.nio.IntBuffer;
import java.util.List;

/**
 * A function of the caller that gives the models the weights of one position.
 *
 * <p>Decoding is exact only if the weights depend on nothing but the arguments: the function may be called again for
 * the same position. {@link Session#step} calls it on its own thread for each position that is decided. What a {@link
 * Combiner} may do with its session, it may too, and what it throws is treated alike.
 */
@FunctionalInterface
public interface Weigher {
    /**
     * Weighs the models of one position.
     *
     * <p><b>The buffers are memory of the library, not copies. Do not use them after this method has returned.</b>
     *
     * @param tokens  the tokens before the position, prompts included; read-only
     * @param models  a summary of each model, in the order of the configuration
     * @param weights in/out: one weight for each model; before, those of the session. They must be such as {@link
     *                SessionOptions.Builder#weights} takes. A model with the weight 0 in the session has not run, and
     *                must keep 0.
     * @throws Exception to make the step fail
     */
    void weigh(IntBuffer tokens, List<ModelSummary> models, FloatBuffer weights) throws Exception;
}
