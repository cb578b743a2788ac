//! The engine configuration: JSON, unknown keys rejected by name.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::decode::combine::Combination;
use crate::error::{Error, Result};

/// More threads than any machine runs a pass on.
const MAX_THREADS: usize = 1024;

/// The configuration of an engine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The models, in the order in which weights and lengths are listed everywhere.
    pub models: Vec<ModelConfig>,
    /// How they are combined.
    pub combine: Combine,
    /// Threads of the pool that all models of the process share; 0 is one for each physical core.
    #[serde(default)]
    pub threads: usize,
    /// Path of the ONNX Runtime library.
    #[serde(default)]
    pub onnxruntime: Option<PathBuf>,
}

/// One model of an engine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// An `.onnx` file, or a folder that holds one.
    pub path: PathBuf,
    /// Where it runs.
    #[serde(default)]
    pub provider: ProviderName,
    /// Which device of that provider.
    #[serde(default)]
    pub device_id: i32,
    /// What messages call it; the folder's name by default.
    #[serde(default)]
    pub name: Option<String>,
}

/// An execution provider of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    /// The processor.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// How the models are combined; see [`Combination`].
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Combine {
    /// A mixture of the distributions.
    Weighted {
        /// λ of each model.
        weights: Vec<f32>,
    },
    /// Expert minus amateur, on logits.
    Contrastive {
        /// μ.
        mu: f32,
        /// α of the plausibility mask; 0 is off.
        #[serde(default)]
        plausibility: f32,
    },
    /// A weighted sum of logits.
    Logits {
        /// Weight of each model.
        weights: Vec<f32>,
    },
    /// One model's distribution.
    Target {
        /// Index of that model.
        model: usize,
    },
}

impl Combine {
    /// The combination for a number of models, with a session's own weights where given.
    pub fn resolve(&self, models: usize, weights: Option<&[f32]>) -> Result<Combination> {
        let own = match self {
            Combine::Weighted { weights } | Combine::Logits { weights } => Some(weights.as_slice()),
            _ => None,
        };
        if let (Some(_), None) = (weights, own) {
            return Err(Error::InvalidArgument(
                "weights are given, but the engine's combination takes none; only weighted and logits do".into(),
            ));
        }
        let weights = weights.or(own).unwrap_or_default();
        if own.is_some() && weights.len() != models {
            return Err(Error::InvalidArgument(format!(
                "there are {} weights for {models} models; give one weight for each model, in their order",
                weights.len()
            )));
        }
        match self {
            Combine::Weighted { .. } => Combination::mixture(weights),
            Combine::Logits { .. } => Combination::logits(weights),
            Combine::Contrastive { mu, plausibility } => Combination::contrastive(models, *mu, *plausibility),
            Combine::Target { model } => Combination::target(models, *model),
        }
    }
}

impl Config {
    /// Read a configuration file; its paths are relative to its folder.
    pub fn open(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).map_err(|error| Error::Config(format!("cannot read {path:?}: {error}")))?;
        let mut config =
            Self::parse(&text).map_err(|error| Error::Config(format!("{}: {}", path.display(), inner(error))))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        config.models.iter_mut().for_each(|model| model.path = folder.join(&model.path));
        config.onnxruntime = config.onnxruntime.map(|library| folder.join(library));
        Ok(config)
    }

    /// Read a configuration from JSON text.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Config = serde_json::from_str(text).map_err(|error| Error::Config(error.to_string()))?;
        if config.models.is_empty() {
            return Err(Error::Config("models is empty; name at least one".into()));
        }
        if config.threads > MAX_THREADS {
            return Err(Error::Config(format!("threads is {}; it cannot be more than {MAX_THREADS}", config.threads)));
        }
        if let Some(model) = config.models.iter().find(|model| model.device_id < 0) {
            return Err(Error::Config(format!(
                "device_id of {} is {}; it must be 0 or positive",
                model.path.display(),
                model.device_id
            )));
        }
        // Wrong weights are a fault of the configuration here, and of an argument in a session.
        config
            .combine
            .resolve(config.models.len(), None)
            .map_err(|error| Error::Config(format!("combine: {}", inner(error))))?;
        Ok(config)
    }
}

/// The message of an error without the prefix of its kind.
fn inner(error: Error) -> String {
    match error {
        Error::Config(message) | Error::InvalidArgument(message) => message,
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expect: &str) {
        match Config::parse(text) {
            Ok(config) => assert_eq!(expect, "ok", "{config:?}"),
            Err(error) => {
                assert_eq!(error.code(), 2, "{error}");
                assert!(error.to_string().contains(expect), "{error} does not say {expect:?}");
            }
        }
    }

    #[test]
    fn configurations() {
        let with = |combine: &str| format!(r#"{{"models":[{{"path":"a"}},{{"path":"b"}}],"combine":{combine}}}"#);
        check(&with(r#"{"kind":"weighted","weights":[0.5,0.5]}"#), "ok");
        check(&with(r#"{"kind":"contrastive","mu":0.1}"#), "ok");
        check(&with(r#"{"kind":"contrastive","mu":0.1,"plausibility":0.1}"#), "ok");
        check(&with(r#"{"kind":"logits","weights":[1.5,-0.5]}"#), "ok");
        check(&with(r#"{"kind":"target","model":1}"#), "ok");
        check(&with(r#"{"kind":"target","model":2}"#), "target model 2 does not exist");
        check(&with(r#"{"kind":"weighted","weights":[0.5]}"#), "1 weights for 2 models");
        check(&with(r#"{"kind":"weighted","weights":[1.5,-0.5]}"#), "weights[1] is -0.5");
        check(&with(r#"{"kind":"weighted","weights":[0.5,0.6]}"#), "these sum to 1.1");
        check(&with(r#"{"kind":"weighted","weights":[0.5,0.5],"mu":1}"#), "unknown field `mu`");
        check(&with(r#"{"kind":"average"}"#), "unknown variant `average`");
        check(
            r#"{"models":[{"path":"a","prvider":"cpu"}],"combine":{"kind":"target","model":0}}"#,
            "unknown field `prvider`",
        );
        check(
            r#"{"models":[{"path":"a","provider":"tpu"}],"combine":{"kind":"target","model":0}}"#,
            "unknown variant `tpu`",
        );
        check(
            r#"{"models":[{"path":"a","device_id":-1}],"combine":{"kind":"target","model":0}}"#,
            "device_id of a is -1",
        );
        check(r#"{"models":[],"combine":{"kind":"target","model":0}}"#, "models is empty");
        check(r#"{"models":[{"path":"a"}]}"#, "missing field `combine`");
        check(
            r#"{"models":[{"path":"a"}],"combine":{"kind":"target","model":0},"thread":1}"#,
            "unknown field `thread`",
        );
        check("{", "EOF");
    }

    #[test]
    fn session_weights_fit_the_kind() {
        let weighted = Combine::Weighted { weights: vec![0.5, 0.5] };
        assert_eq!(weighted.resolve(2, Some(&[0.25, 0.75])).unwrap().weights(), [0.25, 0.75]);
        assert_eq!(weighted.resolve(2, Some(&[1.0])).unwrap_err().code(), 1);
        assert_eq!(Combine::Target { model: 0 }.resolve(2, Some(&[0.5, 0.5])).unwrap_err().code(), 1);
    }
}
