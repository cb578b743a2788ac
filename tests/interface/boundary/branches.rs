//! Sessions that are forked, rewound, or kept apart by a scope.

use std::ffi::CString;
use std::ptr::{null, null_mut};
use std::sync::Arc;

use cos::config::{Combine, FullCache};
use cos::engine::Engine;
use cos::ffi::*;
use cos::model::Model;
use cos::model::scripted::Scripted;

use super::engines::{Shared, engine, session};
use super::many::step_many;
use crate::common::boundary::{code, options, outcome};

/// Rows that depend on all tokens before.
fn mixed(context: &[i32], row: &mut [f32]) -> Result<(), cos::model::Interrupt> {
    let hash = context.iter().fold(7, |hash: usize, &token| (hash * 31 + token as usize + 1) % 1009);
    row.iter_mut().enumerate().for_each(|(token, score)| *score = ((hash * (token + 3)) % 13) as f32 / 4.0);
    Ok(())
}

/// An engine whose models share memory for so many tokens.
fn sharing(memory: usize, when_full: FullCache) -> *mut cos_engine {
    let model = || Arc::new(Scripted::new(4, mixed).with_batches(16).with_memory(memory)) as Arc<dyn Model>;
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    let engine = Engine::new(vec![model(), model()], combine, Vec::new(), None).unwrap();
    cos_engine::into_raw(Arc::new(engine.with_when_full(when_full)))
}

fn fork(session: Shared, seed: u64) -> Shared {
    let mut fork = null_mut();
    assert_eq!(code(unsafe { cos_session_fork(session.0, seed, &mut fork) }), 0);
    Shared(fork)
}

fn finish(session: Shared) -> Vec<i32> {
    let mut tokens = Vec::new();
    loop {
        let (code, new, finish) = session.step();
        assert_eq!(code, 0);
        tokens.extend(new);
        if finish != COS_FINISH_NONE {
            return tokens;
        }
    }
}

fn engines() -> [*mut cos_engine; 2] {
    [engine(mixed), sharing(1 << 20, FullCache::Wait)]
}

fn each_strategy() -> impl Iterator<Item = cos_session_options> {
    let of = |strategy| cos_session_options { strategy, max_tokens: 20, ..options() };
    (COS_STRATEGY_AUTO..=COS_STRATEGY_COS).map(of)
}

#[test]
fn a_greedy_fork_goes_on_as_its_parent_does() {
    for engine in engines() {
        for options in each_strategy() {
            let whole = session(engine, &options);
            let expected = finish(whole);
            let parent = session(engine, &options);
            let before_all = fork(parent, 1);
            let mut tokens = parent.step().1;
            let stats = parent.stats().unwrap();
            let first = fork(parent, 2);
            assert_eq!(first.stats().unwrap().tokens, 0, "it has statistics of its own");
            let second = fork(first, 3);
            assert_eq!(parent.stats().unwrap().tokens, stats.tokens);
            assert_eq!([&tokens[..], &finish(first)].concat(), expected);
            assert_eq!([&tokens[..], &finish(second)].concat(), expected);
            tokens.extend(finish(parent));
            assert_eq!(tokens, expected);
            assert_eq!(finish(before_all), expected);
            let ended = fork(parent, 4);
            assert_eq!(ended.step(), (0, Vec::new(), COS_FINISH_MAX_TOKENS), "the fork of one that has ended has too");
            assert_eq!(code(unsafe { cos_prompt(ended.0, [1].as_ptr(), 1) }), 0);
            assert_eq!(finish(ended).len(), 20);
            assert_eq!(parent.step().2, COS_FINISH_MAX_TOKENS);
            [whole, parent, before_all, first, second, ended].into_iter().for_each(Shared::free);
        }
        unsafe { cos_engine_free(engine) };
    }
}

#[test]
fn forks_draw_numbers_of_their_own_and_the_same_again() {
    for engine in engines() {
        for options in each_strategy().skip(1) {
            let options = cos_session_options { temperature: 1.0, seed: 5, max_tokens: 60, ..options };
            let texts = || {
                let parent = session(engine, &options);
                parent.step();
                let forks = [5, 5, 6].map(|seed| fork(parent, seed));
                let texts = [parent, forks[0], forks[1], forks[2], fork(forks[0], 5)].map(|each| {
                    let text = finish(each);
                    each.free();
                    text
                });
                assert!((0..5).all(|one| (0..one).all(|other| texts[one][..40] != texts[other][..40])));
                texts
            };
            assert_eq!(texts(), texts());
        }
        unsafe { cos_engine_free(engine) };
    }
}

#[test]
fn a_fork_in_the_middle_of_a_round_leaves_it() {
    let engine = sharing(1 << 20, FullCache::Wait);
    for options in each_strategy().skip(1) {
        let whole = session(engine, &options);
        let expected = finish(whole);
        let parent = session(engine, &options);
        let mut tokens = Vec::new();
        let mut forks = Vec::new();
        for _ in 0..9 {
            forks.push((tokens.clone(), fork(parent, 1)));
            tokens.extend(step_many(&[parent.0]).remove(0).1);
        }
        tokens.extend(finish(parent));
        assert_eq!(tokens, expected);
        for (tokens, fork) in forks {
            assert_eq!([&tokens[..], &finish(fork)].concat(), expected);
            fork.free();
        }
        [whole, parent].into_iter().for_each(Shared::free);
    }
    unsafe { cos_engine_free(engine) };
}

#[test]
fn what_is_rewound_is_decoded_again() {
    for engine in engines() {
        for options in each_strategy() {
            let session = session(engine, &options);
            let expected = finish(session);
            let rewind = |length: usize| outcome(unsafe { cos_session_rewind(session.0, length) });
            for length in [22, 4, 3, 17] {
                assert_eq!(rewind(length).0, 0);
                assert_eq!(finish(session), expected[length - 3..]);
            }
            assert_eq!(rewind(23).0, 0);
            assert_eq!(session.step().2, COS_FINISH_MAX_TOKENS, "nothing was forgotten");
            let (code_, message) = rewind(24);
            assert_eq!(code_, COS_ERROR_INVALID_ARGUMENT);
            assert!(message.contains("24") && message.contains("has 23 tokens"), "{message}");
            // A part of the prompt, and another end of it.
            assert_eq!(rewind(1).0, 0);
            assert_eq!(code(unsafe { cos_prompt(session.0, [2, 3].as_ptr(), 2) }), 0);
            assert_eq!(finish(session), expected);
            assert_eq!(rewind(2).0, 0);
            let again = finish(session);
            assert_eq!((again.len(), again == expected), (20, false), "max_tokens counts from where it begins");
            assert_eq!(rewind(0).0, 0);
            assert_eq!(session.step().0, COS_ERROR_INVALID_ARGUMENT, "there are no tokens");
            assert_eq!(code(unsafe { cos_prompt(session.0, [1, 2, 3].as_ptr(), 3) }), 0);
            assert_eq!(finish(session), expected);
            session.free();
        }
        unsafe { cos_engine_free(engine) };
    }
}

#[test]
fn a_rewind_gives_up_the_round_that_was_begun() {
    let engine = sharing(1 << 20, FullCache::Wait);
    for options in each_strategy().skip(1) {
        let session = session(engine, &options);
        let expected = finish(session);
        for calls in 0..5 {
            for length in [3, 7] {
                assert_eq!(code(unsafe { cos_session_rewind(session.0, length) }), 0);
                let mut tokens = Vec::new();
                (0..calls).for_each(|_| tokens.extend(step_many(&[session.0]).remove(0).1));
                assert_eq!(code(unsafe { cos_session_rewind(session.0, length + tokens.len()) }), 0);
                tokens.extend(finish(session));
                assert_eq!(tokens, expected[length - 3..]);
            }
        }
        session.free();
    }
    unsafe { cos_engine_free(engine) };
}

#[test]
fn sampled_tokens_are_drawn_anew_behind_a_rewind() {
    let engine = sharing(1 << 20, FullCache::Wait);
    for options in each_strategy().skip(1) {
        let session = session(engine, &cos_session_options { temperature: 1.0, seed: 5, max_tokens: 40, ..options });
        let first = finish(session);
        assert_eq!(code(unsafe { cos_session_rewind(session.0, 3) }), 0);
        assert_ne!(finish(session), first);
        session.free();
    }
    unsafe { cos_engine_free(engine) };
}

#[test]
fn a_scope_is_set_before_the_first_prompt() {
    let engine = sharing(1 << 20, FullCache::Wait);
    let mut raw = null_mut();
    assert_eq!(code(unsafe { cos_session_new(engine, &options(), &mut raw) }), 0);
    let set = |scope: &str| {
        let scope = CString::new(scope).unwrap();
        outcome(unsafe { cos_session_set_scope(raw, scope.as_ptr()) })
    };
    assert_eq!([set("tenant").0, set("").0, set("Mieter 7, größer").0], [0; 3]);
    assert_eq!(code(unsafe { cos_session_set_scope(raw, null()) }), COS_ERROR_INVALID_ARGUMENT);
    assert_eq!(code(unsafe { cos_session_set_scope(raw, c"\xff".as_ptr()) }), COS_ERROR_INVALID_ARGUMENT);
    assert_eq!(code(unsafe { cos_prompt(raw, [1].as_ptr(), 1) }), 0);
    let (code, message) = set("late");
    assert_eq!(code, COS_ERROR_INVALID_ARGUMENT);
    assert!(message.contains("before the first prompt"), "{message}");
    Shared(raw).free();
    unsafe { cos_engine_free(engine) };
}

#[test]
fn a_full_engine_refuses_new_sessions() {
    let engine = sharing(30, FullCache::Refuse);
    let first = session(engine, &cos_session_options { max_tokens: 27, ..options() });
    (0..24).for_each(|_| assert_eq!(first.step().0, 0));
    let second = session(engine, &cos_session_options { max_tokens: 10, ..options() });
    while first.step().2 == COS_FINISH_NONE {}
    for _ in 0..2 {
        assert_eq!(second.step().0, COS_ERROR_NO_MEMORY);
    }
    first.free();
    assert_eq!(finish(second).len(), 10);
    second.free();
    unsafe { cos_engine_free(engine) };
}

#[test]
fn max_tokens_counts_from_the_last_prompt_that_is_left() {
    for engine in engines() {
        for options in each_strategy() {
            let session = session(engine, &cos_session_options { max_tokens: 10, ..options });
            assert_eq!(finish(session).len(), 10);
            assert_eq!(code(unsafe { cos_prompt(session.0, [2, 1].as_ptr(), 2) }), 0);
            assert_eq!(finish(session).len(), 10);
            // Within the second turn, at its beginning, within the second prompt, and in the first turn.
            for (length, left) in [(18, 7), (15, 10), (14, 10), (13, 0), (12, 1), (7, 6), (3, 10), (2, 10)] {
                assert_eq!(code(unsafe { cos_session_rewind(session.0, length) }), 0);
                assert_eq!(finish(session).len(), left, "from {length} on");
            }
            session.free();
        }
        unsafe { cos_engine_free(engine) };
    }
}
