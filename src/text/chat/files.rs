//! Finds the chat templates beside a tokenizer, and what they need, in the files that transformers reads.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::files;

/// The name of the template that is taken if there is no other reason.
const DEFAULT: &str = "default";

/// What the files beside a tokenizer say about chat.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ChatFiles {
    /// The templates by their names.
    pub templates: BTreeMap<String, String>,
    /// The special tokens by the names of their variables, such as `bos_token`.
    pub tokens: Vec<(String, String)>,
    /// Further control tokens, if the model names them.
    pub control: Option<Vec<String>>,
}

impl ChatFiles {
    /// Read the files beside a `tokenizer.json`. `config` is its `tokenizer_config.json`. An error names the file.
    ///
    /// Files of templates replace those of the configuration, as in transformers. A `chat_template.json`, which only
    /// its processors read, comes last.
    pub fn beside(tokenizer: &Path, config: &Value) -> Result<Self, String> {
        let mut templates = template_files(tokenizer)?;
        if templates.is_empty() {
            templates = named(&config["chat_template"]);
        }
        let legacy = tokenizer.with_file_name("chat_template.json");
        if templates.is_empty() && files::is_there(&legacy) {
            templates = named(&files::configuration(&legacy)?["chat_template"]);
        }
        let control = config["chat_control_tokens"].as_array();
        let control =
            control.map(|tokens| tokens.iter().filter_map(|token| token.as_str().map(str::to_owned)).collect());
        Ok(ChatFiles { templates, tokens: tokens(tokenizer, config)?, control })
    }
}

/// The templates that are files of their own.
fn template_files(tokenizer: &Path) -> Result<BTreeMap<String, String>, String> {
    let mut templates = BTreeMap::new();
    let (file, folder) =
        (tokenizer.with_file_name("chat_template.jinja"), tokenizer.with_file_name("additional_chat_templates"));
    if files::is_there(&file) {
        templates.insert(DEFAULT.to_owned(), files::text(&file, files::CONFIGURATION)?);
    }
    for path in files::with_extension(&folder, "jinja")? {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        templates.insert(name, files::text(&path, files::CONFIGURATION)?);
    }
    Ok(templates)
}

/// The templates of a value in JSON: a string, or a list or an object of named templates.
fn named(value: &Value) -> BTreeMap<String, String> {
    let pair = |name: &str, template: &Value| Some((name.to_owned(), template.as_str()?.to_owned()));
    match value {
        Value::String(_) => pair(DEFAULT, value).into_iter().collect(),
        Value::Array(list) => list.iter().filter_map(|each| pair(each["name"].as_str()?, &each["template"])).collect(),
        Value::Object(object) => object.iter().filter_map(|(name, template)| pair(name, template)).collect(),
        _ => BTreeMap::new(),
    }
}

/// The special tokens that templates know as variables. A `special_tokens_map.json` counts only if the configuration
/// lists no `added_tokens_decoder`, as in transformers.
fn tokens(tokenizer: &Path, config: &Value) -> Result<Vec<(String, String)>, String> {
    let map = tokenizer.with_file_name("special_tokens_map.json");
    let is_read = config["added_tokens_decoder"].is_null() && files::is_there(&map);
    let map = if is_read { files::configuration(&map)? } else { Value::Null };
    let mut tokens = BTreeMap::new();
    for file in [config, &map] {
        let own = file.as_object().into_iter().flatten().filter(|(name, _)| name.ends_with("_token"));
        let extra = file["extra_special_tokens"].as_object().into_iter().flatten();
        for (name, token) in own.chain(extra) {
            if let Some(token) = token.as_str().or(token["content"].as_str()) {
                tokens.insert(name.clone(), token.to_owned());
            }
        }
    }
    Ok(tokens.into_iter().collect())
}
