//! What the sessions of an engine share for planning: what they have learned, and a budget of time.

use std::collections::HashMap;
use std::time::Duration;

use super::planner::Experience;
use crate::learn::estimates::Estimates;

/// Share of all sessions' time that probes may take.
const PROBING: f64 = 0.003;

/// Reviews that may be saved up. An engine begins with so many, since the first ones teach the most. Without them, a
/// model of a third of a millisecond a pass would have its first review after some hundred tokens.
const SAVED_REVIEWS: f64 = 4.0;

/// Assumed seconds of a review before the first one.
pub const FIRST_REVIEW_SECONDS: f64 = 1e-3;

/// Observations that a new session inherits. They are enough to begin with, and few enough to be outweighed soon by
/// those of its own text.
const INHERITED: f64 = 24.0;

/// Tasks that are remembered. The memory is cleared when it is full.
const MOST_TASKS: usize = 256;

/// Identifies what is decoded. `None` for a combination by a caller's function, of which nothing is known.
pub type TaskKey = Option<String>;

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
    /// Estimates of the last session, whatever its task: the pass times hold for all tasks.
    latest: Option<Estimates>,
    /// Seconds of all sessions that plan.
    seconds: f64,
    /// Seconds of their probes.
    probing: f64,
    /// Seconds of reviews beyond the budget; less than 0 if some are saved up.
    review_debt: f64,
    /// See [`Estimates::serial_share`]; `None` if passes do not overlap.
    serial_share: Option<f64>,
}

impl Default for SharedPlanning {
    fn default() -> Self {
        SharedPlanning {
            tasks: HashMap::new(),
            latest: None,
            seconds: 0.0,
            probing: 0.0,
            review_debt: -SAVED_REVIEWS * FIRST_REVIEW_SECONDS,
            serial_share: None,
        }
    }
}

impl SharedPlanning {
    /// Knows nothing yet. `serial_share` is that of [`Estimates::serial_share`], or `None` if passes do not overlap.
    pub fn new(serial_share: Option<f64>) -> Self {
        SharedPlanning { serial_share, ..SharedPlanning::default() }
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
        if let Some(latest) = &self.latest {
            estimates.costs.clone_from(&latest.costs);
        }
        estimates.serial_share = self.serial_share.unwrap_or(1.0);
        estimates.forget(INHERITED);
        (estimates, task.map(|record| record.experience.clone()))
    }

    /// Remember what a session has learned.
    pub fn learn(&mut self, key: &TaskKey, record: TaskRecord) {
        self.latest = Some(record.estimates.clone());
        if let Some(key) = key {
            if self.tasks.len() == MOST_TASKS && !self.tasks.contains_key(key) {
                self.tasks.clear();
            }
            self.tasks.insert(key.clone(), record);
        }
    }

    /// A session took so many more seconds, of which it allots `share` to reviews. One of its reviews takes `review`
    /// seconds, and four of them may be saved up.
    pub fn add_time(&mut self, seconds: f64, share: f64, review: f64) {
        self.seconds += seconds;
        self.review_debt = (self.review_debt - share * seconds).max(-SAVED_REVIEWS * review);
    }

    /// Whether the budget covers a review of so many seconds.
    pub fn may_review(&self, seconds: f64) -> bool {
        self.review_debt + seconds <= 0.0
    }

    /// A review took so many seconds.
    pub fn add_review(&mut self, seconds: f64) {
        self.review_debt += seconds;
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
