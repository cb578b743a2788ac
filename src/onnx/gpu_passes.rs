//! The passes of a sequence on a GPU: buffers for inputs and logits, and captured CUDA graphs.

use std::sync::Arc;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::RunOptions;
use ort::value::TensorElementType;

use super::binding::Tensor;
use super::captures::Captures;
use crate::cuda::{self, CapturedGraph, Device, DeviceBuffer, Event, HostBuffer, Queue};
use crate::rows::device::Ring;
use crate::rows::records::{Control, NOTED};

/// The widest pass that is captured. It covers the longest draft of the planner, 16 tokens, with the tokens before it
/// and those of other models; only prompts are longer. A sequence keeps up to two graphs for each width, with filtered
/// rows and without. With fewer, some would be captured again and again.
pub const WIDEST_GRAPH: usize = NOTED;

/// Where cuDNN plans each width, wider passes are padded to multiples of this.
const STEP: usize = 16;

/// The width that a pass over `width` tokens is padded to.
///
/// Beyond [`WIDEST_GRAPH`], widths are multiples of [`STEP`]; beyond 256, there are eight between a power of two and
/// the next. So a process soon has met all of them, and padding adds at most an eighth where tokens take time.
fn padded_width(width: usize) -> usize {
    if width <= WIDEST_GRAPH { width } else { width.next_multiple_of(STEP.max(1 << (width.ilog2() - 3))) }
}

/// The alignment of inputs in their buffer, in bytes.
const ALIGNMENT: usize = 256;

/// A buffer on the host and one of the same size on the device, for copies between them.
struct BufferPair {
    host: HostBuffer,
    device: DeviceBuffer,
}

impl BufferPair {
    fn new(device: &Arc<Device>, bytes: usize) -> ort::Result<Self> {
        Ok(BufferPair { host: HostBuffer::zeroed(device, bytes)?, device: DeviceBuffer::zeroed(device, bytes)? })
    }
}

/// Passes that share a graph: their width, and whether rows are filtered.
type PassKind = (usize, bool);

/// The state of a kind of passes, valid as long as all buffers stay where they are.
enum CaptureState {
    /// A pass was run, so ONNX Runtime has all the memory that it needs, and the next one can be captured.
    Warm,
    Graph(CapturedGraph),
}

/// The buffers and graphs of a sequence's passes.
pub struct GpuPasses {
    /// Declared before the buffers whose addresses they hold, so that they are dropped first.
    graphs: Vec<(PassKind, CaptureState)>,
    captures: Arc<Captures>,
    /// Whether the pass that is being prepared may be captured.
    captures_now: bool,
    /// Whether cuDNN plans each width of a pass on each size of the cache.
    plans_widths: bool,
    /// Recorded behind the last pass.
    done: Event,
    inputs: Option<BufferPair>,
    /// The offset and the room in bytes of each input. The last one is the control block of the kernels.
    places: Vec<(usize, usize)>,
    /// Logits of passes up to [`WIDEST_GRAPH`]. Graphs hold its address.
    logits: Option<BufferPair>,
    /// Logits of wider passes.
    wide: Option<BufferPair>,
    memory: MemoryInfo<'static>,
    /// Whether the last pass took as long as later ones of its kind will. Passes that prepare a capture take longer.
    pub is_usual: bool,
    /// The rows on the GPU, if rows stay there.
    pub rows: Option<Ring>,
    device: Arc<Device>,
}

/// Where a pass leaves its rows.
#[derive(Clone, Copy)]
pub enum Output {
    /// On the host. Bytes of the logits from the first number to the second are copied.
    Host(usize, usize),
    /// On the GPU, so many rows.
    Device(usize),
}

impl GpuPasses {
    /// Allocates no buffers yet.
    pub fn new(
        device: &Arc<Device>,
        captures: &Arc<Captures>,
        plans_widths: bool,
        rows: Option<Ring>,
    ) -> ort::Result<Self> {
        Ok(GpuPasses {
            graphs: Vec::new(),
            captures: captures.clone(),
            captures_now: false,
            plans_widths,
            done: Event::new(device)?,
            inputs: None,
            places: Vec::new(),
            logits: None,
            wide: None,
            memory: MemoryInfo::new(AllocationDevice::CUDA, device.id(), AllocatorType::Device, MemoryType::Default)?,
            is_usual: true,
            rows,
            device: device.clone(),
        })
    }

    /// Set options of runs on the GPU: ONNX Runtime itself captures nothing, and a run returns before its work is done.
    ///
    /// All operators must run on the GPU. Otherwise a run could return while it copies from host memory that it frees.
    pub fn set_options(options: &mut RunOptions) -> ort::Result<()> {
        options.set("gpu_graph_id", "-1")?;
        options.set("disable_synchronize_execution_providers", "1")
    }

    /// Decide whether the next pass may be captured. The decision holds for all of the pass, although other threads may
    /// refuse captures at any time.
    pub fn may_capture(&mut self) -> bool {
        self.captures_now = self.captures.refused().is_none();
        self.captures_now
    }

    /// Tokens to add to a pass over `width` tokens. Where cuDNN plans each width, padding keeps the number of widths
    /// small.
    pub fn padding(&self, width: usize) -> usize {
        if self.plans_widths { padded_width(width) - width } else { 0 }
    }

    /// Memory of the device, for tensors.
    pub fn memory(&self) -> &MemoryInfo<'static> {
        &self.memory
    }

    /// Exclusive access to the device's stream.
    pub fn queue(&self) -> ort::Result<Queue<'_>> {
        self.device.queue()
    }

    /// Bytes of all buffers, those on the host included.
    pub fn bytes(&self) -> usize {
        let pairs = [&self.inputs, &self.logits, &self.wide];
        let pairs: usize = pairs.into_iter().flatten().map(|pair| 2 * pair.device.len()).sum();
        pairs + self.rows.as_ref().map_or(0, Ring::bytes)
    }

    /// Drop all graphs, because buffers have moved.
    pub fn forget_graphs(&mut self) {
        self.graphs.clear();
    }

    /// Fill the host buffer with the inputs, in their order, and the control block of the kernels.
    pub fn fill<'a>(
        &mut self,
        inputs: impl Iterator<Item = &'a [u8]> + Clone,
        control: &'a Control,
    ) -> ort::Result<()> {
        let inputs = inputs.chain(std::iter::once(bytemuck::bytes_of(control)));
        let fits = self.places.len() == inputs.clone().count()
            && inputs.clone().zip(&self.places).all(|(bytes, (_, room))| bytes.len() <= *room);
        if !fits {
            self.forget_graphs();
            let mut end = 0;
            self.places.clear();
            for bytes in inputs.clone() {
                let room = bytes.len().next_power_of_two().max(ALIGNMENT);
                self.places.push((end, room));
                end += room;
            }
            self.inputs = None;
            self.inputs = Some(BufferPair::new(&self.device, end)?);
        }
        if let Some(pair) = &mut self.inputs {
            let host = pair.host.bytes_mut();
            for (bytes, (place, _)) in inputs.zip(&self.places) {
                host[*place..place + bytes.len()].copy_from_slice(bytes);
            }
        }
        Ok(())
    }

    /// An input as a tensor on the device.
    pub fn input_tensor(&mut self, index: usize, element: TensorElementType, shape: &[i64]) -> ort::Result<Tensor> {
        let (place, room) = self.places[index];
        let pair = self.inputs.as_mut().ok_or_else(|| ort::Error::new("the inputs have no buffer"))?;
        // SAFETY: the input is inside the buffer, which stays until another one is bound.
        unsafe { Tensor::at(&self.memory, pair.device.address().byte_add(place), room, element, shape) }
    }

    /// Make room for the logits of a pass.
    pub fn make_room(&mut self, bytes: usize, width: usize) -> ort::Result<()> {
        let narrow = width <= WIDEST_GRAPH;
        let (pair, least) = match narrow {
            true => (&mut self.logits, bytes.div_ceil(width) * WIDEST_GRAPH),
            false => (&mut self.wide, bytes),
        };
        if pair.as_ref().is_none_or(|pair| pair.device.len() < bytes) {
            if narrow {
                self.graphs.clear();
            }
            *pair = None;
            *pair = Some(BufferPair::new(&self.device, least.max(bytes))?);
        }
        Ok(())
    }

    /// Free the buffer of wide passes.
    pub fn trim(&mut self) {
        self.wide = None;
    }

    /// The buffer of logits for passes of a width.
    fn pair(&self, width: usize) -> Option<&BufferPair> {
        if width <= WIDEST_GRAPH { self.logits.as_ref() } else { self.wide.as_ref() }
    }

    /// The logits of the last pass, which had this width.
    pub fn logits(&self, width: usize) -> &[u8] {
        self.pair(width).map_or(&[], |pair| pair.host.bytes())
    }

    /// The logits of a pass as a tensor on the device.
    pub fn logits_tensor(
        &mut self,
        width: usize,
        bytes: usize,
        element: TensorElementType,
        shape: &[i64],
    ) -> ort::Result<Tensor> {
        let pair = if width <= WIDEST_GRAPH { &mut self.logits } else { &mut self.wide };
        let pair = pair.as_mut().ok_or_else(|| ort::Error::new("the logits have no buffer"))?;
        // SAFETY: `make_room` made the buffer large enough, and it stays until another one is bound.
        unsafe { Tensor::at(&self.memory, pair.device.address(), bytes, element, shape) }
    }

    /// Copy the inputs to the device.
    pub fn copy_in(&self, queue: &Queue) -> ort::Result<()> {
        self.inputs.as_ref().map_or(Ok(()), |pair| queue.copy_in(&pair.host, &pair.device))
    }

    /// Whether a pass with this output may be captured. Only passes that leave rows in the usual place are.
    fn captures_to(&self, output: Output) -> bool {
        self.captures_now && self.rows.is_some() == matches!(output, Output::Device(_))
    }

    fn kind(&self, width: usize) -> PassKind {
        (width, self.rows.as_ref().is_some_and(Ring::filters))
    }

    /// Whether there is a graph for a pass of this width and the current filter. Then nothing needs to be bound.
    pub fn has_graph(&self, width: usize, output: Output) -> bool {
        let kind = self.kind(width);
        self.captures_to(output)
            && self.graphs.iter().any(|(of, captured)| *of == kind && matches!(captured, CaptureState::Graph(_)))
    }

    /// Put a pass on the stream: by its graph, or by `run`, which may be captured on the way. [`GpuPasses::wait`] waits
    /// for it.
    ///
    /// On an error, the stream is idle again.
    pub fn launch(
        &mut self,
        width: usize,
        output: Output,
        mut run: impl FnMut() -> ort::Result<()> + Send,
    ) -> ort::Result<()> {
        let may_capture = self.captures_to(output) && width <= WIDEST_GRAPH;
        let kind = self.kind(width);
        let GpuPasses { graphs, captures, done, inputs, places, logits, wide, rows, device, is_usual, .. } = self;
        let logits = if width <= WIDEST_GRAPH { logits } else { wide };
        let queue = device.queue()?;
        let mut work = |queue: &Queue, output: Output| {
            let mut control = 0;
            if let Some(pair) = inputs {
                control = pair.device.place() + places.last().map_or(0, |(place, _)| *place as u64);
                queue.copy_in(&pair.host, &pair.device)?;
            }
            run()?;
            match (logits.as_mut(), rows.as_mut(), output) {
                (Some(pair), _, Output::Host(start, end)) => queue.copy_out(&pair.device, &mut pair.host, start, end),
                (Some(pair), Some(rows), Output::Device(given)) => rows.queue(queue, &pair.device, given, control),
                _ => Ok(()),
            }
        };
        let index = graphs.iter().position(|(of, _)| may_capture && *of == kind);
        let state = index.map(|index| graphs.remove(index).1);
        *is_usual = !may_capture || matches!(state, Some(CaptureState::Graph(_)));
        let result = match state {
            Some(CaptureState::Graph(graph)) => {
                let result = queue.launch(&graph);
                graphs.push((kind, CaptureState::Graph(graph)));
                result
            }
            Some(CaptureState::Warm) => {
                let (state, result) = capture(&queue, captures, width, output, &mut work);
                graphs.push((kind, state));
                result
            }
            None => {
                if may_capture {
                    graphs.push((kind, CaptureState::Warm));
                }
                let _running = cuda::running();
                queue.by_runner(|queue| work(queue, output))
            }
        };
        result.and_then(|()| queue.record(done)).inspect_err(|_| queue.drain())
    }

    /// Wait for the pass that was launched last.
    pub fn wait(&self) -> ort::Result<()> {
        self.done.wait()
    }
}

/// Capture a pass and launch its graph. If other threads use the GPU, or if the capture fails, the pass is run instead.
fn capture(
    queue: &Queue,
    captures: &Captures,
    width: usize,
    output: Output,
    work: &mut (impl FnMut(&Queue, Output) -> ort::Result<()> + Send),
) -> (CaptureState, ort::Result<()>) {
    // Later passes may want other rows, so a graph copies all of them.
    let all_rows = match output {
        Output::Host(_, end) => Output::Host(0, end),
        kept => kept,
    };
    let captured = cuda::alone().map(|_alone| queue.by_runner(|queue| queue.capture(|queue| work(queue, all_rows))));
    if let Some(Ok(graph)) = captured {
        captures.succeed();
        let result = queue.launch(&graph);
        return (CaptureState::Graph(graph), result);
    }
    let _running = cuda::running();
    let result = match captured {
        Some(Err(error)) => {
            captures.fail(width, &error);
            // The next run may report the error of the capture as its own, so it is tried twice.
            queue.by_runner(|queue| work(queue, output).or_else(|_| work(queue, output)))
        }
        _ => queue.by_runner(|queue| work(queue, output)),
    };
    (CaptureState::Warm, result)
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    /// Passes only copy their input to their logits. Some break off their capture.
    #[test]
    fn passes_run_even_if_their_capture_fails() {
        let Some(device) = cuda::tests::gpu() else { return };
        let captures = Arc::new(Captures::default());
        let mut gpu = GpuPasses::new(&device, &captures, false, None).unwrap();
        let (control, output) = (Control::zeroed(), Output::Host(0, 8));
        // Whether the pass breaks off a capture, whether it may be captured, and how many captures have succeeded by
        // then.
        for (pass, (broken, may, made)) in [
            (true, true, 0), // the first pass is not captured
            (true, true, 0),
            (true, true, 0),
            (false, true, 1),
            (true, true, 1), // it has a graph, so the closure is not called
        ]
        .into_iter()
        .chain([(true, true, 1); 4]) // another width
        .chain([(false, false, 1); 3])
        .enumerate()
        {
            let width = if pass < 5 { 1 } else { 2 };
            assert_eq!(gpu.may_capture(), may, "pass {pass}");
            let tokens = [pass as i64 + 1];
            gpu.fill([bytemuck::cast_slice(&tokens)].into_iter(), &control).unwrap();
            gpu.make_room(8, 1).unwrap();
            let (from, to) = (gpu.inputs.as_ref().unwrap().device.place(), gpu.logits.as_ref().unwrap().device.place());
            let (of, mut runs) = (device.clone(), 0);
            let copy = || {
                runs += 1;
                if broken {
                    of.interrupt();
                }
                of.copy_there(from, to, 8)
            };
            gpu.launch(width, output, copy).unwrap();
            gpu.wait().unwrap();
            assert_eq!(gpu.logits(width)[..8], tokens[0].to_ne_bytes(), "pass {pass}");
            assert_eq!((captures.made(), gpu.is_usual), (made, pass == 4 || !may), "pass {pass}");
            assert_eq!(runs, [1, 2, 2, 1, 0, 1, 2, 2, 2, 1, 1, 1][pass], "pass {pass}");
        }
        assert!(captures.refused().unwrap().contains("3 captures in a row"), "{captures:?}");
    }

    #[test]
    fn padded_passes_have_few_widths() {
        let mut widths = std::collections::BTreeSet::new();
        for length in 1..=4096 {
            let width = padded_width(length);
            assert!(length <= WIDEST_GRAPH || width.is_multiple_of(STEP));
            assert!(width >= length && width - length < STEP.max(length / 8 + 1), "{width} for {length}");
            widths.insert(width);
        }
        assert_eq!(widths.len(), WIDEST_GRAPH + 15 + 4 * 8, "{widths:?}");
    }
}
