//! Models and functions that record every call, and report what must not happen.

use std::any::Any;
use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cos::engine::participant::Participant;
use cos::error::Error;
use cos::model::scripted::Scripted;
use cos::model::{Cancel, Interrupt, Model, Pass, Report as PassReport, Sequence};
use cos::rows::Row;
use parking_lot::Mutex;

use super::faults::{Fault, PLANTED, Stage, is_bad, spoil};

/// A session seen from both sides: what its caller was told, and what its models were given.
#[derive(Default)]
pub struct Ledger {
    pub committed: Vec<i32>,
    pub prompt_end: usize,
    pub max_pending: usize,
    /// The tokens in each model's sequence.
    pub caches: Vec<Vec<i32>>,
    pub forwards: u64,
    pub positions: u64,
}

impl Ledger {
    /// Checks that every cache holds the committed tokens, followed by the same pending tokens as all others.
    pub fn check(&self) -> Result<(), String> {
        let longest = self.caches.iter().max_by_key(|cache| cache.len()).map_or(&[][..], Vec::as_slice);
        for (model, cache) in self.caches.iter().enumerate() {
            let common = cache.len().min(self.committed.len());
            if cache[..common] != self.committed[..common] {
                return Err(format!("the cache of model {model} holds {cache:?}, committed is {:?}", self.committed));
            }
            if *cache != longest[..cache.len()] {
                return Err(format!("the cache of model {model} holds {cache:?}, another one {longest:?}"));
            }
        }
        if longest.len() > self.committed.len() + self.max_pending {
            let (found, committed) = (longest.len(), self.committed.len());
            return Err(format!("a cache holds {found} tokens, of which {committed} are committed: too many pending"));
        }
        Ok(())
    }

    pub fn longest(&self) -> usize {
        self.caches.iter().map(Vec::len).max().unwrap_or(0)
    }
}

/// A bug that is planted to check that the simulation finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// Model 0 keeps one token too many when it is truncated.
    TruncateKeepsOne,
    /// After a truncation, model 0 gives the row of the removed token in place of its successor's.
    StaleRow,
    /// Model 0 gives a wrong row for the last position of a wide pass.
    WideRow,
    /// A step with several tokens loses the last one on the way to the caller.
    LosesToken,
    /// A log-probability belongs to another temperature.
    LogProbability,
    /// A step says that the sequence goes on, although it has ended.
    MissesTheEnd,
    /// A failed step writes its result.
    WritesOnError,
    /// A poisoned session accepts a prompt.
    Forgives,
}

pub struct Double {
    pub inner: Box<dyn Model>,
    pub index: usize,
    pub stage: Arc<Stage>,
    pub bug: Option<Bug>,
}

pub struct DoubleSequence {
    pub inner: Box<dyn Sequence>,
    pub index: usize,
    pub stage: Arc<Stage>,
    pub ledger: Arc<Mutex<Ledger>>,
    pub bug: Option<Bug>,
    /// The wrong row of a bug, and its position.
    pub wrong: Option<(usize, Vec<f32>)>,
}

impl Sequence for DoubleSequence {
    fn len(&self) -> usize {
        self.inner.len()
    }

    fn truncate(&mut self, len: usize) {
        let mut ledger = self.ledger.lock();
        if len < self.inner.len() && len + 1 < ledger.committed.len() {
            let committed = ledger.committed.len();
            self.stage
                .report(format!("model {} is to forget all from {len} on; {committed} are committed", self.index));
        }
        match self.bug {
            Some(Bug::TruncateKeepsOne) => self.inner.truncate(len + 1),
            Some(Bug::StaleRow) => {
                self.wrong = (self.inner.len() > len).then(|| (len + 1, scores(self.inner.as_ref(), len + 1)));
                self.inner.truncate(len);
            }
            _ => self.inner.truncate(len),
        }
        ledger.caches[self.index].truncate(self.inner.len());
    }

    fn row(&self, position: usize) -> Row<'_> {
        match &self.wrong {
            Some((wrong, row)) if *wrong == position => Row::Host(row),
            _ => self.inner.row(position),
        }
    }
}

impl Model for Double {
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

    fn pass_times(&self) -> &[(usize, Duration)] {
        self.inner.pass_times()
    }

    fn start(&self, cancel: &Arc<Cancel>) -> cos::error::Result<Box<dyn Sequence>> {
        let (ledger, fault) = {
            let mut state = self.stage.state.lock();
            (state.ledger.clone().expect("a sequence without a session"), state.start.take())
        };
        match fault {
            Some(Fault::Panic) => panic!("{PLANTED}"),
            Some(_) => return Err(Error::Runtime(PLANTED.into())),
            None => {}
        }
        let bug = self.bug.filter(|_| self.index == 0);
        let (inner, stage) = (self.inner.start(cancel)?, self.stage.clone());
        Ok(Box::new(DoubleSequence { inner, index: self.index, stage, ledger, bug, wrong: None }))
    }

    fn overlaps(&self) -> bool {
        self.inner.overlaps()
    }

    fn launch(&self, batch: &mut [Pass<'_>]) -> bool {
        let [pass] = batch else { return false };
        let sequence: &mut dyn Any = pass.sequence;
        let sequence: &mut DoubleSequence = sequence.downcast_mut().expect("a sequence of another model");
        self.inner.launch(&mut [Pass { sequence: sequence.inner.as_mut(), ..*pass }])
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<PassReport, Interrupt> {
        let mut report = PassReport { elapsed: Duration::ZERO, is_usual: true };
        for pass in batch {
            let tokens = pass.tokens;
            let sequence: &mut dyn Any = pass.sequence;
            let sequence: &mut DoubleSequence = sequence.downcast_mut().expect("a sequence of another model");
            let start = sequence.len();
            if tokens.is_empty() || tokens.len() > self.max_pass() {
                self.stage.report(format!("a pass of {} tokens, where {} are allowed", tokens.len(), self.max_pass()));
            }
            let Pass { keep, filter, uniforms, .. } = *pass;
            let inner = Pass { sequence: sequence.inner.as_mut(), tokens, keep, filter, uniforms };
            report = self.inner.forward(&mut [inner])?;
            self.stage.clock.fetch_add(report.elapsed.as_nanos() as u64, Ordering::Relaxed);
            if sequence.bug == Some(Bug::WideRow) && tokens.len() > 2 && pass.keep <= sequence.inner.len() {
                let position = sequence.inner.len();
                let mut row = scores(sequence.inner.as_ref(), position);
                row.rotate_left(1);
                sequence.wrong = Some((position, row));
            }
            let mut ledger = sequence.ledger.lock();
            ledger.caches[self.index].extend_from_slice(tokens);
            if ledger.caches[self.index].len() != sequence.len() {
                self.stage.report(format!("model {} has lost count of its tokens", self.index));
            }
            if let Err(what) = ledger.check() {
                self.stage.report(what);
            }
            // Positions within the prompt do not count.
            let scored = (start + tokens.len()).saturating_sub(start.max(ledger.prompt_end - 1)) as u64;
            ledger.forwards += u64::from(scored > 0);
            ledger.positions += scored;
        }
        Ok(report)
    }
}

/// The user data of [`sum`].
pub struct FunctionData {
    pub stage: Arc<Stage>,
    pub needed: Vec<bool>,
}

/// A combine function that adds up the logits.
pub unsafe extern "C-unwind" fn sum(
    rows: *const *const f32,
    models_count: usize,
    vocab_size: usize,
    out_scores: *mut f32,
    user_data: *mut c_void,
) -> i32 {
    // SAFETY: the interface promises valid pointers and these counts.
    let (data, rows, scores) = unsafe {
        let data = &*user_data.cast::<FunctionData>();
        let rows = std::slice::from_raw_parts(rows, models_count);
        (data, rows, std::slice::from_raw_parts_mut(out_scores, vocab_size))
    };
    if !rows.iter().map(|row| !row.is_null()).eq(data.needed.iter().copied()) {
        data.stage.report("a combine function was given rows of other models than it needs".into());
    }
    let fault = data.stage.on_call();
    if fault == Some(Fault::Failure) {
        return -7;
    }
    scores.fill(0.0);
    for row in rows.iter().filter(|row| !row.is_null()) {
        // SAFETY: as above.
        let row = unsafe { std::slice::from_raw_parts(*row, vocab_size) };
        if is_bad(row) {
            data.stage.report(format!("a combine function was given the row {row:?}"));
        }
        scores.iter_mut().zip(row).for_each(|(score, logit)| *score += logit);
    }
    if fault == Some(Fault::Spoil) {
        spoil(scores, 0);
    }
    0
}

/// The models of a run.
pub fn models(rng: &mut fastrand::Rng, stage: &Arc<Stage>, scoring: usize, bug: Option<Bug>) -> Vec<Participant> {
    let longest = rng.usize(8..=200);
    let mut models: Vec<Participant> = Vec::new();
    for model in 0..scoring {
        let (of_script, vocab) = (stage.clone(), stage.truth.vocab);
        let stage = stage.clone();
        let script = move |context: &[i32], row: &mut [f32]| {
            of_script.truth.row(model, context, row);
            of_script.on_row(model, context.len(), row)
        };
        let context = if rng.u8(..4) > 0 { longest } else { rng.usize(8..=longest) };
        let scripted = Scripted::new(vocab, script)
            .with_name(["a", "b", "c", "d"][model])
            .with_context_length(context)
            .with_max_pass(rng.usize(1..=8))
            .with_cost(rng.u64(1..=20));
        let (first, further) = (rng.u64(10..2000), rng.u64(..100));
        let time = move |width: usize, _| Duration::from_micros(first + further * (width as u64 - 1));
        let scripted = if rng.bool() { scripted.with_pass_times(time) } else { scripted };
        let scripted = if rng.bool() { scripted.with_overlap(rng.f64()) } else { scripted };
        let double = Double { inner: Box::new(scripted), index: model, stage, bug };
        models.push(Arc::new(double).into());
    }
    // After the others, because models are known by their numbers.
    if rng.u8(..4) == 0 {
        models.push(Participant::LookUp("ngram".into()));
    }
    models
}

/// The token that a look-up proposes.
pub fn look_up(context: &[i32]) -> Option<i32> {
    let behind = |length: usize| {
        let end = &context[context.len().checked_sub(length)?..];
        (length..context.len()).rev().find(|&at| &context[at - length..at] == end).map(|at| context[at])
    };
    (2..=8).rev().find_map(behind)
}

/// A row, copied.
fn scores(sequence: &dyn Sequence, position: usize) -> Vec<f32> {
    sequence.row(position).scores().expect("a row on the host").to_vec()
}
