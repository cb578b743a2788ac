// What an engine is prepared for.

package io.cosrt;

import java.time.Duration;
import java.util.Objects;
import java.util.concurrent.atomic.AtomicBoolean;
import java.util.function.DoublePredicate;

/** What {@link Engine#prepare} prepares for, and for how long. Immutable. */
public final class PrepareOptions {
    private final int sessions;
    private final int tokens;
    private final Duration time;
    private final DoublePredicate progress;

    private PrepareOptions(Builder builder) {
        sessions = builder.sessions;
        tokens = builder.tokens;
        time = builder.time;
        progress = builder.progress;
    }

    /** The defaults, to be changed. */
    public static Builder builder() {
        return new Builder();
    }

    double prepare(long engine, AtomicBoolean closing) {
        double seconds = time.getSeconds() + 1e-9 * time.getNano();
        return Native.enginePrepare(engine, sessions, tokens, seconds,
                share -> progress.test(share) && !closing.get());
    }

    /** Makes options. */
    public static final class Builder {
        private int sessions;
        private int tokens;
        private Duration time = Duration.ZERO;
        private DoublePredicate progress = share -> true;

        private Builder() {}

        /** Most sessions that will decode at the same time, up to 1024; 0: 16. */
        public Builder sessions(int sessions) {
            this.sessions = sessions;
            return this;
        }

        /** Most tokens of a usual text, with its prompt; 0: 1024. */
        public Builder tokens(int tokens) {
            this.tokens = tokens;
            return this;
        }

        /** The time after which no further pass begins; zero: 30 seconds. */
        public Builder time(Duration time) {
            this.time = Objects.requireNonNull(time, "time");
            return this;
        }

        /**
         * Is told which share is done, from 0 to 1, and returns whether to go on. It is called on the thread of
         * {@link Engine#prepare}, before each pass. If it throws, {@code prepare} throws a {@link CosException} with
         * {@link ErrorCode#CALLBACK} and this cause.
         */
        public Builder progress(DoublePredicate progress) {
            this.progress = Objects.requireNonNull(progress, "progress");
            return this;
        }

        /** The options that were set so far. The builder may be used again. */
        public PrepareOptions build() {
            return new PrepareOptions(this);
        }
    }
}
