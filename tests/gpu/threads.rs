//! Sessions of all kinds on threads that start and end: 2, 8 and 64 at a time on a GPU with `COS_TEST_PROVIDER=cuda`,
//! fewer on the processor.
//!
//! The model has 28 heads of queries and 4 of keys. On Hopper and newer GPUs, ONNX Runtime runs such attention by
//! cuDNN, whose plans belong to a thread. A captured pass must not use the plans of a thread that has ended.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use cos::config::Config;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::rows::Sampler;
use serde_json::{Value, json};

fn on_gpu() -> bool {
    std::env::var("COS_TEST_PROVIDER").is_ok_and(|name| name == "cuda")
}

/// The size of the weights that the graph names, in bytes.
const WEIGHTS: usize = 2_183_840;

/// Makes a copy of the model with random weights.
fn model(folder: &Path, seed: u64) -> String {
    let fixture = crate::common::root().join("tests/fixtures/wide-heads");
    let folder = folder.join(seed.to_string());
    std::fs::create_dir(&folder).unwrap();
    for file in ["model.onnx", "genai_config.json"] {
        std::fs::copy(fixture.join(file), folder.join(file)).unwrap();
    }
    let mut random = fastrand::Rng::with_seed(seed);
    let weights: Vec<half::f16> = (0..WEIGHTS / 2).map(|_| half::f16::from_f32(random.f32() - 0.5)).collect();
    std::fs::write(folder.join("model.onnx.data"), bytemuck::cast_slice(&weights)).unwrap();
    folder.display().to_string()
}

/// A mixture of two models, with options of ONNX Runtime's provider.
fn engine(folders: &[String; 2], options: &Value, rows: &str) -> Arc<Engine> {
    let model = |path: &String| match on_gpu() {
        true => json!({ "path": path, "provider": "cuda", "options": options, "rows": rows }),
        false => json!({ "path": path }),
    };
    let models: Vec<Value> = folders.iter().map(model).collect();
    let config = json!({ "models": models, "combine": { "kind": "weighted", "weights": [0.5, 0.5] } });
    Arc::new(Engine::load(&Config::parse(&config.to_string()).unwrap()).unwrap())
}

/// The options of each session, with the length of its prompt.
fn jobs() -> Vec<(usize, Options)> {
    let ways = [
        (Strategy::Standard, None, 1.0),
        (Strategy::Standard, None, 0.0),
        (Strategy::Standard, Some(Targets::Routed), 1.0),
        (Strategy::Speculative, None, 0.7),
        (Strategy::Cos, None, 0.0),
        (Strategy::Cos, Some(Targets::Routed), 1.0),
        (Strategy::Auto, None, 1.0),
    ];
    let prompts = [1, 40, 7, 300, 25, 130, 64];
    let job = |(index, (strategy, targets, temperature)): (usize, (Strategy, Option<Targets>, f32))| {
        let top_k = if index % 3 == 0 { 40 } else { 0 };
        let options = Options {
            strategy,
            targets,
            sampler: Sampler::new(temperature, top_k, 0.0, 0.0).unwrap(),
            seed: index as u64,
            max_tokens: 24,
            proposal_lengths: Some(vec![2, 3]).filter(|_| strategy != Strategy::Auto),
            stop_tokens: Some(Vec::new()),
            ..Options::default()
        };
        (prompts[index], options)
    };
    ways.into_iter().enumerate().map(job).collect()
}

fn begin(engine: &Arc<Engine>, (prompt, options): &(usize, Options)) -> Session {
    let mut session = Session::new(engine, options).unwrap();
    session.prompt(&(0..*prompt).map(|index| ((37 * index + 11) % 96) as i32).collect::<Vec<_>>()).unwrap();
    session
}

/// The text of a session. With `cancels`, some of its steps are cancelled and repeated.
fn text(engine: &Arc<Engine>, job: &(usize, Options), cancels: bool) -> Vec<i32> {
    let mut session = begin(engine, job);
    let cancel = session.cancel().clone();
    std::thread::scope(|scope| {
        let canceller = cancels.then(|| {
            scope.spawn(|| {
                std::thread::sleep(Duration::from_millis(2));
                cancel.request();
            })
        });
        while !matches!(session.step().unwrap().1, State::Ended(_)) {}
        if let Some(thread) = canceller {
            thread.join().unwrap();
        }
    });
    session.decoder().committed()[job.0..].to_vec()
}

/// Starts so many threads at a time. Each decodes some texts, abandons some sessions, and ends.
fn check(engine: &Arc<Engine>, threads: usize, rounds: usize, what: &str) {
    let jobs = jobs();
    let told: Vec<Vec<i32>> = jobs.iter().map(|job| text(engine, job, false)).collect();
    let texts = AtomicUsize::new(0);
    for round in 0..rounds {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (jobs, told, texts) = (&jobs, &told, &texts);
                scope.spawn(move || {
                    for step in 0..3 {
                        let index = (round + 3 * thread + step) % jobs.len();
                        if (thread + step).is_multiple_of(4) {
                            let mut session = begin(engine, &jobs[index]);
                            _ = session.step().unwrap(); // then it is abandoned
                        }
                        // Cancelled rounds may end elsewhere, and `auto` plans by the clock. All other texts are the
                        // same.
                        let cancels = (thread + round).is_multiple_of(3);
                        let found = text(engine, &jobs[index], cancels);
                        let free = cancels || jobs[index].1.strategy == Strategy::Auto;
                        assert!(
                            found.len() == 24 && (free || found == told[index]),
                            "{what}: {found:?}, {:?}",
                            jobs[index]
                        );
                        texts.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
    }
    println!("{what}: {} texts by {threads} threads at a time", texts.into_inner());
}

#[test]
fn threads_of_all_numbers_come_and_go() {
    let folder = tempfile::tempdir().unwrap();
    let folders = [model(folder.path(), 1), model(folder.path(), 2)];
    if !on_gpu() {
        println!("in part: COS_TEST_PROVIDER is not cuda");
        check(&engine(&folders, &Value::Null, "host"), 2, 1, "the processor");
        return;
    }
    for (options, rows) in [
        (json!({}), "host"),
        (json!({}), "gpu"),
        (json!({ "sdpa_kernel": "23" }), "host"),
        (json!({ "enable_cuda_graph": false }), "host"),
        (json!({ "sdpa_kernel": "23", "enable_cuda_graph": false }), "gpu"),
    ] {
        let engine = engine(&folders, &options, rows);
        for (threads, rounds) in [(1, 6), (2, 6), (8, 4), (64, 2)] {
            check(&engine, threads, rounds, &format!("{options}, rows on the {rows}"));
        }
    }
}
