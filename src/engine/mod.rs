//! The engine: models loaded once, shared by any number of sessions and threads.

pub mod session;
pub mod stats;
pub mod table;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::config::{Combine, Config, ExportConfig, ModelConfig, ProviderName, RowsName, ScoringName};
use crate::decode::combine::Combination;
use crate::engine::stats::Stats;
use crate::error::{Error, Result};
use crate::export::Scoring;
use crate::files;
use crate::model::{Model, Ngram, overlap};
use crate::onnx::{OnnxModel, Provider, RowsOn, Settings, environment, loaded};
use crate::plan::shared::SharedPlanning;
use crate::process::Process;
use crate::text::Text;

/// Passes run at the same time if no more than this share of all but the longest comes on top of it.
const WORTHWHILE: f64 = 0.9;

/// The loaded models and how they are combined. Immutable, but for what its sessions did.
pub struct Engine {
    models: Vec<Arc<dyn Model>>,
    combine: Combine,
    text: Option<Arc<Text>>,
    stop_tokens: Vec<i32>,
    warnings: Vec<String>,
    totals: Mutex<Stats>,
    shared_planning: Mutex<SharedPlanning>,
    /// What of passes at the same time does not overlap, if they do at all.
    serial: Option<f64>,
    greedy_below: f32,
    clock: Box<Clock>,
    /// Where its models are.
    process: Process,
}

impl Engine {
    /// Load everything that a configuration names.
    pub fn load(config: &Config) -> Result<Self> {
        let cores = num_cpus::get();
        let crowded = config.threads > cores;
        // Threads that spin without a core would hold up every pass of those that have one.
        let spinning = if crowded { Some(false) } else { config.spinning };
        environment(config.onnxruntime.as_deref(), config.threads, spinning)?;
        let exports = config.models.iter().filter_map(|model| match model {
            ModelConfig::Onnx(export) => Some(export),
            ModelConfig::Ngram { .. } => None,
        });
        let mut exports = exports.map(load).collect::<Result<Vec<_>>>()?;
        let Agreement { vocab_size, text, mut warnings } = agree(&exports)?;
        if crowded && loaded().is_some_and(|runtime| runtime.threads.is_some()) {
            warnings.push(format!(
                "there are more threads ({}) than cores ({cores}), so they do not spin; leave threads out to have one \
                 for each core",
                config.threads
            ));
        }
        exports.iter_mut().for_each(|model| model.limit_vocabulary(vocab_size));
        let text = text.map(|mut text| {
            text.limit_vocabulary(vocab_size);
            Arc::new(text)
        });
        let (stop_tokens, of_stop_tokens) = stop_tokens(&exports, vocab_size);
        warnings.extend(of_stop_tokens);
        let mut exports = exports.into_iter();
        let models = config.models.iter().filter_map(|model| match model {
            ModelConfig::Onnx(_) => exports.next().map(|export| Arc::new(export) as Arc<dyn Model>),
            ModelConfig::Ngram { name } => Some(Arc::new(Ngram::new(name))),
        });
        let models = models.collect();
        warnings.extend(loaded().and_then(|runtime| runtime.pools.warning()).map(str::to_owned));
        let engine = Self::new(models, config.combine.clone(), stop_tokens, text)?.with_overlap(config.overlap)?;
        Ok(Engine { warnings, greedy_below: config.greedy_below, ..engine })
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
        let start = Instant::now();
        let engine = Engine {
            models,
            combine,
            text,
            stop_tokens,
            warnings: Vec::new(),
            totals: Mutex::default(),
            shared_planning: Mutex::default(),
            serial: None,
            greedy_below: 0.0,
            clock: Box::new(move || start.elapsed()),
            process: Process::current(),
        };
        engine.combination(None)?;
        Ok(engine)
    }

    /// Let passes of several models that do not depend on each other run at the same time: `Some(true)`, or only if that pays, as is
    /// then measured. Unless one of these is asked for, they run one after the other.
    pub fn with_overlap(self, asked: Option<bool>) -> Result<Self> {
        let measured = if asked == Some(false) { None } else { overlap::measure(&self.models)? };
        Ok(self.with_serial(measured.filter(|serial| asked == Some(true) || *serial <= WORTHWHILE)))
    }

    /// The same, where it is known what of all passes but the longest does not overlap; `None` lets none overlap.
    pub fn with_serial(mut self, serial: Option<f64>) -> Self {
        self.serial = serial;
        self.shared_planning = Mutex::new(SharedPlanning::new(serial));
        self
    }

    /// Whether passes of several models run at the same time.
    pub fn overlaps(&self) -> bool {
        self.serial.is_some()
    }

    /// The same by another clock. Tests pretend the time, so that what `auto` does can be repeated.
    pub fn with_clock(mut self, clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// What its sessions tell the time by.
    pub fn clock(&self) -> &Clock {
        &*self.clock
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

    /// The process that it belongs to.
    pub fn process(&self) -> Process {
        self.process
    }

    /// Number of tokens of the shared vocabulary.
    pub fn vocab_size(&self) -> usize {
        vocab_size(&self.models)
    }

    /// What all its sessions did, also those that are no more.
    pub fn totals(&self) -> &Mutex<Stats> {
        &self.totals
    }

    /// What its sessions have learned of the models.
    pub fn shared_planning(&self) -> &Mutex<SharedPlanning> {
        &self.shared_planning
    }

    /// Sessions with a temperature below this are greedy.
    pub fn greedy_below(&self) -> f32 {
        self.greedy_below
    }

    /// The exports' end-of-sequence tokens.
    pub fn stop_tokens(&self) -> &[i32] {
        &self.stop_tokens
    }

    /// What was recognised, for people who look into an engine. Documented with `cos_engine_describe`.
    pub fn describe(&self) -> Value {
        let runtime = loaded();
        // By way of text, which keeps a weight of 0.1 as it was written; as a value it would become 0.10000000149.
        let by_text =
            |text: serde_json::Result<String>| text.and_then(|text| serde_json::from_str(&text)).unwrap_or_default();
        let combine: Value = by_text(serde_json::to_string(&self.combine));
        let greedy_below: Value = by_text(serde_json::to_string(&self.greedy_below));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "onnxruntime": runtime.map(|runtime| &runtime.library),
            "threads": runtime.and_then(|runtime| runtime.threads),
            "thread_pool": runtime.map(|runtime| runtime.pools.name()),
            "vocab_size": self.vocab_size(),
            "stop_tokens": self.stop_tokens,
            "tokenizer": self.text.is_some(),
            "combine": combine,
            "greedy_below": greedy_below,
            "overlap": self.serial.map(|serial| 1.0 - serial),
            "models": self.models.iter().map(|model| model.describe()).collect::<Vec<_>>(),
            "warnings": self.warnings,
        })
    }

    /// The tokenizer; an engine without one serves tokens only.
    pub fn text(&self) -> Result<&Arc<Text>> {
        self.text.as_ref().ok_or_else(|| {
            let file = self.models.iter().find_map(|model| Some(model.describe()["file"].as_str()?.to_owned()));
            Error::Unsupported(format!(
                "turning text into tokens, or tokens into text, takes a tokenizer.json, and no model of this engine has \
                 one; put that of the model beside {}, and open the engine again",
                file.as_deref().unwrap_or("it")
            ))
        })
    }
}

/// The vocabulary of the first model that has one.
fn vocab_size(models: &[Arc<dyn Model>]) -> usize {
    models.iter().find(|model| model.scores()).map_or(0, |model| model.vocab_size())
}

fn load(config: &ExportConfig) -> Result<OnnxModel> {
    let provider = match config.provider {
        ProviderName::Cpu => Provider::Cpu,
        ProviderName::Cuda => Provider::Cuda { device_id: config.device_id, options: config.options.clone() },
    };
    let name = config.name.clone().unwrap_or_else(|| folder_name(&config.path));
    let scoring = config.scoring.map(|scoring| match scoring {
        ScoringName::Parallel => Scoring::Parallel,
        ScoringName::OneByOne => Scoring::OneByOne,
    });
    let rows = config.rows.map(|rows| match rows {
        RowsName::Gpu => RowsOn::Gpu,
        RowsName::Host => RowsOn::Host,
    });
    OnnxModel::load(&config.path, &name, &Settings { provider, scoring, context_length: config.context_length, rows })
}

fn folder_name(path: &Path) -> String {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let name = folder.and_then(Path::file_name).or(path.file_name());
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// The tokens that end a text, which are those of all models, and what should be known of them.
fn stop_tokens(models: &[OnnxModel], vocab_size: usize) -> (Vec<i32>, Vec<String>) {
    let named: BTreeSet<i32> = models.iter().flat_map(|model| model.export().stop_tokens.iter().copied()).collect();
    let known = |token: &i32| usize::try_from(*token).is_ok_and(|token| token < vocab_size);
    let (tokens, unknown): (Vec<i32>, Vec<i32>) = named.into_iter().partition(known);
    let never = |token| format!("stop token {token} is never produced, since not all models have it");
    let mut warnings: Vec<String> = unknown.into_iter().map(never).collect();
    if tokens.is_empty() {
        warnings.push(
            "no file of a model names a stop token that can be used, so only max_tokens or a full context ends a text; \
             put the model's generation_config.json beside it, or give sessions stop_tokens"
                .into(),
        );
    }
    (tokens, warnings)
}

/// What the models have in common.
struct Agreement {
    /// The tokens are 0 to this less 1.
    vocab_size: usize,
    text: Option<Text>,
    warnings: Vec<String>,
}

/// Compare vocabularies: the tokenizers by content, and the columns of the logits.
///
/// A model has as many tokens as its tokenizer says, if that is fewer than its logits have columns: the others are
/// padding. Of several models the smallest vocabulary decides, provided that tokenizers show that it is one.
fn agree(models: &[OnnxModel]) -> Result<Agreement> {
    let Tokenizers { first, sizes, mut warnings } = tokenizers(models)?;
    let unknown = models.iter().filter(|model| model.export().tokenizer.is_none()).map(OnnxModel::name);
    let unknown: Vec<&str> = unknown.collect();
    // Without any tokenizer, the others are assumed to agree with the first model.
    let other = first.as_ref().map(|(name, _)| *name).or(unknown.first().copied()).unwrap_or("");
    warnings.extend(unknown.iter().skip(usize::from(first.is_none())).map(|name| {
        format!(
            "{name} came without a tokenizer.json, so its tokens are assumed to be those of {other}; put its own beside \
             it to have them compared"
        )
    }));
    let vocab_size = sizes.iter().copied().min().unwrap_or(0);
    let smallest = sizes.iter().position(|&size| size == vocab_size).map_or("", |index| models[index].name());
    for (model, &size) in models.iter().zip(&sizes).filter(|(_, size)| **size != vocab_size) {
        if let Some(unknown) = unknown.first() {
            return Err(Error::Model(format!(
                "the vocabularies differ: {} has {size} tokens, {smallest} has {vocab_size}, and {unknown} came without \
                 a tokenizer.json that could show whether the rest is padding (put it beside the model); models that \
                 decode together must share one vocabulary",
                model.name()
            )));
        }
        warnings.push(format!(
            "{} has {size} tokens, {smallest} has {vocab_size}: those from {vocab_size} on are never produced",
            model.name()
        ));
    }
    Ok(Agreement { vocab_size, text: first.map(|(_, text)| text), warnings })
}

/// What came with the models.
struct Tokenizers<'a> {
    /// The first one, and the name of its model.
    first: Option<(&'a str, Text)>,
    /// How many tokens each model has.
    sizes: Vec<usize>,
    warnings: Vec<String>,
}

/// Read all tokenizers, which must not differ.
fn tokenizers(models: &[OnnxModel]) -> Result<Tokenizers<'_>> {
    let mut first: Option<(&str, String, Text)> = None;
    let (mut sizes, mut warnings) = (Vec::new(), Vec::new());
    for model in models {
        let columns = model.vocab_size();
        let Some(path) = &model.export().tokenizer else {
            sizes.push(columns);
            continue;
        };
        let content = files::tokenizer(path).map_err(Error::Model)?;
        let tokens = match &first {
            Some((_, same, text)) if *same == content => text.vocab_size(),
            Some((other, _, text)) => {
                let own = Text::parse(path, &content)?;
                compare(other, text, model.name(), &own)?;
                own.vocab_size()
            }
            None => {
                let mut text = Text::parse(path, &content)?;
                let tokens = text.vocab_size();
                warnings.extend(configure(path, &mut text, model.name())?);
                first = Some((model.name(), content, text));
                tokens
            }
        };
        warnings.extend(padding(model.name(), columns, tokens));
        sizes.push(columns.min(tokens));
    }
    Ok(Tokenizers { first: first.map(|(name, _, text)| (name, text)), sizes, warnings })
}

/// Refuse two tokenizers that differ.
fn compare(name: &str, text: &Text, other_name: &str, other: &Text) -> Result<()> {
    let Some((id, own, others)) = text.first_difference(other) else { return Ok(()) };
    let show = |token: Option<String>| token.map_or("missing".into(), |token| format!("{token:?}"));
    Err(Error::Model(format!(
        "the tokenizers differ: token {id} is {} to {name} but {} to {other_name}; models that decode together must \
         share one vocabulary (if tokens were only added behind, put the smaller tokenizer.json beside both)",
        show(own),
        show(others)
    )))
}

/// A warning if logits and tokenizer seem to be of different models.
fn padding(name: &str, columns: usize, tokens: usize) -> Option<String> {
    if columns > tokens.saturating_add(tokens / 4) {
        Some(format!(
            "{name} has {columns} columns of logits, but its tokenizer only {tokens} tokens; is that the right \
             tokenizer.json?"
        ))
    } else if tokens > columns {
        Some(format!(
            "the tokenizer of {name} has {tokens} tokens, but its logits only {columns} columns: a text that has any \
             of the others is refused"
        ))
    } else {
        None
    }
}

/// Let a tokenizer be as the `tokenizer_config.json` beside it says. Returns warnings of what is not done.
fn configure(tokenizer: &Path, text: &mut Text, name: &str) -> Result<Vec<String>> {
    let path = tokenizer.with_file_name("tokenizer_config.json");
    // Without such a file it says nothing. One that cannot be read was refused when stop tokens were looked for in it.
    let config = files::configuration(&path).unwrap_or_default();
    let warnings = text.configure(tokenizer, &config)?;
    Ok(warnings.into_iter().map(|warning| format!("{name}: {warning}")).collect())
}
