//! The bytes that each token stands for inside a text.

use tokenizers::normalizers::{NormalizerWrapper, Sequence};
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::metaspace::PrependScheme;
use tokenizers::{DecoderWrapper, Tokenizer, pre_tokenizers};

use super::quiet::quietly;
use super::{Piece, Text};

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenBytes {
    /// These bytes of text.
    Text(Vec<u8>),
    /// No text; its name.
    Special(String),
    /// The vocabulary has no token with this number.
    None,
}

/// How pieces of a vocabulary stand for bytes.
#[derive(Debug, Clone, Copy)]
enum Coding {
    /// Each character is a byte, as in GPT-2.
    ByteLevel,
    /// Text, with this character in place of a space, and bytes such as `<0x0A>`.
    Pieces(char),
}

impl Text {
    /// An error that says why the bytes of tokens are not known: the decoder is of another kind.
    pub fn check_token_bytes(&self) -> Result<(), String> {
        self.coding().map(drop).ok_or_else(|| {
            "the decoder of tokenizer.json is neither ByteLevel nor of pieces with bytes (ByteFallback or Metaspace)"
                .to_owned()
        })
    }

    /// The bytes of a token inside a text.
    pub fn token_bytes(&self, token: u32) -> TokenBytes {
        let piece = match self.piece(token) {
            Piece::Text(piece) => piece,
            Piece::Special(name) => return TokenBytes::Special(name),
            Piece::None => return TokenBytes::None,
        };
        // Added tokens stand for their content.
        if self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&token) {
            return TokenBytes::Text(piece.into_bytes());
        }
        match self.coding() {
            Some(Coding::ByteLevel) => {
                let bytes: Option<Vec<u8>> = piece.chars().map(byte_of).collect();
                TokenBytes::Text(bytes.unwrap_or_else(|| piece.into_bytes()))
            }
            Some(Coding::Pieces(space)) => match super::decoder::byte(&piece) {
                Some(byte) => TokenBytes::Text(vec![byte]),
                None => TokenBytes::Text(piece.replace(space, " ").into_bytes()),
            },
            None => TokenBytes::None,
        }
    }

    /// The tokens of a text that stands inside another one, so that no space is put before it. `None` if it cannot be
    /// encoded.
    pub fn encode_inside(&self, text: &str) -> Option<Vec<u32>> {
        let tokenizer = self.inside.get_or_init(|| inside(self.tokenizer.clone()));
        let encoding = quietly(|| tokenizer.encode_fast(text, false)).ok()?;
        let ids = encoding.get_ids();
        ids.iter().all(|&id| (id as usize) < self.vocab_size).then(|| ids.to_vec())
    }

    fn coding(&self) -> Option<Coding> {
        let mut coding = None;
        read_coding(self.tokenizer.get_decoder()?, &mut coding);
        coding
    }
}

fn read_coding(decoder: &DecoderWrapper, coding: &mut Option<Coding>) {
    match decoder {
        DecoderWrapper::ByteLevel(_) => *coding = Some(Coding::ByteLevel),
        DecoderWrapper::ByteFallback(_) if coding.is_none() => *coding = Some(Coding::Pieces('\u{2581}')),
        DecoderWrapper::Metaspace(space) => *coding = Some(Coding::Pieces(space.get_replacement())),
        DecoderWrapper::Sequence(parts) => parts.get_decoders().iter().for_each(|part| read_coding(part, coding)),
        _ => {}
    }
}

/// The byte that GPT-2 writes as this character.
fn byte_of(character: char) -> Option<u8> {
    let is_itself = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    match u32::from(character) {
        code @ 0..=0xff => Some(code as u8).filter(|&byte| is_itself(byte)),
        // All other bytes follow in ascending order.
        code => (0..=u8::MAX).filter(|&byte| !is_itself(byte)).nth(code as usize - 0x100),
    }
}

/// A tokenizer that puts no space before a text.
fn inside(mut tokenizer: Tokenizer) -> Tokenizer {
    fn normalizer(part: NormalizerWrapper) -> Option<NormalizerWrapper> {
        match part {
            NormalizerWrapper::Prepend(_) => None,
            NormalizerWrapper::Sequence(parts) => {
                let parts: Vec<_> = parts.as_ref().iter().cloned().filter_map(normalizer).collect();
                (!parts.is_empty()).then(|| NormalizerWrapper::Sequence(Sequence::new(parts)))
            }
            other => Some(other),
        }
    }
    fn pre_tokenizer(part: PreTokenizerWrapper) -> PreTokenizerWrapper {
        match part {
            PreTokenizerWrapper::Metaspace(mut space) => {
                space.prepend_scheme = PrependScheme::Never;
                PreTokenizerWrapper::Metaspace(space)
            }
            PreTokenizerWrapper::ByteLevel(mut bytes) => {
                bytes.add_prefix_space = false;
                PreTokenizerWrapper::ByteLevel(bytes)
            }
            PreTokenizerWrapper::Sequence(parts) => {
                let parts = parts.as_ref().iter().cloned().map(pre_tokenizer).collect();
                PreTokenizerWrapper::Sequence(pre_tokenizers::sequence::Sequence::new(parts))
            }
            other => other,
        }
    }
    let parts = tokenizer.get_normalizer().cloned().and_then(normalizer);
    // Without a normaliser, or with a part of the old one, nothing can fail.
    _ = tokenizer.with_normalizer(parts);
    let parts = tokenizer.get_pre_tokenizer().cloned().map(pre_tokenizer);
    tokenizer.with_pre_tokenizer(parts);
    // A grammar asks for text, also where that is the name of a special token.
    tokenizer.set_encode_special_tokens(true);
    tokenizer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_as_in_gpt2() {
        assert_eq!(byte_of('A'), Some(b'A'));
        assert_eq!(byte_of('\u{120}'), Some(b' '));
        assert_eq!(byte_of('\u{10a}'), Some(b'\n'));
        assert_eq!(byte_of('\u{100}'), Some(0));
        assert_eq!(byte_of('\u{143}'), Some(0xad));
        assert_eq!(byte_of(' '), None, "a space is written otherwise");
        assert_eq!(byte_of('\u{144}'), None);
    }
}
