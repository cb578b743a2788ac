//! Recognises an exported language model: which inputs and outputs it has, and what they mean.
//!
//! What counts are names, ranks, types and dimensions of inputs and outputs, and the operators that write the cache. A
//! `genai_config.json` or `config.json` beside the model is used where it is there: for names, sizes that the graph
//! leaves open, the context length, stop tokens, and whether there are sliding windows.

use std::ffi::CString;
use std::path::Path;

use ort::value::{Outlet, TensorElementType, ValueType};
use serde_json::Value;

use super::beside::Beside;
use super::export::{
    CacheKind, CacheTensor, Export, Input, Logits, Role, Rollback, Rows, Scoring, element_bytes, single_tokens,
};
use super::graph::{Graph, Node};
use crate::error::{Error, Result};

/// Context length of an export that says nothing about it.
const UNKNOWN_CONTEXT: usize = 1 << 20;

/// Recognise an export from its inputs, outputs and operators, and the files beside it.
pub fn read_export(file: &Path, graph: &Graph, inputs: &[Outlet], outputs: &[Outlet]) -> Result<Export> {
    Reader { file, graph, inputs, outputs, beside: Beside::of(file)? }.read()
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
                None if cache_name(input.name).is_some() && (3..=4).contains(&input.shape.len()) => pasts.push(input),
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
        if self.beside.hub("attn_logit_softcapping").is_some() && !self.caps_attention() {
            warnings.push(
                "the model caps the scores of its attention (attn_logit_softcapping), but the graph does not, so its \
                 logits are not quite those of the model; export it with attn_implementation=\"eager\""
                    .into(),
            );
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
        let rank = past.shape.len();
        if present.element != past.element || present.shape.len() != rank {
            return Err(self.unsupported(format_args!(
                "{name} is {} of rank {rank}, but {} is {} of rank {}, so it cannot come next",
                past.element,
                present.name,
                present.element,
                present.shape.len()
            )));
        }
        if past.fixed(0).is_some_and(|batch| batch != 1) {
            return Err(self.unsupported(format_args!("{name} has a fixed batch of more than 1")));
        }
        let writer = self.graph.origin(present.name);
        let configured_heads = self.beside.size("/model/decoder/num_key_value_heads", "num_key_value_heads");
        let is_time = |axis: usize| {
            let symbol = past.symbols.get(axis).map_or("", String::as_str);
            ["seq", "past", "length", "time"].iter().any(|word| symbol.contains(word))
        };
        let scatters_first =
            writer.is_some_and(|node| node.operator == "TensorScatter" && node.integer("axis") == Some(1));
        let tokens_first = match (past.fixed(1), past.fixed(2)) {
            _ if rank == 3 => true,
            (None, Some(_)) => true,
            (Some(_), None) => false,
            (Some(first), Some(second)) => scatters_first || (configured_heads == Some(second) && second != first),
            (None, None) => is_time(1) && !is_time(2),
        };
        let unknown = |what: &str, axis: usize| {
            self.refuse(format_args!(
                "{what} (axis {axis} of {name}) is not known; put the genai_config.json or config.json of the export beside it"
            ))
        };
        let (heads, head_size) = if rank == 3 {
            // all heads in one dimension
            (1, past.fixed(2).ok_or_else(|| unknown("the size of all heads", 2))?)
        } else {
            let heads_axis = if tokens_first { 2 } else { 1 };
            let by_operator = || writer?.integer("kv_num_heads").filter(|&heads| heads > 0).map(|heads| heads as usize);
            let heads = past.fixed(heads_axis).or_else(by_operator).or(configured_heads);
            let heads = heads.or_else(|| self.beside.size("/model/decoder/num_attention_heads", "num_attention_heads"));
            let head_size = past.fixed(3).or_else(|| self.beside.size("/model/decoder/head_size", "head_dim"));
            let head_size = head_size.or_else(|| self.head_size_by_projection(writer?));
            (
                heads.ok_or_else(|| unknown("the number of heads", heads_axis))?,
                head_size.ok_or_else(|| unknown("the size of a head", 3))?,
            )
        };
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
        let element = past.element;
        let (past, present) = (c_name(name), c_name(present.name));
        Ok((CacheTensor { past, present, layer, rank, heads, head_size, element, tokens_first }, kind))
    }

    /// Whether the scores of attentions go through a tanh.
    fn caps_attention(&self) -> bool {
        let fused = ["GroupQueryAttention", "Attention"].into_iter().flat_map(|operator| self.graph.all(operator));
        fused.clone().any(|node| node.fraction("softcap") > Some(0.0))
            || self.graph.all("Softmax").any(|node| self.graph.goes_through(node, "Tanh"))
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
            return self.unsupported(format_args!("its cache {name} has {} dimensions, not 3 or 4", input.shape.len()));
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
fn c_name(name: &str) -> CString {
    CString::new(name).expect("names come from C strings")
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
}
