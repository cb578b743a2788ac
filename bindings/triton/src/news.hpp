/* What steps have brought, until it is sent. */

#ifndef COS_NEWS_HPP
#define COS_NEWS_HPP

#include <cstdint>
#include <string>
#include <vector>

#include "cos.hpp"

namespace triton {

template <typename List>
void append(List& to, const List& from) {
    to.insert(to.end(), from.begin(), from.end());
}

/// What is to be told of a choice.
struct Told {
    std::string text;
    std::vector<std::int32_t> tokens, top_tokens;
    std::vector<float> log_probabilities, top_log_probabilities;
    cosrt::Finish finish = cosrt::Finish::none;

    bool any() const { return !text.empty() || !tokens.empty() || finish != cosrt::Finish::none; }
};

/// What is to be told of a request, by one response.
struct News {
    std::vector<Told> choices;
    std::size_t top = 0;               ///< Alternatives of each token.
    std::string answer;                ///< What a server of OpenAI's protocol sends, if that is wanted.
    std::int32_t usage[2] = {0, 0};    ///< Tokens of the prompts, and those decoded so far.

    bool any() const;
    /// Adds what came later, whose buffers become those of this one if there was nothing.
    void join(News& later);
    /// Keeps the buffers.
    void clear();
};

}  // namespace triton

#endif  // COS_NEWS_HPP
