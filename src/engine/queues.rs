//! Where the sessions of an engine wait for common passes: a queue for each model that batches.

use super::sync::{Arc, AtomicUsize, Ordering};
use super::wait::Crowd;
use crate::config::FullCache;
use crate::decode::chance::CounterRng;
use crate::engine::participant::Participant;
use crate::engine::questions::Questions;
use crate::engine::queue::{PassQueue, WhenFull};
use crate::engine::together::Together;

/// A queue for each model of an engine that batches.
pub struct PassQueues {
    queues: Vec<Option<PassQueue>>,
    questions: Questions,
    crowd: Arc<Crowd>,
    /// Sessions that are in the middle of a round.
    decoding: AtomicUsize,
    /// What becomes of new sessions while the memory of a model is full.
    when_full: FullCache,
}

impl PassQueues {
    /// The queues of these participants. `seed` is that of the numbers that passes hand out. `together`
    /// watches the passes.
    pub fn new(participants: &[Participant], when_full: FullCache, seed: u64, together: &Arc<Together>) -> Arc<Self> {
        let crowd = Arc::<Crowd>::default();
        let numbers = CounterRng::new(seed);
        let queue = |(index, each): (usize, &Participant)| match each {
            Participant::Model(model) if model.batches() => {
                let numbers = numbers.fork(seed, index as u64);
                Some(PassQueue::new(model.clone(), crowd.clone(), numbers, (together.clone(), index)))
            }
            _ => None,
        };
        let queues = participants.iter().enumerate().map(queue).collect();
        let questions = Questions::new(crowd.clone());
        Arc::new(PassQueues { queues, questions, crowd, decoding: AtomicUsize::new(0), when_full })
    }

    /// What becomes of a pass if the memory of its model is full. `is_first` says that its session has decoded nothing
    /// yet and that its sequence is empty, `can_wait` that the thread may wait.
    pub fn when_full(&self, is_first: bool, can_wait: bool) -> WhenFull {
        match (self.when_full, can_wait) {
            (FullCache::Refuse, _) if is_first => WhenFull::Refuse,
            (_, true) => WhenFull::Wait,
            (_, false) => WhenFull::Return,
        }
    }

    /// The queue of a participant, if it is a model that batches.
    pub fn of(&self, participant: usize) -> Option<&PassQueue> {
        self.queues[participant].as_ref()
    }

    /// Where questions about rows on a GPU are answered.
    pub fn questions(&self) -> &Questions {
        &self.questions
    }

    /// Whether no model batches, so that nobody ever waits.
    pub fn is_empty(&self) -> bool {
        self.queues.iter().all(Option::is_none)
    }

    /// Count the thread among those who will soon ask for a pass, until the guard is dropped.
    pub fn enter(&self) -> Inside {
        self.crowd.add(1);
        Inside(self.crowd.clone())
    }

    /// Sessions that are in the middle of a round.
    pub fn company(&self) -> usize {
        self.decoding.load(Ordering::Relaxed)
    }

    /// Do not count a thread that has entered, until the guard is dropped: it runs passes of its own, which nobody is
    /// to wait for.
    pub fn step_aside(&self) -> Aside<'_> {
        self.crowd.remove(1);
        Aside(&self.crowd)
    }
}

/// Counts a session that is in the middle of a round.
pub struct Decoding {
    queues: Arc<PassQueues>,
    counts: bool,
}

impl Decoding {
    /// A session that is not.
    pub fn new(queues: &Arc<PassQueues>) -> Self {
        Decoding { queues: queues.clone(), counts: false }
    }

    /// Count it from now on, or no longer.
    pub fn set(&mut self, counts: bool) {
        match (std::mem::replace(&mut self.counts, counts), counts) {
            (false, true) => _ = self.queues.decoding.fetch_add(1, Ordering::Relaxed),
            (true, false) => _ = self.queues.decoding.fetch_sub(1, Ordering::Relaxed),
            _ => {}
        }
    }
}

impl Drop for Decoding {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// A thread that is inside a step.
pub struct Inside(Arc<Crowd>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.remove(1);
    }
}

/// A thread that is inside a step, but runs passes alone.
pub struct Aside<'a>(&'a Crowd);

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        self.0.add(1);
    }
}
