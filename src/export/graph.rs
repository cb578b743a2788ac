//! Reads the graph of an `.onnx` file. ONNX Runtime does not tell which operators a session has.
//!
//! Everything else in the file, above all weights, is left in the mapped file. Files come from strangers, so all walks
//! through a graph are bounded, and an empty name is no value.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use memmap2::Mmap;
use prost::Message;
use prost::bytes::Bytes;

use super::proto::{BFLOAT16, FLOAT16, GraphProto, ModelProto, NodeProto, TensorProto};
use super::unpaged::unpaged;
use crate::error::{Error, Result};
use crate::files;

/// Operators that change the form of a value but not its content.
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

/// The longest chain of such operators that is followed.
const STEPS: usize = 16;

/// The scope of a name. The main graph is 0; each subgraph and each function has its own number.
pub type Scope = usize;

/// The operators of a model, including those of subgraphs and functions.
pub struct Graph {
    /// The program that exported it, and its version.
    pub producer: String,
    /// The version of the standard operators.
    pub opset: i64,
    nodes: Vec<Node>,
    /// For each scope, the indices of the nodes that write its values.
    writers: Vec<HashMap<String, usize>>,
    /// For each scope, the enclosing one, whose values it may read. The main graph and functions have none.
    around: Vec<Option<Scope>>,
    /// For each scope, its weights and constants.
    weights: Vec<HashMap<String, Weight>>,
    /// The external files of weights, and the least size in bytes that each must have.
    pub external_files: BTreeMap<String, u64>,
    /// An error in the location of an external weight.
    pub misplaced: Option<String>,
    /// Whether something is computed in half precision: a weight is float16 or bfloat16, or a value is cast to that.
    pub is_half: bool,
    /// What is loaded in place of the file, if its attention is paged. Everything else here is of this content.
    pub unpaged: Option<Bytes>,
}

/// A weight or a constant.
struct Weight {
    dimensions: Vec<i64>,
    /// Its content if that is a few integers.
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
        // SAFETY: the mapping is only read in this function. If another program truncates the file meanwhile, the
        // process gets SIGBUS, as it would when ONNX Runtime maps the file.
        let bytes = unsafe { Mmap::map(&opened) }
            .map_err(|error| Error::Runtime(format!("cannot map {} into memory: {error}", file.display())))?;
        // With `Bytes`, the decoder does not copy the content of weights.
        let bytes = Bytes::from_owner(bytes);
        let mut model = ModelProto::decode(bytes.clone()).map_err(|error| {
            let start = files::prose(&bytes[..bytes.len().min(60)]);
            let text = start.map(|start| format!("; it begins with the text {start:?}")).unwrap_or_default();
            refuse(&format_args!("it is not ONNX ({error}){text}"))
        })?;
        let unpaged = unpaged(&bytes, &model).map_err(|why| {
            Error::Unsupported(format!(
                "{}: CoS cannot read its paged attention: {why}; export it without use_paged_attention",
                file.display()
            ))
        })?;
        let unpaged = unpaged.map(Bytes::from);
        if let Some(bytes) = &unpaged {
            model = ModelProto::decode(bytes.clone()).map_err(|error| refuse(&error))?;
        }
        let main = model.graph.ok_or_else(|| refuse(&"it holds no graph"))?;
        let mut graph = Graph {
            unpaged,
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

    /// Add a scope.
    fn scope(&mut self, around: Option<Scope>) -> Scope {
        self.writers.push(HashMap::new());
        self.weights.push(HashMap::new());
        self.around.push(around);
        self.around.len() - 1
    }

    /// Add a graph and everything in it.
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
            // In other domains, a standard name may mean anything.
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

    /// The nodes with a type of operator.
    pub fn all<'a>(&'a self, operator: &'a str) -> impl Iterator<Item = &'a Node> + Clone {
        self.nodes.iter().filter(move |node| node.operator == operator)
    }

    /// The node that writes a value which is read in `scope`. It may be in an enclosing scope.
    pub fn writer(&self, scope: Scope, value: &str) -> Option<&Node> {
        self.scopes(scope).find_map(|scope| self.writers[scope].get(value)).map(|&index| &self.nodes[index])
    }

    fn stored(&self, scope: Scope, name: &str) -> Option<&Weight> {
        self.scopes(scope).find_map(|scope| self.weights[scope].get(name))
    }

    /// A scope and those that enclose it.
    fn scopes(&self, scope: Scope) -> impl Iterator<Item = Scope> {
        std::iter::successors(Some(scope), |&scope| self.around[scope])
    }

    /// The nodes that write what a node reads.
    fn before<'a>(&'a self, node: &'a Node) -> impl Iterator<Item = &'a Node> {
        node.inputs.iter().filter_map(|value| self.writer(node.scope, value))
    }

    /// The node that computes a value of the main graph. Nodes that only change its form ([`FORMS`]) are skipped.
    pub fn origin(&self, value: &str) -> Option<&Node> {
        self.origins(value).next()
    }

    /// As [`Graph::origin`], with one node for each branch of a condition.
    pub fn origins<'a>(&'a self, value: &str) -> impl Iterator<Item = &'a Node> + use<'a> {
        self.sources(value, &FORMS).into_iter().map(|(node, _)| node)
    }

    /// The nodes that compute a value of the main graph, with the index of their output. Operators in `through` and
    /// conditions are skipped.
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

    /// The input of the model that a value is another form of, if any.
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

    /// The number of rows of a table. If a condition chooses among several tables, that of the smallest.
    pub fn rows(&self, table: &str) -> Option<usize> {
        let chosen = self.writer(0, table).filter(|node| node.operator == "If").map(|node| node.branches.iter());
        let chosen = chosen.into_iter().flatten().filter_map(|branch| branch.output(0));
        let rows =
            chosen.chain([(0, table)]).filter_map(|(scope, name)| self.dimensions(scope, name)?.first().copied());
        rows.filter_map(|rows| usize::try_from(rows).ok()).filter(|&rows| rows > 1).min()
    }

    /// Whether a node of type `operator` lies between a node of type `last` and the matrix products before it.
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

    /// The nodes that read a value of the main graph, including those in subgraphs.
    pub fn readers<'a>(&'a self, value: &'a str) -> impl Iterator<Item = &'a Node> {
        let reads = move |node: &&Node| node.inputs.iter().any(|input| input == value);
        let sees =
            |node: &&Node| std::iter::successors(Some(node.scope), |&scope| self.around[scope]).last() == Some(0);
        self.nodes.iter().filter(reads).filter(sees)
    }

    /// The dimensions of a weight, or of a cast weight.
    pub fn weight(&self, name: &str) -> Option<&[i64]> {
        self.dimensions(0, name)
    }

    fn dimensions(&self, scope: Scope, name: &str) -> Option<&[i64]> {
        let cast = self.writer(scope, name).filter(|node| node.operator == "Cast");
        let stored = cast.and_then(|node| node.input(0)).unwrap_or(name);
        self.stored(scope, stored).map(|weight| weight.dimensions.as_slice())
    }

    /// The dimensions of the weight that a value is another form of, if any.
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

    /// The content of a constant of a few integers.
    pub fn numbers(&self, scope: Scope, name: &str) -> Option<&[i64]> {
        self.stored(scope, name).map(|weight| weight.numbers.as_slice()).filter(|numbers| !numbers.is_empty())
    }
}

/// One node of a graph.
pub struct Node {
    /// The type of its operator.
    pub operator: String,
    /// The values that it reads. An empty name is an absent input.
    pub inputs: Vec<String>,
    /// The values that it writes. An empty name is an unused output.
    pub outputs: Vec<String>,
    /// The scope of these names.
    pub scope: Scope,
    numbers: HashMap<String, (i64, f32)>,
    /// Its subgraphs.
    branches: Vec<Branch>,
}

/// A subgraph of a node.
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
    /// The input with an index, if present.
    pub fn input(&self, index: usize) -> Option<&str> {
        self.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// An integer attribute.
    pub fn integer(&self, name: &str) -> Option<i64> {
        self.numbers.get(name).map(|number| number.0)
    }

    /// A float attribute.
    pub fn float(&self, name: &str) -> Option<f32> {
        self.numbers.get(name).map(|number| number.1)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use super::super::proto::{AttributeProto, FEW, FunctionProto, INT64, ValueInfoProto};
    use super::*;

    fn node(operator: &str, inputs: &[&str], output: &str) -> NodeProto {
        let input = inputs.iter().map(|name| name.to_string()).collect();
        NodeProto { op_type: operator.into(), input, output: vec![output.into()], ..Default::default() }
    }

    /// The graph of a file with these parts.
    pub fn read(graph: GraphProto, functions: Vec<FunctionProto>) -> Graph {
        let model = ModelProto { graph: Some(graph), functions, producer_name: "test".into(), ..Default::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), model.encode_to_vec()).unwrap();
        Graph::read(file.path()).unwrap()
    }

    /// A graph with nodes (operator, inputs, output), weights with dimensions, and constants.
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

    /// Values that depend on themselves, or have no name, are visited once.
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
    fn constants_of_few_numbers_are_kept() {
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

    /// Both branches of a merged decoder use the same names for different values.
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
            let output = vec![ValueInfoProto { name: "present".into(), ..Default::default() }];
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
    fn operators_between_products_and_another_operator() {
        let scores = |capped: bool| {
            let cap = node(if capped { "Tanh" } else { "Identity" }, &["scores"], "capped");
            let nodes = vec![
                node("Tanh", &["x"], "hidden"), // before the product, so it does not count
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
    fn functions_have_names_of_their_own() {
        // A function may use names of the graph for other values.
        let main = vec![node("Concat", &["past"], "b"), node("Identity", &["b"], "a"), node("Cast", &["a"], "present")];
        let function = FunctionProto { node: vec![node("Identity", &["a"], "b"), node("Concat", &["b"], "c")] };
        let graph = read(GraphProto { node: main, ..Default::default() }, vec![function]);
        assert_eq!(graph.origin("present").unwrap().inputs, ["past"]);
        assert_eq!(graph.all("Concat").count(), 2);
        assert!(graph.origin("past").is_none());
    }

    #[test]
    fn the_smallest_table_of_a_condition_counts() {
        let table =
            |name: &str, rows: i64| TensorProto { name: name.into(), dims: vec![rows, 8], ..Default::default() };
        let branch = |name: &str, rows: i64| {
            let initializer = vec![table(name, rows)];
            let output = vec![ValueInfoProto { name: name.into(), ..Default::default() }];
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
    fn other_files_are_refused() {
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
