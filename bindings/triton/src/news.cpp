// What steps have brought, until it is sent.

#include "news.hpp"

#include <algorithm>
#include <utility>

namespace triton {

bool News::any() const {
    return !answer.empty() || std::any_of(choices.begin(), choices.end(), [](const Told& told) { return told.any(); });
}

void News::join(News& later) {
    if (!any()) {
        std::swap(*this, later);
        return;
    }
    for (std::size_t i = 0; i < choices.size(); i++) {
        Told& to = choices[i];
        const Told& from = later.choices[i];
        to.text += from.text;
        append(to.tokens, from.tokens), append(to.log_probabilities, from.log_probabilities);
        append(to.top_tokens, from.top_tokens), append(to.top_log_probabilities, from.top_log_probabilities);
        if (from.finish != cosrt::Finish::none) to.finish = from.finish;  // it is told once
    }
    top = std::max(top, later.top);
    answer += later.answer;
    std::copy(std::begin(later.usage), std::end(later.usage), usage);
}

void News::clear() {
    for (Told& told : choices) {
        told.text.clear(), told.tokens.clear(), told.top_tokens.clear();
        told.log_probabilities.clear(), told.top_log_probabilities.clear();
        told.finish = cosrt::Finish::none;
    }
    answer.clear(), top = 0;
}

}  // namespace triton
