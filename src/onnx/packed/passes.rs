//! Packed passes: the tokens of any number of sequences go through the model at once.

use std::any::Any;
use std::ffi::CString;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ort::memory::MemoryInfo;
use ort::session::RunOptions;
use ort::value::TensorElementType;
use parking_lot::Mutex;

use super::host::HostBlocks;
use super::pool::{BlockCopy, Pool};
use super::sequence::{PackedSequence, PassRows};
use super::table::{BLOCK, LayerPart, PassTable, Share};
use crate::error::{Error, Result};
use crate::export::pack::{ROWS, TABLE};
use crate::export::{Export, Role};
use crate::model::{Interrupt, Pass, Report, Sequence};
use crate::onnx::binding::{Binding, Tensor};
use crate::onnx::inputs::Feed;
use crate::onnx::weights::LoadedSession;

/// Most buffers for rows that are kept for later passes.
const MOST_BUFFERS: usize = 8;

/// The passes of a packed model.
pub struct PackedPasses {
    pub pool: Pool,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Logits of a row, padding included.
    pub columns: usize,
    /// For messages.
    file: PathBuf,
    logits: CString,
    runner: Mutex<Runner>,
    /// For passes over several sequences, which none of them stops.
    unstoppable: RunOptions,
    memory: MemoryInfo<'static>,
    /// Dropped last, since the binding refers to it.
    _loaded: Arc<LoadedSession>,
}

/// What one pass needs, reused by the next.
struct Runner {
    binding: Binding,
    feeds: Vec<Feed>,
    /// The indices of the tokens whose rows are wanted.
    rows: Vec<i64>,
    /// The memory of the blocks.
    store: HostBlocks,
    copies: Vec<BlockCopy>,
    /// Where the blocks of the sequences are, one sequence behind another.
    blocks: Vec<*mut f32>,
    table: Box<PassTable>,
    /// The address of the table.
    address: [i64; 1],
    tokens: Vec<i64>,
    positions: Vec<i64>,
    buffers: Vec<Arc<PassRows>>,
    /// By sequence of the pass: how its tokens are dealt with.
    cuts: Vec<Cut>,
}

// SAFETY: the addresses in it are those of its own memory, and of blocks during a pass.
unsafe impl Send for Runner {}

/// How the tokens of one sequence are dealt with.
#[derive(Clone, Copy)]
struct Cut {
    /// Its length before the pass.
    start: usize,
    /// The index of the first token whose row somebody reads.
    wanted: usize,
}

impl PackedPasses {
    /// Passes of a rewritten export.
    pub fn new(loaded: &Arc<LoadedSession>, export: &Export, layers: &[(usize, usize)], limit: usize) -> Result<Self> {
        let failed = |error: ort::Error| Error::Runtime(error.to_string());
        let layers = LayerPart::lay_out(layers);
        let store = HostBlocks::new(&layers);
        let block_bytes = store.block_bytes();
        let pool = Pool::new(BLOCK, limit / block_bytes);
        let is_read = |role: Role| matches!(role, Role::Tokens | Role::Positions);
        let table = Box::new(PassTable { tokens: 0, shares: Vec::new(), layers });
        let inputs = loaded.session.inputs();
        let is_fed = |name: &CString| inputs.iter().any(|input| name.to_str() == Ok(input.name()));
        let feeds = export.inputs.iter().filter(|input| is_read(input.role) && is_fed(&input.name)).map(Feed::new);
        Ok(PackedPasses {
            pool,
            block_bytes,
            columns: export.logits.columns,
            file: export.file.clone(),
            logits: export.logits.name.clone(),
            runner: Mutex::new(Runner {
                binding: Binding::new(&loaded.session)?,
                feeds: feeds.collect(),
                rows: Vec::new(),
                address: [&raw const *table as i64],
                store,
                copies: Vec::new(),
                blocks: Vec::new(),
                table,
                tokens: Vec::new(),
                positions: Vec::new(),
                buffers: Vec::new(),
                cuts: Vec::new(),
            }),
            unstoppable: RunOptions::new().map_err(failed)?,
            memory: MemoryInfo::new(
                ort::memory::AllocationDevice::CPU,
                0,
                ort::memory::AllocatorType::Device,
                ort::memory::MemoryType::Default,
            )
            .map_err(failed)?,
            _loaded: loaded.clone(),
        })
    }

    /// Run one pass over a batch; see [`crate::model::Model::forward`].
    pub fn forward(&self, batch: &mut [Pass<'_>]) -> Result<Report, Interrupt> {
        if let [only] = batch
            && own(only.sequence).cancel.is_requested()
        {
            return Err(Interrupt::Cancelled);
        }
        let mut runner = self.runner.lock();
        let runner = &mut *runner;
        runner.cuts.clear();
        let elapsed = self.prepare(runner, batch).and_then(|()| self.run(runner, batch));
        match elapsed {
            Ok(elapsed) => Ok(Report { elapsed, is_usual: batch.len() == 1 }),
            Err(error) => {
                for (pass, cut) in batch.iter_mut().zip(&runner.cuts) {
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

    /// Make room for the new tokens, and fill the inputs. Sequences take what others have computed before.
    fn prepare(&self, runner: &mut Runner, batch: &mut [Pass<'_>]) -> Result<()> {
        let Runner { table, tokens, positions, rows, cuts, store, copies, blocks, .. } = runner;
        (tokens.clear(), positions.clear(), rows.clear(), table.shares.clear(), blocks.clear());
        let mut pool = self.pool.lock();
        for pass in &mut *batch {
            let sequence = own(pass.sequence);
            let (start, holding) = (sequence.len(), sequence.holding);
            let wanted = (pass.keep.max(start + 1) - 1).min(start + pass.tokens.len());
            cuts.push(Cut { start, wanted });
            sequence.begin(pass.tokens);
            let computed = pool.len(holding);
            pool.reuse(holding, &sequence.tokens()[computed..wanted]);
            let (past, end) = (pool.len(holding), sequence.len());
            if past == end {
                continue;
            }
            if !pool.reserve(holding, end, copies) {
                return Err(Error::Runtime("no memory for more tokens: sequences use all blocks of the cache".into()));
            }
            store.grow(pool.given())?;
            copies.drain(..).for_each(|copy| store.copy(copy));
            let first = tokens.len();
            table.shares.push(Share { first, width: end - past, past, blocks: std::ptr::null() });
            blocks.extend(pool.of(holding)[..end.div_ceil(BLOCK)].iter().map(|&block| store.address(block)));
            tokens.extend(sequence.tokens()[past..].iter().map(|&token| i64::from(token)));
            positions.extend(past as i64..end as i64);
            rows.extend((wanted..end).map(|index| (first + index - past) as i64));
        }
        let mut begin = 0;
        for share in &mut table.shares {
            share.blocks = blocks[begin..].as_ptr();
            begin += (share.past + share.width).div_ceil(BLOCK);
        }
        table.tokens = tokens.len();
        Ok(())
    }

    fn run(&self, runner: &mut Runner, batch: &mut [Pass<'_>]) -> Result<Duration> {
        let failed = |error: ort::Error| Error::Runtime(format!("{}: {error}", self.file.display()));
        let Runner { table, tokens, rows, buffers, cuts, .. } = &mut *runner;
        if table.shares.is_empty() {
            return Ok(Duration::ZERO);
        }
        if rows.is_empty() {
            rows.push(tokens.len() as i64 - 1); // an empty matrix is not for every operator
        }
        let mut buffer = buffer(buffers, rows.len() * self.columns)?;
        let taken = cuts.len();
        debug_assert_eq!(taken, batch.len());
        let output = Arc::get_mut(&mut buffer).expect("nobody else has the buffer");
        self.bind(runner, &mut output.0).map_err(failed)?;
        let started = Instant::now();
        let result = match &batch[..] {
            [only] => runner.binding.run(&own_ref(only.sequence).options),
            _ => runner.binding.run(&self.unstoppable),
        };
        let elapsed = started.elapsed();
        result.map_err(failed)?;
        let mut pool = self.pool.lock();
        let mut row = 0;
        for (pass, &Cut { wanted, .. }) in batch.iter_mut().zip(&runner.cuts) {
            let sequence = own(pass.sequence);
            let count = sequence.len() - wanted;
            pool.ran(sequence.holding, sequence.len());
            sequence.keep_rows(&buffer, row, wanted + 1, count, pass.keep);
            let published = pass.keep.min(sequence.len());
            pool.publish_first(sequence.holding, &sequence.tokens()[..published]);
            row += count;
        }
        if runner.buffers.len() < MOST_BUFFERS {
            runner.buffers.push(buffer);
        }
        Ok(elapsed)
    }

    fn bind(&self, runner: &mut Runner, output: &mut [f32]) -> ort::Result<()> {
        let Runner { binding, feeds, rows, address, tokens, positions, .. } = runner;
        let width = tokens.len() as i64;
        for Feed { input, numbers } in feeds {
            let values = if input.role == Role::Tokens { &*tokens } else { &*positions };
            numbers.fill(values.iter().copied())?;
            let shape = [1, width];
            binding.input(&input.name, &numbers.tensor(&self.memory, &shape[2 - input.rank..])?)?;
        }
        let int64 = TensorElementType::Int64;
        binding.input(TABLE, &Tensor::over(&self.memory, address, int64, &[1])?)?;
        let wanted = rows.len() as i64;
        binding.input(ROWS, &Tensor::over(&self.memory, rows, int64, &[wanted])?)?;
        let shape = [1, wanted, self.columns as i64];
        let logits = Tensor::over(&self.memory, output, TensorElementType::Float32, &shape)?;
        binding.output(&self.logits, &logits)
    }
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
