//! An exported language model: its inputs and outputs, their meaning, and how its cache works.

mod branches;
pub(crate) mod companions;
mod fused;
pub(crate) mod graph;
pub(crate) mod pack;
pub(crate) mod paged;
pub(crate) mod parts;
mod product;
mod proto;
pub(crate) mod recognise;
pub(crate) mod shapes;
mod unpaged;
mod wire;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::PathBuf;

use ort::value::TensorElementType;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// The properties of an export. [`recognise`] finds them, and trial passes refine them.
#[derive(Debug, Clone)]
pub struct Export {
    /// The `.onnx` file.
    pub file: PathBuf,
    /// The `tokenizer.json` of the model.
    pub tokenizer: Option<PathBuf>,
    /// The program that exported it, and its version.
    pub producer: String,
    /// The architecture, such as `llama`, if a configuration names it.
    pub architecture: Option<String>,
    /// The version of the standard operators.
    pub opset: i64,
    /// The inputs, without the cache.
    pub inputs: Vec<Input>,
    /// The output of logits.
    pub logits: Logits,
    /// How the cache is kept.
    pub cache_kind: CacheKind,
    /// How tokens are rolled back.
    pub rollback: Rollback,
    /// The tensors of the cache, layer by layer.
    pub cache: Vec<CacheTensor>,
    /// Query heads of a layer, as far as known. Attention scores take memory in proportion.
    pub heads: usize,
    /// The least capacity of a shared cache, in tokens: the longest window of operators that keep a window only.
    pub min_capacity: usize,
    /// The most tokens of a sequence.
    pub context_length: usize,
    /// Upper limits of the context length in tokens, each with its reason.
    pub limits: Vec<(usize, &'static str)>,
    /// End-of-sequence tokens.
    pub stop_tokens: Vec<i32>,
    /// Bytes of the model's files. The cost of a pass is about proportional.
    pub bytes: u64,
    /// How several positions are scored.
    pub scoring: Scoring,
    /// Whether 4-bit products round activations, differently for single positions (`accuracy_level` 4).
    pub rounds_activations: bool,
    /// Whether something is computed in half precision, or quantised other than weights.
    pub is_coarse: bool,
    /// Rows of the embedding table, if known.
    pub embedded_tokens: Option<usize>,
    /// Whether a configuration shows that its attention has no windows.
    pub attends_to_all: bool,
    /// Warnings for the user.
    pub warnings: Vec<String>,
}

/// An input that is filled for each pass.
#[derive(Debug, Clone)]
pub struct Input {
    /// Its name.
    pub name: CString,
    /// Its meaning.
    pub role: Role,
    /// The type of its elements.
    pub element: TensorElementType,
    /// Its number of dimensions.
    pub rank: usize,
    /// The length of its last dimension, if the export fixes it.
    pub length: Option<usize>,
}

/// The meaning of an input. A pass runs `w` new tokens on top of a cache of `p` earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// The new tokens, `[1, w]`.
    Tokens,
    /// 1 for each live entry of the cache and each new token, `[1, p + w]`.
    Mask,
    /// Positions of the new tokens in the text, `[1, w]`.
    Positions,
    /// Indices of the new tokens in the cache, `[w]`.
    CachePositions,
    /// The number of last positions that get logits.
    LogitsToKeep,
    /// Segments, all 0, `[1, w]`.
    TokenTypes,
    /// `p`, one number or `[1]`.
    PastLength,
    /// `p + w`, one number or `[1]`.
    TotalLength,
    /// `p + w - 1`, one number or `[1]`.
    LastPosition,
    /// Whether `p` is not 0, one boolean or `[1]`. It selects the branch of a merged decoder that reads the cache.
    HasPast,
}

impl Role {
    /// The meaning of an input by its name.
    pub fn of(name: &str) -> Option<Role> {
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
            "use_cache_branch" => Role::HasPast,
            _ => return None,
        })
    }

    /// Whether it has one number for each token. Other inputs are single numbers, which shapes in a graph may depend
    /// on.
    pub fn is_sequence(self) -> bool {
        matches!(self, Role::Tokens | Role::Mask | Role::Positions | Role::CachePositions | Role::TokenTypes)
    }

    /// The ranks that such an input may have.
    pub fn ranks(self) -> &'static [usize] {
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
    /// The type of its elements.
    pub element: TensorElementType,
    /// Its number of dimensions: 3, or 2 without a dimension of positions.
    pub rank: usize,
    /// Its number of columns. 0 until a trial pass has shown it, if the graph does not declare it.
    pub columns: usize,
    /// The positions that get logits.
    pub rows: GivenRows,
}

/// The positions of a pass that an export gives logits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenRows {
    /// All positions.
    All,
    /// As many last positions as [`Role::LogitsToKeep`] says.
    Counted,
    /// The last position.
    Last,
}

/// How several positions are scored. The fastest way comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scoring {
    /// In one pass.
    Parallel,
    /// In one pass if the cache is empty, otherwise one by one.
    FirstPass,
    /// In one pass for each position, so drafts cannot change scores.
    OneByOne,
}

impl Scoring {
    /// Its name in `cos_engine_describe`.
    pub fn name(self) -> &'static str {
        match self {
            Scoring::Parallel => "parallel",
            Scoring::FirstPass => "first_pass",
            Scoring::OneByOne => "one_by_one",
        }
    }
}

/// How an export keeps its cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheKind {
    /// There is no cache. Each pass runs the whole sequence.
    None,
    /// Past and present are one buffer of any capacity, and new entries are written into it.
    Shared,
    /// The export fixes the capacity, and new entries are written at their index.
    Fixed {
        /// The capacity in tokens.
        capacity: usize,
        /// Whether past and present may share a buffer.
        in_place: bool,
    },
    /// The present is the past with the new entries appended.
    Concatenated,
}

/// How tokens are rolled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rollback {
    /// The length becomes shorter, and the next pass overwrites the entries beyond it.
    Shorten,
    /// The entries stay in the cache with a 0 in the attention mask, and new tokens get explicit positions. The cache
    /// is compacted when too many entries are dead.
    Mask,
    /// The cache is compacted before the next pass.
    Compact,
}

impl Rollback {
    /// Its name in `cos_engine_describe`.
    pub fn name(self) -> &'static str {
        match self {
            Rollback::Shorten => "shorten",
            Rollback::Mask => "mask",
            Rollback::Compact => "compact",
        }
    }
}

/// What a tensor of the cache holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheContent {
    /// The keys of a layer.
    Keys,
    /// The values of a layer.
    Values,
    /// The keys and the values of a layer.
    Both,
}

/// The most dimensions of a tensor of the cache.
pub const MAX_RANK: usize = 5;

/// One tensor of the cache, such as `[1, heads, tokens, head_size]`.
#[derive(Debug, Clone)]
pub struct CacheTensor {
    /// The name of the input.
    pub past: CString,
    /// The name of the output.
    pub present: CString,
    /// The layer.
    pub layer: usize,
    /// What it holds of the layer.
    pub holds: CacheContent,
    /// The number of key or value heads. 1 if one dimension holds all heads.
    pub heads: usize,
    /// The size of a head.
    pub head_size: usize,
    /// The type of its elements.
    pub element: TensorElementType,
    /// The sizes of its dimensions. That of tokens has no meaning.
    pub dimensions: Vec<usize>,
    /// The index of the dimension of tokens.
    pub axis: usize,
}

impl CacheTensor {
    /// Its number of dimensions.
    pub fn rank(&self) -> usize {
        self.dimensions.len()
    }

    /// The tensor's shape for a number of tokens, in its first [`CacheTensor::rank`] dimensions.
    pub fn shape(&self, tokens: usize) -> [i64; MAX_RANK] {
        let mut shape = [1; MAX_RANK];
        shape.iter_mut().zip(&self.dimensions).for_each(|(size, &dimension)| *size = dimension as i64);
        shape[self.axis] = tokens as i64;
        shape
    }

    /// The number of runs of entries, and the bytes of one token in each. A run has all tokens of a head, for example.
    pub fn layout(&self) -> (usize, usize) {
        let (before, behind) = (&self.dimensions[..self.axis], &self.dimensions[self.axis + 1..]);
        let size = element_bytes(self.element).unwrap_or(4);
        (before.iter().product(), behind.iter().product::<usize>() * size)
    }

    /// Bytes for each token.
    pub fn bytes(&self) -> usize {
        let (runs, bytes) = self.layout();
        runs * bytes
    }
}

/// The size in bytes of an element type that a cache may have. CoS copies such elements but never reads them.
pub fn element_bytes(element: TensorElementType) -> Option<usize> {
    match element {
        TensorElementType::Int8 | TensorElementType::Uint8 => Some(1),
        TensorElementType::Float8E4M3FN | TensorElementType::Float8E5M2 => Some(1),
        TensorElementType::Float32 => Some(4),
        TensorElementType::Float16 | TensorElementType::Bfloat16 => Some(2),
        _ => None,
    }
}

/// Whether logits of this type can be read.
pub fn is_score(element: TensorElementType) -> bool {
    matches!(element, TensorElementType::Float32 | TensorElementType::Float16 | TensorElementType::Bfloat16)
}

impl Export {
    /// Set columns and rows of the logits from their shape in a trial pass of `width` tokens.
    pub fn see_logits(&mut self, shape: &[i64], width: usize) -> Result<()> {
        let unexpected = || {
            Error::Model(format!(
                "{}: the logits of {width} tokens have the shape {shape:?}, not [1, {width}, vocabulary]; export it in \
                 another way",
                self.file.display()
            ))
        };
        let (columns, rows) = match *shape {
            [1, rows, columns] if columns > 0 => (columns as usize, rows as usize),
            [1, columns] if columns > 0 => (columns as usize, 1),
            _ => return Err(unexpected()),
        };
        self.logits.rows = match rows {
            _ if self.inputs.iter().any(|input| input.role == Role::LogitsToKeep) => GivenRows::Counted,
            rows if rows == width && shape.len() == 3 => GivenRows::All,
            1 => GivenRows::Last,
            _ => return Err(unexpected()),
        };
        if let Some(tokens) = self.embedded_tokens.filter(|tokens| columns < tokens / 2) {
            return Err(Error::Model(format!(
                "{}: not a language model: it gives {columns} scores where its vocabulary has {tokens} tokens, as \
                 classifiers, rerankers and taggers do; export a model for text generation (ForCausalLM)",
                self.file.display()
            )));
        }
        self.logits.columns = columns;
        if self.logits.rows == GivenRows::Last {
            self.warnings.push(
                "it gives logits for the last position only, so drafts are scored one position at a time, and \
                 speculation saves nothing; export it with logits for all positions"
                    .into(),
            );
        }
        Ok(())
    }

    /// Set the context length in tokens. A length beyond the limits of the export is a `Config` error.
    pub fn limit_context(&mut self, length: usize) -> Result<()> {
        if let Some((limit, why)) = self.limits.iter().find(|(limit, _)| length > *limit) {
            return Err(Error::Config(format!(
                "context_length is {length}, but {} cannot go beyond {limit} tokens: {why}",
                self.file.display()
            )));
        }
        self.context_length = length;
        self.warnings.retain(|warning| !warning.starts_with("the context "));
        Ok(())
    }

    /// The properties as JSON. `cos_engine_describe` documents them.
    pub fn describe(&self) -> Value {
        let text = |name: &CString| name.to_string_lossy().into_owned();
        let inputs =
            self.inputs.iter().map(|input| json!({ "name": text(&input.name), "type": type_name(input.element) }));
        let caches = self.cache.chunk_by(|one, other| one.layer == other.layer).map(|layer| &layer[0]);
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
                    GivenRows::All => "all",
                    GivenRows::Counted => "counted",
                    GivenRows::Last => "last",
                },
            },
            "cache": {
                "kind": match self.cache_kind {
                    CacheKind::None => "none",
                    CacheKind::Shared => "shared",
                    CacheKind::Fixed { .. } => "fixed",
                    CacheKind::Concatenated => "concatenated",
                },
                "rollback": if self.cache_kind == CacheKind::None { "rerun" } else { self.rollback.name() },
                "layers": self.layers(),
                "heads": caches.clone().map(|cache| cache.heads).collect::<Vec<_>>(),
                "head_size": caches.map(|cache| cache.head_size).collect::<Vec<_>>(),
                "type": self.cache.first().map(|cache| type_name(cache.element)),
                "capacity": capacity,
                "bytes_per_token": self.cache_bytes_per_token(),
            },
            "context_length": self.context_length,
            "stop_tokens": self.stop_tokens,
            "scoring": self.scoring.name(),
            "warnings": self.warnings,
        })
    }

    /// The reason why passes cannot be captured as CUDA graphs. `None` if they can.
    ///
    /// Between launches of a graph, only values in buffers that stay in place may change.
    pub fn no_graphs(&self) -> Option<&'static str> {
        if !self.is_in_place() {
            return Some("its cache moves with every pass");
        }
        if self.inputs.iter().any(|input| !input.role.is_sequence()) {
            return Some("it takes lengths as single numbers, which a graph would fix");
        }
        (!self.takes(Role::Mask)).then_some("it has no attention mask to tell lengths by")
    }

    /// Whether passes write to the cache in place.
    pub fn is_in_place(&self) -> bool {
        matches!(self.cache_kind, CacheKind::Shared | CacheKind::Fixed { in_place: true, .. })
    }

    /// Whether a pass can run one token only.
    pub fn single_tokens(&self) -> bool {
        single_tokens(&self.inputs)
    }

    /// Whether there is an input of this role.
    pub fn takes(&self, role: Role) -> bool {
        self.inputs.iter().any(|input| input.role == role)
    }

    /// Whether logits or caches are bfloat16.
    pub fn is_bfloat16(&self) -> bool {
        let elements = self.cache.iter().map(|tensor| tensor.element).chain([self.logits.element]);
        elements.into_iter().any(|element| element == TensorElementType::Bfloat16)
    }

    /// Whether the cache holds numbers of few bits, with scales.
    pub fn has_rounded_cache(&self) -> bool {
        self.cache.iter().any(|tensor| element_bytes(tensor.element) == Some(1))
    }

    /// The number of layers with a cache.
    pub fn layers(&self) -> usize {
        self.cache.iter().map(|tensor| tensor.layer).collect::<BTreeSet<_>>().len()
    }

    /// Bytes of a token in the cache of a sequence, past and present.
    pub fn cache_bytes_per_token(&self) -> usize {
        let copies = match self.cache_kind {
            CacheKind::Concatenated | CacheKind::Fixed { in_place: false, .. } => 2,
            _ => 1,
        };
        copies * self.cache.iter().map(CacheTensor::bytes).sum::<usize>()
    }
}

/// The name of an element type in `cos_engine_describe`.
fn type_name(element: TensorElementType) -> &'static str {
    match element {
        TensorElementType::Float32 => "float32",
        TensorElementType::Float16 => "float16",
        TensorElementType::Bfloat16 => "bfloat16",
        TensorElementType::Int64 => "int64",
        TensorElementType::Int32 => "int32",
        TensorElementType::Bool => "bool",
        TensorElementType::Int8 => "int8",
        TensorElementType::Uint8 => "uint8",
        TensorElementType::Float8E4M3FN => "float8e4m3fn",
        TensorElementType::Float8E5M2 => "float8e5m2",
        _ => "other",
    }
}

/// Whether a pass can run one token only.
pub(super) fn single_tokens(inputs: &[Input]) -> bool {
    inputs.iter().any(|input| input.role == Role::Tokens && input.length == Some(1))
}
