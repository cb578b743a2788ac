//! Counts and times of a session, and of all sessions of an engine.

use crate::decode::decoder::Counters;
use crate::model::CacheUse;
use crate::plan::session::PlanTimes;

/// Counts and times of one session, or their sums over several. Times are in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Calls of [`Session::step`](crate::engine::session::Session::step).
    pub steps: u64,
    /// Counts of the decoder.
    pub counters: Counters,
    /// Nanoseconds inside ONNX Runtime, prompts included.
    pub model_ns: u64,
    /// Nanoseconds inside [`Session::step`](crate::engine::session::Session::step).
    pub total_ns: u64,
    /// Rows of logits that a GPU keeps and that had to be copied to the host. Rows of failed rounds count too.
    pub rows_copied: u64,
    /// What sharing the caches of all models has saved and cost.
    pub cache_use: CacheUse,
    /// Planned, expected and standard time of sessions that plan.
    pub plan_times: PlanTimes,
}

impl Stats {
    /// Add the difference between two statistics of a session, of which `before` is the earlier one.
    pub fn advance(&mut self, before: &Stats, now: &Stats) {
        // The patterns name all members, so that the compiler finds a new member that is missing here.
        let Stats { steps, counters, model_ns, total_ns, rows_copied, cache_use, plan_times } = self;
        let CacheUse { found, recomputed } = cache_use;
        let PlanTimes { planned_ns, expected_ns, standard_ns } = plan_times;
        let Counters { tokens, proposed, tested, accepted, wasted, forwards, positions, near_ties } = counters;
        let (from, to) = (&before.counters, &now.counters);
        for (total, before, now) in [
            (steps, before.steps, now.steps),
            (model_ns, before.model_ns, now.model_ns),
            (total_ns, before.total_ns, now.total_ns),
            (rows_copied, before.rows_copied, now.rows_copied),
            (found, before.cache_use.found, now.cache_use.found),
            (recomputed, before.cache_use.recomputed, now.cache_use.recomputed),
            (planned_ns, before.plan_times.planned_ns, now.plan_times.planned_ns),
            (expected_ns, before.plan_times.expected_ns, now.plan_times.expected_ns),
            (standard_ns, before.plan_times.standard_ns, now.plan_times.standard_ns),
            (tokens, from.tokens, to.tokens),
            (proposed, from.proposed, to.proposed),
            (tested, from.tested, to.tested),
            (accepted, from.accepted, to.accepted),
            (wasted, from.wasted, to.wasted),
            (forwards, from.forwards, to.forwards),
            (positions, from.positions, to.positions),
            (near_ties, from.near_ties, to.near_ties),
        ] {
            *total += now - before;
        }
    }
}
