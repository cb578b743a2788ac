//! Sessions on a GPU: many threads, cancellation, full memory, and the same text as on the processor.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cos::config::Combine;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::model::{Cancel, Interrupt, Model};
use cos::rows::Sampler;
use cudarc::driver::result as driver;

use super::exports::{
    BF16, BF16_LOGITS, CONTRASTIVE, GRAPHS, HALF, MIXED, OTHER, PLAIN, PROMPT, WEIGHTED, clone, engine, engine_with,
    forward, fresh, gpu, load, logits, overlapping, run, token, ways, worst,
};
use crate::common::{Sampling, decode, oracle};

/// The models of an engine with their providers, and where its rows are.
type Kind = (&'static [(&'static str, &'static str)], &'static str);

/// Engines of all kinds: captured and not, on one device and on two.
const KINDS: [Kind; 6] = [
    (&[(GRAPHS, "cuda"), (OTHER, "cuda")], "host"),
    (&[(GRAPHS, "cuda"), (OTHER, "cuda")], "gpu"),
    (&[(BF16, "cuda"), (GRAPHS, "cuda"), (MIXED, "cuda")], "host"),
    (&[(OTHER, "cuda"), (HALF, "cpu")], "gpu"),
    (&[(MIXED, "cuda"), (PLAIN, "cuda")], "host"),
    (&[(HALF, "cuda"), (BF16_LOGITS, "cuda")], "host"),
];

fn engine_of(kind: usize) -> Arc<Engine> {
    let (models, rows) = KINDS[kind];
    let weights = vec![(1.0 / models.len() as f64).to_string(); models.len()].join(", ");
    engine_with(models, rows, &format!(r#"{{"kind": "weighted", "weights": [{weights}]}}"#))
}

/// The options of a way for an engine of a kind.
fn options_of(kind: usize, way: usize) -> Options {
    let options = Options { seed: way as u64, max_tokens: 30, ..ways().swap_remove(way) };
    let sampler = Sampler::new(1.0, 0, 0.0, 0.0).unwrap();
    let sampler = if options.targets.is_some() { sampler } else { options.sampler };
    let lengths = options.proposal_lengths.map(|mut lengths| {
        lengths.resize(KINDS[kind].0.len(), 1);
        lengths
    });
    Options { sampler, proposal_lengths: lengths, ..options }
}

/// Many threads load and drop engines. Their sessions run, are cancelled and end half-way. It takes `COS_TEST_SECONDS`.
#[test]
fn many_engines_in_many_threads() {
    let Some(_turn) = gpu() else { return };
    let seconds = std::env::var("COS_TEST_SECONDS").map_or(15, |seconds| seconds.parse().unwrap());
    let count = ways().len();
    let alone = |kind| -> Vec<Vec<i32>> {
        let engine = engine_of(kind);
        (0..count).map(|way| run(&engine, &PROMPT, &options_of(kind, way)).0).collect()
    };
    let expected: Vec<Vec<Vec<i32>>> = (0..KINDS.len()).map(alone).collect();
    let end = Instant::now() + Duration::from_secs(seconds);
    let shared: Vec<Mutex<Option<Arc<Engine>>>> = KINDS.iter().map(|_| Mutex::default()).collect();
    let (loaded, texts) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (expected, shared, loaded, texts) = (&expected, &shared, &loaded, &texts);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(thread);
                while Instant::now() < end {
                    let kind = random.usize(..KINDS.len());
                    let other = if random.bool() { shared[kind].lock().unwrap().take() } else { None };
                    let engine = other.unwrap_or_else(|| {
                        loaded.fetch_add(1, Relaxed);
                        engine_of(kind)
                    });
                    *shared[kind].lock().unwrap() = Some(engine.clone()).filter(|_| random.u8(..4) > 0);
                    texts.fetch_add(run_some(engine, kind, &expected[kind], &mut random), Relaxed);
                }
            });
        }
    });
    let (loaded, texts) = (loaded.into_inner(), texts.into_inner());
    println!("{loaded} engines were loaded, and {texts} texts were the same as alone");
    assert!(loaded > 10 && texts > 20, "{loaded}, {texts}");
}

/// Runs some sessions in turn, cancels some steps, and drops some sessions. Returns the number of whole texts, which
/// must be the expected ones.
fn run_some(engine: Arc<Engine>, kind: usize, expected: &[Vec<i32>], random: &mut fastrand::Rng) -> u64 {
    let mut sessions: Vec<_> = (0..random.usize(1..4))
        .map(|_| {
            let way = random.usize(..expected.len());
            let mut session = Session::new(&engine, &options_of(kind, way)).unwrap();
            session.prompt(&PROMPT).unwrap();
            (way, session, Vec::new())
        })
        .collect();
    drop(engine);
    let mut texts = 0;
    while !sessions.is_empty() {
        let index = random.usize(..sessions.len());
        let (way, session, found) = &mut sessions[index];
        if random.u8(..20) == 0 {
            session.cancel().request();
        }
        let (new, state) = session.step().unwrap_or_else(|error| panic!("{kind}, {way}: {error}"));
        found.extend_from_slice(new);
        if !matches!(state, State::Open | State::Cancelled) {
            // `auto` plans by the clock, so its text may differ.
            let planned = options_of(kind, *way).strategy == Strategy::Auto;
            assert!(planned || *found == expected[*way], "{kind}, {way}: {found:?}");
            texts += 1;
            sessions.swap_remove(index);
        } else if random.u8(..200) == 0 {
            sessions.swap_remove(index);
        }
    }
    texts
}

/// Every greedy strategy on the GPU decodes the text of the processor, except where rounding decides.
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
                continue; // routed targets need sampling
            }
            // The pass over the long prompt takes 112 tokens if cuDNN plans each width.
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

/// Overlapping passes do not change the text: on one GPU, on a GPU and the processor, and on two GPUs if there are two.
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
                        continue; // `auto` plans by the clock
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

/// Draws of two tokens on the GPU follow the distribution of the processor, by every strategy.
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

/// A session reuses the buffers and graphs of one that has ended, but sees nothing of its text, nor of other open
/// sessions.
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

/// If the cache of the model is full, a session fails and says why, even if nothing of the GPU's memory is left. The
/// others go on, and its memory is freed.
#[test]
fn sessions_fail_where_memory_ends() {
    let Some(_turn) = gpu() else { return };
    let model = load(GRAPHS, &[]).unwrap();
    let cancel = Arc::new(Cancel::default());
    let mut first = model.start(&cancel).unwrap();
    forward(&model, first.as_mut(), &[1, 2, 3], 3).unwrap();

    // Take all of the memory, piece by piece.
    let free = || driver::mem_get_info().unwrap().0;
    let before = free();
    let mut taken = Vec::new();
    let mut piece = 1usize << 33;
    while piece >= 1 << 21 {
        // SAFETY: the memory is freed below.
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
    assert!(matches!(error, Error::NoMemory(_)), "{error}");
    forward(&model, first.as_mut(), &[4], 4).unwrap();
    // SAFETY: allocated above, and not used.
    taken.into_iter().for_each(|address| unsafe { driver::free_sync(address).unwrap() });
    drop(sessions);
    let mut next = model.start(&cancel).unwrap();
    forward(&model, next.as_mut(), &[1, 2, 3, 4], 4).unwrap();
    assert!(worst(logits(next.as_ref(), 4), logits(first.as_ref(), 4)) < 0.03);
    assert!(free() + (256 << 20) > before, "{} of {before} bytes are free", free());
}
