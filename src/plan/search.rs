//! Searches for the plan that is forecast to take the least time for a token.

use super::choices::Choices;
use super::forecast::{Forecast, LONGEST};
use super::trials::{KINDS, Trials, kind};
use crate::decode::policy::{MAX_PROPOSAL_LENGTH, Plan, Policy, Targets};

/// Tokens of the forecasts that compare many plans.
const SHORT_FORECAST: usize = 256;

/// Tokens of the forecasts that decide between the best plans of each kind.
pub const LONG_FORECAST: usize = LONGEST - 1;

/// Proposal lengths that are tried.
const LENGTHS: [usize; 9] = [1, 2, 3, 4, 5, 6, 8, 11, 16];

/// Values of [`Plan::stop_below`] that are tried, in percent. With such a limit the full length is seldom reached, so
/// longer lengths are tried along with it.
const STOPS: [u8; 6] = [10, 20, 35, 50, 65, 80];

/// Factor on the forecast of a plan that ends turns early. The best of many noisy forecasts promises too much. Where
/// confidence predicts nothing, a fixed length does as well.
const CAUTION: f64 = 1.015;

/// Factor by which a plan must be slower than a shorter or milder one to end the search in that direction.
const MUCH_WORSE: f64 = 1.04;

/// A plan with its forecast.
#[derive(Debug)]
pub struct PlanForecast {
    /// The plan.
    pub plan: Plan,
    /// Seconds for a token.
    pub seconds: f64,
}

/// One search, by estimates that stay the same.
#[derive(Debug)]
pub struct Search<'a> {
    choices: &'a Choices,
    trials: &'a Trials,
    /// Factor on the forecast of `standard`.
    standard_factor: f64,
    forecast: Forecast<'a>,
    /// The best plan of each kind so far.
    best: [Option<PlanForecast>; KINDS],
}

impl<'a> Search<'a> {
    /// A search among `choices`. Forecasts are corrected by `trials`, and that of `standard` by `standard_factor`.
    pub fn new(choices: &'a Choices, trials: &'a Trials, standard_factor: f64, forecast: Forecast<'a>) -> Self {
        Search { choices, trials, standard_factor, forecast, best: Default::default() }
    }

    /// The best plan. Short forecasts find the best one of each kind, and long ones decide between these.
    pub fn run(mut self) -> Option<PlanForecast> {
        self.fixed_lengths();
        self.early_stops();
        let mut best = std::mem::take(&mut self.best);
        for best in best.iter_mut().flatten() {
            best.seconds = self.seconds(&best.plan, LONG_FORECAST);
        }
        best.into_iter().flatten().min_by(|a, b| a.seconds.total_cmp(&b.seconds))
    }

    /// Consider plans of all kinds, whose turns are never ended early.
    fn fixed_lengths(&mut self) {
        let (choices, estimates) = (self.choices, self.forecast.estimates());
        let models = choices.task.weights.len();
        let mut by_cost: Vec<usize> = (0..models).collect();
        by_cost.sort_by(|&a, &b| {
            let cost = |model: usize| if choices.task.scores[model] { estimates.costs[model].at(1, true) } else { 0.0 };
            cost(a).total_cmp(&cost(b))
        });
        let proposers: Vec<usize> = by_cost
            .iter()
            .copied()
            .filter(|&model| choices.may_propose[model] && estimates.acceptance[model].is_reliable())
            .collect();
        for &targets in &choices.targets {
            self.consider(Plan::of(Policy::Standard, targets));
            for &proposer in &proposers {
                self.speculative(proposer, targets);
            }
            // With one drafter and one verifier, `cos` is the same as `speculative`.
            if !proposers.is_empty() && (proposers.len() > 1 || choices.task.needed().count() > 1) {
                self.cos(&proposers, &by_cost, targets);
            }
        }
    }

    /// Consider the lengths of one drafter. Each further proposal gains less than the one before, so a length that is
    /// much worse ends the search.
    fn speculative(&mut self, proposer: usize, targets: Targets) {
        let mut last = f64::INFINITY;
        for length in self.lengths(proposer) {
            let seconds = self.consider(Plan::of(Policy::Speculative { proposer, length }, targets));
            if seconds > MUCH_WORSE * last {
                break;
            }
            last = last.min(seconds);
        }
    }

    /// Consider plans in which models take turns. Begins with one proposal of each model that is needed, and improves
    /// the length of one model after the other (coordinate descent).
    fn cos(&mut self, proposers: &[usize], by_cost: &[usize], targets: Targets) {
        let mut lengths = vec![0; by_cost.len()];
        for &model in proposers.iter().filter(|&&model| self.is_needed(model)) {
            lengths[model] = self.lengths(model).next().unwrap_or(0);
        }
        let mut own = f64::INFINITY;
        if lengths.iter().any(|&length| length > 0) {
            own = self.consider(self.cos_plan(&lengths, by_cost, targets));
        }
        for _ in 0..2 {
            let before = lengths.clone();
            for &model in proposers {
                let mut last = f64::INFINITY;
                for length in std::iter::once(0).chain(self.lengths(model)) {
                    let kept = std::mem::replace(&mut lengths[model], length);
                    let any = lengths.iter().any(|&length| length > 0);
                    let seconds =
                        if any { self.consider(self.cos_plan(&lengths, by_cost, targets)) } else { f64::INFINITY };
                    if seconds < own {
                        own = seconds;
                    } else {
                        lengths[model] = kept;
                        if length > 0 && seconds > MUCH_WORSE * last {
                            break;
                        }
                    }
                    last = last.min(seconds);
                }
            }
            if lengths == before {
                break;
            }
        }
    }

    /// The plan of these lengths: models that propose run first, cheap ones before expensive ones.
    fn cos_plan(&self, lengths: &[usize], by_cost: &[usize], targets: Targets) -> Plan {
        let takes_part = |model: &usize| lengths[*model] > 0 || self.is_needed(*model);
        let mut order: Vec<usize> = by_cost.iter().copied().filter(takes_part).collect();
        order.sort_by_key(|&model| lengths[model] == 0);
        Plan::of(Policy::Cos { lengths: lengths.to_vec(), order }, targets)
    }

    /// Consider the best plan of each kind with turns that end early, for its own length and for longer ones.
    fn early_stops(&mut self) {
        if self.choices.lengths.is_some() {
            return;
        }
        for kind in 0..KINDS {
            let Some(mut plan) = self.best[kind].as_ref().map(|best| best.plan.clone()) else { continue };
            let Some((model, length)) = plan.policy.longest() else { continue };
            if !self.forecast.estimates().calibration[model].is_reliable() {
                continue;
            }
            let mut last_of_lengths = f64::INFINITY;
            for length in LENGTHS.into_iter().filter(|&longer| longer >= length.max(2)) {
                plan.policy.set_length(model, length);
                let mut last = f64::INFINITY;
                for stop_below in STOPS {
                    plan.stop_below = stop_below;
                    let seconds = self.consider(plan.clone());
                    if seconds > MUCH_WORSE * last {
                        break;
                    }
                    last = last.min(seconds);
                }
                if last >= last_of_lengths {
                    break;
                }
                last_of_lengths = last;
            }
        }
    }

    fn is_needed(&self, model: usize) -> bool {
        self.choices.task.weights[model] != 0.0
    }

    /// The lengths to try for a model, shortest first: the one that the caller pinned, or all.
    fn lengths(&self, model: usize) -> impl Iterator<Item = usize> + use<> {
        let pinned = self.choices.lengths.as_ref().map(|lengths| lengths[model]);
        let free = LENGTHS.into_iter().filter(move |_| pinned.is_none());
        free.chain(pinned.filter(|&length| length > 0)).take_while(|&length| length <= MAX_PROPOSAL_LENGTH as usize)
    }

    /// Keep a plan if it is the best one of its kind so far. Returns its seconds for a token.
    fn consider(&mut self, plan: Plan) -> f64 {
        let seconds = self.seconds(&plan, SHORT_FORECAST);
        let best = &mut self.best[kind(&plan)];
        if best.as_ref().is_none_or(|best| seconds < best.seconds) {
            *best = Some(PlanForecast { plan, seconds });
        }
        seconds
    }

    /// The corrected forecast of a plan, in seconds for a token.
    fn seconds(&mut self, plan: &Plan, tokens: usize) -> f64 {
        let caution = if plan.stop_below > 0 { CAUTION } else { 1.0 };
        let seconds = self.forecast.seconds_per_token(plan, tokens);
        let correction = if *plan == Plan::STANDARD { self.standard_factor } else { self.trials.correction(plan) };
        caution * correction * seconds
    }
}
