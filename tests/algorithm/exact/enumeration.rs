//! The enumeration: runs every branch of the decoder, multiplies its probabilities, and compares the result with the
//! oracle.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cos::control::Controls;
use cos::decode::chance::{Chance, Key, Purpose};
use cos::decode::combine::Combination;
use cos::decode::decoder::{Counters, Finish, LogProbabilities};
use cos::decode::policy::{Plan, Targets};
use cos::decode::weigh::Weigher;
use cos::engine::drive::Driver;
use cos::engine::participant::Participant;
use cos::engine::queues::PassQueues;
use cos::error::Error;
use cos::learn::estimates::{Acceptance, Estimates};

use cos::rows::Weights;

use crate::common::{PROMPT, Sampling, Way, World, controlled_decoder, oracle_with, plan};

pub const ENOUGH: f64 = 1e-5;

/// A source of chance that takes one branch after the other, and multiplies the probabilities on the way.
#[derive(Default)]
pub struct Enumerator(pub RefCell<Branches>);

#[derive(Default)]
pub struct Branches {
    /// For each decision of this run: the possible outcomes with their probabilities, and the index of the one taken.
    pub path: Vec<(Vec<(usize, f64)>, usize)>,
    pub depth: usize,
    pub probability: f64,
    pub asked: BTreeMap<Key, usize>,
}

impl Enumerator {
    pub fn choose(&self, key: Key, outcomes: impl Iterator<Item = (usize, f64)>) -> usize {
        let mut this = self.0.borrow_mut();
        if let Some(&outcome) = this.asked.get(&key) {
            assert!(matches!(key.purpose, Purpose::Route | Purpose::Exclusion), "random numbers used twice: {key:?}");
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

    /// Goes to the next branch; false after the last one.
    pub fn advance(&self) -> bool {
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

    pub fn start(&self) {
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

    fn pick<W: Weights + ?Sized>(&self, key: Key, weights: &W) -> Result<usize, Error> {
        let mut row = vec![f32::NAN; weights.count()];
        // In pieces, as a caller of `write` may ask for them.
        row.chunks_mut(3).enumerate().for_each(|(index, piece)| weights.write(3 * index, piece).unwrap());
        let total: f64 = row.iter().map(|&w| f64::from(w)).sum();
        assert!((weights.total() / total - 1.0).abs() < 1e-6, "{key:?}: {} for {row:?}", weights.total());
        Ok(self.choose(key, row.iter().map(|&w| f64::from(w) / total).enumerate()))
    }
}

pub type Joint = BTreeMap<Vec<i32>, f64>;

/// The number of generated tokens when a round ended, and whether the round failed.
pub type End = (usize, bool);

/// For generated tokens and the rounds that had ended by then: the probability of each next token.
pub type Continuations = BTreeMap<(Vec<i32>, Vec<End>), BTreeMap<i32, f64>>;

/// The same by the oracle.
type Scores = BTreeMap<(Vec<i32>, Vec<End>), Vec<f64>>;

/// The combination that a caller sets after some rounds.
pub type Choice<'a> = dyn Fn(&[End]) -> &'a Combination + 'a;

/// What the enumeration found.
#[derive(Default)]
pub struct Found {
    pub joint: Joint,
    pub continuations: Continuations,
    pub branches: usize,
    pub counters: Counters,
    /// How often the plan changed.
    pub changes: usize,
}

pub struct Case<'a> {
    pub models: Vec<Participant>,
    pub world: World,
    pub combination: &'a Combination,
    pub sampling: Sampling,
    pub stop_tokens: &'a [i32],
    pub tokens: usize,
    /// The combination that a function imitates, if the combination is such a function.
    pub law: Option<&'a Combination>,
    /// The combination that the caller sets after each round, if it sets any.
    pub choice: Option<&'a Choice<'a>>,
    /// Rows of a faulty model so far in this run.
    pub passes: Option<Arc<AtomicUsize>>,
    /// The plans to choose from after each round, by everything that a planner could see.
    pub plans: Vec<Plan>,
    /// Where its passes are combined with those of others.
    pub queues: Option<Arc<PassQueues>>,
    /// What is asked of the tokens, and what that does to scores.
    pub control: Option<&'a Controlled<'a>>,
}

/// What is asked of the tokens, and the oracle of it.
pub struct Controlled<'a> {
    pub controls: Controls,
    /// Changes scores behind some generated tokens. If nothing is left, the text has ended.
    pub change: &'a Change<'a>,
    /// What is done instead at a share of the positions.
    pub exclude: Option<(f64, &'a Change<'a>)>,
    /// What gives the weights of a position, and those for its rows.
    pub weigh: Option<(Weigher, &'a WeightsOf)>,
}

/// Changes scores behind some generated tokens.
pub type Change<'a> = dyn Fn(&[i32], &mut [f64]) + 'a;

/// The weights of a position, by the rows of all models.
pub type WeightsOf = dyn Fn(&[Vec<f32>]) -> Vec<f32>;

impl<'a> Case<'a> {
    pub fn new(
        world: World,
        models: Vec<Participant>,
        combination: &'a Combination,
        sampling: Sampling,
        tokens: usize,
    ) -> Self {
        Case {
            models,
            world,
            combination,
            sampling,
            stop_tokens: &[],
            tokens,
            law: None,
            choice: None,
            passes: None,
            plans: Vec::new(),
            queues: None,
            control: None,
        }
    }

    pub fn expected(&self) -> Joint {
        let mut joint = Joint::new();
        self.extend(&mut Vec::new(), 1.0, &mut joint);
        joint
    }

    pub fn extend(&self, tokens: &mut Vec<i32>, p: f64, joint: &mut Joint) {
        let has_stopped = tokens.last().is_some_and(|last| self.stop_tokens.contains(last));
        if tokens.len() == self.tokens || has_stopped || self.is_complete(tokens) {
            joint.insert(tokens.clone(), p);
            return;
        }
        for (token, q) in self.next(tokens, &[], self.sampling).into_iter().enumerate() {
            if q > 0.0 {
                tokens.push(token as i32);
                self.extend(tokens, p * q, joint);
                tokens.pop();
            }
        }
    }

    /// The oracle's distribution of the token after some generated ones, under the combination set by then.
    pub fn next(&self, tokens: &[i32], ends: &[End], sampling: Sampling) -> Vec<f64> {
        let combination = self.law.unwrap_or(self.combination);
        self.next_by(tokens, self.choice.map_or(combination, |choice| choice(ends)), sampling)
    }

    fn next_by(&self, tokens: &[i32], combination: &Combination, sampling: Sampling) -> Vec<f64> {
        let is_combined = matches!(combination, Combination::Mixture { .. });
        let context: Vec<i32> = PROMPT.iter().chain(tokens).copied().collect();
        let vocab = self.models.iter().find_map(|each| Some(each.model()?.vocab_size())).unwrap();
        let rows: Vec<Vec<f32>> = (0..self.models.len()).map(|k| self.world.logits(k, &context, vocab)).collect();
        let change = |scores: &mut [f64]| self.change(tokens, scores);
        let weights = self.control.and_then(|control| control.weigh.as_ref()).map(|(_, weights)| weights(&rows));
        let weighed = weights.filter(|_| is_combined).map(|weights| Combination::mixture(&weights).unwrap());
        let combination = weighed.as_ref().unwrap_or(combination);
        let next = oracle_with(&rows, combination, sampling, &change);
        match self.control.and_then(|control| control.exclude) {
            Some((share, exclude)) if sampling.temperature > 0.0 => {
                let excluded = oracle_with(&rows, combination, sampling, &|scores| exclude(tokens, scores));
                next.iter().zip(excluded).map(|(a, b)| (1.0 - share) * a + share * b).collect()
            }
            _ => next,
        }
    }

    fn change(&self, tokens: &[i32], scores: &mut [f64]) {
        self.control.into_iter().for_each(|control| (control.change)(tokens, scores));
    }

    /// Whether nothing may follow, whatever the rows are.
    fn is_complete(&self, tokens: &[i32]) -> bool {
        let mut scores = [0.0; 8];
        self.change(tokens, &mut scores);
        scores.iter().all(|&score| score == f64::NEG_INFINITY)
    }

    /// A decoder at the end of the prompt.
    fn start<'b>(&self, way: &Way, chance: &'b Enumerator) -> Driver<&'b Enumerator> {
        let controls = self.control.map_or_else(Controls::default, |control| control.controls.clone());
        let weigher = self.control.and_then(|control| control.weigh.as_ref()).map(|(weigher, _)| weigher);
        let until = (self.stop_tokens, self.tokens);
        let mut decoder =
            controlled_decoder(&self.models, self.combination, self.sampling, way, (&controls, weigher), until, chance);
        if let Some(queues) = &self.queues {
            decoder.share_passes(queues, false);
        }
        decoder.prompt(&PROMPT).unwrap();
        if !self.plans.is_empty() {
            decoder.observe(Estimates::new(&vec![Vec::new(); self.models.len()]));
        }
        decoder
    }

    /// Check the log-probabilities of a round, which has decoded the tokens from index `start` on.
    fn check_log_probabilities(
        &self,
        way: &Way,
        decoder: &Driver<&Enumerator>,
        (out, start): (&[i32], usize),
        ends: &[End],
        scores: &mut Scores,
    ) {
        // What is excluded at a position is known there, and not to the oracle.
        if self.control.is_some_and(|control| control.exclude.is_some()) {
            return;
        }
        // A greedy session reports log-probabilities at temperature 1.
        let scored = if self.sampling.temperature == 0.0 { Sampling::PLAIN } else { self.sampling };
        for (position, &found) in (start..).zip(&decoder.log_probabilities().of_tokens) {
            let next = || self.next(&out[..position], ends, scored);
            let scores = scores.entry((out[..position].to_vec(), ends.to_vec())).or_insert_with(next);
            let expected = scores[out[position] as usize].ln();
            assert!(
                (f64::from(found) - expected).abs() < ENOUGH,
                "{out:?} at {position}: log-probability {found}, not {expected}: {way:?}, {:?}, {:?}",
                self.combination,
                self.sampling
            );
            let of_token = (decoder.log_probabilities(), position - start);
            self.check_alternatives(of_token, (&out[..position], out[position]), scores, ends, scored);
        }
    }

    /// Check the alternatives of a token of a round, and what each model says of it.
    fn check_alternatives(
        &self,
        (told, index): (&LogProbabilities, usize),
        (before, token): (&[i32], i32),
        probabilities: &[f64],
        ends: &[End],
        scored: Sampling,
    ) {
        let mut best = probabilities.to_vec();
        best.sort_by(|a, b| b.total_cmp(a));
        for (place, expected) in best.into_iter().take(2).enumerate() {
            let (token, found) = (told.top_tokens[2 * index + place], told.of_top[2 * index + place]);
            let of_token = usize::try_from(token).map_or(0.0, |token| probabilities[token]);
            assert!((f64::from(found).exp() - expected).abs() < ENOUGH && (of_token - expected).abs() < ENOUGH);
        }
        let combination = self.choice.map_or(self.law.unwrap_or(self.combination), |choice| choice(ends));
        let count = combination.weights().len();
        for (model, found) in told.of_models[index * count..][..count].iter().enumerate() {
            let is_model = self.models[model].model().is_some();
            assert!(!found.is_nan() || !is_model || !combination.needs(model), "{model} has scored {before:?}");
            if !found.is_nan() {
                let alone = Combination::target(count, model).unwrap();
                let expected = self.next_by(before, &alone, scored)[token as usize];
                assert!((f64::from(*found).exp() - expected).abs() < ENOUGH, "{found}, not {expected}");
            }
        }
    }

    /// What the decoder does, summed over all branches.
    pub fn enumerated(&self, way: &Way) -> Found {
        let (chance, mut found) = (Enumerator::default(), Found::default());
        let mut scores = Scores::new();
        loop {
            chance.start();
            if let Some(passes) = &self.passes {
                passes.store(0, Ordering::Relaxed);
            }
            let mut decoder = self.start(way, &chance);
            let (mut out, mut ends): (Vec<i32>, Vec<End>) = (Vec::new(), Vec::new());
            loop {
                if let Some(choice) = self.choice {
                    let combination = choice(&ends);
                    let plan = plan(&self.models, combination, self.sampling, way);
                    decoder.set_combination(combination.clone(), plan).unwrap();
                }
                match decoder.round() {
                    Ok((tokens, finish)) => {
                        assert!(!tokens.is_empty() || finish == Some(Finish::Complete), "a round without a token");
                        let (tokens, start) = (tokens.to_vec(), out.len());
                        out.extend_from_slice(&tokens);
                        let wanted = if way.targets == Targets::Combined { tokens.len() } else { 0 };
                        assert_eq!(decoder.log_probabilities().of_tokens.len(), wanted);
                        self.check_log_probabilities(way, &decoder, (&out, start), &ends, &mut scores);
                        ends.push((out.len(), false));
                        if finish.is_some() {
                            break;
                        }
                        found.changes += usize::from(change_plan(&mut decoder, &self.plans));
                    }
                    // Planted by the tests of failing passes. The sequence must go on as if nothing had happened.
                    Err(error) => {
                        assert!(self.passes.is_some(), "{error:?}: {way:?}, {:?}", self.combination);
                        assert!(decoder.log_probabilities().of_tokens.is_empty());
                        ends.push((out.len(), true));
                    }
                }
            }
            assert_eq!(decoder.committed()[PROMPT.len()..], out);
            let p = chance.0.borrow().probability;
            for (position, &token) in out.iter().enumerate() {
                let ends = ends.iter().copied().take_while(|(end, _)| *end <= position).collect();
                let continuations = found.continuations.entry((out[..position].to_vec(), ends)).or_default();
                *continuations.entry(token).or_default() += p;
            }
            *found.joint.entry(out).or_default() += p;
            found.branches += 1;
            found.counters.proposed += decoder.counters().proposed;
            found.counters.accepted += decoder.counters().accepted;
            if !chance.advance() {
                return found;
            }
        }
    }

    pub fn check(&self, way: &Way) -> Found {
        let found = self.enumerated(way);
        let what = || {
            let (world, combination, sampling, stop) = (self.world, self.combination, self.sampling, self.stop_tokens);
            format!("{way:?}, {world:?}, {combination:?}, {sampling:?}, stop {stop:?}")
        };
        // With a choice, the combination depends on where rounds end, so there is no single joint distribution.
        let expected = if self.choice.is_none() { self.expected() } else { found.joint.clone() };
        for tokens in found.joint.keys().chain(expected.keys()) {
            let (f, e) = (found.joint.get(tokens).unwrap_or(&0.0), expected.get(tokens).unwrap_or(&0.0));
            assert!((f - e).abs() < ENOUGH, "{tokens:?} has probability {f}, not {e}: {}", what());
        }
        // The ends of rounds, which a caller can see, must tell nothing about the next token.
        for ((tokens, ends), continuations) in &found.continuations {
            // A failure tells where the next token was routed, unless new weights make the decoder draw the route anew.
            let failed = ends.iter().any(|(_, failed)| *failed);
            if self.passes.is_some() && (self.choice.is_none() || !failed) {
                continue;
            }
            let total: f64 = continuations.values().sum();
            for (token, p) in self.next(tokens, ends, self.sampling).into_iter().enumerate() {
                let (f, e) = (continuations.get(&(token as i32)).unwrap_or(&0.0), p * total);
                assert!(
                    (f - e).abs() < ENOUGH,
                    "after {tokens:?} in rounds to {ends:?}, {token} has probability {f}, not {e}: {}",
                    what()
                );
            }
        }
        found
    }
}

/// Does what the most cunning planner could do, depending on everything that it has seen: change the plan, decide
/// pending proposals first, or let a model catch up. Returns whether the plan changed.
pub fn change_plan(decoder: &mut Driver<&Enumerator>, plans: &[Plan]) -> bool {
    if plans.is_empty() {
        return false;
    }
    let mut hasher = std::hash::DefaultHasher::new();
    let counters = decoder.counters();
    (decoder.committed(), counters.proposed, counters.tested, counters.forwards, counters.positions).hash(&mut hasher);
    let acceptance = |acceptance: &Acceptance| acceptance.mean().to_bits();
    let estimates = decoder.observer().unwrap().estimates();
    estimates.acceptance.iter().map(acceptance).collect::<Vec<_>>().hash(&mut hasher);
    let seen = hasher.finish() as usize;
    if seen & 1024 != 0 {
        _ = decoder.probe(seen / 2048 % decoder.settings().combination.weights().len());
    }
    if decoder.has_pending() {
        if seen & 512 != 0 {
            decoder.drain();
        }
        return false;
    }
    let plan = &plans[seen % plans.len()];
    let changes = plan != decoder.plan();
    decoder.set_plan(plan.clone());
    changes
}
