//! Log-probabilities of the tokens of a round, and of the alternatives to them.

/// Most alternatives of a token.
pub const MOST_ALTERNATIVES: usize = 20;

/// What stands where there is no further alternative.
const NO_TOKEN: i32 = -1;

/// Which log-probabilities are wanted besides those of the tokens themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Alternatives {
    /// How many of the most probable tokens, at most [`MOST_ALTERNATIVES`].
    pub top: usize,
    /// Whether all are those of the plain softmax of the logits: before edits, temperature and filters.
    pub before: bool,
    /// Whether those of each model are wanted too.
    pub of_models: bool,
}

/// The natural logarithms of the probabilities of tokens.
#[derive(Debug, Default)]
pub struct LogProbabilities {
    /// Of each token of the round, under the combined distribution.
    pub of_tokens: Vec<f32>,
    /// The most probable tokens, best first: as many for each token as [`Alternatives::top`] says. Where fewer are
    /// possible, the rest is -1.
    pub top_tokens: Vec<i32>,
    /// Theirs; minus infinity for the rest.
    pub of_top: Vec<f32>,
    /// Of each token, under each participant's distribution. NaN for one that has not scored it.
    pub of_models: Vec<f32>,
}

impl LogProbabilities {
    /// Forget all.
    pub fn clear(&mut self) {
        self.truncate(0, Alternatives::default(), 0);
    }

    /// Add those of another run of tokens.
    pub fn append(&mut self, other: &LogProbabilities) {
        self.of_tokens.extend_from_slice(&other.of_tokens);
        self.top_tokens.extend_from_slice(&other.top_tokens);
        self.of_top.extend_from_slice(&other.of_top);
        self.of_models.extend_from_slice(&other.of_models);
    }

    /// Add a token of which nothing is known.
    pub fn add_unknown(&mut self, alternatives: Alternatives, participants: usize) {
        self.of_tokens.push(f32::NAN);
        self.add_top(alternatives.top, std::iter::empty());
        self.of_models.extend(std::iter::repeat_n(f32::NAN, if alternatives.of_models { participants } else { 0 }));
    }

    /// Make room for so many tokens.
    pub fn reserve(&mut self, tokens: usize, alternatives: Alternatives, participants: usize) {
        self.of_tokens.reserve(tokens);
        self.top_tokens.reserve(tokens * alternatives.top);
        self.of_top.reserve(tokens * alternatives.top);
        self.of_models.reserve(if alternatives.of_models { tokens * participants } else { 0 });
    }

    /// Keep those of the first tokens.
    pub(super) fn truncate(&mut self, tokens: usize, alternatives: Alternatives, participants: usize) {
        self.of_tokens.truncate(tokens);
        self.top_tokens.truncate(tokens * alternatives.top);
        self.of_top.truncate(tokens * alternatives.top);
        self.of_models.truncate(tokens * participants);
    }

    /// Add the only token that was possible at a position. `is_model` tells which participants are models.
    pub(super) fn add_settled(
        &mut self,
        token: usize,
        alternatives: Alternatives,
        is_model: impl Iterator<Item = bool>,
    ) {
        self.of_tokens.push(0.0);
        self.add_top(alternatives.top, std::iter::once((token, 1.0)));
        if alternatives.of_models {
            self.of_models.extend(is_model.map(|is_model| if is_model { 0.0 } else { f32::NAN }));
        }
    }

    /// Add the best of some tokens with their probabilities.
    pub(super) fn add_top(&mut self, top: usize, tokens: impl Iterator<Item = (usize, f32)>) {
        let start = self.top_tokens.len();
        self.top_tokens.resize(start + top, NO_TOKEN);
        self.of_top.resize(start + top, 0.0);
        let (best, of_best) = (&mut self.top_tokens[start..], &mut self.of_top[start..]);
        for (token, probability) in tokens {
            // Among equal ones the lower token comes first.
            if top == 0 || probability <= of_best[top - 1] {
                continue;
            }
            let place = of_best.partition_point(|&other| other >= probability);
            best[place..].rotate_right(1);
            of_best[place..].rotate_right(1);
            (best[place], of_best[place]) = (token as i32, probability);
        }
        of_best.iter_mut().for_each(|probability| *probability = f64::from(*probability).ln() as f32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_alternatives_come_first() {
        let mut found = LogProbabilities::default();
        let tokens = [0.1f32, 0.3, 0.05, 0.3, 0.25].into_iter().enumerate();
        found.add_top(3, tokens.clone());
        assert_eq!(found.top_tokens, [1, 3, 4], "the lower of two equal ones is first");
        found.add_top(3, std::iter::once((7, 1.0)));
        assert_eq!(found.top_tokens[3..], [7, -1, -1]);
        assert_eq!(found.of_top[3..], [0.0, f32::NEG_INFINITY, f32::NEG_INFINITY]);
        assert!((found.of_top[2] - 0.25f32.ln()).abs() < 1e-6);
        found.add_top(0, tokens);
        assert_eq!(found.top_tokens.len(), 6);
    }
}
