package io.cosrt;

/** What kind of error it is. The numbers are those of the C interface and never change. */
public enum ErrorCode {
    /** An argument of the call is wrong: out of range, or of the wrong size. */
    INVALID_ARGUMENT(1),
    /** The engine configuration is wrong. */
    CONFIG(2),
    /** A model cannot be loaded, is no language model, or does not fit the others. */
    MODEL(3),
    /** ONNX Runtime is missing, too old, or failed. */
    RUNTIME(4),
    /** The context of the models has no room for the tokens. */
    CONTEXT_FULL(5),
    /** Logits were NaN or infinite, or left no token possible. */
    NUMERIC(6),
    /** The session is in use on another thread. */
    BUSY(7),
    /** The request is valid, but this version does not support it. */
    UNSUPPORTED(8),
    /** A buffer is too small. This binding makes its own, so it would be a bug. */
    BUFFER_TOO_SMALL(9),
    /** An earlier call on the session ended in {@link #INTERNAL}; the session can only be closed. */
    POISONED(10),
    /** A bug of the library. The process is unharmed. */
    INTERNAL(11),
    /** A {@link Combiner} failed; its exception is the cause. */
    CALLBACK(12),
    /** A code of a later library that this version does not know; see {@link CosException#number}. */
    UNKNOWN(0);

    private final int number;

    ErrorCode(int number) {
        this.number = number;
    }

    /** The number in the C interface. */
    public int number() {
        return number;
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
