//! Removes the shapes that a graph declares for its inner values, while a file is loaded.
//!
//! ONNX Runtime lets values of equal declared shape share a buffer. If an exporter declared shapes wrongly, passes
//! fail. Without declarations, ONNX Runtime infers shapes. Weights are not copied: the file is mapped, and the key byte
//! of each declaration is changed in memory.

use std::fs::File;
use std::io;
use std::path::Path;

use memmap2::{MmapMut, MmapOptions};
use prost::encoding::WireType;

use super::wire::{
    ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS, GRAPH_NODE, GRAPH_VALUE_INFO, MODEL_GRAPH, NODE_ATTRIBUTE, UNUSED, fields,
};

/// The key byte of a declaration.
const DECLARED: u8 = (GRAPH_VALUE_INFO << 3) as u8 | WireType::LengthDelimited as u8;

/// Whether an error of ONNX Runtime is caused by wrong declared shapes.
pub fn are_blamed(error: &str) -> bool {
    error.contains("re-use buffer")
}

/// The content of a file without declared shapes. The file itself is not changed.
pub fn without(file: &Path) -> io::Result<MmapMut> {
    // SAFETY: the mapping is private. If another program truncates the file meanwhile, the process gets SIGBUS, as it
    // would when ONNX Runtime maps the file.
    let mut bytes = unsafe { MmapOptions::new().map_copy(&File::open(file)?)? };
    let keys = keys(&bytes).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not ONNX"))?;
    keys.into_iter().for_each(|key| bytes[key] = UNUSED);
    Ok(bytes)
}

/// The offsets of the key bytes of all declarations. `None` if the bytes are not a message.
fn keys(model: &[u8]) -> Option<Vec<usize>> {
    let mut keys = Vec::new();
    let mut graphs = fields(model, 0..model.len(), &[MODEL_GRAPH])?;
    while let Some(graph) = graphs.pop() {
        let declared = fields(model, graph.content.clone(), &[GRAPH_VALUE_INFO])?;
        keys.extend(declared.iter().map(|field| field.key).filter(|&key| model[key] == DECLARED));
        for node in fields(model, graph.content, &[GRAPH_NODE])? {
            for attribute in fields(model, node.content, &[NODE_ATTRIBUTE])? {
                graphs.extend(fields(model, attribute.content, &[ATTRIBUTE_GRAPH, ATTRIBUTE_GRAPHS])?);
            }
        }
    }
    Some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with up to 127 bytes of content.
    fn field(number: u32, content: &[u8]) -> Vec<u8> {
        [&[(number << 3) as u8 | 2, content.len() as u8], content].concat()
    }

    #[test]
    fn only_declarations_of_shapes_are_removed() {
        let declared = [field(GRAPH_VALUE_INFO, b"one"), field(GRAPH_VALUE_INFO, b"")].concat();
        let inner = field(ATTRIBUTE_GRAPH, &[field(5, b"weight"), declared.clone()].concat());
        let node = field(GRAPH_NODE, &[field(1, b"input"), field(NODE_ATTRIBUTE, &inner)].concat());
        let graph = field(MODEL_GRAPH, &[declared, node, field(11, &[DECLARED; 3])].concat());
        let model = [vec![8, 9], graph].concat(); // the version of the format is an integer field
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &model).unwrap();
        let bytes = without(file.path()).unwrap();
        let changed: Vec<usize> = (0..model.len()).filter(|&index| bytes[index] != model[index]).collect();
        assert_eq!(changed.len(), 4);
        assert!(changed.iter().all(|&index| (model[index], bytes[index]) == (DECLARED, UNUSED)));
        assert_eq!(keys(&bytes), Some(Vec::new()));
        assert_eq!(std::fs::read(file.path()).unwrap(), model, "the file is unchanged");
    }

    #[test]
    fn invalid_messages_are_errors() {
        for bytes in [&b"\x3a\xff\xff\xff\xff\x0f"[..], b"\x3a\x05\x6a\xff", b"\x3a"] {
            assert_eq!(keys(bytes), None);
        }
    }
}
