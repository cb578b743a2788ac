//! NVIDIA GPUs by the driver's API: memory, copies, kernels, and captured graphs.
//!
//! ONNX Runtime runs the passes of a model on a stream that CoS creates, so copies of inputs and logits are in order
//! with them. The first pass of a width is run plainly. The second is captured as a CUDA graph, and later ones launch
//! the graph without ONNX Runtime.

mod buffers;
mod device;
mod locks;
mod queue;
mod runner;

pub use buffers::{DeviceBuffer, HostBuffer, WORD};
pub use device::Device;
pub use locks::{alone, loading, running};
pub use queue::{CapturedGraph, Event, Queue, THREADS, argument};

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Arc;

    use cudarc::driver::result;

    use super::Device;
    use super::device::done;

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
        /// Wait for the stream, which breaks off a capture.
        pub fn interrupt(&self) {
            // SAFETY: the stream is alive.
            _ = unsafe { result::stream::synchronize(self.stream) };
        }

        /// Put a copy between two device addresses on the stream.
        pub fn copy_there(&self, from: u64, to: u64, bytes: usize) -> ort::Result<()> {
            // SAFETY: tests have allocated both.
            done(unsafe { result::memcpy_dtod_async(to, from, bytes, self.stream) })
        }
    }
}
