//! Models of one attention operator for tests: ONNX Runtime's GroupQueryAttention, and ours.

use std::borrow::Cow;

use ort::session::{Session, SessionInputValue};
use ort::value::Tensor;
use prost::Message;

use super::register;
use super::table::{BLOCK_TOKENS, LayerPart, PassTable, Share};
use crate::onnx::runtime;

#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(int64, tag = "1")]
    ir_version: i64,
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    opsets: Vec<Opset>,
}

#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(string, tag = "1")]
    domain: String,
    #[prost(int64, tag = "2")]
    version: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(message, repeated, tag = "11")]
    inputs: Vec<Info>,
    #[prost(message, repeated, tag = "12")]
    outputs: Vec<Info>,
}

#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    of: Option<Type>,
}

#[derive(Clone, PartialEq, Message)]
struct Type {
    #[prost(message, optional, tag = "1")]
    tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
struct TensorType {
    #[prost(int32, tag = "1")]
    element: i32,
}

#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(string, repeated, tag = "1")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    outputs: Vec<String>,
    #[prost(string, tag = "4")]
    operator: String,
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<Attribute>,
    #[prost(string, tag = "7")]
    domain: String,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(float, tag = "2")]
    number: f32,
    #[prost(int64, tag = "3")]
    integer: i64,
    #[prost(int32, tag = "20")]
    kind: i32,
}

const FLOAT: i32 = 1;
const INT32: i32 = 6;
const INT64: i32 = 7;

/// What an operator is like.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Case {
    pub heads: usize,
    pub kv_heads: usize,
    pub head: usize,
    pub packed: bool,
    /// Angles of a position; 0 without rotation.
    pub angles: usize,
    pub interleaved: bool,
    /// -1 without a window.
    pub window: i64,
    pub softcap: f32,
    pub smooth: bool,
    pub sinks: bool,
    pub scale: f32,
    /// Positions that can be rotated.
    pub positions: usize,
}

impl Case {
    pub fn plain(heads: usize, kv_heads: usize, head: usize) -> Self {
        let (packed, angles, interleaved, window) = (false, head / 2, false, -1);
        let (softcap, smooth, sinks, scale) = (0.0, false, false, 0.0);
        let positions = 2304;
        Case { heads, kv_heads, head, packed, angles, interleaved, window, softcap, smooth, sinks, scale, positions }
    }

    /// Numbers of queries, keys and values for each token.
    pub fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head
    }

    pub fn attributes(&self) -> Vec<(&'static str, f64)> {
        let mut all = vec![
            ("num_heads", self.heads as f64),
            ("kv_num_heads", self.kv_heads as f64),
            ("local_window_size", self.window as f64),
            ("do_rotary", f64::from(u8::from(self.angles > 0))),
            ("rotary_interleaved", f64::from(u8::from(self.interleaved))),
            ("smooth_softmax", f64::from(u8::from(self.smooth))),
            ("softcap", f64::from(self.softcap)),
            ("scale", f64::from(self.scale)),
        ];
        all.retain(|&(_, value)| value != 0.0);
        all
    }

    fn cosines_and_sines(&self) -> [Vec<f32>; 2] {
        let angle = |index: usize| {
            let (position, pair) = (index / self.angles, index % self.angles);
            position as f32 / 10_000f32.powf(pair as f32 / self.angles as f32)
        };
        let all = || (0..self.positions * self.angles).map(angle);
        [all().map(f32::cos).collect(), all().map(f32::sin).collect()]
    }

    fn sinks(&self) -> Vec<f32> {
        (0..self.heads).map(|head| head as f32 * 0.7 - 1.0).collect()
    }
}

fn node_model(
    domain: &str,
    operator: &str,
    attributes: &[(&str, f64)],
    inputs: &[(&str, i32)],
    outputs: &[&str],
) -> Vec<u8> {
    let info =
        |name: &str, element| Info { name: name.into(), of: Some(Type { tensor: Some(TensorType { element }) }) };
    let attribute = |&(name, value): &(&str, f64)| {
        let is_float = matches!(name, "scale" | "softcap");
        let (number, integer) = if is_float { (value as f32, 0) } else { (0.0, value as i64) };
        Attribute { name: name.into(), number, integer, kind: if is_float { 1 } else { 2 } }
    };
    let inputs_of_node = inputs.iter().map(|(name, _)| (*name).to_owned()).collect();
    let node = Node {
        inputs: inputs_of_node,
        outputs: outputs.iter().map(|&name| name.into()).collect(),
        operator: operator.into(),
        attributes: attributes.iter().map(attribute).collect(),
        domain: domain.into(),
    };
    let graph = Graph {
        nodes: vec![node],
        name: "attention".into(),
        inputs: inputs.iter().filter(|input| !input.0.is_empty()).map(|&(name, element)| info(name, element)).collect(),
        outputs: outputs.iter().map(|name| info(name, FLOAT)).collect(),
    };
    let opset = |domain: &str, version| Opset { domain: domain.into(), version };
    Model { ir_version: 10, graph: Some(graph), opsets: vec![opset("", 21), opset(domain, 1)] }.encode_to_vec()
}

/// A session of its own threads, which has our operator.
pub fn session(model: &[u8], threads: usize) -> ort::Result<Session> {
    let environment = runtime::environment(None, 0, None).expect("ONNX Runtime is there");
    let builder = Session::builder(environment)?.with_independent_thread_pool()?.with_intra_threads(threads)?;
    register::register(&builder)?;
    { builder }.commit_from_memory(model)
}

/// A model of our operator. `attributes` are those of the case, or others.
pub fn ours(case: &Case, attributes: &[(&str, f64)]) -> Vec<u8> {
    let rotary = case.angles > 0;
    let part = |is: bool, name| if is { (name, FLOAT) } else { ("", FLOAT) };
    let inputs = [
        ("query", FLOAT),
        part(!case.packed, "key"),
        part(!case.packed, "value"),
        part(rotary, "cos"),
        part(rotary, "sin"),
        part(case.sinks, "sinks"),
        ("table", INT64),
    ];
    node_model("cos", "PackedAttention", attributes, &inputs, &["out"])
}

/// A model of GroupQueryAttention.
pub fn theirs(case: &Case) -> Vec<u8> {
    let rotary = case.angles > 0;
    let part = |is: bool, name| if is { (name, FLOAT) } else { ("", FLOAT) };
    let mut inputs = vec![
        ("query", FLOAT),
        part(!case.packed, "key"),
        part(!case.packed, "value"),
        ("past_key", FLOAT),
        ("past_value", FLOAT),
        ("lengths", INT32),
        ("total", INT32),
        part(rotary, "cos"),
        part(rotary, "sin"),
        ("", INT64),
        ("", FLOAT),
        part(case.sinks, "sinks"),
    ];
    while inputs.last().is_some_and(|input| input.0.is_empty()) {
        inputs.pop();
    }
    let outputs = ["out", "present_key", "present_value"];
    node_model("com.microsoft", "GroupQueryAttention", &case.attributes(), &inputs, &outputs)
}

/// Named inputs of a session.
pub type Named = Vec<(Cow<'static, str>, SessionInputValue<'static>)>;

pub fn floats(inputs: &mut Named, name: &'static str, shape: &[usize], data: Vec<f32>) {
    let tensor = Tensor::from_array((shape.to_vec(), data)).unwrap();
    inputs.push((name.into(), tensor.into()));
}

/// The inputs that both operators have: queries, keys and values `[tokens, width]`, and tables.
pub fn common(case: &Case, tokens: &[f32]) -> Named {
    let (count, mut inputs) = (tokens.len() / case.width(), Named::new());
    let (query, kv) = (case.heads * case.head, case.kv_heads * case.head);
    let columns = |begin: usize, len: usize| {
        tokens.chunks_exact(case.width()).flat_map(|token| token[begin..][..len].iter().copied()).collect()
    };
    if case.packed {
        floats(&mut inputs, "query", &[1, count, case.width()], tokens.to_vec());
    } else {
        floats(&mut inputs, "query", &[1, count, query], columns(0, query));
        floats(&mut inputs, "key", &[1, count, kv], columns(query, kv));
        floats(&mut inputs, "value", &[1, count, kv], columns(query + kv, kv));
    }
    if case.angles > 0 {
        let [cos, sin] = case.cosines_and_sines();
        floats(&mut inputs, "cos", &[case.positions, case.angles], cos);
        floats(&mut inputs, "sin", &[case.positions, case.angles], sin);
    }
    if case.sinks {
        floats(&mut inputs, "sinks", &[case.heads], case.sinks());
    }
    inputs
}

/// A sequence of GroupQueryAttention: its caches, `[kv_heads, capacity, head]`.
pub struct Reference {
    caches: [Vec<f32>; 2],
    capacity: usize,
}

impl Reference {
    pub fn new(case: &Case, capacity: usize) -> Self {
        let cache = || vec![0.0; case.kv_heads * capacity * case.head];
        Reference { caches: [cache(), cache()], capacity }
    }

    pub fn run(&mut self, session: &mut Session, case: &Case, past: usize, tokens: &[f32]) -> Vec<f32> {
        let mut inputs = common(case, tokens);
        let total = (past + tokens.len() / case.width()) as i32;
        let shape = [1, case.kv_heads, self.capacity, case.head];
        let [keys, values] = std::mem::take(&mut self.caches);
        floats(&mut inputs, "past_key", &shape, keys);
        floats(&mut inputs, "past_value", &shape, values);
        inputs.push(("lengths".into(), Tensor::from_array(([1], vec![total - 1])).unwrap().into()));
        inputs.push(("total".into(), Tensor::from_array(([1], vec![total])).unwrap().into()));
        let outputs = session.run(inputs).unwrap();
        let output = |name: &str| outputs[name].try_extract_tensor::<f32>().unwrap().1.to_vec();
        self.caches = [output("present_key"), output("present_value")];
        output("out")
    }
}

/// Blocks that are taken from a pool in an order of their own. They have two layers, and the second is used.
pub struct Pool {
    part: LayerPart,
    first: LayerPart,
    memory: Vec<Vec<f32>>,
    rng: fastrand::Rng,
    pub free: Vec<*mut f32>,
}

impl Pool {
    /// A pool whose blocks hold what is not a number.
    pub fn new(case: &Case, blocks: usize) -> Self {
        let half = case.kv_heads * case.head * BLOCK_TOKENS;
        let part = |keys| LayerPart { keys, values: keys + half, kv_heads: case.kv_heads, head_size: case.head };
        let mut memory: Vec<Vec<f32>> = (0..blocks).map(|_| vec![f32::NAN; 4 * half]).collect();
        let mut rng = fastrand::Rng::with_seed(blocks as u64);
        let mut free: Vec<*mut f32> = memory.iter_mut().map(|block| block.as_mut_ptr()).collect();
        rng.shuffle(&mut free);
        Pool { part: part(2 * half), first: part(0), memory, rng, free }
    }

    pub fn table(&self, shares: &[(usize, usize, *const *mut f32)]) -> PassTable {
        assert!(!self.memory.is_empty());
        let mut first = 0;
        let shares = shares.iter().map(|&(past, width, blocks)| {
            let share = Share { first, width, past, blocks };
            first += width;
            share
        });
        let shares: Vec<Share> = shares.collect();
        PassTable { tokens: first, shares, layers: vec![self.first, self.part] }
    }

    /// Let all blocks hold a number.
    pub fn fill(&mut self, number: f32) {
        self.memory.iter_mut().for_each(|block| block.fill(number));
    }

    pub fn take(&mut self) -> *mut f32 {
        self.free.swap_remove(self.rng.usize(..self.free.len()))
    }
}

/// Run our operator over a table.
pub fn run(session: &mut Session, case: &Case, table: &PassTable, tokens: &[f32]) -> ort::Result<Vec<f32>> {
    let mut inputs = common(case, tokens);
    let address = std::ptr::from_ref(table) as usize as i64;
    inputs.push(("table".into(), Tensor::from_array(([1], vec![address])).unwrap().into()));
    let outputs = session.run(inputs)?;
    Ok(outputs["out"].try_extract_tensor::<f32>()?.1.to_vec())
}
