// The codes of errors.

package io.cosrt;

/** The code of an error. The numbers are those of the C interface and never change. */
public enum ErrorCode {
    /** An argument is out of range or of the wrong size. */
    INVALID_ARGUMENT(1),
    /** The engine configuration is wrong. */
    CONFIG(2),
    /** A model cannot be loaded, is not a language model, or does not fit the other models. */
    MODEL(3),
    /** ONNX Runtime is missing, too old, or failed. */
    RUNTIME(4),
    /** The tokens do not fit into the context of the models. */
    CONTEXT_FULL(5),
    /** Logits or scores were NaN or plus infinity, or minus infinity for every token. */
    NUMERIC(6),
    /** Another thread is using the session, the stream or the request. */
    BUSY(7),
    /** The request is valid, but this version does not support it. */
    UNSUPPORTED(8),
    /** A buffer is too small. This binding makes its own buffers, so this would be a bug. */
    BUFFER_TOO_SMALL(9),
    /** An earlier call on the session failed with {@link #INTERNAL}. The session can only be closed. */
    POISONED(10),
    /** A bug of the library. The process is unharmed. */
    INTERNAL(11),
    /** A function of the caller failed, such as a {@link Combiner}. Its exception is the cause. */
    CALLBACK(12),
    /** The caches of other sessions take all the memory that the configuration allows. Nothing is lost: try later. */
    NO_MEMORY(13),
    /** A {@link Request} names a model that is not there. */
    NOT_FOUND(14),
    /** A code of a later library that this version does not know. {@link CosException#number} has its number. */
    UNKNOWN(0);

    private final int number;

    ErrorCode(int number) {
        this.number = number;
    }

    /** The number in the C interface. */
    public int number() {
        return number;
    }

    /** The status of HTTP for an error that this binding finds itself. The library tells that of its own. */
    int httpStatus() {
        return this == INVALID_ARGUMENT || this == UNSUPPORTED ? 400 : 500;
    }

    static ErrorCode of(int number) {
        for (ErrorCode code : values()) {
            if (code.number == number) {
                return code;
            }
        }
        return UNKNOWN;
    }
}
