/* What never changes in version 0.1 of the C interface, checked at compile time: members, sizes, values and
 * signatures. */
/* Members keep their place and type. Structs only grow at their end. */
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
MEMBER(cos_session_options, routes, int32_t, 120);
MEMBER(cos_session_options, priority, int32_t, 124);
MEMBER(cos_session_options, repetition_penalty, float, 128);
MEMBER(cos_session_options, presence_penalty, float, 132);
MEMBER(cos_session_options, frequency_penalty, float, 136);
MEMBER(cos_session_options, min_tokens, uint32_t, 140);
MEMBER(cos_session_options, bias_tokens, const int32_t *, 144);
MEMBER(cos_session_options, bias_values, const float *, 152);
MEMBER(cos_session_options, bias_count, size_t, 160);
MEMBER(cos_session_options, constraint_kind, int32_t, 168);
MEMBER(cos_session_options, constraint, const char *, 176);
MEMBER(cos_session_options, constraint_length, size_t, 184);
MEMBER(cos_session_options, top_log_probabilities, int32_t, 192);
MEMBER(cos_session_options, no_repeat_ngram, int32_t, 196);
MEMBER(cos_session_options, banned_tokens, const int32_t *, 200);
MEMBER(cos_session_options, banned_lengths, const size_t *, 208);
MEMBER(cos_session_options, banned_count, size_t, 216);
MEMBER(cos_session_options, constrain, cos_constraint_fn, 224);
MEMBER(cos_session_options, constrain_data, void *, 232);
MEMBER(cos_session_options, model_log_probabilities, int32_t, 240);
MEMBER(cos_session_options, log_probabilities_before, int32_t, 244);
MEMBER(cos_session_options, typical_p, float, 248);
MEMBER(cos_session_options, xtc_probability, float, 252);
MEMBER(cos_session_options, xtc_threshold, float, 256);
MEMBER(cos_session_options, dry_multiplier, float, 260);
MEMBER(cos_session_options, dry_base, float, 264);
MEMBER(cos_session_options, dry_allowed_length, int32_t, 268);
MEMBER(cos_session_options, dry_breakers, const int32_t *, 272);
MEMBER(cos_session_options, dry_breakers_count, size_t, 280);
MEMBER(cos_session_options, weigh, cos_weigh_fn, 288);
MEMBER(cos_session_options, weigh_data, void *, 296);
_Static_assert(sizeof(cos_session_options) >= 304, "cos_session_options has shrunk");

/* A function of the caller gets an array of them, so the struct cannot grow. */
MEMBER(cos_model_summary, confidence, float, 0);
MEMBER(cos_model_summary, entropy, float, 4);
MEMBER(cos_model_summary, best, int32_t, 8);
MEMBER(cos_model_summary, reserved, int32_t, 12);
_Static_assert(sizeof(cos_model_summary) == 16, "cos_model_summary has another size");

MEMBER(cos_prepare_options, struct_size, size_t, 0);
MEMBER(cos_prepare_options, sessions, uint32_t, 8);
MEMBER(cos_prepare_options, tokens, uint32_t, 12);
MEMBER(cos_prepare_options, seconds, double, 16);
MEMBER(cos_prepare_options, progress, cos_progress_fn, 24);
MEMBER(cos_prepare_options, progress_data, void *, 32);
_Static_assert(sizeof(cos_prepare_options) >= 40, "cos_prepare_options has shrunk");

MEMBER(cos_step_result, struct_size, size_t, 0);
MEMBER(cos_step_result, tokens, const int32_t *, 8);
MEMBER(cos_step_result, tokens_count, size_t, 16);
MEMBER(cos_step_result, finish, int32_t, 24);
MEMBER(cos_step_result, reserved, int32_t, 28);
MEMBER(cos_step_result, log_probabilities, const float *, 32);
MEMBER(cos_step_result, top_tokens, const int32_t *, 40);
MEMBER(cos_step_result, top_log_probabilities, const float *, 48);
MEMBER(cos_step_result, top_count, size_t, 56);
MEMBER(cos_step_result, model_log_probabilities, const float *, 64);
_Static_assert(sizeof(cos_step_result) >= 72, "cos_step_result has shrunk");

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
MEMBER(cos_stats, prefix_tokens, uint64_t, 120);
MEMBER(cos_stats, recomputed_tokens, uint64_t, 128);
_Static_assert(sizeof(cos_stats) >= 136, "cos_stats has shrunk");

/* The sizes of the structs in version 0.1. */
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
CONSTANT(COS_ERROR_NO_MEMORY, 13);
CONSTANT(COS_STRATEGY_AUTO, 0);
CONSTANT(COS_STRATEGY_STANDARD, 1);
CONSTANT(COS_STRATEGY_SPECULATIVE, 2);
CONSTANT(COS_STRATEGY_COS, 3);
CONSTANT(COS_TARGETS_AUTO, 0);
CONSTANT(COS_TARGETS_COMBINED, 1);
CONSTANT(COS_TARGETS_ROUTED, 2);
CONSTANT(COS_ROUTES_AUTO, 0);
CONSTANT(COS_ROUTES_OWN, 1);
CONSTANT(COS_ROUTES_SHARED, 2);
CONSTANT(COS_FINISH_NONE, 0);
CONSTANT(COS_FINISH_STOP, 1);
CONSTANT(COS_FINISH_MAX_TOKENS, 2);
CONSTANT(COS_FINISH_CONTEXT_FULL, 3);
CONSTANT(COS_FINISH_CANCELLED, 4);
CONSTANT(COS_FINISH_COMPLETE, 5);
CONSTANT(COS_CONSTRAINT_NONE, 0);
CONSTANT(COS_CONSTRAINT_JSON_SCHEMA, 1);
CONSTANT(COS_CONSTRAINT_REGEX, 2);
CONSTANT(COS_CONSTRAINT_LARK, 3);
CONSTANT(COS_CONSTRAINT_CHOICES, 4);

/* Functions keep their signatures. Otherwise these initialisers do not compile. */
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
    cos_error *(*engine_prepare)(const cos_engine *, const cos_prepare_options *, double *);
    cos_error *(*session_new)(const cos_engine *, const cos_session_options *, cos_session **);
    cos_error *(*session_set_options)(cos_session *, const cos_session_options *);
    cos_error *(*session_save)(const cos_session *, void *, size_t, size_t *);
    cos_error *(*session_restore)(const cos_engine *, const void *, size_t, cos_session **);
    cos_error *(*session_fork)(const cos_session *, uint64_t, cos_session **);
    cos_error *(*session_rewind)(cos_session *, size_t);
    cos_error *(*session_set_scope)(cos_session *, const char *);
    cos_error *(*prompt)(cos_session *, const int32_t *, size_t);
    cos_error *(*session_score)(cos_session *, const int32_t *, size_t, cos_step_result *);
    cos_error *(*session_set_weights)(cos_session *, const float *, size_t);
    cos_error *(*step)(cos_session *, cos_step_result *);
    cos_error *(*step_many)(cos_session *const *, size_t, cos_step_result *, cos_error **);
    cos_error *(*cancel)(cos_session *);
    void (*free)(cos_session *);
    cos_error *(*session_stats)(const cos_session *, cos_stats *);
    cos_error *(*session_describe)(const cos_session *, const char **);
    cos_error *(*engine_stats)(const cos_engine *, cos_stats *);
    cos_error *(*engine_encode)(const cos_engine *, const char *, size_t, int32_t, int32_t *, size_t, size_t *);
    cos_error *(*engine_decode)(const cos_engine *, const int32_t *, size_t, char *, size_t, size_t *);
    cos_error *(*engine_decode_special)(const cos_engine *, const int32_t *, size_t, char *, size_t, size_t *);
    cos_error *(*engine_chat)(const cos_engine *, const char *, size_t, int32_t, char *, size_t, size_t *);
    cos_error *(*engine_chat_encode)(const cos_engine *, const char *, size_t, int32_t, int32_t *, size_t, size_t *);
    cos_error *(*text_stream_new)(const cos_engine *, cos_text_stream **);
    cos_error *(*text_stream_prompt)(cos_text_stream *, const int32_t *, size_t);
    cos_error *(*text_stream_show_special)(cos_text_stream *, int32_t);
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
    cos_engine_prepare,
    cos_session_new,
    cos_session_set_options,
    cos_session_save,
    cos_session_restore,
    cos_session_fork,
    cos_session_rewind,
    cos_session_set_scope,
    cos_prompt,
    cos_session_score,
    cos_session_set_weights,
    cos_step,
    cos_step_many,
    cos_cancel,
    cos_free,
    cos_session_stats,
    cos_session_describe,
    cos_engine_stats,
    cos_engine_encode,
    cos_engine_decode,
    cos_engine_decode_special,
    cos_engine_chat,
    cos_engine_chat_encode,
    cos_text_stream_new,
    cos_text_stream_prompt,
    cos_text_stream_show_special,
    cos_text_stream_set_stops,
    cos_text_stream_stopped,
    cos_text_stream_push,
    cos_text_stream_finish,
    cos_text_stream_free,
};
