//! What a plan would take: the round loop with numbers in place of models.
//!
//! The loop is that of [`round`](super::round), step by step and with the very policies, but a pass is its expected time
//! and a proposal is accepted with its expected rate. So every strategy is forecast alike, routed or not, for any number
//! of models, and a new one needs nothing here. For two models it agrees with Theorem 3.6.

use once_cell::sync::Lazy;

use super::chance::{CounterRng, Key, Purpose};
use super::estimates::Estimates;
use super::policy::{Action, Plan, Targets, View};

/// Tokens of the longest forecast.
pub const LONGEST: usize = 1024;

/// The same luck for all plans, so that their differences show.
struct Luck {
    accept: f32,
    offer: f32,
    route: f32,
    confidence: f32,
}

static LUCK: Lazy<Vec<Luck>> = Lazy::new(|| {
    let random = CounterRng::new(0);
    let draw = |position, purpose| random.uniform(Key { position, purpose, epoch: 0 }) as f32;
    let luck = |position| Luck {
        accept: draw(position, Purpose::Acceptance),
        offer: draw(position, Purpose::Proposal),
        route: draw(position, Purpose::Route),
        confidence: draw(position, Purpose::Target),
    };
    (0..LONGEST).map(luck).collect()
});

/// What is decoded, as far as its speed depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The weights of the combination; a model of weight 0 may only draft.
    pub weights: Vec<f32>,
    /// The model whose own distribution is the target, where there is one.
    pub single: Option<usize>,
    /// Whether each model scores; look-ups do not.
    pub scores: Vec<bool>,
}

impl Task {
    /// The models that the combination depends on.
    pub fn needed(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.weights.len()).filter(|&model| self.weights[model] != 0.0)
    }

    /// Seconds for a token where nobody proposes: one pass of every model that is needed.
    pub fn standard(&self, estimates: &Estimates) -> f64 {
        let models = self.needed().count();
        let passes = self.needed().map(|model| estimates.costs[model].at(1, models > 1));
        estimates.together(passes) + models as f64 * estimates.host.or(0.0)
    }
}

/// Forecasts plans. Its buffers are reused.
#[derive(Debug, Clone, Default)]
pub struct Forecast {
    seen: Vec<usize>,
    /// Who proposed what is pending, and the probability with which that is thought to be accepted.
    pending: Vec<(usize, f64)>,
    /// Whether each model's proposal for the last position would have been accepted.
    behind: Vec<bool>,
    /// The model that ran last.
    last: Option<usize>,
    committed: usize,
    seconds: f64,
}

impl Forecast {
    /// Seconds for a token, over so many tokens, at most [`LONGEST`].
    pub fn seconds_per_token(&mut self, plan: &Plan, task: &Task, estimates: &Estimates, tokens: usize) -> f64 {
        let models = task.weights.len();
        self.seen.clear();
        self.seen.resize(models, 0);
        self.behind.clear();
        self.behind.resize(models, true);
        self.pending.clear();
        self.last = None;
        (self.committed, self.seconds) = (1, 0.0);
        let mut run = Run { state: self, plan, task, estimates };
        // What is pending at the end has been paid for and is not counted, so the end must be a small part.
        let tokens = tokens.min(LONGEST - 1);
        run.decode(tokens);
        self.seconds / (self.committed - 1) as f64
    }
}

struct Run<'a> {
    state: &'a mut Forecast,
    plan: &'a Plan,
    task: &'a Task,
    estimates: &'a Estimates,
}

impl Run<'_> {
    fn decode(&mut self, tokens: usize) {
        let max_pending = self.plan.policy.max_pending();
        let mut turn: Option<Action> = None;
        while self.state.committed <= tokens {
            let start = self.state.committed;
            let mut declined = false;
            self.verify(start, tokens, &mut turn);
            while self.state.committed == start {
                let turn_goes_on = turn.take().filter(|_| self.is_hopeful());
                let Action { model, proposals } = turn_goes_on.unwrap_or_else(|| self.next(declined));
                self.advance(model, proposals);
                self.verify(start, tokens, &mut turn);
                let s = &self.state;
                if proposals > 0 && s.seen[model] == s.committed + s.pending.len() && s.pending.len() < max_pending {
                    if self.offers(model) {
                        let odds = self.odds(model);
                        self.state.pending.push((model, odds));
                        turn = Some(Action { model, proposals: proposals - 1 }).filter(|turn| turn.proposals > 0);
                    } else {
                        declined = true;
                    }
                }
            }
        }
    }

    fn next(&self, declined: bool) -> Action {
        let missing = self.missing().unwrap_or(0);
        self.plan.policy.next(&View { pending: self.state.pending.len(), missing, seen: &self.state.seen, declined })
    }

    /// Passes of a model, and of those that run at the same time.
    fn advance(&mut self, model: usize, proposals: usize) {
        let (task, plan, estimates) = (self.task, self.plan, self.estimates);
        let first = self.pass(model);
        let others = task.needed().filter(|&other| plan.verifies_beside(proposals, other));
        let others = others.filter_map(|other| if self.scored(other) { None } else { Some(self.pass(other)) });
        let seconds = estimates.together(std::iter::once(first).chain(others));
        self.state.seconds += seconds;
    }

    /// A pass by itself.
    fn pass(&mut self, model: usize) -> f64 {
        let len = self.state.committed + self.state.pending.len();
        let width = len - self.state.seen[model];
        self.state.seen[model] = len;
        if !self.task.scores[model] || width == 0 {
            return 0.0;
        }
        self.state.seconds += self.estimates.host.or(0.0);
        let cold = self.state.last.replace(model).is_some_and(|last| last != model);
        self.estimates.costs[model].at(width, cold)
    }

    fn luck(&self, position: usize) -> &'static Luck {
        &LUCK[position % LONGEST]
    }

    fn offers(&self, model: usize) -> bool {
        if self.task.scores[model] {
            return true;
        }
        let position = self.state.committed + self.state.pending.len();
        let behind = !self.state.pending.is_empty() || self.state.behind[model];
        f64::from(self.luck(position).offer) < self.estimates.acceptance[model].offers(behind)
    }

    fn is_hopeful(&self) -> bool {
        let least = f64::from(self.plan.stop_below) / 100.0;
        least == 0.0 || self.state.pending.iter().map(|(_, odds)| odds).product::<f64>() >= least
    }

    /// What the decoder would think of a proposal of this model: it knows how sure of itself the model is, which is drawn
    /// from what it is where its proposals have the outcome that this one will have.
    fn odds(&self, model: usize) -> f64 {
        let behind = !self.state.pending.is_empty() || self.state.behind[model];
        let rate = self.estimates.acceptance[model].rate(behind);
        let doubt = &self.estimates.doubt[model];
        if self.plan.stop_below == 0 || !self.task.scores[model] || !doubt.is_known() {
            return rate;
        }
        let luck = self.luck(self.state.committed + self.state.pending.len());
        doubt.rate_behind(f64::from(luck.accept) < rate, f64::from(luck.confidence))
    }

    fn scored(&self, model: usize) -> bool {
        self.state.seen[model] >= self.state.committed
    }

    fn missing(&self) -> Option<usize> {
        match self.plan.targets {
            Targets::Combined => self.task.needed().find(|&model| !self.scored(model)),
            Targets::Routed => Some(self.route()).filter(|&model| !self.scored(model)),
        }
    }

    /// The model that the front position is routed to.
    fn route(&self) -> usize {
        let mut left = self.luck(self.state.committed).route;
        let mut last = 0;
        for model in self.task.needed() {
            last = model;
            left -= self.task.weights[model];
            if left < 0.0 {
                break;
            }
        }
        last
    }

    fn verify(&mut self, start: usize, tokens: usize, turn: &mut Option<Action>) {
        while self.state.committed <= tokens {
            let ready = match self.state.committed > start {
                true => self.task.needed().all(|model| self.scored(model)),
                false => self.missing().is_none(),
            };
            if !ready {
                return;
            }
            let accept = self.luck(self.state.committed).accept;
            let rejected = match self.state.pending.first() {
                Some(&(proposer, _)) => f64::from(accept) >= self.rate(proposer),
                None => false,
            };
            if rejected {
                let front = self.state.committed;
                self.state.pending.clear();
                *turn = None;
                self.state.seen.iter_mut().for_each(|seen| *seen = (*seen).min(front));
            } else if !self.state.pending.is_empty() {
                self.state.pending.remove(0);
            }
            for (model, behind) in self.state.behind.iter_mut().enumerate() {
                let acceptance = &self.estimates.acceptance[model];
                let offered = self.task.scores[model]
                    || f64::from(LUCK[self.state.committed % LONGEST].offer) < acceptance.offers(*behind);
                *behind = offered && f64::from(accept) < acceptance.rate(*behind);
            }
            self.state.committed += 1;
        }
    }

    /// The rate with which a proposal for the front position is accepted.
    fn rate(&self, proposer: usize) -> f64 {
        let target = match self.plan.targets {
            Targets::Combined => self.task.single,
            Targets::Routed => Some(self.route()),
        };
        let acceptance = &self.estimates.acceptance[proposer];
        match target {
            Some(target) if target == proposer => 1.0,
            Some(target) if self.plan.targets == Targets::Routed => {
                self.estimates.between[[proposer, target]].or(acceptance.mean())
            }
            _ => acceptance.rate(self.state.behind[proposer]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::policy::Policy;

    /// Passes of any width take `costs`; every proposal is accepted with the rate of its proposer.
    fn estimates(costs: &[f64], rates: &[f64]) -> Estimates {
        let flat = |&cost: &f64| (1..=24).map(|width| (width, cost)).collect();
        let mut estimates = Estimates::new(&costs.iter().map(flat).collect::<Vec<_>>());
        for (acceptance, &rate) in estimates.acceptance.iter_mut().zip(rates) {
            acceptance.accepted.iter_mut().for_each(|mean| mean.record(rate, 8.0));
            acceptance.offered.iter_mut().for_each(|mean| mean.record(1.0, 8.0));
        }
        for ((proposer, _), mean) in estimates.between.indexed_iter_mut() {
            mean.record(rates[proposer], 8.0);
        }
        estimates
    }

    fn task(weights: &[f32]) -> Task {
        let single = weights.iter().position(|&weight| weight == 1.0);
        Task { weights: weights.to_vec(), single, scores: vec![true; weights.len()] }
    }

    fn gain(policy: Policy, targets: Targets, task: &Task, estimates: &Estimates) -> f64 {
        let plan = Plan::of(policy, targets);
        let seconds = Forecast::default().seconds_per_token(&plan, task, estimates, LONGEST - 1);
        task.standard(estimates) / seconds
    }

    fn check(found: f64, expected: f64) {
        assert!((found / expected - 1.0).abs() < 0.03, "{found}, not {expected}");
    }

    #[test]
    fn standard_gains_nothing_and_routes_gain_the_models_that_are_not_run() {
        let (thirds, estimates) = (task(&[1.0 / 3.0; 3]), estimates(&[2.0; 3], &[0.5; 3]));
        check(gain(Policy::Standard, Targets::Combined, &thirds, &estimates), 1.0);
        check(gain(Policy::Standard, Targets::Routed, &thirds, &estimates), 3.0);
    }

    /// Two models a and b with one proposal each: a drafts, then they verify each other's bonus tokens in turn until one is
    /// rejected. That are `1 / (1 − α)` tokens for `a + (b + α·a) / (1 − α²)`. Theorem 3.6 counts less for a cheap a.
    #[test]
    fn cos_takes_what_theory_says_and_no_more_than_theorem_3_6() {
        for alpha in [0.3, 0.6, 0.9] {
            for c in [0.1, 0.5, 1.0] {
                let (both, estimates) = (task(&[0.5, 0.5]), estimates(&[c, 1.0], &[alpha; 2]));
                let cos = Policy::Cos { lengths: vec![1, 1], order: vec![0, 1] };
                let found = gain(cos, Targets::Combined, &both, &estimates);
                check(found, (1.0 + c) / ((1.0 - alpha) * c + (1.0 + alpha * c) / (1.0 + alpha)));
                let theorem = (1.0 + c) / (1.0 + c - alpha * c);
                assert!(found > 0.97 * theorem, "{found} at α = {alpha}, c = {c}, theorem {theorem}");
            }
        }
    }

    #[test]
    fn a_drafter_of_weight_0_leaves_a_bonus_token() {
        for (alpha, length, cost) in [(0.5f64, 3, 0.1), (0.8, 5, 0.05), (0.0, 4, 0.2), (1.0, 2, 0.1)] {
            let (target, estimates) = (task(&[0.0, 1.0]), estimates(&[cost, 1.0], &[alpha, 1.0]));
            let tokens: f64 = (0..=length).map(|i| alpha.powi(i)).sum();
            let policy = Policy::Speculative { proposer: 0, length: length as usize };
            let expected = tokens / (1.0 + cost * f64::from(length));
            check(gain(policy, Targets::Combined, &target, &estimates), expected);
        }
    }

    #[test]
    fn a_look_up_without_offers_costs_nothing() {
        let mut target = task(&[0.0, 1.0]);
        target.scores[0] = false;
        let mut silent = estimates(&[1e-6, 1.0], &[0.9, 1.0]);
        silent.acceptance[0].offered.iter_mut().for_each(|mean| mean.record(0.0, 1e9));
        let policy = Policy::Speculative { proposer: 0, length: 4 };
        check(gain(policy.clone(), Targets::Combined, &target, &silent), 1.0);
        let talking = estimates(&[1e-6, 1.0], &[0.9, 1.0]);
        let tokens: f64 = (0..=4).map(|i| 0.9f64.powi(i)).sum();
        check(gain(policy, Targets::Combined, &target, &talking), tokens);
    }
}
