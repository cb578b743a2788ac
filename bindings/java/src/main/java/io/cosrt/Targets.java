package io.cosrt;

/** What positions are verified against. Does not change the distribution. */
public enum Targets {
    /** {@link #ROUTED} under {@link Strategy#AUTO} where it applies, {@link #COMBINED} otherwise. */
    AUTO(0),
    /** Every position is verified against the combined distribution, which needs all models. */
    COMBINED(1),
    /**
     * Every position is verified against one model that is drawn from the weights. The tokens follow the same joint
     * distribution, and a position needs one model only. For "weighted" with a temperature above 0.
     */
    ROUTED(2);

    final int number;

    Targets(int number) {
        this.number = number;
    }
}
