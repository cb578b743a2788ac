//! The C interface keeps its promises: header and symbols, C programs under sanitizers, errors, calls from several
//! threads, and the one thread pool of a process.
//!
//! Some tests need a process of their own, for a new thread pool or the standard streams. They start this program again
//! with the name of one test.

#[path = "../common/mod.rs"]
mod common;

mod abi;
mod boundary;
mod c;
mod errors;
mod threads;
