//! What goes wrong in a run: bad rows, and faults of passes, functions and callers, all drawn from the seed.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use cos::error::Error;
use cos::ffi::*;
use cos::model::Interrupt;
use parking_lot::Mutex;

use super::models::Ledger;
use super::report::Report;
use super::session::sentinel;
use crate::common::boundary::{code, no_stats};
use crate::common::{World, mix};

/// What every model answers to every context, if no fault is planted.
#[derive(Clone, Copy)]
pub struct Truth {
    pub seed: u64,
    pub world: World,
    pub vocab: usize,
    /// One context in so many has a bad row, for ever; 0 is none.
    pub bad: u64,
}

impl Truth {
    pub fn row(&self, model: usize, context: &[i32], row: &mut [f32]) {
        let hash = self.world.fill(self.seed, model, context, row);
        let luck = mix(hash ^ !(model as u64));
        if self.bad > 0 && luck.is_multiple_of(self.bad) {
            spoil(row, luck >> 32);
        }
    }
}

/// Make a row one that must not be used, in one of three ways.
pub fn spoil(row: &mut [f32], how: u64) {
    let token = (how / 3) as usize % row.len();
    match how % 3 {
        0 => row[token] = f32::NAN,
        1 => row[token] = f32::INFINITY,
        _ => row.fill(f32::NEG_INFINITY),
    }
}

pub fn is_bad(row: &[f32]) -> bool {
    row.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) || row.iter().all(|&l| l == f32::NEG_INFINITY)
}

/// In the message of every planted error and panic.
pub const PLANTED: &str = "planted by the simulation";

/// What can happen when a row is scored, or a combine function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The pass fails, or the function returns another number than 0.
    Failure,
    /// The model panics. Functions must not.
    Panic,
    /// The session is cancelled.
    Cancel,
    /// The row, or what the function makes, is bad this once.
    Spoil,
    /// The session is called from within.
    Reenter,
}

/// What was planted since the call began.
#[derive(Default)]
pub struct Events {
    pub rows: u64,
    pub fault: [bool; 5],
    /// Model and position of rows that were spoilt.
    pub spoilt: Vec<(usize, usize)>,
    /// The model whose pass failed.
    pub failed: usize,
    /// Faults of a combine function.
    pub function_failed: bool,
    pub function_spoilt: bool,
    /// What the models or a function found to be wrong.
    pub violation: Option<String>,
}

impl Events {
    pub fn happened(&self, fault: Fault) -> bool {
        self.fault[fault as usize]
    }

    pub fn cover(&self, report: &mut Report) {
        for (happened, what) in [
            (self.happened(Fault::Failure), "fault: pass"),
            (self.happened(Fault::Panic), "fault: panic"),
            (self.happened(Fault::Cancel), "fault: cancel"),
            (self.happened(Fault::Reenter), "fault: reentry"),
            (!self.spoilt.is_empty(), "fault: row"),
            (self.function_failed, "fault: function"),
            (self.function_spoilt, "fault: scores"),
        ] {
            if happened {
                report.cover(what);
            }
        }
    }
}

/// Where the models and functions of a run meet the simulation.
pub struct Stage {
    pub truth: Truth,
    /// The pretended time, in nanoseconds: passes take some, and so does looking at it.
    pub clock: AtomicU64,
    pub state: Mutex<State>,
}

pub struct State {
    pub rng: fastrand::Rng,
    /// What may happen in this run, and mean numbers of rows and of calls of functions between.
    pub faults: Vec<Fault>,
    pub every: u64,
    /// Rows and calls until the next fault.
    pub rows_left: u64,
    pub calls_left: u64,
    /// The session that is being called.
    pub session: *mut cos_session,
    /// The ledger of the session that is being made.
    pub ledger: Option<Arc<Mutex<Ledger>>>,
    /// Whether the next start of a sequence fails or panics.
    pub start: Option<Fault>,
    pub events: Events,
}

// SAFETY: a run, and all that it makes, stays on one thread.
unsafe impl Send for State {}

impl State {
    pub fn gap(&mut self) -> u64 {
        if self.faults.is_empty() { u64::MAX } else { self.rng.u64(1..=2 * self.every) }
    }

    pub fn draw(&mut self) -> Fault {
        let fault = self.faults[self.rng.usize(..self.faults.len())];
        // A panic ends its session, so that many would leave little to see.
        if fault == Fault::Panic && self.rng.u8(..4) > 0 { Fault::Cancel } else { fault }
    }
}

impl Stage {
    /// A model has scored a row.
    pub fn on_row(&self, model: usize, position: usize, row: &mut [f32]) -> Result<(), Interrupt> {
        let mut state = self.state.lock();
        state.events.rows += 1;
        state.rows_left -= 1;
        if state.rows_left > 0 {
            return Ok(());
        }
        state.rows_left = state.gap();
        let fault = state.draw();
        state.events.fault[fault as usize] = true;
        match fault {
            Fault::Failure => {
                state.events.failed = model;
                return Err(Error::Runtime(PLANTED.into()).into());
            }
            Fault::Panic => {
                drop(state);
                panic!("{PLANTED}");
            }
            Fault::Spoil => {
                let how = state.rng.u64(..);
                spoil(row, how);
                state.events.spoilt.push((model, position));
            }
            Fault::Cancel | Fault::Reenter => {
                let session = state.session;
                drop(state);
                self.call_back(session, fault);
            }
        }
        Ok(())
    }

    /// A combine function is called; returns its fault.
    pub fn on_call(&self) -> Option<Fault> {
        let mut state = self.state.lock();
        state.calls_left -= 1;
        if state.calls_left > 0 {
            return None;
        }
        state.calls_left = state.gap();
        let fault = state.draw();
        match fault {
            Fault::Panic => return None,
            Fault::Failure => state.events.function_failed = true,
            Fault::Spoil => state.events.function_spoilt = true,
            Fault::Cancel | Fault::Reenter => {
                state.events.fault[fault as usize] = true;
                let session = state.session;
                drop(state);
                self.call_back(session, fault);
            }
        }
        Some(fault)
    }

    /// Call the session whose step is running: it may be cancelled and looked at, and is busy otherwise.
    pub fn call_back(&self, session: *mut cos_session, fault: Fault) {
        // SAFETY: the session is in a call, so it lives.
        let codes = unsafe {
            match fault {
                Fault::Cancel => vec![(code(cos_cancel(session)), 0)],
                _ => vec![
                    (code(cos_step(session, &mut sentinel())), COS_ERROR_BUSY),
                    (code(cos_prompt(session, [0].as_ptr(), 1)), COS_ERROR_BUSY),
                    (code(cos_session_set_weights(session, [1.0; 8].as_ptr(), 8)), COS_ERROR_BUSY),
                    (code(cos_session_stats(session, &mut no_stats())), 0),
                ],
            }
        };
        if codes.iter().any(|(found, expected)| found != expected) {
            self.report(format!("calls from within a step gave (found, expected) {codes:?}"));
        }
    }

    pub fn report(&self, what: String) {
        self.state.lock().events.violation.get_or_insert(what);
    }
}
