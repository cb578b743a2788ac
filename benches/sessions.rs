//! `make bench-sessions`: tokens per second of many sessions at once, beside one session and PyTorch's batches.
//!
//! `cargo bench --bench sessions -- --help` lists the arguments.

mod common;
#[allow(dead_code, reason = "the other benchmark uses all of it")]
#[path = "bench/peers.rs"]
mod peers;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use common::{Result, start, strategy};
use cos::config::Config;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::metrics::metrics;
use cos::engine::prepare::{Load, prepare};
use cos::engine::session::Session;
use peers::{Answer, Worker};

/// Measure the tokens per second of many sessions at once, sampled at temperature 1.
#[derive(Parser)]
struct Arguments {
    /// The engine's configuration.
    #[arg(default_value = "models/demo/engine.json")]
    config: PathBuf,
    /// How many sessions decode at once.
    #[arg(long, value_delimiter = ',', default_value = "1,8,16,64")]
    sessions: Vec<usize>,
    /// The strategies, measured in turn: standard, speculative, cos or auto.
    #[arg(long, value_delimiter = ',', default_value = "standard")]
    strategies: Vec<String>,
    /// Prepare the engine for the most sessions before, for at most so many seconds.
    #[arg(long, default_value_t = 0.0)]
    prepare: f64,
    /// Leave out threads: one thread drives all sessions.
    #[arg(long)]
    no_threads: bool,
    /// Threads that share the sessions, instead of one that drives all.
    #[arg(long, default_value_t = 1)]
    drivers: usize,
    /// Tokens that each session decodes.
    #[arg(long, default_value_t = 96)]
    tokens: usize,
    /// Tokens of each prompt.
    #[arg(long, default_value_t = 8)]
    prompt: usize,
    /// Rounds, each of which measures everything in turn.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Measure the memory of the most sessions, each with a text of so many tokens. 0 leaves it out.
    #[arg(long, default_value_t = 1000)]
    length: usize,
    /// Hugging Face folders of the same models. PyTorch decodes with them in batches, for comparison.
    #[arg(long, value_delimiter = ',')]
    torch: Vec<String>,
    /// The device of PyTorch.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Cargo passes this.
    #[arg(long, hide = true)]
    bench: bool,
}

/// The project's folder.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// One measurement.
#[derive(Clone, Copy)]
struct Measured {
    /// Tokens of all sessions per second, prompts included in the time.
    speed: f64,
    /// The share of the time outside passes, if one thread drove all sessions and passes did not overlap.
    outside: f64,
    /// Passes for each token of a session, and sessions and tokens of a pass on average.
    passes: [f64; 3],
}

/// Each session on a thread of its own.
fn by_threads(engine: &Arc<Engine>, arguments: &Arguments, strategy: Strategy, count: usize) -> Result<f64> {
    let sessions = (0..count).map(|index| start(engine, strategy, index, arguments.prompt, arguments.tokens));
    let sessions = sessions.collect::<Result<Vec<_>>>()?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let decode = |mut session: Session| {
            move || -> cos::error::Result<()> {
                let mut tokens = 0;
                while tokens < arguments.tokens {
                    tokens += session.step()?.0.len();
                }
                Ok(())
            }
        };
        let threads: Vec<_> = sessions.into_iter().map(|session| scope.spawn(decode(session))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    Ok((count * arguments.tokens) as f64 / started.elapsed().as_secs_f64())
}

/// Let a thread drive sessions until they have decoded so many tokens. Returns how many they have.
fn drive(sessions: &mut [Session], tokens: usize) -> cos::error::Result<usize> {
    let (mut decoded, mut failure) = (0, None);
    while decoded < tokens && failure.is_none() {
        step_many(sessions, |session: &mut Session, state| match state {
            Ok(_) => decoded += session.tokens().len(),
            Err(error) => failure = Some(error),
        });
    }
    failure.map_or(Ok(decoded), Err)
}

/// Some threads share all sessions.
fn by_drivers(
    engine: &Arc<Engine>,
    (strategy, drivers): (Strategy, usize),
    (count, prompt, tokens): (usize, usize, usize),
) -> Result<Measured> {
    let sessions = (0..count).map(|index| start(engine, strategy, index, prompt, tokens));
    let mut sessions = sessions.collect::<Result<Vec<_>>>()?;
    let before = engine.totals().lock().model_ns;
    let passes = passes(engine);
    let started = Instant::now();
    let decoded = std::thread::scope(|scope| {
        let shares = sessions.chunks_mut(count.div_ceil(drivers));
        let threads: Vec<_> = shares.map(|share| scope.spawn(|| drive(share, tokens * share.len()))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).sum::<cos::error::Result<usize>>()
    })?;
    let elapsed = started.elapsed().as_secs_f64();
    let models = (engine.totals().lock().model_ns - before) as f64 / 1e9;
    let [count_of_passes, sessions_of_all, tokens_of_all] =
        std::array::from_fn(|index| self::passes(engine)[index] - passes[index]);
    Ok(Measured {
        speed: decoded as f64 / elapsed,
        outside: (1.0 - models / elapsed).max(0.0),
        passes: [
            count_of_passes * count as f64 / decoded as f64,
            sessions_of_all / count_of_passes,
            tokens_of_all / count_of_passes,
        ],
    })
}

/// The passes of all models so far, and the sums of their sessions and tokens.
fn passes(engine: &Engine) -> [f64; 3] {
    let text = metrics(engine);
    let sum = |name: &str| -> f64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
    };
    [sum("cos_pass_sessions_count"), sum("cos_pass_sessions_sum"), sum("cos_pass_tokens_sum")]
}

/// The worker that runs PyTorch, and the number of threads with which it is fastest.
fn torch(arguments: &Arguments) -> Result<Option<(Worker, usize)>> {
    if arguments.torch.is_empty() {
        return Ok(None);
    }
    let own = root().join("target/bench/venv/bin/python");
    let python = std::env::var_os("BENCH_PYTHON").filter(|path| !path.is_empty()).map_or(own, PathBuf::from);
    let words: Vec<&str> = std::iter::once(&arguments.device).chain(&arguments.torch).map(String::as_str).collect();
    let mut worker = Worker::start(&python, &root().join("scripts/bench_torch_batch.py"), &words)?;
    let cores = std::thread::available_parallelism()?.get();
    let most = if arguments.device == "cpu" { cores } else { 1 };
    let batch = arguments.sessions.iter().copied().find(|&count| count >= 16).unwrap_or(16);
    let mut best = (0.0, 1);
    for threads in (0..).map(|power| 1 << power).take_while(|&threads| threads <= most) {
        let short = Arguments { tokens: 16, torch: Vec::new(), ..Arguments::parse() };
        // The first run warms up.
        let speed = ask(&mut worker, &short, batch, threads)?.max(ask(&mut worker, &short, batch, threads)?);
        best = if speed > best.0 { (speed, threads) } else { best };
    }
    println!("PyTorch: {:?}, {} threads", worker.versions, best.1);
    Ok(Some((worker, best.1)))
}

/// Tokens per second of a batch in PyTorch.
fn ask(worker: &mut Worker, arguments: &Arguments, batch: usize, threads: usize) -> Result<f64> {
    let (prompt, tokens) = (arguments.prompt, arguments.tokens);
    let request = serde_json::json!({ "batch": batch, "prompt": prompt, "tokens": tokens, "threads": threads });
    match worker.ask(&request)? {
        Answer::Done { seconds, .. } => Ok((batch * tokens) as f64 / seconds),
        Answer::Failed { error } => Err(error.into()),
    }
}

/// A number of mebibytes in /proc/self/status.
fn mebibytes(name: &str) -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).ok_or("no such line")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}

/// Print the most memory that the process takes while sessions have long texts.
fn memory(engine: &Arc<Engine>, arguments: &Arguments) -> Result<()> {
    let count = arguments.sessions.iter().copied().max().unwrap_or(1);
    let tokens = arguments.tokens.min(arguments.length - 1);
    std::fs::write("/proc/self/clear_refs", "5")?; // forgets the peak so far
    let before = mebibytes("VmRSS")?;
    by_drivers(engine, (Strategy::Standard, 1), (count, arguments.length - tokens, tokens))?;
    println!(
        "Memory of the process: {before:.0} MiB with the models loaded, at most {:.0} MiB with {count} sessions of {} \
         tokens",
        mebibytes("VmHWM")?,
        arguments.length
    );
    for model in engine.describe()["models"].as_array().into_iter().flatten() {
        println!("    {}: batching {}, cache_bytes {}", model["name"], model["batching"], model["cache_bytes"]);
    }
    Ok(())
}

/// The median, the least and the greatest.
fn spread(mut numbers: Vec<f64>) -> (f64, f64, f64) {
    numbers.sort_by(f64::total_cmp);
    (numbers[numbers.len() / 2], numbers[0], numbers[numbers.len() - 1])
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let engine = Arc::new(Engine::load(&Config::open(&arguments.config)?)?);
    if arguments.length > 1 {
        memory(&engine, &arguments)?;
    }
    let mut torch = torch(&arguments)?;
    if arguments.prepare > 0.0 {
        let load = Load {
            sessions: arguments.sessions.iter().copied().max().unwrap_or(1),
            tokens: arguments.prompt + arguments.tokens,
        };
        let began = Instant::now();
        let done = prepare(&engine, load, Duration::from_secs_f64(arguments.prepare), |_| true)?;
        println!("Prepared {:.0} % in {:.1} s", 100.0 * done, began.elapsed().as_secs_f64());
    }
    let mut tables: Vec<Vec<Vec<Measurement>>> =
        arguments.strategies.iter().map(|_| vec![Vec::new(); arguments.sessions.len()]).collect();
    for _ in 0..=arguments.rounds {
        for (index, &count) in arguments.sessions.iter().enumerate() {
            for (name, table) in arguments.strategies.iter().zip(&mut tables) {
                let strategy = strategy(name)?;
                let threads = match arguments.no_threads {
                    true => f64::NAN,
                    false => by_threads(&engine, &arguments, strategy, count)?,
                };
                let load = (count, arguments.prompt, arguments.tokens);
                let one = by_drivers(&engine, (strategy, arguments.drivers), load)?;
                let peer = match &mut torch {
                    Some((worker, threads)) => ask(worker, &arguments, count, *threads)?,
                    None => f64::NAN,
                };
                table[index].push((threads, one, peer));
            }
        }
    }
    for (name, table) in arguments.strategies.iter().zip(&tables) {
        report(&arguments, name, table, &tables[0]);
    }
    Ok(())
}

/// With a thread for each session, with driving threads, and a peer's tokens per second.
type Measurement = (f64, Measured, f64);

/// Print what was measured of a strategy, by numbers of sessions and rounds. The first round warms up.
fn report(arguments: &Arguments, name: &str, table: &[Vec<Measurement>], first: &[Vec<Measurement>]) {
    println!(
        "\nTokens per second of all sessions, `{name}`: medians of {} rounds; the round before, which warms up, is \
         \"first\".\n",
        arguments.rounds
    );
    println!(
        "| sessions | a thread each | over the first row | {} | first | over {} | outside of passes | passes for a \
         token, their sessions and tokens | over PyTorch |",
        if arguments.drivers == 1 { "one thread".into() } else { format!("{} threads", arguments.drivers) },
        arguments.strategies[0]
    );
    println!("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: |");
    for ((count, measured), first) in arguments.sessions.iter().zip(table).zip(first) {
        let of = |pick: &dyn Fn(usize) -> f64| spread((1..=arguments.rounds).map(pick).collect());
        let (threads, ..) = of(&|round| measured[round].0);
        let growth = of(&|round| measured[round].0 / table[0][round].0);
        let (one, ..) = of(&|round| measured[round].1.speed);
        let gain = of(&|round| measured[round].1.speed / first[round].1.speed);
        let (outside, ..) = of(&|round| 100.0 * measured[round].1.outside);
        let passes = [0, 1, 2].map(|index| of(&|round| measured[round].1.passes[index]).0);
        let peer = of(&|round| measured[round].0.max(measured[round].1.speed) / measured[round].2);
        let range = |(median, least, most): (f64, f64, f64)| match median.is_nan() {
            true => "–".to_string(),
            false => format!("{median:.2} ({least:.2}–{most:.2})"),
        };
        println!(
            "| {count} | {threads:.0} | {} | {one:.0} | {:.0} | {} | {outside:.1} % | {} | {} |",
            range(growth),
            measured[0].1.speed,
            range(gain),
            passes.map(|number| format!("{number:.2}")).join(", "),
            range(peer)
        );
    }
}
