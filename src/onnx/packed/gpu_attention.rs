//! `cos.PagedAttention`, the operator of ONNX Runtime that attends in a packed pass on a GPU.
//!
//! It has the inputs, outputs and attributes of `com.microsoft.PagedAttention`, and one input more: the address of a
//! [`GpuPass`]. If no sequence has many new tokens, it runs the kernel of `kernels/attention.cu`. That is one launch
//! where ONNX Runtime makes five or more, which take most of the time of a pass over few tokens. Prompts are left to
//! ONNX Runtime's operator, which uses the tensor cores.

use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::Arc;

use ort::sys::{
    ONNXTensorElementDataType as ElementType, OrtApi, OrtCustomOp,
    OrtCustomOpInputOutputCharacteristic as Characteristic, OrtKernelContext, OrtKernelInfo, OrtMemType, OrtOp,
    OrtOpAttr, OrtOpAttrType, OrtStatusPtr, OrtValue,
};

use super::custom::{self, Attributes, input, integer, status, succeed, tensor};
use crate::cuda::{Device, DeviceBuffer, argument};
use crate::export::paged::{OURS, OURS_OF_BFLOAT16};
use crate::export::parts::LayerShape;

const INT32: ElementType = ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;

/// Inputs of `com.microsoft.PagedAttention`.
const INPUTS: usize = 17;
const OUTPUTS: usize = 3;
/// The input with the bounds of the pass, which is on the host.
const BOUNDS: usize = 16;
/// The input with the address of the pass, which is on the host.
const PASS: usize = 17;

/// Threads of a block. `attention.cu` holds the same number, and the next two.
const TEAM: usize = 128;
/// The most numbers of a head.
const LONGEST: usize = 256;
/// A split has about so many positions at least.
const LEAST: usize = 128;
/// Numbers that a thread reads at once.
const WIDE: usize = 8;

/// Our kernel runs if each head of keys has at most this many rows: new tokens of a sequence, times the heads of
/// queries that share it. With more, tensor cores are faster.
const MOST_ROWS: usize = 32;

/// Positions are split among blocks until there are about so many, two for each processor of a large GPU.
const BLOCKS: usize = 264;

/// What the operators of all layers need in a pass. It must outlive graphs of the pass.
pub struct GpuPass {
    device: Arc<Device>,
    /// What splits have found.
    partials: DeviceBuffer,
    /// Splits that are done.
    arrived: DeviceBuffer,
    /// An upper bound of the new tokens of a sequence.
    pub widest: usize,
    /// An upper bound of all tokens of a sequence.
    pub longest: usize,
}

impl GpuPass {
    /// For a model of these layers.
    pub fn new(device: &Arc<Device>, layers: &[LayerShape]) -> ort::Result<Self> {
        device.attention()?;
        let head = layers.iter().map(|layer| layer.head_size).max().unwrap_or(0);
        Ok(GpuPass {
            device: device.clone(),
            partials: DeviceBuffer::zeroed(device, BLOCKS * MOST_OF_BLOCK * (head + 2) * size_of::<f32>())?,
            arrived: DeviceBuffer::zeroed(device, BLOCKS * size_of::<i32>())?,
            widest: 1,
            longest: 1,
        })
    }
}

/// The most rows that a block of the kernel takes.
const MOST_OF_BLOCK: usize = 8;

/// The parameters of the kernel, as `attention.cu` has them. Addresses are on the device.
#[repr(C)]
#[derive(Debug)]
struct Parameters {
    query: u64,
    key: u64,
    value: u64,
    keys: u64,
    values: u64,
    ends: u64,
    pasts: u64,
    blocks: u64,
    cosines: u64,
    sines: u64,
    sinks: u64,
    query_norm: u64,
    key_norm: u64,
    out: u64,
    partials: u64,
    arrived: u64,
    query_stride: i32,
    key_stride: i32,
    heads: i32,
    kv_heads: i32,
    head: i32,
    angles: i32,
    interleaved: i32,
    window: i32,
    columns: i32,
    block: i32,
    scale: f32,
    softcap: f32,
    epsilon: f32,
}

/// What ONNX Runtime keeps of a node.
struct Kernel {
    /// ONNX Runtime's operator.
    theirs: *mut OrtOp,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    softcap: f32,
    epsilon: f32,
    /// Not positive: all positions.
    window: i32,
    rotates: bool,
    interleaved: bool,
    is_bfloat16: bool,
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: `create_op` made it, and it is released once.
        unsafe { (ort::api().ReleaseOp)(self.theirs) }
    }
}

/// A tensor of an input or output on the device.
#[derive(Clone, Copy)]
struct There<'a> {
    place: u64,
    shape: &'a [i64],
}

impl Kernel {
    fn new(info: *const OrtKernelInfo, is_bfloat16: bool) -> Result<Self, String> {
        let of = Attributes(info);
        let (heads, kv_heads) = of.heads()?;
        Ok(Kernel {
            theirs: create_op(info, element(is_bfloat16)).map_err(|error| error.to_string())?,
            heads,
            kv_heads,
            scale: of.number(c"scale").unwrap_or(0.0),
            softcap: of.number(c"softcap").unwrap_or(0.0).max(0.0),
            epsilon: of.number(c"qk_norm_epsilon").unwrap_or(1e-6),
            window: i32::try_from(of.window()?).unwrap_or(0),
            rotates: of.flag(c"do_rotary"),
            interleaved: of.flag(c"rotary_interleaved"),
            is_bfloat16,
        })
    }

    /// # Safety
    /// `context` must be of a call of this kernel, and the address that of a valid [`GpuPass`].
    unsafe fn compute(&self, context: *mut OrtKernelContext) -> Result<(), String> {
        // SAFETY: the caller says that the address is valid, and null is refused.
        let pass = unsafe { (integer(context, PASS)? as usize as *const GpuPass).as_ref() };
        let pass = pass.ok_or("the address of the pass is 0")?;
        let there = |index: usize, element| {
            // SAFETY: the inputs of a call are valid until it returns.
            let found = unsafe { tensor(context, index, element) }?;
            Ok::<_, String>(found.map(|(data, shape)| There { place: data as u64, shape }))
        };
        let needed = |index: usize, element| there(index, element)?.ok_or_else(|| format!("input {index} is missing"));
        let number = element(self.is_bfloat16);
        let (query, keys) = (needed(0, number)?, needed(3, number)?);
        let (&[tokens, width], &[_, block, kv_heads, head]) = (query.shape, keys.shape) else {
            return Err(format!("the query has the shape {:?}, the keys {:?}", query.shape, keys.shape));
        };
        if kv_heads != self.kv_heads as i64 {
            return Err(format!("the cache has {kv_heads} heads, kv_num_heads is {}", self.kv_heads));
        }
        let shape = [tokens, self.heads as i64 * head];
        // SAFETY: the context is valid, and outputs live as long.
        let (out, outputs) = unsafe { outputs(context, &shape, keys.shape) }?;
        let (head, block, rows) = (head as usize, block as usize, pass.widest * (self.heads / self.kv_heads));
        let is_ours = rows <= MOST_ROWS && head.is_multiple_of(WIDE) && head <= LONGEST && block.is_power_of_two();
        if !is_ours {
            // SAFETY: as above.
            return unsafe { self.invoke(context, outputs) };
        }
        let [key, value, stride] =
            self.keys_and_values(query.place, [width as usize, head], [there(1, number)?, there(2, number)?])?;
        let table = needed(7, INT32)?;
        let [cosines, sines, angles] =
            rotation(self.rotates, [pass.longest, head], [there(8, number)?, there(9, number)?])?;
        let place = |index: usize, numbers: usize| match there(index, number)? {
            Some(found) if found.shape.iter().product::<i64>() == numbers as i64 => Ok(found.place),
            Some(found) => Err(format!("input {index} has the shape {:?}, not [{numbers}]", found.shape)),
            None => Ok(0),
        };
        let parameters = Parameters {
            query: query.place,
            key,
            value,
            keys: keys.place,
            values: needed(4, number)?.place,
            ends: needed(5, INT32)?.place,
            pasts: needed(6, INT32)?.place,
            blocks: table.place,
            cosines,
            sines,
            sinks: place(11, self.heads)?,
            query_norm: place(12, head)?,
            key_norm: place(13, head)?,
            out,
            partials: pass.partials.place(),
            arrived: pass.arrived.place(),
            query_stride: width as i32,
            key_stride: stride as i32,
            heads: self.heads as i32,
            kv_heads: self.kv_heads as i32,
            head: head as i32,
            angles: angles as i32,
            interleaved: i32::from(self.interleaved),
            window: self.window,
            columns: table.shape.get(1).map_or(0, |&columns| columns as i32),
            block: block.ilog2() as i32,
            scale: if self.scale == 0.0 { (head as f32).sqrt().recip() } else { self.scale },
            softcap: self.softcap,
            epsilon: self.epsilon,
        };
        self.launch(pass, parameters, rows, table.shape[0] as usize).map_err(|error| error.to_string())
    }

    /// Where the keys and values of the first token are, and how far those of the next are from them, in numbers. They
    /// are inputs of their own, or stand behind the queries.
    fn keys_and_values(
        &self,
        query: u64,
        [width, head]: [usize; 2],
        given: [Option<There<'_>>; 2],
    ) -> Result<[u64; 3], String> {
        let (queries, keys) = (self.heads * head, self.kv_heads * head);
        let (expected, found) = match given {
            [Some(key), Some(value)] => (queries, [key.place, value.place, keys as u64]),
            _ => (queries + 2 * keys, {
                let behind = |numbers: usize| query + 2 * numbers as u64;
                [behind(queries), behind(queries + keys), width as u64]
            }),
        };
        if width == expected {
            Ok(found)
        } else {
            Err(format!("the query has {width} numbers for each token, not {expected}"))
        }
    }

    fn launch(&self, pass: &GpuPass, mut parameters: Parameters, rows: usize, sequences: usize) -> ort::Result<()> {
        let (of_block, kernel) = pass.device.attention()?.of(rows, self.is_bfloat16);
        let parts = rows.div_ceil(of_block) * self.kv_heads;
        let splits = (BLOCKS / (parts * sequences)).min(pass.longest.div_ceil(LEAST)).max(1);
        let grid = (parts as u32, sequences as u32, splits as u32);
        // SAFETY: ONNX Runtime calls this in a pass. The parameters are those of the kernel; their tensors stay until
        // the pass is done, and those of a captured pass as long as its graph. There are at most `BLOCKS` blocks if
        // there are several splits, as many as `partials` and `arrived` have room for.
        unsafe { pass.device.launch(kernel, grid, TEAM as u32, &mut [argument(&mut parameters)]) }
    }

    /// Leave it to ONNX Runtime's operator.
    ///
    /// # Safety
    /// `context` must be of a call of this kernel, and the outputs its own.
    unsafe fn invoke(&self, context: *mut OrtKernelContext, outputs: [*mut OrtValue; OUTPUTS]) -> Result<(), String> {
        let mut inputs = [ptr::null(); INPUTS];
        for (index, place) in inputs.iter_mut().enumerate() {
            // SAFETY: the caller says that the context is valid.
            *place = unsafe { input(context, index) }?;
        }
        // SAFETY: as above; absent inputs are null.
        let done = unsafe {
            let (inputs, outputs) = (inputs.as_ptr(), outputs.as_ptr());
            (ort::api().InvokeOp)(context, self.theirs, inputs, INPUTS as i32, outputs, OUTPUTS as i32)
        };
        succeed(done).map_err(|error| error.to_string())
    }
}

/// Where the cosines and sines of the angles are, and how many angles a position has, for sequences of up to `longest`
/// tokens; zeroes without rotation. The kernel reads them by position, so all positions must be there.
fn rotation(rotates: bool, [longest, head]: [usize; 2], given: [Option<There<'_>>; 2]) -> Result<[u64; 3], String> {
    if !rotates {
        return Ok([0; 3]);
    }
    let [Some(cosines), Some(sines)] = given else {
        return Err("do_rotary is 1, but cos_cache or sin_cache is missing".into());
    };
    match (cosines.shape, sines.shape) {
        (&[positions, angles], other) if other == [positions, angles] && 2 * angles as usize <= head => {
            if (positions as usize) < longest {
                return Err(format!("cos_cache has {positions} positions, a sequence up to {longest} tokens"));
            }
            Ok([cosines.place, sines.place, angles as u64])
        }
        (shape, other) => {
            Err(format!("cos_cache and sin_cache have the shapes {shape:?} and {other:?}, a head {head} numbers"))
        }
    }
}

/// The type of numbers.
const fn element(is_bfloat16: bool) -> ElementType {
    if is_bfloat16 {
        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16
    } else {
        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16
    }
}

/// ONNX Runtime's operator with the attributes of the node.
fn create_op(info: *const OrtKernelInfo, number: ElementType) -> ort::Result<*mut OrtOp> {
    const INTEGERS: [&CStr; 5] =
        [c"num_heads", c"kv_num_heads", c"local_window_size", c"do_rotary", c"rotary_interleaved"];
    const NUMBERS: [&CStr; 3] = [c"scale", c"softcap", c"qk_norm_epsilon"];
    let (api, of) = (ort::api(), Attributes(info));
    let mut attributes: Vec<*mut OrtOpAttr> = Vec::new();
    let mut add = |name: &CStr, data: *const c_void, kind| {
        let mut attribute = ptr::null_mut();
        // SAFETY: the name is a C string, and the data one number, which the call copies.
        let made = succeed(unsafe { (api.CreateOpAttr)(name.as_ptr(), data, 1, kind, &mut attribute) });
        made.map(|()| attributes.push(attribute))
    };
    let mut added = Ok(());
    for name in INTEGERS {
        if let Some(value) = of.integer(name) {
            added = added.and_then(|()| add(name, (&raw const value).cast(), OrtOpAttrType::ORT_OP_ATTR_INT));
        }
    }
    for name in NUMBERS {
        if let Some(value) = of.number(name) {
            added = added.and_then(|()| add(name, (&raw const value).cast(), OrtOpAttrType::ORT_OP_ATTR_FLOAT));
        }
    }
    let mut names = [c"T", c"T_CACHE", c"T_KV_SCALE", c"S"].map(CStr::as_ptr);
    let types = [
        number,
        number,
        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
    ];
    let mut made = ptr::null_mut();
    let created = added.and_then(|()| {
        // SAFETY: the information is valid while the kernel is created; all lists have the lengths that are given.
        succeed(unsafe {
            (api.CreateOp)(
                info,
                c"PagedAttention".as_ptr(),
                c"com.microsoft".as_ptr(),
                1,
                names.as_mut_ptr(),
                types.as_ptr(),
                types.len() as i32,
                attributes.as_ptr().cast(),
                attributes.len() as i32,
                INPUTS as i32,
                OUTPUTS as i32,
                &mut made,
            )
        })
    });
    // SAFETY: each was made above, and is released once.
    attributes.into_iter().for_each(|attribute| unsafe { (api.ReleaseOpAttr)(attribute) });
    created.map(|()| made)
}

/// The place of the first output, and all outputs, which have these shapes.
///
/// # Safety
/// The context must be valid.
unsafe fn outputs(
    context: *mut OrtKernelContext,
    attended: &[i64],
    cache: &[i64],
) -> Result<(u64, [*mut OrtValue; OUTPUTS]), String> {
    let api = ort::api();
    let failed = |error: ort::Error| error.to_string();
    let (mut values, mut data) = ([ptr::null_mut(); OUTPUTS], ptr::null_mut());
    for (index, (value, shape)) in values.iter_mut().zip([attended, cache, cache]).enumerate() {
        // SAFETY: the caller says that the context is valid.
        succeed(unsafe { (api.KernelContext_GetOutput)(context, index, shape.as_ptr(), shape.len(), value) })
            .map_err(failed)?;
    }
    // SAFETY: the output is a tensor.
    succeed(unsafe { (api.GetTensorMutableData)(values[0], &mut data) }).map_err(failed)?;
    Ok((data as u64, values))
}

/// The operators for float16 and for bfloat16.
pub static OPERATORS: [&OrtCustomOp; 2] = [&operator::<false>(), &operator::<true>()];

const fn operator<const BFLOAT16: bool>() -> OrtCustomOp {
    OrtCustomOp {
        GetName: Some(name::<BFLOAT16>),
        GetExecutionProviderType: Some(provider),
        GetInputType: Some(input_type::<BFLOAT16>),
        GetInputTypeCount: Some(input_count),
        GetOutputType: Some(output_type::<BFLOAT16>),
        GetOutputTypeCount: Some(output_count),
        KernelDestroy: Some(destroy),
        GetInputCharacteristic: Some(input_characteristic),
        GetInputMemoryType: Some(input_memory),
        CreateKernelV2: Some(create::<BFLOAT16>),
        KernelComputeV2: Some(compute::<BFLOAT16>),
        ..custom::PLAIN_OPERATOR
    }
}

const fn name_of(is_bfloat16: bool) -> &'static CStr {
    if is_bfloat16 { OURS_OF_BFLOAT16 } else { OURS }
}

unsafe extern "system" fn name<const BFLOAT16: bool>(_: *const OrtCustomOp) -> *const c_char {
    name_of(BFLOAT16).as_ptr()
}

unsafe extern "system" fn create<const BFLOAT16: bool>(
    _: *const OrtCustomOp,
    _: *const OrtApi,
    info: *const OrtKernelInfo,
    kernel: *mut *mut c_void,
) -> OrtStatusPtr {
    let created = catch_unwind(|| {
        let made = Box::new(Kernel::new(info, BFLOAT16)?);
        // SAFETY: ONNX Runtime gives the place for the kernel, and frees it with `destroy`.
        unsafe { kernel.write(Box::into_raw(made).cast()) };
        Ok(())
    });
    status(name_of(BFLOAT16), created)
}

unsafe extern "system" fn compute<const BFLOAT16: bool>(
    kernel: *mut c_void,
    context: *mut OrtKernelContext,
) -> OrtStatusPtr {
    // SAFETY: it is a kernel that `create` made, and is only read. Whoever runs the session answers for the pass.
    let computed = catch_unwind(AssertUnwindSafe(|| unsafe { (*kernel.cast::<Kernel>()).compute(context) }));
    status(name_of(BFLOAT16), computed)
}

unsafe extern "system" fn destroy(kernel: *mut c_void) {
    // SAFETY: `create` made it, and ONNX Runtime destroys it once.
    drop(unsafe { Box::from_raw(kernel.cast::<Kernel>()) });
}

unsafe extern "system" fn provider(_: *const OrtCustomOp) -> *const c_char {
    c"CUDAExecutionProvider".as_ptr()
}

unsafe extern "system" fn input_count(_: *const OrtCustomOp) -> usize {
    PASS + 1
}

unsafe extern "system" fn input_type<const BFLOAT16: bool>(_: *const OrtCustomOp, index: usize) -> ElementType {
    match index {
        5..=7 | 10 | BOUNDS => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32,
        14 | 15 => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT,
        PASS => ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64,
        _ => element(BFLOAT16),
    }
}

unsafe extern "system" fn input_characteristic(_: *const OrtCustomOp, index: usize) -> Characteristic {
    match index {
        0 | 3..=7 | BOUNDS | PASS => Characteristic::INPUT_OUTPUT_REQUIRED,
        _ => Characteristic::INPUT_OUTPUT_OPTIONAL,
    }
}

unsafe extern "system" fn input_memory(_: *const OrtCustomOp, index: usize) -> OrtMemType {
    if matches!(index, BOUNDS | PASS) { OrtMemType::OrtMemTypeCPUInput } else { OrtMemType::OrtMemTypeDefault }
}

unsafe extern "system" fn output_count(_: *const OrtCustomOp) -> usize {
    OUTPUTS
}

unsafe extern "system" fn output_type<const BFLOAT16: bool>(_: *const OrtCustomOp, _: usize) -> ElementType {
    element(BFLOAT16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The PTX names its source, so that a change of the source without `scripts/make-ptx` fails here.
    #[test]
    fn the_ptx_is_of_the_source() {
        let source = include_str!("../../../kernels/attention.cu");
        let step = |mark: u64, &byte: &u8| (mark ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let mark = source.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
        let ptx = include_str!("../../../kernels/attention.ptx");
        assert!(ptx.starts_with(&format!("// attention.cu {mark:016x}\n")), "run scripts/make-ptx");
    }

    #[test]
    fn no_position_is_read_behind_the_angles() {
        let of = |longest: usize, shape: [&'static [i64]; 2]| {
            let [cosines, sines] = [0, 1].map(|index| Some(There { place: 64 + index as u64, shape: shape[index] }));
            rotation(true, [longest, 16], [cosines, sines])
        };
        assert_eq!(of(32, [&[32, 8], &[32, 8]]), Ok([64, 65, 8]));
        assert!(of(33, [&[32, 8], &[32, 8]]).unwrap_err().contains("32 positions, a sequence up to 33"));
        assert!(of(32, [&[32, 8], &[31, 8]]).unwrap_err().contains("shapes"));
        assert!(of(32, [&[32, 9], &[32, 9]]).unwrap_err().contains("head"));
        assert!(rotation(true, [1, 16], [None, None]).unwrap_err().contains("missing"));
        assert_eq!(rotation(false, [1, 16], [None, None]), Ok([0; 3]));
    }

    #[test]
    fn sizes_are_those_of_the_kernel() {
        let source = include_str!("../../../kernels/attention.cu");
        for (name, value) in [("TEAM", TEAM), ("LONGEST", LONGEST), ("LEAST", LEAST), ("WIDE", WIDE)] {
            assert!(source.contains(&format!("const int {name} = {value};")), "{name}");
        }
        assert_eq!(size_of::<Parameters>(), 16 * 8 + 13 * 4 + 4);
    }
}
