/* Metrics of a model, beside those that Triton keeps itself. */

#ifndef COS_METRICS_HPP
#define COS_METRICS_HPP

#include <memory>
#include <string>
#include <vector>

#include "triton.hpp"

namespace triton {

/// The metrics of one model in GET /metrics of Triton, with the labels "model" and "version".
class Metrics {
public:
    Metrics(const std::string& model, const std::string& version);
    ~Metrics();
    Metrics(const Metrics&) = delete;
    Metrics& operator=(const Metrics&) = delete;

    /// Adds what the engine has done since the last call.
    void count(const cosrt::Stats& stats);
    void requests(std::size_t running, std::size_t waiting);
    void pass(std::size_t choices);
    void first_token(double seconds);
    void between_tokens(double seconds);

private:
    enum Name { tokens, proposed, tested, accepted, forwards, running, waiting, batch, first, between, names };

    void change(Name name, TRITONSERVER_Error* (*function)(TRITONSERVER_Metric*, double), double value) noexcept;

    TRITONSERVER_Metric* metrics_[names] = {};
    cosrt::Stats counted_;
};

}  // namespace triton

#endif  // COS_METRICS_HPP
