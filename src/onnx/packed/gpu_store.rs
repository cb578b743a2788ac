//! Where the blocks of a model are on a GPU: a tensor of all keys and one of all values for each layer.

use std::ffi::CString;
use std::sync::Arc;

use ort::memory::MemoryInfo;

use super::pool::BlockCopy;
use crate::cuda::{Device, DeviceBuffer};
use crate::export::element_bytes;
use crate::export::paged::cache_names;
use crate::export::parts::LayerShape;
use crate::onnx::binding::{Binding, Tensor};

/// The memory of blocks on a GPU.
pub struct GpuStore {
    /// By layer: all keys and all values, `[blocks, block, kv_heads, head_size]`.
    caches: Vec<(LayerShape, [DeviceBuffer; 2])>,
    blocks: usize,
    /// Tokens of a block.
    block: usize,
}

impl GpuStore {
    /// Memory for so many blocks.
    pub fn new(device: &Arc<Device>, layers: &[LayerShape], blocks: usize) -> ort::Result<Self> {
        let block = block_of(layers);
        let cache = |layer: &LayerShape| {
            let bytes = blocks * block * token_bytes(layer);
            Ok((*layer, [DeviceBuffer::zeroed(device, bytes)?, DeviceBuffer::zeroed(device, bytes)?]))
        };
        Ok(GpuStore { caches: layers.iter().map(cache).collect::<ort::Result<_>>()?, blocks, block })
    }

    /// Tokens of a block.
    pub fn block(&self) -> usize {
        self.block
    }

    /// Let passes use the blocks.
    pub fn bind(&mut self, binding: &mut Binding, memory: &MemoryInfo<'static>) -> ort::Result<()> {
        for (index, (layer, buffers)) in self.caches.iter_mut().enumerate() {
            let shape = [self.blocks, self.block, layer.kv_heads, layer.head_size].map(|size| size as i64);
            for (buffer, [input, output]) in buffers.iter_mut().zip(cache_names(index)) {
                let bytes = buffer.len();
                // SAFETY: the buffer has that many bytes, and the owner of the binding keeps the store.
                let tensor = unsafe { Tensor::at(memory, buffer.address(), bytes, layer.element, &shape) }?;
                let [input, output] = [input, output].map(|name| CString::new(name).expect("names have no zero"));
                binding.input(&input, &tensor)?;
                binding.output(&output, &tensor)?;
            }
        }
        Ok(())
    }

    /// Copy the first `tokens` tokens of a block to another one. No pass may be running.
    pub fn copy(&mut self, BlockCopy { from, to, tokens }: BlockCopy) -> ort::Result<()> {
        let (from, to) = (from.0 as usize, to.0 as usize);
        for (layer, buffers) in &mut self.caches {
            let (pitch, bytes) = (self.block * token_bytes(layer), tokens * token_bytes(layer));
            for buffer in buffers {
                buffer.copy_within(from * pitch, to * pitch, bytes)?;
            }
        }
        Ok(())
    }
}

fn token_bytes(layer: &LayerShape) -> usize {
    layer.kv_heads * layer.head_size * element_bytes(layer.element).unwrap_or(2)
}

/// Bytes of a block through all layers.
pub fn block_bytes(layers: &[LayerShape]) -> usize {
    block_of(layers) * layers.iter().map(|layer| 2 * token_bytes(layer)).sum::<usize>()
}

/// Tokens of a block. FlashAttention reads a block only if its size is a multiple of this (`paged_attention.cc`).
pub fn block_of(layers: &[LayerShape]) -> usize {
    match layers.iter().map(|layer| layer.head_size).min().unwrap_or(0) {
        0..=64 => 256,
        65..=128 => 128,
        _ => 64,
    }
}
