//! Finds where logits are made: the product of hidden states with the vocabulary.

use std::collections::HashMap;

use super::proto::GraphProto;

/// Operators through which logits come from the product with the vocabulary, one row at a time.
const ROW_WISE: [&str; 9] = ["Cast", "Identity", "Mul", "Div", "Add", "Sub", "Tanh", "Clip", "Where"];
/// Products with the vocabulary.
const PRODUCTS: [&str; 2] = ["MatMul", "MatMulNBits"];

/// The product with the vocabulary, found by going back from the logits.
pub fn product(graph: &GraphProto, writers: &HashMap<&str, usize>, logits: &str) -> Result<usize, String> {
    let is_weight = |name: &str| {
        graph.initializer.iter().any(|weight| weight.name == name)
            || writers.get(name).is_some_and(|&index| graph.node[index].op_type == "Constant")
    };
    let mut value = logits;
    while let Some(&index) = writers.get(value) {
        let node = &graph.node[index];
        if PRODUCTS.contains(&node.op_type.as_str()) {
            return Ok(index);
        }
        let mut computed = node.input.iter().filter(|input| !input.is_empty() && !is_weight(input));
        match (ROW_WISE.contains(&node.op_type.as_str()), computed.next(), computed.next()) {
            (true, Some(input), None) => value = input,
            _ => break,
        }
    }
    Err("the product of its logits with the vocabulary is not a MatMul".into())
}
