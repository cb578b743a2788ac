//! Which tokens may come next, as a grammar or a function of the caller says.

use std::fmt;
use std::sync::Arc;

use crate::error::Result;

/// Follows one text, and says which tokens may come next.
///
/// What it says depends on the tokens of the text alone. After an error it is not asked again.
pub trait Constraint: Send {
    /// Begin anew, with an empty text.
    fn reset(&mut self) -> Result<()>;

    /// The text goes on with a token, which the last mask allowed.
    fn push(&mut self, token: i32) -> Result<()>;

    /// Take the last `tokens` tokens back.
    fn pop(&mut self, tokens: usize) -> Result<()>;

    /// The token that must come next, if that is known without the mask. The mask then allows no other one.
    fn forced(&mut self) -> Result<Option<i32>> {
        Ok(None)
    }

    /// Set a bit for each token that may come next, stop tokens included, and clear all others. Bits beyond the
    /// vocabulary are ignored. If no bit is set, [`Constraint::may_end`] says whether the text is complete or stuck.
    fn mask(&mut self, mask: &mut [u32]) -> Result<()>;

    /// Whether it calls a function of the caller, which may do anything. Then it is asked only while its thread does
    /// nothing else for the session.
    fn calls_back(&self) -> bool {
        true
    }

    /// Whether the text may end where the last mask was made.
    fn may_end(&self) -> bool;

    /// Whether the text is known to be complete: it may end, and nothing can follow. It costs next to nothing, so it
    /// may be false where only the mask would show that.
    fn is_complete(&self) -> bool;
}

/// Starts a [`Constraint`] for each text.
#[derive(Clone)]
pub struct Constraints(Arc<dyn Fn() -> Box<dyn Constraint> + Send + Sync>);

impl Constraints {
    /// Wrap a function that starts one.
    pub fn new(start: impl Fn() -> Box<dyn Constraint> + Send + Sync + 'static) -> Self {
        Constraints(Arc::new(start))
    }

    /// A constraint of a text that is empty.
    pub fn start(&self) -> Box<dyn Constraint> {
        (self.0)()
    }
}

impl PartialEq for Constraints {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Constraints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constraints")
    }
}
