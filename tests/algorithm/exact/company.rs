//! Sessions in common passes have the distribution that each has alone, and are independent of each other.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cos::config::{Combine, FullCache};
use cos::control::Controls;
use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::decoder::{Alternatives, Decoder, Settings, Step, Workspace};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::participant::Participant;
use cos::engine::queues::PassQueues;
use cos::engine::session::{Options, Session, State};
use cos::model::Cancel;

use super::enumeration::{Case, ENOUGH, Enumerator, Joint};
use crate::common::{PROMPT, Sampling, Way, World, decoder, plan, ways};

/// Models whose passes are combined, and the count of sequences that were in passes with others.
pub fn models(vocab: usize, shared: &Arc<AtomicUsize>) -> Vec<Participant> {
    let model = |index| {
        let shared = shared.clone();
        let hook = move |widths: &[usize]| {
            (0..3).for_each(|_| std::thread::yield_now()); // others ask meanwhile
            shared.fetch_add(widths.len() - 1, Ordering::Relaxed);
            Ok(())
        };
        World::Related.model(index, vocab).with_max_pass(3).with_batches(12).with_batch_hook(hook)
    };
    (0..2).map(|index| Arc::new(model(index)).into()).collect()
}

/// Every outcome of a session is enumerated, while sessions of other threads come and go in the same passes.
#[test]
fn company_changes_no_distribution() {
    let combination = Combination::mixture(&[0.4, 0.6]).unwrap();
    let shared = Arc::new(AtomicUsize::new(0));
    for sampling in [Sampling::PLAIN, Sampling { temperature: 0.9, top_k: 2, top_p: 0.6, min_p: 0.1 }] {
        let models = models(3, &shared);
        let queues = PassQueues::new(&models, FullCache::Wait, 0, &Default::default());
        let case = Case::new(World::Related, models.clone(), &combination, sampling, 3);
        let case = Case { queues: Some(queues.clone()), ..case };
        let ways = ways(2, &combination, sampling);
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let (models, combination, ways, queues, ended) = (&models, &combination, &ways, &queues, &ended);
                scope.spawn(move || {
                    for seed in thread.. {
                        let way = &ways[seed as usize % ways.len()];
                        let mut other =
                            decoder(models, combination, Sampling::PLAIN, way, &[1], 7, CounterRng::new(seed));
                        other.share_passes(queues, false);
                        other.prompt(&[2; 5][..1 + seed as usize % 5]).unwrap();
                        while !ended.load(Ordering::Relaxed) && other.round().unwrap().1.is_none() {}
                        if ended.load(Ordering::Relaxed) {
                            return;
                        }
                    }
                });
            }
            // A failure must end the other threads, too.
            let checked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                ways.iter().for_each(|way| _ = case.check(way));
            }));
            ended.store(true, Ordering::Relaxed);
            checked.unwrap();
        });
    }
    // On a busy machine, threads meet less often.
    assert!(shared.load(Ordering::Relaxed) > 10, "there was no company");
}

/// Runs decoders to their ends, with one pass of each model for all that need one.
fn run_together(models: &[Participant], decoders: &mut [Decoder<&Enumerator>], workspace: &mut Workspace) {
    let mut ended = vec![false; decoders.len()];
    while ended.contains(&false) {
        for (decoder, ended) in decoders.iter_mut().zip(&mut ended).filter(|(_, ended)| !**ended) {
            while decoder.step(workspace).unwrap() != Step::Run {
                *ended = decoder.round().1.is_some();
                if *ended {
                    break;
                }
            }
        }
        for (index, model) in models.iter().enumerate() {
            let of_model = |decoder: &Decoder<_>| decoder.needs().iter().find(|need| need.model == index).copied();
            let running = decoders.iter_mut().zip(&ended).filter(|(_, ended)| !**ended);
            let (needs, mut passes): (Vec<_>, Vec<_>) = running
                .filter_map(|(decoder, _)| {
                    let need = of_model(decoder)?;
                    Some((need, decoder.pass(need)))
                })
                .unzip();
            if needs.is_empty() {
                continue;
            }
            let report = model.model().unwrap().forward(&mut passes).unwrap();
            let mut needs = needs.into_iter();
            for (decoder, _) in decoders.iter_mut().zip(&ended).filter(|(_, ended)| !**ended) {
                if of_model(decoder).is_some() {
                    decoder.ran(needs.next().unwrap(), report, false);
                }
            }
        }
    }
}

fn start<'a>(
    models: &[Participant],
    combination: &Combination,
    tokens: usize,
    way: &Way,
    chance: &'a Enumerator,
) -> Decoder<&'a Enumerator> {
    let settings = Settings {
        combination: combination.clone(),
        sampler: Sampling::PLAIN.sampler(),
        weigher: None,
        controls: Controls::default(),
        stop_tokens: Vec::new(),
        max_tokens: tokens,
        log_probabilities: false,
        alternatives: Alternatives::default(),
    };
    let cancel = Arc::<Cancel>::default();
    let proposers = models.iter().map(|model| model.start(&cancel).unwrap()).collect();
    let mut decoder = Decoder::new(proposers, settings, plan(models, combination, Sampling::PLAIN, way), chance);
    decoder.prompt(&PROMPT).unwrap();
    decoder
}

/// Two sessions in common passes, with one workspace: every pair of outcomes has the product of their probabilities.
#[test]
fn sessions_in_common_passes_are_independent() {
    let tokens = 2;
    let combination = Combination::mixture(&[0.4, 0.6]).unwrap();
    let shared = Arc::new(AtomicUsize::new(0));
    let models = models(2, &shared);
    let case = Case::new(World::Related, models.clone(), &combination, Sampling::PLAIN, tokens);
    let expected = case.expected();
    let ways = ways(2, &combination, Sampling::PLAIN);
    for (index, one) in ways.iter().enumerate() {
        let other = &ways[(index + 2) % ways.len()];
        let mut joint: BTreeMap<[Vec<i32>; 2], f64> = BTreeMap::new();
        let outer = Enumerator::default();
        loop {
            let inner = Enumerator::default();
            loop {
                outer.start();
                inner.start();
                let mut decoders = [(one, &outer), (other, &inner)]
                    .map(|(way, chance)| start(&models, &combination, tokens, way, chance));
                let mut workspace = Workspace::new(2);
                run_together(&models, &mut decoders, &mut workspace);
                let texts = decoders.each_ref().map(|decoder| decoder.committed()[PROMPT.len()..].to_vec());
                let probability = outer.0.borrow().probability * inner.0.borrow().probability;
                *joint.entry(texts).or_default() += probability;
                if !inner.advance() {
                    break;
                }
            }
            if !outer.advance() {
                break;
            }
        }
        assert_eq!(joint.len(), expected.len().pow(2));
        for ([text, of_other], found) in &joint {
            let product = expected[text] * expected[of_other];
            assert!((found - product).abs() < ENOUGH, "{text:?} and {of_other:?}: {found}, not {product}: {one:?}");
        }
    }
    assert!(shared.load(Ordering::Relaxed) > 1000, "there were no common passes");
}

/// Draws of sessions that one thread drives, and of sessions on several threads, follow the joint distribution.
#[test]
fn draws_in_company_follow_the_joint_distribution() {
    const DRAWS: u64 = 12_000;
    const SESSIONS: u64 = 8;
    let combination = Combination::mixture(&[0.4, 0.6]).unwrap();
    let shared = Arc::new(AtomicUsize::new(0));
    let models = models(3, &shared);
    let expected = Case::new(World::Related, models.clone(), &combination, Sampling::PLAIN, 3).expected();
    let combine = Combine::Weighted { weights: vec![0.4, 0.6] };
    let engine = Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap());
    for way in ways(2, &combination, Sampling::PLAIN) {
        let new = |seed: u64| {
            let options = Options {
                strategy: way.strategy,
                targets: Some(way.targets),
                proposal_lengths: Some(way.lengths.clone()),
                sampler: Sampling::PLAIN.sampler(),
                seed,
                max_tokens: 3,
                ..Options::default()
            };
            let mut session = Session::new(&engine, &options).unwrap();
            session.prompt(&PROMPT).unwrap();
            session
        };
        let text = |session: &Session| session.decoder().committed()[PROMPT.len()..].to_vec();
        let driven = (0..DRAWS / SESSIONS).flat_map(|batch| {
            let mut sessions: Vec<Session> = (0..SESSIONS).map(|index| new(batch * SESSIONS + index)).collect();
            let mut ended = 0;
            let mut texts = Vec::new();
            while ended < SESSIONS {
                step_many(&mut sessions, |_, state| ended += u64::from(state.unwrap() != State::Open));
                texts.extend(sessions.extract_if(.., |session| text(session).len() == 3).map(|each| text(&each)));
            }
            texts
        });
        check_draws(&expected, driven.collect(), &way);
        let threaded = std::thread::scope(|scope| {
            let thread = |thread: u64| {
                let (new, text) = (&new, &text);
                scope.spawn(move || {
                    let draw = |seed| {
                        let mut session = new(seed);
                        while session.step().unwrap().1 == State::Open {}
                        text(&session)
                    };
                    (DRAWS..2 * DRAWS).filter(|seed| seed % 4 == thread).map(draw).collect::<Vec<_>>()
                })
            };
            let threads: Vec<_> = (0..4).map(thread).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        check_draws(&expected, threaded, &way);
    }
    assert!(shared.load(Ordering::Relaxed) > 1000, "there was no company");
}

fn check_draws(expected: &Joint, texts: Vec<Vec<i32>>, way: &Way) {
    let mut counts: BTreeMap<Vec<i32>, u32> = BTreeMap::new();
    let draws = texts.len() as f64;
    texts.into_iter().for_each(|text| *counts.entry(text).or_default() += 1);
    let share = |(tokens, p): (&Vec<i32>, &f64)| {
        (f64::from(*counts.get(tokens).unwrap_or(&0)) - p * draws).powi(2) / (p * draws)
    };
    let chi2: f64 = expected.iter().map(share).sum();
    // 26 degrees of freedom: 72 is exceeded with a probability of 4e-6.
    assert_eq!(expected.len(), 27);
    assert!(chi2 < 72.0, "chi-square {chi2} of {way:?}");
}
