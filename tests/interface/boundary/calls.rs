//! Calls from several threads, cancellation, panics, failures, and objects that outlive each other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use cos::config::Combine;
use cos::engine::Engine;
use cos::ffi::*;
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};

use super::engines::{engine, flat, gate, session};
use crate::common::boundary::{code, options, outcome, result};

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
                break outcome(error);
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
    assert_eq!(session.step().0, 0, "the session works again after the other call");
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
            // A request during the last row may come after the end of the sequence.
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
fn a_cancelled_session_stops_its_next_step() {
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
fn a_cancel_waits_for_a_step_that_can_run() {
    let engine = engine(flat);
    let session = session(engine, &cos_session_options { max_tokens: 1, ..options() });
    let finished = (0, vec![], COS_FINISH_MAX_TOKENS);
    assert_eq!(session.step(), (0, vec![1], COS_FINISH_MAX_TOKENS));
    assert_eq!(code(session.cancel()), 0);
    assert_eq!((session.step(), session.step()), (finished.clone(), finished));
    // SAFETY: the session lives, and the token is read within the call.
    assert_eq!(code(unsafe { cos_prompt(session.0, [1].as_ptr(), 1) }), 0);
    assert_eq!(session.step(), (0, vec![], COS_FINISH_CANCELLED));
    assert_eq!(session.step(), (0, vec![1], COS_FINISH_MAX_TOKENS));
    session.free();

    let mut empty = std::ptr::null_mut();
    // SAFETY: the engine and the session live until they are freed.
    unsafe {
        assert_eq!(code(cos_session_new(engine, &options(), &mut empty)), 0);
        assert_eq!(code(cos_cancel(empty)), 0);
        for _ in 0..2 {
            assert_eq!(code(cos_step(empty, &mut result())), COS_ERROR_INVALID_ARGUMENT);
        }
        cos_free(empty);
        cos_engine_free(engine);
    }
}

/// Rust must not read an array whose address its type does not allow.
#[test]
fn misaligned_arrays_and_outputs_are_refused() {
    let engine = engine(flat);
    let session = session(engine, &options());
    let bytes = [0u64; 8];
    let off = |by: usize| bytes.as_ptr().cast::<u8>().wrapping_add(by).cast_mut();
    let refused = |error, name: &str, multiple: usize| {
        let (code, message) = outcome(error);
        assert_eq!(code, COS_ERROR_INVALID_ARGUMENT, "{message}");
        assert!(message.contains(&format!("{name} is 0x")), "{message}");
        assert!(message.contains(&format!("not a multiple of {multiple};")), "{message}");
    };
    // SAFETY: refused before anything is read or written.
    unsafe {
        refused(cos_prompt(session.0, off(1).cast(), 3), "tokens", 4);
        refused(cos_session_set_weights(session.0, off(2).cast(), 2), "weights", 4);
        let stop_tokens = cos_session_options { stop_tokens: off(3).cast(), stop_tokens_count: 1, ..options() };
        refused(cos_session_new(engine, &stop_tokens, off(8).cast()), "stop_tokens", 4);
        refused(cos_session_new(engine, &options(), off(4).cast()), "out_session", 8);
        refused(cos_session_new(engine, off(4).cast(), off(8).cast()), "cos_session_options", 8);
        refused(cos_step(session.0, off(4).cast()), "out_result", 8);
        assert_eq!(code(cos_prompt(session.0, off(4).cast(), 3)), 0);
        assert_eq!(code(cos_prompt(session.0, off(1).cast(), 0)), COS_ERROR_INVALID_ARGUMENT);
    }
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

/// A model that stops while it is described, and sets `gone` when it is dropped.
struct Described {
    entered: Arc<Barrier>,
    leave: Arc<Barrier>,
    gone: Arc<AtomicBool>,
}

impl Model for Described {
    fn name(&self) -> &str {
        "described"
    }

    fn vocab_size(&self) -> usize {
        4
    }

    fn context_length(&self) -> usize {
        4
    }

    fn max_pass(&self) -> usize {
        1
    }

    fn cost(&self) -> u64 {
        1
    }

    fn describe(&self) -> serde_json::Value {
        self.entered.wait();
        self.leave.wait();
        serde_json::json!({})
    }

    fn start(&self, _: &Arc<Cancel>) -> cos::error::Result<Box<dyn Sequence>> {
        unreachable!("nobody decodes")
    }

    fn forward(&self, _: &mut [Pass]) -> Result<Report, Interrupt> {
        unreachable!("nobody decodes")
    }
}

impl Drop for Described {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

#[test]
fn a_running_call_outlives_its_engine() {
    let (entered, leave) = (Arc::new(Barrier::new(2)), Arc::new(Barrier::new(2)));
    let gone = Arc::new(AtomicBool::new(false));
    let model = Described { entered: entered.clone(), leave: leave.clone(), gone: gone.clone() };
    let engine = Engine::new(vec![Arc::new(model)], Combine::Target { model: 0 }, Vec::new(), None).unwrap();
    let engine = cos_engine::into_raw(Arc::new(engine));
    let address = engine as usize; // a pointer is not `Send`
    std::thread::scope(|scope| {
        let describing = scope.spawn(move || unsafe {
            let mut json = std::ptr::null();
            code(cos_engine_describe(address as *const cos_engine, &mut json))
        });
        entered.wait();
        unsafe { cos_engine_free(engine) };
        let still_there = !gone.load(Ordering::SeqCst);
        leave.wait();
        assert_eq!((describing.join().unwrap(), still_there), (0, true));
    });
    assert!(gone.load(Ordering::SeqCst), "the last call drops the engine");
}
