//! One thread that drives many sessions: a pass of each model for all that need it.

use std::borrow::BorrowMut;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;

use crate::decode::decoder::Beside;
use crate::engine::Engine;
use crate::engine::beside;
use crate::engine::phase::{CallBuffers, Outcome, Stand};
use crate::engine::queue::{self, LOOK_AGAIN, MOST_MODELS, PassQueue, Ticket};
use crate::engine::round::Progress;
use crate::engine::session::{Session, State};
use crate::error::{Error, Result};
use crate::model::Interrupt;
use crate::rows::DeviceAnswers;

/// Let each session go on until it needs passes. Then run one pass of each model for all, and let them go on. `news`
/// is called for each session whose round has ended: with its [`Session::tokens`], or with an error of its own. The
/// others are in the middle of a round. A panic is an [`Error::Internal`] of its session, which must not be used again.
pub fn step_many<S: BorrowMut<Session>>(sessions: &mut [S], mut news: impl FnMut(&mut S, Result<State>)) {
    let Some(first) = sessions.first_mut() else { return };
    let mut buffers = std::mem::take(&mut first.borrow_mut().many);
    buffers.stands.clear();
    let mut moment = Moment::default();
    for each in &mut *sessions {
        let stand = advance(each, &mut news, |session| {
            session.engine.process().check()?;
            session.resume(moment.of(&session.engine));
            Ok(session.go_on())
        });
        buffers.stands.push(stand);
    }
    answer(sessions, &mut buffers.stands, &mut news);
    for (each, stand) in sessions.iter_mut().zip(&mut buffers.stands) {
        if matches!(stand, Stand::Waits)
            && let Err(interrupt) = catch(|| each.borrow_mut().driver.run_alone())
        {
            *stand = Stand::Interrupted(interrupt);
        }
    }
    run_together(sessions, &mut buffers);
    for (each, stand) in sessions.iter_mut().zip(&mut buffers.stands) {
        match std::mem::replace(stand, Stand::Done) {
            Stand::Waits => *stand = advance(each, &mut news, |session| Ok(session.go_on())),
            Stand::Interrupted(interrupt) => match catch(|| Ok(each.borrow_mut().interrupted(interrupt))) {
                Ok(result) => result.into_iter().for_each(|result| news(each, result)),
                Err(interrupt) => {
                    let error = poisoned(each, interrupt);
                    news(each, Err(error));
                }
            },
            Stand::Asks | Stand::Done => {}
        }
    }
    answer(sessions, &mut buffers.stands, &mut news);
    let mut moment = Moment::default();
    for session in sessions.iter_mut().map(S::borrow_mut) {
        session.pause(moment.of(&session.engine));
    }
    if let Some(first) = sessions.first_mut() {
        first.borrow_mut().many = buffers;
    }
}

/// The time at which something happens to all sessions. A clock is read once for sessions of its engine in a row.
#[derive(Default)]
struct Moment(Option<(*const Engine, Duration)>);

impl Moment {
    fn of(&mut self, engine: &Arc<Engine>) -> Duration {
        match self.0 {
            Some((of, now)) if of == Arc::as_ptr(engine) => now,
            _ => self.0.insert((Arc::as_ptr(engine), engine.clock()())).1,
        }
    }
}

/// Let a session go on, and tell its news.
fn advance<S: BorrowMut<Session>>(
    each: &mut S,
    news: &mut impl FnMut(&mut S, Result<State>),
    body: impl FnOnce(&mut Session) -> Result<Progress>,
) -> Stand {
    let result = match catch(|| body(each.borrow_mut()).map_err(Interrupt::Failed)) {
        Ok(Progress::Waits) => return Stand::Waits,
        Ok(Progress::Asks) => return Stand::Asks,
        Ok(Progress::News(result)) => result,
        Err(interrupt) => Err(poisoned(each, interrupt)),
    };
    news(each, result);
    Stand::Done
}

/// Answer the questions of all sessions at once, and let them go on, until none has one.
fn answer<S: BorrowMut<Session>>(
    sessions: &mut [S],
    stands: &mut [Stand],
    news: &mut impl FnMut(&mut S, Result<State>),
) {
    while let Some(first) = stands.iter().position(|stand| matches!(stand, Stand::Asks)) {
        // Sessions of other engines may have their rows elsewhere.
        let queues = sessions[first].borrow().driver.queues().cloned();
        let is_asked = |each: &S, stand: &Stand| {
            let of = each.borrow().driver.queues();
            matches!(stand, Stand::Asks) && of.map(Arc::as_ptr) == queues.as_ref().map(Arc::as_ptr)
        };
        let mut answers: Option<Box<dyn DeviceAnswers>> = None;
        for (each, _) in sessions.iter_mut().zip(&*stands).filter(|(each, stand)| is_asked(each, stand)) {
            let (Some(question), Some(queues)) = (each.borrow_mut().driver.question(), &queues) else { continue };
            match &mut answers {
                Some(answers) => answers.take(question),
                None => answers = Some(queues.questions().take(question)),
            }
        }
        let outcome = match (answers, &queues) {
            (Some(answers), Some(queues)) => queues.questions().answer(answers),
            _ => Ok(()),
        };
        for (each, stand) in sessions.iter_mut().zip(&mut *stands) {
            if is_asked(each, stand) {
                if let Some(question) = each.borrow_mut().driver.question() {
                    question.settle(&outcome);
                }
                *stand = advance(each, news, |session| Ok(session.go_on()));
            }
        }
    }
}

/// Run one pass of each model that sessions wait for.
fn run_together<S: BorrowMut<Session>>(sessions: &mut [S], buffers: &mut CallBuffers) {
    let CallBuffers { stands, tickets, besides, needs, outcomes } = buffers;
    let waits = |index: &usize| matches!(stands[*index], Stand::Waits);
    let Some(first) = (0..stands.len()).find(waits) else { return };
    let waiter = sessions[first].borrow().driver.waiter().clone();
    let (turn, asked) = (turn(sessions, stands), Instant::now());
    let mut waiting = recycle::<Ticket, Ticket>(std::mem::take(tickets));
    let mut working = recycle::<Beside<_>, Beside<_>>(std::mem::take(besides));
    needs.clear();
    for (index, each) in sessions.iter_mut().enumerate() {
        let session = each.borrow_mut();
        // A probe is one pass, and its session has no tokens meanwhile.
        if !matches!(stands[index], Stand::Waits) || !session.is_probing() && session.driver.waits_for_turn(turn) {
            continue;
        }
        if let Some(refusal) = each.borrow_mut().driver.refusal() {
            stands[index] = Stand::Interrupted(refusal.into());
            continue;
        }
        let (tickets, beside) = each.borrow_mut().driver.tickets(asked);
        for (need, mut ticket) in tickets {
            ticket.place = needs.len();
            needs.push((index, need));
            waiting.push(ticket);
        }
        working.push(beside);
    }
    // Tickets of a queue must be next to each other.
    waiting.sort_unstable_by_key(|ticket| (std::ptr::from_ref(ticket.queue()).addr(), ticket.place));
    queue::run(&waiter, false, &mut waiting, &mut || beside::work(&mut working));
    outcomes.clear();
    outcomes.extend(waiting.drain(..).map(|ticket| {
        let (place, overlaps, common) = (ticket.place, ticket.queue().overlaps(), ticket.common());
        Outcome { place, overlaps, outcome: ticket.outcome(), common }
    }));
    (*tickets, *besides) = (recycle(waiting), recycle(working));
    if !outcomes.is_empty() && outcomes.iter().all(|outcome| outcome.outcome.is_none()) {
        // Sessions of other threads have all memory, or those whose turn it is not. Give them time.
        std::thread::sleep(LOOK_AGAIN);
        sessions.iter_mut().for_each(|each| each.borrow_mut().driver.end_wait());
    }
    for Outcome { place, overlaps, outcome, common } in outcomes.drain(..) {
        let (index, need) = needs[place];
        let driver = &mut sessions[index].borrow_mut().driver;
        match outcome {
            // There is no memory or no room for the pass now. The next call asks for it again.
            None => driver.stay(asked, common.is_some()),
            Some(Ok(report)) => {
                let overlapped = overlaps && driver.needs().len() > 1;
                driver.ran_in_company(need, report, overlapped, common);
            }
            Some(Err(interrupt)) => stands[index] = Stand::Interrupted(interrupt),
        }
    }
}

/// The queue of the model whose turn it is; `None` if all run. Models take turns if each session waits for one of
/// several: the one runs that most sessions wait for, for the time that it takes. The others wait, and are joined by
/// those whose turn is over. So a pass serves all sessions where passes of several models would serve a part each.
fn turn<S: BorrowMut<Session>>(sessions: &[S], stands: &[Stand]) -> Option<*const PassQueue> {
    let mut turns = ArrayVec::<Turn, MOST_MODELS>::new();
    let waits = |(each, stand): &(&S, &Stand)| {
        let session: &Session = (*each).borrow();
        matches!(stand, Stand::Waits) && !session.is_probing() && !session.driver.fails()
    };
    for (each, _) in sessions.iter().zip(stands).filter(waits) {
        // A session that waits for several is part of each pass.
        let (queue, seconds) = each.borrow().driver.turn()?;
        match turns.iter_mut().find(|turn| turn.queue == queue) {
            Some(turn) => turn.sessions += 1,
            None => turns.try_push(Turn { queue, sessions: 1, seconds }).ok()?,
        }
    }
    turns.iter().max_by(|a, b| a.gain().total_cmp(&b.gain())).map(|turn| turn.queue)
}

/// A model that could run next.
struct Turn {
    /// Its queue.
    queue: *const PassQueue,
    /// Sessions that wait for it.
    sessions: usize,
    /// Seconds of its last pass.
    seconds: f64,
}

impl Turn {
    /// Sessions that are served in a second.
    fn gain(&self) -> f64 {
        self.sessions as f64 / self.seconds
    }
}

/// The same memory for things that live for another time.
fn recycle<A, B>(mut things: Vec<A>) -> Vec<B> {
    things.clear();
    // The standard library collects into the memory of the vector, since both kinds have one layout.
    things.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}

/// Turn a panic into an error.
fn catch<T>(body: impl FnOnce() -> Result<T, Interrupt>) -> Result<T, Interrupt> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(Error::of_panic(panic.as_ref()).into()))
}

/// The error of a session that has panicked, or that is of another process.
fn poisoned<S: BorrowMut<Session>>(each: &mut S, interrupt: Interrupt) -> Error {
    each.borrow_mut().abandon();
    match interrupt {
        Interrupt::Failed(error) => error,
        Interrupt::Cancelled => Error::Internal("a step was cancelled outside of a round".into()),
    }
}
