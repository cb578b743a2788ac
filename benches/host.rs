//! The work of the host for many sessions on one thread, over models whose passes cost nothing.
//!
//! `scripts/count-host-work` runs it with valgrind and prints instructions for each session and round, which no other
//! program disturbs. Alone it prints nanoseconds.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use cos::config::Combine;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session};
use cos::error::Result;
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};
use cos::rows::{Row, Sampler};

/// Measure the work of the host for each session and round.
#[derive(Parser)]
struct Arguments {
    /// single, mixture, routed, auto, cos, greedy or drafter (a model of weight 0, with auto).
    #[arg(long, default_value = "mixture")]
    case: String,
    /// How many sessions decode at once.
    #[arg(long, default_value_t = 64)]
    sessions: usize,
    /// Tokens of the vocabulary.
    #[arg(long, default_value_t = 64)]
    vocabulary: usize,
    /// Calls before those that count.
    #[arg(long, default_value_t = 400)]
    warm: usize,
    /// Calls that count.
    #[arg(long, default_value_t = 200)]
    calls: usize,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Nanoseconds that a pass pretends to take, and those of the host for each session.
const PASS: u64 = 300_000;
const HOST: u64 = 3_000;

/// Rows that take turns.
const ROWS: usize = 61;

/// A model whose rows depend on nothing but the position.
struct Cheap {
    name: String,
    rows: Arc<Vec<Vec<f32>>>,
    cost: u64,
    clock: Arc<AtomicU64>,
}

struct CheapSequence {
    len: usize,
    rows: Arc<Vec<Vec<f32>>>,
    shift: usize,
}

impl Sequence for CheapSequence {
    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn row(&self, position: usize) -> Row<'_> {
        Row::Host(&self.rows[(position + self.shift) % ROWS])
    }
}

impl Model for Cheap {
    fn name(&self) -> &str {
        &self.name
    }

    fn vocab_size(&self) -> usize {
        self.rows[0].len()
    }

    fn context_length(&self) -> usize {
        1 << 16
    }

    fn max_pass(&self) -> usize {
        512
    }

    fn batches(&self) -> bool {
        true
    }

    fn max_batch_tokens(&self) -> usize {
        2048
    }

    fn cost(&self) -> u64 {
        self.cost
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        Ok(Box::new(CheapSequence { len: 0, rows: self.rows.clone(), shift: 7 * cancel.age() as usize }))
    }

    #[inline(never)]
    fn forward(&self, batch: &mut [Pass<'_>]) -> std::result::Result<Report, Interrupt> {
        for pass in batch.iter_mut() {
            let sequence: &mut CheapSequence =
                (pass.sequence as &mut dyn Any).downcast_mut().expect("its own sequence");
            sequence.len += pass.tokens.len();
        }
        let elapsed = PASS * self.cost / 4;
        self.clock.fetch_add(elapsed + HOST * batch.len() as u64, Ordering::Relaxed);
        Ok(Report { elapsed: Duration::from_nanos(elapsed), is_usual: true })
    }
}

fn engine(arguments: &Arguments, reads: &Arc<AtomicU64>) -> Result<Arc<Engine>> {
    let clock = Arc::<AtomicU64>::default();
    let mut random = fastrand::Rng::with_seed(1);
    let mut row = || -> Vec<f32> { (0..arguments.vocabulary).map(|_| 4.0 * random.f32()).collect() };
    let first: Vec<Vec<f32>> = (0..ROWS).map(|_| row()).collect();
    let other = first.iter().map(|first| first.iter().zip(row()).map(|(a, b)| 0.8 * a + 0.2 * b).collect()).collect();
    let rows: [Arc<Vec<Vec<f32>>>; 2] = [Arc::new(first), Arc::new(other)];
    let costs = if arguments.case == "drafter" { [4, 1] } else { [4, 4] };
    let count = if arguments.case == "single" { 1 } else { 2 };
    let model = |index: usize| {
        let (name, rows, clock) = (format!("model {index}"), rows[index].clone(), clock.clone());
        Cheap { name, rows, cost: costs[index], clock }
    };
    let weights = match arguments.case.as_str() {
        "single" => vec![1.0],
        "drafter" => vec![1.0, 0.0],
        _ => vec![0.5, 0.5],
    };
    let models = (0..count).map(|index| Arc::new(model(index))).collect();
    let engine = Engine::new(models, Combine::Weighted { weights }, Vec::new(), None)?.with_seed(1);
    let reads = reads.clone();
    Ok(Arc::new(engine.with_clock(move || {
        reads.fetch_add(1, Ordering::Relaxed);
        Duration::from_nanos(clock.load(Ordering::Relaxed))
    })))
}

fn session(arguments: &Arguments, engine: &Arc<Engine>, index: usize) -> Result<Session> {
    let (strategy, targets, lengths) = match arguments.case.as_str() {
        "single" | "mixture" | "greedy" => (Strategy::Standard, None, None),
        "routed" => (Strategy::Standard, Some(Targets::Routed), None),
        "cos" => (Strategy::Cos, None, Some(vec![2, 1])),
        "auto" | "drafter" => (Strategy::Auto, None, None),
        other => panic!("there is no case {other}"),
    };
    let temperature = if arguments.case == "greedy" { 0.0 } else { 1.0 };
    let options = Options {
        strategy,
        targets,
        proposal_lengths: lengths,
        sampler: Sampler::new(temperature, 0, 0.0, 0.0)?,
        seed: index as u64,
        stop_tokens: Some(Vec::new()),
        ..Options::default()
    };
    let mut session = Session::new(engine, &options)?;
    session.prompt(&[1, 2, 3 + (index % 60) as i32, 1 + (index / 60) as i32])?;
    Ok(session)
}

/// What calls have done.
#[derive(Default)]
struct Done {
    rounds: usize,
    tokens: usize,
}

/// So many calls. `scripts/count-host-work` counts what happens in here.
#[inline(never)]
fn counted_calls(sessions: &mut [Session], calls: usize) -> Done {
    let mut done = Done::default();
    for _ in 0..calls {
        step_many(sessions, |session: &mut Session, state| {
            state.expect("a round succeeds");
            done.rounds += 1;
            done.tokens += session.tokens().len();
        });
    }
    done
}

#[inline(never)]
fn warm_up(sessions: &mut [Session], calls: usize) {
    for _ in 0..calls {
        step_many(sessions, |_: &mut Session, state| _ = state.expect("a round succeeds"));
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let reads = Arc::<AtomicU64>::default();
    let engine = engine(&arguments, &reads)?;
    let sessions = (0..arguments.sessions).map(|index| session(&arguments, &engine, index));
    let mut sessions = sessions.collect::<Result<Vec<_>>>()?;
    warm_up(&mut sessions, arguments.warm);
    let (before, started) = (reads.load(Ordering::Relaxed), Instant::now());
    let done = counted_calls(&mut sessions, arguments.calls);
    let (elapsed, reads) = (started.elapsed(), reads.load(Ordering::Relaxed) - before);
    println!(
        "{}: {} rounds, {} tokens, {reads} reads of the clock, {:.0} ns for a round",
        arguments.case,
        done.rounds,
        done.tokens,
        elapsed.as_nanos() as f64 / done.rounds as f64
    );
    Ok(())
}
