//! Compiled constraints, which sessions share.

use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::control::Constraints;
use crate::error::Result;
use crate::grammar::{Grammar, Grammars, Language};
use crate::text::Text;

/// Grammars that are kept: those that were used last.
const MOST_KEPT: usize = 64;

/// Compiles the constraints of an engine, and keeps the last ones.
#[derive(Default)]
pub struct CompiledConstraints {
    /// Made when the first constraint is asked for.
    grammars: OnceLock<Result<Grammars>>,
    /// The one that was used last is the last one.
    kept: Mutex<Vec<(Language, String, Grammar)>>,
}

impl CompiledConstraints {
    /// The constraint of a session with these stop tokens.
    ///
    /// [`Error::InvalidArgument`](crate::error::Error::InvalidArgument) if it cannot be used,
    /// [`Error::Unsupported`](crate::error::Error::Unsupported) if the tokenizer does not allow any.
    pub fn get(
        &self,
        text: Result<&Arc<Text>>,
        vocab_size: usize,
        (language, source): (Language, &str),
        stop_tokens: &[i32],
    ) -> Result<Constraints> {
        let grammars = self.grammars.get_or_init(|| Grammars::new(text?, vocab_size));
        let grammars = grammars.as_ref().map_err(Clone::clone)?;
        let is_it = |(of, text, _): &(Language, String, Grammar)| *of == language && text == source;
        let take = || {
            let mut kept = self.kept.lock();
            kept.iter().position(is_it).map(|place| kept.remove(place).2)
        };
        let grammar = take().map_or_else(|| grammars.compile(language, source), Ok)?;
        let mut kept = self.kept.lock();
        kept.retain(|known| !is_it(known));
        if kept.len() == MOST_KEPT {
            kept.remove(0);
        }
        kept.push((language, source.to_owned(), grammar.clone()));
        drop(kept);
        Ok(grammars.constraints(&grammar, stop_tokens))
    }
}
