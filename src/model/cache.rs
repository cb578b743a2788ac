//! The key-value cache of one sequence: buffers that ONNX Runtime updates in place, grown by doubling.

use ndarray::{Array3, s};
use ort::value::TensorElementType;

use crate::error::{Error, Result};
use crate::model::export::{CacheTensor, Export};

/// The smallest capacity, in tokens.
const MIN_CAPACITY: usize = 256;

/// Keys and values of one sequence, `[heads, capacity, head_size]` each.
///
/// Rolling back is only forgetting a length: entries behind it are overwritten by the next pass.
pub struct Cache {
    /// Raw elements in units of four bytes, which fits every element type and keeps them aligned.
    buffers: Vec<Array3<u32>>,
    capacity: usize,
    limit: usize,
}

impl Cache {
    /// An empty cache without room.
    pub fn new(export: &Export) -> Result<Self> {
        let buffers = export
            .cache
            .iter()
            .map(|tensor| Ok(Array3::zeros((tensor.heads, 0, units(tensor)?))))
            .collect::<Result<_>>()?;
        Ok(Cache { buffers, capacity: 0, limit: export.context_length })
    }

    /// Tokens that fit.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Make room for `tokens` tokens, keeping the first `len`. Returns whether the buffers have moved.
    pub fn reserve(&mut self, tokens: usize, len: usize) -> bool {
        if tokens <= self.capacity {
            return false;
        }
        self.capacity = tokens.next_power_of_two().max(MIN_CAPACITY).min(self.limit.max(tokens));
        for buffer in &mut self.buffers {
            let (heads, _, units) = buffer.dim();
            let mut grown = Array3::zeros((heads, self.capacity, units));
            grown.slice_mut(s![.., ..len, ..]).assign(&buffer.slice(s![.., ..len, ..]));
            *buffer = grown;
        }
        true
    }

    /// The elements of each tensor, in the order of the export.
    pub fn buffers(&mut self) -> impl Iterator<Item = &mut [u32]> {
        self.buffers.iter_mut().map(|buffer| buffer.as_slice_mut().expect("whole arrays are contiguous"))
    }
}

fn units(tensor: &CacheTensor) -> Result<usize> {
    let bytes = match tensor.element {
        TensorElementType::Float32 => 4,
        TensorElementType::Float16 | TensorElementType::Bfloat16 => 2,
        other => return Err(Error::Unsupported(format!("a cache of {other} elements ({:?})", tensor.past))),
    };
    match tensor.head_size * bytes {
        size if size % 4 == 0 => Ok(size / 4),
        _ => Err(Error::Unsupported(format!(
            "a cache with an odd head size of {} ({:?})",
            tensor.head_size, tensor.past
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_keeps_what_was_seen() {
        let mut cache = Cache { buffers: vec![Array3::zeros((2, 0, 3))], capacity: 0, limit: 1000 };
        assert!(cache.reserve(1, 0));
        assert_eq!(cache.capacity(), MIN_CAPACITY);
        for ((head, token, unit), value) in cache.buffers[0].indexed_iter_mut() {
            *value = (head * 1000 + token * 10 + unit) as u32;
        }
        assert!(!cache.reserve(MIN_CAPACITY, 7));
        assert!(cache.reserve(MIN_CAPACITY + 1, 7));
        assert_eq!(cache.capacity(), 2 * MIN_CAPACITY);
        assert_eq!(cache.buffers[0][[1, 6, 2]], 1062);
        assert_eq!(cache.buffers[0][[1, 7, 2]], 0, "only what was seen is copied");
        assert!(cache.reserve(900, 7));
        assert_eq!(cache.capacity(), 1000, "never beyond the context");
    }
}
