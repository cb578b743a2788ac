//! Recognises an exported language model: which inputs and outputs it has, and what they mean.
//!
//! Names, ranks, types and dimensions of inputs and outputs tell, and the operators that read and write them. A
//! `genai_config.json` or `config.json` adds names, open sizes, the context length, stop tokens, and sliding windows.
//! All of these come from strangers, so every size is bounded before it is used.

mod caches;
mod positions;
mod reader;
mod roles;

use std::collections::{HashMap, HashSet};
use std::path::Path;

use ort::value::{Outlet, TensorElementType};
use serde_json::Value;

use crate::error::{Error, Result};
use crate::export::companions::Companions;
use crate::export::graph::{Graph, Node};
use crate::export::{CacheKind, CacheTensor, Export, Input, Role, Rollback, Scoring, single_tokens};
use positions::{Bound, Positions, Source};
use reader::{MAX_CONTEXT, MAX_SIZE, Port, Reader};

/// The context length of an export that names none.
const UNKNOWN_CONTEXT: usize = 1 << 20;

/// Recognise an export from its inputs, outputs and operators, and from the files in its folder.
///
/// # Errors
/// `Model` if it is invalid or not a language model, `Unsupported` if CoS cannot decode with it.
pub fn read_export(file: &Path, graph: &Graph, inputs: &[Outlet], outputs: &[Outlet]) -> Result<Export> {
    Reader { file, graph, inputs, outputs, companions: Companions::of(file)? }.read()
}

impl<'a> Reader<'a> {
    fn read(&self) -> Result<Export> {
        self.check_architecture()?;
        if let Some(other) = self.inputs.iter().find(|outlet| Port::of(outlet).is_none()) {
            return Err(self.refuse(format_args!("its input {} is not a tensor", other.name())));
        }
        let tensors = |outlets: &'a [Outlet]| outlets.iter().filter_map(Port::of).collect::<Vec<_>>();
        let (ins, outs) = (tensors(self.inputs), tensors(self.outputs));
        let pairs = self.pairs(&ins, &outs)?;
        let pasts: HashSet<&str> = pairs.iter().map(|(_, past, _)| past.name).collect();
        let presents: HashSet<&str> = pairs.iter().map(|(.., present)| present.name).collect();
        let inputs = self.fed(&ins, &pasts)?;
        let tokens = inputs.iter().find(|input| input.role == Role::Tokens);
        let embedded_tokens = tokens.and_then(|input| self.embedding(input.name.to_str().ok()?));
        let logits = self.logits(&outs, &presents, embedded_tokens)?;
        let (cache, cache_kind) = self.cache(&pairs)?;
        self.check_cache_inputs(&inputs, cache_kind)?;
        let limits = self.limits(&inputs, &cache, cache_kind);
        let (stop_tokens, mut warnings) = self.companions.stop_tokens();
        let context_length = self.context_length(&limits, &mut warnings);
        let scoring = self.scoring(&inputs, &mut warnings);
        self.add_warnings(cache_kind, &mut warnings);
        let elements = cache.iter().map(|tensor| tensor.element).chain([logits.element]);
        let is_coarse = elements.into_iter().any(|element| element != TensorElementType::Float32)
            || self.graph.is_half
            || self.has(&["QuantizeLinear", "QLinearMatMul"])
            || self.is_dynamic();
        Ok(Export {
            heads: self.heads(&cache),
            file: self.file.into(),
            tokenizer: self.companions.tokenizer.clone(),
            producer: self.graph.producer.clone(),
            architecture: self.companions.get("/model/type", "model_type").and_then(Value::as_str).map(str::to_owned),
            opset: self.graph.opset,
            rollback: self.rollback(&inputs, cache_kind),
            inputs,
            logits,
            cache_kind,
            cache,
            min_capacity: self.min_capacity()?,
            context_length,
            limits,
            stop_tokens,
            bytes: self.bytes(),
            scoring,
            rounds_activations: self.graph.all("MatMulNBits").any(|node| node.integer("accuracy_level") == Some(4)),
            is_coarse,
            embedded_tokens,
            attends_to_all: self.companions.attends_to_all() == Some(true),
            warnings,
        })
    }

    /// Check that inputs tell where new entries go, if the cache has a length of its own.
    fn check_cache_inputs(&self, inputs: &[Input], cache_kind: CacheKind) -> Result<()> {
        let has = |roles: &[Role]| inputs.iter().any(|input| roles.contains(&input.role));
        if cache_kind == CacheKind::Shared && !has(&[Role::Mask, Role::TotalLength, Role::LastPosition]) {
            return Err(self.unsupported(
                "no input tells it how much of its shared cache is filled; export it with attention_mask",
            ));
        }
        if !matches!(cache_kind, CacheKind::Fixed { .. }) {
            return Ok(());
        }
        if !has(&[Role::CachePositions, Role::PastLength, Role::TotalLength]) {
            return Err(self.unsupported(
                "its cache has a fixed length, but no input says where new entries go; export it with cache_position \
                 or write_indices",
            ));
        }
        if self.is_dynamic() {
            return Err(self.unsupported(
                "activations are quantised with one scale for a whole cache of fixed length (DynamicQuantizeLinear), \
                 so rejected tokens would still change scores; export it with weight-only quantisation",
            ));
        }
        Ok(())
    }

    fn rollback(&self, inputs: &[Input], cache_kind: CacheKind) -> Rollback {
        let has = |role: Role| inputs.iter().any(|input| input.role == role);
        match cache_kind {
            // Dead entries may stay only if nothing depends on them. Sliding windows depend on indices in the cache,
            // positions without an input on its length, and dynamic scales on all entries.
            CacheKind::Concatenated
                if self.companions.attends_to_all() == Some(true)
                    && has(Role::Mask)
                    && has(Role::Positions)
                    && !self.is_dynamic() =>
            {
                Rollback::Mask
            }
            CacheKind::Concatenated => Rollback::Compact,
            _ => Rollback::Shorten,
        }
    }

    fn context_length(&self, limits: &[(usize, &'static str)], warnings: &mut Vec<String>) -> usize {
        let keys = ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"];
        let configured = keys.iter().find_map(|key| self.companions.size("/model/context_length", key));
        let configured = configured.map(|length| length.min(MAX_CONTEXT));
        match (configured, limits.iter().min_by_key(|(length, _)| *length)) {
            (Some(configured), Some((limit, why))) if *limit < configured => {
                warnings.push(format!("the context ends at {limit} tokens rather than {configured}: {why}"));
                *limit
            }
            (Some(configured), _) => configured,
            (None, Some((limit, _))) => *limit,
            (None, None) => {
                warnings.push(
                    "the context length is not known, because no configuration names it; put the export's config.json \
                     beside it, or set context_length"
                        .into(),
                );
                UNKNOWN_CONTEXT
            }
        }
    }

    /// The fastest way of scoring that may be correct.
    fn scoring(&self, inputs: &[Input], warnings: &mut Vec<String>) -> Scoring {
        let mut scoring = Scoring::Parallel;
        if self.is_dynamic() {
            scoring = Scoring::OneByOne;
            warnings.push(
                "activations are quantised with one scale for all positions of a pass (DynamicQuantizeLinear), so \
                 scores depend on the other positions; positions are scored one by one unless \"scoring\" says \
                 otherwise, and speculation saves nothing; export it with weight-only quantisation"
                    .into(),
            );
        }
        if single_tokens(inputs) {
            scoring = Scoring::OneByOne;
            warnings.push(
                "it takes one token in a pass, so speculation saves nothing; export it with a dynamic sequence length"
                    .into(),
            );
        }
        scoring
    }

    /// Add warnings about capped attention and a missing cache.
    fn add_warnings(&self, cache_kind: CacheKind, warnings: &mut Vec<String>) {
        if self.companions.hub("attn_logit_softcapping").is_some() && !self.caps_attention() {
            warnings.push(
                "the model caps the scores of its attention (attn_logit_softcapping), but the graph does not, so its \
                 logits differ slightly from the model's; export it with attn_implementation=\"eager\""
                    .into(),
            );
        }
        if cache_kind == CacheKind::None {
            let mend = match merged_decoder(self.file) {
                Some(file) => format!("{file} beside it has one"),
                None => "export it with past".into(),
            };
            warnings.push(format!("it has no cache, so every pass runs the whole sequence; {mend}"));
        }
    }

    /// Refuse an architecture in config.json that is not a language model.
    fn check_architecture(&self) -> Result<()> {
        let named = self.companions.hub("architectures").and_then(Value::as_array).into_iter().flatten();
        let named: Vec<&str> = named.filter_map(Value::as_str).collect();
        let others = ["Classification", "ForQuestionAnswering", "ForMultipleChoice", "RewardModel"];
        let is_other = |name: &&str| others.iter().any(|other| name.ends_with(other));
        match named.first() {
            Some(name) if named.iter().all(is_other) => Err(self.refuse(format_args!(
                "not a language model: config.json says that it is a {name}, and classifiers, rerankers and taggers do \
                 not score tokens; export a model for text generation (ForCausalLM)"
            ))),
            _ => Ok(()),
        }
    }

    /// The inputs other than the cache. An input without a known meaning is an error.
    fn fed(&self, inputs: &[Port<'a>], pasts: &HashSet<&str>) -> Result<Vec<Input>> {
        let (mut named, mut unnamed) = (Vec::new(), Vec::new());
        for input in inputs.iter().filter(|input| !pasts.contains(input.name)) {
            match self.role(input.name) {
                Some(role) => named.push((input, role)),
                None => unnamed.push(input),
            }
        }
        let roles: Vec<Role> = named.iter().map(|(_, role)| *role).collect();
        let by_graph = if unnamed.is_empty() { HashMap::new() } else { self.roles_by_graph(&unnamed, &roles) };
        if !roles.iter().chain(by_graph.values()).any(|&role| role == Role::Tokens) {
            return Err(self.refuse("not a language model: it has no input input_ids"));
        }
        for input in unnamed {
            let role = by_graph.get(input.name).copied().ok_or_else(|| self.unknown(input))?;
            named.push((input, role));
        }
        named.into_iter().map(|(input, role)| self.input(input, role)).collect()
    }

    /// The query heads of a layer.
    fn heads(&self, cache: &[CacheTensor]) -> usize {
        let heads = self.graph.all("GroupQueryAttention").filter_map(|node| node.integer("num_heads")).max();
        let heads = heads.and_then(|heads| usize::try_from(heads).ok());
        let configured = || self.companions.size("/model/decoder/num_attention_heads", "num_attention_heads");
        let cached = || cache.iter().map(|tensor| tensor.heads).max();
        heads.or_else(configured).or_else(cached).unwrap_or(1).clamp(1, MAX_SIZE)
    }

    /// The longest window of attention nodes that keep only a window in the cache.
    fn min_capacity(&self) -> Result<usize> {
        let keep = self.windows().filter(|(node, _)| node.integer("sliding_window_cache") == Some(1));
        let window = keep.map(|(_, window)| window).max().unwrap_or(0);
        if window > MAX_CONTEXT {
            return Err(
                self.refuse(format_args!("its attention has a window of {window} tokens, longer than any context"))
            );
        }
        Ok(window)
    }

    /// The attention nodes with a sliding window, and its length.
    fn windows(&self) -> impl Iterator<Item = (&Node, usize)> {
        self.graph.all("GroupQueryAttention").filter_map(|node| {
            let window = node.integer("local_window_size").filter(|&window| window > 0)?;
            Some((node, window as usize))
        })
    }

    /// Upper limits of the context length, with their reasons. Beyond them, the graph no longer computes the model.
    fn limits(&self, inputs: &[Input], cache: &[CacheTensor], cache_kind: CacheKind) -> Vec<(usize, &'static str)> {
        let mut limits = Vec::new();
        if let CacheKind::Fixed { capacity, .. } = cache_kind {
            limits.push((capacity, "the cache holds no more"));
        }
        if let Some(length) = inputs.iter().find(|input| input.role == Role::Mask).and_then(|mask| mask.length) {
            limits.push((length, "its attention_mask has this length"));
        }
        if let Some(rows) = self.positions(inputs, cache) {
            limits.push((rows, "the graph has no further positions"));
        }
        if let Some(window) = self.companions.window()
            && self.graph.producer.starts_with("onnxruntime-genai")
            && self.windows().next().is_none()
        {
            // The builder of onnxruntime-genai 0.18 exports Mistral without windows.
            limits.push((window, "the model has sliding windows of this length, but the graph has none"));
        }
        if let Some(trained) = self.companions.rescaled_beyond().filter(|&trained| trained > 0) {
            // Keys in the cache would have to be rescaled as well.
            limits.push((trained, "beyond it, all positions are rescaled (longrope), but keys in the cache are not"));
        }
        limits
    }

    /// Whether attention scores go through a tanh.
    fn caps_attention(&self) -> bool {
        let fused = ["GroupQueryAttention", "Attention"].into_iter().flat_map(|operator| self.graph.all(operator));
        fused.clone().any(|node| node.float("softcap") > Some(0.0)) || self.graph.goes_through("Softmax", "Tanh")
    }

    /// The number of positions that all tables of the graph have rows for.
    fn positions(&self, inputs: &[Input], cache: &[CacheTensor]) -> Option<usize> {
        let rotary = self.graph.all("GroupQueryAttention").filter_map(|node| node.input(7));
        let rotary = rotary.chain(self.graph.all("RotaryEmbedding").filter_map(|node| node.input(2)));
        let rotary = rotary.filter_map(|table| self.graph.rows(table)).min();
        let roles = inputs.iter().filter_map(|input| Some((input.name.to_str().ok()?, source(input.role))));
        let length = |tensor: &CacheTensor| Source::Cache { axis: tensor.axis, rank: tensor.rank() };
        let caches = cache.iter().filter_map(|tensor| Some((tensor.past.to_str().ok()?, length(tensor))));
        let sources: HashMap<&str, Source> = roles.chain(caches).collect();
        let looked_up = Positions::new(self.graph, &sources, cache.is_empty()).limit();
        rotary.into_iter().chain(looked_up).min()
    }

    /// Bytes of the file and of its external weights.
    fn bytes(&self) -> u64 {
        let folder = self.file.parent().unwrap_or(Path::new(""));
        let external = self.graph.external_files.keys().map(|name| folder.join(name));
        let files = std::iter::once(self.file.to_path_buf()).chain(external);
        files.filter_map(|file| Some(file.metadata().ok()?.len())).sum()
    }

    /// The error for an input without a known meaning.
    fn unknown(&self, input: &Port) -> Error {
        let name = input.name;
        let lower = name.to_lowercase();
        if lower.contains("encoder") {
            return self.unsupported(format_args!("its input {name} comes from an encoder; use a decoder-only model"));
        }
        if ["conv", "ssm", "state", "recurrent"].iter().any(|word| lower.contains(word)) {
            return self.unsupported(format_args!(
                "its input {name} carries a recurrent state, which cannot be rolled back to an earlier token; use a \
                 model of attention layers only"
            ));
        }
        if self.identity("inputs", input).is_some() {
            return self.unsupported(format_args!("its cache {name} has {} dimensions, not 3 to 5", input.shape.len()));
        }
        self.unsupported(format_args!("nothing is known to feed its input {name} with; export it without this input"))
    }
}

/// The name of a merged decoder in the folder of an export, which runs both first and later passes. `None` if there is
/// no other file.
pub fn merged_decoder(file: &Path) -> Option<&'static str> {
    let merged = "decoder_model_merged.onnx";
    (!file.ends_with(merged) && file.with_file_name(merged).is_file()).then_some(merged)
}

/// What the values of an input are bounded by.
fn source(role: Role) -> Source {
    Source::Numbers(match role {
        Role::Tokens => return Source::Tokens,
        Role::Positions | Role::CachePositions | Role::LastPosition => Bound::total(-1),
        Role::TotalLength => Bound::total(0),
        Role::PastLength => Bound::PAST,
        Role::LogitsToKeep => Bound::NEW,
        Role::Mask | Role::HasPast => Bound::constant(1),
        Role::TokenTypes => Bound::constant(0),
    })
}
