//! The clock that an engine and its sessions read.

use std::time::Duration;

/// Time since a fixed moment. It is read in every step, by several threads.
pub type Clock = dyn Fn() -> Duration + Send + Sync;
