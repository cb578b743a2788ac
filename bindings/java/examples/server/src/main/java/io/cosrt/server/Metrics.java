package io.cosrt.server;

import io.cosrt.Stats;
import io.prometheus.metrics.core.metrics.Counter;
import io.prometheus.metrics.core.metrics.Gauge;
import io.prometheus.metrics.expositionformats.PrometheusTextFormatWriter;
import io.prometheus.metrics.model.registry.PrometheusRegistry;
import java.io.ByteArrayOutputStream;
import java.io.IOException;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.function.ToDoubleFunction;

/** What one completion adds to the counters of the process. */
final class Metrics {
    private static final PrometheusRegistry REGISTRY = new PrometheusRegistry();
    private static final Map<Counter, ToDoubleFunction<Stats>> OF_STATS = new LinkedHashMap<>();
    private static final Counter REQUESTS = Counter.builder().name("cos_requests_total").help("Answered completions by status")
            .labelNames("code").register(REGISTRY);
    static final Gauge RUNNING = Gauge.builder().name("cos_requests_running").help("Completions that are running")
            .register(REGISTRY);

    static {
        counter("cos_tokens_total", "Tokens committed", Stats::tokens);
        counter("cos_proposed_total", "Proposals made", Stats::proposed);
        counter("cos_tested_total", "Proposals that were accepted or rejected", Stats::tested);
        counter("cos_accepted_total", "Proposals accepted", Stats::accepted);
        counter("cos_forwards_total", "Passes of all models", Stats::forwards);
        counter("cos_model_seconds_total", "Seconds inside ONNX Runtime", stats -> stats.modelNs() / 1e9);
        counter("cos_step_seconds_total", "Seconds inside steps", stats -> stats.totalNs() / 1e9);
    }

    private Stats counted = new Stats(0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

    private static void counter(String name, String help, ToDoubleFunction<Stats> value) {
        OF_STATS.put(Counter.builder().name(name).help(help).register(REGISTRY), value);
    }

    static void answered(int status) {
        REQUESTS.labelValues(Integer.toString(status)).inc();
    }

    /** Count what came to the statistics of the session since the last call. */
    void count(Stats stats) {
        OF_STATS.forEach((counter, value) -> counter.inc(value.applyAsDouble(stats) - value.applyAsDouble(counted)));
        counted = stats;
    }

    /** All of them in Prometheus' text format. */
    static byte[] text() {
        try (ByteArrayOutputStream out = new ByteArrayOutputStream()) {
            PrometheusTextFormatWriter.create().write(out, REGISTRY.scrape());
            return out.toByteArray();
        } catch (IOException e) {
            throw new AssertionError("memory cannot fail", e);
        }
    }
}
