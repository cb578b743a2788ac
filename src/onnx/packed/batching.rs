//! Whether a model has packed passes.

use std::sync::Arc;

use super::passes::PackedPasses;

/// Whether passes of a model serve several sequences at once.
#[derive(Clone, Default)]
pub enum Batching {
    /// They do.
    Packed(Arc<PackedPasses>),
    /// Each sequence has its own, for this reason.
    Alone(String),
    /// It is not known yet.
    #[default]
    Untried,
}
