//! The boundary under scripted models: what a real model cannot be made to do on demand, such as to panic or to
//! stand still in the middle of a pass. Everything goes through the `extern "C"` functions.

use std::ffi::CStr;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use cos::config::Combine;
use cos::engine::Engine;
use cos::ffi::engine::*;
use cos::ffi::error::*;
use cos::ffi::session::*;
use cos::model::scripted::Scripted;
use cos::model::{Interrupt, Model};

/// An engine of two equal models that answer by `script`.
fn engine(
    script: impl Fn(&[i32], &mut [f32]) -> Result<(), Interrupt> + Send + Sync + Clone + 'static,
) -> *mut cos_engine {
    let model = |name: &str| Arc::new(Scripted::new(4, script.clone()).with_name(name)) as Arc<dyn Model>;
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    cos_engine::into_raw(Arc::new(Engine::new(vec![model("a"), model("b")], combine, Vec::new(), None).unwrap()))
}

fn flat(_: &[i32], row: &mut [f32]) -> Result<(), Interrupt> {
    row.copy_from_slice(&[0.0, 1.0, 0.5, 0.25]);
    Ok(())
}

fn options() -> cos_session_options {
    // SAFETY: all zero is what the interface asks for.
    let mut options: cos_session_options = unsafe { std::mem::zeroed() };
    options.struct_size = size_of::<cos_session_options>();
    options
}

fn result() -> cos_step_result {
    // SAFETY: as above.
    let mut result: cos_step_result = unsafe { std::mem::zeroed() };
    result.struct_size = size_of::<cos_step_result>();
    result
}

fn session(engine: *mut cos_engine, options: &cos_session_options) -> Shared {
    let mut session = null_mut();
    assert_eq!(code(unsafe { cos_session_new(engine, options, &mut session) }), 0);
    assert_eq!(code(unsafe { cos_prompt(session, [1, 2, 3].as_ptr(), 3) }), 0);
    Shared(session)
}

/// A session that is passed between threads, as C callers do.
#[derive(Clone, Copy)]
struct Shared(*mut cos_session);
unsafe impl Send for Shared {}
unsafe impl Sync for Shared {}

impl Shared {
    fn step(&self) -> (i32, Vec<i32>, i32) {
        let mut result = cos_step_result { tokens_count: 77, finish: 88, ..result() };
        let code = code(unsafe { cos_step(self.0, &mut result) });
        if code != 0 {
            assert_eq!((result.tokens_count, result.finish), (77, 88), "outputs are untouched on an error");
            return (code, Vec::new(), -1);
        }
        (0, unsafe { std::slice::from_raw_parts(result.tokens, result.tokens_count) }.to_vec(), result.finish)
    }

    fn cancel(&self) -> *mut cos_error {
        unsafe { cos_cancel(self.0) }
    }

    fn free(self) {
        unsafe { cos_free(self.0) }
    }

    fn stats(&self) -> Result<cos_stats, i32> {
        let mut stats: cos_stats = unsafe { std::mem::zeroed() };
        stats.struct_size = size_of::<cos_stats>();
        match code(unsafe { cos_session_stats(self.0, &mut stats) }) {
            0 => Ok(stats),
            code => Err(code),
        }
    }
}

/// The code of an error, which is freed.
fn code(error: *mut cos_error) -> i32 {
    message(error).0
}

fn message(error: *mut cos_error) -> (i32, String) {
    unsafe {
        let pair = (cos_error_code(error), CStr::from_ptr(cos_error_message(error)).to_str().unwrap().to_owned());
        cos_error_free(error);
        pair
    }
}

#[test]
fn a_panic_poisons_its_session_and_nothing_else() {
    let engine = engine(|context, row| {
        assert!(context.len() != 5, "planted at five tokens");
        flat(context, row)
    });
    for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
        let session = session(engine, &cos_session_options { strategy, ..options() });
        let error = loop {
            let mut result = result();
            let error = unsafe { cos_step(session.0, &mut result) };
            if !error.is_null() {
                break message(error);
            }
        };
        assert_eq!(error.0, COS_ERROR_INTERNAL);
        assert!(error.1.contains("planted at five tokens"), "{}", error.1);
        assert_eq!(session.step().0, COS_ERROR_POISONED);
        assert_eq!(code(unsafe { cos_prompt(session.0, [1].as_ptr(), 1) }), COS_ERROR_POISONED);
        assert_eq!(code(session.cancel()), COS_ERROR_POISONED);
        assert_eq!(session.stats().err(), Some(COS_ERROR_POISONED));
        session.free();
    }
    let other = session(engine, &cos_session_options { max_tokens: 1, ..options() });
    assert_eq!(other.step(), (0, vec![1], COS_FINISH_MAX_TOKENS));
    other.free();
    unsafe { cos_engine_free(engine) };
}

/// A script that stands still in its pass number `at` until it is let go.
fn gate(at: usize) -> (*mut cos_engine, Arc<Barrier>, Arc<Barrier>) {
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

#[test]
fn a_second_thread_gets_busy() {
    let (engine, entered, leave) = gate(1);
    let session = session(engine, &cos_session_options { max_tokens: 3, ..options() });
    std::thread::scope(|scope| {
        let running = scope.spawn(move || session.step());
        entered.wait();
        assert_eq!(session.step().0, COS_ERROR_BUSY);
        assert_eq!(code(unsafe { cos_prompt(session.0, [1].as_ptr(), 1) }), COS_ERROR_BUSY);
        assert_eq!(session.stats().unwrap().tokens, 0, "statistics do not wait for a step");
        leave.wait();
        assert_eq!(running.join().unwrap().0, 0);
    });
    assert_eq!(session.step().0, 0, "busy is not for ever");
    session.free();
    unsafe { cos_engine_free(engine) };
}

#[test]
fn cancel_stops_the_running_step_and_the_next_goes_on() {
    let free = engine(flat);
    let whole = session(free, &cos_session_options { max_tokens: 8, ..options() });
    let mut expected = Vec::new();
    while expected.len() < 8 {
        expected.extend(whole.step().1);
    }
    for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
        for at in 0..9 {
            let (engine, entered, leave) = gate(at);
            let session = session(engine, &cos_session_options { max_tokens: 8, strategy, ..options() });
            let mut tokens = Vec::new();
            let mut cancelled = 0;
            std::thread::scope(|scope| {
                scope.spawn(move || {
                    entered.wait();
                    assert_eq!(code(session.cancel()), 0);
                    leave.wait();
                });
                loop {
                    let (code, new, finish) = session.step();
                    assert_eq!(code, 0);
                    assert!(finish != COS_FINISH_CANCELLED || new.is_empty());
                    tokens.extend(new);
                    cancelled += u32::from(finish == COS_FINISH_CANCELLED);
                    if finish == COS_FINISH_MAX_TOKENS {
                        break;
                    }
                }
            });
            // A request that comes while the last row is scored may meet a sequence that has just ended.
            assert!(cancelled == 1 || tokens == expected, "strategy {strategy}, pass {at}");
            assert_eq!(tokens, expected, "strategy {strategy}, pass {at}: nothing is lost");
            session.free();
            unsafe { cos_engine_free(engine) };
        }
    }
    whole.free();
    unsafe { cos_engine_free(free) };
}

#[test]
fn cancel_before_a_step_is_met_by_it() {
    let engine = engine(flat);
    let session = session(engine, &options());
    assert_eq!(code(session.cancel()), 0);
    assert_eq!(session.step(), (0, vec![], COS_FINISH_CANCELLED));
    assert_eq!(session.step(), (0, vec![1], COS_FINISH_NONE));
    assert_eq!(session.stats().unwrap().forwards, 2, "a cancelled step runs nothing");
    session.free();
    unsafe { cos_engine_free(engine) };
}

#[test]
fn free_waits_for_a_running_step() {
    let (engine, entered, leave) = gate(1);
    let session = session(engine, &options());
    let freed = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let step = scope.spawn(move || session.step());
        entered.wait();
        let free = scope.spawn(|| {
            session.free();
            freed.store(true, Ordering::SeqCst);
        });
        std::thread::sleep(std::time::Duration::from_millis(20));
        assert!(!freed.load(Ordering::SeqCst));
        leave.wait();
        assert_eq!(step.join().unwrap(), (0, vec![], COS_FINISH_CANCELLED));
        free.join().unwrap();
    });
    unsafe { cos_engine_free(engine) };
}

#[test]
fn a_failed_pass_is_an_error_and_the_next_step_tries_again() {
    let failures = Arc::new(AtomicUsize::new(0));
    let planted = failures.clone();
    let engine = engine(move |context, row| {
        if context.len() == 5 && planted.fetch_add(1, Ordering::SeqCst) < 2 {
            return Err(cos::error::Error::Runtime("planted".into()).into());
        }
        flat(context, row)
    });
    let session = session(engine, &cos_session_options { max_tokens: 4, ..options() });
    let (mut tokens, mut errors) = (Vec::new(), 0);
    while tokens.len() < 4 {
        let (code, new, _) = session.step();
        tokens.extend(new);
        errors += u32::from(code == COS_ERROR_RUNTIME);
    }
    assert_eq!((tokens, errors), (vec![1; 4], 2));
    assert_eq!(session.stats().unwrap().tokens, 4);
    session.free();
    unsafe { cos_engine_free(engine) };
}

#[test]
fn sessions_outlive_their_engine() {
    let engine = engine(flat);
    let session = session(engine, &cos_session_options { max_tokens: 3, ..options() });
    unsafe { cos_engine_free(engine) };
    let mut tokens = Vec::new();
    while tokens.len() < 3 {
        tokens.extend(session.step().1);
    }
    assert_eq!(tokens, [1, 1, 1]);
    session.free();
}
