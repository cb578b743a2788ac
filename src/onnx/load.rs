//! Loads a model: reads its export, makes its session, and tries it out.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use super::captures::Captures;
use super::check;
use super::model::OnnxModel;
use super::options::{LoadOptions, Provider};
use super::weights::{self, Shapes};
use crate::error::{Error, Result};
use crate::export::graph::Graph;
use crate::export::recognise::read_export;
use crate::export::{CacheKind, CacheTensor, companions, shapes};
use crate::model::Cancel;

/// Timing passes at loading takes at most this, or a tenth of what loading took before.
const TIMING: Duration = Duration::from_millis(100);

impl OnnxModel {
    /// Load an export: an `.onnx` file, or a folder that holds one. [`super::environment`] must have been made. Weights that
    /// another model of the process has loaded from the same file, and still uses, are shared with it.
    ///
    /// A few passes over made-up tokens show what inputs and outputs cannot tell: see [`check`].
    pub fn load(path: &Path, name: &str, settings: &LoadOptions) -> Result<Self> {
        let file = companions::model_file(path)?;
        let graph = Graph::read(&file)?;
        companions::check_weights(&file, &graph)?;
        let load = |shapes| Self::load_with(&file, &graph, shapes, name, settings);
        match load(Shapes::Declared) {
            Err(error) if shapes::are_blamed(&error.to_string()) => {
                let mut model = load(Shapes::Inferred)?;
                let warning =
                    "the shapes that the file declares for inner values are wrong, so it was loaded without them";
                model.export_mut().warnings.push(warning.into());
                Ok(model)
            }
            result => result,
        }
    }

    fn load_with(file: &Path, graph: &Graph, shapes: Shapes, name: &str, settings: &LoadOptions) -> Result<Self> {
        let started = Instant::now();
        let refuse = |error: &dyn std::fmt::Display| Error::Model(format!("cannot load {}: {error}", file.display()));
        let loaded = weights::load(file, graph, &settings.provider, shapes)
            .map_err(|error| companions::explain(file, graph, error))?;
        let mut export = read_export(file, graph, loaded.session.inputs(), loaded.session.outputs())?;
        if let Some(length) = settings.context_length {
            export.limit_context(length)?;
        }
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .map_err(|error| refuse(&error))?;
        let captures = Arc::new(Captures::default());
        if let Provider::Cuda { .. } = settings.provider
            && let Some(why) = loaded.no_graphs.as_deref().or(export.no_graphs())
        {
            captures.refuse(why.into());
        }
        // What takes a cache in place takes it where it runs; all else copies it anyway.
        let writer = |tensor: &CacheTensor| graph.origin(tensor.present.to_str().ok()?);
        let mut writers = export.cache.iter().filter_map(writer);
        let stays = export.is_in_place() && writers.any(|node| loaded.on_processor.contains(&node.operator));
        let is_there = loaded.is_whole || (export.cache_kind != CacheKind::None && !stays);
        let mut model = OnnxModel {
            name: name.into(),
            device: loaded.device.clone().filter(|_| is_there),
            captures,
            loaded,
            export: Arc::new(export),
            provider: settings.provider.clone(),
            memory: Arc::new(memory),
            vocab_size: 0,
            deviation: 0.0,
            trials: Vec::new(),
            pass_times: Vec::new(),
            rows: settings.rows,
            spares: Arc::default(),
        };
        model.try_out()?;
        model.vocab_size = model.export.logits.columns;
        model.settle_scoring(settings.scoring)?;
        let limit = TIMING.max(started.elapsed() / 10);
        model.pass_times = check::pass_times(&model, limit).map_err(|interrupt| model.failed_trial(interrupt))?;
        Ok(model)
    }

    /// Let ONNX Runtime say how many rows and columns of logits a pass gives: graphs need not.
    fn try_out(&mut self) -> Result<()> {
        let width = if self.export.single_tokens() { 1 } else { 2 };
        let mut sequence = self.sequence(&Arc::new(Cancel::default()))?;
        let shape = sequence.get_mut().try_out(&[0, 0][..width]).map_err(|error| self.cannot_run(&error))?;
        self.export_mut().see_logits(&shape, width)
    }
}
