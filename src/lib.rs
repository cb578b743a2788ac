//! CoS decodes with several language models at once, exactly and fast. The C interface is in [`ffi`]; [`decode`] is the
//! algorithm, [`model`] runs exports with ONNX Runtime. ARCHITECTURE.md is the map.
#![deny(missing_docs)]

pub mod config;
pub mod decode;
pub mod describe;
pub mod engine;
pub mod error;
pub mod ffi;
pub mod files;
pub mod model;
pub mod planning;
pub mod process;
pub mod session;
pub mod stats;
pub mod text;
