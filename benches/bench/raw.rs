//! Passes of plain ONNX Runtime, with nothing of CoS around them: a session, tensors that stay where they are, and on a GPU a graph
//! that ONNX Runtime captures and replays by itself. Nothing is copied between passes, so this is the least that a pass can take.

use std::ffi::CString;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cos::model::{Cancel, Model, environment};
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
    let mut plain = Plain::new(file, cuda, &context)?;
    let mut costs = Vec::new();
    for (index, width) in WIDTHS.into_iter().enumerate() {
        ours(width, WARM_UP)?;
        plain.run(index, WARM_UP)?;
        let started = Instant::now();
        plain.run(index, 1)?;
        let times = (turn / started.elapsed().as_secs_f64()).clamp(5.0, 100.0) as usize;
        let (mut own, mut raw) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            let started = Instant::now();
            plain.run(index, times)?;
            raw.push(1e3 * started.elapsed().as_secs_f64() / times as f64);
            let started = Instant::now();
            ours(width, times)?;
            own.push(1e3 * started.elapsed().as_secs_f64() / times as f64);
        }
        costs.push(RawCost {
            model: model.name().into(),
            width,
            context: CONTEXT,
            ours: Spread::of(own),
            raw: Spread::of(raw),
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
    _tensors: Vec<DynTensor>,
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
            let mut tensors = Vec::new();
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
                match ty {
                    TensorElementType::Int64 => fill(&mut value, &numbers, cuda)?,
                    TensorElementType::Int32 => {
                        let numbers: Vec<i32> = numbers.iter().map(|&number| number as i32).collect();
                        fill(&mut value, &numbers, cuda)?;
                    }
                    other => return Err(format!("the input {} is of type {other}", input.name()).into()),
                }
                bind(&binding, input.name(), &value, true)?;
                tensors.push(value);
            }
            let logits = session.outputs().iter().find(|output| output.name() == "logits").ok_or("it has no logits")?;
            let ValueType::Tensor { ty, shape, .. } = logits.dtype() else { return Err("logits are no tensor".into()) };
            let value = tensor(*ty, &[1, width as i64, shape[2]])?;
            bind(&binding, logits.name(), &value, false)?;
            tensors.push(value);
            let mut options = RunOptions::new()?;
            if cuda {
                options.set("gpu_graph_id", width.to_string())?;
            }
            passes.push(Pass { binding, options, _tensors: tensors });
        }
        Ok(Plain { passes, _cache: cache, _allocator: allocator, session })
    }

    /// Run passes of the width of this index, and wait for the last one.
    fn run(&mut self, index: usize, times: usize) -> Result<()> {
        let Pass { binding, options, .. } = &self.passes[index];
        for _ in 0..times {
            // SAFETY: all are alive, and used by nobody else. `Session::run_binding` looks for outputs that it has bound itself.
            succeed(unsafe {
                (ort::api().RunWithBinding)(self.session.ptr().cast_mut(), options.ptr(), binding.ptr().cast_mut())
            })?;
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

fn fill<T: Copy>(tensor: &mut DynTensor, numbers: &[T], cuda: bool) -> Result<()> {
    let to = tensor.data_ptr_mut();
    if cuda {
        let _context = Context::enter()?;
        // SAFETY: the tensor has room for just these numbers.
        unsafe { driver::memcpy_htod_sync(to as u64, numbers) }?;
        driver::ctx::synchronize()?;
    } else {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(numbers.as_ptr(), to.cast(), numbers.len()) };
    }
    Ok(())
}

/// Fill a tensor on the GPU with zeros.
fn clear(tensor: &mut DynTensor) -> Result<()> {
    let elements: i64 = tensor.shape().iter().product();
    let bytes = tensor.data_type().byte_size(elements as usize).ok_or("a tensor of no known size")?;
    let _context = Context::enter()?;
    // SAFETY: the tensor has so many bytes.
    unsafe { driver::memset_d8_sync(tensor.data_ptr_mut() as u64, 0, bytes) }?;
    Ok(driver::ctx::synchronize()?)
}

/// Bytes of the first GPU's memory that nobody has taken.
pub fn device_memory_free() -> Result<u64> {
    let _context = Context::enter()?;
    Ok(driver::mem_get_info()?.0 as u64)
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
