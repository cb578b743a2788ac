#!/usr/bin/env python3
"""Measure how an export changes the next-token distributions of its model. Prints a Markdown table.

  measure_quantisation.py --models DIR [--exports models/demo] [--corpus corpus.json.xz]

The original (fp16 weights, computed in fp32 by transformers) and the export (ONNX Runtime, CPU) score the same text at
temperature 1. Without --corpus, the text is the demo prompts, each with a continuation that is sampled from the
original. With it, the text is the held-out documents of the corpus.

Columns: total variation distance (mean and 95th percentile), KL(original || export) in nats, how often the most
probable token is the same, perplexity of both, and "widths": the largest difference between logits of an export for
positions that are scored four at a time and one by one, behind a cache. It should be rounding noise (1e-4). Otherwise
the export is unsuitable for speculative decoding.

Needs the packages of export-requirements.txt. Takes a minute or two for each model.
"""

import argparse
import json
import lzma
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

LENGTH = 512  # tokens of a piece of held-out text


class Export:
    """An onnxruntime-genai export, run on the CPU."""

    def __init__(self, folder: Path):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(folder / "model.onnx", options, ["CPUExecutionProvider"])
        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        shape = (1, decoder["num_key_value_heads"], 0, decoder["head_size"])
        self.empty = [np.zeros(shape, np.float32) for _ in range(2 * decoder["num_hidden_layers"])]
        self.past_names = [i.name for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]
        present_names = [name.replace("past_key_values.", "present.") for name in self.past_names]
        self.output_names = ["logits", *present_names]

    def forward(self, ids, past=None):
        """The logits behind each of `ids`, and the new cache."""
        past = past or self.empty
        inputs = dict(zip(self.past_names, past))
        inputs["input_ids"] = np.array([ids], np.int64)
        inputs["attention_mask"] = np.ones((1, past[0].shape[2] + len(ids)), np.int64)
        logits, *present = self.session.run(self.output_names, inputs)
        return torch.from_numpy(logits[0]), present


def held_out(corpus: Path, tokenizer, count: int):
    """Up to `count` tokens of each held-out part, in pieces as in training."""
    opened = lzma.open(corpus) if corpus.suffix == ".xz" else corpus.open("rb")
    with opened as file:
        parts = json.load(file)
    texts = {}
    for name, key in (("GSM8K test", "math_test"), ("code, held out", "code_test")):
        ids = [0]
        for encoding in tokenizer.encode_batch(parts[key]):
            ids += [*encoding.ids, 0]
        pieces = [ids[i:i + LENGTH] for i in range(0, len(ids) - LENGTH, LENGTH)]
        texts[name] = pieces[:count // LENGTH]
    return texts


def continued(prompts: Path, tokenizer, model, count: int):
    """Prompts with continuations of up to 96 tokens sampled from `model`, up to `count` tokens of each kind."""
    texts = {}
    for name, file in (("GSM8K prompts", "gsm8k.jsonl"), ("HumanEval prompts", "humaneval.jsonl")):
        torch.manual_seed(0)
        texts[name] = []
        for line in (prompts / file).open(encoding="utf-8"):
            if sum(map(len, texts[name])) >= count:
                break
            ids = torch.tensor([[0, *tokenizer.encode(json.loads(line)["prompt"]).ids]])
            whole = model.generate(ids, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, max_new_tokens=96,
                                   attention_mask=torch.ones_like(ids), pad_token_id=0)
            texts[name].append(whole[0].tolist())
    return texts


def compare(model, export: Export, sequences):
    """The columns of one row of the table."""
    distance, divergence, same, losses = [], [], [], []
    for ids in sequences:
        original = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
        exported = export.forward(ids)[0].log_softmax(-1)
        distance.append((original.exp() - exported.exp()).abs().sum(-1) / 2)
        divergence.append((original.exp() * (original - exported)).sum(-1))
        same.append((original.argmax(-1) == exported.argmax(-1)).float())
        following = torch.tensor(ids[1:])[:, None]
        losses.append(torch.cat([-original[:-1].gather(1, following), -exported[:-1].gather(1, following)], 1))
    distance, divergence, same, losses = map(torch.cat, (distance, divergence, same, losses))
    return {
        "tokens": f"{len(distance):,}",
        "TV mean": f"{distance.mean():.4f}",
        "TV p95": f"{distance.quantile(0.95):.4f}",
        "KL": f"{divergence.mean():.4f}",
        "same top token": f"{same.mean():.1%}",
        "perplexity": " → ".join(f"{p:.2f}" for p in losses.mean(0).exp()),
    }


def width_difference(export: Export, ids, width=4):
    """The largest difference between logits of `width` positions at a time and of one at a time."""
    context, ids = ids[:128], ids[128:128 + 12 * width]
    runs = []
    for step in (1, width):
        _, past = export.forward(context)
        rows = []
        for i in range(0, len(ids), step):
            logits, past = export.forward(ids[i:i + step], past)
            rows.append(logits)
        runs.append(torch.cat(rows))
    return (runs[0] - runs[1]).abs().max().item()


@torch.no_grad()
def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--models", type=Path, required=True, metavar="DIR", help="folder of Hugging Face models")
    args.add_argument("--exports", type=Path, default=Path("models/demo"), metavar="DIR", help="default: models/demo")
    args.add_argument("--only", metavar="NAMES", help="default: every model in --exports")
    args.add_argument("--corpus", type=Path, metavar="FILE", help="JSON, or JSON in xz, with lists of documents "
                      "named math_test and code_test")
    args.add_argument("--prompts", type=Path, default=Path("models/demo/prompts"), metavar="DIR",
                      help="default: models/demo/prompts")
    args.add_argument("--tokens", type=int, default=8192, help="tokens of each text, about; default: 8192")
    args = args.parse_args()

    names = args.only.split(",") if args.only else sorted(p.parent.name for p in args.exports.glob("*/model.onnx"))
    if not names:
        sys.exit(f"measure_quantisation: no model.onnx in the folders of {args.exports}")
    needed = [args.models / n / "model.safetensors" for n in names] + [args.exports / n / "model.onnx" for n in names]
    for path in [*needed, args.corpus or args.prompts]:
        if not path.exists():
            sys.exit(f"measure_quantisation: {path} is missing")

    header = None
    for name in names:
        tokenizer = Tokenizer.from_file(str(args.models / name / "tokenizer.json"))
        model = AutoModelForCausalLM.from_pretrained(args.models / name, dtype=torch.float32).eval()
        export = Export(args.exports / name)
        if args.corpus:
            texts = held_out(args.corpus, tokenizer, args.tokens)
        else:
            texts = continued(args.prompts, tokenizer, model, args.tokens)
        for text, sequences in texts.items():
            row = {"model": name, "text": text} | compare(model, export, sequences)
            row["widths"] = f"{width_difference(export, sum(sequences, [])):.0e}"
            if header is None:
                header = list(row)
                print("| " + " | ".join(header) + " |\n|" + " --- |" * len(header))
            print("| " + " | ".join(row.values()) + " |", flush=True)


if __name__ == "__main__":
    main()
