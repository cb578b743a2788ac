//! The threads of ONNX Runtime's pool that all models of the process share, and what the system says of their time.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ort::environment::ThreadManager;
use parking_lot::Mutex;

use super::crowd::Crowding;

/// The stack of a worker. ONNX Runtime's own threads have as much by default.
const STACK: usize = 8 << 20;

/// Creates the workers for ONNX Runtime, and holds the file with the times of each.
#[derive(Default, Clone)]
pub struct Crew(Arc<Mutex<Vec<File>>>);

impl ThreadManager for Crew {
    type Thread = JoinHandle<()>;

    fn create(&self, work: impl FnOnce() + Send + 'static) -> ort::Result<Self::Thread> {
        let times = self.0.clone();
        let worker = std::thread::Builder::new().name("cos-worker".into()).stack_size(STACK);
        let thread = worker.spawn(move || {
            times.lock().extend(File::open("/proc/thread-self/schedstat"));
            work();
        });
        thread.map_err(|error| ort::Error::new(format!("cannot create a thread: {error}")))
    }

    fn join(thread: Self::Thread) -> ort::Result<()> {
        thread.join().map_err(|_| ort::Error::new("a worker panicked"))
    }
}

/// How long a thread was ready to run without a core: the second number of its `schedstat`.
fn lost(times: &File) -> Option<Duration> {
    let mut text = [0; 64];
    let len = times.read_at(&mut text, 0).ok()?;
    let mut words = str::from_utf8(&text[..len]).ok()?.split_ascii_whitespace();
    words.nth(1)?.parse().ok().map(Duration::from_nanos)
}

/// The time that this thread has computed, and how often it has lost its core.
fn usage() -> (Duration, i64) {
    // SAFETY: all bits 0 are a valid value, and the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_THREAD, &mut usage);
        usage
    };
    let time = |time: libc::timeval| Duration::new(time.tv_sec as u64, 1000 * time.tv_usec as u32);
    (time(usage.ru_utime) + time(usage.ru_stime), usage.ru_nivcsw)
}

/// Watches the passes on a pool whose workers spin.
pub struct Workers {
    crew: Crew,
    started: Instant,
    crowd: Mutex<Crowding>,
    /// The answer of `crowd`.
    crowded: AtomicBool,
    /// Passes on threads that sleep while they wait.
    calm: AtomicU64,
}

impl Workers {
    pub fn new(crew: Crew) -> Self {
        Workers {
            crew,
            started: Instant::now(),
            crowd: Mutex::default(),
            crowded: AtomicBool::new(false),
            calm: AtomicU64::new(0),
        }
    }

    /// Whether others want the cores, so that passes should run on threads that do not spin.
    pub fn are_crowded(&self) -> bool {
        self.crowded.load(Ordering::Relaxed)
    }

    /// Passes so far on threads that sleep while they wait.
    pub fn calm_passes(&self) -> u64 {
        self.calm.load(Ordering::Relaxed)
    }

    /// Watch a pass on this thread, until the result is dropped. `is_calm` says whether its threads sleep.
    pub fn watch(&self, is_calm: bool) -> WatchedPass<'_> {
        self.calm.fetch_add(is_calm.into(), Ordering::Relaxed);
        WatchedPass { workers: self, usage: usage(), began: Instant::now() }
    }

    /// Let the cores be crowded for good.
    #[cfg(test)]
    pub fn crowd(&self) {
        *self.crowd.lock() = Crowding::forced();
        self.crowded.store(true, Ordering::Relaxed);
    }

    fn passed(&self, time: Duration, lost_by_caller: Duration) {
        let now = self.started.elapsed();
        let mut crowd = self.crowd.lock();
        if crowd.passed(now, time, lost_by_caller) {
            // What the system does not tell is taken for nothing.
            let lost_by_workers = self.crew.0.lock().iter().filter_map(lost).sum();
            crowd.judge(now, lost_by_workers);
            self.crowded.store(crowd.is_crowded(), Ordering::Relaxed);
        }
    }
}

/// A pass on this thread.
pub struct WatchedPass<'a> {
    workers: &'a Workers,
    began: Instant,
    usage: (Duration, i64),
}

impl Drop for WatchedPass<'_> {
    fn drop(&mut self) {
        let time = self.began.elapsed();
        let (computed, switches) = usage();
        // A thread that was not switched was waiting for something else.
        let is_switched = switches > self.usage.1;
        let lost =
            if is_switched { time.saturating_sub(computed.saturating_sub(self.usage.0)) } else { Duration::ZERO };
        self.workers.passed(time, lost);
    }
}
