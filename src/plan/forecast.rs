//! What a plan would take: the round loop with numbers in place of models.
//!
//! The loop is that of [`round`](crate::decode::round), step by step and with the very policies, but a pass is its expected time
//! and a proposal is accepted with its expected rate. So every strategy is forecast alike, routed or not, for any number
//! of models, and a new one needs nothing here. For two models it agrees with Theorem 3.6.

use std::collections::VecDeque;

use once_cell::sync::Lazy;

use super::estimates::{Calibration, Estimates};
use crate::decode::chance::{CounterRng, Key, Purpose};
use crate::decode::policy::{Action, Plan, Targets, View};

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
        estimates.overlapped_seconds(passes) + models as f64 * estimates.host.per_pass()
    }
}

/// Forecasts plans, from what is known now.
#[derive(Debug)]
pub struct Forecast<'a> {
    task: &'a Task,
    estimates: &'a Estimates,
    needed: Vec<usize>,
    /// The model that each position is routed to.
    routes: Vec<usize>,
    /// By position, and by model within it.
    fates: Vec<Fate>,
    /// Of a run: how much each model has seen.
    seen: Vec<usize>,
    /// Of a run: who proposed what is pending, and the probability with which that is thought to be accepted.
    pending: VecDeque<(usize, f64)>,
}

/// What luck holds for a model's proposal at a position: that depends on the luck before, and on no plan.
#[derive(Debug, Clone, Copy)]
struct Fate {
    /// Whether it would be accepted: by the combined distribution, and by that of the model that the position is routed to.
    accepted: [bool; 2],
    /// Whether there is one at all: behind committed tokens, and behind a draft.
    offered: [bool; 2],
    /// The probability with which it is thought to be accepted by a decoder that knows how sure of itself the model is; likewise.
    /// That is drawn from what it is where proposals have the outcome that this one will have.
    odds: [f64; 2],
}

impl<'a> Forecast<'a> {
    /// Draw the luck of all positions.
    pub fn new(task: &'a Task, estimates: &'a Estimates) -> Self {
        let models = task.weights.len();
        let needed: Vec<usize> = task.needed().collect();
        let doubts: Vec<_> = estimates.calibration.iter().map(Calibration::sampler).collect();
        let mut behind = vec![true; models]; // whether the proposal for the last position would have been accepted
        let (mut routes, mut fates) = (Vec::with_capacity(LONGEST), Vec::with_capacity(LONGEST * models));
        for (position, luck) in LUCK.iter().enumerate() {
            if position == 1 {
                behind.fill(true); // the first position that is decoded comes behind a prompt
            }
            let (accept, offer) = (f64::from(luck.accept), f64::from(luck.offer));
            let route = route(&needed, &task.weights, luck.route);
            routes.push(route);
            for (model, behind) in behind.iter_mut().enumerate() {
                let (acceptance, doubt) = (&estimates.acceptance[model], &doubts[model]);
                let rates = [*behind, true].map(|behind| acceptance.rate(behind));
                let between = estimates.pair_acceptance[[model, route]].or(acceptance.mean());
                let offers = |behind| task.scores[model] || offer < acceptance.offer_rate(behind);
                let odds = |rate: f64| match doubt {
                    Some(doubt) if task.scores[model] => doubt.rate(accept < rate, f64::from(luck.confidence)),
                    _ => rate,
                };
                let fate = Fate {
                    accepted: [task.single == Some(model) || accept < rates[0], model == route || accept < between],
                    offered: [*behind, true].map(offers),
                    odds: rates.map(odds),
                };
                *behind = fate.offered[0] && accept < rates[0];
                fates.push(fate);
            }
        }
        Forecast { task, estimates, needed, routes, fates, seen: Vec::new(), pending: VecDeque::new() }
    }

    /// What it is made from.
    pub fn estimates(&self) -> &'a Estimates {
        self.estimates
    }

    /// Seconds for a token, over so many tokens, at most [`LONGEST`].
    pub fn seconds_per_token(&mut self, plan: &Plan, tokens: usize) -> f64 {
        self.seen.clear();
        self.seen.resize(self.task.weights.len(), 0);
        self.pending.clear();
        let mut run = Run { world: self, plan, last: None, committed: 1, seconds: 0.0 };
        // What is pending at the end has been paid for and is not counted, so the end must be a small part.
        run.decode(tokens.min(LONGEST - 1));
        run.seconds / (run.committed - 1) as f64
    }

    fn fate(&self, model: usize, position: usize) -> &Fate {
        &self.fates[position % LONGEST * self.task.weights.len() + model]
    }
}

/// The model that a position with this luck is routed to.
fn route(needed: &[usize], weights: &[f32], luck: f32) -> usize {
    let (mut left, mut last) = (luck, 0);
    for &model in needed {
        last = model;
        left -= weights[model];
        if left < 0.0 {
            break;
        }
    }
    last
}

struct Run<'a, 'b> {
    world: &'a mut Forecast<'b>,
    plan: &'a Plan,
    /// The model that ran last.
    last: Option<usize>,
    committed: usize,
    seconds: f64,
}

impl Run<'_, '_> {
    fn decode(&mut self, tokens: usize) {
        let max_pending = self.plan.policy.max_pending();
        let mut turn: Option<Action> = None;
        while self.committed <= tokens {
            let start = self.committed;
            let mut declined = false;
            self.verify(start, tokens, &mut turn);
            while self.committed == start {
                let turn_goes_on = turn.take().filter(|_| self.is_hopeful());
                let Action { model, proposals } = turn_goes_on.unwrap_or_else(|| self.next(declined));
                self.advance(model, proposals);
                self.verify(start, tokens, &mut turn);
                let pending = self.world.pending.len();
                if proposals > 0 && self.world.seen[model] == self.committed + pending && pending < max_pending {
                    let behind = usize::from(pending > 0);
                    let fate = self.world.fate(model, self.committed + pending);
                    let (offered, odds) = (fate.offered[behind], fate.odds[behind]);
                    if offered {
                        self.world.pending.push_back((model, odds));
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
        let pending = self.world.pending.len();
        self.plan.policy.next(&View { pending, missing, seen: &self.world.seen, declined })
    }

    /// Passes of a model, and of those that run at the same time.
    fn advance(&mut self, model: usize, proposals: usize) {
        let first = self.pass(model);
        if proposals > 0 {
            self.seconds += first;
            return;
        }
        let (plan, estimates) = (self.plan, self.world.estimates);
        let others = (0..self.world.needed.len()).filter_map(|index| {
            let other = self.world.needed[index];
            (plan.may_overlap(proposals, other) && !self.scored(other)).then(|| self.pass(other))
        });
        let seconds = estimates.overlapped_seconds(std::iter::once(first).chain(others));
        self.seconds += seconds;
    }

    /// A pass by itself.
    fn pass(&mut self, model: usize) -> f64 {
        let len = self.committed + self.world.pending.len();
        let width = len - std::mem::replace(&mut self.world.seen[model], len);
        if !self.world.task.scores[model] || width == 0 {
            return 0.0;
        }
        self.seconds += self.world.estimates.host.per_pass();
        let cold = self.last.replace(model).is_some_and(|last| last != model);
        self.world.estimates.costs[model].at(width, cold)
    }

    fn is_hopeful(&self) -> bool {
        let least = f64::from(self.plan.stop_below) / 100.0;
        least == 0.0 || self.world.pending.iter().map(|(_, odds)| odds).product::<f64>() >= least
    }

    fn scored(&self, model: usize) -> bool {
        self.world.seen[model] >= self.committed
    }

    fn missing(&self) -> Option<usize> {
        match self.plan.targets {
            Targets::Combined => self.world.needed.iter().copied().find(|&model| !self.scored(model)),
            Targets::Routed => Some(self.world.routes[self.committed % LONGEST]).filter(|&model| !self.scored(model)),
        }
    }

    fn verify(&mut self, start: usize, tokens: usize, turn: &mut Option<Action>) {
        while self.committed <= tokens {
            let ready = match self.committed > start {
                true => self.world.needed.iter().all(|&model| self.scored(model)),
                false => self.missing().is_none(),
            };
            if !ready {
                return;
            }
            if let Some((proposer, _)) = self.world.pending.pop_front() {
                self.seconds += self.world.estimates.host.per_proposal();
                let accepted = self.world.fate(proposer, self.committed).accepted;
                if !accepted[usize::from(self.plan.targets == Targets::Routed)] {
                    self.world.pending.clear();
                    *turn = None;
                    self.world.seen.iter_mut().for_each(|seen| *seen = (*seen).min(self.committed));
                }
            }
            self.committed += 1;
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
        for ((proposer, _), mean) in estimates.pair_acceptance.indexed_iter_mut() {
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
        let seconds = Forecast::new(task, estimates).seconds_per_token(&plan, LONGEST - 1);
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
