//! Which passes of an engine run at the same time, and how long they take.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use parking_lot::Mutex;

use crate::plan::pass_times::PassTimes;

/// Most passes at the same time from which anything is learned.
const MOST: usize = 8;

/// Watches the passes of an engine for what its pass times learn.
#[derive(Debug, Default)]
pub struct Together {
    times: Arc<PassTimes>,
    passes: Mutex<BegunPasses>,
}

/// Passes that have begun since none was running.
#[derive(Debug, Default)]
struct BegunPasses {
    /// Their models and tokens.
    begun: ArrayVec<(usize, usize), MOST>,
    /// How many have not ended.
    running: usize,
    /// When the first one began.
    since: Option<Instant>,
    /// Time that was spent inside them.
    inside: Duration,
    /// Whether they tell something: all began before any ended, and each will take as long again.
    counts: bool,
}

impl Together {
    /// Nothing is running.
    pub fn new(times: &Arc<PassTimes>) -> Self {
        Together { times: times.clone(), passes: Mutex::default() }
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
            (passes.since, passes.inside, passes.counts) = (Some(Instant::now()), Duration::ZERO, true);
        }
        passes.counts &= passes.running == passes.begun.len();
        passes.counts &= passes.begun.try_push((model, tokens)).is_ok();
        passes.running += 1;
    }

    /// A pass that was begun has ended. `elapsed` is the time that was spent inside it, if it will take as long again.
    pub fn end(&self, elapsed: Option<Duration>) {
        let mut passes = self.passes.lock();
        passes.inside += elapsed.unwrap_or_default();
        passes.counts &= elapsed.is_some();
        passes.running -= 1;
        if passes.running > 0 || !passes.counts {
            return;
        }
        match passes.begun.as_slice() {
            &[(model, tokens)] => self.times.record(model, tokens, passes.inside.as_secs_f64()),
            several => {
                // Real passes go on while nobody waits for them. Simulated ones take no time by the clock.
                let clock = passes.since.map_or(Duration::ZERO, |since| since.elapsed());
                let seconds = [passes.inside, passes.inside.max(clock)].map(|time| time.as_secs_f64());
                self.times.record_overlapped(several, seconds);
            }
        }
    }
}
