//! Packed passes: the tokens of any number of sequences go through the model at once.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use ort::session::RunOptions;
use ort::value::TensorElementType;
use parking_lot::{Condvar, Mutex};

use super::gpu_runner::{GpuRunner, RowsPlan};
use super::gpu_store::{self, GpuStore};
use super::host;
use super::host_runner::HostRunner;
use super::layout::Layout;
use super::pool::{BlockCopy, Blocks, Pool};
use super::rows::PassRows;
use super::sequence::{PackedSequence, PassOwner};
use super::table::BLOCK_TOKENS;
use crate::cuda::Device;
use crate::error::{Error, Result};
use crate::export::parts::LayerShape;
use crate::export::{Export, element_bytes};
use crate::model::{Admission, Interrupt, Pass, Report, Sequence};
use crate::onnx::captures::Captures;
use crate::onnx::sequence::{MAX_PASS, MIN_PASS};
use crate::onnx::weights::LoadedSession;
use crate::rows::device::Ring;

/// Most buffers for rows that are kept for later passes.
const MOST_BUFFERS: usize = 8;

/// Most tokens of a pass. On a GPU, sessions that do not fit into it would fall behind the others, and passes that are
/// several times as wide take little longer.
const HOST_TOKENS: usize = 2 * MAX_PASS;
const GPU_TOKENS: usize = 8 * MAX_PASS;

/// About the most memory for rows of a pass on a GPU, before padding, if the rows of all its tokens are wanted. Passes
/// of [`HOST_TOKENS`] may take more.
const MOST_ROW_BYTES: usize = 256 << 20;

/// Most memory for rows on a GPU, in sequences, that is kept for later sequences.
const MOST_RINGS: usize = 64;

/// The passes of a packed model.
pub struct PackedPasses {
    pub pool: Pool,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Tokens of a block.
    pub block_tokens: usize,
    /// Most blocks.
    pub blocks: usize,
    /// Logits of a row, padding included.
    pub columns: usize,
    /// Most tokens of a pass.
    pub max_tokens: usize,
    /// For messages.
    file: PathBuf,
    work: Mutex<Work>,
    /// The [`number_of`] the first sequence of the pass that was launched, or [`NOTHING`]. Changed with the lock held.
    running: AtomicUsize,
    /// Notified when that pass has ended.
    idle: Condvar,
    /// The GPU and the type of rows that stay there.
    gpu_rows: Option<(Arc<Device>, TensorElementType)>,
    /// Memory of sequences that have ended, for rows on the GPU.
    rings: Mutex<Vec<Ring>>,
}

/// No pass was launched.
const NOTHING: usize = 0;

/// What passes run on, and what one pass needs, reused by the next.
struct Work {
    machine: Machine,
    layout: Layout,
    rows_plan: RowsPlan,
    /// Memory for rows, some of which sequences still read.
    buffers: Vec<Arc<PassRows>>,
    /// The memory of the pass that was begun.
    rows: Option<Arc<PassRows>>,
    /// By sequence of the pass: how its tokens are dealt with.
    cuts: Vec<Cut>,
}

/// What passes run on.
enum Machine {
    Host(Box<HostRunner>),
    Gpu(Box<GpuRunner>),
}

impl Machine {
    fn copy(&mut self, copy: BlockCopy) -> ort::Result<()> {
        match self {
            Machine::Host(runner) => {
                runner.store.copy(copy);
                Ok(())
            }
            Machine::Gpu(runner) => runner.store().copy(copy),
        }
    }

    /// Make room for rows that hold `numbers` numbers.
    fn make_room(&self, rows: &mut PassRows, numbers: usize) -> Result<()> {
        let failed = || Error::Runtime(format!("not enough memory for {} bytes of logits", 4 * numbers));
        match (self, &mut *rows) {
            (Machine::Gpu(runner), rows) => runner.make_room(rows, numbers).map_err(|_| failed()),
            (Machine::Host(_), PassRows::Host(memory)) if memory.len() >= numbers => Ok(()),
            (Machine::Host(_), rows) => {
                let memory = bytemuck::allocation::try_zeroed_vec(numbers.next_power_of_two());
                *rows = PassRows::Host(memory.map_err(|()| failed())?);
                Ok(())
            }
        }
    }

    /// Put a pass on a GPU. On the processor, nothing begins yet.
    fn begin(&mut self, layout: &Layout, plan: &RowsPlan, rows: &mut PassRows) -> ort::Result<()> {
        match self {
            Machine::Host(_) => Ok(()),
            Machine::Gpu(runner) => runner.begin(layout, plan, rows),
        }
    }

    /// Finish the pass that was begun. `options` may stop it. Returns the time that it took, and whether later ones
    /// take as long.
    fn finish(
        &mut self,
        layout: &mut Layout,
        options: Option<&RunOptions>,
        rows: &mut PassRows,
    ) -> ort::Result<(Duration, bool)> {
        match (self, rows) {
            (Machine::Host(runner), PassRows::Host(rows)) => Ok((runner.run(layout, options, rows)?, true)),
            (Machine::Gpu(runner), rows) => Ok((runner.finish(rows)?, runner.is_usual)),
            _ => Err(ort::Error::new("the rows are in memory of a GPU")),
        }
    }
}

/// How the tokens of one sequence are dealt with.
#[derive(Clone, Copy)]
struct Cut {
    /// Its length before the pass.
    start: usize,
    /// The index of the first token whose row somebody reads.
    wanted: usize,
    /// The index of the first token that the pass computes.
    past: usize,
    /// The index behind the last one.
    end: usize,
    /// Whether its rows stay on a GPU.
    on_gpu: bool,
}

impl Cut {
    /// Tokens that the pass computes once more.
    fn recomputed(&self) -> usize {
        self.start.min(self.end).saturating_sub(self.past)
    }
}

impl PackedPasses {
    /// Passes of an export that was rewritten for the processor, over at most so many blocks.
    pub fn on_host(loaded: &Arc<LoadedSession>, export: &Export, layers: &[LayerShape], blocks: usize) -> Result<Self> {
        let runner = HostRunner::new(loaded, export, layers, blocks)?;
        Ok(Self::new(export, Machine::Host(Box::new(runner)), (BLOCK_TOKENS, host::block_bytes(layers)), blocks))
    }

    /// Passes of an export that was rewritten for a GPU, over so many blocks, which are allocated at once.
    pub fn on_gpu(
        loaded: &Arc<LoadedSession>,
        export: &Export,
        layers: &[LayerShape],
        captures: &Arc<Captures>,
        blocks: usize,
        keeps_rows: bool,
    ) -> ort::Result<Self> {
        let device = loaded.device.as_ref().ok_or_else(|| ort::Error::new("the model is on no GPU"))?;
        let (block, bytes) = (gpu_store::block_of(layers), gpu_store::block_bytes(layers));
        let store = GpuStore::new(device, layers, blocks)?;
        let runner = GpuRunner::new(loaded, export, layers, captures, store)?;
        let gpu_rows = keeps_rows.then(|| (device.clone(), export.logits.element));
        let row = export.logits.columns * element_bytes(export.logits.element).unwrap_or(4);
        let max_tokens = (MOST_ROW_BYTES / row).clamp(HOST_TOKENS, GPU_TOKENS);
        let passes = Self::new(export, Machine::Gpu(Box::new(runner)), (block, bytes), blocks);
        Ok(PackedPasses { gpu_rows, max_tokens, ..passes })
    }

    /// Whether rows of logits stay on a GPU.
    pub fn keeps_rows(&self) -> bool {
        self.gpu_rows.is_some()
    }

    fn new(export: &Export, machine: Machine, (block_tokens, block_bytes): (usize, usize), blocks: usize) -> Self {
        PackedPasses {
            pool: Pool::new(block_tokens, blocks),
            block_bytes,
            block_tokens,
            blocks,
            columns: export.logits.columns,
            max_tokens: HOST_TOKENS,
            file: export.file.clone(),
            running: AtomicUsize::new(NOTHING),
            idle: Condvar::new(),
            gpu_rows: None,
            rings: Mutex::default(),
            work: Mutex::new(Work {
                machine,
                layout: Layout::default(),
                rows_plan: RowsPlan::default(),
                buffers: Vec::new(),
                rows: None,
                cuts: Vec::new(),
            }),
        }
    }

    /// Leave a pass over a batch running; see [`crate::model::Model::launch`].
    pub fn launch(&self, batch: &mut [Pass<'_>]) -> bool {
        let mut work = self.work.lock();
        let can_run = matches!(work.machine, Machine::Gpu(_)) && self.running.load(Relaxed) == NOTHING;
        if !can_run || self.begin(&mut work, batch).is_err() {
            return false;
        }
        self.running.store(number_of(batch[0].sequence), Relaxed);
        true
    }

    /// Run one pass over a batch; see [`crate::model::Model::forward`].
    pub fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        let number = number_of(batch[0].sequence);
        let mut work = self.work.lock();
        while ![NOTHING, number].contains(&self.running.load(Relaxed)) {
            self.idle.wait(&mut work);
        }
        let cancelled = |batch: &mut [Pass<'_>]| match batch {
            [only] => own(only.sequence).cancel.is_requested(),
            _ => false,
        };
        if self.running.load(Relaxed) == NOTHING {
            if cancelled(batch) {
                return Err(Interrupt::Cancelled);
            }
            self.begin(&mut work, batch)?;
        }
        let result = self.finish(&mut work, batch);
        self.running.store(NOTHING, Relaxed);
        self.idle.notify_all();
        match result {
            Ok((elapsed, is_usual)) => {
                let is_usual = is_usual && work.cuts.iter().all(|cut| cut.past == cut.start);
                Ok(Report { elapsed, is_usual })
            }
            Err(_) if cancelled(batch) => Err(Interrupt::Cancelled),
            Err(error) => Err(error.into()),
        }
    }

    /// Lay out a pass and begin it. On an error the sequences are as before.
    fn begin(&self, work: &mut Work, batch: &mut [Pass<'_>]) -> Result<()> {
        work.cuts.clear();
        let begun = survive(|| {
            self.prepare(work, batch)?;
            if !work.layout.finish() {
                return Ok(());
            }
            // With room for a draft, so that a buffer seldom grows.
            let numbers = work.layout.rows.len().max(MIN_PASS) * self.columns;
            let mut buffer = buffer(&mut work.buffers);
            let rows = Arc::get_mut(&mut buffer).expect("nobody else has the buffer");
            if work.rows_plan.controls.is_empty() || !work.rows_plan.host.is_empty() {
                work.machine.make_room(rows, numbers)?;
            }
            work.machine.begin(&work.layout, &work.rows_plan, rows).map_err(|error| self.failed(error))?;
            work.rows = Some(buffer);
            Ok(())
        });
        begun.inspect_err(|_| self.undo(&work.cuts, batch))
    }

    /// Take the tokens of a pass back.
    fn undo(&self, cuts: &[Cut], batch: &mut [Pass<'_>]) {
        for (pass, cut) in batch.iter_mut().zip(cuts) {
            let sequence = own(pass.sequence);
            self.pool.lock().failed(sequence.holding);
            sequence.take_back(cut.start);
        }
    }

    /// Reserve blocks for a pass; see [`crate::model::Model::admit`].
    pub fn admit(&self, pass: &mut Pass<'_>) -> Admission {
        match admit(pass, &mut self.pool.lock(), Instant::now()) {
            None => Admission::Waits,
            Some(Cut { start, past, end, .. }) if end - past <= MAX_PASS || past >= start => {
                Admission::Whole(end - past)
            }
            Some(_) => Admission::Part(MAX_PASS),
        }
    }

    /// Make room for the tokens of the pass, and lay it out.
    fn prepare(&self, work: &mut Work, batch: &mut [Pass<'_>]) -> Result<()> {
        let Work { machine, layout, rows_plan, cuts, .. } = work;
        layout.clear();
        rows_plan.clear();
        let (mut pool, now) = (self.pool.lock(), Instant::now());
        for pass in &mut *batch {
            let mut cut = admit(pass, &mut pool, now).ok_or_else(|| self.no_memory())?;
            let Cut { wanted, past, end, .. } = cut;
            let sequence = own(pass.sequence);
            pool.run(sequence.holding);
            let rows = layout.rows.len()..layout.rows.len() + end - wanted;
            match sequence.control((past, end), wanted, pass.keep, (pass.filter, pass.uniforms)) {
                Some(control) => {
                    rows_plan.controls.push(control.at(rows.start));
                    rows_plan.filters |= !pass.filter.is_plain();
                    cut.on_gpu = true;
                }
                None => rows_plan.copy(rows),
            }
            cuts.push(cut);
            if past < end {
                let blocks = &pool.of(sequence.holding)[..end.div_ceil(self.block_tokens)];
                layout.add(&sequence.tokens()[past..end], past, wanted.max(past) - past, blocks);
            }
        }
        let copied = pool.copies().try_for_each(|copy| machine.copy(copy));
        copied.map_err(|error| {
            pool.lose_all();
            self.failed(error)
        })
    }

    /// What is said if there are not enough blocks.
    pub fn no_memory(&self) -> Error {
        Error::NoMemory(format!(
            "{}: the sequences of the model use all {} bytes of its cache; try again later, end other sessions, or set \
             a larger cache_bytes",
            self.file.display(),
            self.blocks * self.block_bytes
        ))
    }

    fn failed(&self, error: ort::Error) -> Error {
        Error::Runtime(format!("{}: {error}", self.file.display()))
    }

    /// Finish a pass, and give the sequences their rows. On an error they are as before.
    fn finish(&self, work: &mut Work, batch: &mut [Pass<'_>]) -> Result<(Duration, bool)> {
        let ran = survive(|| self.finish_rows(work, batch));
        ran.inspect_err(|_| self.undo(&work.cuts, batch))
    }

    fn finish_rows(&self, work: &mut Work, batch: &mut [Pass<'_>]) -> Result<(Duration, bool)> {
        let Work { machine, layout, buffers, rows, cuts, .. } = work;
        // If everything was computed before, nothing was begun.
        let (mut buffer, mut ran) = (rows.take(), (Duration::ZERO, true));
        if let Some(buffer) = &mut buffer {
            let rows = Arc::get_mut(buffer).expect("nobody else has the buffer");
            let options = match &batch[..] {
                [only] => Some(&*own_ref(only.sequence).options),
                _ => None,
            };
            ran = machine.finish(layout, options, rows).map_err(|error| self.failed(error))?;
        }
        let mut pool = self.pool.lock();
        let (mut row, several) = (0, batch.len() > 1);
        for (pass, cut) in batch.iter_mut().zip(&*cuts) {
            let &Cut { start, wanted, past, end, on_gpu } = cut;
            let sequence = own(pass.sequence);
            sequence.count(past.saturating_sub(start), cut.recomputed());
            pool.ran(sequence.holding, end);
            if !pass.tokens.is_empty() {
                sequence.ran();
                sequence.forget_rows(pass.keep);
            }
            if end > wanted {
                sequence.note_rows(wanted + 1..end + 1, pass.keep, on_gpu);
            }
            if let Some(buffer) = buffer.as_ref().filter(|_| !on_gpu) {
                sequence.keep_rows(buffer, row, wanted + 1, end - wanted, several);
            }
            let published = pass.keep.min(end);
            pool.publish_first(sequence.holding, &sequence.tokens()[..published]);
            row += end - wanted;
        }
        if let Some(buffer) = buffer.filter(|_| buffers.len() < MOST_BUFFERS) {
            buffers.push(buffer);
        }
        Ok(ran)
    }
}

impl PassOwner for PackedPasses {
    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    fn columns(&self) -> usize {
        self.columns
    }

    fn ring(&self, vocab_size: usize) -> ort::Result<Option<Ring>> {
        let Some((device, element)) = &self.gpu_rows else { return Ok(None) };
        match self.rings.lock().pop() {
            None => Ring::new(device, self.columns, vocab_size, *element),
            Some(mut ring) => {
                ring.clear(vocab_size);
                Ok(Some(ring))
            }
        }
    }

    fn give_ring(&self, ring: Ring) {
        let mut rings = self.rings.lock();
        if !ring.has_failed() && rings.len() < MOST_RINGS {
            rings.push(ring);
        }
    }

    fn has_launched(&self, sequence: &PackedSequence) -> bool {
        self.running.load(Relaxed) == number_of(sequence)
    }

    fn give_up(&self, sequence: &mut PackedSequence) {
        let number = number_of(sequence);
        let mut work = self.work.lock();
        if self.running.load(Relaxed) == number {
            let mut batch = [Pass::plain(sequence, &[])];
            _ = self.finish(&mut work, &mut batch);
            self.undo(&work.cuts, &mut batch);
            self.running.store(NOTHING, Relaxed);
            self.idle.notify_all();
        }
    }
}

/// Begin a pass, take over what others have computed before, and reserve blocks for the rest. `None` if there are not
/// enough. A pass without tokens computes tokens anew, as many as one pass may have.
fn admit(pass: &mut Pass<'_>, pool: &mut Blocks, now: Instant) -> Option<Cut> {
    let sequence = own(pass.sequence);
    let (start, holding) = (sequence.len(), sequence.holding);
    let is_part = pass.tokens.is_empty();
    if !is_part {
        sequence.begin(pass.tokens, pool);
    }
    let tokens = sequence.tokens();
    let wanted = (pass.keep.max(start + 1) - 1).min(tokens.len());
    if pool.len(holding) > wanted {
        pool.truncate(holding, wanted); // a row comes with a token that the pass computes
    }
    let next = &tokens[pool.len(holding)..wanted];
    if !pool.admit(holding, next, tokens.len(), now) {
        return None;
    }
    let past = pool.len(holding);
    if is_part {
        let end = start.min(past + MAX_PASS);
        return Some(Cut { start, wanted: end, past: past.min(end), end, on_gpu: false });
    }
    Some(Cut { start, wanted, past, end: tokens.len(), on_gpu: false })
}

/// Make a panic an error of its pass: what the pass has changed is undone then, and the model serves other sessions.
fn survive<T>(body: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(Error::of_panic(panic.as_ref())))
}

/// What tells a sequence from others.
fn number_of(sequence: &dyn Sequence) -> usize {
    std::ptr::from_ref(sequence).addr()
}

/// A buffer for logits that nobody reads any more, or a new one.
fn buffer(buffers: &mut Vec<Arc<PassRows>>) -> Arc<PassRows> {
    let free = buffers.iter().position(|buffer| Arc::strong_count(buffer) == 1);
    free.map_or_else(|| Arc::new(PassRows::Host(Vec::new())), |index| buffers.swap_remove(index))
}

/// The sequence of a packed model behind the trait.
pub fn own(sequence: &mut dyn Sequence) -> &mut PackedSequence {
    (sequence as &mut dyn Any).downcast_mut().expect("the sequence is of another model")
}

fn own_ref(sequence: &dyn Sequence) -> &PackedSequence {
    (sequence as &dyn Any).downcast_ref().expect("the sequence is of another model")
}
