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
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return has_news(); });
        if (text_.empty() && error_) return *error_;
        const bool waited = is_full();
        // An error comes behind what was decoded before it.
        Piece piece{status_, std::exchange(text_, {})};
        lock.unlock();
        if (waited) wake_driver();
        return piece;
    }

    /// Let the request end soon. From any thread.
    void cancel() {
        end();
        wake_driver();
    }

private:
    friend class Driver;

    /// What a driver and its requests share, so that a request may outlive its driver.
    struct Shared {
        std::mutex mutex;  // guards the list of the driver's requests; locked before that of a request
        std::condition_variable changed;  // there may be a request to step
    };

    /// A request with more text than this that nobody has taken is not decoded until it is taken: a client that reads
    /// slowly costs no more memory.
    static constexpr std::size_t UNSENT_BYTES = 256 << 10;

    DrivenRequest(Request request, std::shared_ptr<Shared> shared)
        : request_(std::move(request)), shared_(std::move(shared)) {}

    bool is_full() const { return text_.size() > UNSENT_BYTES; }
    bool has_news() const { return !text_.empty() || error_ || !status_.open(); }

    bool has_ended() {
        const std::lock_guard lock(mutex_);
        return error_ || !status_.open();
    }

    bool is_due() {
        const std::lock_guard lock(mutex_);
        return cancelled_ || !is_full();
    }

    void end() {
        static_cast<void>(request_.cancel());
        const std::lock_guard lock(mutex_);
        cancelled_ = true;
    }

    void wake_driver() {
        { const std::lock_guard lock(shared_->mutex); }  // the driver waits now, or looks again before it waits
        shared_->changed.notify_one();
    }

    /// Take what a step has brought. Returns whether there is something to send.
    bool tell(const Result<RequestStatus>& status) {
        auto text = request_.answer();
        const std::lock_guard lock(mutex_);
        if (!status) error_ = status.error();
        else if (!text) error_ = text.error();
        else status_ = status.value(), text_ += text.value();
        return has_news();
    }

    Request request_;  // of the driver's thread, but for cancel()
    const std::shared_ptr<Shared> shared_;
    std::mutex mutex_;  // guards the next four members
    RequestStatus status_;
    std::string text_;
    std::optional<Error> error_;
    bool cancelled_ = false;
    std::condition_variable changed_;
};

/// Decodes requests on a thread of its own, all of them in common passes. So passes wait for no thread of a server, and
/// `auto` plans for all requests together. Other threads take what is to be sent when they come to it. A request with
/// more than 256 KiB that nobody has taken waits until they are taken.
///
/// A second thread wakes those who wait for text. Waking one takes about 5 µs, and a pass on a GPU about 20 µs for each
/// request, so passes must not wait for that.
class Driver {
public:
    Driver() : thread_([this] { run(); }) {}

    /// Cancels the requests that are left, and waits until they have ended.
    ~Driver() {
        {
            const std::lock_guard lock(shared_->mutex);
            stops_ = true;
            for (const auto& driven : open_) driven->end();
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
    using List = std::vector<std::shared_ptr<DrivenRequest>>;

    /// The thread that wakes those who wait for requests.
    class Waker {
    public:
        Waker() : thread_([this] { run(); }) {}

        /// Wakes those that are left, and ends the thread.
        ~Waker() {
            {
                const std::lock_guard lock(mutex_);
                ends_ = true;
            }
            changed_.notify_one();
            thread_.join();
        }

        Waker(const Waker&) = delete;
        Waker& operator=(const Waker&) = delete;

        /// Wake those who wait for these requests soon, or at once if the thread is behind. Empties the list.
        void wake(List& told) {
            if (told.empty()) return;
            bool is_behind;
            {
                const std::lock_guard lock(mutex_);
                is_behind = !told_.empty();
                if (!is_behind) told_.swap(told);
            }
            if (is_behind) notify(told);
            else changed_.notify_one();
        }

    private:
        void run() {
            List told;
            std::unique_lock lock(mutex_);
            while (true) {
                changed_.wait(lock, [this] { return !told_.empty() || ends_; });
                if (told_.empty()) return;
                told.swap(told_);
                lock.unlock();
                notify(told);
                lock.lock();
            }
        }

        static void notify(List& told) {
            for (const auto& driven : told) driven->changed_.notify_one();
            told.clear();
        }

        std::mutex mutex_;  // guards the next two members
        List told_;
        bool ends_ = false;
        std::condition_variable changed_;
        std::thread thread_;  // the last member: it uses all others
    };

    void run() {
        List due, told;
        std::vector<Request*> requests;
        while (wait_for(due)) {
            requests.clear();
            for (const auto& driven : due) requests.push_back(&driven->request_);
            const auto statuses = step_requests(requests);
            for (std::size_t i = 0; i < due.size(); i++) {
                if (due[i]->tell(statuses[i])) told.push_back(due[i]);
            }
            waker_.wake(told);
        }
    }

    /// The requests to step. There are none once the driver stops and all requests have ended.
    bool wait_for(List& due) {
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
    List open_;  // the mutex of the shared part guards this and the next member
    bool stops_ = false;
    Waker waker_;
    std::thread thread_;  // the last member: it uses all others
};

}  // namespace cosrt

#endif  // COSRT_DRIVER_HPP
