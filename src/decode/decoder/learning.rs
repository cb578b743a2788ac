//! What an observer learns from the passes of a sequence.

use std::time::Duration;

use super::{Decoder, Need, Ran};
use crate::decode::chance::Chance;
use crate::decode::state::{DecoderState, learner};
use crate::decode::target::Workspace;

impl<C: Chance> Decoder<C> {
    /// Let the observer learn from the passes that were run.
    pub(super) fn observe_passes(&mut self, workspace: &mut Workspace) {
        self.observe_rows(workspace);
        self.observe_times();
        self.needs.clear();
        self.ran.clear();
    }

    /// Show the observer the rows that it has been waiting for.
    pub(super) fn observe_rows(&mut self, workspace: &mut Workspace) {
        let DecoderState { lanes, settings, editor, tokens, observer, .. } = &mut self.state;
        let Some(observer) = learner(observer) else { return };
        let committed = self.schedule.committed();
        for Ran { need: Need { model, end, .. }, wanted, .. } in &self.ran {
            let lane = lanes[*model].as_ref().expect("a look-up runs no passes");
            for (position, &token) in tokens.iter().enumerate().take(committed.min(end + 1)).skip(*wanted) {
                // The model's next pass tells the score of the token behind this one.
                let row = || lane.row(position);
                let is_told = position < *end || settings.sampler.is_greedy() || row().knows(token as usize);
                if !observer.skips(*model, position) && is_told {
                    let edits = editor.as_ref().map(|editor| editor.known(position));
                    let buffers = workspace.for_observation();
                    let seen = lane.observation(position, token as usize, &settings.sampler, edits, buffers);
                    seen.into_iter().for_each(|seen| observer.record_score(*model, position, seen));
                }
            }
        }
    }

    /// Tell the observer the times of passes. A pass over a prompt, or one that prepares others, says nothing of later
    /// ones.
    fn observe_times(&mut self) {
        let prompt_end = self.state.prompt_end();
        let Some(observer) = learner(&mut self.state.observer) else { return };
        let tells = |ran: &Ran| ran.report.is_usual && ran.need.start + 1 >= prompt_end;
        let pass = |ran: &Ran| (ran.need.model, ran.need.end - ran.need.start);
        if self.ran.iter().any(|ran| ran.overlapped) {
            if self.ran.iter().all(tells) {
                let elapsed: Duration = self.ran.iter().map(|ran| ran.elapsed).sum();
                observer.record_overlapped(self.ran.iter().map(pass), elapsed.as_secs_f64());
            }
        } else {
            for ran in self.ran.iter().filter(|ran| tells(ran)) {
                let (model, width) = pass(ran);
                observer.record_pass(model, width, ran.elapsed.as_secs_f64());
            }
        }
    }

    /// Let the observer count what the round has shown.
    pub(super) fn settle(&mut self) {
        if let Some(observer) = learner(&mut self.state.observer) {
            observer.update();
        }
    }
}

impl<C: Chance> DecoderState<C> {
    /// The first position that an observer wants a model's row of, if the model runs from `start` on: it was committed
    /// without it, or without a score that this pass tells.
    pub(super) fn wanted(&self, model: usize, start: usize) -> usize {
        let Some(observer) = &self.observer else { return usize::MAX };
        let rows = self.lanes[model].as_ref().and_then(|lane| lane.sequence.device_rows());
        let first = if rows.is_some_and(|rows| rows.learns(start)) { start } else { start + 1 };
        observer.first_wanted(model).max(first)
    }
}
