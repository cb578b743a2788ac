//! Rows of logits: one score for each token, on the host or on a GPU, and all that is computed on them.
//!
//! A [`Row`] answers by itself where it lies. A row on a GPU is copied to the host only if all of its scores are asked
//! for.

pub(crate) mod device;
mod distribution;
mod edited;
mod edits;
mod filter;
mod gpu;
pub mod kernels;
pub(crate) mod records;
mod row;
mod sampling;
mod sums;
mod weights;
pub(crate) mod widen;

pub use distribution::{Best, Distribution, NEAR_TIE, argmax, entropy, maximum};
pub use edits::{Change, Drops, Edits};
pub use filter::Filter;
pub use row::{
    DeviceAnswers, DeviceEdits, DeviceResidual, DeviceRow, DeviceRows, DeviceSums, PassUniforms, Row, RowToEdit, Term,
    UNDRAWN, WeightedRow,
};
pub use sampling::{Candidates, Sampler};
pub use weights::Weights;
