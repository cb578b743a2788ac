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
        DRAWN(0),
        /** Proposed, and accepted. */
        ACCEPTED(1),
        /** Drawn in place of a proposal that was rejected. */
        REPLACED(2),
        /** The only token that the constraint allowed. */
        FORCED(3);

        private static final Kind[] ALL = values(); // because values() makes a copy, and every token needs its kind

        private final int number;

        Kind(int number) {
            this.number = number;
        }
    }

    static Origin of(int kind, int model) {
        for (Kind known : Kind.ALL) {
            if (known.number == kind) {
                return new Origin(known, model);
            }
        }
        throw new CosException(ErrorCode.UNSUPPORTED, "a token came about in the way " + kind
                + ", which this binding does not know; update the binding");
    }
}
