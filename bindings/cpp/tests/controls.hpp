// Uses and misuses what controls tokens: bias, penalties, bans and constraints; alternatives; options that change; and
// saved sessions. A part of safety.cpp.

#ifndef CONTROLS_HPP
#define CONTROLS_HPP

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "cos.hpp"

namespace controlling {

using cosrt::Constraint;
using cosrt::Finish;

inline cosrt::SessionOptions limited(std::uint32_t tokens) {
    cosrt::SessionOptions options;
    options.max_tokens = tokens;
    options.stop_tokens.emplace();
    return options;
}

/// The rest of the tokens of a session, and how it ends.
inline std::pair<std::vector<Token>, Finish> rest(cosrt::Session& session) {
    std::pair<std::vector<Token>, Finish> text;
    for (const auto& step : session.steps()) {
        text.first.insert(text.first.end(), step.value().tokens.begin(), step.value().tokens.end());
        text.second = step->finish;
    }
    return text;
}

inline cosrt::Session prompted(const cosrt::Engine& engine, const cosrt::SessionOptions& options) {
    auto session = engine.session(options).value();
    session.prompt(prompt).value();
    return session;
}

inline std::vector<Token> decoded(const cosrt::Engine& engine, const cosrt::SessionOptions& options) {
    auto session = prompted(engine, options);
    return rest(session).first;
}

/// Allows token 10 + i at place i of the text, and then nothing.
inline cosrt::Constrain counting(std::size_t length) {
    return [length](const cosrt::Text& text, cosrt::Span<std::uint32_t> mask) {
        std::fill(mask.begin(), mask.end(), 0U);
        const std::size_t place = text.tokens.size();
        if (place < length) mask[(10 + place) / 32] |= 1U << (10 + place) % 32;
        return 0;
    };
}

inline void constraints() {
    const auto engine = cosrt::Engine::open("models/demo/engine.json").value();
    const auto written = [&](cosrt::SessionOptions options, Constraint constraint) {
        options.constraint = std::move(constraint);
        auto session = engine.session(options).value();
        session.prompt(engine.encode("Question: what is it? Answer: ").value()).value();
        const auto [tokens, finish] = rest(session);
        EXPECT(finish == Finish::complete || finish == Finish::stop);
        return engine.decode(tokens).value();
    };
    // Without white space, of which the models like to write a lot.
    const std::string schema = R"({"x-guidance": {"whitespace_flexible": false}, "type": "object",
        "properties": {"ok": {"type": "boolean"}, "n": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["ok", "n"], "additionalProperties": false})";
    const std::vector<std::string> choices{"ja", "\"nein\" \\ \n\x1f", "vielleicht 漢"};
    for (std::uint64_t seed = 0; seed < 3; seed++) {
        cosrt::SessionOptions options;
        options.temperature = 1, options.seed = seed, options.max_tokens = 200;
        const std::string json = written(options, Constraint::json_schema(schema));
        const std::string begin = json.substr(0, json.find(",\"n\":"));
        EXPECT((begin == "{\"ok\":true" || begin == "{\"ok\":false") && json.size() == begin.size() + 7);
        const char digit = json[begin.size() + 5];
        EXPECT(digit >= '1' && digit <= '9' && json.back() == '}');
        const std::string choice = written(options, Constraint::choices(choices));
        EXPECT(std::find(choices.begin(), choices.end(), choice) != choices.end());
        EXPECT(written(options, Constraint::choices({"only"})) == "only");
        const std::string matching = written(options, Constraint::regex("[ab]{3}-[0-9]"));
        EXPECT(matching.size() == 5 && matching.find_first_not_of("ab") == 3 && matching[3] == '-');
        const std::string derived = written(options, Constraint::lark("start: \"x\" /[yz]/ \"!\""));
        EXPECT(derived == "xy!" || derived == "xz!");
    }
    const auto refuses = [&](Constraint constraint, const char* says) {
        cosrt::SessionOptions options;
        options.constraint = std::move(constraint);
        const auto session = engine.session(options);
        return fails(session, Code::invalid_argument) && session.error().message.find(says) != std::string::npos;
    };
    EXPECT(refuses(Constraint::json_schema("{"), "not a JSON schema"));
    EXPECT(refuses(Constraint::regex("a("), "not a regular expression"));
    EXPECT(refuses(Constraint::lark(""), "not a Lark grammar"));
    EXPECT(refuses(Constraint::choices({}), "a string or more"));
    EXPECT(refuses(Constraint::choices({"a", ""}), "choice 1 is empty"));
    EXPECT(refuses(Constraint::choices({"\xff"}), "constraint is not"));
}

/// Every call gets the text, and what was kept of the last call's.
inline void functions() {
    const auto engine = open();
    for (const auto strategy : {cosrt::Strategy::automatic, cosrt::Strategy::standard, cosrt::Strategy::cos}) {
        auto kept = std::make_shared<int>(0);
        const std::weak_ptr<int> watched = kept;
        std::vector<Token> last;
        std::set<std::uint64_t> numbers;
        auto options = limited(16);
        options.strategy = strategy;
        options.constrain = [&, kept](const cosrt::Text& text, cosrt::Span<std::uint32_t> mask) {
            EXPECT(text.kept <= std::min(text.tokens.size(), last.size()) && mask.size() == 3);
            EXPECT(std::equal(text.tokens.begin(), text.tokens.begin() + text.kept, last.begin()));
            EXPECT(std::all_of(mask.begin(), mask.end(), [](std::uint32_t word) { return word == 0xffffffff; }));
            last.assign(text.tokens.begin(), text.tokens.end());
            numbers.insert(text.number);
            return counting(5)(text, mask);
        };
        auto session = prompted(engine, options);
        options.constrain = nullptr;
        kept.reset();
        EXPECT(!watched.expired());
        EXPECT(rest(session) == std::pair(std::vector<Token>{10, 11, 12, 13, 14}, Finish::complete));
        EXPECT(numbers.size() == 1);
        options.seed = 1;  // refused, so the function stays
        EXPECT(fails(session.set_options(options), Code::invalid_argument) && !watched.expired());
        options.seed = 0;
        EXPECT(session.set_options(options) && watched.expired());
        EXPECT(rest(session).second == Finish::max_tokens);
    }
}

inline void functions_that_fail() {
    const auto engine = open();
    struct Mine {};
    enum { throws, refuses, works } mode = throws;
    auto options = limited(16);
    options.constrain = [&](const cosrt::Text& text, cosrt::Span<std::uint32_t> mask) {
        if (mode == throws) throw Mine();
        return mode == refuses ? 7 : counting(2)(text, mask);
    };
    auto session = prompted(engine, options);
    EXPECT(fails(session.step(), Code::callback));
    cosrt::Session* const sessions[] = {&session};
    EXPECT(fails(cosrt::step_many(sessions)[0], Code::callback));
    try {
        session.step().value();
        EXPECT(false);
    } catch (const Mine&) {
    }
    mode = refuses;
    const auto step = session.step();
    EXPECT(fails(step, Code::callback) && !step.error().cause && step.error().message.find('7') != std::string::npos);
    mode = works;
    EXPECT(rest(session).first == (std::vector<Token>{10, 11}));
    EXPECT(fails(session.save(), Code::unsupported));

    // What is thrown for a fork does not reach its parent, also if both decode in the same call.
    std::vector<std::uint64_t> numbers;
    options.strategy = cosrt::Strategy::standard;
    options.constrain = [&](const cosrt::Text& text, cosrt::Span<std::uint32_t> mask) {
        if (std::find(numbers.begin(), numbers.end(), text.number) == numbers.end()) numbers.push_back(text.number);
        if (text.number != numbers[0]) throw std::runtime_error("of the fork");
        return counting(3)(text, mask);
    };
    auto parent = prompted(engine, options);
    auto fork = parent.fork(5).value();
    std::vector<Token> tokens;
    for (int call = 0; call < 20; call++) {
        const auto steps = cosrt::step_many({&parent, &fork});
        for (const Token token : steps[0].value().tokens) tokens.push_back(token);
        EXPECT(fails(steps[1], Code::callback) && steps[1].error().cause);
    }
    EXPECT(tokens == (std::vector<Token>{10, 11, 12}) && numbers.size() == 2);
}

inline void scores() {
    const auto engine = open();
    const auto plain = limited(16);
    const auto free = decoded(engine, plain);
    auto options = plain;
    options.logit_bias = {{7, 1000.0F}};
    const auto forcing = options;
    EXPECT(decoded(engine, options) == std::vector<Token>(16, 7));
    options.logit_bias[free[0]] = -std::numeric_limits<float>::infinity();
    options.banned_tokens = {{7, 7}};
    const auto banned = decoded(engine, options);
    EXPECT(std::find(banned.begin(), banned.end(), free[0]) == banned.end() && banned[0] == 7 && banned[1] != 7);
    const auto are_unique = [&](auto change) {
        auto changed = plain;
        change(changed);
        const auto tokens = decoded(engine, changed);
        return std::set<Token>(tokens.begin(), tokens.end()).size() == tokens.size() && tokens.size() == 16;
    };
    EXPECT(are_unique([](auto& changed) { changed.presence_penalty = 1000; }));
    EXPECT(are_unique([](auto& changed) { changed.frequency_penalty = 1000; }));
    EXPECT(are_unique([](auto& changed) { changed.no_repeat_ngram = 1; }));
    options = plain;
    options.repetition_penalty = 1;
    EXPECT(decoded(engine, options) == free);
    options = forcing;
    options.repetition_penalty = 1e6F;
    const auto punished = decoded(engine, options);
    EXPECT(punished[0] == 7 && std::count(punished.begin(), punished.end(), 7) == 1);
    options = forcing;
    options.stop_tokens = {7}, options.min_tokens = 5;
    EXPECT(decoded(engine, options).size() == 6);
}

inline void alternatives() {
    const auto engine = open();
    auto options = limited(8);
    options.log_probabilities = true, options.model_log_probabilities = true, options.top_log_probabilities = 3;
    options.logit_bias = {{7, 12.0F}};
    for (const bool before : {false, true}) {
        options.log_probabilities_before = before;
        auto session = prompted(engine, options);
        for (const auto& step : session.steps()) {
            const std::size_t count = step.value().tokens.size();
            EXPECT(step->top_tokens.size() == count && step->top_log_probabilities.size() == count);
            EXPECT(step->model_log_probabilities.size() == count);
            for (std::size_t i = 0; i < count; i++) {
                const auto logarithms = step->top_log_probabilities[i];
                EXPECT(step->top_tokens[i].size() == 3 && logarithms.size() == 3 && logarithms[0] >= logarithms[1]);
                EXPECT(step->model_log_probabilities[i].size() == 2);
                // Before the bias, token 7 is not the best one.
                EXPECT((step->top_tokens[i][0] == step->tokens[i]) == !before);
                EXPECT((logarithms[0] == step->log_probabilities[i]) == !before);
            }
        }
    }
    options.log_probabilities_before = false;
    options.constrain = counting(4);
    auto session = prompted(engine, options);
    const auto step = session.step().value();
    EXPECT(step.top_tokens[0][0] == 10 && step.top_tokens[0][1] == -1 && step.top_log_probabilities[0][0] == 0);
    EXPECT(step.top_log_probabilities[0][2] == -std::numeric_limits<float>::infinity());
    auto plain = prompted(engine, limited(1));
    const auto bare = plain.step().value();
    EXPECT(bare.top_tokens.empty() && bare.top_log_probabilities.empty() && bare.model_log_probabilities.empty());
}

inline void origins() {
    using Kind = cosrt::OriginKind;
    const auto engine = open();
    auto options = limited(40);
    options.strategy = cosrt::Strategy::cos, options.temperature = 1, options.seed = 3;
    auto session = prompted(engine, options);
    std::uint64_t accepted = 0, replaced = 0;
    for (const auto& step : session.steps()) {
        EXPECT(step->origins.size() == step->tokens.size());
        for (std::size_t i = 0; i < step->origins.size(); i++) {
            const auto [kind, model] = step->origins[i];
            accepted += kind == Kind::accepted, replaced += kind == Kind::replaced;
            EXPECT(kind == Kind::drawn || model == 0 || model == 1);
        }
    }
    const auto stats = session.stats().value();
    EXPECT(accepted > 0 && accepted == stats.accepted && accepted + replaced == stats.tested);
    options = limited(4);
    options.constrain = counting(4);
    auto constrained = prompted(engine, options);
    EXPECT(constrained.step()->origins[0].kind == Kind::forced);
}

inline void changes() {
    const auto engine = open();
    auto options = limited(2);
    auto session = prompted(engine, options);
    EXPECT(rest(session).first.size() == 2);
    options.max_tokens = 4, options.logit_bias = {{7, 1000.0F}};
    EXPECT(session.set_options(options));
    EXPECT(rest(session).first == (std::vector<Token>{7, 7}));
    options.strategy = cosrt::Strategy::cos;
    const auto refused = session.set_options(options);
    EXPECT(fails(refused, Code::invalid_argument) && refused.error().message.find("strategy") != std::string::npos);
    cosrt::Session other = std::move(session);
    EXPECT(fails(session.set_options(options), Code::invalid_argument));  // NOLINT(bugprone-use-after-move)
    EXPECT(fails(session.save(), Code::invalid_argument));
}

inline void saved() {
    auto engine = open();
    auto options = limited(16);
    options.strategy = cosrt::Strategy::standard, options.temperature = 1, options.seed = 3;
    options.log_probabilities = true, options.model_log_probabilities = true, options.frequency_penalty = 0.5F;
    const auto whole = decoded(engine, options);
    auto session = prompted(engine, options);
    for (int step = 0; step < 5; step++) session.step().value();
    auto bytes = session.save().value();
    auto restored = engine.restore(bytes).value();
    EXPECT(restored.step().value().model_log_probabilities[0].size() == 2);
    EXPECT(rest(restored).first == std::vector<Token>(whole.begin() + 6, whole.end()));
    EXPECT(rest(session).first == std::vector<Token>(whole.begin() + 5, whole.end()));
    bytes[bytes.size() / 2] ^= std::byte{1};
    EXPECT(fails(engine.restore(bytes), Code::invalid_argument));
    EXPECT(fails(engine.restore({}), Code::invalid_argument));
    const cosrt::Engine moved = std::move(engine);
    EXPECT(fails(engine.restore(bytes), Code::invalid_argument));  // NOLINT(bugprone-use-after-move)
}

/// Errors name the option.
inline void wrong_options() {
    const auto engine = cosrt::Engine::open("models/demo/engine.json").value();
    const auto refuses = [&](auto change, const char* says) {
        auto options = limited(4);
        change(options);
        const auto session = engine.session(options);
        return fails(session, Code::invalid_argument) && session.error().message.find(says) != std::string::npos;
    };
    EXPECT(refuses([](auto& options) { options.min_tokens = 5; }, "min_tokens is 5, but max_tokens is 4"));
    EXPECT(refuses([](auto& options) { options.constraint = Constraint::regex("a"), options.constrain = counting(1); },
                   "constraint_kind and constrain"));
    EXPECT(refuses([](auto& options) { options.logit_bias = {{4096, 1.0F}}; }, "bias_tokens holds 4096"));
    EXPECT(refuses([](auto& options) { options.banned_tokens = {{1, 2}, {-1}}; }, "banned_tokens holds -1"));
    EXPECT(refuses([](auto& options) { options.banned_tokens = {{1, 2}, {}}; }, "banned_lengths[1] is 0"));
    EXPECT(refuses([](auto& options) { options.log_probabilities = true, options.top_log_probabilities = 21; },
                   "top_log_probabilities is 21"));
    EXPECT(refuses([](auto& options) { options.typical_p = 2; }, "typical_p is 2"));
    EXPECT(refuses([](auto& options) { options.xtc_probability = -1; }, "xtc_probability is -1"));
    EXPECT(refuses([](auto& options) { options.xtc_threshold = 3; }, "xtc_threshold is 3"));
    EXPECT(refuses([](auto& options) { options.dry_multiplier = -1; }, "dry_multiplier is -1"));
    EXPECT(refuses([](auto& options) { options.dry_multiplier = 1; }, "dry_base is 0"));
    EXPECT(refuses([](auto& options) { options.dry_multiplier = 1, options.dry_base = 2; }, "dry_allowed_length is 0"));
    EXPECT(refuses([](auto& options) { options.dry_breakers = {4096}; }, "dry_breakers holds 4096"));
}

/// The log-probabilities of a text are those of the steps that wrote it.
inline void scored() {
    const auto engine = open();
    auto options = limited(8);
    options.log_probabilities = true, options.model_log_probabilities = true, options.top_log_probabilities = 2;
    auto session = prompted(engine, options);
    std::vector<Token> tokens;
    std::vector<float> logarithms;
    for (const auto& step : session.steps()) {
        tokens.insert(tokens.end(), step.value().tokens.begin(), step->tokens.end());
        logarithms.insert(logarithms.end(), step->log_probabilities.begin(), step->log_probabilities.end());
    }
    auto judge = engine.session(options).value();
    const auto first = judge.score(prompt).value();
    EXPECT(first.tokens.size() == std::size(prompt) && std::isnan(first.log_probabilities[0]));
    EXPECT(first.top_tokens[0][0] == -1 && std::isnan(first.model_log_probabilities[0][0]));
    for (std::size_t i = 1; i < first.tokens.size(); i++) EXPECT(std::isfinite(first.log_probabilities[i]));
    const auto answer = judge.score(tokens).value();
    EXPECT(answer.tokens.size() == 8 && answer.top_tokens.size() == 8 && answer.finish == Finish::none);
    for (std::size_t i = 0; i < 8; i++) EXPECT(std::abs(answer.log_probabilities[i] - logarithms[i]) < 1e-4F);
    judge.cancel().value();
    EXPECT(judge.score(tokens).value().finish == Finish::cancelled);
    EXPECT(fails(judge.score({}), Code::invalid_argument));
    const auto refused = prompted(engine, limited(1)).score(tokens);
    EXPECT(fails(refused, Code::invalid_argument) && refused.error().message.find("log_prob") != std::string::npos);
    const cosrt::Session moved = std::move(judge);
    EXPECT(fails(judge.score(tokens), Code::invalid_argument));  // NOLINT(bugprone-use-after-move)
}

inline void weights() {
    const auto engine = open();
    for (const std::size_t only : {0U, 1U}) {
        auto plain = limited(12);
        plain.weights = {only == 0 ? 1.0F : 0.0F, only == 0 ? 0.0F : 1.0F};
        auto kept = std::make_shared<std::size_t>(0);
        const std::weak_ptr<std::size_t> watched = kept;
        {
            auto options = limited(12);
            options.weigh = [only, kept](auto tokens, auto models, auto given) {
                EXPECT(tokens.size() >= std::size(prompt) && tokens[0] == prompt[0] && models.size() == 2);
                EXPECT(models[1].confidence > 0 && models[1].confidence <= 1 && models[1].entropy >= 0);
                EXPECT(models[1].best >= 0 && given.size() == 2 && given[0] + given[1] == 1);
                given[only] = 1, given[1 - only] = 0;
                ++*kept;
                return 0;
            };
            auto session = prompted(engine, options);
            options.weigh = nullptr;
            EXPECT(rest(session).first == decoded(engine, plain) && *kept >= 12);
            EXPECT(session.set_options(options));  // without the function, which stays
            EXPECT(fails(session.fork(1), Code::unsupported) && fails(session.save(), Code::unsupported));
            kept.reset();
            EXPECT(!watched.expired());
        }
        EXPECT(watched.expired());
    }
    enum { throws, refuses, works } mode = throws;
    struct Mine {};
    auto options = limited(4);
    options.weigh = [&](auto, auto, auto) {
        if (mode == throws) throw Mine();
        return mode == refuses ? 7 : 0;
    };
    auto session = prompted(engine, options);
    try {
        session.step().value();
        EXPECT(false);
    } catch (const Mine&) {
    }
    mode = refuses;
    const auto step = session.step();
    EXPECT(fails(step, Code::callback) && !step.error().cause && step.error().message.find('7') != std::string::npos);
    mode = works;
    EXPECT(rest(session).first == decoded(engine, limited(4)));
}

inline void best() {
    const auto engine = open();
    auto options = limited(6);
    options.temperature = 1, options.log_probabilities = true;
    auto session = prompted(engine, options);
    const auto one = cosrt::best_of(session, 1).value();
    EXPECT(one.tokens.size() == 6 && one.finish == Finish::max_tokens && one.log_probability < 0);
    EXPECT(cosrt::best_of(session, 8).value().log_probability > -10);
    EXPECT(fails(cosrt::best_of(session, 0), Code::invalid_argument));
    options.log_probabilities = false;
    session.set_options(options).value();
    EXPECT(fails(cosrt::best_of(session, 2), Code::invalid_argument));
}

}  // namespace controlling

inline void controls() {
    controlling::constraints();
    controlling::functions();
    controlling::functions_that_fail();
    controlling::scores();
    controlling::alternatives();
    controlling::origins();
    controlling::changes();
    controlling::saved();
    controlling::wrong_options();
    controlling::scored();
    controlling::weights();
    controlling::best();
}

#endif
