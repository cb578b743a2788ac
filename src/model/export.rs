//! Recognises an exported language model: which inputs and outputs it has, and what they mean.
//!
//! What counts are names, ranks, types and dimensions of inputs and outputs, and the operators that write the cache. A
//! `genai_config.json` or `config.json` beside the model is used where it is there: for names, sizes that the graph
//! leaves open, the context length, stop tokens, and whether there are sliding windows.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use ort::value::{Outlet, TensorElementType, ValueType};
use serde_json::{Value, json};

use super::graph::{Graph, Node};
use crate::error::{Error, Result};

/// Context length of an export that says nothing about it.
const UNKNOWN_CONTEXT: usize = 1 << 20;

/// What was recognised of an export.
#[derive(Debug, Clone)]
pub struct Export {
    /// The `.onnx` file.
    pub file: PathBuf,
    /// The `tokenizer.json` that came with it.
    pub tokenizer: Option<PathBuf>,
    /// The program that made it, and its version.
    pub producer: String,
    /// The kind of model, such as `llama`, where a configuration says so.
    pub architecture: Option<String>,
    /// Version of the standard operators.
    pub opset: i64,
    /// What must be fed, the cache aside.
    pub inputs: Vec<Input>,
    /// The logits.
    pub logits: Logits,
    /// How the cache is kept.
    pub cache_kind: CacheKind,
    /// How tokens are taken back.
    pub rollback: Rollback,
    /// The cache, one entry for each key and each value of a layer.
    pub cache: Vec<CacheTensor>,
    /// Least tokens that a shared cache must have room for: the longest window of operators that may keep no more.
    pub min_capacity: usize,
    /// Most tokens of a sequence.
    pub context_length: usize,
    /// End-of-sequence tokens.
    pub stop_tokens: Vec<i32>,
    /// Bytes of the model's files, a measure of what a pass costs.
    pub bytes: u64,
    /// How several positions are scored.
    pub scoring: Scoring,
    /// Whether 4-bit products round activations, and do so otherwise for single positions (`accuracy_level` 4).
    pub rounds_activations: bool,
    /// What a user should know about it.
    pub warnings: Vec<String>,
}

/// An input that is made anew for each pass.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name.
    pub name: CString,
    /// What it means.
    pub role: Role,
    /// Type of its elements.
    pub element: TensorElementType,
    /// Its number of dimensions.
    pub rank: usize,
    /// Length of its last dimension where the export fixes it.
    pub length: Option<usize>,
}

/// What an input means. A pass runs `w` new tokens on top of `p` earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The new tokens, `[1, w]`.
    Tokens,
    /// 1 for each entry of the cache and each new token that counts, `[1, p + w]`.
    Mask,
    /// Positions of the new tokens in the text, `[1, w]`.
    Positions,
    /// Places of the new tokens in the cache, `[w]`.
    CachePositions,
    /// How many of the last positions get logits, one number.
    LogitsToKeep,
    /// Segments, all 0, `[1, w]`.
    TokenTypes,
    /// `p`, one number or `[1]`.
    PastLength,
    /// `p + w`, one number or `[1]`.
    TotalLength,
    /// `p + w - 1`, one number or `[1]`.
    LastPosition,
}

impl Role {
    fn of(name: &str) -> Option<Role> {
        Some(match name {
            "input_ids" => Role::Tokens,
            "attention_mask" => Role::Mask,
            "position_ids" => Role::Positions,
            "cache_position" => Role::CachePositions,
            "num_logits_to_keep" | "logits_to_keep" => Role::LogitsToKeep,
            "token_type_ids" => Role::TokenTypes,
            "write_indices" | "past_sequence_length" | "past_seq_len" => Role::PastLength,
            "nonpad_kv_seqlen" | "total_sequence_length" | "total_seq_len" => Role::TotalLength,
            "seqlens_k" => Role::LastPosition,
            _ => return None,
        })
    }

    /// Ranks that this input may have.
    fn ranks(self) -> &'static [usize] {
        match self {
            Role::Tokens | Role::Mask | Role::TokenTypes => &[2],
            Role::Positions => &[1, 2],
            Role::CachePositions => &[1],
            _ => &[0, 1],
        }
    }
}

/// The output of logits.
#[derive(Debug, Clone)]
pub struct Logits {
    /// Its name.
    pub name: CString,
    /// Type of its elements.
    pub element: TensorElementType,
    /// Its number of dimensions: 3, or 2 without one for positions.
    pub rank: usize,
    /// Number of columns; 0 until a trial run has shown what the graph leaves open.
    pub columns: usize,
    /// Which positions get logits.
    pub rows: Rows,
}

/// Which positions of a pass get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All of them.
    All,
    /// As many of the last ones as [`Role::LogitsToKeep`] says.
    Counted,
    /// The last one.
    Last,
}

/// How several positions are scored, the fastest way first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scoring {
    /// In one pass.
    Parallel,
    /// In one pass on an empty cache, otherwise one by one.
    FirstPass,
    /// One pass for each, so that each is scored as it would be without drafts.
    OneByOne,
}

/// How the cache is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// There is none: each pass runs the whole sequence.
    None,
    /// One buffer of any capacity is past and present, and new entries are written into it.
    Shared,
    /// As shared, with a capacity that the export fixes.
    Fixed {
        /// The capacity in tokens.
        capacity: usize,
        /// Whether past and present may be one buffer.
        in_place: bool,
    },
    /// The present is the past with the new entries behind it.
    Concatenated,
}

/// How tokens are taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollback {
    /// By a shorter length: the next pass overwrites what is behind it.
    Shorten,
    /// Their entries stay in the cache with a 0 in the attention mask, and new tokens get explicit positions. Entries
    /// are moved together when too many are dead.
    Mask,
    /// Entries are moved together before the next pass.
    Compact,
}

/// One tensor of the cache: `[1, heads, tokens, head_size]`, or `[1, tokens, heads, head_size]`.
#[derive(Debug, Clone)]
pub struct CacheTensor {
    /// The input's name.
    pub past: CString,
    /// The output's name.
    pub present: CString,
    /// The layer.
    pub layer: usize,
    /// Heads of keys or values.
    pub heads: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Their type.
    pub element: TensorElementType,
    /// Whether tokens are the dimension before heads.
    pub tokens_first: bool,
}

impl CacheTensor {
    /// The tensor's shape for a number of tokens.
    pub fn shape(&self, tokens: usize) -> [i64; 4] {
        let (heads, tokens) = (self.heads as i64, tokens as i64);
        let (second, third) = if self.tokens_first { (tokens, heads) } else { (heads, tokens) };
        [1, second, third, self.head_size as i64]
    }

    /// How many runs of entries the tensor has, and the bytes that one token takes in each.
    pub fn layout(&self) -> (usize, usize) {
        let head = self.head_size * element_bytes(self.element).unwrap_or(4);
        if self.tokens_first { (1, self.heads * head) } else { (self.heads, head) }
    }

    /// Bytes for each token.
    pub fn bytes(&self) -> usize {
        let (runs, bytes) = self.layout();
        runs * bytes
    }
}

/// Bytes of an element that logits and caches may be made of.
pub fn element_bytes(element: TensorElementType) -> Option<usize> {
    match element {
        TensorElementType::Float32 => Some(4),
        TensorElementType::Float16 | TensorElementType::Bfloat16 => Some(2),
        _ => None,
    }
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

/// Recognise an export from its inputs, outputs and operators, and the files beside it.
pub fn read_export(file: &Path, graph: &Graph, inputs: &[Outlet], outputs: &[Outlet]) -> Result<Export> {
    Reader { file, graph, inputs, outputs, beside: Beside::of(file)? }.read()
}

/// The configurations that came with a model.
struct Beside {
    genai: Option<Value>,
    hub: Option<Value>,
    generation: Option<Value>,
    tokenizer: Option<PathBuf>,
}

impl Beside {
    /// In the model's folder, or above it where that is called `onnx`.
    fn of(file: &Path) -> Result<Self> {
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
    fn get(&self, genai_pointer: &str, hub_key: &str) -> Option<&Value> {
        let genai = self.genai.as_ref().and_then(|config| config.pointer(genai_pointer));
        genai.or_else(|| self.hub(hub_key))
    }

    /// A value of `config.json`; models that see and speak keep those of their text part apart.
    fn hub(&self, key: &str) -> Option<&Value> {
        let hub = self.hub.as_ref()?;
        hub.get(key).or_else(|| hub.get("text_config")?.get(key)).filter(|value| !value.is_null())
    }

    fn size(&self, genai_pointer: &str, hub_key: &str) -> Option<usize> {
        self.get(genai_pointer, hub_key)?.as_u64().filter(|&size| size > 0).map(|size| size as usize)
    }

    /// What `genai_config.json` calls an input or output of the decoder.
    fn name(&self, list: &str, key: &str) -> Option<&str> {
        self.genai.as_ref()?.pointer(&format!("/model/decoder/{list}/{key}"))?.as_str()
    }

    /// Whether every position attends to all before it; `None` where no configuration tells.
    ///
    /// Anything that looks like a window counts as one: the price of a mistake is a copy after a rejection, that of the
    /// opposite one a wrong distribution.
    fn attends_to_all(&self) -> Option<bool> {
        if let Some(genai) = &self.genai {
            return Some(genai.pointer("/model/decoder/sliding_window").is_none());
        }
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
    fn window(&self) -> Option<usize> {
        let genai = self.genai.as_ref().and_then(|config| config.pointer("/model/decoder/sliding_window/window_size"));
        let window = genai.or_else(|| self.hub("sliding_window").filter(|_| self.attends_to_all() == Some(false)))?;
        window.as_u64().filter(|&window| window > 0).map(|window| window as usize)
    }

    /// End-of-sequence tokens: one, or a list.
    fn stop_tokens(&self) -> Vec<i32> {
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

/// An input or output that is a tensor.
struct Tensor<'a> {
    name: &'a str,
    element: TensorElementType,
    /// Dimensions; those that are not fixed are -1.
    shape: Vec<i64>,
    symbols: Vec<String>,
}

impl<'a> Tensor<'a> {
    fn of(outlet: &'a Outlet) -> Option<Self> {
        let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else { return None };
        let symbols = dimension_symbols.iter().map(|symbol| symbol.to_lowercase()).collect();
        Some(Tensor { name: outlet.name(), element: *ty, shape: shape.to_vec(), symbols })
    }

    fn fixed(&self, axis: usize) -> Option<usize> {
        self.shape.get(axis).and_then(|&size| usize::try_from(size).ok())
    }
}

/// The layer and whether it is a key, from the many names of caches: `past_key_values.3.key`, `past_value_3`, `k_cache.3` …
fn cache_name(name: &str) -> Option<(usize, bool)> {
    let rest = name.replace("past_key_values", "").replace("key_values", "").replace("key_value", "");
    let is_word = |text: &str, word: &str| text.split(|c: char| !c.is_ascii_alphabetic()).any(|part| part == word);
    let key = rest.contains("key") || is_word(&rest, "k");
    let value = rest.contains("value") || is_word(&rest, "v");
    let layer = rest.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()?;
    (key != value).then_some((layer, key))
}

struct Reader<'a> {
    file: &'a Path,
    graph: &'a Graph,
    inputs: &'a [Outlet],
    outputs: &'a [Outlet],
    beside: Beside,
}

impl Reader<'_> {
    fn read(&self) -> Result<Export> {
        let mut warnings = Vec::new();
        let (mut inputs, mut pasts) = (Vec::new(), Vec::new());
        for outlet in self.inputs {
            let input = Tensor::of(outlet)
                .ok_or_else(|| self.refuse(format_args!("its input {} is no tensor", outlet.name())))?;
            match self.role(input.name) {
                Some(role) => inputs.push(self.input(&input, role)?),
                None if cache_name(input.name).is_some() && input.shape.len() == 4 => pasts.push(input),
                None => return Err(self.unknown(&input)),
            }
        }
        if !inputs.iter().any(|input| input.role == Role::Tokens) {
            return Err(self.refuse("not a language model, it has no input input_ids"));
        }
        let logits = self.logits()?;
        let mut cache =
            pasts.iter().map(|past| self.cache_tensor(past)).collect::<Result<Vec<(CacheTensor, CacheKind)>>>()?;
        cache
            .sort_by_key(|(tensor, _)| (tensor.layer, cache_name(&tensor.past.to_string_lossy()).map(|(_, key)| !key)));
        let cache_kind = match cache.first() {
            None => CacheKind::None,
            Some((first, kind)) => match cache.iter().find(|(_, other)| other != kind) {
                None => *kind,
                Some((other, _)) => {
                    return Err(self.unsupported(format_args!(
                        "its caches {:?} and {:?} work in different ways (operators or lengths differ)",
                        first.past, other.past
                    )));
                }
            },
        };
        let cache: Vec<CacheTensor> = cache.into_iter().map(|(tensor, _)| tensor).collect();

        let has = |role: Role| inputs.iter().any(|input: &Input| input.role == role);
        if cache_kind == CacheKind::Shared && !has(Role::Mask) && !has(Role::TotalLength) && !has(Role::LastPosition) {
            return Err(self.unsupported("nothing tells it how much of its shared cache is filled (no attention_mask)"));
        }
        let places_given = [Role::CachePositions, Role::PastLength, Role::TotalLength].into_iter().any(has);
        if matches!(cache_kind, CacheKind::Fixed { .. }) && !places_given {
            return Err(self.unsupported(
                "its cache has a fixed length, but no input says where new entries go (cache_position or write_indices)",
            ));
        }
        let attends_to_all = self.beside.attends_to_all();
        let dynamic =
            self.graph.all("DynamicQuantizeLinear").chain(self.graph.all("DynamicQuantizeMatMul")).next().is_some();
        if dynamic && matches!(cache_kind, CacheKind::Fixed { .. }) {
            return Err(self.unsupported(
                "activations are quantised with one scale for a whole cache of fixed length (DynamicQuantizeLinear), so \
                 what was taken back would still count; export it with weight-only quantisation",
            ));
        }
        let rollback = match cache_kind {
            // Sliding windows are made from places in the cache, so dead entries in between would be wrong, and so would
            // they be where positions are counted from the cache's length.
            // Nor may they have a part in a scale.
            CacheKind::Concatenated
                if attends_to_all == Some(true) && has(Role::Mask) && has(Role::Positions) && !dynamic =>
            {
                Rollback::Mask
            }
            CacheKind::Concatenated => Rollback::Compact,
            _ => Rollback::Shorten,
        };

        let mut context_length = self.context_length();
        if let CacheKind::Fixed { capacity, .. } = cache_kind {
            context_length = Some(context_length.map_or(capacity, |length| length.min(capacity)));
        }
        if context_length.is_none() {
            warnings.push(
                "the context length is not known; put the export's config.json beside it or set context_length".into(),
            );
        }
        let window = |node: &Node| node.integer("local_window_size").filter(|&w| w > 0).map(|w| w as usize);
        let windows = self.graph.all("GroupQueryAttention").filter(|node| window(node).is_some());
        let windowed = windows.clone().next().is_some();
        if let Some(window) = self.beside.window()
            && self.graph.producer.starts_with("onnxruntime-genai")
            && !windowed
            && context_length.is_none_or(|length| length > window)
        {
            // seen of the builder (0.18) for Mistral: its attention is over everything
            context_length = Some(window);
            warnings.push(format!(
                "the model has sliding windows of {window} tokens, but the graph has none; the context ends there, since \
                 beyond it the export is another model"
            ));
        }
        let long_rope = self.beside.hub("rope_scaling").or_else(|| self.beside.hub("rope_parameters"));
        let long_rope = long_rope.and_then(|scaling| scaling.get("rope_type").or(scaling.get("type")));
        let trained = self.beside.hub("original_max_position_embeddings").and_then(Value::as_u64);
        if let (Some("longrope"), Some(trained)) = (long_rope.and_then(Value::as_str), trained)
            && context_length.is_some_and(|length| length > trained as usize)
        {
            // Behind this length all positions turn otherwise, also those whose keys are cached already.
            context_length = Some(trained as usize);
            warnings.push(format!(
                "positions are scaled anew behind {trained} tokens (longrope), which a cache cannot follow; the context ends there"
            ));
        }
        let mut scoring = Scoring::Parallel;
        if dynamic {
            scoring = Scoring::OneByOne;
            warnings.push(
                "activations are quantised with one scale for all positions of a pass (DynamicQuantizeLinear), so scoring \
                 several at once would not be scoring one by one; they are scored one by one, and speculation saves \
                 nothing: export with weight-only quantisation"
                    .into(),
            );
        }
        if single_tokens(&inputs) {
            scoring = Scoring::OneByOne;
            warnings.push("it takes one token in a pass, so speculation saves nothing".into());
        }
        if cache_kind == CacheKind::None {
            warnings.push("it has no cache: every pass runs the whole sequence; export it with past".into());
        }
        Ok(Export {
            file: self.file.into(),
            tokenizer: self.beside.tokenizer.clone(),
            producer: self.graph.producer.clone(),
            architecture: self.beside.get("/model/type", "model_type").and_then(Value::as_str).map(str::to_owned),
            opset: self.graph.opset,
            inputs,
            logits,
            cache_kind,
            rollback,
            cache,
            min_capacity: windows
                .filter(|node| node.integer("sliding_window_cache") == Some(1))
                .filter_map(window)
                .max()
                .unwrap_or(0),
            context_length: context_length.unwrap_or(UNKNOWN_CONTEXT),
            stop_tokens: self.beside.stop_tokens(),
            bytes: self.bytes(),
            scoring,
            rounds_activations: self.graph.all("MatMulNBits").any(|node| node.integer("accuracy_level") == Some(4)),
            warnings,
        })
    }

    fn role(&self, name: &str) -> Option<Role> {
        let renamed = ["input_ids", "attention_mask", "position_ids", "past_sequence_length", "total_sequence_length"];
        let renamed = renamed.into_iter().find(|key| self.beside.name("inputs", key) == Some(name));
        Role::of(renamed.unwrap_or(name))
    }

    fn input(&self, input: &Tensor, role: Role) -> Result<Input> {
        let whole = matches!(input.element, TensorElementType::Int64 | TensorElementType::Int32);
        let flags = role == Role::Mask && input.element == TensorElementType::Bool;
        if !(whole || flags) {
            return Err(self.unsupported(format_args!("its input {} is of type {}", input.name, input.element)));
        }
        let rank = input.shape.len();
        if !role.ranks().contains(&rank) {
            return Err(self.unsupported(format_args!("its input {} has {rank} dimensions", input.name)));
        }
        let length = rank.checked_sub(1).and_then(|axis| input.fixed(axis));
        if rank == 2 && input.fixed(0).is_some_and(|batch| batch != 1) {
            return Err(self.unsupported(format_args!("its input {} has a fixed batch of more than 1", input.name)));
        }
        let free = match role {
            Role::Tokens | Role::Positions | Role::CachePositions | Role::TokenTypes => length.is_none_or(|l| l == 1),
            Role::Mask => true,
            _ => length.is_none_or(|length| length == 1),
        };
        if !free {
            return Err(self.unsupported(format_args!(
                "its input {} has a fixed length of {}; export it with dynamic axes",
                input.name,
                length.unwrap_or(0)
            )));
        }
        Ok(Input { name: c_name(input.name), role, element: input.element, rank, length })
    }

    fn logits(&self) -> Result<Logits> {
        let named = self.beside.name("outputs", "logits");
        let mut outputs = self.outputs.iter().filter(|output| match named {
            Some(name) => output.name() == name,
            None => output.name().to_lowercase().contains("logits"),
        });
        let logits = outputs.next().and_then(Tensor::of);
        let logits = logits.ok_or_else(|| self.refuse("not a language model, it has no output logits"))?;
        if element_bytes(logits.element).is_none() {
            return Err(self.unsupported(format_args!(
                "its logits are {}; float32, float16 and bfloat16 can be read",
                logits.element
            )));
        }
        let rank = logits.shape.len();
        if !(2..=3).contains(&rank) {
            return Err(self.refuse(format_args!(
                "its logits have the shape {:?}, not [batch, positions, vocabulary]",
                logits.shape
            )));
        }
        Ok(Logits {
            name: c_name(logits.name),
            element: logits.element,
            rank,
            columns: logits.fixed(rank - 1).unwrap_or(0),
            rows: Rows::All,
        })
    }

    fn cache_tensor(&self, past: &Tensor) -> Result<(CacheTensor, CacheKind)> {
        let name = past.name;
        let identity = cache_name(name);
        let present = self.outputs.iter().filter(|output| cache_name(output.name()) == identity).find_map(Tensor::of);
        let present = present.ok_or_else(|| self.refuse(format_args!("it takes {name} but gives nothing like it")))?;
        let (Some((layer, _)), Some(_)) = (identity, element_bytes(past.element)) else {
            return Err(self.unsupported(format_args!("a cache of {} elements ({name})", past.element)));
        };
        if present.element != past.element || present.shape.len() != 4 {
            return Err(self.unsupported(format_args!("{name} and {} have different types", present.name)));
        }
        if past.fixed(0).is_some_and(|batch| batch != 1) {
            return Err(self.unsupported(format_args!("{name} has a fixed batch of more than 1")));
        }
        let is_time = |axis: usize| {
            let symbol = past.symbols.get(axis).map_or("", String::as_str);
            ["seq", "past", "length", "time"].iter().any(|word| symbol.contains(word))
        };
        let tokens_first = match (past.fixed(1), past.fixed(2)) {
            (None, Some(_)) => true,
            (Some(_), None) => false,
            _ => is_time(1) && !is_time(2),
        };
        let writer = self.graph.origin(present.name);
        let unknown = |what: &str, axis: usize| {
            self.refuse(format_args!(
                "{what} (axis {axis} of {name}) is not known; put the genai_config.json or config.json of the export beside it"
            ))
        };
        let heads_axis = if tokens_first { 2 } else { 1 };
        let heads = past
            .fixed(heads_axis)
            .or_else(|| writer.and_then(|node| node.integer("kv_num_heads")).filter(|&n| n > 0).map(|n| n as usize))
            .or_else(|| self.beside.size("/model/decoder/num_key_value_heads", "num_key_value_heads"))
            .or_else(|| self.beside.size("/model/decoder/num_attention_heads", "num_attention_heads"))
            .ok_or_else(|| unknown("the number of heads", heads_axis))?;
        let head_size = past
            .fixed(3)
            .or_else(|| self.beside.size("/model/decoder/head_size", "head_dim"))
            .or_else(|| self.head_size_by_projection(writer?))
            .ok_or_else(|| unknown("the size of a head", 3))?;
        let time = if tokens_first { 1 } else { 2 };
        let kind = match (past.fixed(time), writer.map_or("", |node| node.operator.as_str())) {
            (Some(capacity), _) => {
                let direct = self.graph.readers(name).count() == 1;
                CacheKind::Fixed { capacity, in_place: direct && present.fixed(time) == Some(capacity) }
            }
            (None, "GroupQueryAttention" | "TensorScatter") => CacheKind::Shared,
            (None, "ScatterND" | "ScatterElements") => {
                return Err(self.unsupported(format_args!(
                    "its cache {name} is written in place, but its length is not fixed; export it with a static cache length"
                )));
            }
            (None, _) => CacheKind::Concatenated,
        };
        let (past, present) = (c_name(name), c_name(present.name));
        Ok((CacheTensor { past, present, layer, heads, head_size, element: self.element(name), tokens_first }, kind))
    }

    fn element(&self, input: &str) -> TensorElementType {
        let outlet = self.inputs.iter().find(|outlet| outlet.name() == input);
        outlet.and_then(|outlet| outlet.dtype().tensor_type()).unwrap_or(TensorElementType::Float32)
    }

    /// The size of a head, from the weights that the heads of an attention go through next.
    fn head_size_by_projection(&self, attention: &Node) -> Option<usize> {
        let heads = attention.integer("num_heads").filter(|&heads| heads > 0)?;
        let next = self.graph.readers(attention.outputs.first()?).next()?;
        let width = match next.operator.as_str() {
            "MatMulNBits" => next.integer("K")?,
            "MatMul" => *self.graph.weight(next.inputs.get(1)?)?.first()?,
            _ => return None,
        };
        (width % heads == 0).then(|| (width / heads) as usize)
    }

    /// Most tokens of a sequence, from a configuration or else from tables of positions in the graph.
    fn context_length(&self) -> Option<usize> {
        let keys = ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"];
        let configured = keys.iter().find_map(|key| self.beside.size("/model/context_length", key));
        configured.or_else(|| {
            let rotary = self.graph.all("GroupQueryAttention").filter_map(|node| node.inputs.get(7));
            let rotary = rotary.chain(self.graph.all("RotaryEmbedding").filter_map(|node| node.inputs.get(2)));
            let rows = |name: &String| self.graph.weight(name).and_then(|shape| shape.first().copied());
            let tables = self.graph.weights().filter(|(name, shape)| name.contains("wpe") && shape.len() == 2);
            rotary.filter_map(rows).chain(tables.map(|(_, shape)| shape[0])).min().map(|rows| rows as usize)
        })
    }

    /// Bytes of the file and of the weights beside it.
    fn bytes(&self) -> u64 {
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let external = self.graph.external_files.iter().map(|name| folder.join(name));
        let files = std::iter::once(self.file.to_path_buf()).chain(external);
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    fn unknown(&self, input: &Tensor) -> Error {
        let name = input.name;
        let lower = name.to_lowercase();
        if self.inputs.iter().all(|outlet| self.role(outlet.name()) != Some(Role::Tokens)) {
            return self.refuse("not a language model, it has no input input_ids");
        }
        if ["conv", "ssm", "state", "recurrent"].iter().any(|word| lower.contains(word)) {
            return self.unsupported(format_args!(
                "its input {name} carries a recurrent state, which cannot be taken back to an earlier token; models of \
                 attention layers only can be verified"
            ));
        }
        if lower == "use_cache_branch" {
            return self.unsupported(
                "a decoder merged of two graphs (use_cache_branch); export it again with a current Optimum, which makes one",
            );
        }
        if cache_name(name).is_some() {
            return self.unsupported(format_args!("its cache {name} has {} dimensions, not 4", input.shape.len()));
        }
        self.unsupported(format_args!("nothing is known to feed its input {name} with"))
    }

    fn refuse(&self, what: impl std::fmt::Display) -> Error {
        Error::Model(self.say(what))
    }

    fn unsupported(&self, what: impl std::fmt::Display) -> Error {
        Error::Unsupported(self.say(what))
    }

    fn say(&self, what: impl std::fmt::Display) -> String {
        let names = |outlets: &[Outlet]| {
            let mut names: Vec<&str> = outlets.iter().map(Outlet::name).take(6).collect();
            if outlets.len() > names.len() {
                names.push("…");
            }
            names.join(", ")
        };
        let (inputs, outputs) = (names(self.inputs), names(self.outputs));
        format!("{}: {what}; its inputs are {inputs}, its outputs {outputs}", self.file.display())
    }
}

impl Export {
    /// Take over what a trial run of `width` tokens has shown: the shape of the logits.
    pub fn see_logits(&mut self, shape: &[i64], width: usize) -> Result<()> {
        let unexpected = || Error::Model(format!("{}: its logits have the shape {shape:?}", self.file.display()));
        let (columns, rows) = match *shape {
            [1, rows, columns] if columns > 0 => (columns as usize, rows as usize),
            [1, columns] if columns > 0 => (columns as usize, 1),
            _ => return Err(unexpected()),
        };
        self.logits.rows = match rows {
            _ if self.inputs.iter().any(|input| input.role == Role::LogitsToKeep) => Rows::Counted,
            rows if rows == width && shape.len() == 3 => Rows::All,
            1 => Rows::Last,
            _ => return Err(unexpected()),
        };
        self.logits.columns = columns;
        if self.logits.rows == Rows::Last {
            self.warnings.push(
                "it gives logits for the last position only, so drafts are scored one position at a time and speculation \
                 saves nothing; export it with logits for all positions"
                    .into(),
            );
        }
        Ok(())
    }

    /// Set the context length; one that the export cannot hold is refused.
    pub fn limit_context(&mut self, length: usize) -> Result<()> {
        if let CacheKind::Fixed { capacity, .. } = self.cache_kind
            && length > capacity
        {
            return Err(Error::Config(format!(
                "context_length is {length}, but the cache of {} holds {capacity} tokens",
                self.file.display()
            )));
        }
        self.context_length = length;
        self.warnings.retain(|warning| !warning.starts_with("the context length"));
        Ok(())
    }

    /// What was recognised, for people who look into an engine. Documented with `cos_engine_describe`.
    pub fn describe(&self) -> Value {
        let text = |name: &CString| name.to_string_lossy().into_owned();
        let inputs =
            self.inputs.iter().map(|input| json!({ "name": text(&input.name), "type": type_name(input.element) }));
        let caches = self.cache.iter().step_by(2);
        let capacity = match self.cache_kind {
            CacheKind::Fixed { capacity, .. } => Some(capacity),
            _ => None,
        };
        json!({
            "file": self.file,
            "bytes": self.bytes,
            "producer": self.producer,
            "opset": self.opset,
            "architecture": self.architecture,
            "inputs": inputs.collect::<Vec<_>>(),
            "logits": {
                "name": text(&self.logits.name),
                "type": type_name(self.logits.element),
                "columns": self.logits.columns,
                "rows": match self.logits.rows {
                    Rows::All => "all",
                    Rows::Counted => "counted",
                    Rows::Last => "last",
                },
            },
            "cache": {
                "kind": match self.cache_kind {
                    CacheKind::None => "none",
                    CacheKind::Shared => "shared",
                    CacheKind::Fixed { .. } => "fixed",
                    CacheKind::Concatenated => "concatenated",
                },
                "rollback": match (self.cache_kind, self.rollback) {
                    (CacheKind::None, _) => "rerun",
                    (_, Rollback::Shorten) => "shorten",
                    (_, Rollback::Mask) => "mask",
                    (_, Rollback::Compact) => "compact",
                },
                "layers": self.layers(),
                "heads": caches.clone().map(|cache| cache.heads).collect::<Vec<_>>(),
                "head_size": caches.map(|cache| cache.head_size).collect::<Vec<_>>(),
                "type": self.cache.first().map(|cache| type_name(cache.element)),
                "capacity": capacity,
                "bytes_per_token": self.cache_bytes_per_token(),
            },
            "context_length": self.context_length,
            "stop_tokens": self.stop_tokens,
            "scoring": match self.scoring {
                Scoring::Parallel => "parallel",
                Scoring::FirstPass => "first_pass",
                Scoring::OneByOne => "one_by_one",
            },
            "warnings": self.warnings,
        })
    }

    /// Whether a pass takes one token only.
    pub fn single_tokens(&self) -> bool {
        single_tokens(&self.inputs)
    }

    /// Whether a role has an input.
    pub fn takes(&self, role: Role) -> bool {
        self.inputs.iter().any(|input| input.role == role)
    }

    /// Layers with a cache.
    pub fn layers(&self) -> usize {
        self.cache.iter().map(|tensor| tensor.layer).collect::<BTreeSet<_>>().len()
    }

    /// Bytes that a token takes in the caches of a sequence.
    pub fn cache_bytes_per_token(&self) -> usize {
        let copies = match self.cache_kind {
            CacheKind::Concatenated | CacheKind::Fixed { in_place: false, .. } => 2,
            _ => 1,
        };
        copies * self.cache.iter().map(CacheTensor::bytes).sum::<usize>()
    }
}

fn type_name(element: TensorElementType) -> &'static str {
    match element {
        TensorElementType::Float32 => "float32",
        TensorElementType::Float16 => "float16",
        TensorElementType::Bfloat16 => "bfloat16",
        TensorElementType::Int64 => "int64",
        TensorElementType::Int32 => "int32",
        TensorElementType::Bool => "bool",
        _ => "other",
    }
}

fn single_tokens(inputs: &[Input]) -> bool {
    inputs.iter().any(|input| input.role == Role::Tokens && input.length == Some(1))
}

fn c_name(name: &str) -> CString {
    CString::new(name).expect("names come from C strings")
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

    #[test]
    fn caches_by_name() {
        for (name, expected) in [
            ("past_key_values.3.key", Some((3, true))),
            ("past_key_values.12.value", Some((12, false))),
            ("present.3.key", Some((3, true))),
            ("past_key_values_0_value", Some((0, false))),
            ("past_key_7", Some((7, true))),
            ("present_value_7", Some((7, false))),
            ("k_cache_2", Some((2, true))),
            ("v_cache_2_out", Some((2, false))),
            ("past_key_values.3.decoder.key", Some((3, true))),
            ("past.3", None),
            ("past_key_values.3.key_value", None),
            ("attention_mask", None),
            ("position_ids", None),
        ] {
            assert_eq!(cache_name(name), expected, "{name}");
        }
    }

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
