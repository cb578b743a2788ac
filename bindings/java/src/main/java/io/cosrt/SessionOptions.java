// Options of a session.

package io.cosrt;

import java.util.Objects;

/** How a session decodes. Immutable. The default is greedy, with an automatic strategy. */
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
    private final Routes routes;
    private final Priority priority;
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
        routes = builder.routes;
        priority = builder.priority;
        logProbabilities = builder.logProbabilities;
        combiner = builder.combiner;
    }

    /** A builder with the default options. */
    public static Builder builder() {
        return new Builder();
    }

    Combiner combiner() {
        return combiner;
    }

    /** Makes a session, and returns its pointer. {@code number} is that of its combiner. */
    long newSession(long engine, long number) {
        return Native.sessionNew(engine, strategy.number, temperature, topK, topP, minP, seed, (int) maxTokens,
                proposalLengths, weights, stopTokens, targets.number, routes.number, priority.number,
                logProbabilities, number);
    }

    /**
     * Collects options. Numbers are checked when a session is made. Only numbers that the types of C cannot hold are
     * checked here.
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
        private Routes routes = Routes.AUTO;
        private Priority priority = Priority.INTERACTIVE;
        private boolean logProbabilities;
        private Combiner combiner;

        private Builder() {}

        /** Which models run when. It does not change the distribution of the tokens. */
        public Builder strategy(Strategy strategy) {
            this.strategy = Objects.requireNonNull(strategy, "strategy");
            return this;
        }

        /**
         * Scores are divided by it. 0 is greedy: the token with the highest score, and the lowest such token among
         * equal scores. With "weighted", a small temperature (0.01 and less) is not greedy: the weights draw one of the
         * models' own best tokens. For the best token of the mixture, set 0, or set "greedy_below" in the
         * configuration.
         */
        public Builder temperature(float temperature) {
            this.temperature = temperature;
            return this;
        }

        /** Sample among this many most probable tokens of each distribution; 0 is off. */
        public Builder topK(int topK) {
            this.topK = topK;
            return this;
        }

        /** Sample among the fewest most probable tokens that together have this probability; 0 or 1 is off. */
        public Builder topP(float topP) {
            this.topP = topP;
            return this;
        }

        /** Sample among the tokens that have at least this share of the highest probability; 0 is off. */
        public Builder minP(float minP) {
            this.minP = minP;
            return this;
        }

        /**
         * Seed of the random numbers; all 64 bits count. The tokens are the same for the same seed, strategy (other
         * than AUTO) and number of threads. They may be others behind a step that failed, or that was cancelled while
         * it ran.
         */
        public Builder seed(long seed) {
            this.seed = seed;
            return this;
        }

        /**
         * Most tokens to generate after each prompt; 0: until the context is full.
         *
         * @throws CosException INVALID_ARGUMENT if it is negative or above 2³² − 1
         */
        public Builder maxTokens(long maxTokens) {
            if (maxTokens >>> 32 != 0) { // an unsigned number of 32 bits in C
                String message = "maxTokens is " + maxTokens + "; it must be from 0 to 4294967295";
                throw new CosException(ErrorCode.INVALID_ARGUMENT, message);
            }
            this.maxTokens = maxTokens;
            return this;
        }

        /**
         * How many tokens each model proposes in a row (γ), 0 to 64, in the order of the configuration. Null: the
         * library chooses. With {@link Strategy#SPECULATIVE}, the cheapest model with a number above 0 drafts.
         */
        public Builder proposalLengths(int... proposalLengths) {
            this.proposalLengths = proposalLengths == null ? null : proposalLengths.clone();
            return this;
        }

        /** Weights in place of the engine's, for "weighted" and "logits". Null: the engine's weights. */
        public Builder weights(float... weights) {
            this.weights = weights == null ? null : weights.clone();
            return this;
        }

        /** Tokens that end the sequence. Null: the end-of-sequence tokens that came with the models. Empty: none. */
        public Builder stopTokens(int... stopTokens) {
            this.stopTokens = stopTokens == null ? null : stopTokens.clone();
            return this;
        }

        /** The distribution that positions are verified against. It does not change that of the tokens. */
        public Builder targets(Targets targets) {
            this.targets = Objects.requireNonNull(targets, "targets");
            return this;
        }

        /** Whose numbers draw routed targets. It does not change the distribution of the tokens. */
        public Builder routes(Routes routes) {
            this.routes = Objects.requireNonNull(routes, "routes");
            return this;
        }

        /** How urgent the tokens are. It does not change their distribution. */
        public Builder priority(Priority priority) {
            this.priority = Objects.requireNonNull(priority, "priority");
            return this;
        }

        /**
         * Whether steps return the log-probability of each token. These need the combined distribution, so
         * {@link Targets#AUTO} then means combined, and {@link Targets#ROUTED} is an error.
         */
        public Builder logProbabilities(boolean logProbabilities) {
            this.logProbabilities = logProbabilities;
            return this;
        }

        /**
         * A combine function in place of the engine's combination, or null. It gets the rows of the models whose weight
         * is not 0 in the engine's combination (or in {@link #weights}, if given).
         */
        public Builder combiner(Combiner combiner) {
            this.combiner = combiner;
            return this;
        }

        /** The options that were set so far. The builder may be used again. */
        public SessionOptions build() {
            return new SessionOptions(this);
        }
    }
}
