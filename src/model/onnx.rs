//! Runs exports with ONNX Runtime: one session for each model, one binding for each sequence.
//!
//! Sessions are built with `ort`; passes call the C API beneath it. `ort` takes `&mut` for a run, which would make the
//! sequences of one engine wait for each other, and it allocates tensors and names for each binding; ONNX Runtime
//! itself allows concurrent runs, and binds tensors over our own buffers without a copy.

use std::any::Any;
use std::ffi::CStr;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{RunOptions, Session};
use ort::{AsPointer, sys};

use super::cache::Cache;
use super::export::{self, Export};
use super::huge_pages::Mappings;
use super::{Cancel, CancelHook, Interrupt, Model, Pass, Sequence, runtime};
use crate::error::{Error, Result};

/// Logits of one pass take at most this many bytes, unless a pass of [`MIN_PASS`] tokens takes more.
const LOGITS_BYTES: usize = 64 << 20;
const MIN_PASS: usize = 16;
const MAX_PASS: usize = 512;

/// Where a model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda {
        /// Which one.
        device_id: i32,
    },
}

/// A language model that ONNX Runtime runs.
pub struct OnnxModel {
    name: String,
    session: Session,
    export: Arc<Export>,
    memory: Arc<MemoryInfo<'static>>,
}

impl OnnxModel {
    /// Load an export: an `.onnx` file, or a folder that holds one. [`runtime::environment`] must have been made.
    pub fn load(path: &Path, name: &str, provider: Provider) -> Result<Self> {
        let file = export::model_file(path)?;
        let environment = runtime::environment(None, 0)?;
        let refuse = |error: &dyn std::fmt::Display| Error::Model(format!("cannot load {}: {error}", file.display()));
        let mut builder = Session::builder(environment).map_err(|error| refuse(&error))?;
        // ORT keeps a memory plan for each combination of input shapes, and here every pass has another one.
        builder = builder.with_memory_pattern(false).map_err(|error| refuse(&error))?;
        if let Provider::Cuda { device_id } = provider {
            let cuda = ort::ep::CUDA::default().with_device_id(device_id).build().error_on_failure();
            builder = builder.with_execution_providers([cuda]).map_err(|error| {
                Error::Runtime(format!(
                    "provider \"cuda\" is not available for {}: {error}; it needs an NVIDIA driver, CUDA and cuDNN, and \
                     libonnxruntime_providers_cuda.so with libonnxruntime_providers_shared.so beside a GPU build of \
                     libonnxruntime.so (package onnxruntime-gpu); use \"cpu\" otherwise",
                    file.display()
                ))
            })?;
        }
        let before = Mappings::now();
        let session = builder.commit_from_file(&file).map_err(|error| {
            refuse(&format_args!("{error}; if the file is corrupt or incomplete, copy or export it again"))
        })?;
        before.advise_since();
        let export = export::read_export(&file, session.inputs(), session.outputs())?;
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .map_err(|error| refuse(&error))?;
        Ok(OnnxModel { name: name.into(), session, export: Arc::new(export), memory: Arc::new(memory) })
    }

    /// What was recognised.
    pub fn export(&self) -> &Export {
        &self.export
    }
}

impl Model for OnnxModel {
    fn name(&self) -> &str {
        &self.name
    }

    fn vocab_size(&self) -> usize {
        self.export.vocab_size
    }

    fn context_length(&self) -> usize {
        self.export.context_length
    }

    fn max_pass(&self) -> usize {
        (LOGITS_BYTES / (4 * self.export.vocab_size)).clamp(MIN_PASS, MAX_PASS)
    }

    fn cost(&self) -> u64 {
        self.export.bytes
    }

    fn start(&self, cancel: &Arc<Cancel>) -> Result<Box<dyn Sequence>> {
        let failed = |error: ort::Error| Error::Runtime(error.to_string());
        let options = Arc::new(RunOptions::new().map_err(failed)?);
        cancel.add_hook(Box::new(Terminate(options.clone())));
        Ok(Box::new(OnnxSequence {
            binding: Binding::new(&self.session)?,
            cache: Cache::new(&self.export)?,
            logits: Logits { rows: Vec::new(), vocab_size: self.export.vocab_size, first: 0 },
            export: self.export.clone(),
            memory: self.memory.clone(),
            options,
            cancel: cancel.clone(),
            ids: Vec::new(),
            positions: Vec::new(),
            mask: Vec::new(),
            len: 0,
            elapsed: Duration::ZERO,
        }))
    }

    fn forward(&self, batch: &mut [Pass<'_>]) -> Result<(), Interrupt> {
        // GroupQueryAttention takes several positions on top of a cache for a batch of one only, so this loops. A pass
        // changes nothing that counts until it has succeeded, so undoing earlier ones is shortening them again.
        for index in 0..batch.len() {
            let pass = &mut batch[index];
            if let Err(interrupt) = own(pass.sequence).run(pass.tokens, pass.keep) {
                for done in &mut batch[..index] {
                    let len = done.sequence.len() - done.tokens.len();
                    done.sequence.truncate(len);
                }
                return Err(interrupt);
            }
        }
        Ok(())
    }
}

fn own(sequence: &mut dyn Sequence) -> &mut OnnxSequence {
    (sequence as &mut dyn Any).downcast_mut().expect("a sequence of another model")
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
    cache: Cache,
    logits: Logits,
    export: Arc<Export>,
    memory: Arc<MemoryInfo<'static>>,
    options: Arc<RunOptions>,
    cancel: Arc<Cancel>,
    ids: Vec<i64>,
    positions: Vec<i64>,
    mask: Vec<i64>,
    len: usize,
    elapsed: Duration,
}

impl Sequence for OnnxSequence {
    fn len(&self) -> usize {
        self.len
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    fn logits(&self, position: usize) -> &[f32] {
        self.logits.row(position)
    }

    fn elapsed(&self) -> Duration {
        self.elapsed
    }
}

impl OnnxSequence {
    fn run(&mut self, tokens: &[i32], keep: usize) -> Result<(), Interrupt> {
        if self.cancel.is_requested() {
            return Err(Interrupt::Cancelled);
        }
        let result = self.bind(tokens, keep).and_then(|()| {
            let started = Instant::now();
            let result = self.binding.run(&self.options);
            self.elapsed += started.elapsed();
            result
        });
        match result {
            Ok(()) => {
                self.len += tokens.len();
                Ok(())
            }
            Err(_) if self.cancel.is_requested() => Err(Interrupt::Cancelled),
            Err(error) => Err(Error::Runtime(format!("{}: {error}", self.export.file.display())).into()),
        }
    }

    /// Point the inputs and outputs at what this pass reads and writes.
    fn bind(&mut self, tokens: &[i32], keep: usize) -> ort::Result<()> {
        let (width, total) = (tokens.len(), self.len + tokens.len());
        if self.cache.reserve(total, self.len) {
            self.mask.resize(self.cache.capacity(), 1);
            let capacity = self.cache.capacity() as i64;
            for (buffer, tensor) in self.cache.buffers().zip(&self.export.cache) {
                let shape = [1, tensor.heads as i64, capacity, tensor.head_size as i64];
                let value = Tensor::over(&self.memory, buffer, tensor.element.into(), &shape)?;
                self.binding.input(&tensor.past, &value)?;
                self.binding.output(&tensor.present, &value)?;
            }
        }
        self.ids.clear();
        self.ids.extend(tokens.iter().map(|&token| i64::from(token)));
        let int64 = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        let ids = Tensor::over(&self.memory, &mut self.ids, int64, &[1, width as i64])?;
        self.binding.input(c"input_ids", &ids)?;
        let mask = Tensor::over(&self.memory, &mut self.mask[..total], int64, &[1, total as i64])?;
        self.binding.input(c"attention_mask", &mask)?;
        if self.export.takes_positions {
            self.positions.clear();
            self.positions.extend(self.len as i64..total as i64);
            let positions = Tensor::over(&self.memory, &mut self.positions, int64, &[1, width as i64])?;
            self.binding.input(c"position_ids", &positions)?;
        }
        let float = sys::ONNXTensorElementDataType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
        let shape = [1, width as i64, self.logits.vocab_size as i64];
        let rows = self.logits.reserve(self.len + 1, width, keep);
        let logits = Tensor::over(&self.memory, rows, float, &shape)?;
        self.binding.output(c"logits", &logits)
    }
}

/// Rows of logits, written by ONNX Runtime where they are read.
struct Logits {
    rows: Vec<f32>,
    vocab_size: usize,
    /// Position of the first row.
    first: usize,
}

impl Logits {
    fn row(&self, position: usize) -> &[f32] {
        let start = (position - self.first) * self.vocab_size;
        &self.rows[start..start + self.vocab_size]
    }

    /// Room for the rows of `count` positions from `position` on, keeping those from `keep` on that come before.
    fn reserve(&mut self, position: usize, count: usize, keep: usize) -> &mut [f32] {
        let end = position + count;
        let keep = keep.max(self.first);
        if keep >= position {
            self.first = position; // the usual case: earlier rows are done with
        } else if (end - self.first) * self.vocab_size > self.rows.len() && keep > self.first {
            let kept = (keep - self.first) * self.vocab_size..(position - self.first) * self.vocab_size;
            self.rows.copy_within(kept, 0);
            self.first = keep;
        }
        let needed = (end - self.first) * self.vocab_size;
        if self.rows.len() < needed {
            self.rows.resize(needed, 0.0);
        }
        &mut self.rows[(position - self.first) * self.vocab_size..needed]
    }
}

/// A tensor over a buffer of ours.
struct Tensor(ptr::NonNull<sys::OrtValue>);

impl Tensor {
    fn over<T>(
        memory: &MemoryInfo,
        data: &mut [T],
        element: sys::ONNXTensorElementDataType,
        shape: &[i64],
    ) -> ort::Result<Self> {
        let mut value = ptr::null_mut();
        // SAFETY: the buffer outlives every pass that uses it: bindings are renewed before a buffer moves, and
        // `OnnxSequence` drops its binding before its buffers. Sizes are checked by ONNX Runtime.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data.as_mut_ptr().cast(),
                size_of_val(data),
                shape.as_ptr(),
                shape.len(),
                element,
                &mut value,
            )
        };
        check(status)?;
        ptr::NonNull::new(value).map(Tensor).ok_or_else(|| ort::Error::new("no tensor was made"))
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: made by ONNX Runtime, released once; bindings hold their own reference.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// The inputs and outputs of one sequence's passes.
struct Binding {
    binding: ptr::NonNull<sys::OrtIoBinding>,
    session: Arc<ort::session::SharedSessionInner>,
}

// SAFETY: a binding is used by one thread at a time, through `&mut`.
unsafe impl Send for Binding {}

impl Binding {
    fn new(session: &Session) -> Result<Self> {
        let session = session.inner();
        let mut binding = ptr::null_mut();
        // SAFETY: the session is alive; creating a binding does not change it.
        let status = unsafe { (ort::api().CreateIoBinding)(session.ptr().cast_mut(), &mut binding) };
        check(status).map_err(|error| Error::Runtime(error.to_string()))?;
        let binding = ptr::NonNull::new(binding).ok_or_else(|| Error::Runtime("no binding was made".into()))?;
        Ok(Binding { binding, session })
    }

    fn input(&mut self, name: &CStr, value: &Tensor) -> ort::Result<()> {
        // SAFETY: all three are alive; the binding takes its own reference to the value.
        check(unsafe { (ort::api().BindInput)(self.binding.as_ptr(), name.as_ptr(), value.0.as_ptr()) })
    }

    fn output(&mut self, name: &CStr, value: &Tensor) -> ort::Result<()> {
        // SAFETY: as above.
        check(unsafe { (ort::api().BindOutput)(self.binding.as_ptr(), name.as_ptr(), value.0.as_ptr()) })
    }

    fn run(&mut self, options: &RunOptions) -> ort::Result<()> {
        // SAFETY: ONNX Runtime allows concurrent runs of one session; the binding is ours alone, and the options may be
        // told to terminate by another thread, which is what they are for.
        check(unsafe {
            (ort::api().RunWithBinding)(self.session.ptr().cast_mut(), options.ptr(), self.binding.as_ptr())
        })
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: made by ONNX Runtime, released once, before its session.
        unsafe { (ort::api().ReleaseIoBinding)(self.binding.as_ptr()) }
    }
}

fn check(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the status comes from a call just made and is not used again.
    unsafe { ort::Error::result_from_status(status) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_logits_stay_where_they_were_written() {
        let mut logits = Logits { rows: Vec::new(), vocab_size: 2, first: 0 };
        let mut write = |position: usize, count: usize, keep: usize| {
            let rows = logits.reserve(position, count, keep);
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
