//! Reads an export with paged attention as the same model with a plain cache.
//!
//! onnxruntime-genai's builder writes such exports for its own engine (`use_paged_attention`): tokens of all sequences
//! lie in a row, and `PagedAttention` finds keys and values in blocks. CoS makes packed passes itself, and compares
//! them with passes over one sequence. So each `PagedAttention` becomes the `GroupQueryAttention` that computes the
//! same, in a copy of the file's content. From there on, the export is like the builder's others: see [`super::pack`].
//! The size of blocks is not in the graph, so it is ours to choose.

use std::collections::{HashMap, HashSet};

use prost::Message;

use super::paged::COMMON_ATTRIBUTES;
use super::parts::{Parts, value};
use super::product::product;
use super::proto::{AttributeProto, GraphProto, INT32, INT64, ModelProto, NodeProto, TensorProto, TensorShape};
use super::proto::{TensorType, ValueInfoProto};
use super::wire::{self, Field};
use super::{Role, branches};

/// Logical types of a cache. `GroupQueryAttention` has their number of bits instead.
const TYPES: [&str; 2] = ["k_cache_dtype", "v_cache_dtype"];

/// Inputs of `PagedAttention`: the caches of keys and values, the lengths and tables of sequences, and others.
const CACHES: [usize; 2] = [3, 4];
const LENGTHS: [usize; 4] = [5, 6, 7, 16];
const SLOTS: usize = 10;
const SCALES: [usize; 2] = [14, 15];

/// The input with the indices of the rows that get logits.
const ROWS: &str = "logits_indices";

/// Names of what the graph gets.
const TOKENS: &str = "cos.plain.tokens";
const MASK: &str = "attention_mask";
const LAST: &str = "cos.plain.last";
const TOTAL: &str = "cos.plain.total";
const HIDDEN: &str = "cos.plain.hidden";
const BATCH: &str = "cos.plain.batch";
const ONE: &str = "cos.plain.one";
const ONES: &str = "cos.plain.ones";

/// The content of a model without paged attention, or nothing if it has none. The error is the reason why it cannot be
/// rewritten.
pub fn unpaged(bytes: &[u8], model: &ModelProto) -> Result<Option<Vec<u8>>, String> {
    match &model.graph {
        Some(graph) if graph.node.iter().any(is_paged) => Rewriting::of(graph)?.apply(bytes.to_vec()).map(Some),
        _ => Ok(None),
    }
}

fn is_paged(node: &NodeProto) -> bool {
    node.op_type == "PagedAttention" && node.domain == "com.microsoft"
}

/// What is changed.
struct Rewriting<'a> {
    graph: &'a GraphProto,
    /// The input of tokens, and the output of logits.
    tokens: &'a ValueInfoProto,
    logits: &'a ValueInfoProto,
    /// The index of the product with the vocabulary.
    product: usize,
    /// The indices of nodes that stay, changed or not.
    stays: Vec<usize>,
}

impl<'a> Rewriting<'a> {
    fn of(graph: &'a GraphProto) -> Result<Self, String> {
        let outputs = graph.node.iter().enumerate();
        let outputs = outputs.flat_map(|(index, node)| node.output.iter().map(move |name| (name.as_str(), index)));
        let writers: HashMap<&str, usize> = outputs.filter(|(name, _)| !name.is_empty()).collect();
        let is_tokens = |input: &&ValueInfoProto| Role::of(&input.name) == Some(Role::Tokens);
        let tokens = graph.input.iter().find(is_tokens).ok_or("it has no input input_ids")?;
        let logits = graph.output.iter().find(|output| output.name == "logits").ok_or("it has no output logits")?;
        let product = product(graph, &writers, &logits.name)?;
        let last = *writers.get(logits.name.as_str()).ok_or("no operator writes its logits")?;
        let (mut seen, mut open) = (HashSet::from([last]), vec![last]);
        while let Some(index) = open.pop() {
            let node = &graph.node[index];
            if is_paged(node) {
                check(node)?;
            }
            if node.op_type == "If" && !branches::are_tables(node, 1) {
                return Err("it has a subgraph (If)".into());
            }
            for (place, input) in node.input.iter().enumerate() {
                if is_paged(node) && LENGTHS.contains(&place) || node.op_type == "If" || input == ROWS {
                    continue;
                }
                open.extend(writers.get(input.as_str()).copied().filter(|&writer| seen.insert(writer)));
            }
        }
        let mut stays: Vec<usize> = seen.into_iter().collect();
        stays.sort_unstable();
        Ok(Rewriting { graph, tokens, logits, product, stays })
    }

    fn apply(&self, mut bytes: Vec<u8>) -> Result<Vec<u8>, String> {
        let invalid = || "it is not ONNX".to_owned();
        let [whole] = &wire::fields(&bytes, 0..bytes.len(), &[wire::MODEL_GRAPH]).ok_or_else(invalid)?[..] else {
            return Err("it holds several graphs".into());
        };
        let of = |numbers: &[u32]| wire::fields(&bytes, whole.content.clone(), numbers).ok_or_else(invalid);
        let (nodes, inputs) = (of(&[wire::GRAPH_NODE])?, of(&[wire::GRAPH_INPUT])?);
        // ONNX Runtime infers the shapes of inner values anew.
        let mut gone: Vec<usize> =
            of(&[wire::GRAPH_OUTPUT, wire::GRAPH_VALUE_INFO])?.iter().map(|field| field.key).collect();
        let (mut parts, mut caches, mut dropped) = (self.beginning(), Vec::new(), HashSet::from([ROWS]));
        let mut kept = HashSet::new();
        for &index in &self.stays {
            let (node, raw) = (&self.graph.node[index], &bytes[nodes[index].content.clone()]);
            if is_paged(node) {
                let layer = caches.len() / 2;
                parts.nodes.extend(plain(node, raw, layer).ok_or_else(invalid)?);
                caches.extend(CACHES.map(|place| (input(node, place), &node.output[place - 2])));
                dropped.extend(LENGTHS.map(|place| input(node, place)));
            } else if node.op_type == "If" {
                parts.nodes.extend(branches::tables(raw, node).ok_or_else(invalid)?);
            } else if node.op_type == "Gather" && input(node, 1) == ROWS {
                // All rows stay here. Packed passes choose them once more, before the product with the vocabulary.
                parts
                    .nodes
                    .push(NodeProto::standard("Identity", &[input(node, 0)], &node.output[0], &[]).encode_to_vec());
            } else if index == self.product || node.input.contains(&self.tokens.name) {
                if index == self.product {
                    parts
                        .nodes
                        .push(NodeProto::standard("Unsqueeze", &[input(node, 0), BATCH], HIDDEN, &[]).encode_to_vec());
                }
                let inputs = node.input.iter().enumerate().map(|(place, name)| match name {
                    _ if index == self.product && place == 0 => HIDDEN.to_owned(),
                    name if *name == self.tokens.name => TOKENS.to_owned(),
                    name => name.clone(),
                });
                let mut changed = NodeProto { input: inputs.collect(), ..NodeProto::default() }.encode_to_vec();
                changed.extend(wire::without(raw, wire::NODE_INPUT).ok_or_else(invalid)?);
                parts.nodes.push(changed);
            } else {
                kept.insert(index);
            }
        }
        dropped.insert(&self.tokens.name);
        gone.extend(nodes.iter().enumerate().filter(|(index, _)| !kept.contains(index)).map(|(_, field)| field.key));
        for (past, present) in caches {
            let declared = self.graph.input.iter().find(|input| input.name == past).ok_or("its cache is no input")?;
            let (element, shape) =
                cache(declared).ok_or_else(|| format!("its cache {past} is not of four dimensions"))?;
            parts.inputs.push(value(past, element, shape.clone()));
            parts.outputs.push(value(present, element, shape));
            dropped.insert(past);
        }
        let is_dropped = |input: &&(&Field, &ValueInfoProto)| dropped.contains(input.1.name.as_str());
        let declared: Vec<_> = inputs.iter().zip(&self.graph.input).collect();
        gone.extend(declared.iter().filter(is_dropped).map(|(field, _)| field.key));
        parts.amend(&mut bytes, gone);
        wire::joined(&bytes, wire::MODEL_GRAPH).ok_or_else(invalid) // packing appends to it once more
    }

    /// The inputs and outputs of one sequence, and the lengths that attention takes.
    fn beginning(&self) -> Parts {
        let free = || TensorShape::of(&[-1, -1]);
        let columns = tensor(self.logits).and_then(|(_, sizes)| sizes.last().copied()).unwrap_or(-1);
        let element = |value: &ValueInfoProto| tensor(value).map_or(0, |(element, _)| element);
        let node = |operator, input: &[&str], output, attributes: &[(&str, i64)]| {
            NodeProto::standard(operator, input, output, attributes).encode_to_vec()
        };
        let int32 = ("to", i64::from(INT32));
        Parts {
            nodes: vec![
                node("Squeeze", &[&self.tokens.name, BATCH], TOKENS, &[]),
                node("ReduceSum", &[MASK, ONES], "cos.plain.sum", &[("keepdims", 0)]),
                node("Sub", &["cos.plain.sum", ONES], "cos.plain.before", &[]),
                node("Cast", &["cos.plain.before"], LAST, &[int32]),
                node("Shape", &[MASK], "cos.plain.sizes", &[]),
                node("Gather", &["cos.plain.sizes", ONE], "cos.plain.length", &[("axis", 0)]),
                node("Cast", &["cos.plain.length"], TOTAL, &[int32]),
            ],
            inputs: vec![value(&self.tokens.name, element(self.tokens), free()), value(MASK, INT64, free())],
            outputs: vec![value(&self.logits.name, element(self.logits), TensorShape::of(&[-1, -1, columns]))],
            weights: vec![
                TensorProto::integers(BATCH, &[1], &[0]),
                TensorProto::integers(ONE, &[], &[1]),
                TensorProto::integers(ONES, &[1], &[1]),
            ],
            opsets: Vec::new(),
        }
    }
}

fn input(node: &NodeProto, place: usize) -> &str {
    node.input.get(place).map_or("", String::as_str)
}

/// The type and the sizes of a tensor; a size that is not fixed is -1.
fn tensor(value: &ValueInfoProto) -> Option<(i32, Vec<i64>)> {
    let TensorType { element, shape } = value.r#type.as_ref()?.tensor.as_ref()?;
    let sizes = shape.as_ref()?.dim.iter().map(|dimension| dimension.size.unwrap_or(-1));
    Some((*element, sizes.collect()))
}

/// The type and the shape of a plain cache, `[batch, kv_heads, tokens, head_size]`, from those of one in blocks.
fn cache(paged: &ValueInfoProto) -> Option<(i32, TensorShape)> {
    match (tensor(paged)?.0, &tensor(paged)?.1[..]) {
        (element, &[_, _, heads, head_size]) => Some((element, TensorShape::of(&[-1, heads, -1, head_size]))),
        _ => None,
    }
}

/// Refuse attention that `GroupQueryAttention` does not compute.
fn check(node: &NodeProto) -> Result<(), String> {
    let is_kept = |place: &usize| {
        !input(node, *place).is_empty() && node.output.get(place - 2).is_some_and(|out| !out.is_empty())
    };
    if !CACHES.iter().all(is_kept) {
        return Err("its attention has no cache of keys or values".into());
    }
    if !input(node, SLOTS).is_empty() || node.input.iter().skip(17).any(|input| !input.is_empty()) {
        return Err("its attention is told by inputs where keys and values go, or how they are scaled".into());
    }
    let other = node.attribute.iter().find(|attribute| {
        let is_default = match attribute.name.as_str() {
            "is_causal" => attribute.i == 1,
            "kv_cache_layout" => attribute.s == "SEPARATE",
            _ => attribute.i == 0 && attribute.f == 0.0 && matches!(&attribute.s[..], b"" | b"NONE"),
        };
        let name = attribute.name.as_str();
        let is_known = COMMON_ATTRIBUTES.contains(&name) || TYPES.contains(&name);
        !is_known && !is_default
    });
    other.map_or(Ok(()), |other| Err(format!("its attention has the attribute {:?}", other.name)))
}

/// The plain operator in place of a paged one, and what gives its values the dimension of the batch.
fn plain(node: &NodeProto, raw: &[u8], layer: usize) -> Option<Vec<Vec<u8>>> {
    let (mut nodes, mut inputs) = (Vec::new(), Vec::new());
    for (place, part) in ["query", "key", "value"].iter().enumerate() {
        let name = format!("cos.plain.{part}.{layer}");
        if input(node, place).is_empty() {
            inputs.push(String::new());
            continue;
        }
        nodes.push(NodeProto::standard("Unsqueeze", &[input(node, place), BATCH], &name, &[]).encode_to_vec());
        inputs.push(name);
    }
    let [cosines, sines, sink] = [8, 9, 11].map(|place| input(node, place));
    let [q_norm, k_norm] = [12, 13].map(|place| input(node, place));
    let [k_scale, v_scale] = SCALES.map(|place| input(node, place));
    let [keys, values] = CACHES.map(|place| input(node, place));
    let rest = [keys, values, LAST, TOTAL, cosines, sines, "", "", sink, k_scale, v_scale, q_norm, k_norm];
    inputs.extend(rest.map(str::to_owned));
    let attended = format!("cos.plain.attended.{layer}");
    let is_quantised = !k_scale.is_empty();
    let is_packed = node.attribute.iter().any(|attribute| TYPES.contains(&&*attribute.name) && attribute.s == "int4");
    let bits = is_quantised.then(|| AttributeProto::integer("kv_cache_bit_width", if is_packed { 4 } else { 8 }));
    let mut encoded = NodeProto {
        input: inputs,
        output: [std::slice::from_ref(&attended), &node.output[1..3]].concat(),
        op_type: "GroupQueryAttention".into(),
        attribute: bits.into_iter().collect(),
        domain: "com.microsoft".into(),
    }
    .encode_to_vec();
    for Field { content, .. } in wire::fields(raw, 0..raw.len(), &[wire::NODE_ATTRIBUTE])? {
        let attribute = AttributeProto::decode(&raw[content.clone()]).ok()?;
        if COMMON_ATTRIBUTES.contains(&attribute.name.as_str()) {
            wire::put(&mut encoded, wire::NODE_ATTRIBUTE, &raw[content]);
        }
    }
    nodes.push(encoded);
    nodes.push(NodeProto::standard("Squeeze", &[&attended, BATCH], &node.output[0], &[]).encode_to_vec());
    Some(nodes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::bytes::Bytes;

    use super::*;

    fn export(form: &str) -> ModelProto {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exports").join(form).join("model.onnx");
        ModelProto::decode(Bytes::from(std::fs::read(file).unwrap())).unwrap()
    }

    fn rewritten(model: &ModelProto) -> Result<ModelProto, String> {
        Ok(ModelProto::decode(Bytes::from(unpaged(&model.encode_to_vec(), model)?.unwrap())).unwrap())
    }

    fn names(values: &[ValueInfoProto]) -> Vec<&str> {
        values.iter().map(|value| value.name.as_str()).collect()
    }

    #[test]
    fn only_paged_attention_is_rewritten() {
        let plain = export("llama/builder-fp16-cuda");
        assert_eq!(unpaged(&plain.encode_to_vec(), &plain), Ok(None));
        for form in ["llama/builder-fp16-paged", "qwen3/builder-fp16-paged", "gpt_oss/builder-fp16-paged"] {
            let graph = rewritten(&export(form)).unwrap().graph.unwrap();
            let mut inputs = names(&graph.input);
            inputs.sort_unstable();
            let caches = ["0.key", "0.value", "1.key", "1.value"];
            let pasts = caches.map(|part| format!("past_key_values.{part}"));
            let expected = ["attention_mask", "input_ids"].into_iter().chain(pasts.iter().map(String::as_str));
            assert_eq!(inputs, expected.collect::<Vec<_>>(), "{form}");
            assert_eq!(names(&graph.output)[0], "logits");
            let count = |operator| graph.node.iter().filter(|node| node.op_type == operator).count();
            assert_eq!((count("PagedAttention"), count("GroupQueryAttention")), (0, 2), "{form}");
        }
    }

    #[test]
    fn attention_that_the_plain_operator_lacks_is_refused() {
        let changed = |change: &dyn Fn(&mut NodeProto)| {
            let mut model = export("llama/builder-fp16-paged");
            let graph = model.graph.as_mut().unwrap();
            graph.node.iter_mut().filter(|node| is_paged(node)).for_each(change);
            rewritten(&model).map(drop)
        };
        assert_eq!(changed(&|_| ()), Ok(()));
        let attribute = |attribute: AttributeProto| changed(&|node| node.attribute.push(attribute.clone()));
        assert_eq!(attribute(AttributeProto::integer("is_causal", 1)), Ok(()));
        assert_eq!(attribute(AttributeProto::text("kv_cache_layout", "SEPARATE")), Ok(()));
        for (refused, name) in [
            (AttributeProto::integer("is_causal", 0), "is_causal"),
            (AttributeProto::integer("rotary_offset", 8), "rotary_offset"),
            (AttributeProto::text("kv_cache_layout", "LATENT"), "kv_cache_layout"),
            (AttributeProto::text("qk_rotation", "HADAMARD"), "qk_rotation"),
        ] {
            assert!(attribute(refused).unwrap_err().contains(name));
        }
        assert!(changed(&|node| node.input[SLOTS] = "slots".into()).unwrap_err().contains("where keys and values go"));
        assert!(changed(&|node| node.input[4].clear()).unwrap_err().contains("no cache"));
        assert!(changed(&|node| node.output.truncate(2)).unwrap_err().contains("no cache"));
    }
}
