//! What is learned of models while they decode: the time of their passes, and how often their proposals are accepted.

pub mod costs;
pub mod estimates;
pub mod observer;
pub mod pass_times;
pub mod steady;
