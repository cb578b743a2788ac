//! Learns [`Estimates`] while a sequence is decoded.
//!
//! Acceptance is learned without trying proposals. A committed token `y` is a draw from the combined distribution `r`,
//! so `min(1, p(y) / r(y))` has the expectation `Σ min(p, r)`. That is the acceptance rate of proposals from `p`
//! (Theorem 3.1, where it is written as `1 − ½‖p − r‖₁`). So the probability that a model gives to committed tokens is
//! enough, whichever model proposed them.

use ndarray::Array2;

use super::estimates::{Acceptance, Estimates};

/// Committed positions whose probabilities are kept until all models have scored them.
pub const WINDOW: usize = 64;

/// Rough seconds to process one column of a row of logits.
const COLUMN: f64 = 1e-9;

/// Share of the passes' time that may go into rows that are processed for the observer alone.
const BUDGET: f64 = 0.005;

/// Rows are skipped or processed in blocks of so many positions: acceptance is learned from neighbours. The window is
/// long enough to hold a processed block at all times.
const BLOCK: usize = 16;

/// Passes of other models after which a resting model is assumed to slow down, or to speed up, with those that run.
const IDLE: u32 = 4;

/// Watches a sequence being decoded.
///
/// It sees committed tokens and the times of passes. A planner reads it only while nothing is pending. So its estimates
/// reveal nothing about a token that is not decided yet, and a plan may depend on them.
#[derive(Debug, Clone)]
pub struct Observer {
    estimates: Estimates,
    /// `λ`, if the combined distribution is a mixture of the models' distributions or one of them.
    weights: Option<Vec<f32>>,
    /// `[p % WINDOW, model]`: the probability that the model gives to the committed token at index `p`; NaN if unknown.
    probabilities: Array2<f32>,
    /// `[p % WINDOW, model]`: the model's confidence at that position.
    confidence: Array2<f32>,
    /// `[p % WINDOW]`: the probability that the combined distribution gives to that token; NaN if unknown.
    combined: [f32; WINDOW],
    /// `[p % WINDOW]`: whether the position is in a skipped block; see [`Observer::skips`].
    skipped: [bool; WINDOW],
    /// `[p % WINDOW]`: whether the position was settled without rows, so that it teaches nothing.
    settled: [bool; WINDOW],
    /// One block of so many is processed.
    interval: usize,
    /// Columns of a row of logits.
    columns: usize,
    /// Whether it learns nothing for now.
    rests: bool,
    /// Number of committed tokens.
    end: usize,
    /// For each proposer, the first position that was not counted yet.
    next: Vec<usize>,
    /// For each proposer, the acceptance probability at the position before `next`; NaN if unknown.
    before: Vec<f64>,
    /// For each model, the passes of all models since it last ran.
    idle: Vec<u32>,
}

impl Observer {
    /// An observer that starts from `estimates`. `columns` is the length of a row of logits.
    ///
    /// `weights` are those of a mixture, or 1 for a single model that is the target; `None` for any other combination.
    pub fn new(estimates: Estimates, weights: Option<Vec<f32>>, columns: usize) -> Self {
        let models = estimates.costs.len();
        Observer {
            estimates,
            weights,
            probabilities: Array2::from_elem((WINDOW, models), f32::NAN),
            confidence: Array2::from_elem((WINDOW, models), 0.0),
            combined: [f32::NAN; WINDOW],
            skipped: [false; WINDOW],
            settled: [false; WINDOW],
            interval: 1,
            columns,
            rests: false,
            end: 0,
            next: vec![0; models],
            before: vec![f64::NAN; models],
            idle: vec![1; models],
        }
    }

    /// The estimates as of now.
    pub fn estimates(&self) -> &Estimates {
        &self.estimates
    }

    /// The estimates as of now, to change them.
    pub fn estimates_mut(&mut self) -> &mut Estimates {
        &mut self.estimates
    }

    /// Learn nothing from now on, or go on from `position`. Of sessions that decode the same in company, not all need
    /// to learn.
    pub fn rest(&mut self, rests: bool, position: usize) {
        if self.rests && !rests {
            self.restart(position);
        }
        self.rests = rests;
    }

    /// Whether it learns nothing for now.
    pub fn rests(&self) -> bool {
        self.rests
    }

    /// The first committed position whose probability under `model` is still wanted; the number of committed tokens, or
    /// more, if there is none.
    pub fn first_wanted(&self, model: usize) -> usize {
        if self.rests {
            return usize::MAX;
        }
        let first = self.first_open(model);
        if !self.is_reliable(model) {
            return first;
        }
        (first..self.end).find(|position| !self.skipped[position % WINDOW]).unwrap_or(first.max(self.end))
    }

    /// The first position of a proposer that can still be counted.
    fn first_open(&self, model: usize) -> usize {
        self.next[model].max(self.end.saturating_sub(WINDOW))
    }

    /// Whether the caller may skip a model's row at a committed position that only the observer would use.
    ///
    /// Where rows are expensive against passes, a sample of the rows is enough for a model that is known well.
    pub fn skips(&self, model: usize, position: usize) -> bool {
        self.settled[position % WINDOW] || (self.skipped[position % WINDOW] && self.is_reliable(model))
    }

    fn is_reliable(&self, model: usize) -> bool {
        let (acceptance, calibration) = (&self.estimates.acceptance[model], &self.estimates.calibration[model]);
        // Look-ups have no confidence, so their calibration stays empty.
        acceptance.is_reliable() && (calibration.is_reliable() || calibration.weight() == 0.0)
    }

    /// One block of how many is to be processed: every block until all models that were seen are known well.
    fn block_interval(&self) -> usize {
        let seen = || (0..self.next.len()).filter(|&model| self.estimates.acceptance[model] != Acceptance::default());
        if seen().next().is_none() || !seen().all(|model| self.is_reliable(model)) {
            return 1;
        }
        let pass = self.estimates.costs.iter().map(|costs| costs.at(1, false)).fold(0.0, f64::max);
        (1 + (COLUMN * self.columns as f64 / (BUDGET * pass)) as usize).min(WINDOW / BLOCK)
    }

    /// Learn that a pass of a model over `width` positions took `seconds`.
    pub fn record_pass(&mut self, model: usize, width: usize, seconds: f64) {
        let cold = self.idle.contains(&0) && self.idle[model] != 0;
        let factor = self.estimates.costs[model].record(width, cold, seconds);
        for (other, idle) in self.idle.iter_mut().enumerate() {
            *idle = if other == model { 0 } else { idle.saturating_add(1) };
            if *idle > IDLE {
                self.estimates.costs[other].scale(factor);
            }
        }
    }

    /// Learn that concurrent passes, given as (model, width), took `seconds` in all.
    ///
    /// What each would have taken alone is unknown. So each is assumed to differ from its estimate by the same factor.
    pub fn record_overlapped(&mut self, passes: impl Iterator<Item = (usize, usize)> + Clone, seconds: f64) {
        let alone = |estimates: &Estimates, (model, width): (usize, usize)| estimates.costs[model].at(width, true);
        let expected = self.estimates.overlapped_seconds(passes.clone().map(|pass| alone(&self.estimates, pass)));
        for pass in passes {
            self.record_pass(pass.0, pass.1, alone(&self.estimates, pass) * seconds / expected);
        }
    }

    /// Begin anew at `position`: a prompt was appended, or the combination changed.
    pub fn restart(&mut self, position: usize) {
        self.end = position;
        self.next.fill(position);
        self.before.fill(f64::NAN);
    }

    /// The token at `position` was committed. `combined` is its probability under the combined distribution, if known.
    pub fn record_commit(&mut self, position: usize, combined: Option<f32>) {
        let row = position % WINDOW;
        self.probabilities.row_mut(row).fill(f32::NAN);
        self.combined[row] = combined.unwrap_or(f32::NAN);
        if position.is_multiple_of(BLOCK) {
            self.interval = self.block_interval();
        }
        self.skipped[row] = !(position / BLOCK).is_multiple_of(self.interval);
        self.settled[row] = false;
        self.end = position + 1;
    }

    /// The token at `position` was committed, because no other one was possible there.
    pub fn record_settled(&mut self, position: usize) {
        self.record_commit(position, None);
        self.settled[position % WINDOW] = true;
    }

    /// A model gives this probability to the committed token at `position`, and has this confidence there.
    pub fn record_score(&mut self, model: usize, position: usize, (probability, confidence): (f32, f32)) {
        if position < self.end && position + WINDOW >= self.end {
            self.probabilities[[position % WINDOW, model]] = probability;
            self.confidence[[position % WINDOW, model]] = confidence;
        }
    }

    /// A look-up proposed `token`, or nothing, for the position where `committed` was committed.
    pub fn record_lookup(&mut self, model: usize, position: usize, token: Option<i32>, committed: i32) {
        let right = f64::from(u8::from(token == Some(committed)));
        if self.next[model] == position && !self.before[model].is_nan() {
            self.estimates.acceptance[model].record(self.before[model], token.is_some(), right);
        }
        (self.next[model], self.before[model]) = (position + 1, right);
    }

    /// Update the estimates by all positions that have become complete.
    pub fn update(&mut self) {
        for model in 0..self.next.len() {
            let first = self.first_open(model);
            if first > self.next[model] {
                self.before[model] = f64::NAN; // positions left the window uncounted
            }
            self.next[model] = (first..self.end).find(|&position| !self.count(model, position)).unwrap_or(self.end);
        }
    }

    /// Count a position for a proposer. Returns false if it is incomplete and may still become complete.
    fn count(&mut self, proposer: usize, position: usize) -> bool {
        let row = self.probabilities.row(position % WINDOW);
        let combined = match &self.weights {
            Some(weights) => {
                let needed = weights.iter().zip(row).filter(|(weight, _)| **weight != 0.0);
                needed.map(|(weight, probability)| weight * probability).sum()
            }
            None => self.combined[position % WINDOW],
        };
        let (own, combined) = (f64::from(row[proposer]), f64::from(combined));
        if own.is_nan() || combined.is_nan() {
            let skipped = self.skips(proposer, position) || self.skipped[position % WINDOW] && combined.is_nan();
            if skipped {
                self.before[proposer] = f64::NAN;
            }
            return skipped;
        }
        let accepted = (own / combined).min(1.0);
        if let Some(weights) = &self.weights {
            // y ~ r, so min(p_j(y), p_k(y)) / r(y) has the expectation Σ min(p_j, p_k).
            for target in (0..weights.len()).filter(|&target| target != proposer && weights[target] != 0.0) {
                let pair = own.min(f64::from(row[target])) / combined;
                self.estimates.pair_acceptance[[proposer, target]].record(pair, 1.0);
            }
        }
        if !self.before[proposer].is_nan() {
            self.estimates.acceptance[proposer].record(self.before[proposer], true, accepted);
        }
        self.before[proposer] = accepted;
        self.estimates.calibration[proposer].record(self.confidence[[position % WINDOW, proposer]], accepted);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::learn::estimates::Mean;

    fn observer(weights: Option<Vec<f32>>) -> Observer {
        let mut observer = Observer::new(Estimates::new(&[vec![], vec![]]), weights, 0);
        observer.restart(10);
        observer
    }

    #[test]
    fn acceptance_is_learned_from_committed_tokens() {
        // p = (0.5, 0.5), (0.9, 0.1), so r = (0.7, 0.3): both are accepted by 0.8, and by each other by 0.6.
        let rows = [[0.5f32, 0.5], [0.9, 0.1]];
        let mut observer = observer(Some(vec![0.5, 0.5]));
        let mut random = fastrand::Rng::with_seed(1);
        for position in 10..3010 {
            let token = usize::from(random.f64() > 0.7);
            observer.record_commit(position, None);
            observer.record_score(0, position, (rows[0][token], 0.5));
            // The other model scores later, as a model does that was not needed.
            if position % 3 == 0 {
                (position - 2..=position).for_each(|earlier| observer.record_score(1, earlier, (f32::NAN, 0.5)));
            }
            observer.record_score(1, position, (rows[1][token], 0.5));
            observer.update();
        }
        let estimates = observer.estimates();
        for model in 0..2 {
            assert!((estimates.acceptance[model].mean() - 0.8).abs() < 0.05, "{estimates:?}");
            assert!((estimates.pair_acceptance[[model, 1 - model]].or(0.0) - 0.6).abs() < 0.1, "{estimates:?}");
        }
    }

    #[test]
    fn late_scores_count_within_the_window_only() {
        let mut observer = observer(None);
        for position in 10..10 + 2 * WINDOW {
            observer.record_commit(position, Some(1.0));
            observer.record_score(0, position, (1.0, 0.5));
            observer.update();
        }
        assert_eq!(observer.estimates().acceptance[0].mean(), 1.0);
        assert!(!observer.estimates().acceptance[1].is_reliable());
        assert_eq!(observer.first_wanted(1), 10 + WINDOW);
        (10..10 + 2 * WINDOW).for_each(|position| observer.record_score(1, position, (0.25, 0.5)));
        observer.update();
        let weight: f64 = observer.estimates().acceptance[1].accepted.iter().map(Mean::weight).sum();
        assert!(
            (weight - (WINDOW - 1) as f64).abs() < 1e-6,
            "the first position only has an outcome for the next: {weight}"
        );
        assert_eq!(observer.estimates().acceptance[1].mean(), 0.25);
        assert_eq!(observer.first_wanted(1), 10 + 2 * WINDOW);
    }

    #[test]
    fn acceptance_depends_on_the_position_before() {
        let mut observer = observer(None);
        for position in 10..500 {
            observer.record_commit(position, Some(1.0));
            observer.record_score(0, position, (f32::from(u8::from(position / 8 % 2 == 0)), 0.5));
            observer.update();
        }
        let acceptance = observer.estimates().acceptance[0];
        assert!((acceptance.rate(true) - 7.0 / 8.0).abs() < 0.03 && (acceptance.rate(false) - 1.0 / 8.0).abs() < 0.03);
        assert!((acceptance.mean() - 0.5).abs() < 0.03);
    }

    #[test]
    fn acceptance_is_calibrated_by_confidence() {
        let mut observer = observer(None);
        let mut random = fastrand::Rng::with_seed(1);
        for position in 10..2000 {
            let confidence = random.f32();
            let right = random.f32() < confidence;
            observer.record_commit(position, Some(1.0));
            observer.record_score(0, position, (f32::from(u8::from(right)), confidence));
            observer.update();
        }
        let calibration = observer.estimates().calibration[0];
        assert!(calibration.is_reliable() && !observer.estimates().calibration[1].is_reliable());
        for confidence in [0.06, 0.31, 0.69, 0.94] {
            assert!(
                (calibration.rate(confidence) - f64::from(confidence)).abs() < 0.12,
                "{confidence}: {calibration:?}"
            );
        }
        let sampler = calibration.sampler().unwrap();
        // Accepted proposals were more confident: E[c | accepted] is 2/3 for uniform c.
        let mean = |accepted| (0..1000).map(|i| sampler.rate(accepted, f64::from(i) / 1000.0)).sum::<f64>() / 1000.0;
        assert!((mean(true) - 2.0 / 3.0).abs() < 0.07 && (mean(false) - 1.0 / 3.0).abs() < 0.07, "{calibration:?}");
    }

    #[test]
    fn a_mixture_counts_once_all_of_its_models_have_scored() {
        let mut observer = observer(Some(vec![0.5, 0.5]));
        for position in 10..10 + 2 * WINDOW {
            observer.record_commit(position, None);
            observer.record_score(0, position, (0.1, 0.5)); // routes lead to model 0, and model 1 rests
            observer.update();
        }
        assert_eq!(observer.estimates().acceptance[0], Acceptance::default());
        (10 + WINDOW..10 + 2 * WINDOW).for_each(|position| observer.record_score(1, position, (0.3, 0.5)));
        observer.update();
        assert!((observer.estimates().acceptance[0].mean() - 0.5).abs() < 1e-6);
    }

    #[test]
    fn long_rows_of_known_models_are_sampled_in_blocks() {
        let quick = || vec![(1, 1e-3)];
        for (columns, share) in [(1, 1.0), (1_000_000, 0.25)] {
            let estimates = Estimates::new(&[quick(), quick(), quick()]);
            let mut observer = Observer::new(estimates, Some(vec![0.5, 0.5, 0.0]), columns);
            observer.restart(0);
            let (mut processed, mut late) = (0, 0);
            for position in 0..1600 {
                observer.record_commit(position, None);
                for model in 0..2 {
                    // model 1 scores later
                    let first = if model == 0 { position } else { observer.first_wanted(1) };
                    for earlier in (first..=position).filter(|_| model == 0 || position % 8 == 7) {
                        if !observer.skips(model, earlier) {
                            observer.record_score(model, earlier, ([0.4, 0.8][model], 0.5));
                            processed += 1;
                        }
                    }
                }
                observer.update();
                late = late.max(position - observer.first_wanted(1).min(position));
            }
            let found = f64::from(processed) / 3200.0;
            assert!((share..share + 0.05).contains(&found), "{columns} columns: {found} of the rows");
            assert!(late < 8, "it waits for no row that is skipped: {late}");
            // p / r is 0.4 / 0.6 for model 0, and above 1 for model 1
            let means = [0, 1].map(|model| observer.estimates().acceptance[model].mean());
            assert!((means[0] - 2.0 / 3.0).abs() < 0.01 && means[1] == 1.0, "{means:?}");
            // model 2 is unknown, and counts wherever the others have scored
            let known = (1600 - WINDOW..1600).filter(|&position| !observer.skips(0, position)).count();
            assert_eq!(known, if columns == 1 { WINDOW } else { BLOCK });
            let end = 1600 - WINDOW;
            (end..1600).for_each(|position| observer.record_score(2, position, (0.3, 0.5)));
            observer.update();
            let seen = observer.estimates().acceptance[2];
            assert!((seen.mean() - 0.5).abs() < 0.01 && seen.is_reliable(), "{seen:?}");
            observer.record_commit(1600, None);
            assert!(
                !observer.skips(0, 1600) && !observer.skips(2, 1600),
                "while model 2 is barely known, all rows count"
            );
        }
    }

    #[test]
    fn look_ups_have_an_offer_rate() {
        let mut observer = observer(None);
        for position in 10..500 {
            // It has a proposal at every second position, and is right.
            let token = (position % 2 == 0).then_some(7);
            observer.record_commit(position, Some(1.0));
            observer.record_lookup(1, position, token, 7);
        }
        let acceptance = observer.estimates().acceptance[1];
        assert_eq!((acceptance.offer_rate(true), acceptance.offer_rate(false)), (0.0, 1.0));
        assert_eq!(acceptance.rate(false), 1.0);
    }

    #[test]
    fn a_resting_model_slows_down_with_those_that_run() {
        let mut observer = observer(None);
        for _ in 0..20 {
            observer.record_pass(0, 1, 1.0);
            observer.record_pass(1, 1, 0.1);
        }
        (0..500).for_each(|_| observer.record_pass(0, 1, 3.0));
        let costs = &observer.estimates().costs;
        assert!((costs[0].at(1, false) - 3.0).abs() < 0.1 && (0.2..0.31).contains(&costs[1].at(1, false)), "{costs:?}");
    }

    #[test]
    fn one_that_rests_wants_no_row_and_goes_on_later() {
        let mut observer = observer(None);
        observer.rest(true, 10);
        assert_eq!((observer.rests(), observer.first_wanted(0)), (true, usize::MAX));
        observer.rest(false, 500);
        assert_eq!(observer.first_wanted(0), 500);
        observer.record_commit(500, Some(1.0));
        observer.record_score(0, 500, (1.0, 0.5));
        observer.update();
        assert_eq!(observer.first_wanted(0), 501);
    }
}
