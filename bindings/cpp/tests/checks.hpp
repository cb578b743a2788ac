// The checks of safety.cpp, and its engine.

#ifndef CHECKS_HPP
#define CHECKS_HPP

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "cos.hpp"

using cosrt::Code;
using cosrt::Token;

inline std::atomic<int> checks{0};

inline void expect(bool holds, const char* what, const char* file, int line) {
    checks++;
    if (holds) return;
    std::fprintf(stderr, "%s:%d: %s\n", file, line, what);
    std::exit(1);
}
#define EXPECT(what) expect(static_cast<bool>(what), #what, __FILE__, __LINE__)

template <typename T>
bool fails(const cosrt::Result<T>& result, Code code) {
    return !result && result.error().code == code && !result.error().message.empty();
}

inline const char* const config = R"({"models": [{"path": "tests/exports/llama/builder-fp32", "name": "one"},
    {"path": "tests/exports/llama/optimum-fp32", "name": "two"}],
    "combine": {"kind": "weighted", "weights": [0.5, 0.5]}})";
inline const std::vector<Token> prompt{1, 2, 3};

inline cosrt::Engine open() { return cosrt::Engine::from_json(config).value(); }

#endif
