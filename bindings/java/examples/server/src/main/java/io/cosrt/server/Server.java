package io.cosrt.server;

import com.fasterxml.jackson.databind.node.JsonNodeFactory;
import com.fasterxml.jackson.databind.node.ObjectNode;
import io.cosrt.Engine;
import io.cosrt.Session;
import io.vertx.core.Future;
import io.vertx.core.Vertx;
import io.vertx.core.buffer.Buffer;
import io.vertx.ext.web.Router;
import io.vertx.ext.web.RoutingContext;
import io.vertx.ext.web.handler.BodyHandler;
import java.nio.file.Path;
import java.util.UUID;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;
import java.util.concurrent.Phaser;
import java.util.concurrent.Semaphore;
import sun.misc.Signal;

/** OpenAI's completions over one engine: {@code server CONFIG.json [--port N] [--max-sessions N]}. */
public final class Server {
    private static final long MOST_BYTES = 16 << 20;

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
        if (arguments.length == 0 || arguments.length % 2 == 0) {
            System.err.println("usage: server CONFIG.json [--port N] [--max-sessions N]");
            System.exit(2);
        }
        int port = 8080;
        int maxSessions = 32;
        try {
            for (int i = 1; i < arguments.length; i += 2) {
                int value = Integer.parseUnsignedInt(arguments[i + 1]);
                switch (arguments[i]) {
                    case "--port" -> port = value;
                    case "--max-sessions" -> maxSessions = value;
                    default -> throw new IllegalArgumentException("unknown option " + arguments[i]);
                }
            }
            new Server(Path.of(arguments[0]), maxSessions).listen(port);
        } catch (RuntimeException e) {
            System.err.println("server: " + e.getMessage());
            System.exit(1);
        }
    }

    private void listen(int port) {
        Vertx vertx = Vertx.vertx();
        Router router = Router.router(vertx);
        router.get("/v1/models").handler(this::models);
        router.get("/v1/models/:id").handler(this::model);
        router.get("/metrics").handler(context -> context.response()
                .putHeader("Content-Type", "text/plain; version=0.0.4; charset=utf-8").end(Buffer.buffer(Metrics.text())));
        router.post("/v1/completions").handler(BodyHandler.create(false).setBodyLimit(MOST_BYTES)).handler(this::complete);
        router.route().handler(context -> context.fail(
                ApiError.notFound("there is no " + context.request().method() + " " + context.request().path(), null, null)));
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

    private void models(RoutingContext context) {
        ObjectNode list = JsonNodeFactory.instance.objectNode().put("object", "list");
        list.putArray("data").add(describe());
        Client.send(context.response(), 200, list);
    }

    private void model(RoutingContext context) {
        if (!context.pathParam("id").equals(model)) {
            throw ApiError.notFound("the model " + context.pathParam("id") + " does not exist", "model", "model_not_found");
        }
        Client.send(context.response(), 200, describe());
    }

    private ObjectNode describe() {
        return JsonNodeFactory.instance.objectNode().put("id", model).put("object", "model").put("created", 0)
                .put("owned_by", "cos");
    }

    /** On the event loop, which must not wait: a thread of its own decodes. */
    private void complete(RoutingContext context) {
        if (draining) {
            throw ApiError.draining();
        }
        if (!slots.tryAcquire()) {
            throw ApiError.busy();
        }
        unsent.register();
        Metrics.RUNNING.inc();
        Client client = new Client(context.response(), () -> {
            Metrics.RUNNING.dec();
            slots.release();
        });
        threads.execute(() -> {
            Future<Void> sent;
            try {
                sent = answer(Request.parse(context.body().buffer(), engine, model), client);
            } catch (RuntimeException e) {
                sent = client.fail(e);
            }
            sent.onComplete(done -> unsent.arriveAndDeregister());
        });
    }

    private Future<Void> answer(Request request, Client client) {
        ObjectNode answer = JsonNodeFactory.instance.objectNode().put("id", "cmpl-" + UUID.randomUUID())
                .put("object", "text_completion").put("created", System.currentTimeMillis() / 1000).put("model", model);
        Completion completion = new Completion(engine, request);
        try (Session session = engine.newSession(request.options())) {
            client.watch(session);
            session.prompt(request.prompt());
            completion.run(session, client::gone, choice -> {
                answer.putArray("choices").add(choice);
                if (request.stream()) {
                    client.event(answer);
                }
            });
        }
        if (!request.stream()) {
            return client.end(200, answer.set("usage", completion.usage()));
        }
        if (request.usage()) {
            answer.putArray("choices");
            client.event(answer.set("usage", completion.usage()));
        }
        return client.endEvents(200);
    }

    /** An error outside of a completion that runs. */
    private static void refuse(RoutingContext context) {
        ApiError error = ApiError.of(Math.max(400, context.statusCode()), context.failure());
        if (context.request().path().equals("/v1/completions")) {
            Metrics.REQUESTS.labelValues(Integer.toString(error.status)).inc();
        }
        Client.send(context.response(), error.status, error.json());
    }
}
