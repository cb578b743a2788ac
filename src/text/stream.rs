//! Tokens to text, one after the other.

use std::sync::Arc;

use super::stops::Held;
use super::{Piece, Text};
use crate::error::{Error, Result};

/// Pieces that are decoded again with each new one. An unfinished character has its bytes in up to three of them. Three
/// more may look unfinished because the pieces before them are missing.
const KEPT: usize = 16;

/// The end of a sequence of pieces, as its decoder sees it.
///
/// The text of a piece depends on the pieces before it: a first word loses its space, and bytes form a character
/// together. So the last pieces are decoded together, and the new text is what follows the text that was given out.
struct Window {
    /// If the sequence began earlier, the first one stands for all pieces before.
    pieces: Vec<String>,
    /// How much of the text of the pieces was given out.
    given: usize,
}

impl Window {
    /// Behind these pieces, which are the last of a sequence.
    fn behind(text: &Text, pieces: Vec<String>) -> Result<Self> {
        let whole = text.decode_pieces(&pieces)?;
        let mut given = whole.len();
        for more in continuations(&whole) {
            let pieces = [&pieces[..], &more].concat();
            let (with, least) = (text.decode_pieces(&pieces)?, certain(&whole).len());
            given = given.min(common(&whole, &with)).max(least);
        }
        Ok(Window { pieces, given })
    }

    /// Behind a text that is not known.
    fn unknown(text: &Text) -> Result<Self> {
        Self::behind(text, vec![text.word()])
    }

    /// Take another piece, and append what is certain now to `out`.
    fn push(&mut self, text: &Text, piece: String, out: &mut Held) -> Result<()> {
        self.pieces.push(piece);
        let whole = text.decode_pieces(&self.pieces)?;
        self.give(certain(&whole), out);
        if self.pieces.len() > 2 * KEPT {
            let rest = whole.len().saturating_sub(self.given);
            self.pieces.drain(1..self.pieces.len() - KEPT);
            self.pieces[0] = text.word();
            self.given = text.decode_pieces(&self.pieces)?.len().saturating_sub(rest);
        }
        Ok(())
    }

    /// Append what is not certain to `out`, as it is.
    fn flush(&mut self, text: &Text, out: &mut Held) -> Result<()> {
        let whole = text.decode_pieces(&self.pieces)?;
        self.give(&whole, out);
        Ok(())
    }

    fn give(&mut self, whole: &str, out: &mut Held) {
        if whole.len() > self.given {
            out.push(whole.get(self.given..).unwrap_or_default());
            self.given = whole.len();
        }
    }
}

/// A text without what may be an unfinished character: at most three bytes, each of which may be shown as U+FFFD.
fn certain(text: &str) -> &str {
    (0..3).fold(text, |text, _| text.strip_suffix('\u{fffd}').unwrap_or(text))
}

/// Pieces that finish the last character of a text, if it is unfinished: one to three bytes, as both kinds of decoders
/// write bytes. Behind each byte that begins a character, one of the two first bytes is valid.
fn continuations(text: &str) -> impl Iterator<Item = Vec<String>> {
    let unfinished = if text.ends_with('\u{fffd}') { 1..4 } else { 0..0 };
    let first = [["<0x8F>", "<0xA0>"], ["\u{131}", "\u{142}"]];
    unfinished.flat_map(move |count| {
        first.into_iter().flat_map(move |bytes| {
            let next = bytes[0];
            bytes.into_iter().map(move |byte| [vec![byte.to_owned()], vec![next.to_owned(); count - 1]].concat())
        })
    })
}

/// How many bytes of two texts are the same, as whole characters.
fn common(one: &str, other: &str) -> usize {
    one.chars().zip(other.chars()).take_while(|(one, other)| one == other).map(|(one, _)| one.len_utf8()).sum()
}

/// Turns a stream of tokens into a stream of text that is always whole UTF-8, and ends before the first stop string.
///
/// The text continues a prompt: the text of the prompt and the text of the stream together are the text of all tokens.
/// Unless [`TextStream::prompt`] tells the prompt, it is assumed to end with a whole word.
pub struct TextStream {
    text: Arc<Text>,
    window: Window,
    /// Whether tokens came since the last text ended.
    begun: bool,
    held: Held,
    out: String,
}

impl TextStream {
    /// An empty stream.
    pub fn new(text: Arc<Text>) -> Result<Self> {
        let window = Window::unknown(&text)?;
        Ok(TextStream { text, window, begun: false, held: Held::default(), out: String::new() })
    }

    /// Tell which tokens come before the text; without any, the text begins with the next token.
    pub fn prompt(&mut self, tokens: &[i32]) -> Result<()> {
        if self.begun {
            return Err(Error::InvalidArgument(
                "the text has begun already; tell its prompt before the first push, or after finish".into(),
            ));
        }
        let ids = self.text.ids(tokens)?;
        let mut pieces: Vec<String> =
            ids.iter().rev().filter_map(|&id| self.text.piece(id).text()).take(KEPT).collect();
        if pieces.len() == KEPT {
            pieces.push(self.text.word());
        }
        pieces.reverse();
        self.window = Window::behind(&self.text, pieces)?;
        Ok(())
    }

    /// End the text before the first of these strings, in place of those set before. What was given out stays so.
    pub fn set_stops(&mut self, stops: Vec<String>) -> Result<()> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::InvalidArgument(format!(
                "stop string {index} is empty, which every text has; leave it out"
            )));
        }
        self.held.set_stops(stops)
    }

    /// Whether a stop string has ended the text, or did when that was finished. Tokens make no more text until
    /// [`TextStream::finish`].
    pub fn stopped(&self) -> bool {
        self.held.stopped()
    }

    /// The text that these tokens complete. Bytes of an unfinished character are held back, and so is what may become a
    /// stop string.
    ///
    /// If a token is not in the vocabulary, none is taken.
    pub fn push(&mut self, tokens: &[i32]) -> Result<&str> {
        let ids = self.text.ids(tokens)?;
        if !std::mem::replace(&mut self.begun, true) {
            self.held.restart();
        }
        self.out.clear();
        for id in ids {
            match self.text.piece(id) {
                Piece::Text(piece) => self.window.push(&self.text, piece, &mut self.held)?,
                Piece::Special(name) => {
                    // If the text ends here, all of it must be there.
                    if self.held.expects(&name) {
                        self.window.flush(&self.text, &mut self.held)?;
                    }
                    self.held.push_name(&name);
                }
                Piece::None => {}
            }
        }
        self.held.give(&mut self.out);
        Ok(&self.out)
    }

    /// The end of the stream: what was held back, with U+FFFD for bytes that are no character, up to a stop string. The
    /// stream starts anew, behind a prompt that is not known.
    pub fn finish(&mut self) -> Result<&str> {
        self.out.clear();
        self.window.flush(&self.text, &mut self.held)?;
        self.held.give_all(&mut self.out);
        self.window = Window::unknown(&self.text)?;
        self.begun = false;
        Ok(&self.out)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::{demo, load};
    use super::*;

    #[test]
    fn what_was_given_out_before_a_special_token_is_not_given_again() {
        let text = demo();
        let byte = text.encode("漢", true).unwrap()[0];
        let mut stream = TextStream::new(text).unwrap();
        stream.set_stops(vec!["x<|endoftext|>".into()]).unwrap();
        let mut out = stream.push(&[byte, 0].repeat(100)).unwrap().to_owned();
        out.push_str(stream.finish().unwrap());
        assert_eq!(out, "\u{fffd}".repeat(100));
    }

    #[test]
    fn a_push_decodes_few_pieces_whatever_was_before() {
        let vocab = json!({ "<unk>": 0, "<pad>": 1, "a": 2, "é": 3 });
        let decoder = json!({ "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true });
        let silent = load(&json!({
            "version": "1.0", "added_tokens": [], "decoder": decoder,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" }
        }));
        // Special tokens, bytes that are no character, and pieces without text.
        for (text, token) in [(demo(), 0), (demo(), demo().encode("漢", true).unwrap()[0]), (silent, 1)] {
            let mut stream = TextStream::new(text).unwrap();
            for _ in 0..1000 {
                stream.push(&[token]).unwrap();
                assert!(stream.window.pieces.len() <= 2 * KEPT, "token {token}");
            }
        }
    }
}
