/* CoS: exact, fast decoding with several language models at once. C interface, version 0.1.
 *
 * Generated from the Rust sources in src/ffi by `make header`; do not edit.
 *
 * Quick start:
 *
 *     cos_engine *engine;
 *     cos_session *session;
 *     cos_step_result step = { .struct_size = sizeof step };
 *     cos_engine_open("engine.json", &engine);         load the models, once
 *     cos_session_new(engine, NULL, &session);         start a sequence; NULL: greedy, with an automatic strategy
 *     cos_prompt(session, tokens, tokens_count);
 *     do {
 *       cos_step(session, &step);                      step.tokens are the new tokens
 *     } while (step.finish == COS_FINISH_NONE);
 *     cos_free(session);
 *     cos_engine_free(engine);
 *
 * The functions follow in this order: errors, engines, sessions, many sessions, text, statistics, descriptions.
 *
 * Errors. A function that can fail returns a cos_error pointer. NULL is success. Anything else is an object with a
 * code and a message, which the caller frees with cos_error_free. Outputs (parameters out_...) are written on success
 * only, and a failed call leaves its objects as they were. A function lists the codes that it returns, without the
 * prefix COS_ERROR_. Besides these, each may return INTERNAL (a bug of this library), which leaves the process
 * unharmed and poisons a session. There are no thread-local errors.
 *
 * Ownership. The caller owns what a ..._new or ..._open function returns, and frees it with the free function of its
 * type. Every free function accepts NULL. Arguments are copied, or only read during the call. Each function says how
 * long a pointer that it returns is valid.
 *
 * Threads. Engines are immutable: any number of threads may use one at once. One thread at a time may use a session or
 * a text stream, and it need not be the same thread each time. If another thread is using it, a call returns BUSY at
 * once. A few functions may be called at any time, and their documentation says so. No call with an object may begin
 * once the call that frees the object has begun. If threads step sessions of an engine at the same time, their passes
 * are combined into common ones. One thread can do the same with cos_step_many. The library starts no thread for that.
 * Only if many sessions of a call have a grammar, threads that end with the call may make masks while a pass runs.
 *
 * Processes. An engine belongs to the process that opened it. In a child of fork(), calls with the engine, its sessions
 * and its text streams return UNSUPPORTED. The child may free them and open its own engine. It cannot open one if it
 * was forked while its parent was opening its first engine. Once the library has used ONNX Runtime, it stays loaded
 * until the process ends, also after dlclose(), because ONNX Runtime keeps addresses of its code.
 *
 * Versions. Codes and constants never change, and functions are only added. Structs grow at their end. Set struct_size
 * to the sizeof of the struct and all other members to 0 before you fill it: then a program compiled against this
 * header works with every later library of the same SONAME.
 *
 * Conventions. Text is UTF-8. A count follows the pointer that it belongs to. A token is an int32_t from 0 to
 * cos_engine_vocab_size() - 1. Times are in nanoseconds.
 */


#ifndef COS_H
#define COS_H

#include <stddef.h>
#include <stdint.h>

/**
 * An argument is NULL, out of range or of the wrong size.
 */
#define COS_ERROR_INVALID_ARGUMENT 1

/**
 * The engine configuration is wrong.
 */
#define COS_ERROR_CONFIG 2

/**
 * A model cannot be loaded, is not a language model, or does not fit the other models.
 */
#define COS_ERROR_MODEL 3

/**
 * ONNX Runtime is missing, too old, or failed.
 */
#define COS_ERROR_RUNTIME 4

/**
 * The tokens do not fit into the context of the models.
 */
#define COS_ERROR_CONTEXT_FULL 5

/**
 * Logits or scores were NaN or plus infinity, or minus infinity for every token.
 */
#define COS_ERROR_NUMERIC 6

/**
 * Another thread is using the session or the text stream.
 */
#define COS_ERROR_BUSY 7

/**
 * The request is valid, but this version does not support it.
 */
#define COS_ERROR_UNSUPPORTED 8

/**
 * The buffer of the caller is too small. The message says how much is needed.
 */
#define COS_ERROR_BUFFER_TOO_SMALL 9

/**
 * An earlier call on the session returned INTERNAL. The session can only be freed.
 */
#define COS_ERROR_POISONED 10

/**
 * A bug of this library (a panic). The process is unharmed, and the session of the call is poisoned.
 */
#define COS_ERROR_INTERNAL 11

/**
 * A function of the caller failed. The message says what it returned.
 */
#define COS_ERROR_CALLBACK 12

/**
 * The caches of other sessions take all the memory that the configuration allows. Nothing is lost: try again later.
 */
#define COS_ERROR_NO_MEMORY 13

/**
 * A request names a model that is not there.
 */
#define COS_ERROR_NOT_FOUND 14

/**
 * No constraint, or one by a function.
 */
#define COS_CONSTRAINT_NONE 0

/**
 * The text is a JSON value that a JSON schema allows. llguidance says which
 * keywords of the standard it lacks; these are an error. Keywords that the standard lacks too are ignored.
 */
#define COS_CONSTRAINT_JSON_SCHEMA 1

/**
 * The whole text matches a regular expression, in the syntax of Rust's crate regex, without look-around.
 */
#define COS_CONSTRAINT_REGEX 2

/**
 * The text follows a grammar in the dialect of Lark that llguidance has. Its first rule is "start". max_tokens= and
 * stop= are refused, because they do not go with drafts that are taken back.
 */
#define COS_CONSTRAINT_LARK 3

/**
 * The text is one of the strings of a JSON array.
 */
#define COS_CONSTRAINT_CHOICES 4

/**
 * The library chooses the strategy and the proposal lengths that are expected to be fastest, and changes them as it
 * learns.
 */
#define COS_STRATEGY_AUTO 0

/**
 * Every model with a weight other than 0 scores every position, and nobody drafts: the baseline.
 */
#define COS_STRATEGY_STANDARD 1

/**
 * Speculative decoding: one model drafts, and all others verify. Without a draft, it acts like COS_STRATEGY_STANDARD,
 * for example if all proposal_lengths are 0.
 */
#define COS_STRATEGY_SPECULATIVE 2

/**
 * Collaborative decoding via speculation: the models take turns as the proposer (arXiv 2502.01662, Algorithms 1 and
 * 2).
 */
#define COS_STRATEGY_COS 3

/**
 * The library chooses. COS_STRATEGY_AUTO uses routed targets where they apply; all else is combined.
 */
#define COS_TARGETS_AUTO 0

/**
 * Every position is verified against the combined distribution, so it needs every model with a weight other than 0.
 */
#define COS_TARGETS_COMBINED 1

/**
 * Every position is verified against one model that is drawn by the weights, so it needs only that model. The joint
 * distribution of the tokens is the same. For "weighted" with a temperature above 0.
 */
#define COS_TARGETS_ROUTED 2

/**
 * As "routes" in the engine's configuration says; without it, sessions with COS_STRATEGY_AUTO have shared routes.
 */
#define COS_ROUTES_AUTO 0

/**
 * Routed targets are drawn by numbers of the session alone.
 */
#define COS_ROUTES_OWN 1

/**
 * Sessions that were part of the same pass draw their next routed target by one number, each by its own weights. With
 * equal weights they all need the same model next, so one pass serves them all. Each session follows its distribution
 * exactly, but sessions depend on each other, and a seed does not repeat a text. Two sessions of one scope that began
 * with the same prompt never share, nor do forks.
 */
#define COS_ROUTES_SHARED 2

/**
 * Somebody waits for the tokens.
 */
#define COS_PRIORITY_INTERACTIVE 0

/**
 * Only the end of the text matters. The passes of interactive sessions become at most twice as long by all batch
 * sessions together. If there is not enough memory, a batch session counts as started after the next thousand others.
 */
#define COS_PRIORITY_BATCH 1

/**
 * The sequence goes on.
 */
#define COS_FINISH_NONE 0

/**
 * A stop token was committed. It is the last token.
 */
#define COS_FINISH_STOP 1

/**
 * max_tokens tokens were generated since the last prompt.
 */
#define COS_FINISH_MAX_TOKENS 2

/**
 * The context has no room for another token.
 */
#define COS_FINISH_CONTEXT_FULL 3

/**
 * cos_cancel stopped the step.
 */
#define COS_FINISH_CANCELLED 4

/**
 * The constraint of the session is complete: no token may follow.
 */
#define COS_FINISH_COMPLETE 5

/**
 * Drawn from the target distribution, where nothing was proposed.
 */
#define COS_ORIGIN_DRAWN 0

/**
 * Proposed, and accepted.
 */
#define COS_ORIGIN_ACCEPTED 1

/**
 * Drawn in place of a proposal that was rejected.
 */
#define COS_ORIGIN_REPLACED 2

/**
 * The only token that the constraint allowed. With log_probabilities_before, such a token takes rows and counts as any
 * other.
 */
#define COS_ORIGIN_FORCED 3

/**
 * For cos_engine_encode: add the tokens that the post_processor of tokenizer.json puts around a text, such as a start
 * token.
 */
#define COS_ENCODE_ADD_SPECIAL 1

/**
 * For cos_engine_encode: take the names of special tokens in the text for plain text.
 */
#define COS_ENCODE_PLAIN 2

/**
 * The body of POST /v1/completions.
 */
#define COS_REQUEST_COMPLETION 0

/**
 * The body of POST /v1/chat/completions.
 */
#define COS_REQUEST_CHAT 1

/**
 * The request goes on.
 */
#define COS_REQUEST_OPEN 0

/**
 * All choices have ended.
 */
#define COS_REQUEST_DONE 1

/**
 * cos_request_cancel ended the request.
 */
#define COS_REQUEST_CANCELLED 2

/**
 * For the choice of a request: a stop string ended the text.
 */
#define COS_FINISH_STOP_STRING 6

/**
 * An engine: the loaded models and how they are combined. Immutable; any number of threads may use one at once.
 *
 * Since 0.1.
 */
typedef struct cos_engine cos_engine;

/**
 * An error: a code and a message. The caller owns it and frees it with cos_error_free. Any number of threads may read
 * it at once, and any thread may free it.
 *
 * Since 0.1.
 */
typedef struct cos_error cos_error;

/**
 * A request of OpenAI's protocol: sessions and streams of text that a body asks for, and the answer. One thread at a
 * time may use it; a call from another thread returns BUSY. Only cos_request_cancel and cos_request_choices may be
 * called at any time.
 *
 * Since 0.1.
 */
typedef struct cos_request cos_request;

/**
 * A session: one sequence of tokens. One thread at a time may use it; a call from another thread returns BUSY. Only
 * cos_cancel and cos_session_stats may be called at any time. Different sessions run in parallel.
 *
 * Since 0.1.
 */
typedef struct cos_session cos_session;

/**
 * A stream that decodes tokens to text as they come. It gives out whole characters only, and can end the text before a
 * stop string. One thread at a time may use it; a call from another thread returns BUSY.
 *
 * The text continues a prompt: the text of the prompt and the text of the stream together are the text of all tokens.
 * So the space before the first word stays. If cos_text_stream_prompt does not set the prompt, the stream assumes that
 * it ends with a whole word.
 *
 * Since 0.1.
 */
typedef struct cos_text_stream cos_text_stream;

/**
 * A function of the caller that is told how far cos_engine_prepare has come. It is called on the thread of that call:
 * before each pass, or before passes of several models at once, and with 1 when all is done.
 *
 * The function must return: an exception ends the process, and longjmp is undefined behaviour. It may call any
 * function of this interface.
 *
 * @param share      the share that is done, from 0 to 1, never less than in the call before. Equal parts do not take
 *                   equal times.
 * @param user_data  progress_data of cos_prepare_options
 * @return 0 to go on, or any other number to stop
 * Since 0.1.
 */
typedef int32_t (*cos_progress_fn)(double share, void *user_data);

/**
 * What cos_engine_prepare prepares for, and for how long. Set all members to 0 and then struct_size for the defaults.
 *
 * Since 0.1.
 */
typedef struct cos_prepare_options {
  /**
   * sizeof(cos_prepare_options), set by the caller.
   */
  size_t struct_size;
  /**
   * Most sessions that will decode at the same time, up to 1024; 0: 16.
   */
  uint32_t sessions;
  /**
   * Most tokens of a usual text, with its prompt; 0: 1024. More than the context of a model counts as that.
   */
  uint32_t tokens;
  /**
   * Seconds after which no further pass begins, up to 86400; 0: 30.
   */
  double seconds;
  /**
   * Is told how far it has come, and may stop it; or NULL.
   */
  cos_progress_fn progress;
  /**
   * Passed to `progress`. Owned by the caller. May be NULL.
   */
  void *progress_data;
} cos_prepare_options;

/**
 * A function of the caller that combines the models. For one position, it makes one row of scores from one row of
 * logits for each model. Tokens follow the distribution that temperature, top_k, top_p, min_p and softmax make of the
 * scores.
 *
 * The scores must depend on the rows and the function's own data only: the function may be called again for the same
 * position, and decoding is exact only if the scores are then the same.
 *
 * cos_step calls the function on its own thread, possibly several times, also for positions whose tokens are dropped
 * later. The function must return: an exception ends the process, and longjmp is undefined behaviour. It must not keep
 * the pointers. It may call cos_cancel and cos_session_stats with the session. Other calls with the session return
 * BUSY, and cos_free would wait for ever.
 *
 * @param rows          `models_count` rows of `vocab_size` logits, in the order of the configuration. NULL for
 *                      look-ups, and for models with the weight 0. No logit is NaN or plus infinity. Minus infinity
 *                      marks a token that is impossible.
 * @param models_count  number of models
 * @param vocab_size    number of tokens in the vocabulary
 * @param out_scores    out: `vocab_size` scores, all of which must be written. Minus infinity makes a token
 *                      impossible. cos_step returns NUMERIC for NaN (also where nothing was written), for plus
 *                      infinity, and if all scores are minus infinity.
 * @param user_data     combine_data of cos_session_options
 * @return 0, or any other number to make cos_step return CALLBACK with a message that names the number. A step that
 *         has committed a token before returns success, and the next step calls the function again.
 * Since 0.1.
 */
typedef int32_t (*cos_combine_fn)(const float *const *rows,
                                  size_t models_count,
                                  size_t vocab_size,
                                  float *out_scores,
                                  void *user_data);

/**
 * A function of the caller that says which tokens may come next in a text. The text begins behind the last prompt.
 *
 * What it says must depend on the tokens of the text only: cos_step calls it on its own thread for each position that
 * is drafted or decided, also for positions whose tokens are dropped later. So texts go back. `kept` makes that cheap:
 * a function that keeps a state takes tokens back until it has `kept`, and then adds those behind them.
 *
 * The function must return: an exception ends the process, and longjmp is undefined behaviour. It must not keep the
 * pointers. It may call cos_cancel and cos_session_stats with the session. Other calls with the session return BUSY,
 * and cos_free would wait for ever.
 *
 * @param tokens        the text so far, pending tokens included; NULL if it is empty
 * @param tokens_count  length of `tokens`
 * @param kept          so many tokens from the front are those of the last call with the same `text`
 * @param mask          in/out: a bit for each token, token t in bit t % 32 of word t / 32. All bits are set. Clear
 *                      those of the tokens that may not come next. Stop tokens are tokens like others here. If no bit
 *                      is left, the text is complete and ends.
 * @param mask_words    length of `mask`
 * @param text          a number of the session, which no other session of the process has, forks included
 * @param user_data     constrain_data of cos_session_options
 * @return 0, or any other number to make cos_step return CALLBACK with a message that names the number. A step that
 *         has committed a token before returns success, and the next step calls the function again.
 * Since 0.1.
 */
typedef int32_t (*cos_constraint_fn)(const int32_t *tokens,
                                     size_t tokens_count,
                                     size_t kept,
                                     uint32_t *mask,
                                     size_t mask_words,
                                     uint64_t text,
                                     void *user_data);

/**
 * What a model thinks of the next token, by the plain softmax of its logits.
 *
 * Since 0.1.
 */
typedef struct cos_model_summary {
  /**
   * The probability of its best token, from 0 to 1. NaN for look-ups, and for models with the weight 0.
   */
  float confidence;
  /**
   * The entropy of its distribution in nats. NaN likewise.
   */
  float entropy;
  /**
   * Its best token. -1 likewise.
   */
  int32_t best;
  /**
   * Always 0.
   */
  int32_t reserved;
} cos_model_summary;

/**
 * A function of the caller that gives the models the weights of one position.
 *
 * What it writes must depend on its arguments and its own data only: the function may be called again for the same
 * position, and decoding is exact only if the weights are then the same. cos_step calls it on its own thread for each
 * position that is decided. The function must return: an exception ends the process, and longjmp is undefined
 * behaviour. It must not keep the pointers. It may call cos_cancel and cos_session_stats with the session. Other calls
 * with the session return BUSY, and cos_free would wait for ever.
 *
 * @param tokens        the tokens before the position, prompts included
 * @param tokens_count  their number, which is the position
 * @param models        a summary of each model
 * @param models_count  number of models
 * @param weights       in/out: one weight for each model; before, those of the session. They must be such as
 *                      cos_session_options takes. A model with the weight 0 in the session has not run, and must keep
 *                      0.
 * @param user_data     weigh_data of cos_session_options
 * @return 0, or any other number to make cos_step return CALLBACK with a message that names the number. A step that
 *         has committed a token before returns success, and the next step calls the function again.
 * Since 0.1.
 */
typedef int32_t (*cos_weigh_fn)(const int32_t *tokens,
                                size_t tokens_count,
                                const struct cos_model_summary *models,
                                size_t models_count,
                                float *weights,
                                void *user_data);

/**
 * How a session decodes. Set all members to 0 and then struct_size: greedy, with an automatic strategy.
 * cos_session_new copies the arrays.
 *
 * Since 0.1.
 */
typedef struct cos_session_options {
  /**
   * sizeof(cos_session_options), set by the caller.
   */
  size_t struct_size;
  /**
   * One of COS_STRATEGY_*. It does not change the distribution of the tokens.
   */
  int32_t strategy;
  /**
   * Scores are divided by this number. 0 is greedy: the token with the highest score, and the lowest such token
   * among equal scores. A small temperature is not greedy with "weighted": at 1e-6 to 0.01, each model is certain of
   * its own best token, and the weights draw one of these tokens. For the best token of the mixture, set 0, or set
   * "greedy_below" in the configuration.
   */
  float temperature;
  /**
   * Sample among this many most probable tokens of each distribution; 0 is off.
   */
  int32_t top_k;
  /**
   * Sample among the fewest most probable tokens that together have at least this probability; 0 or 1 is off.
   */
  float top_p;
  /**
   * Sample among the tokens that have at least this share of the highest probability; 0 is off.
   */
  float min_p;
  /**
   * Seed of the random numbers. The tokens are the same for the same seed, strategy (other than auto) and number of
   * threads. On a GPU, earlier sessions may change the last bits of logits, which changes a token now and then. A
   * step that fails, or that is cancelled while it runs, has used random numbers, which are never used again: the
   * tokens behind it are others, of the same distribution. Greedy tokens stay the same.
   */
  uint64_t seed;
  /**
   * Most tokens to generate after each prompt; 0: until the context is full.
   */
  uint32_t max_tokens;
  /**
   * How many tokens each model proposes in a row (γ), in the order of the configuration, each 0 to 64. NULL: the
   * library chooses. With COS_STRATEGY_SPECULATIVE, the cheapest model with a number above 0 drafts.
   */
  const int32_t *proposal_lengths;
  /**
   * Length of `proposal_lengths`: the number of models, or 0 for NULL.
   */
  size_t proposal_lengths_count;
  /**
   * Weights in place of the engine's, for "weighted" and "logits". NULL: the engine's weights.
   */
  const float *weights;
  /**
   * Length of `weights`: the number of models, or 0 for NULL.
   */
  size_t weights_count;
  /**
   * Tokens that end the sequence. NULL: the stop tokens that the files of any model name, in eos_token_id of
   * genai_config.json, generation_config.json and config.json, and in eos_token of tokenizer_config.json. If the
   * files name none, cos_engine_describe has a warning. Not NULL with a count of 0: no stop tokens.
   */
  const int32_t *stop_tokens;
  /**
   * Length of `stop_tokens`.
   */
  size_t stop_tokens_count;
  /**
   * One of COS_TARGETS_*. It does not change the distribution of the tokens.
   */
  int32_t targets;
  /**
   * 1: cos_step returns the log-probability of each token. 0: it does not. Log-probabilities need the combined
   * distribution, so COS_TARGETS_AUTO then means combined, and COS_TARGETS_ROUTED is an error. They are those of the
   * distribution that tokens are drawn from: after bias, penalties, constraint, temperature, top_k, top_p and min_p.
   * For a greedy session, they are those at temperature 1 without these filters.
   */
  int32_t log_probabilities;
  /**
   * A combine function in place of the engine's combination, or NULL. It gets the rows of the models whose weight is
   * not 0 in the engine's combination (or in `weights`, if given). Targets are then combined.
   */
  cos_combine_fn combine;
  /**
   * Passed to `combine`. Owned by the caller; must be valid as long as the session. May be NULL.
   */
  void *combine_data;
  /**
   * One of COS_ROUTES_*. It does not change the distribution of the tokens.
   */
  int32_t routes;
  /**
   * One of COS_PRIORITY_*. It does not change the distribution of the tokens.
   */
  int32_t priority;
  /**
   * Scores of tokens that are in the prompt or the text: positive ones are divided by this number, and all others
   * multiplied. From 1e-6 to 1e6; 0 or 1 is off.
   *
   * Scores change in this order: bias, this penalty, the presence and the frequency penalty, bans and the
   * constraint, then temperature, top_k, top_p and min_p. With "weighted", that is done to the scores of each model
   * before they are mixed. Otherwise it is done to the combined scores.
   */
  float repetition_penalty;
  /**
   * Subtracted from the scores of tokens that are in the text: behind the last prompt. From -1e6 to 1e6; 0 is off.
   */
  float presence_penalty;
  /**
   * Subtracted from the score of a token for each time that it is in the text. From -1e6 to 1e6; 0 is off.
   */
  float frequency_penalty;
  /**
   * No stop token comes before so many tokens behind the last prompt. 0 is off.
   */
  uint32_t min_tokens;
  /**
   * Tokens whose scores are changed, each once, or NULL.
   */
  const int32_t *bias_tokens;
  /**
   * What is added to their scores, from -1e30 to 1e30. Minus infinity bans a token.
   */
  const float *bias_values;
  /**
   * Length of `bias_tokens` and `bias_values`.
   */
  size_t bias_count;
  /**
   * One of COS_CONSTRAINT_*: what `constraint` is. It takes the tokenizer.json of the models.
   */
  int32_t constraint_kind;
  /**
   * What the text behind the last prompt must be, in UTF-8. It begins anew with each prompt. A stop token may come
   * where the text may end. A text that nothing can follow ends with COS_FINISH_COMPLETE. Where only one token is
   * possible, it costs no pass.
   */
  const char *constraint;
  /**
   * Length of `constraint` in bytes.
   */
  size_t constraint_length;
  /**
   * How many of the most probable tokens cos_step returns for each token, 0 to 20. If it is not 0,
   * log_probabilities counts as 1.
   */
  int32_t top_log_probabilities;
  /**
   * No run of so many tokens comes twice in prompt and text; 0 is off.
   */
  int32_t no_repeat_ngram;
  /**
   * Runs of tokens that must not come behind the last prompt: all runs in a row, or NULL. A run that the end of the
   * prompt has begun is not completed either.
   */
  const int32_t *banned_tokens;
  /**
   * The lengths of these runs, each at least 1.
   */
  const size_t *banned_lengths;
  /**
   * Number of runs.
   */
  size_t banned_count;
  /**
   * A function that says which tokens may come next, or NULL. Then constraint_kind must be 0.
   */
  cos_constraint_fn constrain;
  /**
   * Passed to `constrain`. Owned by the caller; must be valid as long as the session and its forks. May be NULL.
   */
  void *constrain_data;
  /**
   * 1: cos_step returns the log-probability of each token under each model too, and log_probabilities counts as 1.
   * 0: it does not.
   */
  int32_t model_log_probabilities;
  /**
   * 1: all log-probabilities are those before bias, penalties, bans and constraint, at temperature 1 and without
   * filters. 0: they are those that log_probabilities describes.
   */
  int32_t log_probabilities_before;
  /**
   * Locally typical sampling (arXiv 2202.00666): keep the fewest tokens whose information is nearest to the entropy,
   * and that together have this probability. 0 or 1 is off. Judged behind penalties and the constraint, at
   * temperature 1, and before the filters. A greedy session does without.
   */
  float typical_p;
  /**
   * Exclude top choices: with this probability for each position, all tokens of at least the probability
   * `xtc_threshold` are dropped but for the least probable one of them. Judged as typical_p, behind it. One outcome
   * of a position holds for all models. 0 is off.
   */
  float xtc_probability;
  /**
   * See `xtc_probability`.
   */
  float xtc_threshold;
  /**
   * DRY, a penalty for repetitions: a token that would go on with a run of n tokens that came before in prompt or
   * text loses dry_multiplier * dry_base^(n - dry_allowed_length), if n is at least dry_allowed_length. It is
   * subtracted with the presence penalty. 0 is off.
   */
  float dry_multiplier;
  /**
   * At least 1, such as 1.75.
   */
  float dry_base;
  /**
   * At least 1, such as 2.
   */
  int32_t dry_allowed_length;
  /**
   * Tokens that no run goes across, such as those of line ends; or NULL.
   */
  const int32_t *dry_breakers;
  /**
   * Length of `dry_breakers`.
   */
  size_t dry_breakers_count;
  /**
   * A function that gives the models the weights of each position, for "weighted" and "logits", or NULL. Targets are
   * then combined.
   */
  cos_weigh_fn weigh;
  /**
   * Passed to `weigh`. Owned by the caller; must be valid as long as the session and its forks. May be NULL.
   */
  void *weigh_data;
} cos_session_options;

/**
 * How a token came about.
 *
 * Since 0.1.
 */
typedef struct cos_origin {
  /**
   * One of COS_ORIGIN_*.
   */
  int32_t kind;
  /**
   * The index of the model or look-up that proposed the token, or the token that was replaced. Of a token that was
   * drawn from the distribution of one model, as with routed targets, that model. Otherwise -1.
   */
  int32_t model;
} cos_origin;

/**
 * What a step committed.
 *
 * Since 0.1.
 */
typedef struct cos_step_result {
  /**
   * sizeof(cos_step_result), set by the caller.
   */
  size_t struct_size;
  /**
   * The tokens that the step committed: at least one, unless the sequence is finished. Owned by the session; valid
   * until its next call.
   */
  const int32_t *tokens;
  /**
   * Length of `tokens`.
   */
  size_t tokens_count;
  /**
   * One of COS_FINISH_*.
   */
  int32_t finish;
  /**
   * Always 0.
   */
  int32_t reserved;
  /**
   * The natural logarithm of the probability of each token under the combined distribution; cos_session_options says
   * which. `tokens_count` values, owned and valid as `tokens`. NULL without tokens, or if
   * the options did not ask for them.
   */
  const float *log_probabilities;
  /**
   * The most probable tokens instead of each token, which may be one of them: `tokens_count` rows of `top_count`
   * tokens, best first. Where fewer are possible, the rest is -1. Owned and valid as `tokens`. NULL if `top_count`
   * is 0, or without tokens.
   */
  const int32_t *top_tokens;
  /**
   * The log-probabilities of `top_tokens`; minus infinity for the rest.
   */
  const float *top_log_probabilities;
  /**
   * top_log_probabilities of cos_session_options.
   */
  size_t top_count;
  /**
   * The log-probability of each token under the distribution of each model, as far as the options asked for it:
   * `tokens_count` rows of one value for each model, in the order of the configuration. NaN for look-ups, and for
   * models of weight 0 that have not scored the token. NULL if the options did not ask for them, or without tokens.
   */
  const float *model_log_probabilities;
  /**
   * How each token came about: `tokens_count` values, owned and valid as `tokens`. NULL without tokens, and for
   * tokens that were scored.
   */
  const struct cos_origin *origins;
} cos_step_result;

/**
 * What a server knows of a request, and how much it allows. Set all members to 0 and then struct_size for the
 * defaults.
 *
 * Since 0.1.
 */
typedef struct cos_request_options {
  /**
   * sizeof(cos_request_options), set by the caller.
   */
  size_t struct_size;
  /**
   * One of COS_REQUEST_COMPLETION and COS_REQUEST_CHAT: what the body is.
   */
  int32_t endpoint;
  /**
   * Most choices of all prompts together; 0: 128.
   */
  uint32_t max_choices;
  /**
   * Most tokens of a prompt; 0: as many as the context has.
   */
  uint32_t max_prompt_tokens;
  /**
   * Most tokens of a choice; 0: as the body says.
   */
  uint32_t max_tokens;
  /**
   * The name of the model. A body with another one is NOT_FOUND. NULL: any name is fine, and none too.
   */
  const char *model;
} cos_request_options;

/**
 * How a request stands.
 *
 * Since 0.1.
 */
typedef struct cos_request_status {
  /**
   * sizeof(cos_request_status), set by the caller.
   */
  size_t struct_size;
  /**
   * One of COS_REQUEST_OPEN, COS_REQUEST_DONE and COS_REQUEST_CANCELLED.
   */
  int32_t state;
  /**
   * 1 if the body asks for a stream.
   */
  int32_t streams;
  /**
   * Tokens of the prompts.
   */
  uint64_t prompt_tokens;
  /**
   * Tokens decoded for all choices.
   */
  uint64_t completion_tokens;
} cos_request_status;

/**
 * What is to be told of a choice of a request: what the last step brought if the body asks for a stream, and
 * otherwise all of it. Without news, all members are 0.
 *
 * Since 0.1.
 */
typedef struct cos_choice_news {
  /**
   * sizeof(cos_choice_news), set by the caller.
   */
  size_t struct_size;
  /**
   * UTF-8 without a NUL at the end; NULL if it is empty. It ends before a stop string, and may lag behind the
   * tokens. Owned by the request; valid until its next call.
   */
  const char *text;
  /**
   * Length of `text` in bytes.
   */
  size_t text_bytes;
  /**
   * The tokens, with those of a stop string or a stop token. Owned and valid as `text`.
   */
  const int32_t *tokens;
  /**
   * Length of `tokens`.
   */
  size_t tokens_count;
  /**
   * One of COS_FINISH_*: why the text has ended.
   */
  int32_t finish;
  /**
   * Always 0.
   */
  int32_t reserved;
  /**
   * As in cos_step_result, as far as the body asks for it.
   */
  const float *log_probabilities;
  /**
   * As in cos_step_result.
   */
  const int32_t *top_tokens;
  /**
   * As in cos_step_result.
   */
  const float *top_log_probabilities;
  /**
   * Alternatives of each token.
   */
  size_t top_count;
  /**
   * As in cos_step_result.
   */
  const float *model_log_probabilities;
  /**
   * As in cos_step_result.
   */
  const struct cos_origin *origins;
} cos_choice_news;

/**
 * Counts and times of a session, or of all sessions of an engine.
 *
 * Since 0.1.
 */
typedef struct cos_stats {
  /**
   * sizeof(cos_stats), set by the caller.
   */
  size_t struct_size;
  /**
   * Rounds: calls of cos_step. With cos_step_many, what it takes from one news of a session to the next.
   */
  uint64_t steps;
  /**
   * Tokens committed, without prompts.
   */
  uint64_t tokens;
  /**
   * Tokens proposed by models and look-ups.
   */
  uint64_t proposed;
  /**
   * Proposals that were accepted or rejected. The others were dropped behind a rejection or an end.
   */
  uint64_t tested;
  /**
   * Proposals accepted. accepted / tested is the acceptance rate.
   */
  uint64_t accepted;
  /**
   * Passes of all models, without those over nothing but prompt.
   */
  uint64_t forwards;
  /**
   * Positions that all models scored, without those of prompts.
   */
  uint64_t positions;
  /**
   * Nanoseconds inside ONNX Runtime, with prompts. Of a pass that several sessions share, each has the share of its
   * tokens.
   */
  uint64_t model_ns;
  /**
   * Nanoseconds inside cos_step or cos_step_many, in full for each session. A call for many counts until the session
   * has its tokens, and planned_ns until it ends.
   */
  uint64_t total_ns;
  /**
   * Greedy choices between two nearly equal scores. A pass of another width may choose the other token.
   */
  uint64_t near_ties;
  /**
   * Nanoseconds inside cos_step with COS_STRATEGY_AUTO, from the first evaluation of the plan on, without passes
   * over prompts. In cos_step_many it includes the time that the other sessions of the call take. An earlier session
   * of the engine that decoded the same way may have made that evaluation. expected_ns and standard_ns count the
   * same tokens. The measured gain of planning is standard_ns / planned_ns, and the expected gain is standard_ns /
   * expected_ns.
   */
  uint64_t planned_ns;
  /**
   * Nanoseconds that these tokens were expected to take when their plan was chosen.
   */
  uint64_t expected_ns;
  /**
   * Nanoseconds that COS_STRATEGY_STANDARD would have taken for these tokens, by the measured times of passes.
   */
  uint64_t standard_ns;
  /**
   * Rows of logits that a model on a GPU leaves there and that had to be copied to the host. The reasons are combine
   * functions, top_log_probabilities, models that run elsewhere, a plausibility that is judged once more because no
   * plausible token is possible, and filters that the GPU cannot finish: very many tokens have nearly the same
   * score, or top_k or top_p reaches tokens less than e^-16 times as likely as the best. 0 if the GPU did all work
   * on rows. Rows that are always on the host do not count.
   */
  uint64_t rows_copied;
  /**
   * Tokens that a model did not have to compute, because a session with the same beginning had computed them. Those
   * of all models add up: a prompt of 100 tokens that two models know counts as 200. Whole blocks of the cache are
   * found, so a prompt shorter than a block counts nothing (cos_engine_describe, "cache_block_tokens").
   */
  uint64_t prefix_tokens;
  /**
   * Tokens that a model has computed once more, because their memory was taken for a session that was started
   * earlier, or while the session rested. If this grows as fast as `tokens`, the cache is too small for the number
   * of sessions.
   */
  uint64_t recomputed_tokens;
} cos_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the library, such as "0.1.0". Never fails. May be called from any thread at any time.
 *
 * @return a string of ASCII that is valid as long as the library is loaded
 * Since 0.1.
 */
const char *cos_version(void);

/**
 * The code of an error. The values never change.
 *
 * @param error  may be NULL
 * @return one of COS_ERROR_*, or 0 if `error` is NULL, which means success
 * Since 0.1.
 */
int32_t cos_error_code(const struct cos_error *error);

/**
 * The message of an error, for people: what is wrong, and how to mend it where that is known.
 *
 * @param error  may be NULL
 * @return one sentence in UTF-8, valid until the error is freed; empty if `error` is NULL
 * Since 0.1.
 */
const char *cos_error_message(const struct cos_error *error);

/**
 * The status of HTTP with which a server answers a request that met this error: 400, 404, 500 or 503.
 *
 * @param error  may be NULL
 * @return the status, or 200 if `error` is NULL
 * Since 0.1.
 */
int32_t cos_error_status(const struct cos_error *error);

/**
 * The body with which a server of OpenAI's protocol answers a request that met this error, and the event if it
 * streams: `{"error": {"message": ..., "type": ..., "param": null, "code": ...}}`.
 *
 * @param error  may be NULL
 * @return JSON in UTF-8, valid until the error is freed; empty if `error` is NULL
 * Since 0.1.
 */
const char *cos_error_json(const struct cos_error *error);

/**
 * Free an error.
 *
 * @param error  may be NULL, which does nothing
 * Since 0.1.
 */
void cos_error_free(struct cos_error *error);

/**
 * Make an engine from a configuration file. Loads the models and their tokenizer, which can take many seconds.
 *
 * The file is a JSON object in UTF-8. Relative paths in it are relative to its folder. "models" and "combine" are
 * required, and all other keys have defaults. An unknown key is an error that names the key:
 *
 *     {
 *       "models": [                    1 to 64 models; all arrays of this interface have their order
 *         {
 *           "path": "base",            an .onnx file, or a folder that holds one
 *           "provider": "cpu",         default "cpu"; "cuda" runs the model on an NVIDIA GPU
 *           "device_id": 0,            default 0; the number of the GPU
 *           "options": {},             options of ONNX Runtime's CUDA provider, by its names: "gpu_mem_limit" (in
 *                                      bytes), "enable_cuda_graph" (false: capture no passes) and others
 *           "rows": "gpu",             where a model on a GPU leaves its rows of logits: "gpu" or "host"; default:
 *                                      "gpu" if the rows are long
 *           "name": "base",            the name in messages; default: the name of the folder
 *           "context_length": 4096,    most tokens of a sequence; default: what the export says
 *           "cache_bytes": 4294967296, most bytes that the caches of all sessions take together, if passes of the
 *                                      model serve several sessions. At least one sequence of the context length must
 *                                      fit, and the 256 tokens of the trial at load. Default: half of the memory that
 *                                      is free when the engine is made, on the model's device, shared equally by all
 *                                      models; on a GPU at most what 256 sequences of the context length need. A CPU
 *                                      gives it as it is used, a GPU at once.
 *           "scoring": "parallel"      how the positions of a draft are scored: "parallel" (in one pass) or
 *                                      "one_by_one"; default: parallel if both give the same logits when the
 *                                      model is loaded. "parallel" refuses a model for which they differ.
 *         },
 *         { "kind": "ngram" }          a look-up, optional: it proposes the tokens that followed when the last
 *                                      tokens occurred before. It never scores and its drafts cost no pass. It
 *                                      counts as a model, has the weight 0, and takes no other key than "name".
 *                                      The default "kind" of a model is "onnx".
 *       ],
 *       "combine":                     one of
 *         { "kind": "weighted", "weights": [0.5, 0.5] }              a weighted sum of the distributions
 *         { "kind": "contrastive", "mu": 0.1, "plausibility": 0 }    model 0 is the expert, model 1 the amateur
 *         { "kind": "logits", "weights": [1, 0.5, -0.5] }            a weighted sum of the logits
 *         { "kind": "target", "model": 0 }                           one model; the other models only draft
 *       "threads": 0,                  size of the thread pool that all models of the process share; default 0: one
 *                                      thread for each physical core that the process may use. More threads than
 *                                      cores never spin.
 *       "spinning": true,              default true: idle threads of the pool stay awake for a while. false suits
 *                                      machines that run other work too.
 *       "overlap": true,               whether independent passes of models on GPUs and of other models run at the
 *                                      same time; default: if a measurement of some milliseconds shows a gain
 *       "greedy_below": 0.01,          sessions with a temperature below this are greedy; default 0: off. For
 *                                      clients that send a small temperature and mean 0.
 *       "when_full": "wait",           what becomes of a new session while the caches of others take all memory that
 *                                      they may: default "wait": its first step waits; "refuse": its first step is
 *                                      the error NO_MEMORY. Sessions that have begun always wait.
 *       "routes": "shared",            "own" or "shared", for sessions with COS_ROUTES_AUTO; default: shared for
 *                                      COS_STRATEGY_AUTO, own for all others
 *       "onnxruntime": "libonnxruntime.so"    the file of ONNX Runtime
 *     }
 *
 * The process loads ONNX Runtime (1.24 or newer) once, from the first of these that is given or exists: the path in
 * the environment variable ORT_DYLIB_PATH; "onnxruntime" of the first configuration; libonnxruntime.so in the folder
 * of libcos.so, or in a folder onnxruntime there; the library that the system's loader finds.
 *
 * May be called from any thread at any time.
 *
 * @param config_path  path of the file in UTF-8, must not be NULL
 * @param out_engine   out, must not be NULL; owned by the caller, who frees it with cos_engine_free
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, CONFIG, MODEL (a file is missing or
 *         corrupt, a model is not a language model, or the vocabularies or tokenizers differ), RUNTIME,
 *         UNSUPPORTED (drafts could not be verified with an export; the message says why)
 * Since 0.1.
 */
struct cos_error *cos_engine_open(const char *config_path, struct cos_engine **out_engine);

/**
 * Make an engine from the text of a configuration, in the format of cos_engine_open. Relative paths in it are relative
 * to the working directory. May be called from any thread at any time.
 *
 * @param config_json  UTF-8, ends with NUL, must not be NULL
 * @param out_engine   out, must not be NULL; owned by the caller, who frees it with cos_engine_free
 * @return as for cos_engine_open
 * Since 0.1.
 */
struct cos_error *cos_engine_new(const char *config_json, struct cos_engine **out_engine);

/**
 * Free an engine. Its sessions, its text streams and running calls go on: they keep the models alive until they end.
 * No other call with the engine may begin from now on. In a child of fork(), an engine of the parent stays as it is.
 *
 * @param engine  may be NULL, which does nothing
 * Since 0.1.
 */
void cos_engine_free(struct cos_engine *engine);

/**
 * The number of tokens in the vocabulary that all models share. Tokens are 0 to this number - 1. Never fails. May be
 * called from any thread at any time.
 *
 * @param engine  may be NULL
 * @return the number of tokens, or 0 if `engine` is NULL
 * Since 0.1.
 */
size_t cos_engine_vocab_size(const struct cos_engine *engine);

/**
 * The number of models, look-ups included: the length of proposal_lengths and weights in cos_session_options. Their
 * order is that of the configuration. Never fails. May be called from any thread at any time.
 *
 * @param engine  may be NULL
 * @return the number of models, or 0 if `engine` is NULL
 * Since 0.1.
 */
size_t cos_engine_model_count(const struct cos_engine *engine);

/**
 * Prepare an engine for load, before users wait: run the passes that sessions of all strategies will need most, first
 * those of a few sessions, then those of many. For servers, between cos_engine_open and the first request.
 *
 * On a GPU, a pass of a size that the engine has not met takes many times as long, because it is planned and captured.
 * Without preparation, users wait for that. On a processor there is less to gain: memory is touched, and
 * COS_STRATEGY_AUTO learns what passes take. Whenever it ends, what was prepared stays so.
 *
 * The passes are over made-up tokens. They count in no statistics, and no session finds what they have computed.
 * Sessions of other threads may decode meanwhile. Their passes may take longer, and where memory is short, they have
 * it. May be called from any thread at any time, and more than once.
 *
 * @param engine     must not be NULL
 * @param options    NULL for the defaults; else its `struct_size` must be set
 * @param out_share  out: the share that was done, 1 if all; may be NULL
 * @return NULL, also if the time was over or `progress` has stopped it, or an error to free with cos_error_free:
 *         INVALID_ARGUMENT (the message names the member), UNSUPPORTED (a member is set that this library does not
 *         know), RUNTIME, NUMERIC
 * Since 0.1.
 */
struct cos_error *cos_engine_prepare(const struct cos_engine *engine,
                                     const struct cos_prepare_options *options,
                                     double *out_share);

/**
 * Start an empty sequence. May be called from any thread at any time.
 *
 * @param engine       must not be NULL; may be freed before the session
 * @param options      NULL: greedy, with an automatic strategy. Otherwise `struct_size` must be set.
 * @param out_session  out, must not be NULL; owned by the caller, who frees it with cos_free
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (the message names the member),
 *         UNSUPPORTED (a member that this version does not know is set), RUNTIME
 * Since 0.1.
 */
struct cos_error *cos_session_new(const struct cos_engine *engine,
                                  const struct cos_session_options *options,
                                  struct cos_session **out_session);

/**
 * Decode by other options from the next token on: temperature, top_k, top_p, min_p, max_tokens, stop_tokens,
 * penalties, bias, bans, min_tokens, the constraint, and log-probabilities. Committed tokens stay, and all tokens
 * behind them have the distribution of the new options. May be called between steps.
 *
 * strategy, targets, seed, proposal_lengths, routes and priority must be those of cos_session_new. The seed of a
 * fork is that of cos_session_fork. weights, combine and weigh are not read, so the functions of cos_session_new
 * stay, with their data: cos_session_set_weights changes weights. A text that max_tokens has ended goes on if it is
 * now larger, and one that a constraint has completed if that is now another one. A constraint sees the whole text
 * behind the last prompt, so it must allow what is there: else the next step returns NUMERIC.
 *
 * On error, nothing changes. One thread at a time.
 *
 * @param session  in/out, must not be NULL, not in use on another thread (BUSY)
 * @param options  must not be NULL; `struct_size` must be set. All members count, so give the old ones with changes.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (as for cos_session_new, or a member is
 *         another one that cannot change), UNSUPPORTED, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_set_options(struct cos_session *session, const struct cos_session_options *options);

/**
 * Share computed tokens with sessions of the same scope only, such as those of one tenant. Without a scope, a session
 * finds what any session of the engine without a scope has computed, and its time tells whether somebody has asked
 * the same before. To be called before the first prompt. One thread at a time.
 *
 * @param session  in/out, must not be NULL, not in use on another thread (BUSY)
 * @param scope    UTF-8, ends with NUL, copied; must not be NULL. Sessions with equal scopes share; "" is no scope.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also if the session has tokens), BUSY,
 *         POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_set_scope(struct cos_session *session, const char *scope);

/**
 * Copy a session in its present state: the tokens, and the options with another seed. It costs no pass, and no copy of
 * what was computed: both share that ("cache_blocks" in cos_engine_describe). A model whose sessions do not share a
 * cache computes the tokens anew in the next steps of the copy.
 *
 * Each goes on with random numbers of its own, also with equal seeds: given the tokens so far, what they decode is
 * independent. The same calls with the same seeds give the same numbers. The copy has statistics of its own and is
 * cancelled on its own. It begins between two steps, also if cos_step_many is in the middle of a round of the session,
 * and drafts anew what was drafted ahead. The functions of the options and their data serve both, perhaps at the same
 * time.
 *
 * One thread at a time.
 *
 * @param session      must not be NULL, not in use on another thread (BUSY)
 * @param seed         of the copy
 * @param out_session  out, must not be NULL; owned by the caller, who frees it with cos_free
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, RUNTIME, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_fork(const struct cos_session *session, uint64_t seed, struct cos_session **out_session);

/**
 * Forget all tokens from index `length` on, those of prompts too. What is decoded there next is drawn with new random
 * numbers. The sequence goes on, also if it had finished, unless max_tokens tokens stand behind the last prompt that
 * is left. A round that cos_step_many has begun is given up. With the length of the sequence, only that is done. One
 * thread at a time.
 *
 * @param session  in/out, must not be NULL, not in use on another thread (BUSY)
 * @param length   tokens to keep; at most those of the sequence, prompts included. With 0, cos_prompt comes next.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_rewind(struct cos_session *session, size_t length);

/**
 * Save a session: its tokens, options and random numbers, without what models have computed. cos_session_restore makes
 * a session of the bytes that goes on where this one stands: with the same numbers if nothing is drafted ahead, and
 * else with new ones of the same distribution. The session stays as it is.
 *
 * The bytes hold the prompt and the text. They have a version and a checksum. One thread at a time.
 *
 * @param session   must not be NULL, not in use on another thread (BUSY)
 * @param buffer    out: the bytes, in a buffer of the caller; may be NULL if `capacity` is 0
 * @param capacity  length of `buffer`. 0: the bytes are only counted.
 * @param out_size  out, must not be NULL: the number of bytes
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUFFER_TOO_SMALL (nothing is written),
 *         UNSUPPORTED (the options of the session have a function, which bytes cannot hold), BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_save(const struct cos_session *session, void *buffer, size_t capacity, size_t *out_size);

/**
 * Make a session of the bytes of cos_session_save, in this or in another process. The engine must have the same models
 * in the same order, and combine them in the same way. Its first step computes all tokens, as after a prompt.
 *
 * Bytes that were changed are an error. So are those of another version of the format, which the message names. May be
 * called from any thread at any time.
 *
 * @param engine       must not be NULL; may be freed before the session
 * @param bytes        must not be NULL
 * @param size         length of `bytes`
 * @param out_session  out, must not be NULL; owned by the caller, who frees it with cos_free
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (the bytes are damaged, or the engine
 *         differs; the message says how), UNSUPPORTED (another version of the format), CONTEXT_FULL, RUNTIME
 * Since 0.1.
 */
struct cos_error *cos_session_restore(const struct cos_engine *engine,
                                      const void *bytes,
                                      size_t size,
                                      struct cos_session **out_session);

/**
 * Append tokens to the sequence: the first prompt, or the next turn of a chat. A finished sequence goes on.
 *
 * The call does not run a model. The next step does, so cos_cancel can stop a long prompt. On error, nothing is
 * appended. One thread at a time.
 *
 * @param session       in/out, must not be NULL, not in use on another thread (BUSY)
 * @param tokens        copied; must not be NULL
 * @param tokens_count  at least 1
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no tokens, or a token outside the
 *         vocabulary), CONTEXT_FULL, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_prompt(struct cos_session *session, const int32_t *tokens, size_t tokens_count);

/**
 * Append tokens as cos_prompt does, and tell their log-probabilities under the combined distribution: of a prompt, or
 * of an answer that is to be judged. All models that the combination needs run over the tokens, so the call takes as
 * long as a step with such a prompt. The options of the session say which log-probabilities there are; bias, penalties
 * and the constraint have no effect here, because the text begins behind these tokens.
 *
 * Nothing comes before the first token of a sequence: its log-probabilities are NaN, and its top_tokens are -1. If
 * cos_cancel stops the call, it finishes with COS_FINISH_CANCELLED and no tokens. On error and if it is cancelled,
 * nothing is appended. One thread at a time.
 *
 * @param session       in/out, must not be NULL, not in use on another thread (BUSY)
 * @param tokens        copied; must not be NULL
 * @param tokens_count  at least 1
 * @param out_result    out, must not be NULL; `struct_size` must be set. Its tokens are the given ones. The session
 *                      owns the arrays, which are valid until its next call.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (as for cos_prompt, or the options do not
 *         ask for log-probabilities), CONTEXT_FULL, and those of cos_step
 * Since 0.1.
 */
struct cos_error *cos_session_score(struct cos_session *session,
                                    const int32_t *tokens,
                                    size_t tokens_count,
                                    struct cos_step_result *out_result);

/**
 * Advance the sequence by one round of collaborative decoding.
 *
 * Commits at least one token, unless the sequence is finished: then it commits none, and finish has the reason again.
 * After COS_FINISH_CANCELLED, the next step goes on behind the last committed token. On error, nothing is committed,
 * `out_result` is untouched, and the next step tries again. One thread at a time.
 *
 * @param session     in/out, must not be NULL, not in use on another thread (BUSY)
 * @param out_result  out, must not be NULL; `struct_size` must be set. The session owns `tokens` and
 *                    `log_probabilities`, which are valid until its next call.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no prompt yet), NUMERIC, RUNTIME,
 *         CALLBACK, NO_MEMORY (the caches of other sessions take all memory, nothing was decoded yet, and the
 *         configuration says "when_full": "refuse"; nothing is lost, and a later step tries again), BUSY, POISONED,
 *         INTERNAL (poisons the session)
 * Since 0.1.
 */
struct cos_error *cos_step(struct cos_session *session, struct cos_step_result *out_result);

/**
 * Stop the running step, or the next one if none is running. The step ends early with COS_FINISH_CANCELLED, and all
 * committed tokens stay. May be called from any thread at any time until cos_free is called. Never waits for a pass.
 * If the running step ends by itself before it can be stopped, the next one is stopped, unless the sequence has
 * finished.
 *
 * A step that cannot run is not cancelled: that of a finished sequence gives its reason again, and that of a session
 * without a prompt its error. The cancel then stays, and stops the first step behind the next prompt. Several cancels
 * before a step stop that step only.
 *
 * @param session  must not be NULL
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
 * Since 0.1.
 */
struct cos_error *cos_cancel(struct cos_session *session);

/**
 * Free a session. In a child of fork(), a session of the parent stays as it is.
 *
 * Calls that are running on other threads complete: a step is cancelled, and this call waits for it. No call with the
 * session may begin from now on, not even cos_cancel. So make sure that no thread will still call cos_cancel, for
 * example by joining that thread, or with a lock of your own.
 *
 * @param session  may be NULL, which does nothing
 * Since 0.1.
 */
void cos_free(struct cos_session *session);

/**
 * Change the weights from the next token on, for "weighted" and "logits". May be called between steps, and before the
 * first prompt. Committed tokens stay, and all tokens behind them have the distribution of the new weights.
 *
 * A weight that becomes 0, or that was 0, may change which models run, and so how many tokens the context holds.
 *
 * If you change weights because a step was cancelled or failed, decode with COS_TARGETS_COMBINED. The time of a routed
 * step depends on the model that was drawn, so cancelling slow steps would select among tokens and bias them. What
 * another session does just now may tell the next route of one with COS_ROUTES_SHARED. If you change weights because
 * of that, decode with COS_ROUTES_OWN.
 *
 * On error, nothing changes. One thread at a time.
 *
 * @param session        in/out, must not be NULL, not in use on another thread (BUSY)
 * @param weights        copied; must not be NULL
 * @param weights_count  number of models
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (as for the weights of cos_session_options,
 *         or the session has a combine function), CONTEXT_FULL (the sequence is longer than the context of a model
 *         whose weight was 0), BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_set_weights(struct cos_session *session, const float *weights, size_t weights_count);

/**
 * Advance many sessions by one pass of each model: for servers with an event loop, where one thread drives all.
 *
 * Each session goes on with its round until it needs a pass. Then each model runs one pass for all that need one. Then
 * each session goes on until it needs the next pass, or has news. A round takes one pass of each model without drafts,
 * and more with drafts or a long prompt; so a session has news in most calls, but not in all. A session with news has
 * committed tokens, or a finish, as by cos_step. A session without news has tokens_count 0, finish 0 and no error: it
 * is in the middle of a round, and the next call goes on there.
 *
 * Call it in a loop with all sessions that are open, and take out those that have finished. New ones may come and go
 * from call to call, in any order. Calls of cos_step, cos_step_many and cos_prompt with one session may follow each
 * other: cos_step completes the round, and cos_prompt gives it up, as cos_session_set_weights does.
 *
 * The sessions may belong to several engines; each engine runs passes of its own. Each session has the distribution,
 * or the greedy text, that it has with cos_step. No session waits for the next call of another: what does not fit into
 * a pass comes first in the next one. Prompts are run in chunks beside the sessions that decode, those of the oldest
 * sessions first. Passes are combined with those of other threads that call cos_step or cos_step_many at the same
 * time.
 *
 * An error of one session is its own, and the others go on. These are errors of a session: it is NULL, was given
 * before in the same call (INVALID_ARGUMENT), is in use on another thread (BUSY), or any error of cos_step. A session
 * that has finished answers as cos_step does: its finish again. cos_cancel works as for cos_step.
 *
 * @param sessions     the sessions, in use by no other thread; may be NULL if `count` is 0
 * @param count        number of sessions; 0 does nothing
 * @param out_results  out, `count` results, whose `struct_size` must be set in all; may be NULL if `count` is 0. A
 *                     session owns its `tokens` and `log_probabilities`, which are valid until its next call.
 * @param out_errors   out, `count` errors, each NULL or to be freed with cos_error_free; may be NULL if `count` is 0.
 *                     What it held before is overwritten. A session with an error has a result without news.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (an array is NULL, `count` is absurd, or
 *         struct_sizes are wrong or differ; then nothing was done or written), INTERNAL (poisons the sessions; those
 *         that had errors before have them in out_errors)
 * Since 0.1.
 */
struct cos_error *cos_step_many(struct cos_session *const *sessions,
                                size_t count,
                                struct cos_step_result *out_results,
                                struct cos_error **out_errors);

/**
 * Encode a text as tokens, with the tokenizer.json beside the models. May be called from any thread at any time.
 *
 * @param engine       must not be NULL
 * @param text         UTF-8, `text_bytes` bytes; need not end with NUL
 * @param text_bytes   length of `text` in bytes
 * @param add_special  the sum of COS_ENCODE_*, or 0.
 *                     COS_ENCODE_ADD_SPECIAL: add the tokens that the post_processor of tokenizer.json puts around a
 *                     text. If tokenizer_config.json asks for others, cos_engine_describe has a warning.
 *                     COS_ENCODE_PLAIN: the names of special tokens in the text, such as "<|im_end|>", become tokens
 *                     of plain text. Without it, they become these special tokens, so set it for what users say.
 * @param tokens       out: the tokens, in a buffer of the caller; may be NULL if `capacity` is 0
 * @param capacity     length of `tokens`. 0: the tokens are only counted. One token for each byte of the text and a
 *                     few more are always enough.
 * @param out_count    out, must not be NULL: the number of tokens
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also if the text has a token that the
 *         models do not have, or a special token that cannot be plain text), BUFFER_TOO_SMALL (nothing is written),
 *         UNSUPPORTED (no model has a tokenizer.json)
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
 * Decode tokens to text, with the tokenizer.json beside the models. Special tokens give no text. Bytes that do not
 * form a character become U+FFFD.
 *
 * The first token begins the text, and some tokenizers drop the space before the first word. So for tokens that
 * continue a prompt, or to decode piece by piece, use cos_text_stream_new. May be called from any thread at any time.
 *
 * @param engine        must not be NULL
 * @param tokens        `tokens_count` tokens; may be NULL if that is 0
 * @param tokens_count  length of `tokens`
 * @param text          out: UTF-8 without a NUL at the end, in a buffer of the caller; may be NULL if `capacity` is 0
 * @param capacity      length of `text` in bytes. 0: the bytes are only counted.
 * @param out_bytes     out, must not be NULL: the number of bytes
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUFFER_TOO_SMALL (nothing is written),
 *         UNSUPPORTED (no model has a tokenizer.json)
 * Since 0.1.
 */
struct cos_error *cos_engine_decode(const struct cos_engine *engine,
                                    const int32_t *tokens,
                                    size_t tokens_count,
                                    char *text,
                                    size_t capacity,
                                    size_t *out_bytes);

/**
 * As cos_engine_decode, but special tokens give their names, such as "<|im_end|>". For logs, and for text that another
 * program parses. May be called from any thread at any time.
 *
 * @param engine        must not be NULL
 * @param tokens        as for cos_engine_decode
 * @param tokens_count  length of `tokens`
 * @param text          as for cos_engine_decode
 * @param capacity      length of `text` in bytes. 0: the bytes are only counted.
 * @param out_bytes     out, must not be NULL: the number of bytes
 * @return NULL, or an error to free with cos_error_free: those of cos_engine_decode
 * Since 0.1.
 */
struct cos_error *cos_engine_decode_special(const struct cos_engine *engine,
                                            const int32_t *tokens,
                                            size_t tokens_count,
                                            char *text,
                                            size_t capacity,
                                            size_t *out_bytes);

/**
 * Start a stream of text. May be called from any thread at any time.
 *
 * @param engine      must not be NULL; may be freed before the stream
 * @param out_stream  out, must not be NULL; owned by the caller, who frees it with cos_text_stream_free
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, UNSUPPORTED (no model has a
 *         tokenizer.json)
 * Since 0.1.
 */
struct cos_error *cos_text_stream_new(const struct cos_engine *engine, struct cos_text_stream **out_stream);

/**
 * Set the prompt that the text continues. The call is optional. It must come before the first push, or after
 * cos_text_stream_finish. The stream gives no text for the tokens of the prompt.
 *
 * With some tokenizers, the start of the text depends on the prompt: no space begins the text if the prompt is empty,
 * has no text (such as a start token alone), or ends within a word. On error, nothing changes. One thread at a time.
 *
 * @param stream        in/out, must not be NULL, not in use on another thread (BUSY)
 * @param tokens        all tokens before the text, such as those of cos_prompt; NULL if there are none
 * @param tokens_count  length of `tokens`; 0: the next token that is pushed begins the text
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also after a push), BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_prompt(struct cos_text_stream *stream, const int32_t *tokens, size_t tokens_count);

/**
 * Set whether special tokens give their names as text, such as "<|im_end|>". A new stream shows none. The call must
 * come before the first push, or after cos_text_stream_finish, and holds for later texts too. The prompt is unknown
 * again, so call cos_text_stream_prompt behind it. On error, nothing changes. One thread at a time.
 *
 * @param stream  in/out, must not be NULL, not in use on another thread (BUSY)
 * @param show    not 0: special tokens give their names
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also after a push), BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_show_special(struct cos_text_stream *stream, int32_t show);

/**
 * Set the stop strings: the text ends before the first one that appears in it. They replace those set before. Text
 * that was given out already stays.
 *
 * The first stop string is the one that is complete first. If several are complete at the same place, it is the
 * longest of them. A stop string may span tokens. Special tokens give no text, but a stop string may be or contain the
 * name of one, such as "<|im_end|>". On error, nothing changes. One thread at a time.
 *
 * @param stream       in/out, must not be NULL, not in use on another thread (BUSY)
 * @param stops        copied: `stops_count` strings in UTF-8, which need not end with NUL. None may be empty, and
 *                     together they may have 16 MiB.
 * @param stops_bytes  the length of each string in bytes
 * @param stops_count  length of `stops` and of `stops_bytes`; 0: no stop strings
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_set_stops(struct cos_text_stream *stream,
                                            const char *const *stops,
                                            const size_t *stops_bytes,
                                            size_t stops_count);

/**
 * Tell whether a stop string has ended the text. If it has, pushed tokens give no more text until
 * cos_text_stream_finish is called. After that call, the answer is about the finished text until the next push. May be
 * called from any thread until cos_text_stream_free is called: while another call runs, the answer is from before it.
 *
 * @param stream  may be NULL
 * @return 1 if a stop string has ended the text; otherwise 0, also if `stream` is NULL
 * Since 0.1.
 */
int32_t cos_text_stream_stopped(const struct cos_text_stream *stream);

/**
 * Push tokens, such as those of a step, and get the text that they complete. The stream holds back the bytes of an
 * unfinished character, and text that may become a stop string. On error, no token is taken. One thread at a time.
 *
 * @param stream        in/out, must not be NULL, not in use on another thread (BUSY)
 * @param tokens        `tokens_count` tokens; may be NULL if that is 0
 * @param tokens_count  length of `tokens`; may be 0, and such a call does not count as a push
 * @param out_text      out, must not be NULL: UTF-8 without a NUL at the end; owned by the stream and valid until its
 *                      next call
 * @param out_bytes     out, must not be NULL: length of the text in bytes, possibly 0
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_push(struct cos_text_stream *stream,
                                       const int32_t *tokens,
                                       size_t tokens_count,
                                       const char **out_text,
                                       size_t *out_bytes);

/**
 * Finish the text and get its rest: what the stream held back, up to a stop string. Bytes that do not form a character
 * become U+FFFD. The next push starts a new text with the same stop strings, and without a prompt that was set. One
 * thread at a time.
 *
 * @param stream     in/out, must not be NULL, not in use on another thread (BUSY)
 * @param out_text   as for cos_text_stream_push
 * @param out_bytes  as for cos_text_stream_push
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY
 * Since 0.1.
 */
struct cos_error *cos_text_stream_finish(struct cos_text_stream *stream, const char **out_text, size_t *out_bytes);

/**
 * Free a stream of text. Calls that are running on other threads complete. No call with the stream may begin from now
 * on.
 *
 * @param stream  may be NULL, which does nothing
 * Since 0.1.
 */
void cos_text_stream_free(struct cos_text_stream *stream);

/**
 * Render messages to text with the chat template beside the models, as `apply_chat_template(tokenize=False)` of
 * transformers 5 does. May be called from any thread at any time.
 *
 * `messages_json` is an array of messages as in OpenAI's interface, or an object that has more:
 *
 *     {
 *       "messages": [ { "role": "user", "content": "Hello" } ],   at least one
 *       "tools": [ ... ],                  optional: the schemas of the functions that the model may call
 *       "documents": [ ... ],              optional: objects with a title and a text
 *       "template": "tool_use",            optional: one of the chat_templates of cos_engine_describe
 *       "enable_thinking": false           any other key is a variable of the template
 *     }
 *
 * The templates are those of the first model that has some beside its tokenizer.json: `chat_template.jinja` and
 * `additional_chat_templates/NAME.jinja`, or else those of tokenizer_config.json, or else chat_template.json. Without
 * "template", "tool_use" is taken if there are tools and such a template, or else "default". A template is a program:
 * it cannot read files, and its steps are counted, but one made to do harm may end the process. So trust it as you
 * trust its model.
 *
 * A message goes to the template as it is, but for two things that transformers does too. Its keys that are null are
 * left out, and its `reasoning_content`, `thinking` or `reasoning` is there under the first two names. A key that the
 * template does not read is an error, because it would do nothing.
 *
 * The text holds control tokens by their names, and what users say as they said it. To get tokens, call
 * cos_engine_chat_encode. It keeps what users say from becoming control tokens.
 *
 * @param engine                 must not be NULL
 * @param messages_json          JSON in UTF-8, `length` bytes; need not end with NUL; at most 128 levels deep
 * @param length                 length of `messages_json` in bytes
 * @param add_generation_prompt  not 0: end with what begins an answer of the assistant
 * @param buffer                 out: UTF-8 without a NUL at the end, in a buffer of the caller; may be NULL if
 *                               `capacity` is 0
 * @param capacity               length of `buffer` in bytes. 0: the bytes are only counted.
 * @param out_length             out, must not be NULL: the number of bytes
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also if the template refuses the messages,
 *         fails on them, or takes too many steps), BUFFER_TOO_SMALL (nothing is written), UNSUPPORTED (no model has
 *         a tokenizer.json and a chat template that can be used)
 * Since 0.1.
 */
struct cos_error *cos_engine_chat(const struct cos_engine *engine,
                                  const char *messages_json,
                                  size_t length,
                                  int32_t add_generation_prompt,
                                  char *buffer,
                                  size_t capacity,
                                  size_t *out_length);

/**
 * Render messages and encode them as tokens, so that only the template writes control tokens. It is
 * `apply_chat_template(sanitize_control_tokens=True)` of transformers 5. May be called from any thread at any time.
 *
 * The text is that of cos_engine_chat. Where a string of `messages_json` has the name of a control token, that name
 * becomes tokens of plain text. Control tokens are the special tokens of the tokenizer, and the other added tokens
 * that the template has in its source. `chat_control_tokens` of tokenizer_config.json may list these others instead.
 *
 * Keys of objects are not searched. A template may join a string of a message with other text to a control token, such
 * as the role in "<|user|>", so check the roles of messages. The characters U+F0000 and U+F0001 are removed from what
 * `messages_json` says.
 *
 * @param engine                 must not be NULL
 * @param messages_json          as for cos_engine_chat
 * @param length                 length of `messages_json` in bytes
 * @param add_generation_prompt  not 0: end with what begins an answer of the assistant
 * @param tokens                 out: the tokens, in a buffer of the caller; may be NULL if `capacity` is 0. They are
 *                               the whole prompt: the template writes the start token where the model wants one.
 * @param capacity               length of `tokens`. 0: the tokens are only counted.
 * @param out_count              out, must not be NULL: the number of tokens
 * @return NULL, or an error to free with cos_error_free: those of cos_engine_chat, and INVALID_ARGUMENT if a control
 *         token in a message cannot be plain text, or the text has a token that the models do not have
 * Since 0.1.
 */
struct cos_error *cos_engine_chat_encode(const struct cos_engine *engine,
                                         const char *messages_json,
                                         size_t length,
                                         int32_t add_generation_prompt,
                                         int32_t *tokens,
                                         size_t capacity,
                                         size_t *out_count);

/**
 * Check the body of a request, and start the sessions that it asks for. Nothing is decoded yet: all faults of a body
 * are found here, before any part of an answer is sent. May be called from any thread at any time.
 *
 * docs/requests.md lists the members of a body. They are those of OpenAI's interface, and those that other servers
 * have added to it, such as "top_k", "min_p" and "structured_outputs". What only this library has is in "cos".
 *
 * @param engine       must not be NULL; may be freed before the request
 * @param options      must not be NULL; `struct_size` must be set
 * @param body         JSON in UTF-8; need not end with NUL
 * @param body_bytes   length of `body` in bytes
 * @param out_request  out, must not be NULL; owned by the caller, who frees it with cos_request_free
 * @return NULL, or an error to free with cos_error_free, which cos_error_status and cos_error_json turn into an
 *         answer: INVALID_ARGUMENT (the message names the member), UNSUPPORTED (as before, or a member of `options`
 *         is set that this library does not know), NOT_FOUND, CONTEXT_FULL (a prompt is too long), RUNTIME
 * Since 0.1.
 */
struct cos_error *cos_request_new(const struct cos_engine *engine,
                                  const struct cos_request_options *options,
                                  const char *body,
                                  size_t body_bytes,
                                  struct cos_request **out_request);

/**
 * The number of choices: prompts times "n". Each decodes in a session of its own, so a server may count them against
 * what it decodes at once. Never fails. May be called from any thread at any time until cos_request_free is called.
 *
 * @param request  may be NULL
 * @return the number of choices, or 0 if `request` is NULL
 * Since 0.1.
 */
size_t cos_request_choices(const struct cos_request *request);

/**
 * Decode until a choice has news if the body asks for a stream, and otherwise to the end. All choices of the request
 * share passes, and those of other threads too. The first choice of a prompt goes ahead of the others, which then find
 * the prompt computed.
 *
 * An error of a choice ends the request. One thread at a time.
 *
 * @param request     in/out, must not be NULL, not in use on another thread (BUSY)
 * @param out_status  out, must not be NULL; `struct_size` must be set
 * @return NULL, or an error to free with cos_error_free: those of cos_step, and each later step returns it again
 * Since 0.1.
 */
struct cos_error *cos_request_step(struct cos_request *request, struct cos_request_status *out_status);

/**
 * How a request stands, such as before its first step. One thread at a time.
 *
 * @param request     must not be NULL, not in use on another thread (BUSY)
 * @param out_status  out, must not be NULL; `struct_size` must be set
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED, and the error that has
 *         ended the request
 * Since 0.1.
 */
struct cos_error *cos_request_get_status(const struct cos_request *request, struct cos_request_status *out_status);

/**
 * Advance many requests by one pass of each model, as cos_step_many does with sessions: for servers where one thread
 * drives all. Call it in a loop with all requests that are open. Those without news are in the middle of a round.
 *
 * An error of one request is its own, and the others go on. These are errors of a request: it is NULL, was given
 * before in the same call (INVALID_ARGUMENT), is in use on another thread (BUSY), or any error of cos_request_step.
 *
 * @param requests     the requests, in use by no other thread; may be NULL if `count` is 0
 * @param count        number of requests; 0 does nothing
 * @param out_results  out, `count` results, whose `struct_size` must be set in all; may be NULL if `count` is 0
 * @param out_errors   out, `count` errors, each NULL or to be freed with cos_error_free; may be NULL if `count` is 0.
 *                     What it held before is overwritten.
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (an array is NULL, `count` is absurd, or
 *         struct_sizes are wrong or differ; then nothing was done or written), INTERNAL (poisons the requests)
 * Since 0.1.
 */
struct cos_error *cos_request_step_many(struct cos_request *const *requests,
                                        size_t count,
                                        struct cos_request_status *out_results,
                                        struct cos_error **out_errors);

/**
 * What a server of OpenAI's protocol sends for the last step. If the body asks for a stream, these are complete
 * server-sent events, the last of which is `data: [DONE]`, or nothing while text is held back. Otherwise it is the
 * body of the answer once the request is done, and nothing before. One thread at a time.
 *
 * If a step fails, send cos_error_json, with cos_error_status or as an event.
 *
 * @param request    in/out, must not be NULL, not in use on another thread (BUSY)
 * @param out_text   out, must not be NULL: UTF-8 without a NUL at the end; owned by the request and valid until its
 *                   next call
 * @param out_bytes  out, must not be NULL: length of the text in bytes, possibly 0
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_request_answer(struct cos_request *request, const char **out_text, size_t *out_bytes);

/**
 * What the last step brought of a choice, for servers of another protocol. One thread at a time.
 *
 * @param request   must not be NULL, not in use on another thread (BUSY)
 * @param choice    less than cos_request_choices. Choice c is of prompt c / "n".
 * @param out_news  out, must not be NULL; `struct_size` must be set
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_request_choice(const struct cos_request *request,
                                     size_t choice,
                                     struct cos_choice_news *out_news);

/**
 * Cancel a request: the running step ends early, or else the next one ends at once, with COS_REQUEST_CANCELLED. May
 * be called from any thread at any time until cos_request_free is called. Never waits for a pass.
 *
 * @param request  must not be NULL
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
 * Since 0.1.
 */
struct cos_error *cos_request_cancel(struct cos_request *request);

/**
 * Free a request. In a child of fork(), a request of the parent stays as it is.
 *
 * Calls that are running on other threads complete: a step is cancelled, and this call waits for it. No call with the
 * request may begin from now on, not even cos_request_cancel.
 *
 * @param request  may be NULL, which does nothing
 * Since 0.1.
 */
void cos_request_free(struct cos_request *request);

/**
 * The statistics of a session, up to the end of its last call. May be called from any thread at any time until
 * cos_free is called, also while a step runs.
 *
 * @param session    must not be NULL
 * @param out_stats  out, must not be NULL; `struct_size` must be set
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_stats(const struct cos_session *session, struct cos_stats *out_stats);

/**
 * The sums over all sessions of an engine, freed ones included, for the metrics of a server. They grow at the end of
 * each step. May be called from any thread at any time until cos_engine_free is called.
 *
 * @param engine     must not be NULL
 * @param out_stats  out, must not be NULL; `struct_size` must be set
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
 * Since 0.1.
 */
struct cos_error *cos_engine_stats(const struct cos_engine *engine, struct cos_stats *out_stats);

/**
 * The metrics of an engine as text that Prometheus reads, for a server's answer to GET /metrics with the content type
 * "text/plain; version=0.0.4". A server may append lines of its own.
 *
 * - Counters: the sums of cos_engine_stats; cos_wasted_total, proposals that were rejected or dropped; and
 *   cos_calm_passes_total, passes of the process on threads that slept while they waited, because other work wanted
 *   the cores.
 * - cos_sessions_decoding: a gauge of the sessions that are in the middle of a round.
 * - Histograms: cos_first_token_seconds, from cos_prompt to the end of the round that commits the first token;
 *   cos_between_tokens_seconds, from one round that commits tokens to the next. Time that the caller takes between two
 *   steps is included.
 * - Histograms of each model that batches, with the label "model": cos_queue_seconds, from the time when a session
 *   asks for a pass until the pass begins; cos_pass_sessions and cos_pass_tokens, how large passes are.
 *
 * Metrics may be added; those above stay. May be called from any thread at any time until cos_engine_free is called.
 *
 * @param engine     must not be NULL
 * @param text       out: UTF-8 without a NUL at the end, in a buffer of the caller; may be NULL if `capacity` is 0
 * @param capacity   length of `text` in bytes. 0: the bytes are only counted; the text may be longer in the next call.
 *                   16 KiB are enough for one model, and 5 KiB more for each other one.
 * @param out_bytes  out, must not be NULL: the number of bytes
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUFFER_TOO_SMALL (nothing is written)
 * Since 0.1.
 */
struct cos_error *cos_engine_metrics(const struct cos_engine *engine, char *text, size_t capacity, size_t *out_bytes);

/**
 * Describe an engine as JSON: what was recognised of each model. For logs, bug reports, and checks after a model was
 * replaced.
 *
 *     {
 *       "version": "0.1.0", "onnxruntime": path, "vocab_size": 4096, "stop_tokens": [0],
 *       "thread_pool": "process",               one pool for all models of the process; "host": the pool of other code
 *                                               in the process that used ONNX Runtime first; "model": each model
 *                                               has its own
 *       "threads": 2,                           of a pool; null if the pool is the host's
 *       "tokenizer": true,                      whether a model has a tokenizer.json
 *       "chat_templates": ["default"],          names of the chat templates; empty if there is none
 *       "combine": as configured, "greedy_below": as configured,
 *       "overlap": 0.83,                        if passes of several models run at the same time: the share of the
 *                                               time of all but the longest pass that this saves; else null
 *       "models": [ {
 *         "name": "base", "kind": "onnx",       or "ngram", which has no more members
 *         "file": path, "bytes": 1234567,       size with external data
 *         "producer": "pytorch 2.11.0", "opset": 18,
 *         "architecture": "llama",              null if it is not known
 *         "provider": "cpu" or "cuda", "device_id": 0,
 *         "graphs": true,                       whether passes are captured as CUDA graphs and replayed
 *         "no_graphs": null,                    why not
 *         "sdpa_kernel": null,                  the sdpa_kernel option that ONNX Runtime got for attention on the GPU
 *         "cache_on": "gpu" or "host",          where the KV cache is
 *         "rows_on": "gpu" or "host",           where rows of logits stay
 *         "no_gpu_rows": null,                  why they cannot stay on the GPU
 *         "inputs": [ { "name": "input_ids", "type": "int64" } ],       without those of the cache
 *         "logits": {
 *           "name": "logits", "type": "float32", "columns": 4096,
 *           "rows": "all",                      which positions have a row; "counted": as many as the input
 *                                               num_logits_to_keep says; "last": only the last one
 *         },
 *         "cache": {
 *           "kind": "shared",                   updated in place; "fixed": the same, with a length that the export
 *                                               sets; "concatenated": each pass returns the whole cache; "none"
 *           "rollback": "shorten",              how positions are removed; "mask": they stay and are masked;
 *                                               "compact": the others are moved together; "rerun": all tokens run
 *                                               again
 *           "layers": 8, "heads": [2, ...], "head_size": [64, ...],     one number for each layer
 *           "type": "float32",
 *           "capacity": null,                   most tokens, if the export sets it
 *           "bytes_per_token": 16384
 *         },
 *         "vocab_size": 4096, "context_length": 2048, "stop_tokens": [0],
 *         "scoring": "parallel",                how the positions of a draft are scored; "first_pass": in parallel on
 *                                               an empty cache only; "one_by_one"
 *         "batching": "packed",                 one pass serves several sessions; "alone": each has its own
 *         "no_batching": null,                  why each has its own
 *         "cache_blocks": 1024, "cache_block_tokens": 32, "cache_bytes": 536870912,   most blocks that all sessions
 *                                               take together, tokens of a block, and bytes of all blocks; null if
 *                                               each session has a cache of its own
 *         "deviation": 1e-6,                    largest difference of logits scored in parallel, found at loading
 *         "trials": [                           what was tried at loading; the last trial of the fastest scoring was
 *                                               taken, or else the best one
 *           { "scoring": "parallel", "rollback": "mask", "deviation": 0.11,
 *             "spreads": 0.04 },                the deviation in standard deviations of a row
 *           { ..., "refused": "logits change by up to 2.65" } ],
 *         "warnings": [ ... ]                   about the model
 *       } ],
 *       "warnings": [ ... ]                     about the engine
 *     }
 *
 * Members may be added; the members above stay. May be called from any thread at any time.
 *
 * @param engine    must not be NULL
 * @param out_json  out, must not be NULL: UTF-8, ends with NUL; owned by the engine and valid until it is freed
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
 * Since 0.1.
 */
struct cos_error *cos_engine_describe(const struct cos_engine *engine, const char **out_json);

/**
 * Describe an engine as a table for people: one column for each model, and then the warnings. For logs. The content is
 * that of cos_engine_describe. May be called from any thread at any time.
 *
 * @param engine     must not be NULL
 * @param out_table  out, must not be NULL: UTF-8, ends with NUL; owned by the engine and valid until it is freed
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
 * Since 0.1.
 */
struct cos_error *cos_engine_describe_table(const struct cos_engine *engine, const char **out_table);

/**
 * Describe how a session decodes now, and why, as JSON. For logs, bug reports, and a look at what COS_STRATEGY_AUTO
 * does.
 *
 *     {
 *       "strategy": "standard",                 or "speculative" or "cos": what runs now. COS_STRATEGY_AUTO changes
 *                                               it as it learns
 *       "targets": "combined" or "routed",
 *       "proposal_lengths": [0, 5],             most tokens that each model proposes in a row
 *       "stop_below": 0.35,                     a draft ends where its acceptance is less probable than this; 0: never
 *       "planned": true,                        whether COS_STRATEGY_AUTO planned this. If not, "changes" is 0 and the
 *                                               gains are null
 *       "changes": 2,                           how often the plan changed
 *       "expected_gain": 1.62,                  speed relative to COS_STRATEGY_STANDARD, at the last evaluation
 *       "measured_gain": 1.58,                  standard_ns / planned_ns of cos_stats
 *       "models": [ {
 *         "name": "base",
 *         "pass_ms": [4.1, 4.3, 4.6, 4.8, 5.1, 5.3, 5.5, 5.8],    milliseconds of a pass over 1 to 8 positions,
 *                                               measured; null if not planned
 *         "acceptance": 0.71,                   acceptance rate of the model's proposals; null if not known
 *         "rows_copied": 0,                     as in cos_stats, of this model
 *         "captured": 12,                       passes captured as CUDA graphs by all sessions of the engine; null if
 *                                               passes of the model are not captured
 *         "no_graphs": null                     why passes are not captured any more
 *       } ],
 *       "routes": "own",                        or "shared", from the first step on: see COS_ROUTES_SHARED
 *       "wasted": 0.29,                         share of the proposals that were rejected or dropped; null without any
 *       "latency": {                            histograms; quantiles are right to a twentieth
 *         "first_token_ms": {                   from cos_prompt to the end of the round that commits the first token
 *           "count": 1, "mean": 31.4, "p50": 31.2, "p99": 31.2, "max": 31.2,     null if the count is 0
 *           "buckets": [[31.7, 1]] },           upper bounds and counts of buckets that are not empty
 *         "between_tokens_ms": { ... },         from one round that commits tokens to the next
 *         "queue_ms": { ... },                  from the time when it asks for a pass until the pass begins
 *         "pass_sessions": { ... }, "pass_tokens": { ... } },     how large its passes were. A pass of a model that
 *                                               does not batch is not counted here
 *       "memory": {                             of the KV caches, logits and distributions, without the weights
 *         "bytes": 7340032, "peak_bytes": 7340032 }
 *     }
 *
 * Members may be added; the members above stay. One thread at a time.
 *
 * @param session   must not be NULL, not in use on another thread (BUSY)
 * @param out_json  out, must not be NULL: UTF-8, ends with NUL; owned by the session and valid until the next call of
 *                  this function with the session
 * @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
 * Since 0.1.
 */
struct cos_error *cos_session_describe(const struct cos_session *session, const char **out_json);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* COS_H */
