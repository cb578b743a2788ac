//! The time of a model's passes, by their width.

/// Widths, in positions, that have an estimate of their own. Wider passes are extrapolated.
pub const WIDTHS: usize = 24;

/// Passes that the level remembers: few, so that it follows a machine that becomes busy and a context that grows.
const MEMORY: f64 = 24.0;

/// Pairs of passes that the shape of a width remembers: many, since model and kernels do not change.
const SHAPE_MEMORY: f64 = 256.0;

/// Pairs of passes that measurements taken at load time count for: few, since the machine was idle then.
const MEASURED: f64 = 8.0;

/// Pairs of passes that the surcharge for cold passes remembers.
const COLD_MEMORY: f64 = 16.0;

/// Assumed cost of each further position, as a share of the first one's, until there are measurements. Models of a few
/// million parameters take 3 to 12 % on a CPU, and less on a GPU.
const FURTHER: f64 = 0.08;

/// A pass counts as at most so many times slower or faster than expected. Another process may take the machine for a
/// moment, and one such pass must not move the estimates far.
const OUTLIER: f64 = 2.5;

/// Estimated seconds of a model's passes, by width.
///
/// A pass takes `level · (shape[width] + cold)` seconds.
/// - `level` is the time scale. Every pass moves it, so that all widths follow a machine that slows down.
/// - `shape` is the relative time of a width. It is learned from consecutive passes of two widths, which share a level.
/// - `cold` is a surcharge for a pass right after a pass of another model, whose weights have evicted this model's from
///   the processor's caches. For a small model next to a large one it can exceed the pass itself. It is learned from
///   consecutive passes of which one was cold. Cold passes alone could not tell the surcharge from the level.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    /// Seconds of a pass of relative time 1.
    level: f64,
    /// Passes that the level rests on, at most [`MEMORY`].
    passes: f64,
    /// For each width, its time relative to the level, and the pairs that this rests on.
    shape: [(f64, f64); WIDTHS],
    /// The surcharge of a cold pass relative to the level, and the pairs that this rests on.
    cold: (f64, f64),
    /// Passes since the last one over a single position.
    since_single: u32,
    /// The last pass: its width, whether it was cold, and its seconds.
    last: Option<(usize, bool, f64)>,
}

impl Costs {
    /// Estimates from measurements, given as pairs of width in positions and seconds. Without any, a pass is taken to
    /// last a microsecond.
    ///
    /// A line is fitted by the median slope (Theil–Sen estimator), since narrow passes take about linear time. A single
    /// disturbed measurement does not move the line.
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
        let weight = if slope.is_some() { MEASURED } else { 0.0 };
        Costs {
            level,
            passes: 0.0,
            shape: std::array::from_fn(|index| (1.0 + further * index as f64, weight)),
            cold: (0.0, 0.0),
            since_single: u32::MAX,
            last: None,
        }
    }

    /// Estimates from the seconds of each width, where passes of other models do not matter.
    pub fn of(seconds: impl Fn(usize) -> f64) -> Self {
        let level = seconds(1).max(1e-9);
        Costs {
            level,
            passes: MEMORY,
            shape: std::array::from_fn(|index| (seconds(index + 1) / level, MEASURED)),
            cold: (0.0, 0.0),
            since_single: 0,
            last: None,
        }
    }

    /// Learn that a pass over `width` positions took `seconds`. `cold` is whether it came right after a pass of another
    /// model. Passes wider than [`WIDTHS`], such as those over prompts, are ignored.
    ///
    /// Returns the factor by which the level moved, and with it the estimates of all widths.
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

    /// Learn the surcharge from two consecutive passes, given as (width, seconds), of which only the second is cold.
    fn compare_cold(&mut self, (warm, seconds): (usize, f64), (cold, others): (usize, f64)) {
        let expected = self.relative(cold, true);
        let found = self.shape_at(warm) * others / seconds;
        let surcharge = found.clamp(expected / OUTLIER, expected * OUTLIER) - self.shape_at(cold);
        self.cold.1 = (self.cold.1 + 1.0).min(COLD_MEMORY);
        self.cold.0 = (self.cold.0 + (surcharge - self.cold.0) / self.cold.1).max(0.0);
    }

    /// Learn the shape from two consecutive passes, given as (width, seconds), that are both cold or both warm.
    ///
    /// The width that rests on fewer observations takes the larger share of the correction.
    fn compare(&mut self, (one, seconds): (usize, f64), (other, others): (usize, f64), cold: bool) {
        let expected = self.relative(other, cold) / self.relative(one, cold);
        let surprise = (others / seconds / expected).ln().clamp(-OUTLIER.ln(), OUTLIER.ln());
        let uncertainty = |costs: &Self, width: usize| 1.0 / costs.shape[width - 1].1.max(1e-3);
        let (of_one, of_other) = (uncertainty(self, one), uncertainty(self, other));
        for (width, share) in [(one, -of_one), (other, of_other)] {
            let relative = self.shape_at(width) * (surprise * share / (of_one + of_other + 1.0)).exp();
            self.shape[width - 1] = (relative, (self.shape[width - 1].1 + 1.0).min(SHAPE_MEMORY));
        }
    }

    /// Multiply the estimates of all widths by `factor`.
    pub fn scale(&mut self, factor: f64) {
        self.level *= factor;
    }

    /// Let the next pass alone set the level.
    pub fn forget_level(&mut self) {
        (self.passes, self.last) = (0.0, None);
    }

    /// Passes since the last one over a single position, which is the width of `standard`.
    pub fn since_single(&self) -> u32 {
        self.since_single
    }

    /// Estimated seconds of a pass over `width` positions. `cold` is whether it comes right after a pass of another
    /// model.
    pub fn at(&self, width: usize, cold: bool) -> f64 {
        self.level * self.relative(width, cold)
    }

    /// The time of a pass relative to the level.
    fn relative(&self, width: usize, cold: bool) -> f64 {
        self.shape_at(width) + if cold { self.cold.0 } else { 0.0 }
    }

    /// The time of a warm pass relative to the level.
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

/// Assumed time of a width relative to that of one position, without measurements.
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
    fn measurements_are_fitted_by_a_line() {
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
    fn the_first_pass_sets_the_level_and_an_outlier_does_not() {
        let mut costs = Costs::new(&[(1, 1.0), (2, 1.5)]);
        costs.record(1, false, 5.0);
        assert!(near(costs.at(1, false), 5.0) && near(costs.at(2, false), 7.5));
        (0..30).for_each(|_| _ = costs.record(1, false, 5.0));
        costs.record(1, false, 5000.0);
        assert!(costs.at(1, false) < 6.0);
    }

    #[test]
    fn the_shape_of_a_width_is_learned() {
        let mut costs = Costs::new(&[]);
        for _ in 0..300 {
            costs.record(1, false, 1.0);
            costs.record(4, false, 2.0);
        }
        assert!(near(costs.at(1, false), 1.0) && near(costs.at(4, false), 2.0), "{costs:?}");
    }

    #[test]
    fn the_surcharge_of_cold_passes_is_learned() {
        // Three drafts in a row after a pass of a large model: only the first is cold.
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
        // Models that take turns have cold passes only.
        let mut costs = Costs::new(&[(1, 0.13), (2, 0.14)]);
        (0..100).for_each(|_| _ = costs.record(1, true, 0.4));
        assert!(near(costs.at(1, true), 0.4) && near(costs.at(2, true), 0.43));
    }

    #[test]
    fn cold_passes_do_not_distort_the_time_of_warm_ones() {
        let mut costs = Costs::new(&[(1, 3.5), (8, 4.5)]);
        // The machine is busy during 20 of every 70 passes.
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
        let ratio = costs.at(1, true) / costs.at(1, false);
        assert!((ratio / (4.8 / 3.5) - 1.0).abs() < 0.05, "{ratio}: {costs:?}");
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
