//! The demo models: caches and rollbacks, threads, cancellation, chats. `tests/conformance/greedy.rs` compares the
//! strategies.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::common::{Sampling, decode, one_thread, oracle};
use cos::config::{Combine, Config, ModelConfig};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::model::{Cancel, Model, Pass};
use cos::rows::Filter;
use cos::rows::{NEAR_TIE, Sampler};

pub fn demo(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/demo").join(name)
}

pub fn engine(config: &str) -> Arc<Engine> {
    one_thread();
    Arc::new(Engine::load(&Config::open(&demo(config)).unwrap()).unwrap())
}

pub fn prompts(engine: &Engine, file: &str) -> Vec<Vec<i32>> {
    let lines = std::fs::read_to_string(demo("prompts").join(file)).unwrap();
    let line = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        engine.text().unwrap().encode(line["prompt"].as_str().unwrap(), true).unwrap()
    };
    lines.lines().map(line).collect()
}

/// The rows of all models after a context, each from a fresh sequence. Nothing of other sequences is reused, because
/// all rows are kept.
fn rows(engine: &Engine, context: &[i32]) -> Vec<Vec<f32>> {
    engine.models().map(|model| fresh(model, context)).collect()
}

fn fresh(model: &dyn Model, context: &[i32]) -> Vec<f32> {
    let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
    for tokens in context.chunks(model.max_pass()) {
        model
            .forward(&mut [Pass {
                sequence: sequence.as_mut(),
                tokens,
                keep: 1,
                filter: Filter::plain(1.0),
                uniforms: None,
            }])
            .unwrap();
    }
    sequence.row(context.len()).scores().unwrap().to_vec()
}

/// The difference of the oracle's log-probabilities of two tokens, by which near ties are counted.
fn margin(engine: &Engine, context: &[i32], a: i32, b: i32) -> f64 {
    let combination = engine.combination(None).unwrap();
    let plain = oracle(&rows(engine, context), &combination, Sampling::PLAIN);
    plain[a as usize].ln() - plain[b as usize].ln()
}

/// The standard strategy decodes the oracle's tokens, computed from rows without a cache.
#[test]
fn standard_decodes_the_tokens_of_the_oracle() {
    for config in ["engine.json", "contrastive.json"] {
        let engine = engine(config);
        let combination = engine.combination(None).unwrap();
        let prompt = &prompts(&engine, "gsm8k.jsonl")[3];
        let options = Options { strategy: Strategy::Standard, max_tokens: 12, ..Options::default() };
        let mut context = prompt.clone();
        for token in decode(&engine, prompt, &options) {
            let greedy = oracle(&rows(&engine, &context), &combination, Sampling::GREEDY);
            let best = greedy.iter().position(|&p| p == 1.0).unwrap() as i32;
            assert!(token == best || margin(&engine, &context, best, token) < f64::from(NEAR_TIE), "{config}");
            context.push(token);
        }
    }
}

#[test]
fn passes_are_timed_at_loading() {
    for model in engine("engine.json").models() {
        let times = model.pass_times();
        // The number of timed widths depends on the load of the machine.
        assert!(!times.is_empty() && times.windows(2).all(|pair| pair[0].0 < pair[1].0), "{times:?}");
        assert!(times.iter().all(|(_, time)| !time.is_zero()));
    }
}

/// Random passes and rollbacks give the rows of fresh sequences, whatever the cache went through.
#[test]
fn caches_survive_any_rollback() {
    for config in ["engine.json", "contrastive.json"] {
        let engine = engine(config);
        let tokens: Vec<i32> = prompts(&engine, "humaneval.jsonl").concat().into_iter().take(700).collect();
        for model in engine.models() {
            let mut state = 12345u64;
            let mut random = |below: usize| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as usize % below
            };
            let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
            let mut context: Vec<i32> = Vec::new();
            for operation in 0..120 {
                let width = [1, 1, 2, 3, 5, 8, 40][random(7)];
                let start = random(tokens.len() - width);
                let new = &tokens[start..start + width];
                let keep = context.len() + random(3).min(width);
                model
                    .forward(&mut [Pass {
                        sequence: sequence.as_mut(),
                        tokens: new,
                        keep,
                        filter: Filter::plain(1.0),
                        uniforms: None,
                    }])
                    .unwrap();
                context.extend_from_slice(new);
                if operation % 8 == 7 {
                    let expected = fresh(model, &context);
                    let worst = expected
                        .iter()
                        .zip(sequence.row(context.len()).scores().unwrap())
                        .map(|(e, f)| (e - f).abs())
                        .fold(0.0, f32::max);
                    assert!(worst < 1e-3, "after {operation} operations logits are off by {worst}");
                }
                if random(3) == 0 || context.len() > 600 {
                    let len = if context.len() > 600 { 20 } else { context.len() - random(context.len().min(30)) };
                    context.truncate(len);
                    sequence.truncate(len);
                }
                assert_eq!(sequence.len(), context.len());
            }
        }
    }
}

/// A pass over several positions gives each position the row of a pass of its own.
#[test]
fn scoring_in_parallel_is_scoring_one_by_one() {
    let engine = engine("contrastive.json");
    let tokens = &prompts(&engine, "gsm8k.jsonl")[0];
    for model in engine.models() {
        let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        model
            .forward(&mut [Pass {
                sequence: sequence.as_mut(),
                tokens,
                keep: 1,
                filter: Filter::plain(1.0),
                uniforms: None,
            }])
            .unwrap();
        for position in [1, 2, 7, tokens.len() / 2, tokens.len()] {
            let alone = fresh(model, &tokens[..position]);
            let worst = alone
                .iter()
                .zip(sequence.row(position).scores().unwrap())
                .map(|(e, f)| (e - f).abs())
                .fold(0.0, f32::max);
            assert!(worst < 1e-3, "position {position} is off by {worst}");
        }
    }
}

/// The cache that sessions share has the size that is configured, and is never too small for one session.
#[test]
fn the_size_of_the_cache_is_configured() {
    one_thread();
    let with = |bytes: Option<usize>| {
        let mut config = Config::open(&demo("engine.json")).unwrap();
        config.models.truncate(1);
        config.combine = Combine::Target { model: 0 };
        let ModelConfig::Onnx(export) = &mut config.models[0] else { panic!("an export was expected") };
        export.cache_bytes = bytes;
        Engine::load(&config)
    };
    let engine = with(None).unwrap();
    let model = &engine.describe()["models"][0];
    assert_eq!(model["batching"], "packed", "{}", model["no_batching"]);
    let number = |key: &str| model[key].as_u64().unwrap() as usize;
    let [blocks, tokens, bytes] = ["cache_blocks", "cache_block_tokens", "cache_bytes"].map(number);
    assert!(blocks * tokens >= number("context_length") && bytes.is_multiple_of(blocks));
    let least = number("context_length").div_ceil(tokens) * (bytes / blocks);
    let model = &with(Some(least + 1)).unwrap().describe()["models"][0];
    assert_eq!(model["cache_bytes"].as_u64(), Some(least as u64));
    let error = with(Some(least - 1)).err().unwrap();
    assert_eq!(error.code(), 2);
    assert!(error.to_string().contains(&format!("{least}; set it to at least that")), "{error}");
}

#[test]
fn threads_do_not_disturb_each_other() {
    let engine = engine("engine.json");
    let prompts = prompts(&engine, "gsm8k.jsonl");
    let options = |seed: usize| Options {
        strategy: Strategy::Cos,
        targets: Some(Targets::Combined),
        sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
        seed: seed as u64,
        max_tokens: 24,
        ..Options::default()
    };
    let alone: Vec<Vec<i32>> = (0..4).map(|index| decode(&engine, &prompts[index], &options(index))).collect();
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4)
            .map(|index| {
                (
                    index,
                    scope.spawn({
                        let (engine, prompts) = (&engine, &prompts);
                        move || decode(engine, &prompts[index], &options(index))
                    }),
                )
            })
            .collect();
        for (index, thread) in running {
            assert_eq!(thread.join().unwrap(), alone[index]);
        }
    });
}

/// ONNX Runtime's run options stop a running pass. A long prompt that is cancelled again and again gives the same
/// tokens in the end.
#[test]
fn long_prompts_can_be_cancelled() {
    let engine = engine("engine.json");
    let prompt: Vec<i32> = prompts(&engine, "humaneval.jsonl").concat().into_iter().take(1000).collect();
    let options = Options { max_tokens: 3, strategy: Strategy::Cos, ..Options::default() };
    let expected = decode(&engine, &prompt, &options);
    let mut session = Session::new(&engine, &options).unwrap();
    session.prompt(&prompt).unwrap();
    let cancel = session.cancel().clone();
    let (mut tokens, mut cancelled) = (Vec::new(), 0);
    // Each model takes the prompt in two passes of 512 tokens, so the requests come while they run.
    let ready = std::sync::Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            ready.wait();
            for delay in [3, 20, 60] {
                std::thread::sleep(Duration::from_millis(delay));
                cancel.request();
            }
        });
        ready.wait();
        loop {
            let (new, state) = session.step().unwrap();
            tokens.extend_from_slice(new);
            match state {
                State::Open => {}
                State::Cancelled => cancelled += 1,
                State::Ended(_) => break,
            }
        }
    });
    assert!(cancelled > 0);
    assert_eq!(tokens, expected);
}

#[test]
fn a_chat_goes_on_with_its_caches() {
    let engine = engine("engine.json");
    let text = engine.text().unwrap();
    let turns = ["Question: What is 2 + 3?\nAnswer:", "\nQuestion: And twice that?\nAnswer:"]
        .map(|turn| text.encode(turn, true).unwrap());
    for strategy in [Strategy::Standard, Strategy::Speculative, Strategy::Cos, Strategy::Auto] {
        let options = Options { strategy, max_tokens: 10, stop_tokens: Some(Vec::new()), ..Options::default() };
        let mut session = Session::new(&engine, &options).unwrap();
        for turn in &turns {
            session.prompt(turn).unwrap();
            while session.step().unwrap().1 == State::Open {}
        }
        let whole = session.decoder().committed().to_vec();
        let second = turns[0].len() + 10 + turns[1].len();
        assert_eq!(whole.len(), second + 10);
        assert_eq!(whole[second..], decode(&engine, &whole[..second], &options), "{strategy:?}");
    }
}

#[test]
fn weights_of_a_session_replace_the_engines() {
    let engine = engine("engine.json");
    let prompt = &prompts(&engine, "gsm8k.jsonl")[5];
    let by = |weights: &[f32]| {
        let options = Options { weights: Some(weights.to_vec()), max_tokens: 16, ..Options::default() };
        decode(&engine, prompt, &options)
    };
    let config = |model: usize| {
        let mut config = Config::open(&demo("engine.json")).unwrap();
        config.combine = Combine::Target { model };
        decode(&Arc::new(Engine::load(&config).unwrap()), prompt, &Options { max_tokens: 16, ..Options::default() })
    };
    assert_eq!(by(&[1.0, 0.0]), config(0));
    assert_eq!(by(&[0.0, 1.0]), config(1));
    assert_ne!(config(0), config(1));
}
