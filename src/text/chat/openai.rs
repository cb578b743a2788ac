//! Messages of OpenAI's interface as templates expect them.

use minijinja::Value;
use minijinja::value::ValueKind;

use super::values::{pairs, refuse};
use crate::error::{Error, Result};

/// The roles of messages. A template may join a role to text that makes a control token.
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

/// Adapt the messages of a request. Templates are written for content that is a string, and for arguments of calls that
/// are objects, but clients send parts of content, and arguments as a string of JSON.
pub fn adapt(request: Value) -> Result<Value> {
    let adapted = pairs(&request).map(|(key, value)| match &*key {
        "messages" if value.kind() == ValueKind::Seq => Ok((key, each(&value, message)?)),
        _ => Ok((key, value)),
    });
    Ok(Value::from_pairs(adapted.collect::<Result<Vec<_>>>()?))
}

fn each(list: &Value, adapt: impl Fn(usize, Value) -> Result<Value>) -> Result<Value> {
    let items = list.try_iter().into_iter().flatten().enumerate();
    Ok(Value::from(items.map(|(index, item)| adapt(index, item)).collect::<Result<Vec<_>>>()?))
}

fn message(index: usize, message: Value) -> Result<Value> {
    if message.kind() != ValueKind::Map {
        return Ok(message);
    }
    let role = message.get_attr("role").unwrap_or_default();
    if role.as_str().is_none_or(|role| !ROLES.contains(&role)) {
        return Err(wrong(index, format!("the role {role:?}; let it be one of {}", ROLES.join(", "))));
    }
    let adapted = pairs(&message).map(|(key, value)| {
        let value = match &*key {
            "content" => content(index, value)?,
            "tool_calls" => tool_calls(index, value)?,
            _ => value,
        };
        Ok((key, value))
    });
    Ok(Value::from_pairs(adapted.collect::<Result<Vec<_>>>()?))
}

/// The content as text, or nothing. A template would print whatever else it is.
fn content(index: usize, content: Value) -> Result<Value> {
    match content.kind() {
        ValueKind::Seq => text_of(index, &content),
        ValueKind::String | ValueKind::None => Ok(content),
        kind => Err(wrong(index, format!("content of the type {kind}; let it be a string or an array of parts"))),
    }
}

fn tool_calls(index: usize, calls: Value) -> Result<Value> {
    let are_objects = || calls.try_iter().is_ok_and(|mut calls| calls.all(|call| call.kind() == ValueKind::Map));
    match calls.kind() {
        ValueKind::None => Ok(calls),
        ValueKind::Seq if are_objects() => each(&calls, |_, call| Ok(tool_call(call))),
        _ => Err(wrong(index, "tool_calls that are no array of objects".into())),
    }
}

/// The text of parts, a line each.
fn text_of(index: usize, parts: &Value) -> Result<Value> {
    let mut lines = Vec::new();
    for part in parts.try_iter().into_iter().flatten() {
        let [kind, text] = ["type", "text"].map(|key| part.get_attr(key).unwrap_or_default());
        match text.as_str() {
            Some(text) if kind.as_str() == Some("text") => lines.push(text.to_owned()),
            _ => return Err(wrong(index, "content that is no text; the models read text only".into())),
        }
    }
    Ok(Value::from(lines.join("\n")))
}

fn tool_call(call: Value) -> Value {
    let function = |function: Value| {
        let adapted = pairs(&function).map(|(key, value)| {
            let read = value.as_str().filter(|_| key == "arguments").map(serde_json::from_str::<Value>);
            let object = read.and_then(Result::ok).filter(|read| read.kind() == ValueKind::Map);
            (key, object.unwrap_or(value))
        });
        Value::from_pairs(adapted.collect::<Vec<_>>())
    };
    let adapted = pairs(&call).map(|(key, value)| match &*key {
        "function" if value.kind() == ValueKind::Map => (key, function(value)),
        _ => (key, value),
    });
    Value::from_pairs(adapted.collect::<Vec<_>>())
}

fn wrong(index: usize, what: String) -> Error {
    refuse(format!("has messages[{index}] with {what}"))
}
