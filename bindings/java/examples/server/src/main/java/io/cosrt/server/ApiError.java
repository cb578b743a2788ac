package io.cosrt.server;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cosrt.CosException;
import io.cosrt.ErrorCode;

/** An error in OpenAI's form. */
final class ApiError extends RuntimeException {
    final int status;
    private final String parameter;
    private final String code;

    ApiError(int status, String message, String parameter, String code) {
        super(message);
        this.status = status;
        this.parameter = parameter;
        this.code = code;
    }

    static ApiError unknownModel(String name) {
        return new ApiError(404, "the model " + name + " does not exist", "model", "model_not_found");
    }

    /** Any failure: of the library, of Vert.x (which says a status), or of the server. */
    static ApiError of(Throwable failure, int status) {
        if (failure instanceof ApiError error) {
            return error;
        }
        if (failure instanceof CosException e && e.code() == ErrorCode.CONTEXT_FULL) {
            return new ApiError(400, e.getMessage(), "prompt", "context_length_exceeded");
        }
        boolean refused = failure instanceof CosException e && e.code() == ErrorCode.INVALID_ARGUMENT;
        return new ApiError(refused ? 400 : status, failure == null ? "refused" : failure.getMessage(), null, null);
    }

    ObjectNode json() {
        String type = status >= 500 ? "server_error" : status == 429 ? "rate_limit_error" : "invalid_request_error";
        ObjectNode json = JsonNodeFactory.instance.objectNode();
        json.putObject("error").put("message", getMessage()).put("type", type).put("param", parameter).put("code", code);
        return json;
    }
}
