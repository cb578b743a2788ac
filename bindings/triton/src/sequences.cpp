// Sequences of turns by correlation ID.

#include "sequences.hpp"

namespace triton {

namespace {

/// The correlation ID, which is a number or a text. Empty if there is none.
std::string id_of(TRITONBACKEND_Request* request) {
    std::uint64_t number = 0;
    if (TRITONSERVER_Error* error = TRITONBACKEND_RequestCorrelationId(request, &number)) {
        TRITONSERVER_ErrorDelete(error);
        const char* text = nullptr;
        ignore(TRITONBACKEND_RequestCorrelationIdString(request, &text));
        return text && *text ? std::string("text ") + text : "";
    }
    return number ? "number " + std::to_string(number) : "";
}

/// Most sequences at the same time.
constexpr std::size_t most_sequences = 100000;

/// Adds the prompt of a turn to the tokens before it.
void add_prompt(const Json& prompt, std::vector<cosrt::Token>& tokens, const cosrt::Engine& engine) {
    if (prompt.is_string()) {
        const auto more = engine.encode(prompt.get<std::string>(), tokens.empty()).value();
        tokens.insert(tokens.end(), more.begin(), more.end());
        return;
    }
    if (!prompt.is_array()) throw wrong("the prompt of a turn must be a text or an array of tokens");
    for (const Json& token : prompt) {
        const bool fits = token.is_number_integer() && token >= 0 && token < engine.vocab_size();
        if (!fits) throw wrong("tokens has " + token.dump() + ", which is no token; give one prompt for a turn");
        tokens.push_back(token.get<cosrt::Token>());
    }
}

/// Adds what the client was told: nothing from a stop string on, and no stop token.
void add_answer(Turn& turn, const cosrt::Engine& engine) {
    if (turn.finish == cosrt::Finish::stop_string) turn.answered = engine.encode(turn.text, false).value();
    if (turn.finish == cosrt::Finish::stop && !turn.answered.empty()) turn.answered.pop_back();
    turn.tokens.insert(turn.tokens.end(), turn.answered.begin(), turn.answered.end());
}

}  // namespace

Turn Sequences::begin(TRITONBACKEND_Request* request, Asked& asked, const cosrt::Engine& engine) {
    Turn turn;
    const std::string id = id_of(request);
    if (id.empty()) return turn;
    std::uint32_t flags = 0;
    check(TRITONBACKEND_RequestFlags(request, &flags));
    turn.last = flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_END;
    const bool first = flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_START;
    if (const auto n = asked.body.find("n"); n != asked.body.end() && *n != 1) {
        throw wrong("n is not 1; a turn of a sequence has one answer");
    }

    const std::lock_guard lock(mutex_);
    forget_idle();
    const auto found = sequences_.find(id);
    const bool known = found != sequences_.end();
    if (known && found->second.busy) {
        throw Failure(TRITONSERVER_ERROR_UNAVAILABLE, "the last turn of the sequence is not answered yet");
    }
    if (!first && !known) {
        throw wrong("there is no such sequence: it has ended, was idle for too long, or began without the start flag");
    }
    if (!known && sequences_.size() >= most_sequences) {
        throw Failure(TRITONSERVER_ERROR_UNAVAILABLE, "there are too many sequences; end some of them");
    }
    if (!first && found->second.chat != asked.chat) {
        throw wrong("the turns of a sequence are all chats or all completions");
    }
    turn.chat = asked.chat;
    if (asked.chat) {
        turn.messages = first ? Json::array() : found->second.messages;
        if (!asked.body["messages"].is_array()) throw wrong("messages is not an array");
        for (const Json& message : asked.body["messages"]) turn.messages.push_back(message);
        asked.body["messages"] = turn.messages;
    } else {
        if (!first) turn.tokens = found->second.tokens;
        add_prompt(asked.body["prompt"], turn.tokens, engine);
        asked.body["prompt"] = turn.tokens;
    }
    Sequence& sequence = sequences_[id];
    sequence.busy = true, sequence.used = now();
    turn.id = id;
    return turn;
}

void Sequences::end(Turn& turn, bool answered, const cosrt::Engine* engine) {
    const std::string id = std::exchange(turn.id, "");
    if (id.empty()) return;
    const std::lock_guard lock(mutex_);
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) return;
    Sequence& sequence = found->second;
    sequence.busy = false, sequence.used = now();
    if (answered && turn.last) {
        sequences_.erase(found);
    } else if (answered) {
        sequence.chat = turn.chat;
        if (turn.chat) {
            turn.messages.push_back({{"role", "assistant"}, {"content", turn.text}});
        } else {
            add_answer(turn, *engine);
        }
        sequence.messages = std::move(turn.messages), sequence.tokens = std::move(turn.tokens);
    } else if (sequence.messages.empty() && sequence.tokens.empty()) {
        sequences_.erase(found);  // its first turn was not answered
    }
}

void Sequences::forget_idle() {
    const std::uint64_t time = now();
    for (auto it = sequences_.begin(); it != sequences_.end();) {
        const bool idle = !it->second.busy && time - it->second.used > idle_ns_;
        it = idle ? sequences_.erase(it) : std::next(it);
    }
}

}  // namespace triton
