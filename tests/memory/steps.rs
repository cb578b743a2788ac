//! A step in steady state allocates nothing, for every strategy on real models.
//!
//! The allocator counts Rust's allocations. Those of ONNX Runtime within a pass are not counted.

use std::path::PathBuf;
use std::sync::Arc;

use cos::config::Config;
use cos::control::{Controls, Dry};
use cos::decode::combine::Function;
use cos::decode::decoder::Alternatives;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::rows::Sampler;

use crate::allocator::{ALLOCATIONS, turn};
use crate::common::root;

fn demo(name: &str) -> PathBuf {
    root().join("models/demo").join(name)
}

fn export(form: &str) -> PathBuf {
    root().join("tests/exports").join(form)
}

/// A mixture of two models.
fn mixture(models: [PathBuf; 2]) -> Arc<Engine> {
    let models = models.map(|path| serde_json::json!({ "path": path }));
    let combine = serde_json::json!({ "kind": "weighted", "weights": [0.5, 0.5] });
    engine(&serde_json::json!({ "models": models, "combine": combine }))
}

fn engine(config: &serde_json::Value) -> Arc<Engine> {
    Arc::new(Engine::load(&Config::parse(&config.to_string()).unwrap()).unwrap())
}

/// Every strategy with every kind of sampler: on tiny exports, and on the demo models, whose rows are long.
#[test]
fn steps_do_not_allocate() {
    let _turn = turn();
    let tiny = mixture(["llama", "qwen2"].map(|name| export(name).join("builder-fp32")));
    every_strategy(&tiny, "tiny exports", &[5, 9, 33, 20], 120);
    let contrastive = Arc::new(Engine::load(&Config::open(&demo("contrastive.json")).unwrap()).unwrap());
    every_strategy(&contrastive, "contrastive.json", &question(&contrastive), 200);
}

fn every_strategy(engine: &Arc<Engine>, name: &str, prompt: &[i32], last: usize) {
    for temperature in [0.0, 1.0] {
        for (top_k, top_p) in [(0, 0.0), (40, 0.9)] {
            for strategy in [Strategy::Auto, Strategy::Standard, Strategy::Speculative, Strategy::Cos] {
                let options = Options {
                    strategy,
                    targets: if strategy == Strategy::Auto { None } else { Some(Targets::Combined) },
                    sampler: Sampler::new(temperature, top_k, top_p, 0.0).unwrap(),
                    proposal_lengths: Some(vec![2, 3]),
                    ..Options::default()
                };
                // The cache does not grow within its first 256 tokens.
                measure(engine, options, name, prompt, prompt.len() + 45, last);
            }
        }
    }
}

/// With a look-up, log-probabilities and a combine function.
#[test]
fn steps_with_all_options_do_not_allocate() {
    let _turn = turn();
    let engine = engine(&serde_json::json!({
        "models": [{ "path": demo("base") }, { "path": demo("small") }, { "kind": "ngram" }],
        "combine": { "kind": "weighted", "weights": [0.5, 0.5, 0] }
    }));
    let prompt = question(&engine);
    let sum = Function::new(|rows, out| {
        out.fill(0.0);
        for row in rows.flatten() {
            out.iter_mut().zip(row).for_each(|(out, logit)| *out += logit);
        }
        Ok(())
    });
    for temperature in [0.0, 1.0] {
        for strategy in [Strategy::Speculative, Strategy::Cos] {
            for combine in [None, Some(sum.clone())] {
                let options = Options {
                    strategy,
                    targets: Some(Targets::Combined),
                    sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
                    proposal_lengths: Some(vec![1, 1, 4]),
                    log_probabilities: true,
                    combine,
                    ..Options::default()
                };
                measure(&engine, options, "with a look-up", &prompt, prompt.len() + 60, 200);
            }
        }
    }
}

/// With bias, penalties, bans, dropped tokens and alternatives.
#[test]
fn steps_with_controls_do_not_allocate() {
    let _turn = turn();
    let engine = Arc::new(Engine::load(&Config::open(&demo("drafter.json")).unwrap()).unwrap());
    let prompt = question(&engine);
    let controls = Controls {
        min_tokens: 20,
        no_repeat_ngram: 5,
        dry: Dry::new(0.5, 1.5, 2, &[0]).unwrap(),
        ..Controls::default()
            .with_bias(&[5, 9], &[1.0, -1.0])
            .and_then(|controls| controls.with_penalties(1.1, 0.1, 0.1))
            .and_then(|controls| controls.with_banned(vec![vec![7, 8], vec![9]]))
            .and_then(|controls| controls.with_drops(0.95, 0.1, 0.2))
            .unwrap()
    };
    for temperature in [0.0, 1.0] {
        for strategy in [Strategy::Standard, Strategy::Speculative] {
            let options = Options {
                strategy,
                sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
                controls: controls.clone(),
                proposal_lengths: Some(vec![0, 3]),
                log_probabilities: true,
                alternatives: Alternatives { top: 5, before: false, of_models: true },
                ..Options::default()
            };
            measure(&engine, options, "with controls", &prompt, prompt.len() + 60, 200);
        }
    }
}

/// Exports whose buffers are swapped or converted: concatenated caches with and without masks, half precision, counted
/// rows, and a fixed length. An export without a cache is not tested, because its inputs grow with the text.
#[test]
fn steps_of_converted_buffers_do_not_allocate() {
    let _turn = turn();
    for form in [
        "llama/optimum-fp32",
        "llama/optimum-fp16",
        "variants/dead-entries-fp16",
        "llama/mobius-static",
        "variants/cache-position",
        "variants/num-logits",
        "variants/last-logits",
    ] {
        let engine = mixture([form, "qwen2/optimum-fp32"].map(export));
        let options = Options {
            strategy: Strategy::Cos,
            targets: Some(Targets::Combined),
            sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
            proposal_lengths: Some(vec![2, 3]),
            ..Options::default()
        };
        measure(&engine, options, form, &[5, 9, 33, 20], 60, 120);
    }
}

/// One thread that drives many, whose passes are common ones.
#[test]
fn steps_of_many_do_not_allocate() {
    let _turn = turn();
    let engine = mixture(["base", "math"].map(demo));
    assert!(engine.models().all(|model| model.batches()));
    let prompt = question(&engine);
    for strategy in [Strategy::Standard, Strategy::Speculative, Strategy::Cos] {
        let new = |seed| {
            let options = Options {
                strategy,
                targets: Some(Targets::Combined),
                sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
                stop_tokens: Some(Vec::new()),
                seed,
                ..Options::default()
            };
            let mut session = Session::new(&engine, &options).unwrap();
            session.prompt(&prompt).unwrap();
            session
        };
        let mut sessions: Vec<Session> = (0..4).map(new).collect();
        let (mut calls, mut allocating) = (0, 0);
        while sessions.iter().any(|session| session.decoder().committed().len() < 150) {
            let before = ALLOCATIONS.get();
            step_many(&mut sessions, |_, state| assert_eq!(state.unwrap(), State::Open));
            if sessions.iter().all(|session| session.decoder().committed().len() > 70) {
                calls += 1;
                allocating += usize::from(ALLOCATIONS.get() > before);
            }
        }
        assert!(calls > 20, "{strategy:?}: only {calls} calls");
        // A block of 32 tokens that begins may take memory, for the index of blocks: three of each session and model.
        assert!(allocating <= 24, "{strategy:?}: {allocating} of {calls} calls");
    }
}

fn question(engine: &Engine) -> Vec<i32> {
    engine.text().unwrap().encode("Question: How many legs do 3 cats have?\nAnswer:", true).unwrap()
}

/// Decodes `first` tokens to size the buffers, and counts the steps that allocate up to `last` tokens.
fn measure(engine: &Arc<Engine>, options: Options, config: &str, prompt: &[i32], first: usize, last: usize) {
    let options = Options { stop_tokens: Some(Vec::new()), ..options };
    let mut session = Session::new(engine, &options).unwrap();
    session.prompt(prompt).unwrap();
    while session.decoder().committed().len() < first {
        assert_eq!(session.step().unwrap().1, State::Open);
    }
    let (mut steps, mut allocating) = (0, 0);
    while session.decoder().committed().len() < last {
        let before = ALLOCATIONS.get();
        assert_eq!(session.step().unwrap().1, State::Open);
        steps += 1;
        allocating += usize::from(ALLOCATIONS.get() > before);
    }
    assert!(steps > 20, "{config}, {options:?}: only {steps} steps");
    // The planner of `auto` may change the plan now and then, which needs other buffers.
    let looks = if options.strategy == Strategy::Auto { (last - first) / 8 } else { 0 };
    assert!(allocating <= looks, "{config}, {options:?}: {allocating} of {steps} steps");
}
