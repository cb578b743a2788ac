//! Sessions as bytes: a line with the format and a checksum, then JSON.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::RoutesName;
use crate::control::{Controls, Dry};
use crate::decode::chance::CounterRng;
use crate::decode::decoder::{Alternatives, Finish, MOST_ALTERNATIVES, Snapshot};
use crate::decode::policy::{Strategy, Targets};
use crate::engine::Engine;
use crate::engine::participant::Participant;
use crate::engine::session::{Options, Session};
use crate::error::{Error, Result};
use crate::grammar::Language;
use crate::model::Priority;

/// What the bytes begin with. The number is that of the format.
const MAGIC: &str = "COS-SESSION 1 ";

/// What all formats begin with.
const ANY_MAGIC: &str = "COS-SESSION ";

const STRATEGIES: [Strategy; 4] = [Strategy::Auto, Strategy::Standard, Strategy::Speculative, Strategy::Cos];
const TARGETS: [Targets; 2] = [Targets::Combined, Targets::Routed];
const FINISHES: [Finish; 4] = [Finish::StopToken, Finish::MaxTokens, Finish::ContextFull, Finish::Complete];
const LANGUAGES: [Language; 4] = [Language::JsonSchema, Language::Regex, Language::Lark, Language::Choices];

/// A session. Enumerations are indices into the lists above.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Saved {
    models: Vec<SavedModel>,
    combine: Value,
    tokens: Vec<i32>,
    prompts: Vec<(usize, usize)>,
    epoch: u32,
    route_epoch: u32,
    finish: Option<usize>,
    numbers: (u64, u64),
    forks: u64,
    scope: String,
    weights: Vec<f32>,
    options: SavedOptions,
}

/// What tells whether a model is the same.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct SavedModel {
    is_look_up: bool,
    bytes: u64,
    vocab_size: usize,
    context_length: usize,
}

impl SavedModel {
    fn of(participant: &Participant) -> Self {
        let model = participant.model();
        SavedModel {
            is_look_up: model.is_none(),
            bytes: participant.cost(),
            vocab_size: model.map_or(0, |model| model.vocab_size()),
            context_length: model.map_or(0, |model| model.context_length()),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SavedOptions {
    strategy: usize,
    targets: Option<usize>,
    sampler: (f32, usize, f32, f32),
    /// JSON has no infinity, so these are bits.
    bias: Vec<(u32, u32)>,
    penalties: (f32, f32, f32),
    min_tokens: usize,
    banned: Vec<Vec<i32>>,
    no_repeat_ngram: usize,
    dry: Option<(f32, f32, i32, Vec<i32>)>,
    drops: (f32, f32, f32),
    constraint: Option<(usize, String)>,
    max_tokens: usize,
    proposal_lengths: Option<Vec<i32>>,
    weights: Option<Vec<f32>>,
    stop_tokens: Option<Vec<i32>>,
    log_probabilities: bool,
    top: usize,
    before: bool,
    of_models: bool,
    shares_routes: Option<bool>,
    is_batch: bool,
}

impl Session {
    /// The session as bytes that [`Session::restore`] takes.
    ///
    /// [`Error::Unsupported`] if it has a function of the caller.
    pub fn save(&self) -> Result<Vec<u8>> {
        for (name, is_given) in [
            ("combine", self.options.combine.is_some()),
            ("constrain", self.options.controls.constraint.is_some()),
            ("weigh", self.options.weigher.is_some()),
        ] {
            if is_given {
                return Err(Error::Unsupported(format!(
                    "the session has a function in {name}, which bytes cannot hold; save its tokens instead, and \
                     prompt a new session with them"
                )));
            }
        }
        let Snapshot { tokens, prompts, epoch, route_epoch, finish } = self.driver.snapshot();
        let saved = Saved {
            models: self.engine.participants().iter().map(SavedModel::of).collect(),
            combine: combine(&self.engine),
            tokens,
            prompts: prompts.into_iter().map(|prompt| (prompt.start, prompt.end)).collect(),
            epoch,
            route_epoch,
            finish: finish.map(|finish| index(&FINISHES, finish)),
            numbers: self.driver.chance().parts(),
            forks: self.forks,
            scope: self.scope.clone(),
            weights: self.driver.settings().combination.weights().to_vec(),
            options: SavedOptions::of(&self.options),
        };
        let json = serde_json::to_vec(&saved).map_err(|error| Error::Internal(error.to_string()))?;
        let mut bytes = format!("{MAGIC}{:08x}\n", crc32fast::hash(&json)).into_bytes();
        bytes.extend(json);
        Ok(bytes)
    }

    /// A session that goes on where the saved one stood.
    ///
    /// [`Error::InvalidArgument`] if the bytes are damaged or the engine differs, [`Error::Unsupported`] for another
    /// format.
    pub fn restore(engine: &Arc<Engine>, bytes: &[u8]) -> Result<Self> {
        let saved = read(bytes)?;
        saved.check(engine)?;
        let damaged = |what: &str| Error::InvalidArgument(format!("the bytes of the session are damaged: {what}"));
        let options = saved.options.read().ok_or_else(|| damaged("an option is out of range"))?;
        let options = Options { seed: saved.numbers.0, ..options };
        saved.check_tokens(engine)?;
        let mut session = Session::new(engine, &options)?;
        if session.driver.settings().combination.weights() != saved.weights {
            session.set_weights(&saved.weights)?;
        }
        if !saved.scope.is_empty() {
            session.set_scope(&saved.scope)?;
        }
        session.driver.set_chance(CounterRng::of(saved.numbers));
        session.forks = saved.forks;
        let finish = saved.finish.map(|finish| FINISHES.get(finish).copied().ok_or_else(|| damaged("its finish")));
        session.driver.resume(Snapshot {
            tokens: saved.tokens,
            prompts: saved.prompts.into_iter().map(|(start, end)| start..end).collect(),
            epoch: saved.epoch,
            route_epoch: saved.route_epoch,
            finish: finish.transpose()?,
        })?;
        Ok(session)
    }
}

/// The format that bytes name.
fn format_of(bytes: &[u8]) -> String {
    let name = bytes[ANY_MAGIC.len()..].iter().take(8).take_while(|byte| byte.is_ascii_digit());
    name.map(|&byte| char::from(byte)).collect()
}

/// Check the format and the checksum.
fn read(bytes: &[u8]) -> Result<Saved> {
    let damaged = |what: String| Error::InvalidArgument(format!("the bytes are no saved session: {what}"));
    let Some(rest) = bytes.strip_prefix(MAGIC.as_bytes()) else {
        return Err(match bytes.starts_with(ANY_MAGIC.as_bytes()) {
            true => Error::Unsupported(format!(
                "the session was saved in format {}, but version {} reads format 1; restore it with the version that \
                 saved it",
                format_of(bytes),
                env!("CARGO_PKG_VERSION")
            )),
            false => damaged(format!("they do not begin with {ANY_MAGIC:?}")),
        });
    };
    let (sum, json) = rest.split_at_checked(9).ok_or_else(|| damaged("they are cut off".into()))?;
    if sum != format!("{:08x}\n", crc32fast::hash(json)).as_bytes() {
        return Err(damaged("the checksum differs, so they were changed or cut off".into()));
    }
    serde_json::from_slice(json).map_err(|error| damaged(error.to_string()))
}

impl Saved {
    /// Check that all tokens are in the vocabulary.
    fn check_tokens(&self, engine: &Engine) -> Result<()> {
        let SavedOptions { bias, banned, stop_tokens, dry, .. } = &self.options;
        let biased: Vec<i32> = bias.iter().map(|(token, _)| *token as i32).collect();
        let breakers = dry.as_ref().map_or(&[][..], |(_, _, _, breakers)| breakers);
        let all = [&self.tokens, &biased, stop_tokens.as_deref().unwrap_or_default(), breakers];
        let all = all.into_iter().chain(banned.iter().map(Vec::as_slice));
        all.into_iter().try_for_each(|tokens| engine.check_tokens("the saved session", tokens))
    }

    /// Check that the engine has the same models, and combines them in the same way.
    fn check(&self, engine: &Engine) -> Result<()> {
        let differs = |what: String| {
            Err(Error::InvalidArgument(format!(
                "the engine differs from the one that the session was saved with: {what}; restore it with an engine of \
                 the same models and combination"
            )))
        };
        let models: Vec<SavedModel> = engine.participants().iter().map(SavedModel::of).collect();
        if models.len() != self.models.len() {
            return differs(format!("it has {} models, not {}", models.len(), self.models.len()));
        }
        if let Some(model) = (0..models.len()).find(|&model| models[model] != self.models[model]) {
            let name = engine.participants()[model].name();
            return differs(format!("model {model}, {name}, is {:?}, not {:?}", models[model], self.models[model]));
        }
        let combine = combine(engine);
        if combine != self.combine {
            return differs(format!("\"combine\" is {combine}, not {}", self.combine));
        }
        Ok(())
    }
}

fn combine(engine: &Engine) -> Value {
    serde_json::to_value(engine.combine()).unwrap_or_default()
}

fn index<T: PartialEq>(list: &[T], value: T) -> usize {
    list.iter().position(|each| *each == value).unwrap_or(list.len())
}

impl SavedOptions {
    fn of(options: &Options) -> Self {
        let Controls { bias, repetition_penalty, presence_penalty, frequency_penalty, .. } = &options.controls;
        SavedOptions {
            strategy: index(&STRATEGIES, options.strategy),
            targets: options.targets.map(|targets| index(&TARGETS, targets)),
            sampler: options.sampler.parts(),
            bias: bias.iter().map(|(token, value)| (*token, value.to_bits())).collect(),
            penalties: (*repetition_penalty, *presence_penalty, *frequency_penalty),
            min_tokens: options.controls.min_tokens,
            banned: options.controls.banned.clone(),
            no_repeat_ngram: options.controls.no_repeat_ngram,
            dry: options.controls.dry.as_ref().map(|dry| {
                let (multiplier, base, allowed, breakers) = dry.parts();
                (multiplier, base, allowed, breakers.to_vec())
            }),
            drops: (options.controls.typical_p, options.controls.xtc_probability, options.controls.xtc_threshold),
            constraint: options.constraint.clone().map(|(language, source)| (index(&LANGUAGES, language), source)),
            max_tokens: options.max_tokens,
            proposal_lengths: options.proposal_lengths.clone(),
            weights: options.weights.clone(),
            stop_tokens: options.stop_tokens.clone(),
            log_probabilities: options.log_probabilities,
            top: options.alternatives.top,
            before: options.alternatives.before,
            of_models: options.alternatives.of_models,
            shares_routes: options.routes.map(|routes| routes == RoutesName::Shared),
            is_batch: options.priority == Priority::Batch,
        }
    }

    /// The options; `None` if one is out of range.
    fn read(&self) -> Option<Options> {
        let (repetition, presence, frequency) = self.penalties;
        let (tokens, values): (Vec<i32>, Vec<f32>) =
            self.bias.iter().map(|&(token, bits)| (token as i32, f32::from_bits(bits))).unzip();
        let (typical_p, xtc_probability, xtc_threshold) = self.drops;
        let dry = match &self.dry {
            Some((multiplier, base, allowed, breakers)) => Dry::new(*multiplier, *base, *allowed, breakers).ok()?,
            None => None,
        };
        let controls = Controls {
            dry,
            min_tokens: self.min_tokens,
            no_repeat_ngram: self.no_repeat_ngram,
            ..Controls::default()
                .with_penalties(repetition, presence, frequency)
                .and_then(|controls| controls.with_bias(&tokens, &values))
                .and_then(|controls| controls.with_banned(self.banned.clone()))
                .and_then(|controls| controls.with_drops(typical_p, xtc_probability, xtc_threshold))
                .ok()?
        };
        let targets = self.targets.map(|targets| TARGETS.get(targets).copied().ok_or(()));
        let constraint = self.constraint.clone();
        let constraint =
            constraint.map(|(language, source)| Ok::<_, ()>((*LANGUAGES.get(language).ok_or(())?, source)));
        let (temperature, top_k, top_p, min_p) = self.sampler;
        if self.top > MOST_ALTERNATIVES {
            return None;
        }
        Some(Options {
            strategy: *STRATEGIES.get(self.strategy)?,
            targets: targets.transpose().ok()?,
            sampler: crate::rows::Sampler::new(temperature, i32::try_from(top_k).ok()?, top_p, min_p).ok()?,
            controls,
            constraint: constraint.transpose().ok()?,
            seed: 0,
            max_tokens: self.max_tokens,
            proposal_lengths: self.proposal_lengths.clone(),
            weights: self.weights.clone(),
            stop_tokens: self.stop_tokens.clone(),
            log_probabilities: self.log_probabilities,
            alternatives: Alternatives { top: self.top, before: self.before, of_models: self.of_models },
            weigher: None,
            combine: None,
            routes: self.shares_routes.map(|shares| if shares { RoutesName::Shared } else { RoutesName::Own }),
            priority: if self.is_batch { Priority::Batch } else { Priority::Interactive },
        })
    }
}
