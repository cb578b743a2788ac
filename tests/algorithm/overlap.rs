//! Passes that do not depend on each other run at the same time. Only the time changes by that, not the text.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::common::{
    ByLength, PROMPT, SAMPLINGS, Sampling, Way, World, combinations, controlled_decoder, decoder, ways,
};
use cos::config::Combine;
use cos::control::Controls;
use cos::decode::chance::CounterRng;
use cos::decode::combine::Combination;
use cos::decode::decoder::Counters;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::participant::Participant;
use cos::engine::session::{Options, Session, State};
use cos::error::{Error, Result};
use cos::model::scripted::Scripted;
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence, overlap};
use parking_lot::Mutex;

/// A model that logs every pass that is begun or run.
struct Logged {
    inner: Scripted,
    batches: bool,
    log: Arc<Mutex<Vec<String>>>,
}

impl Logged {
    fn note(&self, what: &str, tokens: usize) {
        self.log.lock().push(format!("{what} {} {tokens}", self.name()));
    }
}

impl Model for Logged {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn context_length(&self) -> usize {
        self.inner.context_length()
    }

    fn max_pass(&self) -> usize {
        self.inner.max_pass()
    }

    fn cost(&self) -> u64 {
        self.inner.cost()
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        self.inner.start(cancel)
    }

    fn overlaps(&self) -> bool {
        self.inner.overlaps()
    }

    fn batches(&self) -> bool {
        self.batches
    }

    fn launch(&self, batch: &mut [Pass<'_>]) -> bool {
        let begun = self.inner.launch(batch);
        if begun {
            self.note("begin", batch[0].tokens.len());
        }
        begun
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        self.note("run", batch[0].tokens.len());
        self.inner.forward(batch)
    }
}

/// Models named a, b and c. Those with `overlap` can begin a pass and finish it later.
fn logged(overlap: &[bool], batches: bool, log: &Arc<Mutex<Vec<String>>>) -> Vec<Arc<dyn Model>> {
    let model = |(index, &overlaps): (usize, &bool)| {
        let inner = World::Related.model(index, 5).with_name(["a", "b", "c"][index]);
        let inner = if overlaps { inner.with_overlap(0.5) } else { inner };
        Arc::new(Logged { inner, batches, log: log.clone() }) as Arc<dyn Model>
    };
    overlap.iter().enumerate().map(model).collect()
}

/// The log of the second round of a way.
fn round(overlap: &[bool], way: &Way, overlaps: bool) -> Vec<String> {
    let log = Arc::default();
    let models = logged(overlap, false, &log);
    let mixture = Combination::mixture(&vec![1.0 / models.len() as f32; models.len()]).unwrap();
    let mut decoder = decoder(&models, &mixture, Sampling::PLAIN, way, &[], 100, CounterRng::new(3));
    decoder.set_overlaps(overlaps);
    decoder.prompt(&PROMPT).unwrap();
    decoder.round().unwrap();
    log.lock().clear();
    decoder.round().unwrap();
    std::mem::take(&mut *log.lock())
}

#[test]
fn certain_passes_begin_before_any_is_waited_for() {
    let standard = |models: usize| Way::new(Strategy::Standard, Targets::Combined, &[1, 1, 1][..models]);
    let of_three = ["begin a 1", "begin b 1", "begin c 1", "run a 1", "run b 1", "run c 1"];
    assert_eq!(round(&[true; 3], &standard(3), true), of_three);
    // A model that cannot overlap runs in the meantime.
    assert_eq!(round(&[true, false], &standard(2), true), ["begin a 1", "run b 1", "run a 1"]);
    assert_eq!(round(&[true; 2], &standard(2), false), ["run a 1", "run b 1"]);
    assert_eq!(round(&[false; 2], &standard(2), true), ["run a 1", "run b 1"]);
    // Verifiers overlap with each other, drafters do not.
    let speculative = Way::new(Strategy::Speculative, Targets::Combined, &[2, 0, 0]);
    let found = round(&[true; 3], &speculative, true);
    assert_eq!(
        found[found.len() - 4..].iter().map(|line| &line[..7]).collect::<Vec<_>>(),
        ["begin b", "begin c", "run b 3", "run c 3"]
    );
    assert!(found[..found.len() - 4].iter().all(|line| line.starts_with("run a")), "{found:?}");
    let cos = Way::new(Strategy::Cos, Targets::Combined, &[1, 1]);
    assert!(round(&[true; 2], &cos, true).iter().all(|line| line.starts_with("run")));
    let routed = Way::new(Strategy::Standard, Targets::Routed, &[1, 1]);
    assert!(round(&[true; 2], &routed, true).iter().all(|line| line.starts_with("run")));
}

/// The scripted models check that a pass is run as it was begun, and that no row is read in between.
#[test]
fn overlap_does_not_change_the_text() {
    for models in [2, 3] {
        for combination in combinations(models) {
            for sampling in SAMPLINGS {
                for way in ways(models, &combination, sampling) {
                    let text = |overlaps: bool| {
                        let model = |model| {
                            let model = World::Related.model(model, 5).with_max_pass(3);
                            Arc::new(model.with_overlap(0.5)) as Arc<dyn Model>
                        };
                        let models: Vec<_> = (0..models).map(model).collect();
                        let mut decoder = decoder(&models, &combination, sampling, &way, &[], 20, CounterRng::new(7));
                        decoder.set_overlaps(overlaps);
                        decoder.prompt(&PROMPT).unwrap();
                        while decoder.round().unwrap().1.is_none() {}
                        (decoder.committed().to_vec(), decoder.counters())
                    };
                    assert_eq!(text(true), text(false), "{combination:?} {sampling:?} {way:?}");
                }
            }
        }
    }
}

/// If one of two overlapping passes fails, the other one is given up and run again later.
#[test]
fn a_failure_leaves_no_pass_running() {
    let fails = Arc::new(AtomicBool::new(false));
    for failing in 0..3 {
        let model = |index: usize| {
            let fails = fails.clone();
            let script = move |context: &[i32], row: &mut [f32]| {
                if index == failing && fails.load(Ordering::Relaxed) {
                    return Err(Error::Runtime("planted".into()).into());
                }
                World::Related.fill(1, index, context, row);
                Ok(())
            };
            // The last model cannot overlap.
            let left = if index == 2 { 1.0 } else { 0.5 };
            Arc::new(Scripted::new(5, script).with_overlap(left)) as Arc<dyn Model>
        };
        let models: Vec<_> = (0..3).map(model).collect();
        let mixture = Combination::mixture(&[0.5, 0.25, 0.25]).unwrap();
        let way = Way::new(Strategy::Standard, Targets::Combined, &[1, 1, 1]);
        let text = |plant: bool| {
            let mut decoder = decoder(&models, &mixture, Sampling::GREEDY, &way, &[], 20, CounterRng::new(7));
            decoder.prompt(&PROMPT).unwrap();
            decoder.round().unwrap();
            if plant {
                fails.store(true, Ordering::Relaxed);
                let failed = decoder.round().unwrap_err();
                assert_eq!(failed, Interrupt::Failed(Error::Runtime("planted".into())));
                fails.store(false, Ordering::Relaxed);
            }
            while decoder.round().unwrap().1.is_none() {}
            decoder.committed().to_vec()
        };
        assert_eq!(text(true), text(false));
    }
}

#[test]
fn the_gain_is_measured() {
    let model = |milliseconds: u64, left: f64| {
        let time = move |_, _| Duration::from_millis(milliseconds);
        Arc::new(Scripted::new(5, |_, _| Ok(())).with_pass_times(time).with_overlap(left)) as Arc<dyn Model>
    };
    let measured = |models: &[Arc<dyn Model>]| {
        overlap::measure(&models.iter().map(|model| model.as_ref()).collect::<Vec<_>>()).unwrap()
    };
    assert_eq!(measured(&[model(10, 0.5)]), None);
    assert_eq!(measured(&[model(10, 1.0), model(10, 1.0)]), None);
    let near = |found: Option<f64>, expected: f64| assert!((found.unwrap() - expected).abs() < 1e-6, "{found:?}");
    near(measured(&[model(10, 0.5), model(10, 0.5)]), 0.0);
    near(measured(&[model(10, 0.75), model(10, 0.75)]), 0.5);
    near(measured(&[model(10, 0.8), model(10, 0.8), model(10, 0.8)]), 0.7);
    // The long pass hides the short one.
    near(measured(&[model(40, 0.75), model(10, 1.0)]), 0.0);
}

/// Passes go on while nobody waits for them. So the time that is waited for them bounds nothing if the host does
/// something else meanwhile.
#[test]
fn a_pass_that_is_waited_for_a_moment_took_longer() {
    let model = |_| {
        let time = |_, _| Duration::from_millis(3);
        let model = Scripted::new(5, |_, _| Ok(())).with_pass_times(time).with_overlap(0.01).with_batches(16);
        let busy = |_: &[usize]| {
            std::thread::sleep(Duration::from_millis(4));
            Ok(())
        };
        Arc::new(model.with_batch_hook(busy)) as Arc<dyn Model>
    };
    let models = (0..2).map(model).collect();
    let engine = Engine::new(models, Combine::Weighted { weights: vec![0.5, 0.5] }, Vec::new(), None).unwrap();
    let engine = Arc::new(engine.with_overlap(Some(true)).unwrap());
    let times = engine.shared_planning().lock().pass_times().clone();
    (0..20).for_each(|_| (0..2).for_each(|model| times.record(model, 1, 3e-3)));
    let options = Options { strategy: Strategy::Standard, max_tokens: 30, ..Options::default() };
    let mut session = Session::new(&engine, &options).unwrap();
    session.prompt(&PROMPT).unwrap();
    while session.step().unwrap().1 == State::Open {}
    (0..2).for_each(|model| assert_eq!(times.at(model, 1.0), Some(3e-3), "model {model}"));
}

/// Controls with a constraint that allows all tokens, and logs what `what` says of each mask.
fn logging(log: &Arc<Mutex<Vec<String>>>, calls_back: bool, what: fn() -> String) -> Controls {
    let log = log.clone();
    let constraint = ByLength::new(move |_, mask| {
        log.lock().push(what());
        mask.fill(u32::MAX);
        Ok(())
    });
    if calls_back { constraint } else { constraint.of_the_library() }.with(Controls::default())
}

fn mask() -> String {
    "mask".into()
}

/// Masks are made while passes run that the thread need not run itself, and otherwise when they are needed. So are
/// those by functions of the caller, which may wait for passes themselves.
#[test]
fn masks_are_made_beside_passes() {
    let log = Arc::<Mutex<Vec<String>>>::default();
    let [controls, called] = [false, true].map(|calls_back| logging(&log, calls_back, mask));
    let logged = |overlap: &[bool], batches: bool| logged(overlap, batches, &log);
    // Passes that a session runs alone.
    for (overlap, overlaps, controls, expected) in [
        (&[true, true][..], true, &controls, &["begin a 1", "begin b 1", "mask", "run a 1", "run b 1"][..]),
        (&[true, true], false, &controls, &["begin a 1", "mask", "run a 1", "run b 1"]),
        (&[true], true, &controls, &["begin a 1", "mask", "run a 1"]),
        (&[false], true, &controls, &["run a 1", "mask"]),
        (&[true, true], true, &called, &["begin a 1", "begin b 1", "run a 1", "run b 1", "mask"]),
    ] {
        let models = logged(overlap, false);
        let mixture = Combination::mixture(&vec![1.0 / models.len() as f32; models.len()]).unwrap();
        let way = Way::new(Strategy::Standard, Targets::Combined, &[1, 1][..models.len()]);
        let (controls, until, chance) = ((controls, None), (&[][..], 9), CounterRng::new(3));
        let mut decoder = controlled_decoder(&models, &mixture, Sampling::PLAIN, &way, controls, until, chance);
        decoder.set_overlaps(overlaps);
        decoder.prompt(&PROMPT).unwrap();
        decoder.round().unwrap();
        log.lock().clear();
        decoder.round().unwrap();
        assert_eq!(*log.lock(), expected, "{overlap:?}, {overlaps}");
    }
    // Passes that sessions share.
    for (overlap, expected) in
        [(true, &["begin a 1", "mask", "mask", "run a 1"][..]), (false, &["run a 1", "mask", "mask"])]
    {
        let models = logged(&[overlap], true).into_iter().map(Participant::from).collect();
        let combine = Combine::Weighted { weights: vec![1.0] };
        let engine = Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap());
        let mut sessions = [(); 2].map(|()| {
            let options = Options { strategy: Strategy::Standard, controls: controls.clone(), ..Options::default() };
            let mut session = Session::new(&engine, &options).unwrap();
            session.prompt(&PROMPT).unwrap();
            session
        });
        for _ in 0..2 {
            log.lock().clear();
            step_many(&mut sessions, |_, state| assert_eq!(state.unwrap(), State::Open));
        }
        assert_eq!(*log.lock(), expected, "{overlap}, two sessions");
        log.lock().clear();
        sessions[0].step().unwrap();
        let mut alone = expected.to_vec();
        alone.dedup();
        assert_eq!(*log.lock(), alone, "{overlap}, one session");
    }
}

/// Where rows are on the host, a mask is made for a position that is proposed or decided, and for no other one.
#[test]
fn no_mask_is_made_in_vain() {
    for (strategy, lengths) in [(Strategy::Standard, [1, 1]), (Strategy::Speculative, [3, 0]), (Strategy::Cos, [2, 2])]
    {
        let log = Arc::<Mutex<Vec<String>>>::default();
        let controls = logging(&log, false, mask);
        let models = logged(&[false; 2], false, &Arc::default());
        let mixture = Combination::mixture(&[0.5, 0.5]).unwrap();
        let way = Way::new(strategy, Targets::Combined, &lengths);
        let (controls, until, chance) = ((&controls, None), (&[][..], 200), CounterRng::new(4));
        let mut decoder = controlled_decoder(&models, &mixture, Sampling::PLAIN, &way, controls, until, chance);
        decoder.prompt(&PROMPT).unwrap();
        while decoder.round().unwrap().1.is_none() {}
        let Counters { tokens, proposed, tested, accepted, .. } = decoder.counters();
        let masks = log.lock().len() as u64;
        assert!(masks <= proposed + tokens - tested, "{masks} masks, {proposed} proposals, {tokens} tokens");
        assert!(strategy == Strategy::Standard || accepted < tested, "nothing was rejected");
    }
}

/// Many masks are made by several threads, unless they are made by functions of the caller.
#[test]
fn many_masks_are_made_by_several_threads() {
    const SESSIONS: usize = 33;
    for calls_back in [false, true] {
        let log = Arc::<Mutex<Vec<String>>>::default();
        let controls = logging(&log, calls_back, || format!("{:?}", std::thread::current().id()));
        let model = World::Related.model(0, 5).with_overlap(0.5);
        let model: Arc<dyn Model> = Arc::new(Logged { inner: model, batches: true, log: Arc::default() });
        let combine = Combine::Weighted { weights: vec![1.0] };
        let engine = Arc::new(Engine::new(vec![Participant::from(model)], combine, Vec::new(), None).unwrap());
        let mut sessions: Vec<Session> = (0..SESSIONS)
            .map(|_| {
                let (strategy, controls) = (Strategy::Standard, controls.clone());
                let options = Options { strategy, controls, ..Options::default() };
                let mut session = Session::new(&engine, &options).unwrap();
                session.prompt(&PROMPT).unwrap();
                session
            })
            .collect();
        step_many(&mut sessions, |_, state| assert_eq!(state.unwrap(), State::Open));
        let mut threads = std::mem::take(&mut *log.lock());
        assert_eq!(threads.len(), SESSIONS);
        threads.sort();
        threads.dedup();
        let processors = std::thread::available_parallelism().map_or(1, |all| all.get());
        assert_eq!(threads.len(), if calls_back { 1 } else { processors.min(4) }, "{threads:?}");
    }
}

/// A function of the caller may step another session of its engine, whatever other threads do.
#[test]
fn functions_of_the_caller_may_step_other_sessions() {
    let log = Arc::<Mutex<Vec<String>>>::default();
    let models = logged(&[true, false], true, &log).into_iter().map(Participant::from).collect();
    let combine = Combine::Weighted { weights: vec![0.5, 0.5] };
    let engine = Arc::new(Engine::new(models, combine, Vec::new(), None).unwrap());
    let start = |controls: Controls| {
        let options = Options { strategy: Strategy::Standard, max_tokens: 40, controls, ..Options::default() };
        let mut session = Session::new(&engine, &options).unwrap();
        session.prompt(&PROMPT).unwrap();
        session
    };
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let judge = Arc::new(Mutex::new(start(Controls::default())));
            let asks = ByLength::new(move |_, mask| {
                mask.fill(u32::MAX);
                judge.lock().step().map(drop)
            });
            let controls = if thread > 0 { asks.with(Controls::default()) } else { Controls::default() };
            let mut session = start(controls);
            scope.spawn(move || while session.step().unwrap().1 == State::Open {});
        }
    });
}
