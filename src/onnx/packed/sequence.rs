//! A sequence of a packed model: its tokens, the blocks that hold their keys and values, and its rows of logits.

use std::collections::VecDeque;
use std::sync::Arc;

use ort::session::RunOptions;

use super::passes::PackedPasses;
use super::pool::{BlockId, Blocks, Chain};
use super::table::BLOCK;
use crate::error::Result;
use crate::model::{Cancel, Memory, Sequence};
use crate::rows::Row;

/// Rows of logits of one pass. The sequences that it served share them.
pub struct PassRows(pub Vec<f32>);

/// Rows of consecutive positions in the rows of a pass.
struct Span {
    /// The first position.
    position: usize,
    /// How many rows.
    count: usize,
    rows: Arc<PassRows>,
    /// The index of the first row.
    index: usize,
}

/// A sequence of a packed model.
pub struct PackedSequence {
    passes: Arc<PackedPasses>,
    /// All tokens seen.
    tokens: Vec<i32>,
    /// The blocks of all tokens, and of those of the prepared pass.
    blocks: Vec<BlockId>,
    /// Where they are.
    addresses: Vec<*mut f32>,
    /// By full block, as far as published: the chain that ends with it.
    chains: Vec<Chain>,
    /// The empty chain of its scope.
    empty: Chain,
    /// Tokens that were found in blocks of others.
    reused: u64,
    spans: VecDeque<Span>,
    vocab_size: usize,
    pub options: Arc<RunOptions>,
    pub cancel: Arc<Cancel>,
}

// SAFETY: the addresses are those of its own blocks, which it may use on any thread.
unsafe impl Send for PackedSequence {}

impl PackedSequence {
    /// An empty sequence.
    pub fn new(
        passes: &Arc<PackedPasses>,
        vocab_size: usize,
        options: Arc<RunOptions>,
        cancel: &Arc<Cancel>,
    ) -> PackedSequence {
        PackedSequence {
            passes: passes.clone(),
            tokens: Vec::new(),
            blocks: Vec::new(),
            addresses: Vec::new(),
            chains: Vec::new(),
            empty: Chain::empty(0),
            reused: 0,
            spans: VecDeque::new(),
            vocab_size,
            options,
            cancel: cancel.clone(),
        }
    }

    /// The model's passes.
    pub fn passes(&self) -> &Arc<PackedPasses> {
        &self.passes
    }

    /// The addresses of its blocks.
    pub fn addresses(&self) -> &[*mut f32] {
        &self.addresses
    }

    /// Append as many of the tokens as full blocks hold that were computed before. Returns how many.
    pub fn reuse(&mut self, tokens: &[i32], blocks: &mut Blocks) -> usize {
        let start = self.tokens.len();
        if !start.is_multiple_of(BLOCK) || self.chains.len() < start / BLOCK {
            return 0;
        }
        self.release_from(start, blocks); // room that a failed pass has left
        let (full, _) = tokens.as_chunks::<BLOCK>();
        for tokens in full {
            let Some((block, chain)) = blocks.find(self.chain(), tokens) else { break };
            self.blocks.push(block);
            self.addresses.push(blocks.address(block));
            self.chains.push(chain);
            self.tokens.extend_from_slice(tokens);
        }
        let count = self.tokens.len() - start;
        self.reused += count as u64;
        count
    }

    /// Make room for a pass of `width` tokens, in blocks that nobody else uses. On an error the sequence is unchanged.
    pub fn prepare(&mut self, width: usize, blocks: &mut Blocks) -> Result<()> {
        let (len, end) = (self.tokens.len(), self.tokens.len() + width);
        let kept = len % BLOCK;
        if kept > 0 {
            let last = len / BLOCK;
            let writable = blocks.writable(self.blocks[last], &self.passes.layers, kept)?;
            (self.blocks[last], self.addresses[last]) = (writable, blocks.address(writable));
        }
        while self.blocks.len() * BLOCK < end {
            match blocks.take() {
                Ok(block) => {
                    self.blocks.push(block);
                    self.addresses.push(blocks.address(block));
                }
                Err(error) => {
                    self.release_from(len, blocks);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// The prepared pass over these tokens has run.
    pub fn ran(&mut self, tokens: &[i32]) {
        self.tokens.extend_from_slice(tokens);
    }

    /// Let other sequences find the full blocks of its first `len` tokens.
    pub fn publish(&mut self, len: usize, blocks: &mut Blocks) {
        let (full, _) = self.tokens[..len.min(self.tokens.len())].as_chunks::<BLOCK>();
        for (index, tokens) in full.iter().enumerate().skip(self.chains.len()) {
            let before = self.chains.last().copied().unwrap_or(self.empty);
            self.chains.push(blocks.publish(self.blocks[index], before, tokens));
        }
    }

    /// Keep rows of the pass that has run last: `count` of them from `index` on, the first one that of `position`.
    /// Earlier rows stay from position `keep` on.
    pub fn keep_rows(&mut self, rows: &Arc<PassRows>, index: usize, position: usize, count: usize, keep: usize) {
        while self.spans.front().is_some_and(|span| span.position + span.count <= keep) {
            self.spans.pop_front();
        }
        if count > 0 {
            self.spans.push_back(Span { position, count, rows: rows.clone(), index });
        }
    }

    /// The row of a position, padding included.
    pub fn whole_row(&self, position: usize) -> &[f32] {
        let span =
            self.spans.iter().rev().find(|span| position >= span.position && position < span.position + span.count);
        let span = span.expect("the row of the position was not kept");
        let columns = self.passes.columns;
        &span.rows.0[(span.index + position - span.position) * columns..][..columns]
    }

    /// Tokens that were found in blocks of other sequences.
    pub fn reused(&self) -> u64 {
        self.reused
    }

    fn chain(&self) -> Chain {
        match self.tokens.len() / BLOCK {
            0 => self.empty,
            full => self.chains[full - 1],
        }
    }

    /// Release the blocks behind `len` tokens, the last ones first, so that the first ones are used more recently.
    fn release_from(&mut self, len: usize, blocks: &mut Blocks) {
        let kept = len.div_ceil(BLOCK);
        for block in self.blocks.drain(kept..).rev() {
            blocks.release(block);
        }
        self.addresses.truncate(kept);
    }
}

impl Drop for PackedSequence {
    fn drop(&mut self) {
        let passes = self.passes.clone();
        self.release_from(0, &mut passes.pool.lock());
    }
}

impl Sequence for PackedSequence {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn truncate(&mut self, len: usize) {
        if len >= self.tokens.len() {
            return;
        }
        self.tokens.truncate(len);
        self.chains.truncate(len / BLOCK);
        if self.blocks.len() > len.div_ceil(BLOCK) {
            let passes = self.passes.clone();
            self.release_from(len, &mut passes.pool.lock());
        }
        while let Some(last) = self.spans.back_mut() {
            last.count = last.count.min((len + 1).saturating_sub(last.position));
            if last.count > 0 {
                break;
            }
            self.spans.pop_back();
        }
    }

    fn row(&self, position: usize) -> Row<'_> {
        Row::Host(&self.whole_row(position)[..self.vocab_size])
    }

    fn memory(&self) -> Memory {
        let bytes = self.blocks.len() * self.passes.block_bytes
            + self.tokens.capacity() * size_of::<i32>()
            + self.blocks.capacity() * (size_of::<BlockId>() + size_of::<*mut f32>());
        let rows: usize = self.spans.iter().map(|span| span.count * self.passes.columns * size_of::<f32>()).sum();
        Memory::of(bytes + rows)
    }
}
