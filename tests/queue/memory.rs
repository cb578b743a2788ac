//! Sessions of models whose memory is too small for all of them.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use cos::config::{Combine, FullCache};
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::model::scripted::Scripted;
use cos::rows::Sampler;

/// The last token of a text of so many tokens, prompt included, needs memory for one less.
const TOKENS: usize = 60;

fn script(model: usize) -> impl Fn(&[i32], &mut [f32]) -> Result<(), cos::model::Interrupt> {
    move |context, row| {
        let hash =
            context.iter().fold(model as u64, |hash, &token| (hash + token as u64 + 1).wrapping_mul(0x9e37_79b9));
        for (token, score) in row.iter_mut().enumerate() {
            *score = ((hash >> 7) * (token as u64 + 3) % 97) as f32 / 20.0;
        }
        Ok(())
    }
}

/// Two models, each with memory for so many tokens.
fn engine(memory: [usize; 2], when_full: FullCache) -> Arc<Engine> {
    let model = |(index, memory): (usize, usize)| {
        let pause = |_: &[usize]| {
            std::thread::sleep(Duration::from_micros(20));
            Ok(())
        };
        let model = Scripted::new(20, script(index)).with_max_pass(8).with_batches(16).with_batch_hook(pause);
        let model = model.with_memory(memory);
        Arc::new(model.with_name(["a", "b"][index]))
    };
    let models: Vec<_> = memory.into_iter().enumerate().map(model).collect();
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap().with_when_full(when_full))
}

const STRATEGIES: [Strategy; 4] = [Strategy::Standard, Strategy::Speculative, Strategy::Cos, Strategy::Auto];

fn session(engine: &Arc<Engine>, seed: usize) -> Session {
    // A failed round is drawn anew, so those that meet errors are greedy.
    let is_greedy = STRATEGIES[seed % 4] == Strategy::Speculative;
    let temperature = if is_greedy { 0.0 } else { 1.0 };
    let options = Options {
        strategy: STRATEGIES[seed % 4],
        sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
        seed: seed as u64,
        max_tokens: TOKENS - prompt(seed).len(),
        ..Options::default()
    };
    let mut session = Session::new(engine, &options).unwrap();
    session.prompt(&prompt(seed)).unwrap();
    session
}

fn prompt(seed: usize) -> Vec<i32> {
    (0..3 + 5 * (seed % 5)).map(|index| ((seed + index) % 20) as i32).collect()
}

fn decode(session: &mut Session) -> Vec<i32> {
    while session.step().unwrap().1 == State::Open {}
    session.decoder().committed().to_vec()
}

/// The texts of sessions that are alone in an engine.
fn alone(sessions: usize) -> Vec<Vec<i32>> {
    let engine = engine([1 << 20; 2], FullCache::Wait);
    (0..sessions).map(|seed| decode(&mut session(&engine, seed))).collect()
}

/// What `auto` drafts depends on times, so only its pinned neighbours have the same text at each run.
fn check(texts: &[Vec<i32>], expected: &[Vec<i32>]) {
    for (seed, (text, expected)) in texts.iter().zip(expected).enumerate() {
        assert_eq!(text.len(), TOKENS, "session {seed}");
        assert!(STRATEGIES[seed % 4] == Strategy::Auto || text == expected, "session {seed}");
    }
}

#[test]
fn threads_with_too_little_memory_decode_the_same_texts() {
    let expected = alone(12);
    // The memory of one session, of two and a half, and of one here and of six there.
    for memory in [[TOKENS; 2], [TOKENS * 5 / 2; 2], [TOKENS, TOKENS * 6]] {
        let engine = engine(memory, FullCache::Wait);
        let ready = Barrier::new(expected.len());
        let texts: Vec<Vec<i32>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..expected.len())
                .map(|seed| {
                    let (engine, ready) = (&engine, &ready);
                    scope.spawn(move || {
                        let mut session = session(engine, seed);
                        ready.wait();
                        decode(&mut session)
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        check(&texts, &expected);
        assert!(engine.totals().lock().cache_use.recomputed > 0, "nobody was set back");
    }
}

#[test]
fn one_thread_drives_sessions_with_too_little_memory() {
    let expected = alone(12);
    let engine = engine([TOKENS, TOKENS * 2], FullCache::Wait);
    let mut sessions: Vec<(usize, Session)> = (0..expected.len()).map(|seed| (seed, session(&engine, seed))).collect();
    let mut texts = vec![Vec::new(); expected.len()];
    while !sessions.is_empty() {
        let mut ended = Vec::new();
        let mut all: Vec<Named> = sessions.iter_mut().map(|(seed, session)| Named(*seed, session)).collect();
        step_many(&mut all, |each, news| {
            if news.unwrap() != State::Open {
                ended.push(each.0);
            }
        });
        drop(all);
        sessions.retain(|(seed, session)| {
            if ended.contains(seed) {
                texts[*seed] = session.decoder().committed().to_vec();
            }
            !ended.contains(seed)
        });
    }
    check(&texts, &expected);
    assert!(engine.totals().lock().cache_use.recomputed > 0, "nobody was set back");
}

struct Named<'a>(usize, &'a mut Session);

impl std::borrow::Borrow<Session> for Named<'_> {
    fn borrow(&self) -> &Session {
        self.1
    }
}

impl std::borrow::BorrowMut<Session> for Named<'_> {
    fn borrow_mut(&mut self) -> &mut Session {
        self.1
    }
}

#[test]
fn a_new_session_is_refused_and_loses_nothing() {
    let expected = alone(6);
    let engine = engine([TOKENS; 2], FullCache::Refuse);
    let mut first = session(&engine, 1);
    let mut second = session(&engine, 5);
    while first.decoder().committed().len() < TOKENS - 2 {
        first.step().unwrap();
    }
    for _ in 0..2 {
        let error = second.step().unwrap_err();
        assert!(matches!(error, Error::NoMemory(_)) && error.code() == 13, "{error}");
        let mut news = Vec::new();
        while news.is_empty() {
            step_many(&mut [Named(2, &mut second)], |_, each| news.push(each));
        }
        assert!(matches!(news[..], [Err(Error::NoMemory(_))]), "{news:?}");
    }
    assert_eq!(decode(&mut first), expected[1]);
    drop(first);
    assert_eq!(decode(&mut second), expected[5]);
}

#[test]
fn a_sampled_session_that_is_refused_loses_no_number() {
    let engine = |memory| engine(memory, FullCache::Refuse);
    let roomy = engine([1000; 2]);
    // Only the second model is full.
    let tight = engine([1000, TOKENS]);
    for seed in [2, 4] {
        let expected = decode(&mut session(&roomy, seed));
        let mut first = session(&tight, 1);
        while first.decoder().committed().len() < TOKENS - 2 {
            first.step().unwrap();
        }
        let mut second = session(&tight, seed);
        for _ in 0..3 {
            assert!(matches!(second.step(), Err(Error::NoMemory(_))));
            assert_eq!(second.stats().counters.forwards, 0, "a pass was run in vain");
        }
        drop(first);
        assert_eq!(decode(&mut second), expected, "seed {seed}");
    }
}

#[test]
fn a_session_that_waits_for_memory_can_be_cancelled() {
    let engine = engine([TOKENS; 2], FullCache::Wait);
    let mut first = session(&engine, 1);
    while first.decoder().committed().len() < TOKENS - 2 {
        first.step().unwrap();
    }
    let mut second = session(&engine, 5);
    let cancel = second.cancel().clone();
    let started = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(50));
            cancel.request();
        });
        let (tokens, state) = second.step().unwrap();
        assert_eq!((tokens, state), (&[][..], State::Cancelled));
    });
    assert!(started.elapsed() >= Duration::from_millis(50), "it did not wait");
    let mut news = 0;
    step_many(&mut [Named(2, &mut second)], |_, _| news += 1);
    assert_eq!(news, 0, "one that cannot wait has no news");
    drop(first);
    assert_eq!(decode(&mut second), alone(6)[5]);
}
