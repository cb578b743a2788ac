//! Shared routes: each session has the distribution of its own weights, whoever shares its passes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cos::config::{Combine, RoutesName};
use cos::control::Controls;
use cos::decode::chance::{Chance, Key, Purpose};
use cos::decode::combine::Combination;
use cos::decode::decoder::{Alternatives, Common, Decoder, Need, Settings, Step, Workspace};
use cos::decode::policy::{Plan, Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::error::Error;
use cos::model::Cancel;
use cos::rows::Weights;

use super::company::models;
use super::enumeration::{ENOUGH, Enumerator, Joint};
use crate::common::{Sampling, Way, World, oracle, plan, ways};

/// The random outcomes of one session among those of all.
struct Own<'a>(&'a Enumerator, u32);

impl Own<'_> {
    fn key(&self, key: Key) -> Key {
        Key { epoch: key.epoch + 1000 * self.1, ..key }
    }
}

impl Chance for Own<'_> {
    fn accept(&self, key: Key, probability: f64) -> bool {
        self.0.accept(self.key(key), probability)
    }

    fn pick<W: Weights + ?Sized>(&self, key: Key, weights: &W) -> Result<usize, Error> {
        self.0.pick(self.key(key), weights)
    }
}

/// What the caller of the sessions does.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Caller {
    /// Nothing else.
    Steps,
    /// Cancels the first session as soon as a round needs the second model, once for each round.
    CancelsSlowRounds,
    /// Cancels the first session when a pass has handed out a number that leads to the second model, which the other
    /// sessions tell; once for each round.
    CancelsByNumber,
    /// Begins with the second session after the first round of the first one.
    BeginsLater,
    /// Plans by what it has seen of the first session, for the round after the next one of the second.
    Plans,
}

const VOCAB: usize = 2;

struct Company<'a> {
    models: Vec<Participant>,
    combinations: &'a [Combination],
    prompts: &'a [&'a [i32]],
    tokens: &'a [usize],
    /// Where the weights of some session lead to another model.
    limits: Vec<f64>,
}

impl<'a> Company<'a> {
    fn new(combinations: &'a [Combination], prompts: &'a [&'a [i32]], tokens: &'a [usize]) -> Self {
        let mut limits = vec![0.0, 1.0];
        for combination in combinations {
            let mut sum = 0.0;
            limits.extend(combination.weights().iter().map(|&weight| {
                sum += f64::from(weight);
                sum
            }));
        }
        limits.sort_by(f64::total_cmp);
        limits.retain(|limit| *limit <= 1.0);
        limits.dedup_by(|a, b| (*a - *b).abs() < 1e-6);
        Company { models: World::Related.models(2, VOCAB), combinations, prompts, tokens, limits }
    }

    fn decoder<'b>(&self, index: usize, way: &Way, chance: &'b Enumerator) -> Decoder<Own<'b>> {
        let settings = Settings {
            combination: self.combinations[index].clone(),
            sampler: Sampling::PLAIN.sampler(),
            weigher: None,
            controls: Controls::default(),
            stop_tokens: Vec::new(),
            max_tokens: self.tokens[index],
            log_probabilities: false,
            alternatives: Alternatives::default(),
        };
        let cancel = Arc::<Cancel>::default();
        let proposers = self.models.iter().map(|model| model.start(&cancel).unwrap()).collect();
        let plan = plan(&self.models, &self.combinations[index], Sampling::PLAIN, way);
        let mut decoder = Decoder::new(proposers, settings, plan, Own(chance, 1 + index as u32));
        decoder.share_routes(true);
        decoder.prompt(self.prompts[index]).unwrap();
        decoder
    }

    /// A number that a pass hands out: somewhere between two limits.
    fn number(&self, chance: &Enumerator, pass: usize) -> f64 {
        let widths = self.limits.windows(2).map(|pair| pair[1] - pair[0]).enumerate();
        let piece = chance.choose(Key { position: pass, purpose: Purpose::Route, epoch: 0 }, widths);
        (self.limits[piece] + self.limits[piece + 1]) / 2.0
    }

    /// Run all sessions to their ends, with one pass of each model for all that need it. Returns the texts, and how
    /// many sessions shared a pass with others.
    fn run(&self, way: &Way, caller: Caller, chance: &Enumerator) -> (Vec<Vec<i32>>, usize) {
        let count = self.tokens.len();
        let mut decoders: Vec<_> = (0..count).map(|index| self.decoder(index, way, chance)).collect();
        let mut workspace = Workspace::new(VOCAB);
        let (mut ended, mut rounds) = (vec![false; count], vec![0; count]);
        let (mut passes, mut shared, mut cancelled) = (0, 0, 0);
        let mut next_plan: Option<Plan> = None;
        while ended.contains(&false) {
            let waits = |index: usize, rounds: &[usize]| caller == Caller::BeginsLater && index == 1 && rounds[0] == 0;
            for index in 0..count {
                if waits(index, &rounds) {
                    continue;
                }
                while !ended[index] && decoders[index].step(&mut workspace).unwrap() != Step::Run {
                    ended[index] = decoders[index].round().1.is_some();
                    rounds[index] += 1;
                    if caller == Caller::Plans && index == 1 && !decoders[1].has_pending() {
                        // What was chosen a round ago, by what the other session had needed until then.
                        if let Some(plan) = next_plan.take() {
                            decoders[1].set_plan(plan);
                        }
                        let targets = match decoders[0].needs().first() {
                            Some(need) if need.model == 1 => Targets::Routed,
                            _ => Targets::Combined,
                        };
                        next_plan = Some(Plan { targets, ..decoders[1].plan().clone() });
                    }
                }
            }
            let is_slow = decoders[0].needs().iter().any(|need| need.model == 1);
            if caller == Caller::CancelsSlowRounds && !ended[0] && is_slow && cancelled <= rounds[0] {
                cancelled = rounds[0] + 1;
                decoders[0].failed(&mut workspace);
                continue;
            }
            for (model, participant) in self.models.iter().enumerate() {
                let need = |decoder: &Decoder<_>| decoder.needs().iter().find(|need| need.model == model).copied();
                let running = |index: &usize| !ended[*index] && !waits(*index, &rounds);
                let needs: Vec<(usize, Need)> =
                    (0..count).filter(running).filter_map(|index| Some((index, need(&decoders[index])?))).collect();
                let number = (needs.len() > 1).then(|| {
                    passes += 1;
                    shared += needs.len();
                    self.number(chance, passes)
                });
                for (index, need) in needs {
                    let mut pass = [decoders[index].pass(need)];
                    let report = participant.model().unwrap().forward(&mut pass).unwrap();
                    decoders[index].ran(need, report, false);
                    decoders[index].had_company(Common { elapsed: report.elapsed, number });
                    let is_slow = number.is_some_and(|number| number > 0.4);
                    if caller == Caller::CancelsByNumber && index == 0 && is_slow && cancelled <= rounds[0] {
                        cancelled = rounds[0] + 1;
                        decoders[0].failed(&mut workspace);
                    }
                }
            }
        }
        let text = |(decoder, prompt): (&Decoder<_>, &&[i32])| decoder.committed()[prompt.len()..].to_vec();
        (decoders.iter().zip(self.prompts).map(text).collect(), shared)
    }

    /// The probabilities of all outcomes, and how many sessions shared passes in all of them.
    fn joint(&self, way: &Way, caller: Caller) -> (BTreeMap<Vec<Vec<i32>>, f64>, usize) {
        let (chance, mut joint, mut shared) = (Enumerator::default(), BTreeMap::new(), 0);
        loop {
            chance.start();
            let (texts, count) = self.run(way, caller, &chance);
            shared += count;
            *joint.entry(texts).or_default() += chance.0.borrow().probability;
            if !chance.advance() {
                return (joint, shared);
            }
        }
    }

    /// Check that each session has the distribution that it has alone.
    fn check(&self, way: &Way, caller: Caller) {
        let (joint, shared) = self.joint(way, caller);
        assert!(shared > 0, "nobody shared a pass: {way:?}");
        for index in 0..self.tokens.len() {
            let mut found = Joint::new();
            joint.iter().for_each(|(texts, p)| *found.entry(texts[index].clone()).or_default() += p);
            let expected = expected(&self.combinations[index], self.prompts[index], self.tokens[index], VOCAB);
            for (text, p) in &expected {
                let f = found.get(text).unwrap_or(&0.0);
                assert!((f - p).abs() < ENOUGH, "session {index}, {text:?}: {f}, not {p}: {way:?}, {caller:?}");
            }
        }
    }
}

/// The oracle's joint distribution of a text.
fn expected(combination: &Combination, prompt: &[i32], tokens: usize, vocab: usize) -> Joint {
    let mut joint = Joint::from([(Vec::new(), 1.0)]);
    for _ in 0..tokens {
        let longer = joint.into_iter().flat_map(|(text, p)| {
            let context = [prompt, &text[..]].concat();
            let rows: Vec<_> = (0..2).map(|model| World::Related.logits(model, &context, vocab)).collect();
            let next = oracle(&rows, combination, Sampling::PLAIN).into_iter().enumerate();
            next.map(move |(token, q)| ([&text[..], &[token as i32]].concat(), p * q))
        });
        joint = longer.collect();
    }
    joint
}

fn mixtures(weights: &[[f32; 2]]) -> Vec<Combination> {
    weights.iter().map(|weights| Combination::mixture(weights).unwrap()).collect()
}

fn routed(combination: &Combination) -> impl Iterator<Item = Way> + use<> {
    ways(2, combination, Sampling::PLAIN).into_iter().filter(|way| way.targets == Targets::Routed)
}

#[test]
fn shared_routes_change_no_distribution() {
    let combinations = mixtures(&[[0.4, 0.6], [0.7, 0.3]]);
    let company = Company::new(&combinations, &[&[0, 1], &[1]], &[2, 2]);
    for way in routed(&combinations[0]) {
        for caller in [Caller::Steps, Caller::CancelsSlowRounds, Caller::CancelsByNumber, Caller::BeginsLater] {
            company.check(&way, caller);
        }
    }
    let company = Company::new(&combinations, &[&[0, 1], &[1]], &[3, 2]);
    let standard = Way::new(Strategy::Standard, Targets::Routed, &[1, 1]);
    company.check(&standard, Caller::Plans);
    company.check(&standard, Caller::Steps);
    company.check(&standard, Caller::CancelsSlowRounds);
    company.check(&standard, Caller::CancelsByNumber);
    let combinations = mixtures(&[[0.4, 0.6], [0.7, 0.3], [0.5, 0.5]]);
    Company::new(&combinations, &[&[0, 1], &[1], &[0]], &[2, 2, 1]).check(&standard, Caller::CancelsSlowRounds);
}

/// The dependence that the documents speak of: two sessions of equal weights need the same model more often than not.
#[test]
fn sessions_that_share_routes_depend_on_each_other() {
    let combinations = mixtures(&[[0.5, 0.5], [0.5, 0.5]]);
    let company = Company::new(&combinations, &[&[0, 1], &[1]], &[3, 3]);
    let (joint, _) = company.joint(&Way::new(Strategy::Standard, Targets::Routed, &[1, 1]), Caller::Steps);
    let alone: Vec<Joint> =
        (0..2).map(|index| expected(&combinations[index], company.prompts[index], 3, VOCAB)).collect();
    let distance: f64 = alone[0]
        .iter()
        .flat_map(|(one, p)| alone[1].iter().map(move |(other, q)| (vec![one.clone(), other.clone()], p * q)))
        .map(|(texts, product)| (joint.get(&texts).unwrap_or(&0.0) - product).abs() / 2.0)
        .sum();
    println!("total variation distance to independent sessions: {distance:.4}");
    assert!((0.002..0.2).contains(&distance), "{distance}");
}

const WEIGHTS: [[f32; 2]; 4] = [[0.5, 0.5], [0.5, 0.5], [0.2, 0.8], [0.7, 0.3]];
const PROMPTS: [&[i32]; 4] = [&[0], &[1], &[2], &[0, 1]];

/// One of four sessions, of two tokens.
fn session(engine: &Arc<Engine>, index: usize, seed: u64) -> Session {
    let options = Options {
        sampler: Sampling::PLAIN.sampler(),
        weights: Some(WEIGHTS[index].to_vec()),
        seed,
        max_tokens: 2,
        routes: seed.is_multiple_of(2).then_some(RoutesName::Shared), // which is what auto does by itself
        ..Options::default()
    };
    let mut session = Session::new(engine, &options).unwrap();
    session.prompt(PROMPTS[index]).unwrap();
    session
}

fn text(index: usize, session: &Session) -> Vec<i32> {
    session.decoder().committed()[PROMPTS[index].len()..].to_vec()
}

/// Four sessions that one thread drives. They begin in different calls, are cancelled now and then, and some leave
/// after their first token.
fn driven(engine: &Arc<Engine>, seed: u64) -> Vec<(usize, Vec<i32>)> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut sessions: Vec<(usize, u32, Session)> =
        (0..4).map(|index| (index, random.u32(0..3), session(engine, index, seed + index as u64))).collect();
    let leaves: Vec<bool> = (0..4).map(|_| random.u32(0..5) == 0).collect();
    let mut done = Vec::new();
    for call in 0.. {
        let mut running: Vec<&mut Session> =
            sessions.iter_mut().filter(|(_, start, _)| *start <= call).map(|(.., session)| session).collect();
        if random.u32(0..4) == 0 {
            running.iter().take(1).for_each(|session| session.cancel().request());
        }
        step_many(&mut running, |_, state| assert!(state.is_ok()));
        sessions.retain(|(index, _, session)| {
            let text = text(*index, session);
            let (ends, leaves) = (text.len() == 2, leaves[*index] && text.len() == 1);
            done.extend(ends.then_some((*index, text)));
            !ends && !leaves
        });
        if sessions.is_empty() {
            break;
        }
    }
    done
}

/// Four sessions of four threads.
fn threaded(engine: &Arc<Engine>, seed: u64) -> Vec<(usize, Vec<i32>)> {
    std::thread::scope(|scope| {
        let run = |index: usize| {
            let mut session = session(engine, index, seed + index as u64);
            while session.step().unwrap().1 == State::Open {}
            (index, text(index, &session))
        };
        let threads: Vec<_> = (0..4).map(|index| scope.spawn(move || run(index))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

/// Sessions of an engine that come and go.
#[test]
fn draws_with_shared_routes_follow_each_sessions_distribution() {
    let shared = Arc::new(AtomicUsize::new(0));
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    let engine = Arc::new(Engine::new(models(3, &shared), combine, Vec::new(), None).unwrap());
    let mut counts = vec![BTreeMap::<Vec<i32>, f64>::new(); 4];
    for batch in 0..4000 {
        let way = if batch % 2 == 0 { driven } else { threaded };
        way(&engine, 4 * batch).into_iter().for_each(|(index, text)| *counts[index].entry(text).or_default() += 1.0);
    }
    for (index, counts) in counts.into_iter().enumerate() {
        let draws: f64 = counts.values().sum();
        let combination = Combination::mixture(&WEIGHTS[index]).unwrap();
        let of = |(text, p): (Vec<i32>, f64)| (counts.get(&text).unwrap_or(&0.0) - p * draws).powi(2) / (p * draws);
        let chi2: f64 = expected(&combination, PROMPTS[index], 2, 3).into_iter().map(of).sum();
        assert!(draws > 2000.0, "{draws}");
        // 8 degrees of freedom: 42 is exceeded with a probability of 1e-6.
        assert!(chi2 < 42.0, "session {index}: chi-square {chi2}");
    }
    assert!(shared.load(Ordering::Relaxed) > 1000, "there was no company");
}

/// Sessions of one prompt, forks, and those who ask for it have numbers of their own.
#[test]
fn who_shares_routes() {
    let models = vec![World::Related.model(0, 3).with_batches(12), World::Related.model(1, 3).with_batches(12)];
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    let models = models.into_iter().map(Arc::new).collect();
    let engine = Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap());
    let session = |routes, strategy, prompt: &[i32]| {
        let targets = (strategy == Strategy::Standard).then_some(Targets::Routed);
        let sampler = Sampling::PLAIN.sampler();
        let options = Options { routes, strategy, targets, sampler, ..Options::default() };
        let mut session = Session::new(&engine, &options).unwrap();
        // What is given before the first step is the prompt, in one call or in several.
        prompt.iter().for_each(|&token| session.prompt(&[token]).unwrap());
        session.step().unwrap();
        session
    };
    let routes = |session: &Session| session.describe()["routes"].as_str().unwrap().to_owned();
    let mut first = session(None, Strategy::Auto, &[1, 2]);
    assert_eq!(routes(&first), "shared");
    assert_eq!(routes(&session(None, Strategy::Auto, &[1, 2])), "own", "it began with the same prompt");
    assert_eq!(routes(&session(Some(RoutesName::Own), Strategy::Auto, &[2])), "own");
    assert_eq!(routes(&session(None, Strategy::Standard, &[2])), "own", "its seed is to give the same text");
    assert_eq!(routes(&session(Some(RoutesName::Shared), Strategy::Standard, &[2])), "shared");
    assert_eq!(routes(&first.fork(1).unwrap()), "own");
    first.rewind(0).unwrap();
    first.prompt(&[2, 2]).unwrap();
    first.step().unwrap();
    assert_eq!(routes(&session(None, Strategy::Auto, &[1, 2])), "shared", "nobody has this prompt now");
    let greedy = Options::default();
    let mut greedy = Session::new(&engine, &greedy).unwrap();
    greedy.prompt(&[0]).unwrap();
    greedy.step().unwrap();
    assert_eq!(routes(&greedy), "own", "it has no routes");
}
