//! What a plan is expected to take: the decoder's own loop, with expected times and acceptance rates in place of
//! models.
//!
//! A forecast runs the [`Schedule`] of the decoder. A pass takes its expected time, and a proposal is accepted by a
//! number that is drawn in advance. So every strategy is forecast alike, routed or not, for any number of models, and a
//! new one needs nothing here. For two models the forecast agrees with Theorem 3.6.

use std::convert::Infallible;

use once_cell::sync::Lazy;

use crate::decode::chance::{CounterRng, Key, Purpose};
use crate::decode::policy::{Plan, Targets};
use crate::decode::schedule::{Decision, Draft, Next, Schedule, World};
use crate::learn::estimates::{Calibration, Estimates};

/// Tokens of the longest forecast.
pub const LONGEST: usize = 1024;

/// Uniform numbers of a position. All plans get the same ones, so that a difference is one of the plans.
struct Uniforms {
    accept: f32,
    offer: f32,
    route: f32,
    confidence: f32,
}

static NUMBERS: Lazy<Vec<Uniforms>> = Lazy::new(|| {
    let random = CounterRng::new(0);
    let draw = |position, purpose| random.uniform(Key { position, purpose, epoch: 0 }) as f32;
    let numbers = |position| Uniforms {
        accept: draw(position, Purpose::Acceptance),
        offer: draw(position, Purpose::Proposal),
        route: draw(position, Purpose::Route),
        confidence: draw(position, Purpose::Target),
    };
    (0..LONGEST).map(numbers).collect()
});

/// What is decoded, as far as the speed depends on it.
#[derive(Debug, Clone, PartialEq)]
pub struct Task {
    /// The weights of the combination; a model of weight 0 may only draft.
    pub weights: Vec<f32>,
    /// The model whose own distribution is the target, if there is one.
    pub single: Option<usize>,
    /// Whether each model scores; look-ups do not.
    pub scores: Vec<bool>,
}

impl Task {
    /// The models that the combination depends on.
    pub fn needed(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.weights.len()).filter(|&model| self.weights[model] != 0.0)
    }

    /// Seconds for a token without proposals: one pass of every needed model.
    pub fn standard(&self, estimates: &Estimates) -> f64 {
        let models = self.needed().count();
        let passes = self.needed().map(|model| estimates.costs[model].at(1, models > 1));
        estimates.overlapped_seconds(passes) + estimates.host.per_round() + models as f64 * estimates.host.per_pass()
    }
}

/// Forecasts plans from what is known now.
#[derive(Debug)]
pub struct Forecast<'a> {
    task: &'a Task,
    estimates: &'a Estimates,
    /// By position: the model that it is routed to.
    routes: Vec<usize>,
    /// By position, and by participant within it.
    proposals: Vec<Proposal>,
    /// Reused from plan to plan.
    schedule: Schedule,
}

/// What would become of a proposal. It depends on the outcomes before, and on no plan.
#[derive(Debug, Clone, Copy)]
struct Proposal {
    /// Whether it would be accepted by the combined distribution, and by the model that the position is routed to.
    accepted: [bool; 2],
    /// Whether there is one behind committed tokens, and behind a draft.
    offered: [bool; 2],
    /// The acceptance probability that the decoder would derive from the proposer's confidence, in both places. It is
    /// drawn from those seen with the same outcome.
    odds: [f64; 2],
}

impl<'a> Forecast<'a> {
    /// Draw the outcomes of all positions.
    pub fn new(task: &'a Task, estimates: &'a Estimates) -> Self {
        let participants = task.weights.len();
        let needed: Vec<usize> = task.needed().collect();
        let confidences: Vec<_> = estimates.calibration.iter().map(Calibration::sampler).collect();
        // Whether the participant's proposal for the last position would have been accepted.
        let mut after_acceptance = vec![true; participants];
        let mut schedule =
            Schedule::new(vec![usize::MAX; participants], task.scores.iter().map(|scores| !scores).collect());
        schedule.set_needed(task.needed());
        let mut forecast = Forecast {
            schedule,
            task,
            estimates,
            routes: Vec::with_capacity(LONGEST),
            proposals: Vec::with_capacity(LONGEST * participants),
        };
        for (position, numbers) in NUMBERS.iter().enumerate() {
            if position == 1 {
                after_acceptance.fill(true); // the first position that is decoded comes behind a prompt
            }
            let (accept, offer) = (f64::from(numbers.accept), f64::from(numbers.offer));
            let route = route(&needed, &task.weights, numbers.route);
            forecast.routes.push(route);
            for (participant, after) in after_acceptance.iter_mut().enumerate() {
                let acceptance = &estimates.acceptance[participant];
                let rates = [*after, true].map(|after| acceptance.rate(after));
                let by_route = estimates.pair_acceptance[[participant, route]].or(acceptance.mean());
                let offers = |after| task.scores[participant] || offer < acceptance.offer_rate(after);
                let odds = |rate: f64| match &confidences[participant] {
                    Some(sampler) if task.scores[participant] => {
                        sampler.rate(accept < rate, f64::from(numbers.confidence))
                    }
                    _ => rate,
                };
                let is_target = task.single == Some(participant);
                let proposal = Proposal {
                    accepted: [is_target || accept < rates[0], participant == route || accept < by_route],
                    offered: [*after, true].map(offers),
                    odds: rates.map(odds),
                };
                *after = proposal.offered[0] && accept < rates[0];
                forecast.proposals.push(proposal);
            }
        }
        forecast
    }

    /// The estimates that it is made from.
    pub fn estimates(&self) -> &'a Estimates {
        self.estimates
    }

    /// Seconds for a token by a plan, over so many tokens, at most [`LONGEST`].
    pub fn seconds_per_token(&mut self, plan: &Plan, tokens: usize) -> f64 {
        // What is pending at the end has been paid for and is not counted, so the end must be a small part.
        let end = tokens.min(LONGEST - 1) + 1;
        let Forecast { task, estimates, routes, proposals, schedule } = self;
        schedule.restart(plan);
        let mut run = Run {
            estimates,
            routes,
            proposals,
            participants: task.weights.len(),
            is_routed: plan.targets == Targets::Routed,
            per_pass: estimates.host.per_pass(),
            per_proposal: estimates.host.per_proposal(),
            committed: 1,
            end,
            last: None,
            seconds: 0.0,
        };
        while run.committed < end {
            let mut has_pass = false;
            while step(schedule, plan, &mut run) == Next::Run {
                run.pass(schedule);
                has_pass = true;
            }
            // Only rounds with passes have shown what work is for a round.
            run.seconds += if has_pass { estimates.host.per_round() } else { 0.0 };
        }
        run.seconds / (end - 1) as f64
    }
}

/// The model that a position with this number is routed to.
fn route(needed: &[usize], weights: &[f32], number: f32) -> usize {
    let (mut left, mut last) = (number, 0);
    for &model in needed {
        last = model;
        left -= weights[model];
        if left < 0.0 {
            break;
        }
    }
    last
}

fn step(schedule: &mut Schedule, plan: &Plan, run: &mut Run) -> Next {
    match schedule.step(plan, run) {
        Ok(next) => next,
    }
}

/// A run of a plan: the schedule's world without rows.
struct Run<'a> {
    estimates: &'a Estimates,
    routes: &'a [usize],
    proposals: &'a [Proposal],
    participants: usize,
    is_routed: bool,
    /// Host seconds of a pass and of a proposal.
    per_pass: f64,
    per_proposal: f64,
    committed: usize,
    /// The run ends with so many tokens.
    end: usize,
    /// The model that ran last.
    last: Option<usize>,
    seconds: f64,
}

impl Run<'_> {
    fn proposal(&self, participant: usize, position: usize) -> &Proposal {
        &self.proposals[position % LONGEST * self.participants + participant]
    }

    /// Run all passes that are needed, at the same time where they overlap.
    fn pass(&mut self, schedule: &mut Schedule) {
        let len = schedule.len();
        let (mut longest, mut sum, mut count) = (0.0f64, 0.0, 0.0);
        for model in schedule.running() {
            let is_cold = self.last.replace(model).is_some_and(|last| last != model);
            let seconds = self.estimates.costs[model].at(len - schedule.seen(model), is_cold);
            (longest, sum, count) = (longest.max(seconds), sum + seconds, count + 1.0);
        }
        let passes = longest + self.estimates.serial_share * (sum - longest);
        self.seconds += passes + count * self.per_pass;
        schedule.ran_all();
    }
}

impl World for Run<'_> {
    type Error = Infallible;

    fn has_ended(&self) -> bool {
        self.committed == self.end
    }

    fn is_settled(&mut self, _position: usize) -> bool {
        false
    }

    fn follow(&mut self, _position: usize) -> Option<Draft> {
        None
    }

    fn given(&mut self, _position: usize) -> Option<Draft> {
        None
    }

    fn is_given(&self, _position: usize) -> bool {
        false
    }

    fn route(&self, position: usize) -> usize {
        self.routes[position % LONGEST]
    }

    fn decide(&mut self, position: usize, draft: Option<Draft>) -> Result<Decision, Infallible> {
        self.committed = position + 1;
        let Some(draft) = draft else { return Ok(Decision::Accepted) };
        self.seconds += self.per_proposal;
        let accepted = self.proposal(draft.proposer, position).accepted[usize::from(self.is_routed)];
        Ok(if accepted { Decision::Accepted } else { Decision::Rejected })
    }

    fn propose(&mut self, proposer: usize, position: usize, pending: usize) -> Result<Option<Draft>, Infallible> {
        let (proposal, behind) = (self.proposal(proposer, position), usize::from(pending > 0));
        let draft = Draft { proposer, certain: false, odds: proposal.odds[behind], depth: pending };
        Ok(proposal.offered[behind].then_some(draft))
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

    /// Two models a and b with one proposal each: a drafts, then they verify each other's bonus tokens in turn until
    /// one is rejected. These are `1 / (1 − α)` tokens for `a + (b + α·a) / (1 − α²)`. Theorem 3.6 expects less for a
    /// cheap a.
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
