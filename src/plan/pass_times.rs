//! What passes of the models of an engine take, as all its sessions have learned it.

use parking_lot::Mutex;

use crate::learn::pass_times::Curve;

/// The pass times of all models of an engine.
#[derive(Debug, Default)]
pub struct PassTimes(Vec<Mutex<Curve>>);

impl PassTimes {
    /// Nothing is known of so many participants.
    pub fn new(participants: usize) -> Self {
        PassTimes((0..participants).map(|_| Mutex::default()).collect())
    }

    /// Learn that a pass of a model over so many tokens took `seconds`.
    pub fn record(&self, model: usize, tokens: usize, seconds: f64) {
        self.0.get(model).into_iter().for_each(|curve| curve.lock().record(tokens, seconds));
    }

    /// Expected seconds of a pass of a model over so many tokens, if there was any.
    pub fn at(&self, model: usize, tokens: f64) -> Option<f64> {
        self.0.get(model)?.lock().at(tokens)
    }
}
