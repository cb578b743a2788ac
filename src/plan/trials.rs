//! Compares how plans did with what was forecast of them.

use crate::decode::policy::{Plan, Policy, Targets};

/// Tokens after which the measured time of a plan counts as much as its forecast.
const TRUST: f64 = 128.0;

/// Plans that are remembered.
const CAPACITY: usize = 12;

/// Share of the correction known for a kind of plans that applies to an untried plan of that kind.
const KIND_SHARE: f64 = 0.5;

/// A plan that was in force at some time.
#[derive(Debug, Clone, PartialEq)]
struct TriedPlan {
    plan: Plan,
    /// Tokens decoded by the plan. This and the next two are halved from time to time, so that old rounds fade.
    tokens: f64,
    /// Measured seconds for these tokens.
    seconds: f64,
    /// Seconds that `standard` would have taken for them, by the estimates of that time.
    standard: f64,
    /// Measured time relative to the forecast, as of the last review.
    ratio: f64,
}

impl TriedPlan {
    /// Weight of the measurement against the forecast, from 0 to 1.
    fn trust(&self) -> f64 {
        self.tokens / (self.tokens + TRUST)
    }

    fn correction(&self) -> f64 {
        1.0 + (self.ratio - 1.0) * self.trust()
    }
}

/// The plans that were in force, and how they did.
///
/// The best of many forecasts tends to be too optimistic. Without a memory of its real time, such a plan would be
/// chosen again and again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trials(Vec<TriedPlan>);

impl Trials {
    fn find(&self, plan: &Plan) -> Option<&TriedPlan> {
        self.0.iter().find(|tried| tried.plan == *plan)
    }

    /// A plan comes into force. If the memory is full, the plan with the fewest tokens is dropped.
    pub fn begin(&mut self, plan: &Plan) {
        if self.find(plan).is_some() {
            return;
        }
        if self.0.len() == CAPACITY {
            let least = (0..CAPACITY).min_by(|&a, &b| self.0[a].tokens.total_cmp(&self.0[b].tokens));
            least.into_iter().for_each(|least| _ = self.0.swap_remove(least));
        }
        self.0.push(TriedPlan { plan: plan.clone(), tokens: 0.0, seconds: 0.0, standard: 0.0, ratio: 1.0 });
    }

    /// Learn that a plan took `seconds` for `tokens` tokens, where `standard` would have taken `standard` seconds by
    /// current estimates. Ignored for a plan that was not begun.
    pub fn record(&mut self, plan: &Plan, tokens: f64, seconds: f64, standard: f64) {
        let Some(tried) = self.0.iter_mut().find(|tried| tried.plan == *plan) else { return };
        tried.tokens += tokens;
        tried.seconds += seconds;
        tried.standard += standard;
        if tried.tokens > 4.0 * TRUST {
            tried.tokens /= 2.0;
            tried.seconds /= 2.0;
            tried.standard /= 2.0;
        }
    }

    /// Compare a plan's measured time with its current forecast. Both are relative to `standard`, so that a machine
    /// that became busy does not make the plan look bad.
    pub fn update_ratio(&mut self, plan: &Plan, forecast: f64) {
        let tried = self.0.iter_mut().find(|tried| tried.plan == *plan && tried.standard > 0.0);
        tried.into_iter().for_each(|tried| tried.ratio = (tried.seconds / tried.standard / forecast).clamp(0.5, 2.0));
    }

    /// Factor that corrects the forecast of a plan. The fewer tokens were measured, the nearer it is to 1.
    pub fn correction(&self, plan: &Plan) -> f64 {
        if let Some(tried) = self.find(plan) {
            return tried.correction();
        }
        let same_kind = || self.0.iter().filter(|tried| kind(&tried.plan) == kind(plan));
        let trust: f64 = same_kind().map(TriedPlan::trust).sum();
        let excess: f64 = same_kind().map(|tried| tried.trust() * (tried.correction() - 1.0)).sum();
        1.0 + KIND_SHARE * (excess / trust.max(f64::MIN_POSITIVE))
    }

    /// Forget all plans, because the conditions have changed.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

/// Number of kinds of plans.
pub const KINDS: usize = 6;

/// The kind of a plan, as an index below [`KINDS`]: its policy and its targets, whatever the lengths.
pub fn kind(plan: &Plan) -> usize {
    let policy = match plan.policy {
        Policy::Standard => 0,
        Policy::Speculative { .. } => 1,
        Policy::Cos { .. } => 2,
    };
    policy + 3 * usize::from(plan.targets == Targets::Routed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drafts(length: usize) -> Plan {
        Plan::of(Policy::Speculative { proposer: 0, length }, Targets::Combined)
    }

    #[test]
    fn plans_that_did_worse_than_forecast_are_corrected() {
        let mut trials = Trials::default();
        let (bad, other) = (drafts(4), drafts(2));
        trials.begin(&bad);
        assert_eq!((trials.correction(&bad), trials.correction(&other)), (1.0, 1.0));
        // The forecast was 0.5 of standard, and the plan took 0.6.
        (0..100).for_each(|_| trials.record(&bad, 10.0, 6.0, 10.0));
        trials.update_ratio(&bad, 0.5);
        assert!((1.1..1.2).contains(&trials.correction(&bad)), "{trials:?}");
        assert!((trials.correction(&other) - 1.0 - 0.5 * (trials.correction(&bad) - 1.0)).abs() < 1e-9, "{trials:?}");
        assert_eq!(trials.correction(&Plan::STANDARD), 1.0, "another kind");
        // Another plan comes into force, and the first one is still known. Then the memory overflows.
        trials.begin(&other);
        trials.record(&other, 1000.0, 500.0, 1000.0);
        trials.update_ratio(&other, 0.5);
        assert!(trials.correction(&bad) > 1.1 && trials.correction(&other) == 1.0);
        (5..40).for_each(|length| trials.begin(&drafts(length)));
        assert_eq!(trials.0.len(), CAPACITY);
        assert!(trials.find(&bad).is_some(), "plans with few tokens are dropped first");
    }
}
