//! Edits protobuf messages without decoding them: weights stay where they are, and unknown fields are kept.

use std::ops::Range;

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field};

/// Field numbers of onnx.proto.
pub const MODEL_GRAPH: u32 = 7;
pub const MODEL_OPSET: u32 = 8;
pub const GRAPH_NODE: u32 = 1;
pub const GRAPH_INITIALIZER: u32 = 5;
pub const GRAPH_INPUT: u32 = 11;
pub const GRAPH_OUTPUT: u32 = 12;
pub const GRAPH_VALUE_INFO: u32 = 13;
pub const NODE_INPUT: u32 = 1;
pub const NODE_OUTPUT: u32 = 2;
pub const NODE_ATTRIBUTE: u32 = 5;
pub const ATTRIBUTE_GRAPH: u32 = 6;
pub const ATTRIBUTE_GRAPHS: u32 = 11;

/// The key byte of field 3 of a graph. onnx.proto does not use it, so readers skip it.
pub const UNUSED: u8 = 3 << 3 | WireType::LengthDelimited as u8;

/// A field of a message: the offset of its key, and the range of its content.
pub struct Field {
    pub key: usize,
    pub content: Range<usize>,
}

/// The fields of a message with one of these numbers, and with content of a length. `None` if the bytes are not a
/// message.
pub fn fields(bytes: &[u8], message: Range<usize>, numbers: &[u32]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    let mut left = &bytes[message.clone()];
    while left.has_remaining() {
        let key = message.end - left.len();
        let (number, kind) = decode_key(&mut left).ok()?;
        if kind != WireType::LengthDelimited || !numbers.contains(&number) {
            skip_field(kind, number, &mut left, DecodeContext::default()).ok()?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut left).ok()?).ok().filter(|&length| length <= left.len())?;
        let start = message.end - left.len();
        found.push(Field { key, content: start..start + length });
        left.advance(length);
    }
    Some(found)
}

/// A message without the fields of a number. `None` if the bytes are not a message.
pub fn without(message: &[u8], number: u32) -> Option<Vec<u8>> {
    let mut kept = message.to_vec();
    for Field { key, content } in fields(message, 0..message.len(), &[number])?.into_iter().rev() {
        kept.drain(key..content.end);
    }
    Some(kept)
}

/// A message whose fields of a number are joined into one, at its end. `None` if the bytes are not a message.
pub fn joined(message: &[u8], number: u32) -> Option<Vec<u8>> {
    let parts = fields(message, 0..message.len(), &[number])?;
    let whole: usize = parts.iter().map(|part| part.content.len()).sum();
    let mut joined = Vec::with_capacity(message.len() + 8);
    let mut end = 0;
    for Field { key, content } in &parts {
        joined.extend_from_slice(&message[end..*key]);
        end = content.end;
    }
    joined.extend_from_slice(&message[end..]);
    encode_key(number, WireType::LengthDelimited, &mut joined);
    encode_varint(whole as u64, &mut joined);
    parts.iter().for_each(|part| joined.extend_from_slice(&message[part.content.clone()]));
    Some(joined)
}

/// Append a field with content of a length.
pub fn put(message: &mut Vec<u8>, number: u32, content: &[u8]) {
    encode_key(number, WireType::LengthDelimited, message);
    encode_varint(content.len() as u64, message);
    message.extend_from_slice(content);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_put_found_and_taken_out() {
        let mut message = vec![8, 9]; // an integer
        put(&mut message, 5, b"one");
        put(&mut message, 6, &[7; 200]);
        put(&mut message, 5, b"");
        let found = fields(&message, 0..message.len(), &[5]).unwrap();
        assert_eq!(found.iter().map(|field| &message[field.content.clone()]).collect::<Vec<_>>(), [&b"one"[..], b""]);
        let kept = without(&message, 5).unwrap();
        assert_eq!(kept[..2], [8, 9]);
        assert_eq!(kept.len(), 2 + 3 + 200);
        assert!(fields(&kept, 0..kept.len(), &[5]).unwrap().is_empty());
        let joined = joined(&message, 5).unwrap();
        let found = fields(&joined, 0..joined.len(), &[5, 6]).unwrap();
        assert_eq!(
            found.iter().map(|field| &joined[field.content.clone()]).collect::<Vec<_>>(),
            [&[7; 200][..], b"one"]
        );
    }
}
