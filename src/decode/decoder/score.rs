//! Tokens that are given, and whose log-probabilities are told.

use super::{Decoder, Finish};
use crate::decode::chance::Chance;
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
        let first = usize::from(self.schedule.is_empty());
        if first > 0 {
            self.prompt(&tokens[..first])?;
        }
        let (start, given) = (self.schedule.committed(), tokens[first..].to_vec());
        self.state.finish = None;
        self.state.given = Some((start, given));
        self.fit();
        self.end_scoring();
        Ok(())
    }

    /// Whether given tokens are not scored yet.
    pub fn is_scoring(&self) -> bool {
        self.state.given.is_some()
    }

    /// Once all given tokens are committed, they are a prompt.
    pub(super) fn end_scoring(&mut self) {
        let (state, committed) = (&mut self.state, self.schedule.committed());
        let Some((start, given)) = &state.given else { return };
        if committed < start + given.len() {
            return;
        }
        if *start < committed {
            state.prompts.push(*start..committed);
        }
        state.given = None;
        state.editor.iter_mut().for_each(|editor| editor.begin(committed));
        state.finish = (committed == state.context_length).then_some(Finish::ContextFull);
        self.fit();
    }
}
