//! One thread drives many sessions: what each is told, and that a bad one hurts no other.

use std::ptr::null_mut;
use std::sync::Arc;

use cos::config::Combine;
use cos::engine::Engine;
use cos::error::Error;
use cos::ffi::*;
use cos::model::scripted::Scripted;
use cos::model::{Interrupt, Model};

use super::engines::{Shared, engine, flat, gate, session};
use crate::common::boundary::{code, no_stats, options, outcome, result};

/// What a call tells a session: its error, tokens and finish.
type News = (i32, Vec<i32>, i32);

/// The news of a session without any.
fn nothing() -> News {
    (0, Vec::new(), 0)
}

pub fn step_many(sessions: &[*mut cos_session]) -> Vec<News> {
    // What was there before must not look like news.
    let mut results: Vec<_> =
        sessions.iter().map(|_| cos_step_result { tokens_count: 7, finish: 8, ..result() }).collect();
    let mut errors = vec![null_mut::<cos_error>().wrapping_add(1); sessions.len()];
    let call = unsafe { cos_step_many(sessions.as_ptr(), sessions.len(), results.as_mut_ptr(), errors.as_mut_ptr()) };
    assert_eq!(outcome(call), (0, String::new()));
    let news = |(result, error): (&cos_step_result, *mut cos_error)| {
        let tokens = unsafe { std::slice::from_raw_parts(result.tokens, result.tokens_count) }.to_vec();
        (code(error), tokens, result.finish)
    };
    results.iter().zip(errors).map(news).collect()
}

/// An engine of two models whose passes are shared. Contexts decide what goes wrong.
fn batching() -> *mut cos_engine {
    let script = |context: &[i32], row: &mut [f32]| {
        let bad = context.len() > 8;
        match context[0] {
            2 if bad => row.fill(f32::NAN),
            3 if bad => return Err(Interrupt::Failed(Error::Runtime("planted".into()))),
            _ => row.iter_mut().enumerate().for_each(|(token, score)| {
                *score = ((context.len() * 5 + token * 3 + context[0] as usize) % 7) as f32;
            }),
        }
        Ok(())
    };
    let model = || Arc::new(Scripted::new(20, script).with_batches(64).with_max_pass(8)) as Arc<dyn Model>;
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    cos_engine::into_raw(Arc::new(Engine::new(vec![model(), model()], combine, Vec::new(), None).unwrap()))
}

fn start(engine: *mut cos_engine, options: &cos_session_options, prompt: &[i32]) -> Shared {
    let mut session = null_mut();
    assert_eq!(code(unsafe { cos_session_new(engine, options, &mut session) }), 0);
    assert_eq!(code(unsafe { cos_prompt(session, prompt.as_ptr(), prompt.len()) }), 0);
    Shared(session)
}

fn alone(session: Shared) -> Vec<i32> {
    let mut text = Vec::new();
    loop {
        let (code, tokens, finish) = session.step();
        assert_eq!(code, 0);
        text.extend(tokens);
        if finish != COS_FINISH_NONE {
            session.free();
            return text;
        }
    }
}

/// Panics if there is no data, and fails otherwise.
extern "C-unwind" fn bad_function(
    _: *const *const f32,
    _: usize,
    _: usize,
    _: *mut f32,
    data: *mut std::ffi::c_void,
) -> i32 {
    assert!(!data.is_null(), "planted");
    5
}

#[test]
fn wrong_calls_do_nothing() {
    let engine = engine(flat);
    let session = session(engine, &options());
    let (mut results, mut errors) = ([result(), result()], [null_mut::<cos_error>(); 2]);
    let mut call = |sessions: *const *mut cos_session, count, with_results: bool, with_errors: bool| {
        let results = if with_results { results.as_mut_ptr() } else { null_mut() };
        let errors = if with_errors { errors.as_mut_ptr() } else { null_mut() };
        outcome(unsafe { cos_step_many(sessions, count, results, errors) })
    };
    let sessions = [session.0, null_mut()];
    assert_eq!(call(std::ptr::null(), 0, false, false).0, 0);
    for (sessions, count, with_results, with_errors, says) in [
        (std::ptr::null(), 2, true, true, "sessions is NULL, but count is 2"),
        (sessions.as_ptr(), usize::MAX, true, true, "count is 18446744073709551615"),
        (sessions.as_ptr(), 2, false, true, "out_results is NULL"),
        (sessions.as_ptr(), 2, true, false, "out_errors is NULL"),
    ] {
        let (code, message) = call(sessions, count, with_results, with_errors);
        assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains(says), "{message}");
    }
    let size = size_of::<cos_step_result>();
    let differs = format!("out_results[1] is 32, but that of out_results[0] is {size}");
    for (sizes, says) in [([0, size], "struct_size"), ([size, 32], &differs)] {
        for (result, size) in results.iter_mut().zip(sizes) {
            result.struct_size = size;
        }
        let error = unsafe { cos_step_many(sessions.as_ptr(), 2, results.as_mut_ptr(), errors.as_mut_ptr()) };
        let (code, message) = outcome(error);
        assert!(code == COS_ERROR_INVALID_ARGUMENT && message.contains(says), "{message}");
    }
    assert_eq!(session.stats().unwrap().steps, 0, "no call has begun anything");
    session.free();
    unsafe { cos_engine_free(engine) };
}

/// Callers of the first version have shorter results, one behind another.
#[test]
fn results_of_the_first_version() {
    let engine = engine(flat);
    let options = cos_session_options { max_tokens: 1, strategy: COS_STRATEGY_STANDARD, ..options() };
    let sessions = [(); 3].map(|()| session(engine, &options));
    let pointers = sessions.map(|session| session.0);
    let (mut results, mut errors) = ([[32usize, 1, 1, 1]; 3], [null_mut(); 3]);
    let call = unsafe { cos_step_many(pointers.as_ptr(), 3, results.as_mut_ptr().cast(), errors.as_mut_ptr()) };
    assert_eq!(code(call), 0);
    for [size, tokens, count, finish] in results {
        assert_eq!((size, count, finish as i32), (32, 1, COS_FINISH_MAX_TOKENS));
        assert_eq!(unsafe { *(tokens as *const i32) }, 1);
    }
    sessions.into_iter().for_each(Shared::free);
    unsafe { cos_engine_free(engine) };
}

#[test]
fn each_session_has_its_own_news() {
    let engine = batching();
    // A panic within a pass leaves all of it in an unknown state, so it is one of another engine.
    let panicking = self::engine(|context, row| {
        assert!(context.len() < 9, "planted");
        flat(context, row)
    });
    let limited = |max_tokens, strategy| cos_session_options { max_tokens, strategy, ..options() };
    let prompts: [&[i32]; 7] = [&[0, 5], &[1, 3], &[2, 5], &[3, 5], &[4; 30], &[5, 4], &[6]];
    let strategies = [COS_STRATEGY_STANDARD, COS_STRATEGY_SPECULATIVE, COS_STRATEGY_COS];
    let engine_of = |index: usize| if index == 1 { panicking } else { engine };
    let new = |index: usize, prompt: &[i32]| start(engine_of(index), &limited(12, strategies[index % 3]), prompt);
    let is_good = |index: usize| !(1..4).contains(&index);
    let expected: Vec<_> = prompts
        .iter()
        .enumerate()
        .map(|(index, prompt)| if is_good(index) { alone(new(index, prompt)) } else { Vec::new() })
        .collect();
    let sessions: Vec<_> = prompts.iter().enumerate().map(|(index, prompt)| new(index, prompt)).collect();
    let functions = [null_mut(), [0].as_mut_ptr().cast()].map(|combine_data| {
        let combine = Some(bad_function as _);
        start(engine, &cos_session_options { combine, combine_data, ..limited(12, 1) }, &[7])
    });
    let mut pointers: Vec<_> = sessions.iter().map(|session| session.0).collect();
    pointers.extend([null_mut(), functions[0].0, functions[1].0, sessions[4].0]);
    let mut texts = vec![Vec::new(); prompts.len()];
    let mut ends = vec![None; prompts.len()];
    for calls in 0.. {
        assert!(calls < 200, "{ends:?}");
        let news = step_many(&pointers);
        assert_eq!([news[7].0, news[10].0], [COS_ERROR_INVALID_ARGUMENT; 2], "NULL, and a session given twice");
        for (news, codes) in [(&news[8], [COS_ERROR_INTERNAL, COS_ERROR_POISONED]), (&news[9], [COS_ERROR_CALLBACK; 2])]
        {
            assert!(*news == nothing() || codes.contains(&news.0), "{news:?}");
        }
        for (index, (code, tokens, finish)) in news.into_iter().take(prompts.len()).enumerate() {
            if ends[index].is_some_and(|(code, finish)| code == 0 && finish != 0) {
                assert_eq!((code, tokens, Some((0, finish))), (0, Vec::new(), ends[index]), "the finish again");
                continue;
            }
            texts[index].extend(tokens);
            if code != 0 || finish != 0 {
                ends[index] = Some((code, finish));
            }
        }
        if ends.iter().all(Option::is_some) && calls > 40 {
            break;
        }
    }
    for (index, (text, end)) in texts.iter().zip(&ends).enumerate() {
        let end = end.unwrap();
        match index {
            1 => assert!([COS_ERROR_INTERNAL, COS_ERROR_POISONED].contains(&end.0), "{end:?}"),
            2 => assert_eq!(end, (COS_ERROR_NUMERIC, 0)),
            3 => assert_eq!(end, (COS_ERROR_RUNTIME, 0)),
            _ => assert_eq!((text, end), (&expected[index], (0, COS_FINISH_MAX_TOKENS)), "session {index}"),
        }
    }
    sessions.into_iter().chain(functions).for_each(Shared::free);
    [engine, panicking].into_iter().for_each(|engine| unsafe { cos_engine_free(engine) });
}

/// Without drafts, each call is one token of each; a long prompt is run in chunks beside it.
#[test]
fn a_call_is_one_pass_of_each_model() {
    let engine = batching();
    let options = cos_session_options { strategy: COS_STRATEGY_STANDARD, ..options() };
    let [short, long] = [&[0][..], &[4; 30]].map(|prompt| start(engine, &options, prompt));
    let mut waited = 0;
    loop {
        let news = step_many(&[short.0, long.0]);
        assert_eq!(news[0].1.len(), 1);
        if news[1] != nothing() {
            assert_eq!(news[1].1.len(), 1);
            break;
        }
        waited += 1;
    }
    assert_eq!(waited, 3, "chunks of 8 tokens");
    let both = step_many(&[short.0, long.0]);
    assert!(both.iter().all(|(_, tokens, _)| tokens.len() == 1));
    assert_eq!((short.stats().unwrap().tokens, long.stats().unwrap().tokens), (waited + 2, 2));
    // The engine has counted what its sessions have, in the middle of a round, too.
    assert_eq!(code(unsafe { cos_prompt(long.0, [4; 30].as_ptr(), 30) }), 0);
    assert_eq!(step_many(&[long.0]), [nothing()]);
    let mut totals = no_stats();
    assert_eq!(code(unsafe { cos_engine_stats(engine, &mut totals) }), 0);
    let of = |stats: &cos_stats| [stats.steps, stats.tokens, stats.forwards, stats.positions, stats.total_ns];
    let [one, other] = [short, long].map(|session| of(&session.stats().unwrap()));
    let sums: Vec<u64> = one.iter().zip(&other).map(|(one, other)| one + other).collect();
    assert_eq!(of(&totals), *sums);
    [short, long].into_iter().for_each(Shared::free);
    unsafe { cos_engine_free(engine) };
}

/// A call may leave a session in the middle of a round; whatever comes next, no token is lost or comes twice.
#[test]
fn calls_of_both_kinds_may_follow_each_other() {
    let engine = batching();
    for strategy in COS_STRATEGY_AUTO..=COS_STRATEGY_COS {
        let options = cos_session_options { strategy, max_tokens: 24, ..options() };
        let expected = alone(start(engine, &options, &[0, 9]));
        let session = start(engine, &options, &[0, 9]);
        let mut text = Vec::new();
        for call in 0.. {
            let (code, tokens, finish) = match call % 5 {
                0 | 1 => step_many(&[session.0]).remove(0),
                2 => session.step(),
                3 => {
                    assert_eq!(self::code(session.cancel()), 0);
                    let news = if call % 2 == 0 { session.step() } else { step_many(&[session.0]).remove(0) };
                    if news.2 == COS_FINISH_CANCELLED {
                        assert!(news.1.is_empty());
                        continue;
                    }
                    news
                }
                _ => step_many(&[session.0, session.0]).remove(0),
            };
            assert_eq!(code, 0);
            text.extend(tokens);
            if finish != COS_FINISH_NONE {
                break;
            }
        }
        assert_eq!(text, expected);
        // A prompt in the middle of a round gives the round up.
        assert_eq!(self::code(unsafe { cos_prompt(session.0, [4; 20].as_ptr(), 20) }), 0);
        assert_eq!(step_many(&[session.0]), [nothing()]);
        assert_eq!(self::code(unsafe { cos_prompt(session.0, [5].as_ptr(), 1) }), 0);
        let whole: Vec<i32> = [&[0, 9][..], &text, &[4; 20], &[5]].concat();
        assert_eq!(alone(session), alone(start(engine, &options, &whole)));
    }
    unsafe { cos_engine_free(engine) };
}

#[test]
fn a_busy_session_has_an_error_of_its_own() {
    let (engine, entered, leave) = gate(1);
    let [busy, free] = [(); 2].map(|()| session(engine, &options()));
    std::thread::scope(|scope| {
        let running = scope.spawn(move || busy.step());
        entered.wait();
        let news = step_many(&[busy.0, free.0]);
        assert_eq!((news[0].0, &news[0].1), (COS_ERROR_BUSY, &Vec::new()));
        assert_eq!(news[1].0, 0);
        leave.wait();
        assert_eq!(running.join().unwrap().0, 0);
    });
    assert_eq!(step_many(&[busy.0])[0].0, 0, "the session works again after the other call");
    [busy, free].into_iter().for_each(Shared::free);
    unsafe { cos_engine_free(engine) };
}
