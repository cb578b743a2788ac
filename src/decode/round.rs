//! The one loop that all strategies share.
//!
//! The state of a sequence is the committed prefix, the pending proposals behind it, and for each model how much of
//! both it has seen. A policy picks a model; the model runs once over everything it has not seen, which scores all
//! pending positions and the one after them; what can be decided is decided from the front; then the model may
//! propose. A round ends as soon as it has committed a token, so nothing can fail after a commit.

use std::sync::Arc;

use crate::decode::chance::{Chance, Key, Purpose};
use crate::decode::combine::Combination;
use crate::decode::policy::{Action, Plan, Targets, View};
use crate::decode::verify;
use crate::error::{Error, Result};
use crate::model::{Interrupt, Memory, Model, Pass, Proposal, Sequence};
use crate::plan::estimates::Estimates;
use crate::plan::observer::{Observer, WINDOW};
use crate::rows::Weights;
use crate::rows::sampling::{self, Best, Candidates, Distribution, Sampler};
use crate::rows::{Filtered, RowMath, Term};

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was committed; it is the last token.
    StopToken,
    /// As many tokens were generated since the last prompt as were asked for.
    MaxTokens,
    /// The context has no room for another token.
    ContextFull,
}

/// What was done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens committed, prompts excluded.
    pub tokens: u64,
    /// Proposals made.
    pub proposed: u64,
    /// Proposals that were accepted or rejected; the others were dropped behind a rejection or an end.
    pub tested: u64,
    /// Proposals accepted.
    pub accepted: u64,
    /// Passes of all models, those over nothing but prompt excluded. Look-ups make none.
    pub forwards: u64,
    /// Positions scored by all models, prompt excluded.
    pub positions: u64,
    /// Greedy choices whose two best scores were nearer than [`sampling::NEAR_TIE`].
    pub near_ties: u64,
}

/// Everything that settles how a sequence is decoded.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What is decoded: the target distribution.
    pub combination: Combination,
    /// How distributions are made from logits.
    pub sampler: Sampler,
    /// How it is decoded.
    pub plan: Plan,
    /// Tokens that end the sequence.
    pub stop_tokens: Vec<i32>,
    /// Most tokens generated after a prompt; 0 is no limit.
    pub max_tokens: usize,
    /// Whether [`Decoder::log_probabilities`] are wanted. They take combined targets.
    pub log_probabilities: bool,
}

/// What one model knows of the sequence.
struct Lane {
    sequence: Box<dyn Sequence>,
    /// What the sampler makes of the rows: of position `p` in slot `p % slots`, where `stamps` says so.
    distributions: Vec<Distribution>,
    stamps: Vec<usize>,
    /// Of passes at the same time as others': whether it was begun, and what it was.
    running: bool,
    passed: Option<Passed>,
}

/// A pass of a model.
#[derive(Debug, Clone, Copy)]
struct Passed {
    model: usize,
    width: usize,
    seconds: f64,
}

const NO_ROW: usize = usize::MAX;

impl Lane {
    fn truncate(&mut self, len: usize) {
        if self.sequence.len() > len {
            self.sequence.truncate(len);
        }
        self.stamps.iter_mut().filter(|stamp| **stamp > len).for_each(|stamp| *stamp = NO_ROW);
    }

    /// Process the row of a position, unless that was done: a pass or two over it, or nothing.
    fn process(&mut self, position: usize, sampler: &Sampler, candidates: &mut Candidates) -> Result<()> {
        let slot = position % self.stamps.len();
        if !self.is_processed(position) {
            self.distributions[slot] = self.made(position, sampler, candidates)?;
            self.stamps[slot] = position;
        }
        Ok(())
    }

    fn made(&self, position: usize, sampler: &Sampler, candidates: &mut Candidates) -> Result<Distribution> {
        match sampler.process_known(|filter| self.sequence.filtered(position, filter))? {
            Some(distribution) => Ok(distribution),
            None => sampler.process(self.sequence.logits(position), candidates),
        }
    }

    /// The greedy choice at a position.
    fn best(&self, position: usize) -> Result<Best> {
        match self.sequence.best(position) {
            Some((token, score, second)) => Best::new(token, score, second),
            None => sampling::argmax(self.sequence.logits(position)),
        }
    }

    fn is_processed(&self, position: usize) -> bool {
        self.stamps[position % self.stamps.len()] == position
    }

    /// What an observer is told of a token at a position: its probability, or greedily whether it is the first choice; and
    /// how sure of itself the model is there. A bad row gives nothing.
    fn look(&self, position: usize, token: usize, sampler: &Sampler, candidates: &mut Candidates) -> (f32, f32) {
        if sampler.is_greedy() {
            let told = |best: Best| (f32::from(u8::from(best.token == token)), best.confidence());
            return self.best(position).map_or((0.0, 0.0), told);
        }
        let told = |distribution: &Distribution| {
            (distribution.probability_of(token, self.sequence.score(position, token)), distribution.confidence())
        };
        if self.is_processed(position) {
            return told(&self.distributions[position % self.stamps.len()]);
        }
        self.made(position, sampler, candidates).map_or((0.0, 0.0), |distribution| told(&distribution))
    }

    /// The distribution of a position that was processed, and the row that it is made of.
    fn distribution(&self, position: usize) -> (&Distribution, &[f32]) {
        let slot = position % self.stamps.len();
        assert_eq!(self.stamps[slot], position, "a row was read before it was processed");
        (&self.distributions[slot], self.sequence.logits(position))
    }

    /// To draw from the distribution of a position that was processed.
    fn at(&self, position: usize) -> Place<'_> {
        assert!(self.is_processed(position), "a row was drawn from before it was processed");
        Place { lane: self, position, distribution: &self.distributions[position % self.stamps.len()] }
    }

    /// The distribution of a position as a part of what is made on a GPU, if the row is there.
    fn term(&self, position: usize, weight: f32) -> Option<Term> {
        let distribution = self.at(position).distribution;
        self.sequence.placed(position).map(|row| distribution.term(row, weight))
    }

    /// The probability of a token at a position that was processed.
    fn probability(&self, position: usize, token: usize) -> f32 {
        self.at(position).distribution.probability_of(token, self.sequence.score(position, token))
    }
}

/// A pending token.
#[derive(Debug, Clone, Copy)]
struct Draft {
    proposer: usize,
    /// Whether its proposer gave it for certain: `q` is a point mass. Otherwise `q` is the proposer's processed row.
    certain: bool,
    /// The probability with which it is accepted, by what is known of its proposer; 1 if nobody wants to know.
    odds: f64,
}

/// The decoder of one sequence.
pub struct Decoder<C> {
    models: Vec<Arc<dyn Model>>,
    lanes: Vec<Lane>,
    settings: Settings,
    chance: C,
    /// Committed tokens, then pending ones.
    tokens: Vec<i32>,
    committed: usize,
    /// Where each pending token comes from.
    drafts: Vec<Draft>,
    /// Tokens committed when the last prompt ended.
    prompt_end: usize,
    context_length: usize,
    max_pending: usize,
    /// How often pending tokens were dropped or the combination changed.
    epoch: u32,
    /// The epoch of routes: the one at which the weights were set.
    route_epoch: u32,
    /// What is left of a proposer's turn.
    turn: Option<Action>,
    finish: Option<Finish>,
    /// `ln r` of the tokens that the round committed, if wanted.
    log_probabilities: Vec<f32>,
    counters: Counters,
    /// What makes something of rows that are on a GPU.
    math: Option<Box<dyn RowMath>>,
    /// Whether it has made the sum of which the front position's greedy target is.
    summed: bool,
    /// Learns how well the models do, where a planner wants to know.
    observer: Option<Box<Observer>>,
    /// For the observer: the probability that the target gave the last token, where it is no mixture of the models'.
    decided: Option<f32>,
    /// Whether nothing is to be proposed until all that is pending is decided.
    draining: bool,
    /// Whether all passes of the round took what others like them will.
    is_usual: bool,
    /// For the policy: tokens seen by each model.
    seen: Vec<usize>,
    /// The models that run at the same time.
    together: Vec<usize>,
    /// Whether any may.
    overlaps: bool,
    target: Vec<f32>,
    scratch: Vec<f32>,
    candidates: Candidates,
}

impl<C: Chance> Decoder<C> {
    /// A decoder of an empty sequence; `sequences` are the models' own, one each, empty.
    pub fn new(models: Vec<Arc<dyn Model>>, sequences: Vec<Box<dyn Sequence>>, settings: Settings, chance: C) -> Self {
        let vocab_size = models.iter().find(|model| model.scores()).map_or(0, |model| model.vocab_size());
        let lane =
            |sequence| Lane { sequence, distributions: Vec::new(), stamps: Vec::new(), running: false, passed: None };
        let mut decoder = Decoder {
            seen: vec![0; models.len()],
            together: Vec::with_capacity(models.len()),
            overlaps: true,
            models,
            lanes: sequences.into_iter().map(lane).collect(),
            chance,
            tokens: Vec::new(),
            committed: 0,
            drafts: Vec::new(),
            prompt_end: 0,
            context_length: 0,
            max_pending: 0,
            epoch: 0,
            route_epoch: 0,
            turn: None,
            finish: None,
            log_probabilities: Vec::new(),
            counters: Counters::default(),
            summed: false,
            observer: None,
            math: None,
            decided: None,
            draining: false,
            is_usual: true,
            target: vec![0.0; vocab_size],
            scratch: vec![0.0; vocab_size],
            candidates: Candidates::new(vocab_size),
            settings,
        };
        decoder.fit();
        decoder
    }

    /// Make room for all that the combination and the plan can need, so that rounds need not.
    fn fit(&mut self) {
        self.context_length = context_length(&self.models, &self.settings.combination);
        self.max_pending = self.settings.plan.policy.max_pending();
        if self.math.is_none() {
            self.math = self.lanes.iter().find_map(|lane| lane.sequence.row_math());
        }
        let filter = self.settings.sampler.filter();
        self.lanes.iter_mut().for_each(|lane| lane.sequence.set_filter(filter));
        for (model, lane) in self.models.iter().zip(&mut self.lanes) {
            // One for each pending position and the one after them; look-ups need none.
            let slots = if model.scores() { self.max_pending + 1 } else { 0 };
            if lane.stamps.len() != slots {
                lane.distributions = vec![Distribution::default(); slots];
                lane.stamps = vec![NO_ROW; slots];
            }
        }
        self.tokens.reserve(self.context_length.min(1 << 20).saturating_sub(self.tokens.len()));
        self.drafts.reserve(self.max_pending);
        self.log_probabilities.reserve(self.max_pending + 1);
    }

    /// Decode by another combination from the next position on, with a plan for it. Committed tokens stay.
    ///
    /// This is exact: whatever a caller saw before, the tokens from here on follow the new combination.
    /// - Where a round ended tells nothing of the pending tokens but that they were drawn from their `q`, and of them
    ///   nothing else was used. So they may as well be verified against another target. If the new plan needs other
    ///   models, or other rows, they are dropped instead.
    /// - Processed rows are of one model and do not depend on weights. Targets are made when a position is decided.
    /// - A route does depend on weights. Those of open positions are drawn anew, with new numbers: a failed round
    ///   may have told where the next one led. No round that succeeded has looked at it.
    ///
    /// On an error, [`Error::ContextFull`] if a model that is needed now cannot hold the committed tokens, nothing changes.
    pub fn set_combination(&mut self, combination: Combination, plan: Plan) -> Result<()> {
        let context_length = context_length(&self.models, &combination);
        if self.committed > context_length {
            return Err(Error::ContextFull(format!(
                "the sequence has {} tokens, but the models of these weights hold {context_length}; \
                 keep those of a longer context",
                self.committed
            )));
        }
        self.epoch = self.epoch.wrapping_add(1);
        self.route_epoch = self.epoch;
        let old = &self.settings;
        let fits = plan == old.plan && combination.needed().eq(old.combination.needed());
        if !fits {
            self.drop_pending(self.committed);
        }
        self.settings.combination = combination;
        self.settings.plan = plan;
        self.draining = false;
        self.fit();
        // The context may have become longer or shorter.
        if matches!(self.finish, None | Some(Finish::ContextFull)) {
            self.finish = (self.committed == self.context_length).then_some(Finish::ContextFull);
        }
        Ok(())
    }

    /// Learn from what is decoded from here on, beginning with these estimates.
    pub fn observe(&mut self, estimates: Estimates) {
        let models = self.models.len();
        let weights = match &self.settings.combination {
            _ if self.settings.sampler.is_greedy() => None,
            Combination::Mixture { weights } => Some(weights.clone()),
            combination => combination.single().map(|single| {
                let mut weights = vec![0.0; models];
                weights[single] = 1.0;
                weights
            }),
        };
        let mut observer = Observer::new(estimates, weights, self.target.len());
        observer.restart(self.committed);
        self.observer = Some(Box::new(observer));
    }

    /// Whether the time that the last round took tells what others like it will take, as far as the models know.
    pub fn is_usual(&self) -> bool {
        self.is_usual
    }

    /// Let passes that do not depend on each other run at the same time, where models can, or not. At first they may.
    pub fn set_overlaps(&mut self, overlaps: bool) {
        self.overlaps = overlaps;
    }

    /// What learns, if anything does.
    pub fn observer(&mut self) -> Option<&mut Observer> {
        self.observer.as_deref_mut()
    }

    /// What is known, if anything is learned.
    pub fn estimates(&self) -> Option<&Estimates> {
        self.observer.as_deref().map(Observer::estimates)
    }

    /// Whether proposals wait to be decided.
    pub fn has_pending(&self) -> bool {
        !self.drafts.is_empty()
    }

    /// Whether a model can propose no more, because the sequence is longer than its context. One that is needed ends the sequence
    /// before.
    pub fn is_exhausted(&self, model: usize) -> bool {
        self.committed > self.models[model].context_length()
    }

    /// Whether a model's context holds all tokens, so that it may run over them and propose the next one.
    fn holds_all(&self, model: usize) -> bool {
        self.tokens.len() <= self.models[model].context_length()
    }

    /// Committed tokens that a model has not seen.
    pub fn gap(&self, model: usize) -> usize {
        self.committed.saturating_sub(self.lanes[model].sequence.len())
    }

    /// Propose nothing until all that is pending is decided, so that the plan can be changed.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Decode by another plan for the same combination.
    ///
    /// To be called at the end of a round that succeeded, with nothing pending. Then the choice of a plan may look at
    /// everything that was observed: all positions that were drafted, or whose route was looked at, are decided or
    /// dropped. With drafts pending it would be a selection among them: what was observed since they were drawn (passes,
    /// their times, where a draft was ended) depends on them, and of those that are left by choice `q` is no longer the
    /// distribution.
    pub fn set_plan(&mut self, plan: Plan) {
        assert!(self.drafts.is_empty(), "a plan was changed with proposals pending");
        self.settings.plan = plan;
        self.turn = None;
        self.draining = false;
        self.fit();
    }

    /// Let a model that the plan does not run catch up, to learn how well it would do. One whose context has ended cannot.
    pub fn probe(&mut self, model: usize) -> Result<(), Interrupt> {
        if self.is_exhausted(model) {
            return Ok(());
        }
        let window = self.committed.saturating_sub(WINDOW);
        for until in [window, self.committed] {
            let passed = self.advance_to(model, until)?;
            self.passed(passed);
        }
        self.settle();
        Ok(())
    }

    /// The committed tokens, prompts included.
    pub fn committed(&self) -> &[i32] {
        &self.tokens[..self.committed]
    }

    /// Tokens committed when the last prompt ended.
    pub fn prompt_end(&self) -> usize {
        self.prompt_end
    }

    /// Most tokens that the sequence can hold.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    /// The natural logarithms of the probabilities that the tokens of the last round have under the combined
    /// distribution, whatever they were drawn from; none unless [`Settings::log_probabilities`]. Greedy decoding
    /// draws from nothing; its tokens have the probabilities of temperature 1 without filters.
    pub fn log_probabilities(&self) -> &[f32] {
        &self.log_probabilities
    }

    /// What was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// How the sequence is decoded.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Time spent inside the models.
    pub fn elapsed(&self) -> std::time::Duration {
        self.lanes.iter().map(|lane| lane.sequence.elapsed()).sum()
    }

    /// Append to the sequence; an ended one goes on. The models see the tokens in the next round.
    ///
    /// Nothing is appended on an error.
    pub fn prompt(&mut self, tokens: &[i32]) -> Result<()> {
        let vocab_size = self.target.len();
        if tokens.is_empty() {
            return Err(Error::InvalidArgument("the prompt is empty; it takes at least one token".into()));
        }
        if tokens.len() > self.context_length - self.committed {
            return Err(Error::ContextFull(format!(
                "{} tokens do not fit: the context holds {}, of which {} are used; shorten the prompt",
                tokens.len(),
                self.context_length,
                self.committed
            )));
        }
        if let Some((index, token)) = tokens.iter().enumerate().find(|(_, t)| **t < 0 || **t as usize >= vocab_size) {
            return Err(Error::InvalidArgument(format!(
                "token {index} of the prompt is {token}; the vocabulary has the tokens 0 to {}",
                vocab_size - 1
            )));
        }
        self.drop_pending(self.committed);
        self.tokens.extend_from_slice(tokens);
        self.committed = self.tokens.len();
        self.prompt_end = self.committed;
        if let Some(observer) = &mut self.observer {
            observer.restart(self.committed);
        }
        self.finish = (self.committed == self.context_length).then_some(Finish::ContextFull);
        Ok(())
    }

    /// Decode until at least one token is committed, and return the new tokens, none if the sequence has ended.
    ///
    /// On an error the sequence is as it was before the round.
    pub fn round(&mut self) -> Result<(&[i32], Option<Finish>), Interrupt> {
        if self.committed == 0 {
            return Err(Error::InvalidArgument("the session has no tokens yet; give it a prompt first".into()).into());
        }
        let (start, before) = (self.committed, self.counters);
        self.is_usual = true;
        self.log_probabilities.clear();
        if self.finish.is_none()
            && let Err(interrupt) = self.run_round()
        {
            self.roll_back(start);
            // Passes were run, but nothing that was decided counts.
            let Counters { forwards, positions, .. } = self.counters;
            self.counters = Counters { forwards, positions, ..before };
            return Err(interrupt);
        }
        self.settle();
        Ok((&self.tokens[start..self.committed], self.finish))
    }

    fn run_round(&mut self) -> Result<(), Interrupt> {
        let start = self.committed;
        self.verify(start)?; // what an earlier round left, because it could not be decided without an error
        let mut declined = false;
        while self.committed == start {
            let Action { model, proposals } = self.next_action(declined);
            self.advance(model, proposals)?;
            self.verify(start)?;
            if proposals > 0 && self.can_propose(model) {
                // A proposal that fails is none. Whether the bad row matters shows when it is needed to decide.
                if self.propose(model).unwrap_or(false) {
                    self.turn = Some(Action { model, proposals: proposals - 1 }).filter(|turn| turn.proposals > 0);
                } else {
                    declined = true;
                }
            }
        }
        Ok(())
    }

    /// The rest of a proposer's turn, or what the policy says.
    fn next_action(&mut self, declined: bool) -> Action {
        let room = self.has_room();
        if let Some(turn) = self.turn.take()
            && room
            && self.holds_all(turn.model)
            && self.is_hopeful()
        {
            return turn;
        }
        for model in 0..self.lanes.len() {
            // One that may only draft has nothing to run for where a draft has no room, or where its context ends.
            let may_draft = room && self.holds_all(model);
            let is_idle = !may_draft && !self.settings.combination.needs(model);
            self.seen[model] = if is_idle { usize::MAX } else { self.lanes[model].sequence.len() };
        }
        let missing = self.missing().expect("a decidable position was left undecided");
        let pending = self.drafts.len();
        self.settings.plan.policy.next(&View { pending, missing, seen: &self.seen, declined })
    }

    /// Run a model over everything that it has not seen, and those whose passes come next for certain: at the same time, where
    /// they can.
    fn advance(&mut self, model: usize, proposals: usize) -> Result<(), Interrupt> {
        let until = self.tokens.len();
        let mut models = std::mem::take(&mut self.together);
        models.clear();
        models.push(model);
        let others = self.settings.combination.needed().filter(|&other| other != model && !self.scored(other));
        models.extend(others.filter(|&other| self.settings.plan.may_overlap(proposals, other)));
        let result = match &models[..] {
            [_] => self.advance_to(model, until).map(|passed| self.passed(passed)),
            _ => self.advance_together(&models, until),
        };
        self.together = models;
        result
    }

    fn advance_together(&mut self, models: &[usize], until: usize) -> Result<(), Interrupt> {
        let before = self.elapsed();
        let mut running = 0;
        for &model in models {
            self.lanes[model].running = self.overlaps && self.begin(model, until);
            running += usize::from(self.lanes[model].running);
        }
        // Those that run already are waited for last.
        for is_running in [false, true] {
            for &model in models {
                if self.lanes[model].running != is_running {
                    continue;
                }
                match self.advance_to(model, until) {
                    Ok(passed) if running == 0 => self.passed(passed),
                    Ok(passed) => self.lanes[model].passed = passed,
                    Err(interrupt) => {
                        // The others' passes are given up.
                        for &model in models {
                            let sequence = &mut self.lanes[model].sequence;
                            sequence.truncate(sequence.len());
                        }
                        return Err(interrupt);
                    }
                }
            }
        }
        let (lanes, seconds) = (&self.lanes, (self.elapsed() - before).as_secs_f64());
        let passes = models.iter().map(|&model| lanes[model].passed.map(|passed| (passed.model, passed.width)));
        if running > 0
            && let Some(observer) = &mut self.observer
            && passes.clone().all(|pass| pass.is_some())
        {
            observer.record_overlapped(passes.flatten(), seconds);
        }
        Ok(())
    }

    /// Begin a model's next pass, of those that [`Decoder::advance_to`] makes. Returns whether it is running.
    fn begin(&mut self, model: usize, until: usize) -> bool {
        let end = until.min(self.lanes[model].sequence.len() + self.models[model].max_pass());
        let keep = self.keeps(model);
        let sequence = self.lanes[model].sequence.as_mut();
        let start = sequence.len();
        start < end && self.models[model].begin(&mut Pass { sequence, tokens: &self.tokens[start..end], keep })
    }

    /// Let the observer know of a pass.
    fn passed(&mut self, passed: Option<Passed>) {
        if let (Some(observer), Some(Passed { model, width, seconds })) = (&mut self.observer, passed) {
            observer.record_pass(model, width, seconds);
        }
    }

    /// The first position that an observer wants to know a model's thoughts of, if it runs: it was committed without it.
    fn wanted(&self, model: usize) -> usize {
        let start = self.lanes[model].sequence.len();
        self.observer.as_ref().map_or(usize::MAX, |observer| observer.first_wanted(model).max(start + 1))
    }

    /// The first position whose row is wanted of a model's next pass, or of those before.
    fn keeps(&self, model: usize) -> usize {
        self.committed.min(self.wanted(model))
    }

    /// Run a model over the tokens before `until` that it has not seen. Returns the last pass that was made, unless it was one over
    /// a prompt, or of those that prepare others, and so says nothing of those behind it.
    fn advance_to(&mut self, model: usize, until: usize) -> Result<Option<Passed>, Interrupt> {
        let mut passed = None;
        while self.lanes[model].sequence.len() < until {
            let (wanted, keep) = (self.wanted(model), self.keeps(model));
            let sequence = self.lanes[model].sequence.as_mut();
            let start = sequence.len();
            let end = until.min(start + self.models[model].max_pass());
            let mut pass = [Pass { sequence, tokens: &self.tokens[start..end], keep }];
            let before = pass[0].sequence.elapsed();
            self.models[model].forward(&mut pass)?;
            if !self.models[model].scores() {
                continue;
            }
            let seconds = (sequence.elapsed() - before).as_secs_f64();
            let is_usual = sequence.is_usual();
            self.is_usual &= is_usual;
            passed =
                (is_usual && start + 1 >= self.prompt_end).then_some(Passed { model, width: end - start, seconds });
            if let Some(observer) = &mut self.observer {
                for position in wanted..self.committed.min(end + 1) {
                    if observer.skips(model, position) {
                        continue;
                    }
                    let token = self.tokens[position] as usize;
                    let known = self.lanes[model].look(position, token, &self.settings.sampler, &mut self.candidates);
                    observer.record_score(model, position, known);
                }
            }
            // After the token at index i the row of position i + 1 is scored; those within the prompt do not count.
            let scored = end.saturating_sub(start.max(self.prompt_end - 1));
            self.counters.forwards += u64::from(scored > 0);
            self.counters.positions += scored as u64;
        }
        Ok(passed)
    }

    /// The first model that must still score the front position before it can be decided.
    fn missing(&self) -> Option<usize> {
        match self.settings.plan.targets {
            Targets::Combined => self.settings.combination.needed().find(|&model| !self.scored(model)),
            Targets::Routed => Some(self.route(self.committed)).filter(|&model| !self.scored(model)),
        }
    }

    /// Whether a model has scored the front position.
    fn scored(&self, model: usize) -> bool {
        self.lanes[model].sequence.len() >= self.committed
    }

    /// The model that a position's target is routed to: `k` with probability `λ_k`, fixed for each position.
    fn route(&self, position: usize) -> usize {
        let key = Key { position, purpose: Purpose::Route, epoch: self.route_epoch };
        self.chance.pick(key, self.settings.combination.weights())
    }

    fn has_room(&self) -> bool {
        let generated = self.tokens.len() - self.prompt_end;
        self.drafts.len() < self.max_pending
            && !(self.draining && self.has_pending())
            && self.tokens.len() < self.context_length
            && (self.settings.max_tokens == 0 || generated < self.settings.max_tokens)
    }

    /// Whether what is pending is likely enough to be accepted that a turn is worth going on with.
    ///
    /// It may look at anything, also at the tokens that are pending and how they were drawn: whatever it says, each of them
    /// is verified against the same target, and what is not drafted is drawn from it.
    fn is_hopeful(&self) -> bool {
        let least = f64::from(self.settings.plan.stop_below) / 100.0;
        least == 0.0 || self.drafts.iter().map(|draft| draft.odds).product::<f64>() >= least
    }

    /// Whether a model may propose: it has scored the next position, and there is room.
    fn can_propose(&self, model: usize) -> bool {
        self.finish.is_none() && self.lanes[model].sequence.len() == self.tokens.len() && self.has_room()
    }

    /// Draw a token from a model and make it pending; false if the model has none to propose.
    fn propose(&mut self, model: usize) -> Result<bool> {
        let position = self.tokens.len();
        let (token, confidence) = match self.lanes[model].sequence.proposal(position) {
            Proposal::Nothing => return Ok(false),
            Proposal::Token(token) => (token, None),
            Proposal::Row if self.settings.sampler.is_greedy() => {
                let best = self.lanes[model].best(position)?;
                (best.token as i32, Some(best.confidence()))
            }
            Proposal::Row => {
                self.lanes[model].process(position, &self.settings.sampler, &mut self.candidates)?;
                let place = self.lanes[model].at(position);
                let token = self.chance.pick(self.key(position, Purpose::Proposal), &place);
                (token as i32, Some(place.distribution.confidence()))
            }
        };
        let odds = self.estimates().map_or(1.0, |known| match confidence {
            Some(confidence) => known.calibration[model].rate(confidence),
            None => known.acceptance[model].rate(self.has_pending()),
        });
        self.tokens.push(token);
        self.drafts.push(Draft { proposer: model, certain: confidence.is_none(), odds });
        self.counters.proposed += 1;
        Ok(true)
    }

    /// Decide, from the front, every position that can be decided, and commit it.
    ///
    /// Once a token of the round is committed, a further position is decided only if it could be whatever its route, so that
    /// where a round ends tells nothing of the next token: a caller who changes weights there, or stops, would choose
    /// among outcomes otherwise. What is left by this is decided at the start of the next round, without a pass.
    ///
    /// A bad row is an error of the round that it is the first to be decided in; earlier tokens of a round are good.
    fn verify(&mut self, start: usize) -> Result<()> {
        let ready = |this: &Self| match this.committed > start {
            true => this.settings.combination.needed().all(|model| this.scored(model)),
            false => this.missing().is_none(),
        };
        while self.finish.is_none() && ready(self) {
            match self.decide() {
                Ok(()) => {
                    self.commit();
                    self.watch(self.committed - 1);
                }
                Err(_) if self.committed > start => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Decide the front position: its token is then the first one that is not committed.
    fn decide(&mut self) -> Result<()> {
        let position = self.committed;
        let target = self.make_target()?;
        let draft = self.drafts.first().copied();
        let drawn = match draft {
            Some(draft) => self.test(draft, target),
            // Nothing is pending and the target is known: a true bonus token.
            None => Some(self.draw(target)),
        };
        let told = drawn.unwrap_or_else(|| self.tokens[position] as usize);
        let log_probability = self.settings.log_probabilities.then(|| self.log_probability(target, told));
        // Nothing is told of what was answered wrongly.
        let faults = self.lanes.iter().filter_map(|lane| lane.sequence.fault());
        if let Some(fault) = faults.chain(self.math.as_ref().and_then(|math| math.fault())).next() {
            return Err(fault);
        }
        self.counters.tested += u64::from(draft.is_some());
        match drawn {
            None => {
                self.counters.accepted += 1;
                self.drafts.remove(0);
            }
            Some(token) => {
                if draft.is_some() {
                    self.drop_pending(position);
                }
                self.tokens.push(token as i32);
            }
        }
        if self.observer.is_some() {
            let known = matches!(target, Target::Token(_) | Target::Scores(_) | Target::Sum(_));
            self.decided = known.then(|| self.target_probability(target, told));
        }
        self.log_probabilities.extend(log_probability);
        Ok(())
    }

    /// Accept the front proposal (`None`), or draw its replacement.
    fn test(&mut self, Draft { proposer, certain, .. }: Draft, target: Target) -> Option<usize> {
        let position = self.committed;
        let token = self.tokens[position] as usize;
        match target {
            Target::Token(best) => return (best != token).then_some(best),
            Target::Row(model) if model == proposer => return None, // the target is what the token was drawn from
            _ => {}
        }
        let key = self.key(position, Purpose::Acceptance);
        let t = self.target_probability(target, token);
        let q = if certain { 1.0 } else { self.lanes[proposer].probability(position, token) };
        if self.chance.accept(key, verify::acceptance(t, q)) {
            return None;
        }
        let redraw = self.key(position, Purpose::Residual);
        if let Some(token) = self.draw_residual(target, proposer, certain.then_some(token), redraw) {
            return Some(token);
        }
        self.fill_target(target);
        let any = if certain {
            verify::residual_of_certain(&mut self.target, token)
        } else {
            let (proposal, scores) = self.lanes[proposer].distribution(position);
            verify::residual(&mut self.target, proposal, scores)
        };
        if !any {
            self.fill_target(target);
        }
        Some(self.chance.pick(redraw, &self.target[..]))
    }

    /// Draw the front position from its target.
    fn draw(&mut self, target: Target) -> usize {
        let position = self.committed;
        let key = self.key(position, Purpose::Target);
        match target {
            Target::Token(best) => best,
            Target::Row(model) => self.chance.pick(key, &self.lanes[model].at(position)),
            Target::Mixture => {
                // From one of its parts, by their weights: that needs one row, where its model has it.
                let weights = self.settings.combination.weights();
                let model = self.chance.pick(self.key(position, Purpose::Component), weights);
                self.chance.pick(key, &self.lanes[model].at(position))
            }
            Target::Scores(distribution) => self.chance.pick(key, &distribution.of(&self.scratch)),
            Target::Sum(distribution) => {
                let find = |share| self.math().draw(share);
                self.chance.pick(key, &There { total: distribution.total(), find })
            }
        }
    }

    /// `ln r` of the token of the front position, for which the target was just made.
    fn log_probability(&self, target: Target, token: usize) -> f32 {
        let position = self.committed;
        if let Target::Token(_) = target {
            return self.known_log_probability(token).unwrap_or_else(|| {
                let row = |model: usize| self.lanes[model].sequence.logits(position);
                self.settings.combination.log_probability(token, row, &self.scratch)
            });
        }
        f64::from(self.target_probability(target, token)).ln() as f32
    }

    /// The same of a greedy choice, where that is known without the rows.
    fn known_log_probability(&self, token: usize) -> Option<f32> {
        let (position, combination) = (self.committed, &self.settings.combination);
        let log = |max: f32, total: f64, score: f32| f64::from(score) - f64::from(max) - total.ln();
        let of = |model: usize| {
            let sequence = &self.lanes[model].sequence;
            let (max, total) = sequence.normaliser(position, 1.0)?;
            Some(log(max, total, sequence.score(position, token)))
        };
        let value = match combination {
            Combination::Custom { .. } => return None,
            _ if combination.single().is_some() => of(combination.single()?)?,
            Combination::Mixture { .. } => {
                let mut sum = 0.0;
                for (model, weight) in combination.parts() {
                    sum += f64::from(weight) * of(model)?.exp();
                }
                sum.ln()
            }
            Combination::Logits { .. } => {
                let math = self.math.as_ref().filter(|_| self.summed)?;
                math.filtered().map_or(f64::NAN, |Filtered { max, total, .. }| log(max, total, math.score(token)))
            }
        };
        Some(value as f32)
    }

    /// The probability that the target of the front position gives a token.
    fn target_probability(&self, target: Target, token: usize) -> f32 {
        match target {
            Target::Token(best) => f32::from(u8::from(best == token)),
            Target::Row(model) => self.lanes[model].probability(self.committed, token),
            Target::Mixture => {
                let part =
                    |(model, weight): (usize, f32)| weight * self.lanes[model].probability(self.committed, token);
                self.settings.combination.parts().map(part).sum()
            }
            Target::Scores(distribution) => distribution.probability(&self.scratch, token),
            Target::Sum(distribution) => distribution.probability_of(token, self.math().score(token)),
        }
    }

    /// Form the row of the target of the front position, to draw from what a proposal leaves of it.
    fn fill_target(&mut self, target: Target) {
        let position = self.committed;
        match target {
            Target::Token(best) => {
                self.target.fill(0.0);
                self.target[best] = 1.0;
            }
            Target::Row(model) => {
                let (distribution, scores) = self.lanes[model].distribution(position);
                distribution.fill(scores, &mut self.target);
            }
            Target::Mixture => {
                self.target.fill(0.0);
                for (model, weight) in self.settings.combination.parts() {
                    let (distribution, scores) = self.lanes[model].distribution(position);
                    distribution.add(scores, weight, &mut self.target);
                }
            }
            Target::Scores(distribution) => distribution.fill(&self.scratch, &mut self.target),
            Target::Sum(distribution) => {
                let row = |model: usize| self.lanes[model].sequence.logits(position);
                // That it is good was found when the sum was made.
                _ = self.settings.combination.scores(row, &mut self.scratch, |_| ());
                distribution.fill(&self.scratch, &mut self.target);
            }
        }
    }

    /// Make the target of the front position, and say where it is.
    fn make_target(&mut self) -> Result<Target> {
        let position = self.committed;
        if self.settings.sampler.is_greedy() {
            // Lent out of the decoder, which the sum looks at.
            let mut scratch = std::mem::take(&mut self.scratch);
            let row = |model: usize| self.lanes[model].sequence.logits(position);
            let best = |model: usize| self.lanes[model].best(position);
            let mut summed = false;
            let sum = || {
                let best = self.weigh(position).then(|| self.math().best()).flatten();
                summed = best.is_some();
                best.map(|(token, score, second)| Best::new(token, score, second))
            };
            let greedy = self.settings.combination.greedy(best, sum, row, &mut scratch);
            (self.scratch, self.summed) = (scratch, summed);
            let best = greedy.map_err(|error| self.blame(position, error))?;
            self.counters.near_ties += u64::from(best.is_near_tie());
            return Ok(Target::Token(best.token));
        }
        let single = match self.settings.plan.targets {
            Targets::Routed => Some(self.route(position)),
            Targets::Combined => self.settings.combination.single(),
        };
        if let Some(model) = single {
            self.process(model, position)?;
            return Ok(Target::Row(model));
        }
        if matches!(self.settings.combination, Combination::Mixture { .. }) {
            for model in 0..self.lanes.len() {
                if self.settings.combination.needs(model) {
                    self.process(model, position)?;
                }
            }
            return Ok(Target::Mixture);
        }
        if self.weigh(position) {
            let made = self.settings.sampler.process_known(|_| self.math().filtered());
            if let Some(distribution) = made.map_err(|error| self.blame(position, error))? {
                return Ok(Target::Sum(distribution));
            }
        }
        let row = |model: usize| self.lanes[model].sequence.logits(position);
        let combination = &self.settings.combination;
        let make = |out: &mut [f32], made: &mut dyn FnMut(&[f32])| combination.scores(row, out, made);
        let made = self.settings.sampler.process_made(&mut self.scratch, &mut self.candidates, make);
        Ok(Target::Scores(made.map_err(|error| self.blame(position, error))?))
    }

    fn math(&self) -> &dyn RowMath {
        self.math.as_deref().expect("it has made something")
    }

    /// Make the sum that the target is of on a GPU, if all rows are there: of logits, or greedily of a mixture's probabilities.
    fn weigh(&self, position: usize) -> bool {
        let combination = &self.settings.combination;
        let Some(math) = &self.math else { return false };
        let part = |(model, weight): (usize, f32)| {
            let sequence = &self.lanes[model].sequence;
            let row = sequence.placed(position)?;
            if combination.sums().is_some() {
                return Some(Term::of_scores(row, f64::from(weight)));
            }
            let (max, total) = sequence.normaliser(position, 1.0)?;
            let kept = Filtered::whole((max, total));
            Some(Term { row, scale: f64::from(weight) / total, rate: 1.0, kept })
        };
        let mixture = matches!(combination, Combination::Mixture { .. });
        if (combination.sums().is_none() && !mixture) || !combination.parts().all(|each| part(each).is_some()) {
            return false;
        }
        let judge = combination.sums().flatten().and_then(|(model, distance)| {
            self.lanes[model].sequence.placed(position).map(|row| (row, row.max + distance))
        });
        let token = self.tokens.get(position).map_or(0, |&token| token as usize);
        let filter = self.settings.sampler.filter();
        math.weigh(&mut combination.parts().filter_map(part), judge, filter, token).is_some()
    }

    /// Draw what replaces a rejected proposal, perhaps one that was certain, from the residual on a GPU, if all rows that it is of are
    /// there.
    fn draw_residual(&self, target: Target, proposer: usize, certain: Option<usize>, key: Key) -> Option<usize> {
        let (math, position) = (self.math.as_deref()?, self.committed);
        let term = |model: usize, weight: f32| self.lanes[model].term(position, weight);
        let proposal = if certain.is_some() { None } else { Some(term(proposer, 1.0)?) };
        let total = match target {
            Target::Row(model) => {
                math.residual(&mut [Some(term(model, 1.0)?), proposal].into_iter().flatten(), certain)
            }
            Target::Mixture => {
                let parts = || self.settings.combination.parts().map(|(model, weight)| term(model, weight));
                if !parts().all(|part| part.is_some()) {
                    return None;
                }
                math.residual(&mut parts().flatten().chain(proposal), certain)
            }
            Target::Sum(distribution) => {
                let sum = distribution.term(math.placed(), 1.0);
                math.residual(&mut std::iter::once(sum).chain(proposal), certain)
            }
            Target::Token(_) | Target::Scores(_) => None,
        }?;
        let find = |share| math.draw_residual(share);
        (total > 0.0).then(|| self.chance.pick(key, &There { total, find }))
    }

    fn process(&mut self, model: usize, position: usize) -> Result<()> {
        let made = self.lanes[model].process(position, &self.settings.sampler, &mut self.candidates);
        made.map_err(|error| self.blame(position, error))
    }

    /// Say of a numeric error which model's row it comes from.
    #[cold]
    fn blame(&self, position: usize, error: Error) -> Error {
        for model in self.settings.combination.needed() {
            let sequence = &self.lanes[model].sequence;
            if sequence.len() >= position
                && let Err(Error::Numeric(what)) = sampling::maximum(sequence.logits(position))
            {
                return Error::Numeric(format!("{}, position {position}: {what}", self.models[model].name()));
            }
        }
        match error {
            Error::Numeric(what) => Error::Numeric(format!("the combination, position {position}: {what}")),
            other => other,
        }
    }

    fn key(&self, position: usize, purpose: Purpose) -> Key {
        Key { position, purpose, epoch: self.epoch }
    }

    /// Commit the front token, and see whether it ends the sequence. What is pending behind an end goes with the next prompt.
    fn commit(&mut self) {
        let token = self.tokens[self.committed];
        self.committed += 1;
        self.counters.tokens += 1;
        let generated = self.committed - self.prompt_end;
        self.finish = if self.settings.stop_tokens.contains(&token) {
            Some(Finish::StopToken)
        } else if generated == self.settings.max_tokens {
            Some(Finish::MaxTokens)
        } else if self.committed == self.context_length {
            Some(Finish::ContextFull)
        } else {
            None
        };
    }

    /// Show the observer what is known of a token that was just committed.
    fn watch(&mut self, position: usize) {
        let Some(observer) = &mut self.observer else { return };
        let token = self.tokens[position];
        observer.record_commit(position, self.decided);
        for (model, lane) in self.lanes.iter_mut().enumerate() {
            if self.models[model].scores() {
                if lane.sequence.len() >= position {
                    if !lane.is_processed(position) && observer.skips(model, position) {
                        continue;
                    }
                    let known = lane.look(position, token as usize, &self.settings.sampler, &mut self.candidates);
                    observer.record_score(model, position, known);
                }
                continue;
            }
            let sequence = lane.sequence.as_mut();
            let seen = sequence.len();
            if seen < position {
                let mut pass = [Pass { sequence, tokens: &self.tokens[seen..position], keep: position }];
                if self.models[model].forward(&mut pass).is_err() {
                    continue; // then it is not known
                }
            }
            let proposal = match lane.sequence.proposal(position) {
                Proposal::Token(proposed) => Some(proposed),
                _ => None,
            };
            observer.record_lookup(model, position, proposal, token);
        }
    }

    /// Let the observer count what the round has shown.
    fn settle(&mut self) {
        if let Some(observer) = &mut self.observer {
            observer.update();
        }
    }

    /// Drop all tokens from index `from` on, here and in every cache.
    fn drop_pending(&mut self, from: usize) {
        self.tokens.truncate(from);
        self.drafts.clear();
        self.turn = None;
        self.lanes.iter_mut().for_each(|lane| lane.truncate(from));
        self.epoch = self.epoch.wrapping_add(1);
    }

    /// Undo a failed round.
    fn roll_back(&mut self, committed: usize) {
        self.committed = committed;
        self.finish = None;
        self.log_probabilities.clear();
        self.drop_pending(committed);
        // A pass that failed may have spoiled rows, so the last one is scored anew.
        self.lanes.iter_mut().for_each(|lane| lane.truncate(committed - 1));
    }

    /// Of each model, the rows of logits that it keeps on a GPU and that were copied to the host all the same.
    pub fn rows_copied(&self) -> impl Iterator<Item = u64> {
        self.lanes.iter().map(|lane| lane.sequence.rows_copied())
    }

    /// The memory of the sequence: the models' sequences, and the decoder's own rows and tokens.
    pub fn memory(&self) -> Memory {
        let numbers = size_of::<f32>() * (self.target.len() + self.scratch.len());
        let tokens = size_of::<i32>() * self.tokens.capacity();
        let math = self.math.as_ref().map_or(0, |math| math.bytes());
        let own = numbers + tokens + self.candidates.bytes() + math;
        self.lanes.iter().map(|lane| lane.sequence.memory()).chain([Memory::of(own)]).sum()
    }
}

/// Weights that are somewhere else, to draw from there.
struct There<F> {
    total: f64,
    find: F,
}

impl<F: Fn(f64) -> Option<usize>> Weights for There<F> {
    fn count(&self) -> usize {
        0
    }

    fn total(&self) -> f64 {
        self.total
    }

    fn write(&self, _: usize, _: &mut [f32]) {}

    fn find(&self, share: f64) -> Option<usize> {
        (self.find)(share)
    }
}

/// A model's distribution at a position, to draw from.
struct Place<'a> {
    lane: &'a Lane,
    position: usize,
    distribution: &'a Distribution,
}

impl Weights for Place<'_> {
    fn count(&self) -> usize {
        self.lane.sequence.logits(self.position).len()
    }

    fn total(&self) -> f64 {
        self.distribution.total()
    }

    fn write(&self, start: usize, out: &mut [f32]) {
        self.distribution.of(self.lane.sequence.logits(self.position)).write(start, out);
    }

    fn find(&self, share: f64) -> Option<usize> {
        self.lane.sequence.draw(self.position, share)
    }
}

/// Most tokens that all models can hold that have a say. A drafter drafts as long as it can, and limits nothing.
fn context_length(models: &[Arc<dyn Model>], combination: &Combination) -> usize {
    combination.needed().map(|model| models[model].context_length()).min().unwrap_or(0)
}

/// What the front position is verified against, and where it was made.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Target {
    /// This token, greedily. What ranked it is in the decoder's scratch.
    Token(usize),
    /// The distribution of this model.
    Row(usize),
    /// The mixture of the distributions of all that have a weight.
    Mixture,
    /// The distribution of the scores in the decoder's scratch.
    Scores(Distribution),
    /// The distribution of the sum of scores that was made on a GPU.
    Sum(Distribution),
}
