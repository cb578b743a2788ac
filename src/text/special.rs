//! Applies the special tokens that a `tokenizer_config.json` names to a tokenizer.

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

/// Keys that name one token each.
const KEYS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "pad_token", "mask_token"];

/// Keys that name several tokens, in a list or an object.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Mark the tokens as special that the file names, as transformers does. Returns the names that the vocabulary does not
/// have. Transformers would add tokens for them at the end of the vocabulary.
pub fn set(tokenizer: &mut Tokenizer, config: &Value) -> tokenizers::Result<Vec<String>> {
    let (mut tokens, mut missing) = (Vec::new(), Vec::new());
    for value in named(config) {
        let Some(name) = value.as_str().or(value["content"].as_str()).filter(|name| !name.is_empty()) else { continue };
        match tokenizer.token_to_id(name) {
            Some(id) => tokens.push(token(tokenizer, name, id, value)),
            None => missing.push(name.to_owned()),
        }
    }
    tokenizer.add_special_tokens(tokens)?;
    missing.sort();
    missing.dedup();
    Ok(missing)
}

/// The values of the file that name special tokens: a string, or an object with `content`.
fn named(config: &Value) -> impl Iterator<Item = &Value> {
    let lists = LISTS.iter().flat_map(|key| {
        let (list, object) = (config[key].as_array(), config[key].as_object());
        list.into_iter().flatten().chain(object.into_iter().flat_map(|object| object.values()))
    });
    let listed = config["added_tokens_decoder"].as_object().into_iter().flat_map(|tokens| tokens.values());
    let listed = listed.filter(|token| token["special"].as_bool() == Some(true));
    KEYS.iter().map(|key| &config[key]).chain(lists).chain(listed)
}

/// A special token. Its settings are those of `tokenizer.json` if it has some, as in transformers, or else of this
/// file.
fn token(tokenizer: &Tokenizer, name: &str, id: u32, value: &Value) -> AddedToken {
    if let Some(known) = tokenizer.get_added_vocabulary().get_added_tokens_decoder().get(&id) {
        return AddedToken { special: true, ..known.clone() };
    }
    let is = |key: &str| value[key].as_bool().unwrap_or(false);
    AddedToken::from(name, true)
        .single_word(is("single_word"))
        .lstrip(is("lstrip"))
        .rstrip(is("rstrip"))
        .normalized(is("normalized"))
}
