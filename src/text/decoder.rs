//! Decodes pieces of a vocabulary to text. Replaces two decoders of `tokenizers` that lose text or panic.

use tokenizers::decoders::DecoderWrapper;
use tokenizers::decoders::strip::Strip;
use tokenizers::{Decoder, Result};

/// The text of pieces. Without a decoder, a space separates them, as in `tokenizers`.
pub fn decode(decoder: Option<&DecoderWrapper>, pieces: Vec<String>) -> Result<String> {
    match decoder {
        Some(decoder) => Ok(chain(decoder, pieces)?.concat()),
        None => Ok(pieces.join(" ")),
    }
}

fn chain(decoder: &DecoderWrapper, pieces: Vec<String>) -> Result<Vec<String>> {
    match decoder {
        // Decoders for words look at the last piece, and panic if there is none.
        _ if pieces.is_empty() => Ok(pieces),
        DecoderWrapper::Sequence(parts) => {
            parts.get_decoders().iter().try_fold(pieces, |pieces, part| chain(part, pieces))
        }
        DecoderWrapper::ByteFallback(_) => Ok(join_bytes(pieces)),
        DecoderWrapper::Strip(ends) => Ok(pieces.iter().map(|piece| strip(ends, piece)).collect()),
        other => other.decode_chain(pieces),
    }
}

/// Joins the pieces that are bytes to characters, as sentencepiece does: each whole character stays, and each byte that
/// is not part of one becomes U+FFFD.
///
/// The decoder of `tokenizers` replaces all characters of a run of bytes if one of the bytes is invalid. Text that a
/// stream has given out would then be wrong as soon as an invalid byte follows.
fn join_bytes(pieces: Vec<String>) -> Vec<String> {
    let (mut out, mut bytes) = (Vec::with_capacity(pieces.len()), Vec::new());
    for piece in pieces {
        match byte(&piece) {
            Some(byte) => bytes.push(byte),
            None => {
                append_characters(&mut bytes, &mut out);
                out.push(piece);
            }
        }
    }
    append_characters(&mut bytes, &mut out);
    out
}

fn append_characters(bytes: &mut Vec<u8>, out: &mut Vec<String>) {
    for chunk in bytes.utf8_chunks() {
        out.push(chunk.valid().to_owned());
        out.extend(chunk.invalid().iter().map(|_| "\u{fffd}".to_owned()));
    }
    bytes.clear();
}

/// The byte of a piece such as `<0x0A>`.
pub fn byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Removes a character from the ends of a piece, at most as often as the decoder says. The decoder of `tokenizers`
/// panics if a piece is shorter than that.
fn strip(ends: &Strip, piece: &str) -> String {
    let start = piece.chars().take(ends.start).take_while(|&c| c == ends.content).count();
    let rest = &piece[start * ends.content.len_utf8()..];
    let stop = rest.chars().rev().take(ends.stop).take_while(|&c| c == ends.content).count();
    rest[..rest.len() - stop * ends.content.len_utf8()].to_owned()
}

/// Whether a decoder replaces text after it has fused the pieces, so that a match may span pieces.
pub fn replaces_across_pieces(decoder: Option<&DecoderWrapper>) -> bool {
    let Some(DecoderWrapper::Sequence(parts)) = decoder else { return false };
    let behind = parts.get_decoders().iter().skip_while(|part| !matches!(part, DecoderWrapper::Fuse(_)));
    behind.into_iter().any(|part| matches!(part, DecoderWrapper::Replace(_)))
}

/// A piece that is a whole word. It stands for any text before other pieces.
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
