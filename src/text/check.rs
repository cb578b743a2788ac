//! What must hold of a `tokenizer.json` before the tokenizers library reads it.
//!
//! It takes some of these things for granted: a merge that is none makes it build a string that is not UTF-8, a size
//! that is declared is allocated, and the others make it panic when a text comes.

use std::borrow::Cow;
use std::collections::HashMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use serde_json::value::RawValue;

type Result = std::result::Result<(), String>;

/// The parts that are looked at. A key that is there twice is an error: the library would take either.
#[derive(Deserialize)]
struct File<'a> {
    #[serde(borrow)]
    model: Option<Model<'a>>,
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    post_processor: Option<Value>,
}

#[derive(Deserialize)]
struct Model<'a> {
    #[serde(borrow)]
    vocab: Option<&'a RawValue>,
    #[serde(borrow)]
    merges: Option<&'a RawValue>,
    continuing_subword_prefix: Option<String>,
}

/// A string that is copied only if it is escaped: there are hundreds of thousands.
#[derive(Deserialize, PartialEq, Eq, Hash)]
struct Token<'a>(#[serde(borrow)] Cow<'a, str>);

/// Say what is wrong with a `tokenizer.json`, if that is anything the library would not say itself.
pub fn check(content: &str) -> Result {
    let file: File = serde_json::from_str(content).map_err(|error| error.to_string())?;
    if let Some(Model { vocab: Some(vocab), merges: Some(merges), continuing_subword_prefix }) = &file.model {
        let prefix = continuing_subword_prefix.as_deref().unwrap_or("");
        check_merges(vocab.get(), merges.get(), prefix).map_err(|why| format!("its merges: {why}"))?;
    }
    let parts = [&file.normalizer, &file.pre_tokenizer, &file.post_processor];
    parts.into_iter().flatten().try_for_each(check_parts)
}

/// Two tokens, the second without the prefix of those that begin no word, make a third one.
fn check_merges(vocab: &str, merges: &str, prefix: &str) -> Result {
    let vocab: HashMap<Token, IgnoredAny> = serde_json::from_str(vocab).map_err(|error| error.to_string())?;
    let mut whole = String::new();
    let mut check = |left: &str, right: &str| {
        let rest = right.get(prefix.len()..).ok_or_else(|| {
            format!("{right:?} behind {left:?} does not begin with {prefix:?}, the continuing_subword_prefix")
        })?;
        whole.clear();
        whole.extend([left, rest]);
        let known = vocab.contains_key(&Token(Cow::Borrowed(&whole)));
        if known { Ok(()) } else { Err(format!("{left:?} and {right:?} make {whole:?}, which is no token")) }
    };
    if let Ok(pairs) = serde_json::from_str::<Vec<(Token, Token)>>(merges) {
        return pairs.iter().try_for_each(|(left, right)| check(&left.0, &right.0));
    }
    // The former layout has the two tokens in one string.
    let lines: Vec<Token> = serde_json::from_str(merges).map_err(|error| error.to_string())?;
    lines.iter().filter(|line| !line.0.starts_with("#version")).try_for_each(|line| {
        let (left, right) = line.0.split_once(' ').ok_or_else(|| format!("{:?} is not two tokens", line.0))?;
        check(left, right)
    })
}

/// Look at every object: parts may be nested, and the library goes by their keys rather than by their types.
fn check_parts(part: &Value) -> Result {
    match part {
        Value::Array(parts) => parts.iter().try_for_each(check_parts),
        Value::Object(keys) => {
            if part["type"] == "FixedLength" && part["length"] == 0 {
                return Err("its pre-tokenizer FixedLength has a length of 0".into());
            }
            if let Some(table) = part["precompiled_charsmap"].as_str() {
                check_precompiled(table)?;
            }
            if let Some(template) = part["single"].as_array() {
                check_template(template, &part["special_tokens"])?;
            }
            keys.values().try_for_each(check_parts)
        }
        _ => Ok(()),
    }
}

/// The table begins with its own length in bytes, for which the library allocates.
fn check_precompiled(base64: &str) -> Result {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digit = |byte: u8| DIGITS.iter().position(|&digit| digit == byte).map(|digit| digit as u64);
    let start: Option<Vec<u64>> = base64.bytes().take(6).map(digit).collect();
    let Some(&[a, b, c, d, e, f]) = start.as_deref() else {
        return Err("its precompiled_charsmap is not base64 of a table".into());
    };
    // 6 digits are 36 bits, of which the first 32 are the length.
    let bits = [a, b, c, d, e, f].iter().fold(0, |bits, digit| bits << 6 | digit);
    let declared = ((bits >> 4) as u32).swap_bytes() as usize;
    let bytes = base64.len() / 4 * 3;
    if declared > bytes {
        return Err(format!("its precompiled_charsmap declares {declared} bytes, and has less than {bytes}"));
    }
    Ok(())
}

/// The template for a single text has that text once, and special tokens that it defines.
fn check_template(pieces: &[Value], special: &Value) -> Result {
    let mut texts = 0;
    for piece in pieces {
        if let Some(name) = piece["SpecialToken"]["id"].as_str() {
            let (ids, tokens) = (special[name]["ids"].as_array(), special[name]["tokens"].as_array());
            if ids.is_none() || ids.map(Vec::len) != tokens.map(Vec::len) {
                return Err(format!("its post-processor adds {name:?}, whose ids and tokens it does not define"));
            }
        }
        if piece["Sequence"]["id"] == "B" {
            return Err("its post-processor for a single text has a second one (the sequence B)".into());
        }
        texts += usize::from(piece["Sequence"]["id"] == "A");
    }
    if texts == 1 { Ok(()) } else { Err(format!("its post-processor for a single text has that text {texts} times")) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is wrong with a file that has these parts.
    fn wrong(parts: Value) -> String {
        check(&parts.to_string()).expect_err("something is wrong")
    }

    fn bpe(prefix: Option<&str>, merges: Value) -> Value {
        let vocab = json!({ "a": 0, "b": 1, "ab": 2, "é": 3, "aé": 4, "##b": 5 });
        json!({ "model": { "vocab": vocab, "merges": merges, "continuing_subword_prefix": prefix } })
    }

    #[test]
    fn merges_make_tokens() {
        for merges in [json!([["a", "b"], ["a", "é"]]), json!(["a b", "a é", "#version: 0.2"])] {
            assert_eq!(check(&bpe(None, merges).to_string()), Ok(()));
        }
        assert_eq!(check(&bpe(Some("##"), json!([["a", "##b"]])).to_string()), Ok(()));
        assert!(wrong(bpe(None, json!([["ab", "b"]]))).contains("make \"abb\", which is no token"));
        assert!(wrong(bpe(Some("####"), json!([["a", "b"]]))).contains("continuing_subword_prefix"), "it is longer");
        assert!(
            wrong(bpe(Some("x"), json!(["a é"]))).contains("continuing_subword_prefix"),
            "it ends within a character"
        );
    }

    #[test]
    fn no_key_is_there_twice() {
        assert!(check(r#"{"model": {"merges": [], "merges": []}}"#).unwrap_err().contains("duplicate field"));
        assert!(check(r#"{"model": {}, "model": {}}"#).unwrap_err().contains("duplicate field"));
    }

    #[test]
    fn parts_are_what_the_library_takes_for_granted() {
        let nested = |part| json!({ "pre_tokenizer": { "type": "Sequence", "pretokenizers": [part] } });
        assert!(wrong(nested(json!({ "type": "FixedLength", "length": 0 }))).contains("length of 0"));
        assert_eq!(check(&nested(json!({ "type": "FixedLength", "length": 1 })).to_string()), Ok(()));
        let normalizer =
            |table: &str| json!({ "normalizer": { "type": "Precompiled", "precompiled_charsmap": table } });
        assert!(wrong(normalizer("AAAA")).contains("base64"));
        assert!(wrong(normalizer("////fw==")).contains("declares 2147483647 bytes"));
        assert_eq!(check(&normalizer("BAAAAAAAAAA=").to_string()), Ok(()), "4 bytes of table");
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
        assert_eq!(check(&template(&[&token, &text], defined.clone()).to_string()), Ok(()));
        assert!(wrong(template(&[&token, &second], defined.clone())).contains("sequence B"));
        assert!(wrong(template(&[&token], defined.clone())).contains("0 times"));
        assert!(wrong(template(&[&text, &text], defined)).contains("2 times"));
        assert!(wrong(template(&[&token, &text], json!({}))).contains("\"<s>\""));
        let uneven = json!({ "<s>": { "ids": [1], "tokens": [] } });
        assert!(wrong(template(&[&token, &text], uneven)).contains("\"<s>\""));
    }
}
