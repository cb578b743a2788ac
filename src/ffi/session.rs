//! Sessions.

use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::engine::cos_engine;
use super::error::cos_error;
use super::{Growing, check_out, guard, handle, hold, optional_slice, read, release, slice, struct_size, write};
use crate::decode::combine::Function;
use crate::decode::decoder::Finish;
use crate::decode::policy::{Strategy, Targets};
use crate::engine::Engine;
use crate::engine::session::{Options, Session, State};
use crate::engine::stats::Stats;
use crate::error::{Error, Result};
use crate::model::Cancel;
use crate::process::Process;
use crate::rows::Sampler;

/// Chosen by the library: what follows the same distribution at the least cost.
pub const COS_STRATEGY_AUTO: i32 = 0;
/// Every model scores every position, nobody proposes: the baseline.
pub const COS_STRATEGY_STANDARD: i32 = 1;
/// One model drafts, all others score.
pub const COS_STRATEGY_SPECULATIVE: i32 = 2;
/// Collaborative decoding via speculation: the models take turns in proposing (arXiv 2502.01662, Algorithms 1 and 2).
pub const COS_STRATEGY_COS: i32 = 3;

/// Routed under COS_STRATEGY_AUTO where it applies, combined otherwise.
pub const COS_TARGETS_AUTO: i32 = 0;
/// Every position is verified against the combined distribution, which needs all models.
pub const COS_TARGETS_COMBINED: i32 = 1;
/// Every position is verified against one model that is drawn from the weights. The tokens follow the same joint
/// distribution, and a position needs one model only. For "weighted" with a temperature above 0.
pub const COS_TARGETS_ROUTED: i32 = 2;

/// The sequence goes on.
pub const COS_FINISH_NONE: i32 = 0;
/// A stop token was committed; it is the last token.
pub const COS_FINISH_STOP: i32 = 1;
/// max_tokens were generated since the last prompt.
pub const COS_FINISH_MAX_TOKENS: i32 = 2;
/// The context has no room for another token.
pub const COS_FINISH_CONTEXT_FULL: i32 = 3;
/// cos_cancel was called.
pub const COS_FINISH_CANCELLED: i32 = 4;

/// A combination of the caller's own: makes one row of scores from the models' rows of logits, for one position.
/// Tokens are then decoded from the distribution that temperature, top_k, top_p, min_p and softmax make of the scores.
///
/// Exactness asks that it depends on the rows and its data alone, for they are unchanged where it is asked again. It is
/// called inside cos_step, on its thread, possibly several times in a step and for positions whose tokens are dropped.
///
/// It must not keep the pointers, and must not leave but by returning: an exception ends the process, longjmp is
/// undefined. It may call cos_cancel and cos_session_stats on its session; other calls get BUSY, and cos_free would
/// wait for ever.
///
/// @param rows          `models_count` rows of `vocab_size` logits, in the engine's order; NULL for models that the
///                      engine's combination gives the weight 0 and for look-ups. There is no NaN and no plus infinity;
///                      minus infinity is impossible.
/// @param models_count  number of models
/// @param vocab_size    number of tokens
/// @param out_scores    out: `vocab_size` scores, all to be written. Minus infinity is impossible. NaN (also where
///                      nothing was written), plus infinity, or minus infinity everywhere is NUMERIC.
/// @param user_data     combine_data of cos_session_options
/// @return 0, or any other number to make cos_step fail with CALLBACK, whose message names it. (A step that has committed
///         a token by then ends well, and the next one asks again.)
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

/// How a session decodes. Set all to 0 and then struct_size: greedy and automatic. Arrays are copied.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_session_options {
    /// sizeof(cos_session_options) as the caller was compiled.
    pub struct_size: usize,
    /// One of COS_STRATEGY_*. All of them follow the same distribution.
    pub strategy: i32,
    /// 0 is greedy: the token of the highest score, among equal ones the lowest. Otherwise scores are divided by it.
    /// With "weighted", a small one (1e-6 to 0.01, which some clients send and mean 0) is not greedy: each model is
    /// then sure of its own best token, and one of these is drawn by the weights. Set 0 for the best token of the
    /// mixture, or "greedy_below" in the configuration of the engine.
    pub temperature: f32,
    /// Sample among this many best tokens of each distribution; 0 is off.
    pub top_k: i32,
    /// Sample among the fewest best tokens with this share of the probability; 0 or 1 is off.
    pub top_p: f32,
    /// Sample among tokens with at least this share of the best one's probability; 0 is off.
    pub min_p: f32,
    /// Seed of the random numbers. The same seed, strategy (not auto) and number of threads give the same tokens. On a GPU the last bits
    /// of logits may also depend on the sessions before, which moves a token now and then.
    pub seed: u64,
    /// Most tokens to generate after each prompt; 0 is until the context is full.
    pub max_tokens: u32,
    /// Tokens that each model proposes in a row (γ), in the engine's order, 0 to 64; NULL: chosen by the library.
    /// With COS_STRATEGY_SPECULATIVE the cheapest model with a length above 0 drafts.
    pub proposal_lengths: *const i32,
    /// Number of models, or 0 for NULL.
    pub proposal_lengths_count: usize,
    /// Weights in place of the engine's, for "weighted" and "logits"; NULL: the engine's.
    pub weights: *const f32,
    /// Number of models, or 0 for NULL.
    pub weights_count: usize,
    /// Tokens that end the sequence. NULL: all that the files of any model name, in eos_token_id of genai_config.json,
    /// generation_config.json and config.json, and in eos_token of tokenizer_config.json. If these name none, the
    /// warnings of cos_engine_describe say so. Not NULL with a count of 0: none.
    pub stop_tokens: *const i32,
    /// Number of stop tokens.
    pub stop_tokens_count: usize,
    /// One of COS_TARGETS_*. Does not change the distribution.
    pub targets: i32,
    /// 1 to get the log-probability of each token from cos_step, 0 not to. It takes the combined distribution, so
    /// COS_TARGETS_AUTO then means combined, and COS_TARGETS_ROUTED is an error.
    pub log_probabilities: i32,
    /// A combination in place of the engine's, or NULL. The models that the engine's combination gives a weight other
    /// than 0 (here those of `weights`, where given) take part; what else it says is not used. Targets are combined.
    pub combine: cos_combine_fn,
    /// Passed to `combine`; may be NULL. Must live as long as the session.
    pub combine_data: *mut c_void,
}

/// What a step did.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_step_result {
    /// sizeof(cos_step_result), set by the caller.
    pub struct_size: usize,
    /// The tokens that the step committed, at least one unless the sequence is finished. Owned by the session,
    /// valid until its next call.
    pub tokens: *const i32,
    /// Number of tokens.
    pub tokens_count: usize,
    /// One of COS_FINISH_*.
    pub finish: i32,
    /// 0.
    pub reserved: i32,
    /// The natural logarithm of each token's probability under the combined distribution that all strategies follow,
    /// after temperature, top_k, top_p and min_p; for a greedy session at temperature 1 without these. `tokens_count`
    /// values, owned and valid as `tokens`; NULL if not asked for in cos_session_options, or without tokens.
    pub log_probabilities: *const f32,
}

/// What a session did so far, or all sessions of an engine.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_stats {
    /// sizeof(cos_stats), set by the caller.
    pub struct_size: usize,
    /// Calls of cos_step.
    pub steps: u64,
    /// Tokens committed, prompts excluded.
    pub tokens: u64,
    /// Proposals made.
    pub proposed: u64,
    /// Proposals that reached an accept or reject decision; others were dropped behind a rejection or an end.
    pub tested: u64,
    /// Proposals accepted.
    pub accepted: u64,
    /// Passes of all models, those over nothing but prompt excluded.
    pub forwards: u64,
    /// Positions that all models scored, those of the prompt excluded.
    pub positions: u64,
    /// Nanoseconds inside ONNX Runtime, prompts included.
    pub model_ns: u64,
    /// Nanoseconds inside cos_step.
    pub total_ns: u64,
    /// Greedy choices between two nearly equal scores, which passes of other widths may decide otherwise.
    pub near_ties: u64,
    /// With COS_STRATEGY_AUTO, nanoseconds of cos_step since a first look at the plan (by this session, or by one before
    /// that decoded the same), passes over prompts excluded. The
    /// next two are about the same tokens, so that standard_ns / planned_ns is the measured gain of planning, and
    /// standard_ns / expected_ns the one that was expected.
    pub planned_ns: u64,
    /// Nanoseconds that these tokens were expected to take, as the plans were chosen.
    pub expected_ns: u64,
    /// Nanoseconds that COS_STRATEGY_STANDARD would have taken for them, by the measured times of the models' passes.
    pub standard_ns: u64,
    /// Rows of logits that models on a GPU keep there, and that had to be copied to the host: for functions of the caller,
    /// work together with models that are elsewhere, and filters that end where very many tokens have nearly the same score,
    /// or (top_k, top_p) at tokens less than e^-16 times as likely as the best. 0 where all work on rows was done on the GPU. Rows that are on
    /// the host anyway do not count.
    pub rows_copied: u64,
}

// SAFETY: plain data; the sizes of version 0.1 stay as they are, and members are added behind the last one.
unsafe impl Growing for cos_session_options {
    const NAME: &'static str = "cos_session_options";
    const MIN_SIZE: usize = std::mem::offset_of!(cos_session_options, targets);
}
// SAFETY: as above.
unsafe impl Growing for cos_step_result {
    const NAME: &'static str = "cos_step_result";
    const MIN_SIZE: usize = std::mem::offset_of!(cos_step_result, log_probabilities);
}
// SAFETY: as above.
unsafe impl Growing for cos_stats {
    const NAME: &'static str = "cos_stats";
    const MIN_SIZE: usize = std::mem::offset_of!(cos_stats, near_ties);
}
const _: () = assert!(<cos_session_options as Growing>::MIN_SIZE == 96 && size_of::<cos_session_options>() == 120);
const _: () = assert!(<cos_step_result as Growing>::MIN_SIZE == 32 && size_of::<cos_step_result>() == 40);
const _: () = assert!(<cos_stats as Growing>::MIN_SIZE == 80 && size_of::<cos_stats>() == 120);

/// A session: one sequence. One thread at a time may use it (another one gets BUSY, except for cos_cancel and
/// cos_session_stats); different sessions run in parallel.
///
/// Since 0.1.
pub struct cos_session {
    /// Taken out when it is freed: calls that hold the rest then still find out.
    inner: Mutex<Option<Session>>,
    cancel: Arc<Cancel>,
    /// What cos_session_stats reads while a step runs.
    stats: Mutex<Stats>,
    /// What cos_session_describe gave last.
    description: Mutex<CString>,
    poisoned: AtomicBool,
    /// Where its models are.
    process: Process,
}

/// # Safety
/// `session` is NULL or a session that was not freed.
unsafe fn with(session: *const cos_session, body: impl FnOnce(&mut Session) -> Result<()>) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        let session = unsafe { usable(session) }?;
        let mut inner = session.inner.try_lock().ok_or(Error::Busy)?;
        if session.poisoned.load(Ordering::Acquire) {
            return Err(Error::Poisoned); // by a call that ended after the first look
        }
        let inner = inner.as_mut().ok_or_else(freed)?;
        let result = super::catch(|| body(inner));
        if let Err(Error::Internal(_)) = result {
            session.poisoned.store(true, Ordering::Release);
        } else {
            *session.stats.lock() = inner.stats();
        }
        result
    })
}

/// # Safety
/// `session` is NULL or a session that was not freed.
unsafe fn usable(session: *const cos_session) -> Result<Arc<cos_session>> {
    // SAFETY: promised by the caller.
    let session = unsafe { hold(session, "session") }?;
    session.process.check()?;
    if session.poisoned.load(Ordering::Acquire) { Err(Error::Poisoned) } else { Ok(session) }
}

fn freed() -> Error {
    Error::InvalidArgument("the session was freed by another thread while this call began".into())
}

/// Start an empty sequence.
///
/// @param engine       must not be NULL
/// @param options      NULL is greedy and automatic; `struct_size` must be set
/// @param out_session  out, must not be NULL; to free with cos_free
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (names the member), UNSUPPORTED (a member
///         that this version does not know), RUNTIME
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `options` is NULL or has `struct_size` bytes, and its arrays have
/// their counts; `combine` keeps to cos_combine_fn and `combine_data` is what it takes; `out_session` is NULL or valid
/// for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_new(
    engine: *const cos_engine,
    options: *const cos_session_options,
    out_session: *mut *mut cos_session,
) -> *mut cos_error {
    guard(|| {
        check_out(out_session, "out_session")?;
        // SAFETY: promised by the caller.
        let (engine, options) = unsafe {
            let engine = cos_engine::of_this_process(engine)?;
            let options = if options.is_null() { Options::default() } else { read_options(options, &engine.0)? };
            (engine, options)
        };
        let session = Session::new(&engine.0, &options)?;
        let session = cos_session {
            cancel: session.cancel().clone(),
            stats: Mutex::new(session.stats()),
            inner: Mutex::new(Some(session)),
            description: Mutex::default(),
            poisoned: AtomicBool::new(false),
            process: engine.0.process(),
        };
        // SAFETY: not NULL, and promised by the caller.
        unsafe { out_session.write(handle(session)) };
        Ok(())
    })
}

fn check_count(name: &str, count: usize, models: usize) -> Result<()> {
    if count == models {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!(
        "{name} is {count}, but the engine has {models} models; give one value for each, in their order"
    )))
}

/// # Safety
/// `options` has `struct_size` bytes, and its arrays have their counts.
unsafe fn read_options(options: *const cos_session_options, engine: &Engine) -> Result<Options> {
    let (models, vocab_size) = (engine.participants().len(), engine.vocab_size());
    // SAFETY: promised by the caller.
    let (options, lengths, weights, stop_tokens) = unsafe {
        let options = read(options)?;
        // Before the arrays are looked at: a wrong count may reach beyond them.
        let counts =
            [("proposal_lengths_count", options.proposal_lengths_count), ("weights_count", options.weights_count)];
        for (name, count) in counts.into_iter().filter(|(_, count)| *count != 0) {
            check_count(name, count, models)?;
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
    let strategy = match options.strategy {
        COS_STRATEGY_AUTO => Strategy::Auto,
        COS_STRATEGY_STANDARD => Strategy::Standard,
        COS_STRATEGY_SPECULATIVE => Strategy::Speculative,
        COS_STRATEGY_COS => Strategy::Cos,
        other => {
            return Err(Error::InvalidArgument(format!(
                "strategy is {other}; it must be one of COS_STRATEGY_*, 0 to 3"
            )));
        }
    };
    let targets = match options.targets {
        COS_TARGETS_AUTO => None,
        COS_TARGETS_COMBINED => Some(Targets::Combined),
        COS_TARGETS_ROUTED => Some(Targets::Routed),
        other => {
            return Err(Error::InvalidArgument(format!("targets is {other}; it must be one of COS_TARGETS_*, 0 to 2")));
        }
    };
    if !(0..=1).contains(&options.log_probabilities) {
        return Err(Error::InvalidArgument(format!(
            "log_probabilities is {}; it must be 0 (off) or 1 (on)",
            options.log_probabilities
        )));
    }
    let outside = |token: &&i32| usize::try_from(**token).map_or(true, |token| token >= vocab_size);
    if let Some(token) = stop_tokens.and_then(|tokens| tokens.iter().find(outside)) {
        return Err(Error::InvalidArgument(format!(
            "stop_tokens holds {token}, but the vocabulary has the tokens 0 to {}",
            vocab_size - 1
        )));
    }
    Ok(Options {
        strategy,
        targets,
        sampler: Sampler::new(options.temperature, options.top_k, options.top_p, options.min_p)?,
        seed: options.seed,
        max_tokens: options.max_tokens as usize,
        proposal_lengths: lengths.map(<[i32]>::to_vec),
        weights: weights.map(<[f32]>::to_vec),
        stop_tokens: stop_tokens.map(<[i32]>::to_vec),
        log_probabilities: options.log_probabilities == 1,
        // SAFETY: promised by the caller.
        combine: options.combine.map(|function| unsafe { combine(function, options.combine_data) }),
    })
}

/// A caller's function as one of ours.
///
/// # Safety
/// `function` keeps to [`cos_combine_fn`], and `data` is what it takes, for as long as the result lives.
unsafe fn combine(
    function: unsafe extern "C-unwind" fn(*const *const f32, usize, usize, *mut f32, *mut c_void) -> i32,
    data: *mut c_void,
) -> Function {
    struct Caller {
        data: *mut c_void,
        /// Reused from call to call.
        rows: Mutex<Vec<*const f32>>,
    }
    // SAFETY: the rows are only looked at under the lock, and a session, which calls this, is used by one thread at a
    // time; that the data may move between threads with it is promised by the caller.
    unsafe impl Send for Caller {}
    // SAFETY: as above.
    unsafe impl Sync for Caller {}
    let caller = Caller { data, rows: Mutex::default() };
    Function::new(move |rows, scores| {
        let caller = &caller; // the whole of it is captured, not the pointer alone
        let mut pointers = caller.rows.lock();
        pointers.clear();
        pointers.extend(rows.map(|row| row.map_or(std::ptr::null(), <[f32]>::as_ptr)));
        // SAFETY: the rows have the length of the scores; the rest is promised by the caller.
        let status =
            unsafe { function(pointers.as_ptr(), pointers.len(), scores.len(), scores.as_mut_ptr(), caller.data) };
        match status {
            0 => Ok(()),
            other => Err(Error::Callback(format!("the combine function of the session returned {other}, not 0"))),
        }
    })
}

/// Append tokens to the sequence: its prompt, or the next turn of a chat between steps. A finished sequence goes on.
/// The models see the tokens in the next step, so that cos_cancel can stop a long prompt.
///
/// On error nothing is appended.
///
/// @param session       in/out, must not be NULL
/// @param tokens        copied; must not be NULL
/// @param tokens_count  at least 1
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no tokens, or one outside the
///         vocabulary), CONTEXT_FULL, BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `tokens` is NULL or has `tokens_count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_prompt(
    session: *mut cos_session,
    tokens: *const i32,
    tokens_count: usize,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with(session, |session| {
            let capacity = session.decoder().context_length();
            if tokens_count > capacity {
                // Before the array is looked at: a count like this may well be garbage.
                return Err(Error::ContextFull(format!(
                    "tokens_count is {tokens_count}, but the context holds {capacity}; shorten the prompt"
                )));
            }
            session.prompt(slice(tokens, tokens_count, "tokens", "tokens_count")?)
        })
    }
}

/// Decode with other weights from the next token on, for "weighted" and "logits". Between steps, and before the first
/// prompt too. The tokens that there are stay, and all that follow have the distribution that the new weights give
/// them. A weight that becomes 0, or no longer is, may change the models that run, and with them the room for tokens.
///
/// If a step was cancelled or failed and weights change because of that, ask for COS_TARGETS_COMBINED: how long a routed
/// step takes depends on the model that its token is routed to, so that stopping the long ones would select among tokens.
///
/// On error nothing changes.
///
/// @param session        in/out, must not be NULL
/// @param weights        copied; must not be NULL
/// @param weights_count  number of models
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (as for the weights of cos_session_options,
///         or the session has a combine function), CONTEXT_FULL (the sequence is longer than the context of a model
///         whose weight was 0), BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `weights` is NULL or has `weights_count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_set_weights(
    session: *mut cos_session,
    weights: *const f32,
    weights_count: usize,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with(session, |session| {
            // Before the array is looked at: a wrong count may reach beyond it.
            check_count("weights_count", weights_count, session.engine().participants().len())?;
            session.set_weights(slice(weights, weights_count, "weights", "weights_count")?)
        })
    }
}

/// Advance the sequence by one round of collaborative decoding.
///
/// Commits at least one token unless the sequence is finished: then there are none, and finish says why again. After
/// COS_FINISH_CANCELLED the next step goes on where the last token was committed. On error nothing is
/// committed, `out_result` is untouched, and the next step tries again.
///
/// @param session     in/out, must not be NULL, not in use on another thread (BUSY)
/// @param out_result  out, must not be NULL; `struct_size` must be set. `tokens` and `log_probabilities` are owned by
///                    the session and valid until its next call.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no prompt yet), NUMERIC, RUNTIME,
///         CALLBACK, BUSY, POISONED, INTERNAL (poisons the session)
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `out_result` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_step(session: *mut cos_session, out_result: *mut cos_step_result) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with(session, |session| {
            check_out(out_result, "out_result")?;
            let struct_size = struct_size(out_result)?;
            let (tokens, state) = session.step()?;
            let finish = match state {
                State::Open => COS_FINISH_NONE,
                State::Ended(Finish::StopToken) => COS_FINISH_STOP,
                State::Ended(Finish::MaxTokens) => COS_FINISH_MAX_TOKENS,
                State::Ended(Finish::ContextFull) => COS_FINISH_CONTEXT_FULL,
                State::Cancelled => COS_FINISH_CANCELLED,
            };
            // The pointer of an empty slice is no address, which some garbage collectors stumble over.
            static NONE: i32 = 0;
            let tokens_count = tokens.len();
            let tokens = if tokens.is_empty() { &raw const NONE } else { tokens.as_ptr() };
            let log_probabilities = match session.log_probabilities() {
                values if values.is_empty() || tokens_count == 0 => std::ptr::null(),
                values => values.as_ptr(),
            };
            let reserved = 0;
            write(
                out_result,
                &cos_step_result { struct_size, tokens, tokens_count, finish, reserved, log_probabilities },
            );
            Ok(())
        })
    }
}

/// Stop the running step, or else the next one: it ends early with COS_FINISH_CANCELLED. Nothing that was committed
/// is lost. May be called from any thread at any time until cos_free is called; never waits for a running pass.
///
/// @param session  must not be NULL
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_cancel(session: *mut cos_session) -> *mut cos_error {
    // SAFETY: promised by the caller.
    guard(|| {
        unsafe { usable(session) }?.cancel.request();
        Ok(())
    })
}

/// Free a session. NULL is fine.
///
/// Calls that are running on other threads end well: a step is cancelled and waited for, and cos_cancel and
/// cos_session_stats keep what they need. No call may begin with the session from now on, not even cos_cancel: a thread
/// that may call it must have returned from it, or be kept out by a lock of the caller's. (Nobody can see from outside
/// whether a call that does not return yet has begun.)
///
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed, and no call begins with it from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_free(session: *mut cos_session) {
    // SAFETY: promised by the caller. NULL, and an error, has nowhere to go.
    let _ = super::catch(|| unsafe {
        let held = hold(session, "session")?;
        held.process.check()?; // in a child of fork() it stays, since what runs it is in the parent
        held.cancel.request();
        let inner = held.inner.lock().take();
        drop(inner);
        release(session);
        Ok(())
    });
}

/// What the session did so far, up to the last call that ended. May be called from any thread at any time until
/// cos_free is called.
///
/// @param session    must not be NULL
/// @param out_stats  out, must not be NULL; `struct_size` must be set
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `out_stats` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_stats(session: *const cos_session, out_stats: *mut cos_stats) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        unsafe { write_stats(out_stats, || Ok(*usable(session)?.stats.lock())) }
    })
}

/// How a session decodes now, and why, as JSON: for a log, a bug report, or a look at what COS_STRATEGY_AUTO does.
///
///     {
///       "strategy": "standard", "speculative" or "cos",       what runs; COS_STRATEGY_AUTO changes it as it learns
///       "targets": "combined" or "routed",
///       "proposal_lengths": [0, 5],                           of each model
///       "stop_below": 0.35,                                   drafts end where they are less likely to be accepted; 0: never
///       "planned": true,                                      by COS_STRATEGY_AUTO; else the next three are 0 and null
///       "changes": 2,                                         of the plan, so far
///       "expected_gain": 1.62,                                over COS_STRATEGY_STANDARD, by the last look at the plan
///       "measured_gain": 1.58,                                standard_ns / planned_ns of cos_stats
///       "models": [ {
///         "name": "base",
///         "pass_ms": [4.1, 4.3, 4.6, 4.8, 5.1, 5.3, 5.5, 5.8],  over 1 to 8 positions, as measured; null if not planned
///         "acceptance": 0.71,                                 of proposals of this model; null if not known
///         "rows_copied": 0,                                   of this model: see cos_stats
///         "captured": 12,                                     of its passes on a GPU, by all sessions of the engine; else null
///         "no_graphs": null } ],                              or why none is captured any more
///       "memory": { "bytes": 7340032, "peak_bytes": 7340032 }   caches, logits and distributions; not the weights
///     }
///
/// Members may be added; those here stay.
///
/// @param session   must not be NULL, not in use on another thread (BUSY)
/// @param out_json  out, must not be NULL: UTF-8; owned by the session, valid until the next call of this function
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `out_json` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_describe(
    session: *const cos_session,
    out_json: *mut *const c_char,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with(session, |inner| {
            check_out(out_json, "out_json")?;
            let json = inner.describe().to_string().replace('\0', "\u{fffd}");
            let session = hold(session, "session")?;
            let mut kept = session.description.lock();
            *kept = CString::new(json).unwrap_or_default();
            out_json.write(kept.as_ptr());
            Ok(())
        })
    }
}

/// What all sessions of an engine did so far, also those that were freed: for the metrics of a server. Grows with each
/// step that ends. May be called from any thread at any time until cos_engine_free is called.
///
/// @param engine     must not be NULL
/// @param out_stats  out, must not be NULL; `struct_size` must be set
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `out_stats` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_stats(engine: *const cos_engine, out_stats: *mut cos_stats) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        unsafe { write_stats(out_stats, || Ok(*cos_engine::of_this_process(engine)?.0.totals().lock())) }
    })
}

/// # Safety
/// `out_stats` is NULL or has `struct_size` bytes.
unsafe fn write_stats(out_stats: *mut cos_stats, stats: impl FnOnce() -> Result<Stats>) -> Result<()> {
    check_out(out_stats, "out_stats")?;
    // SAFETY: promised by the caller.
    unsafe {
        let struct_size = struct_size(out_stats)?;
        let Stats { steps, counters, model_ns, total_ns, rows_copied, plan_times } = stats()?;
        write(
            out_stats,
            &cos_stats {
                struct_size,
                steps,
                tokens: counters.tokens,
                proposed: counters.proposed,
                tested: counters.tested,
                accepted: counters.accepted,
                forwards: counters.forwards,
                positions: counters.positions,
                model_ns,
                total_ns,
                near_ties: counters.near_ties,
                planned_ns: plan_times.planned_ns,
                expected_ns: plan_times.expected_ns,
                standard_ns: plan_times.standard_ns,
                rows_copied,
            },
        );
    }
    Ok(())
}
