//! DRY (Don't Repeat Yourself): a penalty for tokens that make a repetition longer.

use crate::error::{Error, Result};

/// Tokens for which buffers have room beyond those that are there.
const ROOM: usize = 512;

/// The penalty is at most this, so that it stays finite.
const MOST: f32 = 1e30;

/// A penalty for tokens that make a repetition longer. A token that would go on with a run of `n` tokens that came
/// before loses `multiplier · base^(n − allowed)`, if `n` is at least `allowed`.
#[derive(Debug, Clone, PartialEq)]
pub struct Dry {
    multiplier: f32,
    base: f32,
    allowed: usize,
    /// No run goes across these tokens.
    breakers: Vec<i32>,
}

/// Buffers for [`Dry::penalties`].
#[derive(Debug, Default)]
pub struct Matches {
    /// By place from the end: how far the tokens before it are the last ones of the text.
    lengths: Vec<usize>,
    /// Tokens that followed a match, and its length.
    longest: Vec<(i32, usize)>,
}

impl Dry {
    /// [`Error::InvalidArgument`] for a value out of range. `None` if the multiplier is 0.
    pub fn new(multiplier: f32, base: f32, allowed: i32, breakers: &[i32]) -> Result<Option<Self>> {
        if !(multiplier.is_finite() && multiplier >= 0.0) {
            return Err(Error::InvalidArgument(format!(
                "dry_multiplier is {multiplier}; it must be positive, or 0 for off"
            )));
        }
        if multiplier == 0.0 {
            return Ok(None);
        }
        if !(base.is_finite() && base >= 1.0) {
            return Err(Error::InvalidArgument(format!("dry_base is {base}; it must be at least 1, such as 1.75")));
        }
        let allowed = usize::try_from(allowed).ok().filter(|allowed| *allowed > 0).ok_or_else(|| {
            Error::InvalidArgument(format!("dry_allowed_length is {allowed}; it must be at least 1, such as 2"))
        })?;
        Ok(Some(Dry { multiplier, base, allowed, breakers: breakers.to_vec() }))
    }

    /// The multiplier, the base, the allowed length and the breakers.
    pub fn parts(&self) -> (f32, f32, i32, &[i32]) {
        (self.multiplier, self.base, self.allowed as i32, &self.breakers)
    }

    /// Call `penalise` once with each token behind `tokens` that would make a repetition longer, and its penalty.
    pub fn penalties(&self, tokens: &[i32], buffers: &mut Matches, mut penalise: impl FnMut(i32, f32)) {
        let Matches { lengths: matches, longest } = buffers;
        let n = tokens.len();
        // From the end: how far the tokens before a position are the last ones (the Z algorithm on the reversed text).
        let at = |index: usize| tokens[n - 1 - index];
        let limit = (0..n).find(|&index| self.breakers.contains(&at(index))).unwrap_or(n);
        if limit < self.allowed {
            return;
        }
        matches.clear();
        if matches.capacity() < n {
            matches.reserve(n + ROOM);
        }
        matches.resize(n, 0);
        let (mut left, mut right) = (0, 0);
        for index in 1..n {
            let mut length = if index < right { matches[index - left].min(right - index) } else { 0 };
            while index + length < n && at(length) == at(index + length) {
                length += 1;
            }
            matches[index] = length;
            if index + length > right {
                (left, right) = (index, index + length);
            }
        }
        longest.clear();
        longest.reserve(matches.capacity());
        let found = (1..n).map(|index| (at(index - 1), matches[index].min(limit)));
        longest.extend(found.filter(|(_, length)| *length >= self.allowed));
        longest.sort_unstable();
        // The longest match of a token is the last one of its run.
        for run in longest.chunk_by(|(a, _), (b, _)| a == b) {
            let (next, length) = run[run.len() - 1];
            let power = i32::try_from(length - self.allowed).unwrap_or(i32::MAX);
            penalise(next, (self.multiplier * self.base.powi(power)).min(MOST));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn penalties(dry: &Dry, tokens: &[i32]) -> Vec<(i32, f32)> {
        let mut found = Vec::new();
        dry.penalties(tokens, &mut Matches::default(), |token, penalty| found.push((token, penalty)));
        found.sort_by_key(|(token, _)| *token);
        found
    }

    #[test]
    fn the_longest_repetition_of_a_token_counts() {
        let dry = Dry::new(0.5, 2.0, 2, &[9]).unwrap().unwrap();
        assert_eq!(penalties(&dry, &[]), []);
        assert_eq!(penalties(&dry, &[1, 2, 3, 1]), [], "one token is allowed");
        assert_eq!(penalties(&dry, &[1, 2, 3, 1, 2]), [(3, 0.5)]);
        assert_eq!(penalties(&dry, &[0, 1, 2, 3, 0, 1, 2]), [(3, 1.0)]);
        assert_eq!(penalties(&dry, &[0, 1, 2, 3, 5, 1, 2, 4, 0, 1, 2]), [(3, 1.0), (4, 0.5)]);
        assert_eq!(penalties(&dry, &[1, 2, 3, 0, 1, 2, 3, 0, 1, 2]), [(3, 8.0)], "the longer of two");
        assert_eq!(penalties(&dry, &[7, 7, 7, 7]), [(7, 1.0)]);
        assert_eq!(penalties(&dry, &[1, 9, 2, 3, 1, 9, 2]), [], "runs end at a breaker");
        assert_eq!(penalties(&dry, &[9, 1, 2, 3, 9, 1, 2]), [(3, 0.5)]);
        assert_eq!(penalties(&Dry::new(3.0, 10.0, 1, &[]).unwrap().unwrap(), &[1; 99]), [(1, 1e30)]);
    }

    #[test]
    fn values_out_of_range_are_refused() {
        assert_eq!(Dry::new(0.0, -1.0, -1, &[]).unwrap(), None, "it is off");
        for (multiplier, base, allowed) in [(-1.0, 1.75, 2), (f32::NAN, 1.75, 2), (0.8, 0.5, 2), (0.8, 1.75, 0)] {
            assert_eq!(Dry::new(multiplier, base, allowed, &[]).unwrap_err().code(), 1);
        }
    }
}
