//! Combines the passes that several threads ask for into common ones, without a thread and a timer of its own.
//!
//! A thread that needs a pass and finds that nobody leads becomes the leader. The leader runs one pass for all that wait
//! and gives each its outcome. Once its own passes are done, it makes the first that still waits the next leader, or
//! nobody. So there is a leader whenever somebody waits, and no thread works for others for longer than for itself.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::time::Duration;

use super::sync::{Arc, Mutex, MutexGuard};
use super::wait::{Crowd, Waiter};
use crate::error::Error;
use crate::model::{Admission, Cancel, Interrupt, Model, Pass, Report};

/// Most tokens of a pass that is taken before wider ones: decoding and verification, but no chunk of a prompt.
const NARROW: usize = 16;

/// How often a leader looks whether there is memory, while no pass can run because there is none.
pub const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// What becomes of a pass for which there is not enough memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhenFull {
    /// It waits.
    Wait,
    /// It fails.
    Refuse,
    /// It is given back, to be asked for again later.
    Return,
}

/// A pass that is asked for, and later its outcome.
pub struct Ticket<'a> {
    pass: Pass<'a>,
    cancel: &'a Cancel,
    when_full: WhenFull,
    /// It was part of a pass that failed, so it runs alone.
    alone: bool,
    /// Time of passes that computed tokens anew.
    spent: Duration,
    outcome: Option<Result<Report, Interrupt>>,
}

impl<'a> Ticket<'a> {
    /// Ask for a pass, unless its session is cancelled before.
    pub fn new(pass: Pass<'a>, cancel: &'a Cancel, when_full: WhenFull) -> Self {
        Ticket { pass, cancel, when_full, alone: false, spent: Duration::ZERO, outcome: None }
    }

    /// How the pass went. `None` if it was given back.
    pub fn outcome(self) -> Option<Result<Report, Interrupt>> {
        self.outcome
    }
}

/// The passes of one model that threads wait for.
pub struct PassQueue {
    state: Mutex<Waiting>,
    max_tokens: usize,
    crowd: Arc<Crowd>,
}

/// A call of [`PassQueue::run`]. It lies on the stack of the thread that waits.
struct Call {
    /// Tickets without an outcome.
    open: usize,
    leads: bool,
    /// Whether the thread belongs to the crowd while it does not wait.
    in_crowd: bool,
    waiter: Arc<Waiter>,
}

/// A ticket that waits or runs, and the call that it belongs to.
#[derive(Clone, Copy)]
struct Entry {
    ticket: NonNull<Ticket<'static>>,
    call: NonNull<Call>,
    /// A pass was run without it, because it was full.
    stayed: bool,
    /// Whether there is memory for it.
    admission: Admission,
}

impl Entry {
    fn new(ticket: NonNull<Ticket<'static>>, call: NonNull<Call>) -> Self {
        Entry { ticket, call, stayed: false, admission: Admission::Waits }
    }

    /// Tokens that the next pass takes of it; `None` if there is no memory.
    fn width(&self) -> Option<usize> {
        match self.admission {
            Admission::Whole(tokens) | Admission::Part(tokens) => Some(tokens),
            Admission::Waits => None,
        }
    }
}

// SAFETY: an entry points to a ticket and a call, whose parts may all be used from any thread: `Sequence` is `Send`,
// `Cancel` and `Waiter` are `Sync`. Who may use them when is said at `PassQueue::run`.
unsafe impl Send for Entry {}

#[derive(Default)]
struct Waiting {
    /// Whether some call leads. If not, nobody waits.
    has_leader: bool,
    /// A leader that waits for memory.
    idle: Option<Arc<Waiter>>,
    /// In the order of arrival, until sessions are ordered by age for the next pass.
    entries: VecDeque<Entry>,
    /// Those who are to be woken once the lock is released.
    woken: Vec<Arc<Waiter>>,
    /// Empty, kept for the next pass.
    batch: Vec<Entry>,
    /// Empty, kept for the next pass.
    passes: Vec<Pass<'static>>,
}

type Guard<'a> = MutexGuard<'a, Waiting>;

impl PassQueue {
    /// The queue of a model whose passes hold at most `max_tokens` tokens. The crowd is that of its engine.
    pub fn new(max_tokens: usize, crowd: Arc<Crowd>) -> Self {
        PassQueue { state: Mutex::default(), max_tokens, crowd }
    }

    /// Run the passes of all tickets, together with those of other threads. Returns once each ticket has its outcome.
    ///
    /// The model is always that of the queue. `waiter` is used by this call alone meanwhile. `in_crowd` says that the
    /// thread was added to the crowd; it is not part of it while it waits.
    pub fn run(&self, model: &dyn Model, waiter: &Arc<Waiter>, in_crowd: bool, tickets: &mut [Ticket<'_>]) {
        if tickets.is_empty() {
            return;
        }
        // SAFETY (of this file): the call and the tickets live until this function returns, which is when `open` is 0.
        // An entry is in `entries` or in the batch of the leader only while its ticket has no outcome, which `open`
        // counts; so nobody has a pointer to them after that. A call is used only with the lock held. A ticket is
        // used with the lock held, but for its pass: the leader uses that alone while the entry is in its batch. The
        // thread that owns them uses them by the same pointers and rules until it returns.
        let mut call = Call { open: tickets.len(), leads: false, in_crowd, waiter: waiter.clone() };
        let call = NonNull::from(&mut call);
        let count = tickets.len();
        let first = NonNull::from(tickets).cast::<Ticket<'static>>();
        let ticket = |index| unsafe { first.add(index) };
        let mut state = self.lock();
        state.entries.extend((0..count).map(|index| Entry::new(ticket(index), call)));
        if in_crowd {
            self.crowd.remove(1);
        }
        if let Some(leader) = state.idle.take() {
            leader.wake();
        }
        if !state.has_leader {
            state.has_leader = true;
            // SAFETY: the lock is held.
            unsafe { (*call.as_ptr()).leads = true };
        }
        loop {
            // SAFETY: the lock is held.
            let Call { open, leads, .. } = unsafe { call.as_ref() };
            match (*open, *leads) {
                (0, false) => return,
                // Its last ticket may have got its outcome from another thread, just after this one was made leader.
                (0, true) => {
                    state.pass_leadership_on(call);
                    state = self.wake(state);
                    continue;
                }
                (_, true) => {
                    state = self.lead(state, model, call);
                    continue;
                }
                (_, false) => {}
            }
            drop(state);
            waiter.wait();
            state = self.lock();
            // SAFETY: the lock is held.
            if (0..count).any(|index| unsafe { is_cancelled(ticket(index)) }) {
                state.let_cancelled_go(&self.crowd, Some(call));
                state = self.wake(state);
            }
        }
    }

    fn lock(&self) -> Guard<'_> {
        self.state.lock().expect("nobody panics with this lock")
    }

    /// Run one pass, for the leader and for others.
    fn lead<'a>(&'a self, mut state: Guard<'a>, model: &dyn Model, own: NonNull<Call>) -> Guard<'a> {
        if !self.crowd.is_empty() {
            drop(state);
            self.crowd.gather();
            state = self.lock();
        }
        state.let_cancelled_go(&self.crowd, Some(own));
        state = self.wake(state);
        // SAFETY: the lock is held.
        if unsafe { own.as_ref() }.open > 0 {
            state.admit(model, &self.crowd, own);
            state.choose(own, self.max_tokens);
            if state.batch.is_empty() {
                return self.wait_for_memory(state, own);
            }
            let (mut batch, mut passes) = (std::mem::take(&mut state.batch), std::mem::take(&mut state.passes));
            drop(state);
            passes.extend(batch.iter().map(|entry| {
                // SAFETY: the entry is in the batch of this leader, so the pass is the leader's alone. The borrow ends
                // with `passes.clear()`, before the entry gets its outcome.
                let pass = unsafe { &mut (*entry.ticket.as_ptr()).pass };
                let tokens = if matches!(entry.admission, Admission::Part(_)) { &[] } else { pass.tokens };
                Pass { sequence: &mut *pass.sequence, tokens, ..*pass }
            }));
            let result = catch_unwind(AssertUnwindSafe(|| model.forward(&mut passes)));
            passes.clear();
            state = self.lock();
            let result = result.unwrap_or_else(|panic| Err(Interrupt::Failed(Error::of_panic(panic.as_ref()))));
            state.settle(&mut batch, result, &self.crowd, own);
            (state.batch, state.passes) = (batch, passes);
        }
        self.wake(state)
    }

    /// No pass could be chosen. If some other call has one that it runs alone, let it lead. Otherwise wait until there
    /// may be memory: another thread asks for a pass, or some time has gone by.
    fn wait_for_memory<'a>(&'a self, mut state: Guard<'a>, own: NonNull<Call>) -> Guard<'a> {
        // SAFETY: the lock is held.
        let Call { open, waiter, .. } = unsafe { own.as_ref() };
        if *open == 0 {
            return self.wake(state);
        }
        if let Some(entry) = state.entries.iter().find(|entry| entry.width().is_some()).copied() {
            state.hand_over(own, entry.call);
            return self.wake(state);
        }
        let waiter = waiter.clone();
        state.idle = Some(waiter.clone());
        drop(self.wake(state));
        waiter.wait_for(LOOK_AGAIN);
        let mut state = self.lock();
        state.idle = None;
        state
    }

    /// Wake those who are to be woken, without the lock.
    fn wake<'a>(&'a self, mut state: Guard<'a>) -> Guard<'a> {
        if state.woken.is_empty() {
            return state;
        }
        let mut woken = std::mem::take(&mut state.woken);
        drop(state);
        woken.drain(..).for_each(|waiter| waiter.wake());
        state = self.lock();
        if state.woken.capacity() < woken.capacity() && state.woken.is_empty() {
            state.woken = woken;
        }
        state
    }
}

/// # Safety
/// The ticket has no outcome, and the lock is held.
unsafe fn is_cancelled(ticket: NonNull<Ticket<'static>>) -> bool {
    // The pass may be in use by a leader, so there is no reference to the whole ticket.
    unsafe { (*ticket.as_ptr()).cancel }.is_requested()
}

impl Waiting {
    /// Give a ticket its outcome, which ends the use of its entry.
    fn finish(
        &mut self,
        entry: &Entry,
        outcome: Option<Result<Report, Interrupt>>,
        crowd: &Crowd,
        own: Option<NonNull<Call>>,
    ) {
        // SAFETY: the lock is held, and the entry is in nobody's batch any more.
        let (ticket, call) = unsafe { (&mut *entry.ticket.as_ptr(), &mut *entry.call.as_ptr()) };
        ticket.outcome = outcome;
        call.open -= 1;
        if call.open == 0 {
            if call.in_crowd {
                crowd.add(1);
            }
            if own != Some(entry.call) {
                self.woken.push(call.waiter.clone());
            }
        }
    }

    /// End the wait of sessions that were cancelled.
    fn let_cancelled_go(&mut self, crowd: &Crowd, own: Option<NonNull<Call>>) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| {
            // SAFETY: the entry waits, so its ticket has no outcome; the lock is held.
            let cancelled = unsafe { is_cancelled(entry.ticket) };
            if cancelled {
                self.finish(entry, Some(Err(Interrupt::Cancelled)), crowd, own);
            }
            !cancelled
        });
        self.entries = entries;
    }

    /// See for which passes there is memory, those of the oldest sessions first.
    fn admit(&mut self, model: &dyn Model, crowd: &Crowd, own: NonNull<Call>) {
        // SAFETY: the entries wait, and the lock is held.
        self.entries.make_contiguous().sort_unstable_by_key(|entry| unsafe { (*entry.ticket.as_ptr()).cancel }.age());
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain_mut(|entry| {
            // SAFETY: as above.
            let ticket = unsafe { &mut *entry.ticket.as_ptr() };
            let admission = catch_unwind(AssertUnwindSafe(|| model.admit(&mut ticket.pass)));
            let outcome = match (admission, ticket.when_full) {
                (Err(panic), _) => Some(Err(Interrupt::Failed(Error::of_panic(panic.as_ref())))),
                (Ok(Admission::Waits), WhenFull::Refuse) => Some(Err(Interrupt::Failed(model.no_memory()))),
                (Ok(Admission::Waits), WhenFull::Return) => None,
                (Ok(admission), _) => {
                    entry.admission = admission;
                    return true;
                }
            };
            self.finish(entry, outcome, crowd, Some(own));
            false
        });
        self.entries = entries;
    }

    /// Take what the next pass runs: first what stayed, so that nobody waits forever, then narrow passes, so that long
    /// prompts do not hold up those who decode, then the others. A pass that is to run alone is left to its owner.
    fn choose(&mut self, own: NonNull<Call>, max_tokens: usize) {
        // SAFETY: the entries wait, and the lock is held.
        let alone = |entry: &Entry| unsafe { entry.ticket.as_ref() }.alone;
        let is_own = |entry: &Entry| entry.call == own && alone(entry) && entry.width().is_some();
        if let Some(index) = self.entries.iter().position(is_own) {
            self.batch.extend(self.entries.remove(index));
            return;
        }
        let mut tokens = 0;
        for class in 0..3 {
            self.entries.retain(|entry| {
                let Some(width) = entry.width() else { return true };
                let belongs = entry.stayed || class == 2 || class == 1 && width <= NARROW;
                let fits = self.batch.is_empty() || tokens + width <= max_tokens;
                let takes = belongs && fits && !alone(entry);
                if takes {
                    tokens += width;
                    self.batch.push(*entry);
                }
                !takes
            });
        }
        self.entries.iter_mut().for_each(|entry| entry.stayed = true);
    }

    /// Give the tickets of a pass their outcomes. If a pass of several failed, they wait again: each to be run alone,
    /// so that only the culprit fails. If one of several was cancelled, the others go on together.
    fn settle(&mut self, batch: &mut Vec<Entry>, result: Result<Report, Interrupt>, crowd: &Crowd, own: NonNull<Call>) {
        let several = batch.len() > 1;
        // SAFETY: the entries are in the batch of this leader, whose pass has ended; the lock is held.
        let cancelled = |entry: &Entry| unsafe { is_cancelled(entry.ticket) };
        let again = match &result {
            Err(Interrupt::Failed(error)) => several && !matches!(error, Error::Internal(_)),
            Err(Interrupt::Cancelled) => several,
            Ok(_) => false,
        };
        let alone = again && (result != Err(Interrupt::Cancelled) || !batch.iter().any(cancelled));
        // Backwards, since those that wait again come first, in their order.
        for mut entry in batch.drain(..).rev() {
            if again && !cancelled(&entry) {
                entry.stayed = true;
                // SAFETY: as above.
                unsafe { (*entry.ticket.as_ptr()).alone |= alone };
                self.entries.push_front(entry);
                continue;
            }
            // SAFETY: as above.
            let spent = unsafe { &mut (*entry.ticket.as_ptr()).spent };
            if let (Ok(report), Admission::Part(_)) = (&result, entry.admission) {
                *spent += report.elapsed;
                entry.stayed = true;
                self.entries.push_front(entry);
                continue;
            }
            let outcome = match &result {
                Ok(report) => Ok(Report {
                    elapsed: report.elapsed + *spent,
                    is_usual: report.is_usual && !several && spent.is_zero(),
                }),
                Err(_) if again => Err(Interrupt::Cancelled),
                Err(interrupt) => Err(interrupt.clone()),
            };
            self.finish(&entry, Some(outcome), crowd, Some(own));
        }
    }

    /// Make the first that waits the leader.
    fn pass_leadership_on(&mut self, own: NonNull<Call>) {
        match self.entries.front().map(|entry| entry.call) {
            Some(next) => self.hand_over(own, next),
            None => {
                // SAFETY: the lock is held.
                unsafe { (*own.as_ptr()).leads = false };
                self.has_leader = false;
            }
        }
    }

    /// Make another call the leader. One of its entries waits.
    fn hand_over(&mut self, own: NonNull<Call>, next: NonNull<Call>) {
        // SAFETY: the lock is held; a call whose entry waits has not returned.
        unsafe { (*own.as_ptr()).leads = false };
        let next = unsafe { &mut *next.as_ptr() };
        next.leads = true;
        // It is woken first, because a pass waits for it.
        self.woken.push(next.waiter.clone());
        let last = self.woken.len() - 1;
        self.woken.swap(0, last);
    }
}
