//! The passes that a sequence needs, and what can be done while they run.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::{Decoder, Need};
use crate::control::{Left, RowEditor};
use crate::decode::chance::Chance;
use crate::decode::settings::Settings;
use crate::decode::state::{DecoderState, excludes};
use crate::model::Pass;

/// What can be done while passes run: the edits of rows are made from tokens that are known.
pub struct Beside<'a, C> {
    /// `None` if there is nothing to do.
    editor: Option<&'a mut RowEditor>,
    settings: &'a Settings,
    chance: &'a C,
    route_epoch: u32,
    tokens: &'a [i32],
    /// The front position.
    first: usize,
}

impl<C: Chance> Beside<'_, C> {
    /// Whether it is worth a thread.
    pub fn takes_long(&self) -> bool {
        self.editor.as_ref().is_some_and(|editor| editor.has_constraint())
    }

    /// Make the edits of the front position, and of all behind it up to the one behind all tokens. Those that were made
    /// stay. An error or a panic shows again where the position is decided.
    pub fn work(&mut self) {
        let Beside { editor: Some(editor), settings, chance, route_epoch, tokens, first } = self else { return };
        for position in *first..=tokens.len() {
            let coin = || excludes(*chance, settings, position, *route_epoch);
            let left = catch_unwind(AssertUnwindSafe(|| editor.left(position, tokens, coin)));
            if !matches!(left, Ok(Ok(Left::One(_) | Left::Several))) {
                return;
            }
        }
    }
}

impl<C: Chance> Decoder<C> {
    pub(super) fn ask_for_passes(&mut self) {
        self.needs.clear();
        let (needs, end) = (&mut self.needs, self.schedule.len());
        needs.extend(self.schedule.running().map(|model| self.state.need(model, end, self.schedule.committed())));
    }

    /// The passes that are needed, none of which depends on another. Empty unless the last step was [`Step::Run`].
    pub fn needs(&self) -> &[Need] {
        &self.needs
    }

    /// Cut needed passes over prompts that are longer than `most` tokens of their model; the rest is needed in the next
    /// step.
    pub fn limit_prompts(&mut self, most: impl Fn(usize) -> usize) {
        let prompt_end = self.state.prompt_end();
        for Need { model, start, end, .. } in self.needs.iter_mut().filter(|need| need.end <= prompt_end) {
            *end = (*end).min(*start + most(*model).max(1));
        }
    }

    /// What a needed pass runs over.
    pub fn pass(&mut self, need: Need) -> Pass<'_> {
        let of_model = |(Need { model, .. }, pass)| (model == need.model).then_some(pass);
        self.passes().0.find_map(of_model).expect("the pass is needed")
    }

    /// All needed passes, each of another model, and what can be done beside them.
    pub fn passes(&mut self) -> (impl Iterator<Item = (Need, Pass<'_>)>, Beside<'_, C>) {
        let Decoder { plan, needs, state, schedule, .. } = self;
        let DecoderState { lanes, settings, editor, tokens, given, chance, epoch, route_epoch, .. } = state;
        let (plan, settings, chance, epoch) = (&*plan, &*settings, &*chance, *epoch);
        let (needs, tokens, filter) = (&*needs, &*tokens, settings.sampler.filter());
        let passes = lanes.iter_mut().enumerate().filter_map(move |(model, lane)| {
            let need = *needs.iter().find(|need| need.model == model)?;
            let lane = lane.as_mut()?;
            // If the row is edited behind the pass, what is drawn of it here is of no use.
            let uniforms = lane.uniforms(model, (plan, settings), chance, (need.end, epoch));
            let (sequence, tokens, keep) = (lane.sequence.as_mut(), &tokens[need.start..need.end], need.keep);
            Some((need, Pass { sequence, tokens, keep, filter, uniforms }))
        });
        // A function of the caller may step other sessions, which may need the passes that this thread waits for.
        let editor = editor.as_deref_mut().filter(|editor| given.is_none() && !editor.calls_back());
        let first = schedule.committed();
        (passes, Beside { editor, settings, chance, route_epoch: *route_epoch, tokens, first })
    }

    /// By model that the combination needs and that has seen nothing yet: a pass over the first tokens that it will
    /// see. It is to ask for memory, not to be run.
    pub fn first_passes(&mut self) -> impl Iterator<Item = (usize, Pass<'_>)> {
        let DecoderState { lanes, settings, tokens, .. } = &mut self.state;
        let (combination, tokens) = (&settings.combination, &*tokens);
        lanes.iter_mut().enumerate().filter_map(move |(model, lane)| {
            let lane = lane.as_mut().filter(|lane| combination.needs(model) && lane.sequence.is_empty())?;
            Some((model, Pass::plain(lane.sequence.as_mut(), &tokens[..tokens.len().min(lane.limits.max_pass)])))
        })
    }
}

impl<C: Chance> DecoderState<C> {
    /// The next pass of a model over the tokens before `end`.
    pub(super) fn need(&self, model: usize, end: usize, committed: usize) -> Need {
        let lane = self.lanes[model].as_ref().expect("a look-up runs no passes");
        let start = lane.sequence.len();
        let keep = committed.min(self.wanted(model, start));
        Need { model, start, end: end.min(start + lane.limits.max_pass), keep }
    }
}
