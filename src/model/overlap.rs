//! Measures what is gained if passes of several models run at the same time.

use std::sync::Arc;
use std::time::Duration;

use super::{Cancel, Interrupt, Model, Pass, Sequence};
use crate::error::{Error, Result};

/// Passes of each model before any is timed: on a GPU the first ones of a width are captured.
const WARM: usize = 3;
/// Passes that are timed, one after the other and at the same time.
const TIMED: usize = 7;

/// How little passes of these models overlap, measured with passes over one token: the time that they take together
/// beyond the longest one, as a share of the time of all others. 0 if they do not disturb each other, 1 if nothing is
/// gained. `None` for fewer than two models, or if no model can leave passes running.
pub fn measure(models: &[&dyn Model]) -> Result<Option<f64>> {
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
            let report = model.forward(&mut [Pass::plain(sequence.as_mut(), &[0])]).map_err(failed)?;
            if round >= WARM {
                timed.push(report.elapsed);
            }
        }
        if round >= WARM {
            together.push(at_the_same_time(models, &mut sequences)?);
        }
    }
    let alone = timed.into_iter().map(median);
    let (longest, sum) = alone.fold((0.0f64, 0.0), |(longest, sum), each| (longest.max(each), sum + each));
    let serial = (median(together) - longest) / (sum - longest);
    Ok(Some(if serial.is_finite() { serial.clamp(0.0, 1.0) } else { 1.0 }))
}

/// What passes over one token take, all launched before any is waited for.
fn at_the_same_time(models: &[&dyn Model], sequences: &mut [Box<dyn Sequence>]) -> Result<Duration> {
    let mut launched = Vec::with_capacity(models.len());
    for (model, sequence) in models.iter().zip(&mut *sequences) {
        sequence.truncate(0);
        launched.push(model.launch(&mut [Pass::plain(sequence.as_mut(), &[0])]));
    }
    let mut elapsed = Duration::ZERO;
    for running in [false, true] {
        for ((model, sequence), _) in
            models.iter().zip(&mut *sequences).zip(&launched).filter(|(_, launched)| **launched == running)
        {
            elapsed += model.forward(&mut [Pass::plain(sequence.as_mut(), &[0])]).map_err(failed)?.elapsed;
        }
    }
    Ok(elapsed)
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
