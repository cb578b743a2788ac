//! Calls ONNX Runtime's C API where `ort` would copy, lock, or lacks the call: tensors over buffers of ours, passes
//! over them, and which provider runs an operator.

use std::collections::BTreeSet;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;

use ort::memory::MemoryInfo;
use ort::session::{RunOptions, Session};
use ort::value::TensorElementType;
use ort::{AsPointer, sys};

use crate::error::{Error, Result};

/// A tensor over a buffer that the caller owns.
pub struct Tensor(ptr::NonNull<sys::OrtValue>);

impl Tensor {
    /// A tensor over a whole buffer, or its beginning.
    pub fn over<T>(
        memory: &MemoryInfo,
        data: &mut [T],
        element: TensorElementType,
        shape: &[i64],
    ) -> ort::Result<Self> {
        // SAFETY: the buffer has that many bytes.
        unsafe { Self::at(memory, data.as_mut_ptr().cast(), size_of_val(data), element, shape) }
    }

    /// A tensor at an address in the memory that `memory` describes.
    ///
    /// # Safety
    /// The memory must have `bytes` bytes at `address`, and keep them until the tensor is dropped and unbound.
    pub unsafe fn at(
        memory: &MemoryInfo,
        address: *mut c_void,
        bytes: usize,
        element: TensorElementType,
        shape: &[i64],
    ) -> ort::Result<Self> {
        let mut value = ptr::null_mut();
        // SAFETY: the buffer outlives every pass that uses it. Bindings are renewed before a buffer moves, and
        // `OnnxSequence` drops its binding before its buffers. ONNX Runtime checks sizes.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                address,
                bytes,
                shape.as_ptr(),
                shape.len(),
                element.into(),
                &mut value,
            )
        };
        succeed(status)?;
        ptr::NonNull::new(value).map(Tensor).ok_or_else(|| ort::Error::new("ONNX Runtime created no tensor"))
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        // SAFETY: ONNX Runtime created it, and it is released once. Bindings hold their own reference.
        unsafe { (ort::api().ReleaseValue)(self.0.as_ptr()) }
    }
}

/// The types of the operators that a session runs with `provider`. The session must have been created with
/// [`RECORD_PROVIDERS`].
pub fn operators_by(session: &Session, provider: &CStr) -> ort::Result<BTreeSet<String>> {
    let api = ort::api();
    let mut operators = BTreeSet::new();
    // SAFETY: the session owns what the calls return, and outlives this block. Strings end with a zero.
    unsafe {
        let (mut parts, mut count, mut name) = (ptr::null(), 0, ptr::null());
        succeed((api.Session_GetEpGraphAssignmentInfo)(session.ptr(), &mut parts, &mut count))?;
        for index in 0..count {
            let part = *parts.add(index);
            succeed((api.EpAssignedSubgraph_GetEpName)(part, &mut name))?;
            if CStr::from_ptr(name) != provider {
                continue;
            }
            let (mut nodes, mut count) = (ptr::null(), 0);
            succeed((api.EpAssignedSubgraph_GetNodes)(part, &mut nodes, &mut count))?;
            for index in 0..count {
                succeed((api.EpAssignedNode_GetOperatorType)(*nodes.add(index), &mut name))?;
                operators.insert(CStr::from_ptr(name).to_string_lossy().into_owned());
            }
        }
    }
    Ok(operators)
}

/// The session option that records which provider runs each operator.
pub const RECORD_PROVIDERS: &str = "session.record_ep_graph_assignment_info";

/// The inputs and outputs of one sequence's passes.
pub struct Binding {
    binding: ptr::NonNull<sys::OrtIoBinding>,
    session: Arc<ort::session::SharedSessionInner>,
}

// SAFETY: all uses need `&mut`, so one thread at a time uses a binding.
unsafe impl Send for Binding {}

impl Binding {
    /// A binding without inputs and outputs.
    pub fn new(session: &Session) -> Result<Self> {
        let session = session.inner();
        let mut binding = ptr::null_mut();
        // SAFETY: the session is alive, and creating a binding does not change it.
        let status = unsafe { (ort::api().CreateIoBinding)(session.ptr().cast_mut(), &mut binding) };
        succeed(status).map_err(|error| Error::Runtime(error.to_string()))?;
        let binding =
            ptr::NonNull::new(binding).ok_or_else(|| Error::Runtime("ONNX Runtime created no binding".into()))?;
        Ok(Binding { binding, session })
    }

    /// Let passes read an input from a tensor.
    pub fn input(&mut self, name: &CStr, value: &Tensor) -> ort::Result<()> {
        // SAFETY: all three are alive. The binding takes its own reference to the value.
        succeed(unsafe { (ort::api().BindInput)(self.binding.as_ptr(), name.as_ptr(), value.0.as_ptr()) })
    }

    /// Let passes write an output to a tensor.
    pub fn output(&mut self, name: &CStr, value: &Tensor) -> ort::Result<()> {
        // SAFETY: as above.
        succeed(unsafe { (ort::api().BindOutput)(self.binding.as_ptr(), name.as_ptr(), value.0.as_ptr()) })
    }

    /// Let ONNX Runtime allocate an output in the given kind of memory.
    pub fn output_anywhere(&mut self, name: &CStr, memory: &MemoryInfo) -> ort::Result<()> {
        // SAFETY: as above.
        succeed(unsafe { (ort::api().BindOutputToDevice)(self.binding.as_ptr(), name.as_ptr(), memory.ptr()) })
    }

    /// The shape of the output that was bound last. A pass must have run.
    pub fn last_output_shape(&self) -> ort::Result<Vec<i64>> {
        let allocator = ort::memory::Allocator::default();
        let (mut values, mut count) = (ptr::null_mut(), 0);
        // SAFETY: all pointers are valid. The caller frees the array and the values in it.
        unsafe {
            let api = ort::api();
            let allocator = allocator.ptr().cast_mut();
            succeed((api.GetBoundOutputValues)(self.binding.as_ptr(), allocator, &mut values, &mut count))?;
            let mut shape = Vec::new();
            let mut result = Err(ort::Error::new("no output was bound"));
            for index in 0..count {
                let value = Tensor(
                    ptr::NonNull::new(*values.add(index)).ok_or_else(|| ort::Error::new("an output has no value"))?,
                );
                result = shape_of(&value, &mut shape);
            }
            if !values.is_null() {
                succeed((api.AllocatorFree)(allocator, values.cast()))?;
            }
            result.map(|()| shape)
        }
    }

    /// Run a pass.
    pub fn run(&mut self, options: &RunOptions) -> ort::Result<()> {
        // SAFETY: ONNX Runtime allows concurrent runs of one session. No other thread uses the binding, and the options
        // allow another thread to terminate the run.
        succeed(unsafe {
            (ort::api().RunWithBinding)(self.session.ptr().cast_mut(), options.ptr(), self.binding.as_ptr())
        })
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        // SAFETY: ONNX Runtime created it, and it is released once, before its session.
        unsafe { (ort::api().ReleaseIoBinding)(self.binding.as_ptr()) }
    }
}

/// The dimensions of a tensor.
fn shape_of(value: &Tensor, shape: &mut Vec<i64>) -> ort::Result<()> {
    let mut info = ptr::null_mut();
    // SAFETY: the value is alive, and the info is released once.
    unsafe {
        let api = ort::api();
        succeed((api.GetTensorTypeAndShape)(value.0.as_ptr(), &mut info))?;
        let mut rank = 0;
        let mut result = succeed((api.GetDimensionsCount)(info, &mut rank));
        if result.is_ok() {
            shape.resize(rank, 0);
            result = succeed((api.GetDimensions)(info, shape.as_mut_ptr(), rank));
        }
        (api.ReleaseTensorTypeAndShapeInfo)(info);
        result
    }
}

fn succeed(status: sys::OrtStatusPtr) -> ort::Result<()> {
    // SAFETY: the status comes from a call that has just returned, and is not used again.
    unsafe { ort::Error::result_from_status(status) }
}
