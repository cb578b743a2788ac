//! The strategy `auto` in a running session: shows the planner what rounds take, and applies the plan that it chooses.
//!
//! The planner itself is [pure](crate::plan::planner). This file has the clock and the budget: once something is known,
//! reviews of the plan and probes of resting models take well under a hundredth of the time.

use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::decode::chance::Chance;
use crate::decode::combine::Combination;
use crate::decode::decoder::{Counters, Decoder};
use crate::decode::policy::{Plan, Policy, Targets};
use crate::learn::estimates::Estimates;
use crate::plan::company::Following;
pub use crate::plan::report::{PlanTimes, RoundReport};
use crate::plan::shared::{Budget, SharedPlanning, TaskKey, TaskRecord};
use crate::plan::{choices::Choices, planner::Planner};
use crate::rows::Sampler;

/// An unknown drafter is probed as soon as that takes no more than this share of the session's time so far.
const FIRST_PROBE: f64 = 0.03;

/// Tokens between checks whether a probe is worthwhile.
const PROBE_INTERVAL: usize = 16;

/// Host work of a round counts as at most so many times the models' time. More than that means that
/// another process had the machine.
const MOST_HOST_WORK: u32 = 8;

/// Rounds of `standard` in each measurement of it. Only the last one counts: the first runs right after passes of other
/// models, with cold caches.
const STANDARD_ROUNDS: u32 = 2;

/// The planning of one session.
#[derive(Debug)]
pub struct Planning {
    planner: Planner,
    key: TaskKey,
    /// In company, the plan is that of a group.
    following: Following,
    /// The plan to apply once nothing is pending.
    next: Option<Plan>,
    /// `Some` while `standard` is measured: the rounds of it so far.
    standard_rounds: Option<u32>,
    times: PlanTimes,
    /// How often the plan was changed.
    changes: u64,
    budget: Budget,
    tokens_to_probe: usize,
    /// The search for a model to probe begins at this one.
    probe_next: usize,
    /// Whether nothing reliable was known of the model that is probed.
    is_first_probe: bool,
    /// [`Counters::forwards`] and [`Counters::tested`] as of the last round.
    forwards: u64,
    tested: u64,
}

impl Planning {
    /// The planning of a session that begins, or whose combination changes. Returns the estimates to begin with.
    ///
    /// `plan` is the plan to begin with if no earlier session has decoded the same. `pass_times` are what passes took
    /// at load time, by participant, as pairs of width and time.
    pub fn new(
        shared: &SharedPlanning,
        pass_times: &[&[(usize, Duration)]],
        combination: &Combination,
        sampler: &Sampler,
        choices: Choices,
        plan: Plan,
    ) -> (Self, Estimates) {
        let key = match combination {
            Combination::Custom { .. } => None,
            combination => Some(format!("{combination:?} {sampler:?} {choices:?}")),
        };
        let (estimates, experience) = shared.start(&key, pass_times);
        let experience = experience.filter(|experience| choices.allows(&experience.plan));
        let planning = Planning {
            planner: Planner::new(choices, plan, experience),
            following: Following::new(shared, &key),
            key,
            next: None,
            standard_rounds: None,
            times: PlanTimes::default(),
            changes: 0,
            budget: Budget::default(),
            tokens_to_probe: PROBE_INTERVAL / 2,
            probe_next: 0,
            is_first_probe: false,
            forwards: 0,
            tested: 0,
        };
        (planning, estimates)
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        self.following.plan().unwrap_or(self.planner.plan())
    }

    /// Whether the planner may choose this plan.
    pub fn allows(&self, plan: &Plan) -> bool {
        self.planner.choices().allows(plan)
    }

    /// Begin with this plan instead.
    pub fn begin_with(&mut self, plan: Plan) {
        self.following = Following::default();
        self.planner.adopt(plan);
    }

    /// Take over the session's counts from its planning before the combination changed.
    pub fn take_over(&mut self, before: Option<&Planning>) {
        if let Some(before) = before {
            (self.times, self.changes) = (before.times, before.changes);
            (self.forwards, self.tested) = (before.forwards, before.tested);
            self.budget = before.budget;
        }
    }

    /// Planned, expected and standard time so far.
    pub fn times(&self) -> PlanTimes {
        self.times
    }

    /// Learn from a round, and change the plan if that pays. Returns a model that is to be probed now, if any.
    pub fn after_round<C: Chance>(
        &mut self,
        shared: &Mutex<SharedPlanning>,
        decoder: &mut Decoder<C>,
        round: RoundReport,
        clock: &dyn Fn() -> Duration,
    ) -> Option<usize> {
        self.budget.spend(round.total.as_secs_f64());
        let (load, company) = {
            let mut shared = shared.lock();
            let load = shared.meet(round.company);
            if load != self.following.load() {
                self.following.change_load(&mut shared, &self.key, &self.planner, decoder);
                (self.next, self.standard_rounds) = (None, None);
            }
            (load, shared.company())
        };
        let Counters { forwards, tested, .. } = decoder.counters();
        let passes = forwards - std::mem::replace(&mut self.forwards, forwards);
        let tested = tested - std::mem::replace(&mut self.tested, tested);
        self.learn_host(decoder, round, passes, tested);
        self.retire(decoder);
        self.changes += u64::from(self.following.apply(decoder));
        if load > 0 {
            let Planning { planner, budget, times, .. } = self;
            self.following.after_round((shared, company), decoder, (round, times), (planner, budget), clock);
            if decoder.observer().is_none_or(|observer| observer.rests()) {
                return None;
            }
            if !round.open {
                self.share(shared, decoder);
                return None;
            }
            return self.probe_after(round.tokens, shared, company, decoder);
        }
        if self.following.is_changing() {
            return None;
        }
        if round.is_usual {
            self.count(decoder, round);
        }
        if !decoder.has_pending() {
            self.switch(decoder);
            if !round.open {
                self.share(shared, decoder);
            }
        }
        if !round.open || self.next.is_some() || self.standard_rounds.is_some() {
            return None;
        }
        if decoder.estimates().is_some_and(|estimates| self.planner.must_measure_standard(estimates)) {
            self.standard_rounds = Some(0);
            if decoder.has_pending() {
                decoder.drain();
            } else {
                self.switch_at_once(decoder);
            }
            return None;
        }
        if self.planner.is_due() && self.may_review(shared) {
            self.review(shared, decoder, clock);
        }
        self.probe_after(round.tokens, shared, 1.0, decoder)
    }

    /// A model that is to be probed behind so many more tokens, if any.
    fn probe_after<C: Chance>(
        &mut self,
        tokens: usize,
        shared: &Mutex<SharedPlanning>,
        company: f64,
        decoder: &mut Decoder<C>,
    ) -> Option<usize> {
        self.tokens_to_probe = self.tokens_to_probe.saturating_sub(tokens);
        if self.tokens_to_probe > 0 {
            return None;
        }
        self.tokens_to_probe = PROBE_INTERVAL;
        self.choose_probe(shared, company, decoder)
    }

    /// Plan without the drafters whose context is full.
    fn retire<C: Chance>(&mut self, decoder: &mut Decoder<C>) {
        for model in 0..self.planner.choices().may_propose.len() {
            if self.planner.choices().may_propose[model] && decoder.is_exhausted(model) {
                self.next = self.planner.retire(model).or(self.next.take()).filter(|plan| self.allows(plan));
            }
        }
        if self.next.is_some() && decoder.has_pending() {
            decoder.drain();
        }
    }

    /// Whether the budget covers a review. After an alarm it always may run, since leaving a plan takes no search.
    fn may_review(&mut self, shared: &Mutex<SharedPlanning>) -> bool {
        let mut shared = shared.lock();
        self.budget.report(&mut shared, self.planner.is_settled(), 1.0);
        self.planner.is_alarmed() || shared.may_review()
    }

    /// Have the planner review its plan. Another plan is applied now or, with proposals pending, once they are decided.
    fn review<C: Chance>(
        &mut self,
        shared: &Mutex<SharedPlanning>,
        decoder: &mut Decoder<C>,
        clock: &dyn Fn() -> Duration,
    ) {
        let (started, alarmed) = (clock(), self.planner.is_alarmed());
        self.next = decoder.observer().and_then(|observer| self.planner.review(observer.estimates_mut()));
        let took = clock().saturating_sub(started).as_secs_f64();
        shared.lock().add_review(took, alarmed);
        if !decoder.has_pending() {
            self.switch_at_once(decoder);
            self.share(shared, decoder);
        } else if self.next.is_some() {
            decoder.drain();
        }
    }

    /// Learn from the times of a round, and add it to the session's times.
    fn count<C: Chance>(&mut self, decoder: &Decoder<C>, round: RoundReport) {
        let seconds = round.total.as_secs_f64();
        let standard = decoder.estimates().map_or(0.0, |estimates| self.planner.standard(estimates));
        match self.standard_rounds {
            None => self.planner.record_round(round.tokens, seconds, standard),
            Some(STANDARD_ROUNDS) => self.planner.record_standard(round.tokens, seconds, standard),
            Some(_) => {}
        }
        self.times.count(round, self.planner.expectation(), standard);
    }

    /// Learn the time of a round outside of passes.
    fn learn_host<C: Chance>(&self, decoder: &mut Decoder<C>, round: RoundReport, passes: u64, tested: u64) {
        let host = round.total.saturating_sub(round.models).min(MOST_HOST_WORK * round.models).as_secs_f64();
        if let Some(observer) = decoder.observer()
            && round.is_usual
            && !round.stood_aside
            && self.standard_rounds.is_none_or(|rounds| rounds == STANDARD_ROUNDS)
        {
            observer.estimates_mut().host.record(passes, tested, host);
        }
    }

    /// Apply the plan that is due: the next one, `standard` to measure it, or the current one after that. To be called
    /// with nothing pending.
    fn switch<C: Chance>(&mut self, decoder: &mut Decoder<C>) {
        if let Some(plan) = self.next.take() {
            decoder.set_plan(plan.clone());
            self.planner.adopt(plan);
            self.changes += 1;
        }
        match &mut self.standard_rounds {
            None => {}
            Some(STANDARD_ROUNDS) => {
                self.standard_rounds = None;
                decoder.set_plan(self.planner.plan().clone());
            }
            Some(rounds) => {
                if *rounds == 0 {
                    decoder.set_plan(Plan::STANDARD);
                }
                *rounds += 1;
            }
        }
    }

    /// Apply a plan that was chosen just now. The next position may have a number that other sessions know and that the
    /// times of this moment depend on. Then the choice waits for the end of the next round.
    fn switch_at_once<C: Chance>(&mut self, decoder: &mut Decoder<C>) {
        if !decoder.shares_routes() {
            self.switch(decoder);
        }
    }

    /// Share what was learned with the engine's other sessions.
    fn share<C: Chance>(&mut self, shared: &Mutex<SharedPlanning>, decoder: &mut Decoder<C>) {
        if let Some(observer) = decoder.observer() {
            let (estimates, experience) = (observer.estimates().clone(), self.planner.experience());
            shared.lock().learn(&self.key, TaskRecord { estimates, experience });
        }
    }

    /// A resting drafter that is to run over the tokens that it has missed, to learn how well it would propose. `None`
    /// if the budget does not cover that.
    fn choose_probe<C: Chance>(
        &mut self,
        shared: &Mutex<SharedPlanning>,
        company: f64,
        decoder: &mut Decoder<C>,
    ) -> Option<usize> {
        let choices = self.planner.choices();
        let rests = |&model: &usize| {
            choices.may_propose[model]
                && choices.task.scores[model]
                && choices.task.weights[model] == 0.0
                && !self.plan().policy.uses(model)
        };
        let models = choices.may_propose.len();
        let model = (0..models).map(|step| (self.probe_next + step) % models).find(rests)?;
        self.probe_next = model + 1;
        let estimates = decoder.estimates()?;
        let gap = decoder.gap(model);
        let of_all = self.following.pass_seconds(model, gap);
        let expected = of_all.unwrap_or_else(|| estimates.costs[model].at(gap, true));
        self.is_first_probe =
            !estimates.acceptance[model].is_reliable() && expected <= FIRST_PROBE * self.budget.seconds();
        let mut shared = shared.lock();
        self.budget.report(&mut shared, self.planner.is_settled(), company);
        (self.is_first_probe || shared.may_probe(expected)).then_some(model)
    }

    /// The probe that [`Planning::after_round`] asked for took so many seconds, whether or not it succeeded.
    pub fn probed(&mut self, shared: &Mutex<SharedPlanning>, seconds: f64) {
        shared.lock().add_probe(seconds);
        if self.is_first_probe && !self.following.review_soon() {
            self.planner.review_soon();
        }
    }

    /// The plan and the reasons for it, as documented with `cos_session_describe`.
    pub fn describe(&self, names: &[&str], estimates: &Estimates) -> Value {
        let expectation = self.following.expectation().unwrap_or(self.planner.expectation());
        let ratio = |a: f64, b: f64| if b > 0.0 { json!(a / b) } else { Value::Null };
        let mut description = describe_plan(self.plan(), names);
        description["planned"] = json!(true);
        description["changes"] = json!(self.changes);
        description["expected_gain"] = ratio(expectation.standard, expectation.planned);
        description["measured_gain"] = ratio(self.times.standard_ns as f64, self.times.planned_ns as f64);
        for model in 0..names.len() {
            let pass_ms: Vec<f64> = (1..=8).map(|width| 1e3 * estimates.costs[model].at(width, true)).collect();
            let acceptance = &estimates.acceptance[model];
            description["models"][model]["pass_ms"] = json!(pass_ms);
            description["models"][model]["acceptance"] = json!(acceptance.is_reliable().then(|| acceptance.mean()));
        }
        description
    }
}

/// A plan for models of these names, without reasons: for sessions that do not plan.
pub fn describe_plan(plan: &Plan, names: &[&str]) -> Value {
    let mut lengths = vec![0; names.len()];
    let strategy = match &plan.policy {
        Policy::Standard => "standard",
        Policy::Speculative { proposer, length } => {
            lengths[*proposer] = *length;
            "speculative"
        }
        Policy::Cos { lengths: all, .. } => {
            lengths.clone_from(all);
            "cos"
        }
    };
    let targets = match plan.targets {
        Targets::Combined => "combined",
        Targets::Routed => "routed",
    };
    let model = |name: &&str| json!({ "name": name, "pass_ms": null, "acceptance": null });
    json!({
        "strategy": strategy,
        "targets": targets,
        "proposal_lengths": lengths,
        "stop_below": f64::from(plan.stop_below) / 100.0,
        "planned": false,
        "changes": 0,
        "expected_gain": null,
        "measured_gain": null,
        "models": names.iter().map(model).collect::<Vec<_>>(),
    })
}
