"""Check the backend on the real server. The script `test` runs this."""

import json
import queue
import sys
import threading
import time

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.http as http
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from library import Library
from server import Triton

QUESTION = "How many legs do three cats have?"
PROMPT = f"Question: {QUESTION}\nAnswer:"
PINNED = {"strategy": "cos"}  # repeats a text for a seed
CLIENTS = 64


def expect(holds, what):
    if not holds:
        raise AssertionError(what)


def equal(got, wanted, what):
    expect(got == wanted, f"{what}: {got!r} is not {wanted!r}")


def tensors(module, **values):
    """Inputs of a client. A list is an array, and so is what stands for JSON a text."""
    inputs = []
    for name, value in values.items():
        array = np.array(value if isinstance(value, list) else [value])
        kinds = {"U": np.object_, "f": np.float32, "i": np.int64 if name == "seed" else np.int32}
        array = array.astype(kinds.get(array.dtype.kind, array.dtype))
        each = module.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        each.set_data_from_numpy(array)
        inputs.append(each)
    return inputs


def texts(result, name="text_output"):
    return [text.decode() for text in result.as_numpy(name)]


class Stream:
    """A gRPC stream of one client, with any number of requests."""

    def __init__(self, triton):
        self.client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
        self.results = queue.Queue()
        self.client.start_stream(lambda result, error: self.results.put((result, error)))

    def ask(self, model, values, **options):
        self.client.async_stream_infer(model, tensors(grpc, **values), enable_empty_final_response=True, **options)

    def responses(self):
        """The responses up to the final one. An error is raised."""
        while True:
            result, error = self.results.get(timeout=120)
            if error:
                raise error
            yield result
            if result.get_response().parameters["triton_final_response"].bool_param:
                return

    def text(self, model, **values):
        self.ask(model, {"stream": True, **values})
        return "".join(text for result in self.responses() for text in texts(result))

    def close(self, cancel=False):
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()


def configuration(triton, library):
    """What config.pbtxt leaves out is there."""
    config = json.loads(triton.request("/v2/models/demo/config")[1])
    inputs = {each["name"]: each for each in config["input"]}
    expect(all(each["optional"] for each in config["input"]) and len(inputs) > 30, "inputs")
    equal(inputs["stop"]["dims"], [-1], "dims of a list")
    equal([each["name"] for each in config["output"]][:2], ["text_output", "finish_reason"], "outputs")
    expect(config["model_transaction_policy"]["decoupled"], "decoupled")
    equal([(each["kind"], each["count"]) for each in config["instance_group"]], [("KIND_CPU", 1)], "instances")


def answers(triton, library):
    """Texts are those of the library, from text, tokens, messages and whole requests."""
    cos = json.dumps(PINNED)
    for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 7}):
        wanted = library.answer(prompt=PROMPT, max_tokens=24, cos=PINNED, return_token_ids=True, **sampling)
        wanted = wanted["choices"][0]
        status, got = triton.generate("demo", text_input=PROMPT, max_tokens=24, cos=cos, **sampling)
        equal((status, got["text_output"], got["tokens"]), (200, wanted["text"], wanted["token_ids"]), "generate")
        equal(got["finish_reason"], wanted["finish_reason"], "finish_reason")
        equal("".join(event["text_output"] for event in
                      triton.stream("demo", text_input=PROMPT, max_tokens=24, cos=cos, **sampling)),
              wanted["text"], "generate_stream")
        body = {"prompt": PROMPT, "max_tokens": 24, "cos": PINNED, **sampling}
        equal(triton.generate("demo", request=json.dumps(body))[1]["text_output"], wanted["text"], "a whole request")
        chat = {"messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "cos": PINNED, **sampling}
        wanted = library.answer(**chat)["choices"][0]["message"]["content"]
        got = triton.generate("demo", messages=json.dumps(chat["messages"]), max_tokens=12, cos=cos, **sampling)[1]
        equal(got["text_output"], wanted, "a chat")
        stream = Stream(triton)
        equal(stream.text("demo", text_input=PROMPT, max_tokens=24, cos=cos, **sampling),
              library.answer(**body)["choices"][0]["text"], "a gRPC stream")
        stream.close()
    tokens = [300, 301, 302]
    equal(triton.generate("demo", tokens=tokens, max_tokens=5, temperature=0.0)[1]["text_output"],
          library.answer(prompt=tokens, max_tokens=5, temperature=0)["choices"][0]["text"], "tokens")


def plain(triton, library):
    """A model that is not decoupled answers plain calls of both protocols. Only outputs that are asked for come."""
    wanted = library.answer(prompt=PROMPT, max_tokens=10, temperature=0)["choices"][0]["text"]
    for module, port in ((grpc, triton.grpc), (http, triton.http)):
        client = module.InferenceServerClient(f"127.0.0.1:{port}")
        values = {"text_input": PROMPT, "max_tokens": 10, "temperature": 0.0}
        result = client.infer("plain", tensors(module, **values))
        equal(texts(result), [wanted], "infer")
        equal(list(result.as_numpy("usage")), [13, 10], "usage")
        outputs = [module.InferRequestedOutput("finish_reason")]
        result = client.infer("plain", tensors(module, **values), outputs=outputs)
        equal(texts(result, "finish_reason"), ["length"], "the output that was asked for")
        expect(result.as_numpy("text_output") is None, "an output that nobody asked for")
        client.close()
    status, error = triton.generate("plain", text_input=PROMPT, stream=True, max_tokens=3)
    expect(status == 400 and "decoupled" in error["error"], f"a stream of a plain model: {status} {error}")


def options(triton, library):
    """All options come as inputs, and as parameters too."""
    schema = {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9, "minimum": 0}},
              "required": ["n"], "additionalProperties": False}
    values = {
        "text_input": PROMPT, "max_tokens": 40, "min_tokens": 1, "n": 2, "seed": -5, "stop": ["zzz", "yyy"],
        "stop_token_ids": [17, 18], "ignore_eos": False, "skip_special_tokens": True, "temperature": 0.8, "top_k": 50,
        "top_p": 0.9, "min_p": 0.01, "typical_p": 0.95, "xtc_probability": 0.1, "xtc_threshold": 0.2,
        "repetition_penalty": 1.1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "dry_multiplier": 0.5,
        "dry_base": 1.75, "dry_allowed_length": 2, "logit_bias": '{"5": -1}', "logprobs": 2,
        "response_format": json.dumps({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}),
        "cos": '{"strategy": "standard"}'}
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    result = client.infer("plain", tensors(grpc, **values))
    for text in texts(result):
        expect(list(json.loads(text)) == ["n"], f"{text!r} does not follow the schema")
    counts, tokens = result.as_numpy("tokens_count"), result.as_numpy("tokens")
    equal(list(result.as_numpy("index")), [0, 1], "index")
    equal((counts.sum(), result.as_numpy("log_probabilities").shape), (len(tokens), tokens.shape), "log_probabilities")
    equal(result.as_numpy("top_tokens").shape, (len(tokens), 2), "top_tokens")
    equal(result.as_numpy("top_log_probabilities").shape, (len(tokens), 2), "top_log_probabilities")
    parameters = {"max_tokens": 3, "temperature": 0.0, "stop": '["zzz"]', "ignore_eos": True, "stop_token_ids": "[17]"}
    result = client.infer("plain", tensors(grpc, text_input=PROMPT), parameters={**parameters, "another": "one"})
    wanted = library.answer(prompt=PROMPT, max_tokens=3, temperature=0)["choices"][0]["text"]
    equal(texts(result), [wanted], "parameters")
    chat = client.infer("plain", tensors(grpc, messages=json.dumps([{"role": "user", "content": "a"}]), logprobs=1,
                                         max_tokens=2))
    equal(chat.as_numpy("top_tokens").shape, (2, 1), "logprobs of a chat")
    client.close()


def ask_openai(triton, endpoint, body, model="demo"):
    """A body as a server of OpenAI's protocol gets it: the status, and all that it would send."""
    client, results = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}"), queue.Queue()
    client.start_stream(lambda result, error: results.put((result, error)))
    text = body if isinstance(body, str) else json.dumps(body)
    outputs = [grpc.InferRequestedOutput(name) for name in ("response", "status")]
    client.async_stream_infer(model, tensors(grpc, request=text), outputs=outputs,
                              parameters={"endpoint": endpoint}, enable_empty_final_response=True)
    sent, final = "", False
    while not final:
        result, error = results.get(timeout=120)
        expect(error is None, f"an error beside the response: {error}")
        status = int(result.as_numpy("status")[0])
        equal([output.name for output in result.get_response().outputs], ["response", "status"], "outputs")
        sent += texts(result, "response")[0]
        final = result.get_response().parameters["triton_final_response"].bool_param
    client.stop_stream()
    client.close()
    return status, sent


def openai(triton, library):
    """The output `response` is what a server of OpenAI's protocol sends, errors too."""
    chat = {"model": "demo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12, "temperature": 0}
    completion = {"model": "demo", "prompt": PROMPT, "n": 2, "max_tokens": 12, "temperature": 0, "logprobs": 1}
    def without_id(answer):
        return {name: value for name, value in answer.items() if name not in ("id", "created")}

    for endpoint, body in (("chat", chat), ("completion", completion)):
        status, text = ask_openai(triton, endpoint, body)
        equal((status, without_id(json.loads(text))), (200, without_id(library.answer(**body))), endpoint)
        status, text = ask_openai(triton, endpoint, {**body, "stream": True, "stream_options": {"include_usage": True}})
        events = text.split("\n\n")
        equal((status, events[-2:]), (200, ["data: [DONE]", ""]), f"the end of a stream, {endpoint}")
        events = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
        equal(events[-1]["usage"], json.loads(ask_openai(triton, endpoint, body)[1])["usage"], "usage")
        for choice in library.answer(**body)["choices"]:
            own = [event["choices"][0] for event in events[:-1] if event["choices"][0]["index"] == choice["index"]]
            pieces = [each["delta"]["content"] if endpoint == "chat" else each["text"] for each in own]
            whole = choice["message"]["content"] if endpoint == "chat" else choice["text"]
            equal(("".join(pieces), own[-1]["finish_reason"]), (whole, choice["finish_reason"]), f"events, {endpoint}")
    for endpoint, body, status, code, says in (
            ("chat", {**chat, "temperature": -1}, 400, None, "temperature is -1"),
            ("chat", {**chat, "model": "other"}, 404, "model_not_found", "there is no model"),
            ("chat", {"messages": chat["messages"]}, 400, None, "model is missing"),
            ("chat", completion, 400, None, "messages"), ("completion", chat, 400, None, "prompt"),
            ("completion", {**completion, "prompt": [300] * 5000}, 400, "context_length_exceeded", "context"),
            ("completion", '{"model": ', 400, None, "request is not JSON"), ("completion", "", 400, None, "not JSON")):
        got, text = ask_openai(triton, endpoint, body)
        error = json.loads(text)["error"]
        equal((got, error["type"], error["code"]), (status, "invalid_request_error", code), f"{body}")
        expect(says in error["message"] and set(error) == {"message", "type", "param", "code"}, text)
    status, answer = triton.generate("demo", request=json.dumps(chat), endpoint="other")
    expect(status == 400 and "endpoint is no endpoint" in answer["error"], f"a wrong endpoint: {status} {answer}")
    answer = triton.generate("demo", request=json.dumps(chat))[1]
    expect("response" not in answer and "text_output" in answer, f"without an endpoint: {list(answer)}")


def bad_inputs(triton, library):
    """A wrong request gets an error, with the final flag in a stream, and the server lives on."""
    for values, says in (({}, "there is no prompt"), ({"text_input": "a", "tokens": [1]}, "several prompts"),
                         ({"text_input": "a", "messages": "[]"}, "several prompts"),
                         ({"messages": "[1"}, "messages is not JSON"), ({"messages": "[]"}, "no message"),
                         ({"request": "[]"}, "request is not a JSON object"), ({"request": "{"}, "request is not JSON"),
                         ({"text_input": "a", "request": '{"max_tokens": 2}', "max_tokens": 3}, "give it once"),
                         ({"text_input": "a", "temperature": -1.0}, "temperature is -1"),
                         ({"text_input": "a", "max_tokens": -1}, "max_tokens"), ({"tokens": [-1]}, "-1"),
                         ({"tokens": [99999]}, "99999"), ({"tokens": [300] * 5000}, "context"),
                         ({"text_input": "a", "stop": [""]}, "stop string 0 is empty"),
                         ({"text_input": "a", "n": 100}, "n is 100"), ({"text_input": "a", "cos": '{"x": 1}'}, "`x`"),
                         ({"text_input": "a", "logit_bias": '{"5": "x"}'}, "logit_bias"),
                         ({"text_input": "a", "tools": "[" * 100_000 + "]" * 100_000}, "nested too deep"),
                         ({"request": '{"prompt": ' + "[" * 100_000 + "]" * 100_000 + "}"}, "nested too deep"),
                         ({"text_input": "a", "echo": True}, "echo is not supported"),
                         ({"text_input": "a", "best_of": 3}, "best_of is not supported"),
                         ({"text_input": "a", "structured_outputs": '{"regex": "("}'}, "regular expression")):
        status, answer = triton.generate("demo", **values)
        expect(status >= 400 and says in answer["error"], f"{values}: {status} {answer}")
        stream = Stream(triton)
        stream.ask("demo", {"stream": True, **values} if values else {"stream": True})
        try:
            list(stream.responses())
            raise AssertionError(f"{values} are accepted")
        except InferenceServerException as error:
            expect(says in str(error), f"{values}: {error}")
        stream.close()
    client = grpc.InferenceServerClient(f"127.0.0.1:{triton.grpc}")
    for name, array in (("text_input", np.array([1], np.int32)), ("max_tokens", np.array([1, 2], np.int32)),
                        ("temperature", np.array([1], np.float64)), ("nothing", np.array([1], np.int32))):
        wrong = grpc.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
        wrong.set_data_from_numpy(array)
        try:
            client.infer("plain", [wrong])
            raise AssertionError(f"{name} is accepted")
        except InferenceServerException:
            pass
    client.close()
    equal(triton.generate("demo", text_input=PROMPT, max_tokens=2)[0], 200, "an answer behind all that")


def at_once(triton, library):
    """Clients at the same time get what they get alone, in common passes."""
    def values(i):
        cos = json.dumps(PINNED)
        return {"text_input": f"{PROMPT} {i}", "max_tokens": 16, "temperature": 1.0, "seed": i, "cos": cos}

    wanted = [library.answer(prompt=f"{PROMPT} {i}", max_tokens=16, seed=i, cos=PINNED)["choices"][0]["text"]
              for i in range(CLIENTS)]
    before = triton.metrics("demo")
    got = [None] * CLIENTS
    def client(i):
        stream = Stream(triton)
        got[i] = stream.text("demo", **values(i))
        stream.close()

    threads = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    equal(got, wanted, f"texts of {CLIENTS} clients")
    after = triton.metrics("demo")
    passes, choices = (after[f"cos_batch_choices_{name}"] - before.get(f"cos_batch_choices_{name}", 0)
                       for name in ("count", "sum"))
    expect(choices / passes > 3, f"{choices / passes:.1f} choices in a pass")
    return f"{choices / passes:.1f} choices in a pass"


def settled(triton, model, seconds=5):
    """Wait until nothing is decoded."""
    until = time.monotonic() + seconds
    while triton.metrics(model)["cos_requests_running"] + triton.metrics(model)["cos_requests_waiting"]:
        expect(time.monotonic() < until, "requests go on")
        time.sleep(0.05)


def cancels(triton, library):
    """A client that cancels ends its requests, and those of others go on."""
    long = {"text_input": PROMPT, "max_tokens": 1900, "temperature": 2.0, "ignore_eos": True}
    for whole in (False, True):
        streams = [Stream(triton) for _ in range(4)]
        for stream in streams:
            stream.ask("demo", {"stream": not whole, **long})
        if not whole:
            for stream in streams:
                next(stream.responses())
        other = Stream(triton)
        other.ask("demo", {"stream": True, "text_input": PROMPT, "max_tokens": 30, "temperature": 0.0})
        for stream in streams:
            stream.close(cancel=True)
        got = "".join(text for result in other.responses() for text in texts(result))
        wanted = library.answer(prompt=PROMPT, max_tokens=30, temperature=0)["choices"][0]["text"]
        equal(got, wanted, "a text beside cancels")
        other.close()
        settled(triton, "demo")
    tokens = triton.metrics("demo")["cos_tokens_total"]
    time.sleep(0.3)
    equal(triton.metrics("demo")["cos_tokens_total"], tokens, "tokens behind all cancels")


def sequences(triton, library):
    """Turns of a chat, and parts of a text, by correlation ID."""
    stream = Stream(triton)
    def turn(values, **options):
        stream.ask("demo", {"stream": True, "max_tokens": 16, "temperature": 0.0, **values}, **options)
        return "".join(text for result in stream.responses() for text in texts(result))

    for sequence in (17, "a text"):
        messages = []
        for i, question in enumerate((QUESTION, "And two dogs?", "Why?")):
            messages.append({"role": "user", "content": question})
            wanted = library.answer(messages=messages, max_tokens=16, temperature=0)["choices"][0]["message"]
            got = turn({"messages": json.dumps(messages[-1:])}, sequence_id=sequence, sequence_start=i == 0,
                       sequence_end=i == 2)
            equal(got, wanted["content"], f"turn {i} of {sequence}")
            messages.append({"role": "assistant", "content": got})
        try:
            turn({"messages": json.dumps(messages[:1])}, sequence_id=sequence)
            raise AssertionError("a sequence that has ended goes on")
        except InferenceServerException as error:
            expect("no such sequence" in str(error), str(error))
    first = library.answer(prompt=PROMPT, max_tokens=16, temperature=0, return_token_ids=True)["choices"][0]
    equal(turn({"text_input": PROMPT}, sequence_id=5, sequence_start=True), first["text"], "the first part")
    client_tokens = triton.generate("demo", text_input=PROMPT, max_tokens=1)[1]["usage"][0]
    prompt = library.answer(prompt=PROMPT + "x", max_tokens=1)["usage"]["prompt_tokens"]
    expect(client_tokens <= prompt, "the length of a prompt")
    stream.ask("demo", {"text_input": " So", "max_tokens": 4, "temperature": 0.0}, sequence_id=5)
    result = next(stream.responses())
    equal(result.as_numpy("usage")[0], client_tokens + len(first["token_ids"]) + 1, "tokens of the second part")
    # A turn that fails leaves the sequence as it was, whatever its flags.
    for flags in ({}, {"sequence_start": True}, {"sequence_end": True}):
        try:
            turn({"text_input": "x", "temperature": -1.0}, sequence_id=5, **flags)
            raise AssertionError("a wrong turn is accepted")
        except InferenceServerException:
            pass
    # What is behind a stop string was not said.
    for stop, text in (("\n", first["text"].split("\n")[0]), ([], first["text"])):
        stream.ask("demo", {"text_input": PROMPT, "max_tokens": 16, "temperature": 0.0, "stop": stop or ["never"]},
                   sequence_id=6, sequence_start=True)
        equal(texts(next(stream.responses())), [text], f"a text that ends at {stop!r}")
        stream.ask("demo", {"text_input": " So", "max_tokens": 1}, sequence_id=6, sequence_end=True)
        prompt = library.answer(prompt=PROMPT + text + " So", max_tokens=1)["usage"]["prompt_tokens"]
        equal(next(stream.responses()).as_numpy("usage")[0], prompt, f"tokens behind {stop!r}")
    other = Stream(triton)
    other.ask("demo", {"text_input": "a", "max_tokens": 1500, "ignore_eos": True}, sequence_id=5)
    time.sleep(0.2)
    try:
        turn({"text_input": "x"}, sequence_id=5)
        raise AssertionError("two turns of a sequence at once")
    except InferenceServerException as error:
        expect("not answered yet" in str(error), str(error))
    other.close(cancel=True)
    settled(triton, "demo")
    stream.ask("demo", {"text_input": " So", "max_tokens": 1, "temperature": 0.0}, sequence_id=5, sequence_end=True)
    equal(next(stream.responses()).as_numpy("usage")[0], client_tokens + len(first["token_ids"]) + 1 + 4 + 1,
          "tokens behind a cancelled turn")
    stream.close()


def loading(triton, library):
    """Models are unloaded while they stream, and loaded anew under traffic."""
    wanted = library.answer(prompt=PROMPT, max_tokens=120, temperature=0)["choices"][0]["text"]
    stream = Stream(triton)
    stream.ask("demo", {"stream": True, "text_input": PROMPT, "max_tokens": 120, "temperature": 0.0})
    responses = stream.responses()
    pieces = texts(next(responses))
    unloader = threading.Thread(target=triton.unload, args=("demo",))
    unloader.start()
    pieces += [text for result in responses for text in texts(result)]
    unloader.join(30)
    equal("".join(pieces), wanted, "a stream whose model was unloaded")
    stream.close()
    until = time.monotonic() + 20
    while triton.request("/v2/models/demo/ready")[0] == 200:
        expect(time.monotonic() < until, "the model is not unloaded")
        time.sleep(0.1)
    expect(triton.generate("demo", text_input="a")[0] >= 400, "a model that is unloaded answers")
    equal(triton.load("demo")[0], 200, "loading it again")

    stop, faults, count = threading.Event(), [], [0] * 8
    def client(i):
        while not stop.is_set():
            status, got = triton.generate("demo", text_input=PROMPT, max_tokens=8, temperature=0.0)
            count[i] += 1
            if status != 200 or got["text_output"] != wanted[:len(got["text_output"])]:
                faults.append((status, got))

    threads = [threading.Thread(target=client, args=(i,)) for i in range(len(count))]
    for thread in threads:
        thread.start()
    for seconds in (1, 2, 3):
        # A changed configuration makes Triton load the model anew.
        triton.write("demo", parameters={"sequence_idle_seconds": 100 + seconds})
        equal(triton.load("demo")[0], 200, "loading anew")
        time.sleep(0.3)
    stop.set()
    for thread in threads:
        thread.join(60)
    equal(faults[:3], [], "faults while the model was loaded anew")
    expect(all(count), f"requests: {count}")
    return f"{sum(count)} requests"


def wrong_models(triton, library):
    """A model that cannot be loaded says why."""
    for name, model, says in (
            ("no-engine", {"engine": {}}, "models"),
            ("wrong-path", {"engine": {"models": [{"path": "/nowhere"}], "combine": {"kind": "target", "model": 0}}},
             "/nowhere"),
            ("wrong-number", {"parameters": {"max_sessions": "many"}}, "max_sessions is many"),
            ("wrong-name", {"parameters": {"max_sesions": "7"}}, "no parameter max_sesions"),
            ("batches", {"config": "max_batch_size: 8"}, "max_batch_size is set"),
            ("wrong-range", {"parameters": {"prepare_seconds": "-1"}}, "prepare_seconds is -1")):
        triton.write(name, **model)
        status, text = triton.load(name)
        expect(status == 400 and says in text, f"{name}: {status} {text}")
    triton.write("missing")
    (triton.repository / "missing" / "1" / "model.json").unlink()
    status, text = triton.load("missing")
    expect(status == 400 and "there is no engine" in text, f"{status} {text}")


def limits(triton, library):
    """Parameters bound prompts, texts and the line. Several instances share one driver."""
    triton.write("small", parameters={"max_sessions": 2, "max_queue": 3, "max_prompt_tokens": 20, "max_tokens": 1000},
                 config="instance_group { kind: KIND_CPU count: 3 }")
    equal(triton.load("small")[0], 200, "loading")
    for values, says in (({"tokens": [300] * 21}, "21 tokens"), ({"text_input": "a", "max_tokens": 1001}, "1001"),
                         ({"text_input": "a", "n": 3}, "n is 3")):
        status, answer = triton.generate("small", **values)
        expect(status >= 400 and says in answer["error"], f"{values}: {answer}")
    streams = [Stream(triton) for _ in range(4)]
    for stream in streams[:3]:
        stream.ask("small", {"stream": True, "text_input": "a", "max_tokens": 900, "ignore_eos": True})
    until = time.monotonic() + 5
    while triton.metrics("small")["cos_requests_waiting"] != 1:
        expect(time.monotonic() < until, "no request waits")
        time.sleep(0.05)
    equal(triton.metrics("small")["cos_requests_running"], 2, "cos_requests_running")
    status, text = ask_openai(triton, "completion", {"model": "small", "prompt": "a"}, model="small")
    equal((status, json.loads(text)["error"]["type"]), (429, "rate_limit_error"), "behind the end of the line")
    streams[3].ask("small", {"text_input": "a"})
    try:
        next(streams[3].responses())
        raise AssertionError("there is no end of the line")
    except InferenceServerException as error:
        expect("too many requests wait" in str(error), str(error))
    for stream in streams:
        stream.close(cancel=True)
    settled(triton, "small")
    equal(triton.unload("small")[0], 200, "unloading")


def statistics(triton, library):
    """Triton's statistics and the backend's metrics count what was done."""
    before = triton.metrics("demo")
    stats = json.loads(triton.request("/v2/models/demo/stats")[1])["model_stats"][0]["inference_stats"]
    for _ in range(3):
        triton.generate("demo", text_input=PROMPT, max_tokens=10, temperature=0.0, cos='{"strategy": "cos"}')
    triton.generate("demo", text_input=PROMPT, temperature=-1.0)
    time.sleep(0.2)
    after = triton.metrics("demo")
    def grew(name):
        return after[name] - before.get(name, 0)

    equal(grew("cos_tokens_total"), 30, "cos_tokens_total")
    expect(grew("cos_proposed_total") >= grew("cos_tested_total") >= grew("cos_accepted_total") > 0, "proposals")
    equal(grew("cos_first_token_seconds_count"), 3, "cos_first_token_seconds")
    expect(grew("cos_batch_choices_count") > 0, "cos_batch_choices")
    equal(grew("nv_inference_request_success_total"), 3, "nv_inference_request_success")
    now = json.loads(triton.request("/v2/models/demo/stats")[1])["model_stats"][0]["inference_stats"]
    equal((now["success"]["count"] - stats["success"]["count"], now["fail"]["count"] - stats["fail"]["count"]), (3, 1),
          "successes and failures")
    expect(now["compute_infer"]["ns"] > stats["compute_infer"]["ns"], "no time was counted")


def drain(triton, library):
    """SIGTERM: what runs is finished, and the process ends with 0. The last check."""
    stream = Stream(triton)
    stream.ask("demo", {"stream": True, "text_input": PROMPT, "max_tokens": 200, "temperature": 0.0})
    responses = stream.responses()
    pieces = texts(next(responses))
    triton.terminate()
    pieces += [text for result in responses for text in texts(result)]
    equal("".join(pieces), library.answer(prompt=PROMPT, max_tokens=200, temperature=0)["choices"][0]["text"],
          "the stream that was running")
    stream.close()  # Triton waits for open gRPC streams too
    equal(triton.process.wait(timeout=60), 0, "the exit status")


def main():
    checks = (configuration, answers, plain, options, openai, bad_inputs, at_once, cancels, sequences, statistics,
              limits, wrong_models, loading, drain)
    plain_model = {"config": "model_transaction_policy { decoupled: false }"}
    triton, library = Triton(demo={}, plain=plain_model), Library()
    failed = 0
    try:
        for check in checks:
            start = time.monotonic()
            try:
                note = check(triton, library)
            except Exception as error:
                failed += 1
                print(f"triton: {check.__name__}: FAILED: {type(error).__name__}: {error}", flush=True)
                if triton.process.poll() not in (None, 0):
                    sys.exit(f"triton: it ended with {triton.process.returncode}: {triton.said()[-3000:]}")
            else:
                seconds = time.monotonic() - start
                print(f"triton: {check.__name__}: ok, {seconds:.1f} s{'; ' + note if note else ''}", flush=True)
    finally:
        triton.close()
    if failed:
        sys.exit(f"triton: {failed} of {len(checks)} checks failed")
    print(f"triton: {len(checks)} checks passed")


if __name__ == "__main__":
    main()
