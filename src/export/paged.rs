//! What packed passes put in place of attention on a GPU: an operator of ours, with the inputs of ONNX Runtime's
//! `PagedAttention` and one more, or over quantised caches that operator itself.
//!
//! The operator reads keys and values from blocks that a table names, and writes the new ones there. Its caches are
//! inputs and outputs over the same memory. Lengths and tables are read on the device, so a captured pass serves other
//! sequences too.

use std::ffi::CStr;

use ort::value::TensorElementType;
use prost::Message;

use super::parts::{DOMAIN, LayerShape, Parts, TABLE, number_of, text, value};
use super::proto::{
    AttributeProto, GraphProto, INT32, INT64, ModelProto, NodeProto, OperatorSetId, TensorProto, TensorShape,
};
use super::wire::{self, Field};

/// ONNX Runtime's operator, which replaces attention over quantised caches.
const THEIRS: &CStr = c"PagedAttention";
/// The operator that replaces attention of float16.
pub const OURS: &CStr = c"PagedAttention";
/// The operator that replaces attention of bfloat16.
pub const OURS_OF_BFLOAT16: &CStr = c"PagedAttentionOfBfloat16";

/// Where the tokens of each sequence end in the pass: int32 `[sequences + 1]`, the first one 0.
pub const ENDS: &CStr = c"cos.ends";
/// The tokens of each sequence before the pass: int32 `[sequences]`.
pub const PASTS: &CStr = c"cos.pasts";
/// The blocks of each sequence, -1 for none: int32 `[sequences, blocks]`.
pub const BLOCKS: &CStr = c"cos.blocks";
/// On the host, int32 `[3]`: an upper bound of new tokens of a sequence, one of all its tokens, and a lower bound of
/// the largest number of all tokens.
pub const BOUNDS: &CStr = c"cos.bounds";

/// The initializer that holds the axis of the batch, 0.
const AXIS: &str = "cos.axis";

/// Attributes that `GroupQueryAttention` and `PagedAttention` have both.
pub(super) const COMMON_ATTRIBUTES: [&str; 10] = [
    "num_heads",
    "kv_num_heads",
    "scale",
    "softcap",
    "local_window_size",
    "do_rotary",
    "rotary_interleaved",
    "qk_norm_epsilon",
    "k_quant_type",
    "v_quant_type",
];
/// Bits of a number of the cache. `PagedAttention` has their type instead.
const BITS: &str = "kv_cache_bit_width";
/// Attributes that change nothing for a cache in blocks.
const IGNORED: [&str; 2] = ["sliding_window_cache", BITS];
/// Inputs of `GroupQueryAttention` from the tenth on. `PagedAttention` takes all but the first two.
const INPUTS: [&str; 7] = ["position_ids", "attention_bias", "head_sink", "k_scale", "v_scale", "q_norm", "k_norm"];
const TAKEN: [&str; 5] = ["head_sink", "k_scale", "v_scale", "q_norm", "k_norm"];

/// `Squeeze` and `Unsqueeze` take their axes as an input since this version of the operators.
const OPSET: i64 = 13;

/// The names of the caches of a layer: its keys and values, as inputs and as outputs.
pub fn cache_names(layer: usize) -> [[String; 2]; 2] {
    ["keys", "values"].map(|part| [format!("cos.{part}.{layer}"), format!("cos.{part}.{layer}.out")])
}

/// Refuse attention that `PagedAttention` does not compute.
pub fn check(node: &NodeProto) -> Result<(), String> {
    for (place, name) in INPUTS.iter().enumerate().filter(|(_, name)| !TAKEN.contains(name)) {
        if node.input.get(9 + place).is_some_and(|input| !input.is_empty()) {
            return Err(format!("its attention has the input {name:?}, which PagedAttention lacks"));
        }
    }
    if node.output.iter().skip(3).any(|output| !output.is_empty()) {
        return Err("its attention gives its scores".into());
    }
    let other = node.attribute.iter().find(|attribute| {
        let name = attribute.name.as_str();
        let is_off = attribute.i == 0 && attribute.f == 0.0 && matches!(&attribute.s[..], b"" | b"NONE");
        let is_off = if name == "causal" { attribute.i == 1 } else { is_off };
        !COMMON_ATTRIBUTES.contains(&name) && !IGNORED.contains(&name) && !is_off
    });
    other.map_or(Ok(()), |other| {
        Err(format!("its attention has the attribute {:?}, which PagedAttention lacks", other.name))
    })
}

/// Refuse versions of operators and caches that do not fit.
pub fn check_model(model: &ModelProto, layers: &[LayerShape]) -> Result<(), String> {
    let version = model.opset_import.iter().find(|set| matches!(set.domain.as_str(), "" | "ai.onnx"));
    if version.is_none_or(|set| set.version < OPSET) {
        return Err(format!("its operators are older than opset {OPSET}"));
    }
    let other = layers.iter().find(|layer| layer.element == TensorElementType::Float32);
    other.map_or(Ok(()), |_| Err("its cache is float32, which PagedAttention lacks".into()))
}

/// What replaces the attention operators at these indices, and the inputs and outputs that the model gets.
pub(super) fn parts(graph: &GraphProto, attention: &[(usize, &[u8])], layers: &[LayerShape]) -> Result<Parts, String> {
    let mut parts = Parts::default();
    for (layer, (&(index, raw), shape)) in attention.iter().zip(layers).enumerate() {
        add_layer(&mut parts, &graph.node[index], raw, layer, shape)?;
    }
    parts.inputs.push(value(&text(ENDS), INT32, TensorShape::of(&[-1])));
    parts.inputs.push(value(&text(PASTS), INT32, TensorShape::of(&[-1])));
    parts.inputs.push(value(&text(BLOCKS), INT32, TensorShape::of(&[-1, -1])));
    parts.inputs.push(value(&text(BOUNDS), INT32, TensorShape::of(&[3])));
    parts.inputs.push(value(&text(TABLE), INT64, TensorShape::of(&[1])));
    parts.opsets.push(OperatorSetId { domain: text(DOMAIN), version: 1 });
    parts.weights.push(TensorProto::integers(AXIS, &[1], &[0]));
    Ok(parts)
}

fn add_layer(parts: &mut Parts, node: &NodeProto, raw: &[u8], layer: usize, shape: &LayerShape) -> Result<(), String> {
    let input = |place: usize| node.input.get(place).cloned().unwrap_or_default();
    let name = |part: &str| format!("cos.{part}.{layer}");
    let mut packed = Vec::new();
    for (place, part) in ["query", "key", "value"].iter().enumerate() {
        let (from, to) = (input(place), name(part));
        if from.is_empty() {
            packed.push(String::new());
            continue;
        }
        parts.nodes.push(reshape("Squeeze", from, to.clone()).encode_to_vec());
        packed.push(to);
    }
    let [[keys, keys_out], [values, values_out]] = cache_names(layer);
    let scales = ["k", "v"].map(|part| scale(parts, node, part, layer, shape));
    let inputs = [
        packed,
        vec![keys.clone(), values.clone(), text(ENDS), text(PASTS), text(BLOCKS)],
        vec![input(7), input(8), String::new(), input(11), input(14), input(15)],
        scales.into(),
        vec![text(BOUNDS)],
    ];
    let attended = name("attended");
    let operator = match shape.element {
        TensorElementType::Float16 => Some(OURS),
        TensorElementType::Bfloat16 => Some(OURS_OF_BFLOAT16),
        _ => None,
    };
    let mut inputs = inputs.concat();
    inputs.extend(operator.map(|_| text(TABLE)));
    let paged = NodeProto {
        input: inputs,
        output: vec![attended.clone(), keys_out.clone(), values_out.clone()],
        op_type: text(operator.unwrap_or(THEIRS)),
        attribute: logical_types(node),
        domain: operator.map_or("com.microsoft".into(), |_| text(DOMAIN)),
    };
    let mut encoded = paged.encode_to_vec();
    for Field { content, .. } in wire::fields(raw, 0..raw.len(), &[wire::NODE_ATTRIBUTE]).ok_or("it is not ONNX")? {
        let attribute = AttributeProto::decode(&raw[content.clone()]).map_err(|error| error.to_string())?;
        if COMMON_ATTRIBUTES.contains(&attribute.name.as_str()) {
            wire::put(&mut encoded, wire::NODE_ATTRIBUTE, &raw[content]);
        }
    }
    parts.nodes.push(encoded);
    parts.nodes.push(reshape("Unsqueeze", attended, node.output[0].clone()).encode_to_vec());
    let element = number_of(shape.element)?;
    let cache = TensorShape::of(&[-1, -1, shape.kv_heads as i64, shape.head_size as i64]);
    parts.inputs.extend([keys, values].map(|name| value(&name, element, cache.clone())));
    parts.outputs.extend([keys_out, values_out].map(|name| value(&name, element, cache.clone())));
    Ok(())
}

/// The scale of the keys or values of a quantised cache, or no name.
///
/// `PagedAttention` wants scales of channels in three dimensions; `GroupQueryAttention` takes any.
fn scale(parts: &mut Parts, node: &NodeProto, part: &str, layer: usize, shape: &LayerShape) -> String {
    let own = node.input.get(if part == "k" { 12 } else { 13 }).cloned().unwrap_or_default();
    let kind = node.attribute.iter().find(|attribute| attribute.name == format!("{part}_quant_type"));
    if own.is_empty() || kind.is_none_or(|kind| kind.s != "PER_CHANNEL") {
        return own;
    }
    let (sizes, name) = (format!("cos.{part}_sizes.{layer}"), format!("cos.{part}_scale.{layer}"));
    parts.weights.push(TensorProto::integers(&sizes, &[3], &[shape.kv_heads as i64, 1, -1]));
    parts.nodes.push(NodeProto::standard("Reshape", &[&own, &sizes], &name, &[]).encode_to_vec());
    name
}

/// What tells `PagedAttention` that two numbers of the cache share a byte.
fn logical_types(node: &NodeProto) -> Vec<AttributeProto> {
    let is_half_a_byte = node.attribute.iter().any(|attribute| attribute.name == BITS && attribute.i == 4);
    let types = ["k_cache_dtype", "v_cache_dtype"].map(|name| AttributeProto::text(name, "int4"));
    if is_half_a_byte { types.into() } else { Vec::new() }
}

fn reshape(operator: &str, from: String, to: String) -> NodeProto {
    NodeProto { input: vec![from, AXIS.into()], output: vec![to], op_type: operator.into(), ..NodeProto::default() }
}
