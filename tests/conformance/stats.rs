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
        assert_eq!(expected.len(), observed.len());
        let draws: u64 = observed.iter().sum();
        let n = draws as f64;
        let (mut statistic, mut cells, mut impossible) = (0.0, 0usize, false);
        let (mut rare, mut rare_observed) = (0.0, 0.0);
        let (mut distance, mut noise) = (0.0, 0.0);
        let mut add = |expected: f64, observed: f64| {
            statistic += (observed - expected).powi(2) / expected;
            cells += 1;
        };
        for (&p, &count) in expected.iter().zip(observed) {
            distance += (p - count as f64 / n).abs() / 2.0;
            // E|X − np| of a binomial, by the normal approximation; for rare cells nearly 2np (1−p)^n, so no more than that
            noise += ((2.0 * p * (1.0 - p) / (std::f64::consts::PI * n)).sqrt()).min(2.0 * p) / 2.0;
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
        let degrees = cells.saturating_sub(1);
        let p = match degrees {
            _ if impossible => 0.0,
            0 => 1.0,
            degrees => ChiSquared::new(degrees as f64).expect("positive").sf(statistic),
        };
        Fit { draws, degrees, statistic, p, distance, expected_distance: noise }
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
    fn rare_cells_are_pooled() {
        let fit = Fit::new(&[0.5, 0.49, 0.004, 0.006], &[500, 490, 4, 6]);
        assert_eq!((fit.degrees, fit.statistic), (2, 0.0));
    }
}
