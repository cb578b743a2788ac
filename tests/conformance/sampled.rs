//! The joint distribution of several tokens, drawn with the real random numbers, compared with the oracle's: for every
//! combination, strategy, length, sampler and kind of targets, and for sequences that end early.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cos::control::Controls;
use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::participant::Participant;

use super::request::Request;
use super::results::{Comparison, Section};
use super::tables::{Table, Tree};
use super::{Progress, STRICTEST, parallel_until};
use crate::common::{
    PROMPT, SAMPLINGS, Sampling, Way, World, combinations, controlled_decoder, oracle, oracle_with, ways, ways_of,
};

/// Tokens in the joint distributions.
pub const TOKENS: usize = 4;

/// How a sequence ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// After four tokens.
    Limit,
    /// After four tokens, or with a stop token.
    StopToken,
    /// At the end of the models' context.
    Context,
}

/// One configuration.
#[derive(Debug, Clone)]
pub struct Case {
    pub world: World,
    pub combination: Combination,
    pub sampling: Sampling,
    pub way: Way,
    pub end: End,
    /// Whether the last model, of weight 0, is a look-up.
    pub look_up: bool,
    /// What is asked of the text.
    pub request: Option<Request>,
}

impl Case {
    pub fn name(&self) -> String {
        let Case { world, combination, sampling, way, end, look_up, request } = self;
        let mut name = format!("{world:?}, {combination:?}, {sampling:?}, {way:?}, {end:?}");
        if *look_up {
            name += ", look-up";
        }
        if let Some(request) = request {
            name += &format!(", {request:?}");
        }
        name
    }

    fn stop_tokens(&self) -> &[i32] {
        if self.end == End::StopToken { &[1] } else { &[] }
    }

    fn tree(&self) -> Tree {
        // Four models get fewer tokens. Otherwise too few draws would fall into each cell.
        Tree { vocab: if self.combination.weights().len() > 3 { 2 } else { 3 }, depth: TOKENS }
    }

    pub fn models(&self) -> Vec<Participant> {
        let count = self.combination.weights().len();
        let model = |model: usize| -> Participant {
            if self.look_up && model == count - 1 {
                return Participant::LookUp("ngram".into());
            }
            let table = Table::new(self.world, model, &PROMPT, self.tree());
            let table = if self.end == End::Context { table.with_context_length(PROMPT.len() + TOKENS) } else { table };
            Arc::new(table).into()
        };
        (0..count).map(model).collect()
    }

    /// The probability of each sequence, by the number of its context; 0 if the sequence does not end there.
    pub fn expected(&self) -> Vec<f64> {
        let tree = self.tree();
        let mut reached = vec![0.0; tree.nodes()];
        reached[Tree::ROOT] = 1.0;
        for (node, context) in tree.contexts().iter().enumerate() {
            let ended = context.last().is_some_and(|last| self.stop_tokens().contains(last));
            if context.len() == TOKENS || ended || reached[node] == 0.0 {
                continue;
            }
            let rows = |model: usize| self.world.logits(model, &[&PROMPT[..], context].concat(), tree.vocab);
            let rows: Vec<Vec<f32>> = (0..self.combination.weights().len()).map(rows).collect();
            let here = std::mem::take(&mut reached[node]);
            for (token, p) in self.next(&rows, context).into_iter().enumerate() {
                reached[tree.child(node, token as i32)] = here * p;
            }
        }
        reached
    }

    /// The distribution of the token behind a text.
    fn next(&self, rows: &[Vec<f32>], text: &[i32]) -> Vec<f64> {
        let Case { combination, sampling, request, .. } = self;
        let plain = || oracle(rows, combination, *sampling);
        let Some(request) = request else { return plain() };
        let changed = oracle_with(rows, combination, *sampling, &|scores| request.change(text, scores));
        let share = request.share();
        plain().iter().zip(changed).map(|(plain, changed)| (1.0 - share) * plain + share * changed).collect()
    }

    /// Draws sequences, and counts them by the numbers of their contexts. Each draw is a session of its own.
    pub fn draw(&self, seeds: impl Iterator<Item = u64>) -> Vec<u64> {
        let (models, tree) = (self.models(), self.tree());
        let mut counts = vec![0; tree.nodes()];
        let max_tokens = if self.end == End::Context { 0 } else { TOKENS };
        let (stop_tokens, controls) =
            (self.stop_tokens(), self.request.map_or_else(Controls::default, Request::controls));
        for seed in seeds {
            let chance = CounterRng::new(seed);
            let Case { combination, sampling, way, .. } = self;
            let (controls, until) = ((&controls, None), (stop_tokens, max_tokens));
            let mut decoder = controlled_decoder(&models, combination, *sampling, way, controls, until, chance);
            decoder.prompt(&PROMPT).expect("a prompt that fits");
            let mut rounds = 1;
            while decoder.round().expect("models that never fail").1.is_none() {
                assert!(rounds < TOKENS, "a round without a token");
                rounds += 1;
            }
            counts[tree.node(&decoder.committed()[PROMPT.len()..])] += 1;
        }
        counts
    }

    /// Draws and compares. `stream` makes the seeds differ from those of other cases.
    pub fn compare(&self, stream: u64, draws: u64) -> Comparison {
        // Greedy decoding needs one draw.
        let draws = if self.sampling.temperature == 0.0 { 20 } else { draws };
        let seeds = (0..draws).map(|draw| (stream << 32) + draw);
        let observed = match catch_unwind(AssertUnwindSafe(|| self.draw(seeds))) {
            Ok(observed) => observed,
            Err(panic) => return Comparison::stopped(&self.name(), panic.as_ref()),
        };
        let expected = self.expected();
        let cells = self.tree().contexts().into_iter().zip(expected).zip(observed);
        let cells = cells.filter(|((_, p), count)| *p > 0.0 || *count > 0);
        Comparison::new(self.name(), cells.map(|((tokens, p), count)| (format!("{tokens:?}"), p, count)))
    }
}

/// Every configuration, in a fixed order.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |combination: &Combination, look_up: bool, ways: &dyn Fn(Sampling) -> Vec<Way>| {
        for world in World::ALL {
            // Tokens that are impossible to several models may leave a sum of logits without any token.
            if world == World::Zeros && !matches!(combination, Combination::Mixture { .. }) {
                continue;
            }
            for sampling in SAMPLINGS {
                for end in [End::Limit, End::StopToken, End::Context] {
                    let mut ways = ways(sampling);
                    for targets in [Targets::Combined, Targets::Routed] {
                        if ways.iter().any(|way| way.targets == targets) {
                            ways.push(Way::new(Strategy::Auto, targets, &vec![1; combination.weights().len()]));
                        }
                    }
                    let combination = || combination.clone();
                    let case =
                        |way| Case { world, combination: combination(), sampling, way, end, look_up, request: None };
                    cases.extend(ways.into_iter().map(case));
                }
            }
        }
    };
    for models in 1..=4 {
        for combination in &combinations(models) {
            add(combination, false, &|sampling| ways(models, combination, sampling));
        }
    }
    let drafted = [
        (Combination::mixture(&[1.0, 0.0]), &[&[1, 1][..], &[0, 3]][..]),
        (Combination::mixture(&[0.6, 0.4, 0.0]), &[&[0, 0, 2], &[1, 1, 3]]),
        (Combination::contrastive(3, 0.3, 0.2), &[&[0, 0, 2], &[2, 1, 1]]),
    ];
    for (combination, lengths) in drafted {
        let combination = combination.expect("weights that are right");
        add(&combination, true, &|sampling| ways_of(lengths, &combination, sampling));
    }
    cases.extend(Request::ALL.into_iter().flat_map(requests));
    cases
}

/// Configurations of a kind of controls.
fn requests(request: Request) -> Vec<Case> {
    let mut cases = Vec::new();
    for combination in combinations(2) {
        // To the oracle, what is excluded is banned.
        let is_judged = matches!(combination, Combination::Logits { plausibility: Some(_), .. });
        if request == Request::Exclusion && is_judged {
            continue;
        }
        for world in [World::Related, World::Unrelated] {
            for sampling in [SAMPLINGS[0], SAMPLINGS[3], SAMPLINGS[6]] {
                let mut ways = ways(2, &combination, sampling);
                ways.push(Way::new(Strategy::Auto, Targets::Combined, &[1, 1]));
                let (combination, end, request) = (&combination, End::Limit, Some(request));
                let case =
                    |way| Case { world, combination: combination.clone(), sampling, way, end, look_up: false, request };
                cases.extend(ways.into_iter().map(case));
            }
        }
    }
    cases
}

/// How many configurations and draws there are.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// One of so many configurations is drawn from.
    pub stride: usize,
    /// The number of draws.
    pub draws: u64,
    /// One of so many sampled configurations gets `deep_draws` instead; 0 means none.
    pub deep_stride: usize,
    pub deep_draws: u64,
    /// Shifts all seeds.
    pub seed: u64,
    /// Whether to stop at the first comparison that does not fit.
    pub first: bool,
}

impl Effort {
    /// For `make test`.
    pub const QUICK: Effort = Effort { stride: 23, draws: 5_000, deep_stride: 0, deep_draws: 0, seed: 0, first: false };
    /// For `make conformance`.
    pub const LONG: Effort =
        Effort { stride: 1, draws: 5_000, deep_stride: 199, deep_draws: 1_000_000, seed: 0, first: false };
    /// For a library with a planted fault.
    pub const PROBE: Effort = Effort { stride: 161, ..Effort::QUICK };
}

/// Repeats the comparison at an index of the section.
pub fn repeat(index: usize, effort: Effort, seed: u64) -> Comparison {
    let index = index * effort.stride;
    cases()[index].compare(stream(index, seed), effort.draws)
}

/// The seeds of a configuration, which no other one has.
fn stream(index: usize, seed: u64) -> u64 {
    seed * 100_000 + index as u64
}

pub fn run(effort: Effort, progress: &dyn Progress) -> Section {
    let all = cases();
    let total = all.len();
    let chosen: Vec<(usize, Case)> = all.into_iter().enumerate().step_by(effort.stride).collect();
    progress.start("joint distributions", chosen.len() as u64);
    let deep = AtomicUsize::new(0);
    let draw = |&(index, ref case): &(usize, Case)| {
        let is_deep =
            effort.deep_stride > 0 && index.is_multiple_of(effort.deep_stride) && case.sampling.temperature > 0.0;
        deep.fetch_add(usize::from(is_deep), Ordering::Relaxed);
        let draws = if is_deep { effort.deep_draws } else { effort.draws };
        let comparison = case.compare(stream(index, effort.seed), draws);
        progress.advance();
        comparison
    };
    let comparisons = parallel_until(&chosen, draw, |comparison| effort.first && !comparison.fits(STRICTEST));
    let draws: u64 = comparisons.iter().map(|c| c.fit.draws).sum();
    let deep = deep.into_inner();
    let deepest = match deep {
        0 => String::new(),
        _ => format!(" ({deep} of them with {} draws each)", effort.deep_draws),
    };
    Section {
        title: "Joint distributions".into(),
        about: "Scripted models whose distributions depend on the whole context: related, unrelated, identical, with \
                zeros, nearly deterministic; one to four of them, and look-ups. Every combination, strategy, γ, \
                sampler setting and kind of targets, with sequences that end after four tokens, at a stop token, or \
                where the context is full; and with bias, penalties, a constraint, or excluded top choices. Each draw \
                is a session with its own seed; the four tokens together are compared with the oracle, which computes \
                their joint distribution by its definition in double precision."
            .into(),
        headline: format!("{} of {total} configurations{deepest}, {draws} draws", chosen.len()),
        comparisons,
        ..Section::default()
    }
}
