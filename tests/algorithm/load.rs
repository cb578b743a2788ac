//! `auto` with many sessions at once, on a simulated machine: what all of them get done, against fixed plans.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cos::config::{Combine, RoutesName};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session};
use cos::error::Result;
use cos::model::scripted::Scripted;
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};
use cos::rows::Sampler;

use crate::common::World;

const VOCAB: usize = 16;

/// A model whose passes take a time that depends on all their tokens, by a clock that they move on.
struct Timed {
    model: Scripted,
    /// Nanoseconds of a pass over so many tokens of so many sequences.
    time: Arc<dyn Fn(usize, usize) -> f64 + Send + Sync>,
    /// Nanoseconds of the host for each sequence of a pass.
    host: f64,
    clock: Arc<AtomicU64>,
}

impl Model for Timed {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.model.context_length()
    }

    fn max_pass(&self) -> usize {
        self.model.max_pass()
    }

    fn batches(&self) -> bool {
        true
    }

    fn max_batch_tokens(&self) -> usize {
        1 << 20
    }

    fn cost(&self) -> u64 {
        self.model.cost()
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        self.model.start(cancel)
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> std::result::Result<Report, Interrupt> {
        let (tokens, sequences) = (batch.iter().map(|pass| pass.tokens.len()).sum(), batch.len());
        self.model.forward(batch)?;
        let time = (self.time)(tokens, sequences) as u64;
        self.clock.fetch_add(time + (self.host * sequences as f64) as u64, Ordering::Relaxed);
        Ok(Report { elapsed: Duration::from_nanos(time), is_usual: true })
    }
}

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
            let time = move |tokens: usize, _: usize| 1e3 * (least + token * tokens.saturating_sub(free) as f64);
            let model = self.world.model(index, VOCAB).with_batches(1 << 20).with_cost(least as u64);
            Arc::new(Timed { model, time: Arc::new(time), host: 1e3 * self.host, clock: clock.clone() })
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

    /// Check `auto` against `standard` and the best fixed plan, at first and for later sessions.
    fn check(&self, what: &str) {
        println!("{what}");
        for sessions in [2, 8, 64, 256] {
            let [best, first, later] = self.compare(sessions, 300);
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
    machine(World::Related, 1.0, [(300.0, 1.0, 64); 2]).check("flat passes");
    machine(World::Related, 1.0, [(300.0, 20.0, 0); 2]).check("linear passes");
    machine(World::Unrelated, 1.0, [(300.0, 5.0, 16); 2]).check("unrelated models");
}

#[test]
fn greedy_mixtures_gain_by_turns() {
    machine(World::Related, 0.0, [(300.0, 1.0, 64); 2]).check("equal models");
    machine(World::Related, 0.0, [(60.0, 0.2, 64), (600.0, 1.0, 64)]).check("a small and a large model");
    machine(World::Unrelated, 0.0, [(300.0, 5.0, 16); 2]).check("unrelated models, greedy");
}
