//! Planning for `auto`: learns pass times and acceptance rates, and chooses the plan that is forecast to be fastest.
//!
//! - [`costs`], [`estimates`], [`observer`]: what is known, and how it is learned.
//! - [`forecast`], `trials`, `search`, [`planner`]: what a plan would take, what it took, and the choice.
//! - [`session`], [`shared`]: applies the choice to a running session; what the sessions of an engine share.

pub mod costs;
pub mod estimates;
pub mod forecast;
pub mod observer;
pub mod planner;
mod search;
pub mod session;
pub mod shared;
mod trials;
