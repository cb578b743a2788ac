// The server.

package io.cosrt.server;

import io.cosrt.Engine;
import io.cosrt.Stats;
import io.netty.handler.codec.http.HttpResponseStatus;
import io.prometheus.metrics.core.metrics.*;
import io.prometheus.metrics.expositionformats.PrometheusTextFormatWriter;
import io.prometheus.metrics.model.registry.PrometheusRegistry;
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
import java.util.concurrent.Semaphore;
import java.util.function.ToDoubleFunction;
import sun.misc.Signal;

/** The completions API of OpenAI, from one engine: {@code server CONFIG.json [--port N] [--max-sessions N]}. */
public final class Server {
    private final Engine engine;
    private final String model;
    private final Semaphore slots;
    private final PrometheusRegistry metrics = new PrometheusRegistry();
    private final Counter requests = Counter.builder().name("cos_requests_total").help("Answered completions by status")
            .labelNames("code").register(metrics);

    private Server(Path config, int maxSessions) {
        engine = Engine.open(config);
        model = config.getFileName().toString().replaceFirst("\\.json$", "");
        slots = new Semaphore(maxSessions);
        GaugeWithCallback.builder().name("cos_requests_running").help("Completions that are running")
                .callback(gauge -> gauge.call(maxSessions - slots.availablePermits())).register(metrics);
        counter("cos_tokens_total", "Tokens committed", Stats::tokens);
        counter("cos_proposed_total", "Proposals made", Stats::proposed);
        counter("cos_tested_total", "Proposals that were accepted or rejected", Stats::tested);
        counter("cos_accepted_total", "Proposals accepted", Stats::accepted);
        counter("cos_forwards_total", "Passes of all models", Stats::forwards);
        counter("cos_prefix_tokens_total", "Tokens that were found computed", Stats::prefixTokens);
        counter("cos_recomputed_tokens_total", "Tokens computed once more", Stats::recomputedTokens);
        counter("cos_model_seconds_total", "Seconds inside ONNX Runtime", stats -> stats.modelNs() / 1e9);
        counter("cos_step_seconds_total", "Seconds inside steps", stats -> stats.totalNs() / 1e9);
    }

    private void counter(String name, String help, ToDoubleFunction<Stats> value) {
        CounterWithCallback.builder().name(name).help(help)
                .callback(counter -> counter.call(value.applyAsDouble(engine.stats()))).register(metrics);
    }

    public static void main(String[] arguments) {
        Map<String, Integer> options = new HashMap<>(Map.of("--port", 8080, "--max-sessions", 32));
        boolean help = List.of(arguments).equals(List.of("--help"));
        boolean good = arguments.length % 2 == 1 && !arguments[0].startsWith("-");
        for (int i = 1; good && i < arguments.length; i += 2) { // nine digits fit into an int
            good = options.containsKey(arguments[i]) && arguments[i + 1].matches("\\d{1,9}")
                    && options.put(arguments[i], Integer.valueOf(arguments[i + 1])) != null; // returns the old value
        }
        if (!good || options.get("--max-sessions") == 0 || options.get("--port") > 65535) {
            (help ? System.out : System.err).println("usage: server CONFIG.json [--port N] [--max-sessions N]");
            System.exit(help ? 0 : 2);
        }
        try {
            new Server(Path.of(arguments[0]), options.get("--max-sessions")).listen(options.get("--port"));
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
                .putHeader("Content-Type", PrometheusTextFormatWriter.CONTENT_TYPE)
                .end(PrometheusTextFormatWriter.create().toDebugString(metrics.scrape())));
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
        requests.labelValues(left ? "499" : Integer.toString(status)).inc();
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
            requests.labelValues(Integer.toString(status)).inc();
        }
        ApiError.head(context.response(), status);
        context.response().end(new ApiError(status, message, null).json());
    }
}
