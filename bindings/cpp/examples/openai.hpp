// OpenAI's completions as C++: what is asked, what is refused, and where a text stops. tests/servers/README.md says more.

#ifndef OPENAI_HPP
#define OPENAI_HPP

#include <algorithm>
#include <cstdint>
#include <exception>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "cos.hpp"
#include "json.hpp"

namespace openai {

using json = nlohmann::json;
using cosrt::Token;

/// What a client is told.
struct Problem {
    int status;
    std::string message;
    json param = nullptr, code = nullptr;

    json body() const {
        const char* type = status == 429 ? "rate_limit_error" : status >= 500 ? "server_error" : "invalid_request_error";
        return {{"error", {{"message", message}, {"type", type}, {"param", param}, {"code", code}}}};
    }
};

inline Problem unknown_model() { return {404, "there is no such model", "model", "model_not_found"}; }

/// What a client is told of an exception.
inline Problem problem_of(const std::exception_ptr& thrown) {
    try {
        std::rethrow_exception(thrown);
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

inline json object(const json& from, const char* name) {
    const auto found = from.find(name);
    if (found == from.end() || found->is_null()) return json::object();
    if (!found->is_object()) throw Problem{400, std::string(name) + " must be an object", name};
    return *found;
}

inline std::vector<Token> prompt_of(const json& body, const cosrt::Engine& engine) {
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

inline std::vector<std::string> stops_of(const json& body) {
    json stop = body.value("stop", json());
    if (stop.is_null()) return {};
    if (stop.is_string()) stop = json::array({stop});
    const auto wrong = [](const json& one) { return !one.is_string() || one.get_ref<const std::string&>().empty(); };
    if (!stop.is_array() || stop.size() > 4 || std::any_of(stop.begin(), stop.end(), wrong)) {
        throw Problem{400, "stop must be a string or up to 4, none of them empty", "stop"};
    }
    return stop.get<std::vector<std::string>>();
}

inline cosrt::SessionOptions options_of(const json& body) {
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

inline json choices(const std::string& text, const json& log_probabilities, const json& finish) {
    return {{{"index", 0}, {"text", text}, {"logprobs", log_probabilities}, {"finish_reason", finish}}};
}

inline json usage(std::size_t prompt, std::size_t completion) {
    return {{"prompt_tokens", prompt}, {"completion_tokens", completion}, {"total_tokens", prompt + completion}};
}

/// Append one piece's log-probabilities, which may be null, to those before.
inline void append(json& all, const json& more) {
    if (all.is_null()) all = more;
    else for (const auto& [name, list] : more.items()) {
        if (list.is_array()) all[name].insert(all[name].end(), list.begin(), list.end());
    }
}

// ---- where the text stops

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

}  // namespace openai

#endif  // OPENAI_HPP
