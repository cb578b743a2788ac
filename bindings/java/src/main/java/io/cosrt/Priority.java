// How urgent tokens are.

package io.cosrt;

/** How urgent the tokens are. It does not change the distribution of the tokens. */
public enum Priority {
    /** Somebody waits for them. */
    INTERACTIVE(0),
    /**
     * Only the end of the text matters. All batch sessions together make passes of interactive sessions at most twice
     * as long. If memory is short, a batch session counts as started after the next thousand others.
     */
    BATCH(1);

    final int number;

    Priority(int number) {
        this.number = number;
    }
}
