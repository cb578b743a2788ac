// Compares the kernel of kernels/attention.cu with the definition of attention, without a GPU (emulate.h).
#include "emulate.h"

static unsigned short to_half(float value) {
    unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000;
    int exponent = (int)(bits >> 23 & 255) - 112;
    unsigned mantissa = (bits & 0x7fffff) | 0x800000;
    if (exponent >= 31) return (unsigned short)(sign | 0x7c00);
    int shift = exponent > 0 ? 13 : 14 - exponent;
    if (shift > 24) return (unsigned short)sign;
    unsigned half = mantissa >> shift, rest = mantissa & ((1u << shift) - 1), middle = 1u << (shift - 1);
    half += rest > middle || (rest == middle && (half & 1));
    return (unsigned short)(sign | (exponent > 0 ? (exponent << 10) + half - 1024 : half));
}

#include "../../kernels/attention.cu"

#include <algorithm>
#include <random>

using emulation::launch;

static std::mt19937_64 engine(7);
static double uniform() { return std::uniform_real_distribution<double>(-1, 1)(engine); }

struct Case {
    const char *name;
    int element = 1, heads = 4, kv_heads = 2, head = 64, angles = 32, window = 0;
    bool interleaved = false, norms = false, sinks = false, packed = true;
    float softcap = 0;
    int rows = 4, splits = 1;
    std::vector<int> pasts = {0, 3, 130, 40, 5}, widths = {1, 4, 2, 1, 0};
};

static u16 narrowed(const Case &c, float value) { return c.element == 1 ? narrow<1>(value) : narrow<2>(value); }
static float widened(const Case &c, u16 bits) { return c.element == 1 ? widen<1>(bits) : widen<2>(bits); }

static std::vector<u16> numbers(const Case &c, size_t count, double size = 1, double middle = 0) {
    std::vector<u16> all(count);
    for (u16 &each : all) each = narrowed(c, (float)(middle + size * uniform()));
    return all;
}

// The inputs of a pass, the cache, and what the kernel writes.
struct World {
    static const int BLOCK = 4, TOKENS = 1 << BLOCK;
    const Case &c;
    int sequences = (int)c.pasts.size(), group = c.heads / c.kv_heads, tokens = 0, columns = 0, parts = 0;
    size_t query = (size_t)c.heads * c.head, stride = (size_t)c.kv_heads * c.head;
    std::vector<int> ends = {0}, table, arrived;
    std::vector<uint4> memory[2];
    u16 *caches[2];
    std::vector<u16> input, out, cosines, sines, sinks, query_norm, key_norm;
    std::vector<float> partials;
    Attention a = {};

    World(const Case &c) : c(c) {
        int most = 0;
        for (int s = 0; s < sequences; s++) {
            ends.push_back(tokens += c.widths[s]), most = max(most, c.widths[s]);
            columns = max(columns, (c.pasts[s] + c.widths[s] + TOKENS - 1) / TOKENS);
        }
        parts = (most * group + c.rows - 1) / c.rows;
        fill_cache();
        input = numbers(c, (tokens + 1) * (query + 2 * stride)), out.assign((tokens + 1) * query, 0xabcd);
        cosines = numbers(c, 512 * max(c.angles, 1)), sines = numbers(c, cosines.size()), sinks = numbers(c, c.heads);
        query_norm = numbers(c, c.head, 0.5, 1), key_norm = numbers(c, c.head, 0.5, 1);
        partials.assign((size_t)parts * c.kv_heads * sequences * c.splits * c.rows * (c.head + 2), NAN);
        arrived.assign(parts * c.kv_heads * sequences, 0);
        tell();
    }

    // Blocks in an order of their own; those that are not in use hold what is not a number.
    void fill_cache() {
        std::vector<int> order(sequences * columns);
        for (size_t i = 0; i < order.size(); i++) order[i] = (int)i;
        std::shuffle(order.begin(), order.end(), engine);
        table.assign(order.size(), -1);
        for (int i = 0; i < 2; i++) {
            memory[i].assign(order.size() * TOKENS * stride / 8, {~0u, ~0u, ~0u, ~0u});
            caches[i] = (u16 *)memory[i].data();
        }
        size_t next = 0;
        for (int s = 0; s < sequences; s++)
            for (int i = 0; i * TOKENS < c.pasts[s] + c.widths[s]; i++) table[s * columns + i] = order[next++];
        for (int s = 0; s < sequences; s++)
            for (int position = 0; position < c.pasts[s]; position++)
                for (u16 *cache : caches)
                    for (size_t i = 0; i < stride; i++) cache[place(s, position, 0) + i] = numbers(c, 1)[0];
    }

    // The parameters of the kernel.
    void tell() {
        a.query = input.data(), a.key = a.query + query, a.value = a.key + stride;
        a.query_stride = a.key_stride = (int)(query + 2 * stride);
        if (!c.packed) { // queries, then keys, then values
            a.key = a.query + (tokens + 1) * query, a.value = a.key + (tokens + 1) * stride;
            a.query_stride = (int)query, a.key_stride = (int)stride;
        }
        a.keys = caches[0], a.values = caches[1];
        a.ends = ends.data(), a.pasts = c.pasts.data(), a.blocks = table.data();
        if (c.angles) a.cosines = cosines.data(), a.sines = sines.data();
        if (c.sinks) a.sinks = sinks.data();
        if (c.norms) a.query_norm = query_norm.data(), a.key_norm = key_norm.data();
        a.out = out.data(), a.partials = partials.data(), a.arrived = arrived.data();
        a.heads = c.heads, a.kv_heads = c.kv_heads, a.head = c.head;
        a.angles = c.angles, a.interleaved = c.interleaved, a.window = c.window, a.columns = columns, a.block = BLOCK;
        a.scale = 0.3f, a.softcap = c.softcap, a.epsilon = 1e-5f;
    }

    size_t place(int s, int position, int head) const {
        int block = table[s * columns + position / TOKENS];
        return (((size_t)block * TOKENS + position % TOKENS) * c.kv_heads + head) * c.head;
    }

    // The second run finds `arrived` as the first one left it.
    void run() {
        dim3 grid = {(unsigned)(parts * c.kv_heads), (unsigned)sequences, (unsigned)c.splits};
        for (int turn = 0; turn < 2; turn++)
            launch(grid, TEAM, [&] {
                if (c.element == 1)
                    c.rows == 1 ? attend_f16_1(a) : c.rows == 4 ? attend_f16_4(a) : attend_f16_8(a);
                else
                    c.rows == 1 ? attend_bf16_1(a) : c.rows == 4 ? attend_bf16_4(a) : attend_bf16_8(a);
            });
    }

    void expect(double value, double expected, const char *what, int s, int token) const {
        double tolerance = c.element == 1 ? 2e-3 : 2e-2;
        if (fabs(value - expected) <= tolerance * fmax(1, fabs(expected))) return;
        fprintf(stderr, "%s: %s of token %d of sequence %d: %g, not %g\n", c.name, what, token, s, value, expected);
        exit(1);
    }

    // A head of a token, normalised and rotated.
    std::vector<float> prepared(const u16 *source, const u16 *norm, int position) const {
        std::vector<float> line(c.head), turned;
        double squares = 0;
        for (int i = 0; i < c.head; i++) line[i] = widened(c, source[i]), squares += line[i] * line[i];
        auto round = [&](double value) { return widened(c, narrowed(c, (float)value)); };
        if (c.norms)
            for (int i = 0; i < c.head; i++)
                line[i] = round(line[i] / sqrt(squares / c.head + a.epsilon) * widened(c, norm[i]));
        turned = line;
        for (int pair = 0; pair < c.angles; pair++) {
            int x = c.interleaved ? 2 * pair : pair, y = c.interleaved ? x + 1 : pair + c.angles;
            double cosine = widened(c, cosines[position * c.angles + pair]);
            double sine = widened(c, sines[position * c.angles + pair]);
            turned[x] = round(line[x] * cosine - line[y] * sine), turned[y] = round(line[y] * cosine + line[x] * sine);
        }
        return turned;
    }

    // New keys and values are in the cache, and nothing else was written there.
    void check_cache(std::vector<uint4> (&before)[2]) const {
        for (int s = 0; s < sequences; s++)
            for (int t = 0; t < c.widths[s]; t++)
                for (int h = 0; h < c.kv_heads; h++) {
                    int position = c.pasts[s] + t;
                    size_t source = (size_t)(ends[s] + t) * a.key_stride + h * c.head, at = place(s, position, h);
                    std::vector<float> key = prepared(a.key + source, key_norm.data(), position);
                    for (int i = 0; i < c.head; i++) {
                        expect(widened(c, caches[0][at + i]), key[i], "key", s, t);
                        expect(widened(c, caches[1][at + i]), widened(c, a.value[source + i]), "value", s, t);
                        for (int k = 0; k < 2; k++) ((u16 *)before[k].data())[at + i] = caches[k][at + i];
                    }
                }
        for (int k = 0; k < 2; k++)
            if (memcmp(before[k].data(), caches[k], before[k].size() * 16)) {
                fprintf(stderr, "%s: it wrote elsewhere\n", c.name);
                exit(1);
            }
    }

    // What a head of a token is to attend to.
    std::vector<double> attended(int s, int t, int h) const {
        int position = c.pasts[s] + t;
        const u16 *source = a.query + (size_t)(ends[s] + t) * a.query_stride + h * c.head;
        std::vector<float> asks = prepared(source, query_norm.data(), position);
        std::vector<double> sum(c.head, 0);
        double total = c.sinks ? exp(widened(c, sinks[h])) : 0;
        for (int p = 0; p <= position; p++) {
            if (c.window > 0 && p + c.window <= position) continue;
            double score = 0;
            size_t at = place(s, p, h / group);
            for (int i = 0; i < c.head; i++) score += asks[i] * widened(c, caches[0][at + i]);
            score *= a.scale;
            if (c.softcap > 0) score = c.softcap * tanh(score / c.softcap);
            total += exp(score);
            for (int i = 0; i < c.head; i++) sum[i] += exp(score) * widened(c, caches[1][at + i]);
        }
        for (double &number : sum) number /= total;
        return sum;
    }

    void check_output() const {
        for (int s = 0; s < sequences; s++)
            for (int t = 0; t < c.widths[s]; t++)
                for (int h = 0; h < c.heads; h++) {
                    std::vector<double> expected = attended(s, t, h);
                    const u16 *found = &out[((size_t)(ends[s] + t) * c.heads + h) * c.head];
                    for (int i = 0; i < c.head; i++) expect(widened(c, found[i]), expected[i], "output", s, t);
                }
        for (size_t i = tokens * query; i < out.size(); i++)
            if (out[i] != 0xabcd) {
                fprintf(stderr, "%s: it wrote behind the tokens\n", c.name);
                exit(1);
            }
    }
};

static void check(const Case &c) {
    World world(c);
    std::vector<uint4> before[2] = {world.memory[0], world.memory[1]};
    world.run();
    world.check_cache(before);
    world.check_output();
}

static Case like(const char *name, void (*change)(Case &)) {
    Case c = {name};
    change(c);
    return c;
}

int main() {
    const Case cases[] = {
        {"plain"},
        like("bfloat16", [](Case &c) { c.element = 2; }),
        like("one row at a time", [](Case &c) { c.rows = 1, c.heads = c.kv_heads = 3; }),
        like("eight rows, of eight heads each", [](Case &c) { c.rows = 8, c.heads = 16, c.head = 128, c.angles = 64; }),
        like("five heads of 96", [](Case &c) { c.heads = 5, c.kv_heads = 1, c.head = 96, c.angles = 48; }),
        like("heads of 256", [](Case &c) { c.element = 2, c.rows = 8, c.head = 256, c.angles = 128; }),
        like("heads of 8, without angles", [](Case &c) { c.head = 8, c.angles = 0; }),
        like("some angles, interleaved", [](Case &c) { c.angles = 8, c.interleaved = true, c.packed = false; }),
        like("norms", [](Case &c) { c.norms = true, c.packed = false; }),
        like("bfloat16 norms", [](Case &c) { c.element = 2, c.norms = true, c.angles = 0; }),
        like("sinks and a soft cap", [](Case &c) { c.sinks = true, c.softcap = 2; }),
        like("a window of 3", [](Case &c) { c.window = 3; }),
        like("a window of 100", [](Case &c) { c.window = 100, c.splits = 3; }),
        like("two splits", [](Case &c) { c.splits = 2; }),
        like("many splits", [](Case &c) {
            c.splits = 7, c.pasts = {0, 300, 127, 128, 383}, c.widths = {3, 5, 1, 2, 1};
        }),
        like("splits, eight rows", [](Case &c) {
            c.splits = 4, c.rows = 8, c.sinks = true, c.pasts = {254, 255, 256, 257, 1}, c.widths = {4, 3, 2, 1, 16};
        }),
        like("splits, one row", [](Case &c) {
            c.splits = 3, c.rows = 1, c.pasts = {129, 400, 0}, c.widths = {2, 1, 1};
        }),
    };
    for (const Case &c : cases) check(c);
    return 0;
}
