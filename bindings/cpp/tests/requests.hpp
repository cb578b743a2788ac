// Requests of OpenAI's protocol, and the driver that decodes many.

#ifndef COS_TESTS_REQUESTS_HPP
#define COS_TESTS_REQUESTS_HPP

#include <atomic>
#include <chrono>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "checks.hpp"
#include "cos.hpp"
#include "cos_driver.hpp"

namespace requesting {

inline cosrt::Request started(const cosrt::Engine& engine, const std::string& members) {
    return cosrt::Request::start(engine, R"({"model": "m", "prompt": [1, 2, 3], "seed": 3, "ignore_eos": true, )"
                                         R"("return_token_ids": true, "cos": {"strategy": "cos"}, )" + members + "}")
        .value();
}

/// The part of an answer that does not differ from request to request.
inline std::string choices(const std::string& answer) { return answer.substr(answer.find("\"choices\"")); }

/// All pieces of a request that a driver decodes.
inline std::string driven(cosrt::DrivenRequest& of, cosrt::RequestStatus& status) {
    std::string text;
    for (status = {}; status.open();) {
        cosrt::Piece piece = of.next().value();
        text += piece.text, status = piece.status;
    }
    return text;
}

/// What a driver decodes is what steps decode, whatever others do meanwhile.
inline void many() {
    const auto engine = open();
    const std::string kinds[] = {R"("max_tokens": 20)", R"("max_tokens": 9, "n": 3)", R"("max_tokens": 30)"};
    cosrt::Driver driver;
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < 12; i++) {
        threads.emplace_back([&, i] {
            auto alone = started(engine, kinds[i % 3]);
            while (alone.step().value().open()) continue;
            const auto driven_one = driver.start(started(engine, kinds[i % 3]));
            cosrt::RequestStatus status;
            EXPECT(choices(driven(*driven_one, status)) == choices(std::string(alone.answer().value())));
            EXPECT(status.state == cosrt::RequestState::done);
            EXPECT(status.completion_tokens == alone.status()->completion_tokens);
            EXPECT(driven_one->next().value().text.empty());  // the end again
        });
    }
    for (std::thread& thread : threads) thread.join();
    const auto streamed = driver.start(started(engine, R"("max_tokens": 20, "stream": true)"));
    cosrt::RequestStatus status;
    const std::string events = driven(*streamed, status);
    EXPECT(status.streams && events.rfind("data: [DONE]\n\n") + 14 == events.size());
}

inline void early_ends() {
    // A text that takes seconds.
    const auto engine = cosrt::Engine::open("models/demo/engine.json").value();
    const std::string long_one = R"("max_tokens": 1000, "n": 4, "stream": true)";
    std::shared_ptr<cosrt::DrivenRequest> left;
    {
        cosrt::Driver driver;
        const auto cancelled = driver.start(started(engine, long_one));
        const auto other = driver.start(started(engine, R"("max_tokens": 5)"));
        EXPECT(cancelled->next().value().status.streams);
        cancelled->cancel();
        cosrt::RequestStatus status;
        driven(*cancelled, status);
        EXPECT(status.state == cosrt::RequestState::cancelled);
        driven(*other, status);
        EXPECT(status.state == cosrt::RequestState::done);
        left = driver.start(started(engine, long_one));
    }
    cosrt::RequestStatus status;
    driven(*left, status);
    EXPECT(status.state == cosrt::RequestState::cancelled);  // by the end of the driver
}

/// Those who wait when a driver ends learn of the end of their requests.
inline void waiting_at_the_end() {
    const auto engine = open();
    std::atomic<int> ended{0};
    for (int round = 0; round < 40; round++) {
        std::vector<std::thread> threads;
        {
            cosrt::Driver driver;
            for (int i = 0; i < 8; i++) {
                const auto one = driver.start(started(engine, R"("max_tokens": 30, "stream": true)"));
                threads.emplace_back([one, &ended] {
                    cosrt::RequestStatus status;
                    driven(*one, status);
                    ended++;
                });
            }
            std::this_thread::sleep_for(std::chrono::microseconds(500 * round));
        }
        for (std::thread& thread : threads) thread.join();
    }
    EXPECT(ended == 320);
}

/// A client that reads slowly holds up its own request alone, and bounds its memory.
inline void slow_readers() {
    const auto engine = cosrt::Engine::open("models/demo/engine.json").value();
    // 400 tokens with more than 300 kB.
    const std::string large = R"("max_tokens": 200, "logprobs": 20, "n": 2, "stream": true)";
    std::shared_ptr<cosrt::DrivenRequest> left;
    cosrt::RequestStatus status;
    {
        cosrt::Driver driver;
        const auto slow = driver.start(started(engine, large));
        const auto cancelled = driver.start(started(engine, large));
        left = driver.start(started(engine, large));
        const auto other = driver.start(started(engine, large));
        EXPECT(driven(*other, status).size() > 300'000);
        const cosrt::Piece piece = slow->next().value();
        EXPECT(piece.status.open() && piece.text.size() > 256 << 10 && piece.text.size() < 300 << 10);
        EXPECT(piece.text.size() + driven(*slow, status).size() > 300'000);
        EXPECT(status.state == cosrt::RequestState::done && status.completion_tokens == 400);
        cancelled->cancel();
        driven(*cancelled, status);
        EXPECT(status.state == cosrt::RequestState::cancelled);
    }
    driven(*left, status);
    EXPECT(status.state == cosrt::RequestState::cancelled);  // by the end of the driver
}

inline void wrong_bodies() {
    const auto engine = open();
    const auto refused = cosrt::Request::start(engine, R"({"prompt": [1], "n": 0})");
    EXPECT(!refused && refused.error().status == 400);
    EXPECT(refused.error().json.find("\"invalid_request_error\"") != std::string::npos);
}

}  // namespace requesting

inline void requests() {
    requesting::many();
    requesting::early_ends();
    requesting::waiting_at_the_end();
    requesting::slow_readers();
    requesting::wrong_bodies();
}

#endif
