//! Answers questions about rows on a GPU for several threads at once, without a thread and a timer of its own.
//!
//! A thread adds its question to a batch. If no batch is being answered, it answers that batch, for all who are in it.
//! Those who come meanwhile fill the next one, which one of them answers.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::sync::{Arc, Condvar, Mutex, MutexGuard};
use super::wait::Crowd;
use crate::error::{Error, Result};
use crate::rows::{DeviceAnswers, DeviceSums};

/// Where the sessions of an engine have questions about their rows answered. All of these rows are on one GPU.
pub struct Questions {
    state: Mutex<Batches>,
    /// Where those wait whose batch has an even number, and the others.
    turns: [Condvar; 2],
    crowd: Arc<Crowd>,
}

#[derive(Default)]
struct Batches {
    /// The number of the batch that is filled, and what is in it.
    number: usize,
    filled: Filled,
    /// Whether the batch before it is being answered.
    is_running: bool,
    /// Batches that were answered, of which somebody has not heard.
    done: Vec<Done>,
    spares: Vec<Box<dyn DeviceAnswers>>,
    batches: u64,
}

/// A batch.
#[derive(Default)]
struct Filled {
    answers: Option<Box<dyn DeviceAnswers>>,
    /// Its questions, and how many of them are of threads in the crowd.
    count: usize,
    in_crowd: usize,
}

/// A batch that was answered.
struct Done {
    number: usize,
    /// Those who have not heard of it.
    left: usize,
    outcome: Result<()>,
}

impl Questions {
    /// Nobody asks. The crowd is that of the engine.
    pub fn new(crowd: Arc<Crowd>) -> Self {
        Questions { state: Mutex::default(), turns: Default::default(), crowd }
    }

    fn lock(&self) -> MutexGuard<'_, Batches> {
        self.state.lock().expect("nobody panics with this lock")
    }

    /// Have a question answered, together with those of other threads. `in_crowd` is as in [`super::queue::run`].
    pub fn ask(&self, sums: &mut dyn DeviceSums, in_crowd: bool) {
        let mut state = self.lock();
        let Batches { filled, spares, .. } = &mut *state;
        filled.answers.get_or_insert_with(|| spares.pop().unwrap_or_else(|| sums.answers())).take(sums);
        filled.count += 1;
        filled.in_crowd += usize::from(in_crowd);
        let number = state.number;
        self.crowd.ask(usize::from(in_crowd));
        let outcome = loop {
            if let Some(outcome) = state.outcome_of(number) {
                break outcome;
            }
            // If nothing is being answered, all earlier batches are, so this one is next.
            state = match state.is_running {
                true => self.turns[number % 2].wait(state).expect("nobody panics with this lock"),
                false => self.lead(state),
            };
        };
        drop(state);
        sums.settle(&outcome);
    }

    /// Answer the batch that is filled.
    fn lead<'a>(&'a self, mut state: MutexGuard<'a, Batches>) -> MutexGuard<'a, Batches> {
        state.is_running = true;
        drop(state);
        self.crowd.gather_questions();
        state = self.lock();
        let (number, Filled { answers, count, in_crowd }) = (state.number, std::mem::take(&mut state.filled));
        state.number = number.wrapping_add(1);
        drop(state);
        let mut answers = answers.expect("the leader's question is in it");
        let outcome = run(answers.as_mut());
        let mut state = self.lock();
        state.batches += 1;
        state.spares.push(answers);
        state.done.push(Done { number, left: count, outcome });
        state.is_running = false;
        self.crowd.tell(in_crowd);
        self.turns[number % 2].notify_all();
        self.turns[(number + 1) % 2].notify_one();
        state
    }

    /// To answer questions that one thread has: begin with that of `sums`.
    pub fn take(&self, sums: &dyn DeviceSums) -> Box<dyn DeviceAnswers> {
        let spare = self.lock().spares.pop();
        let mut answers = spare.unwrap_or_else(|| sums.answers());
        answers.take(sums);
        answers
    }

    /// Answer the questions that were taken.
    pub fn answer(&self, mut answers: Box<dyn DeviceAnswers>) -> Result<()> {
        let outcome = run(answers.as_mut());
        let mut state = self.lock();
        state.batches += 1;
        state.spares.push(answers);
        outcome
    }

    /// How often questions were answered, some or many at once.
    pub fn batches(&self) -> u64 {
        self.lock().batches
    }
}

/// Answer a batch. A panic is an error.
fn run(answers: &mut dyn DeviceAnswers) -> Result<()> {
    catch_unwind(AssertUnwindSafe(|| answers.run())).unwrap_or_else(|panic| Err(Error::of_panic(panic.as_ref())))
}

impl Batches {
    /// How a batch went, for one who was in it; `None` if it is not answered.
    fn outcome_of(&mut self, number: usize) -> Option<Result<()>> {
        let index = self.done.iter().position(|done| done.number == number)?;
        let done = &mut self.done[index];
        done.left -= 1;
        if done.left > 0 { Some(done.outcome.clone()) } else { Some(self.done.swap_remove(index).outcome) }
    }
}
