#!/usr/bin/env python3
"""Learn weights of two models that depend on the prompt, by likelihood (as SESoM does, Peng et al. 2022).

  fit_weights.py [--engine models/demo/engine.json] [--prompts FILE ...] [--library target/release/libcos.so]

The first half of each prompt tells how well each model predicts it. From that, a logistic function gives the weight of
the second model. It is fitted so that the mixture gives the second halves of half of the prompts the highest
likelihood. The other prompts judge it, against the best weight that is the same for all prompts.

A server does the same with a new prompt: cos_session_score tells the log-probabilities of both models, the function
gives the weights, and cos_session_set_weights sets them. With `weigh` in cos_session_options, a function gives new
weights at each position.
"""

import argparse
import ctypes
import json
import math
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "models/demo"


class Options(ctypes.Structure):
    """cos_session_options as far as it is used. Members behind the last one are 0."""

    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("before", ctypes.c_char * 92),
        ("log_probabilities", ctypes.c_int32),
        ("between", ctypes.c_char * 136),
        ("model_log_probabilities", ctypes.c_int32),
        ("log_probabilities_before", ctypes.c_int32),
    ]


class StepResult(ctypes.Structure):
    _fields_ = [
        ("struct_size", ctypes.c_size_t),
        ("tokens", ctypes.c_void_p),
        ("tokens_count", ctypes.c_size_t),
        ("finish", ctypes.c_int32),
        ("reserved", ctypes.c_int32),
        ("log_probabilities", ctypes.POINTER(ctypes.c_float)),
        ("top_tokens", ctypes.c_void_p),
        ("top_log_probabilities", ctypes.c_void_p),
        ("top_count", ctypes.c_size_t),
        ("model_log_probabilities", ctypes.POINTER(ctypes.c_float)),
    ]


class Cos:
    def __init__(self, library, engine):
        self.library = ctypes.CDLL(str(library))
        self.library.cos_error_message.restype = ctypes.c_char_p
        self.engine = ctypes.c_void_p()
        self.call("cos_engine_open", str(engine).encode(), ctypes.byref(self.engine))

    def call(self, name, *arguments):
        function = getattr(self.library, name)
        function.restype = ctypes.c_void_p
        if error := function(*arguments):
            raise SystemExit(self.library.cos_error_message(ctypes.c_void_p(error)).decode())

    def encode(self, text):
        text, count = text.encode(), ctypes.c_size_t()
        tokens = (ctypes.c_int32 * (len(text) + 8))()
        size, capacity = ctypes.c_size_t(len(text)), ctypes.c_size_t(len(tokens))
        self.call("cos_engine_encode", self.engine, text, size, 1, tokens, capacity, ctypes.byref(count))
        return tokens[: count.value]

    def scores(self, text):
        """The probability of each token but the first, under each of the two models."""
        tokens = self.encode(text)
        options = Options(log_probabilities=1, model_log_probabilities=1, log_probabilities_before=1)
        options.struct_size = ctypes.sizeof(Options)
        session, result = ctypes.c_void_p(), StepResult(struct_size=ctypes.sizeof(StepResult))
        self.call("cos_session_new", self.engine, ctypes.byref(options), ctypes.byref(session))
        given = (ctypes.c_int32 * len(tokens))(*tokens)
        self.call("cos_session_score", session, given, ctypes.c_size_t(len(tokens)), ctypes.byref(result))
        values = result.model_log_probabilities[: 2 * len(tokens)]
        self.library.cos_free(session)
        return [(values[index], values[index + 1]) for index in range(2, len(values), 2)]


def likelihood(texts, weight):
    """The mean log-probability of a token of the second halves, if `weight` gives the weight of the second model."""
    total, count = 0.0, 0
    for lead, rest in texts:
        share = weight(lead)
        for one, two in rest:
            total += math.log((1 - share) * math.exp(one) + share * math.exp(two))
        count += len(rest)
    return total / count


def search(function, start, step):
    """Climb along each argument in turn, with steps that become smaller."""
    best, at = function(*start), list(start)
    while step > 0.01:
        improved = False
        for index in range(len(at)):
            for change in step, -step:
                tried = at[:index] + [at[index] + change] + at[index + 1 :]
                if (value := function(*tried)) > best:
                    best, at, improved = value, tried, True
        step = step if improved else step / 2
    return at


def logistic(value):
    return 1 / (1 + math.exp(-max(-30.0, min(30.0, value))))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", type=Path, default=DEMO / "engine.json")
    parser.add_argument("--library", type=Path, default=ROOT / "target/release/libcos.so")
    prompts = [DEMO / "prompts/gsm8k.jsonl", DEMO / "prompts/humaneval.jsonl"]
    parser.add_argument("--prompts", type=Path, nargs="+", default=prompts)
    parser.add_argument("--most", type=int, default=60, help="prompts of each file")
    options = parser.parse_args()
    cos = Cos(options.library, options.engine)
    texts = []
    for file in options.prompts:
        for line in file.read_text().splitlines()[: options.most]:
            scores = cos.scores(json.loads(line)["prompt"])
            lead, rest = scores[: len(scores) // 2], scores[len(scores) // 2 :]
            # How much better the second model predicts a token of the first half.
            texts.append((sum(two - one for one, two in lead) / max(1, len(lead)), rest))
    train, test = texts[::2], texts[1::2]
    (fixed,) = search(lambda bias: likelihood(train, lambda _: logistic(bias)), [0.0], 1.0)
    slope, bias = search(lambda a, b: likelihood(train, lambda lead: logistic(a * lead + b)), [0.0, fixed], 4.0)
    print(f"{len(train)} prompts to learn from, {len(test)} to judge by; mean log-probability of their tokens:")
    for name, weight in [
        ("equal weights", lambda _: 0.5),
        (f"the best fixed weight, {logistic(fixed):.2f}", lambda _: logistic(fixed)),
        (
            f"weights by the prompt, 1 / (1 + e^-({slope:.1f} d {bias:+.1f}))",
            lambda lead: logistic(slope * lead + bias),
        ),
    ]:
        print(f"  {likelihood(test, weight):.4f}  {name}")
    print("d: by how much the second model gives a token of the first half a higher log-probability")


main()
