/* Every error that a caller can cause through the C interface has the right code and a message that names the thing
 * and the mend, and nothing is lost by it. Panics cannot be caused from here; tests/interface/boundary tests them.
 *
 *     errors REPOSITORY
 */
#include "errors/checks.h"
#include "errors/engines.h"
#include "errors/sessions.h"

/* ---- NULL, and counts without an array ------------------------------------------------------------------------ */

static const int32_t token = 1;

static void nulls_of_engines(void) {
    const char *good = text(ONE(TINY));
    FAILS(cos_engine_open(NULL, &out.engine), INVALID_ARGUMENT, "config_path is NULL");
    FAILS(cos_engine_open(good, NULL), INVALID_ARGUMENT, "out_engine is NULL");
    FAILS(cos_engine_new(NULL, &out.engine), INVALID_ARGUMENT, "config_json is NULL");
    FAILS(cos_engine_new(good, NULL), INVALID_ARGUMENT, "out_engine is NULL");

    cos_engine *engine = ENGINE(ONE(TINY));
    EQUAL(cos_engine_vocab_size(engine), 16);
    EQUAL(cos_engine_model_count(engine), 1);
    EQUAL(cos_engine_vocab_size(NULL), 0);
    EQUAL(cos_engine_model_count(NULL), 0);
    const char *untouched = "untouched";
    FAILS(cos_engine_describe(NULL, &untouched), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_describe(engine, NULL), INVALID_ARGUMENT, "out_json is NULL");
    FAILS(cos_engine_describe_table(NULL, &untouched), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_describe_table(engine, NULL), INVALID_ARGUMENT, "out_table is NULL");
    FAILS(cos_session_describe(NULL, &untouched), INVALID_ARGUMENT, "session is NULL");
    EQUAL(strcmp(untouched, "untouched"), 0);
    FAILS(cos_engine_prepare(NULL, NULL, &out.share), INVALID_ARGUMENT, "engine is NULL");
    OK(cos_engine_prepare(engine, NULL, NULL));
    FAILS(cos_session_new(NULL, NULL, &out.session), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_session_new(engine, NULL, NULL), INVALID_ARGUMENT, "out_session is NULL");
    cos_engine_free(engine);
    cos_engine_free(NULL);
}

static void preparation(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    const size_t sizes[] = {0, 8, 39, INT_MAX, SIZE_MAX};
    for (size_t i = 0; i < COUNT(sizes); i++) {
        char number[32];
        snprintf(number, sizeof number, " is %zu;", sizes[i]);
        FAILS(cos_engine_prepare(engine, &(cos_prepare_options){.struct_size = sizes[i]}, &out.share),
              INVALID_ARGUMENT, "struct_size", number, "sizeof(cos_prepare_options)");
    }
    cos_prepare_options options = {.struct_size = sizeof options, .sessions = 1025};
    FAILS(cos_engine_prepare(engine, &options, &out.share), INVALID_ARGUMENT, "sessions is 1025", "0 for 16");
    options.sessions = 0;
    const double seconds[] = {-1, NAN, INFINITY, 1e6};
    for (size_t i = 0; i < COUNT(seconds); i++) {
        options.seconds = seconds[i];
        FAILS(cos_engine_prepare(engine, &options, &out.share), INVALID_ARGUMENT, "seconds is ", "0 for 30");
    }
    struct {
        cos_prepare_options known;
        char unknown[8];
    } later = {.known.struct_size = sizeof later};
    OK(cos_engine_prepare(engine, &later.known, NULL));
    later.unknown[7] = 1;
    FAILS(cos_engine_prepare(engine, &later.known, &out.share), UNSUPPORTED, "cos_prepare_options", "leave them 0");
    cos_engine_free(engine);
}

static void nulls_of_sessions(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    cos_session *session = NULL;
    OK(cos_session_new(engine, NULL, &session));
    FAILS(cos_prompt(NULL, &token, 1), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_prompt(session, NULL, 1), INVALID_ARGUMENT, "tokens is NULL", "tokens_count is 1");
    FAILS(cos_prompt(session, NULL, 0), INVALID_ARGUMENT, "prompt is empty", "at least one token");
    FAILS(cos_prompt(session, &token, 0), INVALID_ARGUMENT, "prompt is empty", "at least one token");
    FAILS(cos_prompt(session, NULL, SIZE_MAX), CONTEXT_FULL, "tokens_count is 18446744073709551615", "32");
    FAILS(cos_step(session, &out.step), INVALID_ARGUMENT, "no tokens", "prompt");
    EQUAL(committed(session), 0);
    OK(cos_prompt(session, TOKENS(12)));
    FAILS(cos_step(NULL, &out.step), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_step(session, NULL), INVALID_ARGUMENT, "out_result is NULL");
    FAILS(cos_cancel(NULL), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_session_stats(NULL, &out.stats), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_session_stats(session, NULL), INVALID_ARGUMENT, "out_stats is NULL");
    FAILS(cos_engine_stats(NULL, &out.stats), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_stats(engine, NULL), INVALID_ARGUMENT, "out_stats is NULL");
    DECODES(session, STOP, 13, 14, 15, 0);
    cos_free(session);
    cos_free(NULL);
    cos_engine_free(engine);
}

static void nulls_of_texts(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    FAILS(cos_engine_encode(NULL, "a", 1, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_encode(engine, NULL, 1, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT, "text is NULL");
    FAILS(cos_engine_encode(engine, "a", SIZE_MAX, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT,
          "text_bytes is 18446744073709551615");
    FAILS(cos_engine_encode(engine, "a", 1, 0, NULL, 8, &out.count), INVALID_ARGUMENT, "tokens is NULL");
    FAILS(cos_engine_encode(engine, "a", 1, 0, out.tokens, 8, NULL), INVALID_ARGUMENT, "out_count is NULL");
    FAILS(cos_engine_decode(NULL, &token, 1, out.chars, 8, &out.count), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_decode(engine, NULL, 1, out.chars, 8, &out.count), INVALID_ARGUMENT, "tokens is NULL");
    FAILS(cos_engine_decode(engine, &token, SIZE_MAX, out.chars, 8, &out.count), INVALID_ARGUMENT,
          "tokens_count is 18446744073709551615");
    FAILS(cos_engine_decode(engine, &token, 1, NULL, 8, &out.count), INVALID_ARGUMENT, "text is NULL");
    FAILS(cos_engine_decode(engine, &token, 1, out.chars, 8, NULL), INVALID_ARGUMENT, "out_bytes is NULL");
    FAILS(cos_engine_decode_special(NULL, &token, 1, out.chars, 8, &out.count), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_decode_special(engine, &token, 1, NULL, 8, &out.count), INVALID_ARGUMENT, "text is NULL");
    FAILS(cos_engine_chat(NULL, "[]", 2, 1, out.chars, 8, &out.count), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_chat(engine, NULL, 2, 1, out.chars, 8, &out.count), INVALID_ARGUMENT, "messages_json is NULL");
    FAILS(cos_engine_chat(engine, "[]", SIZE_MAX, 1, out.chars, 8, &out.count), INVALID_ARGUMENT, "length is 184467");
    FAILS(cos_engine_chat(engine, "[]", 2, 1, out.chars, 8, NULL), INVALID_ARGUMENT, "out_length is NULL");
    FAILS(cos_engine_chat_encode(NULL, "[]", 2, 1, out.tokens, 8, &out.count), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_engine_chat_encode(engine, NULL, 2, 1, out.tokens, 8, &out.count), INVALID_ARGUMENT, "messages_json is");
    FAILS(cos_engine_chat_encode(engine, "[]", 2, 1, out.tokens, 8, NULL), INVALID_ARGUMENT, "out_count is NULL");
    OK(cos_engine_encode(engine, NULL, 0, 0, NULL, 0, &out.count));
    EQUAL(out.count, 0);
    OK(cos_engine_decode(engine, NULL, 0, NULL, 0, &out.count));
    EQUAL(out.count, 0);
    cos_engine_free(engine);
}

static void nulls_of_streams(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    cos_text_stream *stream = NULL;
    FAILS(cos_text_stream_new(NULL, &out.stream), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_text_stream_new(engine, NULL), INVALID_ARGUMENT, "out_stream is NULL");
    OK(cos_text_stream_new(engine, &stream));
    FAILS(cos_text_stream_push(NULL, &token, 1, &out.text, &out.count), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_push(stream, NULL, 1, &out.text, &out.count), INVALID_ARGUMENT, "tokens is NULL");
    FAILS(cos_text_stream_push(stream, &token, SIZE_MAX, &out.text, &out.count), INVALID_ARGUMENT, "tokens_count");
    FAILS(cos_text_stream_push(stream, &token, 1, NULL, &out.count), INVALID_ARGUMENT, "out_text is NULL");
    FAILS(cos_text_stream_push(stream, &token, 1, &out.text, NULL), INVALID_ARGUMENT, "out_bytes is NULL");
    FAILS(cos_text_stream_show_special(NULL, 1), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_prompt(NULL, &token, 1), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_prompt(stream, NULL, 1), INVALID_ARGUMENT, "tokens is NULL");
    FAILS(cos_text_stream_prompt(stream, &token, SIZE_MAX), INVALID_ARGUMENT, "tokens_count");
    const char *stops[] = {"a", NULL};
    const size_t stops_bytes[] = {1, 1};
    FAILS(cos_text_stream_set_stops(NULL, stops, stops_bytes, 1), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_set_stops(stream, NULL, stops_bytes, 1), INVALID_ARGUMENT, "stops is NULL");
    FAILS(cos_text_stream_set_stops(stream, stops, NULL, 1), INVALID_ARGUMENT, "stops_bytes is NULL");
    FAILS(cos_text_stream_set_stops(stream, stops, stops_bytes, SIZE_MAX), INVALID_ARGUMENT, "stops_count");
    FAILS(cos_text_stream_set_stops(stream, stops, stops_bytes, 2), INVALID_ARGUMENT, "stop string is NULL");
    FAILS(cos_text_stream_finish(NULL, &out.text, &out.count), INVALID_ARGUMENT, "stream is NULL");
    FAILS(cos_text_stream_finish(stream, NULL, &out.count), INVALID_ARGUMENT, "out_text is NULL");
    FAILS(cos_text_stream_finish(stream, &out.text, NULL), INVALID_ARGUMENT, "out_bytes is NULL");
    OK(cos_text_stream_push(stream, NULL, 0, &out.text, &out.count));
    EQUAL(out.count, 0); /* none of these calls took a token */
    OK(cos_text_stream_prompt(stream, NULL, 0)); /* and a push without tokens is none */
    cos_text_stream_free(stream);
    cos_text_stream_free(NULL);
    cos_engine_free(engine);
}

static void nulls(void) {
    nulls_of_engines();
    nulls_of_sessions();
    nulls_of_texts();
    nulls_of_streams();
    EQUAL(cos_error_code(NULL), 0);
    EQUAL(strlen(cos_error_message(NULL)), 0);
    cos_error_free(NULL);
}

/* ---- Sizes of structs ----------------------------------------------------------------------------------------- */

static void sizes(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    cos_session *session = SESSION(engine, 0);
    OK(cos_prompt(session, TOKENS(12)));
    /* Never set, too small, one below version 0.1's, garbage. */
    const size_t steps[] = {0, 8, 31, INT_MAX, SIZE_MAX}, stats[] = {0, 8, 79, INT_MAX, SIZE_MAX},
                 options[] = {0, 8, 95, INT_MAX, SIZE_MAX};
    for (size_t i = 0; i < COUNT(steps); i++) {
        char number[32];
        snprintf(number, sizeof number, " is %zu;", steps[i]);
        FAILS(cos_step(session, sized_step(steps[i])), INVALID_ARGUMENT, "struct_size", number,
              "sizeof(cos_step_result)");
        snprintf(number, sizeof number, " is %zu;", stats[i]);
        FAILS(cos_session_stats(session, sized_stats(stats[i])), INVALID_ARGUMENT, "struct_size", number,
              "sizeof(cos_stats)");
        snprintf(number, sizeof number, " is %zu;", options[i]);
        FAILS(cos_session_new(engine, &(cos_session_options){.struct_size = options[i]}, &out.session),
              INVALID_ARGUMENT, "struct_size", number, "sizeof(cos_session_options)");
    }

    /* A caller of version 0.1 ... */
    cos_session *other = NULL;
    OK(cos_session_new(engine, &(cos_session_options){.struct_size = 96, .targets = 77}, &other));
    cos_free(other);
    reset();
    OK(cos_session_stats(session, sized_stats(80)));
    EQUAL(out.stats.tokens, 0);
    EQUAL(out.stats.near_ties, untouched.stats.near_ties);
    EQUAL(out.stats.struct_size, 80);

    /* ... and one of a later version. */
    struct {
        cos_session_options known;
        char unknown[24];
    } later = {.known.struct_size = sizeof later};
    OK(cos_session_new(engine, &later.known, &other));
    cos_free(other);
    later.unknown[sizeof later.unknown - 1] = 1;
    FAILS(cos_session_new(engine, &later.known, &out.session), UNSUPPORTED, "cos_session_options", "leave them 0");
    reset();
    OK(cos_session_stats(session, sized_stats(sizeof(cos_stats) + 8)));
    EQUAL(out.stats.struct_size, sizeof(cos_stats) + 8);
    EQUAL(!memcmp(out.beyond + 8, untouched.beyond + 8, sizeof out.beyond - 8), true);

    DECODES(session, STOP, 13, 14, 15, 0);
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Text ----------------------------------------------------------------------------------------------------- */

/* Calls of cos_engine_chat with a text that ends with NUL. */
#define CHAT(json) cos_engine_chat(engine, json, sizeof(json) - 1, 1, out.chars, 8, &out.count)

static void chats(void) {
    cos_engine *engine = ENGINE(ONE(PATH("$../../models/demo/small")));
    FAILS(CHAT(""), INVALID_ARGUMENT, "messages_json is not JSON");
    FAILS(CHAT("[{\"role\": \"user\""), INVALID_ARGUMENT, "messages_json is not JSON", "EOF");
    FAILS(CHAT("\xff"), INVALID_ARGUMENT, "messages_json is not UTF-8");
    FAILS(CHAT("7"), INVALID_ARGUMENT, "the chat is JSON of the type number", "pass an array");
    FAILS(CHAT("[]"), INVALID_ARGUMENT, "no message", "pass at least one");
    FAILS(CHAT("{}"), INVALID_ARGUMENT, "no \"messages\"");
    FAILS(CHAT("[7]"), INVALID_ARGUMENT, "messages[0]", "pass an object");
    FAILS(CHAT("{\"messages\": [{}], \"tools\": [{}]}"), INVALID_ARGUMENT, "\"tools\"", "does not read", "leave it");
    FAILS(CHAT("{\"messages\": [{}], \"template\": \"rag\"}"), INVALID_ARGUMENT, "\"rag\"", "one of default");
    FAILS(CHAT("[{\"role\": \"system\", \"content\": \"\"}]"), INVALID_ARGUMENT, "refuses them: the demo models");
    FAILS(CHAT("[{\"role\": \"user\"}]"), INVALID_ARGUMENT, "the chat template \"default\" does not render", "line 3");
    FAILS(CHAT("[{\"role\": \"user\", \"content\": \"a\"}]"), BUFFER_TOO_SMALL, "19 bytes needed", "8 given");
    cos_engine_free(engine);
}

static void texts(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    FAILS(cos_engine_encode(engine, "a \xff", 3, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT, "text", "UTF-8", "2");
    FAILS(cos_engine_encode(engine, "a xyz", 5, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT, "text", "encoded");
    FAILS(cos_engine_encode(engine, "a b c", 5, 0, out.tokens, 2, &out.count), BUFFER_TOO_SMALL,
          "3 tokens needed", "2 given");
    FAILS(cos_engine_decode(engine, TOKENS(1, 2), out.chars, 2, &out.count), BUFFER_TOO_SMALL,
          "3 bytes needed", "2 given");
    FAILS(cos_engine_decode(engine, TOKENS(1, -1), out.chars, 8, &out.count), INVALID_ARGUMENT, "token -1");
    FAILS(cos_engine_decode(engine, TOKENS(1, 16), out.chars, 8, &out.count), INVALID_ARGUMENT, "token 16", "0 to 15");

    const int32_t flags[] = {4, 7, -1, INT_MIN};
    for (size_t i = 0; i < COUNT(flags); i++)
        FAILS(cos_engine_encode(engine, "a", 1, flags[i], out.tokens, 8, &out.count), INVALID_ARGUMENT,
              "add_special is ", "0 to 3");
    OK(cos_engine_encode(engine, "a b", 3, COS_ENCODE_PLAIN | COS_ENCODE_ADD_SPECIAL, out.tokens, 8, &out.count));
    FAILS(cos_engine_chat(engine, "[{}]", 4, 1, out.chars, 8, &out.count), UNSUPPORTED, "chat template", "put");
    FAILS(cos_engine_chat_encode(engine, "[{}]", 4, 1, out.tokens, 8, &out.count), UNSUPPORTED, "chat template", "put");

    cos_text_stream *stream = NULL;
    OK(cos_text_stream_new(engine, &stream));
    FAILS(cos_text_stream_prompt(stream, TOKENS(3, 16)), INVALID_ARGUMENT, "token 16", "0 to 15");
    OK(cos_text_stream_push(stream, TOKENS(1), &out.text, &out.count));
    EQUAL(out.count == 2 && !memcmp(out.text, " a", 2), true); /* after a prompt */
    FAILS(cos_text_stream_prompt(stream, NULL, 0), INVALID_ARGUMENT, "finish");
    OK(cos_text_stream_finish(stream, &out.text, &out.count));
    OK(cos_text_stream_prompt(stream, NULL, 0));
    OK(cos_text_stream_push(stream, TOKENS(1), &out.text, &out.count));
    EQUAL(out.count == 1 && out.text[0] == 'a', true); /* without a prompt */
    FAILS(cos_text_stream_push(stream, TOKENS(3, -1), &out.text, &out.count), INVALID_ARGUMENT, "token -1");
    FAILS(cos_text_stream_push(stream, TOKENS(3, 16), &out.text, &out.count), INVALID_ARGUMENT, "token 16", "0 to 15");
    OK(cos_text_stream_push(stream, TOKENS(2), &out.text, &out.count)); /* no 3 came between */
    EQUAL(out.count == 2 && !memcmp(out.text, " b", 2), true);
    FAILS(cos_text_stream_set_stops(stream, (const char *[]){"b", ""}, (size_t[]){1, 0}, 2), INVALID_ARGUMENT,
          "stop string 1 is empty");
    FAILS(cos_text_stream_set_stops(stream, (const char *[]){"\xff"}, (size_t[]){1}, 1), INVALID_ARGUMENT, "UTF-8");
    OK(cos_text_stream_push(stream, TOKENS(2), &out.text, &out.count)); /* after these tokens, "b" is no stop string */
    EQUAL(out.count == 2 && !cos_text_stream_stopped(stream), true);
    cos_text_stream_free(stream);
    cos_engine_free(engine);

    engine = ENGINE(ONE(PATH("@longer")));
    FAILS(cos_engine_encode(engine, "a z", 3, 0, out.tokens, 8, &out.count), INVALID_ARGUMENT,
          "token 4294967294 (\"z\")", "0 to 15");
    cos_engine_free(engine);

    chats();

    engine = ENGINE(ONE(PATH("$notoken")));
    FAILS(cos_engine_encode(engine, "a", 1, 0, out.tokens, 8, &out.count), UNSUPPORTED, "put", "notoken/model.onnx");
    FAILS(cos_engine_decode(engine, TOKENS(1), out.chars, 8, &out.count), UNSUPPORTED, "put", "notoken/model.onnx");
    FAILS(cos_text_stream_new(engine, &out.stream), UNSUPPORTED, "put", "notoken/model.onnx");
    FAILS(cos_engine_chat(engine, "[{}]", 4, 1, out.chars, 8, &out.count), UNSUPPORTED, "put", "notoken/model.onnx");
    cos_session *session = SESSION(engine, 0); /* tokens do */
    OK(cos_prompt(session, TOKENS(14)));
    DECODES(session, STOP, 15, 0);
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Two threads ---------------------------------------------------------------------------------------------- */

enum { LONG_RUN = 100, LONG_TEXT = 20000 };

/* What one thread has seen. */
struct worker {
    cos_session *session;
    cos_text_stream *stream;
    uint64_t tokens, busy, others;
};

/* Counts an error, and frees it. */
static bool refused(struct worker *worker, cos_error *error) {
    bool busy = cos_error_code(error) == COS_ERROR_BUSY && strstr(cos_error_message(error), "another thread");
    worker->busy += busy;
    worker->others += error && !busy;
    cos_error_free(error);
    return error != NULL;
}

/* Steps until the sequence ends, and counts the tokens of this thread. Another thread may step too. */
static void *step_until_end(void *argument) {
    struct worker *worker = argument;
    cos_step_result step = {.struct_size = sizeof step};
    while (!step.finish && !worker->others)
        if (!refused(worker, cos_step(worker->session, &step)))
            worker->tokens += step.tokens_count;
    return NULL;
}

static void *push_long_text(void *argument) {
    static int32_t tokens[LONG_TEXT];
    struct worker *worker = argument;
    const char *text;
    size_t bytes;
    for (size_t i = 0; i < LONG_TEXT; i++)
        tokens[i] = 1 + (int32_t)(i % 15);
    while (refused(worker, cos_text_stream_push(worker->stream, tokens, LONG_TEXT, &text, &bytes)) && !worker->others)
        ;
    worker->tokens = LONG_TEXT;
    return NULL;
}

static pthread_t start(const char *where, void *(*body)(void *), struct worker *worker) {
    pthread_t thread;
    equal(where, "pthread_create", (unsigned long long)pthread_create(&thread, NULL, body, worker), 0);
    return thread;
}

/* Two threads step through one sequence. Each token comes to one of them, and some calls get BUSY. */
static void both_step(cos_session *session) {
    struct worker here = {.session = session}, there = here;
    pthread_t thread = start(HERE, step_until_end, &there);
    step_until_end(&here);
    pthread_join(thread, NULL);
    EQUAL(here.busy + there.busy > 0, true);
    EQUAL(here.others + there.others, 0);
    EQUAL(here.tokens + there.tokens, LONG_RUN);
    EQUAL(committed(session), LONG_RUN);
}

/* One thread steps. The other one gets BUSY from all calls but statistics. */
static void one_steps(cos_session *session) {
    OK(cos_prompt(session, TOKENS(400)));
    struct worker here = {.session = session}, there = here;
    pthread_t thread = start(HERE, step_until_end, &there);
    cos_stats stats = {.struct_size = sizeof stats};
    uint64_t seen = 0, lost = 0;
    while (pthread_tryjoin_np(thread, NULL) == EBUSY) {
        cos_error *error = cos_prompt(session, NULL, 1), *other = cos_step(session, NULL);
        lost += error == NULL || other == NULL; /* without BUSY, their NULL is refused */
        refused(&here, error), refused(&here, other);
        error = cos_session_stats(session, &stats);
        lost += error != NULL || stats.tokens < seen || stats.tokens > 2 * LONG_RUN;
        cos_error_free(error);
        seen = stats.tokens;
    }
    EQUAL(lost, 0);
    EQUAL(here.busy > 0, true);
    EQUAL(there.others, 0);
    EQUAL(there.tokens, LONG_RUN);
}

/* The sequence of several threads is that of a single one: both sessions go on in the same way. */
static void go_on_alike(cos_session *const sessions[2]) {
    struct worker single = {.session = sessions[1]};
    step_until_end(&single);
    OK(cos_prompt(sessions[1], TOKENS(400)));
    step_until_end(&single);
    EQUAL(single.tokens, 2 * LONG_RUN);
    EQUAL(single.busy + single.others, 0);
    int32_t tokens[2][LONG_RUN + 64];
    for (int i = 0; i < 2; i++) {
        cos_step_result step = {.struct_size = sizeof step};
        size_t count = 0;
        OK(cos_prompt(sessions[i], TOKENS(500)));
        while (!step.finish && OK(cos_step(sessions[i], &step)))
            for (size_t k = 0; k < step.tokens_count && count < COUNT(tokens[i]); k++)
                tokens[i][count++] = step.tokens[k];
        EQUAL(count, LONG_RUN);
    }
    EQUAL(memcmp(tokens[0], tokens[1], LONG_RUN * sizeof **tokens), 0);
}

/* One thread pushes a long text to a stream, the other one gets BUSY. */
static void one_pushes(void) {
    cos_engine *engine = ENGINE(ONE(TINY));
    struct worker here = {0}, there = here;
    OK(cos_text_stream_new(engine, &here.stream));
    there.stream = here.stream;
    pthread_t thread = start(HERE, push_long_text, &there);
    const char *text;
    size_t bytes;
    while (pthread_tryjoin_np(thread, NULL) == EBUSY)
        refused(&here, cos_text_stream_push(here.stream, NULL, 0, &text, &bytes));
    EQUAL(here.busy + there.busy > 0, true);
    EQUAL(here.others + there.others, 0);
    EQUAL(there.tokens, LONG_TEXT);
    OK(cos_text_stream_finish(here.stream, &out.text, &out.count)); /* it works and starts anew */
    OK(cos_text_stream_push(here.stream, TOKENS(1), &out.text, &out.count));
    EQUAL(out.count == 2 && !memcmp(out.text, " a", 2), true);
    cos_text_stream_free(here.stream);
    cos_engine_free(engine);
}

static void threads(void) {
    char json[2 * PATH_MAX];
    snprintf(json, sizeof json, ONE(PATH("%s/models/demo/base")), root);
    cos_engine *engine = ENGINE(json);
    cos_session *sessions[2]; /* one for two threads, one for comparison */
    for (int i = 0; i < 2; i++) {
        sessions[i] = SESSION(engine, .max_tokens = LONG_RUN, .stop_tokens = ONES); /* no stop token */
        OK(cos_prompt(sessions[i], TOKENS(100, 200, 300)));
    }
    both_step(sessions[0]);
    one_steps(sessions[0]);
    go_on_alike(sessions);
    cos_free(sessions[0]);
    cos_free(sessions[1]);
    cos_engine_free(engine);
    one_pushes();
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: errors REPOSITORY\n");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    root = must(realpath(argv[1], NULL), argv[1]);
    char folder[] = "errors-XXXXXX";
    work = must(realpath(must(mkdtemp(folder), folder), NULL), folder);
    runtime();
    configurations();
    nulls();
    sizes();
    preparation();
    options();
    functions();
    set_weights();
    changed_options();
    saved();
    prompts();
    numeric();
    texts();
    threads();
    nftw(work, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    if (failures)
        printf("%d of %d checks failed\n", failures, checks);
    else
        printf("%d checks passed\n", checks);
    free((void *)root);
    free((void *)work);
    return failures ? 1 : 0;
}
