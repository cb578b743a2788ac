//! What a sequence is, and how its positions are decided from rows: the decoder's answers to the schedule.

use std::ops::Range;

use crate::control::{Left, RowEditor};
use crate::decode::alternatives::LogProbabilities;
use crate::decode::chance::{self, Chance, Key, Purpose};
use crate::decode::lane::Lane;
use crate::decode::look_up;
use crate::decode::progress::{Counters, Finish, Origin, Tested};
use crate::decode::routes::Routes;
use crate::decode::schedule::{Decision, Draft, NOBODY, World};
use crate::decode::settings::Settings;
use crate::decode::target::{Front, Target, Workspace};
use crate::decode::weigh::ModelSummary;
use crate::error::{Error, Result};
use crate::learn::observer::Observer;

/// Tokens that are to be scored. They become a prompt once all are.
pub struct Given {
    /// The position of the first one.
    pub start: usize,
    pub tokens: Vec<i32>,
    /// Tokens that were committed before the call, and why the sequence had ended, if it had.
    pub before: (usize, Option<Finish>),
}

/// One sequence: its tokens, the models' rows, and what has happened.
pub struct DecoderState<C> {
    /// By participant; `None` for a look-up.
    pub lanes: Vec<Option<Lane>>,
    pub settings: Settings,
    /// The settings with the weights of the front position, if they depend on it.
    pub weighted: Option<Box<Settings>>,
    /// For the function that weighs.
    pub summaries: Vec<ModelSummary>,
    /// What is asked of the tokens; `None` if nothing is.
    pub editor: Option<Box<RowEditor>>,
    pub chance: C,
    /// Committed tokens, then pending ones.
    pub tokens: Vec<i32>,
    /// Where prompts are, in order. Those that were rewound are gone.
    pub prompts: Vec<Range<usize>>,
    /// Tokens to be scored.
    pub given: Option<Given>,
    /// Most tokens that all needed models hold.
    pub context_length: usize,
    /// How often pending tokens were dropped or the combination changed.
    pub epoch: u32,
    /// The epoch of routes: the one at which the weights were set.
    pub route_epoch: u32,
    /// Numbers of routes in common with other sequences.
    pub routes: Routes,
    pub finish: Option<Finish>,
    /// Those of the tokens that the round has committed, if wanted.
    pub log_probabilities: LogProbabilities,
    /// How the tokens that the round has committed came about; none of tokens that are given.
    pub origins: Vec<Origin>,
    pub counters: Counters,
    /// What became of drafts.
    pub tested: Tested,
    /// Learns how well the models do, if a planner wants to know.
    pub observer: Option<Box<Observer>>,
}

impl<C: Chance> DecoderState<C> {
    /// Tokens committed when the last prompt ended.
    pub fn prompt_end(&self) -> usize {
        self.prompts.last().map_or(0, |prompt| prompt.end)
    }

    /// Whether as many tokens are committed behind the last prompt as are asked for.
    pub fn has_all(&self, committed: usize) -> bool {
        committed - self.prompt_end() >= self.settings.max_tokens && self.settings.max_tokens > 0
    }

    /// The limit that so many committed tokens have reached, if any.
    pub fn limit(&self, committed: usize) -> Option<Finish> {
        if self.has_all(committed) {
            Some(Finish::MaxTokens)
        } else {
            (committed == self.context_length).then_some(Finish::ContextFull)
        }
    }

    /// Drop all tokens from index `from` on, here and in every cache.
    pub fn drop_pending(&mut self, from: usize) {
        self.tokens.truncate(from);
        self.lanes.iter_mut().flatten().for_each(|lane| lane.truncate(from));
        self.editor.iter_mut().for_each(|editor| editor.truncate(from));
        self.epoch = self.epoch.wrapping_add(1);
        self.counters.waste();
    }

    /// Forget what is told of the tokens of a round.
    pub fn tell_nothing(&mut self) {
        self.log_probabilities.clear();
        self.origins.clear();
    }

    fn key(&self, position: usize, purpose: Purpose) -> Key {
        Key { position, purpose, epoch: self.epoch }
    }

    fn front<'a>(&'a mut self, position: usize, workspace: &'a mut Workspace) -> Result<Front<'a, C>> {
        let token = self.tokens.get(position).map(|&token| token as usize);
        let is_given = self.is_given(position);
        let DecoderState { lanes, settings, weighted, editor, chance, epoch, route_epoch, tokens, .. } = self;
        let editor = editor.as_mut().filter(|_| !is_given);
        let coin = || excludes(chance, settings, position, *route_epoch);
        let edits = editor.map(|editor| editor.edits(position, tokens, coin)).transpose()?;
        let edits = edits.filter(|edits| !edits.is_empty());
        let settings = weighted.as_deref().unwrap_or(settings);
        Ok(Front { lanes, settings, edits, chance, epoch: *epoch, position, token, workspace })
    }

    /// What is asked of the tokens leaves this at a position, whatever the rows are.
    pub fn left(&mut self, position: usize) -> Result<Left> {
        let DecoderState { settings, editor, chance, route_epoch, tokens, .. } = self;
        let coin = || excludes(chance, settings, position, *route_epoch);
        editor.as_mut().map_or(Ok(Left::Several), |editor| editor.left(position, tokens, coin))
    }

    /// The same, as far as it is known without the mask.
    fn peek(&mut self, position: usize) -> Result<Left> {
        if self.is_given(position) {
            return Ok(Left::Several);
        }
        let DecoderState { editor, tokens, .. } = self;
        editor.as_mut().map_or(Ok(Left::Several), |editor| editor.peek(position, tokens))
    }

    /// Set the weights of a position, if they depend on it.
    fn weigh(&mut self, position: usize) -> Result<()> {
        let DecoderState { lanes, settings, weighted, summaries, tokens, .. } = self;
        let (Some(weigher), Some(weighted)) = (&settings.weigher, weighted) else { return Ok(()) };
        let base = settings.combination.weights();
        summaries.clear();
        for (lane, &weight) in lanes.iter().zip(base) {
            let lane = lane.as_ref().filter(|_| weight != 0.0);
            let summary = lane.map_or(Ok(ModelSummary::NONE), |lane| ModelSummary::of(lane.logits(position)));
            summaries.push(summary?);
        }
        weigher.weigh(base, &tokens[..position], summaries, &mut weighted.combination)
    }

    /// Whether the token of a position is given.
    pub fn is_given(&self, position: usize) -> bool {
        self.given_token(position).is_some()
    }

    fn given_token(&self, position: usize) -> Option<i32> {
        let given = self.given.as_ref()?;
        given.tokens.get(position.checked_sub(given.start)?).copied()
    }

    /// See whether the token at a position that was just committed ends the sequence. What is pending behind an end
    /// is wasted, and goes with the next prompt.
    fn end(&mut self, position: usize) {
        let (committed, token) = (position + 1, self.tokens[position]);
        self.finish = if self.settings.stop_tokens.contains(&token) {
            Some(Finish::StopToken)
        } else if self.is_complete(committed) {
            Some(Finish::Complete)
        } else {
            self.limit(committed)
        };
        if self.finish.is_some() {
            self.counters.waste();
        }
    }

    /// Whether the constraint allows nothing more. One that fails shows that in the next round.
    fn is_complete(&mut self, committed: usize) -> bool {
        let DecoderState { editor, tokens, .. } = self;
        editor.as_mut().is_some_and(|editor| editor.is_complete(committed, tokens).unwrap_or(false))
    }

    /// Show the observer what is known of the token at a position that was just committed. `decided` is the probability
    /// that the target gave it, if the target is no mixture.
    fn observe(&mut self, position: usize, decided: Option<f32>, workspace: &mut Workspace) {
        let Some(observer) = learner(&mut self.observer) else { return };
        let token = self.tokens[position];
        observer.record_commit(position, decided);
        for (participant, lane) in self.lanes.iter().enumerate() {
            let Some(lane) = lane else {
                let proposal = look_up::successor(&self.tokens[..position]);
                observer.record_lookup(participant, position, proposal, token);
                continue;
            };
            if lane.sequence.len() < position {
                continue;
            }
            let Settings { sampler, .. } = &self.settings;
            let is_skipped = !lane.is_processed(position) && observer.skips(participant, position);
            // A score on a device costs a question. The model's next pass tells it.
            if is_skipped || !(sampler.is_greedy() || lane.row(position).knows(token as usize)) {
                continue;
            }
            let edits = self.editor.as_ref().map(|editor| editor.known(position));
            let seen = lane.observation(position, token as usize, sampler, edits, workspace.for_observation());
            seen.into_iter().for_each(|seen| observer.record_score(participant, position, seen));
        }
    }
}

/// Whether top choices are excluded at a position: an outcome of its own, which stays as routes do, whatever becomes of
/// drafts.
pub fn excludes(chance: &impl Chance, settings: &Settings, position: usize, epoch: u32) -> bool {
    let key = Key { position, purpose: Purpose::Exclusion, epoch };
    chance.accept(key, f64::from(settings.controls.xtc_probability))
}

/// The observer, unless it rests.
pub fn learner(observer: &mut Option<Box<Observer>>) -> Option<&mut Observer> {
    observer.as_deref_mut().filter(|observer| !observer.rests())
}

/// Answers the schedule from rows.
pub struct Rows<'a, C> {
    pub state: &'a mut DecoderState<C>,
    pub workspace: &'a mut Workspace,
    /// Whether the target of a position is one model's distribution, drawn by the weights of a mixture.
    pub is_routed: bool,
}

impl<C: Chance> World for Rows<'_, C> {
    type Error = Error;

    fn has_ended(&self) -> bool {
        self.state.finish.is_some()
    }

    /// `k` with probability `λ_k`, fixed for each position.
    fn route(&self, position: usize) -> usize {
        let key = Key { position, purpose: Purpose::Route, epoch: self.state.route_epoch };
        let weights = self.state.settings.combination.weights();
        let route = match self.state.routes.number(position) {
            Some(number) => chance::quantile(weights, number),
            None => self.state.chance.pick(key, weights),
        };
        route.expect("weights on the host can be read")
    }

    /// One that fails is decided too, to tell the error.
    fn is_settled(&mut self, position: usize) -> bool {
        let settles = self.state.settings.settles();
        self.state.peek(position).map_or(true, |left| match left {
            Left::Several => false,
            Left::One(_) => settles,
            Left::Nothing => true,
        })
    }

    fn follow(&mut self, position: usize) -> Option<Draft> {
        let Ok(Left::One(token)) = self.state.peek(position) else { return None };
        if !self.state.settings.settles() {
            return None;
        }
        self.state.tokens.push(token as i32);
        Some(Draft { proposer: NOBODY, certain: true, odds: 1.0, depth: 0 })
    }

    fn given(&mut self, position: usize) -> Option<Draft> {
        let token = self.state.given_token(position)?;
        self.state.tokens.push(token);
        Some(Draft { proposer: NOBODY, certain: true, odds: 1.0, depth: 0 })
    }

    fn is_given(&self, position: usize) -> bool {
        self.state.is_given(position)
    }

    fn decide(&mut self, position: usize, draft: Option<Draft>) -> Result<Decision> {
        let decided = self.decide_now(position, draft);
        if decided.is_err() && self.workspace.asks() {
            return Ok(Decision::Asks);
        }
        self.workspace.forget();
        decided
    }

    /// A bad row proposes nothing. Whether it matters shows when it is needed to decide.
    fn propose(&mut self, proposer: usize, position: usize, pending: usize) -> Result<Option<Draft>> {
        match self.draw_proposal(proposer, position, pending) {
            Err(Error::Numeric(_)) => Ok(None),
            other => other,
        }
    }
}

impl<C: Chance> Rows<'_, C> {
    /// Decide a position. On an error nothing has changed, so that it can be decided again.
    fn decide_now(&mut self, position: usize, draft: Option<Draft>) -> Result<Decision> {
        // Taken out, because they are written while rows are looked at.
        let mut log_probabilities = std::mem::take(&mut self.state.log_probabilities);
        let decided = self.decide_with(position, draft, &mut log_probabilities);
        self.state.log_probabilities = log_probabilities;
        decided
    }

    fn decide_with(
        &mut self,
        position: usize,
        draft: Option<Draft>,
        log_probabilities: &mut LogProbabilities,
    ) -> Result<Decision> {
        if self.state.is_given(position) {
            return self.score(position, log_probabilities);
        }
        let left = match self.state.peek(position)? {
            Left::Several => self.state.left(position)?,
            known => known,
        };
        match left {
            Left::Several => {}
            Left::One(token) if self.state.settings.settles() => {
                return Ok(self.settle(position, draft, token, log_probabilities));
            }
            Left::One(_) => {}
            Left::Nothing => {
                self.state.finish = Some(Finish::Complete);
                self.state.counters.waste();
                return Ok(Decision::Ended);
            }
        }
        self.state.weigh(position)?;
        let route = self.is_routed.then(|| self.route(position));
        // The model whose distribution is the target, if it is one model's.
        let alone = route.or(self.state.settings.combination.single());
        let is_observed = learner(&mut self.state.observer).is_some();
        let mut front = self.state.front(position, self.workspace)?;
        let target = front.target(route)?;
        let drawn = match draft {
            Some(draft) => front.test(draft, target)?,
            // Nothing is pending and the target is known: a true bonus token.
            None => Some(front.draw(target)?),
        };
        let token = drawn.or(front.token).expect("a draft has a token");
        let is_weighed = front.settings.weigher.is_some();
        let is_combined = is_weighed || matches!(target, Target::Token(_) | Target::Sum(_));
        let decided = (is_observed && is_combined).then(|| front.probability(target, token)).transpose()?;
        front.report(target, token, log_probabilities)?;
        // Nothing fails from here on.
        let state = &mut *self.state;
        let accepted = drawn.is_none();
        state.counters.tokens += 1;
        state.counters.tested += u64::from(draft.is_some());
        state.counters.accepted += u64::from(accepted);
        draft.into_iter().for_each(|draft| state.tested.count(draft, accepted));
        state.origins.push(match draft {
            Some(draft) => Origin::tested(draft, accepted),
            None => Origin::drawn(alone),
        });
        if let Target::Token(best) = target {
            state.counters.near_ties += u64::from(best.is_near_tie());
        }
        if !accepted {
            if draft.is_some() {
                state.drop_pending(position);
            }
            state.tokens.push(token as i32);
        }
        state.end(position);
        state.observe(position, decided, self.workspace);
        Ok(if accepted || draft.is_none() { Decision::Accepted } else { Decision::Rejected })
    }

    /// Commit a token that is given, and tell its log-probability: that without bias, penalties and constraint.
    fn score(&mut self, position: usize, log_probabilities: &mut LogProbabilities) -> Result<Decision> {
        self.state.weigh(position)?;
        let token = self.state.given_token(position).expect("the token of the position is given");
        let mut front = self.state.front(position, self.workspace)?;
        let target = front.target(None)?;
        front.report(target, token as usize, log_probabilities)?;
        if self.state.tokens.len() == position {
            self.state.tokens.push(token);
        }
        learner(&mut self.state.observer).into_iter().for_each(|observer| observer.record_settled(position));
        Ok(Decision::Accepted)
    }

    /// Commit the only token that is possible. No row is looked at, and no number is drawn.
    ///
    /// A token that is pending there is the same, because it was proposed under the same edits.
    fn settle(
        &mut self,
        position: usize,
        draft: Option<Draft>,
        token: usize,
        log_probabilities: &mut LogProbabilities,
    ) -> Decision {
        let state = &mut *self.state;
        if state.tokens.len() == position {
            state.tokens.push(token as i32);
        }
        // A draft that somebody made was counted when it was proposed.
        let is_counted = draft.is_some_and(|draft| draft.proposer != NOBODY);
        state.counters.tokens += 1;
        state.counters.tested += u64::from(is_counted);
        state.counters.accepted += u64::from(is_counted);
        state.origins.push(Origin::FORCED);
        if state.settings.log_probabilities {
            let is_model = state.lanes.iter().map(Option::is_some);
            log_probabilities.add_settled(token, state.settings.alternatives, is_model);
        }
        state.end(position);
        learner(&mut state.observer).into_iter().for_each(|observer| observer.record_settled(position));
        Decision::Accepted
    }

    fn draw_proposal(&mut self, proposer: usize, position: usize, pending: usize) -> Result<Option<Draft>> {
        let key = self.state.key(position, Purpose::Proposal);
        if self.state.left(position)? == Left::Nothing {
            return Ok(None);
        }
        let DecoderState { lanes, settings, editor, chance, route_epoch, tokens, counters, observer, .. } =
            &mut *self.state;
        let coin = || excludes(chance, settings, position, *route_epoch);
        let edits = editor.as_mut().map(|editor| editor.edits(position, tokens, coin)).transpose()?;
        let estimates = observer.as_ref().map(|observer| observer.estimates());
        let (token, certain, odds) = match &mut lanes[proposer] {
            None => {
                let odds = estimates.map_or(1.0, |known| known.acceptance[proposer].rate(pending > 0));
                let is_possible = |token: &i32| edits.is_none_or(|edits| edits.allows(*token as usize));
                let found = look_up::successor(&tokens[..position]).filter(is_possible);
                let Some(token) = found else { return Ok(None) };
                (token, true, odds)
            }
            Some(lane) => {
                edits.map_or(Ok(()), |edits| lane.edit(position, edits, &mut self.workspace.candidates))?;
                let (token, confidence) = if settings.sampler.is_greedy() {
                    let best = lane.row(position).best()?;
                    (best.token, best.confidence())
                } else {
                    lane.process(position, &settings.sampler, &mut self.workspace.candidates)?;
                    let token = chance.pick(key, &lane.weighted(position))?;
                    (token, lane.distribution(position).confidence())
                };
                let odds = estimates.map_or(1.0, |known| known.calibration[proposer].rate(confidence));
                (token as i32, false, odds)
            }
        };
        tokens.push(token);
        counters.proposed += 1;
        Ok(Some(Draft { proposer, certain, odds, depth: pending }))
    }
}
