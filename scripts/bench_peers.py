#!/usr/bin/env python3
"""Decodes with several models by other libraries, as peers for `make bench`: a worker that answers lines of JSON.

  bench_peers.py genai [KEY=VALUE...]                 a loop over generators of onnxruntime-genai, with these options of
                                                      their ONNX Runtime sessions
  bench_peers.py genai provider=cuda [KEY=VALUE...]   the same on a GPU (onnxruntime-genai-cuda), with options of the
                                                      provider
  bench_peers.py torch [cuda]                         Hugging Face transformers with KV caches: fp32, or fp16 on a GPU

The first line of output is {"versions": {…}} or {"error"}. Each line of input has {"method", "models", "combine",
"lengths", "temperature", "seed", "prompt", "tokens"}. The answer is {"tokens": […], "seconds"} or {"error"}. The clock
starts after the first token, as it does for CoS.
"""

import json
import os
import sys
import time

import numpy as np


def softmax(row):
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


def combined(rows, combine, temperature):
    """The distribution to decode. For greedy decoding, scores of which the first maximum is the token."""
    greedy = temperature == 0
    scale = 1 if greedy else 1 / temperature
    if combine["kind"] == "weighted":
        return sum(w * softmax(row * scale) for w, row in zip(combine["weights"], rows) if w)
    if combine["kind"] == "contrastive":
        scores = rows[0] - combine["mu"] * rows[1]
    else:
        scores = rows[combine["model"]]
    return scores if greedy else softmax(scores * scale)


def needed(combine, models):
    """The models whose rows the combination needs."""
    if combine["kind"] == "weighted":
        return [k for k in range(models) if combine["weights"][k]]
    return [0, 1] if combine["kind"] == "contrastive" else [combine["model"]]


def draw(distribution, temperature, random):
    if temperature == 0:
        return int(distribution.argmax())
    cumulative = distribution.cumsum()
    return min(int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right")), len(cumulative) - 1)


class Genai:
    """onnxruntime-genai: a generator for each model. Their logits are combined, and the token is appended to each."""

    def __init__(self, options):
        import onnxruntime_genai

        self.genai, self.models = onnxruntime_genai, {}
        self.options = {key: int(value) if key.endswith("threads") else value for key, value in options}
        self.provider = self.options.pop("provider", None)
        name = getattr(onnxruntime_genai, "__id__", "onnxruntime-genai")
        self.versions = {name: onnxruntime_genai.__version__}

    def model(self, path):
        if path not in self.models:
            config = self.genai.Config(path)
            # CoS runs without a stop token. Here there must be one, so it is a rare token.
            with open(os.path.join(path, "genai_config.json")) as file:
                rare = json.load(file)["model"]["vocab_size"] - 1
            changes = {"model": {"eos_token_id": rare}}
            config.clear_providers()
            if self.provider:
                config.append_provider(self.provider)
                for key, value in self.options.items():
                    config.set_provider_option(self.provider, key, value)
            else:
                changes["model"]["decoder"] = {"session_options": self.options}
            config.overlay(json.dumps(changes))
            self.models[path] = self.genai.Model(config)
        return self.models[path]

    def generator(self, request, index, **options):
        model = self.model(request["models"][index])
        params = self.genai.GeneratorParams(model)
        # The cache is as small as possible.
        params.set_search_options(max_length=len(request["prompt"]) + request["tokens"] + 1, **options)
        return self.genai.Generator(model, params)

    def generate(self, request, _):
        """One model, greedily, with the loop of genai, which does not copy the logits."""
        generator = self.generator(request, 0, do_sample=False)
        generator.append_tokens(np.array(request["prompt"], dtype=np.int32))
        for _ in range(request["tokens"]):
            if generator.is_done():
                return
            generator.generate_next_token()
            yield int(generator.get_next_tokens()[0])

    def standard(self, request, random):
        combine, temperature = request["combine"], request["temperature"]
        models = needed(combine, len(request["models"]))
        generators = {k: self.generator(request, k) for k in models}
        rows, new = [None] * len(request["models"]), np.array(request["prompt"], dtype=np.int32)
        for _ in range(request["tokens"]):
            for k, generator in generators.items():
                generator.append_tokens(new)
                rows[k] = np.asarray(generator.get_logits(), dtype=np.float32)[0, -1]
            token = draw(combined(rows, combine, temperature), temperature, random)
            new = np.array([token], dtype=np.int32)
            yield token


class Torch:
    """transformers: standard decoding, and Algorithms 1 and 2 of the paper, made lossless."""

    def __init__(self, device="cpu"):
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        self.torch, self.transformers, self.models, self.checked = torch, transformers, {}, set()
        self.device, where = device, f"{torch.get_num_threads()} threads"
        # Scores that differ by less than `tie` are a near tie, which the order of sums may decide.
        self.dtype, self.tie = torch.float32, 1e-3
        if device != "cpu":
            self.dtype, self.tie, where = torch.float16, 2e-2, torch.cuda.get_device_name()
        self.versions = {
            "torch": f"{torch.__version__}, {where}",
            "transformers": transformers.__version__,
        }

    def lane(self, path):
        """A function that runs a model over tokens and returns their rows of logits, and its cache, empty at first."""
        torch, transformers = self.torch, self.transformers
        if path not in self.models:
            model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=self.dtype)
            self.models[path] = model.to(self.device).eval()
        model, cache = self.models[path], transformers.DynamicCache()

        def run(tokens):
            with torch.inference_mode():
                tokens = torch.tensor([tokens], device=self.device)
                logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits[0]
                return logits.float().cpu().numpy()

        return run, cache

    def standard(self, request, random):
        combine, temperature = request["combine"], request["temperature"]
        lanes = {k: self.lane(request["models"][k])[0] for k in needed(combine, len(request["models"]))}
        rows, new = [None] * len(request["models"]), request["prompt"]
        for _ in range(request["tokens"]):
            for k, run in lanes.items():
                rows[k] = run(new)[-1]
            token = draw(combined(rows, combine, temperature), temperature, random)
            new = [token]
            yield token

    def cos(self, request, random):
        self.check(request)
        yield from self.turns(request, random)

    def check(self, request):
        """Checks that greedy decoding by turns gives the tokens of standard decoding, except for near ties."""
        request = request | {"temperature": 0, "tokens": 48}
        key = json.dumps([request["models"], request["combine"], request["lengths"]])
        if key in self.checked:
            return
        expected, got = list(self.standard(request, None)), list(self.turns(request, None))
        if expected != got:
            differing = next(i for i, (a, b) in enumerate(zip(expected, got)) if a != b)
            last = request | {"prompt": request["prompt"] + expected[:differing], "tokens": 1}
            rows = [self.lane(path)[0](last["prompt"])[-1] for path in request["models"]]
            best = np.sort(combined(rows, request["combine"], 0))[-2:]
            if best[1] - best[0] > self.tie:
                raise RuntimeError(f"Algorithm 1 differs from standard decoding at token {differing}, where the best "
                                   f"scores differ by {best[1] - best[0]}")
        self.checked.add(key)

    def turns(self, request, random):
        """Algorithms 1 and 2: the model that has seen the fewest tokens runs, and its last row is its proposal."""
        combine, temperature, lengths = request["combine"], request["temperature"], request["lengths"]
        models = range(len(request["models"]))
        lanes = [self.lane(path) for path in request["models"]]
        need = needed(combine, len(lanes))
        order = sorted(models, key=lambda k: (lengths[k] == 0, request["sizes"][k]))
        tokens, committed = list(request["prompt"]), len(request["prompt"])
        end, seen = committed + request["tokens"], [0 for _ in models]
        rows = [{} for _ in models]  # for each model: position → logits
        drafts = []  # the distribution of each proposal

        def run(k):
            for position, row in enumerate(lanes[k][0](tokens[seen[k] :]), seen[k] + 1):
                rows[k][position] = row
            seen[k] = len(tokens)

        def drop():
            drafts.clear()
            for k in models:
                if seen[k] > committed:
                    lanes[k][1].crop(committed)
                    seen[k] = committed

        while committed < end:
            k = min(order, key=lambda k: seen[k])
            for turn in range(max(lengths[k], 1)):
                run(k)
                while committed < end and all(seen[j] >= committed for j in need):
                    target = combined([rows[j].get(committed) for j in models], combine, temperature)
                    if not drafts:
                        tokens.append(draw(target, temperature, random))
                    else:
                        draft, q = tokens[committed], drafts.pop(0)
                        if temperature == 0:
                            accept = target.argmax() == draft
                        else:
                            accept = random.random() * q[draft] < target[draft]
                        if not accept:
                            residual = target if temperature == 0 else np.maximum(target - q, 0)
                            del tokens[committed:]
                            drop()
                            tokens.append(draw(residual if residual.any() else target, temperature, random))
                    for row in rows:
                        row.pop(committed, None)
                    committed += 1
                    yield tokens[committed - 1]
                if turn >= lengths[k] or seen[k] < len(tokens) or len(tokens) >= end:
                    break
                q = rows[k][len(tokens)] if temperature == 0 else softmax(rows[k][len(tokens)] / temperature)
                tokens.append(draw(q, temperature, random))
                drafts.append(q)


def answer(backend, request):
    random = np.random.default_rng(request["seed"])
    tokens, start = [], None
    for token in getattr(backend, request["method"])(request, random):
        tokens.append(token)
        if start is None:
            start = time.perf_counter()
    return {"tokens": tokens, "seconds": time.perf_counter() - start}


def main():
    # Answers go to the original standard output. Output of libraries goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kind, *options = sys.argv[1:]
    try:
        backend = Genai(option.split("=") for option in options) if kind == "genai" else Torch(*options)
    except Exception as error:  # a package or one of its libraries is missing
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({"versions": backend.versions}), file=answers)
    for line in sys.stdin:
        try:
            result = answer(backend, json.loads(line))
        except Exception as error:  # the benchmark reports it and leaves out this row
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
