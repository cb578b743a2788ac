//! Memory: no allocation per step, and sessions that say what they hold.
//!
//! A program of its own, because it replaces the allocator of the whole process. Its tests take turns for the same
//! reason.

#[path = "../common/mod.rs"]
mod common;

mod allocator;
mod sessions;
mod steps;
