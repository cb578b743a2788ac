/* How a session decodes: options, constraints, and functions of the caller. cos.hpp includes it. */

#ifndef COS_OPTIONS_HPP
#define COS_OPTIONS_HPP

#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "cos.h"
#include "cos_result.hpp"

namespace cosrt {

/// Which models run when. It does not change the distribution of the tokens.
enum class Strategy : std::int32_t {
    automatic = COS_STRATEGY_AUTO,     ///< The library chooses what is expected to be fastest.
    standard = COS_STRATEGY_STANDARD,  ///< Every model scores every position, and nobody drafts: the baseline.
    speculative = COS_STRATEGY_SPECULATIVE,  ///< One model drafts, and all others verify.
    cos = COS_STRATEGY_COS,  ///< Collaborative decoding via speculation: the models take turns as the proposer.
};

/// The distribution that positions are verified against. It does not change the distribution of the tokens.
enum class Targets : std::int32_t {
    automatic = COS_TARGETS_AUTO,     ///< Routed under Strategy::automatic where it applies, otherwise combined.
    combined = COS_TARGETS_COMBINED,  ///< The combined distribution, which needs all models with a weight.
    routed = COS_TARGETS_ROUTED,  ///< One model, drawn by the weights. For "weighted" with a temperature above 0.
};

/// Whose numbers draw routed targets. It does not change the distribution of the tokens.
enum class Routes : std::int32_t {
    automatic = COS_ROUTES_AUTO,  ///< As the configuration says; without it, shared under Strategy::automatic.
    own = COS_ROUTES_OWN,         ///< Those of the session alone.
    /// Those of passes, which their sessions have in common: one pass serves more of them. Each session follows its
    /// distribution exactly, but they depend on each other, and a seed does not repeat a text. Two sessions of one
    /// scope that began with the same prompt never share, nor do forks.
    shared = COS_ROUTES_SHARED,
};

/// How urgent the tokens are. It does not change the distribution of the tokens.
enum class Priority : std::int32_t {
    interactive = COS_PRIORITY_INTERACTIVE,  ///< Somebody waits for them.
    /// Only the end of the text matters. All batch sessions together make passes of interactive sessions at most twice
    /// as long. If memory is short, a batch session counts as started after the next thousand others.
    batch = COS_PRIORITY_BATCH,
};

/// Rows of logits for one position, one for each model, in the order of the configuration.
class Rows {
public:
    Rows(const float* const* rows, std::size_t models, std::size_t vocab_size) noexcept
        : rows_(rows), models_(models), vocab_size_(vocab_size) {}

    /// Number of models.
    std::size_t size() const noexcept { return models_; }
    /// The logits of a model. Empty for look-ups, and for models with the weight 0.
    Span<const float> operator[](std::size_t model) const {
        assert(model < models_);
        return rows_[model] ? Span<const float>(rows_[model], vocab_size_) : Span<const float>();
    }

private:
    const float* const* rows_;
    std::size_t models_;
    std::size_t vocab_size_;
};

/// A function of the caller that combines the models: for one position, it makes one row of scores from the rows of the
/// models. It returns 0. Any other number, or an exception, makes the step fail with Code::callback.
///
/// Decoding is exact only if the scores depend on nothing but the rows. step() calls the function on its own thread,
/// possibly several times, also for positions whose tokens are dropped later. The function must write all scores; minus
/// infinity makes a token impossible. It must not keep the spans. It may cancel() its session; other calls fail with
/// busy.
using Combine = std::function<std::int32_t(const Rows& rows, Span<float> scores)>;

/// A text that a Constrain function is asked about. It begins behind the last prompt.
struct Text {
    Span<const Token> tokens;  ///< The text so far, pending tokens included.
    std::size_t kept;          ///< So many tokens from the front are those of the last call with the same `number`.
    std::uint64_t number;      ///< Of the session. No other session of the process has it, nor has a fork.
};

/// A function of the caller that says which tokens may come next in a text. It gets a bit for each token, token t in
/// bit t % 32 of word t / 32, all of them set, and clears those of the tokens that may not come. If no bit is left, the
/// text is complete and ends. It returns 0. Any other number, or an exception, makes the step fail with Code::callback.
///
/// What it says must depend on the tokens of the text alone. step() calls the function on its own thread for each
/// position that is drafted or decided, so texts go back. It must not keep the spans. It may cancel() its session;
/// other calls fail with busy. A fork has a copy of the function.
using Constrain = std::function<std::int32_t(const Text& text, Span<std::uint32_t> mask)>;

/// What a model thinks of the next token, by the plain softmax of its logits.
struct ModelSummary {
    float confidence;  ///< The probability of its best token. NaN for look-ups, and for models with the weight 0.
    float entropy;     ///< The entropy of its distribution in nats. NaN likewise.
    Token best;        ///< Its best token. -1 likewise.
};

/// A function of the caller that gives the models the weights of one position. It gets the tokens before the position,
/// prompts included, and a summary of each model. `weights` holds those of the session, and the function may change
/// them to such as SessionOptions takes. A model with the weight 0 in the session has not run, and must keep 0. It
/// returns 0. Any other number, or an exception, makes the step fail with Code::callback.
///
/// Decoding is exact only if the weights depend on nothing but the arguments. step() calls the function on its own
/// thread for each position that is decided, possibly several times. It must not keep the spans. It may cancel() its
/// session; other calls fail with busy.
using Weigh = std::function<std::int32_t(Span<const Token> tokens, Span<const ModelSummary> models,
                                         Span<float> weights)>;

/// What the text behind the last prompt must be. It needs the tokenizer.json of the models. A stop token may come where
/// the text may end. A text that nothing can follow ends with Finish::complete.
class Constraint {
public:
    /// A JSON value that a JSON schema allows. llguidance says which keywords it knows; others are an error.
    static Constraint json_schema(std::string schema) { return {COS_CONSTRAINT_JSON_SCHEMA, std::move(schema)}; }
    /// The whole text matches a regular expression, in the syntax of Rust's crate regex, without look-around.
    static Constraint regex(std::string expression) { return {COS_CONSTRAINT_REGEX, std::move(expression)}; }
    /// The text follows a grammar in the dialect of Lark that llguidance has. Its first rule is "start".
    static Constraint lark(std::string grammar) { return {COS_CONSTRAINT_LARK, std::move(grammar)}; }
    /// The text is one of these strings. Takes a container of strings or string_views, or braces.
    template <typename Strings = std::initializer_list<std::string_view>>
    static Constraint choices(const Strings& choices) {
        std::string json = "[";
        for (const std::string_view choice : Span<const typename Strings::value_type>(choices)) {
            json += json.size() == 1 ? "\"" : ",\"";
            for (const char character : choice) add_character(json, character);
            json += '"';
        }
        return {COS_CONSTRAINT_CHOICES, json + ']'};
    }

    /// One of COS_CONSTRAINT_*.
    std::int32_t kind() const noexcept { return kind_; }
    /// The schema, the expression, the grammar, or a JSON array of the choices.
    const std::string& source() const noexcept { return source_; }

private:
    Constraint(std::int32_t kind, std::string source) : kind_(kind), source_(std::move(source)) {}

    /// Adds a character of a string of JSON.
    static void add_character(std::string& json, char character) {
        static constexpr char digits[] = "0123456789abcdef";
        if (character == '"' || character == '\\') {
            json += '\\';
        } else if (static_cast<unsigned char>(character) < 0x20) {
            json += character < 0x10 ? "\\u000" : "\\u001";
            character = digits[character % 0x10];
        }
        json += character;
    }

    std::int32_t kind_;
    std::string source_;
};

/// How a session decodes. The default is greedy, with an automatic strategy.
struct SessionOptions {
    Strategy strategy = Strategy::automatic;
    /// Scores are divided by it. 0 is greedy: the token with the highest score, and the lowest such token among equal
    /// scores. With "weighted", a small temperature (0.01 and less) is not greedy: the weights draw one of the models'
    /// own best tokens. For the best token of the mixture, set 0, or set "greedy_below" in the configuration.
    float temperature = 0;
    std::int32_t top_k = 0;  ///< Sample among this many most probable tokens of each distribution; 0 is off.
    float top_p = 0;         ///< Sample among the fewest tokens that together have this probability; 0 or 1 is off.
    float min_p = 0;         ///< Sample among tokens with at least this share of the highest probability; 0 is off.
    std::uint64_t seed = 0;  ///< Same tokens for the same seed, strategy (not automatic) and threads; cos.h says more.
    std::uint32_t max_tokens = 0;  ///< Most tokens to generate after each prompt; 0: until the context is full.
    /// How many tokens each model proposes in a row, 0 to 64, in the order of the configuration. Default: automatic.
    std::optional<std::vector<std::int32_t>> proposal_lengths{};
    std::optional<std::vector<float>> weights{};  ///< In place of the engine's, for "weighted" and "logits".
    /// Tokens that end the sequence, possibly none. Default: the end-of-sequence tokens that came with the models.
    std::optional<std::vector<Token>> stop_tokens{};
    Targets targets = Targets::automatic;
    Routes routes = Routes::automatic;
    Priority priority = Priority::interactive;
    /// Whether a step has log-probabilities. They are those of the distribution that tokens are drawn from; of a greedy
    /// session, those at temperature 1 without filters. Not possible with Targets::routed.
    bool log_probabilities = false;
    Combine combine{};  ///< In place of the engine's combination. The session keeps it alive.

    /// Scores of tokens of the prompt or the text: positive ones are divided by it, and all others multiplied. 0 or 1
    /// is off. Scores change in this order: bias, this penalty, the presence and the frequency penalty, bans and the
    /// constraint, then temperature and filters. With "weighted", those of each model change before they are mixed.
    float repetition_penalty = 0;
    float presence_penalty = 0;    ///< Subtracted from the scores of tokens behind the last prompt; 0 is off.
    float frequency_penalty = 0;   ///< Subtracted for each time that a token is behind the last prompt; 0 is off.
    std::uint32_t min_tokens = 0;  ///< No stop token comes before so many tokens behind the last prompt; 0 is off.
    /// What is added to the scores of tokens. Minus infinity bans a token.
    std::map<Token, float> logit_bias{};
    /// Runs of tokens that must not come behind the last prompt, each of one token or more. A run that the end of the
    /// prompt has begun is not completed either.
    std::vector<std::vector<Token>> banned_tokens{};
    std::int32_t no_repeat_ngram = 0;        ///< No run of so many tokens comes twice in prompt and text; 0 is off.
    std::optional<Constraint> constraint{};  ///< What the text must be. It excludes `constrain`.
    Constrain constrain{};                   ///< Says which tokens may come next. The session keeps it alive.
    /// How many of the most probable tokens a step has for each token, 0 to 20. It turns log_probabilities on.
    std::int32_t top_log_probabilities = 0;
    /// Whether a step has the log-probabilities under each model. It turns log_probabilities on.
    bool model_log_probabilities = false;
    /// Whether all log-probabilities are those before bias, penalties, bans and constraint, at temperature 1 and
    /// without filters.
    bool log_probabilities_before = false;

    /// Locally typical sampling: keep the fewest tokens whose information is nearest to the entropy, and that together
    /// have this probability; 0 or 1 is off. Judged behind penalties and the constraint, at temperature 1, and before
    /// the filters. A greedy session does without.
    float typical_p = 0;
    /// Exclude top choices: with this probability for each position, all tokens of at least the probability
    /// xtc_threshold are dropped but for the least probable one of them. Judged as typical_p, behind it; 0 is off.
    float xtc_probability = 0;
    float xtc_threshold = 0;  ///< See xtc_probability.
    /// DRY: a token that would go on with a run of n tokens that came before in prompt or text loses
    /// dry_multiplier * dry_base^(n - dry_allowed_length), if n is at least dry_allowed_length; 0 is off.
    float dry_multiplier = 0;
    float dry_base = 0;                   ///< At least 1, such as 1.75.
    std::int32_t dry_allowed_length = 0;  ///< At least 1, such as 2.
    std::vector<Token> dry_breakers{};    ///< Tokens that no run goes across, such as those of line ends.
    /// Gives the models the weights of each position, for "weighted" and "logits". The session keeps it alive. Targets
    /// are then combined.
    Weigh weigh{};
};

/// What Engine::prepare() prepares for, and for how long.
struct PrepareOptions {
    std::uint32_t sessions = 0;  ///< Most sessions that will decode at the same time, up to 1024; 0: 16.
    std::uint32_t tokens = 0;    ///< Most tokens of a usual text, with its prompt; 0: 1024.
    std::chrono::duration<double> time{};  ///< After it, no further pass begins; 0: 30 seconds.
    /// Is told which share is done, from 0 to 1, and returns whether to go on. An exception makes prepare() fail with
    /// Code::callback. Called on the calling thread, before each pass.
    std::function<bool(double share)> progress{};
};

namespace detail {

/// A pointer to elements. Never NULL, which means "not given" in the C interface.
template <typename C>
auto pointer(const C& elements) noexcept {
    using T = std::remove_cv_t<std::remove_pointer_t<decltype(elements.data())>>;
    static const T none{};
    return elements.size() == 0 ? &none : static_cast<const T*>(elements.data());
}

/// Sets an array of cos_session_options, if it is given.
template <typename T>
void set(const T*& elements, std::size_t& count, const std::optional<std::vector<T>>& given) noexcept {
    if (given) elements = pointer(*given), count = given->size();
}

/// Options for C, without functions, and the arrays that they point to besides those of the SessionOptions.
class Given {
public:
    explicit Given(const SessionOptions& from) {
        options.struct_size = sizeof options;
        options.strategy = static_cast<std::int32_t>(from.strategy);
        options.temperature = from.temperature;
        options.top_k = from.top_k, options.top_p = from.top_p, options.min_p = from.min_p;
        options.seed = from.seed, options.max_tokens = from.max_tokens;
        set(options.proposal_lengths, options.proposal_lengths_count, from.proposal_lengths);
        set(options.weights, options.weights_count, from.weights);
        set(options.stop_tokens, options.stop_tokens_count, from.stop_tokens);
        options.targets = static_cast<std::int32_t>(from.targets);
        options.routes = static_cast<std::int32_t>(from.routes);
        options.priority = static_cast<std::int32_t>(from.priority);
        options.log_probabilities = from.log_probabilities;
        options.top_log_probabilities = from.top_log_probabilities;
        options.model_log_probabilities = from.model_log_probabilities;
        options.log_probabilities_before = from.log_probabilities_before;
        set_controls(from);
    }
    Given(const Given&) = delete;
    Given& operator=(const Given&) = delete;

    cos_session_options options{};

private:
    void set_controls(const SessionOptions& from) {
        options.repetition_penalty = from.repetition_penalty;
        options.presence_penalty = from.presence_penalty, options.frequency_penalty = from.frequency_penalty;
        options.min_tokens = from.min_tokens, options.no_repeat_ngram = from.no_repeat_ngram;
        options.typical_p = from.typical_p;
        options.xtc_probability = from.xtc_probability, options.xtc_threshold = from.xtc_threshold;
        options.dry_multiplier = from.dry_multiplier, options.dry_base = from.dry_base;
        options.dry_allowed_length = from.dry_allowed_length;
        options.dry_breakers = pointer(from.dry_breakers), options.dry_breakers_count = from.dry_breakers.size();
        for (const auto& [token, value] : from.logit_bias) biased_.push_back(token), biases_.push_back(value);
        options.bias_tokens = pointer(biased_), options.bias_values = pointer(biases_);
        options.bias_count = biased_.size();
        for (const auto& run : from.banned_tokens) {
            banned_.insert(banned_.end(), run.begin(), run.end());
            lengths_.push_back(run.size());
        }
        options.banned_tokens = pointer(banned_), options.banned_lengths = pointer(lengths_);
        options.banned_count = lengths_.size();
        options.constraint_kind = from.constraint ? from.constraint->kind() : COS_CONSTRAINT_NONE;
        if (!from.constraint) return;
        options.constraint = from.constraint->source().data();
        options.constraint_length = from.constraint->source().size();
    }

    std::vector<Token> biased_, banned_;
    std::vector<float> biases_;
    std::vector<std::size_t> lengths_;
};

}  // namespace detail

}  // namespace cosrt

#endif  // COS_OPTIONS_HPP
