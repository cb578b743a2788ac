// The reasons why a sequence ends.

package io.cosrt;

/** Whether and why a sequence ended. */
public enum Finish {
    /** The sequence goes on. */
    NONE(0),
    /** A stop token was committed. It is the last token. */
    STOP(1),
    /** {@link SessionOptions.Builder#maxTokens} tokens were generated since the last prompt. */
    MAX_TOKENS(2),
    /** The context has no room for another token. */
    CONTEXT_FULL(3),
    /** {@link Session#cancel} stopped the step, or the session is being closed. */
    CANCELLED(4),
    /** The constraint is complete: no token may follow. */
    COMPLETE(5),
    /** A stop string ended the text of a choice of a {@link Request}. Sessions do not end so. */
    STOP_STRING(6);

    private final int number;

    Finish(int number) {
        this.number = number;
    }

    static Finish of(int number) {
        for (Finish finish : values()) {
            if (finish.number == number) {
                return finish;
            }
        }
        throw new CosException(ErrorCode.UNSUPPORTED, "the sequence ended for the reason "
                + number + ", which this binding does not know; update the binding");
    }
}
