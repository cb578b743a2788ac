#![doc = include_str!("../README.md")]
#![deny(missing_docs)]

pub mod config;
pub mod decode;
pub mod engine;
pub mod error;
pub mod ffi;
pub mod model;
pub mod session;
pub mod text;
