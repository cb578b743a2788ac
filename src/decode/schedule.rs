//! The one loop of all strategies: which model runs next, when a position is decided, and who proposes.
//!
//! A [`Schedule`] holds numbers only: how many tokens are committed, which proposals are pending behind them, and how
//! many tokens each participant has seen. It asks a [`World`] for everything that depends on rows. The decoder answers
//! from rows, the forecast of a plan from acceptance rates, so both follow the same loop.
//!
//! A round goes like this. The policy picks a model. The model runs over all tokens that it has not seen, which scores
//! all pending positions and the one behind them. Positions are decided from the front, as far as they can be. Then the
//! model may propose. The round ends as soon as it has committed a token, so nothing can fail after a commit.

use std::collections::VecDeque;

use crate::decode::policy::{Action, Plan, Targets, View};

/// Stands for nobody, as the proposer of a token that was the only one possible.
pub const NOBODY: usize = usize::MAX;

/// Most tokens that are given to be scored, pending at once.
pub const MOST_GIVEN: usize = 32;

/// A pending token, as far as the loop depends on it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draft {
    /// The participant that proposed it, or [`NOBODY`].
    pub proposer: usize,
    /// Whether it was proposed for certain, as by a look-up. Otherwise it was drawn from its proposer's row.
    pub certain: bool,
    /// The expected probability that it is accepted; 1 if nothing is known.
    pub odds: f64,
    /// How many proposals were pending before it.
    pub depth: usize,
}

/// What became of a position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Its draft was accepted, or a token was drawn where none was pending.
    Accepted,
    /// Another token has replaced its draft. Everything that was pending is dropped.
    Rejected,
    /// Nothing yet: a device is asked a question. Once that is answered, the position is to be decided again.
    Asks,
    /// The sequence has ended before the position. No token was committed.
    Ended,
}

/// What a schedule asks of the world.
pub trait World {
    /// Why a position cannot be decided.
    type Error;

    /// Whether the sequence has ended, so that nothing more is decided or proposed.
    fn has_ended(&self) -> bool;

    /// Whether the front position can be decided without rows: one token is possible there, or none. It is decided even
    /// if no model has scored it.
    fn is_settled(&mut self, position: usize) -> bool;

    /// The only token that is possible at `position`, behind all that is pending; `None` if there are several.
    fn follow(&mut self, position: usize) -> Option<Draft>;

    /// The token at `position` that is to be scored, whatever its probability. `None` if none is given.
    fn given(&mut self, position: usize) -> Option<Draft>;

    /// Whether there are such tokens at `position` and behind it.
    fn is_given(&self, position: usize) -> bool;

    /// The model that the target of a position is routed to; the same answer whenever it is asked.
    fn route(&self, position: usize) -> usize;

    /// Decide the front position, where `draft` is pending or nothing is, and commit its token.
    fn decide(&mut self, position: usize, draft: Option<Draft>) -> Result<Decision, Self::Error>;

    /// Let a participant propose the token at `position`, behind `pending` other proposals. `None` if it has none.
    fn propose(&mut self, proposer: usize, position: usize, pending: usize) -> Result<Option<Draft>, Self::Error>;
}

/// What a schedule needs before it can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Passes of the models in [`Schedule::running`].
    Run,
    /// The answer to a question about rows.
    Ask,
    /// Nothing: the round has ended, and it has committed at least one token, unless the sequence has ended.
    Done,
}

/// A round that has not ended.
#[derive(Debug, Clone, Copy)]
struct Round {
    /// Tokens committed when it began.
    start: usize,
    /// Whether a participant had nothing to propose.
    declined: bool,
}

/// Where a sequence stands in the loop.
#[derive(Debug)]
pub struct Schedule {
    /// The models that the combination depends on.
    needed: Vec<usize>,
    /// By participant: whether the combination depends on it.
    is_needed: Vec<bool>,
    /// By participant: most tokens that it can hold.
    contexts: Vec<usize>,
    /// The least of these.
    least_context: usize,
    /// By participant: whether it is a look-up, which sees all tokens without a pass.
    look_ups: Vec<bool>,
    max_pending: usize,
    /// Most tokens of the sequence, pending ones included.
    end: usize,
    committed: usize,
    pending: VecDeque<Draft>,
    /// By participant: tokens seen, pending ones included.
    seen: Vec<usize>,
    /// The rest of a proposer's turn.
    turn: Option<Action>,
    /// Whether nothing is proposed until all that is pending is decided.
    draining: bool,
    round: Option<Round>,
    /// Whether a question must be answered before positions are decided.
    asks: bool,
    /// What is being done, until all models in `running` have seen all tokens.
    action: Option<Action>,
    running: Vec<usize>,
    /// For the policy.
    view: Vec<usize>,
}

impl Schedule {
    /// An empty sequence. `contexts` are the most tokens that each participant holds.
    pub fn new(contexts: Vec<usize>, look_ups: Vec<bool>) -> Self {
        let participants = contexts.len();
        Schedule {
            needed: Vec::with_capacity(participants),
            is_needed: vec![false; participants],
            least_context: contexts.iter().copied().min().unwrap_or(0),
            contexts,
            look_ups,
            max_pending: 0,
            end: usize::MAX,
            committed: 0,
            pending: VecDeque::new(),
            seen: vec![0; participants],
            turn: None,
            draining: false,
            round: None,
            asks: false,
            action: None,
            running: Vec::with_capacity(participants),
            view: vec![0; participants],
        }
    }

    /// Go on by another plan. What is pending stays; see [`Decoder::set_plan`] for when that is exact.
    ///
    /// [`Decoder::set_plan`]: super::decoder::Decoder::set_plan
    pub fn set_plan(&mut self, plan: &Plan) {
        self.max_pending = plan.policy.max_pending();
        self.pending.reserve(self.max_pending);
        self.turn = None;
        self.draining = false;
    }

    /// Propose again, though proposals are still pending.
    pub fn stop_draining(&mut self) {
        self.draining = false;
    }

    /// Decide positions by these models from now on.
    pub fn set_needed(&mut self, needed: impl Iterator<Item = usize>) {
        self.needed.clear();
        self.needed.extend(needed);
        self.is_needed.fill(false);
        self.needed.iter().for_each(|&model| self.is_needed[model] = true);
    }

    /// Let the sequence have at most this many tokens, pending ones included.
    pub fn set_end(&mut self, tokens: usize) {
        self.end = tokens;
    }

    /// Start again with so many committed tokens and nothing pending, of which each participant keeps what it has seen.
    pub fn reset(&mut self, committed: usize) {
        (self.round, self.action, self.asks) = (None, None, false);
        self.committed = committed;
        self.drop_pending();
    }

    /// Begin anew by another plan, with one committed token that nobody has seen.
    pub fn restart(&mut self, plan: &Plan) {
        self.seen.fill(0);
        self.reset(1);
        self.set_plan(plan);
    }

    /// Undo a round that has failed. Returns the tokens that were committed before it. The last one is to be seen
    /// again, since its row may be spoiled.
    pub fn undo(&mut self) -> usize {
        let start = self.round.map_or(self.committed, |round| round.start);
        self.reset(start);
        self.seen.iter_mut().for_each(|seen| *seen = (*seen).min(start.saturating_sub(1)));
        start
    }

    /// Go back to so many committed tokens. The last one is to be seen again, since its row may be gone.
    pub fn rewind(&mut self, committed: usize) {
        self.reset(committed);
        self.seen.iter_mut().for_each(|seen| *seen = (*seen).min(committed.saturating_sub(1)));
    }

    /// Begin with so many committed tokens, of which each participant has seen some.
    pub fn begin_at(&mut self, committed: usize, seen: impl Iterator<Item = usize>) {
        self.reset(committed);
        self.seen.iter_mut().zip(seen).for_each(|(place, seen)| *place = seen);
    }

    fn drop_pending(&mut self) {
        self.pending.clear();
        self.turn = None;
        let committed = self.committed;
        self.seen.iter_mut().for_each(|seen| *seen = (*seen).min(committed));
    }

    /// Propose nothing until all that is pending is decided.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Tokens committed.
    pub fn committed(&self) -> usize {
        self.committed
    }

    /// Tokens committed and pending.
    #[inline]
    pub fn len(&self) -> usize {
        self.committed + self.pending.len()
    }

    /// Whether there are no tokens.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether proposals wait to be decided.
    pub fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Most proposals that can be pending at once.
    pub fn max_pending(&self) -> usize {
        self.max_pending
    }

    /// Tokens that a participant has seen.
    pub fn seen(&self, participant: usize) -> usize {
        self.seen[participant]
    }

    /// Whether the last step has ended with a question.
    pub fn asks(&self) -> bool {
        self.asks
    }

    /// Whether a round has begun and not ended.
    pub fn is_in_round(&self) -> bool {
        self.round.is_some()
    }

    /// Models whose passes are needed now, each over all tokens that it has not seen. They do not depend on each other.
    pub fn running(&self) -> impl Iterator<Item = usize> + '_ {
        let len = self.len();
        self.running.iter().copied().filter(move |&model| self.action.is_some() && self.seen[model] < len)
    }

    /// A model has now seen all tokens before `end`.
    pub fn ran(&mut self, model: usize, end: usize) {
        self.seen[model] = end;
    }

    /// All models that are running have now seen all tokens.
    #[inline]
    pub fn ran_all(&mut self) {
        let len = self.len();
        self.running.iter().for_each(|&model| self.seen[model] = len);
    }

    /// Go on until passes or an answer are needed, or the round has ended.
    ///
    /// On an error nothing of the round counts, and [`Schedule::undo`] must be called.
    #[inline]
    pub fn step<W: World>(&mut self, plan: &Plan, world: &mut W) -> Result<Next, W::Error> {
        let begins = self.round.is_none();
        if begins {
            self.round = Some(Round { start: self.committed, declined: false });
        }
        // An earlier round may have left positions that can be decided without a pass.
        if (begins || self.asks) && self.action.is_none() {
            self.decide(plan, world)?;
            if self.asks {
                return Ok(Next::Ask);
            }
        }
        loop {
            if let Some(action) = self.action {
                let len = self.len();
                if self.running.iter().any(|&model| self.seen[model] < len) {
                    return Ok(Next::Run);
                }
                self.decide(plan, world)?;
                if self.asks {
                    return Ok(Next::Ask);
                }
                self.action = None;
                self.propose(action, world)?;
            }
            if self.committed > self.start() || world.has_ended() {
                self.round = None;
                return Ok(Next::Done);
            }
            while self.pending.len() < MOST_GIVEN
                && let Some(draft) = world.given(self.len())
            {
                self.pending.push_back(draft);
            }
            self.act(plan, world);
        }
    }

    #[inline]
    fn start(&self) -> usize {
        self.round.map_or(self.committed, |round| round.start)
    }

    /// Choose what to do next, and which models run for it.
    #[inline]
    fn act<W: World>(&mut self, plan: &Plan, world: &W) {
        let action = self.next_action(plan, world);
        self.running.clear();
        self.running.push(action.model);
        if action.proposals == 0 {
            // These passes come before anything is decided or proposed, so they may run at the same time.
            let Schedule { needed, seen, committed, running, .. } = self;
            running.extend(needed.iter().copied().filter(|&other| {
                other != action.model && seen[other] < *committed && plan.may_overlap(action.proposals, other)
            }));
        }
        let len = self.len();
        if self.look_ups[action.model] {
            self.seen[action.model] = len;
        }
        self.action = Some(action);
    }

    /// The rest of a proposer's turn, or what the policy says.
    #[inline]
    fn next_action<W: World>(&mut self, plan: &Plan, world: &W) -> Action {
        let (len, has_room) = (self.len(), self.has_room());
        if let Some(turn) = self.turn.take()
            && has_room
            && len <= self.contexts[turn.model]
            && self.is_hopeful(plan)
        {
            return turn;
        }
        let missing = self.missing(plan, world).expect("a position that can be decided was left undecided");
        let (pending, declined) = (self.pending.len(), self.round.is_some_and(|round| round.declined));
        if has_room && len <= self.least_context {
            return plan.policy.next(&View { pending, missing, seen: &self.seen, declined });
        }
        for participant in 0..self.seen.len() {
            // One that may only draft has nothing to do where a draft has no room, or where its context ends.
            let may_draft = has_room && len <= self.contexts[participant];
            let is_idle = !may_draft && !self.is_needed[participant];
            self.view[participant] = if is_idle { usize::MAX } else { self.seen[participant] };
        }
        plan.policy.next(&View { pending, missing, seen: &self.view, declined })
    }

    /// Decide every position that can be decided, from the front.
    ///
    /// Once a token of the round is committed, a further position is decided only if it could be whatever its route.
    /// Otherwise the end of a round would tell of the next token, and a caller who changes weights there, or stops,
    /// would choose among outcomes. The next round decides what is left, without a pass.
    ///
    /// A position that fails is an error of the round in which it comes first; earlier tokens of a round are good. One
    /// that asks is the next to be decided.
    #[inline]
    fn decide<W: World>(&mut self, plan: &Plan, world: &mut W) -> Result<(), W::Error> {
        self.asks = false;
        while !world.has_ended() && self.is_ready(plan, world) {
            let is_given = world.is_given(self.committed);
            match world.decide(self.committed, self.pending.front().copied()) {
                Ok(Decision::Asks) => {
                    self.asks = true;
                    return Ok(());
                }
                Ok(Decision::Ended) => return Ok(()),
                Ok(decision) => {
                    self.pending.pop_front();
                    if decision == Decision::Rejected {
                        self.drop_pending();
                    }
                    self.committed += 1;
                    // What is given is scored, and nothing is decoded behind it.
                    if is_given && !world.is_given(self.committed) {
                        return Ok(());
                    }
                }
                Err(_) if self.committed > self.start() => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    #[inline]
    fn is_ready<W: World>(&self, plan: &Plan, world: &mut W) -> bool {
        let has_rows = match self.committed > self.start() {
            true => self.needed.iter().all(|&model| self.has_scored(model)),
            false => self.missing(plan, world).is_none(),
        };
        has_rows || world.is_settled(self.committed)
    }

    /// Let the model that has run propose, if it was to: it has scored the next position, and there is room.
    ///
    /// Behind a commit, an error is no proposal: a round that has committed cannot fail.
    #[inline]
    fn propose<W: World>(&mut self, Action { model, proposals }: Action, world: &mut W) -> Result<(), W::Error> {
        let position = self.len();
        let is_free = self.seen[model] == position && self.has_room() && !world.is_given(position);
        if proposals == 0 || world.has_ended() || !is_free {
            return Ok(());
        }
        match world.propose(model, position, self.pending.len()) {
            Ok(Some(draft)) => {
                self.pending.push_back(draft);
                while self.has_room()
                    && let Some(draft) = world.follow(self.len())
                {
                    self.pending.push_back(draft);
                }
                self.turn = Some(Action { model, proposals: proposals - 1 }).filter(|turn| turn.proposals > 0);
            }
            Err(error) if self.committed == self.start() => return Err(error),
            Ok(None) | Err(_) => self.round.iter_mut().for_each(|round| round.declined = true),
        }
        Ok(())
    }

    /// The first model that must still score the front position before it can be decided.
    #[inline]
    fn missing<W: World>(&self, plan: &Plan, world: &W) -> Option<usize> {
        match plan.targets {
            Targets::Combined => self.needed.iter().copied().find(|&model| !self.has_scored(model)),
            Targets::Routed => Some(world.route(self.committed)).filter(|&model| !self.has_scored(model)),
        }
    }

    #[inline]
    fn has_scored(&self, model: usize) -> bool {
        self.seen[model] >= self.committed
    }

    /// Whether one more token may be proposed.
    #[inline]
    fn has_room(&self) -> bool {
        self.pending.len() < self.max_pending && !(self.draining && self.has_pending()) && self.len() < self.end
    }

    /// Whether the pending proposals are likely enough to be accepted that a turn is worth going on with.
    ///
    /// This may depend on anything, also on the pending tokens and how they were drawn. Each of them is verified
    /// against the same target in any case, and what is not drafted is drawn from the target.
    #[inline]
    fn is_hopeful(&self, plan: &Plan) -> bool {
        let least = f64::from(plan.stop_below) / 100.0;
        least == 0.0 || self.pending.iter().map(|draft| draft.odds).product::<f64>() >= least
    }
}
