//! How large the common passes of threads become.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cos::config::Combine;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session};
use cos::model::scripted::Scripted;
use cos::rows::Sampler;

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
#[ignore = "a measurement"]
fn mean_batches() {
    for (targets, models) in [(Targets::Combined, 2), (Targets::Routed, 2), (Targets::Combined, 1)] {
        for gap in [0, 5, 50, 500] {
            for threads in [1, 4, 16, 64] {
                let (batch, ms) = measure(threads, models, targets, Duration::from_micros(gap), 200);
                println!(
                    "{targets:?} of {models}, {gap} µs between steps, {threads} threads: {batch:.1} a pass, {ms:.2} ms a round"
                );
            }
        }
    }
}
