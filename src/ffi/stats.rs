//! Statistics of the C interface: of a session, and of all sessions of an engine.

use std::ffi::c_char;

use super::engine::cos_engine;
use super::error::cos_error;
use super::exclusive::usable;
use super::session::cos_session;
use super::{VersionedStruct, check_out, guard, struct_size, write_struct, write_text};
use crate::engine::metrics::metrics;
use crate::engine::stats::Stats;
use crate::error::Result;

/// Counts and times of a session, or of all sessions of an engine.
///
/// Since 0.1.
#[repr(C)]
pub struct cos_stats {
    /// sizeof(cos_stats), set by the caller.
    pub struct_size: usize,
    /// Rounds: calls of cos_step. With cos_step_many, what it takes from one news of a session to the next.
    pub steps: u64,
    /// Tokens committed, without prompts.
    pub tokens: u64,
    /// Tokens proposed by models and look-ups.
    pub proposed: u64,
    /// Proposals that were accepted or rejected. The others were dropped behind a rejection or an end.
    pub tested: u64,
    /// Proposals accepted. accepted / tested is the acceptance rate.
    pub accepted: u64,
    /// Passes of all models, without those over nothing but prompt.
    pub forwards: u64,
    /// Positions that all models scored, without those of prompts.
    pub positions: u64,
    /// Nanoseconds inside ONNX Runtime, with prompts. Of a pass that several sessions share, each has the share of its
    /// tokens.
    pub model_ns: u64,
    /// Nanoseconds inside cos_step or cos_step_many, in full for each session. A call for many counts until the session
    /// has its tokens, and planned_ns until it ends.
    pub total_ns: u64,
    /// Greedy choices between two nearly equal scores. A pass of another width may choose the other token.
    pub near_ties: u64,
    /// Nanoseconds inside cos_step with COS_STRATEGY_AUTO, from the first evaluation of the plan on, without passes
    /// over prompts. In cos_step_many it includes the time that the other sessions of the call take. An earlier session
    /// of the engine that decoded the same way may have made that evaluation. expected_ns and standard_ns count the
    /// same tokens. The measured gain of planning is standard_ns / planned_ns, and the expected gain is standard_ns /
    /// expected_ns.
    pub planned_ns: u64,
    /// Nanoseconds that these tokens were expected to take when their plan was chosen.
    pub expected_ns: u64,
    /// Nanoseconds that COS_STRATEGY_STANDARD would have taken for these tokens, by the measured times of passes.
    pub standard_ns: u64,
    /// Rows of logits that a model on a GPU leaves there and that had to be copied to the host. The reasons are combine
    /// functions, top_log_probabilities, models that run elsewhere, a plausibility that is judged once more because no
    /// plausible token is possible, and filters that the GPU cannot finish: very many tokens have nearly the same
    /// score, or top_k or top_p reaches tokens less than e^-16 times as likely as the best. 0 if the GPU did all work
    /// on rows. Rows that are always on the host do not count.
    pub rows_copied: u64,
    /// Tokens that a model did not have to compute, because a session with the same beginning had computed them. Those
    /// of all models add up: a prompt of 100 tokens that two models know counts as 200. Whole blocks of the cache are
    /// found, so a prompt shorter than a block counts nothing (cos_engine_describe, "cache_block_tokens").
    pub prefix_tokens: u64,
    /// Tokens that a model has computed once more, because their memory was taken for a session that was started
    /// earlier, or while the session rested. If this grows as fast as `tokens`, the cache is too small for the number
    /// of sessions.
    pub recomputed_tokens: u64,
}

// SAFETY: plain data. The size of the first version never changes, and members are only added behind the last one.
unsafe impl VersionedStruct for cos_stats {
    const NAME: &'static str = "cos_stats";
    const MIN_SIZE: usize = std::mem::offset_of!(cos_stats, near_ties);
}
const _: () = assert!(<cos_stats as VersionedStruct>::MIN_SIZE == 80 && size_of::<cos_stats>() == 136);

/// The statistics of a session, up to the end of its last call. May be called from any thread at any time until
/// cos_free is called, also while a step runs.
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
        unsafe { write_stats(out_stats, || Ok(usable(session)?.stats())) }
    })
}

/// The sums over all sessions of an engine, freed ones included, for the metrics of a server. They grow at the end of
/// each step. May be called from any thread at any time until cos_engine_free is called.
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

/// The metrics of an engine as text that Prometheus reads, for a server's answer to GET /metrics with the content type
/// "text/plain; version=0.0.4". A server may append lines of its own.
///
/// - Counters: the sums of cos_engine_stats; cos_wasted_total, proposals that were rejected or dropped; and
///   cos_calm_passes_total, passes of the process on threads that slept while they waited, because other work wanted
///   the cores.
/// - cos_sessions_decoding: a gauge of the sessions that are in the middle of a round.
/// - Histograms: cos_first_token_seconds, from cos_prompt to the end of the round that commits the first token;
///   cos_between_tokens_seconds, from one round that commits tokens to the next. Time that the caller takes between two
///   steps is included.
/// - Histograms of each model that batches, with the label "model": cos_queue_seconds, from the time when a session
///   asks for a pass until the pass begins; cos_pass_sessions and cos_pass_tokens, how large passes are.
///
/// Metrics may be added; those above stay. May be called from any thread at any time until cos_engine_free is called.
///
/// @param engine     must not be NULL
/// @param text       out: UTF-8 without a NUL at the end, in a buffer of the caller; may be NULL if `capacity` is 0
/// @param capacity   length of `text` in bytes. 0: the bytes are only counted; the text may be longer in the next call.
///                   16 KiB are enough for one model, and 5 KiB more for each other one.
/// @param out_bytes  out, must not be NULL: the number of bytes
/// @return NULL, or an error to free with cos_error_free: INVALID_ARGUMENT, BUFFER_TOO_SMALL (nothing is written)
/// Since 0.1.
///
/// # Safety
/// `engine` is NULL or an engine that was not freed; `text` is NULL or has `capacity` bytes; `out_bytes` is NULL or
/// valid for a write.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cos_engine_metrics(
    engine: *const cos_engine,
    text: *mut c_char,
    capacity: usize,
    out_bytes: *mut usize,
) -> *mut cos_error {
    guard(|| {
        check_out(out_bytes, "out_bytes")?;
        // SAFETY: promised by the caller.
        unsafe { write_text(&metrics(&cos_engine::of_this_process(engine)?.0), text, "text", capacity, out_bytes) }
    })
}

/// # Safety
/// `out_stats` is NULL or has `struct_size` bytes.
unsafe fn write_stats(out_stats: *mut cos_stats, stats: impl FnOnce() -> Result<Stats>) -> Result<()> {
    check_out(out_stats, "out_stats")?;
    // SAFETY: promised by the caller.
    unsafe {
        let struct_size = struct_size(out_stats)?;
        let Stats { steps, counters, model_ns, total_ns, rows_copied, cache_use, plan_times } = stats()?;
        write_struct(
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
                prefix_tokens: cache_use.found,
                recomputed_tokens: cache_use.recomputed,
            },
        );
    }
    Ok(())
}
