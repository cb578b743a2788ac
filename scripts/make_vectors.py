#!/usr/bin/env python3
"""Make tests/vectors: combined distributions of real models, computed without CoS.

  make_vectors.py --models DIR                       tests/vectors/demo and tests/vectors/tiny
  make_vectors.py --models DIR --weights original \\
                  --exports EXPORTS --out OUT        the same for plain fp32 exports of DIR's models

PyTorch runs the models in float64, one context at a time and without caches. The functions below define the combination
of their logits, the filters and the joint distributions. tests/vectors/README.md documents the files.

demo: the models in DIR (base, math and small: config.json, model.safetensors, tokenizer.json). The exports in
models/demo are packed, so the weights are rounded here as export_demo.py rounds them.

tiny: the random models of export_architectures.py, which derives their weights from their names.

Needs the packages of export-requirements.txt. Every run makes the same files. It takes some minutes.
"""

import argparse
import heapq
import json
import math
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from export_architectures import ARCHITECTURES, SIZES, TOKENS, sequences, set_weights
from export_demo import quantise

VERSION = 1
GREEDY_TOKENS = 12  # most tokens of a greedy continuation
CELLS = {1: 32, 2: 24, 3: 24}  # most cells of the joint distribution of that many tokens
LISTED_SUPPORT = 256  # supports of up to this many tokens are listed
# An export computes in fp32, so it may decide otherwise if two scores differ by less than this. Such choices are not in
# the vectors. The number is twice CoS's threshold of a near tie, and far above the measured differences (see the
# README).
NEAR = 2e-3
EDGE = 5e-4  # the same for the cut of a filter
ROUNDING = 1e-12  # rounding error of a sum of probabilities: if no more than this is missing, the list is complete


# The definitions of the distributions that CoS samples from.


class Sampler(NamedTuple):
    temperature: float
    top_k: int = 0
    top_p: float = 0.0
    min_p: float = 0.0


SAMPLERS = [
    Sampler(0.7),
    Sampler(1.0),
    Sampler(1.3),
    Sampler(1.0, top_k=8),
    Sampler(1.0, top_p=0.8),
    Sampler(1.0, min_p=0.1),
    Sampler(0.7, top_k=20, top_p=0.9, min_p=0.02),
    Sampler(1.3, top_k=2),  # so few continuations that all are listed
]


def process(scores, sampler):
    """Temperature, top-k, top-p, min-p, softmax. Also returns the margin of the closest cut of a filter."""
    ranked, order = torch.sort(scores / sampler.temperature, descending=True, stable=True)
    kept, edge = int(torch.isfinite(ranked).sum()), math.inf
    if 0 < sampler.top_k < kept:
        edge = min(edge, (ranked[sampler.top_k - 1] - ranked[sampler.top_k]).item())
        kept = sampler.top_k
    if 0 < sampler.top_p < 1:
        share = ranked[:kept].softmax(0).cumsum(0)
        edge = min(edge, (share - sampler.top_p).abs().min().item())
        kept = min(kept, int((share < sampler.top_p).sum()) + 1)
    if sampler.min_p > 0:
        above = ranked[:kept] - ranked[0] - math.log(sampler.min_p)
        edge = min(edge, above.abs().min().item())
        kept = int((above >= 0).sum())
    probabilities = torch.zeros_like(scores)
    probabilities[order[:kept]] = ranked[:kept].softmax(0)
    return probabilities, edge


def sum_of_logits(combine, rows):
    """The scores of any combination except a mixture. Also returns the margin of the plausibility mask."""
    if combine["kind"] == "target":
        return rows[combine["model"]], math.inf
    if combine["kind"] == "logits":
        return sum(weight * row for weight, row in zip(combine["weights"], rows)), math.inf
    assert combine["kind"] == "contrastive"
    expert, amateur = rows[:2]
    scores, edge = expert - combine["mu"] * amateur, math.inf
    if combine["plausibility"] > 0:
        above = expert - expert.max() - math.log(combine["plausibility"])
        edge = above.abs().min().item()
        scores[above < 0] = -math.inf
    return scores, edge


def combined(combine, rows, sampler):
    """The distribution r of the next token, from the logits of all models. Also returns the closest cut's margin."""
    if combine["kind"] == "weighted":
        parts = [(weight, *process(row, sampler)) for weight, row in zip(combine["weights"], rows) if weight > 0]
        return sum(weight * p for weight, p, _ in parts), min(edge for _, _, edge in parts)
    scores, edge = sum_of_logits(combine, rows)
    probabilities, cut = process(scores, sampler)
    return probabilities, min(edge, cut)


def greedy(combine, rows):
    """The greedy token, its ln r at temperature 1, and its margin over the second best score (for mixtures, over the
    second best log-probability). Also returns the margin of the plausibility mask."""
    if combine["kind"] == "weighted":
        parts = zip(combine["weights"], rows)
        ranking, edge = sum(weight * row.softmax(0) for weight, row in parts).log(), math.inf
        logarithms = ranking
    else:
        ranking, edge = sum_of_logits(combine, rows)
        logarithms = ranking.log_softmax(0)
    (best, second), (token, _) = (part.tolist() for part in ranking.topk(2))
    return token, logarithms[token].item(), best - second, edge


def likeliest(length, distribution):
    """The most probable continuations of `length` tokens, best first.

    The search is exact, because no continuation is more probable than its beginning. Continuations of a context with a
    close cut are left out.
    """
    cells, heap = [], [(0.0, ())]
    while heap and len(cells) < CELLS[length]:
        surprise, tokens = heapq.heappop(heap)
        if len(tokens) == length:
            cells.append((-surprise, tokens))
            continue
        probabilities, edge = distribution(tokens)
        if edge < EDGE:
            continue
        best = probabilities.log().topk(min(CELLS[length], int((probabilities > 0).sum())))
        for logarithm, token in zip(best.values.tolist(), best.indices.tolist()):
            heapq.heappush(heap, (surprise - logarithm, (*tokens, token)))
    return cells


# The models.


class Model:
    """The logits after a context, in float64."""

    def __init__(self, model, vocabulary):
        self.model, self.vocabulary, self.rows = model.double().eval(), vocabulary, {}
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):  # transformers always computes it in float32
                def forward(x, m=module):
                    return m.weight * x * (x.square().mean(-1, True) + m.variance_epsilon).rsqrt()

                module.forward = forward

    def logits(self, context):
        context = tuple(context)
        if context not in self.rows:
            # Embeddings behind the tokens of the tokenizer are padding.
            self.rows[context] = self.model(torch.tensor([context])).logits[0, -1, :self.vocabulary]
        return self.rows[context].clone()


def pack(model):
    """Round the weights of a Llama as export_demo.py does."""

    def rounded(weight, bits):
        codes, scale = quantise(weight.numpy().T.copy(), bits)  # ONNX has the axes inputs, outputs
        return torch.from_numpy((codes * scale.astype("float32")).reshape(weight.T.shape).T.copy())

    narrow = model.config.hidden_size < 256
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            parameter.data = parameter.data.half().float()
        else:
            parameter.data = rounded(parameter.data, 8 if narrow or "embed" in name else 6)
    rotary = model.model.rotary_emb
    table = rotary.forward
    rotary.forward = lambda *args, **options: tuple(part.half().double() for part in table(*args, **options))


def demo_models(folder: Path, packed: bool):
    vocabulary = Tokenizer.from_file(str(folder / "base/tokenizer.json")).get_vocab_size()
    models = {}
    for name in ("base", "math", "small"):
        model = transformers.AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32)
        if packed:
            pack(model)
        models[name] = Model(model, vocabulary)
    return models, vocabulary


def tiny_models():
    models = {}
    for name in ("llama", "qwen3", "mistral", "gpt2"):
        kind, options = ARCHITECTURES[name]
        options = {key: value for key, value in (SIZES | options).items() if value is not None}
        config = getattr(transformers, kind)(**options, bos_token_id=0, eos_token_id=0, pad_token_id=0)
        model = transformers.AutoModelForCausalLM.from_config(config)
        set_weights(name, model)
        models[name] = Model(model, TOKENS)
        golden = np.fromfile(f"tests/exports/{name}/golden.f32", "<f4")[:model.config.vocab_size]
        if abs(models[name].logits(sequences()[0][:1]) - golden[:TOKENS]).max() > 1e-5:
            sys.exit(f"make_vectors: {name} is not the model of tests/exports; run export_architectures.py")
    return models, TOKENS


# The engines and prompts.


class Set(NamedTuple):
    """Engines over some models, and prompts for them. An engine is a list of models and a combination."""

    paths: dict
    engines: dict
    prompts: dict  # tokens, and their text or None
    greedy: list  # the prompts that are continued greedily
    sampled: list
    tolerance: float


def demo_set(folder: Path, exports: Path):
    both, three = ["base", "math"], ["base", "math", "small"]
    texts = {
        "apples": "Question: Tom has 3 apples and",
        "class": "class Reader:\n    def read(self",
        "robe": "Question: A robe takes 2 bolts of blue fiber and half that much white fiber.  "
                "How many bolts in total does it take?\nAnswer:",
    }
    tokenizer = Tokenizer.from_file(str(folder / "base/tokenizer.json"))
    return Set(
        paths={name: f"{exports}/{name}" for name in three},
        engines={
            "weighted-2": (both, {"kind": "weighted", "weights": [0.6, 0.4]}),
            "weighted-3": (three, {"kind": "weighted", "weights": [0.5, 0.3, 0.2]}),
            "weighted-4": (["small", *three], {"kind": "weighted", "weights": [0.1, 0.4, 0.3, 0.2]}),
            "contrastive": (["base", "small"], {"kind": "contrastive", "mu": 0.1, "plausibility": 0.0}),
            "plausible": (["math", "small"], {"kind": "contrastive", "mu": 0.5, "plausibility": 0.05}),
            "logits": (three, {"kind": "logits", "weights": [1.0, 0.5, -0.25]}),
            "target": (["small", "math"], {"kind": "target", "model": 1}),
        },
        prompts={name: ([0, *tokenizer.encode(text).ids], text) for name, text in texts.items()},
        greedy=["class", "robe"],
        sampled=["apples", "class"],
        tolerance=2e-4,
    )


def tiny_set(exports: Path):
    # Different kinds of exports: with a shared or a concatenated cache, a sliding window, and a padded vocabulary.
    forms = {"llama": "builder-fp32", "qwen3": "optimum-fp32", "mistral": "builder-fp32", "gpt2": "optimum-fp32"}
    pair, all_of_them = ["llama", "qwen3"], list(forms)
    return Set(
        paths={name: f"{exports}/{name}/{form}" for name, form in forms.items()},
        engines={
            "weighted-2": (pair, {"kind": "weighted", "weights": [0.5, 0.5]}),
            "weighted-3": (["mistral", "gpt2", "llama"], {"kind": "weighted", "weights": [0.2, 0.3, 0.5]}),
            "weighted-4": (all_of_them, {"kind": "weighted", "weights": [0.4, 0.3, 0.2, 0.1]}),
            "drafter": (["qwen3", "mistral", "llama"], {"kind": "weighted", "weights": [0.75, 0.25, 0.0]}),
            "contrastive-0.1": (pair, {"kind": "contrastive", "mu": 0.1, "plausibility": 0.0}),
            "contrastive-0.5": (["mistral", "gpt2"], {"kind": "contrastive", "mu": 0.5, "plausibility": 0.0}),
            "plausible-0.5": (["gpt2", "llama"], {"kind": "contrastive", "mu": 0.5, "plausibility": 0.1}),
            "plausible-1": (pair[::-1], {"kind": "contrastive", "mu": 1.0, "plausibility": 0.02}),
            "logits": (all_of_them, {"kind": "logits", "weights": [0.5, 0.5, 0.25, -0.25]}),
            "target": (["mistral", "qwen3"], {"kind": "target", "model": 1}),
        },
        # The sequences have the same beginning, and differ from their 12th token on.
        prompts={name: (tokens[12:22], None) for name, tokens in zip(("first", "second", "third"), sequences())}
        | {"long": (sequences()[0][:32], None)},
        greedy=["second", "third", "long"],
        sampled=["first", "second", "third"],
        tolerance=5e-5,
    )


# The files.


def number(value: float):
    """Seven decimals. Zero has no minus."""
    return f"{value + 0.0:.7f}".replace("-0.0000000", "0.0000000")


def write_greedy(lines, prompt, tokens, combine, rows):
    continuation, context = [], tuple(tokens)
    while len(continuation) < GREEDY_TOKENS:
        token, logarithm, margin, edge = greedy(combine, rows(context))
        if margin < NEAR or edge < EDGE:
            break
        continuation.append(f"token {token} {number(logarithm)} {number(margin)}")
        context += (token,)
    lines += [f"greedy {prompt}", *continuation]
    return len(continuation)


def write_sampled(lines, prompt, tokens, sampler, combine, rows):
    known = {}

    def distribution(after):
        if after not in known:
            known[after] = combined(combine, rows((*tokens, *after)), sampler)
        return known[after]

    first, edge = distribution(())
    if edge < EDGE:
        return False
    support = first.nonzero().flatten().tolist()
    listed = support if len(support) <= LISTED_SUPPORT else []
    lines.append(f"sampled {prompt} {' '.join(map(str, sampler))}")
    lines.append(" ".join(map(str, ["support", len(support), *listed])))
    for length, word in enumerate(("next", "pair", "triple"), 1):
        cells = likeliest(length, distribution)
        lines += [" ".join(map(str, [word, number(logarithm), *cell])) for logarithm, cell in cells]
        rest = 1 - math.fsum(math.exp(logarithm) for logarithm, _ in cells)
        lines.append(f"rest {word} {rest if rest > ROUNDING else 0:.9e}")
    return True


def write_engine(file: Path, title: str, names, combine, asked: Set, models, vocabulary):
    def rows(context):
        return [models[name].logits(context) for name in names]

    engine = {"models": [{"path": asked.paths[name]} for name in names], "combine": combine}
    lines = [f"cos-vectors {VERSION}", f"# {title}; made by scripts/make_vectors.py, see tests/vectors/README.md",
             f"engine {json.dumps(engine)}", f"vocabulary {vocabulary}", f"tolerance {asked.tolerance}"]
    for prompt, (tokens, text) in asked.prompts.items():
        lines += [f"# {json.dumps(text)}"] if text else []
        lines.append(f"prompt {prompt} {' '.join(map(str, tokens))}")

    short = 0
    for prompt in asked.greedy:
        short += write_greedy(lines, prompt, asked.prompts[prompt][0], combine, rows) < GREEDY_TOKENS
    for index, sampler in enumerate(SAMPLERS):
        # The samplers use the prompts in turn. If the first cut behind a prompt is close, the next prompt is used.
        first = index % len(asked.sampled)
        turns = asked.sampled[first:] + asked.sampled[:first]
        if not any(write_sampled(lines, name, asked.prompts[name][0], sampler, combine, rows) for name in turns):
            sys.exit(f"make_vectors: {file.stem}: a filter of {sampler} has a close cut behind every prompt; "
                     "change the prompts")
    file.write_text("\n".join([*lines, "end"]) + "\n")
    print(f"{file}: {file.stat().st_size:,} bytes; {short} greedy continuations end at a near tie", flush=True)


@torch.no_grad()
def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--models", type=Path, required=True, metavar="DIR", help="folder of Hugging Face models")
    args.add_argument("--out", type=Path, default=Path("tests/vectors"), metavar="DIR", help="default: tests/vectors")
    args.add_argument("--weights", choices=["packed", "original"], default="packed",
                      help="the rounded weights of models/demo, or those in --models; default: packed")
    args.add_argument("--exports", type=Path, default=Path("models/demo"), metavar="DIR",
                      help="exports of the models, for the engines; default: models/demo")
    args.add_argument("--only", choices=["demo", "tiny"], help="default: both, or demo for original weights")
    args = args.parse_args()
    torch.set_num_threads(1)  # the same sums on every machine, and faster for small products
    for name in ("base", "math", "small"):
        if not (args.models / name / "model.safetensors").is_file():
            sys.exit(f"make_vectors: {args.models / name / 'model.safetensors'} is missing")
    packed = args.weights == "packed"
    if packed != (args.exports == Path("models/demo")):
        sys.exit("make_vectors: models/demo has packed weights, so --weights original needs other --exports")

    sets = {"demo": lambda: (demo_set(args.models, args.exports), *demo_models(args.models, packed))}
    if packed:
        sets["tiny"] = lambda: (tiny_set(Path("tests/exports")), *tiny_models())
    for name, make in sets.items():
        if args.only not in (None, name):
            continue
        asked, models, vocabulary = make()
        (args.out / name).mkdir(parents=True, exist_ok=True)
        for title, (names, combine) in asked.engines.items():
            file = args.out / name / f"{title}.txt"
            write_engine(file, f"{name}: {title}", names, combine, asked, models, vocabulary)


if __name__ == "__main__":
    main()
