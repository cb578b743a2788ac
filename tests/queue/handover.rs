//! The hand-over of leadership, in many orders of the steps of all threads.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cos::decode::chance::CounterRng;
use cos::error::Error;
use cos::model::scripted::Scripted;
use cos::model::{Cancel, Interrupt, Model, Pass, Sequence};

use shuttle::rand::Rng as _;

use crate::queue::{self, PassQueue, Ticket, WhenFull};
use crate::wait::{Crowd, Waiter, WakeOnCancel};

/// Orders that are tried of each case.
const ORDERS: usize = 3000;

/// A model whose passes hold 8 tokens, of which a bad one spoils the pass. It lets other threads run meanwhile.
fn model() -> Arc<Scripted> {
    Arc::new(scripted())
}

fn scripted() -> Scripted {
    let script = |context: &[i32], row: &mut [f32]| {
        row.fill(0.0);
        row[context.iter().sum::<i32>() as usize % 4] = 1.0;
        match context.last() {
            Some(2) => Err(Interrupt::Failed(Error::Runtime("a bad token".into()))),
            Some(5) => Err(Interrupt::Failed(Error::Internal("a bug that the model has survived".into()))),
            // Not `panic!`, whose message shuttle takes for a failure.
            Some(3) => resume_unwind(Box::new("a very bad token")),
            _ => Ok(()),
        }
    };
    let hook = |_: &[usize]| {
        shuttle::thread::yield_now();
        Ok(())
    };
    Scripted::new(4, script).with_max_pass(6).with_batches(8).with_batch_hook(hook)
}

fn queue_of(model: Arc<Scripted>, crowd: &Arc<Crowd>) -> (Arc<PassQueue>, Arc<Scripted>) {
    (Arc::new(PassQueue::new(model.clone(), crowd.clone(), CounterRng::new(0), (Default::default(), 0))), model)
}

/// A thread that asks for passes over these tokens, one after another; a pass over none is that of a cancelled session.
fn worker(queue: &PassQueue, crowd: &Crowd, model: &Scripted, passes: &[&[i32]]) {
    let cancel = Arc::new(Cancel::default());
    let waiter = Arc::<Waiter>::default();
    let mut sequence = model.start(&cancel).unwrap();
    crowd.add(1);
    for tokens in passes {
        let before = sequence.len();
        if tokens.is_empty() {
            cancel.request();
        }
        let tokens = if tokens.is_empty() { &[1][..] } else { tokens };
        let mut ticket =
            Ticket::new(queue, Pass::plain(sequence.as_mut(), tokens), &cancel, WhenFull::Wait, Instant::now());
        queue::run(&waiter, true, std::slice::from_mut(&mut ticket), &mut || ());
        let outcome = ticket.outcome().expect("it may wait");
        match (outcome, tokens.last()) {
            (Ok(_), Some(0 | 1)) => assert_eq!(sequence.len(), before + tokens.len()),
            (Err(Interrupt::Failed(Error::Runtime(_))), Some(2)) => {}
            (Err(Interrupt::Failed(Error::Internal(_))), Some(5)) => {}
            // A panic poisons all sessions of its pass.
            (Err(Interrupt::Failed(Error::Internal(what))), _) if what == "a very bad token" => break,
            (Err(Interrupt::Cancelled), _) if cancel.is_requested() => cancel.reset(),
            (outcome, last) => panic!("{outcome:?} for {last:?}"),
        }
    }
    crowd.remove(1);
    assert!(sequence.len() < 100);
}

fn check(threads: &'static [&'static [&'static [i32]]]) {
    check_with_memory(1 << 20, threads);
}

/// The same with memory for so many tokens.
fn check_with_memory(tokens: usize, threads: &'static [&'static [&'static [i32]]]) {
    let case = move || {
        let crowd = Arc::<Crowd>::default();
        let (queue, model) = queue_of(Arc::new(scripted().with_memory(tokens)), &crowd);
        let spawn = |passes: &&'static [&'static [i32]]| {
            let (queue, crowd, model, passes) = (queue.clone(), crowd.clone(), model.clone(), *passes);
            shuttle::thread::spawn(move || worker(&queue, &crowd, &model, passes))
        };
        let threads: Vec<_> = threads.iter().map(spawn).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(crowd.is_empty(), "the crowd is counted wrong");
    };
    shuttle::check_random(case, ORDERS);
    shuttle::check_pct(case, ORDERS, 3);
}

#[test]
fn all_passes_are_run_and_all_threads_end() {
    check(&[&[&[1], &[0]], &[&[0, 1], &[1]], &[&[1, 1, 1]]]);
}

#[test]
fn passes_that_do_not_fit_are_run_later() {
    check(&[&[&[1; 6], &[1; 6]], &[&[0; 6]], &[&[1; 5], &[1]], &[&[1, 0, 1]]]);
}

#[test]
fn only_the_culprit_fails() {
    check(&[&[&[1], &[2], &[1]], &[&[0], &[0]], &[&[1, 1]]]);
    check(&[&[&[1], &[5], &[1]], &[&[0], &[0]], &[&[1, 1]]]);
}

#[test]
fn cancelled_sessions_leave() {
    check(&[&[&[1], &[], &[1]], &[&[0], &[0]], &[&[], &[1]]]);
}

#[test]
fn a_panic_leaves_nobody_waiting() {
    check(&[&[&[1], &[3]], &[&[0], &[0]], &[&[1, 1], &[1]]]);
}

#[test]
fn those_without_memory_wait_for_older_ones() {
    check_with_memory(12, &[&[&[1; 6], &[1; 6]], &[&[0; 5], &[1; 5]], &[&[1; 4], &[0], &[1; 3]]]);
}

#[test]
fn those_without_memory_leave_if_they_are_cancelled_or_fail() {
    check_with_memory(10, &[&[&[1; 6], &[1; 4]], &[&[0; 6], &[], &[1]], &[&[1; 4], &[2], &[1; 3]]]);
}

#[test]
fn a_pass_that_cannot_wait_is_given_back() {
    let case = || {
        let (queue, model) = queue_of(Arc::new(scripted().with_memory(8)), &Arc::default());
        let cancels = [0; 3].map(|_| Arc::new(Cancel::default()));
        let mut sequences = cancels.each_ref().map(|cancel| model.start(cancel).unwrap());
        let mut run = |index: usize, tokens: &[i32], when_full| {
            let pass = Pass::plain(sequences[index].as_mut(), tokens);
            let mut ticket = Ticket::new(&queue, pass, &cancels[index], when_full, Instant::now());
            queue::run(&Arc::default(), false, std::slice::from_mut(&mut ticket), &mut || ());
            ticket.outcome()
        };
        assert!(matches!(run(0, &[1; 5], WhenFull::Return), Some(Ok(_))));
        assert_eq!(run(1, &[1; 5], WhenFull::Return), None);
        let refused = run(1, &[1; 5], WhenFull::Refuse);
        assert!(matches!(refused, Some(Err(Interrupt::Failed(Error::NoMemory(_))))), "{refused:?}");
        assert!(matches!(run(2, &[1; 3], WhenFull::Refuse), Some(Ok(_))));
        assert!(matches!(run(1, &[1; 2], WhenFull::Refuse), Some(Ok(_))), "the younger one is set back");
        assert_eq!(run(2, &[0], WhenFull::Return), None);
        assert!(matches!(run(0, &[1], WhenFull::Return), Some(Ok(_))));
    };
    shuttle::check_random(case, 1);
}

/// Threads that wait for two models at once, each of which has too little memory for all.
#[test]
fn models_without_memory_do_not_wait_for_each_other() {
    let case = || {
        let crowd = Arc::<Crowd>::default();
        let queues = [7, 9].map(|tokens| queue_of(Arc::new(scripted().with_memory(tokens)), &crowd));
        let spawn = |passes: &'static [usize]| {
            let (queues, crowd) = (queues.clone(), crowd.clone());
            shuttle::thread::spawn(move || {
                let (cancel, waiter) = (Arc::new(Cancel::default()), Arc::<Waiter>::default());
                let mut sequences = queues.each_ref().map(|(_, model)| model.start(&cancel).unwrap());
                crowd.add(1);
                for &width in passes {
                    let mut tickets: Vec<Ticket> = queues
                        .iter()
                        .zip(&mut sequences)
                        .map(|((queue, _), sequence)| {
                            let pass = Pass::plain(sequence.as_mut(), &[1; 6][..width]);
                            Ticket::new(queue, pass, &cancel, WhenFull::Wait, Instant::now())
                        })
                        .collect();
                    queue::run(&waiter, true, &mut tickets, &mut || ());
                    assert!(tickets.into_iter().all(|ticket| matches!(ticket.outcome(), Some(Ok(_)))));
                }
                crowd.remove(1);
            })
        };
        let threads = [spawn(&[3, 2, 2]), spawn(&[2, 3, 1]), spawn(&[5, 2])];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(crowd.is_empty(), "the crowd is counted wrong");
    };
    shuttle::check_random(case, ORDERS);
    shuttle::check_pct(case, ORDERS, 3);
}

#[test]
fn many_tickets_of_one_call_share_passes_with_others() {
    let case = || {
        let crowd = Arc::<Crowd>::default();
        let (queue, model) = queue_of(model(), &crowd);
        let many = {
            let (queue, model) = (queue.clone(), model.clone());
            shuttle::thread::spawn(move || {
                let cancel = Arc::new(Cancel::default());
                let mut sequences: Vec<Box<dyn Sequence>> = (0..3).map(|_| model.start(&cancel).unwrap()).collect();
                for tokens in [&[1, 0, 1][..], &[1]] {
                    let ticket = |sequence| {
                        Ticket::new(&queue, Pass::plain(sequence, tokens), &cancel, WhenFull::Wait, Instant::now())
                    };
                    let mut tickets: Vec<_> = sequences.iter_mut().map(|each| ticket(each.as_mut())).collect();
                    queue::run(&Arc::default(), false, &mut tickets, &mut || ());
                    assert!(tickets.into_iter().all(|ticket| ticket.outcome().is_some_and(|outcome| outcome.is_ok())));
                }
            })
        };
        let passes: &[&[i32]] = &[&[1], &[2], &[0]];
        worker(&queue, &crowd, &model, passes);
        many.join().unwrap();
    };
    shuttle::check_random(case, ORDERS);
    shuttle::check_pct(case, ORDERS, 3);
}

#[test]
fn a_cancel_from_another_thread_ends_a_wait() {
    let case = || {
        let crowd = Arc::<Crowd>::default();
        let (queue, model) = queue_of(model(), &crowd);
        let (cancel, waiter) = (Arc::new(Cancel::default()), Arc::<Waiter>::default());
        cancel.add_hook(Box::new(WakeOnCancel(waiter.clone())));
        let waits = {
            let (queue, model, cancel) = (queue.clone(), model.clone(), cancel.clone());
            shuttle::thread::spawn(move || {
                let mut sequence = model.start(&cancel).unwrap();
                let mut ticket =
                    Ticket::new(&queue, Pass::plain(sequence.as_mut(), &[1]), &cancel, WhenFull::Wait, Instant::now());
                queue::run(&waiter, false, std::slice::from_mut(&mut ticket), &mut || ());
                assert!(matches!(ticket.outcome(), Some(Ok(_) | Err(Interrupt::Cancelled))));
            })
        };
        let other = {
            let (queue, crowd, model) = (queue.clone(), crowd.clone(), model.clone());
            shuttle::thread::spawn(move || worker(&queue, &crowd, &model, &[&[1], &[0]]))
        };
        cancel.request();
        waits.join().unwrap();
        other.join().unwrap();
    };
    shuttle::check_random(case, ORDERS);
    shuttle::check_pct(case, ORDERS, 3);
}

/// A thread asks two models again and again until it is cancelled, at any time.
///
/// If others end one of its passes between its looks at the two queues, and it ends the other one, nobody wakes it. A
/// reading found that; `run_calls` looks before it waits. None of these orders comes to that place.
#[test]
fn a_cancel_ends_a_wait_for_two_models() {
    let case = || {
        let crowd = Arc::<Crowd>::default();
        // Passes of the second model are long, so that tickets wait there while passes of the first one run.
        let queues = [2, 8].map(|yields| {
            let hook = move |_: &[usize]| {
                (0..yields).for_each(|_| shuttle::thread::yield_now());
                Ok(())
            };
            queue_of(Arc::new(scripted().with_batch_hook(hook)), &crowd)
        });
        let (cancel, waiter) = (Arc::new(Cancel::default()), Arc::<Waiter>::default());
        cancel.add_hook(Box::new(WakeOnCancel(waiter.clone())));
        // Several others for each, so that one of them leads while the thread only waits.
        let others = queues.iter().flat_map(|each| [each, each, each]).map(|(queue, model)| {
            let (queue, model, crowd) = (queue.clone(), model.clone(), crowd.clone());
            shuttle::thread::spawn(move || worker(&queue, &crowd, &model, &[&[1], &[0], &[1], &[0]]))
        });
        let others: Vec<_> = others.collect();
        let waits = {
            let (queues, cancel) = (queues.clone(), cancel.clone());
            shuttle::thread::spawn(move || {
                let mut sequences = queues.each_ref().map(|(_, model)| model.start(&cancel).unwrap());
                while !cancel.is_requested() {
                    let mut tickets = Vec::new();
                    for ((queue, _), sequence) in queues.iter().zip(&mut sequences) {
                        tickets.push(Ticket::new(
                            queue,
                            Pass::plain(sequence.as_mut(), &[1]),
                            &cancel,
                            WhenFull::Wait,
                            Instant::now(),
                        ));
                    }
                    queue::run(&waiter, false, &mut tickets, &mut || ());
                    assert!(tickets.into_iter().all(|ticket| ticket.outcome().is_some()));
                }
            })
        };
        (0..shuttle::rand::thread_rng().gen_range(1..60)).for_each(|_| shuttle::thread::yield_now());
        cancel.request();
        waits.join().unwrap();
        others.into_iter().for_each(|other| other.join().unwrap());
    };
    shuttle::check_random(case, 3 * ORDERS);
    shuttle::check_pct(case, ORDERS, 3);
}

/// Threads ask two models, whose passes may be left running, for passes at once. If passes are long, a leader waits for
/// sessions that have one of theirs.
#[test]
fn passes_of_two_models_overlap() {
    for (left, milliseconds) in [(0.5, 0), (1.0, 0), (1.0, 2), (0.0, 2)] {
        let case = move || {
            let crowd = Arc::<Crowd>::default();
            let long = move |_: usize, _: u64| Duration::from_millis(milliseconds);
            let model = || Arc::new(scripted().with_overlap(left).with_pass_times(long));
            let queues = [0, 1].map(|_| queue_of(model(), &crowd));
            let spawn = |tokens: &'static [i32]| {
                let (queues, crowd) = (queues.clone(), crowd.clone());
                shuttle::thread::spawn(move || {
                    let (cancel, waiter) = (Arc::new(Cancel::default()), Arc::<Waiter>::default());
                    let mut sequences = queues.each_ref().map(|(_, model)| model.start(&cancel).unwrap());
                    crowd.add(1);
                    for &token in tokens {
                        let mut tickets = Vec::new();
                        for ((queue, _), sequence) in queues.iter().zip(&mut sequences) {
                            let pass = Pass::plain(sequence.as_mut(), std::slice::from_ref(&token));
                            tickets.push(Ticket::new(queue, pass, &cancel, WhenFull::Wait, Instant::now()));
                        }
                        queue::run(&waiter, true, &mut tickets, &mut || ());
                        for ticket in tickets {
                            assert_eq!(ticket.outcome().is_some_and(|outcome| outcome.is_ok()), token != 2);
                        }
                    }
                    crowd.remove(1);
                })
            };
            let threads = [&[1, 0][..], &[1, 1], &[0, 2, 1]].map(spawn);
            threads.into_iter().for_each(|thread| thread.join().unwrap());
            assert!(crowd.is_empty(), "the crowd is counted wrong");
        };
        shuttle::check_random(case, ORDERS);
        shuttle::check_pct(case, ORDERS, 3);
    }
}
