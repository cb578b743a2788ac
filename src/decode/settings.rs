//! What is asked of the decoding of a sequence.

use crate::control::Controls;
use crate::decode::alternatives::Alternatives;
use crate::decode::combine::Combination;
use crate::decode::weigh::Weigher;
use crate::rows::Sampler;

/// What is decoded, and when the sequence ends.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The target distribution.
    pub combination: Combination,
    /// Changes the weights of each position, from those of the combination. It takes combined targets.
    pub weigher: Option<Weigher>,
    /// How distributions are made from logits.
    pub sampler: Sampler,
    /// What changes the scores of tokens before the sampler.
    pub controls: Controls,
    /// Tokens that end the sequence.
    pub stop_tokens: Vec<i32>,
    /// Most tokens generated after a prompt; 0 is no limit.
    pub max_tokens: usize,
    /// Whether [`Decoder::log_probabilities`](super::decoder::Decoder::log_probabilities) are wanted. They take
    /// combined targets.
    pub log_probabilities: bool,
    /// What else is wanted with them.
    pub alternatives: Alternatives,
}

impl Settings {
    /// Whether a position where one token is possible is decided without rows. Not if log-probabilities before
    /// constraints are wanted, because these take rows.
    pub fn settles(&self) -> bool {
        !(self.log_probabilities && self.alternatives.before)
    }
}
