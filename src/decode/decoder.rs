//! The decoder of one sequence, as a machine that runs no model.
//!
//! [`Decoder::step`] goes on until it needs passes, and [`Decoder::needs`] says which. A driver takes the [`Pass`] of
//! each need, runs it alone, beside others or in a batch, and reports with [`Decoder::ran`] or [`Decoder::failed`]. The
//! prompt and probes are ordinary needs. The order of things is that of [`Schedule`]; positions are decided from rows.

mod branch;
mod company;
mod editing;
mod learning;
mod passes;
mod score;

use std::time::Duration;

pub use self::branch::Snapshot;
pub use self::company::Common;
pub use self::passes::Beside;
use crate::control::RowEditor;
pub use crate::decode::alternatives::{Alternatives, LogProbabilities, MOST_ALTERNATIVES};
use crate::decode::chance::Chance;
use crate::decode::combine::Combination;
use crate::decode::lane::Lane;
pub use crate::decode::lane::ModelLimits;
use crate::decode::policy::{Plan, Targets};
pub use crate::decode::progress::{Counters, Finish, Origin, OriginKind, Tested};

use crate::decode::routes::Routes;
use crate::decode::schedule::{MOST_GIVEN, Next, Schedule};
pub use crate::decode::settings::Settings;
use crate::decode::state::{DecoderState, Rows};
pub use crate::decode::target::Workspace;
use crate::error::{Error, Result};
use crate::learn::estimates::Estimates;
use crate::learn::observer::{Observer, WINDOW};
use crate::model::{CacheUse, Memory, Report, Sequence};

/// One who takes part in decoding a sequence.
pub enum Proposer {
    /// A model, which scores and may propose.
    Model(Lane),
    /// A look-up, which proposes and never scores.
    LookUp,
}

impl Proposer {
    /// A model with an empty sequence that it has started.
    pub fn model(limits: ModelLimits, sequence: Box<dyn Sequence>) -> Self {
        Proposer::Model(Lane::new(limits, sequence))
    }
}

/// A pass that the decoder needs: a model's, over the tokens before `end` that it has not seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// The model, by its number among the participants.
    pub model: usize,
    /// The first token of the pass.
    pub start: usize,
    /// The token behind its last one.
    pub end: usize,
    /// Rows of this position and later stay readable.
    pub keep: usize,
}

/// How far [`Decoder::step`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It needs the passes in [`Decoder::needs`].
    Run,
    /// It needs the answer to [`Workspace::question`], which was deferred. The next step takes the same workspace.
    Ask,
    /// The round has ended, and has committed at least one token.
    Committed,
    /// The sequence had ended before; nothing was done.
    Ended,
    /// The probe has ended.
    Probed,
}

/// A pass that was run since the last step.
#[derive(Debug, Clone, Copy)]
struct Ran {
    need: Need,
    report: Report,
    /// Time of the whole pass.
    elapsed: Duration,
    /// Whether it was run at the same time as others of its step.
    overlapped: bool,
    /// The first position whose row the observer has been waiting for.
    wanted: usize,
}

/// Positions before the front whose edits are kept.
const LATE: usize = 16;

/// The decoder of one sequence.
pub struct Decoder<C> {
    plan: Plan,
    schedule: Schedule,
    state: DecoderState<C>,
    needs: Vec<Need>,
    ran: Vec<Ran>,
    /// What the counters were when the round began, and how many tokens were committed.
    before: Counters,
    start: usize,
    /// A resting model that catches up between rounds.
    probed: Option<usize>,
    /// Whether all passes of the round took as long as later ones will.
    is_usual: bool,
}

impl<C: Chance> Decoder<C> {
    /// A decoder of an empty sequence. The proposers are in the order of the engine.
    pub fn new(proposers: Vec<Proposer>, settings: Settings, plan: Plan, chance: C) -> Self {
        let lane = |proposer| match proposer {
            Proposer::Model(lane) => Some(lane),
            Proposer::LookUp => None,
        };
        let lanes: Vec<Option<Lane>> = proposers.into_iter().map(lane).collect();
        let context = |lane: &Option<Lane>| lane.as_ref().map_or(usize::MAX, |lane| lane.limits.context_length);
        let contexts = lanes.iter().map(context).collect();
        let look_ups = lanes.iter().map(Option::is_none).collect();
        let mut schedule = Schedule::new(contexts, look_ups);
        schedule.set_plan(&plan);
        schedule.set_needed(settings.combination.needed());
        let participants = lanes.len();
        let vocab_size = lanes.iter().flatten().next().map_or(0, |lane| lane.limits.vocab_size);
        let state = DecoderState {
            lanes,
            editor: editor(&settings, vocab_size),
            weighted: weighted(&settings),
            summaries: Vec::new(),
            settings,
            chance,
            tokens: Vec::new(),
            prompts: Vec::new(),
            given: None,
            context_length: 0,
            epoch: 0,
            route_epoch: 0,
            routes: Routes::default(),
            finish: None,
            log_probabilities: LogProbabilities::default(),
            origins: Vec::new(),
            counters: Counters::default(),
            tested: Tested::default(),
            observer: None,
        };
        let mut decoder = Decoder {
            plan,
            schedule,
            state,
            needs: Vec::with_capacity(participants),
            ran: Vec::with_capacity(participants),
            before: Counters::default(),
            start: 0,
            probed: None,
            is_usual: true,
        };
        decoder.fit();
        decoder
    }

    /// Make room for all that the combination and the plan can need, so that rounds need not.
    fn fit(&mut self) {
        let state = &mut self.state;
        state.context_length = context_length(&state.lanes, &state.settings.combination);
        let given = state.given.as_ref().map_or(0, |_| MOST_GIVEN);
        let pending = self.schedule.max_pending().max(given);
        // One for each pending position and the one after them.
        let edits = state.editor.is_some();
        state.lanes.iter_mut().flatten().for_each(|lane| lane.fit(pending + 1, edits));
        // Models score some positions after they are decided, and the observer wants to learn from these.
        state.editor.iter_mut().for_each(|editor| editor.fit(pending + 1 + LATE));
        state.tokens.reserve(state.context_length.min(1 << 20).saturating_sub(state.tokens.len()));
        state.log_probabilities.reserve(pending + 1, state.settings.alternatives, state.lanes.len());
        state.origins.reserve(pending + 1);
        state.tested.fit(state.lanes.len(), pending);
        self.set_end();
    }

    /// Let the schedule propose no token behind the end of the context, or of the tokens that were asked for.
    fn set_end(&mut self) {
        let DecoderState { settings, context_length, .. } = &self.state;
        let is_limited = settings.max_tokens > 0 && self.state.given.is_none();
        let generated = if is_limited { settings.max_tokens } else { usize::MAX };
        self.schedule.set_end(self.state.prompt_end().saturating_add(generated).min(*context_length));
    }

    /// Decode by another combination from the next position on; see [`Decoder::set_settings`].
    pub fn set_combination(&mut self, combination: Combination, plan: Plan) -> Result<()> {
        self.set_settings(Settings { combination, ..self.state.settings.clone() }, plan)
    }

    /// Decode by other settings from the next position on, with a plan for them. Committed tokens stay.
    ///
    /// This is exact: whatever a caller saw before, the tokens from here on follow the new settings.
    /// - Where a round ended tells nothing of the pending tokens except that they were drawn from their `q`. So they
    ///   may be verified against another target. If the new plan needs other models, or rows are processed otherwise,
    ///   they are dropped instead.
    /// - Distributions are of one model and do not depend on weights. Targets are made when a position is decided.
    /// - A route does depend on weights. Those of open positions are drawn anew, with new numbers: a failed round may
    ///   have told where the next one led. No round that succeeded has looked at it.
    ///
    /// On an error, [`Error::ContextFull`] if a needed model cannot hold the committed tokens, nothing changes.
    pub fn set_settings(&mut self, settings: Settings, plan: Plan) -> Result<()> {
        self.end_round();
        let context_length = context_length(&self.state.lanes, &settings.combination);
        let committed = self.schedule.committed();
        if committed > context_length {
            return Err(Error::ContextFull(format!(
                "the sequence has {committed} tokens, but the models of these weights hold {context_length}; \
                 keep those of a longer context"
            )));
        }
        let state = &mut self.state;
        state.epoch = state.epoch.wrapping_add(1);
        state.route_epoch = state.epoch;
        state.routes.forget();
        let old = &state.settings;
        let has_needed = settings.combination.needed().eq(old.combination.needed());
        let is_processed_alike = settings.sampler == old.sampler
            && settings.controls == old.controls
            && settings.stop_tokens == old.stop_tokens;
        // Tokens that were the only ones are pending without a proposer, so they cannot be verified.
        let is_settled_alike = settings.settles() == old.settles();
        let fits = plan == self.plan && has_needed && is_processed_alike && is_settled_alike;
        if !fits {
            self.drop_pending();
        }
        if fits {
            self.schedule.stop_draining();
        } else {
            self.schedule.set_plan(&plan);
            self.schedule.set_needed(settings.combination.needed());
            self.plan = plan;
        }
        if !is_processed_alike {
            self.state.lanes.iter_mut().flatten().for_each(Lane::forget);
            self.state.editor = editor(&settings, self.vocab_size());
            let start = self.state.prompt_end();
            self.state.editor.iter_mut().for_each(|editor| editor.begin(start));
        }
        let is_complete = self.state.finish == Some(Finish::Complete);
        let has_stopped = self.state.finish == Some(Finish::StopToken);
        self.state.weighted = weighted(&settings);
        self.state.settings = settings;
        self.fit();
        // The limits may have become wider or narrower, and the constraint may be another one.
        if !has_stopped && (!is_complete || !is_processed_alike) {
            self.state.finish = self.state.limit(committed);
        }
        Ok(())
    }

    /// Undo a round that waits for passes, so that nothing of it is left.
    fn end_round(&mut self) {
        if self.schedule.is_in_round() {
            self.undo();
        }
        self.probed = None;
    }

    /// Drop everything that is pending.
    fn drop_pending(&mut self) {
        let committed = self.schedule.committed();
        self.schedule.reset(committed);
        self.state.drop_pending(committed);
    }

    /// Decode by another plan for the same combination.
    ///
    /// To be called at the end of a round that succeeded, with nothing pending. Then the choice of a plan may depend on
    /// everything that was observed, because all positions that were drafted, or whose route was looked at, are decided
    /// or dropped. With drafts pending it would be a selection among them: what was observed since they were drawn
    /// depends on them, and those that are left by choice no longer have the distribution `q`.
    pub fn set_plan(&mut self, plan: Plan) {
        self.end_round();
        assert!(!self.has_pending(), "a plan was changed with proposals pending");
        self.schedule.set_plan(&plan);
        self.plan = plan;
        self.fit();
    }

    /// Learn from what is decoded from here on, beginning with these estimates.
    pub fn observe(&mut self, estimates: Estimates) {
        let settings = &self.state.settings;
        let weights = match &settings.combination {
            _ if settings.sampler.is_greedy() || settings.weigher.is_some() => None,
            Combination::Mixture { weights } => Some(weights.clone()),
            combination => combination.single().map(|single| {
                let mut weights = vec![0.0; self.state.lanes.len()];
                weights[single] = 1.0;
                weights
            }),
        };
        let mut observer = Observer::new(estimates, weights, self.vocab_size());
        observer.restart(self.schedule.committed());
        self.state.observer = Some(Box::new(observer));
    }

    /// An error if these tokens cannot be appended.
    fn check_prompt(&self, tokens: &[i32]) -> Result<()> {
        let (committed, context_length) = (self.schedule.committed(), self.state.context_length);
        if tokens.is_empty() {
            return Err(Error::InvalidArgument("the prompt is empty; it takes at least one token".into()));
        }
        if tokens.len() > context_length - committed {
            return Err(Error::ContextFull(format!(
                "{} tokens do not fit: the context holds {context_length}, of which {committed} are used; shorten the \
                 prompt",
                tokens.len()
            )));
        }
        let is_token = |token: i32| usize::try_from(token).is_ok_and(|token| token < self.vocab_size());
        if let Some((index, token)) = tokens.iter().enumerate().find(|(_, token)| !is_token(**token)) {
            return Err(Error::InvalidArgument(format!(
                "token {index} of the prompt is {token}; the vocabulary has the tokens 0 to {}",
                self.vocab_size().saturating_sub(1)
            )));
        }
        Ok(())
    }

    /// Append to the sequence; an ended one goes on. The models see the tokens in the next round.
    ///
    /// Nothing is appended on an error.
    pub fn prompt(&mut self, tokens: &[i32]) -> Result<()> {
        self.check_prompt(tokens)?;
        let committed = self.schedule.committed();
        self.end_round();
        self.drop_pending();
        let state = &mut self.state;
        state.tokens.extend_from_slice(tokens);
        state.routes.forget();
        let end = state.tokens.len();
        state.prompts.push(committed..end);
        state.editor.iter_mut().for_each(|editor| editor.begin(end));
        self.start = end;
        self.schedule.reset(end);
        if let Some(observer) = &mut state.observer {
            observer.restart(end);
        }
        state.finish = (end == state.context_length).then_some(Finish::ContextFull);
        self.set_end();
        Ok(())
    }

    /// Go on with the round, or begin one, until passes or an answer are needed, or the round has ended.
    ///
    /// On an error the sequence is as it was before the round.
    pub fn step(&mut self, workspace: &mut Workspace) -> Result<Step> {
        if self.schedule.is_empty() {
            return Err(Error::InvalidArgument("the session has no tokens yet; give it a prompt first".into()));
        }
        workspace.prepare(&self.state.lanes);
        match self.edit_rows(workspace) {
            Ok(false) => {}
            Ok(true) => return Ok(Step::Ask),
            Err(error) => {
                self.failed(workspace);
                return Err(error);
            }
        }
        if !self.schedule.asks() {
            workspace.forget();
        }
        self.observe_passes(workspace);
        if let Some(model) = self.probed {
            return Ok(self.step_probe(model));
        }
        if !self.schedule.is_in_round() {
            (self.before, self.start) = (self.state.counters, self.schedule.committed());
            self.is_usual = true;
            self.state.tell_nothing();
            if self.state.finish.is_some() {
                return Ok(Step::Ended);
            }
        }
        let is_routed = self.plan.targets == Targets::Routed;
        match self.schedule.step(&self.plan, &mut Rows { state: &mut self.state, workspace, is_routed }) {
            Ok(Next::Run) => {
                self.ask_for_passes();
                Ok(Step::Run)
            }
            Ok(Next::Ask) => Ok(Step::Ask),
            Ok(Next::Done) => {
                self.end_scoring();
                self.settle();
                Ok(Step::Committed)
            }
            Err(error) => {
                self.undo();
                Err(error)
            }
        }
    }

    /// A needed pass has succeeded. `overlapped` tells whether it was run at the same time as others of this step.
    pub fn ran(&mut self, need: Need, report: Report, overlapped: bool) {
        let Need { model, start, end, .. } = need;
        let wanted = self.state.wanted(model, start);
        self.ran.push(Ran { need, report, elapsed: report.elapsed, overlapped, wanted });
        self.schedule.ran(model, end);
        if let Some(lane) = &mut self.state.lanes[model] {
            lane.elapsed += report.elapsed;
            lane.sequence.take_rows();
        }
        self.is_usual &= report.is_usual;
        // After the token at index i the row of position i + 1 is scored; those within the prompt do not count.
        let scored = end.saturating_sub(start.max(self.state.prompt_end() - 1));
        self.state.counters.forwards += u64::from(scored > 0);
        self.state.counters.positions += scored as u64;
    }

    /// A needed pass has failed or was cancelled. The sequence is as it was before the round, or without the probe.
    /// What the other passes of the step have shown is learned all the same, but for their times.
    pub fn failed(&mut self, workspace: &mut Workspace) {
        self.observe_rows(workspace);
        self.needs.clear();
        self.ran.clear();
        if self.probed.take().is_none() {
            if self.schedule.is_in_round() {
                self.undo();
            }
            // A round that was cancelled before it began has committed nothing either.
            self.start = self.schedule.committed();
            self.state.tell_nothing();
        }
    }

    /// Let the models know that no pass comes soon, since the sequence has ended.
    pub fn rest(&mut self) {
        self.state.lanes.iter_mut().flatten().for_each(|lane| lane.sequence.rest());
    }

    /// Undo a round that has failed.
    fn undo(&mut self) {
        self.needs.clear();
        self.ran.clear();
        let start = self.schedule.undo();
        let state = &mut self.state;
        state.finish = None;
        state.tell_nothing();
        // If nothing was pending and nothing has run, no number was used, and the next round may take the same.
        let epoch = state.epoch;
        let is_untouched = state.tokens.len() == start && state.counters.forwards == self.before.forwards;
        state.drop_pending(start);
        if is_untouched {
            state.epoch = epoch;
        }
        // A pass that failed may have spoiled rows, so the last one is scored anew.
        state.lanes.iter_mut().flatten().for_each(|lane| lane.abandon(start - 1));
        // Passes were run, but nothing that was decided counts.
        let Counters { forwards, positions, .. } = state.counters;
        state.counters = Counters { forwards, positions, ..self.before };
        state.counters.waste();
    }

    /// Let a model that the plan does not run catch up, to learn how well it would do. The next steps run the probe,
    /// until [`Step::Probed`]. To be called between rounds. Returns false if it cannot: its context has ended, or it is
    /// a look-up.
    pub fn probe(&mut self, model: usize) -> bool {
        let is_model = self.state.lanes[model].is_some();
        let is_between_rounds = !self.schedule.is_in_round() && !self.schedule.is_empty();
        let can = is_model && is_between_rounds && !self.is_exhausted(model);
        self.probed = can.then_some(model);
        can
    }

    fn step_probe(&mut self, model: usize) -> Step {
        let (seen, committed) = (self.schedule.seen(model), self.schedule.committed());
        if seen >= committed {
            self.probed = None;
            self.settle();
            return Step::Probed;
        }
        // First up to the positions that the observer wants, so that it gets the rows of all of them.
        let window = committed.saturating_sub(WINDOW);
        let end = if seen < window { window } else { committed };
        self.needs.push(self.state.need(model, end, committed));
        Step::Run
    }

    /// Tokens that the last round committed, and whether the sequence has ended.
    pub fn round(&self) -> (&[i32], Option<Finish>) {
        (&self.state.tokens[self.start..self.schedule.committed()], self.state.finish)
    }

    /// Propose nothing until all that is pending is decided, so that the plan can be changed.
    pub fn drain(&mut self) {
        self.schedule.drain();
    }

    /// What learns, if anything does.
    pub fn observer(&mut self) -> Option<&mut Observer> {
        self.state.observer.as_deref_mut()
    }

    /// What is known, if anything is learned.
    pub fn estimates(&self) -> Option<&Estimates> {
        self.state.observer.as_deref().map(Observer::estimates)
    }

    /// Whether proposals wait to be decided.
    pub fn has_pending(&self) -> bool {
        self.schedule.has_pending()
    }

    /// Whether a model can propose no more, because the sequence is longer than its context. A needed model ends the
    /// sequence before that.
    pub fn is_exhausted(&self, model: usize) -> bool {
        self.state.lanes[model].as_ref().is_some_and(|lane| self.schedule.committed() > lane.limits.context_length)
    }

    /// Committed tokens that a participant has not seen.
    pub fn gap(&self, participant: usize) -> usize {
        self.schedule.committed().saturating_sub(self.schedule.seen(participant))
    }

    /// Whether the passes of the last round took as long as later ones will, as far as the models know.
    pub fn is_usual(&self) -> bool {
        self.is_usual
    }

    /// Whether the next round can commit a token: there is a prompt, and the sequence has not ended.
    pub fn is_open(&self) -> bool {
        !self.schedule.is_empty() && self.state.finish.is_none()
    }

    /// The committed tokens, prompts included.
    pub fn committed(&self) -> &[i32] {
        &self.state.tokens[..self.schedule.committed()]
    }

    /// Tokens committed when the last prompt ended.
    pub fn prompt_end(&self) -> usize {
        self.state.prompt_end()
    }

    /// Most tokens that the sequence can hold.
    pub fn context_length(&self) -> usize {
        self.state.context_length
    }

    /// Tokens of the vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.state.lanes.iter().flatten().next().map_or(0, |lane| lane.limits.vocab_size)
    }

    /// The natural logarithms of the probabilities that the tokens of the last round have under the combined
    /// distribution, whatever they were drawn from; none unless [`Settings::log_probabilities`]. Greedy decoding draws
    /// from nothing; its tokens have the probabilities of temperature 1 without filters.
    pub fn log_probabilities(&self) -> &LogProbabilities {
        &self.state.log_probabilities
    }

    /// How the tokens of the last round came about; none of tokens that were given.
    pub fn origins(&self) -> &[Origin] {
        &self.state.origins
    }

    /// What became of drafts, by proposer and by place.
    pub fn tested(&self) -> &Tested {
        &self.state.tested
    }

    /// What was done so far. Of a round that has not ended, only its passes count, because it may be undone.
    pub fn counters(&self) -> Counters {
        let counters = self.state.counters;
        let Counters { forwards, positions, .. } = counters;
        if self.schedule.is_in_round() { Counters { forwards, positions, ..self.before } } else { counters }
    }

    /// What is decoded.
    pub fn settings(&self) -> &Settings {
        &self.state.settings
    }

    /// How it is decoded.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Time spent inside the models.
    pub fn elapsed(&self) -> Duration {
        self.state.lanes.iter().flatten().map(|lane| lane.elapsed).sum()
    }

    /// Of each participant, the rows of logits that it keeps on a GPU and that were copied to the host all the same.
    pub fn rows_copied(&self) -> impl Iterator<Item = u64> {
        self.state.lanes.iter().map(|lane| lane.as_ref().map_or(0, Lane::rows_copied))
    }

    /// Share computed tokens with sequences of the same scope only.
    ///
    /// [`Error::InvalidArgument`] if there are tokens already.
    pub fn set_scope(&mut self, scope: &str) -> Result<()> {
        if !self.schedule.is_empty() {
            return Err(Error::InvalidArgument(format!(
                "the session has {} tokens; set its scope before the first prompt",
                self.schedule.committed()
            )));
        }
        self.state.lanes.iter_mut().flatten().for_each(|lane| lane.sequence.set_scope(scope));
        Ok(())
    }

    /// What sharing the models' caches has saved and cost.
    pub fn cache_use(&self) -> CacheUse {
        self.state.lanes.iter().flatten().map(|lane| lane.sequence.cache_use()).sum()
    }

    /// The memory of the sequence: the models' sequences, and its tokens.
    pub fn memory(&self) -> Memory {
        let edited = self.state.lanes.iter().flatten().map(Lane::edited_bytes).sum::<usize>();
        let own = size_of::<i32>() * self.state.tokens.capacity() + edited;
        let sequences = self.state.lanes.iter().flatten().map(|lane| lane.sequence.memory());
        sequences.chain([Memory::of(own)]).sum()
    }
}

/// A copy for the weights of a position, if they depend on it.
fn weighted(settings: &Settings) -> Option<Box<Settings>> {
    settings.weigher.is_some().then(|| Box::new(settings.clone()))
}

/// What changes rows for these settings, if anything does.
fn editor(settings: &Settings, vocab_size: usize) -> Option<Box<RowEditor>> {
    let editor = || {
        let is_greedy = settings.sampler.is_greedy();
        Box::new(RowEditor::new(&settings.controls, vocab_size, &settings.stop_tokens, is_greedy))
    };
    (!settings.controls.is_plain()).then(editor)
}

/// Most tokens that all models hold that the combination needs. A drafter drafts as long as it can, and limits nothing.
fn context_length(lanes: &[Option<Lane>], combination: &Combination) -> usize {
    let context = |model: usize| lanes[model].as_ref().map_or(usize::MAX, |lane| lane.limits.context_length);
    combination.needed().map(context).min().unwrap_or(0)
}
