//! `make bench-neighbours`: tokens per second beside busy loops that want the same cores.
//!
//! `cargo bench --bench neighbours -- --help` lists the arguments.

mod common;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use cos::config::Config;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::Session;

use common::{Result, start, strategy};

/// Tokens of a prompt, and of the text behind it. A session that ends is followed by another.
const PROMPT: usize = 8;
const TOKENS: usize = 64;

/// Measure tokens per second beside busy loops, sampled at temperature 1.
#[derive(Parser)]
struct Arguments {
    /// The engine's configuration.
    #[arg(default_value = "models/demo/engine.json")]
    config: PathBuf,
    /// Busy loops beside; half a loop is busy for 5 ms of each 10.
    #[arg(long, value_delimiter = ',', default_value = "0,0.5,1,2,0")]
    loops: Vec<f64>,
    /// How many sessions decode at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8")]
    sessions: Vec<usize>,
    /// The strategies: standard, speculative, cos or auto.
    #[arg(long, value_delimiter = ',', default_value = "standard,auto")]
    strategies: Vec<String>,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// Rounds, each of which measures everything in turn. The median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// Busy loops, until dropped.
struct Loops {
    ends: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
}

impl Loops {
    fn new(count: f64) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let shares = (0..count.ceil() as usize).map(|index| (count - index as f64).min(1.0));
        let threads = shares.map(|share| {
            let ends = ends.clone();
            std::thread::spawn(move || {
                let period = Duration::from_millis(10);
                while !ends.load(Ordering::Relaxed) {
                    let started = Instant::now();
                    while started.elapsed() < period.mul_f64(share) {
                        std::hint::black_box(0);
                    }
                    std::thread::sleep(period.mul_f64(1.0 - share));
                }
            })
        });
        Loops { threads: threads.collect(), ends }
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        self.threads.drain(..).for_each(|thread| thread.join().expect("no panic"));
    }
}

/// Tokens per second of so many sessions.
fn speed(engine: &Arc<Engine>, strategy: Strategy, count: usize, seconds: f64) -> Result<f64> {
    let started = Instant::now();
    let (mut tokens, mut number) = (0, 0);
    let mut sessions = Vec::new();
    while started.elapsed().as_secs_f64() < seconds {
        while sessions.len() < count {
            sessions.push(start(engine, strategy, number, PROMPT, TOKENS)?);
            number += 1;
        }
        let mut failed = None;
        step_many(&mut sessions, |session: &mut Session, state| match state {
            Ok(_) => tokens += session.tokens().len(),
            Err(error) => failed = Some(error),
        });
        if let Some(error) = failed {
            return Err(error.into());
        }
        sessions.retain(|session| session.decoder().is_open());
    }
    Ok(tokens as f64 / started.elapsed().as_secs_f64())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let folder =
        std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    let engine = Arc::new(Engine::load(&Config::open(&folder.join(&arguments.config))?)?);
    let cores = std::thread::available_parallelism()?.get() as f64;
    println!("cores: {cores}; columns: busy loops beside; tokens/s, and its ratio to a fair share of the cores");
    for name in &arguments.strategies {
        let strategy = strategy(name)?;
        for &count in &arguments.sessions {
            speed(&engine, strategy, count, 1.0)?;
            let mut speeds = vec![Vec::new(); arguments.loops.len()];
            for _ in 0..arguments.rounds {
                for (speeds, &loops) in speeds.iter_mut().zip(&arguments.loops) {
                    let _beside = Loops::new(loops);
                    speeds.push(speed(&engine, strategy, count, arguments.seconds)?);
                }
            }
            let speeds: Vec<f64> = speeds.into_iter().map(median).collect();
            let alone = arguments.loops.iter().position(|&loops| loops == 0.0).map_or(f64::NAN, |index| speeds[index]);
            let cells = arguments.loops.iter().zip(&speeds).map(|(loops, speed)| {
                let fair = alone * (cores / (cores + loops));
                format!("{loops}: {speed:.0} ({:.2})", speed / fair)
            });
            println!("{name}, {count} sessions: {}", cells.collect::<Vec<_>>().join("; "));
        }
    }
    Ok(())
}
