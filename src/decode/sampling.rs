//! From logits to the distribution that tokens are drawn from.

use crate::error::{Error, Result};

/// Two scores nearer than this are a near tie: passes of different widths may rank them differently, because
/// other kernels add in another order. For mixtures the scores are logarithms of probabilities.
pub const NEAR_TIE: f32 = 1e-3;

/// `process` of the design: temperature, then top-k, then top-p, then min-p, then softmax.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampler {
    temperature: f32,
    top_k: usize,
    top_p: f32,
    min_p: f32,
}

/// Buffers that [`Sampler::process`] reuses, so that it never allocates after its first call.
#[derive(Debug, Default)]
pub struct Candidates {
    ids: Vec<u32>,
}

impl Candidates {
    /// Room for a vocabulary.
    pub fn new(vocab_size: usize) -> Self {
        Candidates { ids: Vec::with_capacity(vocab_size) }
    }
}

impl Sampler {
    /// The first maximum, always.
    pub const GREEDY: Sampler = Sampler { temperature: 0.0, top_k: 0, top_p: 0.0, min_p: 0.0 };

    /// `temperature` 0 is greedy; `top_k` 0, `top_p` 0 or 1, and `min_p` 0 are off.
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
        Ok(Sampler { temperature, top_k: top_k as usize, top_p: if top_p == 0.0 { 1.0 } else { top_p }, min_p })
    }

    /// Whether the first maximum is always taken. Then [`Sampler::process`] must not be called.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Turn a row of scores into probabilities.
    ///
    /// Among equal scores the lower token ranks first: exactly `top_k` tokens remain, and top-p keeps the shortest
    /// run of tokens, best first, whose share reaches `top_p`. Scores of minus infinity get probability 0.
    /// NaN, plus infinity, or a row of nothing but minus infinity is [`Error::Numeric`].
    pub fn process(&self, scores: &[f32], probabilities: &mut [f32], candidates: &mut Candidates) -> Result<()> {
        debug_assert!(!self.is_greedy() && scores.len() == probabilities.len());
        let max = maximum(scores)?;
        let weight = |score: f32| ((score - max) / self.temperature).exp();
        if (self.top_k == 0 || self.top_k >= scores.len()) && self.top_p >= 1.0 {
            // Only min-p is left, and a weight relative to the best is the weight itself.
            let mut total = 0.0f64;
            for (probability, &score) in probabilities.iter_mut().zip(scores) {
                let weight = weight(score);
                *probability = if weight < self.min_p { 0.0 } else { weight };
                total += f64::from(*probability);
            }
            let scale = (1.0 / total) as f32;
            probabilities.iter_mut().for_each(|probability| *probability *= scale);
            return Ok(());
        }

        let ids = &mut candidates.ids;
        ids.clear();
        ids.extend(0..scores.len() as u32);
        let kept = if self.top_k > 0 { self.top_k.min(ids.len()) } else { ids.len() };
        if kept < ids.len() {
            ids.select_nth_unstable_by(kept - 1, |&a, &b| rank(scores, a, b));
            ids.truncate(kept);
        }
        if self.top_p < 1.0 {
            let total: f64 = ids.iter().map(|&id| f64::from(weight(scores[id as usize]))).sum();
            let nucleus = nucleus(scores, ids, self.top_p as f64 * total, |id| f64::from(weight(scores[id as usize])));
            ids.truncate(nucleus);
        }
        probabilities.fill(0.0);
        let mut total = 0.0f64;
        for &id in ids.iter() {
            let weight = weight(scores[id as usize]);
            if weight >= self.min_p {
                probabilities[id as usize] = weight;
                total += f64::from(weight);
            }
        }
        let scale = (1.0 / total) as f32;
        ids.iter().for_each(|&id| probabilities[id as usize] *= scale);
        Ok(())
    }
}

/// Best first: higher score, then lower token.
fn rank(scores: &[f32], a: u32, b: u32) -> std::cmp::Ordering {
    scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b))
}

/// Order `ids` so that its front is the shortest best-first run whose weight reaches `share`; returns its length.
fn nucleus(scores: &[f32], ids: &mut [u32], share: f64, weight: impl Fn(u32) -> f64) -> usize {
    // The nucleus is nearly always short, so a growing front is sorted rather than the whole vocabulary.
    let (mut sorted, mut reached, mut front) = (0, 0.0, 64);
    while sorted < ids.len() {
        let end = front.min(ids.len());
        if end < ids.len() {
            ids[sorted..].select_nth_unstable_by(end - 1 - sorted, |&a, &b| rank(scores, a, b));
        }
        ids[sorted..end].sort_unstable_by(|&a, &b| rank(scores, a, b));
        for (index, &id) in ids[sorted..end].iter().enumerate() {
            reached += weight(id);
            if reached >= share {
                return sorted + index + 1;
            }
        }
        (sorted, front) = (end, front * 4);
    }
    ids.len()
}

/// The largest score; an error if there is none that is finite, or if any is NaN or plus infinity.
pub fn maximum(scores: &[f32]) -> Result<f32> {
    let mut max = f32::NEG_INFINITY;
    let mut nan = false;
    for &score in scores {
        max = if score > max { score } else { max };
        nan |= score.is_nan();
    }
    if nan || !max.is_finite() {
        let what = if nan {
            "NaN"
        } else if max > 0.0 {
            "plus infinity"
        } else {
            "minus infinity everywhere"
        };
        return Err(Error::Numeric(format!("a row of logits holds {what}")));
    }
    Ok(max)
}

/// The first maximum of a row, and whether another score is a near tie with it: at least `near(maximum)`.
pub fn argmax(scores: &[f32], near: impl Fn(f32) -> f32) -> Result<(usize, bool)> {
    let max = maximum(scores)?;
    let best = scores.iter().position(|&score| score == max).unwrap_or(0);
    let floor = near(max);
    let rivals: u32 = scores.iter().map(|&score| u32::from(score >= floor)).sum();
    Ok((best, rivals > 1))
}

/// [`argmax`] for scores in the domain of logits.
pub fn argmax_logits(scores: &[f32]) -> Result<(usize, bool)> {
    argmax(scores, |max| max - NEAR_TIE)
}

/// The natural logarithm of a token's share of the plain softmax; the scores hold a finite maximum, and no NaN.
pub fn log_softmax(scores: &[f32], token: usize) -> f32 {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = scores.iter().map(|&score| f64::from((score - max).exp())).sum();
    (f64::from(scores[token]) - f64::from(max) - total.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(sampler: Sampler, scores: &[f32]) -> Vec<f32> {
        let mut out = vec![9.0; scores.len()];
        sampler.process(scores, &mut out, &mut Candidates::default()).unwrap();
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
        assert_eq!(argmax_logits(&[0.0, 1.0, 1.0]).unwrap(), (1, true));
        assert_eq!(argmax_logits(&[0.0, 1.0, 0.5]).unwrap(), (1, false));
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
            let error = sampler.process(bad, &mut [0.0; 2], &mut Candidates::default()).unwrap_err();
            assert_eq!(error.code(), 6, "{error}");
            assert_eq!(argmax_logits(bad).unwrap_err().code(), 6);
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

    proptest::proptest! {
        /// The filters against a naive version that sorts everything in double precision.
        #[test]
        fn filters_agree_with_a_naive_oracle(
            scores in proptest::collection::vec(-8i32..8, 1..300),
            temperature in 0.2f32..3.0, k in 0i32..20, p in 0.0f32..1.0, m in 0.0f32..0.5,
        ) {
            let scores: Vec<f32> = scores.iter().map(|&s| s as f32 * 0.5).collect();
            let out = process(Sampler::new(temperature, k, p, m).unwrap(), &scores);
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            if k > 0 { order.truncate(k as usize); }
            let weight = |i: usize| ((f64::from(scores[i]) - f64::from(scores[order[0]])) / f64::from(temperature)).exp();
            let mut kept = Vec::new();
            let total: f64 = order.iter().map(|&i| weight(i)).sum();
            let mut running = 0.0;
            let mut close = false;
            for &i in &order {
                if p > 0.0 && !kept.is_empty() && running >= f64::from(p) * total { break; }
                kept.push(i);
                running += weight(i);
                close |= (running - f64::from(p) * total).abs() < 1e-5 * total;
            }
            close |= kept.iter().any(|&i| (weight(i) - f64::from(m)).abs() < 1e-5);
            kept.retain(|&i| weight(i) >= f64::from(m));
            let total: f64 = kept.iter().map(|&i| weight(i)).sum();
            // Where a running sum lies on a limit, single and double precision may fall on either side.
            if !close {
                for (i, &found) in out.iter().enumerate() {
                    let expected = if kept.contains(&i) { weight(i) / total } else { 0.0 };
                    proptest::prop_assert!((f64::from(found) - expected).abs() < 1e-5);
                }
            }
        }
    }
}
