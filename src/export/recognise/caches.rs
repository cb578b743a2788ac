//! Recognises the cache of an export: which input and output are past and present of a tensor, its dimensions, and how
//! the graph updates it.

use std::collections::{HashMap, HashSet};

use super::reader::{MAX_CONTEXT, MAX_SIZE, Port, Reader, c_name};
use crate::error::Result;
use crate::export::graph::{FORMS, Graph, Node};
use crate::export::{CacheContent, CacheKind, CacheTensor, MAX_RANK, element_bytes};

/// Identifies a tensor of the cache: its layer, and what it holds of the layer.
type Identity = (usize, CacheContent);

/// Patterns of names in `genai_config.json`: the list, its key, and what the tensors hold. `%d` stands for the layer.
const RENAMED: [(&str, &str, CacheContent); 6] = [
    ("inputs", "past_key_names", CacheContent::Keys),
    ("inputs", "past_value_names", CacheContent::Values),
    ("inputs", "past_names", CacheContent::Both),
    ("outputs", "present_key_names", CacheContent::Keys),
    ("outputs", "present_value_names", CacheContent::Values),
    ("outputs", "present_names", CacheContent::Both),
];

/// Operators that update a cache in place if past and present are one buffer.
const IN_PLACE: [&str; 3] = ["GroupQueryAttention", "SparseAttention", "TensorScatter"];

/// Parse the usual names of caches: `past_key_values.3.key`, `past_value_3`, `k_cache.3`, and `past_3` if keys and
/// values are two halves of a tensor of five dimensions.
fn identity_by_name(name: &str, rank: usize) -> Option<Identity> {
    let rest = name.replace("past_key_values", "").replace("key_values", "").replace("key_value", "");
    let is_word = |text: &str, word: &str| text.split(|c: char| !c.is_ascii_alphabetic()).any(|part| part == word);
    let key = rest.contains("key") || is_word(&rest, "k");
    let value = rest.contains("value") || is_word(&rest, "v");
    let layer = rest.split(|c: char| !c.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()?;
    let is_fused = name.ends_with("key_value") || is_word(name, "kv");
    let is_pair = rank == MAX_RANK && (name.starts_with("past") || name.starts_with("present"));
    match (key, value) {
        (true, false) => Some((layer, CacheContent::Keys)),
        (false, true) => Some((layer, CacheContent::Values)),
        (false, false) if is_fused || is_pair => Some((layer, CacheContent::Both)),
        _ => None,
    }
}

/// The layer in a name that matches a pattern with `%d`.
fn layer_by_pattern(name: &str, pattern: &str) -> Option<usize> {
    let (front, back) = pattern.split_once("%d")?;
    name.strip_prefix(front)?.strip_suffix(back)?.parse().ok()
}

/// For each past, the index of its present, as the graph connects them. Names do not matter.
fn successors(graph: &Graph, outputs: &[Port], caches: &HashSet<&str>) -> HashMap<String, usize> {
    let mut found = HashMap::new();
    for (index, output) in outputs.iter().enumerate() {
        for (node, place) in graph.sources(output.name, &FORMS) {
            let pasts = node.inputs.iter().filter_map(|input| graph.root(node.scope, input));
            // Attention operators give keys and values after their main output.
            let place = if node.outputs.len() > 1 { place.wrapping_sub(1) } else { 0 };
            found.extend(pasts.filter(|name| caches.contains(name)).nth(place).map(|past| (past.to_owned(), index)));
        }
    }
    found
}

impl<'a> Reader<'a> {
    /// The identity of a tensor of the cache by its name.
    pub fn identity(&self, list: &str, tensor: &Port) -> Option<Identity> {
        let renamed = RENAMED.iter().filter(|(of, ..)| *of == list).find_map(|(_, key, holds)| {
            Some((layer_by_pattern(tensor.name, self.companions.name(list, key)?)?, *holds))
        });
        renamed.or_else(|| identity_by_name(tensor.name, tensor.shape.len()))
    }

    /// Whether an input could be a cache by its type and rank.
    fn may_be_cache(input: &Port) -> bool {
        (3..=MAX_RANK).contains(&input.shape.len()) && element_bytes(input.element).is_some()
    }

    /// The inputs that are caches with their outputs, layer by layer, keys first.
    pub fn pairs<'b>(
        &self,
        inputs: &'b [Port<'a>],
        outputs: &'b [Port<'a>],
    ) -> Result<Vec<(Identity, &'b Port<'a>, &'b Port<'a>)>> {
        let presents: HashMap<Identity, &Port> =
            outputs.iter().filter_map(|output| Some((self.identity("outputs", output)?, output))).collect();
        let mut by_graph = None;
        let mut successor = |past: &Port| {
            let all = by_graph.get_or_insert_with(|| {
                let caches = inputs.iter().filter(|input| Self::may_be_cache(input)).map(|input| input.name);
                successors(self.graph, outputs, &caches.collect())
            });
            all.get(past.name).map(|&index| &outputs[index])
        };
        let is_candidate = |input: &&Port| {
            let ranks = 3..=MAX_RANK;
            let others = ["encoder", "conv", "ssm", "recurrent"]; // see `Reader::unknown`
            ranks.contains(&input.shape.len())
                && self.role(input.name).is_none()
                && !others.iter().any(|other| input.name.to_lowercase().contains(other))
        };
        let candidates = inputs.iter().filter(is_candidate).map(|past| (self.identity("inputs", past), past));
        let (mut pairs, mut unnamed) = (Vec::new(), Vec::new());
        for (identity, past) in candidates {
            match identity.and_then(|identity| Some((identity, *presents.get(&identity)?))) {
                Some((identity, present)) => pairs.push((identity, past, present)),
                None => match successor(past) {
                    Some(present) => unnamed.push((past, present)),
                    None if identity.is_some() => {
                        return Err(self.refuse(format_args!(
                            "it has the input {} but no output with its new entries",
                            past.name
                        )));
                    }
                    None => {}
                },
            }
        }
        // Without names, only the order of layers is known. Mostly it alternates between keys and values.
        let known = pairs.iter().map(|((layer, _), ..)| layer + 1).max().unwrap_or(0);
        let in_pairs = unnamed.len() % 2 == 0;
        pairs.extend(unnamed.into_iter().enumerate().map(|(index, (past, present))| {
            let identity = match (in_pairs, index % 2) {
                (false, _) => (known + index, CacheContent::Both),
                (true, 0) => (known + index / 2, CacheContent::Keys),
                (true, _) => (known + index / 2, CacheContent::Values),
            };
            (identity, past, present)
        }));
        pairs.sort_by_key(|(identity, ..)| *identity);
        if let Some(pair) = pairs.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let [one, other] = [0, 1].map(|index| pair[index].1.name);
            return Err(self.unsupported(format_args!(
                "its caches {one:?} and {other:?} seem to be the same tensor; rename them"
            )));
        }
        Ok(pairs)
    }

    /// The tensors of the cache in the order of `pairs`, and how the export keeps the cache.
    pub fn cache(&self, pairs: &[(Identity, &Port, &Port)]) -> Result<(Vec<CacheTensor>, CacheKind)> {
        let tensors = pairs.iter().map(|&(identity, past, present)| self.cache_tensor(identity, past, present));
        let (tensors, kinds): (Vec<CacheTensor>, Vec<CacheKind>) =
            tensors.collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let kind = kinds.first().copied().unwrap_or(CacheKind::None);
        if let Some(index) = kinds.iter().position(|&other| other != kind) {
            return Err(self.unsupported(format_args!(
                "its caches {:?} and {:?} work in different ways (operators or lengths differ)",
                tensors[0].past, tensors[index].past
            )));
        }
        Ok((tensors, kind))
    }

    fn cache_tensor(&self, (layer, holds): Identity, past: &Port, present: &Port) -> Result<(CacheTensor, CacheKind)> {
        let (name, rank) = (past.name, past.shape.len());
        if element_bytes(past.element).is_none() {
            return Err(self.unsupported(format_args!("its cache {name} has elements of type {}", past.element)));
        }
        if present.element != past.element || present.shape.len() != rank {
            return Err(self.unsupported(format_args!(
                "{name} is {} of rank {rank}, but {} is {} of rank {}, so a pass cannot follow another",
                past.element,
                present.name,
                present.element,
                present.shape.len()
            )));
        }
        let writers: Vec<&Node> = self.graph.origins(present.name).collect();
        let axis = self.axis_of_tokens(past, present, &writers);
        let dimensions = self.dimensions(past, axis, &writers)?;
        let (heads, head_size) = match rank {
            3 => (1, dimensions[if axis == 1 { 2 } else { 1 }]),
            _ => (dimensions[if axis == rank - 3 { rank - 2 } else { rank - 3 }], dimensions[rank - 1]),
        };
        let kind = self.kind(past, present, axis, &writers)?;
        let (past, element) = (c_name(name), past.element);
        let present = c_name(present.name);
        Ok((CacheTensor { past, present, layer, holds, heads, head_size, element, dimensions, axis }, kind))
    }

    /// The dimension of tokens: the one in which the graph appends new entries, or else the usual one.
    fn axis_of_tokens(&self, past: &Port, present: &Port, writers: &[&Node]) -> usize {
        let rank = past.shape.len();
        let direct = self.graph.sources(present.name, &["Identity"]);
        let joins = |node: &&Node| node.operator == "Concat" && node.inputs.iter().any(|input| input == past.name);
        let axis = direct.into_iter().map(|(node, _)| node).find(joins).and_then(|node| node.integer("axis"));
        let axis = axis.map(|axis| if axis < 0 { axis + rank as i64 } else { axis });
        if let Some(axis) = axis.and_then(|axis| usize::try_from(axis).ok()).filter(|axis| (1..rank).contains(axis)) {
            return axis;
        }
        let scatters = writers.iter().any(|node| node.operator == "TensorScatter" && node.integer("axis") == Some(1));
        match rank {
            3 => 1,
            4 if scatters || (past.fixed(1).is_none() && past.fixed(2).is_some()) => 1,
            _ => rank - 2,
        }
    }

    /// The sizes of all dimensions other than that of tokens, which is 1 here.
    fn dimensions(&self, past: &Port, axis: usize, writers: &[&Node]) -> Result<Vec<usize>> {
        let (name, rank) = (past.name, past.shape.len());
        let batch = if rank == MAX_RANK { 1 } else { 0 };
        if past.fixed(batch).is_some_and(|size| size != 1) {
            return Err(self.unsupported(format_args!("{name} has a fixed batch of more than 1")));
        }
        let by_operator = || writers.iter().find_map(|node| node.integer("kv_num_heads")).and_then(positive);
        let configured = |pointer: &str, key: &str| self.companions.size(pointer, key);
        let heads = || {
            by_operator()
                .or_else(|| configured("/model/decoder/num_key_value_heads", "num_key_value_heads"))
                .or_else(|| configured("/model/decoder/num_attention_heads", "num_attention_heads"))
        };
        let head_size = || {
            let size = configured("/model/decoder/head_size", "head_dim");
            size.or_else(|| writers.iter().find_map(|node| self.head_size_by_projection(node)))
        };
        let mut dimensions = vec![1; rank];
        for (index, size) in dimensions.iter_mut().enumerate().filter(|(index, _)| *index != axis && *index != batch) {
            let (what, open) = match (rank, rank - 1 - index) {
                (3, _) => ("the size of all heads", None),
                (_, 0) => ("the size of a head", head_size()),
                (MAX_RANK, 4) => ("the number of halves", Some(2)),
                _ => ("the number of heads", heads()),
            };
            *size = past.fixed(index).or(open).ok_or_else(|| {
                self.refuse(format_args!(
                    "{what} (axis {index} of {name}) is not known; put the genai_config.json or config.json of the \
                     export beside it"
                ))
            })?;
            if !(1..=MAX_SIZE).contains(size) {
                return Err(self.refuse(format_args!("{what} cannot be {size} (axis {index} of {name})")));
            }
        }
        Ok(dimensions)
    }

    /// How the graph updates the cache.
    fn kind(&self, past: &Port, present: &Port, axis: usize, writers: &[&Node]) -> Result<CacheKind> {
        let is_by = |operators: &[&str]| writers.iter().any(|node| operators.contains(&node.operator.as_str()));
        if let Some(capacity) = past.fixed(axis) {
            if !(1..=MAX_CONTEXT).contains(&capacity) {
                return Err(self.refuse(format_args!("its cache {} has a fixed length of {capacity}", past.name)));
            }
            let direct = self.graph.readers(past.name).count() == 1;
            return Ok(CacheKind::Fixed { capacity, in_place: direct && present.fixed(axis) == Some(capacity) });
        }
        if is_by(&IN_PLACE) {
            return Ok(CacheKind::Shared);
        }
        if is_by(&["ScatterND", "ScatterElements"]) {
            return Err(self.unsupported(format_args!(
                "its cache {} is written in place, but its length is not fixed; export it with a static cache length",
                past.name
            )));
        }
        Ok(CacheKind::Concatenated)
    }

    /// The size of a head, from the projection that reads an attention's output.
    fn head_size_by_projection(&self, attention: &Node) -> Option<usize> {
        let heads = attention.integer("num_heads").filter(|&heads| heads > 0)?;
        let next = self.graph.readers(attention.outputs.first()?).next()?;
        let width = match next.operator.as_str() {
            "MatMulNBits" => next.integer("K")?,
            "MatMul" => *self.graph.weight(next.input(1)?)?.first()?,
            _ => return None,
        };
        (width % heads == 0).then(|| positive(width / heads)).flatten()
    }
}

fn positive(number: i64) -> Option<usize> {
    usize::try_from(number).ok().filter(|&number| number > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caches_by_name() {
        let (keys, values, both) = (CacheContent::Keys, CacheContent::Values, CacheContent::Both);
        for (name, rank, expected) in [
            ("past_key_values.3.key", 4, Some((3, keys))),
            ("past_key_values.12.value", 4, Some((12, values))),
            ("present.3.key", 4, Some((3, keys))),
            ("past_key_values_0_value", 4, Some((0, values))),
            ("past_key_7", 4, Some((7, keys))),
            ("present_value_7", 4, Some((7, values))),
            ("k_cache_2", 4, Some((2, keys))),
            ("v_cache_2_out", 4, Some((2, values))),
            ("past_key_values.3.decoder.key", 4, Some((3, keys))),
            ("past_key_values.3.key_value", 3, Some((3, both))),
            ("present.3.key_value", 3, Some((3, both))),
            ("past_3", 5, Some((3, both))),
            ("present_3", 5, Some((3, both))),
            ("past_3", 4, None), // a list of tensors without identities
            ("past.key", 4, None),
            ("attention_mask", 2, None),
            ("position_ids", 2, None),
        ] {
            assert_eq!(identity_by_name(name, rank), expected, "{name}");
        }
    }

    #[test]
    fn caches_by_pattern() {
        assert_eq!(layer_by_pattern("k.12", "k.%d"), Some(12));
        assert_eq!(layer_by_pattern("layer12_k", "layer%d_k"), Some(12));
        assert_eq!(layer_by_pattern("layer12_v", "layer%d_k"), None);
        assert_eq!(layer_by_pattern("k", "k"), None);
    }
}
