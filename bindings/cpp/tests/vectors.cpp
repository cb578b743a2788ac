// Replays tests/vectors through cos.hpp, as tests/vectors/README.md specifies. Run it in the root of the repository:
//
//     vectors FOLDER...

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "cos.hpp"

namespace {

using cosrt::Token;

[[noreturn]] void fail(const std::string& what) { throw std::runtime_error(what); }

// ---- files

struct Greedy {
    std::string prompt;
    std::vector<Token> tokens;
    std::vector<double> log_probabilities;
};

struct Vectors {
    std::string engine;
    std::size_t vocabulary = 0;
    double tolerance = 0;
    std::map<std::string, std::vector<Token>> prompts;
    std::vector<Greedy> greedy;
};

/// Calls `record` with the first word and the rest of each line. Fails if the file is cut off.
template <typename Record>
void read(const std::filesystem::path& path, const std::string& first, Record record) {
    std::ifstream file(path);
    std::string line, last;
    if (!std::getline(file, line) || line != first) fail(path.string() + " does not begin with " + first);
    while (std::getline(file, line)) {
        if (line.empty() || line[0] == '#') continue;
        std::istringstream words(line);
        words >> last >> std::ws;
        if (last != "end") record(last, words);
    }
    if (last != "end") fail(path.string() + " is cut off");
}

template <typename T>
std::vector<T> list(std::istream& words) {
    std::vector<T> values;
    for (T value; words >> value;) values.push_back(value);
    return values;
}

std::string rest(std::istream& words) {
    std::string text;
    std::getline(words, text);
    return text;
}

Vectors read_vectors(const std::filesystem::path& path) {
    Vectors vectors;
    read(path, "cos-vectors 1", [&](const std::string& what, std::istream& words) {
        if (what == "engine") vectors.engine = rest(words);
        else if (what == "vocabulary") words >> vectors.vocabulary;
        else if (what == "tolerance") words >> vectors.tolerance;
        else if (what == "prompt") {
            std::string name;
            words >> name;
            vectors.prompts[name] = list<Token>(words);
        } else if (what == "greedy") {
            vectors.greedy.emplace_back();
            words >> vectors.greedy.back().prompt;
        } else if (what == "token") {
            Token token;
            double value;
            if (!(words >> token >> value)) fail("a token without a value in " + path.string());
            vectors.greedy.back().tokens.push_back(token);
            vectors.greedy.back().log_probabilities.push_back(value);
        } else if (what != "sampled" && what != "support" && what != "next" && what != "pair" && what != "triple" &&
                   what != "rest") {
            fail("unknown record " + what + " in " + path.string());
        }
    });
    return vectors;
}

// ---- tokens that must be decoded

struct Way {
    std::string name;
    cosrt::Strategy strategy;
    std::optional<std::vector<std::int32_t>> lengths;
};

std::vector<Way> ways(std::size_t models) {
    std::vector<std::int32_t> turns(models);
    for (std::size_t i = 0; i < models; i++) turns[i] = i % 2 ? 2 : 3;
    std::vector<Way> all{{"standard", cosrt::Strategy::standard, {}},
                         {"cos", cosrt::Strategy::cos, turns},
                         {"auto", cosrt::Strategy::automatic, {}}};
    for (std::size_t i = 0; i < models; i++) {
        std::vector<std::int32_t> lengths(models);
        lengths[i] = 4;
        all.push_back({"speculative " + std::to_string(i), cosrt::Strategy::speculative, lengths});
    }
    return all;
}

struct Counts {
    std::size_t cases = 0, values = 0;
};

void replay(const std::filesystem::path& path, Counts& counts) {
    const Vectors vectors = read_vectors(path);
    const auto engine = cosrt::Engine::from_json(vectors.engine).value();
    if (engine.vocab_size() != vectors.vocabulary) fail("another vocabulary");
    for (const Greedy& greedy : vectors.greedy) {
        for (const Way& way : ways(engine.model_count())) {
            cosrt::SessionOptions options;
            options.strategy = way.strategy;
            options.proposal_lengths = way.lengths;
            options.max_tokens = static_cast<std::uint32_t>(greedy.tokens.size());
            options.stop_tokens.emplace();
            options.log_probabilities = true;
            auto session = engine.session(options).value();
            session.prompt(vectors.prompts.at(greedy.prompt)).value();
            std::vector<Token> tokens;
            std::vector<double> values;
            for (const auto& result : session.steps()) {
                const cosrt::Step& step = result.value();
                tokens.insert(tokens.end(), step.tokens.begin(), step.tokens.end());
                values.insert(values.end(), step.log_probabilities.begin(), step.log_probabilities.end());
            }
            const std::string where = path.string() + ", " + greedy.prompt + ", " + way.name;
            if (tokens != greedy.tokens) fail(where + ": other tokens");
            if (values.size() != tokens.size()) fail(where + ": a log-probability is missing");
            for (std::size_t i = 0; i < values.size(); i++) {
                if (!(std::abs(values[i] - greedy.log_probabilities[i]) <= vectors.tolerance)) {
                    fail(where + ": log-probability " + std::to_string(values[i]) + " of token " + std::to_string(i));
                }
            }
            counts.cases++;
            counts.values += values.size();
        }
    }
}

void replay_folder(const std::filesystem::path& folder) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
        if (entry.path().extension() == ".txt") files.push_back(entry.path());
    }
    std::sort(files.begin(), files.end());
    Counts counts;
    for (const auto& file : files) replay(file, counts);
    std::printf("%s: %zu cases, %zu values\n", folder.filename().c_str(), counts.cases, counts.values);
}

// ---- calls that must be refused

float number(const std::string& text) {
    if (text == "nan") return std::numeric_limits<float>::quiet_NaN();
    if (text == "inf") return std::numeric_limits<float>::infinity();
    if (text == "-inf") return -std::numeric_limits<float>::infinity();
    return std::stof(text);
}

template <typename T>
std::vector<T> commas(const std::string& text) {
    std::vector<T> values;
    std::istringstream parts(text);
    for (std::string part; std::getline(parts, part, ',');) values.push_back(static_cast<T>(number(part)));
    return values;
}

/// Sets members from KEY=VALUE pairs. Returns false if the types of cos.hpp cannot express a value.
bool set(cosrt::SessionOptions& options, std::istream& words) {
    std::vector<Token> biased;
    for (std::string word; words >> word;) {
        const auto equals = word.find('=');
        const std::string key = word.substr(0, equals), value = word.substr(equals + 1);
        if (key == "strategy") options.strategy = static_cast<cosrt::Strategy>(std::stoi(value));
        else if (key == "temperature") options.temperature = number(value);
        else if (key == "top_k") options.top_k = std::stoi(value);
        else if (key == "top_p") options.top_p = number(value);
        else if (key == "min_p") options.min_p = number(value);
        else if (key == "seed") options.seed = std::stoull(value);
        else if (key == "max_tokens") options.max_tokens = static_cast<std::uint32_t>(std::stoul(value));
        else if (key == "proposal_lengths") options.proposal_lengths = commas<std::int32_t>(value);
        else if (key == "weights") options.weights = commas<float>(value);
        else if (key == "stop_tokens") options.stop_tokens = commas<Token>(value);
        else if (key == "targets") options.targets = static_cast<cosrt::Targets>(std::stoi(value));
        else if (key == "routes") options.routes = static_cast<cosrt::Routes>(std::stoi(value));
        else if (key == "priority") options.priority = static_cast<cosrt::Priority>(std::stoi(value));
        else if (key == "repetition_penalty") options.repetition_penalty = number(value);
        else if (key == "presence_penalty") options.presence_penalty = number(value);
        else if (key == "frequency_penalty") options.frequency_penalty = number(value);
        else if (key == "min_tokens") options.min_tokens = static_cast<std::uint32_t>(std::stoul(value));
        else if (key == "no_repeat_ngram") options.no_repeat_ngram = std::stoi(value);
        else if (key == "top_log_probabilities") options.top_log_probabilities = std::stoi(value);
        else if (key == "typical_p") options.typical_p = number(value);
        else if (key == "xtc_probability") options.xtc_probability = number(value);
        else if (key == "xtc_threshold") options.xtc_threshold = number(value);
        else if (key == "dry_multiplier") options.dry_multiplier = number(value);
        else if (key == "dry_base") options.dry_base = number(value);
        else if (key == "dry_allowed_length") options.dry_allowed_length = std::stoi(value);
        else if (key == "dry_breakers") options.dry_breakers = commas<Token>(value);
        else if (key == "bias_tokens") biased = commas<Token>(value);
        else if (key == "bias_values") {
            const auto values = commas<float>(value);
            for (std::size_t i = 0; i < values.size(); i++) options.logit_bias[biased[i]] = values[i];
        } else if (value != "0" && value != "1") return false;  // the others are bool
        else if (key == "log_probabilities") options.log_probabilities = value == "1";
        else if (key == "model_log_probabilities") options.model_log_probabilities = value == "1";
        else if (key == "log_probabilities_before") options.log_probabilities_before = value == "1";
        else fail("unknown member " + key);
    }
    return true;
}

template <typename T>
void expect(const cosrt::Result<T>& result, int code, const std::string& record) {
    const int got = result ? 0 : static_cast<int>(result.error().code);
    if (got != code) fail(record + ": " + std::to_string(got) + " instead of " + std::to_string(code));
    if (!result && result.error().message.empty()) fail(record + ": an error without a message");
}

void refuse(const std::filesystem::path& path) {
    std::size_t records = 0;
    std::optional<cosrt::Engine> engine;
    read(path, "cos-errors 1", [&](const std::string& what, std::istream& words) {
        if (what == "engine") {
            engine = cosrt::Engine::from_json(rest(words)).value();
            return;
        }
        if (what == "vocabulary") {
            std::size_t size;
            if (!(words >> size) || engine->vocab_size() != size) fail("another vocabulary");
            return;
        }
        int code = 0;
        const std::string record = what + " " + std::to_string(records);
        records++;
        if (what == "step") words >> code;
        else words >> code >> std::ws;
        if (what == "refuse") {
            expect(cosrt::Engine::from_json(rest(words)), code, record);
            return;
        }
        if (what == "options") {
            cosrt::SessionOptions options;
            if (set(options, words)) expect(engine->session(options), code, record);
            return;
        }
        auto session = engine->session().value();
        if (what == "prompt") expect(session.prompt(list<Token>(words)), code, record);
        else if (what == "step") expect(session.step(), code, record);
        else if (what == "weights") expect(session.set_weights(commas<float>(rest(words))), code, record);
        else fail("unknown record " + what);
        // A refused call changes nothing: the session still decodes.
        if (code != 0) {
            session.prompt({1, 2, 3}).value();
            if (session.step().value().tokens.empty()) fail(record + ": the session was changed");
        }
    });
    std::printf("errors: %zu records\n", records);
}

}  // namespace

int main(int argc, char** argv) {
    try {
        for (int i = 1; i < argc; i++) {
            if (std::filesystem::is_directory(argv[i])) replay_folder(argv[i]);
            else refuse(argv[i]);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "vectors: %s\n", error.what());
        return 1;
    }
}
