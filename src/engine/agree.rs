//! Checks that models share one vocabulary: compares their tokenizers and the columns of their logits.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::files;
use crate::model::Model;
use crate::onnx::OnnxModel;
use crate::process;
use crate::text::Text;
use crate::text::chat::{Chat, ChatFiles};

/// The stop tokens of all models together, and warnings about them.
pub(super) fn stop_tokens(models: &[OnnxModel], vocab_size: usize) -> (Vec<i32>, Vec<String>) {
    let named: BTreeSet<i32> = models.iter().flat_map(|model| model.export().stop_tokens.iter().copied()).collect();
    let known = |token: &i32| usize::try_from(*token).is_ok_and(|token| token < vocab_size);
    let (tokens, unknown): (Vec<i32>, Vec<i32>) = named.into_iter().partition(known);
    let never_produced = |token| format!("stop token {token} is never produced, because not all models have it");
    let mut warnings: Vec<String> = unknown.into_iter().map(never_produced).collect();
    if tokens.is_empty() {
        warnings.push(
            "the files of the models name no stop token that can be used, so a text ends only at max_tokens or at a \
             full context; put the model's generation_config.json beside it, or set stop_tokens for each session"
                .into(),
        );
    }
    (tokens, warnings)
}

/// The vocabulary and the tokenizer that the models have in common.
pub(super) struct Agreement {
    /// Tokens are 0 to `vocab_size - 1`.
    pub(super) vocab_size: usize,
    /// The tokenizer of the first model that has one.
    pub(super) text: Option<Text>,
    /// The chat templates of the first model that has some.
    pub(super) chat: Option<Chat>,
    pub(super) warnings: Vec<String>,
}

/// Compare the vocabularies of models: the content of their tokenizers, and the columns of their logits.
///
/// A model has as many tokens as its tokenizer. Further columns of its logits are padding. If the numbers differ
/// between models, the smallest vocabulary is the common one, provided that every model has a tokenizer to compare.
pub(super) fn agree(models: &[OnnxModel]) -> Result<Agreement> {
    let Tokenizers { first, chat, sizes, mut warnings } = tokenizers(models)?;
    let chat = chat.map(|(name, files)| {
        let (chat, faults) = Chat::new(&files, process::local_time);
        warnings.extend(faults.into_iter().map(|fault| format!("{name}: {fault}")));
        chat
    });
    let unknown = models.iter().filter(|model| model.export().tokenizer.is_none()).map(OnnxModel::name);
    let unknown: Vec<&str> = unknown.collect();
    // A model without a tokenizer is assumed to agree with the first model that has one, or else with the first model.
    let reference = first.as_ref().map(|(name, _)| *name).or(unknown.first().copied()).unwrap_or("");
    warnings.extend(unknown.iter().skip(usize::from(first.is_none())).map(|name| {
        format!(
            "{name} came without a tokenizer.json, so its tokens are assumed to be those of {reference}; put its own \
             tokenizer.json beside it to have them compared"
        )
    }));
    let vocab_size = sizes.iter().copied().min().unwrap_or(0);
    let smallest = sizes.iter().position(|&size| size == vocab_size).map_or("", |index| models[index].name());
    for (model, &size) in models.iter().zip(&sizes).filter(|(_, size)| **size != vocab_size) {
        if let Some(unknown) = unknown.first() {
            return Err(Error::Model(format!(
                "the vocabularies differ: {} has {size} tokens, {smallest} has {vocab_size}, and {unknown} came \
                 without a tokenizer.json, which would show whether the rest is padding; models that decode together \
                 must share one vocabulary, so put the tokenizer.json of {unknown} beside it, or use another model",
                model.name()
            )));
        }
        warnings.push(format!(
            "{} has {size} tokens, but {smallest} has {vocab_size}, so tokens from {vocab_size} on are never produced",
            model.name()
        ));
    }
    Ok(Agreement { vocab_size, text: first.map(|(_, text)| text), chat, warnings })
}

/// The tokenizers that came with the models.
struct Tokenizers<'a> {
    /// The first tokenizer, and the name of its model.
    first: Option<(&'a str, Text)>,
    /// The first chat templates, and the name of their model.
    chat: Option<(&'a str, ChatFiles)>,
    /// The number of tokens of each model.
    sizes: Vec<usize>,
    warnings: Vec<String>,
}

/// Read the tokenizers of all models. It is an error if two of them differ.
fn tokenizers(models: &[OnnxModel]) -> Result<Tokenizers<'_>> {
    let mut first: Option<(&str, String, Text)> = None;
    let mut chat: Option<(&str, ChatFiles)> = None;
    let (mut sizes, mut warnings) = (Vec::new(), Vec::new());
    for model in models {
        let columns = model.vocab_size();
        let Some(path) = &model.export().tokenizer else {
            sizes.push(columns);
            continue;
        };
        let content = files::tokenizer(path).map_err(Error::Model)?;
        let tokens = match &first {
            Some((_, first_content, text)) if *first_content == content => text.vocab_size(),
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
        warnings.extend(find_chat(path, model.name(), &mut chat)?);
        sizes.push(columns.min(tokens));
    }
    Ok(Tokenizers { first: first.map(|(name, _, text)| (name, text)), chat, sizes, warnings })
}

/// An error if two tokenizers differ.
fn compare(name: &str, text: &Text, other_name: &str, other: &Text) -> Result<()> {
    let Some((id, one, another)) = text.first_difference(other) else { return Ok(()) };
    let show = |token: Option<String>| token.map_or("missing".into(), |token| format!("{token:?}"));
    Err(Error::Model(format!(
        "the tokenizers differ: token {id} is {} to {name} but {} to {other_name}; models that decode together must \
         share one vocabulary (if one only has more tokens at the end, put the smaller tokenizer.json beside both)",
        show(one),
        show(another)
    )))
}

/// A warning if logits and tokenizer seem to belong to different models.
fn padding(name: &str, columns: usize, tokens: usize) -> Option<String> {
    if columns > tokens.saturating_add(tokens / 4) {
        Some(format!(
            "{name} has {columns} columns of logits, but its tokenizer has only {tokens} tokens; check that the \
             tokenizer.json is that of the model"
        ))
    } else if tokens > columns {
        Some(format!(
            "the tokenizer of {name} has {tokens} tokens, but its logits have only {columns} columns, so a text with a \
             token from {columns} on is refused"
        ))
    } else {
        None
    }
}

/// The `tokenizer_config.json` beside a tokenizer.
fn config(tokenizer: &Path) -> Value {
    // An error here means that there is no such file: one that cannot be read was refused when its stop tokens were
    // read.
    files::configuration(&tokenizer.with_file_name("tokenizer_config.json")).unwrap_or_default()
}

/// Find the chat templates beside a tokenizer. The first model that has some decides. Returns a warning if those of
/// this model are others.
fn find_chat<'a>(tokenizer: &Path, name: &'a str, first: &mut Option<(&'a str, ChatFiles)>) -> Result<Option<String>> {
    let files = ChatFiles::beside(tokenizer, &config(tokenizer)).map_err(Error::Model)?;
    if files.templates.is_empty() {
        return Ok(None);
    }
    let (chosen, known) = first.get_or_insert_with(|| (name, files.clone()));
    Ok((*known != files).then(|| {
        format!("{name} has other chat templates or special tokens than {chosen}, whose templates are used for both")
    }))
}

/// Apply the `tokenizer_config.json` beside a tokenizer. Returns warnings about settings that are not supported.
fn configure(tokenizer: &Path, text: &mut Text, name: &str) -> Result<Vec<String>> {
    let warnings = text.configure(tokenizer, &config(tokenizer))?;
    Ok(warnings.into_iter().map(|warning| format!("{name}: {warning}")).collect())
}
