//! Measures what is gained where passes of several models run at the same time.

use std::sync::Arc;
use std::time::Duration;

use super::{Cancel, Interrupt, Model, Pass, Sequence};
use crate::error::{Error, Result};

/// Passes of each model before any is timed: on a GPU the first ones of a width are captured.
const WARM: usize = 3;
/// Passes that are timed, one after the other and at the same time.
const TIMED: usize = 7;

/// The share of all but the longest pass that comes on top of it, where passes of one token of all these models run at the same
/// time: 0 where they do not disturb each other, and 1 where nothing is gained. `None` if they cannot: fewer than two score, or none can
/// be left running.
pub fn measure(models: &[Arc<dyn Model>]) -> Result<Option<f64>> {
    let models: Vec<_> = models.iter().filter(|model| model.scores()).collect();
    if models.len() < 2 || !models.iter().any(|model| model.overlaps()) {
        return Ok(None);
    }
    let cancel = Arc::new(Cancel::default());
    let mut sequences = models.iter().map(|model| model.start(&cancel)).collect::<Result<Vec<_>>>()?;
    let mut timed = vec![Vec::new(); models.len()];
    let mut together = Vec::new();
    for round in 0..WARM + TIMED {
        for ((model, sequence), timed) in models.iter().zip(&mut sequences).zip(&mut timed) {
            sequence.truncate(0);
            let before = sequence.elapsed();
            model.forward(&mut [pass(sequence)]).map_err(failed)?;
            if round >= WARM {
                timed.push(sequence.elapsed() - before);
            }
        }
        if round >= WARM {
            sequences.iter_mut().for_each(|sequence| sequence.truncate(0));
            let before: Duration = sequences.iter().map(|sequence| sequence.elapsed()).sum();
            let begun: Vec<bool> =
                models.iter().zip(&mut sequences).map(|(model, sequence)| model.begin(&mut pass(sequence))).collect();
            for running in [false, true] {
                let all = models.iter().zip(&mut sequences).zip(&begun);
                for ((model, sequence), _) in all.filter(|(_, begun)| **begun == running) {
                    model.forward(&mut [pass(sequence)]).map_err(failed)?;
                }
            }
            together.push(sequences.iter().map(|sequence| sequence.elapsed()).sum::<Duration>() - before);
        }
    }
    let alone = timed.into_iter().map(median);
    let (longest, sum) = alone.fold((0.0f64, 0.0), |(longest, sum), each| (longest.max(each), sum + each));
    let serial = (median(together) - longest) / (sum - longest);
    Ok(Some(if serial.is_finite() { serial.clamp(0.0, 1.0) } else { 1.0 }))
}

/// Of a sequence that is empty.
fn pass(sequence: &mut Box<dyn Sequence>) -> Pass<'_> {
    Pass { sequence: sequence.as_mut(), tokens: &[0], keep: 1 }
}

fn failed(interrupt: Interrupt) -> Error {
    match interrupt {
        Interrupt::Failed(error) => error,
        Interrupt::Cancelled => Error::Internal("nobody could cancel this".into()),
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort();
    times[times.len() / 2].as_secs_f64()
}
