//! Weights that depend on the position: a function of the caller sees the tokens before it, and a summary of each
//! model's row.

use std::fmt;
use std::sync::Arc;

use crate::decode::combine::Combination;
use crate::error::{Error, Result};
use crate::rows::{Row, entropy};

/// What a model thinks of a position, by the plain softmax of its logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ModelSummary {
    /// The probability of the best token; NaN for a participant that the combination does not need.
    pub confidence: f32,
    /// The entropy in nats; NaN likewise.
    pub entropy: f32,
    /// The best token; -1 likewise.
    pub best: i32,
}

impl ModelSummary {
    /// Of a participant whose row is not there.
    pub const NONE: ModelSummary = ModelSummary { confidence: f32::NAN, entropy: f32::NAN, best: -1 };

    /// Of a row of logits.
    pub fn of(row: Row<'_>) -> Result<Self> {
        let (best, softmax) = (row.best()?, row.softmax()?);
        let entropy = entropy(row.scores()?, &softmax);
        Ok(ModelSummary { confidence: softmax.confidence(), entropy, best: best.token as i32 })
    }
}

/// What a [`Weigher`] calls: it gets the tokens before a position, a summary of each participant, and the weights of
/// the session, which it may change. What it writes must depend on its arguments alone.
pub type Weigh = dyn Fn(&[i32], &[ModelSummary], &mut [f32]) -> Result<()> + Send + Sync;

/// A caller's function from a position to weights.
#[derive(Clone)]
pub struct Weigher(Arc<Weigh>);

impl Weigher {
    /// Wrap a function; see [`Weigh`].
    pub fn new(weigh: impl Fn(&[i32], &[ModelSummary], &mut [f32]) -> Result<()> + Send + Sync + 'static) -> Self {
        Weigher(Arc::new(weigh))
    }

    /// Set the weights of a combination for a position. `base` are those of the session.
    pub(super) fn weigh(
        &self,
        base: &[f32],
        tokens: &[i32],
        summaries: &[ModelSummary],
        combination: &mut Combination,
    ) -> Result<()> {
        let set = combination.set_weights(|weights| {
            weights.copy_from_slice(base);
            (self.0)(tokens, summaries, weights)?;
            match (0..base.len()).find(|&model| base[model] == 0.0 && weights[model] != 0.0) {
                Some(model) => Err(Error::Callback(format!(
                    "the weights function gave model {model} the weight {}, but its weight in the session is 0, so it \
                     has not run; give it a weight there",
                    weights[model]
                ))),
                None => Ok(()),
            }
        });
        set.map_err(|error| match error {
            Error::InvalidArgument(why) => Error::Callback(format!("the weights function of the session: {why}")),
            other => other,
        })
    }
}

impl PartialEq for Weigher {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Weigher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Weigher")
    }
}
