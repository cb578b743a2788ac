/* The best of several texts. cos.hpp includes it. */

#ifndef COS_BEST_HPP
#define COS_BEST_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "cos.hpp"

namespace cosrt {

/// A text that best_of() has chosen.
struct Best {
    std::vector<Token> tokens;
    Finish finish = Finish::none;
    double log_probability = 0;  ///< The mean log-probability of its tokens.
};

/// Decode `count` continuations of a session in common passes, and get the one whose tokens have the highest mean
/// log-probability. Its options need log_probabilities, a temperature above 0, and an end such as max_tokens. The
/// session stays as it is. Errors: invalid_argument, and those of fork() and step() of a continuation.
inline Result<Best> best_of(const Session& session, std::size_t count, std::uint64_t seed = 0) {
    if (count == 0) return Error{Code::invalid_argument, "count is 0; decode one continuation or more"};
    std::vector<Session> forks;
    for (std::size_t i = 0; i < count; i++) {
        auto fork = session.fork(seed);  // equal seeds give each fork numbers of its own
        if (!fork) return fork.error();
        forks.push_back(*std::move(fork));
    }
    std::vector<Best> texts(count);
    const auto add = [](Best& text, const Result<Step>& step) -> Result<void> {
        if (!step) return step.error();
        if (step->log_probabilities.size() < step->tokens.size()) {
            return Error{Code::invalid_argument, "log_probabilities is off; set that option of the session"};
        }
        text.tokens.insert(text.tokens.end(), step->tokens.begin(), step->tokens.end());
        for (const float value : step->log_probabilities) text.log_probability += static_cast<double>(value);
        text.finish = step->finish;
        return {};
    };
    // The first fork computes the prompt, and the others find it.
    if (auto added = add(texts[0], forks[0].step()); !added) return added.error();
    for (;;) {
        std::vector<Session*> open;
        std::vector<Best*> of_open;
        for (std::size_t i = 0; i < count; i++) {
            if (texts[i].finish == Finish::none) open.push_back(&forks[i]), of_open.push_back(&texts[i]);
        }
        if (open.empty()) break;
        const auto steps = step_many(open);
        for (std::size_t i = 0; i < steps.size(); i++) {
            if (auto added = add(*of_open[i], steps[i]); !added) return added.error();
        }
    }
    for (Best& text : texts) text.log_probability /= static_cast<double>(text.tokens.empty() ? 1 : text.tokens.size());
    return *std::max_element(texts.begin(), texts.end(), [](const Best& one, const Best& other) {
        return one.log_probability < other.log_probability;
    });
}

}  // namespace cosrt

#endif  // COS_BEST_HPP
