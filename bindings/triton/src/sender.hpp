/* The thread that sends the responses of a model. */

#ifndef COS_SENDER_HPP
#define COS_SENDER_HPP

#include <atomic>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>

#include "metrics.hpp"
#include "news.hpp"
#include "sequences.hpp"
#include "triton.hpp"

namespace triton {

/// A request that is decoded or waits.
struct Job {
    std::unique_ptr<Exchange> exchange;
    cosrt::Request request;
    Turn turn;
    std::size_t choices;
    std::uint64_t arrived;
    /// A response could not be sent, so nobody waits for the rest.
    std::atomic<bool> broken{false};

    explicit Job(cosrt::Request decoded);

private:
    friend class Sender;
    News news_;                       // of the sender, like all below
    std::optional<Failure> failure_;
    bool queued_ = false, closed_ = false;
    std::uint64_t sent_ = 0;
};

/// Sends responses, so that the thread that decodes need not wait for Triton. If steps come faster than they can be
/// sent, a response has what several of them brought.
class Sender {
public:
    /// `done` is called for each job whose last response was sent.
    Sender(Metrics& metrics, std::function<void(Job&)> done);
    /// Sends all that waits first.
    ~Sender();

    /// Takes the news of a step, and leaves buffers for the next one.
    void tell(const std::shared_ptr<Job>& job, News& news);
    /// The same for the last step.
    void close(const std::shared_ptr<Job>& job, News& news);
    /// Ends the request with an error, behind the responses that wait.
    void fail(const std::shared_ptr<Job>& job, const Failure& failure);

private:
    void put(const std::shared_ptr<Job>& job);
    void run();
    void send(Job& job, News& news, bool last);

    Metrics& metrics_;
    const std::function<void(Job&)> done_;
    std::mutex mutex_;  // guards the private members of jobs too
    std::condition_variable changed_;
    std::deque<std::shared_ptr<Job>> queue_;
    bool stops_ = false;
    std::thread thread_;  // the last member: it uses all others
};

}  // namespace triton

#endif  // COS_SENDER_HPP
