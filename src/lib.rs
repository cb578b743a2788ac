//! CoS decodes with several language models at once, exactly and fast.
//!
//! The product is the C interface in [`ffi`]. The Rust modules are public for the project's own tests and benchmarks,
//! and promise nothing from version to version. ARCHITECTURE.md is the map.
#![deny(missing_docs)]

mod clock;
pub mod config;
pub mod control;
mod cuda;
pub mod decode;
pub mod engine;
pub mod error;
pub mod export;
pub mod ffi;
mod files;
pub mod grammar;
pub mod learn;
pub mod model;
pub mod onnx;
pub mod plan;
mod process;
pub mod request;
pub mod rows;
pub mod text;
