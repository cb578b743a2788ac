//! A whole sequence: prompts, ends, seeds, and the real random numbers.

use std::collections::BTreeMap;
use std::sync::Arc;

use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::decoder::Finish;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::participant::Participant;
use cos::error::Error;
use cos::model::Interrupt;

use super::enumeration::{Case, ENOUGH, Enumerator};
use crate::common::{PROMPT, Sampling, Way, World, decoder, oracle, ways};

/// Draws with the real random numbers have the enumerated distribution. The enumeration assumes that the numbers are
/// independent.
#[test]
fn random_numbers_follow_the_joint_distribution() {
    let draws = 30_000;
    let combination = Combination::mixture(&[0.4, 0.6]).unwrap();
    let world = World::Related;
    let case = Case::new(world, world.models(2, 3), &combination, Sampling::PLAIN, 3);
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
        // 26 degrees of freedom: 72 is exceeded with a probability of 4e-6 in each of at most 22 comparisons.
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

/// Tokens after a second prompt have the distribution given by the whole context, even if proposals were pending when
/// the prompt came.
#[test]
fn later_prompts_continue_the_sequence() {
    const TURN: [i32; 2] = [1, 0];
    // Of three models, one may have seen the pending tokens when the prompt comes.
    for (combination, vocab) in [(Combination::mixture(&[0.5, 0.5]), 3), (Combination::mixture(&[0.3, 0.4, 0.3]), 2)] {
        let combination = combination.unwrap();
        let count = combination.weights().len();
        for way in ways(count, &combination, Sampling::PLAIN) {
            let models = World::Unrelated.models(count, vocab);
            let chance = Enumerator::default();
            let mut joint: BTreeMap<(Vec<i32>, i32), f64> = BTreeMap::new();
            loop {
                chance.start();
                let mut decoder = decoder(&models, &combination, Sampling::PLAIN, &way, &[], 0, &chance);
                decoder.prompt(&PROMPT).unwrap();
                let first = decoder.round().unwrap().0.to_vec();
                decoder.prompt(&TURN).unwrap();
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
                let context: Vec<i32> = PROMPT.iter().chain(first).chain(&TURN).copied().collect();
                let rows: Vec<Vec<f32>> = (0..count).map(|k| World::Unrelated.logits(k, &context, vocab)).collect();
                let expected = oracle(&rows, &combination, Sampling::PLAIN)[*second as usize];
                assert!((p / first_total[first] - expected).abs() < ENOUGH, "{way:?} after {first:?}");
            }
        }
    }
}

#[test]
fn sequences_end_where_they_should() {
    let combination = Combination::mixture(&[0.5, 0.5]).unwrap();
    for way in ways(2, &combination, Sampling::PLAIN) {
        let models: Vec<Participant> =
            (0..2).map(|k| Arc::new(World::Related.model(k, 3).with_context_length(12)).into()).collect();
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
        assert_eq!(stopped.committed().len(), PROMPT.len() + 1, "nothing after a stop token is committed");

        let mut empty = new(&[], 0);
        assert!(matches!(empty.round(), Err(Interrupt::Failed(Error::InvalidArgument(_)))));
        assert_eq!(empty.prompt(&[]).unwrap_err().code(), 1);
        assert_eq!(empty.prompt(&[1, 3]).unwrap_err().code(), 1);
        assert_eq!(empty.prompt(&[-1]).unwrap_err().code(), 1);
        assert!(empty.committed().is_empty(), "nothing of a refused prompt is kept");
    }
}

/// A probe of an empty sequence does nothing, also later.
#[test]
fn an_empty_sequence_is_not_probed() {
    let models = World::Related.models(2, 3);
    let combination = Combination::target(2, 0).unwrap();
    let way = Way::new(Strategy::Standard, Targets::Combined, &[0, 0]);
    let mut decoder = decoder(&models, &combination, Sampling::GREEDY, &way, &[], 4, CounterRng::new(1));
    decoder.probe(1).unwrap();
    decoder.prompt(&PROMPT).unwrap();
    assert_eq!(decoder.round().unwrap().0.len(), 1, "the round commits a token, and gives no prompt back");
}
