//! What threads wait by. `tests/queue` replaces this file to try out all interleavings.

pub use std::sync::atomic::{AtomicUsize, Ordering};
pub use std::sync::{Arc, Condvar, Mutex, MutexGuard};
pub use std::thread::yield_now;
