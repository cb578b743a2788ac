//! How long sessions wait beside prompts and beside batch sessions, on a machine whose time is simulated.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cos::config::Combine;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::metrics::metrics;
use cos::engine::session::{Options, Session};
use cos::model::Priority;
use cos::model::scripted::Scripted;
use cos::rows::Sampler;

use crate::common::World;

/// Microseconds of a pass: the weights are read in the time in which 16 tokens are computed.
fn micros(tokens: usize) -> u64 {
    100 * tokens.max(16) as u64
}

struct Machine {
    engine: Arc<Engine>,
    /// Microseconds.
    clock: Arc<AtomicU64>,
}

impl Machine {
    fn new() -> Self {
        let clock = Arc::new(AtomicU64::new(0));
        let passing = clock.clone();
        let time = move |tokens: usize, _: usize, _: f64| {
            passing.fetch_add(micros(tokens), Ordering::Relaxed);
            Duration::from_micros(micros(tokens))
        };
        let script = |context: &[i32], row: &mut [f32]| {
            row.fill(0.0);
            row[context.len() % 8] = 1.0;
            Ok(())
        };
        let model = Scripted::new(8, script).with_batches(4096).with_max_pass(512).with_shared_time(time);
        let combine = Combine::Target { model: 0 };
        let engine = Engine::new(vec![Arc::new(model)], combine, Vec::new(), None).unwrap();
        let now = clock.clone();
        let engine = Arc::new(engine.with_clock(move || Duration::from_micros(now.load(Ordering::Relaxed))));
        let machine = Machine { engine, clock };
        // It has learned what passes of many sizes take.
        for tokens in [1, 8, 16, 20, 40, 80, 160, 320, 512] {
            step_many(&mut [machine.session(tokens, Priority::Interactive)], |_, state| assert!(state.is_ok()));
        }
        machine
    }

    fn session(&self, prompt: usize, priority: Priority) -> Session {
        let options = Options { strategy: Strategy::Standard, priority, ..Options::default() };
        let mut session = Session::new(&self.engine, &options).unwrap();
        session.prompt(&vec![1; prompt]).unwrap();
        session
    }

    /// Microseconds of each of so many calls, and who had news in it.
    fn calls(&self, sessions: &mut [Session], count: usize) -> Vec<(u64, Vec<bool>)> {
        let mut calls = Vec::new();
        for _ in 0..count {
            let begun = self.clock.load(Ordering::Relaxed);
            let before: Vec<usize> = sessions.iter().map(|session| session.decoder().committed().len()).collect();
            step_many(sessions, |_, state| assert!(state.is_ok()));
            let grown =
                sessions.iter().zip(before).map(|(session, before)| session.decoder().committed().len() > before);
            calls.push((self.clock.load(Ordering::Relaxed) - begun, grown.collect()));
        }
        calls
    }
}

/// A session that decodes has a token in each pass, and each pass takes at most three times as long as without prompts.
#[test]
fn a_long_prompt_does_not_stall_those_who_decode() {
    let machine = Machine::new();
    let mut sessions: Vec<Session> = (0..4).map(|_| machine.session(8, Priority::Interactive)).collect();
    machine.calls(&mut sessions, 5);
    sessions.extend([2000, 700].map(|prompt| machine.session(prompt, Priority::Interactive)));
    let calls = machine.calls(&mut sessions, 100);
    for (micros, grown) in &calls {
        assert!(grown[..4].iter().all(|grown| *grown), "a session stalls");
        // The last 16 tokens of a prompt count as little as those of a verification.
        assert!(*micros <= 3 * 1600 + 16 * 100, "a pass of {micros} µs");
    }
    // The prompts go on as fast as that allows: 2,700 tokens in passes of at most 48 tokens, of which 4 or 5 decode.
    let first = |index: usize| calls.iter().position(|(_, grown)| grown[index]).expect("it gets its first token");
    assert!(first(4) <= 70 && first(5) <= 40, "{}, {}", first(4), first(5));
}

/// Nobody is to be spared where nobody decodes, or only batch sessions do.
#[test]
fn prompts_take_whole_passes_if_nobody_waits() {
    for priority in [None, Some(Priority::Batch)] {
        let machine = Machine::new();
        let mut sessions: Vec<Session> = priority.map(|priority| machine.session(8, priority)).into_iter().collect();
        machine.calls(&mut sessions, 5);
        sessions.push(machine.session(1500, Priority::Interactive));
        let calls = machine.calls(&mut sessions, 3);
        assert!(calls[2].1.last().unwrap(), "1,500 tokens take three passes");
    }
}

/// Batch sessions make passes at most twice as long, and take turns.
#[test]
fn batch_sessions_take_a_bounded_share_and_do_not_starve() {
    let machine = Machine::new();
    let interactive = (0..4).map(|_| machine.session(8, Priority::Interactive));
    let mut sessions: Vec<Session> = interactive.chain((0..200).map(|_| machine.session(8, Priority::Batch))).collect();
    machine.calls(&mut sessions, 80); // all have had their prompts
    let calls = machine.calls(&mut sessions, 100);
    let mut tokens = vec![0; sessions.len()];
    for (micros, grown) in &calls {
        assert!(grown[..4].iter().all(|grown| *grown), "an interactive session stalls");
        assert!(*micros <= 2 * 1600 + 200, "a pass of {micros} µs");
        tokens.iter_mut().zip(grown).for_each(|(tokens, grown)| *tokens += usize::from(*grown));
    }
    // About 28 of them in each of 100 passes.
    let (least, most) = (tokens[4..].iter().min().unwrap(), tokens[4..].iter().max().unwrap());
    assert!(*least >= 12 && most - least <= 3, "{least} to {most} tokens");
    // As soon as the interactive sessions are gone, all have a token in each pass.
    sessions.drain(..4);
    machine.calls(&mut sessions, 1);
    assert!(machine.calls(&mut sessions, 3).iter().all(|(_, grown)| grown.iter().all(|grown| *grown)));
}

/// The histograms have what the clock says.
#[test]
fn latency_is_counted() {
    let machine = Machine::new();
    let mut sessions = vec![machine.session(100, Priority::Interactive)];
    machine.clock.fetch_add(5000, Ordering::Relaxed); // the caller waits before its first step
    machine.calls(&mut sessions, 11);
    let latency = sessions[0].describe()["latency"].take();
    assert_eq!(latency["first_token_ms"]["count"], 1);
    assert_eq!(latency["first_token_ms"]["mean"], 5.0 + micros(100) as f64 / 1e3);
    assert_eq!(
        (&latency["between_tokens_ms"]["count"], &latency["between_tokens_ms"]["mean"]),
        (&10.into(), &1.6.into())
    );
    assert_eq!((&latency["pass_sessions"]["count"], &latency["pass_sessions"]["max"]), (&11.into(), &1.0.into()));
    assert_eq!(latency["pass_tokens"]["mean"], 110.0 / 11.0);
    let text = metrics(&machine.engine);
    for line in [
        "cos_first_token_seconds_count 10",
        "cos_between_tokens_seconds_count 10",
        "cos_between_tokens_seconds_bucket{le=\"0.001\"} 0",
        "cos_between_tokens_seconds_bucket{le=\"0.0025\"} 10",
        "cos_between_tokens_seconds_sum 0.016",
        "cos_pass_sessions_bucket{model=\"scripted\",le=\"1\"} 20",
        "cos_sessions_decoding 0",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
    }
}

/// The same holds for threads, which wait in the queue meanwhile.
#[test]
fn batch_sessions_of_threads_take_a_bounded_share_and_end() {
    let machine = Machine::new();
    let decode = |priority, tokens: usize| {
        let mut session = machine.session(8, priority);
        for _ in 0..tokens {
            session.step().unwrap();
        }
        session.describe()["latency"].take()
    };
    std::thread::scope(|scope| {
        let batch: Vec<_> = (0..60).map(|_| scope.spawn(|| decode(Priority::Batch, 30))).collect();
        let interactive: Vec<_> = (0..2).map(|_| scope.spawn(|| decode(Priority::Interactive, 200))).collect();
        for latency in interactive.into_iter().map(|thread| thread.join().unwrap()) {
            // 16 tokens take as long as one, and twice as long as that is 32; a bucket is that much wider.
            assert!(latency["pass_tokens"]["max"].as_f64().unwrap() <= 34.0, "{latency}");
            assert_eq!(latency["between_tokens_ms"]["count"], 199);
        }
        batch.into_iter().for_each(|thread| assert_eq!(thread.join().unwrap()["first_token_ms"]["count"], 1));
    });
}

/// A batch session that found no room waits, and that is counted.
#[test]
fn the_queue_counts_from_the_first_call_that_asked() {
    let machine = Machine::new();
    let mut sessions = vec![machine.session(8, Priority::Interactive)];
    sessions.extend((0..100).map(|_| machine.session(8, Priority::Batch)));
    machine.calls(&mut sessions, 60);
    let began = std::time::Instant::now();
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(2));
        machine.calls(&mut sessions, 1);
    }
    assert!(began.elapsed() >= Duration::from_millis(16));
    // It is part of one of about three passes, between which the caller sleeps.
    let most = |session: &Session| session.describe()["latency"]["queue_ms"]["max"].as_f64().unwrap();
    assert!(most(&sessions[0]) < most(&sessions[50]) && most(&sessions[50]) >= 3.8, "{}", most(&sessions[50]));
}

/// Also of what a prompt drops between two rounds.
#[test]
fn the_totals_of_an_engine_are_those_of_its_session() {
    let engine = Engine::new(World::Related.models(2, 8), Combine::Weighted { weights: vec![0.5, 0.5] }, vec![], None);
    let (engine, sampler) = (Arc::new(engine.unwrap()), Sampler::new(1.0, 0, 0.0, 0.0).unwrap());
    let options = Options { strategy: Strategy::Cos, sampler, ..Options::default() };
    let mut session = Session::new(&engine, &options).unwrap();
    for token in 0..8 {
        session.prompt(&[token]).unwrap();
        (0..5).for_each(|_| _ = session.step().unwrap());
    }
    assert!(session.stats().counters.wasted > 0);
    assert_eq!(*engine.totals().lock(), session.stats());
}
