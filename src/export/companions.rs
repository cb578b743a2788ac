//! The files that come with an exported model: external weights, configurations, and a tokenizer.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::graph::Graph;
use crate::error::{Error, Result};
use crate::files;

/// The `.onnx` file that a path names: the path itself, or the file in that folder.
pub fn model_file(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return if files::is_there(path) {
            Ok(path.into())
        } else {
            Err(Error::Model(format!(
                "{} does not exist; let path name an .onnx file or a folder with one",
                path.display()
            )))
        };
    }
    if let Some(file) = configured_file(path)?.filter(|file| files::is_there(file)) {
        return Ok(file);
    }
    let entries = path.read_dir().map_err(|error| Error::Model(format!("cannot read {}: {error}", path.display())))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|file| file.extension().is_some_and(|extension| extension == "onnx"))
        .collect();
    files.sort();
    let named = |name: &str| files.iter().position(|file| file.ends_with(name));
    // Old versions of Optimum export a decoder for the first pass, one for later passes, and one that merges both.
    let preferred = named("model.onnx").or_else(|| named("decoder_model_merged.onnx"));
    match (files.len(), preferred) {
        // Repositories of the Hugging Face hub have configurations here, and exports in a subfolder.
        (0, _) if path.join("onnx").is_dir() => model_file(&path.join("onnx")),
        (0, _) => Err(Error::Model(no_export(path))),
        (_, Some(index)) => Ok(files.swap_remove(index)),
        (1, None) => Ok(files.swap_remove(0)),
        _ => {
            let names: Vec<_> = files.iter().filter_map(|file| file.file_name()?.to_str()).collect();
            Err(Error::Model(format!(
                "{} holds {} and no model.onnx; let path name one of them",
                path.display(),
                names.join(", ")
            )))
        }
    }
}

/// The error for a folder without an export. If the folder holds weights to export, it names the command.
fn no_export(path: &Path) -> String {
    let weights =
        |name: &str| name.ends_with(".safetensors") || name.starts_with("pytorch_model") && name.ends_with(".bin");
    let mut entries = path.read_dir().into_iter().flatten().flatten();
    let path = path.canonicalize().unwrap_or(path.into());
    let shown = path.display();
    if path.join("config.json").is_file() && entries.any(|entry| entry.file_name().to_str().is_some_and(weights)) {
        format!(
            "{shown} holds weights in Hugging Face's format, but no .onnx file; export them in CoS's source folder: \
             `make export MODEL='{shown}' OUT='{shown}-onnx'` (DEVICE=cuda for a GPU), and let path name '{shown}-onnx'"
        )
    } else {
        format!("{shown} holds no .onnx file")
    }
}

/// The file that `genai_config.json` names. Its name may not lead out of the folder. The file may be a link to
/// anywhere, as in the cache of the hub.
fn configured_file(folder: &Path) -> Result<Option<PathBuf>> {
    let path = folder.join("genai_config.json");
    let config = json(&path)?;
    let Some(name) = config.as_ref().and_then(|config| config.pointer("/model/decoder/filename")?.as_str()) else {
        return Ok(None);
    };
    if leads_out(name) {
        return Err(Error::Model(format!(
            "{}: its filename {name:?} is outside the model's folder; let it name a file in that folder",
            path.display()
        )));
    }
    Ok(Some(folder.join(name)))
}

/// Whether a relative path may lead out of its folder.
fn leads_out(name: &str) -> bool {
    !Path::new(name).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
}

/// Check that the external files of weights exist and are long enough. The error names the file.
pub fn check_weights(file: &Path, graph: &Graph) -> Result<()> {
    let folder = file.parent().unwrap_or(Path::new(""));
    let misplaced = graph.misplaced.iter().map(|why| Err(format!("{why}; export the model again")));
    let files = graph.external_files.iter().map(|(name, &needed)| check_external(folder, name, needed));
    misplaced
        .chain(files)
        .collect::<Result<(), _>>()
        .map_err(|why| Error::Model(format!("cannot load {}: its weights: {why}", file.display())))
}

fn check_external(folder: &Path, name: &str, needed: u64) -> Result<(), String> {
    if leads_out(name) {
        return Err(format!("{name:?} is outside the model's folder; export the model again"));
    }
    let path = folder.join(name);
    if !files::is_there(&path) {
        return Err(format!("{} is missing; copy it beside the model, or export the model again", path.display()));
    }
    let weights = files::open(&path)?;
    let bytes = weights.metadata().map_err(|error| format!("cannot read {}: {error}", path.display()))?.len();
    if bytes < needed {
        return Err(format!(
            "{} is cut off at {bytes} bytes, of which {needed} are needed; copy or download it again",
            path.display()
        ));
    }
    Ok(())
}

/// Improve an error of ONNX Runtime if the cause is memory or a link.
pub fn explain(file: &Path, graph: &Graph, error: Error) -> Error {
    let message = error.to_string();
    if ["bad_alloc", "out of memory", "Failed to allocate memory"].iter().any(|words| message.contains(words)) {
        return out_of_memory(file, &message);
    }
    // ONNX Runtime follows links only into the model's folder, or into the folder of the file that the model links to.
    let link = message.contains("External data path").then(|| linked_elsewhere(file, graph)).flatten();
    link.map_or(error, |(link, target)| {
        Error::Model(format!(
            "cannot load {}: its weights {} are a link to {}, and ONNX Runtime follows no links out of the model's \
             folder; copy the weights beside the model, or let path name the model in the folder of the weights",
            file.display(),
            link.display(),
            target.display()
        ))
    })
}

/// The error for too little memory. It drops ONNX Runtime's advice about corrupt files.
fn out_of_memory(file: &Path, message: &str) -> Error {
    let why = message.split("; if the file is corrupt").next().unwrap_or(message);
    let why = why.rsplit(": ").next().unwrap_or(why);
    Error::Runtime(format!(
        "not enough memory to load {} ({why}); free memory, raise the limit of this process, or use a smaller model",
        file.display()
    ))
}

/// A link to weights outside the folders that ONNX Runtime allows, and its target.
fn linked_elsewhere(file: &Path, graph: &Graph) -> Option<(PathBuf, PathBuf)> {
    let folder = file.parent()?;
    let allowed = [folder.canonicalize().ok()?, file.canonicalize().ok()?.parent()?.to_owned()];
    let mut links = graph.external_files.keys().map(|name| folder.join(name));
    links.find_map(|link| {
        let target = link.canonicalize().ok()?;
        let inside = allowed.iter().any(|folder| target.starts_with(folder));
        (!inside).then_some((link, target))
    })
}

/// The configurations and the tokenizer of a model.
pub struct Companions {
    genai: Option<Value>,
    hub: Option<Value>,
    generation: Option<Value>,
    tokenizer_config: Option<Value>,
    /// The `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
}

impl Companions {
    /// Find the files in the model's folder, and in its parent if the folder is called `onnx`.
    pub fn of(file: &Path) -> Result<Self> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let above = folder.parent().filter(|_| folder.ends_with("onnx"));
        let find = |name: &str| {
            [Some(folder), above]
                .into_iter()
                .flatten()
                .map(|folder| folder.join(name))
                .find(|path| files::is_there(path))
        };
        let read = |name: &str| find(name).map_or(Ok(None), |path| json(&path));
        Ok(Companions {
            genai: read("genai_config.json")?,
            hub: read("config.json")?,
            generation: read("generation_config.json")?,
            tokenizer_config: read("tokenizer_config.json")?,
            tokenizer: find("tokenizer.json"),
        })
    }

    /// A value by its JSON pointer in `genai_config.json`, or else by its key in `config.json`.
    pub fn get(&self, genai_pointer: &str, hub_key: &str) -> Option<&Value> {
        let genai = self.genai.as_ref().and_then(|config| config.pointer(genai_pointer));
        genai.or_else(|| self.hub(hub_key))
    }

    /// A value of `config.json`. Multimodal models keep the values of their text part in `text_config`.
    pub fn hub(&self, key: &str) -> Option<&Value> {
        let hub = self.hub.as_ref()?;
        hub.get(key).or_else(|| hub.get("text_config")?.get(key)).filter(|value| !value.is_null())
    }

    /// As [`Companions::get`], for a positive integer.
    pub fn size(&self, genai_pointer: &str, hub_key: &str) -> Option<usize> {
        self.get(genai_pointer, hub_key)?.as_u64().filter(|&size| size > 0).map(|size| size as usize)
    }

    /// The name that `genai_config.json` gives an input or output of the decoder.
    pub fn name(&self, list: &str, key: &str) -> Option<&str> {
        self.genai.as_ref()?.pointer(&format!("/model/decoder/{list}/{key}"))?.as_str()
    }

    /// Whether every position attends to all earlier ones. `None` if there is no configuration.
    ///
    /// Anything that looks like a window counts as one. A false alarm costs a copy after each rejection; a missed
    /// window would give a wrong distribution.
    pub fn attends_to_all(&self) -> Option<bool> {
        let sliding = self.genai.as_ref().map(|genai| genai.pointer("/model/decoder/sliding_window"));
        let genai = sliding.map(|sliding| sliding.is_none_or(Value::is_null));
        match (genai, self.hub_attends_to_all()) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (genai, hub) => genai.or(hub),
        }
    }

    fn hub_attends_to_all(&self) -> Option<bool> {
        if let Some(layers) = self.hub("layer_types").and_then(Value::as_array) {
            return Some(layers.iter().all(|layer| layer == "full_attention"));
        }
        if self.hub("use_sliding_window") == Some(&Value::Bool(false)) {
            return Some(true);
        }
        let is_off = |value: &Value| {
            value.is_null() || value == &Value::Bool(false) || value.as_i64().is_some_and(|number| number <= 0)
        };
        let hub = self.hub.as_ref()?.as_object()?;
        let text = hub.get("text_config").and_then(Value::as_object);
        let mut keys = hub.iter().chain(text.into_iter().flatten());
        Some(keys.all(|(key, value)| {
            let window = ["sliding", "window", "chunk", "local"].iter().any(|word| key.contains(word));
            !window || key == "max_window_layers" || is_off(value)
        }))
    }

    /// The length of the sliding windows, if there are any.
    pub fn window(&self) -> Option<usize> {
        let genai = self.genai.as_ref().and_then(|config| config.pointer("/model/decoder/sliding_window/window_size"));
        let window = genai.or_else(|| self.hub("sliding_window").filter(|_| self.attends_to_all() == Some(false)))?;
        window.as_u64().filter(|&window| window > 0).map(|window| window as usize)
    }

    /// The length beyond which all positions are rescaled (longrope).
    pub fn rescaled_beyond(&self) -> Option<usize> {
        let scaling = self.hub("rope_scaling").or_else(|| self.hub("rope_parameters"))?;
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"))?.as_str()?;
        let key = "original_max_position_embeddings";
        let length = self.hub(key).or_else(|| scaling.get(key))?.as_u64()?;
        matches!(kind, "longrope" | "su").then_some(length as usize)
    }

    /// The tokens that end a text, in ascending order, and warnings about invalid ones.
    ///
    /// All tokens that any file names count. Files are often incomplete, and a text that never ends is worse than one
    /// that ends early.
    pub fn stop_tokens(&self) -> (Vec<i32>, Vec<String>) {
        let key = "eos_token_id";
        let (genai, hub, generation) = (self.genai.as_ref(), self.hub.as_ref(), self.generation.as_ref());
        let named = [
            ("genai_config.json", genai.and_then(|config| config.pointer("/model")?.get(key))),
            ("generation_config.json", generation.and_then(|config| config.get(key))),
            ("config.json", hub.and_then(|config| config.get(key))),
            ("config.json", hub.and_then(|config| config.get("text_config")?.get(key))),
        ];
        let (mut tokens, mut warnings) = (BTreeSet::new(), Vec::new());
        for (file, value) in named.into_iter().filter_map(|(file, value)| Some((file, value?))) {
            let each = value.as_array().map_or(std::slice::from_ref(value), Vec::as_slice);
            // Some files have null or -1 for no token.
            let each = each.iter().filter(|one| !one.is_null() && one.as_i64().is_none_or(|token| token >= 0));
            let token = |one: &Value| one.as_i64().and_then(|token| i32::try_from(token).ok());
            let (valid, invalid): (Vec<_>, Vec<_>) = each.partition(|&one| token(one).is_some());
            tokens.extend(valid.into_iter().filter_map(token));
            warnings.extend(invalid.first().map(|one| {
                let one: String = one.to_string().chars().take(60).collect();
                format!("{file} has the {key} {one}, which is not used because it is not the number of a token")
            }));
        }
        tokens.extend(self.stop_token_by_text());
        (tokens.into_iter().collect(), warnings)
    }

    /// The token that `tokenizer_config.json` names by its text. Errors in `tokenizer.json` are ignored here, because
    /// loading the tokenizer reports them.
    fn stop_token_by_text(&self) -> Option<i32> {
        let named = self.tokenizer_config.as_ref()?.get("eos_token")?;
        let text = named.get("content").unwrap_or(named).as_str()?;
        let tokenizer = files::tokenizer(self.tokenizer.as_ref()?).ok()?;
        let tokens: Tokens = serde_json::from_str(&tokenizer).ok()?;
        tokens.find(text).and_then(|token| i32::try_from(token).ok())
    }
}

/// The tokens of a `tokenizer.json`.
#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    added_tokens: Vec<AddedToken>,
    model: Vocabulary,
}

#[derive(Deserialize)]
struct AddedToken {
    id: u32,
    content: String,
}

#[derive(Deserialize)]
struct Vocabulary {
    /// A map from tokens to numbers, or for Unigram an array of pairs (token, score) in the order of numbers.
    vocab: Value,
}

impl Tokens {
    /// The number of the token with this text.
    fn find(&self, text: &str) -> Option<u64> {
        if let Some(added) = self.added_tokens.iter().find(|token| token.content == text) {
            return Some(added.id.into());
        }
        match &self.model.vocab {
            Value::Array(pairs) => {
                pairs.iter().position(|pair| pair.get(0).is_some_and(|token| token == text)).map(|index| index as u64)
            }
            tokens => tokens.get(text)?.as_u64(),
        }
    }
}

/// The content of a JSON file. `None` if there is no such file.
fn json(path: &Path) -> Result<Option<Value>> {
    if files::is_there(path) { files::configuration(path).map(Some).map_err(Error::Model) } else { Ok(None) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::super::graph::tests::read;
    use super::super::proto::{GraphProto, StringStringEntry, TensorProto};
    use super::*;

    fn companions(genai: Option<&str>, hub: Option<&str>) -> Companions {
        let parse = |text: Option<&str>| text.map(|text| serde_json::from_str(text).unwrap());
        Companions { genai: parse(genai), hub: parse(hub), generation: None, tokenizer_config: None, tokenizer: None }
    }

    #[test]
    fn a_folder_of_weights_gets_a_command_to_export_them() {
        let folder = tempfile::tempdir().unwrap();
        let message = || model_file(folder.path()).unwrap_err().to_string();
        let shown = folder.path().canonicalize().unwrap();
        let command = format!("`make export MODEL='{0}' OUT='{0}-onnx'`", shown.display());
        assert!(message().ends_with("holds no .onnx file"));
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert!(message().ends_with("holds no .onnx file"));
        for weights in ["model-00001-of-00002.safetensors", "pytorch_model.bin"] {
            std::fs::write(folder.path().join(weights), "").unwrap();
            assert!(message().contains(&command), "{}", message());
            std::fs::remove_file(folder.path().join(weights)).unwrap();
        }
    }

    #[test]
    fn anything_like_a_window_counts_as_one() {
        let hub = |text: &str| companions(None, Some(text)).attends_to_all();
        assert_eq!(companions(None, None).attends_to_all(), None);
        assert_eq!(hub(r#"{"model_type": "llama"}"#), Some(true));
        assert_eq!(hub(r#"{"sliding_window": 4096}"#), Some(false));
        assert_eq!(hub(r#"{"sliding_window": null}"#), Some(true));
        assert_eq!(
            hub(r#"{"sliding_window": 4096, "use_sliding_window": false, "max_window_layers": 28}"#),
            Some(true)
        );
        assert_eq!(hub(r#"{"sliding_window": 4096, "layer_types": ["full_attention", "full_attention"]}"#), Some(true));
        assert_eq!(hub(r#"{"layer_types": ["full_attention", "sliding_attention"]}"#), Some(false));
        assert_eq!(hub(r#"{"attention_chunk_size": 8192}"#), Some(false));
        assert_eq!(hub(r#"{"text_config": {"sliding_window": 512}}"#), Some(false));
        assert_eq!(companions(Some(r#"{"model": {"decoder": {}}}"#), None).attends_to_all(), Some(true));
        let sliding = r#"{"model": {"decoder": {"sliding_window": {"window_size": 8}}}}"#;
        assert_eq!(companions(Some(sliding), None).attends_to_all(), Some(false));
        let plain = r#"{"model": {"decoder": {}}}"#;
        assert_eq!(companions(Some(plain), Some(r#"{"sliding_window": 40}"#)).attends_to_all(), Some(false));
        assert_eq!(companions(Some(plain), Some(r#"{"model_type": "llama"}"#)).attends_to_all(), Some(true));
    }

    #[test]
    fn longrope_is_recognised() {
        let hub = |text: &str| companions(None, Some(text)).rescaled_beyond();
        let length = "original_max_position_embeddings";
        assert_eq!(hub(&format!(r#"{{"rope_scaling": {{"type": "longrope"}}, "{length}": 32}}"#)), Some(32));
        assert_eq!(hub(&format!(r#"{{"rope_scaling": {{"type": "su"}}, "{length}": 32}}"#)), Some(32));
        assert_eq!(hub(&format!(r#"{{"rope_parameters": {{"rope_type": "longrope", "{length}": 9}}}}"#)), Some(9));
        assert_eq!(hub(&format!(r#"{{"rope_scaling": {{"type": "yarn"}}, "{length}": 32}}"#)), None);
        assert_eq!(hub(r#"{"rope_scaling": null}"#), None);
    }

    #[test]
    fn stop_tokens_of_all_files_count() {
        let folder = tempfile::tempdir().unwrap();
        let found = |files: &[(&str, &str)]| {
            for name in ["genai_config", "generation_config", "config", "tokenizer_config", "tokenizer"] {
                let content = files.iter().find(|(file, _)| *file == name).map_or("{}", |(_, content)| content);
                std::fs::write(folder.path().join(name).with_extension("json"), content).unwrap();
            }
            Companions::of(&folder.path().join("model.onnx")).unwrap().stop_tokens()
        };
        let tokens = |files: &[(&str, &str)]| {
            let (tokens, warnings) = found(files);
            assert_eq!(warnings, [] as [String; 0]);
            tokens
        };
        let none: [i32; 0] = [];
        let (bpe, unigram) = (
            r#"{"added_tokens": [{"id": 7, "content": "<end>"}], "model": {"vocab": {"a": 0, "b": 5}}}"#,
            r#"{"model": {"vocab": [["a", -1.5], ["<end>", 0.0]]}}"#,
        );
        assert_eq!(tokens(&[]), none);
        assert_eq!(tokens(&[("config", r#"{"eos_token_id": 2}"#)]), [2]);
        assert_eq!(tokens(&[("config", r#"{"eos_token_id": [7, 2, 7]}"#)]), [2, 7]);
        assert_eq!(tokens(&[("config", r#"{"eos_token_id": -1}"#)]), none, "-1 means none");
        assert_eq!(tokens(&[("config", r#"{"eos_token_id": 1, "text_config": {"eos_token_id": 3}}"#)]), [1, 3]);
        let null = ("generation_config", r#"{"eos_token_id": null}"#);
        assert_eq!(tokens(&[("config", r#"{"eos_token_id": 2}"#), null]), [2], "null says nothing");
        let genai = ("genai_config", r#"{"model": {"eos_token_id": 5}}"#);
        let generation = ("generation_config", r#"{"eos_token_id": [9, 4]}"#);
        assert_eq!(tokens(&[("config", r#"{"eos_token_id": 2}"#), genai, generation]), [2, 4, 5, 9]);
        for (content, tokenizer, expected) in [
            (r#"{"eos_token": "<end>"}"#, bpe, &[7][..]),
            (r#"{"eos_token": {"content": "<end>", "special": true}}"#, bpe, &[7]),
            (r#"{"eos_token": "b"}"#, bpe, &[5]),
            (r#"{"eos_token": "<end>"}"#, unigram, &[1]),
            (r#"{"eos_token": "<none>"}"#, bpe, &[]),
            (r#"{"eos_token": null}"#, bpe, &[]),
        ] {
            assert_eq!(tokens(&[("tokenizer_config", content), ("tokenizer", tokenizer)]), expected, "{content}");
        }
    }

    #[test]
    fn invalid_stop_tokens_are_warned_of() {
        let hub = |value: &str| companions(None, Some(&format!(r#"{{"eos_token_id": {value}}}"#))).stop_tokens();
        for value in ["4294967296", "1.5", "\"</s>\"", "true", "{}", "18446744073709551615"] {
            let (tokens, warnings) = hub(value);
            assert!(tokens.is_empty() && warnings.len() == 1, "{warnings:?}");
            assert!(warnings[0].starts_with(&format!("config.json has the eos_token_id {value}, which is not used")));
        }
        let (tokens, warnings) = hub(r#"[2, null, "</s>", 1.5, -1]"#);
        assert_eq!(tokens, [2]);
        assert!(warnings.len() == 1 && warnings[0].contains("\"</s>\""), "the first: {warnings:?}");
    }

    /// With ONNX Runtime's wording of errors.
    #[test]
    fn lack_of_memory_is_not_blamed_on_a_file() {
        let graph = crate::export::graph::tests::graph(&[], &[], &[]);
        for (why, is_memory) in [
            ("Exception during initialization: std::bad_alloc", true),
            ("CUDA failure 2: out of memory", true),
            ("Failed to allocate memory for requested buffer of size 4096", true),
            ("Protobuf parsing failed.", false),
        ] {
            let error = format!("cannot load m.onnx: {why}; if the file is corrupt or incomplete, copy it again");
            let error = explain(Path::new("m.onnx"), &graph, Error::Model(error));
            let message = error.to_string();
            assert_eq!(message.contains("not enough memory to load m.onnx"), is_memory, "{message}");
            assert_eq!(message.contains("corrupt"), !is_memory, "{message}");
            assert_eq!(error.code(), if is_memory { 4 } else { 3 });
        }
    }

    #[test]
    fn locations_of_external_weights_must_be_numbers() {
        for (key, value) in
            [("offset", "-4096"), ("length", "4 KiB"), ("offset", "99999999999999999999"), ("length", "")]
        {
            let entries = [("location", "weights.bin"), (key, value)];
            let entry = |(key, value): (&str, &str)| StringStringEntry { key: key.into(), value: value.into() };
            let external_data = entries.map(entry).into();
            let weight = TensorProto { name: "w".into(), external_data, ..Default::default() };
            let graph = read(GraphProto { initializer: vec![weight], ..Default::default() }, Vec::new());
            let error = check_weights(Path::new("folder/model.onnx"), &graph).unwrap_err().to_string();
            let says = format!("\"w\" in \"weights.bin\" has the {key} {value:?}, not a number of bytes");
            assert!(error.contains(&says) && error.contains("folder/model.onnx"), "{error}");
        }
    }

    #[test]
    fn a_configured_file_must_be_in_the_folder() {
        let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::write(other.path().join("model.onnx"), "x").unwrap();
        let outside = other.path().join("model.onnx");
        let named = |name: &str| {
            let config = serde_json::json!({ "model": { "decoder": { "filename": name } } });
            std::fs::write(folder.path().join("genai_config.json"), config.to_string()).unwrap();
            model_file(folder.path())
        };
        let relative = format!("../{}/model.onnx", other.path().file_name().unwrap().display());
        for name in [outside.to_str().unwrap(), &relative, "a/../../x.onnx"] {
            let message = named(name).unwrap_err().to_string();
            assert!(message.contains("genai_config.json") && message.contains(name), "{message}");
        }
        // The cache of the hub consists of links.
        symlink(&outside, folder.path().join("decoder.onnx")).unwrap();
        assert_eq!(named("decoder.onnx"), Ok(folder.path().join("decoder.onnx")));
        assert_eq!(named("gone.onnx"), Ok(folder.path().join("decoder.onnx")), "the only one");
        symlink("nowhere", folder.path().join("dangling.onnx")).unwrap();
        assert_eq!(named("dangling.onnx"), Ok(folder.path().join("dangling.onnx")), "no other file replaces it");
    }
}
