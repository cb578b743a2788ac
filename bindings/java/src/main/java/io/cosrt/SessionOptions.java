// Options of a session.

package io.cosrt;

import java.util.Map;
import java.util.Objects;
import java.util.stream.IntStream;
import java.util.stream.Stream;

/** How a session decodes. Immutable. The default is greedy, with an automatic strategy. */
public final class SessionOptions {
    private final Builder of;

    private SessionOptions(Builder builder) {
        of = builder.copy();
    }

    /** A builder with the default options. */
    public static Builder builder() {
        return new Builder();
    }

    /** A builder with these options, to change some of them. */
    public Builder toBuilder() {
        return of.copy();
    }

    Combiner combiner() {
        return of.combiner;
    }

    Constrainer constrainer() {
        return of.constrainer;
    }

    Weigher weigher() {
        return of.weigher;
    }

    long seed() {
        return of.seed;
    }

    /** Everything but the seed and the functions, in the order of {@code native/cosjni.c}. */
    Object[] arrays() {
        int[] numbers = {
            of.strategy.number, of.topK, (int) of.maxTokens, of.targets.number, of.routes.number, of.priority.number,
            of.logProbabilities ? 1 : 0, (int) of.minTokens, of.noRepeatNgram,
            of.constraint == null ? Constraint.NONE : of.constraint.kind, of.topLogProbabilities,
            of.modelLogProbabilities ? 1 : 0, of.logProbabilitiesBefore ? 1 : 0, of.dryAllowedLength,
        };
        float[] reals = {
            of.temperature, of.topP, of.minP, of.repetitionPenalty, of.presencePenalty, of.frequencyPenalty,
            of.typicalP, of.xtcProbability, of.xtcThreshold, of.dryMultiplier, of.dryBase,
        };
        return new Object[] {
            numbers, reals, of.proposalLengths, of.weights, of.stopTokens, of.biasTokens, of.biasValues,
            of.bannedTokens, of.bannedLengths, of.dryBreakers, of.constraint == null ? null : of.constraint.source,
        };
    }

    /**
     * Collects options. Numbers are checked when a session is made. Only numbers that the types of C cannot hold are
     * checked here.
     */
    public static final class Builder implements Cloneable {
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
        private float repetitionPenalty;
        private float presencePenalty;
        private float frequencyPenalty;
        private long minTokens;
        private int[] biasTokens;
        private float[] biasValues;
        private int[] bannedTokens;
        private int[] bannedLengths;
        private int noRepeatNgram;
        private Constraint constraint;
        private Constrainer constrainer;
        private int topLogProbabilities;
        private boolean modelLogProbabilities;
        private boolean logProbabilitiesBefore;
        private float typicalP;
        private float xtcProbability;
        private float xtcThreshold;
        private float dryMultiplier;
        private float dryBase;
        private int dryAllowedLength;
        private int[] dryBreakers;
        private Weigher weigher;

        private Builder() {}

        /** A copy. Arrays are shared, because nothing changes them. */
        private Builder copy() {
            try {
                return (Builder) clone();
            } catch (CloneNotSupportedException impossible) {
                throw new AssertionError(impossible);
            }
        }

        /** Checks an unsigned number of 32 bits in C. */
        static long unsigned(String name, long number) {
            if (number >>> 32 != 0) {
                String message = name + " is " + number + "; it must be from 0 to 4294967295";
                throw new CosException(ErrorCode.INVALID_ARGUMENT, message);
            }
            return number;
        }

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
            this.maxTokens = unsigned("maxTokens", maxTokens);
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
         * {@link Targets#AUTO} then means combined, and {@link Targets#ROUTED} is an error. They are those of the
         * distribution that tokens are drawn from. For a greedy session, they are those at temperature 1 without
         * filters.
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

        /**
         * Scores of tokens of the prompt or the text: positive ones are divided by it, and all others multiplied. 0 or
         * 1 is off. Scores change in this order: bias, this penalty, the presence and the frequency penalty, bans and
         * the constraint, then temperature and filters. With "weighted", those of each model change before they are
         * mixed.
         */
        public Builder repetitionPenalty(float repetitionPenalty) {
            this.repetitionPenalty = repetitionPenalty;
            return this;
        }

        /** Subtracted from the scores of tokens behind the last prompt; 0 is off. */
        public Builder presencePenalty(float presencePenalty) {
            this.presencePenalty = presencePenalty;
            return this;
        }

        /** Subtracted from the score of a token for each time that it is behind the last prompt; 0 is off. */
        public Builder frequencyPenalty(float frequencyPenalty) {
            this.frequencyPenalty = frequencyPenalty;
            return this;
        }

        /**
         * No stop token comes before so many tokens behind the last prompt; 0 is off.
         *
         * @throws CosException INVALID_ARGUMENT if it is negative or above 2³² − 1
         */
        public Builder minTokens(long minTokens) {
            this.minTokens = unsigned("minTokens", minTokens);
            return this;
        }

        /** What is added to the scores of tokens. Minus infinity bans a token. */
        public Builder logitBias(Map<Integer, Float> logitBias) {
            biasTokens = new int[logitBias.size()];
            biasValues = new float[logitBias.size()];
            int index = 0;
            for (Map.Entry<Integer, Float> entry : logitBias.entrySet()) {
                biasTokens[index] = entry.getKey();
                biasValues[index++] = entry.getValue();
            }
            return this;
        }

        /**
         * Runs of tokens that must not come behind the last prompt, each of one token or more. A run that the end of
         * the prompt has begun is not completed either.
         */
        public Builder bannedTokens(int[]... runs) {
            bannedLengths = Stream.of(runs).mapToInt(run -> run.length).toArray();
            bannedTokens = Stream.of(runs).flatMapToInt(IntStream::of).toArray();
            return this;
        }

        /** No run of so many tokens comes twice in prompt and text; 0 is off. */
        public Builder noRepeatNgram(int noRepeatNgram) {
            this.noRepeatNgram = noRepeatNgram;
            return this;
        }

        /** What the text must be, or null. It excludes {@link #constrainer}. */
        public Builder constraint(Constraint constraint) {
            this.constraint = constraint;
            return this;
        }

        /** A function that says which tokens may come next, or null. */
        public Builder constrainer(Constrainer constrainer) {
            this.constrainer = constrainer;
            return this;
        }

        /** How many of the most probable tokens a step has for each token, 0 to 20. They need logProbabilities. */
        public Builder topLogProbabilities(int topLogProbabilities) {
            this.topLogProbabilities = topLogProbabilities;
            return this;
        }

        /** Whether a step has the log-probabilities of tokens under each model. They need logProbabilities. */
        public Builder modelLogProbabilities(boolean modelLogProbabilities) {
            this.modelLogProbabilities = modelLogProbabilities;
            return this;
        }

        /**
         * Whether all log-probabilities are those before bias, penalties, bans and constraint, at temperature 1 and
         * without filters.
         */
        public Builder logProbabilitiesBefore(boolean logProbabilitiesBefore) {
            this.logProbabilitiesBefore = logProbabilitiesBefore;
            return this;
        }

        /**
         * Locally typical sampling: keep the fewest tokens whose information is nearest to the entropy, and that
         * together have this probability; 0 or 1 is off. Judged behind penalties and the constraint, at temperature 1,
         * and before the filters. A greedy session does without.
         */
        public Builder typicalP(float typicalP) {
            this.typicalP = typicalP;
            return this;
        }

        /**
         * Exclude top choices: with this probability for each position, all tokens of at least the probability {@link
         * #xtcThreshold} are dropped but for the least probable one of them. Judged as {@link #typicalP}, behind it; 0
         * is off.
         */
        public Builder xtcProbability(float xtcProbability) {
            this.xtcProbability = xtcProbability;
            return this;
        }

        /** See {@link #xtcProbability}. */
        public Builder xtcThreshold(float xtcThreshold) {
            this.xtcThreshold = xtcThreshold;
            return this;
        }

        /**
         * DRY: a token that would go on with a run of n tokens that came before in prompt or text loses
         * dryMultiplier · dryBase^(n − dryAllowedLength), if n is at least dryAllowedLength; 0 is off.
         */
        public Builder dryMultiplier(float dryMultiplier) {
            this.dryMultiplier = dryMultiplier;
            return this;
        }

        /** See {@link #dryMultiplier}. At least 1, such as 1.75. */
        public Builder dryBase(float dryBase) {
            this.dryBase = dryBase;
            return this;
        }

        /** See {@link #dryMultiplier}. At least 1, such as 2. */
        public Builder dryAllowedLength(int dryAllowedLength) {
            this.dryAllowedLength = dryAllowedLength;
            return this;
        }

        /** Tokens that no run of {@link #dryMultiplier} goes across, such as those of line ends. */
        public Builder dryBreakers(int... dryBreakers) {
            this.dryBreakers = dryBreakers.clone();
            return this;
        }

        /**
         * A function that gives the models the weights of each position, for "weighted" and "logits", or null. Targets
         * are then combined.
         */
        public Builder weigher(Weigher weigher) {
            this.weigher = weigher;
            return this;
        }

        /** The options that were set so far. The builder may be used again. */
        public SessionOptions build() {
            return new SessionOptions(this);
        }
    }
}
