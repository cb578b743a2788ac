//! One thread that drives many requests: a pass of each model for all their choices.

use std::borrow::BorrowMut;

use super::client::{ClientRequest, Status};
use super::turns::{Due, take_turns};
use crate::error::Result;

/// Advance requests by one pass of each model. `news` is called once for each of them, with how it stands.
pub fn step_many<R: BorrowMut<ClientRequest>>(requests: &mut [R], mut news: impl FnMut(&mut R, Result<Status>)) {
    let mut turns = Vec::new();
    for request in requests.iter_mut().map(R::borrow_mut) {
        request.begin();
        turns.extend(request.due().map(Due));
    }
    take_turns(&mut turns);
    drop(turns);
    for request in requests {
        let status = request.borrow_mut().end_step();
        news(request, status);
    }
}
