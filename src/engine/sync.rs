//! What threads wait by. `tests/queue` replaces this file to try out all interleavings.

pub use std::sync::atomic::{AtomicUsize, Ordering};
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub use std::thread::yield_now;
use std::time::Duration;

/// Wait until the variable is notified, but not for longer than this. The guard is that of the mutex.
pub fn wait_timeout<'a, T>(
    condvar: &Condvar,
    _: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    longest: Duration,
) -> MutexGuard<'a, T> {
    condvar.wait_timeout(guard, longest).expect("nobody panics with this lock").0
}
