//! The numbers by which positions are routed: the sequence's own, or some that all sequences of a pass have in common.
//!
//! A pass hands out one number to all its sequences. Each takes it for the position behind its front, which is the
//! first one of the next round if this round commits one token. With equal weights, the number leads all of them to the
//! same model, so that one pass of it serves them all.
//!
//! Each sequence follows its distribution exactly. The number of a position is
//! - uniform, and independent of all that the sequence has used before: every pass hands out a new one;
//! - unknown to everybody when the position gets it, and the same from then on, also if the round is undone. So nobody
//!   who knows it from another sequence can exchange it;
//! - of that position only.
//!
//! Sequences depend on each other, as far as they share numbers.

/// The common numbers of one sequence.
#[derive(Debug, Clone, Copy, Default)]
pub struct Routes {
    /// Whether numbers of passes are taken.
    shares: bool,
    /// Of the front and of the position behind it, if they have any: the position and its number.
    numbers: [Option<(usize, f64)>; 2],
}

impl Routes {
    /// Whether numbers of passes are taken.
    pub fn shares(&self) -> bool {
        self.shares
    }

    /// Take numbers of passes from now on, or take none and forget those that there are.
    pub fn share(&mut self, shares: bool) {
        *self = Routes { shares, ..Routes::default() };
    }

    /// A pass of a round at this front hands out a number.
    pub fn hand_out(&mut self, front: usize, number: f64) {
        let next = front + 1;
        if self.shares && self.number(next).is_none() {
            // What is not of the front is of a position that is decided.
            let of_front = self.number(front).map(|number| (front, number));
            self.numbers = [of_front, Some((next, number))];
        }
    }

    /// The common number of a position, if it has one.
    pub fn number(&self, position: usize) -> Option<f64> {
        self.numbers.iter().flatten().find(|(of, _)| *of == position).map(|(_, number)| *number)
    }

    /// Forget all numbers: what is decoded may be changed by somebody who knows them.
    pub fn forget(&mut self) {
        self.numbers = [None; 2];
    }
}
