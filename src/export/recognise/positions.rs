//! Finds tables that a graph looks up by position. The context cannot be longer than they are.
//!
//! Names of tables differ between exporters (`wpe`, `embed_positions`, `Constant_12`), so the index decides. It is made
//! of positions or lengths, perhaps plus a constant. An index made of tokens belongs to an embedding table.

use std::cell::RefCell;
use std::collections::HashMap;

use crate::export::graph::{Graph, Node, Scope};

/// The most operators that are followed between an input and an index.
const DEPTH: usize = 100;

/// What is known about an input. A pass runs `w` new tokens on top of `p` earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Its values are at most this.
    Numbers(Bound),
    /// Its values are tokens, and its length is `w`.
    Tokens,
    /// It is a cache. One of its dimensions has the length `p`.
    Cache {
        /// The index of that dimension.
        axis: usize,
        /// The number of dimensions.
        rank: usize,
    },
}

/// The upper bound `past · p + new · w + rest` of one integer or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    pub past: i64,
    pub new: i64,
    pub rest: i64,
}

impl Bound {
    /// The number of earlier tokens.
    pub const PAST: Bound = Bound { past: 1, new: 0, rest: 0 };
    /// The number of new tokens.
    pub const NEW: Bound = Bound { past: 0, new: 1, rest: 0 };

    /// A bound that is the same in every pass.
    pub const fn constant(rest: i64) -> Self {
        Bound { past: 0, new: 0, rest }
    }

    /// The number of all tokens plus a constant.
    pub const fn total(rest: i64) -> Self {
        Bound { past: 1, new: 1, rest }
    }

    fn is_constant(self) -> bool {
        (self.past, self.new) == (0, 0)
    }

    /// Whether it grows by one with each token of the text.
    fn grows(self) -> bool {
        (self.past, self.new) == (1, 1) || (self.past, self.new) == (1, 0)
    }

    fn plus(self, sign: i64, other: Bound) -> Option<Bound> {
        let add = |a: i64, b: i64| a.checked_add(sign.checked_mul(b)?);
        Some(Bound {
            past: add(self.past, other.past)?,
            new: add(self.new, other.new)?,
            rest: add(self.rest, other.rest)?,
        })
    }

    fn max(self, other: Bound) -> Option<Bound> {
        match (self.is_constant(), other.is_constant()) {
            (true, false) => Some(other), // the constant replaces some positions, such as masked ones
            (false, true) => Some(self),
            _ if (self.past, self.new) == (other.past, other.new) => {
                Some(if self.rest > other.rest { self } else { other })
            }
            _ => None,
        }
    }
}

/// Finds tables of positions in a graph.
pub struct Positions<'a> {
    graph: &'a Graph,
    sources: &'a HashMap<&'a str, Source>,
    /// Whether every pass runs the whole text, so that all tokens are new.
    is_whole: bool,
    known: RefCell<HashMap<(Scope, String), Option<Bound>>>,
}

impl<'a> Positions<'a> {
    pub fn new(graph: &'a Graph, sources: &'a HashMap<&'a str, Source>, is_whole: bool) -> Self {
        Positions { graph, sources, is_whole, known: RefCell::default() }
    }

    /// The most tokens for which every table has rows.
    pub fn limit(&self) -> Option<usize> {
        let limits = self.graph.nodes().iter().filter_map(|node| self.limit_by(node));
        limits.filter_map(|limit| usize::try_from(limit).ok()).filter(|&limit| limit > 0).min()
    }

    /// The most tokens that the table of a node has rows for. `None` if the node reads no such table.
    fn limit_by(&self, node: &Node) -> Option<i64> {
        let table = |index: usize| self.graph.table(node.scope, node.input(index)?);
        let rows = |table: &[i64]| table.iter().copied().find(|&size| size > 1);
        let index = |index: usize| self.largest(node.scope, node.input(index)?).filter(|&bound| self.grows(bound));
        match node.operator.as_str() {
            // The index is at most the number of tokens plus `rest`, and must be less than the number of rows.
            "Gather" | "GatherElements" | "GatherND" | "GatherBlockQuantized" => {
                let bound = index(1)?;
                rows(table(0)?)?.checked_sub(1)?.checked_sub(bound.rest)
            }
            "EmbedLayerNormalization" => rows(table(3)?),
            "Slice" => {
                let axis = match node.input(3) {
                    Some(axes) => *self.graph.numbers(node.scope, axes)?.first()?,
                    None => 0,
                };
                let table = table(0)?;
                let axis = usize::try_from(if axis < 0 { axis + table.len() as i64 } else { axis }).ok()?;
                let size = table.get(axis).filter(|&&size| size > 1)?;
                match index(2) {
                    Some(end) => size.checked_sub(end.rest),
                    // The slice has as many of the last rows as there are tokens.
                    None => {
                        let start = self.largest(node.scope, node.input(1)?)?;
                        let tokens = Bound::constant(0).plus(-1, start)?;
                        self.grows(tokens).then_some(start.rest)
                    }
                }
            }
            _ => None,
        }
    }

    /// Whether a bound grows by one with each token of the text.
    fn grows(&self, bound: Bound) -> bool {
        bound.grows() || (self.is_whole && (bound.past, bound.new) == (0, 1))
    }

    /// The upper bound of a value. `None` if it is made of tokens, or by unknown operators.
    pub fn largest(&self, scope: Scope, value: &str) -> Option<Bound> {
        self.bound(scope, value, DEPTH)
    }

    fn bound(&self, scope: Scope, value: &str, depth: usize) -> Option<Bound> {
        if value.is_empty() || depth == 0 {
            return None;
        }
        if let Some(numbers) = self.graph.numbers(scope, value) {
            return numbers.iter().max().map(|&number| Bound::constant(number));
        }
        let Some(node) = self.graph.writer(scope, value) else {
            return match self.sources.get(value) {
                Some(Source::Numbers(bound)) => Some(*bound),
                _ => None,
            };
        };
        let key = (scope, value.to_owned());
        if let Some(known) = self.known.borrow().get(&key) {
            return *known;
        }
        self.known.borrow_mut().insert(key.clone(), None); // in case the value depends on itself
        let found = self.made_by(node, depth - 1);
        self.known.borrow_mut().insert(key, found);
        found
    }

    /// The upper bound of a node's output.
    fn made_by(&self, node: &Node, depth: usize) -> Option<Bound> {
        let of = |index: usize| self.bound(node.scope, node.input(index)?, depth);
        if let Some((shaped, dimension)) = self.dimension(node) {
            return self.length(node.scope, shaped, dimension);
        }
        match node.operator.as_str() {
            "Cast" | "Identity" | "Unsqueeze" | "Squeeze" | "Reshape" | "Expand" | "Tile" | "Transpose" | "Slice"
            | "Flatten" | "Gather" => of(0),
            "Add" => of(0)?.plus(1, of(1)?),
            "Sub" => of(0)?.plus(-1, of(1)?),
            // The product with a mask.
            "Mul" => match (of(0)?, of(1)?) {
                (one, other) if one == Bound::constant(1) => Some(other),
                (one, other) if other == Bound::constant(1) => Some(one),
                _ => None,
            },
            // The sum of ones or booleans.
            "CumSum" => of(0).filter(|&most| most == Bound::constant(1)).map(|_| Bound::total(0)),
            "Range" => of(1)?.plus(-1, Bound::constant(1)),
            "Where" => of(1)?.max(of(2)?),
            "Concat" => {
                let parts = (0..node.inputs.len()).map(of);
                parts.reduce(|most, part| most?.max(part?)).flatten()
            }
            "ConstantOfShape" => Some(Bound::constant(1)), // ones, if it is part of a position
            "Equal" | "Not" | "And" | "Or" | "Less" | "LessOrEqual" | "Greater" | "GreaterOrEqual" => {
                Some(Bound::constant(1))
            }
            _ => None,
        }
    }

    /// The tensor and the dimension whose length a node computes.
    fn dimension<'b>(&'b self, node: &'b Node) -> Option<(&'b str, i64)> {
        let constant = |index: usize| self.graph.numbers(node.scope, node.input(index)?)?.first().copied();
        match node.operator.as_str() {
            "Shape" => Some((node.input(0)?, node.integer("start")?)),
            "Gather" | "Slice" => {
                let shape = self.graph.writer(node.scope, node.input(0)?)?;
                let whole = shape.operator == "Shape" && shape.integer("start").unwrap_or(0) == 0;
                Some((shape.input(0).filter(|_| whole)?, constant(1)?))
            }
            _ => None,
        }
    }

    /// The length of a tensor in a dimension. The first dimension is the batch, which is 1.
    fn length(&self, scope: Scope, value: &str, dimension: i64) -> Option<Bound> {
        if dimension == 0 {
            return Some(Bound::constant(1));
        }
        let writer = self.graph.writer(scope, value);
        match self.sources.get(value).filter(|_| writer.is_none()) {
            Some(&source @ Source::Cache { .. }) => source.is_along(dimension).then_some(Bound::PAST),
            Some(Source::Numbers(bound)) if *bound == Bound::constant(1) => Some(Bound::total(0)), // a mask
            _ if writer.is_some_and(|node| self.joins_cache(node, dimension)) => Some(Bound::total(0)),
            _ => Some(Bound::NEW),
        }
    }

    /// Whether a node appends new entries to a cache in this dimension.
    fn joins_cache(&self, node: &Node, dimension: i64) -> bool {
        let source = |input: &String| self.sources.get(self.graph.root(node.scope, input)?);
        let is_along =
            |source: &Source| [Some(dimension), node.integer("axis")].iter().flatten().all(|&at| source.is_along(at));
        node.operator == "Concat" && node.inputs.iter().filter_map(source).any(is_along)
    }
}

impl Source {
    /// Whether it is a cache whose dimension of tokens this is. A negative dimension counts from the end.
    fn is_along(&self, dimension: i64) -> bool {
        match *self {
            Source::Cache { axis, rank } => [dimension, dimension + rank as i64].contains(&(axis as i64)),
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::graph::tests::graph;

    type Nodes<'a> = [(&'a str, &'a [&'a str], &'a str)];

    fn limit_of(nodes: &Nodes, table: &[i64], is_whole: bool) -> Option<usize> {
        let constants = [("zero", &[0][..]), ("one", &[1]), ("two", &[2]), ("minus two", &[-2]), ("last", &[-1])];
        let constants = [&constants[..], &[("hundred", &[100][..]), ("all", &[i64::MAX])]].concat();
        let graph = graph(nodes, &[("table", table)], &constants);
        let sources = HashMap::from([
            ("input_ids", Source::Tokens),
            ("position_ids", Source::Numbers(Bound::total(-1))),
            ("attention_mask", Source::Numbers(Bound::constant(1))),
            ("past", Source::Cache { axis: 2, rank: 4 }),
        ]);
        Positions::new(&graph, &sources, is_whole).limit()
    }

    fn limit(nodes: &Nodes) -> Option<usize> {
        limit_of(nodes, &[100, 8], false)
    }

    #[test]
    fn positions_are_looked_up() {
        assert_eq!(limit(&[("Gather", &["table", "position_ids"], "x")]), Some(100));
        // GPT-J: the table and the index are expanded first
        let nodes: &Nodes = &[
            ("Expand", &["table", "sizes"], "wide"),
            ("Unsqueeze", &["position_ids", "last"], "index"),
            ("Tile", &["index", "sizes"], "wide index"),
            ("GatherElements", &["wide", "wide index"], "x"),
        ];
        assert_eq!(limit_of(nodes, &[1, 100, 8], false), Some(100));
    }

    #[test]
    fn positions_are_counted_from_two() {
        // OPT: from the mask
        let nodes: &Nodes = &[
            ("CumSum", &["attention_mask", "one"], "counted"),
            ("Mul", &["counted", "attention_mask"], "seen"),
            ("Sub", &["seen", "one"], "places"),
            ("Slice", &["places", "zero", "last", "one"], "new"),
            ("Add", &["new", "two"], "index"),
            ("Gather", &["table", "index"], "x"),
        ];
        assert_eq!(limit(nodes), Some(98));
        // BART: from the length of the cache, in a dimension counted from the end
        let nodes: &Nodes = &[
            ("Shape", &["past"], "sizes"),
            ("Slice", &["sizes", "minus two", "last", "zero"], "past length"),
            ("Shape", &["hidden"], "new sizes"),
            ("Gather", &["new sizes", "one"], "new length"),
            ("Add", &["past length", "new length"], "length"),
            ("Range", &["past length", "length", "one"], "places"),
            ("Add", &["places", "two"], "index"),
            ("Gather", &["table", "index"], "x"),
        ];
        assert_eq!(limit(nodes), Some(98));
        // RoBERTa: from the tokens other than padding
        let nodes: &Nodes = &[
            ("Equal", &["input_ids", "one"], "padding"),
            ("Not", &["padding"], "text"),
            ("CumSum", &["text", "one"], "counted"),
            ("Mul", &["counted", "text"], "places"),
            ("Add", &["places", "one"], "index"),
            ("Gather", &["table", "index"], "x"),
        ];
        assert_eq!(limit(nodes), Some(98));
    }

    #[test]
    fn a_table_is_cut_to_the_length_of_the_text() {
        let nodes: &Nodes = &[
            ("Shape", &["attention_mask"], "sizes"),
            ("Gather", &["sizes", "one"], "length"),
            ("Slice", &["table", "zero", "length", "zero"], "x"),
        ];
        assert_eq!(limit(nodes), Some(100));
        assert_eq!(limit(&[nodes[0], nodes[1], ("Slice", &["table", "zero", "length", "last"], "x")]), Some(8));
        // MPT: to the last rows, by the length of the present
        let nodes: &Nodes = &[
            ("Concat", &["past", "new"], "present"),
            ("Shape", &["present"], "sizes"),
            ("Gather", &["sizes", "two"], "length"),
            ("Sub", &["hundred", "length"], "start"),
            ("Slice", &["table", "start", "all", "zero"], "x"),
        ];
        assert_eq!(limit(nodes), Some(100));
    }

    #[test]
    fn other_tables_set_no_limit() {
        assert_eq!(limit(&[("Gather", &["table", "input_ids"], "x")]), None, "embeddings");
        assert_eq!(limit(&[("Gather", &["other", "position_ids"], "x")]), None, "no weight");
        assert_eq!(limit(&[("Gather", &["table", "one"], "x")]), None, "always the same row");
        // T5 and MPT: buckets of distances
        let nodes: &Nodes = &[
            ("Sub", &["position_ids", "position_ids"], "distance"),
            ("Min", &["position_ids", "one"], "bucket"),
            ("Gather", &["table", "distance"], "x"),
            ("Gather", &["table", "bucket"], "y"),
        ];
        assert_eq!(limit(nodes), None);
        // the batch, which is 1
        let nodes: &Nodes = &[
            ("Shape", &["input_ids"], "sizes"),
            ("Gather", &["sizes", "zero"], "batch"),
            ("Range", &["zero", "batch", "one"], "rows"),
            ("Gather", &["table", "rows"], "x"),
        ];
        assert_eq!(limit_of(nodes, &[100, 8], true), None);
    }

    #[test]
    fn new_tokens_are_all_tokens_without_a_cache() {
        let nodes: &Nodes = &[
            ("Shape", &["input_ids"], "sizes"),
            ("Gather", &["sizes", "one"], "length"),
            ("Range", &["zero", "length", "one"], "places"),
            ("Gather", &["table", "places"], "x"),
        ];
        assert_eq!(limit_of(nodes, &[100, 8], true), Some(100));
        assert_eq!(limit_of(nodes, &[100, 8], false), None);
    }

    #[test]
    fn circles_and_long_chains_have_no_bound() {
        let circle: &Nodes = &[("Add", &["index", "one"], "index"), ("Gather", &["table", "index"], "x")];
        assert_eq!(limit(circle), None);
        let names: Vec<String> = (0..100_000).map(|index| format!("index {index}")).collect();
        let inputs: Vec<[&str; 2]> = names.iter().map(|name| [name.as_str(), "one"]).collect();
        let mut nodes: Vec<(&str, &[&str], &str)> =
            inputs.iter().zip(&names[1..]).map(|(inputs, name)| ("Add", &inputs[..], name.as_str())).collect();
        let looked_up = ["table", names.last().unwrap()];
        nodes.push(("Gather", &looked_up, "x"));
        assert_eq!(limit(&nodes), None);
    }
}
