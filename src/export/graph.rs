//! Looks into the graph of an `.onnx` file: what ONNX Runtime does not tell of a session, its operators.
//!
//! The messages are those of onnx.proto, cut down to the fields that matter here; everything else, weights above all, is
//! left where it lies in the mapped file. Files come from strangers: all walks are bounded, and an empty name is no value.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use memmap2::Mmap;
use prost::Message;
use prost::bytes::Bytes;

use crate::error::{Error, Result};
use crate::files;

/// Tensors of up to so many whole numbers are remembered, as what is added to positions, and axes.
const FEW: usize = 8;

/// The types of tensors by their numbers in onnx.proto.
const INT32: i32 = 6;
const INT64: i32 = 7;
const FLOAT16: i32 = 10;
const BFLOAT16: i32 = 16;

/// Operators that only change how a value is written.
pub const FORMS: [&str; 9] = [
    "Cast",
    "Flatten",
    "Identity",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "QuantizeLinear",
    "DequantizeLinear",
];

/// More operators of these than exporters put in a row.
const STEPS: usize = 16;

/// Where names hold: the main graph is 0, and each subgraph and each function has a number of its own.
pub type Scope = usize;

/// The operators of a model, those of subgraphs and functions included.
pub struct Graph {
    /// The program that made it.
    pub producer: String,
    /// Version of the standard operators.
    pub opset: i64,
    nodes: Vec<Node>,
    /// Of each scope, the node that writes each value.
    writers: Vec<HashMap<String, usize>>,
    /// Of each scope, the one around it, whose values it may read; a function and the main graph have none.
    around: Vec<Option<Scope>>,
    /// Of each scope, its weights and constants.
    weights: Vec<HashMap<String, Weight>>,
    /// Files beside the model that hold weights, and how many bytes they must have at least.
    pub external_files: BTreeMap<String, u64>,
    /// What is wrong with a place in such a file, if anything is.
    pub misplaced: Option<String>,
    /// Whether anything is computed in half precision: a weight is float16 or bfloat16, or something is cast to that.
    pub is_half: bool,
}

/// A weight or a constant.
struct Weight {
    dimensions: Vec<i64>,
    /// Its content, if that is a few whole numbers.
    numbers: Vec<i64>,
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
        let bytes = unsafe { Mmap::map(&opened) }
            .map_err(|error| Error::Runtime(format!("cannot map {} into memory: {error}", file.display())))?;
        // As `Bytes`, so that the content of weights is not copied.
        let bytes = Bytes::from_owner(bytes);
        let model = ModelProto::decode(bytes.clone()).map_err(|error| {
            let start = files::prose(&bytes[..bytes.len().min(60)]);
            let text = start.map(|start| format!("; it begins with the text {start:?}")).unwrap_or_default();
            refuse(&format_args!("it is not ONNX ({error}){text}"))
        })?;
        let main = model.graph.ok_or_else(|| refuse(&"it holds no graph"))?;
        let mut graph = Graph {
            producer: [model.producer_name, model.producer_version].join(" ").trim().to_owned(),
            opset: model.opset_import.iter().find(|o| o.domain.is_empty()).map_or(0, |opset| opset.version),
            nodes: Vec::new(),
            writers: Vec::new(),
            around: Vec::new(),
            weights: Vec::new(),
            external_files: BTreeMap::new(),
            misplaced: None,
            is_half: false,
        };
        graph.take(main, None);
        for function in model.functions {
            let scope = graph.scope(None);
            graph.take_nodes(function.node, scope);
        }
        Ok(graph)
    }

    fn scope(&mut self, around: Option<Scope>) -> Scope {
        self.writers.push(HashMap::new());
        self.weights.push(HashMap::new());
        self.around.push(around);
        self.around.len() - 1
    }

    fn take(&mut self, graph: GraphProto, around: Option<Scope>) -> Scope {
        let scope = self.scope(around);
        for weight in graph.initializer {
            self.take_weight(weight, scope, None);
        }
        self.take_nodes(graph.node, scope);
        scope
    }

    fn take_weight(&mut self, weight: TensorProto, scope: Scope, name: Option<&String>) {
        let numbers = weight.few_numbers();
        let TensorProto { dims: dimensions, data_type, name: own, external_data, .. } = weight;
        let name = name.unwrap_or(&own);
        let entry = |key: &str| external_data.iter().find(|entry| entry.key == key).map(|entry| &entry.value);
        if let Some(file) = entry("location") {
            let mut number = |key: &str| {
                let Some(text) = entry(key) else { return 0 };
                text.parse::<u64>().unwrap_or_else(|_| {
                    self.misplaced =
                        Some(format!("{name:?} in {file:?} has the {key} {text:?}, not a number of bytes"));
                    0
                })
            };
            let end = number("offset").saturating_add(number("length"));
            let needed = self.external_files.entry(file.clone()).or_default();
            *needed = (*needed).max(end);
        }
        self.is_half |= [FLOAT16, BFLOAT16].contains(&data_type);
        self.weights[scope].insert(name.clone(), Weight { dimensions, numbers });
    }

    fn take_nodes(&mut self, nodes: Vec<NodeProto>, scope: Scope) {
        for NodeProto { op_type, domain, input, output, attribute } in nodes {
            // what others call by a name that the standard has may be anything
            let is_known = ["", "ai.onnx", "com.microsoft"].contains(&domain.as_str());
            let op_type = if is_known { op_type } else { format!("{domain}.{op_type}") };
            let (mut numbers, mut branches) = (HashMap::new(), Vec::new());
            for mut attribute in attribute {
                for graph in attribute.g.take().into_iter().chain(std::mem::take(&mut attribute.graphs)) {
                    let outputs = graph.output.iter().map(|output| output.name.clone()).collect();
                    branches.push(Branch { scope: self.take(graph, Some(scope)), outputs });
                }
                self.is_half |= op_type == "Cast"
                    && attribute.name == "to"
                    && [FLOAT16, BFLOAT16].map(i64::from).contains(&attribute.i);
                if let Some(output) = output.first() {
                    if let Some(constant) = attribute.t.take() {
                        self.take_weight(constant, scope, Some(output));
                    } else if let Some(numbers) = attribute.constant().filter(|_| op_type == "Constant") {
                        let constant = Weight { dimensions: vec![numbers.len() as i64], numbers };
                        self.weights[scope].insert(output.clone(), constant);
                    }
                }
                numbers.insert(attribute.name, (attribute.i, attribute.f));
            }
            let index = self.nodes.len();
            self.writers[scope].extend(output.iter().filter(|name| !name.is_empty()).map(|name| (name.clone(), index)));
            self.nodes.push(Node { operator: op_type, inputs: input, outputs: output, numbers, branches, scope });
        }
    }

    /// All nodes.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The nodes of an operator.
    pub fn all<'a>(&'a self, operator: &'a str) -> impl Iterator<Item = &'a Node> + Clone {
        self.nodes.iter().filter(move |node| node.operator == operator)
    }

    /// The node that writes a value, which may lie around the scope that reads it.
    pub fn writer(&self, scope: Scope, value: &str) -> Option<&Node> {
        self.scopes(scope).find_map(|scope| self.writers[scope].get(value)).map(|&index| &self.nodes[index])
    }

    fn stored(&self, scope: Scope, name: &str) -> Option<&Weight> {
        self.scopes(scope).find_map(|scope| self.weights[scope].get(name))
    }

    /// A scope and those around it.
    fn scopes(&self, scope: Scope) -> impl Iterator<Item = Scope> {
        std::iter::successors(Some(scope), |&scope| self.around[scope])
    }

    /// The nodes that write what a node reads.
    fn before<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Node> {
        node.inputs.iter().filter_map(|value| self.writer(node.scope, value))
    }

    /// The operator that a value of the main graph comes from, but for those that only change how it is written.
    pub fn origin(&self, value: &str) -> Option<&Node> {
        self.origins(value).next()
    }

    /// The same, one for each branch where a condition chooses.
    pub fn origins<'a>(&'a self, value: &str) -> impl Iterator<Item = &'a Node> + use<'a> {
        self.sources(value, &FORMS).into_iter().map(|(node, _)| node)
    }

    /// The operators that a value of the main graph comes from, through those named and through conditions, and which
    /// output of theirs it is.
    pub fn sources<'a>(&'a self, value: &str, through: &[&str]) -> Vec<(&'a Node, usize)> {
        let (mut found, mut seen) = (Vec::new(), HashSet::new());
        let mut left = vec![(0, value)];
        while let Some((scope, value)) = left.pop() {
            let Some(node) = self.writer(scope, value) else { continue };
            let place = node.outputs.iter().position(|output| output == value).unwrap_or(0);
            if !seen.insert((std::ptr::from_ref(node), place)) {
                continue;
            }
            if node.operator == "If" {
                left.extend(node.branches.iter().filter_map(|branch| branch.output(place)));
            } else if through.contains(&node.operator.as_str()) {
                left.extend(node.input(0).map(|input| (node.scope, input)));
            } else {
                found.push((node, place));
            }
        }
        found
    }

    /// The input of the model that a value is in another form, if it is one.
    pub fn root<'a>(&'a self, scope: Scope, value: &'a str) -> Option<&'a str> {
        let (mut scope, mut value) = (scope, value);
        for _ in 0..STEPS {
            match self.writer(scope, value) {
                None => return Some(value),
                Some(node) if FORMS.contains(&node.operator.as_str()) => (scope, value) = (node.scope, node.input(0)?),
                Some(_) => return None,
            }
        }
        None
    }

    /// The fewest rows of a table: of a weight, or of those that a condition chooses among.
    pub fn rows(&self, table: &str) -> Option<usize> {
        let chosen = self.writer(0, table).filter(|node| node.operator == "If").map(|node| node.branches.iter());
        let chosen = chosen.into_iter().flatten().filter_map(|branch| branch.output(0));
        let rows =
            chosen.chain([(0, table)]).filter_map(|(scope, name)| self.dimensions(scope, name)?.first().copied());
        rows.filter_map(|rows| usize::try_from(rows).ok()).filter(|&rows| rows > 1).min()
    }

    /// Whether an operator has a part in what a node of another operator reads, on the way back to the last products of
    /// matrices.
    pub fn goes_through(&self, last: &str, operator: &str) -> bool {
        let mut seen = HashSet::new();
        let mut left: Vec<&Node> = self.all(last).flat_map(|node| self.before(node)).collect();
        while let Some(node) = left.pop() {
            if node.operator == operator {
                return true;
            }
            let is_product = matches!(node.operator.as_str(), "MatMul" | "Gemm" | "Einsum");
            if !is_product && seen.insert(std::ptr::from_ref(node)) {
                left.extend(self.before(node));
            }
        }
        false
    }

    /// The nodes that read a value of the main graph, also from within subgraphs.
    pub fn readers<'a>(&'a self, value: &'a str) -> impl Iterator<Item = &'a Node> {
        let reads = move |node: &&Node| node.inputs.iter().any(|input| input == value);
        let sees =
            |node: &&Node| std::iter::successors(Some(node.scope), |&scope| self.around[scope]).last() == Some(0);
        self.nodes.iter().filter(reads).filter(sees)
    }

    /// The dimensions of a weight, or of what is cast from one.
    pub fn weight(&self, name: &str) -> Option<&[i64]> {
        self.dimensions(0, name)
    }

    fn dimensions(&self, scope: Scope, name: &str) -> Option<&[i64]> {
        let cast = self.writer(scope, name).filter(|node| node.operator == "Cast");
        let stored = cast.and_then(|node| node.input(0)).unwrap_or(name);
        self.stored(scope, stored).map(|weight| weight.dimensions.as_slice())
    }

    /// The dimensions of the weight that a value is made of, if it is nothing but that in another form.
    pub fn table(&self, scope: Scope, value: &str) -> Option<&[i64]> {
        let (mut scope, mut value) = (scope, value);
        for _ in 0..STEPS {
            if let Some(weight) = self.stored(scope, value) {
                return Some(&weight.dimensions);
            }
            let node = self.writer(scope, value)?;
            match node.operator.as_str() {
                "Expand" | "Tile" => (scope, value) = (node.scope, node.input(0)?),
                form if FORMS.contains(&form) => (scope, value) = (node.scope, node.input(0)?),
                _ => return None,
            }
        }
        None
    }

    /// The content of a constant of few whole numbers.
    pub fn numbers(&self, scope: Scope, name: &str) -> Option<&[i64]> {
        self.stored(scope, name).map(|weight| weight.numbers.as_slice()).filter(|numbers| !numbers.is_empty())
    }
}

/// One operator of a graph.
pub struct Node {
    /// Its type.
    pub operator: String,
    /// What it reads; an empty name is nothing.
    pub inputs: Vec<String>,
    /// What it writes; likewise.
    pub outputs: Vec<String>,
    /// Where its names hold.
    pub scope: Scope,
    numbers: HashMap<String, (i64, f32)>,
    /// The graphs within it.
    branches: Vec<Branch>,
}

/// A graph within a node.
struct Branch {
    scope: Scope,
    outputs: Vec<String>,
}

impl Branch {
    fn output(&self, index: usize) -> Option<(Scope, &str)> {
        self.outputs.get(index).map(|output| (self.scope, output.as_str()))
    }
}

impl Node {
    /// What it reads in a place, if anything.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

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
    #[prost(string, tag = "7")]
    domain: String,
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
    #[prost(int64, repeated, packed = "false", tag = "8")]
    ints: Vec<i64>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<GraphProto>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorProto {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    data_type: i32,
    #[prost(int64, repeated, tag = "7")]
    int64_data: Vec<i64>,
    #[prost(string, tag = "8")]
    name: String,
    /// A part of the mapped file.
    #[prost(bytes = "bytes", tag = "9")]
    raw_data: Bytes,
    #[prost(message, repeated, tag = "13")]
    external_data: Vec<StringStringEntry>,
}

impl AttributeProto {
    /// The whole numbers that it gives a constant, if these are few and no tensor.
    fn constant(&self) -> Option<Vec<i64>> {
        match self.name.as_str() {
            "value_int" => Some(vec![self.i]),
            "value_ints" if self.ints.len() <= FEW => Some(self.ints.clone()),
            _ => None,
        }
    }
}

impl TensorProto {
    /// Its content, if that is a few whole numbers, and none otherwise.
    fn few_numbers(&self) -> Vec<i64> {
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
struct StringStringEntry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::super::companions;
    use super::*;

    fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
        let input = inputs.iter().map(|name| name.to_string()).collect();
        NodeProto { op_type: operator.into(), input, output: vec![output.into()], ..Default::default() }
    }

    fn read(graph: GraphProto, functions: Vec<FunctionProto>) -> Graph {
        let model = ModelProto { graph: Some(graph), functions, producer_name: "test".into(), ..Default::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), model.encode_to_vec()).unwrap();
        Graph::read(file.path()).unwrap()
    }

    /// A graph of these nodes (operator, inputs, output), tables with their dimensions, and constants.
    pub fn graph(nodes: &[(&str, &[&str], &str)], tables: &[(&str, &[i64])], constants: &[(&str, &[i64])]) -> Graph {
        let weight = |name: &str, dimensions: &[i64]| TensorProto {
            name: name.into(),
            dims: dimensions.to_vec(),
            data_type: INT64,
            ..Default::default()
        };
        let tables = tables.iter().map(|(name, dimensions)| weight(name, dimensions));
        let constants = constants.iter().map(|(name, numbers)| TensorProto {
            raw_data: numbers.iter().flat_map(|number| number.to_le_bytes()).collect(),
            ..weight(name, &[numbers.len() as i64])
        });
        let node = nodes.iter().map(|(operator, inputs, output)| node(operator, inputs, output)).collect();
        let initializer = tables.chain(constants).collect();
        read(GraphProto { node, initializer, ..Default::default() }, Vec::new())
    }

    /// A graph that is made of itself, also by values without a name, is walked through once.
    #[test]
    fn circles_end() {
        let circle: [(&str, &[&str], &str); 7] = [
            ("Identity", &["b"], "a"),
            ("Cast", &["a"], "b"),
            ("Identity", &[""], "c"),
            ("Identity", &["real"], ""),
            ("Add", &["d", "d"], "d"),
            ("Softmax", &["d"], "e"),
            ("Identity", &["f"], "f"),
        ];
        let graph = graph(&circle, &[], &[]);
        for value in ["a", "b", "c", "f", ""] {
            assert!(graph.origin(value).is_none(), "{value}");
            assert_eq!(graph.table(0, value), None);
            assert_eq!(graph.rows(value), None);
        }
        assert_eq!(graph.root(0, "a"), None);
        assert_eq!(graph.root(0, "real"), Some("real"));
        assert!(graph.writer(0, "").is_none(), "an empty name is no value");
        assert!(!graph.goes_through("Softmax", "Tanh"));
    }

    #[test]
    fn few_numbers_are_remembered() {
        let graph = graph(&[], &[], &[("few", &[-1, 7]), ("many", &[1; FEW + 1])]);
        assert_eq!(graph.numbers(0, "few"), Some(&[-1, 7][..]));
        assert_eq!(graph.numbers(0, "many"), None);
        let unpacked = TensorProto { name: "x".into(), data_type: INT64, int64_data: vec![5], ..Default::default() };
        let value = AttributeProto { name: "value_int".into(), i: 3, ..Default::default() };
        let constant = NodeProto { attribute: vec![value], ..node("Constant", &[], "y") };
        let graph = GraphProto { node: vec![constant], initializer: vec![unpacked], ..Default::default() };
        let graph = read(graph, Vec::new());
        assert_eq!((graph.numbers(0, "x"), graph.numbers(0, "y")), (Some(&[5][..]), Some(&[3][..])));
    }

    /// Both branches of a merged decoder use the same names for different things.
    #[test]
    fn branches_have_names_of_their_own() {
        let branch = |name: &str, number: i64| {
            let constant = TensorProto { data_type: INT64, int64_data: vec![number], ..Default::default() };
            let value = AttributeProto { name: "value".into(), t: Some(constant), ..Default::default() };
            let nodes = vec![
                NodeProto { attribute: vec![value], ..node("Constant", &[], "end") },
                node("Slice", &["past", "end"], "kept"),
                node("Concat", &["kept", "outside"], "present"),
            ];
            let output = vec![ValueInfoProto { name: "present".into() }];
            let g = Some(GraphProto { node: nodes, output, ..Default::default() });
            AttributeProto { name: name.into(), g, ..Default::default() }
        };
        let attribute = vec![branch("then_branch", 1), branch("else_branch", 2)];
        let choice = NodeProto { attribute, ..node("If", &["use_cache_branch"], "present.0") };
        let graph = read(GraphProto { node: vec![choice], ..Default::default() }, Vec::new());
        let ends = graph.origins("present.0").map(|concat| {
            let slice = graph.writer(concat.scope, concat.input(0).unwrap()).unwrap();
            assert_eq!(graph.root(concat.scope, "outside"), Some("outside"));
            graph.numbers(slice.scope, slice.input(1).unwrap()).unwrap()[0]
        });
        assert_eq!(ends.collect::<BTreeSet<i64>>(), BTreeSet::from([1, 2]));
        assert_eq!(graph.readers("past").count(), 2);
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
            graph.goes_through("Softmax", "Tanh")
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
    fn places_of_weights_are_numbers() {
        for (key, value) in
            [("offset", "-4096"), ("length", "4 KiB"), ("offset", "99999999999999999999"), ("length", "")]
        {
            let entries = [("location", "weights.bin"), (key, value)];
            let entry = |(key, value): (&str, &str)| StringStringEntry { key: key.into(), value: value.into() };
            let external_data = entries.map(entry).into();
            let weight = TensorProto { name: "w".into(), external_data, ..Default::default() };
            let graph = read(GraphProto { initializer: vec![weight], ..Default::default() }, Vec::new());
            let error = companions::check_weights(Path::new("folder/model.onnx"), &graph).unwrap_err().to_string();
            let says = format!("\"w\" in \"weights.bin\" has the {key} {value:?}, not a number of bytes");
            assert!(error.contains(&says) && error.contains("folder/model.onnx"), "{error}");
        }
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let refused = |content: &[u8]| {
            std::fs::write(file.path(), content).unwrap();
            let error = Graph::read(file.path()).err().unwrap();
            assert_eq!(error.code(), 3);
            error.to_string()
        };
        for content in [&b""[..], b"prose", b"\x3a\xff\xff\xff\xff\x0f"] {
            refused(content);
        }
        let error = refused(br#"{"error": "Repository not found"}"#);
        assert!(error.contains(r#"begins with the text "{\"error\": \"Repository not found\"}""#), "{error}");
    }
}
