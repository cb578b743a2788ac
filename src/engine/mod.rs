//! The engine: models that are loaded once and shared by any number of sessions and threads.

mod agree;
mod beside;
mod constraints;
pub mod drive;
pub mod histogram;
pub mod many;
pub mod metrics;
pub mod participant;
pub mod phase;
pub mod prepare;
pub mod questions;
pub mod queue;
pub mod queues;
pub mod room;
pub mod round;
mod saved;
pub mod session;
pub mod sharing;
mod stage;
pub mod stats;
mod sync;
pub mod table;
mod time_in_passes;
pub mod together;
pub mod wait;
mod waiting;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::clock::Clock;
use crate::config::{
    Combine, Config, ExportConfig, FullCache, ModelConfig, ProviderName, RoutesName, RowsName, ScoringName,
};
use crate::control::Constraints;
use crate::decode::combine::Combination;
use crate::engine::agree::{Agreement, agree, stop_tokens};
use crate::engine::constraints::CompiledConstraints;
use crate::engine::histogram::Waits;
use crate::engine::participant::Participant;
use crate::engine::queues::PassQueues;
use crate::engine::sharing::{Sharing, random_seed};
use crate::engine::stats::Stats;
use crate::engine::together::Together;
use crate::error::{Error, Result};
use crate::export::Scoring;
use crate::grammar::Language;
use crate::model::{Model, overlap};
use crate::onnx::{CacheSize, LoadOptions, OnnxModel, Provider, RowsOn, environment, loaded};
use crate::plan::pass_times::PassTimes;
use crate::plan::shared::SharedPlanning;
use crate::process::{self, Process};
use crate::text::Text;
use crate::text::chat::Chat;

/// Passes overlap if their serial share is at most this: the share of all passes but the longest that does not overlap.
const MAX_SERIAL_SHARE: f64 = 0.9;

/// The serial share from which models take turns. Then passes of two models at the same time serve fewer sessions in a
/// second than passes of one model for all of them.
const TURNS_FROM: f64 = 0.4;

/// The share of the free memory that the caches of all models of an engine may take together.
const CACHE_SHARE: f64 = 0.5;

/// The loaded models and how they are combined. Immutable, except for what its sessions add up and learn.
pub struct Engine {
    participants: Vec<Participant>,
    /// Where its sessions wait for common passes.
    queues: Arc<PassQueues>,
    /// The seed of the numbers that common passes hand out.
    seed: u64,
    /// What becomes of new sessions while the memory of a model is full.
    when_full: FullCache,
    /// Who routes by common numbers.
    sharing: Arc<Sharing>,
    /// What passes take.
    pass_times: Arc<PassTimes>,
    combine: Combine,
    text: Option<Arc<Text>>,
    constraints: CompiledConstraints,
    chat: Option<Chat>,
    stop_tokens: Vec<i32>,
    warnings: Vec<String>,
    totals: Mutex<Stats>,
    waits: Mutex<Waits>,
    shared_planning: Mutex<SharedPlanning>,
    /// The share of all passes but the longest that does not overlap. `None`: passes run one after the other.
    serial: Option<f64>,
    greedy_below: f32,
    clock: Arc<Clock>,
    /// The process whose threads run the models.
    process: Process,
}

impl Engine {
    /// Load the models and tokenizers that a configuration names.
    pub fn load(config: &Config) -> Result<Self> {
        let cores = process::processors();
        let crowded = config.threads > cores;
        // Threads that spin without a core of their own take the cores from threads that compute.
        let spinning = if crowded { Some(false) } else { config.spinning };
        environment(config.onnxruntime.as_deref(), config.threads, spinning)?;
        let exports = config.models.iter().filter_map(|model| match model {
            ModelConfig::Onnx(export) => Some(export),
            ModelConfig::Ngram { .. } => None,
        });
        let models = exports.clone().count();
        let mut exports = exports.map(|export| load(export, models)).collect::<Result<Vec<_>>>()?;
        let Agreement { vocab_size, text, chat, mut warnings } = agree(&exports)?;
        if crowded && loaded().is_some_and(|runtime| runtime.threads.is_some()) {
            warnings.push(format!(
                "there are more threads ({}) than cores ({cores}), so they do not spin; leave \"threads\" out to have \
                 one thread for each core",
                config.threads
            ));
        }
        exports.iter_mut().for_each(|model| model.limit_vocabulary(vocab_size));
        let text = text.map(|mut text| {
            text.limit_vocabulary(vocab_size);
            Arc::new(text)
        });
        let (stop_tokens, more_warnings) = stop_tokens(&exports, vocab_size);
        warnings.extend(more_warnings);
        let mut exports = exports.into_iter();
        let participants = config.models.iter().filter_map(|model| match model {
            ModelConfig::Onnx(_) => exports.next().map(|export| Participant::Model(Arc::new(export))),
            ModelConfig::Ngram { name } => Some(Participant::LookUp(name.clone())),
        });
        let participants: Vec<Participant> = participants.collect();
        warnings.extend(loaded().and_then(|runtime| runtime.pools.warning()).map(str::to_owned));
        let engine =
            Self::new(participants, config.combine.clone(), stop_tokens, text)?.with_overlap(config.overlap)?;
        let engine = engine.with_when_full(config.when_full).with_routes(config.routes);
        process::release_freed_memory();
        Ok(Engine { chat, warnings, greedy_below: config.greedy_below, ..engine })
    }

    /// An engine of models that are already loaded. `text` is their tokenizer.
    pub fn new(
        participants: Vec<impl Into<Participant>>,
        combine: Combine,
        mut stop_tokens: Vec<i32>,
        text: Option<Arc<Text>>,
    ) -> Result<Self> {
        let participants: Vec<Participant> = participants.into_iter().map(Into::into).collect();
        let mut models = participants.iter().filter_map(Participant::model);
        let first = models.next().ok_or_else(|| Error::Config("an engine takes at least one model".into()))?;
        let vocab_size = first.vocab_size();
        if let Some(other) = models.find(|model| model.vocab_size() != vocab_size) {
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
        let clock: Arc<Clock> = Arc::new(move || start.elapsed());
        let pass_times = Arc::new(PassTimes::new(participants.len()));
        let (seed, when_full) = (random_seed(), FullCache::Wait);
        let engine = Engine {
            queues: PassQueues::new(&participants, when_full, seed, &Together::new(&pass_times, &clock)),
            seed,
            when_full,
            sharing: Sharing::new(None),
            participants,
            combine,
            text,
            constraints: CompiledConstraints::default(),
            chat: None,
            stop_tokens,
            warnings: Vec::new(),
            totals: Mutex::default(),
            waits: Mutex::new(Waits::new(2)),
            shared_planning: Mutex::new(SharedPlanning::new(None, pass_times.clone())),
            pass_times,
            serial: None,
            greedy_below: 0.0,
            clock,
            process: Process::current(),
        };
        engine.combination(None)?;
        Ok(engine)
    }

    /// Whether independent passes of several models run at the same time. `Some(true)`: always. `Some(false)`: never.
    /// `None`: if a measurement shows that it is faster.
    pub fn with_overlap(self, asked: Option<bool>) -> Result<Self> {
        let measured = if asked == Some(false) { None } else { overlap::measure(&self.models().collect::<Vec<_>>())? };
        Ok(self.with_serial(measured.filter(|serial| asked == Some(true) || *serial <= MAX_SERIAL_SHARE)))
    }

    /// Set what becomes of a new session while the caches of others take all memory that they may.
    pub fn with_when_full(mut self, when_full: FullCache) -> Self {
        self.when_full = when_full;
        self.with_new_queues()
    }

    /// Draw the numbers that sessions have in common from this seed. Tests do, so that they can be repeated.
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self.with_new_queues()
    }

    /// Make the queues anew after a change of what they depend on. Nobody waits in them yet.
    fn with_new_queues(mut self) -> Self {
        let together = Together::new(&self.pass_times, &self.clock);
        self.queues = PassQueues::new(&self.participants, self.when_full, self.seed, &together);
        self
    }

    /// Set whether sessions have numbers of routes in common. `None`: those of the strategy `auto` do.
    pub fn with_routes(mut self, routes: Option<RoutesName>) -> Self {
        self.sharing = Sharing::new(routes);
        self
    }

    /// Set the share of all passes but the longest that does not overlap. `None`: passes run one after the other.
    pub fn with_serial(mut self, serial: Option<f64>) -> Self {
        self.serial = serial;
        self.pass_times.set_serial(serial);
        self.shared_planning = Mutex::new(SharedPlanning::new(serial, self.pass_times.clone()));
        self
    }

    /// Whether models take turns where sessions wait for several. If passes overlap well, all run at the same time.
    pub fn takes_turns(&self) -> bool {
        self.serial.is_none_or(|serial| serial >= TURNS_FROM)
    }

    /// Whether passes of several models run at the same time.
    pub fn overlaps(&self) -> bool {
        self.serial.is_some()
    }

    /// Use another clock. Tests simulate the time, so that the choices of `auto` can be repeated.
    pub fn with_clock(mut self, clock: impl Fn() -> Duration + Send + Sync + 'static) -> Self {
        self.clock = Arc::new(clock);
        self.with_new_queues()
    }

    /// The clock of its sessions.
    pub fn clock(&self) -> &Clock {
        &*self.clock
    }

    /// The models and look-ups, in the order of the configuration.
    pub fn participants(&self) -> &[Participant] {
        &self.participants
    }

    /// Where its sessions wait for common passes.
    pub fn queues(&self) -> &Arc<PassQueues> {
        &self.queues
    }

    /// The models alone.
    pub fn models(&self) -> impl Iterator<Item = &dyn Model> {
        self.participants.iter().filter_map(Participant::model)
    }

    /// How the models are combined.
    pub fn combine(&self) -> &Combine {
        &self.combine
    }

    /// The combination, with the weights of a session if given.
    pub fn combination(&self, weights: Option<&[f32]>) -> Result<Combination> {
        let scores: Vec<bool> = self.participants.iter().map(|each| each.model().is_some()).collect();
        self.combine.resolve(&scores, weights)
    }

    /// Who routes by common numbers.
    pub fn sharing(&self) -> &Arc<Sharing> {
        &self.sharing
    }

    /// The process that the engine belongs to.
    pub fn process(&self) -> Process {
        self.process
    }

    /// Number of tokens of the shared vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.models().next().map_or(0, Model::vocab_size)
    }

    /// The statistics of all its sessions, ended ones included.
    pub fn totals(&self) -> &Mutex<Stats> {
        &self.totals
    }

    /// What the users of all its sessions have waited for.
    pub fn waits(&self) -> &Mutex<Waits> {
        &self.waits
    }

    /// What its sessions have learned about the models, for later sessions.
    pub fn shared_planning(&self) -> &Mutex<SharedPlanning> {
        &self.shared_planning
    }

    /// Sessions with a temperature below this are greedy.
    pub fn greedy_below(&self) -> f32 {
        self.greedy_below
    }

    /// The end-of-sequence tokens of all models, in ascending order.
    pub fn stop_tokens(&self) -> &[i32] {
        &self.stop_tokens
    }

    /// An error if one of these tokens is not in the vocabulary. `name` is what the message calls them.
    pub fn check_tokens(&self, name: &str, tokens: &[i32]) -> Result<()> {
        let vocab_size = self.vocab_size();
        let is_outside = |token: &&i32| usize::try_from(**token).map_or(true, |token| token >= vocab_size);
        tokens.iter().find(is_outside).map_or(Ok(()), |token| {
            Err(Error::InvalidArgument(format!(
                "{name} holds {token}, but the vocabulary has the tokens 0 to {}",
                vocab_size - 1
            )))
        })
    }

    /// The description of the engine as JSON. `cos_engine_describe` documents it.
    pub fn describe(&self) -> Value {
        let runtime = loaded();
        // Made from text, so that a weight of 0.1 stays 0.1. Direct conversion would widen it to 0.10000000149.
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
            "chat_templates": self.chat.iter().flat_map(Chat::names).collect::<Vec<_>>(),
            "combine": combine,
            "greedy_below": greedy_below,
            "overlap": self.serial.map(|serial| 1.0 - serial),
            "models": self.participants.iter().map(Participant::describe).collect::<Vec<_>>(),
            "warnings": self.warnings,
        })
    }

    /// Compile a constraint for a session with these stop tokens; see [`CompiledConstraints::get`].
    pub fn constraint(&self, language: Language, source: &str, stop_tokens: &[i32]) -> Result<Constraints> {
        self.constraints.get(self.text(), self.vocab_size(), (language, source), stop_tokens)
    }

    /// The tokenizer and its chat templates, or an error that says how to add them.
    pub fn chat(&self) -> Result<(&Text, &Chat)> {
        let text = self.text()?;
        let chat = self.chat.as_ref().ok_or_else(|| {
            Error::Unsupported(
                "no model of this engine has a chat template; put the model's chat_template.jinja, or its \
                 tokenizer_config.json, beside its tokenizer.json, and open the engine again"
                    .into(),
            )
        })?;
        Ok((text, chat))
    }

    /// The tokenizer, or an error that says how to add one.
    pub fn text(&self) -> Result<&Arc<Text>> {
        self.text.as_ref().ok_or_else(|| {
            let file = self.models().find_map(|model| Some(model.describe()["file"].as_str()?.to_owned()));
            Error::Unsupported(format!(
                "no model of this engine has a tokenizer.json, which is needed to convert between text and tokens; put \
                 the model's tokenizer.json beside {}, and open the engine again",
                file.as_deref().unwrap_or("the model")
            ))
        })
    }
}

/// Load one of so many models.
fn load(config: &ExportConfig, models: usize) -> Result<OnnxModel> {
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
    let cache = config.cache_bytes.map_or(CacheSize::Share(CACHE_SHARE / models as f64), CacheSize::Bytes);
    let options = LoadOptions { provider, scoring, context_length: config.context_length, rows, cache };
    OnnxModel::load(&config.path, &name, &options)
}

fn folder_name(path: &Path) -> String {
    let folder = if path.is_dir() { Some(path) } else { path.parent() };
    let name = folder.and_then(Path::file_name).or(path.file_name());
    name.unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
