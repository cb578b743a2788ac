//! Decides whether the threads of passes spin while they wait for work, by whether others want their cores.
//!
//! The threads of a pass wait for each other at each operator. Threads that spin wait shortest. But if others want the
//! cores, a thread that has spun has used up its time slice when there is work, and all wait until it gets another.
//! Threads that sleep keep theirs. How long threads were ready to run without a core tells: the time that they *lost*.

use std::time::Duration;

/// Time of passes after which the lost time is judged.
const WINDOW: Duration = Duration::from_millis(10);
/// The cores are crowded if threads lose more than this share of a core in two windows on end. A process of the system
/// takes one time slice now and then.
const TOO_MUCH: f64 = 0.2;
/// Spinning is tried again after this time, at least and at most. It doubles with each trial that ends soon.
const OFTEN: Duration = Duration::from_millis(100);
const SELDOM: Duration = Duration::from_secs(2);
const SOON: Duration = Duration::from_secs(1);
/// What was observed before a pause of this length counts no more.
const PAUSE: Duration = Duration::from_secs(1);

/// Whether the cores are crowded, and what was observed since this was last judged. Times are since any fixed moment.
#[derive(Default)]
pub struct Crowding {
    crowded: bool,
    /// When this last changed.
    since: Duration,
    /// How long to wait until spinning is tried again.
    wait: Duration,
    /// The time of passes, and what their callers lost of it.
    busy: Duration,
    lost: Duration,
    /// What all workers had lost when this was last judged.
    known: Duration,
    /// Whether the last window was bad.
    bad: bool,
    /// When the last pass ended.
    last: Duration,
}

impl Crowding {
    /// The cores are crowded for good.
    #[cfg(test)]
    pub fn forced() -> Self {
        Crowding { crowded: true, wait: Duration::MAX, ..Crowding::default() }
    }

    /// Whether threads should sleep while they wait.
    pub fn is_crowded(&self) -> bool {
        self.crowded
    }

    /// A pass took `time`, of which its caller had no core for `lost`. Returns whether it is time to judge.
    pub fn passed(&mut self, now: Duration, time: Duration, lost: Duration) -> bool {
        if now.saturating_sub(self.last) > PAUSE {
            (self.busy, self.lost, self.bad) = (Duration::ZERO, Duration::ZERO, false);
        }
        self.last = now;
        self.busy += time;
        self.lost += lost;
        self.busy >= WINDOW
    }

    /// Judge the passes since this was last called. `workers_lost` is what the workers that spin have lost since they
    /// exist.
    pub fn judge(&mut self, now: Duration, workers_lost: Duration) {
        let lost = self.lost + workers_lost.saturating_sub(self.known);
        let is_bad = lost > self.busy.mul_f64(TOO_MUCH);
        (self.busy, self.lost, self.known) = (Duration::ZERO, Duration::ZERO, workers_lost);
        let passed = now.saturating_sub(self.since);
        if self.crowded {
            if passed < self.wait {
                return;
            }
            self.crowded = false;
        } else if is_bad && self.bad {
            self.crowded = true;
            // The first trial comes soon, since most disturbances are short.
            self.wait = if passed < SOON { (2 * self.wait).clamp(OFTEN, SELDOM) } else { OFTEN };
        } else {
            self.bad = is_bad;
            return;
        }
        (self.since, self.bad) = (now, false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// Passes of 5 ms for so long. `lost` gives the share of a core that the threads of a pass lose, by whether they
    /// spin. Returns the share of the time in which they slept.
    fn run(crowd: &mut Crowding, clock: &mut (Duration, Duration), time: Duration, lost: impl Fn(bool) -> f64) -> f64 {
        let (end, mut slept) = (clock.0 + time, 0);
        for number in 0.. {
            if clock.0 >= end {
                return f64::from(slept) / f64::from(number);
            }
            let share = lost(!crowd.is_crowded());
            slept += i32::from(crowd.is_crowded());
            clock.0 += 5 * MS;
            // Workers that sleep lose nothing.
            clock.1 += if crowd.is_crowded() { Duration::ZERO } else { (5 * MS).mul_f64(share / 2.0) };
            if crowd.passed(clock.0, 5 * MS, (5 * MS).mul_f64(share / 2.0)) {
                crowd.judge(clock.0, clock.1);
            }
        }
        unreachable!()
    }

    #[test]
    fn threads_sleep_while_others_want_their_cores() {
        let (mut crowd, mut clock) = Default::default();
        let second = 1000 * MS;
        assert_eq!(run(&mut crowd, &mut clock, 10 * second, |_| 0.05), 0.0);
        let beside = run(&mut crowd, &mut clock, 20 * second, |spins| if spins { 0.7 } else { 0.3 });
        assert!(beside > 0.96, "they slept for {beside} of the time beside others");
        run(&mut crowd, &mut clock, 3 * second, |_| 0.0);
        assert_eq!(run(&mut crowd, &mut clock, 10 * second, |_| 0.0), 0.0, "they spin again when alone");
    }

    /// A time slice now and then is no crowd.
    #[test]
    fn one_bad_window_changes_nothing() {
        let mut crowd = Crowding::default();
        for number in 0..100 {
            let lost = if number % 3 == 0 { 4 * MS } else { Duration::ZERO };
            assert!(crowd.passed(number * 10 * MS, 10 * MS, lost));
            crowd.judge(number * 10 * MS, Duration::ZERO);
            assert!(!crowd.is_crowded());
        }
    }

    /// Windows on both sides of a pause do not count together.
    #[test]
    fn a_pause_is_a_new_beginning() {
        let mut crowd = Crowding::default();
        for number in 0..10 {
            assert!(crowd.passed(number * 2 * PAUSE, 10 * MS, 9 * MS));
            crowd.judge(number * 2 * PAUSE, Duration::ZERO);
            assert!(!crowd.is_crowded());
        }
    }
}
