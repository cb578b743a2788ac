//! Engines that are prepared.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cos::config::Combine;
use cos::engine::Engine;
use cos::error::Error;
use cos::ffi::*;
use cos::model::Model;
use cos::model::scripted::Scripted;

use super::engines::{engine, flat, session};
use crate::common::boundary::{code, no_stats, options, outcome};

/// All defaults.
fn defaults() -> cos_prepare_options {
    // SAFETY: all zero is what the interface asks for.
    let zero: cos_prepare_options = unsafe { std::mem::zeroed() };
    cos_prepare_options { struct_size: size_of::<cos_prepare_options>(), ..zero }
}

/// What a progress function was told, and when it stops.
struct Told {
    engine: *mut cos_engine,
    shares: Vec<f64>,
    most: usize,
}

unsafe extern "C-unwind" fn tell(share: f64, data: *mut c_void) -> i32 {
    let told = unsafe { &mut *data.cast::<Told>() };
    told.shares.push(share);
    // Other calls may be made meanwhile.
    let mut stats = no_stats();
    assert_eq!(code(unsafe { cos_engine_stats(told.engine, &mut stats) }), 0);
    assert_eq!(stats.tokens, 0, "nothing counts");
    i32::from(told.shares.len() >= told.most)
}

#[test]
fn progress_is_told_and_stops_it() {
    let engine = engine(flat);
    let prepare = |most: usize, options: cos_prepare_options| {
        let mut told = Told { engine, shares: Vec::new(), most };
        let data = (&raw mut told).cast();
        let options = cos_prepare_options { progress: Some(tell), progress_data: data, ..options };
        let mut share = -1.0;
        assert_eq!(code(unsafe { cos_engine_prepare(engine, &options, &mut share) }), 0);
        assert!(told.shares.is_sorted() && told.shares[0] == 0.0, "{:?}", told.shares);
        assert_eq!(*told.shares.last().unwrap(), share);
        (told.shares.len(), share)
    };
    let (all, share) = prepare(usize::MAX, defaults());
    assert!(all > 20 && share == 1.0, "{all}, {share}");
    assert!(prepare(usize::MAX, cos_prepare_options { sessions: 1, tokens: 16, ..defaults() }).1 == 1.0);
    let (calls, share) = prepare(10, defaults());
    assert!(calls == 10 && share < 1.0, "{calls}, {share}");
    assert_eq!(prepare(1, defaults()), (1, 0.0));
    // Neither options nor a place for the share are needed.
    assert_eq!(code(unsafe { cos_engine_prepare(engine, null(), null_mut()) }), 0);
    let session = session(engine, &options());
    assert_eq!(session.step().0, 0);
    session.free();
    unsafe { cos_engine_free(engine) };
}

#[test]
fn wrong_arguments_are_named() {
    let engine = engine(flat);
    let refused = |options: cos_prepare_options, says: &[&str]| {
        let mut share = -1.0;
        let (code, message) = outcome(unsafe { cos_engine_prepare(engine, &options, &mut share) });
        assert!(code == COS_ERROR_INVALID_ARGUMENT && share == -1.0, "{code} {message}");
        assert!(says.iter().all(|says| message.contains(says)), "{message}");
    };
    refused(cos_prepare_options { sessions: 1025, ..defaults() }, &["sessions is 1025", "1024"]);
    for seconds in [-1.0, -0.001, f64::NAN, f64::INFINITY, 86401.0] {
        refused(cos_prepare_options { seconds, ..defaults() }, &["seconds is ", "86400"]);
    }
    refused(cos_prepare_options { struct_size: 0, ..defaults() }, &["struct_size of cos_prepare_options is 0", "40"]);
    refused(cos_prepare_options { struct_size: 32, ..defaults() }, &["struct_size of cos_prepare_options is 32"]);
    let (code, message) = outcome(unsafe { cos_engine_prepare(null(), &defaults(), null_mut()) });
    assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains("engine is NULL"), "{message}");
    let place = (&raw const engine).wrapping_byte_add(1).cast_mut().cast();
    let (code, message) = outcome(unsafe { cos_engine_prepare(engine, null(), place) });
    assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains("out_share is 0x"), "{message}");

    #[repr(C)]
    struct Newer {
        known: cos_prepare_options,
        added: u64,
    }
    let newer = |added| {
        let known = cos_prepare_options { struct_size: size_of::<Newer>(), seconds: 1e-6, ..defaults() };
        let newer = Newer { known, added };
        outcome(unsafe { cos_engine_prepare(engine, (&raw const newer).cast(), null_mut()) }).0
    };
    assert_eq!((newer(0), newer(1)), (0, COS_ERROR_UNSUPPORTED));
    unsafe { cos_engine_free(engine) };
}

/// Models fail or panic in the middle of it. Whoever uses the engine later notices nothing.
#[test]
fn failures_are_errors_and_leave_the_engine_usable() {
    for (panics, batches) in [(false, false), (false, true), (true, false), (true, true)] {
        let broken = Arc::new(AtomicBool::new(true));
        let fails = broken.clone();
        let hook = move |batch: &[usize]| match fails.load(Ordering::Relaxed) && batch.iter().sum::<usize>() > 12 {
            true if panics => std::panic::resume_unwind(Box::new("broken")), // prints nothing
            true => Err(Error::Runtime("no device".into()).into()),
            false => Ok(()),
        };
        let model = Scripted::new(4, flat).with_batch_hook(hook);
        let model = if batches { model.with_batches(64) } else { model };
        let models = vec![Arc::new(model) as Arc<dyn Model>];
        let engine = Engine::new(models, Combine::Target { model: 0 }, Vec::new(), None).unwrap();
        let engine = cos_engine::into_raw(Arc::new(engine));
        let (code, message) = outcome(unsafe { cos_engine_prepare(engine, null(), null_mut()) });
        let expected = if panics { COS_ERROR_INTERNAL } else { COS_ERROR_RUNTIME };
        assert_eq!(code, expected, "{panics}, {batches}: {message}");
        broken.store(false, Ordering::Relaxed);
        let mut share = 0.0;
        assert_eq!(outcome(unsafe { cos_engine_prepare(engine, null(), &mut share) }).0, 0);
        assert_eq!(share, 1.0);
        let session = session(engine, &options());
        assert_eq!(session.step().0, 0);
        session.free();
        unsafe { cos_engine_free(engine) };
    }
}
