//! CoS decodes with several language models at once, exactly and fast. The C interface is in [`ffi`]; [`decode`] is the
//! algorithm, [`model`] runs exports with ONNX Runtime. ARCHITECTURE.md is the map.
#![deny(missing_docs)]

pub mod clock;
pub mod config;
mod cuda;
pub mod decode;
pub mod engine;
pub mod error;
pub mod export;
pub mod ffi;
pub mod files;
pub mod learn;
pub mod model;
pub mod onnx;
pub mod plan;
pub mod process;
pub mod rows;
pub mod text;
