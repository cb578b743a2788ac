/* A thread that decodes the requests of a server in common passes. */

#ifndef COSRT_DRIVER_HPP
#define COSRT_DRIVER_HPP

#include <algorithm>
#include <condition_variable>
#include <cstddef>
#include <iterator>
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
    /// Wait until there is something to send, or the request has ended. For one thread at a time. Errors: those of
    /// Request::step().
    Result<Piece> next() {
        std::unique_lock lock(shared_->mutex);
        changed_.wait(lock, [this] { return !text_.empty() || has_ended(); });
        if (text_.empty() && error_) return *error_;
        const bool waited = is_full();
        // An error comes behind what was decoded before it.
        Piece piece{status_, std::exchange(text_, {})};
        lock.unlock();
        if (waited) shared_->changed.notify_one();
        return piece;
    }

    /// Let the request end soon. From any thread.
    void cancel() {
        static_cast<void>(request_.cancel());
        {
            const std::lock_guard lock(shared_->mutex);
            cancelled_ = true;
        }
        shared_->changed.notify_one();
    }

private:
    friend class Driver;

    /// What a driver and its requests share, so that a request may outlive its driver.
    struct Shared {
        std::mutex mutex;  // guards the requests of the driver, and what they have to send
        std::condition_variable changed;  // there may be a request to step
    };

    /// A request with more text than this that nobody has taken is not decoded until it is taken: a client that reads
    /// slowly costs no more memory.
    static constexpr std::size_t UNSENT_BYTES = 256 << 10;

    DrivenRequest(Request request, std::shared_ptr<Shared> shared)
        : request_(std::move(request)), shared_(std::move(shared)) {}

    bool is_full() const { return text_.size() > UNSENT_BYTES; }
    bool has_ended() const { return error_ || !status_.open(); }
    bool is_due() const { return cancelled_ || !is_full(); }

    /// What a step has brought.
    void tell(const Result<RequestStatus>& status) {
        auto text = request_.answer();
        {
            const std::lock_guard lock(shared_->mutex);
            if (!status) error_ = status.error();
            else if (!text) error_ = text.error();
            else status_ = status.value(), text_ += text.value();
            if (text_.empty() && !has_ended()) return;
        }
        changed_.notify_all();
    }

    Request request_;  // of the driver's thread, but for cancel()
    const std::shared_ptr<Shared> shared_;  // its mutex guards the next four members
    RequestStatus status_;
    std::string text_;
    std::optional<Error> error_;
    bool cancelled_ = false;
    std::condition_variable changed_;
};

/// Decodes requests on a thread of its own, all of them in common passes. So passes wait for no thread of a server, and
/// `auto` plans for all requests together. Other threads take what is to be sent when they come to it. A request with
/// more than 256 KiB that nobody has taken waits until they are taken.
class Driver {
public:
    Driver() : thread_([this] { run(); }) {}

    /// Cancels the requests that are left, and waits until they have ended.
    ~Driver() {
        {
            const std::lock_guard lock(shared_->mutex);
            stops_ = true;
            for (const auto& driven : open_) driven->cancelled_ = true, static_cast<void>(driven->request_.cancel());
        }
        shared_->changed.notify_one();
        thread_.join();
    }

    Driver(const Driver&) = delete;
    Driver& operator=(const Driver&) = delete;

    /// Begin to decode a request. From any thread.
    std::shared_ptr<DrivenRequest> start(Request request) {
        const std::shared_ptr<DrivenRequest> driven(new DrivenRequest(std::move(request), shared_));
        {
            const std::lock_guard lock(shared_->mutex);
            open_.push_back(driven);
        }
        shared_->changed.notify_one();
        return driven;
    }

private:
    void run() {
        std::vector<std::shared_ptr<DrivenRequest>> due;
        std::vector<Request*> requests;
        while (wait_for(due)) {
            requests.clear();
            for (const auto& driven : due) requests.push_back(&driven->request_);
            const auto statuses = step_requests(requests);
            for (std::size_t i = 0; i < due.size(); i++) due[i]->tell(statuses[i]);
        }
    }

    /// The requests to step. There are none once the driver stops and all requests have ended.
    bool wait_for(std::vector<std::shared_ptr<DrivenRequest>>& due) {
        std::unique_lock lock(shared_->mutex);
        const auto has_ended = [](const auto& driven) { return driven->has_ended(); };
        open_.erase(std::remove_if(open_.begin(), open_.end(), has_ended), open_.end());
        due.clear();
        shared_->changed.wait(lock, [&] {
            const auto is_due = [](const auto& driven) { return driven->is_due(); };
            std::copy_if(open_.begin(), open_.end(), std::back_inserter(due), is_due);
            return !due.empty() || (stops_ && open_.empty());
        });
        return !due.empty();
    }

    const std::shared_ptr<DrivenRequest::Shared> shared_ = std::make_shared<DrivenRequest::Shared>();
    std::vector<std::shared_ptr<DrivenRequest>> open_;  // the mutex guards this and the next member
    bool stops_ = false;
    std::thread thread_;  // the last member: it uses all others
};

}  // namespace cosrt

#endif  // COSRT_DRIVER_HPP
