//! The distribution that a row of scores stands for, and the best token of a row.

use super::filter::Filter;
use super::kernels::{self, Normaliser};
use crate::error::{Error, Result};

/// Two scores nearer than this are a near tie. Passes of different widths may rank them differently, because their
/// kernels add in another order. For mixtures the scores are logarithms of probabilities.
pub const NEAR_TIE: f32 = 1e-3;

/// The distribution that a [`Sampler`] makes of a row of scores: the few numbers that turn a score into its
/// probability. It is used with the row that it was made of.
///
/// [`Sampler`]: super::sampling::Sampler
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Distribution {
    /// The largest score.
    pub(super) max: f32,
    /// One over the temperature.
    pub(super) rate: f32,
    /// Tokens of a lower score have probability 0.
    pub(super) floor: f32,
    /// Tokens of the score `floor` have probability 0 from this one on.
    pub(super) cut: usize,
    /// The sum of the weights of all tokens that are kept. A weight is `e^((score − max) · rate)`.
    pub(super) total: f64,
}

impl Distribution {
    /// The plain softmax.
    pub fn softmax(scores: &[f32]) -> Result<Self> {
        Distribution::of_all(scores, 1.0)
    }

    /// What a device has found out about a row: its largest score, NaN for a bad row, and what a [`Filter`] keeps of
    /// it.
    ///
    /// [`Error::Numeric`] for a bad row.
    pub fn known(filter: Filter, max: f32, total: f64, floor: f32, cut: usize) -> Result<Self> {
        Ok(Distribution { max: checked(max)?, rate: filter.rate, floor, cut, total })
    }

    pub(super) fn of_all(scores: &[f32], rate: f32) -> Result<Self> {
        let mut normaliser = Normaliser::new(rate);
        normaliser.add(scores);
        Distribution::normalised(normaliser.result(), rate)
    }

    /// Without filters, given the largest score and the sum of all weights.
    pub(super) fn normalised((max, total): (f32, f64), rate: f32) -> Result<Self> {
        Ok(Distribution { total, ..Distribution::unfiltered(checked(max)?, rate) })
    }

    pub(super) fn unfiltered(max: f32, rate: f32) -> Self {
        Distribution { max, rate, floor: f32::NEG_INFINITY, cut: usize::MAX, total: 1.0 }
    }

    /// The probability of the best token: the confidence of the model.
    pub fn confidence(&self) -> f32 {
        (1.0 / self.total) as f32
    }

    pub(super) fn weight(&self, score: f32) -> f32 {
        kernels::Exp::new(self.rate).of(score - self.max)
    }

    fn keeps(&self, score: f32, token: usize) -> bool {
        score > self.floor || (score == self.floor && token < self.cut)
    }

    pub(super) fn scale(&self) -> f32 {
        (1.0 / self.total) as f32
    }

    /// The probability of one token.
    pub fn probability(&self, scores: &[f32], token: usize) -> f32 {
        self.probability_of(token, scores[token])
    }

    /// The probability of a token of this score.
    pub fn probability_of(&self, token: usize, score: f32) -> f32 {
        if self.keeps(score, token) { self.weight(score) * self.scale() } else { 0.0 }
    }

    /// The natural logarithm of [`Distribution::probability_of`], also where that is too small for a float.
    pub fn log_probability_of(&self, token: usize, score: f32) -> f32 {
        if !self.keeps(score, token) {
            return f32::NEG_INFINITY;
        }
        ((f64::from(score) - f64::from(self.max)) * f64::from(self.rate) - self.total.ln()) as f32
    }

    /// Write the probabilities of all tokens.
    pub fn fill(&self, scores: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        self.add(scores, 1.0, out);
    }

    /// Add `weight` times the probabilities of all tokens to `out`.
    pub fn add(&self, scores: &[f32], weight: f32, out: &mut [f32]) {
        self.add_from(0, scores, weight, out);
    }

    /// Add `weight` times the probabilities of the tokens from `start` on to `out`.
    pub fn add_from(&self, start: usize, scores: &[f32], weight: f32, out: &mut [f32]) {
        self.add_scaled(start, scores, self.scale(), weight, out);
    }

    pub(super) fn add_scaled(&self, start: usize, scores: &[f32], scale: f32, weight: f32, out: &mut [f32]) {
        let scores = &scores[start..start + out.len()];
        let cut = self.cut.saturating_sub(start).min(scores.len());
        let (kept, behind) = scores.split_at(cut);
        let (out, out_behind) = out.split_at_mut(cut);
        let add = |scores, floor, out| kernels::add_exp(scores, self.max, self.rate, floor, scale, weight, out);
        add(kept, self.floor, out);
        add(behind, self.floor.next_up(), out_behind);
    }

    /// The sum of all probabilities that [`Distribution::add`] makes: 1, but for the rounding of the scale.
    pub fn sum(&self) -> f64 {
        self.total * f64::from(self.scale())
    }

    /// The sum of all weights.
    pub fn total(&self) -> f64 {
        self.total
    }
}

/// The entropy in nats of the plain softmax of a row, which is given.
pub fn entropy(scores: &[f32], softmax: &Distribution) -> f32 {
    let moment = kernels::sum_exp_times(scores, softmax.max);
    (softmax.total.ln() - moment / softmax.total) as f32
}

/// The largest score. [`Error::Numeric`] if no score is finite, or if any is NaN or plus infinity.
pub fn maximum(scores: &[f32]) -> Result<f32> {
    checked(kernels::maximum(scores))
}

/// A maximum if it is finite, and otherwise an error. NaN stands for a row with a NaN.
pub(super) fn checked(max: f32) -> Result<f32> {
    if max.is_finite() {
        return Ok(max);
    }
    let what = if max.is_nan() {
        "NaN"
    } else if max > 0.0 {
        "plus infinity"
    } else {
        "minus infinity everywhere"
    };
    Err(Error::Numeric(format!("a row of logits holds {what}")))
}

/// The best token of a row: the first one with the largest score.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Best {
    /// The token.
    pub token: usize,
    /// Its score.
    pub score: f32,
    /// Its score less that of the second best token: 0 among equal scores, infinite if no other token is possible.
    pub margin: f32,
}

impl Best {
    /// The best token, its score and the largest score of all others. [`Error::Numeric`] unless the score is finite.
    pub fn new(token: usize, score: f32, second: f32) -> Result<Self> {
        let score = checked(score)?;
        Ok(Best { token, score, margin: score - second })
    }

    /// The confidence of the model, between 0 and 1: the lead of the best token over the second, as a share of both.
    pub fn confidence(&self) -> f32 {
        (0.5 * self.margin).tanh()
    }

    /// Whether a pass of another width might choose another token.
    pub fn is_near_tie(&self) -> bool {
        self.margin <= NEAR_TIE
    }
}

/// The [`Best`] of a row. Errors as [`maximum`].
pub fn argmax(scores: &[f32]) -> Result<Best> {
    let (token, score, second) = kernels::best_two(scores);
    Best::new(token, score, second)
}
