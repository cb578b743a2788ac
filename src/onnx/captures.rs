//! What is known of the captures of a model: how many were made, and why no more are.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// So many captures of a model have to fail in a row before none is tried any more: one may, by what others do with the GPU meanwhile.
const FAILURES: u32 = 3;

/// What is known of the captures of a model.
#[derive(Debug, Default)]
pub struct Captures {
    made: AtomicU64,
    /// In a row.
    failed: AtomicU32,
    refused: OnceLock<String>,
}

impl Captures {
    /// How many were made.
    pub fn made(&self) -> u64 {
        self.made.load(Relaxed)
    }

    /// Why none is made any more, if so. Then all passes are run plainly, also those of widths that were captured.
    pub fn refused(&self) -> Option<&str> {
        self.refused.get().map(String::as_str)
    }

    /// Have none made any more.
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
            self.refuse(format!("{FAILURES} captures in a row have failed, the last one by this: {error}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_end_when_several_in_a_row_have_failed() {
        let captures = Captures::default();
        for _ in 0..2 {
            (1..FAILURES).for_each(|_| captures.fail(1, &"busy"));
            assert_eq!(captures.refused(), None);
            captures.succeed();
        }
        (0..FAILURES).for_each(|_| captures.fail(1, &"busy"));
        assert!(captures.refused().unwrap().contains("3 captures in a row have failed, the last one by this: busy"));
        assert_eq!(captures.made(), 2);
    }
}
