//! Packed passes: the tokens of any number of sequences go through the model at once.

use std::any::Any;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ort::session::RunOptions;
use parking_lot::Mutex;

use super::gpu_runner::GpuRunner;
use super::gpu_store::{self, GpuStore};
use super::host;
use super::host_runner::HostRunner;
use super::layout::Layout;
use super::pool::{BlockCopy, Blocks, Pool};
use super::sequence::{PackedSequence, PassRows};
use super::table::BLOCK;
use crate::error::{Error, Result};
use crate::export::Export;
use crate::export::pack::LayerShape;
use crate::model::{Admission, Interrupt, Pass, Report, Sequence};
use crate::onnx::captures::Captures;
use crate::onnx::sequence::MAX_PASS;
use crate::onnx::weights::LoadedSession;

/// Most buffers for rows that are kept for later passes.
const MOST_BUFFERS: usize = 8;

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
    /// For messages.
    file: PathBuf,
    work: Mutex<Work>,
}

/// What passes run on, and what one pass needs, reused by the next.
struct Work {
    machine: Machine,
    layout: Layout,
    buffers: Vec<Arc<PassRows>>,
    /// By sequence of the pass: how its tokens are dealt with.
    cuts: Vec<Cut>,
}

/// What passes run on.
enum Machine {
    Host(HostRunner),
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

    /// Run a pass. `options` may stop it. Returns the time that it took, and whether later ones take as long.
    fn run(
        &mut self,
        layout: &mut Layout,
        options: Option<&RunOptions>,
        rows: &mut [f32],
    ) -> ort::Result<(Duration, bool)> {
        match self {
            Machine::Host(runner) => Ok((runner.run(layout, options, rows)?, true)),
            Machine::Gpu(runner) => {
                let elapsed = runner.run(layout)?;
                runner.read(rows);
                Ok((elapsed, runner.is_usual))
            }
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
        Ok(Self::new(export, Machine::Host(runner), (BLOCK, host::block_bytes(layers)), blocks))
    }

    /// Passes of an export that was rewritten for a GPU, over so many blocks, which are allocated at once.
    pub fn on_gpu(
        loaded: &Arc<LoadedSession>,
        export: &Export,
        layers: &[LayerShape],
        captures: &Arc<Captures>,
        blocks: usize,
    ) -> ort::Result<Self> {
        let device = loaded.device.as_ref().ok_or_else(|| ort::Error::new("the model is on no GPU"))?;
        let (block, bytes) = (gpu_store::block_of(layers), gpu_store::block_bytes(layers));
        let longest = export.context_length.div_ceil(block);
        let store = GpuStore::new(device, layers, blocks)?;
        let runner = GpuRunner::new(loaded, export, captures, store, longest)?;
        Ok(Self::new(export, Machine::Gpu(Box::new(runner)), (block, bytes), blocks))
    }

    fn new(export: &Export, machine: Machine, (block_tokens, block_bytes): (usize, usize), blocks: usize) -> Self {
        PackedPasses {
            pool: Pool::new(block_tokens, blocks),
            block_bytes,
            block_tokens,
            blocks,
            columns: export.logits.columns,
            file: export.file.clone(),
            work: Mutex::new(Work { machine, layout: Layout::default(), buffers: Vec::new(), cuts: Vec::new() }),
        }
    }

    /// Run one pass over a batch; see [`crate::model::Model::forward`].
    pub fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        if let [only] = batch
            && own(only.sequence).cancel.is_requested()
        {
            return Err(Interrupt::Cancelled);
        }
        let mut work = self.work.lock();
        let work = &mut *work;
        work.cuts.clear();
        match self.prepare(work, batch).and_then(|()| self.run(work, batch)) {
            Ok((elapsed, is_usual)) => {
                let is_usual = is_usual && batch.len() == 1 && work.cuts.iter().all(|cut| cut.past == cut.start);
                Ok(Report { elapsed, is_usual })
            }
            Err(error) => {
                for (pass, cut) in batch.iter_mut().zip(&work.cuts) {
                    self.pool.lock().failed(own(pass.sequence).holding);
                    pass.sequence.truncate(cut.start);
                }
                if let [only] = batch
                    && own(only.sequence).cancel.is_requested()
                {
                    return Err(Interrupt::Cancelled);
                }
                Err(error.into())
            }
        }
    }

    /// Reserve blocks for a pass; see [`crate::model::Model::admit`].
    pub fn admit(&self, pass: &mut Pass<'_>) -> Admission {
        let mut pool = self.pool.lock();
        match admit(pass, &mut pool) {
            None => Admission::Waits,
            Some(Cut { start, past, end, .. }) => {
                let is_whole = end - past <= MAX_PASS || past >= start;
                if is_whole { Admission::Whole(end - past) } else { Admission::Part(MAX_PASS) }
            }
        }
    }

    /// Make room for the tokens of the pass, and lay it out.
    fn prepare(&self, work: &mut Work, batch: &mut [Pass<'_>]) -> Result<()> {
        let Work { machine, layout, cuts, .. } = work;
        layout.clear();
        let mut pool = self.pool.lock();
        for pass in &mut *batch {
            let cut = admit(pass, &mut pool).ok_or_else(|| self.no_memory())?;
            let Cut { wanted, past, end, .. } = cut;
            cuts.push(cut);
            let sequence = own(pass.sequence);
            pool.run(sequence.holding);
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

    fn run(&self, work: &mut Work, batch: &mut [Pass<'_>]) -> Result<(Duration, bool)> {
        let Work { machine, layout, buffers, cuts, .. } = work;
        // If everything was computed before, there is nothing to run.
        let runs = layout.finish();
        let length = layout.rows.len() * self.columns;
        let mut buffer = buffer(buffers, length)?;
        let mut ran = (Duration::ZERO, true);
        if runs {
            let rows = &mut Arc::get_mut(&mut buffer).expect("nobody else has the buffer").0;
            let options = match &batch[..] {
                [only] => Some(&*own_ref(only.sequence).options),
                _ => None,
            };
            ran = machine.run(layout, options, &mut rows[..length]).map_err(|error| self.failed(error))?;
        }
        let mut pool = self.pool.lock();
        let mut row = 0;
        for (pass, cut) in batch.iter_mut().zip(&*cuts) {
            let &Cut { start, wanted, past, end } = cut;
            let sequence = own(pass.sequence);
            sequence.count(past.saturating_sub(start), cut.recomputed());
            pool.ran(sequence.holding, end);
            if !pass.tokens.is_empty() {
                sequence.ran();
                sequence.keep_rows(&buffer, row, wanted + 1, end - wanted, pass.keep);
            }
            let published = pass.keep.min(end);
            pool.publish_first(sequence.holding, &sequence.tokens()[..published]);
            row += end - wanted;
        }
        if buffers.len() < MOST_BUFFERS {
            buffers.push(buffer);
        }
        Ok(ran)
    }
}

/// Begin a pass, take over what others have computed before, and reserve blocks for the rest. `None` if there are not
/// enough. A pass without tokens computes tokens anew, as many as one pass may have.
fn admit(pass: &mut Pass<'_>, pool: &mut Blocks) -> Option<Cut> {
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
    if !pool.admit(holding, next, tokens.len(), Instant::now()) {
        return None;
    }
    let past = pool.len(holding);
    if is_part {
        let end = start.min(past + MAX_PASS);
        return Some(Cut { start, wanted: end, past: past.min(end), end });
    }
    Some(Cut { start, wanted, past, end: tokens.len() })
}

/// A buffer for logits that nobody reads any more, or a new one.
fn buffer(buffers: &mut Vec<Arc<PassRows>>, length: usize) -> Result<Arc<PassRows>> {
    let free = buffers.iter().position(|buffer| Arc::strong_count(buffer) == 1);
    let mut buffer = free.map_or_else(|| Arc::new(PassRows(Vec::new())), |index| buffers.swap_remove(index));
    let rows = &mut Arc::get_mut(&mut buffer).expect("nobody else has the buffer").0;
    if rows.len() < length {
        let failed = |()| Error::Runtime(format!("not enough memory for {} bytes of logits", 4 * length));
        *rows = bytemuck::allocation::try_zeroed_vec(length.next_power_of_two()).map_err(failed)?;
    }
    Ok(buffer)
}

/// The sequence of a packed model behind the trait.
pub fn own(sequence: &mut dyn Sequence) -> &mut PackedSequence {
    (sequence as &mut dyn Any).downcast_mut().expect("the sequence is of another model")
}

fn own_ref(sequence: &dyn Sequence) -> &PackedSequence {
    (sequence as &dyn Any).downcast_ref().expect("the sequence is of another model")
}
