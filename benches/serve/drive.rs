//! Sessions that decode for clients: all on one thread, as an event loop has them, or a thread for each.

use std::borrow::{Borrow, BorrowMut};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use cos::engine::Engine;
use cos::engine::many::step_many;
use cos::engine::session::{Options, Session, State};
use cos::error::Result;

use super::load::{Load, Next, Request};
use super::tally::{Measurement, Served};

/// A session, and what its client has seen of it.
struct Running {
    session: Session,
    served: Served,
    /// What its last step said.
    news: Option<Result<State>>,
}

impl Borrow<Session> for Running {
    fn borrow(&self) -> &Session {
        &self.session
    }
}

impl BorrowMut<Session> for Running {
    fn borrow_mut(&mut self) -> &mut Session {
        &mut self.session
    }
}

/// Requests of all measurements so far. Each has a scope of its own: else it would find prompts of earlier ones in the
/// cache.
static SCOPES: AtomicUsize = AtomicUsize::new(0);

impl Running {
    fn new(engine: &Arc<Engine>, options: &Options, request: &Request, now: f64) -> Result<Running> {
        let options = Options { seed: request.index, max_tokens: request.tokens, ..options.clone() };
        let mut session = Session::new(engine, &options)?;
        session.set_scope(&SCOPES.fetch_add(1, Ordering::Relaxed).to_string())?;
        session.prompt(&request.prompt)?;
        let bursts = Vec::with_capacity(request.tokens);
        let served = Served { arrived: request.arrived, started: now, bursts, whole: false, bytes: 0 };
        Ok(Running { session, served, news: None })
    }

    /// Note what a step has brought.
    fn came(&mut self, news: Result<State>, now: f64) {
        let tokens = self.session.tokens().len();
        if news.is_ok() && tokens > 0 {
            self.served.bursts.push((now, tokens));
        }
        self.news = Some(news);
    }

    /// What the client saw.
    fn served(self) -> Served {
        Served { bytes: self.session.memory().peak_bytes, ..self.served }
    }

    /// Whether the text has ended.
    fn has_ended(&mut self) -> Result<bool> {
        self.served.whole = self.news.take().transpose()?.is_some_and(|state| state != State::Open);
        Ok(self.served.whole)
    }
}

/// Serve this load with at most `most` sessions at once, all on this thread.
pub fn by_one(engine: &Arc<Engine>, options: &Options, most: usize, mut load: Load) -> Result<Measurement> {
    let began = Instant::now();
    let now = || began.elapsed().as_secs_f64();
    let (mut running, mut served) = (Vec::<Running>::with_capacity(most), Vec::new());
    loop {
        while running.len() < most {
            let at = now();
            match load.next(at) {
                Next::Ask(request) => running.push(Running::new(engine, options, &request, at)?),
                Next::Wait(until) if running.is_empty() && !load.is_over(at) => sleep(until - at),
                Next::Wait(_) => break,
            }
        }
        step_many(&mut running, |each: &mut Running, news| each.came(news, now()));
        let mut index = 0;
        while index < running.len() {
            if running[index].has_ended()? {
                let ended = running.remove(index).served(); // the others stay in the order in which they came
                load.ended();
                served.push(ended);
            } else {
                index += 1;
            }
        }
        if load.is_over(now()) {
            served.extend(running.into_iter().map(Running::served));
            return Ok(finish(served, load));
        }
    }
}

/// Serve this load with `most` threads, each of which has one session at a time.
pub fn by_threads(engine: &Arc<Engine>, options: &Options, most: usize, load: Load) -> Result<Measurement> {
    let began = Instant::now();
    let now = || began.elapsed().as_secs_f64();
    let load = Mutex::new(load);
    let serve = || -> Result<Vec<Served>> {
        let mut served = Vec::new();
        loop {
            let at = now();
            let next = {
                let mut load = load.lock().expect("no panic");
                if load.is_over(at) {
                    return Ok(served);
                }
                load.next(at)
            };
            let request = match next {
                Next::Ask(request) => request,
                Next::Wait(until) => {
                    sleep(until - at);
                    continue;
                }
            };
            let decoded = alone(engine, options, &request, &now, &|| load.lock().expect("no panic").is_over(now()));
            load.lock().expect("no panic").ended();
            served.push(decoded?);
        }
    };
    let served = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..most).map(|_| scope.spawn(serve)).collect();
        threads.into_iter().try_fold(Vec::new(), |mut all, thread| {
            all.extend(thread.join().expect("no panic")?);
            Result::Ok(all)
        })
    })?;
    Ok(finish(served, load.into_inner().expect("no panic")))
}

/// A measurement that has ended, with the requests that nobody has taken.
fn finish(mut served: Vec<Served>, mut load: Load) -> Measurement {
    let left = |arrived| Served { arrived, started: f64::INFINITY, bursts: Vec::new(), whole: false, bytes: 0 };
    served.extend(load.left().into_iter().map(left));
    Measurement { served, window: load.window() }
}

/// Decode a text on this thread, until it ends or nobody waits for it.
fn alone(
    engine: &Arc<Engine>,
    options: &Options,
    request: &Request,
    now: &impl Fn() -> f64,
    is_over: &impl Fn() -> bool,
) -> Result<Served> {
    let mut running = Running::new(engine, options, request, now())?;
    while !running.has_ended()? && !is_over() {
        let news = running.session.step().map(|(_, state)| state);
        running.came(news, now());
    }
    Ok(running.served())
}

/// Sleep a millisecond at most, since the measurement may end meanwhile.
fn sleep(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds.clamp(0.0, 1e-3)));
}
