//! Options of sessions: temperatures, log-probabilities, look-ups, combine functions, new weights.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use cos::config::Combine;
use cos::engine::Engine;
use cos::engine::participant::Participant;
use cos::ffi::*;
use cos::model::Model;
use cos::model::scripted::Scripted;

use super::engines::{Shared, engine, flat, gate, session};
use crate::common::boundary::{code, options, outcome, result};

/// The reciprocal of the smallest temperatures is infinite as a float.
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
    // A caller of an older version gets only the members that it knows.
    let session = session(engine, &cos_session_options { log_probabilities: 1, max_tokens: 3, ..options() });
    let mut step = cos_step_result { struct_size: 32, log_probabilities: 8 as *const f32, ..result() };
    assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
    assert_eq!((step.tokens_count, step.log_probabilities), (1, 8 as *const f32));
    // A cancelled step has no log-probabilities, not even those of the step before.
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
fn look_ups_draft_and_have_no_weight() {
    // A text that repeats after four tokens.
    let repeat = |context: &[i32], row: &mut [f32]| {
        row[(*context.last().unwrap() as usize + 1) % 4] = 9.0;
        Ok(())
    };
    let scripted = || Participant::from(Arc::new(Scripted::new(4, repeat)));
    let ngram = || Participant::LookUp("ngram".into());
    let new = |models: Vec<Participant>, combine| Engine::new(models, combine, Vec::new(), None);

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

/// The user data of the combine functions of these tests.
struct Data {
    /// What the function returns.
    status: i32,
    /// The score of token 0, or NaN if the function leaves it out.
    score: f32,
    calls: usize,
    /// The session that the function calls back, or NULL.
    session: *mut cos_session,
    codes: Vec<i32>,
}

impl Data {
    fn new() -> Self {
        Data { status: 0, score: 3.0, calls: 0, session: null_mut(), codes: Vec::new() }
    }
}

/// Writes scores that rise with the token, except for token 0. Checks that models of weight 0 are hidden.
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
        // If the function fails, nothing is committed, and the next step tries again.
        data.status = -7;
        expect(session, COS_ERROR_CALLBACK, &["combine", "-7"]);
        expect(session, COS_ERROR_CALLBACK, &["-7"]);
        // Infinite scores and missing scores are errors.
        data.status = 0;
        data.score = f32::INFINITY;
        expect(session, COS_ERROR_NUMERIC, &["the combination", "plus infinity"]);
        data.score = f32::NAN;
        expect(session, COS_ERROR_NUMERIC, &["the combination", "NaN"]);
        assert_eq!(session.stats().unwrap().tokens, 1);
        data.score = f32::NEG_INFINITY;
        assert_eq!(session.step().1[0], 3, "an impossible token is not the best");
        assert!(data.calls >= 6);
        // The function's own session is busy, but may be cancelled and asked for statistics.
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
    // Sampling with log-probabilities.
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

/// An engine of two models: a gives all mass to token 1, b to token 2.
fn sure_engine(combine: Combine) -> *mut cos_engine {
    let sure = |name: &str, best: usize| {
        let script = move |_: &[i32], row: &mut [f32]| {
            row[best] = 20.0;
            Ok(())
        };
        Arc::new(Scripted::new(4, script).with_name(name)) as Arc<dyn Model>
    };
    let engine = Engine::new(vec![sure("a", 1), sure("b", 2)], combine, Vec::new(), None).unwrap();
    cos_engine::into_raw(Arc::new(engine))
}

/// Sets the weights of a session. Returns the code and message of the error.
fn set_weights(session: Shared, weights: &[f32]) -> (i32, String) {
    outcome(unsafe { cos_session_set_weights(session.0, weights.as_ptr(), weights.len()) })
}

#[test]
fn weights_are_set_between_steps() {
    let weights = vec![0.75, 0.25];
    for combine in [Combine::Weighted { weights: weights.clone() }, Combine::Logits { weights }] {
        let engine = sure_engine(combine);
        for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
            let session = session(engine, &cos_session_options { strategy, ..options() });
            assert_eq!(session.step().1[0], 1);
            assert_eq!(set_weights(session, &[0.25, 0.75]).0, 0);
            assert_eq!(session.step().1[0], 2, "from the next token on");
            assert_eq!(set_weights(session, &[1.0, 0.0]).0, 0);
            assert_eq!(session.step().1[0], 1, "with another plan");
            assert_eq!(set_weights(session, &[0.0, 1.0]).0, 0);
            assert_eq!(session.step().1[0], 2, "with a model that was not used");
            session.free();
        }
        unsafe { cos_engine_free(engine) };
    }
}

#[test]
fn refused_weights_change_nothing() {
    let weights = vec![0.75, 0.25];
    let weighted = sure_engine(Combine::Weighted { weights: weights.clone() });
    for engine in [weighted, sure_engine(Combine::Logits { weights })] {
        // Weights may be set before the first prompt.
        let mut session = null_mut();
        assert_eq!(code(unsafe { cos_session_new(engine, &options(), &mut session) }), 0);
        let session = Shared(session);
        assert_eq!(set_weights(session, &[0.0, 1.0]).0, 0);
        assert_eq!(code(unsafe { cos_prompt(session.0, [1].as_ptr(), 1) }), 0);
        let refused = |weights: &[f32], says: &str| {
            let (code, message) = set_weights(session, weights);
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
    assert_eq!(set_weights(Shared(null_mut()), &[1.0, 0.0]).0, COS_ERROR_INVALID_ARGUMENT);
    for combine in [Combine::Target { model: 0 }, Combine::Contrastive { mu: 0.5, plausibility: 0.0 }] {
        let engine = sure_engine(combine);
        let session = session(engine, &options());
        let (code, message) = set_weights(session, &[1.0, 0.0]);
        assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains("\"weighted\" or \"logits\""), "{message}");
        session.free();
        unsafe { cos_engine_free(engine) };
    }
    // A running step refuses them.
    let (engine, entered, leave) = gate(1);
    let session = session(engine, &options());
    std::thread::scope(|scope| {
        let running = scope.spawn(move || session.step());
        entered.wait();
        assert_eq!(set_weights(session, &[1.0, 0.0]).0, COS_ERROR_BUSY);
        leave.wait();
        assert_eq!(running.join().unwrap().0, 0);
    });
    session.free();
    unsafe { cos_engine_free(engine) };
}
