//! What passes of the models of an engine take, as all its sessions have learned it.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::learn::pass_times::Curve;

/// The pass times of all models of an engine.
#[derive(Debug, Default)]
pub struct PassTimes {
    curves: Vec<Mutex<Curve>>,
    /// Passes of all models.
    passes: AtomicU64,
}

impl PassTimes {
    /// Nothing is known of so many participants.
    pub fn new(participants: usize) -> Self {
        PassTimes { curves: (0..participants).map(|_| Mutex::default()).collect(), passes: AtomicU64::new(0) }
    }

    /// Learn that a pass of a model over so many tokens took `seconds`.
    pub fn record(&self, model: usize, tokens: usize, seconds: f64) {
        let now = self.passes.fetch_add(1, Ordering::Relaxed);
        self.curves.get(model).into_iter().for_each(|curve| curve.lock().record(tokens, seconds, now));
    }

    /// Learn that a pass of a model over so many tokens takes `seconds` or less, because it took them beside others.
    pub fn bound(&self, model: usize, tokens: usize, seconds: f64) {
        let now = self.passes.load(Ordering::Relaxed);
        self.curves.get(model).into_iter().for_each(|curve| curve.lock().bound(tokens, seconds, now));
    }

    /// Conditions have changed; see [`Curve::forget`].
    pub fn forget(&self) {
        let now = self.passes.load(Ordering::Relaxed);
        self.curves.iter().for_each(|curve| curve.lock().forget(now));
    }

    /// Expected seconds of a pass of a model over so many tokens, if there was any.
    pub fn at(&self, model: usize, tokens: f64) -> Option<f64> {
        self.curves.get(model)?.lock().at(tokens)
    }
}
