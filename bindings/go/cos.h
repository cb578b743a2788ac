/* CoS: exact, fast decoding with several language models at once. C interface, version 0.1.
 *
 * Generated from the Rust sources; do not edit.
 *
 *     cos_engine *engine;  cos_session *session;  cos_step_result step = { .struct_size = sizeof step };
 *     cos_engine_open("engine.json", &engine);                    load the models, once
 *     cos_session_new(engine, NULL, &session);                    a sequence: greedy and automatic
 *     cos_prompt(session, tokens, tokens_count);
 *     do { cos_step(session, &step); ... } while (!step.finish);  step.tokens are new
 *
 * Errors. A function that can fail returns a cos_error: NULL is success, anything else is an object with a code and
 * a message that the caller frees with cos_error_free. Outputs (out_...) are written on success only, and a failed
 * call leaves its objects as they were. A bug inside (INTERNAL) never takes the process down; it poisons the session.
 *
 * Ownership. What a ..._new or ..._open function gives is the caller's, who frees it with the type's free function;
 * every free function takes NULL. Arguments are copied or only read during the call. Pointers that a call lends say
 * how long they live.
 *
 * Threads. Engines are immutable: any number of threads may use one at once. A session or a text stream is for one
 * thread at a time, any thread; a second one at the same moment gets BUSY. cos_cancel and cos_session_stats may be
 * called at any time. There are no thread-local errors.
 *
 * Processes. Engines belong to the process that opened them: in a child of fork(), calls with them, their sessions and
 * their text streams give UNSUPPORTED, and the child may free them and open its own. A child that was forked while its
 * parent opened its first engine cannot open any. The library stays loaded, also after dlclose(),
 * once it has used ONNX Runtime, which keeps addresses of it.
 *
 * Versions. Codes and constants never change, functions are only added. Structs grow at their end: set struct_size to
 * sizeof the struct and the rest to 0, and a program compiled against this header works with every later library of
 * the same SONAME.
 *
 * Text is UTF-8. Counts follow their pointers. Tokens are int32_t, 0 to cos_engine_vocab_size() - 1.
 */


#ifndef COS_H
#define COS_H

#include <stddef.h>
#include <stdint.h>

/**
 * An argument of the call is wrong: NULL, out of range, or of the wrong size.
 */
#define COS_ERROR_INVALID_ARGUMENT 1

/**
 * The engine configuration is wrong.
 */
#define COS_ERROR_CONFIG 2

/**
 * A model cannot be loaded, is no language model, or does not fit the others.
 */
#define COS_ERROR_MODEL 3

/**
 * ONNX Runtime is missing, too old, or failed.
 */
#define COS_ERROR_RUNTIME 4

/**
 * The context of the models has no room for the tokens.
 */
#define COS_ERROR_CONTEXT_FULL 5

/**
 * Logits were NaN or infinite, or left no token possible.
 */
#define COS_ERROR_NUMERIC 6

/**
 * The session is in use on another thread.
 */
#define COS_ERROR_BUSY 7

/**
 * The request is valid, but this version does not support it.
 */
#define COS_ERROR_UNSUPPORTED 8

/**
 * The caller's buffer is too small; the message says what is needed.
 */
#define COS_ERROR_BUFFER_TOO_SMALL 9

/**
 * An earlier call on the session ended in INTERNAL; the session can only be freed.
 */
#define COS_ERROR_POISONED 10

/**
 * A bug of this library (a panic). The process is unharmed.
 */
#define COS_ERROR_INTERNAL 11

/**
 * A function of the caller failed; the message says what it returned.
 */
#define COS_ERROR_CALLBACK 12

/**
 * Chosen by the library: what follows the same distribution at the least cost.
 */
#define COS_STRATEGY_AUTO 0

/**
 * Every model scores every position, nobody proposes: the baseline.
 */
#define COS_STRATEGY_STANDARD 1

/**
 * One model drafts, all others score.
 */
#define COS_STRATEGY_SPECULATIVE 2

/**
 * Collaborative decoding via speculation: the models take turns in proposing (arXiv 2502.01662, Algorithms 1 and 2).
 */
#define COS_STRATEGY_COS 3

/**
 * Routed under COS_STRATEGY_AUTO where it applies, combined otherwise.
 */
#define COS_TARGETS_AUTO 0

/**
 * Every position is verified against the combined distribution, which needs all models.
 */
#define COS_TARGETS_COMBINED 1

/**
 * Every position is verified against one model that is drawn from the weights. The tokens follow the same joint
 * distribution, and a position needs one model only. For "weighted" with a temperature above 0.
 */
#define COS_TARGETS_ROUTED 2

/**
 * The sequence goes on.
 */
#define COS_FINISH_NONE 0

/**
 * A stop token was committed; it is the last token.
 */
#define COS_FINISH_STOP 1

/**
 * max_tokens were generated since the last prompt.
 */
#define COS_FINISH_MAX_TOKENS 2

/**
 * The context has no room for another token.
 */
#define COS_FINISH_CONTEXT_FULL 3

/**
 * cos_cancel was called.
 */
#define COS_FINISH_CANCELLED 4

/**
 * An engine: the loaded models and how they are combined. Immutable; any number of threads may use one at once.
 *
 * Since 0.1.
 */
typedef struct cos_engine cos_engine;

/**
 * An error: a code and a message. Owned by the caller, who frees it with cos_error_free. It may be passed
 * between threads, and read by several at once.
 *
 * Since 0.1.
 */
typedef struct cos_error cos_error;

/**
 * A session: one sequence. One thread at a time may use it (another one gets BUSY, except for cos_cancel and
 * cos_session_stats); different sessions run in parallel.
 *
 * Since 0.1.
 */
typedef struct cos_session cos_session;

/**
 * Turns a stream of tokens into a stream of text that is cut between characters only, and ends before a stop string if
 * there are any. One thread at a time may use it (another one gets BUSY).
 *
 * The text continues a prompt, so the space before its first word stays: the text of the prompt and the text of the
 * stream together are the text of all tokens. Unless cos_text_stream_prompt tells the prompt, the stream assumes one
 * that ends with a whole word.
 *
 * Since 0.1.
 */
typedef struct cos_text_stream cos_text_stream;

/**
 * A combination of the caller's own: makes one row of scores from the models' rows of logits, for one position.
 * Tokens are then decoded from the distribution that temperature, top_k, top_p, min_p and softmax make of the scores.
 *
 * Exactness asks that it depends on the rows and its data alone, for they are unchanged where it is asked again. It is
 * called inside cos_step, on its thread, possibly several times in a step and for positions whose tokens are dropped.
 *
 * It must not keep the pointers, and must not leave but by returning: an exception ends the process, longjmp is
 * undefined. It may call cos_cancel and cos_session_stats on its session; other calls get BUSY, and cos_free would
 * wait for ever.
 *
 * @param rows          `models_count` rows of `vocab_size` logits, in the engine's order; NULL for models that the
 *                      engine's combination gives the weight 0 and for look-ups. There is no NaN and no plus infinity;
 *                      minus infinity is impossible.
 * @param models_count  number of models
 * @param vocab_size    number of tokens
 * @param out_scores    out: `vocab_size` scores, all to be written. Minus infinity is impossible. NaN (also where
 *                      nothing was written), plus infinity, or minus infinity everywhere is NUMERIC.
 * @param user_data     combine_data of cos_session_options
 * @return 0, or any other number to make cos_step fail with CALLBACK, whose message names it. (A step that has committed
 *         a token by then ends well, and the next one asks again.)
 * Since 0.1.
 */
typedef int32_t (*cos_combine_fn)(const float *const *rows,
                                  size_t models_count,
                                  size_t vocab_size,
                                  float *out_scores,
                                  void *user_data);

/**
 * How a session decodes. Set all to 0 and then struct_size: greedy and automatic. Arrays are copied.
 *
 * Since 0.1.
 */
typedef struct cos_session_options {
  /**
   * sizeof(cos_session_options) as the caller was compiled.
   */
  size_t struct_size;
  /**
   * One of COS_STRATEGY_*. All of them follow the same distribution.
   */
  int32_t strategy;
  /**
   * 0 is greedy: the token of the highest score, among equal ones the lowest. Otherwise scores are divided by it.
   * With "weighted", a small one (1e-6 to 0.01, which some clients send and mean 0) is not greedy: each model is
   * then sure of its own best token, and one of these is drawn by the weights. Set 0 for the best token of the
   * mixture, or "greedy_below" in the configuration of the engine.
   */
  float temperature;
  /**
   * Sample among this many best tokens of each distribution; 0 is off.
   */
  int32_t top_k;
  /**
   * Sample among the fewest best tokens with this share of the probability; 0 or 1 is off.
   */
  float top_p;
  /**
   * Sample among tokens with at least this share of the best one's probability; 0 is off.
   */
  float min_p;
  /**
   * Seed of the random numbers. The same seed, strategy (not auto) and number of threads give the same tokens. On a GPU the last bits
   * of logits may also depend on the sessions before, which moves a token now and then.
   */
  uint64_t seed;
  /**
   * Most tokens to generate after each prompt; 0 is until the context is full.
   */
  uint32_t max_tokens;
  /**
   * Tokens that each model proposes in a row (γ), in the engine's order, 0 to 64; NULL: chosen by the library.
   * With COS_STRATEGY_SPECULATIVE the cheapest model with a length above 0 drafts.
   */
  const int32_t *proposal_lengths;
  /**
   * Number of models, or 0 for NULL.
   */
  size_t proposal_lengths_count;
  /**
   * Weights in place of the engine's, for "weighted" and "logits"; NULL: the engine's.
   */
  const float *weights;
  /**
   * Number of models, or 0 for NULL.
   */
  size_t weights_count;
  /**
   * Tokens that end the sequence. NULL: all that the files of any model name, in eos_token_id of genai_config.json,
   * generation_config.json and config.json, and in eos_token of tokenizer_config.json. If these name none, the
   * warnings of cos_engine_describe say so. Not NULL with a count of 0: none.
   */
  const int32_t *stop_tokens;
  /**
   * Number of stop tokens.
   */
  size_t stop_tokens_count;
  /**
   * One of COS_TARGETS_*. Does not change the distribution.
   */
  int32_t targets;
  /**
   * 1 to get the log-probability of each token from cos_step, 0 not to. It takes the combined distribution, so
   * COS_TARGETS_AUTO then means combined, and COS_TARGETS_ROUTED is an error.
   */
  int32_t log_probabilities;
  /**
   * A combination in place of the engine's, or NULL. The models that the engine's combination gives a weight other
   * than 0 (here those of `weights`, where given) take part; what else it says is not used. Targets are combined.
   */
  cos_combine_fn combine;
  /**
   * Passed to `combine`; may be NULL. Must live as long as the session.
   */
  void *combine_data;
} cos_session_options;

/**
 * What a step did.
 *
 * Since 0.1.
 */
typedef struct cos_step_result {
  /**
   * sizeof(cos_step_result), set by the caller.
   */
  size_t struct_size;
  /**
   * The tokens that the step committed, at least one unless the sequence is finished. Owned by the session,
   * valid until its next call.
   */
  const int32_t *tokens;
  /**
   * Number of tokens.
   */
  size_t tokens_count;
  /**
   * One of COS_FINISH_*.
   */
  int32_t finish;
  /**
   * 0.
   */
  int32_t reserved;
  /**
   * The natural logarithm of each token's probability under the combined distribution that all strategies follow,
   * after temperature, top_k, top_p and min_p; for a greedy session at temperature 1 without these. `tokens_count`
   * values, owned and valid as `tokens`; NULL if not asked for in cos_session_options, or without tokens.
   */
  const float *log_probabilities;
} cos_step_result;

/**
 * What a session did so far, or all sessions of an engine.
 *
 * Since 0.1.
 */
typedef struct cos_stats {
  /**
   * sizeof(cos_stats), set by the caller.
   */
  size_t struct_size;
  /**
   * Calls of cos_step.
   */
  uint64_t steps;
  /**
   * Tokens committed, prompts excluded.
   */
  uint64_t tokens;
  /**
   * Proposals made.
   */
  uint64_t proposed;
  /**
   * Proposals that reached an accept or reject decision; others were dropped behind a rejection or an end.
   */
  uint64_t tested;
  /**
   * Proposals accepted.
   */
  uint64_t accepted;
  /**
   * Passes of all models, those over nothing but prompt excluded.
   */
  uint64_t forwards;
  /**
   * Positions that all models scored, those of the prompt excluded.
   */
  uint64_t positions;
  /**
   * Nanoseconds inside ONNX Runtime, prompts included.
   */
  uint64_t model_ns;
  /**
   * Nanoseconds inside cos_step.
   */
  uint64_t total_ns;
  /**
   * Greedy choices between two nearly equal scores, which passes of other widths may decide otherwise.
   */
  uint64_t near_ties;
  /**
   * With COS_STRATEGY_AUTO, nanoseconds of cos_step since a first look at the plan (by this session, or by one before
   * that decoded the same), passes over prompts excluded. The
   * next two are about the same tokens, so that standard_ns / planned_ns is the measured gain of planning, and
   * standard_ns / expected_ns the one that was expected.
   */
  uint64_t planned_ns;
  /**
   * Nanoseconds that these tokens were expected to take, as the plans were chosen.
   */
  uint64_t expected_ns;
  /**
   * Nanoseconds that COS_STRATEGY_STANDARD would have taken for them, by the measured times of the models' passes.
   */
  uint64_t standard_ns;
  /**
   * Rows of logits that models on a GPU keep there, and that had to be copied to the host: for functions of the caller,
   * work together with models that are elsewhere, and filters that end where very many tokens have nearly the same score,
   * or (top_k, top_p) at tokens less than e^-16 times as likely as the best. 0 where all work on rows was done on the GPU. Rows that are on
   * the host anyway do not count.
   */
  uint64_t rows_copied;
} cos_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * Version of the library, such as "0.1.0". Lives forever. Never fails.
 *
 * Since 0.1.
 */
const char *cos_version(void);

/**
 * The code of an error, one of COS_ERROR_*. The values never change. 0 if `error` is NULL, which means success.
 *
 * Since 0.1.
 */
int32_t cos_error_code(const struct cos_error *error);

/**
 * What went wrong, and the mend where there is one: one sentence in UTF-8, for people. Lives as long as the error.
 * Empty if `error` is NULL.
 *
 * Since 0.1.
 */
const char *cos_error_message(const struct cos_error *error);

/**
 * Free an error. NULL is fine.
 *
 * Since 0.1.
 */
void cos_error_free(struct cos_error *error);

/**
 * Make an engine from a configuration file. Relative paths in it are relative to its folder.
 *
 * The file is a JSON object in UTF-8, of at most 64 models. An unknown key is an error that names it:
 *
 *     {
 *       "models": [ { "path": "base",         an .onnx file, or a folder that holds one
 *                     "provider": "cpu",      or "cuda"; "cpu" by default
 *                     "device_id": 0,         which GPU; 0 by default
 *                     "options": {},          of ONNX Runtime's CUDA provider, by its names, such as "gpu_mem_limit": bytes;
 *                                             "enable_cuda_graph": false has no passes captured
 *                     "rows": "gpu",          or "host": where rows of logits stay that a GPU makes; by default on the GPU if
 *                                             they are long
 *                     "name": "base",         for messages; the folder's name by default
 *                     "context_length": 4096, most tokens of a sequence; by default what the export says
 *                     "scoring": "parallel" },  or "one_by_one": how positions of a draft are scored; by default
 *                                             in parallel, if that is found to be the same when the model is loaded;
 *                                             "parallel" insists, and refuses the model otherwise
 *                   { "kind": "ngram" } ],    optional: a look-up of the last words in the sequence itself, which
 *                                             drafts at no cost where text repeats itself. It counts as a model
 *                                             everywhere, has the weight 0, and takes a "name" but no other key.
 *                                             Other models are of the kind "onnx", the default.
 *       "combine": one of
 *         { "kind": "weighted", "weights": [0.5, 0.5] }             sum of the distributions
 *         { "kind": "contrastive", "mu": 0.1, "plausibility": 0 }   model 0 the expert, model 1 the amateur
 *         { "kind": "logits", "weights": [1, 0.5, -0.5] }           weighted sum of the logits
 *         { "kind": "target", "model": 0 }                          one model; the others only draft
 *       "threads": 0,                         of the pool that all models of the process share; 0 by default,
 *                                             one for each core that the process may use; more than these do not spin
 *       "spinning": true,                     whether they stay awake for a while when there is nothing to do; false
 *                                             is for machines that have much else to do
 *       "overlap": true,                      whether passes that do not depend on each other run at the same time: of models
 *                                             on GPUs beside others; false: one after the other; by default it is found out
 *                                             whether that pays, in some milliseconds
 *       "greedy_below": 0.01,                 sessions with a temperature below this are greedy, for clients that send
 *                                             a small one and mean 0; 0 by default, which is off
 *       "onnxruntime": "libonnxruntime.so"    optional
 *     }
 *
 * ONNX Runtime (1.24 or newer) is loaded once for the process, from the first of: the path in the environment
 * variable ORT_DYLIB_PATH, "onnxruntime" of the first configuration, libonnxruntime.so beside libcos.so (or in a
 * folder onnxruntime there), and the system's loader. All models of the process share one thread pool.
 *
 * @param config_path  UTF-8, must not be NULL
 * @param out_engine   out, must not be NULL; to free with cos_engine_free
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, CONFIG, MODEL (a file is missing or
 *         corrupt, is no language model, or the vocabularies or tokenizers differ), RUNTIME, UNSUPPORTED (an export
 *         that could not be verified with; the message says why)
 * Since 0.1.
 */
struct cos_error *cos_engine_open(const char *config_path,
                                  struct cos_engine **out_engine);

/**
 * Make an engine from configuration text, as cos_engine_open does from a file. Relative paths in it are
 * relative to the working directory.
 *
 * @param config_json  UTF-8, must not be NULL
 * @param out_engine   out, must not be NULL; to free with cos_engine_free
 * @return as for cos_engine_open
 * Since 0.1.
 */
struct cos_error *cos_engine_new(const char *config_json, struct cos_engine **out_engine);

/**
 * Free an engine. Sessions, text streams and calls that are running keep what they need alive and go on. No call may
 * begin with it from now on. NULL is fine.
 *
 * Since 0.1.
 */
void cos_engine_free(struct cos_engine *engine);

/**
 * Number of tokens of the vocabulary that the models share; tokens are 0 to this less 1. 0 if `engine` is NULL.
 *
 * Since 0.1.
 */
size_t cos_engine_vocab_size(const struct cos_engine *engine);

/**
 * Number of models, in the order of the configuration: the length of proposal_lengths and weights in
 * cos_session_options. 0 if `engine` is NULL.
 *
 * Since 0.1.
 */
size_t cos_engine_model_count(const struct cos_engine *engine);

/**
 * What was recognised of each model, as JSON: to be looked at, kept with a bug report, or checked when a model is
 * exchanged.
 *
 *     {
 *       "version": "0.1.0", "onnxruntime": path, "vocab_size": 4096, "stop_tokens": [0],
 *       "thread_pool": "process",                               all models of the process share one; "host": they share the one of
 *                                                               the code that used ONNX Runtime first; "model": each has its own
 *       "threads": 2,                                           of a pool; null for that of a host
 *       "tokenizer": true, "combine": as configured, "greedy_below": as configured,
 *       "overlap": 0.83,                                        where passes of several models run at the same time, the share of
 *                                                               all but the longest that is hidden by it; else null
 *       "models": [ {
 *         "name": "base", "kind": "onnx",                       or "ngram", which has no more members
 *         "file": path, "bytes": with external data, "producer": "pytorch 2.11.0", "opset": 18,
 *         "architecture": "llama",                              or null
 *         "provider": "cpu" or "cuda", "device_id": 0,
 *         "graphs": true,                                       whether passes are captured and replayed on the GPU
 *         "no_graphs": null,                                    or why not
 *         "sdpa_kernel": null,                                  or what ONNX Runtime was told of attention on the GPU
 *         "cache_on": "gpu" or "host",                          where the cache is
 *         "rows_on": "gpu" or "host",                           where rows of logits stay
 *         "no_gpu_rows": null,                                  or why they cannot stay on the GPU
 *         "inputs": [ { "name": "input_ids", "type": "int64" } ],       the caches aside
 *         "logits": { "name": "logits", "type": "float32", "columns": 4096,
 *                     "rows": "all", "counted" (by num_logits_to_keep) or "last" },
 *         "cache": {
 *           "kind": "shared" (updated in place), "fixed" (the same, of a length that the export sets),
 *                   "concatenated" (present is past and new) or "none",
 *           "rollback": "shorten", "mask" (dead entries stay, masked), "compact" (they are moved out) or "rerun",
 *           "layers": 8, "heads": [2, ...], "head_size": [64, ...],     one for each layer
 *           "type": "float32", "capacity": null or tokens, "bytes_per_token": 16384 },
 *         "vocab_size": 4096, "context_length": 2048, "stop_tokens": [0],
 *         "scoring": "parallel", "first_pass" (so on an empty cache only) or "one_by_one",
 *         "deviation": 1e-6,                                    of logits scored in parallel, seen when loaded
 *         "trials": [ { "scoring": "parallel", "rollback": "mask",      what was tried when loaded; the last of the
 *                       "deviation": 0.11, "spreads": 0.04 },           fastest scoring, or the best, was taken
 *                     { ..., "refused": "logits change by up to 2.65" } ],    spreads: in standard deviations of a row
 *         "warnings": [ "what should be known of it" ] } ],
 *       "warnings": [ ... ]
 *     }
 *
 * Members may be added; those here stay.
 *
 * @param engine    must not be NULL
 * @param out_json  out, must not be NULL: UTF-8; owned by the engine, lives as long as that
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
 * Since 0.1.
 */
struct cos_error *cos_engine_describe(const struct cos_engine *engine,
                                      const char **out_json);

/**
 * The same as cos_engine_describe as a table for people, such as for a log: one column for each model, then the warnings.
 *
 * @param engine     must not be NULL
 * @param out_table  out, must not be NULL: UTF-8; owned by the engine, lives as long as that
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
 * Since 0.1.
 */
struct cos_error *cos_engine_describe_table(const struct cos_engine *engine,
                                            const char **out_table);

/**
 * Start an empty sequence.
 *
 * @param engine       must not be NULL
 * @param options      NULL is greedy and automatic; `struct_size` must be set
 * @param out_session  out, must not be NULL; to free with cos_free
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (names the member), UNSUPPORTED (a member
 *         that this version does not know), RUNTIME
 * Since 0.1.
 */
struct cos_error *cos_session_new(const struct cos_engine *engine,
                                  const struct cos_session_options *options,
                                  struct cos_session **out_session);

/**
 * Append tokens to the sequence: its prompt, or the next turn of a chat between steps. A finished sequence goes on.
 * The models see the tokens in the next step, so that cos_cancel can stop a long prompt.
 *
 * On error nothing is appended.
 *
 * @param session       in/out, must not be NULL
 * @param tokens        copied; must not be NULL
 * @param tokens_count  at least 1
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no tokens, or one outside the
 *         vocabulary), CONTEXT_FULL, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_prompt(struct cos_session *session, const int32_t *tokens, size_t tokens_count);

/**
 * Decode with other weights from the next token on, for "weighted" and "logits". Between steps, and before the first
 * prompt too. The tokens that there are stay, and all that follow have the distribution that the new weights give
 * them. A weight that becomes 0, or no longer is, may change the models that run, and with them the room for tokens.
 *
 * If a step was cancelled or failed and weights change because of that, ask for COS_TARGETS_COMBINED: how long a routed
 * step takes depends on the model that its token is routed to, so that stopping the long ones would select among tokens.
 *
 * On error nothing changes.
 *
 * @param session        in/out, must not be NULL
 * @param weights        copied; must not be NULL
 * @param weights_count  number of models
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (as for the weights of cos_session_options,
 *         or the session has a combine function), CONTEXT_FULL (the sequence is longer than the context of a model
 *         whose weight was 0), BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_set_weights(struct cos_session *session,
                                          const float *weights,
                                          size_t weights_count);

/**
 * Advance the sequence by one round of collaborative decoding.
 *
 * Commits at least one token unless the sequence is finished: then there are none, and finish says why again. After
 * COS_FINISH_CANCELLED the next step goes on where the last token was committed. On error nothing is
 * committed, `out_result` is untouched, and the next step tries again.
 *
 * @param session     in/out, must not be NULL, not in use on another thread (BUSY)
 * @param out_result  out, must not be NULL; `struct_size` must be set. `tokens` and `log_probabilities` are owned by
 *                    the session and valid until its next call.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no prompt yet), NUMERIC, RUNTIME,
 *         CALLBACK, BUSY, POISONED, INTERNAL (poisons the session)
 * Since 0.1.
 */
struct cos_error *cos_step(struct cos_session *session, struct cos_step_result *out_result);

/**
 * Stop the running step, or else the next one: it ends early with COS_FINISH_CANCELLED. Nothing that was committed
 * is lost. May be called from any thread at any time until cos_free is called; never waits for a running pass.
 *
 * @param session  must not be NULL
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
 * Since 0.1.
 */
struct cos_error *cos_cancel(struct cos_session *session);

/**
 * Free a session. NULL is fine.
 *
 * Calls that are running on other threads end well: a step is cancelled and waited for, and cos_cancel and
 * cos_session_stats keep what they need. No call may begin with the session from now on, not even cos_cancel: a thread
 * that may call it must have returned from it, or be kept out by a lock of the caller's. (Nobody can see from outside
 * whether a call that does not return yet has begun.)
 *
 * Since 0.1.
 */
void cos_free(struct cos_session *session);

/**
 * What the session did so far, up to the last call that ended. May be called from any thread at any time until
 * cos_free is called.
 *
 * @param session    must not be NULL
 * @param out_stats  out, must not be NULL; `struct_size` must be set
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_stats(const struct cos_session *session, struct cos_stats *out_stats);

/**
 * How a session decodes now, and why, as JSON: for a log, a bug report, or a look at what COS_STRATEGY_AUTO does.
 *
 *     {
 *       "strategy": "standard", "speculative" or "cos",       what runs; COS_STRATEGY_AUTO changes it as it learns
 *       "targets": "combined" or "routed",
 *       "proposal_lengths": [0, 5],                           of each model
 *       "stop_below": 0.35,                                   drafts end where they are less likely to be accepted; 0: never
 *       "planned": true,                                      by COS_STRATEGY_AUTO; else the next three are 0 and null
 *       "changes": 2,                                         of the plan, so far
 *       "expected_gain": 1.62,                                over COS_STRATEGY_STANDARD, by the last look at the plan
 *       "measured_gain": 1.58,                                standard_ns / planned_ns of cos_stats
 *       "models": [ {
 *         "name": "base",
 *         "pass_ms": [4.1, 4.3, 4.6, 4.8, 5.1, 5.3, 5.5, 5.8],  over 1 to 8 positions, as measured; null if not planned
 *         "acceptance": 0.71,                                 of proposals of this model; null if not known
 *         "rows_copied": 0,                                   of this model: see cos_stats
 *         "captured": 12,                                     of its passes on a GPU, by all sessions of the engine; else null
 *         "no_graphs": null } ],                              or why none is captured any more
 *       "memory": { "bytes": 7340032, "peak_bytes": 7340032 }   caches, logits and distributions; not the weights
 *     }
 *
 * Members may be added; those here stay.
 *
 * @param session   must not be NULL, not in use on another thread (BUSY)
 * @param out_json  out, must not be NULL: UTF-8; owned by the session, valid until the next call of this function
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_describe(const struct cos_session *session,
                                       const char **out_json);

/**
 * What all sessions of an engine did so far, also those that were freed: for the metrics of a server. Grows with each
 * step that ends. May be called from any thread at any time until cos_engine_free is called.
 *
 * @param engine     must not be NULL
 * @param out_stats  out, must not be NULL; `struct_size` must be set
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
 * Since 0.1.
 */
struct cos_error *cos_engine_stats(const struct cos_engine *engine, struct cos_stats *out_stats);

/**
 * The tokens of a text, by the tokenizer.json beside the models.
 *
 * @param engine          must not be NULL
 * @param text            UTF-8, `text_bytes` bytes, need not end with NUL
 * @param text_bytes      length of `text`
 * @param add_special     not 0: add the tokens that the post_processor of tokenizer.json puts around a text, such as
 *                        one for its start. If tokenizer_config.json asks for others, cos_engine_describe warns.
 * @param tokens          filled; may be NULL if `capacity` is 0
 * @param capacity        how many tokens fit; one token for each byte and a few more are always enough
 * @param out_count       out, must not be NULL: the number of tokens. With a capacity of 0 it is counted only.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also if the text has a token that the
 *         models do not have), BUFFER_TOO_SMALL (nothing is written), UNSUPPORTED (the models came without a
 *         tokenizer.json)
 * Since 0.1.
 */
struct cos_error *cos_engine_encode(const struct cos_engine *engine,
                                    const char *text,
                                    size_t text_bytes,
                                    int32_t add_special,
                                    int32_t *tokens,
                                    size_t capacity,
                                    size_t *out_count);

/**
 * The text of tokens, by the tokenizer.json beside the models, without special tokens. Bytes that are no whole
 * character become U+FFFD. The first token begins the text, and some tokenizers leave out the space of a first word.
 * So use cos_text_stream_new for the tokens behind a prompt, and to decode a sequence piece by piece.
 *
 * @param engine        must not be NULL
 * @param tokens        `tokens_count` tokens
 * @param tokens_count  length of `tokens`
 * @param text          filled with UTF-8, without a NUL at the end; may be NULL if `capacity` is 0
 * @param capacity      how many bytes fit
 * @param out_bytes     out, must not be NULL: the number of bytes. With a capacity of 0 they are counted only.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUFFER_TOO_SMALL (nothing is written),
 *         UNSUPPORTED
 * Since 0.1.
 */
struct cos_error *cos_engine_decode(const struct cos_engine *engine,
                                    const int32_t *tokens,
                                    size_t tokens_count,
                                    char *text,
                                    size_t capacity,
                                    size_t *out_bytes);

/**
 * Start a stream of text.
 *
 * @param engine      must not be NULL; may be freed before the stream
 * @param out_stream  out, must not be NULL; to free with cos_text_stream_free
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, UNSUPPORTED (no tokenizer.json)
 * Since 0.1.
 */
struct cos_error *cos_text_stream_new(const struct cos_engine *engine, struct cos_text_stream **out_stream);

/**
 * Tell a stream what its text continues. With some tokenizers the text depends on it if the prompt is empty, has no
 * text (such as a start token alone), or ends within a word: then no space begins the text. The call is optional. It
 * comes before the first push, or after cos_text_stream_finish. The stream gives no text for these tokens.
 *
 * @param stream        in/out, must not be NULL
 * @param tokens        all tokens before the text, such as those given to cos_prompt; NULL if there are none
 * @param tokens_count  length of `tokens`; 0 if the next token that is pushed begins the text
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also after a push; nothing is changed),
 *         BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_prompt(struct cos_text_stream *stream, const int32_t *tokens, size_t tokens_count);

/**
 * End the text before the first of some strings that appears in it, such as the turn of another speaker: that is the
 * one that is complete first, and the longest of those. They may be of any length, and reach across tokens. Special
 * tokens give no text, but a stop string that is the name of one, such as "<|im_end|>", or contains it, is found all
 * the same. This replaces the strings set before; what was given out stays.
 *
 * @param stream       in/out, must not be NULL
 * @param stops        `stops_count` strings in UTF-8, none of them empty, of at most 16 MiB together; they need not end
 *                     with NUL
 * @param stops_bytes  their lengths
 * @param stops_count  length of `stops` and of `stops_bytes`; 0 is none
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (the strings before stay), BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_set_stops(struct cos_text_stream *stream,
                                            const char *const *stops,
                                            const size_t *stops_bytes,
                                            size_t stops_count);

/**
 * Whether a stop string has ended the text, or did when that was finished: 1 if it has, otherwise 0, also if `stream` is
 * NULL. Tokens then make no more text until cos_text_stream_finish. While another thread uses the stream, this is the
 * answer from before that call.
 *
 * Since 0.1.
 */
int32_t cos_text_stream_stopped(const struct cos_text_stream *stream);

/**
 * The text that further tokens complete, such as those of a step. The bytes of an unfinished character are held back
 * until it is whole, and what may become a stop string until that is certain.
 *
 * @param stream        in/out, must not be NULL
 * @param tokens        `tokens_count` tokens; NULL if that is 0
 * @param tokens_count  length of `tokens`; 0 is fine
 * @param out_text      out, must not be NULL: UTF-8, without a NUL at the end; owned by the stream, valid until its
 *                      next call
 * @param out_bytes     out, must not be NULL: length of the text, possibly 0
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no token is taken), BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_push(struct cos_text_stream *stream,
                                       const int32_t *tokens,
                                       size_t tokens_count,
                                       const char **out_text,
                                       size_t *out_bytes);

/**
 * The rest of the text: what was held back, with U+FFFD for bytes that are no character, up to a stop string. The
 * next push starts a new text with the same stop strings, whose prompt is not known.
 *
 * @param stream     in/out, must not be NULL
 * @param out_text   as for cos_text_stream_push
 * @param out_bytes  as for cos_text_stream_push
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_finish(struct cos_text_stream *stream, const char **out_text, size_t *out_bytes);

/**
 * Free a stream of text. Calls that are running keep what they need. No call may begin with it from now on. NULL is
 * fine.
 *
 * Since 0.1.
 */
void cos_text_stream_free(struct cos_text_stream *stream);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* COS_H */
