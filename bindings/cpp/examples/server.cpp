// An HTTP server for the completions API of OpenAI, from one engine. tests/servers/README.md specifies it.
//
//     server CONFIG.json [--port N] [--max-sessions N] [--prepare SECONDS]
//
// Each request decodes in its own session, on the thread of its connection. All sessions share the threads of ONNX
// Runtime. One more thread looks for clients that have left, and cancels their sessions, even during a pass.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <iostream>
#include <map>
#include <mutex>
#include <random>
#include <set>
#include <thread>

#include "cos.hpp"
#include "httplib.h"
#include "json.hpp"

namespace {

using nlohmann::json;

std::atomic<bool> draining{false};  // set by signals

/// An error that is sent to the client instead of an answer.
struct Problem {
    int status;
    std::string message;
    json code = nullptr;

    json body() const {
        const char* type = status == 429   ? "rate_limit_error"
                           : status >= 500 ? "server_error"
                                           : "invalid_request_error";
        return {{"error", {{"message", message}, {"type", type}, {"param", nullptr}, {"code", code}}}};
    }
};

/// The exception that is being handled, as a problem.
Problem current_problem() {
    using cosrt::Code;
    try {
        throw;
    } catch (const Problem& problem) {
        return problem;
    } catch (const json::exception& error) {
        return {400, error.what()};
    } catch (const cosrt::Exception& error) {
        if (error.code() == Code::context_full) return {400, error.what(), "context_length_exceeded"};
        if (error.code() == Code::no_memory) return {503, error.what()};
        const bool refused = error.code() == Code::invalid_argument || error.code() == Code::unsupported;
        return {refused ? 400 : 500, error.what()};
    } catch (const std::exception& error) {
        return {500, error.what()};
    }
}

const std::map<std::string, cosrt::Strategy> strategies{
    {"auto", cosrt::Strategy::automatic}, {"standard", cosrt::Strategy::standard},
    {"speculative", cosrt::Strategy::speculative}, {"cos", cosrt::Strategy::cos}};
const std::map<std::string, cosrt::Priority> priorities{
    {"interactive", cosrt::Priority::interactive}, {"batch", cosrt::Priority::batch}};

/// Removes members of a request that are null, and refuses members of a wrong type: the json library would convert 1.5
/// and true to 1. CoS checks the rest. Values that may be nested deeply are not copied, because that may overflow the
/// stack.
void check(json& object) {
    using Rule = std::function<bool(const json&)>;
    const auto is = [](json only) { return [=](const json& value) { return value == only; }; };
    const auto up_to = [](std::uint64_t most) {
        return [=](const json& value) { return value.is_number_unsigned() && value <= most; };
    };
    const auto list = [](Rule of) {
        return [=](const json& value) { return value.is_array() && std::all_of(value.begin(), value.end(), of); };
    };
    const auto name_in = [](const auto& names) {
        return [all = &names](const json& value) { return value.is_string() && all->count(value.get<std::string>()); };
    };
    const auto either = [](Rule one, Rule other) {
        return [=](const json& value) { return one(value) || other(value); };
    };
    static const std::map<std::string, Rule> rules{
        {"model", &json::is_string}, {"prompt", either(&json::is_string, list(up_to(INT32_MAX)))},
        {"max_tokens", up_to(UINT32_MAX)}, {"temperature", &json::is_number}, {"top_p", &json::is_number},
        {"seed", up_to(UINT64_MAX)}, {"stop", either(&json::is_string, list(&json::is_string))},
        {"stream", &json::is_boolean}, {"stream_options", &json::is_object}, {"include_usage", &json::is_boolean},
        {"cos", &json::is_object}, {"weights", list(&json::is_number)}, {"scope", &json::is_string},
        {"strategy", name_in(strategies)}, {"priority", name_in(priorities)},
        // Not supported, except for the value that changes nothing.
        {"n", is(1)}, {"best_of", is(1)}, {"echo", is(false)}, {"suffix", is("")}, {"logprobs", is(nullptr)},
        {"presence_penalty", is(0)}, {"frequency_penalty", is(0)}, {"logit_bias", is(json::object())}};
    for (auto member = object.begin(); member != object.end();) {
        const auto rule = rules.find(member.key());
        if (member->is_null()) member = object.erase(member);
        else if (rule == rules.end() || rule->second(*member)) ++member;
        else throw Problem{400, member.key() + " is of a wrong type, out of range, or not supported"};
    }
}

/// A running request.
struct Completion {
    cosrt::Session session;
    cosrt::TextStream text;
    std::size_t prompt_tokens;
    bool stream, include_usage;
    json head;  // the members that every answer has
    std::function<bool()> client_left;
    json finish = nullptr;
    std::optional<std::string> first{};  // what the first step of a stream added, until it is sent

    /// Takes a step, and returns the text that it adds, possibly none. The last step sets `finish`.
    std::string advance() {
        const cosrt::Step step = session.step().value();
        if (step.finish == cosrt::Finish::cancelled) throw Problem{499, "the client left"};
        std::string piece(text.push(step.tokens).value());
        if (text.stopped() || step.finished()) {
            piece += text.finish().value();
            finish = text.stopped() || step.finish == cosrt::Finish::stop ? "stop" : "length";
        }
        return piece;
    }

    json answer(const std::string& piece) const {
        json body = head;
        body["choices"] = {{{"index", 0}, {"text", piece}, {"logprobs", nullptr}, {"finish_reason", finish}}};
        return body;
    }

    json with_usage(json body) const {
        const auto decoded = session.stats().value().tokens, total = prompt_tokens + decoded;
        body["usage"] = {{"prompt_tokens", prompt_tokens}, {"completion_tokens", decoded}, {"total_tokens", total}};
        return body;
    }
};

void reply(httplib::Response& out, const json& body, int status = 200) {
    out.status = status;
    if (status == 429 || status == 503) out.set_header("Retry-After", "1");
    // A message may quote bytes of the request that are not UTF-8.
    out.set_content(body.dump(-1, ' ', false, json::error_handler_t::replace), "application/json");
}

class Service {
public:
    Service(httplib::Server& server, const std::string& config, std::size_t most, int seconds)
        : engine_(cosrt::Engine::open(config).value()),
          model_(std::filesystem::path(config).stem().string()),
          most_(most) {
        if (seconds > 0) {
            cosrt::PrepareOptions load;
            load.sessions = static_cast<std::uint32_t>(std::min<std::size_t>(most, 1024));
            load.time = std::chrono::seconds(seconds);
            load.progress = [](double) { return !draining; };
            std::cerr << "prepared " << std::lround(100 * engine_.prepare(load).value()) << " %\n";
        }
        const json model{{"id", model_}, {"object", "model"}, {"created", std::time(nullptr)}, {"owned_by", "cos"}};
        server.Get("/v1/models",
                   [model](const auto&, auto& out) { reply(out, {{"object", "list"}, {"data", {model}}}); });
        server.Get("/metrics",
                   [this](const auto&, auto& out) { out.set_content(metrics(), "text/plain; version=0.0.4"); });
        server.Post("/v1/completions", [this](const auto& in, auto& out) { complete(in, out); });
        server.set_error_handler([](const auto&, auto& out) {  // errors of httplib itself
            const Problem problem{out.status, httplib::status_message(out.status)};
            if (out.body.empty()) reply(out, problem.body(), out.status);
        });
    }

    /// Cancels the sessions whose clients have left. Returns false when the server may end.
    bool watch() {
        const std::lock_guard lock(mutex_);
        for (const auto& job : running_) {
            if (job->client_left()) static_cast<void>(job->session.cancel());
        }
        return !draining || !running_.empty();
    }

private:
    using Job = std::shared_ptr<Completion>;

    void complete(const httplib::Request& in, httplib::Response& out) {
        Job job;
        try {
            job = start(json::parse(in.body), in.is_connection_closed);
            if (job->stream) {
                job->first = job->advance();  // its error is an answer with a status
                const auto next = [this, job](std::size_t, httplib::DataSink& sink) { return stream(job, sink); };
                const auto done = [this, job](bool) { end(job, 499); };
                return out.set_chunked_content_provider("text/event-stream", next, done);
            }
            std::string text;
            while (job->finish.is_null()) text += job->advance();
            reply(out, job->with_usage(job->answer(text)));
            end(job, 200);
        } catch (...) {
            const Problem problem = current_problem();
            end(job, problem.status);
            reply(out, problem.body(), problem.status);
        }
    }

    /// Takes a step and sends the text that it adds. httplib calls it until the sink is done.
    bool stream(const Job& job, httplib::DataSink& sink) {
        std::string events;
        const auto add = [&](const json& event) { events += "data: " + event.dump() + "\n\n"; };
        try {
            const std::string piece = job->first ? *std::exchange(job->first, std::nullopt) : job->advance();
            const bool last = !job->finish.is_null();
            if (last || !piece.empty()) add(job->answer(piece));
            if (!last) return sink.write(events.data(), events.size());
            if (job->include_usage) add(job->with_usage(job->head));
            events += "data: [DONE]\n\n";
            end(job, 200);
        } catch (...) {
            const Problem problem = current_problem();
            add(problem.body());
            end(job, problem.status);
        }
        sink.write(events.data(), events.size());
        sink.done();
        return true;
    }

    /// Starts a request. Finds all its faults, before any part of an answer is sent.
    Job start(json body, std::function<bool()> client_left) {
        if (!body.is_object()) throw Problem{400, "the body must be a JSON object"};
        check(body);
        for (const char* nested : {"cos", "stream_options"}) check(*body.emplace(nested, json::object()).first);
        if (body.at("model") != model_) throw Problem{404, "there is no such model", "model_not_found"};

        const json& extension = body["cos"];
        cosrt::SessionOptions options;
        options.strategy = strategies.at(extension.value("strategy", "auto"));
        options.priority = priorities.at(extension.value("priority", "interactive"));
        options.temperature = body.value("temperature", 1.0F);
        options.top_p = body.value("top_p", 1.0F);
        options.max_tokens = body.value("max_tokens", 16U);
        options.seed = body.value("seed", std::uint64_t{std::random_device()()});
        if (extension.contains("weights")) options.weights = extension["weights"].get<std::vector<float>>();

        const json prompt = body.at("prompt"), stop = body.value("stop", json::array());
        const auto tokens = prompt.is_string() ? engine_.encode(prompt.get<std::string>()).value()
                                               : prompt.get<std::vector<cosrt::Token>>();
        const auto stops =
            stop.is_string() ? std::vector{stop.get<std::string>()} : stop.get<std::vector<std::string>>();
        const json head{{"id", "cmpl-" + std::to_string(++last_id_)}, {"object", "text_completion"},
                        {"created", std::time(nullptr)}, {"model", model_}, {"choices", json::array()}};
        const bool include_usage = body["stream_options"].value("include_usage", false);
        const Job job(new Completion{engine_.session(options).value(), engine_.text_stream().value(), tokens.size(),
                                     body.value("stream", false), include_usage, head, std::move(client_left)});
        job->session.set_scope(extension.value("scope", "")).value();
        job->session.prompt(tokens).value();
        job->text.prompt(tokens).value();
        job->text.set_stops(stops).value();
        const std::lock_guard lock(mutex_);
        if (draining) throw Problem{503, "the server is shutting down"};
        if (running_.size() >= most_) {
            throw Problem{429, "too many requests are running; try again later", "rate_limit_exceeded"};
        }
        running_.insert(job);
        return job;
    }

    /// Counts a request that has ended, or that was refused before it became a job. Only the first end of a job counts.
    void end(const Job& job, int status) {
        const std::lock_guard lock(mutex_);
        if (!job || running_.erase(job)) requests_[status]++;
    }

    std::string metrics() {
        std::string text = engine_.metrics().value();
        const std::lock_guard lock(mutex_);
        text += "# TYPE cos_requests_running gauge\ncos_requests_running " + std::to_string(running_.size()) +
                "\n# TYPE cos_requests_total counter\n";
        for (const auto& [code, count] : requests_)
            text += "cos_requests_total{code=\"" + std::to_string(code) + "\"} " + std::to_string(count) + '\n';
        return text;
    }

    const cosrt::Engine engine_;
    const std::string model_;
    const std::size_t most_;
    std::atomic<std::uint64_t> last_id_{0};
    std::mutex mutex_;  // guards the two members below
    std::set<Job> running_;
    std::map<int, std::uint64_t> requests_;
};

}  // namespace

int main(int argc, char** argv) try {
    std::map<std::string, int> options{{"--port", 8080}, {"--max-sessions", 32}, {"--prepare", 10}};
    bool help = argc == 2 && argv[1] == std::string("--help"), good = argc % 2 == 0 && argv[1][0] != '-';
    for (int i = 2, end; good && i < argc; i += 2)
        good = options.count(argv[i]) && std::sscanf(argv[i + 1], "%d%n", &options[argv[i]], &end) == 1 &&
               !argv[i + 1][end];
    int port = options["--port"], most = options["--max-sessions"], seconds = options["--prepare"];
    if (!good || most < 1 || port < 0 || port > 65535 || seconds < 0 || seconds > 86400)
        return (help ? std::cout : std::cerr)
                   << "usage: server CONFIG.json [--port N] [--max-sessions N] [--prepare SECONDS]\n",
               help ? 0 : 2;
    httplib::Server server;
    // One thread for each running request, and some for other requests. Connections are not kept alive, because an idle
    // connection would occupy a thread.
    server.new_task_queue = [=] { return new httplib::ThreadPool(static_cast<std::size_t>(most) + 8); };
    server.set_keep_alive_max_count(1).set_tcp_nodelay(true).set_payload_max_length(16 << 20);
    // The default, SO_REUSEPORT, would let two servers share a port.
    server.set_socket_options([](int socket) { httplib::set_socket_opt(socket, SOL_SOCKET, SO_REUSEADDR, 1); });
    for (const int signal : {SIGTERM, SIGINT}) std::signal(signal, [](int) { draining = true; });
    Service service(server, argv[1], static_cast<std::size_t>(most), seconds);
    if (draining) return 0;
    const bool bound =
        port ? server.bind_to_port("127.0.0.1", port) : (port = server.bind_to_any_port("127.0.0.1")) > 0;
    if (!bound) throw std::runtime_error("cannot listen on the port; is it in use?");
    std::cout << "listening on 127.0.0.1:" << port << std::endl;

    std::thread watcher([&] {
        while (service.watch()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
        server.stop();
    });
    server.listen_after_bind();
    const bool asked = draining.exchange(true);
    watcher.join();
    return asked ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << "server: " << error.what() << '\n';
    return 1;
}
