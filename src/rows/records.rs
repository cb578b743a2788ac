//! What the kernels for rows are told, and what they write, as `kernels/rows.cu` declares it.

use bytemuck::{Pod, Zeroable};

use super::distribution::Distribution;
use super::filter::Filter;
use super::row::{DRAWS, PassUniforms, UNDRAWN};
use crate::error::Result;

/// Parts of a row that thread blocks work on at the same time.
pub(super) const CHUNKS: usize = 32;

/// Most tokens of a pass whose scores the kernels write into the summaries.
pub const NOTED: usize = 20;

/// The arguments of the kernels for a sequence's share of a pass. A captured graph reads them from the device. If all
/// is zero, nothing is done.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
pub struct Control {
    /// Addresses of the buffers of a ring.
    pub(super) ring: u64,
    pub(super) parts: u64,
    pub(super) peaks: u64,
    pub(super) kept: u64,
    pub(super) summaries: u64,
    /// The index of the first row in the logits of the pass.
    pub(super) row: i32,
    /// Rows that the pass gives the sequence.
    pub(super) given: i32,
    /// Position of the first one.
    pub(super) first: i32,
    /// Rows in front that are not wanted.
    pub(super) skipped: i32,
    pub(super) vocab: i32,
    pub(super) rate: f32,
    /// Position of the first token of the pass.
    pub(super) start: i32,
    /// 1 if the ring holds the row of `start`.
    pub(super) known: i32,
    /// Tokens of the pass whose scores are wanted.
    pub(super) width: i32,
    pub(super) top_k: i32,
    pub(super) top_p: f32,
    pub(super) distance: f32,
    pub(super) tokens: [i32; NOTED],
    /// Where tokens are drawn from the last row; negative for none.
    pub(super) uniforms: PassUniforms,
}

impl Control {
    pub(super) fn of(Filter { rate, top_k, top_p, distance }: Filter, vocab: usize) -> Self {
        let top_k = if top_k < vocab { top_k as i32 } else { 0 };
        Control { vocab: vocab as i32, rate, top_k, top_p, distance, uniforms: [UNDRAWN; DRAWS], ..Control::zeroed() }
    }

    /// For rows that begin at this index in the logits of the pass.
    pub fn at(self, row: usize) -> Self {
        Control { row: row as i32, ..self }
    }

    /// How many rows the pass gives.
    pub fn given(&self) -> usize {
        self.given as usize
    }

    /// For one row at position 0. The score of `token` is wanted, if there is one, and draws at shares.
    pub(super) fn of_one(filter: Filter, vocab: usize, token: Option<usize>, uniforms: Option<PassUniforms>) -> Self {
        let mut control = Control { given: 1, width: i32::from(token.is_some()), ..Control::of(filter, vocab) };
        control.uniforms = uniforms.unwrap_or(control.uniforms);
        control.tokens[0] = token.map_or(0, |token| token as i32);
        control
    }

    /// The same for a row in another slot.
    pub(super) fn in_slot(self, slot: usize) -> Self {
        Control { first: slot as i32, start: slot as i32, ..self }
    }
}

/// A token that was drawn from a row.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
pub(super) struct Drawn {
    /// Where: the sum of the weights before the token and a part of its own; -1 if nothing was drawn.
    pub(super) share: f64,
    pub(super) token: i32,
    pub(super) score: f32,
}

/// What the filter of a row keeps, for kernels.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
pub(super) struct Kept {
    pub(super) chunks: [f64; CHUNKS],
    pub(super) total: f64,
    pub(super) floor: f32,
    pub(super) cut: i32,
}

/// What the kernels find out about a row.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
pub struct Summary {
    /// The sum of `e^((score − max) · rate)` over all tokens.
    pub(super) total: f64,
    /// The largest score; NaN if any score is NaN or plus infinity.
    pub(super) max: f32,
    /// The largest score of all tokens but `best`.
    pub(super) second: f32,
    /// The first token with the largest score.
    pub(super) best: i32,
    pub(super) position: i32,
    /// The token that came next, and its score.
    pub(super) token: i32,
    pub(super) score: f32,
    /// The sum over the tokens that the filter keeps.
    pub(super) kept: f64,
    /// The least score that is kept.
    pub(super) floor: f32,
    /// The first token of the score `floor` that is not kept; -1 if the kernel did not find what the filter keeps.
    pub(super) cut: i32,
    /// Tokens that were drawn with the pass.
    pub(super) drawn: [Drawn; 2],
}

impl Summary {
    /// The distribution after the filter; `None` if the kernel did not find what the filter keeps.
    pub(super) fn distribution(&self, filter: Filter) -> Option<Result<Distribution>> {
        if filter.is_plain() {
            return Some(Distribution::known(filter, self.max, self.total, f32::NEG_INFINITY, usize::MAX));
        }
        let cut = usize::try_from(self.cut).ok()?;
        Some(Distribution::known(filter, self.max, self.kept, self.floor, cut))
    }
}
