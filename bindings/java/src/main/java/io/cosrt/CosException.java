// The exception for errors of the library.

package io.cosrt;

/** An error of the library: a code, and a message that says what is wrong, and how to mend it where that is known. */
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

    /** The code of the error. */
    public ErrorCode code() {
        return code;
    }

    /** The number of the code. It is also known where {@link #code} is {@link ErrorCode#UNKNOWN}. */
    public int number() {
        return number;
    }
}
