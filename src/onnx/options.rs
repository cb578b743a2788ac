//! The options that a model is loaded with.

use std::collections::BTreeMap;

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
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadOptions {
    /// The device that it runs on.
    pub provider: Provider,
    /// How several positions are scored. `None` takes the fastest way that the export passes the trial with.
    pub scoring: Option<Scoring>,
    /// The most tokens of a sequence. `None` takes the length that the export names.
    pub context_length: Option<usize>,
    /// Where rows of logits are kept if the model runs on a GPU. `None` decides by the length of a row.
    pub rows: Option<RowsOn>,
}

/// Where rows of logits are kept and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsOn {
    /// In host memory: every row is copied there.
    Host,
    /// In GPU memory: kernels reduce each row to a few numbers, and only those are copied.
    Gpu,
}
