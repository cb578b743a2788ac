//! Passes of plain ONNX Runtime without CoS: a session, tensors that stay in place, and on a GPU a CUDA graph that ONNX
//! Runtime captures and launches itself.
//!
//! Without copies, this is the least time that a pass can take. With copies between passes, which decoding needs, it is
//! the time of a careful loop by hand.

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
/// CoS and plain ONNX Runtime take so many turns.
const TURNS: usize = 5;
/// Passes that are not timed. The first one is run plainly, the second is captured.
const WARM_UP: usize = 20;

/// Time passes of a model and of a plain session with the same file. Each turn takes `turn` seconds.
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
    let _gpu = cuda.then(Context::enter).transpose()?; // outlives the pinned memory
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

/// A plain session, and a pass for each width. All passes share the cache.
struct Plain {
    passes: Vec<Pass>,
    _cache: Cache,
    /// Declared after the tensors that it allocated, and before its session, so that it is dropped between them.
    _allocator: Allocator,
    session: Session,
}

struct Pass {
    binding: IoBinding,
    options: RunOptions,
    /// On a GPU: the inputs, which are copied before a pass, and the logits, which are copied after it.
    inputs: Vec<Copied>,
    logits: Option<Copied>,
    _tensors: Vec<DynTensor>,
}

/// A tensor on the GPU, and pinned host memory of the same size.
struct Copied {
    host: Pinned,
    device: u64,
}

/// The cache of a plain session: tensors with the names of their past and present.
type Cache = Vec<(DynTensor, String, String)>;

const PAST: &str = "past_key_values.";

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
        let tensors = Tensors { allocator: &allocator, cuda };
        let cache = tensors.cache(&session, file, capacity)?;
        let passes = WIDTHS.map(|width| tensors.pass(&session, &cache, capacity, context, width));
        let passes = passes.into_iter().collect::<Result<_>>()?;
        Ok(Plain { passes, _cache: cache, _allocator: allocator, session })
    }

    /// Run passes of one width, and wait for the last one. With `copies`, inputs are copied before each pass, and
    /// logits after it.
    fn run(&mut self, index: usize, times: usize, copies: bool) -> Result<()> {
        let Pass { binding, options, inputs, logits, .. } = &mut self.passes[index];
        for _ in 0..times {
            if copies {
                inputs.iter_mut().try_for_each(Copied::upload)?;
            }
            // SAFETY: all three are alive, and nothing else uses them. `Session::run_binding` accepts only its own
            // outputs.
            succeed(unsafe {
                (ort::api().RunWithBinding)(self.session.ptr().cast_mut(), options.ptr(), binding.ptr().cast_mut())
            })?;
            if let (true, Some(logits)) = (copies, logits.as_mut()) {
                // SAFETY: both are equally long, and the pass has ended.
                unsafe { driver::memcpy_dtoh_sync(logits.host.bytes(), logits.device) }?;
            }
        }
        Ok(binding.synchronize_outputs()?)
    }
}

/// Allocates tensors on the host or on a GPU.
struct Tensors<'a> {
    allocator: &'a Allocator,
    cuda: bool,
}

impl Tensors<'_> {
    fn zeroed(&self, element: TensorElementType, shape: &[i64]) -> Result<DynTensor> {
        let mut tensor = DynTensor::new(self.allocator, element, shape.to_vec())?;
        if self.cuda {
            clear(&mut tensor)?;
        }
        Ok(tensor)
    }

    fn cache(&self, session: &Session, file: &Path, capacity: usize) -> Result<Cache> {
        // The graph does not declare the size of a head.
        let settings: serde_json::Value =
            serde_json::from_slice(&std::fs::read(file.with_file_name("genai_config.json"))?)?;
        let head = settings["model"]["decoder"]["head_size"].as_i64().ok_or("genai_config.json has no head_size")?;
        let mut cache = Vec::new();
        for input in session.inputs().iter().filter(|input| input.name().starts_with(PAST)) {
            let ValueType::Tensor { ty, shape, .. } = input.dtype() else { continue };
            let tensor = self.zeroed(*ty, &[1, shape[1], capacity as i64, head])?;
            cache.push((tensor, input.name().to_string(), input.name().replace(PAST, "present.")));
        }
        if cache.is_empty() {
            return Err("its cache is not that of an export of onnxruntime-genai's builder".into());
        }
        Ok(cache)
    }

    fn pass(&self, session: &Session, cache: &Cache, capacity: usize, context: &[i32], width: usize) -> Result<Pass> {
        let total = context.len() + width;
        let binding = session.create_binding()?;
        for (value, past, present) in cache {
            bind(&binding, past, value, true)?;
            bind(&binding, present, value, false)?;
        }
        let (mut tensors, mut inputs) = (Vec::new(), Vec::new());
        for input in session.inputs().iter().filter(|input| !input.name().starts_with(PAST)) {
            let ValueType::Tensor { ty, .. } = input.dtype() else { continue };
            let numbers: Vec<i64> = match input.name() {
                "input_ids" => context[..width].iter().map(|&token| i64::from(token)).collect(),
                // A CUDA graph fixes its length, so it is as long as the cache.
                "attention_mask" if self.cuda => (0..capacity).map(|place| i64::from(place < total)).collect(),
                "attention_mask" => vec![1; total],
                "position_ids" => (context.len() as i64..total as i64).collect(),
                other => return Err(format!("the input {other} is not known").into()),
            };
            let mut value = self.zeroed(*ty, &[1, numbers.len() as i64])?;
            let bytes: Vec<u8> = match ty {
                TensorElementType::Int64 => numbers.iter().flat_map(|number| number.to_ne_bytes()).collect(),
                TensorElementType::Int32 => numbers.iter().flat_map(|&number| (number as i32).to_ne_bytes()).collect(),
                other => return Err(format!("the input {} is of type {other}", input.name()).into()),
            };
            if self.cuda {
                let mut host = Pinned::new(bytes.len())?;
                host.bytes().copy_from_slice(&bytes);
                inputs.push(Copied { host, device: value.data_ptr_mut() as u64 });
            } else {
                // SAFETY: the tensor has exactly this many bytes.
                unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), value.data_ptr_mut().cast(), bytes.len()) };
            }
            bind(&binding, input.name(), &value, true)?;
            tensors.push(value);
        }
        let logits = session.outputs().iter().find(|output| output.name() == "logits").ok_or("it has no logits")?;
        let ValueType::Tensor { ty, shape, .. } = logits.dtype() else { return Err("logits are no tensor".into()) };
        let mut value = self.zeroed(*ty, &[1, width as i64, shape[2]])?;
        bind(&binding, logits.name(), &value, false)?;
        let mut options = RunOptions::new()?;
        let mut logits = None;
        if self.cuda {
            logits = Some(Copied { host: Pinned::new(size(&value)?)?, device: value.data_ptr_mut() as u64 });
            options.set("gpu_graph_id", width.to_string())?;
        }
        tensors.push(value);
        inputs.iter_mut().try_for_each(Copied::upload)?;
        Ok(Pass { binding, options, inputs, logits, _tensors: tensors })
    }
}

/// Bind a tensor in place. `IoBinding::bind_input` may copy it, and `bind_output` does not accept a tensor twice.
fn bind(binding: &IoBinding, name: &str, value: &DynTensor, input: bool) -> Result<()> {
    let name = CString::new(name)?;
    let api = ort::api();
    let bind = if input { api.BindInput } else { api.BindOutput };
    // SAFETY: both are alive. The binding takes its own reference to the tensor.
    succeed(unsafe { bind(binding.ptr().cast_mut(), name.as_ptr(), value.ptr()) })
}

fn succeed(status: sys::OrtStatusPtr) -> Result<()> {
    // SAFETY: the status comes from a call that has just returned, and is not used again.
    Ok(unsafe { ort::Error::result_from_status(status) }?)
}

impl Copied {
    /// Copy the host memory to the GPU, and wait for it.
    fn upload(&mut self) -> Result<()> {
        // SAFETY: both are equally long, and no pass is running.
        Ok(unsafe { driver::memcpy_htod_sync(self.device, self.host.bytes()) }?)
    }
}

/// Pinned memory of the host. A context must be current as long as it lives.
struct Pinned {
    at: *mut u8,
    length: usize,
}

impl Pinned {
    fn new(length: usize) -> Result<Pinned> {
        // SAFETY: the memory is initialised before it is read.
        let at = unsafe { driver::malloc_host(length, 0) }?.cast::<u8>();
        // SAFETY: the allocation is that long.
        unsafe { at.write_bytes(0, length) };
        Ok(Pinned { at, length })
    }

    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: `new` allocated and initialised the memory, and `self` is its only owner.
        unsafe { std::slice::from_raw_parts_mut(self.at, self.length) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        let _ = unsafe { driver::free_host(self.at.cast()) };
    }
}

/// Set all bytes of a tensor on the GPU to zero.
fn clear(tensor: &mut DynTensor) -> Result<()> {
    let bytes = size(tensor)?;
    let _context = Context::enter()?;
    // SAFETY: the tensor has that many bytes.
    unsafe { driver::memset_d8_sync(tensor.data_ptr_mut() as u64, 0, bytes) }?;
    Ok(driver::ctx::synchronize()?)
}

/// The size of a tensor in bytes.
fn size(tensor: &DynTensor) -> Result<usize> {
    let elements: i64 = tensor.shape().iter().product();
    Ok(tensor.data_type().byte_size(elements as usize).ok_or("the size of a tensor is not known")?)
}

/// The number of GPUs.
pub fn devices() -> Result<i32> {
    driver::init()?;
    Ok(driver::device::get_count()?)
}

/// The primary context of the first GPU, current on this thread. ONNX Runtime uses it too.
struct Context(cudarc::driver::sys::CUdevice);

impl Context {
    fn enter() -> Result<Context> {
        driver::init()?;
        let device = driver::device::get(0)?;
        // SAFETY: the device exists. `drop` releases the context once.
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
        // SAFETY: `enter` retained it.
        let _ = unsafe { driver::primary_ctx::release(self.0) };
    }
}
