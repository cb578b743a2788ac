package io.cosrt;

/** How a session gets its tokens. All strategies follow the same distribution; only the time differs. */
public enum Strategy {
    /** Chosen by the library: what follows the same distribution at the least cost. */
    AUTO(0),
    /** Every model scores every position, nobody proposes: the baseline. */
    STANDARD(1),
    /** One model drafts, all others score. */
    SPECULATIVE(2),
    /** Collaborative decoding via speculation: the models take turns in proposing. */
    COS(3);

    final int number;

    Strategy(int number) {
        this.number = number;
    }
}
