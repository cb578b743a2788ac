//! Planning for `auto`: chooses the plan that is forecast to be fastest, by what was learned of the models.
//!
//! - [`forecast`], `trials`, `search`, [`planner`]: what a plan would take, what it took, and the choice.
//! - [`session`], [`shared`]: applies the choice to a running session; what the sessions of an engine share.

pub mod choices;
pub mod forecast;
pub mod planner;
mod search;
pub mod session;
pub mod shared;
mod trials;
