//! Many sessions whose rows stay on the GPU: their tokens are drawn with their passes, and their questions are answered
//! together.

use std::sync::Arc;

use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::rows::Sampler;

use super::exports::{
    CONTRASTIVE, GRAPHS, LOGITS, MASKED, OTHER, PROMPT, TARGET, WEIGHTED, clone, engine_with, gpu, run, ways,
};

/// Sessions at the same time.
const SESSIONS: u64 = 24;

/// A session behind its text.
struct Decoding {
    session: Session,
    text: Vec<i32>,
    ended: bool,
}

impl std::borrow::Borrow<Session> for Decoding {
    fn borrow(&self) -> &Session {
        &self.session
    }
}

impl std::borrow::BorrowMut<Session> for Decoding {
    fn borrow_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

fn options(way: &Options, seed: u64) -> Options {
    let (temperature, top_k, top_p) = [(1.0, 0, 0.0), (0.8, 30, 0.9), (1.4, 0, 0.0)][seed as usize % 3];
    let sampler = Sampler::new(temperature, top_k, top_p, 0.0).unwrap();
    Options { seed, max_tokens: 24, sampler, ..clone(way) }
}

fn prompt(seed: u64) -> Vec<i32> {
    PROMPT.iter().map(|token| (token + seed as i32) % 96).collect()
}

/// The texts of sessions that one thread drives.
fn together(engine: &Arc<Engine>, way: &Options) -> Vec<Vec<i32>> {
    let start = |seed| {
        let mut session = Session::new(engine, &options(way, seed)).unwrap();
        session.prompt(&prompt(seed)).unwrap();
        Decoding { session, text: Vec::new(), ended: false }
    };
    let mut all: Vec<Decoding> = (0..SESSIONS).map(start).collect();
    let mut texts = vec![Vec::new(); all.len()];
    let mut seeds: Vec<usize> = (0..all.len()).collect();
    while !all.is_empty() {
        step_many(&mut all, |each, state| {
            each.text.extend_from_slice(each.session.tokens());
            each.ended = state.unwrap() != State::Open;
        });
        let mut index = 0;
        while index < all.len() {
            if all[index].ended {
                texts[seeds.swap_remove(index)] = all.swap_remove(index).text;
            } else {
                index += 1;
            }
        }
    }
    texts
}

/// The texts of sessions with a thread each.
fn in_threads(engine: &Arc<Engine>, way: &Options) -> Vec<Vec<i32>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..SESSIONS).map(|seed| scope.spawn(move || run(engine, &prompt(seed), &options(way, seed)).0)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Sessions decode the same texts alone, driven by one thread, and by a thread each, but where rounding decides. Their
/// rows are not copied, and few batches answer the questions of all of them.
#[test]
fn sessions_with_rows_on_the_gpu_ask_together() {
    let Some(_turn) = gpu() else { return };
    let (mut texts, mut others) = (0, 0);
    for combine in [WEIGHTED, CONTRASTIVE, MASKED, LOGITS, TARGET] {
        let engine = engine_with(&[(GRAPHS, "cuda"), (OTHER, "cuda")], "gpu", combine);
        for way in ways() {
            // `auto` plans by the clock, so its text may differ.
            if way.strategy == Strategy::Auto || (way.targets.is_some() && combine != WEIGHTED) {
                continue;
            }
            let what = format!("{combine}, {:?}, {:?}", way.strategy, way.targets);
            let count = || engine.queues().questions().batches();
            let before = count();
            let alone: Vec<_> = (0..SESSIONS).map(|seed| run(&engine, &prompt(seed), &options(&way, seed)).0).collect();
            let between = count();
            let driven = together(&engine, &way);
            let after = count();
            let threads = in_threads(&engine, &way);
            for (alone, found) in alone.iter().zip(&driven).chain(alone.iter().zip(&threads)) {
                texts += 1;
                others += i32::from(alone != found);
            }
            let (by_each, by_all, by_threads) = (between - before, after - between, count() - after);
            println!("{what}: {by_each} batches alone, {by_all} together, {by_threads} of threads");
            // Plain decoding of one distribution asks nothing beside its passes.
            let asks = way.strategy != Strategy::Standard || (combine != WEIGHTED && combine != TARGET);
            assert_eq!(by_each > 0, asks, "{what}");
            assert!(by_all * 3 <= by_each, "{what}: {by_all} batches, {by_each} alone");
            assert_eq!(engine.totals().lock().rows_copied, 0, "{what}");
        }
    }
    assert!(others * 50 <= texts, "{others} of {texts} texts differ");
}
