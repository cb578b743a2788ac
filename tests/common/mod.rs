//! Shared by the test programs: scripted worlds of models, the oracle, and ways to decode.
#![allow(dead_code)] // each program uses a part of it

pub mod boundary;

use std::path::PathBuf;
use std::sync::Arc;

use cos::control::{Constraint, Constraints, Controls};
use cos::decode::chance::Chance;
use cos::decode::combine::{Combination, Plausibility};
use cos::decode::decoder::{Alternatives, Settings};
use cos::decode::policy::{Plan, Request, Strategy, Targets};
use cos::decode::weigh::Weigher;
use cos::engine::Engine;
use cos::engine::drive::Driver;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::error::Result;
use cos::model::Cancel;
use cos::model::scripted::Scripted;
use cos::rows::{Row, Sampler};

/// The project's folder. The variable wins over the folder of the build, because a program may run elsewhere
/// (`scripts/gpu-check`).
pub fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Makes a pool of one thread for all models of this process, unless there is a pool already.
///
/// The passes of test models are short, and tests run side by side. A second thread would mostly spin, and double the
/// time.
pub fn one_thread() {
    cos::onnx::environment(None, 1, None).expect("no test of this program asks for more threads before");
}

/// Decodes a prompt to the end of the sequence.
pub fn decode(engine: &Arc<Engine>, prompt: &[i32], options: &Options) -> Vec<i32> {
    let mut session = Session::new(engine, options).unwrap();
    session.prompt(prompt).unwrap();
    let mut tokens = Vec::new();
    loop {
        let (new, state) = session.step().unwrap();
        tokens.extend_from_slice(new);
        if state != State::Open {
            return tokens;
        }
    }
}

/// Token sequences with PyTorch's logits after each of their tokens, for an architecture of `tests/exports`.
pub struct Golden {
    pub sequences: Vec<(Vec<i32>, Vec<Vec<f32>>)>,
}

impl Golden {
    pub fn read(architecture: &str) -> Self {
        let folder = root().join("tests/exports").join(architecture);
        let text = std::fs::read_to_string(folder.join("golden.json")).unwrap();
        let about: serde_json::Value = serde_json::from_str(&text).unwrap();
        let columns = about["columns"].as_u64().unwrap() as usize;
        let bytes = std::fs::read(folder.join("golden.f32")).unwrap();
        let (values, rest) = bytes.as_chunks::<4>();
        assert!(rest.is_empty());
        let mut rows = values.chunks(columns).map(|row| row.iter().map(|&value| f32::from_le_bytes(value)).collect());
        let sequence = |tokens: &serde_json::Value| {
            let tokens: Vec<i32> = serde_json::from_value(tokens.clone()).unwrap();
            let rows = rows.by_ref().take(tokens.len()).collect();
            (tokens, rows)
        };
        Golden { sequences: about["sequences"].as_array().unwrap().iter().map(sequence).collect() }
    }
}

/// A sampler as plain numbers, so that the oracle does not depend on the library's sampler.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    pub temperature: f32,
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
}

impl Sampling {
    pub const PLAIN: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 0.0, min_p: 0.0 };
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, ..Sampling::PLAIN };

    pub fn sampler(&self) -> Sampler {
        Sampler::new(self.temperature, self.top_k as i32, self.top_p, self.min_p).unwrap()
    }
}

/// The seed of a world, unless the test chooses one.
const SEED: u64 = 0xcbf2_9ce4_8422_2325;

/// Mixes the bits of a hash.
pub fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    hash = (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    hash ^ (hash >> 32)
}

/// How the models of a world are related.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// Models that mostly agree.
    Related,
    /// Models that do not agree more than by chance.
    Unrelated,
    /// All models are the same.
    Identical,
    /// Some tokens are impossible to some models, but never all tokens to all models.
    Zeros,
    /// Each row has nearly all of its mass on one token, which differs from model to model.
    Sharp,
}

impl World {
    pub const ALL: [World; 5] = [World::Related, World::Unrelated, World::Identical, World::Zeros, World::Sharp];

    /// Writes the logits of a model after a context, a fixed function of seed, model and context. Returns the hash of
    /// the context.
    pub fn fill(self, seed: u64, model: usize, context: &[i32], row: &mut [f32]) -> u64 {
        let vocab = row.len();
        let hash = context
            .iter()
            .fold(seed, |hash, &token| (hash ^ (token as u64 + 1)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23));
        let noise = |model: usize, token: usize| {
            (mix(hash ^ ((model as u64) << 32) ^ token as u64) >> 40) as f32 / (1u64 << 24) as f32 // in [0, 1)
        };
        for (token, logit) in row.iter_mut().enumerate() {
            *logit = match self {
                World::Related => 3.0 * noise(99, token) + noise(model, token),
                World::Unrelated => 4.0 * noise(model, token),
                World::Identical => 3.0 * noise(99, token),
                World::Zeros if token != context.len() % vocab && noise(model, token) < 0.4 => f32::NEG_INFINITY,
                World::Zeros => 2.0 * noise(model + 7, token),
                World::Sharp if token == (context.len() + model) % vocab => 6.0,
                World::Sharp => noise(model, token),
            };
        }
        hash
    }

    /// The same as a new row, with the usual seed.
    pub fn logits(self, model: usize, context: &[i32], vocab: usize) -> Vec<f32> {
        let mut row = vec![0.0; vocab];
        self.fill(SEED, model, context, &mut row);
        row
    }

    pub fn model(self, model: usize, vocab: usize) -> Scripted {
        Scripted::new(vocab, move |context, row| {
            self.fill(SEED, model, context, row);
            Ok(())
        })
    }

    pub fn models(self, count: usize, vocab: usize) -> Vec<Participant> {
        (0..count).map(|model| Arc::new(self.model(model, vocab).with_max_pass(3)).into()).collect()
    }
}

/// The oracle: the distribution of the next token, computed from its definition in double precision.
pub fn oracle(rows: &[Vec<f32>], combination: &Combination, sampling: Sampling) -> Vec<f64> {
    oracle_with(rows, combination, sampling, &|_| ())
}

/// The same, where the scores that the sampler sees are changed before.
pub fn oracle_with(
    rows: &[Vec<f32>],
    combination: &Combination,
    sampling: Sampling,
    change: &dyn Fn(&mut [f64]),
) -> Vec<f64> {
    let weights: Vec<f64> = combination.weights().iter().map(|&w| f64::from(w)).collect();
    let wide = |row: &Vec<f32>| -> Vec<f64> { row.iter().map(|&l| f64::from(l)).collect() };
    let sum = |rows: &[Vec<f64>]| -> Vec<f64> {
        let used = || rows.iter().zip(&weights).filter(|(_, w)| **w != 0.0);
        (0..rows[0].len())
            .map(|i| {
                let dead = used().any(|(row, _)| row[i] == f64::NEG_INFINITY);
                if dead { f64::NEG_INFINITY } else { used().map(|(row, w)| w * row[i]).sum() }
            })
            .collect()
    };
    let changed = |mut scores: Vec<f64>| {
        change(&mut scores);
        scores
    };
    match combination {
        Combination::Mixture { .. } if sampling.temperature == 0.0 => {
            point(&sum(&rows.iter().map(|row| softmax(&changed(wide(row)), 1.0)).collect::<Vec<_>>()))
        }
        Combination::Mixture { .. } => {
            sum(&rows.iter().map(|row| sampled(&changed(wide(row)), sampling)).collect::<Vec<_>>())
        }
        Combination::Logits { plausibility, .. } => {
            let mut scores = sum(&rows.iter().map(wide).collect::<Vec<_>>());
            if let Some(Plausibility { model, alpha }) = plausibility {
                let mut possible = vec![0.0; scores.len()];
                change(&mut possible);
                let p = softmax(&wide(&rows[*model]), 1.0);
                let best = |p: &mut dyn Iterator<Item = f64>| f64::from(*alpha) * p.fold(0.0, f64::max);
                let left = || p.iter().copied().zip(&possible).filter(|(_, s)| **s > f64::NEG_INFINITY).map(|(p, _)| p);
                let mut floor = best(&mut p.iter().copied());
                if left().all(|p| p < floor) {
                    floor = best(&mut left()); // nothing plausible is possible
                }
                scores.iter_mut().zip(&p).filter(|(_, p)| **p < floor).for_each(|(s, _)| *s = f64::NEG_INFINITY);
            }
            sampled(&changed(scores), sampling)
        }
        Combination::Custom { .. } => {
            // The function itself is trusted here. Other tests compare it with the combination that it imitates.
            let mut scores = vec![0.0; rows[0].len()];
            combination.scores(|model| Row::Host(&rows[model]), &mut scores, |_| ()).unwrap();
            sampled(&changed(wide(&scores)), sampling)
        }
    }
}

fn softmax(scores: &[f64], temperature: f64) -> Vec<f64> {
    let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = scores.iter().map(|s| ((s - max) / temperature).exp()).collect();
    exps.iter().map(|e| e / exps.iter().sum::<f64>()).collect()
}

/// All of the mass on the best token; on the first one if several are equal.
fn point(scores: &[f64]) -> Vec<f64> {
    let max = scores.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
    let best = scores.iter().position(|&s| s == max).unwrap();
    (0..scores.len()).map(|i| f64::from(u8::from(i == best))).collect()
}

/// The distribution that a sampler makes of scores: temperature, then `top_k`, `top_p` and `min_p`.
fn sampled(scores: &[f64], sampling: Sampling) -> Vec<f64> {
    if sampling.temperature == 0.0 {
        return point(scores);
    }
    let mut p = softmax(scores, f64::from(sampling.temperature));
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    let keep = |p: &mut Vec<f64>, kept: &[usize]| {
        let total: f64 = kept.iter().map(|&i| p[i]).sum();
        *p = (0..p.len()).map(|i| if kept.contains(&i) { p[i] / total } else { 0.0 }).collect();
    };
    if sampling.top_k > 0 {
        keep(&mut p, &order[..sampling.top_k.min(order.len())]);
    }
    if sampling.top_p > 0.0 && sampling.top_p < 1.0 {
        let mut running = 0.0;
        let nucleus = order.iter().take_while(|&&i| {
            let open = running < f64::from(sampling.top_p);
            running += p[i];
            open
        });
        let nucleus: Vec<usize> = nucleus.copied().collect();
        keep(&mut p, &nucleus);
    }
    let floor = f64::from(sampling.min_p) * p.iter().cloned().fold(0.0, f64::max);
    let kept: Vec<usize> = (0..p.len()).filter(|&i| p[i] >= floor).collect();
    keep(&mut p, &kept);
    p
}

/// A strategy with its targets and proposal lengths.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    pub strategy: Strategy,
    pub targets: Targets,
    pub lengths: Vec<i32>,
}

impl Way {
    pub fn new(strategy: Strategy, targets: Targets, lengths: &[i32]) -> Self {
        Way { strategy, targets, lengths: lengths.to_vec() }
    }
}

/// The prompt of every scripted sequence.
pub const PROMPT: [i32; 5] = [1, 0, 0, 1, 1];

/// Combinations of each kind.
pub fn combinations(models: usize) -> Vec<Combination> {
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

/// Every strategy with several proposal lengths and both kinds of targets, if routing is possible.
pub fn ways(models: usize, combination: &Combination, sampling: Sampling) -> Vec<Way> {
    let lengths: &[&[i32]] = match models {
        1 => &[&[1], &[2]],
        2 => &[&[1, 1], &[2, 1], &[0, 3], &[1, 2]],
        3 => &[&[1, 1, 1], &[2, 0, 1], &[1, 2, 2]],
        _ => &[&[1, 1, 1, 1]],
    };
    ways_of(lengths, combination, sampling)
}

pub fn ways_of(lengths: &[&[i32]], combination: &Combination, sampling: Sampling) -> Vec<Way> {
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

pub const SAMPLINGS: [Sampling; 7] = [
    Sampling::PLAIN,
    Sampling::GREEDY,
    Sampling { temperature: 0.7, ..Sampling::PLAIN },
    Sampling { temperature: 1.3, top_k: 2, ..Sampling::PLAIN },
    Sampling { top_p: 0.75, ..Sampling::PLAIN },
    Sampling { temperature: 1.5, min_p: 0.4, ..Sampling::PLAIN },
    // The order of the filters matters here.
    Sampling { temperature: 0.9, top_k: 2, top_p: 0.6, min_p: 0.1 },
];

/// The plan of a way to decode a combination.
pub fn plan(
    models: &[impl Clone + Into<Participant>],
    combination: &Combination,
    sampling: Sampling,
    way: &Way,
) -> Plan {
    let costs: Vec<u64> = models.iter().map(|model| model.clone().into().cost()).collect();
    let request = Request {
        strategy: way.strategy,
        targets: Some(way.targets),
        lengths: Some(&way.lengths),
        combination,
        greedy: sampling.temperature == 0.0,
        log_probabilities: way.targets == Targets::Combined,
        costs: &costs,
    };
    Plan::new(&request).unwrap()
}

pub fn decoder<C: Chance>(
    models: &[impl Clone + Into<Participant>],
    combination: &Combination,
    sampling: Sampling,
    way: &Way,
    stop_tokens: &[i32],
    max_tokens: usize,
    chance: C,
) -> Driver<C> {
    let until = (stop_tokens, max_tokens);
    controlled_decoder(models, combination, sampling, way, (&Controls::default(), None), until, chance)
}

/// A decoder of a request with controls, until a stop token or so many tokens.
pub fn controlled_decoder<C: Chance>(
    models: &[impl Clone + Into<Participant>],
    combination: &Combination,
    sampling: Sampling,
    way: &Way,
    (controls, weigher): (&Controls, Option<&Weigher>),
    (stop_tokens, max_tokens): (&[i32], usize),
    chance: C,
) -> Driver<C> {
    let cancel = Arc::new(Cancel::default());
    let settings = Settings {
        combination: combination.clone(),
        sampler: sampling.sampler(),
        weigher: weigher.cloned(),
        controls: controls.clone(),
        stop_tokens: stop_tokens.to_vec(),
        max_tokens,
        log_probabilities: way.targets == Targets::Combined,
        alternatives: Alternatives { top: 2, before: false, of_models: true },
    };
    let plan = plan(models, combination, sampling, way);
    let participants: Vec<Participant> = models.iter().cloned().map(Into::into).collect();
    Driver::new(&participants, &cancel, settings, plan, chance).unwrap()
}

/// Writes the mask behind so many tokens.
type MaskByLength = dyn Fn(usize, &mut [u32]) -> Result<()> + Send + Sync;

/// A constraint that knows how many tokens the text has.
#[derive(Clone)]
pub struct ByLength {
    mask: Arc<MaskByLength>,
    calls_back: bool,
    length: usize,
}

impl ByLength {
    /// One by a function of the caller, which writes the mask behind so many tokens.
    pub fn new(mask: impl Fn(usize, &mut [u32]) -> Result<()> + Send + Sync + 'static) -> Self {
        ByLength { mask: Arc::new(mask), calls_back: true, length: 0 }
    }

    /// The same, as if it called no function of the caller.
    pub fn of_the_library(self) -> Self {
        ByLength { calls_back: false, ..self }
    }

    /// Controls that ask for it, besides others.
    pub fn with(&self, controls: Controls) -> Controls {
        let start = self.clone();
        Controls { constraint: Some(Constraints::new(move || Box::new(start.clone()))), ..controls }
    }
}

impl Constraint for ByLength {
    fn reset(&mut self) -> Result<()> {
        self.length = 0;
        Ok(())
    }

    fn push(&mut self, _: i32) -> Result<()> {
        self.length += 1;
        Ok(())
    }

    fn pop(&mut self, tokens: usize) -> Result<()> {
        self.length -= tokens;
        Ok(())
    }

    fn mask(&mut self, mask: &mut [u32]) -> Result<()> {
        (self.mask)(self.length, mask)
    }

    fn may_end(&self) -> bool {
        false
    }

    fn is_complete(&self) -> bool {
        false
    }

    fn calls_back(&self) -> bool {
        self.calls_back
    }
}
