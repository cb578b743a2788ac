//! Histograms of what users and passes wait for.

use std::time::Duration;

use hdrhistogram::Histogram as Counts;
use serde_json::{Value, json};

/// Largest value: an hour in microseconds.
const MOST: u64 = 3_600_000_000;

/// Counts of values, in buckets whose width grows with the value. Recording allocates nothing.
pub struct Histogram {
    counts: Counts<u32>,
    sum: u64,
}

impl Histogram {
    /// No values. A quantile is right to so many digits.
    fn new(digits: u8) -> Self {
        // The arguments are constants that the crate accepts.
        let counts = Counts::new_with_bounds(1, MOST, digits).expect("the bounds are in order");
        Histogram { counts, sum: 0 }
    }

    /// Count a value.
    pub fn record(&mut self, value: u64) {
        self.record_alike(value, 1);
    }

    /// Count a time, in microseconds.
    pub fn record_time(&mut self, time: Duration) {
        self.record_times(time, 1);
    }

    /// Count a time so often.
    pub fn record_times(&mut self, time: Duration, times: usize) {
        self.record_alike(time.as_micros() as u64, times);
    }

    fn record_alike(&mut self, value: u64, times: usize) {
        self.counts.saturating_record_n(value.max(1), times as u32);
        self.sum += value * times as u64;
    }

    /// Number of values.
    pub fn count(&self) -> u64 {
        self.counts.len()
    }

    /// Sum of all values.
    pub fn sum(&self) -> u64 {
        self.sum
    }

    /// Number of values up to this one.
    pub fn up_to(&self, value: u64) -> u64 {
        self.counts.count_between(0, value)
    }

    /// The value that this share of all values does not exceed.
    pub fn quantile(&self, share: f64) -> u64 {
        self.counts.value_at_quantile(share)
    }

    /// As JSON, with values divided by `unit`; null members if there are no values.
    fn describe(&self, unit: f64) -> Value {
        let of = |value: u64| (self.count() > 0).then(|| value as f64 / unit);
        let bucket = |value: hdrhistogram::iterators::IterationValue<u32>| {
            json!([value.value_iterated_to() as f64 / unit, value.count_at_value()])
        };
        json!({
            "count": self.count(),
            "mean": (self.count() > 0).then(|| self.sum as f64 / self.count() as f64 / unit),
            "p50": of(self.quantile(0.5)),
            "p99": of(self.quantile(0.99)),
            "max": of(self.counts.max()),
            "buckets": self.counts.iter_recorded().map(bucket).collect::<Vec<_>>(),
        })
    }
}

/// What users wait for.
pub struct Waits {
    /// From the prompt to the end of the round that commits the first token, in microseconds.
    pub first_token: Histogram,
    /// From one round that commits tokens to the next, in microseconds.
    pub between_tokens: Histogram,
}

/// The passes of a model, or those that a session was part of. Passes that run alone by their nature do not count.
pub struct Passes {
    /// From the time when a session asks for a pass until the pass begins, in microseconds.
    pub queue: Histogram,
    /// Sessions of a pass.
    pub sessions: Histogram,
    /// Tokens of a pass, those of all sessions together.
    pub tokens: Histogram,
}

/// A pass that a session was part of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PassShape {
    /// How long the session has waited for it.
    pub queued: Duration,
    /// Sessions of the pass.
    pub sessions: usize,
    /// Tokens of all of them.
    pub tokens: usize,
    /// Whether the thread that asked for it ran it.
    pub is_led: bool,
}

impl Waits {
    /// Nothing was waited for; see [`Histogram::new`].
    pub fn new(digits: u8) -> Self {
        Waits { first_token: Histogram::new(digits), between_tokens: Histogram::new(digits) }
    }
}

impl Passes {
    /// No passes; see [`Histogram::new`].
    pub fn new(digits: u8) -> Self {
        Passes { queue: Histogram::new(digits), sessions: Histogram::new(digits), tokens: Histogram::new(digits) }
    }

    /// Count a pass, once for all its sessions.
    pub fn record_pass(&mut self, sessions: usize, tokens: usize) {
        self.sessions.record(sessions as u64);
        self.tokens.record(tokens as u64);
    }
}

impl Default for Passes {
    /// For all passes of a model.
    fn default() -> Self {
        Passes::new(2)
    }
}

/// What a session has waited for, and its passes. Quantiles are right to a twentieth, so that many sessions take little
/// memory.
pub struct SessionHistograms {
    waits: Waits,
    passes: Passes,
    /// When it began to wait for the next token, and whether that is the first one behind a prompt.
    since: Duration,
    is_first: bool,
}

impl SessionHistograms {
    /// A session that has waited for its first token since then.
    pub fn new(since: Duration) -> Self {
        SessionHistograms { waits: Waits::new(1), passes: Passes::new(1), since, is_first: true }
    }

    /// A prompt was appended.
    pub fn prompt(&mut self, now: Duration) {
        (self.since, self.is_first) = (now, true);
    }

    /// A round has committed tokens. Counts it in the histograms of the engine, too.
    pub fn tokens(&mut self, now: Duration, all: &mut Waits) {
        let waited = now.saturating_sub(self.since);
        for waits in [&mut self.waits, all] {
            if self.is_first { &mut waits.first_token } else { &mut waits.between_tokens }.record_time(waited);
        }
        (self.since, self.is_first) = (now, false);
    }

    /// The session was part of a pass.
    pub fn pass(&mut self, PassShape { queued, sessions, tokens, .. }: PassShape) {
        self.passes.queue.record_time(queued);
        self.passes.record_pass(sessions, tokens);
    }

    /// As `cos_session_describe` documents it.
    pub fn describe(&self) -> Value {
        let Passes { queue, sessions, tokens } = &self.passes;
        json!({
            "first_token_ms": self.waits.first_token.describe(1e3),
            "between_tokens_ms": self.waits.between_tokens.describe(1e3),
            "queue_ms": queue.describe(1e3),
            "pass_sessions": sessions.describe(1.0),
            "pass_tokens": tokens.describe(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_the_digits() {
        for (digits, error) in [(1, 0.07), (2, 0.01)] {
            let mut histogram = Histogram::new(digits);
            (1..=100_000).for_each(|value| histogram.record(value));
            for (share, value) in [(0.5, 50_000.0), (0.99, 99_000.0)] {
                let found = histogram.quantile(share) as f64;
                assert!((found / value - 1.0).abs() < error, "{digits} digits, {share}: {found}");
            }
            assert_eq!((histogram.count(), histogram.sum()), (100_000, 5_000_050_000));
            assert!((histogram.up_to(1000) as f64 / 1000.0 - 1.0).abs() < error);
        }
    }

    #[test]
    fn values_of_any_size_are_counted() {
        let mut histogram = Histogram::new(1);
        assert_eq!(histogram.describe(1.0)["p99"], Value::Null);
        [0, 1, MOST, 1 << 50].into_iter().for_each(|value| histogram.record(value));
        assert_eq!((histogram.count(), histogram.up_to(1), histogram.up_to(u64::MAX)), (4, 2, 4));
        let description = histogram.describe(1e3);
        assert_eq!((description["count"].as_u64(), description["buckets"].as_array().unwrap().len()), (Some(4), 2));
    }

    #[test]
    fn a_session_waits_for_a_first_token_behind_each_prompt() {
        let at = Duration::from_millis;
        let (mut session, mut all) = (SessionHistograms::new(at(0)), Waits::new(2));
        session.prompt(at(10));
        [at(40), at(45), at(50)].into_iter().for_each(|now| session.tokens(now, &mut all));
        session.prompt(at(100));
        session.tokens(at(110), &mut all);
        assert_eq!((all.first_token.count(), all.first_token.sum()), (2, 40_000));
        assert_eq!((all.between_tokens.count(), all.between_tokens.sum()), (2, 10_000));
        assert_eq!(session.describe()["first_token_ms"]["mean"], 20.0);
    }
}
