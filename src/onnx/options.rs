//! How to load a model: where it runs, and how.

use std::collections::BTreeMap;

use crate::export::Scoring;

/// Where a model runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Which one.
        device_id: i32,
        /// Options of ONNX Runtime's provider, by its names.
        options: BTreeMap<String, String>,
    },
}

/// How to load a model, beyond where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadOptions {
    /// Where it runs.
    pub provider: Provider,
    /// How positions are scored; `None` is settled by what the export can do.
    pub scoring: Option<Scoring>,
    /// Most tokens of a sequence, in place of what the export says.
    pub context_length: Option<usize>,
    /// Where the rows of logits of a model on a GPU stay; `None` is settled by their length.
    pub rows: Option<RowsOn>,
}

/// Where rows of logits are read, and proposals verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsOn {
    /// On the host, where they are copied to.
    Host,
    /// On the GPU, of which a few numbers are asked.
    Gpu,
}
