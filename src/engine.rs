//! The engine: models loaded once, shared by any number of sessions and threads.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::config::{Combine, Config, ModelConfig, ProviderName};
use crate::decode::combine::Combination;
use crate::error::{Error, Result};
use crate::model::{Model, Ngram, OnnxModel, Provider, environment};
use crate::text::Text;

/// The loaded models and how they are combined. Immutable.
pub struct Engine {
    models: Vec<Arc<dyn Model>>,
    combine: Combine,
    text: Option<Arc<Text>>,
    stop_tokens: Vec<i32>,
}

impl Engine {
    /// Load everything that a configuration names.
    pub fn load(config: &Config) -> Result<Self> {
        environment(config.onnxruntime.as_deref(), config.threads)?;
        let mut models = Vec::with_capacity(config.models.len());
        let mut stop_tokens = Vec::new();
        let mut tokenizers: Vec<(String, PathBuf)> = Vec::new();
        for model in &config.models {
            let model = match model {
                ModelConfig::Onnx(export) => export,
                ModelConfig::Ngram { name } => {
                    models.push(Arc::new(Ngram::new(name)) as Arc<dyn Model>);
                    continue;
                }
            };
            let provider = match model.provider {
                ProviderName::Cpu => Provider::Cpu,
                ProviderName::Cuda => Provider::Cuda { device_id: model.device_id },
            };
            let name = model.name.clone().unwrap_or_else(|| folder_name(&model.path));
            let loaded = OnnxModel::load(&model.path, &name, provider)?;
            let tokenizer = loaded.export().file.with_file_name("tokenizer.json");
            if tokenizer.is_file() {
                tokenizers.push((name, tokenizer));
            }
            stop_tokens.extend_from_slice(&loaded.export().stop_tokens);
            models.push(Arc::new(loaded) as Arc<dyn Model>);
        }
        let text = agree(&tokenizers, vocab_size(&models))?;
        Self::new(models, config.combine.clone(), stop_tokens, text)
    }

    /// An engine of models made elsewhere.
    pub fn new(
        models: Vec<Arc<dyn Model>>,
        combine: Combine,
        mut stop_tokens: Vec<i32>,
        text: Option<Arc<Text>>,
    ) -> Result<Self> {
        let mut scoring = models.iter().filter(|model| model.scores());
        let first = scoring.next().ok_or_else(|| Error::Config("an engine takes at least one model".into()))?;
        let vocab_size = first.vocab_size();
        if let Some(other) = scoring.find(|model| model.vocab_size() != vocab_size) {
            return Err(Error::Model(format!(
                "the vocabularies differ: {} has {vocab_size} tokens, {} has {}; \
                 models that decode together must share one vocabulary",
                first.name(),
                other.name(),
                other.vocab_size()
            )));
        }
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        let engine = Engine { models, combine, text, stop_tokens };
        engine.combination(None)?;
        Ok(engine)
    }

    /// The models, in the order of the configuration.
    pub fn models(&self) -> &[Arc<dyn Model>] {
        &self.models
    }

    /// How they are combined.
    pub fn combine(&self) -> &Combine {
        &self.combine
    }

    /// The combination, with a session's own weights where given.
    pub fn combination(&self, weights: Option<&[f32]>) -> Result<Combination> {
        let scores: Vec<bool> = self.models.iter().map(|model| model.scores()).collect();
        self.combine.resolve(&scores, weights)
    }

    /// Number of tokens of the shared vocabulary.
    pub fn vocab_size(&self) -> usize {
        vocab_size(&self.models)
    }

    /// The exports' end-of-sequence tokens.
    pub fn stop_tokens(&self) -> &[i32] {
        &self.stop_tokens
    }

    /// The tokenizer; an engine without one serves tokens only.
    pub fn text(&self) -> Result<&Arc<Text>> {
        self.text.as_ref().ok_or_else(|| {
            Error::Unsupported(
                "no model of this engine has a tokenizer.json beside it; put one there, or use tokens".into(),
            )
        })
    }
}

/// The vocabulary of the first model that has one.
fn vocab_size(models: &[Arc<dyn Model>]) -> usize {
    models.iter().find(|model| model.scores()).map_or(0, |model| model.vocab_size())
}

fn folder_name(path: &Path) -> String {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let name = folder.and_then(Path::file_name).or(path.file_name());
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The tokenizer that all models agree on.
fn agree(tokenizers: &[(String, PathBuf)], vocab_size: usize) -> Result<Option<Arc<Text>>> {
    let Some((first, path)) = tokenizers.first() else { return Ok(None) };
    let read = |path: &Path| {
        std::fs::read(path)
            .map_err(|error| Error::Model(format!("cannot read the tokenizer {}: {error}", path.display())))
    };
    let (text, bytes) = (Text::load(path, vocab_size)?, read(path)?);
    for (other, path) in &tokenizers[1..] {
        if read(path)? == bytes {
            continue;
        }
        if let Some((id, own, others)) = text.first_difference(&Text::load(path, vocab_size)?) {
            let show = |token: Option<String>| token.map_or("missing".into(), |token| format!("{token:?}"));
            return Err(Error::Model(format!(
                "the tokenizers differ: token {id} is {} to {first} but {} to {other}; \
                 models that decode together must share one vocabulary",
                show(own),
                show(others)
            )));
        }
    }
    Ok(Some(Arc::new(text)))
}
