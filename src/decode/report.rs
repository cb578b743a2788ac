//! Log-probabilities of the tokens of a round, and of the alternatives to them.

use super::target::{Front, Target};
use crate::decode::chance::Chance;
use crate::decode::combine::Combination;
use crate::error::{Error, Result};
use crate::rows::Distribution;

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
    fn add_top(&mut self, top: usize, tokens: impl Iterator<Item = (usize, f32)>) {
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

impl<C: Chance> Front<'_, C> {
    /// Add the log-probabilities of the token that was decided, as far as they are wanted. `out` is as it was on an
    /// error.
    pub fn report(&mut self, target: Target, token: usize, out: &mut LogProbabilities) -> Result<()> {
        if !self.settings.log_probabilities {
            return Ok(());
        }
        let (alternatives, count) = (self.settings.alternatives, out.of_tokens.len());
        let reported = self.try_report(target, token, out);
        if reported.is_err() {
            out.truncate(count, alternatives, self.lanes.len());
        }
        reported
    }

    fn try_report(&mut self, target: Target, token: usize, out: &mut LogProbabilities) -> Result<()> {
        let Alternatives { top, before, of_models } = self.settings.alternatives;
        if top == 0 && !before {
            out.of_tokens.push(self.log_probability(target, token)?);
        } else {
            let mut row = std::mem::take(&mut self.workspace.residual);
            let filled = self.fill_report(target, &mut row);
            let of_token =
                if before { Ok(f64::from(row[token]).ln() as f32) } else { self.log_probability(target, token) };
            if filled.is_ok() {
                let possible = row.iter().copied().enumerate().filter(|(_, probability)| *probability > 0.0);
                out.add_top(top, possible);
            }
            self.workspace.residual = row;
            filled?;
            out.of_tokens.push(of_token?);
        }
        if of_models {
            for participant in 0..self.lanes.len() {
                out.of_models.push(match self.of_model(participant, token) {
                    // To this model alone, no token is possible.
                    Err(Error::Numeric(_)) => f32::NEG_INFINITY,
                    of_model => of_model?,
                });
            }
        }
        Ok(())
    }

    /// Write the probabilities of all tokens.
    fn fill_report(&mut self, target: Target, out: &mut [f32]) -> Result<()> {
        if !self.settings.alternatives.before && !matches!(target, Target::Token(_)) {
            return self.fill_target(target, out);
        }
        let before = self.settings.alternatives.before;
        let (lanes, position, combination) = (&*self.lanes, self.position, &self.settings.combination);
        let row = |model: usize| {
            let lane = lanes[model].as_ref().expect("a look-up has no rows");
            if before { lane.logits(position) } else { lane.row(position) }
        };
        out.fill(0.0);
        if let Some(model) = combination.single() {
            let scores = row(model).scores()?;
            Distribution::softmax(scores)?.add(scores, 1.0, out);
        } else if matches!(combination, Combination::Mixture { .. }) {
            for (model, weight) in combination.parts() {
                let scores = row(model).scores()?;
                Distribution::softmax(scores)?.add(scores, weight, out);
            }
        } else if before {
            combination.scores(row, &mut self.workspace.scores, |_| ())?;
            let scores = &self.workspace.scores;
            Distribution::softmax(scores)?.add(scores, 1.0, out);
        } else {
            let scores = self.workspace.sum().scores()?;
            Distribution::softmax(scores)?.add(scores, 1.0, out);
        }
        Ok(())
    }

    /// The log-probability of a token under a participant's distribution.
    fn of_model(&mut self, participant: usize, token: usize) -> Result<f32> {
        let position = self.position;
        let Some(lane) = self.lanes[participant].as_mut().filter(|lane| lane.sequence.len() >= position) else {
            return Ok(f32::NAN);
        };
        if self.settings.alternatives.before {
            let row = lane.logits(position);
            return Ok(row.softmax()?.log_probability_of(token, row.score(token)?));
        }
        self.edits.map_or(Ok(()), |edits| lane.edit(position, edits))?;
        if self.settings.sampler.is_greedy() {
            let row = lane.row(position);
            return Ok(row.softmax()?.log_probability_of(token, row.score(token)?));
        }
        lane.process(position, &self.settings.sampler, &mut self.workspace.candidates)?;
        Ok(lane.distribution(position).log_probability_of(token, lane.row(position).score(token)?))
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
