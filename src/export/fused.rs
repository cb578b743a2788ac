//! Reads an export whose attention is written out as one with the operator `GroupQueryAttention`.
//!
//! Optimum and torch.onnx append new keys and values to the cache, and compute attention by products and a softmax:
//!
//! ```text
//! probabilities = Softmax(query · (past_keys ++ keys)ᵀ · factors + mask)
//! attended      = probabilities · (past_values ++ values)
//! ```
//!
//! The operator computes the same from query, keys and values, if the mask hides later tokens and nothing else. Whether
//! it does is seen by trial passes, for [`super::pack`] makes packed passes of the result. Only a window can be longer
//! than these, so a configuration must show that there is none.

use std::collections::{HashMap, HashSet};

use ort::value::TensorElementType;
use prost::Message;

use super::parts::Parts;
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use super::{CacheContent, CacheTensor, Export, wire};

/// Operators that repeat keys and values for several heads of queries, or change their form.
const FORMS: [&str; 7] = ["Cast", "Identity", "Transpose", "Unsqueeze", "Expand", "Reshape", "Squeeze"];

/// The longest chain of operators that is followed.
const STEPS: usize = 12;

/// Names of weights that the graph gets.
const FLAT: &str = "cos.fused.flat";
const SIZES: &str = "cos.fused.sizes";

/// The attention of a layer.
struct Written<'a> {
    /// The product with the values.
    product: usize,
    query: &'a str,
    /// What scores are multiplied with, or divided by.
    factors: Vec<(&'a str, &'a str)>,
    /// New keys and values.
    keys: &'a str,
    values: &'a str,
    /// The type that values are cast to before their product, if they are.
    cast: Option<i64>,
    /// The tensors of the cache.
    cache: [&'a CacheTensor; 2],
}

/// The content of an export with operators in place of its attention. The error is the reason why that cannot be.
pub fn fused(bytes: &[u8], model: &ModelProto, export: &Export) -> Result<Vec<u8>, String> {
    if !export.attends_to_all {
        return Err("its attention appends to the cache, and no configuration shows that it has no windows".into());
    }
    let graph = model.graph.as_ref().ok_or("it holds no graph")?;
    let finder = Finder::of(graph, export);
    let found: Vec<Written<'_>> = (0..graph.node.len()).filter_map(|index| finder.written(index)).collect();
    let layers: HashSet<usize> = found.iter().map(|written| written.cache[0].layer).collect();
    if found.is_empty() || found.len() != layers.len() || 2 * found.len() != export.cache.len() {
        return Err("its attention appends to the cache in a form that is not known".into());
    }
    let mut parts = Parts::default();
    parts.weights.push(TensorProto::integers(FLAT, &[3], &[0, 0, -1]));
    for written in &found {
        written.replace(graph, export, &mut parts);
    }
    let invalid = || "it is not ONNX".to_owned();
    let [whole] = &wire::fields(bytes, 0..bytes.len(), &[wire::MODEL_GRAPH]).ok_or_else(invalid)?[..] else {
        return Err("it holds several graphs".into());
    };
    let nodes = wire::fields(bytes, whole.content.clone(), &[wire::GRAPH_NODE]).ok_or_else(invalid)?;
    let gone = found.iter().map(|written| nodes[written.product].key).collect();
    let mut bytes = bytes.to_vec();
    parts.amend(&mut bytes, gone);
    wire::joined(&bytes, wire::MODEL_GRAPH).ok_or_else(invalid)
}

/// Finds attention by going back from products.
struct Finder<'a> {
    graph: &'a GraphProto,
    writers: HashMap<&'a str, &'a NodeProto>,
    /// By the value that past and new entries are joined in: the new ones, and their tensor of the cache.
    joined: HashMap<&'a str, (&'a str, &'a CacheTensor)>,
}

impl<'a> Finder<'a> {
    fn of(graph: &'a GraphProto, export: &'a Export) -> Self {
        let outputs = graph.node.iter().flat_map(|node| node.output.iter().map(move |name| (name.as_str(), node)));
        let writers: HashMap<&str, &NodeProto> = outputs.filter(|(name, _)| !name.is_empty()).collect();
        let cached = export.cache.iter().filter_map(|tensor| {
            let mut name = tensor.present.to_str().ok()?;
            while let Some(node) = writers.get(name).filter(|node| ["Cast", "Identity"].contains(&&*node.op_type)) {
                name = node.input.first()?;
            }
            let join = writers.get(name).filter(|node| node.op_type == "Concat" && node.input.len() == 2)?;
            let is_behind = Some(join.input[0].as_str()) == tensor.past.to_str().ok();
            let in_heads = tensor.rank() == 4 && tensor.axis == 2;
            (is_behind && in_heads).then_some((join.output[0].as_str(), (join.input[1].as_str(), tensor)))
        });
        Finder { graph, joined: cached.collect(), writers }
    }

    /// The attention whose product with the values is a node.
    fn written(&self, product: usize) -> Option<Written<'a>> {
        let node = &self.graph.node[product];
        if node.op_type != "MatMul" {
            return None;
        }
        let (values, cached_values) = self.cached(&node.input[1], &mut Vec::new())?;
        let cast = self.cast(&node.input[1]);
        let softmax = self.softmax(&node.input[0])?;
        let mut factors = Vec::new();
        let scores = self.scores(softmax.input.first()?, &mut factors, STEPS)?;
        let (keys, cached_keys) = self.cached(&scores.input[1], &mut factors)?;
        let are_pair = cached_keys.layer == cached_values.layer
            && (cached_keys.holds, cached_values.holds) == (CacheContent::Keys, CacheContent::Values);
        let cache = [cached_keys, cached_values];
        are_pair.then_some(Written { product, query: &scores.input[0], factors, keys, values, cast, cache })
    }

    /// The new entries and the tensor of the cache that a value holds, perhaps in another form, and multiplied.
    fn cached(&self, mut value: &'a str, factors: &mut Vec<(&'a str, &'a str)>) -> Option<(&'a str, &'a CacheTensor)> {
        for _ in 0..STEPS {
            if let Some(&found) = self.joined.get(value) {
                return Some(found);
            }
            let node = self.writers.get(value)?;
            if matches!(node.op_type.as_str(), "Mul" | "Div") {
                factors.push((&node.op_type, node.input.get(1)?));
            } else if !FORMS.contains(&node.op_type.as_str()) {
                return None;
            }
            value = node.input.first()?;
        }
        None
    }

    /// The type that a value of the cache was cast to.
    fn cast(&self, mut value: &'a str) -> Option<i64> {
        while !self.joined.contains_key(value) {
            let node = self.writers.get(value)?;
            if node.op_type == "Cast" {
                return node.attribute.iter().find(|attribute| attribute.name == "to").map(|attribute| attribute.i);
            }
            value = node.input.first()?;
        }
        None
    }

    /// The softmax that a value comes from. Some exports replace rows that are no numbers.
    fn softmax(&self, mut value: &'a str) -> Option<&'a NodeProto> {
        for _ in 0..STEPS {
            let node = *self.writers.get(value)?;
            value = match node.op_type.as_str() {
                "Softmax" => return Some(node),
                "Cast" | "Identity" => node.input.first()?,
                "Where" => node.input.get(2)?,
                _ => return None,
            };
        }
        None
    }

    /// The product of queries and keys that scores come from, past the mask.
    fn scores(&self, value: &'a str, factors: &mut Vec<(&'a str, &'a str)>, steps: usize) -> Option<&'a NodeProto> {
        let node = *self.writers.get(value)?;
        let next = steps.checked_sub(1)?;
        let first = node.input.first()?;
        match node.op_type.as_str() {
            "MatMul" => self.cached(&node.input[1], &mut Vec::new()).map(|_| node),
            "Cast" | "Identity" => self.scores(first, factors, next),
            "Mul" | "Div" => {
                let found = self.scores(first, factors, next)?;
                factors.push((&node.op_type, node.input.get(1)?));
                Some(found)
            }
            "Add" => self.scores(first, factors, next).or_else(|| self.scores(node.input.get(1)?, factors, next)),
            "Where" => {
                let [_, yes, no] = &node.input[..] else { return None };
                self.scores(yes, factors, next).or_else(|| self.scores(no, factors, next))
            }
            _ => None,
        }
    }
}

impl Written<'_> {
    /// The operator, between changes of form: heads come before tokens in the graph, and behind them in the operator.
    fn replace(&self, graph: &GraphProto, export: &Export, parts: &mut Parts) {
        let [keys, values] = self.cache;
        let name = |part: &str| format!("cos.fused.{part}.{}", keys.layer);
        let mut add = |operator: &str, input: &[&str], output: &str, attribute: Vec<AttributeProto>| {
            let node = NodeProto { attribute, ..NodeProto::standard(operator, input, output, &[]) };
            parts.nodes.push(node.encode_to_vec());
        };
        let swap = || vec![AttributeProto::integers("perm", &[0, 2, 1, 3])];
        let mut query = self.query.to_owned();
        for (index, (operator, factor)) in self.factors.iter().enumerate() {
            let scaled = name(&format!("scaled{index}"));
            let mut factor = (*factor).to_owned();
            if keys.element != TensorElementType::Float32 {
                // Scores, and so their factors, are often of a wider type.
                let narrow = name(&format!("factor{index}"));
                add("CastLike", &[&factor, &query], &narrow, Vec::new());
                factor = narrow;
            }
            add(operator, &[&query, &factor], &scaled, Vec::new());
            query = scaled;
        }
        let mut inputs = Vec::new();
        for (part, value) in [("query", query.as_str()), ("keys", self.keys), ("values", self.values)] {
            let (behind, flat) = (name(&format!("{part}_behind")), name(part));
            add("Transpose", &[value], &behind, swap());
            add("Reshape", &[&behind, FLAT], &flat, Vec::new());
            inputs.push(flat);
        }
        let output = &graph.node[self.product].output[0];
        let (attended, split) = (name("attended"), name("split"));
        let sizes = format!("{SIZES}.{}", keys.layer);
        add("Reshape", &[&attended, &sizes], &split, Vec::new());
        let behind = name("attended_behind");
        add("Transpose", &[&split], if self.cast.is_some() { &behind } else { output }, swap());
        if let Some(element) = self.cast {
            add("Cast", &[&behind], output, vec![AttributeProto::integer("to", element)]);
        }
        let pasts = [keys, values].map(|tensor| tensor.past.to_string_lossy().into_owned());
        let operator = NodeProto {
            input: inputs.into_iter().chain(pasts).collect(),
            output: vec![attended],
            op_type: "GroupQueryAttention".into(),
            attribute: vec![
                AttributeProto::integer("num_heads", export.heads as i64),
                AttributeProto::integer("kv_num_heads", keys.heads as i64),
                AttributeProto::number("scale", 1.0),
            ],
            domain: "com.microsoft".into(),
        };
        parts.nodes.push(operator.encode_to_vec());
        parts.weights.push(TensorProto::integers(&sizes, &[4], &[0, 0, -1, values.head_size as i64]));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use prost::bytes::Bytes;

    use super::*;
    use crate::onnx::{LoadOptions, OnnxModel, environment};

    fn read(form: &str) -> (ModelProto, Export) {
        environment(None, 0, None).unwrap();
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exports").join(form).join("model.onnx");
        let model = OnnxModel::load(&file, form, &LoadOptions::default()).unwrap();
        (ModelProto::decode(Bytes::from(std::fs::read(file).unwrap())).unwrap(), model.export().clone())
    }

    fn operators(model: &ModelProto, export: &Export) -> Result<usize, String> {
        let bytes = Bytes::from(fused(&model.encode_to_vec(), model, export)?);
        let graph = ModelProto::decode(bytes).unwrap().graph.unwrap();
        Ok(graph.node.iter().filter(|node| node.op_type == "GroupQueryAttention").count())
    }

    #[test]
    fn each_layer_gets_an_operator() {
        for form in ["llama/optimum-fp32", "gpt2/optimum-fp16", "gptj/optimum-fp32", "qwen3_moe/optimum-fp32"] {
            let (model, export) = read(form);
            assert_eq!(operators(&model, &export), Ok(2), "{form}");
        }
    }

    #[test]
    fn windows_and_other_forms_are_refused() {
        let (mut model, mut export) = read("llama/optimum-fp32");
        export.attends_to_all = false;
        assert!(operators(&model, &export).unwrap_err().contains("no windows"));
        export.attends_to_all = true;
        // Capped scores.
        let graph = model.graph.as_mut().unwrap();
        let softmax = graph.node.iter().find(|node| node.op_type == "Softmax").unwrap().input[0].clone();
        let masked = graph.node.iter_mut().find(|node| node.output.contains(&softmax)).unwrap();
        let scores = std::mem::replace(&mut masked.input[0], "capped".into());
        graph.node.push(NodeProto::standard("Tanh", &[&scores], "capped", &[]));
        assert!(operators(&model, &export).unwrap_err().contains("a form that is not known"));
    }
}
