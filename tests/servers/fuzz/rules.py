"""Rules about members of a body that no schema can state. They are those of docs/requests.md."""

import json

OBJECT = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
REGEXES = ["[ab]{4}", "yes|no", "\\w+", ""]
GRAMMARS = ['start: "x" "y"', "start: /[0-9]+/"]
SCHEMAS = [OBJECT, {"type": "string"}, {"enum": [1, "a", None]}, {}]
MOST_BYTES = 8000


def one_of(values, by):
    """One of the values. The same one each time, so that a failure can be repeated."""
    return values[len(json.dumps(by)) % len(values)]


def keep(body, valid, fuzz):
    """Change members that are valid so that they fit together. Those that are not stay as they are."""
    def drop(*names):
        for name in names:
            if valid(name):
                del body[name]

    def given(name, default):
        value = body.get(name)
        return default if value is None or not valid(name) else value

    if "max_tokens" in body:  # it would not count
        drop("max_completion_tokens")
    most = given("max_completion_tokens", given("max_tokens", fuzz["tokens"])) or fuzz["tokens"]
    if given("min_tokens", 0) > most:
        drop("min_tokens")
    if given("best_of", given("n", 1)) != given("n", 1):
        drop("best_of")
    if (given("xtc_probability", 0) > 0) != (given("xtc_threshold", 0) > 0):
        drop("xtc_probability", "xtc_threshold")
    if valid("messages") and given("top_logprobs", 0) > 0 and not given("logprobs", False):
        drop("top_logprobs")
    if valid("logit_bias") and body["logit_bias"]:
        body["logit_bias"] = {str(int(token) % fuzz["vocabulary"]): value
                              for token, value in body["logit_bias"].items()}
    prompts(body, valid, fuzz)
    constraints(body, valid)
    if valid("cos") and body["cos"]:
        options(body["cos"], given("temperature", 1) == 0 or "logprobs" in body)


def prompts(body, valid, fuzz):
    """No prompt is empty, and there is room for all choices."""
    if not valid("prompt"):
        return
    prompt = body["prompt"]
    body["prompt"] = [each or "a" for each in prompt] if isinstance(prompt, list) else prompt or "a"
    several = isinstance(prompt, list) and not isinstance(prompt[0], int)
    if several:
        del body["prompt"][fuzz["sessions"]:]
        for name in ("n", "best_of"):
            if valid(name):
                body[name] = 1


def constraints(body, valid):
    """One constraint, and one that can be compiled."""
    outputs = body.get("structured_outputs") if valid("structured_outputs") else None
    response = body.get("response_format") if valid("response_format") else None
    if response and response["type"] == "json_schema":
        response["json_schema"]["schema"] = one_of(SCHEMAS, response)
    if outputs:
        kept = [name for name, value in outputs.items() if value is not None][:1]
        if response and response["type"] != "text":
            kept = []
        values = {"regex": one_of(REGEXES, outputs), "grammar": one_of(GRAMMARS, outputs),
                  "json": one_of([*SCHEMAS, json.dumps(OBJECT)], outputs)}
        body["structured_outputs"] = {name: values.get(name, outputs[name]) for name in kept}


def options(cos, is_unroutable):
    """Weights are shares, and routed targets go with what allows them."""
    if cos.get("weights"):
        weights = [abs(weight) for weight in cos["weights"]]
        cos["weights"] = [weight / max(weights) for weight in weights] if max(weights) > 0 else [1.0] * len(weights)
        cos["weights"] = [weight / sum(cos["weights"]) for weight in cos["weights"]]
    if is_unroutable:
        cos.pop("targets", None)
