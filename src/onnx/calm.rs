//! A second session of a model, whose threads sleep while they wait. Passes run in it while the cores are crowded.
//!
//! ONNX Runtime decides once for a pool whether its threads spin, and once for a session which pool it uses.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use once_cell::sync::OnceCell;
use ort::session::Session;
use parking_lot::{Condvar, Mutex};

use crate::error::Result;
use crate::process::{PerProcess, Process, release_freed_memory, stay_loaded};

/// The second session, which is loaded when it is first needed.
pub struct CalmSession {
    load: Box<dyn Fn() -> Result<Session> + Send + Sync>,
    begun: AtomicBool,
    session: ManuallyDrop<OnceCell<Session>>,
    process: Process,
}

impl Drop for CalmSession {
    fn drop(&mut self) {
        // SAFETY: the value is being dropped, so nothing uses the session afterwards.
        let session = unsafe { ManuallyDrop::take(&mut self.session) };
        if !self.process.is_current() {
            std::mem::forget(session); // its threads exist in the parent only
        }
    }
}

impl CalmSession {
    pub fn new(load: impl Fn() -> Result<Session> + Send + Sync + 'static) -> Self {
        CalmSession {
            load: Box::new(load),
            begun: AtomicBool::new(false),
            session: ManuallyDrop::new(OnceCell::new()),
            process: Process::current(),
        }
    }

    /// The session, once it is loaded. The first call lets a thread load it, and passes go on meanwhile.
    pub fn get(self: &Arc<Self>) -> Option<&Session> {
        if let Some(session) = self.session.get() {
            return Some(session);
        }
        if !self.begun.swap(true, Ordering::Relaxed) {
            let (own, unfinished) = (self.clone(), delay_exit());
            let loader = std::thread::Builder::new().name("cos-loader".into());
            // If there is no thread, passes stay where they are.
            _ = loader.spawn(move || {
                let _unfinished = unfinished;
                let _turn = LOADING.get().lock();
                if Arc::strong_count(&own) == 1 || EXITS.load(Ordering::Relaxed) {
                    return; // nobody will use it
                }
                let loaded = (own.load)();
                release_freed_memory();
                match loaded {
                    Ok(session) => _ = own.session.set(session),
                    Err(error) => tracing::warn!("passes cannot give way to other work: {error}"),
                }
            });
        }
        None
    }
}

/// Sessions load one after the other: loading takes several times the memory of the weights, and no pass waits for it.
static LOADING: PerProcess<Mutex<()>> = PerProcess::new(Default::default);

/// How much work the exit of the process waits for.
static UNFINISHED: PerProcess<(Mutex<usize>, Condvar)> = PerProcess::new(Default::default);

/// Whether the process exits.
static EXITS: AtomicBool = AtomicBool::new(false);

/// Work that the exit of the process waits for, until dropped.
struct Unfinished(());

impl Drop for Unfinished {
    fn drop(&mut self) {
        let (count, changed) = UNFINISHED.get();
        *count.lock() -= 1;
        changed.notify_all();
    }
}

/// Let the exit of the process wait until the result is dropped, because ONNX Runtime, which is in use until then,
/// cleans up at exit.
fn delay_exit() -> Unfinished {
    // No `Once`: see `Process::current`.
    static REGISTERED: AtomicBool = AtomicBool::new(false);
    extern "C" fn wait() {
        EXITS.store(true, Ordering::Relaxed);
        let (count, changed) = UNFINISHED.get();
        changed.wait_while(&mut count.lock(), |count| *count > 0);
    }
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        stay_loaded();
        // SAFETY: the library stays loaded. Handlers run in reverse, so this one precedes those of libraries that were
        // loaded before it.
        _ = unsafe { libc::atexit(wait) };
    }
    *UNFINISHED.get().0.lock() += 1;
    Unfinished(())
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::delay_exit;
    use crate::onnx::check::Trial;
    use crate::onnx::{LoadOptions, OnnxModel, calm_passes, environment, runtime};

    /// A process whose thread works on when `main` has returned.
    #[test]
    fn the_exit_waits_for_what_is_unfinished() {
        const FILE: &str = "COS_TEST_DELAYED_EXIT";
        if let Some(file) = std::env::var_os(FILE) {
            let unfinished = delay_exit();
            std::thread::spawn(move || {
                let _unfinished = unfinished;
                std::thread::sleep(Duration::from_millis(300));
                std::fs::write(file, "done").unwrap();
            });
            std::process::exit(0);
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "onnx::calm::tests::the_exit_waits_for_what_is_unfinished"]).env(FILE, file.path());
        assert!(child.status().unwrap().success());
        assert_eq!(std::fs::read_to_string(file.path()).unwrap(), "done");
    }

    #[test]
    fn logits_are_the_same_on_crowded_cores() {
        environment(None, 0, None).unwrap();
        let Some(workers) = runtime::loaded().unwrap().workers.as_ref() else {
            println!("skipped, because the pool has one thread");
            return;
        };
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo/base/model.onnx");
        let model = OnnxModel::load(&file, "base", &LoadOptions::default()).unwrap();
        let rows = Trial::new(&model).unwrap().rows;
        workers.crowd();
        let (began, before) = (Instant::now(), calm_passes());
        // The second session is loaded while passes go on.
        while calm_passes() < before + 2 * rows.len() as u64 {
            assert!(Trial::new(&model).unwrap().rows == rows);
            assert!(began.elapsed() < Duration::from_secs(60), "the second session is not used");
        }
    }
}
