//! Whole sessions: many at once on one engine, several prompts, cancelled steps, weights that change in between. Each
//! token must have the distribution given by the tokens before it and the weights of its step.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cos::config::Combine;
use cos::decode::combine::Combination;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::session::{Options, Session, State};
use cos::model::{Cancel, Model};

use super::results::{Comparison, Section};
use super::tables::{Table, Tree};
use super::{Progress, parallel};
use crate::common::{PROMPT, Sampling, World, mix, oracle};

/// What happens to the sessions of a case.
#[derive(Debug, Clone, Copy)]
struct Life {
    /// The number of sessions that take turns on one engine.
    together: usize,
    /// A second prompt comes after some steps, even if proposals are pending.
    chat: bool,
    /// One in four passes cancels its own step. The session goes on.
    cancels: bool,
    /// The weights change after every step that committed tokens.
    weights: bool,
    /// The weights change after every cancelled step, too. Only combined targets are exact here: the time of a routed
    /// step depends on its model, so a cancellation would select among tokens.
    weights_by_cancels: bool,
}

const ALONE: Life = Life { together: 1, chat: false, cancels: false, weights: false, weights_by_cancels: false };

const LIVES: [(&str, Life); 7] = [
    ("sessions in turns", Life { together: 7, ..ALONE }),
    ("chat turns", Life { chat: true, ..ALONE }),
    ("cancelled steps", Life { cancels: true, ..ALONE }),
    ("changing weights", Life { weights: true, ..ALONE }),
    ("cancelled steps, changing weights", Life { cancels: true, weights: true, ..ALONE }),
    (
        "weights that change with cancelled steps",
        Life { cancels: true, weights_by_cancels: true, weights: true, ..ALONE },
    ),
    ("all at once", Life { together: 5, chat: true, cancels: true, weights: true, ..ALONE }),
];

/// A second prompt.
const TURN: [i32; 2] = [2, 0];
const VOCAB: usize = 3;
const TREE: Tree = Tree { vocab: VOCAB, depth: 6 };
/// Three models, so that one may have scored a proposal that is still undecided.
const MODELS: usize = 3;
const WEIGHTS: [[f32; MODELS]; 2] = [[0.4, 0.3, 0.3], [0.15, 0.6, 0.25]];

/// For the tokens after the prompt and the weights of a step: how often each token came next.
type Counts = BTreeMap<(Vec<i32>, usize), Vec<u64>>;

struct Case {
    name: String,
    life: Life,
    world: World,
    options: Options,
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (what, life) in LIVES {
        for world in [World::Related, World::Unrelated, World::Sharp] {
            let all = [Targets::Combined, Targets::Routed];
            for &targets in if life.weights_by_cancels { &all[..1] } else { &all } {
                for (strategy, lengths) in [
                    (Strategy::Standard, [1, 1, 1]),
                    (Strategy::Speculative, [0, 3, 0]),
                    (Strategy::Cos, [1, 1, 1]),
                    (Strategy::Cos, [2, 1, 1]),
                ] {
                    let options = Options {
                        strategy,
                        targets: Some(targets),
                        sampler: Sampling::PLAIN.sampler(),
                        max_tokens: if life.chat { 2 } else { 4 },
                        proposal_lengths: Some(lengths.to_vec()),
                        stop_tokens: Some(Vec::new()),
                        ..Options::default()
                    };
                    let name = format!("{what}: {world:?}, {strategy:?} {lengths:?}, {targets:?}");
                    cases.push(Case { name, life, world, options });
                }
            }
        }
    }
    cases
}

fn engine(world: World, cancels: bool) -> Arc<Engine> {
    let passes = Arc::new(AtomicU64::new(0));
    let model = |model: usize| -> Arc<dyn Model> {
        let table = Table::new(world, model, &PROMPT, TREE);
        let passes = passes.clone();
        let stop = move |cancel: &Cancel| {
            let stops = mix(passes.fetch_add(1, Ordering::Relaxed)).is_multiple_of(4);
            if stops {
                cancel.request();
            }
            stops
        };
        Arc::new(if cancels { table.with_stop(Arc::new(stop)) } else { table })
    };
    let combine = Combine::Weighted { weights: WEIGHTS[0].to_vec() };
    Arc::new(Engine::new((0..MODELS).map(model).collect(), combine, Vec::new(), None).expect("models that fit"))
}

/// A session, and what its caller knows.
struct Running {
    session: Session,
    steps: usize,
    tokens: Vec<i32>,
    weights: usize,
    turned: bool,
}

impl Running {
    fn new(engine: &Arc<Engine>, options: &Options, seed: u64) -> Running {
        let mut session = Session::new(engine, &Options { seed, ..options.clone() }).expect("options that are right");
        session.prompt(&PROMPT).expect("a prompt that fits");
        Running { session, steps: 0, tokens: Vec::new(), weights: 0, turned: false }
    }

    /// Makes one step, and does what the caller does after it. Returns false after the last step.
    fn step(&mut self, life: Life, counts: &mut Counts, cancelled: &mut u64) -> bool {
        let (new, state) = self.session.step().expect("models that never fail");
        // A busy canceller may hit one session many times. That is not the session's fault.
        self.steps += usize::from(state != State::Cancelled);
        assert!(self.steps < 100, "a session that does not end");
        for &token in new {
            let key = (self.tokens.clone(), self.weights);
            counts.entry(key).or_insert_with(|| vec![0; VOCAB])[token as usize] += 1;
            self.tokens.push(token);
        }
        *cancelled += u64::from(state == State::Cancelled);
        if life.weights && (!new.is_empty() || life.weights_by_cancels) {
            self.weights = 1 - self.weights;
            self.session.set_weights(&WEIGHTS[self.weights]).expect("weights that are right");
        }
        let turns = life.chat && !self.turned && !self.tokens.is_empty();
        if turns {
            self.turned = true;
            self.tokens.extend(TURN);
            self.session.prompt(&TURN).expect("a prompt that fits");
        }
        turns || !matches!(state, State::Ended(_))
    }
}

impl Case {
    /// Runs sessions and compares their tokens. Also returns the number of cancelled steps.
    fn run(&self, stream: u64, draws: u64) -> (Comparison, u64) {
        let found = catch_unwind(AssertUnwindSafe(|| self.counts(stream, draws)));
        match found {
            Ok((counts, cancelled)) => (compare(self.name.clone(), self.world, counts), cancelled),
            Err(panic) => (Comparison::stopped(&self.name, panic.as_ref()), 0),
        }
    }

    fn counts(&self, stream: u64, draws: u64) -> (Counts, u64) {
        let engine = engine(self.world, self.life.cancels);
        let (mut counts, mut cancelled) = (Counts::new(), 0);
        let mut seeds = (0..draws).map(|draw| (stream << 32) + draw);
        let mut running: Vec<Running> = Vec::new();
        loop {
            while running.len() < self.life.together
                && let Some(seed) = seeds.next()
            {
                running.push(Running::new(&engine, &self.options, seed));
            }
            if running.is_empty() {
                break;
            }
            running.retain_mut(|session| session.step(self.life, &mut counts, &mut cancelled));
        }
        (counts, cancelled)
    }
}

fn compare(name: String, world: World, counts: Counts) -> Comparison {
    let groups = counts.into_iter().map(|((tokens, weights), observed)| {
        let context = [&PROMPT[..], &tokens].concat();
        let rows: Vec<Vec<f32>> = (0..MODELS).map(|model| world.logits(model, &context, VOCAB)).collect();
        let combination = Combination::mixture(&WEIGHTS[weights]).expect("weights that are right");
        let expected = oracle(&rows, &combination, Sampling::PLAIN);
        let label = |token| format!("{tokens:?} by {:?}, then {token}", WEIGHTS[weights]);
        let cells = expected.into_iter().zip(observed).enumerate();
        cells.map(|(token, (p, count))| (label(token), p, count)).collect()
    });
    Comparison::of_groups(name, groups)
}

/// Runs sessions on several threads while another thread cancels them at random moments.
fn threads(draws: u64) -> (Comparison, u64) {
    let engine = engine(World::Unrelated, false);
    let options = Options {
        strategy: Strategy::Cos,
        targets: Some(Targets::Combined),
        sampler: Sampling::PLAIN.sampler(),
        max_tokens: 4,
        stop_tokens: Some(Vec::new()),
        ..Options::default()
    };
    const THREADS: u64 = 4;
    let (over, hits) = (AtomicBool::new(false), AtomicU64::new(0));
    let running: parking_lot::Mutex<Vec<Arc<Cancel>>> = parking_lot::Mutex::new(Vec::new());
    let found: std::thread::Result<Vec<(Counts, u64)>> = std::thread::scope(|scope| {
        let (engine, options, running, hits) = (&engine, &options, &running, &hits);
        let work = |thread: u64| {
            scope.spawn(move || {
                let (mut counts, mut cancelled) = (Counts::new(), 0);
                for draw in (thread..).step_by(THREADS as usize) {
                    // On a busy machine, the canceller may need more sessions until it hits one.
                    if draw >= draws && (hits.load(Ordering::Relaxed) > 0 || draw >= 1000 * draws) {
                        break;
                    }
                    let mut session = Running::new(engine, options, (1 << 50) + draw);
                    let cancel = session.session.cancel().clone();
                    running.lock().push(cancel.clone());
                    while session.step(ALONE, &mut counts, &mut cancelled) {}
                    running.lock().retain(|other| !Arc::ptr_eq(other, &cancel));
                    hits.fetch_max(cancelled, Ordering::Relaxed);
                }
                (counts, cancelled)
            })
        };
        let threads: Vec<_> = (0..THREADS).map(work).collect();
        let canceller = scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                running.lock().iter().for_each(|cancel| cancel.request());
                std::thread::sleep(std::time::Duration::from_micros(50)); // sessions need time to advance
            }
        });
        let found: Vec<_> = threads.into_iter().map(|thread| thread.join()).collect();
        over.store(true, Ordering::Relaxed); // also after a panic, otherwise the canceller would never end
        canceller.join().expect("it cannot panic");
        found.into_iter().collect::<Result<_, _>>()
    });
    let name = "four threads, cancelled by a fifth: Unrelated, Cos, Combined";
    let found: Vec<(Counts, u64)> = match found {
        Ok(found) => found,
        Err(panic) => return (Comparison::stopped(name, panic.as_ref()), 1),
    };
    let (mut all, mut cancelled) = (Counts::new(), 0);
    for (counts, cancels) in found {
        cancelled += cancels;
        for (key, counts) in counts {
            let sum = all.entry(key).or_insert_with(|| vec![0; VOCAB]);
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }
    (compare(name.into(), World::Unrelated, all), cancelled)
}

/// Repeats the comparison at an index of the section with other seeds.
pub fn repeat(index: usize, draws: u64, seed: u64) -> Comparison {
    match cases().get(index) {
        Some(case) => case.run((1 << 20) + seed * 1000 + index as u64, draws).0,
        None => threads(draws).0,
    }
}

/// `draws` is the number of sessions in each case; `seed` shifts all seeds.
pub fn run(draws: u64, seed: u64, progress: &dyn Progress) -> Section {
    let cases: Vec<(usize, Case)> = cases().into_iter().enumerate().collect();
    progress.start("whole sessions", cases.len() as u64 + 1);
    let mut found = parallel(&cases, |(index, case)| {
        let found = case.run((1 << 20) + seed * 1000 + *index as u64, draws);
        progress.advance();
        found
    });
    found.push(threads(draws));
    progress.advance();
    let (comparisons, cancels): (Vec<Comparison>, Vec<u64>) = found.into_iter().unzip();
    let cancelled: u64 = cancels.iter().sum();
    let mut failures = Vec::new();
    if cancels.last() == Some(&0) {
        failures.push("no step was cancelled by another thread".to_string());
    }
    Section {
        title: "Whole sessions".into(),
        about: "Many sessions of one engine, in turns and on several threads; a second prompt while proposals are \
                pending; steps that are cancelled, by the models in one of four passes and by another thread at any \
                moment; other weights after every step; all of it at once. Every token is compared with the oracle's \
                distribution given the tokens before it and the weights of its step."
            .into(),
        headline: format!(
            "{} sessions in {} ways, {cancelled} steps cancelled while they ran",
            draws * comparisons.len() as u64,
            comparisons.len()
        ),
        comparisons,
        failures,
        ..Section::default()
    }
}
