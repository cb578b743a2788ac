//! Text to tokens and back, with the `tokenizer.json` beside a model.

use std::path::Path;
use std::sync::Arc;

use tokenizers::Tokenizer;

use crate::error::{Error, Result};
use crate::files;

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
        let content = files::tokenizer(path).map_err(Error::Model)?;
        let mut tokenizer = Tokenizer::from_bytes(content).map_err(refuse)?;
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

/// Turns a stream of tokens into a stream of text that is always whole UTF-8, and ends before the first stop string.
pub struct TextStream {
    text: Arc<Text>,
    stops: Vec<String>,
    stopped: bool,
    /// Whether the text is at its end, so that what comes next starts anew.
    finished: bool,
    /// The end of the text so far, which may be the beginning of a stop string.
    held: String,
    /// The state of `tokenizers`' decode stream: tokens still needed, the text of those already given out, and how many.
    ids: Vec<u32>,
    prefix: String,
    prefix_index: usize,
    out: String,
}

impl TextStream {
    /// An empty stream.
    pub fn new(text: Arc<Text>) -> Self {
        TextStream {
            text,
            stops: Vec::new(),
            stopped: false,
            finished: false,
            held: String::new(),
            ids: Vec::new(),
            prefix: String::new(),
            prefix_index: 0,
            out: String::new(),
        }
    }

    /// End the text before the first of these strings, in place of those set before. What was given out stays so.
    pub fn set_stops(&mut self, stops: Vec<String>) -> Result<()> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::InvalidArgument(format!(
                "stop string {index} is empty, which every text has; leave it out"
            )));
        }
        self.stops = stops;
        Ok(())
    }

    /// Whether a stop string has ended the text, or did when that was finished. Tokens make no more text until
    /// [`TextStream::finish`].
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// The text that these tokens complete. Bytes of an unfinished character are held back, and so is what may become a
    /// stop string.
    ///
    /// On an error no token is taken.
    pub fn push(&mut self, tokens: &[i32]) -> Result<&str> {
        let new = self.text.ids(tokens)?;
        if std::mem::take(&mut self.finished) {
            self.stopped = false;
        }
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
                Ok(Some(text)) => self.held.push_str(&text),
                Ok(None) if self.ids.len() - self.prefix_index > MAX_HELD => self.release()?,
                Ok(None) => {}
                Err(_) => self.release()?,
            }
        }
        self.cut();
        Ok(&self.out)
    }

    /// The end of the stream: what was held back, with U+FFFD for bytes that are no character, up to a stop string. The
    /// stream starts anew.
    pub fn finish(&mut self) -> Result<&str> {
        self.out.clear();
        self.release()?;
        self.cut();
        self.out.push_str(&self.held);
        self.held.clear();
        self.finished = true;
        Ok(&self.out)
    }

    /// Move what is certain from the held text to the given one.
    ///
    /// The text ends before the stop string that is complete first, and before the longest of those complete at once, so
    /// that it does not matter in what pieces it came.
    fn cut(&mut self) {
        let found = self.stops.iter().filter_map(|stop| self.held.find(stop).map(|at| (at + stop.len(), at))).min();
        let certain = match found {
            _ if self.stopped => 0,
            Some((_, at)) => at,
            None => self.held.len() - self.stops.iter().map(|stop| beginning(stop, &self.held)).max().unwrap_or(0),
        };
        self.out.push_str(&self.held[..certain]);
        self.held.drain(..certain);
        self.stopped |= found.is_some();
        if self.stopped {
            self.held.clear();
        }
    }

    /// Decode the bytes of an unfinished character as they are, and start anew behind them.
    fn release(&mut self) -> Result<()> {
        let whole = self.text.tokenizer.decode(&self.ids, true).map_err(|error| Error::Internal(error.to_string()))?;
        self.held.push_str(whole.strip_prefix(self.prefix.as_str()).unwrap_or(&whole));
        self.ids.clear();
        self.prefix.clear();
        self.prefix_index = 0;
        Ok(())
    }
}

/// How many bytes at the end of a text a stop string that is not in it may begin with.
fn beginning(stop: &str, text: &str) -> usize {
    let mut lengths = stop.char_indices().map(|(length, _)| length).rev();
    lengths.find(|&length| text.ends_with(&stop[..length])).unwrap_or(0)
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

    /// All that a stream gives, in pieces of so many tokens, and whether a stop string ended it.
    fn streamed(stream: &mut TextStream, tokens: &[i32], size: usize) -> (String, bool) {
        let mut out = String::new();
        for piece in tokens.chunks(size) {
            out.push_str(stream.push(piece).unwrap());
        }
        out.push_str(stream.finish().unwrap());
        (out, stream.stopped())
    }

    #[test]
    fn text_ends_before_the_first_stop_string() {
        let text = demo();
        let sample = "Größe: one two three 🙂 漢字, two three four";
        let tokens = text.encode(sample, true).unwrap();
        let mut stream = TextStream::new(text);
        for (stops, wanted) in [
            (vec![], None),
            (vec!["two"], Some("Größe: one ")),
            (vec!["three", "two"], Some("Größe: one ")),
            (vec!["two three four"], Some("Größe: one two three 🙂 漢字, ")),
            // Complete first, though another one begins before it; then the longest that ends there.
            (vec!["two three 🙂", "three"], Some("Größe: one two ")),
            (vec!["o", "two", "wo"], Some("Größe: ")),
            (vec!["wo", "two"], Some("Größe: one ")),
            (vec!["öß"], Some("Gr")),
            (vec!["🙂 漢"], Some("Größe: one two three ")),
            (vec!["G"], Some("")),
            // Held back as a beginning, and given out after all.
            (vec!["four!"], None),
            (vec!["two three five", "r four"], None),
        ] {
            for size in [1, 2, 3, tokens.len()] {
                stream.set_stops(stops.iter().map(ToString::to_string).collect()).unwrap();
                let (out, stopped) = streamed(&mut stream, &tokens, size);
                assert_eq!(out, wanted.unwrap_or(sample), "{stops:?} by {size}");
                assert_eq!(stopped, wanted.is_some(), "{stops:?} by {size}");
            }
        }
    }

    #[test]
    fn what_cannot_become_a_stop_string_is_not_held_back() {
        let text = demo();
        let tokens = text.encode("one two", true).unwrap();
        let mut stream = TextStream::new(text.clone());
        stream.set_stops(vec!["two, three".into()]).unwrap();
        assert_eq!(stream.push(&tokens).unwrap(), "one ");
        assert_eq!(stream.push(&text.encode(" or", false).unwrap()).unwrap(), "two or");
        assert_eq!(stream.set_stops(vec!["fine".into(), String::new()]).unwrap_err().code(), 1);
        assert_eq!(stream.push(&text.encode(" two", false).unwrap()).unwrap(), " ", "the former ones stay");
    }

    #[test]
    fn a_stop_string_of_bytes_that_are_no_character() {
        let text = demo();
        let tokens = text.encode("ok漢", true).unwrap();
        let mut stream = TextStream::new(text);
        stream.set_stops(vec!["\u{fffd}".into()]).unwrap();
        assert_eq!(streamed(&mut stream, &tokens[..tokens.len() - 1], 1), ("ok".into(), true), "seen at the end only");
        assert_eq!(streamed(&mut stream, &tokens, 1), ("ok漢".into(), false), "it starts anew");
    }

    #[test]
    fn tokens_outside_the_vocabulary_are_refused() {
        let text = demo();
        assert_eq!(text.decode(&[-1]).unwrap_err().code(), 1);
        assert_eq!(text.decode(&[4096]).unwrap_err().code(), 1);
        assert_eq!(TextStream::new(text).push(&[5, -1]).unwrap_err().code(), 1);
    }
}
