//! Collaborative decoding. This module is pure: no I/O, no clock, no threads, no global randomness.
//!
//! Notation follows the paper (arXiv 2502.01662). `p_k` is the distribution of model `k` after the sampler, and `r` is
//! the combined distribution. A proposal is drawn from `q` and verified against the target `t`.

pub mod chance;
pub mod combine;
pub mod policy;
pub mod round;
pub mod verify;
