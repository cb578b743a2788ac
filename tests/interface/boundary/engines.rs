//! Engines of scripted models, and sessions that threads share as C callers do.

use std::ptr::null_mut;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use cos::config::Combine;
use cos::engine::Engine;
use cos::ffi::*;
use cos::model::scripted::Scripted;
use cos::model::{Interrupt, Model};

use crate::common::boundary::{code, no_stats, result};

/// An engine of two equal models whose rows are made by `script`.
pub fn engine(
    script: impl Fn(&[i32], &mut [f32]) -> Result<(), Interrupt> + Send + Sync + Clone + 'static,
) -> *mut cos_engine {
    let model = |name: &str| Arc::new(Scripted::new(4, script.clone()).with_name(name)) as Arc<dyn Model>;
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    cos_engine::into_raw(Arc::new(Engine::new(vec![model("a"), model("b")], combine, Vec::new(), None).unwrap()))
}

pub fn flat(_: &[i32], row: &mut [f32]) -> Result<(), Interrupt> {
    row.copy_from_slice(&[0.0, 1.0, 0.5, 0.25]);
    Ok(())
}

pub fn session(engine: *mut cos_engine, options: &cos_session_options) -> Shared {
    let mut session = null_mut();
    assert_eq!(code(unsafe { cos_session_new(engine, options, &mut session) }), 0);
    assert_eq!(code(unsafe { cos_prompt(session, [1, 2, 3].as_ptr(), 3) }), 0);
    Shared(session)
}

/// A session that threads share, as C callers do.
#[derive(Clone, Copy)]
pub struct Shared(pub *mut cos_session);

unsafe impl Send for Shared {}

unsafe impl Sync for Shared {}

impl Shared {
    pub fn step(&self) -> (i32, Vec<i32>, i32) {
        let mut result = cos_step_result { tokens_count: 77, finish: 88, ..result() };
        let code = code(unsafe { cos_step(self.0, &mut result) });
        if code != 0 {
            assert_eq!((result.tokens_count, result.finish), (77, 88), "outputs are untouched on an error");
            return (code, Vec::new(), -1);
        }
        (0, unsafe { std::slice::from_raw_parts(result.tokens, result.tokens_count) }.to_vec(), result.finish)
    }

    pub fn cancel(&self) -> *mut cos_error {
        unsafe { cos_cancel(self.0) }
    }

    pub fn free(self) {
        unsafe { cos_free(self.0) }
    }

    pub fn stats(&self) -> Result<cos_stats, i32> {
        let mut stats = no_stats();
        match code(unsafe { cos_session_stats(self.0, &mut stats) }) {
            0 => Ok(stats),
            code => Err(code),
        }
    }
}

/// An engine whose pass number `at` waits: the first barrier says that it waits, the second one lets it go on.
pub fn gate(at: usize) -> (*mut cos_engine, Arc<Barrier>, Arc<Barrier>) {
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let passes = Arc::new(AtomicUsize::new(0));
    let script = {
        let (entered, leave) = (entered.clone(), leave.clone());
        move |context: &[i32], row: &mut [f32]| {
            if passes.fetch_add(1, Ordering::SeqCst) == at {
                entered.wait();
                leave.wait();
            }
            flat(context, row)
        }
    };
    (engine(script), entered, leave)
}
