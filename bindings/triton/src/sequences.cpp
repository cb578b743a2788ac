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

}  // namespace

Turn Sequences::begin(TRITONBACKEND_Request* request, Asked& asked, const cosrt::Engine& engine) {
    Turn turn;
    turn.id = id_of(request);
    if (turn.id.empty()) return turn;
    std::uint32_t flags = 0;
    check(TRITONBACKEND_RequestFlags(request, &flags));
    turn.last = flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_END;
    if (asked.body.value("n", 1) != 1) throw wrong("n is not 1; a turn of a sequence has one answer");

    const std::lock_guard lock(mutex_);
    forget_idle();
    const bool first = flags & TRITONSERVER_REQUEST_FLAG_SEQUENCE_START;
    const auto found = sequences_.find(turn.id);
    if (found != sequences_.end() && found->second.busy) {
        throw Failure(TRITONSERVER_ERROR_UNAVAILABLE, "the last turn of the sequence is not answered yet");
    }
    if (!first && found == sequences_.end()) {
        throw wrong("there is no such sequence: it has ended, was idle for too long, or began without the start flag");
    }
    const bool empty = first || found == sequences_.end();
    if (!empty && found->second.chat != asked.chat) {
        throw wrong("the turns of a sequence are all chats or all completions");
    }
    if (asked.chat) {
        turn.messages = empty ? Json::array() : found->second.messages;
        for (const Json& message : asked.body["messages"]) turn.messages.push_back(message);
        asked.body["messages"] = turn.messages;
    } else {
        if (!empty) turn.tokens = found->second.tokens;
        const Json& prompt = asked.body["prompt"];
        if (prompt.is_string()) {
            const auto more = engine.encode(prompt.get<std::string>(), turn.tokens.empty()).value();
            turn.tokens.insert(turn.tokens.end(), more.begin(), more.end());
        } else {
            for (const Json& token : prompt) turn.tokens.push_back(token.get<cosrt::Token>());
        }
        asked.body["prompt"] = turn.tokens;
    }
    Sequence& sequence = sequences_[turn.id];
    if (empty) sequence = Sequence();
    sequence.chat = asked.chat, sequence.busy = true, sequence.used = now();
    return turn;
}

void Sequences::end(Turn& turn, bool answered) {
    const std::string id = std::exchange(turn.id, "");
    if (id.empty()) return;
    const std::lock_guard lock(mutex_);
    const auto found = sequences_.find(id);
    if (found == sequences_.end()) return;
    Sequence& sequence = found->second;
    sequence.busy = false, sequence.used = now();
    const bool nothing = sequence.chat ? sequence.messages.empty() : sequence.tokens.empty();
    if (answered && !turn.last) {
        if (sequence.chat) turn.messages.push_back({{"role", "assistant"}, {"content", turn.text}});
        sequence.messages = std::move(turn.messages), sequence.tokens = std::move(turn.tokens);
    } else if (turn.last || nothing) {
        sequences_.erase(found);
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
