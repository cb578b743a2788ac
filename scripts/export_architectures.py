#!/usr/bin/env python3
"""Make tests/exports: tiny random language models of many architectures, exported by several tools.

The exporters need different versions of transformers. So there are three environments (Python 3.11; a CPU build of
torch is enough), and each stage of this script runs in its own:

  python3.11 -m venv A && A/bin/pip install -r scripts/optimum-requirements.txt
  python3.11 -m venv B && B/bin/pip install -r scripts/export-requirements.txt
  B/bin/pip install --no-deps mobius-onnx==0.1.0 onnx-shape-inference==0.4.0
  python3.11 -m venv C && C/bin/pip install --no-deps -r scripts/old-requirements.txt
  A/bin/python scripts/export_architectures.py optimum --work DIR
  B/bin/python scripts/export_architectures.py builder --work DIR
  PYTHONHASHSEED=0 C/bin/python scripts/export_architectures.py old --work DIR

  optimum  makes the models (Hugging Face folders in DIR), the golden logits, and the exports of Optimum
  builder  exports the models in DIR with newer tools
  old      exports the models in DIR with tools of early 2024

It makes these files in tests/exports/ARCH:
  golden.json          {"architecture", "columns": C, "sequences": [[token, …], …]}; the sequences share beginnings
  golden.f32           for each token of each sequence, the C logits behind it: little-endian float32, from PyTorch
  optimum-fp32, -fp16  optimum-cli export onnx --task text-generation-with-past
  builder-fp32, -fp16  onnxruntime-genai's model builder for CPU
  builder-int4         the same with weights of 4 bits; activations are not rounded (accuracy_level=0)
  builder-fp16-paged   the same in float16 for CUDA, with PagedAttention: a cache in blocks
and only for llama
  no-cache             Optimum, --task text-generation: no cache, the whole context in every pass
  builder-fp16-cuda    builder-fp16 for CUDA: a shared cache, as fp32 has for the CPU
  builder-bf16-cuda    the same in bfloat16, with logits that are cast to float32
  bf16-logits-cuda     builder-bf16-cuda without that cast
  builder-int8-cache, -int4-cache  builder-fp32 with a cache of 8 or 4 bits, and its own golden logits
  builder-fp16-int8-cache, -int4-cache, -fp8-cache  builder-fp16-cuda with such a cache
  builder-fp16-paged-int8-cache    builder-fp16-paged with a cache of 8 bits, and a scale for each channel
  builder-bf16-paged               builder-fp16-paged in bfloat16, with blocks of 16 tokens
  builder-int4-level4  builder-int4 with activations rounded to 8 bits, which is the builder's default for CPU
  torch-opset23        torch.onnx.export: the standard operator Attention, a concatenated cache, nameless dimensions
  torch-unnamed        the same without names of inputs and outputs
  mobius               Microsoft's mobius: the standard operator Attention of opset 24, which concatenates the cache
  mobius-static        the same with --static-cache: TensorScatter writes into caches of fixed length and rank 3

and by old tools
  gpt2, gpt_neox/optimum-merged  two graphs in one, by Optimum 1.17: with a cache, and for the first pass without one
  gpt_bigcode/optimum-fused      keys and values of a layer in one tensor, [batch, past, 2 * size]
  gpt2/onnxruntime-fp32          onnxruntime.transformers: keys and values in one tensor, [2, batch, heads, past, size]

All files are as the tools leave them. Quantisation to 4 bits in blocks of 32 represents the weights exactly, so one set
of golden logits is right for all precisions. Every run makes the same files.
"""

import argparse
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import onnx

TOKENS, CONTEXT, WINDOW, BLOCK, LAYERS = 96, 128, 8, 32, 2
LEVELS = {"int8": 127, "int4": 7, "fp8": 448}  # the largest number of a quantised cache
FILES = {"model.onnx", "model.onnx.data", "genai_config.json", "config.json", "tokenizer.json",
         "generation_config.json"}
SHARED = (0, 12, 5)  # how many tokens each sequence has in common with the beginning of the first sequence
OWN = (48, 24, 30)  # and how many tokens of its own follow

SIZES = {"vocab_size": TOKENS, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": LAYERS,
         "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": CONTEXT,
         "tie_word_embeddings": False}
# For some, the head size is hidden_size / num_attention_heads. The oldest also have one key head for each query head.
TWO_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": None}
OLD = TWO_HEADS | {"num_key_value_heads": None}
TIED = {"tie_word_embeddings": True}
MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA = TIED | MIXED | {"query_pre_attn_scalar": 16}
EXPERTS = {"num_experts_per_tok": 2}
ARCHITECTURES = {  # the class of the configuration, and the differences from SIZES
    "llama": ("LlamaConfig", {}),
    "gpt2": ("GPT2Config", OLD | TIED),
    "opt": ("OPTConfig", OLD | TIED | {"ffn_dim": 64, "word_embed_proj_dim": 32}),
    "gpt_neox": ("GPTNeoXConfig", OLD),
    "mistral": ("MistralConfig", {"sliding_window": WINDOW}),
    "qwen2": ("Qwen2Config", TWO_HEADS),
    "qwen3": ("Qwen3Config", {"vocab_size": TOKENS + 16}),  # more logits than the tokenizer has tokens
    # The builder rounds the factor of embeddings, sqrt(hidden_size), to two digits, which is exact for 64.
    "gemma2": ("Gemma2Config", GEMMA | {"hidden_size": 64}),
    "gemma3": ("Gemma3TextConfig", GEMMA),
    "phi3": ("Phi3Config", TWO_HEADS | {"original_max_position_embeddings": CONTEXT}),
    "qwen3_moe": ("Qwen3MoeConfig", EXPERTS | {"num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True}),
    "gpt_oss": ("GptOssConfig", EXPERTS | MIXED | {"num_local_experts": 4, "intermediate_size": 32}),
    # Their tables of positions have other names than wpe.
    "gptj": ("GPTJConfig", OLD | {"rotary_dim": 8}),
    "bart": ("BartConfig", OLD | TIED | {"d_model": 32, "decoder_layers": LAYERS, "decoder_attention_heads": 2,
                                         "decoder_ffn_dim": 64, "is_encoder_decoder": False, "is_decoder": True}),
    "gpt_bigcode": ("GPTBigCodeConfig", OLD | TIED),
}
OPTIMUM_FP16 = {"llama", "opt", "qwen2"}
# Optimum's fp16 export of these mixes types and cannot be loaded. So the fp32 export is converted, as many people do.
CONVERTED_FP16 = {"gpt2"}
# The builder supports only these (and gemma3 only with a version of transformers that it cannot run with). Its fp16
# exports for CPU leave out sliding windows, so they would be wrong.
BUILDER = {"llama", "mistral", "qwen2", "qwen3", "gemma2", "phi3", "gpt_oss"}
BUILDER_FP16 = {"llama", "qwen2", "qwen3", "phi3"}
# And options of their paged exports. With prune_lm_head, inputs name the rows that get logits. Those of gpt_oss and
# gemma2 have further tables of blocks for layers with windows.
BUILDER_PAGED = {"llama": [], "qwen3": ["prune_lm_head=true", "paged_block_size=16"], "phi3": ["prune_lm_head=true"],
                 "gpt_oss": [], "gemma2": ["prune_lm_head=true"]}
OLD_MERGED = {"gpt2", "gpt_neox"}
OLD_ONLY = {"gpt_bigcode"}


def random(name: str):
    return np.random.default_rng(zlib.crc32(name.encode()))


def sequences():
    made = []
    for number, (shared, own) in enumerate(zip(SHARED, OWN)):
        begin = made[0][:shared] if made else []
        made.append(begin + random(f"sequence {number}").integers(2, TOKENS, own).tolist())
    return made


def on_grid(rng, shape, axis: int, spread: float, levels=np.arange(-7, 8)):
    """Weights of 4 bits, such that a product along `axis` with a vector of elements of size 1 has size `spread`.

    In each block along `axis`, one element is -8 and the others are from `levels`, times a power of two. A quantiser
    derives the scale from the largest magnitude, so it restores them all.
    """
    scale = 2.0 ** np.round(np.log2(spread / (4.4 * np.sqrt(shape[axis]))))
    blocks = (*np.delete(shape, axis), shape[axis] // BLOCK, BLOCK)
    whole = levels[rng.integers(0, len(levels), blocks)]
    np.put_along_axis(whole, rng.integers(0, BLOCK, blocks[:-1])[..., None], -8, axis=-1)
    return np.moveaxis(whole.reshape(*blocks[:-2], shape[axis]) * scale, -1, axis)


# The spread by a part of the name of a weight; the first match counts. Queries and keys are large, so that attention is
# uneven, and a wrong mask, position or cache changes the logits a lot.
SPREADS = [("position", 2.0), ("wpe", 2.0), ("q_proj", 2.0), ("k_proj", 2.0), ("qkv", 2.0), ("query_key_value", 2.0),
           ("c_attn", 2.0), ("v_proj", 2.0), ("lm_head", 2.0), ("embed_out", 2.0), ("embed", 6.0), ("wte", 6.0),
           ("", 1.0)]
# Numbers of which 4-bit floating point (e2m1) represents the half. gpt_oss has its experts in that format.
E2M1 = np.array([0, 1, 2, 3, 4, 6])
FLOAT4 = np.concatenate([-E2M1[:0:-1], E2M1])


def set_weights(name: str, model):
    import torch
    embedding = model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    for key, parameter in model.named_parameters():
        rng, shape = random(f"{name} {key}"), tuple(parameter.shape)
        if len(shape) == 1 or key.endswith("_bias"):
            value = np.round(0.2 * rng.standard_normal(shape) * 64) / 64  # exact in fp16
            if "norm" in key or "ln_" in key:
                value += "gemma" not in name and key.endswith("weight")  # Gemma adds 1 itself
        else:
            spread = 2.0 if tied and parameter is embedding else next(s for part, s in SPREADS if part in key)
            inputs_first = (name == "gpt2" and ".c_" in key) or len(shape) == 3
            levels = {"levels": FLOAT4} if len(shape) == 3 else {}
            value = on_grid(rng, shape, len(shape) - (2 if inputs_first else 1), spread, **levels)
        parameter.data = torch.tensor(value, dtype=torch.float32)


def add_float4(file: Path):
    """Add experts in 4-bit floating point to a gpt_oss, because the builder quantises only these."""
    from safetensors.numpy import load_file, save_file
    tensors = load_file(file)
    for key in [k for k in tensors if k.endswith("experts.gate_up_proj") or k.endswith("experts.down_proj")]:
        weight = np.swapaxes(tensors[key], 1, 2)
        blocks = weight.reshape(*weight.shape[:2], -1, BLOCK)
        scale = np.abs(blocks).max(axis=-1, keepdims=True) / 4  # -8 on the grid is -4 here
        codes = np.searchsorted([*E2M1 / 2, 4], np.abs(blocks) / scale) + 8 * (blocks < 0)
        tensors[f"{key}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).astype(np.uint8)
        tensors[f"{key}_scales"] = (np.log2(scale[..., 0]) + 127).astype(np.uint8)
    save_file(tensors, file, {"format": "pt"})


def make_model(name: str, folder: Path, out: Path):
    """Write a Hugging Face folder and the golden logits."""
    import torch
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers
    kind, options = ARCHITECTURES[name]
    options = {k: v for k, v in (SIZES | options).items() if v is not None}
    config = getattr(transformers, kind)(**options, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    set_weights(name, model)
    model.save_pretrained(folder)
    if name == "gpt_oss":
        add_float4(folder / "model.safetensors")

    tokenizer = Tokenizer(models.WordLevel({"<eos>": 0, "<unk>": 1} | {f"w{i}": i for i in range(2, TOKENS)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", unk_token="<unk>").save_pretrained(folder)

    write_golden(name, model, out)


def write_golden(name: str, model, out: Path):
    import torch
    with torch.no_grad():
        logits = [model.double()(torch.tensor([tokens])).logits[0].numpy() for tokens in sequences()]
    out.mkdir(parents=True, exist_ok=True)
    np.concatenate(logits).astype("<f4").tofile(out / "golden.f32")
    golden = {"architecture": name, "columns": logits[0].shape[1], "sequences": sequences()}
    (out / "golden.json").write_text(json.dumps(golden) + "\n")


def keep(folder: Path, source: Path):
    """Keep only the files that a loader may read. The graph stays as the tool wrote it, as in the files of users."""
    for file in folder.iterdir():
        if file.name not in FILES:
            file.unlink()
    # The same tokenizer for all, because exporters write it in slightly different ways, or not at all.
    shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")


def forget_paths(folder: Path):
    """Remove paths of this machine, which torch, mobius and old versions of transformers write into the files."""
    if (folder / "config.json").exists():
        config = json.loads((folder / "config.json").read_text())
        config.pop("_name_or_path", None)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    model.graph.name = "main_graph"
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != "pkg.torch.onnx.stack_trace"]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, folder / "model.onnx")


def fresh(folder: Path):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def optimum(name: str, work: Path, out: Path):
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from optimum.exporters.onnx import main_export
    source = fresh(work / name)
    make_model(name, source, out)
    forms = {"optimum-fp32": ("text-generation-with-past", "fp32")} if name not in OLD_ONLY else {}
    if name in OPTIMUM_FP16:
        forms["optimum-fp16"] = ("text-generation-with-past", "fp16")
    if name == "llama":
        forms["no-cache"] = ("text-generation", "fp32")
    for form, (task, dtype) in forms.items():
        main_export(str(source), fresh(out / form), task=task, dtype=dtype, do_validation=False)
        keep(out / form, source)
    if name in CONVERTED_FP16:
        half = fresh(out / "optimum-fp16")
        shutil.copytree(out / "optimum-fp32", half, dirs_exist_ok=True)
        onnx.save(convert_float_to_float16(onnx.load(half / "model.onnx"), keep_io_types=False,
                                           disable_shape_infer=True), half / "model.onnx")
        keep(half, source)
    if name == "mistral":  # the builder drops the window without layer_types, which Mistral's configurations lack
        config = json.loads((source / "config.json").read_text())
        config["layer_types"] = ["sliding_attention"] * LAYERS
        (source / "config.json").write_text(json.dumps(config))


def drop_last_cast(folder: Path):
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    graph = model.graph
    cast = next(node for node in graph.node if node.output[0] == "logits")
    assert cast.op_type == "Cast"
    graph.node.remove(cast)
    made = next(node for node in graph.node if node.output[0] == cast.input[0])
    made.output[0] = "logits"
    logits = next(value for value in graph.output if value.name == "logits")
    logits.type.tensor_type.elem_type = onnx.TensorProto.BFLOAT16
    onnx.save(model, folder / "model.onnx")


def run_module(*words, folder="."):
    done = subprocess.run([sys.executable, "-m", *map(str, words)], env=os.environ | {"HF_HUB_OFFLINE": "1"},
                          cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode != 0:
        sys.exit(f"{done.stdout}\nexport_architectures: {words[0]} failed (see above)")


def torch_export(source: Path, out: Path, **names):
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache

    class Flat(torch.nn.Module):
        """The model with its cache as plain inputs and outputs."""

        def __init__(self):
            super().__init__()
            self.model = AutoModelForCausalLM.from_pretrained(source, attn_implementation="sdpa")

        def forward(self, x, m, p, *past):
            cache = DynamicCache()
            for layer in range(LAYERS):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            logits = self.model(
                input_ids=x, attention_mask=m, position_ids=p, past_key_values=cache, use_cache=True).logits
            return logits, *(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))

    past = [torch.rand(2, SIZES["num_key_value_heads"], 5, SIZES["head_dim"]) for _ in range(2 * LAYERS)]
    example = (torch.randint(2, TOKENS, (2, 3)), torch.ones(2, 8, dtype=torch.int64),
               torch.arange(5, 8).repeat(2, 1), *past)
    free = torch.export.Dim.AUTO
    program = torch.onnx.export(
        Flat().eval(), example, dynamo=True, opset_version=23, verbose=False, **names,
        dynamic_shapes=(*[{0: free, 1: free}] * 3, tuple({0: free, 2: free} for _ in past)))
    program.save(out / "model.onnx", external_data=False)


def cache_options(source: Path, bits: str, per: str = "tensor"):
    """Options of the builder for a quantised cache. Each layer has a scale for keys and one for values, or for each
    channel."""
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(source)
    cache = model(torch.tensor([sequences()[0]]), use_cache=True).past_key_values

    def scale(states):
        most = states.abs().amax(dim=(0, 2)).flatten() if per == "channel" else states.abs().max()
        return (torch.ceil(most / LEVELS[bits] * 1e4) / 1e4 if per == "channel" else
                torch.round(most / LEVELS[bits] * 1e4) / 1e4).tolist()

    def digits(value):
        return [round(number, 4) for number in value] if isinstance(value, list) else round(value, 4)

    scales = {part: [digits(scale(getattr(layer, name))) for layer in cache.layers]
              for part, name in (("k_scales", "keys"), ("v_scales", "values"))}
    file = source / scale_file(bits, per)
    file.write_text(json.dumps({"scales": scales}))
    return f"kv_cache_quant_scheme={bits}_per_{per}", f"kv_cache_scale_file={file}"


def scale_file(bits: str, per: str):
    return f"{bits}-cache.json" if per == "tensor" else f"{bits}-{per}-cache.json"


def quantised_golden(source: Path, bits: str, out: Path, per: str = "tensor"):
    """The golden logits of a model whose keys and values are rounded as in a quantised cache."""
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache
    scales = json.loads((source / scale_file(bits, per)).read_text())["scales"]
    update = DynamicCache.update

    def rounded(self, keys, values, layer, *rest, **others):
        def round_to(states, scale):
            if isinstance(scale, list):
                scale = torch.tensor(scale, dtype=states.dtype).reshape(1, states.shape[1], 1, states.shape[3])
            if bits == "fp8":
                return (states / scale).to(torch.float8_e4m3fn).to(states.dtype) * scale
            return torch.clamp(torch.round(states / scale), -LEVELS[bits] - 1, LEVELS[bits]) * scale

        parts = [round_to(states, scales[part][layer]) for part, states in (("k_scales", keys), ("v_scales", values))]
        return update(self, *parts, layer, *rest, **others)

    DynamicCache.update = rounded
    write_golden("llama", AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager"), out)
    DynamicCache.update = update


def builder(name: str, work: Path, out: Path):
    source = work / name
    forms = {}
    if name in BUILDER:
        forms = {"builder-fp32": ("fp32", "cpu"),
                 "builder-int4": ("int4", "cpu", "--extra_options", "accuracy_level=0")}
    if name in BUILDER_FP16:
        forms["builder-fp16"] = ("fp16", "cpu")
    if name == "llama":
        forms |= {"builder-int4-level4": ("int4", "cpu"), "builder-fp16-cuda": ("fp16", "cuda"),
                  "builder-bf16-cuda": ("bf16", "cuda")}
        extra = "--extra_options"
        forms |= {f"builder-{bits}-cache": ("fp32", "cpu", extra, *cache_options(source, bits))
                  for bits in ("int8", "int4")}
        forms |= {f"builder-fp16-{bits}-cache": ("fp16", "cuda", extra, *cache_options(source, bits))
                  for bits in LEVELS}
        forms["builder-fp16-paged-int8-cache"] = ("fp16", "cuda", extra, "use_paged_attention=true",
                                                  *cache_options(source, "int8", "channel"))
        forms["builder-bf16-paged"] = ("bf16", "cuda", extra, "use_paged_attention=true", "paged_block_size=16")
    if name in BUILDER_PAGED:
        forms["builder-fp16-paged"] = ("fp16", "cuda", "--extra_options", "use_paged_attention=true",
                                       *BUILDER_PAGED[name])
    for form, (precision, provider, *options) in forms.items():
        with tempfile.TemporaryDirectory() as cache:
            run_module("onnxruntime_genai.models.builder", "-i", source, "-o", fresh(out / form), "-p", precision,
                       "-e", provider, "-c", cache, *options)
        keep(out / form, source)
    if name == "llama":
        for bits in LEVELS:
            for form in (f"builder-{bits}-cache", f"builder-fp16-{bits}-cache"):
                if form in forms:
                    quantised_golden(source, bits, out / form)
        quantised_golden(source, "int8", out / "builder-fp16-paged-int8-cache", "channel")
        shutil.copytree(out / "builder-bf16-cuda", out / "bf16-logits-cuda", dirs_exist_ok=True)
        drop_last_cast(out / "bf16-logits-cuda")
        parts = [f"{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
        torch_export(
            source, fresh(out / "torch-opset23"),
            input_names=["input_ids", "attention_mask", "position_ids", *(f"past_key_values.{part}" for part in parts)],
            output_names=["logits", *(f"present.{part}" for part in parts)])
        torch_export(source, fresh(out / "torch-unnamed"))
        run_module("mobius", "build", "--config", source, fresh(out / "mobius"))
        run_module("mobius", "build", "--config", source, fresh(out / "mobius-static"), "--static-cache",
                   "--max-seq-len", CONTEXT)
        for form in ("torch-opset23", "torch-unnamed", "mobius", "mobius-static"):
            keep(out / form, source)
            forget_paths(out / form)


def old(name: str, work: Path, out: Path):
    """Exports of early 2024: caches with keys and values in one tensor, and decoders that merge two graphs."""
    import torch
    torch.onnx.export = functools.partial(torch.onnx.export, dynamo=False)  # the default of that time
    from optimum.exporters.onnx import main_export
    source = work / name
    if name == "gpt_bigcode":
        main_export(str(source), fresh(out / "optimum-fused"), task="text-generation-with-past", do_validation=False)
        keep(out / "optimum-fused", source)
        forget_paths(out / "optimum-fused")
    if name in OLD_MERGED:
        with tempfile.TemporaryDirectory() as folder:
            main_export(str(source), folder, task="text-generation-with-past", do_validation=False, legacy=True)
            form = fresh(out / "optimum-merged")
            shutil.copyfile(f"{folder}/decoder_model_merged.onnx", form / "model.onnx")
            shutil.copyfile(f"{folder}/config.json", form / "config.json")
            keep(form, source)
            forget_paths(form)
    if name == "gpt2":
        with tempfile.TemporaryDirectory() as folder:
            run_module("onnxruntime.transformers.models.gpt2.convert_to_onnx", "-m", source.resolve(),
                       "--output", f"{folder}/model.onnx", "-p", "fp32", "-o", "-t", "1", "-r", "1",
                       "--use_int64_inputs", "--cache_dir", f"{folder}/cache", folder=folder)
            form = fresh(out / "onnxruntime-fp32")
            shutil.copyfile(f"{folder}/model.onnx", form / "model.onnx")
            shutil.copyfile(source / "config.json", form / "config.json")
            keep(form, source)


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("stage", choices=["optimum", "builder", "old"])
    args.add_argument("--work", type=Path, required=True, metavar="DIR", help="folder for the models")
    args.add_argument("--out", type=Path, default=Path("tests/exports"), metavar="DIR", help="default: tests/exports")
    args.add_argument("--only", choices=ARCHITECTURES, metavar="ARCH")
    args = args.parse_args()
    for name in [args.only] if args.only else ARCHITECTURES:
        {"optimum": optimum, "builder": builder, "old": old}[args.stage](name, args.work, args.out / name)


if __name__ == "__main__":
    main()
