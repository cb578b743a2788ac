//! Sessions of the C interface: one sequence each.

use std::borrow::Borrow;
use std::ffi::{CString, c_char, c_void};
use std::sync::Arc;

use parking_lot::Mutex;

use super::engine::cos_engine;
use super::error::cos_error;
use super::exclusive::{Exclusive, Handle, Taken, free, usable};
use super::options::{check_count, cos_session_options, read_options};
use super::{VersionedStruct, check_out, fill, guard, handle, slice, string, struct_size, write_struct};
use crate::decode::decoder::{Finish, LogProbabilities, Origin, OriginKind};
use crate::engine::session::{Options, Session, State};
use crate::engine::stats::Stats;
use crate::error::{Error, Result};
use crate::model::Cancel;

/// The sequence goes on.
pub const COS_FINISH_NONE: i32 = 0;
/// A stop token was committed. It is the last token.
pub const COS_FINISH_STOP: i32 = 1;
/// max_tokens tokens were generated since the last prompt.
pub const COS_FINISH_MAX_TOKENS: i32 = 2;
/// The context has no room for another token.
pub const COS_FINISH_CONTEXT_FULL: i32 = 3;
/// cos_cancel stopped the step.
pub const COS_FINISH_CANCELLED: i32 = 4;
/// The constraint of the session is complete: no token may follow.
pub const COS_FINISH_COMPLETE: i32 = 5;

/// Drawn from the target distribution, where nothing was proposed.
pub const COS_ORIGIN_DRAWN: i32 = 0;
/// Proposed, and accepted.
pub const COS_ORIGIN_ACCEPTED: i32 = 1;
/// Drawn in place of a proposal that was rejected.
pub const COS_ORIGIN_REPLACED: i32 = 2;
/// The only token that the constraint allowed. With log_probabilities_before, such a token takes rows and counts as any
/// other.
pub const COS_ORIGIN_FORCED: i32 = 3;

/// How a token came about.
///
/// Since 0.1.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub struct cos_origin {
    /// One of COS_ORIGIN_*.
    pub kind: i32,
    /// The index of the model or look-up that proposed the token, or the token that was replaced. Of a token that was
    /// drawn from the distribution of one model, as with routed targets, that model. Otherwise -1.
    pub model: i32,
}

// An array of one is an array of the other.
const _: () = {
    use std::mem::offset_of;
    assert!(size_of::<cos_origin>() == size_of::<Origin>() && align_of::<cos_origin>() == align_of::<Origin>());
    assert!(offset_of!(cos_origin, kind) == offset_of!(Origin, kind));
    assert!(offset_of!(cos_origin, model) == offset_of!(Origin, participant));
    assert!(COS_ORIGIN_DRAWN == OriginKind::Drawn as i32 && COS_ORIGIN_ACCEPTED == OriginKind::Accepted as i32);
    assert!(COS_ORIGIN_REPLACED == OriginKind::Replaced as i32 && COS_ORIGIN_FORCED == OriginKind::Forced as i32);
};

/// What a step committed.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_step_result {
    /// sizeof(cos_step_result), set by the caller.
    pub struct_size: usize,
    /// The tokens that the step committed: at least one, unless the sequence is finished. Owned by the session; valid
    /// until its next call.
    pub tokens: *const i32,
    /// Length of `tokens`.
    pub tokens_count: usize,
    /// One of COS_FINISH_*.
    pub finish: i32,
    /// Always 0.
    pub reserved: i32,
    /// The natural logarithm of the probability of each token under the combined distribution; cos_session_options says
    /// which. `tokens_count` values, owned and valid as `tokens`. NULL without tokens, or if
    /// the options did not ask for them.
    pub log_probabilities: *const f32,
    /// The most probable tokens instead of each token, which may be one of them: `tokens_count` rows of `top_count`
    /// tokens, best first. Where fewer are possible, the rest is -1. Owned and valid as `tokens`. NULL if `top_count`
    /// is 0, or without tokens.
    pub top_tokens: *const i32,
    /// The log-probabilities of `top_tokens`; minus infinity for the rest.
    pub top_log_probabilities: *const f32,
    /// top_log_probabilities of cos_session_options.
    pub top_count: usize,
    /// The log-probability of each token under the distribution of each model, as far as the options asked for it:
    /// `tokens_count` rows of one value for each model, in the order of the configuration. NaN for look-ups, and for
    /// models of weight 0 that have not scored the token. NULL if the options did not ask for them, or without tokens.
    pub model_log_probabilities: *const f32,
    /// How each token came about: `tokens_count` values, owned and valid as `tokens`. NULL without tokens, and for
    /// tokens that were scored.
    pub origins: *const cos_origin,
}

// SAFETY: plain data. The size of the first version never changes, and members are only added behind the last one.
unsafe impl VersionedStruct for cos_step_result {
    const NAME: &'static str = "cos_step_result";
    const MIN_SIZE: usize = std::mem::offset_of!(cos_step_result, log_probabilities);
}
const _: () = assert!(<cos_step_result as VersionedStruct>::MIN_SIZE == 32 && size_of::<cos_step_result>() == 80);

/// A session: one sequence of tokens. One thread at a time may use it; a call from another thread returns BUSY. Only
/// cos_cancel and cos_session_stats may be called at any time. Different sessions run in parallel.
///
/// Since 0.1.
pub struct cos_session {
    exclusive: Exclusive<cos_session, Session>,
    cancel: Arc<Cancel>,
    /// A copy that cos_session_stats can read while a step runs.
    pub(super) stats: Mutex<Stats>,
    /// The last result of cos_session_describe, which C reads.
    pub(super) description: Mutex<CString>,
}

impl Handle<Session> for cos_session {
    const NAME: &'static str = "session";

    fn exclusive(&self) -> &Exclusive<cos_session, Session> {
        &self.exclusive
    }

    fn cancel(&self) {
        self.cancel.request();
    }
}

impl cos_session {
    /// Give a session to C. `cos_free` frees it.
    fn into_raw(session: Session) -> *mut cos_session {
        let process = session.engine().process();
        handle(cos_session {
            cancel: session.cancel().clone(),
            stats: Mutex::new(session.stats()),
            description: Mutex::default(),
            exclusive: Exclusive::new(session, process),
        })
    }

    /// The statistics at the end of the last call.
    pub(super) fn stats(&self) -> Stats {
        *self.stats.lock()
    }
}

/// Run a call that needs the session for itself. A panic poisons the session.
///
/// # Safety
/// `session` is NULL or a session that was not freed.
pub(super) unsafe fn with_session(
    session: *const cos_session,
    body: impl FnOnce(&mut Session) -> Result<()>,
) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        let mut taken = unsafe { Taken::new(session) }?;
        let result = taken.run(body);
        taken.tell_stats();
        result
    })
}

impl Taken<cos_session, Session> {
    /// Tell others the statistics, at the end of a call.
    pub(super) fn tell_stats(&self) {
        if !self.is_poisoned() {
            *self.handle.stats.lock() = Borrow::<Session>::borrow(self).stats();
        }
    }
}

/// Start an empty sequence. May be called from any thread at any time.
///
/// @param engine       must not be NULL; may be freed before the session
/// @param options      NULL: greedy, with an automatic strategy. Otherwise `struct_size` must be set.
/// @param out_session  out, must not be NULL; owned by the caller, who frees it with cos_free
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (the message names the member),
///         UNSUPPORTED (a member that this version does not know is set), RUNTIME
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `options` is NULL or has `struct_size` bytes, and its arrays have
/// their counts; `combine` keeps to cos_combine_fn and `combine_data` is what it expects; `out_session` is NULL or
/// valid for a write.
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
        // SAFETY: not NULL, and promised by the caller.
        unsafe { out_session.write(cos_session::into_raw(session)) };
        Ok(())
    })
}

/// Decode by other options from the next token on: temperature, top_k, top_p, min_p, max_tokens, stop_tokens,
/// penalties, bias, bans, min_tokens, the constraint, and log-probabilities. Committed tokens stay, and all tokens
/// behind them have the distribution of the new options. May be called between steps.
///
/// strategy, targets, seed, proposal_lengths, routes and priority must be those of cos_session_new. The seed of a
/// fork is that of cos_session_fork. weights, combine and weigh are not read, so the functions of cos_session_new
/// stay, with their data: cos_session_set_weights changes weights. A text that max_tokens has ended goes on if it is
/// now larger, and one that a constraint has completed if that is now another one. A constraint sees the whole text
/// behind the last prompt, so it must allow what is there: else the next step returns NUMERIC.
///
/// On error, nothing changes. One thread at a time.
///
/// @param session  in/out, must not be NULL, not in use on another thread (BUSY)
/// @param options  must not be NULL; `struct_size` must be set. All members count, so give the old ones with changes.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (as for cos_session_new, or a member is
///         another one that cannot change), UNSUPPORTED, BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `options` is as for cos_session_new.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_set_options(
    session: *mut cos_session,
    options: *const cos_session_options,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with_session(session, |session| {
            let options = read_options(options, session.engine())?;
            session.set_options(&options)
        })
    }
}

/// Share computed tokens with sessions of the same scope only, such as those of one tenant. Without a scope, a session
/// finds what any session of the engine without a scope has computed, and its time tells whether somebody has asked
/// the same before. To be called before the first prompt. One thread at a time.
///
/// @param session  in/out, must not be NULL, not in use on another thread (BUSY)
/// @param scope    UTF-8, ends with NUL, copied; must not be NULL. Sessions with equal scopes share; "" is no scope.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (also if the session has tokens), BUSY,
///         POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `scope` is NULL or a C string.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_set_scope(session: *mut cos_session, scope: *const c_char) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { with_session(session, |session| session.set_scope(string(scope, "scope")?)) }
}

/// Copy a session in its present state: the tokens, and the options with another seed. It costs no pass, and no copy of
/// what was computed: both share that ("cache_blocks" in cos_engine_describe). A model whose sessions do not share a
/// cache computes the tokens anew in the next steps of the copy.
///
/// Each goes on with random numbers of its own, also with equal seeds: given the tokens so far, what they decode is
/// independent. The same calls with the same seeds give the same numbers. The copy has statistics of its own and is
/// cancelled on its own. It begins between two steps, also if cos_step_many is in the middle of a round of the session,
/// and drafts anew what was drafted ahead. The functions of the options and their data serve both, perhaps at the same
/// time.
///
/// One thread at a time.
///
/// @param session      must not be NULL, not in use on another thread (BUSY)
/// @param seed         of the copy
/// @param out_session  out, must not be NULL; owned by the caller, who frees it with cos_free
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, RUNTIME, BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `out_session` is NULL or valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_fork(
    session: *const cos_session,
    seed: u64,
    out_session: *mut *mut cos_session,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with_session(session, |session| {
            check_out(out_session, "out_session")?;
            out_session.write(cos_session::into_raw(session.fork(seed)?));
            Ok(())
        })
    }
}

/// Forget all tokens from index `length` on, those of prompts too. What is decoded there next is drawn with new random
/// numbers. The sequence goes on, also if it had finished, unless max_tokens tokens stand behind the last prompt that
/// is left. A round that cos_step_many has begun is given up. With the length of the sequence, only that is done. One
/// thread at a time.
///
/// @param session  in/out, must not be NULL, not in use on another thread (BUSY)
/// @param length   tokens to keep; at most those of the sequence, prompts included. With 0, cos_prompt comes next.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_rewind(session: *mut cos_session, length: usize) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe { with_session(session, |session| session.rewind(length)) }
}

/// Save a session: its tokens, options and random numbers, without what models have computed. cos_session_restore makes
/// a session of the bytes that goes on where this one stands: with the same numbers if nothing is drafted ahead, and
/// else with new ones of the same distribution. The session stays as it is.
///
/// The bytes hold the prompt and the text. They have a version and a checksum. One thread at a time.
///
/// @param session   must not be NULL, not in use on another thread (BUSY)
/// @param buffer    out: the bytes, in a buffer of the caller; may be NULL if `capacity` is 0
/// @param capacity  length of `buffer`. 0: the bytes are only counted.
/// @param out_size  out, must not be NULL: the number of bytes
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUFFER_TOO_SMALL (nothing is written),
///         UNSUPPORTED (the options of the session have a function, which bytes cannot hold), BUSY, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `buffer` is NULL or has `capacity` bytes; `out_size` is NULL or
/// valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_save(
    session: *const cos_session,
    buffer: *mut c_void,
    capacity: usize,
    out_size: *mut usize,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with_session(session, |session| {
            check_out(out_size, "out_size")?;
            let bytes = session.save()?;
            fill(&bytes, buffer.cast::<u8>(), "buffer", capacity, "bytes")?;
            out_size.write(bytes.len());
            Ok(())
        })
    }
}

/// Make a session of the bytes of cos_session_save, in this or in another process. The engine must have the same models
/// in the same order, and combine them in the same way. Its first step computes all tokens, as after a prompt.
///
/// Bytes that were changed are an error. So are those of another version of the format, which the message names. May be
/// called from any thread at any time.
///
/// @param engine       must not be NULL; may be freed before the session
/// @param bytes        must not be NULL
/// @param size         length of `bytes`
/// @param out_session  out, must not be NULL; owned by the caller, who frees it with cos_free
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (the bytes are damaged, or the engine
///         differs; the message says how), UNSUPPORTED (another version of the format), CONTEXT_FULL, RUNTIME
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `bytes` is NULL or has `size` bytes; `out_session` is NULL or
/// valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_restore(
    engine: *const cos_engine,
    bytes: *const c_void,
    size: usize,
    out_session: *mut *mut cos_session,
) -> *mut cos_error {
    guard(|| {
        check_out(out_session, "out_session")?;
        // SAFETY: promised by the caller.
        unsafe {
            let engine = cos_engine::of_this_process(engine)?;
            let session = Session::restore(&engine.0, slice(bytes.cast::<u8>(), size, "bytes", "size")?)?;
            out_session.write(cos_session::into_raw(session));
        }
        Ok(())
    })
}

/// Append tokens to the sequence: the first prompt, or the next turn of a chat. A finished sequence goes on.
///
/// The call does not run a model. The next step does, so cos_cancel can stop a long prompt. On error, nothing is
/// appended. One thread at a time.
///
/// @param session       in/out, must not be NULL, not in use on another thread (BUSY)
/// @param tokens        copied; must not be NULL
/// @param tokens_count  at least 1
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no tokens, or a token outside the
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
        with_session(session, |session| {
            check_room(session, tokens_count)?;
            session.prompt(slice(tokens, tokens_count, "tokens", "tokens_count")?)
        })
    }
}

/// Append tokens as cos_prompt does, and tell their log-probabilities under the combined distribution: of a prompt, or
/// of an answer that is to be judged. All models that the combination needs run over the tokens, so the call takes as
/// long as a step with such a prompt. The options of the session say which log-probabilities there are; bias, penalties
/// and the constraint have no effect here, because the text begins behind these tokens.
///
/// Nothing comes before the first token of a sequence: its log-probabilities are NaN, and its top_tokens are -1. If
/// cos_cancel stops the call, it finishes with COS_FINISH_CANCELLED and no tokens. On error and if it is cancelled,
/// nothing is appended. One thread at a time.
///
/// @param session       in/out, must not be NULL, not in use on another thread (BUSY)
/// @param tokens        copied; must not be NULL
/// @param tokens_count  at least 1
/// @param out_result    out, must not be NULL; `struct_size` must be set. Its tokens are the given ones. The session
///                      owns the arrays, which are valid until its next call.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (as for cos_prompt, or the options do not
///         ask for log-probabilities), CONTEXT_FULL, and those of cos_step
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `tokens` is NULL or has `tokens_count` elements; `out_result` is
/// NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_session_score(
    session: *mut cos_session,
    tokens: *const i32,
    tokens_count: usize,
    out_result: *mut cos_step_result,
) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with_session(session, |session| {
            check_out(out_result, "out_result")?;
            let struct_size = struct_size(out_result)?;
            check_room(session, tokens_count)?;
            let start = session.decoder().committed().len();
            let state = session.score(slice(tokens, tokens_count, "tokens", "tokens_count")?)?;
            let tokens = &session.decoder().committed()[start..];
            let top_count = session.decoder().settings().alternatives.top;
            write_struct(out_result, &told(struct_size, tokens, (session.scored(), top_count), &[], state));
            Ok(())
        })
    }
}

/// Check a count before its array is read, because so large a count may be garbage.
fn check_room(session: &Session, tokens_count: usize) -> Result<()> {
    let capacity = session.decoder().context_length();
    if tokens_count <= capacity {
        return Ok(());
    }
    Err(Error::ContextFull(format!(
        "tokens_count is {tokens_count}, but the context holds {capacity} tokens; shorten the prompt"
    )))
}

/// Advance the sequence by one round of collaborative decoding.
///
/// Commits at least one token, unless the sequence is finished: then it commits none, and finish has the reason again.
/// After COS_FINISH_CANCELLED, the next step goes on behind the last committed token. On error, nothing is committed,
/// `out_result` is untouched, and the next step tries again. One thread at a time.
///
/// @param session     in/out, must not be NULL, not in use on another thread (BUSY)
/// @param out_result  out, must not be NULL; `struct_size` must be set. The session owns `tokens` and
///                    `log_probabilities`, which are valid until its next call.
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT (no prompt yet), NUMERIC, RUNTIME,
///         CALLBACK, NO_MEMORY (the caches of other sessions take all memory, nothing was decoded yet, and the
///         configuration says "when_full": "refuse"; nothing is lost, and a later step tries again), BUSY, POISONED,
///         INTERNAL (poisons the session)
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed; `out_result` is NULL or has `struct_size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_step(session: *mut cos_session, out_result: *mut cos_step_result) -> *mut cos_error {
    // SAFETY: promised by the caller.
    unsafe {
        with_session(session, |session| {
            check_out(out_result, "out_result")?;
            let struct_size = struct_size(out_result)?;
            let state = session.step()?.1;
            let result = step_result(struct_size, Some(session), state);
            write_struct(out_result, &result);
            Ok(())
        })
    }
}

/// What a step tells C; without a session, nothing.
pub(super) fn step_result(struct_size: usize, session: Option<&Session>, state: State) -> cos_step_result {
    let Some(session) = session else {
        return told(struct_size, &[], (&LogProbabilities::default(), 0), &[], state);
    };
    let top_count = session.decoder().settings().alternatives.top;
    told(struct_size, session.tokens(), (session.log_probabilities(), top_count), session.origins(), state)
}

fn told(
    struct_size: usize,
    tokens: &[i32],
    (told, top_count): (&LogProbabilities, usize),
    origins: &[Origin],
    state: State,
) -> cos_step_result {
    let finish = match state {
        State::Open => COS_FINISH_NONE,
        State::Ended(finish) => finish_number(finish),
        State::Cancelled => COS_FINISH_CANCELLED,
    };
    // The pointer of an empty slice is not an address, and some garbage collectors fail on it.
    static NO_TOKENS: i32 = 0;
    fn optional<T>(values: &[T], any: bool) -> *const T {
        if values.is_empty() || !any { std::ptr::null() } else { values.as_ptr() }
    }
    let any = !tokens.is_empty();
    cos_step_result {
        struct_size,
        tokens: if any { tokens.as_ptr() } else { &raw const NO_TOKENS },
        tokens_count: tokens.len(),
        finish,
        reserved: 0,
        log_probabilities: optional(&told.of_tokens, any),
        top_tokens: optional(&told.top_tokens, any),
        top_log_probabilities: optional(&told.of_top, any),
        top_count,
        model_log_probabilities: optional(&told.of_models, any),
        origins: optional(origins, any).cast(),
    }
}

pub(super) fn finish_number(finish: Finish) -> i32 {
    match finish {
        Finish::StopToken => COS_FINISH_STOP,
        Finish::MaxTokens => COS_FINISH_MAX_TOKENS,
        Finish::ContextFull => COS_FINISH_CONTEXT_FULL,
        Finish::Complete => COS_FINISH_COMPLETE,
    }
}

/// Stop the running step, or the next one if none is running. The step ends early with COS_FINISH_CANCELLED, and all
/// committed tokens stay. May be called from any thread at any time until cos_free is called. Never waits for a pass.
/// If the running step ends by itself before it can be stopped, the next one is stopped, unless the sequence has
/// finished.
///
/// A step that cannot run is not cancelled: that of a finished sequence gives its reason again, and that of a session
/// without a prompt its error. The cancel then stays, and stops the first step behind the next prompt. Several cancels
/// before a step stop that step only.
///
/// @param session  must not be NULL
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, POISONED
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_cancel(session: *mut cos_session) -> *mut cos_error {
    guard(|| {
        // SAFETY: promised by the caller.
        unsafe { usable(session) }?.cancel();
        Ok(())
    })
}

/// Free a session. In a child of fork(), a session of the parent stays as it is.
///
/// Calls that are running on other threads complete: a step is cancelled, and this call waits for it. No call with the
/// session may begin from now on, not even cos_cancel. So make sure that no thread will still call cos_cancel, for
/// example by joining that thread, or with a lock of your own.
///
/// @param session  may be NULL, which does nothing
/// Since 0.1.
///
/// # Safety
/// `session` is NULL or a session that was not freed, and no call begins with it from now on.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_free(session: *mut cos_session) {
    // SAFETY: promised by the caller.
    unsafe { free(session) };
}

/// Change the weights from the next token on, for "weighted" and "logits". May be called between steps, and before the
/// first prompt. Committed tokens stay, and all tokens behind them have the distribution of the new weights.
///
/// A weight that becomes 0, or that was 0, may change which models run, and so how many tokens the context holds.
///
/// If you change weights because a step was cancelled or failed, decode with COS_TARGETS_COMBINED. The time of a routed
/// step depends on the model that was drawn, so cancelling slow steps would select among tokens and bias them. What
/// another session does just now may tell the next route of one with COS_ROUTES_SHARED. If you change weights because
/// of that, decode with COS_ROUTES_OWN.
///
/// On error, nothing changes. One thread at a time.
///
/// @param session        in/out, must not be NULL, not in use on another thread (BUSY)
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
        with_session(session, |session| {
            // Checked before the array is read, because a wrong count may reach beyond its end.
            check_count("weights_count", weights_count, session.engine().participants().len())?;
            session.set_weights(slice(weights, weights_count, "weights", "weights_count")?)
        })
    }
}
