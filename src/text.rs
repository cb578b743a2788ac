//! Text to tokens and back, with the `tokenizer.json` beside a model.

use std::path::Path;
use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::error::{Error, Result};

/// Tokens held back before their bytes are given up as invalid. A UTF-8 character has at most four bytes, so a
/// longer wait can only mean that the model wrote something else.
const MAX_HELD: usize = 8;

/// The tokenizer of an engine.
pub struct Text {
    tokenizer: Tokenizer,
    vocab_size: usize,
}

impl Text {
    /// Load a `tokenizer.json`.
    pub fn load(path: &Path) -> Result<Self> {
        let refuse = |error| Error::Model(format!("cannot read the tokenizer {}: {error}", path.display()));
        let mut tokenizer = Tokenizer::from_file(path).map_err(refuse)?;
        // Some files carry settings of their training; a prompt must be neither cut nor filled up.
        tokenizer.with_truncation(None).map_err(refuse)?;
        tokenizer.with_padding(None);
        let last = tokenizer.get_vocab(true).into_values().max();
        Ok(Text { vocab_size: last.map_or(0, |last| last as usize + 1), tokenizer })
    }

    /// The tokens are 0 to this less 1.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Let only the first tokens count, as many as the models have.
    pub fn limit_vocabulary(&mut self, tokens: usize) {
        self.vocab_size = self.vocab_size.min(tokens);
    }

    /// The tokens of a text; with `special`, those that the tokenizer adds around it too.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<i32>> {
        let encoding = self
            .tokenizer
            .encode_fast(text, special)
            .map_err(|error| Error::InvalidArgument(format!("the text cannot be encoded: {error}")))?;
        Ok(encoding.get_ids().iter().map(|&id| id as i32).collect())
    }

    /// The text of tokens, without special tokens.
    pub fn decode(&self, tokens: &[i32]) -> Result<String> {
        let ids = self.ids(tokens)?;
        self.tokenizer
            .decode(&ids, true)
            .map_err(|error| Error::InvalidArgument(format!("the tokens cannot be decoded: {error}")))
    }

    fn ids(&self, tokens: &[i32]) -> Result<Vec<u32>> {
        let convert = |&token: &i32| match u32::try_from(token) {
            Ok(id) if (id as usize) < self.vocab_size => Ok(id),
            _ => Err(Error::InvalidArgument(format!(
                "token {token} is not in the vocabulary, which has the tokens 0 to {}",
                self.vocab_size - 1
            ))),
        };
        tokens.iter().map(convert).collect()
    }

    /// The first token that two tokenizers disagree on: its id, and what it is to each.
    pub fn first_difference(&self, other: &Text) -> Option<(u32, Option<String>, Option<String>)> {
        let size = self.vocab_size.max(other.vocab_size) as u32;
        (0..size).find_map(|id| {
            let (own, others) = (self.tokenizer.id_to_token(id), other.tokenizer.id_to_token(id));
            (own != others).then_some((id, own, others))
        })
    }
}

/// Turns a stream of tokens into a stream of text that is always whole UTF-8.
pub struct TextStream {
    text: Arc<Text>,
    /// The state of `tokenizers`' decode stream: tokens still needed, the text of those already given out, and how many.
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
    out: String,
}

impl TextStream {
    /// An empty stream.
    pub fn new(text: Arc<Text>) -> Self {
        TextStream { text, ids: Vec::new(), prefix: String::new(), prefix_index: 0, out: String::new() }
    }

    /// The text that these tokens complete. Bytes of an unfinished character are held back.
    ///
    /// On an error no token is taken.
    pub fn push(&mut self, tokens: &[i32]) -> Result<&str> {
        let new = self.text.ids(tokens)?;
        self.out.clear();
        for id in new {
            let step = tokenizers::step_decode_stream(
                &self.text.tokenizer,
                vec![id],
                true,
                &mut self.ids,
                &mut self.prefix,
                &mut self.prefix_index,
            );
            match step {
                Ok(Some(text)) => self.out.push_str(&text),
                Ok(None) if self.ids.len() - self.prefix_index > MAX_HELD => self.release()?,
                Ok(None) => {}
                Err(_) => self.release()?,
            }
        }
        Ok(&self.out)
    }

    /// The end of the stream: what was held back, with U+FFFD for bytes that are no character. The stream starts anew.
    pub fn finish(&mut self) -> Result<&str> {
        self.out.clear();
        self.release()?;
        Ok(&self.out)
    }

    /// Give out what is held back as it is, and start anew.
    fn release(&mut self) -> Result<()> {
        let whole = self.text.tokenizer.decode(&self.ids, true).map_err(|error| Error::Internal(error.to_string()))?;
        self.out.push_str(whole.strip_prefix(self.prefix.as_str()).unwrap_or(&whole));
        self.ids.clear();
        self.prefix.clear();
        self.prefix_index = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn demo() -> Arc<Text> {
        Arc::new(
            Text::load(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/demo/base/tokenizer.json"))).unwrap(),
        )
    }

    #[test]
    fn there_and_back() {
        let text = demo();
        for sample in ["Question: What is 2+2?\nAnswer:", "  spaces ", "äöü – 漢字 🙂", ""] {
            let tokens = text.encode(sample, true).unwrap();
            assert_eq!(text.decode(&tokens).unwrap(), sample);
        }
    }

    #[test]
    fn streams_cut_at_characters_only() {
        let text = demo();
        let sample = "Größe 🙂 漢字, done";
        let tokens = text.encode(sample, true).unwrap();
        assert!(tokens.len() > sample.chars().count() - 8, "bytes must be tokens of their own for this test");
        let mut stream = TextStream::new(text);
        let mut pieces = Vec::new();
        for &token in &tokens {
            pieces.push(stream.push(&[token]).unwrap().to_owned());
        }
        assert!(pieces.iter().any(String::is_empty), "an unfinished character is held back");
        assert!(pieces.iter().all(|piece| !piece.contains('\u{fffd}')), "{pieces:?}");
        assert_eq!(pieces.concat() + stream.finish().unwrap(), sample);
    }

    #[test]
    fn invalid_bytes_do_not_stop_the_stream() {
        let text = demo();
        let byte = text.encode("漢", true).unwrap()[0];
        let mut stream = TextStream::new(text.clone());
        let mut out = String::new();
        for _ in 0..40 {
            out.push_str(stream.push(&[byte]).unwrap());
        }
        assert!(out.contains('\u{fffd}'), "{out:?}");
        out.push_str(stream.push(&text.encode(" and on", true).unwrap()).unwrap());
        out.push_str(stream.finish().unwrap());
        assert!(out.ends_with(" and on"), "{out:?}");
    }

    #[test]
    fn unfinished_text_comes_out_at_the_end() {
        let text = demo();
        let tokens = text.encode("ok漢", true).unwrap();
        let mut stream = TextStream::new(text);
        let mut out = stream.push(&tokens[..tokens.len() - 1]).unwrap().to_owned();
        out.push_str(stream.finish().unwrap());
        assert_eq!(out, "ok\u{fffd}");
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_refused() {
        let text = demo();
        assert_eq!(text.decode(&[-1]).unwrap_err().code(), 1);
        assert_eq!(text.decode(&[4096]).unwrap_err().code(), 1);
        assert_eq!(TextStream::new(text).push(&[5, -1]).unwrap_err().code(), 1);
    }
}
