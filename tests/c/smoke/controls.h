/* What controls tokens, alternatives, options that change, and saved sessions. */

/* The text of a run, without the stop token. */
static void written(const cos_engine *engine, const run *run, char *text, size_t capacity) {
    size_t bytes = 0;
    OK(cos_engine_decode(engine, run->tokens, run->count, text, capacity - 1, &bytes));
    text[bytes] = 0;
}

static void grammars(const cos_engine *engine) {
    static const struct {
        int32_t kind;
        const char *constraint;
        const char *texts[2];
    } all[] = {
        { COS_CONSTRAINT_JSON_SCHEMA,
          "{\"x-guidance\":{\"whitespace_flexible\":false},\"type\":\"array\",\"items\":{\"type\":\"boolean\"},"
          "\"minItems\":1,\"maxItems\":1}",
          { "[true]", "[false]" } },
        { COS_CONSTRAINT_REGEX, "(yes|no)!", { "yes!", "no!" } },
        { COS_CONSTRAINT_LARK, "start: \"a\" (\"b\" | \"c\")", { "ab", "ac" } },
        { COS_CONSTRAINT_CHOICES, "[\"ja\", \"nein\"]", { "ja", "nein" } },
    };
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
            cos_session_options options = fixed_length(strategy, 1, TOKENS);
            options.constraint_kind = all[i].kind;
            options.constraint = all[i].constraint;
            options.constraint_length = strlen(all[i].constraint);
            cos_session *session = start(engine, &options);
            run run = to_the_end(session, cos_engine_vocab_size(engine));
            char text[256];
            written(engine, &run, text, sizeof text);
            CHECK(run.finish == COS_FINISH_COMPLETE);
            CHECK(!strcmp(text, all[i].texts[0]) || !strcmp(text, all[i].texts[1]));
            cos_free(session);
        }
    }
    static const char *const wrong[] = { "{", "a(", "start: a", "[\"\"]" };
    for (int32_t i = 0; i < 4; i++) {
        cos_session_options options = fixed_length(COS_STRATEGY_AUTO, 1, TOKENS);
        cos_session *session = NULL;
        options.constraint_kind = COS_CONSTRAINT_JSON_SCHEMA + i;
        options.constraint = wrong[i];
        options.constraint_length = strlen(wrong[i]);
        FAILS(COS_ERROR_INVALID_ARGUMENT, cos_session_new(engine, &options, &session));
    }
}

/* The data of a constraint function: the text of the last call, and what to return. */
typedef struct constraining {
    int32_t tokens[MAX_RUN];
    size_t count, calls;
    uint64_t number;
    int32_t status;
} constraining;

/* Allows token 10 + i at place i, and ends behind five tokens. */
static int32_t count_up(const int32_t *tokens, size_t tokens_count, size_t kept, uint32_t *mask, size_t mask_words,
                        uint64_t text, void *user_data) {
    constraining *data = user_data;
    CHECK(!tokens == !tokens_count && tokens_count < MAX_RUN && kept <= tokens_count && kept <= data->count);
    CHECK(!kept || !memcmp(tokens, data->tokens, kept * sizeof *tokens));
    CHECK(!data->calls || data->number == text);
    for (size_t i = 0; i < mask_words; i++) {
        CHECK(mask[i] == UINT32_MAX);
        mask[i] = 0;
    }
    if (tokens_count) {
        memcpy(data->tokens, tokens, tokens_count * sizeof *tokens);
    }
    data->count = tokens_count;
    data->number = text;
    data->calls++;
    if (tokens_count < 5) {
        mask[0] |= UINT32_C(1) << (10 + tokens_count);
    }
    return data->status;
}

static void constraint_functions(const cos_engine *engine) {
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        constraining data = { .status = 7 };
        cos_session_options options = fixed_length(strategy, 1, TOKENS);
        options.constrain = count_up;
        options.constrain_data = &data;
        cos_session *session = start(engine, &options);
        cos_step_result result = { .struct_size = sizeof result };
        FAILS(COS_ERROR_CALLBACK, cos_step(session, &result));
        data.status = 0;
        run run = to_the_end(session, cos_engine_vocab_size(engine));
        CHECK(run.finish == COS_FINISH_COMPLETE && run.count == 5);
        for (int32_t i = 0; i < 5; i++) {
            CHECK(run.tokens[i] == 10 + i);
        }
        size_t size = 0;
        FAILS(COS_ERROR_UNSUPPORTED, cos_session_save(session, NULL, 0, &size));
        cos_free(session);
    }
}

static void edited_scores(const cos_engine *engine) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    const int32_t biased[] = { 9, 7 }, banned[] = { 7, 7, 9, 7 };
    const float values[] = { 500, 1000 };
    const size_t lengths[] = { 3, 1 };
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        cos_session_options options = fixed_length(strategy, 0, 6);
        options.bias_tokens = biased;
        options.bias_values = values;
        options.bias_count = 2;
        cos_session *session = start(engine, &options);
        run run = to_the_end(session, vocab_size);
        CHECK(run.count == 6);
        for (size_t i = 0; i < run.count; i++) {
            CHECK(run.tokens[i] == 7);
        }
        /* 7 7 9 is banned at first, and then 7 too. */
        options.banned_tokens = banned;
        options.banned_lengths = lengths;
        options.banned_count = 1;
        options.no_repeat_ngram = 3;
        options.max_tokens = 8;
        OK(cos_session_set_options(session, &options));
        run = to_the_end(session, vocab_size);
        CHECK(run.count == 2 && run.tokens[0] != 7 && run.tokens[0] != 9);
        options.banned_count = 2;
        options.max_tokens = 10;
        options.no_repeat_ngram = 0;
        OK(cos_session_set_options(session, &options));
        run = to_the_end(session, vocab_size);
        CHECK(run.count == 2 && run.tokens[0] == 9 && run.tokens[1] == 9);
        options.seed++;
        FAILS(COS_ERROR_INVALID_ARGUMENT, cos_session_set_options(session, &options));
        cos_free(session);
    }
}

static void alternatives(const cos_engine *engine) {
    const size_t models = cos_engine_model_count(engine);
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        cos_session_options options = fixed_length(strategy, 0, TOKENS);
        options.log_probabilities = 1;
        options.top_log_probabilities = 5;
        options.model_log_probabilities = 1;
        options.log_probabilities_before = strategy % 2; /* the same without edits */
        cos_session *session = start(engine, &options);
        cos_step_result result = { .struct_size = sizeof result };
        while (result.finish == COS_FINISH_NONE) {
            OK(cos_step(session, &result));
            CHECK(result.top_count == 5);
            for (size_t i = 0; i < result.tokens_count; i++) {
                CHECK(result.top_tokens[5 * i] == result.tokens[i]);
                CHECK(result.top_log_probabilities[5 * i] == result.log_probabilities[i]);
                for (size_t place = 5 * i + 1; place < 5 * i + 5; place++) {
                    CHECK(result.top_tokens[place] >= 0);
                    CHECK(result.top_log_probabilities[place] <= result.top_log_probabilities[place - 1]);
                }
                for (size_t model = 0; model < models; model++) {
                    CHECK(result.model_log_probabilities[models * i + model] <= 0);
                }
            }
        }
        OK(cos_step(session, &result));
        CHECK(!result.top_tokens && !result.top_log_probabilities && !result.model_log_probabilities);
        cos_free(session);
    }
}

/* The log-probabilities of a text are those of the steps that wrote it. */
static void scores(const cos_engine *engine) {
    cos_session_options options = fixed_length(COS_STRATEGY_STANDARD, 0, TOKENS);
    options.log_probabilities = 1;
    cos_session *session = start(engine, &options), *judge = NULL;
    cos_step_result result = { .struct_size = sizeof result };
    int32_t tokens[MAX_RUN];
    float logarithms[MAX_RUN];
    size_t count = 0;
    while (result.finish == COS_FINISH_NONE) {
        OK(cos_step(session, &result));
        memcpy(tokens + count, result.tokens, result.tokens_count * sizeof *tokens);
        memcpy(logarithms + count, result.log_probabilities, result.tokens_count * sizeof *logarithms);
        count += result.tokens_count;
    }
    cos_free(session);
    OK(cos_session_new(engine, &options, &judge));
    OK(cos_session_score(judge, prompt, prompt_count, &result));
    CHECK(result.tokens_count == prompt_count && !memcmp(result.tokens, prompt, prompt_count * sizeof *prompt));
    for (size_t i = 0; i < prompt_count; i++) {
        const float value = result.log_probabilities[i];
        CHECK(i == 0 ? value != value : value <= 0 && value > -100); /* the first one is NaN */
    }
    FAILS(COS_ERROR_INVALID_ARGUMENT, cos_session_score(judge, tokens, 0, &result));
    OK(cos_session_score(judge, tokens, count, &result));
    CHECK(result.tokens_count == count && result.finish == COS_FINISH_NONE);
    for (size_t i = 0; i < count; i++) {
        const float off = result.log_probabilities[i] - logarithms[i];
        CHECK(off < 1e-3f && off > -1e-3f);
    }
    cos_free(judge);
    options.log_probabilities = 0;
    judge = start(engine, &options);
    FAILS(COS_ERROR_INVALID_ARGUMENT, cos_session_score(judge, tokens, count, &result));
    cos_free(judge);
}

/* A restored session goes on as the saved one does, also in an engine that was made anew. */
static void saved_sessions(const cos_engine *engine, const char *config_path) {
    const size_t vocab_size = cos_engine_vocab_size(engine);
    cos_session_options options = fixed_length(COS_STRATEGY_STANDARD, 1, TOKENS);
    cos_session *session = start(engine, &options);
    run first = { .finish = COS_FINISH_NONE };
    step(session, vocab_size, &first);
    size_t size = 0, written = 12345;
    OK(cos_session_save(session, NULL, 0, &size));
    CHECK(size > 0);
    unsigned char *bytes = malloc(size);
    CHECK(bytes);
    FAILS(COS_ERROR_BUFFER_TOO_SMALL, cos_session_save(session, bytes, size - 1, &written));
    CHECK(written == 12345);
    OK(cos_session_save(session, bytes, size, &written));
    CHECK(written == size);
    cos_engine *other = NULL;
    cos_session *restored = NULL;
    OK(cos_engine_open(config_path, &other));
    OK(cos_session_restore(other, bytes, size, &restored));
    cos_engine_free(other);
    const run here = to_the_end(session, vocab_size), there = to_the_end(restored, vocab_size);
    CHECK(here.count == TOKENS - first.count && there.count == here.count && there.finish == COS_FINISH_MAX_TOKENS);
    CHECK(!memcmp(here.tokens, there.tokens, here.count * sizeof *here.tokens));
    cos_free(restored);
    cos_free(session);
    bytes[size - 2] ^= 1;
    FAILS(COS_ERROR_INVALID_ARGUMENT, cos_session_restore(engine, bytes, size, &restored));
    free(bytes);
}

static void controls(const cos_engine *engine, const char *config_path) {
    grammars(engine);
    constraint_functions(engine);
    edited_scores(engine);
    alternatives(engine);
    scores(engine);
    saved_sessions(engine, config_path);
}
