//! What a request asks of its tokens: bias, penalties, bans and constraints.
//!
//! A [`RowEditor`] turns the tokens before a position into [`Edits`](crate::rows::Edits) of the rows at that position.
//! It follows pending tokens too, and takes them back with the decoder. It sees no row and no model.

mod constraint;
mod dry;
mod editor;
mod options;
mod repeats;
mod tally;

pub use constraint::{Constraint, Constraints};
pub use dry::Dry;
pub use editor::{Left, RowEditor};
pub use options::Controls;
