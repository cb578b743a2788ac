//! The cache that sessions share: too small for all of them, and found computed by others.

use std::sync::Arc;

use crate::common::one_thread;
use crate::demo::{demo, prompts};
use cos::config::{Combine, Config, ModelConfig};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::model::scripted::Scripted;
use cos::model::{CacheUse, Cancel, Interrupt, Model, Pass, Sequence};
use cos::onnx::{CacheSize, LoadOptions, OnnxModel};
use cos::rows::Sampler;

/// Tokens of the context, for small caches.
const CONTEXT: usize = 256;

/// An engine whose models have a cache for so many contexts.
fn engine(contexts: usize) -> Arc<Engine> {
    one_thread();
    let load = |bytes: Option<[u64; 2]>| {
        let mut config = Config::open(&demo("engine.json")).unwrap();
        config.combine = Combine::Weighted { weights: vec![0.5, 0.5] };
        for (index, model) in config.models.iter_mut().enumerate() {
            let ModelConfig::Onnx(export) = model else { panic!("an export was expected") };
            export.context_length = Some(CONTEXT);
            export.cache_bytes = bytes.map(|bytes| bytes[index] as usize);
        }
        Engine::load(&config).unwrap()
    };
    let about = load(None).describe();
    let bytes = [0, 1].map(|index| {
        let number = |key: &str| about["models"][index][key].as_u64().unwrap();
        number("cache_bytes") / number("cache_blocks") * (contexts * CONTEXT) as u64 / number("cache_block_tokens")
    });
    Arc::new(load(Some(bytes)))
}

/// Options that do not depend on times.
fn options(seed: usize, max_tokens: usize) -> Options {
    let (strategy, targets) = [
        (Strategy::Standard, Targets::Combined),
        (Strategy::Cos, Targets::Combined),
        (Strategy::Standard, Targets::Routed),
        (Strategy::Cos, Targets::Routed),
    ][seed % 4];
    Options {
        strategy,
        targets: Some(targets),
        sampler: Sampler::new(if seed.is_multiple_of(4) { 0.0 } else { 1.0 }, 0, 0.0, 0.0).unwrap(),
        seed: seed as u64,
        max_tokens,
        stop_tokens: Some(Vec::new()),
        ..Options::default()
    }
}

fn start(engine: &Arc<Engine>, prompt: &[i32], options: &Options) -> Session {
    let mut session = Session::new(engine, options).unwrap();
    session.prompt(prompt).unwrap();
    session
}

fn finish(mut session: Session) -> Vec<i32> {
    while session.step().unwrap().1 == State::Open {}
    session.decoder().committed().to_vec()
}

fn cache_use(engine: &Engine) -> CacheUse {
    engine.totals().lock().cache_use
}

#[test]
fn sessions_with_too_little_memory_decode_the_same_texts() {
    let small = engine(1);
    let prompts: Vec<Vec<i32>> = prompts(&small, "gsm8k.jsonl").into_iter().take(8).collect();
    let session = |seed: usize| {
        let prompt = &prompts[seed][..prompts[seed].len().min(150)];
        start(&small, prompt, &options(seed, 70))
    };
    let alone: Vec<Vec<i32>> = (0..prompts.len()).map(|seed| finish(session(seed))).collect();
    assert_eq!(cache_use(&small).recomputed, 0, "a session alone has enough memory");
    let ready = std::sync::Barrier::new(prompts.len());
    let together: Vec<Vec<i32>> = std::thread::scope(|scope| {
        let run = |seed| {
            let session = session(seed);
            ready.wait();
            finish(session)
        };
        let threads: Vec<_> = (0..prompts.len()).map(|seed| scope.spawn(move || run(seed))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(alone == together, "a text has changed");
    assert!(cache_use(&small).recomputed > 0, "nobody was set back");
}

#[test]
fn what_a_session_has_computed_is_found_by_others() {
    let engine = engine(4);
    let block = engine.describe()["models"][0]["cache_block_tokens"].as_u64().unwrap() as usize;
    let prompt = &prompts(&engine, "humaneval.jsonl")[0][..70];
    let first = finish(start(&engine, prompt, &options(0, 100)));
    assert_eq!(cache_use(&engine).found, 0);
    // The next turn of a chat, by a server that makes a session for each request.
    let turn = [&first[..], &prompt[..9]].concat();
    let found = |session: &Session| session.stats().cache_use.found as usize;
    let whole = |tokens: usize| tokens / block * block;
    let mut second = start(&engine, &turn, &options(0, 20));
    second.step().unwrap();
    // The tokens of the last round were not seen by any model.
    let least = 2 * whole(first.len() - 1 - options(0, 0).max_tokens.max(8));
    assert!((least..=2 * whole(first.len())).contains(&found(&second)), "{} of {}", found(&second), first.len());
    let expected = finish(second);
    assert_eq!(cache_use(&engine).found as usize % block, 0);

    let mut other = Session::new(&engine, &options(0, 20)).unwrap();
    other.set_scope("tenant").unwrap();
    other.prompt(&turn).unwrap();
    assert_eq!(other.set_scope("late").unwrap_err().code(), 1);
    other.step().unwrap();
    assert_eq!(found(&other), 0, "another scope");
    assert_eq!(finish(other), expected);
    for (scope, is_found) in [("tenant", true), ("another", false), ("", true)] {
        let mut again = Session::new(&engine, &options(0, 20)).unwrap();
        again.set_scope(scope).unwrap();
        again.prompt(&turn).unwrap();
        again.step().unwrap();
        assert_eq!(found(&again) > 0, is_found, "{scope}");
        assert_eq!(finish(again), expected);
    }
}

#[test]
fn forks_share_blocks_and_do_not_disturb_each_other() {
    for contexts in [1, 4] {
        let engine = engine(contexts);
        let prompt = &prompts(&engine, "humaneval.jsonl")[0][..60];
        let expected = finish(start(&engine, prompt, &options(0, 90)));
        let mut parent = start(&engine, prompt, &options(0, 90));
        let mut forks = Vec::new();
        // Some of them begin where a block ends, most within one.
        while parent.decoder().committed().len() < prompt.len() + 40 {
            parent.step().unwrap();
            if forks.len() < 6 && parent.decoder().committed().len() % 5 < 2 {
                forks.push(parent.fork(0).unwrap());
            }
        }
        let before = parent.decoder().committed().len();
        parent.rewind(before - 17).unwrap();
        forks.push(parent.fork(0).unwrap());
        forks.push(parent);
        let texts: Vec<Vec<i32>> = std::thread::scope(|scope| {
            let threads: Vec<_> = forks.into_iter().map(|fork| scope.spawn(move || finish(fork))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(texts.iter().all(|text| *text == expected), "{contexts}");
        if contexts > 1 {
            assert_eq!(cache_use(&engine).recomputed, 0, "a fork computes nothing anew");
        }
    }
}

#[test]
fn one_that_has_finished_holds_up_nobody() {
    let engine = engine(1);
    let prompts = prompts(&engine, "humaneval.jsonl");
    let mut first = start(&engine, &prompts[0][..100], &options(0, 100));
    while first.step().unwrap().1 == State::Open {}
    // Younger, and too large beside the first one. A call that finds no memory takes 5 ms.
    let mut second = start(&engine, &prompts[1][..120], &options(0, 60));
    let mut calls = 0;
    while second.decoder().committed().len() < 180 {
        step_many(std::slice::from_mut(&mut second), |_, state| assert!(state.is_ok()));
        calls += 1;
    }
    assert!(calls <= 62, "{calls}");
}

#[test]
fn a_panic_in_a_pass_leaves_the_other_sequences_as_they_were() {
    one_thread();
    // Memory for one context.
    let options = LoadOptions { context_length: Some(CONTEXT), cache: CacheSize::Share(0.0), ..LoadOptions::default() };
    let model = OnnxModel::load(&demo("base"), "base", &options).unwrap();
    let other = Scripted::new(4, |_, _| Ok(()));
    let [older, younger] = [(); 2].map(|()| Arc::new(Cancel::default()));
    let run =
        |sequence: &mut dyn Sequence, tokens: &[i32]| model.forward(&mut [Pass::plain(sequence, tokens)]).unwrap();
    let row = |sequence: &dyn Sequence| sequence.row(sequence.len()).scores().unwrap().to_vec();
    let texts = [1, 2].map(|step| (0..CONTEXT as i32 - 8).map(|token| 5 + step * token % 900).collect::<Vec<_>>());
    let alone = texts.each_ref().map(|text| {
        let mut sequence = model.start(&older).unwrap();
        for part in text.chunks(64) {
            run(sequence.as_mut(), part);
        }
        row(sequence.as_ref())
    });
    let mut first = model.start(&younger).unwrap();
    let mut stranger = other.start(&younger).unwrap();
    for part in texts[0].chunks(64) {
        let mut batch = [Pass::plain(first.as_mut(), part), Pass::plain(stranger.as_mut(), &[7])];
        let failed = model.forward(&mut batch).unwrap_err();
        assert!(matches!(failed, Interrupt::Failed(Error::Internal(_))), "{failed:?}");
        run(first.as_mut(), part);
    }
    assert_eq!(row(first.as_ref()), alone[0]);
    // No pass holds blocks any more, so they go to the older sequence.
    let mut second = model.start(&older).unwrap();
    for part in texts[1].chunks(64) {
        run(second.as_mut(), part);
    }
    assert_eq!(row(second.as_ref()), alone[1]);
}

#[test]
fn a_fork_costs_no_pass() {
    let engine = engine(4);
    let prompt = &prompts(&engine, "humaneval.jsonl")[0][..100];
    let mut parent = start(&engine, prompt, &options(0, 90));
    parent.step().unwrap();
    let mut fork = parent.fork(1).unwrap();
    assert_eq!(fork.stats().counters.forwards, 0);
    fork.step().unwrap();
    let stats = fork.stats();
    // Each of two models sees the last token, and perhaps one that was scored before.
    assert!(stats.counters.forwards <= 2 && stats.counters.positions <= 4, "{:?}", stats.counters);
    assert_eq!(stats.cache_use, CacheUse::default());
}
