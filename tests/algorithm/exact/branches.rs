//! Sequences that branch: forks are independent of where they come from, and what is decoded again after going back is
//! drawn anew.

use std::collections::BTreeMap;
use std::sync::Arc;

use cos::decode::chance::{Chance, Key};
use cos::decode::combine::Combination;
use cos::decode::policy::Targets;
use cos::engine::drive::Driver;
use cos::engine::participant::Participant;
use cos::error::Error;
use cos::model::Cancel;
use cos::rows::Weights;

use super::enumeration::{Case, ENOUGH, Enumerator, Joint};
use crate::common::{PROMPT, Sampling, Way, World, decoder, ways};

/// Tokens of a text. The branches of two texts multiply, so it is short.
const TOKENS: usize = 2;

/// The numbers of one branch: those of the enumeration, with keys of its own.
#[derive(Clone, Copy)]
struct Branch<'a> {
    chance: &'a Enumerator,
    number: u32,
}

impl Branch<'_> {
    fn key(&self, key: Key) -> Key {
        Key { epoch: key.epoch + 1000 * self.number, ..key }
    }
}

impl Chance for Branch<'_> {
    fn accept(&self, key: Key, probability: f64) -> bool {
        self.chance.accept(self.key(key), probability)
    }

    fn pick<W: Weights + ?Sized>(&self, key: Key, weights: &W) -> Result<usize, Error> {
        self.chance.pick(self.key(key), weights)
    }
}

/// Models that share what they have computed with forks, or that compute it anew.
fn models(world: World, count: usize, shares: bool) -> Vec<Participant> {
    let model = |k| {
        let model = world.model(k, 2);
        Arc::new(if shares { model.with_memory(1 << 20) } else { model }).into()
    };
    (0..count).map(model).collect()
}

fn finish<C: Chance>(decoder: &mut Driver<C>) -> Vec<i32> {
    while decoder.round().unwrap().1.is_none() {}
    decoder.committed()[PROMPT.len()..].to_vec()
}

/// Adds up what happens in all branches of a run.
fn enumerate<T: Ord>(mut run: impl FnMut(&Enumerator) -> T) -> BTreeMap<T, f64> {
    let (chance, mut found) = (Enumerator::default(), BTreeMap::new());
    loop {
        chance.start();
        let outcome = run(&chance);
        *found.entry(outcome).or_default() += chance.0.borrow().probability;
        if !chance.advance() {
            return found;
        }
    }
}

fn each_case(mut check: impl FnMut(&Combination, Sampling, &Way, &[Participant], &Case)) {
    let combinations = [
        Combination::mixture(&[0.5, 0.5]).unwrap(),
        Combination::mixture(&[0.0, 1.0]).unwrap(),
        Combination::logits(&[1.0, -0.5]).unwrap(),
    ];
    for combination in &combinations {
        for shares in [false, true] {
            let (sampling, models) = (Sampling::PLAIN, models(World::Related, 2, shares));
            for way in ways(2, combination, sampling) {
                let case = Case::new(World::Related, models.clone(), combination, sampling, TOKENS);
                check(combination, sampling, &way, &models, &case);
            }
        }
    }
}

/// The text of a fork depends on that of its parent by the tokens that both have, and by nothing else.
#[test]
fn forks_are_independent() {
    let mut count = 0;
    each_case(|combination, sampling, way, models, case| {
        let expected = case.expected();
        let total = |prefix: &[i32]| -> f64 {
            expected.iter().filter(|(text, _)| text.starts_with(prefix)).map(|(_, p)| p).sum()
        };
        for rounds in 0..2 {
            let found = enumerate(|chance| {
                let parent = Branch { chance, number: 0 };
                let mut parent = decoder(models, combination, sampling, way, &[], TOKENS, parent);
                parent.prompt(&PROMPT).unwrap();
                for _ in 0..rounds {
                    parent.round().unwrap();
                }
                let shared = parent.committed().len() - PROMPT.len();
                let (cancel, plan) = (Arc::new(Cancel::default()), parent.plan().clone());
                let mut fork = parent.fork(&cancel, plan, Branch { chance, number: 1 }).unwrap();
                assert_eq!(fork.committed(), parent.committed());
                assert_eq!(fork.round_of_none(), (0, parent.round_of_none().1));
                // In turns, and the fork first: neither must disturb the other.
                let second = finish(&mut fork);
                (finish(&mut parent), second, shared)
            });
            let sum: f64 = found.values().sum();
            assert!((sum - 1.0).abs() < ENOUGH, "{sum}");
            // Where a round ends tells nothing of the tokens behind it.
            let mut ends = BTreeMap::<(&[i32], usize), f64>::new();
            for ((first, _, shared), p) in &found {
                *ends.entry((&first[..*shared], *shared)).or_default() += p;
            }
            for ((first, second, shared), p) in &found {
                let prefix = &first[..*shared];
                let e = ends[&(prefix, *shared)] * expected[first] * expected[second] / total(prefix).powi(2);
                assert!((p - e).abs() < ENOUGH, "{first:?}, {second:?} {p} {e}: {way:?}, {combination:?}, {rounds}");
                count += 1;
            }
        }
    });
    assert!(count > 500, "{count}");
}

/// Whoever goes back because of what was decoded gets new numbers: each text has the probability of being decoded, gone
/// back from, and decoded again.
#[test]
fn what_is_decoded_again_is_drawn_anew() {
    each_case(|combination, sampling, way, models, case| {
        let expected = case.expected();
        for (length, rounds) in [(PROMPT.len(), 1), (PROMPT.len(), 9), (PROMPT.len() + 1, 9)] {
            let kept = length - PROMPT.len();
            // The cunning caller goes back from texts with a certain last token.
            let found: Joint = enumerate(|chance| {
                let mut decoder =
                    decoder(models, combination, sampling, way, &[], TOKENS, Branch { chance, number: 0 });
                decoder.prompt(&PROMPT).unwrap();
                for _ in 0..rounds {
                    if decoder.round().unwrap().1.is_some() {
                        break;
                    }
                }
                if decoder.committed().last() == Some(&1) {
                    decoder.rewind(length).unwrap();
                    assert_eq!(decoder.committed().len(), length);
                }
                finish(&mut decoder)
            });
            // Rounds that end elsewhere have other last tokens, so the whole text is looked at.
            if rounds == 1 && (way.targets == Targets::Routed || way.lengths.iter().any(|&l| l > 0)) {
                continue;
            }
            let end = if rounds == 1 { 1 } else { TOKENS };
            let mut wanted = Joint::new();
            for (text, p) in &expected {
                if text[end - 1] != 1 {
                    *wanted.entry(text.clone()).or_default() += p;
                    continue;
                }
                let same = |other: &&Vec<i32>| other[..kept] == text[..kept];
                let total: f64 = expected.keys().filter(same).map(|other| expected[other]).sum();
                for other in expected.keys().filter(same) {
                    *wanted.entry(other.clone()).or_default() += p * expected[other] / total;
                }
            }
            for text in expected.keys() {
                let (f, e) = (found.get(text).unwrap_or(&0.0), wanted.get(text).unwrap_or(&0.0));
                assert!((f - e).abs() < ENOUGH, "{text:?} {f} {e}: {way:?}, {combination:?}, {sampling:?}, {length}");
            }
        }
    });
}

/// The round of a sequence that has just been forked.
trait NoRound {
    fn round_of_none(&self) -> (usize, bool);
}

impl<C: Chance> NoRound for Driver<C> {
    fn round_of_none(&self) -> (usize, bool) {
        let fresh = self.counters().tokens == 0;
        let (tokens, finish) = cos::decode::decoder::Decoder::round(self);
        (if fresh { tokens.len() } else { 0 }, finish.is_some())
    }
}
