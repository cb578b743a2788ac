//! `auto` with many sessions at once, on a simulated machine: what all of them get done, against fixed plans.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cos::config::{Combine, RoutesName};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session};
use cos::rows::Sampler;

use crate::common::World;

const VOCAB: usize = 16;

/// Models of a machine.
struct Machine {
    world: World,
    combine: Combine,
    temperature: f32,
    /// Microseconds of a pass of each model: at least, for each token, and the tokens that are free.
    passes: Vec<(f64, f64, usize)>,
    /// Microseconds of the host for each session and pass.
    host: f64,
}

impl Machine {
    fn engine(&self) -> (Arc<Engine>, Arc<AtomicU64>) {
        let clock = Arc::new(AtomicU64::new(0));
        let model = |(index, &(least, token, free)): (usize, &(f64, f64, usize))| {
            let (clock, host) = (clock.clone(), self.host);
            let time = move |tokens: usize, sequences: usize| {
                let nanoseconds = 1e3 * (least + token * tokens.saturating_sub(free) as f64);
                clock.fetch_add((nanoseconds + 1e3 * host * sequences as f64) as u64, Ordering::Relaxed);
                Duration::from_nanos(nanoseconds as u64)
            };
            let model = self.world.model(index, VOCAB).with_batches(1 << 20).with_cost(least as u64);
            Arc::new(model.with_shared_time(time))
        };
        let models = self.passes.iter().enumerate().map(model).collect();
        let engine = Engine::new(models, self.combine.clone(), Vec::new(), None).unwrap();
        let now = clock.clone();
        (Arc::new(engine.with_clock(move || Duration::from_nanos(now.load(Ordering::Relaxed)))), clock)
    }

    /// Microseconds for a token of all sessions together.
    fn run(&self, engine: &(Arc<Engine>, Arc<AtomicU64>), options: &Options, sessions: usize, tokens: usize) -> f64 {
        let (engine, clock) = engine;
        let new = |index: usize| {
            let mut session = Session::new(engine, &Options { seed: index as u64, ..options.clone() }).unwrap();
            session.prompt(&[index % VOCAB, index / VOCAB % VOCAB, index / 256].map(|token| token as i32)).unwrap();
            session
        };
        let mut sessions: Vec<Session> = (0..sessions).map(new).collect();
        let (begun, count) = (clock.load(Ordering::Relaxed), sessions.len());
        while !sessions.is_empty() {
            step_many(&mut sessions, |_, state| assert!(state.is_ok()));
            sessions.retain(|session| session.decoder().is_open());
        }
        (clock.load(Ordering::Relaxed) - begun) as f64 / 1e3 / (count * tokens) as f64
    }

    fn options(&self, strategy: Strategy, targets: Option<Targets>, lengths: Option<&[i32]>, tokens: usize) -> Options {
        Options {
            strategy,
            targets,
            proposal_lengths: lengths.map(<[i32]>::to_vec),
            routes: targets.is_some().then_some(RoutesName::Shared),
            sampler: Sampler::new(self.temperature, 0, 0.0, 0.0).unwrap(),
            stop_tokens: Some(Vec::new()),
            max_tokens: tokens,
            ..Options::default()
        }
    }

    /// How many times as fast as `standard` are the best of some fixed plans, `auto`, and `auto` of later sessions.
    fn compare(&self, sessions: usize, tokens: usize) -> [f64; 3] {
        let fixed = |strategy, targets, lengths: Option<&[i32]>| {
            self.run(&self.engine(), &self.options(strategy, targets, lengths, tokens), sessions, tokens)
        };
        let standard = fixed(Strategy::Standard, None, None);
        let mut best = standard;
        for lengths in [[1, 1], [2, 1], [4, 1], [0, 2], [2, 0]] {
            for strategy in [Strategy::Speculative, Strategy::Cos] {
                best = best.min(fixed(strategy, None, Some(&lengths)));
            }
        }
        if matches!(self.combine, Combine::Weighted { .. }) && self.temperature > 0.0 {
            best = best.min(fixed(Strategy::Standard, Some(Targets::Routed), None));
        }
        let engine = self.engine();
        let auto = self.options(Strategy::Auto, None, None, tokens);
        let [first, later] = [(); 2].map(|()| self.run(&engine, &auto, sessions, tokens));
        println!(
            "{sessions:4} sessions: standard {standard:7.2} µs, best {:.3} times as fast, auto {:.3} and later {:.3}",
            standard / best,
            standard / first,
            standard / later
        );
        [standard / best, standard / first, standard / later]
    }

    /// Check `auto` against `standard` and the best fixed plan, at first and for later sessions. `gains` are what the
    /// best fixed plan gains at least, by the number of sessions.
    fn check(&self, what: &str, gains: [(usize, f64); 4]) {
        println!("{what}");
        for (sessions, gain) in gains {
            let [best, first, later] = self.compare(sessions, 300);
            assert!(best > gain, "{what}, {sessions}: {best} is best");
            assert!(first > 0.97 && later > 0.985, "{what}, {sessions}: {first} and {later} of standard");
            // What is best is found in the first sessions, and not all of it.
            assert!(later > 0.8 * best, "{what}, {sessions}: {first} and {later}, not {best}");
        }
    }
}

fn machine(world: World, temperature: f32, passes: [(f64, f64, usize); 2]) -> Machine {
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    Machine { world, combine, temperature, passes: passes.to_vec(), host: 1.0 }
}

#[test]
fn sampled_mixtures_gain_by_routes() {
    let flat = machine(World::Related, 1.0, [(300.0, 1.0, 64); 2]);
    flat.check("flat passes", [(2, 1.8), (8, 1.8), (64, 1.6), (256, 1.4)]);
    let linear = machine(World::Related, 1.0, [(300.0, 20.0, 0); 2]);
    linear.check("linear passes", [(2, 1.6), (8, 1.4), (64, 1.05), (256, 1.0)]);
    let unrelated = machine(World::Unrelated, 1.0, [(300.0, 5.0, 16); 2]);
    unrelated.check("unrelated models", [(2, 1.8), (8, 1.7), (64, 1.2), (256, 1.1)]);
}

#[test]
fn greedy_mixtures_gain_by_turns() {
    let equal = machine(World::Related, 0.0, [(300.0, 1.0, 64); 2]);
    equal.check("equal models", [(2, 1.25), (8, 1.25), (64, 1.1), (256, 1.05)]);
    let other = machine(World::Related, 0.0, [(60.0, 0.2, 64), (600.0, 1.0, 64)]);
    other.check("a small and a large model", [(2, 1.7), (8, 1.6), (64, 1.3), (256, 1.15)]);
    let hostile = machine(World::Unrelated, 0.0, [(300.0, 5.0, 16); 2]);
    hostile.check("unrelated models, greedy", [(2, 1.05), (8, 1.05), (64, 0.99), (256, 0.99)]);
}

/// A drafter that the target does not need is only known by probes.
#[test]
fn a_drafter_is_found_in_company() {
    let passes = vec![(30.0, 0.2, 64), (600.0, 1.0, 64)];
    let combine = Combine::Target { model: 1 };
    let machine = Machine { world: World::Related, combine, temperature: 0.0, passes, host: 1.0 };
    for sessions in [4, 32] {
        let [best, first, later] = machine.compare(sessions, 400);
        assert!(best > 1.2 && first > 0.97 && later > 1.15, "{sessions}: {best}, {first}, {later}");
    }
}

/// Sessions that need both models are part of each pass, so others do not wait beside them.
#[test]
fn nobody_waits_for_a_turn_for_long() {
    let machine = machine(World::Related, 1.0, [(300.0, 1.0, 64); 2]);
    let (engine, _) = machine.engine();
    for mixed in [false, true] {
        let new = |index: i32| {
            let routed = index > 0 || !mixed;
            let targets = if routed { Targets::Routed } else { Targets::Combined };
            let tokens = if routed { 40 } else { 0 };
            let mut options = machine.options(Strategy::Standard, Some(targets), None, tokens);
            (options.seed, options.routes) = (index as u64, Some(RoutesName::Own));
            let mut session = Session::new(&engine, &options).unwrap();
            session.prompt(&[index]).unwrap();
            session
        };
        let mut sessions: Vec<Session> = (0..8).map(new).collect();
        let mut waited = vec![0; sessions.len()];
        while sessions.iter().any(|session| session.decoder().is_open() && session.decoder().committed().len() <= 40) {
            let before: Vec<usize> = sessions.iter().map(|session| session.decoder().committed().len()).collect();
            step_many(&mut sessions, |_, state| assert!(state.is_ok()));
            for ((session, before), waited) in sessions.iter().zip(before).zip(&mut waited) {
                let stands = session.decoder().is_open() && session.decoder().committed().len() == before;
                *waited = if stands { *waited + 1 } else { 0 };
                assert!(*waited <= if mixed { 1 } else { 17 }, "{waited} calls without a token");
            }
        }
    }
}
