/* A thread that decodes the requests of a server in common passes. */

#ifndef COSRT_DRIVER_HPP
#define COSRT_DRIVER_HPP

#include <algorithm>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "cos.hpp"

namespace cosrt {

/// What a driven request has to send.
struct Piece {
    RequestStatus status;
    std::string text;  ///< As Request::answer() has it, of all steps since the last piece.
};

/// A request that a Driver decodes.
class DrivenRequest {
public:
    explicit DrivenRequest(Request request) : request_(std::move(request)) {}

    /// Wait until there is something to send, or the request has ended. For one thread at a time. Errors: those of
    /// Request::step().
    Result<Piece> next() {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return !text_.empty() || error_ || !status_.open(); });
        if (text_.empty() && error_) return *error_;
        // An error comes behind what was decoded before it.
        return Piece{status_, std::exchange(text_, {})};
    }

    /// Let the request end soon. From any thread.
    void cancel() { static_cast<void>(request_.cancel()); }

private:
    friend class Driver;

    /// What a step has brought.
    void tell(const Result<RequestStatus>& status) {
        auto text = request_.answer();
        {
            const std::lock_guard lock(mutex_);
            if (!status) error_ = status.error();
            else if (!text) error_ = text.error();
            else status_ = status.value(), text_ += text.value();
            ended_ = error_ || !status_.open();
            if (text_.empty() && !ended_) return;
        }
        changed_.notify_all();
    }

    Request request_;  // of the driver's thread, but for cancel()
    bool ended_ = false;  // of the driver's thread
    std::mutex mutex_;  // guards the next three members
    RequestStatus status_;
    std::string text_;
    std::optional<Error> error_;
    std::condition_variable changed_;
};

/// Decodes requests on a thread of its own, all of them in common passes. So passes wait for no thread of a server, and
/// `auto` plans for all requests together. Other threads take what is to be sent when they come to it.
class Driver {
public:
    Driver() : thread_([this] { run(); }) {}

    /// Cancels the requests that are left, and waits until they have ended.
    ~Driver() {
        {
            const std::lock_guard lock(mutex_);
            stops_ = true;
            for (const auto& driven : open_) driven->cancel();
        }
        changed_.notify_one();
        thread_.join();
    }

    Driver(const Driver&) = delete;
    Driver& operator=(const Driver&) = delete;

    /// Begin to decode a request. From any thread.
    std::shared_ptr<DrivenRequest> start(Request request) {
        auto driven = std::make_shared<DrivenRequest>(std::move(request));
        {
            const std::lock_guard lock(mutex_);
            open_.push_back(driven);
        }
        changed_.notify_one();
        return driven;
    }

private:
    void run() {
        std::vector<std::shared_ptr<DrivenRequest>> driven;
        std::vector<Request*> requests;
        for (;;) {
            {
                std::unique_lock lock(mutex_);
                const auto has_ended = [](const auto& each) { return each->ended_; };
                open_.erase(std::remove_if(open_.begin(), open_.end(), has_ended), open_.end());
                changed_.wait(lock, [this] { return stops_ || !open_.empty(); });
                if (open_.empty()) return;
                driven = open_;
            }
            requests.clear();
            for (const auto& each : driven) requests.push_back(&each->request_);
            const auto statuses = step_requests(requests);
            for (std::size_t i = 0; i < driven.size(); i++) driven[i]->tell(statuses[i]);
        }
    }

    std::mutex mutex_;  // guards the next two members
    std::vector<std::shared_ptr<DrivenRequest>> open_;
    bool stops_ = false;
    std::condition_variable changed_;
    std::thread thread_;  // the last member: it uses all others
};

}  // namespace cosrt

#endif  // COSRT_DRIVER_HPP
