//! An engine that is prepared for load.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cos::config::Combine;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::prepare::prepare;
use cos::engine::session::{Options, Session};
use cos::engine::stats::Stats;
use cos::error::Error;
use cos::rows::Sampler;

use crate::common::World;

const VOCAB: usize = 16;

/// Sessions and tokens of passes.
type Sizes = Arc<Mutex<BTreeSet<(usize, usize)>>>;

struct Machine {
    engine: Arc<Engine>,
    sizes: Sizes,
    clock: Arc<AtomicU64>,
}

/// Two models whose passes take a millisecond, with memory for so many tokens.
fn machine(memory: usize) -> Machine {
    let (sizes, clock) = (Sizes::default(), Arc::new(AtomicU64::new(0)));
    let model = |index: usize| {
        let (seen, passing) = (sizes.clone(), clock.clone());
        let hook = move |batch: &[usize]| {
            seen.lock().unwrap().insert((batch.len(), batch.iter().sum()));
            passing.fetch_add(1, Ordering::Relaxed);
            Ok(())
        };
        Arc::new(World::Related.model(index, VOCAB).with_batches(1 << 16).with_batch_hook(hook).with_memory(memory))
    };
    let models = (0..2).map(model).collect();
    let engine = Engine::new(models, Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap();
    let now = clock.clone();
    let engine = Arc::new(engine.with_clock(move || Duration::from_millis(now.load(Ordering::Relaxed))));
    Machine { engine, sizes, clock }
}

/// Texts of so many sessions.
fn decode(engine: &Arc<Engine>, count: usize, targets: Targets) -> Vec<Vec<i32>> {
    let new = |index: usize| {
        let options = Options {
            strategy: Strategy::Standard,
            targets: Some(targets),
            sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
            seed: index as u64,
            max_tokens: 12,
            ..Options::default()
        };
        let mut session = Session::new(engine, &options).unwrap();
        session.prompt(&[index as i32 % 16, 1, 2, 3]).unwrap();
        session
    };
    let mut sessions: Vec<Session> = (0..count).map(new).collect();
    while sessions.iter().any(|session| session.decoder().is_open()) {
        step_many(&mut sessions, |_, state| assert!(state.is_ok()));
    }
    sessions.iter().map(|session| session.decoder().committed().to_vec()).collect()
}

#[test]
fn what_sessions_need_was_run_before() {
    let machine = machine(1 << 20);
    let mut shares = Vec::new();
    let all = Duration::from_secs(3600);
    let told = prepare(&machine.engine, 24, all, |share| {
        shares.push(share);
        true
    });
    assert_eq!(told, Ok(1.0));
    assert!(shares.is_sorted() && shares.first() == Some(&0.0) && shares.last() == Some(&1.0), "{shares:?}");
    assert!(shares.len() > 100);
    assert_eq!(*machine.engine.totals().lock(), Stats::default(), "nobody has asked for these tokens");
    assert_eq!(machine.engine.waits().lock().first_token.count(), 0);
    let prepared = machine.sizes.lock().unwrap().clone();
    for count in [1, 2, 3, 4, 6, 8, 12, 16, 24] {
        let fresh = decode(&self::machine(1 << 20).engine, count, Targets::Combined);
        assert_eq!(decode(&machine.engine, count, Targets::Combined), fresh, "preparation changes no text");
    }
    let new: Vec<_> = machine.sizes.lock().unwrap().difference(&prepared).copied().collect();
    assert!(new.is_empty(), "sizes that were not prepared: {new:?}");
    let tokens: BTreeSet<usize> = prepared.iter().map(|(_, tokens)| *tokens).collect();
    assert!([32, 128, 512].iter().all(|prompt| tokens.contains(prompt)), "{tokens:?}");
    assert!(prepared.iter().any(|(sessions, tokens)| *sessions == 24 && *tokens >= 48), "no drafts: {prepared:?}");
}

#[test]
fn it_ends_when_the_time_is_over_or_the_caller_says_so() {
    let machine = machine(1 << 20);
    let before = machine.clock.load(Ordering::Relaxed);
    let share = prepare(&machine.engine, 64, Duration::from_millis(50), |_| true).unwrap();
    let passed = machine.clock.load(Ordering::Relaxed) - before;
    assert!((50..=51).contains(&passed) && share < 1.0, "{passed} ms, {share}");
    let mut asked = 0;
    let share = prepare(&machine.engine, 64, Duration::MAX, |_| {
        asked += 1;
        asked < 30
    });
    assert!(share.unwrap() < 1.0 && asked == 30);
    assert_eq!(machine.engine.queues().company(), 0);
}

/// Where there is no memory for many sessions, it tries what fits, and leaves the memory as it was.
#[test]
fn little_memory_is_no_error() {
    let machine = machine(600);
    assert_eq!(prepare(&machine.engine, 128, Duration::MAX, |_| true), Ok(1.0));
    assert_eq!(decode(&machine.engine, 2, Targets::Combined).len(), 2);
}

#[test]
fn an_error_of_a_model_is_told() {
    let fail = |_: &[usize]| Err(Error::Runtime("no device".into()).into());
    let model = Arc::new(World::Related.model(0, VOCAB).with_batches(64).with_batch_hook(fail));
    let engine = Engine::new(vec![model], Combine::Target { model: 0 }, Vec::new(), None).unwrap();
    let told = prepare(&Arc::new(engine), 4, Duration::MAX, |_| true);
    assert!(matches!(told, Err(Error::Runtime(_))), "{told:?}");
}
