//! Plans for `auto`: learns what passes take and how often proposals are accepted, and chooses what is forecast to be fastest.

pub mod costs;
pub mod estimates;
pub mod forecast;
pub mod observer;
pub mod planner;
pub mod session;
mod trials;
