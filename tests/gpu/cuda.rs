//! What needs a GPU. Without one each test says why it is skipped, unless `COS_TEST_PROVIDER=cuda`: `scripts/gpu-check` runs them so. What
//! can be had of a test without one is tested before.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use crate::common::{Golden, Sampling, decode, oracle};
use cos::config::{Combine, Config};
use cos::decode::combine::Function;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::model::{Cancel, Interrupt, Model, Pass, Sequence};
use cos::onnx::{LoadOptions, OnnxModel, Provider, RowsOn, environment};
use cos::rows::Filter;
use cos::rows::{Candidates, Sampler};
use cudarc::driver::result as driver;
use half::{bf16, f16};

/// Its passes are captured.
const GRAPHS: &str = "llama/builder-fp16-cuda";
/// The same in bfloat16, whose logits are cast to float32.
const BF16: &str = "llama/builder-bf16-cuda";
/// The same without that cast.
const BF16_LOGITS: &str = "llama/bf16-logits-cuda";
/// Another one in float16, with bad rows behind some tokens.
const BAD: &str = "../fixtures/half-bad";
/// The same model in float32, whose attention ONNX Runtime has on the processor only.
const HALF: &str = "llama/builder-fp32";
/// All of it runs on the GPU, but with a cache that is another one after each pass, so it is not captured.
const PLAIN: &str = "opt/optimum-fp32";
/// The same, and operators on shapes are on the processor.
const MIXED: &str = "qwen2/optimum-fp32";
const NO_CACHE: &str = "llama/no-cache";

/// Tests take turns, because one of them takes all the memory that there is.
static TURN: Mutex<()> = Mutex::new(());

/// The right to use a GPU, if there is one.
fn gpu() -> Option<MutexGuard<'static, ()>> {
    let turn = TURN.lock().unwrap_or_else(|poison| poison.into_inner());
    match load(GRAPHS, &[]) {
        Ok(_) => Some(turn),
        Err(error) if std::env::var("COS_TEST_PROVIDER").as_deref() == Ok("cuda") => panic!("{error}"),
        Err(error) => {
            println!("skipped: {error}");
            None
        }
    }
}

/// A look-up in the text.
const LOOK_UP: &str = "ngram";

/// Another model that is captured: the same with other weights.
const OTHER: &str = "other";

fn path(form: &str) -> PathBuf {
    static OTHERS: OnceLock<tempfile::TempDir> = OnceLock::new();
    let exports = crate::common::root().join("tests/exports");
    if form != OTHER {
        return exports.join(form);
    }
    let folder = OTHERS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for file in exports.join(GRAPHS).read_dir().unwrap() {
            let file = file.unwrap().path();
            std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
        }
        // The sign of every seventh number
        let file = folder.path().join("model.onnx.data");
        let mut data = std::fs::read(&file).unwrap();
        data.chunks_exact_mut(14).for_each(|numbers| numbers[1] ^= 0x80);
        std::fs::write(&file, data).unwrap();
        folder
    });
    folder.path().to_path_buf()
}

fn load(form: &str, options: &[(&str, &str)]) -> Result<OnnxModel, Error> {
    load_with(form, options, None)
}

fn load_with(form: &str, options: &[(&str, &str)], rows: Option<RowsOn>) -> Result<OnnxModel, Error> {
    environment(None, 0, None).unwrap();
    let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let provider = Provider::Cuda { device_id: 0, options };
    OnnxModel::load(&path(form), form, &LoadOptions { provider, scoring: None, context_length: None, rows })
}

const WEIGHTED: &str = r#"{"kind": "weighted", "weights": [0.4, 0.6]}"#;
const CONTRASTIVE: &str = r#"{"kind": "contrastive", "mu": 0.5, "plausibility": 0}"#;
const MASKED: &str = r#"{"kind": "contrastive", "mu": 0.5, "plausibility": 0.05}"#;
const LOGITS: &str = r#"{"kind": "logits", "weights": [1, -0.5]}"#;
const TARGET: &str = r#"{"kind": "target", "model": 0}"#;

const PROMPT: [i32; 5] = [5, 9, 33, 20, 61];

/// An engine of exports, each with its provider: `cpu`, `cuda`, or `cuda:1` for the second GPU. Their passes overlap.
fn engine(models: &[(&str, &str)]) -> Arc<Engine> {
    engine_with(models, "host", if models.len() == 2 { WEIGHTED } else { TARGET })
}

fn engine_with(models: &[(&str, &str)], rows: &str, combine: &str) -> Arc<Engine> {
    overlapping(models, rows, combine, true)
}

fn overlapping(models: &[(&str, &str)], rows: &str, combine: &str, overlap: bool) -> Arc<Engine> {
    let model = |(form, provider): &(&str, &str)| {
        if *form == LOOK_UP {
            return r#"{"kind": "ngram"}"#.into();
        }
        let path = path(form);
        let (provider, device) = provider.split_once(':').unwrap_or((provider, "0"));
        format!(
            r#"{{"path": "{}", "name": "{form}", "provider": "{provider}", "device_id": {device}, "rows": "{rows}"}}"#,
            path.display()
        )
    };
    let models: Vec<String> = models.iter().map(model).collect();
    let config = format!(r#"{{"models": [{}], "combine": {combine}, "overlap": {overlap}}}"#, models.join(", "));
    Arc::new(Engine::load(&Config::parse(&config).unwrap()).unwrap())
}

/// Decode a prompt to its end: the tokens, their log-probabilities, and what was done.
fn run(engine: &Arc<Engine>, prompt: &[i32], options: &Options) -> (Vec<i32>, Vec<f32>, Session) {
    let mut session = Session::new(engine, options).unwrap();
    session.prompt(prompt).unwrap();
    let (mut tokens, mut logs, mut state) = (Vec::new(), Vec::new(), State::Open);
    while state == State::Open {
        let (new, now) = session.step().unwrap();
        tokens.extend_from_slice(new);
        state = now;
        logs.extend_from_slice(session.log_probabilities());
    }
    (tokens, logs, session)
}

fn forward(model: &dyn Model, sequence: &mut dyn Sequence, tokens: &[i32], keep: usize) -> Result<(), Interrupt> {
    filtered(model, sequence, tokens, keep, Filter::plain(1.0))
}

/// A pass whose rows are going to be filtered.
fn filtered(
    model: &dyn Model,
    sequence: &mut dyn Sequence,
    tokens: &[i32],
    keep: usize,
    filter: Filter,
) -> Result<(), Interrupt> {
    model.forward(&mut [Pass { sequence, tokens, keep, filter }]).map(drop)
}

/// All scores of a row.
fn logits(sequence: &dyn Sequence, position: usize) -> &[f32] {
    sequence.row(position).scores().unwrap()
}

fn fresh(model: &dyn Model, context: &[i32]) -> Vec<f32> {
    let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
    forward(model, sequence.as_mut(), context, context.len()).unwrap();
    logits(sequence.as_ref(), context.len()).to_vec()
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn token(index: usize) -> i32 {
    ((index * 37 + 11) % 96) as i32
}

fn ways() -> Vec<Options> {
    let way = |strategy, targets, lengths: Option<[i32; 2]>| Options {
        strategy,
        targets,
        proposal_lengths: lengths.map(|lengths| lengths.to_vec()),
        stop_tokens: Some(Vec::new()),
        ..Options::default()
    };
    vec![
        way(Strategy::Standard, None, None),
        way(Strategy::Speculative, None, Some([0, 4])),
        way(Strategy::Cos, None, Some([1, 1])),
        way(Strategy::Cos, None, Some([3, 5])),
        way(Strategy::Standard, Some(Targets::Routed), None),
        way(Strategy::Cos, Some(Targets::Routed), Some([1, 2])),
        way(Strategy::Auto, None, None),
    ]
}

#[test]
fn what_is_captured_is_said() {
    let Some(_turn) = gpu() else { return };
    for form in [GRAPHS, BF16, BF16_LOGITS, "../fixtures/half", BAD] {
        let about = load(form, &[]).unwrap().describe();
        assert_eq!((&about["graphs"], &about["cache_on"]), (&true.into(), &"gpu".into()), "{form}");
        assert!(about["no_graphs"].is_null(), "{about}");
    }
    for (form, options, cache, why) in [
        (GRAPHS, &[("enable_cuda_graph", "0")][..], "gpu", "\"enable_cuda_graph\" is"),
        (HALF, &[], "host", "GroupQueryAttention"),
        (MIXED, &[], "gpu", "on the processor: "),
        (PLAIN, &[], "gpu", "moves with every pass"),
        (NO_CACHE, &[], "host", "on the processor: "),
    ] {
        let about = load(form, options).unwrap().describe();
        assert_eq!((&about["graphs"], &about["cache_on"]), (&false.into(), &cache.into()), "{form}");
        assert!(about["no_graphs"].as_str().unwrap().contains(why), "{about}");
    }
}

/// Random passes and rollbacks by graphs and without, against fresh sequences of the same model on the processor.
#[test]
fn caches_survive_any_rollback() {
    let Some(_turn) = gpu() else { return };
    environment(None, 0, None).unwrap();
    let on_host = |form: &str| {
        let settings = LoadOptions { provider: Provider::Cpu, scoring: None, context_length: None, rows: None };
        OnnxModel::load(&path(form), form, &settings).unwrap()
    };
    let no_graphs = &[("enable_cuda_graph", "0")][..];
    for (form, options, reference, tolerance) in [
        (GRAPHS, &[][..], HALF, 0.03),
        (GRAPHS, no_graphs, HALF, 0.03),
        (HALF, &[], HALF, 1e-3),
        (MIXED, &[], MIXED, 1e-3),
        (PLAIN, &[], PLAIN, 1e-3),
    ] {
        let (model, reference) = (load(form, options).unwrap(), on_host(reference));
        let mut random = fastrand::Rng::with_seed(3);
        // several after each other, which have the same buffers and graphs
        for _ in 0..3 {
            let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
            let mut context: Vec<i32> = Vec::new();
            for _ in 0..60 {
                let width = random.choice([1, 1, 1, 2, 3, 5, 8, 20, 37]).unwrap();
                let new: Vec<i32> = (0..width).map(|_| token(random.usize(..96))).collect();
                let first = context.len() + 1;
                forward(&model, sequence.as_mut(), &new, first).unwrap();
                context.extend_from_slice(&new);
                for position in [first, context.len()] {
                    let off = worst(logits(sequence.as_ref(), position), &fresh(&reference, &context[..position]));
                    assert!(off < tolerance, "{form} {options:?}, position {position}: off by {off}");
                }
                let len = context.len();
                let len = if len > 90 { 9 } else { len - random.usize(..2) * random.usize(..len.min(12)) };
                context.truncate(len);
                sequence.truncate(len);
                assert_eq!(sequence.len(), len);
            }
        }
    }
}

/// Rows behind texts that are passes of more tokens where cuDNN plans each width, and of just them where it is left out.
#[test]
fn texts_of_any_length_are_scored_alike() {
    let Some(_turn) = gpu() else { return };
    environment(None, 0, None).unwrap();
    let settings = LoadOptions { provider: Provider::Cpu, scoring: None, context_length: None, rows: None };
    let reference = OnnxModel::load(&path(HALF), HALF, &settings).unwrap();
    let without_cudnn = &[("sdpa_kernel", "23")][..];
    for (form, options, rows, tolerance) in [
        (GRAPHS, &[][..], RowsOn::Host, 0.03),
        (GRAPHS, &[], RowsOn::Gpu, 0.03),
        (GRAPHS, without_cudnn, RowsOn::Host, 0.03),
        (BF16, &[], RowsOn::Host, 0.3),
    ] {
        let model = load_with(form, options, Some(rows)).unwrap();
        let asked = options.first().map_or(serde_json::Value::Null, |&(_, kernels)| kernels.into());
        assert_eq!(model.describe()["sdpa_kernel"], asked, "heads of 16 have no XQA");
        for length in [16, 17, 39, 64, 101, 120, 127, 128] {
            let text: Vec<i32> = (0..length).map(|index| token(index + length)).collect();
            let mut expected = reference.start(&Arc::new(Cancel::default())).unwrap();
            forward(&reference, expected.as_mut(), &text, 1).unwrap();
            let scored: Vec<Vec<f32>> =
                (1..=length).map(|position| logits(expected.as_ref(), position).to_vec()).collect();
            for first in [1, length / 2, length] {
                let what = format!("{form} {options:?}, {length} tokens from {first}");
                let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
                forward(&model, sequence.as_mut(), &text, first).unwrap();
                assert_eq!(sequence.len(), length);
                for position in first..=length {
                    let off = worst(logits(sequence.as_ref(), position), &scored[position - 1]);
                    assert!(off < tolerance, "{what}, position {position}: off by {off}");
                }
                // What follows sees these tokens, and nothing that was behind them.
                for (step, width) in [1, 5, 1].into_iter().enumerate() {
                    let next: Vec<i32> = (0..width).map(|index| token(3 * step + index)).collect();
                    let len = sequence.len();
                    if len + width > 128 {
                        break;
                    }
                    forward(&model, sequence.as_mut(), &next, len + 1).unwrap();
                    forward(&reference, expected.as_mut(), &next, len + 1).unwrap();
                    for position in len + 1..=len + width {
                        let off = worst(logits(sequence.as_ref(), position), logits(expected.as_ref(), position));
                        assert!(off < tolerance, "{what}, position {position} behind them: off by {off}");
                    }
                }
                expected.truncate(length);
            }
        }
    }
}

/// While a stream is captured, CUDA refuses much of what a model needs that is loaded or first run.
#[test]
fn models_are_loaded_while_others_are_captured() {
    let Some(_turn) = gpu() else { return };
    let end = Instant::now() + Duration::from_secs(10);
    let before_end = || Instant::now() < end;
    let (mut captured, mut loads) = (0, 0);
    std::thread::scope(|scope| {
        let captures = scope.spawn(|| {
            let model = load(GRAPHS, &[]).unwrap();
            while before_end() {
                // all at once, so that none has the graphs of another
                let mut sequences: Vec<_> =
                    (0..8).map(|_| model.start(&Arc::new(Cancel::default())).unwrap()).collect();
                for sequence in &mut sequences {
                    for width in [1, 2, 3, 4, 5, 6].into_iter().cycle().take(18) {
                        let len = sequence.len();
                        let tokens: Vec<i32> = (0..width).map(token).collect();
                        forward(&model, sequence.as_mut(), &tokens, len + 1).unwrap();
                    }
                }
            }
            assert_eq!(model.captured().unwrap().1, None);
            model.captured().unwrap().0
        });
        let loaders = [MIXED, OTHER, BF16].map(|form| {
            scope.spawn(move || {
                let mut count = 0;
                while before_end() {
                    let model = load(form, &[]).unwrap();
                    let text: Vec<i32> = (0..40).map(token).collect();
                    fresh(&model, &text);
                    count += 1;
                }
                count
            })
        });
        captured = captures.join().unwrap();
        loads = loaders.map(|loader| loader.join().unwrap()).iter().sum();
    });
    println!("{loads} models were loaded, and {captured} passes were captured");
    assert!(captured > 5 && loads > 10, "{captured}, {loads}");
}

/// A session says of each model how many passes were captured, or why none is.
#[test]
fn sessions_say_what_was_captured() {
    let Some(_turn) = gpu() else { return };
    let engine = engine(&[(GRAPHS, "cuda"), (PLAIN, "cuda"), (HALF, "cpu")]);
    let (_, _, session) = run(&engine, &PROMPT, &Options { strategy: Strategy::Standard, ..Options::default() });
    let [graphs, plain, host] = [0, 1, 2].map(|model| session.describe()["models"][model].clone());
    assert!(graphs["captured"].as_u64() > Some(0) && graphs["no_graphs"].is_null(), "{graphs}");
    assert_eq!(plain["captured"], 0);
    assert!(plain["no_graphs"].as_str().unwrap().contains("moves with every pass"), "{plain}");
    assert!(host["captured"].is_null() && host["no_graphs"].is_null(), "{host}");
}

/// Sessions that filter rows and others that do not take turns with what is kept of those that ended.
#[test]
fn what_is_captured_with_filters_and_without_is_kept() {
    let Some(_turn) = gpu() else { return };
    let engine = engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], "gpu", WEIGHTED);
    let mut captured = Vec::new();
    let mut texts = Vec::new();
    for turn in 0..6 {
        let sampler = Sampler::new(1.0, if turn % 2 == 0 { 0 } else { 5 }, 0.0, 0.0).unwrap();
        let options = Options { strategy: Strategy::Standard, sampler, seed: 4, ..Options::default() };
        let (text, _, session) = run(&engine, &PROMPT, &options);
        captured.push(session.describe()["models"][0]["captured"].as_u64().unwrap());
        texts.push(text);
    }
    // A kind of pass is captured when it comes for the second time, which may be in the second session of that kind.
    assert!(0 < captured[0] && captured[0] < captured[1], "{captured:?}");
    assert!(captured[3..].iter().all(|count| *count == captured[3]), "{captured:?}");
    assert!(texts[0] != texts[1] && (2..6).all(|turn| texts[turn] == texts[turn % 2]), "{texts:?}");
}

/// Engines are loaded and go, and their sessions run, end half-way and are cancelled, in many threads. For `COS_TEST_SECONDS`.
#[test]
fn many_engines_in_many_threads() {
    let Some(_turn) = gpu() else { return };
    let seconds = std::env::var("COS_TEST_SECONDS").map_or(15, |seconds| seconds.parse().unwrap());
    let kinds = [
        (vec![(GRAPHS, "cuda"), (OTHER, "cuda")], "host"),
        (vec![(GRAPHS, "cuda"), (OTHER, "cuda")], "gpu"),
        (vec![(BF16, "cuda"), (GRAPHS, "cuda"), (MIXED, "cuda")], "host"),
        (vec![(OTHER, "cuda"), (HALF, "cpu")], "gpu"),
        (vec![(MIXED, "cuda"), (PLAIN, "cuda")], "host"),
        (vec![(HALF, "cuda"), (BF16_LOGITS, "cuda")], "host"),
    ];
    let ways =
        || ways().into_iter().enumerate().map(|(seed, way)| Options { seed: seed as u64, max_tokens: 30, ..way });
    let sampled = |options: Options| match options.targets {
        None => options,
        Some(_) => Options { sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(), ..options },
    };
    let new = |kind: usize| {
        let (models, rows) = &kinds[kind];
        let weights = vec![(1.0 / models.len() as f64).to_string(); models.len()].join(", ");
        engine_with(models, rows, &format!(r#"{{"kind": "weighted", "weights": [{weights}]}}"#))
    };
    let options = |kind: usize, way: usize| {
        let options = sampled(ways().nth(way).unwrap());
        let lengths = options.proposal_lengths.map(|mut lengths| {
            lengths.resize(kinds[kind].0.len(), 1);
            lengths
        });
        Options { proposal_lengths: lengths, ..options }
    };
    let count = ways().count();
    let told: Vec<Vec<Vec<i32>>> = (0..kinds.len())
        .map(|kind| {
            let engine = new(kind);
            (0..count).map(|way| run(&engine, &PROMPT, &options(kind, way)).0).collect()
        })
        .collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let shared: Vec<Mutex<Option<Arc<Engine>>>> = kinds.iter().map(|_| Mutex::default()).collect();
    let (loaded, texts) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (told, shared, loaded, texts, new, options) = (&told, &shared, &loaded, &texts, &new, &options);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                while Instant::now() < end {
                    let kind = random.usize(..told.len());
                    let other = if random.bool() { shared[kind].lock().unwrap().take() } else { None };
                    let engine = other.unwrap_or_else(|| {
                        loaded.fetch_add(1, Relaxed);
                        new(kind)
                    });
                    *shared[kind].lock().unwrap() = Some(engine.clone()).filter(|_| random.u8(..4) > 0);
                    let mut sessions: Vec<_> = (0..random.usize(1..4))
                        .map(|_| {
                            let way = random.usize(..count);
                            let mut session = Session::new(&engine, &options(kind, way)).unwrap();
                            session.prompt(&PROMPT).unwrap();
                            (way, session, Vec::new())
                        })
                        .collect();
                    drop(engine);
                    while !sessions.is_empty() {
                        let index = random.usize(..sessions.len());
                        let (way, session, found) = &mut sessions[index];
                        if random.u8(..20) == 0 {
                            session.cancel().request();
                        }
                        let (new, state) = session.step().unwrap_or_else(|error| panic!("{kind}, {way}: {error}"));
                        found.extend_from_slice(new);
                        if !matches!(state, State::Open | State::Cancelled) {
                            // `auto` plans by the clock
                            let planned = options(kind, *way).strategy == Strategy::Auto;
                            assert!(planned || *found == told[kind][*way], "{kind}, {way}: {found:?}");
                            texts.fetch_add(1, Relaxed);
                            sessions.swap_remove(index);
                        } else if random.u8(..200) == 0 {
                            sessions.swap_remove(index);
                        }
                    }
                }
            });
        }
    });
    let (loaded, texts) = (loaded.into_inner(), texts.into_inner());
    println!("{loaded} engines were loaded, and {texts} texts were as they are alone");
    assert!(loaded > 10 && texts > 20, "{loaded}, {texts}");
}

/// What is made of rows on the GPU is what their scores say.
#[test]
fn numbers_of_rows_are_theirs() {
    let Some(_turn) = gpu() else { return };
    for form in [GRAPHS, OTHER, BF16, BF16_LOGITS] {
        let model = load_with(form, &[], Some(RowsOn::Gpu)).unwrap();
        let about = model.describe();
        assert_eq!((&about["rows_on"], &about["no_gpu_rows"]), (&"gpu".into(), &serde_json::Value::Null), "{about}");
        let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        for (pass, width) in [3, 1, 1, 1, 4, 4, 4, 17, 24].into_iter().enumerate() {
            let start = sequence.len();
            let tokens: Vec<i32> = (0..width).map(|index| token(7 * pass + index)).collect();
            filtered(&model, sequence.as_mut(), &tokens, start + 1, Filter::plain(1.25)).unwrap();
            for position in start + 1..=sequence.len() {
                let what = format!("{form}, position {position}");
                let rows = sequence.device_rows().expect(&what);
                let scored: Vec<f32> = (0..96).map(|token| rows.score(position, token).unwrap()).collect();
                let total = rows.distribution(position, Filter::plain(1.25)).expect(&what).unwrap().total();
                let (best, top, second) = rows.best(position).expect(&what);
                let shares = [0.0, 1e-4, 0.2, 0.4999, 0.9, 0.9999].map(|share| share * total);
                let drawn = shares.map(|share| rows.draw(position, share).unwrap().expect(&what));
                let row = rows.scores(position).unwrap();
                let max = top;
                assert_eq!(row, scored, "{what}");
                let first = row.iter().position(|score| row.iter().all(|other| other <= score)).unwrap();
                let others = row.iter().enumerate().filter(|(token, _)| *token != first);
                assert_eq!((max, best, top), (row[first], first, row[first]), "{what}");
                assert_eq!(second, others.map(|(_, &score)| score).fold(f32::NEG_INFINITY, f32::max), "{what}");
                let weights: Vec<f64> = row.iter().map(|score| (f64::from(score - max) * 1.25).exp()).collect();
                assert!((weights.iter().sum::<f64>() / total - 1.0).abs() < 1e-6, "{what}");
                for (share, token) in shares.into_iter().zip(drawn) {
                    let before: f64 = weights[..token].iter().sum();
                    let near = 1e-6 * total;
                    assert!(
                        before <= share + near && share <= before + weights[token] + near,
                        "{what}: {share}, {token}"
                    );
                }
                assert!(rows.distribution(position, Filter::plain(1.0)).is_none());
            }
        }
    }
}

/// Of rows on the GPU, filters keep there what they keep on the processor, and draws are from that.
#[test]
fn filters_keep_the_same_on_the_gpu() {
    let Some(_turn) = gpu() else { return };
    let sampler = |temperature, top_k, top_p, min_p| Sampler::new(temperature, top_k, top_p, min_p).unwrap();
    let mut candidates = Candidates::new(96);
    let (mut known, mut all) = (0, 0);
    for form in [GRAPHS, OTHER, BF16, BF16_LOGITS] {
        let model = load_with(form, &[], Some(RowsOn::Gpu)).unwrap();
        for sampler in [
            sampler(1.0, 1, 0.0, 0.0),
            sampler(0.8, 5, 0.0, 0.0),
            sampler(1.3, 95, 0.0, 0.0),
            sampler(1.0, 0, 0.9, 0.0),
            sampler(0.6, 0, 0.3, 0.0),
            sampler(2.0, 0, 0.0, 0.05),
            sampler(0.7, 20, 0.8, 0.0),
            sampler(1.5, 40, 0.95, 0.2),
        ] {
            let filter = sampler.filter();
            let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
            for (pass, width) in [3, 1, 1, 1, 4, 4, 4, 17, 24].into_iter().enumerate() {
                let start = sequence.len();
                let tokens: Vec<i32> = (0..width).map(|index| token(7 * pass + index)).collect();
                filtered(&model, sequence.as_mut(), &tokens, start + 1, filter).unwrap();
                for position in start + 1..=sequence.len() {
                    all += 1;
                    let what = format!("{form}, {sampler:?}, position {position}");
                    let rows = sequence.device_rows().expect(&what);
                    let Some(found) = rows.distribution(position, filter) else {
                        assert_eq!(rows.draw(position, 0.0).unwrap(), None, "{what}");
                        continue;
                    };
                    known += 1;
                    let (found, (_, max, _)) = (found.unwrap(), rows.best(position).expect(&what));
                    let shares = [0.0, 0.2, 0.4999, 0.9, 0.9999].map(|share| share * found.total());
                    let drawn = shares.map(|share| rows.draw(position, share).unwrap().expect(&what));
                    let row = rows.scores(position).unwrap();
                    let expected = sampler.process(row, &mut candidates).unwrap();
                    let keeps = |token: usize| found.probability(row, token) > 0.0;
                    for token in 0..row.len() {
                        assert_eq!(keeps(token), expected.probability(row, token) > 0.0, "{what}, token {token}");
                    }
                    assert!((found.total() / expected.total() - 1.0).abs() < 1e-6, "{what}");
                    let weight = |token: usize| {
                        let exponent = f64::from(row[token] - max) * f64::from(filter.rate);
                        if keeps(token) { exponent.exp() } else { 0.0 }
                    };
                    for (share, token) in shares.into_iter().zip(drawn) {
                        let (before, near): (f64, f64) = ((0..token).map(weight).sum(), 1e-6 * found.total());
                        assert!(keeps(token), "{what}: {share}, {token}");
                        assert!(
                            before <= share + near && share <= before + weight(token) + near,
                            "{what}: {share}, {token}"
                        );
                    }
                    assert!(rows.distribution(position, Filter { rate: 9.0, ..filter }).is_none());
                }
            }
        }
    }
    println!("what is kept was known of {known} of {all} rows");
    assert!(known > all * 9 / 10, "{known} of {all}");
}

/// Greedily, all strategies on the GPU give what the processor does, as far as what it prefers is more than rounding.
#[test]
fn greedy_text_is_the_processors() {
    let Some(_turn) = gpu() else { return };
    const ROUNDING: f64 = 0.02;
    for (providers, rows, combine) in [
        (["cuda", "cuda"], "host", WEIGHTED),
        (["cuda", "cuda"], "gpu", WEIGHTED),
        (["cuda", "cpu"], "gpu", WEIGHTED),
        (["cpu", "cuda"], "host", CONTRASTIVE),
        (["cuda", "cuda"], "gpu", CONTRASTIVE),
    ] {
        let reference = engine_with(&[(HALF, "cpu"), (MIXED, "cpu")], "host", combine);
        let combination = reference.combination(None).unwrap();
        let first = if providers[0] == "cuda" { GRAPHS } else { HALF };
        let engine = engine_with(&[(first, providers[0]), (MIXED, providers[1])], rows, combine);
        for (index, options) in ways().into_iter().enumerate() {
            if options.targets == Some(Targets::Routed) {
                continue; // is of sampling only
            }
            // The pass over the long one takes 112 tokens where cuDNN plans each width.
            for mut context in [PROMPT.to_vec(), (0..100).map(token).collect()] {
                let told = decode(&engine, &context, &options);
                assert_eq!(told.len(), 128 - context.len());
                for found in told {
                    let rows: Vec<Vec<f32>> = reference.models().map(|model| fresh(model, &context)).collect();
                    let shares = oracle(&rows, &combination, Sampling::PLAIN);
                    let best = shares.iter().cloned().fold(0.0, f64::max);
                    let off = best.ln() - shares[found as usize].ln();
                    assert!(off < ROUNDING, "{providers:?}, way {index}, position {}: off by {off}", context.len());
                    context.push(found);
                }
            }
        }
    }
}

/// Where rows are makes no difference but by rounding: the same random numbers give the same text.
#[test]
fn rows_give_the_same_text_anywhere() {
    let Some(_turn) = gpu() else { return };
    let (mut texts, mut others) = (0, 0);
    for combine in [WEIGHTED, MASKED, LOGITS, TARGET] {
        let [host, gpu] = ["host", "gpu"].map(|rows| engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], rows, combine));
        for options in ways() {
            // `auto` plans by the clock
            if options.strategy == Strategy::Auto || (options.targets.is_some() && combine != WEIGHTED) {
                continue;
            }
            let samplers =
                [(1.0, 0, 0.0, 0.0), (1.5, 0, 0.0, 0.0), (0.0, 0, 0.0, 0.0), (1.2, 7, 0.0, 0.0), (1.0, 30, 0.9, 0.05)];
            for (seed, sampler) in (0..15).map(|seed| (seed, samplers[seed as usize % samplers.len()])) {
                let sampler = Sampler::new(sampler.0, sampler.1, sampler.2, sampler.3).unwrap();
                if sampler.is_greedy() && options.targets.is_some() {
                    continue;
                }
                let [told, found] = [&host, &gpu].map(|engine| {
                    let options = Options { seed, max_tokens: 30, sampler, ..clone(&options) };
                    decode(engine, &[5, 9, 33, seed as i32], &options)
                });
                texts += 1;
                others += i32::from(told != found);
            }
        }
    }
    assert!(texts > 200 && others <= 4, "{others} of {texts} texts differ");
}

/// Draws on the GPU follow the distribution that the processor gives: two tokens after a prompt, by every strategy.
/// Passes at the same time: on one GPU, beside the processor, and on two GPUs where there are.
#[test]
fn passes_that_overlap_change_nothing() {
    let Some(_turn) = gpu() else { return };
    let two = driver::device::get_count().unwrap() > 1;
    if !two {
        println!("skipped in part: there is one GPU only");
    }
    let groups = [
        vec![(GRAPHS, "cuda"), (OTHER, "cuda")],
        vec![(GRAPHS, "cuda"), (HALF, "cpu")],
        vec![(HALF, "cpu"), (GRAPHS, "cuda")],
        vec![(GRAPHS, "cuda"), (OTHER, "cuda:1")],
    ];
    for models in groups.into_iter().take(if two { 4 } else { 3 }) {
        for rows in ["host", "gpu"] {
            let engine = |overlap| overlapping(&models, rows, WEIGHTED, overlap);
            let (overlapping, turns) = (engine(true), engine(false));
            let overlap = &overlapping.describe()["overlap"];
            println!("{models:?}, rows on the {rows}: {overlap} of the shorter passes is hidden");
            assert!(overlap.is_f64() && turns.describe()["overlap"].is_null());
            for temperature in [0.0, 1.0] {
                for way in ways() {
                    if temperature > 0.0 && way.strategy == Strategy::Auto {
                        continue; // which decodes as time says
                    }
                    let sampler = Sampler::new(temperature, 0, 0.0, 0.0).unwrap();
                    let options = Options { sampler, max_tokens: 40, seed: 5, ..way };
                    let prompt: Vec<i32> = (0..20).map(token).collect();
                    if temperature == 0.0 && options.targets == Some(Targets::Routed) {
                        continue;
                    }
                    let text = |engine| decode(engine, &prompt, &options);
                    assert_eq!(text(&overlapping), text(&turns), "{models:?} {rows} {options:?}");
                }
            }
        }
    }
}

#[test]
fn draws_follow_the_processors_distribution() {
    let Some(_turn) = gpu() else { return };
    let reference = engine(&[(HALF, "cpu"), (MIXED, "cpu")]);
    draws_follow(&engine(&[(GRAPHS, "cuda"), (MIXED, "cuda")]), &reference, 0);
    for (top_k, combine) in [(5, WEIGHTED), (5, CONTRASTIVE), (0, WEIGHTED), (0, CONTRASTIVE)] {
        let [reference, engine] =
            ["host", "gpu"].map(|rows| engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], rows, combine));
        draws_follow(&engine, &reference, top_k);
    }
}

fn draws_follow(engine: &Arc<Engine>, reference: &Arc<Engine>, top_k: usize) {
    const DRAWS: u64 = 1500;
    let combination = reference.combination(None).unwrap();
    let sampling = Sampling { temperature: 0.7, top_k, ..Sampling::PLAIN };
    let prompt = [5, 9, 33, 20, 61];
    let after = |context: &[i32]| {
        let rows: Vec<Vec<f32>> = reference.models().map(|model| fresh(model, context)).collect();
        oracle(&rows, &combination, sampling)
    };
    let mut all = ways();
    all.retain(|way| way.targets.is_none() || matches!(engine.combine(), Combine::Weighted { .. }));
    for (way, options) in all.iter().enumerate() {
        let mut seen = vec![vec![0u64; 96]; 97];
        for seed in 0..DRAWS {
            let options = Options { seed, max_tokens: 2, sampler: sampling.sampler(), ..clone(options) };
            let told = decode(engine, &prompt, &options);
            seen[96][told[0] as usize] += 1;
            seen[told[0] as usize][told[1] as usize] += 1;
        }
        let expected: Vec<Vec<f64>> = (0..97)
            .map(|first| match first {
                96 => after(&prompt),
                first if seen[first].iter().sum::<u64>() == 0 => vec![1.0 / 96.0; 96],
                first => after(&[&prompt[..], &[first as i32]].concat()),
            })
            .collect();
        let groups = expected.iter().zip(&seen).map(|(expected, seen)| (&expected[..], &seen[..]));
        let fit = crate::stats::Fit::of_groups(groups.filter(|(_, seen)| seen.iter().sum::<u64>() > 0));
        assert!(
            fit.bound >= crate::stats::FAMILY_ERROR / all.len() as f64,
            "{:?}, top-k {top_k}, way {way}: {fit:?}",
            engine.combine()
        );
    }
}

fn clone(options: &Options) -> Options {
    Options {
        strategy: options.strategy,
        targets: options.targets,
        proposal_lengths: options.proposal_lengths.clone(),
        stop_tokens: options.stop_tokens.clone(),
        ..Options::default()
    }
}

/// A session that follows another one's has its buffers and graphs, and nothing of its text; neither does one beside it.
#[test]
fn sessions_do_not_see_each_other() {
    let Some(_turn) = gpu() else { return };
    let engine = engine(&[(GRAPHS, "cuda"), (MIXED, "cuda")]);
    let options = |seed| Options {
        seed,
        strategy: Strategy::Cos,
        sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
        proposal_lengths: Some(vec![2, 2]),
        stop_tokens: Some(Vec::new()),
        ..Options::default()
    };
    let alone: Vec<Vec<i32>> = (0..4).map(|seed| decode(&engine, &[seed as i32 + 1, 7], &options(seed))).collect();
    let again: Vec<Vec<i32>> =
        (0..4).rev().map(|seed| decode(&engine, &[seed as i32 + 1, 7], &options(seed))).collect();
    assert!(alone.iter().eq(again.iter().rev()));
    let beside: Vec<Vec<i32>> = std::thread::scope(|scope| {
        let run = |seed| {
            let (engine, options) = (&engine, &options);
            scope.spawn(move || decode(engine, &[seed as i32 + 1, 7], &options(seed)))
        };
        let threads: Vec<_> = (0..4).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(alone, beside);
}

#[test]
fn a_cancelled_step_leaves_the_session_as_it_was() {
    let Some(_turn) = gpu() else { return };
    let engine = engine(&[(GRAPHS, "cuda"), (MIXED, "cuda")]);
    let options = || Options { stop_tokens: Some(Vec::new()), strategy: Strategy::Standard, ..Options::default() };
    let whole = decode(&engine, &[5, 9, 33], &options());
    let mut session = Session::new(&engine, &options()).unwrap();
    session.prompt(&[5, 9, 33]).unwrap();
    let mut tokens = Vec::new();
    for step in 0.. {
        if step % 3 == 1 {
            session.cancel().request();
        }
        let (new, state) = session.step().unwrap();
        tokens.extend_from_slice(new);
        match state {
            State::Open => {}
            State::Cancelled => assert!(new.is_empty() && step % 3 == 1),
            _ => break,
        }
    }
    assert_eq!(tokens, whole);
}

/// Where the memory of the GPU ends, a session fails and says why; the others go on, and what it had comes back.
#[test]
fn sessions_fail_where_memory_ends() {
    let Some(_turn) = gpu() else { return };
    let model = load(GRAPHS, &[]).unwrap();
    let cancel = Arc::new(Cancel::default());
    let mut first = model.start(&cancel).unwrap();
    forward(&model, first.as_mut(), &[1, 2, 3], 3).unwrap();

    // Take all of it, piece by piece.
    let free = || driver::mem_get_info().unwrap().0;
    let before = free();
    let mut taken = Vec::new();
    let mut piece = 1usize << 33;
    while piece >= 1 << 21 {
        // SAFETY: it is freed below.
        match unsafe { driver::malloc_sync(piece) } {
            Ok(address) => taken.push(address),
            Err(_) => piece /= 2,
        }
    }
    let mut sessions = Vec::new();
    let error = loop {
        assert!(sessions.len() < 20_000, "the memory does not end");
        let started = model.start(&cancel).map_err(Interrupt::from);
        let ran = started.and_then(|mut sequence| {
            forward(&model, sequence.as_mut(), &[4, 5], 2)?;
            sessions.push(sequence);
            Ok(())
        });
        match ran {
            Ok(()) => {}
            Err(Interrupt::Failed(error)) => break error,
            Err(Interrupt::Cancelled) => panic!("nobody did"),
        }
    };
    assert!(error.to_string().contains("out of memory"), "{error}");
    forward(&model, first.as_mut(), &[4], 4).unwrap();
    // SAFETY: allocated above, and used by nobody.
    taken.into_iter().for_each(|address| unsafe { driver::free_sync(address).unwrap() });
    drop(sessions);
    let mut next = model.start(&cancel).unwrap();
    forward(&model, next.as_mut(), &[1, 2, 3, 4], 4).unwrap();
    assert!(worst(logits(next.as_ref(), 4), logits(first.as_ref(), 4)) < 0.03);
    assert!(free() + (256 << 20) > before, "{} of {before} bytes are free", free());
}

/// What is asked of the provider reaches it, and what it refuses says what it was.
#[test]
fn options_reach_the_provider() {
    let Some(_turn) = gpu() else { return };
    load(GRAPHS, &[("gpu_mem_limit", "1073741824"), ("arena_extend_strategy", "kSameAsRequested")]).unwrap();
    let error = load(GRAPHS, &[("gpu_mem_limit", "65536")]).err().unwrap();
    assert!(error.to_string().contains("memory"), "{error}");
    let error = load(GRAPHS, &[("no_such_option", "1")]).err().unwrap();
    assert!(error.to_string().contains("no_such_option"), "{error}");
    let settings = LoadOptions {
        provider: Provider::Cuda { device_id: 64, options: Default::default() },
        scoring: None,
        context_length: None,
        rows: None,
    };
    let error = OnnxModel::load(&path(GRAPHS), "far", &settings).err().unwrap();
    assert!(error.to_string().contains("device_id is 64"), "{error}");
}

/// Whether a score is one of the half precision that an export has.
fn is_half(form: &str, score: f32) -> bool {
    score == if form.contains("bf16") { bf16::from_f32(score).to_f32() } else { f16::from_f32(score).to_f32() }
}

/// Rows in half precision are PyTorch's in float32, but for rounding, and the same wherever they are read.
#[test]
fn half_rows_are_pytorchs_anywhere() {
    let Some(_turn) = gpu() else { return };
    let golden = Golden::read("llama");
    // PyTorch's own in these types are off by 0.012 and 0.1.
    for (form, element, tolerance) in
        [(GRAPHS, "float16", 0.05), (BF16, "float32", 0.3), (BF16_LOGITS, "bfloat16", 0.3)]
    {
        let models = [RowsOn::Host, RowsOn::Gpu].map(|rows| load_with(form, &[], Some(rows)).unwrap());
        models.iter().for_each(|model| assert_eq!(model.describe()["logits"]["type"], element, "{form}"));
        let mut off = 0.0f32;
        for (tokens, rows) in &golden.sequences {
            let mut sequences = models.each_ref().map(|model| model.start(&Arc::new(Cancel::default())).unwrap());
            for width in [6, 1, 1, 1, 4, 4, 4, 17].into_iter().cycle() {
                let start = sequences[0].len();
                let end = tokens.len().min(start + width);
                if start == end {
                    break;
                }
                for (model, sequence) in models.iter().zip(&mut sequences) {
                    forward(model, sequence.as_mut(), &tokens[start..end], start + 1).unwrap();
                }
                for position in start + 1..=end {
                    let [host, gpu] = sequences.each_ref().map(|sequence| logits(sequence.as_ref(), position));
                    assert_eq!(host, gpu, "{form}, position {position}");
                    assert!(host.iter().all(|&score| is_half(form, score)), "{form}, position {position}");
                    off = off.max(worst(host, &rows[position - 1]));
                }
            }
        }
        println!("{form}: {off:.1e} from PyTorch");
        assert!(off < tolerance, "{form}: off by {off}");
    }
}

/// Of rows in half precision, what is drawn from has the probabilities that a softmax in float32 gives them, or better.
#[test]
fn probabilities_of_half_rows_are_made_in_float32() {
    for form in ["variants/fp16-io", "variants/bf16-io"] {
        probabilities_are_a_softmax(form, "cpu", "host");
    }
    let Some(_turn) = gpu() else { return };
    for form in [GRAPHS, BF16, BF16_LOGITS] {
        let texts = ["host", "gpu"].map(|rows| probabilities_are_a_softmax(form, "cuda", rows));
        assert_eq!(texts[0], texts[1], "{form}");
    }
}

/// Returns the greedy text.
fn probabilities_are_a_softmax(form: &str, provider: &str, rows: &str) -> Vec<i32> {
    let engine = engine_with(&[(form, provider)], rows, TARGET);
    let model = engine.models().next().unwrap();
    let mut text = Vec::new();
    // The first one leaves its buffers, whose lengths kernels may go by, to all others.
    let warm = Options { strategy: Strategy::Standard, stop_tokens: Some(Vec::new()), ..Options::default() };
    run(&engine, &PROMPT, &warm);
    for (seed, temperature) in [(1, 1.0), (2, 0.7), (3, 1.5), (0, 0.0)] {
        let options = Options {
            seed,
            strategy: Strategy::Standard,
            sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
            log_probabilities: true,
            max_tokens: 60,
            stop_tokens: Some(Vec::new()),
            ..Options::default()
        };
        let logs;
        (text, logs, _) = run(&engine, &PROMPT, &options);
        assert_eq!((text.len(), logs.len()), (60, 60));
        let rate = if temperature == 0.0 { 1.0 } else { 1.0 / f64::from(temperature) };
        // The same passes give the same rows.
        let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        forward(model, sequence.as_mut(), &PROMPT, PROMPT.len()).unwrap();
        for (&token, log) in text.iter().zip(logs) {
            let position = sequence.len();
            let row = logits(sequence.as_ref(), position);
            assert!(row.iter().all(|&score| is_half(form, score)), "{form}, position {position}");
            let score = |score: f32| f64::from(score) * rate;
            let max = row.iter().copied().map(score).fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = row.iter().map(|&of| (score(of) - max).exp()).sum();
            let expected = score(row[token as usize]) - max - total.ln();
            let off = (f64::from(log) - expected).abs();
            assert!(off < 1e-3, "{form} on {provider}, {rows}, {temperature}, position {position}: off by {off}");
            forward(model, sequence.as_mut(), &[token], position + 1).unwrap();
        }
    }
    text
}

/// A row of a float16 member that is bad is an error that names it, wherever its rows are, and the session goes on as on the
/// processor.
#[test]
fn bad_half_rows_are_errors_anywhere() {
    let ways = || {
        let way = |strategy, lengths: [i32; 2], temperature, top_k| Options {
            strategy,
            targets: Some(Targets::Combined),
            sampler: Sampler::new(temperature, top_k, 0.0, 0.0).unwrap(),
            proposal_lengths: (strategy != Strategy::Standard).then(|| lengths.to_vec()),
            ..Options::default()
        };
        // The temperature leaves the next token no rival.
        [(0.0, 0), (0.1, 0), (0.1, 3)].into_iter().flat_map(move |(temperature, top_k)| {
            [
                (Strategy::Standard, [0, 0]),
                (Strategy::Speculative, [0, 4]),
                (Strategy::Speculative, [4, 0]),
                (Strategy::Cos, [3, 3]),
            ]
            .map(|(strategy, lengths)| way(strategy, lengths, temperature, top_k))
        })
    };
    let pair = |providers: [&str; 2], rows: &str, combine: &str| {
        engine_with(&[(BAD, providers[0]), ("../fixtures/half", providers[1])], rows, combine)
    };
    for combine in [WEIGHTED, CONTRASTIVE] {
        let engine = pair(["cpu", "cpu"], "host", combine);
        ways().for_each(|options| bad_rows_are_errors(&engine, &options));
    }
    let Some(_turn) = gpu() else { return };
    for (providers, rows) in
        [(["cuda", "cuda"], "host"), (["cuda", "cuda"], "gpu"), (["cuda", "cpu"], "host"), (["cuda", "cpu"], "gpu")]
    {
        for combine in [WEIGHTED, CONTRASTIVE] {
            let engine = pair(providers, rows, combine);
            ways().for_each(|options| bad_rows_are_errors(&engine, &options));
        }
    }
}

/// Decodes 9, 10, 11 and so on, with an infinity behind an 11 and no number behind a 13, from the first model of two.
fn bad_rows_are_errors(engine: &Arc<Engine>, options: &Options) {
    let what = format!("{:?}, {options:?}", engine.combine());
    let start = |prompt: &[i32]| {
        let mut session = Session::new(engine, options).unwrap();
        session.prompt(prompt).unwrap();
        session
    };
    // As far as rows are good; whoever asks again is told the same.
    let fails = |session: &mut Session, tokens: &[i32], says: &str| {
        let (mut found, before) = (Vec::new(), session.decoder().counters().tokens as usize);
        let error = loop {
            match session.step() {
                Ok((new, state)) => {
                    found.extend_from_slice(new);
                    assert_eq!(state, State::Open, "{what}: {found:?}");
                }
                Err(error) => break error,
            }
        };
        assert_eq!(found, tokens, "{what}");
        let committed = session.decoder().committed().to_vec();
        let says = format!("{BAD}, position {}: {says}", committed.len());
        for error in [error, session.step().map(drop).unwrap_err()] {
            assert!(matches!(&error, Error::Numeric(message) if message.contains(&says)), "{what}: {error}");
        }
        assert_eq!(session.decoder().committed(), committed, "{what}");
        let counters = session.decoder().counters();
        assert!(
            counters.tokens as usize == before + tokens.len() && counters.accepted <= counters.tested,
            "{what}: {counters:?}"
        );
    };
    let ends = |session: &mut Session, tokens: &[i32]| {
        let (mut found, mut state) = (Vec::new(), State::Open);
        while state == State::Open {
            let (new, now) = session.step().unwrap_or_else(|error| panic!("{what}: {error}"));
            found.extend_from_slice(new);
            state = now;
        }
        assert_eq!(found, tokens, "{what}");
    };
    let mut session = start(&[9]);
    fails(&mut session, &[10, 11], "a row of logits holds plus infinity");
    // Tokens of the caller need no row.
    session.prompt(&[12]).unwrap();
    fails(&mut session, &[13], "a row of logits holds NaN");
    session.prompt(&[14]).unwrap();
    ends(&mut session, &[15, 0]);

    // At once behind a prompt; then without the member whose rows are bad.
    let mut session = start(&[1, 13]);
    fails(&mut session, &[], "a row of logits holds NaN");
    if matches!(engine.combine(), Combine::Weighted { .. }) {
        session.set_weights(&[0.0, 1.0]).unwrap();
        ends(&mut session, &[14, 15, 0]);
        let mut session = start(&[9]);
        fails(&mut session, &[10, 11], "a row of logits holds plus infinity");
        session.set_weights(&[0.0, 1.0]).unwrap();
        ends(&mut session, &[12, 13, 14, 15, 0]);
    }
    // Others do not notice.
    ends(&mut start(&[14]), &[15, 0]);
}

/// Rows that stay on the GPU come to the host for functions alone, and are counted; those that are there anyway are not.
#[test]
fn rows_that_are_copied_are_counted() {
    let filtered = || Sampler::new(1.0, 20, 0.9, 0.01).unwrap();
    let with = |sampler, way: &Options| Options { seed: 7, max_tokens: 40, sampler, ..clone(way) };
    let copied = |engine: &Arc<Engine>, options: &Options| {
        let before = engine.totals().lock().rows_copied;
        let (_, _, session) = run(engine, &PROMPT, options);
        let copied = session.stats().rows_copied;
        assert_eq!(engine.totals().lock().rows_copied - before, copied);
        copied
    };
    let on_host = engine(&[(HALF, "cpu"), (MIXED, "cpu")]);
    ways().iter().for_each(|way| assert_eq!(copied(&on_host, &with(filtered(), way)), 0));
    let Some(_turn) = gpu() else { return };
    for combine in [WEIGHTED, CONTRASTIVE, MASKED, LOGITS, TARGET] {
        let [host, gpu] = ["host", "gpu"].map(|rows| engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], rows, combine));
        for way in ways() {
            if way.targets.is_some() && combine != WEIGHTED {
                continue;
            }
            let what = format!("{combine}, {:?}, {:?}", way.strategy, way.targets);
            assert_eq!(copied(&host, &with(filtered(), &way)), 0, "{what}");
            // `auto` plans by the clock, and may look back at more rows than are kept.
            if way.strategy == Strategy::Auto {
                continue;
            }
            assert_eq!(copied(&gpu, &with(Sampler::new(1.0, 0, 0.0, 0.0).unwrap(), &way)), 0, "{what}");
            assert_eq!(copied(&gpu, &with(filtered(), &way)), 0, "{what}, filtered");
            if way.targets.is_none() {
                assert_eq!(copied(&gpu, &with(Sampler::GREEDY, &way)), 0, "{what}, greedily");
                let first = Function::new(|rows, out| {
                    out.copy_from_slice(rows.next().flatten().expect("the first model is needed"));
                    Ok(())
                });
                let options = Options { combine: Some(first), ..with(Sampler::new(1.0, 0, 0.0, 0.0).unwrap(), &way) };
                assert!(copied(&gpu, &options) > 0, "{what}, a function");
            }
        }
    }
}

/// Look-ups that are rejected, and log-probabilities of greedy text, need no row on the host, and are what they are there.
#[test]
fn look_ups_and_log_probabilities_copy_nothing() {
    let Some(_turn) = gpu() else { return };
    let prompt: Vec<i32> = (0..30).map(|index| token(index % 6)).collect();
    let (mut tested, mut accepted) = (0, 0);
    for combine in [
        r#"{"kind": "weighted", "weights": [0.4, 0.6, 0]}"#,
        r#"{"kind": "logits", "weights": [1, -0.5, 0]}"#,
        r#"{"kind": "target", "model": 1}"#,
    ] {
        let engines =
            ["host", "gpu"].map(|rows| engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda"), (LOOK_UP, "")], rows, combine));
        for (temperature, top_k) in [(0.0, 0), (1.0, 0), (1.3, 20)] {
            let [host, gpu] = engines.each_ref().map(|engine| {
                let options = Options {
                    strategy: Strategy::Speculative,
                    proposal_lengths: Some(vec![0, 0, 3]),
                    sampler: Sampler::new(temperature, top_k, 0.0, 0.0).unwrap(),
                    log_probabilities: true,
                    max_tokens: 60,
                    seed: 3,
                    stop_tokens: Some(Vec::new()),
                    ..Options::default()
                };
                let (text, logs, session) = run(engine, &prompt, &options);
                let stats = session.stats();
                (text, logs, stats.rows_copied, stats.counters)
            });
            assert_eq!(host.0, gpu.0, "{combine}, {temperature}");
            assert!(worst(&host.1, &gpu.1) < 1e-3, "{combine}, {temperature}: {:?}, {:?}", host.1, gpu.1);
            assert_eq!((host.1.len(), host.2, gpu.2), (60, 0, 0), "{combine}, {temperature}");
            (tested, accepted) = (tested + gpu.3.tested, accepted + gpu.3.accepted);
        }
    }
    assert!(tested > accepted && tested > 20, "{accepted} of {tested} were accepted");
}

/// Rows that came to the host go when nobody may ask for them any more.
#[test]
fn a_session_holds_few_rows_that_were_copied() {
    let Some(_turn) = gpu() else { return };
    let engine = engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], "gpu", WEIGHTED);
    for (strategy, lengths, pending) in [(Strategy::Standard, None, 0), (Strategy::Cos, Some(vec![2, 2]), 6)] {
        // The first one leaves its buffers to the others.
        let [_, plain, asked] = [false, false, true].map(|asks| {
            let sampler = Sampler::new(1.0, 0, 0.0, 0.0).unwrap();
            let (strategy, proposal_lengths) = (strategy, lengths.clone());
            let stop_tokens = Some(Vec::new());
            let combine = asks.then(|| {
                Function::new(|rows, out| {
                    out.copy_from_slice(rows.next().flatten().expect("the first model is needed"));
                    Ok(())
                })
            });
            let options = Options { strategy, proposal_lengths, sampler, stop_tokens, combine, ..Options::default() };
            let (_, _, session) = run(&engine, &PROMPT, &options);
            let memory = session.memory();
            assert!(memory.peak_bytes >= memory.bytes, "{memory:?}");
            memory.bytes
        });
        let most = 2 * (pending + 2) * 4 * 96;
        assert!(asked > plain && asked <= plain + most, "{strategy:?}: {asked} bytes, {plain} without a function");
    }
}
