// Triton's requests and responses.

#include "triton.hpp"

#include <chrono>

#include "json.hpp"

namespace triton {

std::int32_t Failure::status() const noexcept {
    if (status_) return status_;
    switch (code_) {
        case TRITONSERVER_ERROR_INVALID_ARG:
        case TRITONSERVER_ERROR_UNSUPPORTED: return 400;
        case TRITONSERVER_ERROR_NOT_FOUND: return 404;
        case TRITONSERVER_ERROR_UNAVAILABLE: return 429;
        default: return 500;
    }
}

std::string Failure::json() const {
    if (!json_.empty()) return json_;
    using Json = nlohmann::ordered_json;
    const bool full = status() == 429;
    const char* const type = full ? "rate_limit_error" : status() < 500 ? "invalid_request_error" : "server_error";
    const Json code = full ? Json("rate_limit_exceeded") : Json();
    const Json error{{"message", what()}, {"type", type}, {"param", nullptr}, {"code", code}};
    return Json{{"error", error}}.dump(-1, ' ', false, Json::error_handler_t::replace);
}

std::uint64_t now() noexcept {
    const auto time = std::chrono::steady_clock::now().time_since_epoch();
    return static_cast<std::uint64_t>(std::chrono::duration_cast<std::chrono::nanoseconds>(time).count());
}

Exchange::Exchange(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request)
    : began(now()), instance_(instance), request_(request) {
    check(TRITONBACKEND_ResponseFactoryNew(&factory_, request));
    std::uint32_t count = 0;
    ignore(TRITONBACKEND_RequestOutputCount(request, &count));
    for (std::uint32_t i = 0; i < count; i++) {
        const char* name = nullptr;
        ignore(TRITONBACKEND_RequestOutputName(request, i, &name));
        if (name) wanted_.insert(name);
    }
}

Exchange::~Exchange() {
    fail(Failure(TRITONSERVER_ERROR_INTERNAL, "the request was given up; this is a bug of the backend"));
}

bool Exchange::cancelled() const noexcept {
    bool cancelled = false;
    ignore(TRITONBACKEND_ResponseFactoryIsCancelled(factory_, &cancelled));
    return cancelled;
}

void Exchange::begin() {
    check(TRITONBACKEND_ResponseNewFromFactory(&response_, factory_));
}

void Exchange::add(const char* name, const std::vector<std::string>& texts) {
    std::string bytes;
    for (const std::string& text : texts) {
        const auto length = static_cast<std::uint32_t>(text.size());
        bytes.append(reinterpret_cast<const char*>(&length), sizeof length).append(text);
    }
    add_bytes(name, TRITONSERVER_TYPE_BYTES, bytes.data(), bytes.size(), {static_cast<std::int64_t>(texts.size())});
}

void Exchange::add_answer(std::int32_t status, std::string_view text) {
    add("response", {std::string(text)});
    add("status", TRITONSERVER_TYPE_INT32, &status, {1});
}

void Exchange::add_bytes(const char* name, TRITONSERVER_DataType type, const void* values, std::size_t bytes,
                         const std::vector<std::int64_t>& shape) {
    if (!wants(name)) return;
    TRITONBACKEND_Output* output = nullptr;
    check(TRITONBACKEND_ResponseOutput(response_, &output, name, type, shape.data(),
                                       static_cast<std::uint32_t>(shape.size())));
    void* buffer = nullptr;
    TRITONSERVER_MemoryType memory = TRITONSERVER_MEMORY_CPU;
    std::int64_t memory_id = 0;
    check(TRITONBACKEND_OutputBuffer(output, &buffer, bytes, &memory, &memory_id));
    if (memory == TRITONSERVER_MEMORY_GPU) throw wrong("outputs are in memory of the CPU; ask for them there");
    if (bytes) std::memcpy(buffer, values, bytes);
}

void Exchange::send(bool last) {
    // From here on Triton owns the response.
    TRITONBACKEND_Response* const response = std::exchange(response_, nullptr);
    check(TRITONBACKEND_ResponseSend(response, last ? TRITONSERVER_RESPONSE_COMPLETE_FINAL : 0, nullptr));
    if (last) end(true);
}

void Exchange::fail(const Failure& failure) noexcept {
    if (ended_) return;
    if (response_) ignore(TRITONBACKEND_ResponseDelete(std::exchange(response_, nullptr)));
    TRITONSERVER_Error* error = nullptr;
    try {
        begin();
        if (!names_endpoint || !wants("response")) throw failure;
        add_answer(failure.status(), failure.json());
    } catch (...) {
        error = error_of(current_failure());
    }
    TRITONBACKEND_Response* const response = std::exchange(response_, nullptr);
    TRITONSERVER_Error* const failed =
        response ? TRITONBACKEND_ResponseSend(response, TRITONSERVER_RESPONSE_COMPLETE_FINAL, error) : nullptr;
    if (!response || failed) {
        ignore(TRITONBACKEND_ResponseFactorySendFlags(factory_, TRITONSERVER_RESPONSE_COMPLETE_FINAL));
    }
    ignore(failed), ignore(error);
    end(false);
}

void Exchange::end(bool success) noexcept {
    ended_ = true;
    const std::uint64_t end = now();
    const std::uint64_t from = decoding ? decoding : end, to = decoded ? decoded : end;
    ignore(TRITONBACKEND_ModelInstanceReportStatistics(instance_, request_, success, began, from, to, end));
    if (factory_) ignore(TRITONBACKEND_ResponseFactoryDelete(factory_));
    ignore(TRITONBACKEND_RequestRelease(request_, TRITONSERVER_REQUEST_RELEASE_ALL));
}

}  // namespace triton
