//! Tells the log-probabilities of a token that was decided, from rows.

use super::alternatives::{Alternatives, LogProbabilities};
use super::target::{Front, Target};
use crate::decode::chance::Chance;
use crate::error::{Error, Result};
use crate::rows::{Distribution, Row};

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
                if before { self.log_probability_before(token) } else { self.log_probability(target, token) };
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
        if combination.edits_rows() {
            for (model, weight) in combination.parts() {
                let scores = row(model).scores()?;
                Distribution::softmax(scores)?.add(scores, weight, out);
            }
        } else {
            if before {
                combination.scores(row, &mut self.workspace.scores, |_| ())?;
            }
            let scores = if before { &self.workspace.scores } else { self.workspace.sum().scores()? };
            Distribution::softmax(scores)?.add(scores, 1.0, out);
        }
        Ok(())
    }

    /// `ln` of the probability before edits and the sampler, of the row that was filled last.
    fn log_probability_before(&self, token: usize) -> Result<f32> {
        let logits = |model: usize| self.lanes[model].as_ref().expect("a look-up has no rows").logits(self.position);
        self.settings.combination.log_probability(token, logits, Row::Host(&self.workspace.scores))
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
        self.edits.map_or(Ok(()), |edits| lane.edit(position, edits, &mut self.workspace.candidates))?;
        if self.settings.sampler.is_greedy() {
            let row = lane.row(position);
            return Ok(row.softmax()?.log_probability_of(token, row.score(token)?));
        }
        lane.process(position, &self.settings.sampler, &mut self.workspace.candidates)?;
        Ok(lane.distribution(position).log_probability_of(token, lane.row(position).score(token)?))
    }
}
