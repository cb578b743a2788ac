//! The options that a model is loaded with.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::export::Scoring;

/// Options of an execution provider of ONNX Runtime, by the names that it gives them.
pub type ProviderOptions = BTreeMap<String, String>;

/// The device that a model runs on.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Provider {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// CUDA's number of the GPU.
        device_id: i32,
        /// Options of ONNX Runtime's CUDA provider.
        options: ProviderOptions,
    },
}

/// How to load a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct LoadOptions {
    /// The device that it runs on.
    pub provider: Provider,
    /// How several positions are scored. `None` takes the fastest way that the export passes the trial with.
    pub scoring: Option<Scoring>,
    /// The most tokens of a sequence. `None` takes the length that the export names.
    pub context_length: Option<usize>,
    /// Where rows of logits are kept if the model runs on a GPU. `None` decides by the length of a row.
    pub rows: Option<RowsOn>,
    /// The memory of the cache that the sequences of a model with packed passes share.
    pub cache: CacheSize,
}

/// A packed model has so many blocks at least, since it is tried out at load with several sequences at once.
const LEAST_BLOCKS: usize = 8;

/// How much memory sequences may take together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CacheSize {
    /// So many bytes. It is an error if that is too little for one sequence of the context length.
    Bytes(usize),
    /// This share of the memory that is free when the model is loaded, but at least what one sequence needs.
    Share(f64),
}

impl Default for CacheSize {
    fn default() -> Self {
        CacheSize::Share(0.5)
    }
}

impl CacheSize {
    /// The number of blocks of so many bytes, where `free` bytes are free and one sequence needs `least` blocks.
    ///
    /// # Errors
    /// `Config` if the bytes are too few for one sequence.
    pub fn blocks(self, name: &str, block_bytes: usize, least: usize, free: usize) -> Result<usize> {
        let least = least.max(LEAST_BLOCKS);
        match self {
            CacheSize::Share(share) => Ok(least.max((share * free as f64) as usize / block_bytes)),
            CacheSize::Bytes(bytes) if bytes / block_bytes >= least => Ok(bytes / block_bytes),
            CacheSize::Bytes(bytes) => Err(Error::Config(format!(
                "cache_bytes of {name} is {bytes}, but one sequence of its context length and the trial at load need \
                 {}; set it to at least that, set a smaller context_length, or leave it out",
                least * block_bytes
            ))),
        }
    }
}

/// Where rows of logits are kept and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsOn {
    /// In host memory: every row is copied there.
    Host,
    /// In GPU memory: kernels reduce each row to a few numbers, and only those are copied.
    Gpu,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cache_has_room_for_a_sequence_and_for_the_trial() {
        assert_eq!(CacheSize::Bytes(1000).blocks("a", 10, 40, 0), Ok(100));
        assert_eq!(CacheSize::Share(0.5).blocks("a", 10, 2, 0), Ok(LEAST_BLOCKS));
        let refused = CacheSize::Bytes(70).blocks("a", 10, 2, 0).unwrap_err().to_string();
        assert!(refused.contains("80; set it to at least that"), "{refused}");
    }
}
