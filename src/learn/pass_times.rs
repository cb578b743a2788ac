//! The time of a model's passes by all their tokens, for sessions that share passes.
//!
//! It is nearly flat as long as the weights are what a pass reads, then linear, with steps where other kernels take
//! over. So there is a mean for each of many ranges, and nothing is assumed between them but a straight line. A machine
//! that becomes busy is busy for all ranges: those that no pass shows at the moment move along.

use super::steady::STRANGE;

/// Ranges of tokens from a power of two to the next, and powers of two.
const PARTS: usize = 4;
const OCTAVES: usize = 16;

/// Passes that a mean remembers: few, so that it follows a machine that becomes busy.
const MEMORY: f64 = 16.0;

/// Numbers of passes after which a range is stale, and passes that its mean counts for then.
const FRESH: u64 = 16;
const STALE_MEMORY: f64 = 1.0;

/// Share of the time that grows with the tokens, where nothing is known of larger passes.
const GROWING: f64 = 0.5;

/// What is known of a range of tokens: means of tokens and seconds, and the passes that they rest on.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Known {
    tokens: f64,
    seconds: f64,
    passes: f64,
    /// Its last pass: seconds, and its number. Passes at the same time have one number.
    last: (f64, u64),
    /// The number of its last pass that ran alone.
    alone: Option<u64>,
}

/// The range of so many tokens.
fn range(tokens: usize) -> usize {
    ((PARTS as f64 * (tokens as f64).log2()).round() as usize).min(PARTS * OCTAVES - 1)
}

impl Known {
    /// Whether it was seen of late, at the pass of this number.
    fn is_fresh(&self, now: u64) -> bool {
        self.passes > 0.0 && now.saturating_sub(self.last.1) < FRESH
    }

    /// Whether a pass of it ran alone of late.
    fn is_alone(&self, now: u64) -> bool {
        self.alone.is_some_and(|alone| now.saturating_sub(alone) < FRESH)
    }
}

/// Seconds of the passes of a model, by their tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    ranges: [Known; PARTS * OCTAVES],
    /// The number of its last pass.
    now: u64,
}

impl Default for Curve {
    fn default() -> Self {
        Curve { ranges: [Known::default(); PARTS * OCTAVES], now: 0 }
    }
}

impl Curve {
    /// Learn that a pass over so many tokens took `seconds` alone. `now` is its number among the passes of all models.
    pub fn record(&mut self, tokens: usize, seconds: f64, now: u64) {
        if self.learn(tokens, seconds, now) {
            self.ranges[range(tokens)].alone = Some(now);
        }
    }

    /// Returns whether it is possible that a pass takes so long.
    fn learn(&mut self, tokens: usize, seconds: f64, now: u64) -> bool {
        if tokens == 0 || seconds <= 0.0 || !seconds.is_finite() {
            return false;
        }
        self.now = now;
        let (index, tokens) = (range(tokens), tokens as f64);
        let known = &mut self.ranges[index];
        let (before, memory) = (*known, if known.is_fresh(now) { MEMORY } else { STALE_MEMORY + 1.0 });
        known.passes = (known.passes + 1.0).min(memory);
        // Another process may take the machine for a moment. If it stays, the next pass is as slow.
        let was_strange = known.last.0 > STRANGE * known.seconds;
        let most = if known.passes > 1.0 && !was_strange { STRANGE * known.seconds } else { f64::INFINITY };
        known.seconds += (seconds.min(most) - known.seconds) / known.passes;
        known.tokens += (tokens - known.tokens) / known.passes;
        known.last = (seconds, now);
        let moved = if before.passes > 0.0 { known.seconds / before.seconds } else { 1.0 };
        self.move_stale(index, moved);
        true
    }

    /// Learn from a pass that ran beside others: alone it takes `most` seconds or less. If less is expected, it takes
    /// `scaled`, unless passes that ran alone of late tell better.
    pub fn record_overlapped(&mut self, tokens: usize, most: f64, scaled: f64, now: u64) {
        let seconds = match self.at(tokens as f64) {
            Some(expected) if expected > most => most,
            Some(expected) if scaled <= expected || self.ranges[range(tokens)].is_alone(now) => {
                self.note(tokens, now);
                return;
            }
            _ => scaled,
        };
        self.learn(tokens, seconds, now);
    }

    /// A pass over so many tokens took what is known of them.
    fn note(&mut self, tokens: usize, now: u64) {
        let known = &mut self.ranges[range(tokens)];
        if known.passes > 0.0 {
            (known.last.1, self.now) = (now, now);
        }
    }

    /// A range has moved by this factor. Those that are stale move along, and a pass over more tokens takes no less.
    fn move_stale(&mut self, index: usize, moved: f64) {
        let (now, seconds) = (self.now, self.ranges[index].seconds);
        // Each of the fresh ranges moves by itself, so it has a part in what moves the others.
        let moved = moved.powf(1.0 / self.ranges.iter().filter(|known| known.is_fresh(now)).count() as f64);
        let is_stale = |(_, known): &(usize, &mut Known)| known.passes > 0.0 && !known.is_fresh(now);
        for (other, known) in self.ranges.iter_mut().enumerate().filter(is_stale) {
            let expected = moved * known.seconds;
            let expected = if other < index { expected.min(seconds) } else { expected.max(seconds) };
            known.last.0 *= expected / known.seconds;
            known.seconds = expected;
        }
    }

    /// Conditions have changed. Only the last passes tell what one takes now, if the model has run of late.
    pub fn forget(&mut self, now: u64) {
        if self.ranges.iter().any(|known| known.is_fresh(now)) {
            for known in &mut self.ranges {
                let fresh = Known { seconds: known.last.0, passes: 1.0, ..*known };
                *known = if known.is_fresh(now) { fresh } else { Known::default() };
            }
        }
    }

    /// Expected seconds of a pass over so many tokens; `None` before the first pass.
    pub fn at(&self, tokens: f64) -> Option<f64> {
        let mut below: Option<&Known> = None;
        for known in self.ranges.iter().filter(|known| known.passes > 0.0) {
            if known.tokens > tokens {
                let Some(below) = below else { return Some(known.seconds) };
                let share = (tokens - below.tokens) / (known.tokens - below.tokens);
                return Some(below.seconds + share * (known.seconds - below.seconds));
            }
            below = Some(known);
        }
        below.map(|last| last.seconds * (1.0 + GROWING * (tokens / last.tokens - 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A curve that has seen these passes, given as (tokens, seconds), so many times.
    fn see(curve: &mut Curve, times: usize, passes: &[(usize, f64)]) {
        for &(tokens, seconds) in (0..times).flat_map(|_| passes) {
            curve.record(tokens, seconds, curve.now + 1);
        }
    }

    #[test]
    fn passes_that_are_flat_and_then_linear_are_learned() {
        let time = |tokens: usize| 1.0 + 0.01 * tokens.saturating_sub(64) as f64;
        let mut curve = Curve::default();
        assert_eq!(curve.at(1.0), None);
        see(&mut curve, 20, &[1, 8, 64, 100, 128, 200, 256].map(|tokens| (tokens, time(tokens))));
        for tokens in [1, 5, 30, 64, 110, 128, 180, 256] {
            let found = curve.at(tokens as f64).unwrap();
            assert!((found / time(tokens) - 1.0).abs() < 0.03, "{tokens}: {found}");
        }
        let (last, larger) = (curve.at(256.0).unwrap(), curve.at(512.0).unwrap());
        assert!((1.4..1.6).contains(&(larger / last)), "{larger}");
    }

    #[test]
    fn passes_beside_others_tell_of_what_ran_alone_long_ago() {
        let mut curve = Curve::default();
        see(&mut curve, 20, &[(4, 1.0)]);
        assert!(curve.at(64.0).unwrap() > 8.0, "extrapolated");
        (0..9).for_each(|_| curve.record_overlapped(64, 2.0, 2.0, curve.now));
        assert!((2.0..2.1).contains(&curve.at(64.0).unwrap()), "{curve:?}");
        // One pass of 4 tokens ran alone just now.
        let now = curve.now;
        curve.record_overlapped(4, 3.0, 2.0, now);
        assert_eq!(curve.at(4.0), Some(1.0));
        (0..20).for_each(|pass| curve.record_overlapped(4, 3.0, 2.0, now + FRESH + pass));
        assert!(curve.at(4.0).unwrap() > 1.6, "{curve:?}");
    }

    #[test]
    fn it_follows_a_machine_that_becomes_busy_and_no_outlier() {
        let mut curve = Curve::default();
        see(&mut curve, 50, &[(10, 1.0)]);
        see(&mut curve, 1, &[(10, 1000.0)]);
        assert!(curve.at(10.0).unwrap() < 1.2);
        see(&mut curve, 60, &[(10, 2.0)]);
        assert!((curve.at(10.0).unwrap() - 2.0).abs() < 0.1);
        see(&mut curve, 1, &[(0, 1.0), (5, f64::NAN), (5, -1.0), (1 << 30, 5.0)]);
        assert_eq!(curve.at((1u64 << 30) as f64), Some(5.0));
    }

    #[test]
    fn ranges_that_no_pass_shows_move_along() {
        let mut curve = Curve::default();
        see(&mut curve, 100, &[(8, 1.0), (16, 1.5), (64, 2.0)]);
        // Only two of the ranges are seen. Then the machine becomes three times as slow.
        see(&mut curve, 20, &[(8, 1.0), (16, 1.5)]);
        see(&mut curve, 100, &[(8, 3.0), (16, 4.5)]);
        assert!((curve.at(64.0).unwrap() / 6.0 - 1.0).abs() < 0.2, "{curve:?}");
        // A few passes show what was not seen for long.
        see(&mut curve, 4, &[(64, 5.0)]);
        assert!((curve.at(64.0).unwrap() / 5.0 - 1.0).abs() < 0.1, "{curve:?}");
        // Passes over fewer tokens take no more.
        see(&mut curve, 60, &[(64, 2.0)]);
        assert!(curve.at(8.0).unwrap() < 2.1, "{curve:?}");
    }

    #[test]
    fn after_a_change_only_the_last_passes_count() {
        let mut curve = Curve::default();
        see(&mut curve, 20, &[(64, 2.0), (8, 1.0)]);
        see(&mut curve, 20, &[(8, 1.0)]);
        see(&mut curve, 1, &[(8, 4.0)]);
        let before = curve.clone();
        curve.forget(curve.now + FRESH);
        assert_eq!(curve, before, "the model has not run of late, so nothing is known better");
        curve.forget(curve.now);
        assert_eq!((curve.at(8.0), curve.at(16.0)), (Some(4.0), Some(6.0)));
    }
}
