//! The messages of onnx.proto, reduced to the fields that CoS reads or writes.

use prost::Message;
use prost::bytes::Bytes;

/// The content of tensors of up to this many integers is kept, such as axes and offsets of positions.
pub const FEW: usize = 8;

/// Element types by their numbers in onnx.proto.
pub const FLOAT: i32 = 1;
pub const UINT8: i32 = 2;
pub const INT8: i32 = 3;
pub const INT32: i32 = 6;
pub const INT64: i32 = 7;
pub const FLOAT16: i32 = 10;
pub const BFLOAT16: i32 = 16;
pub const FLOAT8E4M3FN: i32 = 17;

#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSetId>,
    #[prost(message, repeated, tag = "25")]
    pub functions: Vec<FunctionProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct OperatorSetId {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

#[derive(Clone, PartialEq, Message)]
pub struct FunctionProto {
    #[prost(message, repeated, tag = "7")]
    pub node: Vec<NodeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    #[prost(int32, tag = "1")]
    pub element: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<TensorShape>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorShape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dimension>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Dimension {
    #[prost(int64, optional, tag = "1")]
    pub size: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, tag = "2")]
    pub f: f32,
    #[prost(int64, tag = "3")]
    pub i: i64,
    #[prost(bytes = "bytes", tag = "4")]
    pub s: Bytes,
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    pub g: Option<GraphProto>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(message, repeated, tag = "11")]
    pub graphs: Vec<GraphProto>,
    /// The number of the type of its value: 1 is a float, 2 an integer, 3 a text, 7 are integers.
    #[prost(int32, tag = "20")]
    pub kind: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(int64, repeated, tag = "7")]
    pub int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    pub name: String,
    /// Shares the memory of the mapped file.
    #[prost(bytes = "bytes", tag = "9")]
    pub raw_data: Bytes,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<StringStringEntry>,
}

impl TensorShape {
    /// A shape of these sizes; a negative one is not known.
    pub fn of(sizes: &[i64]) -> Self {
        let dim = sizes.iter().map(|&size| Dimension { size: (size >= 0).then_some(size), name: None }).collect();
        TensorShape { dim }
    }
}

impl NodeProto {
    /// A standard operator with one output.
    pub fn standard(operator: &str, input: &[&str], output: &str, attribute: &[(&str, i64)]) -> Self {
        NodeProto {
            input: input.iter().map(|&name| name.into()).collect(),
            output: vec![output.into()],
            op_type: operator.into(),
            attribute: attribute.iter().map(|&(name, number)| AttributeProto::integer(name, number)).collect(),
            domain: String::new(),
        }
    }
}

impl AttributeProto {
    /// An integer.
    pub fn integer(name: &str, i: i64) -> Self {
        AttributeProto { name: name.into(), i, kind: 2, ..Self::default() }
    }

    /// Several integers.
    pub fn integers(name: &str, ints: &[i64]) -> Self {
        AttributeProto { name: name.into(), ints: ints.to_vec(), kind: 7, ..Self::default() }
    }

    /// A float.
    pub fn number(name: &str, f: f32) -> Self {
        AttributeProto { name: name.into(), f, kind: 1, ..Self::default() }
    }

    /// A text.
    pub fn text(name: &str, s: &'static str) -> Self {
        AttributeProto { name: name.into(), s: Bytes::from_static(s.as_bytes()), kind: 3, ..Self::default() }
    }

    /// The integers of a `Constant` that is not given as a tensor, if there are at most [`FEW`].
    pub fn constant(&self) -> Option<Vec<i64>> {
        match self.name.as_str() {
            "value_int" => Some(vec![self.i]),
            "value_ints" if self.ints.len() <= FEW => Some(self.ints.clone()),
            _ => None,
        }
    }
}

impl TensorProto {
    /// Integers of 64 bits.
    pub fn integers(name: &str, dims: &[i64], numbers: &[i64]) -> Self {
        let raw_data = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        TensorProto { dims: dims.to_vec(), data_type: INT64, name: name.into(), raw_data, ..Self::default() }
    }

    /// Its content if that is at most [`FEW`] integers, otherwise nothing.
    pub fn few_numbers(&self) -> Vec<i64> {
        let raw = &self.raw_data;
        match self.data_type {
            INT64 if (1..=FEW).contains(&self.int64_data.len()) => self.int64_data.clone(),
            INT64 if raw.len() <= 8 * FEW => raw.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
            INT32 if raw.len() <= 4 * FEW => {
                raw.as_chunks().0.iter().map(|&bytes| i64::from(i32::from_le_bytes(bytes))).collect()
            }
            _ => Vec::new(),
        }
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct StringStringEntry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}
