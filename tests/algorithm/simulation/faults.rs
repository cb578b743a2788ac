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

/// The true rows: what each model answers to each context if no fault is planted.
#[derive(Clone, Copy)]
pub struct Truth {
    pub seed: u64,
    pub world: World,
    pub vocab: usize,
    /// One context in so many always has a bad row; 0 means none.
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

/// Makes a row unusable, in one of three ways.
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

/// Part of the message of every planted error and panic.
pub const PLANTED: &str = "planted by the simulation";

/// A fault that may happen when a model scores a row or when a combine function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The pass fails, or the function returns a number other than 0.
    Failure,
    /// The model panics. A function never does, because it must not.
    Panic,
    /// The session is cancelled.
    Cancel,
    /// The row, or the output of the function, is bad this one time.
    Spoil,
    /// The session is called from within its own step.
    Reenter,
}

/// The faults since the current call began.
#[derive(Default)]
pub struct Events {
    pub rows: u64,
    pub fault: [bool; 5],
    /// Model and position of each spoilt row.
    pub spoilt: Vec<(usize, usize)>,
    /// The model whose pass failed.
    pub failed: usize,
    /// Faults of a combine function.
    pub function_failed: bool,
    pub function_spoilt: bool,
    /// The first thing that a model or a function found to be wrong.
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

/// Shared by the simulation and by the models and functions of a run.
pub struct Stage {
    pub truth: Truth,
    /// The simulated time in nanoseconds. Passes advance it, and so does reading it.
    pub clock: AtomicU64,
    pub state: Mutex<State>,
}

pub struct State {
    pub rng: fastrand::Rng,
    /// The faults of this run, and the mean number of rows, or of function calls, between two faults.
    pub faults: Vec<Fault>,
    pub every: u64,
    /// Rows and function calls until the next fault.
    pub rows_left: u64,
    pub calls_left: u64,
    /// The session of the current call.
    pub session: *mut cos_session,
    /// The ledger of the session that is being created.
    pub ledger: Option<Arc<Mutex<Ledger>>>,
    /// The fault of the next start of a sequence: it fails or panics.
    pub start: Option<Fault>,
    pub events: Events,
}

// SAFETY: a run and everything that it makes stay on one thread.
unsafe impl Send for State {}

impl State {
    pub fn gap(&mut self) -> u64 {
        if self.faults.is_empty() { u64::MAX } else { self.rng.u64(1..=2 * self.every) }
    }

    pub fn draw(&mut self) -> Fault {
        let fault = self.faults[self.rng.usize(..self.faults.len())];
        // A panic ends its session, so panics must be rare.
        if fault == Fault::Panic && self.rng.u8(..4) > 0 { Fault::Cancel } else { fault }
    }
}

impl Stage {
    /// Called when a model has scored a row.
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

    /// Called when a combine function is called. Returns its fault.
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

    /// Calls the session whose step is running. It may be cancelled and asked for statistics; all other calls get BUSY.
    pub fn call_back(&self, session: *mut cos_session, fault: Fault) {
        // SAFETY: the session is in a call, so it is live.
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
