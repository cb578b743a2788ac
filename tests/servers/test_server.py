"""Check that a server program does what README.md says. The script `test` runs this with the server's command."""

import concurrent.futures
import http.client
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time

import openai

import test_clients
import test_fuzz
import test_limits
import test_protocol
from checks import CLIENTS, PINNED, PROMPTS, equal, expect, lasting, pieces, refused
from server import DEMO, ROOT, Server

def arguments(server):
    """What asks for help, and what is no call of a server."""
    def said(*words):
        done = subprocess.run([*server.command, *words], text=True, capture_output=True, timeout=60)
        usage = "usage: server CONFIG.json [OPTION VALUE]..."
        expect(usage in done.stdout + done.stderr, f"{words} says no usage but {done.stdout + done.stderr!r}")
        return done
    options = ("--host", "--port", "--max-sessions", "--queue", "--prepare", "--api-keys", "--rate", "--max-body",
               "--max-prompt", "--max-tokens", "--timeout")
    help = said("--help")
    equal(help.returncode, 0, "--help")
    equal([option for option in options if option not in help.stdout], [], "options that --help leaves out")
    config = str(DEMO)
    for words in ([], ["--port", "0"], ["--quick", config], [config, "--quick", "1"], [config, "--port"],
                  [config, "--port", "all"], [config, "--port", "65536"], [config, "--max-sessions", "0"],
                  [config, "--prepare", "-1"], [config, "--prepare", "86401"], [config, "--queue", "-1"],
                  [config, "--timeout", "0"], [config, "--max-body", "1.5"], [config, "--rate", ""]):
        expect(said(*words).returncode not in (0, 1), f"{words} is not refused as a wrong call")


def preparation(server):
    """The engine is prepared before the server listens, if that is wanted, and the log says how far it came."""
    for seconds, expected in ((0, ""), (100, "prepared 100 %\n")):
        other = Server(server.command, 2, prepare=seconds)
        try:
            said = other.said()
            expect(said.endswith(expected) and (said == "") == (seconds == 0), f"{seconds} seconds: {said!r}")
            equal(other.metrics()["cos_tokens_total"], 0, "tokens of the preparation")
        finally:
            other.close()


def models(server):
    listed = server.client.models.list().data
    equal([model.id for model in listed], [server.model], "models")
    equal(listed[0].object, "model", "object")
    equal(server.client.models.retrieve(server.model), listed[0], "the model alone")
    status, text = server.request("GET", "/v1/models/gpt-4")
    equal((status, refused(status, text, "gpt-4")["code"]), (404, "model_not_found"), "another model")
    for path in ("/health", "/ready"):
        status, text = server.request("GET", path)
        equal((status, json.loads(text)), (200, {"status": "ok"}), path)


def completion(server):
    before = server.metrics()
    answer = server.complete(PROMPTS[0], max_tokens=24, temperature=0)
    choice = answer.choices[0]
    equal(answer.object, "text_completion", "object")
    equal(answer.model, server.model, "model")
    expect(len(choice.text) > 10, f"a text of {choice.text!r}")
    expect(choice.finish_reason in ("stop", "length"), f"finish_reason {choice.finish_reason}")
    expect(answer.usage.prompt_tokens > 10 and 0 < answer.usage.completion_tokens <= 24, f"usage {answer.usage}")
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens, "total_tokens")
    equal(server.complete(PROMPTS[0], max_tokens=24, temperature=0).choices[0].text, choice.text, "greedy again")
    equal(server.complete(PROMPTS[0], temperature=0).usage.completion_tokens, 16, "max_tokens by default")

    after = server.metrics()
    tokens = after["cos_tokens_total"] - before["cos_tokens_total"]
    equal(tokens, 2 * answer.usage.completion_tokens + 16, "cos_tokens_total")
    done = 'cos_requests_total{code="200"}'
    equal(after[done] - before.get(done, 0), 3, "cos_requests_total")
    proposed, tested, accepted = (after[f"cos_{name}_total"] for name in ("proposed", "tested", "accepted"))
    expect(proposed >= tested >= accepted > 0, f"proposed, tested, accepted: {proposed}, {tested}, {accepted}")
    expect(after["cos_forwards_total"] > before["cos_forwards_total"], "no passes were counted")
    expect(after["cos_step_seconds_total"] >= after["cos_model_seconds_total"] > 0, "no time was counted")


def metrics(server):
    """The text is in Prometheus' format, and its histograms have what the completions waited for."""
    before = server.metrics()
    for strategy in ("auto", "standard", "cos"):
        server.complete(PROMPTS[0], max_tokens=12, extra_body={"cos": {"strategy": strategy}})
    after = server.metrics()
    equal(after["cos_first_token_seconds_count"] - before["cos_first_token_seconds_count"], 3, "first tokens")
    between = "cos_between_tokens_seconds_count"
    expect(after[between] > before[between], "nothing was waited for between tokens")
    histograms = 0
    families = server.families()
    equal(len({family.name for family in families}), len(families), "names of families")
    for family in families:
        expect(family.name.startswith("cos_") and family.type in ("counter", "gauge", "histogram"),
               f"{family.name} is of the type {family.type}")
        series = {}
        for sample in family.samples if family.type == "histogram" else ():
            labels = {name: value for name, value in sample.labels.items() if name != "le"}
            values = series.setdefault(tuple(labels.items()), {})
            values[sample.labels.get("le", sample.name.rsplit("_", 1)[1])] = sample.value
        for labels, values in series.items():
            name = f"{family.name} {labels}"
            count, total = values.pop("count"), values.pop("sum")
            equal(values["+Inf"], count, f"the last bucket of {name}")
            expect((total > 0) == (count > 0), f"{name}: a sum of {total} with a count of {count}")
            bounds = sorted(values, key=float)
            expect(list(values) == bounds, f"{name}: buckets {list(values)}")
            counts = list(values.values())
            expect(counts == sorted(counts), f"{name}: counts {counts}")
            histograms += 1
    expect(histograms >= 2, "there are no histograms")
    dashboard = json.loads((ROOT / "docs" / "grafana.json").read_text())
    shown = {name for panel in dashboard["panels"] for target in panel["targets"]
             for name in re.findall(r"cos_[a-z_]+", target["expr"])}
    known = {sample.name for family in families for sample in family.samples}
    equal({name for name in shown - known if not name.startswith("cos_batch_choices")}, set(), "panels without metrics")
    return f"{len(families)} families, {histograms} histograms"


def token_prompts(server):
    by_tokens = server.complete([10, 20, 30, 40], max_tokens=8, temperature=0)
    equal(by_tokens.usage.prompt_tokens, 4, "prompt_tokens")
    equal(by_tokens.usage.completion_tokens, 8, "completion_tokens")


def sampling(server):
    def draw(seed):
        return server.complete(PROMPTS[1], max_tokens=24, temperature=0.9, top_p=0.95, seed=seed, extra_body=PINNED)

    first = draw(1).choices[0].text
    equal(draw(1).choices[0].text, first, "the same seed")
    expect(any(draw(seed).choices[0].text != first for seed in (2, 3, 4)), "other seeds give the same text")
    texts = {server.complete(PROMPTS[1], max_tokens=24).choices[0].text for _ in range(4)}
    expect(len(texts) > 1, "requests without a seed all have the same seed")


def extension(server):
    greedy = server.complete(PROMPTS[0], max_tokens=12, temperature=0).choices[0].text
    for strategy in ("auto", "standard", "speculative", "cos"):
        answer = server.complete(PROMPTS[0], max_tokens=12, temperature=0, extra_body={"cos": {"strategy": strategy}})
        equal(answer.choices[0].text, greedy, strategy)
    for priority in ("interactive", "batch", None):
        answer = server.complete(PROMPTS[0], max_tokens=12, temperature=0, extra_body={"cos": {"priority": priority}})
        equal(answer.choices[0].text, greedy, f"priority {priority}")
    texts = set()
    for weights in ([1, 0], [0, 1]):
        extra = {"cos": {"weights": weights}}
        texts.add(server.complete(PROMPTS[0], max_tokens=24, temperature=0, extra_body=extra).choices[0].text)
    equal(len(texts), 2, "texts of two models")


def scopes(server):
    """A prompt that another request has computed is found, but not in another scope."""
    prompt = [500 + token for token in range(200)]
    def found(**cos):
        before = server.metrics()["cos_prefix_tokens_total"]
        server.complete(prompt, max_tokens=1, temperature=0, extra_body={"cos": cos})
        return server.metrics()["cos_prefix_tokens_total"] - before

    equal([found(scope="one"), found(scope="two"), found()], [0, 0, 0], "tokens found in a scope where none are")
    for cos in ({}, {"scope": "one"}, {"scope": "two"}):
        expect(found(**cos) > 200, f"nothing is found in {cos}")
    equal(server.metrics()["cos_recomputed_tokens_total"], 0, "cos_recomputed_tokens_total")


def streaming(server):
    for options in ({"temperature": 0}, {"temperature": 1, "seed": 7, "extra_body": PINNED}):
        for prompt in PROMPTS[1:]:
            whole = server.complete(prompt, max_tokens=24, **options).choices[0]
            texts, finish = pieces(server.complete(prompt, max_tokens=24, stream=True, **options))
            equal("".join(texts), whole.text, "a stream's pieces")
            equal(finish, whole.finish_reason, "a stream's finish_reason")
            expect(len(texts) > 2, f"a stream of {len(texts)} pieces")
    options = {"max_tokens": 8, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    chunks = list(server.complete(PROMPTS[0], **options))
    equal(chunks[-1].usage.completion_tokens, 8, "usage in a stream")
    equal(chunks[-1].choices, [], "choices beside the usage")


def stop_strings(server):
    options = {"max_tokens": 24, "temperature": 0}
    text = server.complete(PROMPTS[0], **options).choices[0].text
    expect(len(text) > 30, f"too short to be stopped: {text!r}")
    for stop in (text[12:13], text[9:15], text[20:28], [text[25:27], text[14:22]], ["\0never", text[10:13]]):
        first = min((text.find(one) for one in ([stop] if isinstance(stop, str) else stop) if one in text))
        whole = server.complete(PROMPTS[0], stop=stop, **options).choices[0]
        equal(whole.text, text[:first], f"stopped at {stop!r}")
        equal(whole.finish_reason, "stop", "finish_reason")
        texts, finish = pieces(server.complete(PROMPTS[0], stop=stop, stream=True, **options))
        equal("".join(texts), text[:first], f"a stream stopped at {stop!r}")
        equal(finish, "stop", "finish_reason of a stream")
    # What looks like the beginning of a stop string is held back, and comes after all.
    for stop in (text[-3:] + "\0", text[5:9] + "\0"):
        texts, finish = pieces(server.complete(PROMPTS[0], stop=stop, stream=True, **options))
        equal("".join(texts), text, f"not stopped at {stop!r}")


def leaving(server):
    """A client that leaves stops its session: no more tokens, and no long pass goes on."""
    def noticed():
        """Wait until one more client is counted as one that left. How long that took."""
        nonlocal left
        start = time.monotonic()
        while (now := server.metrics().get(gone, 0)) == left:
            expect(time.monotonic() - start < 3, "a request whose client left goes on")
            time.sleep(0.02)
        left = now
        equal(server.metrics()["cos_requests_running"], 0, "cos_requests_running")
        return time.monotonic() - start

    gone = 'cos_requests_total{code="499"}'
    left = server.metrics().get(gone, 0)
    long = lasting(server)
    stream = server.complete(**long, stream=True, extra_body=PINNED)
    for _ in range(3):
        next(stream)
    equal(server.metrics()["cos_requests_running"], 1, "cos_requests_running")
    stream.close()
    waits = [noticed()]
    server.abandon({**long, **PINNED}, 0.3)
    waits.append(noticed())
    # A prompt that takes long: its pass must be stopped in the midst.
    server.abandon({"prompt": [300] * 1000, "max_tokens": 1500, "temperature": 1.5}, 0.02)
    waits.append(noticed())
    before = server.metrics()["cos_tokens_total"]
    time.sleep(0.3)
    equal(server.metrics()["cos_tokens_total"], before, "tokens after all clients left")
    return f"stopped {', '.join(f'{wait:.2f}' for wait in waits)} s after the client"


def at_once(server):
    def ask(number):
        prompt = f"{PROMPTS[number % len(PROMPTS)]} {number}"
        options = {"max_tokens": 16, "temperature": 1, "seed": number, "extra_body": PINNED}
        if number % 2:
            return "".join(pieces(server.complete(prompt, stream=True, **options))[0])
        return server.complete(prompt, **options).choices[0].text

    alone = [ask(number) for number in range(CLIENTS)]
    with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
        equal(list(pool.map(ask, range(CLIENTS))), alone, "at once and alone")


def without_memory(server):
    """Requests that find no room are told to come later, if the configuration wants that. The others are answered."""
    paths = [str(DEMO.parent / name) for name in ("base", "math")]
    models = [{"path": path, "context_length": 512, "cache_bytes": 4 << 20} for path in paths]
    config = {"models": models, "combine": {"kind": "weighted", "weights": [0.5, 0.5]}, "when_full": "refuse"}
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "small.json")
        path.write_text(json.dumps(config), encoding="utf-8")
        small = Server(server.command, CLIENTS, path)
        try:
            def ask(number):
                prompt = [300 + number] * 300
                body = {"model": "small", "prompt": prompt, "max_tokens": 24, "stream": number % 2 == 1}
                return small.answer("POST", "/v1/completions", json.dumps(body))

            with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
                answers = list(pool.map(ask, range(CLIENTS)))
            counts = {status: [answer[0] for answer in answers].count(status) for status in (200, 503)}
            equal(sum(counts.values()), CLIENTS, f"answers that are 200 or 503 of {[answer[0] for answer in answers]}")
            expect(counts[200] > 0 and counts[503] > 0, f"answers: {counts}")
            for status, headers, text in answers:
                if status == 503:
                    expect(int(headers["Retry-After"]) > 0, "Retry-After")
                    equal(json.loads(text)["error"]["type"], "server_error", "type")
            patient = small.client.with_options(max_retries=50)
            def again(number):
                return patient.completions.create(model="small", prompt=[300 + number] * 300, max_tokens=8).usage

            with concurrent.futures.ThreadPoolExecutor(4) as pool:
                for usage in pool.map(again, range(4)):
                    expect(usage.completion_tokens > 0, "no tokens after a retry")
        finally:
            small.close()
    return f"{counts[503]} of {CLIENTS} refused"


def bad_requests(server):
    good = {"model": server.model, "prompt": "Hello", "max_tokens": 1}
    changes = [
        {"model": None}, {"model": 5}, {"model": "gpt-4"},
        {"prompt": None}, {"prompt": 5}, {"prompt": {}}, {"prompt": ""}, {"prompt": []}, {"prompt": [[]]},
        {"prompt": [-1]}, {"prompt": [4096]}, {"prompt": [1.5]}, {"prompt": [2**31]}, {"prompt": [2**70]},
        {"prompt": [1, None]}, {"prompt": [1, "a"]}, {"prompt": [300] * 100_000}, {"prompt": "one two three " * 5_000},
        {"prompt": ["a"] * 17}, {"n": 0}, {"n": 17}, {"n": -1}, {"n": "2"},
        {"max_tokens": -1}, {"max_tokens": 1.5}, {"max_tokens": "ten"}, {"max_tokens": 2**40},
        {"temperature": -1}, {"temperature": "hot"}, {"temperature": []}, {"top_p": 1.5}, {"top_p": "most"},
        {"top_k": -2}, {"min_p": 2}, {"seed": 1.5}, {"seed": "one"}, {"seed": 2**70}, {"seed": -2**70},
        {"stop": 5}, {"stop": ""}, {"stop": ["a", ""]}, {"stop": [1]},
        {"stream": "yes"}, {"stream": 1}, {"stream_options": 1},
        {"best_of": 2}, {"echo": True}, {"suffix": "."}, {"logprobs": 21}, {"logprobs": True},
        {"presence_penalty": "a"}, {"repetition_penalty": -1}, {"logit_bias": {"5": "a"}}, {"logit_bias": {"x": 1}},
        {"logit_bias": {"4096": 1}}, {"response_format": {"type": "xml"}}, {"response_format": 5},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strange"}}}},
        {"structured_outputs": {"regex": "("}}, {"structured_outputs": {"choice": []}},
        {"cos": 5}, {"cos": {"strategy": "magic"}}, {"cos": {"strategy": 3}}, {"cos": {"weights": 1}},
        {"cos": {"priority": "urgent"}}, {"cos": {"priority": 1}}, {"cos": {"priority": ""}}, {"cos": {"other": 1}},
        {"cos": {"weights": [1]}}, {"cos": {"scope": 5}}, {"cos": {"weights": [0.5, 0.1]}},
        {"cos": {"weights": ["a", "b"]}},
    ]
    bodies = [json.dumps({**good, **change}).encode() for change in changes]
    bodies += [b"", b"{", b"[]", b"5", b"null", b'{"model": "engine", "prompt": "\xff\xfe"}', b"[" * 100_000,
               b"\x00" * 64,
               b'{"model": "engine", "prompt": "Hello", "temperature": 1e999}']
    for body in bodies:
        for stream in (b"", b'"stream": true, '):
            if stream and not body.startswith(b'{"model"'):
                continue
            sent = body.replace(b"{", b"{" + stream, 1) if stream and b'"stream"' not in body else body
            try:
                status, text = server.request("POST", "/v1/completions", sent)
            except (ConnectionError, http.client.HTTPException) as error:
                raise AssertionError(f"no answer to {sent[:200]!r}: {error}") from error
            refused(status, text, sent[:200])
    equal(server.request("POST", "/v1/completions", json.dumps({**good, "model": "gpt-4"}))[0], 404, "an unknown model")
    try:
        server.complete([300] * 3000)
        raise AssertionError("a prompt without room is taken")
    except openai.BadRequestError as error:
        equal(error.code, "context_length_exceeded", "code")
    for method, path in (("GET", "/v1/nothing"), ("POST", "/v1/embeddings"), ("GET", "/v1/completions"),
                         ("DELETE", "/v1/models"), ("GET", "/")):
        refused(*server.request(method, path), f"{method} {path}")
    for method, path, allowed in (("DELETE", "/v1/models/engine", "GET"), ("GET", "/v1/chat/completions", "POST")):
        status, headers, _ = server.answer(method, path)
        equal((status, headers["Allow"].split(",")[0]), (405, allowed), f"{method} {path}")
    # null is as good as missing
    nothing = {"stop": None, "seed": None, "cos": None, "logprobs": None, "stream": None, "temperature": None}
    status, text = server.request("POST", "/v1/completions", json.dumps({**good, **nothing}))
    equal(status, 200, f"null members: {text}")
    equal(len(server.complete(PROMPTS[0], max_tokens=2).choices), 1, "choices after all that")
    return f"{len(bodies)} bodies"


def drain(server):
    """SIGTERM: what runs is finished, what is new is refused, and the process ends with 0. The last test."""
    def begun():
        """How many completions have begun so far."""
        samples = server.metrics()
        ended = sum(value for name, value in samples.items() if name.startswith("cos_requests_total"))
        return samples["cos_requests_running"] + ended

    before = begun()
    wanted = server.complete(PROMPTS[3], max_tokens=100, temperature=0).choices[0].text
    stream = server.complete(PROMPTS[3], max_tokens=100, temperature=0, stream=True)
    texts = [next(stream).choices[0].text for _ in range(2)]
    body = {}
    def run():
        body["answer"] = server.complete(PROMPTS[1], max_tokens=100, temperature=0)

    other = threading.Thread(target=run)
    other.start()
    while begun() < before + 3:
        time.sleep(0.02)
    server.terminate()
    time.sleep(0.2)
    expect(server.process.poll() is None, "the server ends before its requests")
    try:
        server.complete(PROMPTS[0], max_tokens=1, timeout=10)
        raise AssertionError("a request is taken after SIGTERM")
    except (openai.APIConnectionError, openai.InternalServerError):
        pass
    rest, finish = pieces(stream)
    other.join()
    expect(finish in ("stop", "length"), f"the stream ends with {finish}")
    equal("".join(texts + rest), wanted, "the stream that was running")
    expect(body["answer"].choices[0].finish_reason in ("stop", "length"), "the answer is cut off")
    equal(server.process.wait(timeout=20), 0, "the exit status")


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: test COMMAND...")
    checks = (arguments, preparation, models, completion, metrics, token_prompts, sampling, extension, scopes,
              streaming, stop_strings, *test_protocol.CHECKS, *test_clients.CHECKS, leaving, at_once,
              *test_limits.CHECKS, without_memory, bad_requests, *test_fuzz.CHECKS, drain)
    server = Server(sys.argv[1:], CLIENTS)
    failed = 0
    try:
        for check in checks:
            start = time.monotonic()
            try:
                note = check(server)
            except Exception as error:
                failed += 1
                print(f"server: {check.__name__}: FAILED: {type(error).__name__}: {error}", flush=True)
                if server.process.poll() is not None:
                    sys.exit(f"server: it has ended with {server.process.returncode}: {server.said()[-2000:]}")
            else:
                seconds = time.monotonic() - start
                print(f"server: {check.__name__}: ok, {seconds:.1f} s{'; ' + note if note else ''}", flush=True)
    finally:
        server.close()
    if failed:
        sys.exit(f"server: {failed} of {len(checks)} checks failed")
    print(f"server: {len(checks)} checks passed")


if __name__ == "__main__":
    main()
