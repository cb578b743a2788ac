//! The mirror of a session: its options, and everything that the simulation knows about it.

use std::sync::Arc;

use cos::decode::combine::Combination;
use cos::ffi::*;
use parking_lot::Mutex;

use super::models::{FunctionData, Ledger};
use crate::common::Sampling;

pub fn members(stats: &cos_stats) -> Vec<u64> {
    // All members are named, so that a new one is not forgotten.
    let cos_stats { struct_size: _, steps, tokens, proposed, tested, accepted, forwards, positions, .. } = *stats;
    let cos_stats { model_ns, total_ns, near_ties, planned_ns, expected_ns, standard_ns, rows_copied, .. } = *stats;
    let counts = [steps, tokens, proposed, tested, accepted, forwards, positions, near_ties];
    [&counts[..], &[model_ns, total_ns, planned_ns, expected_ns, standard_ns, rows_copied]].concat()
}

/// A result with values that no call writes, which shows whether a call wrote it.
pub fn sentinel() -> cos_step_result {
    cos_step_result {
        struct_size: size_of::<cos_step_result>(),
        tokens: 8 as *const i32,
        tokens_count: 77,
        finish: 88,
        reserved: 99,
        log_probabilities: 16 as *const f32,
        top_tokens: 24 as *const i32,
        top_log_probabilities: 32 as *const f32,
        top_count: 66,
        model_log_probabilities: 40 as *const f32,
        origins: 48 as *const cos_origin,
    }
}

pub fn is_untouched(result: &cos_step_result) -> bool {
    let sentinel = sentinel();
    (result.tokens, result.tokens_count, result.finish) == (sentinel.tokens, sentinel.tokens_count, sentinel.finish)
        && (result.reserved, result.log_probabilities) == (sentinel.reserved, sentinel.log_probabilities)
        && (result.top_tokens, result.top_count) == (sentinel.top_tokens, sentinel.top_count)
        && result.top_log_probabilities == sentinel.top_log_probabilities
        && (result.model_log_probabilities, result.origins) == (sentinel.model_log_probabilities, sentinel.origins)
}

pub fn finish_name(finish: i32) -> &'static str {
    match finish {
        COS_FINISH_NONE => "finish: none",
        COS_FINISH_STOP => "finish: stop",
        COS_FINISH_MAX_TOKENS => "finish: max_tokens",
        COS_FINISH_CONTEXT_FULL => "finish: context full",
        COS_FINISH_CANCELLED => "finish: cancelled",
        COS_FINISH_COMPLETE => "finish: complete",
        _ => "finish: another",
    }
}

pub fn error_name(code: i32) -> &'static str {
    match code {
        0 => "ok",
        COS_ERROR_INVALID_ARGUMENT => "error: invalid argument",
        COS_ERROR_RUNTIME => "error: runtime",
        COS_ERROR_CONTEXT_FULL => "error: context full",
        COS_ERROR_NUMERIC => "error: numeric",
        COS_ERROR_UNSUPPORTED => "error: unsupported",
        COS_ERROR_POISONED => "error: poisoned",
        COS_ERROR_INTERNAL => "error: internal",
        COS_ERROR_CALLBACK => "error: callback",
        _ => "error: another",
    }
}

/// The options of a valid session.
#[derive(Debug, Clone)]
pub struct Options {
    pub strategy: i32,
    pub targets: i32,
    pub sampling: Sampling,
    pub lengths: Option<Vec<i32>>,
    pub weights: Option<Vec<f32>>,
    pub stop_tokens: Option<Vec<i32>>,
    pub max_tokens: usize,
    pub log_probabilities: bool,
    pub function: bool,
}

impl Options {
    pub fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0
    }
}

/// A session with its mirror.
pub struct Session {
    pub handle: *mut cos_session,
    pub name: u32,
    pub options: Options,
    pub ledger: Arc<Mutex<Ledger>>,
    /// The user data of the combine function. It must live as long as the session.
    pub _function: Option<Box<FunctionData>>,
    /// The combination for the oracle.
    pub combination: Combination,
    pub routed: bool,
    /// The model that proposes first.
    pub drafter: usize,
    pub stop_tokens: Vec<i32>,
    pub capacity: usize,
    /// How the sequence has ended, or `COS_FINISH_NONE`.
    pub finish: i32,
    pub cancel_requested: bool,
    pub poisoned: bool,
    /// Consecutive rounds that failed or were cancelled.
    pub failures: u32,
    /// Model and position of spoilt rows that may be in a cache.
    pub spoilt: Vec<(usize, usize)>,
    pub steps: u64,
    pub tokens: u64,
    pub stats: cos_stats,
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: made by cos_session_new, and freed here only.
        unsafe { cos_free(self.handle) };
    }
}

impl Session {
    /// The number of committed tokens, including prompts.
    pub fn len(&self) -> usize {
        self.ledger.lock().committed.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Strategy and targets, as a name for counts.
    pub fn way(&self) -> &'static str {
        const WAYS: [[&str; 2]; 4] = [
            ["auto, combined", "auto, routed"],
            ["standard, combined", "standard, routed"],
            ["speculative, combined", "speculative, routed"],
            ["cos, combined", "cos, routed"],
        ];
        WAYS[self.options.strategy as usize][usize::from(self.routed)]
    }

    /// How the sequence ends if this token is committed.
    pub fn end(&self, token: i32) -> i32 {
        let ledger = self.ledger.lock();
        let length = ledger.committed.len() + 1;
        if self.stop_tokens.contains(&token) {
            COS_FINISH_STOP
        } else if length - ledger.prompt_end == self.options.max_tokens {
            COS_FINISH_MAX_TOKENS
        } else if length == self.capacity {
            COS_FINISH_CONTEXT_FULL
        } else {
            COS_FINISH_NONE
        }
    }
}

/// The sampling by which tokens are ranked. A greedy session reports log-probabilities at temperature 1 without
/// filters.
pub fn ranking(sampling: Sampling) -> Sampling {
    if sampling.temperature == 0.0 { Sampling::PLAIN } else { sampling }
}

/// The combination that [`sum`] computes from the models that another combination needs.
pub fn all_ones(combination: &Combination) -> Combination {
    let ones: Vec<f32> = combination.weights().iter().map(|&weight| f32::from(u8::from(weight != 0.0))).collect();
    Combination::logits(&ones).expect("a model that is needed")
}
