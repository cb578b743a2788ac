//! Exports on a GPU. Without a GPU, each test says why it is skipped. `scripts/gpu-check` sets
//! `COS_TEST_PROVIDER=cuda`, which makes a missing GPU an error.

mod captures;
mod exports;
mod half;
mod rows;
mod sessions;
mod together;
