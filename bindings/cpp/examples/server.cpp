// An HTTP server for OpenAI's completions and chats, from one engine. tests/servers/README.md specifies it.
//
//     server CONFIG.json [OPTION VALUE]...
//
// The library reads requests and writes answers; the server carries bytes. Each request decodes on the thread of its
// connection, and the passes of all are shared. One more thread looks for clients that have left, and cancels their
// requests, even during a pass.

#include <algorithm>
#include <atomic>
#include <charconv>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <csignal>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <list>
#include <map>
#include <mutex>
#include <random>
#include <thread>

#include "cos.hpp"
#include "cos_driver.hpp"
#include "httplib.h"
#include "json.hpp"

namespace {

using nlohmann::json;
using std::chrono::steady_clock;

std::atomic<bool> draining{false};  // set by signals

/// The options of the command line. Those that are numbers have a least and a largest value.
struct Options {
    struct Number {
        const char* meaning;
        std::int64_t value, least, most;
    };
    std::string config, host = "127.0.0.1", keys, page;
    std::map<std::string, Number> numbers{
        {"--port", {"8080; 0: any free port", 8080, 0, 65535}},
        {"--max-sessions", {"32: choices that are decoded at once", 32, 1, 4096}},
        {"--queue", {"64: requests that wait for that", 64, 0, 100000}},
        {"--prepare", {"10: seconds to prepare the engine", 10, 0, 86400}},
        {"--rate", {"0: requests a minute of each key or address; 0: no limit", 0, 0, 1000000}},
        {"--max-body", {"4194304: bytes of a request", 4 << 20, 1, 1 << 30}},
        {"--max-prompt", {"0: tokens of a prompt; 0: as the context allows", 0, 0, INT32_MAX}},
        {"--max-tokens", {"0: tokens of a choice; 0: as the request says", 0, 0, INT32_MAX}},
        {"--timeout", {"30: seconds for a client to send a request or take a part of an answer", 30, 1, 3600}}};

    std::int64_t operator[](const char* name) const { return numbers.at(name).value; }

    bool parse(int count, char** words) {
        if (count % 2 != 0 || words[1][0] == '-') return false;
        config = words[1];
        for (int i = 2; i < count; i += 2) {
            const std::string name = words[i], value = words[i + 1];
            const auto number = numbers.find(name);
            if (name == "--host") host = value;
            else if (name == "--api-keys") keys = value;
            else if (name == "--page") page = value;
            else if (number == numbers.end() || !read(value, number->second)) return false;
        }
        return true;
    }

    void print(std::ostream& out, bool all) const {
        out << "usage: server CONFIG.json [OPTION VALUE]...\n";
        if (!all) return;
        out << "  --host ADDRESS   127.0.0.1: where it listens\n  --api-keys FILE  none: keys, one a line\n"
            << "  --page FILE      none: an HTML page at /, such as page.html beside this source\n";
        for (const auto& [name, number] : numbers) out << "  " << name << " N  " << number.meaning << '\n';
    }

private:
    static bool read(const std::string& text, Number& number) {
        const char* end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, number.value);
        return error == std::errc() && stop == end && number.least <= number.value && number.value <= number.most;
    }
};

/// An error of the server itself.
struct Problem {
    int status;
    std::string message, type = "invalid_request_error";
    json code = nullptr;

    std::string body() const {
        const json error{{"message", message}, {"type", type}, {"param", nullptr}, {"code", code}};
        return json{{"error", error}}.dump(-1, ' ', false, json::error_handler_t::replace);
    }
};

void reply(httplib::Response& out, int status, const std::string& body) {
    out.status = status;
    if (status == 429 || status == 503) out.set_header("Retry-After", "1");
    out.set_content(body, "application/json");
}

/// Answers GET / with a page that loads nothing from elsewhere. For {nonce} comes a number that nobody can guess, so
/// that only the script and the style of the file itself are used.
void show_page(httplib::Server& server, const std::string& path) {
    std::ifstream file(path);
    const std::string page(std::istreambuf_iterator<char>(file), {});
    if (page.empty()) throw std::runtime_error("there is no page in " + path);
    server.Get("/", [page](const auto&, auto& out) {
        std::random_device random;
        std::string nonce;
        for (int i = 0; i < 4; i++) nonce += std::to_string(random()) + '-';
        const auto filled = [&](std::string text) {
            const std::string place = "{nonce}";
            for (std::size_t at; (at = text.find(place)) != std::string::npos;) text.replace(at, place.size(), nonce);
            return text;
        };
        out.set_header("Content-Security-Policy",
                       filled("default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; "
                              "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
                              "frame-ancestors 'none'"));
        out.set_header("X-Content-Type-Options", "nosniff");
        out.set_header("Referrer-Policy", "no-referrer");
        out.set_header("Cache-Control", "no-store");
        out.set_content(filled(page), "text/html; charset=utf-8");
    });
}

Problem too_many() {
    return {429, "too many requests; try again later", "rate_limit_error", "rate_limit_exceeded"};
}

/// The answer to the exception that is being handled.
std::pair<int, std::string> refusal() {
    try {
        throw;
    } catch (const Problem& problem) {
        return {problem.status, problem.body()};
    } catch (const cosrt::Exception& error) {
        return {error.error().status, error.error().json};
    } catch (const std::exception& error) {
        const Problem problem{500, error.what(), "server_error"};
        return {500, problem.body()};
    }
}

/// A request that waits or runs.
struct Job {
    std::optional<cosrt::Request> request;  // while it waits
    std::size_t choices;
    std::function<bool()> client_left;
    std::string path;
    cosrt::RequestStatus status;
    std::shared_ptr<cosrt::DrivenRequest> driven{};  // while it runs
    std::optional<std::string> first{};               // the first piece of a stream, until it is sent
    steady_clock::time_point arrived = steady_clock::now(), began{}, told{};
    bool runs = false, left = false, ended = false;

    /// Waits for what is to be sent next.
    std::string advance() {
        cosrt::Piece piece = driven->next().value();
        status = piece.status;
        if (told == steady_clock::time_point{}) told = steady_clock::now();
        if (status.state == cosrt::RequestState::cancelled) throw Problem{499, "the client left"};
        return std::move(piece.text);
    }
};

/// Lets requests of each client pass, up to a rate. A client may save up requests of a minute.
class Rates {
public:
    explicit Rates(std::int64_t a_minute) : a_minute_(static_cast<double>(a_minute)) {}

    bool pass(const std::string& client) {
        if (a_minute_ == 0) return true;
        const std::lock_guard lock(mutex_);
        const auto now = steady_clock::now();
        const auto saved = [&](const Account& of) {
            const std::chrono::duration<double, std::ratio<60>> minutes = now - of.since;
            return std::min(a_minute_, of.saved + minutes.count() * a_minute_);
        };
        // Full accounts are those of clients that have not come for a minute.
        if (accounts_.size() > 10000) {
            for (auto it = accounts_.begin(); it != accounts_.end();)
                it = saved(it->second) >= a_minute_ ? accounts_.erase(it) : std::next(it);
        }
        Account& account = accounts_.try_emplace(client, Account{a_minute_, now}).first->second;
        account = {saved(account), now};
        if (account.saved < 1) return false;
        account.saved -= 1;
        return true;
    }

private:
    struct Account {
        double saved;
        steady_clock::time_point since;
    };
    const double a_minute_;
    std::mutex mutex_;  // guards the accounts
    std::map<std::string, Account> accounts_;
};

class Service {
public:
    Service(httplib::Server& server, const Options& options)
        : options_(options),
          engine_(cosrt::Engine::open(options.config).value()),
          model_(std::filesystem::path(options.config).stem().string()),
          rates_(options["--rate"]) {
        read_keys();
        prepare();
        const json model{{"id", model_}, {"object", "model"}, {"created", std::time(nullptr)}, {"owned_by", "cos"}};
        const auto get = [&](const char* path, auto answer) {
            server.Get(path, [answer](const auto&, auto& out) {
                const auto [status, body] = answer();
                reply(out, status, body);
            });
        };
        get("/health", [] { return std::pair{200, std::string(R"({"status": "ok"})")}; });
        get("/ready", [] {
            return draining ? std::pair{503, std::string(R"({"status": "draining"})")}
                            : std::pair{200, std::string(R"({"status": "ok"})")};
        });
        get("/v1/models", [model] { return std::pair{200, json{{"object", "list"}, {"data", {model}}}.dump()}; });
        server.Get("/v1/models/(.+)", [this, model](const auto& in, auto& out) {
            const Problem unknown{404, "there is no such model", "invalid_request_error", "model_not_found"};
            const bool known = in.matches[1] == model_;
            reply(out, known ? 200 : 404, known ? model.dump() : unknown.body());
        });
        server.Get("/metrics",
                   [this](const auto&, auto& out) { out.set_content(metrics(), "text/plain; version=0.0.4"); });
        server.Post("/v1/completions",
                    [this](const auto& in, auto& out) { answer(cosrt::Endpoint::completion, in, out); });
        server.Post("/v1/chat/completions",
                    [this](const auto& in, auto& out) { answer(cosrt::Endpoint::chat, in, out); });
        server.set_pre_routing_handler([this](const auto& in, auto& out) { return admit(in, out); });
        server.set_error_handler([](const auto& in, auto& out) {  // errors of httplib itself
            const std::string methods = allowed(in.path);
            if (!methods.empty() && methods.find(in.method) == std::string::npos && out.body.empty()) {
                out.status = 405;  // httplib says 404, or 400
                out.set_header("Allow", methods);
            }
            const Problem problem{out.status, httplib::status_message(out.status)};
            if (out.body.empty()) reply(out, out.status, problem.body());
        });
    }

    /// Cancels the requests whose clients have left. Returns false when the server may end.
    bool watch() {
        const std::lock_guard lock(mutex_);
        bool any = false;
        for (const auto& job : jobs_) {
            if (job->left || !job->client_left()) continue;
            job->left = any = true;
            if (job->driven) job->driven->cancel();
        }
        if (any) turn_.notify_all();
        return !draining || !jobs_.empty();
    }

private:
    using Owner = std::shared_ptr<Job>;

    void read_keys() {
        if (options_.keys.empty()) return;
        std::ifstream file(options_.keys);
        for (std::string line; std::getline(file, line);) {
            while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
            if (!line.empty() && line[0] != '#') keys_.push_back("Bearer " + line);
        }
        if (keys_.empty()) throw std::runtime_error("there are no keys in " + options_.keys);
    }

    void prepare() {
        if (options_["--prepare"] == 0) return;
        cosrt::PrepareOptions load;
        load.sessions = static_cast<std::uint32_t>(std::min<std::int64_t>(options_["--max-sessions"], 1024));
        load.time = std::chrono::seconds(options_["--prepare"]);
        load.progress = [](double) { return !draining; };
        std::cerr << "prepared " << std::lround(100 * engine_.prepare(load).value()) << " %" << std::endl;
    }

    /// The methods of a path; empty if nothing is there.
    static std::string allowed(const std::string& path) {
        if (path == "/v1/completions" || path == "/v1/chat/completions") return "POST";
        for (const char* each : {"/v1/models", "/health", "/ready", "/metrics"})
            if (path == each) return "GET, HEAD";
        return path.rfind("/v1/models/", 0) == 0 ? "GET, HEAD" : "";
    }

    /// Refuses requests without a key, and those beyond the rate.
    httplib::Server::HandlerResponse admit(const httplib::Request& in, httplib::Response& out) {
        using Handled = httplib::Server::HandlerResponse;
        if (in.path.rfind("/v1/", 0) != 0) return Handled::Unhandled;
        const std::string given = in.get_header_value("Authorization");
        // The time tells neither which key is nearly right nor how much of it.
        bool known = keys_.empty();
        for (const std::string& key : keys_) {
            std::size_t different = key.size() ^ given.size();
            for (std::size_t i = 0; i < key.size(); i++)
                different |= static_cast<std::size_t>(key[i] ^ (i < given.size() ? given[i] : 0));
            known |= different == 0;
        }
        if (!known) {
            const Problem problem{401, "the API key is missing or wrong", "authentication_error", "invalid_api_key"};
            return reply(out, 401, problem.body()), Handled::Handled;
        }
        if (in.method == "POST" && !rates_.pass(keys_.empty() ? in.remote_addr : given)) {
            return reply(out, 429, too_many().body()), Handled::Handled;
        }
        return Handled::Unhandled;
    }

    void answer(cosrt::Endpoint endpoint, const httplib::Request& in, httplib::Response& out) {
        Owner job;
        try {
            cosrt::RequestOptions terms;
            terms.endpoint = endpoint, terms.model = model_;
            terms.max_choices = static_cast<std::uint32_t>(options_["--max-sessions"]);
            terms.max_prompt_tokens = static_cast<std::uint32_t>(options_["--max-prompt"]);
            terms.max_tokens = static_cast<std::uint32_t>(options_["--max-tokens"]);
            auto request = cosrt::Request::start(engine_, in.body, terms).value();
            const auto status = request.status().value();
            const std::size_t choices = request.choices();
            job = std::make_shared<Job>(Job{std::move(request), choices, in.is_connection_closed, in.path, status});
            wait(job);
            std::string said = job->advance();  // an error of the first step of a stream is an answer with a status
            if (job->status.streams) {
                job->first = std::move(said);
                const auto next = [this, job](std::size_t, httplib::DataSink& sink) { return stream(job, sink); };
                const auto done = [this, job](bool) { end(job, 499); };
                return out.set_chunked_content_provider("text/event-stream", next, done);
            }
            while (job->status.open()) said = job->advance();
            end(job, 200);
            reply(out, 200, said);
        } catch (...) {
            const auto [status, body] = refusal();
            if (job) end(job, status);
            else count(status, {{"path", in.path}});
            reply(out, status, body);
        }
    }

    /// Takes a step and sends what it adds. httplib calls it until the sink is done.
    bool stream(const Owner& job, httplib::DataSink& sink) {
        std::string events;
        try {
            if (job->first) events = *std::exchange(job->first, std::nullopt);
            else events = job->advance();
            if (job->status.open()) return events.empty() || sink.write(events.data(), events.size());
            end(job, 200);
        } catch (...) {
            const auto [status, body] = refusal();
            end(job, status);
            events = "data: " + body + "\n\n";
        }
        sink.write(events.data(), events.size());
        sink.done();
        return true;
    }

    /// Waits in line until there is room for the choices of a request.
    void wait(const Owner& job) {
        std::unique_lock lock(mutex_);
        if (draining) throw Problem{503, "the server is shutting down", "server_error"};
        const auto most = static_cast<std::size_t>(options_["--max-sessions"]);
        const auto room = [&] { return decoding_ + job->choices <= most; };
        if (!waiting_.empty() || !room()) {
            if (waiting_.size() >= static_cast<std::size_t>(options_["--queue"])) throw too_many();
        }
        jobs_.push_back(job);
        waiting_.push_back(job.get());
        turn_.wait(lock, [&] { return job->left || (waiting_.front() == job.get() && room()); });
        waiting_.remove(job.get());
        job->began = steady_clock::now();
        turn_.notify_all();
        if (job->left) throw Problem{499, "the client left"};
        job->runs = true, decoding_ += job->choices;
        job->driven = driver_.start(std::move(*job->request));
        job->request.reset();
    }

    /// Ends a request. Only the first end counts.
    void end(const Owner& job, int status) {
        const std::unique_lock lock(mutex_);
        if (std::exchange(job->ended, true)) return;
        jobs_.remove(job);
        if (job->runs) decoding_ -= job->choices;
        if (job->driven) job->driven->cancel();  // if the client has left in the midst of it
        turn_.notify_all();
        const auto ms = [&](steady_clock::time_point until) {
            const bool known = until != steady_clock::time_point{};
            return known ? std::chrono::duration<double, std::milli>(until - job->arrived).count() : 0;
        };
        count(status, {{"path", job->path},
                       {"choices", job->choices},
                       {"prompt_tokens", job->status.prompt_tokens},
                       {"completion_tokens", job->status.completion_tokens},
                       {"wait_ms", ms(job->began)},
                       {"first_ms", ms(job->told)},
                       {"total_ms", ms(steady_clock::now())}});
    }

    /// Counts a request that has ended, and logs it.
    void count(int status, json line) {
        for (const char* name : {"choices", "prompt_tokens", "completion_tokens", "wait_ms", "first_ms", "total_ms"})
            line.emplace(name, 0);
        line["time"] = std::time(nullptr), line["status"] = status;
        const std::lock_guard lock(counts_);
        requests_[status]++;
        std::cerr << line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n" << std::flush;
    }

    std::string metrics() {
        std::string text = engine_.metrics().value();
        const std::lock_guard lock(mutex_);
        const auto gauge = [&](const char* name, std::size_t value) {
            text += std::string("# TYPE ") + name + " gauge\n" + name + ' ' + std::to_string(value) + '\n';
        };
        gauge("cos_requests_running", jobs_.size() - waiting_.size());
        gauge("cos_requests_waiting", waiting_.size());
        const std::lock_guard counted(counts_);
        text += "# TYPE cos_requests_total counter\n";
        for (const auto& [code, count] : requests_)
            text += "cos_requests_total{code=\"" + std::to_string(code) + "\"} " + std::to_string(count) + '\n';
        return text;
    }

    const Options options_;
    const cosrt::Engine engine_;
    cosrt::Driver driver_;
    const std::string model_;
    std::vector<std::string> keys_;
    Rates rates_;
    std::mutex mutex_;  // guards the members up to the next mutex, and the flags of all jobs
    std::condition_variable turn_;
    std::list<Owner> jobs_;
    std::list<const Job*> waiting_;
    std::size_t decoding_ = 0;  // choices
    std::mutex counts_;         // guards the counts and the log
    std::map<int, std::uint64_t> requests_;
};

}  // namespace

int main(int argc, char** argv) try {
    Options options;
    if (argc == 2 && argv[1] == std::string("--help")) return options.print(std::cout, true), 0;
    if (!options.parse(argc, argv)) return options.print(std::cerr, false), 2;
    httplib::Server server;
    // One thread for each request that runs or waits, and some for other requests. Connections are not kept alive,
    // because an idle connection would occupy a thread.
    const auto threads = static_cast<std::size_t>(options["--max-sessions"] + options["--queue"]) + 8;
    server.new_task_queue = [=] { return new httplib::ThreadPool(threads); };
    server.set_keep_alive_max_count(1).set_tcp_nodelay(true);
    server.set_payload_max_length(static_cast<std::size_t>(options["--max-body"]));
    server.set_read_timeout(options["--timeout"]).set_write_timeout(options["--timeout"]);
    // The default, SO_REUSEPORT, would let two servers share a port.
    server.set_socket_options([](int socket) { httplib::set_socket_opt(socket, SOL_SOCKET, SO_REUSEADDR, 1); });
    for (const int signal : {SIGTERM, SIGINT}) std::signal(signal, [](int) { draining = true; });
    if (!options.page.empty()) show_page(server, options.page);
    Service service(server, options);
    if (draining) return 0;
    int port = static_cast<int>(options["--port"]);
    if (!port) port = server.bind_to_any_port(options.host);
    else if (!server.bind_to_port(options.host, port)) port = -1;
    if (port < 0) throw std::runtime_error("cannot listen on the port; is it in use?");
    std::cout << "listening on " << options.host << ':' << port << std::endl;

    std::atomic<bool> stopped{false};
    std::thread watcher([&] {
        while (service.watch()) std::this_thread::sleep_for(std::chrono::milliseconds(50));
        server.stop();
        // It waits for clients that have sent a part of a request, and they may take for ever.
        for (int i = 0; i < 20 * options["--timeout"] && !stopped; i++)
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
        if (!stopped && draining) std::_Exit(0);
    });
    server.listen_after_bind();
    stopped = true;
    const bool asked = draining.exchange(true);
    watcher.join();
    return asked ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << "server: " << error.what() << '\n';
    return 1;
}
