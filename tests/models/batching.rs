//! Which exports run many sequences in one pass, and why others do not.

use cos::model::Model;
use cos::onnx::OnnxModel;

use super::exports::exports;

/// Exports whose sequences share passes on the processor.
const PACKED: [&str; 50] = [
    "gemma2/builder-fp16-paged",
    "gemma2/builder-fp32",
    "gemma2/builder-int4",
    "gpt2/optimum-fp16",
    "gpt2/optimum-fp32",
    "gpt_neox/optimum-fp32",
    "gpt_oss/builder-fp16-paged",
    "gpt_oss/builder-fp32",
    "gpt_oss/builder-int4",
    "gptj/optimum-fp32",
    "llama/builder-fp16-cuda",
    "llama/builder-fp16-paged",
    "llama/builder-fp32",
    "llama/builder-int4",
    "llama/builder-int4-level4",
    "llama/optimum-fp16",
    "llama/optimum-fp32",
    "mistral/builder-fp32",
    "mistral/builder-int4",
    "opt/optimum-fp16",
    "opt/optimum-fp32",
    "phi3/builder-fp16-paged",
    "phi3/builder-fp32",
    "phi3/builder-int4",
    "phi3/optimum-fp32",
    "qwen2/builder-fp32",
    "qwen2/builder-int4",
    "qwen2/optimum-fp16",
    "qwen2/optimum-fp32",
    "qwen3/builder-fp16-paged",
    "qwen3/builder-fp32",
    "qwen3/builder-int4",
    "qwen3/optimum-fp32",
    "qwen3_moe/optimum-fp32",
    "variants/attention-positions",
    "variants/external",
    "variants/genai-names",
    "variants/hub",
    "variants/hub/onnx/model_q4.onnx",
    "variants/int32",
    "variants/longrope",
    "variants/mistral-windowless",
    "variants/no-mask",
    "variants/renamed",
    "variants/renamed-kv",
    "variants/rotary",
    "variants/router",
    "variants/seqlens",
    "variants/unnamed",
    "variants/weight-int8",
];

/// Exports whose sequences run alone, and how the reason begins.
const ALONE: [(&str, &str); 27] = [
    ("bart/optimum-fp32", "the input \"past_key_values.0.key\" is used outside"),
    ("llama/builder-fp16", "it scores several positions of a text one by one"),
    ("llama/builder-fp16-int4-cache", "its cache is quantised"),
    ("llama/builder-fp16-int8-cache", "its cache is quantised"),
    ("llama/builder-fp16-paged-int8-cache", "its cache is quantised"),
    ("llama/builder-int4-cache", "its cache is quantised"),
    ("llama/builder-int8-cache", "its cache is quantised"),
    ("llama/mobius-static", "its cache has a fixed length"),
    ("llama/no-cache", "it has no cache"),
    ("phi3/builder-fp16", "it scores several positions of a text one by one"),
    ("qwen2/builder-fp16", "it scores several positions of a text one by one"),
    ("qwen3/builder-fp16", "it scores several positions of a text one by one"),
    ("variants/cache-position", "the input \"cache_position\" is used outside"),
    ("variants/cache-position-mask", "the input \"cache_position\" is used outside"),
    ("variants/last-logits", "it gives logits of its last positions only"),
    ("variants/last-logits-symbolic", "it gives logits of its last positions only"),
    ("variants/length-positions", "the input \"past_key_values.0.key\" is used outside"),
    ("variants/logits-2d", "it gives logits of its last positions only"),
    ("variants/mask-positions", "the input \"attention_mask\" is used outside"),
    ("variants/noncausal", "it scores several positions of a text one by one"),
    ("variants/noncausal-rounded", "it scores several positions of a text one by one"),
    ("variants/num-logits", "it gives logits of its last positions only"),
    ("variants/place-table", "the product of its logits with the vocabulary is not a MatMul"),
    ("variants/single", "it scores several positions of a text one by one"),
    ("variants/static-cache", "its cache has a fixed length"),
    ("variants/static-mask", "its cache has a fixed length"),
    ("variants/token-types", "the input \"token_type_ids\" is used outside"),
];

/// Exports whose sequences share passes on a GPU. Others may, if ONNX Runtime runs all of them there.
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
        None => batching == "packed" && (packed.contains(&label) || !on_processor),
        Some(why) => batching == "alone" && !packed.contains(&label) && (why.starts_with(expected) || !on_processor),
    };
    if !is_expected {
        failures.push(format!("{label}: batching is {batching}, {why:?}"));
    }
}

#[test]
fn lists_name_exports() {
    for name in PACKED.iter().chain(&PACKED_ON_GPU).chain(ALONE.iter().map(|(name, _)| name)) {
        assert!(exports().join(name).exists(), "{name}");
    }
}
