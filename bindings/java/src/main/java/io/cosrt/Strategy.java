// The strategies.

package io.cosrt;

/** Which models run when. It does not change the distribution of the tokens, only the speed. */
public enum Strategy {
    /** The library chooses what is expected to be fastest. */
    AUTO(0),
    /** Every model scores every position, and nobody drafts: the baseline. */
    STANDARD(1),
    /** One model drafts, and all others verify. */
    SPECULATIVE(2),
    /** Collaborative decoding via speculation: the models take turns as the proposer. */
    COS(3);

    final int number;

    Strategy(int number) {
        this.number = number;
    }
}
