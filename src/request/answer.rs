//! Answers in the protocol: the body of a whole one, and the events of a stream.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::choice::{Choice, News};
use super::terms::Endpoint;
use crate::decode::decoder::{LogProbabilities, Origin, OriginKind};
use crate::engine::participant::Participant;
use crate::text::{Text, TokenBytes};

/// What all parts of an answer begin with.
#[derive(Debug, Serialize)]
pub struct Head {
    pub id: String,
    pub object: &'static str,
    pub created: u64,
    pub model: String,
}

impl Head {
    /// The name of the object that a part is.
    pub fn object(endpoint: Endpoint, streams: bool) -> &'static str {
        match (endpoint, streams) {
            (Endpoint::Completion, _) => "text_completion",
            (Endpoint::Chat, false) => "chat.completion",
            (Endpoint::Chat, true) => "chat.completion.chunk",
        }
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    head: &'a Head,
    choices: Vec<AnswerChoice<'a>>,
    /// Events that come before the one with the usage have null.
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Option<Usage>>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Usage {
    /// Of its prompts, each counted once.
    pub prompt_tokens: usize,
    /// Decoded ones of all choices.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
}

#[derive(Serialize)]
struct AnswerChoice<'a> {
    index: usize,
    #[serde(flatten)]
    content: Content<'a>,
    logprobs: Option<Value>,
    finish_reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_ids: Option<&'a [i32]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    token_origins: Option<Vec<TokenOrigin<'a>>>,
}

/// How a token came about.
#[derive(Serialize)]
struct TokenOrigin<'a> {
    token: String,
    /// They need not be whole characters.
    bytes: Vec<u8>,
    origin: &'static str,
    model: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "lowercase")]
enum Content<'a> {
    Text(&'a str),
    Message(Message<'a>),
    Delta(Message<'a>),
}

#[derive(Serialize)]
struct Message<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<&'static str>,
    content: &'a str,
}

/// The role of what models say.
const ROLE: Option<&str> = Some("assistant");

/// How the choices of a request are written.
pub struct Writer<'a> {
    pub endpoint: Endpoint,
    pub streams: bool,
    pub text: Option<&'a Text>,
    pub log_probabilities: bool,
    pub top: usize,
    pub models: &'a [Participant],
    pub token_ids: bool,
    pub token_origins: bool,
}

impl Writer<'_> {
    /// One part of an answer with these choices.
    pub fn write<'a>(
        &self,
        head: &Head,
        choices: impl Iterator<Item = (usize, &'a Choice)>,
        usage: Option<Option<Usage>>,
    ) -> String {
        let choices = choices.map(|(index, choice)| self.choice(index, choice)).collect();
        serde_json::to_string(&Answer { head, choices, usage }).unwrap_or_default()
    }

    /// The first event of a choice of a chat, with nothing but the role: clients put log-probabilities of a first event
    /// together wrongly.
    pub fn write_role(&self, head: &Head, index: usize, usage: Option<Option<Usage>>) -> String {
        let content = Content::Delta(Message { role: ROLE, content: "" });
        let choice =
            AnswerChoice { index, content, logprobs: None, finish_reason: None, token_ids: None, token_origins: None };
        serde_json::to_string(&Answer { head, choices: vec![choice], usage }).unwrap_or_default()
    }

    fn choice<'a>(&'a self, index: usize, choice: &'a Choice) -> AnswerChoice<'a> {
        let news = &choice.news;
        let message = |role| Message { role, content: &news.text };
        AnswerChoice {
            index,
            content: match (self.endpoint, self.streams) {
                (Endpoint::Completion, _) => Content::Text(&news.text),
                (Endpoint::Chat, false) => Content::Message(message(ROLE)),
                (Endpoint::Chat, true) => Content::Delta(message(None)),
            },
            logprobs: self.log_probabilities.then(|| match self.endpoint {
                Endpoint::Completion => self.completion_logprobs(choice),
                Endpoint::Chat => self.chat_logprobs(news),
            }),
            finish_reason: news.ending.map(|ending| ending.reason()),
            token_ids: self.token_ids.then_some(&news.tokens),
            token_origins: self.token_origins.then(|| self.origins(news)),
        }
    }

    fn origins(&self, news: &News) -> Vec<TokenOrigin<'_>> {
        let origin = |(token, origin): (&i32, &Origin)| {
            let (token, bytes) = self.token(*token);
            let model = usize::try_from(origin.participant).ok().map(|index| self.models[index].name());
            let origin = match origin.kind {
                OriginKind::Drawn => "drawn",
                OriginKind::Accepted => "accepted",
                OriginKind::Replaced => "replaced",
                OriginKind::Forced => "forced",
            };
            TokenOrigin { token, bytes, origin, model }
        };
        news.tokens.iter().zip(&news.origins).map(origin).collect()
    }

    /// The characters of the tokens, as far as offsets are wanted.
    pub fn characters(&self, news: &News) -> usize {
        if !self.log_probabilities || self.endpoint == Endpoint::Chat {
            return 0;
        }
        news.tokens.iter().map(|token| characters(&self.token(*token).1)).sum()
    }

    /// Whether a choice has something to send in a stream: text is held back while it may become a stop string.
    pub fn says(&self, choice: &Choice) -> bool {
        let tokens = self.log_probabilities || self.token_ids || self.token_origins;
        choice.is_new
            && (!choice.news.text.is_empty()
                || choice.news.ending.is_some()
                || tokens && !choice.news.tokens.is_empty())
    }

    /// The text of a token, and its bytes, which need not be whole characters.
    fn token(&self, token: i32) -> (String, Vec<u8>) {
        let Some(text) = self.text else { return Default::default() };
        match text.token_bytes(token as u32) {
            TokenBytes::Text(bytes) => (String::from_utf8_lossy(&bytes).into_owned(), bytes),
            TokenBytes::Special(name) => (name.clone(), name.into_bytes()),
            TokenBytes::None => {
                let text = text.decode_special(&[token]).unwrap_or_default();
                (text.clone(), text.into_bytes())
            }
        }
    }

    fn entry(&self, token: i32, log_probability: f32) -> Map<String, Value> {
        let (text, bytes) = self.token(token);
        let entry = json!({ "token": text, "logprob": number(log_probability), "bytes": bytes });
        if let Value::Object(entry) = entry { entry } else { Map::new() }
    }

    fn chat_logprobs(&self, news: &News) -> Value {
        let all = &news.log_probabilities;
        let entry = |(index, (&token, &value)): (usize, (&i32, &f32))| {
            let mut entry = self.entry(token, value);
            let top = top(all, index, self.top).map(|(token, value)| self.entry(token, value).into());
            entry.insert("top_logprobs".into(), top.collect::<Vec<Value>>().into());
            let count = self.models.len();
            let models = all.of_models.iter().skip(index * count).take(count).map(|value| number(*value));
            let models: Vec<Value> = models.collect();
            if !models.is_empty() {
                entry.insert("model_logprobs".into(), models.into());
            }
            Value::from(entry)
        };
        let content = news.tokens.iter().zip(&all.of_tokens).enumerate().map(entry);
        json!({ "content": content.collect::<Vec<_>>(), "refusal": null })
    }

    fn completion_logprobs(&self, choice: &Choice) -> Value {
        let (news, all) = (&choice.news, &choice.news.log_probabilities);
        let (texts, bytes): (Vec<String>, Vec<Vec<u8>>) = news.tokens.iter().map(|token| self.token(*token)).unzip();
        let mut offset = choice.offset;
        let offsets = bytes.iter().map(|bytes| {
            let begin = offset;
            offset += characters(bytes);
            begin
        });
        let offsets: Vec<usize> = offsets.collect();
        let tops = news.tokens.iter().zip(&all.of_tokens).enumerate().map(|(index, (&token, &value))| {
            let mut entries: Map<String, Value> =
                top(all, index, self.top).map(|(token, value)| (self.token(token).0, number(value))).collect();
            entries.insert(self.token(token).0, number(value));
            Value::from(entries)
        });
        let tops: Option<Vec<Value>> = (self.top > 0).then(|| tops.collect());
        let values: Vec<Value> = all.of_tokens.iter().map(|value| number(*value)).collect();
        json!({ "tokens": texts, "token_logprobs": values, "top_logprobs": tops, "text_offset": offsets })
    }
}

/// The characters that begin in these bytes.
fn characters(bytes: &[u8]) -> usize {
    bytes.iter().filter(|byte| **byte & 0xc0 != 0x80).count()
}

/// The alternatives of a token.
fn top(all: &LogProbabilities, index: usize, top: usize) -> impl Iterator<Item = (i32, f32)> {
    let both = all.top_tokens.iter().copied().zip(all.of_top.iter().copied());
    both.skip(index * top).take(top).filter(|(token, _)| *token >= 0)
}

/// JSON has no infinities, and the protocol has this number for what is impossible.
fn number(log_probability: f32) -> Value {
    if log_probability == f32::NEG_INFINITY { (-9999.0).into() } else { log_probability.into() }
}
