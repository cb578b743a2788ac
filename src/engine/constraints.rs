//! Compiled constraints, which sessions share.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

use crate::control::Constraints;
use crate::error::Result;
use crate::grammar::{Grammar, Grammars, Language};
use crate::text::Text;

/// Grammars that are kept. The memory is cleared when it is full.
const MOST_KEPT: usize = 64;

/// Compiles the constraints of an engine, and keeps the last ones.
#[derive(Default)]
pub struct CompiledConstraints {
    /// Made when the first constraint is asked for.
    grammars: OnceLock<Result<Grammars>>,
    kept: Mutex<HashMap<(Language, String), Grammar>>,
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
        let key = (language, source.to_owned());
        let known = self.kept.lock().get(&key).cloned();
        let grammar = match known {
            Some(grammar) => grammar,
            None => {
                let grammar = grammars.compile(language, source)?;
                let mut kept = self.kept.lock();
                if kept.len() >= MOST_KEPT {
                    kept.clear();
                }
                kept.insert(key, grammar.clone());
                grammar
            }
        };
        Ok(grammars.constraints(&grammar, stop_tokens))
    }
}
