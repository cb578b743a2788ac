//! The number by which the first position of a round is routed: one of the sequence's own, or one that all sequences of
//! a pass have in common.
//!
//! With equal weights a common number leads all of them to the same model, so that one pass of it serves them all. Each
//! sequence follows its distribution exactly, because a number is
//! - uniform, and independent of all that the sequence has used before: every pass hands out a new one;
//! - unknown to everybody when the sequence gets it. So neither the sequence nor its plan was chosen by it;
//! - used for one position of the sequence only.
//!
//! Sequences depend on each other, as far as they share numbers.

/// The numbers of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct Routes {
    shares: bool,
    /// What the last pass has handed out, for the first position of the next round.
    next: Option<f64>,
    /// The position that the last round has begun with, and its number; `None` for one of the sequence's own.
    bound: Option<(usize, Option<f64>)>,
}

impl Routes {
    /// No number yet. `shares` says whether numbers of passes are taken.
    pub fn new(shares: bool) -> Self {
        Routes { shares, next: None, bound: None }
    }

    /// Whether numbers of passes are taken.
    pub fn shares(&self) -> bool {
        self.shares
    }

    /// Take numbers of passes from now on, or take none and forget those that it has.
    pub fn share(&mut self, shares: bool) {
        *self = Routes::new(shares);
    }

    /// A pass was run that hands out a number, or none. It replaces that of an earlier pass.
    pub fn hand_out(&mut self, number: Option<f64>) {
        if self.shares {
            self.next = number;
        }
    }

    /// A round begins at a position. A round that was undone may have begun there before, and perhaps has looked at the
    /// number, so that is kept.
    pub fn begin(&mut self, position: usize) {
        if self.bound.is_none_or(|(bound, _)| bound != position) {
            self.bound = Some((position, self.next.take()));
        }
    }

    /// The common number of a position, if it has one.
    pub fn number(&self, position: usize) -> Option<f64> {
        self.bound.filter(|(bound, _)| *bound == position).and_then(|(_, number)| number)
    }

    /// A position behind the first one of a round was looked at, and is still open. The next round begins with it, and
    /// must not route it by another number.
    pub fn keep_own(&mut self) {
        self.next = None;
    }

    /// Forget all numbers: what is decoded may be changed by somebody who knows them.
    pub fn forget(&mut self) {
        (self.next, self.bound) = (None, None);
    }
}
