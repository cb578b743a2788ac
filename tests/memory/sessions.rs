//! The memory of sessions: what they report, what a long prompt needs, what happens without memory, and weights that
//! two models share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use cos::config::{Combine, Config};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::model::scripted::Scripted;
use cos::rows::Sampler;

use crate::allocator::{HELD, LARGEST, REFUSED, turn};

fn folder(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn engine(paths: &[&str]) -> Arc<Engine> {
    engine_of(paths, None)
}

/// An engine whose models score drafts in a given way. Those that score one by one run each sequence alone.
fn engine_of(paths: &[&str], scoring: Option<&str>) -> Arc<Engine> {
    let model = |path: &&str| serde_json::json!({ "path": folder(path), "scoring": scoring });
    let models: Vec<_> = paths.iter().map(model).collect();
    let weights = vec![1.0 / paths.len() as f32; paths.len()];
    let config = serde_json::json!({ "models": models, "combine": { "kind": "weighted", "weights": weights } });
    Arc::new(Engine::load(&Config::parse(&config.to_string()).unwrap()).unwrap())
}

fn session(engine: &Arc<Engine>, temperature: f32) -> Session {
    let options = Options {
        strategy: Strategy::Cos,
        targets: Some(Targets::Combined),
        proposal_lengths: Some(vec![2; engine.participants().len()]),
        sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
        stop_tokens: Some(Vec::new()),
        ..Options::default()
    };
    Session::new(engine, &options).unwrap()
}

/// Do something while large blocks of memory are refused. Returns how many were.
fn without_memory<T>(body: impl FnOnce() -> T) -> (usize, T) {
    let before = REFUSED.load(Relaxed);
    LARGEST.store(200 << 10, Relaxed);
    let result = body();
    LARGEST.store(usize::MAX, Relaxed);
    (REFUSED.load(Relaxed) - before, result)
}

fn tokens(count: usize) -> Vec<i32> {
    (0..count as i32).map(|index| index * 7 % 90 + 3).collect()
}

/// These exports run alone, so their sessions have caches of their own.
#[test]
fn a_session_reports_what_it_holds() {
    let _turn = turn();
    for paths in [
        ["tests/exports/variants/num-logits", "tests/exports/variants/dead-entries-fp16"],
        ["tests/exports/llama/mobius-static", "tests/exports/variants/last-logits"],
    ] {
        let engine = engine(&paths);
        for temperature in [0.0, 1.0] {
            let before = HELD.load(Relaxed);
            let mut session = session(&engine, temperature);
            let length = session.decoder().context_length() / 2;
            session.prompt(&tokens(length)).unwrap();
            for _ in 0..8 {
                session.step().unwrap();
                let (held, memory) = (HELD.load(Relaxed) - before, session.memory());
                assert!(memory.peak_bytes >= memory.bytes, "{memory:?}");
                // Names, bindings and inputs, some thousands of bytes, are not reported.
                assert!(memory.bytes.abs_diff(held) < held / 50 + 40_000, "{paths:?}: {memory:?}, but {held} are held");
            }
        }
    }
}

/// Rows dominate the memory, because the vocabulary is long.
#[test]
fn a_session_reports_the_rows_of_its_decoder() {
    let _turn = turn();
    let script = |_: &[i32], row: &mut [f32]| {
        row.fill(0.0);
        Ok(())
    };
    let model = Arc::new(Scripted::new(200_000, script));
    let engine = Arc::new(Engine::new(vec![model], Combine::Target { model: 0 }, Vec::new(), None).unwrap());
    let before = HELD.load(Relaxed);
    let session = session(&engine, 1.0);
    let (held, memory) = (HELD.load(Relaxed) - before, session.memory());
    assert!(memory.bytes.abs_diff(held) < held / 50 + 40_000, "{memory:?}, but {held} are held");
}

#[test]
fn a_long_prompt_takes_bounded_memory_and_gives_it_back() {
    let _turn = turn();
    let engine = engine(&["models/demo/base", "models/demo/math"]);
    let memory = |length: usize| {
        let mut session = session(&engine, 0.0);
        session.prompt(&tokens(length)).unwrap();
        for _ in 0..8 {
            session.step().unwrap();
        }
        session.memory()
    };
    // Both models have their blocks in a cache of all sessions, and the rows of a prompt are not even made.
    let about = engine.describe();
    let number = |model: usize, key: &str| about["models"][model][key].as_u64().unwrap() as usize;
    let block = |model: usize| number(model, "cache_bytes") / number(model, "cache_blocks");
    let blocks = |tokens: usize| (block(0) + block(1)) * (tokens / number(0, "cache_block_tokens"));
    for (short, long) in [(100, 260), (600, 920)] {
        let grows = memory(long).bytes - memory(short).bytes;
        // A step may keep a row more or less.
        assert!(grows.abs_diff(blocks(long - short)) <= 8 * 4 * engine.vocab_size(), "{short}, {long}: {grows}");
    }
}

/// Sequences that share no cache grow their own.
#[test]
fn without_memory_a_step_fails_and_the_session_goes_on() {
    let _turn = turn();
    let engine = engine_of(&["models/demo/base", "models/demo/math"], Some("one_by_one"));
    assert!(engine.models().all(|model| !model.batches()));
    let finish = |session: &mut Session| {
        while session.decoder().committed().len() < 640 {
            session.step().unwrap();
        }
        (session.decoder().committed().to_vec(), session.decoder().counters().near_ties)
    };
    let start = || {
        let mut session = session(&engine, 0.0);
        session.prompt(&tokens(100)).unwrap();
        session.step().unwrap();
        session.prompt(&tokens(500)).unwrap();
        session
    };
    let (expected, _) = finish(&mut start());
    let mut session = start();
    let before = session.decoder().committed().to_vec();
    let (refused, error) = without_memory(|| session.step().map(|_| ()));
    let error = error.unwrap_err();
    assert!(refused > 0 && error.code() == 4, "{error}");
    assert!(error.to_string().contains("not enough memory for a cache of"), "{error}");
    assert_eq!(session.decoder().committed(), before);
    let (found, near_ties) = finish(&mut session);
    assert!(found == expected || near_ties > 0, "after {error}");
}

/// The same for the rows of common passes.
#[test]
fn without_memory_common_passes_fail_and_all_sessions_go_on() {
    let _turn = turn();
    let engine = engine(&["models/demo/base", "models/demo/math"]);
    let decode = |is_short: bool| {
        let start = |index: usize| {
            let mut session = session(&engine, 0.0);
            // So short that all are part of the first pass, whose rows need a new buffer.
            session.prompt(&tokens(100)[index..index + 8]).unwrap();
            session
        };
        let mut sessions: Vec<Session> = (0..64).map(start).collect();
        if is_short {
            let mut errors = Vec::with_capacity(1000);
            let mut step = || step_many(&mut sessions, |_, state| errors.extend(state.err()));
            let (refused, ()) = without_memory(|| (0..6).for_each(|_| step()));
            assert!(refused > 0 && !errors.is_empty(), "{refused}");
            let is_expected = |error: &Error| error.code() == 4 && error.to_string().contains("of logits");
            assert!(errors.iter().all(is_expected), "{:?}", errors[0]);
        }
        while sessions.iter().any(|session| session.decoder().committed().len() < 40) {
            step_many(&mut sessions, |_, state| assert_eq!(state.unwrap(), State::Open));
        }
        let text = |session: &Session| (session.decoder().committed()[..32].to_vec(), session.decoder().counters());
        sessions.iter().map(text).collect::<Vec<_>>()
    };
    for ((found, counters), (expected, _)) in decode(true).iter().zip(&decode(false)) {
        assert!(found == expected || counters.near_ties > 0, "{found:?} {expected:?}");
    }
}

/// A file that is used twice, as target and drafter or in two engines, is held once.
#[test]
fn weights_that_are_named_twice_are_held_once() {
    let _turn = turn();
    let resident = || {
        let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
        4096 * pages.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
    };
    let size = folder("models/demo/base/model.onnx").metadata().unwrap().len() as usize;
    let first = engine(&["models/demo/base"]);
    let before = resident();
    // Caches and buffers of six models are less than half of six models' weights.
    let more = engine(&["models/demo/base"; 6]);
    let grown = resident().saturating_sub(before);
    println!("{grown} more bytes for 6 * {size}");
    assert!(grown < 3 * size, "{grown} more bytes for weights of {size} that were there");
    drop(more);

    let mut session = session(&engine(&["models/demo/base"; 2]), 1.0);
    session.prompt(&tokens(20)).unwrap();
    while session.decoder().committed().len() < 60 {
        session.step().unwrap();
    }
    let counters = session.decoder().counters();
    assert!(counters.tested > 10 && counters.accepted == counters.tested, "{counters:?}");
    drop(first);
}
