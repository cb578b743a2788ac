//! A row of logits, on the host or on a device, and what is asked of it.

use std::any::Any;

use super::distribution::{Best, Distribution, argmax};
use super::edits::Edits;
use super::filter::Filter;
use super::sampling::{Candidates, Sampler};
use super::weights::Weights;
use crate::error::Result;

/// The row of logits of one position, with one score for each token of the vocabulary.
#[derive(Clone, Copy)]
pub enum Row<'a> {
    /// All scores.
    Host(&'a [f32]),
    /// The row of this position, kept on a device.
    Device(&'a dyn DeviceRows, usize),
}

impl<'a> Row<'a> {
    /// All scores. Copies a row from its device, unless that was done before.
    pub fn scores(self) -> Result<&'a [f32]> {
        match self {
            Row::Host(scores) => Ok(scores),
            Row::Device(rows, position) => rows.scores(position),
        }
    }

    /// The score of one token.
    pub fn score(self, token: usize) -> Result<f32> {
        match self {
            Row::Host(scores) => Ok(scores[token]),
            Row::Device(rows, position) => rows.score(position, token),
        }
    }

    /// Whether [`Row::score`] takes no copy from a device.
    pub fn knows(self, token: usize) -> bool {
        match self {
            Row::Host(_) => true,
            Row::Device(rows, position) => rows.knows(position, token),
        }
    }

    /// The best token. [`Error::Numeric`] for a bad row: a NaN, plus infinity, or no finite score at all.
    ///
    /// [`Error::Numeric`]: crate::error::Error::Numeric
    pub fn best(self) -> Result<Best> {
        match self {
            Row::Host(scores) => argmax(scores),
            Row::Device(rows, position) => match rows.best(position) {
                Some((token, score, second)) => Best::new(token, score, second),
                None => argmax(rows.scores(position)?),
            },
        }
    }

    /// What a sampler makes of the row. Errors as [`Row::best`].
    pub fn distribution(self, sampler: &Sampler, candidates: &mut Candidates) -> Result<Distribution> {
        if let Row::Device(rows, position) = self
            && !sampler.is_greedy()
            && let Some(distribution) = rows.distribution(position, sampler.filter())
        {
            return distribution;
        }
        sampler.process(self.scores()?, candidates)
    }

    /// The plain softmax of the row. Errors as [`Row::best`].
    pub fn softmax(self) -> Result<Distribution> {
        if let Row::Device(rows, position) = self
            && let Some(distribution) = rows.distribution(position, Filter::plain(1.0))
        {
            return distribution;
        }
        Distribution::softmax(self.scores()?)
    }

    /// Where the row is, if that is on a device.
    pub fn place(self) -> Option<DeviceRow> {
        match self {
            Row::Host(_) => None,
            Row::Device(rows, position) => rows.place(position),
        }
    }

    /// `weight` times a distribution of this row, as a part of a sum on its device; `None` if it is on the host.
    pub fn term(self, distribution: &Distribution, weight: f32) -> Option<Term> {
        let scale = f64::from(weight * distribution.scale());
        self.place().map(|row| Term { row, scale, distribution: *distribution })
    }

    /// The row with the distribution that was made of it, to draw from.
    pub fn weighted<'b>(self, distribution: &'b Distribution) -> WeightedRow<'b>
    where
        'a: 'b,
    {
        WeightedRow { row: self, distribution }
    }
}

/// Where tokens may be drawn from a row: as shares of the whole, or [`UNDRAWN`].
pub type PassUniforms = [f64; DRAWS];

/// Tokens that are drawn with a pass, at most. `rows.cu` holds the same number.
pub const DRAWS: usize = 2;

/// Draws nothing.
pub const UNDRAWN: f64 = -1.0;

/// Rows of one sequence that stay on a device, by position.
pub trait DeviceRows {
    /// All scores of a row, copied to the host.
    fn scores(&self, position: usize) -> Result<&[f32]>;

    /// The score of one token.
    fn score(&self, position: usize, token: usize) -> Result<f32>;

    /// The first token of the largest score, this score, NaN for a bad row, and the largest score of all other tokens;
    /// `None` if that takes all scores.
    fn best(&self, position: usize) -> Option<(usize, f32, f32)>;

    /// What a filter makes of a row, for the filter that the pass was run with; `None` if that takes all scores.
    fn distribution(&self, position: usize, filter: Filter) -> Option<Result<Distribution>>;

    /// The token at which the sum of weights from the front passes `share`, for what [`DeviceRows::distribution`] gave;
    /// `None` if that takes all scores. A token that was drawn with the pass is known, because the row, the filter and
    /// the share alone decide it.
    fn draw(&self, position: usize, share: f64) -> Result<Option<usize>>;

    /// Whether the score of a token is known without asking the device.
    fn knows(&self, _position: usize, _token: usize) -> bool {
        true
    }

    /// Whether a row is there, so that the pass over the token of its position tells the token's score.
    fn learns(&self, _position: usize) -> bool {
        false
    }

    /// Where a row is, for kernels that take several.
    fn place(&self, position: usize) -> Option<DeviceRow>;

    /// Rows that were copied to the host so far.
    fn copied(&self) -> u64;

    /// New buffers to compute with several rows of this device; `None` if it has no memory for them.
    fn sums(&self) -> Option<Box<dyn DeviceSums>>;

    /// New buffers for the rows of so many positions in a row with edits; `None` if it has no memory for them.
    fn edits(&self, slots: usize) -> Option<Box<dyn DeviceEdits>>;
}

/// Rows of one model with edits, on its device. [`DeviceSums::edit`] asks for them.
pub trait DeviceEdits: Any + Send {
    /// Positions in a row whose rows it holds. A row takes the place of the one so many positions before it. Of two
    /// such rows, only one may be asked for at a time.
    fn slots(&self) -> usize;

    /// The row of a position, if it is there.
    fn row(&self, position: usize) -> Option<Row<'_>>;

    /// Whether rows were asked for and are not there.
    fn awaits(&self) -> bool;

    /// The rows that were asked for are there, or that has failed.
    fn settle(&mut self, outcome: &Result<()>);

    /// Forget the rows behind position `len`, and those that were asked for.
    fn truncate(&mut self, len: usize);

    /// Forget all rows.
    fn forget(&mut self);

    /// Rows that were copied to the host so far.
    fn copied(&self) -> u64;

    /// Bytes of the buffers.
    fn bytes(&self) -> usize;
}

/// A row that is to be edited on its device.
pub struct RowToEdit<'a> {
    /// Where it is.
    pub row: DeviceRow,
    /// Its position.
    pub position: usize,
    /// What is changed.
    pub edits: &'a Edits,
    /// What the edited row answers for without a copy: this filter,
    pub filter: Filter,
    /// the score of this token,
    pub token: Option<usize>,
    /// and draws at these shares.
    pub uniforms: Option<PassUniforms>,
}

/// Computes with several rows of one device. Holds one sum and one residual; the next [`DeviceSums::add`] overwrites
/// the sum.
///
/// To make a sum or a residual is a question to the device. Questions may be deferred. Then they are errors, and
/// [`DeviceSums::asks`] says so, until [`DeviceAnswers`] has answered them: the same question then has its answer.
pub trait DeviceSums: Any + Send {
    /// Ask for a row with edits, which is to be put into `edited`. Returns false if the device cannot make it.
    fn edit(&mut self, row: RowToEdit<'_>, edited: &mut dyn DeviceEdits) -> bool;

    /// Make all rows with edits that were asked for.
    fn make_edited(&mut self) -> Result<()>;

    /// Make the weighted sum of rows. A token is impossible where any part gives minus infinity, and where the judge, a
    /// row with a least score, is below that score. Then the sum is edited. It answers for `filter`, for the score of
    /// `token`, and for a draw at the share `uniform`, if there is one, without a copy. Returns false, and makes
    /// nothing, if the device cannot do that for these rows.
    fn add(
        &mut self,
        parts: &mut dyn Iterator<Item = Term>,
        judge: Option<(DeviceRow, f32)>,
        edits: Option<&Edits>,
        filter: Filter,
        token: usize,
        uniform: Option<f64>,
    ) -> Result<bool>;

    /// The sum that was made last.
    fn sum(&self) -> Row<'_>;

    /// Make a residual `max(0, t − q)` (Eq. 6), where the last part is the proposal `q` and the others sum up to the
    /// target `t`. For a proposal that was `certain`, all parts are the target, and the residual is the target without
    /// that token. A token is drawn at the share `uniform`, if there is one. Returns the sum of the residual; `None` if
    /// the device cannot do that for these rows.
    fn residual(
        &mut self,
        parts: &mut dyn Iterator<Item = Term>,
        certain: Option<usize>,
        uniform: Option<f64>,
    ) -> Result<Option<f64>>;

    /// The token at which the sum of the residual from the front passes `share`. It is known if it was drawn before.
    fn draw_residual(&self, share: f64) -> Result<usize>;

    /// Bytes of the buffers.
    fn bytes(&self) -> usize;

    /// From now on, defer questions, so that those of several sequences are answered at once.
    fn defer(&mut self);

    /// Whether there is a question that was deferred.
    fn asks(&self) -> bool;

    /// The question was answered, or that has failed.
    fn settle(&mut self, outcome: &Result<()>);

    /// Forget questions and answers. To be called before rows change.
    fn forget(&mut self);

    /// What answers questions of all sequences whose rows are on the device.
    fn answers(&self) -> Box<dyn DeviceAnswers>;
}

/// Answers questions of several sequences about their rows on one device at once.
pub trait DeviceAnswers: Send {
    /// Take a question that was deferred. Its rows must stay until [`DeviceAnswers::run`] returns, and the outcome must
    /// be told by [`DeviceSums::settle`].
    fn take(&mut self, sums: &dyn DeviceSums);

    /// Answer the questions that were taken.
    fn run(&mut self) -> Result<()>;
}

/// A row as a part of a sum on a device: `scale · e^((score − max) · rate)` of each score that the distribution keeps.
/// A rate of 0 stands for the score itself, `scale · score`.
#[derive(Debug, Clone, Copy)]
pub struct Term {
    /// Where the row is.
    pub row: DeviceRow,
    /// What each score, or its exponential, is multiplied by.
    pub scale: f64,
    /// The maximum, the rate, and what is kept.
    pub distribution: Distribution,
}

impl Term {
    /// A part of a sum of scores.
    pub fn of_scores(row: DeviceRow, scale: f64) -> Self {
        Term { row, scale, distribution: Distribution::unfiltered(0.0, 0.0) }
    }

    /// What a token of this score adds to the sum.
    pub fn of(&self, token: usize, score: f32) -> f64 {
        match self.distribution.rate {
            0.0 => self.scale * f64::from(score),
            _ => self.scale * self.distribution.total * f64::from(self.distribution.probability_of(token, score)),
        }
    }
}

/// Where a row lies on a GPU.
#[derive(Debug, Clone, Copy)]
pub struct DeviceRow {
    /// The number of the GPU.
    pub(super) device: i32,
    /// The address of the first score.
    pub(super) address: u64,
    /// The type of the scores, by the number that kernels know it by.
    pub(super) element: i32,
    /// The largest score.
    pub max: f32,
}

impl DeviceRow {
    /// A row of this address and type, and its largest score.
    pub fn new(device: i32, address: u64, element: i32, max: f32) -> Self {
        DeviceRow { device, address, element, max }
    }

    /// The address of the first score.
    pub fn address(&self) -> u64 {
        self.address
    }
}

/// A row and the distribution that was made of it. The weights are the probabilities before they are normalised.
#[derive(Clone, Copy)]
pub struct WeightedRow<'a> {
    row: Row<'a>,
    distribution: &'a Distribution,
}

impl Weights for WeightedRow<'_> {
    fn count(&self) -> usize {
        self.row.scores().map_or(0, <[f32]>::len)
    }

    fn total(&self) -> f64 {
        self.distribution.total()
    }

    fn write(&self, start: usize, out: &mut [f32]) -> Result<()> {
        out.fill(0.0);
        self.distribution.add_scaled(start, self.row.scores()?, 1.0, 1.0, out);
        Ok(())
    }

    fn find(&self, share: f64) -> Result<Option<usize>> {
        match self.row {
            Row::Host(_) => Ok(None),
            Row::Device(rows, position) => rows.draw(position, share),
        }
    }
}

/// A residual on a device.
pub struct DeviceResidual<'a> {
    sums: &'a dyn DeviceSums,
    total: f64,
}

impl<'a> DeviceResidual<'a> {
    /// The residual that was made last, whose sum is `total`.
    pub fn new(sums: &'a dyn DeviceSums, total: f64) -> Self {
        DeviceResidual { sums, total }
    }
}

impl Weights for DeviceResidual<'_> {
    /// Nothing is known but where a share is reached.
    fn count(&self) -> usize {
        0
    }

    fn total(&self) -> f64 {
        self.total
    }

    fn write(&self, _: usize, _: &mut [f32]) -> Result<()> {
        Ok(())
    }

    fn find(&self, share: f64) -> Result<Option<usize>> {
        self.sums.draw_residual(share).map(Some)
    }
}
