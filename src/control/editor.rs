//! The edits of the rows of one sequence, by position.

use crate::control::constraint::Constraint;
use crate::control::dry::Matches;
use crate::control::options::Controls;
use crate::control::repeats;
use crate::control::tally::{ROOM, Tally};
use crate::error::{Error, Result};
use crate::rows::{Drops, Edits};

/// Marks a slot that holds no edits.
const NO_POSITION: usize = usize::MAX;

/// What the edits of a position leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Several tokens, as far as is known.
    Several,
    /// This token alone.
    One(usize),
    /// Nothing: the text is complete.
    Nothing,
}

/// The edits of one position.
#[derive(Debug)]
struct Slot {
    position: usize,
    edits: Edits,
    /// Whether the edits are complete. Until then, `left` is what is known without the mask.
    is_made: bool,
    left: Left,
}

/// Follows one sequence, pending tokens included, and makes the edits of its rows.
pub struct RowEditor {
    controls: Controls,
    vocab_size: usize,
    stop_tokens: Vec<i32>,
    constraint: Option<Box<dyn Constraint>>,
    tally: Tally,
    /// Whether nothing is drawn, so that nothing is dropped by probabilities.
    is_greedy: bool,
    /// For the penalty of repetitions.
    matches: Matches,
    /// Where the text begins: behind the last prompt.
    start: usize,
    /// The tokens of the text that the tally and the constraint have.
    text: Vec<i32>,
    /// Whether the tally and the constraint must begin anew: behind a prompt, and after a failure.
    is_stale: bool,
    /// The edits of position `p` are in slot `p % slots`, if they were made.
    slots: Vec<Slot>,
}

impl RowEditor {
    /// That of an empty sequence. `stop_tokens` are the tokens that end it.
    pub fn new(controls: &Controls, vocab_size: usize, stop_tokens: &[i32], is_greedy: bool) -> Self {
        RowEditor {
            vocab_size,
            stop_tokens: stop_tokens.to_vec(),
            constraint: controls.constraint.as_ref().map(|constraint| constraint.start()),
            tally: Tally::default(),
            is_greedy,
            matches: Matches::default(),
            start: 0,
            text: Vec::new(),
            is_stale: true,
            slots: Vec::new(),
            controls: controls.clone(),
        }
    }

    /// Whether there is a constraint, whose masks may take long.
    pub fn has_constraint(&self) -> bool {
        self.constraint.is_some()
    }

    /// Whether edits call a function of the caller.
    pub fn calls_back(&self) -> bool {
        self.constraint.as_ref().is_some_and(|constraint| constraint.calls_back())
    }

    /// Keep the edits of so many positions in a row.
    pub fn fit(&mut self, slots: usize) {
        if self.slots.len() != slots {
            let slot = || Slot { position: NO_POSITION, edits: Edits::default(), is_made: false, left: Left::Several };
            self.slots = std::iter::repeat_with(slot).take(slots).collect();
        }
    }

    /// Begin a text behind so many tokens.
    pub fn begin(&mut self, start: usize) {
        (self.start, self.is_stale) = (start, true);
        self.slots.iter_mut().for_each(|slot| slot.position = NO_POSITION);
    }

    /// Forget all tokens from index `len` on, which is in the text or behind it.
    pub fn truncate(&mut self, len: usize) {
        self.slots.iter_mut().filter(|slot| slot.position > len).for_each(|slot| slot.position = NO_POSITION);
        self.take_back(len.saturating_sub(self.start));
    }

    /// Take back all tokens of the text but the first `kept`.
    fn take_back(&mut self, kept: usize) {
        let dropped = self.text.len().saturating_sub(kept);
        if dropped == 0 || self.is_stale {
            return;
        }
        if self.controls.counts() {
            self.text[kept..].iter().rev().for_each(|&token| self.tally.pop(token as u32));
        }
        self.text.truncate(kept);
        // One that cannot go back begins anew.
        self.is_stale = self.constraint.as_mut().is_some_and(|constraint| constraint.pop(dropped).is_err());
    }

    /// What is left of a position, as far as that is known without the mask, which takes longer. `tokens` are those of
    /// the sequence, pending ones included; the position is in the text or behind it.
    pub fn peek(&mut self, position: usize, tokens: &[i32]) -> Result<Left> {
        self.begin_edits(position, tokens)?;
        Ok(self.slots[position % self.slots.len()].left)
    }

    /// What the edits of a position leave, as [`RowEditor::peek`]. `excludes` is asked once for each position whether
    /// top choices are excluded there.
    ///
    /// [`Error::Numeric`] if the constraint leaves no token, though the text is not complete.
    pub fn left(&mut self, position: usize, tokens: &[i32], excludes: impl FnOnce() -> bool) -> Result<Left> {
        self.make(position, tokens, excludes)?;
        Ok(self.slots[position % self.slots.len()].left)
    }

    /// The edits of a position, as [`RowEditor::left`].
    pub fn edits(&mut self, position: usize, tokens: &[i32], excludes: impl FnOnce() -> bool) -> Result<&Edits> {
        self.make(position, tokens, excludes)?;
        Ok(&self.slots[position % self.slots.len()].edits)
    }

    /// The edits of a position, if they were made and are still there.
    pub fn known(&self, position: usize) -> Option<&Edits> {
        let slot = &self.slots[position % self.slots.len()];
        (slot.position == position && slot.is_made).then_some(&slot.edits)
    }

    /// Whether the text is known to be complete before a position.
    pub fn is_complete(&mut self, position: usize, tokens: &[i32]) -> Result<bool> {
        // Nothing is proposed behind a complete text.
        let has_more = !self.is_stale && self.start + self.text.len() > position;
        if self.constraint.is_none() || has_more {
            return Ok(false);
        }
        self.advance(position, tokens)?;
        Ok(self.constraint.as_ref().is_some_and(|constraint| constraint.is_complete()))
    }

    /// Let the tally and the constraint have all tokens of the text before a position. After an error, they begin anew
    /// in the next call.
    fn advance(&mut self, position: usize, tokens: &[i32]) -> Result<()> {
        if std::mem::replace(&mut self.is_stale, true) {
            self.text.clear();
            self.text.reserve(ROOM);
            self.tally.begin(&self.controls, &tokens[..self.start]);
            self.constraint.as_mut().map_or(Ok(()), |constraint| constraint.reset())?;
        }
        for &token in &tokens[(self.start + self.text.len()).min(position)..position] {
            if self.controls.counts() {
                self.tally.push(token as u32);
            }
            self.text.push(token);
            self.constraint.as_mut().map_or(Ok(()), |constraint| constraint.push(token))?;
        }
        self.is_stale = false;
        Ok(())
    }

    /// Make the edits of a position, but for the mask.
    fn begin_edits(&mut self, position: usize, tokens: &[i32]) -> Result<()> {
        let index = position % self.slots.len();
        if self.slots[index].position == position {
            return Ok(());
        }
        self.stand_at(position, tokens)?;
        let RowEditor { controls, stop_tokens, constraint, tally, is_greedy, matches, start, is_stale, slots, .. } =
            self;
        let Slot { edits, left, is_made, position: of } = &mut slots[index];
        *of = NO_POSITION;
        edits.changes.clear();
        if edits.changes.capacity() < tally.len() {
            edits.changes.reserve(tally.len() + ROOM);
        }
        tally.write(controls, &mut edits.changes);
        let before = &tokens[..position];
        let mut ban = |token: i32| edits.ban(token as u32);
        if position - *start < controls.min_tokens {
            stop_tokens.iter().for_each(|&token| ban(token));
        }
        repeats::completions(&controls.banned, before, &mut ban);
        repeats::repetitions(controls.no_repeat_ngram, before, &mut ban);
        if let Some(dry) = &controls.dry {
            dry.penalties(before, matches, |token, penalty| edits.subtract(token as u32, penalty));
        }
        let typical_p = if *is_greedy { 0.0 } else { controls.typical_p };
        edits.drops = Drops { typical_p, ..Drops::default() };
        (*left, *is_made) = (Left::Several, false);
        if let Some(constraint) = constraint {
            edits.mask.clear();
            let forced = constraint.forced().inspect_err(|_| *is_stale = true)?;
            *left = match forced.map(|token| token as usize).filter(|&token| edits.allows(token)) {
                Some(token) => Left::One(token),
                None if constraint.is_complete() => Left::Nothing,
                None => Left::Several,
            };
        }
        *of = position;
        Ok(())
    }

    fn make(&mut self, position: usize, tokens: &[i32], excludes: impl FnOnce() -> bool) -> Result<()> {
        self.begin_edits(position, tokens)?;
        let index = position % self.slots.len();
        if self.slots[index].is_made {
            return Ok(());
        }
        self.stand_at(position, tokens)?;
        let RowEditor { controls, vocab_size, constraint, is_greedy, is_stale, slots, .. } = self;
        let Slot { edits, left, is_made, .. } = &mut slots[index];
        if let Some(constraint) = constraint {
            edits.mask.resize(vocab_size.div_ceil(32), 0);
            *left = mask(constraint.as_mut(), edits, *vocab_size).inspect_err(|_| *is_stale = true)?;
        }
        if controls.xtc_probability > 0.0 && !*is_greedy && excludes() {
            edits.drops.exclude_from = controls.xtc_threshold;
        }
        *is_made = true;
        Ok(())
    }

    /// Let the tally and the constraint have the tokens of the text before a position, and no more. Those that were
    /// seen behind it are taken back.
    fn stand_at(&mut self, position: usize, tokens: &[i32]) -> Result<()> {
        self.take_back(position.saturating_sub(self.start));
        self.advance(position, tokens)
    }
}

/// Make the mask of a position. Returns what it leaves.
fn mask(constraint: &mut dyn Constraint, edits: &mut Edits, vocab_size: usize) -> Result<Left> {
    constraint.mask(&mut edits.mask)?;
    if let Some(last) = edits.mask.last_mut().filter(|_| !vocab_size.is_multiple_of(32)) {
        *last &= (1 << (vocab_size % 32)) - 1;
    }
    let mut possible = edits.possible();
    match (possible.next(), possible.next()) {
        (Some(token), None) => Ok(Left::One(token)),
        (Some(_), Some(_)) => Ok(Left::Several),
        _ if constraint.may_end() => Ok(Left::Nothing),
        _ => Err(Error::Numeric(
            "the constraint leaves no token, and the text is not complete; the vocabulary may lack tokens that it \
             needs, or bias and bans exclude them"
                .into(),
        )),
    }
}
