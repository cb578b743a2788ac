//! The result of a run: counts, a measure of bias, and the first broken promise.

use std::collections::BTreeMap;
use std::fmt;

/// How far tokens lean from their distributions `r` towards the distribution `q` of their drafter. Most mistakes of
/// verification would cause such a bias. It is the sum of `g(token) − E g` with `g = q / r`, a martingale if decoding
/// is exact, with the variance that it should have.
#[derive(Debug, Clone, Copy, Default)]
pub struct Lean {
    pub sum: f64,
    pub variance: f64,
    pub tokens: u64,
}

impl Lean {
    pub fn add(&mut self, r: &[f64], q: &[f64], token: usize) {
        // The bound keeps one token from outweighing all others. The expectation is that of the bounded function.
        let g = |token: usize| (q[token] / r[token]).min(8.0);
        let possible = || (0..r.len()).filter(|&token| r[token] > 0.0);
        let mean: f64 = possible().map(|token| r[token] * g(token)).sum();
        self.sum += g(token) - mean;
        self.variance += possible().map(|token| r[token] * (g(token) - mean).powi(2)).sum::<f64>();
        self.tokens += 1;
    }

    /// The lean in standard deviations.
    pub fn score(&self) -> f64 {
        self.sum / self.variance.sqrt().max(f64::MIN_POSITIVE)
    }
}

#[derive(Debug, Default)]
pub struct Report {
    /// Steps that ran a round.
    pub rounds: u64,
    /// Tokens that were compared with the oracle, and those among them that lie on the edge of a filter.
    pub judged: u64,
    pub edges: u64,
    pub lean: BTreeMap<&'static str, Lean>,
    pub coverage: BTreeMap<&'static str, u64>,
}

impl Report {
    pub fn cover(&mut self, what: &'static str) {
        *self.coverage.entry(what).or_default() += 1;
    }

    pub fn merge(&mut self, other: Report) {
        self.rounds += other.rounds;
        self.judged += other.judged;
        self.edges += other.edges;
        for (way, other) in other.lean {
            let own = self.lean.entry(way).or_default();
            own.sum += other.sum;
            own.variance += other.variance;
            own.tokens += other.tokens;
        }
        for (what, count) in other.coverage {
            *self.coverage.entry(what).or_default() += count;
        }
    }
}

/// A promise that was not kept.
#[derive(Debug)]
pub struct Violation {
    pub seed: u64,
    pub call: u64,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Violation { seed, call, what } = self;
        writeln!(f, "seed {seed}, call {call}: {what}")?;
        write!(f, "replay: COS_SEED={seed} cargo test --release --test algorithm promises")
    }
}
