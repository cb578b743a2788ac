//! Tokens that are given, and whose log-probabilities are told.

use super::{Decoder, Finish};
use crate::decode::chance::Chance;
use crate::decode::lane::Lane;
use crate::decode::state::Given;
use crate::error::{Error, Result};

impl<C: Chance> Decoder<C> {
    /// Append to the sequence as [`Decoder::prompt`] does, but score the tokens: the next rounds commit them, and tell
    /// their log-probabilities, until [`Decoder::is_scoring`] is false. Nothing comes before the first token of a
    /// sequence, so it is not scored.
    ///
    /// [`Error::InvalidArgument`] unless log-probabilities are wanted. Nothing is appended on an error.
    pub fn begin_scoring(&mut self, tokens: &[i32]) -> Result<()> {
        if !self.state.settings.log_probabilities {
            return Err(Error::InvalidArgument(
                "the session tells no log-probabilities; set log_probabilities to 1 in its options".into(),
            ));
        }
        self.check_prompt(tokens)?;
        self.end_round();
        self.drop_pending();
        let before = (self.schedule.committed(), self.state.finish);
        let first = usize::from(self.schedule.is_empty());
        if first > 0 {
            self.prompt(&tokens[..first])?;
        }
        self.state.finish = None;
        // Rows that were edited to propose from them are needed as they were.
        self.state.lanes.iter_mut().flatten().for_each(Lane::forget);
        let start = self.schedule.committed();
        self.state.given = Some(Given { start, tokens: tokens[first..].to_vec(), before });
        self.fit();
        self.end_scoring();
        Ok(())
    }

    /// Give up scoring. The sequence is as it was before [`Decoder::begin_scoring`].
    pub fn give_up_scoring(&mut self) -> Result<()> {
        let Some(Given { before: (length, finish), .. }) = self.state.given.take() else { return Ok(()) };
        self.rewind(length)?;
        self.state.finish = finish;
        self.fit();
        Ok(())
    }

    /// Whether given tokens are not scored yet.
    pub fn is_scoring(&self) -> bool {
        self.state.given.is_some()
    }

    /// Once all given tokens are committed, they are a prompt.
    pub(super) fn end_scoring(&mut self) {
        let (state, committed) = (&mut self.state, self.schedule.committed());
        let Some(&Given { start, ref tokens, .. }) = state.given.as_ref() else { return };
        if committed < start + tokens.len() {
            return;
        }
        if start < committed {
            state.prompts.push(start..committed);
        }
        state.given = None;
        state.editor.iter_mut().for_each(|editor| editor.begin(committed));
        state.finish = (committed == state.context_length).then_some(Finish::ContextFull);
        self.fit();
    }
}
