//! What the rewritings of exports have in common: the parts that a graph gets.

use std::ffi::CStr;

use ort::value::TensorElementType;
use prost::Message;

use super::proto::{
    BFLOAT16, FLOAT, FLOAT8E4M3FN, FLOAT16, INT8, OperatorSetId, TensorProto, TensorShape, TensorType, TypeProto,
    UINT8, ValueInfoProto,
};
use super::wire;

/// The domain of our operators.
pub const DOMAIN: &CStr = c"cos";
/// The input with the address of what our operators need to know of a pass.
pub const TABLE: &CStr = c"cos.table";

/// The shape of what an attention operator keeps of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerShape {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_size: usize,
    /// The type of the numbers.
    pub element: TensorElementType,
}

/// What a rewritten graph gets.
#[derive(Default)]
pub(super) struct Parts {
    /// Operators, encoded.
    pub nodes: Vec<Vec<u8>>,
    pub inputs: Vec<ValueInfoProto>,
    pub outputs: Vec<ValueInfoProto>,
    pub weights: Vec<TensorProto>,
    pub opsets: Vec<OperatorSetId>,
}

impl Parts {
    /// Put the parts into a model of which the fields with these keys go.
    ///
    /// What goes gets an unused key, and what comes is appended. A second `graph` field of a message is merged with the
    /// first one.
    pub fn amend(&self, bytes: &mut Vec<u8>, gone: Vec<usize>) {
        for key in gone {
            // The number of the field is in the key byte. Readers skip a number that onnx.proto does not use.
            bytes[key] = wire::UNUSED;
        }
        let mut more = Vec::new();
        self.nodes.iter().for_each(|node| wire::put(&mut more, wire::GRAPH_NODE, node));
        self.weights.iter().for_each(|part| wire::put(&mut more, wire::GRAPH_INITIALIZER, &part.encode_to_vec()));
        self.inputs.iter().for_each(|part| wire::put(&mut more, wire::GRAPH_INPUT, &part.encode_to_vec()));
        self.outputs.iter().for_each(|part| wire::put(&mut more, wire::GRAPH_OUTPUT, &part.encode_to_vec()));
        wire::put(bytes, wire::MODEL_GRAPH, &more);
        self.opsets.iter().for_each(|part| wire::put(bytes, wire::MODEL_OPSET, &part.encode_to_vec()));
    }
}

/// The number of a type in onnx.proto.
pub(super) fn number_of(element: TensorElementType) -> Result<i32, String> {
    match element {
        TensorElementType::Float32 => Ok(FLOAT),
        TensorElementType::Float16 => Ok(FLOAT16),
        TensorElementType::Bfloat16 => Ok(BFLOAT16),
        TensorElementType::Int8 => Ok(INT8),
        TensorElementType::Uint8 => Ok(UINT8),
        TensorElementType::Float8E4M3FN => Ok(FLOAT8E4M3FN),
        other => Err(format!("its cache or its logits are {other}")),
    }
}

/// An input or output of a graph.
pub(super) fn value(name: &str, element: i32, shape: TensorShape) -> ValueInfoProto {
    let tensor = TensorType { element, shape: Some(shape) };
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor: Some(tensor) }) }
}

/// A name as the messages of ONNX hold it.
pub(super) fn text(name: &CStr) -> String {
    name.to_string_lossy().into_owned()
}
