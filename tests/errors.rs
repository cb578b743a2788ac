//! Replays `tests/vectors/errors.txt`: what the C interface must refuse, and with which code.

mod common;

use std::ffi::CString;
use std::ptr::{null, null_mut};

use common::boundary::{code, options, result};
use cos::ffi::engine::*;
use cos::ffi::session::*;

fn list<T: std::str::FromStr>(text: &str) -> Vec<T> {
    text.split([',', ' ']).filter(|word| !word.is_empty()).map(|word| word.parse().ok().expect("a number")).collect()
}

fn new_engine(json: &str) -> Result<*mut cos_engine, i32> {
    let (json, mut engine) = (CString::new(json).unwrap(), null_mut());
    // SAFETY: both pointers are valid.
    match code(unsafe { cos_engine_new(json.as_ptr(), &mut engine) }) {
        0 => Ok(engine),
        code => {
            assert!(engine.is_null(), "outputs are written on success only");
            Err(code)
        }
    }
}

/// The code of making a session by `KEY=VALUE` pairs, and the session.
fn new_session(engine: *mut cos_engine, pairs: &str) -> (i32, *mut cos_session) {
    let pairs: Vec<(&str, &str)> = pairs.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
    let of = |key: &str| pairs.iter().find(|(name, _)| *name == key).map_or("0", |(_, value)| value);
    let array = |key: &str| if of(key) == "0" { "" } else { of(key) };
    let (lengths, stops) = (list::<i32>(array("proposal_lengths")), list::<i32>(array("stop_tokens")));
    let weights = list::<f32>(array("weights"));
    fn pointer<T>(array: &[T]) -> *const T {
        if array.is_empty() { null() } else { array.as_ptr() }
    }
    let options = cos_session_options {
        strategy: of("strategy").parse().unwrap(),
        temperature: of("temperature").parse().unwrap(),
        top_k: of("top_k").parse().unwrap(),
        top_p: of("top_p").parse().unwrap(),
        min_p: of("min_p").parse().unwrap(),
        seed: of("seed").parse().unwrap(),
        max_tokens: of("max_tokens").parse().unwrap(),
        targets: of("targets").parse().unwrap(),
        log_probabilities: of("log_probabilities").parse().unwrap(),
        proposal_lengths: pointer(&lengths),
        proposal_lengths_count: lengths.len(),
        weights: pointer(&weights),
        weights_count: weights.len(),
        stop_tokens: pointer(&stops),
        stop_tokens_count: stops.len(),
        ..options()
    };
    let mut session = null_mut();
    // SAFETY: the pointers are valid, and the arrays outlive the call.
    (code(unsafe { cos_session_new(engine, &options, &mut session) }), session)
}

#[test]
fn what_must_be_refused_is_refused() {
    std::env::set_current_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let text = std::fs::read_to_string("tests/vectors/errors.txt").unwrap();
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(lines.next(), Some("cos-errors 1"));
    let (mut engine, mut records) = (null_mut(), 0);
    for line in lines {
        let (record, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (expected, rest) = match record {
            "engine" | "vocabulary" | "end" => (0, rest),
            _ => {
                let (code, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                (code.parse::<i32>().unwrap(), rest)
            }
        };
        let session = || new_session(engine, "").1;
        // SAFETY: the engine and the sessions come from the library and are not freed before.
        let found = unsafe {
            match record {
                "engine" => {
                    engine = new_engine(rest).unwrap();
                    continue;
                }
                "vocabulary" => {
                    assert_eq!(cos_engine_vocab_size(engine).to_string(), rest);
                    continue;
                }
                "end" => break,
                "refuse" => new_engine(rest).err().unwrap_or(0),
                "options" => {
                    let (code, session) = new_session(engine, rest);
                    cos_free(session);
                    code
                }
                "prompt" => {
                    let (session, tokens) = (session(), list::<i32>(rest));
                    let code = code(cos_prompt(session, tokens.as_ptr(), tokens.len()));
                    cos_free(session);
                    code
                }
                "step" => {
                    let session = session();
                    let code = code(cos_step(session, &mut result()));
                    cos_free(session);
                    code
                }
                "weights" => {
                    let (session, weights) = (session(), list::<f32>(rest));
                    let code = code(cos_session_set_weights(session, weights.as_ptr(), weights.len()));
                    cos_free(session);
                    code
                }
                other => panic!("a record that this does not know: {other}"),
            }
        };
        assert_eq!(found, expected, "{line}");
        records += 1;
    }
    // SAFETY: it is not used any more.
    unsafe { cos_engine_free(engine) };
    println!("errors: {records} records");
    assert_eq!(records, 44);
}
