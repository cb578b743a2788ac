//! Planning for `auto`: chooses the plan that is forecast to be fastest, by what was learned of the models.
//!
//! - [`forecast`], `trials`, `search`, [`planner`]: what a plan would take, what it took, and the choice.
//! - [`session`], `company`, `group`: applies the choice to a running session, alone or together with others.
//! - [`shared`]: what the sessions of an engine share.

pub mod choices;
mod company;
pub mod forecast;
mod group;
pub mod pass_times;
pub mod planner;
mod report;
mod search;
pub mod session;
pub mod shared;
mod trials;
