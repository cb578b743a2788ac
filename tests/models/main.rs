//! Real models run as they should: exports of many tools and architectures against PyTorch, and the demo models.

#[path = "../common/mod.rs"]
mod common;

mod batching;
mod constraints;
mod demo;
mod exports;
mod memory;
mod mixtures;
mod openapi;
mod replay;
mod requests;
