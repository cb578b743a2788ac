//! Rewrites an export in memory, so that one pass takes the tokens of many sequences.
//!
//! Everything but attention works on single positions. So each `GroupQueryAttention` becomes a `PackedAttention` of
//! ours, which knows whose a token is, and keeps keys and values in blocks. The inputs and outputs of the cache go, and
//! so does all that fed only them. Only the rows that are wanted are multiplied with the vocabulary.
//!
//! The file is not changed, and weights are not touched; see [`Parts::amend`].

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::fs::File;
use std::path::Path;

use memmap2::Mmap;
use ort::value::TensorElementType;
use prost::Message;
use prost::bytes::Bytes;

use super::fused::fused;
use super::graph::Graph;
use super::parts::{DOMAIN, LayerShape, Parts, TABLE, number_of, text, value};
use super::product::product;
use super::proto::{
    AttributeProto, FLOAT, FLOAT16, GraphProto, INT64, ModelProto, NodeProto, OperatorSetId, TensorShape,
    ValueInfoProto,
};
use super::wire::{self, Field};
use super::{CacheContent, CacheKind, Export, GivenRows, Logits, Role, branches, paged};

/// The operator that replaces attention.
pub const ATTENTION: &CStr = c"PackedAttention";
/// The input with the indices of the tokens whose rows are wanted.
pub const ROWS: &CStr = c"cos.rows";

/// The output of logits on the processor, if those of the export are not float32.
pub const LOGITS: &CStr = c"cos.logits";

/// The attributes of `GroupQueryAttention` that ours has too.
const ATTRIBUTES: [&str; 8] = [
    "num_heads",
    "kv_num_heads",
    "scale",
    "softcap",
    "local_window_size",
    "do_rotary",
    "rotary_interleaved",
    "smooth_softmax",
];
/// Attributes that change nothing for a cache in blocks.
const IGNORED: [&str; 2] = ["sliding_window_cache", "qk_norm_epsilon"];
/// The input of `GroupQueryAttention` with the positions of tokens. Ours counts them from the beginning of a sequence.
const POSITIONS: usize = 9;

/// Where the rewritten model runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunsOn {
    /// On the processor, by an operator of ours.
    Host,
    /// On a GPU, by ONNX Runtime's `PagedAttention`; see [`paged`].
    Gpu,
}

/// A rewritten export.
pub struct Packed {
    /// The model.
    pub bytes: Vec<u8>,
    /// By attention operator: what it keeps of a token.
    pub layers: Vec<LayerShape>,
}

/// Rewrite the model of an export. The error is the reason why it cannot be packed.
pub fn rewrite(export: &Export, graph: &Graph, target: RunsOn) -> Result<Packed, String> {
    let mut bytes = graph.unpaged.clone().map_or_else(|| read(&export.file), Ok)?;
    let mut model = ModelProto::decode(bytes.clone()).map_err(|error| error.to_string())?;
    if export.cache_kind == CacheKind::Concatenated {
        bytes = Bytes::from(fused(&bytes, &model, export)?);
        model = ModelProto::decode(bytes.clone()).map_err(|error| error.to_string())?;
    }
    let graph = model.graph.as_ref().ok_or("it holds no graph")?;
    refuse_operators(&model, graph, export.context_length)?;
    if export.logits.rank != 3 || export.logits.rows != GivenRows::All {
        return Err("it gives logits of its last positions only".into());
    }
    let logits = export.logits.name.to_str().map_err(|_| "a name is not UTF-8")?;
    let edit = Edit::of(graph, logits, target)?;
    let inputs = edit.inputs(export)?;
    let layers = layers(graph, &edit, export)?;
    match target {
        RunsOn::Host if layers.iter().any(|layer| !is_host_type(layer.element)) => {
            return Err("its cache is neither float32 nor float16".into());
        }
        RunsOn::Host => {}
        RunsOn::Gpu => paged::check_model(&model, &layers)?,
    }
    let bytes = edit.apply(bytes.to_vec(), graph, &inputs, &export.logits, &layers, target)?;
    Ok(Packed { bytes, layers })
}

/// Whether our operator takes numbers of a type. It computes with float32.
fn is_host_type(element: TensorElementType) -> bool {
    matches!(element, TensorElementType::Float32 | TensorElementType::Float16)
}

/// The content of a file, mapped.
fn read(file: &Path) -> Result<Bytes, String> {
    let file = File::open(file).map_err(|error| error.to_string())?;
    // SAFETY: the mapping is only read. If another program truncates the file meanwhile, the process gets SIGBUS, as it
    // would when ONNX Runtime maps the file.
    let bytes = unsafe { Mmap::map(&file) }.map_err(|error| error.to_string())?;
    Ok(Bytes::from_owner(bytes))
}

/// Refuse graphs in which tokens depend on each other outside of attention.
fn refuse_operators(model: &ModelProto, graph: &GraphProto, length: usize) -> Result<(), String> {
    let functions = model.functions.iter().flat_map(|function| &function.node);
    for node in graph.node.iter().chain(functions) {
        // Fused forms have longer names.
        if node.op_type.starts_with("DynamicQuantize") {
            return Err(format!("it quantises the activations of all tokens of a pass together ({})", node.op_type));
        }
        let has_graph = node.attribute.iter().any(|attribute| attribute.g.is_some() || !attribute.graphs.is_empty());
        if has_graph && !branches::are_tables(node, length) {
            return Err(format!("it has a subgraph ({})", node.op_type));
        }
    }
    Ok(())
}

/// What is changed, by the indices of nodes.
struct Edit<'a> {
    /// The attention operators that are replaced, layer by layer.
    attention: Vec<usize>,
    /// The product with the vocabulary, whose input is reduced to the wanted rows.
    product: usize,
    /// All nodes that stay, those above included.
    stays: HashSet<usize>,
    /// The values that they read.
    read: HashSet<&'a str>,
}

impl<'a> Edit<'a> {
    fn of(graph: &'a GraphProto, logits: &str, target: RunsOn) -> Result<Self, String> {
        let writers: HashMap<&str, usize> = graph
            .node
            .iter()
            .enumerate()
            .flat_map(|(index, node)| node.output.iter().map(move |output| (output.as_str(), index)))
            .filter(|(name, _)| !name.is_empty())
            .collect();
        let product = product(graph, &writers, logits)?;
        let last = *writers.get(logits).ok_or("no operator writes its logits")?;
        let mut edit = Edit { attention: Vec::new(), product, stays: HashSet::from([last]), read: HashSet::new() };
        let mut open = vec![last];
        while let Some(index) = open.pop() {
            let node = &graph.node[index];
            let is_attention = is_attention(node);
            if is_attention {
                match target {
                    RunsOn::Host => check_attention(node, |name| writers.contains_key(name))?,
                    RunsOn::Gpu => paged::check(node)?,
                }
                edit.attention.push(index);
            }
            for (place, input) in node.input.iter().enumerate().filter(|(_, input)| !input.is_empty()) {
                // The cache, its lengths, the mask and the positions are in the table. Tables for short texts are taken
                // whatever the length of the text.
                if is_attention && ((3..7).contains(&place) || place == POSITIONS) || node.op_type == "If" {
                    continue;
                }
                edit.read.insert(input);
                if let Some(&writer) = writers.get(input.as_str())
                    && edit.stays.insert(writer)
                {
                    open.push(writer);
                }
            }
        }
        if edit.attention.is_empty() {
            return Err("its attention is not GroupQueryAttention".into());
        }
        edit.attention.sort_unstable();
        Ok(edit)
    }

    /// The names of the export's inputs that are still read.
    fn inputs(&self, export: &Export) -> Result<Vec<String>, String> {
        let reads = |name: &CStr| name.to_str().is_ok_and(|name| self.read.contains(name));
        if let Some(cached) = export.cache.iter().find(|cached| reads(&cached.past)) {
            return Err(format!("the input {:?} is used outside of attention", cached.past));
        }
        let inputs = export.inputs.iter().filter(|input| reads(&input.name));
        for input in inputs.clone() {
            if !matches!(input.role, Role::Tokens | Role::Positions) {
                return Err(format!("the input {:?} is used outside of attention", input.name));
            }
        }
        Ok(inputs.map(|input| text(&input.name)).collect())
    }

    /// The rewritten model.
    fn apply(
        &self,
        mut bytes: Vec<u8>,
        graph: &GraphProto,
        read: &[String],
        logits: &Logits,
        layers: &[LayerShape],
        target: RunsOn,
    ) -> Result<Vec<u8>, String> {
        let invalid = || "it is not ONNX".to_owned();
        let [whole] = &wire::fields(&bytes, 0..bytes.len(), &[wire::MODEL_GRAPH]).ok_or_else(invalid)?[..] else {
            return Err("it holds several graphs".into());
        };
        let of = |numbers: &[u32]| wire::fields(&bytes, whole.content.clone(), numbers).ok_or_else(invalid);
        let nodes = of(&[wire::GRAPH_NODE])?;
        let (inputs, outputs) = (of(&[wire::GRAPH_INPUT])?, of(&[wire::GRAPH_OUTPUT])?);
        let chooses = |&index: &usize| graph.node[index].op_type == "If";
        let rewritten = |index: &usize| self.attention.contains(index) || *index == self.product || chooses(index);
        let mut gone: Vec<usize> = of(&[wire::GRAPH_VALUE_INFO])?.iter().chain(&outputs).map(|f| f.key).collect();
        gone.extend(
            nodes.iter().enumerate().filter(|(i, _)| !self.stays.contains(i) || rewritten(i)).map(|(_, f)| f.key),
        );
        for field in inputs {
            let input = ValueInfoProto::decode(&bytes[field.content.clone()]).map_err(|error| error.to_string())?;
            let stays = read.contains(&input.name);
            let is_weight = graph.initializer.iter().any(|weight| weight.name == input.name);
            gone.extend((!stays && !is_weight).then_some(field.key));
        }
        let raw = |index: usize| &bytes[nodes[index].content.clone()];
        let attention: Vec<(usize, &[u8])> = self.attention.iter().map(|&index| (index, raw(index))).collect();
        let mut parts = match target {
            RunsOn::Host => host_parts(graph, &attention, layers)?,
            RunsOn::Gpu => paged::parts(graph, &attention, layers)?,
        };
        let (gather, product) = gathered(raw(self.product), &graph.node[self.product])?;
        parts.nodes.extend([gather.encode_to_vec(), product]);
        for &index in self.stays.iter().filter(|index| chooses(index)) {
            let tables = branches::tables(raw(index), &graph.node[index]).ok_or_else(invalid)?;
            parts.nodes.extend(tables);
        }
        parts.inputs.push(value(&text(ROWS), INT64, TensorShape::of(&[-1])));
        let shape = TensorShape::of(&[1, -1, logits.columns as i64]);
        let mut given = (text(&logits.name), number_of(logits.element)?);
        if target == RunsOn::Host && logits.element != TensorElementType::Float32 {
            let float = (text(LOGITS), FLOAT);
            parts.nodes.push(cast(&given.0, &float.0, FLOAT));
            given = float;
        }
        parts.outputs.push(value(&given.0, given.1, shape));
        parts.amend(&mut bytes, gone);
        Ok(bytes)
    }
}

fn is_attention(node: &NodeProto) -> bool {
    node.op_type == "GroupQueryAttention" && node.domain == "com.microsoft"
}

/// Refuse attention that ours does not compute. `is_computed` tells whether an operator writes a value.
fn check_attention(node: &NodeProto, is_computed: impl Fn(&str) -> bool) -> Result<(), String> {
    let input = |place: usize| node.input.get(place).map_or("", String::as_str);
    if !input(POSITIONS).is_empty() && (is_computed(input(POSITIONS)) || Role::of(input(POSITIONS)).is_none()) {
        return Err("its attention reads positions that the graph computes".into());
    }
    if [12, 13].into_iter().any(|scale| !input(scale).is_empty()) {
        return Err("its cache is quantised".into());
    }
    for (place, name) in [(10, "attention_bias"), (14, "q_norm_weight"), (15, "k_norm_weight")] {
        if !input(place).is_empty() {
            return Err(format!("its attention has the input {name:?}"));
        }
    }
    if node.output.iter().skip(3).any(|output| !output.is_empty()) {
        return Err("its attention gives its scores".into());
    }
    let other = node.attribute.iter().find(|attribute| {
        let name = attribute.name.as_str();
        let is_off = attribute.i == 0 && attribute.f == 0.0 && matches!(&attribute.s[..], b"" | b"NONE");
        let is_plain = if name == "causal" { attribute.i == 1 } else { is_off };
        !ATTRIBUTES.contains(&name) && !IGNORED.contains(&name) && !is_plain
    });
    other.map_or(Ok(()), |other| Err(format!("its attention has the attribute {:?}", other.name)))
}

/// By attention operator: what it keeps of a token.
fn layers(graph: &GraphProto, edit: &Edit<'_>, export: &Export) -> Result<Vec<LayerShape>, String> {
    let part = |&index: &usize| {
        let past = graph.node[index].input.get(3).ok_or("its attention has no cache")?;
        let cached = export.cache.iter().find(|cached| cached.past.to_str() == Ok(past));
        let cached = cached.ok_or("its attention has no cache")?;
        if cached.holds == CacheContent::Both {
            return Err("its cache holds keys and values in one tensor".into());
        }
        Ok(LayerShape { kv_heads: cached.heads, head_size: cached.head_size, element: cached.element })
    };
    edit.attention.iter().map(part).collect()
}

/// What replaces attention on the processor.
fn host_parts(graph: &GraphProto, operators: &[(usize, &[u8])], layers: &[LayerShape]) -> Result<Parts, String> {
    let mut parts = Parts {
        inputs: vec![value(&text(TABLE), INT64, TensorShape::of(&[1]))],
        opsets: vec![OperatorSetId { domain: text(DOMAIN), version: 1 }],
        ..Parts::default()
    };
    let mut floats = HashSet::new();
    for (layer, (&(index, raw), shape)) in operators.iter().zip(layers).enumerate() {
        let is_half = shape.element == TensorElementType::Float16;
        let node = attention(raw, &graph.node[index], layer, is_half)?;
        if is_half {
            for input in OUR_INPUTS.iter().filter_map(|&place| graph.node[index].input.get(place)) {
                if !input.is_empty() && floats.insert(input) {
                    parts.nodes.push(cast(input, &as_float(input), FLOAT));
                }
            }
            let output = &graph.node[index].output[0];
            parts.nodes.push(cast(&as_float(output), output, FLOAT16));
        }
        parts.nodes.push(node);
    }
    Ok(parts)
}

/// The inputs of `GroupQueryAttention` that ours has too.
const OUR_INPUTS: [usize; 6] = [0, 1, 2, 7, 8, 11];

/// The name of a value in float32.
fn as_float(name: &str) -> String {
    if name.is_empty() { String::new() } else { format!("cos.float.{name}") }
}

fn cast(from: &str, to: &str, element: i32) -> Vec<u8> {
    NodeProto::standard("Cast", &[from], to, &[("to", i64::from(element))]).encode_to_vec()
}

/// The attention operator of ours in place of a `GroupQueryAttention`. `is_half` if that computes with float16.
fn attention(raw: &[u8], node: &NodeProto, layer: usize, is_half: bool) -> Result<Vec<u8>, String> {
    let name = |name: &String| if is_half { as_float(name) } else { name.clone() };
    let input = |place: usize| node.input.get(place).map(name).unwrap_or_default();
    let ours = NodeProto {
        input: OUR_INPUTS.into_iter().map(input).chain([text(TABLE)]).collect(),
        output: vec![name(&node.output[0])],
        op_type: text(ATTENTION),
        attribute: vec![AttributeProto::integer("layer", layer as i64)],
        domain: text(DOMAIN),
    };
    let mut encoded = ours.encode_to_vec();
    let kept = wire::fields(raw, 0..raw.len(), &[wire::NODE_ATTRIBUTE]).ok_or("it is not ONNX")?;
    for Field { content, .. } in kept {
        let attribute = AttributeProto::decode(&raw[content.clone()]).map_err(|error| error.to_string())?;
        if ATTRIBUTES.contains(&attribute.name.as_str()) {
            wire::put(&mut encoded, wire::NODE_ATTRIBUTE, &raw[content]);
        }
    }
    Ok(encoded)
}

/// An operator that takes the wanted rows, and the product with the vocabulary that reads them.
fn gathered(raw: &[u8], node: &NodeProto) -> Result<(NodeProto, Vec<u8>), String> {
    let wanted = "cos.wanted".to_owned();
    let gather = NodeProto {
        input: vec![node.input[0].clone(), text(ROWS)],
        output: vec![wanted.clone()],
        op_type: "Gather".into(),
        attribute: vec![AttributeProto::integer("axis", 1)],
        domain: String::new(),
    };
    let inputs = NodeProto { input: [&[wanted][..], &node.input[1..]].concat(), ..NodeProto::default() };
    let mut product = inputs.encode_to_vec();
    product.extend(wire::without(raw, wire::NODE_INPUT).ok_or("it is not ONNX")?);
    Ok((gather, product))
}
