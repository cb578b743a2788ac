//! What the C interface refuses, and with which code: replays `tests/vectors/errors.txt`, and opens broken, missing and
//! misplaced files.

use std::ffi::{CStr, CString};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::ptr::{null, null_mut};

use crate::common::boundary::{code, options, outcome, result};
use crate::common::root;
use cos::ffi::*;

fn list<T: std::str::FromStr>(text: &str) -> Vec<T> {
    text.split([',', ' ']).filter(|word| !word.is_empty()).map(|word| word.parse().ok().expect("a number")).collect()
}

fn new_engine(json: &str) -> Result<*mut cos_engine, i32> {
    let (json, mut engine) = (CString::new(json).unwrap(), null_mut());
    // SAFETY: both pointers are valid.
    match code(unsafe { cos_engine_new(json.as_ptr(), &mut engine) }) {
        0 => Ok(engine),
        code => {
            assert!(engine.is_null(), "outputs are written on success only");
            Err(code)
        }
    }
}

/// Makes a session from `KEY=VALUE` pairs. Returns the error code and the session.
fn new_session(engine: *mut cos_engine, pairs: &str) -> (i32, *mut cos_session) {
    let pairs: Vec<(&str, &str)> = pairs.split_whitespace().map(|pair| pair.split_once('=').unwrap()).collect();
    let of = |key: &str| pairs.iter().find(|(name, _)| *name == key).map_or("0", |(_, value)| value);
    let array = |key: &str| if of(key) == "0" { "" } else { of(key) };
    let (lengths, stops) = (list::<i32>(array("proposal_lengths")), list::<i32>(array("stop_tokens")));
    let (weights, biases) = (list::<f32>(array("weights")), list::<f32>(array("bias_values")));
    let (biased, breakers) = (list::<i32>(array("bias_tokens")), list::<i32>(array("dry_breakers")));
    fn pointer<T>(array: &[T]) -> *const T {
        if array.is_empty() { null() } else { array.as_ptr() }
    }
    let options = cos_session_options {
        strategy: of("strategy").parse().unwrap(),
        temperature: of("temperature").parse().unwrap(),
        top_k: of("top_k").parse().unwrap(),
        top_p: of("top_p").parse().unwrap(),
        min_p: of("min_p").parse().unwrap(),
        seed: of("seed").parse().unwrap(),
        max_tokens: of("max_tokens").parse().unwrap(),
        targets: of("targets").parse().unwrap(),
        routes: of("routes").parse().unwrap(),
        priority: of("priority").parse().unwrap(),
        log_probabilities: of("log_probabilities").parse().unwrap(),
        proposal_lengths: pointer(&lengths),
        proposal_lengths_count: lengths.len(),
        weights: pointer(&weights),
        weights_count: weights.len(),
        stop_tokens: pointer(&stops),
        stop_tokens_count: stops.len(),
        repetition_penalty: of("repetition_penalty").parse().unwrap(),
        presence_penalty: of("presence_penalty").parse().unwrap(),
        frequency_penalty: of("frequency_penalty").parse().unwrap(),
        min_tokens: of("min_tokens").parse().unwrap(),
        bias_tokens: pointer(&biased),
        bias_values: pointer(&biases),
        bias_count: biased.len(),
        no_repeat_ngram: of("no_repeat_ngram").parse().unwrap(),
        top_log_probabilities: of("top_log_probabilities").parse().unwrap(),
        model_log_probabilities: of("model_log_probabilities").parse().unwrap(),
        log_probabilities_before: of("log_probabilities_before").parse().unwrap(),
        typical_p: of("typical_p").parse().unwrap(),
        xtc_probability: of("xtc_probability").parse().unwrap(),
        xtc_threshold: of("xtc_threshold").parse().unwrap(),
        dry_multiplier: of("dry_multiplier").parse().unwrap(),
        dry_base: of("dry_base").parse().unwrap(),
        dry_allowed_length: of("dry_allowed_length").parse().unwrap(),
        dry_breakers: pointer(&breakers),
        dry_breakers_count: breakers.len(),
        ..options()
    };
    let mut session = null_mut();
    // SAFETY: the pointers are valid, and the arrays outlive the call.
    (code(unsafe { cos_session_new(engine, &options, &mut session) }), session)
}

#[test]
fn errors_have_their_codes() {
    let text = std::fs::read_to_string(root().join("tests/vectors/errors.txt")).unwrap();
    let mut lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    assert_eq!(lines.next(), Some("cos-errors 1"));
    let (mut engine, mut records) = (null_mut(), 0);
    for line in lines {
        let (record, rest) = line.split_once(' ').unwrap_or((line, ""));
        let (expected, rest) = match record {
            "engine" | "vocabulary" | "end" => (0, rest),
            _ => {
                let (code, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                (code.parse::<i32>().unwrap(), rest)
            }
        };
        let session = || new_session(engine, "").1;
        // SAFETY: the engine and the sessions come from the library and are not freed before.
        let found = unsafe {
            match record {
                "engine" => {
                    engine = new_engine(rest).unwrap();
                    continue;
                }
                "vocabulary" => {
                    assert_eq!(cos_engine_vocab_size(engine).to_string(), rest);
                    continue;
                }
                "end" => break,
                "refuse" => new_engine(rest).err().unwrap_or(0),
                "options" => {
                    let (code, session) = new_session(engine, rest);
                    cos_free(session);
                    code
                }
                "prompt" => {
                    let (session, tokens) = (session(), list::<i32>(rest));
                    let code = code(cos_prompt(session, tokens.as_ptr(), tokens.len()));
                    cos_free(session);
                    code
                }
                "step" => {
                    let session = session();
                    let code = code(cos_step(session, &mut result()));
                    cos_free(session);
                    code
                }
                "weights" => {
                    let (session, weights) = (session(), list::<f32>(rest));
                    let code = code(cos_session_set_weights(session, weights.as_ptr(), weights.len()));
                    cos_free(session);
                    code
                }
                other => panic!("a record that this does not know: {other}"),
            }
        };
        assert_eq!(found, expected, "{line}");
        records += 1;
    }
    // SAFETY: the engine is not used any more.
    unsafe { cos_engine_free(engine) };
    println!("errors: {records} records");
    assert_eq!(records, 82);
}

/// A copy of an export that a test may damage.
fn copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in root().join("tests/exports/llama/builder-fp32").read_dir().unwrap() {
        let file = entry.unwrap().path();
        std::fs::copy(&file, folder.path().join(file.file_name().unwrap())).unwrap();
    }
    folder
}

fn config_of(model: &Path) -> String {
    serde_json::json!({ "models": [{ "path": model }], "combine": { "kind": "target", "model": 0 } }).to_string()
}

/// Opens a folder. Returns the description of the engine, or the error.
fn describe(model: &Path) -> Result<serde_json::Value, (i32, String)> {
    let (json, mut engine, mut text) = (CString::new(config_of(model)).unwrap(), null_mut(), null());
    // SAFETY: all pointers are valid, and the description is read before the engine is freed.
    unsafe {
        let (code, message) = outcome(cos_engine_new(json.as_ptr(), &mut engine));
        if code != 0 {
            return Err((code, message));
        }
        assert_eq!(self::code(cos_engine_describe(engine, &mut text)), 0);
        let description = serde_json::from_slice(CStr::from_ptr(text).to_bytes()).unwrap();
        cos_engine_free(engine);
        Ok(description)
    }
}

fn refused(model: &Path, says: &[&str]) {
    let (code, message) = describe(model).unwrap_err();
    assert!(code == 3 && says.iter().all(|says| message.contains(says)), "{code} {message:?} does not say {says:?}");
}

const POINTER: &[u8] = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 1076382\n";
const ANSWER: &[u8] = b"Not Found\n";
const PAGE: &[u8] = b"<!DOCTYPE html>\n<html><body>Not found</body></html>\n";

#[test]
fn wrong_contents_of_files_are_named() {
    let folder = copy();
    for name in ["model.onnx", "model.onnx.data", "genai_config.json", "config.json", "tokenizer.json"] {
        let file = folder.path().join(name);
        let kept = std::fs::read(&file).ok();
        for (content, says) in [(POINTER, "git lfs pull"), (PAGE, "HTML"), (ANSWER, "Not Found"), (b"", "is empty")] {
            std::fs::write(&file, content).unwrap();
            refused(folder.path(), &[&format!("/{name}"), says]);
        }
        if let Some(kept) = &kept {
            std::fs::write(&file, &kept[..kept.len() / 2]).unwrap();
            let says = match name {
                "model.onnx" => "corrupt or incomplete",
                _ => "is cut off",
            };
            refused(folder.path(), &[&format!("/{name}"), says]);
        }
        kept.map_or_else(|| std::fs::remove_file(&file), |kept| std::fs::write(&file, kept)).unwrap();
    }
    for name in ["genai_config.json", "tokenizer.json"] {
        let file = folder.path().join(name);
        let marked = [b"\xef\xbb\xbf", std::fs::read(&file).unwrap().as_slice()].concat();
        std::fs::write(&file, marked).unwrap();
    }
    std::fs::write(folder.path().join("config.json"), r#"{"rope_scaling": {"factor": Infinity}, "x": NaN}"#).unwrap();
    assert!(describe(folder.path()).is_ok(), "byte order marks, and numbers as Python writes them");
}

#[test]
fn weights_are_found_or_the_error_says_why() {
    let (real, linked) = (copy(), tempfile::tempdir().unwrap());
    let weights = real.path().join("model.onnx.data");
    for name in ["genai_config.json", "tokenizer.json", "model.onnx", "model.onnx.data"] {
        symlink(real.path().join(name), linked.path().join(name)).unwrap();
    }
    assert!(describe(linked.path()).is_ok(), "all are links into one folder, as in a cache of the hub");

    let graph = linked.path().join("model.onnx");
    std::fs::remove_file(&graph).unwrap();
    std::fs::copy(real.path().join("model.onnx"), &graph).unwrap();
    let target = weights.canonicalize().unwrap();
    refused(linked.path(), &["/model.onnx.data are a link to", target.to_str().unwrap(), "copy the weights"]);
    std::fs::remove_file(&weights).unwrap();
    refused(linked.path(), &["/model.onnx.data", "is a link to", "which does not exist"]);
    refused(real.path(), &["/model.onnx.data is missing", "copy it"]);
}

#[test]
fn configurations_are_read_from_regular_files_only() {
    let folder = tempfile::tempdir().unwrap();
    let json = config_of(&root().join("tests/fixtures/tiny"));
    let open = |path: PathBuf| {
        let (path, mut engine) = (CString::new(path.to_str().unwrap()).unwrap(), null_mut());
        // SAFETY: the pointers are valid; an engine is freed once.
        unsafe {
            let found = outcome(cos_engine_open(path.as_ptr(), &mut engine));
            cos_engine_free(engine);
            found
        }
    };
    let write = |content: &[u8]| {
        let file = folder.path().join("engine.json");
        std::fs::write(&file, content).unwrap();
        file
    };
    let marked = format!("\u{feff}{json}");
    assert_eq!(open(write(marked.as_bytes())).0, 0);
    let engine = new_engine(&marked).unwrap();
    // SAFETY: it is freed once.
    unsafe { cos_engine_free(engine) };
    let wide: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let pipe = CString::new(folder.path().join("pipe").to_str().unwrap()).unwrap();
    // SAFETY: the path is a C string.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    for (path, says) in
        [(folder.path().join("pipe"), "a named pipe"), ("/dev/zero".into(), "a device"), (write(&wide), "UTF-16")]
    {
        let (code, message) = open(path);
        assert!(code == 2 && message.contains(says), "{code} {message}");
    }
    for (content, says) in
        [(POINTER, "git lfs pull"), (PAGE, "HTML"), (b"", "is empty"), (&json.as_bytes()[..9], "EOF")]
    {
        let (code, message) = open(write(content));
        assert!(code == 2 && message.contains("/engine.json") && message.contains(says), "{code} {message}");
    }
}

#[test]
fn stop_tokens_are_those_of_all_files() {
    let folder = copy();
    let write = |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
    let found = || {
        let description = describe(folder.path()).unwrap();
        let warned = description["warnings"].to_string().contains("stop token");
        assert_eq!(description["stop_tokens"], description["models"][0]["stop_tokens"]);
        (description["stop_tokens"].to_string(), warned)
    };
    write("config.json", r#"{"text_config": {"eos_token_id": 5}}"#);
    write("generation_config.json", r#"{"eos_token_id": [9, 0]}"#);
    let genai = std::fs::read_to_string(folder.path().join("genai_config.json")).unwrap();
    let mut genai: serde_json::Value = serde_json::from_str(&genai).unwrap();
    genai["model"]["eos_token_id"] = serde_json::json!([7, 0]);
    write("genai_config.json", &genai.to_string());
    assert_eq!(found(), ("[0,5,7,9]".into(), false));
    genai["model"]["eos_token_id"] = serde_json::Value::Null;
    write("genai_config.json", &genai.to_string());
    write("config.json", "{}");
    write("generation_config.json", "{}");
    assert_eq!(found(), ("[]".into(), true));
    write("generation_config.json", r#"{"eos_token_id": "</s>"}"#);
    assert_eq!(found(), ("[]".into(), true));
    let warnings = describe(folder.path()).unwrap().to_string();
    assert!(warnings.contains(r#"generation_config.json has the eos_token_id \"</s>\", which is not used"#));
}

/// At a temperature near 0, a mixture is one of several point masses, not one point mass. `greedy_below` treats it as
/// 0.
#[test]
fn greedy_below_makes_small_temperatures_greedy() {
    let models = ["llama", "qwen2"].map(|name| root().join("tests/exports").join(name).join("builder-fp32"));
    let engine = |more: &str| {
        let models =
            serde_json::json!(models.iter().map(|path| serde_json::json!({ "path": path })).collect::<Vec<_>>());
        new_engine(&format!(r#"{{"models":{models},"combine":{{"kind":"weighted","weights":[0.5,0.5]}}{more}}}"#))
            .unwrap()
    };
    let run = |engine, temperature: f32| {
        let options = format!("temperature={temperature} seed=3 max_tokens=30 strategy=1");
        let (code, session) = new_session(engine, &options);
        assert_eq!(code, 0);
        let mut tokens = Vec::new();
        // SAFETY: session and result are valid, and tokens are copied before the next call.
        unsafe {
            assert_eq!(self::code(cos_prompt(session, [1, 2, 3].as_ptr(), 3)), 0);
            loop {
                let mut step = result();
                assert_eq!(self::code(cos_step(session, &mut step)), 0);
                tokens.extend_from_slice(std::slice::from_raw_parts(step.tokens, step.tokens_count));
                if step.finish != COS_FINISH_NONE {
                    break;
                }
            }
            cos_free(session);
        }
        tokens
    };
    let (plain, greedy) = (engine(""), engine(r#","greedy_below":0.01"#));
    let expected = run(plain, 0.0);
    for temperature in [1e-45, 1e-38, 1e-6, 0.005] {
        assert_ne!(run(plain, temperature), expected, "temperature {temperature}");
        assert_eq!(run(greedy, temperature), expected, "temperature {temperature}");
    }
    assert_eq!(run(greedy, 0.01), run(plain, 0.01), "not below it");
    // SAFETY: they are freed once.
    unsafe {
        cos_engine_free(plain);
        cos_engine_free(greedy);
    }
    let config = config_of(&models[0]);
    for wrong in ["-0.5", "1e39", "\"0.01\""] {
        assert_eq!(new_engine(&config.replacen('{', &format!(r#"{{"greedy_below":{wrong},"#), 1)), Err(2), "{wrong}");
    }
}
