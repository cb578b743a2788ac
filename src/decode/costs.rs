//! What a pass of a model takes, as measured.

/// Widths, in positions, that are told apart; wider passes are extrapolated from these.
pub const WIDTHS: usize = 24;

/// Passes that the level looks back on, so that it follows a machine that becomes busy and a context that grows.
const MEMORY: f64 = 24.0;

/// Pairs of passes that the ratio of a width looks back on. Widths differ by the model and the kernels, which stay.
const SHAPE_MEMORY: f64 = 256.0;

/// Pairs of passes that a measurement from before counts for: it was made with care.
const MEASURED: f64 = 32.0;

/// What each further position is taken to cost, as a share of the first, until it is known better. Measured: 3 to
/// 12 % for models of a few million parameters on a CPU, less on a GPU.
const FURTHER: f64 = 0.08;

/// A pass may look so many times slower or faster than expected, at most: another process may take the machine for a
/// while, and one such pass must not look like a new world.
const OUTLIER: f64 = 2.5;

/// Seconds that a model's passes take, by their width.
///
/// A pass takes `level · shape[width]`. Each pass moves the level, so that all widths follow a machine that slows down.
/// The shape is learned from pairs of passes, one after the other and of two widths, which had the same level.
#[derive(Debug, Clone, PartialEq)]
pub struct Costs {
    level: f64,
    /// Passes behind the level, at most [`MEMORY`].
    passes: f64,
    /// Each width against the level, and the pairs behind it.
    shape: [(f64, f64); WIDTHS],
    /// The last pass: its width, and its seconds.
    last: Option<(usize, f64)>,
}

impl Costs {
    /// What was measured before, as (width, seconds), the narrowest first; nothing at all is taken for a microsecond.
    ///
    /// What disturbs a measurement makes it longer, so a pass is taken for no longer than a wider one.
    pub fn new(measured: &[(usize, f64)]) -> Self {
        let mut measured = measured.to_vec();
        for index in (1..measured.len()).rev() {
            measured[index - 1].1 = measured[index - 1].1.min(measured[index].1);
        }
        let first = measured.iter().find(|(width, _)| *width > 0);
        let level = first.map_or(1e-6, |(width, seconds)| seconds / guess(*width)).max(f64::MIN_POSITIVE);
        let mut costs = Costs { level, passes: 0.0, shape: [(1.0, 0.0); WIDTHS], last: None };
        for (width, seconds) in measured.into_iter().filter(|(width, _)| (1..=WIDTHS).contains(width)) {
            costs.shape[width - 1] = (seconds / level, MEASURED);
        }
        costs
    }

    /// A pass over `width` positions took so long. Passes wider than [`WIDTHS`], such as prompts, do not count.
    ///
    /// Returns the factor by which all expectations moved.
    pub fn record(&mut self, width: usize, seconds: f64) -> f64 {
        if width == 0 || width > WIDTHS || seconds <= 0.0 || !seconds.is_finite() {
            return 1.0;
        }
        if let Some((before, then)) = self.last.replace((width, seconds))
            && before != width
        {
            self.compare((before, then), (width, seconds));
        }
        let (expected, before) = (self.relative(width), self.level);
        if self.passes == 0.0 {
            self.level = seconds / expected;
        } else {
            let ratio = (seconds / (self.level * expected)).clamp(1.0 / OUTLIER, OUTLIER);
            self.level *= 1.0 + (ratio - 1.0) / (self.passes + 1.0).min(MEMORY);
        }
        self.passes = (self.passes + 1.0).min(MEMORY);
        self.level / before
    }

    /// Two passes at one level: how far their ratio is from the expected one is shared by how little is known of each.
    fn compare(&mut self, (one, seconds): (usize, f64), (other, others): (usize, f64)) {
        let expected = self.relative(other) / self.relative(one);
        let surprise = (others / seconds / expected).ln().clamp(-OUTLIER.ln(), OUTLIER.ln());
        let doubt = |costs: &Self, width: usize| 1.0 / costs.shape[width - 1].1.max(1e-3);
        let (of_one, of_other) = (doubt(self, one), doubt(self, other));
        for (width, share) in [(one, -of_one), (other, of_other)] {
            let relative = self.relative(width) * (surprise * share / (of_one + of_other + 1.0)).exp();
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

    /// The expected seconds of a pass over `width` positions.
    pub fn at(&self, width: usize) -> f64 {
        self.level * self.relative(width)
    }

    /// The same against the level: measured, between the measured neighbours, or by [`FURTHER`].
    fn relative(&self, width: usize) -> f64 {
        let of = |width: usize| self.shape[width - 1].0;
        if (1..=WIDTHS).contains(&width) && self.shape[width - 1].1 > 0.0 {
            return of(width);
        }
        let measured = |width: &usize| self.shape[width - 1].1 > 0.0;
        let below = (1..=width.min(WIDTHS)).rev().find(measured);
        let above = (width..=WIDTHS).find(measured);
        match (below, above) {
            (Some(below), Some(above)) => {
                let share = (width - below) as f64 / (above - below) as f64;
                of(below) + share * (of(above) - of(below))
            }
            (Some(near), None) | (None, Some(near)) => of(near) * guess(width) / guess(near),
            (None, None) => guess(width),
        }
    }
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
    fn unmeasured_widths_are_interpolated_and_extrapolated() {
        let costs = Costs::new(&[(1, 2.0), (4, 3.2)]);
        assert!(near(costs.at(1), 2.0) && near(costs.at(4), 3.2));
        assert!(near(costs.at(2), 2.4) && near(costs.at(3), 2.8));
        assert!(near(costs.at(8), 3.2 * 1.56 / 1.24));
        assert!(near(Costs::new(&[(8, 1.56)]).at(1), 1.0));
        assert!(near(Costs::new(&[]).at(2), 1.08e-6));
        let disturbed = Costs::new(&[(1, 9.0), (2, 1.0), (4, 1.2)]);
        assert!(near(disturbed.at(1), 1.0) && near(disturbed.at(3), 1.1));
    }

    #[test]
    fn all_widths_follow_a_machine_that_slows_down() {
        let mut costs = Costs::new(&[(1, 1.0), (2, 1.1), (8, 1.6)]);
        (0..20).for_each(|_| _ = costs.record(1, 1.0));
        (0..100).for_each(|_| _ = costs.record(2, 3.3));
        assert!(
            near(costs.at(2), 3.3) && (costs.at(1) / 3.0 - 1.0).abs() < 0.07 && (costs.at(8) / 4.8 - 1.0).abs() < 0.07,
            "{costs:?}"
        );
    }

    #[test]
    fn the_first_pass_counts_and_one_outlier_does_not() {
        let mut costs = Costs::new(&[(1, 1.0), (2, 1.5)]);
        costs.record(1, 5.0);
        assert!(near(costs.at(1), 5.0) && near(costs.at(2), 7.5));
        (0..30).for_each(|_| _ = costs.record(1, 5.0));
        costs.record(1, 5000.0);
        assert!(costs.at(1) < 6.0);
    }

    #[test]
    fn a_width_is_learned() {
        let mut costs = Costs::new(&[]);
        for _ in 0..300 {
            costs.record(1, 1.0);
            costs.record(4, 2.0);
        }
        assert!(near(costs.at(1), 1.0) && near(costs.at(4), 2.0), "{costs:?}");
    }

    #[test]
    fn nonsense_is_ignored() {
        let mut costs = Costs::new(&[(1, 1.0)]);
        let before = costs.clone();
        for (width, seconds) in [(0, 1.0), (WIDTHS + 1, 1.0), (1, 0.0), (1, -1.0), (1, f64::NAN), (1, f64::INFINITY)] {
            costs.record(width, seconds);
        }
        assert_eq!(costs, before);
    }
}
