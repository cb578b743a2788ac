//! Tests models with the shapes of known ones, which `scripts/make_shapes.py` makes: logits against PyTorch's, prompts
//! of 1 to 3,000 tokens, and sessions on threads that come and go.
//!
//! `COS_TEST_SHAPES` names their folder; without it, the tests are skipped. `COS_TEST_PROVIDER=cuda` runs them on a
//! GPU, and `COS_TEST_GPUS=2` puts the second model of a pair on another GPU.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use cos::config::Config;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::model::{Cancel, Model, Pass, Sequence};
use cos::onnx::{LoadOptions, OnnxModel, Provider, environment};
use cos::rows::{Filter, Sampler};
use serde_json::Value;

/// The largest difference from float32 logits for each precision, in standard deviations of a row. Weights are exact in
/// four bits here, but their products are computed in half precision.
const TOLERANCES: [(&str, f32); 4] = [("fp32", 2e-3), ("fp16", 0.03), ("bf16", 0.2), ("int4", 0.03)];

fn provider() -> &'static str {
    if std::env::var("COS_TEST_PROVIDER").is_ok_and(|name| name == "cuda") { "cuda" } else { "cpu" }
}

/// The folders of the shapes. Tests take turns, because some of them take much memory.
fn shapes() -> (Vec<PathBuf>, MutexGuard<'static, ()>) {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    let Some(folder) = std::env::var_os("COS_TEST_SHAPES") else {
        println!("skipped: COS_TEST_SHAPES does not name a folder made by scripts/make_shapes.py");
        return (Vec::new(), turn);
    };
    let entries = Path::new(&folder).read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut shapes: Vec<PathBuf> = entries.filter(|path| path.join("golden.json").is_file()).collect();
    shapes.sort();
    assert!(
        !shapes.is_empty(),
        "{} holds no shapes; make them with scripts/make_shapes.py",
        Path::new(&folder).display()
    );
    (shapes, turn)
}

/// The exports of a shape, each with the tolerance of its precision.
fn exports(shape: &Path) -> impl Iterator<Item = (PathBuf, f32)> {
    let shape = shape.to_path_buf();
    TOLERANCES
        .into_iter()
        .map(move |(precision, tolerance)| (shape.join(precision), tolerance))
        .filter(|(folder, _)| folder.is_dir())
}

fn token(index: usize, length: usize) -> i32 {
    ((37 * index + 11 * length) % 4000 + 20) as i32
}

fn text(length: usize) -> Vec<i32> {
    (0..length).map(|index| token(index, length)).collect()
}

#[test]
fn logits_are_those_of_pytorch() {
    let (shapes, _turn) = shapes();
    environment(None, 0, None).unwrap();
    for shape in &shapes {
        let about: Value = serde_json::from_slice(&std::fs::read(shape.join("golden.json")).unwrap()).unwrap();
        let columns = about["columns"].as_u64().unwrap() as usize;
        let rows = std::fs::read(shape.join("golden.f32")).unwrap();
        let rows: Vec<f32> = bytemuck::pod_collect_to_vec(&rows);
        for (folder, tolerance) in exports(shape) {
            let provider = match provider() {
                "cuda" => Provider::Cuda { device_id: 0, options: Default::default() },
                _ => Provider::Cpu,
            };
            let options = LoadOptions { provider, ..LoadOptions::default() };
            let model = OnnxModel::load(&folder, "model", &options).unwrap();
            let mut expected = rows.chunks_exact(columns);
            let mut worst = 0.0f32;
            for sequence in about["sequences"].as_array().unwrap() {
                let text = text(sequence["length"].as_u64().unwrap() as usize);
                let mut run = model.start(&Arc::new(Cancel::default())).unwrap();
                for position in sequence["positions"].as_array().unwrap() {
                    let position = position.as_u64().unwrap() as usize;
                    run_to(&model, run.as_mut(), &text[..position]);
                    let off = deviation(run.row(position).scores().unwrap(), expected.next().unwrap());
                    assert!(off <= tolerance, "{}: position {position} of {}: {off}", folder.display(), text.len());
                    worst = worst.max(off);
                }
            }
            let (about, parts) = (model.describe(), ["scoring", "graphs", "sdpa_kernel", "rows_on", "warnings"]);
            let parts = parts.map(|part| format!("{part} {}", about[part])).join(", ");
            println!("{}: off by at most {worst:.4} of a row's deviation; {parts}", folder.display());
        }
    }
}

/// Run the tokens of a text that a sequence has not seen, and keep the last row.
fn run_to(model: &dyn Model, run: &mut dyn Sequence, text: &[i32]) {
    while run.len() < text.len() {
        let end = text.len().min(run.len() + model.max_pass());
        let tokens = &text[run.len()..end];
        model
            .forward(&mut [Pass {
                sequence: run,
                tokens,
                keep: text.len(),
                filter: Filter::plain(1.0),
                uniforms: None,
            }])
            .unwrap();
    }
}

/// The standard deviation of a row.
fn spread(row: &[f32]) -> f32 {
    let mean = row.iter().sum::<f32>() / row.len() as f32;
    (row.iter().map(|value| (value - mean).powi(2)).sum::<f32>() / row.len() as f32).sqrt()
}

/// The largest difference of two rows, in standard deviations of the expected one.
fn deviation(found: &[f32], expected: &[f32]) -> f32 {
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / spread(expected)
}

/// An engine, and the tolerance of its logits in standard deviations of a row.
struct Subject {
    engine: Arc<Engine>,
    tolerance: f32,
    what: String,
}

/// An engine of one export, or of a mixture of several, with a look-up.
fn subject(exports: &[(PathBuf, f32)]) -> Subject {
    let gpus: usize = std::env::var("COS_TEST_GPUS").map_or(1, |count| count.parse().unwrap());
    let mut models: Vec<Value> = Vec::new();
    for (index, (path, _)) in exports.iter().enumerate() {
        models.push(serde_json::json!({ "path": path, "provider": provider(), "device_id": index % gpus }));
    }
    models.push(serde_json::json!({ "kind": "ngram" }));
    let mut weights = vec![1.0 / exports.len() as f32; exports.len()];
    weights.push(0.0);
    let config = serde_json::json!({ "models": models, "combine": { "kind": "weighted", "weights": weights } });
    Subject {
        engine: Arc::new(Engine::load(&Config::parse(&config.to_string()).unwrap()).unwrap()),
        tolerance: exports.iter().map(|(_, tolerance)| *tolerance).fold(0.0, f32::max),
        what: exports.iter().map(|(path, _)| path.display().to_string()).collect::<Vec<_>>().join(" and "),
    }
}

/// A prompt of so many tokens, and how a session decodes it.
#[derive(Debug, Clone)]
struct Job {
    prompt: usize,
    options: Options,
}

/// Jobs whose text is the same each time. `auto` is left out, because it decides by measured times.
fn jobs(models: usize, long: usize) -> Vec<Job> {
    let mut jobs = Vec::new();
    for (index, prompt) in [1, 40, 300, long].into_iter().enumerate() {
        for temperature in [0.0, 1.0] {
            let way = [Strategy::Standard, Strategy::Speculative, Strategy::Cos, Strategy::Standard][index];
            let mut lengths = vec![2; models + 1];
            lengths[models] = 4;
            jobs.push(Job {
                prompt,
                options: Options {
                    strategy: way,
                    sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
                    seed: index as u64,
                    max_tokens: 20,
                    proposal_lengths: Some(lengths),
                    stop_tokens: Some(Vec::new()),
                    ..Options::default()
                },
            });
        }
    }
    jobs
}

fn decode(engine: &Arc<Engine>, Job { prompt, options }: &Job) -> Vec<i32> {
    let mut session = Session::new(engine, options).unwrap();
    session.prompt(&text(*prompt)).unwrap();
    while session.step().unwrap().1 == State::Open {}
    session.decoder().committed()[*prompt..].to_vec()
}

/// Whether two texts differ by rounding only.
///
/// The last bits of logits depend on the size of the cache, which a session may inherit from an earlier one. Greedy
/// texts may diverge only where the models rate both tokens alike. The models are flat noise over 32,000 tokens and
/// more, so rounding moves a sampled token by a few numbers, and later tokens do not depend on that.
fn are_alike(subject: &Subject, job: &Job, a: &[i32], b: &[i32]) -> bool {
    if !job.options.sampler.is_greedy() {
        return a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.abs_diff(*b) <= 128);
    }
    let Some(parting) = a.iter().zip(b).position(|(a, b)| a != b) else { return a.len() == b.len() };
    let tokens = [&text(job.prompt)[..], &a[..parting]].concat();
    let models = subject.engine.models().filter(|model| model.describe()["kind"] == "onnx");
    let gaps: Vec<f32> = models
        .map(|model| {
            let mut run = model.start(&Arc::new(Cancel::default())).unwrap();
            run_to(model, run.as_mut(), &tokens);
            let row = run.row(tokens.len()).scores().unwrap();
            (row[a[parting] as usize] - row[b[parting] as usize]) / spread(row)
        })
        .collect();
    (gaps.iter().sum::<f32>() / gaps.len() as f32).abs() <= subject.tolerance
}

/// Check that sessions on short-lived threads, one after another and at the same time, give the texts of one thread.
fn check_threads(subject: &Subject, jobs: &[Job], threads: usize) {
    let Subject { engine, what, .. } = subject;
    let expected: Vec<Vec<i32>> = jobs.iter().map(|job| decode(engine, job)).collect();
    let (done, rounded) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let check = |index: usize| {
        let (job, text) = (&jobs[index], decode(engine, &jobs[index]));
        assert!(
            are_alike(subject, job, &text, &expected[index]),
            "{what}: {text:?} in place of {:?}, {job:?}",
            expected[index]
        );
        done.fetch_add(1, Ordering::Relaxed);
        rounded.fetch_add(usize::from(text != expected[index]), Ordering::Relaxed);
    };
    (0..jobs.len()).for_each(check); // with captured graphs
    let on_one = rounded.load(Ordering::Relaxed);
    for index in 0..jobs.len() {
        std::thread::scope(|scope| scope.spawn(|| check(index)).join().unwrap());
    }
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let check = &check;
            scope.spawn(move || {
                (0..jobs.len()).for_each(|step| check((thread + step) % jobs.len()));
                let auto = Options { strategy: Strategy::Auto, proposal_lengths: None, ..jobs[0].options.clone() };
                assert_eq!(decode(engine, &Job { prompt: 40, options: auto }).len(), 20);
            });
        }
    });
    let (done, rounded) = (done.into_inner(), rounded.into_inner());
    println!("{what}: {done} texts, {rounded} of them differ by rounding, {on_one} on one thread");
}

#[test]
fn threads_come_and_go() {
    let (shapes, _turn) = shapes();
    for shape in &shapes {
        for export in exports(shape) {
            check_threads(&subject(&[export]), &jobs(1, 1500), 8);
        }
    }
}

/// Two precisions of a shape decode together.
#[test]
fn pairs_are_decoded_by_many_threads() {
    let (shapes, _turn) = shapes();
    for shape in &shapes {
        let exports: Vec<_> = exports(shape).take(2).collect();
        if exports.len() == 2 {
            check_threads(&subject(&exports), &jobs(2, 1500), 8);
        }
    }
}
