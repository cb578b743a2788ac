//! Locks that keep captures apart from calls of ONNX Runtime on other threads.

use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

// While a stream is captured, no thread may wait for the whole device. ONNX Runtime does so when it loads or frees a
// model, or uses something for the first time. The capture then fails, and so does the next call of that thread, which
// reports the error as its own. So a capture needs exclusive access to both locks.

/// Held shared while a model is loaded or freed. A capture does not wait for it, because a load may take long.
static LOADS: RwLock<()> = RwLock::new(());
/// Held shared while a pass runs that is not captured.
static RUNS: RwLock<()> = RwLock::new(());

/// How long a capture waits for running passes.
const PATIENCE: Duration = Duration::from_millis(5);

/// Hold the result while ONNX Runtime loads or frees a model.
pub fn loading() -> RwLockReadGuard<'static, ()> {
    LOADS.read()
}

/// Hold the result while ONNX Runtime runs a pass that is not captured. To avoid a deadlock, lock a [`super::Queue`]
/// first.
pub fn running() -> RwLockReadGuard<'static, ()> {
    RUNS.read()
}

/// Hold the result while a pass is captured. `None` if nothing can be captured now.
pub fn alone() -> Option<(RwLockWriteGuard<'static, ()>, RwLockWriteGuard<'static, ()>)> {
    Some((LOADS.try_write()?, RUNS.try_write_for(PATIENCE)?))
}
