// What is made of rows of logits where they are: on the GPU. `scripts/make-ptx` compiles this to rows.ptx, which the driver compiles
// for the GPU that there is.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

const int CHUNKS = 32;   // parts of a row, each for one block of THREADS
const int THREADS = 256;
const int ROWS = 64;     // of the ring; a position's row is in slot `position % ROWS`
const int NOTED = 20;    // most tokens of a pass whose scores are noted
const int BINS = 256;    // of equal width, in which the last token is sought that filters keep
const int NEAR = 1024;   // tokens among which it is then found
const float REACH = 10;  // how far they reach: below e^-REACH of the best weight nothing is sought
const int NONE = 0x7fffffff;

// What a pass is told beside its inputs.
struct Control {
    int first;    // position of the first row that is given
    int skipped;  // given rows in front that nobody wants
    int vocab;    // columns that count
    float rate;   // one over the temperature
    int start;    // position that the first token of the pass took; its row is in the ring if `known`
    int known;
    int width;
    int top_k;       // or 0
    float top_p;     // or 1
    float distance;  // from the largest score, to which a token may be below it; or minus infinity
    int tokens[NOTED];
};

// What is known of a part of a row, and of a row: the first maximum, the largest of all other scores, the sum of weights
// e^((score - max) * rate), and the score of the token that came after. What filters keep: the sum of its weights, the least score, and the
// first token of that score that is not kept; -1 if that is not known.
struct Part {
    double total;
    float max, second;
    int best, padding;
};
struct Summary {
    double total;
    float max, second;
    int best;
    int position;
    int token;
    float score;
    double kept;
    float floor;
    int cut;
};

// Of an element of 16 bits.
__device__ float of_bits(u16 bits, int element) {
    float value;
    if (element == 1)
#ifdef __CUDA_ARCH__
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
#else
        value = of_half(bits); // of tests/kernels, which run without a GPU
#endif
    else
        value = __uint_as_float((u32)bits << 16);
    return value;
}

__device__ float to_float(const void *row, int element, long i) {
    return element == 0 ? ((const float *)row)[i] : of_bits(((const u16 *)row)[i], element);
}

__device__ int bytes_of(int element) { return element == 0 ? 4 : 2; }

// From one row of the ring to the next, which begins where a word of 16 bytes does.
__device__ long stride_of(long columns, int element) { return (columns * bytes_of(element) + 15) / 16 * 16; }

__device__ bool keeps(float score, int token, float floor, int cut) { return score > floor || (score == floor && token < cut); }

__device__ float nan() { return __uint_as_float(0x7fc00000u); }

// The better of two parts of a row, the first one in front: scores, and where they are. NaN stays.
__device__ void join(Part &a, const Part &b, float rate) {
    float max, second;
    int best;
    if (a.max != a.max || b.max != b.max) {
        a.max = nan();
        return;
    }
    if (b.max > a.max) {
        max = b.max, best = b.best, second = fmaxf(b.second, a.max);
    } else {
        max = a.max, best = a.best, second = fmaxf(a.second, b.max);
    }
    double total = 0;
    if (a.max > -__int_as_float(0x7f800000)) total += a.total * exp((double)(a.max - max) * rate);
    if (b.max > -__int_as_float(0x7f800000)) total += b.total * exp((double)(b.max - max) * rate);
    a.max = max, a.second = second, a.best = best, a.total = total;
}

// Words of 16 bytes from the host to the GPU or back: where they are few, in less time than a copy by the driver takes to begin.
extern "C" __global__ void transfer(const uint4 *from, uint4 *to, int words) {
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < words; i += gridDim.x * THREADS) to[i] = from[i];
}

// Block (chunk, row): keeps a part of a row in the ring, and makes its Part.
extern "C" __global__ void keep(const void *logits, int element, long columns, const Control *control, char *ring, Part *parts) {
    int row = blockIdx.y, chunk = blockIdx.x, thread = threadIdx.x;
    if (row < control->skipped) return;
    const float INF = __int_as_float(0x7f800000);
    int vocab = control->vocab;
    float rate = control->rate;
    long size = bytes_of(element);
    int slot = (control->first + row) % ROWS;
    const char *from = (const char *)logits + row * columns * size;
    char *to = ring + slot * stride_of(columns, element);
    int length = (vocab + CHUNKS - 1) / CHUNKS, begin = min(vocab, chunk * length), end = min(vocab, begin + length);

    Part part = {0, -INF, -INF, begin, 0};
    bool bad = false;
    for (int i = begin + thread; i < end; i += THREADS) {
        float score = to_float(from, element, i);
        if (element == 0)
            ((float *)to)[i] = score;
        else
            ((u16 *)to)[i] = ((const u16 *)from)[i];
        bad |= !(score < INF);
        if (score > part.max)
            part.second = part.max, part.max = score, part.best = i;
        else
            part.second = fmaxf(part.second, score);
    }
    __shared__ float maxima[THREADS], seconds[THREADS];
    __shared__ int bests[THREADS];
    __shared__ double totals[THREADS];
    int any_bad = __syncthreads_or(bad);
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
        for (int i = begin + thread; i < end; i += THREADS) total += expf((to_float(from, element, i) - max) * rate);
    totals[thread] = total;
    __syncthreads();
    for (int half = THREADS / 2; half > 0; half /= 2) {
        if (thread < half) totals[thread] += totals[thread + half];
        __syncthreads();
    }
    if (thread == 0) {
        Part whole = {totals[0], any_bad ? nan() : max, seconds[0], bests[0], 0};
        parts[slot * CHUNKS + chunk] = whole;
    }
}

// Block (row): joins the parts of a row, and adds the score of the token behind it. One more block does the latter for the row before
// the pass.
extern "C" __global__ void summarise(const void *logits, int element, long columns, const Control *control, const char *ring,
                                     const Part *parts, Summary *summaries, int given) {
    int row = blockIdx.x;
    long size = bytes_of(element);
    if (row == given) {
        if (!control->known) return;
        int slot = control->start % ROWS;
        Summary *summary = summaries + slot;
        summary->token = control->tokens[0];
        summary->score = to_float(ring + slot * stride_of(columns, element), element, control->tokens[0]);
        return;
    }
    if (row < control->skipped) return;
    int position = control->first + row, slot = position % ROWS;
    Part whole = parts[slot * CHUNKS];
    for (int chunk = 1; chunk < CHUNKS; chunk++) join(whole, parts[slot * CHUNKS + chunk], control->rate);
    Summary summary = {whole.total, whole.max, whole.second, whole.best, position, -1, 0, 0, 0, -1};
    int next = position - control->start;
    if (next < control->width) {
        summary.token = control->tokens[next];
        summary.score = to_float((const char *)logits + row * columns * size, element, summary.token);
    }
    summaries[slot] = summary;
}

// Weights as whole numbers, whose sum is the same in any order.
const double ONE = 4398046511104.0; // 2^42: weights are at most 1, and there may be 2^22 of them
__device__ u64 whole(float weight) { return (u64)((double)weight * ONE); }

// A token and its score in an order in which the best is the least: higher score, then lower token.
__device__ u64 key_of(float score, int token) {
    u32 bits = __float_as_uint(score + 0.0f); // no negative 0
    u32 ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (u64)~ascending << 32 | (u32)token;
}
__device__ float score_of(u64 key) {
    u32 ascending = ~(u32)(key >> 32);
    return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

// Calls `visit(token, score)` for the scores of a row that reach `floor`, by all threads of a block. It begins at a multiple of 16 bytes.
template <typename Visit>
__device__ void scan(const char *row, int element, int vocab, float floor, Visit visit) {
    const int BATCH = 4; // words that are asked for before one is looked at
    const uint4 *words = (const uint4 *)row;
    int each = 16 / bytes_of(element), count = (vocab + each - 1) / each;
    for (int first = threadIdx.x; first < count; first += BATCH * blockDim.x) {
        uint4 batch[BATCH];
#pragma unroll
        for (int k = 0; k < BATCH; k++) batch[k] = words[min(first + k * (int)blockDim.x, count - 1)];
#pragma unroll
        for (int k = 0; k < BATCH; k++) {
            int word = first + k * (int)blockDim.x;
            u32 bits[4] = {batch[k].x, batch[k].y, batch[k].z, batch[k].w};
            if (word >= count) break;
#pragma unroll
            for (int j = 0; j < 4; j++)
                if (element == 0) {
                    int token = word * 4 + j;
                    float score = __uint_as_float(bits[j]);
                    if (token < vocab && score >= floor) visit(token, score);
                } else {
                    int token = word * 8 + 2 * j;
                    float low = of_bits((u16)bits[j], element), high = of_bits((u16)(bits[j] >> 16), element);
                    if (token < vocab && low >= floor) visit(token, low);
                    if (token + 1 < vocab && high >= floor) visit(token + 1, high);
                }
        }
    }
    __syncthreads();
}

// What a block knows of the row that it filters.
struct Search {
    u64 masses[BINS], chunks[CHUNKS], keys[NEAR];
    double share; // of top-p
    u64 mass;     // weights in better bins
    float max, rate, floor;
    int cut, length;
    int bin;
    int listed; // tokens that are in `keys`, or would be if there were room
    int last;   // the key that is kept last; -1 if it is not known
};

__device__ u64 weight_in(const Search &search, float score) { return whole(expf((score - search.max) * search.rate)); }

enum Look { COUNT, LIST, LIST_BIN, SUM };

__device__ __noinline__ void take(Search &search, Look look, int token, float score) {
    if (look == SUM) {
        if (keeps(score, token, search.floor, search.cut)) atomicAdd(&search.chunks[token / search.length], weight_in(search, score));
        return;
    }
    int bin = (int)fminf(BINS - 1, (search.max - score) * search.rate * (BINS / REACH));
    if (look == COUNT) {
        atomicAdd(&search.masses[bin], weight_in(search, score));
    } else if (look == LIST || bin == search.bin) {
        int place = atomicAdd(&search.listed, 1);
        if (place < NEAR) search.keys[place] = key_of(score, token);
    }
}

__device__ __noinline__ void look_at(Search &search, Look look, const char *row, int element, int vocab, float floor) {
    scan(row, element, vocab, floor, [&](int token, float score) { take(search, look, token, score); });
}

// Puts keys in order; `count` of them are there.
__device__ __noinline__ void sort(u64 *keys, int count) {
    int size = 1;
    while (size < count) size *= 2;
    for (int i = threadIdx.x; i < size; i += blockDim.x)
        if (i >= count) keys[i] = ~0ull;
    __syncthreads();
    for (int run = 2; run <= size; run *= 2)
        for (int gap = run / 2; gap > 0; gap /= 2) {
            for (int i = threadIdx.x; i < size; i += blockDim.x) {
                int other = i ^ gap;
                if (other < i) continue;
                u64 a = keys[i], b = keys[other];
                if ((a > b) == ((i & run) == 0)) keys[i] = b, keys[other] = a;
            }
            __syncthreads();
        }
}

// Block (row), of at most NEAR threads: what filters keep of it, in the order top-k, top-p, min-p. Leaves -1 as `cut` where that is too
// much to be sought here.
extern "C" __global__ void __launch_bounds__(NEAR) filter(int element, long columns, const Control *control, const char *ring, const Part *parts,
                                  Summary *summaries, double *kept) {
    const float INF = __int_as_float(0x7f800000);
    __shared__ Search search;
    int row = blockIdx.x, thread = threadIdx.x;
    if (row < control->skipped) return;
    int slot = (control->first + row) % ROWS, vocab = control->vocab, top_k = control->top_k;
    float top_p = control->top_p;
    const char *scores = ring + slot * stride_of(columns, element);
    for (int i = thread; i < BINS; i += blockDim.x) search.masses[i] = 0;
    for (int i = thread; i < CHUNKS; i += blockDim.x) search.chunks[i] = 0;
    if (thread == 0) {
        Part all = parts[slot * CHUNKS];
        for (int chunk = 1; chunk < CHUNKS; chunk++) join(all, parts[slot * CHUNKS + chunk], control->rate);
        search.max = all.max, search.rate = control->rate, search.share = top_p * all.total;
        search.floor = -INF, search.cut = NONE, search.length = (vocab + CHUNKS - 1) / CHUNKS;
        search.listed = 0, search.mass = 0, search.last = -1;
    }
    __syncthreads();
    if (!(search.max < INF && search.max > -INF)) return;
    Summary *summary = summaries + slot;
    if (top_k <= 0 && top_p >= 1 && control->distance == -INF) { // top-k of as many tokens as there are
        if (thread < CHUNKS) {
            Part part = parts[slot * CHUNKS + thread];
            kept[slot * CHUNKS + thread] = part.total > 0 ? part.total * exp((double)(part.max - search.max) * search.rate) : 0;
        }
        if (thread == 0) summary->kept = search.share, summary->floor = -INF, summary->cut = NONE;
        return;
    }

    if (top_k > 0) {
        // The best of what each thread sees: so many as reach the k-th of these are at least k, and seldom many more.
        float best = -INF;
        scan(scores, element, vocab, -INF, [&](int, float score) { best = fmaxf(best, score); });
        search.keys[thread] = key_of(best, thread);
        __syncthreads();
        sort(search.keys, blockDim.x);
        float lowest = top_k <= (int)blockDim.x ? score_of(search.keys[top_k - 1]) : -INF;
        __syncthreads(); // all have read it
        lowest = fmaxf(lowest, -3.402823466e38f); // what is impossible has no weight, and there may be much of it
        look_at(search, LIST, scores, element, vocab, lowest);
        if (search.listed > NEAR) return;
        sort(search.keys, search.listed);
        if (thread == 0) {
            search.last = min(top_k, search.listed) - 1;
            if (top_p < 1) {
                u64 mass = 0;
                for (int i = 0; i <= search.last; i++) mass += weight_in(search, score_of(search.keys[i]));
                search.share = top_p * (mass / ONE);
            }
        }
    } else if (top_p < 1) {
        float lowest = search.max - REACH / search.rate;
        look_at(search, COUNT, scores, element, vocab, lowest);
        if (thread == 0) {
            u64 mass = 0;
            int bin = 0;
            while (bin < BINS && (mass + search.masses[bin]) / ONE < search.share) mass += search.masses[bin++];
            search.mass = mass, search.bin = bin;
        }
        __syncthreads();
        if (search.bin == BINS) return;
        look_at(search, LIST_BIN, scores, element, vocab, lowest);
        if (search.listed > NEAR) return;
        sort(search.keys, search.listed);
        if (thread == 0) search.last = search.listed - 1;
    }
    if (thread == 0) {
        if (top_p < 1) {
            // The last token that is needed for the share, of those up to `last`.
            u64 mass = search.mass;
            int most = search.last, i = -1;
            do mass += weight_in(search, score_of(search.keys[++i]));
            while (i < most && mass / ONE < search.share);
            search.last = i;
        }
        if (search.last >= 0) {
            u64 key = search.keys[search.last];
            search.floor = score_of(key), search.cut = (int)(u32)key + 1;
        }
        float least = __fadd_rn(search.max, control->distance);
        if (search.floor < least) search.floor = least, search.cut = NONE;
    }
    __syncthreads();
    if (top_k > 0) { // all that is kept is there
        for (int i = thread; i <= search.last; i += blockDim.x) take(search, SUM, (int)(u32)search.keys[i], score_of(search.keys[i]));
        __syncthreads();
    } else
        look_at(search, SUM, scores, element, vocab, search.floor);
    if (thread < CHUNKS) kept[slot * CHUNKS + thread] = search.chunks[thread] / ONE;
    if (thread == 0) {
        u64 all = 0;
        for (int chunk = 0; chunk < CHUNKS; chunk++) all += search.chunks[chunk];
        summary->kept = all / ONE, summary->floor = search.floor, summary->cut = search.cut;
    }
}

// One block: the token at which the sum of weights from the front passes `share` of all; of those that filters keep, whose sums of chunks
// are `kept`, if that is not null.
extern "C" __global__ void draw(const char *ring, int element, long columns, int vocab, int slot, const Part *parts, float max,
                                float rate, double share, const double *kept, float floor, int cut, Summary *out) {
    int thread = threadIdx.x;
    const char *row = ring + slot * stride_of(columns, element);
    parts += slot * CHUNKS;
    auto weight = [&](int i) {
        float score = to_float(row, element, i);
        return keeps(score, i, floor, cut) ? expf((score - max) * rate) : 0.0f;
    };
    __shared__ double sums[THREADS];
    __shared__ int chosen;
    __shared__ double left;
    if (thread == 0) {
        double before = 0;
        int chunk = -1;
        for (int i = 0; i < CHUNKS; i++) {
            double part = parts[i].total > 0 ? parts[i].total * exp((double)(parts[i].max - max) * rate) : 0;
            if (kept) part = kept[slot * CHUNKS + i];
            if (part <= 0) continue;
            chunk = i, left = share - before; // rounding may leave a little behind the last one
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
    if (thread == 0) {
        double before = 0;
        int token = parts[chosen].best;
        bool found = false;
        for (int t = 0; t < THREADS && !found; t++) {
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
        out->token = token;
        out->score = to_float(row, element, token);
    }
}

// Rows of several models, or one.
struct Term {
    const void *row;
    double scale;
    float max, rate;
    int element, cut;
    float floor;
    int padding;
};
struct Terms {
    Term terms[8];
    int count, vocab;
    int without; // of a proposal that was certain: that token; else -1
    int padding;
};

// The sum of rows, each times its scale: NaN where any score is NaN or plus infinity, impossible where any is impossible, or where the
// judge, the last term, is below the floor. Of a term with a rate, its weights are added in place of its scores.
extern "C" __global__ void weigh(Terms terms, int judged, float floor, float *out) {
    const float INF = __int_as_float(0x7f800000);
    int count = terms.count - judged;
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
        if (judged) {
            float score = to_float(terms.terms[count].row, terms.terms[count].element, i);
            impossible |= score < floor;
            bad |= !(score < INF);
        }
        out[i] = bad ? nan() : impossible ? -INF : sum;
    }
}

// What a proposal, the last term, leaves of the sum of the others' probabilities; or of all of them, if it was certain.
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

// Block (chunk): the sum of what is left there.
extern "C" __global__ void residual(Terms terms, double *sums) {
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
    if (thread == 0) sums[chunk] = totals[0];
}

// One block: the token of a chunk at which the sum of what is left there passes `left`.
extern "C" __global__ void pick(Terms terms, int chunk, double left, Summary *out) {
    int thread = threadIdx.x;
    int length = (terms.vocab + CHUNKS - 1) / CHUNKS;
    int begin = min(terms.vocab, chunk * length), end = min(terms.vocab, begin + length);
    int each = (end - begin + THREADS - 1) / THREADS;
    int from = min(end, begin + thread * each), to = min(end, from + each);
    __shared__ double sums[THREADS];
    double sum = 0;
    for (int i = from; i < to; i++) sum += left_over(terms, i);
    sums[thread] = sum;
    __syncthreads();
    if (thread == 0) {
        double before = 0;
        int token = -1, last = 0; // the last thread that has anything, where rounding leads behind it
        for (int t = 0; t < THREADS; t++)
            if (sums[t] > 0) {
                last = t;
                if (before + sums[t] > left) break;
                before += sums[t];
            }
        int i = min(end, begin + last * each), stop = min(end, i + each);
        if (before + sums[last] <= left) before -= sums[last];
        for (; i < stop; i++) {
            double weight = left_over(terms, i);
            if (weight <= 0) continue;
            token = i;
            before += weight;
            if (before > left) break;
        }
        out->token = token;
    }
}
