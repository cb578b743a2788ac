// The body of a request from the inputs and parameters of Triton.

#include "body.hpp"

#include <algorithm>
#include <cmath>

namespace triton {

const std::vector<InputKind>& input_kinds() {
    static const std::vector<InputKind> kinds{
        {"text_input", "TYPE_STRING", Form::scalar},        {"tokens", "TYPE_INT32", Form::list},
        {"messages", "TYPE_STRING", Form::json},            {"request", "TYPE_STRING", Form::json},
        {"max_completion_tokens", "TYPE_INT32", Form::scalar}, {"add_generation_prompt", "TYPE_BOOL", Form::scalar},
        {"tool_choice", "TYPE_STRING", Form::scalar},       {"top_logprobs", "TYPE_INT32", Form::scalar},
        {"best_of", "TYPE_INT32", Form::scalar},            {"echo", "TYPE_BOOL", Form::scalar},
        {"suffix", "TYPE_STRING", Form::scalar},
        {"stream", "TYPE_BOOL", Form::scalar},              {"max_tokens", "TYPE_INT32", Form::scalar},
        {"min_tokens", "TYPE_INT32", Form::scalar},         {"n", "TYPE_INT32", Form::scalar},
        {"seed", "TYPE_INT64", Form::scalar},               {"stop", "TYPE_STRING", Form::list},
        {"stop_token_ids", "TYPE_INT32", Form::list},       {"ignore_eos", "TYPE_BOOL", Form::scalar},
        {"skip_special_tokens", "TYPE_BOOL", Form::scalar}, {"temperature", "TYPE_FP32", Form::scalar},
        {"top_k", "TYPE_INT32", Form::scalar},              {"top_p", "TYPE_FP32", Form::scalar},
        {"min_p", "TYPE_FP32", Form::scalar},               {"typical_p", "TYPE_FP32", Form::scalar},
        {"xtc_probability", "TYPE_FP32", Form::scalar},     {"xtc_threshold", "TYPE_FP32", Form::scalar},
        {"repetition_penalty", "TYPE_FP32", Form::scalar},  {"presence_penalty", "TYPE_FP32", Form::scalar},
        {"frequency_penalty", "TYPE_FP32", Form::scalar},   {"dry_multiplier", "TYPE_FP32", Form::scalar},
        {"dry_base", "TYPE_FP32", Form::scalar},            {"dry_allowed_length", "TYPE_INT32", Form::scalar},
        {"logit_bias", "TYPE_STRING", Form::json},          {"logprobs", "TYPE_INT32", Form::scalar},
        {"response_format", "TYPE_STRING", Form::json},     {"structured_outputs", "TYPE_STRING", Form::json},
        {"tools", "TYPE_STRING", Form::json},               {"documents", "TYPE_STRING", Form::json},
        {"chat_template_kwargs", "TYPE_STRING", Form::json}, {"cos", "TYPE_STRING", Form::json}};
    return kinds;
}

namespace {

const InputKind* kind_of(const std::string& name) {
    const auto& kinds = input_kinds();
    const auto found = std::find_if(kinds.begin(), kinds.end(), [&](const auto& kind) { return kind.name == name; });
    return found == kinds.end() ? nullptr : &*found;
}

/// How deep JSON may be. Deeper values would overflow the stack, and chat templates and grammars refuse them too.
constexpr int most_deep = 128;

Json parsed(const std::string& name, const std::string& text) {
    const auto shallow = [&](int depth, Json::parse_event_t, Json&) {
        if (depth > most_deep) throw wrong(name + " is nested too deep");
        return true;
    };
    try {
        return Json::parse(text, shallow);
    } catch (const Json::exception& error) {
        throw wrong(name + " is not JSON: " + error.what());
    }
}

/// Adds a value to what was read so far.
void put(Json& read, const InputKind& kind, Json value) {
    const std::string name = kind.name;
    if (kind.form == Form::json && value.is_string()) value = parsed(name, value.get<std::string>());
    if (kind.form == Form::list && !value.is_array()) {
        // A parameter cannot be an array, so a list may be a text of JSON there.
        const std::string text = value.is_string() ? value.get<std::string>() : "";
        const bool json = !text.empty() && text[0] == '[' && Json::accept(text);
        value = json ? parsed(name, text) : Json::array({value});
    }
    if (!read.emplace(name, std::move(value)).second) throw wrong(name + " is given twice; give it once");
}

template <typename T>
Json numbers(const std::string& name, const std::string& bytes) {
    Json values = Json::array();
    for (std::size_t at = 0; at + sizeof(T) <= bytes.size(); at += sizeof(T)) {
        T value;
        std::memcpy(&value, bytes.data() + at, sizeof value);
        // JSON has no such numbers, and null would count as missing.
        if (!std::isfinite(static_cast<double>(value))) throw wrong(name + " is infinite, or no number");
        values.push_back(value);
    }
    return values;
}

Json texts(const std::string& name, const std::string& bytes) {
    Json values = Json::array();
    for (std::size_t at = 0; at < bytes.size();) {
        std::uint32_t length = 0;
        if (bytes.size() - at >= sizeof length) std::memcpy(&length, bytes.data() + at, sizeof length);
        at += sizeof length;
        if (at > bytes.size() || bytes.size() - at < length) throw wrong(name + " has a damaged text");
        values.push_back(bytes.substr(at, length));
        at += length;
    }
    return values;
}

Json values_of(const std::string& name, TRITONSERVER_DataType type, const std::string& bytes) {
    switch (type) {
        case TRITONSERVER_TYPE_BOOL: {
            Json values = Json::array();
            for (const char byte : bytes) values.push_back(byte != 0);
            return values;
        }
        case TRITONSERVER_TYPE_INT32: return numbers<std::int32_t>(name, bytes);
        case TRITONSERVER_TYPE_INT64: return numbers<std::int64_t>(name, bytes);
        case TRITONSERVER_TYPE_UINT32: return numbers<std::uint32_t>(name, bytes);
        case TRITONSERVER_TYPE_UINT64: return numbers<std::uint64_t>(name, bytes);
        case TRITONSERVER_TYPE_FP32: return numbers<float>(name, bytes);
        case TRITONSERVER_TYPE_FP64: return numbers<double>(name, bytes);
        case TRITONSERVER_TYPE_BYTES: return texts(name, bytes);
        default: throw wrong(name + " has a type that this backend does not read; see its configuration");
    }
}

void read_input(TRITONBACKEND_Input* input, Json& read) {
    const char* name = nullptr;
    TRITONSERVER_DataType type{};
    std::uint32_t buffers = 0;
    check(TRITONBACKEND_InputProperties(input, &name, &type, nullptr, nullptr, nullptr, &buffers));
    const InputKind* kind = kind_of(name);
    if (!kind) throw wrong(std::string("there is no input ") + name);
    std::string bytes;
    for (std::uint32_t i = 0; i < buffers; i++) {
        const void* buffer = nullptr;
        std::uint64_t size = 0;
        TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
        std::int64_t memory_id = 0;
        check(TRITONBACKEND_InputBuffer(input, i, &buffer, &size, &memory, &memory_id));
        if (memory == TRITONSERVER_MEMORY_GPU) throw wrong(std::string(name) + " is in memory of a GPU");
        bytes.append(static_cast<const char*>(buffer), size);
    }
    Json values = values_of(name, type, bytes);
    if (kind->form != Form::list) {
        const std::size_t size = values.size();
        if (size != 1) throw wrong(std::string(name) + " has " + std::to_string(size) + " values, not 1");
        values = Json(values[0]);
    }
    put(read, *kind, std::move(values));
}

void read_parameter(TRITONBACKEND_Request* request, std::uint32_t index, Json& read) {
    const char* name = nullptr;
    TRITONSERVER_ParameterType type{};
    const void* value = nullptr;
    check(TRITONBACKEND_RequestParameter(request, index, &name, &type, &value));
    const InputKind* kind = kind_of(name);
    if (!kind) return;  // of Triton itself, or of a proxy
    switch (type) {
        case TRITONSERVER_PARAMETER_STRING: put(read, *kind, static_cast<const char*>(value)); break;
        case TRITONSERVER_PARAMETER_INT: put(read, *kind, *static_cast<const std::int64_t*>(value)); break;
        case TRITONSERVER_PARAMETER_BOOL: put(read, *kind, *static_cast<const bool*>(value)); break;
        case TRITONSERVER_PARAMETER_DOUBLE: put(read, *kind, *static_cast<const double*>(value)); break;
        default: throw wrong(std::string(name) + " is a parameter of a type that this backend does not read");
    }
}

/// Takes a member out of what was read.
Json take(Json& read, const char* name) {
    const auto found = read.find(name);
    if (found == read.end()) return nullptr;
    Json value = std::move(*found);
    read.erase(found);
    return value;
}

}  // namespace

std::string endpoint_of(TRITONBACKEND_Request* request) {
    std::uint32_t count = 0;
    check(TRITONBACKEND_RequestParameterCount(request, &count));
    for (std::uint32_t i = 0; i < count; i++) {
        const char* name = nullptr;
        TRITONSERVER_ParameterType type{};
        const void* value = nullptr;
        check(TRITONBACKEND_RequestParameter(request, i, &name, &type, &value));
        if (name != std::string_view("endpoint")) continue;
        const bool is_text = type == TRITONSERVER_PARAMETER_STRING;
        const std::string endpoint = is_text ? static_cast<const char*>(value) : "";
        if (endpoint == "chat" || endpoint == "completion") return endpoint;
        throw wrong("endpoint is no endpoint; let it be \"chat\" or \"completion\"");
    }
    return "";
}

Asked read_body(TRITONBACKEND_Request* request, const std::string& endpoint) {
    Json read = Json::object();
    std::uint32_t count = 0;
    check(TRITONBACKEND_RequestInputCount(request, &count));
    for (std::uint32_t i = 0; i < count; i++) {
        TRITONBACKEND_Input* input = nullptr;
        check(TRITONBACKEND_RequestInputByIndex(request, i, &input));
        read_input(input, read);
    }
    check(TRITONBACKEND_RequestParameterCount(request, &count));
    for (std::uint32_t i = 0; i < count; i++) read_parameter(request, i, read);

    Asked asked;
    asked.body = take(read, "request");
    if (asked.body.is_null()) asked.body = Json::object();
    if (!asked.body.is_object()) throw wrong("request is not a JSON object");
    for (auto member = asked.body.begin(); member != asked.body.end();)  // null is as good as missing
        member = member->is_null() ? asked.body.erase(member) : std::next(member);
    for (const char* name : {"text_input", "tokens"}) {
        Json prompt = take(read, name);
        if (prompt.is_null()) continue;
        if (!asked.body.emplace("prompt", std::move(prompt)).second) {
            throw wrong("there are several prompts; give one of text_input, tokens, messages and request");
        }
    }
    for (auto member = read.begin(); member != read.end(); ++member) {
        if (!asked.body.emplace(member.key(), std::move(member.value())).second) {
            throw wrong(member.key() + " is in the request and beside it; give it once");
        }
    }
    asked.chat = endpoint.empty() ? asked.body.contains("messages") : endpoint == "chat";
    if (endpoint.empty() && asked.chat == asked.body.contains("prompt")) {
        throw wrong(asked.chat ? "there are several prompts; give one of text_input, tokens, messages and request"
                               : "there is no prompt; give text_input, tokens, messages or request");
    }
    // Completions have a number here, and chats two members.
    if (const auto logprobs = asked.body.find("logprobs"); asked.chat && logprobs != asked.body.end()) {
        if (logprobs->is_number()) {
            asked.body["top_logprobs"] = *logprobs;
            asked.body["logprobs"] = true;
        }
    }
    return asked;
}

}  // namespace triton
