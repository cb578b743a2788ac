//! What a packed pass tells the attention operators: which tokens are whose, and where their keys and values are.

/// Tokens of a block. Keys and values of a sequence are kept in blocks of this many tokens, through all layers.
pub const BLOCK: usize = 32;

/// One layer's part of a block, in units of four bytes.
///
/// Keys are transposed, `[kv_heads, head_size, BLOCK]`, so that a query is multiplied with all keys of a block at once.
/// Values are `[kv_heads, BLOCK, head_size]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerPart {
    /// Where the keys begin in the block.
    pub keys: usize,
    /// Where the values begin in the block.
    pub values: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_size: usize,
}

/// One sequence's share of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Share {
    /// The index of its first token in the pass.
    pub first: usize,
    /// Its tokens in the pass; at least one.
    pub width: usize,
    /// Its tokens before the pass.
    pub past: usize,
    /// The addresses of its blocks, the first tokens first. There are enough for `past + width` tokens. No other share
    /// may have a block into which this pass writes.
    pub blocks: *const *mut f32,
}

/// A pass over the tokens of several sequences, which lie one behind another.
///
/// Operators get its address as an input, so it must stay in place until the pass has ended.
#[derive(Debug)]
pub struct PassTable {
    /// All tokens of the pass.
    pub tokens: usize,
    /// The sequences, in the order of their tokens.
    pub shares: Vec<Share>,
    /// By layer: where it keeps its part of a block.
    pub layers: Vec<LayerPart>,
}
