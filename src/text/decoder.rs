//! Pieces of a vocabulary to text: the decoders of `tokenizers`, and two of ours where those lose text or panic.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::strip::Strip;
use tokenizers::{Decoder, Result};

/// The text of pieces, as a `tokenizer.json` without a decoder has it too.
pub fn decode(decoder: Option<&DecoderWrapper>, pieces: Vec<String>) -> Result<String> {
    match decoder {
        Some(decoder) => Ok(chain(decoder, pieces)?.concat()),
        None => Ok(pieces.join(" ")),
    }
}

fn chain(decoder: &DecoderWrapper, pieces: Vec<String>) -> Result<Vec<String>> {
    match decoder {
        // Decoders for words look at the last piece, and must not be asked without one.
        _ if pieces.is_empty() => Ok(pieces),
        DecoderWrapper::Sequence(parts) => {
            parts.get_decoders().iter().try_fold(pieces, |pieces, part| chain(part, pieces))
        }
        DecoderWrapper::ByteFallback(_) => Ok(characters(pieces)),
        DecoderWrapper::Strip(ends) => Ok(pieces.iter().map(|piece| strip(ends, piece)).collect()),
        other => other.decode_chain(pieces),
    }
}

/// Pieces with the bytes among them put together, as sentencepiece does it: each whole character is itself, and each
/// byte that belongs to none is U+FFFD.
///
/// `tokenizers` gives up all characters in a row of bytes if one byte of it is not valid. What a stream has given out
/// would then be wrong as soon as such a byte follows.
fn characters(pieces: Vec<String>) -> Vec<String> {
    let (mut out, mut bytes) = (Vec::with_capacity(pieces.len()), Vec::new());
    for piece in pieces {
        match byte(&piece) {
            Some(byte) => bytes.push(byte),
            None => {
                put_together(&mut bytes, &mut out);
                out.push(piece);
            }
        }
    }
    put_together(&mut bytes, &mut out);
    out
}

fn put_together(bytes: &mut Vec<u8>, out: &mut Vec<String>) {
    for chunk in bytes.utf8_chunks() {
        out.push(chunk.valid().to_owned());
        out.extend(chunk.invalid().iter().map(|_| "\u{fffd}".to_owned()));
    }
    bytes.clear();
}

/// The byte of a piece such as `<0x0A>`.
fn byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// A piece without at most so many of a character at its ends. That of `tokenizers` panics where a piece is shorter.
fn strip(ends: &Strip, piece: &str) -> String {
    let start = piece.chars().take(ends.start).take_while(|&c| c == ends.content).count();
    let rest = &piece[start * ends.content.len_utf8()..];
    let stop = rest.chars().rev().take(ends.stop).take_while(|&c| c == ends.content).count();
    rest[..rest.len() - stop * ends.content.len_utf8()].to_owned()
}

/// Whether it replaces text that may be of several pieces, once they are one.
pub fn replaces_across_pieces(decoder: Option<&DecoderWrapper>) -> bool {
    let Some(DecoderWrapper::Sequence(parts)) = decoder else { return false };
    let behind = parts.get_decoders().iter().skip_while(|part| !matches!(part, DecoderWrapper::Fuse(_)));
    behind.into_iter().any(|part| matches!(part, DecoderWrapper::Replace(_)))
}

/// A piece that is a whole word, to stand for a text before other pieces.
pub fn word(decoder: Option<&DecoderWrapper>) -> String {
    fn suffix(decoder: &DecoderWrapper) -> Option<&str> {
        match decoder {
            DecoderWrapper::BPE(words) => Some(&words.suffix),
            DecoderWrapper::Sequence(parts) => parts.get_decoders().iter().find_map(suffix),
            _ => None,
        }
    }
    format!("text{}", decoder.and_then(suffix).unwrap_or_default())
}
