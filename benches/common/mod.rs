//! What benchmarks of many sessions have in common.

use std::sync::Arc;

use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::{Options, Session};
use cos::rows::Sampler;

pub type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The strategy of a name.
pub fn strategy(name: &str) -> Result<Strategy> {
    match name {
        "standard" => Ok(Strategy::Standard),
        "speculative" => Ok(Strategy::Speculative),
        "cos" => Ok(Strategy::Cos),
        "auto" => Ok(Strategy::Auto),
        other => Err(format!("there is no strategy {other}").into()),
    }
}

/// A session that decodes so many tokens behind a prompt of its own, sampled at temperature 1.
pub fn start(engine: &Arc<Engine>, strategy: Strategy, index: usize, prompt: usize, tokens: usize) -> Result<Session> {
    let options = Options {
        strategy,
        sampler: Sampler::new(1.0, 0, 0.0, 0.0)?,
        seed: index as u64,
        max_tokens: tokens,
        stop_tokens: Some(Vec::new()),
        ..Options::default()
    };
    let mut session = Session::new(engine, &options)?;
    let vocabulary = engine.vocab_size();
    let token = |place: usize| (100 + (31 * index + 7 * place + index * place) % (vocabulary - 100)) as i32;
    session.prompt(&(0..prompt).map(token).collect::<Vec<_>>())?;
    Ok(session)
}
