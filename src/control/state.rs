//! The edits of the rows of one sequence, by position.

use crate::control::constraint::Constraint;
use crate::control::options::Controls;
use crate::control::repeats;
use crate::control::tally::Tally;
use crate::error::{Error, Result};
use crate::rows::Edits;

/// Marks a slot that holds no edits.
const NO_POSITION: usize = usize::MAX;

/// What the edits of a position leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Several tokens, or nobody has counted.
    Some,
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
    left: Left,
}

/// Follows one sequence, pending tokens included, and makes the edits of its rows.
pub struct Control {
    controls: Controls,
    vocab_size: usize,
    stop_tokens: Vec<i32>,
    constraint: Option<Box<dyn Constraint>>,
    tally: Tally,
    /// Where the text begins: behind the last prompt.
    start: usize,
    /// The tokens of the text that the tally and the constraint have.
    text: Vec<i32>,
    /// Whether the tally and the constraint must begin anew: behind a prompt, and after a failure.
    is_stale: bool,
    /// The edits of position `p` are in slot `p % slots`, if they were made.
    slots: Vec<Slot>,
}

impl Control {
    /// That of an empty sequence. `stop_tokens` are the tokens that end it.
    pub fn new(controls: &Controls, vocab_size: usize, stop_tokens: &[i32]) -> Self {
        Control {
            vocab_size,
            stop_tokens: stop_tokens.to_vec(),
            constraint: controls.constraint.as_ref().map(|constraint| constraint.start()),
            tally: Tally::default(),
            start: 0,
            text: Vec::new(),
            is_stale: true,
            slots: Vec::new(),
            controls: controls.clone(),
        }
    }

    /// Keep the edits of so many positions in a row.
    pub fn fit(&mut self, slots: usize) {
        if self.slots.len() != slots {
            let slot = || Slot { position: NO_POSITION, edits: Edits::default(), left: Left::Some };
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
        let kept = len.saturating_sub(self.start);
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

    /// What the edits of a position leave. `tokens` are those of the sequence, pending ones included; the position is
    /// in the text or behind it.
    ///
    /// [`Error::Numeric`] if the constraint leaves no token, though the text is not complete.
    pub fn left(&mut self, position: usize, tokens: &[i32]) -> Result<Left> {
        self.make(position, tokens)?;
        Ok(self.slots[position % self.slots.len()].left)
    }

    /// The edits of a position, as [`Control::left`].
    pub fn edits(&mut self, position: usize, tokens: &[i32]) -> Result<&Edits> {
        self.make(position, tokens)?;
        Ok(&self.slots[position % self.slots.len()].edits)
    }

    /// The edits of a position, if they were made and are still there.
    pub fn known(&self, position: usize) -> Option<&Edits> {
        let slot = &self.slots[position % self.slots.len()];
        (slot.position == position).then_some(&slot.edits)
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

    fn make(&mut self, position: usize, tokens: &[i32]) -> Result<()> {
        let index = position % self.slots.len();
        if self.slots[index].position == position {
            return Ok(());
        }
        // What was proposed behind the position, and is still pending, was seen before.
        self.truncate(position);
        self.advance(position, tokens)?;
        let Control { controls, vocab_size, stop_tokens, constraint, tally, start, is_stale, slots, .. } = self;
        let Slot { edits, left, position: of } = &mut slots[index];
        *of = NO_POSITION;
        edits.changes.clear();
        tally.write(controls, &mut edits.changes);
        let before = &tokens[..position];
        let mut ban = |token: i32| edits.ban(token as u32);
        if position - *start < controls.min_tokens {
            stop_tokens.iter().for_each(|&token| ban(token));
        }
        repeats::completions(&controls.banned, before, &mut ban);
        repeats::repetitions(controls.no_repeat_ngram, before, &mut ban);
        *left = Left::Some;
        if let Some(constraint) = constraint {
            edits.mask.resize(vocab_size.div_ceil(32), 0);
            let made = mask(constraint.as_mut(), edits, *vocab_size);
            *left = made.inspect_err(|_| *is_stale = true)?;
        }
        *of = position;
        Ok(())
    }
}

/// Make the mask of a position. Returns what it leaves.
fn mask(constraint: &mut dyn Constraint, edits: &mut Edits, vocab_size: usize) -> Result<Left> {
    constraint.mask(&mut edits.mask)?;
    if let Some(last) = edits.mask.last_mut().filter(|_| vocab_size % 32 != 0) {
        *last &= (1 << (vocab_size % 32)) - 1;
    }
    let mut possible = edits.possible();
    match (possible.next(), possible.next()) {
        (Some(token), None) => Ok(Left::One(token)),
        (Some(_), Some(_)) => Ok(Left::Some),
        _ if constraint.may_end() => Ok(Left::Nothing),
        _ => Err(Error::Numeric(
            "the constraint leaves no token, and the text is not complete; the vocabulary may lack tokens that it needs, \
             or bias and bans exclude them"
                .into(),
        )),
    }
}
