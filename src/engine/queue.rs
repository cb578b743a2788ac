//! Combines the passes that several threads ask for into common ones, without a thread and a timer of its own.
//!
//! A thread that needs a pass and finds that nobody leads becomes the leader. The leader runs one pass for all that
//! wait and gives each its outcome. Once its own passes are done, it makes one that still waits the next leader, or
//! nobody. So there is a leader whenever somebody waits, and no thread works for others for longer than for itself.
//!
//! A thread may ask for passes of several models. If models leave passes running, as on GPUs, those that it leads run
//! at the same time.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;

use super::histogram::{PassShape, Passes};
use super::room::{PassLimits, Room};
use super::sync::{Arc, AtomicUsize, Mutex, MutexGuard, Ordering};
use super::together::Together;
use super::wait::{Crowd, Waiter};
use crate::decode::chance::{CounterRng, Key, Purpose};
use crate::decode::decoder::Common;
use crate::error::Error;
use crate::model::{Admission, Cancel, Interrupt, Model, Pass, Priority, Report};

/// Most tokens of a pass that is taken before wider ones: decoding and verification, but no chunk of a prompt.
pub const NARROW: usize = 16;

/// Most threads that a thread wakes at once.
const WAKES: usize = 4;

/// A leader waits for passes of other models only if its own passes take so long.
const LONG: Duration = Duration::from_millis(1);

/// Most models whose passes a thread asks for at once.
pub const MOST_MODELS: usize = 8;

/// How often a thread looks whether there is memory, while no pass can run because there is none.
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
    queue: &'a PassQueue,
    pub(super) pass: Pass<'a>,
    pub(super) cancel: &'a Cancel,
    /// What its owner knows it by.
    pub place: usize,
    pub(super) when_full: WhenFull,
    /// It waits for one pass only: if it found no room there, it is given back.
    pub(super) is_brief: bool,
    /// It runs over tokens of a prompt alone.
    pub(super) is_prompt: bool,
    /// Its session is a batch session.
    pub(super) is_batch: bool,
    /// It counts in the histograms of the model.
    pub(super) counts: bool,
    /// When its session began to wait. Earlier passes may have had no room for it.
    pub(super) since: Instant,
    /// Whether that is so.
    pub(super) stayed: bool,
    /// It was part of a pass that failed, so it runs alone.
    pub(super) alone: bool,
    /// What all who shared the last pass have in common, and the shape of that pass.
    pub(super) common: Option<(Common, PassShape)>,
    /// Its share of passes that computed tokens anew.
    pub(super) spent: Duration,
    pub(super) outcome: Option<Result<Report, Interrupt>>,
}

impl<'a> Ticket<'a> {
    /// Ask for a pass of the queue's model now, unless its session is cancelled before.
    pub fn new(queue: &'a PassQueue, pass: Pass<'a>, cancel: &'a Cancel, when_full: WhenFull, now: Instant) -> Self {
        Ticket {
            queue,
            pass,
            cancel,
            place: 0,
            when_full,
            is_brief: false,
            is_prompt: false,
            is_batch: false,
            counts: true,
            since: now,
            stayed: false,
            alone: false,
            common: None,
            spent: Duration::ZERO,
            outcome: None,
        }
    }

    /// Wait for one pass only. If it has not ended then, for want of room or because its sequence computes tokens anew,
    /// it is given back, to be asked for again. `since` says when it was first asked for, if it was given back before.
    pub fn briefly(self, since: Option<Instant>) -> Self {
        Ticket { is_brief: true, since: since.unwrap_or(self.since), stayed: since.is_some(), ..self }
    }

    /// The priority of its session, and whether it runs over tokens of a prompt alone.
    pub fn of(self, priority: Priority, is_prompt: bool) -> Self {
        Ticket { is_batch: priority == Priority::Batch, is_prompt, ..self }
    }

    /// Whether it counts in the histograms of the model. Not if nobody has asked for its tokens.
    pub fn counting(self, counts: bool) -> Self {
        Ticket { counts, ..self }
    }

    /// Where it waits.
    pub fn queue(&self) -> &'a PassQueue {
        self.queue
    }

    /// What all who shared its last pass have in common, and the shape of that pass.
    pub fn common(&self) -> Option<(Common, PassShape)> {
        self.common
    }

    /// A pass has computed a part of it, so its wait begins anew. Else it might come first for ever, lose its memory to
    /// an older session each time, and leave that session no room.
    pub(super) fn has_run(&mut self) {
        self.since += self.common.map_or(Duration::ZERO, |(_, shape)| shape.queued);
    }

    /// How the pass went. `None` if it was given back.
    pub fn outcome(self) -> Option<Result<Report, Interrupt>> {
        self.outcome
    }
}

/// The passes of one model that threads wait for.
pub struct PassQueue {
    model: Arc<dyn Model>,
    /// [`Model::max_batch_tokens`].
    max_tokens: usize,
    /// [`Model::max_pass`].
    max_wide: usize,
    /// Most tokens of prompts in a pass.
    max_prompts: usize,
    /// Tokens of interactive sessions that decoded in the last pass.
    decoding: AtomicUsize,
    /// [`Model::overlaps`].
    overlaps: bool,
    state: Mutex<Waiting>,
    /// Numbers that passes hand out, and how many they have.
    numbers: (CounterRng, AtomicUsize),
    /// Nanoseconds that the last pass took.
    last: AtomicUsize,
    /// What passes take, and the number of the model there.
    times: (std::sync::Arc<Together>, usize),
    crowd: Arc<Crowd>,
}

/// A thread that waits for passes. It lies on the thread's stack.
pub(super) struct Asker {
    pub(super) waiter: Arc<Waiter>,
    /// Whether the thread belongs to the crowd while it does not wait.
    pub(super) in_crowd: bool,
    /// Calls with tickets that have no outcome.
    pub(super) open: AtomicUsize,
    /// All its calls.
    pub(super) calls: usize,
    /// Calls that lead.
    pub(super) leads: AtomicUsize,
}

/// What a thread asks of one queue. It lies on the thread's stack.
pub(super) struct Call {
    pub(super) asker: NonNull<Asker>,
    pub(super) queue: NonNull<PassQueue>,
    pub(super) tickets: NonNull<Ticket<'static>>,
    pub(super) count: usize,
    /// Tickets without an outcome.
    pub(super) open: usize,
    pub(super) leads: bool,
}

/// A ticket that waits or runs, and the call that it belongs to.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) ticket: NonNull<Ticket<'static>>,
    pub(super) call: NonNull<Call>,
    /// A pass was run without it, because it was full.
    pub(super) stayed: bool,
    /// Whether there is memory for it.
    pub(super) admission: Admission,
    /// [`Cancel::age`] of its session.
    pub(super) age: u64,
    /// Whether its session is a batch session.
    pub(super) is_batch: bool,
    /// Whether it runs over tokens of a prompt alone.
    of_prompt: bool,
}

impl Entry {
    /// Tokens that the next pass takes of it; 0 if there is no memory.
    pub(super) fn width(&self) -> usize {
        match self.admission {
            Admission::Whole(tokens) | Admission::Part(tokens) => tokens,
            Admission::Waits => 0,
        }
    }

    /// Whether it is no decoding or verification, but a chunk of a prompt or of what a model has missed.
    pub(super) fn is_wide(&self) -> bool {
        self.width() > NARROW
    }

    /// Whether it is a chunk of a prompt, and no pass of a model that catches up.
    pub(super) fn is_prompt(&self) -> bool {
        self.is_wide() && self.of_prompt
    }

    pub(super) fn is_admitted(&self) -> bool {
        self.admission != Admission::Waits
    }
}

// SAFETY: an entry points to a ticket and a call, whose parts may all be used from any thread: `Sequence` is `Send`,
// `Cancel` and `Waiter` are `Sync`. Who may use them when is said at `run`.
unsafe impl Send for Entry {}

/// The tickets of a queue, and what its leader does. `waiting.rs` has what is done with it.
#[derive(Default)]
pub(super) struct Waiting {
    /// Whether some call leads. If not, nobody waits.
    pub(super) has_leader: bool,
    /// A leader that waits for memory.
    pub(super) blocked: Option<Arc<Waiter>>,
    /// Whether the leader waits for the end of a pass of another model.
    pub(super) held: bool,
    /// In the order of arrival; for the choice of a pass, in that of the age of their sessions.
    pub(super) entries: VecDeque<Entry>,
    /// Those who are to be woken once the lock is released.
    pub(super) woken: VecDeque<Arc<Waiter>>,
    /// Empty, kept for the next pass.
    pub(super) batch: Vec<Entry>,
    /// Empty, kept for the next pass.
    pub(super) passes: Vec<Pass<'static>>,
    /// All passes of the model.
    pub(super) shapes: Passes,
}

/// Make a call the leader of its queue.
///
/// # Safety
/// The lock of its queue is held, and the call has not returned.
pub(super) unsafe fn lead(call: NonNull<Call>) {
    // SAFETY: the caller promises it.
    let call = unsafe { &mut *call.as_ptr() };
    call.leads = true;
    call.asker().leads.fetch_add(1, Ordering::Relaxed);
}

/// Let a call lead no more.
///
/// # Safety
/// The lock of its queue is held, and the call has not returned.
pub(super) unsafe fn resign(call: NonNull<Call>) {
    // SAFETY: the caller promises it.
    let call = unsafe { &mut *call.as_ptr() };
    call.leads = false;
    call.asker().leads.fetch_sub(1, Ordering::Relaxed);
}

/// # Safety
/// The ticket has no outcome, and the lock is held.
pub(super) unsafe fn is_cancelled(ticket: NonNull<Ticket<'static>>) -> bool {
    // The pass may be in use by a leader, so there is no reference to the whole ticket.
    unsafe { (*ticket.as_ptr()).cancel }.is_requested()
}

type Guard<'a> = MutexGuard<'a, Waiting>;

/// A pass that a leader runs.
struct Running {
    batch: Vec<Entry>,
    passes: Vec<Pass<'static>>,
    /// When it was chosen.
    since: Instant,
    /// Whether the model has left it running.
    is_launched: bool,
    /// The panic of its launch.
    panicked: Option<Error>,
}

/// Run the passes of all tickets, together with those of other threads. Returns once each ticket has its outcome.
///
/// Tickets of a queue must be next to each other. `waiter` is used by this call alone meanwhile. `in_crowd` says that
/// the thread was added to the crowd; it is not part of it while it waits. `beside` is what the thread has to do while
/// passes run that it need not run itself: those of other threads, and those that are left running. It must not panic.
pub fn run(waiter: &Arc<Waiter>, in_crowd: bool, mut tickets: &mut [Ticket<'_>], beside: &mut dyn FnMut()) {
    while !tickets.is_empty() {
        let (open, leads) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let models = tickets.chunk_by(|a, b| std::ptr::eq(a.queue, b.queue)).take(MOST_MODELS).count();
        let asker = Asker { waiter: waiter.clone(), in_crowd, open, calls: models, leads };
        let mut calls = ArrayVec::<Call, MOST_MODELS>::new();
        while let Some(first) = tickets.first().filter(|_| !calls.is_full()) {
            let queue = first.queue;
            let count = tickets.iter().take_while(|ticket| std::ptr::eq(ticket.queue, queue)).count();
            let (own, others) = std::mem::take(&mut tickets).split_at_mut(count);
            tickets = others;
            calls.push(Call {
                asker: NonNull::from(&asker),
                queue: NonNull::from(queue),
                tickets: NonNull::from(own).cast(),
                count,
                open: count,
                leads: false,
            });
        }
        // Outcomes of fast passes do not wait for slow ones.
        calls.sort_by_key(|call| call.queue().model.cost());
        run_calls(&asker, &mut calls, beside);
    }
}

/// Run the passes of calls that a thread makes.
///
/// SAFETY (of this file and of `waiting.rs`): the asker, the calls and the tickets live until this function returns,
/// which is when `open` of each call is 0. An entry is in `entries` or in the batch of the leader only while its ticket
/// has no outcome, which `open` counts; so nobody has a pointer to them after that. A call is used only with the lock
/// of its queue held, but for what never changes. A ticket is used with the lock held, but for its pass: the leader
/// uses that alone while the entry is in its batch. The thread that owns them uses them by the same pointers and rules
/// until it returns.
fn run_calls(asker: &Asker, calls: &mut ArrayVec<Call, MOST_MODELS>, beside: &mut dyn FnMut()) {
    let calls: ArrayVec<NonNull<Call>, MOST_MODELS> = calls.iter_mut().map(NonNull::from).collect();
    asker.open.store(calls.len(), Ordering::Relaxed);
    if asker.in_crowd {
        // SAFETY: what never changes may be read.
        unsafe { calls[0].as_ref() }.queue().crowd.remove(1);
    }
    for &call in &calls {
        // SAFETY: as above; the tickets are those of the call.
        let (queue, tickets, count) =
            unsafe { ((*call.as_ptr()).queue(), (*call.as_ptr()).tickets, (*call.as_ptr()).count) };
        let mut state = queue.lock();
        let entry = |index| {
            let ticket = unsafe { tickets.add(index) };
            let Ticket { stayed, is_batch, is_prompt: of_prompt, cancel, .. } = *unsafe { ticket.as_ref() };
            Entry { ticket, call, stayed, admission: Admission::Waits, age: cancel.age(), is_batch, of_prompt }
        };
        state.entries.extend((0..count).map(entry));
        if let Some(leader) = state.blocked.take() {
            leader.wake();
        }
        if !state.has_leader {
            state.has_leader = true;
            // SAFETY: the lock is held.
            unsafe { lead(call) };
        }
    }
    let mut has_worked = false;
    loop {
        let mut running = ArrayVec::<Option<Running>, MOST_MODELS>::new();
        let mut is_open = false;
        for &call in &calls {
            // SAFETY: what never changes may be read.
            let queue = unsafe { call.as_ref() }.queue();
            let (open, began) = queue.begin(call);
            is_open |= open;
            running.push(began);
        }
        if !is_open {
            return;
        }
        let is_free = running.iter().flatten().any(|running| running.is_launched);
        if !has_worked && (is_free || asker.leads.load(Ordering::Relaxed) == 0) {
            has_worked = true;
            beside();
        }
        let (mut has_led, mut is_blocked) = (false, false);
        for (&call, running) in calls.iter().zip(running) {
            // SAFETY: as above.
            match unsafe { call.as_ref() }.queue().complete(call, running) {
                Completed::Led => has_led = true,
                Completed::Blocked => is_blocked = true,
                Completed::Held | Completed::Nothing => {}
            }
        }
        match (has_led, is_blocked) {
            (true, _) => {}
            (false, true) => asker.waiter.wait_for(LOOK_AGAIN),
            // Its last call was ended here, after others ended the ones before: nobody will wake it.
            (false, false) if asker.open.load(Ordering::Acquire) == 0 => {}
            // A leader that is held is woken too, when a pass ends.
            (false, false) => asker.waiter.wait(),
        }
    }
}

/// What a call has done before it waits.
enum Completed {
    /// It has led, or stays leader.
    Led,
    /// It leads, but there is no memory for any pass.
    Blocked,
    /// It leads, and waits for the end of a pass of another model.
    Held,
    /// It does not lead.
    Nothing,
}

impl Call {
    fn queue<'a>(&self) -> &'a PassQueue {
        // SAFETY: tickets borrow the queue for as long as the call lives.
        unsafe { self.queue.as_ref() }
    }

    pub(super) fn asker(&self) -> &Asker {
        // SAFETY: it lives longer than its calls.
        unsafe { self.asker.as_ref() }
    }

    /// Whether one of its sessions is cancelled that may wait.
    ///
    /// # Safety
    /// The lock of its queue is held.
    unsafe fn is_cancelled(&self) -> bool {
        // SAFETY: the tickets are those of the call.
        (0..self.count).any(|index| unsafe { is_cancelled(self.tickets.add(index)) })
    }
}

impl PassQueue {
    /// The queue of a model. The crowd is that of its engine, and the numbers are its own. `times` learn what passes
    /// take, by the number of the model.
    pub fn new(
        model: Arc<dyn Model>,
        crowd: Arc<Crowd>,
        numbers: CounterRng,
        times: (std::sync::Arc<Together>, usize),
    ) -> Self {
        PassQueue {
            max_tokens: model.max_batch_tokens(),
            max_wide: model.max_pass(),
            max_prompts: (model.max_batch_tokens() / 2).max(model.max_pass()),
            decoding: AtomicUsize::new(0),
            overlaps: model.overlaps(),
            model,
            state: Mutex::default(),
            numbers: (numbers, AtomicUsize::new(0)),
            last: AtomicUsize::new(0),
            times,
            crowd,
        }
    }

    /// A number that nobody knows, to be handed out.
    fn number(&self) -> f64 {
        let (numbers, count) = &self.numbers;
        let position = count.fetch_add(1, Ordering::Relaxed);
        numbers.uniform(Key { position, purpose: Purpose::Route, epoch: 0 })
    }

    /// Seconds of the last pass.
    pub fn seconds(&self) -> f64 {
        1e-9 * self.last.load(Ordering::Relaxed).max(1) as f64
    }

    /// Most tokens of a chunk of a prompt, beside the sessions that decode.
    pub fn chunk(&self) -> usize {
        self.limits().prompts(self.decoding.load(Ordering::Relaxed)).min(self.max_wide)
    }

    fn limits(&self) -> PassLimits<'_> {
        PassLimits {
            all: self.max_tokens,
            wide: self.max_wide,
            prompts: self.max_prompts,
            times: self.times.0.times(),
            model: self.times.1,
        }
    }

    /// Room of the next pass, by those who wait for it.
    fn room(&self, entries: &VecDeque<Entry>) -> Room {
        let (mut decoding, mut waiting, mut is_bounded) = (0, 0, false);
        for entry in entries {
            is_bounded |= entry.is_prompt() || entry.is_batch;
            if !entry.is_batch {
                *if entry.is_prompt() { &mut waiting } else { &mut decoding } += entry.width();
            }
        }
        self.decoding.store(decoding, Ordering::Relaxed);
        if is_bounded { self.limits().room(decoding, waiting) } else { self.limits().empty() }
    }

    /// Read the histograms of all passes of the model.
    pub fn passes<T>(&self, read: impl FnOnce(&Passes) -> T) -> T {
        read(&self.lock().shapes)
    }

    /// Whether passes of the model run at the same time as those of others.
    pub fn overlaps(&self) -> bool {
        self.overlaps
    }

    /// The error, if there is no memory for a pass.
    pub fn refusal(&self, pass: &mut Pass<'_>) -> Option<Error> {
        (self.model.admit(pass) == Admission::Waits).then(|| self.model.no_memory())
    }

    fn lock(&self) -> Guard<'_> {
        self.state.lock().expect("nobody panics with this lock")
    }

    /// Do what a call is to do before it waits. Returns whether it has open tickets, and the pass that it has left
    /// running.
    fn begin(&self, own: NonNull<Call>) -> (bool, Option<Running>) {
        let mut state = self.wake(self.lock());
        // SAFETY: the lock is held.
        let (open, leads) = unsafe { (own.as_ref().open, own.as_ref().leads) };
        match (open, leads) {
            (0, false) => (false, None),
            // Its last ticket may have got its outcome from another thread, just after this one was made leader.
            (0, true) => {
                state.pass_leadership_on(own);
                drop(self.wake(state));
                (false, None)
            }
            (_, true) if self.overlaps => {
                let mut running = self.choose(state, own);
                if let Some(Running { passes, is_launched, panicked, .. }) = &mut running {
                    let launched = catch_unwind(AssertUnwindSafe(|| self.model.launch(passes)));
                    *is_launched = matches!(launched, Ok(true));
                    *panicked = launched.err().map(|panic| Error::of_panic(panic.as_ref()));
                }
                (true, running)
            }
            (_, true) => (true, None),
            (_, false) => {
                // SAFETY: the lock is held.
                if unsafe { own.as_ref().is_cancelled() } {
                    state.let_cancelled_go(&self.crowd, own);
                    state = self.wake(state);
                }
                // While the lock was released, others may have finished it, and made it leader before that.
                let _held = state;
                // SAFETY: the lock is held.
                let Call { open, leads, .. } = unsafe { own.as_ref() };
                (*open > 0 || *leads, None)
            }
        }
    }

    /// Take what the next pass runs; `None` if no ticket of the leader is open, or if there is no memory.
    fn choose<'a>(&'a self, mut state: Guard<'a>, own: NonNull<Call>) -> Option<Running> {
        if !self.crowd.is_empty() {
            drop(state);
            self.crowd.gather(self.last.load(Ordering::Relaxed));
            state = self.lock();
        }
        state.let_cancelled_go(&self.crowd, own);
        state = self.wake(state);
        if self.is_held(&mut state, own) {
            return None;
        }
        // SAFETY: the lock is held.
        if unsafe { own.as_ref() }.open > 0 {
            state.admit(self.model.as_ref(), &self.crowd, own);
            let room = self.room(&state.entries);
            state.choose(own, room);
        }
        state = self.wake(state);
        if state.batch.is_empty() {
            state.wait_for_memory(own);
            return None;
        }
        state.blocked = None;
        let (batch, mut passes) = (std::mem::take(&mut state.batch), std::mem::take(&mut state.passes));
        passes.extend(batch.iter().map(|entry| {
            // SAFETY: the entry is in the batch of this leader, so the pass is the leader's alone. The borrow ends with
            // `passes.clear()`, before the entry gets its outcome.
            let pass = unsafe { &mut (*entry.ticket.as_ptr()).pass };
            let tokens = if matches!(entry.admission, Admission::Part(_)) { &[] } else { pass.tokens };
            Pass { sequence: &mut *pass.sequence, tokens, ..*pass }
        }));
        drop(state);
        self.crowd.begin();
        self.times.0.begin(self.times.1, batch.iter().map(Entry::width).sum());
        Some(Running { batch, passes, since: Instant::now(), is_launched: false, panicked: None })
    }

    /// Whether to wait for the end of a pass of another model, so that the sessions that it serves are part of the next
    /// pass too. Otherwise groups of sessions would take turns for ever, in passes that cost as much as common ones.
    /// That loses nothing: nobody waits for this model alone. Short passes leave a GPU idle while sessions compute, so
    /// there groups that take turns are faster.
    fn is_held(&self, state: &mut Waiting, own: NonNull<Call>) -> bool {
        let is_long = self.last.load(Ordering::Relaxed) >= LONG.as_nanos() as usize;
        // SAFETY: the lock is held, and a call whose entry waits has not returned.
        let needs_others = |entry: &Entry| unsafe { entry.call.as_ref() }.asker().open.load(Ordering::Relaxed) > 1;
        state.held = is_long
            && state.entries.iter().all(needs_others)
            // SAFETY: as above.
            && self.crowd.holds(&unsafe { own.as_ref() }.asker().waiter);
        state.held
    }

    /// Run a pass for the leader and for others, or wait for the one that was left running.
    fn complete(&self, own: NonNull<Call>, running: Option<Running>) -> Completed {
        let running = running.or_else(|| {
            let state = self.lock();
            // SAFETY: the lock is held.
            let leads = unsafe { own.as_ref().leads && own.as_ref().open > 0 };
            // `begin` has just found whether models that overlap are held.
            let leads = leads && !(self.overlaps && state.held);
            if leads { self.choose(state, own) } else { None }
        });
        let Some(Running { mut batch, mut passes, since, panicked, .. }) = running else {
            let state = self.lock();
            // SAFETY: the lock is held.
            return match unsafe { (own.as_ref().leads, own.as_ref().open) } {
                (false, _) => Completed::Nothing,
                (true, 1..) if state.held => Completed::Held,
                // It passes leadership on.
                (true, 0) => Completed::Led,
                (true, _) => Completed::Blocked,
            };
        };
        let result = panicked.map_or_else(
            || {
                catch_unwind(AssertUnwindSafe(|| self.model.forward(&mut passes)))
                    .map_err(|panic| Error::of_panic(panic.as_ref()))
            },
            Err,
        );
        passes.clear();
        let usual = result.iter().flatten().find(|report| report.is_usual);
        self.times.0.end(usual.map(|report| report.elapsed));
        if let Ok(Ok(report)) = &result {
            self.last.store(report.elapsed.as_nanos() as usize, Ordering::Relaxed);
            let number = (batch.len() > 1).then(|| self.number());
            let (sessions, tokens) = (batch.len(), batch.iter().map(Entry::width).sum());
            let common = Common { elapsed: report.elapsed, number };
            // Those of one thread have waited since one moment.
            let (mut asked, mut queued) = (since, Duration::ZERO);
            for entry in &batch {
                // SAFETY: the entries are in the batch of this leader, and their tickets have no outcome.
                let ticket = unsafe { &mut *entry.ticket.as_ptr() };
                if ticket.since != asked {
                    (asked, queued) = (ticket.since, since.saturating_duration_since(ticket.since));
                }
                // SAFETY: what never changes may be read.
                let is_led = unsafe { entry.call.as_ref().asker == own.as_ref().asker };
                ticket.common = Some((common, PassShape { queued, sessions, tokens, is_led }));
            }
        }
        let mut state = self.lock();
        if matches!(result, Ok(Ok(_))) {
            state.count(&batch);
        }
        state.settle(&mut batch, result, &self.crowd, own);
        (state.batch, state.passes) = (batch, passes);
        // SAFETY: the lock is held.
        if unsafe { own.as_ref() }.open == 0 {
            state.pass_leadership_on(own);
        }
        drop(self.wake(state));
        self.crowd.end();
        Completed::Led
    }

    /// Wake some of those who are to be woken, without the lock. They wake the others, so that a leader of many is not
    /// held up.
    fn wake<'a>(&'a self, mut state: Guard<'a>) -> Guard<'a> {
        if state.woken.is_empty() {
            return state;
        }
        let count = state.woken.len().min(WAKES);
        let woken: ArrayVec<Arc<Waiter>, WAKES> = state.woken.drain(..count).collect();
        drop(state);
        woken.into_iter().for_each(|waiter| waiter.wake());
        self.lock()
    }
}
