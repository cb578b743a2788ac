//! What passes of the models of an engine take, as all its sessions have learned it.
//!
//! The time of a pass that runs alone is its own. Of passes at the same time only the time of all is known. They take
//! as long as the longest, and a share of the time of the others: [`Estimates::serial_share`]. So each of them is
//! learned from what is known of the others.
//!
//! [`Estimates::serial_share`]: crate::learn::estimates::Estimates::serial_share

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::learn::pass_times::Curve;

/// The pass times of all models of an engine.
#[derive(Debug, Default)]
pub struct PassTimes {
    curves: Vec<Mutex<Curve>>,
    /// See [`PassTimes::set_serial`].
    serial: Mutex<Option<f64>>,
    /// How often something was learned.
    learned: AtomicU64,
}

impl PassTimes {
    /// Nothing is known of so many participants.
    pub fn new(participants: usize) -> Self {
        PassTimes { curves: (0..participants).map(|_| Mutex::default()).collect(), ..PassTimes::default() }
    }

    /// Set the share of all passes at the same time but the longest that adds to the longest. `None`: unknown, so
    /// nothing is learned from them.
    pub fn set_serial(&self, serial: Option<f64>) {
        *self.serial.lock() = serial;
    }

    /// Learn that a pass of a model over so many tokens took `seconds`.
    pub fn record(&self, model: usize, tokens: usize, seconds: f64) {
        let now = self.learned.fetch_add(1, Ordering::Relaxed);
        self.with(model, |curve| curve.record(tokens, seconds, now));
    }

    /// Learn from passes at the same time, given as (model, tokens). They took so many seconds in all: at least those
    /// that were spent inside them, and at most those until the last one had ended.
    pub fn record_overlapped(&self, passes: &[(usize, usize)], [least, most]: [f64; 2]) {
        let Some(serial) = *self.serial.lock() else { return };
        let now = self.learned.fetch_add(1, Ordering::Relaxed);
        // Without an estimate, a pass is assumed to be like all others.
        let like_others = least / (1.0 + serial * (passes.len() - 1) as f64);
        let alone = |&(model, tokens): &(usize, usize)| self.at(model, tokens as f64).unwrap_or(like_others);
        let add = |(longest, sum): (f64, f64), each: f64| (longest.max(each), sum + each);
        let (longest, sum) = passes.iter().map(alone).fold((0.0, 0.0), add);
        let all = longest + serial * (sum - longest);
        let (slower, faster) = ((least / all).max(1.0), (most / all).min(1.0));
        for pass in passes {
            let each = alone(pass);
            // It took no more than what the others leave of the time, if these are known well. If not, all are wrong.
            let most = (most - serial * (sum - each)).max(faster * each);
            self.with(pass.0, |curve| curve.record_overlapped(pass.1, most, slower * each, now));
        }
    }

    fn with(&self, model: usize, learn: impl Fn(&mut Curve)) {
        self.curves.get(model).into_iter().for_each(|curve| learn(&mut curve.lock()));
    }

    /// Conditions have changed; see [`Curve::forget`].
    pub fn forget(&self) {
        let now = self.learned.load(Ordering::Relaxed);
        self.curves.iter().for_each(|curve| curve.lock().forget(now));
    }

    /// Expected seconds of a pass of a model over so many tokens, if there was any.
    pub fn at(&self, model: usize, tokens: f64) -> Option<f64> {
        self.curves.get(model)?.lock().at(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_at_the_same_time_tell_of_each_other() {
        let times = PassTimes::new(2);
        let near = |model: usize, expected: f64| {
            let found = times.at(model, 8.0).unwrap();
            assert!((found / expected - 1.0).abs() < 0.03, "model {model}: {found}, not {expected}");
        };
        times.record_overlapped(&[(0, 8), (1, 8)], [1.5, 1.5]);
        assert_eq!(times.at(0, 8.0), None, "it is unknown how well they overlap");
        times.set_serial(Some(0.5));
        times.record_overlapped(&[(0, 8), (1, 8)], [1.5, 1.5]);
        (0..2).for_each(|model| near(model, 1.0));
        // The first one takes 0.8 alone. So the other one takes 1.1.
        for _ in 0..40 {
            times.record(0, 8, 0.8);
            times.record_overlapped(&[(0, 8), (1, 8)], [1.5, 1.5]);
        }
        [0.8, 1.1].into_iter().enumerate().for_each(|(model, seconds)| near(model, seconds));
        // Both become slower, and none is seen alone.
        (0..40).for_each(|_| times.record_overlapped(&[(0, 8), (1, 8)], [3.0, 3.0]));
        let known = [0, 1].map(|model| times.at(model, 8.0).unwrap());
        assert!(known[0] > 1.0 && (2.8..3.1).contains(&(known[1] + 0.5 * known[0])), "{known:?}");
        // They become much faster.
        (0..200).for_each(|_| times.record_overlapped(&[(0, 8), (1, 8)], [0.3, 0.3]));
        let known = [0, 1].map(|model| times.at(model, 8.0).unwrap());
        assert!((0.29..0.32).contains(&(known[1] + 0.5 * known[0])), "{known:?}");
        // Nothing is known of passes that are far wider.
        (0..60).for_each(|_| times.record_overlapped(&[(0, 512), (1, 512)], [0.6, 0.6]));
        let wide = [0, 1].map(|model| times.at(model, 512.0).unwrap());
        assert!((0.58..0.62).contains(&(wide[0].max(wide[1]) + 0.5 * wide[0].min(wide[1]))), "{wide:?}");
        // The host does something else meanwhile.
        (0..40).for_each(|_| times.record_overlapped(&[(0, 8), (1, 8)], [0.1, 9.0]));
        assert_eq!([0, 1].map(|model| times.at(model, 8.0).unwrap()), known);
    }
}
