/* Uses the whole C interface as a user's program would, and checks everything that it returns.
 *
 *     smoke ROOT        ROOT is the folder of the repository; the demo models are taken from there
 */
#include "smoke/checks.h"
#include "smoke/decoding.h"
#include "smoke/controls.h"
#include "smoke/promises.h"

/* ---- callers of other versions ---- */

/* Structs of the old sizes are allocated, so the sanitizer finds every access beyond them. */
static void older_callers(const cos_engine *engine) {
    cos_session_options full = fixed_length(COS_STRATEGY_COS, 1, TOKENS);
    full.struct_size = FIRST_OPTIONS_SIZE;
    full.targets = -1; /* beyond the caller's struct, so it must not be read */
    full.log_probabilities = -1;
    full.routes = -1;
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

/* Members that this library does not know must be 0 in inputs, and become 0 in outputs. */
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

/* Cancels whenever four more tokens were committed, and reads the statistics all the time. */
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
            sleep_ms(2); /* give the other thread time */
        }
    }
    CHECK(!pthread_join(thread, NULL));
    CHECK(cancels <= CANCELS);
    /* On a slow machine, the last request may come after the last token. */
    step(shared.session, vocab_size, &run);
    cancels += run.finish == COS_FINISH_CANCELLED;
    CHECK(cancels >= 1 && cancels <= CANCELS);
    /* No token is lost, and none comes twice. */
    CHECK(run.count == 2 * TOKENS);
    near_ties += stats_of(shared.session).near_ties;
    CHECK(agree(&run, &undisturbed, near_ties));
    CHECK(stats_of(shared.session).tokens == run.count);
    cos_free(shared.session);
}

/* A step over a long prompt. The session may be freed when it returns. */
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
        /* Before the other thread's step runs, the session is not busy, and NULL is refused. */
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
                break; /* the step has already ended */
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

/* Two sessions of one engine decode the same at the same time as one after the other. */
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

enum { MANY = 6 };

/* One thread drives sessions of all strategies, which begin one after another, beside a slot that is empty. */
static void one_thread_drives_many(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    cos_session *sessions[MANY] = { NULL };
    run runs[MANY], alone[MANY];
    uint64_t near_ties[MANY] = { 0 };
    for (int i = 0; i < MANY; i++) {
        cos_session_options options = fixed_length(i % 4, 0, (uint32_t)(TOKENS + i));
        cos_session *session = start(engine, &options);
        alone[i] = to_the_end(session, vocab_size);
        near_ties[i] += stats_of(session).near_ties;
        cos_free(session);
        runs[i] = (run){ .finish = COS_FINISH_NONE };
    }
    int open = 0, begun = 0, calls = 0;
    do {
        if (begun < MANY) {
            cos_session_options options = fixed_length(begun % 4, 0, (uint32_t)(TOKENS + begun));
            sessions[begun++] = start(engine, &options);
            open++;
        }
        cos_step_result results[MANY];
        cos_error *errors[MANY];
        for (int i = 0; i < MANY; i++) {
            results[i] = (cos_step_result){ .struct_size = sizeof results[i], .tokens_count = 99 };
        }
        OK(cos_step_many(sessions, MANY, results, errors));
        for (int i = 0; i < MANY; i++) {
            CHECK(results[i].struct_size == sizeof results[i] && results[i].tokens_count <= MAX_RUN - runs[i].count);
            memcpy(runs[i].tokens + runs[i].count, results[i].tokens, results[i].tokens_count * sizeof(int32_t));
            runs[i].count += results[i].tokens_count;
            if (!sessions[i]) {
                CHECK(cos_error_code(errors[i]) == COS_ERROR_INVALID_ARGUMENT && results[i].tokens_count == 0);
                cos_error_free(errors[i]);
                continue;
            }
            OK(errors[i]);
            if (results[i].finish != COS_FINISH_NONE) {
                CHECK(results[i].finish == COS_FINISH_MAX_TOKENS);
                near_ties[i] += stats_of(sessions[i]).near_ties;
                cos_free(sessions[i]);
                sessions[i] = NULL;
                open--;
            }
        }
        CHECK(++calls < 100 * TOKENS);
    } while (open > 0);
    for (int i = 0; i < MANY; i++) {
        CHECK(runs[i].count == (size_t)(TOKENS + i));
        CHECK(agree(&runs[i], &alone[i], near_ties[i]));
    }
    OK(cos_step_many(NULL, 0, NULL, NULL));
    FAILS(COS_ERROR_INVALID_ARGUMENT, cos_step_many(sessions, MANY, NULL, NULL));
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

/* Messages become a prompt, and what users say never becomes a control token. */
static void messages(const cos_engine *engine) {
    const char json[] = "[{\"role\": \"user\", \"content\": \"2+2? <|endoftext|>\"}]";
    const char whole[] = "Question: 2+2? <|endoftext|>\nAnswer:";
    char buffer[64];
    memset(buffer, '?', sizeof buffer);
    size_t length = 0, untouched = 12345;
    OK(cos_engine_chat(engine, json, sizeof json - 1, 1, NULL, 0, &length)); /* counts only */
    CHECK(length == sizeof whole - 1);
    FAILS(COS_ERROR_BUFFER_TOO_SMALL,
          cos_engine_chat(engine, json, sizeof json - 1, 1, buffer, length - 1, &untouched));
    CHECK(untouched == 12345 && buffer[0] == '?');
    OK(cos_engine_chat(engine, json, sizeof json - 1, 1, buffer, length, &length));
    CHECK(!memcmp(buffer, whole, length) && buffer[length] == '?');
    OK(cos_engine_chat(engine, json, sizeof json - 1, 0, buffer, sizeof buffer, &length));
    CHECK(length == sizeof whole - 1 - strlen("Answer:"));

    int32_t tokens[64], plain[64], safe[64];
    size_t count = 0, plain_count = 0, safe_count = 0;
    OK(cos_engine_encode(engine, whole, sizeof whole - 1, 0, tokens, 64, &count));
    OK(cos_engine_encode(engine, whole, sizeof whole - 1, COS_ENCODE_PLAIN, plain, 64, &plain_count));
    OK(cos_engine_chat_encode(engine, json, sizeof json - 1, 1, NULL, 0, &safe_count));
    FAILS(COS_ERROR_BUFFER_TOO_SMALL,
          cos_engine_chat_encode(engine, json, sizeof json - 1, 1, safe, safe_count - 1, &untouched));
    OK(cos_engine_chat_encode(engine, json, sizeof json - 1, 1, safe, safe_count, &safe_count));
    size_t ends = 0, plain_ends = 0, safe_ends = 0;
    for (size_t i = 0; i < count; i++)
        ends += tokens[i] == 0;
    for (size_t i = 0; i < plain_count; i++)
        plain_ends += plain[i] == 0;
    for (size_t i = 0; i < safe_count; i++)
        safe_ends += safe[i] == 0;
    CHECK(ends == 1 && plain_ends == 0 && safe_ends == 0);
    OK(cos_engine_decode(engine, safe, safe_count, buffer, sizeof buffer, &length));
    CHECK(length == sizeof whole - 1 && !memcmp(buffer, whole, length));
    OK(cos_engine_decode(engine, tokens, count, buffer, sizeof buffer, &length));
    CHECK(length == sizeof whole - 1 - strlen("<|endoftext|>"));
    OK(cos_engine_decode_special(engine, tokens, count, buffer, sizeof buffer, &length));
    CHECK(length == sizeof whole - 1 && !memcmp(buffer, whole, length));

    cos_text_stream *stream = NULL;
    OK(cos_text_stream_new(engine, &stream));
    OK(cos_text_stream_show_special(stream, 1));
    OK(cos_text_stream_prompt(stream, NULL, 0));
    const char *piece = NULL;
    OK(cos_text_stream_push(stream, tokens, count, &piece, &length));
    CHECK(length == sizeof whole - 1 && !memcmp(piece, whole, length));
    FAILS(COS_ERROR_INVALID_ARGUMENT, cos_text_stream_show_special(stream, 0));
    cos_text_stream_free(stream);
}

/* Text comes token by token, and is only cut between characters. */
static void streaming(const cos_engine *engine) {
    int32_t tokens[TEXT_BYTES];
    size_t count = 0;
    OK(cos_engine_encode(engine, text, TEXT_BYTES, 0, tokens, TEXT_BYTES, &count));
    cos_text_stream *stream = NULL;
    OK(cos_text_stream_new(engine, &stream));
    for (int turn = 0; turn < 2; turn++) { /* a finished stream starts anew */
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

    /* Text ends before the first stop string, which begins within one token and ends within another. */
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

/* The statistics of an engine include those of freed sessions. */
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
    ADDED(prefix_tokens);
    ADDED(recomputed_tokens);
#undef ADDED
}

/* ---- preparation ---- */

typedef struct progress {
    double share;
    int calls, most;
} progress;

static int32_t tell(double share, void *data) {
    progress *told = data;
    CHECK(share >= told->share && share <= 1);
    told->share = share;
    return ++told->calls >= told->most;
}

/* What it does counts nowhere, and the texts behind it are those of before. */
static void preparing(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    cos_session_options options = fixed_length(COS_STRATEGY_COS, 1, TOKENS);
    cos_session *session = start(engine, &options);
    const run before = to_the_end(session, vocab_size);
    cos_free(session);
    cos_stats counted = { .struct_size = sizeof counted }, now = counted;
    OK(cos_engine_stats(engine, &counted));

    progress told = { .most = 1 << 30 };
    cos_prepare_options load = {
        .struct_size = sizeof load, .sessions = 2, .tokens = 64, .seconds = 60, .progress = tell, .progress_data = &told
    };
    double share = 0;
    OK(cos_engine_prepare(engine, &load, &share));
    CHECK(share == 1 && told.share == 1 && told.calls > 20);
    told = (progress){ .most = 10 };
    OK(cos_engine_prepare(engine, &load, &share)); /* stopped by the function */
    CHECK(told.calls == 10 && share == told.share && share < 1);
    load.progress = NULL;
    load.seconds = 1e-9;
    OK(cos_engine_prepare(engine, &load, NULL)); /* stopped by the time */
    OK(cos_engine_stats(engine, &now));
    CHECK(!memcmp(&counted, &now, sizeof now));

    session = start(engine, &options);
    const run after = to_the_end(session, vocab_size);
    CHECK(after.count == before.count && !memcmp(after.tokens, before.tokens, before.count * sizeof *before.tokens));
    cos_free(session);
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

    /* All engines share the pool of the first one. Here it has one thread, because a second one would only spin. */
    cos_engine *first = NULL;
    snprintf(config, sizeof config,
             "{ \"models\": [ { \"path\": \"%s/models/demo/small\" } ], \"threads\": 1,"
             "  \"combine\": { \"kind\": \"target\", \"model\": 0 } }",
             argv[1]);
    OK(cos_engine_new(config, &first));
    cos_engine_free(first);

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
    controls(weighted, path);
    look_ups(argv[1]);
    older_callers(weighted);
    newer_callers(weighted);
    cancelling(weighted);
    freeing_while_a_step_runs(weighted);
    sessions_in_parallel(weighted);
    one_thread_drives_many(weighted);
    encoding(weighted);
    messages(weighted);
    streaming(weighted);
    totals(weighted);
    preparing(weighted);

    /* A second engine, from a text. */
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
