//! Times without those of a moment at which something else had the machine.

/// A time that is so many times the usual one is strange.
pub const STRANGE: f64 = 1.5;

/// Times that the mean remembers.
const MEMORY: f64 = 8.0;

/// What something usually takes.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub struct Steady {
    /// A mean; 0 if nothing is known.
    usual: f64,
    times: f64,
    /// Whether the last time was strange.
    was_strange: bool,
}

impl Steady {
    /// The time that counts for a measured one. A strange one counts in full only if the one before was strange too, so
    /// that a machine that stays busy is followed at once.
    pub fn count(&mut self, seconds: f64) -> f64 {
        let most = STRANGE * self.usual;
        let is_strange = self.usual > 0.0 && seconds > most;
        let counted = if is_strange && !self.was_strange { most } else { seconds };
        self.was_strange = is_strange;
        self.times = (self.times + 1.0).min(MEMORY);
        self.usual += (counted - self.usual) / self.times;
        counted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strange_time_counts_if_it_comes_twice() {
        let mut steady = Steady::default();
        assert_eq!([1.0, 1.2, 1.4].map(|seconds| steady.count(seconds)), [1.0, 1.2, 1.4]);
        let before = steady;
        assert!((steady.count(9.0) - 1.8).abs() < 1e-9 && steady.count(1.2) == 1.2, "alone");
        steady = before;
        assert!(steady.count(9.0) < 2.0 && steady.count(8.0) == 8.0 && steady.count(8.0) == 8.0, "for good");
    }
}
