//! Runs exported models with ONNX Runtime on CPUs and NVIDIA GPUs.

mod attention;
mod binding;
mod cache;
mod calm;
mod captures;
mod check;
mod crowd;
mod gpu_passes;
mod huge_pages;
mod inputs;
mod load;
mod logits;
mod model;
mod options;
mod packed;
mod pass;
mod runtime;
mod scoring;
mod sequence;
mod weights;
mod workers;

pub use model::OnnxModel;
pub use options::{CacheSize, LoadOptions, Provider, ProviderOptions, RowsOn};
pub use runtime::{LIBRARY_VARIABLE, Runtime, calm_passes, environment, loaded};
