//! Checks that a packed model scores a sequence among strangers as its export scores the sequence alone.

use std::sync::Arc;

use crate::model::{Cancel, Interrupt, Model, Pass, Sequence};
use crate::onnx::check::{Deviation, Trial};

/// Where the trial's passes end, in twelfths of its tokens.
const ENDS: [usize; 4] = [4, 5, 9, 12];

/// The largest difference between the rows of a trial, which the export gave one by one, and those of a packed model:
/// first alone in its passes, then among two other sequences that are behind it, ahead of it, and roll back.
pub fn deviation(model: &dyn Model, trial: &Trial) -> Result<Deviation, Interrupt> {
    let tokens = trial.tokens();
    let start = || model.start(&Arc::new(Cancel::default()));
    let mut alone = start()?;
    model.forward(&mut [Pass::plain(alone.as_mut(), tokens)])?;
    let mut worst = trial.compare(alone.as_ref(), 1..=tokens.len())?;
    let other: Vec<i32> = tokens.iter().rev().copied().collect();
    let (mut own, mut behind, mut ahead) = (start()?, start()?, start()?);
    model.forward(&mut [Pass::plain(ahead.as_mut(), &other)])?;
    let mut from = 0;
    for end in ENDS.map(|end| (end * tokens.len()).div_ceil(12)) {
        if end == from {
            continue;
        }
        if from > 0 {
            // Tokens that are tried and taken back must leave nothing.
            let tried = &other[..(end - from).min(3)];
            model.forward(&mut [pass(&mut own, tried), pass(&mut behind, &other[..1])])?;
            own.truncate(from);
        }
        ahead.truncate(ahead.len().saturating_sub(2));
        let (few, more) = (&other[..1], &other[..2.min(other.len())]);
        let mut batch = [pass(&mut behind, few), pass(&mut own, &tokens[from..end]), pass(&mut ahead, more)];
        model.forward(&mut batch)?;
        worst = worst.max(trial.compare(own.as_ref(), from + 1..=end)?);
        from = end;
    }
    Ok(worst)
}

fn pass<'a>(sequence: &'a mut Box<dyn Sequence>, tokens: &'a [i32]) -> Pass<'a> {
    Pass::plain(sequence.as_mut(), tokens)
}
