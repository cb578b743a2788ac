//! The tickets that wait for passes of one model: which of them the next pass takes, and what becomes of them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::time::Duration;

use super::queue::{Call, Entry, Waiting, WhenFull, is_cancelled, lead, resign};
use super::room::Room;
use super::sync::Ordering;
use super::wait::Crowd;
use crate::error::Error;
use crate::model::{Admission, Interrupt, Model, Report};

/// What a pass cost one of those that shared it: a drafter that makes a pass wider pays for that.
fn share(elapsed: Duration, width: usize, tokens: usize) -> Duration {
    if width == tokens {
        elapsed
    } else {
        Duration::from_nanos(elapsed.as_nanos() as u64 * width as u64 / tokens as u64)
    }
}

impl Waiting {
    /// Give a ticket its outcome, which ends the use of its entry.
    fn finish(&mut self, entry: &Entry, outcome: Option<Result<Report, Interrupt>>, crowd: &Crowd, own: NonNull<Call>) {
        // SAFETY: the lock is held, and the entry is in nobody's batch any more. `own` is a call of this thread.
        let (ticket, call, own) =
            unsafe { (&mut *entry.ticket.as_ptr(), &mut *entry.call.as_ptr(), (*own.as_ptr()).asker) };
        ticket.outcome = outcome;
        call.open -= 1;
        if call.open > 0 {
            return;
        }
        let (calls, open) = (call.asker().calls, call.asker().open.fetch_sub(1, Ordering::AcqRel));
        if open > 1 {
            if open == calls {
                crowd.half();
            }
            return;
        }
        if calls > 1 {
            crowd.whole();
        }
        if call.asker().in_crowd {
            crowd.add(1);
        }
        if own != call.asker {
            self.woken.push_back(call.asker().waiter.clone());
        }
    }

    /// End the wait of sessions that were cancelled.
    pub(super) fn let_cancelled_go(&mut self, crowd: &Crowd, own: NonNull<Call>) {
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
    pub(super) fn admit(&mut self, model: &dyn Model, crowd: &Crowd, own: NonNull<Call>) {
        // SAFETY (here and below): the entries wait, and the lock is held.
        self.entries.make_contiguous().sort_unstable_by_key(|entry| entry.age);
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain_mut(|entry| {
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
            self.finish(entry, outcome, crowd, own);
            false
        });
        self.entries = entries;
    }

    /// No pass could be chosen. If another call has one that it runs alone, it leads. Otherwise the leader waits until
    /// there may be memory.
    pub(super) fn wait_for_memory(&mut self, own: NonNull<Call>) {
        // SAFETY: the lock is held.
        if unsafe { own.as_ref() }.open == 0 {
            return;
        }
        match self.entries.iter().find(|entry| entry.is_admitted()).map(|entry| entry.call) {
            Some(next) => self.hand_over(own, next),
            None => self.blocked = Some(unsafe { own.as_ref() }.asker().waiter.clone()),
        }
    }

    /// Take what the next pass runs: first what stayed, the longest first, so that nobody waits forever, then narrow
    /// passes, then the others, as far as there is room. A pass that is to run alone is left to its owner.
    pub(super) fn choose(&mut self, own: NonNull<Call>, room: Room) {
        // SAFETY: the entries wait, and the lock is held.
        let alone = |entry: &Entry| unsafe { entry.ticket.as_ref() }.alone;
        let is_own = |entry: &Entry| entry.call == own && alone(entry) && entry.is_admitted();
        if let Some(index) = self.entries.iter().position(is_own) {
            self.batch.extend(self.entries.remove(index));
            return;
        }
        let any_stayed = self.entries.iter().any(|entry| entry.stayed);
        if any_stayed {
            self.entries.make_contiguous().sort_unstable_by_key(|entry| {
                let since = unsafe { (*entry.ticket.as_ptr()).since };
                (!entry.stayed, entry.stayed.then_some(since), entry.age)
            });
        }
        let (mut tokens, mut wide, mut prompts, mut batch) = (0, 0, 0, 0);
        for class in usize::from(!any_stayed)..3 {
            self.entries.retain(|entry| {
                let belongs = entry.stayed || class == 2 || class == 1 && !entry.is_wide();
                let width = entry.width();
                let of_wide = if entry.is_wide() && !entry.is_prompt() { width } else { 0 };
                let of_prompts = if entry.is_prompt() { width } else { 0 };
                let of_batch = if entry.is_batch { width } else { 0 };
                let fits = tokens + width <= room.all
                    && (wide == 0 || wide + of_wide <= room.wide)
                    && (prompts == 0 || prompts + of_prompts <= room.prompts)
                    && (batch == 0 || batch + of_batch <= room.batch);
                let takes = belongs && (fits || self.batch.is_empty()) && entry.is_admitted() && !alone(entry);
                if takes {
                    (tokens, wide) = (tokens + width, wide + of_wide);
                    (prompts, batch) = (prompts + of_prompts, batch + of_batch);
                    self.batch.push(*entry);
                }
                !takes
            });
        }
        self.entries.iter_mut().for_each(|entry| entry.stayed = true);
    }

    /// Count a pass that has succeeded in the histograms of the model.
    pub(super) fn count(&mut self, batch: &[Entry]) {
        let shape = |entry: &Entry| {
            // SAFETY: the entries are in the batch of this leader, whose pass has ended; the lock is held.
            let ticket = unsafe { entry.ticket.as_ref() };
            ticket.common.filter(|_| ticket.counts).map(|(_, shape)| shape)
        };
        // Those of one thread have waited alike.
        for alike in batch.chunk_by(|a, b| shape(a) == shape(b)) {
            shape(&alike[0]).into_iter().for_each(|shape| self.shapes.queue.record_times(shape.queued, alike.len()));
        }
        let whole = batch.iter().find_map(shape);
        whole.into_iter().for_each(|shape| self.shapes.record_pass(shape.sessions, shape.tokens));
    }

    /// Give the tickets of a pass their outcomes. If a pass of several failed, they wait again: each to be run alone,
    /// so that only the culprit fails. If one of several was cancelled, the others go on together. After a panic
    /// (`Err`) nobody knows the state of the sequences, so all fail.
    pub(super) fn settle(
        &mut self,
        batch: &mut Vec<Entry>,
        result: Result<Result<Report, Interrupt>, Error>,
        crowd: &Crowd,
        own: NonNull<Call>,
    ) {
        let several = batch.len() > 1;
        // SAFETY (here and below): the entries are in the batch of this leader, whose pass has ended; the lock is held.
        let tokens = batch.iter().map(Entry::width).sum();
        let cancelled = |entry: &Entry| unsafe { is_cancelled(entry.ticket) };
        let again = several && matches!(result, Ok(Err(_)));
        let result = result.unwrap_or_else(|panic| Err(Interrupt::Failed(panic)));
        let alone = again && (result != Err(Interrupt::Cancelled) || !batch.iter().any(cancelled));
        let is_full = matches!(result, Err(Interrupt::Failed(Error::NoMemory(_))));
        // Backwards, since those that wait again come first, in their order.
        for mut entry in batch.drain(..).rev() {
            let ticket = unsafe { &mut *entry.ticket.as_ptr() };
            let waits = is_full && ticket.when_full == WhenFull::Wait;
            if (again || waits) && !cancelled(&entry) {
                entry.stayed = true;
                ticket.alone |= alone;
                self.entries.push_front(entry);
                continue;
            }
            let outcome = match &result {
                Ok(report) => {
                    let is_usual = report.is_usual && ticket.spent.is_zero();
                    ticket.spent += share(report.elapsed, entry.width(), tokens);
                    let is_part = matches!(entry.admission, Admission::Part(_));
                    if is_part && !ticket.is_brief {
                        entry.stayed = true;
                        ticket.has_run();
                        self.entries.push_front(entry);
                        continue;
                    }
                    (!is_part).then_some(Ok(Report { elapsed: ticket.spent, is_usual }))
                }
                Err(_) if again => Some(Err(Interrupt::Cancelled)),
                Err(_) if is_full && ticket.when_full == WhenFull::Return => None,
                Err(interrupt) => Some(Err(interrupt.clone())),
            };
            self.finish(&entry, outcome, crowd, own);
        }
        self.give_back(crowd, own);
    }

    /// Give back the tickets that were to wait for one pass only, and for which it had no room: those of prompts and
    /// of batch sessions.
    fn give_back(&mut self, crowd: &Crowd, own: NonNull<Call>) {
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| {
            // SAFETY: the entry waits, so its ticket has no outcome; the lock is held.
            let is_brief = unsafe { (*entry.ticket.as_ptr()).is_brief && !(*entry.ticket.as_ptr()).alone };
            let goes = entry.stayed && is_brief && (entry.is_wide() || entry.is_batch);
            if goes {
                self.finish(entry, None, crowd, own);
            }
            !goes
        });
        self.entries = entries;
    }

    /// Make the first that waits the leader, or rather the first of those that lead nothing else.
    pub(super) fn pass_leadership_on(&mut self, own: NonNull<Call>) {
        // SAFETY: the lock is held; a call whose entry waits has not returned.
        let is_idle = |entry: &&Entry| unsafe { entry.call.as_ref() }.asker().leads.load(Ordering::Relaxed) == 0;
        match self.entries.iter().find(is_idle).or(self.entries.front()).map(|entry| entry.call) {
            Some(next) => self.hand_over(own, next),
            None => {
                unsafe { resign(own) };
                self.has_leader = false;
            }
        }
    }

    /// Make another call the leader, one of whose entries waits.
    fn hand_over(&mut self, own: NonNull<Call>, next: NonNull<Call>) {
        // SAFETY: the lock is held; a call whose entry waits has not returned.
        unsafe {
            resign(own);
            lead(next);
        }
        // It is woken first, because a pass waits for it.
        self.woken.push_front(unsafe { next.as_ref() }.asker().waiter.clone());
    }
}
