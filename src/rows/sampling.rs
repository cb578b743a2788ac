//! The sampler: makes of logits the distribution that tokens are drawn from.

use super::distribution::{Distribution, checked};
use super::filter::Filter;
use super::kernels::{self, Normaliser};
use crate::error::{Error, Result};

/// How a row becomes a distribution: temperature, then top-k, then top-p, then min-p, then softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
}

/// Buffers that [`Sampler::process`] reuses, so that it never allocates.
#[derive(Debug, Default)]
pub struct Candidates {
    /// The largest score of each block of [`SMALL_BLOCK`] scores.
    maxima: Vec<f32>,
    /// A copy of `maxima`, which a selection reorders.
    order: Vec<f32>,
    /// The tokens that may be kept, as [`key`]s.
    keys: Vec<u64>,
}

impl Candidates {
    /// Buffers for rows of so many scores.
    pub fn new(vocab_size: usize) -> Self {
        let blocks = vocab_size.div_ceil(SMALL_BLOCK);
        Candidates {
            maxima: Vec::with_capacity(blocks),
            order: Vec::with_capacity(blocks),
            keys: Vec::with_capacity(vocab_size),
        }
    }

    /// Buffers for keys, and for a number of each score.
    pub(super) fn keys_and_scores(&mut self) -> (&mut Vec<u64>, &mut Vec<f32>) {
        (&mut self.keys, &mut self.order)
    }

    /// Bytes of the buffers.
    pub fn bytes(&self) -> usize {
        let blocks = size_of::<f32>() * (self.maxima.capacity() + self.order.capacity());
        blocks + size_of::<u64>() * self.keys.capacity()
    }

    /// Find the largest score of each block. Returns the largest of all.
    fn measure(&mut self, scores: &[f32]) -> Result<f32> {
        self.maxima.resize(scores.len().div_ceil(SMALL_BLOCK), 0.0);
        checked(kernels::block_maxima(scores, SMALL_BLOCK, &mut self.maxima))
    }

    /// Gather the tokens whose scores reach `floor`. Only blocks that hold such a score are read.
    fn gather(&mut self, scores: &[f32], floor: f32) {
        self.keys.clear();
        for (block, (scores, &max)) in scores.chunks(SMALL_BLOCK).zip(&self.maxima).enumerate() {
            if max >= floor {
                let reaches = scores.iter().enumerate().filter(|(_, score)| **score >= floor);
                self.keys.extend(reaches.map(|(index, &score)| key(score, block * SMALL_BLOCK + index)));
            }
        }
    }

    /// Gather at least the best `k` tokens.
    fn gather_best(&mut self, scores: &[f32], k: usize) {
        // Each of the k blocks with the largest maxima holds a score that reaches the least of these maxima.
        let floor = if k <= self.maxima.len() {
            self.order.clone_from(&self.maxima);
            *self.order.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a)).1
        } else {
            f32::NEG_INFINITY
        };
        self.gather(scores, floor);
    }

    /// Gather the best tokens, so many that their weights reach `share`.
    fn gather_share(&mut self, scores: &[f32], share: f64, all: &Distribution) {
        // Few tokens nearly always hold the share, so the least score is lowered in steps.
        for distance in [3.0, 6.0, 12.0, f32::INFINITY] {
            self.gather(scores, all.max - distance / all.rate);
            if weights(all, &self.keys) >= share {
                break;
            }
        }
    }
}

/// Scores of a block. A block is skipped if its largest score is too low.
const SMALL_BLOCK: usize = 64;

/// A token and its score as one number. The better token has the smaller number: higher score first, then lower token.
fn key(score: f32, token: usize) -> u64 {
    let bits = (score + 0.0).to_bits(); // no negative 0
    let ascending = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(!ascending) << 32 | token as u64
}

/// The score of a [`key`].
fn score_of(key: u64) -> f32 {
    let ascending = !((key >> 32) as u32);
    f32::from_bits(if ascending >> 31 == 1 { ascending & !(1 << 31) } else { !ascending })
}

/// The token of a [`key`].
fn token_of(key: u64) -> usize {
    key as u32 as usize
}

impl Sampler {
    /// Always the first token of the largest score.
    pub const GREEDY: Sampler = Sampler { temperature: 0.0, top_k: 1, top_p: 1.0, min_p: 0.0 };

    /// A temperature of 0 is greedy. `top_k` 0, `top_p` 0 or 1, and `min_p` 0 turn these filters off.
    ///
    /// [`Error::InvalidArgument`] for a value out of range.
    pub fn new(temperature: f32, top_k: i32, top_p: f32, min_p: f32) -> Result<Self> {
        if !(temperature.is_finite() && temperature >= 0.0) {
            return Err(Error::InvalidArgument(format!(
                "temperature is {temperature}; it must be 0 (greedy) or positive"
            )));
        }
        if top_k < 0 {
            return Err(Error::InvalidArgument(format!("top_k is {top_k}; it must be 0 (off) or positive")));
        }
        for (name, value) in [("top_p", top_p), ("min_p", min_p)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(Error::InvalidArgument(format!("{name} is {value}; it must be between 0 and 1")));
            }
        }
        if temperature == 0.0 {
            return Ok(Sampler::GREEDY);
        }
        Ok(Sampler { temperature, top_k: top_k as usize, top_p: if top_p == 0.0 { 1.0 } else { top_p }, min_p })
    }

    /// What [`Sampler::new`] makes the same sampler of: temperature, top-k, top-p and min-p.
    pub fn parts(&self) -> (f32, usize, f32, f32) {
        (self.temperature, self.top_k, self.top_p, self.min_p)
    }

    /// This sampler, or the greedy one if its temperature is below the given one.
    pub fn greedy_below(self, temperature: f32) -> Self {
        if self.temperature < temperature { Sampler::GREEDY } else { self }
    }

    /// Whether it always takes the best token.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Turn a row of scores into a distribution, without forming the row of probabilities.
    ///
    /// - Among equal scores the lower token ranks first, so exactly `top_k` tokens are kept.
    /// - Top-p keeps the shortest run of tokens, best first, whose probability reaches `top_p`.
    /// - Scores of minus infinity get probability 0.
    ///
    /// [`Error::Numeric`] for a row with NaN or plus infinity, or with nothing but minus infinity.
    pub fn process(&self, scores: &[f32], candidates: &mut Candidates) -> Result<Distribution> {
        if !self.filters(scores.len()) {
            return Distribution::of_all(scores, self.rate());
        }
        let (top_k, top_p) = (self.top_k > 0 && self.top_k < scores.len(), self.top_p < 1.0);
        let max = candidates.measure(scores)?;
        let all = Distribution::unfiltered(max, self.rate());
        // The weight of the best token is 1, so min-p is a least weight, and this is its score.
        let floor = max + self.distance();
        if !top_k && !top_p {
            candidates.gather(scores, floor);
            return Ok(Distribution { floor, total: weights(&all, &candidates.keys), ..all });
        }
        if top_k {
            candidates.gather_best(scores, self.top_k);
            candidates.keys.select_nth_unstable(self.top_k - 1);
            candidates.keys.truncate(self.top_k);
        }
        if top_p {
            let total = if top_k { weights(&all, &candidates.keys) } else { kernels::sum_exp(scores, max, all.rate) };
            let share = f64::from(self.top_p) * total;
            if !top_k {
                candidates.gather_share(scores, share, &all);
            }
            let nucleus = nucleus(&mut candidates.keys, share, |keys| weights(&all, keys));
            candidates.keys.truncate(nucleus);
        }
        let &worst = candidates.keys.last().expect("the best remains");
        let (floor, cut) = match score_of(worst) {
            score if score < floor => (floor, usize::MAX),
            score => (score, token_of(worst) + 1),
        };
        candidates.keys.retain(|&key| score_of(key) >= floor);
        Ok(Distribution { floor, cut, total: weights(&all, &candidates.keys), ..all })
    }

    /// [`Sampler::process`] for a row that `make` writes. `make` calls its second argument with each part that it has
    /// written. Without filters, the row is not read again.
    pub fn process_made(
        &self,
        scores: &mut [f32],
        candidates: &mut Candidates,
        make: impl FnOnce(&mut [f32], &mut dyn FnMut(&[f32])) -> Result<()>,
    ) -> Result<Distribution> {
        let filters = self.filters(scores.len());
        let mut normaliser = Normaliser::new(self.rate());
        make(scores, &mut |part| {
            if !filters {
                normaliser.add(part);
            }
        })?;
        if filters {
            self.process(scores, candidates)
        } else {
            Distribution::normalised(normaliser.result(), self.rate())
        }
    }

    /// The filter, as a device takes it.
    pub fn filter(&self) -> Filter {
        if self.is_greedy() {
            return Filter::plain(self.rate());
        }
        Filter { rate: self.rate(), top_k: self.top_k, top_p: self.top_p, distance: self.distance() }
    }

    /// How far below the largest score min-p lets a token be, as a negative number.
    fn distance(&self) -> f32 {
        if self.min_p > 0.0 { self.temperature * self.min_p.ln() } else { f32::NEG_INFINITY }
    }

    /// Whether any filter may drop tokens of a row of so many scores.
    fn filters(&self, vocab_size: usize) -> bool {
        (self.top_k > 0 && self.top_k < vocab_size) || self.top_p < 1.0 || self.min_p > 0.0
    }

    /// One over the temperature; 1 for the greedy sampler.
    pub fn rate(&self) -> f32 {
        if self.is_greedy() { 1.0 } else { (1.0 / self.temperature).min(f32::MAX) }
    }
}

/// The sum of the weights of these tokens.
fn weights(distribution: &Distribution, keys: &[u64]) -> f64 {
    keys.iter().map(|&key| f64::from(distribution.weight(score_of(key)))).sum()
}

/// The length of the shortest run of the best keys whose weight reaches `share`. Moves that run to the front, with its
/// worst key last.
pub(super) fn nucleus(keys: &mut [u64], share: f64, weights: impl Fn(&[u64]) -> f64) -> usize {
    // The run ends between `start` and `end`. The keys before `start` have the weight `reached`.
    let (mut start, mut end, mut reached) = (0, keys.len(), 0.0);
    while end - start > 32 {
        let middle = start + (end - start) / 2;
        keys[start..end].select_nth_unstable(middle - start);
        let half = weights(&keys[start..middle]);
        if reached + half >= share {
            end = middle;
        } else {
            (start, reached) = (middle, reached + half);
        }
    }
    keys[start..end].sort_unstable();
    for index in start..end {
        reached += weights(&keys[index..=index]);
        if reached >= share {
            return index + 1;
        }
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::{Best, Row, Weights, argmax};

    fn process(sampler: Sampler, scores: &[f32]) -> Vec<f32> {
        let distribution = sampler.process(scores, &mut Candidates::default()).unwrap();
        let mut out = vec![9.0; scores.len()];
        distribution.fill(scores, &mut out);
        // The weights to draw by are proportional to the probabilities, in pieces of any size.
        let mut weights = vec![9.0; scores.len()];
        for piece in [1, 3, 64, scores.len()] {
            let row = Row::Host(scores).weighted(&distribution);
            weights.chunks_mut(piece).enumerate().for_each(|(index, out)| row.write(index * piece, out).unwrap());
            assert!((kernels::sum(&weights) / row.total() - 1.0).abs() < 1e-6);
            let share = |weight: f32| (f64::from(weight) / row.total()) as f32;
            assert!(weights.iter().zip(&out).all(|(&weight, &p)| (share(weight) - p).abs() <= 1e-5 * p));
        }
        assert!((kernels::sum(&out) / distribution.sum() - 1.0).abs() < 1e-6);
        for (token, &probability) in out.iter().enumerate() {
            // Draws and acceptance use the same probabilities, to the last bit.
            assert_eq!(distribution.probability(scores, token), probability);
            let logarithm = distribution.log_probability_of(token, scores[token]);
            assert!(
                (logarithm.exp() - probability).abs() < 1e-6 && (logarithm == f32::NEG_INFINITY || logarithm <= 1e-6)
            );
        }
        out
    }

    fn check(sampler: Sampler, scores: &[f32], expected: &[f32]) {
        let out = process(sampler, scores);
        for (a, b) in out.iter().zip(expected) {
            assert!((a - b).abs() < 1e-6, "{sampler:?} of {scores:?}: {out:?}, not {expected:?}");
        }
    }

    /// log of 0.5, 0.25, 0.15, 0.1 in another order
    const SCORES: [f32; 4] = [-1.3862944, -std::f32::consts::LN_2, -std::f32::consts::LN_10, -1.89712];

    #[test]
    fn filters() {
        let sampler = |t, k, p, m| Sampler::new(t, k, p, m).unwrap();
        check(sampler(1.0, 0, 0.0, 0.0), &SCORES, &[0.25, 0.5, 0.1, 0.15]);
        check(sampler(1.0, 2, 0.0, 0.0), &SCORES, &[1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        check(sampler(1.0, 1, 0.0, 0.0), &SCORES, &[0.0, 1.0, 0.0, 0.0]);
        check(sampler(1.0, 99, 1.0, 0.0), &SCORES, &[0.25, 0.5, 0.1, 0.15]);
        // 0.5 + 0.25 reaches 0.7; the shortest run wins
        check(sampler(1.0, 0, 0.7, 0.0), &SCORES, &[1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        check(sampler(1.0, 0, 0.01, 0.0), &SCORES, &[0.0, 1.0, 0.0, 0.0]);
        // top-p sees what top-k left: 2/3 reaches 0.6 alone
        check(sampler(1.0, 2, 0.6, 0.0), &SCORES, &[0.0, 1.0, 0.0, 0.0]);
        // 0.25 / 0.5 is at least 0.4, 0.15 / 0.5 is not
        check(sampler(1.0, 0, 0.0, 0.4), &SCORES, &[1.0 / 3.0, 2.0 / 3.0, 0.0, 0.0]);
        // temperature 0.5 squares
        let squares: f32 = 0.25 + 0.0625 + 0.0225 + 0.01;
        check(
            sampler(0.5, 0, 0.0, 0.0),
            &SCORES,
            &[0.0625 / squares, 0.25 / squares, 0.01 / squares, 0.0225 / squares],
        );
        // temperature comes before top-p: at 0.5 the best holds 0.72
        check(sampler(0.5, 0, 0.7, 0.0), &SCORES, &[0.0, 1.0, 0.0, 0.0]);
        check(sampler(2.0, 3, 0.9, 0.8), &[0.0, 0.0, 0.0, -50.0], &[1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0, 0.0]);
    }

    #[test]
    fn ties_keep_the_lower_token() {
        check(Sampler::new(1.0, 2, 0.0, 0.0).unwrap(), &[0.0; 4], &[0.5, 0.5, 0.0, 0.0]);
        check(Sampler::new(1.0, 0, 0.5, 0.0).unwrap(), &[0.0; 4], &[0.5, 0.5, 0.0, 0.0]);
        check(Sampler::GREEDY, &[0.0, 1.0, 1.0], &[0.0, 1.0, 0.0]);
        check(Sampler::new(1.0, 1, 0.0, 0.0).unwrap(), &[-0.0, 0.0], &[1.0, 0.0]);
    }

    #[test]
    fn argmax_says_how_sure_it_is() {
        assert_eq!(argmax(&[0.0, 1.0, 1.0]).unwrap(), Best { token: 1, score: 1.0, margin: 0.0 });
        assert_eq!(argmax(&[0.0, 1.0, 0.5]).unwrap(), Best { token: 1, score: 1.0, margin: 0.5 });
        assert_eq!(argmax(&[3.0]).unwrap().margin, f32::INFINITY);
        assert!(
            argmax(&[0.0, 0.9995, 1.0]).unwrap().is_near_tie() && !argmax(&[0.0, 0.99, 1.0]).unwrap().is_near_tie()
        );
    }

    #[test]
    fn minus_infinity_is_impossible() {
        check(Sampler::new(1.0, 0, 0.0, 0.0).unwrap(), &[f32::NEG_INFINITY, 0.0], &[0.0, 1.0]);
        check(Sampler::new(1.0, 2, 0.99, 0.0).unwrap(), &[f32::NEG_INFINITY, 0.0, f32::NEG_INFINITY], &[0.0, 1.0, 0.0]);
    }

    #[test]
    fn bad_rows_are_errors() {
        for bad in [&[0.0, f32::NAN][..], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY; 2]] {
            let sampler = Sampler::new(1.0, 0, 0.0, 0.0).unwrap();
            let error = sampler.process(bad, &mut Candidates::default()).unwrap_err();
            assert_eq!(error.code(), 6, "{error}");
            assert_eq!(argmax(bad).unwrap_err().code(), 6);
        }
    }

    #[test]
    fn bad_settings_are_errors() {
        for (t, k, p, m) in [
            (-1.0, 0, 0.0, 0.0),
            (f32::NAN, 0, 0.0, 0.0),
            (f32::INFINITY, 0, 0.0, 0.0),
            (1.0, -1, 0.0, 0.0),
            (1.0, 0, 1.1, 0.0),
            (1.0, 0, f32::NAN, 0.0),
            (1.0, 0, 0.0, -0.1),
        ] {
            assert_eq!(Sampler::new(t, k, p, m).unwrap_err().code(), 1);
        }
    }

    #[test]
    fn limits_of_the_filters() {
        // More candidates than a first step of the search takes, and a share that only all together reach.
        let flat = vec![1.0; 1000];
        check(Sampler::new(1.0, 0, 0.9, 0.0).unwrap(), &flat, &[vec![1.0 / 900.0; 900], vec![0.0; 100]].concat());
        check(Sampler::new(1.0, 500, 0.0, 0.0).unwrap(), &flat, &[vec![1.0 / 500.0; 500], vec![0.0; 500]].concat());
        // A temperature so low that its inverse is infinite.
        check(Sampler::new(1e-40, 0, 0.0, 0.0).unwrap(), &SCORES, &[0.0, 1.0, 0.0, 0.0]);
        check(Sampler::new(1e-40, 0, 0.5, 0.1).unwrap(), &SCORES, &[0.0, 1.0, 0.0, 0.0]);
        check(Sampler::new(1e38, 3, 0.9, 0.0).unwrap(), &[0.0, 1.0, 2.0, 3.0], &[0.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 3.0]);
    }

    #[test]
    fn keys_are_ordered_best_first() {
        let scores = [f32::MAX, 1.0, 1e-40, 0.0, -1e-40, -1.0, f32::MIN, f32::NEG_INFINITY];
        for (token, pair) in scores.windows(2).enumerate() {
            assert!(key(pair[0], token) < key(pair[0], token + 1) && key(pair[0], 7) < key(pair[1], 0));
        }
        for score in scores {
            assert_eq!((score_of(key(score, 151_999)), token_of(key(score, 151_999))), (score, 151_999));
        }
        assert_eq!(key(0.0, 1), key(-0.0, 1));
    }

    /// The filters in double precision, by sorting everything. `None` if a running sum is so near a limit that single
    /// and double precision may fall on different sides.
    fn oracle(scores: &[f32], temperature: f32, k: i32, p: f32, m: f32) -> Option<Vec<f64>> {
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        if k > 0 {
            order.truncate(k as usize);
        }
        let best = f64::from(scores[order[0]]);
        let weight = |i: usize| ((f64::from(scores[i]) - best) / f64::from(temperature)).exp();
        let mut kept = Vec::new();
        let total: f64 = order.iter().map(|&i| weight(i)).sum();
        let mut running = 0.0;
        let mut close = false;
        for &i in &order {
            if p > 0.0 && !kept.is_empty() && running >= f64::from(p) * total {
                break;
            }
            kept.push(i);
            running += weight(i);
            close |= (running - f64::from(p) * total).abs() < 2e-6 * total;
        }
        close |= kept.iter().any(|&i| (weight(i) - f64::from(m)).abs() < 1e-5);
        kept.retain(|&i| weight(i) >= f64::from(m));
        let total: f64 = kept.iter().map(|&i| weight(i)).sum();
        let mut row = vec![0.0; scores.len()];
        kept.iter().for_each(|&i| row[i] = weight(i) / total);
        (!close || p == 0.0).then_some(row)
    }

    fn agree(scores: &[f32], temperature: f32, k: i32, p: f32, m: f32) {
        let found = process(Sampler::new(temperature, k, p, m).unwrap(), scores);
        for (token, expected) in oracle(scores, temperature, k, p, m).into_iter().flatten().enumerate() {
            let found = f64::from(found[token]);
            assert!(
                (found - expected).abs() < 1e-6,
                "token {token}: {found}, not {expected}, by {temperature}, {k}, {p}, {m}"
            );
        }
    }

    proptest::proptest! {
        /// Compares the filters with a naive version, on rows with many equal scores.
        #[test]
        fn filters_agree_with_a_naive_oracle(
            scores in proptest::collection::vec(-8i32..8, 1..1000),
            temperature in 0.2f32..3.0, k in 0i32..20, p in 0.0f32..1.0, m in 0.0f32..0.5,
            big in 0i32..1000,
        ) {
            let scores: Vec<f32> = scores.iter().map(|&s| s as f32 * 0.5).collect();
            agree(&scores, temperature, k, p, m);
            agree(&scores, temperature, big, p, m);
        }
    }

    /// Compares them on rows of real sizes, from peaked to flat ones, with all subsets of the filters.
    #[test]
    fn big_rows_agree_with_a_naive_oracle() {
        let mut rng = fastrand::Rng::with_seed(7);
        for vocab_size in [4_096, 32_000, 151_936] {
            for spread in [0.01, 1.0, 4.0] {
                let scores: Vec<f32> = (0..vocab_size)
                    .map(|_| {
                        spread * (0..6).map(|_| rng.f32() - 0.5).sum::<f32>()
                            + if rng.u32(..1000) == 0 { spread } else { 0.0 }
                    })
                    .collect();
                for (k, p, m) in [
                    (0, 0.0, 0.0),
                    (40, 0.0, 0.0),
                    (40, 0.9, 0.0),
                    (0, 0.9, 0.0),
                    (0, 0.5, 0.01),
                    (0, 0.0, 0.05),
                    (3_000, 0.95, 0.001),
                    (20_000, 0.3, 0.0),
                    (0, 0.999, 0.0),
                    (1, 0.5, 0.5),
                ] {
                    agree(&scores, 0.8, k, p, m);
                }
            }
        }
    }
}
