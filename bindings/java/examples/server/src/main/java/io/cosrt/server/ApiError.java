// Errors of the server.

package io.cosrt.server;

import io.cosrt.CosException;
import io.vertx.core.http.HttpServerResponse;
import io.vertx.core.json.JsonObject;
import tools.jackson.core.JacksonException;

/** An error in the format of OpenAI. */
final class ApiError extends RuntimeException {
    final int status;
    private final String code;

    ApiError(int status, String message, String code) {
        super(message);
        this.status = status;
        this.code = code;
    }

    /** The client caused errors about arguments. All others are errors of the server. */
    static ApiError of(Throwable failure) {
        if (failure instanceof ApiError error) {
            return error;
        } else if (failure instanceof JacksonException e) {
            return new ApiError(400, e.getOriginalMessage() + " " + e.getPathReference(), null);
        } else if (failure instanceof CosException e) {
            return switch (e.code()) {
                case INVALID_ARGUMENT, UNSUPPORTED -> new ApiError(400, e.getMessage(), null);
                case CONTEXT_FULL -> new ApiError(400, e.getMessage(), "context_length_exceeded");
                case NO_MEMORY -> new ApiError(503, e.getMessage(), null);
                default -> new ApiError(500, e.getMessage(), null);
            };
        }
        return new ApiError(500, failure.toString(), null);
    }

    /** Sets the head of a response. */
    static void head(HttpServerResponse response, int status) {
        response.setStatusCode(status).putHeader("Content-Type", "application/json");
        if (status == 429 || status == 503) {
            response.putHeader("Retry-After", "1");
        }
    }

    String json() {
        String type = status >= 500 ? "server_error" : status == 429 ? "rate_limit_error" : "invalid_request_error";
        JsonObject error = JsonObject.of("message", getMessage(), "type", type, "param", null, "code", code);
        return JsonObject.of("error", error).encode();
    }
}
