// Runs kernels of CUDA on the processor. The threads of a block are fibers, which take turns at barriers, and blocks
// run one after the other. Mistakes that need threads at the same time, without a barrier between them, are not found.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <vector>

#define __global__
#define __device__
#define __noinline__
#define __forceinline__
#define __expf expf
#define __align__(bytes) __attribute__((aligned(bytes)))
#define __launch_bounds__(threads)
#define __shared__ static

struct dim3 {
    unsigned x = 1, y = 1, z = 1;
};
struct uint4 {
    unsigned x, y, z, w;
};

static dim3 threadIdx, blockIdx, blockDim, gridDim;

template <typename T> static T min(T a, T b) { return b < a ? b : a; }
template <typename T> static T max(T a, T b) { return a < b ? b : a; }

template <typename To, typename From> static To same_bits(From from) {
    To to;
    static_assert(sizeof to == sizeof from, "");
    memcpy(&to, &from, sizeof to);
    return to;
}
static float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
static float __int_as_float(int bits) { return same_bits<float>(bits); }
static unsigned __float_as_uint(float value) { return same_bits<unsigned>(value); }
static float __fadd_rn(float a, float b) { return a + b; }
static float __fmul_rn(float a, float b) { return a * b; }
static float __fdiv_rn(float a, float b) { return a / b; }
static double __dmul_rn(double a, double b) { return a * b; }
static float of_half(unsigned short bits) {
    int exponent = bits >> 10 & 31, mantissa = bits & 1023;
    float size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                                : ldexpf(exponent ? 1024 + mantissa : mantissa, (exponent ? exponent : 1) - 25);
    return bits >> 15 ? -size : size;
}
static float rsqrtf(float value) { return 1 / sqrtf(value); }
template <typename T> static T atomicAdd(T *at, T value) {
    T before = *at;
    *at += value;
    return before;
}

namespace emulation {
const size_t STACK = 64 << 10;
struct Fiber {
    ucontext_t first; // where the fiber begins
    jmp_buf here;     // where it goes on, without the system calls of swapcontext
    std::vector<char> stack = std::vector<char>(STACK);
    bool begun = false, over = false;
};
static std::vector<Fiber> fibers;
static jmp_buf scheduler;
static size_t current;
static std::function<void()> kernel;
static int any, last_any; // of __syncthreads_or
static unsigned waiting;

static void enter() {
    kernel();
    fibers[current].over = true;
    _longjmp(scheduler, 1);
}

// Lets a fiber run to its next barrier, or to its end.
static void run(Fiber &fiber) {
    if (_setjmp(scheduler)) return;
    if (fiber.begun) _longjmp(fiber.here, 1);
    fiber.begun = true;
    setcontext(&fiber.first);
}

static void wait() {
    if (!_setjmp(fibers[current].here)) _longjmp(scheduler, 1);
}

// Runs a kernel on a grid of blocks of so many threads.
static void launch(dim3 grid, unsigned threads, std::function<void()> work) {
    kernel = work, blockDim = {threads}, gridDim = grid;
    if (fibers.size() < threads) fibers = std::vector<Fiber>(threads);
    for (unsigned z = 0; z < grid.z; z++)
    for (unsigned y = 0; y < grid.y; y++)
        for (unsigned x = 0; x < grid.x; x++) {
            blockIdx = {x, y, z};
            for (unsigned i = 0; i < threads; i++) {
                Fiber &fiber = fibers[i];
                fiber.begun = fiber.over = false;
                getcontext(&fiber.first);
                fiber.first.uc_stack.ss_sp = fiber.stack.data();
                fiber.first.uc_stack.ss_size = STACK;
                fiber.first.uc_link = nullptr;
                makecontext(&fiber.first, enter, 0);
            }
            for (unsigned left = threads; left > 0; last_any = any, any = 0) {
                unsigned over = 0;
                waiting = 0;
                // The order is reversed now and then, because nothing may depend on it.
                for (unsigned i = 0; i < threads; i++) {
                    current = left % 2 ? i : threads - 1 - i;
                    if (fibers[current].over) continue;
                    threadIdx = {(unsigned)current};
                    run(fibers[current]);
                    over += fibers[current].over;
                }
                if (over && waiting) {
                    fprintf(stderr, "some threads of a block wait at a barrier that others never come to\n");
                    exit(1);
                }
                left -= over;
            }
        }
}
} // namespace emulation

static int __syncthreads_or(int value) {
    emulation::any |= value != 0;
    emulation::waiting++;
    emulation::wait();
    return emulation::last_any;
}
static void __syncthreads() { __syncthreads_or(0); }
static void __threadfence() {}

// Exchanges between the threads of a warp are barriers of the block here.
static float exchange(float value, float (*join)(float, float)) {
    static float values[1024];
    values[threadIdx.x] = value;
    __syncthreads();
    unsigned first = threadIdx.x / 32 * 32;
    float all = values[first];
    for (unsigned i = 1; i < 32; i++) all = join(all, values[first + i]);
    __syncthreads();
    return all;
}
static float warp_sum(float value) {
    return exchange(value, [](float a, float b) { return a + b; });
}
static float warp_max(float value) {
    return exchange(value, [](float a, float b) { return fmaxf(a, b); });
}
static void warp_wait() { __syncthreads(); }
static void prefetch(const void *) {}
