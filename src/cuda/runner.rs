//! A thread that runs the work of other threads, one job after the other.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle, Thread};

/// Work that stays on the stack of the thread that asks for it, which waits.
struct Job {
    work: *mut (dyn FnMut() + Send),
    done: *const AtomicBool,
    asker: Thread,
}

// SAFETY: the asker waits until `done` is set, so both pointers stay valid until then. The work is `Send`.
unsafe impl Send for Job {}

/// A thread for work that must always run on the same thread.
pub struct Runner {
    /// `None` only while dropping.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Runner {
    /// Start a thread of this name.
    pub fn start(name: &str) -> std::io::Result<Self> {
        let (jobs, queue) = sync_channel::<Job>(0);
        let thread = thread::Builder::new().name(name.into()).spawn(move || {
            for Job { work, done, asker } in queue {
                // SAFETY: both pointers are valid until `done` is set, and not used afterwards.
                unsafe {
                    (*work)();
                    (*done).store(true, Ordering::Release);
                }
                asker.unpark();
            }
        })?;
        Ok(Runner { jobs: Some(jobs), thread: Some(thread) })
    }

    /// Run work on the thread, and return its result. A panic of the work continues on the calling thread.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let (mut work, mut result) = (Some(work), None);
        let mut call = || result = work.take().map(|work| catch_unwind(AssertUnwindSafe(work)));
        let done = AtomicBool::new(false);
        let call: &mut (dyn FnMut() + Send) = &mut call;
        // SAFETY: this only hides the lifetime. The work stays on this stack until it is done.
        let call = unsafe { std::mem::transmute::<&mut (dyn FnMut() + Send), *mut (dyn FnMut() + Send)>(call) };
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Job { work: call, done: &done, asker: thread::current() }));
        assert!(matches!(sent, Some(Ok(()))), "the thread runs until its owner is dropped");
        while !done.load(Ordering::Acquire) {
            thread::park();
        }
        match result.expect("the work has run") {
            Ok(result) => result,
            Err(panic) => resume_unwind(panic),
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.jobs = None; // the thread ends when the channel is closed
        if let Some(thread) = self.thread.take() {
            _ = thread.join(); // it catches all panics
        }
    }
}

impl std::fmt::Debug for Runner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Runner")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_thread_runs_all_work() {
        let runner = Runner::start("test").unwrap();
        let ids = thread::scope(|scope| {
            let work = || (0..100).map(|number| runner.run(|| (thread::current().id(), number))).collect::<Vec<_>>();
            let askers: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            askers.into_iter().map(|asker| asker.join().unwrap()).collect::<Vec<_>>()
        });
        let expected: Vec<_> = (0..100).map(|number| (ids[0][0].0, number)).collect();
        assert!(ids.iter().all(|answers| *answers == expected));
        assert_ne!(expected[0].0, thread::current().id());
    }

    #[test]
    fn a_panic_continues_on_the_asking_thread() {
        let runner = Runner::start("test").unwrap();
        // `resume_unwind` skips the panic hook, so the test prints nothing.
        let panic = catch_unwind(AssertUnwindSafe(|| runner.run(|| resume_unwind(Box::new("broken")))));
        assert_eq!(panic.unwrap_err().downcast_ref::<&str>(), Some(&"broken"));
        assert_eq!(runner.run(|| 5), 5, "the thread continues");
    }

    #[test]
    fn thread_locals_live_as_long_as_the_runner() {
        thread_local!(static KEPT: std::cell::Cell<u32> = const { std::cell::Cell::new(0) });
        let runner = Runner::start("test").unwrap();
        let next = || runner.run(|| KEPT.replace(KEPT.get() + 1));
        thread::scope(|scope| (0..3).for_each(|number| assert_eq!(scope.spawn(next).join().unwrap(), number)));
    }
}
