// CUDA kernels on rows of several models: sums, residuals, and draws from these, for several sequences at once. They
// are compiled behind rows.cu, and src/rows/sums.rs launches them.

// A row as a term of a sum. `floor` and `cut` are the result of its filters.
struct Term {
    const void *row;
    double scale;
    float max, rate;
    int element, cut;
    float floor;
    int padding;
};

// The terms of a sum, from one model or several.
struct Terms {
    Term terms[8];
    int count, vocab;
    int without; // the token of a proposal without a row, or -1
    int padding;
};

// How the score of one token changes: `bias` is added; then a positive score is divided by `repetition`, and any other
// one is multiplied; `less` is subtracted last. src/rows/edits.rs has the same struct.
struct Change {
    u32 token;
    float bias, repetition, less;
};

// A sum that is asked for. If `judged`, the last term is not summed; tokens whose score in it is below `floor` get
// minus infinity. So do those whose bit in `mask` is 0, if `masked`. Then the scores of some tokens change, and tokens
// are dropped by their probabilities: all but the typical ones, and all top choices but the least, if these are not 0.
struct Blend {
    Terms terms;
    int judged;
    float floor;
    const Change *changes; // one for each token that changes
    const u32 *mask;       // a bit for each token
    int changed, masked;
    float typical; // the share that the typical tokens have
    float exclude; // the least probability of a top choice
    int padding[2];
};

// A residual that was made.
struct Residual {
    double total;
    Drawn drawn;
};

// A residual that is asked for, and a draw from it: at `share`, or if that is negative, at `uniform` times the whole.
struct Rest {
    Terms terms;
    double *sums; // by chunk
    Residual *out;
    double uniform, share;
};

// Copy a question to shared memory, with all threads of a block.
template <typename T> __device__ void load(T &to, const T *from) {
    for (int i = threadIdx.x; i < (int)(sizeof(T) / sizeof(u32)); i += blockDim.x)
        ((u32 *)&to)[i] = ((const u32 *)from)[i];
    __syncthreads();
}

// Sum rows, each times its scale. The sum is NaN if a score is NaN or plus infinity, and minus infinity if a score is
// minus infinity. A term with a rate adds its weights instead of its scores. Some blocks for each sum, whose row in
// `out` has its number.
extern "C" __global__ void weigh(const Blend *asked, float *out) {
    const float INF = __int_as_float(0x7f800000);
    __shared__ Blend of;
    load(of, asked + blockIdx.y);
    const Terms &terms = of.terms;
    int count = terms.count - of.judged;
    out += (long)blockIdx.y * terms.vocab;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < terms.vocab; i += gridDim.x * blockDim.x) {
        float sum = 0;
        bool impossible = false, bad = false;
        for (int k = 0; k < count; k++) {
            float score = to_float(terms.terms[k].row, terms.terms[k].element, i);
            bad |= !(score < INF);
            if (terms.terms[k].rate > 0) {
                sum += (float)terms.terms[k].scale * expf((score - terms.terms[k].max) * terms.terms[k].rate);
                continue;
            }
            impossible |= score == -INF;
            sum = __fadd_rn(sum, __fmul_rn((float)terms.terms[k].scale, score));
        }
        if (of.judged) {
            float score = to_float(terms.terms[count].row, terms.terms[count].element, i);
            impossible |= score < of.floor;
            bad |= !(score < INF);
        }
        impossible |= of.masked && !(of.mask[i / 32] >> i % 32 & 1);
        out[i] = bad ? nan() : impossible ? -INF : sum;
    }
}

// Change scores of the sums that `weigh` has made. Some blocks for each sum.
extern "C" __global__ void change(const Blend *asked, float *out) {
    const Blend &of = asked[blockIdx.y];
    out += (long)blockIdx.y * of.terms.vocab;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < of.changed; i += gridDim.x * blockDim.x) {
        Change change = of.changes[i];
        // A fused multiplication would round otherwise than the host does.
        float score = __fadd_rn(out[change.token], change.bias);
        score = score > 0 ? __fdiv_rn(score, change.repetition) : __fmul_rn(score, change.repetition);
        out[change.token] = __fadd_rn(score, -change.less);
    }
}

// The state of a block of NEAR threads that drops tokens of a row.
struct Dropping {
    double sums[NEAR];
    u64 cumulative[NEAR];
    Sum bins[NEAR];
    int counts[NEAR];
    int bin;
};

// Join a number of each thread of the block.
template <typename T, typename Join> __device__ T join_all(T *numbers, T own, Join join) {
    int i = threadIdx.x;
    __syncthreads();
    numbers[i] = own;
    __syncthreads();
    for (int half = NEAR / 2; half > 0; half /= 2) {
        if (i < half) numbers[i] = join(numbers[i], numbers[i + half]);
        __syncthreads();
    }
    return numbers[0];
}

__device__ double sum_all(Dropping &state, double own) {
    return join_all(state.sums, own, [](double a, double b) { return a + b; });
}

// Keep the fewest tokens whose information is nearest to the entropy, and that have a share of the whole. Of tokens
// that are as near, the first ones are kept.
__device__ void keep_typical(Dropping &state, float *row, int vocab, float max, float typical) {
    const float INF = __int_as_float(0x7f800000);
    int thread = threadIdx.x;
    double total = 0, times = 0;
    for (int i = thread; i < vocab; i += NEAR) {
        float below = row[i] - max, weight = below > -INF ? expf(below) : 0;
        total += weight;
        times += weight > 0 ? __fmul_rn(below, weight) : 0;
    }
    total = sum_all(state, total), times = sum_all(state, times);
    float entropy = (float)(log(total) - times / total), least = max + (float)log(total);
    auto key = [&](int i) { return (u64)__float_as_uint(fabsf(least - row[i] - entropy)) << 32 | (u32)i; };
    double share = typical * total;
    // Digit by digit, find the last key that is kept. Those of the tokens searched begin like `found`, and the weights
    // of all smaller ones sum up to `before`.
    u64 found = 0, before = 0;
    for (int shift = 54, known = 64;; known = shift, shift = shift > 10 ? shift - 10 : 0) {
        state.bins[thread] = {0, 0}, state.counts[thread] = 0;
        if (thread == 0) state.bin = NEAR;
        __syncthreads();
        for (int i = thread; i < vocab; i += NEAR) {
            if (!(row[i] > -INF) || (known < 64 && key(i) >> known != found >> known)) continue;
            int bin = (int)(key(i) >> shift) & (NEAR - 1);
            add(state.bins[bin], weight_of(row[i], max, 1));
            atomicAdd(&state.counts[bin], 1);
        }
        __syncthreads();
        state.cumulative[thread] = value_of(state.bins[thread]);
        accumulate(state.cumulative, NEAR);
        auto reaches = [&](int bin) { return (before + state.cumulative[bin]) / ONE >= share; };
        if (reaches(thread) && (thread == 0 || !reaches(thread - 1))) state.bin = thread;
        __syncthreads();
        int bin = state.bin;
        if (bin == NEAR) return; // by rounding, no token is the last one
        before += bin > 0 ? state.cumulative[bin - 1] : 0;
        found |= (u64)bin << shift;
        bool is_last = shift == 0 || state.counts[bin] == 1;
        __syncthreads();
        if (!is_last) continue;
        found |= (1ull << shift) - 1;
        break;
    }
    for (int i = thread; i < vocab; i += NEAR)
        if (key(i) > found) row[i] = -INF;
}

// Of the tokens of at least this probability, keep only the least probable one, and of equal ones the last.
__device__ void exclude_top(Dropping &state, float *row, int vocab, float max, float probability) {
    const float INF = __int_as_float(0x7f800000);
    double total = 0;
    for (int i = threadIdx.x; i < vocab; i += NEAR) total += row[i] > -INF ? expf(row[i] - max) : 0;
    total = sum_all(state, total);
    float least = max + (float)(log(total) + log((double)probability));
    u64 kept = 0;
    for (int i = threadIdx.x; i < vocab; i += NEAR)
        if (row[i] >= least && row[i] > -INF && key_of(row[i], i) > kept) kept = key_of(row[i], i);
    kept = join_all(state.cumulative, kept, [](u64 a, u64 b) { return a > b ? a : b; });
    for (int i = threadIdx.x; i < vocab; i += NEAR)
        if (row[i] >= least && i != (int)(u32)kept) row[i] = -INF;
}

// Drop tokens of the sums that `weigh` and `change` have made, by their probabilities at temperature 1. One block of
// NEAR threads for each sum. A bad row stays as it is.
extern "C" __global__ void __launch_bounds__(NEAR) drop(const Blend *asked, float *out) {
    const float INF = __int_as_float(0x7f800000);
    __shared__ Dropping state;
    const Blend &of = asked[blockIdx.x];
    int vocab = of.terms.vocab;
    if (of.typical == 0 && of.exclude == 0) return;
    out += (long)blockIdx.x * vocab;
    bool bad = false;
    float max = -INF;
    for (int i = threadIdx.x; i < vocab; i += NEAR) bad |= !(out[i] < INF), max = fmaxf(max, out[i]);
    if (__syncthreads_or(bad)) return;
    max = (float)join_all(state.sums, (double)max, [](double a, double b) { return a > b ? a : b; });
    if (max == -INF) return;
    if (of.typical > 0) keep_typical(state, out, vocab, max, of.typical);
    __syncthreads();
    if (of.exclude > 0) exclude_top(state, out, vocab, max, of.exclude);
}

// The weight of a token in the residual distribution: the probability in the sum of terms minus that in the proposal,
// if positive. The proposal is the last term, or the token `without`.
__device__ float left_over(const Terms &terms, int i) {
    if (i == terms.without) return 0;
    float weight = 0;
    for (int k = 0; k < terms.count; k++) {
        const Term &term = terms.terms[k];
        float score = to_float(term.row, term.element, i);
        if (!keeps(score, i, term.floor, term.cut)) continue;
        float share = (float)term.scale * expf((score - term.max) * term.rate);
        weight += terms.without >= 0 || k + 1 < terms.count ? share : -share;
    }
    return weight > 0 ? weight : 0;
}

// Sum the residual weights of each chunk. One block for each (chunk, residual).
extern "C" __global__ void residual(const Rest *asked) {
    __shared__ Rest of;
    load(of, asked + blockIdx.y);
    const Terms &terms = of.terms;
    int chunk = blockIdx.x, thread = threadIdx.x;
    int length = (terms.vocab + CHUNKS - 1) / CHUNKS;
    int begin = min(terms.vocab, chunk * length), end = min(terms.vocab, begin + length);
    double total = 0;
    for (int i = begin + thread; i < end; i += THREADS) total += left_over(terms, i);
    __shared__ double totals[THREADS];
    totals[thread] = total;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) totals[thread] += totals[thread + half];
        __syncthreads();
    }
    if (thread == 0) of.sums[chunk] = totals[0];
}

// Draw the token at which the cumulative sum of residual weights exceeds the share. `residual` has summed the chunks.
// One block for each residual.
extern "C" __global__ void pick(const Rest *asked) {
    __shared__ Rest of;
    load(of, asked + blockIdx.x);
    const Terms &terms = of.terms;
    int thread = threadIdx.x;
    __shared__ double sums_of[THREADS], total, share, left;
    __shared__ int chunk;
    if (thread < CHUNKS) sums_of[thread] = of.sums[thread];
    __syncthreads();
    if (thread == 0) {
        total = 0, chunk = 0;
        for (int i = 0; i < CHUNKS; i++) total += sums_of[i];
        // The host asks for the share that it computes like this. A fused multiplication would round otherwise.
        left = share = of.share < 0 ? __dmul_rn(of.uniform, total) : of.share;
        for (int i = 0; i < CHUNKS; i++) {
            if (sums_of[i] <= 0) continue;
            chunk = i;
            if (left < sums_of[i]) break;
            left -= sums_of[i]; // rounding may lead behind the last chunk; then the rest is too much of it
        }
    }
    __syncthreads();
    int length = (terms.vocab + CHUNKS - 1) / CHUNKS;
    int begin = min(terms.vocab, chunk * length), end = min(terms.vocab, begin + length);
    int each = (end - begin + THREADS - 1) / THREADS;
    int from = min(end, begin + thread * each), to = min(end, from + each);
    double sum = 0;
    for (int i = from; i < to; i++) sum += left_over(terms, i);
    sums_of[thread] = sum;
    __syncthreads();
    if (thread == 0) {
        double before = 0, behind = 0; // the sums up to the last thread with a weight, and with it
        int token = -1, last = 0;      // if rounding leaves a rest, that thread has the token
        for (int t = 0; t < THREADS && behind <= left; t++)
            if (sums_of[t] > 0) last = t, before = behind, behind += sums_of[t];
        int i = min(end, begin + last * each), stop = min(end, i + each);
        for (; i < stop; i++) {
            double weight = left_over(terms, i);
            if (weight <= 0) continue;
            token = i;
            before += weight;
            if (before > left) break;
        }
        *of.out = {total, {share, token, 0}};
    }
}
