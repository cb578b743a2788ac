//! Sums, edited rows and residuals of rows on one GPU, for one sequence or for many at once (`kernels/sums.cu`).

use std::any::Any;
use std::cell::RefCell;
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use ort::value::TensorElementType;

use super::device::{NEAR, Ring, Shares, failed, queue_rows, token_of};
use super::distribution::Distribution;
use super::edited::GpuEdits;
use super::edits::Edits;
use super::filter::Filter;
use super::records::{CHUNKS, Control, Drawn};
use super::row::{self, DeviceAnswers, DeviceEdits, DeviceRow, DeviceSums, Row, RowToEdit, UNDRAWN};
use crate::cuda::{Device, DeviceBuffer, Event, HostBuffer, Queue, THREADS, WORD, argument};
use crate::error::{Error, Result};

/// A row as a term of a sum.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
struct KernelTerm {
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

/// The terms of a sum.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
struct KernelTerms {
    terms: [KernelTerm; TERMS],
    count: i32,
    vocab: i32,
    without: i32,
    padding: i32,
}

/// A sum that is asked for; its last term may be a judge.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
struct Blend {
    terms: KernelTerms,
    judged: i32,
    floor: f32,
    /// Where the changes and the mask are: bytes from the beginning of the [`Data`], until it has an address.
    changes: u64,
    mask: u64,
    changed: i32,
    masked: i32,
    /// What is dropped then; 0 drops nothing.
    typical: f32,
    exclude: f32,
    padding: [i32; 2],
}

impl Blend {
    fn drops(&self) -> bool {
        self.typical > 0.0 || self.exclude > 0.0
    }

    /// The same, where the data begins so many bytes later.
    fn moved(self, bytes: u64) -> Self {
        Blend { changes: self.changes + bytes, mask: self.mask + bytes, ..self }
    }
}

/// Changes and masks of questions.
#[derive(Default)]
struct Data(Vec<[u32; WORD / 4]>);

impl Data {
    fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }

    /// Add the changes and the mask of these edits, for a sum.
    fn add(&mut self, edits: Option<&Edits>, blend: Blend) -> Blend {
        let Some(Edits { changes, mask, drops }) = edits else { return blend };
        let changes_at = self.bytes().len() as u64;
        self.0.extend_from_slice(bytemuck::cast_slice(changes));
        let mask_at = self.bytes().len() as u64;
        let (words, rest) = mask.as_chunks();
        self.0.extend_from_slice(words);
        if !rest.is_empty() {
            let mut last = [0; WORD / 4];
            last[..rest.len()].copy_from_slice(rest);
            self.0.push(last);
        }
        let (changed, masked) = (changes.len() as i32, i32::from(!mask.is_empty()));
        let (typical, exclude) = (drops.typical().unwrap_or(0.0), drops.exclude_from.max(0.0));
        Blend { changes: changes_at, mask: mask_at, changed, masked, typical, exclude, ..blend }
    }
}

/// A residual that is asked for.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
struct Rest {
    terms: KernelTerms,
    /// Where the sums of its chunks go, and the [`Residual`].
    sums: u64,
    out: u64,
    /// Where a token is drawn: at `share`, or if that is negative, at `uniform` of the whole.
    uniform: f64,
    share: f64,
}

/// A residual that was made, and the last token that was drawn from it; none where it is 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
struct Residual {
    total: f64,
    drawn: Drawn,
}

/// A sum that is asked for, and what the kernels for rows do with it.
#[repr(C)]
#[derive(Debug, Clone, Copy, Zeroable, Pod)]
struct SumQuestion {
    blend: Blend,
    control: Control,
}

/// A question, and how it went once it was answered.
struct Asked<Q> {
    question: Q,
    outcome: Option<Result<()>>,
}

impl<Q: Pod> Asked<Q> {
    /// How the question went, if it is this one and was answered.
    fn outcome(last: &Option<Self>, question: &Q) -> Option<Result<()>> {
        let last = last.as_ref().filter(|last| bytemuck::bytes_of(&last.question) == bytemuck::bytes_of(question))?;
        last.outcome.clone()
    }

    /// The question, if it is not answered.
    fn open(last: &Option<Self>) -> &[Q] {
        last.as_ref().filter(|last| last.outcome.is_none()).map_or(&[], |last| std::slice::from_ref(&last.question))
    }
}

/// Questions that are answered at once.
#[derive(Clone, Copy)]
struct Batch<'a> {
    sums: &'a [SumQuestion],
    rests: &'a [Rest],
    /// Changes and masks of the sums.
    data: &'a [u8],
    /// Whether the rows of some sum are filtered.
    filters: bool,
}

/// Computes with rows of several models on one GPU, for one sequence.
pub(super) struct GpuSums {
    /// The sum, in the one slot there is.
    sum: Ring,
    /// The sum of the residual in each chunk.
    chunks: DeviceBuffer,
    /// The [`Residual`] that was made last. The GPU writes it.
    residual: HostBuffer,
    sum_asked: Option<Asked<SumQuestion>>,
    rest_asked: Option<Asked<Rest>>,
    /// Rows with edits that are asked for, whether some are filtered, and how that went once they were made.
    edits_asked: Vec<SumQuestion>,
    edits_filter: bool,
    edits_made: Option<Result<()>>,
    /// Of the sum, or of the rows with edits.
    data: Data,
    /// Whether questions wait for others.
    defers: bool,
    /// Answers what does not wait.
    alone: RefCell<GpuAnswers>,
    device: Arc<Device>,
    vocab: usize,
}

impl GpuSums {
    pub fn new(device: &Arc<Device>, vocab: usize) -> ort::Result<Option<Self>> {
        let Some(sum) = Ring::with_slots(device, (vocab, vocab), TensorElementType::Float32, 1)? else {
            return Ok(None);
        };
        Ok(Some(GpuSums {
            sum,
            chunks: DeviceBuffer::zeroed(device, 8 * CHUNKS)?,
            residual: HostBuffer::zeroed(device, size_of::<Residual>())?,
            sum_asked: None,
            rest_asked: None,
            edits_asked: Vec::new(),
            edits_filter: false,
            edits_made: None,
            data: Data::default(),
            defers: false,
            alone: RefCell::new(GpuAnswers::new(device, vocab)),
            device: device.clone(),
            vocab,
        }))
    }

    /// The parts as kernels take them; `None` if a row is on another GPU, or if they are too many.
    fn terms(&self, parts: impl Iterator<Item = row::Term>) -> Option<KernelTerms> {
        let mut terms = KernelTerms { vocab: self.vocab as i32, without: -1, ..KernelTerms::zeroed() };
        for row::Term { row, scale, distribution: Distribution { max, rate, floor, cut, .. } } in parts {
            let term = terms.terms.get_mut(terms.count as usize).filter(|_| row.device == self.device.id())?;
            let (row, element, cut) = (row.address, row.element, token_of(cut));
            *term = KernelTerm { row, scale, max, rate, element, cut, floor, padding: 0 };
            terms.count += 1;
        }
        Some(terms)
    }

    /// Answer what is asked, or leave it to others.
    fn ask(&mut self) -> Result<()> {
        if self.defers {
            return Err(Error::Internal("a question about rows on a GPU waits for its answer".into()));
        }
        let outcome = self.alone.borrow_mut().answer(self.open());
        self.settle(&outcome);
        outcome
    }

    /// What is asked and not answered.
    fn open(&self) -> Batch<'_> {
        let rests = Asked::open(&self.rest_asked);
        let (sums, filters) = match self.edits_made {
            None if !self.edits_asked.is_empty() => (&self.edits_asked[..], self.edits_filter),
            _ => (Asked::open(&self.sum_asked), self.sum.filters()),
        };
        Batch { sums, rests, data: self.data.bytes(), filters: filters && !sums.is_empty() }
    }

    /// The residual that was made last.
    fn made(&self) -> Residual {
        bytemuck::pod_read_unaligned(self.residual.bytes())
    }
}

impl DeviceSums for GpuSums {
    fn edit(&mut self, to_edit: RowToEdit<'_>, edited: &mut dyn DeviceEdits) -> bool {
        let RowToEdit { row, position, edits, filter, token, uniforms } = to_edit;
        let edited: &mut dyn Any = edited;
        let edited: &mut GpuEdits = edited.downcast_mut().expect("rows on a GPU have their edits there");
        let Some(terms) = self.terms(std::iter::once(row::Term::of_scores(row, 1.0))) else { return false };
        if edited.device() != self.device.id() {
            return false;
        }
        let blend = self.data.add(Some(edits), Blend { terms, ..Blend::zeroed() });
        let control = edited.ask(position, filter, token, uniforms);
        self.edits_asked.push(SumQuestion { blend, control });
        self.edits_filter |= !filter.is_plain();
        true
    }

    fn make_edited(&mut self) -> Result<()> {
        match &self.edits_made {
            Some(outcome) => outcome.clone(),
            None => self.ask(),
        }
    }

    fn add(
        &mut self,
        parts: &mut dyn Iterator<Item = row::Term>,
        judge: Option<(DeviceRow, f32)>,
        edits: Option<&Edits>,
        filter: Filter,
        token: usize,
        uniform: Option<f64>,
    ) -> Result<bool> {
        let judged = judge.map(|(row, _)| row::Term::of_scores(row, 0.0));
        let Some(terms) = self.terms(parts.chain(judged)) else { return Ok(false) };
        let (judged, floor) = (i32::from(judge.is_some()), judge.map_or(0.0, |(_, floor)| floor));
        let uniforms = uniform.map(|uniform| [uniform, UNDRAWN]);
        let control = self.sum.addressed(Control::of_one(filter, self.vocab, Some(token), uniforms));
        self.data.0.clear();
        let blend = self.data.add(edits, Blend { terms, judged, floor, ..Blend::zeroed() });
        let question = SumQuestion { blend, control };
        if let Some(outcome) = Asked::outcome(&self.sum_asked, &question) {
            return outcome.map(|()| true);
        }
        self.sum.prepare(filter, uniform.map(|uniform| [uniform; 2]));
        self.sum_asked = Some(Asked { question, outcome: None });
        self.ask().map(|()| true)
    }

    fn sum(&self) -> Row<'_> {
        Row::Device(&self.sum, 0)
    }

    fn residual(
        &mut self,
        parts: &mut dyn Iterator<Item = row::Term>,
        certain: Option<usize>,
        uniform: Option<f64>,
    ) -> Result<Option<f64>> {
        let Some(terms) = self.terms(parts) else { return Ok(None) };
        let question = Rest {
            terms: KernelTerms { without: certain.map_or(-1, token_of), ..terms },
            sums: self.chunks.place(),
            out: self.residual.bytes().as_ptr() as u64,
            uniform: uniform.unwrap_or(0.0),
            share: -1.0,
        };
        match Asked::outcome(&self.rest_asked, &question) {
            Some(outcome) => outcome?,
            None => {
                self.rest_asked = Some(Asked { question, outcome: None });
                self.ask()?;
            }
        }
        Ok(Some(self.made().total))
    }

    fn draw_residual(&self, share: f64) -> Result<usize> {
        if self.made().drawn.share != share
            && let Some(Asked { question, .. }) = &self.rest_asked
        {
            let rests = &[Rest { share, ..*question }];
            self.alone.borrow_mut().answer(Batch { sums: &[], rests, data: &[], filters: false })?;
        }
        usize::try_from(self.made().drawn.token)
            .map_err(|_| Error::Internal("a draw from a residual on the GPU found no token".into()))
    }

    fn bytes(&self) -> usize {
        let questions = self.edits_asked.capacity() * size_of::<SumQuestion>() + self.data.0.capacity() * WORD;
        self.sum.bytes() + self.chunks.len() + self.residual.len() + questions + self.alone.borrow().bytes()
    }

    fn defer(&mut self) {
        self.defers = true;
    }

    fn asks(&self) -> bool {
        let Batch { sums, rests, .. } = self.open();
        !(sums.is_empty() && rests.is_empty())
    }

    fn settle(&mut self, outcome: &Result<()>) {
        if !self.edits_asked.is_empty() {
            self.edits_made.get_or_insert_with(|| outcome.clone());
        }
        if let Some(asked) = self.sum_asked.as_mut().filter(|asked| asked.outcome.is_none()) {
            asked.outcome = Some(outcome.clone());
            self.sum.keep(0..1, 0);
        }
        if let Some(asked) = self.rest_asked.as_mut().filter(|asked| asked.outcome.is_none()) {
            asked.outcome = Some(outcome.clone());
        }
    }

    fn forget(&mut self) {
        (self.sum_asked, self.rest_asked, self.edits_made) = (None, None, None);
        (self.edits_filter, _) = (false, self.edits_asked.clear());
        self.data.0.clear();
    }

    fn answers(&self) -> Box<dyn DeviceAnswers> {
        Box::new(GpuAnswers::new(&self.device, self.vocab))
    }
}

/// Answers questions about rows on one GPU: each kernel runs once for many of them.
struct GpuAnswers {
    sums: Vec<SumQuestion>,
    rests: Vec<Rest>,
    data: Data,
    /// Whether the rows of some sum are filtered.
    filters: bool,
    /// The questions as kernels read them.
    questions: Option<(HostBuffer, DeviceBuffer)>,
    /// The sums, before the kernels for rows copy them to their sequences.
    rows: Option<DeviceBuffer>,
    done: Option<Event>,
    device: Arc<Device>,
    vocab: usize,
}

impl GpuAnswers {
    fn new(device: &Arc<Device>, vocab: usize) -> Self {
        let (questions, rows, done, device) = (None, None, None, device.clone());
        let (sums, rests, data, filters) = (Vec::new(), Vec::new(), Data::default(), false);
        GpuAnswers { sums, rests, data, filters, questions, rows, done, device, vocab }
    }

    fn bytes(&self) -> usize {
        let questions = self.questions.as_ref().map_or(0, |(host, device)| host.len() + device.len());
        questions + self.rows.as_ref().map_or(0, DeviceBuffer::len)
    }

    /// Answer these questions, and wait for that.
    fn answer(&mut self, questions: Batch<'_>) -> Result<()> {
        self.answer_on_device(questions).map_err(failed)
    }

    fn answer_on_device(&mut self, Batch { sums, rests, data, filters }: Batch<'_>) -> ort::Result<()> {
        // The sums, then what is done with their rows, then the residuals, then the data of the sums.
        let controls = (sums.len() * size_of::<Blend>()).next_multiple_of(WORD);
        let residuals = (controls + sums.len() * size_of::<Control>()).next_multiple_of(WORD);
        let data_at = (residuals + size_of_val(rests)).next_multiple_of(WORD);
        let bytes = data_at + data.len();
        self.make_room(bytes, sums.len().min(AT_ONCE))?;
        let GpuAnswers { questions: Some((host, there)), rows: Some(rows), done: Some(done), device, .. } = self else {
            return Err(ort::Error::new("there is no room for questions"));
        };
        let (written, begin) = (host.bytes_mut(), there.place());
        for (index, SumQuestion { blend, control }) in sums.iter().enumerate() {
            let place = index * size_of::<Blend>();
            let blend = blend.moved(begin + data_at as u64);
            written[place..place + size_of::<Blend>()].copy_from_slice(bytemuck::bytes_of(&blend));
            let place = controls + index * size_of::<Control>();
            let control = control.at(index % AT_ONCE);
            written[place..place + size_of::<Control>()].copy_from_slice(bytemuck::bytes_of(&control));
        }
        written[residuals..residuals + size_of_val(rests)].copy_from_slice(bytemuck::cast_slice(rests));
        written[data_at..bytes].copy_from_slice(data);
        let queue = device.queue()?;
        let queued = queue.copy_first(host, there, bytes).and_then(|()| {
            for (index, sums) in sums.chunks(AT_ONCE).enumerate() {
                let first = index * AT_ONCE;
                let control = begin + (controls + first * size_of::<Control>()) as u64;
                let shares = Shares { control, count: sums.len(), most: 1, filters };
                queue_sums(device, &queue, begin + (first * size_of::<Blend>()) as u64, rows, sums)?;
                queue_rows(device, &queue, rows.place(), (TensorElementType::Float32, self.vocab), shares)?;
            }
            if !rests.is_empty() {
                queue_residuals(device, &queue, begin + residuals as u64, rests.len())?;
            }
            queue.record(done)
        });
        match queued {
            Ok(()) => {
                drop(queue);
                done.wait()
            }
            Err(error) => {
                queue.drain();
                Err(error)
            }
        }
    }

    /// Make room for questions of so many bytes, and for so many sums.
    fn make_room(&mut self, bytes: usize, sums: usize) -> ort::Result<()> {
        if self.done.is_none() {
            self.done = Some(Event::new(&self.device)?);
        }
        if self.questions.as_ref().is_none_or(|(host, _)| host.len() < bytes) {
            self.questions = None;
            let bytes = bytes.next_power_of_two();
            let host = HostBuffer::zeroed(&self.device, bytes)?;
            self.questions = Some((host, DeviceBuffer::zeroed(&self.device, bytes)?));
        }
        let bytes = sums.next_power_of_two() * self.vocab * size_of::<f32>();
        if self.rows.as_ref().is_none_or(|rows| rows.len() < bytes) {
            self.rows = None;
            self.rows = Some(DeviceBuffer::zeroed(&self.device, bytes)?);
        }
        Ok(())
    }
}

impl DeviceAnswers for GpuAnswers {
    fn take(&mut self, sums: &dyn DeviceSums) {
        let sums: &GpuSums = (sums as &dyn Any).downcast_ref().expect("all rows of an engine's sums are on one GPU");
        let Batch { sums, rests, data, filters } = sums.open();
        let before = self.data.bytes().len() as u64;
        self.sums.extend(sums.iter().map(|asked| SumQuestion { blend: asked.blend.moved(before), ..*asked }));
        self.rests.extend(rests);
        self.data.0.extend_from_slice(bytemuck::cast_slice(data));
        self.filters |= filters;
    }

    fn run(&mut self) -> Result<()> {
        let (mut sums, mut rests) = (std::mem::take(&mut self.sums), std::mem::take(&mut self.rests));
        let (mut data, filters) = (std::mem::take(&mut self.data), std::mem::take(&mut self.filters));
        let outcome = self.answer(Batch { sums: &sums, rests: &rests, data: data.bytes(), filters });
        sums.clear();
        rests.clear();
        data.0.clear();
        (self.sums, self.rests, self.data) = (sums, rests, data);
        outcome
    }
}

/// Sums that kernels make at once. More are made one batch after another, so that memory for their rows is bounded.
const AT_ONCE: usize = 64;

/// Queue the kernels that add rows up and edit the sums, for these questions at a place of the device.
fn queue_sums(
    device: &Device,
    queue: &Queue,
    mut asked: u64,
    rows: &DeviceBuffer,
    questions: &[SumQuestion],
) -> ort::Result<()> {
    let (kernels, count) = (device.kernels()?, questions.len() as u32);
    let changed = questions.iter().map(|question| question.blend.changed as usize).max().unwrap_or(0);
    let vocab = questions.iter().map(|question| question.blend.terms.vocab as usize).max().unwrap_or(0);
    let blocks = |threads: usize| threads.div_ceil(THREADS).min(BLOCKS) as u32;
    let mut out = rows.place();
    let arguments = &mut [argument(&mut asked), argument(&mut out)];
    // SAFETY: the arguments are those of the kernels; rows stay until their sequences run again.
    unsafe {
        queue.run(kernels.weigh, (blocks(vocab), count, 1), THREADS as u32, arguments)?;
        if changed > 0 {
            queue.run(kernels.change, (blocks(changed), count, 1), THREADS as u32, arguments)?;
        }
        if questions.iter().any(|question| question.blend.drops()) {
            queue.run(kernels.drop, (count, 1, 1), NEAR as u32, arguments)?;
        }
        Ok(())
    }
}

/// Most blocks that add up the rows of a question.
const BLOCKS: usize = 132;

/// Queue the kernels that make residuals and draw from them, for so many questions at a place of the device.
fn queue_residuals(device: &Device, queue: &Queue, mut asked: u64, count: usize) -> ort::Result<()> {
    let (kernels, count, arguments) = (device.kernels()?, count as u32, &mut [argument(&mut asked)]);
    // SAFETY: the arguments are those of the kernels; rows stay until their sequences run again.
    unsafe {
        queue.run(kernels.residual, (CHUNKS as u32, count, 1), THREADS as u32, arguments)?;
        queue.run(kernels.pick, (count, 1, 1), THREADS as u32, arguments)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_kernels() {
        assert_eq!((size_of::<KernelTerm>(), size_of::<KernelTerms>()), (40, 40 * TERMS + 16));
        assert_eq!((size_of::<Blend>(), size_of::<Rest>()), (40 * TERMS + 64, 40 * TERMS + 48));
        assert_eq!(size_of::<Residual>(), 24);
    }
}
