//! The algorithm on scripted models: what is decoded has the right distribution whatever the strategy, the planner
//! chooses good plans, and no failure leaves a trace. No ONNX Runtime, no files, no clock.

#[path = "../common/mod.rs"]
mod common;

mod answers;
mod exact;
mod latency;
mod load;
mod overlap;
mod planning;
mod prepare;
mod questions;
mod simulation;
mod sums;
