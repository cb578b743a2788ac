//! Whether models share one vocabulary: compares their tokenizers and the widths of their logits.

use std::collections::BTreeSet;
use std::path::Path;

use crate::error::{Error, Result};
use crate::files;
use crate::model::Model;
use crate::onnx::OnnxModel;
use crate::text::Text;

/// The tokens that end a text, which are those of all models, and what should be known of them.
pub(super) fn stop_tokens(models: &[OnnxModel], vocab_size: usize) -> (Vec<i32>, Vec<String>) {
    let named: BTreeSet<i32> = models.iter().flat_map(|model| model.export().stop_tokens.iter().copied()).collect();
    let known = |token: &i32| usize::try_from(*token).is_ok_and(|token| token < vocab_size);
    let (tokens, unknown): (Vec<i32>, Vec<i32>) = named.into_iter().partition(known);
    let never = |token| format!("stop token {token} is never produced, since not all models have it");
    let mut warnings: Vec<String> = unknown.into_iter().map(never).collect();
    if tokens.is_empty() {
        warnings.push(
            "no file of a model names a stop token that can be used, so only max_tokens or a full context ends a text; \
             put the model's generation_config.json beside it, or give sessions stop_tokens"
                .into(),
        );
    }
    (tokens, warnings)
}

/// What the models have in common.
pub(super) struct Agreement {
    /// The tokens are 0 to this less 1.
    pub(super) vocab_size: usize,
    pub(super) text: Option<Text>,
    pub(super) warnings: Vec<String>,
}

/// Compare vocabularies: the tokenizers by content, and the columns of the logits.
///
/// A model has as many tokens as its tokenizer says, if that is fewer than its logits have columns: the others are
/// padding. Of several models the smallest vocabulary decides, provided that tokenizers show that it is one.
pub(super) fn agree(models: &[OnnxModel]) -> Result<Agreement> {
    let Tokenizers { first, sizes, mut warnings } = tokenizers(models)?;
    let unknown = models.iter().filter(|model| model.export().tokenizer.is_none()).map(OnnxModel::name);
    let unknown: Vec<&str> = unknown.collect();
    // Without any tokenizer, the others are assumed to agree with the first model.
    let other = first.as_ref().map(|(name, _)| *name).or(unknown.first().copied()).unwrap_or("");
    warnings.extend(unknown.iter().skip(usize::from(first.is_none())).map(|name| {
        format!(
            "{name} came without a tokenizer.json, so its tokens are assumed to be those of {other}; put its own beside \
             it to have them compared"
        )
    }));
    let vocab_size = sizes.iter().copied().min().unwrap_or(0);
    let smallest = sizes.iter().position(|&size| size == vocab_size).map_or("", |index| models[index].name());
    for (model, &size) in models.iter().zip(&sizes).filter(|(_, size)| **size != vocab_size) {
        if let Some(unknown) = unknown.first() {
            return Err(Error::Model(format!(
                "the vocabularies differ: {} has {size} tokens, {smallest} has {vocab_size}, and {unknown} came without \
                 a tokenizer.json that could show whether the rest is padding (put it beside the model); models that \
                 decode together must share one vocabulary",
                model.name()
            )));
        }
        warnings.push(format!(
            "{} has {size} tokens, {smallest} has {vocab_size}: those from {vocab_size} on are never produced",
            model.name()
        ));
    }
    Ok(Agreement { vocab_size, text: first.map(|(_, text)| text), warnings })
}

/// What came with the models.
struct Tokenizers<'a> {
    /// The first one, and the name of its model.
    first: Option<(&'a str, Text)>,
    /// How many tokens each model has.
    sizes: Vec<usize>,
    warnings: Vec<String>,
}

/// Read all tokenizers, which must not differ.
fn tokenizers(models: &[OnnxModel]) -> Result<Tokenizers<'_>> {
    let mut first: Option<(&str, String, Text)> = None;
    let (mut sizes, mut warnings) = (Vec::new(), Vec::new());
    for model in models {
        let columns = model.vocab_size();
        let Some(path) = &model.export().tokenizer else {
            sizes.push(columns);
            continue;
        };
        let content = files::tokenizer(path).map_err(Error::Model)?;
        let tokens = match &first {
            Some((_, same, text)) if *same == content => text.vocab_size(),
            Some((other, _, text)) => {
                let own = Text::parse(path, &content)?;
                compare(other, text, model.name(), &own)?;
                own.vocab_size()
            }
            None => {
                let mut text = Text::parse(path, &content)?;
                let tokens = text.vocab_size();
                warnings.extend(configure(path, &mut text, model.name())?);
                first = Some((model.name(), content, text));
                tokens
            }
        };
        warnings.extend(padding(model.name(), columns, tokens));
        sizes.push(columns.min(tokens));
    }
    Ok(Tokenizers { first: first.map(|(name, _, text)| (name, text)), sizes, warnings })
}

/// Refuse two tokenizers that differ.
fn compare(name: &str, text: &Text, other_name: &str, other: &Text) -> Result<()> {
    let Some((id, own, others)) = text.first_difference(other) else { return Ok(()) };
    let show = |token: Option<String>| token.map_or("missing".into(), |token| format!("{token:?}"));
    Err(Error::Model(format!(
        "the tokenizers differ: token {id} is {} to {name} but {} to {other_name}; models that decode together must \
         share one vocabulary (if tokens were only added behind, put the smaller tokenizer.json beside both)",
        show(own),
        show(others)
    )))
}

/// A warning if logits and tokenizer seem to be of different models.
fn padding(name: &str, columns: usize, tokens: usize) -> Option<String> {
    if columns > tokens.saturating_add(tokens / 4) {
        Some(format!(
            "{name} has {columns} columns of logits, but its tokenizer only {tokens} tokens; is that the right \
             tokenizer.json?"
        ))
    } else if tokens > columns {
        Some(format!(
            "the tokenizer of {name} has {tokens} tokens, but its logits only {columns} columns: a text that has any \
             of the others is refused"
        ))
    } else {
        None
    }
}

/// Let a tokenizer be as the `tokenizer_config.json` beside it says. Returns warnings of what is not done.
fn configure(tokenizer: &Path, text: &mut Text, name: &str) -> Result<Vec<String>> {
    let path = tokenizer.with_file_name("tokenizer_config.json");
    // Without such a file it says nothing. One that cannot be read was refused when stop tokens were looked for in it.
    let config = files::configuration(&path).unwrap_or_default();
    let warnings = text.configure(tokenizer, &config)?;
    Ok(warnings.into_iter().map(|warning| format!("{name}: {warning}")).collect())
}
