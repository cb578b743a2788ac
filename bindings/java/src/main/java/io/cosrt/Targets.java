// The distributions that positions are verified against.

package io.cosrt;

/** The distribution that positions are verified against. It does not change the distribution of the tokens. */
public enum Targets {
    /** {@link #ROUTED} under {@link Strategy#AUTO} where it applies, otherwise {@link #COMBINED}. */
    AUTO(0),
    /** The combined distribution, which needs every model with a weight other than 0. */
    COMBINED(1),
    /**
     * One model, drawn by the weights, so a position needs only that model. The joint distribution of the tokens is the
     * same. For "weighted" with a temperature above 0.
     */
    ROUTED(2);

    final int number;

    Targets(int number) {
        this.number = number;
    }
}
