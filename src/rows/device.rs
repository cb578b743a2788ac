//! Rows of logits that stay on a GPU, and what is made of them there: see `kernels/rows.cu`.

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use ort::value::TensorElementType;

use super::distribution::Distribution;
use super::filter::Filter;
use super::row::{self, DeviceRow, DeviceRows, DeviceSums, Row};
use super::widen::{widen_bf16, widen_f16};
use crate::cuda::{Device, DeviceBuffer, Event, HostBuffer, Queue, THREADS, WORD, argument};
use crate::error::{Error, Result};

/// Rows that are kept. The same number is in `rows.cu`, as are the next three.
pub const SLOTS: usize = 64;
const CHUNKS: usize = 32;

/// Threads that look for what filters keep of a row.
const NEAR: usize = 1024;

/// Tokens of a pass whose scores are noted.
pub const NOTED: usize = 20;

/// Rows on the host that are kept for the next ones to be asked for.
const SPARE_ROWS: usize = 16;

/// What the kernels are told of a pass.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
pub struct Control {
    first: i32,
    skipped: i32,
    vocab: i32,
    rate: f32,
    start: i32,
    known: i32,
    width: i32,
    top_k: i32,
    top_p: f32,
    distance: f32,
    tokens: [i32; NOTED],
}

impl Control {
    fn of(Filter { rate, top_k, top_p, distance }: Filter, vocab: usize) -> Self {
        let top_k = if top_k < vocab { top_k as i32 } else { 0 };
        Control { vocab: vocab as i32, rate, top_k, top_p, distance, ..Control::zeroed() }
    }
}

/// Of a row: the sum of `e^((score − max) · rate)`, the first maximum, the largest of all other scores, the score of the token
/// that came next, and what a filter keeps.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
pub struct Summary {
    pub(crate) total: f64,
    /// NaN if any score is NaN or plus infinity.
    pub max: f32,
    pub(crate) second: f32,
    pub(crate) best: i32,
    position: i32,
    token: i32,
    score: f32,
    /// The sum over what is kept.
    kept: f64,
    floor: f32,
    /// -1 if it is not known what is kept.
    cut: i32,
}

impl Summary {
    /// What a filter makes of the row, if the kernels have found it out.
    fn distribution(&self, filter: Filter) -> Option<Result<Distribution>> {
        if filter.is_plain() {
            return Some(Distribution::known(filter, self.max, self.total, f32::NEG_INFINITY, usize::MAX));
        }
        let cut = usize::try_from(self.cut).ok()?;
        Some(Distribution::known(filter, self.max, self.kept, self.floor, cut))
    }
}

/// The rows of one sequence. Its methods wait for what they ask the GPU, but for [`Ring::queue`].
pub struct Ring {
    device: Arc<Device>,
    ring: DeviceBuffer,
    parts: DeviceBuffer,
    /// Of each part, the largest score that each thread has seen.
    peaks: DeviceBuffer,
    /// Of each part, the sum over what a filter keeps.
    kept: DeviceBuffer,
    /// One for each slot, written by the GPU, and one more for a draw.
    summaries: HostBuffer,
    staging: RefCell<HostBuffer>,
    done: Event,
    /// The position in each slot, and what its summary was made with.
    held: [(usize, Filter); SLOTS],
    /// The rows that were asked for in full, until nobody may ask any more.
    fetched: [OnceCell<Box<[f32]>>; SLOTS],
    spare: RefCell<Vec<Box<[f32]>>>,
    /// How many rows went to the host.
    copied: Cell<u64>,
    /// The last draw: its position, the token and its score, which is asked for next.
    drawn: Cell<(usize, i32, f32)>,
    /// Whether a copy or a kernel has failed, so that nothing here is to be used again.
    failed: Cell<bool>,
    /// Scores of a row, and those of them that are tokens: the others are padding.
    columns: usize,
    vocab: usize,
    element: TensorElementType,
    /// For the rows to come.
    filter: Filter,
}

const NONE: (usize, Filter) = (usize::MAX, Filter { rate: 0.0, top_k: 0, top_p: 1.0, distance: f32::NEG_INFINITY });

impl Ring {
    /// None are kept yet. `None` where the kernels cannot be had or the element is another one.
    pub fn new(device: &Arc<Device>, columns: usize, element: TensorElementType) -> ort::Result<Option<Self>> {
        Self::with_slots(device, columns, element, SLOTS)
    }

    fn with_slots(
        device: &Arc<Device>,
        columns: usize,
        element: TensorElementType,
        slots: usize,
    ) -> ort::Result<Option<Self>> {
        let Some(size) = size(element).filter(|_| device.no_kernels().is_none()) else { return Ok(None) };
        Ok(Some(Ring {
            device: device.clone(),
            ring: DeviceBuffer::zeroed(device, slots * (columns * size).next_multiple_of(WORD))?,
            parts: DeviceBuffer::zeroed(device, SLOTS * CHUNKS * 24)?,
            peaks: DeviceBuffer::zeroed(device, slots * CHUNKS * THREADS * 4)?,
            kept: DeviceBuffer::zeroed(device, SLOTS * CHUNKS * 8)?,
            summaries: HostBuffer::zeroed(device, (SLOTS + 1) * size_of::<Summary>())?,
            staging: RefCell::new(HostBuffer::zeroed(device, columns * size)?),
            done: Event::new(device)?,
            held: [NONE; SLOTS],
            fetched: std::array::from_fn(|_| OnceCell::new()),
            spare: RefCell::default(),
            copied: Cell::new(0),
            drawn: Cell::new((usize::MAX, 0, 0.0)),
            failed: Cell::new(false),
            columns,
            vocab: columns,
            element,
            filter: Filter::plain(1.0),
        }))
    }

    /// Bytes of its buffers.
    pub fn bytes(&self) -> usize {
        let rows = self.fetched.iter().filter(|row| row.get().is_some()).count() + self.spare.borrow().len();
        let pinned = self.summaries.len() + self.staging.borrow().len();
        self.ring.len() + self.parts.len() + self.peaks.len() + self.kept.len() + pinned + 4 * self.columns * rows
    }

    /// Forget all rows. Those to come are of this many tokens, and padding behind them.
    pub fn clear(&mut self, vocab: usize) {
        self.vocab = vocab;
        self.held = [NONE; SLOTS];
        self.fetched = std::array::from_fn(|_| OnceCell::new());
        self.spare.get_mut().clear();
        self.copied.set(0);
    }

    /// How the rows to come are asked about.
    pub fn set_filter(&mut self, filter: Filter) {
        self.filter = filter;
    }

    /// Whether one more kernel is run for the rows to come.
    pub fn filters(&self) -> bool {
        !self.filter.is_plain()
    }

    /// The place of a slot in the ring.
    fn place_of(&self, slot: usize) -> usize {
        slot * (self.columns * size(self.element).unwrap_or(4)).next_multiple_of(WORD)
    }

    /// For a pass over `tokens` from `start` on, that gives rows of the positions from `first` on, of which the first are not wanted.
    pub fn control(&self, start: usize, tokens: &[i32], first: usize, skipped: usize, vocab: usize) -> Control {
        let mut control = Control {
            first: first as i32,
            skipped: skipped as i32,
            start: start as i32,
            ..Control::of(self.filter, vocab)
        };
        if tokens.len() <= NOTED {
            control.width = tokens.len() as i32;
            control.known = i32::from(self.holds(start));
            control.tokens[..tokens.len()].copy_from_slice(tokens);
        }
        control
    }

    /// Keep the rows of a pass, `given` of them at the front of `logits`, and summarise them. `control` is an address on the device.
    pub fn queue(&self, queue: &Queue, logits: &DeviceBuffer, given: usize, mut control: u64) -> ort::Result<()> {
        let (mut from, mut ring, mut parts) = (logits.place(), self.ring.place(), self.parts.place());
        let (mut peaks, mut kept) = (self.peaks.place(), self.kept.place());
        let mut summaries = self.summaries.bytes().as_ptr() as u64;
        let (mut element, mut columns, mut rows) = (code(self.element), self.columns as i64, given as i32);
        let [logits, element, columns, control, ring, parts, peaks, kept, summaries, rows] = [
            argument(&mut from),
            argument(&mut element),
            argument(&mut columns),
            argument(&mut control),
            argument(&mut ring),
            argument(&mut parts),
            argument(&mut peaks),
            argument(&mut kept),
            argument(&mut summaries),
            argument(&mut rows),
        ];
        let (kernels, count) = (self.device.kernels()?, given as u32);
        // SAFETY: the arguments are those of the kernels, and all addresses stay as long as the graphs that hold them.
        unsafe {
            let arguments = &mut [logits, element, columns, control, ring, parts, peaks];
            queue.run(kernels.keep, (CHUNKS as u32, count, 1), THREADS as u32, arguments)?;
            let arguments = &mut [logits, element, columns, control, ring, parts, summaries, rows];
            queue.run(kernels.summarise, (count + 1, 1, 1), CHUNKS as u32, arguments)?;
            if self.filter.is_plain() {
                return Ok(());
            }
            let arguments = &mut [element, columns, control, ring, parts, peaks, summaries, kept];
            queue.run(kernels.filter, (count, 1, 1), NEAR as u32, arguments)
        }
    }

    /// The rows of these positions were kept by a pass that has succeeded. Of those before them, nobody asks for what comes before
    /// `wanted`.
    pub fn keep(&mut self, positions: Range<usize>, wanted: usize) {
        let spare = self.spare.get_mut();
        for (row, (position, _)) in self.fetched.iter_mut().zip(&self.held) {
            if !(wanted..positions.start).contains(position) {
                spare.extend(row.take());
            }
        }
        spare.truncate(SPARE_ROWS);
        self.drawn.set((usize::MAX, 0, 0.0));
        positions.for_each(|position| self.held[position % SLOTS] = (position, self.filter));
    }

    /// The rows of these positions are on the host: a pass has left them there.
    pub fn lose(&mut self, positions: Range<usize>) {
        self.copied.set(self.copied.get() + positions.len() as u64);
        for position in positions {
            let held = &mut self.held[position % SLOTS];
            if held.0 == position {
                *held = NONE;
            }
        }
    }

    /// Whether asking for rows has failed, so that the GPU may be in any state.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    fn failed(&self, error: ort::Error) -> Error {
        self.failed.set(true);
        failed(error)
    }

    /// Whether it has the row of a position.
    pub fn holds(&self, position: usize) -> bool {
        self.held[position % SLOTS].0 == position
    }

    fn summary_at(&self, slot: usize) -> Summary {
        let size = size_of::<Summary>();
        bytemuck::pod_read_unaligned(&self.summaries.bytes()[slot * size..(slot + 1) * size])
    }

    /// The score of a token at a position that is held.
    fn score_at(&self, position: usize, token: usize) -> ort::Result<f32> {
        let slot = position % SLOTS;
        if let Some(row) = self.fetched[slot].get() {
            return Ok(row[token]);
        }
        let summary = self.summary_at(slot);
        if summary.position == position as i32 {
            if summary.token == token as i32 {
                return Ok(summary.score);
            }
            if summary.best == token as i32 && !summary.max.is_nan() {
                return Ok(summary.max);
            }
        }
        if let (of, drawn, score) = self.drawn.get()
            && (of, drawn) == (position, token as i32)
        {
            return Ok(score);
        }
        let mut score = [0.0];
        let place = self.place_of(slot) + token * size(self.element).unwrap_or(4);
        self.copy(place, 1, &mut score)?;
        Ok(score[0])
    }

    /// The whole row of a position that is held, padding included.
    pub fn row(&self, position: usize) -> ort::Result<&[f32]> {
        let slot = position % SLOTS;
        if self.fetched[slot].get().is_none() {
            self.copied.set(self.copied.get() + 1);
            let spare = self.spare.borrow_mut().pop();
            let mut row = spare.unwrap_or_else(|| vec![0.0; self.columns].into());
            self.copy(self.place_of(slot), self.columns, &mut row)?;
            _ = self.fetched[slot].set(row);
        }
        Ok(self.fetched[slot].get().expect("it was set"))
    }

    fn copy(&self, place: usize, count: usize, out: &mut [f32]) -> ort::Result<()> {
        let size = size(self.element).expect("it was checked");
        let mut staging = self.staging.borrow_mut();
        let queue = self.device.queue()?;
        let queued = queue.copy_part(&self.ring, place, &mut staging, count * size);
        self.wait(queue, queued)?;
        let bytes = &staging.bytes()[..count * size];
        match self.element {
            TensorElementType::Float16 => widen_f16(bytemuck::cast_slice(bytes), out),
            TensorElementType::Bfloat16 => widen_bf16(bytemuck::cast_slice(bytes), out),
            _ => out.copy_from_slice(bytemuck::cast_slice(bytes)),
        }
        Ok(())
    }

    fn draw_kept(
        &self,
        slot: usize,
        position: usize,
        Distribution { mut max, mut floor, cut, .. }: Distribution,
        mut share: f64,
    ) -> ort::Result<usize> {
        let filter = self.held[slot].1;
        let (mut rate, mut cut) = (filter.rate, token_of(cut));
        let mut kept = if filter.is_plain() { 0 } else { self.kept.place() };
        let (mut ring, mut parts) = (self.ring.place(), self.parts.place());
        let mut out = self.summaries.bytes()[SLOTS * size_of::<Summary>()..].as_ptr() as u64;
        let (mut element, mut columns) = (code(self.element), self.columns as i64);
        let (mut vocab, mut slot) = (self.vocab as i32, slot as i32);
        let arguments = &mut [
            argument(&mut ring),
            argument(&mut element),
            argument(&mut columns),
            argument(&mut vocab),
            argument(&mut slot),
            argument(&mut parts),
            argument(&mut max),
            argument(&mut rate),
            argument(&mut share),
            argument(&mut kept),
            argument(&mut floor),
            argument(&mut cut),
            argument(&mut out),
        ];
        let (queue, kernel) = (self.device.queue()?, self.device.kernels()?.draw);
        // SAFETY: the arguments are those of the kernel, and all addresses stay until it is done.
        let queued = unsafe { queue.run(kernel, (1, 1, 1), THREADS as u32, arguments) };
        self.wait(queue, queued)?;
        let drawn = self.summary_at(SLOTS);
        self.drawn.set((position, drawn.token, drawn.score));
        Ok(drawn.token as usize)
    }

    fn wait(&self, queue: Queue, queued: ort::Result<()>) -> ort::Result<()> {
        match queued.and_then(|()| queue.record(&self.done)) {
            Ok(()) => {
                drop(queue);
                self.done.wait()
            }
            Err(error) => {
                queue.drain();
                Err(error)
            }
        }
    }
}

impl DeviceRows for Ring {
    fn scores(&self, position: usize) -> Result<&[f32]> {
        self.row(position).map(|row| &row[..self.vocab]).map_err(|error| self.failed(error))
    }

    fn score(&self, position: usize, token: usize) -> Result<f32> {
        self.score_at(position, token).map_err(|error| self.failed(error))
    }

    fn best(&self, position: usize) -> Option<(usize, f32, f32)> {
        let summary = self.holds(position).then(|| self.summary_at(position % SLOTS))?;
        Some((summary.best as usize, summary.max, summary.second))
    }

    fn distribution(&self, position: usize, filter: Filter) -> Option<Result<Distribution>> {
        let known = self.held[position % SLOTS] == (position, filter);
        if known { self.summary_at(position % SLOTS).distribution(filter) } else { None }
    }

    fn draw(&self, position: usize, share: f64) -> Result<Option<usize>> {
        let slot = position % SLOTS;
        match self.summary_at(slot).distribution(self.held[slot].1) {
            Some(kept) => self.draw_kept(slot, position, kept?, share).map(Some).map_err(|error| self.failed(error)),
            None => Ok(None),
        }
    }

    fn place(&self, position: usize) -> Option<DeviceRow> {
        let slot = position % SLOTS;
        Some(DeviceRow {
            device: self.device.id(),
            address: self.ring.place() + self.place_of(slot) as u64,
            element: code(self.element),
            max: self.summary_at(slot).max,
        })
    }

    fn copied(&self) -> u64 {
        self.copied.get()
    }

    fn sums(&self) -> Option<Box<dyn DeviceSums>> {
        match GpuSums::new(&self.device, self.vocab) {
            Ok(sums) => Some(Box::new(sums?)),
            Err(error) => {
                tracing::warn!("rows are added up on the host, because the GPU has no room for the sum: {error}");
                None
            }
        }
    }
}

/// An error of the driver, about rows.
fn failed(error: ort::Error) -> Error {
    Error::Runtime(format!("rows of logits on the GPU: {error}"))
}

#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
struct Term {
    row: u64,
    scale: f64,
    max: f32,
    rate: f32,
    element: i32,
    cut: i32,
    floor: f32,
    padding: i32,
}

/// Rows that kernels take at once.
const TERMS: usize = 8;

#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable)]
struct Terms {
    terms: [Term; TERMS],
    count: i32,
    vocab: i32,
    without: i32,
    padding: i32,
}

/// Computes with rows of several models on one GPU.
struct GpuSums {
    /// The sum, in the one slot there is.
    sum: Ring,
    control: HostBuffer,
    /// The sum of the residual in each chunk.
    sums: HostBuffer,
    drawn: HostBuffer,
    /// The parts of the last residual.
    terms: Terms,
    device: Arc<Device>,
    vocab: usize,
}

impl GpuSums {
    fn new(device: &Arc<Device>, vocab: usize) -> ort::Result<Option<Self>> {
        let Some(sum) = Ring::with_slots(device, vocab, TensorElementType::Float32, 1)? else { return Ok(None) };
        Ok(Some(GpuSums {
            sum,
            control: HostBuffer::zeroed(device, size_of::<Control>())?,
            sums: HostBuffer::zeroed(device, 8 * CHUNKS)?,
            drawn: HostBuffer::zeroed(device, size_of::<Summary>())?,
            terms: Terms::zeroed(),
            device: device.clone(),
            vocab,
        }))
    }

    /// The parts as kernels take them; `None` if a row is on another GPU, or if they are too many.
    fn terms(&self, parts: impl Iterator<Item = row::Term>) -> Option<Terms> {
        let mut terms = Terms { vocab: self.vocab as i32, without: -1, ..Terms::zeroed() };
        for row::Term { row, scale, distribution: Distribution { max, rate, floor, cut, .. } } in parts {
            let term = terms.terms.get_mut(terms.count as usize).filter(|_| row.device == self.device.id())?;
            let (row, element, cut) = (row.address, row.element, token_of(cut));
            *term = Term { row, scale, max, rate, element, cut, floor, padding: 0 };
            terms.count += 1;
        }
        Some(terms)
    }

    /// Put work on the stream and wait for it.
    fn work(&self, work: impl FnOnce(&Queue) -> ort::Result<()>) -> Result<()> {
        let waited = self.device.queue().and_then(|queue| {
            let queued = work(&queue);
            self.sum.wait(queue, queued)
        });
        waited.map_err(failed)
    }
}

impl DeviceSums for GpuSums {
    fn add(
        &mut self,
        parts: &mut dyn Iterator<Item = row::Term>,
        judge: Option<(DeviceRow, f32)>,
        filter: Filter,
        token: usize,
    ) -> Result<bool> {
        let judged = judge.map(|(row, _)| row::Term::of_scores(row, 0.0));
        let Some(mut terms) = self.terms(parts.chain(judged)) else { return Ok(false) };
        let (mut judged, mut floor) = (i32::from(judge.is_some()), judge.map_or(0.0, |(_, floor)| floor));
        self.sum.set_filter(filter);
        // As of a pass of one row, at position 0, behind which the token came.
        let mut control = Control { width: 1, ..Control::of(filter, self.vocab) };
        control.tokens[0] = token as i32;
        self.control.bytes_mut().copy_from_slice(bytemuck::bytes_of(&control));
        let control = self.control.bytes().as_ptr() as u64;
        self.work(|queue| {
            let mut out = self.sum.ring.place();
            let arguments =
                &mut [argument(&mut terms), argument(&mut judged), argument(&mut floor), argument(&mut out)];
            // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
            unsafe { queue.run(self.device.kernels()?.weigh, (132, 1, 1), THREADS as u32, arguments)? };
            self.sum.queue(queue, &self.sum.ring, 1, control)
        })?;
        self.sum.keep(0..1, 0);
        Ok(true)
    }

    fn sum(&self) -> Row<'_> {
        Row::Device(&self.sum, 0)
    }

    fn residual(&mut self, parts: &mut dyn Iterator<Item = row::Term>, certain: Option<usize>) -> Result<Option<f64>> {
        let Some(mut terms) = self.terms(parts) else { return Ok(None) };
        terms.without = certain.map_or(-1, token_of);
        let mut sums = self.sums.bytes().as_ptr() as u64;
        let arguments = &mut [argument(&mut terms), argument(&mut sums)];
        // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
        self.work(|queue| unsafe {
            queue.run(self.device.kernels()?.residual, (CHUNKS as u32, 1, 1), THREADS as u32, arguments)
        })?;
        self.terms = terms;
        Ok(Some(bytemuck::cast_slice::<u8, f64>(self.sums.bytes()).iter().sum()))
    }

    fn draw_residual(&self, share: f64) -> Result<usize> {
        let (mut left, mut chunk) = (share, 0);
        for (index, &sum) in bytemuck::cast_slice::<u8, f64>(self.sums.bytes()).iter().enumerate() {
            if sum > 0.0 {
                chunk = index as i32;
                if left < sum {
                    break;
                }
                left -= sum; // rounding may lead behind the last chunk; then the rest is too much of it
            }
        }
        let (mut terms, mut out) = (self.terms, self.drawn.bytes().as_ptr() as u64);
        let arguments = &mut [argument(&mut terms), argument(&mut chunk), argument(&mut left), argument(&mut out)];
        // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
        self.work(|queue| unsafe { queue.run(self.device.kernels()?.pick, (1, 1, 1), THREADS as u32, arguments) })?;
        let drawn: Summary = bytemuck::pod_read_unaligned(self.drawn.bytes());
        usize::try_from(drawn.token)
            .map_err(|_| Error::Internal("a draw from a residual on the GPU found no token".into()))
    }

    fn bytes(&self) -> usize {
        self.sum.bytes() + self.control.len() + self.sums.len() + self.drawn.len()
    }
}

/// A token as kernels take it, or the largest number.
fn token_of(token: usize) -> i32 {
    i32::try_from(token).unwrap_or(i32::MAX)
}

fn size(element: TensorElementType) -> Option<usize> {
    match element {
        TensorElementType::Float32 => Some(4),
        TensorElementType::Float16 | TensorElementType::Bfloat16 => Some(2),
        _ => None,
    }
}

/// What the kernels call it.
fn code(element: TensorElementType) -> i32 {
    match element {
        TensorElementType::Float32 => 0,
        TensorElementType::Float16 => 1,
        _ => 2,
    }
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::cuda::tests::gpu;
    use crate::rows::{Candidates, Sampler};

    /// `scripts/make-ptx` makes it.
    #[test]
    fn the_ptx_is_of_the_source() {
        let source = include_str!("../../kernels/rows.cu");
        let step = |mark: u64, &byte: &u8| (mark ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let mark = source.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
        let ptx = include_str!("../../kernels/rows.ptx");
        assert!(ptx.starts_with(&format!("// rows.cu {mark:016x}\n")), "run scripts/make-ptx");
    }

    #[test]
    fn sizes_are_those_of_the_kernels() {
        let source = include_str!("../../kernels/rows.cu");
        for (name, value) in
            [("CHUNKS", CHUNKS), ("THREADS", THREADS), ("ROWS", SLOTS), ("NOTED", NOTED), ("NEAR", NEAR)]
        {
            assert!(source.contains(&format!("const int {name} = {value};")), "{name}");
        }
        assert_eq!((size_of::<Control>(), size_of::<Summary>()), (4 * (10 + NOTED), 48));
        assert_eq!((size_of::<Term>(), size_of::<Terms>()), (40, 40 * TERMS + 16));
    }

    /// As their type holds them.
    fn narrow(scores: &[f32], element: TensorElementType) -> (Vec<u8>, Vec<f32>) {
        match element {
            TensorElementType::Float16 => {
                let row: Vec<f16> = scores.iter().map(|&score| f16::from_f32(score)).collect();
                (bytemuck::cast_slice(&row).to_vec(), row.iter().map(|score| score.to_f32()).collect())
            }
            TensorElementType::Bfloat16 => {
                let row: Vec<bf16> = scores.iter().map(|&score| bf16::from_f32(score)).collect();
                (bytemuck::cast_slice(&row).to_vec(), row.iter().map(|score| score.to_f32()).collect())
            }
            _ => (bytemuck::cast_slice(scores).to_vec(), scores.to_vec()),
        }
    }

    /// Rows of a pass, as long as those of large models, and not aligned.
    #[test]
    fn long_rows_are_filtered_as_the_sampler_does() {
        let Some(device) = gpu() else { return };
        let mut random = fastrand::Rng::with_seed(11);
        for (element, columns, vocab) in [
            (TensorElementType::Float32, 151_936, 151_936),
            (TensorElementType::Float16, 152_063, 152_063),
            (TensorElementType::Bfloat16, 152_063, 151_669),
            (TensorElementType::Float32, 152_061, 151_669),
            (TensorElementType::Float16, 4_097, 4_000),
        ] {
            let mut peaked =
                || -12.0 + 4.0 * random.f32() + if random.f32() < 0.01 { 14.0 * random.f32() } else { 0.0 };
            let kinds: [Vec<f32>; 4] = [
                (0..vocab).map(|_| peaked()).collect(),
                (0..vocab).map(|token| if token % 2 == 0 { f32::NEG_INFINITY } else { peaked() }).collect(),
                vec![1.5; vocab],
                // All that are any good are in front.
                (0..vocab).map(|token| if token < vocab / 40 { peaked() + 8.0 } else { peaked() - 20.0 }).collect(),
            ];
            // Behind the vocabulary there may be anything.
            let given = kinds.each_ref().map(|scores| {
                let mut whole = scores.clone();
                whole.resize(columns, 99.0);
                narrow(&whole, element)
            });
            let bytes: Vec<u8> = given.iter().flat_map(|(bytes, _)| bytes).copied().collect();
            let mut host = HostBuffer::zeroed(&device, bytes.len()).unwrap();
            host.bytes_mut().copy_from_slice(&bytes);
            let logits = DeviceBuffer::zeroed(&device, bytes.len()).unwrap();
            device.queue().unwrap().copy_in(&host, &logits).unwrap();
            let mut rows = Ring::new(&device, columns, element).unwrap().unwrap();
            rows.clear(vocab);
            let mut told = HostBuffer::zeroed(&device, size_of::<Control>()).unwrap();
            for (top_k, top_p, min_p) in [
                (1, 1.0, 0.0),
                (40, 1.0, 0.0),
                (600, 1.0, 0.0),
                (1000, 1.0, 0.0),
                (3000, 1.0, 0.0),
                (3000, 0.99, 0.0),
                (40, 0.9, 0.0),
                (0, 0.5, 0.0),
                (0, 0.999, 0.0),
                (0, 1.0, 0.05),
                (600, 0.95, 0.01),
            ] {
                let sampler = Sampler::new(0.8, top_k, top_p, min_p).unwrap();
                rows.set_filter(sampler.filter());
                let control = rows.control(0, &[7, 8, 9, 10], 0, 0, vocab);
                told.bytes_mut().copy_from_slice(bytemuck::bytes_of(&control));
                let queue = device.queue().unwrap();
                rows.queue(&queue, &logits, 4, told.bytes().as_ptr() as u64).unwrap();
                rows.wait(queue, Ok(())).unwrap();
                rows.keep(0..4, 0);
                for (position, (_, scores)) in given.iter().enumerate() {
                    let what =
                        format!("{element:?}, {vocab} of {columns}, k {top_k}, p {top_p}, {min_p}: row {position}");
                    let scores = &scores[..vocab];
                    let expected = sampler.process(scores, &mut Candidates::default()).unwrap();
                    let found = rows.distribution(position, sampler.filter()).transpose().unwrap();
                    // Where all are the best, there are too many of them; and of masked or short rows, so many are none that matter.
                    let Some(found) = found else {
                        let is_near = top_k < 600 || (top_k < 3000 && position == 0 && vocab > 100_000);
                        assert!(position == 2 || !is_near, "{what}");
                        continue;
                    };
                    let kept = |of: &Distribution, token| of.probability(scores, token) > 0.0;
                    let others = (0..vocab).filter(|&token| kept(&found, token) != kept(&expected, token)).count();
                    // Rounding may move the end of a nucleus by a token.
                    assert!(others <= usize::from(top_p < 1.0), "{what}: {others} tokens");
                    for token in (0..vocab).filter(|&token| kept(&found, token) && kept(&expected, token)) {
                        let (a, b) = (found.probability(scores, token), expected.probability(scores, token));
                        assert!((a / b - 1.0).abs() < 1e-4, "{what}: {a}, not {b}");
                    }
                    for share in [0.0, 0.3, 0.77, 0.999] {
                        let drawn = rows.draw(position, share * found.total()).unwrap().unwrap();
                        let p = |tokens: Range<usize>| -> f64 {
                            tokens.map(|token| f64::from(found.probability(scores, token))).sum()
                        };
                        let before = p(0..drawn);
                        let is_there = before - 1e-5 <= share && share <= before + p(drawn..drawn + 1) + 1e-5;
                        assert!(kept(&found, drawn) && is_there, "{what}: token {drawn} at {share}");
                        assert_eq!(rows.score(position, drawn).unwrap(), scores[drawn], "{what}");
                    }
                }
            }
            assert_eq!(rows.copied(), 0);
        }
    }
}
