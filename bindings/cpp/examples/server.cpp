// An HTTP server of OpenAI's completions over one engine; tests/servers/README.md says all that it does.
//
//     server CONFIG.json [--port N=8080] [--max-sessions N=32]
//
// Each request decodes in a session of its own, on the thread of its connection; what runs at once shares ONNX Runtime's
// threads. One more thread watches for clients that leave, and cancels their sessions in the midst of a pass.

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "cos.hpp"
#include "httplib.h"
#include "json.hpp"

namespace {

using json = nlohmann::json;
using cosrt::Token;

/// What a client is told in OpenAI's form.
struct Problem {
    int status;
    std::string message;
    json param = nullptr, code = nullptr;

    json body() const {
        const char* type = status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
        return {{"error", {{"message", message}, {"type", type}, {"param", param}, {"code", code}}}};
    }
};

/// The problem that the exception in flight is.
Problem current_problem() {
    try {
        throw;
    } catch (const Problem& problem) {
        return problem;
    } catch (const json::exception& error) {
        return {400, error.what()};
    } catch (const cosrt::Exception& error) {
        switch (error.code()) {
            case cosrt::Code::context_full: return {400, error.what(), "prompt", "context_length_exceeded"};
            case cosrt::Code::invalid_argument:
            case cosrt::Code::unsupported: return {400, error.what()};
            default: return {500, error.what()};
        }
    } catch (const std::exception& error) {
        return {500, error.what()};
    }
}

// ---- what is asked

/// A member of a request: `fallback` if it is missing or null, refused if it is of another type or out of range.
template <typename T>
T member(const json& from, const char* name, T fallback, double least = 0, double most = 0) {
    const auto found = from.find(name);
    if (found == from.end() || found->is_null()) return fallback;
    bool fits = false;
    if constexpr (std::is_same_v<T, bool>) fits = found->is_boolean();
    else if constexpr (std::is_same_v<T, std::string>) fits = found->is_string();
    else if constexpr (std::is_integral_v<T>) fits = found->is_number_integer();
    else fits = found->is_number();
    if constexpr (std::is_arithmetic_v<T> && !std::is_same_v<T, bool>) {
        fits = fits && found->template get<double>() >= least && found->template get<double>() <= most;
    }
    if (!fits) throw Problem{400, std::string(name) + " has a wrong type, or is out of range", name};
    return found->template get<T>();
}

json object(const json& from, const char* name) {
    const auto found = from.find(name);
    if (found == from.end() || found->is_null()) return json::object();
    if (!found->is_object()) throw Problem{400, std::string(name) + " must be an object", name};
    return *found;
}

std::vector<Token> prompt_of(const json& body, const cosrt::Engine& engine) {
    const json prompt = body.value("prompt", json());
    std::vector<Token> tokens;
    if (prompt.is_string() && !prompt.get_ref<const std::string&>().empty()) {
        tokens = engine.encode(prompt.get_ref<const std::string&>()).value();
    } else if (prompt.is_array()) {
        for (const json& token : prompt) {
            if (!token.is_number_integer() || token < 0 || token >= engine.vocab_size()) {
                throw Problem{400, "prompt must be a string or an array of tokens of the vocabulary", "prompt"};
            }
            tokens.push_back(token.get<Token>());
        }
    }
    if (tokens.empty()) throw Problem{400, "prompt must be a string or an array of tokens, and not empty", "prompt"};
    return tokens;
}

std::vector<std::string> stops_of(const json& body) {
    json stop = body.value("stop", json());
    if (stop.is_null()) return {};
    if (stop.is_string()) stop = json::array({stop});
    const auto wrong = [](const json& one) { return !one.is_string() || one.get_ref<const std::string&>().empty(); };
    if (!stop.is_array() || stop.size() > 4 || std::any_of(stop.begin(), stop.end(), wrong)) {
        throw Problem{400, "stop must be a string or up to 4, none of them empty", "stop"};
    }
    return stop.get<std::vector<std::string>>();
}

cosrt::SessionOptions options_of(const json& body) {
    static const std::map<std::string, cosrt::Strategy> strategies{{"auto", cosrt::Strategy::automatic},
                                                                   {"standard", cosrt::Strategy::standard},
                                                                   {"speculative", cosrt::Strategy::speculative},
                                                                   {"cos", cosrt::Strategy::cos}};
    const std::vector<std::pair<const char*, json>> unsupported{{"n", 1}, {"best_of", 1}, {"echo", false}, {"suffix", ""},
        {"presence_penalty", 0}, {"frequency_penalty", 0}, {"logit_bias", json::object()}};
    for (const auto& [name, neutral] : unsupported) {
        const json given = body.value(name, neutral);
        if (!given.is_null() && given != neutral) throw Problem{400, std::string(name) + " is not supported", name};
    }
    const json extension = object(body, "cos");
    const auto strategy = strategies.find(member<std::string>(extension, "strategy", "auto"));
    if (strategy == strategies.end()) throw Problem{400, "cos.strategy must be auto, standard, speculative or cos", "cos"};

    cosrt::SessionOptions options;
    options.strategy = strategy->second;
    options.temperature = member<float>(body, "temperature", 1, 0, 2);
    options.top_p = member<float>(body, "top_p", 1, 1e-9, 1);
    options.top_k = member<std::int32_t>(extension, "top_k", 0, 0, INT32_MAX);
    options.min_p = member<float>(extension, "min_p", 0, 0, 1);
    options.max_tokens = member<std::uint32_t>(body, "max_tokens", 16, 1, UINT32_MAX);
    options.seed = member<std::uint64_t>(body, "seed", std::random_device()(), 0, 0x1p64);
    options.log_probabilities = member<int>(body, "logprobs", -1, 0, 5) >= 0;
    if (extension.contains("weights")) options.weights = extension["weights"].get<std::vector<float>>();
    return options;
}

// ---- what is answered

/// Cuts a text before the stop string that is complete first, and holds back what may become one.
class Cutter {
public:
    explicit Cutter(std::vector<std::string> stops) : stops_(std::move(stops)) {}

    /// Takes more text; gives the text that is certain.
    std::string push(std::string_view text, bool last = false) {
        held_ += text;
        std::size_t start = std::string::npos, end = std::string::npos, keep = 0;
        for (const auto& stop : stops_) {
            const std::size_t at = held_.find(stop);
            if (at != std::string::npos && at + stop.size() < end) start = at, end = at + stop.size();
            for (std::size_t size = std::min(stop.size() - 1, held_.size()); size > keep; size--) {
                if (held_.compare(held_.size() - size, size, stop, 0, size) == 0) keep = size;
            }
        }
        found_ = start != std::string::npos;
        std::string certain = held_.substr(0, found_ ? start : last ? held_.size() : held_.size() - keep);
        held_.erase(0, certain.size());
        return certain;
    }
    bool found() const { return found_; }

private:
    std::vector<std::string> stops_;
    std::string held_;
    bool found_ = false;
};

/// What one request decodes.
struct Completion {
    cosrt::Session session;
    cosrt::TextStream stream;
    Cutter cutter;
    std::size_t prompt_tokens, tokens = 0;
    bool streams, counts, log_probabilities;
    std::function<bool()> client_left;
    cosrt::Stats seen{};
};

class Service {
public:
    Service(cosrt::Engine engine, std::string model, std::size_t most)
        : engine_(std::move(engine)), model_(std::move(model)), most_(most) {}

    void routes(httplib::Server& server) {
        const json model{{"id", model_}, {"object", "model"}, {"created", started_}, {"owned_by", "cos"}};
        server.Get("/v1/models", [model](const auto&, auto& out) { reply(out, {{"object", "list"}, {"data", {model}}}); });
        server.Get("/v1/models/:id", [this, model](const auto& in, auto& out) {
            if (in.path_params.at("id") != model_) throw unknown_model();
            reply(out, model);
        });
        server.Post("/v1/completions", [this](const auto& in, auto& out) { complete(in, out); });
        server.Get("/metrics", [this](const auto&, auto& out) { out.set_content(metrics(), "text/plain; version=0.0.4"); });
        server.set_exception_handler([this](const auto& in, auto& out, std::exception_ptr thrown) {
            try {
                std::rethrow_exception(thrown);
            } catch (...) {
                const Problem problem = current_problem();
                if (in.path == "/v1/completions") count(problem.status);
                reply(out, problem.body(), problem.status);
            }
        });
        server.set_error_handler([](const auto& in, auto& out) {  // what httplib itself refuses
            if (out.body.empty()) reply(out, Problem{out.status, "cannot " + in.method + " " + in.path}.body(), out.status);
        });
    }

    /// Cancel the sessions whose clients have left.
    void watch() {
        const std::lock_guard lock(mutex_);
        for (const auto& job : running_) {
            if (job->client_left()) static_cast<void>(job->session.cancel());
        }
    }

    void drain() {
        draining_ = true;
        while (std::lock_guard(mutex_), !running_.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }

private:
    using Job = std::shared_ptr<Completion>;

    static void reply(httplib::Response& out, const json& body, int status = 200) {
        out.status = status;
        // A message may quote bytes of the request that are no UTF-8.
        out.set_content(body.dump(-1, ' ', false, json::error_handler_t::replace), "application/json");
    }

    static Problem unknown_model() { return {404, "there is no such model", "model", "model_not_found"}; }

    void complete(const httplib::Request& in, httplib::Response& out) {
        if (draining_) throw Problem{503, "the server is about to end"};
        const Job job = start(json::parse(in.body), in.is_connection_closed);
        const json head{{"id", "cmpl-" + std::to_string(++last_id_)}, {"object", "text_completion"},
                        {"created", std::time(nullptr)}, {"model", model_}};
        if (job->streams) {
            out.set_chunked_content_provider("text/event-stream", [this, job, head](std::size_t, httplib::DataSink& sink) {
                return stream(job, head, sink);
            }, [this, job](bool) { end(job, 499); });  // a client that left before the first piece
            return;
        }
        std::string text;
        json log_probabilities, finish;
        try {
            decode(*job, [&](const std::string& piece, const json& values, const json& why) {
                text += piece;
                finish = why;
                if (log_probabilities.is_null()) log_probabilities = values;
                else for (const auto& [name, list] : values.items()) {
                    if (list.is_array()) log_probabilities[name].insert(log_probabilities[name].end(), list.begin(), list.end());
                }
            });
        } catch (...) {
            end(job, 0);
            throw;
        }
        json body = head;
        body["choices"] = {{{"index", 0}, {"text", text}, {"logprobs", log_probabilities}, {"finish_reason", finish}}};
        body["usage"] = usage(*job);
        end(job, finish.is_null() ? 499 : 200);
        reply(out, body);
    }

    bool stream(const Job& job, const json& head, httplib::DataSink& sink) {
        const auto send = [&](const json& event) {
            const std::string line = "data: " + event.dump() + "\n\n";
            return sink.write(line.data(), line.size());
        };
        int status = 499;
        try {
            decode(*job, [&](const std::string& piece, const json& values, const json& finish) {
                if (!finish.is_null()) end(job, status = 200);  // so that who has read the last piece finds it counted
                json event = head;
                event["choices"] = {{{"index", 0}, {"text", piece}, {"logprobs", values}, {"finish_reason", finish}}};
                if (!send(event)) job->session.cancel().value();
            });
            if (status == 499) return end(job, status), false;
            json event = head;
            event["choices"] = json::array();
            event["usage"] = usage(*job);
            if (job->counts) send(event);
            sink.write("data: [DONE]\n\n", 14);
        } catch (...) {
            const Problem problem = current_problem();
            end(job, problem.status);
            send(problem.body());
        }
        sink.done();
        return true;
    }

    /// Everything that can be wrong with a request is found here, before anything of an answer is sent.
    Job start(const json& body, std::function<bool()> client_left) {
        if (!body.is_object()) throw Problem{400, "the body must be a JSON object"};
        const auto model = member<std::string>(body, "model", "");
        if (model.empty()) throw Problem{400, "model is missing", "model"};
        if (model != model_) throw unknown_model();
        const auto options = options_of(body);
        const auto prompt = prompt_of(body, engine_);
        Job job(new Completion{engine_.session(options).value(), engine_.text_stream().value(), Cutter(stops_of(body)), prompt.size(),
                               0, member<bool>(body, "stream", false),
                               member<bool>(object(body, "stream_options"), "include_usage", false), options.log_probabilities,
                               std::move(client_left)});
        job->session.prompt(prompt).value();
        const std::lock_guard lock(mutex_);
        if (running_.size() >= most_) throw Problem{429, "too many requests run; try again later", nullptr, "rate_limit_exceeded"};
        running_.insert(job);
        return job;
    }

    /// Decode up to the end or until cancelled. `emit` gets text, log-probabilities, and the finish_reason with the last piece.
    template <typename Emit>
    void decode(Completion& job, Emit emit) {
        json values;
        for (const auto& result : job.session.steps()) {
            tally(job);
            const cosrt::Step& step = result.value();
            std::string text;
            // Token by token, so that nothing behind a stop string counts, however many tokens the step committed.
            for (std::size_t i = 0; i < step.tokens.size() && !job.cutter.found(); i++) {
                const cosrt::Span<const Token> token(&step.tokens[i], 1);
                job.tokens++;
                text += job.cutter.push(job.stream.push(token).value());
                if (!job.log_probabilities) continue;
                values["tokens"].push_back(engine_.decode(token).value());
                values["token_logprobs"].push_back(step.log_probabilities[i]);
                values["top_logprobs"] = values["text_offset"] = nullptr;
            }
            json finish;
            if (step.finish == cosrt::Finish::cancelled) return;
            if (step.finished() && !job.cutter.found()) text += job.cutter.push(job.stream.finish().value(), true);
            if (job.cutter.found() || step.finish == cosrt::Finish::stop) finish = "stop";
            else if (step.finished()) finish = "length";
            if (!text.empty() || !finish.is_null()) emit(text, std::exchange(values, nullptr), finish);
            if (!finish.is_null()) return;
        }
    }

    static json usage(const Completion& job) {
        return {{"prompt_tokens", job.prompt_tokens}, {"completion_tokens", job.tokens},
                {"total_tokens", job.prompt_tokens + job.tokens}};
    }

    /// Add what a session did since the last call.
    void tally(Completion& job) {
        const cosrt::Stats now = job.session.stats().value(), &seen = job.seen;
        const std::lock_guard lock(mutex_);
        totals_.tokens += now.tokens - seen.tokens;
        totals_.proposed += now.proposed - seen.proposed;
        totals_.tested += now.tested - seen.tested;
        totals_.accepted += now.accepted - seen.accepted;
        totals_.forwards += now.forwards - seen.forwards;
        totals_.model_time += now.model_time - seen.model_time;
        totals_.total_time += now.total_time - seen.total_time;
        job.seen = now;
    }

    /// A request no longer runs; its first end is the one that counts. Status 0 leaves the count to the exception handler.
    void end(const Job& job, int status) {
        const std::lock_guard lock(mutex_);
        if (running_.erase(job) && status) requests_[status]++;
    }

    void count(int status) {
        const std::lock_guard lock(mutex_);
        requests_[status]++;
    }

    std::string metrics() {
        const std::lock_guard lock(mutex_);
        std::string text;
        const auto add = [&](const char* name, const char* kind, const auto& value) {
            text += std::string("# TYPE ") + name + " " + kind + "\n" + name + " " + std::to_string(value) + "\n";
        };
        const auto seconds = [](std::chrono::nanoseconds time) { return std::chrono::duration<double>(time).count(); };
        add("cos_tokens_total", "counter", totals_.tokens);
        add("cos_proposed_total", "counter", totals_.proposed);
        add("cos_tested_total", "counter", totals_.tested);
        add("cos_accepted_total", "counter", totals_.accepted);
        add("cos_forwards_total", "counter", totals_.forwards);
        add("cos_model_seconds_total", "counter", seconds(totals_.model_time));
        add("cos_step_seconds_total", "counter", seconds(totals_.total_time));
        add("cos_requests_running", "gauge", running_.size());
        text += "# TYPE cos_requests_total counter\n";
        for (const auto& [code, number] : requests_) {
            text += "cos_requests_total{code=\"" + std::to_string(code) + "\"} " + std::to_string(number) + "\n";
        }
        return text;
    }

    const cosrt::Engine engine_;
    const std::string model_;
    const std::size_t most_;
    const std::time_t started_ = std::time(nullptr);
    std::atomic<bool> draining_{false};
    std::atomic<std::uint64_t> last_id_{0};
    std::mutex mutex_;  // for all below
    std::set<Job> running_;
    std::map<int, std::uint64_t> requests_;
    cosrt::Stats totals_;
};

int serve(const std::string& config, int port, std::size_t most) {
    // Blocked in all threads, those of ONNX Runtime too, so that this one can wait for them.
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, nullptr);
    const std::string file = config.substr(config.rfind('/') + 1);
    Service service(cosrt::Engine::open(config).value(), file.substr(0, file.rfind(".json")), most);
    httplib::Server server;
    // A thread for each request that runs, and some for those that are refused or ask for metrics. Connections are not kept
    // alive, since an idle one would hold a thread.
    server.new_task_queue = [most] { return new httplib::ThreadPool(most + 8); };
    server.set_keep_alive_max_count(1);
    server.set_tcp_nodelay(true);
    server.set_payload_max_length(16 << 20);
    server.set_socket_options([](int socket) { httplib::set_socket_opt(socket, SOL_SOCKET, SO_REUSEADDR, 1); });
    service.routes(server);
    if (port == 0) port = server.bind_to_any_port("127.0.0.1");
    else if (!server.bind_to_port("127.0.0.1", port)) port = -1;
    if (port < 0) throw std::runtime_error("cannot listen on the port");

    std::thread listener([&] { server.listen_after_bind(); });
    server.wait_until_ready();
    std::printf("listening on 127.0.0.1:%d\n", port);
    std::fflush(stdout);

    std::atomic<bool> over{false};
    std::thread watcher([&] {
        for (; !over; std::this_thread::sleep_for(std::chrono::milliseconds(50))) service.watch();
    });
    int signal = 0;
    sigwait(&signals, &signal);
    service.drain();
    server.stop();
    listener.join();
    over = true;
    watcher.join();
    return 0;
}

}  // namespace

int main(int argc, char** argv) {
    int port = 8080, most = 32;
    bool understood = argc >= 2 && argc % 2 == 0;
    for (int i = 2; understood && i < argc; i += 2) {
        const std::string name = argv[i];
        if (name == "--port") port = std::atoi(argv[i + 1]);
        else if (name == "--max-sessions") most = std::atoi(argv[i + 1]);
        else understood = false;
    }
    if (!understood || most < 1) {
        std::fprintf(stderr, "usage: %s CONFIG.json [--port N] [--max-sessions N]\n", argv[0]);
        return 2;
    }
    try {
        return serve(argv[1], port, static_cast<std::size_t>(most));
    } catch (const std::exception& error) {
        std::fprintf(stderr, "server: %s\n", error.what());
        return 1;
    }
}
