// Compares the kernels of kernels/ with their definitions, without a GPU (emulate.h).
#include "emulate.h"

#include "../../kernels/rows.cu"
#include "../../kernels/sums.cu"

#include <algorithm>
#include <numeric>
#include <random>

using emulation::launch;

static std::mt19937_64 engine(7);
static double uniform() { return std::uniform_real_distribution<double>(0, 1)(engine); }
static int below(int n) { return (int)(engine() % n); }

#define CHECK(what, ...)                                                        \
    do {                                                                        \
        if (!(what)) {                                                          \
            fprintf(stderr, "%s:%d: not %s: ", __FILE__, __LINE__, #what);      \
            fprintf(stderr, __VA_ARGS__);                                       \
            fprintf(stderr, "\n");                                              \
            exit(1);                                                            \
        }                                                                       \
    } while (0)

// Rounds a number to a type of 16 bits.
static u16 bits_of(float score, int element) {
    u32 bits = __float_as_uint(score), sign = bits >> 16 & 0x8000, exponent = bits >> 23 & 255;
    if (element == 2) return (u16)(bits >> 16);
    if (exponent == 255) return (u16)(sign | 0x7c00 | (bits & 0x7fffff ? 1 : 0));
    if (exponent <= 112) return (u16)sign;
    return (u16)(sign | (exponent - 112) << 10 | (bits >> 13 & 1023));
}

// Rows in the memory of a sequence.
struct World {
    int element;
    long columns;
    int vocab;
    std::vector<uint4> ring;
    std::vector<char> logits;
    std::vector<Part> parts = std::vector<Part>(ROWS * CHUNKS);
    std::vector<Kept> kept = std::vector<Kept>(ROWS);
    std::vector<float> peaks = std::vector<float>(ROWS * CHUNKS * THREADS);
    std::vector<Summary> summaries = std::vector<Summary>(ROWS + 1);
    Control control = {};

    World(int element, long columns, int vocab)
        : element(element), columns(columns), vocab(vocab), ring(ROWS * stride_of(columns, element) / 16) {
        // Memory behind the rows must not be read as a row.
        memset((void *)ring.data(), 0x7b, ring.size() * 16);
        control.vocab = vocab, control.rate = 1, control.top_p = 1, control.distance = -INFINITY;
        for (double &uniform : control.uniforms) uniform = -1;
    }

    char *row(int position) { return (char *)ring.data() + position % ROWS * stride_of(columns, element); }

    // What a pass leaves: rows from `first` on, some of which are not kept.
    void pass(const std::vector<std::vector<float>> &rows, int first, int skipped) {
        int given = (int)rows.size();
        logits.assign(given * columns * bytes_of(element), 0);
        for (int r = 0; r < given; r++)
            for (long i = 0; i < columns; i++) {
                float score = i < vocab ? rows[r][i] : 99;
                if (element == 0)
                    ((float *)logits.data())[r * columns + i] = score;
                else
                    ((u16 *)logits.data())[r * columns + i] = bits_of(score, element);
            }
        share(first, skipped, 0, given);
        run({control}, given);
    }

    // Its share of a pass: `given` rows from index `row` of the logits on.
    void share(int first, int skipped, int row, int given) {
        control.ring = (char *)ring.data(), control.parts = parts.data(), control.peaks = peaks.data();
        control.kept = kept.data(), control.summaries = summaries.data();
        control.first = first, control.skipped = skipped, control.row = row, control.given = given;
    }

    // Runs the kernels for the shares of several sequences, with at most `most` rows each.
    void run(std::vector<Control> shares, int most) {
        unsigned rows = (unsigned)most, count = (unsigned)shares.size();
        launch({(unsigned)CHUNKS, rows, count}, THREADS, [&] { keep(logits.data(), element, columns, shares.data()); });
        launch({rows + 1, count}, CHUNKS, [&] { summarise(logits.data(), element, columns, shares.data()); });
        launch({rows, count}, NEAR, [&] { filter(element, columns, shares.data()); });
        launch({(unsigned)DRAWS, count}, THREADS, [&] { draw_last(element, columns, shares.data()); });
    }

    // Asks for one draw.
    Drawn draw_at(int position, double share) {
        Drawn out = {};
        int slot = position % ROWS;
        launch({1}, THREADS, [&] {
            draw((char *)ring.data(), element, columns, vocab, slot, parts.data(), summaries[slot].max, control.rate,
                 share, kept.data(), &out);
        });
        return out;
    }

    std::vector<float> scores(int position) {
        std::vector<float> out(vocab);
        for (int i = 0; i < vocab; i++) out[i] = to_float(row(position), element, i);
        return out;
    }
};

// The weights that `Sampler::process` keeps of a row, and 0 for all others.
static std::vector<double> filtered(const std::vector<float> &row, float rate, int top_k, float top_p, float distance,
                                    bool &near) {
    int vocab = (int)row.size();
    float max = *std::max_element(row.begin(), row.end());
    std::vector<int> order(vocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return row[a] > row[b]; });
    std::vector<double> weights(vocab), out(vocab, 0.0);
    for (int i = 0; i < vocab; i++) weights[i] = exp((double)(row[i] - max) * rate);
    int end = top_k > 0 && top_k < vocab ? top_k : vocab;
    near = false;
    if (top_p < 1) {
        double total = 0, reached = 0;
        for (int i = 0; i < end; i++) total += weights[order[i]];
        int length = 0;
        while (length < end && reached < top_p * total) {
            reached += weights[order[length++]];
            near |= fabs(reached - top_p * total) < 1e-6 * total;
        }
        end = length;
    }
    for (int i = 0; i < end; i++)
        if (row[order[i]] >= max + distance) out[order[i]] = weights[order[i]];
    return out;
}

static std::vector<float> random_row(int vocab, int kind) {
    std::vector<float> row(vocab);
    for (float &score : row) {
        double u = uniform();
        switch (kind) {
        case 0: score = (float)(-12 + 4 * u + (uniform() < 0.01 ? 14 * uniform() : 0)); break; // a few high scores
        case 1: score = (float)below(9); break;                                            // many equal scores
        case 2: score = (float)(6 * u - 3); break;                                         // flat
        case 3: score = uniform() < 0.5 ? -INFINITY : (float)(8 * u); break;
        case 4: score = (float)(-8 + 4 * u + (&score < &row[vocab / 40 + 1] ? 10 : 0)); break; // high scores in front
        default: score = (float)(-0.0 * u); // all equal
        }
    }
    return row;
}

static void filters_keep_what_the_sampler_does() {
    int settled = 0, all = 0;
    for (int round = 0; round < 120; round++) {
        int element = below(3);
        bool large = round < 3;
        long columns = large ? 152063 : (long[]){96, 97, 1000, 4099, 33}[below(5)];
        int vocab = (int)(below(2) ? columns : columns - 1 - below(8));
        World world(element, columns, vocab);
        world.control.rate = (float[]){1, 1.25f, 0.5f, 3}[below(4)];
        int top_k = below(2) ? 0 : 1 + below(below(2) ? 8 : below(2) ? 80 : vocab - 1);
        float top_p = below(2) ? 1 : (float[]){0.5f, 0.9f, 0.95f, 0.999f, 0.01f}[below(5)];
        float rate = world.control.rate;
        float distance = below(3) ? -INFINITY : (float)log((double[]){0.05, 0.5, 1, 1e-6}[below(4)]) / rate;
        world.control.top_k = top_k, world.control.top_p = top_p, world.control.distance = distance;
        int given = 1 + below(3), skipped = below(given), first = below(200);
        std::vector<std::vector<float>> rows;
        int kind = large ? 4 * below(2) : below(6);
        for (int r = 0; r < given; r++) rows.push_back(random_row(vocab, kind));
        world.pass(rows, first, skipped);
        for (int r = skipped; r < given; r++) {
            int slot = (first + r) % ROWS;
            const Summary &summary = world.summaries[slot];
            std::vector<float> row = world.scores(first + r);
            if (*std::max_element(row.begin(), row.end()) == -INFINITY) continue;
            bool near;
            std::vector<double> expected = filtered(row, world.control.rate, top_k, top_p, distance, near);
            all++;
            if (summary.cut < 0) continue;
            settled++;
            double total = 0;
            for (int i = 0; i < vocab; i++) {
                bool is_kept = keeps(row[i], i, summary.floor, summary.cut);
                // Rounding may move the end of the nucleus by one token if it is very near.
                CHECK(near || is_kept == (expected[i] > 0) || expected[i] < 1e-30,
                      "round %d, kind %d, %d columns, k %d, p %g, distance %g: token %d of score %g, floor %g, cut %d",
                      round, kind, vocab, top_k, top_p, distance, i, row[i], summary.floor, summary.cut);
                if (is_kept) total += exp((double)(row[i] - summary.max) * world.control.rate);
            }
            CHECK(fabs(summary.kept / total - 1) < 1e-6, "%g, not %g", summary.kept, total);
            double chunks = 0;
            for (double sum : world.kept[slot].chunks) chunks += sum;
            CHECK(world.kept[slot].total == summary.kept && world.kept[slot].cut == summary.cut, "slot %d", slot);
            CHECK(fabs(chunks / summary.kept - 1) < 1e-6, "%g, not %g", chunks, summary.kept);

            // A draw finds the token at which the running sum passes a share.
            for (int d = 0; d < 6; d++) {
                double draw_share = (double[]){0, 0.3, 0.77, 0.9999, 1e-9, 1}[d] * summary.kept;
                Drawn out = world.draw_at(first + r, draw_share);
                CHECK(keeps(row[out.token], out.token, summary.floor, summary.cut), "token %d was drawn", out.token);
                auto weight = [&](int i) { return exp((double)(row[i] - summary.max) * world.control.rate); };
                double before = 0;
                for (int i = 0; i < out.token; i++)
                    if (keeps(row[i], i, summary.floor, summary.cut)) before += weight(i);
                double own = weight(out.token), slack = 1e-6 * summary.kept;
                bool behind = draw_share >= summary.kept; // behind the last weight, where any token is right
                CHECK(behind || (before <= draw_share + slack && draw_share <= before + own + slack),
                      "token %d at %g, share %g", out.token, before, draw_share);
                CHECK(out.score == row[out.token], "score %g", out.score);
            }
        }
    }
    CHECK(settled > all * 19 / 20, "%d of %d", settled, all);
    printf("filters: %d of %d rows were settled\n", settled, all);
}

// A mask leaves fewer tokens than top-k asks for, and more impossible ones than a list holds.
static void masked_rows_are_filtered_too() {
    World world(0, 4099, 4099);
    world.control.top_k = 40;
    std::vector<float> row(4099, -INFINITY);
    for (int i = 0; i < 20; i++) row[i * 200] = (float)(i % 7);
    world.pass({row}, 3, 0);
    const Summary &summary = world.summaries[3];
    double total = 0;
    for (float score : row) total += exp((double)(score - 6));
    CHECK(summary.cut >= 0 && fabs(summary.kept / total - 1) < 1e-6, "cut %d, %g, not %g", summary.cut, summary.kept,
          total);
}

static void summaries_are_of_the_rows() {
    for (int round = 0; round < 30; round++) {
        int element = below(3);
        long columns = (long[]){96, 97, 1000, 33}[below(4)];
        World world(element, columns, (int)columns - below(3));
        world.control.rate = 0.7f;
        std::vector<std::vector<float>> rows = {random_row(world.vocab, below(6)), random_row(world.vocab, below(3))};
        int bad = round % 5 ? -1 : below(world.vocab);
        if (bad >= 0) rows[1][bad] = below(2) ? NAN : INFINITY;
        world.pass(rows, 63, 0);
        for (int r = 0; r < 2; r++) {
            const Summary &summary = world.summaries[(63 + r) % ROWS];
            std::vector<float> row = world.scores(63 + r);
            if (r == 1 && bad >= 0) {
                CHECK(summary.max != summary.max && summary.cut < 0, "%g, %d", summary.max, summary.cut);
                continue;
            }
            int best = (int)(std::max_element(row.begin(), row.end()) - row.begin());
            CHECK(summary.max == row[best] && summary.best == best && summary.position == 63 + r, "%g at %d",
                  summary.max, summary.best);
            if (summary.max == -INFINITY) continue;
            double total = 0;
            for (float score : row) total += exp((double)(score - row[best]) * 0.7);
            CHECK(fabs(summary.total / total - 1) < 1e-6, "%g, not %g", summary.total, total);
        }
    }
}

// The residual of a filtered target after a filtered proposal, and draws from it.
static void residuals_are_of_what_is_kept() {
    for (int round = 0; round < 30; round++) {
        int vocab = 700, certain = round % 3 == 0 ? below(vocab) : -1;
        World target(1, vocab, vocab), proposal(1, vocab, vocab);
        Terms terms = {};
        terms.without = certain;
        World *worlds[] = {&target, &proposal};
        std::vector<double> left(vocab, 0.0);
        for (int w = 0; w < 2; w++) {
            World &world = *worlds[w];
            world.control.top_k = below(2) ? 40 : 0, world.control.top_p = below(2) ? 0.9f : 1;
            world.control.distance = below(2) ? -2 : -INFINITY;
            world.pass({random_row(vocab, 0)}, 5, 0);
            const Summary &summary = world.summaries[5];
            CHECK(summary.cut >= 0, "not settled");
            terms.terms[w] = {world.row(5), 1 / summary.kept, summary.max, 1, 1, summary.cut, summary.floor, 0};
            std::vector<float> row = world.scores(5);
            for (int i = 0; i < vocab; i++)
                if (keeps(row[i], i, summary.floor, summary.cut))
                    left[i] += (w && certain < 0 ? -1 : 1) * exp((double)(row[i] - summary.max)) / summary.kept;
        }
        if (certain >= 0) left[certain] = 0;
        terms.count = 2, terms.vocab = vocab;
        std::vector<double> sums(CHUNKS);
        Residual out = {};
        Rest asked = {terms, sums.data(), &out, 0, -1};
        launch({(unsigned)CHUNKS}, THREADS, [&] { residual(&asked); });
        int length = (vocab + CHUNKS - 1) / CHUNKS;
        for (int chunk = 0; chunk < CHUNKS; chunk++) {
            double expected = 0;
            int end = std::min(vocab, (chunk + 1) * length);
            for (int i = chunk * length; i < end; i++) expected += std::max(0.0, left[i]);
            CHECK(fabs(sums[chunk] - expected) < 1e-6, "%g, not %g", sums[chunk], expected);
            if (expected < 1e-4) continue;
            double before = std::accumulate(sums.begin(), sums.begin() + chunk, 0.0);
            asked.share = before + sums[chunk] * uniform();
            launch({1}, THREADS, [&] { pick(&asked); });
            int token = out.drawn.token;
            CHECK(token / length == chunk && left[token] > 0, "token %d, %g", token, left[token]);
        }
        // A draw at a share of the whole is that at the share itself.
        double at = round % 7 ? uniform() : 0, total = std::accumulate(sums.begin(), sums.end(), 0.0);
        Residual results[2] = {};
        Rest both[] = {{terms, sums.data(), results, at, -1}, {terms, sums.data(), results + 1, 0, at * total}};
        launch({2}, THREADS, [&] { pick(both); });
        CHECK(memcmp(results, results + 1, sizeof(Residual)) == 0 && results->total == total, "%g", at);
    }
}

// A pass draws from the last row of each sequence what a question would, and from no other row. A bad row, or one whose
// filters have no result, gives no token.
static void passes_draw_as_questions_do() {
    int drawn = 0;
    for (int round = 0; round < 60; round++) {
        int element = below(3), given = 1 + below(3), first = below(200), last = (first + given - 1) % ROWS;
        World world(element, 1000, 1000 - below(9));
        world.control.rate = 0.8f, world.control.top_k = below(3) * 20, world.control.top_p = below(2) ? 0.9f : 1;
        world.control.distance = below(2) ? -3 : -INFINITY;
        world.control.uniforms[0] = round % 5 ? uniform() : -1, world.control.uniforms[1] = round % 7 ? uniform() : 0;
        std::vector<std::vector<float>> rows;
        for (int r = 0; r < given; r++) rows.push_back(random_row(world.vocab, below(6)));
        bool bad = round % 6 == 0;
        if (bad) rows.back()[below(world.vocab)] = NAN;
        world.pass(rows, first, 0);
        for (int r = 0; r + 1 < given; r++)
            for (const Drawn &out : world.summaries[(first + r) % ROWS].drawn) CHECK(out.share == -1, "row %d", r);
        const Summary &summary = world.summaries[last];
        for (int d = 0; d < DRAWS; d++) {
            double uniform = world.control.uniforms[d];
            Drawn out = summary.drawn[d];
            if (bad || uniform < 0 || summary.cut < 0) {
                CHECK(out.share == -1, "%g of a bad row", out.share);
                continue;
            }
            Drawn asked = world.draw_at(first + given - 1, uniform * summary.kept);
            CHECK(memcmp(&out, &asked, sizeof out) == 0, "token %d at %g, not %d at %g", out.token, out.share,
                  asked.token, asked.share);
            drawn++;
        }
        // The next pass forgets it, and draws only if it is told to.
        for (double &uniform : world.control.uniforms) uniform = -1;
        world.pass({random_row(world.vocab, 0)}, first + given - 1, 0);
        for (const Drawn &out : summary.drawn) CHECK(out.share == -1, "%g", out.share);
    }
    CHECK(drawn > 60, "%d", drawn);
}

// Questions that are answered together get what each would get alone.
static void sums_are_made_together() {
    const int vocab = 700, count = 5;
    std::vector<World> worlds(3, World(0, vocab, vocab));
    for (World &world : worlds) world.pass({random_row(vocab, below(4))}, 7, 0);
    std::vector<Blend> asked(count);
    std::vector<double> chunks(count * CHUNKS);
    std::vector<Residual> residuals(count);
    std::vector<Rest> rests(count);
    for (int s = 0; s < count; s++) {
        asked[s].terms.count = 2 + s % 2, asked[s].terms.vocab = vocab, asked[s].terms.without = -1;
        for (int t = 0; t < asked[s].terms.count; t++)
            asked[s].terms.terms[t] = {worlds[t].row(7), uniform() - 0.3, worlds[t].summaries[7].max,
                                       s == 4 ? 1.f : 0.f, 0, NONE, -INFINITY, 0};
        asked[s].judged = asked[s].terms.count == 3, asked[s].floor = worlds[2].summaries[7].max - 3;
        rests[s] = {asked[s].terms, chunks.data() + s * CHUNKS, &residuals[s], uniform(), -1};
        for (Term &term : rests[s].terms.terms) term.rate = 1, term.scale = 0.2 + 0.1 * s;
    }
    // Some sums are masked, and some of their scores change.
    std::vector<std::vector<Change>> changes(count);
    std::vector<u32> mask(vocab / 32 + 1);
    for (u32 &word : mask) word = (u32)engine();
    for (int s = 1; s < count; s++) {
        for (int token = below(9); token < vocab; token += 1 + below(99))
            changes[s].push_back({(u32)token, (float[]){0, 2, -INFINITY}[below(3)], 1.5f, (float)uniform()});
        asked[s].changes = changes[s].data(), asked[s].changed = (int)changes[s].size();
        asked[s].mask = mask.data(), asked[s].masked = s % 2;
    }
    std::vector<float> together(count * vocab), alone(vocab);
    launch({7, (unsigned)count}, THREADS, [&] { weigh(asked.data(), together.data()); });
    launch({2, (unsigned)count}, THREADS, [&] { change(asked.data(), together.data()); });
    launch({(unsigned)CHUNKS, (unsigned)count}, THREADS, [&] { residual(rests.data()); });
    launch({(unsigned)count}, THREADS, [&] { pick(rests.data()); });
    for (int s = 0; s < count; s++) {
        launch({3}, THREADS, [&] { weigh(&asked[s], alone.data()); });
        launch({1}, THREADS, [&] { change(&asked[s], alone.data()); });
        CHECK(memcmp(alone.data(), together.data() + s * vocab, vocab * sizeof(float)) == 0, "sum %d", s);
        for (int i = 0; i < vocab; i++) {
            float expected = 0;
            int summed = asked[s].terms.count - asked[s].judged;
            bool impossible = asked[s].judged && ((float *)worlds[2].row(7))[i] < asked[s].floor;
            for (int t = 0; t < summed; t++) {
                const Term &term = asked[s].terms.terms[t];
                float score = ((float *)term.row)[i];
                expected += (float)term.scale * (term.rate > 0 ? expf(score - term.max) : score);
                impossible |= term.rate == 0 && score == -INFINITY;
            }
            if (impossible || (s % 2 && !(mask[i / 32] >> i % 32 & 1))) expected = -INFINITY;
            for (const Change &change : changes[s])
                if (change.token == (u32)i) {
                    float biased = expected + change.bias, by = change.repetition;
                    expected = (biased > 0 ? biased / by : biased * by) - change.less;
                }
            CHECK(alone[i] == expected || fabs(alone[i] - expected) < 1e-5, "%g, not %g", alone[i], expected);
        }
        Residual one = {};
        Rest rest = rests[s];
        rest.out = &one;
        launch({(unsigned)CHUNKS}, THREADS, [&] { residual(&rest); });
        launch({1}, THREADS, [&] { pick(&rest); });
        CHECK(memcmp(&one, &residuals[s], sizeof one) == 0 && one.total > 0, "residual %d of %g", s, one.total);
    }
}

// Typical tokens are kept, and then top choices are dropped, as the definitions say.
static void tokens_are_dropped_by_their_probabilities() {
    int kept_all = 0, differ = 0, all = 0;
    for (int round = 0; round < 60; round++) {
        int vocab = (int[]){3, 33, 1000, 1024, 4099, 40000}[below(6)], kind = below(6);
        std::vector<float> row = random_row(vocab, kind), given = row;
        Blend of = {};
        of.terms.vocab = vocab;
        of.typical = round % 3 ? (float[]){0.2f, 0.9f, 0.999f, 1e-6f}[below(4)] : 0;
        of.exclude = round % 3 != 1 ? (float[]){0.1f, 0.3f, 0.001f}[below(3)] : 0;
        launch({1}, NEAR, [&] { drop(&of, row.data()); });
        double max = *std::max_element(given.begin(), given.end());
        if (max == -INFINITY) continue;
        std::vector<double> p(vocab);
        auto normalise = [&](const std::vector<float> &scores) {
            double total = 0;
            for (int i = 0; i < vocab; i++) total += p[i] = exp(scores[i] - max);
            for (double &each : p) each /= total;
        };
        std::vector<float> expected = given;
        bool near = false; // whether rounding may decide otherwise
        if (of.typical > 0) {
            normalise(given);
            double entropy = 0, reached = 0;
            for (double each : p) entropy -= each > 0 ? each * log(each) : 0;
            std::vector<int> order;
            for (int i = 0; i < vocab; i++) if (p[i] > 0) order.push_back(i);
            auto distance = [&](int i) { return (double)(float)fabs(-log(p[i]) - entropy); };
            std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return distance(a) < distance(b); });
            size_t kept = 0;
            while (kept < order.size() && reached < of.typical) {
                reached += p[order[kept++]];
                near |= fabs(reached - of.typical) < 1e-5;
            }
            for (size_t i = 1; i < order.size(); i++)
                near |= i + 1 >= kept && i <= kept + 1 && distance(order[i]) - distance(order[i - 1]) < 1e-5 &&
                        given[order[i]] != given[order[i - 1]];
            for (size_t i = kept; i < order.size(); i++) expected[order[i]] = -INFINITY;
        }
        if (of.exclude > 0) {
            normalise(expected);
            int least = -1;
            for (int i = 0; i < vocab; i++) {
                near |= fabs(p[i] / of.exclude - 1) < 1e-4;
                if (p[i] >= of.exclude && (least < 0 || expected[i] <= expected[least])) least = i;
            }
            for (int i = 0; i < vocab; i++)
                if (p[i] >= of.exclude && i != least) expected[i] = -INFINITY;
        }
        int others = 0;
        for (int i = 0; i < vocab; i++) others += row[i] != expected[i];
        CHECK(near || others == 0, "round %d, kind %d, %d tokens, %g, %g: %d differ", round, kind, vocab, of.typical,
              of.exclude, others);
        all++, differ += others > 0, kept_all += row == given;
    }
    CHECK(differ * 5 < all && kept_all * 3 < all, "%d and %d of %d", differ, kept_all, all);
    // Nothing is dropped from a bad row.
    std::vector<float> bad = {1, NAN, 3}, before = bad;
    Blend of = {};
    of.terms.vocab = 3, of.typical = 0.5f, of.exclude = 0.1f;
    launch({1}, NEAR, [&] { drop(&of, bad.data()); });
    CHECK(memcmp(bad.data(), before.data(), sizeof(float) * 3) == 0, "a bad row changed");
}

// Sequences that share a pass get what each would get alone.
static void sequences_share_a_pass() {
    const int vocab = 700;
    std::vector<std::vector<float>> rows;
    for (int i = 0; i < 6; i++) rows.push_back(random_row(vocab, i % 3));
    // The first index, the rows, and the first position of each sequence; the second one has none.
    const int parts[][3] = {{0, 1, 9}, {1, 0, 5}, {1, 3, 62}, {4, 2, 0}};
    World pass(1, vocab, vocab);
    pass.pass(rows, 0, 0); // fills the logits
    std::vector<World> together(4, World(1, vocab, vocab)), alone(4, World(1, vocab, vocab));
    std::vector<Control> shares;
    for (int s = 0; s < 4; s++) {
        auto [index, count, first] = parts[s];
        for (World *world : {&together[s], &alone[s]}) {
            world->control.top_k = 5 + s, world->control.rate = 0.8f;
            world->control.uniforms[s % 2] = 0.2 * s;
        }
        together[s].share(first, 0, index, count);
        shares.push_back(together[s].control);
        if (count > 0) alone[s].pass({rows.begin() + index, rows.begin() + index + count}, first, 0);
    }
    pass.run(shares, 3);
    for (int s = 0; s < 4; s++) {
        CHECK(memcmp(together[s].ring.data(), alone[s].ring.data(), alone[s].ring.size() * 16) == 0, "rows of %d", s);
        CHECK(memcmp(together[s].kept.data(), alone[s].kept.data(), ROWS * sizeof(Kept)) == 0, "sums of %d", s);
        for (int slot = 0; slot < ROWS; slot++)
            CHECK(memcmp(&together[s].summaries[slot], &alone[s].summaries[slot], sizeof(Summary)) == 0, "%d", s);
    }
}

static void words_are_transferred() {
    std::vector<uint4> from(1000), to(1000);
    for (uint4 &word : from) word = {(unsigned)engine(), (unsigned)engine(), (unsigned)engine(), (unsigned)engine()};
    launch({3}, THREADS, [&] { transfer(from.data(), to.data(), 999); });
    CHECK(memcmp(from.data(), to.data(), 999 * 16) == 0 && to[999].x == 0, "as they were");
}

int main() {
    words_are_transferred();
    summaries_are_of_the_rows();
    masked_rows_are_filtered_too();
    filters_keep_what_the_sampler_does();
    residuals_are_of_what_is_kept();
    sums_are_made_together();
    tokens_are_dropped_by_their_probabilities();
    passes_draw_as_questions_do();
    sequences_share_a_pass();
    return 0;
}
