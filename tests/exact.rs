//! Exactness, proven: every outcome of the decoder is enumerated with its probability, and the joint distribution of
//! several tokens is compared with the oracle's. No sampling error, so a bias of a hundredth of a percent shows.

mod common;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Sampling, Way, World, decoder, oracle};
use cos::decode::chance::{Chance, CounterRng, Key, Purpose};
use cos::decode::combine::Combination;
use cos::decode::policy::{Strategy, Targets};
use cos::decode::round::Finish;
use cos::error::Error;
use cos::model::scripted::Scripted;
use cos::model::{Interrupt, Model};

const PROMPT: [i32; 5] = [1, 0, 0, 1, 1];
const ENOUGH: f64 = 1e-5;

/// A source of chance that takes every branch in turn, and multiplies up its probability.
#[derive(Default)]
struct Enumerator(RefCell<Branches>);

#[derive(Default)]
struct Branches {
    /// For each decision of this run: the outcomes possible, and which one is taken.
    path: Vec<(Vec<(usize, f64)>, usize)>,
    depth: usize,
    probability: f64,
    asked: BTreeMap<Key, usize>,
}

impl Enumerator {
    fn choose(&self, key: Key, outcomes: impl Iterator<Item = (usize, f64)>) -> usize {
        let mut this = self.0.borrow_mut();
        if let Some(&outcome) = this.asked.get(&key) {
            assert_eq!(key.purpose, Purpose::Route, "random numbers used twice: {key:?}");
            return outcome;
        }
        let outcomes: Vec<(usize, f64)> = outcomes.filter(|(_, p)| *p > 0.0).collect();
        let depth = this.depth;
        if depth == this.path.len() {
            this.path.push((outcomes, 0));
        }
        let (outcomes, taken) = &this.path[depth];
        let (outcome, p) = outcomes[*taken];
        this.probability *= p;
        this.depth += 1;
        this.asked.insert(key, outcome);
        outcome
    }

    /// Go to the next branch; false after the last one.
    fn advance(&self) -> bool {
        let mut this = self.0.borrow_mut();
        while let Some((outcomes, taken)) = this.path.last_mut() {
            *taken += 1;
            if *taken < outcomes.len() {
                return true;
            }
            this.path.pop();
        }
        false
    }

    fn start(&self) {
        let mut this = self.0.borrow_mut();
        this.depth = 0;
        this.probability = 1.0;
        this.asked.clear();
    }
}

impl Chance for &Enumerator {
    fn accept(&self, key: Key, probability: f64) -> bool {
        assert!((0.0..=1.0).contains(&probability), "{key:?} with probability {probability}");
        self.choose(key, [(1, probability), (0, 1.0 - probability)].into_iter()) == 1
    }

    fn pick(&self, key: Key, weights: &[f32]) -> usize {
        let total: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        self.choose(key, weights.iter().map(|&w| f64::from(w) / total).enumerate())
    }
}

type Joint = BTreeMap<Vec<i32>, f64>;

struct Case<'a> {
    models: Vec<Arc<dyn Model>>,
    world: World,
    combination: &'a Combination,
    sampling: Sampling,
    stop_tokens: &'a [i32],
    tokens: usize,
    /// Passes of a faulty model so far in this run.
    passes: Option<Arc<AtomicUsize>>,
}

impl Case<'_> {
    fn expected(&self) -> Joint {
        let mut joint = Joint::new();
        self.extend(&mut Vec::new(), 1.0, &mut joint);
        joint
    }

    fn extend(&self, tokens: &mut Vec<i32>, p: f64, joint: &mut Joint) {
        if tokens.len() == self.tokens || tokens.last().is_some_and(|last| self.stop_tokens.contains(last)) {
            joint.insert(tokens.clone(), p);
            return;
        }
        let context: Vec<i32> = PROMPT.iter().chain(tokens.iter()).copied().collect();
        let rows: Vec<Vec<f32>> =
            (0..self.models.len()).map(|k| self.world.logits(k, &context, self.models[0].vocab_size())).collect();
        for (token, q) in oracle(&rows, self.combination, self.sampling).into_iter().enumerate() {
            if q > 0.0 {
                tokens.push(token as i32);
                self.extend(tokens, p * q, joint);
                tokens.pop();
            }
        }
    }

    /// The decoder's joint distribution, and over how many branches.
    fn enumerated(&self, way: &Way) -> (Joint, usize) {
        let (chance, mut joint, mut branches) = (Enumerator::default(), Joint::new(), 0);
        loop {
            chance.start();
            if let Some(passes) = &self.passes {
                passes.store(0, Ordering::Relaxed);
            }
            let mut decoder =
                decoder(&self.models, self.combination, self.sampling, way, self.stop_tokens, self.tokens, &chance);
            decoder.prompt(&PROMPT).unwrap();
            let mut out = Vec::new();
            loop {
                match decoder.round() {
                    Ok((tokens, finish)) => {
                        assert!(!tokens.is_empty(), "a round without a token");
                        out.extend_from_slice(tokens);
                        if finish.is_some() {
                            break;
                        }
                    }
                    // Tests of failing passes plant these; the sequence must go on as if nothing had been.
                    Err(_) => continue,
                }
            }
            assert_eq!(decoder.committed()[PROMPT.len()..], out);
            *joint.entry(out).or_default() += chance.0.borrow().probability;
            branches += 1;
            if !chance.advance() {
                return (joint, branches);
            }
        }
    }

    fn check(&self, way: &Way) -> usize {
        let (found, branches) = self.enumerated(way);
        let expected = self.expected();
        for tokens in found.keys().chain(expected.keys()) {
            let (f, e) = (found.get(tokens).unwrap_or(&0.0), expected.get(tokens).unwrap_or(&0.0));
            assert!(
                (f - e).abs() < ENOUGH,
                "{tokens:?} has probability {f}, not {e}: {way:?}, {:?}, {:?}, {:?}, stop {:?}",
                self.world,
                self.combination,
                self.sampling,
                self.stop_tokens
            );
        }
        branches
    }
}

fn combinations(models: usize) -> Vec<Combination> {
    match models {
        1 => vec![Combination::mixture(&[1.0]).unwrap(), Combination::logits(&[0.5]).unwrap()],
        2 => vec![
            Combination::mixture(&[0.5, 0.5]).unwrap(),
            Combination::mixture(&[0.8, 0.2]).unwrap(),
            Combination::mixture(&[1.0, 0.0]).unwrap(),
            Combination::contrastive(2, 0.5, 0.0).unwrap(),
            Combination::contrastive(2, 0.3, 0.2).unwrap(),
            Combination::logits(&[-0.5, 1.5]).unwrap(),
            Combination::target(2, 0).unwrap(),
            Combination::target(2, 1).unwrap(),
        ],
        3 => vec![
            Combination::mixture(&[0.2, 0.5, 0.3]).unwrap(),
            Combination::mixture(&[0.5, 0.0, 0.5]).unwrap(),
            Combination::logits(&[1.0, 0.7, -0.7]).unwrap(),
            Combination::contrastive(3, 0.5, 0.1).unwrap(),
            Combination::target(3, 1).unwrap(),
        ],
        _ => vec![Combination::mixture(&[0.25; 4]).unwrap(), Combination::logits(&[0.25; 4]).unwrap()],
    }
}

fn ways(models: usize, combination: &Combination, sampling: Sampling) -> Vec<Way> {
    let lengths: &[&[i32]] = match models {
        1 => &[&[1], &[2]],
        2 => &[&[1, 1], &[2, 1], &[0, 3], &[1, 2]],
        3 => &[&[1, 1, 1], &[2, 0, 1], &[1, 2, 2]],
        _ => &[&[1, 1, 1, 1]],
    };
    let routable = matches!(combination, Combination::Mixture { .. }) && sampling.temperature > 0.0;
    let mut ways = Vec::new();
    for &targets in if routable { &[Targets::Combined, Targets::Routed][..] } else { &[Targets::Combined] } {
        ways.push(Way::new(Strategy::Standard, targets, lengths[0]));
        for lengths in lengths {
            ways.push(Way::new(Strategy::Speculative, targets, lengths));
            ways.push(Way::new(Strategy::Cos, targets, lengths));
        }
    }
    ways
}

const SAMPLINGS: [Sampling; 6] = [
    Sampling::PLAIN,
    Sampling::GREEDY,
    Sampling { temperature: 0.7, ..Sampling::PLAIN },
    Sampling { temperature: 1.3, top_k: 2, ..Sampling::PLAIN },
    Sampling { top_p: 0.75, ..Sampling::PLAIN },
    Sampling { temperature: 1.5, min_p: 0.4, ..Sampling::PLAIN },
];

fn check_all(models: usize, vocab: usize, tokens: usize) {
    let mut branches = 0;
    let mut cases = 0;
    for world in World::ALL {
        for combination in &combinations(models) {
            for sampling in SAMPLINGS {
                for stop_tokens in [&[][..], &[1]] {
                    // Zeros of several models at once may leave sums of logits no token at all.
                    if world == World::Zeros && !matches!(combination, Combination::Mixture { .. }) {
                        continue;
                    }
                    let case = Case {
                        models: world.models(models, vocab),
                        world,
                        combination,
                        sampling,
                        stop_tokens,
                        tokens,
                        passes: None,
                    };
                    for way in ways(models, combination, sampling) {
                        branches += case.check(&way);
                        cases += 1;
                    }
                }
            }
        }
    }
    println!("{models} models: {cases} cases, {branches} branches");
}

#[test]
fn one_model() {
    check_all(1, 3, 4);
}

#[test]
fn two_models() {
    check_all(2, 3, 3);
}

#[test]
fn three_models() {
    check_all(3, 3, 2);
}

#[test]
fn four_models() {
    check_all(4, 2, 3);
}

#[test]
fn longer_sequences() {
    // Joint of five tokens: roles change several times, rejections fall at every depth.
    for combination in [Combination::mixture(&[0.4, 0.6]).unwrap(), Combination::contrastive(2, 0.4, 0.0).unwrap()] {
        for world in [World::Related, World::Unrelated] {
            let case = Case {
                models: world.models(2, 2),
                world,
                combination: &combination,
                sampling: Sampling::PLAIN,
                stop_tokens: &[],
                tokens: 5,
                passes: None,
            };
            for way in ways(2, &combination, Sampling::PLAIN) {
                case.check(&way);
            }
        }
    }
}

/// A pass of one model fails, or is cancelled, once, at each point of a run in turn: what comes out is as exact as
/// without, and nothing is committed by the failed round.
#[test]
fn failures_and_cancellations_leave_no_trace() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for interrupt in [Interrupt::Cancelled, Interrupt::Failed(Error::Runtime("planted".into()))] {
        for failing in 0..2 {
            for at in 3..12 {
                let passes = Arc::new(AtomicUsize::new(0));
                let models: Vec<Arc<dyn Model>> = (0..2)
                    .map(|k| {
                        let (passes, interrupt) = (passes.clone(), interrupt.clone());
                        let model = Scripted::new(2, move |context, row| {
                            // The rows of a pass come one by one, so this also fails in the middle of a pass.
                            if k == failing && passes.fetch_add(1, Ordering::Relaxed) == at {
                                return Err(interrupt.clone());
                            }
                            row.copy_from_slice(&World::Related.logits(k, context, 2));
                            Ok(())
                        });
                        Arc::new(model) as Arc<dyn Model>
                    })
                    .collect();
                let case = Case {
                    models,
                    world: World::Related,
                    combination: &combination,
                    sampling: Sampling::PLAIN,
                    stop_tokens: &[],
                    tokens: 3,
                    passes: Some(passes),
                };
                for way in ways(2, &combination, Sampling::PLAIN) {
                    case.check(&way);
                }
            }
        }
    }
}

/// The same with the real random numbers: their independence is what the enumeration takes for granted.
#[test]
fn random_numbers_follow_the_joint_distribution() {
    let draws = 30_000;
    let combination = Combination::mixture(&[0.4, 0.6]).unwrap();
    let world = World::Related;
    let case = Case {
        models: world.models(2, 3),
        world,
        combination: &combination,
        sampling: Sampling::PLAIN,
        stop_tokens: &[],
        tokens: 3,
        passes: None,
    };
    let expected = case.expected();
    for way in ways(2, &combination, Sampling::PLAIN) {
        let mut counts: BTreeMap<Vec<i32>, u32> = BTreeMap::new();
        for seed in 0..draws {
            let mut decoder = decoder(&case.models, &combination, case.sampling, &way, &[], 3, CounterRng::new(seed));
            decoder.prompt(&PROMPT).unwrap();
            while decoder.round().unwrap().1.is_none() {}
            *counts.entry(decoder.committed()[PROMPT.len()..].to_vec()).or_default() += 1;
        }
        let chi2: f64 = expected
            .iter()
            .map(|(tokens, p)| {
                (f64::from(*counts.get(tokens).unwrap_or(&0)) - p * draws as f64).powi(2) / (p * draws as f64)
            })
            .sum();
        // 26 degrees of freedom; 72 is exceeded with probability 4e-6, here at most 22 times as often.
        assert_eq!(expected.len(), 27);
        assert!(chi2 < 72.0, "chi-square {chi2} of {way:?}");
    }
}

#[test]
fn a_seed_reproduces_its_run() {
    let combination = Combination::mixture(&[0.4, 0.6]).unwrap();
    let run = |way: &Way, seed: u64| {
        let models = World::Related.models(2, 5);
        let mut decoder = decoder(&models, &combination, Sampling::PLAIN, way, &[], 50, CounterRng::new(seed));
        decoder.prompt(&PROMPT).unwrap();
        while decoder.round().unwrap().1.is_none() {}
        decoder.committed().to_vec()
    };
    for way in ways(2, &combination, Sampling::PLAIN) {
        assert_eq!(run(&way, 1), run(&way, 1));
        assert_ne!(run(&way, 1), run(&way, 2));
    }
}

/// Turns of a chat: what follows a second prompt has the distribution that its whole context gives it, also where
/// proposals were pending when the prompt came.
#[test]
fn later_prompts_continue_the_sequence() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for way in ways(2, &combination, Sampling::PLAIN) {
        let models = World::Unrelated.models(2, 3);
        let chance = Enumerator::default();
        let mut joint: BTreeMap<(Vec<i32>, i32), f64> = BTreeMap::new();
        loop {
            chance.start();
            let mut decoder = decoder(&models, &combination, Sampling::PLAIN, &way, &[], 0, &chance);
            decoder.prompt(&PROMPT).unwrap();
            let first = decoder.round().unwrap().0.to_vec();
            decoder.prompt(&[2, 0]).unwrap();
            let second = decoder.round().unwrap().0[0];
            *joint.entry((first, second)).or_default() += chance.0.borrow().probability;
            if !chance.advance() {
                break;
            }
        }
        let mut first_total: BTreeMap<Vec<i32>, f64> = BTreeMap::new();
        for ((first, _), p) in &joint {
            *first_total.entry(first.clone()).or_default() += p;
        }
        for ((first, second), p) in &joint {
            let context: Vec<i32> = PROMPT.iter().chain(first).chain(&[2, 0]).copied().collect();
            let rows: Vec<Vec<f32>> = (0..2).map(|k| World::Unrelated.logits(k, &context, 3)).collect();
            let expected = oracle(&rows, &combination, Sampling::PLAIN)[*second as usize];
            assert!((p / first_total[first] - expected).abs() < ENOUGH, "{way:?} after {first:?}");
        }
    }
}

#[test]
fn sequences_end_where_they_should() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for way in ways(2, &combination, Sampling::PLAIN) {
        let models: Vec<Arc<dyn Model>> =
            (0..2).map(|k| Arc::new(World::Related.model(k, 3).with_context_length(12)) as Arc<dyn Model>).collect();
        let new =
            |stop: &[i32], max| decoder(&models, &combination, Sampling::PLAIN, &way, stop, max, CounterRng::new(3));

        let mut full = new(&[], 0);
        full.prompt(&PROMPT).unwrap();
        let finish = loop {
            if let (_, Some(finish)) = full.round().unwrap() {
                break finish;
            }
        };
        assert_eq!((finish, full.committed().len()), (Finish::ContextFull, 12));
        assert_eq!(full.round().unwrap(), (&[][..], Some(Finish::ContextFull)), "an ended sequence stays ended");
        assert_eq!(full.prompt(&[1]).unwrap_err().code(), 5);

        let mut exact = new(&[], 0);
        exact.prompt(&[1; 12]).unwrap();
        assert_eq!(exact.round().unwrap(), (&[][..], Some(Finish::ContextFull)));
        assert_eq!(new(&[], 0).prompt(&[1; 13]).unwrap_err().code(), 5);

        let mut limited = new(&[], 2);
        limited.prompt(&PROMPT).unwrap();
        while limited.round().unwrap().1.is_none() {}
        assert_eq!(limited.committed().len(), PROMPT.len() + 2);
        limited.prompt(&[1]).unwrap();
        while limited.round().unwrap().1.is_none() {}
        assert_eq!(limited.committed().len(), PROMPT.len() + 5, "each prompt gets max_tokens anew");

        let mut stopped = new(&[0, 1, 2], 0);
        stopped.prompt(&PROMPT).unwrap();
        assert_eq!(stopped.round().unwrap().1, Some(Finish::StopToken));
        assert_eq!(stopped.committed().len(), PROMPT.len() + 1, "nothing behind a stop token is committed");

        let mut empty = new(&[], 0);
        assert!(matches!(empty.round(), Err(Interrupt::Failed(Error::InvalidArgument(_)))));
        assert_eq!(empty.prompt(&[]).unwrap_err().code(), 1);
        assert_eq!(empty.prompt(&[1, 3]).unwrap_err().code(), 1);
        assert_eq!(empty.prompt(&[-1]).unwrap_err().code(), 1);
        assert!(empty.committed().is_empty(), "nothing of a refused prompt is kept");
    }
}

#[test]
fn nan_logits_commit_nothing() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for sampling in [Sampling::PLAIN, Sampling::GREEDY] {
        for way in ways(2, &combination, sampling) {
            let bad = |k: usize| {
                Scripted::new(3, move |context, row| {
                    row.copy_from_slice(&World::Related.logits(k, context, 3));
                    if k == 1 && context.len() >= PROMPT.len() + 2 {
                        row[1] = f32::NAN;
                    }
                    Ok(())
                })
            };
            let models: Vec<Arc<dyn Model>> = (0..2).map(|k| Arc::new(bad(k)) as Arc<dyn Model>).collect();
            let mut decoder = decoder(&models, &combination, sampling, &way, &[], 40, CounterRng::new(1));
            decoder.prompt(&PROMPT).unwrap();
            let mut committed = PROMPT.len();
            let error = loop {
                match decoder.round() {
                    Ok((tokens, _)) => committed += tokens.len(),
                    Err(error) => break error,
                }
            };
            assert!(matches!(error, Interrupt::Failed(Error::Numeric(_))), "{error:?}");
            assert_eq!(decoder.committed().len(), committed, "{way:?}");
            assert_eq!(decoder.counters().tokens as usize, committed - PROMPT.len());
        }
    }
}

/// Counts by hand what the strategies cost when all models agree: the shape of each algorithm.
#[test]
fn passes_are_those_of_the_algorithms() {
    let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
    let run = |combination: &Combination, way: Way, tokens: usize| {
        let models: Vec<Arc<dyn Model>> =
            (0..2).map(|k| Arc::new(World::Identical.model(k, 3)) as Arc<dyn Model>).collect();
        let mut decoder = decoder(&models, combination, Sampling::PLAIN, &way, &[], tokens, CounterRng::new(1));
        decoder.prompt(&PROMPT).unwrap();
        while decoder.round().unwrap().1.is_none() {}
        let c = decoder.counters();
        assert_eq!(c.tokens as usize, tokens);
        assert_eq!(c.accepted, c.tested, "identical models never reject");
        (c.forwards, c.proposed, c.tested)
    };
    let combined = |strategy, lengths: &[i32]| Way::new(strategy, Targets::Combined, lengths);
    // every token costs a pass of each model
    assert_eq!(run(&mixture, combined(Strategy::Standard, &[1, 1]), 12), (24, 0, 0));
    // one pass starts, then each pass scores one proposal and makes the next
    assert_eq!(run(&mixture, combined(Strategy::Cos, &[1, 1]), 12), (13, 12, 12));
    // three drafted, one pass verifies them, and the drafter's next pass completes the target of a bonus token
    assert_eq!(run(&mixture, combined(Strategy::Speculative, &[3, 0]), 12), (15, 9, 9));
    // the verifier alone decides, so its bonus token is free: three drafted and verified give four tokens
    let target = Combination::target(2, 0).unwrap();
    assert_eq!(run(&target, combined(Strategy::Speculative, &[0, 3]), 12), (12, 9, 9));
    // one pass of one model for each token
    assert_eq!(run(&mixture, Way::new(Strategy::Standard, Targets::Routed, &[1, 1]), 12), (12, 0, 0));
}
