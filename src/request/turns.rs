//! Choices that go on at the same time.

use std::borrow::{Borrow, BorrowMut};

use super::choice::Choice;
use crate::engine::many;
use crate::engine::session::Session;

/// A choice that goes on, which it does until its session is taken from it.
pub struct Due<'a>(pub &'a mut Choice);

impl Borrow<Session> for Due<'_> {
    fn borrow(&self) -> &Session {
        self.0.session().expect("only open choices have turns")
    }
}

impl BorrowMut<Session> for Due<'_> {
    fn borrow_mut(&mut self) -> &mut Session {
        self.0.session_mut().expect("only open choices have turns")
    }
}

/// Run one pass of each model for all of them.
pub fn take_turns(turns: &mut [Due]) {
    many::step_many(turns, |due, result| due.0.take(result));
}
