//! One thread that drives many sessions: a pass of each model for all that need it.

use std::borrow::BorrowMut;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::decode::decoder::Need;
use crate::engine::queue::{LOOK_AGAIN, Ticket};
use crate::engine::round::Progress;
use crate::engine::session::{Session, State};
use crate::error::{Error, Result};
use crate::model::{Interrupt, Report};

/// What a call needs, kept from call to call by the first session.
#[derive(Default)]
pub struct Buffers {
    /// Where each session stands in the call.
    stands: Vec<Stand>,
    /// Empty.
    tickets: Vec<Ticket<'static>>,
    outcomes: Vec<Option<Result<Report, Interrupt>>>,
}

/// Where a session stands in a call.
enum Stand {
    /// It waits for passes.
    Waits,
    /// One of its passes has failed, or was cancelled.
    Interrupted(Interrupt),
    /// It has had its news.
    Done,
}

/// Let each session go on until it needs passes. Then run one pass of each model for all, and let them go on. `news`
/// is called for each session whose round has ended: with its [`Session::tokens`], or with an error of its own. The
/// others are in the middle of a round. A panic is an [`Error::Internal`] of its session, which must not be used again.
pub fn step_many<S: BorrowMut<Session>>(sessions: &mut [S], mut news: impl FnMut(&mut S, Result<State>)) {
    let Some(first) = sessions.first_mut() else { return };
    let mut buffers = std::mem::take(&mut first.borrow_mut().many);
    buffers.stands.clear();
    for each in &mut *sessions {
        let stand = advance(each, &mut news, |session| {
            session.engine.process().check()?;
            session.resume();
            Ok(session.advance())
        });
        buffers.stands.push(stand);
    }
    for (each, stand) in sessions.iter_mut().zip(&mut buffers.stands) {
        if matches!(stand, Stand::Waits)
            && let Err(interrupt) = catch(|| each.borrow_mut().driver.run_alone())
        {
            *stand = Stand::Interrupted(interrupt);
        }
    }
    let mut given_back = None;
    for index in 0..sessions.len() {
        let is_done = matches!(buffers.stands[index], Stand::Done);
        let needs = if is_done { 0 } else { sessions[index].borrow().driver.needs().len() };
        for need in 0..needs {
            let all = run_together(sessions, (index, need), &mut buffers);
            given_back = all.map_or(given_back, |all| Some(all && given_back != Some(false)));
        }
    }
    if given_back == Some(true) {
        // Sessions of other threads have all memory. Give them time.
        std::thread::sleep(LOOK_AGAIN);
    }
    for (each, stand) in sessions.iter_mut().zip(&mut buffers.stands) {
        match std::mem::replace(stand, Stand::Done) {
            Stand::Waits => _ = advance(each, &mut news, |session| Ok(session.advance())),
            Stand::Interrupted(interrupt) => match catch(|| Ok(each.borrow_mut().interrupted(interrupt))) {
                Ok(result) => result.into_iter().for_each(|result| news(each, result)),
                Err(interrupt) => news(each, Err(failure(interrupt))),
            },
            Stand::Done => {}
        }
        each.borrow_mut().pause();
    }
    if let Some(first) = sessions.first_mut() {
        first.borrow_mut().many = buffers;
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
        Ok(Progress::News(result)) => result,
        Err(interrupt) => Err(failure(interrupt)),
    };
    news(each, result);
    Stand::Done
}

/// Run a pass that a session needs, with all passes of the same model that others need, unless that was done for an
/// earlier one. Returns whether all of them were given back, because there is no memory; `None` if nothing was done.
fn run_together<S: BorrowMut<Session>>(
    sessions: &mut [S],
    first: (usize, usize),
    buffers: &mut Buffers,
) -> Option<bool> {
    let Buffers { stands, tickets, outcomes } = buffers;
    let driver = &sessions[first.0].borrow().driver;
    let need = driver.needs()[first.1];
    let (queues, participant) = driver.shared(need)?;
    let (queue, model) = (queues.of(need.model)?, participant.model()?);
    let waiter = driver.waiter().clone();
    let same = |session: &Session| {
        let needs = |need: &&Need| session.driver.queue(**need).is_some_and(|other| std::ptr::eq(other, queue));
        session.driver.needs().iter().find(needs).copied()
    };
    let waits = |stand: &Stand| matches!(stand, Stand::Waits);
    let is_done = |(each, stand): (&S, &Stand)| !matches!(stand, Stand::Done) && same(each.borrow()).is_some();
    if sessions[..first.0].iter().zip(&*stands).any(is_done) {
        return None;
    }
    let mut waiting = recycle(std::mem::take(tickets));
    for (each, _) in sessions.iter_mut().zip(&*stands).filter(|(_, stand)| waits(stand)) {
        let session = each.borrow_mut();
        if let Some(need) = same(session) {
            waiting.push(session.driver.ticket(need));
        }
    }
    queue.run(model, &waiter, false, &mut waiting);
    outcomes.clear();
    outcomes.extend(waiting.drain(..).map(Ticket::outcome));
    *tickets = recycle(waiting);
    let all_given_back = outcomes.iter().all(Option::is_none);
    let mut outcomes = outcomes.drain(..);
    for (each, stand) in sessions.iter_mut().zip(stands).filter(|(_, stand)| waits(stand)) {
        let session = each.borrow_mut();
        let Some(need) = same(session) else { continue };
        match outcomes.next() {
            Some(Some(Ok(report))) => session.driver.ran(need, report, false),
            Some(Some(Err(interrupt))) => *stand = Stand::Interrupted(interrupt),
            // There is no memory for the pass now. The next call asks for it again.
            Some(None) => {}
            None => break,
        }
    }
    Some(all_given_back)
}

/// The same memory for tickets that live for another time.
fn recycle<'b>(mut tickets: Vec<Ticket<'_>>) -> Vec<Ticket<'b>> {
    tickets.clear();
    // The standard library collects into the memory of the vector, since both kinds of tickets have one layout.
    tickets.into_iter().map(|_| unreachable!("the vector is empty")).collect()
}

/// Turn a panic into an error.
fn catch<T>(body: impl FnOnce() -> Result<T, Interrupt>) -> Result<T, Interrupt> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(Error::of_panic(panic.as_ref()).into()))
}

fn failure(interrupt: Interrupt) -> Error {
    match interrupt {
        Interrupt::Failed(error) => error,
        Interrupt::Cancelled => Error::Internal("a step was cancelled outside of a round".into()),
    }
}
