#!/usr/bin/env python3
"""Make exports with the shapes of known models and random weights, and logits of PyTorch, for tests/gpu/shapes.rs.

  make_shapes.py OUT --builder MODELS [--shapes A,B] [--layers 2] [--precisions fp16,bf16,int4] [--provider cuda]
                 [--jobs 6] [--pair]

MODELS is the folder `models` of the package onnxruntime-genai, which need not be installed: its builder is a script.
The script needs torch, transformers, onnx, onnx_ir and onnxruntime. With a GPU, a model takes seconds. `--layers 0`
makes all the layers that the real model has. `--pair` also makes OUT/SHAPE/fp16-shifted for benchmarks: a model whose
logits are those of the first one, shifted by one token. So their distributions have nothing in common.

It makes these files for each shape in OUT/SHAPE:
  golden.json   {"columns": C, "sequences": [{"length": N, "positions": [P, …]}, …]}; token i of a sequence of length N
                is (37 * i + 11 * N) mod 4000 + 20
  golden.f32    for each position P of each sequence, the C logits behind its first P tokens: little-endian float32,
                from PyTorch
  PRECISION/    the export

float16, bfloat16, and quantisation to 4 bits in blocks of 32 represent the weights exactly, so one set of logits is
right for all precisions. Speed and memory are those of the real models, but the distributions are noise.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import torch
import transformers

BLOCK, CONTEXT = 32, 4096
LENGTHS = (1, 2, 5, 17, 64, 200, 1000, 3000)
COMMON = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0, max_position_embeddings=CONTEXT)
SHAPES = {  # the class of the configuration, the number of layers, and the sizes
    "qwen2.5-7b": ("Qwen2", 28, dict(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_attention_heads=28, num_key_value_heads=4,
        rope_theta=1e6,
        tie_word_embeddings=False)),
    "qwen2.5-1.5b": ("Qwen2", 28, dict(
        vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_attention_heads=12, num_key_value_heads=2,
        rope_theta=1e6,
        tie_word_embeddings=True)),
    "llama-3.1-8b": ("Llama", 32, dict(
        vocab_size=128256, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
        rope_theta=5e5)),
    "llama-3.2-1b": ("Llama", 16, dict(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=8,
        head_dim=64,
        rope_theta=5e5, tie_word_embeddings=True)),
    "llama-2-7b": ("Llama", 32, dict(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_attention_heads=32, num_key_value_heads=32)),
    "mistral-7b": ("Mistral", 32, dict(
        vocab_size=32768, hidden_size=4096, intermediate_size=14336, num_attention_heads=32, num_key_value_heads=8,
        sliding_window=None)),
    "qwen3-8b": ("Qwen3", 36, dict(
        vocab_size=151936, hidden_size=4096, intermediate_size=12288, num_attention_heads=32, num_key_value_heads=8,
        head_dim=128,
        rope_theta=1e6)),
    "gemma-2-2b": ("Gemma2", 26, dict(
        vocab_size=256000, hidden_size=2304, intermediate_size=9216, num_attention_heads=8, num_key_value_heads=4,
        head_dim=256,
        query_pre_attn_scalar=256)),
    "phi-3-mini": ("Phi3", 32, dict(
        vocab_size=32064, hidden_size=3072, intermediate_size=8192, num_attention_heads=32, num_key_value_heads=32,
        original_max_position_embeddings=CONTEXT)),
    # A small model, to try this script and its test without a GPU.
    "tiny": ("Llama", 2, dict(
        vocab_size=4096, hidden_size=256, intermediate_size=256, num_attention_heads=4, num_key_value_heads=2,
        rope_theta=1e4)),
}


def on_grid(shape, device):
    """Weights of 4 bits times a power of two, such that a product with a vector of elements of size 1 has size 1.

    Each block has one weight -8, so a quantiser that derives the scale from the largest magnitude restores them all.
    """
    scale = 2.0 ** np.round(np.log2(1 / (4.4 * np.sqrt(shape[-1]))))
    blocks = torch.randint(-7, 8, (*shape[:-1], shape[-1] // BLOCK, BLOCK), device=device, dtype=torch.int8)
    index = torch.randint(0, BLOCK, (*blocks.shape[:-1], 1), device=device)
    blocks.scatter_(-1, index, -8)
    return blocks.reshape(shape).to(torch.float32) * scale


def make_model(name, layers, device):
    kind, all_layers, shape = SHAPES[name]
    config = getattr(transformers, f"{kind}Config")(**COMMON, **shape, num_hidden_layers=layers or all_layers)
    torch.manual_seed(0)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1:
                value = torch.round(0.1 * torch.randn(parameter.shape, device=device) * 64) / 64
                if "norm" in key:
                    value += kind != "Gemma2"  # Gemma adds 1 itself
            else:
                value = on_grid(tuple(parameter.shape), device)
                if "embed_tokens" in key:
                    # Embeddings that are tied to the head are as large as other weights.
                    larger = 4 * 2 ** np.round(np.log2(np.sqrt(parameter.shape[-1])))
                    value *= 1 if config.tie_word_embeddings else larger
            parameter.copy_(value)
    return model


def golden(model, out):
    sequences, rows = [], []
    for length in LENGTHS:
        tokens = torch.tensor([[(37 * i + 11 * length) % 4000 + 20 for i in range(length)]], device=model.device)
        positions = sorted({1, max(1, length // 2), max(1, length - 1), length})
        sequences.append({"length": length, "positions": positions})
        with torch.no_grad():
            hidden = model.model(tokens).last_hidden_state[0, [p - 1 for p in positions]]
            logits = model.lm_head(hidden)
            cap = getattr(model.config, "final_logit_softcapping", None)
            rows.append(((torch.tanh(logits / cap) * cap) if cap else logits).cpu().numpy())
    out.mkdir(parents=True, exist_ok=True)
    np.concatenate(rows).astype("<f4").tofile(out / "golden.f32")
    about = {"columns": int(rows[0].shape[1]), "sequences": sequences}
    (out / "golden.json").write_text(json.dumps(about) + "\n")


def export(folder, out, precision, arguments):
    out.parent.mkdir(parents=True, exist_ok=True)
    options = ["accuracy_level=0"] if precision == "int4" else []
    command = [sys.executable, arguments.builder / "builder.py", "-i", folder, "-o", out, "-p", precision,
               "-e", arguments.provider, "-c", folder / f"cache-{precision}",
               *(["--extra_options", *options] if options else [])]
    environment = dict(os.environ, HF_HUB_OFFLINE="1", OMP_NUM_THREADS="4", CUDA_VISIBLE_DEVICES="")
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if not (out / "genai_config.json").exists():
        raise SystemExit(f"{out}: the builder failed\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    # The tokenizer is a placeholder with fewer words than the model has tokens.
    for file in out.glob("tokenizer*"):
        file.unlink()
    print("exported", out, flush=True)


def shift(folder, out):
    """Copy an export of float16, with the columns of its last matrix rotated by one."""
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    head = [weights[name] for node in graph.node if "lm_head" in node.name for name in node.input if name in weights]
    if len(head) != 1 or head[0].data_type != onnx.TensorProto.FLOAT16 or not head[0].external_data:
        raise SystemExit(f"{folder}: --pair needs an output layer with one float16 matrix in the external data")
    place = {entry.key: entry.value for entry in head[0].external_data}
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    offset = int(place.get("offset", 0))
    matrix = np.memmap(out / place["location"], "<f2", "r+", offset, tuple(head[0].dims))
    matrix[:] = np.roll(matrix, 1, axis=1)
    matrix.flush()
    print("exported", out, flush=True)


def tokenizer(folder):
    from tokenizers import Tokenizer, models
    words = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1}, "<unk>"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", unk_token="<unk>")
    fast.save_pretrained(folder)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--builder", type=Path, required=True)
    parser.add_argument("--shapes", default=",".join(name for name in SHAPES if name != "tiny"))
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--precisions", default="fp16,bf16,int4")
    parser.add_argument("--provider", default="cuda")
    parser.add_argument("--jobs", type=int, default=6)
    parser.add_argument("--pair", action="store_true")
    parser.add_argument("--scratch", type=Path, help="folder for the Hugging Face models, which are temporary")
    arguments = parser.parse_args()
    if arguments.pair and "fp16" not in arguments.precisions.split(","):
        parser.error("--pair needs fp16 among --precisions")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scratch = Path(tempfile.mkdtemp(dir=arguments.scratch))
    jobs = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for name in arguments.shapes.split(","):
            model = make_model(name, arguments.layers, device)
            golden(model, arguments.out / name)
            model.half().save_pretrained(scratch / name)
            tokenizer(scratch / name)
            size = sum(parameter.numel() for parameter in model.parameters()) / 1e9
            del model
            print(f"{name}: {size:.2f} billion parameters", flush=True)
            for precision in arguments.precisions.split(","):
                jobs.append(pool.submit(export, scratch / name, arguments.out / name / precision, precision, arguments))
        for job in jobs:
            job.result()
    shutil.rmtree(scratch)
    if arguments.pair:
        for name in arguments.shapes.split(","):
            shift(arguments.out / name / "fp16", arguments.out / name / "fp16-shifted")


if __name__ == "__main__":
    main()
