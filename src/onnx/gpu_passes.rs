//! What one sequence has on a GPU beside its cache: inputs, logits, and the graphs of its passes.

use std::sync::Arc;

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::RunOptions;
use ort::value::TensorElementType;

use super::binding::Tensor;
use super::captures::Captures;
use crate::cuda::{self, CapturedGraph, Device, DeviceBuffer, Event, HostBuffer, Queue};
use crate::rows::device::{Control, NOTED, Ring};

/// The widest pass that is captured: over the longest draft that a planner makes of itself, 16, what comes before it and what others
/// add; prompts are longer. A sequence has a graph for each width at most, with filters of rows and without, since with fewer some would
/// be captured again and again.
pub const WIDEST_GRAPH: usize = NOTED;

/// Widths of wide passes where each is planned: multiples of this, and beyond 256 eight between a power of two and the next.
const STEP: usize = 16;

/// The least of these that takes so many tokens. Few widths, so that a process soon has met all, and at most an eighth more tokens where
/// these take time.
fn planned(width: usize) -> usize {
    if width <= WIDEST_GRAPH { width } else { width.next_multiple_of(STEP.max(1 << (width.ilog2() - 3))) }
}

/// Places of inputs are aligned to this.
const ALIGNMENT: usize = 256;

/// A buffer on the host, and what it is copied to or from.
struct Pair {
    host: HostBuffer,
    there: DeviceBuffer,
}

impl Pair {
    fn new(device: &Arc<Device>, bytes: usize) -> ort::Result<Self> {
        Ok(Pair { host: HostBuffer::zeroed(device, bytes)?, there: DeviceBuffer::zeroed(device, bytes)? })
    }
}

/// Passes that are captured once: their width, and whether rows are filtered.
type Kind = (usize, bool);

/// What is known of passes of a kind, with all buffers where they are now.
enum Captured {
    /// One was run, so ONNX Runtime has all the memory that it needs for it.
    Warm,
    Graph(CapturedGraph),
}

/// What a sequence has on a GPU.
pub struct GpuPasses {
    /// Before the buffers, whose addresses they hold.
    graphs: Vec<(Kind, Captured)>,
    captures: Arc<Captures>,
    /// Whether the pass that is being made may be captured.
    captures_now: bool,
    /// Whether each width is planned on each size of the cache.
    plans_widths: bool,
    done: Event,
    inputs: Option<Pair>,
    /// Where each input is in that, and how long.
    places: Vec<(usize, usize)>,
    /// Logits of passes up to [`WIDEST_GRAPH`], which stay where they are, and of the last wider one.
    logits: Option<Pair>,
    wide: Option<Pair>,
    memory: MemoryInfo<'static>,
    /// Whether the last pass took what others of its kind will: it was neither captured nor run to be captured next time.
    pub is_usual: bool,
    /// Where rows stay, if they do.
    pub rows: Option<Ring>,
    device: Arc<Device>,
}

/// Where the rows of a pass go.
#[derive(Clone, Copy)]
pub enum Output {
    /// These bytes of the logits to the host.
    Host(usize, usize),
    /// So many rows are kept where they are.
    Device(usize),
}

impl GpuPasses {
    /// Without any buffers yet.
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

    /// Have no run captured by ONNX Runtime itself, and let it return before its work is done. All of that has to be on the device:
    /// otherwise it may still be copying from memory of the host that it then frees.
    pub fn set_options(options: &mut RunOptions) -> ort::Result<()> {
        options.set("gpu_graph_id", "-1")?;
        options.set("disable_synchronize_execution_providers", "1")
    }

    /// Decide whether the pass to come may be captured, which other threads may change at any time.
    pub fn may_capture(&mut self) -> bool {
        self.captures_now = self.captures.refused().is_none();
        self.captures_now
    }

    /// How many tokens a pass over so many takes more, so that its width is one of few where each is planned.
    pub fn padding(&self, width: usize) -> usize {
        if self.plans_widths { planned(width) - width } else { 0 }
    }

    /// Memory of the device, for tensors.
    pub fn memory(&self) -> &MemoryInfo<'static> {
        &self.memory
    }

    /// The right to put work on the device's stream.
    pub fn queue(&self) -> ort::Result<Queue<'_>> {
        self.device.queue()
    }

    /// Bytes of its buffers.
    pub fn bytes(&self) -> usize {
        let pairs = [&self.inputs, &self.logits, &self.wide];
        let pairs: usize = pairs.into_iter().flatten().map(|pair| 2 * pair.there.len()).sum();
        pairs + self.rows.as_ref().map_or(0, Ring::bytes)
    }

    /// Buffers that graphs know have moved.
    pub fn forget_graphs(&mut self) {
        self.graphs.clear();
    }

    /// Set the inputs, in their order, and what kernels are told.
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
            self.inputs = Some(Pair::new(&self.device, end)?);
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
        let pair = self.inputs.as_mut().ok_or_else(|| ort::Error::new("there are no inputs"))?;
        // SAFETY: the place is inside the buffer, which stays until another one is bound.
        unsafe { Tensor::at(&self.memory, pair.there.address().byte_add(place), room, element, shape) }
    }

    /// Make room for the logits of a pass.
    pub fn make_room(&mut self, bytes: usize, width: usize) -> ort::Result<()> {
        let narrow = width <= WIDEST_GRAPH;
        let (pair, least) = match narrow {
            true => (&mut self.logits, bytes.div_ceil(width) * WIDEST_GRAPH),
            false => (&mut self.wide, bytes),
        };
        if pair.as_ref().is_none_or(|pair| pair.there.len() < bytes) {
            if narrow {
                self.graphs.clear();
            }
            *pair = None;
            *pair = Some(Pair::new(&self.device, least.max(bytes))?);
        }
        Ok(())
    }

    /// Give back what a long prompt took.
    pub fn trim(&mut self) {
        self.wide = None;
    }

    fn pair(&self, width: usize) -> Option<&Pair> {
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
        let pair = pair.as_mut().ok_or_else(|| ort::Error::new("there is no room for logits"))?;
        // SAFETY: room was made for so many bytes, and the buffer stays until another one is bound.
        unsafe { Tensor::at(&self.memory, pair.there.address(), bytes, element, shape) }
    }

    /// Copy the inputs to the device.
    pub fn copy_in(&self, queue: &Queue) -> ort::Result<()> {
        self.inputs.as_ref().map_or(Ok(()), |pair| queue.copy_in(&pair.host, &pair.there))
    }

    /// Whether passes whose rows go there are captured: those whose rows go where they usually do.
    fn captures_to(&self, output: Output) -> bool {
        self.captures_now && self.rows.is_some() == matches!(output, Output::Device(_))
    }

    fn kind(&self, width: usize) -> Kind {
        (width, self.rows.as_ref().is_some_and(Ring::filters))
    }

    /// Whether a pass of this width, with rows filtered as they are now, was captured, so that nothing need be bound for it.
    pub fn has_graph(&self, width: usize, output: Output) -> bool {
        let kind = self.kind(width);
        self.captures_to(output)
            && self.graphs.iter().any(|(of, captured)| *of == kind && matches!(captured, Captured::Graph(_)))
    }

    /// Put a pass on the stream, by a graph if there is one, and otherwise by `run`. It is over after [`GpuPasses::wait`], or an error.
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
                control = pair.there.place() + places.last().map_or(0, |(place, _)| *place as u64);
                queue.copy_in(&pair.host, &pair.there)?;
            }
            run()?;
            match (logits.as_mut(), rows.as_mut(), output) {
                (Some(pair), _, Output::Host(start, end)) => queue.copy_out(&pair.there, &mut pair.host, start, end),
                (Some(pair), Some(rows), Output::Device(given)) => rows.queue(queue, &pair.there, given, control),
                _ => Ok(()),
            }
        };
        // All rows come back, since later passes want other ones.
        let whole = match output {
            Output::Host(_, end) => Output::Host(0, end),
            kept => kept,
        };
        let known = graphs.iter().position(|(of, _)| may_capture && *of == kind);
        *is_usual = !may_capture || known.is_some_and(|index| matches!(graphs[index].1, Captured::Graph(_)));
        let result = match known.map(|index| graphs.remove(index).1) {
            Some(Captured::Graph(graph)) => {
                let result = queue.launch(&graph);
                graphs.push((kind, Captured::Graph(graph)));
                result
            }
            Some(Captured::Warm) => {
                let capture = |queue: &Queue| queue.capture(|queue| work(queue, whole));
                let captured = cuda::alone().map(|_alone| queue.by_runner(capture));
                if let Some(Ok(graph)) = captured {
                    captures.succeed();
                    let result = queue.launch(&graph);
                    graphs.push((kind, Captured::Graph(graph)));
                    result
                } else {
                    graphs.push((kind, Captured::Warm));
                    let _running = cuda::running();
                    match captured {
                        Some(Err(error)) => {
                            captures.fail(width, &error);
                            // The next run may take that error for its own.
                            queue.by_runner(|queue| work(queue, output).or_else(|_| work(queue, output)))
                        }
                        _ => queue.by_runner(|queue| work(queue, output)),
                    }
                }
            }
            None => {
                if may_capture {
                    graphs.push((kind, Captured::Warm));
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

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable;

    use super::*;

    /// Passes that only add up what they are fed, of which some captures are broken off.
    #[test]
    fn passes_whose_captures_fail_are_run_all_the_same() {
        let Some(device) = cuda::tests::gpu() else { return };
        let captures = Arc::new(Captures::default());
        let mut gpu = GpuPasses::new(&device, &captures, false, None).unwrap();
        let (control, output) = (Control::zeroed(), Output::Host(0, 8));
        // What the closure does when a pass is captured, and whether that may be.
        for (pass, (broken, may, made)) in [
            (true, true, 0), // the first one is plain
            (true, true, 0),
            (true, true, 0),
            (false, true, 1),
            (true, true, 1), // has a graph, so the closure is not asked
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
            let (from, to) = (gpu.inputs.as_ref().unwrap().there.place(), gpu.logits.as_ref().unwrap().there.place());
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
    fn passes_of_any_length_have_few_widths() {
        let mut widths = std::collections::BTreeSet::new();
        for length in 1..=4096 {
            let width = planned(length);
            assert!(length <= WIDEST_GRAPH || width.is_multiple_of(STEP));
            assert!(width >= length && width - length < STEP.max(length / 8 + 1), "{width} for {length}");
            widths.insert(width);
        }
        assert_eq!(widths.len(), WIDEST_GRAPH + 15 + 4 * 8, "{widths:?}");
    }
}
