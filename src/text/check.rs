//! Checks a `tokenizer.json` before the tokenizers library reads it, because the library trusts the file.
//!
//! A wrong merge makes the library build a string that is not UTF-8, which is undefined behaviour. It allocates any
//! size that is declared, and lets parts multiply a text without limit. The other faults make it panic when a text
//! comes.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

use super::growth;

/// The fault that was found.
type Check<T = ()> = Result<T, String>;

/// The largest `max_input_chars_per_word` of WordPiece. Models have 100. The time grows with the third power of it.
const MAX_WORD_CHARS: u64 = 1000;

/// Most tokens that a template may add to a text.
const MAX_ADDED_TOKENS: usize = 1024;

/// The parts that are checked. A duplicate key is an error, because the library might use the other one.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Option<ModelPart<'a>>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
    decoder: Option<Value>,
}

#[derive(Deserialize)]
struct ModelPart<'a> {
    #[serde(borrow)]
    vocab: Option<&'a RawValue>,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
    continuing_subword_prefix: Option<String>,
    max_input_chars_per_word: Option<Value>,
}

/// A string that is copied only if it has escapes, because a file has hundreds of thousands.
#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Token<'a>(#[serde(borrow)] Cow<'a, str>);

/// Check the content of a `tokenizer.json` for faults that the library does not report itself.
pub fn check(content: &str) -> Check {
    if !content.trim_start().starts_with('{') {
        return Err(not_a_tokenizer(content));
    }
    let file: File = serde_json::from_str(content).map_err(|error| error.to_string())?;
    if file.model.is_none() {
        return Err(not_a_tokenizer(content));
    }
    if let Some(ModelPart { vocab: Some(vocab), merges: Some(merges), continuing_subword_prefix, .. }) = &file.model {
        let prefix = continuing_subword_prefix.as_deref().unwrap_or("");
        check_merges(vocab.get(), merges.get(), prefix).map_err(|why| format!("its merges: {why}"))?;
    }
    let word = file.model.and_then(|model| model.max_input_chars_per_word);
    if let Some(word) = word.filter(|word| word.as_u64().is_some_and(|letters| letters > MAX_WORD_CHARS)) {
        return Err(format!("its max_input_chars_per_word is {word}, and the limit is {MAX_WORD_CHARS}"));
    }
    let parts = [&file.normalizer, &file.pre_tokenizer, &file.post_processor];
    parts.into_iter().flatten().try_for_each(check_parts)?;
    growth::check("normalizer and pre_tokenizer", file.normalizer.iter().chain(&file.pre_tokenizer))?;
    growth::check("decoder", &file.decoder)
}

fn not_a_tokenizer(content: &str) -> String {
    let start: String = content.trim().chars().take(60).collect();
    format!(
        "it is JSON, but not a tokenizer, because it has no \"model\" ({start}); replace it by the model's own file"
    )
}

/// Check that the two tokens of each merge make a token: the first, and then the second without the prefix that marks
/// tokens within a word.
fn check_merges(vocab: &str, merges: &str, prefix: &str) -> Check {
    let vocab: HashMap<Token, IgnoredAny> = serde_json::from_str(vocab).map_err(|error| error.to_string())?;
    let mut whole = String::new();
    let mut check = |left: &str, right: &str| {
        let rest = right.get(prefix.len()..).ok_or_else(|| {
            format!("{right:?} behind {left:?} does not begin with the continuing_subword_prefix, {prefix:?}")
        })?;
        whole.clear();
        whole.extend([left, rest]);
        let known = vocab.contains_key(&Token(Cow::Borrowed(&whole)));
        if known { Ok(()) } else { Err(format!("{left:?} and {right:?} make {whole:?}, which is not a token")) }
    };
    if let Ok(pairs) = serde_json::from_str::<Vec<(Token, Token)>>(merges) {
        return pairs.iter().try_for_each(|(left, right)| check(&left.0, &right.0));
    }
    // In the older layout, one string has both tokens.
    let lines: Vec<Token> = serde_json::from_str(merges).map_err(|error| error.to_string())?;
    lines.iter().filter(|line| !line.0.starts_with("#version")).try_for_each(|line| {
        let (left, right) = line.0.split_once(' ').ok_or_else(|| format!("{:?} is not two tokens", line.0))?;
        check(left, right)
    })
}

/// Check every object of a part. Parts may be nested, and the library may recognise a part by its keys instead of its
/// type.
fn check_parts(part: &Value) -> Check {
    match part {
        Value::Array(parts) => parts.iter().try_for_each(check_parts),
        Value::Object(keys) => {
            if part["type"] == "FixedLength" && part["length"] == 0 {
                return Err("its pre-tokenizer FixedLength has a length of 0".into());
            }
            if let Some(table) = part["precompiled_charsmap"].as_str() {
                growth::replacements(table)?;
            }
            if let Some(template) = part["single"].as_array() {
                check_template(template, &part["special_tokens"])?;
            }
            keys.values().try_for_each(check_parts)
        }
        _ => Ok(()),
    }
}

/// Check that the template for a single text has the text once, and only special tokens that it defines.
fn check_template(pieces: &[Value], special: &Value) -> Check {
    let (mut texts, mut added) = (0, 0);
    for piece in pieces {
        if let Some(name) = piece["SpecialToken"]["id"].as_str() {
            let (ids, tokens) = (special[name]["ids"].as_array(), special[name]["tokens"].as_array());
            if ids.is_none() || ids.map(Vec::len) != tokens.map(Vec::len) {
                return Err(format!("its post-processor adds {name:?}, but does not define its ids and tokens"));
            }
            added += ids.map_or(0, Vec::len);
        }
        if piece["Sequence"]["id"] == "B" {
            return Err("its post-processor for a single text has a second one (the sequence B)".into());
        }
        texts += usize::from(piece["Sequence"]["id"] == "A");
    }
    if added > MAX_ADDED_TOKENS {
        return Err(format!("its post-processor adds {added} tokens to a text, and the limit is {MAX_ADDED_TOKENS}"));
    }
    if texts == 1 { Ok(()) } else { Err(format!("its post-processor for a single text has that text {texts} times")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Check a file with these parts and a model.
    fn check_file(mut parts: Value) -> Check {
        parts.as_object_mut().unwrap().entry("model").or_insert(json!({}));
        check(&parts.to_string())
    }

    /// The fault of a file with these parts.
    fn wrong(parts: Value) -> String {
        check_file(parts).expect_err("something is wrong")
    }

    fn bpe(prefix: Option<&str>, merges: Value) -> Value {
        let vocab = json!({ "a": 0, "b": 1, "ab": 2, "é": 3, "aé": 4, "##b": 5 });
        json!({ "model": { "vocab": vocab, "merges": merges, "continuing_subword_prefix": prefix } })
    }

    #[test]
    fn merges_make_tokens() {
        for merges in [json!([["a", "b"], ["a", "é"]]), json!(["a b", "a é", "#version: 0.2"])] {
            assert_eq!(check_file(bpe(None, merges)), Ok(()));
        }
        assert_eq!(check_file(bpe(Some("##"), json!([["a", "##b"]]))), Ok(()));
        assert!(wrong(bpe(None, json!([["ab", "b"]]))).contains("make \"abb\", which is not a token"));
        assert!(wrong(bpe(Some("####"), json!([["a", "b"]]))).contains("continuing_subword_prefix"), "it is longer");
        assert!(
            wrong(bpe(Some("x"), json!(["a é"]))).contains("continuing_subword_prefix"),
            "it ends within a character"
        );
    }

    #[test]
    fn json_that_is_not_a_tokenizer_is_refused() {
        for content in ["null", "[]", "3", "[{}]", r#"{"error": "Repository not found"}"#, r#" {"model": null}"#] {
            let error = check(content).unwrap_err();
            assert!(error.contains("it is JSON, but not a tokenizer") && error.contains(content.trim()), "{error}");
        }
    }

    #[test]
    fn duplicate_keys_are_refused() {
        assert!(check(r#"{"model": {"merges": [], "merges": []}}"#).unwrap_err().contains("duplicate field"));
        assert!(check(r#"{"model": {}, "model": {}}"#).unwrap_err().contains("duplicate field"));
    }

    #[test]
    fn parts_that_the_library_trusts_are_checked() {
        let nested = |part| json!({ "pre_tokenizer": { "type": "Sequence", "pretokenizers": [part] } });
        assert!(wrong(nested(json!({ "type": "FixedLength", "length": 0 }))).contains("length of 0"));
        assert_eq!(check_file(nested(json!({ "type": "FixedLength", "length": 1 }))), Ok(()));
        let normalizer =
            |table: &str| json!({ "normalizer": { "type": "Precompiled", "precompiled_charsmap": table } });
        assert!(wrong(normalizer("AAAA")).contains("base64"));
        assert!(wrong(normalizer("////fw==")).contains("declares 2147483647 bytes, but has 0"));
        assert_eq!(check_file(normalizer("BAAAAAAAAAA=")), Ok(()), "4 bytes of table");
    }

    #[test]
    fn a_template_is_for_one_text() {
        let (text, second) = (json!({ "Sequence": { "id": "A" } }), json!({ "Sequence": { "id": "B" } }));
        let token = json!({ "SpecialToken": { "id": "<s>" } });
        let template = |single: &[&Value], special: Value| {
            let template = json!({ "single": single, "special_tokens": special });
            json!({ "post_processor": { "processors": [template] } })
        };
        let defined = json!({ "<s>": { "ids": [1], "tokens": ["<s>"] } });
        assert_eq!(check_file(template(&[&token, &text], defined.clone())), Ok(()));
        assert!(wrong(template(&[&token, &second], defined.clone())).contains("sequence B"));
        assert!(wrong(template(&[&token], defined.clone())).contains("0 times"));
        assert!(wrong(template(&[&text, &text], defined)).contains("2 times"));
        assert!(wrong(template(&[&token, &text], json!({}))).contains("\"<s>\""));
        let long = json!({ "<s>": { "ids": vec![1; 600], "tokens": vec!["<s>"; 600] } });
        assert_eq!(check_file(template(&[&token, &text], long.clone())), Ok(()));
        assert!(
            wrong(template(&[&token, &text, &token], long))
                .contains("adds 1200 tokens to a text, and the limit is 1024")
        );
        let uneven = json!({ "<s>": { "ids": [1], "tokens": [] } });
        assert!(wrong(template(&[&token, &text], uneven)).contains("\"<s>\""));
    }

    #[test]
    fn growth_of_a_text_is_limited() {
        let replace =
            |content: usize| json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "a".repeat(content) });
        let parts = |normalizer: usize, pre_tokenizer: usize, decoder: usize| {
            let (normalizer, pre_tokenizer) = (replace(normalizer), replace(pre_tokenizer));
            json!({ "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "decoder": replace(decoder) })
        };
        assert_eq!(check_file(parts(32, 32, 1024)), Ok(()));
        assert!(wrong(parts(32, 33, 1)).contains("its normalizer and pre_tokenizer may make more than 1024 bytes"));
        assert!(wrong(parts(1, 1, 1025)).contains("its decoder may make more than 1024 bytes"));
        let word = |letters: u64| json!({ "model": { "max_input_chars_per_word": letters } });
        assert_eq!(check_file(word(1000)), Ok(()));
        assert!(
            wrong(word(1 << 62)).contains("max_input_chars_per_word is 4611686018427387904, and the limit is 1000")
        );
    }
}
