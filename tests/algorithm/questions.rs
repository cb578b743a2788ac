//! Questions about sums of rows that wait for each other: their answers are those of questions that are answered at
//! once, and a batch that fails fails only the rounds that are in it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use cos::config::{Combine, FullCache};
use cos::control::Controls;
use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::decoder::{Alternatives, Settings};
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::participant::Participant;
use cos::engine::queues::PassQueues;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::learn::estimates::Estimates;
use cos::model::Interrupt;

use crate::answers::{Ways, answering};
use crate::common::{ByLength, PROMPT, SAMPLINGS, Sampling, World, combinations, controlled_decoder, decoder, ways};
use crate::sums::Asked;

fn count(of: &AtomicUsize) -> usize {
    of.load(Ordering::Relaxed)
}

/// Sequences that make sums, and what is asked of them.
fn asking() -> (Ways, Arc<Asked>) {
    let asked = Arc::<Asked>::default();
    (Ways::asking(&asked), asked)
}

/// With the same random numbers, every strategy decodes the same text from answers that it waited for as from rows.
#[test]
fn answers_to_questions_give_the_text_of_rows() {
    let models = World::Related.models(2, 5);
    let (told, asked) = asking();
    let told = answering(&models, &told);
    let queues = PassQueues::new(&told, FullCache::Wait, 0, &Default::default());
    let (mut texts, mut others) = (0, 0);
    for combination in combinations(2) {
        for sampling in SAMPLINGS {
            for way in ways(2, &combination, sampling) {
                for seed in 0..5 {
                    let [rows, direct, waits] = [(&models, false), (&told, false), (&told, true)].map(|(of, waits)| {
                        let chance = CounterRng::new(seed);
                        let mut decoder = decoder(of, &combination, sampling, &way, &[], 12, chance);
                        if waits {
                            decoder.share_passes(&queues, false);
                        }
                        decoder.prompt(&PROMPT).unwrap();
                        let mut rounds = 0;
                        while decoder.round().unwrap().1.is_none() {
                            rounds += 1;
                        }
                        (decoder.committed().to_vec(), decoder.counters(), rounds)
                    });
                    texts += 1;
                    others += i32::from(rows != direct || rows != waits);
                }
            }
        }
    }
    assert!(texts > 500 && others == 0, "{others} of {texts} texts differ");
    assert!(count(&asked.batches) > 1000 && count(&asked.most) == 1, "{} batches", count(&asked.batches));
}

/// Controls of all kinds that edit rows.
fn controls() -> [Controls; 4] {
    let plain = Controls::default;
    // After every third token, only odd tokens are possible.
    let odd = ByLength::new(|length, mask| {
        mask.fill(if length % 3 == 2 { 0xaaaa_aaaa } else { u32::MAX });
        Ok(())
    });
    [
        plain().with_bias(&[1, 3], &[2.0, f32::NEG_INFINITY]).unwrap(),
        Controls { no_repeat_ngram: 4, ..plain().with_penalties(1.5, 0.5, 0.25).unwrap() },
        odd.with(plain()),
        plain().with_drops(0.9, 0.5, 0.2).unwrap(),
    ]
}

/// The same with rows that are edited: on their device, all of them at once, and never on the host.
#[test]
fn rows_that_are_edited_there_give_the_text_of_rows() {
    let models = World::Related.models(2, 5);
    let (told, asked) = asking();
    let told = answering(&models, &told);
    let queues = PassQueues::new(&told, FullCache::Wait, 0, &Default::default());
    let (mut texts, mut others, mut copied) = (0, 0, 0);
    for combination in combinations(2) {
        // If no plausible token is possible, another sum is made, on the host.
        let has_judge = matches!(combination, Combination::Logits { plausibility: Some(_), .. });
        for (sampling, controls) in SAMPLINGS.into_iter().flat_map(|sampling| controls().map(|of| (sampling, of))) {
            for way in ways(2, &combination, sampling) {
                for seed in 0..3 {
                    let [rows, direct, waits] = [(&models, false), (&told, false), (&told, true)].map(|(of, waits)| {
                        let (chance, until) = (CounterRng::new(seed), (&[][..], 14));
                        let controls = (&controls, None);
                        let mut decoder = controlled_decoder(of, &combination, sampling, &way, controls, until, chance);
                        // The best alternatives take whole rows.
                        let has_top = seed % 3 == 0;
                        let alternatives = Alternatives { top: usize::from(has_top), before: false, of_models: true };
                        let (settings, plan) = (decoder.settings().clone(), decoder.plan().clone());
                        decoder.set_settings(Settings { alternatives, ..settings }, plan).unwrap();
                        if seed % 2 == 0 {
                            decoder.observe(Estimates::new(&vec![vec![(1, 1.0)]; 2]));
                        }
                        if waits {
                            decoder.share_passes(&queues, false);
                        }
                        decoder.prompt(&PROMPT).unwrap();
                        while decoder.round().unwrap().1.is_none() {}
                        copied += if has_top || has_judge { 0 } else { decoder.all_rows_copied() };
                        (decoder.committed().to_vec(), decoder.counters())
                    });
                    texts += 1;
                    others += i32::from(rows != direct || rows != waits);
                }
            }
        }
    }
    assert!(texts > 500 && others == 0, "{others} of {texts} texts differ");
    assert_eq!((copied, count(&asked.most)), (0, 1));
}

/// Options of a session that decodes 30 tokens.
fn options(seed: u64) -> Options {
    let (strategy, targets) = [
        (Strategy::Cos, Some(Targets::Combined)),
        (Strategy::Speculative, Some(Targets::Combined)),
        (Strategy::Standard, Some(Targets::Combined)),
    ][seed as usize % 3];
    Options {
        sampler: SAMPLINGS[seed as usize % SAMPLINGS.len()].sampler(),
        strategy,
        targets,
        proposal_lengths: (strategy != Strategy::Standard).then(|| vec![2, 2]),
        max_tokens: 30,
        seed,
        ..Options::default()
    }
}

/// The text of a session that decodes alone, from rows.
fn alone(combine: &Combine, seed: u64) -> Vec<i32> {
    let engine = Engine::new(World::Related.models(2, 5), combine.clone(), Vec::new(), None).unwrap();
    let mut session = Session::new(&Arc::new(engine), &options(seed)).unwrap();
    session.prompt(&PROMPT).unwrap();
    let mut text = Vec::new();
    loop {
        let (tokens, state) = session.step().unwrap();
        text.extend_from_slice(tokens);
        if state != State::Open {
            return text;
        }
    }
}

fn combines() -> [Combine; 2] {
    [Combine::Weighted { weights: vec![0.3, 0.7] }, Combine::Logits { weights: vec![1.5, -0.5] }]
}

/// Questions of sessions that one thread drives, or that have a thread each, are answered together, and their texts are
/// those of sessions alone.
#[test]
fn sessions_ask_together() {
    const SESSIONS: u64 = 9;
    for combine in combines() {
        let expected: Vec<Vec<i32>> = (0..SESSIONS).map(|seed| alone(&combine, seed)).collect();
        let (told, asked) = asking();
        let models = answering(&World::Related.models(2, 5), &told);
        let engine = Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap());
        let start = |seed| {
            let mut session = Session::new(&engine, &options(seed)).unwrap();
            session.prompt(&PROMPT).unwrap();
            session
        };
        let mut sessions: Vec<(u64, Session)> = (0..SESSIONS).map(|seed| (seed, start(seed))).collect();
        let mut texts = vec![Vec::new(); SESSIONS as usize];
        while !sessions.is_empty() {
            let mut ended = Vec::new();
            let mut refs: Vec<Entry<'_>> = sessions.iter_mut().map(|(seed, session)| Entry(*seed, session)).collect();
            step_many(&mut refs, |Entry(seed, session), state| {
                texts[*seed as usize].extend_from_slice(session.tokens());
                if state.unwrap() != State::Open {
                    ended.push(*seed);
                }
            });
            sessions.retain(|(seed, _)| !ended.contains(seed));
        }
        assert_eq!(texts, expected);
        assert!(count(&asked.most) > 3, "{} questions at most", count(&asked.most));
        let threads: Vec<Vec<i32>> = std::thread::scope(|scope| {
            let run = |seed| {
                let mut session = start(seed);
                move || {
                    let mut text = Vec::new();
                    loop {
                        let (tokens, state) = session.step().unwrap();
                        text.extend_from_slice(tokens);
                        if state != State::Open {
                            return text;
                        }
                    }
                }
            };
            let threads: Vec<_> = (0..SESSIONS).map(|seed| scope.spawn(run(seed))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(threads, expected);
    }
}

/// A session behind its number.
struct Entry<'a>(u64, &'a mut Session);

impl std::borrow::Borrow<Session> for Entry<'_> {
    fn borrow(&self) -> &Session {
        self.1
    }
}

impl std::borrow::BorrowMut<Session> for Entry<'_> {
    fn borrow_mut(&mut self) -> &mut Session {
        self.1
    }
}

/// If a batch fails, or panics, its rounds are errors that commit nothing, and later rounds go on.
#[test]
fn a_batch_that_fails_commits_nothing() {
    let (told, asked) = asking();
    let models = answering(&World::Related.models(2, 5), &told);
    let queues = PassQueues::new(&models, FullCache::Wait, 0, &Default::default());
    let sampling = Sampling::PLAIN;
    let mut failed = 0;
    for combination in combinations(2) {
        for way in ways(2, &combination, sampling) {
            for (panics, edits) in [(false, false), (true, false), (false, true), (true, true)] {
                let controls = if edits { controls()[1].clone() } else { Controls::default() };
                let (controls, until, chance) = ((&controls, None), (&[][..], 40), CounterRng::new(2));
                let mut decoder = controlled_decoder(&models, &combination, sampling, &way, controls, until, chance);
                decoder.share_passes(&queues, false);
                decoder.prompt(&PROMPT).unwrap();
                decoder.round().unwrap();
                asked.fails.store(!panics, Ordering::Relaxed);
                asked.panics.store(panics, Ordering::Relaxed);
                let mut before = decoder.committed().to_vec();
                let error = loop {
                    match decoder.round().map(|(_, finish)| finish) {
                        Ok(None) => before = decoder.committed().to_vec(),
                        Ok(Some(_)) => break None,
                        Err(error) => break Some(error),
                    }
                };
                asked.fails.store(false, Ordering::Relaxed);
                asked.panics.store(false, Ordering::Relaxed);
                let Some(error) = error else { continue };
                failed += 1;
                let planted = if panics {
                    matches!(&error, Interrupt::Failed(Error::Internal(_)))
                } else {
                    error == Interrupt::Failed(Error::Runtime("planted".into()))
                };
                assert!(planted, "{error:?}");
                assert_eq!(decoder.committed(), before);
                while decoder.round().unwrap().1.is_none() {}
                assert!(decoder.committed().len() == PROMPT.len() + 40 && decoder.committed().starts_with(&before));
            }
        }
    }
    assert!(failed > 10, "{failed} rounds have failed");
}

/// Given tokens are scored without edits, also where a row was edited before, to propose from it.
#[test]
fn given_tokens_are_scored_without_edits() {
    let (told, _) = asking();
    let models = World::Related.models(2, 5);
    for models in [models.clone(), answering(&models, &told)] {
        for combine in combines() {
            let engine = Arc::new(Engine::new(models.clone(), combine, Vec::new(), None).unwrap());
            let start = |controls: Controls, seed| {
                let mut options = Options { log_probabilities: true, max_tokens: 0, controls, ..options(seed) };
                // With so many drafts, scoring needs no more room than decoding, and buffers stay as they are.
                if let Some(lengths) = options.proposal_lengths.as_mut().filter(|_| seed % 2 == 0) {
                    *lengths = vec![8, 33];
                }
                Session::new(&engine, &options).unwrap()
            };
            for seed in 0..60 {
                let mut edited = start(Controls::default().with_bias(&[1], &[3.0]).unwrap(), seed);
                edited.prompt(&PROMPT).unwrap();
                let mut text = PROMPT.to_vec();
                for _ in 0..3 + seed % 3 {
                    text.extend_from_slice(edited.step().unwrap().0);
                }
                let given = [2, 1, 0, 3];
                edited.score(&given).unwrap();
                let mut plain = start(Controls::default(), seed);
                plain.prompt(&text).unwrap();
                plain.score(&given).unwrap();
                let [found, expected] = [&edited, &plain].map(|session| session.scored().of_tokens.clone());
                let off = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
                assert!(found.len() == 4 && off < 1e-5, "{seed}: {found:?}, not {expected:?}");
            }
        }
    }
}

/// A device that fails in a probe costs nothing but the probe.
#[test]
fn probes_that_fail_are_given_up() {
    let (told, asked) = asking();
    let (mut tokens, mut planted) = (0, 0);
    for seed in 0..10 {
        let model = |model: usize| {
            let time = move |_: usize, _: u64| Duration::from_micros(1000 - 100 * model as u64);
            World::Unrelated.model(model, 5).with_pass_times(time).with_cost(10 - model as u64)
        };
        let models: Vec<Participant> = (0..2).map(|index| Arc::new(model(index)).into()).collect();
        let now = AtomicU64::new(0);
        let engine =
            Engine::new(answering(&models, &told), Combine::Weighted { weights: vec![1.0, 0.0] }, vec![], None);
        let clock = move || Duration::from_micros(now.fetch_add(500, Ordering::Relaxed));
        let engine = Arc::new(engine.unwrap().with_clock(clock));
        let options = Options { strategy: Strategy::Auto, controls: controls()[0].clone(), ..options(seed) };
        let options = Options { targets: None, proposal_lengths: None, max_tokens: 0, ..options };
        let mut session = [Session::new(&engine, &options).unwrap()];
        session[0].prompt(&PROMPT).unwrap();
        let mut rng = fastrand::Rng::with_seed(seed);
        for call in 0..1000 {
            asked.fails.store(call > 200 && rng.u32(..4) == 0, Ordering::Relaxed);
            step_many(&mut session, |_, state| match state {
                Ok(_) => tokens += 1,
                Err(error) => {
                    assert!(matches!(error, Error::Runtime(_)), "{error:?}");
                    planted += 1;
                }
            });
        }
        asked.fails.store(false, Ordering::Relaxed);
    }
    assert!(tokens > 1000 && planted > 100, "{tokens} tokens, {planted} failures");
}
