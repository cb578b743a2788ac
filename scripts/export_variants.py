#!/usr/bin/env python3
"""Make tests/exports/variants: one tiny Llama in many forms. Check each with ONNX Runtime.

  export_variants.py [--exports tests/exports]

All are llama/optimum-fp32 with other inputs, outputs or nodes, and the same logits: llama/golden.f32. Unless the list
says otherwise, the caches are past_key_values.N.key/value [batch, 2, past, 16] → present.N.key/value.

  int32                all integers are int32
  fp16-io, bf16-io     logits, caches and weights are float16 or bfloat16; everything between is float32
  last-logits          logits of the last position only, [batch, 1, vocab]
  last-logits-symbolic the same, but declared as [batch, sequence, vocab], as if there were all
  logits-2d            the same, [batch, vocab]
  num-logits           an int64 scalar num_logits_to_keep: logits of that many last positions; 0 for all
  cache-position       cache_position [sequence] has the positions; the causal mask uses places in the cache
  cache-position-mask  the causal mask uses cache_position too, so no entry of the cache may be skipped
  token-types          token_type_ids, where 0 changes nothing and 1 changes a lot
  no-mask              no attention_mask
  mask-positions       no position_ids: a position is the number of ones in the mask
  length-positions     no position_ids: a position is the number of entries in the cache, so none may be skipped
  renamed              past_key_N, past_value_N → present_key_N, present_value_N
  renamed-kv           k_cache_N, v_cache_N → k_cache_N_out, v_cache_N_out
  unnamed              the names that torch.onnx.export makes if none are given: onnx::Concat_9010, 9606
  genai-names          names that only genai_config.json explains
  merged               a bool use_cache_branch; if it is false, the past is ignored
  uneven               the cache of layer 1 has 4 heads
  seq-first            caches are [batch, past, 2, 16]
  static-cache         caches are [batch, 2, 64, 16], both past and present, zeros at first, and written at
                       cache_position; no attention_mask
  external             weights in model.onnx_data
  no-config            only model.onnx, as exported
  hub                  config.json, tokenizer.json, onnx/model.onnx and onnx/model_q4.onnx (4 bits, still exact)
  weight-int8          weights are int8 with a scale for each column and DequantizeLinear, still exact. But if
                       session.qdq_matmulnbits_accuracy_level is not 1, ONNX Runtime rounds activations to 8 bits, and
                       logits change by up to 0.13 (rows still do not depend on their neighbours).
  mistral-no-config    mistral/optimum-fp32 without its config.json: only the graph shows the sliding window, so no
                       entry of the cache may be skipped. The logits are mistral/golden.f32.

A loader must find these out, or warn of them:
  mistral-windowless   mistral/builder-fp32 without sliding windows, as the builder makes it if config.json has no
                       layer_types; genai_config.json still has a sliding window
  mistral-genai        mistral/optimum-fp32 with a genai_config.json too, which has no sliding windows
  longrope             llama/builder-fp32 with other rotary tables for more than 32 tokens
  static-mask          static-cache with an attention_mask of fixed length [1, 64], whose ones must be as many as tokens
  seqlens              llama/builder-fp32 with seqlens_k and total_sequence_length, but no attention_mask
  rotary               llama/builder-fp32 with RotaryEmbedding operators, which read position_ids, before attention
  attention-positions  llama/builder-fp32 whose attention reads position_ids
  single               one token in a pass: input_ids and position_ids are [batch, 1]
  place-table          a table indexed by the place in the cache, as long as the context, as in older exports of GPT-2
  router               another output, before the logits, with "logits" in its name
  noncausal-rounded    noncausal, with a 4-bit product of accuracy_level 4, which is a suspect but not the cause
  dynamic-int8         the scale of activations is that of the whole tensor, so a row depends on its neighbours in a
                       pass; no golden logits
  dead-entries-fp16    float16 inputs and outputs. Each dead entry of the cache changes the logits a little, by less
                       than the limit, so it is better to move entries out than to mask them.
  noncausal            wrong: behind a past, the new tokens of a pass see each other

A loader must refuse these. All but nan-logits and stale are right if they get the inputs that they need:
  conv-state           a recurrent state, past_conv.0 → present_conv.0 [batch, 8, 4]
  embeds               inputs_embeds, no input_ids
  unknown-input        a float temperature_scale [1], which divides the logits
  nan-logits           all logits are NaN
  stale                static-cache whose outputs are its inputs: later passes do not see earlier ones
  static-int8          static-cache, quantised as in dynamic-int8: dead entries change the scale
  encoder              past_key_values.N.encoder.key and so on, as in encoder-decoders
  tagger, reranker     llama/no-cache with few scores for each position, and with one for a text
  masked-words         llama/no-cache in which all tokens see each other, as in models for masked words
  huge-mask, huge-cache  an attention_mask and a cache with a declared length of 2^40; the files have a few bytes
  huge-window          an attention whose cache must hold a window of 2^30 tokens

Every run makes the same files. Needs the packages of export-requirements.txt, and the files of export_architectures.py.
"""

import argparse
import ctypes
import json
import logging
import shutil
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

from variant_graph import Graph

FLOAT, FLOAT16, BFLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16
INT32, INT64, BOOL = TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL
ALL = np.iinfo(np.int64).max  # the end of a slice to the end
CAPACITY = 64  # of the static cache
BATCH, LENGTH, PAST = "batch_size", "sequence_length", "past_sequence_length"


def int32(g: Graph):
    for name, (kind, shape) in g.inputs.items():
        if kind == INT64:
            g.inputs[name] = INT32, shape
            g.node("Cast", name, out=g.detach(name), to=INT64)


def narrow(g: Graph, kind: int):
    for name in list(g.weights):
        weight = numpy_helper.to_array(g.weights.pop(name))
        g.node("Cast", weight.astype(helper.tensor_dtype_to_np_dtype(kind)), out=name, to=FLOAT)
    for past, present in g.caches():
        g.inputs[past] = kind, g.inputs[past][1]
        g.node("Cast", past, out=g.detach(past), to=FLOAT)
    for name, (_, shape) in g.outputs.items():
        g.outputs[name] = kind, shape
        g.node("Cast", g.detach(name), out=name, to=kind)


def last_logits(g: Graph, declared):
    g.outputs["logits"] = FLOAT, [BATCH, declared, g.outputs["logits"][1][2]]
    g.node("Slice", g.detach("logits"), [-1], [ALL], [1], out="logits")


def logits_2d(g: Graph):
    g.outputs["logits"] = FLOAT, [BATCH, g.outputs["logits"][1][2]]
    g.node("Gather", g.detach("logits"), -1, out="logits", axis=1)


def num_logits(g: Graph):
    g.inputs["num_logits_to_keep"] = INT64, []
    g.outputs["logits"] = FLOAT, [BATCH, "num_logits", g.outputs["logits"][1][2]]
    first = g.node("Unsqueeze", g.node("Neg", "num_logits_to_keep"), [0])
    g.node("Slice", g.detach("logits"), first, [ALL], [1], out="logits")


def cache_position(g: Graph, masking: bool):
    g.node("Unsqueeze", "cache_position", [0], out=g.drop("position_ids", cache_position=(INT64, [LENGTH])))
    if masking:
        g.reroute(g.new_and_all_places()[0].output[0], "cache_position")


def token_types(g: Graph):
    g.inputs["token_type_ids"] = INT64, [BATCH, LENGTH]
    embeddings = g.reader("input_ids").output[0]
    table = np.zeros((2, g.weights[g.embeddings].dims[1]), np.float32)
    table[1] = 50 * np.sin(1 + np.arange(table.shape[1]))
    types = g.node("Gather", table, "token_type_ids")
    g.node("Add", g.intercept(embeddings), types, out=embeddings)


def no_mask(g: Graph):
    shape = g.node("Concat", g.node("Shape", "input_ids", start=0, end=1),
                   g.node("Add", g.past_length(), g.length()), axis=0)
    g.node("Expand", [1], shape, out=g.drop("attention_mask"))


def mask_positions(g: Graph):
    positions = g.node("Sub", g.node("CumSum", "attention_mask", 1), 1)
    g.node("Slice", positions, g.node("Neg", g.length()), [ALL], [1], out=g.drop("position_ids"))


def length_positions(g: Graph):
    past = g.past_length()
    start, end = (g.node("Squeeze", value) for value in (past, g.node("Add", past, g.length())))
    g.node("Unsqueeze", g.node("Range", start, end, 1), [0], out=g.drop("position_ids"))


def rename(g: Graph, past_form: str, present_form: str):
    for past, present in g.caches():
        _, layer, part = past.split(".")
        for border, old, form in ((g.inputs, past, past_form), (g.outputs, present, present_form)):
            new = form.format(layer=layer, part=part, letter=part[0])
            items = [(new if name == old else name, what) for name, what in border.items()]
            border.clear()
            border.update(items)
            g.reroute(old, new)
        g.producer(present).output[0] = new


def uneven(g: Graph):
    for past, present in g.caches()[2:]:
        heads, new = g.inputs[past][1][1], g.detach(present)
        g.reshape(past, present, lambda batch, heads, length, size: [batch, 2 * heads, length, size])
        g.node("Slice", past, [0], [heads], [1], out=g.detach(past))
        g.node("Concat", new, new, out=present, axis=1)


def seq_first(g: Graph):
    for past, present in g.caches():
        g.reshape(past, present, lambda batch, heads, length, size: [batch, length, heads, size])
        g.node("Transpose", past, out=g.detach(past), perm=[0, 2, 1, 3])
        g.node("Transpose", g.detach(present), out=present, perm=[0, 2, 1, 3])


def static_cache(g: Graph):
    end = g.new_and_all_places()[1].input[1]
    cache_position(g, masking=True)
    g.reroute(g.producer(end).input[0], g.node("Identity", CAPACITY))
    g.node("Expand", [1], g.node("Concat", g.node("Shape", "input_ids", start=0, end=1), [CAPACITY], axis=0),
           out=g.drop("attention_mask"))
    where = g.node("Unsqueeze", "cache_position", [1])
    for past, present in g.caches():
        g.reshape(past, present, lambda batch, heads, length, size: [batch, heads, CAPACITY, size])
        concat = g.producer(present)
        old, added = (g.node("Transpose", name, perm=[2, 0, 1, 3]) for name in concat.input)
        g.nodes.remove(concat)
        g.node("Transpose", g.node("ScatterND", old, where, added), out=present, perm=[1, 2, 0, 3])


def weight_int8(g: Graph):
    for node in [node for node in g.nodes if node.op_type == "MatMul" and node.input[1] in g.weights]:
        weight = numpy_helper.to_array(g.weights[node.input[1]])
        scale = np.abs(weight).max(axis=0) / 64  # 64 instead of 127, so that weights of 4 bits are exact
        node.input[1] = g.node("DequantizeLinear", np.round(weight / scale).astype(np.int8), scale, axis=1)


def noncausal(g: Graph):
    causal = g.only("LessOrEqual").output[0]
    g.node("Or", g.intercept(causal), g.node("Greater", g.past_length(), [0]), out=causal)


def call(g: Graph, names: dict):
    """Rename inputs and outputs."""
    for border in (g.inputs, g.outputs):
        items = [(names.get(name, name), what) for name, what in border.items()]
        border.clear()
        border.update(items)
    for old, new in names.items():
        g.reroute(old, new)
        for node in g.nodes:
            node.output[:] = [new if name == old else name for name in node.output]


def unnamed(g: Graph):
    caches = list(chain(*g.caches()))
    called = {"input_ids": "input.1", "attention_mask": "onnx::Cast_9001", "position_ids": "onnx::Unsqueeze_9002",
              "logits": "9606"}
    places = {"past": "onnx::Concat_{}", "pres": "key_states.{}"}
    call(g, called | {name: places[name[:4]].format(9010 + index) for index, name in enumerate(caches)})


def genai_names(g: Graph):
    called = {"input_ids": "ids", "attention_mask": "filled", "position_ids": "places", "logits": "scores"}
    for past, present in g.caches():
        _, layer, part = past.split(".")
        called |= {past: f"layer{layer}_{part[0]}_in", present: f"layer{layer}_{part[0]}_out"}
    call(g, called)


GENAI_NAMES = {
    "inputs": {"input_ids": "ids", "attention_mask": "filled", "position_ids": "places",
               "past_key_names": "layer%d_k_in", "past_value_names": "layer%d_v_in"},
    "outputs": {"logits": "scores", "present_key_names": "layer%d_k_out", "present_value_names": "layer%d_v_out"}}


def dead_entries(g: Graph):
    narrow(g, FLOAT16)
    dead = g.node("Cast", g.node("ReduceSum", g.node("Sub", 1, "attention_mask"), keepdims=0), to=FLOAT16)
    ramp = np.linspace(0, 0.02, g.outputs["logits"][1][2], dtype=np.float16)
    g.node("Add", g.detach("logits"), g.node("Mul", dead, ramp), out="logits")


def tagger(g: Graph):
    g.outputs["logits"] = FLOAT, [BATCH, LENGTH, 7]
    g.node("Slice", g.detach("logits"), [0], [7], [2], out="logits")


def reranker(g: Graph):
    g.outputs["logits"] = FLOAT, [BATCH, 1]
    g.node("Slice", g.node("Gather", g.detach("logits"), -1, axis=1), [0], [1], [1], out="logits")


def masked_words(g: Graph):
    causal = g.only("LessOrEqual").output[0]
    g.node("Or", g.intercept(causal), np.array(True), out=causal)


def conv_state(g: Graph):
    g.inputs["past_conv.0"] = g.outputs["present_conv.0"] = FLOAT, [BATCH, 8, 4]
    last = g.node("Slice", g.reader("input_ids").output[0], [-1, 0], [ALL, 8], [1, 2])
    g.node("Concat", g.node("Slice", "past_conv.0", [1], [ALL], [2]), g.node("Transpose", last, perm=[0, 2, 1]),
           out="present_conv.0", axis=2)


def merged(g: Graph):
    g.inputs["use_cache_branch"] = BOOL, [1]
    end = g.node("Where", "use_cache_branch", [ALL], [0])
    for past, _ in g.caches():
        g.node("Slice", past, [0], end, [2], out=g.detach(past))


def embeds(g: Graph):
    embedding = g.reader("input_ids")
    g.drop("input_ids", inputs_embeds=(FLOAT, [BATCH, LENGTH, g.weights[embedding.input[0]].dims[1]]))
    g.reroute(embedding.output[0], "inputs_embeds")


def unknown_input(g: Graph):
    g.inputs["temperature_scale"] = FLOAT, [1]
    g.node("Div", g.detach("logits"), "temperature_scale", out="logits")


SURGERY = {
    "int32": int32, "fp16-io": lambda g: narrow(g, FLOAT16), "bf16-io": lambda g: narrow(g, BFLOAT16),
    "last-logits": lambda g: last_logits(g, 1), "last-logits-symbolic": lambda g: last_logits(g, LENGTH),
    "logits-2d": logits_2d, "num-logits": num_logits, "cache-position": lambda g: cache_position(g, False),
    "cache-position-mask": lambda g: cache_position(g, True), "token-types": token_types, "no-mask": no_mask,
    "mask-positions": mask_positions, "length-positions": length_positions,
    "renamed": lambda g: rename(g, "past_{part}_{layer}", "present_{part}_{layer}"),
    "renamed-kv": lambda g: rename(g, "{letter}_cache_{layer}", "{letter}_cache_{layer}_out"), "uneven": uneven,
    "seq-first": seq_first, "static-cache": static_cache, "weight-int8": weight_int8, "noncausal": noncausal,
    "unnamed": unnamed, "genai-names": genai_names, "dead-entries-fp16": dead_entries, "conv-state": conv_state,
    "merged": merged, "embeds": embeds, "unknown-input": unknown_input,
}
# Variants of llama/no-cache.
UNCACHED = {"tagger": tagger, "reranker": reranker, "masked-words": masked_words}
# Ways to run a sequence: in one pass; one by one behind the first tokens; five by five; and with rejected tokens
# between. Rejected tokens stay in the cache and are masked, or are overwritten if an input says where to write.
WAYS = ("whole", "steps", "parts", "undo")
# The largest allowed deviation from the golden logits (default: 1e-4), and the ways in which a variant exceeds it.
CLOSE = {"fp16-io": 0.05, "bf16-io": 0.5}
WRONG = {"noncausal": {"parts", "undo"}, "length-positions": {"undo"}, "cache-position-mask": {"undo"},
         "mistral-no-config": {"undo"}, "dynamic-int8": set(WAYS)}


class Checked:
    """A variant that runs in ONNX Runtime."""

    def __init__(self, file: Path, embeddings):
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        self.embeddings = embeddings
        self.inputs = {value.name: value for value in self.session.get_inputs()}
        self.outputs = [value.name for value in self.session.get_outputs()]
        fed = {name for name in self.inputs if name in self.feeds([0], [1], 0)}
        self.past = [name for name in self.inputs if name not in fed]
        self.undoes = not {"attention_mask", "cache_position"}.isdisjoint(self.inputs)

    def feeds(self, tokens, mask, position: int):
        """All inputs that a variant may have, except the caches."""
        positions = np.arange(position, position + len(tokens))
        return {"input_ids": [tokens], "attention_mask": [mask], "position_ids": [positions],
                "cache_position": positions, "token_type_ids": [np.zeros(len(tokens))], "num_logits_to_keep": 0,
                "use_cache_branch": [len(mask) > len(tokens)], "temperature_scale": [1],
                "inputs_embeds": self.embeddings[[tokens]]}

    def value(self, name: str, content):
        kind = self.inputs[name].type.removeprefix("tensor(").removesuffix(")")
        if kind == "bfloat16":
            bits = np.asarray(content, np.float32).view(np.uint32) >> 16
            return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits.astype(np.uint16), BFLOAT16)
        kind = {"float": "float32"}.get(kind, kind)
        return onnxruntime.OrtValue.ortvalue_from_numpy(np.asarray(content, kind))

    def empty(self):
        shapes = {name: self.inputs[name].shape for name in self.past}
        return [self.value(name, np.zeros([{BATCH: 1, PAST: 0}.get(size, size) for size in shape]))
                for name, shape in shapes.items()]

    def run(self, passes):
        """The rows of logits of each pass. A pass is (tokens, mask, position)."""
        caches = self.empty()
        for tokens, mask, position in passes:
            feeds = {name: self.value(name, content) for name, content in self.feeds(tokens, mask, position).items()
                     if name in self.inputs}
            logits, *caches = self.session.run_with_ort_values(self.outputs, feeds | dict(zip(self.past, caches)))
            if logits.data_type() == "tensor(bfloat16)":
                bits = (ctypes.c_uint16 * np.prod(logits.shape())).from_address(logits.data_ptr())
                rows = (np.array(bits, np.uint32) << 16).view(np.float32).reshape(logits.shape())
            else:
                rows = logits.numpy().astype(np.float32)
            yield rows.reshape(-1, rows.shape[-1])

    def deviation(self, way: str, tokens, golden):
        """The largest deviation of all rows that are returned. None for "undo" if the variant cannot undo."""
        if way == "undo" and not self.undoes:
            return None
        width = {"whole": len(tokens), "steps": 1}.get(way, 5)
        cuts = [0, *range(width if way == "whole" else 7, len(tokens), width), len(tokens)]
        mask, passes, expected = [], [], []
        for start, end in zip(cuts, cuts[1:]):
            mask = mask + [1] * (end - start)
            passes.append((tokens[start:end], mask, start))
            expected.append(golden[start:end])
            if way == "undo":
                passes.append((tokens[3:6], mask + [1] * 3, end))
                expected.append(None)
                mask = mask + [0] * 3
        return np.max([np.abs(rows - want[-len(rows):]).max() for rows, want in zip(self.run(passes), expected)
                       if want is not None])


def check(name: str, file: Path, golden: Path, embeddings) -> bool:
    """Print the deviations of a variant from the golden logits. Returns whether they are as expected."""
    about = json.loads((golden / "golden.json").read_text())
    logits = np.fromfile(golden / "golden.f32", "<f4").reshape(-1, about["columns"])
    model, start, found = Checked(file, embeddings), 0, {}
    for tokens in about["sequences"]:
        for way in WAYS:
            deviation = model.deviation(way, tokens, logits[start:start + len(tokens)])
            if deviation is not None:
                found[way] = np.maximum(found.get(way, 0), deviation)  # NaN if either is
        start += len(tokens)
    size = sum(file.stat().st_size for file in file.parent.rglob("*") if file.is_file())
    label = name if file.stem == "model" else f"{name} {file.stem}"
    print(f"{label:24} {size:>9,}  " + "  ".join(f"{way} {found[way]:.1e}" if way in found else f"{way}       –"
                                                for way in WAYS))
    wrong = {way for way, deviation in found.items() if not deviation <= CLOSE.get(name, 1e-4)}
    return wrong == WRONG.get(name, set())


# Variants with inputs or outputs that `Checked` does not know, or with a fault that only a loader can find.
UNCHECKED = {"stale", "static-mask", "seqlens", "single", "static-int8", "mistral-windowless", "mistral-genai",
             "longrope", "rotary", "attention-positions", "place-table", "router", "noncausal-rounded", "nan-logits",
             "encoder", "unnamed", "genai-names", "dead-entries-fp16", *UNCACHED, "huge-mask", "huge-cache",
             "huge-window"}


def around_logits(model, *nodes):
    """Insert nodes before the output of the logits. They read `plain` and write `logits`."""
    for node in model.graph.node:
        for index, output in enumerate(node.output):
            if output == "logits":
                node.output[index] = "plain"
    model.graph.node.extend(nodes)
    return model


def weights(model, **arrays):
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())


def place_table(model):
    weights(model, table=np.zeros((128, 1), np.float32), one=np.array([1]))
    return around_logits(model, helper.make_node("Shape", ["attention_mask"], ["places"], start=1, end=2),
                         helper.make_node("Sub", ["places", "one"], ["place"]),
                         helper.make_node("Gather", ["table", "place"], ["nothing"]),
                         helper.make_node("Add", ["plain", "nothing"], ["logits"]))


def static_mask(model):
    weights(model, one=np.array([1]), last=np.array([-1]))
    model.graph.input.append(helper.make_tensor_value_info("attention_mask", INT64, [1, CAPACITY]))
    return around_logits(model, helper.make_node("ReduceSum", ["attention_mask"], ["ones"], keepdims=0),
                         helper.make_node("Gather", ["cache_position", "last"], ["place"]),
                         helper.make_node("Sub", ["ones", "place"], ["length"]),
                         helper.make_node("Sub", ["length", "one"], ["wrong"]),
                         helper.make_node("Cast", ["wrong"], ["error"], to=FLOAT),
                         helper.make_node("Add", ["plain", "error"], ["logits"]))


def stale(model):
    presents = [output.name for output in model.graph.output if output.name != "logits"]
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, name in enumerate(names):
                if name in presents:
                    names[index] = f"new.{name}"
    model.graph.node.extend(helper.make_node("Identity", [name.replace("present", "past_key_values")], [name])
                            for name in presents)
    return model


def seqlens(model):
    graph = model.graph
    for node in graph.node:
        if node.op_type == "GroupQueryAttention":
            node.input[5], node.input[6] = "seqlens_k", "total_sequence_length"
    used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    while dead := [node for node in graph.node if not used & set(node.output)]:
        for node in dead:
            graph.node.remove(node)
        used = {name for node in graph.node for name in node.input} | {output.name for output in graph.output}
    for value in [value for value in graph.input if value.name == "attention_mask"]:
        graph.input.remove(value)
    graph.input.append(helper.make_tensor_value_info("seqlens_k", INT32, [BATCH]))
    graph.input.append(helper.make_tensor_value_info("total_sequence_length", INT32, []))
    return model


def positions(model):
    model.graph.input.append(helper.make_tensor_value_info("position_ids", INT64, [BATCH, LENGTH]))
    return [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]


def rotary(model):
    nodes = []
    for node in positions(model):
        place, parts = node.input[0], [f"{node.name}.{part}" for part in ("query", "key", "value")]
        sizes = f"{node.name}.sizes"
        weights(model, **{sizes: np.array([64, 32, 32])})
        nodes.append((node, [
            helper.make_node("Split", [place, sizes], parts, axis=-1),
            *(helper.make_node("RotaryEmbedding", [part, "position_ids", "cos_cache", "sin_cache"], [f"{part}.rotated"],
                               domain="com.microsoft") for part in parts[:2])]))
        node.input[:3] = [f"{parts[0]}.rotated", f"{parts[1]}.rotated", parts[2]]
        del node.input[7:]
        for attribute in node.attribute:
            if attribute.name == "do_rotary":
                attribute.i = 0
    for node, before in nodes:
        index = next(index for index, other in enumerate(model.graph.node) if other.name == node.name)
        for new in reversed(before):
            model.graph.node.insert(index, new)
    return model


def attention_positions(model):
    for node in positions(model):
        node.input[:] = [*node.input[:9], "position_ids"]
    return model


def single(model):
    for value in model.graph.input:
        if value.name in ("input_ids", "position_ids"):
            value.type.tensor_type.shape.dim[1].dim_value = 1
    return model


def router(model):
    weights(model, experts=np.arange(4))
    model.graph.node.append(helper.make_node("Gather", ["logits", "experts"], ["router_logits"], axis=2))
    model.graph.output.insert(0, helper.make_tensor_value_info("router_logits", FLOAT, [BATCH, LENGTH, 4]))
    return model


def nan_logits(model):
    weights(model, nan=np.array(np.nan, np.float32))
    return around_logits(model, helper.make_node("Add", ["plain", "nan"], ["logits"]))


def rounded(model):
    weights(model, packed=np.full((1, 1, 16), 0x88, np.uint8), scale=np.ones(1, np.float32),
            rounded=np.ones((1, 32), np.float32))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    product = helper.make_node("MatMulNBits", ["rounded", "packed", "scale"], ["nothing"], domain="com.microsoft",
                               K=32, N=1, bits=4, block_size=32, accuracy_level=4)
    return around_logits(model, product, helper.make_node("Add", ["plain", "nothing"], ["logits"]))


def encoder(model):
    for value in [*model.graph.input][-2:]:
        extra = onnx.ValueInfoProto()
        extra.CopyFrom(value)
        layer, part = value.name.split(".")[1:]
        extra.name = f"past_key_values.{layer}.encoder.{part}"
        model.graph.input.append(extra)
    return model


def huge(name: str):
    """A language model of one layer that declares a length which does not fit into any memory."""
    huge, shape = 2**40, [1, 1, "past", 4]
    value = helper.make_tensor_value_info
    inputs = {"input_ids": (INT64, [1, "new"]), "attention_mask": (INT64, [1, huge if name == "huge-mask" else "all"])}
    caches = {f"{when}.0.{part}": (FLOAT, [*shape[:2], "past" if name != "huge-cache" else huge, 4])
              for when in ("past_key_values", "present") for part in ("key", "value")}
    window = {"local_window_size": 2**30, "sliding_window_cache": 1} if name == "huge-window" else {}
    past, present = list(caches)[:2], list(caches)[2:]
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["hidden"]),
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["filled"]),
        helper.make_node("Sub", ["filled", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["seqlens"], to=INT32),
        helper.make_node("Shape", ["attention_mask"], ["length"], start=1, end=2),
        helper.make_node("Squeeze", ["length"], ["number"]),
        helper.make_node("Cast", ["number"], ["total"], to=INT32),
        helper.make_node("GroupQueryAttention", ["hidden"] * 3 + [*past, "seqlens", "total"], ["attended", *present],
                         domain="com.microsoft", num_heads=1, kv_num_heads=1, **window),
        helper.make_node("MatMul", ["attended", "head"], ["logits"])]
    graph = helper.make_graph(
        nodes, "main_graph", [value(key, *what) for key, what in (inputs | {key: caches[key] for key in past}).items()],
        [value("logits", FLOAT, [1, "new", 8]), *(value(key, *caches[key]) for key in present)],
        [numpy_helper.from_array(np.ones((8, 4), np.float32), "table"), numpy_helper.from_array(np.array([1]), "one"),
         numpy_helper.from_array(np.ones((4, 8), np.float32), "head")])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def longrope(model):
    tables = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer
              if tensor.name in next(n for n in model.graph.node if n.op_type == "GroupQueryAttention").input[7:9]}
    for tensor in [t for t in model.graph.initializer if t.name in tables]:
        model.graph.initializer.remove(tensor)

    def branch(name: str, change):
        constants = [helper.make_node("Constant", [], [f"{table}_{name}"],
                                      value=numpy_helper.from_array(np.ascontiguousarray(change(array)), table))
                     for table, array in tables.items()]
        outputs = [helper.make_tensor_value_info(node.output[0], FLOAT, None) for node in constants]
        return helper.make_graph(constants, name, [], outputs)

    weights(model, trained=np.array([32]))
    nodes = [helper.make_node("Shape", ["attention_mask"], ["total"], start=1, end=2),
             helper.make_node("Greater", ["total", "trained"], ["long"]),
             helper.make_node("If", ["long"], list(tables), then_branch=branch("large", lambda array: array / 2),
                              else_branch=branch("small", lambda array: array[:32]))]
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    return model


def windowless(source: Path, file: Path):
    """Attention over all tokens, which is a mistake of the builder."""
    model = onnx.load(source / "model.onnx")
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            kept = [a for a in node.attribute if a.name not in ("local_window_size", "sliding_window_cache")]
            del node.attribute[:]
            node.attribute.extend([*kept, helper.make_attribute("local_window_size", -1)])
    onnx.save(model, file)
    config = json.loads((source / "genai_config.json").read_text())
    config["model"]["decoder"]["sliding_window"]["layers"] = []
    file.with_name("genai_config.json").write_text(json.dumps(config, indent=1) + "\n")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--exports", type=Path, default=Path("tests/exports"), metavar="DIR",
                      help="default: tests/exports")
    exports = args.parse_args().exports
    logging.disable(logging.WARNING)  # the quantisers log warnings
    llama, mistral, out = exports / "llama/optimum-fp32", exports / "mistral/optimum-fp32", exports / "variants"
    shutil.rmtree(out, ignore_errors=True)

    def folder(name: str, *copied: str, source=llama) -> Path:
        (out / name).mkdir(parents=True)
        for file in copied:
            shutil.copyfile(source / file, out / name / file)
        return out / name / "model.onnx"

    def load():
        return onnx.load(llama / "model.onnx")

    for name, surgery in SURGERY.items():
        graph = Graph(load())
        surgery(graph)
        graph.save(folder(name, "config.json"))

    for name, surgery in UNCACHED.items():
        graph = Graph(onnx.load(exports / "llama/no-cache/model.onnx"))
        surgery(graph)
        graph.save(folder(name))  # without the config.json, which says that it is a language model
    config = {"model": {"context_length": 128, "type": "llama", "decoder": {"head_size": 16, **GENAI_NAMES}}}
    (out / "genai-names/genai_config.json").write_text(json.dumps(config, indent=1) + "\n")
    for name in ("huge-mask", "huge-cache", "huge-window"):
        onnx.save(huge(name), folder(name))

    file = folder("external", "config.json", "tokenizer.json")
    Graph(load()).save(file, save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    folder("no-config", "model.onnx")
    folder("mistral-no-config", "model.onnx", source=mistral)
    windowless(exports / "mistral/builder-fp32", folder("mistral-windowless"))
    file = folder("mistral-genai", "model.onnx", "config.json", source=mistral)
    plain = {"model": {"context_length": 128, "type": "mistral", "decoder": {"head_size": 16}}}
    file.with_name("genai_config.json").write_text(json.dumps(plain, indent=1) + "\n")
    for name, change in {"single": single, "place-table": place_table, "router": router, "nan-logits": nan_logits,
                         "encoder": encoder}.items():
        onnx.save(change(load()), folder(name, "config.json"))
    onnx.save(rounded(onnx.load(out / "noncausal/model.onnx")), folder("noncausal-rounded", "config.json"))
    onnx.save(static_mask(onnx.load(out / "static-cache/model.onnx")), folder("static-mask", "config.json"))
    onnx.save(stale(onnx.load(out / "static-cache/model.onnx")), folder("stale", "config.json"))
    quantize_dynamic(onnx.load(out / "static-cache/model.onnx"), folder("static-int8"), weight_type=QuantType.QUInt8)
    builder = {"seqlens": seqlens, "longrope": longrope, "rotary": rotary, "attention-positions": attention_positions}
    for name, change in builder.items():
        file = folder(name, "genai_config.json", source=exports / "llama/builder-fp32")
        onnx.save(change(onnx.load(exports / "llama/builder-fp32/model.onnx")), file)
    hub = folder("hub", "config.json", "tokenizer.json").parent / "onnx"
    hub.mkdir()
    Graph(load()).save(hub / "model.onnx")
    four_bits = MatMulNBitsQuantizer(load(), block_size=32, is_symmetric=True)
    four_bits.process()
    Graph(four_bits.model.model).save(hub / "model_q4.onnx")
    file = folder("dynamic-int8", "config.json")
    quantize_dynamic(load(), file, weight_type=QuantType.QUInt8)  # QInt8 overflows on CPUs without VNNI
    Graph(onnx.load(file)).save(file)

    check_all(exports, Graph(load()))


def check_all(exports: Path, graph: Graph):
    """Check all variants. `graph` is the model that they were made of."""
    out = exports / "variants"
    embeddings = numpy_helper.to_array(graph.weights[graph.embeddings])
    all_expected = True
    for file in sorted(out.rglob("*.onnx")):
        name = file.relative_to(out).parts[0]
        if name in UNCHECKED:
            continue
        all_expected &= check(name, file, exports / ("mistral" if name.startswith("mistral") else "llama"), embeddings)
    files = [file for file in out.rglob("*") if file.is_file()]
    print(f"{out}: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")
    if not all_expected:
        sys.exit("export_variants: the deviations of some variants are not as expected (see above)")


if __name__ == "__main__":
    main()
