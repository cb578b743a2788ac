//! The exports of these tests, engines of them, and the lock of the GPU.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use cos::config::Config;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::model::{Cancel, Interrupt, Model, Pass, Sequence};
use cos::onnx::{LoadOptions, OnnxModel, Provider, RowsOn, environment};
use cos::rows::Filter;

/// An export in float16 whose passes are captured.
pub const GRAPHS: &str = "llama/builder-fp16-cuda";

/// The same in bfloat16, with logits cast to float32.
pub const BF16: &str = "llama/builder-bf16-cuda";

/// The same without that cast.
pub const BF16_LOGITS: &str = "llama/bf16-logits-cuda";

/// Another export in float16, with bad rows after some tokens.
pub const BAD: &str = "../fixtures/half-bad";

/// The same model in float32. ONNX Runtime runs its attention only on the processor.
pub const HALF: &str = "llama/builder-fp32";

/// An export that runs entirely on the GPU, but is not captured, because each pass returns a new cache.
pub const PLAIN: &str = "opt/optimum-fp32";

/// The same, with operators on shapes that run on the processor.
pub const MIXED: &str = "qwen2/optimum-fp32";

pub const NO_CACHE: &str = "llama/no-cache";

/// A look-up, which is no export.
pub const LOOK_UP: &str = "ngram";

/// The export [`GRAPHS`] with other weights, which is captured too.
pub const OTHER: &str = "other";

/// Held by the test that uses the GPU, because one of the tests takes all of its memory.
pub static TURN: Mutex<()> = Mutex::new(());

/// Takes the lock of the GPU. `None` if there is no GPU.
pub fn gpu() -> Option<MutexGuard<'static, ()>> {
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

pub fn path(form: &str) -> PathBuf {
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
        // The sign of every seventh number changes.
        let file = folder.path().join("model.onnx.data");
        let mut data = std::fs::read(&file).unwrap();
        data.chunks_exact_mut(14).for_each(|numbers| numbers[1] ^= 0x80);
        std::fs::write(&file, data).unwrap();
        folder
    });
    folder.path().to_path_buf()
}

pub fn load(form: &str, options: &[(&str, &str)]) -> Result<OnnxModel, Error> {
    load_with(form, options, None)
}

pub fn load_with(form: &str, options: &[(&str, &str)], rows: Option<RowsOn>) -> Result<OnnxModel, Error> {
    environment(None, 0, None).unwrap();
    let options = options.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
    let provider = Provider::Cuda { device_id: 0, options };
    OnnxModel::load(&path(form), form, &LoadOptions { provider, rows, ..LoadOptions::default() })
}

pub const WEIGHTED: &str = r#"{"kind": "weighted", "weights": [0.4, 0.6]}"#;

pub const CONTRASTIVE: &str = r#"{"kind": "contrastive", "mu": 0.5, "plausibility": 0}"#;

pub const MASKED: &str = r#"{"kind": "contrastive", "mu": 0.5, "plausibility": 0.05}"#;

pub const LOGITS: &str = r#"{"kind": "logits", "weights": [1, -0.5]}"#;

pub const TARGET: &str = r#"{"kind": "target", "model": 0}"#;

pub const PROMPT: [i32; 5] = [5, 9, 33, 20, 61];

/// A mixture of exports, each with its provider: `cpu`, `cuda`, or `cuda:1` for the second GPU. Their passes overlap.
pub fn engine(models: &[(&str, &str)]) -> Arc<Engine> {
    engine_with(models, "host", if models.len() == 2 { WEIGHTED } else { TARGET })
}

pub fn engine_with(models: &[(&str, &str)], rows: &str, combine: &str) -> Arc<Engine> {
    overlapping(models, rows, combine, true)
}

pub fn overlapping(models: &[(&str, &str)], rows: &str, combine: &str, overlap: bool) -> Arc<Engine> {
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

/// Decodes a prompt to the end. Returns the tokens, their log-probabilities and the session.
pub fn run(engine: &Arc<Engine>, prompt: &[i32], options: &Options) -> (Vec<i32>, Vec<f32>, Session) {
    let mut session = Session::new(engine, options).unwrap();
    session.prompt(prompt).unwrap();
    let (mut tokens, mut logs, mut state) = (Vec::new(), Vec::new(), State::Open);
    while state == State::Open {
        let (new, now) = session.step().unwrap();
        tokens.extend_from_slice(new);
        state = now;
        logs.extend_from_slice(&session.log_probabilities().of_tokens);
    }
    (tokens, logs, session)
}

pub fn forward(model: &dyn Model, sequence: &mut dyn Sequence, tokens: &[i32], keep: usize) -> Result<(), Interrupt> {
    filtered(model, sequence, tokens, keep, Filter::plain(1.0))
}

/// A pass whose rows are going to be filtered.
pub fn filtered(
    model: &dyn Model,
    sequence: &mut dyn Sequence,
    tokens: &[i32],
    keep: usize,
    filter: Filter,
) -> Result<(), Interrupt> {
    model.forward(&mut [Pass { sequence, tokens, keep, filter, uniforms: None }]).map(drop)
}

/// All scores of a row.
pub fn logits(sequence: &dyn Sequence, position: usize) -> &[f32] {
    sequence.row(position).scores().unwrap()
}

pub fn fresh(model: &dyn Model, context: &[i32]) -> Vec<f32> {
    let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
    forward(model, sequence.as_mut(), context, context.len()).unwrap();
    logits(sequence.as_ref(), context.len()).to_vec()
}

pub fn worst(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub fn token(index: usize) -> i32 {
    ((index * 37 + 11) % 96) as i32
}

pub fn ways() -> Vec<Options> {
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

pub fn clone(options: &Options) -> Options {
    Options {
        strategy: options.strategy,
        targets: options.targets,
        proposal_lengths: options.proposal_lengths.clone(),
        stop_tokens: options.stop_tokens.clone(),
        ..Options::default()
    }
}
