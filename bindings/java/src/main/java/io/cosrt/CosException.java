// The exception for errors of the library.

package io.cosrt;

/** An error of the library: a code, and a message that says what is wrong, and how to mend it where that is known. */
public final class CosException extends RuntimeException {
    private static final long serialVersionUID = 1;

    private final ErrorCode code;
    private final int number;
    private final int httpStatus;
    private final String json;

    /** An error that this binding finds itself. */
    CosException(ErrorCode code, String message) {
        this(code, message, null);
    }

    CosException(ErrorCode code, String message, Throwable cause) {
        this(code.number(), message, cause, code.httpStatus(), json(code, message));
    }

    /** An error of the library, which knows what answers it. */
    CosException(int number, String message, Throwable cause, int httpStatus, String json) {
        super(message, cause);
        this.code = ErrorCode.of(number);
        this.number = number;
        this.httpStatus = httpStatus;
        this.json = json;
    }

    /** The library's format. Messages of this binding have no character that JSON must escape but these. */
    private static String json(ErrorCode code, String message) {
        return "{\"error\": {\"message\": \"%s\", \"type\": \"%s\", \"param\": null, \"code\": null}}".formatted(
                message.replace("\\", "\\\\").replace("\"", "\\\""),
                code.httpStatus() < 500 ? "invalid_request_error" : "server_error");
    }

    /** The code of the error. */
    public ErrorCode code() {
        return code;
    }

    /** The number of the code. It is also known where {@link #code} is {@link ErrorCode#UNKNOWN}. */
    public int number() {
        return number;
    }

    /** The status of HTTP with which a server answers a request that met this error: 400, 404, 500 or 503. */
    public int httpStatus() {
        return httpStatus;
    }

    /**
     * The body with which a server of OpenAI's protocol answers a request that met this error, and the event if it
     * streams.
     */
    public String json() {
        return json;
    }
}
