// Metrics of a model.

#include "metrics.hpp"

#include <iterator>
#include <mutex>

namespace triton {

namespace {

struct Family {
    const char* name;
    const char* description;
    TRITONSERVER_MetricKind kind;
    std::vector<double> buckets;
};

const std::vector<double> seconds{0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2, 4, 8, 16};
const std::vector<double> powers{1, 2, 4, 8, 16, 32, 64, 128, 256, 512};

/// In the order of Metrics::Name.
const Family families[] = {
    {"cos_tokens_total", "Tokens committed, without prompts", TRITONSERVER_METRIC_KIND_COUNTER, {}},
    {"cos_proposed_total", "Tokens proposed", TRITONSERVER_METRIC_KIND_COUNTER, {}},
    {"cos_tested_total", "Proposals accepted or rejected", TRITONSERVER_METRIC_KIND_COUNTER, {}},
    {"cos_accepted_total", "Proposals accepted", TRITONSERVER_METRIC_KIND_COUNTER, {}},
    {"cos_forwards_total", "Passes of all models, of each session", TRITONSERVER_METRIC_KIND_COUNTER, {}},
    {"cos_requests_running", "Requests that are decoded", TRITONSERVER_METRIC_KIND_GAUGE, {}},
    {"cos_requests_waiting", "Requests that wait in line", TRITONSERVER_METRIC_KIND_GAUGE, {}},
    {"cos_batch_choices", "Choices that share a pass", TRITONSERVER_METRIC_KIND_HISTOGRAM, powers},
    {"cos_first_token_seconds", "From a request to its first token", TRITONSERVER_METRIC_KIND_HISTOGRAM, seconds},
    {"cos_between_tokens_seconds", "From tokens of a choice to its next ones", TRITONSERVER_METRIC_KIND_HISTOGRAM,
     seconds},
};

/// Families belong to the server, and all models of the backend share them. They live as long as the process: a server
/// without metrics refuses them, and then there are none.
TRITONSERVER_MetricFamily* family(std::size_t index) {
    static TRITONSERVER_MetricFamily* made[std::size(families)] = {};
    static std::mutex mutex;
    const std::lock_guard lock(mutex);
    if (!made[index]) {
        const Family& of = families[index];
        ignore(TRITONSERVER_MetricFamilyNew(&made[index], of.kind, of.name, of.description));
    }
    return made[index];
}

}  // namespace

Metrics::Metrics(const std::string& model, const std::string& version) {
    static_assert(std::size(families) == names);
    const TRITONSERVER_Parameter* labels[] = {
        TRITONSERVER_ParameterNew("model", TRITONSERVER_PARAMETER_STRING, model.c_str()),
        TRITONSERVER_ParameterNew("version", TRITONSERVER_PARAMETER_STRING, version.c_str())};
    for (std::size_t i = 0; i < names; i++) {
        TRITONSERVER_MetricFamily* const of = family(i);
        if (!of) continue;
        const std::vector<double>& buckets = families[i].buckets;
        TRITONSERVER_MetricArgs* args = nullptr;
        if (!buckets.empty()) {
            ignore(TRITONSERVER_MetricArgsNew(&args));
            ignore(TRITONSERVER_MetricArgsSetHistogram(args, buckets.data(), buckets.size()));
        }
        ignore(TRITONSERVER_MetricNewWithArgs(&metrics_[i], of, labels, std::size(labels), args));
        if (args) ignore(TRITONSERVER_MetricArgsDelete(args));
    }
    for (const auto* label : labels) TRITONSERVER_ParameterDelete(const_cast<TRITONSERVER_Parameter*>(label));
}

Metrics::~Metrics() {
    for (TRITONSERVER_Metric* metric : metrics_)
        if (metric) ignore(TRITONSERVER_MetricDelete(metric));
}

void Metrics::change(Name name, TRITONSERVER_Error* (*function)(TRITONSERVER_Metric*, double), double value) noexcept {
    if (metrics_[name]) ignore(function(metrics_[name], value));
}

void Metrics::count(const cosrt::Stats& stats) {
    const auto add = [&](Name name, std::uint64_t cosrt::Stats::*member) {
        change(name, TRITONSERVER_MetricIncrement, static_cast<double>(stats.*member - counted_.*member));
    };
    add(tokens, &cosrt::Stats::tokens), add(proposed, &cosrt::Stats::proposed), add(tested, &cosrt::Stats::tested);
    add(accepted, &cosrt::Stats::accepted), add(forwards, &cosrt::Stats::forwards);
    counted_ = stats;
}

void Metrics::requests(std::size_t now_running, std::size_t now_waiting) {
    change(running, TRITONSERVER_MetricSet, static_cast<double>(now_running));
    change(waiting, TRITONSERVER_MetricSet, static_cast<double>(now_waiting));
}

void Metrics::pass(std::size_t choices) { change(batch, TRITONSERVER_MetricObserve, static_cast<double>(choices)); }

void Metrics::first_token(double seconds) { change(first, TRITONSERVER_MetricObserve, seconds); }

void Metrics::between_tokens(double seconds) { change(between, TRITONSERVER_MetricObserve, seconds); }

}  // namespace triton
