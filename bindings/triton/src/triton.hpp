/* Triton's errors, requests and responses as C++. */

#ifndef COS_TRITON_HPP
#define COS_TRITON_HPP

#include <cstdint>
#include <cstring>
#include <exception>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "cos.hpp"
#include "triton_api.h"

namespace triton {

/// An error of Triton, or for it.
class Failure : public std::runtime_error {
public:
    Failure(TRITONSERVER_Error_Code code, const std::string& message) : std::runtime_error(message), code_(code) {}
    /// An error whose answer the library knows.
    Failure(TRITONSERVER_Error_Code code, const cosrt::Error& error)
        : std::runtime_error(error.message), code_(code), status_(error.status), json_(error.json) {}
    TRITONSERVER_Error_Code code() const noexcept { return code_; }
    /// The status and the body with which a server of OpenAI's protocol answers.
    std::int32_t status() const noexcept;
    std::string json() const;

private:
    TRITONSERVER_Error_Code code_;
    std::int32_t status_ = 0;
    std::string json_;
};

inline Failure wrong(const std::string& message) { return Failure(TRITONSERVER_ERROR_INVALID_ARG, message); }

/// Throws an error of Triton, and frees it.
inline void check(TRITONSERVER_Error* error) {
    if (!error) return;
    const Failure failure(TRITONSERVER_ErrorCode(error), TRITONSERVER_ErrorMessage(error));
    TRITONSERVER_ErrorDelete(error);
    throw failure;
}

/// Frees an error that nobody can act on.
inline void ignore(TRITONSERVER_Error* error) noexcept {
    if (error) TRITONSERVER_ErrorDelete(error);
}

inline void log(TRITONSERVER_LogLevel level, const std::string& message) noexcept {
    ignore(TRITONSERVER_LogMessage(level, __FILE__, __LINE__, ("cos: " + message).c_str()));
}

/// The code of Triton for an error of the library.
inline TRITONSERVER_Error_Code code_of(cosrt::Code code) {
    using cosrt::Code;
    switch (code) {
        case Code::invalid_argument:
        case Code::config:
        case Code::context_full: return TRITONSERVER_ERROR_INVALID_ARG;
        case Code::unsupported: return TRITONSERVER_ERROR_UNSUPPORTED;
        case Code::not_found: return TRITONSERVER_ERROR_NOT_FOUND;
        case Code::no_memory: return TRITONSERVER_ERROR_UNAVAILABLE;
        default: return TRITONSERVER_ERROR_INTERNAL;
    }
}

/// The exception that is being handled, as a failure. Triton must see no exception.
inline Failure current_failure() {
    try {
        throw;
    } catch (const Failure& failure) {
        return failure;
    } catch (const cosrt::Exception& error) {
        return Failure(code_of(error.code()), error.error());
    } catch (const std::exception& error) {
        return Failure(TRITONSERVER_ERROR_INTERNAL, error.what());
    } catch (...) {
        return Failure(TRITONSERVER_ERROR_INTERNAL, "an exception of an unknown type");
    }
}

inline TRITONSERVER_Error* error_of(const Failure& failure) {
    return TRITONSERVER_ErrorNew(failure.code(), failure.what());
}

/// Runs the body of a function that Triton calls.
template <typename Body>
TRITONSERVER_Error* guarded(Body body) noexcept {
    try {
        body();
        return nullptr;
    } catch (...) {
        return error_of(current_failure());
    }
}

/// A request of Triton and where its responses go. Whatever happens, the last response has the final flag, and the
/// request is released.
class Exchange {
public:
    Exchange(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request);
    ~Exchange();
    Exchange(const Exchange&) = delete;
    Exchange& operator=(const Exchange&) = delete;

    TRITONBACKEND_Request* request() const noexcept { return request_; }
    TRITONBACKEND_ModelInstance* instance() const noexcept { return instance_; }
    bool cancelled() const noexcept;

    /// Begins a response, which send() sends.
    void begin();
    /// Adds an output to the response, unless the client asked for others only.
    template <typename T>
    void add(const char* name, TRITONSERVER_DataType type, const T* values, const std::vector<std::int64_t>& shape) {
        std::size_t count = 1;
        for (const std::int64_t dim : shape) count *= static_cast<std::size_t>(dim);
        add_bytes(name, type, values, count * sizeof(T), shape);
    }
    void add(const char* name, const std::vector<std::string>& texts);
    /// Adds what a server of OpenAI's protocol sends.
    void add_answer(std::int32_t status, std::string_view text);
    /// Sends the response; the last one ends the exchange.
    void send(bool last);
    /// Ends the exchange with an error, unless it has ended. Never throws.
    void fail(const Failure& failure) noexcept;

    /// Whether the request names an endpoint of OpenAI's protocol. The error of such a request is an answer.
    bool names_endpoint = false;
    /// When it began, when decoding began and ended; for Triton's statistics.
    std::uint64_t began, decoding = 0, decoded = 0;

private:
    void add_bytes(const char* name, TRITONSERVER_DataType type, const void* values, std::size_t bytes,
                   const std::vector<std::int64_t>& shape);
    bool wants(const char* output) const { return wanted_.empty() || wanted_.count(output); }
    void end(bool success) noexcept;

    TRITONBACKEND_ModelInstance* instance_;
    TRITONBACKEND_Request* request_;
    TRITONBACKEND_ResponseFactory* factory_ = nullptr;
    TRITONBACKEND_Response* response_ = nullptr;
    std::set<std::string> wanted_;  // all if empty
    bool ended_ = false;
};

/// Nanoseconds of the clock that Triton's statistics use.
std::uint64_t now() noexcept;

}  // namespace triton

#endif  // COS_TRITON_HPP
