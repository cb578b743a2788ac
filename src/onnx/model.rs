//! Runs exports with ONNX Runtime: one session for each model, one binding for each sequence.
//!
//! Sessions are built with `ort`; passes call the C API beneath it. `ort` takes `&mut` for a run, which would make the
//! sequences of one engine wait for each other, and it allocates tensors and names for each binding; ONNX Runtime
//! itself allows concurrent runs, and binds tensors over our own buffers without a copy.

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
use super::sequence::{MAX_PASS, MIN_PASS, OnnxSequence, SequenceHandle, Spares, Terminate, own};
use super::weights::LoadedSession;
use crate::cuda::Device;
use crate::error::{Error, Result};
use crate::export::{Export, GivenRows, Logits};
use crate::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};
use crate::rows::device::Ring;

/// Logits of one pass take at most this many bytes, unless a pass of [`MIN_PASS`] tokens takes more.
const LOGITS_BYTES: usize = 64 << 20;

/// Columns from which on rows stay on the GPU: shorter ones are copied and read in less time than it takes to ask the GPU.
const LONG_ROW: usize = 1 << 15;

/// A language model that ONNX Runtime runs.
pub struct OnnxModel {
    pub(super) name: String,
    pub(super) loaded: Arc<LoadedSession>,
    pub(super) export: Arc<Export>,
    pub(super) provider: Provider,
    pub(super) memory: Arc<MemoryInfo<'static>>,
    /// Tokens that count; further columns of the logits are padding.
    pub(super) vocab_size: usize,
    /// By how much logits of a pass of several tokens differ from those of single ones, as seen when it was loaded.
    pub(super) deviation: f32,
    /// What was tried of it, and what came out.
    pub(super) trials: Vec<Value>,
    pub(super) pass_times: Vec<(usize, Duration)>,
    /// The GPU where its cache and logits are, if they are on one.
    pub(super) device: Option<Arc<Device>>,
    /// What became of captures on a GPU.
    pub(super) captures: Arc<Captures>,
    pub(super) rows: Option<RowsOn>,
    pub(super) spares: Arc<Spares>,
}

impl OnnxModel {
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

    pub(super) fn failed_trial(&self, interrupt: Interrupt) -> Error {
        match interrupt {
            Interrupt::Failed(error) => self.cannot_run(&error),
            Interrupt::Cancelled => Error::Internal("nobody could cancel this".into()),
        }
    }

    pub(super) fn cannot_run(&self, error: &dyn std::fmt::Display) -> Error {
        let error = error.to_string();
        let mend = mend(&error).map_or(String::new(), |mend| format!("; {mend}"));
        Error::Model(format!("cannot run {}: {error}{mend}", self.export.file.display()))
    }

    /// An empty sequence: one that was given back, or a new one.
    pub(super) fn sequence(&self, cancel: &Arc<Cancel>) -> Result<SequenceHandle> {
        let failed = |error: ort::Error| Error::Runtime(error.to_string());
        let mut options = RunOptions::new().map_err(failed)?;
        if self.loaded.is_whole {
            GpuPasses::set_options(&mut options).map_err(failed)?;
        }
        let options = Arc::new(options);
        cancel.add_hook(Box::new(Terminate(options.clone())));
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
                    Ring::new(device, columns, element).map_err(failed)?
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
            GivenRows::All => (LOGITS_BYTES / (4 * self.export.logits.columns)).clamp(MIN_PASS, MAX_PASS),
            // no more rows than are wanted, which are few
            GivenRows::Counted | GivenRows::Last => MAX_PASS,
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_that_are_known_have_a_mend() {
        let failed = "model.onnx: Non-zero status code returned while running GroupQueryAttention node. Name:'/model/layers.0/attn/\
                      GroupQueryAttention' Status Message: cudaErrorInvalidValue";
        assert!(mend(failed).unwrap().contains("ORT_ENABLE_XQA=0"));
        assert_eq!(mend("Non-zero status code returned while running GroupQueryAttention node."), None);
    }
}
