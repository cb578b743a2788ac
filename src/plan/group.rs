//! One plan for all sessions that decode the same in company.
//!
//! Sessions of equal plans stay in the same passes, and what one gains by a plan of its own the others pay for. So all
//! follow one [`Planner`], which takes them for one session: a token of it is a token of each of them. A round takes as
//! long as a session waits for its tokens, whoever is served meanwhile. So what the planner compares is what all
//! sessions together get done.

use super::planner::Planner;
use crate::decode::policy::Plan;
use crate::learn::estimates::Estimates;
use crate::learn::steady::Steady;

/// Tokens of each session that are recorded as one round. Sessions do not all get their tokens at once.
const TOKENS: f64 = 2.0;

/// Such rounds in each measurement of `standard`, of which the faster one counts. During the first, sessions still
/// change.
const STANDARD_ROUNDS: u32 = 2;

/// The sessions of one task.
#[derive(Debug, Clone)]
pub struct Group {
    planner: Planner,
    /// Counts the changes of the plan that the sessions follow.
    version: u64,
    /// `Some` while `standard` is measured: the rounds of it so far, and the least seconds for a token.
    standard_rounds: Option<(u32, f64)>,
    /// Whether a session reviews the plan at the moment.
    is_reviewed: bool,
    /// Of all sessions since the last round: tokens and seconds.
    tokens: f64,
    seconds: f64,
    /// Seconds for a token by `standard`, as of the last round.
    standard: f64,
    /// Seconds for a token by the plan that the sessions follow now.
    usual: Steady,
}

impl Group {
    /// Sessions that begin with the plan of a planner.
    pub fn new(planner: Planner) -> Self {
        let (tokens, seconds, standard, usual) = Default::default();
        Group { planner, version: 1, standard_rounds: None, is_reviewed: false, tokens, seconds, standard, usual }
    }

    /// What chooses the plan.
    pub fn planner(&self) -> &Planner {
        &self.planner
    }

    /// The plan that sessions follow now, and its number.
    pub fn plan(&self) -> (&Plan, u64) {
        static STANDARD: Plan = Plan::STANDARD;
        let plan = if self.standard_rounds.is_some() { &STANDARD } else { self.planner.plan() };
        (plan, self.version)
    }

    /// Seconds for a token by `standard`, as of the last round.
    pub fn standard(&self) -> f64 {
        self.standard
    }

    /// A session took `seconds` for `tokens` tokens by the plan of number `version`, in a company of so many. Returns
    /// whether that makes a round, for [`Group::end_round`].
    pub fn record(&mut self, version: u64, company: f64, tokens: usize, seconds: f64) -> bool {
        if version != self.version {
            return false;
        }
        self.tokens += tokens as f64;
        self.seconds += seconds;
        self.tokens >= TOKENS * company && !self.is_reviewed
    }

    /// Learn from the round.
    pub fn end_round(&mut self, company: f64, estimates: &Estimates) {
        let (count, standard) = ((self.tokens / company).round().max(1.0), self.planner.standard(estimates));
        let each = self.usual.count(self.seconds / self.tokens);
        self.standard = standard;
        (self.tokens, self.seconds) = (0.0, 0.0);
        match self.standard_rounds {
            None => self.planner.record_round(count as usize, count * each, standard),
            Some((rounds, least)) if rounds + 1 < STANDARD_ROUNDS => {
                self.standard_rounds = Some((rounds + 1, least.min(each)));
            }
            Some((_, least)) => {
                self.planner.record_standard(count as usize, count * least.min(each), standard);
                self.standard_rounds = None;
                self.change();
            }
        }
    }

    /// Sessions follow another plan.
    fn change(&mut self) {
        self.version += 1;
        (self.tokens, self.seconds, self.usual) = Default::default();
    }

    /// Measure `standard` for a moment, if that is due.
    pub fn measure_standard(&mut self) {
        let is_free = self.standard_rounds.is_none() && !self.is_reviewed;
        if is_free && self.planner.must_measure_standard_in_company() {
            self.standard_rounds = Some((0, f64::INFINITY));
            self.change();
        }
    }

    /// Make a review due now.
    pub fn review_soon(&mut self) {
        self.planner.review_soon();
    }

    /// The planner, if a review is due. [`Group::end_review`] takes it back. `may_review` says whether the budget
    /// covers one; after an alarm it always may run.
    pub fn begin_review(&mut self, may_review: bool) -> Option<Planner> {
        let is_free = self.standard_rounds.is_none() && !self.is_reviewed;
        self.is_reviewed = is_free && self.planner.is_due() && (may_review || self.planner.is_alarmed());
        self.is_reviewed.then(|| self.planner.clone())
    }

    /// A review has ended, with another plan or with the same.
    pub fn end_review(&mut self, planner: Planner, plan: Option<Plan>) {
        (self.planner, self.is_reviewed) = (planner, false);
        if let Some(plan) = plan {
            self.planner.adopt(plan);
            self.change();
        }
    }
}
