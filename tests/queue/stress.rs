//! Whole sessions on many threads. Whatever happens to some of them, all others have the text that they have alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use cos::config::{Combine, Config};
use cos::decode::combine::Function;
use cos::decode::policy::{Strategy, Targets};
use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::error::{Error, Result};
use cos::model::Interrupt;
use cos::model::scripted::Scripted;
use cos::rows::Sampler;

use crate::common::{World, one_thread, root};

const VOCAB: usize = 12;
/// Tokens behind each prompt.
const TOKENS: usize = 24;
/// Sessions of a test, each on a thread at some time.
const SESSIONS: usize = 96;

/// What is special about a session. Its prompt begins with the number of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Usual,
    /// Each pass beyond a length fails.
    Fails,
    /// All rows beyond a length are NaN.
    Nan,
    /// Its combine function panics after some calls.
    Panics,
    /// Another thread cancels steps of it.
    Cancelled,
    /// It is dropped after some steps.
    Dropped,
    /// It ends with one of the tokens that it draws.
    Stops,
}

const KINDS: [Kind; 7] =
    [Kind::Usual, Kind::Fails, Kind::Nan, Kind::Panics, Kind::Cancelled, Kind::Dropped, Kind::Stops];
/// The length beyond which bad sessions are bad.
const GOOD: usize = 14;
const BAD_FUNCTION: &str = "a bad function";

/// A model that may be asked for bad sessions. Now and then a pass over several sequences fails for no reason.
fn model(index: usize, batches: bool) -> Arc<Scripted> {
    let script = move |context: &[i32], row: &mut [f32]| {
        World::Related.fill(7, index, context, row);
        let kind = KINDS.get(context[0] as usize).filter(|_| context.len() > GOOD);
        match kind {
            Some(Kind::Fails) => return Err(Interrupt::Failed(Error::Runtime("a bad session".into()))),
            Some(Kind::Nan) => row.fill(f32::NAN),
            _ => {}
        }
        Ok(())
    };
    let model = Scripted::new(VOCAB, script).with_max_pass(8);
    if !batches {
        return Arc::new(model);
    }
    let passes = AtomicUsize::new(0);
    let hook = move |widths: &[usize]| {
        std::thread::yield_now();
        let pass = passes.fetch_add(1, Ordering::Relaxed);
        let is_bad = widths.len() > 1 && pass % 50 == 49;
        if is_bad { Err(Interrupt::Failed(Error::Runtime("a bad pass".into()))) } else { Ok(()) }
    };
    Arc::new(model.with_batches(40).with_batch_hook(hook))
}

fn engine(models: &[Arc<Scripted>], combine: &Combine) -> Arc<Engine> {
    Arc::new(Engine::new(models.to_vec(), combine.clone(), Vec::new(), None).unwrap())
}

/// What a session is like, by its number.
fn kind(number: usize) -> Kind {
    // Half of all are usual ones.
    if number.is_multiple_of(2) { Kind::Usual } else { KINDS[number / 2 % KINDS.len()] }
}

fn prompt(number: usize) -> Vec<i32> {
    let first = KINDS.iter().position(|other| *other == kind(number)).unwrap();
    let rest = (0..number % 11).map(|index| (number * 31 + index * 7) as i32 % VOCAB as i32);
    std::iter::once(first as i32).chain(rest).collect()
}

fn options(number: usize, combine: &Combine) -> Options {
    let mixture = matches!(combine, Combine::Weighted { .. });
    let temperature = if number.is_multiple_of(3) { 0.0 } else { 0.9 };
    let strategy = match number % 4 {
        0 => Strategy::Standard,
        1 => Strategy::Speculative,
        2 => Strategy::Cos,
        // What is drawn depends on the plan, which depends on times; but the best token does not.
        _ if temperature == 0.0 => Strategy::Auto,
        _ => Strategy::Cos,
    };
    let routed = mixture && temperature > 0.0 && number.is_multiple_of(5);
    let calls = AtomicUsize::new(0);
    let function = Function::new(move |rows, scores| {
        if calls.fetch_add(1, Ordering::Relaxed) >= GOOD {
            std::panic::panic_any(BAD_FUNCTION);
        }
        scores.copy_from_slice(rows.flatten().next().unwrap());
        Ok(())
    });
    let panics = kind(number) == Kind::Panics;
    Options {
        strategy,
        targets: (strategy != Strategy::Auto && !panics).then_some(if routed {
            Targets::Routed
        } else {
            Targets::Combined
        }),
        sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
        seed: number as u64,
        max_tokens: TOKENS,
        stop_tokens: Some(if kind(number) == Kind::Stops { vec![3, 5] } else { Vec::new() }),
        combine: panics.then_some(function),
        ..Options::default()
    }
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq)]
enum End {
    Ended(State),
    Failed(Error),
    Dropped,
}

/// A session on its way, with the text so far.
struct Run {
    number: usize,
    session: Session,
    text: Vec<i32>,
    steps: usize,
    end: Option<End>,
}

impl Run {
    fn new(engine: &Arc<Engine>, combine: &Combine, number: usize) -> Self {
        let mut session = Session::new(engine, &options(number, combine)).unwrap();
        session.prompt(&prompt(number)).unwrap();
        Run { number, session, text: Vec::new(), steps: 0, end: None }
    }

    fn take(&mut self, result: Result<State>) {
        self.steps += 1;
        match result {
            Ok(state) => {
                self.text.extend_from_slice(self.session.tokens());
                if let State::Ended(_) = state {
                    self.end = Some(End::Ended(state));
                }
            }
            Err(error) => self.end = Some(End::Failed(error)),
        }
        if kind(self.number) == Kind::Dropped && self.steps > 3 {
            self.end = Some(End::Dropped);
        }
    }

    fn step(&mut self) {
        let result = catch_unwind(AssertUnwindSafe(|| self.session.step().map(|(_, state)| state)));
        self.take(result.unwrap_or_else(|panic| Err(Error::of_panic(panic.as_ref()))));
    }
}

/// One thread for each session, which cancels itself now and then if it is one to be cancelled.
fn one_by_one(runs: &mut [Run]) {
    for run in runs {
        while run.end.is_none() {
            if kind(run.number) == Kind::Cancelled && run.steps % 3 == 1 {
                let cancel = run.session.cancel().clone();
                std::thread::scope(|scope| {
                    scope.spawn(move || cancel.request());
                    run.step();
                });
            } else {
                run.step();
            }
        }
    }
}

/// One thread for all of these sessions.
fn together(mut runs: Vec<Run>) -> Vec<Run> {
    let mut ended = Vec::new();
    let mut calls = 0;
    while !runs.is_empty() {
        calls += 1;
        for run in runs.iter().filter(|run| kind(run.number) == Kind::Cancelled && calls % 5 == 1) {
            run.session.cancel().request();
        }
        let mut sessions: Vec<Driven> = runs.drain(..).map(Driven).collect();
        step_many(&mut sessions, |each, result| each.0.take(result));
        // In the middle of a round.
        let is_dropped = |run: &Run| kind(run.number) == Kind::Dropped && calls > 7;
        for Driven(mut run) in sessions {
            if is_dropped(&run) {
                run.end = Some(End::Dropped);
            }
            if run.end.is_some() { ended.push(run) } else { runs.push(run) }
        }
    }
    ended
}

struct Driven(Run);

impl std::borrow::Borrow<Session> for Driven {
    fn borrow(&self) -> &Session {
        &self.0.session
    }
}

impl std::borrow::BorrowMut<Session> for Driven {
    fn borrow_mut(&mut self) -> &mut Session {
        &mut self.0.session
    }
}

/// What must be as it is alone, and what may differ.
fn compare(alone: &Run, run: &Run, about: &str) {
    let about = format!("{about}, {:?} {}: {:?}", kind(run.number), run.number, options(run.number, &target()));
    let shared = run.text.len().min(alone.text.len());
    match kind(run.number) {
        // Drafts meet what fails earlier, and in company the plan is another one.
        Kind::Fails | Kind::Nan | Kind::Panics if options(run.number, &target()).strategy == Strategy::Auto => {
            assert_eq!((&run.text[..shared], &run.end), (&alone.text[..shared], &alone.end), "{about}");
        }
        Kind::Usual | Kind::Stops | Kind::Fails | Kind::Nan | Kind::Panics => {
            assert_eq!((&run.text, &run.end), (&alone.text, &alone.end), "{about}");
        }
        // A cancelled round draws anew, by other numbers.
        Kind::Cancelled if run.number.is_multiple_of(3) => assert_eq!(run.text, alone.text, "{about}"),
        Kind::Cancelled => assert_eq!(run.text.len(), TOKENS, "{about}"),
        Kind::Dropped => assert_eq!(run.text[..shared], alone.text[..shared], "{about}"),
    }
}

fn target() -> Combine {
    Combine::Target { model: 0 }
}

/// Show no panics of bad functions.
fn quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if info.payload().downcast_ref::<&str>().is_none_or(|message| *message != BAD_FUNCTION) {
                hook(info);
            }
        }));
    });
}

/// Sessions of two engines of the same models; a third of the threads drive several sessions each.
fn check(threads: usize, combine: Combine) {
    quiet();
    let alone = engine(&[model(0, false), model(1, false)], &combine);
    let expected: Vec<Run> = (0..SESSIONS)
        .map(|number| {
            let mut run = Run::new(&alone, &combine, number);
            while run.end.is_none() {
                run.step();
            }
            run
        })
        .collect();
    for (number, run) in expected.iter().enumerate().filter(|(number, _)| kind(*number) == Kind::Usual) {
        assert_eq!(run.text.len(), TOKENS, "{number}: {:?}", run.end);
    }
    // The second model batches in one test and runs alone in another.
    for second in [true, false] {
        let models = [model(0, true), model(1, second)];
        let engines = [engine(&models, &combine), engine(&models, &combine)];
        let share = SESSIONS / threads;
        let mut work: Vec<Vec<Run>> = (0..threads)
            .map(|thread| {
                let numbers = (0..share).map(|index| (index * threads + thread) * 7 % SESSIONS);
                numbers.map(|number| Run::new(&engines[number % 2], &combine, number)).collect()
            })
            .collect();
        drop(engines);
        let ended = std::thread::scope(|scope| {
            let spawn = |(thread, mut runs): (usize, Vec<Run>)| {
                scope.spawn(move || {
                    if thread % 3 == 2 {
                        together(runs)
                    } else {
                        one_by_one(&mut runs);
                        runs
                    }
                })
            };
            let handles: Vec<_> = work.drain(..).enumerate().map(spawn).collect();
            handles.into_iter().flat_map(|handle| handle.join().unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(ended.len(), share * threads);
        for run in &ended {
            compare(&expected[run.number], run, &format!("{threads} threads, {combine:?}, {second}"));
        }
    }
}

#[test]
fn two_threads() {
    check(2, Combine::Weighted { weights: vec![0.6, 0.4] });
}

#[test]
fn eight_threads() {
    check(8, Combine::Weighted { weights: vec![0.5, 0.5] });
    check(8, Combine::Contrastive { mu: 0.3, plausibility: 0.0 });
}

#[test]
fn sixty_four_threads() {
    check(64, Combine::Weighted { weights: vec![0.5, 0.5] });
    check(64, Combine::Logits { weights: vec![1.0, -0.25] });
}

/// A small export in packed passes, where neighbours change the last bits of a row at most.
#[test]
fn threads_with_a_packed_export() {
    one_thread();
    let path = root().join("tests/exports/llama/builder-fp32");
    let config = format!(
        r#"{{"models": [{{"path": "{0}", "name": "a"}}, {{"path": "{0}", "name": "b"}}],
            "combine": {{"kind": "weighted", "weights": [0.7, 0.3]}}}}"#,
        path.display()
    );
    let engine = Arc::new(Engine::load(&Config::parse(&config).unwrap()).unwrap());
    assert!(engine.models().all(|model| model.batches()), "{}", engine.describe());
    let options = |number: usize| Options {
        strategy: [Strategy::Standard, Strategy::Speculative, Strategy::Cos][number % 3],
        stop_tokens: Some(Vec::new()),
        max_tokens: TOKENS,
        ..Options::default()
    };
    let decode = |number: usize| {
        let mut session = Session::new(&engine, &options(number)).unwrap();
        let prompt: Vec<i32> = (0..1 + number % 17).map(|index| (number * 13 + index * 5) as i32 % 90 + 1).collect();
        session.prompt(&prompt).unwrap();
        let mut text = Vec::new();
        loop {
            let (tokens, state) = session.step().unwrap();
            text.extend_from_slice(tokens);
            if state != State::Open {
                return text;
            }
        }
    };
    let expected: Vec<Vec<i32>> = (0..SESSIONS).map(decode).collect();
    for threads in [2, 8, 64] {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let (expected, decode) = (&expected, &decode);
                scope.spawn(move || {
                    for number in (thread..SESSIONS).step_by(threads) {
                        assert_eq!(decode(number), expected[number], "session {number}, {threads} threads");
                    }
                });
            }
        });
    }
}
