//! Which passes of an engine run at the same time, and how long they take.

use std::sync::Arc;
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use parking_lot::Mutex;

use crate::clock::Clock;
use crate::plan::pass_times::PassTimes;

/// Most passes at the same time from which anything is learned.
const MOST: usize = 8;

/// Watches the passes of an engine for what its pass times learn.
pub struct Together {
    times: Arc<PassTimes>,
    clock: Arc<Clock>,
    passes: Mutex<BegunPasses>,
}

impl Default for Together {
    fn default() -> Self {
        let begun = Instant::now();
        let clock: Arc<Clock> = Arc::new(move || begun.elapsed());
        Together { times: Arc::default(), clock, passes: Mutex::default() }
    }
}

/// Passes that have begun since none was running.
#[derive(Debug, Default)]
struct BegunPasses {
    /// Their models and tokens.
    begun: ArrayVec<(usize, usize), MOST>,
    /// How many have not ended.
    running: usize,
    /// When the first one began.
    since: Duration,
    /// Time that threads have spent inside them. Several threads wait at the same time.
    inside: ArrayVec<(ThreadId, Duration), MOST>,
    /// Whether they tell something: all began before any ended, and none failed or prepared others.
    counts: bool,
}

impl Together {
    /// Nothing is running.
    pub fn new(times: &Arc<PassTimes>, clock: &Arc<Clock>) -> Arc<Self> {
        Arc::new(Together { times: times.clone(), clock: clock.clone(), passes: Mutex::default() })
    }

    /// What was learned.
    pub fn times(&self) -> &PassTimes {
        &self.times
    }

    /// A pass of a model over so many tokens begins.
    pub fn begin(&self, model: usize, tokens: usize) {
        let mut passes = self.passes.lock();
        if passes.running == 0 {
            passes.begun.clear();
            passes.inside.clear();
            (passes.since, passes.counts) = ((self.clock)(), true);
        }
        passes.counts &= passes.running == passes.begun.len();
        passes.counts &= passes.begun.try_push((model, tokens)).is_ok();
        passes.running += 1;
    }

    /// A pass that was begun has ended, in the thread that waited for it. `elapsed` is the time that was spent inside
    /// it, if it will take as long again.
    pub fn end(&self, elapsed: Option<Duration>) {
        let mut passes = self.passes.lock();
        passes.running -= 1;
        passes.counts &= elapsed.is_some();
        let (thread, elapsed) = (std::thread::current().id(), elapsed.unwrap_or_default());
        match passes.inside.iter_mut().find(|(of, _)| *of == thread) {
            Some((_, inside)) => *inside += elapsed,
            None => passes.counts &= passes.inside.try_push((thread, elapsed)).is_ok(),
        }
        if passes.running > 0 || !passes.counts {
            return;
        }
        let inside = passes.inside.iter().map(|(_, inside)| *inside).max().unwrap_or_default();
        match passes.begun.as_slice() {
            &[(model, tokens)] => self.times.record(model, tokens, inside.as_secs_f64()),
            several => {
                // Passes go on while nobody waits for them.
                let all = (self.clock)().saturating_sub(passes.since).max(inside);
                self.times.record_overlapped(several, [inside, all].map(|time| time.as_secs_f64()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Passes of an engine of two models, each of which is known to take 1,000 ns with 8 tokens, and a clock.
    fn engine() -> (Arc<Together>, Arc<AtomicU64>) {
        let (times, now) = (Arc::new(PassTimes::new(2)), Arc::new(AtomicU64::new(0)));
        times.set_serial(Some(0.5));
        (0..2).for_each(|model| (0..20).for_each(|_| times.record(model, 8, 1e-6)));
        let clock = now.clone();
        let clock: Arc<Clock> = Arc::new(move || Duration::from_nanos(clock.load(Ordering::Relaxed)));
        (Together::new(&times, &clock), now)
    }

    fn nanoseconds(together: &Together, model: usize) -> u64 {
        (1e9 * together.times().at(model, 8.0).unwrap()).round() as u64
    }

    #[test]
    fn passes_that_overlap_in_part_tell_nothing() {
        let (together, _) = engine();
        let end = |elapsed: u64| together.end(Some(Duration::from_nanos(elapsed)));
        for _ in 0..50 {
            (0..2).for_each(|model| together.begin(model, 8));
            end(10);
            together.begin(0, 8);
            (0..2).for_each(|_| end(10));
            // One fails, or prepares others.
            (0..2).for_each(|model| together.begin(model, 8));
            end(10);
            together.end(None);
            // There are too many of them.
            (0..=MOST).for_each(|_| together.begin(1, 8));
            (0..=MOST).for_each(|_| end(10));
        }
        assert_eq!([0, 1].map(|model| nanoseconds(&together, model)), [1000; 2]);
        together.begin(0, 8);
        end(900);
        assert!(nanoseconds(&together, 0) < 1000, "nothing is running any more");
    }

    #[test]
    fn threads_wait_at_the_same_time() {
        let (together, now) = engine();
        for round in 0..50 {
            (0..2).for_each(|model| together.begin(model, 8));
            now.store(1500 * (round + 1), Ordering::Relaxed);
            let wait = || together.end(Some(Duration::from_nanos(1500)));
            std::thread::scope(|scope| (0..2).for_each(|_| _ = scope.spawn(wait).join()));
        }
        assert_eq!([0, 1].map(|model| nanoseconds(&together, model)), [1000; 2]);
    }
}
