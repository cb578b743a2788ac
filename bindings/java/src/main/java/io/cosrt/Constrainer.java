// The constraint function of a caller.

package io.cosrt;

import java.nio.IntBuffer;

/**
 * A function of the caller that says which tokens may come next in a text.
 *
 * <p>What it says must depend on the tokens of the text alone. {@link Session#step} calls it on its own thread for each
 * position that is drafted or decided, also for positions whose tokens are dropped later. So texts go back. {@link
 * Text#kept} makes that cheap: a function that keeps a state takes tokens back until it has that many, and then adds
 * those behind them.
 *
 * <p>What a {@link Combiner} may do with its session, it may too, and what it throws is treated alike. A fork calls the
 * same function, perhaps at the same time.
 */
@FunctionalInterface
public interface Constrainer {
    /**
     * A text, which begins behind the last prompt.
     *
     * @param tokens the text so far, pending tokens included; read-only
     * @param kept   so many tokens from the front are those of the last call with the same number
     * @param number of the session. No other session of the process has it, nor has a fork.
     */
    record Text(IntBuffer tokens, int kept, long number) {}

    /**
     * Says which tokens may come next.
     *
     * <p><b>The buffers are memory of the library, not copies. Do not use them after this method has returned.</b>
     *
     * @param text the text so far
     * @param mask in/out: a bit for each token, token t in bit t % 32 of element t / 32. All bits are set. Clear those
     *             of the tokens that may not come next. If no bit is left, the text is complete and ends.
     * @throws Exception to make the step fail
     */
    void constrain(Text text, IntBuffer mask) throws Exception;
}
