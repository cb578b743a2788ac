//! What a request asks of its tokens: bias, penalties, bans and constraints.
//!
//! A [`Control`] turns the tokens before a position into [`Edits`](crate::rows::Edits) of the rows at that position. It
//! follows pending tokens too, and takes them back with the decoder. It sees no row and no model.

mod constraint;
mod options;
mod repeats;
mod state;
mod tally;

pub use constraint::{Constraint, Constraints};
pub use options::Controls;
pub use state::{Control, Left};
