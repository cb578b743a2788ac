//! A simulated machine. Only passes move its clock, by what they are said to take, and all numbers come from seeds. So
//! a run takes the same time wherever it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cos::config::{Combine, RoutesName};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session};
use cos::rows::Sampler;
use parking_lot::Mutex;

use crate::common::{World, mix};

pub const VOCAB: usize = 16;

/// What passes of a model take, in microseconds: at least, for each token beyond those that are free, and for each
/// session.
#[derive(Debug, Clone, Copy)]
pub struct Passes {
    pub least: f64,
    pub token: f64,
    pub free: usize,
    pub session: f64,
}

impl Passes {
    pub const fn new(least: f64, token: f64, free: usize) -> Self {
        Passes { least, token, free, session: 0.0 }
    }

    /// The same, with so many microseconds for each session.
    pub const fn with_sessions(self, session: f64) -> Self {
        Passes { session, ..self }
    }

    /// The same, so many times as slow.
    pub fn slower(self, times: f64) -> Self {
        Passes { least: times * self.least, token: times * self.token, session: times * self.session, ..self }
    }

    fn at(&self, tokens: usize, sessions: usize) -> f64 {
        self.least + self.token * tokens.saturating_sub(self.free) as f64 + self.session * sessions as f64
    }
}

/// Models of a machine.
#[derive(Debug, Clone)]
pub struct Machine {
    pub world: World,
    pub combine: Combine,
    pub temperature: f32,
    pub passes: Vec<Passes>,
    /// Microseconds of the host for each session and pass.
    pub host: f64,
    /// Microseconds of the host for each session and round.
    pub round: f64,
    /// Share of the passes that take five times as long, because something else has the machine, and a seed for them.
    pub disturbed: (f64, u64),
    /// See [`Estimates::serial_share`](cos::learn::estimates::Estimates::serial_share).
    pub serial: Option<f64>,
    /// Most tokens of a pass.
    pub tokens: usize,
}

impl Machine {
    /// A mixture of two models.
    pub fn mixture(world: World, temperature: f32, passes: [Passes; 2]) -> Machine {
        let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
        let (passes, host, round, disturbed, tokens) = (passes.to_vec(), 1.0, 0.0, (0.0, 0), 1 << 20);
        Machine { world, combine, temperature, passes, host, round, disturbed, serial: None, tokens }
    }

    /// Switch it on. Nothing is learned yet.
    pub fn start(&self) -> Simulation {
        let clock = Arc::new(AtomicU64::new(0));
        let passes = Arc::new(Mutex::new(self.passes.clone()));
        let device = Arc::default();
        let model = |index: usize| {
            let (clock, passes, host, disturbed) = (clock.clone(), passes.clone(), self.host, self.disturbed);
            let time = move |tokens: usize, sequences: usize, left: f64| {
                let is_disturbed = uniform(disturbed.1, clock.load(Ordering::Relaxed) as usize) < disturbed.0;
                let times = if is_disturbed { 5.0 } else { 1.0 };
                let nanoseconds = 1e3 * times * left * passes.lock()[index].at(tokens, sequences);
                clock.fetch_add((nanoseconds + 1e3 * host * sequences as f64) as u64, Ordering::Relaxed);
                Duration::from_nanos(nanoseconds as u64)
            };
            let model =
                self.world.model(index, VOCAB).with_batches(self.tokens).with_cost(self.passes[index].least as u64);
            // What was measured at load is the time at that moment.
            let loaded = self.passes[index];
            let at_load = move |width: usize, _| Duration::from_nanos((1e3 * loaded.at(width, 1)) as u64);
            let model = model.with_pass_times(at_load).with_shared_time(time);
            Arc::new(match self.serial {
                Some(serial) => model.with_overlap((1.0 + serial) / 2.0).with_device(&device),
                None => model,
            })
        };
        let models = (0..self.passes.len()).map(model).collect();
        let engine =
            Engine::new(models, self.combine.clone(), Vec::new(), None).unwrap().with_seed(1).with_serial(self.serial);
        let now = clock.clone();
        let engine = Arc::new(engine.with_clock(move || Duration::from_nanos(now.load(Ordering::Relaxed))));
        Simulation { engine, clock, passes, round: self.round }
    }

    /// Options of sessions that follow a plan.
    pub fn options(&self, plan: Fixed, tokens: usize) -> Options {
        let Fixed { strategy, targets, lengths } = plan;
        Options {
            strategy,
            targets,
            proposal_lengths: lengths.map(|lengths| lengths.to_vec()),
            routes: targets.is_some().then_some(RoutesName::Shared),
            sampler: Sampler::new(self.temperature, 0, 0.0, 0.0).unwrap(),
            stop_tokens: Some(Vec::new()),
            max_tokens: tokens,
            ..Options::default()
        }
    }

    /// Options of sessions that plan.
    pub fn auto(&self, tokens: usize) -> Options {
        self.options(Fixed { strategy: Strategy::Auto, ..Fixed::STANDARD }, tokens)
    }

    /// Some plans, of which `standard` is the first.
    pub fn fixed(&self) -> impl Iterator<Item = Fixed> {
        let may_route = matches!(self.combine, Combine::Weighted { .. }) && self.temperature > 0.0;
        let routed = Fixed { targets: Some(Targets::Routed), ..Fixed::STANDARD };
        let drafts = [[1, 1], [2, 1], [4, 1], [0, 2], [2, 0]].into_iter().flat_map(|lengths| {
            let of = move |strategy| Fixed { strategy, targets: None, lengths: Some(lengths) };
            [Strategy::Speculative, Strategy::Cos].map(of)
        });
        std::iter::once(Fixed::STANDARD).chain(may_route.then_some(routed)).chain(drafts)
    }
}

/// A plan that stays.
#[derive(Debug, Clone, Copy)]
pub struct Fixed {
    pub strategy: Strategy,
    pub targets: Option<Targets>,
    pub lengths: Option<[i32; 2]>,
}

impl Fixed {
    pub const STANDARD: Fixed = Fixed { strategy: Strategy::Standard, targets: None, lengths: None };
}

/// A machine that runs.
pub struct Simulation {
    pub engine: Arc<Engine>,
    clock: Arc<AtomicU64>,
    passes: Arc<Mutex<Vec<Passes>>>,
    round: f64,
}

impl Simulation {
    /// Microseconds since it was started.
    pub fn now(&self) -> f64 {
        self.clock.load(Ordering::Relaxed) as f64 / 1e3
    }

    /// Nothing happens until then.
    pub fn idle_until(&self, microseconds: f64) {
        self.clock.fetch_max((1e3 * microseconds).ceil() as u64, Ordering::Relaxed);
    }

    /// From now on, passes take so long.
    pub fn set_passes(&self, passes: &[Passes]) {
        *self.passes.lock() = passes.to_vec();
    }

    /// One call for all sessions. Returns how many tokens they have committed.
    pub fn step(&self, sessions: &mut [Session]) -> usize {
        let mut tokens = 0;
        step_many(sessions, |session, state| {
            assert!(state.is_ok());
            tokens += session.tokens().len();
            self.clock.fetch_add((1e3 * self.round) as u64, Ordering::Relaxed);
        });
        tokens
    }

    /// A session whose prompt no other number has. The prompt has four tokens or more.
    pub fn session(&self, number: usize, prompt: usize, options: &Options) -> Session {
        let mut session = Session::new(&self.engine, &Options { seed: number as u64, ..options.clone() }).unwrap();
        let token =
            |index: usize| if index < 4 { number >> (4 * index) } else { mix((number + index) as u64) as usize };
        session.prompt(&(0..prompt.max(4)).map(|index| (token(index) % VOCAB) as i32).collect::<Vec<_>>()).unwrap();
        session
    }
}

/// Sessions that are open at the same time. One that ends is replaced by another.
pub struct Company<'a> {
    pub simulation: &'a Simulation,
    pub sessions: Vec<Session>,
    options: Options,
    prompt: usize,
    /// Sessions that have begun.
    begun: usize,
}

impl<'a> Company<'a> {
    /// So many sessions with prompts of so many tokens. The first ones are given fewer tokens, so that not all end at
    /// once.
    pub fn new(simulation: &'a Simulation, options: &Options, sessions: usize, prompt: usize) -> Self {
        let first = |number: usize| {
            let max_tokens = 1 + ((options.max_tokens as f64 * uniform(7, number)) as usize);
            simulation.session(number, prompt, &Options { max_tokens, ..options.clone() })
        };
        let all = (0..sessions).map(first).collect();
        Company { simulation, sessions: all, options: options.clone(), prompt, begun: sessions }
    }

    /// One call. Returns the tokens that it has committed.
    pub fn step(&mut self) -> usize {
        let tokens = self.simulation.step(&mut self.sessions);
        for session in self.sessions.iter_mut().filter(|session| !session.decoder().is_open()) {
            *session = self.simulation.session(self.begun, self.prompt, &self.options);
            self.begun += 1;
        }
        tokens
    }

    /// Microseconds for a token of all sessions together, for the time of so many tokens of each of them.
    pub fn run(&mut self, tokens: usize) -> f64 {
        let (begun, mut done) = (self.simulation.now(), 0);
        while done < tokens * self.sessions.len() {
            done += self.step();
        }
        (self.simulation.now() - begun) / done as f64
    }
}

/// A number of `[0, 1)`, the same for the same seed and index.
pub fn uniform(seed: u64, index: usize) -> f64 {
    (mix(mix(seed) ^ index as u64) >> 11) as f64 / (1u64 << 53) as f64
}
