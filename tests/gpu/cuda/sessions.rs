//! Sessions on a GPU: many threads, cancellation, memory that ends, and text that is the same as on the processor.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cos::config::Combine;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::model::{Cancel, Interrupt, Model};
use cos::rows::Sampler;
use cudarc::driver::result as driver;

use super::exports::{
    BF16, BF16_LOGITS, CONTRASTIVE, GRAPHS, HALF, MIXED, OTHER, PLAIN, PROMPT, WEIGHTED, clone, engine, engine_with,
    forward, fresh, gpu, load, logits, overlapping, run, token, ways, worst,
};
use crate::common::{Sampling, decode, oracle};

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
