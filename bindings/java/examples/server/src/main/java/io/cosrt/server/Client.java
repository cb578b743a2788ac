package io.cosrt.server;

import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cosrt.CosException;
import io.cosrt.Session;
import io.vertx.core.Future;
import io.vertx.core.buffer.Buffer;
import io.vertx.core.http.HttpServerResponse;

/** Who waits for an answer, and may leave before. */
final class Client {
    private final HttpServerResponse response;
    private final Runnable answered;
    private Session session;
    private boolean gone;

    /** {@code answered} is called once, before the end of the answer is sent. */
    Client(HttpServerResponse response, Runnable answered) {
        this.response = response;
        this.answered = answered;
        response.closeHandler(closed -> leave()); // Vert.x reads on while an answer is made, and so it sees the end
    }

    synchronized boolean gone() {
        return gone;
    }

    /** The session to be cancelled when the client leaves. */
    synchronized void watch(Session session) {
        this.session = session;
        if (gone) {
            session.cancel();
        }
    }

    private synchronized void leave() {
        gone = true;
        if (session != null) {
            try {
                session.cancel();
            } catch (IllegalStateException closed) {
                // It has decoded all.
            }
        }
    }

    /** Send an event, and wait until it is on its way: who reads slowly is decoded for slowly. */
    void event(ObjectNode json) {
        if (!response.headWritten()) {
            response.setChunked(true).putHeader("Content-Type", "text/event-stream").putHeader("Cache-Control", "no-cache");
        }
        try {
            response.write(Buffer.buffer("data: " + json + "\n\n")).await();
        } catch (RuntimeException e) {
            leave();
        }
    }

    Future<Void> endEvents(int status) {
        answered(gone() ? 499 : status);
        return gone() ? Future.succeededFuture() : response.end(status == 200 ? "data: [DONE]\n\n" : "");
    }

    Future<Void> end(int status, ObjectNode json) {
        answered(gone() ? 499 : status);
        return gone() ? Future.succeededFuture() : send(response, status, json);
    }

    Future<Void> fail(RuntimeException failure) {
        ApiError error = failure instanceof CosException e ? ApiError.of(e) : ApiError.of(500, failure);
        if (response.headWritten()) {
            event(error.json());
            return endEvents(500);
        }
        return end(error.status, error.json());
    }

    private void answered(int status) {
        Metrics.REQUESTS.labelValues(Integer.toString(status)).inc();
        answered.run();
    }

    static Future<Void> send(HttpServerResponse response, int status, ObjectNode json) {
        return response.setStatusCode(status).putHeader("Content-Type", "application/json").end(json.toString());
    }
}
