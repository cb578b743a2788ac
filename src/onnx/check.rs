//! Whether an export gives a position the same logits however it is scored: the promise that all verification rests on.
//!
//! Inputs and outputs cannot tell. A graph may mask the new tokens of a pass wrongly on top of a cache, count positions
//! from the length of the cache, share one scale among all positions of a pass, and more; all of it would be silently
//! wrong. So every model is tried out when it is loaded, with a dozen short passes.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Cancel, Interrupt, Model, Pass, Report, Sequence, TIMED_WIDTHS};

/// How much of the spread of a row its logits may differ, where all is computed in float32. Rounding reaches some
/// hundred-thousandths.
const FINE_TOLERANCE: f32 = 0.005;

/// The same where something is coarser. Rounding in half precision reaches some hundredths, and what is broken is off by
/// about the spread itself.
const TOLERANCE: f32 = 0.1;

/// The same between passes of one width, which run the same kernels; experts may get other numbers of tokens, though. A
/// scale that positions share was seen to move logits by a tenth.
const EQUAL_WIDTH_TOLERANCE: f32 = 0.02;

/// The same between several widths where kernels are known to round otherwise. What is off by more has lost its context.
const ROUNDED_TOLERANCE: f32 = 1.0;

/// By how much more bfloat16 may differ, which has three bits less than float16.
const BFLOAT16_FACTOR: f32 = 4.0;

/// What is off by less is so by rounding, for certain: in float32, and where something is coarser.
const FINE_ROUNDING: f32 = 1e-4;
const ROUNDING: f32 = 0.01;

/// What excuses a difference.
#[derive(Debug, Clone, Copy, Default)]
pub struct Excuses {
    /// Something is computed in half precision, or quantised beside weights.
    pub coarse: bool,
    /// Logits or caches are bfloat16.
    pub bfloat16: bool,
    /// Kernels round activations, otherwise for one position than for several.
    pub rounded_activations: bool,
}

impl Excuses {
    /// What is borne between passes of one width, after tokens were taken back, and between passes of several widths.
    fn tolerances(self) -> [f32; 3] {
        let factor = if self.bfloat16 { BFLOAT16_FACTOR } else { 1.0 };
        let coarse = [EQUAL_WIDTH_TOLERANCE, TOLERANCE, TOLERANCE].map(|tolerance| factor * tolerance);
        match (self.rounded_activations, self.coarse || self.bfloat16) {
            (true, _) => [coarse[0], coarse[1], ROUNDED_TOLERANCE],
            (false, true) => coarse,
            (false, false) => [FINE_TOLERANCE; 3],
        }
    }
}

/// The largest difference that was found.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Deviation {
    /// In logits.
    pub logits: f32,
    /// In standard deviations of the row.
    pub spreads: f32,
}

/// Made-up tokens, and the rows of logits after each of them when they come one by one.
pub struct Trial {
    tokens: Vec<i32>,
    rows: Vec<Vec<f32>>,
}

impl Trial {
    /// Run some tokens one by one.
    pub fn new(model: &dyn Model) -> Result<Self, Interrupt> {
        let tokens = (0..model.context_length().min(12)).map(|index| made_up(model, index)).collect();
        let mut trial = Trial { tokens, rows: Vec::new() };
        let mut sequence = model.start(&Arc::new(Cancel::default()))?;
        for (index, token) in trial.tokens.iter().enumerate() {
            run(model, sequence.as_mut(), std::slice::from_ref(token))?;
            trial.rows.push(sequence.row(index + 1).scores()?.to_vec());
        }
        Ok(trial)
    }

    /// Whether one by one, where everything goes through the cache, gives what a pass gives that needs none; if not, by how
    /// much they differ. A pass that fails shows nothing.
    pub fn tells_a_broken_cache(&self, model: &dyn Model) -> Option<Deviation> {
        self.at_once(model).ok().filter(|found| found.spreads > ROUNDED_TOLERANCE)
    }

    /// Whether a model, as it is set to run now, gives every position the logits that it has by itself: how far it is off,
    /// or what is wrong.
    pub fn verdict(&self, model: &dyn Model, excuses: Excuses) -> Result<Deviation, String> {
        let failed = |interrupt| match interrupt {
            Interrupt::Failed(error) => format!("it fails: {error}"),
            Interrupt::Cancelled => "it was cancelled".into(),
        };
        let [at_equal_widths, when_taken_back, at_several] = excuses.tolerances();
        let (ahead, taken_back) = self.at_equal_widths(model).map_err(failed)?;
        if ahead.spreads > at_equal_widths {
            return Err(format!("logits change by {ahead} with the tokens behind them"));
        }
        if taken_back.spreads > when_taken_back {
            return Err(format!("logits change by {taken_back} after tokens were taken back"));
        }
        let found = self.with_rollbacks(model).map_err(failed)?;
        if found.spreads > at_several {
            return Err(format!("logits change by up to {found}"));
        }
        Ok(found.max(ahead).max(taken_back))
    }

    /// By how much the rows differ when all tokens come at once, without a cache to rely on.
    fn at_once(&self, model: &dyn Model) -> Result<Deviation, Interrupt> {
        let mut sequence = model.start(&Arc::new(Cancel::default()))?;
        run(model, sequence.as_mut(), &self.tokens)?;
        self.compare(sequence.as_ref(), 1..=self.tokens.len())
    }

    /// By how much they differ when several come at a time, with others tried and taken back in between.
    fn with_rollbacks(&self, model: &dyn Model) -> Result<Deviation, Interrupt> {
        let count = self.tokens.len();
        let other = self.other(3);
        let mut sequence = model.start(&Arc::new(Cancel::default()))?;
        let mut worst = Deviation::default();
        // Lengths after each pass; before each one but the first, other tokens are tried and taken back.
        for end in [count / 3, count / 3 + 1, 3 * count / 4, count] {
            let start = sequence.len();
            if start >= end {
                continue;
            }
            if start > 0 {
                run(model, sequence.as_mut(), &other[..(end - start).min(3)])?;
                sequence.truncate(start);
            }
            run(model, sequence.as_mut(), &self.tokens[start..end])?;
            worst = worst.max(self.compare(sequence.as_ref(), start + 1..=end)?);
        }
        Ok(worst)
    }

    /// By how much the rows of a pass differ with other tokens behind them, and after others were tried and taken back.
    /// The passes are of one width, so that neither is a matter of rounding.
    fn at_equal_widths(&self, model: &dyn Model) -> Result<(Deviation, Deviation), Interrupt> {
        let count = self.tokens.len();
        let (start, end) = (count / 3, 2 * count / 3);
        let score = |tried: &[i32], behind: &[i32]| -> Result<Vec<Vec<f32>>, Interrupt> {
            let mut sequence = model.start(&Arc::new(Cancel::default()))?;
            for tokens in [&self.tokens[..start], tried].into_iter().filter(|tokens| !tokens.is_empty()) {
                run(model, sequence.as_mut(), tokens)?;
            }
            sequence.truncate(start);
            run(model, sequence.as_mut(), &[&self.tokens[start..end], behind].concat())?;
            (start + 1..=end).map(|position| Ok(sequence.row(position).scores()?.to_vec())).collect()
        };
        let (behind, other) = (&self.tokens[end..], self.other(count - end));
        let own = score(&[], behind)?;
        let worst = |others: Vec<Vec<f32>>| {
            own.iter().zip(&others).map(|(a, b)| difference(a, b)).fold(Deviation::default(), Deviation::max)
        };
        Ok((worst(score(&[], &other)?), worst(score(&other, behind)?)))
    }

    /// As many tokens that are not those of the trial, in their places.
    fn other(&self, count: usize) -> Vec<i32> {
        self.tokens.iter().rev().take(count).copied().collect()
    }

    /// Whether no row holds a number.
    pub fn is_void(&self) -> bool {
        self.rows.iter().flatten().all(|logit| !logit.is_finite())
    }

    fn compare(&self, sequence: &dyn Sequence, positions: RangeInclusive<usize>) -> Result<Deviation, Interrupt> {
        let mut worst = Deviation::default();
        for position in positions {
            worst = worst.max(difference(&self.rows[position - 1], sequence.row(position).scores()?));
        }
        Ok(worst)
    }
}

/// Tokens below the passes that are timed.
const TIMED_BEHIND: usize = 12;

/// Most rounds of timed passes. The least of few is near what a pass takes on a machine that does nothing else.
const TIMED_ROUNDS: usize = 5;
/// Most rounds besides, in which passes of a GPU are run plainly and captured.
const PREPARING: usize = 2;

/// What passes take, as [`Model::pass_times`] tells it: the least of a few, fewer or only of some widths where `limit` is
/// over before. Every width that fits has its turn before any has a second one, first those furthest from each other. Passes that
/// prepare others do not count, and their time is not part of the limit: somebody has to wait for them once.
pub fn pass_times(model: &dyn Model, limit: Duration) -> Result<Vec<(usize, Duration)>, Interrupt> {
    let mut timed = Duration::ZERO;
    let most = model.context_length();
    let behind = TIMED_BEHIND.min(most - 1);
    let tokens: Vec<i32> = (0..most.min(behind + 16)).map(|index| made_up(model, index)).collect();
    let mut sequence = model.start(&Arc::new(Cancel::default()))?;
    if behind > 0 {
        run(model, sequence.as_mut(), &tokens[..behind])?;
    }
    let mut times = TIMED_WIDTHS.map(|width| (width, Duration::MAX));
    let [one, two, three, four, six, eight, sixteen] = &mut times;
    let mut order = [one, eight, three, sixteen, two, four, six];
    let (mut rounds, mut preparing) = (0, 0);
    'rounds: while rounds < TIMED_ROUNDS && preparing <= PREPARING {
        let mut are_usual = true;
        for (width, least) in &mut order {
            if timed > limit {
                break 'rounds;
            }
            if let Some(tokens) = tokens.get(behind..behind + *width) {
                let started = Instant::now();
                let Report { elapsed, is_usual } = run(model, sequence.as_mut(), tokens)?;
                are_usual &= is_usual;
                if is_usual {
                    timed += started.elapsed();
                    *least = elapsed.min(*least);
                }
                sequence.truncate(behind);
            }
        }
        (rounds, preparing) = (rounds + usize::from(are_usual), preparing + usize::from(!are_usual));
    }
    Ok(times.into_iter().filter(|(_, least)| *least != Duration::MAX).collect())
}

fn made_up(model: &dyn Model, index: usize) -> i32 {
    ((index * 7 + 3) % model.vocab_size()) as i32
}

fn run(model: &dyn Model, sequence: &mut dyn Sequence, tokens: &[i32]) -> Result<Report, Interrupt> {
    model.forward(&mut [Pass::plain(sequence, tokens)])
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.logits < 0.01 { write!(f, "{:.0e}", self.logits) } else { write!(f, "{:.2}", self.logits) }
    }
}

impl Deviation {
    /// Whether rounding explains it.
    pub fn is_rounding(self, excuses: Excuses) -> bool {
        let factor = if excuses.bfloat16 { BFLOAT16_FACTOR } else { 1.0 };
        self.spreads <= if excuses.coarse || excuses.bfloat16 { factor * ROUNDING } else { FINE_ROUNDING }
    }

    fn max(self, other: Deviation) -> Deviation {
        Deviation { logits: self.logits.max(other.logits), spreads: self.spreads.max(other.spreads) }
    }
}

/// Between two rows, where both are finite; a value that is finite in one only is no small difference.
fn difference(a: &[f32], b: &[f32]) -> Deviation {
    let finite = a.iter().zip(b).filter(|(a, b)| a.is_finite() && b.is_finite());
    let (mut count, mut sum, mut squares, mut worst) = (0.0f64, 0.0f64, 0.0f64, 0.0f32);
    for (&a, &b) in finite {
        (count, sum, squares) = (count + 1.0, sum + f64::from(a), squares + f64::from(a).powi(2));
        worst = worst.max((a - b).abs());
    }
    if a.iter().zip(b).any(|(a, b)| a.is_finite() != b.is_finite()) {
        worst = f32::INFINITY;
    }
    let spread = ((squares - sum * sum / count.max(1.0)) / count.max(1.0)).max(0.0).sqrt() as f32;
    let spreads = if worst == 0.0 { 0.0 } else { worst / spread.max(f32::MIN_POSITIVE) };
    Deviation { logits: worst, spreads }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::scripted::Scripted;

    fn rows(context: &[i32], row: &mut [f32]) {
        let seed = context.iter().fold(7u32, |seed, &token| seed.wrapping_mul(31).wrapping_add(token as u32));
        row.iter_mut()
            .enumerate()
            .for_each(|(i, logit)| *logit = (seed.wrapping_mul(i as u32 + 3) % 101) as f32 / 20.0);
    }

    #[test]
    fn a_sound_model_deviates_by_nothing() {
        let sound = || {
            Scripted::new(20, |context, row| {
                rows(context, row);
                Ok(())
            })
        };
        for model in [sound(), sound().with_context_length(2), sound().with_context_length(1)] {
            let trial = Trial::new(&model).unwrap();
            assert_eq!(trial.at_once(&model).unwrap(), Deviation::default());
            assert_eq!(trial.with_rollbacks(&model).unwrap(), Deviation::default());
            assert_eq!(trial.at_equal_widths(&model).unwrap(), Default::default());
            assert!(!trial.is_void() && trial.tells_a_broken_cache(&model).is_none());
            assert_eq!(trial.verdict(&model, Excuses::default()), Ok(Deviation::default()));
        }
    }

    #[test]
    fn a_row_without_numbers_is_void() {
        let void = Scripted::new(20, |_, row| {
            row.fill(f32::NAN);
            Ok(())
        });
        assert!(Trial::new(&void).unwrap().is_void());
    }

    #[test]
    fn a_model_that_forgets_nothing_deviates() {
        // Each call of this script leaves a trace in later ones, as a cache does that cannot be taken back.
        let calls = std::sync::atomic::AtomicU32::new(0);
        let model = Scripted::new(20, move |context, row| {
            rows(context, row);
            row[0] += calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed) as f32;
            Ok(())
        });
        let trial = Trial::new(&model).unwrap();
        assert!(trial.with_rollbacks(&model).unwrap().spreads > 1.0);
        let (_, taken_back) = trial.at_equal_widths(&model).unwrap();
        assert!(taken_back.spreads > 1.0);
        let everything = Excuses { coarse: true, bfloat16: true, rounded_activations: true };
        assert!(trial.verdict(&model, everything).is_err());
    }

    /// What rounding in half precision explains is too much for float32.
    #[test]
    fn float32_bears_less() {
        let calls = std::sync::atomic::AtomicU32::new(0);
        let model = Scripted::new(20, move |context, row| {
            rows(context, row);
            row[0] +=
                if calls.fetch_add(1, std::sync::atomic::Ordering::Relaxed).is_multiple_of(2) { 0.02 } else { 0.0 };
            Ok(())
        });
        let trial = Trial::new(&model).unwrap();
        let coarse = Excuses { coarse: true, ..Excuses::default() };
        let deviation = trial.verdict(&model, coarse).unwrap();
        assert!((0.01..0.03).contains(&deviation.logits) && !deviation.is_rounding(coarse), "{deviation:?}");
        assert!(trial.verdict(&model, Excuses::default()).unwrap_err().contains("0.02"));
        let tiny = Deviation { logits: 1e-5, spreads: 1e-5 };
        assert!(tiny.is_rounding(Excuses::default()) && tiny.is_rounding(coarse));
    }

    #[test]
    fn passes_are_timed_within_a_limit() {
        let model = || {
            Scripted::new(20, |_, _| Ok(())).with_pass_times(|width, passes| {
                // the first ones are slow, as they are where memory is fresh
                Duration::from_micros(100 + 10 * width as u64 + if passes < 4 { 1000 } else { 0 })
            })
        };
        let widths = |model: &Scripted, limit| {
            let times = pass_times(model, limit).unwrap();
            times.into_iter().map(|(width, time)| (width, time.as_micros())).collect::<Vec<_>>()
        };
        let long = Duration::from_secs(60);
        let all = [(1, 110), (2, 120), (3, 130), (4, 140), (6, 160), (8, 180), (16, 260)];
        assert_eq!(widths(&model(), long), all);
        assert_eq!(widths(&model().with_context_length(20), long), all[..6]);
        assert_eq!(widths(&model().with_context_length(1), long), all[..1]);
        assert_eq!(widths(&model(), Duration::ZERO).len(), 1);
        // Those that prepare others count neither as times nor for the limit.
        let prepared = || model().with_preparation(1e6);
        assert_eq!(widths(&prepared(), long), all);
        assert!(!widths(&prepared(), Duration::ZERO).is_empty());
    }

    #[test]
    fn differences_are_relative_to_the_spread() {
        let found = difference(&[0.0, 2.0, f32::NEG_INFINITY], &[0.5, 2.0, f32::NEG_INFINITY]);
        assert_eq!(found, Deviation { logits: 0.5, spreads: 0.5 });
        assert_eq!(difference(&[f32::NAN, 1.0], &[f32::NAN, 1.0]).logits, 0.0);
        assert_eq!(difference(&[f32::NAN, 1.0], &[0.0, 1.0]).logits, f32::INFINITY);
    }
}
