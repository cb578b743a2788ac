//! The error type of the crate, with the codes of the C interface, which never change.

use std::any::Any;

/// An error. Its message names the thing that is wrong, and how to mend it where that is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An argument of a call is wrong.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The engine configuration is wrong.
    #[error("configuration: {0}")]
    Config(String),
    /// A model cannot be loaded, is not a language model, or does not fit the other models.
    #[error("model: {0}")]
    Model(String),
    /// ONNX Runtime is missing or failed.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
    /// The tokens do not fit into the context of the models.
    #[error("context full: {0}")]
    ContextFull(String),
    /// Logits were NaN or infinite, or a distribution was empty.
    #[error("numeric: {0}")]
    Numeric(String),
    /// Another thread is using the session or the text stream.
    #[error("busy: another thread is using the object; let one thread at a time use a session or a text stream")]
    Busy,
    /// The request is valid but not supported by this version.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// The buffer of a caller is too small.
    #[error("buffer too small: {needed} {unit} needed, {capacity} given")]
    BufferTooSmall {
        /// The capacity that would have been enough.
        needed: usize,
        /// The capacity of the buffer.
        capacity: usize,
        /// The unit of both: `tokens` or `bytes`.
        unit: &'static str,
    },
    /// An earlier call panicked and left the session in an unknown state.
    #[error("poisoned: an earlier call on this session panicked; free it and make a new one")]
    Poisoned,
    /// A panic inside the library, which is a bug of the library.
    #[error("internal error (please report): {0}")]
    Internal(String),
    /// A function of the caller failed.
    #[error("callback: {0}")]
    Callback(String),
    /// The sequences of a model use all memory that its cache may take.
    #[error("no memory: {0}")]
    NoMemory(String),
    /// A request names a model that is not there.
    #[error("not found: {0}")]
    NotFound(String),
}

impl Error {
    /// The error of a panic, with its message.
    pub fn of_panic(panic: &(dyn Any + Send)) -> Self {
        let message = panic.downcast_ref::<&str>().map(|message| message.to_string());
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        Error::Internal(message.unwrap_or_else(|| "a panic without a message".into()))
    }

    /// The code of this error in the C interface. The values never change.
    pub fn code(&self) -> i32 {
        match self {
            Error::InvalidArgument(_) => 1,
            Error::Config(_) => 2,
            Error::Model(_) => 3,
            Error::Runtime(_) => 4,
            Error::ContextFull(_) => 5,
            Error::Numeric(_) => 6,
            Error::Busy => 7,
            Error::Unsupported(_) => 8,
            Error::BufferTooSmall { .. } => 9,
            Error::Poisoned => 10,
            Error::Internal(_) => 11,
            Error::Callback(_) => 12,
            Error::NoMemory(_) => 13,
            Error::NotFound(_) => 14,
        }
    }
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
