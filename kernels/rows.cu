// CUDA kernels on rows of logits in GPU memory. `scripts/make-ptx` compiles them, followed by those of sums.cu, to
// rows.ptx, which the driver compiles for its GPU. src/rows/device.rs launches them, and has the same constants and
// structs.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

const int CHUNKS = 32;   // chunks of a row; a block of THREADS threads handles each
const int THREADS = 256;
const int ROWS = 64;     // slots of the ring; the row of a position is in slot `position % ROWS`
const int NOTED = 20;    // the most tokens of a pass whose scores are noted
const int NEAR = 1024;   // threads that filter a row, and the most tokens that they list
const int FOLD = CHUNKS * THREADS / NEAR; // threads of `keep` whose tokens form a group
const int DRAWS = 2;     // tokens that a pass draws from the last row of a sequence
const int BINS = 512;    // bins of scores, of equal width
const float REACH = 16;  // the bins cover weights down to e^-REACH of the largest
const int NONE = 0x7fffffff;
static_assert(NEAR == 32 * CHUNKS, "to scan a row, each warp takes a chunk");

struct Part;
struct Kept;
struct Summary;

// The parameters of a sequence's share of a pass, which the graph of the pass reads from memory.
struct Control {
    char *ring;         // the memory of the sequence for rows
    Part *parts;        // by slot of the ring and chunk
    float *peaks;       // by slot, chunk and thread of `keep`
    Kept *kept;         // by slot
    Summary *summaries; // by slot
    int row;      // the index of its first row in `logits`
    int given;    // its rows
    int first;    // the position of the first one
    int skipped;  // rows at the front that nobody reads
    int vocab;    // tokens; further columns are padding
    float rate;   // 1 / temperature
    int start;    // the position of the pass's first token
    int known;       // whether the row of that position is in the ring
    int width;       // tokens of the pass
    int top_k;       // 0 keeps all tokens
    float top_p;     // 1 keeps all tokens
    float distance;  // for min-p: a token is kept if its score is at least the largest one plus this; -inf keeps all
    int tokens[NOTED];
    double uniforms[DRAWS]; // where tokens are drawn from the last row, as shares of the whole; none if negative
};

// The summary of a chunk.
struct Part {
    double total;      // the sum of weights e^((score - max) * rate)
    float max, second; // the largest score, NaN if a score is NaN or plus infinity, and the largest of all others
    int best, padding; // the first token with the largest score
};

// What the filters keep of a row.
struct Kept {
    double chunks[CHUNKS]; // the sums of the weights that they keep
    double total;
    float floor; // the least score that they keep
    int cut;     // the first token with that score that they do not keep; -1 if the filters have no result
};

// A token that was drawn where the cumulative sum of weights exceeds a share.
struct Drawn {
    double share; // -1 if none was drawn
    int token;
    float score;
};

// The summary of a row.
struct Summary {
    double total; // as in Part
    float max, second;
    int best;
    int position;
    int token;   // the token that the pass has at this position, or -1
    float score; // its score
    double kept; // as in Kept
    float floor;
    int cut;
    Drawn drawn[DRAWS];
};

// Whether a sequence has filters.
__device__ bool filters(const Control *control) {
    return control->top_k > 0 || control->top_p < 1 || control->distance > __int_as_float(0xff800000);
}

// The value of a 16-bit element: float16 if `element` is 1, else bfloat16.
__device__ float of_bits(u16 bits, int element) {
    float value;
    if (element == 1)
#ifdef __CUDA_ARCH__
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
#else
        value = of_half(bits); // defined by tests/kernels, which run on the CPU
#endif
    else
        value = __uint_as_float((u32)bits << 16);
    return value;
}

// Element i of a row; `element` is 0 for float32.
__device__ float to_float(const void *row, int element, long i) {
    return element == 0 ? ((const float *)row)[i] : of_bits(((const u16 *)row)[i], element);
}

__device__ int bytes_of(int element) { return element == 0 ? 4 : 2; }

// Bytes between rows of the ring, which are aligned to 16 bytes.
__device__ long stride_of(long columns, int element) { return (columns * bytes_of(element) + 15) / 16 * 16; }

// Whether filters with this result keep a token.
__device__ bool keeps(float score, int token, float floor, int cut) {
    return score > floor || (score == floor && token < cut);
}

__device__ float nan() { return __uint_as_float(0x7fc00000u); }

// The chunks of a row and their combination.
struct Joined {
    Part parts[CHUNKS], whole;
    double totals[CHUNKS]; // for each chunk, with weights relative to the largest score of the row
};

// Combine the chunks of a row, with all threads of a block. NaN in a chunk makes the maximum NaN.
__device__ void join(Joined &row, const Part *parts, float rate) {
    int thread = threadIdx.x;
    if (thread < CHUNKS) row.parts[thread] = parts[thread];
    __syncthreads();
    if (thread == 0) {
        Part whole = row.parts[0];
        for (int chunk = 1; chunk < CHUNKS; chunk++) {
            Part part = row.parts[chunk];
            if (part.max != part.max || whole.max != whole.max)
                whole.max = nan();
            else if (part.max > whole.max)
                whole.second = fmaxf(part.second, whole.max), whole.max = part.max, whole.best = part.best;
            else
                whole.second = fmaxf(whole.second, part.max);
        }
        row.whole = whole;
    }
    __syncthreads();
    if (thread < CHUNKS) {
        Part part = row.parts[thread];
        row.totals[thread] = part.total > 0 ? part.total * exp((double)(part.max - row.whole.max) * rate) : 0;
    }
    __syncthreads();
    if (thread == 0) {
        double total = 0;
        for (int chunk = 0; chunk < CHUNKS; chunk++) total += row.totals[chunk];
        row.whole.total = total;
    }
    __syncthreads();
}

// Copy words of 16 bytes between host and GPU. For few words, this takes less time than the driver needs to start a
// copy.
extern "C" __global__ void transfer(const uint4 *from, uint4 *to, int words) {
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < words; i += gridDim.x * THREADS) to[i] = from[i];
}

// Copy rows into the rings and summarise their chunks. `peaks` gets the largest score that each thread has seen.
// One block for each (chunk, row of a sequence, sequence).
extern "C" __global__ void keep(const void *logits, int element, long columns, const Control *controls) {
    const Control *control = controls + blockIdx.z;
    int row = blockIdx.y, chunk = blockIdx.x, thread = threadIdx.x;
    if (row < control->skipped || row >= control->given) return;
    const float INF = __int_as_float(0x7f800000);
    int vocab = control->vocab;
    float rate = control->rate;
    int slot = (control->first + row) % ROWS;
    const char *from = (const char *)logits + (control->row + row) * columns * bytes_of(element);
    char *to = control->ring + slot * stride_of(columns, element);
    int length = (vocab + CHUNKS - 1) / CHUNKS, begin = min(vocab, chunk * length), end = min(vocab, begin + length);

    Part part = {0, -INF, -INF, begin, 0};
    bool bad = false;
    const int BATCH = 8; // loads in flight
    for (int first = begin + thread; first < end; first += BATCH * THREADS) {
        u32 bits[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int i = min(first + k * THREADS, end - 1);
            bits[k] = element == 0 ? ((const u32 *)from)[i] : ((const u16 *)from)[i];
        }
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int i = first + k * THREADS;
            if (i >= end) break;
            float score = element == 0 ? __uint_as_float(bits[k]) : of_bits((u16)bits[k], element);
            if (element == 0)
                ((u32 *)to)[i] = bits[k];
            else
                ((u16 *)to)[i] = (u16)bits[k];
            bad |= !(score < INF);
            if (score > part.max)
                part.second = part.max, part.max = score, part.best = i;
            else
                part.second = fmaxf(part.second, score);
        }
    }
    __shared__ float maxima[THREADS], seconds[THREADS];
    __shared__ int bests[THREADS];
    __shared__ double totals[THREADS];
    int any_bad = __syncthreads_or(bad);
    control->peaks[(slot * CHUNKS + chunk) * THREADS + thread] = part.max;
    maxima[thread] = part.max, seconds[thread] = part.second, bests[thread] = part.best;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) {
            float a = maxima[thread], b = maxima[thread + half];
            bool other = b > a || (b == a && bests[thread + half] < bests[thread]);
            seconds[thread] = fmaxf(fmaxf(seconds[thread], seconds[thread + half]), fminf(a, b));
            if (other) maxima[thread] = b, bests[thread] = bests[thread + half];
        }
        __syncthreads();
    }
    float max = maxima[0];
    double total = 0;
    if (max > -INF)
#pragma unroll 4
        for (int i = begin + thread; i < end; i += THREADS) total += expf((to_float(from, element, i) - max) * rate);
    totals[thread] = total;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) totals[thread] += totals[thread + half];
        __syncthreads();
    }
    if (thread == 0) {
        Part whole = {totals[0], any_bad ? nan() : max, seconds[0], bests[0], 0};
        control->parts[slot * CHUNKS + chunk] = whole;
    }
}

// Summarise rows, and note the score of the token that the pass has at each row's position. One block of CHUNKS threads
// for each (row of a sequence, sequence), and one more row that notes the score of the sequence's first token, whose
// row is in the ring.
extern "C" __global__ void summarise(const void *logits, int element, long columns, const Control *controls) {
    const Control *control = controls + blockIdx.y;
    int row = blockIdx.x, thread = threadIdx.x;
    long size = bytes_of(element);
    Summary *summaries = control->summaries;
    if (row == (int)gridDim.x - 1) {
        if (!control->known || thread > 0) return;
        int slot = control->start % ROWS;
        Summary *summary = summaries + slot;
        summary->token = control->tokens[0];
        summary->score = to_float(control->ring + slot * stride_of(columns, element), element, control->tokens[0]);
        return;
    }
    if (row < control->skipped || row >= control->given) return;
    int position = control->first + row, slot = position % ROWS;
    __shared__ Joined joined;
    join(joined, control->parts + slot * CHUNKS, control->rate);
    if (thread > 0) return;
    const Part &whole = joined.whole;
    Summary summary = {whole.total, whole.max, whole.second, whole.best, position, -1, 0, 0, 0, -1, {}};
    for (Drawn &drawn : summary.drawn) drawn.share = -1;
    int next = position - control->start;
    if (next < control->width) {
        summary.token = control->tokens[next];
        summary.score = to_float((const char *)logits + (control->row + row) * columns * size, element, summary.token);
    }
    summaries[slot] = summary;
}

// Weights as integers, whose sum does not depend on the order.
const double ONE = 4398046511104.0; // 2^42: up to 2^22 weights of at most 1 fit in 64 bits
__device__ u64 weight_of(float score, float max, float rate) { return (u64)((double)expf((score - max) * rate) * ONE); }

// A 64-bit sum from 32-bit atomics, which shared memory has.
struct Sum {
    u32 low, high;
};
__device__ void add(Sum &sum, u64 weight) {
    u32 low = (u32)weight, before = atomicAdd(&sum.low, low), high = (u32)(weight >> 32) + (before + low < before);
    if (high) atomicAdd(&sum.high, high);
}
__device__ u64 value_of(const Sum &sum) { return (u64)sum.high << 32 | sum.low; }

// A key that sorts tokens by descending score, then by ascending number.
__device__ u64 key_of(float score, int token) {
    u32 bits = __float_as_uint(score + 0.0f); // turns -0 into 0
    u32 ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)~ascending << 32 | (u32)token;
}
__device__ float score_of(u64 key) {
    u32 ascending = ~(u32)(key >> 32);
    return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

// The state of a block of NEAR threads that filters a row.
struct Search {
    Joined row;
    u64 groups[NEAR], keys[NEAR], sums[NEAR]; // groups by their largest score, listed tokens, cumulative sums
    Sum bins[BINS], chunks[CHUNKS];
    int listed; // tokens that were listed, even beyond the room in `keys`
    int last;   // the index of the last key that is kept
    int bin;
    float floor;
    int cut;
};

// Add a token to the list.
__device__ void list(Search &search, int token, float score) {
    int place = atomicAdd(&search.listed, 1);
    if (place < NEAR) search.keys[place] = key_of(score, token);
}

// Sort `count` keys in ascending order (bitonic sort).
__device__ void sort(u64 *keys, int count) {
    int size = 1, i = threadIdx.x;
    while (size < count) size *= 2;
    if (i >= count && i < size) keys[i] = ~0ull;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2)
        for (int gap = run / 2; gap > 0; gap /= 2) {
            int other = i ^ gap;
            if (i < size && i < other) {
                u64 a = keys[i], b = keys[other];
                if ((a > b) == ((i & run) == 0)) keys[i] = b, keys[other] = a;
            }
            __syncthreads();
        }
}

// Replace numbers by their cumulative sums.
__device__ void accumulate(u64 *numbers, int count) {
    int i = threadIdx.x;
    __syncthreads();
    for (int gap = 1; gap < count; gap *= 2) {
        u64 more = i >= gap && i < count ? numbers[i - gap] : 0;
        __syncthreads();
        numbers[i] += more;
        __syncthreads();
    }
}

// List the tokens whose score is at least `lowest`. A warp reads each group that has one; other groups are skipped.
__device__ void list_best(Search &search, const char *row, const float *peaks, int element, int vocab, float lowest) {
    const int TEAM = 32 / FOLD; // lanes for the tokens of one thread of `keep`
    int lane = threadIdx.x % 32, length = (vocab + CHUNKS - 1) / CHUNKS;
    for (int i = threadIdx.x / 32; i < NEAR && score_of(search.groups[i]) >= lowest; i += NEAR / 32) {
        int seen = (int)(u32)search.groups[i] + lane / TEAM * NEAR, begin = seen / THREADS * length,
            end = min(vocab, begin + length);
        if (peaks[seen] < lowest) continue;
#pragma unroll 4
        for (int token = begin + seen % THREADS + lane % TEAM * THREADS; token < end; token += TEAM * THREADS) {
            float score = to_float(row, element, token);
            if (score >= lowest) list(search, token, score);
        }
    }
}

// Call `visit(token, score)` for all scores of at least `lowest`. A warp reads each chunk.
template <typename Visit>
__device__ void scan(const Search &search, const char *row, int element, int vocab, float lowest, Visit visit) {
    int chunk = threadIdx.x / 32, length = (vocab + CHUNKS - 1) / CHUNKS, end = min(vocab, (chunk + 1) * length);
    if (search.row.parts[chunk].max < lowest) return;
#pragma unroll 4
    for (int token = chunk * length + threadIdx.x % 32; token < end; token += 32) {
        float score = to_float(row, element, token);
        if (score >= lowest) visit(token, score);
    }
}

// Sort the listed tokens, and compute cumulative sums of their worth.
template <typename Worth> __device__ void rank(Search &search, int listed, Worth worth) {
    int i = threadIdx.x;
    sort(search.keys, listed);
    search.sums[i] = i < listed ? worth(score_of(search.keys[i])) : 0;
    accumulate(search.sums, listed);
}

// A row that is filtered, and how.
struct Filtered {
    const char *scores;
    const float *peaks;
    int element, vocab, top_k;
    float top_p, rate, max;
    float least; // the least score of min-p
    bool orders; // whether top-k or top-p ends somewhere
};

__device__ u64 weight_in(const Filtered &row, float score) { return weight_of(score, row.max, row.rate); }

// Sum the weights that are kept, for each chunk.
__device__ void keep_sum(Search &search, const Filtered &row, float floor, int cut) {
    u64 sum = 0;
    scan(search, row.scores, row.element, row.vocab, floor, [&](int token, float score) {
        if (keeps(score, token, floor, cut)) sum += weight_in(row, score);
    });
    if (sum > 0) add(search.chunks[threadIdx.x / 32], sum);
}

__device__ u64 sum_of_chunks(const Search &search) {
    u64 all = 0;
    for (int chunk = 0; chunk < CHUNKS; chunk++) all += value_of(search.chunks[chunk]);
    return all;
}

// Search among the best tokens, of which all that are kept are listed then. Returns whether the last one is found.
// `share` is the sum of weights that ends top-p.
__device__ bool search_best(Search &search, const Filtered &row, double &share) {
    const int FEW = 64, MANY = 512; // numbers of best groups whose tokens are listed first, and then
    const float LEAST = -3.402823466e38f; // the least finite score
    int thread = threadIdx.x, top_k = row.top_k;
    bool found = false;
    sort(search.groups, NEAR);
    for (int k = top_k > 0 ? top_k : FEW; k <= NEAR; k = MANY) {
        // At least k tokens reach the k-th best group's score, and seldom many more. Tokens with a score of minus
        // infinity have no weight and may be many, so they are left out.
        float lowest = fmaxf(row.orders ? score_of(search.groups[k - 1]) : row.least, LEAST);
        list_best(search, row.scores, row.peaks, row.element, row.vocab, lowest);
        __syncthreads();
        int listed = search.listed;
        if (listed <= NEAR) {
            rank(search, listed, [&](float score) { return weight_in(row, score); });
            int count = top_k > 0 ? min(top_k, listed) : listed;
            if (top_k > 0) share = row.top_p * (search.sums[count - 1] / ONE);
            auto reaches = [&](int i) { return row.top_p < 1 && search.sums[i] / ONE >= share; };
            if (thread < count && (thread == count - 1 || reaches(thread)) && (thread == 0 || !reaches(thread - 1)))
                search.last = thread;
            found = !row.orders || top_k > 0 || reaches(count - 1) || lowest == LEAST;
        }
        __syncthreads();
        if (thread == 0) search.listed = 0;
        __syncthreads();
        if (found || !row.orders || top_k > 0 || k == MANY) break;
    }
    return found;
}

// Search among all tokens: find the bin of the last token that is kept, then the token in it. A token is worth 1 to
// top-k, and its weight to top-p. Returns whether it is found.
__device__ bool search_all(Search &search, const Filtered &row, double share) {
    int thread = threadIdx.x;
    for (bool counts = row.top_k > 0;; counts = false) {
        double enough = counts ? row.top_k : share;
        auto worth = [&](float score) { return counts ? (u64)ONE : weight_in(row, score); };
        auto bin_of = [&](float score) { return (int)fminf(BINS - 1, (row.max - score) * row.rate * (BINS / REACH)); };
        auto reaches = [&](int i, u64 before) { return (before + search.sums[i]) / ONE >= enough; };
        float lowest = row.max - REACH / row.rate;
        if (thread < BINS) search.bins[thread] = {0, 0};
        if (thread == 0) search.bin = BINS;
        __syncthreads();
        scan(search, row.scores, row.element, row.vocab, lowest,
             [&](int, float score) { add(search.bins[bin_of(score)], worth(score)); });
        __syncthreads();
        search.sums[thread] = thread < BINS ? value_of(search.bins[thread]) : 0;
        accumulate(search.sums, BINS);
        if (thread < BINS && reaches(thread, 0) && (thread == 0 || !reaches(thread - 1, 0))) search.bin = thread;
        __syncthreads();
        int bin = search.bin;
        if (bin == BINS) return false;
        u64 before = bin > 0 ? search.sums[bin - 1] : 0;
        scan(search, row.scores, row.element, row.vocab, lowest, [&](int token, float score) {
            if (bin_of(score) == bin) list(search, token, score);
        });
        __syncthreads();
        int listed = search.listed;
        if (listed > NEAR) return false;
        rank(search, listed, worth);
        if (thread < listed && reaches(thread, before) && (thread == 0 || !reaches(thread - 1, before)))
            search.last = thread;
        __syncthreads();
        if (!counts || row.top_p >= 1) return true;
        u64 last = search.keys[search.last];
        keep_sum(search, row, score_of(last), (int)(u32)last + 1);
        __syncthreads();
        share = row.top_p * (sum_of_chunks(search) / ONE);
        __syncthreads();
        if (thread < CHUNKS) search.chunks[thread] = {0, 0};
        if (thread == 0) search.listed = 0;
    }
}

// Write the result of filters, for the host and for kernels.
__device__ void settle(Summary *summary, Kept *kept, double total, float floor, int cut) {
    summary->kept = kept->total = total, summary->floor = kept->floor = floor, summary->cut = kept->cut = cut;
}

// Find the tokens that the filters keep, in the order top-k, top-p, min-p. One block of NEAR threads for each (row of a
// sequence, sequence).
// If the search fails, `cut` stays -1, and the host filters the row.
extern "C" __global__ void __launch_bounds__(NEAR)
    filter(int element, long columns, const Control *controls) {
    const Control *control = controls + blockIdx.y;
    const float INF = __int_as_float(0x7f800000);
    __shared__ Search search;
    int index = blockIdx.x, thread = threadIdx.x;
    if (index < control->skipped || index >= control->given) return;
    int slot = (control->first + index) % ROWS;
    Kept *kept = control->kept + slot;
    Summary *summary = control->summaries + slot;
    Filtered row = {control->ring + slot * stride_of(columns, element), control->peaks + slot * CHUNKS * THREADS,
                    element, control->vocab, control->top_k, control->top_p, control->rate, 0, 0, false};
    // Tokens with similar numbers often have similar scores, so a group has tokens of chunks that are far apart.
    float peak = -INF;
    for (int seen = thread; seen < CHUNKS * THREADS; seen += NEAR) peak = fmaxf(peak, row.peaks[seen]);
    search.groups[thread] = key_of(peak, thread);
    if (thread < CHUNKS) search.chunks[thread] = {0, 0};
    if (thread == 0) search.listed = 0, kept->cut = -1;
    join(search.row, control->parts + slot * CHUNKS, row.rate);
    row.max = search.row.whole.max;
    if (!(row.max < INF && row.max > -INF)) return;
    if (!filters(control)) {
        if (thread < CHUNKS) kept->chunks[thread] = search.row.totals[thread];
        if (thread == 0) settle(summary, kept, search.row.whole.total, -INF, NONE);
        return;
    }
    row.least = __fadd_rn(row.max, control->distance), row.orders = row.top_k > 0 || row.top_p < 1;
    double share = row.top_p * search.row.whole.total;
    bool found = search_best(search, row, share);
    if (!found && row.orders && !search_all(search, row, share)) return;

    if (thread == 0) {
        float floor = -INF;
        int cut = NONE;
        if (row.orders) floor = score_of(search.keys[search.last]), cut = (int)(u32)search.keys[search.last] + 1;
        if (floor < row.least) floor = row.least, cut = NONE;
        search.floor = floor, search.cut = cut;
    }
    __syncthreads();
    float floor = search.floor;
    int cut = search.cut;
    if (!found) keep_sum(search, row, floor, cut);
    if (found && thread <= search.last) { // all tokens that are kept are listed
        int token = (int)(u32)search.keys[thread], length = (row.vocab + CHUNKS - 1) / CHUNKS;
        float score = score_of(search.keys[thread]);
        if (keeps(score, token, floor, cut)) add(search.chunks[token / length], weight_in(row, score));
    }
    __syncthreads();
    if (thread < CHUNKS) kept->chunks[thread] = value_of(search.chunks[thread]) / ONE;
    if (thread == 0) settle(summary, kept, sum_of_chunks(search) / ONE, floor, cut);
}

// Draw the token at which the cumulative sum of weights exceeds `share`, with all THREADS threads of a block. If `kept`
// is not null, only weights that the filters keep count. Only the first thread gets the result.
__device__ Drawn draw_from(const char *row, int element, int vocab, const Part *parts, float max, float rate,
                           const Kept *kept, double share) {
    int thread = threadIdx.x, cut = kept ? kept->cut : NONE;
    float floor = kept ? kept->floor : __int_as_float(0xff800000);
    auto weight = [&](int i) {
        float score = to_float(row, element, i);
        return keeps(score, i, floor, cut) ? expf((score - max) * rate) : 0.0f;
    };
    const int RUN = 16; // sums of threads that are skipped at once
    __shared__ double sums[THREADS], runs[THREADS / RUN];
    __shared__ int chosen;
    __shared__ double left;
    if (thread < CHUNKS) {
        Part part = parts[thread];
        sums[thread] = kept             ? kept->chunks[thread]
                       : part.total > 0 ? part.total * exp((double)(part.max - max) * rate)
                                        : 0;
    }
    __syncthreads();
    if (thread == 0) {
        double before = 0;
        int chunk = -1;
        for (int i = 0; i < CHUNKS; i++) {
            double part = sums[i];
            if (part <= 0) continue;
            chunk = i, left = share - before; // rounding may leave a rest after the last chunk
            if (before + part > share) break;
            before += part;
        }
        chosen = chunk;
    }
    __syncthreads();
    int length = (vocab + CHUNKS - 1) / CHUNKS, begin = min(vocab, chosen * length), end = min(vocab, begin + length);
    int each = (end - begin + THREADS - 1) / THREADS;
    int from = min(end, begin + thread * each), to = min(end, from + each);
    double sum = 0;
    for (int i = from; i < to; i++) sum += weight(i);
    sums[thread] = sum;
    __syncthreads();
    if (thread < THREADS / RUN) {
        double of = 0;
        for (int t = 0; t < RUN; t++) of += sums[thread * RUN + t];
        runs[thread] = of;
    }
    __syncthreads();
    if (thread == 0) {
        double before = 0;
        int token = parts[chosen].best, t = 0;
        bool found = false;
        for (; t < THREADS && before + runs[t / RUN] <= left; t += RUN) before += runs[t / RUN];
        for (; t < THREADS && !found; t++) {
            if (before + sums[t] <= left) {
                before += sums[t];
                continue;
            }
            int i = min(end, begin + t * each), stop = min(end, i + each);
            for (; i < stop && !found; i++) {
                double of = weight(i);
                if (of > 0) token = i;
                before += of;
                found = of > 0 && before > left;
            }
        }
        return {share, token, to_float(row, element, token)};
    }
    return {};
}

// Draw a token of one row. One block.
extern "C" __global__ void draw(const char *ring, int element, long columns, int vocab, int slot, const Part *parts,
                                float max, float rate, double share, const Kept *kept, Drawn *out) {
    Drawn drawn = draw_from(ring + slot * stride_of(columns, element), element, vocab, parts + slot * CHUNKS, max, rate,
                            kept ? kept + slot : kept, share);
    if (threadIdx.x == 0) *out = drawn;
}

// Draw tokens from the last row of each sequence, as `draw` does. One block for each (uniform, sequence).
extern "C" __global__ void draw_last(int element, long columns, const Control *controls) {
    const Control *control = controls + blockIdx.y;
    const float INF = __int_as_float(0x7f800000);
    double uniform = control->uniforms[blockIdx.x];
    if (control->given <= control->skipped || !(uniform >= 0)) return;
    int slot = (control->first + control->given - 1) % ROWS;
    const Part *parts = control->parts + slot * CHUNKS;
    const Kept *kept = filters(control) ? control->kept + slot : nullptr;
    __shared__ Joined joined;
    join(joined, parts, control->rate);
    float max = joined.whole.max;
    if (!(max < INF && max > -INF) || (kept && kept->cut < 0)) return;
    // The host asks for the share that it computes like this. A fused multiplication would round otherwise.
    double share = __dmul_rn(uniform, kept ? kept->total : joined.whole.total);
    Drawn drawn = draw_from(control->ring + slot * stride_of(columns, element), element, control->vocab, parts, max,
                            control->rate, kept, share);
    if (threadIdx.x == 0) control->summaries[slot].drawn[blockIdx.x] = drawn;
}
