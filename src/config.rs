//! The configuration of an engine: reads and checks its JSON. Unknown keys are errors.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::decode::combine::Combination;
use crate::error::{Error, Result};
use crate::files;

/// Most threads of the pool. A larger number is taken for a mistake.
const MAX_THREADS: usize = 1024;

/// Most models of an engine. The limit bounds the memory of a session, which has buffers for every model.
const MAX_MODELS: usize = 64;

/// The configuration of an engine.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object with `models` and `combine`")]
pub struct Config {
    /// The models. Weights, proposal lengths and all other lists have the same order.
    pub models: Vec<ModelConfig>,
    /// How the models are combined.
    pub combine: Combine,
    /// Threads of the pool that all models of the process share. 0: one for each physical core that the process may
    /// use.
    #[serde(default)]
    pub threads: usize,
    /// Whether idle threads of that pool stay awake for a while. `None` is yes.
    #[serde(default)]
    pub spinning: Option<bool>,
    /// Whether independent passes of several models run at the same time, if at least one of the models is on a GPU.
    /// `None`: if a measurement shows that it is faster.
    #[serde(default)]
    pub overlap: Option<bool>,
    /// Sessions with a temperature below this are greedy. 0 is off.
    #[serde(default)]
    pub greedy_below: f32,
    /// What becomes of a new session while the caches of others take all memory that they may.
    #[serde(default)]
    pub when_full: FullCache,
    /// Whether sessions have numbers of routes in common. `None`: those of the strategy `auto` do.
    #[serde(default)]
    pub routes: Option<RoutesName>,
    /// Path of the library file of ONNX Runtime.
    #[serde(default)]
    pub onnxruntime: Option<PathBuf>,
}

/// What becomes of a new session while the caches of others take all memory that they may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FullCache {
    /// It waits.
    #[default]
    Wait,
    /// Its first step is an error.
    Refuse,
}

/// Whose numbers decide which model a position is routed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RoutesName {
    /// Those of its session alone.
    Own,
    /// Those of a pass, which its sessions have in common.
    Shared,
}

/// One model of an engine. Its `"kind"` is `"onnx"`, the default, or `"ngram"`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "ModelKeys")]
pub enum ModelConfig {
    /// An export.
    Onnx(ExportConfig),
    /// A look-up in the sequence itself, which proposes tokens and never scores.
    Ngram {
        /// Its name in messages.
        name: String,
    },
}

/// A model that is an ONNX export.
#[derive(Debug, Clone, PartialEq)]
pub struct ExportConfig {
    /// An `.onnx` file, or a folder that holds one.
    pub path: PathBuf,
    /// The execution provider that runs it.
    pub provider: ProviderName,
    /// The number of the device, of those of the provider.
    pub device_id: i32,
    /// Options of the provider, by ONNX Runtime's names.
    pub options: BTreeMap<String, String>,
    /// Its name in messages. `None`: the name of its folder.
    pub name: Option<String>,
    /// How the positions of a draft are scored. `None`: in parallel if a test at loading finds the same logits.
    pub scoring: Option<ScoringName>,
    /// Where the rows of logits of a model on a GPU stay. `None`: on the GPU if they are long.
    pub rows: Option<RowsName>,
    /// Most tokens of a sequence. `None`: what the export says.
    pub context_length: Option<usize>,
    /// Most bytes of the cache that sequences share. `None`: a share of the free memory.
    pub cache_bytes: Option<usize>,
}

/// How the positions of a draft are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoringName {
    /// All positions in one pass.
    Parallel,
    /// One pass for each position.
    OneByOne,
}

/// Where rows of logits stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowsName {
    /// On the GPU of the model. The host reads only a few numbers of a row.
    Gpu,
    /// On the host, to which they are copied.
    Host,
}

/// The keys of a model of any kind. [`ModelConfig`] has only the keys of its kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object like {\"path\": \"models/demo/base\"}")]
struct ModelKeys {
    #[serde(default)]
    kind: ModelKind,
    path: Option<PathBuf>,
    provider: Option<ProviderName>,
    device_id: Option<i32>,
    options: Option<BTreeMap<String, Value>>,
    name: Option<String>,
    scoring: Option<ScoringName>,
    rows: Option<RowsName>,
    context_length: Option<usize>,
    cache_bytes: Option<usize>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum ModelKind {
    #[default]
    Onnx,
    Ngram,
}

impl TryFrom<ModelKeys> for ModelConfig {
    type Error = String;

    fn try_from(keys: ModelKeys) -> Result<Self, String> {
        let ModelKeys { kind, path, provider, device_id, options, name, scoring, rows, context_length, cache_bytes } =
            keys;
        match kind {
            ModelKind::Onnx => Ok(ModelConfig::Onnx(ExportConfig {
                path: path.ok_or("missing field `path` of a model; name its .onnx file or folder")?,
                provider: provider.unwrap_or_default(),
                device_id: device_id.unwrap_or_default(),
                options: options.unwrap_or_default().into_iter().map(provider_option).collect::<Result<_, _>>()?,
                name,
                scoring,
                rows,
                context_length,
                cache_bytes,
            })),
            ModelKind::Ngram => {
                let given = [
                    ("path", path.is_some()),
                    ("provider", provider.is_some()),
                    ("device_id", device_id.is_some()),
                    ("options", options.is_some()),
                    ("scoring", scoring.is_some()),
                    ("rows", rows.is_some()),
                    ("context_length", context_length.is_some()),
                    ("cache_bytes", cache_bytes.is_some()),
                ];
                match given.iter().find(|(_, given)| *given) {
                    Some((key, _)) => {
                        Err(format!("a model of kind \"ngram\" takes no `{key}`, only `name`; leave `{key}` out"))
                    }
                    None => Ok(ModelConfig::Ngram { name: name.unwrap_or_else(|| "ngram".into()) }),
                }
            }
        }
    }
}

/// Options of a provider that the library sets itself.
const RESERVED_OPTIONS: [&str; 3] = ["device_id", "has_user_compute_stream", "user_compute_stream"];

/// An option of a provider as text, which is what ONNX Runtime takes.
fn provider_option((name, value): (String, Value)) -> Result<(String, String), String> {
    if RESERVED_OPTIONS.contains(&name.as_str()) {
        return Err(format!(
            "`{name}` cannot be set in `options`: the device is set by `device_id` beside `options`, and CoS sets the \
             stream; leave `{name}` out"
        ));
    }
    let value = match value {
        Value::String(text) => text,
        Value::Number(number) => number.to_string(),
        Value::Bool(is_on) => u8::from(is_on).to_string(),
        _ => return Err(format!("option `{name}` is {value}; it must be a string, a number, true or false")),
    };
    Ok((name, value))
}

/// An execution provider of ONNX Runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProviderName {
    /// The CPU.
    #[default]
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// How the models are combined; see [`Combination`].
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase", try_from = "CombineKeys")]
pub enum Combine {
    /// A mixture of the distributions.
    Weighted {
        /// λ of each model.
        weights: Vec<f32>,
    },
    /// Contrastive decoding: the logits of the expert minus μ times those of the amateur.
    Contrastive {
        /// μ.
        mu: f32,
        /// α of the plausibility mask. 0 is off.
        plausibility: f32,
    },
    /// A weighted sum of logits.
    Logits {
        /// Weight of each model.
        weights: Vec<f32>,
    },
    /// The distribution of one model.
    Target {
        /// Index of the model.
        model: usize,
    },
}

/// The keys of a combination of any kind. [`Combine`] has only the keys of its kind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object like {\"kind\": \"target\", \"model\": 0}")]
struct CombineKeys {
    kind: CombineKind,
    weights: Option<Vec<f32>>,
    mu: Option<f32>,
    plausibility: Option<f32>,
    model: Option<usize>,
}

#[derive(Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum CombineKind {
    Weighted,
    Contrastive,
    Logits,
    Target,
}

impl TryFrom<CombineKeys> for Combine {
    type Error = String;

    fn try_from(keys: CombineKeys) -> Result<Self, String> {
        let CombineKeys { kind, weights, mu, plausibility, model } = keys;
        let name = json!(kind);
        let takes: &[&str] = match kind {
            CombineKind::Weighted | CombineKind::Logits => &["weights"],
            CombineKind::Contrastive => &["mu", "plausibility"],
            CombineKind::Target => &["model"],
        };
        let given = [
            ("weights", weights.is_some()),
            ("mu", mu.is_some()),
            ("plausibility", plausibility.is_some()),
            ("model", model.is_some()),
        ];
        if let Some((key, _)) = given.into_iter().find(|(key, is_given)| *is_given && !takes.contains(key)) {
            return Err(format!("kind {name} takes no `{key}`, only `{}`; leave `{key}` out", takes.join("` and `")));
        }
        let missing = || format!("kind {name} needs `{}`; add it", takes[0]);
        Ok(match kind {
            CombineKind::Weighted => Combine::Weighted { weights: weights.ok_or_else(missing)? },
            CombineKind::Logits => Combine::Logits { weights: weights.ok_or_else(missing)? },
            CombineKind::Contrastive => {
                Combine::Contrastive { mu: mu.ok_or_else(missing)?, plausibility: plausibility.unwrap_or_default() }
            }
            CombineKind::Target => Combine::Target { model: model.ok_or_else(missing)? },
        })
    }
}

impl Combine {
    /// The combination, with the weights of a session if given.
    ///
    /// `scores` has for each model whether it scores tokens. A model that does not score only drafts, so it must have
    /// no weight.
    pub fn resolve(&self, scores: &[bool], weights: Option<&[f32]>) -> Result<Combination> {
        let models = scores.len();
        if !scores.contains(&true) {
            return Err(Error::InvalidArgument(
                "all models are look-ups, which only draft; name at least one export".into(),
            ));
        }
        let own = match self {
            Combine::Weighted { weights } | Combine::Logits { weights } => Some(weights.as_slice()),
            _ => None,
        };
        if let (Some(_), None) = (weights, own) {
            return Err(Error::InvalidArgument(
                "weights are given, but the engine's combination takes none; leave them out, or open the engine with \
                 \"weighted\" or \"logits\""
                    .into(),
            ));
        }
        let weights = weights.or(own).unwrap_or_default();
        if own.is_some() && weights.len() != models {
            return Err(Error::InvalidArgument(format!(
                "there are {} weights for {models} models; give one weight for each model, in their order",
                weights.len()
            )));
        }
        let combination = match self {
            Combine::Weighted { .. } => Combination::mixture(weights),
            Combine::Logits { .. } => Combination::logits(weights),
            Combine::Contrastive { mu, plausibility } => Combination::contrastive(models, *mu, *plausibility),
            Combine::Target { model } => Combination::target(models, *model),
        }?;
        let only_drafts = |model: &usize| !scores[*model];
        match self {
            // Checked for every mu. With mu 0, the combination does not need the amateur.
            Combine::Contrastive { .. } => {
                if let Some(model) = [0, 1].into_iter().find(only_drafts) {
                    return Err(Error::InvalidArgument(format!(
                        "model {model} is the {}, but it is a look-up, which only drafts; list the expert and then the \
                         amateur before all look-ups",
                        ["expert", "amateur"][model]
                    )));
                }
            }
            Combine::Target { model } if only_drafts(model) => {
                return Err(Error::InvalidArgument(format!(
                    "target model {model} is a look-up, which only drafts; name another model"
                )));
            }
            _ => {
                if let Some(model) = combination.needed().find(only_drafts) {
                    return Err(Error::InvalidArgument(format!(
                        "weights[{model}] is {}, but model {model} is a look-up, which only drafts; set its weight \
                         to 0",
                        weights[model]
                    )));
                }
            }
        }
        Ok(combination)
    }
}

impl Config {
    /// Read a configuration file. Relative paths in it are relative to its folder.
    pub fn open(path: &Path) -> Result<Self> {
        let text = files::text(path, files::CONFIGURATION).map_err(Error::Config)?;
        let mut config = Self::parse(&text)
            .map_err(|error| Error::Config(format!("{}: {}", path.display(), bare_message(error))))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        for model in &mut config.models {
            if let ModelConfig::Onnx(export) = model {
                export.path = folder.join(&export.path);
            }
        }
        config.onnxruntime = config.onnxruntime.map(|library| folder.join(library));
        Ok(config)
    }

    /// Read a configuration from JSON text. Relative paths in it are relative to the working directory.
    pub fn parse(text: &str) -> Result<Self> {
        let mut json = serde_json::Deserializer::from_str(files::without_mark(text));
        let config: Config =
            serde_path_to_error::deserialize(&mut json).map_err(|error| Error::Config(plain(&error)))?;
        json.end().map_err(|error| Error::Config(error.to_string()))?;
        if config.models.is_empty() {
            return Err(Error::Config("models is empty; name at least one model".into()));
        }
        if config.models.len() > MAX_MODELS {
            let listed = config.models.len();
            return Err(Error::Config(format!(
                "models lists {listed}; an engine takes at most {MAX_MODELS}, so name fewer"
            )));
        }
        if !(config.greedy_below.is_finite() && config.greedy_below >= 0.0) {
            let given = config.greedy_below;
            return Err(Error::Config(format!(
                "greedy_below is {given}; set it to a temperature above 0, or to 0 (off)"
            )));
        }
        if config.threads > MAX_THREADS {
            return Err(Error::Config(format!("threads is {}; set it to at most {MAX_THREADS}", config.threads)));
        }
        for model in &config.models {
            let ModelConfig::Onnx(ExportConfig { path, provider, device_id, options, context_length, .. }) = model
            else {
                continue;
            };
            if *provider == ProviderName::Cpu && !options.is_empty() {
                return Err(Error::Config(format!(
                    "options of {} are for provider \"cuda\", but its provider is \"cpu\"; set \"provider\" to \
                     \"cuda\", or leave \"options\" out",
                    path.display()
                )));
            }
            if *device_id < 0 {
                return Err(Error::Config(format!(
                    "device_id of {} is {device_id}; it must be 0 or positive",
                    path.display()
                )));
            }
            if *context_length == Some(0) {
                return Err(Error::Config(format!("context_length of {} is 0; it must be positive", path.display())));
            }
        }
        // The error becomes one of the configuration. In a session, it is one of an argument.
        let scores: Vec<bool> = config.models.iter().map(|model| matches!(model, ModelConfig::Onnx(_))).collect();
        config
            .combine
            .resolve(&scores, None)
            .map_err(|error| Error::Config(format!("combine: {}", bare_message(error))))?;
        Ok(config)
    }
}

/// What serde expects, and the same for people.
const EXPECTED: [(&str, &str); 7] = [
    ("usize", "a whole number, 0 or more"),
    ("i32", "a whole number"),
    ("f32", "a number"),
    ("a boolean", "true or false"),
    ("a string", "a string"),
    ("path string", "a string"),
    ("a sequence", "a list in [ ]"),
];

/// Say of a value that does not fit which key has it, and what the key takes. Other errors get the key in front.
fn plain(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let (path, inner) = (error.path().to_string(), error.inner());
    let message = inner.to_string();
    if !inner.is_data() {
        return message;
    }
    let place = format!(" at line {} column {}", inner.line(), inner.column());
    let what = message.strip_suffix(&place).unwrap_or(&message);
    let name = if path == "." { "the configuration" } else { &path };
    let wrong = what.strip_prefix("invalid type: ").or(what.strip_prefix("invalid value: "));
    match wrong.and_then(|wrong| wrong.rsplit_once(", expected ")) {
        Some((given, expected)) => {
            let known = EXPECTED.iter().find(|(serde, _)| *serde == expected).map_or(expected, |(_, plain)| plain);
            let given = match given {
                "map" => "an object".into(),
                "sequence" => "a list".into(),
                "null" => given.into(),
                other => format!("the {other}"),
            };
            format!("{name} is {given}; it must be {known}{place}")
        }
        None => format!("{name}: {what}{place}"),
    }
}

/// The message of an error without the prefix of its code.
fn bare_message(error: Error) -> String {
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
        check(&with(r#"{"kind":"weighted","weights":[0.5,0.5],"mu":1}"#), "kind \"weighted\" takes no `mu`");
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
        check(r#"{"models":[{"path":"a"}],"combine":{"kind":"target","model":0},"spinning":false}"#, "ok");
        check(r#"{"models":[{"path":"a"}],"combine":{"kind":"target","model":0},"overlap":false}"#, "ok");
        check(r#"{"models":[{"path":"a"}],"combine":{"kind":"target","model":0},"greedy_below":0.01}"#, "ok");
        check(
            r#"{"models":[{"path":"a"}],"combine":{"kind":"target","model":0},"greedy_below":-1}"#,
            "greedy_below is -1",
        );
        check(r#"{"models":[{"path":"a"}],"combine":{"kind":"target","model":0},"when_full":"refuse"}"#, "ok");
        check(
            r#"{"models":[{"path":"a"}],"combine":{"kind":"target","model":0},"when_full":"fail"}"#,
            "unknown variant `fail`",
        );
        check("\u{feff}{", "EOF");
        let many = |look_ups: usize| {
            let models = r#",{"kind":"ngram"}"#.repeat(look_ups);
            format!(r#"{{"models":[{{"path":"a"}}{models}],"combine":{{"kind":"target","model":0}}}}"#)
        };
        check(&many(63), "ok");
        check(&many(64), "models lists 65; an engine takes at most 64, so name fewer");
    }

    #[test]
    fn values_of_a_wrong_type_are_named_by_their_key() {
        let with = |key: &str| format!(r#"{{"models":[{{"path":"a"}}],{key}"combine":{{"kind":"target","model":0}}}}"#);
        let number = "it must be a whole number, 0 or more";
        check(&with(r#""threads":-1,"#), &format!("threads is the integer `-1`; {number} at line 1 column 37"));
        check(&with(r#""threads":1.5,"#), &format!("threads is the floating point `1.5`; {number}"));
        check(&with(r#""spinning":1,"#), "spinning is the integer `1`; it must be true or false");
        check(&with(r#""overlap":"no","#), "overlap is the string \"no\"; it must be true or false");
        check(&with(r#""greedy_below":"x","#), "greedy_below is the string \"x\"; it must be a number");
        check(&with(r#""onnxruntime":1,"#), "onnxruntime is the integer `1`; it must be a string");

        let with = |models: &str, combine: &str| format!(r#"{{"models":{models},"combine":{combine}}}"#);
        let (model, target) = (r#"[{"path":"a"}]"#, r#"{"kind":"target","model":0}"#);
        check(&with(r#"["x"]"#, target), "models[0] is the string \"x\"; it must be an object like {\"path\":");
        check(&with(r#"{"path":"a"}"#, target), "models is an object; it must be a list in [ ]");
        check(&with(r#"[{"path":"a","device_id":"0"}]"#, target), "models[0].device_id is the string \"0\"");
        check(&with(r#"[{"path":"a","scoring":"fast"}]"#, target), "models[0].scoring: unknown variant `fast`");
        check(&with(model, "1"), "combine is the integer `1`; it must be an object like {\"kind\":");
        check(&with(model, r#"{"kind":"weighted","weights":0.5}"#), "combine.weights is the floating point `0.5`");
        check(&with(model, r#"{"kind":"weighted","weights":["a"]}"#), "combine.weights[0] is the string \"a\"");
        check(&with(model, r#"{"kind":"target","model":-1}"#), &format!("combine.model is the integer `-1`; {number}"));
        check(&with(model, r#"{"kind":"contrastive"}"#), "combine: kind \"contrastive\" needs `mu`; add it");
        check(&with(model, r#"{"kind":"logits"}"#), "combine: kind \"logits\" needs `weights`; add it");
        check(&with(model, r#"{"weights":[1]}"#), "combine: missing field `kind`");
        check("[]", "the configuration");
        check(&(with(model, target) + "x"), "trailing characters");
    }

    #[test]
    fn look_ups_only_draft() {
        let with = |models: &str, combine: &str| format!(r#"{{"models":[{models}],"combine":{combine}}}"#);
        let (export, ngram) = (r#"{"path":"a"}"#, r#"{"kind":"ngram"}"#);
        let last = format!("{export},{ngram}");
        let first = format!("{ngram},{export}");
        check(&with(&last, r#"{"kind":"target","model":0}"#), "ok");
        check(&with(&first, r#"{"kind":"target","model":1}"#), "ok");
        check(&with(&first, r#"{"kind":"weighted","weights":[0,1]}"#), "ok");
        check(&with(&last, r#"{"kind":"logits","weights":[0.5,0]}"#), "ok");
        check(&with(&format!("{export},{last}"), r#"{"kind":"contrastive","mu":0.5}"#), "ok");
        check(&with(&last, r#"{"kind":"target","model":1}"#), "target model 1 is a look-up");
        check(
            &with(&last, r#"{"kind":"weighted","weights":[0.5,0.5]}"#),
            "weights[1] is 0.5, but model 1 is a look-up",
        );
        check(&with(&last, r#"{"kind":"logits","weights":[1,-1]}"#), "weights[1] is -1, but model 1 is a look-up");
        check(&with(&first, r#"{"kind":"contrastive","mu":0.5}"#), "model 0 is the expert, but it is a look-up");
        check(&with(&last, r#"{"kind":"contrastive","mu":0}"#), "model 1 is the amateur, but it is a look-up");
        check(&with(ngram, r#"{"kind":"target","model":0}"#), "all models are look-ups");
        check(&with(ngram, r#"{"kind":"weighted","weights":[0]}"#), "all models are look-ups");

        let alone = r#"{"kind":"target","model":0}"#;
        check(&with(r#"{"path":"a","kind":"onnx"}"#, alone), "ok");
        check(&with(r#"{"path":"a","scoring":"one_by_one","context_length":100}"#, alone), "ok");
        check(
            &with(r#"{"path":"a","provider":"cuda","options":{"gpu_mem_limit":1000000000,"x":"y","z":true}}"#, alone),
            "ok",
        );
        check(&with(r#"{"path":"a","options":{"gpu_mem_limit":1}}"#, alone), "options of a are for provider \"cuda\"");
        check(&with(r#"{"path":"a","provider":"cuda","options":{"device_id":1}}"#, alone), "set by `device_id` beside");
        check(&with(r#"{"path":"a","provider":"cuda","options":{"x":[]}}"#, alone), "option `x` is []");
        check(&with(r#"{"path":"a","scoring":"fast"}"#, alone), "unknown variant `fast`");
        check(&with(r#"{"path":"a","context_length":0}"#, alone), "context_length of a is 0");
        check(&with(r#"{"path":"a","cache_bytes":1000000}"#, alone), "ok");
        check(&with(r#"{"path":"a","cache_bytes":-1}"#, alone), "cache_bytes is the integer `-1`");
        check(&with(r#"{"path":"a","kind":"gguf"}"#, alone), "unknown variant `gguf`");
        check(&with(r#"{"kind":"onnx"}"#, alone), "missing field `path`");
        check(&with(r#"{"name":"a"}"#, alone), "missing field `path`");
        for (key, value) in [
            ("path", "\"a\""),
            ("provider", "\"cpu\""),
            ("device_id", "0"),
            ("options", "{}"),
            ("scoring", "\"parallel\""),
            ("rows", "\"gpu\""),
            ("context_length", "9"),
            ("cache_bytes", "9"),
        ] {
            let ngram = format!(r#"{export},{{"kind":"ngram","{key}":{value}}}"#);
            check(&with(&ngram, alone), &format!("takes no `{key}`"));
        }
        check(&with(&format!(r#"{export},{{"kind":"ngram","size":3}}"#), alone), "unknown field `size`");

        let config = Config::parse(&with(
            &format!(r#"{first},{{"kind":"ngram","name":"echo"}}"#),
            r#"{"kind":"target","model":1}"#,
        ));
        let models = config.unwrap().models;
        assert_eq!(models[0], ModelConfig::Ngram { name: "ngram".into() });
        assert_eq!(models[2], ModelConfig::Ngram { name: "echo".into() });
    }

    #[test]
    fn session_weights_fit_the_kind() {
        let weighted = Combine::Weighted { weights: vec![0.5, 0.5] };
        let both = [true; 2];
        assert_eq!(weighted.resolve(&both, Some(&[0.25, 0.75])).unwrap().weights(), [0.25, 0.75]);
        assert_eq!(weighted.resolve(&both, Some(&[1.0])).unwrap_err().code(), 1);
        assert_eq!(Combine::Target { model: 0 }.resolve(&both, Some(&[0.5, 0.5])).unwrap_err().code(), 1);
        let weighted = Combine::Weighted { weights: vec![1.0, 0.0] };
        let error = weighted.resolve(&[true, false], Some(&[0.75, 0.25])).unwrap_err();
        assert_eq!(error.code(), 1);
        assert!(error.to_string().contains("weights[1] is 0.25, but model 1 is a look-up"), "{error}");
    }
}
