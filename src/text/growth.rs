//! Limits by how much the parts of a `tokenizer.json` may multiply the length of a text.
//!
//! Each part works on the result of the part before. So a file of a few hundred bytes can ask for more memory than any
//! machine has, and the library would then abort the process.

use serde_json::Value;

/// The fault that was found.
type Check<T = ()> = Result<T, String>;

/// Most bytes that one byte may become. Tokenizers of known models need about 600 at most (T5).
const MAX_GROWTH: usize = 1024;

/// By how much the normal forms NFKC and NFKD may multiply a character: U+FDFA has 3 bytes and becomes 33.
const COMPATIBLE_GROWTH: usize = 11;

/// The text that one byte of ASCII may become in a chain of parts.
struct Growth {
    bytes: usize,
    /// Whether the text may have characters other than ASCII, which normal forms change.
    has_non_ascii: bool,
}

/// An error if a chain of parts may make more than [`MAX_GROWTH`] bytes of one byte. `what` names the parts.
pub fn check<'a>(what: &str, chain: impl IntoIterator<Item = &'a Value>) -> Check {
    let mut growth = Growth { bytes: 1, has_non_ascii: false };
    for part in chain {
        growth.apply(part)?;
    }
    if growth.bytes > MAX_GROWTH {
        return Err(format!("its {what} may make more than {MAX_GROWTH} bytes of one byte, which is the limit"));
    }
    Ok(())
}

impl Growth {
    /// Apply a part and the parts within it. The library may recognise a part by its keys instead of its type.
    fn apply(&mut self, part: &Value) -> Check {
        match part {
            Value::Array(parts) => parts.iter().try_for_each(|part| self.apply(part)),
            Value::Object(keys) => {
                self.bytes = self.bytes.saturating_mul(self.factor(part)?);
                self.has_non_ascii |= makes_non_ascii(part);
                keys.values().try_for_each(|part| self.apply(part))
            }
            _ => Ok(()),
        }
    }

    fn factor(&self, part: &Value) -> Check<usize> {
        let length = |key: &str| part[key].as_str().map(str::len);
        let form = |factor: usize| if self.has_non_ascii { factor } else { 1 };
        let factor = if let (Some(content), Some(pattern)) = (length("content"), part.get("pattern")) {
            match pattern["String"].as_str() {
                Some(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()),
                // An empty match is possible between any two bytes.
                _ => content + 1,
            }
        } else if let Some(content) = length("prepend").or(length("replacement")) {
            content + 1
        } else if let Some(table) = part["precompiled_charsmap"].as_str() {
            replacements(table)?.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0)
        } else if ["suffix", "word_delimiter_token"].iter().any(|key| length(key) == Some(0)) {
            2 // may add a space between any two characters
        } else if part.get("handle_chinese_chars").is_some() {
            6 // a space before and behind each such character, and a normal form
        } else {
            match part["type"].as_str().unwrap_or_default() {
                // Each byte becomes a character of up to two bytes. So does the space before the text.
                "ByteLevel" if part["add_prefix_space"] == true => 4,
                "ByteLevel" => 2,
                "Lowercase" => form(2),
                "NFC" | "NFD" => form(3),
                "NFKC" | "NFKD" => form(COMPATIBLE_GROWTH),
                _ if part.get("add_prefix_space").is_some() => 4,
                _ => 1,
            }
        };
        Ok(factor.max(1))
    }
}

/// Whether a part may make characters other than ASCII.
fn makes_non_ascii(part: &Value) -> bool {
    let is_non_ascii = |key: &str| part[key].as_str().is_some_and(|text| !text.is_ascii());
    ["content", "prepend", "replacement"].into_iter().any(is_non_ascii)
        || part.get("precompiled_charsmap").is_some()
        || part.get("add_prefix_space").is_some()
        || part["type"] == "ByteLevel"
}

/// The replacements of a table for normalization: the strings behind its trie, each with a 0 at its end.
///
/// The table begins with the length of its trie in bytes, and the library allocates that many bytes.
pub fn replacements(base64: &str) -> Check<Vec<u8>> {
    let bytes = base64::decode(base64).ok().filter(|bytes| bytes.len() >= 4);
    let mut table = bytes.ok_or("its precompiled_charsmap is not a table in base64")?;
    let declared = u32::from_le_bytes([table[0], table[1], table[2], table[3]]) as usize;
    let bytes = table.len() - 4;
    if declared > bytes {
        return Err(format!("its precompiled_charsmap declares {declared} bytes, but has {bytes}"));
    }
    Ok(table.split_off(4 + declared))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn replace(pattern: &Value, content: &str) -> Value {
        json!({ "type": "Replace", "pattern": pattern, "content": content })
    }

    /// Most bytes that one byte may become in a chain of parts.
    fn most(chain: &[Value]) -> usize {
        let mut growth = Growth { bytes: 1, has_non_ascii: false };
        chain.iter().try_for_each(|part| growth.apply(part)).unwrap();
        growth.bytes
    }

    #[test]
    fn growth_multiplies_along_a_chain() {
        let string = |pattern: &str, content: &str| replace(&json!({ "String": pattern }), content);
        let regex = |pattern: &str, content: &str| replace(&json!({ "Regex": pattern }), content);
        let prepend = json!({ "type": "Prepend", "prepend": "▁" });
        let metaspace = json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always" });
        let bytes = |space: bool| json!({ "type": "ByteLevel", "add_prefix_space": space, "trim_offsets": true });
        let of = |kind: &str| json!({ "type": kind });
        for (chain, expected) in [
            (vec![string("▁", " ")], 1),
            (vec![string("a", "")], 1),
            (vec![string("ab", "abc")], 2),
            (vec![string("", "ab")], 3),
            (vec![regex(" {2,}", "▁")], 4),
            (vec![prepend.clone(), string(" ", "▁")], 12),
            (vec![metaspace.clone(), metaspace], 16),
            (vec![bytes(false), bytes(true), of("ByteLevel")], 16),
            (vec![json!({ "suffix": "" }), json!({ "suffix": "</w>" }), json!({ "word_delimiter_token": "" })], 4),
            (vec![json!({ "normalizers": [{ "normalizers": [string("a", "aaa")] }, string("a", "aa")] })], 6),
            (vec![json!({ "type": "BertNormalizer", "handle_chinese_chars": true, "lowercase": true })], 6),
            // Normal forms of a user's own characters do not count: the file does not add them.
            (vec![string("``", "\""), of("NFKD"), of("NFC"), of("Lowercase")], 1),
            (vec![prepend.clone(), of("NFKD")], 44),
            (vec![prepend.clone(), of("NFC"), of("Lowercase")], 24),
            // The table has no trie, and replacements of 1 and of 5 bytes.
            (vec![json!({ "precompiled_charsmap": "AAAAAGEAYmNkZWYA" })], 5),
        ] {
            assert_eq!(most(&chain), expected, "{chain:?}");
        }
        assert_eq!(most(&vec![prepend; 1000]), usize::MAX);
    }

    /// The longest replacement of sentencepiece's table for NFKC has 33 bytes.
    #[test]
    fn chains_of_real_models_are_below_the_limit() {
        let table = json!({ "precompiled_charsmap": "AAAAAGFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYWFhYQA=" });
        let regex = |content: &str| replace(&json!({ "Regex": " {2,}" }), content);
        let string = |pattern: &str, content: &str| replace(&json!({ "String": pattern }), content);
        let metaspace = || json!({ "type": "Metaspace", "replacement": "▁", "prepend_scheme": "always" });
        let of = |kind: &str| json!({ "type": kind });
        for (model, chain, expected) in [
            ("T5", vec![table.clone(), regex("▁"), metaspace()], 528),
            (
                "ALBERT",
                vec![
                    string("``", "\""),
                    of("NFKD"),
                    of("StripAccents"),
                    of("Lowercase"),
                    table,
                    regex(" "),
                    metaspace(),
                ],
                264,
            ),
            ("Llama 2", vec![json!({ "type": "Prepend", "prepend": "▁" }), string(" ", "▁")], 12),
        ] {
            assert_eq!(most(&chain), expected, "{model}");
        }
    }

    #[test]
    fn the_limit_is_for_a_whole_chain() {
        let tenfold = || replace(&json!({ "String": "a" }), &"a".repeat(10));
        let sequence = |count: usize| json!({ "type": "Sequence", "normalizers": vec![tenfold(); count] });
        assert_eq!(check("normalizer", [&sequence(3)]), Ok(()));
        let error = check("normalizer", [&sequence(3), &tenfold()]).unwrap_err();
        assert!(error.contains("normalizer") && error.contains("1024 bytes"), "{error}");
    }
}
