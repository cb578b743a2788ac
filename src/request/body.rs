//! The body of a request: the members of OpenAI's interface, and those that other servers have added to it.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Number;
use serde_json::value::RawValue;

use crate::config::RoutesName;
use crate::error::{Error, Result};

/// A body. A member that is null counts as missing, and unknown members are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Body {
    pub model: Option<String>,
    pub prompt: Option<Prompts>,
    pub messages: Option<Box<RawValue>>,
    pub tools: Option<Box<RawValue>>,
    pub tool_choice: Option<Box<RawValue>>,
    pub documents: Option<Box<RawValue>>,
    pub chat_template_kwargs: Option<BTreeMap<String, Box<RawValue>>>,
    pub add_generation_prompt: Option<bool>,

    pub max_tokens: Option<u32>,
    pub max_completion_tokens: Option<u32>,
    pub min_tokens: Option<u32>,
    pub n: Option<u32>,
    pub best_of: Option<u32>,
    pub echo: Option<bool>,
    pub suffix: Option<String>,
    pub seed: Option<Number>,
    pub stop: Option<OneOrMany>,
    pub stop_token_ids: Option<Vec<i32>>,
    pub ignore_eos: Option<bool>,
    pub skip_special_tokens: Option<bool>,

    pub temperature: Option<f32>,
    pub top_k: Option<i32>,
    pub top_p: Option<f32>,
    pub min_p: Option<f32>,
    pub typical_p: Option<f32>,
    pub xtc_probability: Option<f32>,
    pub xtc_threshold: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub dry_multiplier: Option<f32>,
    pub dry_base: Option<f32>,
    pub dry_allowed_length: Option<i32>,
    pub logit_bias: Option<BTreeMap<String, f32>>,

    pub logprobs: Option<Logprobs>,
    pub top_logprobs: Option<u32>,
    #[serde(deserialize_with = "object")]
    pub response_format: Option<ResponseFormat>,
    #[serde(deserialize_with = "members")]
    pub structured_outputs: StructuredOutputs,
    pub return_token_ids: Option<bool>,
    pub stream: Option<bool>,
    #[serde(deserialize_with = "members")]
    pub stream_options: StreamOptions,
    #[serde(deserialize_with = "members")]
    pub cos: Extension,
}

/// One prompt or several, as text or as tokens.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string, an array of tokens, or an array of either")]
pub enum Prompts {
    Text(String),
    Tokens(Vec<i32>),
    Texts(Vec<String>),
    Lists(Vec<Vec<i32>>),
}

#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a string or an array of strings")]
pub enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

/// A number for completions, a switch for chats.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "a number for completions, or true or false for chats")]
pub enum Logprobs {
    Switch(bool),
    Top(u32),
}

#[derive(Debug, Deserialize)]
pub struct ResponseFormat {
    #[serde(rename = "type")]
    pub kind: FormatName,
    #[serde(default, deserialize_with = "object")]
    pub json_schema: Option<NamedSchema>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FormatName {
    Text,
    JsonObject,
    JsonSchema,
}

#[derive(Debug, Deserialize)]
pub struct NamedSchema {
    pub schema: Option<Box<RawValue>>,
}

/// A constraint: exactly one of these.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StructuredOutputs {
    pub json: Option<Box<RawValue>>,
    pub regex: Option<String>,
    pub choice: Option<Vec<String>>,
    pub grammar: Option<String>,
    pub json_object: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct StreamOptions {
    pub include_usage: Option<bool>,
}

/// What only this library has.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Extension {
    pub strategy: Option<StrategyName>,
    pub targets: Option<TargetsName>,
    pub routes: Option<RoutesName>,
    pub priority: Option<PriorityName>,
    pub proposal_lengths: Option<Vec<i32>>,
    pub weights: Option<Vec<f32>>,
    pub scope: Option<String>,
    pub no_repeat_ngram: Option<u32>,
    pub banned_tokens: Option<Vec<Vec<i32>>>,
    pub dry_breakers: Option<Vec<i32>>,
    pub log_probabilities_before: Option<bool>,
    pub model_log_probabilities: Option<bool>,
    pub token_origins: Option<bool>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StrategyName {
    Auto,
    Standard,
    Speculative,
    Cos,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetsName {
    Combined,
    Routed,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PriorityName {
    Interactive,
    Batch,
}

impl Body {
    /// Read a body. An error names the member that is wrong.
    pub fn parse(json: &str) -> Result<Self> {
        read(json).map_err(|why| Error::InvalidArgument(format!("the body of the request: {why}")))
    }

    /// Most tokens of a text, by its old or its new name.
    pub fn max_tokens(&self) -> Option<u32> {
        self.max_completion_tokens.or(self.max_tokens)
    }
}

/// Read an object. serde would take an array for one, by the order of the members.
fn read<T: DeserializeOwned>(json: &str) -> Result<T, String> {
    if !json.trim_start().starts_with('{') {
        return Err("it must be a JSON object".into());
    }
    let mut reader = serde_json::Deserializer::from_str(json);
    let object = serde_path_to_error::deserialize(&mut reader).map_err(|error| match error.path().to_string() {
        path if path == "." || path == "?" => error.inner().to_string(),
        path => format!("{path}: {}", error.inner()),
    })?;
    reader.end().map_err(|error| error.to_string())?;
    Ok(object)
}

fn object<'de, D: Deserializer<'de>, T: DeserializeOwned>(deserializer: D) -> Result<Option<T>, D::Error> {
    let json = Option::<Box<RawValue>>::deserialize(deserializer)?;
    json.map(|json| read(json.get())).transpose().map_err(serde::de::Error::custom)
}

fn members<'de, D: Deserializer<'de>, T: DeserializeOwned + Default>(deserializer: D) -> Result<T, D::Error> {
    object(deserializer).map(Option::unwrap_or_default)
}
