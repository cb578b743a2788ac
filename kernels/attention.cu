// The CUDA kernel of attention over keys and values in blocks, for passes with few new tokens of each sequence: it
// normalises and rotates queries and keys, writes new keys and values into the blocks, and attends, in one launch.
// `scripts/make-ptx` compiles it to attention.ptx. src/onnx/packed/gpu_attention.rs launches it, and has the same
// constants and struct.

typedef unsigned short u16;
typedef unsigned int u32;

const int LANES = 32;
const int TEAM = 128;          // threads of a block, and positions that it scores at once
const int WARPS = TEAM / LANES;
const int WIDE = 8;            // numbers that a thread reads at once
const int LONGEST = 256;       // the most numbers of a head
const int LEAST = 128;         // a split has about so many positions at least
const int LINE = 64;           // numbers of 16 bits that memory gives at once

struct Attention {
    const u16 *query, *key, *value; // of the first token of the pass
    u16 *keys, *values;             // [blocks, 1 << block, kv_heads, head]
    const int *ends;                // where the tokens of each sequence end; the first number is 0
    const int *pasts;               // tokens of each sequence before the pass
    const int *blocks;              // [sequences, columns]
    const u16 *cosines, *sines;     // [positions, angles], or null
    const u16 *sinks;               // [heads], or null
    const u16 *query_norm, *key_norm; // [head], or null
    u16 *out;                       // [tokens, heads, head]
    float *partials;                // what splits have found, if there are several
    int *arrived;                   // splits that are done, 0 before and after
    int query_stride, key_stride;   // numbers from one token to the next
    int heads, kv_heads, head;
    int angles;      // pairs of numbers that are rotated
    int interleaved; // whether the numbers of a pair are neighbours
    int window;      // positions that a token sees, itself included; all if it is not positive
    int columns;
    int block;       // the binary logarithm of the tokens of a block
    float scale, softcap, epsilon;
};

__device__ float minus_inf() { return __uint_as_float(0xff800000u); }

#ifdef __CUDA_ARCH__ // tests/kernels has others, which run on the processor
__device__ float warp_sum(float value) {
    for (int gap = LANES / 2; gap > 0; gap /= 2) value += __shfl_xor_sync(~0u, value, gap);
    return value;
}
__device__ float warp_max(float value) {
    for (int gap = LANES / 2; gap > 0; gap /= 2) value = fmaxf(value, __shfl_xor_sync(~0u, value, gap));
    return value;
}
__device__ void warp_wait() { __syncwarp(); }
__device__ void prefetch(const void *place) { asm volatile("prefetch.global.L2 [%0];" ::"l"(place)); }
#endif

// A number of 16 bits: float16 if ELEMENT is 1, else bfloat16.
template <int ELEMENT> __device__ float widen(u32 bits) {
    float value;
    if (ELEMENT == 1)
#ifdef __CUDA_ARCH__
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((u16)bits));
#else
        value = of_half((u16)bits);
#endif
    else
        value = __uint_as_float(bits << 16);
    return value;
}

// Rounds to the nearest number of 16 bits, of two to the even one.
template <int ELEMENT> __device__ u16 narrow(float value) {
    u16 bits;
    if (ELEMENT == 1) {
#ifdef __CUDA_ARCH__
        asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
        bits = to_half(value);
#endif
    } else {
        u32 whole = __float_as_uint(value);
        bits = value != value ? (u16)0x7fff : (u16)((whole + 0x7fff + (whole >> 16 & 1)) >> 16);
    }
    return bits;
}

template <int ELEMENT> __device__ float rounded(float value) { return widen<ELEMENT>(narrow<ELEMENT>(value)); }

template <int ELEMENT> __device__ void unpack(const uint4 &words, float *numbers) {
    const u32 pairs[WIDE / 2] = {words.x, words.y, words.z, words.w};
#pragma unroll
    for (int i = 0; i < WIDE / 2; i++) {
        numbers[2 * i] = widen<ELEMENT>(pairs[i] & 0xffff);
        numbers[2 * i + 1] = widen<ELEMENT>(pairs[i] >> 16);
    }
}

// The head of a token as attention takes it, in `line`: normalised by `norm`, and rotated by the angles of its
// position. A warp does it: it reads all that it needs, which may take long, and finishes it later. Results are rounded
// to the type of the model.
template <int ELEMENT> struct Preparation {
    static const int MOST = LONGEST / LANES; // numbers of a lane
    const Attention &a;
    bool valid;
    int job;
    const u16 *norm;
    float *line;
    u16 numbers[MOST], cosines[MOST / 2], sines[MOST / 2];

    __device__ __forceinline__ Preparation(const Attention &a) : a(a) {}

    __device__ __forceinline__ void read(const u16 *source, int position) {
        int lane = threadIdx.x % LANES;
        if (!valid) return;
#pragma unroll
        for (int k = 0; k < MOST; k++)
            if (lane + k * LANES < a.head) numbers[k] = source[lane + k * LANES];
#pragma unroll
        for (int k = 0; k < MOST / 2; k++)
            if (lane + k * LANES < a.angles) {
                cosines[k] = a.cosines[position * a.angles + lane + k * LANES];
                sines[k] = a.sines[position * a.angles + lane + k * LANES];
            }
    }

    __device__ __forceinline__ void finish() {
        int lane = threadIdx.x % LANES;
        float squares = 0;
        if (valid)
#pragma unroll
            for (int k = 0; k < MOST; k++)
                if (lane + k * LANES < a.head) {
                    float value = widen<ELEMENT>(numbers[k]);
                    line[lane + k * LANES] = value, squares += value * value;
                }
        if (norm) {
            float factor = rsqrtf(warp_sum(squares) / a.head + a.epsilon);
            if (valid)
                for (int i = lane; i < a.head; i += LANES)
                    line[i] = rounded<ELEMENT>(line[i] * factor * widen<ELEMENT>(norm[i]));
        }
        warp_wait();
        if (valid)
#pragma unroll
            for (int k = 0; k < MOST / 2; k++) {
                int pair = lane + k * LANES;
                if (pair >= a.angles) break;
                int x = a.interleaved ? 2 * pair : pair, y = a.interleaved ? x + 1 : pair + a.angles;
                float cosine = widen<ELEMENT>(cosines[k]), sine = widen<ELEMENT>(sines[k]);
                float first = line[x], second = line[y];
                line[x] = rounded<ELEMENT>(first * cosine - second * sine);
                line[y] = rounded<ELEMENT>(second * cosine + first * sine);
            }
        warp_wait();
    }
};

// What the threads of a block have in common.
template <int ROWS> struct Block {
    static const int PITCH = TEAM + LANES / WIDE; // so that sums are read without conflicts
    static const int FIRST = ROWS * LONGEST + ROWS * TEAM + WARPS * LONGEST, SUMS = ROWS * WIDE * PITCH;
    __align__(16) float memory[FIRST > SUMS ? FIRST : SUMS]; // queries, scores and lines, and then sums
    float maxima[ROWS], totals[ROWS]; // the largest score of each row, and the sum of the weights relative to it
    float shrinks[ROWS];              // what the sums so far are multiplied by
    int slots[TEAM];                  // where the positions of a tile are
    int last;

    __device__ float *queries() { return memory; }
    __device__ float *scores() { return memory + ROWS * LONGEST; }
    __device__ float *lines() { return memory + ROWS * (LONGEST + TEAM); }
};

// What a block works on: the rows from `begin` on of a sequence and a head of keys, and positions `from` to `to`. A row
// is a head of a new token that attends to this head of keys; those of a token are next to each other.
template <int ELEMENT, int ROWS> struct Work {
    const Attention &a;
    Block<ROWS> &block;
    int kv_head, group; // heads of queries for each head of keys
    int first, past;    // the sequence's first new token in the pass, and its tokens before
    int begin, rows, splits, from, to;
    const int *blocks;

    __device__ Work(const Attention &a, Block<ROWS> &block) : a(a), block(block) {}

    // False if there is nothing to do.
    __device__ __forceinline__ bool find() {
        int part = blockIdx.x / a.kv_heads, sequence = blockIdx.y, split = blockIdx.z;
        int end = a.ends[sequence + 1];
        first = a.ends[sequence], past = a.pasts[sequence];
        kv_head = blockIdx.x - part * a.kv_heads, group = a.heads / a.kv_heads;
        begin = part * ROWS, rows = min(ROWS, (end - first) * group - begin);
        int length = past + end - first, lowest = a.window > 0 ? max(0, past + 1 - a.window) : 0; // the first seen
        splits = min((int)gridDim.z, (length - lowest + LEAST - 1) / LEAST);
        if (rows <= 0 || split >= splits) return false;
        int chunk = (length - lowest + splits - 1) / splits;
        from = lowest + split * chunk, to = min(length, from + chunk);
        blocks = a.blocks + (long)sequence * a.columns;
        return true;
    }

    // The index of a position's token in the blocks.
    __device__ int slot(int position) const {
        return (blocks[position >> a.block] << a.block) + (position & ((1 << a.block) - 1));
    }

    // The index of the first number of a token.
    __device__ long place(int slot) const { return ((long)slot * a.kv_heads + kv_head) * a.head; }

    // Let keys and values of the first tile come while queries are prepared. Each thread asks for those of a position.
    __device__ __forceinline__ void fetch() const {
        int position = from + threadIdx.x;
        if (position >= min(to, past)) return;
        long own = place(slot(position));
        for (int i = 0; i < a.head; i += LINE) prefetch(a.keys + own + i), prefetch(a.values + own + i);
    }

    // Prepare the queries, and the keys of the tokens that are new, which go to the cache with their values. Each warp
    // takes two at a time. Blocks of other rows write the same keys and values, and read only what they wrote.
    __device__ __forceinline__ void prepare_all() {
        int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
        int fresh = max(from, past), jobs = rows + max(0, to - fresh);
        for (int turn = 0; turn < jobs; turn += 2 * WARPS) {
            Preparation<ELEMENT> both[2] = {a, a};
#pragma unroll
            for (int i = 0; i < 2; i++) {
                Preparation<ELEMENT> &one = both[i];
                int job = turn + i * WARPS + warp;
                bool asks = job < rows;
                int of = asks ? (begin + job) / group : fresh + job - rows - past;
                one.valid = job < jobs, one.job = job, one.norm = asks ? a.query_norm : a.key_norm;
                one.line = asks ? block.queries() + job * a.head : block.lines() + warp * LONGEST;
                one.read(asks ? a.query + (long)(first + of) * a.query_stride +
                                    (kv_head * group + begin + job - of * group) * a.head
                              : a.key + (long)(first + of) * a.key_stride + kv_head * a.head,
                         past + of);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                Preparation<ELEMENT> &one = both[i];
                one.finish();
                if (!one.valid || one.job < rows) continue;
                int position = fresh + one.job - rows;
                const u16 *value = a.value + (long)(first + position - past) * a.key_stride + kv_head * a.head;
                long to = place(slot(position));
                for (int i = lane; i < a.head; i += LANES) {
                    a.keys[to + i] = narrow<ELEMENT>(one.line[i]);
                    a.values[to + i] = value[i];
                }
            }
        }
    }

    // Score the positions of a tile, one for each thread.
    __device__ __forceinline__ void score(int tile, int count) {
        int thread = threadIdx.x, position = tile + thread, words = a.head / WIDE;
        float dots[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) dots[r] = 0;
        if (thread < count) {
            int own = slot(position);
            block.slots[thread] = own;
            const uint4 *key = (const uint4 *)(a.keys + place(own));
            const int BATCH = 4; // loads in flight
            for (int w = 0; w < words; w += BATCH) {
                uint4 loaded[BATCH];
#pragma unroll
                for (int k = 0; k < BATCH; k++) loaded[k] = key[min(w + k, words - 1)];
#pragma unroll
                for (int k = 0; k < BATCH; k++) {
                    if (w + k >= words) break;
                    float numbers[WIDE];
                    unpack<ELEMENT>(loaded[k], numbers);
#pragma unroll
                    for (int r = 0; r < ROWS; r++) {
                        const float *query = block.queries() + r * a.head + (w + k) * WIDE;
#pragma unroll
                        for (int i = 0; i < WIDE; i++) dots[r] += query[i] * numbers[i];
                    }
                }
            }
        }
        int token = begin / group, member = begin - token * group, own = past + token; // the position of a row's token
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            bool seen = thread < count && r < rows && position <= own && (a.window <= 0 || position > own - a.window);
            float score = dots[r] * a.scale;
            if (a.softcap > 0) score = a.softcap * tanhf(score / a.softcap);
            block.scores()[r * TEAM + thread] = seen ? score : minus_inf();
            if (++member == group) member = 0, own++;
        }
    }

    // Turn the scores of a tile into weights relative to the largest so far. Each warp takes a row at a time.
    __device__ __forceinline__ void weigh() {
        int warp = threadIdx.x / LANES, lane = threadIdx.x % LANES;
#pragma unroll
        for (int turn = 0; turn < ROWS; turn += WARPS) {
            int r = turn + warp;
            bool valid = r < ROWS;
            float *row = block.scores() + r * TEAM, weights[WARPS], sum = 0;
            float before = valid ? block.maxima[r] : 0, max = before;
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                weights[i] = valid ? row[lane + i * LANES] : 0;
                max = fmaxf(max, weights[i]);
            }
            max = warp_max(max);
#pragma unroll
            for (int i = 0; i < WARPS; i++) {
                weights[i] = max > minus_inf() ? __expf(weights[i] - max) : 0;
                sum += weights[i];
            }
            sum = warp_sum(sum);
            warp_wait(); // all lanes have read the largest score so far, which the first one overwrites
            if (!valid) continue;
#pragma unroll
            for (int i = 0; i < WARPS; i++) row[lane + i * LANES] = weights[i];
            if (lane == 0) {
                float shrink = before > minus_inf() ? __expf(before - max) : 0;
                block.maxima[r] = max, block.shrinks[r] = shrink;
                block.totals[r] = block.totals[r] * shrink + sum;
            }
        }
    }

    // Add the weighted values of position i of a tile, `loaded` of which this thread has read.
    __device__ __forceinline__ void add(float (&sums)[ROWS][WIDE], const uint4 &loaded, int i) {
        float numbers[WIDE];
        unpack<ELEMENT>(loaded, numbers);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float weight = block.scores()[r * TEAM + i];
#pragma unroll
            for (int k = 0; k < WIDE; k++) sums[r][k] += weight * numbers[k];
        }
    }

    // Sum the weighted values of all positions. Several threads share out the positions of a tile, and as many share
    // the numbers of a head. Leaves the sums of each thread in `block.memory`.
    __device__ __forceinline__ void attend() {
        int words = a.head / WIDE, readers = TEAM / words, reader = threadIdx.x / words,
            word = threadIdx.x - reader * words;
        float sums[ROWS][WIDE];
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int k = 0; k < WIDE; k++) sums[r][k] = 0;
        for (int tile = from; tile < to; tile += TEAM) {
            int count = reader < readers ? min(TEAM, to - tile) : 0;
            auto value = [&](int i) { return ((const uint4 *)(a.values + place(block.slots[i])))[word]; };
            score(tile, min(TEAM, to - tile));
            __syncthreads();
            const int AHEAD = 4; // loads of values that the weighing hides
            uint4 ahead[AHEAD];
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (reader + k * readers < count) ahead[k] = value(reader + k * readers);
            weigh();
            __syncthreads();
            if (tile > from)
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float shrink = block.shrinks[r];
#pragma unroll
                    for (int k = 0; k < WIDE; k++) sums[r][k] *= shrink;
                }
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (reader + k * readers < count) add(sums, ahead[k], reader + k * readers);
#pragma unroll 4
            for (int i = reader + AHEAD * readers; i < count; i += readers) add(sums, value(i), i);
            __syncthreads();
        }
#pragma unroll
        for (int r = 0; r < ROWS; r++)
#pragma unroll
            for (int k = 0; k < WIDE; k++)
                block.memory[(r * WIDE + k) * Block<ROWS>::PITCH + threadIdx.x] = sums[r][k];
        __syncthreads();
    }

    // Number i of the sum of a row over the threads.
    __device__ __forceinline__ float whole(int row, int i) const {
        int words = a.head / WIDE;
        const float *part = block.memory + (row * WIDE + i % WIDE) * Block<ROWS>::PITCH + i / WIDE;
        float sum = 0;
#pragma unroll 4
        for (int reader = 0; reader < TEAM / words; reader++) sum += part[reader * words];
        return sum;
    }

    // Write the attention of all rows. `sum` gives each number of a weighted sum.
    template <typename Sum> __device__ __forceinline__ void write(Sum sum) const {
        for (int at = threadIdx.x; at < rows * a.head; at += TEAM) {
            int row = at / a.head, i = at - row * a.head;
            int token = (begin + row) / group, head = kv_head * group + begin + row - token * group;
            float total = block.totals[row];
            if (a.sinks) total += __expf(widen<ELEMENT>(a.sinks[head]) - block.maxima[row]);
            a.out[((long)(first + token) * a.heads + head) * a.head + i] = narrow<ELEMENT>(sum(row, i) / total);
        }
    }

    // Put what the block has found beside what other splits find. The one that comes last adds all up.
    __device__ __forceinline__ void join() {
        int thread = threadIdx.x, unit = blockIdx.y * gridDim.x + blockIdx.x, size = ROWS * (a.head + 2);
        volatile float *all = a.partials + (long)unit * gridDim.z * size, *own = all + (long)blockIdx.z * size;
        for (int row = 0; row < rows; row++)
            for (int i = thread; i < a.head; i += TEAM) own[row * a.head + i] = whole(row, i);
        if (thread < ROWS) {
            own[ROWS * a.head + thread] = block.maxima[thread];
            own[ROWS * (a.head + 1) + thread] = block.totals[thread];
        }
        __threadfence();
        __syncthreads();
        if (thread == 0) block.last = atomicAdd(&a.arrived[unit], 1) == splits - 1;
        __syncthreads();
        if (!block.last) return;
        __threadfence();
        if (thread == 0) a.arrived[unit] = 0;
        float *factors = block.memory;
        if (thread < ROWS) {
            volatile float *maxima = all + ROWS * a.head + thread, *totals = maxima + ROWS;
            float max = minus_inf(), total = 0;
            for (int s = 0; s < splits; s++) max = fmaxf(max, maxima[s * size]);
            for (int s = 0; s < splits; s++) {
                float own = maxima[s * size], factor = own > minus_inf() ? __expf(own - max) : 0;
                total += factor * totals[s * size];
                factors[s * ROWS + thread] = factor;
            }
            block.maxima[thread] = max, block.totals[thread] = total;
        }
        __syncthreads();
        write([&](int row, int i) {
            float sum = 0;
#pragma unroll 4
            for (int s = 0; s < splits; s++) sum += factors[s * ROWS + row] * all[s * size + row * a.head + i];
            return sum;
        });
    }
};

// One block of TEAM threads for each (head of keys and part of the rows, sequence, split). A block has up to ROWS rows.
// Splits share out the positions.
template <int ELEMENT, int ROWS> __device__ __forceinline__ void attend(const Attention &a) {
    __shared__ Block<ROWS> block;
    Work<ELEMENT, ROWS> work(a, block);
    if (!work.find()) return;
    work.fetch();
    work.prepare_all();
    if (threadIdx.x < ROWS) block.maxima[threadIdx.x] = minus_inf(), block.totals[threadIdx.x] = 0;
    __syncthreads();
    work.attend();
    if (work.splits == 1)
        work.write([&](int row, int i) { return work.whole(row, i); });
    else
        work.join();
}

#define KERNEL(name, element, rows)                                                                        \
    extern "C" __global__ void __launch_bounds__(TEAM) name(const Attention a) { attend<element, rows>(a); }
KERNEL(attend_f16_1, 1, 1)
KERNEL(attend_f16_4, 1, 4)
KERNEL(attend_f16_8, 1, 8)
KERNEL(attend_bf16_1, 2, 1)
KERNEL(attend_bf16_4, 2, 4)
KERNEL(attend_bf16_8, 2, 8)
