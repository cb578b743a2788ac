//! One sequence of a model: its buffers, and the passes that its tokens are cut into.

use std::any::Any;
use std::sync::{Arc, Weak};
use std::time::Duration;

use ort::memory::MemoryInfo;
use ort::session::RunOptions;
use parking_lot::Mutex;

use super::binding::Binding;
use super::cache::Cache;
use super::gpu_passes::{GpuPasses, Output};
use super::inputs::Feed;
use super::logits::{KEPT_ROWS, LogitRows};
use super::weights::LoadedSession;
use crate::cuda::Device;
use crate::error::Result;
use crate::export::{CacheKind, Export, GivenRows, Scoring};
use crate::model::{Cancel, CancelHook, Interrupt, Memory, Report, Sequence};
use crate::rows::device::Ring;
use crate::rows::{DeviceRows, Filter, Row};

pub const MIN_PASS: usize = 16;
/// Twice as many are a tenth faster (measured on two cores), and what ONNX Runtime takes for a pass, and keeps, grows with them.
pub const MAX_PASS: usize = 256;

/// Scores of attention take at most this many bytes in a layer, unless a pass of [`MIN_PASS`] tokens takes more: one for
/// each head, position and entry of the cache.
const SCORES_BYTES: usize = 64 << 20;

pub fn own(sequence: &mut dyn Sequence) -> &mut OnnxSequence {
    let lent: &mut SequenceHandle = (sequence as &mut dyn Any).downcast_mut().expect("a sequence of another model");
    lent.get_mut()
}

/// Sequences on a GPU that ended, so that the next one has their buffers, and with them the graphs of passes that were captured.
#[derive(Default)]
pub struct Spares(Mutex<Vec<OnnxSequence>>);

/// Sequences that a model keeps at most.
const MOST_SPARES: usize = 4;

impl Spares {
    pub fn take(&self) -> Option<OnnxSequence> {
        self.0.lock().pop()
    }

    pub fn give(&self, sequence: OnnxSequence) {
        let mut spares = self.0.lock();
        if spares.len() < MOST_SPARES {
            spares.push(sequence);
        }
    }

    /// Free what they hold. Returns whether there were any.
    pub fn clear(&self) -> bool {
        !std::mem::take(&mut *self.0.lock()).is_empty()
    }
}

/// A sequence until it ends.
pub struct SequenceHandle {
    /// Always there, but for `drop`.
    pub sequence: Option<OnnxSequence>,
    pub spares: Arc<Spares>,
}

impl SequenceHandle {
    pub fn get(&self) -> &OnnxSequence {
        self.sequence.as_ref().expect("it has not ended")
    }

    pub fn get_mut(&mut self) -> &mut OnnxSequence {
        self.sequence.as_mut().expect("it has not ended")
    }
}

impl Drop for SequenceHandle {
    fn drop(&mut self) {
        self.get_mut().abandon();
        let rows_failed = self.get().gpu.as_ref().is_some_and(|gpu| gpu.rows.as_ref().is_some_and(Ring::has_failed));
        let sound = self.get().sound && !rows_failed;
        if let Some(sequence) = self.sequence.take_if(|sequence| sequence.gpu.is_some() && sound) {
            self.spares.give(sequence);
        }
    }
}

/// Stops a running pass by ORT's run options.
pub struct Terminate(pub Arc<RunOptions>);

impl CancelHook for Terminate {
    fn stop(&self) {
        // Neither call can fail: both only set a flag.
        let _ = self.0.terminate();
    }

    fn resume(&self) {
        let _ = self.0.unterminate();
    }
}

/// One sequence of an [`OnnxModel`].
pub struct OnnxSequence {
    /// Declared before the buffers, so that it is dropped before them: it points into them.
    pub binding: Binding,
    /// What it has on a GPU; likewise before the buffers of the cache.
    pub gpu: Option<GpuPasses>,
    pub cache: Cache,
    /// Whether the binding has the cache's buffers.
    pub bound: bool,
    /// The GPU that ONNX Runtime copies to what is bound, where the cache is on the host: then all is bound anew for each pass.
    pub copies: Option<Arc<Device>>,
    pub feeds: Vec<Feed>,
    pub rows: LogitRows,
    pub vocab_size: usize,
    /// Logits as the export gives them, where they cannot be written to `rows` at once. In units of four bytes.
    pub raw: Vec<u32>,
    pub export: Arc<Export>,
    pub memory: Arc<MemoryInfo<'static>>,
    pub options: Arc<RunOptions>,
    pub cancel: Arc<Cancel>,
    /// What was seen, for an export without a cache.
    pub tokens: Vec<i32>,
    pub elapsed: Duration,
    /// The most bytes that `rows` and `raw` had.
    pub peak_logits: usize,
    pub spares: Weak<Spares>,
    /// Behind the binding, so that the session ends where it was made.
    pub _loaded: Arc<LoadedSession>,
    /// Whether no pass has failed, so that another sequence may have its buffers.
    pub sound: bool,
    /// A pass that was begun, or why it was not.
    pub begun: Option<LaunchedPass>,
}

/// How tokens are run in one pass.
#[derive(Clone, Copy)]
pub struct PassPlan {
    /// How many there are.
    pub width: usize,
    /// How many of their rows, from the front, need not be made.
    pub unwanted: usize,
    /// How many more tokens the pass takes behind them, whose rows nobody sees and whose entries are taken back.
    pub padding: usize,
}

impl PassPlan {
    pub fn wanted(self) -> usize {
        self.width - self.unwanted
    }

    pub fn total(self) -> usize {
        self.width + self.padding
    }
}

/// A pass on a GPU until it is over.
pub struct LaunchedPass {
    pub cut: PassPlan,
    /// Where its rows go, or what went wrong.
    pub output: ort::Result<Output>,
}

impl Sequence for SequenceHandle {
    fn len(&self) -> usize {
        self.get().cache.len()
    }

    fn truncate(&mut self, len: usize) {
        self.get_mut().truncate(len);
    }

    fn row(&self, position: usize) -> Row<'_> {
        let sequence = self.get();
        match sequence.on_gpu(position) {
            Some(rows) => Row::Device(rows, position),
            None => Row::Host(&sequence.rows.row(position)[..sequence.vocab_size]),
        }
    }

    fn device_rows(&self) -> Option<&dyn DeviceRows> {
        let rows = self.get().gpu.as_ref()?.rows.as_ref()?;
        Some(rows)
    }

    fn memory(&self) -> Memory {
        let sequence = self.get();
        let bytes = sequence.logits_bytes();
        let logits = Memory { bytes, peak_bytes: sequence.peak_logits.max(bytes) };
        let tokens = Memory::of(size_of::<i32>() * sequence.tokens.capacity());
        [sequence.cache.memory(), logits, tokens].into_iter().sum()
    }
}

impl OnnxSequence {
    pub fn len(&self) -> usize {
        self.cache.len()
    }

    pub fn truncate(&mut self, len: usize) {
        self.abandon();
        self.cache.truncate(len);
        self.tokens.truncate(len);
    }

    /// The rows on the GPU, if that of a position is among them.
    pub fn on_gpu(&self, position: usize) -> Option<&Ring> {
        self.gpu.as_ref().and_then(|gpu| gpu.rows.as_ref()).filter(|rows| rows.holds(position))
    }

    /// The row of a position, padding included.
    pub fn whole_row(&self, position: usize) -> ort::Result<&[f32]> {
        match self.on_gpu(position) {
            Some(rows) => rows.row(position),
            None => Ok(self.rows.row(position)),
        }
    }

    /// Begin anew, as if nothing had been: what another session's text left in the cache goes.
    pub fn restart(&mut self, options: Arc<RunOptions>, cancel: &Arc<Cancel>, vocab_size: usize) -> Result<()> {
        self.truncate(0);
        self.cache.clear()?;
        if let Some(rows) = self.gpu.as_mut().and_then(|gpu| gpu.rows.as_mut()) {
            rows.clear(vocab_size);
        }
        self.rows =
            LogitRows { rows: std::mem::take(&mut self.rows.rows), ..LogitRows::new(self.export.logits.columns) };
        (self.options, self.cancel, self.vocab_size) = (options, cancel.clone(), vocab_size);
        (self.elapsed, self.peak_logits) = (Duration::ZERO, 0);
        Ok(())
    }

    pub fn run(&mut self, tokens: &[i32], keep: usize, filter: Filter) -> Result<Report, Interrupt> {
        let start = self.len();
        self.set_filter(filter);
        let mut left = tokens;
        while !left.is_empty() {
            let begun = self.begun.as_ref().map(|begun| begun.cut);
            let cut = begun.unwrap_or_else(|| self.next_pass(left.len(), keep));
            let (now, later) = left.split_at(cut.width);
            if let Err(interrupt) = self.pass(now, cut, keep) {
                self.truncate(start);
                self.elapsed = Duration::ZERO;
                return Err(interrupt);
            }
            left = later;
        }
        // Only a prompt has so many rows that nobody wants.
        if keep > start + KEPT_ROWS {
            self.trim(keep.min(self.len()));
        }
        let is_usual = self.gpu.as_ref().is_none_or(|gpu| gpu.is_usual);
        Ok(Report { elapsed: std::mem::take(&mut self.elapsed), is_usual })
    }

    /// Have the GPU prepare rows for this filter.
    fn set_filter(&mut self, filter: Filter) {
        if let Some(rows) = self.gpu.as_mut().and_then(|gpu| gpu.rows.as_mut()) {
            rows.set_filter(filter);
        }
    }

    /// Leave the first pass of [`OnnxSequence::run`] with the same arguments running. Returns whether it is.
    pub fn begin(&mut self, tokens: &[i32], keep: usize, filter: Filter) -> bool {
        if self.gpu.is_none() || self.cancel.is_requested() {
            return false;
        }
        self.set_filter(filter);
        let cut = self.next_pass(tokens.len(), keep);
        self.begin_on_gpu(&tokens[..cut.width], cut, keep);
        true
    }

    /// Wait for a pass that was begun and that nobody wants any more.
    pub fn abandon(&mut self) {
        if let Some(begun) = self.begun.take() {
            // One that went wrong was drained, and leaves nothing to others.
            self.sound &= begun.output.is_ok() && self.gpu.as_ref().is_none_or(|gpu| gpu.wait().is_ok());
            self.cache.settle(false);
            self.elapsed = Duration::ZERO;
        }
    }

    /// How the first of so many tokens are run in one pass.
    pub fn next_pass(&self, tokens: usize, keep: usize) -> PassPlan {
        // Rows before `keep` are not wanted; after token i comes the row of position i + 1.
        let unwanted = keep.saturating_sub(self.len() + 1).min(tokens - 1);
        let (width, unwanted) = match self.export.logits.rows {
            // without a cache a row is scored with all before it, whatever came in earlier passes
            _ if self.export.scoring == Scoring::OneByOne && self.export.cache_kind == CacheKind::None => {
                (unwanted + 1, unwanted)
            }
            _ if self.export.scoring == Scoring::OneByOne => (1, 0),
            _ if self.export.scoring == Scoring::FirstPass && self.len() > 0 => (1, 0),
            GivenRows::Last => (unwanted + 1, unwanted),
            // all come anyway, and go to where they are read without a copy, unless that is somewhere else
            GivenRows::All if self.export.cache_kind != CacheKind::None && self.gpu.is_none() => (tokens, 0),
            GivenRows::All | GivenRows::Counted => (tokens, unwanted),
        };
        let width = width.min(self.widest(width));
        PassPlan { width, unwanted: unwanted.min(width - 1), padding: self.padding(width) }
    }

    /// How many tokens a pass over so many takes more.
    pub fn padding(&self, width: usize) -> usize {
        let can = self.export.cache_kind == CacheKind::Shared
            && self.export.scoring == Scoring::Parallel
            && self.export.logits.rows != GivenRows::Last;
        let padding = self.gpu.as_ref().filter(|_| can).map_or(0, |gpu| gpu.padding(width));
        let (total, end) = (width + padding, self.len() + width);
        let fits = end + padding <= self.cache.room(end) && total <= self.widest(total);
        if fits { padding } else { 0 }
    }

    /// The widest pass, up to `width`, whose attention takes a bearable amount of memory. Without a cache that is a matter
    /// of the text, not of the pass.
    pub fn widest(&self, width: usize) -> usize {
        match self.export.cache_kind {
            CacheKind::None => width,
            _ => widest(self.export.heads, self.cache.capacity().max(self.len() + width)),
        }
    }
}

fn widest(heads: usize, entries: usize) -> usize {
    (SCORES_BYTES / heads.saturating_mul(entries).saturating_mul(4).max(1)).max(MIN_PASS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_over_long_contexts_are_narrow() {
        assert!(widest(8, 1024) > MAX_PASS);
        assert_eq!(widest(32, 8192), 64);
        assert_eq!(widest(32, 1 << 20), MIN_PASS);
    }
}
