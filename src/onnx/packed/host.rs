//! The memory of blocks on the host.

use memmap2::{MmapMut, MmapOptions};

use super::pool::{BlockCopy, BlockId};
use super::table::LayerPart;
use crate::error::{Error, Result};
use crate::export::parts::LayerShape;

/// The memory of blocks on the host. A block stays where it is.
pub struct HostBlocks {
    layers: Vec<LayerPart>,
    /// Bytes of a block.
    bytes: usize,
    /// The system gives a page of it when it is first written to.
    memory: MmapMut,
}

/// Each layer's part of a block.
pub fn parts(layers: &[LayerShape]) -> Vec<LayerPart> {
    let heads: Vec<_> = layers.iter().map(|layer| (layer.kv_heads, layer.head_size)).collect();
    LayerPart::lay_out(&heads)
}

/// Bytes of a block through all layers.
pub fn block_bytes(layers: &[LayerShape]) -> usize {
    bytes_of(&parts(layers))
}

fn bytes_of(layers: &[LayerPart]) -> usize {
    4 * layers.iter().map(LayerPart::end).max().unwrap_or(1).max(1)
}

impl HostBlocks {
    /// Addresses for so many blocks, each of which has these parts. Memory is taken as it is used.
    pub fn new(layers: &[LayerPart], count: usize) -> Result<Self> {
        let bytes = bytes_of(layers);
        let length = bytes.saturating_mul(count.max(1));
        let memory = MmapOptions::new().len(length).no_reserve_swap().map_anon().map_err(|error| {
            Error::Config(format!("cannot reserve {length} bytes of cache: {error}; set a smaller cache_bytes"))
        })?;
        Ok(HostBlocks { layers: layers.to_vec(), bytes, memory })
    }

    /// Where a block is.
    pub fn address(&mut self, block: BlockId) -> *mut f32 {
        self.memory[block.0 as usize * self.bytes..][..self.bytes].as_mut_ptr().cast()
    }

    /// Copy the first tokens of a block to another one. No pass may be running.
    pub fn copy(&mut self, BlockCopy { from, to, tokens }: BlockCopy) {
        let (from, to) = (self.address(from), self.address(to));
        for layer in &self.layers {
            // SAFETY: both blocks have all parts of all layers, and only passes use them meanwhile.
            unsafe { layer.copy(from, to, tokens) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::packed::table::BLOCK_TOKENS;

    #[test]
    fn the_first_tokens_of_all_layers_are_copied() {
        let layers = LayerPart::lay_out(&[(1, 8), (2, 16)]);
        let mut memory = HostBlocks::new(&layers, 2).unwrap();
        let (from, to) = (memory.address(BlockId(0)), memory.address(BlockId(1)));
        let units = bytes_of(&layers) / 4;
        // SAFETY: a block has so many units.
        let (from, to) = unsafe { (std::slice::from_raw_parts_mut(from, units), to) };
        from.fill(1.0);
        memory.copy(BlockCopy { from: BlockId(0), to: BlockId(1), tokens: 3 });
        // SAFETY: as above.
        let copied = unsafe { std::slice::from_raw_parts(to, units) };
        assert_eq!(copied.iter().sum::<f32>(), (2 * 3 * (8 + 2 * 16)) as f32);
        assert_eq!((copied[2], copied[3], copied[BLOCK_TOKENS], copied[BLOCK_TOKENS + 3]), (1.0, 0.0, 1.0, 0.0));
    }
}
