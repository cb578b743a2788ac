#!/usr/bin/env python3
"""Makes a small export as costly as a large model: extend_model.py EXPORT OUT LAYERS [WIDTH [TOKENS]].

Adds LAYERS residual feed-forward layers of the width WIDTH (default: 16384) behind the last layer. Their first matrix
is random and their second one is zero, so they add 0 and the distributions stay the same. But each pass reads and
multiplies all the new weights. Without them, most of the time of so small a model is the launching of kernels. All
layers have the same random weights, shifted.

With TOKENS, the vocabulary gets that many tokens, by copies of its last 200, so that rows of logits are as long as
those of large models.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

source, out, layers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
width = int(sys.argv[4]) if len(sys.argv) > 4 else 16384
tokens = int(sys.argv[5]) if len(sys.argv) > 5 else 0
model = onnx.load(source / "model.onnx")
graph = model.graph

# The last normalisation adds the output of the last layer to the residual stream, and its result goes to the head.
norms = [node for node in graph.node if node.op_type.startswith("Skip") and "LayerNorm" in node.op_type]
last = norms[-1]
stream = last.input[1]
gain = next(tensor for tensor in graph.initializer if tensor.name == last.input[2])
hidden, dtype = gain.dims[0], gain.data_type
kind = {TensorProto.FLOAT16: np.float16, TensorProto.FLOAT: np.float32}[dtype]
random = np.random.default_rng(1)

out.mkdir(parents=True, exist_ok=True)
data, offset = open(out / "extension.data", "wb"), 0


def external(name, values):
    """Adds an initializer whose values are in the data file, and returns its name."""
    global offset
    tensor = TensorProto(name=name, dims=values.shape, data_type=dtype, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "extension.data"), ("offset", offset), ("length", values.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    data.seek(offset)
    if values.any():
        data.write(values.data)
    offset += values.nbytes + -values.nbytes % 4096
    data.truncate(offset)  # zeros take no space on the disk
    graph.initializer.append(tensor)
    return name


place = list(graph.node).index(last)
nodes = []
weights = (0.02 * random.standard_normal((hidden, width), dtype=np.float32)).astype(kind)
nothing = np.zeros((width, hidden), kind)
for layer in range(layers):
    name = f"extension.{layer}"
    up = external(f"{name}.up", np.roll(weights, 997 * layer))
    down = external(f"{name}.down", nothing)
    nodes += [
        helper.make_node("MatMul", [stream, up], [f"{name}.wide"], name=f"{name}.up"),
        helper.make_node("Relu", [f"{name}.wide"], [f"{name}.active"], name=f"{name}.active"),
        helper.make_node("MatMul", [f"{name}.active", down], [f"{name}.nothing"], name=f"{name}.down"),
        helper.make_node("Add", [stream, f"{name}.nothing"], [f"{name}.stream"], name=f"{name}.add"),
    ]
    stream = f"{name}.stream"
last.input[1] = stream
others = list(graph.node)
del graph.node[:]
graph.node.extend(others[:place] + nodes + others[place:])
data.close()
for file in source.iterdir():
    if file.suffix == ".json":
        shutil.copy(file, out)

if tokens:
    settings = json.loads((out / "genai_config.json").read_text())
    old = settings["model"]["vocab_size"]
    settings["model"]["vocab_size"] = tokens
    (out / "genai_config.json").write_text(json.dumps(settings))
    copied = random.integers(old - 200, old, tokens - old)
    for tensor in graph.initializer:
        if len(tensor.dims) == 2 and old in tensor.dims:
            axis = list(tensor.dims).index(old)
            values = numpy_helper.to_array(tensor)
            values = np.concatenate([values, values.take(copied, axis)], axis)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    for value in graph.output:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_value == old:
                dimension.dim_value = tokens
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    taken = {*vocabulary.values(), *(added["id"] for added in tokenizer["added_tokens"])}
    vocabulary.update({f"<new {token}>": token for token in range(tokens) if token not in taken})
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
onnx.save(model, out / "model.onnx")
print(f"{out}: {layers} layers of {hidden} x {width} more, {offset / 1e9:.2f} GB")
