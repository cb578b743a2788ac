//! Runs the passes that a decoder needs: one after the other, at the same time, or in common with other sessions.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;

use crate::decode::chance::Chance;
use crate::decode::decoder::{Beside, Common, Decoder, Finish, Need, Proposer, Settings, Step, Workspace};
use crate::decode::policy::{Plan, Targets};
use crate::engine::histogram::{PassShape, SessionHistograms};
use crate::engine::participant::Participant;
use crate::engine::queue::{self, MOST_MODELS, NARROW, PassQueue, Ticket, WhenFull};
use crate::engine::queues::{Decoding, Inside, PassQueues};
use crate::engine::time_in_passes::TimeInPasses;
use crate::engine::wait::{Waiter, WakeOnCancel};
use crate::error::{Error, Result};
use crate::model::{Cancel, Interrupt, Memory, Model, Priority, Report};
use crate::rows::DeviceSums;

/// Most passes of one step that run at the same time; more run one after the other.
const MOST_AT_ONCE: usize = u64::BITS as usize;

/// Most passes of other models for which a session waits in a row.
const MOST_TURNS: usize = 16;

/// A decoder with the models that it decodes by, driven by one thread.
pub struct Driver<C> {
    decoder: Decoder<C>,
    participants: Vec<Participant>,
    workspace: Workspace,
    overlaps: bool,
    cancel: Arc<Cancel>,
    /// Where it waits for common passes; `None`: it runs all passes alone.
    queues: Option<Arc<PassQueues>>,
    /// Counts it among those that decode.
    decoding: Option<Decoding>,
    waiter: Arc<Waiter>,
    /// Whether other threads may wait until this one has computed. Not if functions of the caller run meanwhile.
    in_crowd: bool,
    passes: TimeInPasses,
    /// The most sessions that decoded at the same time, since [`Driver::begin`].
    company: usize,
    /// Whether models take turns where sessions wait for several: not if their passes overlap well.
    takes_turns: bool,
    /// How many passes it has waited for its turn.
    turns_waited: usize,
    /// Whether it has waited in this round for its turn, or for room in a pass.
    stood_aside: bool,
    /// Whether its last round has failed.
    fails: bool,
    /// Whether it had a pass in this call.
    had_pass: bool,
    /// How urgent the session is.
    priority: Priority,
    /// Whether it counts in the statistics of the engine.
    counts: bool,
    /// When it asked for a pass that was given back.
    asked: Option<Instant>,
    /// What its user has waited for.
    histograms: Box<SessionHistograms>,
}

impl<C: Chance> Driver<C> {
    /// An empty sequence. Its passes end early once `cancel` is requested. Passes that do not depend on each other run
    /// at the same time if models can, until [`Driver::set_overlaps`].
    pub fn new(
        participants: &[Participant],
        cancel: &Arc<Cancel>,
        settings: Settings,
        plan: Plan,
        chance: C,
    ) -> Result<Self> {
        let proposers = participants.iter().map(|each| each.start(cancel)).collect::<Result<Vec<Proposer>>>()?;
        Ok(Self::of(participants.to_vec(), Decoder::new(proposers, settings, plan, chance), cancel))
    }

    /// A sequence that goes on from where this one stands, by a plan of its own; see [`Decoder::continue_from`].
    pub fn fork(&self, cancel: &Arc<Cancel>, plan: Plan, chance: C) -> Result<Self> {
        let fork = |(index, each): (usize, &Participant)| each.fork(self.decoder.sequence(index), cancel);
        let proposers = self.participants.iter().enumerate().map(fork).collect::<Result<Vec<Proposer>>>()?;
        let mut decoder = Decoder::new(proposers, self.decoder.settings().clone(), plan, chance);
        decoder.continue_from(&self.decoder);
        Ok(Self::of(self.participants.clone(), decoder, cancel))
    }

    fn of(participants: Vec<Participant>, decoder: Decoder<C>, cancel: &Arc<Cancel>) -> Self {
        Driver {
            workspace: Workspace::new(decoder.vocab_size()),
            decoder,
            participants,
            overlaps: true,
            cancel: cancel.clone(),
            queues: None,
            decoding: None,
            waiter: Arc::default(),
            in_crowd: false,
            passes: TimeInPasses::default(),
            company: 1,
            takes_turns: true,
            turns_waited: 0,
            stood_aside: false,
            fails: false,
            had_pass: false,
            priority: Priority::Interactive,
            counts: true,
            asked: None,
            histograms: Box::new(SessionHistograms::new(Duration::ZERO)),
        }
    }

    /// Run passes in common with others that wait in these queues, and have questions about rows on a GPU answered
    /// there. To be called before the first step. `in_crowd` says that [`PassQueues::enter`] is called
    /// before each round that runs in this thread alone.
    pub fn share_passes(&mut self, queues: &Arc<PassQueues>, in_crowd: bool) {
        if queues.is_empty() {
            return;
        }
        self.cancel.add_hook(Box::new(WakeOnCancel(self.waiter.clone())));
        (self.queues, self.decoding) = (Some(queues.clone()), Some(Decoding::new(queues)));
        self.in_crowd = in_crowd;
        self.workspace.defer();
    }

    /// Let other threads wait until this one has computed, or not, from the next round on.
    pub fn set_in_crowd(&mut self, in_crowd: bool) {
        self.in_crowd = in_crowd && self.queues.is_some();
    }

    /// Let passes that do not depend on each other run at the same time, or not.
    pub fn set_overlaps(&mut self, overlaps: bool) {
        self.overlaps = overlaps;
    }

    /// How urgent the session is, from the next pass on.
    pub fn set_priority(&mut self, priority: Priority) {
        self.priority = priority;
    }

    /// Do not count in the statistics of the engine: nobody has asked for the text. To be called before the first step,
    /// which is to be one of [`step_many`](crate::engine::many::step_many).
    pub(super) fn count_nothing(&mut self) {
        self.counts = false;
    }

    /// Whether it counts there.
    pub(super) fn counts(&self) -> bool {
        self.counts
    }

    /// What its user has waited for.
    pub(super) fn histograms(&self) -> &SessionHistograms {
        &self.histograms
    }

    /// The same, to count more.
    pub(super) fn histograms_mut(&mut self) -> &mut SessionHistograms {
        &mut self.histograms
    }

    /// Let models take turns where sessions wait for several, or not.
    pub fn set_turns(&mut self, takes_turns: bool) {
        self.takes_turns = takes_turns;
    }

    /// Decode until at least one token is committed. Returns the new tokens, none if the sequence had ended.
    ///
    /// On an error the sequence is as it was before the round.
    pub fn round(&mut self) -> Result<(&[i32], Option<Finish>), Interrupt> {
        self.run()?;
        Ok(self.decoder.round())
    }

    /// Let a model that the plan does not run catch up; see [`Decoder::probe`].
    pub fn probe(&mut self, model: usize) -> Result<(), Interrupt> {
        if self.decoder.probe(model) { self.run() } else { Ok(()) }
    }

    /// Go on with the round or the probe that was begun, or begin a round, until it has ended.
    pub(super) fn run(&mut self) -> Result<(), Interrupt> {
        loop {
            match self.step()? {
                Step::Run => {
                    if let Err(interrupt) = self.run_needs() {
                        self.failed();
                        return Err(interrupt);
                    }
                }
                Step::Ask => self.ask(),
                Step::Committed | Step::Ended | Step::Probed => return Ok(()),
            }
        }
    }

    /// Have the question of the decoder answered, together with those of other threads.
    fn ask(&mut self) {
        if let (Some(queues), Some(question)) = (&self.queues, self.workspace.question()) {
            queues.questions().ask(question, self.in_crowd);
        }
    }

    /// The question that the decoder waits for.
    pub(super) fn question(&mut self) -> Option<&mut dyn DeviceSums> {
        self.workspace.question()
    }

    /// Where it waits.
    pub(super) fn queues(&self) -> Option<&Arc<PassQueues>> {
        self.queues.as_ref()
    }

    /// Go on until passes are needed; see [`Decoder::step`].
    pub(super) fn step(&mut self) -> Result<Step> {
        self.passes.begin();
        let step = self.decoder.step(&mut self.workspace)?;
        if step == Step::Run
            && let Some(queues) = &self.queues
            && self.decoder.needs().iter().any(|need| need.end - need.start > NARROW)
            && queues.company() > 1
        {
            self.decoder.limit_prompts(|model| queues.of(model).map_or(usize::MAX, PassQueue::chunk));
        }
        Ok(step)
    }

    /// Undo what was begun, because a pass has failed; see [`Decoder::failed`].
    pub(super) fn failed(&mut self) {
        self.decoder.failed(&mut self.workspace);
    }

    /// Run what the decoder needs.
    fn run_needs(&mut self) -> Result<(), Interrupt> {
        let Some(queues) = self.queues.clone() else { return self.run_alone() };
        self.refusal().map_or(Ok(()), Err)?;
        if self.decoder.needs().iter().any(|need| queues.of(need.model).is_none()) {
            let _aside = self.in_crowd.then(|| queues.step_aside());
            self.run_alone()?;
        }
        let at_once = if self.overlaps { MOST_MODELS } else { 1 };
        for first in (0..self.decoder.needs().len()).step_by(at_once) {
            self.run_shared(&queues, first, at_once)?;
        }
        Ok(())
    }

    /// The error of a new session, if a model that it needs has no memory for it. It is told before anything runs, so
    /// that nothing is computed in vain.
    pub(super) fn refusal(&mut self) -> Option<Error> {
        let queues = self.queues.as_deref()?;
        if self.decoder.counters().tokens > 0 || queues.when_full(true, true) != WhenFull::Refuse {
            return None;
        }
        self.decoder.first_passes().find_map(|(model, mut pass)| queues.of(model)?.refusal(&mut pass))
    }

    /// Run those of `count` needs from index `first` on whose models have queues.
    fn run_shared(&mut self, queues: &PassQueues, first: usize, count: usize) -> Result<(), Interrupt> {
        let Driver { decoder, cancel, waiter, in_crowd, priority, .. } = self;
        let (is_new, prompt_end) = (decoder.counters().tokens == 0, decoder.prompt_end());
        self.passes.begin();
        let (passes, mut beside) = decoder.passes();
        let passes = passes.skip(first).take(count);
        let now = Instant::now();
        let tickets = passes.filter_map(|(need, pass)| {
            let when_full = queues.when_full(is_new && need.start == 0, true);
            let ticket = Ticket::new(queues.of(need.model)?, pass, cancel, when_full, now);
            Some((need, ticket.of(*priority, need.end <= prompt_end)))
        });
        let (needs, mut tickets): (ArrayVec<Need, MOST_MODELS>, ArrayVec<Ticket, MOST_MODELS>) = tickets.unzip();
        queue::run(waiter, *in_crowd, &mut tickets, &mut || beside.work());
        let overlaps = tickets.len() > 1 && tickets.iter().any(|ticket| ticket.queue().overlaps());
        let outcomes: ArrayVec<_, MOST_MODELS> =
            tickets.into_iter().map(|ticket| (ticket.common(), ticket.outcome())).collect();
        for (need, (common, outcome)) in needs.into_iter().zip(outcomes) {
            let given_back = || Err(Error::Internal("a pass that may wait was given back".into()).into());
            let report = outcome.unwrap_or_else(given_back)?;
            self.ran_in_company(need, report, overlaps, common);
        }
        Ok(())
    }

    /// A pass was run in common with others, or at least might have been.
    pub(super) fn ran_in_company(
        &mut self,
        need: Need,
        report: Report,
        overlapped: bool,
        common: Option<(Common, PassShape)>,
    ) {
        self.decoder.ran(need, report, overlapped);
        (self.asked, self.had_pass) = (None, true);
        let Some((common, shape)) = common else { return };
        self.decoder.had_company(common);
        self.histograms.pass(shape);
        self.passes.add(common.elapsed, shape.is_led);
        self.company = self.company.max(self.queues.as_ref().map_or(1, |queues| queues.company()));
    }

    /// Its last round has failed, or has not. One that fails again and again has no say in whose turn it is: it would
    /// keep others from theirs.
    pub(super) fn set_fails(&mut self, fails: bool) {
        self.fails = fails;
    }

    /// Whether its last round has failed.
    pub(super) fn fails(&self) -> bool {
        self.fails
    }

    /// The queue of the one model that it waits for, and the seconds of its last pass. `None` if it waits for several,
    /// for one that has no queue, or if models take no turns.
    pub(super) fn turn(&self) -> Option<(*const PassQueue, f64)> {
        // Groups that share routes stay together once they have met, which is worth a wait in any case.
        let shares_routes = self.decoder.shares_routes() && self.decoder.plan().targets == Targets::Routed;
        let queue = match self.decoder.needs() {
            [need] if self.takes_turns || shares_routes => self.queue(*need)?,
            _ => return None,
        };
        Some((std::ptr::from_ref(queue), queue.seconds()))
    }

    /// Whether it is to wait, because it is another model's turn. It waits for a limited number of passes in a row.
    pub(super) fn waits_for_turn(&mut self, turn: Option<*const PassQueue>) -> bool {
        let is_other = turn.zip(self.turn()).is_some_and(|(turn, (own, _))| own != turn);
        let waits = is_other && self.turns_waited < MOST_TURNS;
        self.turns_waited = if waits { self.turns_waited + 1 } else { 0 };
        self.stood_aside |= waits;
        waits
    }

    /// If it waits for its turn, do so no longer.
    pub(super) fn end_wait(&mut self) {
        if self.turns_waited > 0 {
            self.turns_waited = MOST_TURNS;
        }
    }

    /// A round begins. Until it ends, the session counts among those that decode at the same time.
    pub(super) fn begin(&mut self) {
        (self.company, self.asked, self.stood_aside) = (1, None, false);
        let counts = self.counts;
        self.decoding.iter_mut().for_each(|decoding| decoding.set(counts));
    }

    /// The round has ended.
    pub(super) fn end(&mut self) {
        self.decoding.iter_mut().for_each(|decoding| decoding.set(false));
    }

    /// The most sessions that decoded at the same time in this round.
    pub(super) fn company(&self) -> usize {
        self.company
    }

    /// A call begins, for this session or for many.
    pub(super) fn begin_call(&mut self) {
        self.had_pass = false;
    }

    /// Whether it had a pass in this call.
    pub(super) fn had_pass(&self) -> bool {
        self.had_pass
    }

    /// Whether it has waited in this round for its turn, or for room in a pass.
    pub(super) fn has_stood_aside(&self) -> bool {
        self.stood_aside
    }

    /// Time of the passes that it had, those of others included that it shared.
    pub(super) fn passes(&self) -> Duration {
        self.passes.all()
    }

    /// Run those passes that are not run in common with others: launch all that can be left running, and wait for
    /// those last.
    pub(super) fn run_alone(&mut self) -> Result<(), Interrupt> {
        let count = self.decoder.needs().len();
        let alone = self.decoder.needs().iter().filter(|need| self.queue(**need).is_none()).count();
        if alone == 0 {
            return Ok(());
        }
        let all = self.overlaps && alone >= 2 && count <= MOST_AT_ONCE;
        let mut launched = 0u64;
        // One pass alone is left running too, if there is something to do meanwhile.
        if all || self.decoder.has_edits() {
            for index in 0..count.min(MOST_AT_ONCE) {
                let need = self.decoder.needs()[index];
                let is_running = self.queue(need).is_none()
                    && model(&self.participants, need)?.launch(&mut [self.decoder.pass(need)]);
                launched |= u64::from(is_running) << index;
                if is_running && !all {
                    break;
                }
            }
        }
        if launched != 0 {
            self.decoder.passes().1.work();
        }
        for is_running in if all { [false, true] } else { [true, false] } {
            for index in 0..count {
                let need = self.decoder.needs()[index];
                if self.queue(need).is_some() || (index < MOST_AT_ONCE && launched >> index & 1 == 1) != is_running {
                    continue;
                }
                let report = model(&self.participants, need)?.forward(&mut [self.decoder.pass(need)])?;
                self.decoder.ran(need, report, all && launched != 0);
                self.passes.add(report.elapsed, true);
                self.had_pass = true;
            }
        }
        Ok(())
    }

    /// A pass that it asked for at this time was given back. If it has run in part, its wait begins anew.
    pub(super) fn stay(&mut self, asked: Instant, has_run: bool) {
        self.stood_aside = true;
        self.asked = self.asked.filter(|_| !has_run).or(Some(asked));
    }

    /// Ask for the passes that are run in common with others, each with its need. One for which there is no memory now,
    /// and one of a prompt or a batch session for which the next pass has no room, is given back.
    pub(super) fn tickets(&mut self, now: Instant) -> (impl Iterator<Item = (Need, Ticket<'_>)>, Beside<'_, C>) {
        self.passes.begin();
        let Driver { decoder, cancel, queues, priority, counts, asked, .. } = self;
        let (cancel, queues, is_new) = (&**cancel, queues.as_deref(), decoder.counters().tokens == 0);
        let (priority, counts, asked, prompt_end) = (*priority, *counts, *asked, decoder.prompt_end());
        let (passes, beside) = decoder.passes();
        let tickets = passes.filter_map(move |(need, pass)| {
            let when_full = queues?.when_full(is_new && need.start == 0, false);
            let ticket = Ticket::new(queues?.of(need.model)?, pass, cancel, when_full, now);
            Some((need, ticket.of(priority, need.end <= prompt_end).counting(counts).briefly(asked)))
        });
        (tickets, beside)
    }

    /// What its thread waits by.
    pub(super) fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// Count its thread among those who will soon ask for a pass, if it is one of them.
    pub(super) fn enter(&self) -> Option<Inside> {
        self.queues.as_ref().filter(|_| self.in_crowd).map(|queues| queues.enter())
    }

    /// Where a pass is run in common with others.
    pub(super) fn queue(&self, need: Need) -> Option<&PassQueue> {
        self.queues.as_ref()?.of(need.model)
    }

    /// Rows of logits on a GPU that were copied to the host, sums of rows included.
    pub fn all_rows_copied(&self) -> u64 {
        self.decoder.rows_copied().sum::<u64>() + self.workspace.rows_copied()
    }

    /// The memory of the sequence, and of the buffers that decoding it takes.
    pub fn memory(&self) -> Memory {
        [self.decoder.memory(), Memory::of(self.workspace.bytes())].into_iter().sum()
    }
}

fn model(participants: &[Participant], need: Need) -> Result<&dyn Model> {
    participants[need.model].model().ok_or_else(|| Error::Internal("a look-up was asked for a pass".into()))
}

impl<C> Deref for Driver<C> {
    type Target = Decoder<C>;

    fn deref(&self) -> &Decoder<C> {
        &self.decoder
    }
}

impl<C> DerefMut for Driver<C> {
    fn deref_mut(&mut self) -> &mut Decoder<C> {
        &mut self.decoder
    }
}
