//! What is known of the models: how long their passes take, and how often their proposals would be accepted.
//!
//! [`Observer`](super::observer::Observer) learns these numbers, [`Forecast`](crate::plan::forecast::Forecast) uses
//! them.

use ndarray::Array2;

use super::costs::Costs;

/// Observations that a [`Mean`] remembers.
const MEMORY: f64 = 128.0;

/// A running mean that forgets: its weight is capped at 128 observations, so older ones fade.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    value: f64,
    weight: f64,
}

impl Mean {
    /// Add an observation that counts as `weight` observations, usually 1 or a part of 1.
    ///
    /// Values that are not finite and weights that are not positive are ignored.
    pub fn record(&mut self, value: f64, weight: f64) {
        if weight > 0.0 && value.is_finite() {
            self.weight = (self.weight + weight).min(MEMORY);
            self.value += (value - self.value) * weight / self.weight;
        }
    }

    /// The mean, or `default` before the first observation.
    pub fn or(&self, default: f64) -> f64 {
        if self.weight > 0.0 { self.value } else { default }
    }

    /// Observations that the mean rests on.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    /// Make the mean count for at most `weight` observations, so that new ones move it faster.
    fn cap_weight(&mut self, weight: f64) {
        self.weight = self.weight.min(weight);
    }
}

/// Tested proposals of cost 0 that the estimate starts from, so that no single round decides what a proposal costs.
const FREE_PROPOSALS: f64 = 8.0;

/// Share by which the estimated cost of a proposal shrinks after each round that tested none. Such a round says nothing
/// about it, and proposals that were expensive may have become cheap. The estimate shrinks until they are tried again.
const FADING: f64 = 1.0 / 1024.0;

/// Variance of the passes of rounds that the prior of [`Rounds::per_pass`] counts for: little, so that a plan that is
/// measured now and then outweighs it.
const ASSUMED: f64 = 0.03;

/// Passes by which a round must differ from the mean to tell how rounds and passes share the work. Others say nothing
/// of it, and do not let what is known fade.
const OTHER: f64 = 0.05;

/// Seconds of host work outside the models: so much for each round, each pass, and each proposal that is tested.
///
/// Drawing a proposal, and a token of the residual after a rejection, can be more work than the rest of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HostCosts {
    /// Of rounds that tested no proposal.
    rounds: Rounds,
    /// Seconds for each tested proposal: what the other rounds took beyond their passes.
    proposals: Mean,
    /// Seconds for each pass, from all rounds. Used until there was a round that tested no proposal.
    all: Mean,
}

/// Rounds by their passes: a line is fitted to what they took.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Rounds {
    passes: Mean,
    seconds: Mean,
    /// Of the passes, and of passes and seconds, about the means at that time, in rounds that differ by [`OTHER`].
    variance: Mean,
    covariance: Mean,
}

impl Rounds {
    fn record(&mut self, passes: f64, seconds: f64) {
        let (further, longer) = (passes - self.passes.or(passes), seconds - self.seconds.or(seconds));
        self.passes.record(passes, 1.0);
        self.seconds.record(seconds, 1.0);
        if further.abs() > OTHER {
            self.variance.record(further * (passes - self.passes.or(passes)), 1.0);
            self.covariance.record(longer * (passes - self.passes.or(passes)), 1.0);
        }
    }

    /// Seconds for each pass, by a least squares fit with a prior (ridge regression). While all rounds have as many
    /// passes, these have all the work: so plans of fewer passes are tried, which shows what they save.
    fn per_pass(&self) -> f64 {
        let assumed = self.seconds.or(0.0) / self.passes.or(1.0);
        let fitted = (self.covariance.or(0.0) + ASSUMED * assumed) / (self.variance.or(0.0) + ASSUMED);
        fitted.clamp(0.0, assumed)
    }

    /// Seconds for each round.
    fn per_round(&self) -> f64 {
        self.seconds.or(0.0) - self.per_pass() * self.passes.or(0.0)
    }
}

impl HostCosts {
    /// Learn from a round: its passes, the proposals that it tested, and its `seconds` of host work.
    pub fn record(&mut self, passes: u64, tested: u64, seconds: f64) {
        if passes == 0 {
            return;
        }
        let (passes, tested) = (passes as f64, tested as f64);
        self.all.record(seconds / passes, passes);
        if tested == 0.0 {
            self.rounds.record(passes, seconds);
            self.proposals.value *= 1.0 - FADING;
        } else if self.has_baseline() {
            if self.proposals.weight == 0.0 {
                self.proposals.record(0.0, FREE_PROPOSALS);
            }
            let others = self.per_round() + passes * self.per_pass();
            self.proposals.record((seconds - others) / tested, tested);
        }
    }

    /// Whether there was a round that tested no proposal. Until then, all work is attributed to passes.
    pub fn has_baseline(&self) -> bool {
        self.rounds.passes.weight > 0.0
    }

    /// Seconds for each round.
    pub fn per_round(&self) -> f64 {
        if self.has_baseline() { self.rounds.per_round() } else { 0.0 }
    }

    /// Seconds for each pass.
    pub fn per_pass(&self) -> f64 {
        if self.has_baseline() { self.rounds.per_pass() } else { self.all.or(0.0) }
    }

    /// Additional seconds for each proposal that is tested.
    pub fn per_proposal(&self) -> f64 {
        self.proposals.or(0.0).max(0.0)
    }

    fn cap_weight(&mut self, weight: f64) {
        let Rounds { passes, seconds, variance, covariance } = &mut self.rounds;
        let all = [passes, seconds, variance, covariance, &mut self.proposals, &mut self.all];
        all.into_iter().for_each(|mean| mean.cap_weight(weight));
    }
}

/// How often the combined distribution would accept a model's proposals.
///
/// Text has easy and hard stretches: a proposal that follows an accepted one is accepted more often than one that
/// follows a rejected one. Long drafts depend on this, so there are two means of each rate, indexed by the outcome of
/// the position before: `[after a rejection, after an acceptance]`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Acceptance {
    /// Acceptance rate of the proposals that were made.
    pub accepted: [Mean; 2],
    /// How often the model has a proposal: always 1 for a model that scores, less for a look-up.
    pub offered: [Mean; 2],
}

impl Acceptance {
    /// Whether there are enough observations for a plan to rely on.
    pub fn is_reliable(&self) -> bool {
        let weight = |means: &[Mean; 2]| means[0].weight() + means[1].weight();
        weight(&self.accepted) >= 4.0 || weight(&self.offered) >= 8.0
    }

    /// The probability that a proposal is accepted, given whether the position before it was an acceptance.
    pub fn rate(&self, after_acceptance: bool) -> f64 {
        let [rejection, acceptance] = &self.accepted;
        // If only one of the two states was ever seen, its rate stands for both.
        if after_acceptance { acceptance.or(rejection.or(0.0)) } else { rejection.or(acceptance.or(0.0)) }
    }

    /// The probability that the model has a proposal, given whether the position before was an acceptance.
    pub fn offer_rate(&self, after_acceptance: bool) -> f64 {
        let [rejection, acceptance] = &self.offered;
        if after_acceptance { acceptance.or(rejection.or(1.0)) } else { rejection.or(acceptance.or(1.0)) }
    }

    /// The acceptance rate over all positions.
    pub fn mean(&self) -> f64 {
        let sum = |means: &[Mean; 2], f: fn(&Mean) -> f64| f(&means[0]) + f(&means[1]);
        sum(&self.accepted, |mean| mean.value * mean.weight) / sum(&self.accepted, |mean| mean.weight).max(1e-9)
    }

    /// Learn from a position.
    ///
    /// `before` and `accepted` are acceptance probabilities, of the position before and of this one; `before` says how
    /// the observation is shared between the two means. `offered` is whether the model had a proposal.
    pub(super) fn record(&mut self, before: f64, offered: bool, accepted: f64) {
        for (index, weight) in [1.0 - before, before].into_iter().enumerate() {
            self.offered[index].record(f64::from(u8::from(offered)), weight);
            if offered {
                self.accepted[index].record(accepted, weight);
            }
        }
    }
}

/// Levels of confidence that are told apart: equal parts of the range from 0 to 1.
const LEVELS: usize = 8;

/// Observations that a [`Calibration`] remembers.
const CALIBRATION_MEMORY: f64 = 512.0;

/// Observations of the overall rate that are added to each level, so that a level with few of its own stays near it.
const SHRINKAGE: f64 = 3.0;

/// A proposer's acceptance rate as a function of its confidence.
///
/// The confidence at a position is a number between 0 and 1 that grows with the probability of the row's best token. It
/// depends on the row alone and not on the token drawn. So each committed token teaches as much as a proposal does,
/// whichever model proposed it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Calibration {
    /// Observations at each level: `[rejected, accepted]`.
    seen: [[f64; LEVELS]; 2],
}

impl Calibration {
    fn level(confidence: f32) -> usize {
        ((confidence * LEVELS as f32) as usize).min(LEVELS - 1)
    }

    /// Learn from a position: the proposer's confidence, and the probability that its proposal is accepted.
    pub(super) fn record(&mut self, confidence: f32, accepted: f64) {
        let level = Self::level(confidence);
        self.seen[0][level] += 1.0 - accepted;
        self.seen[1][level] += accepted;
        if self.weight() > CALIBRATION_MEMORY {
            self.seen.iter_mut().flatten().for_each(|weight| *weight *= 0.5);
        }
    }

    /// Observations that it rests on.
    pub(super) fn weight(&self) -> f64 {
        self.seen.iter().flatten().sum()
    }

    /// Whether there are enough observations for a plan to rely on.
    pub fn is_reliable(&self) -> bool {
        self.weight() >= 32.0
    }

    /// The probability that a proposal of this confidence is accepted.
    pub fn rate(&self, confidence: f32) -> f64 {
        self.rate_of(Self::level(confidence))
    }

    fn rate_of(&self, level: usize) -> f64 {
        let [rejected, accepted] = &self.seen;
        let mean = accepted.iter().sum::<f64>() / self.weight().max(f64::MIN_POSITIVE);
        (accepted[level] + SHRINKAGE * mean) / (rejected[level] + accepted[level] + SHRINKAGE)
    }

    /// A sampler of confidences; `None` while [`Calibration::is_reliable`] is false.
    pub fn sampler(&self) -> Option<ConfidenceSampler> {
        self.is_reliable().then(|| ConfidenceSampler {
            seen: self.seen,
            sums: self.seen.map(|levels| levels.iter().sum()),
            rates: std::array::from_fn(|level| self.rate_of(level)),
        })
    }
}

/// Draws the confidence of a simulated proposal whose outcome is already known.
///
/// A forecast first draws whether a proposal is accepted, and then how sure its proposer was. Accepted proposals tend
/// to be confident ones, so the confidence comes from the distribution given the outcome (Bayes' theorem).
#[derive(Debug, Clone, Copy)]
pub struct ConfidenceSampler {
    seen: [[f64; LEVELS]; 2],
    /// Observations over all levels: `[rejected, accepted]`.
    sums: [f64; 2],
    /// Acceptance rate at each level.
    rates: [f64; LEVELS],
}

impl ConfidenceSampler {
    /// Draw a confidence level given the outcome, and return the acceptance rate at that level.
    ///
    /// `uniform` is a random number from `[0, 1)`.
    pub fn rate(&self, accepted: bool, uniform: f64) -> f64 {
        let outcome = usize::from(accepted);
        let mut left = uniform * self.sums[outcome];
        let level = self.seen[outcome].iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        self.rates[level.unwrap_or(LEVELS - 1)]
    }
}

/// How long things take. In company they take longer.
#[derive(Debug, Clone, PartialEq)]
pub struct Times {
    costs: Vec<Costs>,
    host: HostCosts,
}

/// All that a planner knows of the models of a session.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimates {
    /// Time of each model's passes.
    pub costs: Vec<Costs>,
    /// How much of concurrent passes still runs one after the other: the share of all passes but the longest that adds
    /// to the longest. 0 if they overlap perfectly, 1 if they do not overlap.
    pub serial_share: f64,
    /// Time of the host work outside the models.
    pub host: HostCosts,
    /// Acceptance of each model's proposals by the combined distribution.
    pub acceptance: Vec<Acceptance>,
    /// Acceptance of each model's proposals by the model's confidence.
    pub calibration: Vec<Calibration>,
    /// `[proposer, target]`: acceptance rate of one model's proposals by another model's own distribution. Routed
    /// targets need it.
    pub pair_acceptance: Array2<Mean>,
}

impl Estimates {
    /// Estimates that know nothing but measured pass times: for each model, pairs of width in positions and seconds.
    pub fn new(measured: &[Vec<(usize, f64)>]) -> Self {
        let models = measured.len();
        Estimates {
            costs: measured.iter().map(|measured| Costs::new(measured)).collect(),
            serial_share: 1.0,
            host: HostCosts::default(),
            acceptance: vec![Acceptance::default(); models],
            calibration: vec![Calibration::default(); models],
            pair_acceptance: Array2::default((models, models)),
        }
    }

    /// How long things take.
    pub fn times(&self) -> Times {
        Times { costs: self.costs.clone(), host: self.host }
    }

    /// Let things take so long, until passes and rounds show how long they take now.
    pub fn set_times(&mut self, Times { costs, host }: Times) {
        (self.costs, self.host) = (costs, host);
        self.costs.iter_mut().for_each(Costs::forget_level);
    }

    /// Seconds of concurrent passes, from the seconds of each pass alone.
    pub fn overlapped_seconds(&self, alone: impl Iterator<Item = f64>) -> f64 {
        let (longest, sum) = alone.fold((0.0f64, 0.0), |(longest, sum), each| (longest.max(each), sum + each));
        longest + self.serial_share * (sum - longest)
    }

    /// Make room for change: every mean counts for at most `observations`, and the next pass sets the level of times.
    pub fn forget(&mut self, observations: f64) {
        self.costs.iter_mut().for_each(Costs::forget_level);
        for acceptance in &mut self.acceptance {
            let means = acceptance.accepted.iter_mut().chain(&mut acceptance.offered);
            means.for_each(|mean| mean.cap_weight(observations));
        }
        self.pair_acceptance.iter_mut().for_each(|mean| mean.cap_weight(observations));
        self.host.cap_weight(observations);
    }

    /// Keep the pass times only. Acceptance and host work depend on what is decoded, so they are forgotten.
    pub fn forget_task(&mut self) {
        self.host = HostCosts::default();
        self.acceptance.fill(Acceptance::default());
        self.calibration.fill(Calibration::default());
        self.pair_acceptance.fill(Mean::default());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_for_rounds_is_separated_from_work_for_passes() {
        let mut host = HostCosts::default();
        (0..50).for_each(|_| host.record(2, 0, 10.0));
        assert_eq!((host.per_pass(), host.per_round()), (5.0, 0.0), "all of it seems to be work for passes");
        // One round in ten has one pass, and takes little less.
        for _ in 0..20 {
            host.record(1, 0, 8.0);
            (0..9).for_each(|_| host.record(2, 0, 10.0));
        }
        assert!((1.5..3.2).contains(&host.per_pass()), "{host:?}");
        assert!((host.per_round() + 2.0 * host.per_pass() - 10.0).abs() < 0.3, "{host:?}");
        (0..1000).for_each(|_| host.record(2, 0, 10.0));
        assert!((1.5..3.2).contains(&host.per_pass()), "it is known for long: {host:?}");
        // Passes take no less than nothing, and no more than all.
        (0..99).for_each(|_| host.record(1, 0, 30.0));
        assert!(host.per_pass() >= 0.0 && host.per_round() <= 30.0, "{host:?}");
        (0..99).for_each(|round| host.record(1 + round % 2 * 2, 0, if round % 2 == 0 { 1.0 } else { 9.0 }));
        assert!(host.per_round() >= 0.0, "{host:?}");
    }

    #[test]
    fn work_for_proposals_is_separated_from_work_for_passes() {
        let mut host = HostCosts::default();
        host.record(2, 3, 8.0);
        assert_eq!(
            (host.per_pass(), host.per_proposal(), host.has_baseline()),
            (4.0, 0.0, false),
            "all of it seems to be work for passes"
        );
        host.record(0, 0, 9.0);
        host.record(2, 0, 2.0);
        assert_eq!((host.per_pass(), host.has_baseline()), (1.0, true));
        host.record(2, 3, 8.0);
        assert!(host.per_proposal() < 1.0, "one round decides nothing: {host:?}");
        (0..200).for_each(|_| host.record(2, 3, 8.0));
        host.record(2, 0, 2.0);
        assert!(host.per_pass() == 1.0 && (host.per_proposal() - 2.0).abs() < 0.02, "{host:?}");
        // While none is tested, the cost fades, so that proposals are tried again.
        (0..1500).for_each(|_| host.record(2, 0, 2.0));
        assert!(host.per_pass() == 1.0 && host.per_proposal() < 0.5, "{host:?}");
        // Another task starts from nothing.
        let mut estimates = Estimates { host, ..Estimates::new(&[vec![]]) };
        estimates.forget_task();
        assert_eq!(estimates.host, HostCosts::default());
    }
}
