//! A model that rehearses: it runs passes that nobody waits for, until later passes of their sizes take no longer.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::Clock;
use crate::engine::queue::{self, NARROW, PassQueue, Ticket, WhenFull};
use crate::engine::wait::Waiter;
use crate::error::{Error, Result};
use crate::model::rehearsal::{Rehearsal, rehearsals};
use crate::model::{Cancel, Interrupt, Model, Pass, Priority, Report, Sequence};
use crate::rows::Filter;

/// Most passes of a size. On a GPU, the first one is plain and the second one captured, unless another capture runs.
const MOST_TRIES: usize = 4;

/// Most sequences of a model on a GPU that runs each of them alone. So many leave their buffers to later ones.
const MOST_ALONE: usize = 4;

/// Why something ends early.
pub enum Stop {
    /// The time is over, or the caller has had enough.
    Over,
    /// There is no memory for it.
    Full,
    Failed(Error),
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        match error {
            Error::NoMemory(_) => Stop::Full,
            other => Stop::Failed(other),
        }
    }
}

/// The bound in time, and the caller who is told how far it has come.
pub struct Watch<'a> {
    pub clock: &'a Clock,
    pub end: Duration,
    /// Is told a share from 0 to 1, and returns whether to go on.
    pub progress: &'a mut dyn FnMut(f64) -> bool,
    /// Of so many parts, so many are done.
    pub all: usize,
    pub done: usize,
}

impl Watch<'_> {
    /// The share that is done.
    pub fn share(&self) -> f64 {
        self.done as f64 / self.all as f64
    }

    /// To be called before each pass.
    pub fn check(&mut self) -> Result<(), Stop> {
        let share = self.share();
        if (self.clock)() < self.end && (self.progress)(share) { Ok(()) } else { Err(Stop::Over) }
    }
}

/// A model that rehearses.
pub struct Stage<'a> {
    model: &'a dyn Model,
    /// Where its passes are run; `None`: it runs each sequence alone.
    queue: Option<&'a PassQueue>,
    waiter: Arc<Waiter>,
    scope: &'a str,
    /// Tokens of the longest text.
    tokens: usize,
    rehearsals: Vec<Rehearsal>,
    /// Sequences without tokens.
    empty: Vec<Member>,
    /// Sequences that have some.
    filled: Vec<Member>,
    /// There is memory for fewer sequences than this in a pass, and for shorter contexts.
    limits: (usize, usize),
    /// Sequences that run each pass by themselves, because each has captured passes of its own.
    alone: usize,
    /// Sizes that may still be prepared. With more, the model would forget the first ones.
    left: usize,
    /// Tokens of passes that were run.
    seen: BTreeSet<usize>,
    made_up: MadeUp,
}

/// A sequence.
struct Member {
    sequence: Box<dyn Sequence>,
    cancel: Arc<Cancel>,
    /// Its tokens between two passes.
    base: usize,
    /// Those of the next pass, and the rows that are wanted of them.
    tokens: Vec<i32>,
    rows: usize,
}

/// Tokens in an order that hardly comes twice. So no pass finds what an earlier one has computed.
struct MadeUp {
    state: u64,
    vocabulary: usize,
}

impl MadeUp {
    fn next(&mut self) -> i32 {
        self.state = self.state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.state >> 33) % self.vocabulary as u64) as i32
    }
}

impl<'a> Stage<'a> {
    /// A model, and where its passes are run in common with others. Its sequences belong to a scope. It rehearses for
    /// so many sessions with texts of so many tokens.
    pub fn new(
        model: &'a dyn Model,
        queue: Option<&'a PassQueue>,
        scope: &'a str,
        (sessions, tokens): (usize, usize),
    ) -> Self {
        let tokens = tokens.min(model.context_length());
        let captures = model.captured().is_some_and(|(_, refused)| refused.is_none());
        // Only graphs of common passes depend on the context.
        let contexts = if captures && queue.is_some() { tokens } else { 0 };
        Stage {
            model,
            queue,
            waiter: Arc::default(),
            scope,
            tokens,
            rehearsals: rehearsals(sessions, contexts),
            empty: Vec::new(),
            filled: Vec::new(),
            limits: if queue.is_some() { (usize::MAX, usize::MAX) } else { (2, usize::MAX) },
            alone: sessions.min(MOST_ALONE),
            // Some are left to sizes that nobody foresees.
            left: model.kept_sizes() - model.kept_sizes() / 8,
            seen: BTreeSet::new(),
            made_up: MadeUp { state: 1, vocabulary: model.vocab_size() },
        }
    }

    /// Whether passes are faster if others of their size were run before.
    fn captures(&self) -> bool {
        self.model.captured().is_some_and(|(_, refused)| refused.is_none())
    }

    /// Passes that it rehearses.
    pub fn count(&self) -> usize {
        self.rehearsals.len()
    }

    /// Those of them that most sessions need, which come first.
    pub fn common(&self) -> usize {
        self.rehearsals.iter().take_while(|each| each.is_common()).count()
    }

    /// Run the largest passes once. Where buffers grow, captured passes are lost, so this comes first.
    pub fn grow(&mut self, watch: &mut Watch) -> Result<(), Stop> {
        if !self.captures() || self.queue.is_none() {
            return Ok(());
        }
        let sizes: [fn(&Rehearsal) -> usize; 2] = [Rehearsal::all_rows, Rehearsal::tokens];
        for size in sizes {
            while let Some(largest) = self.largest(size)
                && !self.bounded(&largest, |stage| stage.run(&largest, watch).map(|_| ()))?
            {}
        }
        Ok(())
    }

    fn largest(&self, size: fn(&Rehearsal) -> usize) -> Option<Rehearsal> {
        let possible = self.rehearsals.iter().filter(|each| self.is_possible(each));
        possible.max_by_key(|each| (size(each), each.context)).cloned()
    }

    /// Run the pass of this number until later ones of its size take no longer, if that is of use.
    pub fn rehearse(&mut self, number: usize, watch: &mut Watch) -> Result<(), Stop> {
        let Some(rehearsal) = self.rehearsals.get(number).cloned() else { return Ok(()) };
        if !self.is_possible(&rehearsal) || !self.is_useful(&rehearsal) {
            return Ok(());
        }
        self.bounded(&rehearsal, |stage| {
            for pass in 0..MOST_TRIES {
                if stage.run(&rehearsal, watch)? {
                    break;
                }
                stage.left -= usize::from(pass == 0);
            }
            Ok(())
        })?;
        Ok(())
    }

    /// Do something with a pass. If there is no memory, less is tried from now on. Returns whether there was.
    fn bounded(
        &mut self,
        rehearsal: &Rehearsal,
        body: impl FnOnce(&mut Self) -> Result<(), Stop>,
    ) -> Result<bool, Stop> {
        match body(self) {
            Err(Stop::Full) => {
                let longest = (0..self.filled.len()).max_by_key(|&index| self.filled[index].base);
                if !self.is_possible(rehearsal) {
                    // It is limited already.
                } else if self.queue.is_none() {
                    self.alone = self.empty.len();
                } else if rehearsal.context > 0 && self.filled.iter().all(|member| member.base != rehearsal.context) {
                    self.limits.1 = rehearsal.context;
                } else if let Some(longest) = longest {
                    self.limits.1 = self.filled.swap_remove(longest).base;
                } else {
                    self.limits.0 = rehearsal.widths.len();
                }
                Ok(false)
            }
            other => other.map(|()| true),
        }
    }

    /// Whether the model can run a pass.
    fn is_possible(&self, rehearsal: &Rehearsal) -> bool {
        let widest = rehearsal.widths.iter().copied().max().unwrap_or(0);
        rehearsal.widths.len() < self.limits.0
            && self.alone > 0
            && rehearsal.context < self.limits.1
            && widest <= self.model.max_pass()
            && rehearsal.tokens() <= self.model.max_batch_tokens()
            && rehearsal.context + widest <= self.model.context_length()
    }

    /// Whether a pass prepares anything.
    fn is_useful(&mut self, rehearsal: &Rehearsal) -> bool {
        if self.captures() {
            return self.left > 0;
        }
        // All that is learned is what so many tokens take.
        self.seen.insert(rehearsal.tokens())
    }

    /// Run a pass. Returns whether later ones of its size take as long.
    fn run(&mut self, rehearsal: &Rehearsal, watch: &mut Watch) -> Result<bool, Stop> {
        let context = rehearsal.context;
        if context > 0 && self.filled.iter().all(|member| member.base != context) {
            let mut member = self.start()?;
            self.fill(&mut member, context, watch)?;
            self.filled.push(member);
        }
        let is_alone = self.queue.is_none() && self.captures();
        let copies = if is_alone { self.alone } else { 1 };
        while self.empty.len() < copies * rehearsal.widths.len() {
            let mut member = self.start().map_err(|stop| self.limited(stop))?;
            if is_alone {
                // Its buffers grow now. Then they, and captured passes, stay where they are.
                self.fill(&mut member, self.tokens, watch)?;
                member.base = 0;
                member.sequence.truncate(0);
            }
            self.empty.push(member);
        }
        watch.check()?;
        let Stage { model, queue, waiter, empty, filled, made_up, .. } = self;
        let first = filled.iter_mut().find(|member| member.base == context);
        let all = first.into_iter().chain(empty).take(copies * rehearsal.widths.len());
        let mut members: Vec<&mut Member> = all.collect();
        for (member, (index, &width)) in members.iter_mut().zip(rehearsal.widths.iter().enumerate().cycle()) {
            member.tell(made_up, width, rehearsal.rows(index));
        }
        pass(*model, *queue, waiter, &mut members)
    }

    /// A sequence could not be started. If there are others, that is for want of memory, of which half is given back:
    /// passes need some. Whatever else is wrong, a pass tells it.
    fn limited(&mut self, stop: Stop) -> Stop {
        let count = self.empty.len();
        if count == 0 {
            return stop;
        }
        self.empty.truncate(count.div_ceil(2));
        self.limits.0 = self.empty.len() + 1;
        Stop::Full
    }

    /// Another sequence.
    fn start(&self) -> Result<Member, Stop> {
        // If memory is short, it counts as started later than the sessions of users.
        let cancel = Arc::new(Cancel::new(Priority::Batch));
        let mut sequence = self.model.start(&cancel)?;
        sequence.set_scope(self.scope);
        Ok(Member { sequence, cancel, base: 0, tokens: Vec::new(), rows: 1 })
    }

    /// Give a sequence so many tokens.
    fn fill(&mut self, member: &mut Member, tokens: usize, watch: &mut Watch) -> Result<(), Stop> {
        while member.base < tokens {
            watch.check()?;
            let width = (tokens - member.base).min(self.model.max_pass());
            member.base += width;
            member.tell(&mut self.made_up, width, 1);
            pass(self.model, self.queue, &self.waiter, &mut [&mut *member])?;
        }
        Ok(())
    }
}

impl Member {
    /// Tell it what its next pass is.
    fn tell(&mut self, made_up: &mut MadeUp, width: usize, rows: usize) {
        self.tokens.clear();
        self.tokens.extend((0..width).map(|_| made_up.next()));
        self.rows = rows;
    }

    /// Its next pass, and what could cancel it. Nobody filters the rows, or draws from them.
    fn pass(&mut self) -> (Pass<'_>, &Cancel) {
        let keep = self.sequence.len() + self.tokens.len() - self.rows + 1;
        let filter = Filter::plain(1.0);
        (Pass { sequence: self.sequence.as_mut(), tokens: &self.tokens, keep, filter, uniforms: None }, &self.cancel)
    }

    /// Ask for it.
    fn ticket<'a>(&'a mut self, queue: &'a PassQueue, now: Instant) -> Ticket<'a> {
        let (pass, cancel) = self.pass();
        let is_prompt = pass.tokens.len() > NARROW;
        // It is part of the next pass with the sessions of users, so that the bound in time holds.
        let ticket = Ticket::new(queue, pass, cancel, WhenFull::Refuse, now).of(Priority::Interactive, is_prompt);
        ticket.counting(false)
    }
}

/// Run one pass over sequences, which then have the tokens that stay. Returns whether later passes take as long.
fn pass(
    model: &dyn Model,
    queue: Option<&PassQueue>,
    waiter: &Arc<Waiter>,
    members: &mut [&mut Member],
) -> Result<bool, Stop> {
    let now = Instant::now();
    let reports: Vec<Result<Report, Interrupt>> = match queue {
        None => members.iter_mut().map(|member| model.forward(&mut [member.pass().0])).collect(),
        Some(queue) => {
            let mut tickets: Vec<Ticket> = members.iter_mut().map(|member| member.ticket(queue, now)).collect();
            queue::run(waiter, false, &mut tickets, &mut || ());
            let outcome = |ticket: Ticket| ticket.outcome().unwrap_or(Err(Interrupt::Cancelled));
            tickets.into_iter().map(outcome).collect()
        }
    };
    members.iter_mut().for_each(|member| member.sequence.truncate(member.base));
    let mut result = Ok(true);
    for report in reports {
        let report = report.map_err(|interrupt| match interrupt {
            Interrupt::Failed(error) => error.into(),
            Interrupt::Cancelled => Stop::Failed(Error::Internal("nobody could cancel this".into())),
        });
        result = match (result, report) {
            (Err(Stop::Failed(error)), _) | (_, Err(Stop::Failed(error))) => return Err(Stop::Failed(error)),
            (Err(stop), _) | (_, Err(stop)) => Err(stop),
            (Ok(others), Ok(report)) => Ok(others && report.is_usual),
        };
    }
    result
}
