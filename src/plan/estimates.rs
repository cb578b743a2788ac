//! What was learned of the models: the time of their passes, and how often their proposals would be accepted.
//!
//! Acceptance is learned without trying. A committed token `y` is a draw from the combined distribution `r`, so
//! `min(1, p(y) / r(y))` has the expectation `Σ min(p, r)`, which is the acceptance rate of proposals from `p`
//! (`1 − ½‖p − r‖₁`, Theorem 3.1). All it takes is the probability that a model gives to committed tokens, whether it
//! proposed them or not, or anything at all.

use ndarray::Array2;

use super::costs::Costs;

/// Committed positions whose probabilities are kept until all models have scored them.
pub const WINDOW: usize = 64;

/// Observations that a mean looks back on.
const MEMORY: f64 = 128.0;

/// Seconds that it takes to process a column of a row, roughly.
const COLUMN: f64 = 1e-9;

/// Of the passes' time, the share that rows may take that are processed for the observer alone.
const LOOKING: f64 = 0.005;

/// Positions side by side at which such rows are processed, or not. There is always a stretch in the window at which they are.
const STRETCH: usize = 16;

/// Passes after which a model that was not run is taken to have become slower, or faster, together with those that were.
const IDLE: u32 = 4;

/// A mean that forgets.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Mean {
    value: f64,
    weight: f64,
}

impl Mean {
    /// An observation that counts as one, or as part of one.
    pub fn record(&mut self, value: f64, weight: f64) {
        if weight > 0.0 && value.is_finite() {
            self.weight = (self.weight + weight).min(MEMORY);
            self.value += (value - self.value) * weight / self.weight;
        }
    }

    /// The mean, or `other` while there is none.
    pub fn or(&self, other: f64) -> f64 {
        if self.weight > 0.0 { self.value } else { other }
    }

    /// Observations behind it.
    pub fn weight(&self) -> f64 {
        self.weight
    }

    fn forget(&mut self, weight: f64) {
        self.weight = self.weight.min(weight);
    }
}

/// Proposals that are thought to have taken nothing before one has been tested, so that no single round decides what they take.
const DOUBT: f64 = 8.0;

/// What proposals are thought to take is less by this share after each round that tested none: no such round tells of them, and what was
/// expensive may not be so any more.
const FADING: f64 = 1.0 / 1024.0;

/// Seconds beside the models: so much for each pass, and so much more for each proposal that is tested. Drawing it, and what is left
/// where it is rejected, can be more work than all of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Beside {
    /// Of rounds that tested none, for each pass.
    passes: Mean,
    /// Of all others beyond that, for each proposal.
    proposals: Mean,
    /// Of any round, for each pass: what is known until there was one that tested none.
    all: Mean,
}

impl Beside {
    /// A round made so many passes, tested so many proposals, and took so long beside the models.
    pub fn record(&mut self, passes: u64, tested: u64, seconds: f64) {
        if passes == 0 {
            return;
        }
        let (passes, tested) = (passes as f64, tested as f64);
        self.all.record(seconds / passes, passes);
        if tested == 0.0 {
            self.passes.record(seconds / passes, passes);
            self.proposals.value *= 1.0 - FADING;
        } else if self.is_known() {
            if self.proposals.weight == 0.0 {
                self.proposals.record(0.0, DOUBT);
            }
            self.proposals.record((seconds - passes * self.pass()) / tested, tested);
        }
    }

    /// Whether that of passes was told from that of proposals.
    pub fn is_known(&self) -> bool {
        self.passes.weight > 0.0
    }

    /// Seconds for each pass.
    pub fn pass(&self) -> f64 {
        self.passes.or(self.all.or(0.0))
    }

    /// Seconds more for each proposal that is tested.
    pub fn proposal(&self) -> f64 {
        self.proposals.or(0.0).max(0.0)
    }

    fn forget(&mut self, weight: f64) {
        [&mut self.passes, &mut self.proposals, &mut self.all].into_iter().for_each(|mean| mean.forget(weight));
    }
}

/// How often a model's proposals would be accepted by the combined distribution.
///
/// Text has easy and hard stretches, so a proposal behind an accepted one is accepted more often than one behind a
/// rejected one; long drafts pay by that. The means are kept apart: `[behind a rejection, behind an acceptance]`.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Acceptance {
    /// Of the proposals made.
    pub accepted: [Mean; 2],
    /// How often there is a proposal at all: less than 1 for look-ups.
    pub offered: [Mean; 2],
}

impl Acceptance {
    /// Whether so much was seen that a plan may build on it.
    pub fn is_known(&self) -> bool {
        let weight = |means: &[Mean; 2]| means[0].weight() + means[1].weight();
        weight(&self.accepted) >= 4.0 || weight(&self.offered) >= 8.0
    }

    /// The rate with which a proposal is accepted, behind a rejection (`false`) or an acceptance.
    pub fn rate(&self, behind: bool) -> f64 {
        let [rejection, acceptance] = &self.accepted;
        // A model that was never rejected, or always, tells of the other state by this one.
        if behind { acceptance.or(rejection.or(0.0)) } else { rejection.or(acceptance.or(0.0)) }
    }

    /// The rate with which there is a proposal.
    pub fn offers(&self, behind: bool) -> f64 {
        let [rejection, acceptance] = &self.offered;
        if behind { acceptance.or(rejection.or(1.0)) } else { rejection.or(acceptance.or(1.0)) }
    }

    /// Over all positions.
    pub fn mean(&self) -> f64 {
        let sum = |means: &[Mean; 2], f: fn(&Mean) -> f64| f(&means[0]) + f(&means[1]);
        sum(&self.accepted, |mean| mean.value * mean.weight) / sum(&self.accepted, |mean| mean.weight).max(1e-9)
    }

    fn record(&mut self, behind: f64, offered: bool, accepted: f64) {
        for (index, weight) in [1.0 - behind, behind].into_iter().enumerate() {
            self.offered[index].record(f64::from(u8::from(offered)), weight);
            if offered {
                self.accepted[index].record(accepted, weight);
            }
        }
    }
}

/// Levels of confidence that are told apart.
const LEVELS: usize = 8;

/// Observations that [`Doubt`] looks back on.
const DOUBT_MEMORY: f64 = 512.0;

/// Observations that the rate over all levels counts for at each level.
const SHRINKAGE: f64 = 3.0;

/// What a proposer's confidence says of its proposals: how often they are accepted where it is so sure of itself.
///
/// The confidence at a position is a number of its row alone, between 0 and 1, which grows with the share of the best
/// token. It does not look at the token, so a committed token, whoever proposed it, tells as much as a proposal.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Doubt {
    /// Weight of what was seen at each level, `[rejected, accepted]`.
    seen: [[f64; LEVELS]; 2],
}

impl Doubt {
    fn level(confidence: f32) -> usize {
        ((confidence * LEVELS as f32) as usize).min(LEVELS - 1)
    }

    fn record(&mut self, confidence: f32, accepted: f64) {
        let level = Self::level(confidence);
        self.seen[0][level] += 1.0 - accepted;
        self.seen[1][level] += accepted;
        if self.weight() > DOUBT_MEMORY {
            self.seen.iter_mut().flatten().for_each(|weight| *weight *= 0.5);
        }
    }

    fn weight(&self) -> f64 {
        self.seen.iter().flatten().sum()
    }

    /// Whether so much was seen that a plan may build on it.
    pub fn is_known(&self) -> bool {
        self.weight() >= 32.0
    }

    /// The rate with which a proposal of this confidence is accepted.
    pub fn rate(&self, confidence: f32) -> f64 {
        self.rate_of(Self::level(confidence))
    }

    fn rate_of(&self, level: usize) -> f64 {
        let [rejected, accepted] = &self.seen;
        let mean = accepted.iter().sum::<f64>() / self.weight().max(f64::MIN_POSITIVE);
        (accepted[level] + SHRINKAGE * mean) / (rejected[level] + accepted[level] + SHRINKAGE)
    }

    /// What it says of proposals whose outcome is known; `None` while [`Doubt::is_known`] does not hold.
    pub fn outcomes(&self) -> Option<Outcomes> {
        self.is_known().then(|| Outcomes {
            seen: self.seen,
            sums: self.seen.map(|levels| levels.iter().sum()),
            rates: std::array::from_fn(|level| self.rate_of(level)),
        })
    }
}

/// See [`Doubt::outcomes`].
#[derive(Debug, Clone, Copy)]
pub struct Outcomes {
    seen: [[f64; LEVELS]; 2],
    sums: [f64; 2],
    rates: [f64; LEVELS],
}

impl Outcomes {
    /// The rate at a level that is drawn, by a number between 0 and 1, from those of proposals with this outcome.
    pub fn rate(&self, accepted: bool, luck: f64) -> f64 {
        let outcome = usize::from(accepted);
        let mut left = luck * self.sums[outcome];
        let level = self.seen[outcome].iter().position(|weight| {
            left -= weight;
            left < 0.0
        });
        self.rates[level.unwrap_or(LEVELS - 1)]
    }
}

/// All that is known of the models of a session, or of an engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimates {
    /// Of each model's passes.
    pub costs: Vec<Costs>,
    /// Of passes that run at the same time, the share of all but the longest that comes on top of it; 1 where they run one after
    /// the other.
    pub serial: f64,
    /// What there is to do beside the models.
    pub beside: Beside,
    /// Of each model's proposals, against the combined distribution.
    pub acceptance: Vec<Acceptance>,
    /// What each model's confidence says of that.
    pub doubt: Vec<Doubt>,
    /// `[proposer, target]`: of a model's proposals, against another model's distribution.
    pub between: Array2<Mean>,
}

impl Estimates {
    /// Nothing but the times of passes, as (width, seconds) of each model.
    pub fn new(measured: &[Vec<(usize, f64)>]) -> Self {
        let models = measured.len();
        Estimates {
            costs: measured.iter().map(|measured| Costs::new(measured)).collect(),
            serial: 1.0,
            beside: Beside::default(),
            acceptance: vec![Acceptance::default(); models],
            doubt: vec![Doubt::default(); models],
            between: Array2::default((models, models)),
        }
    }

    /// Seconds of passes that run at the same time; each takes so long by itself.
    pub fn together(&self, alone: impl Iterator<Item = f64>) -> f64 {
        let (longest, sum) = alone.fold((0.0f64, 0.0), |(longest, sum), each| (longest.max(each), sum + each));
        longest + self.serial * (sum - longest)
    }

    /// Let what comes count as much as if only so many observations had been made before, and times as if none had.
    pub fn forget(&mut self, observations: f64) {
        self.costs.iter_mut().for_each(Costs::forget_level);
        for acceptance in &mut self.acceptance {
            acceptance.accepted.iter_mut().chain(&mut acceptance.offered).for_each(|mean| mean.forget(observations));
        }
        self.between.iter_mut().for_each(|mean| mean.forget(observations));
        self.beside.forget(observations);
    }

    /// Something else is decoded: know only times of passes any more, nothing of acceptance nor of work beside them.
    pub fn forget_task(&mut self) {
        self.beside = Beside::default();
        self.acceptance.fill(Acceptance::default());
        self.doubt.fill(Doubt::default());
        self.between.fill(Mean::default());
    }
}

/// Watches a sequence being decoded.
///
/// It looks at committed tokens and at times, and is asked only where nothing is pending, so what is made of it tells
/// nothing of a token that is not decided yet.
#[derive(Debug, Clone)]
pub struct Observer {
    estimates: Estimates,
    /// `λ` where the combined distribution is a mixture of the models' own, or one of them.
    weights: Option<Vec<f32>>,
    /// The probability that each model gives to the token at index `p`, in row `p % WINDOW`; NaN where it is unknown.
    scores: Array2<f32>,
    /// How sure of itself each model was there.
    confidence: Array2<f32>,
    /// The same as `scores` of the combined distribution.
    combined: [f32; WINDOW],
    /// Whether rows of a position need not be processed if only the observer asks for them; see [`Observer::spares`].
    spared: [bool; WINDOW],
    /// One of so many stretches is looked at.
    rarity: usize,
    /// Columns of a row.
    columns: usize,
    /// Tokens committed: those at this index and behind it are not known.
    end: usize,
    /// The first position that was not yet counted for each proposer.
    next: Vec<usize>,
    /// What became of the position before [`Self::next`]; NaN where that is unknown.
    behind: Vec<f64>,
    /// Passes since each model was run.
    idle: Vec<u32>,
}

impl Observer {
    /// Knows these; `weights` are those of a mixture or of a single model, `None` of anything else, and rows have so many columns.
    pub fn new(estimates: Estimates, weights: Option<Vec<f32>>, columns: usize) -> Self {
        let models = estimates.costs.len();
        Observer {
            estimates,
            weights,
            scores: Array2::from_elem((WINDOW, models), f32::NAN),
            confidence: Array2::from_elem((WINDOW, models), 0.0),
            combined: [f32::NAN; WINDOW],
            spared: [false; WINDOW],
            rarity: 1,
            columns,
            end: 0,
            next: vec![0; models],
            behind: vec![f64::NAN; models],
            idle: vec![1; models],
        }
    }

    /// What it knows.
    pub fn estimates(&self) -> &Estimates {
        &self.estimates
    }

    /// What it knows, to change.
    pub fn estimates_mut(&mut self) -> &mut Estimates {
        &mut self.estimates
    }

    /// The first committed position of which a model has not yet told the probability, as far as it still counts.
    pub fn wants(&self, model: usize) -> usize {
        let first = self.first(model);
        if !self.knows(model) {
            return first;
        }
        (first..self.end).find(|position| !self.spared[position % WINDOW]).unwrap_or(first.max(self.end))
    }

    fn first(&self, model: usize) -> usize {
        self.next[model].max(self.end.saturating_sub(WINDOW))
    }

    /// Whether a model's row at a committed position need not be processed if only the observer asks for it: where rows take long
    /// beside passes, a part of them is enough for a model that is known. What is looked at are stretches, as they tell what is
    /// behind what.
    pub fn spares(&self, model: usize, position: usize) -> bool {
        self.spared[position % WINDOW] && self.knows(model)
    }

    fn knows(&self, model: usize) -> bool {
        let (acceptance, doubt) = (&self.estimates.acceptance[model], &self.estimates.doubt[model]);
        // look-ups are never in doubt
        acceptance.is_known() && (doubt.is_known() || doubt.weight() == 0.0)
    }

    /// One of so many stretches is looked at: all of them until everybody who has been seen is known.
    fn stretches(&self) -> usize {
        let seen = || (0..self.next.len()).filter(|&model| self.estimates.acceptance[model] != Acceptance::default());
        if seen().next().is_none() || !seen().all(|model| self.knows(model)) {
            return 1;
        }
        let pass = self.estimates.costs.iter().map(|costs| costs.at(1, false)).fold(0.0, f64::max);
        (1 + (COLUMN * self.columns as f64 / (LOOKING * pass)) as usize).min(WINDOW / STRETCH)
    }

    /// A pass of a model over `width` positions took so long.
    pub fn passed(&mut self, model: usize, width: usize, seconds: f64) {
        let cold = self.idle.contains(&0) && self.idle[model] != 0;
        let factor = self.estimates.costs[model].record(width, cold, seconds);
        for (other, idle) in self.idle.iter_mut().enumerate() {
            *idle = if other == model { 0 } else { idle.saturating_add(1) };
            if *idle > IDLE {
                self.estimates.costs[other].scale(factor);
            }
        }
    }

    /// Passes of several models, as (model, width), that ran at the same time took so long together. What each would have taken by
    /// itself is not known, so they share what was unexpected.
    pub fn passed_together(&mut self, passes: impl Iterator<Item = (usize, usize)> + Clone, seconds: f64) {
        let alone = |estimates: &Estimates, (model, width): (usize, usize)| estimates.costs[model].at(width, true);
        let expected = self.estimates.together(passes.clone().map(|pass| alone(&self.estimates, pass)));
        for pass in passes {
            self.passed(pass.0, pass.1, alone(&self.estimates, pass) * seconds / expected);
        }
    }

    /// What comes next begins at `position`: a prompt, of which nothing is asked, or tokens by another combination.
    pub fn restart(&mut self, position: usize) {
        self.end = position;
        self.next.fill(position);
        self.behind.fill(f64::NAN);
    }

    /// The token at `position` was committed; the combined distribution gave it this probability, if it is known.
    pub fn committed(&mut self, position: usize, combined: Option<f32>) {
        let row = position % WINDOW;
        self.scores.row_mut(row).fill(f32::NAN);
        self.combined[row] = combined.unwrap_or(f32::NAN);
        if position.is_multiple_of(STRETCH) {
            self.rarity = self.stretches();
        }
        self.spared[row] = !(position / STRETCH).is_multiple_of(self.rarity);
        self.end = position + 1;
    }

    /// A model gives this probability to the committed token at `position`, with this confidence.
    pub fn scored(&mut self, model: usize, position: usize, (probability, confidence): (f32, f32)) {
        if position < self.end && position + WINDOW >= self.end {
            self.scores[[position % WINDOW, model]] = probability;
            self.confidence[[position % WINDOW, model]] = confidence;
        }
    }

    /// A look-up proposed `token`, or none, for the position that `committed` then took.
    pub fn looked_up(&mut self, model: usize, position: usize, token: Option<i32>, committed: i32) {
        let right = f64::from(u8::from(token == Some(committed)));
        if self.next[model] == position && !self.behind[model].is_nan() {
            self.estimates.acceptance[model].record(self.behind[model], token.is_some(), right);
        }
        (self.next[model], self.behind[model]) = (position + 1, right);
    }

    /// Count what has become known.
    pub fn settle(&mut self) {
        for model in 0..self.next.len() {
            let first = self.first(model);
            if first > self.next[model] {
                self.behind[model] = f64::NAN; // some were missed
            }
            self.next[model] = (first..self.end).find(|&position| !self.count(model, position)).unwrap_or(self.end);
        }
    }

    /// Count a position for a proposer, or know that there will be nothing to count; false if it may still become known.
    fn count(&mut self, proposer: usize, position: usize) -> bool {
        let row = self.scores.row(position % WINDOW);
        let combined = match &self.weights {
            Some(weights) => {
                let needed = weights.iter().zip(row).filter(|(weight, _)| **weight != 0.0);
                needed.map(|(weight, score)| weight * score).sum()
            }
            None => self.combined[position % WINDOW],
        };
        let (own, combined) = (f64::from(row[proposer]), f64::from(combined));
        if own.is_nan() || combined.is_nan() {
            let spared = self.spares(proposer, position) || self.spared[position % WINDOW] && combined.is_nan();
            if spared {
                self.behind[proposer] = f64::NAN;
            }
            return spared;
        }
        let accepted = (own / combined).min(1.0);
        if let Some(weights) = &self.weights {
            // y ~ r, so min(p_j(y), p_k(y)) / r(y) has the expectation Σ min(p_j, p_k)
            for target in (0..weights.len()).filter(|&target| target != proposer && weights[target] != 0.0) {
                self.estimates.between[[proposer, target]].record(own.min(f64::from(row[target])) / combined, 1.0);
            }
        }
        if !self.behind[proposer].is_nan() {
            self.estimates.acceptance[proposer].record(self.behind[proposer], true, accepted);
        }
        self.behind[proposer] = accepted;
        self.estimates.doubt[proposer].record(self.confidence[[position % WINDOW, proposer]], accepted);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observer(weights: Option<Vec<f32>>) -> Observer {
        let mut observer = Observer::new(Estimates::new(&[vec![], vec![]]), weights, 0);
        observer.restart(10);
        observer
    }

    #[test]
    fn work_for_proposals_is_told_from_that_for_passes() {
        let mut beside = Beside::default();
        beside.record(2, 3, 8.0);
        assert_eq!((beside.pass(), beside.proposal(), beside.is_known()), (4.0, 0.0, false), "as it seems");
        beside.record(0, 0, 9.0);
        beside.record(2, 0, 2.0);
        assert_eq!((beside.pass(), beside.is_known()), (1.0, true));
        beside.record(2, 3, 8.0);
        assert!(beside.proposal() < 1.0, "one round decides nothing: {beside:?}");
        (0..200).for_each(|_| beside.record(2, 3, 8.0));
        beside.record(2, 0, 2.0);
        assert!(beside.pass() == 1.0 && (beside.proposal() - 2.0).abs() < 0.02, "{beside:?}");
        // Where none is tested any more, it may be worth to try again.
        (0..1500).for_each(|_| beside.record(2, 0, 2.0));
        assert!(beside.pass() == 1.0 && beside.proposal() < 0.5, "{beside:?}");
        // Of something else it says nothing.
        let mut estimates = Estimates { beside, ..Estimates::new(&[vec![]]) };
        estimates.forget_task();
        assert_eq!(estimates.beside, Beside::default());
    }

    #[test]
    fn acceptance_is_learned_from_committed_tokens() {
        // p = (0.5, 0.5), (0.9, 0.1), so r = (0.7, 0.3): both are accepted by 0.8, and by each other by 0.6.
        let rows = [[0.5f32, 0.5], [0.9, 0.1]];
        let mut observer = observer(Some(vec![0.5, 0.5]));
        let mut random = fastrand::Rng::with_seed(1);
        for position in 10..3010 {
            let token = usize::from(random.f64() > 0.7);
            observer.committed(position, None);
            observer.scored(0, position, (rows[0][token], 0.5));
            // The other model comes later, as one does that was not needed.
            if position % 3 == 0 {
                (position - 2..=position).for_each(|earlier| observer.scored(1, earlier, (f32::NAN, 0.5)));
            }
            observer.scored(1, position, (rows[1][token], 0.5));
            observer.settle();
        }
        let estimates = observer.estimates();
        for model in 0..2 {
            assert!((estimates.acceptance[model].mean() - 0.8).abs() < 0.05, "{estimates:?}");
            assert!((estimates.between[[model, 1 - model]].or(0.0) - 0.6).abs() < 0.1, "{estimates:?}");
        }
    }

    #[test]
    fn what_comes_late_is_counted_and_what_comes_too_late_is_not() {
        let mut observer = observer(None);
        for position in 10..10 + 2 * WINDOW {
            observer.committed(position, Some(1.0));
            observer.scored(0, position, (1.0, 0.5));
            observer.settle();
        }
        assert_eq!(observer.estimates().acceptance[0].mean(), 1.0);
        assert!(!observer.estimates().acceptance[1].is_known());
        assert_eq!(observer.wants(1), 10 + WINDOW);
        (10..10 + 2 * WINDOW).for_each(|position| observer.scored(1, position, (0.25, 0.5)));
        observer.settle();
        let weight: f64 = observer.estimates().acceptance[1].accepted.iter().map(Mean::weight).sum();
        assert!((weight - (WINDOW - 1) as f64).abs() < 1e-6, "the first only says what it is behind: {weight}");
        assert_eq!(observer.estimates().acceptance[1].mean(), 0.25);
        assert_eq!(observer.wants(1), 10 + 2 * WINDOW);
    }

    #[test]
    fn runs_of_acceptances_are_told_apart() {
        let mut observer = observer(None);
        for position in 10..500 {
            observer.committed(position, Some(1.0));
            observer.scored(0, position, (f32::from(u8::from(position / 8 % 2 == 0)), 0.5));
            observer.settle();
        }
        let acceptance = observer.estimates().acceptance[0];
        assert!((acceptance.rate(true) - 7.0 / 8.0).abs() < 0.03 && (acceptance.rate(false) - 1.0 / 8.0).abs() < 0.03);
        assert!((acceptance.mean() - 0.5).abs() < 0.03);
    }

    #[test]
    fn confidence_says_how_often_proposals_are_accepted() {
        let mut observer = observer(None);
        let mut random = fastrand::Rng::with_seed(1);
        for position in 10..2000 {
            let confidence = random.f32();
            let right = random.f32() < confidence;
            observer.committed(position, Some(1.0));
            observer.scored(0, position, (f32::from(u8::from(right)), confidence));
            observer.settle();
        }
        let doubt = observer.estimates().doubt[0];
        assert!(doubt.is_known() && !observer.estimates().doubt[1].is_known());
        for confidence in [0.06, 0.31, 0.69, 0.94] {
            assert!((doubt.rate(confidence) - f64::from(confidence)).abs() < 0.12, "{confidence}: {doubt:?}");
        }
        let outcomes = doubt.outcomes().unwrap();
        // Where it is accepted it was more sure: E[c | accepted] is 2/3 for uniform c.
        let mean = |accepted| (0..1000).map(|i| outcomes.rate(accepted, f64::from(i) / 1000.0)).sum::<f64>() / 1000.0;
        assert!((mean(true) - 2.0 / 3.0).abs() < 0.07 && (mean(false) - 1.0 / 3.0).abs() < 0.07, "{doubt:?}");
    }

    #[test]
    fn a_mixture_says_nothing_before_all_of_its_models_do() {
        let mut observer = observer(Some(vec![0.5, 0.5]));
        for position in 10..10 + 2 * WINDOW {
            observer.committed(position, None);
            observer.scored(0, position, (0.1, 0.5)); // as a model that routes lead to, while the other one rests
            observer.settle();
        }
        assert_eq!(observer.estimates().acceptance[0], Acceptance::default());
        (10 + WINDOW..10 + 2 * WINDOW).for_each(|position| observer.scored(1, position, (0.3, 0.5)));
        observer.settle();
        assert!((observer.estimates().acceptance[0].mean() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn long_rows_of_known_models_are_looked_at_in_stretches() {
        let quick = || vec![(1, 1e-3)];
        for (columns, share) in [(1, 1.0), (1_000_000, 0.25)] {
            let estimates = Estimates::new(&[quick(), quick(), quick()]);
            let mut observer = Observer::new(estimates, Some(vec![0.5, 0.5, 0.0]), columns);
            observer.restart(0);
            let (mut looked, mut late) = (0, 0);
            for position in 0..1600 {
                observer.committed(position, None);
                for model in 0..2 {
                    // the second one comes later
                    let first = if model == 0 { position } else { observer.wants(1) };
                    for earlier in (first..=position).filter(|_| model == 0 || position % 8 == 7) {
                        if !observer.spares(model, earlier) {
                            observer.scored(model, earlier, ([0.4, 0.8][model], 0.5));
                            looked += 1;
                        }
                    }
                }
                observer.settle();
                late = late.max(position - observer.wants(1).min(position));
            }
            let found = f64::from(looked) / 3200.0;
            assert!((share..share + 0.05).contains(&found), "{columns} columns: {found} of the rows");
            assert!(late < 8, "nothing is waited for that will not come: {late}");
            // p / r is 0.4 / 0.6 and more than 1
            let means = [0, 1].map(|model| observer.estimates().acceptance[model].mean());
            assert!((means[0] - 2.0 / 3.0).abs() < 0.01 && means[1] == 1.0, "{means:?}");
            // somebody who is not known is looked at wherever the others are
            let known = (1600 - WINDOW..1600).filter(|&position| !observer.spares(0, position)).count();
            assert_eq!(known, if columns == 1 { WINDOW } else { STRETCH });
            let end = 1600 - WINDOW;
            (end..1600).for_each(|position| observer.scored(2, position, (0.3, 0.5)));
            observer.settle();
            let seen = observer.estimates().acceptance[2];
            assert!((seen.mean() - 0.5).abs() < 0.01 && seen.is_known(), "{seen:?}");
            observer.committed(1600, None);
            assert!(!observer.spares(0, 1600) && !observer.spares(2, 1600), "while it is not known, all rows count");
        }
    }

    #[test]
    fn look_ups_have_offers() {
        let mut observer = observer(None);
        for position in 10..500 {
            // It has something to say at every second position, and is right.
            let token = (position % 2 == 0).then_some(7);
            observer.committed(position, Some(1.0));
            observer.looked_up(1, position, token, 7);
        }
        let acceptance = observer.estimates().acceptance[1];
        assert_eq!((acceptance.offers(true), acceptance.offers(false)), (0.0, 1.0));
        assert_eq!(acceptance.rate(false), 1.0);
    }

    #[test]
    fn a_model_that_rests_moves_with_those_that_run() {
        let mut observer = observer(None);
        for _ in 0..20 {
            observer.passed(0, 1, 1.0);
            observer.passed(1, 1, 0.1);
        }
        (0..500).for_each(|_| observer.passed(0, 1, 3.0));
        let costs = &observer.estimates().costs;
        assert!((costs[0].at(1, false) - 3.0).abs() < 0.1 && (0.2..0.31).contains(&costs[1].at(1, false)), "{costs:?}");
    }
}
