//! Compares how plans did with what was forecast of them.

use crate::decode::policy::{Plan, Policy, Targets};

/// How much is believed of measurements against forecasts.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Belief {
    /// Tokens after which the measured time of a plan counts as much as its forecast.
    tokens: f64,
    /// Share of the correction known for a kind of plans that applies to an untried plan of that kind.
    of_kind: f64,
    /// Whether all plans that draft for the same targets are of one kind.
    joins_drafts: bool,
}

impl Belief {
    /// Whether one plan tells of another.
    fn are_alike(self, one: &Plan, other: &Plan) -> bool {
        let drafts = |plan: &Plan| (plan.policy != Policy::Standard, plan.targets == Targets::Routed);
        if self.joins_drafts { drafts(one) == drafts(other) } else { kind(one) == kind(other) }
    }
}

const ALONE: Belief = Belief { tokens: 128.0, of_kind: 0.5, joins_drafts: false };

/// In company, a token is one of each session. And forecasts of all plans that draft leave out the same there: sessions
/// whose drafts are rejected do not keep in step with the others.
const IN_COMPANY: Belief = Belief { tokens: 16.0, of_kind: 0.8, joins_drafts: true };

/// Older tokens of a plan fade after so many times [`Belief::tokens`].
const MEMORY: f64 = 4.0;

/// Plans that are remembered.
const CAPACITY: usize = 12;

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

/// The plans that were in force, and how they did.
///
/// The best of many forecasts tends to be too optimistic. Without a memory of its real time, such a plan would be
/// chosen again and again.
#[derive(Debug, Clone, PartialEq)]
pub struct Trials {
    plans: Vec<TriedPlan>,
    belief: Belief,
}

impl Default for Trials {
    fn default() -> Self {
        Trials { plans: Vec::new(), belief: ALONE }
    }
}

impl Trials {
    /// Those of sessions in company.
    pub fn in_company() -> Self {
        Trials { belief: IN_COMPANY, ..Trials::default() }
    }

    fn find(&self, plan: &Plan) -> Option<&TriedPlan> {
        self.plans.iter().find(|tried| tried.plan == *plan)
    }

    /// A plan comes into force. If the memory is full, the plan with the fewest tokens is dropped.
    pub fn begin(&mut self, plan: &Plan) {
        if self.find(plan).is_some() {
            return;
        }
        if self.plans.len() == CAPACITY {
            let least = (0..CAPACITY).min_by(|&a, &b| self.plans[a].tokens.total_cmp(&self.plans[b].tokens));
            least.into_iter().for_each(|least| _ = self.plans.swap_remove(least));
        }
        self.plans.push(TriedPlan { plan: plan.clone(), tokens: 0.0, seconds: 0.0, standard: 0.0, ratio: 1.0 });
    }

    /// Learn that a plan took `seconds` for `tokens` tokens, where `standard` would have taken `standard` seconds by
    /// current estimates. Ignored for a plan that was not begun.
    pub fn record(&mut self, plan: &Plan, tokens: f64, seconds: f64, standard: f64) {
        let Some(tried) = self.plans.iter_mut().find(|tried| tried.plan == *plan) else { return };
        tried.tokens += tokens;
        tried.seconds += seconds;
        tried.standard += standard;
        if tried.tokens > MEMORY * self.belief.tokens {
            tried.tokens /= 2.0;
            tried.seconds /= 2.0;
            tried.standard /= 2.0;
        }
    }

    /// Compare a plan's measured time with its current forecast. Both are relative to `standard`, so that a machine
    /// that became busy does not make the plan look bad.
    pub fn update_ratio(&mut self, plan: &Plan, forecast: f64) {
        let tried = self.plans.iter_mut().find(|tried| tried.plan == *plan && tried.standard > 0.0);
        tried.into_iter().for_each(|tried| tried.ratio = (tried.seconds / tried.standard / forecast).clamp(0.5, 2.0));
    }

    /// Factor that corrects the forecast of a plan: its measured time, and that of others of its kind while it has few
    /// tokens.
    pub fn correction(&self, plan: &Plan) -> f64 {
        let Belief { tokens: trust, of_kind, .. } = self.belief;
        let others =
            || self.plans.iter().filter(|tried| tried.plan != *plan && self.belief.are_alike(&tried.plan, plan));
        let tokens: f64 = others().map(|tried| tried.tokens).sum();
        let excess: f64 = others().map(|tried| tried.tokens * (tried.ratio - 1.0)).sum();
        let untried = 1.0 + of_kind * excess / (tokens + trust);
        let own = self.find(plan).map_or((0.0, 1.0), |tried| (tried.tokens, tried.ratio));
        untried + (own.1 - untried) * own.0 / (own.0 + trust)
    }

    /// Forget all plans, because the conditions have changed.
    pub fn forget(&mut self) {
        self.plans.clear();
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
        let [excess, of_kind] = [&bad, &other].map(|plan| trials.correction(plan) - 1.0);
        assert!((of_kind - ALONE.of_kind * excess).abs() < 1e-9, "{trials:?}");
        assert_eq!(trials.correction(&Plan::STANDARD), 1.0, "another kind");
        // Another plan comes into force, and the first one is still known. Then the memory overflows.
        trials.begin(&other);
        trials.record(&other, 1000.0, 500.0, 1000.0);
        trials.update_ratio(&other, 0.5);
        assert!(trials.correction(&bad) > 1.1 && trials.correction(&other) < 1.02);
        // Many plans of a kind that were tried for a moment tell of it together.
        let mut company = Trials::in_company();
        for length in 5..12 {
            company.begin(&drafts(length));
            company.record(&drafts(length), 8.0, 5.0, 8.0);
            company.update_ratio(&drafts(length), 0.5);
        }
        let [tried, untried] = [drafts(5), other].map(|plan| company.correction(&plan));
        assert!(untried > 1.15 && tried > untried, "{company:?}");
        (5..40).for_each(|length| trials.begin(&drafts(length)));
        assert_eq!(trials.plans.len(), CAPACITY);
        assert!(trials.find(&bad).is_some(), "plans with few tokens are dropped first");
    }
}
