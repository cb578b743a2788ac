//! The source of random outcomes: counter-based random numbers, or in tests an enumerator of all outcomes.

use chacha20::ChaCha8Rng;
use chacha20::rand_core::{Rng, SeedableRng};

use crate::error::Result;
use crate::rows::Weights;
use crate::rows::kernels::{BLOCK, sum};

/// What an outcome decides. Outcomes of different purposes are independent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// The model whose distribution is a position's target, under routed targets.
    Route = 0,
    /// A token drawn by a proposer, from its own distribution.
    Proposal = 1,
    /// Whether a proposal is accepted.
    Acceptance = 2,
    /// A token drawn from a residual, after a rejection.
    Residual = 3,
    /// A token drawn from a target, without a proposal.
    Target = 4,
    /// The model of a mixture whose distribution a token of the target is drawn from.
    Component = 5,
    /// Whether the top choices of a position are excluded.
    Exclusion = 6,
}

/// Identifies one random outcome of a sequence. No two outcomes share a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Index of the token that is decided.
    pub position: usize,
    /// What is decided.
    pub purpose: Purpose,
    /// How often pending tokens were dropped before. A position drawn again after that needs new numbers, because
    /// plans made since then may depend on the old ones.
    ///
    /// Routes and exclusions keep their epoch as long as the weights stay. A route drawn again after a rejection would
    /// depend on which proposals were accepted.
    pub epoch: u32,
}

/// A source of random outcomes. The same key always gives the same outcome.
pub trait Chance {
    /// True with the given probability.
    fn accept(&self, key: Key, probability: f64) -> bool;

    /// An index, drawn with probability proportional to its weight. An error if the weights are on a device that fails.
    fn pick<W: Weights + ?Sized>(&self, key: Key, weights: &W) -> Result<usize>;

    /// The number in `[0, 1)` that [`Chance::pick`] draws by: at this share of the weights. `None` if it does not draw
    /// so.
    fn share(&self, _key: Key) -> Option<f64> {
        None
    }
}

/// The random numbers of a session: one ChaCha8 block for each seed and key.
///
/// The seed reproduces a run. There is no state, so a failed round has nothing to roll back.
#[derive(Debug, Clone, Copy)]
pub struct CounterRng {
    seed: u64,
    /// Tells the numbers of a fork from those of all others with the seed. 0 if it is no fork.
    branch: u64,
}

/// What a number decides that tells a fork from others; see [`Purpose`].
const BRANCH: u8 = u8::MAX;

impl CounterRng {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        CounterRng { seed, branch: 0 }
    }

    /// The numbers of a seed for a fork, which come after `forks` others. They are independent of all numbers here and
    /// of those of other forks, whatever the seeds.
    pub fn fork(&self, seed: u64, forks: u64) -> Self {
        CounterRng { seed, branch: self.number(forks, 0, BRANCH) }
    }

    /// What [`CounterRng::of`] makes the same numbers of.
    pub fn parts(&self) -> (u64, u64) {
        (self.seed, self.branch)
    }

    /// The numbers of these [`CounterRng::parts`].
    pub fn of((seed, branch): (u64, u64)) -> Self {
        CounterRng { seed, branch }
    }

    /// Uniform on `[0, 1)` with 53 random bits.
    pub fn uniform(&self, key: Key) -> f64 {
        let number = self.number(key.position as u64, key.epoch, key.purpose as u8);
        (number >> 11) as f64 / (1u64 << 53) as f64
    }

    fn number(&self, position: u64, epoch: u32, purpose: u8) -> u64 {
        let mut block = [0u8; 32];
        block[..8].copy_from_slice(&self.seed.to_le_bytes());
        block[8..16].copy_from_slice(&position.to_le_bytes());
        block[16..20].copy_from_slice(&epoch.to_le_bytes());
        block[20] = purpose;
        block[24..].copy_from_slice(&self.branch.to_le_bytes());
        ChaCha8Rng::from_seed(block).next_u64()
    }
}

impl Chance for CounterRng {
    fn accept(&self, key: Key, probability: f64) -> bool {
        self.uniform(key) < probability
    }

    fn pick<W: Weights + ?Sized>(&self, key: Key, weights: &W) -> Result<usize> {
        quantile(weights, self.uniform(key))
    }

    fn share(&self, key: Key) -> Option<f64> {
        Some(self.uniform(key))
    }
}

/// The first index at which the running sum of the weights exceeds the share `u` of their total.
pub fn quantile<W: Weights + ?Sized>(weights: &W, u: f64) -> Result<usize> {
    let left = u * weights.total();
    match weights.find(left)? {
        Some(index) => Ok(index),
        // The few weights of models are drawn by as often as tokens are.
        None if weights.count() <= BLOCK => scan(weights, left, &mut [0.0; BLOCK]),
        None => scan(weights, left, &mut [0.0; PIECE]),
    }
}

/// The same, of weights that are written piece by piece.
fn scan<W: Weights + ?Sized>(weights: &W, mut left: f64, piece: &mut [f32]) -> Result<usize> {
    let mut last = 0;
    for start in (0..weights.count()).step_by(piece.len()) {
        let len = piece.len().min(weights.count() - start);
        let piece = &mut piece[..len];
        weights.write(start, piece)?;
        // Whole blocks are summed fast. Only the block that holds the answer is scanned weight by weight.
        for (index, block) in piece.chunks(BLOCK).enumerate() {
            let whole = sum(block);
            let start = start + index * BLOCK;
            if left < whole {
                for (offset, &weight) in block.iter().enumerate() {
                    left -= f64::from(weight);
                    if left < 0.0 {
                        return Ok(start + offset);
                    }
                }
            } else {
                left -= whole;
            }
            if whole > 0.0 {
                last = start + block.iter().rposition(|&weight| weight > 0.0).unwrap_or(0);
            }
        }
    }
    Ok(last) // reached by rounding only
}

/// Weights that are written at a time.
const PIECE: usize = 8 * BLOCK;

#[cfg(test)]
mod tests {
    use super::*;

    fn key(position: usize, purpose: Purpose, epoch: u32) -> Key {
        Key { position, purpose, epoch }
    }

    #[test]
    fn numbers_are_pinned() {
        // A seed promises the same run in every release, so these values never change.
        let rng = CounterRng::new(42);
        assert_eq!(rng.uniform(key(0, Purpose::Route, 0)), 0.3482544685480763);
        assert_eq!(rng.uniform(key(7, Purpose::Residual, 3)), 0.9758839539144792);
    }

    #[test]
    fn every_part_of_the_key_matters() {
        let base = CounterRng::new(1).uniform(key(5, Purpose::Target, 2));
        assert_ne!(base, CounterRng::new(2).uniform(key(5, Purpose::Target, 2)));
        assert_ne!(base, CounterRng::new(1).uniform(key(6, Purpose::Target, 2)));
        assert_ne!(base, CounterRng::new(1).uniform(key(5, Purpose::Residual, 2)));
        assert_ne!(base, CounterRng::new(1).uniform(key(5, Purpose::Target, 3)));
    }

    #[test]
    fn forks_have_numbers_of_their_own() {
        let (parent, key) = (CounterRng::new(1), key(5, Purpose::Target, 2));
        let all = [
            parent,
            parent.fork(1, 0),
            parent.fork(1, 1),
            parent.fork(2, 0),
            CounterRng::new(2).fork(1, 0),
            parent.fork(1, 0).fork(1, 0),
        ];
        let numbers: std::collections::HashSet<u64> = all.iter().map(|rng| rng.uniform(key).to_bits()).collect();
        assert_eq!(numbers.len(), all.len());
        assert_eq!(parent.fork(1, 3).uniform(key), parent.fork(1, 3).uniform(key));
    }

    #[test]
    fn numbers_are_uniform() {
        let mut buckets = [0u32; 16];
        let draws = 160_000;
        for position in 0..draws {
            let u = CounterRng::new(9).uniform(key(position, Purpose::Acceptance, 0));
            buckets[(u * 16.0) as usize] += 1;
        }
        let expected = draws as f64 / 16.0;
        let chi2: f64 = buckets.iter().map(|&n| (f64::from(n) - expected).powi(2) / expected).sum();
        assert!(chi2 < 44.3, "chi-square {chi2} with 15 degrees of freedom, 1e-4 quantile 44.3");
    }

    #[test]
    fn quantile_agrees_with_a_plain_scan() {
        let weights: Vec<f32> = (0..3000).map(|i| if i % 7 == 3 { 0.0 } else { (i % 13) as f32 }).collect();
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        for step in 0..5000 {
            let u = f64::from(step) / 5000.0;
            let mut running = 0.0;
            let plain = weights.iter().position(|&w| {
                running += f64::from(w);
                running > u * total
            });
            assert_eq!(quantile(&weights[..], u).ok(), plain, "u = {u}");
        }
    }

    #[test]
    fn quantile_never_picks_a_weight_of_zero() {
        assert_eq!(quantile(&[0.0, 1.0, 0.0][..], 0.0).unwrap(), 1);
        assert_eq!(quantile(&[0.0, 1.0, 0.0][..], 1.0 - f64::EPSILON / 2.0).unwrap(), 1);
        assert_eq!(quantile(&[0.5, 0.5, 0.0, 0.0][..], 1.0).unwrap(), 1);
    }
}
