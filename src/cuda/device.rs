//! A GPU of one model, and the kernels on it.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{DriverError, result, sys};
use once_cell::sync::OnceCell;
use parking_lot::Mutex;

use super::runner::Runner;
use crate::error::{Error, Result};

/// A GPU as one model uses it: the primary context of the device, two streams, a thread, and kernels.
#[derive(Debug)]
pub struct Device {
    id: i32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    /// The stream of passes, which may be captured.
    pub(super) stream: sys::CUstream,
    /// The stream of allocations. A stream that is being captured takes none.
    side: sys::CUstream,
    /// Held while work is put on the stream.
    pub(super) queue: Mutex<()>,
    /// The thread that calls ONNX Runtime for the model.
    runner: Runner,
    /// The kernels, or why the driver refuses them.
    pub(super) kernels: Result<Kernels, String>,
    /// The kernels of attention, which only packed models need.
    attention: OnceCell<AttendKernels>,
}

/// The functions of `kernels/attention.cu`: by the rows of a block, and for float16 and bfloat16.
#[derive(Debug)]
pub struct AttendKernels([(usize, [sys::CUfunction; 2]); 3]);

impl AttendKernels {
    /// Let the driver compile them for the current context.
    fn load() -> Result<Self, DriverError> {
        const SOURCE: &str = concat!(include_str!("../../kernels/attention.ptx"), "\0");
        // SAFETY: the source ends with a zero. The module lives as long as the context.
        unsafe {
            let module = result::module::load_data(SOURCE.as_ptr().cast())?;
            let function = |name: &std::ffi::CStr| result::module::get_function(module, name.into());
            Ok(AttendKernels([
                (1, [function(c"attend_f16_1")?, function(c"attend_bf16_1")?]),
                (4, [function(c"attend_f16_4")?, function(c"attend_bf16_4")?]),
                (8, [function(c"attend_f16_8")?, function(c"attend_bf16_8")?]),
            ]))
        }
    }

    /// The one for this many rows, and how many a block takes.
    pub fn of(&self, rows: usize, is_bfloat16: bool) -> (usize, sys::CUfunction) {
        let (most, kernels) = self.0.iter().find(|(most, _)| rows <= *most).unwrap_or(&self.0[2]);
        (*most, kernels[usize::from(is_bfloat16)])
    }
}

/// The functions of `kernels/`.
#[derive(Debug)]
pub struct Kernels {
    /// Copies between the host and the GPU.
    pub(super) transfer: sys::CUfunction,
    /// Copies rows of logits into the ring, and reduces each part of a row.
    pub keep: sys::CUfunction,
    /// Combines the parts of a row.
    pub summarise: sys::CUfunction,
    /// Finds the tokens that filters keep.
    pub filter: sys::CUfunction,
    /// Draws a token.
    pub draw: sys::CUfunction,
    /// Draws tokens from the last row of each sequence of a pass.
    pub draw_last: sys::CUfunction,
    /// Sums rows with weights.
    pub weigh: sys::CUfunction,
    /// Changes scores of these sums.
    pub change: sys::CUfunction,
    /// Drops tokens of these sums by their probabilities.
    pub drop: sys::CUfunction,
    /// Sums the residual distribution of a rejected proposal.
    pub residual: sys::CUfunction,
    /// Draws a token from the residual distribution.
    pub pick: sys::CUfunction,
}

impl Kernels {
    /// Let the driver compile them for the current context.
    fn load() -> Result<Self, DriverError> {
        const SOURCE: &str = concat!(include_str!("../../kernels/rows.ptx"), "\0");
        // SAFETY: the source ends with a zero. The module lives as long as the context.
        unsafe {
            let module = result::module::load_data(SOURCE.as_ptr().cast())?;
            let function = |name: &std::ffi::CStr| result::module::get_function(module, name.into());
            Ok(Kernels {
                transfer: function(c"transfer")?,
                keep: function(c"keep")?,
                summarise: function(c"summarise")?,
                filter: function(c"filter")?,
                draw: function(c"draw")?,
                draw_last: function(c"draw_last")?,
                weigh: function(c"weigh")?,
                change: function(c"change")?,
                drop: function(c"drop")?,
                residual: function(c"residual")?,
                pick: function(c"pick")?,
            })
        }
    }
}

// SAFETY: any thread may use the driver's handles once the context is current there.
unsafe impl Send for Device {}
// SAFETY: as above. `queue` guards the stream, whose work must not be mixed.
unsafe impl Sync for Device {}

impl Device {
    /// Open the GPU with CUDA's number `id`.
    ///
    /// # Errors
    /// `Runtime` if there is no driver or the GPU cannot be used, `Config` if no GPU has this number.
    pub fn open(id: i32) -> Result<Arc<Self>> {
        // SAFETY: the call only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Runtime(
                "there is no NVIDIA driver (libcuda.so.1 was not found; in a container, run it with the NVIDIA \
                 container toolkit)"
                    .into(),
            ));
        }
        let failed = |error: DriverError| Error::Runtime(format!("GPU {id}: {}", describe(error)));
        result::init().map_err(failed)?;
        let count = result::device::get_count().map_err(failed)?;
        if id >= count {
            return Err(Error::Config(format!(
                "device_id is {id}, but the GPUs that CUDA sees here are 0 to {}",
                count - 1
            )));
        }
        let device = result::device::get(id).map_err(failed)?;
        let runner = Runner::start(&format!("cos-gpu-{id}"))
            .map_err(|error| Error::Runtime(format!("GPU {id}: cannot start a thread for its passes: {error}")))?;
        // SAFETY: the device exists. The context is retained until `drop`, and owns the streams.
        unsafe {
            let context = result::primary_ctx::retain(device).map_err(failed)?;
            let streams = result::ctx::set_current(context).and_then(|()| {
                let create = || result::stream::create(result::stream::StreamKind::NonBlocking);
                Ok((create()?, create()?))
            });
            match streams {
                Ok((stream, side)) => {
                    let kernels = Kernels::load().map_err(describe);
                    let queue = Mutex::new(());
                    let attention = OnceCell::new();
                    Ok(Arc::new(Device { id, device, context, stream, side, queue, runner, kernels, attention }))
                }
                Err(error) => {
                    _ = result::primary_ctx::release(device);
                    Err(failed(error))
                }
            }
        }
    }

    /// CUDA's number of it.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Bytes that are free.
    pub fn free_memory(&self) -> ort::Result<usize> {
        self.enter()?;
        done(result::mem_get_info()).map(|(free, _)| free)
    }

    /// Whether ONNX Runtime uses cuDNN's attention kernels on it by default.
    pub fn prefers_cudnn(&self) -> bool {
        const FIRST: i32 = 9; // Hopper
        let major = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        // SAFETY: the device exists.
        unsafe { result::device::get_attribute(self.device, major) }.is_ok_and(|major| major >= FIRST)
    }

    /// The reason why the kernels cannot be used, and so no rows can stay on it. `None` if they can.
    pub fn no_kernels(&self) -> Option<&str> {
        self.kernels.as_ref().err().map(String::as_str)
    }

    /// The kernels for rows of logits.
    pub fn kernels(&self) -> ort::Result<&Kernels> {
        self.kernels.as_ref().map_err(ort::Error::new)
    }

    /// The kernels of attention.
    pub fn attention(&self) -> ort::Result<&AttendKernels> {
        self.enter()?;
        self.attention.get_or_try_init(|| done(AttendKernels::load()))
    }

    /// Run a kernel on a grid of blocks of `threads` threads, on the stream of passes.
    ///
    /// # Safety
    /// The caller must have the [`Device::queue`], or be called by ONNX Runtime in a pass. The arguments must match the
    /// kernel, and everything they point to must stay until it is done.
    pub unsafe fn launch(
        &self,
        kernel: sys::CUfunction,
        grid: (u32, u32, u32),
        threads: u32,
        arguments: &mut [*mut c_void],
    ) -> ort::Result<()> {
        // SAFETY: the caller promises it.
        done(unsafe { result::launch_kernel(kernel, grid, (threads, 1, 1), 0, self.stream, arguments) })
    }

    /// The stream of passes, for ONNX Runtime.
    pub fn stream(&self) -> *mut () {
        self.stream.cast()
    }

    /// Run `work`, which calls ONNX Runtime, on the thread that makes all such calls for the model.
    ///
    /// ONNX Runtime keeps handles of cuBLAS and cuDNN for each thread, and cuDNN's plans for attention. They are freed
    /// when the thread ends. A captured pass runs kernels of these plans, so it must not outlive the thread that
    /// captured it.
    pub fn by_runner<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.runner.run(work)
    }

    /// Make the context current on this thread.
    pub(super) fn enter(&self) -> ort::Result<()> {
        // SAFETY: the context is retained.
        done(unsafe { result::ctx::set_current(self.context) })
    }

    /// Do work on the side stream, and wait for it.
    pub(super) fn aside(&self, work: impl FnOnce(sys::CUstream) -> Result<(), DriverError>) -> ort::Result<()> {
        self.enter()?;
        // SAFETY: the stream is alive.
        done(work(self.side).and_then(|()| unsafe { result::stream::synchronize(self.side) }))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything that uses the streams holds a reference to the device, so nothing uses them any more.
        unsafe {
            _ = result::ctx::set_current(self.context);
            _ = result::stream::synchronize(self.stream);
            _ = result::stream::destroy(self.stream);
            _ = result::stream::destroy(self.side);
            _ = result::primary_ctx::release(self.device);
        }
    }
}

/// The result of a call to the driver, with a message.
pub(super) fn done<T>(result: Result<T, DriverError>) -> ort::Result<T> {
    result.map_err(|error| ort::Error::new(describe(error)))
}

fn describe(error: DriverError) -> String {
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "the GPU is out of memory; end sessions, shorten contexts, or use smaller models".into()
        }
        sys::CUresult::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver sees no GPU".into(),
        sys::CUresult::CUDA_ERROR_NOT_INITIALIZED => {
            "CUDA does not start; a child of fork() cannot use GPUs if its parent has; open engines after fork() only"
                .into()
        }
        _ => match error.error_string() {
            Ok(text) => format!("CUDA: {}", text.to_string_lossy()),
            Err(_) => format!("CUDA: {error:?}"),
        },
    }
}
