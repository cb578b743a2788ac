//! Compares counts with a reference distribution.

use std::f64::consts::PI;

use statrs::distribution::{ChiSquared, ContinuousCDF};

/// Cells with a smaller expected count are pooled.
pub const LEAST_EXPECTED: f64 = 20.0;

/// The probability that an exact implementation fails in any comparison of a run. Each of `k` comparisons fails if its
/// [`Fit::bound`] is below `FAMILY_ERROR / k` (Bonferroni).
pub const FAMILY_ERROR: f64 = 1e-6;

/// How well counts fit a distribution.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    pub draws: u64,
    /// Degrees of freedom: cells after pooling, less one for each group.
    pub degrees: usize,
    /// Pearson's chi-square, Σ (O − E)² / E.
    pub statistic: f64,
    /// The probability of this chi-square or a greater one under the reference. It is an approximation that is good
    /// unless p is tiny; 0 if something impossible was drawn.
    pub p: f64,
    /// The likelihood ratio, G = 2 Σ O ln(O / E).
    pub g: f64,
    /// An upper bound on the probability of this G or a greater one, for any number of draws and any cells. It decides
    /// whether the comparison fails.
    pub bound: f64,
    /// Total variation distance between the observed frequencies and the reference.
    pub distance: f64,
    /// The expected distance from sampling alone.
    pub expected_distance: f64,
}

impl Fit {
    /// `expected` are probabilities that sum to 1.
    pub fn new(expected: &[f64], observed: &[u64]) -> Fit {
        Fit::of_groups([(expected, observed)])
    }

    /// The fit of groups of counts, each with its own distribution, such as the next tokens after several contexts. The
    /// sizes of the groups are not judged.
    pub fn of_groups<'a>(groups: impl IntoIterator<Item = (&'a [f64], &'a [u64])>) -> Fit {
        let (mut draws, mut degrees, mut statistic, mut g, mut impossible) = (0, 0, 0.0, 0.0, false);
        let (mut differing, mut noise) = (0.0, 0.0);
        for (expected, observed) in groups {
            assert_eq!(expected.len(), observed.len());
            let group: u64 = observed.iter().sum();
            let n = group as f64;
            // (expected, observed) of the judged cells. Rare cells are pooled.
            let mut cells: Vec<(f64, f64)> = Vec::new();
            let mut rare = (0.0, 0.0);
            for (&p, &count) in expected.iter().zip(observed) {
                let (expected, count) = (n * p, count as f64);
                differing += (expected - count).abs() / 2.0;
                // E|X − np| of a binomial by the normal approximation. It never exceeds 2np.
                noise += (2.0 * expected * (1.0 - p).max(0.0) / PI).sqrt().min(2.0 * expected) / 2.0;
                impossible |= p <= 0.0 && count > 0.0;
                if expected >= LEAST_EXPECTED {
                    cells.push((expected, count));
                } else {
                    rare = (rare.0 + expected, rare.1 + count);
                }
            }
            match cells.iter_mut().min_by(|a, b| a.0.total_cmp(&b.0)) {
                Some(least) if rare.0 < LEAST_EXPECTED => *least = (least.0 + rare.0, least.1 + rare.1),
                _ => cells.push(rare),
            }
            for &(expected, observed) in cells.iter().filter(|cell| cell.0 > 0.0) {
                statistic += (observed - expected).powi(2) / expected;
                g += if observed > 0.0 { 2.0 * observed * (observed / expected).ln() } else { 0.0 };
            }
            draws += group;
            degrees += cells.len() - 1;
        }
        let (p, bound) = match degrees {
            _ if impossible => (0.0, 0.0),
            0 => (1.0, 1.0),
            degrees => (ChiSquared::new(degrees as f64).expect("positive").sf(statistic), bound(degrees, g)),
        };
        let n = (draws as f64).max(1.0);
        Fit { draws, degrees, statistic, p, g, bound, distance: differing / n, expected_distance: noise / n }
    }
}

/// An upper bound on the probability of a G statistic of at least this size, for any number of draws. `G = 2 n D`,
/// where `D` is the relative entropy of the observed frequencies to the reference, and `P(n D ≥ x) ≤ e^−x (e x / (k −
/// 1))^(k − 1)` for `x > k − 1` (Agrawal, Finite-Sample Concentration of the Multinomial in Relative Entropy, 2020,
/// Theorem I.2). The theorem follows from a bound on the moment generating function of `n D`, so groups add their
/// degrees.
pub fn bound(degrees: usize, g: f64) -> f64 {
    let (x, d) = (g / 2.0, degrees as f64);
    if x <= d { 1.0 } else { (d - x + d * (x / d).ln()).exp() }
}

/// The smallest G statistic whose [`bound`] is below a threshold.
pub fn critical(degrees: usize, threshold: f64) -> f64 {
    let d = degrees as f64;
    let (mut low, mut high) = (2.0 * d, 4.0 * d - 4.0 * threshold.ln());
    while bound(degrees, high) > threshold {
        high *= 2.0;
    }
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if bound(degrees, middle) > threshold { low = middle } else { high = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use statrs::distribution::Discrete;

    use super::*;

    #[test]
    fn statistics_are_those_of_textbooks() {
        // With 2 degrees of freedom, sf(x) = exp(−x / 2).
        let fit = Fit::new(&[0.25, 0.25, 0.5], &[300, 200, 500]);
        assert_eq!((fit.draws, fit.degrees), (1000, 2));
        assert!((fit.statistic - 20.0).abs() < 1e-9 && (fit.p - (-10f64).exp()).abs() < 1e-12, "{fit:?}");
        assert!((fit.g - 2.0 * (300.0 * 1.2f64.ln() + 200.0 * 0.8f64.ln())).abs() < 1e-9);
        assert!((fit.distance - 0.05).abs() < 1e-12);
    }

    #[test]
    fn what_is_impossible_never_fits() {
        assert_eq!(Fit::new(&[1.0, 0.0], &[1_000_000, 1]).bound, 0.0);
        assert_eq!(Fit::new(&[1.0, 0.0], &[1_000_000, 0]).bound, 1.0);
    }

    #[test]
    fn groups_are_judged_each_by_itself() {
        let halves = [0.5, 0.5];
        let fit = Fit::of_groups([(&halves[..], &[60, 40][..]), (&halves, &[500, 500])]);
        assert_eq!((fit.draws, fit.degrees), (1100, 2));
        assert_eq!(fit.statistic, Fit::new(&halves, &[60, 40]).statistic);
        assert!((fit.distance - 10.0 / 1100.0).abs() < 1e-12);
    }

    #[test]
    fn rare_cells_are_judged_together() {
        let fit = Fit::new(&[0.5, 0.45, 0.024, 0.026], &[500, 450, 0, 50]);
        assert_eq!(fit.degrees, 3, "each is expected 20 times");
        let fit = Fit::new(&[0.5, 0.46, 0.018, 0.022], &[500, 460, 40, 0]);
        assert_eq!(fit.degrees, 2, "with the least of the others, if they are too few together");
        // Too many draws of rare cells are noticed.
        assert!(Fit::new(&[0.5, 0.4999, 0.0001], &[490, 480, 30]).bound > 0.0);
        assert_eq!(Fit::new(&[0.999, 0.001], &[970, 30]).degrees, 0, "nothing to judge with");
    }

    /// The bound holds for the exact probability of each count of a binomial.
    #[test]
    fn the_bound_holds() {
        for (n, p) in [(40u64, 0.5), (1000, 0.02), (100_000, 0.0005), (100_000, 0.3)] {
            let binomial = statrs::distribution::Binomial::new(p, n).unwrap();
            let g = |count: u64| {
                let part = |count: u64, p: f64| match count {
                    0 => 0.0,
                    count => 2.0 * count as f64 * (count as f64 / (n as f64 * p)).ln(),
                };
                part(count, p) + part(n - count, 1.0 - p)
            };
            for threshold in [1e-3, 1e-6, 1e-10] {
                let critical = critical(1, threshold);
                let beyond: f64 = (0..=n).filter(|&k| g(k) >= critical).map(|k| binomial.pmf(k)).sum();
                assert!(beyond <= threshold, "{n} draws of {p}: {beyond:e} beyond {critical}, {threshold:e} allowed");
            }
        }
    }
}
