/* Spans, errors and results: what the calls of cos.hpp take and give. cos.hpp includes it. */

#ifndef COS_RESULT_HPP
#define COS_RESULT_HPP

#include <cassert>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <exception>
#include <initializer_list>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

#include "cos.h"

namespace cosrt {

/// A token: 0 to Engine::vocab_size() - 1.
using Token = std::int32_t;

/// A view of consecutive elements that something else owns. Made from anything with data() and size(), from arrays, and
/// from braces. In C++20, converts to and from std::span.
template <typename T>
class Span {
    template <typename C>
    using DataOf = decltype(std::declval<C&>().data());
    template <typename C>
    using Fits = std::enable_if_t<std::is_convertible_v<std::remove_pointer_t<DataOf<C>> (*)[], T (*)[]> &&
                                  std::is_convertible_v<decltype(std::declval<C&>().size()), std::size_t>>;

public:
    using value_type = std::remove_cv_t<T>;

    constexpr Span() noexcept = default;
    constexpr Span(T* data, std::size_t size) noexcept : data_(data), size_(size) {}
    template <std::size_t N>
    constexpr Span(T (&array)[N]) noexcept : data_(array), size_(N) {}
    template <typename C, typename = Fits<C>>
    constexpr Span(C& container) noexcept : data_(container.data()), size_(container.size()) {}
    /// A view of a temporary, valid during the call.
    template <typename C, typename = Fits<const C>,
              typename = std::enable_if_t<std::is_const_v<T> && !std::is_lvalue_reference_v<C>>>
    constexpr Span(const C&& container) noexcept : data_(container.data()), size_(container.size()) {}
    /// A view of `{1, 2, 3}`, valid during the call.
    template <typename U = T, typename = std::enable_if_t<std::is_const_v<U>>>
    constexpr Span(const std::initializer_list<value_type>& list) noexcept : Span(list.begin(), list.size()) {}

    constexpr T* data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr T& operator[](std::size_t index) const { return assert(index < size_), data_[index]; }
    constexpr T* begin() const noexcept { return data_; }
    constexpr T* end() const noexcept { return data_ + size_; }

private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

/// Rows of equal length, which something else owns: one row for each token of a step.
template <typename T>
class Table {
public:
    Table() = default;
    Table(const T* data, std::size_t rows, std::size_t columns) noexcept
        : data_(data), rows_(data ? rows : 0), columns_(columns) {}

    std::size_t size() const noexcept { return rows_; }  ///< Number of rows.
    bool empty() const noexcept { return rows_ == 0; }
    Span<const T> operator[](std::size_t row) const {
        return assert(row < rows_), Span<const T>(data_ + row * columns_, columns_);
    }

private:
    const T* data_ = nullptr;
    std::size_t rows_ = 0;
    std::size_t columns_ = 0;
};

/// The code of an error. The values are those of COS_ERROR_* and never change. A later library may have more of them.
enum class Code : std::int32_t {
    invalid_argument = COS_ERROR_INVALID_ARGUMENT,  ///< An argument is missing, out of range or of the wrong size.
    config = COS_ERROR_CONFIG,                      ///< The engine configuration is wrong.
    model = COS_ERROR_MODEL,      ///< A model cannot be loaded, is not a language model, or does not fit the others.
    runtime = COS_ERROR_RUNTIME,  ///< ONNX Runtime is missing, too old, or failed.
    context_full = COS_ERROR_CONTEXT_FULL,  ///< The tokens do not fit into the context of the models.
    numeric = COS_ERROR_NUMERIC,  ///< Logits or scores were NaN or plus infinity, or minus infinity for every token.
    busy = COS_ERROR_BUSY,        ///< Another thread is using the session or the text stream.
    unsupported = COS_ERROR_UNSUPPORTED,            ///< The request is valid, but this version does not support it.
    buffer_too_small = COS_ERROR_BUFFER_TOO_SMALL,  ///< The buffer is too small. The message says how much is needed.
    poisoned = COS_ERROR_POISONED,  ///< An earlier call on the session failed with `internal`. Destroy the session.
    internal = COS_ERROR_INTERNAL,  ///< A bug of the library. The process is unharmed.
    callback = COS_ERROR_CALLBACK,  ///< A function of the caller failed. Error::cause has the exception that it threw.
    no_memory = COS_ERROR_NO_MEMORY,  ///< Other sessions' caches take all memory that they may. Try again later.
    not_found = COS_ERROR_NOT_FOUND,  ///< A request names a model that is not there.
};

/// An error.
struct Error {
    Code code;
    std::string message;         ///< One sentence for people: what is wrong, and how to mend it where that is known.
    std::exception_ptr cause{};  ///< The exception that a function of the caller threw, if that is the reason.
    std::int32_t status = 500;   ///< The status of HTTP with which a server answers a request that met this error.
    std::string json{};          ///< The body of that answer. Empty for an error of these headers themselves.
};

/// An Error as an exception, which Result::value() throws.
class Exception : public std::runtime_error {
public:
    explicit Exception(Error error)
        : std::runtime_error(error.message), error_(std::make_shared<Error>(std::move(error))) {}
    Code code() const noexcept { return error_->code; }
    const Error& error() const noexcept { return *error_; }

private:
    std::shared_ptr<const Error> error_;  // shared, because copying an exception must not throw
};

namespace detail {

[[noreturn]] inline void raise(const Error& error) {
#ifdef __cpp_exceptions
    if (error.cause) std::rethrow_exception(error.cause);
    throw Exception(error);
#else
    static_cast<void>(error);
    std::abort();
#endif
}

}  // namespace detail

/// A value or an Error, similar to std::expected of C++23.
template <typename T>
class [[nodiscard]] Result {
public:
    Result(T value) : either_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : either_(std::in_place_index<1>, std::move(error)) {}

    bool has_value() const noexcept { return either_.index() == 0; }
    explicit operator bool() const noexcept { return has_value(); }

    /// The value. For an error, throws an Exception, or the exception of the caller's function if that is the reason.
    T& value() & { return checked(); }
    const T& value() const& { return const_cast<Result*>(this)->checked(); }
    T value() && { return std::move(checked()); }

    /// The value. There must be one.
    T& operator*() & { return *found(); }
    const T& operator*() const& { return *const_cast<Result*>(this)->found(); }
    T operator*() && { return std::move(*found()); }
    T* operator->() { return found(); }
    const T* operator->() const { return const_cast<Result*>(this)->found(); }

    /// The error. There must be one.
    const Error& error() const { return assert(!has_value()), *std::get_if<1>(&either_); }

private:
    T& checked() {
        if (!has_value()) detail::raise(error());
        return *found();
    }
    T* found() { return assert(has_value()), std::get_if<0>(&either_); }

    std::variant<T, Error> either_;
};

/// Success or an Error.
template <>
class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}

    bool has_value() const noexcept { return !error_; }
    explicit operator bool() const noexcept { return has_value(); }
    void value() const { error_ ? detail::raise(*error_) : void(); }
    const Error& error() const { return assert(error_), *error_; }

private:
    std::optional<Error> error_;
};

}  // namespace cosrt

#endif  // COS_RESULT_HPP
