//! Collaborative decoding, pure: no I/O, no clock, no threads, no global randomness, and no pass of a model.
//!
//! Notation follows the paper (arXiv 2502.01662). `p_k` is the distribution of model `k` after the sampler, and `r` is
//! the combined distribution. A proposal is drawn from `q` and verified against the target `t`.

mod alternatives;
pub mod chance;
pub mod combine;
pub mod decoder;
mod lane;
mod look_up;
pub mod policy;
mod progress;
mod report;
mod routes;
pub mod schedule;
mod settings;
mod state;
mod target;
pub mod verify;
pub mod weigh;
