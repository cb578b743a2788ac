//! What an exported language model is: its inputs and outputs, and what they mean.

pub(crate) mod companions;
pub(crate) mod graph;
mod proto;
pub(crate) mod recognise;
pub(crate) mod shapes;

use std::collections::BTreeSet;
use std::ffi::CString;
use std::path::PathBuf;

use ort::value::TensorElementType;
use serde_json::{Value, json};

use crate::error::{Error, Result};

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
    /// Heads that attend in a layer, as far as is known: what the scores of attention take memory by.
    pub heads: usize,
    /// Least tokens that a shared cache must have room for: the longest window of operators that may keep no more.
    pub min_capacity: usize,
    /// Most tokens of a sequence.
    pub context_length: usize,
    /// What it cannot exceed, and why.
    pub limits: Vec<(usize, &'static str)>,
    /// End-of-sequence tokens.
    pub stop_tokens: Vec<i32>,
    /// Bytes of the model's files, a measure of what a pass costs.
    pub bytes: u64,
    /// How several positions are scored.
    pub scoring: Scoring,
    /// Whether 4-bit products round activations, and do so otherwise for single positions (`accuracy_level` 4).
    pub rounds_activations: bool,
    /// Whether something is computed in half precision, or kept in eight bits in the cache.
    pub is_coarse: bool,
    /// Rows of the table that tokens are looked up in, as far as is known.
    pub embedded_tokens: Option<usize>,
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
    /// Whether `p` is not 0, one truth or `[1]`: a decoder merged of two graphs takes that with a cache if so.
    HasPast,
}

impl Role {
    /// The meaning of an input that is called so.
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

    /// Whether it has a number for each token, and not one of which a graph may depend.
    pub fn is_sequence(self) -> bool {
        matches!(self, Role::Tokens | Role::Mask | Role::Positions | Role::CachePositions | Role::TokenTypes)
    }

    /// Ranks that this input may have.
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
    /// Type of its elements.
    pub element: TensorElementType,
    /// Its number of dimensions: 3, or 2 without one for positions.
    pub rank: usize,
    /// Number of columns; 0 until a trial run has shown what the graph leaves open.
    pub columns: usize,
    /// Which positions get logits.
    pub rows: GivenRows,
}

/// Which positions of a pass get logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GivenRows {
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

impl Scoring {
    /// What descriptions call it.
    pub fn name(self) -> &'static str {
        match self {
            Scoring::Parallel => "parallel",
            Scoring::FirstPass => "first_pass",
            Scoring::OneByOne => "one_by_one",
        }
    }
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

impl Rollback {
    /// What descriptions call it.
    pub fn name(self) -> &'static str {
        match self {
            Rollback::Shorten => "shorten",
            Rollback::Mask => "mask",
            Rollback::Compact => "compact",
        }
    }
}

/// What a tensor of the cache holds of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CacheContent {
    /// The keys.
    Keys,
    /// The values.
    Values,
    /// Both.
    Both,
}

/// The most dimensions of a tensor of the cache.
pub const MAX_RANK: usize = 5;

/// One tensor of the cache, such as `[1, heads, tokens, head_size]`.
#[derive(Debug, Clone)]
pub struct CacheTensor {
    /// The input's name.
    pub past: CString,
    /// The output's name.
    pub present: CString,
    /// The layer.
    pub layer: usize,
    /// What it holds of it.
    pub holds: CacheContent,
    /// Heads of keys or values; 1 where one dimension holds all of them.
    pub heads: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// Their type.
    pub element: TensorElementType,
    /// Its dimensions, apart from that of tokens.
    pub dimensions: Vec<usize>,
    /// Which of them is that of tokens.
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

    /// How many runs of entries the tensor has, and the bytes that one token takes in each.
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

/// Bytes of an element that caches may be made of. What they mean is no matter, as only the graph reads them.
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
    /// Take over what a trial run of `width` tokens has shown: the shape of the logits.
    pub fn see_logits(&mut self, shape: &[i64], width: usize) -> Result<()> {
        let unexpected = || Error::Model(format!("{}: its logits have the shape {shape:?}", self.file.display()));
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
                "it gives logits for the last position only, so drafts are scored one position at a time and speculation \
                 saves nothing; export it with logits for all positions"
                    .into(),
            );
        }
        Ok(())
    }

    /// Set the context length; one that the export cannot hold is refused.
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

    /// What was recognised, for people who look into an engine. Documented with `cos_engine_describe`.
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

    /// Why a pass on a GPU cannot be captured and run again, if it cannot: all that changes between passes of a width must be
    /// numbers at places that stay.
    pub fn no_graphs(&self) -> Option<&'static str> {
        if !self.is_in_place() {
            return Some("its cache moves with every pass");
        }
        if self.inputs.iter().any(|input| !input.role.is_sequence()) {
            return Some("it takes lengths as numbers, which a graph would keep");
        }
        (!self.takes(Role::Mask)).then_some("it has no attention mask to tell lengths by")
    }

    /// Whether passes write to the cache where it is.
    pub fn is_in_place(&self) -> bool {
        matches!(self.cache_kind, CacheKind::Shared | CacheKind::Fixed { in_place: true, .. })
    }

    /// Whether a pass takes one token only.
    pub fn single_tokens(&self) -> bool {
        single_tokens(&self.inputs)
    }

    /// Whether a role has an input.
    pub fn takes(&self, role: Role) -> bool {
        self.inputs.iter().any(|input| input.role == role)
    }

    /// Whether logits or caches are bfloat16.
    pub fn is_bfloat16(&self) -> bool {
        let elements = self.cache.iter().map(|tensor| tensor.element).chain([self.logits.element]);
        elements.into_iter().any(|element| element == TensorElementType::Bfloat16)
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
        TensorElementType::Int8 => "int8",
        TensorElementType::Uint8 => "uint8",
        TensorElementType::Float8E4M3FN => "float8e4m3fn",
        TensorElementType::Float8E5M2 => "float8e5m2",
        _ => "other",
    }
}

/// Whether a pass takes one token only.
pub(super) fn single_tokens(inputs: &[Input]) -> bool {
    inputs.iter().any(|input| input.role == Role::Tokens && input.length == Some(1))
}
