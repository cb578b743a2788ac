/* Decoding: every strategy, options, chats, contexts, log-probabilities, functions, weights and look-ups. */
enum { MAX_PROMPT = 128, MAX_RUN = 256, TOKENS = 24, CONTEXT = 1024 };

static const int32_t no_stop_tokens[1]; /* not NULL, for a count of 0 */

static int32_t prompt[MAX_PROMPT];
static size_t prompt_count;

/* Options that decode a fixed number of tokens, without stop tokens. */
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

/* The tokens decoded since the last prompt. */
typedef struct run {
    int32_t tokens[MAX_RUN];
    size_t count;
    int32_t finish;
    uint64_t steps;
} run;

/* Makes one step, and appends its tokens. */
static void step(cos_session *session, size_t vocab_size, run *run) {
    cos_step_result result = { .struct_size = sizeof result };
    OK(cos_step(session, &result));
    CHECK(result.struct_size == sizeof result);
    CHECK(result.reserved == 0);
    CHECK(!result.log_probabilities); /* not asked for */
    CHECK(result.finish >= COS_FINISH_NONE && result.finish <= COS_FINISH_COMPLETE);
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

/* Whether two greedy runs agree. They may differ at a near tie, which passes of other widths may decide otherwise. */
static int agree(const run *a, const run *b, uint64_t near_ties) {
    return near_ties > 0 || (a->count == b->count && !memcmp(a->tokens, b->tokens, a->count * sizeof *a->tokens));
}

/* Checks that a description names the strategy, and says whether it was planned. */
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
    /* Without options, a session is greedy and automatic too. */
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
            memset(lengths, 0xff, sizeof lengths); /* the session has copied them */
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
    /* A finished sequence stays finished. */
    cos_step_result result = { .struct_size = sizeof result };
    OK(cos_step(session, &result));
    CHECK(result.tokens_count == 0);
    CHECK(result.finish == COS_FINISH_MAX_TOKENS);
    /* The next prompt, also in the middle of an answer. */
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
            CHECK(surprise > 0 && surprise / TOKENS < 10); /* better than guessing */
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

/* The combination of the contrastive engine. */
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
            /* The same seed and scores give the same tokens; sampled tokens also need the same plan, unlike auto. */
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
        OK(cos_prompt(session, prompt, prompt_count)); /* the same text again, so the look-up finds something */
        runs[with] = to_the_end(session, cos_engine_vocab_size(engines[with]));
        cos_stats stats = stats_of(session);
        near_ties += stats.near_ties;
        CHECK(with ? stats.accepted > 0 && stats.forwards < 4 * TOKENS : !stats.proposed);
        cos_free(session);
        cos_engine_free(engines[with]);
    }
    CHECK(agree(&runs[0], &runs[1], near_ties));
}
