"""What protects a server: keys, limits, a line to wait in, time-outs; and what it logs."""

import concurrent.futures
import contextlib
import json
import pathlib
import socket
import tempfile
import threading
import time

import openai

from checks import CLIENTS, PINNED, PROMPTS, equal, expect, lasting, pieces, refused
from server import Server


def too_many(server):
    """Without a line, one more than --max-sessions is told to come later. Choices count, not requests."""
    long = lasting(server)
    streams = [server.complete(**{**long, "n": 2}, stream=True, extra_body=PINNED) for _ in range(CLIENTS // 2)]
    try:
        body = json.dumps({"model": server.model, "prompt": "a"})
        status, headers, text = server.answer("POST", "/v1/completions", body)
        error = refused(status, text, "one more")
        equal((status, error["type"], error["code"]), (429, "rate_limit_error", "rate_limit_exceeded"), "one more")
        expect(int(headers["Retry-After"]) > 0, "Retry-After")
    finally:
        for stream in streams:
            stream.close()
    expect(server.idle(5) is not None, "streams whose clients left go on")
    server.complete(PROMPTS[0], max_tokens=1)


def waiting(server):
    """Requests wait in line, first come, first served. Those whose clients leave go. SIGTERM lets the rest finish."""
    small = Server(server.command, 2, prepare=0, queue=3)
    try:
        long = {**lasting(server), "max_tokens": 1500}
        stream = small.complete(**{**long, "n": 2}, stream=True, extra_body=PINNED)
        next(stream)
        ended, threads = [], []
        def ask(name, n):
            small.complete(PROMPTS[0], n=n, max_tokens=4, temperature=0, extra_body=PINNED)
            ended.append(name)

        def line(length):
            until = time.monotonic() + 5
            while small.metrics()["cos_requests_waiting"] != length:
                expect(time.monotonic() < until, f"{small.metrics()['cos_requests_waiting']} wait, not {length}")
                time.sleep(0.02)

        for length, (name, n) in enumerate((("first", 2), ("second", 1)), 1):
            threads.append(threading.Thread(target=ask, args=(name, n)))
            threads[-1].start()
            line(length)
        small.abandon({"prompt": PROMPTS[0]}, 0.2)
        line(2)
        equal(small.metrics()['cos_requests_total{code="499"}'], 1, "a client that left the line")
        leaver = threading.Thread(target=small.abandon, args=({"prompt": PROMPTS[0]}, 1))
        leaver.start()
        line(3)
        status, text = small.request("POST", "/v1/completions", json.dumps({"model": small.model, "prompt": "a"}))
        equal((status, refused(status, text, "a full line")["code"]), (429, "rate_limit_exceeded"), "a full line")
        leaver.join()
        line(2)
        equal(ended, [], "requests that overtook")
        small.terminate()
        time.sleep(0.2)
        expect(small.process.poll() is None, "the server ends before those that wait")
        stream.close()
        for thread in threads:
            thread.join(20)
        equal(ended, ["first", "second"], "the order of those that waited")
        equal(small.process.wait(timeout=20), 0, "the exit status")
        lines = [json.loads(line) for line in small.said().splitlines() if line.startswith("{")]
        members = {"time", "path", "status", "choices", "prompt_tokens", "completion_tokens", "wait_ms", "first_ms",
                   "total_ms"}
        for each in lines:
            expect(members <= each.keys() and each["path"] == "/v1/completions", f"a line of the log: {each}")
        served = [each for each in lines if each["status"] == 200]
        equal([each["choices"] for each in served], [2, 1], "choices of those that were served")
        for each in served:
            expect(0 < each["wait_ms"] < each["first_ms"] <= each["total_ms"], f"times of {each}")
            equal(each["completion_tokens"], 4 * each["choices"], "completion_tokens")
        equal(sorted(each["status"] for each in lines), [200, 200, 429, 499, 499, 499], "statuses in the log")
    finally:
        small.close()


def keys(server):
    """Without a key, only what watches the server is answered. Each key has a rate of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "keys")
        file.write_text("# keys\n\nsecret-one\nsecret-two\n", encoding="utf-8")
        private = Server(server.command, 2, prepare=0, api_keys=file, rate=3)
        try:
            for path in ("/health", "/ready", "/metrics"):
                equal(private.request("GET", path)[0], 200, f"{path} without a key")
            for given in ({}, {"Authorization": "Bearer secret"}, {"Authorization": "secret-one"},
                          {"Authorization": "Bearer secret-one2"}, {"Authorization": "Bearer # keys"},
                          {"Authorization": "Bearer "}, {"Authorization": "Basic c2VjcmV0"}):
                for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/v1/nothing")):
                    status, text = private.request(method, path, "{}" if method == "POST" else None, **given)
                    error = refused(status, text, given)
                    equal((status, error["code"]), (401, "invalid_api_key"), f"{path} with {given}")
            for key, passes in (("secret-one", 3), ("secret-two", 3)):
                client = openai.OpenAI(base_url=private.client.base_url, api_key=key, max_retries=0)
                equal([model.id for model in client.models.list()], [private.model], "models with a key")
                for _ in range(passes):
                    client.completions.create(model=private.model, prompt="a", max_tokens=1)
                try:
                    client.completions.create(model=private.model, prompt="a", max_tokens=1)
                    raise AssertionError("there is no rate")
                except openai.RateLimitError as error:
                    equal(error.code, "rate_limit_exceeded", "code")
                    expect(int(error.response.headers["Retry-After"]) > 0, "Retry-After")
        finally:
            private.close()


def limits(server):
    """Bodies, prompts and choices have limits, and slow clients are cut off."""
    small = Server(server.command, 2, prepare=0, max_body=20_000, max_prompt=50, max_tokens=10, timeout=1)
    try:
        body = json.dumps({"model": small.model, "prompt": "a" * 30_000})
        status, text = small.request("POST", "/v1/completions", body)
        equal(status, 413, "a large body")
        refused(status, text, "a large body")
        # curl -d says that its body is a form.
        body = json.dumps({"model": small.model, "prompt": "a", "max_tokens": 1, "user": "x" * 10_000})
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        equal(small.request("POST", "/v1/completions", body, **kind)[0], 200, "a body of curl")
        for prompt, fits in (([300] * 50, True), ([300] * 51, False)):
            body = json.dumps({"model": small.model, "prompt": prompt, "max_tokens": 1})
            status, text = small.request("POST", "/v1/completions", body)
            equal(status, 200 if fits else 400, f"a prompt of {len(prompt)} tokens: {text}")
        equal(refused(status, text, "a long prompt")["code"], "context_length_exceeded", "code")
        for n, max_tokens, fits in ((1, 10, True), (1, 11, False), (2, 10, True), (3, 10, False)):
            body = json.dumps({"model": small.model, "prompt": "a", "max_tokens": max_tokens, "n": n})
            status = small.request("POST", "/v1/completions", body)[0]
            equal(status, 200 if fits else 400, f"{n} times {max_tokens} tokens")
        equal(small.chat("a", temperature=2).usage.completion_tokens <= 10, True, "max_tokens by default")

        begin = (b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                 b"Content-Length: 999\r\n\r\n{")
        for sent in (b"", b"POST /v1/compl", begin):
            with socket.create_connection(("127.0.0.1", small.port), timeout=15) as connection:
                connection.sendall(sent)
                start = time.monotonic()
                answer = connection.recv(1000)
                expect(not answer or answer.startswith(b"HTTP/1.1 4"), f"{answer!r} for {sent!r}")
                expect(time.monotonic() - start < 10, "a client that sends nothing is waited for")
        small.complete("a", max_tokens=1)

        # SIGTERM does not wait for a request that never comes.
        with socket.create_connection(("127.0.0.1", small.port)) as connection:
            connection.sendall(begin)
            small.terminate()
            until = time.monotonic() + 15
            while small.process.poll() is None and time.monotonic() < until:
                time.sleep(0.4)
                with contextlib.suppress(OSError):
                    connection.sendall(b" ")
            equal(small.process.poll(), 0, "the exit status beside a slow client")
    finally:
        small.close()


def slow_reader(server):
    """A client that does not read its stream is cut off. The others go on meanwhile."""
    other = Server(server.command, 2, prepare=0, timeout=1)
    try:
        body = json.dumps({"model": other.model, "prompt": PROMPTS[0], "max_tokens": 1900, "temperature": 2, "n": 1,
                           "logprobs": 20, "stream": True, "ignore_eos": True}).encode()
        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.connect(("127.0.0.1", other.port))
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            time.sleep(0.5)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                beside = pool.submit(other.complete, PROMPTS[1], max_tokens=8)
                expect(beside.result(30).choices, "no answer beside a slow client")
            until = time.monotonic() + 40
            while other.metrics()["cos_requests_running"]:
                expect(time.monotonic() < until, "a client that does not read is waited for")
                time.sleep(0.1)
    finally:
        other.close()


CHECKS = (too_many, waiting, keys, limits, slow_reader)
