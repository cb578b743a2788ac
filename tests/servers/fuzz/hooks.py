"""What schemathesis has to know of the server that it fuzzes, and checks of ours. test_fuzz.py starts it four times.

The variable COS_FUZZ has the name of the run, and what holds for this server beyond docs/openapi.json:

- `keys` sends small bodies to a server with --api-keys.
- `accepted` sends what the file allows, and every body is answered with 200.
- `refused` sends what the file forbids, and all of it is refused.
- `anything` sends what the file allows, and nothing makes the server fail. Members may contradict each other.
"""

import json
import os
import struct

import jsonschema_rs
import schemathesis

import rules

FUZZ = json.loads(os.environ["COS_FUZZ"])
BODIES = {"/v1/completions": "CompletionRequest", "/v1/chat/completions": "ChatRequest"}
validators = {}  # of each body: by path, and name of a member; "" is the whole body


@schemathesis.hook
def before_load_schema(context, raw_schema):
    """Add to the file what this server enforces, and close the answers: they have no member that the file lacks."""
    schemas = raw_schema["components"]["schemas"]
    asked = set().union(*(reachable(schemas, name) for name in BODIES.values()))
    for name in schemas.keys() - asked:
        if not name.endswith("Event"):  # schemathesis gives events members of its own
            close(schemas[name])
    if not FUZZ["keys"]:
        for path in raw_schema["paths"].values():
            for operation in path.values():
                operation.pop("security")
    for name in BODIES.values():
        flatten(schemas, name)
        members = schemas[name]["properties"]
        members["model"] = {"const": FUZZ["model"]}
        members["n"]["maximum"] = FUZZ["sessions"]
        for most in ("max_tokens", "max_completion_tokens"):
            members[most]["maximum"] = FUZZ["tokens"]
    schemas["Token"]["maximum"] = FUZZ["vocabulary"] - 1
    for each in ("weights", "proposal_lengths"):
        schemas["CosOptions"]["properties"][each].update(minItems=FUZZ["models"], maxItems=FUZZ["models"])
    variables = {"enable_thinking": {}, "template": {"enum": ["default", None]}}  # what the chat template reads
    schemas["ChatRequest"]["properties"]["chat_template_kwargs"].update(properties=variables,
                                                                        additionalProperties=False)
    if FUZZ["keys"]:  # bodies are what the other runs are about
        for name in BODIES.values():
            whole = schemas[name]
            whole["properties"] = {member: whole["properties"][member] for member in whole["required"]}
    for path, name in BODIES.items():
        for member, schema in {"": schemas[name], **schemas[name]["properties"]}.items():
            whole = {**schema, "components": raw_schema["components"]}
            validators[path, member] = jsonschema_rs.Draft202012Validator(whole)


def reachable(schemas, name):
    """The names of the schemas that a schema refers to."""
    found, open_ends = set(), [name]
    while open_ends:
        found.add(name := open_ends.pop())
        text = json.dumps(schemas[name])
        open_ends += [other for other in schemas.keys() - found if f'/schemas/{other}"' in text]
    return found


def close(schema):
    """Allow no other members than those that are described."""
    if isinstance(schema, dict):
        if "properties" in schema:
            schema.setdefault("additionalProperties", False)
        for part in schema.values():
            close(part)
    elif isinstance(schema, list):
        for part in schema:
            close(part)


def flatten(schemas, name):
    """Put the parts of a schema together. Mutations would not reach the members within allOf."""
    whole = schemas[name]
    for part in whole.pop("allOf"):
        part = schemas[part["$ref"].rsplit("/", 1)[1]] if "$ref" in part else part
        whole["type"] = "object"
        whole.setdefault("required", []).extend(part["required"])
        whole.setdefault("properties", {}).update(json.loads(json.dumps(part["properties"])))


@schemathesis.hook
def before_call(context, case, kwargs):
    """Let members of a body fit together, which no schema can say."""
    if FUZZ["run"] != "anything" and isinstance(case.body, dict) and case.operation.path in BODIES:
        path = case.operation.path
        body = whole(case.body)
        rules.keep(body, lambda name: name in body and validators[path, name].is_valid(body[name]), FUZZ)
        case.body = body


def whole(value):
    """A copy whose whole numbers have no decimal point. The library refuses 7.0 for an integer; JSON schemas do not."""
    if isinstance(value, dict):
        return {key: whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 2 ** 53 else value


def single(value):
    """A value as the library reads it: numbers with a fraction have 32 bits."""
    if isinstance(value, float):
        try:
            return struct.unpack("f", struct.pack("f", value))[0]
        except OverflowError:
            return value
    if isinstance(value, dict):
        return {key: single(each) for key, each in value.items()}
    return [single(each) for each in value] if isinstance(value, list) else value


@schemathesis.hook
def filter_failure(context, failure, case, response):
    """Whether a failure is one."""
    kind = type(failure).__name__
    if kind == "AcceptedNegativeData" and is_body(case):  # a number that is wrong by less than its rounding is right
        path = case.operation.path
        read = {name: single(value) if (path, name) in validators and not validators[path, name].is_valid(value)
                else value for name, value in case.body.items()}
        return not validators[path, ""].is_valid(read)
    if kind == "UnsupportedMethodResponse":  # cpp-httplib does not know this method, and 400 is as good an answer
        return (case.method.upper(), response.status_code) != ("QUERY", 400)
    return kind != "RejectedPositiveData" or not is_long(response)


def is_long(response):
    """Whether a body was refused because its prompt is too long, which no schema can say."""
    return response.status_code == 400 and response.json()["error"]["code"] == "context_length_exceeded"


def is_body(case):
    return case.operation.path in BODIES and isinstance(case.body, dict)


@schemathesis.check
def answered(ctx, response, case):
    """In the run `accepted`, every body is answered with 200."""
    if FUZZ["run"] == "accepted" and is_body(case) and case.method == "POST":
        valid = validators[case.operation.path, ""].is_valid(case.body)
        fine = response.status_code in (200, 401) or is_long(response)
        assert fine or not valid, f"{response.status_code} for a body that is right"


@schemathesis.check
def streamed(ctx, response, case):
    """Events come if they are asked for. The last one is [DONE]."""
    if not is_body(case) or response.status_code != 200:
        return
    kind = response.headers["content-type"][0].split(";")[0]
    if not case.body.get("stream"):
        assert kind == "application/json", f"{kind} for a body without stream"
        return
    assert kind == "text/event-stream", f"{kind} for a stream"
    events = response.content.decode("utf-8").split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""], f"the last event is {events[-2:]}"
    assert all(event.startswith("data: {") for event in events[:-2]), "an event is no object"
