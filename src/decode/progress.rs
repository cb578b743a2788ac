//! How far a sequence has come.

use crate::decode::schedule::Draft;

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// A stop token was committed; it is the last token.
    StopToken,
    /// As many tokens were generated since the last prompt as were asked for.
    MaxTokens,
    /// The context has no room for another token.
    ContextFull,
    /// The constraint is complete: no token may follow.
    Complete,
}

/// How a token came to be committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Origin {
    /// Which way.
    pub kind: OriginKind,
    /// The participant that proposed the token, or the one that was replaced. Of a token that was drawn from the
    /// distribution of one model, that model. Otherwise -1.
    pub participant: i32,
}

/// The ways in which tokens are committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(i32)]
pub enum OriginKind {
    /// Drawn from the target where nothing was proposed, as a bonus token is.
    Drawn = 0,
    /// Proposed, and accepted.
    Accepted = 1,
    /// Drawn in place of a proposal that was rejected.
    Replaced = 2,
    /// The only token that was possible.
    Forced = 3,
}

impl Origin {
    /// Of the only token that was possible.
    pub const FORCED: Origin = Origin { kind: OriginKind::Forced, participant: -1 };

    /// Of a token that was drawn: from one model's distribution, or from a combination.
    pub fn drawn(model: Option<usize>) -> Self {
        Origin { kind: OriginKind::Drawn, participant: model.map_or(-1, |model| model as i32) }
    }

    /// Of a token where a draft was tested.
    pub fn tested(draft: Draft, accepted: bool) -> Self {
        let kind = if accepted { OriginKind::Accepted } else { OriginKind::Replaced };
        Origin { kind, participant: draft.proposer as i32 }
    }
}

/// Counts of what was done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Tokens committed, prompts excluded.
    pub tokens: u64,
    /// Proposals made.
    pub proposed: u64,
    /// Proposals that were accepted or rejected; the others were dropped behind a rejection or an end.
    pub tested: u64,
    /// Proposals accepted.
    pub accepted: u64,
    /// Proposals that were rejected or dropped. Those that are pending are not among them, so this never shrinks.
    pub wasted: u64,
    /// Passes of all models, those over nothing but prompt excluded. Look-ups make none.
    pub forwards: u64,
    /// Positions scored by all models, prompt excluded.
    pub positions: u64,
    /// Greedy choices whose two best scores were nearer than [`crate::rows::NEAR_TIE`].
    pub near_ties: u64,
}

impl Counters {
    /// Count all proposals that are not accepted as wasted: nothing is pending any more.
    pub fn waste(&mut self) {
        self.wasted = self.proposed - self.accepted;
    }
}

/// How often drafts were accepted, by proposer and by place in the draft.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tested {
    /// By participant and by place: tested, and accepted.
    counts: Vec<Vec<[u64; 2]>>,
}

impl Tested {
    /// Make room for so many participants, and so many places.
    pub fn fit(&mut self, participants: usize, places: usize) {
        self.counts.resize(participants, Vec::new());
        self.counts.iter_mut().filter(|counts| counts.len() < places).for_each(|counts| counts.resize(places, [0; 2]));
    }

    /// Count a draft that was tested.
    pub fn count(&mut self, draft: Draft, accepted: bool) {
        if let Some([tested, of_accepted]) = self.counts[draft.proposer].get_mut(draft.depth) {
            *tested += 1;
            *of_accepted += u64::from(accepted);
        }
    }

    /// Those of a participant, up to the last place where any was tested.
    pub fn of(&self, participant: usize) -> &[[u64; 2]] {
        let counts = &self.counts[participant];
        let end = counts.iter().rposition(|[tested, _]| *tested > 0).map_or(0, |last| last + 1);
        &counts[..end]
    }
}
