//! What passes of the models of an engine take, as all its sessions have learned it.
//!
//! The time of a pass that runs alone is its own. Of passes at the same time only the time of all is known. They take as
//! long as the longest, and a share of the time of the others: [`Estimates::serial_share`]. So each of them is learned
//! from what is known of the others.
//!
//! [`Estimates::serial_share`]: crate::learn::estimates::Estimates::serial_share

use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use parking_lot::Mutex;

use crate::learn::pass_times::Curve;

/// Most passes at the same time from which anything is learned.
const MOST: usize = 8;

/// The pass times of all models of an engine.
#[derive(Debug, Default)]
pub struct PassTimes {
    curves: Vec<Mutex<Curve>>,
    together: Mutex<Together>,
}

/// Passes that have begun since none was running.
#[derive(Debug, Default)]
struct Together {
    /// Their models and tokens.
    passes: ArrayVec<(usize, usize), MOST>,
    /// How many have not ended.
    running: usize,
    /// When the first one began.
    since: Option<Instant>,
    /// Time that was spent inside them.
    inside: Duration,
    /// Whether they tell something: all began before any ended, and each will take as long again.
    counts: bool,
    /// See [`PassTimes::set_serial`].
    serial: Option<f64>,
    /// Passes from which something was learned.
    learned: u64,
}

impl PassTimes {
    /// Nothing is known of so many participants.
    pub fn new(participants: usize) -> Self {
        PassTimes { curves: (0..participants).map(|_| Mutex::default()).collect(), together: Mutex::default() }
    }

    /// Set the share of all passes at the same time but the longest that adds to the longest. `None`: unknown, so
    /// nothing is learned from them.
    pub fn set_serial(&self, serial: Option<f64>) {
        self.together.lock().serial = serial;
    }

    /// A pass of a model over so many tokens begins.
    pub fn begin(&self, model: usize, tokens: usize) {
        let mut together = self.together.lock();
        if together.running == 0 {
            together.passes.clear();
            (together.since, together.inside, together.counts) = (Some(Instant::now()), Duration::ZERO, true);
        }
        together.counts &= together.running == together.passes.len();
        together.counts &= together.passes.try_push((model, tokens)).is_ok();
        together.running += 1;
    }

    /// A pass that was begun has ended. `elapsed` is the time that was spent inside it, if it will take as long again.
    pub fn end(&self, elapsed: Option<Duration>) {
        let mut together = self.together.lock();
        together.inside += elapsed.unwrap_or_default();
        together.counts &= elapsed.is_some();
        together.running -= 1;
        if together.running > 0 || !together.counts {
            return;
        }
        let now = together.learned;
        together.learned += 1;
        match (together.passes.as_slice(), together.serial) {
            (&[(model, tokens)], _) => {
                self.with(model, |curve| curve.record(tokens, together.inside.as_secs_f64(), now));
            }
            (_, Some(serial)) => {
                // Real passes go on while nobody waits for them. Simulated ones take no time by the clock.
                let clock = together.since.map_or(Duration::ZERO, |since| since.elapsed());
                let seconds = [together.inside, together.inside.max(clock)].map(|time| time.as_secs_f64());
                self.learn(&together.passes, serial, seconds, now);
            }
            _ => {}
        }
    }

    /// Learn from passes at the same time, given as (model, tokens). They took so many seconds in all: at least those
    /// that were spent inside them, and at most those until the last one had ended.
    fn learn(&self, passes: &[(usize, usize)], serial: f64, [least, most]: [f64; 2], now: u64) {
        // Without an estimate, a pass is assumed to be like all others.
        let like_others = most / (1.0 + serial * (passes.len() - 1) as f64);
        let expected = |&(model, tokens): &(usize, usize)| self.at(model, tokens as f64).unwrap_or(like_others);
        let alone: ArrayVec<f64, MOST> = passes.iter().map(expected).collect();
        let (longest, sum) = alone.iter().fold((0.0f64, 0.0), |(longest, sum), each| (longest.max(*each), sum + each));
        let all = longest + serial * (sum - longest);
        for (&(model, tokens), each) in passes.iter().zip(alone) {
            let (most, scaled) = (most - serial * (sum - each), each * (least / all).max(1.0));
            self.with(model, |curve| curve.record_overlapped(tokens, most, scaled, now));
        }
    }

    fn with(&self, model: usize, learn: impl Fn(&mut Curve)) {
        self.curves.get(model).into_iter().for_each(|curve| learn(&mut curve.lock()));
    }

    /// Learn that a pass of a model over so many tokens took `seconds`.
    pub fn record(&self, model: usize, tokens: usize, seconds: f64) {
        self.begin(model, tokens);
        self.end(Some(Duration::from_secs_f64(seconds)));
    }

    /// Conditions have changed; see [`Curve::forget`].
    pub fn forget(&self) {
        let now = self.together.lock().learned;
        self.curves.iter().for_each(|curve| curve.lock().forget(now));
    }

    /// Expected seconds of a pass of a model over so many tokens, if there was any.
    pub fn at(&self, model: usize, tokens: f64) -> Option<f64> {
        self.curves.get(model)?.lock().at(tokens)
    }
}
