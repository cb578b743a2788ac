//! Which blocks of keys and values are free, shared, or kept for others: numbers only, wherever the memory is.
//!
//! A block holds the same number of tokens of one sequence through all layers. Sequences that begin with the same
//! tokens share blocks: a block is found by its tokens and by the blocks before it, so what is found is what would be
//! computed. A block that nobody uses any more is kept until it is needed; the one that was used least recently goes
//! first. Which sequence has which blocks is in [`holding`](super::holding).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, RandomState};

use parking_lot::{Mutex, MutexGuard};

use super::block::Holdings;
pub use super::block::{BlockCopy, BlockId, Chain};

/// Most blocks for which the index has memory from the beginning, so that steps do not allocate it.
const INDEXED: usize = 1 << 12;

/// The numbers of empty chains of scopes have this bit.
const SCOPE: u128 = 1 << 127;

/// The blocks of a model.
pub struct Pool {
    blocks: Mutex<Blocks>,
}

/// The blocks of a model, locked.
pub struct Blocks {
    /// Tokens of a block.
    size: usize,
    /// Most blocks.
    limit: usize,
    states: Vec<BlockState>,
    /// By block: its tokens, if it is known.
    tokens: Vec<i32>,
    /// Blocks without tokens, of the numbers given so far.
    free: Vec<BlockId>,
    /// Full blocks, by a hash of what they hold. Of two with one hash, only the first is known.
    known: HashMap<u64, BlockId>,
    hasher: RandomState,
    /// For the numbers of scopes.
    scopes: [RandomState; 2],
    /// Known blocks that no sequence uses, from the least to the most recently used.
    oldest: Option<BlockId>,
    newest: Option<BlockId>,
    idle: usize,
    next_chain: u128,
    /// To be done before the next pass runs, in this order.
    pub(super) copies: Vec<BlockCopy>,
    pub(super) holdings: Holdings,
}

/// What is known of a block.
#[derive(Debug, Clone, Copy)]
struct BlockState {
    /// Sequences that use it.
    users: u32,
    /// What it holds, if others may find it.
    held: Option<Content>,
    /// Its neighbours among the idle blocks.
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

#[derive(Debug, Clone, Copy)]
struct Content {
    hash: u64,
    before: Chain,
    chain: Chain,
}

impl Pool {
    /// A pool of at most `limit` blocks of `size` tokens.
    pub fn new(size: usize, limit: usize) -> Self {
        let indexed = limit.min(INDEXED);
        Pool {
            blocks: Mutex::new(Blocks {
                size,
                limit: limit.min(u32::MAX as usize),
                states: Vec::with_capacity(indexed),
                tokens: Vec::with_capacity(indexed * size),
                free: Vec::with_capacity(indexed),
                known: HashMap::with_capacity(indexed),
                hasher: RandomState::new(),
                scopes: [RandomState::new(), RandomState::new()],
                oldest: None,
                newest: None,
                idle: 0,
                next_chain: 1,
                copies: Vec::new(),
                holdings: Holdings::default(),
            }),
        }
    }

    /// Lock it for a few changes.
    pub fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock()
    }
}

impl Blocks {
    /// Tokens of a block.
    pub fn block_size(&self) -> usize {
        self.size
    }

    /// Blocks that sequences use, and blocks that are kept for others.
    #[cfg(test)]
    pub fn used_and_idle(&self) -> (usize, usize) {
        (self.states.len() - self.free.len() - self.idle, self.idle)
    }

    /// Blocks that can be taken.
    pub fn available(&self) -> usize {
        self.limit - self.states.len() + self.free.len() + self.idle
    }

    /// The empty chain of a scope. Sequences of different scopes share nothing: two of them have the same number with
    /// a probability of 2^-127, which nobody can raise who does not know the keys of the hash.
    pub fn scope(&self, name: &str) -> Chain {
        if name.is_empty() {
            return Chain::EMPTY;
        }
        let [high, low] = self.scopes.each_ref().map(|scope| u128::from(scope.hash_one(name)));
        Chain(SCOPE | high << 64 | low)
    }

    /// What is to be copied before the next pass runs, in this order.
    pub fn copies(&mut self) -> impl Iterator<Item = BlockCopy> + '_ {
        self.copies.drain(..)
    }

    /// A block for new tokens, with one user; `None` if sequences use all blocks.
    pub(super) fn take(&mut self) -> Option<BlockId> {
        let block = match self.free.pop() {
            Some(block) => block,
            None if self.states.len() < self.limit => self.give(),
            None => self.forget_oldest()?,
        };
        self.state(block).users = 1;
        Some(block)
    }

    /// One more user of a block.
    pub(super) fn share(&mut self, block: BlockId) {
        if self.state(block).users == 0 {
            self.unlink(block);
        }
        self.state(block).users += 1;
    }

    /// One user less. A block without users is kept if it is known, and freed otherwise.
    pub(super) fn release(&mut self, block: BlockId) {
        let state = self.state(block);
        state.users -= 1;
        match (state.users, state.held) {
            (0, Some(_)) => self.link(block),
            (0, None) => self.free.push(block),
            _ => {}
        }
    }

    /// How many sequences use a block.
    pub(super) fn users(&self, block: BlockId) -> usize {
        self.states[block.0 as usize].users as usize
    }

    /// Whether several sequences use a block.
    pub(super) fn is_shared(&self, block: BlockId) -> bool {
        self.users(block) > 1
    }

    /// The block that holds these tokens behind a chain, with one user more, and the chain that ends with it.
    pub(super) fn find(&mut self, before: Chain, tokens: &[i32]) -> Option<(BlockId, Chain)> {
        let (block, chain) = self.look_up(before, tokens).ok()?;
        self.share(block);
        Some((block, chain))
    }

    /// Let others find a full block, unless they find its tokens in another one. Returns the chain that ends with it.
    pub(super) fn publish(&mut self, block: BlockId, before: Chain, tokens: &[i32]) -> Chain {
        let hash = match self.look_up(before, tokens) {
            Ok((_, chain)) => return chain,
            Err(hash) => hash,
        };
        let chain = Chain(self.next_chain);
        self.next_chain += 1;
        if let Entry::Vacant(place) = self.known.entry(hash) {
            place.insert(block);
            self.state(block).held = Some(Content { hash, before, chain });
            self.tokens[block.0 as usize * self.size..][..self.size].copy_from_slice(tokens);
        }
        chain
    }

    /// Let nobody find a block any more.
    pub(super) fn forget(&mut self, block: BlockId) {
        if let Some(held) = self.state(block).held.take() {
            self.known.remove(&held.hash);
        }
    }

    /// The known block that holds these tokens behind a chain, or else their hash.
    fn look_up(&self, before: Chain, tokens: &[i32]) -> Result<(BlockId, Chain), u64> {
        let hash = self.hasher.hash_one((before, tokens));
        let block = *self.known.get(&hash).ok_or(hash)?;
        let held = self.states[block.0 as usize].held.filter(|held| held.before == before).ok_or(hash)?;
        let is_same = self.tokens[block.0 as usize * self.size..][..self.size] == *tokens;
        if is_same { Ok((block, held.chain)) } else { Err(hash) }
    }

    fn state(&mut self, block: BlockId) -> &mut BlockState {
        &mut self.states[block.0 as usize]
    }

    /// Give the next number.
    fn give(&mut self) -> BlockId {
        let block = BlockId(self.states.len() as u32);
        self.states.push(BlockState { users: 0, held: None, older: None, newer: None });
        self.tokens.resize(self.states.len() * self.size, 0);
        block
    }

    /// The idle block that was used least recently, free now.
    fn forget_oldest(&mut self) -> Option<BlockId> {
        let block = self.oldest?;
        self.unlink(block);
        self.forget(block);
        Some(block)
    }

    /// Make a block the newest idle one.
    fn link(&mut self, block: BlockId) {
        let newest = self.newest.replace(block);
        (self.state(block).older, self.state(block).newer) = (newest, None);
        match newest {
            Some(newest) => self.state(newest).newer = Some(block),
            None => self.oldest = Some(block),
        }
        self.idle += 1;
    }

    /// Take a block out of the idle ones.
    fn unlink(&mut self, block: BlockId) {
        let BlockState { older, newer, .. } = *self.state(block);
        match older {
            Some(older) => self.state(older).newer = newer,
            None => self.oldest = newer,
        }
        match newer {
            Some(newer) => self.state(newer).older = older,
            None => self.newest = older,
        }
        self.idle -= 1;
    }

    /// Let a known block have the hash of these tokens.
    #[cfg(test)]
    fn collide(&mut self, block: BlockId, before: Chain, tokens: &[i32]) {
        let hash = self.hasher.hash_one((before, tokens));
        let held = self.state(block).held.as_mut().expect("the block is known");
        let old = std::mem::replace(&mut held.hash, hash);
        self.known.remove(&old);
        self.known.insert(hash, block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: usize = 4;

    fn tokens(first: i32) -> [i32; SIZE] {
        std::array::from_fn(|index| first + index as i32)
    }

    #[test]
    fn idle_blocks_go_first_and_blocks_in_use_never() {
        let pool = Pool::new(SIZE, 3);
        let mut blocks = pool.lock();
        let empty = Chain::EMPTY;
        assert_eq!(blocks.available(), 3);
        let taken: Vec<BlockId> = (0..3).map(|_| blocks.take().unwrap()).collect();
        assert_eq!((blocks.take(), blocks.available()), (None, 0));
        let first = blocks.publish(taken[0], empty, &tokens(0));
        blocks.publish(taken[1], first, &tokens(1));
        for &block in taken.iter().rev() {
            blocks.release(block); // the last one is free, the one behind the first is older than the first
        }
        assert_eq!((blocks.used_and_idle(), blocks.available()), ((0, 2), 3));
        assert_eq!(blocks.take(), Some(taken[2]));
        assert_eq!(blocks.take(), Some(taken[1]), "least recently used");
        assert_eq!(blocks.find(first, &tokens(1)), None);
        assert_eq!(blocks.find(empty, &tokens(0)), Some((taken[0], first)));
        assert_eq!(blocks.take(), None, "a block in use does not go");
        assert_eq!(blocks.used_and_idle(), (3, 0));
    }

    #[test]
    fn blocks_are_found_by_all_tokens_before_them_and_by_scope() {
        let pool = Pool::new(SIZE, 9);
        let mut blocks = pool.lock();
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        let other = blocks.scope("other");
        assert!(other == blocks.scope("other") && other != blocks.scope("another") && other != blocks.scope(""));
        let after_a = blocks.publish(a, Chain::EMPTY, &tokens(0));
        let after_b = blocks.publish(b, Chain::EMPTY, &tokens(50));
        assert_ne!(after_a, after_b);
        let c = blocks.take().unwrap();
        blocks.publish(c, after_a, &tokens(7));
        assert!(blocks.find(after_a, &tokens(7)).is_some());
        assert_eq!(blocks.find(after_b, &tokens(7)), None, "behind other tokens");
        assert_eq!(blocks.find(Chain::EMPTY, &tokens(7)), None);
        assert_eq!(blocks.find(other, &tokens(0)), None, "another scope");
        let again = blocks.take().unwrap();
        assert_eq!(blocks.publish(again, Chain::EMPTY, &tokens(0)), after_a, "the same tokens, computed twice");
    }

    #[test]
    fn other_tokens_of_the_same_hash_are_not_found() {
        let pool = Pool::new(SIZE, 9);
        let mut blocks = pool.lock();
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        let after_a = blocks.publish(a, Chain::EMPTY, &tokens(0));
        blocks.collide(a, Chain::EMPTY, &tokens(50));
        assert_eq!(blocks.find(Chain::EMPTY, &tokens(50)), None);
        blocks.collide(a, after_a, &tokens(0));
        assert_eq!(blocks.find(after_a, &tokens(0)), None, "behind another chain");
        assert_ne!(blocks.publish(b, after_a, &tokens(0)), after_a);
        blocks.release(b);
        assert_eq!(blocks.used_and_idle(), (1, 0), "what cannot be found is not kept");
    }
}
