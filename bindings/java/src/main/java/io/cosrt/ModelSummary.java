// What a model thinks of a position.

package io.cosrt;

/**
 * What a model thinks of the next token, by the plain softmax of its logits.
 *
 * @param confidence the probability of its best token. NaN for look-ups, and for models with the weight 0.
 * @param entropy    the entropy of its distribution in nats. NaN likewise.
 * @param best       its best token. -1 likewise.
 */
public record ModelSummary(float confidence, float entropy, int best) {}
