//! Engines whose models are exports of different forms, or have vocabularies of different lengths.

use std::sync::Arc;

use cos::config::Config;
use cos::decode::policy::Strategy;
use cos::engine::Engine;
use cos::engine::session::{Options, Session};
use cos::error::Error;
use cos::rows::Sampler;

use super::exports::{copy, exports};
use crate::common::{decode, one_thread};

fn engine(models: &[&str], combine: &str) -> Result<Arc<Engine>, Error> {
    one_thread();
    let paths: Vec<String> = models
        .iter()
        .enumerate()
        .map(|(index, form)| format!(r#"{{"path": "{}", "name": "{index}"}}"#, exports().join(form).display()))
        .collect();
    let config = format!(r#"{{"models": [{}], "combine": {combine}}}"#, paths.join(", "));
    Ok(Arc::new(Engine::load(&Config::parse(&config)?)?))
}

const PROMPT: [i32; 5] = [5, 9, 33, 20, 61];

/// Dead entries must not push a pass beyond a table that ends with the context.
#[test]
fn every_strategy_reaches_the_end_of_the_context() {
    for form in [
        "variants/place-table",
        "llama/builder-fp32",
        "variants/static-cache",
        "variants/no-mask",
        "bart/optimum-fp32",
        "gptj/optimum-fp32",
        "gpt2/optimum-merged",
    ] {
        let engine = engine(&[form, "qwen2/optimum-fp32"], r#"{"kind": "weighted", "weights": [0.5, 0.5]}"#).unwrap();
        let options = |strategy, temperature| Options {
            strategy,
            sampler: Sampler::new(temperature, 0, 0.0, 0.0).unwrap(),
            proposal_lengths: Some(vec![4, 3]),
            stop_tokens: Some(Vec::new()),
            ..Options::default()
        };
        let whole = decode(&engine, &PROMPT, &options(Strategy::Standard, 0.0));
        assert_eq!(whole.len(), engine.models().map(|model| model.context_length()).min().unwrap() - PROMPT.len());
        for strategy in [Strategy::Speculative, Strategy::Cos] {
            assert_eq!(decode(&engine, &PROMPT, &options(strategy, 0.0)), whole, "{form}, {strategy:?}");
            // sampled drafts are rejected more often
            assert_eq!(decode(&engine, &PROMPT, &options(strategy, 1.5)).len(), whole.len(), "{form}, {strategy:?}");
        }
    }
}

/// Members of different kinds, precisions and architectures, in one engine: every strategy gives the same tokens.
#[test]
fn mixed_engines_decode_alike() {
    for (models, combine) in [
        (&["llama/optimum-fp32", "llama/builder-fp32"][..], r#"{"kind": "weighted", "weights": [0.5, 0.5]}"#),
        (
            &["gpt2/optimum-fp32", "mistral/optimum-fp32", "llama/no-cache"],
            r#"{"kind": "weighted", "weights": [0.4, 0.3, 0.3]}"#,
        ),
        (
            &["qwen3/builder-fp32", "variants/fp16-io", "variants/last-logits"],
            r#"{"kind": "logits", "weights": [1, 0.5, -0.25]}"#,
        ),
        (&["gemma3/optimum-fp32", "opt/optimum-fp32", "variants/bf16-io"], r#"{"kind": "contrastive", "mu": 0.2}"#),
        (
            &["phi3/builder-int4", "variants/static-cache", "variants/noncausal"],
            r#"{"kind": "weighted", "weights": [0.5, 0.25, 0.25]}"#,
        ),
        (&["qwen3_moe/optimum-fp32", "gpt_neox/optimum-fp32"], r#"{"kind": "target", "model": 0}"#),
        (
            &["gpt_bigcode/optimum-fused", "gpt2/optimum-merged", "gpt2/onnxruntime-fp32", "llama/builder-int8-cache"],
            r#"{"kind": "weighted", "weights": [0.25, 0.25, 0.25, 0.25]}"#,
        ),
    ] {
        let engine = engine(models, combine).unwrap();
        assert_eq!(engine.vocab_size(), 96);
        let options = |strategy, lengths: Option<i32>| Options {
            strategy,
            proposal_lengths: lengths.map(|length| vec![length; models.len()]),
            max_tokens: 40,
            stop_tokens: Some(Vec::new()),
            ..Options::default()
        };
        let expected = decode(&engine, &PROMPT, &options(Strategy::Standard, Option::None));
        assert_eq!(expected.len(), 40);
        for (strategy, lengths) in [
            (Strategy::Speculative, Some(3)),
            (Strategy::Cos, Some(1)),
            (Strategy::Cos, Some(2)),
            (Strategy::Auto, Option::None),
        ] {
            assert_eq!(
                decode(&engine, &PROMPT, &options(strategy, lengths)),
                expected,
                "{models:?}, {strategy:?} {lengths:?}"
            );
        }
    }
}

#[test]
fn padding_is_masked_and_the_smaller_vocabulary_decides() {
    let target = r#"{"kind": "target", "model": 0}"#;
    // 112 columns for 96 tokens, alone and beside another
    for models in [&["qwen3/optimum-fp32"][..], &["qwen3/optimum-fp32", "llama/optimum-fp32"]] {
        let engine = engine(models, target).unwrap();
        assert_eq!(engine.vocab_size(), 96);
        let mut session = Session::new(&engine, &Options::default()).unwrap();
        assert_eq!(session.prompt(&[96]).unwrap_err().code(), 1);
        assert_eq!(engine.describe()["models"][0]["logits"]["columns"], 112);
        assert_eq!(engine.describe()["models"][0]["vocab_size"], 96);
    }
    // 112 columns and no tokenizer to tell what they are; nor can the other one's
    let folder = copy("qwen3/optimum-fp32", &["model.onnx", "config.json"]);
    let folder = folder.path();
    let bare = folder.to_str().unwrap();
    assert_eq!(engine(&[bare], target).unwrap().vocab_size(), 112);
    let tokenizer = std::fs::read_to_string(exports().join("qwen3/optimum-fp32/tokenizer.json")).unwrap();
    let error = engine(&[bare, "llama/optimum-fp32"], target).err().unwrap();
    assert!(error.code() == 3 && error.to_string().contains("the vocabularies differ: 0 has 112 tokens"), "{error}");
    // with it, what is behind its tokens is padding, and so is a stop token there
    std::fs::write(folder.join("tokenizer.json"), &tokenizer).unwrap();
    std::fs::write(folder.join("generation_config.json"), r#"{"eos_token_id": [0, 111]}"#).unwrap();
    let joint = engine(&[bare, "llama/optimum-fp32"], target).unwrap();
    assert_eq!((joint.vocab_size(), joint.stop_tokens()), (96, &[0][..]));
    assert!(joint.describe()["warnings"].to_string().contains("stop token 111"));
    // tokenizers are compared by content, and the first difference is named
    let longer = tokenizer.replacen("\"w95\": 95", "\"w95\": 95, \"more\": 96", 1);
    std::fs::write(folder.join("tokenizer.json"), longer).unwrap();
    assert_eq!(engine(&[bare], target).unwrap().vocab_size(), 97);
    let error = engine(&[bare, "llama/optimum-fp32"], target).err().unwrap();
    assert!(error.to_string().contains("token 96 is \"more\" to 0 but missing to 1"), "{error}");
    std::fs::write(folder.join("tokenizer.json"), tokenizer.replacen("\"w50\"", "\"other\"", 1)).unwrap();
    let error = engine(&[bare, "llama/optimum-fp32"], target).err().unwrap();
    assert!(error.to_string().contains("token 50 is \"other\" to 0 but \"w50\" to 1"), "{error}");
}
