//! The memory of blocks on the host.

use super::pool::{BlockCopy, BlockId};
use super::table::LayerPart;
use crate::error::{Error, Result};

/// Memory is taken from the system in pieces of about this many bytes.
const SLAB_BYTES: usize = 16 << 20;

/// The memory of blocks on the host. A block stays where it is.
pub struct HostBlocks {
    layers: Vec<LayerPart>,
    /// Units of four bytes in a block.
    units: usize,
    per_slab: usize,
    slabs: Vec<Vec<u32>>,
}

impl HostBlocks {
    /// Memory of no blocks, each of which has these parts.
    pub fn new(layers: &[LayerPart]) -> Self {
        let units = layers.iter().map(LayerPart::end).max().unwrap_or(1).max(1);
        let per_slab = (SLAB_BYTES / (4 * units)).max(1);
        HostBlocks { layers: layers.to_vec(), units, per_slab, slabs: Vec::new() }
    }

    /// Bytes of a block.
    pub fn block_bytes(&self) -> usize {
        4 * self.units
    }

    /// Have memory of the blocks with numbers below `count`.
    pub fn grow(&mut self, count: usize) -> Result<()> {
        let bytes = 4 * self.per_slab * self.units;
        let failed = |()| Error::Runtime(format!("not enough memory for {bytes} bytes of cache"));
        while self.slabs.len() * self.per_slab < count {
            // Memory that is not written to takes no physical pages.
            let slab = bytemuck::allocation::try_zeroed_vec(self.per_slab * self.units).map_err(failed)?;
            self.slabs.push(slab);
        }
        Ok(())
    }

    /// Where a block is.
    pub fn address(&mut self, block: BlockId) -> *mut f32 {
        let (slab, place) = (block.0 as usize / self.per_slab, block.0 as usize % self.per_slab);
        self.slabs[slab][place * self.units..].as_mut_ptr().cast()
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
    use crate::onnx::packed::table::BLOCK;

    #[test]
    fn the_first_tokens_of_all_layers_are_copied() {
        let layers = LayerPart::lay_out(&[(1, 8), (2, 16)]);
        let mut memory = HostBlocks::new(&layers);
        memory.grow(2).unwrap();
        let (from, to) = (memory.address(BlockId(0)), memory.address(BlockId(1)));
        let units = memory.block_bytes() / 4;
        // SAFETY: a block has so many units.
        let (from, to) = unsafe { (std::slice::from_raw_parts_mut(from, units), to) };
        from.fill(1.0);
        memory.copy(BlockCopy { from: BlockId(0), to: BlockId(1), tokens: 3 });
        // SAFETY: as above.
        let copied = unsafe { std::slice::from_raw_parts(to, units) };
        assert_eq!(copied.iter().sum::<f32>(), (2 * 3 * (8 + 2 * 16)) as f32);
        assert_eq!((copied[2], copied[3], copied[BLOCK], copied[BLOCK + 3]), (1.0, 0.0, 1.0, 0.0));
    }
}
