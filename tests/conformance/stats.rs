//! Comparing counts with a reference distribution.

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Cells that are expected less often than this are counted together, so that the chi-square distribution holds far out
/// in its tail, where the thresholds are.
pub const LEAST_EXPECTED: f64 = 20.0;

/// The probability that a run of an exact implementation fails anywhere, over all of its comparisons (Bonferroni): each of
/// `k` comparisons fails below `FAMILY_ERROR / k`.
pub const FAMILY_ERROR: f64 = 1e-6;

/// How well counts fit a distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    pub draws: u64,
    /// Degrees of freedom: cells after pooling, less one.
    pub degrees: usize,
    /// Pearson's chi-square.
    pub statistic: f64,
    /// Probability of such a statistic or a greater one under the reference; 0 if something impossible was drawn.
    pub p: f64,
    /// Total variation distance between what was observed and the reference.
    pub distance: f64,
    /// What that distance is expected to be from sampling alone.
    pub expected_distance: f64,
}

impl Fit {
    /// `expected` are probabilities that sum to 1.
    pub fn new(expected: &[f64], observed: &[u64]) -> Fit {
        Fit::of_groups([(expected, observed)])
    }

    /// Counts that come in groups, each with a distribution of its own, such as next tokens after several contexts. How
    /// often each group occurred is not judged.
    pub fn of_groups<'a>(groups: impl IntoIterator<Item = (&'a [f64], &'a [u64])>) -> Fit {
        let (mut draws, mut degrees, mut statistic, mut impossible) = (0, 0, 0.0, false);
        let (mut differing, mut noise) = (0.0, 0.0);
        for (expected, observed) in groups {
            assert_eq!(expected.len(), observed.len());
            let group: u64 = observed.iter().sum();
            let n = group as f64;
            let (mut cells, mut rare, mut rare_observed) = (0usize, 0.0, 0.0);
            let mut add = |expected: f64, observed: f64| {
                statistic += (observed - expected).powi(2) / expected;
                cells += 1;
            };
            for (&p, &count) in expected.iter().zip(observed) {
                differing += (n * p - count as f64).abs() / 2.0;
                // E|X − np| of a binomial by the normal approximation; it is never more than 2np
                noise += (2.0 * n * p * (1.0 - p) / std::f64::consts::PI).sqrt().min(2.0 * n * p) / 2.0;
                impossible |= p <= 0.0 && count > 0;
                if p * n >= LEAST_EXPECTED {
                    add(p * n, count as f64);
                } else {
                    rare += p * n;
                    rare_observed += count as f64;
                }
            }
            if rare >= 1.0 {
                add(rare, rare_observed);
            }
            draws += group;
            degrees += cells.saturating_sub(1);
        }
        let p = match degrees {
            _ if impossible => 0.0,
            0 => 1.0,
            degrees => ChiSquared::new(degrees as f64).expect("positive").sf(statistic),
        };
        let n = (draws as f64).max(1.0);
        Fit { draws, degrees, statistic, p, distance: differing / n, expected_distance: noise / n }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_tables() {
        // chi-square with 2 degrees of freedom: sf(x) = exp(−x / 2)
        let fit = Fit::new(&[0.25, 0.25, 0.5], &[300, 200, 500]);
        assert_eq!((fit.draws, fit.degrees), (1000, 2));
        assert!((fit.statistic - 20.0).abs() < 1e-9 && (fit.p - (-10f64).exp()).abs() < 1e-12, "{fit:?}");
        assert!((fit.distance - 0.05).abs() < 1e-12);
    }

    #[test]
    fn what_is_impossible_never_fits() {
        assert_eq!(Fit::new(&[1.0, 0.0], &[1_000_000, 1]).p, 0.0);
        assert_eq!(Fit::new(&[1.0, 0.0], &[1_000_000, 0]).p, 1.0);
    }

    #[test]
    fn groups_are_judged_each_by_itself() {
        let halves = [0.5, 0.5];
        let fit = Fit::of_groups([(&halves[..], &[60, 40][..]), (&halves, &[500, 500])]);
        assert_eq!((fit.draws, fit.degrees, fit.statistic), (1100, 2, 4.0));
        assert!((fit.distance - 10.0 / 1100.0).abs() < 1e-12);
    }

    #[test]
    fn rare_cells_are_pooled() {
        let fit = Fit::new(&[0.5, 0.49, 0.004, 0.006], &[500, 490, 4, 6]);
        assert_eq!((fit.degrees, fit.statistic), (2, 0.0));
    }
}
