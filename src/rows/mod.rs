//! Rows of logits: one score for each token, on the host or on a GPU, and all that is computed on them.

pub mod device;
pub mod kernels;
pub mod sampling;
pub(crate) mod widen;

use crate::error::Error;
use crate::rows::device::Placed;

/// How a row of scores is processed: temperature, then top-k, top-p and min-p.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filter {
    /// One over the temperature.
    pub rate: f32,
    /// So many tokens at most; 0 if that is no matter.
    pub top_k: usize,
    /// The share that the tokens hold; 1 if that is no matter.
    pub top_p: f32,
    /// From the largest score, how far a token may be below it; or minus infinity.
    pub distance: f32,
}

impl Filter {
    /// Only a temperature.
    pub fn plain(rate: f32) -> Self {
        Filter { rate, top_k: 0, top_p: 1.0, distance: f32::NEG_INFINITY }
    }

    /// Whether it keeps all tokens.
    pub fn is_plain(&self) -> bool {
        *self == Filter::plain(self.rate)
    }
}

/// What a [`Filter`] keeps of a row: scores above the floor, and those of this very score before `cut`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filtered {
    /// The largest score.
    pub max: f32,
    /// The sum of `e^((score − max) · rate)` of what is kept.
    pub total: f64,
    /// The least score that is kept.
    pub floor: f32,
    /// The first token of that score that is not.
    pub cut: usize,
}

impl Filtered {
    /// All of a row with this maximum and sum.
    pub fn whole((max, total): (f32, f64)) -> Self {
        Filtered { max, total, floor: f32::NEG_INFINITY, cut: usize::MAX }
    }
}

/// A row as a part of something: `scale · e^((score − max) · rate)` of each score that is kept, or with a rate of 0 `scale · score`.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    /// Where the row is.
    pub row: Placed,
    /// What each score, or its exponential, is multiplied by.
    pub scale: f64,
    /// One over the temperature.
    pub rate: f32,
    /// What is kept, and the score whose exponential is 1.
    pub kept: Filtered,
}

impl Term {
    /// Of a sum of scores.
    pub fn of_scores(row: Placed, scale: f64) -> Self {
        Term { row, scale, rate: 0.0, kept: Filtered::whole((0.0, 1.0)) }
    }
}

/// What is made of several rows that are on one GPU. Whoever asks has what was asked before in mind: one sum, one residual. `None`
/// where it cannot be done there.
pub trait RowMath: Send {
    /// The sum of parts, impossible where any is and where the judge is below its floor. The score of `token` is asked for next,
    /// perhaps.
    fn weigh(
        &self,
        parts: &mut dyn Iterator<Item = Term>,
        judge: Option<(Placed, f32)>,
        filter: Filter,
        token: usize,
    ) -> Option<()>;

    /// Of the sum, as [`crate::model::Sequence::best`].
    fn best(&self) -> Option<(usize, f32, f32)>;

    /// Of the sum, as [`crate::model::Sequence::filtered`] by the filter that it was made with.
    fn filtered(&self) -> Option<Filtered>;

    /// Of the sum, as [`crate::model::Sequence::score`].
    fn score(&self, token: usize) -> f32;

    /// Of the sum, as [`crate::model::Sequence::draw`].
    fn draw(&self, share: f64) -> Option<usize>;

    /// Where the sum is.
    fn placed(&self) -> Placed;

    /// How much a proposal, the last part, leaves of the others: the sum of the positive parts of `Σ scale · e^((score − max) · rate)` over
    /// what each keeps, the last one subtracted. Or, of a proposal that was `certain`, what all parts hold but for that token.
    fn residual(&self, parts: &mut dyn Iterator<Item = Term>, certain: Option<usize>) -> Option<f64>;

    /// The token at which that sum from the front passes `share`.
    fn draw_residual(&self, share: f64) -> Option<usize>;

    /// As [`crate::model::Sequence::fault`].
    fn fault(&self) -> Option<Error>;

    /// Bytes of its buffers, which never grow.
    fn bytes(&self) -> usize;
}

/// Weights to draw by, not negative and not all 0. They are made piece by piece, for a draw seldom asks for all: a row of a
/// large vocabulary is then neither written nor read again.
pub trait Weights {
    /// How many there are.
    fn count(&self) -> usize;

    /// Their sum.
    fn total(&self) -> f64;

    /// Write those from index `start` on.
    fn write(&self, start: usize, out: &mut [f32]);

    /// The index at which their sum from the front passes `share`, where whoever has them knows it without writing them.
    fn find(&self, _share: f64) -> Option<usize> {
        None
    }
}

impl Weights for [f32] {
    fn count(&self) -> usize {
        self.len()
    }

    fn total(&self) -> f64 {
        kernels::sum(self)
    }

    fn write(&self, start: usize, out: &mut [f32]) {
        out.copy_from_slice(&self[start..start + out.len()]);
    }
}
