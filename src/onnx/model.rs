//! A model that ONNX Runtime runs: one session for each model, one binding for each sequence.
//!
//! The crate `ort` creates sessions, but passes call ONNX Runtime's C API directly. `ort` takes `&mut` for a run, so
//! the sequences of an engine would wait for each other, and it allocates names and tensors for each binding. ONNX
//! Runtime itself allows concurrent runs, and it binds tensors over buffers of ours without a copy.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use ort::memory::MemoryInfo;
use ort::session::RunOptions;
use serde_json::{Value, json};

use super::binding::Binding;
use super::cache::Cache;
use super::captures::Captures;
use super::gpu_passes::GpuPasses;
use super::inputs::Feed;
use super::logits::LogitRows;
use super::options::{Provider, RowsOn};
use super::packed::batching::Batching;
use super::packed::sequence::{PackedSequence, PassOwner};
use super::sequence::{MAX_PASS, MIN_PASS, OnnxSequence, SequenceHandle, Spares, Terminate, own};
use super::weights::LoadedSession;
use crate::cuda::Device;
use crate::error::{Error, Result};
use crate::export::{Export, GivenRows, Logits, Role, Rollback};
use crate::model::graphs::MOST_GRAPHS;
use crate::model::{Admission, Cancel, Interrupt, Model, Pass, Report, Sequence};
use crate::rows::device::Ring;

/// The logits of one pass take at most this many bytes, unless a pass of [`MIN_PASS`] tokens needs more.
const LOGITS_BYTES: usize = 64 << 20;

/// Rows of at least this many columns stay on the GPU. Copying a shorter row takes less time than asking the GPU.
const LONG_ROW: usize = 1 << 15;

/// A language model that ONNX Runtime runs. Its methods as a [`Model`] may be called by several threads at once.
pub struct OnnxModel {
    pub(super) name: String,
    pub(super) loaded: Arc<LoadedSession>,
    pub(super) export: Arc<Export>,
    pub(super) provider: Provider,
    pub(super) memory: Arc<MemoryInfo<'static>>,
    /// The number of tokens. Columns of the logits beyond it are padding.
    pub(super) vocab_size: usize,
    /// See [`OnnxModel::deviation`].
    pub(super) deviation: f32,
    /// The ways of scoring that were tried while loading, with their results, as JSON for [`Model::describe`].
    pub(super) trials: Vec<Value>,
    pub(super) pass_times: Vec<(usize, Duration)>,
    /// The GPU that holds the cache and the logits. `None` if they are on the host.
    pub(super) device: Option<Arc<Device>>,
    pub(super) captures: Arc<Captures>,
    /// Where rows stay, if an option says so.
    pub(super) rows: Option<RowsOn>,
    pub(super) spares: Arc<Spares>,
    /// Whether passes serve several sequences at once.
    pub(super) batching: Batching,
}

impl OnnxModel {
    /// What was recognised of the export.
    pub fn export(&self) -> &Export {
        &self.export
    }

    /// The largest difference, seen in the trial passes, between the logits of a position scored with others and alone.
    pub fn deviation(&self) -> f32 {
        self.deviation
    }

    /// Use only the first `tokens` columns of the logits. The rest is padding, or tokens that other models do not have.
    pub fn limit_vocabulary(&mut self, tokens: usize) {
        self.vocab_size = self.vocab_size.min(tokens);
    }

    /// Whether passes are captured as CUDA graphs.
    pub(super) fn captures(&self) -> bool {
        self.device.is_some() && self.captures.refused().is_none()
    }

    pub(super) fn rows_on(&self) -> RowsOn {
        if let Batching::Packed(passes) = &self.batching {
            return if passes.keeps_rows() { RowsOn::Gpu } else { RowsOn::Host };
        }
        let long = if self.export.logits.columns >= LONG_ROW { RowsOn::Gpu } else { RowsOn::Host };
        match &self.device {
            Some(device) if device.no_kernels().is_none() => self.rows.unwrap_or(long),
            _ => RowsOn::Host,
        }
    }

    pub(super) fn export_mut(&mut self) -> &mut Export {
        self.spares.clear(); // they refer to the old export
        Arc::make_mut(&mut self.export)
    }

    pub(super) fn failed_trial(&self, interrupt: Interrupt) -> Error {
        match interrupt {
            Interrupt::Failed(error) => self.cannot_run(&error),
            Interrupt::Cancelled => Error::Internal("a trial pass was cancelled".into()),
        }
    }

    pub(super) fn cannot_run(&self, error: &dyn std::fmt::Display) -> Error {
        let error = error.to_string();
        let mend = mend(&error).map_or(String::new(), |mend| format!("; {mend}"));
        Error::Model(format!("cannot run {}: {error}{mend}", self.export.file.display()))
    }

    /// The options of a sequence's passes, which `cancel` stops.
    fn run_options(&self, cancel: &Arc<Cancel>) -> Result<Arc<RunOptions>> {
        let failed = |error: ort::Error| Error::Runtime(error.to_string());
        let mut options = RunOptions::new().map_err(failed)?;
        if self.loaded.is_whole {
            GpuPasses::set_options(&mut options).map_err(failed)?;
        }
        let options = Arc::new(options);
        cancel.add_hook(Box::new(Terminate(options.clone())));
        Ok(options)
    }

    /// An empty sequence: a spare one if there is one, otherwise a new one.
    pub(super) fn sequence(&self, cancel: &Arc<Cancel>) -> Result<SequenceHandle> {
        let failed = |error: ort::Error| Error::Runtime(error.to_string());
        let options = self.run_options(cancel)?;
        let lend = |sequence| SequenceHandle { sequence: Some(sequence), spares: self.spares.clone() };
        if let Some(mut sequence) = self.spares.take() {
            sequence.restart(options, cancel, self.vocab_size)?;
            return Ok(lend(sequence));
        }
        let gpu = match &self.device {
            None => None,
            Some(device) => {
                let rows = if self.rows_on() == RowsOn::Gpu {
                    let Logits { columns, element, .. } = self.export.logits;
                    Ring::new(device, columns, self.vocab_size, element).map_err(failed)?
                } else {
                    None
                };
                Some(GpuPasses::new(device, &self.captures, self.loaded.plans_widths, rows).map_err(failed)?)
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
            has_lost_time: false,
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
        self.spares.clear(); // they hold references to the session
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
            _ if matches!(self.batching, Batching::Packed(_)) => MAX_PASS,
            GivenRows::All => (LOGITS_BYTES / (4 * self.export.logits.columns)).clamp(MIN_PASS, MAX_PASS),
            // These give only the rows that are wanted, which are few.
            GivenRows::Counted | GivenRows::Last => MAX_PASS,
        }
    }

    fn batches(&self) -> bool {
        matches!(self.batching, Batching::Packed(_))
    }

    fn max_batch_tokens(&self) -> usize {
        // RotaryEmbedding, which reads positions, takes no more tokens than it has positions.
        let reads_positions = self.export.inputs.iter().any(|input| input.role == Role::Positions);
        let most = match &self.batching {
            Batching::Packed(passes) => passes.max_tokens,
            _ => self.max_pass(),
        };
        most.min(if reads_positions { self.export.context_length } else { usize::MAX })
    }

    fn admit(&self, pass: &mut Pass<'_>) -> Admission {
        match &self.batching {
            Batching::Packed(passes) => passes.admit(pass),
            _ => Admission::Whole(pass.tokens.len()),
        }
    }

    fn no_memory(&self) -> Error {
        match &self.batching {
            Batching::Packed(passes) => passes.no_memory(),
            _ => Error::NoMemory(format!("no memory is left for {}", self.name)),
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
        let packed = if let Batching::Packed(passes) = &self.batching { Some(passes) } else { None };
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
            "batching": if packed.is_some() { "packed" } else { "alone" },
            "cache_block_tokens": packed.map(|passes| passes.block_tokens),
            "cache_blocks": packed.map(|passes| passes.blocks),
            "cache_bytes": packed.map(|passes| passes.blocks * passes.block_bytes),
            "no_batching": if let Batching::Alone(why) = &self.batching { Some(why) } else { None },
        });
        if let Some(passes) = packed {
            let cache = &mut description["cache"];
            cache["rollback"] = Rollback::Shorten.name().into();
            cache["bytes_per_token"] = passes.block_bytes.div_ceil(passes.block_tokens).into();
        }
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

    fn kept_sizes(&self) -> usize {
        if self.batches() { MOST_GRAPHS } else { usize::MAX }
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        match &self.batching {
            Batching::Packed(passes) => {
                let options = self.run_options(cancel)?;
                let failed = |error: ort::Error| Error::Runtime(error.to_string());
                let owner: Arc<dyn PassOwner> = passes.clone();
                let sequence = PackedSequence::new(&owner, self.vocab_size, options, cancel).map_err(failed)?;
                Ok(Box::new(sequence))
            }
            _ => Ok(Box::new(self.sequence(cancel)?)),
        }
    }

    fn fork(&self, sequence: &dyn Sequence, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        match &self.batching {
            Batching::Packed(_) => {
                let sequence: &PackedSequence =
                    (sequence as &dyn Any).downcast_ref().expect("the sequence is of another model");
                let fork = sequence.fork(self.run_options(cancel)?, cancel);
                Ok(Box::new(fork.map_err(|error| Error::Runtime(error.to_string()))?))
            }
            _ => self.start(cancel),
        }
    }

    fn overlaps(&self) -> bool {
        self.loaded.is_whole
    }

    fn launch(&self, batch: &mut [Pass<'_>]) -> bool {
        match (&self.batching, batch) {
            (Batching::Packed(passes), batch) => passes.launch(batch),
            (_, [pass]) => {
                self.overlaps() && own(pass.sequence).begin(pass.tokens, pass.keep, (pass.filter, pass.uniforms))
            }
            _ => false,
        }
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        if let Batching::Packed(passes) = &self.batching {
            return passes.forward(batch);
        }
        // GroupQueryAttention scores several positions on top of a cache only for a batch of one, so this loops. If a
        // pass fails, its sequence is unchanged, and truncating undoes the passes before it.
        let mut report = Report { elapsed: Duration::ZERO, is_usual: true };
        for index in 0..batch.len() {
            let pass = &mut batch[index];
            match own(pass.sequence).run(pass.tokens, pass.keep, (pass.filter, pass.uniforms)) {
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

/// A remedy for a known failure of ONNX Runtime.
fn mend(error: &str) -> Option<&'static str> {
    // ONNX Runtime sets the shared memory of its XQA kernels once for a process, and only on the GPU that runs them
    // first. No option of the provider turns the kernels off.
    (error.contains("GroupQueryAttention") && error.contains("cudaErrorInvalidValue")).then_some(
        "ONNX Runtime's XQA attention kernels work on one GPU of a process only, and not on GPUs newer than the \
         library; set ORT_ENABLE_XQA=0 in the environment before the process starts, so that other kernels are used",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_failure_has_a_remedy() {
        let failed = "model.onnx: Non-zero status code returned while running GroupQueryAttention node. Name:'/model/\
                      layers.0/attn/GroupQueryAttention' Status Message: cudaErrorInvalidValue";
        assert!(mend(failed).unwrap().contains("ORT_ENABLE_XQA=0"));
        assert_eq!(mend("Non-zero status code returned while running GroupQueryAttention node."), None);
    }
}
