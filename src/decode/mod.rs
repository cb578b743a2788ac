//! Collaborative decoding, pure: no I/O, no clock, no threads, no global randomness, and no pass of a model.
//!
//! Notation follows the paper (arXiv 2502.01662): `p_k` is the distribution of model `k` after the sampler,
//! `r` the combined distribution, `q` what a proposal was drawn from, `t` the target it is verified against.

pub mod chance;
pub mod combine;
pub mod decoder;
mod lane;
mod look_up;
pub mod policy;
pub mod schedule;
mod state;
mod target;
pub mod verify;
