//! Constraints by JSON schemas, regular expressions, grammars and lists of choices, with the library llguidance.

mod matcher;
mod trie;

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::Value;

use self::matcher::{Compiled, Follower, MOST_WORK, goes_back};
use self::trie::TokenTrie;
use crate::control::Constraints;
use crate::error::{Error, Result};
use crate::text::Text;

/// The language of a constraint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Language {
    /// A JSON schema; the text is a JSON value.
    JsonSchema,
    /// A regular expression, which the whole text matches.
    Regex,
    /// A grammar in the dialect of Lark that llguidance has.
    Lark,
    /// A JSON array of strings, one of which is the text.
    Choices,
}

impl Language {
    fn name(self) -> &'static str {
        match self {
            Language::JsonSchema => "JSON schema",
            Language::Regex => "regular expression",
            Language::Lark => "Lark grammar",
            Language::Choices => "list of choices",
        }
    }
}

/// A constraint that was compiled.
#[derive(Clone)]
pub struct Grammar(Arc<Compiled>);

/// Compiles constraints for one tokenizer.
pub struct Grammars {
    factory: ParserFactory,
    /// What the grammars have kept.
    kept: Arc<AtomicUsize>,
}

impl Grammars {
    /// For the tokens of a tokenizer, of which the models have the first `vocab_size`.
    ///
    /// [`Error::Unsupported`] if the bytes of its tokens are not known.
    pub fn new(text: &Arc<Text>, vocab_size: usize) -> Result<Self> {
        let trie = TokenTrie::new(text, vocab_size)?;
        let mut factory = ParserFactory::new_simple(&trie.into_env())
            .map_err(|error| Error::Unsupported(format!("constraints cannot be had with this tokenizer: {error}")))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        // What earlier texts have left counts too, and must not end a text early.
        factory.limits_mut().max_lexer_states += MOST_WORK as usize;
        Ok(Grammars { factory, kept: Arc::default() })
    }

    /// The constraint of a grammar. `stop_tokens` are those of the session: they may come where the text may end.
    pub fn constraints(&self, grammar: &Grammar, stop_tokens: &[i32]) -> Constraints {
        let stop_tokens: Arc<[u32]> = stop_tokens.iter().map(|&token| token as u32).collect();
        let (end, Grammar(matcher)) = (self.factory.tok_env().eos_token(), grammar.clone());
        Constraints::new(move || Box::new(Follower::new(&matcher, &stop_tokens, end)))
    }

    /// Compile a constraint. [`Error::InvalidArgument`] says what is wrong with it.
    pub fn compile(&self, language: Language, source: &str) -> Result<Grammar> {
        let refuse = |why: String| {
            // It may quote the whole source.
            let end = why.char_indices().nth(400).map_or(why.len(), |(end, _)| end);
            let why = &why[..end];
            Error::InvalidArgument(format!("constraint is not a {} that can be used: {why}", language.name()))
        };
        let json = || serde_json::from_str::<Value>(source).map_err(|error| refuse(error.to_string()));
        let grammar = match language {
            Language::JsonSchema => TopLevelGrammar::from_json_schema(with_bounded_space(json()?)),
            Language::Regex => TopLevelGrammar::from_regex(source),
            Language::Lark => TopLevelGrammar::from_lark(source.to_owned()),
            Language::Choices => TopLevelGrammar::from_lark(choices(&json()?).map_err(refuse)?),
        };
        let matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(why) = matcher.get_error() {
            return Err(refuse(why.trim().replace("\n", "; ").replace("; <non-verbose/>", "")));
        }
        if !goes_back(&matcher, self.factory.tok_env().eos_token()) {
            return Err(refuse(
                "it has max_tokens= or stop=, which do not go with drafts that are taken back; use suffix= or a \
                 quantifier such as {0,9}"
                    .into(),
            ));
        }
        Ok(Grammar(Arc::new(Compiled::new(matcher, &self.kept))))
    }
}

/// White space between the parts of a JSON value: enough for an indented one, and not an endless run of it.
const SPACE: &str = r"[\x20\x0A\x0D\x09]{1,40}";

/// A schema that bounds white space, unless it says itself what is allowed.
fn with_bounded_space(mut schema: Value) -> Value {
    if let Some(members) = schema.as_object_mut() {
        members.entry("x-guidance").or_insert_with(|| serde_json::json!({ "whitespace_pattern": SPACE }));
    }
    schema
}

/// The grammar of a list of choices.
fn choices(list: &Value) -> std::result::Result<String, String> {
    let list =
        list.as_array().filter(|list| !list.is_empty()).ok_or("it must be a JSON array with a string or more")?;
    let choice = |(index, choice): (usize, &Value)| match choice.as_str() {
        Some("") => Err(format!("choice {index} is empty")),
        // A string of JSON is one of Lark, which has no DEL in strings.
        Some(_) => Ok(choice.to_string().replace('\x7f', "\\u007f")),
        None => Err(format!("choice {index} is {choice}; it must be a string")),
    };
    let choices: Vec<String> = list.iter().enumerate().map(choice).collect::<std::result::Result<_, _>>()?;
    Ok(format!("start: {}", choices.join(" | ")))
}
