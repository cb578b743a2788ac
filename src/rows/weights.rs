//! Weights to draw by.

use super::kernels;
use crate::error::Result;

/// Weights to draw by: not negative, not all 0. They are made piece by piece, because a draw seldom needs all: a row of
/// a large vocabulary is then neither written nor read again.
pub trait Weights {
    /// Number of weights.
    fn count(&self) -> usize;

    /// Their sum.
    fn total(&self) -> f64;

    /// Write the weights from index `start` on. An error if a device fails.
    fn write(&self, start: usize, out: &mut [f32]) -> Result<()>;

    /// The index at which the sum from the front passes `share`, if it is known without writing the weights.
    fn find(&self, _share: f64) -> Result<Option<usize>> {
        Ok(None)
    }
}

impl Weights for [f32] {
    fn count(&self) -> usize {
        self.len()
    }

    fn total(&self) -> f64 {
        kernels::sum(self)
    }

    fn write(&self, start: usize, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(&self[start..start + out.len()]);
        Ok(())
    }
}
