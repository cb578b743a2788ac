//! The options by which a request controls its tokens.

use crate::control::constraint::Constraints;
use crate::control::dry::Dry;
use crate::error::{Error, Result};

/// The largest repetition penalty, so that no score becomes infinite.
const MOST_DIVIDED: f32 = 1e6;

/// The largest other penalties, for the same reason.
const MOST_SUBTRACTED: f32 = 1e6;

/// The largest bias, for the same reason.
const MOST_ADDED: f32 = 1e30;

/// What a request asks of its tokens. The default changes nothing.
#[derive(Debug, Clone, PartialEq)]
pub struct Controls {
    /// Added to the scores of tokens: ascending tokens, each once.
    pub bias: Vec<(u32, f32)>,
    /// Scores of tokens of the prompt and the text are divided by this if they are positive, and multiplied otherwise.
    pub repetition_penalty: f32,
    /// Subtracted from the scores of tokens of the text.
    pub presence_penalty: f32,
    /// Subtracted for each time that a token is in the text.
    pub frequency_penalty: f32,
    /// No stop token comes before so many tokens of the text.
    pub min_tokens: usize,
    /// Runs of tokens that must not come.
    pub banned: Vec<Vec<i32>>,
    /// No run of so many tokens comes twice in prompt and text; 0 is off.
    pub no_repeat_ngram: usize,
    /// A penalty for repetitions.
    pub dry: Option<Dry>,
    /// See [`Drops::typical_p`](crate::rows::Drops::typical_p).
    pub typical_p: f32,
    /// How probable it is that the top choices of a position are excluded, and from which probability on.
    pub xtc_probability: f32,
    /// See [`Drops::exclude_from`](crate::rows::Drops::exclude_from).
    pub xtc_threshold: f32,
    /// Which tokens may come next, as a grammar or a function says.
    pub constraint: Option<Constraints>,
}

impl Default for Controls {
    fn default() -> Self {
        Controls {
            bias: Vec::new(),
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            min_tokens: 0,
            banned: Vec::new(),
            no_repeat_ngram: 0,
            dry: None,
            typical_p: 0.0,
            xtc_probability: 0.0,
            xtc_threshold: 0.0,
            constraint: None,
        }
    }
}

impl Controls {
    /// Set the penalties. A repetition penalty of 0 or 1 is off. [`Error::InvalidArgument`] for a value out of range.
    pub fn with_penalties(self, repetition: f32, presence: f32, frequency: f32) -> Result<Self> {
        if repetition != 0.0 && !(1.0 / MOST_DIVIDED..=MOST_DIVIDED).contains(&repetition) {
            return Err(Error::InvalidArgument(format!(
                "repetition_penalty is {repetition}; it must be between {} and {MOST_DIVIDED}, or 0 for off",
                1.0 / MOST_DIVIDED
            )));
        }
        for (name, value) in [("presence_penalty", presence), ("frequency_penalty", frequency)] {
            if !(-MOST_SUBTRACTED..=MOST_SUBTRACTED).contains(&value) {
                return Err(Error::InvalidArgument(format!(
                    "{name} is {value}; it must be between {} and {MOST_SUBTRACTED}, and 0 is off",
                    -MOST_SUBTRACTED
                )));
            }
        }
        let repetition_penalty = if repetition == 0.0 { 1.0 } else { repetition };
        Ok(Controls { repetition_penalty, presence_penalty: presence, frequency_penalty: frequency, ..self })
    }

    /// Set the bias of tokens. [`Error::InvalidArgument`] for a token that comes twice, and for a value out of range.
    pub fn with_bias(self, tokens: &[i32], values: &[f32]) -> Result<Self> {
        let mut bias: Vec<(u32, f32)> = tokens.iter().map(|&token| token as u32).zip(values.iter().copied()).collect();
        let is_wrong = |value: f32| value.is_nan() || (value.abs() > MOST_ADDED && value != f32::NEG_INFINITY);
        if let Some((index, value)) = values.iter().enumerate().find(|(_, value)| is_wrong(**value)) {
            return Err(Error::InvalidArgument(format!(
                "bias_values[{index}] is {value}; it must be between -{MOST_ADDED:e} and {MOST_ADDED:e}, or minus \
                 infinity to ban the token"
            )));
        }
        bias.sort_unstable_by_key(|(token, _)| *token);
        if let Some(pair) = bias.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(Error::InvalidArgument(format!(
                "bias_tokens holds {} twice; give each token one value",
                pair[0].0
            )));
        }
        bias.retain(|(_, value)| *value != 0.0);
        Ok(Controls { bias, ..self })
    }

    /// Set the runs of tokens that must not come. [`Error::InvalidArgument`] for an empty one.
    pub fn with_banned(self, banned: Vec<Vec<i32>>) -> Result<Self> {
        match banned.iter().position(Vec::is_empty) {
            None => Ok(Controls { banned, ..self }),
            Some(index) => Err(Error::InvalidArgument(format!(
                "banned_lengths[{index}] is 0; a banned word has at least one token"
            ))),
        }
    }

    /// Set what is dropped by probabilities. [`Error::InvalidArgument`] for a value out of range.
    pub fn with_drops(self, typical_p: f32, xtc_probability: f32, xtc_threshold: f32) -> Result<Self> {
        for (name, value) in
            [("typical_p", typical_p), ("xtc_probability", xtc_probability), ("xtc_threshold", xtc_threshold)]
        {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::InvalidArgument(format!("{name} is {value}; it must be between 0 and 1")));
            }
        }
        if (xtc_probability > 0.0) != (xtc_threshold > 0.0) {
            return Err(Error::InvalidArgument(format!(
                "xtc_probability is {xtc_probability}, and xtc_threshold is {xtc_threshold}; set both, or leave both 0"
            )));
        }
        let typical_p = if typical_p == 1.0 { 0.0 } else { typical_p };
        Ok(Controls { typical_p, xtc_probability, xtc_threshold, ..self })
    }

    /// Whether it changes nothing.
    pub fn is_plain(&self) -> bool {
        *self == Controls::default()
    }

    /// Whether scores depend on the tokens of the text.
    pub(super) fn counts(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }
}
