//! Sequences that answer what is asked of rows, as those on a GPU do, so that the decoder does not read them, and count the rows that
//! it reads all the same.

mod common;

use std::any::Any;
use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{PROMPT, SAMPLINGS, Sampling, World, combinations, decoder, ways};
use cos::config::Combine;
use cos::decode::chance::CounterRng;
use cos::decode::combine::Function;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::error::Error;
use cos::model::{Cancel, Interrupt, Model, Pass, Sequence};
use cos::session::{Options, Session, State};

/// A model whose sequences answer; once `fails`, wrongly.
struct Answering {
    inner: Arc<dyn Model>,
    fails: Arc<AtomicBool>,
}

struct Answers {
    inner: Box<dyn Sequence>,
    rate: f32,
    copied: Cell<u64>,
    fails: Arc<AtomicBool>,
}

impl Answers {
    fn weights(&self, position: usize) -> Vec<f64> {
        let row = self.inner.logits(position);
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter().map(|score| (f64::from(score - max) * f64::from(self.rate)).exp()).collect()
    }
}

impl Sequence for Answers {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn truncate(&mut self, len: usize) {
        self.inner.truncate(len);
    }

    fn logits(&self, position: usize) -> &[f32] {
        self.copied.set(self.copied.get() + 1);
        self.inner.logits(position)
    }

    fn score(&self, position: usize, token: usize) -> f32 {
        self.inner.logits(position)[token]
    }

    fn rows_copied(&self) -> u64 {
        self.copied.get()
    }

    fn elapsed(&self) -> Duration {
        self.inner.elapsed()
    }

    fn set_rate(&mut self, rate: f32) {
        self.rate = rate;
    }

    fn normaliser(&self, position: usize, rate: f32) -> Option<(f32, f64)> {
        assert_eq!(rate, self.rate, "nobody asks at another temperature");
        let max = self.inner.logits(position).iter().copied().fold(f32::NEG_INFINITY, f32::max);
        Some((max, self.weights(position).iter().sum()))
    }

    fn best(&self, position: usize) -> Option<(usize, f32, f32)> {
        let row = self.inner.logits(position);
        let best = (0..row.len()).rev().max_by(|&a, &b| row[a].total_cmp(&row[b]))?;
        let others = row.iter().enumerate().filter(|(token, _)| *token != best);
        Some((best, row[best], others.map(|(_, &score)| score).fold(f32::NEG_INFINITY, f32::max)))
    }

    fn draw(&self, position: usize, share: f64) -> Option<usize> {
        if self.fails.load(Ordering::Relaxed) {
            return Some(0);
        }
        let mut left = share;
        self.weights(position).iter().position(|weight| {
            left -= weight;
            left < 0.0
        })
    }

    fn fault(&self) -> Option<Error> {
        self.fails.load(Ordering::Relaxed).then(|| Error::Runtime("planted".into()))
    }
}

impl Model for Answering {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length()
    }

    fn max_pass(&self) -> usize {
        self.inner.max_pass()
    }

    fn cost(&self) -> u64 {
        self.inner.cost()
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>, Error> {
        let (inner, fails) = (self.inner.start(cancel)?, self.fails.clone());
        Ok(Box::new(Answers { inner, rate: 0.0, copied: Cell::new(0), fails }))
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<(), Interrupt> {
        for pass in batch {
            let sequence: &mut dyn Any = pass.sequence;
            let sequence: &mut Answers = sequence.downcast_mut().expect("a sequence of another model");
            let (sequence, tokens, keep) = (sequence.inner.as_mut(), pass.tokens, pass.keep);
            self.inner.forward(&mut [Pass { sequence, tokens, keep }])?;
        }
        Ok(())
    }
}

fn answering(models: &[Arc<dyn Model>], fails: &Arc<AtomicBool>) -> Vec<Arc<dyn Model>> {
    let answer = |inner: &Arc<dyn Model>| Arc::new(Answering { inner: inner.clone(), fails: fails.clone() }) as _;
    models.iter().map(answer).collect()
}

/// By the same random numbers, every strategy says the same with answers as it does with rows.
#[test]
fn answers_are_as_good_as_rows() {
    let models = World::Related.models(2, 5);
    let told = answering(&models, &Arc::default());
    let (mut texts, mut others) = (0, 0);
    for combination in combinations(2) {
        for sampling in SAMPLINGS {
            for way in ways(2, &combination, sampling) {
                for seed in 0..5 {
                    let [rows, answers] = [&models, &told].map(|models| {
                        let chance = CounterRng::new(seed);
                        let mut decoder = decoder(models, &combination, sampling, &way, &[], 12, chance);
                        decoder.prompt(&PROMPT).unwrap();
                        while decoder.round().unwrap().1.is_none() {}
                        decoder.committed().to_vec()
                    });
                    texts += 1;
                    others += i32::from(rows != answers);
                }
            }
        }
    }
    assert!(texts > 500 && others == 0, "{others} of {texts} texts differ");
}

/// A device that fails makes an error, and no token of what it said.
#[test]
fn a_wrong_answer_is_an_error() {
    let fails = Arc::new(AtomicBool::new(false));
    let models = answering(&World::Related.models(2, 5), &fails);
    let sampling = SAMPLINGS[0];
    for combination in combinations(2) {
        for way in ways(2, &combination, sampling) {
            fails.store(false, Ordering::Relaxed);
            let mut decoder = decoder(&models, &combination, sampling, &way, &[], 40, CounterRng::new(1));
            decoder.prompt(&PROMPT).unwrap();
            for _ in 0..3 {
                decoder.round().unwrap();
            }
            let before = decoder.committed().to_vec();
            fails.store(true, Ordering::Relaxed);
            assert_eq!(decoder.round().map(drop), Err(Interrupt::Failed(Error::Runtime("planted".into()))));
            assert_eq!(decoder.committed(), before);
        }
    }
}

/// Rows are read only where answers do not do, and the statistics count them: of a session, of each of its models, and of the engine.
#[test]
fn rows_that_are_read_are_counted() {
    let fails = Arc::new(AtomicBool::new(false));
    let models = answering(&World::Related.models(2, 5), &fails);
    let engine = Engine::new(models, Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap();
    let engine = Arc::new(engine);
    let way = |sampling: Sampling, strategy, targets| Options {
        sampler: sampling.sampler(),
        strategy,
        targets: Some(targets),
        proposal_lengths: Some(vec![1, 1]),
        max_tokens: 20,
        ..Options::default()
    };
    let (plain, greedy, standard) = (Sampling::PLAIN, Sampling::GREEDY, Strategy::Standard);
    let top_k = Sampling { top_k: 2, ..plain };
    let first = Function::new(|rows, out| {
        out.copy_from_slice(rows.next().flatten().expect("the first model is needed"));
        Ok(())
    });
    let mut total = 0;
    for (reads, options) in [
        (false, way(plain, standard, Targets::Combined)),
        (false, way(plain, standard, Targets::Routed)),
        (false, Options { log_probabilities: true, ..way(plain, standard, Targets::Combined) }),
        (false, Options { weights: Some(vec![1.0, 0.0]), ..way(greedy, Strategy::Cos, Targets::Combined) }),
        // A rejected proposal leaves a residual, and nobody here makes that.
        (true, way(plain, Strategy::Cos, Targets::Combined)),
        (true, way(top_k, standard, Targets::Combined)),
        (true, way(top_k, Strategy::Cos, Targets::Routed)),
        (true, Options { log_probabilities: true, ..way(greedy, standard, Targets::Combined) }),
        (true, Options { combine: Some(first), ..way(plain, standard, Targets::Combined) }),
    ] {
        let mut session = Session::new(&engine, &options).unwrap();
        session.prompt(&PROMPT).unwrap();
        while session.step().unwrap().1 == State::Open {}
        let copied = session.stats().rows_copied;
        assert_eq!(copied > 0, reads, "{options:?}: {copied} rows");
        let described = session.describe();
        let of_models =
            described["models"].as_array().unwrap().iter().map(|model| model["rows_copied"].as_u64().unwrap());
        assert_eq!(of_models.sum::<u64>(), copied);
        total += copied;
        assert_eq!(engine.totals().lock().rows_copied, total);
    }

    // What a round read counts, though it failed.
    let mut session = Session::new(&engine, &way(top_k, standard, Targets::Combined)).unwrap();
    session.prompt(&PROMPT).unwrap();
    session.step().unwrap();
    let before = session.stats().rows_copied;
    fails.store(true, Ordering::Relaxed);
    session.step().unwrap_err();
    assert!(session.stats().rows_copied > before);
    assert_eq!(engine.totals().lock().rows_copied, total + session.stats().rows_copied);
}
