//! A body as prompts and options of sessions.

use std::fmt::Write as _;

use serde_json::value::RawValue;

use super::body::{Body, Extension, FormatName, Logprobs, OneOrMany, PriorityName, Prompts, StrategyName, TargetsName};
use super::terms::{Endpoint, Terms};
use crate::control::{Controls, Dry};
use crate::decode::decoder::{Alternatives, MOST_ALTERNATIVES};
use crate::decode::policy::{Strategy, Targets};
use crate::engine::Engine;
use crate::engine::session::Options;
use crate::error::{Error, Result};
use crate::grammar::Language;
use crate::model::{Model, Priority};
use crate::rows::Sampler;
use crate::text::Text;

/// Tokens of a completion if its request does not say how many.
const COMPLETION_TOKENS: u32 = 16;

/// Most stop strings, most runs of banned tokens, and most choices of a constraint. A server keeps them for each of its
/// sessions, and a body of some megabytes could have very many.
const MOST_STOPS: usize = 64;
const MOST_BANNED: usize = 1024;
const MOST_CHOICES: usize = 1024;

/// Most bytes of all stop strings, and most tokens of all banned runs.
const MOST_LONG: usize = 16 << 10;

fn bounded(name: &str, count: usize, most: usize) -> Result<()> {
    if count <= most { Ok(()) } else { Err(wrong(format!("{name} is {count}; it may be {most} at most"))) }
}

/// The options of a request's sessions.
pub fn options(body: &Body, terms: &Terms, engine: &Engine) -> Result<Options> {
    let extension = &body.cos;
    check_values_that_change_nothing(body)?;
    let (log_probabilities, top) = wanted(body, terms.endpoint)?;
    let alternatives = Alternatives {
        top,
        before: log_probabilities && extension.log_probabilities_before == Some(true),
        of_models: log_probabilities && extension.model_log_probabilities == Some(true),
    };
    let max_tokens = max_tokens(body, terms)?;
    let models = engine.participants().len();
    let counts = [
        ("cos.weights", extension.weights.as_ref().map(Vec::len)),
        ("cos.proposal_lengths", extension.proposal_lengths.as_ref().map(Vec::len)),
    ];
    for (name, count) in counts {
        if let Some(count) = count.filter(|count| *count != models) {
            return Err(wrong(format!(
                "{name} has {count} numbers, but the engine has {models} models; give one for each, in their order"
            )));
        }
    }
    Ok(Options {
        strategy: match extension.strategy {
            None | Some(StrategyName::Auto) => Strategy::Auto,
            Some(StrategyName::Standard) => Strategy::Standard,
            Some(StrategyName::Speculative) => Strategy::Speculative,
            Some(StrategyName::Cos) => Strategy::Cos,
        },
        targets: extension.targets.map(|targets| match targets {
            TargetsName::Combined => Targets::Combined,
            TargetsName::Routed => Targets::Routed,
        }),
        // Other servers turn the filter off by -1.
        sampler: Sampler::new(
            body.temperature.unwrap_or(1.0),
            body.top_k.filter(|k| *k != -1).unwrap_or(0),
            body.top_p.unwrap_or(1.0),
            body.min_p.unwrap_or(0.0),
        )?,
        controls: controls(body, extension, engine, max_tokens)?,
        constraint: constraint(body)?,
        seed: seed(body, terms.number)?,
        max_tokens: max_tokens as usize,
        proposal_lengths: extension.proposal_lengths.clone(),
        weights: extension.weights.clone(),
        stop_tokens: stop_tokens(body, engine)?,
        log_probabilities,
        alternatives,
        routes: extension.routes,
        priority: match extension.priority {
            None | Some(PriorityName::Interactive) => Priority::Interactive,
            Some(PriorityName::Batch) => Priority::Batch,
        },
        ..Options::default()
    })
}

/// The most tokens of a choice; 0 is no limit. A default gives way to the limit of the server.
fn max_tokens(body: &Body, terms: &Terms) -> Result<u32> {
    let most = u32::try_from(terms.max_tokens).unwrap_or(u32::MAX);
    let unlimited = if most == u32::MAX { 0 } else { most };
    match body.max_tokens() {
        Some(asked) if asked > most => {
            Err(wrong(format!("max_tokens is {asked}, but this server decodes at most {most}")))
        }
        Some(0) => Ok(unlimited),
        Some(asked) => Ok(asked),
        None if terms.endpoint == Endpoint::Completion => Ok(COMPLETION_TOKENS.min(most)),
        None => Ok(unlimited),
    }
}

fn seed(body: &Body, number: u64) -> Result<u64> {
    match &body.seed {
        None => Ok(number),
        Some(seed) if seed.as_i64() == Some(-1) => Ok(number),
        Some(seed) => seed.as_u64().or_else(|| seed.as_i64().map(|seed| seed as u64)).ok_or_else(|| {
            wrong(format!("seed is {seed}; let it be -1 for a random one, or another integer of 64 bits"))
        }),
    }
}

fn wrong(what: String) -> Error {
    Error::InvalidArgument(what)
}

/// Members of the protocol that are not supported may have the value that changes nothing.
fn check_values_that_change_nothing(body: &Body) -> Result<()> {
    let others = [
        ("best_of", body.best_of.is_some_and(|best_of| best_of != body.n.unwrap_or(1)), "n"),
        ("echo", body.echo == Some(true), "false"),
        ("suffix", body.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()), "\"\""),
    ];
    match others.iter().find(|(_, other, _)| *other) {
        Some((name, _, only)) => {
            Err(Error::Unsupported(format!("{name} is not supported; leave it out, or set it to {only}")))
        }
        None => Ok(()),
    }
}

/// Whether log-probabilities are wanted, and those of how many alternatives.
fn wanted(body: &Body, endpoint: Endpoint) -> Result<(bool, usize)> {
    let wrong_type = |needed| wrong(format!("logprobs must be {needed}"));
    let (wanted, top) = match (endpoint, &body.logprobs) {
        (Endpoint::Completion, Some(Logprobs::Switch(true))) => return Err(wrong_type("a number for completions")),
        (Endpoint::Completion, Some(Logprobs::Top(top))) => (true, *top),
        (Endpoint::Chat, Some(Logprobs::Top(_))) => return Err(wrong_type("true or false for chats")),
        (Endpoint::Chat, Some(Logprobs::Switch(true))) => (true, body.top_logprobs.unwrap_or(0)),
        (_, None | Some(Logprobs::Switch(false))) => (false, 0),
    };
    if endpoint == Endpoint::Chat && !wanted && body.top_logprobs.is_some_and(|top| top > 0) {
        return Err(wrong("top_logprobs needs logprobs; set logprobs to true too".into()));
    }
    let asked = top as usize;
    if asked > MOST_ALTERNATIVES {
        let name = if endpoint == Endpoint::Chat { "top_logprobs" } else { "logprobs" };
        return Err(wrong(format!("{name} is {asked}; it must be 0 to {MOST_ALTERNATIVES}")));
    }
    Ok((wanted, asked))
}

fn controls(body: &Body, extension: &Extension, engine: &Engine, max_tokens: u32) -> Result<Controls> {
    let min_tokens = body.min_tokens.unwrap_or(0);
    if max_tokens > 0 && min_tokens > max_tokens {
        return Err(wrong(format!(
            "min_tokens is {min_tokens}, but max_tokens is {max_tokens}; at least as many tokens must be allowed"
        )));
    }
    let mut bias = (Vec::new(), Vec::new());
    for (token, value) in body.logit_bias.iter().flatten() {
        let number = token.parse::<i32>().ok().filter(|number| number.to_string() == *token).ok_or_else(|| {
            wrong(format!("logit_bias has the key {token:?}; let all keys be numbers of tokens, such as \"50256\""))
        })?;
        bias.0.push(number);
        bias.1.push(*value);
    }
    engine.check_tokens("logit_bias", &bias.0)?;
    let banned = extension.banned_tokens.clone().unwrap_or_default();
    bounded("the number of cos.banned_tokens", banned.len(), MOST_BANNED)?;
    bounded("the number of tokens in cos.banned_tokens", banned.iter().map(Vec::len).sum(), MOST_LONG)?;
    banned.iter().try_for_each(|run| engine.check_tokens("cos.banned_tokens", run))?;
    let breakers = extension.dry_breakers.as_deref().unwrap_or_default();
    engine.check_tokens("cos.dry_breakers", breakers)?;
    let controls = Controls {
        min_tokens: min_tokens as usize,
        no_repeat_ngram: extension.no_repeat_ngram.unwrap_or(0) as usize,
        dry: dry(body, breakers)?,
        ..Controls::default()
    };
    controls
        .with_penalties(
            body.repetition_penalty.unwrap_or(1.0),
            body.presence_penalty.unwrap_or(0.0),
            body.frequency_penalty.unwrap_or(0.0),
        )?
        .with_bias(&bias.0, &bias.1)?
        .with_drops(
            body.typical_p.unwrap_or(0.0),
            body.xtc_probability.unwrap_or(0.0),
            body.xtc_threshold.unwrap_or(0.0),
        )?
        .with_banned(banned)
}

/// The penalty on repeated runs. Its members are checked even if it is off.
fn dry(body: &Body, breakers: &[i32]) -> Result<Option<Dry>> {
    let multiplier = body.dry_multiplier.unwrap_or(0.0);
    let is_off = multiplier == 0.0;
    let (base, allowed) = (body.dry_base.unwrap_or(1.75), body.dry_allowed_length.unwrap_or(2));
    Ok(Dry::new(if is_off { 1.0 } else { multiplier }, base, allowed, breakers)?.filter(|_| !is_off))
}

/// The constraint that a request asks for by one of two members.
fn constraint(body: &Body) -> Result<Option<(Language, String)>> {
    const ANY_OBJECT: &str = r#"{"type": "object"}"#;
    let mut found = Vec::new();
    if let Some(format) = &body.response_format {
        match (format.kind, &format.json_schema) {
            (FormatName::Text, _) => {}
            (FormatName::JsonObject, _) => found.push((Language::JsonSchema, ANY_OBJECT.to_owned())),
            (FormatName::JsonSchema, Some(named)) => {
                let schema = named.schema.as_ref().map_or("{}", |schema| schema.get());
                found.push((Language::JsonSchema, schema.to_owned()));
            }
            (FormatName::JsonSchema, None) => {
                return Err(wrong("response_format has no json_schema; give the schema there".into()));
            }
        }
    }
    let outputs = &body.structured_outputs;
    bounded("the number of choices", outputs.choice.as_ref().map_or(0, Vec::len), MOST_CHOICES)?;
    let given = [
        (Language::JsonSchema, outputs.json.as_ref().map(|schema| schema_text(schema)).transpose()?),
        (Language::JsonSchema, (outputs.json_object == Some(true)).then(|| ANY_OBJECT.to_owned())),
        (Language::Regex, outputs.regex.clone()),
        (Language::Choices, outputs.choice.as_ref().map(|choices| serde_json::json!(choices).to_string())),
        (Language::Lark, outputs.grammar.clone()),
    ];
    found.extend(given.into_iter().filter_map(|(language, source)| Some((language, source?))));
    match found.len() {
        0 | 1 => Ok(found.pop()),
        _ => Err(wrong("response_format and structured_outputs ask for several constraints; give one".into())),
    }
}

/// A schema, which may be a string of JSON.
fn schema_text(schema: &RawValue) -> Result<String> {
    match schema.get().starts_with('"') {
        false => Ok(schema.get().to_owned()),
        true => serde_json::from_str(schema.get()).map_err(|error| wrong(format!("structured_outputs.json: {error}"))),
    }
}

fn stop_tokens(body: &Body, engine: &Engine) -> Result<Option<Vec<i32>>> {
    let further = body.stop_token_ids.as_deref().unwrap_or_default();
    engine.check_tokens("stop_token_ids", further)?;
    Ok(match (body.ignore_eos == Some(true), further) {
        (true, further) => Some(further.to_vec()),
        (false, []) => None,
        (false, further) => Some([engine.stop_tokens(), further].concat()),
    })
}

/// The stop strings.
pub fn stops(body: &mut Body) -> Result<Vec<String>> {
    let stops = match body.stop.take() {
        None => Vec::new(),
        Some(OneOrMany::One(stop)) => vec![stop],
        Some(OneOrMany::Many(stops)) => stops,
    };
    bounded("the number of stop strings", stops.len(), MOST_STOPS)?;
    bounded("the length of all stop strings in bytes", stops.iter().map(String::len).sum(), MOST_LONG)?;
    Ok(stops)
}

/// The tokens of the prompts.
pub fn prompts(body: &Body, terms: &Terms, engine: &Engine) -> Result<Vec<Vec<i32>>> {
    let missing = |name| wrong(format!("{name} is missing; it is required"));
    if terms.endpoint == Endpoint::Chat {
        let messages = body.messages.as_ref().ok_or_else(|| missing("messages"))?;
        let (text, chat) = engine.chat()?;
        check_length(messages.get(), text, terms, engine)?;
        let request = chat_request(body, messages)?;
        return Ok(vec![chat.encode_openai(text, &request, body.add_generation_prompt.unwrap_or(true))?]);
    }
    let encode = |prompt: &String| {
        let text = engine.text()?;
        check_length(prompt, text, terms, engine)?;
        text.encode(prompt, true)
    };
    let prompts = match body.prompt.as_ref().ok_or_else(|| missing("prompt"))? {
        Prompts::Text(text) => vec![encode(text)?],
        Prompts::Tokens(tokens) => vec![tokens.clone()],
        Prompts::Texts(texts) => texts.iter().map(encode).collect::<Result<_>>()?,
        Prompts::Lists(lists) => lists.clone(),
    };
    match prompts.iter().position(Vec::is_empty) {
        None => Ok(prompts),
        Some(index) => Err(wrong(format!("prompt {index} has no tokens; give at least one"))),
    }
}

/// Refuse a text that is far too long, because encoding it would take seconds. A text may become shorter before it is
/// cut into tokens, so there is room for that.
fn check_length(prompt: &str, text: &Text, terms: &Terms, engine: &Engine) -> Result<()> {
    const SHORTER: usize = 4;
    let context = engine.models().map(Model::context_length).min().unwrap_or(usize::MAX);
    let tokens = context.min(terms.max_prompt_tokens);
    let most = tokens.saturating_mul(text.longest_token()).saturating_mul(SHORTER);
    if prompt.len() <= most {
        return Ok(());
    }
    Err(Error::ContextFull(format!(
        "a prompt has {} bytes, which is far more than {tokens} tokens can be",
        prompt.len()
    )))
}

/// What the chat template gets. The order of members stays, because templates print tools.
fn chat_request(body: &Body, messages: &RawValue) -> Result<String> {
    let tools = match body.tool_choice.as_ref().map(|choice| choice.get()) {
        None | Some("\"auto\"") => body.tools.as_ref(),
        Some("\"none\"") => None,
        Some(_) => {
            return Err(Error::Unsupported(
                "tool_choice must be \"auto\" or \"none\"; others are not supported".into(),
            ));
        }
    };
    let mut request = format!("{{\"messages\": {}", messages.get());
    let mut add = |name: &str, value: &RawValue| {
        _ = write!(request, ", {}: {}", serde_json::Value::from(name), value.get());
    };
    for (name, value) in [("tools", tools), ("documents", body.documents.as_ref())] {
        value.into_iter().for_each(|value| add(name, value));
    }
    for (name, value) in body.chat_template_kwargs.iter().flatten() {
        if ["messages", "tools", "documents"].contains(&&**name) {
            return Err(wrong(format!(
                "chat_template_kwargs has {name:?}, which is a member of the request; leave it out"
            )));
        }
        add(name, value);
    }
    request.push('}');
    Ok(request)
}
