//! Errors as answers of a server.

use serde_json::json;

use crate::error::Error;

/// The status of HTTP.
pub fn status(error: &Error) -> u16 {
    match error {
        Error::InvalidArgument(_) | Error::Unsupported(_) | Error::ContextFull(_) => 400,
        Error::NotFound(_) => 404,
        Error::NoMemory(_) => 503,
        _ => 500,
    }
}

/// The body.
pub fn body(error: &Error) -> String {
    let kind = if status(error) < 500 { "invalid_request_error" } else { "server_error" };
    let code = match error {
        Error::ContextFull(_) => Some("context_length_exceeded"),
        Error::NotFound(_) => Some("model_not_found"),
        _ => None,
    };
    json!({ "error": { "message": error.to_string(), "type": kind, "param": null, "code": code } }).to_string()
}
