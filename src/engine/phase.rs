//! Where sessions stand in their rounds, between two calls and within one.

use std::time::Duration;

use crate::decode::chance::CounterRng;
use crate::decode::decoder::{Beside, Common, Need};
use crate::engine::histogram::PassShape;
use crate::engine::queue::Ticket;
use crate::error::Result;
use crate::model::{Interrupt, Report};

/// Where a session stands between two calls.
pub enum Phase {
    /// Nothing is begun.
    Between,
    /// A round is begun, and waits for passes.
    Round(Begun),
    /// A probe is begun, and waits for passes.
    Probe(Begun),
}

/// A round or a probe that is begun.
pub struct Begun {
    /// What there was before: tokens committed, and time of passes.
    pub(super) start: usize,
    pub(super) passes: Duration,
    /// Time inside the calls that it took so far, but for the present one.
    pub(super) elapsed: Duration,
}

/// What a call needs, kept from call to call by the first session.
#[derive(Default)]
pub struct CallBuffers {
    /// Where each session stands in the call.
    pub(super) stands: Vec<Stand>,
    /// Empty.
    pub(super) tickets: Vec<Ticket<'static>>,
    /// Empty.
    pub(super) besides: Vec<Beside<'static, CounterRng>>,
    /// The session and the need of each ticket, by its place.
    pub(super) needs: Vec<(usize, Need)>,
    pub(super) outcomes: Vec<Outcome>,
}

/// What became of a ticket.
pub struct Outcome {
    /// Its place.
    pub(super) place: usize,
    /// Whether its model overlaps with others.
    pub(super) overlaps: bool,
    /// How its pass went; `None` if it was given back.
    pub(super) outcome: Option<Result<Report, Interrupt>>,
    /// What all who shared it have in common, and its shape.
    pub(super) common: Option<(Common, PassShape)>,
}

/// Where a session stands in a call.
pub enum Stand {
    /// It waits for passes.
    Waits,
    /// It waits for the answer to a question.
    Asks,
    /// One of its passes has failed, or was cancelled.
    Interrupted(Interrupt),
    /// It has had its news.
    Done,
}
