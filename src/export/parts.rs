//! What the rewritings of exports have in common: the parts that a graph gets.

use std::ffi::CStr;

use ort::value::TensorElementType;

use super::proto::{
    BFLOAT16, FLOAT, FLOAT16, OperatorSetId, TensorProto, TensorShape, TensorType, TypeProto, ValueInfoProto,
};

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

/// The number of a type in onnx.proto.
pub(super) fn number_of(element: TensorElementType) -> Result<i32, String> {
    match element {
        TensorElementType::Float32 => Ok(FLOAT),
        TensorElementType::Float16 => Ok(FLOAT16),
        TensorElementType::Bfloat16 => Ok(BFLOAT16),
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
