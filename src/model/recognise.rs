//! Recognises an exported language model: which inputs and outputs it has, and what they mean.
//!
//! What counts are names, ranks, types and dimensions of inputs and outputs, and the operators that write the cache. A
//! `genai_config.json` or `config.json` beside the model is used where it is there: for names, sizes that the graph
//! leaves open, the context length, stop tokens, and whether there are sliding windows.

use std::ffi::CString;
use std::path::Path;

use ort::value::{Outlet, TensorElementType};
use serde_json::Value;

use super::beside::Beside;
use super::export::{
    CacheKind, CacheTensor, Export, Input, Logits, Role, Rollback, Rows, Scoring, element_bytes, single_tokens,
};
use super::graph::{Graph, Node};
use crate::error::{Error, Result};

/// More than any model has heads, or elements in all of them.
const MAX_SIZE: usize = 1 << 20;

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
}

impl<'a> Tensor<'a> {
    fn of(outlet: &'a Outlet) -> Option<Self> {
        let value = outlet.dtype();
        Some(Tensor { name: outlet.name(), element: value.tensor_type()?, shape: value.tensor_shape()?.to_vec() })
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
                None if input.name.contains("encoder") => return Err(self.unknown(&input)),
                None if cache_name(input.name).is_some() && (3..=4).contains(&input.shape.len()) => pasts.push(input),
                None => return Err(self.unknown(&input)),
            }
        }
        if !inputs.iter().any(|input| input.role == Role::Tokens) {
            return Err(self.refuse("not a language model, it has no input input_ids"));
        }
        let logits = self.logits()?;
        let (cache, cache_kind) = self.cache(&pasts)?;
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
                if self.beside.attends_to_all() == Some(true)
                    && has(Role::Mask)
                    && has(Role::Positions)
                    && !dynamic =>
            {
                Rollback::Mask
            }
            CacheKind::Concatenated => Rollback::Compact,
            _ => Rollback::Shorten,
        };

        let limits = self.limits(cache_kind);
        let keys = ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"];
        let configured = keys.iter().find_map(|key| self.beside.size("/model/context_length", key));
        let limit = limits.iter().min_by_key(|(length, _)| *length);
        let context_length = match (configured, limit) {
            (Some(configured), Some((limit, why))) if *limit < configured => {
                warnings.push(format!("the context ends at {limit} tokens rather than {configured}: {why}"));
                *limit
            }
            (Some(configured), _) => configured,
            (None, Some((limit, _))) => *limit,
            (None, None) => {
                warnings.push(
                    "the context length is not known; put the export's config.json beside it or set context_length"
                        .into(),
                );
                UNKNOWN_CONTEXT
            }
        };
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
                "activations are quantised with one scale for all positions of a pass (DynamicQuantizeLinear): scoring \
                 several at once is not scoring one by one, which is what is done unless \"scoring\" says otherwise, and \
                 then speculation saves nothing; export with weight-only quantisation"
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
        let heads = self.graph.all("GroupQueryAttention").filter_map(|node| node.integer("num_heads")).max();
        let heads = heads.and_then(|heads| usize::try_from(heads).ok());
        let configured = || self.beside.size("/model/decoder/num_attention_heads", "num_attention_heads");
        let cached = || cache.iter().map(|tensor| tensor.heads).max();
        let heads = heads.or_else(configured).or_else(cached).unwrap_or(1);
        Ok(Export {
            heads,
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
            min_capacity: self
                .windows()
                .filter(|(node, _)| node.integer("sliding_window_cache") == Some(1))
                .map(|(_, window)| window)
                .max()
                .unwrap_or(0),
            context_length,
            limits,
            stop_tokens: self.beside.stop_tokens(),
            bytes: self.bytes(),
            scoring,
            rounds_activations: self.graph.all("MatMulNBits").any(|node| node.integer("accuracy_level") == Some(4)),
            warnings,
        })
    }

    /// The cache, layer by layer, keys first, and how it is kept.
    fn cache(&self, pasts: &[Tensor]) -> Result<(Vec<CacheTensor>, CacheKind)> {
        let tensors = pasts.iter().map(|past| Ok((cache_name(past.name), self.cache_tensor(past)?)));
        let mut tensors = tensors.collect::<Result<Vec<_>>>()?;
        tensors.sort_by_key(|(identity, _)| identity.map(|(layer, key)| (layer, !key)));
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let [one, other] = [0, 1].map(|index| &pair[index].1.0.past);
            return Err(self.unsupported(format_args!("its caches {one:?} and {other:?} look like the same one")));
        }
        let (tensors, kinds): (Vec<CacheTensor>, Vec<CacheKind>) = tensors.into_iter().map(|(_, found)| found).unzip();
        let kind = kinds.first().copied().unwrap_or(CacheKind::None);
        if let Some(index) = kinds.iter().position(|&other| other != kind) {
            return Err(self.unsupported(format_args!(
                "its caches {:?} and {:?} work in different ways (operators or lengths differ)",
                tensors[0].past, tensors[index].past
            )));
        }
        Ok((tensors, kind))
    }

    /// Attentions with a sliding window, and its length.
    fn windows(&self) -> impl Iterator<Item = (&Node, usize)> {
        self.graph.all("GroupQueryAttention").filter_map(|node| {
            let window = node.integer("local_window_size").filter(|&window| window > 0)?;
            Some((node, window as usize))
        })
    }

    /// Context lengths beyond which this is no longer the model, and why.
    fn limits(&self, cache_kind: CacheKind) -> Vec<(usize, &'static str)> {
        let mut limits = Vec::new();
        if let CacheKind::Fixed { capacity, .. } = cache_kind {
            limits.push((capacity, "the cache holds no more"));
        }
        if let Some(rows) = self.table_rows() {
            limits.push((rows, "the graph has no further positions"));
        }
        if let Some(window) = self.beside.window()
            && self.graph.producer.starts_with("onnxruntime-genai")
            && self.windows().next().is_none()
        {
            // seen of the builder (0.18) for Mistral: its attention is over everything
            limits.push((window, "the model has sliding windows of this length, but the graph has none"));
        }
        if let Some(trained) = self.beside.rescaled_behind() {
            // Those whose keys are cached already are, too.
            limits.push((trained, "behind it all positions are scaled anew (longrope), which a cache cannot follow"));
        }
        limits
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
        let named = self.beside.name("outputs", "logits").unwrap_or("logits");
        let alike: Vec<&Outlet> = self.outputs.iter().filter(|o| o.name().to_lowercase().contains("logits")).collect();
        let exact = self.outputs.iter().find(|output| output.name() == named);
        let logits = match (exact, alike.as_slice()) {
            (Some(output), _) => output,
            (None, [output]) => output,
            (None, []) => return Err(self.refuse("not a language model, it has no output logits")),
            (None, [one, other, ..]) => {
                return Err(self.unsupported(format_args!(
                    "its outputs {} and {} could both be the logits; call the right one logits",
                    one.name(),
                    other.name()
                )));
            }
        };
        let logits = Tensor::of(logits).ok_or_else(|| self.refuse("its logits are no tensor"))?;
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
        let scatters_first =
            writer.is_some_and(|node| node.operator == "TensorScatter" && node.integer("axis") == Some(1));
        let tokens_first = rank == 3 || scatters_first || (past.fixed(1).is_none() && past.fixed(2).is_some());
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
            let heads = past.fixed(heads_axis).or_else(by_operator);
            let heads = heads.or_else(|| self.beside.size("/model/decoder/num_key_value_heads", "num_key_value_heads"));
            let heads = heads.or_else(|| self.beside.size("/model/decoder/num_attention_heads", "num_attention_heads"));
            let head_size = past.fixed(3).or_else(|| self.beside.size("/model/decoder/head_size", "head_dim"));
            let head_size = head_size.or_else(|| self.head_size_by_projection(writer?));
            (
                heads.ok_or_else(|| unknown("the number of heads", heads_axis))?,
                head_size.ok_or_else(|| unknown("the size of a head", 3))?,
            )
        };
        if !(1..=MAX_SIZE).contains(&heads) || !(1..=MAX_SIZE).contains(&head_size) {
            return Err(self.refuse(format_args!("{name} cannot have {heads} heads of size {head_size}")));
        }
        let time = if tokens_first { 1 } else { 2 };
        let kind = match (past.fixed(time), writer.map_or("", |node| node.operator.as_str())) {
            (Some(capacity), _) => {
                let direct = self.graph.readers(name).count() == 1;
                CacheKind::Fixed { capacity, in_place: direct && present.fixed(time) == Some(capacity) }
            }
            (None, "GroupQueryAttention" | "SparseAttention" | "TensorScatter") => CacheKind::Shared,
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

    /// The rows of the smallest table of positions in the graph.
    fn table_rows(&self) -> Option<usize> {
        let rotary = self.graph.all("GroupQueryAttention").filter_map(|node| node.inputs.get(7));
        let rotary = rotary.chain(self.graph.all("RotaryEmbedding").filter_map(|node| node.inputs.get(2)));
        let rotary = rotary.filter_map(|table| self.graph.rows(table));
        let learned = self.graph.weights().filter(|(name, shape)| name.contains("wpe") && shape.len() == 2);
        rotary.chain(learned.map(|(_, shape)| shape[0] as usize)).min()
    }

    /// Bytes of the file and of the weights beside it.
    fn bytes(&self) -> u64 {
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let external = self.graph.external_files.keys().map(|name| folder.join(name));
        let files = std::iter::once(self.file.to_path_buf()).chain(external);
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    fn unknown(&self, input: &Tensor) -> Error {
        let name = input.name;
        let lower = name.to_lowercase();
        if self.inputs.iter().all(|outlet| self.role(outlet.name()) != Some(Role::Tokens)) {
            return self.refuse("not a language model, it has no input input_ids");
        }
        if lower.contains("encoder") {
            return self.unsupported(format_args!(
                "its input {name} comes from an encoder; decoders that need none can be verified with"
            ));
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
