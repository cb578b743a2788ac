#!/usr/bin/env python3
"""Make tests/vectors/controls.json: what transformers' logits processors make of rows.

  make_control_vectors.py [--out FILE]

transformers has no presence and no frequency penalty: OpenAI's definition is written out here. Needs torch and
transformers. Every run makes the same file.
"""

import argparse
import json
import random
from pathlib import Path

import torch
import transformers
from transformers.generation import logits_process as hf

VOCAB = 40
PROMPT = 12


def openai(presence, frequency):
    """Presence and frequency penalty, as OpenAI defines them: over the generated text."""

    def process(ids, scores):
        counts = torch.bincount(ids[0, PROMPT:], minlength=VOCAB)
        return scores - presence * (counts > 0) - frequency * counts

    return process


def cases():
    """Options with the processors that do the same, in the order of CoS."""
    eos = torch.tensor([3])
    bias = {(5,): 2.5, (9,): -1.25, (11,): 0.75}
    words = [[7], [2, 8], [1, 2, 6]]
    yield {"bias": [[5, 2.5], [9, -1.25], [11, 0.75]]}, [hf.SequenceBiasLogitsProcessor(bias)]
    for penalty in 1.3, 0.8:
        yield {"repetition_penalty": penalty}, [hf.RepetitionPenaltyLogitsProcessor(penalty)]
    yield {"presence_penalty": 0.7}, [openai(0.7, 0)]
    yield {"frequency_penalty": 0.4}, [openai(0, 0.4)]
    yield {"presence_penalty": -0.5, "frequency_penalty": 0.25}, [openai(-0.5, 0.25)]
    for length in 1, 2, 3:
        yield {"no_repeat_ngram": length}, [hf.NoRepeatNGramLogitsProcessor(length)]
    yield {"banned": words}, [hf.NoBadWordsLogitsProcessor(words, eos_token_id=torch.tensor([-1]))]
    for least in 3, 30:
        yield {"min_tokens": least, "stop": [3]}, [hf.MinNewTokensLengthLogitsProcessor(PROMPT, least, eos)]
    for typical in 0.2, 0.6, 0.95:
        yield {"typical_p": typical}, [hf.TypicalLogitsWarper(typical)]
    everything = {
        "bias": [[5, 2.5], [9, -1.25], [11, 0.75]],
        "repetition_penalty": 1.3,
        "presence_penalty": 0.7,
        "frequency_penalty": 0.4,
        "no_repeat_ngram": 2,
        "min_tokens": 30,
        "stop": [3],
        "banned": words,
    }
    yield everything, [
        hf.SequenceBiasLogitsProcessor(bias),
        hf.RepetitionPenaltyLogitsProcessor(1.3),
        openai(0.7, 0.4),
        hf.NoRepeatNGramLogitsProcessor(2),
        hf.MinNewTokensLengthLogitsProcessor(PROMPT, 30, eos),
        hf.NoBadWordsLogitsProcessor(words, eos_token_id=torch.tensor([-1])),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    default = Path(__file__).resolve().parent.parent / "tests/vectors/controls.json"
    parser.add_argument("--out", type=Path, default=default)
    out = parser.parse_args().out
    rng = random.Random(1)
    found = []
    for options, processors in cases():
        for length in 0, 1, 9, 25:
            # Few tokens, so that they come again.
            ids = [rng.randrange(12) for _ in range(PROMPT + length)]
            row = [round(rng.uniform(-4, 6), 3) for _ in range(VOCAB)]
            tokens, scores = torch.tensor([ids]), torch.tensor([row])
            for processor in processors:
                scores = processor(tokens, scores.clone())
            # JSON has no infinity.
            expected = [None if score == -torch.inf else float(score) for score in scores[0]]
            found.append({"options": options, "tokens": ids, "row": row, "expected": expected})
    about = {"transformers": transformers.__version__, "prompt": PROMPT, "vocabulary": VOCAB}
    lines = ",\n".join(json.dumps(case) for case in found)
    out.write_text(f'{{"about": {json.dumps(about)}, "cases": [\n{lines}\n]}}\n')
    print(f"{out}: {len(found)} rows")


main()
