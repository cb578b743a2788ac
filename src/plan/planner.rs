//! Chooses the plan of `auto`: the one that is forecast to take the least time for a token.
//!
//! The planner is pure. It reads no clock and draws nothing: [`Estimates`] come in, a plan comes out.

use super::choices::Choices;
use super::forecast::Forecast;
use super::search::{LONG_FORECAST, Search};
use super::trials::Trials;
use crate::decode::policy::{Plan, Policy, Targets};
use crate::learn::estimates::{Acceptance, Estimates};

/// Share by which another plan must be forecast to be faster before it replaces the current one. A change costs a
/// moment without drafts.
const HYSTERESIS: f64 = 0.02;

/// The same in company, where many sessions change.
const HYSTERESIS_IN_COMPANY: f64 = 0.03;

/// Share by which a plan must be faster than `standard` to stay: `standard` need not be measured beside itself.
const WORTH: f64 = 0.01;

/// Tokens between reviews of the plan: at first, once the plan has settled, and at most. The interval doubles from the
/// first to the last, because early tokens teach the most.
const FIRST_REVIEW: usize = 8;
const SETTLED_REVIEW: usize = 64;
const LAST_REVIEW: usize = 256;

/// Loss against `standard`, in tokens' time, at which a plan is left at once: something has changed.
const ALARM: f64 = 6.0;

/// Share of the time gained so far that a plan may lose on top of [`ALARM`], so that a hard stretch of text does not
/// end a plan that has done well.
const STAKE: f64 = 0.1;

/// Most gain that counts for [`STAKE`], in tokens' time.
const MOST_GAINED: f64 = 100.0;

/// Most loss that a round counts for, in tokens' time. Another process may have taken the machine for a moment.
const MOST_LOST: f64 = 2.0;

/// Observations that the means keep after an alarm.
const KEPT_AFTER_ALARM: f64 = 12.0;

/// Passes without one over a single position after which `standard` is measured again.
const STALE: f64 = 40.0;

/// Passes added to [`STALE`] where a round of `standard` is costly: all of them if the current plan took no time at all
/// against it, none if the plan gains nothing.
const STALE_IF_COSTLY: f64 = 160.0;

/// `standard` is also measured after so many times that number in tokens, even if narrow passes run under the current
/// plan. Its passes may overlap, and it has other host work.
const SELDOM: f64 = 4.0;

/// Forecast times, in seconds for a token.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Expectation {
    /// By the current plan.
    pub planned: f64,
    /// By `standard`.
    pub standard: f64,
}

/// What a planner hands on to later sessions of the same task.
#[derive(Debug, Clone)]
pub struct Experience {
    /// The last plan.
    pub plan: Plan,
    expectation: Expectation,
    trials: Trials,
    standard_correction: StandardCorrection,
    gained: f64,
    since_standard: usize,
    interval: usize,
}

/// The measured time of `standard` relative to its forecast, while another plan is in force.
///
/// Under a plan with wide passes, the estimates of narrow ones move along with them and drift from the truth.
#[derive(Debug, Clone, Copy)]
struct StandardCorrection {
    factor: f64,
    weight: f64,
}

/// Measurements that a [`StandardCorrection`] remembers.
const STANDARD_MEMORY: f64 = 6.0;

/// A measurement counts as at most so many times slower or faster than its forecast.
const OUTLIER: f64 = 1.5;

impl Default for StandardCorrection {
    fn default() -> Self {
        StandardCorrection { factor: 1.0, weight: 1.0 }
    }
}

impl StandardCorrection {
    fn is_measured(&self) -> bool {
        self.weight > 1.0
    }

    fn record(&mut self, ratio: f64) {
        if ratio.is_finite() {
            self.weight = (self.weight + 1.0).min(STANDARD_MEMORY);
            self.factor += (ratio.clamp(1.0 / OUTLIER, OUTLIER) - self.factor) / self.weight;
        }
    }
}

/// Chooses the plan of a session, and reviews it as tokens are decoded.
#[derive(Debug, Clone)]
pub struct Planner {
    choices: Choices,
    plan: Plan,
    /// See [`HYSTERESIS`].
    hysteresis: f64,
    expectation: Expectation,
    trials: Trials,
    standard_correction: StandardCorrection,
    /// Time gained over `standard`, in tokens' time, at most [`MOST_GAINED`].
    gained: f64,
    /// Tokens since `standard` was last measured.
    since_standard: usize,
    /// Seconds lost against `standard` since the plan was last ahead of it.
    lost: f64,
    /// Tokens until the next review is due.
    until_review: usize,
    /// Tokens between that review and the one after it.
    interval: usize,
}

impl Planner {
    /// A planner that begins with `plan`, or where an earlier session left off.
    pub fn new(choices: Choices, plan: Plan, earlier: Option<Experience>) -> Self {
        let (expectation, trials, standard_correction) = Default::default();
        let (gained, since_standard, interval) = (0.0, 0, FIRST_REVIEW);
        let new = Experience { plan, expectation, trials, standard_correction, gained, since_standard, interval };
        let Experience { plan, expectation, mut trials, standard_correction, gained, since_standard, interval } =
            earlier.unwrap_or(new);
        trials.begin(&plan);
        Planner {
            choices,
            plan,
            hysteresis: HYSTERESIS,
            expectation,
            trials,
            standard_correction,
            gained,
            since_standard,
            lost: 0.0,
            until_review: interval,
            interval,
        }
    }

    /// A planner of the same choices for sessions in company. It begins without proposals, which may cost much there.
    pub fn for_company(&self) -> Planner {
        let targets = self.choices.targets.last().copied().unwrap_or(Targets::Combined);
        let planner = Planner::new(self.choices.clone(), Plan::of(Policy::Standard, targets), None);
        Planner { trials: Trials::in_company(), hysteresis: HYSTERESIS_IN_COMPANY, ..planner }
    }

    /// What later sessions of the same task begin with.
    pub fn experience(&self) -> Experience {
        Experience {
            plan: self.plan.clone(),
            expectation: self.expectation,
            trials: self.trials.clone(),
            standard_correction: self.standard_correction,
            gained: self.gained,
            since_standard: self.since_standard,
            interval: self.interval.min(SETTLED_REVIEW),
        }
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The plans that may be chosen.
    pub fn choices(&self) -> &Choices {
        &self.choices
    }

    /// Forecast times as of the last review; 0 before the first one.
    pub fn expectation(&self) -> Expectation {
        self.expectation
    }

    /// Seconds for a token by `standard`, from current estimates. They follow a machine that becomes busy.
    pub fn standard(&self, estimates: &Estimates) -> f64 {
        self.choices.task.standard(estimates) * self.standard_factor()
    }

    /// Factor on the forecast of `standard`. It is 1 while `standard` itself runs, since estimates are exact then.
    fn standard_factor(&self) -> f64 {
        if self.is_standard() { 1.0 } else { self.standard_correction.factor }
    }

    /// Learn that `standard`, run for a moment in place of the current plan, took `seconds` for `tokens` tokens.
    /// `standard` is what [`Planner::standard`] expects, in seconds for a token.
    pub fn record_standard(&mut self, tokens: usize, seconds: f64, standard: f64) {
        self.standard_correction.record(seconds / (tokens as f64 * standard / self.standard_factor()));
        self.since_standard = 0;
    }

    /// Learn that the current plan took `seconds` for `tokens` tokens. `standard` is what [`Planner::standard`]
    /// expects, in seconds for a token.
    pub fn record_round(&mut self, tokens: usize, seconds: f64, standard: f64) {
        self.until_review = self.until_review.saturating_sub(tokens);
        self.since_standard = if self.is_standard() { 0 } else { self.since_standard + tokens };
        self.trials.record(&self.plan, tokens as f64, seconds, tokens as f64 * standard / self.standard_factor());
        let lost = (seconds - tokens as f64 * standard).min(MOST_LOST * standard);
        self.lost = (self.lost + lost).max(0.0);
        // Rejections alone never make a round this slow: something has changed, so earlier gains no longer count.
        let is_slow = lost >= MOST_LOST * standard;
        self.gained = if is_slow { 0.0 } else { (self.gained - lost / standard).clamp(0.0, MOST_GAINED) };
        if self.is_alarmed() {
            self.until_review = 0;
        }
    }

    /// Whether a review of the plan is due.
    pub fn is_due(&self) -> bool {
        self.until_review == 0
    }

    /// Whether the plan has been in force for a while.
    pub fn is_settled(&self) -> bool {
        self.interval >= SETTLED_REVIEW
    }

    /// Make a review due now, because something new was learned.
    pub fn review_soon(&mut self) {
        (self.until_review, self.interval) = (0, FIRST_REVIEW);
    }

    /// Whether the plan loses so much against `standard` that the estimates can no longer be right.
    pub fn is_alarmed(&self) -> bool {
        !self.is_standard()
            && self.expectation.standard > 0.0
            && self.lost > (ALARM + STAKE * self.gained) * self.expectation.standard
    }

    /// Whether `standard` must be measured again. Everything is compared with it, and a plan whose passes are wider
    /// teaches little about it.
    pub fn must_measure_standard(&self, estimates: &Estimates) -> bool {
        let stale = self.stale();
        let is_new = !estimates.host.has_baseline() && self.since_standard >= FIRST_REVIEW;
        let mut passes = self.choices.task.needed().map(|k| f64::from(estimates.costs[k].since_single()));
        !self.is_standard()
            && (is_new || self.since_standard as f64 > SELDOM * stale || passes.any(|passes| passes > stale))
    }

    /// Whether `standard` must be measured again in company, where pass times are those of all sessions.
    pub fn must_measure_standard_in_company(&self) -> bool {
        let is_new = !self.standard_correction.is_measured() && self.since_standard >= FIRST_REVIEW;
        !self.is_standard() && (is_new || self.since_standard as f64 > SELDOM * self.stale())
    }

    /// Passes after which what is known of `standard` is old: more of them, the more it costs to measure it.
    fn stale(&self) -> f64 {
        let lost = (1.0 - self.expectation.planned / self.expectation.standard.max(f64::MIN_POSITIVE)).clamp(0.0, 1.0);
        STALE + STALE_IF_COSTLY * lost
    }

    fn is_standard(&self) -> bool {
        self.plan == Plan::STANDARD
    }

    /// Review the plan. Returns another plan if that is forecast to be faster.
    ///
    /// After an alarm this is `standard`, and the estimates forget most of what they know.
    pub fn review(&mut self, estimates: &mut Estimates) -> Option<Plan> {
        (self.until_review, self.interval) = (self.interval, (2 * self.interval).min(LAST_REVIEW));
        if self.is_alarmed() {
            return Some(self.leave(estimates));
        }
        let estimates = &*estimates;
        let mut forecast = Forecast::new(&self.choices.task, estimates);
        let raw = forecast.seconds_per_token(&self.plan, LONG_FORECAST);
        // Measurements show what the forecast leaves out.
        self.trials.update_ratio(&self.plan, raw / self.choices.task.standard(estimates));
        let standard = self.standard(estimates);
        let planned = if self.is_standard() { standard } else { raw * self.trials.correction(&self.plan) };
        self.expectation = Expectation { planned, standard };
        let best = Search::new(&self.choices, &self.trials, self.standard_factor(), forecast).run()?;
        let is_worth = planned.min(best.seconds) < standard * (1.0 - WORTH);
        if !self.is_standard() && !is_worth && self.choices.allows(&Plan::STANDARD) {
            self.expectation.planned = standard;
            return Some(Plan::STANDARD);
        }
        if best.plan == self.plan || best.seconds > planned * (1.0 - self.hysteresis) {
            return None;
        }
        self.expectation.planned = best.seconds;
        Some(best.plan)
    }

    /// Forget most of what is known, and return the plan to begin anew with.
    fn leave(&mut self, estimates: &mut Estimates) -> Plan {
        estimates.forget(KEPT_AFTER_ALARM);
        // Models that `standard` does not run are only seen again by a probe. An unknown model gets one soon.
        let acceptance = self.choices.task.weights.iter().zip(&mut estimates.acceptance);
        let rest = acceptance.filter(|(weight, _)| **weight == 0.0);
        rest.for_each(|(_, acceptance)| *acceptance = Acceptance::default());
        self.lost = 0.0;
        self.trials.forget();
        Plan::of(Policy::Standard, self.choices.targets[0])
    }

    /// From now on, a model may not propose. Returns a plan for the time until the next review if the current plan has
    /// that model propose.
    pub fn retire(&mut self, model: usize) -> Option<Plan> {
        self.choices.may_propose[model] = false;
        if self.choices.allows(&self.plan) {
            return None;
        }
        self.review_soon();
        Some(Plan::of(Policy::Standard, self.choices.targets[0]))
    }

    /// Put another plan in force.
    pub fn adopt(&mut self, plan: Plan) {
        self.plan = plan;
        self.trials.begin(&self.plan);
        self.lost = 0.0;
        (self.until_review, self.interval) = (FIRST_REVIEW, 2 * FIRST_REVIEW);
    }
}
