//! The boundary under scripted models: what a real model cannot be made to do on demand, such as to panic or to
//! stand still in the middle of a pass. Everything goes through the `extern "C"` functions.

mod common;

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use common::boundary::{code, no_stats, options, outcome, result};
use cos::config::Combine;
use cos::engine::Engine;
use cos::ffi::*;
use cos::model::scripted::Scripted;
use cos::model::{Cancel, Interrupt, Model, Ngram, Pass, Sequence};
use cos::text::Text;

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
        let mut stats = no_stats();
        match code(unsafe { cos_session_stats(self.0, &mut stats) }) {
            0 => Ok(stats),
            code => Err(code),
        }
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

/// One over the least temperatures is more than a float holds.
#[test]
fn the_least_temperatures_take_the_best_token() {
    let engine = engine(|_, row| {
        row.copy_from_slice(&[0.0, 1.0, f32::NEG_INFINITY, 0.99]);
        Ok(())
    });
    let filters = [(0, 0.0, 0.0), (2, 0.0, 0.0), (0, 0.5, 0.0), (0, 0.0, 0.5), (3, 0.9, 0.1)];
    for temperature in [1e-45, f32::MIN_POSITIVE, 1e-20, 1e-6] {
        for (top_k, top_p, min_p) in filters {
            for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
                let options = cos_session_options {
                    strategy,
                    temperature,
                    top_k,
                    top_p,
                    min_p,
                    log_probabilities: 1,
                    ..options()
                };
                let session = session(engine, &cos_session_options { max_tokens: 5, ..options });
                let mut count = 0;
                while count < 5 {
                    let mut step = result();
                    assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
                    for index in 0..step.tokens_count {
                        let found = unsafe { (*step.tokens.add(index), *step.log_probabilities.add(index)) };
                        assert_eq!(found, (1, 0.0), "temperature {temperature}, strategy {strategy}");
                    }
                    count += step.tokens_count;
                }
                session.free();
            }
        }
    }
    unsafe { cos_engine_free(engine) };
}

/// A model that stands still while it is described, and says when it is dropped.
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

    fn forward(&self, _: &mut [Pass]) -> Result<(), Interrupt> {
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
    let address = engine as usize; // pointers stay on their thread
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
    assert!(gone.load(Ordering::SeqCst), "with the last call, the engine goes");
}

#[test]
fn log_probabilities_come_with_their_tokens() {
    let engine = engine(flat);
    let total: f64 = [0.0f64, 1.0, 0.5, 0.25].iter().map(|logit| logit.exp()).sum();
    let run = |options: &cos_session_options| {
        let session = session(engine, options);
        let (mut tokens, mut values) = (Vec::new(), Vec::new());
        loop {
            let mut step = result();
            assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
            tokens.extend_from_slice(unsafe { std::slice::from_raw_parts(step.tokens, step.tokens_count) });
            if !step.log_probabilities.is_null() {
                values.extend_from_slice(unsafe {
                    std::slice::from_raw_parts(step.log_probabilities, step.tokens_count)
                });
            }
            if step.finish != COS_FINISH_NONE {
                break;
            }
        }
        let mut step = result();
        assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
        assert!(step.tokens_count == 0 && step.log_probabilities.is_null(), "a finished sequence has no more");
        session.free();
        (tokens, values)
    };
    for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
        for temperature in [0.0, 1.0] {
            let off = cos_session_options { strategy, temperature, max_tokens: 20, ..options() };
            let (tokens, values) = run(&cos_session_options { log_probabilities: 1, ..off });
            assert_eq!(values.len(), 20);
            for (token, value) in tokens.iter().zip(values) {
                let expected = [0.0, 1.0, 0.5, 0.25][*token as usize] - total.ln();
                assert!((f64::from(value) - expected).abs() < 1e-5, "{token}: {value}, not {expected}");
            }
            let combined = cos_session_options { targets: COS_TARGETS_COMBINED, ..off };
            assert_eq!(run(&combined), (tokens, vec![]), "asking does not change the tokens");
        }
    }
    // A caller of before gets what it knows.
    let session = session(engine, &cos_session_options { log_probabilities: 1, max_tokens: 3, ..options() });
    let mut step = cos_step_result { struct_size: 32, log_probabilities: 8 as *const f32, ..result() };
    assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
    assert_eq!((step.tokens_count, step.log_probabilities), (1, 8 as *const f32));
    // A step that is cancelled at once has none, and none of the step before.
    assert_eq!(code(session.cancel()), 0);
    let mut step = result();
    assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
    assert!(step.finish == COS_FINISH_CANCELLED && step.log_probabilities.is_null());
    session.free();

    let refused = |options: cos_session_options, says: &str| {
        let (code, message) = outcome(unsafe { cos_session_new(engine, &options, &mut null_mut()) });
        assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains(says), "{message}");
    };
    refused(cos_session_options { log_probabilities: 2, ..options() }, "log_probabilities is 2");
    refused(cos_session_options { log_probabilities: -1, ..options() }, "log_probabilities is -1");
    let routed = cos_session_options { targets: COS_TARGETS_ROUTED, temperature: 1.0, ..options() };
    refused(cos_session_options { log_probabilities: 1, ..routed }, "routed targets never make");
    unsafe { cos_engine_free(engine) };
}

#[test]
fn look_ups_draft_and_have_no_say() {
    // a text of period 4
    let repeat = |context: &[i32], row: &mut [f32]| {
        row[(*context.last().unwrap() as usize + 1) % 4] = 9.0;
        Ok(())
    };
    let scripted = || Arc::new(Scripted::new(4, repeat)) as Arc<dyn Model>;
    let ngram = || Arc::new(Ngram::new("ngram")) as Arc<dyn Model>;
    let new = |models: Vec<Arc<dyn Model>>, combine| Engine::new(models, combine, Vec::new(), None);

    let weighted = Combine::Weighted { weights: vec![0.0, 1.0] };
    let engine = cos_engine::into_raw(Arc::new(new(vec![ngram(), scripted()], weighted).unwrap()));
    assert_eq!(unsafe { (cos_engine_model_count(engine), cos_engine_vocab_size(engine)) }, (2, 4));
    let strategy = COS_STRATEGY_SPECULATIVE;
    let session = session(engine, &cos_session_options { strategy, max_tokens: 40, ..options() });
    let mut tokens = Vec::new();
    while tokens.len() < 40 {
        tokens.extend(session.step().1);
    }
    assert_eq!(tokens, (0..40).map(|token| token % 4).collect::<Vec<_>>(), "the prompt was 1, 2, 3");
    let stats = session.stats().unwrap();
    assert!(stats.accepted > 20 && stats.accepted == stats.tested && stats.forwards < 15, "it drafts");
    session.free();
    let (code, text) = outcome(unsafe {
        let weights = [0.5, 0.5];
        let options = cos_session_options { weights: weights.as_ptr(), weights_count: 2, ..options() };
        cos_session_new(engine, &options, &mut null_mut())
    });
    assert!(code == COS_ERROR_INVALID_ARGUMENT && text.contains("model 0 is a look-up"), "{text}");
    unsafe { cos_engine_free(engine) };

    for (models, combine, says) in [
        (vec![ngram()], Combine::Target { model: 0 }, "at least one model"),
        (vec![scripted(), ngram()], Combine::Target { model: 1 }, "target model 1 is a look-up"),
        (vec![scripted(), ngram()], Combine::Contrastive { mu: 0.5, plausibility: 0.0 }, "model 1 is the amateur"),
        (vec![ngram(), scripted()], Combine::Logits { weights: vec![0.5, 1.0] }, "weights[0] is 0.5"),
    ] {
        let error = new(models, combine).err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
    }
}

/// What the functions of these tests are told by, and tell.
struct Data {
    /// The function returns this.
    status: i32,
    /// It writes this as the score of token 0.
    score: f32,
    calls: usize,
    /// Whom it calls back.
    session: *mut cos_session,
    codes: Vec<i32>,
}

impl Data {
    fn new() -> Self {
        Data { status: 0, score: 3.0, calls: 0, session: null_mut(), codes: Vec::new() }
    }
}

/// Scores that rise with the token, but for the first; sees that models of weight 0 are hidden.
unsafe extern "C-unwind" fn rising(
    rows: *const *const f32,
    models_count: usize,
    vocab_size: usize,
    out_scores: *mut f32,
    user_data: *mut c_void,
) -> i32 {
    unsafe {
        let data = &mut *user_data.cast::<Data>();
        let rows = std::slice::from_raw_parts(rows, models_count);
        assert!(models_count == 2 && vocab_size == 4 && !rows[0].is_null() && rows[1].is_null());
        assert_eq!(std::slice::from_raw_parts(rows[0], 4), [0.0, 1.0, 0.5, 0.25]);
        data.calls += 1;
        if !data.session.is_null() {
            let session = Shared(data.session);
            assert_eq!(code(session.cancel()), 0);
            assert!(session.stats().is_ok());
            let weights = [1.0, 0.0];
            data.codes = vec![
                session.step().0,
                code(cos_prompt(session.0, [1].as_ptr(), 1)),
                code(cos_session_set_weights(session.0, weights.as_ptr(), 2)),
            ];
        }
        for token in 1..vocab_size {
            out_scores.add(token).write(token as f32 / 2.0);
        }
        if !data.score.is_nan() {
            out_scores.write(data.score);
        }
        data.status
    }
}

#[test]
fn functions_combine() {
    let engine = engine(flat);
    let (one, both) = ([1.0f32, 0.0], [0.5f32, 0.5]);
    let with = |data: &mut Data| cos_session_options {
        weights: one.as_ptr(),
        weights_count: 2,
        combine: Some(rising),
        combine_data: (data as *mut Data).cast(),
        max_tokens: 6,
        ..options()
    };
    let expect = |session: Shared, error: i32, says: &[&str]| {
        let (code, message) = outcome(unsafe { cos_step(session.0, &mut result()) });
        assert_eq!(code, error, "{message}");
        assert!(says.iter().all(|says| message.contains(says)), "{message}");
    };
    for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
        let mut data = Data::new();
        let session = session(engine, &cos_session_options { strategy, ..with(&mut data) });
        assert_eq!(session.step().1[0], 0, "the best score");
        // It fails: nothing is committed, and the next step tries again.
        data.status = -7;
        expect(session, COS_ERROR_CALLBACK, &["combine", "-7"]);
        expect(session, COS_ERROR_CALLBACK, &["-7"]);
        // It gives no numbers, too large ones, or leaves one out.
        data.status = 0;
        data.score = f32::INFINITY;
        expect(session, COS_ERROR_NUMERIC, &["the combination", "plus infinity"]);
        data.score = f32::NAN;
        expect(session, COS_ERROR_NUMERIC, &["the combination", "NaN"]);
        assert_eq!(session.stats().unwrap().tokens, 1);
        data.score = f32::NEG_INFINITY;
        assert_eq!(session.step().1[0], 3, "an impossible token is not the best");
        assert!(data.calls >= 6);
        // Its own session is busy, but may be cancelled and looked at.
        data.session = session.0;
        let (code, tokens, _) = session.step();
        assert!(code == 0 && (tokens.is_empty() || tokens[0] == 3));
        assert_eq!(data.codes, [COS_ERROR_BUSY; 3]);
        data.session = null_mut();
        assert_eq!(session.step().0, 0);
        let (code, text) = outcome(unsafe { cos_session_set_weights(session.0, both.as_ptr(), 2) });
        assert!(code == COS_ERROR_INVALID_ARGUMENT && text.contains("combine function"), "{text}");
        session.free();
    }
    // Sampled, with log-probabilities.
    let mut data = Data::new();
    let sampled = cos_session_options { temperature: 1.0, top_k: 2, log_probabilities: 1, ..with(&mut data) };
    let session = session(engine, &sampled);
    let (mut step, e) = (result(), [3.0f64.exp(), 1.5f64.exp()]);
    assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
    let (token, value) = unsafe { (*step.tokens, f64::from(*step.log_probabilities)) };
    assert!(token == 0 || token == 3);
    assert!((value - (e[usize::from(token == 3)] / (e[0] + e[1])).ln()).abs() < 1e-5);
    session.free();
    let routed = cos_session_options { targets: COS_TARGETS_ROUTED, ..sampled };
    let (code, text) = outcome(unsafe { cos_session_new(engine, &routed, &mut null_mut()) });
    assert!(code == COS_ERROR_INVALID_ARGUMENT && text.contains("no combine function"), "{text}");
    unsafe { cos_engine_free(engine) };
}

#[test]
fn weights_are_set_between_steps() {
    // Model a is sure of token 1, model b of token 2.
    let sure = |name: &str, best: usize| {
        let script = move |_: &[i32], row: &mut [f32]| {
            row[best] = 20.0;
            Ok(())
        };
        Arc::new(Scripted::new(4, script).with_name(name)) as Arc<dyn Model>
    };
    let new = |combine| {
        let engine = Engine::new(vec![sure("a", 1), sure("b", 2)], combine, Vec::new(), None).unwrap();
        cos_engine::into_raw(Arc::new(engine))
    };
    let set = |session: Shared, weights: &[f32]| {
        outcome(unsafe { cos_session_set_weights(session.0, weights.as_ptr(), weights.len()) })
    };
    let weighted = new(Combine::Weighted { weights: vec![0.75, 0.25] });
    let logits = new(Combine::Logits { weights: vec![0.75, 0.25] });
    for engine in [weighted, logits] {
        for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
            let session = session(engine, &cos_session_options { strategy, ..options() });
            assert_eq!(session.step().1[0], 1);
            assert_eq!(set(session, &[0.25, 0.75]).0, 0);
            assert_eq!(session.step().1[0], 2, "from the next token on");
            assert_eq!(set(session, &[1.0, 0.0]).0, 0);
            assert_eq!(session.step().1[0], 1, "with another plan");
            assert_eq!(set(session, &[0.0, 1.0]).0, 0);
            assert_eq!(session.step().1[0], 2, "with a model that was away");
            session.free();
        }
        // before the first prompt
        let mut session = null_mut();
        assert_eq!(code(unsafe { cos_session_new(engine, &options(), &mut session) }), 0);
        let session = Shared(session);
        assert_eq!(set(session, &[0.0, 1.0]).0, 0);
        assert_eq!(code(unsafe { cos_prompt(session.0, [1].as_ptr(), 1) }), 0);
        // what is refused changes nothing
        let refused = |weights: &[f32], says: &str| {
            let (code, message) = set(session, weights);
            assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains(says), "{message}");
        };
        refused(&[1.0], "weights_count is 1, but the engine has 2 models");
        refused(&[1.0, 0.0, 0.0], "weights_count is 3");
        refused(&[], "weights_count is 0");
        refused(&[f32::NAN, 0.0], "weights[0] is NaN");
        refused(&[0.0, 0.0], if engine == weighted { "sum to 0" } else { "at least one" });
        if engine == weighted {
            refused(&[1.0, 0.5], "sum to 1.5");
            refused(&[1.5, -0.5], "weights[1] is -0.5");
        }
        let (code, text) = outcome(unsafe { cos_session_set_weights(session.0, std::ptr::null(), 2) });
        assert!(code == COS_ERROR_INVALID_ARGUMENT && text.contains("weights is NULL"), "{text}");
        assert_eq!(session.step().1[0], 2);
        session.free();
        unsafe { cos_engine_free(engine) };
    }
    assert_eq!(set(Shared(null_mut()), &[1.0, 0.0]).0, COS_ERROR_INVALID_ARGUMENT);
    for combine in [Combine::Target { model: 0 }, Combine::Contrastive { mu: 0.5, plausibility: 0.0 }] {
        let engine = new(combine);
        let session = session(engine, &options());
        let (code, message) = set(session, &[1.0, 0.0]);
        assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains("only weighted and logits"), "{message}");
        session.free();
        unsafe { cos_engine_free(engine) };
    }
    // while a step runs
    let (engine, entered, leave) = gate(1);
    let session = session(engine, &options());
    std::thread::scope(|scope| {
        let running = scope.spawn(move || session.step());
        entered.wait();
        assert_eq!(set(session, &[1.0, 0.0]).0, COS_ERROR_BUSY);
        leave.wait();
        assert_eq!(running.join().unwrap().0, 0);
    });
    session.free();
    unsafe { cos_engine_free(engine) };
}

/// A tokenizer.json whose words are split by a regular expression.
fn tokenizer(expression: &str) -> cos::error::Result<Text> {
    let split = format!(
        r#"{{"type": "Split", "pattern": {{"Regex": "{expression}"}}, "behavior": "Isolated", "invert": false}}"#
    );
    let model = r#"{"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}"#;
    let file = format!(r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {split}, "model": {model}}}"#);
    Text::parse("tokenizer.json".as_ref(), &file)
}

/// What the test below does in a process of its own: it sees which panics reach a hook of the host.
fn panics_within() {
    let (host, panics) =
        (Arc::new(AtomicUsize::new(0)), || std::panic::catch_unwind(|| panic!("of the host")).is_err());
    let seen = host.clone();
    std::panic::set_hook(Box::new(move |_| {
        seen.fetch_add(1, Ordering::SeqCst);
    }));
    let models: Vec<Arc<dyn Model>> = vec![Arc::new(Scripted::new(2, |_, _| Ok(())))];
    let text = Some(Arc::new(tokenizer("(a|a|aa)+b").unwrap()));
    let engine = Engine::new(models, Combine::Target { model: 0 }, Vec::new(), text).unwrap();
    let engine = cos_engine::into_raw(Arc::new(engine));
    let (long, mut count) = ("a".repeat(1000), 0);
    // SAFETY: the pointers are valid.
    let error = unsafe { cos_engine_encode(engine, long.as_ptr().cast(), long.len(), 1, null_mut(), 0, &mut count) };
    // SAFETY: it is an error.
    let message = unsafe { std::ffi::CStr::from_ptr(cos_error_message(error)) }.to_str().unwrap().to_owned();
    assert!(message.contains("the text cannot be encoded: the tokenizers library fails on it"), "{message}");
    assert_eq!(code(error), COS_ERROR_INVALID_ARGUMENT);
    assert_eq!(host.load(Ordering::SeqCst), 0, "what is an error is none of the host's panics");
    assert!(panics());
    assert_eq!(host.load(Ordering::SeqCst), 1, "those of the host are");
    // SAFETY: the engine is live.
    unsafe { cos_engine_free(engine) };
}

#[test]
fn a_panic_of_the_tokenizer_is_an_error_and_prints_nothing() {
    const NAME: &str = "a_panic_of_the_tokenizer_is_an_error_and_prints_nothing";
    if std::env::var_os("COS_TEST_PANICS").is_some() {
        return panics_within();
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let child = child.args([NAME, "--exact", "--nocapture"]).env("COS_TEST_PANICS", "1").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && out.contains("1 passed") && err.is_empty(), "{out}{err}");
}
