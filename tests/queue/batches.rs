//! How large the common passes of threads become.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cos::config::{Combine, Config};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::model::scripted::Scripted;
use cos::rows::Sampler;

use crate::common::root;

/// Passes, and sequences in them.
#[derive(Default)]
struct Count {
    passes: AtomicUsize,
    sequences: AtomicUsize,
}

fn model(count: &Arc<Count>, pass: Duration) -> Arc<Scripted> {
    let count = count.clone();
    let script = |context: &[i32], row: &mut [f32]| {
        row.fill(0.0);
        row[context.len() * 7919 % row.len()] = 9.0;
        Ok(())
    };
    let hook = move |widths: &[usize]| {
        count.passes.fetch_add(1, Ordering::Relaxed);
        count.sequences.fetch_add(widths.len(), Ordering::Relaxed);
        std::thread::sleep(pass);
        Ok(())
    };
    // Host work of a step is some 20 to 50 µs with so many tokens.
    Arc::new(Scripted::new(24_000, script).with_batches(4096).with_batch_hook(hook))
}

/// The mean number of sequences in a pass, and milliseconds a round.
fn measure(threads: usize, models: usize, targets: Targets, gap: Duration, rounds: usize) -> (f64, f64) {
    let count = Arc::<Count>::default();
    let models: Vec<_> = (0..models).map(|_| model(&count, Duration::from_millis(1))).collect();
    let combine = Combine::Weighted { weights: vec![1.0 / models.len() as f32; models.len()] };
    let engine = Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for seed in 0..threads as u64 {
            let engine = &engine;
            scope.spawn(move || {
                let options = Options {
                    strategy: Strategy::Standard,
                    targets: Some(targets),
                    sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
                    seed,
                    ..Options::default()
                };
                let mut session = Session::new(engine, &options).unwrap();
                session.prompt(&[1, 2, 3]).unwrap();
                for _ in 0..rounds {
                    session.step().unwrap();
                    let left = Instant::now();
                    while left.elapsed() < gap {
                        std::hint::spin_loop();
                    }
                }
            });
        }
    });
    let milliseconds = started.elapsed().as_secs_f64() * 1e3 / rounds as f64;
    let [passes, sequences] = [&count.passes, &count.sequences].map(|count| count.load(Ordering::Relaxed) as f64);
    (sequences / passes, milliseconds)
}

/// `cargo test --release --test queue -- --ignored --nocapture batches`
#[test]
#[ignore = "prints times and asserts nothing; run it by hand on a quiet machine"]
fn mean_batches() {
    for (targets, models) in [(Targets::Combined, 2), (Targets::Routed, 2), (Targets::Combined, 1)] {
        for gap in [0, 5, 50, 500] {
            for threads in [1, 4, 16, 64] {
                let (batch, ms) = measure(threads, models, targets, Duration::from_micros(gap), 200);
                println!(
                    "{targets:?} of {models}, {gap} µs between steps, {threads} threads: {batch:.1} a pass, \
                     {ms:.2} ms a round"
                );
            }
        }
    }
}

/// How long each measurement takes. Within a short one, many sessions do not get beyond their prompts.
fn slice() -> Duration {
    Duration::from_secs(std::env::var("COS_TEST_SECONDS").map_or(2, |seconds| seconds.parse().unwrap()))
}

/// Seconds of processors that this process has used. On a busy machine, they vary less than the time.
fn processor_seconds() -> f64 {
    // SAFETY: all zero is a valid value, which the call overwrites.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 * 1e-6;
    seconds(usage.ru_utime) + seconds(usage.ru_stime)
}

/// Tokens per second, and per second of a processor, of so many threads, each with one session after another.
fn demo_speed(engine: &Arc<Engine>, prompt: &[i32], threads: usize, strategy: Strategy) -> [f64; 2] {
    let used = processor_seconds();
    let seeds = AtomicUsize::new(0);
    let tokens = AtomicUsize::new(0);
    let (started, length) = (Instant::now(), slice());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while started.elapsed() < length {
                    let options = Options {
                        strategy,
                        sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
                        seed: seeds.fetch_add(1, Ordering::Relaxed) as u64,
                        max_tokens: 96,
                        stop_tokens: Some(Vec::new()),
                        ..Options::default()
                    };
                    let mut session = Session::new(engine, &options).unwrap();
                    session.prompt(prompt).unwrap();
                    let mut state = State::Open;
                    while state == State::Open && started.elapsed() < length {
                        let step = session.step().unwrap();
                        state = step.1;
                        tokens.fetch_add(step.0.len(), Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let tokens = tokens.into_inner() as f64;
    [tokens / started.elapsed().as_secs_f64(), tokens / (processor_seconds() - used)]
}

/// `cargo test --release --test queue -- --ignored --nocapture demo_models`
#[test]
#[ignore = "prints times and asserts nothing; run it by hand on a quiet machine"]
fn demo_models() {
    let config = std::env::var("COS_TEST_CONFIG").unwrap_or_else(|_| "models/demo/engine.json".into());
    let engine = Arc::new(Engine::load(&Config::open(&root().join(config)).unwrap()).unwrap());
    let text = engine.text().unwrap();
    let short = text.encode("Question: How many legs do 3 cats have?\nAnswer:", true).unwrap();
    let long: Vec<i32> = short.iter().copied().cycle().take(120).collect();
    for strategy in [Strategy::Standard, Strategy::Auto] {
        for prompt in [&short, &long] {
            // In turn, so that noise of the machine hits all alike; the best of each.
            let counts = std::env::var("COS_TEST_THREADS").unwrap_or_else(|_| "1 8 16 64".into());
            let counts: Vec<usize> = counts.split(' ').map(|count| count.parse().unwrap()).collect();
            let mut best = vec![[0f64; 2]; counts.len()];
            for _ in 0..3 {
                for (&threads, best) in counts.iter().zip(&mut best) {
                    let speed = demo_speed(&engine, prompt, threads, strategy);
                    *best = [0, 1].map(|index| best[index].max(speed[index]));
                }
            }
            for (threads, speed) in counts.iter().zip(&best) {
                let ([wall, used], [alone, alone_used]) = (*speed, best[0]);
                println!(
                    "{strategy:?}, prompt of {}, {threads} threads: {wall:.0} tokens/s, {:.1}x; {used:.0} for each \
                     second of a processor, {:.1}x",
                    prompt.len(),
                    wall / alone,
                    used / alone_used
                );
            }
        }
    }
}
