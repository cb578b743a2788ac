//! How far a sequence has come.

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
