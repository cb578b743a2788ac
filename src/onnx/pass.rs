//! One pass of a sequence: fills the inputs, binds the buffers, runs the graph, and reads the logits.

use std::time::Instant;

use bytemuck::Zeroable;
use half::{bf16, f16};
use ort::value::TensorElementType;

use super::binding::Tensor;
use super::cache::Storage;
use super::gpu_passes::{GpuPasses, Output};
use super::inputs::{Feed, Numbers};
use super::logits::{KEPT_ROWS, lengthen};
use super::sequence::{LaunchedPass, OnnxSequence, PassPlan};
use crate::cuda;
use crate::error::Error;
use crate::export::{self, CacheKind, CacheTensor, GivenRows, Logits, Role};
use crate::model::Interrupt;
use crate::rows::device;
use crate::rows::records::Control;
use crate::rows::widen::{widen_bf16, widen_f16};

impl OnnxSequence {
    /// Run one pass, or wait for it if it was launched. `keep` is as in [`crate::model::Pass`].
    pub fn pass(&mut self, tokens: &[i32], cut: PassPlan, keep: usize) -> Result<(), Interrupt> {
        if self.cancel.is_requested() {
            self.abandon();
            return Err(Interrupt::Cancelled);
        }
        let result = match self.gpu {
            None => self.run_on_host(tokens, cut, keep),
            Some(_) => {
                if self.begun.is_none() {
                    self.begin_on_gpu(tokens, cut, keep);
                }
                self.finish_on_gpu(keep)
            }
        };
        let end = self.len() + cut.width;
        self.cache.finish_pass(result.is_ok());
        self.cache.truncate(end); // removes the padding
        match result {
            Ok(()) => Ok(()),
            Err(error) => {
                self.sound = false;
                if self.cancel.is_requested() {
                    return Err(Interrupt::Cancelled);
                }
                Err(Error::Runtime(format!("{}: {error}", self.export.file.display())).into())
            }
        }
    }

    /// Run a pass of an export whose shape of logits is unknown, and return that shape.
    pub fn try_out(&mut self, tokens: &[i32]) -> ort::Result<Vec<i64>> {
        let cut = PassPlan { width: tokens.len(), unwanted: 0, padding: 0 };
        self.fill_inputs(tokens, cut, &Control::zeroed())?;
        self.bind_inputs()?;
        self.binding.output_anywhere(&self.export.logits.name, &self.memory)?;
        let OnnxSequence { gpu, binding, options, .. } = self;
        match gpu {
            None => self.run_bound()?,
            Some(gpu) => {
                let queue = gpu.queue()?;
                let _running = cuda::running();
                let result = gpu.copy_in(&queue).and_then(|()| queue.by_runner(|_| binding.run(options)));
                queue.drain();
                result?;
            }
        }
        self.binding.last_output_shape()
    }

    /// Run a pass of a model on the host, and read its logits.
    fn run_on_host(&mut self, tokens: &[i32], cut: PassPlan, keep: usize) -> ort::Result<()> {
        self.bind(tokens, cut, keep)?;
        let started = Instant::now();
        let result = self.run_bound();
        self.elapsed += started.elapsed();
        result?;
        self.read_raw(cut);
        Ok(())
    }

    /// Run a pass whose inputs and outputs are in host memory. The session may still be on a GPU.
    fn run_bound(&mut self) -> ort::Result<()> {
        let OnnxSequence { copies, binding, options, .. } = self;
        let Some(device) = copies else { return binding.run(options) };
        let queue = device.queue()?;
        let _running = cuda::running();
        queue.by_runner(|_| binding.run(options))
    }

    /// Put a pass on the GPU's stream, with copies before and after it. A captured graph of this width is launched if
    /// there is one.
    pub fn begin_on_gpu(&mut self, tokens: &[i32], cut: PassPlan, keep: usize) {
        let output = self.queue_tokens(tokens, cut, keep);
        self.begun = Some(LaunchedPass { cut, output });
    }

    /// Fill the inputs, decide where the rows go, and queue the pass.
    fn queue_tokens(&mut self, tokens: &[i32], cut: PassPlan, keep: usize) -> ort::Result<Output> {
        let (wanted, all) = (cut.wanted(), self.rows_given(cut));
        let start = self.cache.len();
        let position = start + 1 + cut.unwanted;
        let end = position + wanted;
        let given = all - cut.padding;
        let keep = keep.min(position);
        let kept = self.gpu.as_ref().and_then(|gpu| gpu.rows.as_ref()).filter(|_| end - keep <= device::SLOTS);
        let (control, output) = match kept {
            Some(rows) => {
                let control = rows.control(start, tokens, end - given, given, given - wanted);
                (control, Output::Device(given))
            }
            None => {
                self.join_rows(position, keep)?;
                (Control::zeroed(), Output::Host(given - wanted, given))
            }
        };
        self.fill_inputs(tokens, cut, &control)?;
        let Logits { element, columns, .. } = self.export.logits;
        let row = columns * export::element_bytes(element).unwrap_or(4);
        let output = match output {
            Output::Host(from, to) => {
                self.rows.reserve(position, wanted, keep)?;
                Output::Host(from * row, to * row)
            }
            kept => kept,
        };
        let gpu = self.gpu.as_mut().expect("the sequence is on a GPU");
        gpu.make_room(all * row, cut.total())?;
        self.peak_logits = self.peak_logits.max(self.logits_bytes());
        let started = Instant::now();
        let result = self.queue_pass(cut.total(), all, output);
        self.elapsed += started.elapsed();
        result.map(|()| output)
    }

    /// Wait for the launched pass, and move its rows to where they are read.
    fn finish_on_gpu(&mut self, keep: usize) -> ort::Result<()> {
        let Some(LaunchedPass { cut, output }) = self.begun.take() else { return Ok(()) };
        let output = output?;
        let started = Instant::now();
        let waited = self.gpu.as_ref().map_or(Ok(()), GpuPasses::wait);
        self.elapsed += started.elapsed();
        waited?;
        let (position, end) = (self.cache.len() + 1 + cut.unwanted, self.cache.len() + 1 + cut.width);
        match (output, self.gpu.as_mut().and_then(|gpu| gpu.rows.as_mut())) {
            (Output::Device(_), Some(rows)) => rows.keep(position..end, keep),
            (_, rows) => {
                if let Some(rows) = rows {
                    rows.lose(position..end);
                }
                self.read_raw(cut);
            }
        }
        Ok(())
    }

    /// Make the rows from `keep` up to `position` consecutive on the host. They are already if the last pass left them
    /// there.
    fn join_rows(&mut self, position: usize, keep: usize) -> ort::Result<()> {
        if self.rows.next() == position || self.gpu.as_ref().is_none_or(|gpu| gpu.rows.is_none()) {
            return Ok(());
        }
        let kept = (keep..position).map(|position| Ok(self.whole_row(position)?.to_vec()));
        let kept = kept.collect::<ort::Result<Vec<Vec<f32>>>>()?;
        self.rows.set(keep, &kept);
        Ok(())
    }

    /// Bind the pass unless a graph replaces it, and launch it.
    fn queue_pass(&mut self, width: usize, given: usize, output: Output) -> ort::Result<()> {
        let use_graph = self.gpu.as_ref().is_some_and(|gpu| gpu.has_graph(width, output));
        if !use_graph {
            self.bind_inputs()?;
            let Logits { name, element, rank, columns, .. } = &self.export.logits;
            let bytes = given * columns * export::element_bytes(*element).unwrap_or(4);
            let shape = [1, given as i64, *columns as i64];
            let shape = if *rank == 2 { &[1, *columns as i64][..] } else { &shape };
            let gpu = self.gpu.as_mut().expect("the sequence is on a GPU");
            let value = gpu.logits_tensor(width, bytes, *element, shape)?;
            self.binding.output(name, &value)?;
        }
        let OnnxSequence { gpu, binding, options, .. } = self;
        gpu.as_mut().expect("the sequence is on a GPU").launch(width, output, || binding.run(options))
    }

    /// Bind the inputs and outputs of a pass on the host.
    fn bind(&mut self, tokens: &[i32], cut: PassPlan, keep: usize) -> ort::Result<()> {
        let position = self.cache.len() + 1 + cut.unwanted;
        let wanted = cut.wanted();
        self.fill_inputs(tokens, cut, &Control::zeroed())?;
        self.bind_inputs()?;
        let given = self.rows_given(cut);
        let Logits { name, element, rank, columns, .. } = &self.export.logits;
        let shape = [1, given as i64, *columns as i64];
        let shape = if *rank == 2 { &[1, *columns as i64][..] } else { &shape };
        let rows = self.rows.reserve(position, wanted, keep)?;
        let value = if given == wanted && *element == TensorElementType::Float32 {
            Tensor::over(&self.memory, rows, *element, shape)?
        } else {
            let bytes = given * columns * export::element_bytes(*element).unwrap_or(4);
            lengthen(&mut self.raw, bytes.div_ceil(4), 0)?;
            Tensor::over(&self.memory, &mut self.raw, *element, shape)?
        };
        self.peak_logits = self.peak_logits.max(self.logits_bytes());
        self.binding.output(name, &value)
    }

    /// Bytes of all buffers for logits, and of the inputs on a GPU.
    pub fn logits_bytes(&self) -> usize {
        self.rows.bytes() + 4 * self.raw.capacity() + self.gpu.as_ref().map_or(0, GpuPasses::bytes)
    }

    /// Free the memory for logits of a long prompt. Without a cache, the next pass would need it again.
    pub fn trim(&mut self, keep: usize) {
        self.rows.trim(keep);
        if let Some(gpu) = &mut self.gpu {
            gpu.trim();
        }
        let most = KEPT_ROWS * self.export.logits.columns;
        if self.raw.len() > 2 * most && self.export.cache_kind != CacheKind::None {
            self.raw.truncate(most);
            self.raw.shrink_to_fit();
        }
    }

    /// The number of rows that a pass gives. Rows of padding come last.
    fn rows_given(&self, cut: PassPlan) -> usize {
        match (self.export.logits.rows, self.export.cache_kind) {
            (GivenRows::Last, _) => 1,
            (GivenRows::Counted, _) => cut.wanted() + cut.padding,
            (GivenRows::All, CacheKind::None) => self.tokens.len(),
            (GivenRows::All, _) => cut.total(),
        }
    }

    /// Copy the rows of a pass to where they are read, as float32.
    fn read_raw(&mut self, cut: PassPlan) {
        let wanted = cut.wanted();
        let given = self.rows_given(cut) - cut.padding;
        let Logits { element, columns, .. } = self.export.logits;
        if given == wanted && element == TensorElementType::Float32 && self.gpu.is_none() {
            return;
        }
        let rows = self.rows.last(wanted);
        let (skipped, size) = ((given - wanted) * columns, rows.len());
        let raw = match &self.gpu {
            None => self.raw.as_ptr().cast::<u8>(),
            Some(gpu) => gpu.logits(cut.total()).as_ptr(),
        };
        // SAFETY: the buffer has room for `given` rows of this type. All its bit patterns are valid values, and units
        // of four bytes are aligned for it.
        unsafe {
            match element {
                TensorElementType::Float16 => {
                    widen_f16(std::slice::from_raw_parts(raw.cast::<f16>().add(skipped), size), rows);
                }
                TensorElementType::Bfloat16 => {
                    widen_bf16(std::slice::from_raw_parts(raw.cast::<bf16>().add(skipped), size), rows);
                }
                _ => rows.copy_from_slice(std::slice::from_raw_parts(raw.cast::<f32>().add(skipped), size)),
            }
        }
    }

    /// Make room in the cache for a pass, and fill its inputs.
    fn fill_inputs(&mut self, tokens: &[i32], cut: PassPlan, control: &Control) -> ort::Result<()> {
        let mut prepared = self.cache.prepare(cut.total());
        if prepared.is_err() && self.spares.upgrade().is_some_and(|spares| spares.clear()) {
            prepared = self.cache.prepare(cut.total()); // with the memory of the spares
        }
        let moved = prepared.map_err(|error| match error {
            Error::Runtime(what) => ort::Error::new(what),
            other => ort::Error::new(other.to_string()),
        })?;
        // If this pass fails before it binds the new buffers, the next one must.
        self.bound &= !moved;
        let (entries, len, capacity) = (self.cache.entries(), self.cache.len(), self.cache.capacity());
        // Without a cache, every pass runs the whole sequence.
        let (first, place, width) = match self.export.cache_kind {
            CacheKind::None => {
                self.tokens.extend_from_slice(tokens);
                (0, 0, self.tokens.len())
            }
            _ => (len as i64, entries as i64, cut.total()),
        };
        let tokens = if self.export.cache_kind == CacheKind::None { &self.tokens } else { tokens };
        let (width, total) = (width as i64, place + width as i64);
        // A CUDA graph fixes the length of the mask, so the mask is as long as the cache.
        let whole = self.gpu.as_mut().is_some_and(GpuPasses::may_capture).then_some(capacity);
        for Feed { input, numbers, .. } in &mut self.feeds {
            let room = input.length.or(whole).unwrap_or(0).saturating_sub(total as usize);
            match input.role {
                // Bound where the cache keeps it, since a copy would grow with every token.
                Role::Mask if input.element == TensorElementType::Int64 && room == 0 && self.gpu.is_none() => {
                    *numbers = Numbers::OfCache;
                }
                Role::Tokens => {
                    let padding = std::iter::repeat_n(0, cut.padding);
                    numbers.fill(tokens.iter().map(|&token| i64::from(token)).chain(padding))?;
                }
                Role::Mask => numbers.fill(self.cache.mask().iter().copied().chain(std::iter::repeat_n(0, room)))?,
                Role::Positions => numbers.fill(first..first + width)?,
                Role::CachePositions => numbers.fill(place..total)?,
                Role::LogitsToKeep => numbers.fill([(cut.wanted() + cut.padding) as i64])?,
                Role::TokenTypes => numbers.fill(std::iter::repeat_n(0, width as usize))?,
                Role::PastLength => numbers.fill([place])?,
                Role::TotalLength => numbers.fill([total])?,
                Role::LastPosition => numbers.fill([total - 1])?,
                Role::HasPast => numbers.fill([i64::from(place > 0)])?,
            }
        }
        if let Some(gpu) = &mut self.gpu {
            if moved {
                gpu.forget_graphs();
            }
            let on_device = self.feeds.iter().filter(|feed| feed.input.role.is_sequence());
            gpu.fill(on_device.map(|feed| feed.numbers.bytes()), control)?;
        }
        Ok(())
    }

    /// Bind the inputs of [`OnnxSequence::fill_inputs`], and the cache unless it is bound already.
    fn bind_inputs(&mut self) -> ort::Result<()> {
        let bound = std::mem::replace(&mut self.bound, false) && self.copies.is_none();
        let (entries, total, capacity) = (self.cache.entries(), self.cache.mask().len(), self.cache.capacity());
        let kind = self.export.cache_kind;
        let (before, behind) = match kind {
            CacheKind::Concatenated => (entries, total),
            _ => (capacity, capacity),
        };
        if !bound || matches!(kind, CacheKind::Concatenated | CacheKind::Fixed { in_place: false, .. }) {
            let memory = self.gpu.as_ref().map_or(&*self.memory, GpuPasses::memory);
            let tensor = |storage: &mut Storage, tensor: &CacheTensor, tokens: usize| {
                // SAFETY: the storage has that many bytes, and stays until another one is bound in its place.
                unsafe {
                    let shape = tensor.shape(tokens);
                    Tensor::at(memory, storage.address(), 4 * storage.len(), tensor.element, &shape[..tensor.rank()])
                }
            };
            for ((past, present), of) in self.cache.buffers().zip(&self.export.cache) {
                let value = tensor(past, of, before)?;
                self.binding.input(&of.past, &value)?;
                match present {
                    Some(present) => self.binding.output(&of.present, &tensor(present, of, behind)?)?,
                    None => self.binding.output(&of.present, &value)?,
                }
            }
        }
        let mut index = 0;
        for Feed { input, numbers } in &mut self.feeds {
            if let Numbers::OfCache = numbers {
                let value = Tensor::over(&self.memory, self.cache.mask(), input.element, &[1, total as i64])?;
                self.binding.input(&input.name, &value)?;
                continue;
            }
            let shape = [1, numbers.len() as i64];
            let shape = &shape[2 - input.rank..];
            let value = match &mut self.gpu {
                Some(gpu) if input.role.is_sequence() => {
                    index += 1;
                    gpu.input_tensor(index - 1, input.element, shape)?
                }
                _ => numbers.tensor(&self.memory, shape)?,
            };
            self.binding.input(&input.name, &value)?;
        }
        self.bound = true;
        Ok(())
    }
}
