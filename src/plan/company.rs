//! Planning in company: a session follows the plan of its [`Group`].

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::group::Group;
use super::planner::{Expectation, Planner};
use super::report::{PlanTimes, RoundReport};
use super::shared::{Budget, SharedGroup, SharedPlanning, TaskKey};
use crate::decode::chance::Chance;
use crate::decode::decoder::Decoder;
use crate::decode::policy::{Plan, Policy};
use crate::learn::costs::Costs;
use crate::learn::estimates::Estimates;
use crate::plan::pass_times::PassTimes;

/// Rounds of a session after a change of the plan that tell nothing of it.
const SETTLING: u32 = 2;

/// So many sessions of a company learn at least; the others follow what these find out. To learn takes work of the host
/// and rows: 5 % of the time, if eight of 16 sessions do on a GPU.
const LEARNERS: f64 = 4.0;

/// How a session follows a group.
#[derive(Debug, Default)]
pub struct Following {
    /// The load, see [`SharedPlanning::meet`]. 0: the session is alone, and plans for itself.
    load: usize,
    group: Option<SharedGroup>,
    /// The plan in force and its number. Until it has one, the session decodes by its own plan.
    plan: Option<(Plan, u64)>,
    /// The plan that comes into force once nothing is pending. The number 0 is that of the session's own.
    next: Option<(Plan, u64)>,
    /// Rounds since the plan came into force.
    rounds: u32,
    /// What the group expected last.
    expectation: Expectation,
    pass_times: Arc<PassTimes>,
    /// Tells the sessions of an engine apart.
    number: usize,
}

impl Following {
    /// A session that begins. It follows a group at once if the engine has company that decodes the same.
    pub fn new(shared: &SharedPlanning, key: &TaskKey) -> Self {
        let group = if shared.load() > 0 { shared.find_group(key).cloned() } else { None };
        let plan = group.as_ref().map(|group| {
            let group = group.lock();
            let (plan, version) = group.plan();
            (plan.clone(), version)
        });
        let load = if group.is_some() { shared.load() } else { 0 };
        let pass_times = shared.pass_times().clone();
        Following { load, group, plan, pass_times, number: shared.number(), ..Following::default() }
    }

    /// The load at which it plans.
    pub fn load(&self) -> usize {
        self.load
    }

    /// The plan in force, if it is a group's.
    pub fn plan(&self) -> Option<&Plan> {
        self.plan.as_ref().map(|(plan, _)| plan)
    }

    /// What is expected of the plan in force, if it is a group's.
    pub fn expectation(&self) -> Option<Expectation> {
        self.plan.as_ref().map(|_| self.expectation)
    }

    /// Whether a plan waits to come into force.
    pub fn is_changing(&self) -> bool {
        self.next.is_some()
    }

    /// Apply the plan that was chosen a round ago, or earlier, if nothing is pending. Returns whether the plan changes.
    ///
    /// It is never applied in the round in which it is chosen: the next position may have a number that other sessions
    /// know already, and that what they have found depends on.
    pub fn apply<C: Chance>(&mut self, decoder: &mut Decoder<C>) -> bool {
        self.rounds = self.rounds.saturating_add(1);
        if decoder.has_pending() {
            if self.is_changing() {
                decoder.drain();
            }
            return false;
        }
        let Some((plan, version)) = self.next.take() else { return false };
        let changes = plan != *decoder.plan();
        if changes {
            decoder.set_plan(plan.clone());
        }
        self.plan = (version > 0).then_some((plan, version));
        self.rounds = 0;
        changes
    }

    /// The load has changed. `own` plans for the session while it is alone.
    pub fn change_load<C: Chance>(
        &mut self,
        shared: &mut SharedPlanning,
        key: &TaskKey,
        own: &Planner,
        decoder: &mut Decoder<C>,
    ) {
        let before = std::mem::replace(&mut self.load, shared.load());
        let committed = decoder.committed().len();
        if let Some(observer) = decoder.observer() {
            observer.rest(false, committed);
            let estimates = observer.estimates_mut();
            shared.learn_times(before, estimates.times());
            shared.times(self.load).into_iter().for_each(|times| estimates.set_times(times.clone()));
        }
        (self.group, self.next) = match self.load {
            0 => (None, Some((own.plan().clone(), 0))),
            _ => (Some(shared.group(key, || Group::new(own.for_company()))), None),
        };
    }

    /// Seconds of a pass of a model for this session alone, if passes of many sessions have shown it.
    pub fn pass_seconds(&self, model: usize, tokens: usize) -> Option<f64> {
        self.group.as_ref().and_then(|_| self.pass_times.at(model, tokens as f64))
    }

    /// Something new was learned of a drafter. Returns whether a group reviews its plan for that.
    pub fn review_soon(&self) -> bool {
        self.group.iter().for_each(|group| group.lock().review_soon());
        self.group.is_some()
    }

    /// Learn from a round in a company of so many, and change the plan of all sessions if that pays.
    pub fn after_round<C: Chance>(
        &mut self,
        (shared, company): (&Mutex<SharedPlanning>, f64),
        decoder: &mut Decoder<C>,
        (round, times): (RoundReport, &mut PlanTimes),
        (own, budget): (&Planner, &mut Budget),
        clock: &dyn Fn() -> Duration,
    ) {
        let committed = decoder.committed().len();
        let (Some(group), Some(observer)) = (self.group.clone(), decoder.observer()) else { return };
        let one_of = 1 << ((company / LEARNERS).max(1.0) as usize).ilog2();
        observer.rest(!self.number.is_multiple_of(one_of), committed);
        let learns = !observer.rests();
        let estimates = observer.estimates_mut();
        // Whoever begins locks what is shared, and then the group. So nobody locks them the other way round.
        let may_review = learns && {
            let mut shared = shared.lock();
            budget.report(&mut shared, own.is_settled(), company / one_of as f64);
            shared.may_review()
        };
        let planner = {
            let mut group = group.lock();
            if round.is_usual && self.rounds >= SETTLING {
                // A session whose own plan differs tells nothing of the group's.
                let followed = self.plan.as_ref().filter(|(plan, _)| plan == group.plan().0);
                let version = followed.map_or(0, |(_, version)| *version);
                if group.record(version, company, round.tokens, round.total.as_secs_f64()) {
                    self.refresh(company, estimates);
                    group.end_round(company, estimates);
                }
                times.count(round, group.planner().expectation(), group.standard());
            }
            self.expectation = group.planner().expectation();
            group.measure_standard();
            self.note(&group, own);
            if !group.planner().is_due() || !round.open || !learns {
                return;
            }
            group.begin_review(may_review)
        };
        // The search runs without the lock, which the others need.
        let Some(mut planner) = planner else { return };
        let (started, alarmed) = (clock(), planner.is_alarmed());
        if alarmed {
            self.pass_times.forget();
        }
        self.refresh(company, estimates);
        let plan = planner.review(estimates);
        let took = clock().saturating_sub(started).as_secs_f64();
        group.lock().end_review(planner, plan);
        let mut shared = shared.lock();
        shared.add_review(took, alarmed);
        shared.learn_times(self.load, estimates.times());
    }

    /// Let passes take what they take if all sessions of the company share them and are as wide.
    fn refresh(&self, company: f64, estimates: &mut Estimates) {
        for (model, costs) in estimates.costs.iter_mut().enumerate() {
            let seconds = |width: usize| self.pass_times.at(model, width as f64 * company);
            if seconds(1).is_some() {
                *costs = Costs::of(|width| seconds(width).unwrap_or_default());
            }
        }
    }

    /// Note the plan of the group, to be applied after another round.
    fn note(&mut self, group: &Group, own: &Planner) {
        let (plan, version) = group.plan();
        let known = self.next.as_ref().or(self.plan.as_ref()).map(|(_, version)| *version);
        if known != Some(version) {
            // Drafters of this session may have come to the end of their context. `standard` is measured in any case.
            let may = *plan == Plan::STANDARD || own.choices().allows(plan);
            let plan = if may { plan.clone() } else { Plan::of(Policy::Standard, own.choices().targets[0]) };
            self.next = Some((plan, version));
        }
    }
}
