//! Captured passes: which passes are captured, and that they give the rows of ordinary passes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cos::decode::policy::Strategy;
use cos::engine::prepare::{Load, prepare};
use cos::engine::session::Options;
use cos::model::{Cancel, Model};
use cos::onnx::{LoadOptions, OnnxModel, Provider, RowsOn, environment};
use cos::rows::Sampler;

use super::exports::{
    BAD, BF16, BF16_LOGITS, GRAPHS, HALF, MIXED, NO_CACHE, OTHER, PLAIN, PROMPT, WEIGHTED, engine, engine_with,
    forward, fresh, gpu, load, load_with, logits, path, run, token, worst,
};

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

/// Random passes and rollbacks, captured or not, give the rows of fresh sequences on the processor.
#[test]
fn caches_survive_any_rollback() {
    let Some(_turn) = gpu() else { return };
    environment(None, 0, None).unwrap();
    let on_host = |form: &str| {
        let settings = LoadOptions::default();
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
        // One sequence after the other, which reuse the same buffers and graphs.
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

/// Rows after texts of any length. If cuDNN plans each width, passes are padded to few widths; otherwise they are not.
#[test]
fn texts_of_any_length_are_scored_alike() {
    let Some(_turn) = gpu() else { return };
    environment(None, 0, None).unwrap();
    let settings = LoadOptions::default();
    let reference = OnnxModel::load(&path(HALF), HALF, &settings).unwrap();
    let without_cudnn = &[("sdpa_kernel", "23")][..];
    for (form, options, rows, tolerance) in [
        (GRAPHS, &[][..], RowsOn::Host, 0.03),
        (GRAPHS, &[], RowsOn::Gpu, 0.03),
        (GRAPHS, without_cudnn, RowsOn::Host, 0.03),
        (BF16, &[], RowsOn::Host, 0.3),
    ] {
        let model = load_with(form, options, Some(rows)).unwrap();
        // Passes of many sessions have many widths, so cuDNN, which would plan each, is excluded.
        let kernels = &model.describe()["sdpa_kernel"];
        assert!(*kernels == "23" || (options.is_empty() && kernels.is_null()), "{kernels}");
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
                // Later passes see these tokens, and no padding behind them.
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

/// While a stream is captured, CUDA refuses calls that loading a model or its first pass needs.
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
                // All sessions start at once, so none gets the graphs of another.
                let mut sequences: Vec<_> =
                    (0..8).map(|_| model.start(&Arc::new(Cancel::default())).unwrap()).collect();
                for sequence in &mut sequences {
                    // Each is a size of its own; 5 and 7 would be padded.
                    for width in [1, 2, 3, 4, 6, 8].into_iter().cycle().take(18) {
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

/// A session describes for each model how many passes were captured, or why none was.
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

/// What sessions of all strategies need was captured before, but for the size of their prompt.
#[test]
fn a_prepared_engine_captures_little_for_users() {
    let Some(_turn) = gpu() else { return };
    for rows in ["host", "gpu"] {
        let engine = engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], rows, WEIGHTED);
        let made = || -> u64 { engine.models().filter_map(|model| model.captured()).map(|(made, _)| made).sum() };
        let load = Load { sessions: 4, tokens: 128 };
        assert_eq!(prepare(&engine, load, Duration::from_secs(120), |_| true), Ok(1.0));
        let prepared = made();
        assert!(prepared > 20, "{rows}: {prepared}");
        for strategy in [Strategy::Standard, Strategy::Speculative, Strategy::Cos] {
            let lengths = (strategy != Strategy::Standard).then(|| vec![2, 2]);
            let options = Options {
                strategy,
                sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
                proposal_lengths: lengths,
                stop_tokens: Some(Vec::new()),
                max_tokens: 60,
                ..Options::default()
            };
            run(&engine, &PROMPT, &options);
        }
        // Prompts of two sizes: the second strategy finds most of its prompt computed.
        assert!(made() <= prepared + 4, "{rows}: {prepared}, then {}", made());
    }
}

/// Sessions with and without filters take turns, and reuse the buffers and graphs of sessions that have ended.
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
    // A pass is captured when its kind comes for the second time, which may be in the second session of that kind.
    assert!(0 < captured[0] && captured[0] < captured[1], "{captured:?}");
    assert!(captured[3..].iter().all(|count| *count == captured[3]), "{captured:?}");
    assert!(texts[0] != texts[1] && (2..6).all(|turn| texts[turn] == texts[turn % 2]), "{texts:?}");
}

/// Options reach the provider, and an error names the option that it refuses.
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
        ..LoadOptions::default()
    };
    let error = OnnxModel::load(&path(GRAPHS), "far", &settings).err().unwrap();
    assert!(error.to_string().contains("device_id is 64"), "{error}");
}
