//! Passes of plain ONNX Runtime, with nothing of CoS around them: a session, tensors that stay where they are, and on a GPU a graph
//! that ONNX Runtime captures and replays by itself. Without copies between passes this is the least that a pass can take; with them,
//! as whoever decodes needs them, it is what a careful loop by hand takes.

use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cos::model::{Cancel, Model};
use cos::onnx::environment;
use cudarc::driver::result as driver;
use ort::memory::{AllocationDevice, Allocator, AllocatorType, MemoryInfo, MemoryType};
use ort::session::{IoBinding, RunOptions, Session};
use ort::value::{DynTensor, TensorElementType, ValueType};
use ort::{AsPointer, sys};

use super::measure::{Result, extend};
use super::results::{RawCost, Spread};

const WIDTHS: [usize; 3] = [1, 2, 5];
/// Tokens before each pass.
const CONTEXT: usize = 150;
/// Ours and theirs take turns.
const TURNS: usize = 5;
/// The first pass is plain, the second is captured.
const WARM_UP: usize = 20;

/// A model of an engine, and the same file in a session of its own, each for so many seconds in a turn.
pub fn compare(model: &dyn Model, file: &Path, cuda: bool, text: &[i32], turn: f64) -> Result<Vec<RawCost>> {
    let context: Vec<i32> = text.iter().copied().cycle().take(CONTEXT).collect();
    let mut sequence = model.start(&Arc::new(Cancel::default()))?;
    extend(model, sequence.as_mut(), &context)?;
    let mut ours = |width: usize, times: usize| {
        for _ in 0..times {
            extend(model, sequence.as_mut(), &context[..width])?;
            sequence.truncate(CONTEXT);
        }
        Result::Ok(())
    };
    let _gpu = cuda.then(Context::enter).transpose()?; // outlives what is pinned
    let mut plain = Plain::new(file, cuda, &context)?;
    let mut costs = Vec::new();
    for (index, width) in WIDTHS.into_iter().enumerate() {
        ours(width, WARM_UP)?;
        plain.run(index, WARM_UP, false)?;
        let started = Instant::now();
        plain.run(index, 1, false)?;
        let times = (turn / started.elapsed().as_secs_f64()).clamp(5.0, 100.0) as usize;
        let (mut own, mut raw, mut copied) = (Vec::new(), Vec::new(), Vec::new());
        let timed = |runs: &mut dyn FnMut() -> Result<()>| {
            let started = Instant::now();
            runs()?;
            Result::Ok(1e3 * started.elapsed().as_secs_f64() / times as f64)
        };
        for _ in 0..TURNS {
            raw.push(timed(&mut || plain.run(index, times, false))?);
            if cuda {
                copied.push(timed(&mut || plain.run(index, times, true))?);
            }
            own.push(timed(&mut || ours(width, times))?);
        }
        costs.push(RawCost {
            model: model.name().into(),
            width,
            context: CONTEXT,
            ours: Spread::of(own),
            raw: Spread::of(raw),
            copied: cuda.then(|| Spread::of(copied)),
        });
    }
    Ok(costs)
}

/// A session, and for each width the tensors of a pass, which share the cache.
struct Plain {
    passes: Vec<Pass>,
    _cache: Vec<DynTensor>,
    /// Behind what was allocated by it, and before its session.
    _allocator: Allocator,
    session: Session,
}

struct Pass {
    binding: IoBinding,
    options: RunOptions,
    /// On a GPU: what is copied to it before a pass, and from it after that.
    inputs: Vec<Copied>,
    logits: Option<Copied>,
    _tensors: Vec<DynTensor>,
}

/// A tensor on the GPU, and as much pinned memory of the host.
struct Copied {
    host: Pinned,
    device: u64,
}

impl Plain {
    fn new(file: &Path, cuda: bool, context: &[i32]) -> Result<Plain> {
        let mut builder = Session::builder(environment(None, 0, None)?)?.with_memory_pattern(false)?;
        if cuda {
            let provider = ort::ep::CUDA::default().with_tf32(false).with_cuda_graph(true);
            builder = builder.with_execution_providers([provider.build().error_on_failure()])?;
        }
        let session = builder.commit_from_file(file)?;
        let device = if cuda { AllocationDevice::CUDA } else { AllocationDevice::CPU };
        let memory = MemoryInfo::new(device, 0, AllocatorType::Device, MemoryType::Default)?;
        let allocator = Allocator::new(&session, memory)?;
        let capacity = (context.len() + WIDTHS[WIDTHS.len() - 1]).next_power_of_two();
        let tensor = |element: TensorElementType, shape: &[i64]| -> Result<DynTensor> {
            let mut tensor = DynTensor::new(&allocator, element, shape.to_vec())?;
            if cuda {
                clear(&mut tensor)?;
            }
            Ok(tensor)
        };

        // the graph does not say how long a head is
        let settings: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file.with_file_name("genai_config.json"))?)?;
        let head = settings["model"]["decoder"]["head_size"].as_i64().ok_or("genai_config.json has no head_size")?;
        let mut cache = Vec::new();
        let mut pairs = Vec::new();
        for input in session.inputs().iter().filter(|input| input.name().starts_with("past_key_values.")) {
            let ValueType::Tensor { ty, shape, .. } = input.dtype() else { continue };
            cache.push(tensor(*ty, &[1, shape[1], capacity as i64, head])?);
            pairs.push((input.name().to_string(), input.name().replace("past_key_values.", "present.")));
        }
        if cache.is_empty() {
            return Err("its cache is not that of an export of onnxruntime-genai's builder".into());
        }
        let mut passes = Vec::new();
        for width in WIDTHS {
            let total = context.len() + width;
            let binding = session.create_binding()?;
            for (value, (past, present)) in cache.iter().zip(&pairs) {
                bind(&binding, past, value, true)?;
                bind(&binding, present, value, false)?;
            }
            let (mut tensors, mut copied) = (Vec::new(), Vec::new());
            for input in session.inputs().iter().filter(|input| !input.name().starts_with("past_key_values.")) {
                let ValueType::Tensor { ty, .. } = input.dtype() else { continue };
                let numbers: Vec<i64> = match input.name() {
                    "input_ids" => context[..width].iter().map(|&token| i64::from(token)).collect(),
                    // within a graph it is as long as the cache
                    "attention_mask" if cuda => (0..capacity).map(|place| i64::from(place < total)).collect(),
                    "attention_mask" => vec![1; total],
                    "position_ids" => (context.len() as i64..total as i64).collect(),
                    other => return Err(format!("the input {other} is not known").into()),
                };
                let mut value = tensor(*ty, &[1, numbers.len() as i64])?;
                let bytes: Vec<u8> = match ty {
                    TensorElementType::Int64 => numbers.iter().flat_map(|number| number.to_ne_bytes()).collect(),
                    TensorElementType::Int32 => {
                        numbers.iter().flat_map(|&number| (number as i32).to_ne_bytes()).collect()
                    }
                    other => return Err(format!("the input {} is of type {other}", input.name()).into()),
                };
                if cuda {
                    let mut host = Pinned::new(bytes.len())?;
                    host.bytes().copy_from_slice(&bytes);
                    copied.push(Copied { host, device: value.data_ptr_mut() as u64 });
                } else {
                    // SAFETY: the tensor has room for just these bytes.
                    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.data_ptr_mut().cast(), bytes.len()) };
                }
                bind(&binding, input.name(), &value, true)?;
                tensors.push(value);
            }
            let logits = session.outputs().iter().find(|output| output.name() == "logits").ok_or("it has no logits")?;
            let ValueType::Tensor { ty, shape, .. } = logits.dtype() else { return Err("logits are no tensor".into()) };
            let mut value = tensor(*ty, &[1, width as i64, shape[2]])?;
            bind(&binding, logits.name(), &value, false)?;
            let logits = if cuda {
                let host = Pinned::new(size(&value)?)?;
                Some(Copied { host, device: value.data_ptr_mut() as u64 })
            } else {
                None
            };
            tensors.push(value);
            let mut options = RunOptions::new()?;
            if cuda {
                options.set("gpu_graph_id", width.to_string())?;
            }
            copied.iter_mut().try_for_each(Copied::upload)?;
            passes.push(Pass { binding, options, inputs: copied, logits, _tensors: tensors });
        }
        Ok(Plain { passes, _cache: cache, _allocator: allocator, session })
    }

    /// Run passes of the width of this index, and wait for the last one: with copies of all that a pass is asked, and of its logits, or
    /// with none.
    fn run(&mut self, index: usize, times: usize, copies: bool) -> Result<()> {
        let Pass { binding, options, inputs, logits, .. } = &mut self.passes[index];
        for _ in 0..times {
            if copies {
                inputs.iter_mut().try_for_each(Copied::upload)?;
            }
            // SAFETY: all are alive, and used by nobody else. `Session::run_binding` looks for outputs that it has bound itself.
            succeed(unsafe {
                (ort::api().RunWithBinding)(self.session.ptr().cast_mut(), options.ptr(), binding.ptr().cast_mut())
            })?;
            if let (true, Some(logits)) = (copies, logits.as_mut()) {
                // SAFETY: both are that long, and the pass is over.
                unsafe { driver::memcpy_dtoh_sync(logits.host.bytes(), logits.device) }?;
            }
        }
        Ok(binding.synchronize_outputs()?)
    }
}

/// Bind a tensor as it is: `IoBinding::bind_input` may copy it, and `bind_output` would not take it twice.
fn bind(binding: &IoBinding, name: &str, value: &DynTensor, input: bool) -> Result<()> {
    let name = CString::new(name)?;
    let api = ort::api();
    let bind = if input { api.BindInput } else { api.BindOutput };
    // SAFETY: both are alive, and the binding takes its own reference to the tensor.
    succeed(unsafe { bind(binding.ptr().cast_mut(), name.as_ptr(), value.ptr()) })
}

fn succeed(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: the status comes from a call just made and is not used again.
    Ok(unsafe { ort::Error::result_from_status(status) }?)
}

impl Copied {
    /// It has arrived when this returns, for the memory is pinned.
    fn upload(&mut self) -> Result<()> {
        // SAFETY: both are that long, and no pass is running.
        Ok(unsafe { driver::memcpy_htod_sync(self.device, self.host.bytes()) }?)
    }
}

/// Memory of the host that the GPU copies to and from without a detour. A context is current while it lives.
struct Pinned {
    at: *mut u8,
    length: usize,
}

impl Pinned {
    fn new(length: usize) -> Result<Pinned> {
        // SAFETY: it is written before it is read.
        let at = unsafe { driver::malloc_host(length, 0) }?.cast::<u8>();
        // SAFETY: so long is what has just been allocated.
        unsafe { at.write_bytes(0, length) };
        Ok(Pinned { at, length })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated and written by `new`, and borrowed from its only owner.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.length) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        let _ = unsafe { driver::free_host(self.at.cast()) };
    }
}

/// Fill a tensor on the GPU with zeros.
fn clear(tensor: &mut DynTensor) -> Result<()> {
    let bytes = size(tensor)?;
    let _context = Context::enter()?;
    // SAFETY: the tensor has so many bytes.
    unsafe { driver::memset_d8_sync(tensor.data_ptr_mut() as u64, 0, bytes) }?;
    Ok(driver::ctx::synchronize()?)
}

/// In bytes.
fn size(tensor: &DynTensor) -> Result<usize> {
    let elements: i64 = tensor.shape().iter().product();
    Ok(tensor.data_type().byte_size(elements as usize).ok_or("a tensor of no known size")?)
}

/// How many GPUs there are.
pub fn devices() -> Result<i32> {
    driver::init()?;
    Ok(driver::device::get_count()?)
}

/// The first GPU's primary context, the current one of this thread. It is ONNX Runtime's too.
struct Context(cudarc::driver::sys::CUdevice);

impl Context {
    fn enter() -> Result<Context> {
        driver::init()?;
        let device = driver::device::get(0)?;
        // SAFETY: the device exists; the context is released once.
        unsafe {
            let context = driver::primary_ctx::retain(device)?;
            let entered = Context(device);
            driver::ctx::set_current(context)?;
            Ok(entered)
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: it was retained by `enter`.
        let _ = unsafe { driver::primary_ctx::release(self.0) };
    }
}
