//! Runs exports with ONNX Runtime: one session for each model, one binding for each sequence.
//!
//! Sessions are built with `ort`; passes call the C API beneath it. `ort` takes `&mut` for a run, which would make the
//! sequences of one engine wait for each other, and it allocates tensors and names for each binding; ONNX Runtime
//! itself allows concurrent runs, and binds tensors over our own buffers without a copy.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use half::{bf16, f16};
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::RunOptions;
use ort::value::TensorElementType;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::binding::{Binding, Tensor};
use super::cache::{Cache, Store};
use super::captures::{Captures, Gpu, Output};
use super::inputs::{Feed, Numbers};
use super::weights::{self, Loaded, Shapes};
use super::{check, huge_pages};
use crate::cuda::{self, Device};
use crate::error::{Error, Result};
use crate::export::graph::Graph;
use crate::export::recognise::read_export;
use crate::export::{self, CacheKind, CacheTensor, Export, Logits, Role, Rows, Scoring, beside, shapes};
use crate::model::{Cancel, CancelHook, Interrupt, Memory, Model, Pass, Report, Sequence};
use crate::rows::device::{self, Control, Ring};
use crate::rows::widen::{widen_bf16, widen_f16};
use crate::rows::{DeviceRows, Filter, Row};

/// Logits of one pass take at most this many bytes, unless a pass of [`MIN_PASS`] tokens takes more.
const LOGITS_BYTES: usize = 64 << 20;
const MIN_PASS: usize = 16;
/// Twice as many are a tenth faster (measured on two cores), and what ONNX Runtime takes for a pass, and keeps, grows with them.
const MAX_PASS: usize = 256;

/// Scores of attention take at most this many bytes in a layer, unless a pass of [`MIN_PASS`] tokens takes more: one for
/// each head, position and entry of the cache.
const SCORES_BYTES: usize = 64 << 20;

/// Rows of logits that a sequence keeps room for behind a prompt that took more than twice as many.
const KEPT_ROWS: usize = 40;

/// Timing passes at loading takes at most this, or a tenth of what loading took before.
const TIMING: Duration = Duration::from_millis(100);

/// Where a model runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Which one.
        device_id: i32,
        /// Options of ONNX Runtime's provider, by its names.
        options: BTreeMap<String, String>,
    },
}

/// How to load a model, beyond where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where it runs.
    pub provider: Provider,
    /// How positions are scored; `None` is settled by what the export can do.
    pub scoring: Option<Scoring>,
    /// Most tokens of a sequence, in place of what the export says.
    pub context_length: Option<usize>,
    /// Where the rows of logits of a model on a GPU stay; `None` is settled by their length.
    pub rows: Option<RowsOn>,
}

/// Where rows of logits are read, and proposals verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowsOn {
    /// On the host, where they are copied to.
    Host,
    /// On the GPU, of which a few numbers are asked.
    Gpu,
}

/// Columns from which on rows stay on the GPU: shorter ones are copied and read in less time than it takes to ask the GPU.
const LONG_ROW: usize = 1 << 15;

/// A language model that ONNX Runtime runs.
pub struct OnnxModel {
    name: String,
    loaded: Arc<Loaded>,
    pub(super) export: Arc<Export>,
    provider: Provider,
    memory: Arc<MemoryInfo<'static>>,
    /// Tokens that count; further columns of the logits are padding.
    vocab_size: usize,
    /// By how much logits of a pass of several tokens differ from those of single ones, as seen when it was loaded.
    pub(super) deviation: f32,
    /// What was tried of it, and what came out.
    pub(super) trials: Vec<Value>,
    pass_times: Vec<(usize, Duration)>,
    /// The GPU where its cache and logits are, if they are on one.
    device: Option<Arc<Device>>,
    /// What became of captures on a GPU.
    pub(super) captures: Arc<Captures>,
    rows: Option<RowsOn>,
    pub(super) spares: Arc<Spares>,
}

impl OnnxModel {
    /// Load an export: an `.onnx` file, or a folder that holds one. [`super::environment`] must have been made. Weights that
    /// another model of the process has loaded from the same file, and still uses, are shared with it.
    ///
    /// A few passes over made-up tokens show what inputs and outputs cannot tell: see [`check`].
    pub fn load(path: &Path, name: &str, settings: &Settings) -> Result<Self> {
        let file = beside::model_file(path)?;
        let graph = Graph::read(&file)?;
        beside::check_weights(&file, &graph)?;
        let load = |shapes| Self::load_with(&file, &graph, shapes, name, settings);
        match load(Shapes::Declared) {
            Err(error) if shapes::are_blamed(&error.to_string()) => {
                let mut model = load(Shapes::Inferred)?;
                let warning =
                    "the shapes that the file declares for inner values are wrong, so it was loaded without them";
                model.export_mut().warnings.push(warning.into());
                Ok(model)
            }
            result => result,
        }
    }

    fn load_with(file: &Path, graph: &Graph, shapes: Shapes, name: &str, settings: &Settings) -> Result<Self> {
        let started = Instant::now();
        let refuse = |error: &dyn std::fmt::Display| Error::Model(format!("cannot load {}: {error}", file.display()));
        let loaded = weights::load(file, graph, &settings.provider, shapes)
            .map_err(|error| beside::explain(file, graph, error))?;
        let mut export = read_export(file, graph, loaded.session.inputs(), loaded.session.outputs())?;
        if let Some(length) = settings.context_length {
            export.limit_context(length)?;
        }
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .map_err(|error| refuse(&error))?;
        let captures = Arc::new(Captures::default());
        if let Provider::Cuda { .. } = settings.provider
            && let Some(why) = loaded.no_graphs.as_deref().or(export.no_graphs())
        {
            captures.refuse(why.into());
        }
        // What takes a cache in place takes it where it runs; all else copies it anyway.
        let writer = |tensor: &CacheTensor| graph.origin(tensor.present.to_str().ok()?);
        let mut writers = export.cache.iter().filter_map(writer);
        let stays = export.is_in_place() && writers.any(|node| loaded.on_processor.contains(&node.operator));
        let is_there = loaded.is_whole || (export.cache_kind != CacheKind::None && !stays);
        let mut model = OnnxModel {
            name: name.into(),
            device: loaded.device.clone().filter(|_| is_there),
            captures,
            loaded,
            export: Arc::new(export),
            provider: settings.provider.clone(),
            memory: Arc::new(memory),
            vocab_size: 0,
            deviation: 0.0,
            trials: Vec::new(),
            pass_times: Vec::new(),
            rows: settings.rows,
            spares: Arc::default(),
        };
        model.try_out()?;
        model.vocab_size = model.export.logits.columns;
        model.settle_scoring(settings.scoring)?;
        let limit = TIMING.max(started.elapsed() / 10);
        model.pass_times = check::pass_times(&model, limit).map_err(|interrupt| model.failed_trial(interrupt))?;
        Ok(model)
    }

    /// What was recognised.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// By how much logits of a pass of several tokens differ from those of single ones, as seen when it was loaded.
    pub fn deviation(&self) -> f32 {
        self.deviation
    }

    /// Let only the first tokens count; the columns behind them are padding, or tokens that other models do not have.
    pub fn limit_vocabulary(&mut self, tokens: usize) {
        self.vocab_size = self.vocab_size.min(tokens);
    }

    /// Whether passes on a GPU are captured.
    pub(super) fn captures(&self) -> bool {
        self.device.is_some() && self.captures.refused().is_none()
    }

    /// Where its rows stay.
    fn rows_on(&self) -> RowsOn {
        let long = if self.export.logits.columns >= LONG_ROW { RowsOn::Gpu } else { RowsOn::Host };
        match &self.device {
            Some(device) if device.no_kernels().is_none() => self.rows.unwrap_or(long),
            _ => RowsOn::Host,
        }
    }

    pub(super) fn export_mut(&mut self) -> &mut Export {
        self.spares.clear(); // they are of the export as it was
        Arc::make_mut(&mut self.export)
    }

    /// Let ONNX Runtime say how many rows and columns of logits a pass gives: graphs need not.
    fn try_out(&mut self) -> Result<()> {
        let width = if self.export.single_tokens() { 1 } else { 2 };
        let mut sequence = self.sequence(&Arc::new(Cancel::default()))?;
        let shape = sequence.get_mut().try_out(&[0, 0][..width]).map_err(|error| self.cannot_run(&error))?;
        self.export_mut().see_logits(&shape, width)
    }

    pub(super) fn failed_trial(&self, interrupt: Interrupt) -> Error {
        match interrupt {
            Interrupt::Failed(error) => self.cannot_run(&error),
            Interrupt::Cancelled => Error::Internal("nobody could cancel this".into()),
        }
    }

    fn cannot_run(&self, error: &dyn std::fmt::Display) -> Error {
        let error = error.to_string();
        let mend = mend(&error).map_or(String::new(), |mend| format!("; {mend}"));
        Error::Model(format!("cannot run {}: {error}{mend}", self.export.file.display()))
    }

    /// An empty sequence: one that was given back, or a new one.
    fn sequence(&self, cancel: &Arc<Cancel>) -> Result<Lent> {
        let failed = |error: ort::Error| Error::Runtime(error.to_string());
        let mut options = RunOptions::new().map_err(failed)?;
        if self.loaded.is_whole {
            Gpu::set_options(&mut options).map_err(failed)?;
        }
        let options = Arc::new(options);
        cancel.add_hook(Box::new(Terminate(options.clone())));
        let lend = |sequence| Lent { sequence: Some(sequence), spares: self.spares.clone() };
        if let Some(mut sequence) = self.spares.take() {
            sequence.restart(options, cancel, self.vocab_size)?;
            return Ok(lend(sequence));
        }
        let gpu = match &self.device {
            None => None,
            Some(device) => {
                let rows = if self.rows_on() == RowsOn::Gpu {
                    let Logits { columns, element, .. } = self.export.logits;
                    Ring::new(device, columns, element).map_err(failed)?
                } else {
                    None
                };
                Some(Gpu::new(device, &self.captures, self.loaded.plans_widths, rows).map_err(failed)?)
            }
        };
        let feeds = self.export.inputs.iter().map(Feed::new);
        Ok(lend(OnnxSequence {
            binding: Binding::new(&self.loaded.session)?,
            cache: Cache::new(&self.export, self.device.as_ref())?,
            gpu,
            bound: false,
            copies: self.loaded.device.clone().filter(|_| self.device.is_none()),
            feeds: feeds.collect(),
            rows: LogitRows::new(self.export.logits.columns),
            vocab_size: self.vocab_size,
            raw: Vec::new(),
            export: self.export.clone(),
            memory: self.memory.clone(),
            options,
            cancel: cancel.clone(),
            tokens: Vec::new(),
            elapsed: Duration::ZERO,
            peak_logits: 0,
            spares: Arc::downgrade(&self.spares),
            _loaded: self.loaded.clone(),
            sound: true,
            begun: None,
        }))
    }
}

impl Drop for OnnxModel {
    fn drop(&mut self) {
        self.spares.clear(); // so that the session goes with what was loaded
    }
}

impl Model for OnnxModel {
    fn name(&self) -> &str {
        &self.name
    }

    fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    fn context_length(&self) -> usize {
        self.export.context_length
    }

    fn max_pass(&self) -> usize {
        match self.export.logits.rows {
            Rows::All => (LOGITS_BYTES / (4 * self.export.logits.columns)).clamp(MIN_PASS, MAX_PASS),
            // no more rows than are wanted, which are few
            Rows::Counted | Rows::Last => MAX_PASS,
        }
    }

    fn cost(&self) -> u64 {
        self.export.bytes
    }

    fn describe(&self) -> Value {
        let (provider, device_id) = match &self.provider {
            Provider::Cpu => ("cpu", 0),
            Provider::Cuda { device_id, .. } => ("cuda", *device_id),
        };
        let mut description = self.export.describe();
        let own = json!({
            "name": self.name,
            "kind": "onnx",
            "vocab_size": self.vocab_size,
            "provider": provider,
            "device_id": device_id,
            "graphs": self.captures(),
            "no_graphs": self.captures.refused(),
            "sdpa_kernel": self.loaded.attention,
            "cache_on": if self.device.is_some() { "gpu" } else { "host" },
            "no_gpu_rows": self.device.as_ref().and_then(|device| device.no_kernels()),
            "rows_on": if self.rows_on() == RowsOn::Gpu { "gpu" } else { "host" },
            "deviation": self.deviation,
            "trials": self.trials,
        });
        if let (Value::Object(description), Value::Object(own)) = (&mut description, own) {
            description.extend(own);
        }
        description
    }

    fn pass_times(&self) -> &[(usize, Duration)] {
        &self.pass_times
    }

    fn captured(&self) -> Option<(u64, Option<&str>)> {
        let on_gpu = self.provider != Provider::Cpu;
        on_gpu.then(|| (self.captures.made(), self.captures.refused()))
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        Ok(Box::new(self.sequence(cancel)?))
    }

    fn overlaps(&self) -> bool {
        self.loaded.is_whole
    }

    fn launch(&self, pass: &mut Pass<'_>) -> bool {
        self.overlaps() && own(pass.sequence).begin(pass.tokens, pass.keep, pass.filter)
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        // GroupQueryAttention takes several positions on top of a cache for a batch of one only, so this loops. A pass
        // changes nothing that counts until it has succeeded, so undoing earlier ones is shortening them again.
        let mut report = Report { elapsed: Duration::ZERO, is_usual: true };
        for index in 0..batch.len() {
            let pass = &mut batch[index];
            match own(pass.sequence).run(pass.tokens, pass.keep, pass.filter) {
                Ok(Report { elapsed, is_usual }) => {
                    report.elapsed += elapsed;
                    report.is_usual &= is_usual;
                }
                Err(interrupt) => {
                    for done in &mut batch[..index] {
                        let len = done.sequence.len() - done.tokens.len();
                        done.sequence.truncate(len);
                    }
                    return Err(interrupt);
                }
            }
        }
        Ok(report)
    }
}

/// What helps against a known failure of ONNX Runtime.
fn mend(error: &str) -> Option<&'static str> {
    // Its XQA kernels are told once for a process how much shared memory they have, and then only the first GPU that ran them
    // knows. No option of the provider turns them off.
    (error.contains("GroupQueryAttention") && error.contains("cudaErrorInvalidValue")).then_some(
        "ONNX Runtime's XQA kernels for attention run on one GPU of a process only, and on none that is newer than it knows; set \
         ORT_ENABLE_XQA=0 in the environment before the process starts, and it takes others",
    )
}

fn own(sequence: &mut dyn Sequence) -> &mut OnnxSequence {
    let lent: &mut Lent = (sequence as &mut dyn Any).downcast_mut().expect("a sequence of another model");
    lent.get_mut()
}

/// Sequences on a GPU that ended, so that the next one has their buffers, and with them the graphs of passes that were captured.
#[derive(Default)]
pub(super) struct Spares(Mutex<Vec<OnnxSequence>>);

/// Sequences that a model keeps at most.
const MOST_SPARES: usize = 4;

impl Spares {
    fn take(&self) -> Option<OnnxSequence> {
        self.0.lock().pop()
    }

    fn give(&self, sequence: OnnxSequence) {
        let mut spares = self.0.lock();
        if spares.len() < MOST_SPARES {
            spares.push(sequence);
        }
    }

    /// Free what they hold. Returns whether there were any.
    pub(super) fn clear(&self) -> bool {
        !std::mem::take(&mut *self.0.lock()).is_empty()
    }
}

/// A sequence until it ends.
struct Lent {
    /// Always there, but for `drop`.
    sequence: Option<OnnxSequence>,
    spares: Arc<Spares>,
}

impl Lent {
    fn get(&self) -> &OnnxSequence {
        self.sequence.as_ref().expect("it has not ended")
    }

    fn get_mut(&mut self) -> &mut OnnxSequence {
        self.sequence.as_mut().expect("it has not ended")
    }
}

impl Drop for Lent {
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
struct Terminate(Arc<RunOptions>);

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
struct OnnxSequence {
    /// Declared before the buffers, so that it is dropped before them: it points into them.
    binding: Binding,
    /// What it has on a GPU; likewise before the buffers of the cache.
    gpu: Option<Gpu>,
    cache: Cache,
    /// Whether the binding has the cache's buffers.
    bound: bool,
    /// The GPU that ONNX Runtime copies to what is bound, where the cache is on the host: then all is bound anew for each pass.
    copies: Option<Arc<Device>>,
    feeds: Vec<Feed>,
    rows: LogitRows,
    vocab_size: usize,
    /// Logits as the export gives them, where they cannot be written to `rows` at once. In units of four bytes.
    raw: Vec<u32>,
    export: Arc<Export>,
    memory: Arc<MemoryInfo<'static>>,
    options: Arc<RunOptions>,
    cancel: Arc<Cancel>,
    /// What was seen, for an export without a cache.
    tokens: Vec<i32>,
    elapsed: Duration,
    /// The most bytes that `rows` and `raw` had.
    peak_logits: usize,
    spares: Weak<Spares>,
    /// Behind the binding, so that the session ends where it was made.
    _loaded: Arc<Loaded>,
    /// Whether no pass has failed, so that another sequence may have its buffers.
    sound: bool,
    /// A pass that was begun, or why it was not.
    begun: Option<Begun>,
}

/// How tokens are run in one pass.
#[derive(Clone, Copy)]
struct Cut {
    /// How many there are.
    width: usize,
    /// How many of their rows, from the front, need not be made.
    unwanted: usize,
    /// How many more tokens the pass takes behind them, whose rows nobody sees and whose entries are taken back.
    padding: usize,
}

impl Cut {
    fn wanted(self) -> usize {
        self.width - self.unwanted
    }

    fn total(self) -> usize {
        self.width + self.padding
    }
}

/// A pass on a GPU until it is over.
struct Begun {
    cut: Cut,
    /// Where its rows go, or what went wrong.
    output: ort::Result<Output>,
}

impl Sequence for Lent {
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
    fn len(&self) -> usize {
        self.cache.len()
    }

    fn truncate(&mut self, len: usize) {
        self.abandon();
        self.cache.truncate(len);
        self.tokens.truncate(len);
    }

    /// The rows on the GPU, if that of a position is among them.
    fn on_gpu(&self, position: usize) -> Option<&Ring> {
        self.gpu.as_ref().and_then(|gpu| gpu.rows.as_ref()).filter(|rows| rows.holds(position))
    }

    /// The row of a position, padding included.
    fn whole_row(&self, position: usize) -> ort::Result<&[f32]> {
        match self.on_gpu(position) {
            Some(rows) => rows.row(position),
            None => Ok(self.rows.row(position)),
        }
    }

    /// Begin anew, as if nothing had been: what another session's text left in the cache goes.
    fn restart(&mut self, options: Arc<RunOptions>, cancel: &Arc<Cancel>, vocab_size: usize) -> Result<()> {
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

    fn run(&mut self, tokens: &[i32], keep: usize, filter: Filter) -> Result<Report, Interrupt> {
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
    fn begin(&mut self, tokens: &[i32], keep: usize, filter: Filter) -> bool {
        if self.gpu.is_none() || self.cancel.is_requested() {
            return false;
        }
        self.set_filter(filter);
        let cut = self.next_pass(tokens.len(), keep);
        self.begin_on_gpu(&tokens[..cut.width], cut, keep);
        true
    }

    /// Wait for a pass that was begun and that nobody wants any more.
    fn abandon(&mut self) {
        if let Some(begun) = self.begun.take() {
            // One that went wrong was drained, and leaves nothing to others.
            self.sound &= begun.output.is_ok() && self.gpu.as_ref().is_none_or(|gpu| gpu.wait().is_ok());
            self.cache.settle(false);
            self.elapsed = Duration::ZERO;
        }
    }

    /// How the first of so many tokens are run in one pass.
    fn next_pass(&self, tokens: usize, keep: usize) -> Cut {
        // Rows before `keep` are not wanted; after token i comes the row of position i + 1.
        let unwanted = keep.saturating_sub(self.len() + 1).min(tokens - 1);
        let (width, unwanted) = match self.export.logits.rows {
            // without a cache a row is scored with all before it, whatever came in earlier passes
            _ if self.export.scoring == Scoring::OneByOne && self.export.cache_kind == CacheKind::None => {
                (unwanted + 1, unwanted)
            }
            _ if self.export.scoring == Scoring::OneByOne => (1, 0),
            _ if self.export.scoring == Scoring::FirstPass && self.len() > 0 => (1, 0),
            Rows::Last => (unwanted + 1, unwanted),
            // all come anyway, and go to where they are read without a copy, unless that is somewhere else
            Rows::All if self.export.cache_kind != CacheKind::None && self.gpu.is_none() => (tokens, 0),
            Rows::All | Rows::Counted => (tokens, unwanted),
        };
        let width = width.min(self.widest(width));
        Cut { width, unwanted: unwanted.min(width - 1), padding: self.padding(width) }
    }

    /// How many tokens a pass over so many takes more.
    fn padding(&self, width: usize) -> usize {
        let can = self.export.cache_kind == CacheKind::Shared
            && self.export.scoring == Scoring::Parallel
            && self.export.logits.rows != Rows::Last;
        let padding = self.gpu.as_ref().filter(|_| can).map_or(0, |gpu| gpu.padding(width));
        let (total, end) = (width + padding, self.len() + width);
        let fits = end + padding <= self.cache.room(end) && total <= self.widest(total);
        if fits { padding } else { 0 }
    }

    /// The widest pass, up to `width`, whose attention takes a bearable amount of memory. Without a cache that is a matter
    /// of the text, not of the pass.
    fn widest(&self, width: usize) -> usize {
        match self.export.cache_kind {
            CacheKind::None => width,
            _ => widest(self.export.heads, self.cache.capacity().max(self.len() + width)),
        }
    }

    /// One pass.
    fn pass(&mut self, tokens: &[i32], cut: Cut, keep: usize) -> Result<(), Interrupt> {
        if self.cancel.is_requested() {
            self.abandon();
            return Err(Interrupt::Cancelled);
        }
        let result = match self.gpu {
            None => self.run_on_host(tokens, cut, keep),
            Some(_) => {
                if self.begun.is_none() {
                    self.begin_on_gpu(tokens, cut, keep);
                }
                self.finish_on_gpu(keep)
            }
        };
        let end = self.len() + cut.width;
        self.cache.settle(result.is_ok());
        self.cache.truncate(end); // without the padding
        match result {
            Ok(()) => Ok(()),
            Err(error) => {
                self.sound = false;
                if self.cancel.is_requested() {
                    return Err(Interrupt::Cancelled);
                }
                Err(Error::Runtime(format!("{}: {error}", self.export.file.display())).into())
            }
        }
    }

    /// Run a pass without knowing the shape of the logits, and return it.
    fn try_out(&mut self, tokens: &[i32]) -> ort::Result<Vec<i64>> {
        let cut = Cut { width: tokens.len(), unwanted: 0, padding: 0 };
        self.fill_inputs(tokens, cut, &Control::zeroed())?;
        self.bind_inputs()?;
        self.binding.output_anywhere(&self.export.logits.name, &self.memory)?;
        let OnnxSequence { gpu, binding, options, .. } = self;
        match gpu {
            None => self.run_bound()?,
            Some(gpu) => {
                let queue = gpu.queue()?;
                let _running = cuda::running();
                let result = gpu.copy_in(&queue).and_then(|()| queue.by_runner(|_| binding.run(options)));
                queue.drain();
                result?;
            }
        }
        self.binding.last_output_shape()
    }

    fn run_on_host(&mut self, tokens: &[i32], cut: Cut, keep: usize) -> ort::Result<()> {
        self.bind(tokens, cut, keep)?;
        let started = Instant::now();
        let result = self.run_bound();
        self.elapsed += started.elapsed();
        result?;
        self.read_raw(cut);
        Ok(())
    }

    /// Run a pass whose inputs and outputs are on the host.
    fn run_bound(&mut self) -> ort::Result<()> {
        let OnnxSequence { copies, binding, options, .. } = self;
        let Some(device) = copies else { return binding.run(options) };
        let queue = device.queue()?;
        let _running = cuda::running();
        queue.by_runner(|_| binding.run(options))
    }

    /// Put a pass on the GPU's stream, with copies before and behind, and by a graph if one was captured of this width.
    fn begin_on_gpu(&mut self, tokens: &[i32], cut: Cut, keep: usize) {
        let output = self.queue_tokens(tokens, cut, keep);
        self.begun = Some(Begun { cut, output });
    }

    fn queue_tokens(&mut self, tokens: &[i32], cut: Cut, keep: usize) -> ort::Result<Output> {
        let (wanted, all) = (cut.wanted(), self.rows_given(cut));
        let start = self.cache.len();
        let position = start + 1 + cut.unwanted;
        let end = position + wanted;
        let given = all - cut.padding;
        let keep = keep.min(position);
        let kept = self.gpu.as_ref().and_then(|gpu| gpu.rows.as_ref()).filter(|_| end - keep <= device::SLOTS);
        let (control, output) = match kept {
            Some(rows) => {
                let control = rows.control(start, tokens, end - given, given - wanted, self.vocab_size);
                (control, Output::Device(given))
            }
            None => {
                self.join_rows(position, keep)?;
                (Control::zeroed(), Output::Host(given - wanted, given))
            }
        };
        self.fill_inputs(tokens, cut, &control)?;
        let Logits { element, columns, .. } = self.export.logits;
        let row = columns * export::element_bytes(element).unwrap_or(4);
        let output = match output {
            Output::Host(from, to) => {
                self.rows.reserve(position, wanted, keep)?;
                Output::Host(from * row, to * row)
            }
            kept => kept,
        };
        let gpu = self.gpu.as_mut().expect("it is on a GPU");
        gpu.make_room(all * row, cut.total())?;
        self.peak_logits = self.peak_logits.max(self.logits_bytes());
        let started = Instant::now();
        let result = self.queue_pass(cut.total(), all, output);
        self.elapsed += started.elapsed();
        result.map(|()| output)
    }

    /// Wait for the pass that was begun, and have its rows where they are read.
    fn finish_on_gpu(&mut self, keep: usize) -> ort::Result<()> {
        let Some(Begun { cut, output }) = self.begun.take() else { return Ok(()) };
        let output = output?;
        let started = Instant::now();
        let waited = self.gpu.as_ref().map_or(Ok(()), Gpu::wait);
        self.elapsed += started.elapsed();
        waited?;
        let (position, end) = (self.cache.len() + 1 + cut.unwanted, self.cache.len() + 1 + cut.width);
        match (output, self.gpu.as_mut().and_then(|gpu| gpu.rows.as_mut())) {
            (Output::Device(_), Some(rows)) => rows.keep(position..end, keep),
            (_, rows) => {
                if let Some(rows) = rows {
                    rows.lose(position..end);
                }
                self.read_raw(cut);
            }
        }
        Ok(())
    }

    /// Have the rows from `keep` on that come before `position` on the host, beside each other: some are if the last pass left them there.
    fn join_rows(&mut self, position: usize, keep: usize) -> ort::Result<()> {
        if self.rows.next() == position || self.gpu.as_ref().is_none_or(|gpu| gpu.rows.is_none()) {
            return Ok(());
        }
        let kept = (keep..position).map(|position| Ok(self.whole_row(position)?.to_vec()));
        let kept = kept.collect::<ort::Result<Vec<Vec<f32>>>>()?;
        self.rows.set(keep, &kept);
        Ok(())
    }

    fn queue_pass(&mut self, width: usize, given: usize, output: Output) -> ort::Result<()> {
        let use_graph = self.gpu.as_ref().is_some_and(|gpu| gpu.has_graph(width, output));
        if !use_graph {
            self.bind_inputs()?;
            let Logits { name, element, rank, columns, .. } = &self.export.logits;
            let bytes = given * columns * export::element_bytes(*element).unwrap_or(4);
            let shape = [1, given as i64, *columns as i64];
            let shape = if *rank == 2 { &[1, *columns as i64][..] } else { &shape };
            let gpu = self.gpu.as_mut().expect("it is on a GPU");
            let value = gpu.logits_tensor(width, bytes, *element, shape)?;
            self.binding.output(name, &value)?;
        }
        let OnnxSequence { gpu, binding, options, .. } = self;
        gpu.as_mut().expect("it is on a GPU").launch(width, output, || binding.run(options))
    }

    /// Point the inputs and outputs at what this pass reads and writes.
    fn bind(&mut self, tokens: &[i32], cut: Cut, keep: usize) -> ort::Result<()> {
        let position = self.cache.len() + 1 + cut.unwanted;
        let wanted = cut.wanted();
        self.fill_inputs(tokens, cut, &Control::zeroed())?;
        self.bind_inputs()?;
        let given = self.rows_given(cut);
        let Logits { name, element, rank, columns, .. } = &self.export.logits;
        let shape = [1, given as i64, *columns as i64];
        let shape = if *rank == 2 { &[1, *columns as i64][..] } else { &shape };
        let rows = self.rows.reserve(position, wanted, keep)?;
        let value = if given == wanted && *element == TensorElementType::Float32 {
            Tensor::over(&self.memory, rows, *element, shape)?
        } else {
            let bytes = given * columns * export::element_bytes(*element).unwrap_or(4);
            lengthen(&mut self.raw, bytes.div_ceil(4), 0)?;
            Tensor::over(&self.memory, &mut self.raw, *element, shape)?
        };
        self.peak_logits = self.peak_logits.max(self.logits_bytes());
        self.binding.output(name, &value)
    }

    fn logits_bytes(&self) -> usize {
        4 * (self.rows.rows.capacity() + self.raw.capacity()) + self.gpu.as_ref().map_or(0, Gpu::bytes)
    }

    /// Give back what the logits of a long prompt took. Without a cache, the next pass would need it again.
    fn trim(&mut self, keep: usize) {
        self.rows.trim(keep);
        if let Some(gpu) = &mut self.gpu {
            gpu.trim();
        }
        let most = KEPT_ROWS * self.rows.columns;
        if self.raw.len() > 2 * most && self.export.cache_kind != CacheKind::None {
            self.raw.truncate(most);
            self.raw.shrink_to_fit();
        }
    }

    /// How many rows a pass gives, those of padding behind the others.
    fn rows_given(&self, cut: Cut) -> usize {
        match (self.export.logits.rows, self.export.cache_kind) {
            (Rows::Last, _) => 1,
            (Rows::Counted, _) => cut.wanted() + cut.padding,
            (Rows::All, CacheKind::None) => self.tokens.len(),
            (Rows::All, _) => cut.total(),
        }
    }

    /// Bring the rows of a pass to where they are read.
    fn read_raw(&mut self, cut: Cut) {
        let wanted = cut.wanted();
        let given = self.rows_given(cut) - cut.padding;
        let Logits { element, columns, .. } = self.export.logits;
        if given == wanted && element == TensorElementType::Float32 && self.gpu.is_none() {
            return;
        }
        let rows = self.rows.last(wanted);
        let (skipped, size) = ((given - wanted) * columns, rows.len());
        let raw = match &self.gpu {
            None => self.raw.as_ptr().cast::<u8>(),
            Some(gpu) => gpu.logits(cut.total()).as_ptr(),
        };
        // SAFETY: the buffer has room for `given` rows of this type, all of whose bit patterns are values; four bytes
        // are aligned for each of them.
        unsafe {
            match element {
                TensorElementType::Float16 => {
                    widen_f16(std::slice::from_raw_parts(raw.cast::<f16>().add(skipped), size), rows);
                }
                TensorElementType::Bfloat16 => {
                    widen_bf16(std::slice::from_raw_parts(raw.cast::<bf16>().add(skipped), size), rows);
                }
                _ => rows.copy_from_slice(std::slice::from_raw_parts(raw.cast::<f32>().add(skipped), size)),
            }
        }
    }

    /// Make room in the cache for a pass, and make its inputs.
    fn fill_inputs(&mut self, tokens: &[i32], cut: Cut, control: &Control) -> ort::Result<()> {
        let mut prepared = self.cache.prepare(cut.total());
        if prepared.is_err() && self.spares.upgrade().is_some_and(|spares| spares.clear()) {
            prepared = self.cache.prepare(cut.total()); // with the memory that nobody used
        }
        let moved = prepared.map_err(|error| match error {
            Error::Runtime(what) => ort::Error::new(what),
            other => ort::Error::new(other.to_string()),
        })?;
        // What failed to be bound is bound by the next pass, which must not find an old address.
        self.bound &= !moved;
        let (entries, len, capacity) = (self.cache.entries(), self.cache.len(), self.cache.capacity());
        // Without a cache every pass is one over the whole sequence.
        let (first, place, width) = match self.export.cache_kind {
            CacheKind::None => {
                self.tokens.extend_from_slice(tokens);
                (0, 0, self.tokens.len())
            }
            _ => (len as i64, entries as i64, cut.total()),
        };
        let tokens = if self.export.cache_kind == CacheKind::None { &self.tokens } else { tokens };
        let (width, total) = (width as i64, place + width as i64);
        // A graph has one length of the mask for all passes over the same cache.
        let whole = self.gpu.as_mut().is_some_and(Gpu::may_capture).then_some(capacity);
        for Feed { input, numbers, .. } in &mut self.feeds {
            let room = input.length.or(whole).unwrap_or(0).saturating_sub(total as usize);
            match input.role {
                // as the cache keeps it, since a copy would grow with every token
                Role::Mask if input.element == TensorElementType::Int64 && room == 0 && self.gpu.is_none() => {
                    *numbers = Numbers::OfCache;
                }
                Role::Tokens => {
                    let padding = std::iter::repeat_n(0, cut.padding);
                    numbers.fill(tokens.iter().map(|&token| i64::from(token)).chain(padding))?;
                }
                Role::Mask => numbers.fill(self.cache.mask().iter().copied().chain(std::iter::repeat_n(0, room)))?,
                Role::Positions => numbers.fill(first..first + width)?,
                Role::CachePositions => numbers.fill(place..total)?,
                Role::LogitsToKeep => numbers.fill([(cut.wanted() + cut.padding) as i64])?,
                Role::TokenTypes => numbers.fill(std::iter::repeat_n(0, width as usize))?,
                Role::PastLength => numbers.fill([place])?,
                Role::TotalLength => numbers.fill([total])?,
                Role::LastPosition => numbers.fill([total - 1])?,
                Role::HasPast => numbers.fill([i64::from(place > 0)])?,
            }
        }
        if let Some(gpu) = &mut self.gpu {
            if moved {
                gpu.forget_graphs();
            }
            let on_device = self.feeds.iter().filter(|feed| feed.input.role.is_sequence());
            gpu.fill(on_device.map(|feed| feed.numbers.bytes()), control)?;
        }
        Ok(())
    }

    /// Bind what was made by [`OnnxSequence::fill_inputs`], and the cache unless it is bound.
    fn bind_inputs(&mut self) -> ort::Result<()> {
        let bound = std::mem::replace(&mut self.bound, false) && self.copies.is_none();
        let (entries, total, capacity) = (self.cache.entries(), self.cache.mask().len(), self.cache.capacity());
        let kind = self.export.cache_kind;
        let (before, behind) = match kind {
            CacheKind::Concatenated => (entries, total),
            _ => (capacity, capacity),
        };
        if !bound || matches!(kind, CacheKind::Concatenated | CacheKind::Fixed { in_place: false, .. }) {
            let memory = self.gpu.as_ref().map_or(&*self.memory, Gpu::memory);
            let tensor = |store: &mut Store, tensor: &CacheTensor, tokens: usize| {
                // SAFETY: a store has that many bytes, and stays until the next one is bound in its place.
                unsafe {
                    let shape = tensor.shape(tokens);
                    Tensor::at(memory, store.address(), 4 * store.len(), tensor.element, &shape[..tensor.rank()])
                }
            };
            for ((past, present), of) in self.cache.buffers().zip(&self.export.cache) {
                let value = tensor(past, of, before)?;
                self.binding.input(&of.past, &value)?;
                match present {
                    Some(present) => self.binding.output(&of.present, &tensor(present, of, behind)?)?,
                    None => self.binding.output(&of.present, &value)?,
                }
            }
        }
        let mut index = 0;
        for Feed { input, numbers } in &mut self.feeds {
            if let Numbers::OfCache = numbers {
                let value = Tensor::over(&self.memory, self.cache.mask(), input.element, &[1, total as i64])?;
                self.binding.input(&input.name, &value)?;
                continue;
            }
            let shape = [1, numbers.len() as i64];
            let shape = &shape[2 - input.rank..];
            let value = match &mut self.gpu {
                Some(gpu) if input.role.is_sequence() => {
                    index += 1;
                    gpu.input_tensor(index - 1, input.element, shape)?
                }
                _ => numbers.tensor(&self.memory, shape)?,
            };
            self.binding.input(&input.name, &value)?;
        }
        self.bound = true;
        Ok(())
    }
}

fn widest(heads: usize, entries: usize) -> usize {
    (SCORES_BYTES / heads.saturating_mul(entries).saturating_mul(4).max(1)).max(MIN_PASS)
}

/// Make a buffer at least so long, and keep its beginning. Where there is not enough memory, that is an error and no abort. The
/// system makes the zeros, page by page as they are written to: a prompt has many rows.
fn lengthen<T: Zeroable + Copy>(buffer: &mut Vec<T>, length: usize, kept: usize) -> ort::Result<()> {
    if buffer.len() < length {
        let failed = |()| ort::Error::new(format!("not enough memory for logits of {} bytes", length * size_of::<T>()));
        let mut longer = bytemuck::allocation::try_zeroed_vec(length).map_err(failed)?;
        huge_pages::advise_new(&mut longer);
        longer[..kept].copy_from_slice(&buffer[..kept]);
        *buffer = longer;
    }
    Ok(())
}

/// Rows of logits, written by ONNX Runtime where they are read.
struct LogitRows {
    rows: Vec<f32>,
    columns: usize,
    /// Position of the first row.
    first: usize,
    /// End of the rows of the last pass.
    end: usize,
}

impl LogitRows {
    fn new(columns: usize) -> Self {
        LogitRows { rows: Vec::new(), columns, first: 0, end: 0 }
    }

    fn row(&self, position: usize) -> &[f32] {
        let start = (position - self.first) * self.columns;
        &self.rows[start..start + self.columns]
    }

    /// The position behind the last row.
    fn next(&self) -> usize {
        self.first + self.end / self.columns
    }

    /// These rows, from a position on, and no others.
    fn set(&mut self, first: usize, rows: &[Vec<f32>]) {
        self.rows.clear();
        rows.iter().for_each(|row| self.rows.extend_from_slice(row));
        (self.first, self.end) = (first, self.rows.len());
    }

    /// Room for the rows of `count` positions from `position` on, keeping those from `keep` on that come before.
    fn reserve(&mut self, position: usize, count: usize, keep: usize) -> ort::Result<&mut [f32]> {
        let end = position + count;
        let keep = keep.max(self.first);
        if keep >= position {
            self.first = position; // the usual case: earlier rows are done with
        } else if (end - self.first) * self.columns > self.rows.len() && keep > self.first {
            let kept = (keep - self.first) * self.columns..(position - self.first) * self.columns;
            self.rows.copy_within(kept, 0);
            self.first = keep;
        }
        let (kept, needed) = ((position - self.first) * self.columns, (end - self.first) * self.columns);
        lengthen(&mut self.rows, needed, kept)?;
        self.end = needed;
        Ok(&mut self.rows[kept..needed])
    }

    /// Keep no more room than usual passes need, and the rows from `keep` on.
    fn trim(&mut self, keep: usize) {
        let from = (keep.max(self.first) - self.first) * self.columns;
        let least = (self.end - from).max(KEPT_ROWS * self.columns);
        if self.rows.len() > 2 * least {
            self.rows.copy_within(from..self.end, 0);
            self.first = self.first.max(keep);
            self.end -= from;
            self.rows.truncate(least);
            self.rows.shrink_to_fit();
        }
    }

    /// The last rows that were reserved.
    fn last(&mut self, count: usize) -> &mut [f32] {
        &mut self.rows[self.end - count * self.columns..self.end]
    }
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

    #[test]
    fn a_long_prompt_leaves_room_for_usual_passes_only() {
        let mut logits = LogitRows::new(2);
        let mut write = |position: usize, count: usize, keep: usize| {
            let rows = logits.reserve(position, count, keep).unwrap();
            rows.iter_mut().enumerate().for_each(|(index, value)| *value = (2 * position + index) as f32);
            logits.trim(keep);
            for kept in keep.max(position)..position + count {
                assert_eq!(logits.row(kept), [2.0 * kept as f32, 2.0 * kept as f32 + 1.0], "row {kept}");
            }
            logits.rows.capacity() / 2
        };
        assert_eq!(write(1, 200, 200), KEPT_ROWS);
        assert_eq!(write(201, 1, 201), KEPT_ROWS);
        assert_eq!(write(202, 2 * KEPT_ROWS, 202), 2 * KEPT_ROWS, "a long draft keeps its room");
        assert_eq!(write(202, 1, 202), 2 * KEPT_ROWS);
        assert_eq!(write(203, 300, 403), 100, "rows that are kept stay");
    }

    #[test]
    fn failures_that_are_known_have_a_mend() {
        let failed = "model.onnx: Non-zero status code returned while running GroupQueryAttention node. Name:'/model/layers.0/attn/\
                      GroupQueryAttention' Status Message: cudaErrorInvalidValue";
        assert!(mend(failed).unwrap().contains("ORT_ENABLE_XQA=0"));
        assert_eq!(mend("Non-zero status code returned while running GroupQueryAttention node."), None);
    }

    #[test]
    fn rows_of_logits_stay_where_they_were_written() {
        let mut logits = LogitRows::new(2);
        let mut write = |position: usize, count: usize, keep: usize| {
            let rows = logits.reserve(position, count, keep).unwrap();
            assert_eq!(rows.len(), 2 * count);
            for (index, value) in rows.iter_mut().enumerate() {
                *value = (10 * (position + index / 2) + index % 2) as f32;
            }
            for kept in keep.min(position)..position + count {
                if kept >= keep {
                    assert_eq!(logits.row(kept), [10.0 * kept as f32, 10.0 * kept as f32 + 1.0], "row {kept}");
                }
            }
        };
        write(1, 5, 5); // a prompt
        write(6, 1, 6); // nothing to keep: from the start
        write(7, 1, 6); // one to keep
        write(8, 3, 6);
        write(11, 1, 9); // moves
        write(12, 4, 10);
        write(10, 1, 10); // after a rollback
        write(11, 9, 10);
    }
}
