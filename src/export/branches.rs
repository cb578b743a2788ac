//! Puts the constants of a branch in the place of an `If`.
//!
//! Exports with rescaled positions (longrope) choose tables of cosines and sines by the length of the text. Keys in a
//! cache are not rescaled, so texts are no longer than the tables of the `else` branch, which are for short ones.

use prost::Message;

use super::proto::{AttributeProto, GraphProto, NodeProto};
use super::wire::{self, Field};

/// Whether the `else` branch of an operator holds constants only, each of at least `length` rows.
pub fn are_tables(node: &NodeProto, length: usize) -> bool {
    let rows = |node: &NodeProto| {
        let table = node.attribute.iter().find(|attribute| attribute.name == "value")?.t.as_ref()?;
        table.dims.first().filter(|_| node.op_type == "Constant").copied()
    };
    let Some(branch) = otherwise(&node.attribute) else { return false };
    node.op_type == "If"
        && branch.output.len() == node.output.len()
        && branch.initializer.is_empty()
        && branch.node.iter().all(|node| rows(node).is_some_and(|rows| rows >= length as i64))
        && branch.output.iter().all(|output| branch.node.iter().any(|node| node.output.contains(&output.name)))
}

fn otherwise(attributes: &[AttributeProto]) -> Option<&GraphProto> {
    attributes.iter().find(|attribute| attribute.name == "else_branch")?.g.as_ref()
}

/// The constants of the `else` branch of an operator, encoded, under the names that the operator gives its values.
pub fn tables(raw: &[u8], node: &NodeProto) -> Option<Vec<Vec<u8>>> {
    let branch = otherwise(&node.attribute)?;
    let attributes = wire::fields(raw, 0..raw.len(), &[wire::NODE_ATTRIBUTE])?;
    let index = node.attribute.iter().position(|attribute| attribute.name == "else_branch")?;
    let graph = wire::fields(raw, attributes.get(index)?.content.clone(), &[wire::ATTRIBUTE_GRAPH])?;
    let nodes = wire::fields(raw, graph.first()?.content.clone(), &[wire::GRAPH_NODE])?;
    let renamed = |(name, inner): (&String, &str)| {
        let index = branch.node.iter().position(|node| node.output.iter().any(|output| output == inner))?;
        let Field { content, .. } = nodes.get(index)?;
        let mut constant = NodeProto { output: vec![name.clone()], ..NodeProto::default() }.encode_to_vec();
        constant.extend(wire::without(&raw[content.clone()], wire::NODE_OUTPUT)?);
        Some(constant)
    };
    node.output.iter().zip(branch.output.iter().map(|output| output.name.as_str())).map(renamed).collect()
}
