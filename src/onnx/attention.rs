//! Predicts which attention kernels ONNX Runtime takes on a GPU, to avoid cuDNN's where others are as good.
//!
//! cuDNN plans each width of a pass on each size of the cache anew, which takes 60 ms and more.

use crate::export::graph::{Graph, Node};

/// The option of the CUDA provider that selects attention kernels, and the value that allows all but cuDNN's.
pub const KERNELS: &str = "sdpa_kernel";
pub const WITHOUT_CUDNN: &str = "23";

/// The numbers of query heads for each key head, and the sizes of heads, that ONNX Runtime has XQA kernels for. These
/// kernels score single tokens.
const XQA_GROUPS: [i64; 7] = [1, 2, 4, 5, 8, 16, 32];
const XQA_HEADS: [i64; 3] = [64, 128, 256];

/// Indices of inputs of `GroupQueryAttention`.
const COSINES: usize = 7;
const BIAS: usize = 10;
const SINK: usize = 11;

/// The kernels that ONNX Runtime 1.31 takes by default for `GroupQueryAttention` on a GPU of Hopper's generation or
/// newer (contrib_ops/cuda/bert/group_query_attention.cc). Other operators have caches of any length, so nothing is
/// planned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum AttentionKernels {
    /// ONNX Runtime's own.
    Own,
    /// XQA for single tokens, and cuDNN's for several.
    CudnnForSeveral,
    /// cuDNN's.
    Cudnn,
}

impl AttentionKernels {
    /// The kernels for a graph. If nodes differ, those that need cuDNN most decide.
    pub fn of(graph: &Graph) -> Self {
        let mut by_cudnn = graph.all("GroupQueryAttention").filter(|node| cudnn_supports(node));
        if by_cudnn.clone().any(|node| !xqa_supports(graph, node)) {
            AttentionKernels::Cudnn
        } else if by_cudnn.next().is_some() {
            AttentionKernels::CudnnForSeveral
        } else {
            AttentionKernels::Own
        }
    }
}

fn input(node: &Node, index: usize) -> Option<&str> {
    node.inputs.get(index).map(String::as_str).filter(|name| !name.is_empty())
}

/// cuDNN supports attention without capped scores, windows and sinks.
fn cudnn_supports(node: &Node) -> bool {
    node.float("softcap").unwrap_or(0.0) == 0.0
        && node.integer("local_window_size").unwrap_or(-1) == -1
        && node.integer("smooth_softmax").unwrap_or(0) != 1
        && input(node, SINK).is_none()
}

/// Whether a node that cuDNN supports has an XQA kernel too. The table of cosines has half as many columns as a head.
fn xqa_supports(graph: &Graph, node: &Node) -> bool {
    let heads = node.integer("num_heads").zip(node.integer("kv_num_heads").filter(|&heads| heads > 0));
    let cosines = input(node, COSINES).and_then(|table| graph.weight(table)?.last().copied());
    heads.is_some_and(|(heads, shared)| XQA_GROUPS.contains(&(heads / shared)))
        && cosines.is_some_and(|cosines| XQA_HEADS.iter().any(|size| size / 2 == cosines))
        && input(node, BIAS).is_none()
        && std::env::var("ORT_ENABLE_XQA").map_or(true, |value| value.trim() != "0")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn attention_kernels_of_exports() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        for (export, kernels, why) in [
            ("models/demo/small", AttentionKernels::CudnnForSeveral, "two query heads of 64, one key head"),
            ("models/demo/base", AttentionKernels::Cudnn, "six query heads, two key heads"),
            ("tests/exports/llama/builder-fp16-cuda", AttentionKernels::Cudnn, "heads of 16"),
            ("tests/exports/gemma2/builder-fp32", AttentionKernels::Own, "capped scores"),
            ("tests/exports/gpt_oss/builder-fp32", AttentionKernels::Own, "sinks"),
            ("tests/exports/llama/optimum-fp32", AttentionKernels::Own, "no attention operator"),
        ] {
            let graph = Graph::read(&root.join(export).join("model.onnx")).unwrap();
            assert_eq!(AttentionKernels::of(&graph), kernels, "{export}: {why}");
        }
    }
}
