//! Blocks of keys and values, by their numbers, and the lists of those that sequences have.

use std::time::Instant;

/// A block, by its number. Numbers are given from 0 on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockId(pub u32);

/// What the tokens of a chain of full blocks are, as a number that no other chain has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chain(pub(super) u128);

impl Chain {
    /// The empty chain of sequences without a scope.
    pub const EMPTY: Chain = Chain(0);
}

/// The first tokens of a block are to be copied to another one, before the next pass runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    pub from: BlockId,
    pub to: BlockId,
    /// How many tokens; at least one, and fewer than a block has.
    pub tokens: usize,
}

/// The blocks of a sequence, by their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HoldingId(pub(super) u32);

/// The blocks of all sequences of a model.
#[derive(Default)]
pub struct Holdings {
    pub(super) holdings: Vec<Holding>,
    /// Those that no sequence has.
    pub(super) free: Vec<HoldingId>,
}

/// The blocks of a sequence.
#[derive(Debug, Default)]
pub(super) struct Holding {
    /// Those of its tokens, and those that are reserved for a pass.
    pub(super) blocks: Vec<BlockId>,
    /// By full block, as far as published: the chain that ends with it.
    pub(super) chains: Vec<Chain>,
    /// The empty chain of its scope.
    pub(super) empty: Option<Chain>,
    /// Tokens whose keys and values are in the blocks.
    pub(super) len: usize,
    /// The less, the longer its session exists.
    pub(super) age: u64,
    /// When its last pass was admitted.
    pub(super) used: Option<Instant>,
    /// Whether a pass reads and writes its blocks.
    pub(super) runs: bool,
}
