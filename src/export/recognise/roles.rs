//! Recognises the meaning of inputs and outputs other than caches: by their names, or else by how the graph uses them.

use std::collections::{HashMap, HashSet};

use ort::value::TensorElementType;

use super::reader::{MAX_CONTEXT, Port, Reader, c_name};
use crate::error::Result;
use crate::export::graph::{FORMS, Node};
use crate::export::{GivenRows, Input, Logits, Role, is_score};

/// Words in the names of outputs that are not logits, whatever their shape.
const OTHER_OUTPUTS: [&str; 4] = ["hidden_state", "embed", "pooler", "loss"];

/// Operators that look up rows of a table: type, and the indices of the inputs that are the table and the row numbers.
const LOOKUPS: [(&str, usize, usize); 4] =
    [("Gather", 0, 1), ("GatherElements", 0, 1), ("GatherBlockQuantized", 0, 1), ("EmbedLayerNormalization", 2, 0)];

/// Operators whose output is still positions, or a mask, if their input is. [`FORMS`] belong to both.
const KEEP_POSITIONS: [&str; 9] = ["Expand", "Tile", "Slice", "Concat", "Add", "Sub", "Mul", "MatMul", "Einsum"];
const KEEP_MASKS: [&str; 8] = ["Expand", "Tile", "Slice", "Gather", "GatherND", "Add", "Sub", "Mul"];

/// Operators that only positions, and only masks, lead to.
const TAKE_POSITIONS: [&str; 3] = ["Cos", "Sin", "RotaryEmbedding"];
const TAKE_MASKS: [&str; 11] = [
    "Softmax",
    "Where",
    "Not",
    "And",
    "Or",
    "Equal",
    "CumSum",
    "ReduceSum",
    "Attention",
    "MultiHeadAttention",
    "GroupQueryAttention",
];

impl Reader<'_> {
    /// The meaning of an input by its name.
    pub fn role(&self, name: &str) -> Option<Role> {
        let renamed = ["input_ids", "attention_mask", "position_ids", "past_sequence_length", "total_sequence_length"];
        let renamed = renamed.into_iter().find(|key| self.companions.name("inputs", key) == Some(name));
        Role::of(renamed.unwrap_or(name))
    }

    /// The rows of the largest table that is looked up by an input.
    pub fn embedding(&self, name: &str) -> Option<usize> {
        let rows = |node: &Node, (operator, table, index): (&str, usize, usize)| {
            if node.operator != operator || self.graph.root(node.scope, node.input(index)?) != Some(name) {
                return None;
            }
            usize::try_from(*self.graph.table(node.scope, node.input(table)?)?.first()?).ok()
        };
        let nodes = self.graph.nodes().iter();
        nodes.flat_map(|node| LOOKUPS.iter().filter_map(move |&lookup| rows(node, lookup))).max()
    }

    /// The meaning of inputs with unknown names, by how the graph uses them.
    pub fn roles_by_graph<'a>(&self, unnamed: &[&Port<'a>], named: &[Role]) -> HashMap<&'a str, Role> {
        let mut found = HashMap::new();
        let is_free = |input: &&&Port| {
            let whole = [TensorElementType::Int64, TensorElementType::Int32, TensorElementType::Bool];
            input.shape.len() == 2 && whole.contains(&input.element)
        };
        let mut left: Vec<&Port> = unnamed.iter().filter(is_free).copied().collect();
        if !named.contains(&Role::Tokens) {
            let tables = left.iter().filter_map(|input| Some((self.embedding(input.name)?, input.name)));
            if let Some((_, tokens)) = tables.max() {
                found.insert(tokens, Role::Tokens);
                left.retain(|input| input.name != tokens);
            }
        }
        let readers = Readers::of(self);
        for (role, keep, take) in
            [(Role::Positions, &KEEP_POSITIONS[..], &TAKE_POSITIONS[..]), (Role::Mask, &KEEP_MASKS, &TAKE_MASKS)]
        {
            let is_it = |input: &&Port| {
                let is_looked_up = role == Role::Positions && self.embedding(input.name).is_some();
                is_looked_up || readers.lead(input.name, keep, take)
            };
            let mut like_it = left.iter().filter(|input| is_it(input)).map(|input| input.name);
            if let (false, Some(name), None) = (named.contains(&role), like_it.next(), like_it.next()) {
                found.insert(name, role);
                left.retain(|input| input.name != name);
            }
        }
        found
    }

    /// An input of a known meaning. The error says why it cannot be filled.
    pub fn input(&self, input: &Port, role: Role) -> Result<Input> {
        let whole = matches!(input.element, TensorElementType::Int64 | TensorElementType::Int32);
        let flags = matches!(role, Role::Mask | Role::HasPast) && input.element == TensorElementType::Bool;
        if !(whole || flags) {
            return Err(self.unsupported(format_args!(
                "its input {} has the type {}; export it as int64",
                input.name, input.element
            )));
        }
        let rank = input.shape.len();
        if !role.ranks().contains(&rank) {
            return Err(self.unsupported(format_args!("its input {} has {rank} dimensions", input.name)));
        }
        let length = rank.checked_sub(1).and_then(|axis| input.fixed(axis));
        if rank == 2 && input.fixed(0).is_some_and(|batch| batch != 1) {
            return Err(self.unsupported(format_args!("its input {} has a fixed batch of more than 1", input.name)));
        }
        let free = match role {
            // A fixed mask is as long as the longest text, and is filled in every pass.
            Role::Mask => length.is_none_or(|length| (1..=MAX_CONTEXT).contains(&length)),
            _ => length.is_none_or(|length| length == 1),
        };
        if !free {
            return Err(self.unsupported(format_args!(
                "its input {} has a fixed length of {}; export it with dynamic axes",
                input.name,
                length.unwrap_or(0)
            )));
        }
        Ok(Input { name: c_name(input.name), role, element: input.element, rank, length })
    }

    /// The output of logits: by its name, or as the only one with a fitting type and shape.
    pub fn logits(&self, outputs: &[Port], presents: &HashSet<&str>, tokens: Option<usize>) -> Result<Logits> {
        let named = self.companions.name("outputs", "logits").unwrap_or("logits");
        let alike: Vec<&Port> = outputs.iter().filter(|o| o.name.to_lowercase().contains("logits")).collect();
        let exact = outputs.iter().find(|output| output.name == named);
        let logits = match (exact, alike.as_slice()) {
            (Some(output), _) => output,
            (None, [output]) => output,
            (None, []) => self.logits_by_shape(outputs, presents, tokens)?,
            (None, [one, other, ..]) => {
                return Err(self.unsupported(format_args!(
                    "its outputs {} and {} could both be the logits; call the right one logits",
                    one.name, other.name
                )));
            }
        };
        if !is_score(logits.element) {
            return Err(self.unsupported(format_args!(
                "its logits are {}; export them as float32, float16 or bfloat16",
                logits.element
            )));
        }
        let rank = logits.shape.len();
        if !(2..=3).contains(&rank) {
            return Err(self.refuse(format_args!(
                "its logits have the shape {:?}, not [batch, positions, vocabulary]",
                logits.shape
            )));
        }
        let columns = logits.fixed(rank - 1).unwrap_or(0);
        Ok(Logits { name: c_name(logits.name), element: logits.element, rank, columns, rows: GivenRows::All })
    }

    fn logits_by_shape<'b, 'c>(
        &self,
        outputs: &'b [Port<'c>],
        presents: &HashSet<&str>,
        tokens: Option<usize>,
    ) -> Result<&'b Port<'c>> {
        let columns = |output: &Port| output.shape.last().copied().and_then(|size| usize::try_from(size).ok());
        // Hidden states have far fewer columns than there are tokens.
        let may_be = |output: &&Port| {
            let fits = columns(output).zip(tokens).is_none_or(|(columns, tokens)| columns >= tokens / 2);
            let is_other =
                OTHER_OUTPUTS.iter().any(|other| output.name.contains(other)) || presents.contains(output.name);
            (2..=3).contains(&output.shape.len()) && is_score(output.element) && fits && !is_other
        };
        let candidates: Vec<&Port> = outputs.iter().filter(may_be).collect();
        let mut exact = candidates.iter().filter(|output| columns(output).is_some() && columns(output) == tokens);
        match (candidates.as_slice(), exact.next(), exact.next()) {
            ([output], ..) | (_, Some(output), None) => Ok(output),
            ([], ..) => Err(self.refuse(
                "not a language model: it has no output logits with a score for each token; export it for text \
                 generation (ForCausalLM)",
            )),
            ([one, other, ..], ..) => Err(self.unsupported(format_args!(
                "its outputs {} and {} could both be the logits; export it with output_names=[\"logits\", …]",
                one.name, other.name
            ))),
        }
    }
}

/// The nodes that read each value.
struct Readers<'a>(HashMap<&'a str, Vec<&'a Node>>);

impl<'a> Readers<'a> {
    fn of(reader: &Reader<'a>) -> Self {
        let mut readers: HashMap<&str, Vec<&Node>> = HashMap::new();
        for node in reader.graph.nodes() {
            node.inputs.iter().for_each(|input| readers.entry(input).or_default().push(node));
        }
        Readers(readers)
    }

    /// Whether a value reaches an operator in `take` through operators in [`FORMS`] and `keep`.
    fn lead(&self, value: &str, keep: &[&str], take: &[&str]) -> bool {
        let mut seen = HashSet::new();
        let mut left = vec![value];
        while let Some(value) = left.pop() {
            for node in self.0.get(value).into_iter().flatten() {
                let operator = node.operator.as_str();
                if take.contains(&operator) {
                    return true;
                }
                let keeps = FORMS.contains(&operator) || keep.contains(&operator);
                if keeps && seen.insert(std::ptr::from_ref(*node)) {
                    left.extend(node.outputs.iter().map(String::as_str).filter(|output| !output.is_empty()));
                }
            }
        }
        false
    }
}
