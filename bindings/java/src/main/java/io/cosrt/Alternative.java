// A token that might have come.

package io.cosrt;

/**
 * A token that might have come instead of another one, or that token itself.
 *
 * @param token          the token
 * @param logProbability the natural logarithm of its probability
 */
public record Alternative(int token, float logProbability) {}
