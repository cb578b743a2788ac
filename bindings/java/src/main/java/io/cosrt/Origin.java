// How a token came about.

package io.cosrt;

/**
 * How a token came about.
 *
 * @param kind  in which way
 * @param model the index of the model or look-up that proposed the token, or the token that was replaced. Of a token
 *              that was drawn from the distribution of one model, as with routed targets, that model. Otherwise -1.
 */
public record Origin(Kind kind, int model) {
    /** The ways in which tokens come about. */
    public enum Kind {
        /** Drawn from the target distribution, where nothing was proposed. */
        DRAWN,
        /** Proposed, and accepted. */
        ACCEPTED,
        /** Drawn in place of a proposal that was rejected. */
        REPLACED,
        /** The only token that the constraint allowed. */
        FORCED;

        private static final Kind[] BY_NUMBER = values();
    }

    static Origin of(int kind, int model) {
        if (kind < 0 || kind >= Kind.BY_NUMBER.length) {
            throw new CosException(ErrorCode.UNSUPPORTED, "a token came about in the way " + kind
                    + ", which this binding does not know; update the binding");
        }
        return new Origin(Kind.BY_NUMBER[kind], model);
    }
}
