//! Where the sessions of an engine wait for common passes: a queue for each model that batches.

use super::sync::Arc;
use super::wait::Crowd;
use crate::engine::participant::Participant;
use crate::engine::queue::PassQueue;
use crate::model::Model;

/// A queue for each model of an engine that batches.
pub struct PassQueues {
    queues: Vec<Option<PassQueue>>,
    crowd: Arc<Crowd>,
}

impl PassQueues {
    /// The queues of these participants.
    pub fn new(participants: &[Participant]) -> Self {
        let crowd = Arc::<Crowd>::default();
        let queue = |model: &dyn Model| PassQueue::new(model.max_batch_tokens(), crowd.clone());
        let queues = participants.iter().map(|each| each.model().filter(|model| model.batches()).map(queue)).collect();
        PassQueues { queues, crowd }
    }

    /// The queue of a participant, if it is a model that batches.
    pub fn of(&self, participant: usize) -> Option<&PassQueue> {
        self.queues[participant].as_ref()
    }

    /// Count the thread among those who will soon ask for a pass, until the guard is dropped. `None` if no model
    /// batches.
    pub fn enter(&self) -> Option<Inside> {
        self.queues.iter().any(Option::is_some).then(|| Inside::new(&self.crowd))
    }
}

/// A thread that is inside a step.
pub struct Inside(Arc<Crowd>);

impl Inside {
    fn new(crowd: &Arc<Crowd>) -> Self {
        crowd.add(1);
        Inside(crowd.clone())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.remove(1);
    }
}
