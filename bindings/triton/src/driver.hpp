/* The one thread that decodes all requests of a model. */

#ifndef COS_DRIVER_HPP
#define COS_DRIVER_HPP

#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "body.hpp"
#include "metrics.hpp"
#include "sender.hpp"
#include "sequences.hpp"
#include "triton.hpp"

namespace triton {

/// How much a model takes.
struct Limits {
    bool streams = true;                   ///< Whether a request may have several responses.
    std::size_t max_sessions = 64;         ///< Choices that are decoded at once.
    std::size_t max_queue = 4096;          ///< Requests that wait for that.
    std::uint32_t max_prompt_tokens = 0;   ///< 0: as many as the context has.
    std::uint32_t max_tokens = 0;          ///< Of a choice; 0: as the request says.
    double sequence_idle_seconds = 600;    ///< After which a sequence of turns is forgotten.
};

/// Decodes requests in common passes on a thread of its own. Another one sends the responses.
class Driver {
public:
    Driver(cosrt::Engine engine, const std::string& model, const std::string& version, const Limits& limits);
    /// Waits until all requests have ended.
    ~Driver();

    /// Takes a request of Triton over, with all its errors.
    void take(TRITONBACKEND_ModelInstance* instance, TRITONBACKEND_Request* request) noexcept;
    /// Waits until no request of an instance is left.
    void drain(const TRITONBACKEND_ModelInstance* instance);

private:
    using Jobs = std::list<std::shared_ptr<Job>>;

    void run();
    void admit();
    void drop_cancelled(Jobs& jobs);
    void pass();
    /// Passes on what a step has brought. Returns whether the request has ended.
    bool tell(const std::shared_ptr<Job>& job, const cosrt::Result<cosrt::RequestStatus>& status);
    /// Reads what a step has brought.
    void collect(Job& job, const cosrt::RequestStatus& status);
    /// Ends a request that was not answered.
    void fail(const std::shared_ptr<Job>& job, const Failure& failure);

    cosrt::Engine engine_;
    const std::string model_;
    const Limits limits_;
    Metrics metrics_;
    Sequences sequences_;

    std::mutex mutex_;  // guards what other threads see: the members up to the thread
    std::condition_variable changed_;
    Jobs arrived_;
    std::vector<const TRITONBACKEND_ModelInstance*> held_;  // the instance of each request that has not ended
    bool stops_ = false;
    std::size_t queued_ = 0;

    Jobs waiting_, running_;  // of the thread alone, like the next two
    std::size_t decoding_ = 0;
    News news_;
    Sender sender_;
    std::thread thread_;  // the last member: it uses all others
};

}  // namespace triton

#endif  // COS_DRIVER_HPP
