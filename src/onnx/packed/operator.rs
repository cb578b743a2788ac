//! `cos.PackedAttention`, the operator of ONNX Runtime that attends in a packed pass on the CPU.
//!
//! | input | shape | |
//! | --- | --- | --- |
//! | 0 query | `[1, T, heads · head]` | with keys and values behind it if inputs 1 and 2 are absent |
//! | 1 key, 2 value | `[1, T, kv_heads · head]` | optional |
//! | 3 cos_cache, 4 sin_cache | `[positions, angles]` | needed if `do_rotary` is 1 |
//! | 5 head_sink | `[heads]` | optional |
//! | 6 table | `[1]`, int64 | the address of a [`PassTable`] that outlives the pass |
//!
//! The output is `[1, T, heads · head]`. Attributes are those of GroupQueryAttention, and `layer`.

use std::cell::RefCell;
use std::ffi::{c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};

use ort::sys::{
    ONNXTensorElementDataType as ElementType, OrtApi, OrtCustomOp,
    OrtCustomOpInputOutputCharacteristic as Characteristic, OrtKernelContext, OrtKernelInfo, OrtMemType, OrtStatusPtr,
};

use super::attention::{Attention, Inputs, LayerWork, Strided};
use super::custom::{self, Attributes, integer, status, succeed, tensor};
use super::table::PassTable;
use crate::export::pack::ATTENTION;

/// The input with the table's address.
const TABLE: usize = 6;

/// The operator for the processor.
pub static OPERATOR: OrtCustomOp = OrtCustomOp {
    GetName: Some(name),
    GetExecutionProviderType: Some(provider),
    GetInputType: Some(input_type),
    GetInputTypeCount: Some(input_count),
    GetOutputType: Some(output_type),
    GetOutputTypeCount: Some(output_count),
    KernelDestroy: Some(destroy),
    GetInputCharacteristic: Some(input_characteristic),
    GetInputMemoryType: Some(input_memory),
    CreateKernelV2: Some(create),
    KernelComputeV2: Some(compute),
    ..custom::PLAIN_OPERATOR
};

/// What ONNX Runtime keeps of a node. Several threads may use it at the same time.
struct Kernel {
    attention: Attention,
    layer: usize,
}

impl Kernel {
    fn new(info: *const OrtKernelInfo) -> Result<Self, String> {
        let of = Attributes(info);
        let (heads, kv_heads) = of.heads()?;
        let attention = Attention {
            heads,
            kv_heads,
            scale: of.number(c"scale").unwrap_or(0.0),
            softcap: of.number(c"softcap").unwrap_or(0.0).max(0.0),
            window: of.window()?,
            rotates: of.flag(c"do_rotary"),
            interleaved: of.flag(c"rotary_interleaved"),
            smooth: of.flag(c"smooth_softmax"),
        };
        Ok(Kernel { attention, layer: of.needed(c"layer", 0)? })
    }

    /// # Safety
    /// `context` must be of a call of this kernel, and the table's address that of a valid [`PassTable`].
    unsafe fn compute(&self, context: *mut OrtKernelContext) -> Result<(), String> {
        // SAFETY: the inputs of a call are valid until it returns.
        let input = |index| unsafe { floats(context, index) };
        // SAFETY: as above.
        let table = unsafe { integer(context, TABLE) }? as usize as *const PassTable;
        // SAFETY: the caller says that the address is valid, and null is refused.
        let table = unsafe { table.as_ref() }.ok_or("the address of the table is 0")?;
        let query = input(0)?.ok_or("the query is missing")?;
        let &[1, tokens, width] = query.shape else {
            return Err(format!("the query has the shape {:?}, not [1, tokens, heads]", query.shape));
        };
        if tokens as usize != table.tokens {
            return Err(format!("the query has {tokens} tokens, the pass {}", table.tokens));
        }
        let inputs = self.inputs(&query, input(1)?, input(2)?, [input(3)?, input(4)?, input(5)?])?;
        let heads =
            if inputs.packed { self.attention.heads + 2 * self.attention.kv_heads } else { self.attention.heads };
        let size = width as usize / heads;
        // The layer's own size is compared by `Attention::run`, by the length of the output.
        if size * heads != width as usize || size == 0 || !size.is_multiple_of(8) {
            return Err(format!("the query has {width} numbers for {heads} heads; a head has a multiple of 8"));
        }
        let shape = [1, tokens, (self.attention.heads * size) as i64];
        // SAFETY: the context is valid, and the output has as many numbers as its shape says.
        let out = unsafe { output(context, &shape) }?;
        let spread = |count: usize, each: &(dyn Fn(usize) + Sync)| parallel(context, count, each);
        let inputs = inputs.of(self, size)?;
        WORK.with(|work| {
            let mut own = work.take();
            // SAFETY: the caller answers for the table.
            let result = unsafe { self.attention.run(table, self.layer, &inputs, out, &mut own, &spread) };
            work.replace(own);
            result
        })
    }

    /// Sort the inputs, and compare their shapes.
    fn inputs<'a>(
        &self,
        query: &Floats<'a>,
        key: Option<Floats<'a>>,
        value: Option<Floats<'a>>,
        [cos, sin, sinks]: [Option<Floats<'a>>; 3],
    ) -> Result<Sorted<'a>, String> {
        let packed = key.is_none() && value.is_none();
        let angles = match (self.attention.rotates, cos, sin) {
            (false, ..) => None,
            (true, Some(cos), Some(sin)) if cos.shape == sin.shape && cos.shape.len() == 2 && cos.shape[1] > 0 => {
                Some((cos.data, sin.data, cos.shape[1] as usize))
            }
            (true, Some(cos), Some(sin)) => {
                return Err(format!("cos_cache and sin_cache have the shapes {:?} and {:?}", cos.shape, sin.shape));
            }
            _ => return Err("do_rotary is 1, but cos_cache or sin_cache is missing".into()),
        };
        if let Some(sinks) = sinks.as_ref().filter(|sinks| sinks.data.len() != self.attention.heads) {
            return Err(format!("head_sink has the shape {:?} for {} heads", sinks.shape, self.attention.heads));
        }
        let (key, value) = match (packed, key, value) {
            (true, ..) => (query.data, query.data),
            (false, Some(key), Some(value)) if key.shape == value.shape && key.shape[..2] == query.shape[..2] => {
                (key.data, value.data)
            }
            (false, key, value) => {
                let shape = |input: Option<Floats<'a>>| input.map(|input| input.shape);
                return Err(format!(
                    "query, key and value have the shapes {:?}, {:?} and {:?}",
                    query.shape,
                    shape(key),
                    shape(value)
                ));
            }
        };
        Ok(Sorted { packed, query: query.data, key, value, angles, sinks: sinks.map(|sinks| sinks.data) })
    }
}

/// The inputs, before the size of a head is known.
struct Sorted<'a> {
    packed: bool,
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    angles: Option<(&'a [f32], &'a [f32], usize)>,
    sinks: Option<&'a [f32]>,
}

impl<'a> Sorted<'a> {
    fn of(self, kernel: &Kernel, size: usize) -> Result<Inputs<'a>, String> {
        let (heads, kv_heads) = (kernel.attention.heads, kernel.attention.kv_heads);
        let (query_stride, stride) = match self.packed {
            true => ((heads + 2 * kv_heads) * size, (heads + 2 * kv_heads) * size),
            false => (heads * size, kv_heads * size),
        };
        if self.key.len() * query_stride != self.query.len() * stride {
            return Err(format!("keys and values are not of {kv_heads} heads of {size} for each token"));
        }
        if let Some((_, _, angles)) = self.angles.filter(|&(_, _, angles)| 2 * angles > size) {
            return Err(format!("cos_cache has {angles} angles, too many for heads of {size}"));
        }
        let part =
            |data: &'a [f32], offset: usize| if self.packed { data.get(offset..).unwrap_or_default() } else { data };
        Ok(Inputs {
            query: Strided { data: self.query, stride: query_stride },
            key: Strided { data: part(self.key, heads * size), stride },
            value: Strided { data: part(self.value, (heads + kv_heads) * size), stride },
            angles: self.angles,
            sinks: self.sinks,
        })
    }
}

thread_local! {
    /// The work of a layer, kept for its memory.
    static WORK: RefCell<LayerWork> = RefCell::default();
}

/// A tensor of an input.
struct Floats<'a> {
    data: &'a [f32],
    shape: &'a [i64],
}

/// An input, or nothing if it is absent.
///
/// # Safety
/// The context must be valid for `'a`.
unsafe fn floats<'a>(context: *const OrtKernelContext, index: usize) -> Result<Option<Floats<'a>>, String> {
    // SAFETY: as for this function.
    let tensor = unsafe { tensor(context, index, ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) }?;
    Ok(tensor.map(|(data, shape)| {
        let len = shape.iter().product::<i64>() as usize;
        // SAFETY: the tensor has as many numbers as its shape says. An empty one may have no address.
        let data = if len == 0 { &[][..] } else { unsafe { std::slice::from_raw_parts(data.cast(), len) } };
        Floats { data, shape }
    }))
}

/// The output, which is made with the shape.
unsafe fn output<'a>(context: *mut OrtKernelContext, shape: &[i64]) -> Result<&'a mut [f32], String> {
    let api = ort::api();
    let failed = |error: ort::Error| error.to_string();
    let (mut value, mut data) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: the caller says that the context is valid. The output lives as long, and nothing else uses it.
    unsafe {
        succeed((api.KernelContext_GetOutput)(context, 0, shape.as_ptr(), shape.len(), &mut value)).map_err(failed)?;
        succeed((api.GetTensorMutableData)(value, &mut data)).map_err(failed)?;
        let len = shape.iter().product::<i64>() as usize;
        Ok(if len == 0 { &mut [] } else { std::slice::from_raw_parts_mut(data.cast(), len) })
    }
}

/// Call `each` for all numbers below `count`, on the threads of ONNX Runtime's pool and this one.
fn parallel(context: *const OrtKernelContext, count: usize, each: &(dyn Fn(usize) + Sync)) -> Result<(), String> {
    struct Task<'a> {
        each: &'a (dyn Fn(usize) + Sync),
        panicked: AtomicBool,
    }
    unsafe extern "C" fn one(task: *mut c_void, index: usize) {
        // SAFETY: it is the task below, which lives until all calls have returned.
        let task = unsafe { &*task.cast::<Task>() };
        if catch_unwind(AssertUnwindSafe(|| (task.each)(index))).is_err() {
            task.panicked.store(true, Ordering::Relaxed);
        }
    }
    let mut task = Task { each, panicked: AtomicBool::new(false) };
    // SAFETY: the call returns when all calls of `one` have.
    let done = unsafe { (ort::api().KernelContext_ParallelFor)(context, one, count, 0, (&raw mut task).cast()) };
    succeed(done).map_err(|error| error.to_string())?;
    if task.panicked.into_inner() { Err("an internal error".into()) } else { Ok(()) }
}

unsafe extern "system" fn create(
    _: *const OrtCustomOp,
    _: *const OrtApi,
    info: *const OrtKernelInfo,
    kernel: *mut *mut c_void,
) -> OrtStatusPtr {
    status(
        ATTENTION,
        catch_unwind(|| {
            let made = Box::new(Kernel::new(info)?);
            // SAFETY: ONNX Runtime gives the place for the kernel, and frees it with `destroy`.
            unsafe { kernel.write(Box::into_raw(made).cast()) };
            Ok(())
        }),
    )
}

unsafe extern "system" fn compute(kernel: *mut c_void, context: *mut OrtKernelContext) -> OrtStatusPtr {
    // SAFETY: it is a kernel that `create` made, and is only read. Whoever runs the session answers for the table.
    status(ATTENTION, catch_unwind(|| unsafe { (*kernel.cast::<Kernel>()).compute(context) }))
}

unsafe extern "system" fn destroy(kernel: *mut c_void) {
    // SAFETY: `create` made it, and ONNX Runtime destroys it once.
    drop(unsafe { Box::from_raw(kernel.cast::<Kernel>()) });
}

unsafe extern "system" fn name(_: *const OrtCustomOp) -> *const c_char {
    ATTENTION.as_ptr()
}

unsafe extern "system" fn provider(_: *const OrtCustomOp) -> *const c_char {
    c"CPUExecutionProvider".as_ptr()
}

unsafe extern "system" fn input_count(_: *const OrtCustomOp) -> usize {
    TABLE + 1
}

unsafe extern "system" fn input_type(_: *const OrtCustomOp, index: usize) -> ElementType {
    match index {
        TABLE => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        _ => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
    }
}

unsafe extern "system" fn input_characteristic(_: *const OrtCustomOp, index: usize) -> Characteristic {
    match index {
        0 | TABLE => Characteristic::INPUT_OUTPUT_REQUIRED,
        _ => Characteristic::INPUT_OUTPUT_OPTIONAL,
    }
}

unsafe extern "system" fn input_memory(_: *const OrtCustomOp, _: usize) -> OrtMemType {
    OrtMemType::OrtMemTypeDefault
}

unsafe extern "system" fn output_count(_: *const OrtCustomOp) -> usize {
    1
}

unsafe extern "system" fn output_type(_: *const OrtCustomOp, _: usize) -> ElementType {
    ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT
}
