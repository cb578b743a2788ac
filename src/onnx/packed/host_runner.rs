//! Runs packed passes on the processor.

use std::ffi::CString;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrayvec::ArrayVec;
use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};
use ort::session::RunOptions;
use ort::value::TensorElementType;

use super::host::{self, HostBlocks};
use super::layout::Layout;
use super::table::{PassTable, Share};
use crate::error::{Error, Result};
use crate::export::pack::{LOGITS, ROWS};
use crate::export::parts::{LayerShape, TABLE};
use crate::export::{Export, Role};
use crate::onnx::binding::{Binding, Tensor};
use crate::onnx::calm::CalmSession;
use crate::onnx::inputs::Feed;
use crate::onnx::runtime;
use crate::onnx::weights::LoadedSession;
use crate::onnx::workers::Workers;

/// Runs packed passes on the processor, one after another.
pub struct HostRunner {
    /// A binding of the session, and one of the second session once that is used.
    bindings: ArrayVec<Binding, 2>,
    /// The second session, for passes on crowded cores.
    calm: Option<Arc<CalmSession>>,
    feeds: Vec<Feed>,
    /// The memory of the blocks.
    pub store: HostBlocks,
    /// Where the blocks of the sequences are, one sequence behind another.
    blocks: Vec<*mut f32>,
    table: Box<PassTable>,
    /// The address of the table.
    address: [i64; 1],
    logits: CString,
    columns: usize,
    /// For passes over several sequences, which none of them stops.
    unstoppable: RunOptions,
    memory: MemoryInfo<'static>,
    /// Dropped last, since the binding refers to it.
    _loaded: Arc<LoadedSession>,
}

// SAFETY: the addresses in it are those of its own memory, and of blocks during a pass.
unsafe impl Send for HostRunner {}

impl HostRunner {
    /// Passes of a rewritten export over at most so many blocks.
    pub fn new(loaded: &Arc<LoadedSession>, export: &Export, layers: &[LayerShape], blocks: usize) -> Result<Self> {
        let failed = |error: ort::Error| Error::Runtime(error.to_string());
        let layers = host::parts(layers);
        let store = HostBlocks::new(&layers, blocks)?;
        let table = Box::new(PassTable { tokens: 0, shares: Vec::with_capacity(256), layers });
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default);
        Ok(HostRunner {
            bindings: std::iter::once(Binding::new(&loaded.session)?).collect(),
            calm: loaded.calm(export),
            feeds: feeds(loaded, export),
            store,
            blocks: Vec::with_capacity(4096),
            address: [&raw const *table as i64],
            table,
            logits: match export.logits.element {
                TensorElementType::Float32 => export.logits.name.clone(),
                _ => LOGITS.into(),
            },
            columns: export.logits.columns,
            unstoppable: RunOptions::new().map_err(failed)?,
            memory: memory.map_err(failed)?,
            _loaded: loaded.clone(),
        })
    }

    /// Run a pass, which writes the rows that are wanted to `rows`. `options` may stop it.
    pub fn run(
        &mut self,
        layout: &mut Layout,
        options: Option<&RunOptions>,
        rows: &mut [f32],
    ) -> ort::Result<Duration> {
        let workers = runtime::loaded().and_then(|runtime| runtime.workers.as_ref());
        let is_calm = workers.is_some_and(Workers::are_crowded) && self.can_be_calm();
        self.fill(layout);
        self.bind(is_calm.into(), layout, rows)?;
        let _watched = workers.map(|workers| workers.watch(is_calm));
        let started = Instant::now();
        self.bindings[usize::from(is_calm)].run(options.unwrap_or(&self.unstoppable))?;
        Ok(started.elapsed())
    }

    /// Whether the second session is loaded.
    fn can_be_calm(&mut self) -> bool {
        if self.bindings.len() == 1 {
            let session = self.calm.as_ref().and_then(CalmSession::get);
            self.bindings.extend(session.and_then(|session| Binding::new(session).ok()));
        }
        self.bindings.len() == 2
    }

    fn fill(&mut self, layout: &Layout) {
        let HostRunner { store, blocks, table, .. } = self;
        blocks.clear();
        blocks.extend(layout.blocks.iter().map(|&block| store.address(block)));
        table.tokens = layout.tokens.len();
        table.shares.clear();
        table.shares.extend(layout.parts.iter().map(|part| Share {
            first: part.first,
            width: part.width,
            past: part.past,
            blocks: blocks[part.blocks.clone()].as_ptr(),
        }));
    }

    /// Bind what a pass reads and writes to the session of this number.
    fn bind(&mut self, session: usize, layout: &mut Layout, output: &mut [f32]) -> ort::Result<()> {
        let HostRunner { bindings, feeds, address, memory, .. } = self;
        let binding = &mut bindings[session];
        let width = layout.tokens.len() as i64;
        for Feed { input, numbers } in feeds {
            let values = if input.role == Role::Tokens { &layout.tokens } else { &layout.positions };
            numbers.fill(values.iter().copied())?;
            let shape = [1, width];
            binding.input(&input.name, &numbers.tensor(memory, &shape[2 - input.rank..])?)?;
        }
        let int64 = TensorElementType::Int64;
        binding.input(TABLE, &Tensor::over(memory, address, int64, &[1])?)?;
        let wanted = layout.rows.len() as i64;
        binding.input(ROWS, &Tensor::over(memory, &mut layout.rows, int64, &[wanted])?)?;
        let shape = [1, wanted, self.columns as i64];
        let logits = Tensor::over(memory, output, TensorElementType::Float32, &shape)?;
        binding.output(&self.logits, &logits)
    }
}

/// The inputs of a rewritten export that name tokens and positions.
pub fn feeds(loaded: &LoadedSession, export: &Export) -> Vec<Feed> {
    let inputs = loaded.session.inputs();
    let is_fed = |name: &CString| inputs.iter().any(|input| name.to_str() == Ok(input.name()));
    let is_read = |role: Role| matches!(role, Role::Tokens | Role::Positions);
    export.inputs.iter().filter(|input| is_read(input.role) && is_fed(&input.name)).map(Feed::new).collect()
}
