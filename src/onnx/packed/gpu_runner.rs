//! Packed passes on a GPU: inputs of fixed places, and captured CUDA graphs that serve any sequences.
//!
//! Passes are padded to few sizes. The lengths and tables of sequences are read on the device, so a graph of a size
//! serves all passes of that size. Padding is tokens that belong to no sequence, and sequences without tokens.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytemuck::Zeroable;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::RunOptions;
use ort::value::TensorElementType;

use super::gpu_attention::GpuPass;
use super::gpu_store::GpuStore;
use super::host_runner::feeds;
use super::layout::Layout;
use super::rows::PassRows;
use crate::cuda::{self, CapturedGraph, Device, DeviceBuffer, Event, HostBuffer, Queue};
use crate::export::pack::ROWS;
use crate::export::paged::{BLOCKS, BOUNDS, ENDS, PASTS};
use crate::export::parts::LayerShape;
use crate::export::parts::TABLE;
use crate::export::{self, Export, Role};
use crate::model::graphs::{Capture, Graphs, MOST_GRAPHS, PassSize, SizeLimits};
use crate::onnx::binding::{Binding, Tensor};
use crate::onnx::captures::Captures;
use crate::onnx::gpu_passes::GpuPasses;
use crate::onnx::inputs::Feed;
use crate::onnx::weights::LoadedSession;
use crate::rows::device::{Shares, queue_rows};
use crate::rows::records::Control;

/// Up to this many bytes of rows are copied to the host as a part of the pass, and then to where they are read. That
/// takes less time than a copy behind the pass.
const FEW_BYTES: usize = 64 << 10;

/// Room for inputs, and for rows, that there is from the beginning. Graphs hold addresses, so each growth costs all of
/// them.
const INPUT_BYTES: usize = 256 << 10;
const USUAL_ROWS: usize = 128;
const ROW_BYTES: usize = 32 << 20;

/// Inputs begin at multiples of this many bytes.
const ALIGNMENT: usize = 256;

/// Where the rows of a pass go.
#[derive(Debug, Default)]
pub struct RowsPlan {
    /// By sequence whose rows stay on the GPU: where they go.
    pub controls: Vec<Control>,
    /// Whether any of them are filtered.
    pub filters: bool,
    /// Rows of the pass that are copied to the host. Some of them may be on the GPU too.
    pub host: Range<usize>,
}

impl RowsPlan {
    /// Begin a new pass.
    pub fn clear(&mut self) {
        self.controls.clear();
        (self.filters, self.host) = (false, 0..0);
    }

    /// These rows of the pass are wanted on the host.
    pub fn copy(&mut self, rows: Range<usize>) {
        if rows.is_empty() {
            return;
        }
        let empty = self.host.is_empty();
        self.host = if empty { rows } else { self.host.start.min(rows.start)..self.host.end.max(rows.end) };
    }
}

/// What a model takes at most.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// A pass. RotaryEmbedding, which reads positions, takes no more tokens than it has positions.
    pass: SizeLimits,
    /// Tokens of a sequence.
    length: usize,
}

/// The size of a pass, without padding.
fn pass_size(pass: &Layout, plan: &RowsPlan) -> PassSize {
    PassSize {
        tokens: pass.tokens.len(),
        rows: pass.rows.len().max(pass.parts.len()),
        blocks: pass.parts.iter().map(|part| part.blocks.len()).max().unwrap_or(1),
        widest: pass.parts.iter().map(|part| part.width).max().unwrap_or(1),
        kept: plan.controls.iter().map(|control| control.given()).max().unwrap_or(0),
        filters: plan.filters,
    }
}

/// The bytes of the inputs of a padded pass in their order: those that the export declares, whose numbers have these
/// sizes, then rows, ends, pasts, blocks, and the arguments of the kernels for rows. A pass has room for as many
/// sequences as rows.
fn input_bytes(size: PassSize, declared: impl Iterator<Item = usize>) -> impl Iterator<Item = usize> {
    let declared = declared.map(move |bytes| bytes * size.tokens);
    let controls = if size.kept > 0 { size.rows * size_of::<Control>() } else { 0 };
    declared.chain([8 * size.rows, 4 * (size.rows + 1), 4 * size.rows, 4 * size.rows * size.blocks, controls])
}

/// Runs the packed passes of a model, one after another.
pub struct GpuRunner {
    /// Declared before the buffers whose addresses they hold.
    graphs: Graphs<CapturedGraph>,
    captures: Arc<Captures>,
    binding: Binding,
    options: RunOptions,
    feeds: Vec<Feed>,
    /// The inputs on the host and on the device.
    inputs: (HostBuffer, DeviceBuffer),
    /// By input: its place and its room in the buffers, for the size of the last pass.
    places: Vec<(usize, usize)>,
    /// See [`BOUNDS`].
    bounds: Box<[i32; 3]>,
    /// For the attention operators, and its address.
    pass: Box<GpuPass>,
    address: Box<[i64; 1]>,
    logits: DeviceBuffer,
    /// Rows of passes that have few.
    few: HostBuffer,
    /// How many bytes of them the last pass gave, if it was such a pass.
    staged: Option<usize>,
    /// Bytes of a row.
    row: usize,
    element: TensorElementType,
    columns: usize,
    name: std::ffi::CString,
    done: Event,
    on_device: MemoryInfo<'static>,
    on_host: MemoryInfo<'static>,
    store: GpuStore,
    limits: Limits,
    device: Arc<Device>,
    /// Time inside the call that began the pass.
    elapsed: Duration,
    /// Whether the last pass took as long as later ones of its size will.
    pub is_usual: bool,
    _loaded: Arc<LoadedSession>,
}

impl GpuRunner {
    /// Passes of a rewritten export over the caches of a store.
    pub fn new(
        loaded: &Arc<LoadedSession>,
        export: &Export,
        layers: &[LayerShape],
        captures: &Arc<Captures>,
        mut store: GpuStore,
    ) -> ort::Result<Self> {
        let device = loaded.device.clone().ok_or_else(|| ort::Error::new("the model is on no GPU"))?;
        let mut options = RunOptions::new()?;
        GpuPasses::set_options(&mut options)?;
        let on_device =
            MemoryInfo::new(AllocationDevice::CUDA, device.id(), AllocatorType::Device, MemoryType::Default)?;
        let mut binding = Binding::new(&loaded.session).map_err(|error| ort::Error::new(error.to_string()))?;
        store.bind(&mut binding, &on_device)?;
        let feeds = feeds(loaded, export);
        let reads_positions = feeds.iter().any(|feed| feed.input.role == Role::Positions);
        let length = export.context_length;
        let tokens = if reads_positions { length } else { usize::MAX };
        let limits = Limits { pass: SizeLimits { tokens, blocks: length.div_ceil(store.block()) }, length };
        let pass = Box::new(GpuPass::new(&device, layers)?);
        let row = export.logits.columns * export::element_bytes(export.logits.element).unwrap_or(4);
        let pair =
            |bytes| Ok::<_, ort::Error>((HostBuffer::zeroed(&device, bytes)?, DeviceBuffer::zeroed(&device, bytes)?));
        Ok(GpuRunner {
            graphs: Graphs::new(MOST_GRAPHS),
            captures: captures.clone(),
            binding,
            options,
            feeds,
            inputs: pair(INPUT_BYTES)?,
            places: Vec::new(),
            bounds: Box::default(),
            address: Box::new([&raw const *pass as i64]),
            pass,
            logits: DeviceBuffer::zeroed(&device, row * USUAL_ROWS.min(ROW_BYTES / row).max(1))?,
            few: HostBuffer::zeroed(&device, FEW_BYTES)?,
            staged: None,
            row,
            element: export.logits.element,
            columns: export.logits.columns,
            name: export.logits.name.clone(),
            done: Event::new(&device)?,
            on_device,
            on_host: MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)?,
            store,
            limits,
            device,
            elapsed: Duration::ZERO,
            is_usual: true,
            _loaded: loaded.clone(),
        })
    }

    /// The caches.
    pub fn store(&mut self) -> &mut GpuStore {
        &mut self.store
    }

    /// Make room for rows that hold `numbers` numbers.
    pub fn make_room(&self, rows: &mut PassRows, numbers: usize) -> ort::Result<()> {
        let bytes = numbers * self.row / self.columns;
        match rows {
            PassRows::Pinned(memory, _) if memory.len() >= bytes => {}
            _ => *rows = PassRows::Pinned(HostBuffer::zeroed(&self.device, bytes.next_power_of_two())?, self.element),
        }
        Ok(())
    }

    /// Put a pass on the GPU. Its rows will be in `rows`, which must stay until it is finished. On an error nothing is
    /// running.
    pub fn begin(&mut self, pass: &Layout, plan: &RowsPlan, rows: &mut PassRows) -> ort::Result<()> {
        let size = pass_size(pass, plan).padded(self.limits.pass);
        let size = if self.captures(size) { self.graphs.choose(size) } else { size };
        self.place(size)?;
        self.fill(pass, size)?;
        if size.kept > 0 {
            let controls: &mut [Control] = numbers(self.inputs.0.bytes_mut(), self.places[self.feeds.len() + 4]);
            let (own, none) = controls.split_at_mut(plan.controls.len());
            own.copy_from_slice(&plan.controls);
            none.fill(Control::zeroed());
        }
        let started = Instant::now();
        let result = self.launch(size, rows, plan.host.clone());
        self.elapsed = started.elapsed();
        result
    }

    /// Wait for the pass that was begun, and for its rows. Returns the time inside both calls.
    pub fn finish(&mut self, rows: &mut PassRows) -> ort::Result<Duration> {
        let started = Instant::now();
        self.done.wait()?;
        if let (Some(bytes), PassRows::Pinned(rows, _)) = (self.staged, rows) {
            rows.bytes_mut()[..bytes].copy_from_slice(&self.few.bytes()[..bytes]);
        }
        Ok(self.elapsed + started.elapsed())
    }

    /// Decide where inputs are, and make room for them and for the rows.
    fn place(&mut self, size: PassSize) -> ort::Result<()> {
        let mut end = 0;
        self.places.clear();
        for bytes in input_bytes(size, self.feeds.iter().map(|feed| feed.numbers.size())) {
            self.places.push((end, bytes));
            end += bytes.next_multiple_of(ALIGNMENT);
        }
        let rows = size.rows * self.row;
        if self.inputs.0.len() < end || self.logits.len() < rows {
            self.graphs.clear(); // they hold addresses
            let room = [end.max(self.inputs.0.len()), rows.max(self.logits.len())].map(usize::next_power_of_two);
            self.inputs = (HostBuffer::zeroed(&self.device, room[0])?, DeviceBuffer::zeroed(&self.device, room[0])?);
            self.logits = DeviceBuffer::zeroed(&self.device, room[1])?;
        }
        Ok(())
    }

    /// Write the inputs into the buffer on the host.
    fn fill(&mut self, pass: &Layout, size: PassSize) -> ort::Result<()> {
        let GpuRunner { feeds, inputs: (host, _), places, .. } = self;
        let host = host.bytes_mut();
        let padding = std::iter::repeat_n(0, size.tokens - pass.tokens.len());
        for (feed, &(place, _)) in feeds.iter_mut().zip(&*places) {
            let values = if feed.input.role == Role::Tokens { &pass.tokens } else { &pass.positions };
            feed.numbers.fill(values.iter().copied().chain(padding.clone()))?;
            let bytes = feed.numbers.bytes();
            host[place..place + bytes.len()].copy_from_slice(bytes);
        }
        let [rows, ends, pasts, blocks] = [0, 1, 2, 3].map(|index| places[feeds.len() + index]);
        let rows: &mut [i64] = numbers(host, rows);
        rows[..pass.rows.len()].copy_from_slice(&pass.rows);
        rows[pass.rows.len()..].fill(0);
        let mut end = 0;
        for (index, place) in numbers::<i32>(host, ends).iter_mut().enumerate() {
            *place = end;
            end += pass.parts.get(index).map_or(0, |part| part.width as i32);
        }
        for (index, place) in numbers::<i32>(host, pasts).iter_mut().enumerate() {
            *place = pass.parts.get(index).map_or(0, |part| part.past as i32);
        }
        for (index, row) in numbers::<i32>(host, blocks).chunks_exact_mut(size.blocks).enumerate() {
            let known = pass.parts.get(index).map_or(&[][..], |part| &pass.blocks[part.blocks.clone()]);
            let (there, none) = row.split_at_mut(known.len());
            there.iter_mut().zip(known).for_each(|(place, block)| *place = block.0 as i32);
            none.fill(-1);
        }
        (self.pass.widest, self.pass.longest) =
            (size.widest, (size.blocks * self.store.block()).min(self.limits.length));
        *self.bounds = [self.pass.widest as i32, self.pass.longest as i32, 0];
        Ok(())
    }

    fn bind(&mut self, size: PassSize) -> ort::Result<()> {
        let GpuRunner { feeds, inputs: (_, device), places, binding, on_device, .. } = self;
        let mut tensor = |index: usize, element, shape: &[i64]| {
            let (place, bytes) = places[index];
            // SAFETY: the input is inside the buffer, which stays until another one is bound.
            unsafe { Tensor::at(on_device, device.address().byte_add(place), bytes, element, shape) }
        };
        let (tokens, count) = (size.tokens as i64, size.rows as i64);
        for (index, Feed { input, .. }) in feeds.iter().enumerate() {
            let shape = [1, tokens];
            binding.input(&input.name, &tensor(index, input.element, &shape[2 - input.rank..])?)?;
        }
        let (first, int32) = (feeds.len(), TensorElementType::Int32);
        binding.input(ROWS, &tensor(first, TensorElementType::Int64, &[size.rows as i64])?)?;
        binding.input(ENDS, &tensor(first + 1, int32, &[count + 1])?)?;
        binding.input(PASTS, &tensor(first + 2, int32, &[count])?)?;
        binding.input(BLOCKS, &tensor(first + 3, int32, &[count, size.blocks as i64])?)?;
        let bounds = Tensor::over(&self.on_host, &mut self.bounds[..], int32, &[3])?;
        binding.input(BOUNDS, &bounds)?;
        let address = Tensor::over(&self.on_host, &mut self.address[..], TensorElementType::Int64, &[1])?;
        binding.input(TABLE, &address)?;
        let shape = [1, size.rows as i64, self.columns as i64];
        // SAFETY: `place` made the buffer large enough, and it stays until another one is bound.
        let logits =
            unsafe { Tensor::at(on_device, self.logits.address(), size.rows * self.row, self.element, &shape) }?;
        binding.output(&self.name, &logits)
    }

    /// Put the pass on the stream: by its graph, or by a run, which may be captured on the way. On an error, the stream
    /// is idle again.
    fn launch(&mut self, size: PassSize, rows: &mut PassRows, host: Range<usize>) -> ort::Result<()> {
        let state = self.graphs.take(size);
        let may_capture = self.captures(size);
        let device = self.device.clone();
        let queue = device.queue()?;
        self.is_usual = !may_capture || matches!(state, Some(Capture::Graph(_)));
        let (state, result) = match state {
            Some(Capture::Graph(graph)) if may_capture => {
                let result = queue.launch(&graph);
                (Some(Capture::Graph(graph)), result)
            }
            Some(Capture::Warm) if may_capture => self.capture(&queue, size),
            _ => (may_capture.then_some(Capture::Warm), self.run_plainly(&queue, size)),
        };
        if let Some(state) = state {
            self.graphs.put(size, state);
        }
        self.staged = self.stages(size).then_some(host.end * self.row);
        let copied = result.and_then(|()| match rows {
            _ if self.staged.is_some() || host.is_empty() => Ok(()),
            // The graph does not copy them, because each pass has other memory for its rows.
            PassRows::Pinned(rows, _) => queue.copy_out(&self.logits, rows, host.start * self.row, host.end * self.row),
            PassRows::Host(_) => Err(ort::Error::new("the rows are not in memory of the GPU")),
        });
        copied.and_then(|()| queue.record(&self.done)).inspect_err(|_| queue.drain())
    }

    /// Whether passes of a size may be captured.
    fn captures(&self, size: PassSize) -> bool {
        size.is_captured() && self.captures.refused().is_none()
    }

    /// Whether a pass copies its rows itself.
    fn stages(&self, size: PassSize) -> bool {
        size.kept == 0 && size.rows * self.row <= FEW_BYTES
    }

    fn run_plainly(&mut self, queue: &Queue, size: PassSize) -> ort::Result<()> {
        self.bind(size)?;
        let _running = cuda::running();
        queue.by_runner(|queue| self.work(queue, size))
    }

    /// Capture the pass and launch its graph. If other threads use the GPU, or if the capture fails, the pass is run.
    fn capture(&mut self, queue: &Queue, size: PassSize) -> (Option<Capture<CapturedGraph>>, ort::Result<()>) {
        if let Err(error) = self.bind(size) {
            return (Some(Capture::Warm), Err(error));
        }
        let captured =
            cuda::alone().map(|_alone| queue.by_runner(|queue| queue.capture(|queue| self.work(queue, size))));
        match captured {
            Some(Ok(graph)) => {
                self.captures.succeed();
                let result = queue.launch(&graph);
                (Some(Capture::Graph(graph)), result)
            }
            failed => {
                if let Some(Err(error)) = failed {
                    self.captures.fail(size.tokens, &error);
                    // The next run may report the error of the capture as its own, so it is tried twice.
                    _ = self.run_plainly(queue, size);
                }
                (Some(Capture::Warm), self.run_plainly(queue, size))
            }
        }
    }

    /// Copy the inputs to the device, and run the model.
    fn work(&mut self, queue: &Queue, size: PassSize) -> ort::Result<()> {
        let bytes = self.places.last().map_or(0, |(place, bytes)| place + bytes);
        queue.copy_first(&self.inputs.0, &self.inputs.1, bytes)?;
        self.binding.run(&self.options)?;
        if size.kept > 0 {
            let (place, _) = self.places[self.feeds.len() + 4];
            let control = self.inputs.1.place() + place as u64;
            let shares = Shares { control, count: size.rows, most: size.kept, filters: size.filters };
            queue_rows(&self.device, queue, self.logits.place(), (self.element, self.columns), shares)?;
        }
        if self.stages(size) { queue.copy_out(&self.logits, &mut self.few, 0, size.rows * self.row) } else { Ok(()) }
    }
}

/// An input in the buffer.
fn numbers<T: bytemuck::Pod>(host: &mut [u8], (place, bytes): (usize, usize)) -> &mut [T] {
    bytemuck::cast_slice_mut(&mut host[place..place + bytes])
}
