//! A sequence of a packed model: its tokens, the blocks that hold their keys and values, and its rows of logits.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use ort::session::RunOptions;

use super::holding::HoldingId;
use super::pool::{Blocks, Chain, Pool};
use super::rows::{PassRows, Span};
use crate::model::{CacheUse, Cancel, Memory, Sequence};
use crate::rows::device::{Ring, SLOTS};
use crate::rows::records::Control;
use crate::rows::{DeviceRows, Filter, PassUniforms, Row};

/// Tokens for which a sequence has memory from the beginning.
const USUAL_TOKENS: usize = 4096;

/// What a sequence needs of the passes of its model.
pub trait PassOwner: Send + Sync {
    /// The blocks of the model.
    fn pool(&self) -> &Pool;
    /// Bytes of a block.
    fn block_bytes(&self) -> usize;
    /// Logits of a row, padding included.
    fn columns(&self) -> usize;
    /// Memory for the rows of a sequence on the GPU, if they stay there.
    fn ring(&self, vocab_size: usize) -> ort::Result<Option<Ring>>;
    /// Take the memory of a sequence that has ended.
    fn give_ring(&self, ring: Ring);
    /// Whether a pass over this sequence alone, or over it first, was launched and has not ended.
    fn has_launched(&self, sequence: &PackedSequence) -> bool;
    /// Give up the pass that was launched over this sequence alone.
    fn give_up(&self, sequence: &mut PackedSequence);
}

/// A sequence of a packed model.
pub struct PackedSequence {
    passes: Arc<dyn PassOwner>,
    /// All tokens seen, and those of a pass that is begun.
    tokens: Vec<i32>,
    /// Tokens of the pass that is begun.
    begun: usize,
    cache_use: CacheUse,
    /// Its blocks.
    pub holding: HoldingId,
    /// Rows on the host.
    spans: VecDeque<Span>,
    /// Rows on a GPU, if they stay there.
    ring: Option<Ring>,
    /// Memory for rows of later passes.
    spare: Vec<Vec<f32>>,
    vocab_size: usize,
    pub options: Arc<RunOptions>,
    pub cancel: Arc<Cancel>,
}

impl PackedSequence {
    /// An empty sequence.
    pub fn new(
        passes: &Arc<dyn PassOwner>,
        vocab_size: usize,
        options: Arc<RunOptions>,
        cancel: &Arc<Cancel>,
    ) -> ort::Result<Self> {
        // First, since only a sequence closes its holding.
        let ring = passes.ring(vocab_size)?;
        Ok(PackedSequence {
            passes: passes.clone(),
            tokens: Vec::with_capacity(USUAL_TOKENS),
            begun: 0,
            cache_use: CacheUse::default(),
            holding: passes.pool().lock().open(Chain::EMPTY, cancel.age()),
            spans: VecDeque::new(),
            ring,
            spare: Vec::new(),
            vocab_size,
            options,
            cancel: cancel.clone(),
        })
    }

    /// Where the rows of a pass over the tokens from the first index to the second go on the GPU: those of tokens from
    /// index `wanted` on, while rows from position `keep` on stay. `None` if they go to the host.
    pub fn control(
        &mut self,
        (past, end): (usize, usize),
        wanted: usize,
        keep: usize,
        (filter, uniforms): (Filter, Option<PassUniforms>),
    ) -> Option<Control> {
        let ring = self.ring.as_mut()?;
        if wanted == end || end + 1 - keep.min(wanted + 1) > SLOTS {
            return None;
        }
        ring.prepare(filter, uniforms);
        Some(ring.control(past, &self.tokens[past..end], wanted + 1, end - wanted, 0))
    }

    /// A pass has given the rows of these positions, on the GPU or on the host. Rows before position `keep` are not
    /// asked for any more.
    pub fn note_rows(&mut self, positions: Range<usize>, keep: usize, on_gpu: bool) {
        match &mut self.ring {
            Some(ring) if on_gpu => ring.keep(positions, keep),
            Some(ring) => ring.lose(positions),
            None => {}
        }
    }

    /// A sequence of the same tokens, without rows. It shares the blocks.
    pub fn fork(&self, options: Arc<RunOptions>, cancel: &Arc<Cancel>) -> ort::Result<Self> {
        let mut fork = Self::new(&self.passes, self.vocab_size, options, cancel)?;
        fork.tokens.extend_from_slice(&self.tokens[..self.len()]);
        let mut pool = self.passes.pool().lock();
        pool.close(fork.holding);
        fork.holding = pool.fork(self.holding, cancel.age());
        pool.truncate(fork.holding, self.len());
        drop(pool);
        Ok(fork)
    }

    /// All tokens seen, and those of a pass that is begun.
    pub fn tokens(&self) -> &[i32] {
        &self.tokens
    }

    /// Begin a pass over these tokens, unless it is begun.
    pub fn begin(&mut self, tokens: &[i32], pool: &mut Blocks) {
        if self.tokens[self.len()..] != *tokens {
            self.end(pool);
            self.tokens.extend_from_slice(tokens);
            self.begun = tokens.len();
        }
    }

    /// The pass that is begun has run.
    pub fn ran(&mut self) {
        self.begun = 0;
    }

    /// Count tokens that were found computed, or computed once more.
    pub fn count(&mut self, found: usize, recomputed: usize) {
        self.cache_use.found += found as u64;
        self.cache_use.recomputed += recomputed as u64;
    }

    /// Give up the pass that is begun.
    fn end(&mut self, pool: &mut Blocks) {
        if self.begun > 0 {
            self.tokens.truncate(self.len());
            self.begun = 0;
            pool.truncate(self.holding, self.tokens.len());
        }
    }

    /// Forget the tokens from index `len` on, those of a pass that is begun included.
    pub fn take_back(&mut self, len: usize) {
        if len >= self.tokens.len() {
            return;
        }
        let passes = self.passes.clone();
        let mut pool = passes.pool().lock();
        self.end(&mut pool);
        self.tokens.truncate(len);
        pool.truncate(self.holding, len);
        drop(pool);
        while let Some(last) = self.spans.back_mut() {
            last.count = last.count.min((len + 1).saturating_sub(last.position));
            if last.count > 0 {
                break;
            }
            self.spans.pop_back();
        }
    }

    /// Forget the rows before position `keep`.
    pub fn forget_rows(&mut self, keep: usize) {
        while self.spans.front().is_some_and(|span| span.position + span.count <= keep) {
            let span = self.spans.pop_front().expect("there is one");
            span.release(&mut self.spare);
        }
    }

    /// Keep rows of the pass that has run last: `count` of them from `index` on, the first one that of `position`.
    /// `several` sequences may have shared the pass.
    pub fn keep_rows(&mut self, rows: &Arc<PassRows>, index: usize, position: usize, count: usize, several: bool) {
        if count > 0 {
            self.spans.push_back(Span::shared(rows, index, position, count, self.passes.columns(), several));
        }
    }

    /// The row of a position, padding included.
    pub fn whole_row(&self, position: usize) -> &[f32] {
        let span = self.spans.iter().rev().find(|span| span.holds(position));
        span.expect("the row of the position was not kept").row(position)
    }
}

impl Drop for PackedSequence {
    fn drop(&mut self) {
        if self.passes.has_launched(self) {
            self.passes.clone().give_up(self);
        }
        self.passes.pool().lock().close(self.holding);
        if let Some(ring) = self.ring.take() {
            self.passes.give_ring(ring);
        }
    }
}

impl Sequence for PackedSequence {
    fn len(&self) -> usize {
        self.tokens.len() - self.begun
    }

    fn truncate(&mut self, len: usize) {
        if self.passes.has_launched(self) {
            self.passes.clone().give_up(self);
        }
        self.take_back(len);
    }

    fn rest(&mut self) {
        self.passes.pool().lock().rest(self.holding);
    }

    fn take_rows(&mut self) {
        self.spans.iter_mut().for_each(|span| span.take(&mut self.spare));
    }

    fn row(&self, position: usize) -> Row<'_> {
        match &self.ring {
            Some(ring) if ring.holds(position) => Row::Device(ring, position),
            _ => Row::Host(&self.whole_row(position)[..self.vocab_size]),
        }
    }

    fn device_rows(&self) -> Option<&dyn DeviceRows> {
        self.ring.as_ref().map(|ring| ring as &dyn DeviceRows)
    }

    fn set_scope(&mut self, scope: &str) {
        let mut pool = self.passes.pool().lock();
        let scope = pool.scope(scope);
        pool.set_scope(self.holding, scope);
    }

    fn cache_use(&self) -> CacheUse {
        self.cache_use
    }

    fn memory(&self) -> Memory {
        let blocks = self.passes.pool().lock().of(self.holding).len();
        let bytes = blocks * self.passes.block_bytes() + self.tokens.capacity() * size_of::<i32>();
        let rows: usize = self.spans.iter().map(Span::bytes).sum();
        Memory::of(bytes + rows + self.ring.as_ref().map_or(0, Ring::bytes))
    }
}
