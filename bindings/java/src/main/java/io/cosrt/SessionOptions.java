package io.cosrt;

import java.util.Objects;

/** How a session decodes; immutable. What a builder is not told stays as it is: greedy and automatic. */
public final class SessionOptions {
    private final Strategy strategy;
    private final float temperature;
    private final int topK;
    private final float topP;
    private final float minP;
    private final long seed;
    private final long maxTokens;
    private final int[] proposalLengths;
    private final float[] weights;
    private final int[] stopTokens;
    private final Targets targets;
    private final boolean logProbabilities;
    private final Combiner combiner;

    private SessionOptions(Builder builder) {
        strategy = builder.strategy;
        temperature = builder.temperature;
        topK = builder.topK;
        topP = builder.topP;
        minP = builder.minP;
        seed = builder.seed;
        maxTokens = builder.maxTokens;
        proposalLengths = builder.proposalLengths;
        weights = builder.weights;
        stopTokens = builder.stopTokens;
        targets = builder.targets;
        logProbabilities = builder.logProbabilities;
        combiner = builder.combiner;
    }

    /** Begins with a greedy and automatic session. */
    public static Builder builder() {
        return new Builder();
    }

    Combiner combiner() {
        return combiner;
    }

    /** The pointer of a new session. */
    long newSession(long engine) {
        return Native.sessionNew(engine, strategy.number, temperature, topK, topP, minP, seed, (int) maxTokens, proposalLengths,
                weights, stopTokens, targets.number, logProbabilities, combiner != null);
    }

    /**
     * Collects options. Numbers are checked when a session is made of them, except where their type can hold what the C
     * interface cannot.
     */
    public static final class Builder {
        private Strategy strategy = Strategy.AUTO;
        private float temperature;
        private int topK;
        private float topP;
        private float minP;
        private long seed;
        private long maxTokens;
        private int[] proposalLengths;
        private float[] weights;
        private int[] stopTokens;
        private Targets targets = Targets.AUTO;
        private boolean logProbabilities;
        private Combiner combiner;

        private Builder() {}

        /** How to get tokens. All strategies follow the same distribution. */
        public Builder strategy(Strategy strategy) {
            this.strategy = Objects.requireNonNull(strategy, "strategy");
            return this;
        }

        /**
         * 0 is greedy: the token of the highest score, among equal ones the lowest. Otherwise scores are divided by it.
         * With "weighted", a small one (0.01 and less) is not greedy: one of the models' own best tokens is drawn. Set
         * 0 for the best token of the mixture, or "greedy_below" in the configuration of the engine.
         */
        public Builder temperature(float temperature) {
            this.temperature = temperature;
            return this;
        }

        /** Sample among this many best tokens of each distribution; 0 is off. */
        public Builder topK(int topK) {
            this.topK = topK;
            return this;
        }

        /** Sample among the fewest best tokens with this share of the probability; 0 or 1 is off. */
        public Builder topP(float topP) {
            this.topP = topP;
            return this;
        }

        /** Sample among tokens with at least this share of the best one's probability; 0 is off. */
        public Builder minP(float minP) {
            this.minP = minP;
            return this;
        }

        /**
         * Seed of the random numbers, of which all 64 bits count. The same seed, strategy (not AUTO) and number of threads
         * give the same tokens.
         */
        public Builder seed(long seed) {
            this.seed = seed;
            return this;
        }

        /**
         * Most tokens to generate after each prompt; 0 is until the context is full.
         *
         * @throws CosException INVALID_ARGUMENT if it is negative or above 2³² − 1
         */
        public Builder maxTokens(long maxTokens) {
            if (maxTokens >>> 32 != 0) { // an unsigned number in C
                throw new CosException(ErrorCode.INVALID_ARGUMENT, "maxTokens is " + maxTokens + ", not from 0 to 4294967295");
            }
            this.maxTokens = maxTokens;
            return this;
        }

        /**
         * Tokens that each model proposes in a row (γ), in the engine's order, 0 to 64; null: chosen by the library. With
         * {@link Strategy#SPECULATIVE} the cheapest model with a length above 0 drafts.
         */
        public Builder proposalLengths(int... proposalLengths) {
            this.proposalLengths = proposalLengths == null ? null : proposalLengths.clone();
            return this;
        }

        /** Weights in place of the engine's, for "weighted" and "logits"; null: the engine's. */
        public Builder weights(float... weights) {
            this.weights = weights == null ? null : weights.clone();
            return this;
        }

        /** Tokens that end the sequence; null: the end-of-sequence tokens that came with the models. Empty: none. */
        public Builder stopTokens(int... stopTokens) {
            this.stopTokens = stopTokens == null ? null : stopTokens.clone();
            return this;
        }

        /** What positions are verified against. Does not change the distribution. */
        public Builder targets(Targets targets) {
            this.targets = Objects.requireNonNull(targets, "targets");
            return this;
        }

        /**
         * Get the log-probability of each token from steps. It takes the combined distribution, so {@link Targets#AUTO} then
         * means combined, and {@link Targets#ROUTED} is an error.
         */
        public Builder logProbabilities(boolean logProbabilities) {
            this.logProbabilities = logProbabilities;
            return this;
        }

        /**
         * A combination in place of the engine's, or null. The models that the engine's combination gives a weight other
         * than 0 (here those of {@link #weights}, where given) take part; what else it says is not used.
         */
        public Builder combiner(Combiner combiner) {
            this.combiner = combiner;
            return this;
        }

        /** The options so far; the builder may be used on. */
        public SessionOptions build() {
            return new SessionOptions(this);
        }
    }
}
