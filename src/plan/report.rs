//! What planning hears of rounds, and counts.

use std::time::Duration;

use super::planner::Expectation;

/// A round that succeeded, with its times.
#[derive(Debug, Clone, Copy)]
pub struct RoundReport {
    /// Tokens committed.
    pub tokens: usize,
    /// Time of the round.
    pub total: Duration,
    /// Part of that time spent inside models, in passes that the session had.
    pub models: Duration,
    /// Whether it waited for its turn, or for room in a pass. Then the rest is not only work of the host.
    pub stood_aside: bool,
    /// Whether similar rounds will take as long: it ran over no prompt, and no pass of it prepared later passes.
    pub is_usual: bool,
    /// Whether the sequence goes on.
    pub open: bool,
    /// Sessions that decoded at the same time, this one included.
    pub company: usize,
}

/// Nanoseconds of the rounds of a session that plans, without those that ran over prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanTimes {
    /// Time that its tokens took.
    pub planned_ns: u64,
    /// Time that they were expected to take.
    pub expected_ns: u64,
    /// Time that `standard` would have taken for as many tokens, by measured pass times.
    pub standard_ns: u64,
}

impl PlanTimes {
    /// Count a round, once something is expected. `standard` is in seconds for a token.
    pub(super) fn count(&mut self, round: RoundReport, expectation: Expectation, standard: f64) {
        if expectation.standard > 0.0 {
            let nanoseconds = |seconds: f64| (seconds * round.tokens as f64 * 1e9) as u64;
            self.planned_ns += round.total.as_nanos() as u64;
            self.expected_ns += nanoseconds(expectation.planned);
            self.standard_ns += nanoseconds(standard);
        }
    }
}
