//! Chooses the plan of `auto`: what is forecast to take the least time for a token.
//!
//! It knows no clock and draws nothing: times and acceptance rates come in as [`Estimates`], a plan comes out.

use super::estimates::{Acceptance, Estimates};
use super::forecast::{Forecast, LONGEST, Task};
use super::trials::{KINDS, Trials, kind};
use crate::decode::policy::{MAX_PROPOSAL_LENGTH, Plan, Policy, Request, Targets};

/// A plan is left only for one that is forecast to be faster by this share: a change costs a moment without drafts.
const HYSTERESIS: f64 = 0.02;

/// Tokens of a forecast that compares many plans, and of one that decides.
const SHORT: usize = 256;
const LONG: usize = LONGEST - 1;

/// Lengths that are tried.
const LENGTHS: [usize; 9] = [1, 2, 3, 4, 5, 6, 8, 11, 16];

/// Odds, in percent, below which a turn may end early. Tried for a length and for longer ones, which then are seldom reached.
const STOPS: [u8; 6] = [10, 20, 35, 50, 65, 80];

/// What a forecast of turns that end early is taken times. The best of so many noisy forecasts promises too much, and where
/// confidence says nothing a length does the same.
const CAUTION: f64 = 1.015;

/// A length that is so much worse than a shorter one ends the search for longer ones.
const MUCH_WORSE: f64 = 1.04;

/// Tokens after which the plan is looked at again: soon at first, while each token says much, then regularly.
const FIRST_REVIEW: usize = 8;
const SETTLED_REVIEW: usize = 64;
const LAST_REVIEW: usize = 256;

/// A plan that has lost so many tokens' time against `standard` is left at once: something has changed.
const ALARM: f64 = 6.0;

/// Of the tokens' time that planning has gained before, the share that a plan may lose besides, and the most that counts: a hard
/// stretch of text is not worth leaving a plan that has done well.
const STAKE: f64 = 0.1;
const MOST_GAINED: f64 = 100.0;

/// A round counts for no more lost tokens than this: another process may have had the machine for a while.
const MOST_LOST: f64 = 2.0;

/// Observations that are left of what was known when something has changed.
const LEFT: f64 = 12.0;

/// Passes after which a model that is needed is to run over a single position again, so that it is known what `standard`
/// takes: at least so many, and so many more the more is lost by a moment of it.
const STALE: f64 = 40.0;
const STALE_AND_DEAR: f64 = 160.0;

/// Tokens after which it is to be seen again what `standard` takes even where narrow passes are run, against that number of passes: its
/// passes may run at the same time, and there is other work beside them.
const SELDOM: f64 = 4.0;

/// What a session leaves to the planner.
#[derive(Debug, Clone, PartialEq)]
pub struct Choices {
    /// What is decoded.
    pub task: Task,
    /// Which targets the session may have.
    pub targets: Vec<Targets>,
    /// γ of each model, where the caller pinned them.
    pub lengths: Option<Vec<usize>>,
    /// Whether each model may propose.
    pub may_propose: Vec<bool>,
}

impl Choices {
    /// What a request leaves open; `scores` says which models do.
    pub fn new(request: &Request, scores: &[bool]) -> Self {
        let combination = request.combination;
        let lengths: Option<Vec<usize>> =
            request.lengths.map(|lengths| lengths.iter().map(|&length| length as usize).collect());
        let may_propose = |model: usize| {
            let only_itself = combination.needed().eq([model]);
            !only_itself && lengths.as_ref().is_none_or(|lengths| lengths[model] > 0)
        };
        Choices {
            task: Task {
                weights: combination.weights().to_vec(),
                single: combination.single(),
                scores: scores.to_vec(),
            },
            targets: [Targets::Combined, Targets::Routed]
                .into_iter()
                .filter(|&targets| request.allows(targets))
                .collect(),
            may_propose: (0..scores.len()).map(may_propose).collect(),
            lengths,
        }
    }

    /// Whether a plan is one of those that may be chosen.
    pub fn allows(&self, plan: &Plan) -> bool {
        let may = |model: usize, length: usize| {
            length == 0 || self.may_propose[model] && self.lengths.as_ref().is_none_or(|pinned| pinned[model] == length)
        };
        self.targets.contains(&plan.targets)
            && (plan.stop_below == 0 || self.lengths.is_none())
            && match &plan.policy {
                Policy::Standard => true,
                Policy::Speculative { proposer, length } => may(*proposer, *length),
                Policy::Cos { lengths, order } => {
                    let takes_part = |model: usize| lengths[model] > 0 || self.task.weights[model] != 0.0;
                    (0..lengths.len())
                        .all(|model| may(model, lengths[model]) && order.contains(&model) == takes_part(model))
                }
            }
    }
}

/// How well a plan does.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Expectation {
    /// Forecast seconds for a token by the plan.
    pub planned: f64,
    /// Forecast seconds for a token by `standard`.
    pub standard: f64,
}

/// What sessions that decode the same hand on.
#[derive(Debug, Clone)]
pub struct Experience {
    /// The last plan.
    pub plan: Plan,
    expectation: Expectation,
    trials: Trials,
    reference: StandardRatio,
    gained: f64,
    since_standard: usize,
    interval: usize,
}

/// What `standard` takes against the times of its passes as they are known while another plan is in force: those of wider passes
/// move with what is run, and the narrow ones are thought to move with them.
#[derive(Debug, Clone, Copy)]
struct StandardRatio {
    ratio: f64,
    weight: f64,
}

/// Measurements that a [`StandardRatio`] looks back on, and how far off one is believed to be.
const REFERENCES: f64 = 6.0;
const FAR_OFF: f64 = 1.5;

impl Default for StandardRatio {
    fn default() -> Self {
        StandardRatio { ratio: 1.0, weight: 1.0 }
    }
}

impl StandardRatio {
    fn record(&mut self, ratio: f64) {
        if ratio.is_finite() {
            self.weight = (self.weight + 1.0).min(REFERENCES);
            self.ratio += (ratio.clamp(1.0 / FAR_OFF, FAR_OFF) - self.ratio) / self.weight;
        }
    }
}

/// Chooses a session's plan, again and again.
#[derive(Debug, Clone)]
pub struct Planner {
    choices: Choices,
    plan: Plan,
    expectation: Expectation,
    trials: Trials,
    reference: StandardRatio,
    /// Tokens whose time was gained over `standard`, at most [`MOST_GAINED`].
    gained: f64,
    /// Tokens since `standard` was run.
    since_standard: usize,
    /// Seconds lost against `standard`, since the plan last was ahead of it.
    lost: f64,
    until_review: usize,
    interval: usize,
}

impl Planner {
    /// Begins with `plan`, or with that of other sessions; then there is as much hurry to look at it as these had.
    pub fn new(choices: Choices, plan: Plan, known: Option<Experience>) -> Self {
        let (expectation, trials, reference) = Default::default();
        let (gained, since_standard, interval) = (0.0, 0, FIRST_REVIEW);
        let new = Experience { plan, expectation, trials, reference, gained, since_standard, interval };
        let Experience { plan, expectation, mut trials, reference, gained, since_standard, interval } =
            known.unwrap_or(new);
        trials.begin(&plan);
        let (lost, until_review) = (0.0, interval);
        Planner { choices, plan, expectation, trials, reference, gained, since_standard, lost, until_review, interval }
    }

    /// For sessions that begin later.
    pub fn experience(&self) -> Experience {
        Experience {
            plan: self.plan.clone(),
            expectation: self.expectation,
            trials: self.trials.clone(),
            reference: self.reference,
            gained: self.gained,
            since_standard: self.since_standard,
            interval: self.interval.min(SETTLED_REVIEW),
        }
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// What may be chosen.
    pub fn choices(&self) -> &Choices {
        &self.choices
    }

    /// What the plan is expected to take, as of the last look.
    pub fn expectation(&self) -> Expectation {
        self.expectation
    }

    /// What `standard` takes for a token, by what is known now: it follows a machine that becomes busy.
    pub fn standard(&self, estimates: &Estimates) -> f64 {
        self.choices.task.standard(estimates) * self.standard_ratio()
    }

    fn standard_ratio(&self) -> f64 {
        if self.is_standard() { 1.0 } else { self.reference.ratio }
    }

    /// While another plan is in force, `standard` was run for so many tokens and took so long, where `standard` seconds were
    /// expected for each.
    pub fn record_standard(&mut self, tokens: usize, seconds: f64, standard: f64) {
        self.reference.record(seconds / (tokens as f64 * standard / self.standard_ratio()));
        self.since_standard = 0;
    }

    /// The plan in force took so long for so many tokens, of which each takes `standard` seconds if nobody proposes.
    pub fn record_round(&mut self, tokens: usize, seconds: f64, standard: f64) {
        self.until_review = self.until_review.saturating_sub(tokens);
        self.since_standard = if self.is_standard() { 0 } else { self.since_standard + tokens };
        self.trials.record(&self.plan, tokens as f64, seconds, tokens as f64 * standard / self.standard_ratio());
        let lost = (seconds - tokens as f64 * standard).min(MOST_LOST * standard);
        self.lost = (self.lost + lost).max(0.0);
        // A round that takes so much longer is no bad luck with its proposals, but a change.
        let is_slow = lost >= MOST_LOST * standard;
        self.gained = if is_slow { 0.0 } else { (self.gained - lost / standard).clamp(0.0, MOST_GAINED) };
        if self.is_alarmed() {
            self.until_review = 0;
        }
    }

    /// Whether it is time to look at the plan.
    pub fn is_due(&self) -> bool {
        self.until_review == 0
    }

    /// Whether the plan has stood for a while.
    pub fn is_settled(&self) -> bool {
        self.interval >= SETTLED_REVIEW
    }

    /// Something new was learned: it is time to look at the plan.
    pub fn review_soon(&mut self) {
        (self.until_review, self.interval) = (0, FIRST_REVIEW);
    }

    /// Whether the plan does so much worse than `standard` that what is known cannot be so any more.
    pub fn is_alarmed(&self) -> bool {
        !self.is_standard()
            && self.expectation.standard > 0.0
            && self.lost > (ALARM + STAKE * self.gained) * self.expectation.standard
    }

    /// Whether it has to be seen again what `standard` takes. All else is measured against that, and a plan under which no
    /// pass is as narrow tells little of it.
    pub fn must_measure_standard(&self, estimates: &Estimates) -> bool {
        let lost = (1.0 - self.expectation.planned / self.expectation.standard.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        let stale = STALE + STALE_AND_DEAR * lost;
        let is_new = !estimates.host.has_baseline() && self.since_standard >= FIRST_REVIEW;
        let mut passes = self.choices.task.needed().map(|k| f64::from(estimates.costs[k].since_single()));
        !self.is_standard()
            && (is_new || self.since_standard as f64 > SELDOM * stale || passes.any(|passes| passes > stale))
    }

    fn is_standard(&self) -> bool {
        self.plan == Plan::STANDARD
    }

    /// Look at the plan: another one, if one is forecast to be faster. Forgets estimates that no longer hold.
    pub fn review(&mut self, estimates: &mut Estimates) -> Option<Plan> {
        (self.until_review, self.interval) = (self.interval, (2 * self.interval).min(LAST_REVIEW));
        if self.is_alarmed() {
            estimates.forget(LEFT);
            // Those that standard does not run will not be seen again unless somebody looks, so they have to begin anew.
            let rest =
                self.choices.task.weights.iter().zip(&mut estimates.acceptance).filter(|(weight, _)| **weight == 0.0);
            rest.for_each(|(_, acceptance)| *acceptance = Acceptance::default());
            self.lost = 0.0;
            self.trials.forget();
            let targets = self.choices.targets[0];
            return Some(Plan::of(Policy::Standard, targets));
        }
        let estimates = &*estimates;
        let current = self.plan.clone();
        let mut forecast = Forecast::new(&self.choices.task, estimates);
        let raw = forecast.seconds_per_token(&current, LONG);
        // What was measured knows what the forecast does not.
        self.trials.update_ratio(&current, raw / self.choices.task.standard(estimates));
        let standard = self.standard(estimates);
        let planned = if self.is_standard() { standard } else { raw * self.trials.correction(&current) };
        self.expectation = Expectation { planned, standard };
        let mut best: [Option<BestPlan>; KINDS] = Default::default();
        self.search(&mut forecast, &mut best);
        self.stop_early(&mut forecast, &mut best);
        // Short forecasts found the best of each kind, a long one decides.
        for best in best.iter_mut().flatten() {
            best.seconds = self.seconds(&best.plan, &mut forecast, LONG);
        }
        let best = best.into_iter().flatten().min_by(|a, b| a.seconds.total_cmp(&b.seconds))?;
        if best.plan == current || best.seconds > planned * (1.0 - HYSTERESIS) {
            return None;
        }
        self.expectation.planned = best.seconds;
        Some(best.plan)
    }

    /// A model proposes no more from here on. Returns the plan to go on with until the next look, if the one in force has it propose.
    pub fn retire(&mut self, model: usize) -> Option<Plan> {
        self.choices.may_propose[model] = false;
        if self.choices.allows(&self.plan) {
            return None;
        }
        self.review_soon();
        Some(Plan::of(Policy::Standard, self.choices.targets[0]))
    }

    /// Take another plan, because it was found better or something else is decoded.
    pub fn adopt(&mut self, plan: Plan) {
        self.plan = plan;
        self.trials.begin(&self.plan);
        self.lost = 0.0;
        (self.until_review, self.interval) = (FIRST_REVIEW, 2 * FIRST_REVIEW);
    }

    fn search(&self, forecast: &mut Forecast, best: &mut [Option<BestPlan>; KINDS]) {
        let estimates = forecast.estimates();
        let models = self.choices.task.weights.len();
        let mut by_cost: Vec<usize> = (0..models).collect();
        by_cost.sort_by(|&a, &b| {
            let cost =
                |model: usize| if self.choices.task.scores[model] { estimates.costs[model].at(1, true) } else { 0.0 };
            cost(a).total_cmp(&cost(b))
        });
        let proposers: Vec<usize> = by_cost
            .iter()
            .copied()
            .filter(|&model| self.choices.may_propose[model] && estimates.acceptance[model].is_reliable())
            .collect();
        for &targets in &self.choices.targets {
            self.consider(Plan::of(Policy::Standard, targets), forecast, best);
            for &proposer in &proposers {
                self.speculative(proposer, targets, forecast, best);
            }
            // One drafter before one verifier is what was just looked at.
            if !proposers.is_empty() && (proposers.len() > 1 || self.choices.task.needed().count() > 1) {
                self.cos(&proposers, &by_cost, targets, forecast, best);
            }
        }
    }

    /// Of one drafter, the best length. Longer ones pay less and less, so one that is much worse ends the search.
    fn speculative(
        &self,
        proposer: usize,
        targets: Targets,
        forecast: &mut Forecast,
        best: &mut [Option<BestPlan>; KINDS],
    ) {
        let mut last = f64::INFINITY;
        for length in self.lengths(proposer) {
            let plan = Plan::of(Policy::Speculative { proposer, length }, targets);
            let seconds = self.consider(plan, forecast, best);
            if seconds > MUCH_WORSE * last {
                break;
            }
            last = last.min(seconds);
        }
    }

    /// Models take turns: from one proposal of each model that is needed, one length after the other is improved.
    fn cos(
        &self,
        proposers: &[usize],
        by_cost: &[usize],
        targets: Targets,
        forecast: &mut Forecast,
        best: &mut [Option<BestPlan>; KINDS],
    ) {
        let needs = |choices: &Choices, model: usize| choices.task.weights[model] != 0.0;
        let mut lengths = vec![0; by_cost.len()];
        for &model in proposers.iter().filter(|&&model| needs(&self.choices, model)) {
            lengths[model] = self.lengths(model).next().unwrap_or(0);
        }
        let plan = |this: &Self, lengths: &[usize]| {
            let takes_part = |model: &usize| lengths[*model] > 0 || needs(&this.choices, *model);
            let mut order: Vec<usize> = by_cost.iter().copied().filter(takes_part).collect();
            order.sort_by_key(|&model| lengths[model] == 0);
            Plan::of(Policy::Cos { lengths: lengths.to_vec(), order }, targets)
        };
        let mut own = f64::INFINITY;
        if lengths.iter().any(|&length| length > 0) {
            own = self.consider(plan(self, &lengths), forecast, best);
        }
        for _ in 0..2 {
            let before = lengths.clone();
            for &model in proposers {
                let mut last = f64::INFINITY;
                let all: Vec<usize> = std::iter::once(0).chain(self.lengths(model)).collect();
                for length in all {
                    let kept = std::mem::replace(&mut lengths[model], length);
                    let any = lengths.iter().any(|&length| length > 0);
                    let seconds = if any { self.consider(plan(self, &lengths), forecast, best) } else { f64::INFINITY };
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

    /// Of the best plan of each kind, the odds below which turns had better end: for its lengths, and for longer ones.
    fn stop_early(&self, forecast: &mut Forecast, best: &mut [Option<BestPlan>; KINDS]) {
        if self.choices.lengths.is_some() {
            return;
        }
        for kind in 0..KINDS {
            let Some(mut plan) = best[kind].as_ref().map(|best| best.plan.clone()) else { continue };
            let Some((model, length)) = plan.policy.longest() else { continue };
            if !forecast.estimates().calibration[model].is_reliable() {
                continue;
            }
            let mut last_of_lengths = f64::INFINITY;
            for length in LENGTHS.into_iter().filter(|&longer| longer >= length.max(2)) {
                plan.policy.set_length(model, length);
                let mut last = f64::INFINITY;
                for stop_below in STOPS {
                    plan.stop_below = stop_below;
                    let seconds = self.consider(plan.clone(), forecast, best);
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

    fn lengths(&self, model: usize) -> impl Iterator<Item = usize> + use<> {
        let pinned = self.choices.lengths.as_ref().map(|lengths| lengths[model]);
        let free = LENGTHS.into_iter().filter(move |_| pinned.is_none());
        free.chain(pinned.filter(|&length| length > 0)).take_while(|&length| length <= MAX_PROPOSAL_LENGTH as usize)
    }

    fn consider(&self, plan: Plan, forecast: &mut Forecast, best: &mut [Option<BestPlan>; KINDS]) -> f64 {
        let seconds = self.seconds(&plan, forecast, SHORT);
        let best = &mut best[kind(&plan)];
        if best.as_ref().is_none_or(|best| seconds < best.seconds) {
            *best = Some(BestPlan { plan, seconds });
        }
        seconds
    }

    fn seconds(&self, plan: &Plan, forecast: &mut Forecast, tokens: usize) -> f64 {
        let caution = if plan.stop_below > 0 { CAUTION } else { 1.0 };
        let seconds = forecast.seconds_per_token(plan, tokens);
        let bias = if *plan == Plan::STANDARD { self.standard_ratio() } else { self.trials.correction(plan) };
        caution * bias * seconds
    }
}

/// The best plan of a kind so far.
#[derive(Debug)]
struct BestPlan {
    plan: Plan,
    seconds: f64,
}
