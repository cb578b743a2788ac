//! Loads a model again as a packed one, if its export can be rewritten.

use std::sync::Arc;

use super::batching::Batching;
use super::passes::PackedPasses;
use super::table::BLOCK_TOKENS;
use super::{check, gpu_store, host};
use crate::error::{Error, Result};
use crate::export::graph::Graph;
use crate::export::pack::RunsOn;
use crate::export::{CacheKind, Export, Scoring, pack};
use crate::onnx::check::{Excuses, Trial};
use crate::onnx::model::OnnxModel;
use crate::onnx::options::{CacheSize, Provider, RowsOn};
use crate::onnx::weights::{self, ModelSource};
use crate::process;

/// The cache of a GPU, which is allocated at once, has room for at most this many sequences of the context length,
/// unless the configuration says otherwise.
const MOST_ON_GPU: usize = 256;

/// A model with packed passes, or the same model with the reason why it has none.
///
/// The session of the export is freed before the rewritten one is created, so weights are in memory once. `reload`
/// loads the export again if the rewritten one gives other logits. `Config` if `cache` is too small.
pub fn pack(
    mut model: OnnxModel,
    graph: &Graph,
    cache: CacheSize,
    reload: impl FnOnce() -> Result<OnnxModel>,
) -> Result<OnnxModel> {
    let why = match candidate(&model, graph) {
        Ok((trial, packed)) => {
            let successor = model.successor(cache);
            drop(model);
            let packed = match successor(graph, &packed) {
                Err(error @ Error::Config(_)) => return Err(error),
                Err(error) => Err(error.to_string()),
                Ok(model) => verify(model, &trial),
            };
            match packed {
                Ok(model) => return Ok(model),
                Err(why) => {
                    model = reload()?;
                    why
                }
            }
        }
        Err(why) => why,
    };
    model.batching = Batching::Alone(why);
    Ok(model)
}

/// The rewritten export, and rows of the export itself to compare with.
fn candidate(model: &OnnxModel, graph: &Graph) -> Result<(Trial, pack::Packed), String> {
    let target = match model.provider {
        Provider::Cpu => RunsOn::Host,
        Provider::Cuda { .. } if !model.loaded.is_whole => {
            return Err("ONNX Runtime runs some operators on the processor".into());
        }
        Provider::Cuda { .. } => RunsOn::Gpu,
    };
    if let Some(why) = cannot_share(&model.export) {
        return Err(why.into());
    }
    let packed = pack::rewrite(&model.export, graph, target)?;
    let trial = Trial::new(model).map_err(|interrupt| model.failed_trial(interrupt).to_string())?;
    Ok((trial, packed))
}

/// Why sequences of an export cannot share a pass, whatever its graph holds.
fn cannot_share(export: &Export) -> Option<&'static str> {
    match (export.cache_kind, export.scoring) {
        (CacheKind::Fixed { .. }, _) => Some("its cache has a fixed length"),
        (CacheKind::None, _) => Some("it has no cache"),
        (CacheKind::Shared | CacheKind::Concatenated, Scoring::Parallel) => None,
        (CacheKind::Shared | CacheKind::Concatenated, _) => Some("it scores several positions of a text one by one"),
    }
}

fn verify(mut model: OnnxModel, trial: &Trial) -> Result<OnnxModel, String> {
    let found = check::deviation(&model, trial).map_err(|interrupt| model.failed_trial(interrupt).to_string())?;
    let export = &model.export;
    let excuses =
        Excuses { coarse: export.is_coarse, bfloat16: export.is_bfloat16(), few_levels: export.has_rounded_cache() };
    if !excuses.accept(found) {
        return Err(format!("its logits change by up to {found} among other sequences"));
    }
    model.deviation = model.deviation.max(found.logits);
    Ok(model)
}

impl OnnxModel {
    /// What makes the packed successor of a model. It does not keep the model's session alive.
    fn successor(&self, cache: CacheSize) -> impl FnOnce(&Graph, &pack::Packed) -> Result<OnnxModel> + use<> {
        let export = self.export.clone();
        let (name, memory, vocab_size) = (self.name.clone(), self.memory.clone(), self.vocab_size);
        let (deviation, trials, provider) = (self.deviation, self.trials.clone(), self.provider.clone());
        let (captures, rows_on) = (self.captures.clone(), self.rows_on());
        move |graph, packed| {
            let source = ModelSource::Packed(&packed.bytes);
            let loaded = weights::load(&export.file, graph, &provider, source)?;
            let (layers, context) = (&packed.layers[..], export.context_length);
            let blocks = |tokens: usize, bytes, free| cache.blocks(&name, bytes, context.div_ceil(tokens), free);
            let passes = match provider {
                Provider::Cpu => {
                    let blocks = blocks(BLOCK_TOKENS, host::block_bytes(layers), process::free_memory())?;
                    PackedPasses::on_host(&loaded, &export, layers, blocks)?
                }
                Provider::Cuda { .. } => {
                    let (tokens, bytes) = (gpu_store::block_of(layers), gpu_store::block_bytes(layers));
                    let failed = |error: ort::Error| Error::Runtime(error.to_string());
                    let free = loaded.device.as_ref().map_or(Ok(0), |device| device.free_memory()).map_err(failed)?;
                    let enough = context.div_ceil(tokens) * MOST_ON_GPU;
                    let blocks = match cache {
                        CacheSize::Share(_) => blocks(tokens, bytes, free)?.min(enough),
                        CacheSize::Bytes(_) => blocks(tokens, bytes, free)?,
                    };
                    PackedPasses::on_gpu(&loaded, &export, layers, &captures, blocks, rows_on == RowsOn::Gpu)
                        .map_err(failed)?
                }
            };
            Ok(OnnxModel {
                name,
                export,
                provider,
                memory,
                vocab_size,
                deviation,
                trials,
                pass_times: Vec::new(),
                device: loaded.device.clone(),
                captures,
                rows: None,
                spares: Arc::default(),
                loaded,
                batching: Batching::Packed(Arc::new(passes)),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::onnx::environment;
    use crate::onnx::options::LoadOptions;

    /// Attention over quantised caches is ONNX Runtime's, which checks types and shapes first. Then it finds that the
    /// processor has no `PagedAttention`, and tries float32 in vain.
    #[test]
    fn graphs_of_quantised_caches_are_valid() {
        environment(None, 0, None).unwrap();
        for form in ["builder-fp16-int8-cache", "builder-fp16-int4-cache", "builder-fp16-paged-int8-cache"] {
            let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exports/llama").join(form).join("model.onnx");
            let graph = Graph::read(&file).unwrap();
            let export = OnnxModel::load(&file, form, &LoadOptions::default()).unwrap().export.clone();
            let packed = pack::rewrite(&export, &graph, RunsOn::Gpu).unwrap();
            let loaded = weights::load(&file, &graph, &Provider::Cpu, ModelSource::Packed(&packed.bytes));
            let error = loaded.err().unwrap().to_string();
            assert!(
                error.contains("InsertedPrecisionFreeCast") && error.contains("(PagedAttention)"),
                "{form}: {error}"
            );
        }
    }
}
