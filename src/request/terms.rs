//! What a server knows of a request before it reads the body.

/// What a body asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// The body of POST /v1/completions.
    Completion,
    /// The body of POST /v1/chat/completions.
    Chat,
}

/// What a server knows of a request, and how much it allows.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What the body asks for.
    pub endpoint: Endpoint,
    /// The name of the model. `None`: any name is fine, and the answer repeats it.
    pub model: Option<String>,
    /// The number that makes the id of the answer, and the seed of a request without one.
    pub number: u64,
    /// Seconds since 1970.
    pub created: u64,
    /// Most choices of all prompts together.
    pub max_choices: usize,
    /// Most tokens of a prompt.
    pub max_prompt_tokens: usize,
    /// Most tokens of a choice.
    pub max_tokens: usize,
}
