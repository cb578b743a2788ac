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
// position. A warp does it. Results are rounded to the type of the model.
template <int ELEMENT>
__device__ __forceinline__ void prepare(const Attention &a, bool valid, const u16 *source, const u16 *norm,
                                        int position, float *line) {
    int lane = threadIdx.x % LANES;
    float squares = 0;
    if (valid)
        for (int i = lane; i < a.head; i += LANES) {
            float value = widen<ELEMENT>(source[i]);
            line[i] = value, squares += value * value;
        }
    if (norm) {
        float factor = rsqrtf(warp_sum(squares) / a.head + a.epsilon);
        if (valid)
            for (int i = lane; i < a.head; i += LANES)
                line[i] = rounded<ELEMENT>(line[i] * factor * widen<ELEMENT>(norm[i]));
    }
    warp_wait();
    if (valid)
        for (int pair = lane; pair < a.angles; pair += LANES) {
            int x = a.interleaved ? 2 * pair : pair, y = a.interleaved ? x + 1 : pair + a.angles;
            float cosine = widen<ELEMENT>(a.cosines[position * a.angles + pair]);
            float sine = widen<ELEMENT>(a.sines[position * a.angles + pair]);
            float first = line[x], second = line[y];
            line[x] = rounded<ELEMENT>(first * cosine - second * sine);
            line[y] = rounded<ELEMENT>(second * cosine + first * sine);
        }
    warp_wait();
}

// The share of a split: the largest score of each row, and the sum of the weights relative to it.
template <int ROWS> struct Share {
    float maxima[ROWS], totals[ROWS];
};

// Writes the attention of `rows` rows. `sum` gives each weighted sum of values.
template <int ELEMENT, int ROWS, typename Sum>
__device__ __forceinline__ void write(const Attention &a, int kv_head, int first, int begin, int rows,
                                      const Share<ROWS> &share, Sum sum) {
    int group = a.heads / a.kv_heads;
    for (int row = 0; row < rows; row++) {
        int token = (begin + row) / group, head = kv_head * group + begin + row - token * group;
        float max = share.maxima[row], total = share.totals[row];
        if (a.sinks) total += __expf(widen<ELEMENT>(a.sinks[head]) - max);
        u16 *out = a.out + ((long)(first + token) * a.heads + head) * a.head;
        for (int i = threadIdx.x; i < a.head; i += TEAM) out[i] = narrow<ELEMENT>(sum(row, i) / total);
    }
}

// One block of TEAM threads for each (head of keys and part of the rows, sequence, split). A row is a head of a new
// token that attends to this head of keys; a block has up to ROWS of them. Splits share out the positions.
template <int ELEMENT, int ROWS> __device__ __forceinline__ void attend(const Attention &a) {
    const int LINES = WARPS * LONGEST, FIRST = ROWS * LONGEST + ROWS * TEAM + LINES;
    const int PITCH = TEAM + LANES / WIDE, SUMS = ROWS * WIDE * PITCH; // so that sums are read without conflicts
    __shared__ __align__(16) float memory[FIRST > SUMS ? FIRST : SUMS];
    __shared__ Share<ROWS> share;
    __shared__ float shrinks[ROWS];
    __shared__ int slots[TEAM];
    __shared__ int last;
    float *queries = memory, *scores = queries + ROWS * LONGEST, *lines = scores + ROWS * TEAM;
    int thread = threadIdx.x, warp = thread / LANES, lane = thread % LANES;
    int part = blockIdx.x / a.kv_heads, kv_head = blockIdx.x - part * a.kv_heads, group = a.heads / a.kv_heads;
    int sequence = blockIdx.y, first = a.ends[sequence], end = a.ends[sequence + 1], past = a.pasts[sequence];
    int width = end - first, begin = part * ROWS, rows = min(ROWS, width * group - begin);
    if (rows <= 0) return;
    int length = past + width, lowest = a.window > 0 ? max(0, past + 1 - a.window) : 0; // the first that is seen
    int splits = min((int)gridDim.z, (length - lowest + LEAST - 1) / LEAST), split = blockIdx.z;
    if (split >= splits) return;
    int chunk = (length - lowest + splits - 1) / splits, from = lowest + split * chunk, to = min(length, from + chunk);
    const int *blocks = a.blocks + (long)sequence * a.columns;
    // Where a position is: the index of its token in the blocks, and that of its first number.
    auto slot = [&](int position) {
        return (blocks[position >> a.block] << a.block) + (position & ((1 << a.block) - 1));
    };
    auto place = [&](int slot) { return ((long)slot * a.kv_heads + kv_head) * a.head; };
    int token = begin / group, member = begin - token * group; // of the first row

    // Each warp takes a query or a new key at a time. Each part of the rows writes the same keys and values, and reads
    // only what it wrote.
    int fresh = max(from, past), jobs = rows + max(0, to - fresh);
    for (int turn = 0; turn < jobs; turn += WARPS) {
        int job = turn + warp;
        bool valid = job < jobs, asks = job < rows;
        int of = asks ? (begin + job) / group : fresh + job - rows - past;
        const u16 *source = asks ? a.query + (long)(first + of) * a.query_stride +
                                       (kv_head * group + begin + job - of * group) * a.head
                                 : a.key + (long)(first + of) * a.key_stride + kv_head * a.head;
        float *line = asks ? queries + job * a.head : lines + warp * LONGEST;
        const u16 *norm = asks ? a.query_norm : a.key_norm;
        prepare<ELEMENT>(a, valid, source, norm, past + of, line);
        if (valid && !asks) {
            const u16 *value = a.value + (long)(first + of) * a.key_stride + kv_head * a.head;
            long to = place(slot(past + of));
            for (int i = lane; i < a.head; i += LANES) {
                a.keys[to + i] = narrow<ELEMENT>(line[i]);
                a.values[to + i] = value[i];
            }
        }
    }
    if (thread < ROWS) share.maxima[thread] = minus_inf(), share.totals[thread] = 0;
    __syncthreads();

    int words = a.head / WIDE, readers = TEAM / words; // of values: so many threads read the numbers of a head at once
    int reader = thread / words, word = thread - reader * words;
    float sums[ROWS][WIDE];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int k = 0; k < WIDE; k++) sums[r][k] = 0;
    for (int tile = from; tile < to; tile += TEAM) {
        int count = min(TEAM, to - tile), position = tile + thread;
        float dots[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; r++) dots[r] = 0;
        if (thread < count) {
            int own = slot(position);
            slots[thread] = own;
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
                        const float *query = queries + r * a.head + (w + k) * WIDE;
#pragma unroll
                        for (int i = 0; i < WIDE; i++) dots[r] += query[i] * numbers[i];
                    }
                }
            }
        }
        int own = past + token, turn = member; // the position of the row's token
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            bool seen = thread < count && r < rows && position <= own && (a.window <= 0 || position > own - a.window);
            float score = dots[r] * a.scale;
            if (a.softcap > 0) score = a.softcap * tanhf(score / a.softcap);
            scores[r * TEAM + thread] = seen ? score : minus_inf();
            if (++turn == group) turn = 0, own++;
        }
        __syncthreads();
        const int AHEAD = 4; // loads of values that the softmax hides
        uint4 ahead[AHEAD];
#pragma unroll
        for (int k = 0; k < AHEAD; k++) {
            int i = reader + k * readers;
            if (reader < readers && i < count) ahead[k] = ((const uint4 *)(a.values + place(slots[i])))[word];
        }
#pragma unroll
        for (int turn = 0; turn < ROWS; turn += WARPS) {
            int r = turn + warp;
            bool valid = r < ROWS;
            float *row = scores + r * TEAM, weights[WARPS], before = valid ? share.maxima[r] : 0, max = before, sum = 0;
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
            if (!valid) continue;
#pragma unroll
            for (int i = 0; i < WARPS; i++) row[lane + i * LANES] = weights[i];
            if (lane == 0) {
                float shrink = before > minus_inf() ? __expf(before - max) : 0;
                share.maxima[r] = max, shrinks[r] = shrink, share.totals[r] = share.totals[r] * shrink + sum;
            }
        }
        __syncthreads();
        if (reader < readers) {
            if (tile > from)
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float shrink = shrinks[r];
#pragma unroll
                    for (int k = 0; k < WIDE; k++) sums[r][k] *= shrink;
                }
            auto take = [&](const uint4 &loaded, int i) {
                float numbers[WIDE];
                unpack<ELEMENT>(loaded, numbers);
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    float weight = scores[r * TEAM + i];
#pragma unroll
                    for (int k = 0; k < WIDE; k++) sums[r][k] += weight * numbers[k];
                }
            };
#pragma unroll
            for (int k = 0; k < AHEAD; k++)
                if (reader + k * readers < count) take(ahead[k], reader + k * readers);
#pragma unroll 4
            for (int i = reader + AHEAD * readers; i < count; i += readers)
                take(((const uint4 *)(a.values + place(slots[i])))[word], i);
        }
        __syncthreads();
    }

#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int k = 0; k < WIDE; k++) memory[(r * WIDE + k) * PITCH + thread] = sums[r][k];
    __syncthreads();
    auto whole = [&](int row, int i) {
        float sum = 0;
        const float *part = memory + (row * WIDE + i % WIDE) * PITCH + i / WIDE;
#pragma unroll 4
        for (int reader = 0; reader < readers; reader++) sum += part[reader * words];
        return sum;
    };
    if (splits == 1) {
        write<ELEMENT, ROWS>(a, kv_head, first, begin, rows, share, whole);
        return;
    }
    // The split that comes last adds up what all have found.
    int unit = blockIdx.y * gridDim.x + blockIdx.x, size = ROWS * (a.head + 2);
    volatile float *found = a.partials + ((long)unit * gridDim.z + split) * size;
    for (int row = 0; row < rows; row++)
        for (int i = thread; i < a.head; i += TEAM) found[row * a.head + i] = whole(row, i);
    if (thread < ROWS) {
        found[ROWS * a.head + thread] = share.maxima[thread];
        found[ROWS * (a.head + 1) + thread] = share.totals[thread];
    }
    __threadfence();
    __syncthreads();
    if (thread == 0) last = atomicAdd(&a.arrived[unit], 1) == splits - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    found = a.partials + (long)unit * gridDim.z * size;
    if (thread == 0) a.arrived[unit] = 0;
    if (thread < ROWS) {
        float max = minus_inf(), total = 0;
        for (int s = 0; s < splits; s++) max = fmaxf(max, found[s * size + ROWS * a.head + thread]);
        for (int s = 0; s < splits; s++) {
            float own = found[s * size + ROWS * a.head + thread], factor = own > minus_inf() ? __expf(own - max) : 0;
            total += factor * found[s * size + ROWS * (a.head + 1) + thread];
            memory[s * ROWS + thread] = factor;
        }
        share.maxima[thread] = max, share.totals[thread] = total;
    }
    __syncthreads();
    write<ELEMENT, ROWS>(a, kv_head, first, begin, rows, share, [&](int row, int i) {
        float sum = 0;
#pragma unroll 4
        for (int s = 0; s < splits; s++) sum += memory[s * ROWS + row] * found[s * size + row * a.head + i];
        return sum;
    });
}

#define KERNEL(name, element, rows)                                                                        \
    extern "C" __global__ void __launch_bounds__(TEAM) name(const Attention a) { attend<element, rows>(a); }
KERNEL(attend_f16_1, 1, 1)
KERNEL(attend_f16_4, 1, 4)
KERNEL(attend_f16_8, 1, 8)
KERNEL(attend_bf16_1, 2, 1)
KERNEL(attend_bf16_4, 2, 4)
KERNEL(attend_bf16_8, 2, 8)
