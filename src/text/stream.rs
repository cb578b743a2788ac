//! Decodes tokens to text as they come.

use std::sync::Arc;

use super::stops::StopFilter;
use super::{Piece, Text};
use crate::error::{Error, Result};

/// How many pieces are decoded again with each new piece. The bytes of an unfinished character are in up to three of
/// them. Up to three more may look unfinished, because the pieces before them are missing.
const KEPT: usize = 16;

/// The last pieces of a sequence, which are decoded together.
///
/// The text of a piece depends on the pieces before it: a first word loses its space, and several bytes form a
/// character. So the last pieces are decoded together, and the new text is the part behind the text that was given out.
struct Window {
    /// The pieces. If the sequence began earlier, the first piece stands for all before.
    pieces: Vec<String>,
    /// How many bytes of the text of `pieces` were given out.
    given: usize,
}

impl Window {
    /// A window behind a prompt that ends with these pieces.
    fn behind(text: &Text, pieces: Vec<String>) -> Result<Self> {
        let whole = text.decode_pieces(&pieces)?;
        let mut given = whole.len();
        for more in continuations(&whole) {
            let pieces = [&pieces[..], &more].concat();
            let (with, least) = (text.decode_pieces(&pieces)?, finished(&whole).len());
            given = given.min(common(&whole, &with)).max(least);
        }
        Ok(Window { pieces, given })
    }

    /// A window behind an unknown prompt.
    fn unknown(text: &Text) -> Result<Self> {
        Self::behind(text, vec![text.word()])
    }

    /// Append a piece, and give the text that is complete now to `out`.
    fn push(&mut self, text: &Text, piece: String, out: &mut StopFilter) -> Result<()> {
        self.pieces.push(piece);
        let whole = text.decode_pieces(&self.pieces)?;
        self.give(finished(&whole), out);
        if self.pieces.len() > 2 * KEPT {
            let rest = whole.len().saturating_sub(self.given);
            self.pieces.drain(1..self.pieces.len() - KEPT);
            self.pieces[0] = text.word();
            self.given = text.decode_pieces(&self.pieces)?.len().saturating_sub(rest);
        }
        Ok(())
    }

    /// Give the rest of the text to `out`, with U+FFFD for an unfinished character.
    fn flush(&mut self, text: &Text, out: &mut StopFilter) -> Result<()> {
        let whole = text.decode_pieces(&self.pieces)?;
        self.give(&whole, out);
        Ok(())
    }

    fn give(&mut self, whole: &str, out: &mut StopFilter) {
        if whole.len() > self.given {
            out.push(whole.get(self.given..).unwrap_or_default());
            self.given = whole.len();
        }
    }
}

/// A text without an unfinished character at its end, which is up to three bytes, each decoded as U+FFFD.
fn finished(text: &str) -> &str {
    (0..3).fold(text, |text, _| text.strip_suffix('\u{fffd}').unwrap_or(text))
}

/// Pieces that may finish an unfinished character at the end of a text: one to three bytes, in the notations of both
/// kinds of decoders. Behind any byte that begins a character, one of the two first bytes is valid.
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

/// The length in bytes of the common beginning of two texts, in whole characters.
fn common(one: &str, other: &str) -> usize {
    one.chars().zip(other.chars()).take_while(|(one, other)| one == other).map(|(one, _)| one.len_utf8()).sum()
}

/// Decodes a stream of tokens to text. Gives out whole characters only, and ends the text before the first stop string.
///
/// The text continues a prompt: the text of the prompt and the text of the stream together are the text of all tokens.
/// If [`TextStream::prompt`] does not set the prompt, the stream assumes that it ends with a whole word.
pub struct TextStream {
    text: Arc<Text>,
    window: Window,
    /// Whether tokens came since the last text was finished.
    begun: bool,
    /// Whether special tokens give their names as text.
    shows_special: bool,
    filter: StopFilter,
    out: String,
}

impl TextStream {
    /// An empty stream behind an unknown prompt.
    pub fn new(text: Arc<Text>) -> Result<Self> {
        let window = Window::unknown(&text)?;
        let (begun, shows_special) = (false, false);
        Ok(TextStream { text, window, begun, shows_special, filter: StopFilter::default(), out: String::new() })
    }

    /// Set whether special tokens give their names as text. The prompt becomes unknown.
    pub fn show_special(&mut self, shows: bool) -> Result<()> {
        self.check_not_begun("choose whether special tokens are shown")?;
        self.window = Window::unknown(&self.text)?;
        self.shows_special = shows;
        Ok(())
    }

    fn check_not_begun(&self, mend: &str) -> Result<()> {
        let refuse = || {
            Error::InvalidArgument(format!("the text has begun already; {mend} before the first push, or after finish"))
        };
        if self.begun { Err(refuse()) } else { Ok(()) }
    }

    /// The piece that a token gives to the text, or the name of a special token that gives none.
    fn piece(&self, id: u32) -> Piece {
        match self.text.piece(id) {
            Piece::Special(name) if self.shows_special => Piece::Text(name),
            piece => piece,
        }
    }

    /// Set the prompt: all tokens before the text. If it is empty, the text begins with the next token.
    pub fn prompt(&mut self, tokens: &[i32]) -> Result<()> {
        self.check_not_begun("set its prompt")?;
        let ids = self.text.ids(tokens)?;
        let mut pieces: Vec<String> = ids.iter().rev().filter_map(|&id| self.piece(id).text()).take(KEPT).collect();
        if pieces.len() == KEPT {
            pieces.push(self.text.word());
        }
        pieces.reverse();
        self.window = Window::behind(&self.text, pieces)?;
        Ok(())
    }

    /// Replace the stop strings: the text ends before the first of them. Text that was given out already stays.
    pub fn set_stops(&mut self, stops: Vec<String>) -> Result<()> {
        if let Some(index) = stops.iter().position(String::is_empty) {
            return Err(Error::InvalidArgument(format!(
                "stop string {index} is empty, so every text has it; leave it out"
            )));
        }
        self.filter.set_stops(stops)
    }

    /// Whether a stop string has ended the text. If so, tokens give no more text until [`TextStream::finish`]. After
    /// that call, the answer is about the finished text until the next push.
    pub fn stopped(&self) -> bool {
        self.filter.stopped()
    }

    /// The text that these tokens complete. Holds back the bytes of an unfinished character, and text that may become a
    /// stop string. If a token is not in the vocabulary, the call fails and takes none of them. A call without tokens
    /// begins no text.
    pub fn push(&mut self, tokens: &[i32]) -> Result<&str> {
        let ids = self.text.ids(tokens)?;
        if tokens.is_empty() && !self.begun {
            self.out.clear();
            return Ok(&self.out);
        }
        if !std::mem::replace(&mut self.begun, true) {
            self.filter.restart();
        }
        self.out.clear();
        for id in ids {
            match self.piece(id) {
                Piece::Text(piece) => self.window.push(&self.text, piece, &mut self.filter)?,
                Piece::Special(name) => {
                    // A stop string may end the text here, so all text before the token must be in the filter.
                    if self.filter.expects(&name) {
                        self.window.flush(&self.text, &mut self.filter)?;
                    }
                    self.filter.push_name(&name);
                }
                Piece::None => {}
            }
        }
        self.filter.release(&mut self.out);
        Ok(&self.out)
    }

    /// Finish the text, and get its rest: the text that was held back, up to a stop string. Bytes that do not form a
    /// character become U+FFFD. The stream starts a new text behind an unknown prompt.
    pub fn finish(&mut self) -> Result<&str> {
        self.out.clear();
        self.window.flush(&self.text, &mut self.filter)?;
        self.filter.release_all(&mut self.out);
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
    fn text_before_a_special_token_is_given_out_once() {
        let text = demo();
        let byte = text.encode("漢", true).unwrap()[0];
        let mut stream = TextStream::new(text).unwrap();
        stream.set_stops(vec!["x<|endoftext|>".into()]).unwrap();
        let mut out = stream.push(&[byte, 0].repeat(100)).unwrap().to_owned();
        out.push_str(stream.finish().unwrap());
        assert_eq!(out, "\u{fffd}".repeat(100));
    }

    #[test]
    fn a_push_without_tokens_begins_no_text() {
        let mut stream = TextStream::new(demo()).unwrap();
        assert_eq!(stream.push(&[]).unwrap(), "");
        stream.prompt(&[]).unwrap();
        stream.set_stops(vec!["\n".into()]).unwrap();
        let text = demo().encode("a\nb", true).unwrap();
        assert_eq!(stream.push(&text).unwrap(), "a");
        stream.finish().unwrap();
        assert_eq!(stream.push(&[]).unwrap(), "");
        assert!(stream.stopped(), "the answer is about the finished text");
        stream.prompt(&[]).unwrap();
    }

    #[test]
    fn a_push_decodes_few_pieces_whatever_came_before() {
        let vocab = json!({ "<unk>": 0, "<pad>": 1, "a": 2, "é": 3 });
        let decoder = json!({ "type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": true });
        let silent = load(&json!({
            "version": "1.0", "added_tokens": [], "decoder": decoder,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" }
        }));
        // A special token, a byte that is not a character, and a piece without text.
        for (text, token) in [(demo(), 0), (demo(), demo().encode("漢", true).unwrap()[0]), (silent, 1)] {
            let mut stream = TextStream::new(text).unwrap();
            for _ in 0..1000 {
                stream.push(&[token]).unwrap();
                assert!(stream.window.pieces.len() <= 2 * KEPT, "token {token}");
            }
        }
    }
}
