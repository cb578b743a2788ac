//! One model's part in a sequence: its rows, and the distributions that were made of them.

use std::time::Duration;

use crate::decode::chance::{Chance, Key, Purpose};
use crate::decode::policy::Plan;
use crate::decode::settings::Settings;
use crate::error::{Error, Result};
use crate::model::Sequence;
use crate::rows::{
    Best, Candidates, DeviceEdits, DeviceSums, Distribution, Edits, Filter, PassUniforms, Row, RowToEdit, Sampler,
    Term, UNDRAWN, WeightedRow, maximum,
};

/// Marks a slot that holds no distribution.
const NO_ROW: usize = usize::MAX;

/// Most rows with edits on a device, unless more are pending. Those that nobody decides from are only learned from.
const MOST_THERE: usize = 64;

/// What the decoder knows of a model.
#[derive(Debug, Clone)]
pub struct ModelLimits {
    /// What messages call it.
    pub name: String,
    /// Number of scores in a row.
    pub vocab_size: usize,
    /// Most tokens that a sequence may hold.
    pub context_length: usize,
    /// Most tokens of one pass.
    pub max_pass: usize,
}

/// A model's sequence, and what was made of its rows.
pub struct Lane {
    /// The model's name and limits.
    pub limits: ModelLimits,
    /// The model's cache and rows.
    pub sequence: Box<dyn Sequence>,
    /// Time inside the model so far.
    pub elapsed: Duration,
    /// Made by the sampler, of rows with edits or without. That of position `p` is in slot `p % slots`, if the slot's
    /// stamp is `p`.
    distributions: Vec<(Distribution, bool)>,
    stamps: Vec<usize>,
    /// Rows with edits on the host, in slots with stamps of their own. None unless rows are edited.
    edited: Vec<Box<[f32]>>,
    edited_stamps: Vec<usize>,
    /// Those on the device of the model; made when one is first asked for.
    edited_there: Option<Box<dyn DeviceEdits>>,
    has_asked: bool,
}

impl Lane {
    /// The part of a model, with a sequence that it has started.
    pub fn new(limits: ModelLimits, sequence: Box<dyn Sequence>) -> Self {
        Lane {
            limits,
            sequence,
            elapsed: Duration::ZERO,
            distributions: Vec::new(),
            stamps: Vec::new(),
            edited: Vec::new(),
            edited_stamps: Vec::new(),
            edited_there: None,
            has_asked: false,
        }
    }

    /// Make room for the distributions of so many positions in a row, and if rows are edited, for the rows.
    pub fn fit(&mut self, slots: usize, edits: bool) {
        if self.stamps.len() != slots {
            self.distributions = vec![(Distribution::default(), false); slots];
            self.stamps = vec![NO_ROW; slots];
        }
        let slots = if edits { slots } else { 0 };
        if self.edited.len() != slots {
            self.edited = vec![Box::default(); slots];
            self.edited_stamps = vec![NO_ROW; slots];
            (self.edited_there, self.has_asked) = (None, false);
        }
    }

    /// Bytes of the rows with edits.
    pub fn edited_bytes(&self) -> usize {
        let there = self.edited_there.as_ref().map_or(0, |edited| edited.bytes());
        there + self.edited.iter().map(|row| size_of_val(&row[..])).sum::<usize>()
    }

    /// Rows that were copied from a device to the host so far.
    pub fn rows_copied(&self) -> u64 {
        let edited = self.edited_there.as_ref().map_or(0, |edited| edited.copied());
        edited + self.sequence.device_rows().map_or(0, |rows| rows.copied())
    }

    /// Forget what was made of rows.
    pub fn forget(&mut self) {
        self.stamps.fill(NO_ROW);
        self.edited_stamps.fill(NO_ROW);
        self.edited_there.iter_mut().for_each(|edited| edited.forget());
    }

    /// Forget all tokens from index `len` on, and what was made of rows behind that position.
    pub fn truncate(&mut self, len: usize) {
        if self.sequence.len() > len {
            self.sequence.truncate(len);
        }
        let stamps = self.stamps.iter_mut().chain(&mut self.edited_stamps);
        stamps.filter(|stamp| **stamp > len).for_each(|stamp| *stamp = NO_ROW);
        self.edited_there.iter_mut().for_each(|edited| edited.truncate(len));
    }

    /// The same after a failure, which also gives up a pass that is running.
    pub fn abandon(&mut self, len: usize) {
        self.sequence.truncate(self.sequence.len().min(len));
        self.truncate(len);
    }

    /// The row of a position: of logits, or with the edits that [`Lane::edit`] or [`Lane::ask_for_edits`] has made.
    pub fn row(&self, position: usize) -> Row<'_> {
        self.edited_row(position).unwrap_or_else(|| self.logits(position))
    }

    fn edited_row(&self, position: usize) -> Option<Row<'_>> {
        let slot = position.checked_rem(self.edited.len())?;
        if self.edited_stamps[slot] == position {
            return Some(Row::Host(&self.edited[slot]));
        }
        self.edited_there.as_ref()?.row(position)
    }

    /// Whether there is a row with edits that knows the score of the token of its position, if there is one.
    fn is_edited(&self, position: usize, token: Option<usize>) -> bool {
        self.edited_row(position).is_some_and(|row| token.is_none_or(|token| row.knows(token)))
    }

    /// Ask that the row of a position is edited on its device, unless that was done before, or the row is on the host.
    pub fn ask_for_edits(
        &mut self,
        position: usize,
        (edits, filter): (&Edits, Filter),
        (token, uniforms): (Option<usize>, Option<PassUniforms>),
        sums: &mut dyn DeviceSums,
    ) {
        let rows = self.sequence.device_rows().filter(|rows| rows.learns(position));
        if rows.is_none() || edits.is_empty() || self.is_edited(position, token) {
            return;
        }
        if !std::mem::replace(&mut self.has_asked, true) {
            // As many again for rows that are only learned from, which come late.
            let slots = (2 * self.edited.len()).min(MOST_THERE).max(self.edited.len());
            self.edited_there = rows.and_then(|rows| rows.edits(slots));
        }
        if let (Some(row), Some(edited)) = (self.sequence.row(position).place(), &mut self.edited_there)
            && position + edited.slots() > self.sequence.len()
        {
            sums.edit(RowToEdit { row, position, edits, filter, token, uniforms }, edited.as_mut());
        }
    }

    /// Whether rows with edits were asked for and are not there.
    pub fn awaits_edits(&self) -> bool {
        self.edited_there.as_ref().is_some_and(|edited| edited.awaits())
    }

    /// The rows with edits that were asked for are there, or that has failed.
    pub fn settle_edits(&mut self, outcome: &Result<()>) {
        self.edited_there.iter_mut().for_each(|edited| edited.settle(outcome));
    }

    /// The row of logits of a position.
    pub fn logits(&self, position: usize) -> Row<'_> {
        self.sequence.row(position)
    }

    /// Edit the row of a position, unless that was done before. A bad row is an error, which edits must not hide.
    pub fn edit(&mut self, position: usize, edits: &Edits, candidates: &mut Candidates) -> Result<()> {
        if edits.is_empty() || self.edited_row(position).is_some() {
            return Ok(());
        }
        let slot = position % self.edited.len();
        let logits = &self.sequence.row(position).scores()?[..self.limits.vocab_size];
        maximum(logits)?;
        self.edited_stamps[slot] = NO_ROW;
        match &mut self.edited[slot] {
            row if row.is_empty() => *row = logits.into(),
            row => row.copy_from_slice(logits),
        }
        edits.apply(&mut self.edited[slot], candidates);
        self.edited_stamps[slot] = position;
        Ok(())
    }

    /// Make the distribution of a position, unless it was made before.
    pub fn process(&mut self, position: usize, sampler: &Sampler, candidates: &mut Candidates) -> Result<()> {
        let slot = position % self.stamps.len();
        if !self.is_processed(position) {
            let distribution = self.row(position).distribution(sampler, candidates)?;
            self.distributions[slot] = (distribution, self.edited_row(position).is_some());
            self.stamps[slot] = position;
        }
        Ok(())
    }

    /// Whether the distribution of a position was made.
    pub fn is_processed(&self, position: usize) -> bool {
        self.stamps[position % self.stamps.len()] == position
    }

    /// The distribution of a position that was processed.
    pub fn distribution(&self, position: usize) -> &Distribution {
        assert!(self.is_processed(position), "a row was used before it was processed");
        &self.distributions[position % self.stamps.len()].0
    }

    /// The row that the distribution of a position was made of.
    fn processed_row(&self, position: usize) -> Row<'_> {
        let (_, is_edited) = self.distributions[position % self.stamps.len()];
        let edited = self.edited_row(position);
        assert_eq!(edited.is_some(), is_edited, "a row was used without its edits");
        edited.unwrap_or_else(|| self.logits(position))
    }

    /// To draw from a position that was processed.
    pub fn weighted(&self, position: usize) -> WeightedRow<'_> {
        self.processed_row(position).weighted(self.distribution(position))
    }

    /// `weight` times the distribution of a position, as a part of a sum on its device.
    pub fn term(&self, position: usize, weight: f32) -> Option<Term> {
        self.processed_row(position).term(self.distribution(position), weight)
    }

    /// The probability of a token at a position that was processed.
    pub fn probability(&self, position: usize, token: usize) -> Result<f32> {
        Ok(self.distribution(position).probability_of(token, self.processed_row(position).score(token)?))
    }

    /// Where a proposal and the target's token are drawn from the row of a position, if one is drawn from it now: the
    /// row behind all tokens, and in this epoch. The lane is that of this model. `None` if its rows stay on no device,
    /// since nobody draws there then.
    pub fn uniforms<C: Chance>(
        &self,
        model: usize,
        (plan, settings): (&Plan, &Settings),
        chance: &C,
        (position, epoch): (usize, u32),
    ) -> Option<PassUniforms> {
        if settings.sampler.is_greedy() || self.sequence.device_rows().is_none() {
            return None;
        }
        let share = |is_drawn: bool, purpose| match is_drawn {
            true => chance.share(Key { position, purpose, epoch }),
            false => Some(UNDRAWN),
        };
        let (proposes, is_target) = (!plan.policy.never_proposes(model), settings.combination.needs(model));
        Some([share(proposes, Purpose::Proposal)?, share(is_target, Purpose::Target)?])
    }

    /// What an observer learns of a token at a position: the token's probability, or greedily whether it is the first
    /// choice, and the model's confidence there. A bad row gives 0 for both; `None` if the row cannot be read, or if
    /// its `edits` are lost. They are `None` if rows are not edited.
    pub fn observation(
        &self,
        position: usize,
        token: usize,
        sampler: &Sampler,
        edits: Option<Option<&Edits>>,
        (candidates, scratch): (&mut Candidates, &mut [f32]),
    ) -> Option<(f32, f32)> {
        let row = match edits {
            Some(edits) if self.edited_row(position).is_none() && !edits.is_some_and(Edits::is_empty) => {
                // A copy is not worth it.
                let Row::Host(scores) = self.logits(position) else { return None };
                scratch.copy_from_slice(scores);
                edits?.apply(scratch, candidates);
                Row::Host(scratch)
            }
            _ => self.row(position),
        };
        if sampler.is_greedy() {
            let of = |best: Best| (f32::from(u8::from(best.token == token)), best.confidence());
            return known(row.best().map(of));
        }
        let of = |distribution: Distribution| {
            let probability = distribution.probability_of(token, row.score(token)?);
            Ok((probability, distribution.confidence()))
        };
        let distribution = match self.is_processed(position) {
            true => Ok(*self.distribution(position)),
            false => row.distribution(sampler, candidates),
        };
        known(distribution.and_then(of))
    }
}

/// An observation; 0 for a bad row, and `None` if a device has failed.
fn known(observation: Result<(f32, f32)>) -> Option<(f32, f32)> {
    match observation {
        Ok(observation) => Some(observation),
        Err(Error::Numeric(_)) => Some((0.0, 0.0)),
        Err(_) => None,
    }
}
