//! A model whose logits come from a function: the fake that tests, proofs and microbenchmarks run on.
//!
//! It is as strict as a real model may be: rows that were not kept are gone.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::limited::Limited;
use super::{Admission, CacheUse, Cancel, Interrupt, Model, Pass, Report, Sequence, TIMED_WIDTHS};
use crate::error::Result;
use crate::rows::Row;

/// Writes the logits that follow a context into a row, or fails.
pub type Script = dyn Fn(&[i32], &mut [f32]) -> Result<(), Interrupt> + Send + Sync;

/// The time of a pass, by its width and the number of earlier passes of its sequence.
pub type PassTime = dyn Fn(usize, u64) -> Duration + Send + Sync;

/// The pretended time of a pass, by all its tokens and by its sequences. It may move a clock.
pub type SharedTime = dyn Fn(usize, usize, f64) -> Duration + Send + Sync;

/// Called at the beginning of each pass with the widths of its sequences. It may count, wait, fail or panic.
pub type BatchHook = dyn Fn(&[usize]) -> Result<(), Interrupt> + Send + Sync;

/// A model whose logits come from a function of the context.
pub struct Scripted {
    name: String,
    vocab_size: usize,
    context_length: usize,
    max_pass: usize,
    /// Most tokens of a pass, if passes over several sequences pay.
    max_batch_tokens: Option<usize>,
    memory: Option<Arc<Mutex<Limited>>>,
    batch_hook: Option<Box<BatchHook>>,
    cost: u64,
    script: Box<Script>,
    pass_time: Box<PassTime>,
    shared_time: Option<Box<SharedTime>>,
    pass_times: Vec<(usize, Duration)>,
    /// The share of a launched pass that is left when it is waited for; 1 if passes cannot be launched.
    left: f64,
    /// Where its passes run. Those that run alone overlap with nothing.
    device: Option<Arc<Mutex<InFlight>>>,
    /// The first two passes of each width take so many times as long.
    preparation: f64,
}

/// Passes of a device that were launched.
#[derive(Debug)]
pub struct InFlight {
    count: usize,
    /// Whether none of them was waited for.
    is_first: bool,
    /// Whether there were several at the same time, since there was none.
    several: bool,
}

/// What is left of the second of two passes when the first one has ended.
const LAST: f64 = 0.05;

impl Default for InFlight {
    fn default() -> Self {
        InFlight { count: 0, is_first: true, several: false }
    }
}

impl InFlight {
    fn begin(&mut self) {
        self.count += 1;
        self.several |= self.count > 1;
    }

    /// A pass is waited for. Returns the share of its time that this takes. All passes that run at the same time end at
    /// nearly the same time, so the wait for the first one is nearly all.
    fn end(&mut self, left: f64) -> f64 {
        let (is_first, had_company) = (self.is_first, self.several);
        self.count = self.count.saturating_sub(1);
        self.several &= self.count > 0;
        self.is_first = self.count == 0;
        match (had_company, is_first) {
            (false, _) => 1.0,
            (true, true) => 2.0 * left - LAST,
            (true, false) => LAST,
        }
    }
}

impl Scripted {
    /// A model over `vocab_size` tokens whose logits are those of `script`.
    pub fn new(
        vocab_size: usize,
        script: impl Fn(&[i32], &mut [f32]) -> Result<(), Interrupt> + Send + Sync + 'static,
    ) -> Self {
        Scripted {
            name: "scripted".into(),
            vocab_size,
            context_length: 1 << 20,
            max_pass: 512,
            max_batch_tokens: None,
            memory: None,
            batch_hook: None,
            cost: 1,
            script: Box::new(script),
            pass_time: Box::new(|_, _| Duration::ZERO),
            shared_time: None,
            pass_times: Vec::new(),
            left: 1.0,
            device: None,
            preparation: 1.0,
        }
    }

    /// With first two passes of each width that pretend to take so many times as long, and report that this is not
    /// usual.
    pub fn with_preparation(mut self, times: f64) -> Self {
        self.preparation = times;
        self
    }

    /// With passes that can be launched. They pretend to take this share of their time after that; the rest overlaps
    /// with other passes.
    pub fn with_overlap(mut self, left: f64) -> Self {
        self.left = left;
        self
    }

    /// With passes that overlap only with others of this device.
    pub fn with_device(mut self, device: &Arc<Mutex<InFlight>>) -> Self {
        self.device = Some(device.clone());
        self
    }

    /// With passes over several sequences that pretend to pay: one takes as long as its slowest part. They hold at most
    /// so many tokens.
    pub fn with_batches(mut self, max_batch_tokens: usize) -> Self {
        self.max_batch_tokens = Some(max_batch_tokens);
        self
    }

    /// With passes over several sequences that pretend to take a time of their own: by their tokens, their sequences,
    /// and the share of it that does not overlap with other passes.
    pub fn with_shared_time(mut self, time: impl Fn(usize, usize, f64) -> Duration + Send + Sync + 'static) -> Self {
        self.shared_time = Some(Box::new(time));
        self
    }

    /// With memory for so many tokens of all sequences, to be shared by passes that are admitted.
    pub fn with_memory(mut self, tokens: usize) -> Self {
        self.memory = Some(Arc::new(Mutex::new(Limited::new(tokens))));
        self
    }

    /// With a function that is called at the beginning of each pass.
    pub fn with_batch_hook(mut self, hook: impl Fn(&[usize]) -> Result<(), Interrupt> + Send + Sync + 'static) -> Self {
        self.batch_hook = Some(Box::new(hook));
        self
    }

    /// With another name.
    pub fn with_name(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// With another context length.
    pub fn with_context_length(mut self, tokens: usize) -> Self {
        self.context_length = tokens;
        self
    }

    /// With another limit on the tokens of a pass.
    pub fn with_max_pass(mut self, tokens: usize) -> Self {
        self.max_pass = tokens;
        self
    }

    /// With another relative cost.
    pub fn with_cost(mut self, cost: u64) -> Self {
        self.cost = cost;
        self
    }

    /// With passes that pretend to take time. The times of first passes are those measured at loading.
    pub fn with_pass_times(mut self, pass_time: impl Fn(usize, u64) -> Duration + Send + Sync + 'static) -> Self {
        self.pass_times = TIMED_WIDTHS.map(|width| (width, pass_time(width, 0))).to_vec();
        self.pass_time = Box::new(pass_time);
        self
    }
}

struct ScriptedSequence {
    tokens: Vec<i32>,
    /// The row of position `p` at index `p`; `None` if it was never made or was dropped.
    rows: Vec<Option<Box<[f32]>>>,
    cancel: Arc<Cancel>,
    memory: Option<Arc<Mutex<Limited>>>,
    /// Tokens computed once more.
    recomputed: usize,
    passes: u64,
    /// The tokens and the first kept row of a launched pass.
    launched: Option<(Vec<i32>, usize)>,
    /// The widths of all passes, if first passes prepare later ones.
    widths: Vec<usize>,
}

impl ScriptedSequence {
    fn forget(&self, len: usize) {
        self.memory.iter().for_each(|memory| memory.lock().truncate(self.cancel.age(), len));
    }
}

impl Drop for ScriptedSequence {
    fn drop(&mut self) {
        self.forget(0);
    }
}

impl Sequence for ScriptedSequence {
    fn len(&self) -> usize {
        self.tokens.len()
    }

    fn truncate(&mut self, len: usize) {
        self.launched = None;
        self.forget(len);
        self.tokens.truncate(len);
        self.rows.truncate(len + 1);
    }

    fn cache_use(&self) -> CacheUse {
        CacheUse { found: 0, recomputed: self.recomputed as u64 }
    }

    fn row(&self, position: usize) -> Row<'_> {
        assert!(self.launched.is_none(), "the decoder read a row while a pass was running");
        Row::Host(self.rows[position].as_ref().expect("the decoder read a row that it had let go"))
    }
}

impl Model for Scripted {
    fn name(&self) -> &str {
        &self.name
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        self.context_length
    }

    fn max_pass(&self) -> usize {
        self.max_pass
    }

    fn batches(&self) -> bool {
        self.max_batch_tokens.is_some()
    }

    fn max_batch_tokens(&self) -> usize {
        self.max_batch_tokens.unwrap_or(self.max_pass)
    }

    fn admit(&self, pass: &mut Pass<'_>) -> Admission {
        let (sequence, tokens) = (own(pass.sequence), pass.tokens.len());
        let admit = |memory: &Arc<Mutex<Limited>>| {
            memory.lock().admit(sequence.cancel.age(), sequence.tokens.len(), tokens, self.max_pass)
        };
        self.memory.as_ref().map_or(Admission::Whole(tokens), admit)
    }

    fn cost(&self) -> u64 {
        self.cost
    }

    fn pass_times(&self) -> &[(usize, Duration)] {
        &self.pass_times
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        Ok(Box::new(ScriptedSequence {
            tokens: Vec::new(),
            rows: vec![None],
            cancel: cancel.clone(),
            memory: self.memory.clone(),
            recomputed: 0,
            passes: 0,
            launched: None,
            widths: Vec::new(),
        }))
    }

    fn fork(&self, sequence: &dyn Sequence, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        let mut fork = self.start(cancel)?;
        // Models that share memory share what was computed, the others compute it anew.
        if self.memory.is_some() {
            let other: &ScriptedSequence = (sequence as &dyn Any).downcast_ref().expect("a sequence of another model");
            let own = own(fork.as_mut());
            own.tokens.extend_from_slice(&other.tokens);
            own.rows.resize_with(other.tokens.len() + 1, || None);
        }
        Ok(fork)
    }

    fn overlaps(&self) -> bool {
        self.left < 1.0
    }

    fn launch(&self, batch: &mut [Pass<'_>]) -> bool {
        let mut is_running = self.overlaps();
        for pass in batch {
            let sequence = own(pass.sequence);
            assert!(sequence.launched.is_none(), "a second pass was launched");
            if self.overlaps() && !sequence.cancel.is_requested() {
                sequence.launched = Some((pass.tokens.to_vec(), pass.keep));
            }
            is_running &= sequence.launched.is_some();
        }
        self.device.iter().filter(|_| is_running).for_each(|device| device.lock().begin());
        is_running
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        let result = self.run(batch);
        if result.is_err() {
            batch.iter_mut().map(|pass| own(pass.sequence)).for_each(|sequence| sequence.forget(sequence.tokens.len()));
        }
        result
    }
}

impl Scripted {
    fn run(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        if let Some(hook) = &self.batch_hook {
            hook(&batch.iter().map(|pass| pass.tokens.len()).collect::<Vec<_>>())?;
        }
        let mut width = |pass: &mut Pass<'_>| {
            let (sequence, tokens) = (own(pass.sequence), pass.tokens.len());
            let run = |memory: &Arc<Mutex<Limited>>| {
                memory.lock().run(sequence.cancel.age(), sequence.tokens.len(), tokens, self.max_pass)
            };
            let width = self.memory.as_ref().map_or(tokens, run);
            sequence.recomputed += width - tokens;
            width
        };
        let tokens: usize = batch.iter_mut().map(&mut width).sum();
        assert!(tokens <= self.max_batch_tokens().max(self.max_pass), "a pass over too many tokens");
        let launched: Vec<_> = batch.iter_mut().map(|pass| own(pass.sequence).launched.take()).collect();
        let left = match &self.device {
            _ if launched.iter().any(Option::is_none) => 1.0,
            None => self.left,
            Some(device) => device.lock().end(self.left),
        };
        let mut scored = Vec::with_capacity(batch.len());
        for (pass, launched) in batch.iter_mut().zip(&launched) {
            let least = usize::from(self.memory.is_none());
            assert!((least..=self.max_pass).contains(&pass.tokens.len()), "a pass of a forbidden width");
            let sequence = own(pass.sequence);
            if let Some((tokens, keep)) = launched {
                assert_eq!((&tokens[..], *keep), (pass.tokens, pass.keep), "another pass was launched");
            }
            let mut context = sequence.tokens.clone();
            let mut rows = Vec::with_capacity(pass.tokens.len());
            for &token in pass.tokens {
                if sequence.cancel.is_requested() {
                    return Err(Interrupt::Cancelled);
                }
                context.push(token);
                assert!(context.len() <= self.context_length, "a pass beyond the context");
                let mut row = vec![0.0; self.vocab_size].into_boxed_slice();
                (self.script)(&context, &mut row)?;
                rows.push(Some(row));
            }
            scored.push((context, rows));
        }
        let mut report = Report { elapsed: Duration::ZERO, is_usual: true };
        for ((pass, launched), (context, rows)) in batch.iter_mut().zip(launched).zip(scored) {
            let sequence = own(pass.sequence);
            sequence.tokens = context;
            sequence.rows.extend(rows);
            let width = pass.tokens.len();
            let mut share = if launched.is_some() { self.left } else { 1.0 };
            if self.preparation > 1.0 {
                let is_usual = sequence.widths.iter().filter(|of| **of == width).count() >= 2;
                sequence.widths.push(width);
                report.is_usual &= is_usual;
                share *= if is_usual { 1.0 } else { self.preparation };
            }
            let elapsed = (self.pass_time)(width, sequence.passes).mul_f64(share);
            report.elapsed = if self.batches() { report.elapsed.max(elapsed) } else { report.elapsed + elapsed };
            sequence.passes += 1;
            let kept = if width == 0 { 0 } else { pass.keep.min(sequence.rows.len()) };
            sequence.rows[..kept].fill(None);
        }
        if let Some(time) = &self.shared_time {
            report.elapsed = time(tokens, batch.len(), left);
        }
        Ok(report)
    }
}

fn own(sequence: &mut dyn Sequence) -> &mut ScriptedSequence {
    (sequence as &mut dyn Any).downcast_mut().expect("a sequence of another model")
}
