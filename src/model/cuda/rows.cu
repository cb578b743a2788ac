// What is made of rows of logits where they are: on the GPU. `scripts/make-ptx` compiles this to rows.ptx, which the driver compiles
// for the GPU that there is.

typedef unsigned short u16;
typedef unsigned int u32;

const int CHUNKS = 32;   // parts of a row, each for one block of THREADS
const int THREADS = 256;
const int ROWS = 64;     // of the ring; a position's row is in slot `position % ROWS`
const int NOTED = 20;    // most tokens of a pass whose scores are noted

// What a pass is told beside its inputs.
struct Control {
    int first;    // position of the first row that is given
    int skipped;  // given rows in front that nobody wants
    int vocab;    // columns that count
    float rate;   // one over the temperature
    int start;    // position that the first token of the pass took; its row is in the ring if `known`
    int known;
    int width;
    int tokens[NOTED];
};

// What is known of a part of a row, and of a row: the first maximum, the largest of all other scores, the sum of
// e^((score - max) * rate), and the score of the token that came after.
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
};

__device__ float to_float(const void *row, int element, long i) {
    if (element == 0) return ((const float *)row)[i];
    u16 bits = ((const u16 *)row)[i];
    float value;
    if (element == 1)
        asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    else
        value = __uint_as_float((u32)bits << 16);
    return value;
}

__device__ int bytes_of(int element) { return element == 0 ? 4 : 2; }

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
    char *to = ring + slot * columns * size;
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
        summary->score = to_float(ring + slot * columns * size, element, control->tokens[0]);
        return;
    }
    if (row < control->skipped) return;
    int position = control->first + row, slot = position % ROWS;
    Part whole = parts[slot * CHUNKS];
    for (int chunk = 1; chunk < CHUNKS; chunk++) join(whole, parts[slot * CHUNKS + chunk], control->rate);
    Summary summary = {whole.total, whole.max, whole.second, whole.best, position, -1, 0};
    int next = position - control->start;
    if (next < control->width) {
        summary.token = control->tokens[next];
        summary.score = to_float((const char *)logits + row * columns * size, element, summary.token);
    }
    summaries[slot] = summary;
}

// One block: the token at which the sum of weights from the front passes `share` of all.
extern "C" __global__ void draw(const char *ring, int element, long columns, int vocab, int slot, const Part *parts, float max,
                                float rate, double share, Summary *out) {
    int thread = threadIdx.x;
    long size = bytes_of(element);
    const char *row = ring + slot * columns * size;
    parts += slot * CHUNKS;
    __shared__ double sums[THREADS];
    __shared__ int chosen;
    __shared__ double left;
    if (thread == 0) {
        double before = 0;
        int chunk = -1;
        for (int i = 0; i < CHUNKS; i++) {
            double part = parts[i].total > 0 ? parts[i].total * exp((double)(parts[i].max - max) * rate) : 0;
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
    for (int i = from; i < to; i++) sum += expf((to_float(row, element, i) - max) * rate);
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
                double weight = expf((to_float(row, element, i) - max) * rate);
                if (weight > 0) token = i;
                before += weight;
                found = weight > 0 && before > left;
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
    int element, padding;
};
struct Terms {
    Term terms[8];
    int count, vocab;
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

// What the last term leaves of the sum of the others' probabilities.
__device__ float left_over(const Terms &terms, int i) {
    float weight = 0;
    for (int k = 0; k < terms.count; k++) {
        const Term &term = terms.terms[k];
        float share = (float)term.scale * expf((to_float(term.row, term.element, i) - term.max) * term.rate);
        weight += k + 1 < terms.count ? share : -share;
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
