//! Loads a model: reads its export, creates its session, and runs a few trial passes.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ort::memory::{AllocationDevice, AllocatorType, MemoryInfo, MemoryType};

use super::captures::Captures;
use super::model::OnnxModel;
use super::options::{LoadOptions, Provider};
use super::packed::batching::Batching;
use super::packed::load::pack;
use super::weights::{self, LoadedSession, ModelSource};
use super::{check, scoring};
use crate::error::{Error, Result};
use crate::export::graph::Graph;
use crate::export::recognise::read_export;
use crate::export::{CacheKind, CacheTensor, Export, companions, shapes};
use crate::model::Cancel;

/// Timing passes takes at most this long, or a tenth of what loading took before.
const TIMING: Duration = Duration::from_millis(100);

impl OnnxModel {
    /// Load an export from an `.onnx` file or from a folder that holds one. [`super::environment`] must be called
    /// first.
    ///
    /// If another model of the process still uses weights from the same files, both share one session. A few passes
    /// over made-up tokens find out what the graph does not declare: see [`check`].
    ///
    /// # Errors
    /// `Model` if the export cannot be read or run, `Unsupported` if it cannot be decoded with, `Config` if
    /// `options.context_length` is too large for it, `Runtime` if the provider or memory is missing.
    pub fn load(path: &Path, name: &str, options: &LoadOptions) -> Result<Self> {
        let file = companions::model_file(path)?;
        let graph = Graph::read(&file)?;
        companions::check_weights(&file, &graph)?;
        let started = Instant::now();
        let load = || Self::load_alone(&file, &graph, name, options);
        let mut model = pack(load()?, &graph, options.cache, load)?;
        let limit = TIMING.max(started.elapsed() / 10);
        model.pass_times = check::pass_times(&model, limit).map_err(|interrupt| model.failed_trial(interrupt))?;
        Ok(model)
    }

    /// A model of the export as it is, whose sequences do not share passes.
    fn load_alone(file: &Path, graph: &Graph, name: &str, options: &LoadOptions) -> Result<Self> {
        let load = |source| Self::load_with(file, graph, source, name, options);
        match load(ModelSource::File) {
            Err(error) if shapes::are_blamed(&error.to_string()) => {
                let mut model = load(ModelSource::WithoutShapes)?;
                let warning =
                    "the shapes that the file declares for inner values are wrong, so it was loaded without them";
                model.export_mut().warnings.push(warning.into());
                Ok(model)
            }
            result => result,
        }
    }

    fn load_with(
        file: &Path,
        graph: &Graph,
        source: ModelSource<'_>,
        name: &str,
        options: &LoadOptions,
    ) -> Result<Self> {
        let loaded = weights::load(file, graph, &options.provider, source)
            .map_err(|error| is_for_gpus(file, graph, &options.provider, &error).unwrap_or(error))
            .map_err(|error| companions::explain(file, graph, error))?;
        let mut export = read_export(file, graph, loaded.session.inputs(), loaded.session.outputs())?;
        if let Some(length) = options.context_length {
            export.limit_context(length)?;
        }
        let memory = MemoryInfo::new(AllocationDevice::CPU, 0, AllocatorType::Device, MemoryType::Default)
            .map_err(|error| Error::Model(format!("cannot load {}: {error}", file.display())))?;
        let captures = Arc::new(Captures::default());
        if let Provider::Cuda { .. } = options.provider
            && let Some(why) = loaded.no_graphs.as_deref().or(export.no_graphs())
        {
            captures.refuse(why.into());
        }
        let mut model = OnnxModel {
            name: name.into(),
            device: loaded.device.clone().filter(|_| cache_is_on_device(&loaded, &export, graph)),
            captures,
            loaded,
            export: Arc::new(export),
            provider: options.provider.clone(),
            memory: Arc::new(memory),
            vocab_size: 0,
            deviation: 0.0,
            trials: Vec::new(),
            pass_times: Vec::new(),
            rows: options.rows,
            spares: Arc::default(),
            batching: Batching::Untried,
        };
        model.measure_logits()?;
        model.vocab_size = model.export.logits.columns;
        scoring::choose(&mut model, options.scoring)?;
        Ok(model)
    }

    /// Run one pass to learn how many rows and columns of logits it gives. A graph need not declare either.
    fn measure_logits(&mut self) -> Result<()> {
        let width = if self.export.single_tokens() { 1 } else { 2 };
        let mut sequence = self.sequence(&Arc::new(Cancel::default()))?;
        let shape = sequence.get_mut().try_out(&[0, 0][..width]).map_err(|error| self.cannot_run(&error))?;
        self.export_mut().see_logits(&shape, width)
    }
}

/// The error of an export with types that the processor does not compute with. `None` if it failed for another reason.
fn is_for_gpus(file: &Path, graph: &Graph, provider: &Provider, error: &Error) -> Option<Error> {
    let message = error.to_string();
    let lacks_operator = ["find an implementation", "find kernel"].iter().any(|words| message.contains(words));
    let why = message.split("; if the file is corrupt").next().unwrap_or_default();
    (*provider == Provider::Cpu && graph.is_half && lacks_operator).then(|| {
        Error::Unsupported(format!(
            "{}: it is an export for GPUs, which ONNX Runtime cannot run on the processor: set \"provider\" to \
             \"cuda\", or export it in fp32, fp16 or int4, and without a cache in fp8 ({why})",
            file.display(),
        ))
    })
}

/// Whether the cache belongs in the memory of the session's GPU.
///
/// An operator that updates the cache in place needs it where the operator runs. If one of those runs on the processor,
/// the cache stays on the host. Other operators copy the cache anyway.
fn cache_is_on_device(loaded: &LoadedSession, export: &Export, graph: &Graph) -> bool {
    let writer = |tensor: &CacheTensor| graph.origin(tensor.present.to_str().ok()?);
    let mut writers = export.cache.iter().filter_map(writer);
    let is_on_host = export.is_in_place() && writers.any(|node| loaded.on_processor.contains(&node.operator));
    loaded.is_whole || (export.cache_kind != CacheKind::None && !is_on_host)
}
