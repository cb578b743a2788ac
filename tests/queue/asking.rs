//! Questions of several threads, in many orders of the steps of all threads: each is answered once, and hears how its
//! own batch went.

use std::any::Any;
use std::panic::resume_unwind;
use std::sync::Arc;

use cos::error::Error;
use cos::rows::{DeviceAnswers, DeviceEdits, DeviceRow, DeviceSums, Edits, Filter, Row, RowToEdit, Term};
use shuttle::sync::Mutex;

use crate::questions::Questions;
use crate::wait::Crowd;

/// Orders that are tried of each case.
const ORDERS: usize = 3000;

/// What was asked, by number, with how its batch went. Bad questions spoil their batch.
#[derive(Default)]
struct Heard(Mutex<Vec<(usize, Result<(), Error>)>>);

/// A question that is only a number. Number 2 spoils its batch, and 3 panics.
struct Numbered {
    number: Option<usize>,
    outcome: Option<Result<(), Error>>,
    heard: Arc<Heard>,
}

struct Batch {
    taken: Vec<usize>,
    heard: Arc<Heard>,
}

impl DeviceSums for Numbered {
    fn edit(&mut self, _: RowToEdit<'_>, _: &mut dyn DeviceEdits) -> bool {
        unreachable!("questions are only numbers")
    }

    fn make_edited(&mut self) -> Result<(), Error> {
        unreachable!("questions are only numbers")
    }

    fn add(
        &mut self,
        _: &mut dyn Iterator<Item = Term>,
        _: Option<(DeviceRow, f32)>,
        _: Option<&Edits>,
        _: Filter,
        _: usize,
        _: Option<f64>,
    ) -> Result<bool, Error> {
        unreachable!("questions are only numbers")
    }

    fn sum(&self) -> Row<'_> {
        unreachable!("questions are only numbers")
    }

    fn residual(
        &mut self,
        _: &mut dyn Iterator<Item = Term>,
        _: Option<usize>,
        _: Option<f64>,
    ) -> Result<Option<f64>, Error> {
        unreachable!("questions are only numbers")
    }

    fn draw_residual(&self, _: f64) -> Result<usize, Error> {
        unreachable!("questions are only numbers")
    }

    fn bytes(&self) -> usize {
        0
    }

    fn defer(&mut self) {}

    fn asks(&self) -> bool {
        self.number.is_some()
    }

    fn settle(&mut self, outcome: &Result<(), Error>) {
        assert!(self.number.take().is_some());
        self.outcome = Some(outcome.clone());
    }

    fn forget(&mut self) {}

    fn answers(&self) -> Box<dyn DeviceAnswers> {
        Box::new(Batch { taken: Vec::new(), heard: self.heard.clone() })
    }
}

impl DeviceAnswers for Batch {
    fn take(&mut self, sums: &dyn DeviceSums) {
        let question: &Numbered = (sums as &dyn Any).downcast_ref().unwrap();
        self.taken.push(question.number.unwrap());
    }

    fn run(&mut self) -> Result<(), Error> {
        let taken = std::mem::take(&mut self.taken);
        shuttle::thread::yield_now();
        let panics = taken.iter().any(|number| number % 10 == 3);
        let outcome = match taken.iter().any(|number| number % 10 == 2) {
            _ if panics => Err(Error::Internal("a very bad question".into())),
            true => Err(Error::Runtime("a bad question".into())),
            false => Ok(()),
        };
        self.heard.0.lock().unwrap().extend(taken.iter().map(|&number| (number, outcome.clone())));
        // Not `panic!`, whose message shuttle takes for a failure.
        if panics { resume_unwind(Box::new("a very bad question")) } else { outcome }
    }
}

fn check(threads: &'static [&'static [usize]]) {
    let case = move || {
        let crowd = Arc::<Crowd>::default();
        let (questions, heard) = (Arc::new(Questions::new(crowd.clone())), Arc::<Heard>::default());
        let workers: Vec<_> = (0..threads.len())
            .map(|thread| {
                let (questions, heard, crowd) = (questions.clone(), heard.clone(), crowd.clone());
                shuttle::thread::spawn(move || {
                    crowd.add(1);
                    for (index, kind) in threads[thread].iter().enumerate() {
                        let number = 100 * thread + 10 * index + kind;
                        let mut question = Numbered { number: Some(number), outcome: None, heard: heard.clone() };
                        questions.ask(&mut question, true);
                        let heard = heard.0.lock().unwrap();
                        let mut answers = heard.iter().filter(|(answered, _)| *answered == number);
                        let (_, outcome) = answers.next().expect("it was answered");
                        let same = match (outcome, question.outcome.as_ref().unwrap()) {
                            (Err(Error::Internal(_)), Err(Error::Internal(_))) => true,
                            (a, b) => a == b,
                        };
                        assert!(same && answers.next().is_none(), "{number}: {outcome:?}");
                    }
                    crowd.remove(1);
                })
            })
            .collect();
        workers.into_iter().for_each(|worker| worker.join().unwrap());
        assert!(crowd.is_empty());
    };
    shuttle::check_random(case, ORDERS);
    shuttle::check_pct(case, ORDERS, 3);
}

#[test]
fn two_threads_ask() {
    check(&[&[1, 1, 1], &[1, 1, 1]]);
}

#[test]
fn many_threads_ask() {
    check(&[&[1, 1, 1, 1], &[1, 1], &[1], &[1, 1, 1], &[1, 1]]);
}

#[test]
fn bad_questions_spoil_their_own_batch() {
    check(&[&[1, 2, 1], &[1, 1, 3, 1], &[2, 1], &[1, 1, 1]]);
}
