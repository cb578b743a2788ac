// Whose numbers draw routed targets.

package io.cosrt;

/** Whose numbers draw routed targets. It does not change the distribution of the tokens. */
public enum Routes {
    /** As "routes" in the configuration says; without it, {@link #SHARED} under {@link Strategy#AUTO}, else OWN. */
    AUTO(0),
    /** Those of the session alone. */
    OWN(1),
    /**
     * Those of passes, which their sessions have in common: one pass serves more of them. Each session follows its
     * distribution exactly, but they depend on each other, and a seed does not repeat a text. Two sessions of one
     * scope that began with the same prompt never share, nor do forks.
     */
    SHARED(2);

    final int number;

    Routes(int number) {
        this.number = number;
    }
}
