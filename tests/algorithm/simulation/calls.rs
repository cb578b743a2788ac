//! A run: the calls that a seed makes, and what each of them must return.

use std::fmt;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cos::config::Combine;
use cos::decode::combine::{Combination, Function};
use cos::decode::policy::{Plan, Policy, Request, Strategy, Targets};
use cos::engine::Engine;
use cos::engine::participant::Participant;
use cos::ffi::*;
use cos::model::Model;
use parking_lot::Mutex;

use super::faults::{Events, Fault, Stage, State, Truth};
use super::models::{Bug, FunctionData, Ledger, models, sum};
use super::report::{Report, Violation};
use super::session::{Options, Session, all_ones, error_name, is_untouched, members, sentinel};
use crate::common::boundary::{self, no_stats, outcome};
use crate::common::{Sampling, World};

/// A run of one seed.
pub struct Simulation {
    pub rng: fastrand::Rng,
    pub stage: Arc<Stage>,
    pub models: Vec<Participant>,
    pub combine: Combine,
    pub engine: Arc<Engine>,
    /// NULL after it was freed.
    pub handle: *mut cos_engine,
    pub sessions: Vec<Session>,
    pub names: u32,
    pub bug: Option<Bug>,
    pub trace: bool,
    pub call: u64,
    pub rows: Vec<Vec<f32>>,
    /// The sums of the sessions' statistics, which the engine must report.
    pub totals: Vec<u64>,
    pub report: Report,
}

impl Drop for Simulation {
    fn drop(&mut self) {
        // SAFETY: made by `into_raw`, and freed once, because it is NULL afterwards.
        unsafe { cos_engine_free(self.handle) };
    }
}

pub type Check<T = ()> = Result<T, String>;

/// Runs one seed.
pub fn run(seed: u64, bug: Option<Bug>, trace: bool) -> Result<Report, Violation> {
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
    pub fn new(seed: u64, bug: Option<Bug>, trace: bool) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let vocab = rng.usize(2..=12);
        let world = World::ALL[rng.usize(..World::ALL.len())];
        let bad = if rng.u8(..4) == 0 { rng.u64(20..200) } else { 0 };
        let truth = Truth { seed: rng.u64(..), world, vocab, bad };

        // Each seed has its own set of faults, so some runs see many faults of one kind, and some runs none.
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

    pub fn vocab(&self) -> usize {
        self.stage.truth.vocab
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u32) -> bool {
        self.rng.u32(..n) == 0
    }

    /// Makes one call, and checks its result.
    pub fn act(&mut self) -> Check {
        if self.sessions.is_empty() || (self.sessions.len() < 4 && self.once_in(100)) {
            if !self.handle.is_null() {
                return self.start();
            }
            if self.sessions.is_empty() {
                return Ok(()); // there is nothing left to call
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
        // How often each call is made: step, prompt, weights, cancel, misuse, free.
        let shares: [u32; 6] = match session.finish {
            _ if session.poisoned => [1, 1, 1, 1, 1, 2],
            COS_FINISH_CONTEXT_FULL => [3, 2, 2, 1, 1, 6],
            // A failed round may tell where the position is routed. A caller who gives up now would select among
            // tokens, which biases the measure. New weights do not: the route is drawn anew.
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

    /// Traces what a call returned, and checks its code.
    pub fn expect(&mut self, call: fmt::Arguments, (code, message): (i32, String), expected: i32) -> Check {
        trace!(self, "{call} -> {}{}{message}", error_name(code), if message.is_empty() { "" } else { ": " });
        self.report.cover(error_name(code));
        ensure!(code == expected, "{call} gave {} ({message}), not {}", error_name(code), error_name(expected));
        Ok(())
    }

    /// Starts a session, usually with valid options.
    pub fn start(&mut self) -> Check {
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
            self.spoil_options(&mut given, &wrong_lengths);
        } else if self.once_in(50) {
            let fault = if self.rng.bool() { Fault::Panic } else { Fault::Failure };
            expected = if fault == Fault::Panic { COS_ERROR_INTERNAL } else { COS_ERROR_RUNTIME };
            self.stage.state.lock().start = Some(fault);
        }
        let mut handle = null_mut();
        // SAFETY: the engine is live, and so is everything that the options point to.
        let result = outcome(unsafe { cos_session_new(self.handle, &given, &mut handle) });
        self.names += 1;
        let name = self.names;
        self.expect(format_args!("session_new {name}: {options:?}"), result, expected)?;
        ensure!(handle.is_null() == (expected != 0), "a failed call wrote a session, or a good one wrote none");
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

    /// Makes options invalid, in one of nine ways.
    fn spoil_options(&mut self, given: &mut cos_session_options, wrong_lengths: &[i32]) {
        match self.rng.u8(..9) {
            0 => given.strategy = 4,
            1 => given.targets = -1,
            2 => given.temperature = -1.0,
            3 => given.top_k = -1,
            4 => (given.top_p, given.min_p) = (1.5, f32::NAN),
            5 => given.log_probabilities = 2,
            6 => {
                given.proposal_lengths = wrong_lengths.as_ptr();
                given.proposal_lengths_count = wrong_lengths.len();
            }
            // Routed targets need a temperature.
            7 => (given.targets, given.temperature) = (COS_TARGETS_ROUTED, 0.0),
            _ => given.struct_size = 8,
        }
    }

    pub fn options(&mut self) -> Options {
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

    /// The options of the C interface. They borrow the arrays of `options`.
    pub fn given(&self, options: &Options, function: Option<&FunctionData>) -> cos_session_options {
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
            routes: (self.names % 3) as i32,
            priority: (self.names / 3 % 2) as i32,
            ..boundary::options()
        }
    }

    /// Random weights that are valid for this engine.
    pub fn weights(&mut self) -> Vec<f32> {
        let scoring = self.models.iter().filter(|each| each.model().is_some()).count();
        match self.combine {
            Combine::Weighted { .. } => mixture(&mut self.rng, scoring, self.models.len()),
            _ => logit_weights(&mut self.rng, scoring, self.models.len()),
        }
    }

    /// The plan of the library for these options. The simulation asks for it, because it only checks what follows from
    /// a plan.
    pub fn plan(&self, options: &Options, combination: &Combination) -> Plan {
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

    /// The largest number of pending proposals. `auto` may choose any plan up to its longest length.
    pub fn max_pending(&self, options: &Options, plan: &Plan) -> usize {
        const LONGEST: i32 = 16;
        if options.strategy != COS_STRATEGY_AUTO {
            return plan.policy.max_pending();
        }
        let lengths = options.lengths.clone().unwrap_or_else(|| vec![LONGEST; self.models.len()]);
        (lengths.iter().sum::<i32>() + lengths.iter().max().expect("a model")) as usize
    }

    /// The shortest context among the models with a weight.
    pub fn capacity(&self, combination: &Combination) -> usize {
        let needed = combination.needed();
        needed
            .map(|model| self.models[model].model().map_or(usize::MAX, Model::context_length))
            .min()
            .expect("a model that is needed")
    }

    /// The model that proposes first, or model 0 if none does.
    pub fn drafter(plan: &Plan) -> usize {
        match &plan.policy {
            Policy::Standard => 0,
            Policy::Speculative { proposer, .. } => *proposer,
            Policy::Cos { order, .. } => order[0],
        }
    }

    pub fn prompt(&mut self, session: &mut Session) -> Check {
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
        // SAFETY: the session is live, and `length` is the number of tokens.
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

    pub fn set_weights(&mut self, session: &mut Session) -> Check {
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
        // SAFETY: the session is live, and the count is that of the weights.
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

    pub fn cancel(&mut self, session: &mut Session) -> Check {
        // SAFETY: the session is live.
        let result = outcome(unsafe { cos_cancel(session.handle) });
        let expected = if session.poisoned { COS_ERROR_POISONED } else { 0 };
        session.cancel_requested |= !session.poisoned;
        self.expect(format_args!("cancel {}", session.name), result, expected)?;
        self.look(session)
    }

    /// Makes a call that is wrong in every state, and checks that it changes nothing.
    pub fn misuse(&mut self, session: &mut Session) -> Check {
        let mut small = cos_step_result { struct_size: 8, ..sentinel() };
        let mut large = [0usize; size_of::<cos_session_options>() / size_of::<usize>() + 1];
        large[0] = size_of_val(&large);
        large[large.len() - 1] = 1; // a member of a later version
        let invalid = if session.poisoned { COS_ERROR_POISONED } else { COS_ERROR_INVALID_ARGUMENT };
        // SAFETY: each pointer is NULL, or valid for the size that its struct names.
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
}

/// Random weights of a mixture. Models behind the scoring ones get 0.
pub fn mixture(rng: &mut fastrand::Rng, scoring: usize, count: usize) -> Vec<f32> {
    let mut weights = vec![0.0; count];
    weights[rng.usize(..scoring)] = 1.0;
    if rng.u8(..6) > 0 {
        weights[..scoring].iter_mut().for_each(|weight| *weight += if rng.u8(..3) > 0 { rng.f32() } else { 0.0 });
    }
    let sum: f32 = weights.iter().sum();
    weights.iter().map(|weight| weight / sum).collect()
}

/// Random weights of logits. Models behind the scoring ones get 0.
pub fn logit_weights(rng: &mut fastrand::Rng, scoring: usize, count: usize) -> Vec<f32> {
    let mut weights = vec![0.0; count];
    weights[..scoring].iter_mut().for_each(|weight| *weight = if rng.bool() { 2.0 * rng.f32() - 0.7 } else { 0.0 });
    weights[rng.usize(..scoring)] = 1.0;
    weights
}
