//! What a packed pass is over: the tokens of several sequences, and the blocks that hold theirs.

use std::ops::Range;

use super::pool::BlockId;

/// A pass over the tokens of several sequences, which lie one behind another.
#[derive(Debug)]
pub struct Layout {
    /// The tokens of all sequences.
    pub tokens: Vec<i64>,
    /// By token: its position in its sequence.
    pub positions: Vec<i64>,
    /// The indices of the tokens whose rows are wanted. At least one, because an empty matrix is not for every
    /// operator.
    pub rows: Vec<i64>,
    /// The sequences, in the order of their tokens.
    pub parts: Vec<Part>,
    /// The blocks of all sequences, one behind another.
    pub blocks: Vec<BlockId>,
}

/// One sequence's part of a pass.
#[derive(Debug, Clone)]
pub struct Part {
    /// The index of its first token in the pass.
    pub first: usize,
    /// Its tokens in the pass; at least one.
    pub width: usize,
    /// Its tokens before the pass.
    pub past: usize,
    /// Where its blocks are in [`Layout::blocks`]. They hold all its tokens, those of the pass included.
    pub blocks: Range<usize>,
}

/// Tokens, and blocks, for which there is memory from the beginning.
const USUAL: usize = 4096;

impl Default for Layout {
    fn default() -> Self {
        Layout {
            tokens: Vec::with_capacity(USUAL),
            positions: Vec::with_capacity(USUAL),
            rows: Vec::with_capacity(USUAL),
            parts: Vec::with_capacity(USUAL),
            blocks: Vec::with_capacity(USUAL),
        }
    }
}

impl Layout {
    /// Begin a new pass.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.rows.clear();
        self.parts.clear();
        self.blocks.clear();
    }

    /// Add a sequence with these tokens behind `past` others, in these blocks. Rows of the tokens from index `wanted`
    /// of `tokens` on are wanted.
    pub fn add(&mut self, tokens: &[i32], past: usize, wanted: usize, blocks: &[BlockId]) {
        let (first, begin) = (self.tokens.len(), self.blocks.len());
        self.tokens.extend(tokens.iter().map(|&token| i64::from(token)));
        self.positions.extend(past as i64..(past + tokens.len()) as i64);
        self.rows.extend((first + wanted) as i64..(first + tokens.len()) as i64);
        self.blocks.extend_from_slice(blocks);
        self.parts.push(Part { first, width: tokens.len(), past, blocks: begin..self.blocks.len() });
    }

    /// All sequences are added. Returns whether there is anything to run.
    pub fn finish(&mut self) -> bool {
        if self.rows.is_empty() && !self.tokens.is_empty() {
            self.rows.push(self.tokens.len() as i64 - 1);
        }
        !self.tokens.is_empty()
    }
}
