// One request to a model.

package io.cosrt.server;

import io.cosrt.*;
import io.vertx.core.Context;
import io.vertx.core.Vertx;
import io.vertx.core.buffer.Buffer;
import io.vertx.core.http.HttpServerResponse;
import io.vertx.ext.web.RoutingContext;
import java.util.concurrent.TimeUnit;

/**
 * A request to a model, from its head to the end of its answer. It lives on the event loop of its connection, which
 * must not wait. Only {@link #run} has a thread of its own, on which it waits for the server's driver.
 */
final class Exchange implements Runnable {
    private final Server server;
    private final RoutingContext context;
    private final HttpServerResponse response;
    private final String path;
    private final RequestOptions options;
    private Buffer body = Buffer.buffer();
    private final Context loop = Vertx.currentContext(); // of the connection
    private boolean isAnswered;
    private volatile boolean hasLeft; // the client
    private Request request; // null until the body is checked
    private int choices;
    private RequestStatus status = Server.NOTHING;
    /** Times of {@link System#nanoTime}: the head has come, the line begins and ends, the first step is done. */
    private final long begun = System.nanoTime();
    private long lined;
    private long started;
    private long stepped;

    Exchange(Server server, RoutingContext context, String path, RequestOptions options) {
        this.server = server;
        this.context = context;
        this.path = path;
        this.options = options;
        response = context.response();
    }

    int choices() {
        return choices;
    }

    /** Reads the body. */
    void begin() {
        int most = server.options.number("--max-body");
        response.closeHandler(closed -> leave());
        context.request().handler(part -> {
            body.appendBuffer(part);
            boolean isFull = server.bodies.addAndGet(part.length()) > Server.MAX_BODIES;
            if (body.length() > most) {
                forgetBody();
                answer(413, Server.error("invalid_request_error", null, "the body has more than " + most + " bytes"));
            } else if (isFull) {
                forgetBody();
                answer(503, Server.error("server_error", null, "too many bodies are read; try later"));
            }
        }).endHandler(end -> check());
    }

    /** Lets the memory of the body go. */
    private void forgetBody() {
        context.request().handler(null).endHandler(null); // what still comes is read, but not kept
        server.bodies.addAndGet(-body.length());
        body = Buffer.buffer();
    }

    /** Checks the body on a thread that may wait, because a long prompt takes a while. */
    private void check() {
        server.forget(context.request().connection()); // it is the server's turn
        context.vertx()
                .executeBlocking(() -> hasLeft ? null : server.engine.newRequest(body.getBytes(), options), false)
                .onFailure(this::fail).onSuccess(this::enter);
    }

    private void enter(Request made) {
        if (hasLeft) { // meanwhile
            if (made != null) {
                made.close();
            }
            return;
        }
        forgetBody();
        request = made;
        choices = made.choices();
        status = made.status();
        lined = System.nanoTime();
        if (!server.line.enter(this)) {
            answer(429, Server.error("rate_limit_error", "rate_limit_exceeded", "too many requests wait; try later"));
        }
    }

    /** The client has closed its connection. */
    private void leave() {
        hasLeft = true;
        if (request == null || server.line.leave(this)) {
            answer(499, Buffer.buffer());
        } else {
            request.cancel(); // also in the midst of a pass
        }
    }

    /** Takes what is decoded, on a thread of the line. */
    @Override
    public void run() {
        started = System.nanoTime();
        Buffer rest = Buffer.buffer();
        Throwable failure = null;
        try {
            DrivenRequest driven = server.driver.start(request);
            do {
                Piece piece = driven.next();
                status = piece.status();
                stepped = stepped == 0 ? System.nanoTime() : stepped;
                rest = Buffer.buffer(piece.text());
                if (status.streams()) {
                    send(rest);
                    rest = Buffer.buffer();
                }
            } while (status.isOpen()); // also if the client has left, because the request needs its room until then
        } catch (Throwable e) { // errors too: the client waits for an answer, and others for the room
            failure = e;
        }
        request.close(); // if the driver has not
        server.line.end(this);
        if (failure == null) {
            answer(200, rest);
        } else {
            fail(failure);
        }
    }

    /** Waits until a client takes a part, so that parts do not pile up on the way. One that is too slow is cut off. */
    private void send(Buffer part) {
        if (part.length() == 0 || hasLeft) {
            return;
        }
        try {
            if (!response.headWritten()) {
                response.setChunked(true).putHeader("Content-Type", "text/event-stream");
                response.putHeader("Cache-Control", "no-cache");
            }
            response.write(part).await(server.options.number("--timeout"), TimeUnit.SECONDS);
        } catch (Throwable e) {
            hasLeft = true;
            request.cancel();
            context.request().connection().close();
        }
    }

    /** Answers with an error. The library knows what answers one of its own. */
    void fail(Throwable failure) {
        if (failure instanceof CosException error) {
            answer(error.httpStatus(), Buffer.buffer(error.json()));
        } else {
            answer(500, Server.error("server_error", null, failure.toString()));
        }
    }

    /** Counts and logs the request, and sends the rest of the answer. Only the first call counts. */
    private void answer(int code, Buffer rest) {
        loop.runOnContext(now -> {
            if (!isAnswered) {
                isAnswered = true;
                end(code, rest);
            }
        });
    }

    private void end(int code, Buffer rest) {
        if (request != null) {
            request.close();
        } else {
            forgetBody();
        }
        long now = System.nanoTime();
        server.ended(path, hasLeft ? 499 : code, choices, status, started == 0 ? 0 : started - lined,
                stepped == 0 ? 0 : stepped - begun, now - begun);
        if (hasLeft) {
            server.closed();
            return;
        }
        server.expect(context.request().connection());
        boolean isEvent = response.headWritten() && rest.length() > 0; // an error in a stream that has begun
        if (!response.headWritten()) {
            Server.head(response, code);
        }
        response.end(isEvent ? Buffer.buffer("data: ").appendBuffer(rest).appendString("\n\n") : rest)
                .onComplete(sent -> server.closed());
    }
}
