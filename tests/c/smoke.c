/* Uses the whole C interface as a program of a user would, and checks all that it sees.
 *
 *     smoke ROOT        ROOT is the folder of the repository; the demo models are taken from there
 */
#define _POSIX_C_SOURCE 200809L

#include "cos.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* ---- what never changes: compile-time checks against version 0.1 ---- */

/* Members keep their place and type; structs grow at their end only. */
#define MEMBER(type, member, member_type, offset)                                       \
    _Static_assert(offsetof(type, member) == (offset), #type "." #member " has moved"); \
    _Static_assert(_Generic(((type *)0)->member, member_type: 1, default: 0), #type "." #member " has another type")

MEMBER(cos_session_options, struct_size, size_t, 0);
MEMBER(cos_session_options, strategy, int32_t, 8);
MEMBER(cos_session_options, temperature, float, 12);
MEMBER(cos_session_options, top_k, int32_t, 16);
MEMBER(cos_session_options, top_p, float, 20);
MEMBER(cos_session_options, min_p, float, 24);
MEMBER(cos_session_options, seed, uint64_t, 32);
MEMBER(cos_session_options, max_tokens, uint32_t, 40);
MEMBER(cos_session_options, proposal_lengths, const int32_t *, 48);
MEMBER(cos_session_options, proposal_lengths_count, size_t, 56);
MEMBER(cos_session_options, weights, const float *, 64);
MEMBER(cos_session_options, weights_count, size_t, 72);
MEMBER(cos_session_options, stop_tokens, const int32_t *, 80);
MEMBER(cos_session_options, stop_tokens_count, size_t, 88);
MEMBER(cos_session_options, targets, int32_t, 96);
MEMBER(cos_session_options, log_probabilities, int32_t, 100);
MEMBER(cos_session_options, combine, cos_combine_fn, 104);
MEMBER(cos_session_options, combine_data, void *, 112);
_Static_assert(sizeof(cos_session_options) >= 120, "cos_session_options has shrunk");

MEMBER(cos_step_result, struct_size, size_t, 0);
MEMBER(cos_step_result, tokens, const int32_t *, 8);
MEMBER(cos_step_result, tokens_count, size_t, 16);
MEMBER(cos_step_result, finish, int32_t, 24);
MEMBER(cos_step_result, reserved, int32_t, 28);
MEMBER(cos_step_result, log_probabilities, const float *, 32);
_Static_assert(sizeof(cos_step_result) >= 40, "cos_step_result has shrunk");

MEMBER(cos_stats, struct_size, size_t, 0);
MEMBER(cos_stats, steps, uint64_t, 8);
MEMBER(cos_stats, tokens, uint64_t, 16);
MEMBER(cos_stats, proposed, uint64_t, 24);
MEMBER(cos_stats, tested, uint64_t, 32);
MEMBER(cos_stats, accepted, uint64_t, 40);
MEMBER(cos_stats, forwards, uint64_t, 48);
MEMBER(cos_stats, positions, uint64_t, 56);
MEMBER(cos_stats, model_ns, uint64_t, 64);
MEMBER(cos_stats, total_ns, uint64_t, 72);
MEMBER(cos_stats, near_ties, uint64_t, 80);
MEMBER(cos_stats, planned_ns, uint64_t, 88);
MEMBER(cos_stats, expected_ns, uint64_t, 96);
MEMBER(cos_stats, standard_ns, uint64_t, 104);
MEMBER(cos_stats, rows_copied, uint64_t, 112);
_Static_assert(sizeof(cos_stats) >= 120, "cos_stats has shrunk");

/* Sizes of the structs before anything was added to them. */
enum { FIRST_OPTIONS_SIZE = 96, FIRST_RESULT_SIZE = 32, FIRST_STATS_SIZE = 80 };

#define CONSTANT(name, value) _Static_assert((name) == (value), #name " has changed")

CONSTANT(COS_ERROR_INVALID_ARGUMENT, 1);
CONSTANT(COS_ERROR_CONFIG, 2);
CONSTANT(COS_ERROR_MODEL, 3);
CONSTANT(COS_ERROR_RUNTIME, 4);
CONSTANT(COS_ERROR_CONTEXT_FULL, 5);
CONSTANT(COS_ERROR_NUMERIC, 6);
CONSTANT(COS_ERROR_BUSY, 7);
CONSTANT(COS_ERROR_UNSUPPORTED, 8);
CONSTANT(COS_ERROR_BUFFER_TOO_SMALL, 9);
CONSTANT(COS_ERROR_POISONED, 10);
CONSTANT(COS_ERROR_INTERNAL, 11);
CONSTANT(COS_ERROR_CALLBACK, 12);
CONSTANT(COS_STRATEGY_AUTO, 0);
CONSTANT(COS_STRATEGY_STANDARD, 1);
CONSTANT(COS_STRATEGY_SPECULATIVE, 2);
CONSTANT(COS_STRATEGY_COS, 3);
CONSTANT(COS_TARGETS_AUTO, 0);
CONSTANT(COS_TARGETS_COMBINED, 1);
CONSTANT(COS_TARGETS_ROUTED, 2);
CONSTANT(COS_FINISH_NONE, 0);
CONSTANT(COS_FINISH_STOP, 1);
CONSTANT(COS_FINISH_MAX_TOKENS, 2);
CONSTANT(COS_FINISH_CONTEXT_FULL, 3);
CONSTANT(COS_FINISH_CANCELLED, 4);

/* Functions keep their signatures: these initialisers do not compile otherwise. */
static const struct {
    const char *(*version)(void);
    int32_t (*error_code)(const cos_error *);
    const char *(*error_message)(const cos_error *);
    void (*error_free)(cos_error *);
    cos_error *(*engine_open)(const char *, cos_engine **);
    cos_error *(*engine_new)(const char *, cos_engine **);
    void (*engine_free)(cos_engine *);
    size_t (*engine_vocab_size)(const cos_engine *);
    size_t (*engine_model_count)(const cos_engine *);
    cos_error *(*engine_describe)(const cos_engine *, const char **);
    cos_error *(*engine_describe_table)(const cos_engine *, const char **);
    cos_error *(*session_new)(const cos_engine *, const cos_session_options *, cos_session **);
    cos_error *(*prompt)(cos_session *, const int32_t *, size_t);
    cos_error *(*session_set_weights)(cos_session *, const float *, size_t);
    cos_error *(*step)(cos_session *, cos_step_result *);
    cos_error *(*cancel)(cos_session *);
    void (*free)(cos_session *);
    cos_error *(*session_stats)(const cos_session *, cos_stats *);
    cos_error *(*session_describe)(const cos_session *, const char **);
    cos_error *(*engine_stats)(const cos_engine *, cos_stats *);
    cos_error *(*engine_encode)(const cos_engine *, const char *, size_t, int32_t, int32_t *, size_t, size_t *);
    cos_error *(*engine_decode)(const cos_engine *, const int32_t *, size_t, char *, size_t, size_t *);
    cos_error *(*text_stream_new)(const cos_engine *, cos_text_stream **);
    cos_error *(*text_stream_prompt)(cos_text_stream *, const int32_t *, size_t);
    cos_error *(*text_stream_set_stops)(cos_text_stream *, const char *const *, const size_t *, size_t);
    int32_t (*text_stream_stopped)(const cos_text_stream *);
    cos_error *(*text_stream_push)(cos_text_stream *, const int32_t *, size_t, const char **, size_t *);
    cos_error *(*text_stream_finish)(cos_text_stream *, const char **, size_t *);
    void (*text_stream_free)(cos_text_stream *);
} signatures = {
    cos_version,
    cos_error_code,
    cos_error_message,
    cos_error_free,
    cos_engine_open,
    cos_engine_new,
    cos_engine_free,
    cos_engine_vocab_size,
    cos_engine_model_count,
    cos_engine_describe,
    cos_engine_describe_table,
    cos_session_new,
    cos_prompt,
    cos_session_set_weights,
    cos_step,
    cos_cancel,
    cos_free,
    cos_session_stats,
    cos_session_describe,
    cos_engine_stats,
    cos_engine_encode,
    cos_engine_decode,
    cos_text_stream_new,
    cos_text_stream_prompt,
    cos_text_stream_set_stops,
    cos_text_stream_stopped,
    cos_text_stream_push,
    cos_text_stream_finish,
    cos_text_stream_free,
};

/* ---- checks at run time ---- */

static atomic_int checks;

static void check(int holds, const char *what, int line) {
    atomic_fetch_add(&checks, 1);
    if (!holds) {
        fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, line, what);
        exit(1);
    }
}

static void check_ok(cos_error *error, const char *what, int line) {
    if (error) {
        fprintf(stderr, "%s:%d: error %d: %s\n", __FILE__, line, cos_error_code(error), cos_error_message(error));
    }
    check(!error, what, line);
}

static void check_error(cos_error *error, int32_t code, const char *what, int line) {
    check(error && cos_error_code(error) == code && *cos_error_message(error), what, line);
    cos_error_free(error);
}

#define CHECK(condition) check((condition) != 0, #condition, __LINE__)
#define OK(call) check_ok((call), #call, __LINE__)
#define FAILS(code, call) check_error((call), (code), #call " fails with " #code, __LINE__)

static void sleep_ms(long ms) {
    struct timespec time = { .tv_nsec = ms * 1000000 };
    nanosleep(&time, NULL);
}

/* ---- decoding ---- */

enum { MAX_PROMPT = 128, MAX_RUN = 256, TOKENS = 24, CONTEXT = 1024 };

static const int32_t no_stop_tokens[1]; /* not NULL, for a count of 0 */

static int32_t prompt[MAX_PROMPT];
static size_t prompt_count;

/* Options that decode a fixed number of tokens, whatever they are. */
static cos_session_options fixed_length(int32_t strategy, float temperature, uint32_t max_tokens) {
    return (cos_session_options){
        .struct_size = sizeof(cos_session_options),
        .strategy = strategy,
        .temperature = temperature,
        .seed = 7,
        .max_tokens = max_tokens,
        .stop_tokens = no_stop_tokens,
    };
}

static cos_session *start(const cos_engine *engine, const cos_session_options *options) {
    cos_session *session = NULL;
    OK(cos_session_new(engine, options, &session));
    CHECK(session);
    OK(cos_prompt(session, prompt, prompt_count));
    return session;
}

static cos_stats stats_of(const cos_session *session) {
    cos_stats stats = { .struct_size = sizeof stats };
    OK(cos_session_stats(session, &stats));
    return stats;
}

/* What was decoded since the last prompt. */
typedef struct run {
    int32_t tokens[MAX_RUN];
    size_t count;
    int32_t finish;
    uint64_t steps;
} run;

/* One step, its tokens appended. */
static void step(cos_session *session, size_t vocab_size, run *run) {
    cos_step_result result = { .struct_size = sizeof result };
    OK(cos_step(session, &result));
    CHECK(result.struct_size == sizeof result);
    CHECK(result.reserved == 0);
    CHECK(!result.log_probabilities); /* not asked for */
    CHECK(result.finish >= COS_FINISH_NONE && result.finish <= COS_FINISH_CANCELLED);
    CHECK(result.tokens_count > 0 || result.finish != COS_FINISH_NONE);
    CHECK(result.tokens_count <= MAX_RUN - run->count);
    for (size_t i = 0; i < result.tokens_count; i++) {
        CHECK(result.tokens[i] >= 0 && (size_t)result.tokens[i] < vocab_size);
        run->tokens[run->count++] = result.tokens[i];
    }
    run->finish = result.finish;
    run->steps++;
}

static run to_the_end(cos_session *session, size_t vocab_size) {
    run run = { .finish = COS_FINISH_NONE };
    while (run.finish == COS_FINISH_NONE) {
        step(session, vocab_size, &run);
        CHECK(run.finish != COS_FINISH_CANCELLED);
    }
    return run;
}

/* Whether two greedy runs agree. Passes of other widths may decide a near tie otherwise, so such runs may part. */
static int agree(const run *a, const run *b, uint64_t near_ties) {
    return near_ties > 0 || (a->count == b->count && !memcmp(a->tokens, b->tokens, a->count * sizeof *a->tokens));
}

/* A description says what a session does, and whether that was planned. */
static void described(const cos_session *session, int32_t strategy) {
    const char *json = NULL;
    OK(cos_session_describe(session, &json));
    const char *says[] = {"\"strategy\":", "\"standard\"", "\"speculative\"", "\"cos\""};
    CHECK(strstr(json, says[strategy]));
    CHECK(strstr(json, strategy == COS_STRATEGY_AUTO ? "\"planned\":true" : "\"planned\":false"));
    CHECK(strstr(json, "\"peak_bytes\":") && json[strlen(json) - 1] == '}');
}

static void check_stats(const cos_stats *stats, const run *run) {
    CHECK(stats->struct_size == sizeof *stats);
    CHECK(stats->steps == run->steps);
    CHECK(stats->tokens == run->count);
    CHECK(stats->accepted <= stats->tested);
    CHECK(stats->tested <= stats->proposed);
    CHECK(stats->accepted <= stats->tokens);
    CHECK(stats->forwards > 0);
    CHECK(stats->forwards <= stats->positions);
    CHECK(stats->model_ns > 0);
    CHECK(stats->model_ns <= stats->total_ns);
    CHECK(stats->planned_ns <= stats->total_ns);
    CHECK(!stats->planned_ns == !stats->expected_ns && !stats->planned_ns == !stats->standard_ns);
}

static void every_strategy(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    run greedy[4];
    uint64_t near_ties = 0;
    for (int sampled = 0; sampled < 2; sampled++) {
        for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
            cos_session_options options = fixed_length(strategy, (float)sampled, TOKENS);
            cos_session *session = start(engine, &options);
            CHECK(stats_of(session).steps == 0);
            run run = to_the_end(session, vocab_size);
            CHECK(run.count == TOKENS);
            CHECK(run.finish == COS_FINISH_MAX_TOKENS);
            cos_stats stats = stats_of(session);
            check_stats(&stats, &run);
            if (strategy == COS_STRATEGY_STANDARD) {
                CHECK(stats.proposed == 0);
                CHECK(stats.steps == TOKENS);
                CHECK(stats.forwards == TOKENS * cos_engine_model_count(engine));
                CHECK(stats.planned_ns == 0);
            } else if (strategy != COS_STRATEGY_AUTO) {
                CHECK(stats.tested > 0);
            }
            described(session, strategy);
            if (!sampled) {
                greedy[strategy] = run;
                near_ties += stats.near_ties;
            }
            cos_free(session);
        }
    }
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        CHECK(agree(&greedy[strategy], &greedy[COS_STRATEGY_STANDARD], near_ties));
    }
    /* Without options a session is greedy and automatic, too. */
    cos_session *session = start(engine, NULL);
    run run = { .finish = COS_FINISH_NONE };
    step(session, vocab_size, &run);
    CHECK(near_ties > 0 || !memcmp(run.tokens, greedy[COS_STRATEGY_AUTO].tokens, run.count * sizeof *run.tokens));
    cos_free(session);
}

static void arrays_of_options(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    int32_t lengths[] = { 2, 3 };
    float weights[] = { 0.25f, 0.75f };
    cos_session_options options = fixed_length(COS_STRATEGY_COS, 1, TOKENS);
    options.proposal_lengths = lengths;
    options.proposal_lengths_count = 2;
    options.weights = weights;
    options.weights_count = 2;
    options.targets = COS_TARGETS_ROUTED;
    options.top_k = 50;
    options.top_p = 0.95f;
    options.min_p = 0.01f;
    run runs[2];
    for (int i = 0; i < 2; i++) {
        cos_session *session = start(engine, &options);
        if (i == 1) {
            memset(lengths, 0xff, sizeof lengths); /* copied before */
            memset(weights, 0xff, sizeof weights);
        }
        runs[i] = to_the_end(session, vocab_size);
        CHECK(runs[i].count == TOKENS);
        cos_free(session);
    }
    CHECK(!memcmp(runs[0].tokens, runs[1].tokens, TOKENS * sizeof *runs[0].tokens)); /* the same seed */
}

static void stop_tokens(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    cos_session_options options = fixed_length(COS_STRATEGY_COS, 0, TOKENS);
    cos_session *session = start(engine, &options);
    run whole = to_the_end(session, vocab_size);
    cos_free(session);

    const int32_t stop[] = { whole.tokens[TOKENS / 2] };
    options.stop_tokens = stop;
    options.stop_tokens_count = 1;
    session = start(engine, &options);
    run run = to_the_end(session, vocab_size);
    CHECK(run.finish == COS_FINISH_STOP);
    CHECK(run.count > 0 && run.count <= TOKENS / 2 + 1);
    CHECK(run.tokens[run.count - 1] == stop[0]);
    cos_free(session);
}

static void chat(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    cos_session_options options = fixed_length(COS_STRATEGY_AUTO, 1, TOKENS);
    cos_session *session = start(engine, &options);
    run first = to_the_end(session, vocab_size);
    /* A finished sequence says so again. */
    cos_step_result result = { .struct_size = sizeof result };
    OK(cos_step(session, &result));
    CHECK(result.tokens_count == 0);
    CHECK(result.finish == COS_FINISH_MAX_TOKENS);
    /* The next turn, also in the middle of an answer. */
    OK(cos_prompt(session, prompt, prompt_count));
    run second = { .finish = COS_FINISH_NONE };
    step(session, vocab_size, &second);
    OK(cos_prompt(session, prompt, 3));
    run third = to_the_end(session, vocab_size);
    CHECK(third.count == TOKENS);
    CHECK(third.finish == COS_FINISH_MAX_TOKENS);
    CHECK(stats_of(session).tokens == first.count + second.count + third.count);
    CHECK(stats_of(session).steps == first.steps + 1 + second.steps + third.steps);
    cos_free(session);
}

static void full_context(const cos_engine *engine) {
    int32_t *tokens = calloc(CONTEXT + 1, sizeof *tokens);
    CHECK(tokens);
    for (size_t i = 0; i < CONTEXT + 1; i++) {
        tokens[i] = prompt[i % prompt_count];
    }
    cos_session_options options = fixed_length(COS_STRATEGY_COS, 1, 0);
    cos_session *session = NULL;
    OK(cos_session_new(engine, &options, &session));
    FAILS(COS_ERROR_CONTEXT_FULL, cos_prompt(session, tokens, CONTEXT + 1));
    OK(cos_prompt(session, tokens, CONTEXT - 10));
    free(tokens);
    FAILS(COS_ERROR_CONTEXT_FULL, cos_prompt(session, prompt, 11));
    run run = to_the_end(session, cos_engine_vocab_size(engine));
    CHECK(run.finish == COS_FINISH_CONTEXT_FULL);
    CHECK(run.count == 10);
    FAILS(COS_ERROR_CONTEXT_FULL, cos_prompt(session, prompt, 1));
    cos_free(session);
}

/* ---- log-probabilities, functions, weights, look-ups ---- */

static void log_probabilities(const cos_engine *engine) {
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        for (int sampled = 0; sampled < 2; sampled++) {
            cos_session_options options = fixed_length(strategy, (float)sampled, TOKENS);
            options.log_probabilities = 1;
            cos_session *session = start(engine, &options);
            cos_step_result result = { .struct_size = sizeof result };
            size_t count = 0;
            double surprise = 0;
            while (result.finish == COS_FINISH_NONE) {
                OK(cos_step(session, &result));
                for (size_t i = 0; i < result.tokens_count; i++) {
                    CHECK(result.log_probabilities[i] <= 0 && result.log_probabilities[i] > -100);
                    surprise -= (double)result.log_probabilities[i];
                }
                count += result.tokens_count;
            }
            CHECK(count == TOKENS);
            CHECK(surprise > 0 && surprise / TOKENS < 10); /* better than a guess among so many */
            OK(cos_step(session, &result));
            CHECK(!result.log_probabilities);
            cos_free(session);
        }
    }
}

typedef struct combination {
    float mu;
    size_t calls, models_count, vocab_size;
} combination;

/* What the contrastive engine does itself. */
static int32_t contrast(const float *const *rows, size_t models_count, size_t vocab_size, float *out_scores,
                        void *user_data) {
    combination *data = user_data;
    data->calls++;
    data->models_count = models_count;
    data->vocab_size = vocab_size;
    for (size_t i = 0; i < vocab_size; i++) {
        out_scores[i] = rows[0][i] - data->mu * rows[1][i];
    }
    return 0;
}

static void functions(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        for (int sampled = 0; sampled < 2; sampled++) {
            run runs[2];
            uint64_t near_ties = 0;
            for (int own = 0; own < 2; own++) {
                combination data = { .mu = 0.1f };
                cos_session_options options = fixed_length(strategy, (float)sampled, TOKENS);
                options.combine = own ? contrast : NULL;
                options.combine_data = &data;
                cos_session *session = start(engine, &options);
                runs[own] = to_the_end(session, vocab_size);
                near_ties += stats_of(session).near_ties;
                cos_free(session);
                CHECK(own ? data.calls >= TOKENS && data.models_count == 2 && data.vocab_size == vocab_size
                          : !data.calls);
            }
            /* the same seed, the same scores, and for sampled tokens the same plan, which auto does not promise */
            CHECK((sampled && strategy == COS_STRATEGY_AUTO) || agree(&runs[0], &runs[1], near_ties));
        }
    }
}

static void weights_that_change(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    const float first[] = { 1, 0 }, half[] = { 0.5f, 0.5f };
    cos_session_options options = fixed_length(COS_STRATEGY_STANDARD, 1, TOKENS);
    cos_session *session = start(engine, &options);
    run run = { .finish = COS_FINISH_NONE };
    step(session, vocab_size, &run);
    CHECK(stats_of(session).forwards == 2);
    OK(cos_session_set_weights(session, first, 2));
    step(session, vocab_size, &run);
    step(session, vocab_size, &run);
    CHECK(stats_of(session).forwards == 4); /* one of two models runs */
    OK(cos_session_set_weights(session, half, 2));
    step(session, vocab_size, &run);
    CHECK(stats_of(session).forwards == 6); /* the other one catches up in one pass */
    CHECK(run.count == 4);
    cos_free(session);
}

static void look_ups(const char *root) {
    char config[8192];
    cos_engine *engines[2] = { NULL, NULL };
    run runs[2];
    uint64_t near_ties = 0;
    for (int with = 0; with < 2; with++) {
        snprintf(config, sizeof config,
                 "{ \"models\": [ { \"kind\": \"onnx\", \"path\": \"%s/models/demo/base\" }%s ],"
                 "  \"combine\": { \"kind\": \"target\", \"model\": 0 } }",
                 root, with ? ", { \"kind\": \"ngram\" }" : "");
        OK(cos_engine_new(config, &engines[with]));
        CHECK(cos_engine_model_count(engines[with]) == (size_t)with + 1);
        cos_session_options options = fixed_length(COS_STRATEGY_SPECULATIVE, 0, 4 * TOKENS);
        cos_session *session = start(engines[with], &options);
        OK(cos_prompt(session, prompt, prompt_count)); /* twice the same, so that there is something to find */
        runs[with] = to_the_end(session, cos_engine_vocab_size(engines[with]));
        cos_stats stats = stats_of(session);
        near_ties += stats.near_ties;
        CHECK(with ? stats.accepted > 0 && stats.forwards < 4 * TOKENS : !stats.proposed);
        cos_free(session);
        cos_engine_free(engines[with]);
    }
    CHECK(agree(&runs[0], &runs[1], near_ties));
}

/* ---- callers of other versions ---- */

/* Allocations of the old sizes, so that the sanitizer sees every byte beyond them that is touched. */
static void older_callers(const cos_engine *engine) {
    cos_session_options full = fixed_length(COS_STRATEGY_COS, 1, TOKENS);
    full.struct_size = FIRST_OPTIONS_SIZE;
    full.targets = -1; /* not the caller's: whatever lies behind its struct */
    full.log_probabilities = -1;
    full.combine_data = &full;
    cos_session_options *options = malloc(FIRST_OPTIONS_SIZE);
    cos_step_result *result = malloc(FIRST_RESULT_SIZE);
    cos_stats *old_stats = malloc(FIRST_STATS_SIZE);
    CHECK(options && result && old_stats);
    memcpy((void *)options, &full, FIRST_OPTIONS_SIZE);
    cos_session *session = start(engine, options);
    free(options);
    cos_free(session);
    session = start(engine, &full);

    result->struct_size = FIRST_RESULT_SIZE;
    OK(cos_step(session, result));
    CHECK(result->tokens_count > 0);
    old_stats->struct_size = FIRST_STATS_SIZE;
    OK(cos_session_stats(session, old_stats));
    CHECK(old_stats->tokens == result->tokens_count);
    CHECK(old_stats->total_ns > 0);
    free(result);
    free(old_stats);

    cos_stats stats;
    memset(&stats, 0xa5, sizeof stats);
    stats.struct_size = FIRST_STATS_SIZE;
    OK(cos_session_stats(session, &stats));
    CHECK(stats.struct_size == FIRST_STATS_SIZE);
    CHECK(stats.near_ties == UINT64_C(0xa5a5a5a5a5a5a5a5));
    cos_free(session);
}

/* What this library does not know must be 0 on the way in, and becomes 0 on the way out. */
static void newer_callers(const cos_engine *engine) {
    struct {
        cos_session_options known;
        uint64_t added[2];
    } options = { .known = fixed_length(COS_STRATEGY_COS, 1, TOKENS) };
    options.known.struct_size = sizeof options;
    cos_session *session = start(engine, &options.known);
    struct {
        cos_step_result known;
        uint64_t added[2];
    } result = { .known.struct_size = sizeof result, .added = { 1, 1 } };
    OK(cos_step(session, &result.known));
    CHECK(result.known.struct_size == sizeof result);
    CHECK(result.known.tokens_count > 0);
    CHECK(result.added[0] == 0 && result.added[1] == 0);
    cos_free(session);
    options.added[1] = 1;
    session = NULL;
    FAILS(COS_ERROR_UNSUPPORTED, cos_session_new(engine, &options.known, &session));
    CHECK(!session);
}

/* ---- threads ---- */

enum { CANCELS = 3 };

typedef struct cancelled {
    cos_session *session;
    atomic_size_t committed;
} cancelled;

/* Cancels each time when four more tokens were committed, and looks at the statistics all the while. */
static void *canceller(void *argument) {
    cancelled *shared = argument;
    uint64_t seen = 0;
    for (size_t i = 1; i <= CANCELS; i++) {
        while (atomic_load(&shared->committed) < 4 * i) {
            uint64_t tokens = stats_of(shared->session).tokens;
            CHECK(tokens >= seen);
            seen = tokens;
            sleep_ms(1);
        }
        OK(cos_cancel(shared->session));
    }
    return NULL;
}

static void cancelling(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    cos_session_options options = fixed_length(COS_STRATEGY_COS, 0, 2 * TOKENS);
    cos_session *session = start(engine, &options);
    run undisturbed = to_the_end(session, vocab_size);
    uint64_t near_ties = stats_of(session).near_ties;
    cos_free(session);

    cancelled shared = { .session = start(engine, &options) };
    run run = { .finish = COS_FINISH_NONE };
    OK(cos_cancel(shared.session)); /* before the first step */
    step(shared.session, vocab_size, &run);
    CHECK(run.finish == COS_FINISH_CANCELLED);
    CHECK(run.count == 0);
    pthread_t thread;
    CHECK(!pthread_create(&thread, NULL, canceller, &shared));
    int cancels = 0;
    while (run.finish != COS_FINISH_MAX_TOKENS) {
        size_t before = run.count;
        step(shared.session, vocab_size, &run);
        CHECK(run.finish != COS_FINISH_CANCELLED || run.count == before);
        cancels += run.finish == COS_FINISH_CANCELLED;
        atomic_store(&shared.committed, run.count);
        if (run.count >= 4 * CANCELS && cancels < CANCELS) {
            sleep_ms(2); /* let the other thread have its turn */
        }
    }
    CHECK(!pthread_join(thread, NULL));
    CHECK(cancels <= CANCELS);
    /* On a slow machine the last request may have come behind the last token. */
    step(shared.session, vocab_size, &run);
    cancels += run.finish == COS_FINISH_CANCELLED;
    CHECK(cancels >= 1 && cancels <= CANCELS);
    /* Nothing was lost, and nothing came twice. */
    CHECK(run.count == 2 * TOKENS);
    near_ties += stats_of(shared.session).near_ties;
    CHECK(agree(&run, &undisturbed, near_ties));
    CHECK(stats_of(shared.session).tokens == run.count);
    cos_free(shared.session);
}

/* A step over a long prompt; the session may be gone when it returns. */
static void *long_step(void *session) {
    cos_step_result result = { .struct_size = sizeof result };
    cos_error *error;
    while ((error = cos_step(session, &result))) {
        CHECK(cos_error_code(error) == COS_ERROR_BUSY);
        cos_error_free(error);
    }
    return NULL;
}

static void freeing_while_a_step_runs(const cos_engine *engine) {
    cos_session_options options = fixed_length(COS_STRATEGY_STANDARD, 0, 0);
    cos_session *session = start(engine, &options);
    while (stats_of(session).tokens == 0) {
        for (int i = 0; i < 6; i++) {
            OK(cos_prompt(session, prompt, prompt_count));
        }
        pthread_t thread;
        CHECK(!pthread_create(&thread, NULL, long_step, session));
        /* Until the other thread's step runs, this one is free to call, and gets its NULL refused. */
        for (;;) {
            cos_error *error = cos_step(session, NULL);
            int32_t code = cos_error_code(error);
            cos_error_free(error);
            if (code == COS_ERROR_BUSY) {
                cos_free(session);
                CHECK(!pthread_join(thread, NULL));
                return;
            }
            CHECK(code == COS_ERROR_INVALID_ARGUMENT);
            if (stats_of(session).tokens > 0) {
                break; /* it is over already */
            }
        }
        CHECK(!pthread_join(thread, NULL));
    }
    cos_free(session);
}

typedef struct job {
    const cos_engine *engine;
    uint64_t seed;
    run run;
} job;

static void *decode_job(void *argument) {
    job *job = argument;
    cos_session_options options = fixed_length(COS_STRATEGY_COS, 1, 2 * TOKENS);
    options.seed = job->seed;
    cos_session *session = start(job->engine, &options);
    job->run = to_the_end(session, cos_engine_vocab_size(job->engine));
    cos_free(session);
    return NULL;
}

/* Two sessions of one engine at once decode what they decode one after the other. */
static void sessions_in_parallel(const cos_engine *engine) {
    job alone[2], together[2];
    pthread_t threads[2];
    for (size_t i = 0; i < 2; i++) {
        alone[i] = together[i] = (job){ .engine = engine, .seed = 100 + i };
        decode_job(&alone[i]);
    }
    for (size_t i = 0; i < 2; i++) {
        CHECK(!pthread_create(&threads[i], NULL, decode_job, &together[i]));
    }
    for (size_t i = 0; i < 2; i++) {
        CHECK(!pthread_join(threads[i], NULL));
        CHECK(together[i].run.count == 2 * TOKENS);
        CHECK(!memcmp(together[i].run.tokens, alone[i].run.tokens, 2 * TOKENS * sizeof *alone[i].run.tokens));
    }
    CHECK(memcmp(alone[0].run.tokens, alone[1].run.tokens, 2 * TOKENS * sizeof *alone[0].run.tokens));
}

/* ---- text ---- */

/* "Größe 🙂 漢字: 2 + 2 = 4" */
static const char text[] = "Gr\303\266\303\237e \360\237\231\202 \346\274\242\345\255\227: 2 + 2 = 4\n";
enum { TEXT_BYTES = sizeof text - 1 };

static void encoding(const cos_engine *engine) {
    size_t count = 0, bytes = 0;
    OK(cos_engine_encode(engine, text, TEXT_BYTES, 0, NULL, 0, &count)); /* counts only */
    CHECK(count > 0 && count <= TEXT_BYTES);
    int32_t tokens[TEXT_BYTES + 1];
    memset(tokens, 0xff, sizeof tokens);
    size_t untouched = 12345;
    FAILS(COS_ERROR_BUFFER_TOO_SMALL, cos_engine_encode(engine, text, TEXT_BYTES, 0, tokens, count - 1, &untouched));
    CHECK(untouched == 12345);
    CHECK(tokens[0] == -1);
    OK(cos_engine_encode(engine, text, TEXT_BYTES, 0, tokens, count, &untouched));
    CHECK(untouched == count);
    CHECK(tokens[count - 1] >= 0);
    CHECK(tokens[count] == -1);

    OK(cos_engine_decode(engine, tokens, count, NULL, 0, &bytes));
    CHECK(bytes == TEXT_BYTES);
    char back[TEXT_BYTES + 1];
    memset(back, '?', sizeof back);
    untouched = 12345;
    FAILS(COS_ERROR_BUFFER_TOO_SMALL, cos_engine_decode(engine, tokens, count, back, bytes - 1, &untouched));
    CHECK(untouched == 12345);
    CHECK(back[0] == '?');
    OK(cos_engine_decode(engine, tokens, count, back, sizeof back, &bytes));
    CHECK(bytes == TEXT_BYTES);
    CHECK(!memcmp(back, text, TEXT_BYTES));
    CHECK(back[TEXT_BYTES] == '?');

    OK(cos_engine_encode(engine, "", 0, 0, tokens, 1, &count));
    CHECK(count == 0);
}

/* Text that comes token by token, cut between characters only. */
static void streaming(const cos_engine *engine) {
    int32_t tokens[TEXT_BYTES];
    size_t count = 0;
    OK(cos_engine_encode(engine, text, TEXT_BYTES, 0, tokens, TEXT_BYTES, &count));
    cos_text_stream *stream = NULL;
    OK(cos_text_stream_new(engine, &stream));
    for (int turn = 0; turn < 2; turn++) { /* after its end a stream starts anew */
        char whole[TEXT_BYTES];
        const char *piece = NULL;
        size_t length = 0, bytes = 0;
        int held = 0;
        for (size_t i = 0; i <= count; i++) {
            OK(i < count ? cos_text_stream_push(stream, &tokens[i], 1, &piece, &bytes)
                         : cos_text_stream_finish(stream, &piece, &bytes));
            CHECK(piece);
            CHECK(bytes <= TEXT_BYTES - length);
            CHECK(bytes == 0 || ((unsigned char)piece[0] & 0xc0) != 0x80); /* not in the middle of a character */
            memcpy(whole + length, piece, bytes);
            length += bytes;
            held += i < count && bytes == 0;
        }
        CHECK(held > 0);
        CHECK(length == TEXT_BYTES);
        CHECK(!memcmp(whole, text, TEXT_BYTES));
        OK(cos_text_stream_push(stream, NULL, 0, &piece, &bytes));
        CHECK(bytes == 0);
    }

    /* Up to the first stop string, which is a part of one token and reaches into others. */
    const char *const stops[] = {text + 12, "\x01"};
    const size_t stops_bytes[] = {4, 1};
    size_t start = 0;
    while (memcmp(text + start, stops[0], stops_bytes[0]))
        start++;
    OK(cos_text_stream_set_stops(stream, stops, stops_bytes, 2));
    const char *piece = NULL;
    size_t bytes = 0, length = 0;
    for (size_t i = 0; i < count; i++) {
        CHECK(length == start || !cos_text_stream_stopped(stream));
        OK(cos_text_stream_push(stream, &tokens[i], 1, &piece, &bytes));
        CHECK(bytes <= start - length);
        CHECK(!memcmp(text + length, piece, bytes));
        length += bytes;
    }
    CHECK(length == start);
    CHECK(cos_text_stream_stopped(stream) == 1);
    OK(cos_text_stream_finish(stream, &piece, &bytes));
    CHECK(bytes == 0);
    CHECK(cos_text_stream_stopped(stream) == 1);
    OK(cos_text_stream_set_stops(stream, NULL, NULL, 0));
    OK(cos_text_stream_push(stream, tokens, count, &piece, &bytes));
    CHECK(bytes == TEXT_BYTES);
    CHECK(cos_text_stream_stopped(stream) == 0);
    cos_text_stream_free(stream);
}

/* ---- totals ---- */

/* An engine adds up what its sessions did, also those that are no more. */
static void totals(const cos_engine *engine) {
    cos_stats before = {.struct_size = sizeof before}, after = before, of[2] = {before, before};
    OK(cos_engine_stats(engine, &before));
    for (int i = 0; i < 2; i++) {
        cos_session_options options = fixed_length(i ? COS_STRATEGY_COS : COS_STRATEGY_AUTO, 0, TOKENS);
        cos_session *session = start(engine, &options);
        to_the_end(session, cos_engine_vocab_size(engine));
        OK(cos_session_stats(session, &of[i]));
        cos_free(session);
    }
    OK(cos_engine_stats(engine, &after));
    CHECK(of[0].tokens == TOKENS && of[1].proposed > 0);
#define ADDED(member) CHECK(after.member - before.member == of[0].member + of[1].member)
    ADDED(steps);
    ADDED(tokens);
    ADDED(proposed);
    ADDED(tested);
    ADDED(accepted);
    ADDED(forwards);
    ADDED(positions);
    ADDED(model_ns);
    ADDED(total_ns);
    ADDED(near_ties);
    ADDED(planned_ns);
    ADDED(expected_ns);
    ADDED(standard_ns);
    ADDED(rows_copied);
#undef ADDED
}

/* ---- lives ---- */

/* Sessions and streams outlive their engine. */
static void engine_freed_first(cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    cos_session_options options = fixed_length(COS_STRATEGY_AUTO, 0, TOKENS);
    cos_session *session = start(engine, &options);
    cos_text_stream *stream = NULL;
    OK(cos_text_stream_new(engine, &stream));
    cos_engine_free(engine);
    run run = to_the_end(session, vocab_size);
    CHECK(run.count == TOKENS);
    const char *piece = NULL;
    size_t bytes = 0;
    OK(cos_text_stream_push(stream, run.tokens, run.count, &piece, &bytes));
    CHECK(bytes > 0);
    cos_free(session);
    cos_text_stream_free(stream);
}

static void null_is_fine(void) {
    cos_error_free(NULL);
    cos_engine_free(NULL);
    cos_free(NULL);
    cos_text_stream_free(NULL);
    CHECK(cos_error_code(NULL) == 0);
    CHECK(!*cos_error_message(NULL));
    CHECK(cos_engine_vocab_size(NULL) == 0);
    CHECK(cos_engine_model_count(NULL) == 0);
    CHECK(cos_text_stream_stopped(NULL) == 0);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s ROOT\n", argv[0]);
        return 2;
    }
    char path[4096], config[2 * sizeof path + 256];
    CHECK(snprintf(path, sizeof path, "%s/models/demo/engine.json", argv[1]) < (int)sizeof path);

    CHECK(signatures.version == cos_version);
    CHECK(!strncmp(cos_version(), "0.1.", 4));
    null_is_fine();

    cos_engine *weighted = NULL;
    OK(cos_engine_open(path, &weighted));
    CHECK(weighted);
    CHECK(cos_engine_model_count(weighted) == 2);
    CHECK(cos_engine_vocab_size(weighted) > 1);

    const char question[] = "Question: A robe takes 2 bolts of blue fiber and half that much white fiber.  "
                            "How many bolts in total does it take?\nAnswer:";
    OK(cos_engine_encode(weighted, question, sizeof question - 1, 1, prompt, MAX_PROMPT, &prompt_count));
    CHECK(prompt_count > 10);

    every_strategy(weighted);
    arrays_of_options(weighted);
    stop_tokens(weighted);
    chat(weighted);
    full_context(weighted);
    log_probabilities(weighted);
    weights_that_change(weighted);
    look_ups(argv[1]);
    older_callers(weighted);
    newer_callers(weighted);
    cancelling(weighted);
    freeing_while_a_step_runs(weighted);
    sessions_in_parallel(weighted);
    encoding(weighted);
    streaming(weighted);
    totals(weighted);

    /* Another engine beside it, from text. */
    snprintf(config, sizeof config,
             "{ \"models\": [ { \"path\": \"%s/models/demo/base\" }, { \"path\": \"%s/models/demo/small\" } ],"
             "  \"combine\": { \"kind\": \"contrastive\", \"mu\": 0.1 } }",
             argv[1], argv[1]);
    cos_engine *contrastive = NULL;
    OK(cos_engine_new(config, &contrastive));
    every_strategy(contrastive);
    functions(contrastive);
    cos_engine_free(contrastive);

    engine_freed_first(weighted);

    printf("%d checks passed\n", atomic_load(&checks));
    return 0;
}
