//! The error type of the crate, with the pinned codes of the C interface.

/// What went wrong. Every message names the thing that is wrong and, where there is one, the mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// An argument of a call is wrong.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// The engine configuration is wrong.
    #[error("configuration: {0}")]
    Config(String),
    /// A model cannot be loaded, is no language model, or does not fit the others.
    #[error("model: {0}")]
    Model(String),
    /// ONNX Runtime is missing or failed.
    #[error("ONNX Runtime: {0}")]
    Runtime(String),
    /// The context of the models has no room for the tokens.
    #[error("context full: {0}")]
    ContextFull(String),
    /// Logits were NaN or infinite, or a distribution was empty.
    #[error("numeric: {0}")]
    Numeric(String),
    /// A session or stream is in use on another thread.
    #[error("busy: in use on another thread; let one thread at a time use a session or a stream")]
    Busy,
    /// The request is valid but not supported by this version.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// A caller's buffer is too small.
    #[error("buffer too small: {needed} {unit} needed, {capacity} given")]
    BufferTooSmall {
        /// What would have fitted.
        needed: usize,
        /// What was given.
        capacity: usize,
        /// What is counted: `tokens` or `bytes`.
        unit: &'static str,
    },
    /// A panic inside an earlier call left the session in an unknown state.
    #[error("poisoned: an earlier call on this session panicked; free it and make a new one")]
    Poisoned,
    /// A panic inside the library: a bug of ours.
    #[error("internal error (please report): {0}")]
    Internal(String),
    /// A function of the caller failed.
    #[error("callback: {0}")]
    Callback(String),
}

impl Error {
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
        }
    }
}

/// A result whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;
