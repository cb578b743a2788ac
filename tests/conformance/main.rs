//! `make conformance`
mod results;
mod stats;
fn main() {}
