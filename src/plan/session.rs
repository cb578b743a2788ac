//! `auto` in time: shows a planner what a session takes, and lets the sessions of an engine share what they learn.
//!
//! The planner itself is pure ([`decode::planner`](crate::plan::planner)); what is here has the clock and the bounds:
//! looks at the plan and probes take well under a hundredth of the time once something is known.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::decode::chance::Chance;
use crate::decode::combine::Combination;
use crate::decode::decoder::{Counters, Decoder};
use crate::decode::policy::{Plan, Policy, Targets};
use crate::plan::estimates::Estimates;
use crate::plan::planner::{Choices, Experience, Planner};
use crate::rows::Sampler;

/// Shares of the time that looks at the plan may take: at first, while each tells much, and later; and probes of models that do
/// not run.
const FIRST_REVIEWS: f64 = 0.01;
const LATER_REVIEWS: f64 = 0.002;
const PROBING: f64 = 0.003;

/// Looks that may be saved up. An engine begins with so many, since the first ones tell most: where a pass takes a third of a millisecond,
/// their share of the time would come to one in some hundred tokens.
const SAVED_REVIEWS: f64 = 4.0;

/// Seconds that a look is thought to take before there was any.
const REVIEW: f64 = 1e-3;

/// A drafter of which nothing is known is tried once as soon as that takes no more than this share of a session's time.
const FIRST_PROBE: f64 = 0.03;

/// Tokens between two thoughts of a probe.
const PROBE_INTERVAL: usize = 16;

/// Work beside the models is taken for so many times that of the models at most.
const MOST_HOST_WORK: u32 = 8;

/// Rounds of `standard` that show what it takes.
const STANDARD_ROUNDS: u32 = 2;

/// Observations that a new session takes over from others: enough to begin with, few enough to learn that it is another text.
const INHERITED: f64 = 24.0;

/// What is decoded is told apart by this; `None` for a function of the caller, of which nothing is known.
type TaskKey = Option<String>;

/// Tasks that are remembered.
const MOST_TASKS: usize = 256;

/// What is known of a task.
#[derive(Debug, Clone)]
struct TaskRecord {
    estimates: Estimates,
    experience: Experience,
}

/// What the sessions of an engine have learned.
#[derive(Debug)]
pub struct SharedPlanning {
    tasks: HashMap<String, TaskRecord>,
    latest: Option<Estimates>,
    /// Seconds of all sessions that plan, and of their probes.
    seconds: f64,
    probing: f64,
    /// Seconds of looks at the plan that were not allowed for yet, or less than 0 if some are to spare.
    review_debt: f64,
    /// See [`SharedPlanning::new`].
    serial_share: Option<f64>,
}

impl Default for SharedPlanning {
    fn default() -> Self {
        let review_debt = -SAVED_REVIEWS * REVIEW;
        SharedPlanning {
            tasks: HashMap::new(),
            latest: None,
            seconds: 0.0,
            probing: 0.0,
            review_debt,
            serial_share: None,
        }
    }
}

impl SharedPlanning {
    /// Of models whose passes run at the same time, if that is given: as [`Estimates::serial_share`].
    pub fn new(serial_share: Option<f64>) -> Self {
        SharedPlanning { serial_share, ..SharedPlanning::default() }
    }

    /// What a session begins with.
    fn start(&self, key: &TaskKey, pass_times: &[&[(usize, Duration)]]) -> (Estimates, Option<Experience>) {
        let task = key.as_ref().and_then(|key| self.tasks.get(key));
        let mut estimates = match (task, &self.latest) {
            (Some(known), _) => known.estimates.clone(),
            (None, Some(latest)) => {
                let mut estimates = latest.clone();
                estimates.forget_task();
                estimates
            }
            (None, None) => {
                let seconds = |&(width, time): &(usize, Duration)| (width, time.as_secs_f64());
                let measured = |times: &&[(usize, Duration)]| times.iter().map(seconds).collect();
                Estimates::new(&pass_times.iter().map(measured).collect::<Vec<_>>())
            }
        };
        if let Some(latest) = &self.latest {
            estimates.costs.clone_from(&latest.costs);
        }
        estimates.serial_share = self.serial_share.unwrap_or(1.0);
        estimates.forget(INHERITED);
        (estimates, task.map(|known| known.experience.clone()))
    }

    fn learn(&mut self, key: &TaskKey, known: TaskRecord) {
        self.latest = Some(known.estimates.clone());
        if let Some(key) = key {
            if self.tasks.len() == MOST_TASKS && !self.tasks.contains_key(key) {
                self.tasks.clear();
            }
            self.tasks.insert(key.clone(), known);
        }
    }
}

/// Nanoseconds of a session that plans, behind its prompts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PlanTimes {
    /// That its tokens took.
    pub planned_ns: u64,
    /// That they were expected to take.
    pub expected_ns: u64,
    /// That `standard` would have taken for as many, by the measured times of passes.
    pub standard_ns: u64,
}

/// The planning of one session.
#[derive(Debug)]
pub struct Planning {
    planner: Planner,
    key: TaskKey,
    /// The plan to take as soon as nothing is pending.
    next: Option<Plan>,
    /// Whether that is `standard` for a moment, and then the rounds that it has had.
    standard_rounds: Option<u32>,
    times: PlanTimes,
    changes: u64,
    /// Seconds of steps so far, and of the last look at the plan.
    seconds: f64,
    review_seconds: f64,
    tokens_to_probe: usize,
    /// The model to probe next, or one behind it.
    probe_next: usize,
    /// Whether nothing was known of the model that is probed.
    is_first_probe: bool,
    /// Of the seconds, those that the engine knows of.
    reported: f64,
    /// Passes that the decoder had made before the round, and proposals that it had tested.
    forwards: u64,
    tested: u64,
}

/// A round that succeeded, as the clock saw it.
#[derive(Debug, Clone, Copy)]
pub struct RoundReport {
    /// Tokens committed.
    pub tokens: usize,
    /// How long it took.
    pub total: Duration,
    /// How much of that was spent inside models.
    pub models: Duration,
    /// Whether it took what others like it will: it ran over no prompt, and no pass of it prepared others.
    pub is_usual: bool,
    /// Whether the sequence goes on.
    pub open: bool,
}

impl Planning {
    /// Plans for a session that begins, or decodes something else from here on. `plan` is what may be done without any
    /// knowledge. `pass_times` are what passes took at loading, by participant, as pairs of width and time.
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
            known => Some(format!("{known:?} {sampler:?} {choices:?}")),
        };
        let (estimates, known) = shared.start(&key, pass_times);
        let known = known.filter(|known| choices.allows(&known.plan));
        let planning = Planning {
            planner: Planner::new(choices, plan, known),
            key,
            next: None,
            standard_rounds: None,
            times: PlanTimes::default(),
            changes: 0,
            seconds: 0.0,
            review_seconds: REVIEW,
            tokens_to_probe: PROBE_INTERVAL / 2,
            probe_next: 0,
            is_first_probe: false,
            reported: 0.0,
            forwards: 0,
            tested: 0,
        };
        (planning, estimates)
    }

    /// The plan in force.
    pub fn plan(&self) -> &Plan {
        self.planner.plan()
    }

    /// Whether a plan is one of those that may be chosen.
    pub fn allows(&self, plan: &Plan) -> bool {
        self.planner.choices().allows(plan)
    }

    /// Begin with this plan instead.
    pub fn begin_with(&mut self, plan: Plan) {
        self.planner.adopt(plan);
    }

    /// Keep the books of what was decoded before.
    pub fn go_on(&mut self, before: Option<&Planning>) {
        if let Some(before) = before {
            (self.times, self.changes) = (before.times, before.changes);
            (self.forwards, self.tested) = (before.forwards, before.tested);
            (self.seconds, self.reported, self.review_seconds) =
                (before.seconds, before.reported, before.review_seconds);
        }
    }

    /// What was gained so far.
    pub fn times(&self) -> PlanTimes {
        self.times
    }

    /// Learn from a round, and change the plan where that pays. Returns a model to probe now, if any.
    pub fn after_round<C: Chance>(
        &mut self,
        shared: &Mutex<SharedPlanning>,
        decoder: &mut Decoder<C>,
        round: RoundReport,
        clock: &Clock,
    ) -> Option<usize> {
        let seconds = round.total.as_secs_f64();
        self.seconds += seconds;
        let Counters { forwards, tested, .. } = decoder.counters();
        let passes = forwards - std::mem::replace(&mut self.forwards, forwards);
        let tested = tested - std::mem::replace(&mut self.tested, tested);
        if round.is_usual {
            self.count(decoder, round, passes, tested);
        }
        self.retire(decoder);
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
                self.switch(decoder);
            }
            return None;
        }
        if self.planner.is_due() && self.may_review(shared) {
            let (started, alarmed) = (clock(), self.planner.is_alarmed());
            self.next = decoder.observer().and_then(|observer| self.planner.review(observer.estimates_mut()));
            let took = clock().saturating_sub(started).as_secs_f64();
            shared.lock().review_debt += took;
            if !alarmed {
                self.review_seconds = took;
            }
            if !decoder.has_pending() {
                self.switch(decoder);
                self.share(shared, decoder);
            } else if self.next.is_some() {
                decoder.drain();
            }
        }
        self.tokens_to_probe = self.tokens_to_probe.saturating_sub(round.tokens);
        if self.tokens_to_probe > 0 {
            return None;
        }
        self.tokens_to_probe = PROBE_INTERVAL;
        self.choose_probe(shared, decoder)
    }

    /// Plan without the drafters whose context has ended.
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

    /// Whether there is time for a look at the plan. To leave a plan that fails takes none.
    fn may_review(&mut self, shared: &Mutex<SharedPlanning>) -> bool {
        let mut shared = shared.lock();
        self.report_time(&mut shared);
        self.planner.is_alarmed() || shared.review_debt + self.review_seconds <= 0.0
    }

    /// Let the engine know of the time that the session has taken.
    fn report_time(&mut self, shared: &mut SharedPlanning) {
        let seconds = self.seconds - std::mem::replace(&mut self.reported, self.seconds);
        shared.seconds += seconds;
        // Each session allows for looks as it needs them itself, and few are saved up.
        let share = if self.planner.is_settled() { LATER_REVIEWS } else { FIRST_REVIEWS };
        shared.review_debt = (shared.review_debt - share * seconds).max(-SAVED_REVIEWS * self.review_seconds);
    }

    fn count<C: Chance>(&mut self, decoder: &mut Decoder<C>, round: RoundReport, passes: u64, tested: u64) {
        let seconds = round.total.as_secs_f64();
        let standard = decoder.estimates().map_or(0.0, |estimates| self.planner.standard(estimates));
        match self.standard_rounds {
            None => self.planner.record_round(round.tokens, seconds, standard),
            // The first one runs behind passes of other models.
            Some(STANDARD_ROUNDS) => self.planner.record_standard(round.tokens, seconds, standard),
            Some(_) => {}
        }
        // Nor is that first round counted here. One in which another process had the machine is no measure.
        let host = round.total.saturating_sub(round.models).min(MOST_HOST_WORK * round.models).as_secs_f64();
        if let Some(observer) = decoder.observer()
            && self.standard_rounds.is_none_or(|rounds| rounds == STANDARD_ROUNDS)
        {
            observer.estimates_mut().host.record(passes, tested, host);
        }
        let expectation = self.planner.expectation();
        if expectation.standard > 0.0 {
            let nanoseconds = |seconds: f64| (seconds * round.tokens as f64 * 1e9) as u64;
            self.times.planned_ns += round.total.as_nanos() as u64;
            self.times.expected_ns += nanoseconds(expectation.planned);
            self.times.standard_ns += nanoseconds(standard);
        }
    }

    /// Nothing is pending: take the plan that is wanted.
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

    fn share<C: Chance>(&mut self, shared: &Mutex<SharedPlanning>, decoder: &mut Decoder<C>) {
        if let Some(observer) = decoder.observer() {
            let (estimates, experience) = (observer.estimates().clone(), self.planner.experience());
            shared.lock().learn(&self.key, TaskRecord { estimates, experience });
        }
    }

    /// The model that could draft and does not run, if its turn to catch up has come and is worth its time.
    fn choose_probe<C: Chance>(&mut self, shared: &Mutex<SharedPlanning>, decoder: &mut Decoder<C>) -> Option<usize> {
        let choices = self.planner.choices();
        let rests = |&model: &usize| {
            choices.may_propose[model]
                && choices.task.scores[model]
                && choices.task.weights[model] == 0.0
                && !self.planner.plan().policy.uses(model)
        };
        let models = choices.may_propose.len();
        let model = (0..models).map(|step| (self.probe_next + step) % models).find(rests)?;
        self.probe_next = model + 1;
        let gap = decoder.gap(model);
        let estimates = decoder.estimates()?;
        let expected = estimates.costs[model].at(gap, true);
        self.is_first_probe = !estimates.acceptance[model].is_reliable() && expected <= FIRST_PROBE * self.seconds;
        let mut shared = shared.lock();
        self.report_time(&mut shared);
        let pays = self.is_first_probe || shared.probing + expected <= PROBING * shared.seconds;
        pays.then_some(model)
    }

    /// The probe that [`Planning::after_round`] asked for took so many seconds, whether or not it succeeded.
    pub fn probed(&mut self, shared: &Mutex<SharedPlanning>, seconds: f64) {
        shared.lock().probing += seconds;
        if self.is_first_probe {
            self.planner.review_soon();
        }
    }

    /// What was planned, and why, for people who look into a session.
    pub fn describe(&self, names: &[&str], estimates: &Estimates) -> Value {
        let expectation = self.planner.expectation();
        let ratio = |a: f64, b: f64| if b > 0.0 { json!(a / b) } else { Value::Null };
        let mut description = describe_plan(self.planner.plan(), names);
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

/// How models of these names decode, where nothing is known of why.
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
