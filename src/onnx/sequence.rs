//! A sequence of a model: its buffers, and how its tokens are divided into passes.

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
use crate::rows::{DeviceRows, Filter, PassUniforms, Row};

/// The least width that limits of memory reduce a pass to, in tokens.
pub const MIN_PASS: usize = 16;
/// The largest width of a pass. Twice the width is a tenth faster on two cores, but ONNX Runtime's memory for a pass,
/// which it keeps, grows with the width.
pub const MAX_PASS: usize = 256;

/// Attention scores of a layer take at most this many bytes, unless a pass of [`MIN_PASS`] tokens needs more. There is
/// one float32 for each head, new token and entry of the cache.
const SCORES_BYTES: usize = 64 << 20;

/// How tokens are drawn from the rows of a pass; see [`crate::model::Pass`].
type Draws = (Filter, Option<PassUniforms>);

/// The sequence of an [`super::OnnxModel`] behind the trait.
pub fn own(sequence: &mut dyn Sequence) -> &mut OnnxSequence {
    let handle: &mut SequenceHandle =
        (sequence as &mut dyn Any).downcast_mut().expect("the sequence is of another model");
    handle.get_mut()
}

/// Ended sequences of a model on a GPU. New sequences reuse their buffers and captured graphs.
#[derive(Default)]
pub struct Spares(Mutex<Vec<OnnxSequence>>);

/// The most spare sequences of a model.
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

    /// Free all of them. Returns whether there were any.
    pub fn clear(&self) -> bool {
        !std::mem::take(&mut *self.0.lock()).is_empty()
    }
}

/// Owns a sequence while it is in use. Dropping it makes the sequence a spare if others may reuse it.
pub struct SequenceHandle {
    /// `None` only while dropping.
    pub sequence: Option<OnnxSequence>,
    pub spares: Arc<Spares>,
}

impl SequenceHandle {
    pub fn get(&self) -> &OnnxSequence {
        self.sequence.as_ref().expect("it is set until drop")
    }

    pub fn get_mut(&mut self) -> &mut OnnxSequence {
        self.sequence.as_mut().expect("it is set until drop")
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

/// Stops a running pass by ONNX Runtime's run options.
pub struct Terminate(pub Arc<RunOptions>);

impl CancelHook for Terminate {
    fn stop(&self) {
        // Neither call can fail, because both only set a flag.
        let _ = self.0.terminate();
    }

    fn resume(&self) {
        let _ = self.0.unterminate();
    }
}

/// A sequence of an [`super::OnnxModel`].
pub struct OnnxSequence {
    /// Declared before the buffers that it points into, so that it is dropped before them.
    pub binding: Binding,
    /// Inputs, logits and graphs on a GPU. Declared before the cache, since graphs hold addresses of its buffers.
    pub gpu: Option<GpuPasses>,
    pub cache: Cache,
    /// Whether the binding has the current buffers of the cache.
    pub bound: bool,
    /// The GPU of the session if the cache is on the host. ONNX Runtime then copies bound values when they are bound,
    /// so every pass binds all of them.
    pub copies: Option<Arc<Device>>,
    pub feeds: Vec<Feed>,
    /// Rows of logits on the host.
    pub rows: LogitRows,
    pub vocab_size: usize,
    /// Logits as the export gives them, if they cannot be written to `rows` directly. In units of four bytes.
    pub raw: Vec<u32>,
    pub export: Arc<Export>,
    /// Host memory, for tensors.
    pub memory: Arc<MemoryInfo<'static>>,
    pub options: Arc<RunOptions>,
    pub cancel: Arc<Cancel>,
    /// All tokens seen, if the export has no cache.
    pub tokens: Vec<i32>,
    /// Time spent in passes.
    pub elapsed: Duration,
    /// Whether `elapsed` holds time of a pass that failed or was given up.
    pub has_lost_time: bool,
    /// The most bytes that logits took.
    pub peak_logits: usize,
    /// The spares of its model, which are freed if memory runs out.
    pub spares: Weak<Spares>,
    /// Keeps the session alive. Declared after the binding, so that it is dropped after it.
    pub _loaded: Arc<LoadedSession>,
    /// Whether no pass has failed. Otherwise, other sequences may not reuse the buffers.
    pub sound: bool,
    /// A pass that was launched and has not been waited for.
    pub begun: Option<LaunchedPass>,
}

/// The shape of one pass.
#[derive(Clone, Copy)]
pub struct PassPlan {
    /// The number of tokens.
    pub width: usize,
    /// Rows at the front that nobody will read.
    pub unwanted: usize,
    /// Further tokens at the end. Nobody reads their rows, and their entries are rolled back.
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

/// A pass that was put on a GPU's stream.
pub struct LaunchedPass {
    pub cut: PassPlan,
    /// Where its rows go, or why it was not launched.
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

    /// The rows on the GPU, if they include that of `position`.
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

    /// Make it a new, empty sequence. Its buffers and graphs stay, and the cache is zeroed, since it holds another
    /// text.
    pub fn restart(&mut self, options: Arc<RunOptions>, cancel: &Arc<Cancel>, vocab_size: usize) -> Result<()> {
        self.truncate(0);
        self.cache.clear()?;
        if let Some(rows) = self.gpu.as_mut().and_then(|gpu| gpu.rows.as_mut()) {
            rows.clear(vocab_size);
        }
        self.rows.clear();
        (self.options, self.cancel, self.vocab_size) = (options, cancel.clone(), vocab_size);
        (self.elapsed, self.has_lost_time, self.peak_logits) = (Duration::ZERO, false, 0);
        Ok(())
    }

    /// Append tokens in as many passes as they need. An error leaves the sequence as it was.
    pub fn run(&mut self, tokens: &[i32], keep: usize, draws: Draws) -> Result<Report, Interrupt> {
        let start = self.len();
        self.prepare(draws);
        let mut left = tokens;
        while !left.is_empty() {
            let begun = self.begun.as_ref().map(|begun| begun.cut);
            let cut = begun.unwrap_or_else(|| self.next_pass(left.len(), keep));
            let (now, later) = left.split_at(cut.width);
            if let Err(interrupt) = self.pass(now, cut, keep) {
                self.truncate(start);
                self.has_lost_time = true;
                return Err(interrupt);
            }
            left = later;
        }
        // Only a prompt has so many rows that nobody reads.
        if keep > start + KEPT_ROWS {
            self.trim(keep.min(self.len()));
        }
        let has_lost_time = std::mem::take(&mut self.has_lost_time);
        let is_usual = !has_lost_time && self.gpu.as_ref().is_none_or(|gpu| gpu.is_usual);
        Ok(Report { elapsed: std::mem::take(&mut self.elapsed), is_usual })
    }

    /// Have the GPU prepare rows for this.
    fn prepare(&mut self, (filter, uniforms): Draws) {
        if let Some(rows) = self.gpu.as_mut().and_then(|gpu| gpu.rows.as_mut()) {
            rows.prepare(filter, uniforms);
        }
    }

    /// Launch the first pass of [`OnnxSequence::run`] with the same arguments, and return. `false` if that is not
    /// possible.
    pub fn begin(&mut self, tokens: &[i32], keep: usize, draws: Draws) -> bool {
        if self.gpu.is_none() || self.cancel.is_requested() {
            return false;
        }
        self.prepare(draws);
        let cut = self.next_pass(tokens.len(), keep);
        self.begin_on_gpu(&tokens[..cut.width], cut, keep);
        true
    }

    /// Wait for a launched pass, and discard it.
    pub fn abandon(&mut self) {
        if let Some(begun) = self.begun.take() {
            // A pass that failed to launch has been waited for already. Others may not reuse the buffers.
            self.sound &= begun.output.is_ok() && self.gpu.as_ref().is_none_or(|gpu| gpu.wait().is_ok());
            self.cache.finish_pass(false);
            self.has_lost_time = true;
        }
    }

    /// The shape of the first pass over so many tokens.
    pub fn next_pass(&self, tokens: usize, keep: usize) -> PassPlan {
        // Rows before `keep` are not wanted. The token at index i gives the row of position i + 1.
        let unwanted = keep.saturating_sub(self.len() + 1).min(tokens - 1);
        let (width, unwanted) = match self.export.logits.rows {
            // Without a cache, every pass runs the whole text, so tokens before the wanted row may share its pass.
            _ if self.export.scoring == Scoring::OneByOne && self.export.cache_kind == CacheKind::None => {
                (unwanted + 1, unwanted)
            }
            _ if self.export.scoring == Scoring::OneByOne => (1, 0),
            _ if self.export.scoring == Scoring::FirstPass && self.len() > 0 => (1, 0),
            GivenRows::Last => (unwanted + 1, unwanted),
            // All rows are given anyway. On the host, they are written where they are read, so all may be wanted.
            GivenRows::All if self.export.cache_kind != CacheKind::None && self.gpu.is_none() => (tokens, 0),
            GivenRows::All | GivenRows::Counted => (tokens, unwanted),
        };
        let width = width.min(self.widest(width));
        PassPlan { width, unwanted: unwanted.min(width - 1), padding: self.padding(width) }
    }

    /// The padding of a pass over `width` tokens.
    pub fn padding(&self, width: usize) -> usize {
        let can = self.export.cache_kind == CacheKind::Shared
            && self.export.scoring == Scoring::Parallel
            && self.export.logits.rows != GivenRows::Last;
        let padding = self.gpu.as_ref().filter(|_| can).map_or(0, |gpu| gpu.padding(width));
        let (total, end) = (width + padding, self.len() + width);
        let fits = end + padding <= self.cache.room(end) && total <= self.widest(total);
        if fits { padding } else { 0 }
    }

    /// The width up to which a pass takes an acceptable amount of memory for attention scores. Without a cache, every
    /// pass runs the whole text, so `width` is not limited.
    pub fn widest(&self, width: usize) -> usize {
        match self.export.cache_kind {
            CacheKind::None => width,
            _ => widest(self.export.heads, self.cache.capacity().max(self.len() + width)),
        }
    }
}

/// The widest pass whose scores fit in [`SCORES_BYTES`].
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
