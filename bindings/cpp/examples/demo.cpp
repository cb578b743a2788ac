// Several language models decode one text together: first a text to read, then a comparison of speeds.
//
//     demo [CONFIG_DIR=models/demo] [PROMPT]
//     demo inspect CONFIG
//
// CONFIG_DIR has the configurations engine.json and contrastive.json. The models continue PROMPT. `inspect` loads a
// configuration and prints what was recognised of each model.

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "cos.h"

namespace {

// ---- handles that free their object, and errors as exceptions

template <auto release>
struct Free {
    template <typename T>
    void operator()(T* handle) const { release(handle); }
};
using Error = std::unique_ptr<cos_error, Free<cos_error_free>>;
using Engine = std::unique_ptr<cos_engine, Free<cos_engine_free>>;
using Session = std::unique_ptr<cos_session, Free<cos_free>>;
using TextStream = std::unique_ptr<cos_text_stream, Free<cos_text_stream_free>>;

void check(cos_error* result) {
    if (Error error{result}) throw std::runtime_error(cos_error_message(error.get()));
}

Engine open_engine(const std::string& path) {
    cos_engine* engine = nullptr;
    check(cos_engine_open(path.c_str(), &engine));
    return Engine{engine};
}

Session new_session(const Engine& engine, const cos_session_options& options) {
    cos_session* session = nullptr;
    check(cos_session_new(engine.get(), &options, &session));
    return Session{session};
}

TextStream new_text_stream(const Engine& engine) {
    cos_text_stream* stream = nullptr;
    check(cos_text_stream_new(engine.get(), &stream));
    return TextStream{stream};
}

std::vector<int32_t> encode(const Engine& engine, const std::string& text) {
    std::vector<int32_t> tokens(text.size() + 8);
    size_t count = 0;
    check(cos_engine_encode(engine.get(), text.data(), text.size(), 1, tokens.data(), tokens.size(), &count));
    tokens.resize(count);
    return tokens;
}

cos_step_result step(const Session& session) {
    cos_step_result result{};
    result.struct_size = sizeof result;
    check(cos_step(session.get(), &result));
    return result;
}

cos_stats stats_of(const Session& session) {
    cos_stats stats{};
    stats.struct_size = sizeof stats;
    check(cos_session_stats(session.get(), &stats));
    return stats;
}

cos_session_options make_options(int32_t strategy, float temperature, uint64_t seed, uint32_t max_tokens) {
    cos_session_options options{};
    options.struct_size = sizeof options;
    options.strategy = strategy;
    options.temperature = temperature;
    options.seed = seed;
    options.max_tokens = max_tokens;
    return options;
}

// ---- a text to read

constexpr const char* demo_folder = "models/demo";
constexpr const char* about_models =
    "The models are toys of 14 (base, math) and 1 million parameters (small), trained for minutes on word problems "
    "and\nPython code. They write fluent nonsense. The demo shows that they decode together, and how fast.\n\n";

const char* why(int32_t finish) {
    switch (finish) {
        case COS_FINISH_STOP: return "a stop token";
        case COS_FINISH_MAX_TOKENS: return "the limit";
        case COS_FINISH_CONTEXT_FULL: return "the end of the context";
        default: return "a cancellation";
    }
}

void stream(const Engine& engine, const std::string& prompt, float temperature) {
    const auto tokens = encode(engine, prompt);
    const Session session = new_session(engine, make_options(COS_STRATEGY_AUTO, temperature, 1, 160));
    const TextStream text = new_text_stream(engine);
    const auto print = [](const char* piece, size_t bytes) {
        std::fwrite(piece, 1, bytes, stdout);
        std::fflush(stdout);
    };

    print(prompt.data(), prompt.size());
    check(cos_prompt(session.get(), tokens.data(), tokens.size()));
    const char* piece = nullptr;
    size_t bytes = 0;
    cos_step_result result{};
    while (!result.finish) {
        result = step(session);
        check(cos_text_stream_push(text.get(), result.tokens, result.tokens_count, &piece, &bytes));
        print(piece, bytes);
    }
    check(cos_text_stream_finish(text.get(), &piece, &bytes));
    print(piece, bytes);
    const auto stats = stats_of(session);
    std::printf("\n[%llu tokens up to %s]\n\n", static_cast<unsigned long long>(stats.tokens), why(result.finish));
}

// ---- speeds

constexpr const char* prompts[] = {  // from the test split of GSM8K
    "Question: Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for "
    "her friends every day with four. She sells the remainder at the farmers' market daily for $2 per fresh duck egg. "
    "How much in dollars does she make every day at the farmers' market?\nAnswer:",
    "Question: James decides to run 3 sprints 3 times a week.  He runs 60 meters each sprint.  How many total meters "
    "does he run a week?\nAnswer:",
    "Question: Kylar went to the store to buy glasses for his new apartment. One glass costs $5, but every second "
    "glass costs only 60% of the price. Kylar wants to buy 16 glasses. How much does he need to pay for them?\nAnswer:",
};
constexpr int rounds = 3;
constexpr uint32_t tokens_each = 64;
constexpr std::array strategies{
    std::pair{"standard", COS_STRATEGY_STANDARD},
    std::pair{"speculative", COS_STRATEGY_SPECULATIVE},
    std::pair{"cos", COS_STRATEGY_COS},
    std::pair{"auto", COS_STRATEGY_AUTO},
};

struct Tally {
    double seconds = 0, tokens = 0, forwards = 0, tested = 0, accepted = 0;

    void add(const Tally& other) {
        seconds += other.seconds;
        tokens += other.tokens;
        forwards += other.forwards;
        tested += other.tested;
        accepted += other.accepted;
    }
    double speed() const { return tokens / seconds; }
};

// Decode a fixed number of tokens. The first step, which runs the prompt, does not count.
Tally decode(const Engine& engine, const std::string& prompt, int32_t strategy, uint64_t seed) {
    const int32_t no_stop_tokens[1] = {};  // not NULL with a count of 0: no stop tokens
    auto options = make_options(strategy, 1, seed, tokens_each);
    options.stop_tokens = no_stop_tokens;
    const Session session = new_session(engine, options);
    const auto tokens = encode(engine, prompt);
    check(cos_prompt(session.get(), tokens.data(), tokens.size()));
    step(session);
    const auto before = stats_of(session);
    const auto start = std::chrono::steady_clock::now();
    while (!step(session).finish) {}
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    const auto after = stats_of(session);
    const auto count = [&](uint64_t cos_stats::*member) { return static_cast<double>(after.*member - before.*member); };
    return {seconds.count(), count(&cos_stats::tokens), count(&cos_stats::forwards), count(&cos_stats::tested),
            count(&cos_stats::accepted)};
}

double median(std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
}

void compare(const Engine& engine, const char* title) {
    std::printf("%s, temperature 1: %zu prompts x %u tokens, medians of %d rounds\n", title, std::size(prompts),
                tokens_each, rounds);
    struct Row {
        std::vector<double> speeds;
        Tally total;
    };
    std::array<Row, strategies.size()> rows;
    for (const auto& [name, strategy] : strategies) decode(engine, prompts[0], strategy, 0);  // warms up
    for (int round = 0; round < rounds; round++) {  // each round has all strategies, so that noise hits all alike
        if (isatty(STDERR_FILENO)) std::fprintf(stderr, "  round %d of %d\r", round + 1, rounds);
        for (size_t i = 0; i < strategies.size(); i++) {
            Tally tally;
            for (const auto& prompt : prompts) tally.add(decode(engine, prompt, strategies[i].second, round));
            rows[i].speeds.push_back(tally.speed());
            rows[i].total.add(tally);
        }
    }
    std::printf("  %-12s %9s %11s %9s %13s\n", "strategy", "tokens/s", "x standard", "accepted", "passes/token");
    for (size_t i = 0; i < strategies.size(); i++) {
        const auto& [speeds, total] = rows[i];
        const double speed = median(speeds);
        char accepted[16] = "-";
        if (total.tested > 0) std::snprintf(accepted, sizeof accepted, "%.0f%%", 100 * total.accepted / total.tested);
        std::printf("  %-12s %9.1f %11.2f %9s %13.2f\n", strategies[i].first, speed, speed / median(rows[0].speeds),
                    accepted, total.forwards / total.tokens);
    }
    std::printf("\n");
}

void run(const std::string& folder, const std::string& prompt) {
    const Engine weighted = open_engine(folder + "/engine.json");
    const Engine contrastive = open_engine(folder + "/contrastive.json");

    std::printf("CoS %s\n\n%s---- A weighted ensemble (engine.json), sampled at temperature 1\n\n", cos_version(),
                folder == demo_folder ? about_models : "");
    stream(weighted, prompt, 1);
    std::printf("---- Contrastive decoding (contrastive.json), greedy\n\n");
    stream(contrastive, prompt, 0);

    std::printf("---- Speeds of the strategies, which all follow the same distribution\n\n");
    compare(weighted, "Weighted, base + math");
    compare(contrastive, "Contrastive, base - 0.1 x small");
    std::printf("auto learns which of the other strategies is fastest while it decodes. The texts here are short.\n");
    if (folder == demo_folder) std::printf("To see what the combinations do to the text: make evaluate\n");
}

void inspect(const std::string& config) {
    const Engine engine = open_engine(config);
    const char* table = nullptr;
    check(cos_engine_describe_table(engine.get(), &table));
    std::fputs(table, stdout);
}

}  // namespace

int main(int argc, char** argv) {
    const std::vector<std::string> words(argv + 1, argv + argc);
    const bool helps = words.size() == 1 && (words[0] == "--help" || words[0] == "-h");
    const bool inspects = !words.empty() && words[0] == "inspect";
    const bool is_option = !words.empty() && words[0].rfind('-', 0) == 0;
    if (words.size() > 2 || (inspects && words.size() != 2) || is_option) {
        std::fprintf(helps ? stdout : stderr, "usage: %s [CONFIG_DIR] [PROMPT]\n       %s inspect CONFIG\n", argv[0],
                     argv[0]);
        return helps ? 0 : 2;
    }
    try {
        if (inspects) {
            inspect(words[1]);
            return 0;
        }
        run(words.empty() ? demo_folder : words[0], words.size() < 2 ? prompts[0] : words[1]);
    } catch (const std::exception& error) {
        std::fprintf(stderr, "demo: %s\n", error.what());
        return 1;
    }
}
