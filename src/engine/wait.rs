//! How threads that share passes wait for each other.

use std::time::Duration;

use super::sync::{Arc, AtomicUsize, Condvar, Mutex, Ordering, wait_timeout, yield_now};
use crate::model::CancelHook;

/// Lets one thread wait until another one wakes it.
#[derive(Default)]
pub struct Waiter {
    woken: Mutex<bool>,
    condvar: Condvar,
}

impl Waiter {
    /// Wait for [`Waiter::wake`]. A call since the last wait counts.
    pub fn wait(&self) {
        let mut woken = self.woken.lock().expect("nobody panics with this lock");
        while !std::mem::take(&mut *woken) {
            woken = self.condvar.wait(woken).expect("nobody panics with this lock");
        }
    }

    /// Wait for [`Waiter::wake`], but not for longer than this.
    pub fn wait_for(&self, longest: Duration) {
        let mut woken = self.woken.lock().expect("nobody panics with this lock");
        if !*woken {
            woken = wait_timeout(&self.condvar, &self.woken, woken, longest);
        }
        *woken = false;
    }

    /// End the present wait, or the next one.
    pub fn wake(&self) {
        *self.woken.lock().expect("nobody panics with this lock") = true;
        self.condvar.notify_one();
    }
}

/// Wakes a thread that waits for a pass, so that it leaves the queue as soon as its session is cancelled.
pub struct WakeOnCancel(pub Arc<Waiter>);

impl CancelHook for WakeOnCancel {
    fn stop(&self) {
        self.0.wake();
    }

    fn resume(&self) {}
}

/// How often a leader lets other threads run before it stops waiting for those that are about to come, at least.
const YIELDS: usize = 64;

/// What the threads of an engine are about to do, so that a leader knows whom to wait for.
#[derive(Default)]
pub struct Crowd {
    /// Threads that are inside a step and compute, so that they will soon ask for a pass or leave.
    coming: AtomicUsize,
    /// Those of them who wait for the answer to a question.
    asking: AtomicUsize,
    /// Threads that have some of the passes that they asked for, and wait for those of other models.
    halves: AtomicUsize,
    /// Passes that are running.
    passes: AtomicUsize,
    /// Leaders that wait for the end of a pass of another model.
    held: Mutex<Vec<Arc<Waiter>>>,
}

impl Crowd {
    /// So many threads begin to compute.
    pub fn add(&self, threads: usize) {
        self.coming.fetch_add(threads, Ordering::Relaxed);
    }

    /// So many threads wait for a pass, or leave.
    pub fn remove(&self, threads: usize) {
        self.coming.fetch_sub(threads, Ordering::Relaxed);
    }

    /// So many threads wait for the answer to a question; they stay in the crowd.
    pub fn ask(&self, threads: usize) {
        self.asking.fetch_add(threads, Ordering::Relaxed);
    }

    /// So many threads have their answers.
    pub fn tell(&self, threads: usize) {
        self.asking.fetch_sub(threads, Ordering::Relaxed);
    }

    /// Whether a leader would wait for somebody.
    pub fn is_empty(&self) -> bool {
        self.coming.load(Ordering::Relaxed) == 0
    }

    /// Let those who compute arrive. Who does not is part of a later pass, which costs as much as this one. So the
    /// leader of a pass that takes `pass` nanoseconds waits for up to about a tenth of that.
    pub fn gather(&self, pass: usize) {
        /// About ten times as long as a yield takes, in nanoseconds.
        const YIELD: usize = 5000;
        Self::yield_until(YIELDS.max(pass / YIELD), || self.is_empty());
    }

    /// Let those who compute arrive, or ask a question.
    pub fn gather_questions(&self) {
        let (coming, asking) = (&self.coming, &self.asking);
        Self::yield_until(YIELDS, || coming.load(Ordering::Relaxed) <= asking.load(Ordering::Relaxed));
    }

    fn yield_until(most: usize, have_come: impl Fn() -> bool) {
        for _ in 0..most {
            if have_come() {
                break;
            }
            yield_now();
        }
    }

    /// A thread has its first pass, but not all of them.
    pub fn half(&self) {
        self.halves.fetch_add(1, Ordering::Relaxed);
    }

    /// A thread that had some of its passes has all of them.
    pub fn whole(&self) {
        self.halves.fetch_sub(1, Ordering::Relaxed);
    }

    /// A pass begins.
    pub fn begin(&self) {
        self.passes.fetch_add(1, Ordering::Relaxed);
    }

    /// A pass has ended, and its threads have their outcomes. Wakes the leaders that wait for it.
    pub fn end(&self) {
        self.passes.fetch_sub(1, Ordering::Relaxed);
        let held = std::mem::take(&mut *self.held.lock().expect("nobody panics with this lock"));
        held.into_iter().for_each(|leader| leader.wake());
    }

    fn is_running(&self) -> bool {
        self.passes.load(Ordering::Relaxed) > 0
    }

    /// Whether threads have a pass, and a running one will give them another one. If so, `leader` is woken when a pass
    /// ends.
    pub fn holds(&self, leader: &Arc<Waiter>) -> bool {
        let is_worth_it = || self.halves.load(Ordering::Relaxed) > 0 && self.is_running();
        if !is_worth_it() {
            return false;
        }
        self.held.lock().expect("nobody panics with this lock").push(leader.clone());
        // The pass may have ended just before.
        is_worth_it()
    }
}
