//! The time of a model's passes by all their tokens, for sessions that share passes.
//!
//! It is nearly flat as long as the weights are what a pass reads, then linear, with steps where other kernels take
//! over. So there is a mean for each of many ranges, and nothing is assumed between them but a straight line.

/// Ranges of tokens from a power of two to the next, and powers of two.
const PARTS: usize = 4;
const OCTAVES: usize = 16;

/// Passes that a mean remembers: few, so that it follows a machine that becomes busy.
const MEMORY: f64 = 16.0;

/// A pass counts as at most so many times slower than expected. Another process may take the machine for a moment.
const OUTLIER: f64 = 3.0;

/// Share of the time that grows with the tokens, where nothing is known of larger passes.
const GROWING: f64 = 0.5;

/// What is known of a range of tokens: means of tokens and seconds, and the passes that they rest on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Known {
    tokens: f64,
    seconds: f64,
    passes: f64,
}

/// Seconds of the passes of a model, by their tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    ranges: [Known; PARTS * OCTAVES],
}

impl Default for Curve {
    fn default() -> Self {
        Curve { ranges: [Known::default(); PARTS * OCTAVES] }
    }
}

impl Curve {
    /// Learn that a pass over so many tokens took `seconds`.
    pub fn record(&mut self, tokens: usize, seconds: f64) {
        if tokens == 0 || seconds <= 0.0 || !seconds.is_finite() {
            return;
        }
        let tokens = tokens as f64;
        let index = (PARTS as f64 * tokens.log2()).round() as usize;
        let known = &mut self.ranges[index.min(PARTS * OCTAVES - 1)];
        known.passes = (known.passes + 1.0).min(MEMORY);
        let most = if known.passes > 1.0 { OUTLIER * known.seconds } else { f64::INFINITY };
        known.seconds += (seconds.min(most) - known.seconds) / known.passes;
        known.tokens += (tokens - known.tokens) / known.passes;
    }

    /// Expected seconds of a pass over so many tokens; `None` before the first pass.
    pub fn at(&self, tokens: f64) -> Option<f64> {
        let known = || self.ranges.iter().filter(|known| known.passes > 0.0);
        let below = known().rev().find(|known| known.tokens <= tokens);
        let above = known().find(|known| known.tokens > tokens);
        match (below, above) {
            (Some(below), Some(above)) => {
                let share = (tokens - below.tokens) / (above.tokens - below.tokens);
                Some(below.seconds + share * (above.seconds - below.seconds))
            }
            (Some(last), None) => Some(last.seconds * (1.0 + GROWING * (tokens / last.tokens - 1.0))),
            (None, Some(first)) => Some(first.seconds),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_that_are_flat_and_then_linear_are_learned() {
        let time = |tokens: usize| 1.0 + 0.01 * tokens.saturating_sub(64) as f64;
        let mut curve = Curve::default();
        assert_eq!(curve.at(1.0), None);
        for _ in 0..20 {
            [1, 8, 64, 100, 128, 200, 256].into_iter().for_each(|tokens| curve.record(tokens, time(tokens)));
        }
        for tokens in [1, 5, 30, 64, 110, 128, 180, 256] {
            let found = curve.at(tokens as f64).unwrap();
            assert!((found / time(tokens) - 1.0).abs() < 0.03, "{tokens}: {found}");
        }
        let (last, larger) = (curve.at(256.0).unwrap(), curve.at(512.0).unwrap());
        assert!((1.4..1.6).contains(&(larger / last)), "{larger}");
    }

    #[test]
    fn it_follows_a_machine_that_becomes_busy_and_no_outlier() {
        let mut curve = Curve::default();
        (0..50).for_each(|_| curve.record(10, 1.0));
        curve.record(10, 1000.0);
        assert!(curve.at(10.0).unwrap() < 1.2);
        (0..60).for_each(|_| curve.record(10, 2.0));
        assert!((curve.at(10.0).unwrap() - 2.0).abs() < 0.1);
        [(0, 1.0), (5, f64::NAN), (5, -1.0)].into_iter().for_each(|(tokens, seconds)| curve.record(tokens, seconds));
        curve.record(1 << 30, 5.0);
        assert_eq!(curve.at((1u64 << 30) as f64), Some(5.0));
    }
}
