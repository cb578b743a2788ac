//! Going back in a sequence, and going on from where another one stands.

use super::{Decoder, Finish};
use std::ops::Range;

use crate::decode::chance::Chance;
use crate::decode::lane::Lane;
use crate::decode::progress::Counters;
use crate::error::{Error, Result};
use crate::model::Sequence;

/// Where a sequence stands, without what models have computed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// The committed tokens.
    pub tokens: Vec<i32>,
    /// Where prompts are, in order.
    pub prompts: Vec<Range<usize>>,
    /// The epochs of its random numbers; see [`Key`](crate::decode::chance::Key).
    pub epoch: u32,
    /// That of routes.
    pub route_epoch: u32,
    /// Why it has ended, if it has.
    pub finish: Option<Finish>,
}

impl<C: Chance> Decoder<C> {
    /// Forget all tokens from index `length` on, those of a prompt too. What is decoded there again is drawn with new
    /// numbers, routes included, because the caller has seen what the old ones led to.
    ///
    /// A round that waits for passes is undone. [`Error::InvalidArgument`] if there are fewer tokens.
    pub fn rewind(&mut self, length: usize) -> Result<()> {
        let committed = self.schedule.committed();
        if length > committed {
            return Err(Error::InvalidArgument(format!(
                "length is {length}, but the sequence has {committed} tokens; give at most that"
            )));
        }
        self.end_round();
        if length == committed {
            return Ok(());
        }
        self.schedule.rewind(length);
        let state = &mut self.state;
        state.drop_pending(length);
        state.route_epoch = state.epoch;
        state.routes.forget();
        // Rows before the last pass are gone, so the last token is scored anew.
        state.lanes.iter_mut().flatten().for_each(|lane| lane.abandon(length.saturating_sub(1)));
        state.prompts.retain(|prompt| prompt.start < length);
        if let Some(prompt) = state.prompts.last_mut() {
            prompt.end = prompt.end.min(length);
        }
        let prompt_end = state.prompt_end();
        state.editor.iter_mut().for_each(|editor| editor.begin(prompt_end));
        state.finish = state.has_all(length).then_some(Finish::MaxTokens);
        state.tell_nothing();
        if let Some(observer) = &mut state.observer {
            observer.restart(length);
        }
        self.start = length;
        self.set_end();
        Ok(())
    }

    /// Snapshot where another decoder stands that decodes the same by the same models, with numbers of its own. The
    /// sequences of the models have a beginning of its tokens, or none. Nothing has been decoded before.
    ///
    /// Proposals that are pending there stay there. If both decoders verified them, their texts would depend on each
    /// other.
    pub fn continue_from(&mut self, other: &Decoder<C>) {
        let committed = other.schedule.committed();
        let state = &mut self.state;
        state.tokens.extend_from_slice(other.committed());
        state.prompts.clone_from(&other.state.prompts);
        state.finish = other.state.finish;
        let prompt_end = state.prompt_end();
        state.editor.iter_mut().for_each(|editor| editor.begin(prompt_end));
        state.lanes.iter_mut().flatten().for_each(|lane| lane.abandon(committed.saturating_sub(1)));
        let seen = |lane: &Option<Lane>| lane.as_ref().map_or(0, |lane| lane.sequence.len());
        self.schedule.begin_at(committed, self.state.lanes.iter().map(seen));
        (self.start, self.before) = (committed, Counters::default());
        self.set_end();
    }

    /// Where it stands: what [`Decoder::resume`] takes.
    pub fn snapshot(&self) -> Snapshot {
        let state = &self.state;
        // What is pending stays here. Its numbers are used, so a copy needs others.
        let is_ahead = self.schedule.has_pending() || self.schedule.is_in_round();
        Snapshot {
            tokens: self.committed().to_vec(),
            prompts: state.prompts.clone(),
            epoch: state.epoch.wrapping_add(u32::from(is_ahead)),
            route_epoch: state.route_epoch,
            finish: state.finish,
        }
    }

    /// Snapshot where another decoder stood. Nothing has been decoded before.
    ///
    /// [`Error::ContextFull`] if there is no room for the tokens, [`Error::InvalidArgument`] if they are none of the
    /// vocabulary, or the prompts none of the tokens.
    pub fn resume(&mut self, stand: Snapshot) -> Result<()> {
        let Snapshot { tokens, prompts, epoch, route_epoch, finish } = stand;
        let ends = prompts.iter().flat_map(|prompt| [prompt.start, prompt.end]);
        let is_prompts = ends.clone().is_sorted() && ends.clone().all(|end| end <= tokens.len());
        if !is_prompts || (prompts.is_empty() && !tokens.is_empty()) {
            return Err(Error::InvalidArgument("the prompts are none of the tokens".into()));
        }
        if !tokens.is_empty() {
            self.prompt(&tokens)?;
        }
        let state = &mut self.state;
        (state.prompts, state.epoch, state.route_epoch, state.finish) = (prompts, epoch, route_epoch, finish);
        let prompt_end = state.prompt_end();
        state.editor.iter_mut().for_each(|editor| editor.begin(prompt_end));
        self.set_end();
        Ok(())
    }

    /// The source of its random outcomes.
    pub fn chance(&self) -> &C {
        &self.state.chance
    }

    /// Take other random outcomes from here on. To be called before anything is decoded.
    pub fn set_chance(&mut self, chance: C) {
        self.state.chance = chance;
    }

    /// The sequence of a model; `None` for a look-up.
    pub fn sequence(&self, participant: usize) -> Option<&dyn Sequence> {
        self.state.lanes[participant].as_ref().map(|lane| lane.sequence.as_ref())
    }
}
