//! Requests of OpenAI's protocol across the boundary: what each call answers, and that a bad one hurts no other.

use std::ffi::{CStr, c_char};
use std::ptr::{null, null_mut};
use std::sync::Arc;

use cos::config::Combine;
use cos::engine::Engine;
use cos::error::Error;
use cos::ffi::*;
use cos::model::scripted::Scripted;
use cos::model::{Interrupt, Model};
use serde_json::Value;

use super::engines::{engine, flat, gate};
use crate::common::boundary::{code, outcome};

const BODY: &str = r#"{"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0, "stream": true}"#;

/// A request that threads share, as C callers do.
#[derive(Clone, Copy)]
struct Shared(*mut cos_request);

unsafe impl Send for Shared {}

unsafe impl Sync for Shared {}

impl Shared {
    fn step(&self) -> (i32, i32) {
        let mut status = no_status();
        (code(unsafe { cos_request_step(self.0, &mut status) }), status.state)
    }

    fn answer(&self) -> Result<String, i32> {
        let (mut text, mut bytes) = (null(), 77);
        match code(unsafe { cos_request_answer(self.0, &mut text, &mut bytes) }) {
            0 => Ok(String::from_utf8(unsafe { std::slice::from_raw_parts(text.cast(), bytes) }.to_vec()).unwrap()),
            code => {
                assert_eq!((text, bytes), (null(), 77), "outputs are untouched on an error");
                Err(code)
            }
        }
    }

    fn cancel(&self) {
        assert_eq!(code(unsafe { cos_request_cancel(self.0) }), 0);
    }

    fn free(self) {
        unsafe { cos_request_free(self.0) }
    }
}

fn terms() -> cos_request_options {
    cos_request_options {
        struct_size: size_of::<cos_request_options>(),
        endpoint: COS_REQUEST_COMPLETION,
        max_choices: 0,
        max_prompt_tokens: 0,
        max_tokens: 0,
        model: null(),
    }
}

fn no_status() -> cos_request_status {
    let struct_size = size_of::<cos_request_status>();
    cos_request_status { struct_size, state: 77, streams: 77, prompt_tokens: 77, completion_tokens: 77 }
}

fn start(engine: *mut cos_engine, body: &str) -> Shared {
    let mut request = null_mut();
    let error = unsafe { cos_request_new(engine, &terms(), body.as_ptr().cast(), body.len(), &mut request) };
    assert_eq!(outcome(error), (0, String::new()));
    Shared(request)
}

fn step_many(requests: &[Shared]) -> Vec<(i32, i32)> {
    let handles: Vec<_> = requests.iter().map(|request| request.0).collect();
    let mut statuses: Vec<_> = handles.iter().map(|_| no_status()).collect();
    let mut errors = vec![null_mut::<cos_error>().wrapping_add(1); handles.len()];
    let (statuses_out, errors_out) = (statuses.as_mut_ptr(), errors.as_mut_ptr());
    let call = unsafe { cos_request_step_many(handles.as_ptr(), handles.len(), statuses_out, errors_out) };
    assert_eq!(outcome(call), (0, String::new()));
    statuses.iter().zip(errors).map(|(status, error)| (code(error), status.state)).collect()
}

#[test]
fn a_request_is_told_by_events_and_by_news() {
    let engine = engine(flat);
    let request = start(engine, BODY);
    unsafe { cos_engine_free(engine) };
    let mut status = no_status();
    assert_eq!(code(unsafe { cos_request_get_status(request.0, &mut status) }), 0);
    assert_eq!((status.state, status.streams, status.prompt_tokens, status.completion_tokens), (0, 1, 3, 0));
    assert_eq!(unsafe { cos_request_choices(request.0) }, 1);
    let (mut sent, mut tokens, mut finish) = (String::new(), Vec::new(), 0);
    while status.state == COS_REQUEST_OPEN {
        assert_eq!(code(unsafe { cos_request_step(request.0, &mut status) }), 0);
        sent += &request.answer().unwrap();
        let mut news: cos_choice_news = unsafe { std::mem::zeroed() };
        news.struct_size = size_of::<cos_choice_news>();
        assert_eq!(code(unsafe { cos_request_choice(request.0, 0, &mut news) }), 0);
        tokens.extend_from_slice(unsafe { std::slice::from_raw_parts(news.tokens, news.tokens_count) });
        assert!(news.text.is_null() && news.log_probabilities.is_null(), "there is no tokenizer");
        assert_eq!(news.origins.is_null(), news.tokens_count == 0);
        finish = news.finish;
        let (code, message) = outcome(unsafe { cos_request_choice(request.0, 1, &mut news) });
        assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains("choice is 1"), "{message}");
    }
    assert_eq!((tokens, finish), (vec![1; 4], COS_FINISH_MAX_TOKENS));
    assert_eq!((status.state, status.completion_tokens), (COS_REQUEST_DONE, 4));
    assert!(sent.contains(r#""finish_reason":"length""#) && sent.ends_with("data: [DONE]\n\n"), "{sent}");
    assert_eq!((request.step(), request.answer()), ((0, COS_REQUEST_DONE), Ok(String::new())));
    request.free();
}

#[test]
fn wrong_calls_are_errors() {
    let engine = engine(flat);
    let new =
        |engine: *mut cos_engine, options: *const cos_request_options, body: &[u8], out: *mut *mut cos_request| {
            outcome(unsafe { cos_request_new(engine, options, body.as_ptr().cast(), body.len(), out) })
        };
    let mut request = null_mut();
    let refused = |(code, message): (i32, String), wanted: i32, part: &str| {
        assert!(code == wanted && message.contains(part), "{part}: {code} {message}");
    };
    let (good, body) = (terms(), BODY.as_bytes());
    refused(new(null_mut(), &good, body, &mut request), 1, "engine is NULL");
    refused(new(engine, null(), body, &mut request), 1, "cos_request_options is NULL");
    refused(new(engine, &good, body, null_mut()), 1, "out_request is NULL");
    refused(new(engine, &good, b"\xff", &mut request), 1, "body is not UTF-8");
    refused(new(engine, &good, b"", &mut request), 1, "must be a JSON object");
    refused(new(engine, &good, br#"{"prompt": "text"}"#, &mut request), 8, "tokenizer.json");
    refused(new(engine, &good, br#"{"prompt": [1], "stop": "a"}"#, &mut request), 8, "tokenizer.json");
    let with = |change: fn(&mut cos_request_options)| {
        let mut options = terms();
        change(&mut options);
        options
    };
    refused(new(engine, &with(|options| options.struct_size = 8), body, &mut request), 1, "struct_size");
    refused(new(engine, &with(|options| options.endpoint = 9), body, &mut request), 1, "endpoint is 9");
    refused(new(engine, &with(|options| options.model = c"a".as_ptr()), body, &mut request), 1, "model is missing");
    refused(new(engine, &with(|options| options.max_prompt_tokens = 2), body, &mut request), 5, "3 tokens");
    refused(new(engine, &with(|options| options.max_tokens = 3), body, &mut request), 1, "max_tokens is 4");
    refused(new(engine, &with(|options| options.endpoint = COS_REQUEST_CHAT), body, &mut request), 1, "messages");
    let other = br#"{"model": "b", "prompt": [1]}"#;
    refused(new(engine, &with(|options| options.model = c"a".as_ptr()), other, &mut request), 14, "no model \"b\"");
    assert!(request.is_null());
    unsafe {
        let mut status = no_status();
        refused(outcome(cos_request_step(null_mut(), &mut status)), 1, "request is NULL");
        refused(outcome(cos_request_cancel(null_mut())), 1, "request is NULL");
        assert_eq!((cos_request_choices(null()), status.state), (0, 77));
        cos_request_free(null_mut());
        let request = start(engine, BODY);
        refused(outcome(cos_request_step(request.0, null_mut())), 1, "cos_request_status is NULL");
        status.struct_size = 3;
        refused(outcome(cos_request_step(request.0, &mut status)), 1, "struct_size");
        refused(outcome(cos_request_answer(request.0, null_mut(), &mut 0)), 1, "out_text is NULL");
        refused(outcome(cos_request_answer(request.0, &mut null(), null_mut())), 1, "out_bytes is NULL");
        let (mut statuses, mut errors) = ([no_status(), status], [null_mut(); 2]);
        let handles = [request.0; 2];
        let call = cos_request_step_many(handles.as_ptr(), 2, statuses.as_mut_ptr(), errors.as_mut_ptr());
        refused(outcome(call), 1, "struct_size of out_results[1]");
        assert_eq!(code(cos_request_step_many(null(), 0, null_mut(), null_mut())), 0);
        refused(outcome(cos_request_step_many(null(), 1, statuses.as_mut_ptr(), errors.as_mut_ptr())), 1, "NULL");
        assert_eq!(request.step(), (0, COS_REQUEST_OPEN), "nothing was done before");
        request.free();
        cos_engine_free(engine);
    }
}

#[test]
fn errors_are_answers_of_a_server() {
    let text = |text: *const c_char| unsafe { CStr::from_ptr(text) }.to_str().unwrap();
    let engine = engine(flat);
    for (body, max, wanted) in [
        (r#"{"model": "b", "prompt": [1]}"#, 0, (404, "invalid_request_error", Some("model_not_found"))),
        (r#"{"model": "a", "prompt": [1, 2]}"#, 1, (400, "invalid_request_error", Some("context_length_exceeded"))),
        (r#"{"model": "a", "prompt": [9]}"#, 0, (400, "invalid_request_error", None)),
    ] {
        let options = cos_request_options { model: c"a".as_ptr(), max_prompt_tokens: max, ..terms() };
        let error = unsafe { cos_request_new(engine, &options, body.as_ptr().cast(), body.len(), &mut null_mut()) };
        let (status, json) = unsafe { (cos_error_status(error), text(cos_error_json(error))) };
        let json: Value = serde_json::from_str(json).unwrap();
        let told = &json["error"];
        assert_eq!((status, told["type"].as_str().unwrap(), told["code"].as_str()), wanted);
        assert_eq!(told["message"].as_str().unwrap(), text(unsafe { cos_error_message(error) }));
        unsafe { cos_error_free(error) };
    }
    unsafe {
        assert_eq!((cos_error_status(null()), text(cos_error_json(null()))), (200, ""));
        cos_engine_free(engine);
    }
}

#[test]
fn a_busy_request_can_be_cancelled() {
    for frees in [false, true] {
        let (engine, entered, leave) = gate(1);
        let request = start(engine, r#"{"prompt": [1, 2, 3], "max_tokens": 1000, "temperature": 0}"#);
        std::thread::scope(|scope| {
            let step = scope.spawn(move || request.step());
            entered.wait();
            assert_eq!((request.step().0, request.answer()), (COS_ERROR_BUSY, Err(COS_ERROR_BUSY)));
            assert_eq!(step_many(&[request]), [(COS_ERROR_BUSY, COS_REQUEST_OPEN)]);
            assert_eq!(unsafe { cos_request_choices(request.0) }, 1);
            let other = if frees {
                Some(scope.spawn(move || request.free()))
            } else {
                request.cancel();
                None
            };
            leave.wait();
            // The thread that frees may be too late.
            let (code, state) = step.join().unwrap();
            assert!(code == 0 && (state == COS_REQUEST_CANCELLED || frees), "{code} {state}");
            if let Some(other) = other {
                other.join().unwrap();
            }
        });
        if !frees {
            assert_eq!((request.step(), request.answer()), ((0, COS_REQUEST_CANCELLED), Ok(String::new())));
            request.free();
        }
        unsafe { cos_engine_free(engine) };
    }
}

/// Contexts decide what goes wrong.
fn script(context: &[i32], row: &mut [f32]) -> Result<(), Interrupt> {
    match (context[0], context.len() > 4) {
        (1, true) => panic!("planted"),
        (2, true) => Err(Interrupt::Failed(Error::Runtime("planted".into()))),
        _ => flat(context, row),
    }
}

#[test]
fn an_error_is_that_of_one_request() {
    let model = || Arc::new(Scripted::new(4, script).with_batches(64)) as Arc<dyn Model>;
    for shares in [false, true] {
        let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
        let engine = match shares {
            true => {
                let engine = Engine::new(vec![model(), model()], combine, Vec::new(), None).unwrap();
                cos_engine::into_raw(Arc::new(engine))
            }
            false => engine(script),
        };
        let body = |first: i32| format!(r#"{{"prompt": [{first}, 0, 0], "max_tokens": 6, "temperature": 0}}"#);
        // A panic in a shared pass is that of all its sessions, so nothing panics there.
        let panics = if shares { 2 } else { 1 };
        let requests: Vec<Shared> = [0, panics, 2, 3].iter().map(|first| start(engine, &body(*first))).collect();
        let null = Shared(null_mut());
        let mut ends = vec![None; 4];
        for _ in 0..60 {
            let news = step_many(&[requests[0], null, requests[1], requests[2], requests[3], requests[0]]);
            assert_eq!((news[1].0, news[5].0), (COS_ERROR_INVALID_ARGUMENT, COS_ERROR_INVALID_ARGUMENT));
            for (end, of) in ends.iter_mut().zip([0, 2, 3, 4]) {
                if news[of] != (0, COS_REQUEST_OPEN) {
                    end.get_or_insert(news[of]);
                }
            }
        }
        let done = Some((0, COS_REQUEST_DONE));
        let (error, again) = match shares {
            true => (COS_ERROR_RUNTIME, COS_ERROR_RUNTIME),
            false => (COS_ERROR_INTERNAL, COS_ERROR_POISONED),
        };
        assert_eq!(ends, [done, Some((error, COS_REQUEST_OPEN)), Some((COS_ERROR_RUNTIME, COS_REQUEST_OPEN)), done]);
        assert_eq!(requests[1].step().0, again);
        assert_eq!(requests[2].step().0, COS_ERROR_RUNTIME, "each later step returns it again");
        requests.into_iter().for_each(Shared::free);
        unsafe { cos_engine_free(engine) };
    }
}
