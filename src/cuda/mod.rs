//! NVIDIA GPUs, by the driver's interface: memory, copies, and graphs of passes.
//!
//! ONNX Runtime runs the passes of a model on a stream of ours, where copies of inputs and logits go in order with them. The first
//! use of a width is a plain run, the second is captured as a graph, which later ones launch without ONNX Runtime. What
//! allocates and clears has another stream, because one that is captured takes nothing else.

mod runner;

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::{DriverError, result, sys};
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::error::{Error, Result};
use runner::Runner;

/// While a stream is captured, CUDA lets nobody wait for its whole device, as ONNX Runtime does where it loads a model, lets one go or
/// uses something for the first time: the capture fails, and so does what that thread runs next, which takes the error for its own. So
/// who captures holds both of these alone. A load may take long, and is not waited for.
static LOADS: RwLock<()> = RwLock::new(());
static RUNS: RwLock<()> = RwLock::new(());

/// How long a capture waits for passes that run.
const PATIENCE: Duration = Duration::from_millis(5);

/// To be held while ONNX Runtime loads a model or lets one go.
pub fn loading() -> RwLockReadGuard<'static, ()> {
    LOADS.read()
}

/// To be held while ONNX Runtime runs a pass that is not captured. Whoever takes a queue too takes that first.
pub fn running() -> RwLockReadGuard<'static, ()> {
    RUNS.read()
}

/// To be held while a pass is captured. `None` where that cannot be now.
pub fn alone() -> Option<(RwLockWriteGuard<'static, ()>, RwLockWriteGuard<'static, ()>)> {
    Some((LOADS.try_write()?, RUNS.try_write_for(PATIENCE)?))
}

/// A GPU as one model uses it.
#[derive(Debug)]
pub struct Device {
    id: i32,
    device: sys::CUdevice,
    context: sys::CUcontext,
    stream: sys::CUstream,
    side: sys::CUstream,
    /// Held while work is put on the stream.
    queue: Mutex<()>,
    /// The one thread that calls ONNX Runtime for the model.
    runner: Runner,
    /// Or why the driver does not take them.
    kernels: Result<Kernels, String>,
}

/// Up to so many bytes are copied by a kernel, which begins some microseconds before a copy by the driver does.
const FEW_BYTES: usize = 256 << 10;

/// What kernels read at once, in bytes; buffers have room for whole ones.
pub const WORD: usize = 16;

/// Threads of a block of most kernels.
pub const THREADS: usize = 256;

/// The functions of `kernels/rows.cu`.
#[derive(Debug)]
pub struct Kernels {
    /// Copies between the host and the GPU.
    transfer: sys::CUfunction,
    /// Keeps rows of logits, and looks at their parts.
    pub keep: sys::CUfunction,
    /// Joins what is known of the parts.
    pub summarise: sys::CUfunction,
    /// Finds what filters keep.
    pub filter: sys::CUfunction,
    /// Draws a token.
    pub draw: sys::CUfunction,
    /// Adds rows up.
    pub weigh: sys::CUfunction,
    /// Adds up what a proposal leaves of a target.
    pub residual: sys::CUfunction,
    /// Draws a token from that.
    pub pick: sys::CUfunction,
}

impl Kernels {
    /// Have the driver compile them, for the context that is current.
    fn load() -> Result<Self, DriverError> {
        const SOURCE: &str = concat!(include_str!("../../kernels/rows.ptx"), "\0");
        // SAFETY: the source ends with a zero; the module stays as long as the context.
        unsafe {
            let module = result::module::load_data(SOURCE.as_ptr().cast())?;
            let function = |name: &std::ffi::CStr| result::module::get_function(module, name.into());
            Ok(Kernels {
                transfer: function(c"transfer")?,
                keep: function(c"keep")?,
                summarise: function(c"summarise")?,
                filter: function(c"filter")?,
                draw: function(c"draw")?,
                weigh: function(c"weigh")?,
                residual: function(c"residual")?,
                pick: function(c"pick")?,
            })
        }
    }
}

// SAFETY: the driver's handles may be used by any thread, once the context is current there.
unsafe impl Send for Device {}
// SAFETY: as above; what must not be mixed is guarded by `queue`.
unsafe impl Sync for Device {}

impl Device {
    /// The GPU of this number.
    pub fn open(id: i32) -> Result<Arc<Self>> {
        // SAFETY: this only looks for the library.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Runtime(
                "there is no NVIDIA driver (libcuda.so.1 was not found; in a container, run it with the \
                                       NVIDIA container toolkit)"
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
            .map_err(|error| Error::Runtime(format!("GPU {id}: no thread could be started for its passes: {error}")))?;
        // SAFETY: the device exists; the context is retained until `drop`; streams belong to it.
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
                    Ok(Arc::new(Device { id, device, context, stream, side, queue, runner, kernels }))
                }
                Err(error) => {
                    _ = result::primary_ctx::release(device);
                    Err(failed(error))
                }
            }
        }
    }

    /// Its number.
    pub fn id(&self) -> i32 {
        self.id
    }

    /// Whether ONNX Runtime has attention done by cuDNN there, if it is not told otherwise.
    pub fn prefers_cudnn(&self) -> bool {
        const FIRST: i32 = 9; // Hopper
        let major = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
        // SAFETY: the device exists.
        unsafe { result::device::get_attribute(self.device, major) }.is_ok_and(|major| major >= FIRST)
    }

    /// Why rows of logits cannot stay on it, if they cannot.
    pub fn no_kernels(&self) -> Option<&str> {
        self.kernels.as_ref().err().map(String::as_str)
    }

    /// What is run on rows of logits.
    pub fn kernels(&self) -> ort::Result<&Kernels> {
        self.kernels.as_ref().map_err(ort::Error::new)
    }

    /// Where ONNX Runtime is to put its work.
    pub fn stream(&self) -> *mut () {
        self.stream.cast()
    }

    /// Put work on the stream, alone.
    pub fn queue(&self) -> ort::Result<Queue<'_>> {
        let guard = self.queue.lock();
        self.enter()?;
        Ok(Queue { device: self, _guard: guard })
    }

    /// Do what calls ONNX Runtime for the model, by the one thread that does so. ONNX Runtime keeps for each thread the handles of
    /// cuBLAS and cuDNN, and cuDNN's plans for attention; they go when the thread ends. A captured pass runs kernels of these plans, so
    /// it must not outlive the thread that captured it.
    pub fn by_runner<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.runner.run(work)
    }

    fn enter(&self) -> ort::Result<()> {
        // SAFETY: the context is retained.
        done(unsafe { result::ctx::set_current(self.context) })
    }

    fn aside(&self, work: impl FnOnce(sys::CUstream) -> Result<(), DriverError>) -> ort::Result<()> {
        self.enter()?;
        // SAFETY: the stream is alive.
        done(work(self.side).and_then(|()| unsafe { result::stream::synchronize(self.side) }))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: nobody has the streams any more: what uses them holds the device.
        unsafe {
            _ = result::ctx::set_current(self.context);
            _ = result::stream::synchronize(self.stream);
            _ = result::stream::destroy(self.stream);
            _ = result::stream::destroy(self.side);
            _ = result::primary_ctx::release(self.device);
        }
    }
}

/// The right to put work on a device's stream.
pub struct Queue<'a> {
    device: &'a Device,
    _guard: MutexGuard<'a, ()>,
}

impl Queue<'_> {
    /// Copy a host buffer to the front of one on the device.
    pub fn copy_in(&self, from: &HostBuffer, to: &DeviceBuffer) -> ort::Result<()> {
        assert!(from.bytes <= to.bytes);
        if self.transfer(from.bytes().as_ptr() as u64, to.address, 0, from.bytes)? {
            return Ok(());
        }
        // SAFETY: both are that long and outlive the work, since whoever owns them waits for it.
        done(unsafe { result::memcpy_htod_async(to.address, from.bytes(), self.device.stream) })
    }

    /// Copy a part of a buffer on the device to the same place of a host buffer.
    pub fn copy_out(&self, from: &DeviceBuffer, to: &mut HostBuffer, start: usize, end: usize) -> ort::Result<()> {
        assert!(start <= end && end <= from.bytes && end <= to.bytes);
        if self.transfer(from.address, to.bytes().as_ptr() as u64, start, end)? {
            return Ok(());
        }
        // SAFETY: as above.
        done(unsafe {
            let address = from.address + start as u64;
            result::memcpy_dtoh_async(&mut to.bytes_mut()[start..end], address, self.device.stream)
        })
    }

    /// Copy a part of a buffer to the same place of another one by a kernel, and what shares its first and last word. Returns whether that
    /// is the way to do it.
    fn transfer(&self, from: u64, to: u64, start: usize, end: usize) -> ort::Result<bool> {
        let (start, end) = (start / WORD * WORD, end.next_multiple_of(WORD));
        let Some(kernels) = self.device.kernels.as_ref().ok().filter(|_| (1..=FEW_BYTES).contains(&(end - start)))
        else {
            return Ok(false);
        };
        let (mut from, mut to, mut words) = (from + start as u64, to + start as u64, ((end - start) / WORD) as i32);
        let blocks = (words as usize).div_ceil(THREADS) as u32;
        let mut arguments = [argument(&mut from), argument(&mut to), argument(&mut words)];
        // SAFETY: the arguments are those of the kernel; both buffers have room for whole words, and whoever owns them waits for the work.
        unsafe { self.run(kernels.transfer, (blocks, 1, 1), THREADS as u32, &mut arguments) }.map(|()| true)
    }

    /// Copy `bytes` of a buffer on the device to the front of a host buffer.
    pub fn copy_part(&self, from: &DeviceBuffer, place: usize, to: &mut HostBuffer, bytes: usize) -> ort::Result<()> {
        assert!(place + bytes <= from.bytes && bytes <= to.bytes);
        // SAFETY: as above.
        done(unsafe {
            let address = from.address + place as u64;
            result::memcpy_dtoh_async(&mut to.bytes_mut()[..bytes], address, self.device.stream)
        })
    }

    /// Run a kernel, on a grid of blocks of so many threads.
    ///
    /// # Safety
    /// The arguments are what the kernel takes, and what they point to stays until it is done.
    pub unsafe fn run(
        &self,
        kernel: sys::CUfunction,
        grid: (u32, u32, u32),
        threads: u32,
        arguments: &mut [*mut c_void],
    ) -> ort::Result<()> {
        // SAFETY: as the caller says.
        done(unsafe { result::launch_kernel(kernel, grid, (threads, 1, 1), 0, self.device.stream, arguments) })
    }

    /// As [`Device::by_runner`], with the right to the stream.
    pub fn by_runner<T: Send>(&self, work: impl FnOnce(&Self) -> ort::Result<T> + Send) -> ort::Result<T> {
        self.device.by_runner(|| {
            self.device.enter()?;
            work(self)
        })
    }

    /// Have what `work` puts on the stream recorded instead of run.
    pub fn capture(&self, work: impl FnOnce(&Self) -> ort::Result<()>) -> ort::Result<CapturedGraph> {
        let stream = self.device.stream;
        // SAFETY: the stream is alive, and ours alone while the queue is held; the graph is destroyed here.
        unsafe {
            let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
            done(result::stream::begin_capture(stream, mode))?;
            let worked = work(self);
            let graph = done(result::stream::end_capture(stream));
            worked?;
            let graph = graph?;
            let made = result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0));
            _ = result::graph::destroy(graph);
            Ok(CapturedGraph(done(made)?))
        }
    }

    /// Run what was captured.
    pub fn launch(&self, graph: &CapturedGraph) -> ort::Result<()> {
        // SAFETY: both are alive.
        done(unsafe { result::graph::launch(graph.0, self.device.stream) })
    }

    /// Mark the end of the work so far.
    pub fn record(&self, event: &Event) -> ort::Result<()> {
        // SAFETY: both are alive.
        done(unsafe { result::event::record(event.0, self.device.stream) })
    }

    /// Wait for all work, whatever came of it.
    pub fn drain(&self) {
        // SAFETY: the stream is alive.
        _ = unsafe { result::stream::synchronize(self.device.stream) };
    }
}

/// A pass that was captured.
pub struct CapturedGraph(sys::CUgraphExec);

// SAFETY: any thread may launch and destroy it; the queue keeps them apart.
unsafe impl Send for CapturedGraph {}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`, destroyed once; a sequence waits for its passes.
        _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// A mark on the stream to wait for.
pub struct Event(sys::CUevent);

// SAFETY: any thread may wait for it.
unsafe impl Send for Event {}

impl Event {
    /// Not recorded yet.
    pub fn new(device: &Device) -> ort::Result<Self> {
        device.enter()?;
        done(result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)).map(Event)
    }

    /// Wait until the stream has come to where it was recorded.
    pub fn wait(&self) -> ort::Result<()> {
        // SAFETY: the event is alive.
        done(unsafe { result::event::synchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once.
        _ = unsafe { result::event::destroy(self.0) };
    }
}

/// Memory of a device. Nothing runs on it when it is dropped: a sequence waits for its passes.
pub struct DeviceBuffer {
    device: Arc<Device>,
    address: sys::CUdeviceptr,
    bytes: usize,
}

impl DeviceBuffer {
    /// Zeroes.
    pub fn zeroed(device: &Arc<Device>, bytes: usize) -> ort::Result<Self> {
        let mut address = 0;
        // SAFETY: what is allocated is that long.
        device.aside(|stream| unsafe {
            let whole = bytes.max(1).next_multiple_of(WORD);
            address = result::malloc_async(stream, whole)?;
            result::memset_d8_async(address, 0, whole, stream)
        })?;
        Ok(DeviceBuffer { device: device.clone(), address, bytes })
    }

    /// Zeroes, where it is.
    pub fn clear(&mut self) -> ort::Result<()> {
        // SAFETY: it is that long.
        self.device.aside(|stream| unsafe { result::memset_d8_async(self.address, 0, self.bytes, stream) })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Its address on the device, for kernels.
    pub fn place(&self) -> u64 {
        self.address
    }

    /// Its address on the device.
    pub fn address(&mut self) -> *mut c_void {
        self.address as *mut c_void
    }

    /// Copy runs of `bytes` from another buffer: each `pitch.0` behind the one before there, and `pitch.1` here, the first from and
    /// to these places.
    pub fn copy_runs(
        &mut self,
        from: &DeviceBuffer,
        places: (usize, usize),
        pitch: (usize, usize),
        bytes: usize,
        runs: usize,
    ) -> ort::Result<()> {
        if bytes == 0 || runs == 0 {
            return Ok(());
        }
        let end = |place: usize, pitch: usize| place + (runs - 1) * pitch + bytes;
        assert!(end(places.0, pitch.0) <= from.bytes && end(places.1, pitch.1) <= self.bytes);
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcHost: std::ptr::null(),
            srcArray: std::ptr::null_mut(),
            dstXInBytes: 0,
            dstY: 0,
            dstHost: std::ptr::null_mut(),
            dstArray: std::ptr::null_mut(),
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcDevice: from.address + places.0 as u64,
            srcPitch: pitch.0.max(bytes),
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstDevice: self.address + places.1 as u64,
            dstPitch: pitch.1.max(bytes),
            WidthInBytes: bytes,
            Height: runs,
        };
        // SAFETY: both places are inside their buffers, and these are not one.
        self.device.aside(|stream| unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream).result() })
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        _ = self.device.aside(|stream| unsafe { result::free_async(self.address, stream) });
    }
}

/// Memory of the host that devices reach by themselves.
pub struct HostBuffer {
    device: Arc<Device>,
    memory: NonNull<u8>,
    bytes: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for HostBuffer {}
// SAFETY: as for any slice.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// Zeroes, aligned for any number.
    pub fn zeroed(device: &Arc<Device>, bytes: usize) -> ort::Result<Self> {
        device.enter()?;
        // SAFETY: what is allocated is that long.
        let memory = unsafe {
            let whole = bytes.max(1).next_multiple_of(WORD);
            let memory = done(result::malloc_host(whole, sys::CU_MEMHOSTALLOC_PORTABLE))?.cast::<u8>();
            memory.write_bytes(0, whole);
            memory
        };
        let memory = NonNull::new(memory).ok_or_else(|| ort::Error::new("no memory was given"))?;
        Ok(HostBuffer { device: device.clone(), memory, bytes })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: it is that long, and was written to.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.bytes) }
    }

    /// Its contents.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.bytes) }
    }
}

impl Drop for HostBuffer {
    fn drop(&mut self) {
        _ = self.device.enter();
        // SAFETY: allocated once, freed once.
        _ = unsafe { result::free_host(self.memory.as_ptr().cast()) };
    }
}

/// An argument of a kernel, as the driver takes it.
pub fn argument<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

fn done<T>(result: Result<T, DriverError>) -> ort::Result<T> {
    result.map_err(|error| ort::Error::new(describe(error)))
}

fn describe(error: DriverError) -> String {
    match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
            "the GPU is out of memory; end sessions, shorten contexts, or use smaller models".into()
        }
        sys::CUresult::CUDA_ERROR_NO_DEVICE => "the NVIDIA driver sees no GPU".into(),
        sys::CUresult::CUDA_ERROR_NOT_INITIALIZED => {
            "CUDA does not start; a child of fork() cannot use GPUs if its parent has, so open engines behind fork() only".into()
        }
        _ => match error.error_string() {
            Ok(text) => format!("CUDA: {}", text.to_string_lossy()),
            Err(_) => format!("CUDA: {error:?}"),
        },
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The first GPU, if there is one.
    pub fn gpu() -> Option<Arc<Device>> {
        match Device::open(0) {
            Ok(device) => Some(device),
            Err(error) if std::env::var("COS_TEST_PROVIDER").as_deref() == Ok("cuda") => panic!("{error}"),
            Err(error) => {
                println!("skipped: {error}");
                None
            }
        }
    }

    impl Device {
        /// Wait for its stream, which breaks off a capture.
        pub fn interrupt(&self) {
            // SAFETY: the stream is alive.
            _ = unsafe { result::stream::synchronize(self.stream) };
        }

        /// Put a copy from one place of its memory to another on its stream.
        pub fn copy_there(&self, from: u64, to: u64, bytes: usize) -> ort::Result<()> {
            // SAFETY: tests have allocated both.
            done(unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) })
        }
    }

    /// By the kernel and by the driver, whatever the places and the lengths.
    #[test]
    fn parts_of_buffers_are_copied() {
        let Some(device) = gpu() else { return };
        let mut random = fastrand::Rng::with_seed(5);
        for bytes in [1, 15, 16, 17, 194, 4096, 70_001, FEW_BYTES - 1, FEW_BYTES, FEW_BYTES + 1, 3 * FEW_BYTES + 7] {
            let mut host = HostBuffer::zeroed(&device, bytes).unwrap();
            let there = DeviceBuffer::zeroed(&device, bytes).unwrap();
            random.fill(host.bytes_mut());
            let queue = device.queue().unwrap();
            queue.copy_in(&host, &there).unwrap();
            for part in 0..20 {
                let ends = [random.usize(..=bytes), random.usize(..=bytes)];
                let (start, end) = if part == 0 { (0, bytes) } else { (ends[0].min(ends[1]), ends[0].max(ends[1])) };
                let mut back = HostBuffer::zeroed(&device, bytes).unwrap();
                queue.copy_out(&there, &mut back, start, end).unwrap();
                queue.drain();
                assert_eq!(back.bytes()[start..end], host.bytes()[start..end], "{start} to {end} of {bytes}");
                let beside = |place: usize| place / WORD == start / WORD || place / WORD == (end.max(1) - 1) / WORD;
                assert!(
                    (0..bytes).all(|place| back.bytes()[place] == 0 || (start..end).contains(&place) || beside(place))
                );
            }
        }
    }
}
