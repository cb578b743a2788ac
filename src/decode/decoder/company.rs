//! What a sequence has in common with others whose passes it shares.

use std::time::Duration;

use super::Decoder;
use crate::decode::chance::Chance;

/// What the sequences of a pass have in common.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Common {
    /// Time of the pass. That of a [`Report`](crate::model::Report) is the sequence's share.
    pub elapsed: Duration,
    /// A number in `[0, 1)`, if the pass has several sequences; see [`Decoder::share_routes`].
    ///
    /// The number must be new, independent of everything, and known to nobody before. Routes are then independent draws
    /// from the weights for each sequence, and alike for sequences of the same pass.
    pub number: Option<f64>,
}

impl<C: Chance> Decoder<C> {
    /// The pass that was reported last may have been run in common with other sequences. If routes are shared, its
    /// number routes the position behind the front: the first one of the next round, if this one commits one token.
    pub fn had_company(&mut self, Common { elapsed, number }: Common) {
        self.ran.last_mut().into_iter().for_each(|ran| ran.elapsed = elapsed);
        // A probe is shared with other sequences than rounds are. Of several passes, others would know the number of
        // the first one before the last one has ended.
        if self.probed.is_none() && self.needs.len() == 1 {
            let front = self.schedule.committed();
            number.into_iter().for_each(|number| self.state.routes.hand_out(front, number));
        }
    }

    /// Route by numbers that passes hand out from now on, or by numbers of its own. A new decoder has its own.
    pub fn share_routes(&mut self, shares: bool) {
        self.state.routes.share(shares);
    }

    /// Whether it routes by numbers that passes hand out.
    pub fn shares_routes(&self) -> bool {
        self.state.routes.shares()
    }
}
