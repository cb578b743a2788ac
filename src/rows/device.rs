//! Rows of logits that stay on a GPU, and what is made of them there: see `kernels/rows.cu`.

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use ort::value::TensorElementType;

use super::widen::{widen_bf16, widen_f16};
use super::{Filter, Filtered, RowMath};
use crate::cuda::{Device, DeviceBuffer, Event, HostBuffer, Queue, THREADS, WORD, argument};
use crate::error::Error;

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
    fn filtered(&self, filter: Filter) -> Option<Filtered> {
        if filter.is_plain() {
            return Some(Filtered::whole((self.max, self.total)));
        }
        let cut = usize::try_from(self.cut).ok()?;
        Some(Filtered { max: self.max, total: self.kept, floor: self.floor, cut })
    }
}

/// The rows of one sequence. Its methods wait for what they ask the GPU, but for [`DeviceRows::queue`].
pub struct DeviceRows {
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
    /// The first thing that failed.
    fault: OnceCell<String>,
    columns: usize,
    element: TensorElementType,
    /// For the rows to come.
    filter: Filter,
}

const NONE: (usize, Filter) = (usize::MAX, Filter { rate: 0.0, top_k: 0, top_p: 1.0, distance: f32::NEG_INFINITY });

impl DeviceRows {
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
        Ok(Some(DeviceRows {
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
            fault: OnceCell::new(),
            columns,
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

    /// Forget all rows.
    pub fn clear(&mut self) {
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

    /// One over the temperature, of the rows to come.
    pub fn rate(&self) -> f32 {
        self.filter.rate
    }

    /// The place of a slot in the ring.
    fn place(&self, slot: usize) -> usize {
        slot * (self.columns * size(self.element).unwrap_or(4)).next_multiple_of(WORD)
    }

    /// How many rows went to the host since all were forgotten: those that were asked for in full, and those of passes that left theirs
    /// there.
    pub fn copied(&self) -> u64 {
        self.copied.get()
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

    /// What has failed, if anything has: what was told since then does not count.
    pub fn fault(&self) -> Option<Error> {
        self.fault.get().map(|what| Error::Runtime(format!("rows of logits on the GPU: {what}")))
    }

    fn noted<T>(&self, result: ort::Result<T>) -> ort::Result<T> {
        result.inspect_err(|error| _ = self.fault.set(error.to_string()))
    }

    /// Whether it has the row of a position.
    pub fn holds(&self, position: usize) -> bool {
        self.held[position % SLOTS].0 == position
    }

    fn summary_at(&self, slot: usize) -> Summary {
        let size = size_of::<Summary>();
        bytemuck::pod_read_unaligned(&self.summaries.bytes()[slot * size..(slot + 1) * size])
    }

    /// What is known of the row of a position at a rate.
    pub fn summary(&self, position: usize, rate: f32) -> Option<Summary> {
        let (of, filter) = self.held[position % SLOTS];
        ((of, filter.rate) == (position, rate)).then(|| self.summary_at(position % SLOTS))
    }

    /// What a filter keeps of the row of a position, if that is known.
    pub fn filtered(&self, position: usize, filter: Filter) -> Option<Filtered> {
        let held = self.held[position % SLOTS] == (position, filter);
        if held { self.summary_at(position % SLOTS).filtered(filter) } else { None }
    }

    /// The score of a token at a position that is held.
    pub fn score(&self, position: usize, token: usize) -> ort::Result<f32> {
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
        let place = self.place(slot) + token * size(self.element).unwrap_or(4);
        self.noted(self.copy(place, 1, &mut score))?;
        Ok(score[0])
    }

    /// The whole row of a position that is held. One that the GPU does not give is NaN.
    pub fn row(&self, position: usize) -> &[f32] {
        let slot = position % SLOTS;
        if self.fetched[slot].get().is_none() {
            self.copied.set(self.copied.get() + 1);
            let spare = self.spare.borrow_mut().pop();
            let mut row = spare.unwrap_or_else(|| vec![0.0; self.columns].into());
            if self.noted(self.copy(self.place(slot), self.columns, &mut row)).is_err() {
                row.fill(f32::NAN);
            }
            _ = self.fetched[slot].set(row);
        }
        self.fetched[slot].get().expect("it was set")
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

    /// The token at which the sum of weights from the front passes `share` of the sum of all that is kept, if that is known.
    pub fn draw(&self, position: usize, vocab: usize, share: f64) -> Option<ort::Result<usize>> {
        let (slot, filter) = (position % SLOTS, self.held[position % SLOTS].1);
        let Filtered { max, floor, cut, .. } = self.summary_at(slot).filtered(filter)?;
        Some(self.draw_kept(slot, position, vocab, (max, floor, cut), share))
    }

    fn draw_kept(
        &self,
        slot: usize,
        position: usize,
        vocab: usize,
        (mut max, mut floor, cut): (f32, f32, usize),
        mut share: f64,
    ) -> ort::Result<usize> {
        let filter = self.held[slot].1;
        let (mut rate, mut cut) = (filter.rate, token_of(cut));
        let mut kept = if filter.is_plain() { 0 } else { self.kept.place() };
        let (mut ring, mut parts) = (self.ring.place(), self.parts.place());
        let mut out = self.summaries.bytes()[SLOTS * size_of::<Summary>()..].as_ptr() as u64;
        let (mut element, mut columns) = (code(self.element), self.columns as i64);
        let (mut vocab, mut slot) = (vocab as i32, slot as i32);
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
        self.noted(self.device.queue().and_then(|queue| {
            let kernel = self.device.kernels()?.draw;
            // SAFETY: the arguments are those of the kernel, and all addresses stay until it is done.
            let queued = unsafe { queue.run(kernel, (1, 1, 1), THREADS as u32, arguments) };
            self.wait(queue, queued)
        }))?;
        let drawn = self.summary_at(SLOTS);
        self.drawn.set((position, drawn.token, drawn.score));
        Ok(drawn.token as usize)
    }

    /// Where the row of a position that is held is.
    pub fn placed(&self, position: usize) -> Placed {
        let row = self.ring.place() + self.place(position % SLOTS) as u64;
        Placed {
            device: self.device.id(),
            row,
            element: code(self.element),
            max: self.summary_at(position % SLOTS).max,
        }
    }

    /// What adds up rows on this GPU.
    pub fn together(&self, vocab: usize) -> ort::Result<Option<Together>> {
        let device = &self.device;
        let Some(sum) = Self::with_slots(device, vocab, TensorElementType::Float32, 1)? else { return Ok(None) };
        Ok(Some(Together {
            sum: RefCell::new(sum),
            control: RefCell::new(HostBuffer::zeroed(device, size_of::<Control>())?),
            sums: HostBuffer::zeroed(device, 8 * CHUNKS)?,
            drawn: HostBuffer::zeroed(device, size_of::<Summary>())?,
            terms: Cell::new(Terms::zeroed()),
            device: device.clone(),
            vocab,
        }))
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

/// Where a row is.
#[derive(Debug, Clone, Copy)]
pub struct Placed {
    device: i32,
    row: u64,
    element: i32,
    /// Its largest score.
    pub max: f32,
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

/// Rows of several models on one GPU, and what is made of them together: see [`RowMath`].
pub struct Together {
    /// The sum, in the one slot there is.
    sum: RefCell<DeviceRows>,
    control: RefCell<HostBuffer>,
    /// What a residual has in each chunk.
    sums: HostBuffer,
    drawn: HostBuffer,
    /// Those of the last residual.
    terms: Cell<Terms>,
    device: Arc<Device>,
    vocab: usize,
}

impl Together {
    fn terms(&self, parts: impl Iterator<Item = super::Term>) -> Option<Terms> {
        let mut terms = Terms { vocab: self.vocab as i32, without: -1, ..Terms::zeroed() };
        for super::Term { row, scale, rate, kept: Filtered { max, floor, cut, .. } } in parts {
            let term = terms.terms.get_mut(terms.count as usize).filter(|_| row.device == self.device.id())?;
            *term =
                Term { row: row.row, scale, max, rate, element: row.element, cut: token_of(cut), floor, padding: 0 };
            terms.count += 1;
        }
        Some(terms)
    }

    fn work(&self, work: impl FnOnce(&Queue) -> ort::Result<()>) -> Option<()> {
        let sum = self.sum.borrow();
        let waited = self.device.queue().and_then(|queue| {
            let queued = work(&queue);
            sum.wait(queue, queued)
        });
        sum.noted(waited).ok()
    }
}

impl RowMath for Together {
    fn weigh(
        &self,
        parts: &mut dyn Iterator<Item = super::Term>,
        judge: Option<(Placed, f32)>,
        filter: Filter,
        token: usize,
    ) -> Option<()> {
        let mut terms = self.terms(parts.chain(judge.map(|(row, _)| super::Term::of_scores(row, 0.0))))?;
        let (mut judged, mut floor) = (i32::from(judge.is_some()), judge.map_or(0.0, |(_, floor)| floor));
        self.sum.borrow_mut().set_filter(filter);
        // As of a pass of one row, at position 0, behind which the token came.
        let mut control = Control { width: 1, ..Control::of(filter, self.vocab) };
        control.tokens[0] = token as i32;
        let mut buffer = self.control.borrow_mut();
        buffer.bytes_mut().copy_from_slice(bytemuck::bytes_of(&control));
        let control = buffer.bytes().as_ptr() as u64;
        self.work(|queue| {
            let sum = self.sum.borrow();
            let mut out = sum.ring.place();
            let arguments =
                &mut [argument(&mut terms), argument(&mut judged), argument(&mut floor), argument(&mut out)];
            // SAFETY: the arguments are those of the kernel; rows stay until their sequences run again.
            unsafe { queue.run(self.device.kernels()?.weigh, (132, 1, 1), THREADS as u32, arguments)? };
            sum.queue(queue, &sum.ring, 1, control)
        })?;
        self.sum.borrow_mut().keep(0..1, 0);
        Some(())
    }

    fn best(&self) -> Option<(usize, f32, f32)> {
        let sum = self.sum.borrow();
        let summary = sum.summary(0, sum.rate())?;
        Some((summary.best as usize, summary.max, summary.second))
    }

    fn filtered(&self) -> Option<Filtered> {
        let sum = self.sum.borrow();
        sum.filtered(0, sum.filter)
    }

    fn score(&self, token: usize) -> f32 {
        self.sum.borrow().score(0, token).unwrap_or(f32::NAN)
    }

    fn draw(&self, share: f64) -> Option<usize> {
        self.sum.borrow().draw(0, self.vocab, share)?.ok()
    }

    fn placed(&self) -> Placed {
        self.sum.borrow().placed(0)
    }

    fn fault(&self) -> Option<Error> {
        self.sum.borrow().fault()
    }

    fn bytes(&self) -> usize {
        self.sum.borrow().bytes() + self.control.borrow().len() + self.sums.len() + self.drawn.len()
    }

    fn residual(&self, parts: &mut dyn Iterator<Item = super::Term>, certain: Option<usize>) -> Option<f64> {
        let mut terms = self.terms(parts)?;
        terms.without = certain.map_or(-1, token_of);
        let mut sums = self.sums.bytes().as_ptr() as u64;
        let arguments = &mut [argument(&mut terms), argument(&mut sums)];
        // SAFETY: as above.
        self.work(|queue| unsafe {
            queue.run(self.device.kernels()?.residual, (CHUNKS as u32, 1, 1), THREADS as u32, arguments)
        })?;
        self.terms.set(terms);
        Some(bytemuck::cast_slice::<u8, f64>(self.sums.bytes()).iter().sum())
    }

    fn draw_residual(&self, share: f64) -> Option<usize> {
        let (mut left, mut chunk) = (share, 0);
        for (index, &sum) in bytemuck::cast_slice::<u8, f64>(self.sums.bytes()).iter().enumerate() {
            if sum > 0.0 {
                chunk = index as i32;
                if left < sum {
                    break;
                }
                left -= sum; // rounding may lead behind the last one, and then it is too much of that
            }
        }
        let mut terms = self.terms.get();
        let mut out = self.drawn.bytes().as_ptr() as u64;
        let arguments = &mut [argument(&mut terms), argument(&mut chunk), argument(&mut left), argument(&mut out)];
        // SAFETY: as above.
        self.work(|queue| unsafe { queue.run(self.device.kernels()?.pick, (1, 1, 1), THREADS as u32, arguments) })?;
        let drawn: Summary = bytemuck::pod_read_unaligned(self.drawn.bytes());
        usize::try_from(drawn.token).ok()
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
    use crate::rows::sampling::{Candidates, Distribution, Sampler};

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
            let mut rows = DeviceRows::new(&device, columns, element).unwrap().unwrap();
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
                    let found = sampler.process_known(|filter| rows.filtered(position, filter)).unwrap();
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
                        let drawn = rows.draw(position, vocab, share * found.total()).unwrap().unwrap();
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
            assert!(rows.fault().is_none() && rows.copied() == 0);
        }
    }
}
