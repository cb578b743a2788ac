//! An engine that is prepared for load.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use cos::config::Combine;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::metrics::metrics;
use cos::engine::prepare::{Load, prepare};
use cos::engine::session::{Options, Session};
use cos::engine::stats::Stats;
use cos::error::{Error, Result};
use cos::model::graphs::{Capture, Graphs, MOST_GRAPHS, PassSize, SizeLimits};
use cos::model::scripted::Scripted;
use cos::model::{Admission, Cancel, Interrupt, Model, Pass, Report, Sequence};
use cos::rows::Sampler;

use crate::common::World;

const VOCAB: usize = 16;
const LONG: Duration = Duration::from_secs(3600);

/// A model that captures passes as one on a GPU does: passes without a graph are slow.
struct Captures {
    model: Scripted,
    graphs: Mutex<Graphs<()>>,
    /// Passes of each size, and those of them that had a graph.
    passes: Mutex<BTreeMap<PassSize, [u64; 2]>>,
    /// Sizes that have a graph.
    captured: Mutex<BTreeSet<PassSize>>,
    /// Rows for which there is room.
    room: AtomicUsize,
    kept: usize,
    batches: bool,
    /// Passes over 16 tokens, by sequence.
    wide: Mutex<BTreeMap<usize, u64>>,
    /// Most sequences at the same time, and those that are there.
    most: AtomicUsize,
    sequences: Mutex<Vec<Weak<Cancel>>>,
}

impl Captures {
    /// Passes that a GPU would capture, and those of them that had a graph.
    fn counts(&self, are_counted: impl Fn(&PassSize) -> bool) -> [u64; 2] {
        let passes = self.passes.lock().unwrap();
        let counted = passes.iter().filter(|(size, _)| are_counted(size)).map(|(_, counts)| counts);
        counted.fold([0, 0], |[all, fast], counts| [all + counts[0], fast + counts[1]])
    }

    fn captured_sizes(&self) -> BTreeSet<PassSize> {
        self.captured.lock().unwrap().clone()
    }

    /// Count a pass. Returns whether it has a graph.
    fn count(&self, size: PassSize) -> bool {
        if self.batches && !size.is_captured() {
            return true;
        }
        let mut graphs = self.graphs.lock().unwrap();
        if self.batches && self.room.fetch_max(size.rows, Ordering::Relaxed) < size.rows {
            graphs.clear(); // they hold addresses
            self.captured.lock().unwrap().clear();
        }
        let chosen = if self.batches { graphs.choose(size) } else { size };
        let before = graphs.take(chosen);
        let has_graph = matches!(before, Some(Capture::Graph(())));
        if before.is_some() {
            self.captured.lock().unwrap().insert(chosen);
        }
        graphs.put(chosen, if before.is_some() { Capture::Graph(()) } else { Capture::Warm });
        let mut passes = self.passes.lock().unwrap();
        let counts = passes.entry(size).or_default();
        *counts = [counts[0] + 1, counts[1] + u64::from(has_graph)];
        has_graph
    }
}

/// The size of a pass, whose rows all stay on the GPU.
fn size(batch: &[Pass<'_>]) -> PassSize {
    let parts = batch.iter().map(|pass| {
        let (start, end) = (pass.sequence.len(), pass.sequence.len() + pass.tokens.len());
        let wanted = (pass.keep.max(start + 1) - 1).min(end);
        (end - start, end - wanted, end.div_ceil(128))
    });
    let parts: Vec<_> = parts.collect();
    let size = PassSize {
        tokens: parts.iter().map(|part| part.0).sum(),
        rows: parts.iter().map(|part| part.1).sum::<usize>().max(parts.len()),
        blocks: parts.iter().map(|part| part.2).max().unwrap(),
        widest: parts.iter().map(|part| part.0).max().unwrap(),
        kept: parts.iter().map(|part| part.1).max().unwrap(),
        filters: false,
    };
    size.padded(SizeLimits { tokens: usize::MAX, blocks: 32 })
}

/// A pass over so many sequences with one token each, in a context of so many blocks.
fn standard(sessions: usize, blocks: usize) -> PassSize {
    PassSize { tokens: sessions, rows: sessions, blocks, widest: 1, kept: 1, filters: false }
}

impl Model for Captures {
    fn name(&self) -> &str {
        self.model.name()
    }

    fn vocab_size(&self) -> usize {
        self.model.vocab_size()
    }

    fn context_length(&self) -> usize {
        4096
    }

    fn max_pass(&self) -> usize {
        256
    }

    fn batches(&self) -> bool {
        self.batches
    }

    fn max_batch_tokens(&self) -> usize {
        2048
    }

    fn admit(&self, pass: &mut Pass<'_>) -> Admission {
        self.model.admit(pass)
    }

    fn cost(&self) -> u64 {
        1
    }

    fn captured(&self) -> Option<(u64, Option<&str>)> {
        Some((0, None))
    }

    fn kept_sizes(&self) -> usize {
        self.kept
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        let mut sequences = self.sequences.lock().unwrap();
        sequences.retain(|sequence| sequence.strong_count() > 0);
        if sequences.len() >= self.most.load(Ordering::Relaxed) {
            return Err(Error::Runtime("no memory on the device".into()));
        }
        sequences.push(Arc::downgrade(cancel));
        self.model.start(cancel)
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        let size = size(batch);
        if size.tokens == 16 && batch.len() == 1 {
            let sequence = std::ptr::from_ref(batch[0].sequence).addr();
            *self.wide.lock().unwrap().entry(sequence).or_default() += 1;
        }
        let report = self.model.forward(batch)?;
        Ok(Report { is_usual: self.count(size), ..report })
    }
}

/// Two models whose passes take a millisecond of the clock, with memory for so many tokens.
struct Machine {
    engine: Arc<Engine>,
    models: Vec<Arc<Captures>>,
    clock: Arc<AtomicU64>,
}

impl Machine {
    fn new(memory: usize, kept: usize, batches: bool) -> Machine {
        let clock = Arc::new(AtomicU64::new(0));
        let model = |index: usize| {
            let passing = clock.clone();
            let hook = move |_: &[usize]| {
                passing.fetch_add(1, Ordering::Relaxed);
                Ok(())
            };
            let model = World::Related.model(index, VOCAB).with_batch_hook(hook).with_memory(memory);
            let model = if batches { model.with_batches(2048) } else { model };
            Arc::new(Captures {
                model,
                graphs: Mutex::new(Graphs::new(kept.min(1 << 10))),
                passes: Mutex::default(),
                captured: Mutex::default(),
                room: AtomicUsize::default(),
                kept,
                batches,
                wide: Mutex::default(),
                most: AtomicUsize::new(usize::MAX),
                sequences: Mutex::default(),
            })
        };
        let models: Vec<Arc<Captures>> = (0..2).map(model).collect();
        let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
        let engine = Engine::new(models.clone(), combine, Vec::new(), None).unwrap().with_seed(1);
        let now = clock.clone();
        let engine = Arc::new(engine.with_clock(move || Duration::from_millis(now.load(Ordering::Relaxed))));
        Machine { engine, models, clock }
    }

    /// Prepare all for so many sessions.
    fn prepare(&self, sessions: usize) {
        assert_eq!(prepare(&self.engine, load(sessions), LONG, |_| true), Ok(1.0));
    }

    /// Passes that a GPU would capture, and those of them that had a graph, by both models.
    fn counts(&self, are_counted: impl Fn(&PassSize) -> bool) -> [u64; 2] {
        let counts = self.models.iter().map(|model| model.counts(&are_counted));
        counts.fold([0, 0], |[all, fast], counts| [all + counts[0], fast + counts[1]])
    }

    fn passes(&self) -> u64 {
        self.clock.load(Ordering::Relaxed)
    }
}

fn load(sessions: usize) -> Load {
    Load { sessions, tokens: 1024 }
}

/// Texts of so many sessions at the same time, with prompts of some hundred tokens.
fn decode(engine: &Arc<Engine>, count: usize, strategy: Strategy) -> Vec<Vec<i32>> {
    let new = |index: usize| {
        let options = Options {
            strategy,
            sampler: Sampler::new(1.0, 0, 0.0, 0.0).unwrap(),
            seed: index as u64,
            max_tokens: 24 + 7 * index % 16,
            ..Options::default()
        };
        let mut session = Session::new(engine, &options).unwrap();
        let token = |place: usize| ((place * place + index) % VOCAB) as i32;
        session.prompt(&(0..150 + 37 * index % 90).map(token).collect::<Vec<_>>()).unwrap();
        session
    };
    let mut sessions: Vec<Session> = (0..count).map(new).collect();
    while sessions.iter().any(|session| session.decoder().is_open()) {
        step_many(&mut sessions, |_, state| assert!(state.is_ok()));
    }
    sessions.iter().map(|session| session.decoder().committed().to_vec()).collect()
}

const PINNED: [Strategy; 3] = [Strategy::Standard, Strategy::Speculative, Strategy::Cos];

#[test]
fn sessions_of_all_strategies_find_their_passes_prepared() {
    let machine = Machine::new(1 << 20, MOST_GRAPHS, true);
    assert_eq!(prepare(&machine.engine, Load { sessions: 16, tokens: 400 }, LONG, |_| true), Ok(1.0));
    for model in &machine.models {
        let ([all, _], sizes) = (model.counts(|_| true), model.captured_sizes().len() as u64);
        assert!(sizes > 60 && all < 6 * sizes, "{all} passes for {sizes} sizes");
    }
    for count in [1, 2, 3, 4, 8, 16] {
        for strategy in PINNED.into_iter().chain([Strategy::Auto]) {
            // Chunks of prompts have many sizes.
            let is_narrow = |size: &PassSize| size.widest <= 16;
            let before = machine.counts(is_narrow);
            decode(&machine.engine, count, strategy);
            let [all, fast] = std::array::from_fn(|index| machine.counts(is_narrow)[index] - before[index]);
            assert!(fast as f64 >= 0.97 * all as f64, "{count} sessions, {strategy:?}: {fast} of {all} passes");
        }
    }
}

/// A server under full load: sessions that end are replaced, one prompt in eight is long, and chunks of prompts run
/// beside sessions that decode.
#[test]
fn a_loaded_server_finds_most_of_its_passes_prepared() {
    for (count, least) in [(1, 0.97), (4, 0.95), (16, 0.95), (64, 0.9)] {
        let (mut all, mut fast) = (0, 0);
        for strategy in PINNED.into_iter().chain([Strategy::Auto]) {
            let machine = Machine::new(1 << 20, MOST_GRAPHS, true);
            machine.prepare(count.max(16));
            let before = machine.counts(|size| size.is_captured());
            let new = |number: usize| {
                let sampler = Sampler::new(1.0, 0, 0.0, 0.0).unwrap();
                let max_tokens = if number < count { 1 + number * 97 % 128 } else { 128 + number % 65 };
                let options = Options { strategy, sampler, seed: number as u64, max_tokens, ..Options::default() };
                let mut session = Session::new(&machine.engine, &options).unwrap();
                let long = if number % 8 == 5 { 300 } else { 0 };
                let token = |place: usize| ((place * 7 + place * place * number) % VOCAB) as i32;
                let prompt: Vec<i32> = (0..long + 40 + number * 31 % 150).map(token).collect();
                session.prompt(&prompt).unwrap();
                session
            };
            let mut sessions: Vec<Session> = (0..count).map(new).collect();
            let (mut begun, mut tokens) = (count, 0);
            while tokens < 256 * count {
                step_many(&mut sessions, |session, _| tokens += session.tokens().len());
                for session in sessions.iter_mut().filter(|session| !session.decoder().is_open()) {
                    *session = new(begun);
                    begun += 1;
                }
            }
            let now = machine.counts(|size| size.is_captured());
            (all, fast) = (all + now[0] - before[0], fast + now[1] - before[1]);
        }
        let share = fast as f64 / all as f64;
        println!("{count} sessions: {fast} of {all} passes, {share:.2}");
        assert!(share >= least, "{count} sessions: {share}");
    }
}

#[test]
fn it_counts_in_no_statistics_and_changes_no_text() {
    let [machine, fresh] = [(); 2].map(|()| Machine::new(1 << 20, MOST_GRAPHS, true));
    let before = metrics(&machine.engine);
    let mut shares = Vec::new();
    let told = prepare(&machine.engine, load(16), LONG, |share| {
        shares.push(share);
        assert_eq!(metrics(&machine.engine), before);
        true
    });
    assert_eq!(told, Ok(1.0));
    assert!(shares.is_sorted() && shares.first() == Some(&0.0) && shares.last() == Some(&1.0), "{shares:?}");
    let passes = machine.passes() as usize;
    assert!((passes / 2..=passes + 1).contains(&shares.len()), "{} times, {passes} passes", shares.len());
    assert_eq!(metrics(&machine.engine), before);
    assert_eq!(*machine.engine.totals().lock(), Stats::default());
    for strategy in PINNED {
        assert_eq!(decode(&machine.engine, 5, strategy), decode(&fresh.engine, 5, strategy), "{strategy:?}");
    }
}

#[test]
fn it_ends_when_the_time_is_over_or_the_caller_says_so() {
    let machine = Machine::new(1 << 20, MOST_GRAPHS, true);
    let share = prepare(&machine.engine, load(64), Duration::from_millis(50), |_| true).unwrap();
    assert!((50..=52).contains(&machine.passes()) && 0.0 < share && share < 1.0, "{} ms, {share}", machine.passes());
    let (before, mut asked) = (machine.passes(), 0);
    let share = prepare(&machine.engine, load(64), Duration::MAX, |_| {
        asked += 1;
        asked < 30
    });
    assert!(share.unwrap() < 1.0 && asked == 30 && machine.passes() - before <= 60);
    assert_eq!(machine.engine.queues().company(), 0);
    assert_eq!(prepare(&machine.engine, load(1), Duration::ZERO, |_| true), Ok(0.0));
}

/// Where there is no memory for many sessions, it prepares what fits, and leaves the memory as it was.
#[test]
fn little_memory_is_no_error() {
    let machine = Machine::new(800, 192, true);
    machine.prepare(512);
    for sizes in machine.models.iter().map(|model| model.captured_sizes()) {
        let are_served = |size: PassSize| sizes.iter().any(|of| of.serves(size));
        assert!(are_served(standard(1, 1)) && are_served(standard(512, 1)), "{sizes:?}");
        assert!(sizes.iter().all(|size| size.blocks < 4), "no long sequence fits beside 512 others: {sizes:?}");
    }
    let longest = Options { max_tokens: 790, ..Options::default() };
    let mut session = Session::new(&machine.engine, &longest).unwrap();
    session.prompt(&[1, 2]).unwrap();
    while session.decoder().is_open() {
        session.step().unwrap();
    }
    assert_eq!(session.decoder().committed().len(), 792);
}

/// A device may have no memory for the buffers of so many sequences. Those that fit are prepared in all contexts.
#[test]
fn too_many_sequences_are_no_error() {
    let machine = Machine::new(1 << 20, MOST_GRAPHS, true);
    machine.models.iter().for_each(|model| model.most.store(30, Ordering::Relaxed));
    machine.prepare(64);
    for sizes in machine.models.iter().map(|model| model.captured_sizes()) {
        assert!(sizes.contains(&standard(8, 8)) && sizes.contains(&standard(1, 8)), "{sizes:?}");
        assert!(!sizes.contains(&standard(64, 8)));
    }
}

/// With more sizes, it would forget those that come first, which are the most useful.
#[test]
fn no_more_sizes_are_prepared_than_the_model_keeps() {
    let [all, few] = [192, 40].map(|kept| {
        let machine = Machine::new(1 << 20, kept, true);
        machine.prepare(64);
        [0, 1].map(|model: usize| machine.models[model].captured_sizes().len())
    });
    for (all, few) in all.into_iter().zip(few) {
        assert!((30..60).contains(&few) && all > 90, "{few} and {all} sizes");
    }
}

#[test]
fn models_that_run_each_sequence_alone_are_prepared() {
    let machine = Machine::new(1 << 20, usize::MAX, false);
    machine.prepare(16);
    for model in &machine.models {
        let widths: BTreeSet<usize> = model.captured_sizes().iter().map(|size| size.tokens).collect();
        assert!([1, 2, 3, 4, 6, 8, 12, 16, 128, 256].iter().all(|width| widths.contains(width)), "{widths:?}");
        let wide = model.wide.lock().unwrap();
        assert!(wide.len() == 4 && wide.values().all(|&passes| passes >= 2), "each has graphs of its own: {wide:?}");
    }
}

/// Where no size is prepared, a pass over so many tokens is run once, so that its time is known.
#[test]
fn a_processor_runs_few_passes() {
    let sizes = Arc::new(Mutex::new(Vec::new()));
    let seen = sizes.clone();
    let hook = move |batch: &[usize]| {
        seen.lock().unwrap().push(batch.iter().sum::<usize>());
        Ok(())
    };
    let model = World::Related.model(0, VOCAB).with_batches(512).with_max_pass(256).with_batch_hook(hook);
    let models = vec![Arc::new(model)];
    let engine = Arc::new(Engine::new(models, Combine::Target { model: 0 }, Vec::new(), None).unwrap());
    assert_eq!(prepare(&engine, load(16), LONG, |_| true), Ok(1.0));
    let sizes = sizes.lock().unwrap();
    let one_of_each: BTreeSet<usize> = sizes.iter().copied().collect();
    assert!([1, 16, 64, 256].iter().all(|tokens| one_of_each.contains(tokens)), "{one_of_each:?}");
    assert!(sizes.len() < one_of_each.len() + 40, "{} passes of {} sizes", sizes.len(), one_of_each.len());
}

#[test]
fn sessions_of_other_threads_go_on_meanwhile() {
    let [machine, fresh] = [(); 2].map(|()| Machine::new(1 << 20, MOST_GRAPHS, true));
    let expected = decode(&fresh.engine, 3, Strategy::Cos);
    let done = AtomicBool::new(false);
    let rounds = std::thread::scope(|scope| {
        let users = || {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) || rounds == 0 {
                assert_eq!(decode(&machine.engine, 3, Strategy::Cos), expected);
                rounds += 1;
            }
            rounds
        };
        let users = [(); 2].map(|()| scope.spawn(users));
        machine.prepare(32);
        done.store(true, Ordering::Relaxed);
        users.map(|thread| thread.join().unwrap())
    });
    let sessions = 3 * rounds.iter().sum::<u64>();
    assert_eq!(machine.engine.waits().lock().first_token.count(), sessions, "those of users count");
}

#[test]
fn an_error_of_a_model_is_told() {
    let fail = |batch: &[usize]| match batch.iter().sum() {
        0..20 => Ok(()),
        _ => Err(Error::Runtime("no device".into()).into()),
    };
    let model = Arc::new(World::Related.model(0, VOCAB).with_batches(64).with_batch_hook(fail));
    let engine = Engine::new(vec![model], Combine::Target { model: 0 }, Vec::new(), None).unwrap();
    let told = prepare(&Arc::new(engine), load(4), Duration::MAX, |_| true);
    assert!(matches!(told, Err(Error::Runtime(_))), "{told:?}");
}
