/* Errors of sessions: options, functions, weights, prompts, and logits that are no numbers. */
/* ---- Options of a session ------------------------------------------------------------------------------------- */

enum { WEIGHTED, CONTRASTIVE, LOGITS, TARGET };
static const char *const KINDS[] = {
    TWO("{'kind':'weighted','weights':[0.5,0.5]}"),
    TWO("{'kind':'contrastive','mu':0.1}"),
    TWO("{'kind':'logits','weights':[1,1]}"),
    TWO("{'kind':'target','model':0}"),
};
static const float HALVES[] = {0.5f, 0.5f, 0.5f};
static const int32_t ONES[] = {1, 1, 1};

/* What the combine function does, and the codes that it got from calling its own session. */
struct spoilt {
    int32_t status;
    float score; /* of token 0; the other scores are the model's logits */
    bool lazy;   /* the last score is left out */
    cos_session *session;
    int32_t codes[3];
};

static int32_t code_of(cos_error *error) {
    int32_t code = cos_error_code(error);
    cos_error_free(error);
    return code;
}

static int32_t spoilt(const float *const *rows, size_t models_count, size_t vocab_size, float *out_scores,
                      void *user_data) {
    struct spoilt *data = user_data;
    if (data->session) {
        cos_stats stats = {.struct_size = sizeof stats};
        data->codes[0] = code_of(cos_prompt(data->session, TOKENS(1)));
        data->codes[1] = code_of(cos_session_set_weights(data->session, FLOATS(1, 0)));
        data->codes[2] = code_of(cos_session_stats(data->session, &stats));
    }
    memcpy(out_scores, rows[models_count - 1], (vocab_size - data->lazy) * sizeof *out_scores);
    out_scores[0] += data->score;
    return data->status;
}

static void functions(void) {
    cos_engine *engine = ENGINE(KINDS[LOGITS]);
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        struct spoilt data = {.status = INT32_MIN};
        cos_session *session = SESSION(engine, .strategy = strategy, .combine = spoilt, .combine_data = &data);
        OK(cos_prompt(session, TOKENS(12)));
        FAILS(cos_step(session, &out.step), CALLBACK, "combine function", "-2147483648");
        data = (struct spoilt){.status = 1};
        FAILS(cos_step(session, &out.step), CALLBACK, "returned 1,");
        data = (struct spoilt){.score = NAN};
        FAILS(cos_step(session, &out.step), NUMERIC, "the combination", "NaN");
        data = (struct spoilt){.score = INFINITY};
        FAILS(cos_step(session, &out.step), NUMERIC, "the combination", "infinity");
        data = (struct spoilt){.lazy = true};
        FAILS(cos_step(session, &out.step), NUMERIC, "the combination", "NaN");
        FAILS(cos_session_set_weights(session, FLOATS(1, 0)), INVALID_ARGUMENT, "combine function", "data");
        EQUAL(committed(session), 0);
        data = (struct spoilt){.session = session};
        DECODES(session, STOP, 13, 14, 15, 0); /* the failures left no trace */
        EQUAL(data.codes[0], COS_ERROR_BUSY);
        EQUAL(data.codes[1], COS_ERROR_BUSY);
        EQUAL(data.codes[2], 0);
        cos_free(session);
    }
    cos_engine_free(engine);
}

static void set_weights(void) {
    cos_engine *engine = ENGINE(KINDS[WEIGHTED]);
    cos_session *session = SESSION(engine, 0);
    OK(cos_session_set_weights(session, FLOATS(0.25f, 0.75f))); /* before the first prompt, too */
    OK(cos_prompt(session, TOKENS(12)));
    FAILS(cos_session_set_weights(NULL, HALVES, 2), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_session_set_weights(session, NULL, 2), INVALID_ARGUMENT, "weights is NULL", "weights_count is 2");
    FAILS(cos_session_set_weights(session, NULL, 0), INVALID_ARGUMENT, "weights_count is 0", "2 models");
    FAILS(cos_session_set_weights(session, HALVES, 1), INVALID_ARGUMENT, "weights_count is 1", "2 models");
    FAILS(cos_session_set_weights(session, HALVES, 3), INVALID_ARGUMENT, "weights_count is 3", "2 models");
    FAILS(cos_session_set_weights(session, HALVES, SIZE_MAX), INVALID_ARGUMENT, "weights_count", "2 models");
    FAILS(cos_session_set_weights(session, FLOATS(NAN, 1)), INVALID_ARGUMENT, "weights[0] is NaN", "positive");
    FAILS(cos_session_set_weights(session, FLOATS(1.5f, -0.5f)), INVALID_ARGUMENT, "weights[1] is -0.5");
    FAILS(cos_session_set_weights(session, FLOATS(0.5f, 0.625f)), INVALID_ARGUMENT, "sum to 1.125");
    OK(cos_session_set_weights(session, FLOATS(0, 1)));
    DECODES(session, STOP, 13, 14, 15, 0);
    OK(cos_session_set_weights(session, FLOATS(1, 0))); /* a finished sequence stays finished */
    OK(cos_step(session, &out.step));
    EQUAL(out.step.finish, COS_FINISH_STOP);
    cos_free(session);
    cos_engine_free(engine);
    for (int kind = CONTRASTIVE; kind <= TARGET; kind++) {
        engine = ENGINE(KINDS[kind]);
        session = SESSION(engine, 0);
        if (kind == LOGITS)
            FAILS(cos_session_set_weights(session, FLOATS(0, 0)), INVALID_ARGUMENT, "weights", "at least one");
        else
            FAILS(cos_session_set_weights(session, HALVES, 2), INVALID_ARGUMENT, "\"weighted\" or \"logits\"");
        cos_free(session);
        cos_engine_free(engine);
    }
}

static int32_t nothing(const int32_t *tokens, size_t tokens_count, size_t kept, uint32_t *mask, size_t mask_words,
                       uint64_t text, void *user_data) {
    (void)tokens, (void)tokens_count, (void)kept, (void)mask, (void)mask_words, (void)text;
    return user_data ? *(int32_t *)user_data : 0;
}

#define CONSTRAINT(kind, text) .constraint_kind = (kind), .constraint = (text), .constraint_length = sizeof(text) - 1

/* Options that are refused, by the kind of engine, and what the message says. */
static const struct {
    const char *where;
    int kind;
    cos_session_options options;
    const char *says[4];
} WRONG_OPTIONS[] = {
    {HERE, WEIGHTED, {.strategy = -1}, {"strategy is -1", "0 to 3"}},
    {HERE, WEIGHTED, {.strategy = 4}, {"strategy is 4", "0 to 3"}},
    {HERE, WEIGHTED, {.targets = -1}, {"targets is -1", "0 to 2"}},
    {HERE, WEIGHTED, {.targets = 3}, {"targets is 3", "0 to 2"}},
    {HERE, WEIGHTED, {.routes = -1}, {"routes is -1", "0 to 2"}},
    {HERE, WEIGHTED, {.routes = 3}, {"routes is 3", "0 to 2"}},
    {HERE, WEIGHTED, {.temperature = NAN}, {"temperature is NaN", "positive"}},
    {HERE, WEIGHTED, {.temperature = -0.5f}, {"temperature is -0.5", "positive"}},
    {HERE, WEIGHTED, {.temperature = INFINITY}, {"temperature is inf"}},
    {HERE, WEIGHTED, {.temperature = 1, .top_k = -1}, {"top_k is -1", "0 (off)"}},
    {HERE, WEIGHTED, {.temperature = 1, .top_p = NAN}, {"top_p is NaN", "between 0 and 1"}},
    {HERE, WEIGHTED, {.temperature = 1, .top_p = -0.5f}, {"top_p is -0.5", "between 0 and 1"}},
    {HERE, WEIGHTED, {.temperature = 1, .top_p = 1.5f}, {"top_p is 1.5", "between 0 and 1"}},
    {HERE, WEIGHTED, {.temperature = 1, .min_p = NAN}, {"min_p is NaN", "between 0 and 1"}},
    {HERE, WEIGHTED, {.temperature = 1, .min_p = -0.5f}, {"min_p is -0.5", "between 0 and 1"}},
    {HERE, WEIGHTED, {.temperature = 1, .min_p = 1.5f}, {"min_p is 1.5", "between 0 and 1"}},
    {HERE, WEIGHTED, {.top_k = -1, .top_p = NAN}, {"is"}}, /* checked even if greedy */
    /* Arrays: wrong counts, then wrong values. */
    {HERE, WEIGHTED, {.proposal_lengths = TOKENS(1)}, {"proposal_lengths_count is 1", "2 models"}},
    {HERE, WEIGHTED, {.proposal_lengths = TOKENS(1, 1, 1)}, {"proposal_lengths_count is 3", "2 models"}},
    {HERE, WEIGHTED, {.proposal_lengths = ONES}, {"proposal_lengths_count is 0", "2 models"}},
    {HERE, WEIGHTED, {.proposal_lengths_count = 2}, {"proposal_lengths is NULL", "_count is 2"}},
    {HERE, WEIGHTED, {.proposal_lengths_count = SIZE_MAX}, {"proposal_lengths"}},
    {HERE, WEIGHTED, {.proposal_lengths = ONES, SIZE_MAX}, {"proposal_lengths_count"}},
    {HERE, WEIGHTED, {.proposal_lengths = ONES, SIZE_MAX / 16}, {"proposal_lengths_count"}},
    {HERE, WEIGHTED, {.proposal_lengths = TOKENS(1, -1)}, {"proposal_lengths[1] is -1", "64"}},
    {HERE, WEIGHTED, {.proposal_lengths = TOKENS(65, 1)}, {"proposal_lengths[0] is 65", "64"}},
    {HERE, WEIGHTED, {.weights = HALVES, 1}, {"weights", "1", "2 models"}},
    {HERE, WEIGHTED, {.weights = HALVES, 3}, {"weights", "3", "2 models"}},
    {HERE, WEIGHTED, {.weights = HALVES}, {"weights", "0", "2 models"}},
    {HERE, WEIGHTED, {.weights_count = 2}, {"weights is NULL", "weights_count is 2"}},
    {HERE, WEIGHTED, {.weights_count = SIZE_MAX}, {"weights"}},
    {HERE, WEIGHTED, {.weights = HALVES, SIZE_MAX}, {"weights"}},
    {HERE, WEIGHTED, {.weights = HALVES, SIZE_MAX / 16}, {"weights"}},
    {HERE, WEIGHTED, {.weights = FLOATS(NAN, 1)}, {"weights[0] is NaN", "positive"}},
    {HERE, WEIGHTED, {.weights = FLOATS(INFINITY, 0)}, {"weights[0] is inf"}},
    {HERE, WEIGHTED, {.weights = FLOATS(1.5f, -0.5f)}, {"weights[1] is -0.5", "positive"}},
    {HERE, WEIGHTED, {.weights = FLOATS(0.5f, 0.625f)}, {"sum to 1.125", "sum to 1"}},
    {HERE, LOGITS, {.weights = FLOATS(0, 0)}, {"weights", "at least one"}},
    {HERE, LOGITS, {.weights = FLOATS(1, NAN)}, {"weights[1] is NaN", "finite"}},
    {HERE, LOGITS, {.weights = HALVES, 3}, {"weights", "3", "2 models"}},
    {HERE, CONTRASTIVE, {.weights = HALVES, 2}, {"weights", "\"weighted\" or \"logits\""}},
    {HERE, TARGET, {.weights = HALVES, 2}, {"weights", "\"weighted\" or \"logits\""}},
    {HERE, WEIGHTED, {.stop_tokens = TOKENS(0, -1)}, {"stop_tokens", "-1", "0 to 15"}},
    {HERE, WEIGHTED, {.stop_tokens = TOKENS(16)}, {"stop_tokens", "16", "0 to 15"}},
    {HERE, WEIGHTED, {.stop_tokens_count = 1}, {"stop_tokens is NULL", "stop_tokens_count is 1"}},
    {HERE, WEIGHTED, {.stop_tokens = ONES, SIZE_MAX}, {"stop_tokens_count"}},
    /* Routed targets need a mixture that is sampled. */
    {HERE, WEIGHTED, {.targets = COS_TARGETS_ROUTED}, {"routed", "temperature", "combined"}},
    {HERE, CONTRASTIVE, {.targets = COS_TARGETS_ROUTED, .temperature = 1}, {"routed", "weighted", "combined"}},
    {HERE, LOGITS, {.targets = COS_TARGETS_ROUTED, .temperature = 1}, {"routed", "weighted", "combined"}},
    {HERE, TARGET, {.targets = COS_TARGETS_ROUTED, .temperature = 1}, {"routed", "weighted", "combined"}},
    {HERE, WEIGHTED, {.targets = COS_TARGETS_ROUTED, .temperature = 1, .combine = spoilt},
     {"routed", "no combine function", "combined"}},
    {HERE, WEIGHTED, {.targets = COS_TARGETS_ROUTED, .temperature = 1, .log_probabilities = 1},
     {"log_probabilities", "routed", "combined"}},
    {HERE, WEIGHTED, {.top_log_probabilities = 21, .log_probabilities = 1}, {"top_log_probabilities is 21", "0 to 20"}},
    {HERE, WEIGHTED, {.top_log_probabilities = -1}, {"top_log_probabilities is -1", "0 to 20"}},
    {HERE, WEIGHTED, {.log_probabilities_before = 1}, {"log_probabilities_before is set", "log_probabilities to 1"}},
    {HERE, WEIGHTED, {.model_log_probabilities = 2}, {"model_log_probabilities is 2", "0 (off)", "1 (on)"}},
    {HERE, WEIGHTED, {.log_probabilities_before = -1}, {"log_probabilities_before is -1", "0 (off)"}},
    /* What changes scores. */
    {HERE, WEIGHTED, {.repetition_penalty = NAN}, {"repetition_penalty is NaN", "0.000001 and 1000000"}},
    {HERE, WEIGHTED, {.repetition_penalty = -1}, {"repetition_penalty is -1", "0.000001 and 1000000"}},
    {HERE, WEIGHTED, {.presence_penalty = INFINITY}, {"presence_penalty is inf", "1000000"}},
    {HERE, WEIGHTED, {.frequency_penalty = NAN}, {"frequency_penalty is NaN", "1000000"}},
    {HERE, WEIGHTED, {.min_tokens = 5, .max_tokens = 4}, {"min_tokens is 5", "max_tokens is 4"}},
    {HERE, WEIGHTED, {.no_repeat_ngram = -1}, {"no_repeat_ngram is -1", "0 (off)"}},
    {HERE, WEIGHTED, {.bias_tokens = ONES, HALVES, 2}, {"bias_tokens holds 1 twice"}},
    {HERE, WEIGHTED, {.bias_tokens = (const int32_t[]){16}, HALVES, 1}, {"bias_tokens holds 16", "0 to 15"}},
    {HERE, WEIGHTED, {.bias_tokens = (const int32_t[]){-1}, HALVES, 1}, {"bias_tokens holds -1", "0 to 15"}},
    {HERE, WEIGHTED, {.bias_tokens = ONES, (const float[]){NAN}, 1}, {"bias_values[0] is NaN", "minus infinity"}},
    {HERE, WEIGHTED, {.bias_tokens = ONES, (const float[]){INFINITY}, 1}, {"bias_values[0] is inf"}},
    {HERE, WEIGHTED, {.bias_count = 1, .bias_values = HALVES}, {"bias_tokens is NULL", "bias_count is 1"}},
    {HERE, WEIGHTED, {.bias_count = 1, .bias_tokens = ONES}, {"bias_values is NULL", "bias_count is 1"}},
    {HERE, WEIGHTED, {.bias_tokens = ONES, HALVES, SIZE_MAX}, {"bias_count"}},
    {HERE, WEIGHTED, {.banned_tokens = ONES, (const size_t[]){1, 0}, 2}, {"banned_lengths[1] is 0"}},
    {HERE, WEIGHTED, {.banned_tokens = (const int32_t[]){16}, (const size_t[]){1}, 1}, {"banned_tokens holds 16"}},
    {HERE, WEIGHTED, {.banned_count = 1, .banned_tokens = ONES}, {"banned_lengths is NULL"}},
    {HERE, WEIGHTED, {.banned_count = 1, .banned_lengths = (const size_t[]){1}}, {"banned_tokens is NULL"}},
    {HERE, WEIGHTED, {.banned_tokens = ONES, (const size_t[]){SIZE_MAX, 2}, 2}, {"the sum of banned_lengths"}},
    /* Constraints. */
    {HERE, WEIGHTED, {.constraint_kind = -1}, {"constraint_kind is -1", "0 to 4"}},
    {HERE, WEIGHTED, {.constraint_kind = 5}, {"constraint_kind is 5", "0 to 4"}},
    {HERE, WEIGHTED, {CONSTRAINT(0, "a")}, {"constraint is given", "constraint_kind is 0"}},
    {HERE, WEIGHTED, {CONSTRAINT(COS_CONSTRAINT_REGEX, "a"), .constrain = nothing}, {"constraint_kind and constrain"}},
    {HERE, WEIGHTED, {.constraint_kind = 1, .constraint_length = 1}, {"constraint is NULL", "constraint_length is 1"}},
    {HERE, WEIGHTED, {CONSTRAINT(COS_CONSTRAINT_REGEX, "\xff")}, {"constraint is not", "UTF-8"}},
    {HERE, WEIGHTED, {.log_probabilities = 2}, {"log_probabilities is 2", "0 (off)", "1 (on)"}},
    {HERE, TARGET, {.log_probabilities = -1}, {"log_probabilities is -1"}},
};

static void options(void) {
    cos_engine *engines[COUNT(KINDS)];
    for (size_t i = 0; i < COUNT(KINDS); i++)
        engines[i] = ENGINE(KINDS[i]);
    for (size_t i = 0; i < COUNT(WRONG_OPTIONS); i++) {
        cos_session_options options = WRONG_OPTIONS[i].options;
        options.struct_size = sizeof options;
        reset();
        cos_error *error = cos_session_new(engines[WRONG_OPTIONS[i].kind], &options, &out.session);
        fails(WRONG_OPTIONS[i].where, "cos_session_new", error, COS_ERROR_INVALID_ARGUMENT, WRONG_OPTIONS[i].says);
    }
    for (size_t i = 0; i < COUNT(KINDS); i++) { /* the engines still work */
        cos_session *session = SESSION(engines[i], 0);
        OK(cos_prompt(session, TOKENS(13)));
        DECODES(session, STOP, 14, 15, 0);
        cos_free(session);
        cos_engine_free(engines[i]);
    }
}

static void changed_options(void) {
    cos_engine *engine = ENGINE(KINDS[WEIGHTED]);
    int32_t status = -3;
    cos_session *session = SESSION(engine, .constrain = nothing, .constrain_data = &status);
    OK(cos_prompt(session, TOKENS(12)));
    FAILS(cos_step(session, &out.step), CALLBACK, "constraint function", "returned -3,");
    status = 0;
    cos_session_options options = {.struct_size = sizeof options};
    cos_session_options grammar = {.struct_size = sizeof grammar, CONSTRAINT(COS_CONSTRAINT_REGEX, "a")};
    FAILS(cos_session_set_options(session, &grammar), UNSUPPORTED, "tokenizer.json", "use a constraint function");
    FAILS(cos_session_set_options(NULL, &options), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_session_set_options(session, NULL), INVALID_ARGUMENT, "options is NULL");
    options.struct_size = 95;
    FAILS(cos_session_set_options(session, &options), INVALID_ARGUMENT, "cos_session_options is 95;");
    const struct {
        cos_session_options options;
        const char *name;
    } fixed[] = {
        {{.strategy = COS_STRATEGY_COS}, "strategy"},    {{.targets = COS_TARGETS_COMBINED}, "targets"},
        {{.seed = 1}, "seed"},                           {{.proposal_lengths = TOKENS(1, 1)}, "proposal_lengths"},
        {{.routes = COS_ROUTES_OWN}, "routes"},          {{.priority = COS_PRIORITY_BATCH}, "priority"},
        {{.max_tokens = 1, .min_tokens = 2}, "min_tokens is 2"},
    };
    for (size_t i = 0; i < COUNT(fixed); i++) {
        options = fixed[i].options;
        options.struct_size = sizeof options;
        FAILS(cos_session_set_options(session, &options), INVALID_ARGUMENT, fixed[i].name);
    }
    options = (cos_session_options){.struct_size = sizeof options, .max_tokens = 2};
    OK(cos_session_set_options(session, &options)); /* without the function */
    DECODES(session, MAX_TOKENS, 13, 14);
    options.max_tokens = 0;
    OK(cos_session_set_options(session, &options));
    DECODES(session, STOP, 15, 0);
    cos_free(session);
    cos_engine_free(engine);
}

static void saved(void) {
    cos_engine *engine = ENGINE(KINDS[WEIGHTED]), *other = ENGINE(KINDS[LOGITS]), *one = ENGINE(ONE(TINY));
    cos_session *session = SESSION(engine, .max_tokens = 3), *restored = NULL;
    OK(cos_prompt(session, TOKENS(12)));
    char bytes[1 << 13];
    size_t size = 0;
    OK(cos_session_save(session, bytes, sizeof bytes, &size));
    FAILS(cos_session_save(NULL, bytes, sizeof bytes, &out.count), INVALID_ARGUMENT, "session is NULL");
    FAILS(cos_session_save(session, bytes, sizeof bytes, NULL), INVALID_ARGUMENT, "out_size is NULL");
    FAILS(cos_session_save(session, NULL, 8, &out.count), INVALID_ARGUMENT, "buffer is NULL");
    FAILS(cos_session_save(session, out.chars, 8, &out.count), BUFFER_TOO_SMALL, "bytes needed", "8 given");
    FAILS(cos_session_restore(NULL, bytes, size, &out.session), INVALID_ARGUMENT, "engine is NULL");
    FAILS(cos_session_restore(engine, NULL, size, &out.session), INVALID_ARGUMENT, "bytes is NULL");
    FAILS(cos_session_restore(engine, bytes, size, NULL), INVALID_ARGUMENT, "out_session is NULL");
    FAILS(cos_session_restore(engine, NULL, 0, &out.session), INVALID_ARGUMENT, "no saved session");
    FAILS(cos_session_restore(engine, bytes, size - 1, &out.session), INVALID_ARGUMENT, "checksum");
    FAILS(cos_session_restore(engine, bytes, 15, &out.session), INVALID_ARGUMENT, "cut off");
    FAILS(cos_session_restore(other, bytes, size, &out.session), INVALID_ARGUMENT, "engine differs", "combine");
    FAILS(cos_session_restore(one, bytes, size, &out.session), INVALID_ARGUMENT, "engine differs", "1 models, not 2");
    for (size_t i = 0; i < size; i += 7) { /* wherever a byte changes */
        bytes[i] ^= 1;
        check(HERE, code_of(cos_session_restore(engine, bytes, size, &restored)), "a change of byte %zu is found", i);
        bytes[i] ^= 1;
    }
    bytes[12] = '9';
    FAILS(cos_session_restore(engine, bytes, size, &out.session), UNSUPPORTED, "format 9");
    bytes[12] = '1';
    OK(cos_session_restore(engine, bytes, size, &restored));
    DECODES(restored, MAX_TOKENS, 13, 14, 15);
    DECODES(session, MAX_TOKENS, 13, 14, 15);
    cos_free(restored);
    cos_free(session);
    session = SESSION(engine, .combine = spoilt);
    FAILS(cos_session_save(session, NULL, 0, &out.count), UNSUPPORTED, "combine", "save its tokens");
    cos_free(session);
    cos_engine_free(one);
    cos_engine_free(other);
    cos_engine_free(engine);
}

/* ---- Prompts -------------------------------------------------------------------------------------------------- */

static void prompts(void) {
    static const int32_t many[40] = {1};
    cos_engine *engine = ENGINE(ONE(TINY));

    /* Tokens outside of the vocabulary: nothing is appended. */
    cos_session *session = SESSION(engine, 0);
    FAILS(cos_prompt(session, TOKENS(1, -1)), INVALID_ARGUMENT, "token 1 of the prompt is -1", "0 to 15");
    FAILS(cos_prompt(session, TOKENS(16, 1)), INVALID_ARGUMENT, "token 0 of the prompt is 16", "0 to 15");
    FAILS(cos_prompt(session, TOKENS(1, 2, INT32_MIN)), INVALID_ARGUMENT, "token 2", "-2147483648");
    FAILS(cos_prompt(session, TOKENS(1, 2, INT32_MAX)), INVALID_ARGUMENT, "token 2", "2147483647");
    FAILS(cos_step(session, &out.step), INVALID_ARGUMENT, "no tokens");
    OK(cos_prompt(session, TOKENS(12)));
    FAILS(cos_prompt(session, TOKENS(5, 16)), INVALID_ARGUMENT, "token 1 of the prompt is 16");
    FAILS(cos_prompt(session, many, 32), CONTEXT_FULL, "32", "of which 1 ", "shorten the prompt");
    DECODES(session, STOP, 13, 14, 15, 0);
    FAILS(cos_prompt(session, many, 28), CONTEXT_FULL, "28", "32", "of which 5 ");
    OK(cos_step(session, &out.step)); /* the session still tells how it ended */
    EQUAL(out.step.finish, COS_FINISH_STOP);
    EQUAL(out.step.tokens_count, 0);
    OK(cos_prompt(session, TOKENS(14)));
    DECODES(session, STOP, 15, 0);
    cos_free(session);

    /* Prompts longer than the context, in one and in two calls; exactly as long; one token shorter. */
    session = SESSION(engine, 0);
    FAILS(cos_prompt(session, many, 33), CONTEXT_FULL, "33", "32", "shorten the prompt");
    FAILS(cos_prompt(session, many, SIZE_MAX), CONTEXT_FULL, "18446744073709551615", "32");
    FAILS(cos_prompt(session, many, SIZE_MAX / 4 + 2), CONTEXT_FULL, "32");
    OK(cos_prompt(session, many, 20));
    FAILS(cos_prompt(session, many, 13), CONTEXT_FULL, "13", "32", "of which 20 ");
    OK(cos_prompt(session, many, 12));
    for (int i = 0; i < 2; i++) {
        OK(cos_step(session, &out.step));
        EQUAL(out.step.finish, COS_FINISH_CONTEXT_FULL);
        EQUAL(out.step.tokens_count, 0);
        FAILS(cos_prompt(session, many, 1), CONTEXT_FULL, "32", "of which 32 ");
    }
    cos_free(session);
    session = SESSION(engine, 0);
    OK(cos_prompt(session, many, 30));
    OK(cos_prompt(session, TOKENS(7)));
    DECODES(session, CONTEXT_FULL, 8);
    FAILS(cos_prompt(session, many, 1), CONTEXT_FULL, "of which 32 ");
    cos_free(session);
    cos_engine_free(engine);
}

/* ---- Logits that are no numbers ------------------------------------------------------------------------------- */

static const char *const COMBINES[] = {
    "{'kind':'weighted','weights':[0.5,0.5]}",
    "{'kind':'logits','weights':[1,0.5]}",
    "{'kind':'contrastive','mu':0.1}",                    /* subtracts logits that may be infinite */
    "{'kind':'contrastive','mu':0.1,'plausibility':0.5}", /* may mask wrong logits */
    "{'kind':'target','model':1}",
};

/* An engine of the fixture tiny and of one with bad logits, called "broken". */
static cos_engine *engine_with(const char *model, const char *combine) {
    char json[512];
    snprintf(json, sizeof json, CONFIG("", TINY ",{'path':'$%s','name':'broken'}", "%s"), model, combine);
    return ENGINE(json);
}

/* Checks that steps fail, always in the same way, and commit nothing. */
static void stays_numeric(const char *where, const char *what, cos_session *session, const char *says) {
    uint64_t before = committed(session);
    for (int i = 0; i < 2; i++) {
        reset();
        const char *const all[] = {says, "broken", NULL};
        fails(where, what, cos_step(session, &out.step), COS_ERROR_NUMERIC, all);
    }
    equal(where, what, committed(session), before);
}

static void numeric_with(const char *combine, cos_session_options greedy) {
    char what[256];
    snprintf(what, sizeof what, "%s, strategy %d, proposals %d", combine, greedy.strategy,
             greedy.proposal_lengths ? greedy.proposal_lengths[0] : -1);
    cos_session_options sampled = greedy;
    sampled.temperature = 1;
    sampled.targets = COS_TARGETS_COMBINED;

    /* Token by token up to 13, behind which there is no number. What came before is kept, whatever the strategy, and a
     * prompt leads on. */
    cos_engine *engine = engine_with("nan", combine);
    cos_session *session = open_session(HERE, engine, greedy);
    OK(cos_prompt(session, TOKENS(10)));
    cos_error_free(decode(HERE, what, session, TOKENS(11, 12, 13), COS_FINISH_NONE));
    equal(HERE, what, committed(session), 3);
    stays_numeric(HERE, what, session, "NaN");
    OK(cos_prompt(session, TOKENS(14)));
    DECODES(session, STOP, 15, 0);
    cos_free(session);

    /* Directly after a prompt. Then a new session on the same engine. */
    session = open_session(HERE, engine, sampled);
    OK(cos_prompt(session, TOKENS(1, 13)));
    stays_numeric(HERE, what, session, "NaN");
    cos_free(session);
    session = open_session(HERE, engine, greedy);
    OK(cos_prompt(session, TOKENS(13, 14)));
    DECODES(session, STOP, 15, 0);
    cos_free(session);
    cos_engine_free(engine);

    /* Plus infinity for one token, minus infinity for all. */
    engine = engine_with("inf", combine);
    for (int32_t token = 11; token <= 12; token++) {
        for (int i = 0; i < 2; i++) {
            session = open_session(HERE, engine, i ? sampled : greedy);
            OK(cos_prompt(session, TOKENS(token)));
            stays_numeric(HERE, what, session, "infinity");
            cos_free(session);
        }
    }
    cos_engine_free(engine);
}

static void numeric(void) {
    static const int32_t many[] = {4, 4};
    cos_engine *engine = engine_with("nan", "{'kind':'target','model':0}");
    for (int32_t strategy = COS_STRATEGY_AUTO; strategy <= COS_STRATEGY_COS; strategy++) {
        cos_session_options plain = {.strategy = strategy}, eager = plain;
        eager.proposal_lengths = many;
        eager.proposal_lengths_count = COUNT(many);
        for (size_t i = 0; i < COUNT(COMBINES); i++) {
            numeric_with(COMBINES[i], plain);
            numeric_with(COMBINES[i], eager);
        }
        /* Bad logits of a model that only drafts do not matter. */
        cos_session *session = SESSION(engine, .proposal_lengths = TOKENS(0, 4), .strategy = strategy);
        OK(cos_prompt(session, TOKENS(10)));
        DECODES(session, STOP, 11, 12, 13, 14, 15, 0);
        OK(cos_prompt(session, TOKENS(13)));
        DECODES(session, STOP, 14, 15, 0);
        cos_free(session);
    }
    cos_engine_free(engine);

    /* Every position is routed to the broken model. */
    engine = engine_with("nan", COMBINES[0]);
    cos_session *session = SESSION(engine, .targets = COS_TARGETS_ROUTED, .temperature = 1,
                                   .weights = FLOATS(0, 1));
    OK(cos_prompt(session, TOKENS(13)));
    stays_numeric(HERE, "routed", session, "NaN");
    cos_free(session);
    cos_engine_free(engine);
}
