//! Keeps control tokens in what users say from becoming control tokens: marks them before a template is rendered, and
//! encodes what is marked as plain text. It works as `sanitize_control_tokens` of transformers, and gives its tokens.

use std::collections::BTreeMap;

use aho_corasick::{AhoCorasick, MatchKind};
use minijinja::Value;
use minijinja::value::ValueKind;

use super::super::Text;
use crate::error::{Error, Result};

/// What stands before a marked token, and behind it: characters for private use. Text that has them loses them.
const ENDS: [char; 2] = ['\u{f0000}', '\u{f0001}'];

/// The control tokens of a tokenizer and a template.
pub struct Marks {
    /// Their names, and what each is as plain text. `None`: the tokenizer makes the control token of it all the same.
    plain: BTreeMap<String, Option<Vec<i32>>>,
    /// `None`: there are too many to search for.
    finder: Option<AhoCorasick>,
    /// The tokens of the end of a line.
    line: Vec<i32>,
}

impl Marks {
    /// The special tokens of a tokenizer, and further added tokens.
    pub fn new(text: &Text, further: impl Fn(&str) -> bool) -> Self {
        let line = text.encode("\n", false).unwrap_or_default();
        let added = text.tokenizer.get_added_vocabulary().get_added_tokens_decoder();
        let control = added.iter().filter(|(_, token)| token.special || further(&token.content));
        let plain = control.filter(|(_, token)| !token.content.is_empty()).map(|(id, token)| {
            let tokens = behind_line(&line, &token.content, |name| text.encode_without_added(name));
            (token.content.clone(), tokens.ok().filter(|tokens| !tokens.contains(&(*id as i32))))
        });
        let plain: BTreeMap<_, _> = plain.collect();
        let finder = AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(plain.keys()).ok();
        Marks { plain, finder, line }
    }

    /// A value with marks around all control tokens in its texts. Keys stay as they are.
    pub fn mark(&self, value: &Value) -> Result<Value> {
        Ok(match value.kind() {
            ValueKind::String => self.mark_text(value.as_str().unwrap_or_default())?.into(),
            ValueKind::Seq => {
                value.try_iter().into_iter().flatten().map(|item| self.mark(&item)).collect::<Result<Value>>()?
            }
            ValueKind::Map => {
                let item = |key: Value| {
                    let item = self.mark(&value.get_item(&key).unwrap_or_default())?;
                    Ok((key, item))
                };
                let items = value.try_iter().into_iter().flatten().map(item).collect::<Result<Vec<_>>>()?;
                Value::from_pairs(items)
            }
            _ => value.clone(),
        })
    }

    fn mark_text(&self, text: &str) -> Result<String> {
        let finder = self.finder.as_ref().ok_or_else(|| {
            Error::Unsupported("the tokenizer has too many control tokens to look for them in messages".into())
        })?;
        let text = text.replace(ENDS, "");
        let mut out = String::with_capacity(text.len());
        let mut end = 0;
        for found in finder.find_iter(&text) {
            let name = &text[found.range()];
            if self.plain.get(name).is_none_or(Option::is_none) {
                return Err(Error::InvalidArgument(format!(
                    "the chat has {name:?}, and this tokenizer makes a control token of it even where it is plain \
                     text; remove it"
                )));
            }
            out.push_str(&text[end..found.start()]);
            out.extend([&ENDS[0].to_string(), name, &ENDS[1].to_string()]);
            end = found.end();
        }
        Ok(out + &text[end..])
    }

    /// The tokens of a text with marks. A mark whose partner is missing, because a template has cut the text between
    /// them, still separates what is on its two sides: they cannot join into a control token.
    pub fn encode(&self, text: &Text, marked: &str) -> Result<Vec<i32>> {
        let (first, mut rest) = marked.split_at(marked.find(ENDS).unwrap_or(marked.len()));
        let mut tokens = text.encode(first, false)?;
        while let Some(mark) = rest.chars().next() {
            let behind = &rest[mark.len_utf8()..];
            let named = (mark == ENDS[0]).then(|| behind.split_once(ENDS[1])).flatten();
            let plain = named.and_then(|(name, behind)| Some((self.plain.get(name)?.as_ref()?, behind)));
            tokens.extend(plain.into_iter().flat_map(|(plain, _)| plain));
            let behind = plain.map_or(behind, |(_, behind)| behind);
            let (part, next) = behind.split_at(behind.find(ENDS).unwrap_or(behind.len()));
            if !part.is_empty() {
                tokens.extend(behind_line(&self.line, part, |part| text.encode(part, false))?);
            }
            rest = next;
        }
        Ok(tokens)
    }
}

/// The tokens of a part that is not the first. It is encoded behind the end of a line, whose tokens are then removed,
/// because some tokenizers put a space before the start of a text.
fn behind_line(line: &[i32], part: &str, encode: impl Fn(&str) -> Result<Vec<i32>>) -> Result<Vec<i32>> {
    let mut tokens = encode(&format!("\n{part}"))?;
    if tokens.starts_with(line) {
        return Ok(tokens.split_off(line.len()));
    }
    encode(part)
}
