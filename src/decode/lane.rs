//! One model's part in a sequence: its rows, and the distributions that were made of them.

use std::time::Duration;

use crate::decode::chance::{Chance, Key, Purpose};
use crate::decode::policy::Plan;
use crate::decode::settings::Settings;
use crate::error::{Error, Result};
use crate::model::Sequence;
use crate::rows::{Best, Candidates, Distribution, PassUniforms, Row, Sampler, Term, UNDRAWN, WeightedRow};

/// Marks a slot that holds no distribution.
const NO_ROW: usize = usize::MAX;

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
    /// Made by the sampler. That of position `p` is in slot `p % slots`, if the slot's stamp is `p`.
    distributions: Vec<Distribution>,
    stamps: Vec<usize>,
}

impl Lane {
    /// The part of a model, with a sequence that it has started.
    pub fn new(limits: ModelLimits, sequence: Box<dyn Sequence>) -> Self {
        Lane { limits, sequence, elapsed: Duration::ZERO, distributions: Vec::new(), stamps: Vec::new() }
    }

    /// Make room for the distributions of so many positions in a row.
    pub fn fit(&mut self, slots: usize) {
        if self.stamps.len() != slots {
            self.distributions = vec![Distribution::default(); slots];
            self.stamps = vec![NO_ROW; slots];
        }
    }

    /// Forget all tokens from index `len` on, and what was made of rows behind that position.
    pub fn truncate(&mut self, len: usize) {
        if self.sequence.len() > len {
            self.sequence.truncate(len);
        }
        self.stamps.iter_mut().filter(|stamp| **stamp > len).for_each(|stamp| *stamp = NO_ROW);
    }

    /// The same after a failure, which also gives up a pass that is running.
    pub fn abandon(&mut self, len: usize) {
        self.sequence.truncate(self.sequence.len().min(len));
        self.truncate(len);
    }

    /// The row of logits of a position.
    pub fn row(&self, position: usize) -> Row<'_> {
        self.sequence.row(position)
    }

    /// Make the distribution of a position, unless it was made before.
    pub fn process(&mut self, position: usize, sampler: &Sampler, candidates: &mut Candidates) -> Result<()> {
        let slot = position % self.stamps.len();
        if !self.is_processed(position) {
            self.distributions[slot] = self.row(position).distribution(sampler, candidates)?;
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
        &self.distributions[position % self.stamps.len()]
    }

    /// To draw from a position that was processed.
    pub fn weighted(&self, position: usize) -> WeightedRow<'_> {
        self.row(position).weighted(self.distribution(position))
    }

    /// `weight` times the distribution of a position, as a part of a sum on its device.
    pub fn term(&self, position: usize, weight: f32) -> Option<Term> {
        self.row(position).term(self.distribution(position), weight)
    }

    /// The probability of a token at a position that was processed.
    pub fn probability(&self, position: usize, token: usize) -> Result<f32> {
        Ok(self.distribution(position).probability_of(token, self.row(position).score(token)?))
    }

    /// Where a proposal and the target's token are drawn from the row of a position, if one is drawn from it now: the
    /// row behind all tokens, and in this epoch. The lane is that of this model. `None` if its rows stay on no device,
    /// since nobody draws with the pass then.
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
    /// choice, and the model's confidence there. A bad row gives 0 for both; `None` if the row cannot be read.
    pub fn observation(
        &self,
        position: usize,
        token: usize,
        sampler: &Sampler,
        candidates: &mut Candidates,
    ) -> Option<(f32, f32)> {
        if sampler.is_greedy() {
            let of = |best: Best| (f32::from(u8::from(best.token == token)), best.confidence());
            return known(self.row(position).best().map(of));
        }
        let of = |distribution: Distribution| {
            let probability = distribution.probability_of(token, self.row(position).score(token)?);
            Ok((probability, distribution.confidence()))
        };
        let distribution = match self.is_processed(position) {
            true => Ok(*self.distribution(position)),
            false => self.row(position).distribution(sampler, candidates),
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
