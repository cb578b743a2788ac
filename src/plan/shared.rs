//! What the sessions of an engine share for planning: what they have learned, and a budget of time.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::group::Group;
use super::planner::Experience;
use crate::learn::estimates::{Estimates, Times};
use crate::plan::pass_times::PassTimes;

/// Share of all sessions' time that probes may take.
const PROBING: f64 = 0.003;

/// Reviews that may be saved up. An engine begins with so many, since the first ones teach the most. Without them, a
/// model of a third of a millisecond a pass would have its first review after some hundred tokens.
const SAVED_REVIEWS: f64 = 4.0;

/// Assumed seconds of a review before the first one.
const FIRST_REVIEW_SECONDS: f64 = 1e-3;

/// Observations that a new session inherits. They are enough to begin with, and few enough to be outweighed soon by
/// those of its own text.
const INHERITED: f64 = 24.0;

/// Share of a session's time allotted to reviews: at first, while each one teaches much, and once the plan has settled.
const FIRST_REVIEWS: f64 = 0.01;
const LATER_REVIEWS: f64 = 0.002;

/// Tasks that are remembered. The memory is cleared when it is full.
const MOST_TASKS: usize = 256;

/// Identifies what is decoded. `None` for a combination by a caller's function, of which nothing is known.
pub type TaskKey = Option<String>;

/// Powers of two of sessions that are told apart: 1, 2, 4, and so on. Each such load has times and plans of its own.
pub const LOADS: usize = 16;

/// The company must be so many times larger or smaller than the one that the present load stands for to change it: two
/// to the power of 0.65.
const LOAD_HYSTERESIS: f64 = 1.569_168_195_793_501;

/// The sessions of a task at a load.
pub(super) type SharedGroup = Arc<Mutex<Group>>;

/// What is known of a task.
#[derive(Debug, Clone)]
pub struct TaskRecord {
    /// Pass times and acceptance, as of the last session.
    pub estimates: Estimates,
    /// Where its planner left off.
    pub experience: Experience,
}

/// What the sessions of an engine have learned, and the time that they spend on planning.
#[derive(Debug)]
pub struct SharedPlanning {
    tasks: HashMap<String, TaskRecord>,
    /// The sessions of a task in company, by the load.
    groups: HashMap<String, [Option<SharedGroup>; LOADS]>,
    /// What passes take.
    pass_times: Arc<PassTimes>,
    /// Sessions that have begun.
    begun: AtomicUsize,
    /// By load: how long things take.
    times: [Option<Times>; LOADS],
    /// A moving average of the sessions that decode at the same time, and the load that it stands for.
    company: f64,
    load: usize,
    /// Estimates of the last session, whatever its task: the pass times hold for all tasks.
    latest: Option<Estimates>,
    /// Seconds of all sessions that plan.
    seconds: f64,
    /// Seconds of their probes.
    probing: f64,
    /// Seconds of reviews beyond the budget; less than 0 if some are saved up.
    review_debt: f64,
    /// Seconds of the last review.
    review: f64,
    /// See [`Estimates::serial_share`]; `None` if passes do not overlap.
    serial_share: Option<f64>,
}

impl Default for SharedPlanning {
    fn default() -> Self {
        SharedPlanning {
            tasks: HashMap::new(),
            groups: HashMap::new(),
            pass_times: Arc::default(),
            begun: AtomicUsize::new(0),
            times: Default::default(),
            company: 1.0,
            load: 0,
            latest: None,
            seconds: 0.0,
            probing: 0.0,
            review_debt: -SAVED_REVIEWS * FIRST_REVIEW_SECONDS,
            review: FIRST_REVIEW_SECONDS,
            serial_share: None,
        }
    }
}

impl SharedPlanning {
    /// Knows nothing yet but `pass_times`. `serial_share` is that of [`Estimates::serial_share`], or `None` if passes
    /// do not overlap.
    pub fn new(serial_share: Option<f64>, pass_times: Arc<PassTimes>) -> Self {
        SharedPlanning { serial_share, pass_times, ..SharedPlanning::default() }
    }

    /// What a session of a task begins with. Without an earlier session these are `pass_times`: what was measured at
    /// load time, by participant, as pairs of width and time.
    pub fn start(&self, key: &TaskKey, pass_times: &[&[(usize, Duration)]]) -> (Estimates, Option<Experience>) {
        let task = key.as_ref().and_then(|key| self.tasks.get(key));
        let mut estimates = match (task, &self.latest) {
            (Some(record), _) => record.estimates.clone(),
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
        match (&self.times[self.load], &self.latest) {
            (Some(times), _) => estimates.set_times(times.clone()),
            (None, Some(latest)) => estimates.costs.clone_from(&latest.costs),
            (None, None) => {}
        }
        estimates.serial_share = self.serial_share.unwrap_or(1.0);
        estimates.forget(INHERITED);
        (estimates, task.map(|record| record.experience.clone()))
    }

    /// A session has decoded in a company of so many, itself included. Returns the load: the binary logarithm of the
    /// average.
    pub fn meet(&mut self, company: usize) -> usize {
        let now = company.max(1) as f64;
        // All of a company report, so one report says little.
        self.company += (now - self.company) / (3.0 * (now * self.company).sqrt());
        let ratio = self.company / (1u64 << self.load) as f64;
        if ratio > LOAD_HYSTERESIS || ratio * LOAD_HYSTERESIS < 1.0 {
            self.load = (self.company.log2().round() as usize).min(LOADS - 1);
        }
        self.load
    }

    /// A moving average of the sessions that decode at the same time.
    pub fn company(&self) -> f64 {
        self.company
    }

    /// The number of a session that begins.
    pub fn number(&self) -> usize {
        self.begun.fetch_add(1, Ordering::Relaxed)
    }

    /// What passes take.
    pub fn pass_times(&self) -> &Arc<PassTimes> {
        &self.pass_times
    }

    /// The load as of the last report.
    pub fn load(&self) -> usize {
        self.load
    }

    /// How long things take at a load, if that is known.
    pub fn times(&self, load: usize) -> Option<&Times> {
        self.times[load].as_ref()
    }

    /// Things have taken so long at a load.
    pub fn learn_times(&mut self, load: usize, times: Times) {
        self.times[load] = Some(times);
    }

    /// The sessions of a task at the present load, if there are any.
    pub(super) fn find_group(&self, key: &TaskKey) -> Option<&SharedGroup> {
        self.groups.get(key.as_ref()?)?[self.load].as_ref()
    }

    /// The same; `new` ones if there are none. A task of which nothing is known has one session.
    pub(super) fn group(&mut self, key: &TaskKey, new: impl FnOnce() -> Group) -> SharedGroup {
        let new = || Arc::new(Mutex::new(new()));
        let Some(key) = key else { return new() };
        if self.groups.len() == MOST_TASKS && !self.groups.contains_key(key) {
            self.groups.clear();
        }
        self.groups.entry(key.clone()).or_default()[self.load].get_or_insert_with(new).clone()
    }

    /// Remember what a session has learned.
    pub fn learn(&mut self, key: &TaskKey, record: TaskRecord) {
        self.latest = Some(record.estimates.clone());
        self.times[self.load] = Some(record.estimates.times());
        if let Some(key) = key {
            if self.tasks.len() == MOST_TASKS && !self.tasks.contains_key(key) {
                self.tasks.clear();
            }
            self.tasks.insert(key.clone(), record);
        }
    }

    /// A session took so many more seconds, of which it allots `share` to reviews. Four of them may be saved up.
    pub fn add_time(&mut self, seconds: f64, share: f64) {
        self.seconds += seconds;
        self.review_debt = (self.review_debt - share * seconds).max(-SAVED_REVIEWS * self.review);
    }

    /// Whether the budget covers a review that takes as long as the last one, of whichever session.
    pub fn may_review(&self) -> bool {
        self.review_debt + self.review <= 0.0
    }

    /// A review took so many seconds. One after an alarm takes no search, so it tells nothing of the next one.
    pub fn add_review(&mut self, seconds: f64, alarmed: bool) {
        self.review_debt += seconds;
        if !alarmed {
            self.review = seconds;
        }
    }

    /// Whether the budget covers a probe of so many seconds.
    pub fn may_probe(&self, seconds: f64) -> bool {
        self.probing + seconds <= PROBING * self.seconds
    }

    /// A probe took so many seconds.
    pub fn add_probe(&mut self, seconds: f64) {
        self.probing += seconds;
    }
}

/// What a session spends.
#[derive(Debug, Clone, Copy, Default)]
pub struct Budget {
    /// Seconds of all its rounds, and those of them that were reported.
    seconds: f64,
    reported: f64,
}

impl Budget {
    /// Seconds of all rounds so far.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// A round took so long.
    pub fn spend(&mut self, seconds: f64) {
        self.seconds += seconds;
    }

    /// Report the time since the last report, which pays for reviews and probes. In a company, so many sessions report
    /// the same time.
    pub fn report(&mut self, shared: &mut SharedPlanning, is_settled: bool, company: f64) {
        let seconds = (self.seconds - std::mem::replace(&mut self.reported, self.seconds)) / company;
        shared.add_time(seconds, if is_settled { LATER_REVIEWS } else { FIRST_REVIEWS });
    }
}
