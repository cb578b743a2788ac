//! Which exports run many sequences in one pass, and why others do not.

use cos::model::Model;
use cos::onnx::OnnxModel;

use super::exports::exports;

/// Exports whose sequences share passes on the processor.
const PACKED: [&str; 26] = [
    "gemma2/builder-fp16-paged",
    "gemma2/builder-fp32",
    "gemma2/builder-int4",
    "gpt_oss/builder-fp16-paged",
    "gpt_oss/builder-fp32",
    "gpt_oss/builder-int4",
    "llama/builder-fp16-cuda",
    "llama/builder-fp16-paged",
    "llama/builder-fp32",
    "llama/builder-int4",
    "llama/builder-int4-level4",
    "mistral/builder-fp32",
    "mistral/builder-int4",
    "phi3/builder-fp16-paged",
    "phi3/builder-fp32",
    "phi3/builder-int4",
    "qwen2/builder-fp32",
    "qwen2/builder-int4",
    "qwen3/builder-fp16-paged",
    "qwen3/builder-fp32",
    "qwen3/builder-int4",
    "variants/attention-positions",
    "variants/longrope",
    "variants/mistral-windowless",
    "variants/rotary",
    "variants/seqlens",
];

/// Exports whose sequences run alone, and how the reason begins.
const ALONE: [(&str, &str); 9] = [
    ("llama/builder-fp16-int4-cache", "its cache is quantised"),
    ("llama/builder-fp16-int8-cache", "its cache is quantised"),
    ("llama/builder-fp16-paged-int8-cache", "its cache is quantised"),
    ("llama/builder-int4-cache", "its cache is quantised"),
    ("llama/builder-int8-cache", "its cache is quantised"),
    ("llama/mobius-static", "its cache has a fixed length"),
    ("llama/no-cache", "it has no cache"),
    ("variants/static-cache", "its cache has a fixed length"),
    ("variants/static-mask", "its cache has a fixed length"),
];

/// Exports whose sequences share passes on a GPU. Others of the processor's have attention that runs on no GPU.
const PACKED_ON_GPU: [&str; 13] = [
    "gemma2/builder-fp16-paged",
    "gpt_oss/builder-fp16-paged",
    "llama/bf16-logits-cuda",
    "llama/builder-bf16-cuda",
    "llama/builder-bf16-paged",
    "llama/builder-fp16-cuda",
    "llama/builder-fp16-fp8-cache",
    "llama/builder-fp16-int4-cache",
    "llama/builder-fp16-int8-cache",
    "llama/builder-fp16-paged",
    "llama/builder-fp16-paged-int8-cache",
    "phi3/builder-fp16-paged",
    "qwen3/builder-fp16-paged",
];

/// All other exports on the processor.
const OTHERS: &str = "its attention appends to the cache";

/// Compare what a model says of its passes with what it should say, so that no change lets an export run alone unseen.
pub fn check(label: &str, model: &OnnxModel, on_processor: bool, failures: &mut Vec<String>) {
    let label = label.strip_prefix("variants/../").unwrap_or(label);
    let description = model.describe();
    let (batching, why) = (&description["batching"], description["no_batching"].as_str());
    let expected = ALONE.iter().find(|(name, _)| *name == label).map_or(OTHERS, |(_, why)| why);
    let packed = if on_processor { &PACKED[..] } else { &PACKED_ON_GPU };
    let is_expected = match why {
        None => batching == "packed" && packed.contains(&label),
        Some(why) => batching == "alone" && !packed.contains(&label) && (why.starts_with(expected) || !on_processor),
    };
    if !is_expected {
        failures.push(format!("{label}: batching is {batching}, {why:?}"));
    }
}

#[test]
fn lists_name_exports() {
    for name in PACKED.iter().chain(&PACKED_ON_GPU).chain(ALONE.iter().map(|(name, _)| name)) {
        assert!(exports().join(name).is_dir(), "{name}");
    }
}
