//! The special tokens that a `tokenizer_config.json` names.

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

/// Keys that name one token each.
const KEYS: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "cls_token", "pad_token", "mask_token"];

/// Keys that name several, in a list or by names of their own.
const LISTS: [&str; 2] = ["additional_special_tokens", "extra_special_tokens"];

/// Make the tokens special that the file calls so, as transformers does. Returns those that the vocabulary lacks, which
/// transformers would add behind it.
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

fn named(config: &Value) -> impl Iterator<Item = &Value> {
    let lists = LISTS.iter().flat_map(|key| {
        let (list, object) = (config[key].as_array(), config[key].as_object());
        list.into_iter().flatten().chain(object.into_iter().flat_map(|object| object.values()))
    });
    let listed = config["added_tokens_decoder"].as_object().into_iter().flat_map(|tokens| tokens.values());
    let listed = listed.filter(|token| token["special"].as_bool() == Some(true));
    KEYS.iter().map(|key| &config[key]).chain(lists).chain(listed)
}

/// A special token. What `tokenizer.json` says of it stays, as in transformers; otherwise it is as this file says.
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
