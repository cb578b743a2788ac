#!/usr/bin/env python3
"""Export Hugging Face language models to ONNX, by default in the packed format of models/demo.

  export_demo.py --models DIR                                     models/demo: base, math and small
  export_demo.py --models DIR --out target/exports \\
                 --precision fp32 --only base,math,code           plain exports, for benchmarks

DIR has one folder for each model (config.json, model.safetensors, tokenizer.json).

Precisions:
  packed  weights of 6 bits (8 bits for the embedding, and for a model narrower than 256), with one fp16 scale for each
          block of 64. ONNX Runtime unpacks them to fp32 once, when it loads the model, so a pass runs as in an fp32
          export. One self-contained model.onnx.
  fp32    the output of onnxruntime-genai's builder
  fp16    the same for CUDA
  int4    the same: MatMulNBits with the builder's default settings, which round activations to int8. So the logits of
          positions that are scored together differ from those that are scored one by one.

Needs the packages of export-requirements.txt.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

BUILDER = {"packed": ("fp32", "cpu"), "fp32": ("fp32", "cpu"), "fp16": ("fp16", "cuda"), "int4": ("int4", "cpu")}
DEMO_LIMIT = 25_000_000  # most bytes of models/demo in the repository
BLOCK = 64  # weights that share a scale
DOMAIN = "cos.demo"

# The prompt form of the training, for problems in maths.
CHAT_TEMPLATE = r'''
{%- for message in messages %}
    {%- if message.role == "user" %}
        {{- "Question: " + message.content + "\n" }}
    {%- elif message.role == "assistant" %}
        {{- "Answer: " + message.content + "<|endoftext|>" }}
    {%- else %}
        {{- raise_exception("the demo models know the roles user and assistant only") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- "Answer:" }}
{%- endif %}
'''.lstrip()

# A packed weight is a call of one of these functions. All their inputs are constants, so ONNX Runtime's constant
# folding (active at every level except "disable all") makes a plain fp32 weight of the call.
UNPACK = {
    6: """
<domain: "cos.demo", opset_import: ["": 22]>
Unpack6 (high, low, scale, blocks, shape) => (weight)
{
    # A code is 4 * high + low, 0 to 63. A byte has two of the high parts (4 bits), or four of the low parts (2 bits).
    high_shifts = Constant <value = uint8[2, 1] {0, 4}> ()
    low_shifts = Constant <value = uint8[4, 1] {0, 2, 4, 6}> ()
    fifteen = Constant <value = uint8 {15}> ()
    three = Constant <value = uint8 {3}> ()
    four = Constant <value = uint8 {4}> ()
    middle = Constant <value = float {32}> ()
    flat = Constant <value = int64[1] {-1}> ()
    high_shifted = BitShift <direction = "RIGHT"> (high, high_shifts)
    high_bits = BitwiseAnd (high_shifted, fifteen)
    high_flat = Reshape (high_bits, flat)
    high_value = Mul (high_flat, four)
    low_shifted = BitShift <direction = "RIGHT"> (low, low_shifts)
    low_bits = BitwiseAnd (low_shifted, three)
    low_flat = Reshape (low_bits, flat)
    codes = Add (high_value, low_flat)
    codes_float = Cast <to = 1> (codes)
    signed_codes = Sub (codes_float, middle)
    blocked = Reshape (signed_codes, blocks)
    scale_float = Cast <to = 1> (scale)
    scaled = Mul (blocked, scale_float)
    weight = Reshape (scaled, shape)
}""",
    8: """
<domain: "cos.demo", opset_import: ["": 22]>
Unpack8 (codes, scale, blocks, shape) => (weight)
{
    codes_float = Cast <to = 1> (codes)
    blocked = Reshape (codes_float, blocks)
    scale_float = Cast <to = 1> (scale)
    scaled = Mul (blocked, scale_float)
    weight = Reshape (scaled, shape)
}""",
}


def build(model: Path, out: Path, precision: str):
    """Export with onnxruntime-genai's model builder."""
    kind, provider = BUILDER[precision]
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", model, "-o", out]
        command += ["-p", kind, "-e", provider, "-c", cache]
        done = subprocess.run(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, text=True,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nexport_demo: the model builder failed on {model} (see above)")


def quantise(weight: np.ndarray, bits: int):
    """Round `weight` in blocks along its rows. The scale of a block minimises the squared error."""
    rows, columns = weight.shape
    block = BLOCK if rows % BLOCK == 0 else BLOCK // 2
    blocks = weight.reshape(rows // block, block, columns)
    top = 2 ** (bits - 1) - 1
    largest = np.abs(blocks).max(axis=1, keepdims=True)
    codes, scale, error = np.zeros(blocks.shape), np.zeros(largest.shape), np.full(largest.shape, np.inf)
    for shrink in np.linspace(0.8, 1.0, 11):
        new_scale = np.maximum(largest * shrink / top, 1e-6).astype(np.float16).astype(np.float32)
        new_codes = np.clip(np.rint(blocks / new_scale), -top - 1, top)
        new_error = ((new_codes * new_scale - blocks) ** 2).sum(axis=1, keepdims=True)
        better = new_error < error
        codes, scale = np.where(better, new_codes, codes), np.where(better, new_scale, scale)
        error = np.where(better, new_error, error)
    return codes.astype(np.int8), scale.astype(np.float16)


def pack_weight(name: str, weight: np.ndarray, bits: int):
    """The constants and the node of one packed weight."""
    codes, scale = quantise(weight, bits)
    if bits == 6:
        unsigned = (codes.ravel() + 32).astype(np.uint8)
        high, low = (unsigned >> 2).reshape(2, -1), (unsigned & 3).reshape(4, -1)
        parts = {"high": high[0] | high[1] << 4, "low": low[0] | low[1] << 2 | low[2] << 4 | low[3] << 6}
    else:
        parts = {"codes": codes.ravel()}
    parts |= {"scale": scale, "blocks": np.array(codes.shape), "shape": np.array(weight.shape)}
    constants = [numpy_helper.from_array(value, f"{name}.{key}") for key, value in parts.items()]
    node = helper.make_node(f"Unpack{bits}", [c.name for c in constants], [name], f"{name}/Unpack", domain=DOMAIN)
    return constants, [node]


def halve(name: str, value: np.ndarray):
    """The constant and the node for a value stored as fp16 (norms, rotary tables)."""
    constant = numpy_helper.from_array(value.astype(np.float16), f"{name}.half")
    return [constant], [helper.make_node("Cast", [constant.name], [name], f"{name}/Cast", to=onnx.TensorProto.FLOAT)]


def pack(source: Path, out: Path):
    """Convert the builder's fp32 export in `source` to a packed one in `out`."""
    model = onnx.load(source / "model.onnx")
    graph = model.graph
    width = json.loads((source / "genai_config.json").read_text())["model"]["decoder"]["hidden_size"]
    constants, nodes = [], []
    for tensor in graph.initializer:
        value = numpy_helper.to_array(tensor)
        if value.dtype != np.float32:
            new = [tensor], []
        elif value.ndim == 2 and tensor.name.endswith(".MatMul.weight"):
            new = pack_weight(tensor.name, value, 8 if width < 256 or tensor.name.startswith("lm_head") else 6)
        else:
            new = halve(tensor.name, value)
        constants += new[0]
        nodes += new[1]
    nodes += graph.node
    graph.ClearField("initializer")
    graph.ClearField("node")
    graph.initializer.extend(constants)
    graph.node.extend(nodes)

    opset = next(o.version for o in model.opset_import if not o.domain)
    for bits in sorted({int(n.op_type[-1]) for n in nodes if n.domain == DOMAIN}):
        function = parser.parse_function(UNPACK[bits])
        function.opset_import[0].version = opset
        model.functions.append(function)
    model.opset_import.append(helper.make_opsetid(DOMAIN, 1))

    out.mkdir(parents=True, exist_ok=True)
    onnx.save(model, out / "model.onnx")
    shutil.copyfile(source / "genai_config.json", out / "genai_config.json")
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    (out / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False, separators=(",", ":")))
    (out / "chat_template.jinja").write_text(CHAT_TEMPLATE)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--models", type=Path, required=True, metavar="DIR", help="folder of Hugging Face models")
    args.add_argument("--out", type=Path, default=Path("models/demo"), metavar="DIR", help="default: models/demo")
    args.add_argument("--precision", choices=BUILDER, default="packed", help="default: packed")
    args.add_argument("--only", default="base,math,small", metavar="NAMES", help="default: base,math,small")
    args = args.parse_args()

    if args.out.resolve() == args.models.resolve():
        sys.exit("export_demo: --out would overwrite --models; name another folder")
    names = args.only.split(",")
    for name in names:
        for file in ("config.json", "model.safetensors", "tokenizer.json"):
            if not (args.models / name / file).is_file():
                sys.exit(f"export_demo: {args.models / name / file} is missing")

    for name in names:
        out = args.out / name
        shutil.rmtree(out, ignore_errors=True)
        if args.precision == "packed":
            with tempfile.TemporaryDirectory() as folder:
                build(args.models / name, Path(folder), args.precision)
                pack(Path(folder), out)
        else:
            build(args.models / name, out, args.precision)
        print(f"{out}: {sum(f.stat().st_size for f in out.iterdir()):,} bytes")

    total = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    print(f"{args.out}: {total:,} bytes in all")
    if args.precision == "packed" and total >= DEMO_LIMIT:
        sys.exit(f"export_demo: {args.out} must stay below {DEMO_LIMIT:,} bytes")


if __name__ == "__main__":
    main()
