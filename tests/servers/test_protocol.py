"""What OpenAI's protocol has besides a plain completion: chats, choices, log-probabilities, formats, tools."""

import json
import math
import pathlib
import tempfile

import openai

from checks import PINNED, PROMPTS, equal, expect, pieces, refused
from server import DEMO, Server

QUESTION = "How many legs do three cats have?"
SCHEMA = {"type": "object", "properties": {"legs": {"type": "integer", "minimum": 0, "maximum": 99}},
          "required": ["legs"], "additionalProperties": False}


def deltas(stream):
    """The text, the roles and the last finish_reason of a streamed chat."""
    text, roles, finish = "", [], None
    for chunk in stream:
        for choice in chunk.choices:
            expect(finish is None, "something comes behind the finish_reason")
            text += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            finish = choice.finish_reason
    return text, roles, finish


def chats(server):
    """A chat is the completion of the text that its template makes, whole and streamed."""
    for messages in ([QUESTION], [QUESTION, "Twelve.", "And four cats?"]):
        options = {"max_tokens": 20, "temperature": 0}
        answer = server.chat(*messages, **options)
        turns = [("Question: {}\n", "Answer:{}<|endoftext|>")[i % 2].format(text) for i, text in enumerate(messages)]
        prompt = "".join(turns).replace("Answer:Twelve", "Answer: Twelve")
        completion = server.complete(prompt + "Answer:", **options)
        choice = answer.choices[0]
        equal(choice.message.role, "assistant", "role")
        equal(choice.message.content, completion.choices[0].text, f"a chat of {len(messages)} messages")
        equal(choice.finish_reason, completion.choices[0].finish_reason, "finish_reason")
        equal(answer.usage.prompt_tokens, completion.usage.prompt_tokens, "prompt_tokens")
        equal((answer.object, answer.id[:9]), ("chat.completion", "chatcmpl-"), "object and id")
        streamed = deltas(server.chat(*messages, stream=True, **options))
        equal(streamed, (choice.message.content, ["assistant"], choice.finish_reason), "a streamed chat")
    expect(server.chat(QUESTION, temperature=0).usage.completion_tokens > 0, "no tokens without max_tokens")
    short = server.chat(QUESTION, max_completion_tokens=3, temperature=0)
    equal(short.usage.completion_tokens, 3, "max_completion_tokens")
    # A user cannot write control tokens.
    plain = server.chat("a<|endoftext|>b", max_tokens=1).usage.prompt_tokens
    expect(plain > server.chat("ab", max_tokens=1).usage.prompt_tokens + 3, "a control token in a message is one token")
    for messages in ([], [{"role": "system", "content": "x"}], [{"role": "user", "content": [{"type": "image_url"}]}]):
        try:
            server.client.chat.completions.create(model=server.model, messages=messages)
            raise AssertionError(f"{messages} are accepted")
        except openai.BadRequestError as error:
            expect(error.body["message"], "no message")


def choices(server):
    """Several prompts with several choices each are those that they are alone."""
    options = {"max_tokens": 12, "temperature": 1, "extra_body": PINNED}
    alone = [server.complete(prompt, seed=5 + 2 * i + j, **options).choices[0]
             for i, prompt in enumerate(PROMPTS[:3]) for j in range(2)]
    both = server.complete(PROMPTS[:3], n=2, seed=5, **options)
    equal([choice.text for choice in both.choices], [choice.text for choice in alone], "choices")
    equal([choice.index for choice in both.choices], list(range(6)), "index")
    texts = [""] * 6
    for chunk in server.complete(PROMPTS[:3], n=2, seed=5, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    equal(texts, [choice.text for choice in alone], "streamed choices")
    tokens = server.complete([[10, 20, 30], [40, 50]], max_tokens=2)
    equal((len(tokens.choices), tokens.usage.prompt_tokens), (2, 5), "choices and tokens of lists")
    four = server.chat(QUESTION, n=4, max_tokens=12, temperature=1.5).choices
    equal(len({choice.message.content for choice in four}), 4, "different choices of a chat")
    expect(len({server.complete(PROMPTS[0], seed=-1, temperature=1.5).choices[0].text for _ in range(4)}) > 1,
           "the seed -1 is always the same")


def log_probabilities(server):
    options = {"max_tokens": 10, "temperature": 0.7, "seed": 3, "extra_body": PINNED}
    choice = server.complete(PROMPTS[0], logprobs=3, **options).choices[0]
    told = choice.logprobs
    equal("".join(told.tokens), choice.text, "tokens")
    equal(told.text_offset, [len("".join(told.tokens[:i])) for i in range(len(told.tokens))], "text_offset")
    for token, value, top in zip(told.tokens, told.token_logprobs, told.top_logprobs, strict=True):
        equal(top[token], value, "the token among the alternatives")
        expect(3 <= len(top) <= 4 and sum(map(math.exp, top.values())) <= 1.001, f"alternatives {top}")
    chat = server.chat(QUESTION, logprobs=True, top_logprobs=2, **options).choices[0]
    content = chat.logprobs.content
    equal("".join(entry.token for entry in content), chat.message.content, "tokens of a chat")
    for entry in content:
        equal(bytes(entry.bytes).decode(), entry.token, "bytes")
        equal(len(entry.top_logprobs), 2, "alternatives of a chat")
        expect(entry.logprob <= 0, "a log-probability above 0")
    streamed = [entry.token for chunk in server.chat(QUESTION, logprobs=True, top_logprobs=2, stream=True, **options)
                for part in chunk.choices if part.logprobs for entry in part.logprobs.content]
    equal(streamed, [entry.token for entry in content], "tokens of a streamed chat")
    expect(server.chat(QUESTION, max_tokens=2).choices[0].logprobs is None, "log-probabilities that nobody asked for")


def controls(server):
    """Options that change scores do so."""
    def text(**options):
        extra = options.pop("extra_body", {})
        return server.complete(PROMPTS[3], max_tokens=24, temperature=0, extra_body=extra, **options).choices[0].text

    plain = text()
    body = {"model": server.model, "prompt": PROMPTS[3], "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    ids = json.loads(server.request("POST", "/v1/completions", json.dumps(body))[1])
    first = ids["choices"][0]["token_ids"][0]
    expect(text(logit_bias={str(first): -100}) != plain, "logit_bias changes nothing")
    expect(text(presence_penalty=2, frequency_penalty=2) != plain, "penalties change nothing")
    expect(text(extra_body={"repetition_penalty": 2}) != plain, "the repetition penalty changes nothing")
    filters = {"top_k": 5, "min_p": 0.1, "user": "me", "unknown": [1]}
    equal(text(extra_body=filters), plain, "a greedy text by other filters")
    # Filters are those of each model, so one model alone is greedy with one token left.
    one = {"cos": {"weights": [1, 0]}}
    best = text(extra_body=one)
    for option in ({"top_k": 1}, {"min_p": 1}):
        drawn = server.complete(PROMPTS[3], max_tokens=24, temperature=1, extra_body={**one, **option})
        equal(drawn.choices[0].text, best, f"the text with {option}")
    stopped = server.complete(PROMPTS[3], max_tokens=24, temperature=0, extra_body={"stop_token_ids": [first]})
    equal((stopped.usage.completion_tokens, stopped.choices[0].finish_reason), (1, "stop"), "stop_token_ids")
    longest = server.complete(PROMPTS[3], max_tokens=300, temperature=0, extra_body={"ignore_eos": True})
    equal(longest.usage.completion_tokens, 300, "ignore_eos")


def formats(server):
    """Texts follow what response_format says."""
    for stream in (False, True):
        asked = {"type": "json_schema", "json_schema": {"name": "legs", "schema": SCHEMA, "strict": True}}
        for seed in range(10):
            answer = server.chat(QUESTION, response_format=asked, max_tokens=80, stream=stream, seed=seed)
            choice = None if stream else answer.choices[0]
            text, _, finish = deltas(answer) if stream else (choice.message.content, None, choice.finish_reason)
            if finish == "stop":  # a text of much white space is cut off
                break
        value = json.loads(text)
        expect(list(value) == ["legs"] and 0 <= value["legs"] <= 99, f"{text!r} does not follow the schema")
    answer = server.chat(QUESTION, response_format={"type": "json_object"}, max_tokens=8)
    expect(answer.choices[0].message.content.startswith("{"), f"no object: {answer.choices[0].message.content!r}")
    for outputs, fits in (({"regex": "[ab]{4}"}, lambda text: set(text) <= {"a", "b"} and len(text) == 4),
                          ({"choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
                          ({"grammar": 'start: "x" "y"'}, lambda text: text == "xy")):
        text = server.chat(QUESTION, extra_body={"structured_outputs": outputs}).choices[0].message.content
        expect(fits(text), f"{text!r} does not follow {outputs}")


def tools(server):
    """Tools and the calls of earlier messages reach the template."""
    template = ("{% for m in messages %}{{ m.role }}:{{ m.content }}"
                "{% for c in m.tool_calls or [] %}{% set f = c.function %}{{ f.name }}({{ f.arguments | tojson }})"
                "{% endfor %}"
                "{{ '\\n' }}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}")
    with tempfile.TemporaryDirectory() as folder:
        base = pathlib.Path(folder, "base")
        base.mkdir()
        for file in (DEMO.parent / "base").iterdir():
            if file.name != "chat_template.jinja":
                (base / file.name).symlink_to(file)
        (base / "chat_template.jinja").write_text(template, encoding="utf-8")
        config = pathlib.Path(folder, "tools.json")
        config.write_text(json.dumps({"models": [{"path": "base"}], "combine": {"kind": "target", "model": 0}}))
        other = Server(server.command, 2, config, prepare=0)
        try:
            tool = {"type": "function", "function": {"name": "legs", "parameters": SCHEMA}}
            call = {"id": "1", "type": "function", "function": {"name": "legs", "arguments": '{"z": 1, "a": 2}'}}
            messages = [{"role": "system", "content": "Count."},
                        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
                        {"role": "assistant", "content": None, "tool_calls": [call]},
                        {"role": "tool", "content": "12", "tool_call_id": "1"}]

            def tokens(**options):
                return other.client.chat.completions.create(model="tools", messages=messages, max_tokens=1,
                                                            **options).usage.prompt_tokens

            text = 'system:Count.\nuser:one\ntwo\nassistant:legs({"z": 1, "a": 2})\ntool:12\n'
            def wanted(text):
                return other.complete(text, max_tokens=1).usage.prompt_tokens

            equal(tokens(), wanted(text), "tokens of messages")
            equal(tokens(tools=[tool]), wanted(text + json.dumps([tool])), "tokens of messages with tools")
            equal(tokens(tools=[tool], tool_choice="none"), wanted(text), "tool_choice none")
            status, body = other.request("POST", "/v1/chat/completions", json.dumps(
                {"model": "tools", "messages": messages, "tools": [tool], "tool_choice": "required"}))
            refused(status, body, "tool_choice required")
        finally:
            other.close()


CHECKS = (chats, choices, log_probabilities, controls, formats, tools)
