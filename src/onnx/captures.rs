//! Counts the CUDA graphs that were captured for a model, and stops capturing when it keeps failing.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// Capturing stops after this many failures in a row. A single failure may be caused by other work on the GPU.
const FAILURES: u32 = 3;

/// The captures of all sequences of a model.
#[derive(Debug, Default)]
pub struct Captures {
    made: AtomicU64,
    /// Failures since the last success.
    failed: AtomicU32,
    refused: OnceLock<String>,
}

impl Captures {
    /// The number of graphs that were captured.
    pub fn made(&self) -> u64 {
        self.made.load(Relaxed)
    }

    /// The reason why graphs are neither captured nor launched any more. `None` while they are.
    pub fn refused(&self) -> Option<&str> {
        self.refused.get().map(String::as_str)
    }

    /// Stop capturing and launching graphs. Only the first reason is kept.
    pub fn refuse(&self, why: String) {
        _ = self.refused.set(why);
    }

    pub fn succeed(&self) {
        self.made.fetch_add(1, Relaxed);
        self.failed.store(0, Relaxed);
    }

    pub fn fail(&self, width: usize, error: &dyn std::fmt::Display) {
        tracing::warn!("a pass of {width} tokens could not be captured: {error}");
        if self.failed.fetch_add(1, Relaxed) + 1 >= FAILURES {
            self.refuse(format!("{FAILURES} captures in a row failed; the last error was: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capturing_stops_after_several_failures_in_a_row() {
        let captures = Captures::default();
        for _ in 0..2 {
            (1..FAILURES).for_each(|_| captures.fail(1, &"busy"));
            assert_eq!(captures.refused(), None);
            captures.succeed();
        }
        (0..FAILURES).for_each(|_| captures.fail(1, &"busy"));
        assert!(captures.refused().unwrap().contains("3 captures in a row failed; the last error was: busy"));
        assert_eq!(captures.made(), 2);
    }
}
