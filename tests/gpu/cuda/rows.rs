//! Rows that stay on the GPU: answers about them, and which rows are copied to the host.

use std::sync::Arc;

use cos::control::Controls;
use cos::decode::combine::Function;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::Options;
use cos::model::{Cancel, Model, Pass};
use cos::onnx::RowsOn;
use cos::rows::Filter;
use cos::rows::{Candidates, Sampler};

use super::exports::{
    BF16, BF16_LOGITS, CONTRASTIVE, GRAPHS, HALF, LOGITS, LOOK_UP, MASKED, MIXED, OTHER, PROMPT, TARGET, WEIGHTED,
    clone, engine, engine_with, filtered, gpu, load_with, run, token, ways, worst,
};
use crate::common::{ByLength, decode};

/// The answers about rows on the GPU agree with their scores.
#[test]
fn answers_about_rows_agree_with_their_scores() {
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
                let (best, max, second) = rows.best(position).expect(&what);
                let shares = [0.0, 1e-4, 0.2, 0.4999, 0.9, 0.9999].map(|share| share * total);
                let drawn = shares.map(|share| rows.draw(position, share).unwrap().expect(&what));
                let row = rows.scores(position).unwrap();
                assert_eq!(row, scored, "{what}");
                let first = row.iter().position(|score| row.iter().all(|other| other <= score)).unwrap();
                let others = row.iter().enumerate().filter(|(token, _)| *token != first);
                assert_eq!((max, best), (row[first], first), "{what}");
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

/// Filters keep the same tokens on the GPU as on the processor, and draws are from these tokens.
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

/// Rows on the GPU and on the host give the same text with the same random numbers, up to rounding.
#[test]
fn rows_give_the_same_text_anywhere() {
    let Some(_turn) = gpu() else { return };
    let (mut texts, mut others) = (0, 0);
    for combine in [WEIGHTED, MASKED, LOGITS, TARGET] {
        let [host, gpu] = ["host", "gpu"].map(|rows| engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], rows, combine));
        for options in ways() {
            // `auto` plans by the clock, so its text may differ.
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

/// Rows that are edited on the GPU and on the host give the same text, and no row is copied for it.
#[test]
fn edited_rows_give_the_same_text_anywhere() {
    let Some(_turn) = gpu() else { return };
    let (mut texts, mut others) = (0, 0);
    for combine in [WEIGHTED, MASKED, LOGITS, TARGET] {
        let [host, gpu] = ["host", "gpu"].map(|rows| engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], rows, combine));
        for way in ways() {
            if way.strategy == Strategy::Auto || (way.targets.is_some() && combine != WEIGHTED) {
                continue;
            }
            for (seed, controls) in controls().into_iter().cycle().take(15).enumerate() {
                let sampler = [(1.0, 0, 0.0), (0.0, 0, 0.0), (1.2, 7, 0.9)][seed / 5];
                let sampler = Sampler::new(sampler.0, sampler.1, sampler.2, 0.0).unwrap();
                if sampler.is_greedy() && way.targets.is_some() {
                    continue;
                }
                let [told, found] = [&host, &gpu].map(|engine| {
                    let controls = controls.clone();
                    let options = Options { seed: seed as u64, max_tokens: 30, sampler, controls, ..clone(&way) };
                    let (text, _, session) = run(engine, &[5, 9, 33, seed as i32], &options);
                    (text, session.stats().rows_copied)
                });
                texts += 1;
                others += i32::from(told.0 != found.0);
                // If no plausible token is possible, another sum is made, on the host.
                assert!(found.1 == 0 || combine == MASKED, "{combine}, {way:?}, {controls:?}: {} rows", found.1);
            }
        }
    }
    assert!(texts > 200 && others <= 4, "{others} of {texts} texts differ");
}

/// Rows that are edited to be learned from spoil no row that is decided from.
#[test]
fn constraints_hold_whatever_is_learned() {
    let Some(_turn) = gpu() else { return };
    let [_, _, _, controls, _] = controls();
    for combine in [WEIGHTED, LOGITS, TARGET] {
        let engine = engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], "gpu", combine);
        for seed in 0..8 {
            let (strategy, sampler) = (Strategy::Auto, Sampler::new(1.5, 0, 0.0, 0.0).unwrap());
            let stop_tokens = Some(Vec::new());
            let controls = controls.clone();
            let options =
                Options { strategy, sampler, seed, max_tokens: 100, stop_tokens, controls, ..Options::default() };
            let (text, _, session) = run(&engine, &PROMPT, &options);
            let wrong = text.iter().enumerate().find(|(place, token)| **token as usize % 3 != place % 3);
            assert_eq!((text.len(), wrong), (100, None), "{combine}, {seed}: {}", session.describe());
        }
    }
}

/// Controls of all kinds.
fn controls() -> [Controls; 5] {
    let plain = Controls::default;
    // Behind `n` tokens, the tokens are possible whose number leaves the rest `n % 3` when it is divided by 3.
    let thirds = ByLength::new(|length, mask| {
        let bit = |token: usize| u32::from(token % 3 == length % 3);
        for (index, word) in mask.iter_mut().enumerate() {
            *word = (0..32).map(|place| bit(32 * index + place) << place).sum();
        }
        Ok(())
    });
    [
        plain().with_bias(&[1, 30, 95], &[2.0, f32::NEG_INFINITY, -1.0]).unwrap(),
        Controls { no_repeat_ngram: 3, ..plain().with_penalties(1.5, 0.5, 0.25).unwrap() },
        thirds.with(plain()),
        thirds.with(plain().with_penalties(1.2, 0.0, 0.0).unwrap()),
        plain().with_drops(0.9, 0.5, 0.05).unwrap(),
    ]
}

/// Only combine functions need rows on the host. The statistics count these copies, but not rows that are on the host
/// anyway.
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
            // `auto` plans by the clock, and may need more earlier rows than are kept.
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

/// Rejected look-ups and log-probabilities of greedy text need no row on the host, and have the same results as there.
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

/// Copies of rows are freed when they cannot be needed any more.
#[test]
fn a_session_holds_few_rows_that_were_copied() {
    let Some(_turn) = gpu() else { return };
    let engine = engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], "gpu", WEIGHTED);
    for (strategy, lengths, pending) in [(Strategy::Standard, None, 0), (Strategy::Cos, Some(vec![2, 2]), 6)] {
        // The first session leaves its buffers to the others.
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

/// Scores behind the vocabulary are padding in every sequence, also in those that are open at the same time.
#[test]
fn padding_is_no_token_in_any_sequence() {
    const VOCAB: usize = 64;
    let Some(_turn) = gpu() else { return };
    let mut model = load_with(GRAPHS, &[], Some(RowsOn::Gpu)).unwrap();
    model.limit_vocabulary(VOCAB);
    let mut sequences: Vec<_> = (0..3).map(|_| model.start(&Arc::new(Cancel::default())).unwrap()).collect();
    for sequence in &mut sequences {
        filtered(&model, sequence.as_mut(), &[5, 9, 33], 1, Filter::plain(1.0)).unwrap();
        let rows = sequence.device_rows().unwrap();
        let total = rows.distribution(3, Filter::plain(1.0)).unwrap().unwrap().total();
        let drawn = [0.1, 0.5, 0.9].map(|share| (share * total, rows.draw(3, share * total).unwrap().unwrap()));
        let scores = rows.scores(3).unwrap();
        assert_eq!(scores.len(), VOCAB);
        let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |token: usize| f64::from(scores[token] - max).exp();
        for (share, token) in drawn {
            let before: f64 = (0..token).map(weight).sum();
            assert!(before <= share + 1e-6 * total && share <= before + weight(token) + 1e-6 * total, "{token}");
        }
    }
}

/// A token that a pass has drawn is the one that a question draws at the same share, whatever else is in the pass. A
/// share that no pass knows is drawn too.
#[test]
fn passes_draw_what_questions_draw() {
    let Some(_turn) = gpu() else { return };
    let model = load_with(GRAPHS, &[], Some(RowsOn::Gpu)).unwrap();
    let [mut told, mut asked] = [0, 1].map(|_| model.start(&Arc::new(Cancel::default())).unwrap());
    let mut random = fastrand::Rng::with_seed(5);
    let mut tokens = vec![5, 9, 33];
    for round in 0..60 {
        let sampler = [(0.8, 0, 0.0, 0.0), (1.0, 12, 0.9, 0.0), (1.3, 0, 0.0, 0.05)][round / 7 % 3];
        let filter = Sampler::new(sampler.0, sampler.1, sampler.2, sampler.3).unwrap().filter();
        let uniforms = [random.f64(), random.f64()];
        let (start, keep) = (told.len(), told.len() + 1);
        let tell = Some(uniforms).filter(|_| round % 11 > 0);
        let mut batch = [(&mut told, tell), (&mut asked, None)].map(|(sequence, uniforms)| Pass {
            sequence: sequence.as_mut(),
            tokens: &tokens,
            keep,
            filter,
            uniforms,
        });
        for pass in &mut batch {
            model.forward(std::slice::from_mut(pass)).unwrap();
        }
        let end = start + tokens.len();
        let [told, asked] = [&told, &asked].map(|sequence| sequence.device_rows().unwrap());
        let total = told.distribution(end, filter).unwrap().unwrap().total();
        for share in [uniforms[0], uniforms[1], random.f64()].map(|uniform| uniform * total) {
            let [told, asked] = [told, asked].map(|rows| {
                let token = rows.draw(end, share).unwrap().unwrap();
                (token, rows.score(end, token).unwrap())
            });
            assert_eq!(told, asked, "round {round}");
            tokens = vec![told.0 as i32; 1 + round % 3];
        }
    }
}
