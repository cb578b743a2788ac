//! A second session of a model, whose threads sleep while they wait. Passes run in it while the cores are crowded.
//!
//! ONNX Runtime decides once for a pool whether its threads spin, and once for a session which pool it uses.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use once_cell::sync::OnceCell;
use ort::session::Session;

use crate::error::Result;
use crate::process::{Process, delay_exit};

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
            let own = self.clone();
            let loader = std::thread::Builder::new().name("cos-loader".into());
            // If there is no thread, passes stay where they are.
            _ = loader.spawn(move || {
                let _unfinished = delay_exit();
                match (own.load)() {
                    Ok(session) => _ = own.session.set(session),
                    Err(error) => tracing::warn!("passes cannot give way to other work: {error}"),
                }
            });
        }
        None
    }
}
