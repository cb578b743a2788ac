package io.cosrt;

/** What the library refused, or what failed in it: a code, and a message that says what is wrong and the mend. */
public final class CosException extends RuntimeException {
    private static final long serialVersionUID = 1;

    private final ErrorCode code;
    private final int number;

    CosException(ErrorCode code, String message) {
        this(code.number(), message, null);
    }

    CosException(int number, String message, Throwable cause) {
        super(message, cause);
        this.code = ErrorCode.of(number);
        this.number = number;
    }

    /** What kind of error it is. */
    public ErrorCode code() {
        return code;
    }

    /** The number of the code, also where {@link #code} does not know it. */
    public int number() {
        return number;
    }
}
