//! The files that come with an exported model: its configurations and its tokenizer.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

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
    let named = |name: &str| files.iter().position(|file| file.ends_with(name));
    // Optimum once left a decoder for the first pass, one for later ones, and both merged into one.
    let preferred = named("model.onnx").or_else(|| named("decoder_model_merged.onnx"));
    match (files.len(), preferred) {
        // the layout of the hub: configurations above, exports in a folder of their own
        (0, _) if path.join("onnx").is_dir() => model_file(&path.join("onnx")),
        (0, _) => Err(Error::Model(format!("{} holds no .onnx file", path.display()))),
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
/// The configurations that came with a model.
pub struct Beside {
    genai: Option<Value>,
    hub: Option<Value>,
    generation: Option<Value>,
    /// The `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
}

impl Beside {
    /// In the model's folder, or above it where that is called `onnx`.
    pub fn of(file: &Path) -> Result<Self> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let above = folder.parent().filter(|_| folder.ends_with("onnx"));
        let find = |name: &str| {
            [Some(folder), above].into_iter().flatten().map(|folder| folder.join(name)).find(|path| path.is_file())
        };
        let read = |name: &str| find(name).map_or(Ok(None), |path| json(&path));
        Ok(Beside {
            genai: read("genai_config.json")?,
            hub: read("config.json")?,
            generation: read("generation_config.json")?,
            tokenizer: find("tokenizer.json"),
        })
    }

    /// A value by its place in `genai_config.json`, or else its key in `config.json`.
    pub fn get(&self, genai_pointer: &str, hub_key: &str) -> Option<&Value> {
        let genai = self.genai.as_ref().and_then(|config| config.pointer(genai_pointer));
        genai.or_else(|| self.hub(hub_key))
    }

    /// A value of `config.json`; models that see and speak keep those of their text part apart.
    pub fn hub(&self, key: &str) -> Option<&Value> {
        let hub = self.hub.as_ref()?;
        hub.get(key).or_else(|| hub.get("text_config")?.get(key)).filter(|value| !value.is_null())
    }

    pub fn size(&self, genai_pointer: &str, hub_key: &str) -> Option<usize> {
        self.get(genai_pointer, hub_key)?.as_u64().filter(|&size| size > 0).map(|size| size as usize)
    }

    /// What `genai_config.json` calls an input or output of the decoder.
    pub fn name(&self, list: &str, key: &str) -> Option<&str> {
        self.genai.as_ref()?.pointer(&format!("/model/decoder/{list}/{key}"))?.as_str()
    }

    /// Whether every position attends to all before it; `None` where no configuration tells.
    ///
    /// Anything that looks like a window counts as one: the price of a mistake is a copy after a rejection, that of the
    /// opposite one a wrong distribution.
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

    /// The length of sliding windows, where there are any.
    pub fn window(&self) -> Option<usize> {
        let genai = self.genai.as_ref().and_then(|config| config.pointer("/model/decoder/sliding_window/window_size"));
        let window = genai.or_else(|| self.hub("sliding_window").filter(|_| self.attends_to_all() == Some(false)))?;
        window.as_u64().filter(|&window| window > 0).map(|window| window as usize)
    }

    /// The length behind which positions are scaled anew (longrope).
    pub fn rescaled_behind(&self) -> Option<usize> {
        let scaling = self.hub("rope_scaling").or_else(|| self.hub("rope_parameters"))?;
        let kind = scaling.get("rope_type").or_else(|| scaling.get("type"))?.as_str()?;
        let key = "original_max_position_embeddings";
        let length = self.hub(key).or_else(|| scaling.get(key))?.as_u64()?;
        matches!(kind, "longrope" | "su").then_some(length as usize)
    }

    /// End-of-sequence tokens: one, or a list.
    pub fn stop_tokens(&self) -> Vec<i32> {
        let generation = self.generation.as_ref().and_then(|config| config.get("eos_token_id"));
        let genai = self.genai.as_ref().and_then(|config| config.pointer("/model/eos_token_id"));
        let one = |value: &Value| value.as_i64().and_then(|token| i32::try_from(token).ok());
        match genai.or(generation).or_else(|| self.hub("eos_token_id")) {
            Some(Value::Array(tokens)) => tokens.iter().filter_map(one).collect(),
            Some(token) => one(token).into_iter().collect(),
            None => Vec::new(),
        }
    }
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
#[cfg(test)]
mod tests {
    use super::*;

    fn beside(genai: Option<&str>, hub: Option<&str>) -> Beside {
        let parse = |text: Option<&str>| text.map(|text| serde_json::from_str(text).unwrap());
        Beside { genai: parse(genai), hub: parse(hub), generation: None, tokenizer: None }
    }

    #[test]
    fn windows_are_suspected_rather_than_missed() {
        let hub = |text: &str| beside(None, Some(text)).attends_to_all();
        assert_eq!(beside(None, None).attends_to_all(), None);
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
        assert_eq!(beside(Some(r#"{"model": {"decoder": {}}}"#), None).attends_to_all(), Some(true));
        let sliding = r#"{"model": {"decoder": {"sliding_window": {"window_size": 8}}}}"#;
        assert_eq!(beside(Some(sliding), None).attends_to_all(), Some(false));
        let plain = r#"{"model": {"decoder": {}}}"#;
        assert_eq!(beside(Some(plain), Some(r#"{"sliding_window": 40}"#)).attends_to_all(), Some(false));
        assert_eq!(beside(Some(plain), Some(r#"{"model_type": "llama"}"#)).attends_to_all(), Some(true));
    }

    #[test]
    fn positions_that_are_scaled_anew() {
        let hub = |text: &str| beside(None, Some(text)).rescaled_behind();
        let length = "original_max_position_embeddings";
        assert_eq!(hub(&format!(r#"{{"rope_scaling": {{"type": "longrope"}}, "{length}": 32}}"#)), Some(32));
        assert_eq!(hub(&format!(r#"{{"rope_scaling": {{"type": "su"}}, "{length}": 32}}"#)), Some(32));
        assert_eq!(hub(&format!(r#"{{"rope_parameters": {{"rope_type": "longrope", "{length}": 9}}}}"#)), Some(9));
        assert_eq!(hub(&format!(r#"{{"rope_scaling": {{"type": "yarn"}}, "{length}": 32}}"#)), None);
        assert_eq!(hub(r#"{"rope_scaling": null}"#), None);
    }

    #[test]
    fn stop_tokens_of_any_form() {
        let hub = |text: &str| beside(None, Some(text)).stop_tokens();
        assert_eq!(hub(r#"{"eos_token_id": 2}"#), [2]);
        assert_eq!(hub(r#"{"eos_token_id": [2, 7]}"#), [2, 7]);
        assert_eq!(hub(r#"{"eos_token_id": null}"#), [] as [i32; 0]);
        assert_eq!(hub(r#"{"text_config": {"eos_token_id": 3}}"#), [3]);
        assert_eq!(hub("{}"), [] as [i32; 0]);
        assert_eq!(
            beside(Some(r#"{"model": {"eos_token_id": [5]}}"#), Some(r#"{"eos_token_id": 2}"#)).stop_tokens(),
            [5]
        );
    }
}
