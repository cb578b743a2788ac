//! Recognises an exported language model: which inputs and outputs it has, and what they mean.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use ort::value::{Outlet, TensorElementType, ValueType};
use serde_json::Value;

use crate::error::{Error, Result};

/// What was recognised of an export. So far these are exports of the onnxruntime-genai builder: a
/// `GroupQueryAttention` cache that is shared between past and present and updated in place.
#[derive(Debug)]
pub struct Export {
    /// The `.onnx` file.
    pub file: PathBuf,
    /// Columns of the logits.
    pub vocab_size: usize,
    /// Most tokens of a sequence.
    pub context_length: usize,
    /// End-of-sequence tokens.
    pub stop_tokens: Vec<i32>,
    /// Bytes of the model's files, a measure of what a pass costs.
    pub bytes: u64,
    /// The cache, one entry for each key and each value of a layer.
    pub cache: Vec<CacheTensor>,
    /// Whether positions must be given.
    pub takes_positions: bool,
}

/// One tensor of the cache: `[1, heads, capacity, head_size]`.
#[derive(Debug)]
pub struct CacheTensor {
    /// The input's name.
    pub past: CString,
    /// The output's name.
    pub present: CString,
    /// Heads of keys and values.
    pub heads: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Their type.
    pub element: TensorElementType,
}

/// The `.onnx` file that a path names: itself, or the one in a folder.
pub fn model_file(path: &Path) -> Result<PathBuf> {
    if path.is_file() {
        return Ok(path.into());
    }
    if !path.is_dir() {
        return Err(Error::Model(format!(
            "{} does not exist; path names an .onnx file or a folder with one",
            path.display()
        )));
    }
    let named = json(&path.join("genai_config.json"))?
        .and_then(|config| config.pointer("/model/decoder/filename")?.as_str().map(|name| path.join(name)));
    if let Some(file) = named.filter(|file| file.is_file()) {
        return Ok(file);
    }
    let entries = path.read_dir().map_err(|error| Error::Model(format!("cannot read {}: {error}", path.display())))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "onnx"))
        .collect();
    files.sort();
    let preferred = files.iter().position(|file| file.ends_with("model.onnx"));
    match (files.len(), preferred) {
        (0, _) => Err(Error::Model(format!("{} holds no .onnx file", path.display()))),
        (_, Some(index)) => Ok(files.swap_remove(index)),
        (1, None) => Ok(files.swap_remove(0)),
        _ => Err(Error::Model(format!(
            "{} holds several .onnx files and no model.onnx; let path name one of them",
            path.display()
        ))),
    }
}

/// Recognise an export from its inputs and outputs and the files beside it.
pub fn read_export(file: &Path, inputs: &[Outlet], outputs: &[Outlet]) -> Result<Export> {
    let refuse = |what: String| {
        let names = |outlets: &[Outlet]| {
            let mut names: Vec<&str> = outlets.iter().map(Outlet::name).take(6).collect();
            if outlets.len() > names.len() {
                names.push("…");
            }
            names.join(", ")
        };
        Error::Model(format!(
            "{}: {what}; its inputs are {}, its outputs {}",
            file.display(),
            names(inputs),
            names(outputs)
        ))
    };
    let folder = file.parent().unwrap_or(Path::new(""));
    let genai = json(&folder.join("genai_config.json"))?;
    let hub = json(&folder.join("config.json"))?;
    let lookup = |genai_pointer: &str, hub_key: &str| {
        let genai = genai.as_ref().and_then(|config| config.pointer(genai_pointer));
        genai.or(hub.as_ref().and_then(|config| config.get(hub_key))).cloned()
    };
    let size = |value: Option<Value>| value?.as_u64().filter(|&size| size > 0).map(|size| size as usize);

    let by_name = |outlets: &[Outlet]| -> BTreeMap<String, ValueType> {
        outlets.iter().map(|outlet| (outlet.name().to_owned(), outlet.dtype().clone())).collect()
    };
    let (mut takes, mut gives) = (by_name(inputs), by_name(outputs));
    if takes.remove("input_ids").is_none() {
        return Err(refuse("not a language model, it has no input input_ids".into()));
    }
    let logits =
        gives.remove("logits").ok_or_else(|| refuse("not a language model, it has no output logits".into()))?;
    let (shape, element) = tensor(&logits).ok_or_else(|| refuse("its logits are no tensor".into()))?;
    if shape.len() != 3 {
        return Err(refuse(format!("its logits have the shape {shape:?}, not [batch, positions, vocabulary]")));
    }
    if element != TensorElementType::Float32 {
        return Err(Error::Unsupported(format!(
            "{}: its logits are {element}; this version reads float32, so export with -p fp32 or int4 for the CPU",
            file.display()
        )));
    }
    let vocab_size = match shape[2] {
        columns if columns > 0 => columns as usize,
        _ => size(lookup("/model/vocab_size", "vocab_size")).ok_or_else(|| {
            refuse("the width of its logits is not known, neither from the graph nor from a config.json".into())
        })?,
    };

    let mut cache = Vec::new();
    for layer in 0.. {
        let before = cache.len();
        for part in ["key", "value"] {
            let (past, present) = (format!("past_key_values.{layer}.{part}"), format!("present.{layer}.{part}"));
            let Some(input) = takes.remove(&past) else { continue };
            if gives.remove(&present).is_none() {
                return Err(refuse(format!("it takes {past} but gives no {present}")));
            }
            let (shape, element) = tensor(&input)
                .filter(|(shape, _)| shape.len() == 4)
                .ok_or_else(|| refuse(format!("{past} has not four dimensions")))?;
            let dimension = |axis: usize, genai_pointer: &str, hub_key: &str| {
                match shape[axis] {
                known if known > 0 => Ok(known as usize),
                _ => size(lookup(genai_pointer, hub_key)).ok_or_else(|| {
                    refuse(format!("axis {axis} of {past} is not known; put the genai_config.json or config.json of the export beside it"))
                }),
            }
            };
            cache.push(CacheTensor {
                heads: dimension(1, "/model/decoder/num_key_value_heads", "num_key_value_heads")?,
                head_size: dimension(3, "/model/decoder/head_size", "head_dim")?,
                past: CString::new(past).expect("no NUL in the format"),
                present: CString::new(present).expect("no NUL in the format"),
                element,
            });
        }
        if cache.len() == before {
            break;
        }
    }
    let shared = genai.as_ref().and_then(|config| config.pointer("/search/past_present_share_buffer")?.as_bool());
    if cache.is_empty() || shared != Some(true) || takes.remove("attention_mask").is_none() {
        return Err(Error::Unsupported(format!(
            "{}: this version runs exports of the onnxruntime-genai builder, which share the cache between past and \
             present (past_present_share_buffer in genai_config.json); export the model with \
             `python -m onnxruntime_genai.models.builder`",
            file.display()
        )));
    }
    let takes_positions = takes.remove("position_ids").is_some();
    if let Some(unknown) = takes.keys().next() {
        return Err(refuse(format!("nothing is known to feed its input {unknown} with")));
    }
    let context_length = size(lookup("/model/context_length", "max_position_embeddings")).ok_or_else(|| {
        refuse("its context length is not known; put its genai_config.json or config.json beside it".into())
    })?;
    Ok(Export {
        file: file.into(),
        vocab_size,
        context_length,
        stop_tokens: stop_tokens(lookup("/model/eos_token_id", "eos_token_id")),
        bytes: bytes_beside(file),
        cache,
        takes_positions,
    })
}

fn tensor(value: &ValueType) -> Option<(Vec<i64>, TensorElementType)> {
    Some((value.tensor_shape()?.to_vec(), value.tensor_type()?))
}

/// A token or a list of tokens.
fn stop_tokens(value: Option<Value>) -> Vec<i32> {
    let one = |value: &Value| value.as_i64().and_then(|token| i32::try_from(token).ok());
    match value {
        Some(Value::Array(tokens)) => tokens.iter().filter_map(one).collect(),
        Some(token) => one(&token).into_iter().collect(),
        None => Vec::new(),
    }
}

/// Bytes of a model: the file and its external data, which is named after it.
fn bytes_beside(file: &Path) -> u64 {
    let (Some(folder), Some(name)) = (file.parent(), file.file_name().and_then(|name| name.to_str())) else { return 0 };
    let entries = folder.read_dir().into_iter().flatten().filter_map(|entry| entry.ok());
    entries
        .filter(|entry| entry.file_name().to_str().is_some_and(|entry| entry.starts_with(name)))
        .filter_map(|entry| Some(entry.metadata().ok()?.len()))
        .sum()
}

/// A JSON file, if it is there.
fn json(path: &Path) -> Result<Option<Value>> {
    match std::fs::read_to_string(path) {
        Ok(text) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| Error::Model(format!("{} is not JSON: {error}", path.display()))),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::Model(format!("cannot read {}: {error}", path.display()))),
    }
}
