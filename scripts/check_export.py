#!/usr/bin/env python3
"""Compare the logits of an export with those of its model.

  check_export.py MODEL EXPORT PRECISION

MODEL is a folder in Hugging Face's format, and EXPORT a folder with model.onnx. Exits with 1 if their distributions
differ: exporters silently leave out parts of a configuration that they do not know, such as a scaling of rotary
positions. If one of them cannot run here, such as an export with kernels for GPUs only, the script prints that it did
not compare them.
"""

import sys
from pathlib import Path

import numpy as np

TOKENS = 24
# The largest allowed mean Kullback-Leibler divergence, in nats. For the models of tests/export/test, rounding to 16
# bits gives 0.000002 and rounding to 4 bits 0.09. Parts that were left out gave 0.5 to 2, so the limit of int4 misses
# the smallest.
LIMITS = {"fp32": 0.02, "fp16": 0.02, "bf16": 0.05, "int4": 0.7}


def log_softmax(rows):
    rows = rows.astype(np.float64) - rows.max(-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(-1, keepdims=True))


def tokens_of(config):
    # Some exports lack the sliding window, and are right only within its length.
    count = min(TOKENS, getattr(config, "sliding_window", None) or TOKENS)
    return np.array([[(37 * index + 11) % min(config.vocab_size, 1000) for index in range(count)]], np.int64)


def by_pytorch(folder):
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    config = model.config.get_text_config()
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    tokens = tokens_of(config)
    with torch.no_grad():
        return tokens, head, model(torch.tensor(tokens)).logits[0].float().numpy()


def by_export(file, tokens, head):
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    types = {"float": np.float32, "float16": np.float16, "int64": np.int64, "int32": np.int32}
    known = {"input_ids": tokens, "attention_mask": np.ones_like(tokens),
             "position_ids": np.arange(tokens.shape[1])[None]}
    feeds = {}
    for value in session.get_inputs():
        named = lambda name: 1 if "batch" in name else 0 if "past" in name or "sequence" in name else head
        empty = [size if isinstance(size, int) else named(size) for size in value.shape]
        feeds[value.name] = known.get(value.name, np.zeros(empty)).astype(types[value.type[len("tensor("):-1]])
    return session.run(["logits"], feeds)[0][0].astype(np.float32)


def main():
    model, export, precision = sys.argv[1:]
    try:
        tokens, head, expected = by_pytorch(model)
        found = by_export(Path(export) / "model.onnx", tokens, head)
    except Exception as error:
        print(f"not compared with the model, because one of them does not run here: {str(error).splitlines()[0][:200]}")
        return
    columns = min(expected.shape[1], found.shape[1])  # the rest is padding
    expected, found = log_softmax(expected[:, :columns]), log_softmax(found[:, :columns])
    differs = float((np.exp(expected) * (expected - found)).sum(-1).mean())
    if not differs <= LIMITS[precision]:
        sys.exit(f"the export is another model: its distributions differ from those of the model by {differs:.2g} nats "
                 "on average")
    print(f"its distributions are those of the model, up to {max(differs, 0):.1g} nats on average")


if __name__ == "__main__":
    main()
