package io.cosrt.server;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cosrt.Engine;
import io.vertx.core.Future;
import io.vertx.core.Vertx;
import io.vertx.core.buffer.Buffer;
import io.vertx.core.http.HttpServerResponse;
import io.vertx.ext.web.Router;
import io.vertx.ext.web.RoutingContext;
import io.vertx.ext.web.handler.BodyHandler;
import java.nio.file.Path;
import java.util.Map;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Phaser;
import java.util.concurrent.Semaphore;
import sun.misc.Signal;

/** OpenAI's completions over one engine: {@code server CONFIG.json [--port N] [--max-sessions N]}. */
public final class Server {
    private final Engine engine;
    private final String model;
    private final Semaphore slots;
    private final ExecutorService threads = Executors.newCachedThreadPool();
    /** The completions that are not sent to their end, and one party for {@link #drain}. */
    private final Phaser unsent = new Phaser(1);
    private volatile boolean draining;

    private Server(Path config, int maxSessions) {
        engine = Engine.open(config);
        model = config.getFileName().toString().replaceFirst("\\.json$", "");
        slots = new Semaphore(maxSessions);
    }

    public static void main(String[] arguments) {
        Map<String, Integer> options = new java.util.HashMap<>(Map.of("--port", 8080, "--max-sessions", 32));
        try {
            for (int i = 1; i < arguments.length; i += 2) {
                if (options.replace(arguments[i], Integer.parseInt(arguments[i + 1])) == null) {
                    throw new IllegalArgumentException("there is no option " + arguments[i]);
                }
            }
            new Server(Path.of(arguments[0]), options.get("--max-sessions")).listen(options.get("--port"));
        } catch (ArrayIndexOutOfBoundsException e) {
            System.err.println("usage: server CONFIG.json [--port N] [--max-sessions N]");
            System.exit(2);
        } catch (RuntimeException e) {
            System.err.println("server: " + e.getMessage());
            System.exit(1);
        }
    }

    private void listen(int port) {
        Vertx vertx = Vertx.vertx();
        Router router = Router.router(vertx);
        router.get("/v1/models").handler(context -> {
            ObjectNode list = JsonNodeFactory.instance.objectNode().put("object", "list");
            list.putArray("data").add(describe(model));
            send(context.response(), 200, list);
        });
        router.get("/v1/models/:id").handler(context -> send(context.response(), 200, describe(context.pathParam("id"))));
        router.get("/metrics").handler(context -> context.response()
                .putHeader("Content-Type", "text/plain; version=0.0.4; charset=utf-8").end(Buffer.buffer(Metrics.text())));
        router.post("/v1/completions").handler(BodyHandler.create(false).setBodyLimit(16 << 20)).handler(this::complete);
        router.route().handler(context -> {
            throw new ApiError(404, "there is no " + context.request().method() + " " + context.request().path(), null, null);
        });
        router.route().failureHandler(Server::refuse);
        var http = vertx.createHttpServer().requestHandler(router).listen(port, "127.0.0.1").await();
        for (String name : new String[] {"TERM", "INT"}) {
            Signal.handle(new Signal(name), signal -> threads.execute(this::drain));
        }
        System.out.println("listening on 127.0.0.1:" + http.actualPort());
    }

    /** Finish what runs, refuse what is new, and end. */
    private void drain() {
        draining = true;
        unsent.arriveAndAwaitAdvance();
        System.exit(0);
    }

    private ObjectNode describe(String name) {
        if (!name.equals(model)) {
            throw ApiError.unknownModel(name);
        }
        return JsonNodeFactory.instance.objectNode().put("id", model).put("object", "model").put("created", 0)
                .put("owned_by", "cos");
    }

    /** On the event loop, which must not wait: a thread of its own decodes. */
    private void complete(RoutingContext context) {
        Buffer body = context.body().buffer();
        Request request = Request.parse(body == null ? new byte[0] : body.getBytes(), model);
        if (draining) {
            throw new ApiError(503, "the server is about to stop", null, null);
        }
        if (!slots.tryAcquire()) {
            throw new ApiError(429, "too many completions are running; try again later", null, null);
        }
        unsent.register();
        Metrics.RUNNING.inc();
        Answer answer = new Answer(engine, request, context.response());
        threads.execute(() -> {
            ObjectNode json;
            int status = 200;
            try {
                json = answer.run();
            } catch (RuntimeException e) {
                ApiError error = ApiError.of(e, 500);
                json = error.json();
                status = error.status;
            }
            end(answer, context.response(), status, json).onComplete(sent -> unsent.arriveAndDeregister());
        });
    }

    private Future<?> end(Answer answer, HttpServerResponse response, int status, ObjectNode json) {
        boolean streaming = response.headWritten();
        if (streaming && status != 200) {
            answer.event(json);
        }
        Metrics.answered(answer.gone() ? 499 : status);
        Metrics.RUNNING.dec();
        slots.release();
        if (answer.gone()) {
            return Future.succeededFuture();
        }
        return !streaming ? send(response, status, json) : status == 200 ? response.end("data: [DONE]\n\n") : response.end();
    }

    /** An error of what is no running completion. */
    private static void refuse(RoutingContext context) {
        ApiError error = ApiError.of(context.failure(), Math.max(400, context.statusCode()));
        if (context.request().path().equals("/v1/completions")) {
            Metrics.answered(error.status);
        }
        send(context.response(), error.status, error.json());
    }

    private static Future<Void> send(HttpServerResponse response, int status, ObjectNode json) {
        return response.setStatusCode(status).putHeader("Content-Type", "application/json").end(json.toString());
    }
}
