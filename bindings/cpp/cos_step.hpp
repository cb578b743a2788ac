/* What a step tells: tokens, why the sequence ended, log-probabilities, and how each token came about. cos.hpp includes
 * it. */

#ifndef COS_STEP_HPP
#define COS_STEP_HPP

#include <cstddef>
#include <cstdint>

#include "cos.h"
#include "cos_result.hpp"

namespace cosrt {

/// Why a sequence is finished.
enum class Finish : std::int32_t {
    none = COS_FINISH_NONE,                  ///< It is not: the sequence goes on.
    stop = COS_FINISH_STOP,                  ///< A stop token was committed. It is the last token.
    max_tokens = COS_FINISH_MAX_TOKENS,      ///< max_tokens tokens were generated since the last prompt.
    context_full = COS_FINISH_CONTEXT_FULL,  ///< The context has no room for another token.
    cancelled = COS_FINISH_CANCELLED,        ///< cancel() stopped the step.
    complete = COS_FINISH_COMPLETE,          ///< The constraint is complete: no token may follow.
    stop_string = COS_FINISH_STOP_STRING,    ///< A stop string ended the text of a Request.
};

/// The way in which a token came about.
enum class OriginKind : std::int32_t {
    drawn = COS_ORIGIN_DRAWN,        ///< Drawn from the target distribution, where nothing was proposed.
    accepted = COS_ORIGIN_ACCEPTED,  ///< Proposed, and accepted.
    replaced = COS_ORIGIN_REPLACED,  ///< Drawn in place of a proposal that was rejected.
    forced = COS_ORIGIN_FORCED,      ///< The only token that the constraint allowed.
};

/// How a token came about.
struct Origin {
    OriginKind kind = OriginKind::drawn;
    /// The index of the model or look-up that proposed the token, or the token that was replaced. Of a token that was
    /// drawn from the distribution of one model, as with routed targets, that model. Otherwise -1.
    std::int32_t model = -1;
};

/// How the tokens of a step came about: a view of what the session owns.
class Origins {
public:
    Origins() = default;
    Origins(const cos_origin* data, std::size_t size) : data_(data), size_(data ? size : 0) {}

    std::size_t size() const noexcept { return size_; }
    bool empty() const noexcept { return size_ == 0; }
    Origin operator[](std::size_t index) const {
        return {static_cast<OriginKind>(data_[index].kind), data_[index].model};
    }

private:
    const cos_origin* data_ = nullptr;
    std::size_t size_ = 0;
};

/// The result of a step. The session owns the spans, which are valid until its next call.
struct Step {
    Span<const Token> tokens;  ///< The tokens that the step committed: at least one, unless the sequence is finished.
    Finish finish = Finish::none;
    /// Natural logarithm of each token's probability under the combined distribution. Empty if the options are without
    /// it.
    Span<const float> log_probabilities;
    /// For each token, the most probable tokens, best first, as many as options.top_log_probabilities says. Where fewer
    /// are possible, the rest is -1. Empty without that option.
    Table<Token> top_tokens;
    Table<float> top_log_probabilities;  ///< Those of top_tokens; minus infinity for the rest.
    /// For each token, its log-probability under each model, in the order of the configuration. NaN for look-ups, and
    /// for models of weight 0 that have not scored it. Empty without options.model_log_probabilities.
    Table<float> model_log_probabilities;
    /// How each token came about. Empty for tokens that were scored.
    Origins origins;

    bool finished() const noexcept { return finish != Finish::none; }
};

}  // namespace cosrt

#endif  // COS_STEP_HPP
