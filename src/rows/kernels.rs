//! Loops over rows of scores, written so that the compiler vectorises them. The version for the processor's instruction
//! set is chosen at run time.
//!
//! A row gives the same bits on every machine: the number of lanes is fixed, and multiplications and additions are
//! fused only where the code says so. A processor without fused multiply-add (x86-64 before 2013) emulates it, slowly.

use multiversion::multiversion;

/// Lanes: elements that a loop processes side by side.
const LANES: usize = 16;

/// Elements of a block. A block is summed in single precision, and the sums of blocks in double. A block without any
/// score that matters is skipped as a whole.
pub const BLOCK: usize = 128;

/// Below `e^-NO_DIGITS`, exponentials lose digits in single precision.
const NO_DIGITS: f32 = 87.3;

/// `e^(x · rate)` for `x ≤ 0`, within 3 ulp. Results below `e^-NO_DIGITS` are 0.
#[derive(Debug, Clone, Copy)]
pub struct Exp {
    /// `rate / ln 2`, as the sum of a high and a low part: the power of 2 for each unit of `x`.
    powers: (f32, f32),
    /// For `x` below this the result is 0.
    least: f32,
}

impl Exp {
    /// The exponential for a `rate` above 0, which is one over the temperature.
    pub fn new(rate: f32) -> Self {
        let powers = (f64::from(rate) * std::f64::consts::LOG2_E).min(f64::from(f32::MAX));
        Exp {
            powers: (powers as f32, (powers - f64::from(powers as f32)) as f32),
            least: (-NO_DIGITS / rate).max(f32::MIN),
        }
    }

    /// `e^(x · rate)`, computed as `2^n · 2^r` with an integer `n` and `|r| ≤ 1/2`.
    ///
    /// `2^r` is approximated by the polynomial of degree 5 that has the least relative error (9.2e-8) among those that
    /// are 1 at 0.
    #[inline(always)]
    #[allow(clippy::approx_constant, clippy::excessive_precision, reason = "fitted; the last one is near ln 2")]
    pub fn of(self, x: f32) -> f32 {
        // Adding this constant rounds to an integer, which is then in the last bits of the sum.
        const ROUND: f32 = 1.5 * (1 << 23) as f32;
        let shifted = x.mul_add(self.powers.0, ROUND);
        let n = shifted - ROUND;
        let r = x.mul_add(self.powers.1, x.mul_add(self.powers.0, -n));
        let mut y = 1.3264727e-3f32;
        y = y.mul_add(r, 9.671_513e-3);
        y = y.mul_add(r, 5.5507337e-2);
        y = y.mul_add(r, 2.4022242e-1);
        y = y.mul_add(r, 6.931_469_8e-1);
        y = y.mul_add(r, 1.0);
        let power = f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23));
        if x < self.least { 0.0 } else { power }
    }
}

/// The largest score; NaN if any score is NaN, minus infinity for an empty row.
pub fn maximum(scores: &[f32]) -> f32 {
    let mut maxima = [f32::NEG_INFINITY];
    block_maxima(scores, scores.len().max(1), &mut maxima)
}

/// Write the largest score of each `block` consecutive scores. Returns the [`maximum`] of the row.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn block_maxima(scores: &[f32], block: usize, maxima: &mut [f32]) -> f32 {
    let mut max = f32::NEG_INFINITY;
    const PAIR: usize = 2 * LANES; // two vectors, since with one each step waits for the last
    let mut nan = [0u32; PAIR];
    for (block, out) in scores.chunks(block).zip(maxima) {
        let (rows, rest) = block.as_chunks::<PAIR>();
        let mut lanes = [f32::NEG_INFINITY; PAIR];
        for row in rows {
            for lane in 0..PAIR {
                lanes[lane] = if row[lane] > lanes[lane] { row[lane] } else { lanes[lane] };
                nan[lane] |= u32::from(row[lane].is_nan());
            }
        }
        for (lane, &score) in rest.iter().enumerate() {
            lanes[lane] = if score > lanes[lane] { score } else { lanes[lane] };
            nan[lane] |= u32::from(score.is_nan());
        }
        *out = largest(lanes);
        max = if *out > max { *out } else { max };
    }
    if nan.contains(&1) { f32::NAN } else { max }
}

#[inline(always)]
fn largest<const N: usize>(mut lanes: [f32; N]) -> f32 {
    let mut half = N / 2;
    while half > 0 {
        for lane in 0..half {
            lanes[lane] = if lanes[half + lane] > lanes[lane] { lanes[half + lane] } else { lanes[lane] };
        }
        half /= 2;
    }
    lanes[0]
}

/// The index of the first maximum, the maximum, and the largest other score. The maximum is NaN if any score is.
#[multiversion(targets("x86_64+avx2+fma"))] // vectors of 512 bits are a third slower here
pub fn best_two(scores: &[f32]) -> (usize, f32, f32) {
    let (mut best, mut second, mut start) = (f32::NEG_INFINITY, f32::NEG_INFINITY, 0);
    let mut nan = [0u32; LANES];
    for (index, block) in scores.chunks(4 * BLOCK).enumerate() {
        let (rows, rest) = block.as_chunks::<LANES>();
        let mut first = [f32::NEG_INFINITY; LANES];
        let mut other = [f32::NEG_INFINITY; LANES];
        let mut take = |lane: usize, score: f32| {
            let less = if score > first[lane] { first[lane] } else { score };
            first[lane] = if score > first[lane] { score } else { first[lane] };
            other[lane] = if less > other[lane] { less } else { other[lane] };
            nan[lane] |= u32::from(score.is_nan());
        };
        for row in rows {
            row.iter().enumerate().for_each(|(lane, &score)| take(lane, score));
        }
        rest.iter().enumerate().for_each(|(lane, &score)| take(lane, score));
        for lane in 0..LANES {
            if first[lane] > best {
                (second, best, start) = (best, first[lane], index * 4 * BLOCK);
            } else {
                second = second.max(first[lane]);
            }
            second = second.max(other[lane]);
        }
    }
    let token = start + scores[start..].iter().position(|&score| score == best).unwrap_or(0);
    (token, if nan.contains(&1) { f32::NAN } else { best }, second)
}

/// The sum of a term for each score, in a fixed number of lanes. The terms of scores below `floor` are 0, so blocks of
/// nothing else are skipped, as masked ones. A function would not be vectorised: its callers are compiled for several
/// processors, and it is not.
macro_rules! sum_in_lanes {
    ($scores:expr, $floor:expr, |$score:ident| $term:expr) => {{
        let mut totals = [0.0f64; LANES];
        let mut add = |scores: &[f32]| {
            if !any_reaches_inline(scores, $floor) {
                return;
            }
            let (rows, rest) = scores.as_chunks::<LANES>();
            let mut lanes = [0.0f32; LANES];
            for row in rows {
                for lane in 0..LANES {
                    let $score = row[lane];
                    lanes[lane] += $term;
                }
            }
            for (lane, &$score) in rest.iter().enumerate() {
                lanes[lane] += $term;
            }
            for lane in 0..LANES {
                totals[lane] += f64::from(lanes[lane]);
            }
        };
        let (blocks, rest) = $scores.as_chunks::<BLOCK>();
        blocks.iter().for_each(|block| add(block));
        add(rest);
        totals.into_iter().sum()
    }};
}

/// `Σ (score − max) · e^(score − max)`, without scores whose exponential is 0.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn sum_exp_times(scores: &[f32], max: f32) -> f64 {
    let exp = Exp::new(1.0);
    sum_in_lanes!(scores, max + exp.least, |score| {
        let below = (score - max).max(exp.least);
        below * exp.of(below)
    })
}

/// `Σ e^((score − max) · rate)`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn sum_exp(scores: &[f32], max: f32, rate: f32) -> f64 {
    let exp = Exp::new(rate);
    sum_in_lanes!(scores, max + exp.least, |score| exp.of(score - max))
}

/// Scores that [`Normaliser`] takes at once: few enough to stay in the cache, and enough to make the calls cheap.
const PIECE: usize = 1024;

/// The largest score of a row and `Σ e^((score − max) · rate)`, from a row that comes in parts and is read once.
///
/// A row fresh from a pass is not in the processor's caches, so a second read would be slow. The sum is rescaled
/// whenever a larger score comes.
#[derive(Debug, Clone, Copy)]
pub struct Normaliser {
    rate: f32,
    max: f32,
    total: f64,
}

impl Normaliser {
    /// The maximum and sum of no scores yet. `rate` is one over the temperature.
    pub fn new(rate: f32) -> Self {
        Normaliser { rate, max: f32::NEG_INFINITY, total: 0.0 }
    }

    /// Add the next scores of the row.
    pub fn add(&mut self, scores: &[f32]) {
        for scores in scores.chunks(PIECE) {
            let max = maximum(scores);
            if max > self.max || max.is_nan() {
                // The exponential of the standard library differs between systems.
                self.total *= libm::exp(f64::from(self.max - max) * f64::from(self.rate));
                self.max = max;
            }
            if self.max.is_nan() {
                return; // NaN stays NaN
            }
            if max > f32::NEG_INFINITY {
                self.total += sum_exp(scores, self.max, self.rate);
            }
        }
    }

    /// The [`maximum`] and the sum. The sum is meaningless unless the maximum is finite.
    pub fn result(self) -> (f32, f64) {
        (self.max, self.total)
    }
}

/// `out += weight · (e^((score − max) · rate) · scale)` for all scores of at least `floor`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn add_exp(scores: &[f32], max: f32, rate: f32, floor: f32, scale: f32, weight: f32, out: &mut [f32]) {
    let exp = Exp::new(rate);
    for (scores, out) in scores.chunks(BLOCK).zip(out.chunks_mut(BLOCK)) {
        if !any_reaches_inline(scores, floor) {
            continue;
        }
        for (&score, out) in scores.iter().zip(out) {
            let value = exp.of(score - max) * scale;
            *out += weight * if score >= floor { value } else { 0.0 };
        }
    }
}

/// Whether any score is at least `floor`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn any_reaches(scores: &[f32], floor: f32) -> bool {
    any_reaches_inline(scores, floor)
}

#[inline(always)]
fn any_reaches_inline(scores: &[f32], floor: f32) -> bool {
    scores.iter().fold(false, |any, &score| any | (score >= floor))
}

/// `out = weight · first + other · second`, but minus infinity where either score is. Returns false if any score is NaN
/// or plus infinity.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn sum_of_two((first, weight): (&[f32], f32), (second, other): (&[f32], f32), out: &mut [f32]) -> bool {
    let mut good = true;
    for ((&first, &second), out) in first.iter().zip(second).zip(out) {
        let impossible = (first == f32::NEG_INFINITY) | (second == f32::NEG_INFINITY);
        *out = if impossible { f32::NEG_INFINITY } else { weight * first + other * second };
        good &= (first < f32::INFINITY) & (second < f32::INFINITY);
    }
    good
}

/// `out += weight · score`, but minus infinity where the score is. Returns false if any score is NaN or plus infinity.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn add_scaled(scores: &[f32], weight: f32, out: &mut [f32]) -> bool {
    let mut good = true;
    for (&score, out) in scores.iter().zip(out) {
        *out = if score == f32::NEG_INFINITY { score } else { *out + weight * score };
        good &= score < f32::INFINITY;
    }
    good
}

/// Set the scores of all tokens to minus infinity whose bit in `words` is not set. Scores behind the last word stay.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn mask_by_bits(words: &[u32], scores: &mut [f32]) {
    for (scores, &word) in scores.chunks_mut(u32::BITS as usize).zip(words) {
        match word {
            u32::MAX => {}
            0 => scores.fill(f32::NEG_INFINITY),
            _ => {
                for (bit, score) in scores.iter_mut().enumerate() {
                    *score = if word >> bit & 1 == 1 { *score } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// Set `out` to minus infinity where the judge's score is below `floor`.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn mask(judge: &[f32], floor: f32, out: &mut [f32]) {
    for (&score, out) in judge.iter().zip(out) {
        // A minimum in every lane is faster than a conditional store.
        *out = out.min(if score < floor { f32::NEG_INFINITY } else { f32::INFINITY });
    }
}

/// Set negative values to 0. Returns whether any value is positive.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn keep_positive(values: &mut [f32]) -> bool {
    let mut any = false;
    for value in values {
        any |= *value > 0.0;
        *value = value.max(0.0);
    }
    any
}

/// The sum of the values, in double precision.
#[multiversion(targets("x86_64+avx512f+avx512bw+avx512dq+avx512vl+fma", "x86_64+avx2+fma"))]
pub fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            lanes[lane] += f64::from(row[lane]);
        }
    }
    lanes.into_iter().sum::<f64>() + rest.iter().map(|&value| f64::from(value)).sum::<f64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const INF: f32 = f32::INFINITY;

    #[test]
    fn exp_is_exact_to_three_ulp() {
        for rate in [1.0, 0.1, 1.0 / 0.7, 1e-38, 1e30] {
            let exp = Exp::new(rate);
            for step in 0..873_000 {
                let x = (step as f32 * -1e-4 / rate).max(f32::MIN);
                let exact = (f64::from(x) * f64::from(rate)).exp();
                let ulp = f64::from((exact as f32).next_up()) - f64::from(exact as f32);
                let found = exp.of(x);
                assert!((f64::from(found) - exact).abs() <= 3.0 * ulp, "e^({x} · {rate}): {found}, not {exact}");
            }
            let ends = [0.0, -0.0, -88.0 / rate, -INF].map(|x| exp.of(x));
            assert_eq!(ends, [1.0, 1.0, 0.0, 0.0]);
        }
        assert_eq!([0.0, -1e-30].map(|x| Exp::new(f32::MAX).of(x)), [1.0, 0.0]);
    }

    #[test]
    fn bad_scores_are_found_at_any_index() {
        for len in [1, 15, 16, 17, 128, 300, 1030] {
            for place in 0..len {
                let mut row = vec![-INF; len];
                row[place] = -3.0;
                let normalised = |row: &[f32]| {
                    let mut normaliser = Normaliser::new(0.5);
                    normaliser.add(row);
                    normaliser.result()
                };
                assert_eq!((maximum(&row), best_two(&row)), (-3.0, (place, -3.0, -INF)));
                assert_eq!(normalised(&row), (-3.0, 1.0));
                row[place] = f32::NAN;
                let (good, mut out) = (vec![0.0; len], vec![0.0; len]);
                let mut summed = |row: &[f32]| {
                    sum_of_two((row, 0.5), (&good, 1.0), &mut out)
                        || sum_of_two((&good, 1.0), (row, 0.5), &mut out)
                        || add_scaled(row, 0.5, &mut out)
                };
                assert!(maximum(&row).is_nan() && best_two(&row).1.is_nan() && !summed(&row));
                assert!(normalised(&row).0.is_nan());
                row[place] = INF;
                assert!(maximum(&row) == INF && best_two(&row).1 == INF && !summed(&row));
                assert_eq!(normalised(&row).0, INF);
            }
        }
        assert_eq!(maximum(&[-INF; 40]), -INF);
        assert_eq!(maximum(&[]), -INF);
    }

    proptest::proptest! {
        /// Each kernel agrees with a naive version of one line.
        #[test]
        fn kernels_agree_with_naive_versions(
            scores in proptest::collection::vec(-40i32..40, 1..1500), rate in 0.1f32..4.0, weight in -2.0f32..2.0,
            floor in -10f32..10.0, block in 1usize..300,
        ) {
            let scores: Vec<f32> = scores.iter().map(|&s| if s == -40 { -INF } else { s as f32 * 0.25 }).collect();
            let max = scores.iter().copied().fold(-INF, f32::max);
            let exact = |score: f32| (f64::from(score - max) * f64::from(rate)).exp();
            let near = |found: f64, expected: f64| (found - expected).abs() < 1e-5 * (1.0 + expected.abs());

            let mut maxima = vec![9.0; scores.len().div_ceil(block)];
            proptest::prop_assert_eq!(block_maxima(&scores, block, &mut maxima), max);
            let largest = |block: &[f32]| block.iter().copied().fold(-INF, f32::max);
            let naive: Vec<f32> = scores.chunks(block).map(largest).collect();
            proptest::prop_assert_eq!(maxima, naive);

            let first = scores.iter().position(|&score| score == max).unwrap();
            let others = scores.iter().enumerate().filter(|(token, _)| *token != first);
            let second = others.map(|(_, &score)| score).fold(-INF, f32::max);
            proptest::prop_assert_eq!(best_two(&scores), (first, max, second));
            proptest::prop_assert_eq!(any_reaches(&scores, floor), max >= floor);

            proptest::prop_assume!(max.is_finite());
            let total = sum_exp(&scores, max, rate);
            proptest::prop_assert!(near(total, scores.iter().map(|&score| exact(score)).sum()));
            let mut normaliser = Normaliser::new(rate);
            scores.chunks(block).for_each(|part| normaliser.add(part));
            let (greatest, added) = normaliser.result();
            proptest::prop_assert!(greatest == max && near(added, total));
            let mut out = vec![0.5; scores.len()];
            add_exp(&scores, max, rate, floor, 0.1, weight, &mut out);
            for (&score, &found) in scores.iter().zip(&out) {
                let share = if score >= floor { exact(score) * 0.1 } else { 0.0 };
                proptest::prop_assert!(near(f64::from(found), 0.5 + f64::from(weight) * share));
            }
            proptest::prop_assert!(near(sum(&out), out.iter().map(|&value| f64::from(value)).sum()));

            let mut sums = out.clone();
            proptest::prop_assert!(add_scaled(&scores, weight, &mut sums));
            for ((&score, &before), &found) in scores.iter().zip(&out).zip(&sums) {
                proptest::prop_assert_eq!(found, if score == -INF { -INF } else { before + weight * score });
            }
            let others: Vec<f32> = scores.iter().rev().copied().collect();
            let mut two = vec![9.0; scores.len()];
            proptest::prop_assert!(sum_of_two((&scores, weight), (&others, floor), &mut two));
            for ((&one, &other), &found) in scores.iter().zip(&others).zip(&two) {
                let impossible = one == -INF || other == -INF;
                proptest::prop_assert_eq!(found, if impossible { -INF } else { weight * one + floor * other });
            }
            let before = sums.clone();
            mask(&scores, floor, &mut sums);
            for ((&score, &before), &found) in scores.iter().zip(&before).zip(&sums) {
                proptest::prop_assert_eq!(found, if score < floor { -INF } else { before });
            }
            let mut values = scores.clone();
            proptest::prop_assert_eq!(keep_positive(&mut values), max > 0.0);
            proptest::prop_assert!(values.iter().zip(&scores).all(|(&value, &score)| value == score.max(0.0)));
        }
    }
}
