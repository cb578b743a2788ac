//! Rows that are edited on the device of their model.

use super::{Decoder, Settings};
use crate::control::Left;
use crate::decode::chance::Chance;
use crate::decode::state::{DecoderState, learner};
use crate::decode::target::Workspace;
use crate::error::Result;
use crate::learn::observer::Observer;
use crate::rows::DeviceSums;

impl<C: Chance> Decoder<C> {
    /// Whether rows are edited.
    pub fn has_edits(&self) -> bool {
        self.state.editor.is_some()
    }

    /// Edit the rows on devices that passes have given, those of all positions at once. Returns whether that waits for
    /// an answer.
    pub(super) fn edit_rows(&mut self, workspace: &mut Workspace) -> Result<bool> {
        // Given tokens are scored without edits. A question about a sum comes behind the edits.
        if self.state.editor.is_none() || self.state.given.is_some() || self.schedule.asks() {
            return Ok(false);
        }
        let Some(sums) = workspace.sums() else { return Ok(false) };
        if !self.awaits_edits() {
            self.ask_for_edits(sums);
        }
        if !self.awaits_edits() {
            return Ok(false);
        }
        let made = sums.make_edited();
        if made.is_err() && sums.asks() {
            return Ok(true);
        }
        self.state.lanes.iter_mut().flatten().for_each(|lane| lane.settle_edits(&made));
        made.map(|()| false)
    }

    fn awaits_edits(&self) -> bool {
        self.state.lanes.iter().flatten().any(|lane| lane.awaits_edits())
    }

    /// Ask for the edits of rows that may be needed: to decide, to propose, to tell log-probabilities, or to learn.
    fn ask_for_edits(&mut self, sums: &mut dyn DeviceSums) {
        sums.forget();
        let committed = self.schedule.committed();
        let learns = learner(&mut self.state.observer).is_some();
        let Settings { combination, log_probabilities, alternatives, .. } = &self.state.settings;
        let tells = *log_probabilities && alternatives.of_models && !alternatives.before;
        let takes_all = combination.edits_rows() || tells || learns;
        for model in 0..self.state.lanes.len() {
            let lane = self.state.lanes[model].as_ref().filter(|lane| lane.sequence.device_rows().is_some());
            let is_needed = takes_all || !self.plan.policy.never_proposes(model);
            let Some(seen) = lane.filter(|_| is_needed).map(|lane| lane.sequence.len()) else { continue };
            let ran = self.ran.iter().find(|ran| ran.need.model == model && learns);
            let first = ran.map_or(committed, |ran| ran.wanted.min(committed));
            for position in first..=seen {
                let skips = |observer: &mut Observer| observer.skips(model, position);
                if position >= committed || !learner(&mut self.state.observer).is_some_and(skips) {
                    self.ask_for_edits_of(model, position, sums);
                }
            }
        }
    }

    fn ask_for_edits_of(&mut self, model: usize, position: usize, sums: &mut dyn DeviceSums) {
        // A constraint that fails shows that where the position is decided.
        if position >= self.schedule.committed() && !matches!(self.state.left(position), Ok(Left::Several)) {
            return;
        }
        let DecoderState { lanes, settings, editor, tokens, chance, epoch, .. } = &mut self.state;
        let (Some(lane), Some(editor)) = (&mut lanes[model], editor) else { return };
        let Some(edits) = editor.known(position) else { return };
        let token = tokens.get(position).map(|&token| token as usize);
        let draws = || lane.uniforms(model, (&self.plan, settings), chance, (position, *epoch));
        let uniforms = if token.is_none() { draws() } else { None };
        lane.ask_for_edits(position, (edits, settings.sampler.filter()), (token, uniforms), sums);
    }
}
