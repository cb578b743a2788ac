"""What the checks of a server share."""

import functools
import json

CLIENTS = 16
PROMPTS = [
    "Question: How many legs do three cats have?\nAnswer:",
    "Question: James decides to run 3 sprints 3 times a week. He runs 60 meters each sprint. How many meters?\nAnswer:",
    "Question: A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total?\nAnswer:",
    "The recipe asks for two cups of flour, and",
]
PINNED = {"cos": {"strategy": "cos"}}  # the same seed and a strategy that is not automatic: the same tokens


def expect(holds, what):
    if not holds:
        raise AssertionError(what)


def equal(got, wanted, what):
    expect(got == wanted, f"{what}: {got!r} is not {wanted!r}")


def pieces(stream):
    """A stream's texts and its last finish_reason."""
    texts, finish = [], None
    for chunk in stream:
        for choice in chunk.choices:
            expect(finish is None, "something comes behind the finish_reason")
            texts.append(choice.text)
            finish = choice.finish_reason
    return texts, finish


def refused(status, text, what):
    """An answer that refuses a request has OpenAI's form. Returns its error object."""
    expect(400 <= status < 500, f"{status} for {what!r}: {text[:200]}")
    try:
        error = json.loads(text)["error"]
    except (ValueError, KeyError, TypeError):
        raise AssertionError(f"no error object for {what!r}: {text[:200]!r}") from None
    expect(isinstance(error["message"], str) and error["message"], f"no message for {what!r}")
    expect(isinstance(error["type"], str) and {"param", "code"} <= error.keys(),
           f"not OpenAI's form for {what!r}: {error}")
    return error


@functools.cache
def lasting(server):
    """Options of a long completion: its seed draws no stop token in the first 400 tokens. A high temperature helps."""
    for seed in range(7, 50):
        options = {"temperature": 2, "seed": seed}
        if server.complete(PROMPTS[0], max_tokens=400, **options, extra_body=PINNED).usage.completion_tokens == 400:
            return {"prompt": PROMPTS[0], "max_tokens": 1500, **options}
    raise AssertionError("every seed ends early")
