// Options of a request.

package io.cosrt;

import java.util.Objects;

/** What a server knows of a {@link Request}, and how much it allows. Immutable. The default is a completion. */
public final class RequestOptions {
    private final Endpoint endpoint;
    private final byte[] model;
    private final long maxChoices;
    private final long maxPromptTokens;
    private final long maxTokens;

    private RequestOptions(Builder builder) {
        endpoint = builder.endpoint;
        model = builder.model;
        maxChoices = builder.maxChoices;
        maxPromptTokens = builder.maxPromptTokens;
        maxTokens = builder.maxTokens;
    }

    /** A builder with the default options. */
    public static Builder builder() {
        return new Builder();
    }

    long start(long engine, byte[] body) {
        return Native.requestNew(engine, body, model, endpoint.number, (int) maxChoices, (int) maxPromptTokens,
                (int) maxTokens);
    }

    /** Collects options. */
    public static final class Builder {
        private Endpoint endpoint = Endpoint.COMPLETION;
        private byte[] model;
        private long maxChoices;
        private long maxPromptTokens;
        private long maxTokens;

        private Builder() {}

        /** What the body is. */
        public Builder endpoint(Endpoint endpoint) {
            this.endpoint = Objects.requireNonNull(endpoint, "endpoint");
            return this;
        }

        /**
         * The name of the model: a body with another one is {@link ErrorCode#NOT_FOUND}. With null, the default, any
         * name is fine, and none too.
         *
         * @throws CosException INVALID_ARGUMENT (a NUL, or an unpaired surrogate)
         */
        public Builder model(String model) {
            this.model = model == null ? null : Utf8.encodeWithoutNul(model);
            return this;
        }

        /**
         * Most choices of all prompts together; 0: 128.
         *
         * @throws CosException INVALID_ARGUMENT if it is negative or above 2³² − 1
         */
        public Builder maxChoices(long maxChoices) {
            this.maxChoices = SessionOptions.Builder.unsigned("maxChoices", maxChoices);
            return this;
        }

        /**
         * Most tokens of a prompt; 0: as many as the context has.
         *
         * @throws CosException INVALID_ARGUMENT if it is negative or above 2³² − 1
         */
        public Builder maxPromptTokens(long maxPromptTokens) {
            this.maxPromptTokens = SessionOptions.Builder.unsigned("maxPromptTokens", maxPromptTokens);
            return this;
        }

        /**
         * Most tokens of a choice; 0: as the body says.
         *
         * @throws CosException INVALID_ARGUMENT if it is negative or above 2³² − 1
         */
        public Builder maxTokens(long maxTokens) {
            this.maxTokens = SessionOptions.Builder.unsigned("maxTokens", maxTokens);
            return this;
        }

        /** The options that were set so far. The builder may be used again. */
        public RequestOptions build() {
            return new RequestOptions(this);
        }
    }
}
