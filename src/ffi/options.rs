//! Options of a session in the C interface, and the combine function of a caller.

use std::ffi::{c_char, c_void};

use parking_lot::Mutex;

use super::controls::*;
use super::weigh::{cos_weigh_fn, weigher};
use super::{VersionedStruct, optional_slice, read_struct, slice};
use crate::config::RoutesName;
use crate::control::{Controls, Dry};
use crate::decode::combine::Function;
use crate::decode::decoder::{Alternatives, MOST_ALTERNATIVES};
use crate::decode::policy::{Strategy, Targets};
use crate::engine::Engine;
use crate::engine::session::Options;
use crate::error::{Error, Result};
use crate::grammar::Language;
use crate::model::Priority;
use crate::rows::Sampler;

/// The library chooses the strategy and the proposal lengths that are expected to be fastest, and changes them as it
/// learns.
pub const COS_STRATEGY_AUTO: i32 = 0;
/// Every model with a weight other than 0 scores every position, and nobody drafts: the baseline.
pub const COS_STRATEGY_STANDARD: i32 = 1;
/// Speculative decoding: one model drafts, and all others verify. Without a draft, it acts like COS_STRATEGY_STANDARD,
/// for example if all proposal_lengths are 0.
pub const COS_STRATEGY_SPECULATIVE: i32 = 2;
/// Collaborative decoding via speculation: the models take turns as the proposer (arXiv 2502.01662, Algorithms 1 and
/// 2).
pub const COS_STRATEGY_COS: i32 = 3;

/// The library chooses. COS_STRATEGY_AUTO uses routed targets where they apply; all else is combined.
pub const COS_TARGETS_AUTO: i32 = 0;
/// Every position is verified against the combined distribution, so it needs every model with a weight other than 0.
pub const COS_TARGETS_COMBINED: i32 = 1;
/// Every position is verified against one model that is drawn by the weights, so it needs only that model. The joint
/// distribution of the tokens is the same. For "weighted" with a temperature above 0.
pub const COS_TARGETS_ROUTED: i32 = 2;

/// As "routes" in the engine's configuration says; without it, sessions with COS_STRATEGY_AUTO have shared routes.
pub const COS_ROUTES_AUTO: i32 = 0;
/// Routed targets are drawn by numbers of the session alone.
pub const COS_ROUTES_OWN: i32 = 1;
/// Sessions that were part of the same pass draw their next routed target by one number, each by its own weights. With
/// equal weights they all need the same model next, so one pass serves them all. Each session follows its distribution
/// exactly, but sessions depend on each other, and a seed does not repeat a text. Two sessions of one scope that began
/// with the same prompt never share, nor do forks.
pub const COS_ROUTES_SHARED: i32 = 2;

/// Somebody waits for the tokens.
pub const COS_PRIORITY_INTERACTIVE: i32 = 0;
/// Only the end of the text matters. The passes of interactive sessions become at most twice as long by all batch
/// sessions together. If there is not enough memory, a batch session counts as started after the next thousand others.
pub const COS_PRIORITY_BATCH: i32 = 1;

/// A function of the caller that combines the models. For one position, it makes one row of scores from one row of
/// logits for each model. Tokens follow the distribution that temperature, top_k, top_p, min_p and softmax make of the
/// scores.
///
/// The scores must depend on the rows and the function's own data only: the function may be called again for the same
/// position, and decoding is exact only if the scores are then the same.
///
/// cos_step calls the function on its own thread, possibly several times, also for positions whose tokens are dropped
/// later. The function must return: an exception ends the process, and longjmp is undefined behaviour. It must not keep
/// the pointers. It may call cos_cancel and cos_session_stats with the session. Other calls with the session return
/// BUSY, and cos_free would wait for ever.
///
/// @param rows          `models_count` rows of `vocab_size` logits, in the order of the configuration. NULL for
///                      look-ups, and for models with the weight 0. No logit is NaN or plus infinity. Minus infinity
///                      marks a token that is impossible.
/// @param models_count  number of models
/// @param vocab_size    number of tokens in the vocabulary
/// @param out_scores    out: `vocab_size` scores, all of which must be written. Minus infinity makes a token
///                      impossible. cos_step returns NUMERIC for NaN (also where nothing was written), for plus
///                      infinity, and if all scores are minus infinity.
/// @param user_data     combine_data of cos_session_options
/// @return 0, or any other number to make cos_step return CALLBACK with a message that names the number. A step that
///         has committed a token before returns success, and the next step calls the function again.
/// Since 0.1.
pub type cos_combine_fn = Option<
    unsafe extern "C-unwind" fn(
        rows: *const *const f32,
        models_count: usize,
        vocab_size: usize,
        out_scores: *mut f32,
        user_data: *mut c_void,
    ) -> i32,
>;

/// How a session decodes. Set all members to 0 and then struct_size: greedy, with an automatic strategy.
/// cos_session_new copies the arrays.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_session_options {
    /// sizeof(cos_session_options), set by the caller.
    pub struct_size: usize,
    /// One of COS_STRATEGY_*. It does not change the distribution of the tokens.
    pub strategy: i32,
    /// Scores are divided by this number. 0 is greedy: the token with the highest score, and the lowest such token
    /// among equal scores. A small temperature is not greedy with "weighted": at 1e-6 to 0.01, each model is certain of
    /// its own best token, and the weights draw one of these tokens. For the best token of the mixture, set 0, or set
    /// "greedy_below" in the configuration.
    pub temperature: f32,
    /// Sample among this many most probable tokens of each distribution; 0 is off.
    pub top_k: i32,
    /// Sample among the fewest most probable tokens that together have at least this probability; 0 or 1 is off.
    pub top_p: f32,
    /// Sample among the tokens that have at least this share of the highest probability; 0 is off.
    pub min_p: f32,
    /// Seed of the random numbers. The tokens are the same for the same seed, strategy (other than auto) and number of
    /// threads. On a GPU, earlier sessions may change the last bits of logits, which changes a token now and then. A
    /// step that fails, or that is cancelled while it runs, has used random numbers, which are never used again: the
    /// tokens behind it are others, of the same distribution. Greedy tokens stay the same.
    pub seed: u64,
    /// Most tokens to generate after each prompt; 0: until the context is full.
    pub max_tokens: u32,
    /// How many tokens each model proposes in a row (γ), in the order of the configuration, each 0 to 64. NULL: the
    /// library chooses. With COS_STRATEGY_SPECULATIVE, the cheapest model with a number above 0 drafts.
    pub proposal_lengths: *const i32,
    /// Length of `proposal_lengths`: the number of models, or 0 for NULL.
    pub proposal_lengths_count: usize,
    /// Weights in place of the engine's, for "weighted" and "logits". NULL: the engine's weights.
    pub weights: *const f32,
    /// Length of `weights`: the number of models, or 0 for NULL.
    pub weights_count: usize,
    /// Tokens that end the sequence. NULL: the stop tokens that the files of any model name, in eos_token_id of
    /// genai_config.json, generation_config.json and config.json, and in eos_token of tokenizer_config.json. If the
    /// files name none, cos_engine_describe has a warning. Not NULL with a count of 0: no stop tokens.
    pub stop_tokens: *const i32,
    /// Length of `stop_tokens`.
    pub stop_tokens_count: usize,
    /// One of COS_TARGETS_*. It does not change the distribution of the tokens.
    pub targets: i32,
    /// 1: cos_step returns the log-probability of each token. 0: it does not. Log-probabilities need the combined
    /// distribution, so COS_TARGETS_AUTO then means combined, and COS_TARGETS_ROUTED is an error. They are those of the
    /// distribution that tokens are drawn from: after bias, penalties, constraint, temperature, top_k, top_p and min_p.
    /// For a greedy session, they are those at temperature 1 without these filters.
    pub log_probabilities: i32,
    /// A combine function in place of the engine's combination, or NULL. It gets the rows of the models whose weight is
    /// not 0 in the engine's combination (or in `weights`, if given). Targets are then combined.
    pub combine: cos_combine_fn,
    /// Passed to `combine`. Owned by the caller; must be valid as long as the session. May be NULL.
    pub combine_data: *mut c_void,
    /// One of COS_ROUTES_*. It does not change the distribution of the tokens.
    pub routes: i32,
    /// One of COS_PRIORITY_*. It does not change the distribution of the tokens.
    pub priority: i32,
    /// Scores of tokens that are in the prompt or the text: positive ones are divided by this number, and all others
    /// multiplied. From 1e-6 to 1e6; 0 or 1 is off.
    ///
    /// Scores change in this order: bias, this penalty, the presence and the frequency penalty, bans and the
    /// constraint, then temperature, top_k, top_p and min_p. With "weighted", that is done to the scores of each model
    /// before they are mixed. Otherwise it is done to the combined scores.
    pub repetition_penalty: f32,
    /// Subtracted from the scores of tokens that are in the text: behind the last prompt. From -1e6 to 1e6; 0 is off.
    pub presence_penalty: f32,
    /// Subtracted from the score of a token for each time that it is in the text. From -1e6 to 1e6; 0 is off.
    pub frequency_penalty: f32,
    /// No stop token comes before so many tokens behind the last prompt. 0 is off.
    pub min_tokens: u32,
    /// Tokens whose scores are changed, each once, or NULL.
    pub bias_tokens: *const i32,
    /// What is added to their scores, from -1e30 to 1e30. Minus infinity bans a token.
    pub bias_values: *const f32,
    /// Length of `bias_tokens` and `bias_values`.
    pub bias_count: usize,
    /// One of COS_CONSTRAINT_*: what `constraint` is. It takes the tokenizer.json of the models.
    pub constraint_kind: i32,
    /// What the text behind the last prompt must be, in UTF-8. It begins anew with each prompt. A stop token may come
    /// where the text may end. A text that nothing can follow ends with COS_FINISH_COMPLETE. Where only one token is
    /// possible, it costs no pass.
    pub constraint: *const c_char,
    /// Length of `constraint` in bytes.
    pub constraint_length: usize,
    /// How many of the most probable tokens cos_step returns for each token, 0 to 20. If it is not 0,
    /// log_probabilities counts as 1.
    pub top_log_probabilities: i32,
    /// No run of so many tokens comes twice in prompt and text; 0 is off.
    pub no_repeat_ngram: i32,
    /// Runs of tokens that must not come behind the last prompt: all runs in a row, or NULL. A run that the end of the
    /// prompt has begun is not completed either.
    pub banned_tokens: *const i32,
    /// The lengths of these runs, each at least 1.
    pub banned_lengths: *const usize,
    /// Number of runs.
    pub banned_count: usize,
    /// A function that says which tokens may come next, or NULL. Then constraint_kind must be 0.
    pub constrain: cos_constraint_fn,
    /// Passed to `constrain`. Owned by the caller; must be valid as long as the session and its forks. May be NULL.
    pub constrain_data: *mut c_void,
    /// 1: cos_step returns the log-probability of each token under each model too, and log_probabilities counts as 1.
    /// 0: it does not.
    pub model_log_probabilities: i32,
    /// 1: all log-probabilities are those before bias, penalties, bans and constraint, at temperature 1 and without
    /// filters. 0: they are those that log_probabilities describes.
    pub log_probabilities_before: i32,
    /// Locally typical sampling (arXiv 2202.00666): keep the fewest tokens whose information is nearest to the entropy,
    /// and that together have this probability. 0 or 1 is off. Judged behind penalties and the constraint, at
    /// temperature 1, and before the filters. A greedy session does without.
    pub typical_p: f32,
    /// Exclude top choices: with this probability for each position, all tokens of at least the probability
    /// `xtc_threshold` are dropped but for the least probable one of them. Judged as typical_p, behind it. One outcome
    /// of a position holds for all models. 0 is off.
    pub xtc_probability: f32,
    /// See `xtc_probability`.
    pub xtc_threshold: f32,
    /// DRY, a penalty for repetitions: a token that would go on with a run of n tokens that came before in prompt or
    /// text loses dry_multiplier * dry_base^(n - dry_allowed_length), if n is at least dry_allowed_length. It is
    /// subtracted with the presence penalty. 0 is off.
    pub dry_multiplier: f32,
    /// At least 1, such as 1.75.
    pub dry_base: f32,
    /// At least 1, such as 2.
    pub dry_allowed_length: i32,
    /// Tokens that no run goes across, such as those of line ends; or NULL.
    pub dry_breakers: *const i32,
    /// Length of `dry_breakers`.
    pub dry_breakers_count: usize,
    /// A function that gives the models the weights of each position, for "weighted" and "logits", or NULL. Targets are
    /// then combined.
    pub weigh: cos_weigh_fn,
    /// Passed to `weigh`. Owned by the caller; must be valid as long as the session and its forks. May be NULL.
    pub weigh_data: *mut c_void,
}

// SAFETY: plain data. The size of the first version never changes, and members are only added behind the last one.
unsafe impl VersionedStruct for cos_session_options {
    const NAME: &'static str = "cos_session_options";
    const MIN_SIZE: usize = std::mem::offset_of!(cos_session_options, targets);
}
const _: () =
    assert!(<cos_session_options as VersionedStruct>::MIN_SIZE == 96 && size_of::<cos_session_options>() == 304);

/// Check that an array has one value for each model.
pub(super) fn check_count(name: &str, count: usize, models: usize) -> Result<()> {
    if count == models {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{name} is {count}, but the engine has {models} models; give one value for each model, in their order"
    )))
}

/// # Safety
/// `options` has `struct_size` bytes, and its arrays have their counts. `combine` and `combine_data` are as for
/// [`combine`], and the other functions and their data keep to [`cos_constraint_fn`] and [`cos_weigh_fn`].
pub(super) unsafe fn read_options(options: *const cos_session_options, engine: &Engine) -> Result<Options> {
    // SAFETY: promised by the caller.
    let (options, lengths, weights, stop_tokens) = unsafe {
        let options = read_struct(options)?;
        // Checked before the arrays are read, because a wrong count may reach beyond their end.
        let counts =
            [("proposal_lengths_count", options.proposal_lengths_count), ("weights_count", options.weights_count)];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count != 0) {
            check_count(name, count, engine.participants().len())?;
        }
        let lengths = optional_slice(
            options.proposal_lengths,
            options.proposal_lengths_count,
            "proposal_lengths",
            "proposal_lengths_count",
        )?;
        let weights = optional_slice(options.weights, options.weights_count, "weights", "weights_count")?;
        let stop_tokens =
            optional_slice(options.stop_tokens, options.stop_tokens_count, "stop_tokens", "stop_tokens_count")?;
        (options, lengths, weights, stop_tokens)
    };
    let (strategy, targets) = (strategy(options.strategy)?, targets(options.targets)?);
    let (log_probabilities, alternatives) = log_probabilities(&options)?;
    stop_tokens.map_or(Ok(()), |tokens| engine.check_tokens("stop_tokens", tokens))?;
    // SAFETY: promised by the caller.
    let (controls, constraint) = unsafe { (read_controls(&options, engine)?, read_constraint(&options)?) };
    Ok(Options {
        controls,
        constraint,
        strategy,
        targets,
        sampler: Sampler::new(options.temperature, options.top_k, options.top_p, options.min_p)?,
        seed: options.seed,
        max_tokens: options.max_tokens as usize,
        proposal_lengths: lengths.map(<[i32]>::to_vec),
        weights: weights.map(<[f32]>::to_vec),
        stop_tokens: stop_tokens.map(<[i32]>::to_vec),
        log_probabilities,
        alternatives,
        // SAFETY: promised by the caller.
        weigher: options.weigh.map(|function| unsafe { weigher(function, options.weigh_data) }),
        routes: routes(options.routes)?,
        priority: priority(options.priority)?,
        // SAFETY: promised by the caller.
        combine: options.combine.map(|function| unsafe { combine(function, options.combine_data) }),
    })
}

/// # Safety
/// The arrays of `options` have their counts. `constrain` and `constrain_data` are as for [`constrain`].
unsafe fn read_controls(options: &cos_session_options, engine: &Engine) -> Result<Controls> {
    // SAFETY: promised by the caller.
    let (bias_tokens, bias_values) = unsafe {
        (
            slice(options.bias_tokens, options.bias_count, "bias_tokens", "bias_count")?,
            slice(options.bias_values, options.bias_count, "bias_values", "bias_count")?,
        )
    };
    engine.check_tokens("bias_tokens", bias_tokens)?;
    let no_repeat_ngram = usize::try_from(options.no_repeat_ngram).map_err(|_| {
        Error::InvalidArgument(format!(
            "no_repeat_ngram is {}; it must be 0 (off) or positive",
            options.no_repeat_ngram
        ))
    })?;
    let controls = Controls {
        min_tokens: options.min_tokens as usize,
        no_repeat_ngram,
        // SAFETY: promised by the caller.
        constraint: options.constrain.map(|function| unsafe { constrain(function, options.constrain_data) }),
        // SAFETY: promised by the caller.
        dry: unsafe { dry(options, engine) }?,
        ..Controls::default()
    };
    if options.max_tokens > 0 && options.min_tokens > options.max_tokens {
        return Err(Error::InvalidArgument(format!(
            "min_tokens is {}, but max_tokens is {}; at least as many tokens must be allowed",
            options.min_tokens, options.max_tokens
        )));
    }
    controls
        .with_penalties(options.repetition_penalty, options.presence_penalty, options.frequency_penalty)?
        .with_bias(bias_tokens, bias_values)?
        .with_drops(options.typical_p, options.xtc_probability, options.xtc_threshold)?
        // SAFETY: promised by the caller.
        .with_banned(unsafe { banned(options, engine) }?)
}

/// # Safety
/// The arrays of `options` have their counts.
unsafe fn dry(options: &cos_session_options, engine: &Engine) -> Result<Option<Dry>> {
    // SAFETY: promised by the caller.
    let breakers =
        unsafe { slice(options.dry_breakers, options.dry_breakers_count, "dry_breakers", "dry_breakers_count")? };
    engine.check_tokens("dry_breakers", breakers)?;
    Dry::new(options.dry_multiplier, options.dry_base, options.dry_allowed_length, breakers)
}

/// # Safety
/// The arrays of `options` have their counts.
unsafe fn banned(options: &cos_session_options, engine: &Engine) -> Result<Vec<Vec<i32>>> {
    // SAFETY: promised by the caller.
    let lengths = unsafe { slice(options.banned_lengths, options.banned_count, "banned_lengths", "banned_count")? };
    let total = lengths.iter().try_fold(0usize, |sum, &length| sum.checked_add(length));
    // SAFETY: promised by the caller.
    let tokens = unsafe {
        slice(options.banned_tokens, total.unwrap_or(usize::MAX), "banned_tokens", "the sum of banned_lengths")
    }?;
    engine.check_tokens("banned_tokens", tokens)?;
    let mut rest = tokens;
    let run = |&length: &usize| {
        let (run, behind) = rest.split_at(length);
        rest = behind;
        run.to_vec()
    };
    Ok(lengths.iter().map(run).collect())
}

/// The grammar that a text follows, if there is one.
///
/// # Safety
/// `constraint` has `constraint_length` bytes.
unsafe fn read_constraint(options: &cos_session_options) -> Result<Option<(Language, String)>> {
    let language = match options.constraint_kind {
        COS_CONSTRAINT_NONE => {
            return match options.constraint_length {
                0 => Ok(None),
                _ => Err(Error::InvalidArgument(
                    "constraint is given, but constraint_kind is 0; say what it is by one of COS_CONSTRAINT_*".into(),
                )),
            };
        }
        COS_CONSTRAINT_JSON_SCHEMA => Language::JsonSchema,
        COS_CONSTRAINT_REGEX => Language::Regex,
        COS_CONSTRAINT_LARK => Language::Lark,
        COS_CONSTRAINT_CHOICES => Language::Choices,
        other => {
            return Err(Error::InvalidArgument(format!(
                "constraint_kind is {other}; it must be one of COS_CONSTRAINT_*, 0 to 4"
            )));
        }
    };
    if options.constrain.is_some() {
        return Err(Error::InvalidArgument(
            "constraint_kind and constrain are both set; give a grammar or a function, not both".into(),
        ));
    }
    let (source, length) = (options.constraint, options.constraint_length);
    // SAFETY: promised by the caller.
    let source = unsafe { super::text::utf8(source, length, "constraint", "constraint_length") }?;
    Ok(Some((language, source.to_owned())))
}

/// Which log-probabilities are wanted, if any are.
fn log_probabilities(options: &cos_session_options) -> Result<(bool, Alternatives)> {
    let switch = |name: &str, number: i32| match number {
        0 => Ok(false),
        1 => Ok(true),
        other => Err(Error::InvalidArgument(format!("{name} is {other}; it must be 0 (off) or 1 (on)"))),
    };
    let wanted = switch("log_probabilities", options.log_probabilities)?;
    let of_models = switch("model_log_probabilities", options.model_log_probabilities)?;
    let before = switch("log_probabilities_before", options.log_probabilities_before)?;
    let (top, most) = (options.top_log_probabilities, MOST_ALTERNATIVES);
    let Some(top) = usize::try_from(top).ok().filter(|top| *top <= most) else {
        return Err(Error::InvalidArgument(format!("top_log_probabilities is {top}; it must be 0 to {most}")));
    };
    let wanted = wanted || top > 0 || of_models;
    if before && !wanted {
        return Err(Error::InvalidArgument(
            "log_probabilities_before is set, but no log-probabilities are asked for; set log_probabilities to 1 too"
                .into(),
        ));
    }
    Ok((wanted, Alternatives { top, before, of_models }))
}

fn strategy(number: i32) -> Result<Strategy> {
    match number {
        COS_STRATEGY_AUTO => Ok(Strategy::Auto),
        COS_STRATEGY_STANDARD => Ok(Strategy::Standard),
        COS_STRATEGY_SPECULATIVE => Ok(Strategy::Speculative),
        COS_STRATEGY_COS => Ok(Strategy::Cos),
        other => Err(Error::InvalidArgument(format!("strategy is {other}; it must be one of COS_STRATEGY_*, 0 to 3"))),
    }
}

/// `None` leaves the choice to the strategy.
fn targets(number: i32) -> Result<Option<Targets>> {
    match number {
        COS_TARGETS_AUTO => Ok(None),
        COS_TARGETS_COMBINED => Ok(Some(Targets::Combined)),
        COS_TARGETS_ROUTED => Ok(Some(Targets::Routed)),
        other => Err(Error::InvalidArgument(format!("targets is {other}; it must be one of COS_TARGETS_*, 0 to 2"))),
    }
}

/// `None` leaves the choice to the engine.
fn routes(number: i32) -> Result<Option<RoutesName>> {
    match number {
        COS_ROUTES_AUTO => Ok(None),
        COS_ROUTES_OWN => Ok(Some(RoutesName::Own)),
        COS_ROUTES_SHARED => Ok(Some(RoutesName::Shared)),
        other => Err(Error::InvalidArgument(format!("routes is {other}; it must be one of COS_ROUTES_*, 0 to 2"))),
    }
}

fn priority(number: i32) -> Result<Priority> {
    match number {
        COS_PRIORITY_INTERACTIVE => Ok(Priority::Interactive),
        COS_PRIORITY_BATCH => Ok(Priority::Batch),
        other => Err(Error::InvalidArgument(format!("priority is {other}; it must be one of COS_PRIORITY_*, 0 or 1"))),
    }
}

/// The combine function of a caller as a [`Function`].
///
/// # Safety
/// `function` keeps to [`cos_combine_fn`], and `data` is the data that it expects, for as long as the result lives.
unsafe fn combine(
    function: unsafe extern "C-unwind" fn(*const *const f32, usize, usize, *mut f32, *mut c_void) -> i32,
    data: *mut c_void,
) -> Function {
    struct Caller {
        data: *mut c_void,
        /// Reused from call to call, so that a step allocates nothing.
        rows: Mutex<Vec<*const f32>>,
    }
    // SAFETY: the rows are read under the lock only. One thread at a time uses a session, and only the session calls
    // this function. The caller promises that the data may move between threads with the session.
    unsafe impl Send for Caller {}
    // SAFETY: as above.
    unsafe impl Sync for Caller {}
    let caller = Caller { data, rows: Mutex::default() };
    Function::new(move |rows, scores| {
        let caller = &caller; // captures the whole struct; the pointer alone could not be sent to another thread
        let mut pointers = caller.rows.lock();
        pointers.clear();
        pointers.extend(rows.map(|row| row.map_or(std::ptr::null(), <[f32]>::as_ptr)));
        // SAFETY: the rows are as long as the scores; the rest is promised by the caller.
        let status =
            unsafe { function(pointers.as_ptr(), pointers.len(), scores.len(), scores.as_mut_ptr(), caller.data) };
        match status {
            0 => Ok(()),
            other => Err(Error::Callback(format!("the combine function of the session returned {other}, not 0"))),
        }
    })
}
