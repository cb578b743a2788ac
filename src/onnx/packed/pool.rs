//! Blocks of keys and values, shared by the sequences of a model.
//!
//! A block holds [`BLOCK`] tokens of one sequence through all layers. Sequences that begin with the same tokens share
//! blocks: a block is found by its tokens and by the block before it, so what is found is what would be computed. A
//! block that nobody uses any more is kept until its memory is needed; the one that was used least recently goes first.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use super::table::{BLOCK, LayerPart};
use crate::error::{Error, Result};

/// Memory is taken from the system in pieces of about this many bytes.
const SLAB_BYTES: usize = 16 << 20;

/// A block, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockId(u32);

/// What the tokens of a chain of full blocks are, as a number that no other chain has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chain(u64);

impl Chain {
    /// The empty chain of a scope. Sequences of different scopes share nothing.
    pub fn empty(scope: u32) -> Self {
        Chain(u64::from(scope))
    }
}

/// The first number of chains that are not empty.
const FIRST_CHAIN: u64 = 1 << 32;

/// The blocks of a model.
pub struct Pool {
    blocks: Mutex<Blocks>,
}

/// The blocks of a model, locked.
pub struct Blocks {
    /// Units of four bytes in a block.
    units: usize,
    per_slab: usize,
    slabs: Vec<Vec<u32>>,
    /// Most blocks.
    limit: usize,
    states: Vec<BlockState>,
    /// Blocks without tokens.
    free: Vec<BlockId>,
    /// Full blocks, by what they hold.
    known: HashMap<(Chain, [i32; BLOCK]), BlockId>,
    /// Known blocks that no sequence uses, from the least to the most recently used.
    oldest: Option<BlockId>,
    newest: Option<BlockId>,
    idle: usize,
    next_chain: u64,
}

/// What is known of a block.
#[derive(Debug, Clone, Copy)]
struct BlockState {
    /// Sequences that use it.
    users: u32,
    /// What it holds, if others may find it.
    held: Option<Held>,
    /// Its neighbours among the idle blocks.
    older: Option<BlockId>,
    newer: Option<BlockId>,
}

#[derive(Debug, Clone, Copy)]
struct Held {
    before: Chain,
    tokens: [i32; BLOCK],
    chain: Chain,
}

impl Pool {
    /// An empty pool. It takes at most `limit_bytes` from the system.
    pub fn new(layers: &[LayerPart], limit_bytes: usize) -> Self {
        let units = layers.iter().map(LayerPart::end).max().unwrap_or(1).max(1);
        let per_slab = (SLAB_BYTES / (4 * units)).max(1);
        Pool {
            blocks: Mutex::new(Blocks {
                units,
                per_slab,
                slabs: Vec::new(),
                limit: (limit_bytes / (4 * units)).min(u32::MAX as usize),
                states: Vec::new(),
                free: Vec::new(),
                known: HashMap::new(),
                oldest: None,
                newest: None,
                idle: 0,
                next_chain: FIRST_CHAIN,
            }),
        }
    }

    /// Lock it for a few changes.
    pub fn lock(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock()
    }
}

impl Blocks {
    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        4 * self.units
    }

    /// Blocks that hold something: those in use, and those that are kept for others.
    pub fn used_and_idle(&self) -> (usize, usize) {
        (self.states.len() - self.free.len() - self.idle, self.idle)
    }

    /// Where a block is. It stays there as long as the pool.
    pub fn address(&mut self, block: BlockId) -> *mut f32 {
        let (slab, place) = (block.0 as usize / self.per_slab, block.0 as usize % self.per_slab);
        self.slabs[slab][place * self.units..].as_mut_ptr().cast()
    }

    /// A block for new tokens, with one user.
    pub fn take(&mut self) -> Result<BlockId> {
        if self.free.is_empty() && !self.grow()? {
            self.forget_oldest()?;
        }
        let block = self.free.pop().expect("a block was freed or added");
        self.state(block).users = 1;
        Ok(block)
    }

    /// One more user of a block.
    pub fn share(&mut self, block: BlockId) {
        if self.state(block).users == 0 {
            self.unlink(block);
        }
        self.state(block).users += 1;
    }

    /// One user less. A block without users is kept if it is known, and freed otherwise.
    pub fn release(&mut self, block: BlockId) {
        let state = self.state(block);
        state.users -= 1;
        match (state.users, state.held) {
            (0, Some(_)) => self.link(block),
            (0, None) => self.free.push(block),
            _ => {}
        }
    }

    /// The block that holds these tokens behind a chain, with one user more, and the chain that ends with it.
    pub fn find(&mut self, before: Chain, tokens: &[i32; BLOCK]) -> Option<(BlockId, Chain)> {
        let block = *self.known.get(&(before, *tokens))?;
        self.share(block);
        self.state(block).held.map(|held| (block, held.chain))
    }

    /// Let others find a full block, unless they find its tokens in another one. Returns the chain that ends with it.
    pub fn publish(&mut self, block: BlockId, before: Chain, tokens: &[i32; BLOCK]) -> Chain {
        if let Some(&other) = self.known.get(&(before, *tokens)) {
            return self.state(other).held.expect("a known block says what it holds").chain;
        }
        let chain = Chain(self.next_chain);
        self.next_chain += 1;
        self.known.insert((before, *tokens), block);
        self.state(block).held = Some(Held { before, tokens: *tokens, chain });
        chain
    }

    /// A block that may be written to, in place of one of which the first `kept` tokens are needed: itself if nobody
    /// else uses it, otherwise a copy.
    pub fn writable(&mut self, block: BlockId, layers: &[LayerPart], kept: usize) -> Result<BlockId> {
        if self.state(block).users == 1 {
            self.forget(block);
            return Ok(block);
        }
        let copy = self.take()?;
        let (from, to) = (self.address(block), self.address(copy));
        for layer in layers {
            // SAFETY: both blocks have all parts of all layers, and nobody writes to either: the copy is ours, and a
            // block with several users is not written to.
            unsafe { layer.copy(from, to, kept) };
        }
        self.release(block);
        Ok(copy)
    }

    fn state(&mut self, block: BlockId) -> &mut BlockState {
        &mut self.states[block.0 as usize]
    }

    /// Let nobody find a block any more.
    fn forget(&mut self, block: BlockId) {
        if let Some(held) = self.state(block).held.take() {
            self.known.remove(&(held.before, held.tokens));
        }
    }

    /// Free the idle block that was used least recently.
    fn forget_oldest(&mut self) -> Result<()> {
        let Some(block) = self.oldest else {
            let bytes = self.limit * self.block_bytes();
            return Err(Error::Runtime(format!(
                "no memory for more tokens: the sequences of the model use all of its {bytes} bytes of cache"
            )));
        };
        self.unlink(block);
        self.forget(block);
        self.free.push(block);
        Ok(())
    }

    /// Add a slab. Returns whether the limit allows that.
    fn grow(&mut self) -> Result<bool> {
        let first = self.states.len();
        let count = self.per_slab.min(self.limit.saturating_sub(first));
        if count == 0 {
            return Ok(false);
        }
        let failed =
            |()| Error::Runtime(format!("not enough memory for {} bytes of cache", 4 * self.per_slab * self.units));
        // Memory that is not written to takes no physical pages.
        let slab = bytemuck::allocation::try_zeroed_vec(self.per_slab * self.units).map_err(failed)?;
        self.slabs.push(slab);
        let state = BlockState { users: 0, held: None, older: None, newer: None };
        self.states.resize(first + count, state);
        self.known.reserve(count);
        self.free.reserve(self.states.len());
        self.free.extend((first..first + count).rev().map(|block| BlockId(block as u32)));
        Ok(true)
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYER: LayerPart = LayerPart { keys: 0, values: 64, kv_heads: 1, head_size: 2 };

    fn pool(blocks: usize) -> Pool {
        Pool::new(&[LAYER], blocks * 4 * LAYER.end())
    }

    fn tokens(first: i32) -> [i32; BLOCK] {
        std::array::from_fn(|index| first + index as i32)
    }

    #[test]
    fn full_memory_is_an_error_and_idle_blocks_go_first() {
        let pool = pool(3);
        let mut blocks = pool.lock();
        let empty = Chain::empty(0);
        let taken: Vec<BlockId> = (0..3).map(|_| blocks.take().unwrap()).collect();
        assert!(blocks.take().unwrap_err().to_string().contains("no memory for more tokens"));
        let first = blocks.publish(taken[0], empty, &tokens(0));
        blocks.publish(taken[1], first, &tokens(1));
        for &block in taken.iter().rev() {
            blocks.release(block); // the last one is free, the one behind the first is older than the first
        }
        assert_eq!(blocks.used_and_idle(), (0, 2));
        assert_eq!(blocks.take().unwrap(), taken[2]);
        assert_eq!(blocks.take().unwrap(), taken[1], "least recently used");
        assert_eq!(blocks.find(first, &tokens(1)), None);
        assert_eq!(blocks.find(empty, &tokens(0)), Some((taken[0], first)));
        assert!(blocks.take().is_err(), "a block in use does not go");
        assert_eq!(blocks.used_and_idle(), (3, 0));
    }

    #[test]
    fn blocks_are_found_by_all_tokens_before_them_and_by_scope() {
        let pool = pool(9);
        let mut blocks = pool.lock();
        let (a, b) = (blocks.take().unwrap(), blocks.take().unwrap());
        let after_a = blocks.publish(a, Chain::empty(0), &tokens(0));
        let after_b = blocks.publish(b, Chain::empty(0), &tokens(50));
        assert_ne!(after_a, after_b);
        let c = blocks.take().unwrap();
        blocks.publish(c, after_a, &tokens(7));
        assert!(blocks.find(after_a, &tokens(7)).is_some());
        assert_eq!(blocks.find(after_b, &tokens(7)), None, "behind other tokens");
        assert_eq!(blocks.find(Chain::empty(0), &tokens(7)), None);
        assert_eq!(blocks.find(Chain::empty(1), &tokens(0)), None, "another scope");
        let again = blocks.take().unwrap();
        assert_eq!(blocks.publish(again, Chain::empty(0), &tokens(0)), after_a, "the same tokens, computed twice");
    }

    #[test]
    fn a_shared_block_is_copied_before_it_is_written_to() {
        let pool = pool(9);
        let mut blocks = pool.lock();
        let own = blocks.take().unwrap();
        // SAFETY: the block has this unit.
        unsafe { blocks.address(own).write(4.5) };
        blocks.publish(own, Chain::empty(0), &tokens(0));
        assert_eq!(blocks.writable(own, &[LAYER], 1).unwrap(), own, "nobody else uses it");
        assert_eq!(blocks.find(Chain::empty(0), &tokens(0)), None, "nobody finds what is written over");
        blocks.share(own);
        let copy = blocks.writable(own, &[LAYER], 1).unwrap();
        assert_ne!(copy, own);
        // SAFETY: as above.
        assert_eq!(unsafe { blocks.address(copy).read() }, 4.5);
        assert_eq!(blocks.writable(own, &[LAYER], 1).unwrap(), own, "the copy has left it");
    }
}
