//! Looks into the graph of an `.onnx` file: what ONNX Runtime does not tell of a session, its operators.
//!
//! The messages are those of onnx.proto, cut down to the fields that matter here; everything else, weights above all, is
//! skipped where it lies in the mapped file.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use memmap2::Mmap;
use prost::Message;

use crate::error::{Error, Result};
use crate::files;

/// The operators of a model, those of subgraphs and functions included.
pub struct Graph {
    /// The program that made it.
    pub producer: String,
    /// Version of the standard operators.
    pub opset: i64,
    nodes: Vec<Node>,
    /// The node that writes each value.
    writers: HashMap<String, usize>,
    /// The dimensions of each weight.
    weights: HashMap<String, Vec<i64>>,
    /// Files beside the model that hold weights, and how many bytes they must have at least.
    pub external_files: BTreeMap<String, u64>,
}

impl Graph {
    /// Read the graph of a file.
    pub fn read(file: &Path) -> Result<Self> {
        let refuse = |error: &dyn std::fmt::Display| {
            Error::Model(format!(
                "cannot load {}: {error}; if the file is corrupt or incomplete, copy or export it again",
                file.display()
            ))
        };
        let opened = files::open(file).map_err(Error::Model)?;
        // SAFETY: the mapping is read here only and dropped at the end. A file that is cut short meanwhile would raise
        // SIGBUS, as it would when ONNX Runtime maps it.
        let bytes = unsafe { Mmap::map(&opened) }.map_err(|error| refuse(&error))?;
        let model = ModelProto::decode(&*bytes).map_err(|error| refuse(&format_args!("it is not ONNX ({error})")))?;
        let main = model.graph.ok_or_else(|| refuse(&"it holds no graph"))?;
        let mut graph = Graph {
            producer: [model.producer_name, model.producer_version].join(" ").trim().to_owned(),
            opset: model.opset_import.iter().find(|o| o.domain.is_empty()).map_or(0, |opset| opset.version),
            nodes: Vec::new(),
            writers: HashMap::new(),
            weights: HashMap::new(),
            external_files: BTreeMap::new(),
        };
        graph.take(main, true);
        model.functions.into_iter().for_each(|function| graph.take_nodes(function.node, false));
        Ok(graph)
    }

    /// Names of subgraphs and functions are their own, so who writes a value is known of the main graph only.
    fn take(&mut self, graph: GraphProto, main: bool) {
        for weight in graph.initializer {
            let entry =
                |key: &str| weight.external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
            if let Some(file) = entry("location") {
                let number = |key: &str| entry(key).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
                let needed = self.external_files.entry(file.clone()).or_default();
                *needed = (*needed).max(number("offset").saturating_add(number("length")));
            }
            self.weights.insert(weight.name, weight.dims);
        }
        self.take_nodes(graph.node, main);
    }

    fn take_nodes(&mut self, nodes: Vec<NodeProto>, main: bool) {
        for node in nodes {
            let (mut numbers, mut branches) = (HashMap::new(), Vec::new());
            for attribute in node.attribute {
                for graph in attribute.g.into_iter().chain(attribute.graphs) {
                    branches.extend(graph.output.iter().map(|output| output.name.clone()));
                    self.take(graph, false);
                }
                if let (Some(constant), Some(output)) = (attribute.t, node.output.first()) {
                    self.weights.insert(output.clone(), constant.dims);
                }
                numbers.insert(attribute.name, (attribute.i, attribute.f));
            }
            let NodeProto { op_type, input, output, .. } = node;
            if main {
                self.writers.extend(output.iter().map(|value| (value.clone(), self.nodes.len())));
            }
            self.nodes.push(Node { operator: op_type, inputs: input, outputs: output, numbers, branches });
        }
    }

    /// The nodes of an operator.
    pub fn all<'a>(&'a self, operator: &'a str) -> impl Iterator<Item = &'a Node> + Clone {
        self.nodes.iter().filter(move |node| node.operator == operator)
    }

    fn writer(&self, value: &str) -> Option<&Node> {
        self.writers.get(value).map(|&index| &self.nodes[index])
    }

    /// The operator that a value comes from, but for those that only change how it is written.
    pub fn origin(&self, value: &str) -> Option<&Node> {
        let mut node = self.writer(value)?;
        while matches!(node.operator.as_str(), "Cast" | "Identity" | "Transpose") {
            node = self.writer(node.inputs.first()?)?;
        }
        Some(node)
    }

    /// The fewest rows of a table: of a weight, or of those that a condition chooses among.
    pub fn rows(&self, table: &str) -> Option<usize> {
        let chosen = self.origin(table).filter(|node| node.operator == "If").map(|node| node.branches.iter());
        let own = table.to_owned();
        let names = chosen.into_iter().flatten().chain([&own]);
        let rows = names.filter_map(|name| self.weight(name)?.first().copied());
        rows.filter_map(|rows| usize::try_from(rows).ok()).filter(|&rows| rows > 1).min()
    }

    /// Whether an operator has a part in what a node reads, on the way back to the last products of matrices.
    pub fn goes_through<'a>(&'a self, node: &'a Node, operator: &str) -> bool {
        let before = |node: &'a Node| node.inputs.iter().filter_map(|value| self.writer(value));
        let mut seen = BTreeSet::new();
        let mut left: Vec<&Node> = before(node).collect();
        while let Some(node) = left.pop() {
            if node.operator == operator {
                return true;
            }
            if !matches!(node.operator.as_str(), "MatMul" | "Gemm" | "Einsum") && seen.insert(&node.outputs) {
                left.extend(before(node));
            }
        }
        false
    }

    /// The nodes that read a value.
    pub fn readers<'a>(&'a self, value: &'a str) -> impl Iterator<Item = &'a Node> {
        self.nodes.iter().filter(move |node| node.inputs.iter().any(|input| input == value))
    }

    /// The dimensions of a weight, or of what is cast from one.
    pub fn weight(&self, name: &str) -> Option<&[i64]> {
        let cast = self.writer(name).filter(|node| node.operator == "Cast");
        let stored = cast.and_then(|node| node.inputs.first()).map_or(name, String::as_str);
        self.weights.get(stored).map(Vec::as_slice)
    }

    /// All weights, with their dimensions.
    pub fn weights(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.weights.iter().map(|(name, dimensions)| (name.as_str(), dimensions.as_slice()))
    }
}

/// One operator of a graph.
pub struct Node {
    /// Its type.
    pub operator: String,
    /// What it reads.
    pub inputs: Vec<String>,
    /// What it writes.
    pub outputs: Vec<String>,
    numbers: HashMap<String, (i64, f32)>,
    /// What the graphs within it give.
    branches: Vec<String>,
}

impl Node {
    /// An attribute that is a whole number.
    pub fn integer(&self, name: &str) -> Option<i64> {
        self.numbers.get(name).map(|number| number.0)
    }

    /// An attribute that is a fraction.
    pub fn fraction(&self, name: &str) -> Option<f32> {
        self.numbers.get(name).map(|number| number.1)
    }
}

#[derive(Clone, PartialEq, Message)]
struct ModelProto {
    #[prost(string, tag = "2")]
    producer_name: String,
    #[prost(string, tag = "3")]
    producer_version: String,
    #[prost(message, optional, tag = "7")]
    graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    opset_import: Vec<OperatorSetId>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionProto>,
}

#[derive(Clone, PartialEq, Message)]
struct OperatorSetId {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct FunctionProto {
    #[prost(message, repeated, tag = "7")]
    node: Vec<NodeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    node: Vec<NodeProto>,
    #[prost(message, repeated, tag = "5")]
    initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "12")]
    output: Vec<ValueInfoProto>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueInfoProto {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, tag = "4")]
    op_type: String,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeProto>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    f: f32,
    #[prost(int64, tag = "3")]
    i: i64,
    #[prost(message, optional, tag = "5")]
    t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    g: Option<GraphProto>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<GraphProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    dims: Vec<i64>,
    #[prost(string, tag = "8")]
    name: String,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntry>,
}

#[derive(Clone, PartialEq, Message)]
struct StringStringEntry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
        let input = inputs.iter().map(|name| name.to_string()).collect();
        NodeProto { op_type: operator.into(), input, output: vec![output.into()], attribute: Vec::new() }
    }

    fn read(graph: GraphProto, functions: Vec<FunctionProto>) -> Graph {
        let model = ModelProto { graph: Some(graph), functions, producer_name: "test".into(), ..Default::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), model.encode_to_vec()).unwrap();
        Graph::read(file.path()).unwrap()
    }

    #[test]
    fn what_goes_into_an_operator() {
        let scores = |capped: bool| {
            let cap = node(if capped { "Tanh" } else { "Identity" }, &["scores"], "capped");
            let nodes = vec![
                node("Tanh", &["x"], "hidden"), // before the product it is no matter
                node("MatMul", &["hidden", "keys"], "scores"),
                cap,
                node("Add", &["capped", "mask"], "masked"),
                node("Softmax", &["masked"], "weights"),
            ];
            let graph = read(GraphProto { node: nodes, ..Default::default() }, Vec::new());
            let softmax = graph.all("Softmax").next().unwrap();
            graph.goes_through(softmax, "Tanh")
        };
        assert!(scores(true));
        assert!(!scores(false));
    }

    #[test]
    fn names_of_functions_are_their_own() {
        // a function may use the names of the graph the other way round; that is no circle
        let main = vec![node("Concat", &["past"], "b"), node("Identity", &["b"], "a"), node("Cast", &["a"], "present")];
        let function = FunctionProto { node: vec![node("Identity", &["a"], "b"), node("Concat", &["b"], "c")] };
        let graph = read(GraphProto { node: main, ..Default::default() }, vec![function]);
        assert_eq!(graph.origin("present").unwrap().inputs, ["past"]);
        assert_eq!(graph.all("Concat").count(), 2);
        assert!(graph.origin("past").is_none());
    }

    #[test]
    fn rows_of_tables_that_are_chosen() {
        let table =
            |name: &str, rows: i64| TensorProto { name: name.into(), dims: vec![rows, 8], ..Default::default() };
        let branch = |name: &str, rows: i64| {
            let initializer = vec![table(name, rows)];
            let output = vec![ValueInfoProto { name: name.into() }];
            let g = Some(GraphProto { initializer, output, ..Default::default() });
            AttributeProto { name: name.into(), g, ..Default::default() }
        };
        let attribute = vec![branch("large", 4096), branch("small", 512)];
        let choice = NodeProto { attribute, ..node("If", &["long"], "table") };
        let graph = GraphProto { node: vec![choice], initializer: vec![table("plain", 99)], ..Default::default() };
        let graph = read(graph, Vec::new());
        assert_eq!(graph.rows("plain"), Some(99));
        assert_eq!(graph.rows("table"), Some(512));
        assert_eq!(graph.rows("none"), None);
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for content in [&b""[..], b"prose", b"\x3a\xff\xff\xff\xff\x0f"] {
            std::fs::write(file.path(), content).unwrap();
            assert_eq!(Graph::read(file.path()).err().unwrap().code(), 3);
        }
    }
}
