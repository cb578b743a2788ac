//! What our operators for ONNX Runtime have in common: what they read from nodes and calls.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ptr;

use ort::sys::{
    ONNXTensorElementDataType as ElementType, OrtCustomOp, OrtCustomOpInputOutputCharacteristic as Characteristic,
    OrtErrorCode, OrtKernelContext, OrtKernelInfo, OrtStatusPtr, OrtValue,
};

/// The outcome of a call of ONNX Runtime.
pub fn succeed(status: OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the status comes from ONNX Runtime and is used once.
    unsafe { ort::Error::result_from_status(status) }
}

/// A status that says what went wrong with an operator, or none.
pub fn status(operator: &CStr, result: std::thread::Result<Result<(), String>>) -> OrtStatusPtr {
    let message = match result {
        Ok(Ok(())) => return OrtStatusPtr(ptr::null_mut()),
        Ok(Err(message)) => format!("{}: {message}", operator.to_string_lossy()),
        Err(_) => format!("{}: an internal error", operator.to_string_lossy()),
    };
    let message = CString::new(message).unwrap_or_default();
    // SAFETY: the message is a C string, which the call copies.
    unsafe { (ort::api().CreateStatus)(OrtErrorCode::ORT_INVALID_ARGUMENT, message.as_ptr()) }
}

/// The attributes of a node, while its kernel is created.
#[derive(Clone, Copy)]
pub struct Attributes(pub *const OrtKernelInfo);

impl Attributes {
    /// An integer; `None` if the node lacks it.
    pub fn integer(self, name: &CStr) -> Option<i64> {
        let mut value = 0;
        // SAFETY: the information is valid while the kernel is created, and the name is a C string.
        let found = succeed(unsafe { (ort::api().KernelInfoGetAttribute_int64)(self.0, name.as_ptr(), &mut value) });
        found.ok().map(|()| value)
    }

    /// A number; `None` if the node lacks it.
    pub fn number(self, name: &CStr) -> Option<f32> {
        let mut value = 0.0;
        // SAFETY: as above.
        let found = succeed(unsafe { (ort::api().KernelInfoGetAttribute_float)(self.0, name.as_ptr(), &mut value) });
        found.ok().map(|()| value)
    }

    /// An integer that the node must have, which is at least `least`.
    pub fn needed(self, name: &CStr, least: i64) -> Result<usize, String> {
        match self.integer(name) {
            Some(value) if value >= least => Ok(value as usize),
            Some(value) => Err(format!("the attribute {} is {value}", name.to_string_lossy())),
            None => Err(format!("the attribute {} is missing", name.to_string_lossy())),
        }
    }

    /// Whether an integer is 1.
    pub fn flag(self, name: &CStr) -> bool {
        self.integer(name) == Some(1)
    }

    /// Heads of queries, and of keys and values.
    pub fn heads(self) -> Result<(usize, usize), String> {
        let (heads, kv_heads) = (self.needed(c"num_heads", 1)?, self.needed(c"kv_num_heads", 1)?);
        if !heads.is_multiple_of(kv_heads) {
            return Err(format!("num_heads is {heads}, which is not a multiple of kv_num_heads, {kv_heads}"));
        }
        Ok((heads, kv_heads))
    }

    /// How many positions a token sees, itself included.
    pub fn window(self) -> Result<usize, String> {
        match self.integer(c"local_window_size") {
            None | Some(-1) => Ok(usize::MAX),
            Some(window) if window > 0 => Ok(window as usize),
            Some(window) => Err(format!("the attribute local_window_size is {window}")),
        }
    }
}

/// An input of a call; null if it is absent.
///
/// # Safety
/// The context must be of a call that runs.
pub unsafe fn input(context: *const OrtKernelContext, index: usize) -> Result<*const OrtValue, String> {
    let (api, mut count, mut value) = (ort::api(), 0, ptr::null());
    // SAFETY: the caller says that the context is valid.
    unsafe {
        succeed((api.KernelContext_GetInputCount)(context, &mut count)).map_err(|error| error.to_string())?;
        if index < count {
            succeed((api.KernelContext_GetInput)(context, index, &mut value)).map_err(|error| error.to_string())?;
        }
    }
    Ok(value)
}

/// The content and shape of an input; `None` if it is absent.
///
/// # Safety
/// The context must be valid for `'a`.
pub unsafe fn tensor<'a>(
    context: *const OrtKernelContext,
    index: usize,
    wanted: ElementType,
) -> Result<Option<(*const c_void, &'a [i64])>, String> {
    let api = ort::api();
    let failed = |error: ort::Error| error.to_string();
    let (mut kind, mut shape, mut rank) = (ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, ptr::null(), 0);
    let mut data = ptr::null();
    // SAFETY: the caller says that the context is valid. Values, shapes and contents of inputs live as long as it does.
    unsafe {
        let value = input(context, index)?;
        if value.is_null() {
            return Ok(None);
        }
        succeed((api.GetTensorElementTypeAndShapeDataReference)(value, &mut kind, &mut shape, &mut rank))
            .map_err(failed)?;
        if kind != wanted {
            return Err(format!("input {index} has the element type {kind:?}"));
        }
        succeed((api.GetTensorData)(value, &mut data)).map_err(failed)?;
        let shape = if rank == 0 { &[][..] } else { std::slice::from_raw_parts(shape, rank) };
        Ok(Some((data, shape)))
    }
}

/// The one integer of an input, such as an address.
///
/// # Safety
/// The context must be of a call that runs, and the input on the host.
pub unsafe fn integer(context: *const OrtKernelContext, index: usize) -> Result<i64, String> {
    // SAFETY: as for this function.
    match unsafe { tensor(context, index, ElementType::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64) }? {
        // SAFETY: the tensor has one number.
        Some((data, shape)) if shape.iter().product::<i64>() == 1 => Ok(unsafe { data.cast::<i64>().read() }),
        _ => Err("the table is not one number".into()),
    }
}

/// An operator of version 1 without variadic inputs. What is `None` here is its own, or is not used.
pub const PLAIN_OPERATOR: OrtCustomOp = OrtCustomOp {
    version: ort::sys::ORT_API_VERSION,
    CreateKernel: None,
    GetName: None,
    GetExecutionProviderType: None,
    GetInputType: None,
    GetInputTypeCount: None,
    GetOutputType: None,
    GetOutputTypeCount: None,
    KernelCompute: None,
    KernelDestroy: None,
    GetInputCharacteristic: None,
    GetOutputCharacteristic: Some(required),
    GetInputMemoryType: None,
    GetVariadicInputMinArity: Some(no_arity),
    GetVariadicInputHomogeneity: Some(no_arity),
    GetVariadicOutputMinArity: Some(no_arity),
    GetVariadicOutputHomogeneity: Some(no_arity),
    CreateKernelV2: None,
    KernelComputeV2: None,
    InferOutputShapeFn: None,
    GetStartVersion: Some(version),
    GetEndVersion: Some(version),
    GetMayInplace: None,
    ReleaseMayInplace: None,
    GetAliasMap: None,
    ReleaseAliasMap: None,
};

unsafe extern "system" fn required(_: *const OrtCustomOp, _: usize) -> Characteristic {
    Characteristic::INPUT_OUTPUT_REQUIRED
}

unsafe extern "system" fn no_arity(_: *const OrtCustomOp) -> c_int {
    0
}

unsafe extern "system" fn version(_: *const OrtCustomOp) -> c_int {
    1
}
