//! Going back in a sequence, and going on from where another one stands.

use super::{Decoder, Finish};
use crate::decode::chance::Chance;
use crate::decode::lane::Lane;
use crate::decode::progress::Counters;
use crate::error::{Error, Result};
use crate::model::Sequence;

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
        state.control.iter_mut().for_each(|control| control.begin(prompt_end));
        state.finish = state.has_all(length).then_some(Finish::MaxTokens);
        state.log_probabilities.clear();
        if let Some(observer) = &mut state.observer {
            observer.restart(length);
        }
        self.start = length;
        self.set_end();
        Ok(())
    }

    /// Stand where another decoder stands that decodes the same by the same models, with numbers of its own. The
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
        state.control.iter_mut().for_each(|control| control.begin(prompt_end));
        state.lanes.iter_mut().flatten().for_each(|lane| lane.abandon(committed.saturating_sub(1)));
        let seen = |lane: &Option<Lane>| lane.as_ref().map_or(0, |lane| lane.sequence.len());
        self.schedule.begin_at(committed, self.state.lanes.iter().map(seen));
        (self.start, self.before) = (committed, Counters::default());
        self.set_end();
    }

    /// The source of its random outcomes.
    pub fn chance(&self) -> &C {
        &self.state.chance
    }

    /// The sequence of a model; `None` for a look-up.
    pub fn sequence(&self, participant: usize) -> Option<&dyn Sequence> {
        self.state.lanes[participant].as_ref().map(|lane| lane.sequence.as_ref())
    }
}
