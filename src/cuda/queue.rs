//! Puts work on the stream of a GPU: copies, kernels, and captured graphs.

use std::ffi::c_void;

use cudarc::driver::{result, sys};
use parking_lot::MutexGuard;

use super::buffers::{DeviceBuffer, HostBuffer, WORD};
use super::device::{Device, done};

/// Up to this many bytes are copied by a kernel. It starts some microseconds earlier than a copy by the driver.
const FEW_BYTES: usize = 256 << 10;

/// Threads of a block of most kernels.
pub const THREADS: usize = 256;

impl Device {
    /// Exclusive access to the stream. Waits while another thread has it.
    pub fn queue(&self) -> ort::Result<Queue<'_>> {
        let guard = self.queue.lock();
        self.enter()?;
        Ok(Queue { device: self, _guard: guard })
    }
}

/// Exclusive access to a device's stream.
pub struct Queue<'a> {
    device: &'a Device,
    _guard: MutexGuard<'a, ()>,
}

impl Queue<'_> {
    /// Copy a host buffer to the beginning of a device buffer.
    pub fn copy_in(&self, from: &HostBuffer, to: &DeviceBuffer) -> ort::Result<()> {
        self.copy_first(from, to, from.bytes)
    }

    /// Copy the first `bytes` bytes of a host buffer to the beginning of a device buffer.
    pub fn copy_first(&self, from: &HostBuffer, to: &DeviceBuffer, bytes: usize) -> ort::Result<()> {
        assert!(bytes <= from.bytes && bytes <= to.bytes);
        if self.transfer(from.bytes().as_ptr() as u64, to.address, 0, bytes)? {
            return Ok(());
        }
        // SAFETY: both buffers are long enough, and their owner waits for the work before it frees them.
        done(unsafe { result::memcpy_htod_async(to.address, &from.bytes()[..bytes], self.device.stream) })
    }

    /// Copy bytes `start` to `end` of a device buffer to the same offset of a host buffer.
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

    /// Copy bytes `start` to `end` by a kernel, rounded outwards to whole words. `false` if the driver should copy
    /// instead.
    fn transfer(&self, from: u64, to: u64, start: usize, end: usize) -> ort::Result<bool> {
        let (start, end) = (start / WORD * WORD, end.next_multiple_of(WORD));
        let Some(kernels) = self.device.kernels.as_ref().ok().filter(|_| (1..=FEW_BYTES).contains(&(end - start)))
        else {
            return Ok(false);
        };
        let (mut from, mut to, mut words) = (from + start as u64, to + start as u64, ((end - start) / WORD) as i32);
        let blocks = (words as usize).div_ceil(THREADS) as u32;
        let mut arguments = [argument(&mut from), argument(&mut to), argument(&mut words)];
        // SAFETY: the arguments match the kernel. Both buffers have room for whole words, and their owner waits for the
        // work.
        unsafe { self.run(kernels.transfer, (blocks, 1, 1), THREADS as u32, &mut arguments) }.map(|()| true)
    }

    /// Copy `bytes` bytes of a device buffer, from `place` on, to the beginning of a host buffer.
    pub fn copy_part(&self, from: &DeviceBuffer, place: usize, to: &mut HostBuffer, bytes: usize) -> ort::Result<()> {
        assert!(place + bytes <= from.bytes && bytes <= to.bytes);
        // SAFETY: as above.
        done(unsafe {
            let address = from.address + place as u64;
            result::memcpy_dtoh_async(&mut to.bytes_mut()[..bytes], address, self.device.stream)
        })
    }

    /// Run a kernel on a grid of blocks of `threads` threads.
    ///
    /// # Safety
    /// The arguments must match the kernel, and everything they point to must stay until it is done.
    pub unsafe fn run(
        &self,
        kernel: sys::CUfunction,
        grid: (u32, u32, u32),
        threads: u32,
        arguments: &mut [*mut c_void],
    ) -> ort::Result<()> {
        // SAFETY: the caller promises it.
        unsafe { self.device.launch(kernel, grid, threads, arguments) }
    }

    /// Run `work` as in [`Device::by_runner`], with access to the stream.
    pub fn by_runner<T: Send>(&self, work: impl FnOnce(&Self) -> ort::Result<T> + Send) -> ort::Result<T> {
        self.device.by_runner(|| {
            self.device.enter()?;
            work(self)
        })
    }

    /// Record the work that `work` puts on the stream instead of running it.
    pub fn capture(&self, work: impl FnOnce(&Self) -> ort::Result<()>) -> ort::Result<CapturedGraph> {
        let stream = self.device.stream;
        // SAFETY: the stream is alive, and the queue gives exclusive access to it. The graph is destroyed here.
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

    /// Run captured work.
    pub fn launch(&self, graph: &CapturedGraph) -> ort::Result<()> {
        // SAFETY: both are alive.
        done(unsafe { result::graph::launch(graph.0, self.device.stream) })
    }

    /// Let an event mark the end of the work so far.
    pub fn record(&self, event: &Event) -> ort::Result<()> {
        // SAFETY: both are alive.
        done(unsafe { result::event::record(event.0, self.device.stream) })
    }

    /// Wait for all work, and ignore its errors.
    pub fn drain(&self) {
        // SAFETY: the stream is alive.
        _ = unsafe { result::stream::synchronize(self.device.stream) };
    }
}

/// A captured pass, as an executable CUDA graph.
pub struct CapturedGraph(sys::CUgraphExec);

// SAFETY: any thread may launch and destroy it. The queue serialises launches.
unsafe impl Send for CapturedGraph {}

impl Drop for CapturedGraph {
    fn drop(&mut self) {
        // SAFETY: `capture` created it, and it is destroyed once. A sequence waits for its passes before.
        _ = unsafe { result::graph::exec_destroy(self.0) };
    }
}

/// A mark on a stream that threads can wait for.
pub struct Event(sys::CUevent);

// SAFETY: any thread may wait for it.
unsafe impl Send for Event {}

impl Event {
    /// An event that is not recorded yet.
    pub fn new(device: &Device) -> ort::Result<Self> {
        device.enter()?;
        done(result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING)).map(Event)
    }

    /// Wait until the stream has reached the mark.
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

/// A pointer to an argument of a kernel, as the driver expects it.
pub fn argument<T>(value: &mut T) -> *mut c_void {
    std::ptr::from_mut(value).cast()
}

#[cfg(test)]
mod tests {
    use super::super::tests::gpu;
    use super::*;

    /// The kernel and the driver copy parts of any offset and length.
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
