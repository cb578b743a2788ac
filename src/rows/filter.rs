//! How a row of scores is filtered before a token is drawn from it.

/// How a row of scores becomes a distribution: temperature, then top-k, top-p and min-p.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Filter {
    /// One over the temperature.
    pub rate: f32,
    /// Most tokens that are kept; 0 keeps all.
    pub top_k: usize,
    /// The share of the probability that the kept tokens reach; 1 keeps all.
    pub top_p: f32,
    /// How far below the largest score a token is still kept, as a negative number; minus infinity keeps all.
    pub distance: f32,
}

impl Filter {
    /// Only a temperature.
    pub fn plain(rate: f32) -> Self {
        Filter { rate, top_k: 0, top_p: 1.0, distance: f32::NEG_INFINITY }
    }

    /// Whether it keeps all tokens.
    pub fn is_plain(&self) -> bool {
        *self == Filter::plain(self.rate)
    }
}
