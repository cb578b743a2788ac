// Uses and misuses all of cos.hpp: misuse is an error and never a crash. Run it under the sanitizers, in the root of
// the repository.

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <limits>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "controls.hpp"
#include "cos.hpp"
#include "requests.hpp"

#if __cplusplus >= 202002L
#include <ranges>
#include <span>
#endif

namespace {

void engines() {
    const auto engine = open();
    EXPECT(engine.vocab_size() == 96);
    EXPECT(engine.model_count() == 2);
    EXPECT(engine.describe().value().find("\"vocab_size\"") != std::string_view::npos);
    EXPECT(engine.describe_table().value().find("one") != std::string_view::npos);
    EXPECT(!cosrt::version().empty());
    EXPECT(fails(cosrt::Engine::open("nowhere.json"), Code::config));
    EXPECT(fails(cosrt::Engine::from_json(""), Code::config));
    EXPECT(fails(cosrt::Engine::from_json(std::string("{}\0{}", 5)), Code::invalid_argument));
    EXPECT(fails(cosrt::Engine::from_json("{\"models\": \"\xff\xfe\"}"), Code::invalid_argument));
    EXPECT(fails(cosrt::Engine::open("models\xff"), Code::invalid_argument));
}

void spans() {
    auto session = open().session().value();
    const Token array[] = {1, 2};
    std::array<Token, 2> standard{3, 4};
    EXPECT(session.prompt(array));
    EXPECT(session.prompt(standard));
    EXPECT(session.prompt(prompt));
    EXPECT(session.prompt({0, 5}));
    EXPECT(session.prompt({prompt.data(), 2}));
    EXPECT(session.prompt(std::vector<Token>{1, 2}));
    EXPECT(fails(session.prompt({}), Code::invalid_argument));
    EXPECT(fails(session.prompt(std::vector<Token>{}), Code::invalid_argument));
    static_assert(!std::is_constructible_v<cosrt::Span<Token>, const std::vector<Token>&>);
    static_assert(!std::is_constructible_v<cosrt::Span<const Token>, std::vector<float>&>);
#if __cplusplus >= 202002L
    static_assert(std::ranges::contiguous_range<cosrt::Span<const Token>>);
    static_assert(std::ranges::input_range<cosrt::Steps>);
    EXPECT(session.prompt(std::span(prompt)));
    const auto step = session.step().value();
    const std::span<const Token> tokens = step.tokens;
    EXPECT(tokens.size() == step.tokens.size());
    const cosrt::SessionOptions named{.temperature = 0.7F, .max_tokens = 4};
    EXPECT(named.max_tokens == 4 && named.strategy == cosrt::Strategy::automatic);
#endif
}

/// A fork and a rewound session go on as the session would: greedy ones with the same tokens.
void forks() {
    const auto engine = open();
    cosrt::SessionOptions options;
    options.stop_tokens.emplace();
    auto session = engine.session(options).value();
    EXPECT(session.set_scope("tenant"));
    EXPECT(fails(session.set_scope(std::string("a\0b", 3)), Code::invalid_argument));
    EXPECT(session.prompt(prompt));
    EXPECT(fails(session.set_scope("late"), Code::invalid_argument));
    const auto text = [](cosrt::Session& of, std::size_t count) {
        std::vector<Token> tokens;
        while (tokens.size() < count)
            for (const Token token : of.step().value().tokens) tokens.push_back(token);
        return tokens.resize(count), tokens;
    };
    auto fork = session.fork(7).value();
    const auto whole = text(session, 8);
    EXPECT(text(fork, 8) == whole);
    EXPECT(session.rewind(prompt.size() + 2));
    EXPECT(text(session, 6) == std::vector<Token>(whole.begin() + 2, whole.end()));
    EXPECT(fails(session.rewind(1000), Code::invalid_argument));
    options.combine = [](const cosrt::Rows&, cosrt::Span<float>) { return 1; };
    EXPECT(fails(engine.session(options).value().fork(1), Code::unsupported));
    EXPECT(engine.stats().value().recomputed_tokens == 0 && session.stats().value().prefix_tokens == 0);
}

/// One thread drives sessions that begin and end at different times; a bad one hurts no other.
void many() {
    const auto engine = open();
    const auto options = [](std::uint32_t tokens) {
        cosrt::SessionOptions options;
        options.max_tokens = tokens;
        options.stop_tokens.emplace();
        return options;
    };
    auto failing = options(8);
    failing.combine = [](const cosrt::Rows&, cosrt::Span<float>) -> std::int32_t { throw std::runtime_error("mine"); };
    std::vector<cosrt::Session> sessions;
    for (const std::uint32_t tokens : {3U, 8U, 12U}) sessions.push_back(engine.session(options(tokens)).value());
    sessions.push_back(engine.session(failing).value());
    for (auto& session : sessions) EXPECT(session.prompt(prompt));
    auto moved = engine.session().value();
    const auto other = std::move(moved);
    const std::vector<cosrt::Session*> all{&sessions[0], &sessions[1], nullptr, &sessions[2],
                                           &sessions[3], &sessions[0], &moved};  // NOLINT: moved on purpose
    std::array<std::size_t, 7> counts{};
    std::size_t finished = 0;
    for (int calls = 0; finished < 3; calls++) {
        EXPECT(calls < 200);
        finished = 0;
        const auto steps = cosrt::step_many(all);
        EXPECT(steps.size() == all.size());
        for (const std::size_t wrong : {2U, 5U, 6U}) EXPECT(fails(steps[wrong], Code::invalid_argument));
        EXPECT(steps[4] || (fails(steps[4], Code::callback) && steps[4].error().cause));
        for (const std::size_t good : {0U, 1U, 3U}) {
            counts[good] += steps[good]->tokens.size();
            finished += steps[good]->finished();
        }
    }
    EXPECT(counts[0] == 3 && counts[1] == 8 && counts[3] == 12);
    EXPECT(cosrt::step_many({}).empty());
}

void texts() {
    const auto engine = cosrt::Engine::open("models/demo/engine.json").value();
    const auto tokens = engine.encode("to be or not to be, 是的 🐈").value();
    EXPECT(!tokens.empty());
    const std::string text = engine.decode(tokens).value();
    EXPECT(text == "to be or not to be, 是的 🐈");
    EXPECT(engine.encode("").has_value());
    EXPECT(engine.encode(std::string_view()).has_value());
    EXPECT(engine.decode({}).value().empty());
    EXPECT(engine.encode_to("to be", {}).value() <= tokens.size());
    std::array<Token, 1> small{};
    EXPECT(fails(engine.encode_to("to be or not to be, 是的 🐈", small), Code::buffer_too_small));
    EXPECT(fails(engine.encode("\xff\xfe"), Code::invalid_argument));
    EXPECT(fails(engine.encode("cut off: \xe2\x82"), Code::invalid_argument));
    EXPECT(fails(engine.decode({-1}), Code::invalid_argument));
    EXPECT(fails(engine.decode({4096}), Code::invalid_argument));

    const std::string_view messages = R"([{"role": "user", "content": "2+2? <|endoftext|>"}])";
    const std::string whole = "Question: 2+2? <|endoftext|>\nAnswer:";
    const auto ends = [](const std::vector<Token>& some) { return std::count(some.begin(), some.end(), 0); };
    EXPECT(engine.chat(messages).value() == whole);
    EXPECT(engine.chat(messages, false).value() == "Question: 2+2? <|endoftext|>\n");
    EXPECT(ends(engine.encode(whole).value()) == 1);
    EXPECT(ends(engine.encode_plain(whole).value()) == 0);
    EXPECT(ends(engine.chat_encode(messages).value()) == 0);
    EXPECT(engine.decode(engine.chat_encode(messages).value()).value() == whole);
    EXPECT(engine.decode_special(engine.encode(whole).value()).value() == whole);
    const std::string long_message = std::string(9000, 'x');
    const std::string long_json = "[{\"role\": \"user\", \"content\": \"" + long_message + "\"}]";
    EXPECT(engine.chat(long_json).value() == "Question: " + long_message + "\nAnswer:");
    EXPECT(fails(engine.chat("[]"), Code::invalid_argument));
    EXPECT(fails(engine.chat_encode(std::string_view()), Code::invalid_argument));
    auto shown = engine.text_stream().value();
    EXPECT(shown.show_special(true) && shown.prompt({}));
    EXPECT(shown.push(engine.encode(whole).value()).value() == whole);
    EXPECT(fails(shown.show_special(false), Code::invalid_argument));

    auto stream = engine.text_stream().value();
    std::string pieces;
    for (const Token& token : tokens) pieces += stream.push({&token, 1}).value();
    pieces += stream.push({}).value();
    pieces += stream.finish().value();
    EXPECT(pieces == text);
    EXPECT(fails(stream.push({4096}), Code::invalid_argument));
}

/// The text of a stream for tokens that are pushed one by one, and whether a stop string ended it.
std::pair<std::string, bool> streamed(cosrt::TextStream& stream, const std::vector<Token>& tokens) {
    std::string text;
    for (const Token& token : tokens) text += stream.push({&token, 1}).value();
    text += stream.finish().value();
    return {text, stream.stopped()};
}

void stop_strings() {
    const auto engine = cosrt::Engine::open("models/demo/engine.json").value();
    const std::string text = "one two three, 漢字 🐈 four";
    const auto tokens = engine.encode(text).value();
    const std::pair<std::string, bool> whole{text, false}, two{"one ", true}, cat{"one two three, 漢字 ", true};
    auto stream = engine.text_stream().value();
    EXPECT(streamed(stream, tokens) == whole);

    // In containers of any type, and across tokens. finish() starts a new text with the same stop strings.
    EXPECT(stream.set_stops({"three", "two"}));
    EXPECT(streamed(stream, tokens) == two);
    EXPECT(streamed(stream, tokens) == two);
    const std::vector<std::string> strings{"🐈 fo", "never"};
    EXPECT(stream.set_stops(strings));
    EXPECT(streamed(stream, tokens) == cat);
    EXPECT(stream.set_stops(std::array<std::string_view, 1>{std::string_view("two-and-more").substr(0, 3)}));
    EXPECT(streamed(stream, tokens) == two);
    EXPECT(stream.set_stops(std::vector<std::string>{"three", "ne t"}));
    EXPECT(streamed(stream, tokens) == std::pair(std::string("o"), true));
    EXPECT(stream.set_stops(cosrt::Span<const std::string>(strings)));
    EXPECT(streamed(stream, tokens) == cat);

    // Refused: the previous stop strings stay.
    EXPECT(fails(stream.set_stops({"two", ""}), Code::invalid_argument));
    EXPECT(fails(stream.set_stops({std::string_view()}), Code::invalid_argument));
    EXPECT(fails(stream.set_stops({"\xff"}), Code::invalid_argument));
    EXPECT(streamed(stream, tokens) == cat);
    EXPECT(stream.set_stops({}));
    EXPECT(streamed(stream, tokens) == whole);
    EXPECT(stream.set_stops(std::vector<std::string>()));
    EXPECT(streamed(stream, tokens) == whole);
    EXPECT(stream.set_stops({std::string_view("two\0", 4)}));  // as a C string, it would end at the NUL and be found
    EXPECT(streamed(stream, tokens) == whole);

    // Text that may become a stop string is held back.
    EXPECT(stream.set_stops({"four!"}));
    std::string given(stream.push(tokens).value());
    EXPECT(given == text.substr(0, text.find("four")));
    given += stream.finish().value();
    EXPECT(given == text);

    // Behind a stop string there is no text, until a new text starts.
    EXPECT(stream.set_stops({"two"}));
    EXPECT(stream.push(tokens).value() == "one " && stream.stopped());
    EXPECT(stream.push(tokens).value().empty() && stream.stopped());
    EXPECT(stream.finish().value().empty() && stream.stopped());
    EXPECT(stream.push({}).value().empty() && stream.stopped());  // it begins no text
    EXPECT(stream.push({tokens.data(), 1}).has_value() && !stream.stopped());
    EXPECT(stream.finish().has_value());
    EXPECT(stream.push(tokens).value() == "one ");
}

void prompts_of_texts() {
    const char* config = R"({"models": [{"path": "tests/fixtures/tiny"}], "combine": {"kind": "target", "model": 0}})";
    const auto engine = cosrt::Engine::from_json(config).value();
    auto stream = engine.text_stream().value();
    EXPECT(stream.push({1, 2}).value() == " a b");  // behind an unknown prompt
    EXPECT(fails(stream.prompt({3}), Code::invalid_argument));
    EXPECT(stream.finish());
    EXPECT(stream.prompt({}));
    EXPECT(stream.push({1, 2}).value() == "a b");
    EXPECT(stream.finish());
    EXPECT(stream.prompt(engine.encode("c").value()));
    EXPECT(stream.push({1, 2}).value() == " a b");
}

void sessions() {
    const auto engine = open();
    cosrt::SessionOptions options;
    options.max_tokens = 8;
    options.log_probabilities = true;
    options.stop_tokens.emplace();
    auto session = engine.session(options).value();
    EXPECT(fails(session.step(), Code::invalid_argument));
    session.prompt(prompt).value();
    std::size_t tokens = 0;
    cosrt::Finish finish = cosrt::Finish::none;
    for (const auto& step : session.steps()) {
        EXPECT(step && step->log_probabilities.size() == step->tokens.size());
        for (const float value : step->log_probabilities) EXPECT(value <= 0);
        tokens += step->tokens.size();
        finish = step->finish;
    }
    EXPECT(tokens == 8 && finish == cosrt::Finish::max_tokens);
    const auto stats = session.stats().value();
    EXPECT(stats.tokens == 8 && stats.steps > 0 && stats.forwards > 0 && stats.positions >= stats.tokens);
    EXPECT(stats.total_time >= stats.model_time && stats.model_time.count() > 0);
    EXPECT(stats.proposed >= stats.tested && stats.tested >= stats.accepted && stats.near_ties <= stats.tokens);
    EXPECT(engine.stats().value().tokens == 8 && engine.stats().value().model_time == stats.model_time);
    {
        auto other = engine.session(options).value();
        other.prompt(prompt).value();
        for (const auto& step : other.steps()) step.value();
    }
    EXPECT(engine.stats().value().tokens == 16);  // destroyed sessions count too

    EXPECT(session.set_weights({1, 0}));
    EXPECT(fails(session.set_weights({1}), Code::invalid_argument));
    EXPECT(fails(session.set_weights({}), Code::invalid_argument));
    session.prompt(prompt).value();
    EXPECT(session.cancel());
    EXPECT(session.step().value().finish == cosrt::Finish::cancelled);
    EXPECT(!session.step().value().tokens.empty());

    options.weights.emplace();  // empty is not the same as not given
    EXPECT(fails(engine.session(options), Code::invalid_argument));

    auto bare = engine.session().value();
    EXPECT(fails(bare.prompt(std::vector<Token>(50'000'000, 1)), Code::context_full));
    EXPECT(fails(bare.prompt(std::vector<Token>(100, -1)), Code::invalid_argument));
    try {
        bare.step().value();
        EXPECT(false);
    } catch (const cosrt::Exception& error) {
        EXPECT(error.code() == Code::invalid_argument && error.what()[0]);
    }
}

void plans() {
    const auto engine = cosrt::Engine::open("models/demo/engine.json").value();
    cosrt::SessionOptions options;
    options.max_tokens = 64;
    options.stop_tokens.emplace();
    for (const auto strategy : {cosrt::Strategy::automatic, cosrt::Strategy::standard}) {
        const bool planned = strategy == cosrt::Strategy::automatic;
        options.strategy = strategy;
        auto session = engine.session(options).value();
        session.prompt(prompt).value();
        for (const auto& step : session.steps()) step.value();
        const std::string json(session.describe().value());
        const auto stats = session.stats().value();
        EXPECT(json.find(planned ? "\"strategy\":" : "\"strategy\":\"standard\"") != std::string::npos);
        EXPECT(json.find(planned ? "\"planned\":true" : "\"planned\":false") != std::string::npos);
        EXPECT(stats.planned_time.count() >= 0 && stats.planned_time <= stats.total_time);
        const std::string key = "\"measured_gain\":";
        const std::string gain = json.substr(json.find(key) + key.size());
        if (stats.planned_time.count() == 0) {  // the plan is not evaluated at once
            EXPECT(stats.expected_time.count() == 0 && stats.standard_time.count() == 0 && gain.rfind("null", 0) == 0);
        } else {
            const std::chrono::duration<double> standard = stats.standard_time;
            EXPECT(planned && std::abs(std::stod(gain) - standard / stats.planned_time) < 1e-6);
        }
    }
}

void routes() {
    using cosrt::Routes;
    const auto engine = open();
    cosrt::SessionOptions options;
    options.strategy = cosrt::Strategy::standard;
    options.temperature = 1;
    options.targets = cosrt::Targets::routed;
    for (const auto asked : {Routes::automatic, Routes::own, Routes::shared}) {
        options.routes = asked;
        auto session = engine.session(options).value();
        session.prompt(prompt).value();
        session.step().value();
        const char* says = asked == Routes::shared ? "\"routes\":\"shared\"" : "\"routes\":\"own\"";
        EXPECT(session.describe().value().find(says) != std::string_view::npos);
    }
    options.routes = static_cast<Routes>(3);
    EXPECT(fails(engine.session(options), Code::invalid_argument));
    EXPECT(engine.session(options).error().message.find("routes is 3") != std::string::npos);
}

void priorities() {
    const auto engine = open();
    cosrt::SessionOptions options;
    options.max_tokens = 8;
    options.stop_tokens.emplace();
    options.priority = cosrt::Priority::batch;
    auto session = engine.session(options).value();
    session.prompt(prompt).value();
    for (const auto& step : session.steps()) step.value();
    EXPECT(session.stats().value().tokens == 8);
    options.priority = static_cast<cosrt::Priority>(2);
    EXPECT(fails(engine.session(options), Code::invalid_argument));
    EXPECT(engine.session(options).error().message.find("priority is 2") != std::string::npos);
}

/// The value of a sample of an engine's metrics. The name includes the labels.
double sample(const std::string& text, const std::string& name) {
    const auto found = ("\n" + text).find("\n" + name + " ");
    EXPECT(found != std::string::npos);
    return std::stod(text.substr(found + name.size() + 1));
}

void metrics() {
    // Threads decode, and others read meanwhile. Counters never shrink, and at the end they have all tokens.
    const auto engine = open();
    std::atomic<int> decoding{2};
    std::vector<std::thread> threads;
    for (int i = 0; i < 2; i++) {
        threads.emplace_back([&, i] {
            cosrt::SessionOptions options;
            options.strategy = cosrt::Strategy::cos;
            options.temperature = 1;
            options.seed = static_cast<std::uint64_t>(i);
            options.max_tokens = 100;
            options.stop_tokens.emplace();
            auto session = engine.session(options).value();
            session.prompt(prompt).value();
            for (const auto& step : session.steps()) step.value();
            decoding--;
        });
    }
    for (int i = 0; i < 2; i++) {
        threads.emplace_back([&] {
            double tokens = 0, wasted = 0;
            while (decoding > 0) {
                const std::string text = engine.metrics().value();
                EXPECT(sample(text, "cos_tokens_total") >= tokens && sample(text, "cos_wasted_total") >= wasted);
                tokens = sample(text, "cos_tokens_total"), wasted = sample(text, "cos_wasted_total");
            }
        });
    }
    for (auto& thread : threads) thread.join();
    const std::string text = engine.metrics().value();
    EXPECT(sample(text, "cos_tokens_total") == 200);
    EXPECT(sample(text, "cos_first_token_seconds_count") == 2);
    EXPECT(sample(text, "cos_wasted_total") ==
           sample(text, "cos_proposed_total") - sample(text, "cos_accepted_total"));
    EXPECT(text.back() == '\n' && text.find('\0') == std::string::npos);

    // A text that is longer than the first buffer is whole.
    const std::string name(2000, 'x');
    std::string named = config;
    const auto other = cosrt::Engine::from_json(named.replace(named.find("\"two\""), 5, '"' + name + '"')).value();
    const std::string longer = other.metrics().value();
    EXPECT(longer.size() > std::size_t{1} << 15);
    EXPECT(sample(longer, "cos_pass_tokens_count{model=\"" + name + "\"}") == 0);
}

void preparation() {
    const auto engine = open();
    cosrt::PrepareOptions options;
    options.sessions = 2, options.tokens = 64, options.time = std::chrono::seconds(60);
    std::vector<double> shares;
    options.progress = [&](double share) { return shares.push_back(share), true; };
    EXPECT(engine.prepare(options).value() == 1);
    EXPECT(shares.size() > 20 && shares.front() == 0 && shares.back() == 1);
    EXPECT(std::is_sorted(shares.begin(), shares.end()));
    EXPECT(engine.stats().value().tokens == 0);

    shares.clear();
    options.progress = [&](double share) { return shares.push_back(share), shares.size() < 10; };
    EXPECT(engine.prepare(options).value() == shares.back() && shares.size() == 10 && shares.back() < 1);

    struct Mine {};
    options.progress = [](double) -> bool { throw Mine(); };
    const auto result = engine.prepare(options);
    EXPECT(fails(result, Code::callback) && result.error().cause);
    try {
        engine.prepare(options).value();
        EXPECT(false);
    } catch (const Mine&) {
    }

    options = {};
    options.time = std::chrono::microseconds(1);
    EXPECT(engine.prepare(options).value() < 1);
    options.time = std::chrono::seconds(-1);
    EXPECT(fails(engine.prepare(options), Code::invalid_argument));
    EXPECT(engine.prepare(options).error().message.find("seconds is -1") != std::string::npos);
    options = {};
    options.sessions = 1025;
    EXPECT(fails(engine.prepare(options), Code::invalid_argument));
}

void lifetimes() {
    // The engine is destroyed first, and its sessions and streams go on.
    std::optional<cosrt::Engine> engine = open();
    auto session = engine->session().value();
    auto stream = engine->text_stream().value();
    engine.reset();
    session.prompt(prompt).value();
    EXPECT(stream.push(session.step().value().tokens));

    // Objects that were moved from.
    cosrt::Session other = std::move(session);
    EXPECT(other.step());
    EXPECT(fails(session.step(), Code::invalid_argument));  // NOLINT(bugprone-use-after-move)
    EXPECT(fails(session.prompt(prompt), Code::invalid_argument));
    EXPECT(fails(session.cancel(), Code::invalid_argument));
    EXPECT(fails(session.stats(), Code::invalid_argument));
    EXPECT(fails(session.describe(), Code::invalid_argument));
    EXPECT(fails(session.set_weights({1, 0}), Code::invalid_argument));
    for (const auto& step : session.steps()) EXPECT(fails(step, Code::invalid_argument));
    EXPECT(session.raw() == nullptr && other.raw() != nullptr);
    const cosrt::TextStream moved_stream = std::move(stream);
    EXPECT(fails(stream.push({1}), Code::invalid_argument));
    EXPECT(fails(stream.finish(), Code::invalid_argument));
    EXPECT(fails(stream.set_stops({"two"}), Code::invalid_argument));
    EXPECT(fails(stream.prompt({1}), Code::invalid_argument));
    EXPECT(!stream.stopped());
    cosrt::Engine first = open();
    const cosrt::Engine second = std::move(first);
    EXPECT(fails(first.session(), Code::invalid_argument));
    EXPECT(fails(first.text_stream(), Code::invalid_argument));
    EXPECT(fails(first.encode("to"), Code::invalid_argument));
    EXPECT(fails(first.decode({1}), Code::invalid_argument));
    EXPECT(fails(first.describe(), Code::invalid_argument));
    EXPECT(fails(first.stats(), Code::invalid_argument));
    EXPECT(fails(first.metrics(), Code::invalid_argument));
    EXPECT(fails(first.prepare(), Code::invalid_argument));
    EXPECT(first.vocab_size() == 0 && first.model_count() == 0);

    session = second.session().value();  // after an assignment, it is a session again
    EXPECT(session.prompt(prompt));
    session = std::move(other);
    EXPECT(session.step());
    static_assert(!std::is_copy_constructible_v<cosrt::Session> && !std::is_copy_constructible_v<cosrt::Engine>);
    static_assert(std::is_nothrow_move_constructible_v<cosrt::Session>);
    static_assert(std::is_nothrow_move_assignable_v<cosrt::Session>);
}

void combinations() {
    const auto engine = open();
    struct Mine : std::runtime_error {
        using runtime_error::runtime_error;
    };
    enum { sums, throws, refuses, makes_nan } mode = sums;
    auto kept = std::make_shared<int>(0);
    const std::weak_ptr<int> watched = kept;

    std::vector<cosrt::Session> all;
    {
        cosrt::SessionOptions options;
        options.combine = [&mode, kept](const cosrt::Rows& rows, cosrt::Span<float> scores) {
            ++*kept;
            if (mode == throws) throw Mine("mine");
            if (mode == refuses) return 7;
            for (std::size_t i = 0; i < scores.size(); i++) {
                scores[i] = mode == makes_nan ? std::numeric_limits<float>::quiet_NaN() : rows[0][i] + rows[1][i];
            }
            return rows.size() == 2 ? 0 : 1;
        };
        all.push_back(engine.session(options).value());
        all.push_back(engine.session(options).value());  // moves the first session
        kept.reset();
    }
    auto& session = all.front();
    session.prompt(prompt).value();
    EXPECT(session.step());
    EXPECT(*watched.lock() > 0);
    const auto before = session.stats().value().tokens;

    mode = throws;
    auto result = session.step();
    while (result) result = session.step();  // pending proposals may be decided first
    EXPECT(fails(result, Code::callback));
    EXPECT(result.error().cause != nullptr);
    try {
        session.step().value();
        EXPECT(false);
    } catch (const Mine& error) {
        EXPECT(std::string(error.what()) == "mine");
    }
    mode = refuses;
    result = session.step();
    EXPECT(fails(result, Code::callback));
    EXPECT(result.error().cause == nullptr && result.error().message.find('7') != std::string::npos);
    mode = makes_nan;
    EXPECT(fails(session.step(), Code::numeric));
    mode = sums;
    EXPECT(session.step());
    EXPECT(session.stats().value().tokens > before);
    EXPECT(fails(session.set_weights({0.5F, 0.5F}), Code::invalid_argument));
    all.clear();
    EXPECT(watched.expired());
}

void threads() {
    // Inside the combine function, a step is certainly running.
    const auto engine = open();
    std::optional<cosrt::Session> session;
    bool busy = false, same_thread_busy = false;
    cosrt::SessionOptions options;
    options.combine = [&](const cosrt::Rows& rows, cosrt::Span<float> scores) {
        std::thread([&] {
            busy = fails(session->step(), Code::busy) && fails(session->prompt({1}), Code::busy);
        }).join();
        same_thread_busy = fails(session->step(), Code::busy) && fails(session->describe(), Code::busy);
        std::thread([&] { EXPECT(session->stats() && session->cancel()); }).join();
        std::copy(rows[0].begin(), rows[0].end(), scores.begin());
        return 0;
    };
    session = engine.session(options).value();
    session->prompt(prompt).value();
    EXPECT(session->step());
    EXPECT(busy && same_thread_busy);

    // One engine, many threads, and a cancellation from another thread.
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&] {
            auto own = engine.session().value();
            own.prompt(prompt).value();
            for (const auto& step : own.steps()) step.value();
        });
    }
    for (auto& thread : threads) thread.join();
}

}  // namespace

int main() {
    engines();
    spans();
    many();
    forks();
    texts();
    stop_strings();
    prompts_of_texts();
    sessions();
    plans();
    routes();
    priorities();
    metrics();
    preparation();
    lifetimes();
    combinations();
    controls();
    requests();
    threads();
    std::printf("safety: %d checks passed\n", checks.load());
}
