//! A pass, function or row that fails leaves no trace: the failed round commits nothing, and the next one is exact.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cos::decode::chance::CounterRng;
use cos::decode::combine::{Combination, Function};
use cos::engine::participant::Participant;
use cos::error::Error;
use cos::model::Interrupt;
use cos::model::scripted::Scripted;

use super::enumeration::Case;
use crate::common::{PROMPT, Sampling, World, decoder, ways};

/// Two models, of which model `failing` fails at its row number `at`, and the count of that model's rows.
pub fn faulty(failing: usize, at: usize, interrupt: Interrupt) -> (Vec<Participant>, Arc<AtomicUsize>) {
    let passes = Arc::new(AtomicUsize::new(0));
    let model = |k: usize| {
        let (passes, interrupt) = (passes.clone(), interrupt.clone());
        let model = Scripted::new(2, move |context, row| {
            // Rows are scored one by one, so this also fails in the middle of a pass.
            if k == failing && passes.fetch_add(1, Ordering::Relaxed) == at {
                return Err(interrupt.clone());
            }
            row.copy_from_slice(&World::Related.logits(k, context, 2));
            Ok(())
        });
        Arc::new(model).into()
    };
    ((0..2).map(model).collect(), passes)
}

/// A pass fails, or is cancelled, once, at each point of a run in turn. The failed round commits nothing, and the
/// result is as exact as without the failure.
#[test]
fn failures_and_cancellations_leave_no_trace() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for interrupt in [Interrupt::Cancelled, Interrupt::Failed(Error::Runtime("planted".into()))] {
        for failing in 0..2 {
            for at in 3..12 {
                let (models, passes) = faulty(failing, at, interrupt.clone());
                let case = Case::new(World::Related, models, &combination, Sampling::PLAIN, 3);
                let case = Case { passes: Some(passes), ..case };
                for way in ways(2, &combination, Sampling::PLAIN) {
                    case.check(&way);
                }
            }
        }
    }
}

/// The same for a combine function that fails once, at each of its calls in turn.
#[test]
fn functions_that_fail_leave_no_trace() {
    for at in 0..6 {
        let calls = Arc::new(AtomicUsize::new(0));
        let count = calls.clone();
        let law = Combination::logits(&[1.0, 0.5]).unwrap();
        let function = law.clone().with_function(Function::new(move |rows, out| {
            if count.fetch_add(1, Ordering::Relaxed) == at {
                return Err(Error::Callback("planted".into()));
            }
            let rows: Vec<&[f32]> = rows.flatten().collect();
            out.iter_mut().enumerate().for_each(|(token, out)| *out = rows[0][token] + 0.5 * rows[1][token]);
            Ok(())
        }));
        for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
            let case = Case::new(World::Related, World::Related.models(2, 2), &function, sampling, 3);
            let case = Case { law: Some(&law), passes: Some(calls.clone()), ..case };
            for way in ways(2, &function, sampling) {
                case.check(&way);
            }
        }
    }
}

#[test]
fn nan_logits_commit_nothing() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
        for way in ways(2, &combination, sampling) {
            let bad = |k: usize| {
                Scripted::new(3, move |context, row| {
                    row.copy_from_slice(&World::Related.logits(k, context, 3));
                    if k == 1 && context.len() >= PROMPT.len() + 2 {
                        row[1] = f32::NAN;
                    }
                    Ok(())
                })
            };
            let models: Vec<Participant> = (0..2).map(|k| Arc::new(bad(k)).into()).collect();
            let mut decoder = decoder(&models, &combination, sampling, &way, &[], 40, CounterRng::new(1));
            decoder.prompt(&PROMPT).unwrap();
            let mut committed = PROMPT.len();
            let error = loop {
                match decoder.round() {
                    Ok((tokens, _)) => committed += tokens.len(),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, Interrupt::Failed(Error::Numeric(_))), "{error:?}");
            assert_eq!(decoder.committed().len(), committed, "{way:?}");
            assert_eq!(decoder.counters().tokens as usize, committed - PROMPT.len());
        }
    }
}

/// A sum of logits that is too large for a float32 is an error that says what helps.
#[test]
fn an_infinite_sum_names_its_remedy() {
    let combination = Combination::logits(&[1e38, 0.0]).unwrap();
    for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
        let models: Vec<Participant> = (0..2)
            .map(|_| {
                let high = |_: &[i32], row: &mut [f32]| {
                    row.copy_from_slice(&[1.0, 40.0, 2.0]);
                    Ok(())
                };
                Arc::new(Scripted::new(3, high)).into()
            })
            .collect();
        for way in ways(2, &combination, sampling) {
            let mut decoder = decoder(&models, &combination, sampling, &way, &[], 40, CounterRng::new(1));
            decoder.prompt(&PROMPT).unwrap();
            let error = decoder.round().unwrap_err();
            let Interrupt::Failed(Error::Numeric(message)) = &error else { panic!("{error:?}") };
            assert!(message.contains("use smaller weights"), "{message}");
        }
    }
}
