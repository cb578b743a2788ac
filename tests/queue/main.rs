//! Sessions whose threads share passes: the hand-over in all orders, and whole sessions under stress.

#[path = "../common/mod.rs"]
mod common;

mod asking;
mod batches;
mod handover;
mod memory;
mod prompts;
mod stress;

#[allow(dead_code)]
#[path = "../../src/engine/questions.rs"]
mod questions;
/// This file, `questions.rs`, `wait.rs` and `waiting.rs` as they are, on threads and locks whose order a scheduler
/// chooses.
#[allow(dead_code)] // the library uses what these tests do not
#[path = "../../src/engine/queue.rs"]
mod queue;
#[allow(dead_code)]
#[path = "../../src/engine/room.rs"]
mod room;
#[path = "../../src/engine/wait.rs"]
mod wait;
#[allow(dead_code)]
#[path = "../../src/engine/waiting.rs"]
mod waiting;

use cos::engine::{histogram, together};

mod sync {
    pub use std::sync::Arc;

    pub use shuttle::sync::atomic::{AtomicUsize, Ordering};
    pub use shuttle::sync::{Condvar, Mutex, MutexGuard};
    pub use shuttle::thread::yield_now;

    /// Time goes by as soon as others have run.
    pub fn wait_timeout<'a, T>(
        _: &Condvar,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        _: std::time::Duration,
    ) -> MutexGuard<'a, T> {
        drop(guard);
        yield_now();
        mutex.lock().unwrap()
    }
}

mod decode {
    pub mod chance {
        pub use cos::decode::chance::{CounterRng, Key, Purpose};
    }
    pub mod decoder {
        pub use cos::decode::decoder::Common;
    }
}

mod plan {
    pub mod pass_times {
        pub use cos::plan::pass_times::PassTimes;
    }
}

mod error {
    pub use cos::error::{Error, Result};
}

mod rows {
    pub use cos::rows::{DeviceAnswers, DeviceSums};
}

mod model {
    pub use cos::model::{Admission, Cancel, CancelHook, Interrupt, Model, Pass, Priority, Report};
}
