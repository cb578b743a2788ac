//! Bias, penalties, bans, constraints and alternatives of the C interface; options that change; sessions as bytes.

use std::ffi::c_void;
use std::ptr::{null, null_mut};
use std::slice::{from_raw_parts, from_raw_parts_mut};
use std::sync::Arc;
use std::time::Duration;

use cos::config::Combine;
use cos::engine::Engine;
use cos::ffi::*;
use cos::model::scripted::Scripted;
use cos::model::{Interrupt, Model};

use super::engines::{Shared, engine, flat, session};
use crate::common::boundary::{code, options, outcome, result};

/// Decode to the end. Returns the tokens and the finish.
fn finish(session: Shared) -> (Vec<i32>, i32) {
    let mut tokens = Vec::new();
    loop {
        let (code, new, finish) = session.step();
        assert_eq!(code, 0);
        tokens.extend(new);
        if finish != COS_FINISH_NONE {
            session.free();
            return (tokens, finish);
        }
    }
}

fn strategies() -> impl Iterator<Item = cos_session_options> {
    (COS_STRATEGY_AUTO..=COS_STRATEGY_COS).map(|strategy| cos_session_options { strategy, max_tokens: 6, ..options() })
}

#[test]
fn scores_are_controlled() {
    let engine = engine(flat);
    for base in strategies() {
        let run = |options: &cos_session_options| finish(session(engine, options)).0;
        assert_eq!(run(&base), [1; 6]);
        let (tokens, values) = ([3, 1], [0.8f32, f32::NEG_INFINITY]);
        let bias =
            cos_session_options { bias_tokens: tokens.as_ptr(), bias_values: values.as_ptr(), bias_count: 2, ..base };
        assert_eq!(run(&bias), [3; 6], "0.25 + 0.8 is more than 0.5");
        // 1, 2 and 3 are in the prompt.
        assert_eq!(run(&cos_session_options { repetition_penalty: 1.5, ..base }), [1; 6], "0.67 is still the best");
        assert_eq!(run(&cos_session_options { frequency_penalty: 0.3, ..base }), [1, 1, 2, 1, 3, 2]);
        assert_eq!(run(&cos_session_options { presence_penalty: 0.6, ..base }), [1, 2, 1, 1, 1, 1]);
        assert_eq!(run(&cos_session_options { no_repeat_ngram: 2, ..base }), [1, 1, 3, 2, 1, 0]);
        let (banned, lengths) = ([1, 1, 2], [2, 1]);
        let banned = cos_session_options {
            banned_tokens: banned.as_ptr(),
            banned_lengths: lengths.as_ptr(),
            banned_count: 2,
            ..base
        };
        assert_eq!(run(&banned), [1, 3, 1, 3, 1, 3], "1 1 and 2 are banned");
        let stop = 1;
        let least = cos_session_options { min_tokens: 2, stop_tokens: &stop, stop_tokens_count: 1, ..base };
        assert_eq!(finish(session(engine, &least)), (vec![2, 2, 1], COS_FINISH_STOP));
    }
    unsafe { cos_engine_free(engine) };
}

/// What a constraint function has seen.
#[derive(Default)]
struct Seen {
    text: Vec<i32>,
    number: u64,
    calls: usize,
    fails: bool,
}

/// Each token is followed by the next one, and nothing follows 3.
unsafe extern "C-unwind" fn ascending(
    tokens: *const i32,
    count: usize,
    kept: usize,
    mask: *mut u32,
    words: usize,
    number: u64,
    data: *mut c_void,
) -> i32 {
    let seen = unsafe { &mut *data.cast::<Seen>() };
    seen.calls += 1;
    if seen.fails {
        return 7;
    }
    assert!(words == 1 && kept <= count && kept <= seen.text.len() && tokens.is_null() == (count == 0));
    let tokens = if count == 0 { &[] } else { unsafe { from_raw_parts(tokens, count) } };
    assert_eq!(tokens[..kept], seen.text[..kept], "they are those of the call before");
    assert!(seen.number == 0 || seen.number == number);
    (seen.text, seen.number) = (tokens.to_vec(), number);
    unsafe {
        assert_eq!(*mask & 0xf, 0xf, "all tokens are possible before");
        *mask = match tokens.last() {
            None => 0b0001,
            Some(3) => 0,
            Some(last) => 1 << (last + 1),
        };
    }
    0
}

#[test]
fn a_function_constrains_a_text() {
    let engine = engine(flat);
    for base in strategies() {
        let mut seen = Seen::default();
        let data = (&raw mut seen).cast();
        let given = cos_session_options { constrain: Some(ascending), constrain_data: data, ..base };
        assert_eq!(finish(session(engine, &given)), (vec![0, 1, 2, 3], COS_FINISH_COMPLETE));
        assert!(seen.calls > 0);

        // A failure is told, and the next step tries again.
        let mut seen = Seen { fails: true, ..Seen::default() };
        let given = cos_session_options { constrain_data: (&raw mut seen).cast(), ..given };
        let session = session(engine, &given);
        let mut step = result();
        let (code, message) = outcome(unsafe { cos_step(session.0, &mut step) });
        assert!(code == COS_ERROR_CALLBACK && message.contains("constraint function") && message.contains('7'));
        seen.fails = false;
        assert_eq!(finish(session), (vec![0, 1, 2, 3], COS_FINISH_COMPLETE));
    }
    unsafe { cos_engine_free(engine) };
}

#[test]
fn alternatives_come_with_tokens() {
    let engine = engine(flat);
    for temperature in [0.0, 1.0] {
        let given = cos_session_options {
            temperature,
            top_k: 3,
            seed: 5,
            max_tokens: 9,
            top_log_probabilities: 4,
            model_log_probabilities: 1,
            ..options()
        };
        let session = session(engine, &given);
        let mut step = result();
        while step.finish == COS_FINISH_NONE {
            assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
            let count = step.tokens_count;
            assert_eq!(step.top_count, 4);
            let (tokens, top, of_top, of_tokens, of_models) = unsafe {
                (
                    from_raw_parts(step.tokens, count),
                    from_raw_parts(step.top_tokens, 4 * count),
                    from_raw_parts(step.top_log_probabilities, 4 * count),
                    from_raw_parts(step.log_probabilities, count),
                    from_raw_parts(step.model_log_probabilities, 2 * count),
                )
            };
            for index in 0..count {
                // top_k keeps three tokens, if the session is not greedy.
                let last = if temperature == 0.0 { 0 } else { -1 };
                assert_eq!(top[4 * index..][..4], [1, 2, 3, last]);
                assert_eq!(of_top[4 * index + 3].is_finite(), temperature == 0.0);
                let place = top[4 * index..][..4].iter().position(|&token| token == tokens[index]).unwrap();
                assert!((of_top[4 * index + place] - of_tokens[index]).abs() < 1e-5);
                // The models are the same.
                assert!(of_models[2 * index..][..2].iter().all(|value| (value - of_tokens[index]).abs() < 1e-5));
            }
        }
        session.free();
    }
    // Before the bias, it has no effect.
    let (token, value) = (1, -50.0f32);
    let given = cos_session_options {
        bias_tokens: &token,
        bias_values: &value,
        bias_count: 1,
        max_tokens: 3,
        log_probabilities: 1,
        log_probabilities_before: 1,
        top_log_probabilities: 1,
        ..options()
    };
    let session = session(engine, &given);
    let mut step = result();
    assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
    let total: f32 = [0.0f32, 1.0, 0.5, 0.25].iter().map(|score| score.exp()).sum();
    unsafe {
        assert_eq!((*step.tokens, *step.top_tokens), (2, 1));
        assert!((*step.log_probabilities - (0.5 - total.ln())).abs() < 1e-5);
        assert!((*step.top_log_probabilities - (1.0 - total.ln())).abs() < 1e-5);
    }
    session.free();
    unsafe { cos_engine_free(engine) };
}

/// Both models think the same, so all that is proposed is accepted.
#[test]
fn origins_come_with_tokens() {
    let engine = engine(flat);
    let lengths = [2, 0];
    let given = cos_session_options {
        strategy: COS_STRATEGY_COS,
        targets: COS_TARGETS_COMBINED,
        proposal_lengths: lengths.as_ptr(),
        proposal_lengths_count: 2,
        max_tokens: 20,
        log_probabilities: 1,
        ..options()
    };
    let session = session(engine, &given);
    let (mut step, mut accepted) = (result(), 0);
    while step.finish == COS_FINISH_NONE {
        assert_eq!(code(unsafe { cos_step(session.0, &mut step) }), 0);
        for origin in unsafe { from_raw_parts(step.origins, step.tokens_count) } {
            assert!(
                matches!(*origin, cos_origin { kind: COS_ORIGIN_ACCEPTED, model: 0 })
                    || matches!(*origin, cos_origin { kind: COS_ORIGIN_DRAWN, model: -1 })
            );
            accepted += u64::from(origin.kind == COS_ORIGIN_ACCEPTED);
        }
    }
    let mut stats: cos_stats = unsafe { std::mem::zeroed() };
    stats.struct_size = size_of::<cos_stats>();
    assert_eq!(code(unsafe { cos_session_stats(session.0, &mut stats) }), 0);
    assert!(accepted > 10 && accepted == stats.accepted);
    let tokens = [1, 2];
    assert_eq!(code(unsafe { cos_session_score(session.0, tokens.as_ptr(), 2, &mut step) }), 0);
    assert!(step.tokens_count == 2 && step.origins.is_null(), "tokens that are scored have no origin");
    session.free();
    unsafe { cos_engine_free(engine) };
}

/// The log-probabilities of tokens that are given are those with which they would be decoded.
#[test]
fn given_tokens_are_scored() {
    let engine = engine(mixed);
    for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
        let base = cos_session_options {
            strategy,
            temperature: 1.0,
            seed: 3,
            max_tokens: 50,
            log_probabilities: 1,
            top_log_probabilities: 2,
            ..options()
        };
        let first = session(engine, &base);
        let (mut tokens, mut values, mut top) = (Vec::new(), Vec::new(), Vec::new());
        let mut step = result();
        while step.finish == COS_FINISH_NONE {
            assert_eq!(code(unsafe { cos_step(first.0, &mut step) }), 0);
            unsafe {
                tokens.extend_from_slice(from_raw_parts(step.tokens, step.tokens_count));
                values.extend_from_slice(from_raw_parts(step.log_probabilities, step.tokens_count));
                top.extend_from_slice(from_raw_parts(step.top_tokens, 2 * step.tokens_count));
            }
        }
        first.free();
        // Bias has no effect on what is given.
        let (token, value) = (2, 9.0f32);
        let given = cos_session_options { bias_tokens: &token, bias_values: &value, bias_count: 1, ..base };
        let mut second = null_mut();
        assert_eq!(code(unsafe { cos_session_new(engine, &given, &mut second) }), 0);
        let whole = [&[1, 2, 3], &tokens[..]].concat();
        assert_eq!(code(unsafe { cos_session_score(second, whole.as_ptr(), whole.len(), &mut step) }), 0);
        assert_eq!((step.tokens_count, step.finish, step.top_count), (53, COS_FINISH_NONE, 2));
        let (scored, of_scored, top_scored) = unsafe {
            (
                from_raw_parts(step.tokens, 53),
                from_raw_parts(step.log_probabilities, 53),
                from_raw_parts(step.top_tokens, 2 * 53),
            )
        };
        assert!(scored == whole && of_scored[0].is_nan() && of_scored[1].is_finite() && top_scored[..2] == [-1, -1]);
        assert!(of_scored[3..].iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-5));
        assert_eq!(top_scored[6..], top);
        // The text goes on behind it, with the bias.
        let second = Shared(second);
        let next = second.step().1;
        assert!(next.iter().all(|&token| token == 2), "{next:?}");
        assert_eq!(code(unsafe { cos_session_score(second.0, [1].as_ptr(), 1, &mut step) }), 0);
        assert_eq!((step.tokens_count, unsafe { *step.tokens }), (1, 1));
        assert!(unsafe { *step.log_probabilities }.is_finite());
        second.free();
    }
    let plain = session(engine, &options());
    let mut step = result();
    let (code, message) = outcome(unsafe { cos_session_score(plain.0, [1].as_ptr(), 1, &mut step) });
    assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains("log_probabilities"), "{message}");
    plain.free();
    unsafe { cos_engine_free(engine) };
}

/// Scoring that is cancelled leaves the sequence as it was: ended, or in the middle of its text.
#[test]
fn scoring_that_is_cancelled_changes_nothing() {
    let engine = engine(mixed);
    for (max_tokens, before, finish) in [(4, 4, COS_FINISH_MAX_TOKENS), (20, 7, COS_FINISH_NONE)] {
        let base =
            cos_session_options { strategy: COS_STRATEGY_STANDARD, log_probabilities: 1, max_tokens, ..options() };
        let [first, second] = [session(engine, &base), session(engine, &base)];
        let texts = [first, second].map(|session| (0..before).flat_map(|_| session.step().1).collect::<Vec<_>>());
        assert_eq!((texts[0].len(), &texts[0]), (before, &texts[1]));
        let mut step = result();
        assert_eq!(code(first.cancel()), 0);
        assert_eq!(code(unsafe { cos_session_score(first.0, [3; 40].as_ptr(), 40, &mut step) }), 0);
        assert_eq!((step.tokens_count, step.finish), (0, COS_FINISH_CANCELLED));
        let [(_, tokens, found), expected] = [first.step(), second.step()];
        assert_eq!((&tokens, found), (&expected.1, expected.2));
        assert_eq!((tokens.is_empty(), found), (finish != COS_FINISH_NONE, finish));
        [first, second].into_iter().for_each(Shared::free);
    }
    unsafe { cos_engine_free(engine) };
}

#[test]
fn wrong_controls_are_refused() {
    let engine = engine(flat);
    let refused = |given: cos_session_options, part: &str| {
        let mut session = null_mut();
        let (code, message) = outcome(unsafe { cos_session_new(engine, &given, &mut session) });
        assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains(part), "{part}: {code} {message}");
        assert!(session.is_null());
    };
    let (tokens, values, words) = ([1, 1, 9, -1], [f32::NAN, 1.0, f32::INFINITY, 1e31], [0usize, 1]);
    let text = c"[\"a\"]".as_ptr();
    let bias = |token: usize, value: usize, count: usize| cos_session_options {
        bias_tokens: tokens[token..].as_ptr(),
        bias_values: values[value..].as_ptr(),
        bias_count: count,
        ..options()
    };
    refused(cos_session_options { repetition_penalty: -1.0, ..options() }, "repetition_penalty is -1");
    refused(cos_session_options { repetition_penalty: f32::NAN, ..options() }, "repetition_penalty is NaN");
    refused(cos_session_options { presence_penalty: f32::INFINITY, ..options() }, "presence_penalty is inf");
    refused(cos_session_options { frequency_penalty: f32::NAN, ..options() }, "frequency_penalty is NaN");
    refused(cos_session_options { min_tokens: 3, max_tokens: 2, ..options() }, "min_tokens is 3");
    refused(cos_session_options { no_repeat_ngram: -1, ..options() }, "no_repeat_ngram is -1");
    refused(bias(0, 0, 1), "bias_values[0] is NaN");
    refused(bias(0, 2, 1), "bias_values[0] is inf");
    refused(bias(0, 3, 1), "it must be between -1e30 and 1e30");
    refused(bias(2, 1, 1), "bias_tokens holds 9");
    refused(bias(3, 1, 1), "bias_tokens holds -1");
    refused(cos_session_options { bias_values: null(), ..bias(0, 1, 1) }, "bias_values is NULL");
    let twice = [0.5f32; 2];
    refused(cos_session_options { bias_values: twice.as_ptr(), ..bias(0, 1, 2) }, "bias_tokens holds 1 twice");
    let banned = |first: usize| cos_session_options {
        banned_tokens: tokens.as_ptr(),
        banned_lengths: words[first..].as_ptr(),
        banned_count: 1,
        ..options()
    };
    refused(banned(0), "banned_lengths[0] is 0");
    refused(cos_session_options { banned_tokens: tokens[2..].as_ptr(), ..banned(1) }, "banned_tokens holds 9");
    refused(cos_session_options { constraint_kind: 5, ..options() }, "constraint_kind is 5");
    let choices = || cos_session_options { constraint: text, constraint_length: 5, ..options() };
    refused(choices(), "constraint_kind is 0");
    let both = cos_session_options { constraint_kind: COS_CONSTRAINT_CHOICES, constrain: Some(ascending), ..choices() };
    refused(both, "constraint_kind and constrain");
    refused(cos_session_options { top_log_probabilities: 21, log_probabilities: 1, ..options() }, "is 21");
    refused(cos_session_options { top_log_probabilities: -1, ..options() }, "top_log_probabilities is -1");
    refused(cos_session_options { model_log_probabilities: 2, ..options() }, "model_log_probabilities is 2");
    refused(cos_session_options { log_probabilities_before: 1, ..options() }, "log_probabilities_before is set");
    refused(cos_session_options { log_probabilities_before: 2, ..options() }, "log_probabilities_before is 2");
    // The scripted engine has no tokenizer.
    let given = cos_session_options { constraint_kind: COS_CONSTRAINT_CHOICES, ..choices() };
    let mut none = null_mut();
    assert_eq!(code(unsafe { cos_session_new(engine, &given, &mut none) }), COS_ERROR_UNSUPPORTED);
    unsafe { cos_engine_free(engine) };
}

#[test]
fn options_change_between_steps() {
    let engine = engine(flat);
    for base in strategies() {
        let session = session(engine, &base);
        let set = |given: &cos_session_options| outcome(unsafe { cos_session_set_options(session.0, given) });
        assert_eq!(session.step().0, 0);
        let (token, value) = (3, 2.0f32);
        let changed = cos_session_options { bias_tokens: &token, bias_values: &value, bias_count: 1, ..base };
        assert_eq!(set(&changed).0, 0);
        let mut tokens = session.step().1;
        assert!(!tokens.is_empty() && tokens.iter().all(|&token| token == 3), "{tokens:?}");
        assert_eq!(set(&base).0, 0);
        tokens = session.step().1;
        assert!(tokens.iter().all(|&token| token == 1), "{tokens:?}");
        while session.step().2 == COS_FINISH_NONE {}
        // A larger limit opens the text again.
        assert_eq!(set(&cos_session_options { max_tokens: 9, ..base }).0, 0);
        assert_eq!(session.step().2, COS_FINISH_NONE);
        for (name, given) in [
            ("strategy", cos_session_options { strategy: (base.strategy + 1) % 4, ..base }),
            ("seed", cos_session_options { seed: 1, ..base }),
            ("priority", cos_session_options { priority: 1, ..base }),
            ("routes", cos_session_options { routes: 1, ..base }),
        ] {
            let (code, message) = set(&given);
            assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains(name), "{name}: {message}");
        }
        session.free();
    }
    unsafe { cos_engine_free(engine) };
}

fn save(session: Shared) -> Vec<u8> {
    let mut size = 0;
    assert_eq!(code(unsafe { cos_session_save(session.0, null_mut(), 0, &mut size) }), 0);
    let mut bytes = vec![0u8; size];
    let short = unsafe { cos_session_save(session.0, bytes.as_mut_ptr().cast(), size - 1, &mut size) };
    assert_eq!(code(short), COS_ERROR_BUFFER_TOO_SMALL);
    assert_eq!(code(unsafe { cos_session_save(session.0, bytes.as_mut_ptr().cast(), size, &mut size) }), 0);
    bytes
}

fn restore(engine: *mut cos_engine, bytes: &[u8]) -> Result<Shared, (i32, String)> {
    let mut session = null_mut();
    match outcome(unsafe { cos_session_restore(engine, bytes.as_ptr().cast(), bytes.len(), &mut session) }) {
        (0, _) => Ok(Shared(session)),
        error => Err(error),
    }
}

/// Rows that depend on all tokens before.
fn mixed(context: &[i32], row: &mut [f32]) -> Result<(), Interrupt> {
    let hash = context.iter().fold(7, |hash: usize, &token| (hash * 31 + token as usize + 1) % 1009);
    row.iter_mut().enumerate().for_each(|(token, score)| *score = ((hash * (token + 3)) % 13) as f32 / 4.0);
    Ok(())
}

#[test]
fn a_restored_session_goes_on_as_the_saved_one() {
    let engine = engine(mixed);
    let (token, value) = (0, f32::NEG_INFINITY);
    let base = cos_session_options {
        strategy: COS_STRATEGY_STANDARD,
        temperature: 1.0,
        seed: 9,
        max_tokens: 30,
        frequency_penalty: 0.1,
        bias_tokens: &token,
        bias_values: &value,
        bias_count: 1,
        ..options()
    };
    for at in [0, 1, 7, 30] {
        let session = session(engine, &base);
        assert_eq!(code(unsafe { cos_session_set_weights(session.0, [0.25, 0.75].as_ptr(), 2) }), 0);
        let before: Vec<i32> = (0..at).flat_map(|_| session.step().1).collect();
        let bytes = save(session);
        let copies = [restore(engine, &bytes).unwrap(), restore(engine, &bytes).unwrap()];
        let rest = finish(session);
        for copy in copies {
            assert_eq!(finish(copy), rest, "behind {before:?}");
        }
        assert_eq!((before.len() + rest.0.len(), rest.1), (30, COS_FINISH_MAX_TOKENS));
        assert!(!rest.0.contains(&0) && (at == 0 || !before.contains(&0)), "0 is banned");
    }
    // Every strategy goes on, also with drafts ahead, and a new turn follows.
    for base in strategies() {
        let session = session(engine, &base);
        session.step();
        let copy = restore(engine, &save(session)).unwrap();
        assert_eq!(finish(copy), finish(session), "greedy texts are the same");
    }
    unsafe { cos_engine_free(engine) };
}

#[test]
fn other_bytes_are_refused() {
    let first = engine(mixed);
    let session = session(first, &options());
    session.step();
    let bytes = save(session);
    let refused = |engine, bytes: &[u8], expected: i32, part: &str| {
        let (code, message) = restore(engine, bytes).map(|_| ()).unwrap_err();
        assert!(code == expected && message.contains(part), "{code} {message}");
    };
    for place in [0, 14, 16, 25, bytes.len() / 2, bytes.len() - 1] {
        let mut changed = bytes.clone();
        changed[place] ^= 1;
        refused(first, &changed, COS_ERROR_INVALID_ARGUMENT, "no saved session");
    }
    let mut later = bytes.clone();
    later[12] = b'2';
    refused(first, &later, COS_ERROR_UNSUPPORTED, "format 2");
    for length in [0, 5, 14, 20, bytes.len() - 1] {
        refused(first, &bytes[..length], COS_ERROR_INVALID_ARGUMENT, "");
    }
    let scripted = |vocab| Arc::new(Scripted::new(vocab, mixed)) as Arc<dyn Model>;
    let other = |models: Vec<Arc<dyn Model>>, weights: Vec<f32>| {
        let combine = Combine::Weighted { weights };
        let engine = Engine::new(models, combine, Vec::new(), None).unwrap();
        cos_engine::into_raw(Arc::new(engine))
    };
    for (engine, part) in [
        (other(vec![scripted(4)], vec![1.0]), "1 models, not 2"),
        (other(vec![scripted(5), scripted(5)], vec![0.5, 0.5]), "vocab_size"),
        (other(vec![scripted(4), scripted(4)], vec![0.25, 0.75]), "combine"),
    ] {
        refused(engine, &bytes, COS_ERROR_INVALID_ARGUMENT, part);
        unsafe { cos_engine_free(engine) };
    }
    session.free();
    // Functions cannot be saved.
    let mut seen = Seen::default();
    let given = cos_session_options { constrain: Some(ascending), constrain_data: (&raw mut seen).cast(), ..options() };
    let session = super::engines::session(first, &given);
    let mut size = 0;
    let (code, message) = outcome(unsafe { cos_session_save(session.0, null_mut(), 0, &mut size) });
    assert!(code == COS_ERROR_UNSUPPORTED && message.contains("constrain"), "{message}");
    session.free();
    unsafe { cos_engine_free(first) };
}

/// Gives all weight to the model that the data names.
unsafe extern "C-unwind" fn choose(
    tokens: *const i32,
    count: usize,
    models: *const cos_model_summary,
    models_count: usize,
    weights: *mut f32,
    data: *mut c_void,
) -> i32 {
    let (wanted, models) = unsafe { (*data.cast::<i32>(), from_raw_parts(models, models_count)) };
    assert!(!tokens.is_null() && count >= 3 && models_count == 2);
    assert!(models.iter().all(|model| model.confidence > 0.0 && model.entropy > 0.0 && model.best >= 0));
    let weights = unsafe { from_raw_parts_mut(weights, models_count) };
    assert_eq!(weights, [0.5, 0.5]);
    match wanted {
        0 | 1 => weights.iter_mut().enumerate().for_each(|(model, weight)| *weight = f32::from(model as i32 == wanted)),
        2 => weights[0] = 0.75,
        other => return other,
    }
    0
}

#[test]
fn a_function_weighs_the_models() {
    // One model likes 1, the other one 2.
    let model = |best: usize| {
        let script = move |_: &[i32], row: &mut [f32]| {
            row.fill(0.0);
            row[best] = 3.0;
            Ok(())
        };
        Arc::new(Scripted::new(4, script)) as Arc<dyn Model>
    };
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    let engine = Engine::new(vec![model(1), model(2)], combine, Vec::new(), None).unwrap();
    let engine = cos_engine::into_raw(Arc::new(engine));
    for base in strategies() {
        for (wanted, token) in [(0, 1), (1, 2)] {
            let data = (&raw const wanted).cast_mut().cast();
            let given = cos_session_options { weigh: Some(choose), weigh_data: data, ..base };
            assert_eq!(finish(session(engine, &given)).0, [token; 6]);
        }
        for (wanted, part) in [(2, "sum to"), (9, "returned 9")] {
            let data = (&raw const wanted).cast_mut().cast();
            let given = cos_session_options { weigh: Some(choose), weigh_data: data, ..base };
            let session = session(engine, &given);
            let (code, message) = outcome(unsafe { cos_step(session.0, &mut result()) });
            assert!(code == COS_ERROR_CALLBACK && message.contains("weights function") && message.contains(part));
            session.free();
        }
        let routed = cos_session_options { weigh: Some(choose), targets: 2, temperature: 1.0, ..base };
        let (code, message) = outcome(unsafe { cos_session_new(engine, &routed, &mut null_mut()) });
        assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains("weigh is set"), "{message}");
    }
    unsafe { cos_engine_free(engine) };
}

/// A session that fails again and again takes no turn from another one.
#[test]
fn a_failing_session_does_not_starve_another() {
    // A turn of the model that the failing session always asks for serves more sessions in a second.
    let model = |millis| {
        let model = Scripted::new(4, mixed).with_batches(16);
        Arc::new(model.with_shared_time(move |_, _, _| Duration::from_millis(millis))) as Arc<dyn Model>
    };
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    for (base, times) in strategies().zip(strategies()).flat_map(|(a, b)| [(a, [1, 20]), (b, [20, 1])]) {
        let engine = Engine::new(times.map(model).to_vec(), combine.clone(), Vec::new(), None).unwrap();
        let engine = cos_engine::into_raw(Arc::new(engine));
        let mut seen = Seen { fails: true, ..Seen::default() };
        let failing =
            cos_session_options { constrain: Some(ascending), constrain_data: (&raw mut seen).cast(), ..base };
        let sessions = [session(engine, &failing), session(engine, &base)];
        let handles = sessions.map(|session| session.0);
        let mut tokens = 0;
        for _ in 0..12 {
            let (mut results, mut errors) = ([result(), result()], [null_mut(); 2]);
            let called = unsafe { cos_step_many(handles.as_ptr(), 2, results.as_mut_ptr(), errors.as_mut_ptr()) };
            assert_eq!((code(called), code(errors[1])), (0, 0));
            code(errors[0]);
            tokens += results[1].tokens_count;
        }
        assert_eq!(tokens, 6, "strategy {}", base.strategy);
        sessions.into_iter().for_each(Shared::free);
        unsafe { cos_engine_free(engine) };
    }
}
