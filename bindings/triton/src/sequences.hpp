/* Sequences of turns by correlation ID. */

#ifndef COS_SEQUENCES_HPP
#define COS_SEQUENCES_HPP

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "body.hpp"

namespace triton {

/// A request in its sequence, or in none.
struct Turn {
    std::string id;  ///< Empty: in none.
    bool chat = false, last = false;
    Json messages;                      ///< Of a chat, with those of earlier turns.
    std::vector<cosrt::Token> tokens;   ///< Of a completion, with those of earlier turns.
    std::string text;                   ///< What was answered so far, as text and as tokens.
    std::vector<cosrt::Token> answered;
    cosrt::Finish finish = cosrt::Finish::none;
};

/// What was said in sequences. A turn of a chat or a completion gets what was said before, and the models find what
/// they have computed for it.
class Sequences {
public:
    explicit Sequences(double idle_seconds) : idle_ns_(static_cast<std::uint64_t>(idle_seconds * 1e9)) {}

    /// Begins the turn of a request, and puts what was said before into its body.
    Turn begin(TRITONBACKEND_Request* request, Asked& asked, const cosrt::Engine& engine);
    /// Ends a turn. If it was answered, which needs the engine, the answer becomes a part of the sequence; otherwise
    /// nothing was said. Only the first end counts.
    void end(Turn& turn, bool answered, const cosrt::Engine* engine = nullptr);

private:
    struct Sequence {
        Json messages = Json::array();
        std::vector<cosrt::Token> tokens;
        bool chat = false, busy = false;
        std::uint64_t used = 0;
    };
    void forget_idle();

    const std::uint64_t idle_ns_;
    std::mutex mutex_;
    std::map<std::string, Sequence> sequences_;
};

}  // namespace triton

#endif  // COS_SEQUENCES_HPP
