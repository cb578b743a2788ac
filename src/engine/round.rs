//! A round of a session from its beginning to its end, driven by a thread of its own or together with others.

use std::cell::Cell;
use std::time::Duration;

use crate::decode::decoder::Step;
use crate::engine::phase::{Begun, Phase};
use crate::engine::session::{Session, State};
use crate::error::{Error, Result};
use crate::model::Interrupt;
use crate::plan::session::RoundReport;

/// How far a session has come.
pub enum Progress {
    /// It needs passes.
    Waits,
    /// It needs the answer to a question.
    Asks,
    /// The round has ended.
    News(Result<State>),
}

impl Session {
    /// Decode at least one token, unless the sequence has ended or the step is cancelled.
    ///
    /// On an error nothing is committed.
    pub fn step(&mut self) -> Result<(&[i32], State)> {
        self.engine.process().check()?;
        let _inside = self.driver.enter();
        self.resume(self.engine.clock()());
        if matches!(self.phase, Phase::Probe(_)) {
            // A probe that fails teaches nothing, and the sequence goes on without it.
            _ = self.driver.run();
            self.end_probe();
        }
        self.begin();
        // A request between two steps cancels the next one before anything runs.
        let result = if self.is_cancelled() { Err(Interrupt::Cancelled) } else { self.driver.run() };
        let state = self.end(result);
        if matches!(self.phase, Phase::Probe(_)) {
            _ = self.driver.run();
            self.end_probe();
        }
        state.map(|state| (self.tokens(), state))
    }

    /// Tokens that the last round committed.
    pub fn tokens(&self) -> &[i32] {
        (*self.driver).round().0
    }

    /// Whether the step is to end before anything runs. A request waits for a step that can run: a finished sequence
    /// gives its reason again, and an empty one its error.
    fn is_cancelled(&self) -> bool {
        self.driver.is_open() && self.cancel.is_requested()
    }

    /// Whether it is in the middle of a probe.
    pub(super) fn is_probing(&self) -> bool {
        matches!(self.phase, Phase::Probe(_))
    }

    /// Go on until the session needs passes or an answer, or its round has ended.
    pub(super) fn go_on(&mut self) -> Progress {
        loop {
            if self.is_cancelled() && !matches!(self.phase, Phase::Probe(_)) {
                self.begin();
                return Progress::News(self.end(Err(Interrupt::Cancelled)));
            }
            if matches!(self.phase, Phase::Between) {
                self.begin();
            }
            match self.driver.step() {
                Ok(Step::Run) => return Progress::Waits,
                Ok(Step::Ask) => return Progress::Asks,
                Ok(Step::Probed) => self.end_probe(),
                Ok(Step::Committed | Step::Ended) => return Progress::News(self.end(Ok(()))),
                // A probe that fails teaches nothing, and the sequence goes on without it.
                Err(_) if self.is_probing() => self.end_probe(),
                Err(error) => return Progress::News(self.end(Err(error.into()))),
            }
        }
    }

    /// A pass has failed, or was cancelled. Returns the news, unless it was only a probe's.
    pub(super) fn interrupted(&mut self, interrupt: Interrupt) -> Option<Result<State>> {
        self.driver.failed();
        if matches!(self.phase, Phase::Probe(_)) {
            self.end_probe();
            return None;
        }
        Some(self.end(Err(interrupt)))
    }

    /// A call begins: time counts from here.
    pub(super) fn resume(&mut self, now: Duration) {
        self.since = now;
        self.driver.begin_call();
    }

    /// Whether it is in the middle of a round or of a probe.
    pub(super) fn is_begun(&self) -> bool {
        !matches!(self.phase, Phase::Between)
    }

    /// A call for many sessions ends. This one may be in the middle of a round or of a probe. If it is not, but had a
    /// pass, its next round had to wait for what was left to do for the others, and takes so much longer.
    pub(super) fn pause(&mut self, now: Duration) {
        let elapsed = now.saturating_sub(self.since);
        match &mut self.phase {
            Phase::Between if self.driver.had_pass() => self.left = elapsed,
            Phase::Between => {}
            Phase::Round(begun) | Phase::Probe(begun) => {
                begun.elapsed += elapsed;
                self.spend(now);
                self.count();
            }
        }
    }

    /// Begin a round, unless one is begun.
    fn begin(&mut self) {
        if self.is_begun() {
            return;
        }
        self.claim_routes();
        self.is_scoring = self.driver.is_scoring();
        // Scoring is no step.
        self.steps += u64::from(!self.is_scoring);
        self.driver.begin();
        self.phase = Phase::Round(self.begun());
    }

    fn begun(&self) -> Begun {
        let (start, passes) = (self.driver.committed().len(), self.driver.passes());
        Begun { start, passes, elapsed: Duration::ZERO }
    }

    /// End a round: plan, and count. A probe may be begun.
    fn end(&mut self, result: Result<(), Interrupt>) -> Result<State> {
        let Phase::Round(begun) = std::mem::replace(&mut self.phase, Phase::Between) else {
            return Err(Error::Internal("a round ended that was not begun".into()));
        };
        self.driver.end();
        self.driver.set_fails(matches!(result, Err(Interrupt::Failed(_))));
        let is_scoring = std::mem::take(&mut self.is_scoring);
        if matches!(result, Err(Interrupt::Cancelled)) {
            self.driver.failed();
        }
        let finish = (*self.driver).round().1;
        if finish.is_some() && self.driver.committed().len() > begun.start {
            self.driver.rest();
            // A cancel that came too late for this round is not meant for the next prompt.
            self.cancel.reset();
        }
        let now = self.engine.clock()();
        if self.driver.counts() && !is_scoring && self.driver.committed().len() > begun.start {
            self.driver.histograms_mut().tokens(now, &mut self.engine.waits().lock());
        }
        let total = begun.elapsed + now.saturating_sub(self.since) + std::mem::take(&mut self.left);
        // Only planning that takes long reads the clock once more.
        let latest = Cell::new(now);
        let mut probe = None;
        if let (Some(planning), Ok(()), false) = (&mut self.planning, &result, is_scoring) {
            let round = RoundReport {
                tokens: self.driver.committed().len() - begun.start,
                total,
                models: self.driver.passes() - begun.passes,
                stood_aside: self.driver.has_stood_aside(),
                is_usual: begun.start > self.driver.prompt_end() && self.driver.is_usual(),
                open: finish.is_none(),
                company: self.driver.company(),
            };
            let clock = || {
                latest.set(self.engine.clock()());
                latest.get()
            };
            probe = planning.after_round(self.engine.shared_planning(), &mut self.driver, round, &clock);
        }
        self.spend(latest.get());
        match probe {
            // The call counts both, unless the probe takes more than one.
            Some(model) => {
                self.phase = Phase::Probe(self.begun());
                if !(*self.driver).probe(model) {
                    self.end_probe();
                }
            }
            None => self.count(),
        }
        match result {
            Ok(()) => Ok(finish.map_or(State::Open, State::Ended)),
            Err(Interrupt::Failed(error)) => Err(error),
            Err(Interrupt::Cancelled) => {
                self.cancel.reset();
                Ok(State::Cancelled)
            }
        }
    }

    /// End a probe, whether or not it succeeded.
    fn end_probe(&mut self) {
        let Phase::Probe(begun) = std::mem::replace(&mut self.phase, Phase::Between) else { return };
        let now = self.engine.clock()();
        let time = now.saturating_sub(self.since);
        // In company, the time of passes of others is not that of the probe.
        let is_alone = self.driver.company() <= 1;
        let cost = if is_alone { begun.elapsed + time } else { self.driver.passes() - begun.passes };
        if let Some(planning) = &mut self.planning {
            planning.probed(self.engine.shared_planning(), cost.as_secs_f64());
        }
        self.spend(now);
        self.count();
    }

    /// A round or a probe that waited for passes was undone, because the sequence has changed, or after a panic.
    pub(super) fn abandon(&mut self) {
        self.phase = Phase::Between;
        self.driver.end();
    }

    /// The session has taken the time until now.
    fn spend(&mut self, now: Duration) {
        self.total_ns += now.saturating_sub(self.since).as_nanos() as u64;
        self.since = now;
    }

    /// Add to the totals of the engine what has changed.
    fn count(&mut self) {
        if self.driver.counts() {
            let now = self.stats();
            self.engine.totals().lock().advance(&self.counted, &now);
            self.counted = now;
        }
    }
}
