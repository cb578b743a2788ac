//! How plans did against what was forecast of them.

use crate::decode::policy::{Plan, Policy, Targets};

/// Tokens for which a measured time counts as much as the forecast of it.
const TRUST: f64 = 128.0;

/// Plans that are remembered.
const CAPACITY: usize = 12;

/// How much of what is known of plans of a kind is held for true of one that was never tried.
const KIND_SHARE: f64 = 0.5;

/// A plan that was in force.
#[derive(Debug, Clone, PartialEq)]
struct TriedPlan {
    plan: Plan,
    /// Tokens and seconds measured, and those that `standard` would have taken by the times of passes as they were then;
    /// they forget.
    tokens: f64,
    seconds: f64,
    standard: f64,
    /// What it took against its forecast, at the last look.
    ratio: f64,
}

impl TriedPlan {
    fn trust(&self) -> f64 {
        self.tokens / (self.tokens + TRUST)
    }

    fn correction(&self) -> f64 {
        1.0 + (self.ratio - 1.0) * self.trust()
    }
}

/// The plans that were in force. Forecasts of many plans are compared, so the best one promises too much: without a memory of
/// what became of it, it would be taken again and again.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Trials(Vec<TriedPlan>);

impl Trials {
    fn find(&self, plan: &Plan) -> Option<&TriedPlan> {
        self.0.iter().find(|trial| trial.plan == *plan)
    }

    /// A plan is in force from here on.
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

    /// A plan that has begun took so long, where `standard` would have taken so long by the times of its passes.
    pub fn record(&mut self, plan: &Plan, tokens: f64, seconds: f64, standard: f64) {
        let Some(trial) = self.0.iter_mut().find(|trial| trial.plan == *plan) else { return };
        trial.tokens += tokens;
        trial.seconds += seconds;
        trial.standard += standard;
        if trial.tokens > 4.0 * TRUST {
            trial.tokens /= 2.0;
            trial.seconds /= 2.0;
            trial.standard /= 2.0;
        }
    }

    /// Compare with what is forecast of a plan now, as a share of `standard`; so a machine that became busy is not taken for a
    /// plan that does badly.
    pub fn update_ratio(&mut self, plan: &Plan, forecast: f64) {
        let trial = self.0.iter_mut().find(|trial| trial.plan == *plan && trial.standard > 0.0);
        trial.into_iter().for_each(|trial| trial.ratio = (trial.seconds / trial.standard / forecast).clamp(0.5, 2.0));
    }

    /// What the forecast of a plan is to be taken times. The less was measured, the nearer to 1.
    pub fn correction(&self, plan: &Plan) -> f64 {
        if let Some(trial) = self.find(plan) {
            return trial.correction();
        }
        let kin = || self.0.iter().filter(|trial| kind(&trial.plan) == kind(plan));
        let trust: f64 = kin().map(TriedPlan::trust).sum();
        let mean =
            kin().map(|trial| trial.trust() * (trial.correction() - 1.0)).sum::<f64>() / trust.max(f64::MIN_POSITIVE);
        1.0 + KIND_SHARE * mean
    }

    /// Something has changed.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

/// Kinds of plans.
pub const KINDS: usize = 6;

/// The kind of a plan: its policy and its targets.
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
    fn plans_that_did_worse_than_forecast_are_remembered() {
        let mut trials = Trials::default();
        let (bad, kin) = (drafts(4), drafts(2));
        trials.begin(&bad);
        assert_eq!((trials.correction(&bad), trials.correction(&kin)), (1.0, 1.0));
        // forecast were 0.5 of standard, it took 0.6
        (0..100).for_each(|_| trials.record(&bad, 10.0, 6.0, 10.0));
        trials.update_ratio(&bad, 0.5);
        assert!((1.1..1.2).contains(&trials.correction(&bad)), "{trials:?}");
        assert!((trials.correction(&kin) - 1.0 - 0.5 * (trials.correction(&bad) - 1.0)).abs() < 1e-9, "{trials:?}");
        assert_eq!(trials.correction(&Plan::STANDARD), 1.0, "another kind");
        // Another plan has its turn, and the first one is still known; then too many have.
        trials.begin(&kin);
        trials.record(&kin, 1000.0, 500.0, 1000.0);
        trials.update_ratio(&kin, 0.5);
        assert!(trials.correction(&bad) > 1.1 && trials.correction(&kin) == 1.0);
        (5..40).for_each(|length| trials.begin(&drafts(length)));
        assert_eq!(trials.0.len(), CAPACITY);
        assert!(trials.find(&bad).is_some(), "those of which least is known go first");
    }
}
