//! Compares exports of many architectures and forms with golden logits of PyTorch: prompts, single steps, several
//! positions on top of a cache, and rollbacks. `scripts/export_architectures.py` and `scripts/export_variants.py` make
//! the exports.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::common::{Golden, one_thread};
use cos::error::Error;
use cos::export::CacheKind::{Concatenated, Fixed, Shared};
use cos::export::GivenRows::{All, Counted, Last};
use cos::export::Rollback::{Compact, Mask, Shorten};
use cos::export::Scoring::{FirstPass, OneByOne, Parallel};
use cos::export::{CacheKind, Export, GivenRows, Rollback, Scoring};
use cos::model::{Cancel, Interrupt, Model, Pass, Report, Sequence};
use cos::onnx::{LoadOptions, OnnxModel, Provider};
use cos::rows::Filter;

use super::batching;
use super::replay::Replay;

pub fn exports() -> PathBuf {
    crate::common::root().join("tests/exports")
}

fn load(path: &Path) -> Result<OnnxModel, Error> {
    one_thread();
    OnnxModel::load(path, "model", &LoadOptions { provider: provider(), ..LoadOptions::default() })
}

/// A folder with some files of an export.
pub fn copy(form: &str, files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        std::fs::copy(exports().join(form).join(file), folder.path().join(file)).unwrap();
    }
    folder
}

/// The provider that is compared with PyTorch. `COS_TEST_PROVIDER=cuda` selects a GPU.
fn provider() -> Provider {
    match std::env::var("COS_TEST_PROVIDER").as_deref() {
        Ok("cuda") => Provider::Cuda { device_id: 0, options: Default::default() },
        _ => Provider::Cpu,
    }
}

/// The largest difference from PyTorch's float32 logits that an export may have.
fn tolerance(form: &str) -> f32 {
    match form {
        // Optimum's export does not cap attention scores, and the library warns about it.
        "gemma2/optimum-fp32" => 0.1,
        form if form.contains("bf16") => 0.3,
        // The last digit of a float16 decides how a key is rounded, and a step of few bits is large.
        form if form.contains("fp16-int4-cache") => 1.0,
        form if form.contains("fp16-fp8-cache") => 0.7,
        form if form.contains("fp16") && form.contains("int8-cache") => 0.2,
        form if form.contains("fp16") => 0.05,
        form if form.contains("level4") => 1.5,
        form if form.contains("int4") || form.contains("int8") => 0.02,
        _ => 1e-3,
    }
}

fn forms(architecture: &Path) -> Vec<PathBuf> {
    let mut forms: Vec<PathBuf> = architecture.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    forms.retain(|form| form.is_dir());
    forms.sort();
    forms
}

fn name(path: &Path) -> &str {
    path.file_name().unwrap().to_str().unwrap()
}

fn replay(label: &str, golden: &Golden, tolerance: f32, failures: &mut Vec<String>) -> Option<Export> {
    match load(&exports().join(label)) {
        Err(error) => {
            failures.push(format!("{label}: {error}"));
            Option::None
        }
        Ok(model) => {
            let worst = Replay::new(&model).all(golden);
            batching::check(label, &model, provider() == Provider::Cpu, failures);
            let Export { cache_kind, rollback, scoring, warnings, .. } = model.export();
            println!(
                "{label}: {cache_kind:?}, {rollback:?}, {scoring:?}, deviates by {:.1e}, {worst:.1e} from PyTorch",
                model.deviation()
            );
            warnings.iter().for_each(|warning| println!("    {warning}"));
            if worst.is_nan() || worst > tolerance {
                failures.push(format!("{label}: off by {worst}"));
            }
            Some(model.export().clone())
        }
    }
}

#[test]
fn architectures_agree_with_pytorch() {
    let mut failures = Vec::new();
    for architecture in forms(&exports()) {
        let architecture = name(&architecture);
        if architecture == "variants" {
            continue;
        }
        let golden = Golden::read(architecture);
        for form in forms(&exports().join(architecture)) {
            let label = format!("{architecture}/{}", name(&form));
            if provider() == Provider::Cpu && (label.contains("bf16") || label.contains("fp8")) {
                println!("{label}: skipped, because ONNX Runtime lacks its operators on the processor");
                continue;
            }
            // Exports with a rounded cache have golden logits of their own.
            let own = form.join("golden.json").is_file().then(|| Golden::read(&label));
            let export = replay(&label, own.as_ref().unwrap_or(&golden), tolerance(&label), &mut failures);
            let uncapped = export.is_some_and(|export| export.warnings.iter().any(|w| w.contains("caps the scores")));
            assert_eq!(uncapped, label == "gemma2/optimum-fp32", "{label}");
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The properties that must be recognised of each variant.
#[rustfmt::skip]
const VARIANTS: [(&str, CacheKind, Rollback, GivenRows, Scoring); 42] = [
    ("int32", Concatenated, Mask, All, Parallel),
    ("fp16-io", Concatenated, Mask, All, Parallel),
    ("bf16-io", Concatenated, Mask, All, Parallel),
    ("last-logits", Concatenated, Mask, Last, Parallel),
    ("last-logits-symbolic", Concatenated, Mask, Last, Parallel),
    ("logits-2d", Concatenated, Mask, Last, Parallel),
    ("num-logits", Concatenated, Mask, Counted, Parallel),
    // Without explicit positions, the index in the cache may count, so there must be no dead entries.
    ("cache-position", Concatenated, Compact, All, Parallel),
    ("cache-position-mask", Concatenated, Compact, All, Parallel),
    ("mask-positions", Concatenated, Compact, All, Parallel),
    ("length-positions", Concatenated, Compact, All, Parallel),
    ("no-mask", Concatenated, Compact, All, Parallel),
    // Without a configuration, there may be sliding windows.
    ("no-config", Concatenated, Compact, All, Parallel),
    ("mistral-no-config", Concatenated, Compact, All, Parallel),
    ("token-types", Concatenated, Mask, All, Parallel),
    ("renamed", Concatenated, Mask, All, Parallel),
    ("renamed-kv", Concatenated, Mask, All, Parallel),
    ("unnamed", Concatenated, Mask, All, Parallel),
    ("genai-names", Concatenated, Mask, All, Parallel),
    ("merged", Concatenated, Mask, All, Parallel),
    // Masked entries change logits within the tolerance, but compacting changes them less.
    ("dead-entries-fp16", Concatenated, Compact, All, Parallel),
    ("uneven", Concatenated, Mask, All, Parallel),
    ("seq-first", Concatenated, Mask, All, Parallel),
    ("external", Concatenated, Mask, All, Parallel),
    ("hub", Concatenated, Mask, All, Parallel),
    ("hub/onnx/model_q4.onnx", Concatenated, Mask, All, Parallel),
    ("weight-int8", Concatenated, Mask, All, Parallel),
    ("static-cache", Fixed { capacity: 64, in_place: true }, Shorten, All, Parallel),
    // The builder left out the windows. Within the length of a window, that changes nothing.
    ("mistral-windowless", Shared, Shorten, All, Parallel),
    // Several positions on top of a cache are wrong, which only a trial pass shows.
    ("noncausal", Concatenated, Mask, All, FirstPass),
    ("noncausal-rounded", Concatenated, Mask, All, FirstPass),
    // config.json tells of the windows.
    ("mistral-genai", Concatenated, Compact, All, Parallel),
    ("longrope", Shared, Shorten, All, Parallel),
    ("static-mask", Fixed { capacity: 64, in_place: true }, Shorten, All, Parallel),
    ("seqlens", Shared, Shorten, All, Parallel),
    ("rotary", Shared, Shorten, All, Parallel),
    ("attention-positions", Shared, Shorten, All, Parallel),
    ("single", Concatenated, Mask, All, OneByOne),
    ("place-table", Concatenated, Mask, All, Parallel),
    ("router", Concatenated, Mask, All, Parallel),
    ("../llama/no-cache", CacheKind::None, Shorten, All, Parallel),
    ("../llama/builder-fp32", Shared, Shorten, All, Parallel),
];

#[test]
fn variants_are_recognised_and_agree_with_pytorch() {
    let (llama, mistral) = (Golden::read("llama"), Golden::read("mistral"));
    let mut failures = Vec::new();
    for (name, cache, rollback, rows, scoring) in VARIANTS {
        let golden = if name.starts_with("mistral") { &mistral } else { &llama };
        let label = format!("variants/{name}");
        let found = replay(&label, golden, tolerance(name), &mut failures);
        let context = match name {
            "static-cache" | "static-mask" => 64,
            "longrope" => 32,
            "mistral-windowless" => 8,
            "no-config" | "mistral-no-config" => 1 << 20,
            _ => 128,
        };
        let found = found.map(|export| {
            (export.context_length, export.cache_kind, export.rollback, export.logits.rows, export.scoring)
        });
        if found != Some((context, cache, rollback, rows, scoring)) {
            failures.push(format!("{label}: {found:?}"));
        }
    }
    let tested = VARIANTS.iter().map(|(name, ..)| *name).chain(REFUSED.iter().map(|(name, ..)| *name));
    let tested: Vec<&str> = tested.chain(["dynamic-int8"]).collect();
    for form in forms(&exports().join("variants")) {
        assert!(tested.contains(&name(&form)), "{} is not tested", form.display());
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// All positions of a pass share one scale, so logits depend on the other positions.
#[test]
fn dynamic_quantisation_is_scored_one_by_one() {
    let model = load(&exports().join("variants/dynamic-int8")).unwrap();
    assert_eq!((model.export().scoring, model.export().rollback), (OneByOne, Compact));
    assert!(model.export().warnings.iter().any(|warning| warning.contains("DynamicQuantizeLinear")));
    // Logits are bit-identical for any widths of passes and any rejected drafts.
    let tokens: Vec<i32> = (2..30).collect();
    let run = |widths: &[usize], rejected: &[i32]| {
        let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        let mut rows = Vec::new();
        for &width in widths.iter().cycle() {
            let start = sequence.len();
            let end = tokens.len().min(start + width);
            if start == end {
                break;
            }
            for tokens in [rejected, &tokens[start..end]] {
                sequence.truncate(start);
                if !tokens.is_empty() {
                    model
                        .forward(&mut [Pass {
                            sequence: sequence.as_mut(),
                            tokens,
                            keep: start + 1,
                            filter: Filter::plain(1.0),
                            uniforms: None,
                        }])
                        .unwrap();
                }
            }
            rows.extend((start + 1..=end).map(|position| sequence.row(position).scores().unwrap().to_vec()));
        }
        rows
    };
    let single = run(&[1], &[]);
    assert_eq!(single.len(), tokens.len());
    assert!(run(&[5, 1, 3], &[90, 91]) == single, "logits depend on the widths of passes");
}

/// The graph alone tells the sizes of heads and the context length.
#[test]
fn builder_exports_need_no_configuration() {
    let golden = Golden::read("llama");
    for form in ["builder-fp32", "builder-int4"] {
        let folder = copy(&format!("llama/{form}"), &["model.onnx", "model.onnx.data"]);
        let model = load(folder.path()).unwrap();
        assert_eq!(model.export().warnings, [] as [&str; 0]);
        assert_eq!(model.context_length(), 128);
        assert!(Replay::new(&model).all(&golden) < 1e-3);
    }
}

fn forward(model: &OnnxModel, sequence: &mut dyn Sequence, tokens: &[i32]) -> Result<Report, Interrupt> {
    let keep = sequence.len() + 1;
    model.forward(&mut [Pass { sequence, tokens, keep, filter: Filter::plain(1.0), uniforms: None }])
}

/// A token outside the vocabulary makes a pass fail. Nothing of it may stay, even if it runs as several passes.
#[test]
fn failed_passes_leave_no_trace() {
    if provider() != Provider::Cpu {
        println!("skipped, because GPUs do not check the indices of embeddings");
        return;
    }
    let golden = Golden::read("llama");
    let (tokens, rows) = &golden.sequences[0];
    for form in
        ["llama/optimum-fp32", "llama/builder-fp32", "llama/no-cache", "llama/mobius-static", "variants/noncausal"]
    {
        let model = load(&exports().join(form)).unwrap();
        let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        let check = |sequence: &dyn Sequence, position: usize| {
            let worst =
                sequence.row(position).scores().unwrap().iter().zip(&rows[position - 1]).map(|(a, b)| (a - b).abs());
            assert!(worst.fold(0.0, f32::max) < 1e-3, "{form}, position {position}");
        };
        forward(&model, sequence.as_mut(), &tokens[..1]).unwrap();
        for (start, end) in [(1, 5), (5, 9), (9, 10)] {
            // The last token fails, and passes before it are undone.
            let bad = [&tokens[start..start + 2], &[9999]].concat();
            assert!(matches!(forward(&model, sequence.as_mut(), &bad), Err(Interrupt::Failed(_))), "{form}");
            assert_eq!(sequence.len(), start, "{form}");
            forward(&model, sequence.as_mut(), &tokens[start..end]).unwrap();
            (start + 1..=end).for_each(|position| check(sequence.as_ref(), position));
        }
        // A batch succeeds or fails as a whole.
        let mut other = model.start(&Arc::new(Cancel::default())).unwrap();
        let batch = &mut [
            Pass {
                sequence: sequence.as_mut(),
                tokens: &tokens[10..13],
                keep: 11,
                filter: Filter::plain(1.0),
                uniforms: None,
            },
            Pass { sequence: other.as_mut(), tokens: &[9999], keep: 1, filter: Filter::plain(1.0), uniforms: None },
        ];
        assert!(matches!(model.forward(batch), Err(Interrupt::Failed(_))));
        assert_eq!((sequence.len(), other.len()), (10, 0));
        forward(&model, sequence.as_mut(), &tokens[10..12]).unwrap();
        check(sequence.as_ref(), 12);
    }
}

#[test]
fn a_cancelled_sequence_runs_no_pass() {
    let model = load(&exports().join("llama/optimum-fp32")).unwrap();
    let cancel = Arc::new(Cancel::default());
    let mut sequence = model.start(&cancel).unwrap();
    cancel.request();
    assert!(matches!(forward(&model, sequence.as_mut(), &[5]), Err(Interrupt::Cancelled)));
    assert_eq!(sequence.len(), 0);
    cancel.reset();
    forward(&model, sequence.as_mut(), &[5]).unwrap();
}

/// Tables are found by their use in the graph, whatever their names, and without a configuration.
#[test]
fn tables_of_positions_limit_the_context() {
    for form in [
        "bart/optimum-fp32",
        "gpt2/onnxruntime-fp32",
        "gpt2/optimum-fp16",
        "gpt2/optimum-fp32",
        "gpt2/optimum-merged",
        "gpt_bigcode/optimum-fused",
        "gpt_neox/optimum-merged",
        "gptj/optimum-fp32",
        "opt/optimum-fp32",
        "variants/place-table",
    ] {
        let folder = copy(form, &["model.onnx"]);
        let model = load(folder.path()).unwrap();
        assert_eq!(model.context_length(), 128, "{form}");
        let mut sequence = model.start(&Arc::new(Cancel::default())).unwrap();
        forward(&model, sequence.as_mut(), &[7; 128]).unwrap();
        // A GPU reads beyond the table without an error, so only the limit protects it.
        if provider() == Provider::Cpu {
            let further = forward(&model, sequence.as_mut(), &[7]);
            assert!(matches!(further, Err(Interrupt::Failed(_))), "{form}: the table has no more rows");
        }
    }
    // Computed positions have no limit.
    let model = load(copy("llama/optimum-fp32", &["model.onnx"]).path()).unwrap();
    assert_eq!(model.context_length(), 1 << 20);
}

/// The builder's float16 exports declare wrong shapes. The fixtures must keep them, because files of users have them
/// too.
#[test]
fn wrong_declared_shapes_are_dropped() {
    for (form, expected) in [("builder-fp16", true), ("builder-fp32", false), ("optimum-fp16", false)] {
        let model = load(&exports().join("llama").join(form)).unwrap();
        let warnings = &model.export().warnings;
        let found = warnings.iter().any(|warning| warning.contains("shapes that the file declares"));
        // Only the CPU provider reuses buffers by declared shapes.
        assert_eq!(found, expected && provider() == Provider::Cpu, "{form}: {warnings:?}");
    }
    // External weights are found without declared shapes too.
    let folder = copy("llama/builder-fp16", &["model.onnx", "model.onnx.data", "genai_config.json"]);
    assert!(load(&folder.path().join("model.onnx")).is_ok());
}

/// The description lists the trials.
#[test]
fn the_rollback_that_changes_logits_least_is_taken() {
    let model = load(&exports().join("variants/dead-entries-fp16")).unwrap();
    let description = model.describe();
    let trials = description["trials"].as_array().unwrap();
    let tried =
        |index: usize| (trials[index]["rollback"].as_str().unwrap(), trials[index]["deviation"].as_f64().unwrap());
    let (mask, compact) = (tried(0), tried(1));
    assert!(mask.0 == "mask" && mask.1 > 0.05, "{trials:?}");
    assert!(compact.0 == "compact" && compact.1 < 0.01, "{trials:?}");
    assert_eq!(description["cache"]["rollback"], "compact");
    assert_eq!(description["deviation"], trials[1]["deviation"]);
    // If the first difference is rounding, nothing else is tried.
    let model = load(&exports().join("llama/optimum-fp32")).unwrap();
    assert_eq!((model.describe()["trials"].as_array().unwrap().len(), model.export().rollback), (1, Mask));
}

#[test]
fn missing_windows_limit_the_context() {
    let model = load(&exports().join("variants/mistral-windowless")).unwrap();
    assert_eq!(model.context_length(), 8);
    assert!(
        model.export().warnings[0].contains("ends at 8 tokens rather than 128: the model has sliding windows"),
        "{:?}",
        model.export().warnings
    );
    assert_eq!(load(&exports().join("mistral/builder-fp32")).unwrap().context_length(), 128);
}

#[test]
fn rescaled_positions_limit_the_context() {
    let folder = copy("llama/optimum-fp32", &["model.onnx", "config.json"]);
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    let scaled = r#""rope_scaling": {"type": "longrope", "original_max_position_embeddings": 16}"#;
    let long = config.replacen(r#""rope_scaling": null"#, scaled, 1);
    assert_ne!(long, config);
    std::fs::write(folder.path().join("config.json"), long).unwrap();
    assert_eq!(load(folder.path()).unwrap().context_length(), 16);
}

#[test]
fn absurd_sizes_are_refused() {
    let folder = copy("llama/builder-fp32", &["model.onnx", "model.onnx.data", "genai_config.json"]);
    let file = folder.path().join("genai_config.json");
    let config = std::fs::read_to_string(&file).unwrap();
    for size in [1u64 << 32, 1 << 40, 1 << 60] {
        let huge = config.replacen(r#""head_size": 16"#, &format!(r#""head_size": {size}"#), 1);
        assert_ne!(huge, config);
        std::fs::write(&file, huge).unwrap();
        let error = load(folder.path()).err().unwrap();
        assert!(error.code() == 3 && error.to_string().contains("the size of a head cannot be"), "{error}");
    }
}

#[test]
fn options_override_what_was_recognised() {
    let load = |form: &str, scoring, context_length| {
        one_thread();
        let options = LoadOptions { scoring, context_length, ..LoadOptions::default() };
        OnnxModel::load(&exports().join("llama").join(form), "model", &options)
    };
    let slow = load("builder-int4-level4", Some(OneByOne), Option::None).unwrap();
    assert_eq!((slow.export().scoring, slow.export().warnings.len()), (OneByOne, 0));
    // A short trial does not bound the deviation, and the warning says so.
    let fast = load("builder-int4-level4", Option::None, Option::None).unwrap();
    assert!(fast.export().warnings[0].contains("over the few tokens of a trial, by some tenths elsewhere"));
    assert_eq!(load("optimum-fp32", Option::None, Some(40)).unwrap().context_length(), 40);
    // A context shorter than a window, which the cache must have room for.
    assert_eq!(load("../gemma2/builder-fp32", Option::None, Some(4)).unwrap().context_length(), 4);
    // Options cannot enable what does not work.
    let error = load("builder-fp16", Some(Parallel), Option::None).err().unwrap();
    assert!(error.code() == 8 && error.to_string().contains("it fails"), "{error}");
    for (form, limit) in
        [("longrope", "32 tokens: the graph"), ("mistral-windowless", "8 tokens: the model has sliding")]
    {
        let error = load(&format!("../variants/{form}"), Option::None, Some(100)).err().unwrap();
        assert!(error.code() == 2 && error.to_string().contains(limit), "{error}");
    }
    let error = load("../variants/static-cache", Option::None, Some(65)).err().unwrap();
    assert!(
        error.code() == 2 && error.to_string().contains("cannot go beyond 64 tokens: the cache holds no more"),
        "{error}"
    );
}

/// Exports of types that the processor does not compute with need a GPU, and the error says so.
#[test]
fn exports_for_gpus_say_that_they_are() {
    if provider() == Provider::Cpu {
        for form in ["builder-bf16-paged", "builder-bf16-cuda", "builder-fp16-fp8-cache"] {
            let error = load(&exports().join("llama").join(form)).err().unwrap();
            assert!(error.code() == 8 && error.to_string().contains("an export for GPUs"), "{form}: {error}");
        }
    }
}

/// Exports that cannot be decoded with, the code of the error, and a part of its message.
const REFUSED: [(&str, i32, &str); 13] = [
    ("stale", 8, "its cache or its attention is broken"),
    ("static-int8", 8, "one scale for a whole cache of fixed length"),
    ("nan-logits", 8, "its logits are no numbers"),
    ("encoder", 8, "comes from an encoder"),
    ("conv-state", 8, "past_conv.0 carries a recurrent state"),
    ("tagger", 3, "not a language model: it gives 7 scores where its vocabulary has 96 tokens"),
    ("reranker", 3, "not a language model: it gives 1 scores"),
    ("masked-words", 8, "with the tokens behind it, as those of models for masked words do"),
    ("huge-mask", 8, "attention_mask has a fixed length of 1099511627776"),
    ("huge-cache", 3, "past_key_values.0.key has a fixed length of 1099511627776"),
    ("huge-window", 3, "a window of 1073741824 tokens"),
    ("embeds", 3, "no input input_ids"),
    ("unknown-input", 8, "nothing is known to feed its input temperature_scale with"),
];

#[test]
fn unusable_exports_are_refused() {
    for (name, code, what) in REFUSED {
        let error = load(&exports().join("variants").join(name)).err().unwrap_or_else(|| panic!("{name} was loaded"));
        assert!(error.code() == code && error.to_string().contains(what), "{name}: {error}");
    }
}

/// Whatever the logits look like.
#[test]
fn configured_classifiers_are_refused() {
    let folder = copy("llama/no-cache", &["model.onnx", "config.json"]);
    let config = std::fs::read_to_string(folder.path().join("config.json")).unwrap();
    for (architecture, is_refused) in [
        ("LlamaForSequenceClassification", true),
        ("Qwen2ForTokenClassification", true),
        ("BertForQuestionAnswering", true),
        ("LlamaForCausalLM", false),
        ("GPT2LMHeadModel", false),
    ] {
        let changed = config.replacen("LlamaForCausalLM", architecture, 1);
        std::fs::write(folder.path().join("config.json"), changed).unwrap();
        match load(folder.path()) {
            Ok(_) => assert!(!is_refused, "{architecture}"),
            Err(error) => {
                assert!(is_refused && error.code() == 3 && error.to_string().contains(architecture), "{error}")
            }
        }
    }
}

/// Of the three files that old versions of Optimum export, the merged one is loaded.
#[test]
fn a_merged_decoder_is_found_in_its_folder() {
    let folder = copy("gpt2/optimum-merged", &["model.onnx", "config.json"]);
    let merged = folder.path().join("decoder_model_merged.onnx");
    std::fs::rename(folder.path().join("model.onnx"), &merged).unwrap();
    for other in ["decoder_model.onnx", "decoder_with_past_model.onnx"] {
        std::fs::write(folder.path().join(other), "").unwrap();
    }
    assert_eq!(load(folder.path()).unwrap().export().file, merged);
}

#[test]
fn warnings_name_a_merged_decoder() {
    let folder = copy("llama/no-cache", &["model.onnx"]);
    let warning = || load(&folder.path().join("model.onnx")).unwrap().export().warnings.join("\n");
    assert!(warning().contains("export it with past"), "{}", warning());
    std::fs::write(folder.path().join("decoder_model_merged.onnx"), "").unwrap();
    assert!(warning().contains("decoder_model_merged.onnx beside it has one"), "{}", warning());
    std::fs::copy(exports().join("variants/stale/model.onnx"), folder.path().join("model.onnx")).unwrap();
    let error = load(&folder.path().join("model.onnx")).err().unwrap();
    assert!(error.to_string().contains("take decoder_model_merged.onnx, which is beside it"), "{error}");
}
