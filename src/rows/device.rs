//! Rows of logits that stay on a GPU, and the kernels that work on them (`kernels/rows.cu`).

use std::cell::{Cell, OnceCell, RefCell};
use std::ops::Range;
use std::sync::Arc;

use ort::value::TensorElementType;

use super::filter::Filter;
use super::records::{CHUNKS, Control, Drawn, Kept, NOTED, Summary};
use super::row::{DRAWS, PassUniforms, UNDRAWN};
use super::widen::{widen_bf16, widen_f16};
use crate::cuda::{Device, DeviceBuffer, Event, HostBuffer, Queue, THREADS, WORD, argument};
use crate::error::Error;

/// Rows that are kept. `rows.cu` holds the same number, and the next one.
pub const SLOTS: usize = 64;

/// Threads of the kernels that filter a row, or that drop tokens of it.
pub(super) const NEAR: usize = 1024;

/// Buffers of rows on the host that are kept for later rows.
const SPARE_ROWS: usize = 16;

/// The last rows of one sequence: that of position `p` is in slot `p % SLOTS`. All methods but [`Ring::queue`] wait for
/// the GPU.
pub struct Ring {
    pub(super) device: Arc<Device>,
    pub(super) ring: DeviceBuffer,
    /// By row and chunk: its largest score and the sum of its weights.
    parts: DeviceBuffer,
    /// By row, chunk and thread: the largest score that the thread has seen.
    peaks: DeviceBuffer,
    /// By row: a [`Kept`].
    kept: DeviceBuffer,
    /// One for each slot. The GPU writes them.
    summaries: HostBuffer,
    /// The last draw that was no part of a pass. The GPU writes it.
    outcome: HostBuffer,
    /// Pinned memory that rows are copied to.
    staging: RefCell<HostBuffer>,
    done: Event,
    /// By slot: the position of its row, and the filter of its summary.
    pub(super) held: [(usize, Filter); SLOTS],
    /// By slot: the row on the host, if it was copied. A bit for each slot says so, so that passes after which no row
    /// is copied need not look.
    fetched: [OnceCell<Box<[f32]>>; SLOTS],
    fetched_slots: Cell<u64>,
    spare: RefCell<Vec<Box<[f32]>>>,
    /// Rows copied to the host.
    pub(super) copied: Cell<u64>,
    /// The last draw: its position, its token, and the score of the token, which is needed next.
    drawn: Cell<(usize, i32, f32)>,
    /// Whether a copy or a kernel has failed. Then no later sequence gets this ring.
    failed: Cell<bool>,
    /// Scores of a row. Those from `vocab` on are padding.
    pub(super) columns: usize,
    pub(super) vocab: usize,
    pub(super) element: TensorElementType,
    /// The filter of the next pass, and where it draws tokens.
    filter: Filter,
    uniforms: Option<PassUniforms>,
}

const NONE: (usize, Filter) = (usize::MAX, Filter { rate: 0.0, top_k: 0, top_p: 1.0, distance: f32::NEG_INFINITY });

impl Ring {
    /// An empty ring. `None` if the kernels cannot be loaded, or if the type of the scores is not supported.
    /// Rows have `columns` scores, of which the first `vocab` are tokens and the others padding.
    pub fn new(
        device: &Arc<Device>,
        columns: usize,
        vocab: usize,
        element: TensorElementType,
    ) -> ort::Result<Option<Self>> {
        Self::with_slots(device, (columns, vocab), element, SLOTS)
    }

    pub(super) fn with_slots(
        device: &Arc<Device>,
        (columns, vocab): (usize, usize),
        element: TensorElementType,
        slots: usize,
    ) -> ort::Result<Option<Self>> {
        let Some(size) = size(element).filter(|_| device.no_kernels().is_none()) else { return Ok(None) };
        Ok(Some(Ring {
            device: device.clone(),
            ring: DeviceBuffer::zeroed(device, slots * (columns * size).next_multiple_of(WORD))?,
            parts: DeviceBuffer::zeroed(device, SLOTS * CHUNKS * 24)?,
            peaks: DeviceBuffer::zeroed(device, slots * CHUNKS * THREADS * 4)?,
            kept: DeviceBuffer::zeroed(device, SLOTS * size_of::<Kept>())?,
            summaries: HostBuffer::zeroed(device, SLOTS * size_of::<Summary>())?,
            outcome: HostBuffer::zeroed(device, size_of::<Drawn>())?,
            staging: RefCell::new(HostBuffer::zeroed(device, columns * size)?),
            done: Event::new(device)?,
            held: [NONE; SLOTS],
            fetched: std::array::from_fn(|_| OnceCell::new()),
            fetched_slots: Cell::new(0),
            spare: RefCell::default(),
            copied: Cell::new(0),
            drawn: Cell::new((usize::MAX, 0, 0.0)),
            failed: Cell::new(false),
            columns,
            vocab,
            element,
            filter: Filter::plain(1.0),
            uniforms: None,
        }))
    }

    /// Bytes of its buffers.
    pub fn bytes(&self) -> usize {
        let rows = self.fetched.iter().filter(|row| row.get().is_some()).count() + self.spare.borrow().len();
        let pinned = self.summaries.len() + self.outcome.len() + self.staging.borrow().len();
        self.ring.len() + self.parts.len() + self.peaks.len() + self.kept.len() + pinned + 4 * self.columns * rows
    }

    /// Forget all rows. Later rows have `vocab` tokens, and padding behind them.
    pub fn clear(&mut self, vocab: usize) {
        self.vocab = vocab;
        self.held = [NONE; SLOTS];
        self.fetched = std::array::from_fn(|_| OnceCell::new());
        self.fetched_slots.set(0);
        self.spare.get_mut().clear();
        self.copied.set(0);
    }

    /// Filter the rows of later passes like this, and draw tokens from their last row.
    pub fn prepare(&mut self, filter: Filter, uniforms: Option<PassUniforms>) {
        (self.filter, self.uniforms) = (filter, uniforms);
    }

    /// Whether later passes run the kernel that filters.
    pub fn filters(&self) -> bool {
        !self.filter.is_plain()
    }

    /// The offset of a slot in the ring, in bytes.
    pub(super) fn place_of(&self, slot: usize) -> usize {
        slot * (self.columns * size(self.element).unwrap_or(4)).next_multiple_of(WORD)
    }

    /// The arguments for a pass over `tokens`, which begin at position `start`. It gives `given` rows from position
    /// `first` on; the first `skipped` of them are not wanted.
    pub fn control(&self, start: usize, tokens: &[i32], first: usize, given: usize, skipped: usize) -> Control {
        let mut control = Control {
            given: given as i32,
            first: first as i32,
            skipped: skipped as i32,
            start: start as i32,
            uniforms: self.uniforms.unwrap_or([UNDRAWN; DRAWS]),
            ..self.addressed(Control::of(self.filter, self.vocab))
        };
        if tokens.len() <= NOTED {
            control.width = tokens.len() as i32;
            control.known = i32::from(self.holds(start));
            control.tokens[..tokens.len()].copy_from_slice(tokens);
        }
        control
    }

    /// A control with the addresses of the ring.
    pub(super) fn addressed(&self, control: Control) -> Control {
        Control {
            ring: self.ring.place(),
            parts: self.parts.place(),
            peaks: self.peaks.place(),
            kept: self.kept.place(),
            summaries: self.summaries.bytes().as_ptr() as u64,
            ..control
        }
    }

    /// Queue the kernels that copy at most `given` rows of `logits` into the ring and summarise them. `control` is the
    /// address of a [`Control`] on the device.
    pub fn queue(&self, queue: &Queue, logits: &DeviceBuffer, given: usize, control: u64) -> ort::Result<()> {
        let shares = Shares { control, count: 1, most: given, filters: self.filters() };
        queue_rows(&self.device, queue, logits.place(), (self.element, self.columns), shares)
    }

    /// Note that a pass has succeeded, which gave the rows of these positions. Rows before position `wanted` are not
    /// asked for any more.
    pub fn keep(&mut self, positions: Range<usize>, wanted: usize) {
        let mut left = self.fetched_slots.get();
        while left != 0 {
            let slot = left.trailing_zeros() as usize;
            left &= left - 1;
            if !(wanted..positions.start).contains(&self.held[slot].0) {
                let spare = self.spare.get_mut();
                spare.extend(self.fetched[slot].take().filter(|_| spare.len() < SPARE_ROWS));
                self.fetched_slots.set(self.fetched_slots.get() & !(1 << slot));
            }
        }
        self.drawn.set((usize::MAX, 0, 0.0));
        positions.for_each(|position| self.held[position % SLOTS] = (position, self.filter));
    }

    /// Note that a pass has left the rows of these positions on the host.
    pub fn lose(&mut self, positions: Range<usize>) {
        self.copied.set(self.copied.get() + positions.len() as u64);
        for position in positions {
            let held = &mut self.held[position % SLOTS];
            if held.0 == position {
                *held = NONE;
            }
        }
    }

    /// Whether a copy or a kernel has failed.
    pub fn has_failed(&self) -> bool {
        self.failed.get()
    }

    /// Turn an error of the driver into one of ours, and note that the ring has failed.
    pub(super) fn failed(&self, error: ort::Error) -> Error {
        self.failed.set(true);
        failed(error)
    }

    /// Whether it has the row of a position.
    pub fn holds(&self, position: usize) -> bool {
        self.held[position % SLOTS].0 == position
    }

    pub(super) fn summary_at(&self, slot: usize) -> Summary {
        let size = size_of::<Summary>();
        bytemuck::pod_read_unaligned(&self.summaries.bytes()[slot * size..(slot + 1) * size])
    }

    /// The score of a token at a position that is held, if no copy is needed.
    pub(super) fn known_score(&self, position: usize, token: usize) -> Option<f32> {
        let slot = position % SLOTS;
        if self.fetched_slots.get() >> slot & 1 == 1
            && let Some(row) = self.fetched[slot].get()
        {
            return Some(row[token]);
        }
        let (summary, token) = (self.summary_at(slot), token as i32);
        if summary.position == position as i32 {
            if summary.token == token {
                return Some(summary.score);
            }
            if summary.best == token && !summary.max.is_nan() {
                return Some(summary.max);
            }
            if let Some(drawn) = summary.drawn.iter().find(|drawn| drawn.share >= 0.0 && drawn.token == token) {
                return Some(drawn.score);
            }
        }
        let (of, drawn, score) = self.drawn.get();
        (of, drawn).eq(&(position, token)).then_some(score)
    }

    /// The score of a token at a position that is held.
    pub(super) fn score_at(&self, position: usize, token: usize) -> ort::Result<f32> {
        if let Some(score) = self.known_score(position, token) {
            return Ok(score);
        }
        let mut score = [0.0];
        let place = self.place_of(position % SLOTS) + token * size(self.element).unwrap_or(4);
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
            self.fetched_slots.set(self.fetched_slots.get() | 1 << slot);
        }
        Ok(self.fetched[slot].get().expect("it was set"))
    }

    /// Copy `count` scores at an offset of the ring to the host, as float32.
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

    /// The token at which the sum of the kept weights of a row that is held passes `share`, from the front. The row,
    /// its filter and the share alone decide it, so one that was drawn with the pass at that share is the same.
    pub(super) fn draw_at(&self, position: usize, share: f64) -> ort::Result<usize> {
        let summary = self.summary_at(position % SLOTS);
        let known = summary.drawn.iter().find(|drawn| drawn.share == share);
        let Drawn { token, score, .. } = match known.filter(|_| summary.position == position as i32) {
            Some(&drawn) => drawn,
            None => self.draw_now(position % SLOTS, summary.max, share)?,
        };
        self.drawn.set((position, token, score));
        Ok(token as usize)
    }

    fn draw_now(&self, slot: usize, mut max: f32, mut share: f64) -> ort::Result<Drawn> {
        let filter = self.held[slot].1;
        let mut rate = filter.rate;
        let mut kept = if filter.is_plain() { 0 } else { self.kept.place() };
        let (mut ring, mut parts) = (self.ring.place(), self.parts.place());
        let mut out = self.outcome.bytes().as_ptr() as u64;
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
            argument(&mut out),
        ];
        let (queue, kernel) = (self.device.queue()?, self.device.kernels()?.draw);
        // SAFETY: the arguments are those of the kernel, and all addresses stay until it is done.
        let queued = unsafe { queue.run(kernel, (1, 1, 1), THREADS as u32, arguments) };
        self.wait(queue, queued)?;
        Ok(bytemuck::pod_read_unaligned(self.outcome.bytes()))
    }

    /// Wait for what was queued.
    pub(super) fn wait(&self, queue: Queue, queued: ort::Result<()>) -> ort::Result<()> {
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

/// What the kernels do for a pass.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    /// The address of the first [`Control`] on the device, one for each sequence.
    pub control: u64,
    /// Sequences.
    pub count: usize,
    /// Most rows of a sequence.
    pub most: usize,
    /// Whether the rows of some sequence are filtered.
    pub filters: bool,
}

/// Queue the kernels that copy rows of the logits of a pass into the rings of sequences, and summarise them. Rows have
/// this type and so many columns.
pub fn queue_rows(
    device: &Device,
    queue: &Queue,
    mut logits: u64,
    (element, columns): (TensorElementType, usize),
    Shares { mut control, count, most, filters }: Shares,
) -> ort::Result<()> {
    let (mut element, mut columns) = (code(element), columns as i64);
    let [logits, element, columns, control] =
        [argument(&mut logits), argument(&mut element), argument(&mut columns), argument(&mut control)];
    let (kernels, rows, count) = (device.kernels()?, most as u32, count as u32);
    // SAFETY: the arguments are those of the kernels, and all addresses stay as long as the graphs that hold them.
    unsafe {
        let arguments = &mut [logits, element, columns, control];
        queue.run(kernels.keep, (CHUNKS as u32, rows, count), THREADS as u32, arguments)?;
        queue.run(kernels.summarise, (rows + 1, count, 1), CHUNKS as u32, arguments)?;
        let arguments = &mut [element, columns, control];
        if filters {
            queue.run(kernels.filter, (rows, count, 1), NEAR as u32, arguments)?;
        }
        // Also where nothing is drawn, so that one graph serves both.
        queue.run(kernels.draw_last, (DRAWS as u32, count, 1), THREADS as u32, arguments)?;
    }
    Ok(())
}

/// An error of the driver, about rows.
pub(super) fn failed(error: ort::Error) -> Error {
    Error::Runtime(format!("rows of logits on the GPU: {error}"))
}

/// A token as kernels take it; the largest number if there is no such token.
pub(super) fn token_of(token: usize) -> i32 {
    i32::try_from(token).unwrap_or(i32::MAX)
}

/// Bytes of a score; `None` if the type is not supported.
fn size(element: TensorElementType) -> Option<usize> {
    match element {
        TensorElementType::Float32 => Some(4),
        TensorElementType::Float16 | TensorElementType::Bfloat16 => Some(2),
        _ => None,
    }
}

/// The number by which the kernels know the type.
pub(super) fn code(element: TensorElementType) -> i32 {
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
    use crate::rows::{Candidates, DeviceRows, Distribution, Sampler};

    /// The PTX names its source, so that a change of the source without `scripts/make-ptx` fails here.
    #[test]
    fn the_ptx_is_of_the_source() {
        let source = concat!(include_str!("../../kernels/rows.cu"), include_str!("../../kernels/sums.cu"));
        let step = |mark: u64, &byte: &u8| (mark ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let mark = source.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325, step);
        let ptx = include_str!("../../kernels/rows.ptx");
        assert!(ptx.starts_with(&format!("// rows.cu {mark:016x}\n")), "run scripts/make-ptx");
    }

    #[test]
    fn sizes_are_those_of_the_kernels() {
        let source = include_str!("../../kernels/rows.cu");
        for (name, value) in [
            ("CHUNKS", CHUNKS),
            ("THREADS", THREADS),
            ("ROWS", SLOTS),
            ("NOTED", NOTED),
            ("NEAR", NEAR),
            ("DRAWS", DRAWS),
        ] {
            assert!(source.contains(&format!("const int {name} = {value};")), "{name}");
        }
        assert_eq!((size_of::<Control>(), size_of::<Summary>()), (5 * 8 + 4 * (12 + NOTED) + 2 * 8, 48 + 2 * 16));
        assert_eq!((size_of::<Kept>(), size_of::<Drawn>()), (8 * CHUNKS + 16, 16));
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

    /// That a row is filtered and drawn from as the sampler does it with all scores.
    fn check_filtered(rows: &Ring, position: usize, sampler: &Sampler, scores: &[f32], what: &str) {
        let Filter { top_k, top_p, .. } = sampler.filter();
        let expected = sampler.process(scores, &mut Candidates::default()).unwrap();
        let found = rows.distribution(position, sampler.filter()).transpose().unwrap();
        // The kernel gives up where too many tokens are among the best, and where few of the tokens that are kept
        // matter.
        let Some(found) = found else {
            let is_near = top_k < 600 || (top_k < 3000 && position == 0 && scores.len() > 100_000);
            assert!(position == 2 || !is_near, "{what}");
            return;
        };
        let kept = |of: &Distribution, token| of.probability(scores, token) > 0.0;
        let others = (0..scores.len()).filter(|&token| kept(&found, token) != kept(&expected, token)).count();
        // Rounding may move the end of a nucleus by a token.
        assert!(others <= usize::from(top_p < 1.0), "{what}: {others} tokens");
        for token in (0..scores.len()).filter(|&token| kept(&found, token) && kept(&expected, token)) {
            let (a, b) = (found.probability(scores, token), expected.probability(scores, token));
            assert!((a / b - 1.0).abs() < 1e-4, "{what}: {a}, not {b}");
        }
        for share in [0.0, 0.3, 0.77, 0.999] {
            let drawn = rows.draw(position, share * found.total()).unwrap().unwrap();
            let p =
                |tokens: Range<usize>| -> f64 { tokens.map(|token| f64::from(found.probability(scores, token))).sum() };
            let before = p(0..drawn);
            let is_there = before - 1e-5 <= share && share <= before + p(drawn..drawn + 1) + 1e-5;
            assert!(kept(&found, drawn) && is_there, "{what}: token {drawn} at {share}");
            assert_eq!(rows.score(position, drawn).unwrap(), scores[drawn], "{what}");
        }
        // The pass has drawn from its last row what a question draws there.
        let summary = rows.summary_at(position);
        for (drawn, uniform) in summary.drawn.iter().zip(UNIFORMS) {
            if position < 3 {
                assert_eq!(drawn.share, -1.0, "{what}");
                continue;
            }
            let share = uniform * found.total();
            let asked = rows.draw_now(position, summary.max, share).unwrap();
            assert_eq!((drawn.share, drawn.token, drawn.score), (share, asked.token, asked.score), "{what}");
        }
    }

    /// Where the passes of the test draw.
    const UNIFORMS: PassUniforms = [0.3, 0.9999];

    /// Rows as long as those of large models, some of them not aligned.
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
                // All likely tokens are in front.
                (0..vocab).map(|token| if token < vocab / 40 { peaked() + 8.0 } else { peaked() - 20.0 }).collect(),
            ];
            // The padding behind the vocabulary may hold anything.
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
            let mut rows = Ring::new(&device, columns, vocab, element).unwrap().unwrap();
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
                rows.prepare(sampler.filter(), Some(UNIFORMS));
                let control = rows.control(0, &[7, 8, 9, 10], 0, 4, 0);
                told.bytes_mut().copy_from_slice(bytemuck::bytes_of(&control));
                let queue = device.queue().unwrap();
                rows.queue(&queue, &logits, 4, told.bytes().as_ptr() as u64).unwrap();
                rows.wait(queue, Ok(())).unwrap();
                rows.keep(0..4, 0);
                for (position, (_, scores)) in given.iter().enumerate() {
                    let what =
                        format!("{element:?}, {vocab} of {columns}, k {top_k}, p {top_p}, {min_p}: row {position}");
                    check_filtered(&rows, position, &sampler, &scores[..vocab], &what);
                }
            }
            assert_eq!(rows.copied(), 0);
        }
    }
}
