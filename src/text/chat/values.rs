//! Values of a request, and what is wrong with them.

use minijinja::Value;

use crate::error::Error;

/// The items of an object.
pub fn pairs(object: &Value) -> impl Iterator<Item = (String, Value)> {
    let keys = object.try_iter().into_iter().flatten();
    keys.map(|key| (key.to_string(), object.get_item(&key).unwrap_or_default()))
}

/// The error that says what is wrong.
pub fn refuse(what: impl std::fmt::Display) -> Error {
    Error::InvalidArgument(format!("the chat {what}"))
}
