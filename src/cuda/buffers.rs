//! Memory of a GPU, and memory of the host that a GPU can access.

use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::device::{Device, done};

/// Bytes that a kernel reads at once. Buffers have room for whole words.
pub const WORD: usize = 16;

/// Memory of a device. Its owner must wait for all work on it before dropping it, as a sequence waits for its passes.
pub struct DeviceBuffer {
    device: Arc<Device>,
    pub(super) address: sys::CUdeviceptr,
    pub(super) bytes: usize,
}

impl DeviceBuffer {
    /// Allocate `bytes` bytes of zeroes.
    pub fn zeroed(device: &Arc<Device>, bytes: usize) -> ort::Result<Self> {
        let mut address = 0;
        // SAFETY: the allocation is that long.
        device.aside(|stream| unsafe {
            let whole = bytes.max(1).next_multiple_of(WORD);
            address = result::malloc_async(stream, whole)?;
            result::memset_d8_async(address, 0, whole, stream)
        })?;
        Ok(DeviceBuffer { device: device.clone(), address, bytes })
    }

    /// Set all bytes to zero.
    pub fn clear(&mut self) -> ort::Result<()> {
        // SAFETY: the buffer is that long.
        self.device.aside(|stream| unsafe { result::memset_d8_async(self.address, 0, self.bytes, stream) })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Its device address as a number, for kernels.
    pub fn place(&self) -> u64 {
        self.address
    }

    /// Its device address as a pointer, for tensors.
    pub fn address(&mut self) -> *mut c_void {
        self.address as *mut c_void
    }

    /// Copy `bytes` bytes from one place to another, which do not overlap.
    pub fn copy_within(&mut self, from: usize, to: usize, bytes: usize) -> ort::Result<()> {
        assert!(from.max(to) + bytes <= self.bytes && from.abs_diff(to) >= bytes);
        // SAFETY: both places are inside the buffer.
        self.device.aside(|stream| unsafe {
            result::memcpy_dtod_async(self.address + to as u64, self.address + from as u64, bytes, stream)
        })
    }

    /// Copy `runs` runs of `bytes` bytes from another buffer.
    ///
    /// `places` are the offsets of the first run, and `pitch` the distances between runs, both as (source,
    /// destination).
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
        // SAFETY: all runs are inside their buffers, which are distinct.
        self.device.aside(|stream| unsafe { sys::cuMemcpy2DAsync_v2(&copy, stream).result() })
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated once, freed once.
        _ = self.device.aside(|stream| unsafe { result::free_async(self.address, stream) });
    }
}

/// Pinned memory of the host, which kernels can access.
pub struct HostBuffer {
    device: Arc<Device>,
    memory: NonNull<u8>,
    pub(super) bytes: usize,
}

// SAFETY: it owns its memory.
unsafe impl Send for HostBuffer {}
// SAFETY: shared references only allow reading.
unsafe impl Sync for HostBuffer {}

impl HostBuffer {
    /// Allocate `bytes` bytes of zeroes, aligned for any number type.
    pub fn zeroed(device: &Arc<Device>, bytes: usize) -> ort::Result<Self> {
        device.enter()?;
        // SAFETY: the allocation is that long.
        let memory = unsafe {
            let whole = bytes.max(1).next_multiple_of(WORD);
            let memory = done(result::malloc_host(whole, sys::CU_MEMHOSTALLOC_PORTABLE))?.cast::<u8>();
            memory.write_bytes(0, whole);
            memory
        };
        let memory = NonNull::new(memory).ok_or_else(|| ort::Error::new("CUDA allocated no memory"))?;
        Ok(HostBuffer { device: device.clone(), memory, bytes })
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Its contents.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is that long and initialised.
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
