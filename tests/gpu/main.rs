//! Models on a GPU. `scripts/gpu-check` runs this program on a machine with a GPU. Without one, the kernels and the
//! sessions on many threads run on the processor, and the other tests say why they are skipped.

#[path = "../common/mod.rs"]
mod common;
#[path = "../conformance/stats.rs"]
mod stats;

mod cuda;
mod kernels;
mod shapes;
mod threads;
