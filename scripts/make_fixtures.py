#!/usr/bin/env python3
"""Make the tiny models of tests/fixtures, for the tests of errors.

  make_fixtures.py [--out tests/fixtures]

All but the last three are decoders as onnxruntime-genai's builder exports them: one layer of GroupQueryAttention with a
shared cache, 16 tokens ("<eos>", then a to o), and a context of 32. The logits strongly favour the successor of the
last token, so greedy decoding counts: 1 2 3 … 15 0, where 0 ends the sequence.

  tiny      has no fault
  notoken   tiny without a tokenizer.json
  renamed   tiny with another name for token 7 in its tokenizer.json
  wide      24 tokens
  nan       tiny, but the logits of token 15 after a token 13 are NaN
  inf       tiny, but the logits of token 15 after a token 11 are +inf, and all after a token 12 are -inf
  half      tiny in float16, for CUDA, which has kernels for all its operators
  half-bad  the same, but the logits of token 15 are +inf after a token 11, and NaN after a token 13
  external  tiny with its weights in a model.onnx.data that is missing
  optimum   as Optimum exports a decoder: position_ids, a concatenated cache, no genai_config.json
  headless  has the output last_hidden_state, but no logits
  vision    has the input pixel_values, but no input_ids

Every run makes the same files. Needs the packages onnx and numpy of export-requirements.txt.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CONTEXT, HEADS, HEAD_SIZE = 32, 2, 16  # two heads of queries, one of keys and values
FLOAT, FLOAT16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64


def wave(rows: int, columns: int, phase: float):
    """Weights that look like noise, the same on every machine."""
    return np.round(0.5 * np.sin(1.7 * np.arange(rows * columns) + phase), 2).reshape(rows, columns)


def value(name: str, *shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def save(folder: Path, nodes, inputs, outputs, constants, external=False, number=np.float32):
    """Write a graph as model.onnx."""
    tensors = [numpy_helper.from_array(np.asarray(v, np.int64 if np.asarray(v).dtype == int else number), k)
               for k, v in constants.items()]
    graph = helper.make_graph(nodes, "main_graph", inputs, outputs, tensors)
    opsets = [helper.make_opsetid("", 22), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10, producer_name="make_fixtures.py")
    folder.mkdir(parents=True)
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=external, location="model.onnx.data",
                    size_threshold=256)


def embedding(vocab: int):
    """The node and the constant of a one-hot embedding: a hidden state with one element for each token."""
    return helper.make_node("Gather", ["embedding", "input_ids"], ["hidden"]), {"embedding": np.eye(vocab)}


def decoder(folder: Path, vocab=16, quirks=None, external=False, half=False):
    """A builder export. `quirks` maps a token to a row that is added to the logits behind it."""
    first, constants = embedding(vocab)
    angles = np.outer(np.arange(CONTEXT), 0.1 ** np.arange(HEAD_SIZE // 2))
    constants |= {
        "one": np.array([1]), "axis": np.array(1),
        "cos_cache": np.round(np.cos(angles), 4), "sin_cache": np.round(np.sin(angles), 4),
        "qkv": wave(vocab, (HEADS + 2) * HEAD_SIZE, 0.1), "out": wave(HEADS * HEAD_SIZE, vocab, 0.2),
        "lm_head": np.round(8 * np.roll(np.eye(vocab), 1, 1) + wave(vocab, vocab, 0.3), 2),
    }
    nodes = [
        first,
        helper.make_node("ReduceSum", ["attention_mask", "one"], ["total"], keepdims=0),
        helper.make_node("Sub", ["total", "one"], ["last"]),
        helper.make_node("Cast", ["last"], ["seqlens_k"], to=TensorProto.INT32),
        helper.make_node("Shape", ["attention_mask"], ["mask_shape"]),
        helper.make_node("Gather", ["mask_shape", "axis"], ["length"], axis=0),
        helper.make_node("Cast", ["length"], ["total_sequence_length"], to=TensorProto.INT32),
        helper.make_node("MatMul", ["hidden", "qkv"], ["packed"]),
        helper.make_node(
            "GroupQueryAttention",
            ["packed", "", "", "past_key_values.0.key", "past_key_values.0.value", "seqlens_k",
             "total_sequence_length", "cos_cache", "sin_cache"],
            ["attention", "present.0.key", "present.0.value"],
            domain="com.microsoft", num_heads=HEADS, kv_num_heads=1, do_rotary=1),
        helper.make_node("MatMul", ["attention", "out"], ["mixed"]),
        helper.make_node("Add", ["hidden", "mixed"], ["residual"]),
        helper.make_node("MatMul", ["residual", "lm_head"], ["plain" if quirks else "logits"]),
    ]
    if quirks:
        constants["quirks"] = np.zeros((vocab, vocab))
        for token, row in quirks.items():
            constants["quirks"][token] = row
        nodes += [helper.make_node("Gather", ["quirks", "input_ids"], ["quirk"]),
                  helper.make_node("Add", ["plain", "quirk"], ["logits"])]
    batch, past, present = "batch_size", "past_sequence_length", "total_sequence_length"
    parts, kind = ("key", "value"), FLOAT16 if half else FLOAT
    save(folder, nodes,
         [value("input_ids", batch, "sequence_length", kind=INT64), value("attention_mask", batch, present, kind=INT64)]
         + [value(f"past_key_values.0.{part}", batch, 1, past, HEAD_SIZE, kind=kind) for part in parts],
         [value("logits", batch, "sequence_length", vocab, kind=kind)]
         + [value(f"present.0.{part}", batch, 1, present, HEAD_SIZE, kind=kind) for part in parts],
         constants, external, np.float16 if half else np.float32)
    genai = {
        "model": {
            "bos_token_id": 0, "context_length": CONTEXT, "eos_token_id": 0, "pad_token_id": 0, "type": "llama",
            "vocab_size": vocab,
            "decoder": {
                "filename": "model.onnx", "head_size": HEAD_SIZE, "hidden_size": vocab, "num_attention_heads": HEADS,
                "num_hidden_layers": 1, "num_key_value_heads": 1,
                "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask",
                           "past_key_names": "past_key_values.%d.key", "past_value_names": "past_key_values.%d.value"},
                "outputs": {"logits": "logits", "present_key_names": "present.%d.key",
                            "present_value_names": "present.%d.value"},
            },
        },
        "search": {"max_length": CONTEXT, "past_present_share_buffer": True},
    }
    (folder / "genai_config.json").write_text(json.dumps(genai, indent=1) + "\n")


def optimum(folder: Path, vocab=16):
    """A decoder as Optimum exports it. Each token attends to the mean of all keys, including later and masked ones.
    So the logits are right only for one token at a time, without dead entries in the cache."""
    first, constants = embedding(vocab)
    constants |= {"key": wave(vocab, HEAD_SIZE, 0.1), "out": wave(HEAD_SIZE, vocab, 0.2),
                  "axes": np.array([1]), "time": np.array([2])}
    batch, past, present, parts = "batch_size", "past_sequence_length", "total_sequence_length", ("key", "value")
    nodes = [first,
             helper.make_node("MatMul", ["hidden", "key"], ["flat"]),
             helper.make_node("Unsqueeze", ["flat", "axes"], ["new"])]
    nodes += [helper.make_node("Concat", [f"past_key_values.0.{part}", "new"], [f"present.0.{part}"], axis=2)
              for part in parts]
    nodes += [helper.make_node("ReduceMean", ["present.0.key", "time"], ["seen"], keepdims=0),
              helper.make_node("MatMul", ["seen", "out"], ["mixed"]),
              helper.make_node("Add", ["hidden", "mixed"], ["logits"])]
    save(folder, nodes,
         [value("input_ids", batch, "sequence_length", kind=INT64), value("attention_mask", batch, present, kind=INT64),
          value("position_ids", batch, "sequence_length", kind=INT64)]
         + [value(f"past_key_values.0.{part}", batch, 1, past, HEAD_SIZE) for part in parts],
         [value("logits", batch, "sequence_length", vocab)]
         + [value(f"present.0.{part}", batch, 1, present, HEAD_SIZE) for part in parts],
         constants)


def headless(folder: Path, vocab=16):
    """A text encoder."""
    first, constants = embedding(vocab)
    save(folder, [first, helper.make_node("Tanh", ["hidden"], ["last_hidden_state"])],
         [value("input_ids", "batch_size", "sequence_length", kind=INT64)],
         [value("last_hidden_state", "batch_size", "sequence_length", vocab)], constants)


def vision(folder: Path):
    """An image classifier."""
    save(folder, [helper.make_node("ReduceMean", ["pixel_values", "axes"], ["image_embeds"], keepdims=0)],
         [value("pixel_values", "batch_size", 3, 8, 8)], [value("image_embeds", "batch_size", 3)],
         {"axes": np.array([2, 3])})


def tokenizer(folder: Path, vocab=16, renamed=None):
    """A tokenizer for words between spaces: "<eos>", "a", "b" and so on."""
    words = {"<eos>": 0} | {chr(ord("a") + token - 1): token for token in range(1, vocab)}
    if renamed is not None:
        words = {"other" if token == renamed else word: token for word, token in words.items()}
    content = {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": 0, "content": "<eos>", "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True}],
        "normalizer": None, "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
        "model": {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content, indent=1) + "\n")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--out", type=Path, default=Path("tests/fixtures"), metavar="DIR", help="default: tests/fixtures")
    out = args.parse_args().out

    shutil.rmtree(out, ignore_errors=True)
    at_end = np.array([0.0] * 15 + [1.0])
    with np.errstate(invalid="ignore"):
        nan, inf = np.where(at_end > 0, np.nan, 0), np.where(at_end > 0, np.inf, 0)
    for name, settings in {
        "tiny": {}, "notoken": {}, "renamed": {}, "wide": {"vocab": 24}, "nan": {"quirks": {13: nan}},
        "inf": {"quirks": {11: inf, 12: np.full(16, -np.inf)}}, "half": {"half": True},
        "half-bad": {"quirks": {11: inf, 13: nan}, "half": True}, "external": {"external": True},
    }.items():
        decoder(out / name, **settings)
        if name != "notoken":
            tokenizer(out / name, settings.get("vocab", 16), 7 if name == "renamed" else None)
    (out / "external/model.onnx.data").unlink()
    for make in (optimum, headless, vision):
        make(out / make.__name__)
    files = [file for file in out.rglob("*") if file.is_file()]
    print(f"{out}: {len(files)} files, {sum(file.stat().st_size for file in files):,} bytes")


if __name__ == "__main__":
    main()
