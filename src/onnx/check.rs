//! Checks that an export gives a position the same logits however it is scored. All verification relies on that.
//!
//! Inputs and outputs do not tell. A graph may mask the new tokens of a pass wrongly on top of a cache, count positions
//! from the length of the cache, or share one scale among all positions of a pass. Each would silently make text wrong.
//! So every model runs a dozen short trial passes when it is loaded.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Cancel, Interrupt, Model, Pass, Report, Sequence, TIMED_WIDTHS};

// Differences of a row are measured in standard deviations of its logits ("spreads").

/// The largest difference that is accepted where everything is float32. Rounding reaches about 1e-5.
const FINE_TOLERANCE: f32 = 0.005;

/// The largest difference that is accepted where something is coarser. Rounding in half precision reaches a few
/// hundredths, and a broken graph about 1.
const TOLERANCE: f32 = 0.1;

/// The largest difference that is accepted between coarse passes of one width. They run the same kernels, but experts
/// may get other numbers of tokens. A scale that all positions of a pass share moved logits by 0.1.
const EQUAL_WIDTH_TOLERANCE: f32 = 0.02;

/// The largest difference that is accepted between widths whose kernels are known to round differently. A larger one
/// means that a position has lost its context.
const ROUNDED_TOLERANCE: f32 = 1.0;

/// Tolerances are this much larger for bfloat16, which has three bits less than float16.
const BFLOAT16_FACTOR: f32 = 4.0;

/// A smaller difference is certainly rounding: in float32, and in anything coarser.
const FINE_ROUNDING: f32 = 1e-4;
const ROUNDING: f32 = 0.01;

/// Known causes of differences that are not errors.
#[derive(Debug, Clone, Copy, Default)]
pub struct Excuses {
    /// Something is computed in half precision, or something other than weights is quantised.
    pub coarse: bool,
    /// Logits or caches are bfloat16.
    pub bfloat16: bool,
    /// Activations, or keys and values, are rounded to few levels. One position may be rounded otherwise than several.
    pub few_levels: bool,
}

impl Excuses {
    /// The tolerances between passes of one width, after a rollback, and between passes of several widths.
    fn tolerances(self) -> [f32; 3] {
        let factor = if self.bfloat16 { BFLOAT16_FACTOR } else { 1.0 };
        let coarse = [EQUAL_WIDTH_TOLERANCE, TOLERANCE, TOLERANCE].map(|tolerance| factor * tolerance);
        match (self.few_levels, self.coarse || self.bfloat16) {
            (true, _) => [coarse[0], coarse[1], ROUNDED_TOLERANCE],
            (false, true) => coarse,
            (false, false) => [FINE_TOLERANCE; 3],
        }
    }

    /// Whether a difference between passes of several widths is rounding.
    pub fn accept(self, found: Deviation) -> bool {
        found.spreads <= self.tolerances()[2]
    }
}

/// The largest difference between rows of logits of the same position.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Deviation {
    /// In logits.
    pub logits: f32,
    /// In standard deviations of the row.
    pub spreads: f32,
}

/// Made-up tokens, and the row of logits after each of them when they are scored one by one.
pub struct Trial {
    tokens: Vec<i32>,
    pub(super) rows: Vec<Vec<f32>>,
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

    /// Its tokens.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// How much scoring one by one, which uses the cache, differs from one pass over all tokens, which does not. `None`
    /// if the difference is no proof of a broken cache, or if the pass fails.
    pub fn tells_a_broken_cache(&self, model: &dyn Model) -> Option<Deviation> {
        self.at_once(model).ok().filter(|found| found.spreads > ROUNDED_TOLERANCE)
    }

    /// The largest difference between logits that the model gives now and those it gives one by one.
    ///
    /// The error is the reason why the model cannot be used as it is set.
    pub fn verdict(&self, model: &dyn Model, excuses: Excuses) -> Result<Deviation, String> {
        let failed = |interrupt| match interrupt {
            Interrupt::Failed(error) => format!("it fails: {error}"),
            Interrupt::Cancelled => "it was cancelled".into(),
        };
        let [at_equal_widths, when_taken_back, at_several] = excuses.tolerances();
        let (ahead, taken_back) = self.at_equal_widths(model).map_err(failed)?;
        if ahead.spreads > at_equal_widths {
            return Err(format!("logits of a position change by {ahead} with the tokens behind it"));
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

    /// The difference of one pass over all tokens, which reads nothing from the cache.
    fn at_once(&self, model: &dyn Model) -> Result<Deviation, Interrupt> {
        let mut sequence = model.start(&Arc::new(Cancel::default()))?;
        run(model, sequence.as_mut(), &self.tokens)?;
        self.compare(sequence.as_ref(), 1..=self.tokens.len())
    }

    /// The difference of passes over several tokens, with other tokens tried and rolled back in between.
    fn with_rollbacks(&self, model: &dyn Model) -> Result<Deviation, Interrupt> {
        let count = self.tokens.len();
        let other = self.other(3);
        let mut sequence = model.start(&Arc::new(Cancel::default()))?;
        let mut worst = Deviation::default();
        // The lengths after each pass. Before every pass but the first, other tokens are tried and rolled back.
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

    /// The differences of a pass with other tokens behind its rows, and of a pass after a rollback.
    ///
    /// All passes have one width, so rounding explains neither.
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

    /// `count` tokens, mostly other ones than the trial has in their places.
    fn other(&self, count: usize) -> Vec<i32> {
        self.tokens.iter().rev().take(count).copied().collect()
    }

    /// Whether no logit of any row is finite.
    pub fn is_void(&self) -> bool {
        self.rows.iter().flatten().all(|logit| !logit.is_finite())
    }

    /// The largest difference between its rows and those of a sequence.
    pub fn compare(&self, sequence: &dyn Sequence, positions: RangeInclusive<usize>) -> Result<Deviation, Interrupt> {
        let mut worst = Deviation::default();
        for position in positions {
            worst = worst.max(difference(&self.rows[position - 1], sequence.row(position).scores()?));
        }
        Ok(worst)
    }
}

/// Tokens in the cache when passes are timed.
const TIMED_BEHIND: usize = 12;

/// The most rounds of timed passes. The minimum of a few is close to the time on an idle machine.
const TIMED_ROUNDS: usize = 5;
/// The most further rounds, which prepare the timed ones: on a GPU, passes are run once and then captured.
const PREPARING: usize = 2;

/// Time passes of several widths, as [`Model::pass_times`] describes. The result is the minimum of a few passes of each
/// width.
///
/// Timing stops after `limit`, so there may be fewer passes, or fewer widths. Each width is timed once before any is
/// timed again, starting with those furthest apart. Passes that prepare others count neither as times nor for the
/// limit, because somebody has to wait for them once anyway.
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
    /// Whether it is small enough to be rounding.
    pub fn is_rounding(self, excuses: Excuses) -> bool {
        let factor = if excuses.bfloat16 { BFLOAT16_FACTOR } else { 1.0 };
        self.spreads <= if excuses.coarse || excuses.bfloat16 { factor * ROUNDING } else { FINE_ROUNDING }
    }

    /// The larger one of each measure.
    pub fn max(self, other: Deviation) -> Deviation {
        Deviation { logits: self.logits.max(other.logits), spreads: self.spreads.max(other.spreads) }
    }
}

/// The difference of two rows where both are finite. It is infinite if a logit is finite in one of them only.
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
    fn a_sound_model_has_no_deviation() {
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
    fn a_model_that_cannot_roll_back_deviates() {
        // Each call of this script changes later ones, like a cache that cannot be rolled back.
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
        let everything = Excuses { coarse: true, bfloat16: true, few_levels: true };
        assert!(trial.verdict(&model, everything).is_err());
    }

    /// A difference that is rounding in half precision is an error in float32.
    #[test]
    fn float32_has_a_smaller_tolerance() {
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
                // the first passes are slow, as they are on fresh memory
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
        // Passes that prepare others count neither as times nor for the limit.
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
