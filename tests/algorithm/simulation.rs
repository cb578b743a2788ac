//! Deterministic simulation: random worlds of models, sessions, calls and faults, all drawn from one seed, against what
//! the interface promises. After TigerBeetle's VOPR and FoundationDB; each seed switches another set of faults on.
//!
//! A run makes an engine of scripted models and drives some sessions of it by turns, through the `extern "C"` functions
//! only. A mirror of each session says in advance what every call must return, and after each call it is checked that
//! - committed tokens never change; a failed call changes nothing, and writes nothing;
//! - stop tokens, `max_tokens` and the context end a sequence exactly where they should, and it stays ended;
//! - every error, cancellation and panic has a cause that was planted, and every planted cause has its effect;
//! - each model's cache holds the committed tokens, and behind them the same pending ones as all others;
//! - statistics add up: passes and positions are those that the models saw;
//! - tokens are what the oracle of `tests/common` allows in their context: the best one of a greedy session, a possible
//!   one otherwise, with the oracle's log-probability, whatever happened before (half of all tokens are looked at);
//! - sampled tokens do not lean towards their drafter, compared with what their distributions say: a martingale, which
//!   no number of faults, cancellations and changes of weights in between may move.
//!
//! `cargo test --release --test algorithm simulation` runs a fixed list of seeds with a million rounds, and then asks that every
//! kind of event has happened. `COS_SIMULATION_ROUNDS=50000000` runs longer. A failure names its seed;
//! `COS_SEED=123 cargo test --release --test algorithm promises` runs that one alone and prints each call.
//!
//! Not here: real models (`tests/models`) and calls from several threads (`tests/interface/boundary.rs`).

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::{CStr, c_void};
use std::fmt;
use std::io::Write;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use crate::common::boundary::{code, no_stats, outcome};
use crate::common::{Sampling, World, mix, oracle};
use cos::config::Combine;
use cos::decode::combine::{Combination, Function};
use cos::decode::policy::{Plan, Policy, Request, Strategy, Targets};
use cos::engine::Engine;
use cos::engine::participant::Participant;
use cos::error::Error;
use cos::ffi::*;
use cos::model::scripted::Scripted;
use cos::model::{Cancel, Interrupt, Model, Pass, Report as PassReport, Sequence};
use cos::rows::Row;
use parking_lot::Mutex;
use serde_json::Value;

// ---------------------------------------------------------------------------------------------------------------------
// The models' rows

/// What every model answers to every context, if no fault is planted.
#[derive(Clone, Copy)]
struct Truth {
    seed: u64,
    world: World,
    vocab: usize,
    /// One context in so many has a bad row, for ever; 0 is none.
    bad: u64,
}

impl Truth {
    fn row(&self, model: usize, context: &[i32], row: &mut [f32]) {
        let hash = self.world.fill(self.seed, model, context, row);
        let luck = mix(hash ^ !(model as u64));
        if self.bad > 0 && luck.is_multiple_of(self.bad) {
            spoil(row, luck >> 32);
        }
    }
}

/// Make a row one that must not be used, in one of three ways.
fn spoil(row: &mut [f32], how: u64) {
    let token = (how / 3) as usize % row.len();
    match how % 3 {
        0 => row[token] = f32::NAN,
        1 => row[token] = f32::INFINITY,
        _ => row.fill(f32::NEG_INFINITY),
    }
}

fn is_bad(row: &[f32]) -> bool {
    row.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) || row.iter().all(|&l| l == f32::NEG_INFINITY)
}

// ---------------------------------------------------------------------------------------------------------------------
// Faults

/// In the message of every planted error and panic.
const PLANTED: &str = "planted by the simulation";

/// What can happen when a row is scored, or a combine function is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
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
struct Events {
    rows: u64,
    fault: [bool; 5],
    /// Model and position of rows that were spoilt.
    spoilt: Vec<(usize, usize)>,
    /// The model whose pass failed.
    failed: usize,
    /// Faults of a combine function.
    function_failed: bool,
    function_spoilt: bool,
    /// What the models or a function found to be wrong.
    violation: Option<String>,
}

impl Events {
    fn happened(&self, fault: Fault) -> bool {
        self.fault[fault as usize]
    }

    fn cover(&self, report: &mut Report) {
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
struct Stage {
    truth: Truth,
    /// The pretended time, in nanoseconds: passes take some, and so does looking at it.
    clock: AtomicU64,
    state: Mutex<State>,
}

struct State {
    rng: fastrand::Rng,
    /// What may happen in this run, and mean numbers of rows and of calls of functions between.
    faults: Vec<Fault>,
    every: u64,
    /// Rows and calls until the next fault.
    rows_left: u64,
    calls_left: u64,
    /// The session that is being called.
    session: *mut cos_session,
    /// The ledger of the session that is being made.
    ledger: Option<Arc<Mutex<Ledger>>>,
    /// Whether the next start of a sequence fails or panics.
    start: Option<Fault>,
    events: Events,
}
// SAFETY: a run, and all that it makes, stays on one thread.
unsafe impl Send for State {}

impl State {
    fn gap(&mut self) -> u64 {
        if self.faults.is_empty() { u64::MAX } else { self.rng.u64(1..=2 * self.every) }
    }

    fn draw(&mut self) -> Fault {
        let fault = self.faults[self.rng.usize(..self.faults.len())];
        // A panic ends its session, so that many would leave little to see.
        if fault == Fault::Panic && self.rng.u8(..4) > 0 { Fault::Cancel } else { fault }
    }
}

impl Stage {
    /// A model has scored a row.
    fn on_row(&self, model: usize, position: usize, row: &mut [f32]) -> Result<(), Interrupt> {
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
    fn on_call(&self) -> Option<Fault> {
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
    fn call_back(&self, session: *mut cos_session, fault: Fault) {
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

    fn report(&self, what: String) {
        self.state.lock().events.violation.get_or_insert(what);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Models that keep books

/// What is known of one session from both sides: what its caller was told, and what its models were shown.
#[derive(Default)]
struct Ledger {
    committed: Vec<i32>,
    prompt_end: usize,
    max_pending: usize,
    /// What each model's sequence holds.
    caches: Vec<Vec<i32>>,
    forwards: u64,
    positions: u64,
}

impl Ledger {
    /// Caches hold the committed tokens, and behind them all the same pending ones.
    fn check(&self) -> Result<(), String> {
        let longest = self.caches.iter().max_by_key(|cache| cache.len()).map_or(&[][..], Vec::as_slice);
        for (model, cache) in self.caches.iter().enumerate() {
            let common = cache.len().min(self.committed.len());
            if cache[..common] != self.committed[..common] {
                return Err(format!("the cache of model {model} holds {cache:?}, committed is {:?}", self.committed));
            }
            if *cache != longest[..cache.len()] {
                return Err(format!("the cache of model {model} holds {cache:?}, another one {longest:?}"));
            }
        }
        if longest.len() > self.committed.len() + self.max_pending {
            let (found, committed) = (longest.len(), self.committed.len());
            return Err(format!("a cache holds {found} tokens, of which {committed} are committed: too many pending"));
        }
        Ok(())
    }

    fn longest(&self) -> usize {
        self.caches.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// A bug that is planted to see that the simulation finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bug {
    /// Model 0 keeps a token that it should forget.
    TruncateKeepsOne,
    /// Model 0 gives the row of a token that it has forgotten in place of that of its successor.
    StaleRow,
    /// Model 0 scores the last position of a wide pass wrongly.
    WideRow,
    /// The last token of a step with several is lost on the way to the caller.
    LosesToken,
    /// A log-probability is that of another temperature.
    LogProbability,
    /// A step says that the sequence goes on where it has ended.
    MissesTheEnd,
    /// A failed step writes its result.
    WritesOnError,
    /// A poisoned session takes a prompt.
    Forgives,
}

struct Double {
    inner: Box<dyn Model>,
    index: usize,
    stage: Arc<Stage>,
    bug: Option<Bug>,
}

struct DoubleSequence {
    inner: Box<dyn Sequence>,
    index: usize,
    stage: Arc<Stage>,
    ledger: Arc<Mutex<Ledger>>,
    bug: Option<Bug>,
    /// Of a bug: the row that is given in place of a position's own.
    wrong: Option<(usize, Vec<f32>)>,
}

impl Sequence for DoubleSequence {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn truncate(&mut self, len: usize) {
        let mut ledger = self.ledger.lock();
        if len < self.inner.len() && len + 1 < ledger.committed.len() {
            let committed = ledger.committed.len();
            self.stage
                .report(format!("model {} is to forget all from {len} on; {committed} are committed", self.index));
        }
        match self.bug {
            Some(Bug::TruncateKeepsOne) => self.inner.truncate(len + 1),
            Some(Bug::StaleRow) => {
                self.wrong = (self.inner.len() > len).then(|| (len + 1, scores(self.inner.as_ref(), len + 1)));
                self.inner.truncate(len);
            }
            _ => self.inner.truncate(len),
        }
        ledger.caches[self.index].truncate(self.inner.len());
    }

    fn row(&self, position: usize) -> Row<'_> {
        match &self.wrong {
            Some((wrong, row)) if *wrong == position => Row::Host(row),
            _ => self.inner.row(position),
        }
    }
}

impl Model for Double {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length()
    }

    fn max_pass(&self) -> usize {
        self.inner.max_pass()
    }

    fn cost(&self) -> u64 {
        self.inner.cost()
    }

    fn pass_times(&self) -> &[(usize, Duration)] {
        self.inner.pass_times()
    }

    fn start(&self, cancel: &Arc<Cancel>) -> cos::error::Result<Box<dyn Sequence>> {
        let (ledger, fault) = {
            let mut state = self.stage.state.lock();
            (state.ledger.clone().expect("a sequence without a session"), state.start.take())
        };
        match fault {
            Some(Fault::Panic) => panic!("{PLANTED}"),
            Some(_) => return Err(Error::Runtime(PLANTED.into())),
            None => {}
        }
        let bug = self.bug.filter(|_| self.index == 0);
        let (inner, stage) = (self.inner.start(cancel)?, self.stage.clone());
        Ok(Box::new(DoubleSequence { inner, index: self.index, stage, ledger, bug, wrong: None }))
    }

    fn overlaps(&self) -> bool {
        self.inner.overlaps()
    }

    fn launch(&self, pass: &mut Pass<'_>) -> bool {
        let sequence: &mut dyn Any = pass.sequence;
        let sequence: &mut DoubleSequence = sequence.downcast_mut().expect("a sequence of another model");
        self.inner.launch(&mut Pass { sequence: sequence.inner.as_mut(), ..*pass })
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<PassReport, Interrupt> {
        let mut report = PassReport { elapsed: Duration::ZERO, is_usual: true };
        for pass in batch {
            let tokens = pass.tokens;
            let sequence: &mut dyn Any = pass.sequence;
            let sequence: &mut DoubleSequence = sequence.downcast_mut().expect("a sequence of another model");
            let start = sequence.len();
            if tokens.is_empty() || tokens.len() > self.max_pass() {
                self.stage.report(format!("a pass of {} tokens, where {} are allowed", tokens.len(), self.max_pass()));
            }
            let inner = Pass { sequence: sequence.inner.as_mut(), tokens, keep: pass.keep, filter: pass.filter };
            report = self.inner.forward(&mut [inner])?;
            self.stage.clock.fetch_add(report.elapsed.as_nanos() as u64, Ordering::Relaxed);
            if sequence.bug == Some(Bug::WideRow) && tokens.len() > 2 && pass.keep <= sequence.inner.len() {
                let position = sequence.inner.len();
                let mut row = scores(sequence.inner.as_ref(), position);
                row.rotate_left(1);
                sequence.wrong = Some((position, row));
            }
            let mut ledger = sequence.ledger.lock();
            ledger.caches[self.index].extend_from_slice(tokens);
            if ledger.caches[self.index].len() != sequence.len() {
                self.stage.report(format!("model {} has lost count of its tokens", self.index));
            }
            if let Err(what) = ledger.check() {
                self.stage.report(what);
            }
            // Of what a pass scores, what lies within the prompt does not count.
            let scored = (start + tokens.len()).saturating_sub(start.max(ledger.prompt_end - 1)) as u64;
            ledger.forwards += u64::from(scored > 0);
            ledger.positions += scored;
        }
        Ok(report)
    }
}

/// What [`sum`] is told by.
struct FunctionData {
    stage: Arc<Stage>,
    needed: Vec<bool>,
}

/// A combine function: the sum of the logits.
unsafe extern "C-unwind" fn sum(
    rows: *const *const f32,
    models_count: usize,
    vocab_size: usize,
    out_scores: *mut f32,
    user_data: *mut c_void,
) -> i32 {
    // SAFETY: what the interface promises to a function.
    let (data, rows, scores) = unsafe {
        let data = &*user_data.cast::<FunctionData>();
        let rows = std::slice::from_raw_parts(rows, models_count);
        (data, rows, std::slice::from_raw_parts_mut(out_scores, vocab_size))
    };
    if !rows.iter().map(|row| !row.is_null()).eq(data.needed.iter().copied()) {
        data.stage.report("a combine function was given rows of other models than it needs".into());
    }
    let fault = data.stage.on_call();
    if fault == Some(Fault::Failure) {
        return -7;
    }
    scores.fill(0.0);
    for row in rows.iter().filter(|row| !row.is_null()) {
        // SAFETY: as above.
        let row = unsafe { std::slice::from_raw_parts(*row, vocab_size) };
        if is_bad(row) {
            data.stage.report(format!("a combine function was given the row {row:?}"));
        }
        scores.iter_mut().zip(row).for_each(|(score, logit)| *score += logit);
    }
    if fault == Some(Fault::Spoil) {
        spoil(scores, 0);
    }
    0
}

// ---------------------------------------------------------------------------------------------------------------------
// The boundary

fn members(stats: &cos_stats) -> Vec<u64> {
    // All members are named, so that none that is added is forgotten.
    let cos_stats { struct_size: _, steps, tokens, proposed, tested, accepted, forwards, positions, .. } = *stats;
    let cos_stats { model_ns, total_ns, near_ties, planned_ns, expected_ns, standard_ns, rows_copied, .. } = *stats;
    let counts = [steps, tokens, proposed, tested, accepted, forwards, positions, near_ties];
    [&counts[..], &[model_ns, total_ns, planned_ns, expected_ns, standard_ns, rows_copied]].concat()
}

/// A result that shows whether it was written.
fn sentinel() -> cos_step_result {
    cos_step_result {
        struct_size: size_of::<cos_step_result>(),
        tokens: 8 as *const i32,
        tokens_count: 77,
        finish: 88,
        reserved: 99,
        log_probabilities: 16 as *const f32,
    }
}

fn is_untouched(result: &cos_step_result) -> bool {
    let sentinel = sentinel();
    (result.tokens, result.tokens_count, result.finish) == (sentinel.tokens, sentinel.tokens_count, sentinel.finish)
        && (result.reserved, result.log_probabilities) == (sentinel.reserved, sentinel.log_probabilities)
}

fn finish_name(finish: i32) -> &'static str {
    match finish {
        COS_FINISH_NONE => "finish: none",
        COS_FINISH_STOP => "finish: stop",
        COS_FINISH_MAX_TOKENS => "finish: max_tokens",
        COS_FINISH_CONTEXT_FULL => "finish: context full",
        COS_FINISH_CANCELLED => "finish: cancelled",
        _ => "finish: another",
    }
}

fn error_name(code: i32) -> &'static str {
    match code {
        0 => "ok",
        COS_ERROR_INVALID_ARGUMENT => "error: invalid argument",
        COS_ERROR_RUNTIME => "error: runtime",
        COS_ERROR_CONTEXT_FULL => "error: context full",
        COS_ERROR_NUMERIC => "error: numeric",
        COS_ERROR_UNSUPPORTED => "error: unsupported",
        COS_ERROR_POISONED => "error: poisoned",
        COS_ERROR_INTERNAL => "error: internal",
        COS_ERROR_CALLBACK => "error: callback",
        _ => "error: another",
    }
}

/// What a valid session is asked for.
#[derive(Debug, Clone)]
struct Options {
    strategy: i32,
    targets: i32,
    sampling: Sampling,
    lengths: Option<Vec<i32>>,
    weights: Option<Vec<f32>>,
    stop_tokens: Option<Vec<i32>>,
    max_tokens: usize,
    log_probabilities: bool,
    function: bool,
}

impl Options {
    fn is_greedy(&self) -> bool {
        self.sampling.temperature == 0.0
    }
}

/// A session, and what is known of it without looking.
struct Session {
    handle: *mut cos_session,
    name: u32,
    options: Options,
    ledger: Arc<Mutex<Ledger>>,
    /// Of the combine function; must live as long as the session.
    _function: Option<Box<FunctionData>>,
    /// What the oracle decodes.
    combination: Combination,
    routed: bool,
    /// The model that proposes first.
    drafter: usize,
    stop_tokens: Vec<i32>,
    capacity: usize,
    /// How the sequence has ended, if it has.
    finish: i32,
    cancel_requested: bool,
    poisoned: bool,
    /// Rounds that failed or were cancelled in a row.
    failures: u32,
    /// Model and position of rows that were spoilt and may be in a cache.
    spoilt: Vec<(usize, usize)>,
    steps: u64,
    tokens: u64,
    stats: cos_stats,
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: made by cos_session_new, and freed here only.
        unsafe { cos_free(self.handle) };
    }
}

impl Session {
    /// Tokens committed, prompts included.
    fn len(&self) -> usize {
        self.ledger.lock().committed.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How it decodes, as a name for counts.
    fn way(&self) -> &'static str {
        const WAYS: [[&str; 2]; 4] = [
            ["auto, combined", "auto, routed"],
            ["standard, combined", "standard, routed"],
            ["speculative, combined", "speculative, routed"],
            ["cos, combined", "cos, routed"],
        ];
        WAYS[self.options.strategy as usize][usize::from(self.routed)]
    }

    /// How the sequence ends with a further token.
    fn end(&self, token: i32) -> i32 {
        let ledger = self.ledger.lock();
        let length = ledger.committed.len() + 1;
        if self.stop_tokens.contains(&token) {
            COS_FINISH_STOP
        } else if length - ledger.prompt_end == self.options.max_tokens {
            COS_FINISH_MAX_TOKENS
        } else if length == self.capacity {
            COS_FINISH_CONTEXT_FULL
        } else {
            COS_FINISH_NONE
        }
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// What comes of a run

/// How far tokens lean from their distributions `r` towards that of their drafter, `q`, as most mistakes of
/// verification would make them: the sum of `g(token) − E g` with `g = q / r`, a martingale if decoding is exact, and
/// the variance that it should have.
#[derive(Debug, Clone, Copy, Default)]
struct Lean {
    sum: f64,
    variance: f64,
    tokens: u64,
}

impl Lean {
    fn add(&mut self, r: &[f64], q: &[f64], token: usize) {
        // Any function has an expectation; this one is bounded, so that no single token outweighs all others.
        let g = |token: usize| (q[token] / r[token]).min(8.0);
        let possible = || (0..r.len()).filter(|&token| r[token] > 0.0);
        let mean: f64 = possible().map(|token| r[token] * g(token)).sum();
        self.sum += g(token) - mean;
        self.variance += possible().map(|token| r[token] * (g(token) - mean).powi(2)).sum::<f64>();
        self.tokens += 1;
    }

    /// In standard deviations.
    fn score(&self) -> f64 {
        self.sum / self.variance.sqrt().max(f64::MIN_POSITIVE)
    }
}

#[derive(Debug, Default)]
struct Report {
    /// Steps that ran a round.
    rounds: u64,
    /// Tokens that were compared with the oracle, and those of them that lie on an edge of a filter.
    judged: u64,
    edges: u64,
    lean: BTreeMap<&'static str, Lean>,
    coverage: BTreeMap<&'static str, u64>,
}

impl Report {
    fn cover(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    fn merge(&mut self, other: Report) {
        self.rounds += other.rounds;
        self.judged += other.judged;
        self.edges += other.edges;
        for (way, other) in other.lean {
            let own = self.lean.entry(way).or_default();
            own.sum += other.sum;
            own.variance += other.variance;
            own.tokens += other.tokens;
        }
        for (what, count) in other.coverage {
            *self.coverage.entry(what).or_default() += count;
        }
    }
}

/// A promise that was not kept.
#[derive(Debug)]
struct Violation {
    seed: u64,
    call: u64,
    what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { seed, call, what } = self;
        writeln!(f, "seed {seed}, call {call}: {what}")?;
        write!(f, "replay: COS_SEED={seed} cargo test --release --test algorithm promises")
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// The simulation

/// One run.
struct Simulation {
    rng: fastrand::Rng,
    stage: Arc<Stage>,
    models: Vec<Participant>,
    combine: Combine,
    engine: Arc<Engine>,
    /// NULL once it is freed.
    handle: *mut cos_engine,
    sessions: Vec<Session>,
    names: u32,
    bug: Option<Bug>,
    trace: bool,
    call: u64,
    rows: Vec<Vec<f32>>,
    /// What the sessions did, as the engine must say.
    totals: Vec<u64>,
    report: Report,
}

impl Drop for Simulation {
    fn drop(&mut self) {
        // SAFETY: made by `into_raw` and freed once, for it is NULL afterwards.
        unsafe { cos_engine_free(self.handle) };
    }
}

/// A line of the trace, made only where it is wanted. Not through `println`, which the test runner keeps to itself.
macro_rules! trace {
    ($simulation:expr, $($arg:tt)*) => {
        if $simulation.trace {
            let line = format!($($arg)*);
            let _ = writeln!(std::io::stderr(), "{:>5}  {line}", $simulation.call);
        }
    };
}

/// Fail with what is wrong, unless it is right.
macro_rules! ensure {
    ($right:expr, $($arg:tt)*) => {
        if !$right {
            return Err(format!($($arg)*));
        }
    };
}

type Check<T = ()> = Result<T, String>;

/// Run one seed.
fn run(seed: u64, bug: Option<Bug>, trace: bool) -> Result<Report, Violation> {
    let mut simulation = Simulation::new(seed, bug, trace);
    let calls = simulation.rng.u64(50..1000);
    while simulation.call < calls {
        simulation.call += 1;
        let done = simulation.act();
        let found = simulation.stage.state.lock().events.violation.take();
        if let Some(what) = found.or(done.err()) {
            return Err(Violation { seed, call: simulation.call, what });
        }
    }
    Ok(std::mem::take(&mut simulation.report))
}

impl Simulation {
    fn new(seed: u64, bug: Option<Bug>, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let vocab = rng.usize(2..=12);
        let world = World::ALL[rng.usize(..World::ALL.len())];
        let bad = if rng.u8(..4) == 0 { rng.u64(20..200) } else { 0 };
        let truth = Truth { seed: rng.u64(..), world, vocab, bad };

        // Each seed has its own set of faults, so that some runs see many of one kind, and some none.
        let all = [Fault::Failure, Fault::Panic, Fault::Cancel, Fault::Spoil, Fault::Reenter];
        let faults = if rng.bool() { all.into_iter().filter(|_| rng.u8(..5) < 2).collect() } else { Vec::new() };
        let mut state = State {
            rng: rng.fork(),
            faults,
            every: 10 << rng.u64(..5),
            rows_left: 0,
            calls_left: 0,
            session: null_mut(),
            ledger: None,
            start: None,
            events: Events::default(),
        };
        (state.rows_left, state.calls_left) = (state.gap(), state.gap());
        let stage = Arc::new(Stage { truth, clock: AtomicU64::new(0), state: Mutex::new(state) });

        let scoring = rng.usize(1..=4);
        let models = models(&mut rng, &stage, scoring, bug);
        let count = models.len();
        let combine = match rng.u8(..if scoring > 1 { 8 } else { 7 }) {
            0..4 => Combine::Weighted { weights: mixture(&mut rng, scoring, count) },
            4 | 5 => Combine::Logits { weights: logit_weights(&mut rng, scoring, count) },
            6 => Combine::Target { model: rng.usize(..scoring) },
            _ => {
                let plausibility = if rng.bool() { 0.0 } else { 0.5 * rng.f32() };
                Combine::Contrastive { mu: rng.f32(), plausibility }
            }
        };
        let stop_tokens = if rng.u8(..4) == 0 { vec![rng.i32(0..vocab as i32)] } else { Vec::new() };
        let engine = Engine::new(models.clone(), combine.clone(), stop_tokens, None).expect("a valid engine");
        let engine = engine.with_serial(rng.bool().then(|| rng.f64()));
        let told = stage.clone();
        let engine = engine.with_clock(move || Duration::from_nanos(told.clock.fetch_add(1000, Ordering::Relaxed)));
        let engine = Arc::new(engine);
        let handle = cos_engine::into_raw(engine.clone());
        let rows = vec![vec![0.0; vocab]; count];
        let simulation = Simulation {
            rng,
            stage,
            models,
            combine,
            engine,
            handle,
            sessions: Vec::new(),
            names: 0,
            bug,
            trace,
            call: 0,
            rows,
            totals: members(&no_stats()),
            report: Report::default(),
        };
        trace!(simulation, "seed {seed}: {vocab} tokens, {world:?} models, {:?}", simulation.combine);
        for model in &simulation.models {
            let Some(model) = model.model() else { continue };
            let (context, pass, cost) = (model.context_length(), model.max_pass(), model.cost());
            trace!(simulation, "model {}: context {context}, passes of {pass}, cost {cost}", model.name());
        }
        trace!(simulation, "{:?}, a bad context of {bad}", simulation.stage.state.lock().faults);
        simulation
    }

    fn vocab(&self) -> usize {
        self.stage.truth.vocab
    }

    /// Whether something happens that does so once in `n` times.
    fn once_in(&mut self, n: u32) -> bool {
        self.rng.u32(..n) == 0
    }

    /// Make one call, and check what comes of it.
    fn act(&mut self) -> Check {
        if self.sessions.is_empty() || (self.sessions.len() < 4 && self.once_in(100)) {
            if !self.handle.is_null() {
                return self.start();
            }
            if self.sessions.is_empty() {
                return Ok(()); // nothing is left to call
            }
        }
        if self.once_in(5000) && !self.handle.is_null() {
            trace!(self, "engine_free");
            // SAFETY: not freed yet.
            unsafe { cos_engine_free(std::mem::replace(&mut self.handle, null_mut())) };
            self.report.cover("engine freed before its sessions");
        }
        let index = self.rng.usize(..self.sessions.len());
        let mut session = self.sessions.swap_remove(index);
        self.stage.state.lock().session = session.handle;
        // Of steps, prompts, weights, cancellations, misuses, and ends.
        let shares: [u32; 6] = match session.finish {
            _ if session.poisoned => [1, 1, 1, 1, 1, 2],
            COS_FINISH_CONTEXT_FULL => [3, 2, 2, 1, 1, 6],
            // A round that failed may have told where the position is routed. A caller who then leaves it chooses among
            // tokens; one who changes the weights does not.
            COS_FINISH_NONE if session.routed && (1..20).contains(&session.failures) => [20, 0, 5, 1, 1, 0],
            COS_FINISH_NONE if session.is_empty() || session.failures > 2 => [6, 10, 2, 1, 1, 1],
            COS_FINISH_NONE => [1800, 40, 60, 30, 15, 5],
            _ => [10, 40, 6, 2, 2, 3],
        };
        let mut at = self.rng.u32(..shares.iter().sum::<u32>());
        let call = shares.iter().position(|&share| {
            let here = at < share;
            at = at.saturating_sub(share);
            here
        });
        let done = match call {
            Some(0) => self.step(&mut session),
            Some(1) => self.prompt(&mut session),
            Some(2) => self.set_weights(&mut session),
            Some(3) => self.cancel(&mut session),
            Some(4) => self.misuse(&mut session),
            _ => {
                trace!(self, "free {}", session.name);
                self.report.cover("free");
                return Ok(());
            }
        };
        self.sessions.push(session);
        done
    }

    /// Say what a call returned, and check that it is what it had to.
    fn expect(&mut self, call: fmt::Arguments, (code, message): (i32, String), expected: i32) -> Check {
        trace!(self, "{call} -> {}{}{message}", error_name(code), if message.is_empty() { "" } else { ": " });
        self.report.cover(error_name(code));
        ensure!(code == expected, "{call} gave {} ({message}), not {}", error_name(code), error_name(expected));
        Ok(())
    }

    /// Start a session, mostly a valid one.
    fn start(&mut self) -> Check {
        let options = self.options();
        let combination = self.engine.combination(options.weights.as_deref()).expect("valid weights");
        let plan = self.plan(&options, &combination);
        let needed = (0..self.models.len()).map(|model| combination.needs(model)).collect();
        let function = options.function.then(|| Box::new(FunctionData { stage: self.stage.clone(), needed }));
        let max_pending = self.max_pending(&options, &plan);
        let ledger = Ledger { max_pending, caches: vec![Vec::new(); self.models.len()], ..Ledger::default() };
        let ledger = Arc::new(Mutex::new(ledger));
        self.stage.state.lock().ledger = Some(ledger.clone());

        let mut given = self.given(&options, function.as_deref());
        let wrong_lengths = vec![65; self.models.len()];
        let mut expected = 0;
        if self.once_in(10) {
            expected = COS_ERROR_INVALID_ARGUMENT;
            match self.rng.u8(..9) {
                0 => given.strategy = 4,
                1 => given.targets = -1,
                2 => given.temperature = -1.0,
                3 => given.top_k = -1,
                4 => (given.top_p, given.min_p) = (1.5, f32::NAN),
                5 => given.log_probabilities = 2,
                6 => {
                    (given.proposal_lengths, given.proposal_lengths_count) =
                        (wrong_lengths.as_ptr(), wrong_lengths.len())
                }
                // routed, for which there must be a mixture and a temperature and no function
                7 => (given.targets, given.temperature) = (COS_TARGETS_ROUTED, 0.0),
                _ => given.struct_size = 8,
            }
        } else if self.once_in(50) {
            let fault = if self.rng.bool() { Fault::Panic } else { Fault::Failure };
            expected = if fault == Fault::Panic { COS_ERROR_INTERNAL } else { COS_ERROR_RUNTIME };
            self.stage.state.lock().start = Some(fault);
        }
        let mut handle = null_mut();
        // SAFETY: the engine and what the options point to live.
        let result = outcome(unsafe { cos_session_new(self.handle, &given, &mut handle) });
        self.names += 1;
        let name = self.names;
        self.expect(format_args!("session_new {name}: {options:?}"), result, expected)?;
        ensure!(handle.is_null() == (expected != 0), "a session was written by a call that failed, or none was");
        if expected != 0 {
            return Ok(());
        }
        self.report.cover(match &self.combine {
            _ if options.function => "combination: function",
            Combine::Weighted { .. } => "combination: weighted",
            Combine::Logits { .. } => "combination: logits",
            Combine::Target { .. } => "combination: target",
            Combine::Contrastive { plausibility: 0.0, .. } => "combination: contrastive",
            Combine::Contrastive { .. } => "combination: contrastive, plausible",
        });
        let session = Session {
            handle,
            name,
            ledger,
            _function: function,
            routed: plan.targets == Targets::Routed,
            drafter: Self::drafter(&plan),
            stop_tokens: options.stop_tokens.clone().unwrap_or_else(|| self.engine.stop_tokens().to_vec()),
            capacity: self.capacity(&combination),
            combination: if options.function { all_ones(&combination) } else { combination },
            options,
            finish: COS_FINISH_NONE,
            cancel_requested: false,
            poisoned: false,
            failures: 0,
            spoilt: Vec::new(),
            steps: 0,
            tokens: 0,
            stats: no_stats(),
        };
        self.report.cover(session.way());
        self.sessions.push(session);
        Ok(())
    }

    fn options(&mut self) -> Options {
        let (vocab, count) = (self.vocab() as i32, self.models.len());
        let weighted = matches!(self.combine, Combine::Weighted { .. });
        let takes_weights = weighted || matches!(self.combine, Combine::Logits { .. });
        let (greedy, function, log_probabilities) = (self.once_in(3), self.once_in(5), self.once_in(3));
        let mut choose = |values: &[f32]| values[self.rng.usize(..values.len())];
        let sampling = Sampling {
            temperature: if greedy { 0.0 } else { choose(&[0.3, 0.7, 1.0, 1.0, 2.0]) },
            top_k: choose(&[0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 20.0]) as usize,
            top_p: choose(&[0.0, 0.0, 0.3, 0.8, 0.95, 1.0]),
            min_p: choose(&[0.0, 0.0, 0.0, 0.05, 0.4]),
        };
        let routable = weighted && !function && !greedy && !log_probabilities;
        let last = if routable { COS_TARGETS_ROUTED } else { COS_TARGETS_COMBINED };
        Options {
            strategy: self.rng.i32(COS_STRATEGY_AUTO..=COS_STRATEGY_COS),
            targets: self.rng.i32(COS_TARGETS_AUTO..=last),
            sampling,
            lengths: self.rng.bool().then(|| (0..count).map(|_| self.rng.i32(0..=8)).collect()),
            weights: (takes_weights && self.rng.bool()).then(|| self.weights()),
            stop_tokens: self.once_in(4).then(|| (0..self.rng.usize(..3)).map(|_| self.rng.i32(0..vocab)).collect()),
            max_tokens: if self.rng.bool() { 0 } else { self.rng.usize(1..=40) },
            log_probabilities,
            function,
        }
    }

    /// Options as the interface takes them; they point to what they are made from.
    fn given(&self, options: &Options, function: Option<&FunctionData>) -> cos_session_options {
        fn array<T>(values: &Option<Vec<T>>) -> (*const T, usize) {
            values.as_ref().map_or((null(), 0), |values| (values.as_ptr(), values.len()))
        }
        let Sampling { temperature, top_k, top_p, min_p } = options.sampling;
        let (proposal_lengths, proposal_lengths_count) = array(&options.lengths);
        let (weights, weights_count) = array(&options.weights);
        let (stop_tokens, stop_tokens_count) = array(&options.stop_tokens);
        cos_session_options {
            struct_size: size_of::<cos_session_options>(),
            strategy: options.strategy,
            temperature,
            top_k: top_k as i32,
            top_p,
            min_p,
            seed: self.stage.truth.seed ^ u64::from(self.names),
            max_tokens: options.max_tokens as u32,
            proposal_lengths,
            proposal_lengths_count,
            weights,
            weights_count,
            stop_tokens,
            stop_tokens_count,
            targets: options.targets,
            log_probabilities: i32::from(options.log_probabilities),
            combine: if options.function { Some(sum) } else { None },
            combine_data: function.map_or(null_mut(), |data| (data as *const FunctionData).cast_mut().cast()),
        }
    }

    /// Valid weights for this engine.
    fn weights(&mut self) -> Vec<f32> {
        let scoring = self.models.iter().filter(|each| each.model().is_some()).count();
        match self.combine {
            Combine::Weighted { .. } => mixture(&mut self.rng, scoring, self.models.len()),
            _ => logit_weights(&mut self.rng, scoring, self.models.len()),
        }
    }

    /// How the library decodes: which models run, and how many proposals can be pending, is its own affair.
    fn plan(&self, options: &Options, combination: &Combination) -> Plan {
        let unused = || Function::new(|_, _| Ok(()));
        let function = options.function.then(|| combination.clone().with_function(unused()));
        let costs: Vec<u64> = self.models.iter().map(|model| model.cost()).collect();
        let strategies = [Strategy::Auto, Strategy::Standard, Strategy::Speculative, Strategy::Cos];
        let plan = Plan::new(&Request {
            strategy: strategies[options.strategy as usize],
            targets: [None, Some(Targets::Combined), Some(Targets::Routed)][options.targets as usize],
            lengths: options.lengths.as_deref(),
            combination: function.as_ref().unwrap_or(combination),
            greedy: options.is_greedy(),
            log_probabilities: options.log_probabilities,
            costs: &costs,
        });
        plan.expect("a valid session")
    }

    /// Most proposals that can be pending. `auto` may take any plan with the lengths that it knows.
    fn max_pending(&self, options: &Options, plan: &Plan) -> usize {
        const LONGEST: i32 = 16;
        if options.strategy != COS_STRATEGY_AUTO {
            return plan.policy.max_pending();
        }
        let lengths = options.lengths.clone().unwrap_or_else(|| vec![LONGEST; self.models.len()]);
        (lengths.iter().sum::<i32>() + lengths.iter().max().expect("a model")) as usize
    }

    /// The context of the models that have a say.
    fn capacity(&self, combination: &Combination) -> usize {
        let needed = combination.needed();
        needed
            .map(|model| self.models[model].model().map_or(usize::MAX, Model::context_length))
            .min()
            .expect("a model that is needed")
    }

    /// The model that proposes first, or any one if none does.
    fn drafter(plan: &Plan) -> usize {
        match &plan.policy {
            Policy::Standard => 0,
            Policy::Speculative { proposer, .. } => *proposer,
            Policy::Cos { order, .. } => order[0],
        }
    }

    fn prompt(&mut self, session: &mut Session) -> Check {
        let (vocab, committed) = (self.vocab() as i32, session.len());
        let room = session.capacity - committed;
        let length = match self.rng.u8(..32) {
            0 => 0,
            1 => room + self.rng.usize(1..4),
            2 => session.capacity + self.rng.usize(1..4),
            3 => room,
            _ => self.rng.usize(1..=12).min(room.max(1)),
        };
        let mut tokens: Vec<i32> = (0..length).map(|_| self.rng.i32(0..vocab)).collect();
        let foreign = length > 0 && self.once_in(12);
        if foreign {
            let at = self.rng.usize(..length);
            tokens[at] = [-1, vocab, i32::MAX, i32::MIN][self.rng.usize(..4)];
        }
        let expected = match () {
            _ if session.poisoned => COS_ERROR_POISONED,
            _ if length == 0 => COS_ERROR_INVALID_ARGUMENT,
            _ if length > room => COS_ERROR_CONTEXT_FULL,
            _ if foreign => COS_ERROR_INVALID_ARGUMENT,
            _ => 0,
        };
        // SAFETY: the session lives, and the tokens are as many.
        let mut result = outcome(unsafe { cos_prompt(session.handle, tokens.as_ptr(), length) });
        if self.bug == Some(Bug::Forgives) && session.poisoned {
            result.0 = 0;
        }
        self.expect(format_args!("prompt {} by {tokens:?}", session.name), result, expected)?;
        if expected == 0 {
            self.report.cover(if committed == 0 { "prompt" } else { "chat turn" });
            if session.finish != COS_FINISH_NONE {
                self.report.cover("prompt after an end");
            }
            let mut ledger = session.ledger.lock();
            ensure!(ledger.longest() <= committed, "a prompt left pending tokens in a cache");
            ledger.committed.extend_from_slice(&tokens);
            ledger.prompt_end = ledger.committed.len();
            let full = ledger.prompt_end == session.capacity;
            session.finish = if full { COS_FINISH_CONTEXT_FULL } else { COS_FINISH_NONE };
            session.failures = 0;
        }
        self.look(session)
    }

    fn set_weights(&mut self, session: &mut Session) -> Check {
        let count = self.models.len();
        let takes = matches!(self.combine, Combine::Weighted { .. } | Combine::Logits { .. });
        let mut weights = self.weights();
        let valid = takes && !session.options.function;
        let spoilt = self.once_in(6);
        if spoilt {
            match self.rng.u8(..4) {
                0 => weights.push(0.0),
                1 => weights[0] = f32::NAN,
                2 if self.models[count - 1].model().is_none() => weights[count - 1] = 0.5,
                2 => weights.clear(),
                _ => weights.fill(0.0),
            }
        }
        let new = (valid && !spoilt).then(|| {
            let combination = self.engine.combination(Some(&weights)).expect("valid weights");
            let plan = self.plan(&session.options, &combination);
            (self.capacity(&combination), combination, plan)
        });
        let committed = session.len();
        let expected = match &new {
            _ if session.poisoned => COS_ERROR_POISONED,
            None => COS_ERROR_INVALID_ARGUMENT,
            Some((capacity, ..)) if committed > *capacity => COS_ERROR_CONTEXT_FULL,
            Some(_) => 0,
        };
        let pending = session.ledger.lock().longest() > committed;
        // SAFETY: the session lives, and the weights are as many.
        let result = outcome(unsafe { cos_session_set_weights(session.handle, weights.as_ptr(), weights.len()) });
        self.expect(format_args!("set_weights {} to {weights:?}", session.name), result, expected)?;
        if expected == COS_ERROR_CONTEXT_FULL {
            self.report.cover("weights refused, no room");
        }
        if expected == 0
            && let Some((capacity, combination, plan)) = new
        {
            self.report.cover("weights set");
            if pending {
                let kept = session.ledger.lock().longest() > committed;
                self.report.cover(if kept { "weights set, proposals kept" } else { "weights set, proposals dropped" });
            }
            session.ledger.lock().max_pending = self.max_pending(&session.options, &plan);
            session.combination = combination;
            session.routed = plan.targets == Targets::Routed;
            session.drafter = Self::drafter(&plan);
            session.capacity = capacity;
            if matches!(session.finish, COS_FINISH_NONE | COS_FINISH_CONTEXT_FULL) {
                let full = committed == capacity;
                if !full && session.finish != COS_FINISH_NONE {
                    self.report.cover("weights made room");
                }
                session.finish = if full { COS_FINISH_CONTEXT_FULL } else { COS_FINISH_NONE };
            }
            session.failures = 0;
        }
        self.look(session)
    }

    fn cancel(&mut self, session: &mut Session) -> Check {
        // SAFETY: the session lives.
        let result = outcome(unsafe { cos_cancel(session.handle) });
        let expected = if session.poisoned { COS_ERROR_POISONED } else { 0 };
        session.cancel_requested |= !session.poisoned;
        self.expect(format_args!("cancel {}", session.name), result, expected)?;
        self.look(session)
    }

    /// Calls that are wrong whatever the state; nothing happens.
    fn misuse(&mut self, session: &mut Session) -> Check {
        let mut small = cos_step_result { struct_size: 8, ..sentinel() };
        let mut large = [0usize; 32];
        large[0] = size_of_val(&large);
        large[31] = 1; // a member of a later version
        let invalid = if session.poisoned { COS_ERROR_POISONED } else { COS_ERROR_INVALID_ARGUMENT };
        // SAFETY: the pointers are NULL or valid; sizes say how far.
        let (call, error, expected) = unsafe {
            match self.rng.u8(..6) {
                0 => ("step into NULL", cos_step(session.handle, null_mut()), invalid),
                1 => ("step into a small result", cos_step(session.handle, &mut small), invalid),
                2 => ("step of NULL", cos_step(null_mut(), &mut sentinel()), COS_ERROR_INVALID_ARGUMENT),
                3 => ("stats into NULL", cos_session_stats(session.handle, null_mut()), COS_ERROR_INVALID_ARGUMENT),
                4 => ("weights of NULL", cos_session_set_weights(session.handle, null(), self.models.len()), invalid),
                _ if self.handle.is_null() => return Ok(()),
                _ => {
                    let mut out = null_mut();
                    let error = cos_session_new(self.handle, large.as_ptr().cast(), &mut out);
                    ensure!(out.is_null(), "a session was written though none was made");
                    ("session_new of a later version", error, COS_ERROR_UNSUPPORTED)
                }
            }
        };
        self.expect(format_args!("{call}"), outcome(error), expected)?;
        ensure!(is_untouched(&small), "a failed call wrote its output");
        self.look(session)
    }

    fn step(&mut self, session: &mut Session) -> Check {
        let cancelled = session.cancel_requested;
        let open = session.finish == COS_FINISH_NONE && !session.is_empty();
        let runs = open && !session.poisoned && !cancelled;
        self.report.rounds += u64::from(runs);
        let mut result = sentinel();
        // SAFETY: the session lives.
        let (code, message) = outcome(unsafe { cos_step(session.handle, &mut result) });
        let mut events = std::mem::take(&mut self.stage.state.lock().events);
        if let Some(what) = events.violation.take() {
            return Err(what);
        }
        match self.bug {
            Some(Bug::LosesToken) if code == 0 && result.tokens_count > 1 => result.tokens_count -= 1,
            Some(Bug::MissesTheEnd) if result.finish == COS_FINISH_MAX_TOKENS => result.finish = COS_FINISH_NONE,
            Some(Bug::WritesOnError) if code != 0 => result.finish = 0,
            _ => {}
        }
        events.cover(&mut self.report);
        self.report.cover(if code == 0 { finish_name(result.finish) } else { error_name(code) });
        session.steps += u64::from(!session.poisoned);
        session.cancel_requested |= events.happened(Fault::Cancel);
        session.spoilt.extend(&events.spoilt);
        ensure!(runs || events.rows == 0, "a model ran, but there was nothing to decode");
        if code != 0 {
            trace!(self, "step {} -> {}: {message}", session.name, error_name(code));
            ensure!(is_untouched(&result), "a failed step wrote its result");
            let explained = match code {
                COS_ERROR_POISONED => session.poisoned,
                _ if session.poisoned || cancelled => false,
                COS_ERROR_INVALID_ARGUMENT => session.is_empty(),
                COS_ERROR_RUNTIME => events.happened(Fault::Failure) && message.contains(PLANTED),
                COS_ERROR_INTERNAL => events.happened(Fault::Panic) && message.contains(PLANTED),
                COS_ERROR_CALLBACK => events.function_failed && message.contains("-7"),
                COS_ERROR_NUMERIC => events.function_spoilt || self.is_undecidable(session),
                _ => false,
            };
            ensure!(explained, "step gave {} ({message}), which nothing explains", error_name(code));
            session.poisoned |= code == COS_ERROR_INTERNAL;
            return if runs { self.rolled_back(session) } else { self.look(session) };
        }

        // SAFETY: the step went well, so the pointers are NULL or have as many elements.
        let (tokens, values) = unsafe {
            let count = result.tokens_count;
            let tokens = if count > 0 { std::slice::from_raw_parts(result.tokens, count) } else { &[] };
            let values = result.log_probabilities;
            (tokens, (!values.is_null()).then(|| std::slice::from_raw_parts(values, count)))
        };
        trace!(self, "step {} -> {tokens:?} {values:?}, {}", session.name, finish_name(result.finish));
        ensure!(!session.poisoned, "a poisoned session made a step");
        ensure!(result.reserved == 0, "reserved is {}", result.reserved);
        ensure!(!events.happened(Fault::Panic), "a panic went unnoticed");
        // What `auto` tries a drafter for is no more than to learn of it.
        let probed = session.options.strategy == COS_STRATEGY_AUTO && !session.combination.needs(events.failed);
        ensure!(!events.happened(Fault::Failure) || probed, "a failed pass went unnoticed");
        let wanted = session.options.log_probabilities && !tokens.is_empty();
        ensure!(values.is_some() == wanted, "log-probabilities are missing, or were not asked for");
        if result.finish == COS_FINISH_CANCELLED {
            ensure!(session.cancel_requested, "a step was cancelled, which nobody asked for");
            ensure!(tokens.is_empty(), "a cancelled step has tokens");
            self.report.cover(if cancelled { "cancelled between steps" } else { "cancelled within a pass" });
            session.cancel_requested = false;
            return if runs { self.rolled_back(session) } else { self.look(session) };
        }
        ensure!(!cancelled, "a cancellation had no effect");
        ensure!(!session.is_empty(), "a session without a prompt made a step");
        if !open {
            ensure!(tokens.is_empty() && result.finish == session.finish, "a sequence that has ended went on");
            self.report.cover("step after an end");
            return self.look(session);
        }
        self.commit(session, tokens, values, result.finish)
    }

    /// A round has failed or was cancelled: no cache holds more than all but the last committed token.
    fn rolled_back(&mut self, session: &mut Session) -> Check {
        session.failures += 1;
        let ledger = session.ledger.lock();
        let (longest, committed) = (ledger.longest(), ledger.committed.len());
        drop(ledger);
        // After a panic nothing is promised.
        ensure!(
            session.poisoned || longest < committed,
            "a failed round left {longest} tokens of {committed} in a cache"
        );
        self.look(session)
    }

    /// A round has committed tokens.
    fn commit(&mut self, session: &mut Session, tokens: &[i32], values: Option<&[f32]>, finish: i32) -> Check {
        ensure!(!tokens.is_empty(), "a step that was neither finished nor cancelled has no tokens");
        let (before_tested, before_accepted) = (session.stats.tested, session.stats.accepted);
        for (index, &token) in tokens.iter().enumerate() {
            ensure!((0..self.vocab() as i32).contains(&token), "token {token} is outside the vocabulary");
            let end = session.end(token);
            let told = if index + 1 < tokens.len() { COS_FINISH_NONE } else { finish };
            let names = (finish_name(end), finish_name(told));
            ensure!(end == told, "behind token {index} the step has {}, but was told {}", names.0, names.1);
            let value = values.map(|values| match self.bug {
                Some(Bug::LogProbability) => values[index] * 1.1,
                _ => values[index],
            });
            // Half of them are enough: the oracle takes longer than a round.
            if self.rng.bool() {
                self.judge(session, token as usize, value)?;
            }
            session.ledger.lock().committed.push(token);
        }
        session.finish = finish;
        session.tokens += tokens.len() as u64;
        session.failures = 0;
        let committed = session.len();
        session.spoilt.retain(|&(_, position)| position >= committed);
        self.look(session)?;

        // A round accepts proposals, and then rejects one or draws a bonus token, or neither.
        let (tested, accepted) = (session.stats.tested - before_tested, session.stats.accepted - before_accepted);
        let (count, rejected) = (tokens.len() as u64, tested - accepted);
        ensure!(
            accepted <= count && count <= accepted + 1 && rejected <= count - accepted,
            "a step of {count} tokens accepted {accepted} of {tested} proposals"
        );
        if session.options.strategy == COS_STRATEGY_STANDARD {
            ensure!(session.stats.proposed == 0 && count == 1, "nobody proposes, but there are proposals");
        }
        for (happened, what) in [
            (accepted > 0, "proposal accepted"),
            (rejected > 0, "proposal rejected"),
            (accepted > 0 && count > tested, "bonus token"),
        ] {
            if happened {
                self.report.cover(what);
            }
        }
        Ok(())
    }

    /// What holds after every call, whatever it was.
    fn look(&mut self, session: &mut Session) -> Check {
        let mut stats = no_stats();
        // SAFETY: the session lives.
        let code = code(unsafe { cos_session_stats(session.handle, &mut stats) });
        if session.poisoned {
            ensure!(code == COS_ERROR_POISONED, "a poisoned session told its statistics");
            return Ok(());
        }
        ensure!(code == 0, "statistics failed: {}", error_name(code));
        let ledger = session.ledger.lock();
        ledger.check()?;
        let found = [stats.steps, stats.tokens, stats.forwards, stats.positions];
        let expected = [session.steps, session.tokens, ledger.forwards, ledger.positions];
        ensure!(found == expected, "steps, tokens, forwards, positions are {found:?}, not {expected:?}");
        let of = |stats: &cos_stats| {
            let cos_stats { proposed, tested, accepted, near_ties, model_ns, total_ns, .. } = *stats;
            [proposed, tested, accepted, near_ties, model_ns, total_ns, stats.planned_ns]
        };
        let (now, before) = (of(&stats), of(&session.stats));
        ensure!(now.iter().zip(before).all(|(now, before)| *now >= before), "statistics fell: {before:?}, {now:?}");
        ensure!(stats.accepted <= stats.tested && stats.tested <= stats.proposed, "proposals do not add up: {now:?}");
        let decided = stats.tokens > session.stats.tokens;
        ensure!(decided || now[..4] == before[..4], "proposals of a round that failed count: {before:?}, {now:?}");
        drop(ledger);
        for ((total, now), before) in self.totals.iter_mut().zip(members(&stats)).zip(members(&session.stats)) {
            *total += now - before;
        }
        session.stats = stats;
        if self.once_in(64) {
            self.describe(session)?;
        }
        let mut totals = no_stats();
        if !self.handle.is_null() {
            // SAFETY: the engine lives.
            ensure!(unsafe { cos_engine_stats(self.handle, &mut totals) }.is_null(), "an engine without statistics");
            ensure!(members(&totals) == self.totals, "the engine did {:?}, not {:?}", members(&totals), self.totals);
        }
        Ok(())
    }

    /// A description is that of what was asked for.
    fn describe(&mut self, session: &Session) -> Check {
        let mut json = null();
        // SAFETY: the session lives, and so does its description.
        let text = unsafe {
            let code = code(cos_session_describe(session.handle, &mut json));
            ensure!(code == 0, "a description failed: {}", error_name(code));
            CStr::from_ptr(json).to_str().expect("UTF-8")
        };
        let description: Value = serde_json::from_str(text).map_err(|error| format!("{text}: {error}"))?;
        let auto = session.options.strategy == COS_STRATEGY_AUTO;
        let asked = ["standard", "speculative", "cos"].get(session.options.strategy.wrapping_sub(1) as usize);
        let strategy = description["strategy"].as_str().unwrap_or_default();
        let lengths: Vec<i64> =
            description["proposal_lengths"].as_array().into_iter().flatten().filter_map(Value::as_i64).collect();
        // Who has nothing to propose decodes as standard does.
        let as_asked = auto || strategy == "standard" || Some(&strategy) == asked;
        ensure!(as_asked && description["planned"] == auto, "what was asked for is not what is told: {text}");
        if let Some(pinned) = &session.options.lengths {
            let kept = lengths.iter().zip(pinned).all(|(length, pinned)| [0, i64::from(*pinned)].contains(length));
            ensure!(kept && lengths.len() == pinned.len(), "pinned lengths are {pinned:?}, told is {text}");
        }
        let routed = description["targets"] == "routed";
        ensure!(!routed || session.routed, "the session may not be routed, told is {text}");
        if description["changes"].as_u64() > Some(0) {
            self.report.cover("plan changed");
        }
        Ok(())
    }

    /// The models' rows for the next token of a session, into `rows`; whether any, and whether all are bad.
    fn truth(&mut self, session: &Session) -> (bool, bool) {
        let ledger = session.ledger.lock();
        let (mut any, mut all) = (false, true);
        for model in session.combination.needed() {
            self.stage.truth.row(model, &ledger.committed, &mut self.rows[model]);
            let bad = is_bad(&self.rows[model]);
            (any, all) = (any || bad, all && bad);
        }
        (any, all)
    }

    /// Whether the next token of a session cannot be decided, because of a bad row or an impossible combination.
    fn is_undecidable(&mut self, session: &Session) -> bool {
        let position = session.len();
        let spoilt = |(model, at): &(usize, usize)| *at == position && session.combination.needs(*model);
        self.truth(session).0
            || session.spoilt.iter().any(spoilt)
            || !is_distribution(&oracle(&self.rows, &session.combination, ranking(session.options.sampling)))
    }

    /// Whether a token is what the oracle allows as the next one of a session, with its log-probability.
    fn judge(&mut self, session: &Session, token: usize, value: Option<f32>) -> Check {
        if let Some(value) = value {
            ensure!(value.is_finite() && value < 1e-5, "the log-probability {value} is none");
        }
        let (any_bad, all_bad) = self.truth(session);
        if any_bad {
            // The route of a position, which the simulation cannot see, may have gone around the bad row.
            ensure!(session.routed && !all_bad, "token {token} was decided by the bad rows {:?}", self.rows);
            return Ok(());
        }
        let sampling = ranking(session.options.sampling);
        let allowed = |r: &[f64], tolerance: f64| {
            let best = r.iter().copied().fold(0.0, f64::max);
            let token_is =
                if session.options.is_greedy() { r[token] >= best * (1.0 - tolerance) } else { r[token] > 0.0 };
            let value_is = value.is_none_or(|value| (f64::from(value) - r[token].ln()).abs() < tolerance);
            is_distribution(r) && token_is && value_is
        };
        let r = oracle(&self.rows, &session.combination, sampling);
        self.report.judged += 1;
        if allowed(&r, 1e-4) {
            if !session.options.is_greedy() {
                self.lean(session, &r, token);
            }
            return Ok(());
        }
        // A score or a sum that lies on the edge of a filter may fall on either side of it by rounding.
        let on_edge = (0..8u64).any(|pattern| {
            let mut rows = self.rows.clone();
            for (at, logit) in rows.iter_mut().flatten().enumerate() {
                *logit += if mix(pattern << 32 | at as u64) & 1 == 0 { 1e-5 } else { -1e-5 };
            }
            allowed(&oracle(&rows, &session.combination, sampling), 1e-3)
        });
        ensure!(on_edge, "token {token} with {value:?} is not what {r:?} allows, of the rows {:?}", self.rows);
        self.report.edges += 1;
        Ok(())
    }

    /// Count how a token, whose distribution is `r`, leans towards its drafter.
    fn lean(&mut self, session: &Session, r: &[f64], token: usize) {
        let ledger = session.ledger.lock();
        let model = session.drafter;
        let q = if self.models[model].model().is_some() {
            self.stage.truth.row(model, &ledger.committed, &mut self.rows[model]);
            if is_bad(&self.rows[model]) {
                return;
            }
            let alone = Combination::target(self.models.len(), model).expect("a model");
            oracle(&self.rows, &alone, session.options.sampling)
        } else {
            let Some(certain) = look_up(&ledger.committed) else { return };
            (0..self.vocab()).map(|token| f64::from(u8::from(token == certain as usize))).collect()
        };
        self.report.lean.entry(session.way()).or_default().add(r, &q, token);
        self.report.lean.entry("all").or_default().add(r, &q, token);
    }
}

/// What a look-up proposes: the token behind the latest of the longest earlier occurrences of the end, of 2 to 8 tokens.
fn look_up(context: &[i32]) -> Option<i32> {
    let behind = |length: usize| {
        let end = &context[context.len().checked_sub(length)?..];
        (length..context.len()).rev().find(|&at| &context[at - length..at] == end).map(|at| context[at])
    };
    (2..=8).rev().find_map(behind)
}

/// A row, copied.
fn scores(sequence: &dyn Sequence, position: usize) -> Vec<f32> {
    sequence.row(position).scores().expect("a row on the host").to_vec()
}

/// What tokens are ranked and told by: a greedy session's log-probabilities are at temperature 1 without filters.
fn ranking(sampling: Sampling) -> Sampling {
    if sampling.temperature == 0.0 { Sampling::PLAIN } else { sampling }
}

fn is_distribution(r: &[f64]) -> bool {
    (r.iter().sum::<f64>() - 1.0).abs() < 1e-5
}

/// The models of a run.
fn models(rng: &mut fastrand::Rng, stage: &Arc<Stage>, scoring: usize, bug: Option<Bug>) -> Vec<Participant> {
    let longest = rng.usize(8..=200);
    let mut models: Vec<Participant> = Vec::new();
    for model in 0..scoring {
        let (of_script, vocab) = (stage.clone(), stage.truth.vocab);
        let stage = stage.clone();
        let script = move |context: &[i32], row: &mut [f32]| {
            of_script.truth.row(model, context, row);
            of_script.on_row(model, context.len(), row)
        };
        let context = if rng.u8(..4) > 0 { longest } else { rng.usize(8..=longest) };
        let scripted = Scripted::new(vocab, script)
            .with_name(["a", "b", "c", "d"][model])
            .with_context_length(context)
            .with_max_pass(rng.usize(1..=8))
            .with_cost(rng.u64(1..=20));
        let (first, further) = (rng.u64(10..2000), rng.u64(..100));
        let time = move |width: usize, _| Duration::from_micros(first + further * (width as u64 - 1));
        let scripted = if rng.bool() { scripted.with_pass_times(time) } else { scripted };
        let scripted = if rng.bool() { scripted.with_overlap(rng.f64()) } else { scripted };
        let double = Double { inner: Box::new(scripted), index: model, stage, bug };
        models.push(Arc::new(double).into());
    }
    // behind the others, since rows are known by the numbers of their models
    if rng.u8(..4) == 0 {
        models.push(Participant::LookUp("ngram".into()));
    }
    models
}

/// Weights of a mixture; what does not score has none.
fn mixture(rng: &mut fastrand::Rng, scoring: usize, count: usize) -> Vec<f32> {
    let mut weights = vec![0.0; count];
    weights[rng.usize(..scoring)] = 1.0;
    if rng.u8(..6) > 0 {
        weights[..scoring].iter_mut().for_each(|weight| *weight += if rng.u8(..3) > 0 { rng.f32() } else { 0.0 });
    }
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Weights of logits; what does not score has none.
fn logit_weights(rng: &mut fastrand::Rng, scoring: usize, count: usize) -> Vec<f32> {
    let mut weights = vec![0.0; count];
    weights[..scoring].iter_mut().for_each(|weight| *weight = if rng.bool() { 2.0 * rng.f32() - 0.7 } else { 0.0 });
    weights[rng.usize(..scoring)] = 1.0;
    weights
}

/// What [`sum`] makes of the models that a combination needs.
fn all_ones(combination: &Combination) -> Combination {
    let ones: Vec<f32> = combination.weights().iter().map(|&weight| f32::from(u8::from(weight != 0.0))).collect();
    Combination::logits(&ones).expect("a model that is needed")
}

// ---------------------------------------------------------------------------------------------------------------------
// Tests

/// Keep planted panics off the screen; others are shown.
fn quiet_planted_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let shown = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let planted = info.payload_as_str().is_some_and(|message| message.contains(PLANTED));
            if !planted {
                shown(info);
            }
        }));
    });
}

/// Run seeds from 0 on, on all cores and in blocks, until there are so many rounds: always the same seeds.
fn simulate(rounds: u64) -> Result<(Report, u64), Violation> {
    const BLOCK: u64 = 256;
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let (mut report, mut seeds) = (Report::default(), 0);
    while report.rounds < rounds {
        let next = AtomicU64::new(seeds);
        seeds += BLOCK;
        let work = || {
            let mut done = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return done;
                }
                let result = std::panic::catch_unwind(|| run(seed, None, false));
                let panicked = |_| Err(Violation { seed, call: 0, what: "the simulation itself panicked".into() });
                done.push((seed, result.unwrap_or_else(panicked)));
            }
        };
        let mut done: Vec<(u64, Result<Report, Violation>)> = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            workers.into_iter().flat_map(|worker| worker.join().expect("panics are caught")).collect()
        });
        done.sort_by_key(|(seed, _)| *seed); // so that sums are the same on any number of cores
        for (_, result) in done {
            report.merge(result?);
        }
    }
    Ok((report, seeds))
}

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} is {value}, not a number")))
}

#[test]
fn promises_are_kept() {
    quiet_planted_panics();
    if let Some(seed) = number("COS_SEED") {
        if let Err(violation) = run(seed, None, true) {
            panic!("{violation}");
        }
        return;
    }
    let (rounds, started) = (number("COS_SIMULATION_ROUNDS").unwrap_or(1_000_000), Instant::now());
    let (report, seeds) = simulate(rounds).unwrap_or_else(|violation| panic!("{violation}"));
    let seconds = started.elapsed().as_secs_f64();
    let rate = report.rounds as f64 / seconds;
    let mut summary = format!("{seeds} seeds, {} rounds in {seconds:.1} s, {rate:.0} a second\n", report.rounds);
    summary += &format!("  tokens judged: {}, on an edge: {}\n", report.judged, report.edges);
    for (way, lean) in &report.lean {
        summary += &format!("  lean, {way}: {:+.2} sigma of {} tokens\n", lean.score(), lean.tokens);
    }
    for (what, count) in &report.coverage {
        summary += &format!("  {what}: {count}\n");
    }
    let _ = std::io::stderr().write_all(summary.as_bytes());

    assert!(report.edges * 10_000 <= report.judged, "so many tokens cannot lie on an edge");
    for (way, lean) in &report.lean {
        assert!(lean.score().abs() < 5.0, "{way}: the tokens do not follow their distributions");
    }
    // A simulation that never comes to a state says nothing of it.
    for what in EVENTS.split("; ") {
        let count = report.coverage.get(what).copied().unwrap_or(0);
        assert!(rounds < 1_000_000 || count >= 50, "{what} happened {count} times only");
    }
}

/// What has to happen in every run of the fixed seeds.
const EVENTS: &str = "\
    finish: none; finish: stop; finish: max_tokens; finish: context full; finish: cancelled; \
    error: invalid argument; error: runtime; error: context full; error: numeric; error: unsupported; \
    error: poisoned; error: internal; error: callback; fault: pass; fault: panic; fault: cancel; fault: reentry; \
    fault: row; fault: function; fault: scores; combination: weighted; combination: logits; combination: target; \
    combination: contrastive; combination: contrastive, plausible; combination: function; auto, combined; \
    auto, routed; standard, combined; standard, routed; speculative, combined; speculative, routed; cos, combined; \
    cos, routed; proposal accepted; proposal rejected; bonus token; cancelled between steps; \
    cancelled within a pass; prompt; chat turn; prompt after an end; step after an end; weights set; \
    weights set, proposals kept; weights set, proposals dropped; plan changed; weights made room; weights refused, no room; free; \
    engine freed before its sessions";

#[test]
fn planted_bugs_are_found() {
    quiet_planted_panics();
    for (bug, says) in [
        (Bug::TruncateKeepsOne, &["the cache of model 0 holds"][..]),
        (Bug::StaleRow, &["is not what"][..]),
        (Bug::WideRow, &["is not what"][..]),
        (Bug::LosesToken, &["but was told", "steps, tokens, forwards, positions are"]),
        (Bug::LogProbability, &["is not what"][..]),
        (Bug::MissesTheEnd, &["but was told"][..]),
        (Bug::WritesOnError, &["a failed step wrote its result"][..]),
        (Bug::Forgives, &["gave ok"][..]),
    ] {
        let found = (0..50).find_map(|seed| run(seed, Some(bug), false).err());
        let violation = found.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?}: {violation}");
        assert!(
            says.iter().any(|says| violation.what.contains(says)),
            "{bug:?} was found by another check: {violation}"
        );
    }
}

#[test]
fn the_same_seed_is_the_same_run() {
    quiet_planted_panics();
    for seed in 0..20 {
        let [a, b] = [0, 1].map(|_| format!("{:?}", run(seed, None, false).unwrap()));
        assert_eq!(a, b, "seed {seed}");
    }
}

#[test]
fn a_bias_towards_the_drafter_shows() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (r, q, biased) = ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5], [0.49, 0.3, 0.21]);
    let mut score = |from: [f64; 3]| {
        let mut lean = Lean::default();
        for _ in 0..100_000 {
            let at = rng.f64();
            lean.add(&r, &q, if at < from[0] { 0 } else { 1 + usize::from(at >= from[0] + from[1]) });
        }
        lean.score()
    };
    assert!(score(r).abs() < 4.0 && score(biased) > 5.0);
}
