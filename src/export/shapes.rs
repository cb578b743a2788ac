//! Takes the shapes that a graph declares for its inner values out of an `.onnx` file, as it is loaded.
//!
//! ONNX Runtime puts values of one declared shape in one buffer, one after the other. Where an exporter declared them
//! wrongly, passes fail; without the declarations, ONNX Runtime finds out shapes by itself. The weights stay where they are:
//! the file is mapped, and of each declaration one byte is changed in memory, that which says what it is.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;

use memmap2::{MmapMut, MmapOptions};
use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Fields of onnx.proto by their numbers.
const MODEL_GRAPH: u32 = 7;
const GRAPH_NODE: u32 = 1;
const GRAPH_VALUE_INFO: u32 = 13;
const NODE_ATTRIBUTE: u32 = 5;
const ATTRIBUTE_GRAPH: u32 = 6;
const ATTRIBUTE_GRAPHS: u32 = 11;

/// The key of a declaration.
const DECLARED: u8 = (GRAPH_VALUE_INFO << 3) as u8 | WireType::LengthDelimited as u8;

/// The key of a field of a graph with the number 3, which onnx.proto does not use: readers pass over it.
const UNUSED: u8 = 3 << 3 | WireType::LengthDelimited as u8;

/// What ONNX Runtime says where shapes are declared wrongly.
pub fn are_blamed(error: &str) -> bool {
    error.contains("re-use buffer")
}

/// The content of a file without them. Nothing is written to the file.
pub fn without(file: &Path) -> io::Result<MmapMut> {
    // SAFETY: the mapping is private. A file that is cut short meanwhile would raise SIGBUS, as it would when ONNX Runtime
    // maps it.
    let mut bytes = unsafe { MmapOptions::new().map_copy(&File::open(file)?)? };
    let places = places(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not ONNX"))?;
    places.into_iter().for_each(|place| bytes[place] = UNUSED);
    Ok(bytes)
}

/// Where the keys of the declarations are.
fn places(model: &[u8]) -> Option<Vec<usize>> {
    let mut places = Vec::new();
    let mut graphs = fields(model, 0..model.len(), &[MODEL_GRAPH])?;
    while let Some(graph) = graphs.pop() {
        let declared = fields(model, graph.content.clone(), &[GRAPH_VALUE_INFO])?;
        places.extend(declared.iter().map(|field| field.key).filter(|&key| model[key] == DECLARED));
        for node in fields(model, graph.content, &[GRAPH_NODE])? {
            for attribute in fields(model, node.content, &[NODE_ATTRIBUTE])? {
                graphs.extend(fields(model, attribute.content, &[ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS])?);
            }
        }
    }
    Some(places)
}

/// A field of a message: where it begins, and what is in it.
struct Field {
    key: usize,
    content: Range<usize>,
}

/// The fields of a message that have one of these numbers; none of what is no message.
fn fields(model: &[u8], message: Range<usize>, numbers: &[u32]) -> Option<Vec<Field>> {
    let mut found = Vec::new();
    let mut left = &model[message.clone()];
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of up to 127 bytes.
    fn field(number: u32, content: &[u8]) -> Vec<u8> {
        [&[(number << 3) as u8 | 2, content.len() as u8], content].concat()
    }

    #[test]
    fn only_declarations_of_shapes_go() {
        let declared = [field(GRAPH_VALUE_INFO, b"one"), field(GRAPH_VALUE_INFO, b"")].concat();
        let inner = field(ATTRIBUTE_GRAPH, &[field(5, b"weight"), declared.clone()].concat());
        let node = field(GRAPH_NODE, &[field(1, b"input"), field(NODE_ATTRIBUTE, &inner)].concat());
        let graph = field(MODEL_GRAPH, &[declared, node, field(11, &[DECLARED; 3])].concat());
        let model = [vec![8, 9], graph].concat(); // the version of the format is a number
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &model).unwrap();
        let bytes = without(file.path()).unwrap();
        let changed: Vec<usize> = (0..model.len()).filter(|&index| bytes[index] != model[index]).collect();
        assert_eq!(changed.len(), 4);
        assert!(changed.iter().all(|&index| (model[index], bytes[index]) == (DECLARED, UNUSED)));
        assert_eq!(places(&bytes), Some(Vec::new()));
        assert_eq!(std::fs::read(file.path()).unwrap(), model, "the file stays");
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for bytes in [&b"\x3a\xff\xff\xff\xff\x0f"[..], b"\x3a\x05\x6a\xff", b"\x3a"] {
            assert_eq!(places(bytes), None);
        }
    }
}
