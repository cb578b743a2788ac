// The server.

package io.cosrt.server;

import io.cosrt.Engine;
import io.cosrt.PrepareOptions;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.vertx.core.Vertx;
import io.vertx.core.buffer.Buffer;
import io.vertx.core.http.HttpServer;
import io.vertx.core.http.HttpServerResponse;
import io.vertx.core.json.*;
import io.vertx.ext.web.Router;
import io.vertx.ext.web.RoutingContext;
import io.vertx.ext.web.handler.BodyHandler;
import java.nio.file.Path;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.Semaphore;
import sun.misc.Signal;

/** The completions API of OpenAI, from one engine. {@link #USAGE} says how it is called. */
public final class Server {
    private static final String USAGE = "usage: server CONFIG.json [--port N] [--max-sessions N] [--prepare SECONDS]";

    private final Engine engine;
    private final String model;
    private final Semaphore slots;
    private final int maxSessions;
    private final Map<Integer, Long> requests = new ConcurrentHashMap<>(); // answered completions by status

    private Server(Path config, int maxSessions, int seconds) {
        engine = Engine.open(config);
        if (seconds > 0) {
            double share = engine.prepare(PrepareOptions.builder().sessions(Math.min(maxSessions, 1024))
                    .time(Duration.ofSeconds(seconds)).build());
            System.err.printf("prepared %.0f %%%n", 100 * share);
        }
        model = config.getFileName().toString().replaceFirst("\\.json$", "");
        this.maxSessions = maxSessions;
        slots = new Semaphore(maxSessions);
    }

    private String metrics() {
        StringBuilder text = new StringBuilder(engine.metrics())
                .append("# TYPE cos_requests_running gauge\ncos_requests_running ")
                .append(maxSessions - slots.availablePermits()).append("\n# TYPE cos_requests_total counter\n");
        requests.forEach((code, count) ->
                text.append("cos_requests_total{code=\"" + code + "\"} " + count + "\n"));
        return text.toString();
    }

    public static void main(String[] arguments) {
        Map<String, Integer> options = new HashMap<>(Map.of("--port", 8080, "--max-sessions", 32, "--prepare", 10));
        boolean help = List.of(arguments).equals(List.of("--help"));
        boolean good = arguments.length % 2 == 1 && !arguments[0].startsWith("-");
        for (int i = 1; good && i < arguments.length; i += 2) { // nine digits fit into an int
            good = options.containsKey(arguments[i]) && arguments[i + 1].matches("\\d{1,9}")
                    && options.put(arguments[i], Integer.valueOf(arguments[i + 1])) != null; // returns the old value
        }
        if (!good || options.get("--max-sessions") == 0 || options.get("--port") > 65535
                || options.get("--prepare") > 86400) {
            (help ? System.out : System.err).println(USAGE);
            System.exit(help ? 0 : 2);
        }
        try {
            new Server(Path.of(arguments[0]), options.get("--max-sessions"), options.get("--prepare"))
                    .listen(options.get("--port"));
        } catch (Exception e) { // await throws undeclared exceptions, such as for a port that is in use
            System.err.println("server: " + e.getMessage());
            System.exit(1);
        }
    }

    private void listen(int port) {
        Vertx vertx = Vertx.vertx();
        Router router = Router.router(vertx);
        router.get("/v1/models").handler(context -> context.json(JsonObject.of("object", "list", "data",
                JsonArray.of(JsonObject.of("id", model, "object", "model", "created", 0, "owned_by", "cos")))));
        router.get("/metrics").handler(context -> context.response()
                .putHeader("Content-Type", "text/plain; version=0.0.4").end(metrics()));
        router.post("/v1/completions").handler(BodyHandler.create(false).setBodyLimit(4 << 20)).handler(this::complete);
        for (int status : new int[] {400, 404, 405, 413}) { // errors of the router and of the body handler
            String message = HttpResponseStatus.valueOf(status).reasonPhrase();
            router.errorHandler(status, context -> refuse(context, status, message));
        }
        HttpServer http = vertx.createHttpServer().requestHandler(router).listen(port, "127.0.0.1").await();
        for (String name : List.of("TERM", "INT")) { // running requests are finished, but a client may never end one
            Signal.handle(new Signal(name),
                    signal -> http.shutdown(Duration.ofHours(1)).onComplete(done -> System.exit(0)));
        }
        System.out.println("listening on 127.0.0.1:" + http.actualPort());
    }

    /** Runs on the event loop, which must not wait. So another thread decodes. */
    private void complete(RoutingContext context) {
        if (slots.tryAcquire()) {
            new Thread(() -> answer(context.response(), context.body().buffer())).start();
        } else {
            refuse(context, 429, "too many completions are running; try again later");
        }
    }

    private void answer(HttpServerResponse response, Buffer body) {
        int status = 200;
        String last;
        try {
            Completion completion = Completion.parse(body);
            if (!completion.model().equals(model)) {
                throw new ApiError(404, "there is no model " + completion.model(), "model_not_found");
            }
            last = completion.decode(engine, response);
        } catch (Throwable e) { // errors too: the client waits for an answer, and the slot must be released
            ApiError error = ApiError.of(e);
            status = error.status;
            last = response.headWritten() ? Completion.event(error.json()) : error.json();
        }
        slots.release();
        boolean left = response.closed();
        requests.merge(left ? 499 : status, 1L, Long::sum);
        if (left) {
            return;
        }
        if (!response.headWritten()) {
            ApiError.head(response, status);
        }
        response.end(last);
    }

    /** Answers a request that does not reach {@link #answer}. */
    private void refuse(RoutingContext context, int status, String message) {
        if (context.request().path().startsWith("/v1/completions")) {
            requests.merge(status, 1L, Long::sum);
        }
        ApiError.head(context.response(), status);
        context.response().end(new ApiError(status, message, null).json());
    }
}
