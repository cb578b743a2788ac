//! What a pass of a model takes, as measured.

/// Widths, in positions, that are told apart; wider passes are extrapolated from these.
pub const WIDTHS: usize = 24;

/// Passes that the level looks back on, so that it follows a machine that becomes busy and a context that grows.
const MEMORY: f64 = 24.0;

/// Pairs of passes that the ratio of a width looks back on. Widths differ by the model and the kernels, which stay.
const SHAPE_MEMORY: f64 = 256.0;

/// Pairs of passes that a measurement from before counts for. It tells of a moment when nothing else was done.
const MEASURED: f64 = 8.0;

/// Pairs of passes that what cold ones take besides looks back on.
const COLD_MEMORY: f64 = 16.0;

/// What each further position is taken to cost, as a share of the first, until it is known better. Measured: 3 to
/// 12 % for models of a few million parameters on a CPU, less on a GPU.
const FURTHER: f64 = 0.08;

/// A pass may look so many times slower or faster than expected, at most: another process may take the machine for a
/// while, and one such pass must not look like a new world.
const OUTLIER: f64 = 2.5;

/// Seconds that a model's passes take, by their width.
///
/// A pass takes `level · (shape[width] + cold)`, where `cold` is for a pass behind one of another model: its weights have
/// pushed those of this one out of the processor's caches, which for a small model beside a large one can take longer than
/// the pass. Each pass moves the level, so that all widths follow a machine that slows down. The rest is learned from
/// pairs of passes, one after the other, which had the same level: the shape from those of two widths, and what a cold one takes
/// besides from those of which one was cold. (Cold ones alone would not tell it from the level.)
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    level: f64,
    /// Passes behind the level, at most [`MEMORY`].
    passes: f64,
    /// Each width against the level, and the pairs behind it.
    shape: [(f64, f64); WIDTHS],
    /// What a pass behind one of another model takes besides, against the level, and the pairs behind it.
    cold: (f64, f64),
    /// Passes since one of a single position.
    since_single: u32,
    /// The last pass: its width, whether it was cold, and its seconds.
    last: Option<(usize, bool, f64)>,
}

impl Costs {
    /// What was measured before, as (width, seconds); nothing at all is taken for a microsecond.
    ///
    /// What is taken from it is a line, the one of the median slope (Theil–Sen): that is what passes of few positions are
    /// like, and no single measurement that was disturbed makes a width look good or bad.
    pub fn new(measured: &[(usize, f64)]) -> Self {
        let slopes = measured.iter().enumerate().flat_map(|(index, &(width, seconds))| {
            measured[..index].iter().map(move |&(other, others)| (seconds - others) / (width as f64 - other as f64))
        });
        let slope = median(slopes.filter(|slope| slope.is_finite()).collect()).map(|slope| slope.max(0.0));
        let single = |&(width, seconds): &(usize, f64)| match slope {
            Some(slope) => seconds - slope * (width as f64 - 1.0),
            None => seconds / guess(width),
        };
        let level = median(measured.iter().map(single).collect()).unwrap_or(0.0).max(1e-6);
        let further = slope.map_or(FURTHER, |slope| slope / level);
        let known = if slope.is_some() { MEASURED } else { 0.0 };
        Costs {
            level,
            passes: 0.0,
            shape: std::array::from_fn(|index| (1.0 + further * index as f64, known)),
            cold: (0.0, 0.0),
            since_single: u32::MAX,
            last: None,
        }
    }

    /// A pass over `width` positions, behind a pass of another model if it is `cold`, took so long. Passes wider than
    /// [`WIDTHS`], such as prompts, do not count.
    ///
    /// Returns the factor by which all expectations moved.
    pub fn record(&mut self, width: usize, cold: bool, seconds: f64) -> f64 {
        if width == 0 || width > WIDTHS || seconds <= 0.0 || !seconds.is_finite() {
            return 1.0;
        }
        match self.last.replace((width, cold, seconds)) {
            Some((before, false, then)) if cold => self.compare_cold((before, then), (width, seconds)),
            Some((before, true, then)) if !cold => self.compare_cold((width, seconds), (before, then)),
            Some((before, _, then)) if before != width => self.compare((before, then), (width, seconds), cold),
            _ => {}
        }
        self.since_single = if width == 1 { 0 } else { self.since_single.saturating_add(1) };
        let (expected, before) = (self.relative(width, cold), self.level);
        if self.passes == 0.0 {
            self.level = seconds / expected;
        } else {
            let ratio = (seconds / (self.level * expected)).clamp(1.0 / OUTLIER, OUTLIER);
            self.level *= 1.0 + (ratio - 1.0) / (self.passes + 1.0).min(MEMORY);
        }
        self.passes = (self.passes + 1.0).min(MEMORY);
        self.level / before
    }

    /// A pass that was not cold and one that was, at one level.
    fn compare_cold(&mut self, (warm, seconds): (usize, f64), (cold, others): (usize, f64)) {
        let expected = self.relative(cold, true);
        let found = self.shape_at(warm) * others / seconds;
        let besides = found.clamp(expected / OUTLIER, expected * OUTLIER) - self.shape_at(cold);
        self.cold.1 = (self.cold.1 + 1.0).min(COLD_MEMORY);
        self.cold.0 = (self.cold.0 + (besides - self.cold.0) / self.cold.1).max(0.0);
    }

    /// Two passes at one level: how far their ratio is from the expected one is shared by how little is known of each.
    fn compare(&mut self, (one, seconds): (usize, f64), (other, others): (usize, f64), cold: bool) {
        let expected = self.relative(other, cold) / self.relative(one, cold);
        let surprise = (others / seconds / expected).ln().clamp(-OUTLIER.ln(), OUTLIER.ln());
        let doubt = |costs: &Self, width: usize| 1.0 / costs.shape[width - 1].1.max(1e-3);
        let (of_one, of_other) = (doubt(self, one), doubt(self, other));
        for (width, share) in [(one, -of_one), (other, of_other)] {
            let relative = self.shape_at(width) * (surprise * share / (of_one + of_other + 1.0)).exp();
            self.shape[width - 1] = (relative, (self.shape[width - 1].1 + 1.0).min(SHAPE_MEMORY));
        }
    }

    /// Expect everything to take `factor` times as long.
    pub fn scale(&mut self, factor: f64) {
        self.level *= factor;
    }

    /// Let the next pass say how fast the machine is now.
    pub fn forget_level(&mut self) {
        (self.passes, self.last) = (0.0, None);
    }

    /// How many passes ago one of a single position was made, which is what `standard` takes.
    pub fn since_single(&self) -> u32 {
        self.since_single
    }

    /// The expected seconds of a pass over `width` positions, behind one of another model if it is `cold`.
    pub fn at(&self, width: usize, cold: bool) -> f64 {
        self.level * self.relative(width, cold)
    }

    fn relative(&self, width: usize, cold: bool) -> f64 {
        self.shape_at(width) + if cold { self.cold.0 } else { 0.0 }
    }

    /// A pass that is not cold against the level.
    fn shape_at(&self, width: usize) -> f64 {
        let (widest, _) = self.shape[WIDTHS - 1];
        match width {
            1..=WIDTHS => self.shape[width - 1].0,
            _ => widest * guess(width) / guess(WIDTHS),
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// A width against one position, before anything is known.
fn guess(width: usize) -> f64 {
    1.0 + FURTHER * (width as f64 - 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) -> bool {
        (a / b - 1.0).abs() < 0.02
    }

    #[test]
    fn what_was_measured_before_is_taken_for_a_line() {
        let costs = Costs::new(&[(1, 2.0), (4, 3.2)]);
        assert!(near(costs.at(1, false), 2.0) && near(costs.at(4, false), 3.2));
        assert!(near(costs.at(2, false), 2.4) && near(costs.at(3, false), 2.8) && near(costs.at(8, false), 4.8));
        assert!(near(Costs::new(&[(8, 1.56)]).at(1, false), 1.0));
        assert!(near(Costs::new(&[]).at(2, false), 1.08e-6));
        let disturbed = Costs::new(&[(1, 1.0), (2, 3.0), (3, 1.2), (4, 1.3), (6, 1.5), (8, 1.7), (16, 2.5)]);
        assert!(
            near(disturbed.at(1, false), 1.0) && near(disturbed.at(2, false), 1.1) && near(disturbed.at(8, false), 1.7)
        );
        let nonsense = Costs::new(&[(1, 3.0), (2, 2.0), (2, 1.0)]);
        assert!(nonsense.at(1, false) <= nonsense.at(9, false) && nonsense.at(1, false) > 0.0);
    }

    #[test]
    fn all_widths_follow_a_machine_that_slows_down() {
        let mut costs = Costs::new(&[(1, 1.0), (2, 1.1), (7, 1.6)]);
        (0..20).for_each(|_| _ = costs.record(1, false, 1.0));
        costs.record(2, false, 1.1);
        (0..100).for_each(|_| _ = costs.record(2, false, 3.3));
        assert!(
            near(costs.at(2, false), 3.3)
                && (costs.at(1, false) / 3.0 - 1.0).abs() < 0.07
                && (costs.at(7, false) / 4.8 - 1.0).abs() < 0.07,
            "{costs:?}"
        );
    }

    #[test]
    fn the_first_pass_counts_and_one_outlier_does_not() {
        let mut costs = Costs::new(&[(1, 1.0), (2, 1.5)]);
        costs.record(1, false, 5.0);
        assert!(near(costs.at(1, false), 5.0) && near(costs.at(2, false), 7.5));
        (0..30).for_each(|_| _ = costs.record(1, false, 5.0));
        costs.record(1, false, 5000.0);
        assert!(costs.at(1, false) < 6.0);
    }

    #[test]
    fn a_width_is_learned() {
        let mut costs = Costs::new(&[]);
        for _ in 0..300 {
            costs.record(1, false, 1.0);
            costs.record(4, false, 2.0);
        }
        assert!(near(costs.at(1, false), 1.0) && near(costs.at(4, false), 2.0), "{costs:?}");
    }

    #[test]
    fn cold_passes_are_told_apart() {
        // HostCosts a large model, three drafts in a row: the first finds nothing in the processor's caches.
        let mut costs = Costs::new(&[(1, 0.13), (2, 0.14)]);
        for _ in 0..300 {
            costs.record(2, true, 0.44);
            costs.record(1, false, 0.13);
            costs.record(1, false, 0.13);
        }
        assert!(
            near(costs.at(1, false), 0.13) && near(costs.at(2, true), 0.44) && near(costs.at(1, true), 0.43),
            "{costs:?}"
        );
        // In turns there are cold ones only.
        let mut costs = Costs::new(&[(1, 0.13), (2, 0.14)]);
        (0..100).for_each(|_| _ = costs.record(1, true, 0.4));
        assert!(near(costs.at(1, true), 0.4) && near(costs.at(2, true), 0.43));
    }

    #[test]
    fn cold_passes_alone_do_not_move_what_a_warm_one_takes() {
        let mut costs = Costs::new(&[(1, 3.5), (8, 4.5)]);
        // Now and then the machine is busy.
        let mut passes = 0;
        let mut record = |costs: &mut Costs, width, cold, seconds: f64| {
            passes += 1;
            costs.record(width, cold, seconds * if (passes + 35) % 70 < 20 { 1.7 } else { 1.0 });
        };
        (0..50).for_each(|_| record(&mut costs, 1, false, 3.5));
        for _ in 0..10 {
            (0..198).for_each(|_| record(&mut costs, 5, true, 5.4));
            record(&mut costs, 1, true, 4.8);
            record(&mut costs, 1, false, 3.5);
        }
        let besides = costs.at(1, true) / costs.at(1, false);
        assert!((besides / (4.8 / 3.5) - 1.0).abs() < 0.05, "{besides}: {costs:?}");
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut costs = Costs::new(&[(1, 1.0)]);
        let before = costs.clone();
        for (width, seconds) in [(0, 1.0), (WIDTHS + 1, 1.0), (1, 0.0), (1, -1.0), (1, f64::NAN), (1, f64::INFINITY)] {
            costs.record(width, false, seconds);
        }
        assert_eq!(costs, before);
    }
}
