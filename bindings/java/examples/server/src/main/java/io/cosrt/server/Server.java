// The server.

package io.cosrt.server;

import io.cosrt.*;
import io.cosrt.RequestOptions; // Vert.x has one, too
import io.netty.handler.codec.http.HttpResponseStatus;
import io.vertx.core.*;
import io.vertx.core.buffer.Buffer;
import io.vertx.core.http.*;
import io.vertx.core.json.*;
import io.vertx.ext.web.Router;
import io.vertx.ext.web.RoutingContext;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.MessageDigest;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;
import sun.misc.Signal;

/** OpenAI's protocol, from one engine. The library reads requests and writes answers; the server carries bytes. */
public final class Server {
    private static final Map<String, Endpoint> ENDPOINTS =
            Map.of("/v1/completions", Endpoint.COMPLETION, "/v1/chat/completions", Endpoint.CHAT);
    /** That of a request of which nothing is known. */
    static final RequestStatus NOTHING = new RequestStatus(RequestState.OPEN, false, 0, 0);
    /** The most bytes of bodies that are held at once, because clients must not fill the memory. */
    static final long MAX_BODIES = Runtime.getRuntime().maxMemory() / 8;
    private static final long MINUTE = TimeUnit.MINUTES.toNanos(1);

    /** The requests of a client in a minute that began with the first of them. */
    private record Minute(long start, int count) {}

    final Options options;
    final Engine engine;
    final Driver driver = new Driver(); // decodes all requests
    final Line line;
    final AtomicLong bodies = new AtomicLong(); // bytes of the bodies that are held
    /** Its workers check bodies. More of them than processors would only take memory. */
    private final Vertx vertx = Vertx.vertx(
            new VertxOptions().setWorkerPoolSize(Runtime.getRuntime().availableProcessors()));
    private final String model;
    private final List<byte[]> keys = new ArrayList<>();
    private final Map<String, Minute> minutes = new ConcurrentHashMap<>();
    private final Map<HttpConnection, Long> timers = new ConcurrentHashMap<>();
    private final Map<Integer, Long> counts = new ConcurrentSkipListMap<>(); // ended requests by status
    private final AtomicInteger open = new AtomicInteger(); // exchanges
    private volatile boolean isDraining;

    public static void main(String[] arguments) {
        Options options = new Options(arguments);
        try {
            new Server(options).listen();
        } catch (Exception e) { // await throws undeclared exceptions, such as for a port that is in use
            System.err.println("server: " + e.getMessage());
            System.exit(1);
        }
    }

    private Server(Options options) throws IOException {
        this.options = options;
        model = options.config().getFileName().toString().replaceFirst("\\.json$", "");
        if (options.keys() != null) {
            Files.readAllLines(options.keys()).stream().map(String::strip)
                    .filter(key -> !key.isEmpty() && !key.startsWith("#"))
                    .forEach(key -> keys.add(key.getBytes(StandardCharsets.UTF_8)));
        }
        engine = Engine.open(options.config());
        line = new Line(options.number("--max-sessions"), options.number("--queue"));
        if (options.number("--prepare") > 0) {
            double share = engine.prepare(PrepareOptions.builder()
                    .sessions(Math.min(options.number("--max-sessions"), 1024))
                    .time(Duration.ofSeconds(options.number("--prepare"))).build());
            System.err.printf("prepared %.0f %%%n", 100 * share);
        }
    }

    private void listen() {
        Router router = Router.router(vertx);
        JsonObject own = JsonObject.of("id", model, "object", "model", "created", 0, "owned_by", "cos");
        router.route("/v1/*").handler(this::authorize);
        ENDPOINTS.forEach((path, endpoint) -> {
            RequestOptions checks = RequestOptions.builder().endpoint(endpoint).model(model)
                    .maxChoices(options.number("--max-sessions")).maxPromptTokens(options.number("--max-prompt"))
                    .maxTokens(options.number("--max-tokens")).build();
            router.post(path).handler(context -> begin(context, path, checks));
        });
        router.get("/v1/models").handler(context ->
                context.json(JsonObject.of("object", "list", "data", JsonArray.of(own))));
        router.getWithRegex("/v1/models/(?<id>.+)").handler(context -> {
            String id = context.pathParam("id");
            if (id.equals(model)) {
                context.json(own);
            } else {
                refuse(context, 404, "invalid_request_error", "model_not_found", "there is no model " + id);
            }
        });
        router.get("/health").handler(context -> context.json(JsonObject.of("status", "ok")));
        router.get("/ready").handler(context -> {
            head(context.response(), isDraining ? 503 : 200);
            context.end(JsonObject.of("status", isDraining ? "draining" : "ok").encode());
        });
        router.get("/metrics").handler(context -> context.response()
                .putHeader("Content-Type", "text/plain; version=0.0.4").end(metrics()));
        for (int status : new int[] {400, 404, 405, 500}) { // what the router finds itself, and what a handler throws
            String type = status < 500 ? "invalid_request_error" : "server_error";
            router.errorHandler(status, context -> {
                if (status == 405) {
                    context.response().putHeader("Allow",
                            ENDPOINTS.containsKey(context.request().path()) ? "POST" : "GET");
                }
                refuse(context, status, type, null, HttpResponseStatus.valueOf(status).reasonPhrase());
            });
        }
        // Without HTTP/2, a connection is known before its first byte, and has one request at a time.
        HttpServer http = vertx.createHttpServer(new HttpServerOptions().setHttp2ClearTextEnabled(false)
                .setHandle100ContinueAutomatically(true));
        http.connectionHandler(connection -> {
            connection.closeHandler(closed -> forget(connection));
            expect(connection);
        }).requestHandler(request -> {
            expect(request.connection());
            request.pause();
            // What is handled later keeps its connection from reading on, and what was answered before is sent.
            vertx.runOnContext(later -> {
                if (request.response().writeQueueFull()) { // it sends requests, and does not read their answers
                    request.connection().close();
                } else {
                    router.handle(request);
                    request.resume();
                }
            });
        }).listen(options.number("--port"), options.host()).await();
        vertx.setPeriodic(60_000, id -> minutes.values().removeIf(old -> System.nanoTime() - old.start > MINUTE));
        for (String name : List.of("TERM", "INT")) {
            Signal.handle(new Signal(name), signal -> drain());
        }
        System.out.println("listening on " + options.host() + ":" + http.actualPort());
    }

    /** Closes the connection if the client does not send a request, or take the end of an answer, in time. */
    void expect(HttpConnection connection) {
        forget(connection);
        long milliseconds = 1000L * options.number("--timeout");
        timers.put(connection, vertx.setTimer(milliseconds, id -> connection.close()));
    }

    /** The client need do nothing for now. */
    void forget(HttpConnection connection) {
        Long timer = timers.remove(connection);
        if (timer != null) {
            vertx.cancelTimer(timer);
        }
    }

    /** The key of a request; empty if it has none. Netty gives the bytes of a header as ISO 8859-1. */
    private static String key(RoutingContext context) {
        String header = context.request().getHeader("Authorization");
        return header != null && header.regionMatches(true, 0, "Bearer ", 0, 7) ? header.substring(7).strip() : "";
    }

    /** Lets requests with a key pass. How long a comparison takes does not tell how much of a key is right. */
    private void authorize(RoutingContext context) {
        byte[] given = key(context).getBytes(StandardCharsets.ISO_8859_1);
        if (options.keys() == null || keys.stream().anyMatch(key -> MessageDigest.isEqual(key, given))) {
            context.next();
        } else {
            refuse(context, 401, "authentication_error", "invalid_api_key", "the API key is missing or wrong");
        }
    }

    private void begin(RoutingContext context, String path, RequestOptions checks) {
        long now = System.nanoTime();
        String client = options.keys() == null ? context.request().remoteAddress().host() : key(context);
        if (isDraining) {
            refuse(context, 503, "server_error", null, "the server ends; try another one");
            return;
        }
        if (options.number("--rate") > 0) {
            Minute minute = minutes.merge(client, new Minute(now, 1), (old, one) ->
                    now - old.start > MINUTE ? one : new Minute(old.start, old.count + 1));
            if (minute.count > options.number("--rate")) {
                long seconds = 1 + TimeUnit.NANOSECONDS.toSeconds(minute.start + MINUTE - now);
                context.response().putHeader("Retry-After", Long.toString(seconds));
                refuse(context, 429, "rate_limit_error", "rate_limit_exceeded", "too many requests; try later");
                return;
            }
        }
        open.incrementAndGet();
        new Exchange(this, context, path, checks).begin();
    }

    /** An exchange has ended, and its answer was sent. The last one of a server that drains ends the process. */
    void closed() {
        if (open.decrementAndGet() == 0 && isDraining) {
            vertx.close().onComplete(done -> System.exit(0));
        }
    }

    private void drain() {
        open.incrementAndGet(); // as if there were one more exchange, which ends at once
        isDraining = true;
        closed();
    }

    /** Counts and logs a request to a model. Times are in nanoseconds. The path has no character to escape. */
    void ended(String path, int status, int choices, RequestStatus tokens, long wait, long first, long total) {
        counts.merge(status, 1L, Long::sum);
        System.err.println(String.format(Locale.ROOT, "{\"time\": %.3f, \"path\": \"%s\", \"status\": %d, "
                + "\"choices\": %d, \"prompt_tokens\": %d, \"completion_tokens\": %d, "
                + "\"wait_ms\": %.3f, \"first_ms\": %.3f, \"total_ms\": %.3f}", System.currentTimeMillis() / 1e3,
                path, status, choices, tokens.promptTokens(), tokens.completionTokens(), wait / 1e6, first / 1e6,
                total / 1e6));
    }

    /** Answers a request that does not become an {@link Exchange}. */
    private void refuse(RoutingContext context, int status, String type, String code, String message) {
        if (ENDPOINTS.containsKey(context.request().path())) {
            ended(context.request().path(), status, 0, NOTHING, 0, 0, 0);
        }
        head(context.response(), status);
        context.response().end(error(type, code, message));
    }

    /** The head of an answer in JSON. */
    static void head(HttpServerResponse response, int status) {
        response.setStatusCode(status).putHeader("Content-Type", "application/json");
        if ((status == 429 || status == 503) && !response.headers().contains("Retry-After")) {
            response.putHeader("Retry-After", "1");
        }
    }

    /** An error in OpenAI's form. */
    static Buffer error(String type, String code, String message) {
        JsonObject error = JsonObject.of("message", message, "type", type, "param", null, "code", code);
        return JsonObject.of("error", error).toBuffer();
    }

    private String metrics() {
        StringBuilder text = new StringBuilder(engine.metrics())
                .append("# TYPE cos_requests_running gauge\ncos_requests_running ").append(line.running())
                .append("\n# TYPE cos_requests_waiting gauge\ncos_requests_waiting ").append(line.waiting())
                .append("\n# TYPE cos_requests_total counter\n");
        counts.forEach((code, count) -> text.append("cos_requests_total{code=\"" + code + "\"} " + count + "\n"));
        return text.toString();
    }
}
