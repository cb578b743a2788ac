//! Panics of the tokenizers library are errors, and print nothing.

use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cos::config::Combine;
use cos::engine::Engine;
use cos::engine::participant::Participant;
use cos::ffi::*;
use cos::model::scripted::Scripted;
use cos::text::Text;

use crate::common::boundary::code;

/// A tokenizer.json whose words are split by a regular expression.
fn tokenizer(expression: &str) -> cos::error::Result<Text> {
    let split = format!(
        r#"{{"type": "Split", "pattern": {{"Regex": "{expression}"}}, "behavior": "Isolated", "invert": false}}"#
    );
    let model = r#"{"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}"#;
    let file = format!(r#"{{"version": "1.0", "added_tokens": [], "pre_tokenizer": {split}, "model": {model}}}"#);
    Text::parse("tokenizer.json".as_ref(), &file)
}

/// Part of the test below, in a process of its own: counts the panics that reach a hook of the host.
fn only_panics_of_the_host_reach_its_hook() {
    let (host, panics) =
        (Arc::new(AtomicUsize::new(0)), || std::panic::catch_unwind(|| panic!("of the host")).is_err());
    let seen = host.clone();
    std::panic::set_hook(Box::new(move |_| {
        seen.fetch_add(1, Ordering::SeqCst);
    }));
    let models: Vec<Participant> = vec![Arc::new(Scripted::new(2, |_, _| Ok(()))).into()];
    let text = Some(Arc::new(tokenizer("(a|a|aa)+b").unwrap()));
    let engine = Engine::new(models, Combine::Target { model: 0 }, Vec::new(), text).unwrap();
    let engine = cos_engine::into_raw(Arc::new(engine));
    let (long, mut count) = ("a".repeat(1000), 0);
    // SAFETY: the pointers are valid.
    let error = unsafe { cos_engine_encode(engine, long.as_ptr().cast(), long.len(), 1, null_mut(), 0, &mut count) };
    // SAFETY: the error is live.
    let message = unsafe { std::ffi::CStr::from_ptr(cos_error_message(error)) }.to_str().unwrap().to_owned();
    assert!(message.contains("the text cannot be encoded: the tokenizers library fails on it"), "{message}");
    assert_eq!(code(error), COS_ERROR_INVALID_ARGUMENT);
    assert_eq!(host.load(Ordering::SeqCst), 0, "a panic that becomes an error does not reach the host");
    assert!(panics());
    assert_eq!(host.load(Ordering::SeqCst), 1, "panics of the host reach it");
    // SAFETY: the engine is live.
    unsafe { cos_engine_free(engine) };
}

#[test]
fn a_panic_of_the_tokenizer_is_an_error_and_prints_nothing() {
    const NAME: &str = "boundary::panics::a_panic_of_the_tokenizer_is_an_error_and_prints_nothing";
    if std::env::var_os("COS_TEST_PANICS").is_some() {
        return only_panics_of_the_host_reach_its_hook();
    }
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let child = child.args([NAME, "--exact", "--nocapture"]).env("COS_TEST_PANICS", "1").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && out.contains("1 passed") && err.is_empty(), "{out}{err}");
}
