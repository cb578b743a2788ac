//! How much of a session's time passes take.

use std::time::Duration;

/// The time of the passes that a session had, those of others included that it shared.
#[derive(Debug, Default)]
pub struct TimeInPasses {
    all: Duration,
    /// Of the passes since [`TimeInPasses::begin`]: those that the session's own thread ran, and those of others.
    own: Duration,
    others: Duration,
}

impl TimeInPasses {
    /// Earlier passes have ended before the next ones begin.
    pub fn begin(&mut self) {
        (self.own, self.others) = Default::default();
    }

    /// A thread has waited so long for a pass; `is_own` says that it was the session's own.
    ///
    /// A thread waits for one pass after the other, and for each only as long as something is left of it, so its waits
    /// add up. Other threads wait at the same time, so the longest of their waits counts.
    pub fn add(&mut self, waited: Duration, is_own: bool) {
        let before = self.own.max(self.others);
        match is_own {
            true => self.own += waited,
            false => self.others = self.others.max(waited),
        }
        self.all += self.own.max(self.others) - before;
    }

    /// That of all passes so far.
    pub fn all(&self) -> Duration {
        self.all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum, if passes of so many milliseconds begin at the same time. `true` is the session's own thread.
    fn sum(waits: &[(u64, bool)]) -> u64 {
        let mut time = TimeInPasses::default();
        time.begin();
        waits.iter().for_each(|&(waited, is_own)| time.add(Duration::from_millis(waited), is_own));
        time.all().as_millis() as u64
    }

    #[test]
    fn own_waits_follow_each_other_and_those_of_others_do_not() {
        assert_eq!([sum(&[(9, true), (1, true)]), sum(&[(9, false), (8, false)])], [10, 9]);
        assert_eq!([sum(&[(5, true), (9, false)]), sum(&[(9, false), (5, true), (3, true)])], [9, 9]);
        let mut time = TimeInPasses::default();
        for _ in 0..2 {
            time.begin();
            time.add(Duration::from_millis(7), false);
        }
        assert_eq!(time.all(), Duration::from_millis(14));
    }
}
