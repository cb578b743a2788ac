//! Which sequence has which blocks.
//!
//! The blocks of all sequences are in the pool, under its lock, because a sequence that needs blocks may take those of
//! another one, which other threads use. What was taken is computed anew.

use std::time::Instant;

pub use super::block::HoldingId;
use super::block::{BlockCopy, BlockId, Chain, Holding, Holdings};
use super::pool::Blocks;

/// Blocks of a sequence for which the lists have memory from the beginning.
const USUAL: usize = 128;

impl Blocks {
    /// Begin a sequence without tokens. Sessions that were started earlier have a smaller `age`.
    pub fn open(&mut self, scope: Chain, age: u64) -> HoldingId {
        let Holdings { holdings, free } = &mut self.holdings;
        let id = free.pop().unwrap_or_else(|| {
            holdings.push(Holding::default());
            HoldingId(holdings.len() as u32 - 1)
        });
        let holding = &mut holdings[id.0 as usize];
        (holding.empty, holding.age, holding.used, holding.runs) = (Some(scope), age, None, false);
        holding.blocks.reserve(USUAL);
        holding.chains.reserve(USUAL);
        id
    }

    /// Let a sequence without tokens share with those of this scope only.
    pub fn set_scope(&mut self, id: HoldingId, scope: Chain) {
        self.truncate(id, 0);
        self.holding_mut(id).empty = Some(scope);
    }

    /// End a sequence.
    pub fn close(&mut self, id: HoldingId) {
        self.truncate(id, 0);
        self.holdings.free.push(id);
    }

    /// Tokens whose keys and values are in the blocks of a sequence. The others must be computed anew.
    pub fn len(&self, id: HoldingId) -> usize {
        self.holding(id).len
    }

    /// The blocks of a sequence: those of its tokens, then those that are reserved.
    pub fn of(&self, id: HoldingId) -> &[BlockId] {
        &self.holding(id).blocks
    }

    /// Add as many of the tokens that come next as full blocks hold that were computed before. Returns how many.
    pub fn reuse(&mut self, id: HoldingId, next: &[i32]) -> usize {
        let (size, start) = (self.block_size(), self.len(id));
        if !start.is_multiple_of(size) || self.holding(id).chains.len() < start / size {
            return 0;
        }
        let mut count = 0;
        for tokens in next.chunks_exact(size) {
            let Some((block, chain)) = self.find(self.chain(id), tokens) else { break };
            if count == 0 {
                self.release_behind(id, start); // what is reserved
            }
            let holding = self.holding_mut(id);
            holding.blocks.push(block);
            holding.chains.push(chain);
            holding.len += size;
            count += size;
        }
        count
    }

    /// Reserve blocks that nobody else uses for the tokens up to index `end`. What is to be copied for that is added
    /// to the copies. Returns false, and changes nothing, if there are not enough blocks.
    pub fn reserve(&mut self, id: HoldingId, end: usize) -> bool {
        let (size, len) = (self.block_size(), self.len(id));
        if self.missing(id, end) > self.available() {
            return false;
        }
        let tokens = len % size;
        if tokens > 0 && end > len {
            let from = self.of(id)[len / size];
            if self.is_shared(from) {
                let to = self.take().expect("enough blocks are available");
                self.copies.push(BlockCopy { from, to, tokens });
                self.release(from);
                self.holding_mut(id).blocks[len / size] = to;
            } else {
                self.forget(from); // nobody must find what is written over
            }
        }
        while self.of(id).len() * size < end {
            let block = self.take().expect("enough blocks are available");
            self.holding_mut(id).blocks.push(block);
        }
        true
    }

    /// Blocks that a sequence must take to have its tokens up to index `end`.
    pub fn missing(&self, id: HoldingId, end: usize) -> usize {
        let (size, Holding { blocks, len, .. }) = (self.block_size(), self.holding(id));
        let copied = !len.is_multiple_of(size) && end > *len && self.is_shared(blocks[len / size]);
        end.div_ceil(size).saturating_sub(blocks.len()) + usize::from(copied)
    }

    /// A pass over a sequence begins. Until it ends, nobody takes its blocks.
    pub fn run(&mut self, id: HoldingId) {
        self.holding_mut(id).runs = true;
    }

    /// A pass has computed the tokens of a sequence up to index `end`.
    pub fn ran(&mut self, id: HoldingId, end: usize) {
        let holding = self.holding_mut(id);
        (holding.len, holding.runs) = (end.max(holding.len), false);
    }

    /// A pass over a sequence has failed.
    pub fn failed(&mut self, id: HoldingId) {
        self.holding_mut(id).runs = false;
    }

    /// Set all sequences back, because what their blocks hold is not known any more.
    pub fn lose_all(&mut self) {
        self.all().for_each(|id| self.set_back(id));
    }

    /// Take all blocks from a sequence. Its tokens have to be computed anew.
    pub(super) fn set_back(&mut self, id: HoldingId) {
        self.truncate(id, 0);
    }

    /// All sequences, also those that have ended, which have no blocks.
    pub(super) fn all(&self) -> impl Iterator<Item = HoldingId> + use<> {
        (0..self.holdings.holdings.len() as u32).map(HoldingId)
    }

    /// The age of a sequence's session.
    pub(super) fn age(&self, id: HoldingId) -> u64 {
        self.holding(id).age
    }

    /// When a pass of a sequence was last admitted, unless it rests since.
    pub(super) fn used(&self, id: HoldingId) -> Option<Instant> {
        self.holding(id).used
    }

    /// A pass of a sequence is admitted.
    pub(super) fn touch(&mut self, id: HoldingId, now: Instant) {
        self.holding_mut(id).used = Some(now);
    }

    /// No pass of a sequence comes soon, so its blocks may go to any other one.
    pub fn rest(&mut self, id: HoldingId) {
        self.holding_mut(id).used = None;
    }

    /// Whether a pass is running over a sequence.
    pub(super) fn is_running(&self, id: HoldingId) -> bool {
        self.holding(id).runs
    }

    /// Let other sequences find the full blocks of the first tokens of a sequence.
    pub fn publish_first(&mut self, id: HoldingId, tokens: &[i32]) {
        let size = self.block_size();
        let full = tokens[..tokens.len().min(self.len(id))].chunks_exact(size);
        for (index, tokens) in full.enumerate().skip(self.holding(id).chains.len()) {
            let block = self.of(id)[index];
            let before = match index {
                0 => self.empty(id),
                index => self.holding(id).chains[index - 1],
            };
            let chain = self.publish(block, before, tokens);
            self.holding_mut(id).chains.push(chain);
        }
    }

    /// Forget the tokens of a sequence from index `len` on, and what is reserved.
    pub fn truncate(&mut self, id: HoldingId, len: usize) {
        let size = self.block_size();
        let holding = self.holding_mut(id);
        holding.len = holding.len.min(len);
        holding.chains.truncate(holding.len / size);
        self.release_behind(id, len);
    }

    /// Let a sequence share the blocks of another one. Returns its number.
    pub fn fork(&mut self, id: HoldingId, age: u64) -> HoldingId {
        let size = self.block_size();
        let fork = self.open(self.empty(id), age);
        let len = self.len(id);
        for index in 0..len.div_ceil(size) {
            let block = self.of(id)[index];
            self.share(block);
            self.holding_mut(fork).blocks.push(block);
        }
        let (from, to) = (id.0 as usize, fork.0 as usize);
        let [from, to] = self.holdings.holdings.get_disjoint_mut([from, to]).expect("a fork is another holding");
        to.chains.extend_from_slice(&from.chains);
        (to.len, to.used) = (len, from.used);
        fork
    }

    /// Release the blocks behind `len` tokens, the last ones first, so that the first ones are used more recently.
    fn release_behind(&mut self, id: HoldingId, len: usize) {
        let kept = self.holding(id).len.min(len).div_ceil(self.block_size());
        while self.of(id).len() > kept {
            let block = self.holding_mut(id).blocks.pop().expect("there are more than are kept");
            self.release(block);
        }
    }

    /// The chain of all tokens of a sequence, which end with a block and are published.
    fn chain(&self, id: HoldingId) -> Chain {
        self.holding(id).chains.last().copied().unwrap_or_else(|| self.empty(id))
    }

    fn empty(&self, id: HoldingId) -> Chain {
        self.holding(id).empty.expect("the sequence was begun")
    }

    fn holding(&self, id: HoldingId) -> &Holding {
        &self.holdings.holdings[id.0 as usize]
    }

    fn holding_mut(&mut self, id: HoldingId) -> &mut Holding {
        &mut self.holdings.holdings[id.0 as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::packed::pool::Pool;

    const SIZE: usize = 4;

    fn begin(blocks: &mut Blocks, tokens: &[i32]) -> HoldingId {
        let id = blocks.open(Chain::EMPTY, 0);
        let reused = blocks.reuse(id, &tokens[..tokens.len() - 1]);
        assert!(blocks.reserve(id, tokens.len()));
        assert!(blocks.copies.is_empty() && reused.is_multiple_of(SIZE));
        blocks.ran(id, tokens.len());
        blocks.publish_first(id, tokens);
        id
    }

    #[test]
    fn what_was_computed_is_reused() {
        let pool = Pool::new(SIZE, 9);
        let mut blocks = pool.lock();
        let tokens: Vec<i32> = (0..10).collect();
        let first = begin(&mut blocks, &tokens);
        let second = begin(&mut blocks, &[&tokens[..9], &[77]].concat());
        assert_eq!(blocks.of(first)[..2], blocks.of(second)[..2]);
        assert_ne!(blocks.of(first)[2], blocks.of(second)[2]);
        assert_eq!(blocks.used_and_idle(), (4, 0));
        blocks.close(first);
        assert_eq!(blocks.used_and_idle(), (3, 0));
        blocks.close(second);
        assert_eq!(blocks.used_and_idle(), (0, 2), "full blocks are kept");
        let third = begin(&mut blocks, &tokens[..8]);
        assert_eq!(blocks.used_and_idle(), (2, 1), "the row of the last token needs a pass");
        blocks.truncate(third, 5);
        assert_eq!(blocks.used_and_idle(), (2, 1));
        blocks.truncate(third, 4);
        assert_eq!(blocks.used_and_idle(), (1, 1), "the same tokens are kept once");
        let scope = blocks.scope("tenant");
        let other = blocks.open(scope, 0);
        assert_eq!(blocks.reuse(other, &tokens), 0, "another scope");
    }

    #[test]
    fn a_shared_block_is_copied_before_it_is_written_to() {
        let pool = Pool::new(SIZE, 4);
        let mut blocks = pool.lock();
        let tokens: Vec<i32> = (0..8).collect();
        let own = begin(&mut blocks, &tokens);
        let fork = blocks.fork(own, 1);
        assert_eq!((blocks.of(own), blocks.len(fork)), (blocks.of(fork), 8));
        blocks.truncate(fork, 6);
        let shared = blocks.of(own)[1];
        assert_eq!(blocks.missing(fork, 7), 1);
        assert!(blocks.reserve(fork, 7));
        let copy = blocks.of(fork)[1];
        assert_ne!(copy, shared);
        assert!(blocks.copies().eq([BlockCopy { from: shared, to: copy, tokens: 2 }]));
        blocks.truncate(own, 7);
        assert!(blocks.reserve(own, 9), "nobody else uses it any more");
        assert_eq!((blocks.copies.len(), blocks.of(own)[1]), (0, shared));
        blocks.close(own);
        let again = blocks.open(Chain::EMPTY, 0);
        assert_eq!(blocks.reuse(again, &tokens), 4, "nobody finds what was written over");
    }

    #[test]
    fn without_enough_blocks_nothing_changes() {
        let pool = Pool::new(SIZE, 3);
        let mut blocks = pool.lock();
        let id = begin(&mut blocks, &[1, 2, 3, 4, 5]);
        let before = blocks.of(id).to_vec();
        assert!(!blocks.reserve(id, 13));
        assert_eq!((blocks.of(id), blocks.len(id), blocks.copies.len()), (&before[..], 5, 0));
        assert!(blocks.reserve(id, 12));
        let fork = blocks.fork(id, 1);
        assert_eq!(blocks.of(fork).len(), 2, "what is reserved is not shared");
        assert!(!blocks.reserve(fork, 6), "no room for a copy");
        blocks.truncate(id, 5);
        assert!(blocks.reserve(fork, 6));
        assert_eq!(blocks.copies.len(), 1);
    }
}
