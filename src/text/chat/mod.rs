//! Chat: the templates beside a model, and messages as text or tokens.

pub mod files;
mod marks;
mod openai;
mod python;
mod template;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::sync::OnceLock;

use minijinja::Value;
use minijinja::value::ValueKind;

pub use self::files::ChatFiles;
use self::marks::Marks;
pub use self::template::Now;
use self::template::Templates;
use self::values::{pairs, refuse};
use super::Text;
use crate::error::{Error, Result};

/// Where a message may have its reasoning. Templates read the first or the second name.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Keys of a request that `apply_chat_template` of transformers has as parameters, but no template has as variables.
const PARAMETERS: [&str; 10] = [
    "add_generation_prompt",
    "chat_template",
    "continue_final_message",
    "conversation",
    "max_length",
    "padding",
    "return_tensors",
    "sanitize_control_tokens",
    "tokenize",
    "truncation",
];

/// The chat templates of a model.
pub struct Chat {
    templates: Templates,
    named: BTreeMap<String, Named>,
    /// The special tokens that templates know as variables, such as `bos_token`.
    tokens: Vec<(String, String)>,
    /// Added tokens that are control tokens, though they are not special. `None`: those that a template writes.
    control: Option<Vec<String>>,
}

struct Named {
    source: String,
    /// Why it cannot be used.
    fault: Option<String>,
    /// Its control tokens, once they are needed.
    marks: OnceLock<Marks>,
}

/// Messages to render.
struct ChatRequest<'a> {
    name: &'a str,
    template: &'a Named,
    variables: Vec<(String, Value)>,
}

impl Chat {
    /// Compile templates. Returns warnings about those that cannot be used.
    pub fn new(files: &ChatFiles, now: Now) -> (Self, Vec<String>) {
        let mut templates = Templates::new(now);
        let compile = |(name, source): (&String, &String)| {
            let fault = templates.add(name, source).err();
            (name.clone(), Named { source: source.clone(), fault, marks: OnceLock::new() })
        };
        let named: BTreeMap<_, _> = files.templates.iter().map(compile).collect();
        let warn = |(name, named): (&String, &Named)| Some(unusable(name, named.fault.as_ref()?));
        let warnings = named.iter().filter_map(warn).collect();
        (Chat { templates, named, tokens: files.tokens.clone(), control: files.control.clone() }, warnings)
    }

    /// The names of its templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }

    /// The text of a request: messages, or an object that has them.
    pub fn render(&self, request: &str, generation: bool) -> Result<String> {
        self.run(self.request(parse(request)?, generation)?)
    }

    /// The tokens of a request. Control tokens in what the request says become plain text.
    pub fn encode(&self, text: &Text, request: &str, generation: bool) -> Result<Vec<i32>> {
        self.encode_request(text, self.request(parse(request)?, generation)?)
    }

    /// The same for an object whose messages are those of OpenAI's interface; see [`openai`].
    pub fn encode_openai(&self, text: &Text, request: &str, generation: bool) -> Result<Vec<i32>> {
        self.encode_request(text, self.request(openai::adapt(parse(request)?)?, generation)?)
    }

    fn encode_request(&self, text: &Text, mut request: ChatRequest) -> Result<Vec<i32>> {
        let marks = request.template.marks.get_or_init(|| {
            Marks::new(text, |token| match &self.control {
                Some(control) => control.iter().any(|name| name == token),
                None => request.template.source.contains(token) && !token.trim().is_empty(),
            })
        });
        for (_, value) in &mut request.variables {
            *value = marks.mark(value)?;
        }
        marks.encode(text, &self.run(request)?)
    }

    fn run(&self, ChatRequest { name, variables, .. }: ChatRequest) -> Result<String> {
        // Variables of the request replace special tokens.
        let tokens = self.tokens.iter().map(|(name, token)| (name.clone(), Value::from(token.as_str())));
        let refuse =
            |why| Error::InvalidArgument(format!("the chat template {name:?} does not render the messages: {why}"));
        self.templates.render(name, Value::from_pairs(tokens.chain(variables))).map_err(refuse)
    }

    fn request(&self, json: Value, generation: bool) -> Result<ChatRequest<'_>> {
        let mut parts: Vec<(String, Value)> = match json.kind() {
            ValueKind::Seq => vec![("messages".to_owned(), json)],
            ValueKind::Map => pairs(&json).collect(),
            kind => {
                return Err(refuse(format!(
                    "is JSON of the type {kind}; pass an array of messages, or an object that has it as \"messages\""
                )));
            }
        };
        let mut take = |name: &str| {
            let index = parts.iter().position(|(key, _)| key == name)?;
            Some(parts.remove(index).1).filter(|value| !value.is_none())
        };
        let messages = messages(take("messages"))?;
        let [tools, documents] = ["tools", "documents"].map(|name| objects(name, take(name)));
        let (tools, documents) = (tools?, documents?);
        let asked = take("template");
        let asked = asked.as_ref().map(|name| {
            name.as_str()
                .ok_or_else(|| refuse("has a \"template\" that is no string; let it be the name of a template"))
        });
        let (name, template) = self.choose(asked.transpose()?, tools.is_some())?;
        let lists = [("tools", tools), ("documents", documents)];
        let given = lists.iter().filter(|(_, list)| list.as_ref().is_some_and(Value::is_true)).map(|(name, _)| *name);
        given.chain(parts.iter().map(|(name, _)| &**name)).try_for_each(|each| check_variable(each, name, template))?;
        let mut variables = parts;
        variables.push(("messages".to_owned(), messages));
        variables.extend(lists.map(|(name, list)| (name.to_owned(), list.unwrap_or(Value::from(())))));
        variables.push(("add_generation_prompt".to_owned(), generation.into()));
        Ok(ChatRequest { name, template, variables })
    }

    /// The template that is asked for, or else the one that transformers takes.
    fn choose(&self, asked: Option<&str>, tools: bool) -> Result<(&str, &Named)> {
        let default = if tools && self.named.contains_key("tool_use") { "tool_use" } else { "default" };
        let name = asked.unwrap_or(default);
        let Some((name, template)) = self.named.get_key_value(name) else {
            let names: Vec<&str> = self.names().collect();
            return Err(Error::InvalidArgument(format!(
                "there is no chat template {name:?}; let \"template\" of the chat be one of {}",
                names.join(", ")
            )));
        };
        match &template.fault {
            None => Ok((name, template)),
            Some(fault) => Err(Error::Unsupported(unusable(name, fault))),
        }
    }
}

fn parse(json: &str) -> Result<Value> {
    serde_json::from_str(json).map_err(|error| Error::InvalidArgument(format!("messages_json is not JSON: {error}")))
}

fn unusable(name: &str, fault: &str) -> String {
    format!("the chat template {name:?} cannot be used: {fault}; mend its file, or replace it")
}

/// An error if a variable of a request would do nothing, because it is no variable of templates.
fn check_variable(name: &str, template: &str, Named { source, .. }: &Named) -> Result<()> {
    if name == "add_generation_prompt" {
        return Err(refuse("has \"add_generation_prompt\", which is an argument of the call; leave it out"));
    }
    if PARAMETERS.contains(&name) {
        return Err(refuse(format!(
            "has {name:?}, which is a parameter of transformers and no variable of templates; leave it out"
        )));
    }
    let is_part = |character: char| character == '_' || character.is_alphanumeric();
    let mut places = source.match_indices(name);
    let is_read = !name.is_empty()
        && places.any(|(at, _)| !source[..at].ends_with(is_part) && !source[at + name.len()..].starts_with(is_part));
    if is_read {
        return Ok(());
    }
    Err(refuse(format!(
        "has {name:?}, which the chat template {template:?} does not read, so it would do nothing; leave it out"
    )))
}

/// A list of objects of a request, if it has one.
fn objects(name: &str, list: Option<Value>) -> Result<Option<Value>> {
    let Some(list) = list else { return Ok(None) };
    if list.kind() != ValueKind::Seq {
        return Err(refuse(format!("has {name:?} that are no array; pass an array of objects")));
    }
    for (index, item) in list.try_iter().into_iter().flatten().enumerate() {
        if item.kind() != ValueKind::Map {
            return Err(refuse(format!("has {name}[{index}] of the type {}; pass an object", item.kind())));
        }
    }
    Ok(Some(list))
}

/// The messages as templates see them, which is how transformers prepares them: without keys that are null, and with
/// the reasoning under the names that templates read.
fn messages(list: Option<Value>) -> Result<Value> {
    let list = objects("messages", list)?.ok_or_else(|| refuse("has no \"messages\"; pass an array of messages"))?;
    if list.len() == Some(0) {
        return Err(refuse("has no message; pass at least one"));
    }
    let prepare = |message: Value| {
        let mut parts: Vec<(String, Value)> = pairs(&message).filter(|(_, value)| !value.is_none()).collect();
        let part = |parts: &[(String, Value)], name: &str| {
            parts.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
        };
        if let Some(reasoning) = REASONING.iter().find_map(|name| part(&parts, name)) {
            if part(&parts, "thinking").is_none() {
                parts.insert(0, ("thinking".to_owned(), reasoning.clone()));
            }
            parts.push(("reasoning_content".to_owned(), reasoning));
        }
        Value::from_pairs(parts)
    };
    Ok(list.try_iter().into_iter().flatten().map(prepare).collect())
}
