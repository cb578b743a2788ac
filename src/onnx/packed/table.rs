//! What a packed pass tells the attention operators: which tokens are whose, and where their keys and values are.

/// Tokens of a block. Keys and values of a sequence are kept in blocks of this many tokens, through all layers.
pub const BLOCK_TOKENS: usize = 32;

/// Parts of a block begin at multiples of this many units, which is a cache line.
const ALIGNED: usize = 16;

/// One layer's part of a block, in units of four bytes.
///
/// Keys are transposed, `[kv_heads, head_size, BLOCK_TOKENS]`, so that a query is multiplied with all keys of a block
/// at once. Values are `[kv_heads, BLOCK_TOKENS, head_size]`.
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

impl LayerPart {
    /// The parts of layers with these heads of keys and values and sizes of a head, one behind another in a block.
    pub fn lay_out(layers: &[(usize, usize)]) -> Vec<Self> {
        let mut end = 0;
        let part = |&(kv_heads, head_size): &(usize, usize)| {
            let size = (kv_heads * head_size * BLOCK_TOKENS).next_multiple_of(ALIGNED);
            let part = LayerPart { keys: end, values: end + size, kv_heads, head_size };
            end += 2 * size;
            part
        };
        layers.iter().map(part).collect()
    }

    /// Where it ends in the block.
    pub fn end(&self) -> usize {
        self.values + (self.kv_heads * self.head_size * BLOCK_TOKENS).next_multiple_of(ALIGNED)
    }

    /// Copy the first `tokens` tokens of a block to another one.
    ///
    /// # Safety
    /// Both blocks must have this part, and no other thread may write to either.
    pub unsafe fn copy(&self, from: *const f32, to: *mut f32, tokens: usize) {
        for head in 0..self.kv_heads {
            for row in 0..self.head_size {
                let place = self.keys + (head * self.head_size + row) * BLOCK_TOKENS;
                // SAFETY: the keys of a head have `head_size` rows of `BLOCK_TOKENS` tokens.
                unsafe { from.add(place).copy_to_nonoverlapping(to.add(place), tokens) };
            }
            let place = self.values + head * BLOCK_TOKENS * self.head_size;
            // SAFETY: the values of a head have `BLOCK_TOKENS` rows of `head_size`.
            unsafe { from.add(place).copy_to_nonoverlapping(to.add(place), tokens * self.head_size) };
        }
    }
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

// SAFETY: the addresses are read during a pass only, while the owner of the blocks waits for it.
unsafe impl Send for Share {}
// SAFETY: as above.
unsafe impl Sync for Share {}

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
