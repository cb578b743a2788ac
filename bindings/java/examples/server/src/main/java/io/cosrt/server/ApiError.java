package io.cosrt.server;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cosrt.CosException;
import io.cosrt.ErrorCode;

/** An error in OpenAI's form. */
final class ApiError extends RuntimeException {
    final int status;
    private final String type;
    private final String parameter;
    private final String code;

    private ApiError(int status, String type, String message, String parameter, String code) {
        super(message);
        this.status = status;
        this.type = type;
        this.parameter = parameter;
        this.code = code;
    }

    static ApiError invalid(String parameter, String message) {
        return new ApiError(400, "invalid_request_error", message, parameter, null);
    }

    static ApiError notFound(String message, String parameter, String code) {
        return new ApiError(404, "invalid_request_error", message, parameter, code);
    }

    static ApiError busy() {
        return new ApiError(429, "rate_limit_error", "too many completions are running; try again later", null, null);
    }

    static ApiError draining() {
        return new ApiError(503, "server_error", "the server is about to stop", null, null);
    }

    static ApiError of(int status, Throwable failure) {
        if (failure instanceof ApiError error) {
            return error;
        }
        String message = failure == null ? "the request cannot be answered" : String.valueOf(failure.getMessage());
        return new ApiError(status, status < 500 ? "invalid_request_error" : "server_error", message, null, null);
    }

    /** What the library says of a request: that it is wrong, or that the server is. */
    static ApiError of(CosException e) {
        if (e.code() == ErrorCode.CONTEXT_FULL) {
            return new ApiError(400, "invalid_request_error", e.getMessage(), "prompt", "context_length_exceeded");
        }
        return of(e.code() == ErrorCode.INVALID_ARGUMENT ? 400 : 500, e);
    }

    ObjectNode json() {
        ObjectNode json = JsonNodeFactory.instance.objectNode();
        json.putObject("error").put("message", getMessage()).put("type", type).put("param", parameter).put("code", code);
        return json;
    }
}
