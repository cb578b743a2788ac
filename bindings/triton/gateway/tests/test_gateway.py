"""Check the gateway before three real Triton servers. The script `test` runs this."""

import collections
import json
import signal
import socket
import sys
import threading
import time

from gateway import CHAT, COMPLETION, Gateway, at_once, events, read_stream

from library import Library
from server import DEMO, Triton, free_ports
from test_triton import PINNED, PROMPT, QUESTION, equal, expect

REPLICAS = 3
GREEDY = {"model": "demo", "temperature": 0, "cos": PINNED}
LONG = {**GREEDY, "prompt": PROMPT, "max_tokens": 1500, "ignore_eos": True}
NO_ROUTE = "192.0.2.1:1"  # an address that is nobody's


class Fleet:
    """Replicas, a gateway, and the library to compare with."""

    def __init__(self):
        self.library, self.tritons = Library(), [None] * REPLICAS
        engine = json.loads((DEMO / "engine.json").read_text())
        for model in engine["models"]:
            model["path"] = str(DEMO / model["path"])
        def start(i):
            # Replicas that spin would take the cores from each other.
            self.tritons[i] = Triton(demo={"engine": {**engine, "spinning": False}})

        at_once([lambda i=i: start(i) for i in range(REPLICAS)])
        self.addresses = [f"127.0.0.1:{triton.grpc}" for triton in self.tritons]
        self.gateway = Gateway(self.addresses)
        self.wait_ready(REPLICAS)

    def ready(self):
        metrics = self.gateway.metrics()
        return sum(metrics.get(f"cos_gateway_replica_ready{{replica={each}}}", 0) for each in self.addresses)

    def wait_ready(self, count):
        wait_for(lambda: self.ready() == count, f"{count} replicas are not ready", 60)

    def running(self):
        return sum(triton.metrics("demo")["cos_requests_running"] for triton in self.tritons)

    def wanted(self, body):
        return self.library.answer(**body)["choices"][0]["text"]

    def close(self):
        self.gateway.close()
        for triton in self.tritons:
            triton.close()


def wait_for(holds, what, seconds=10):
    until = time.monotonic() + seconds
    while not holds():
        expect(time.monotonic() < until, what)
        time.sleep(0.05)


def prompts(count, max_tokens=16):
    return [{**GREEDY, "prompt": f"{PROMPT} {i}", "max_tokens": max_tokens} for i in range(count)]


def answers(fleet):
    """Answers and streams are those of the library."""
    chat = {**GREEDY, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}
    completion = {**GREEDY, "prompt": PROMPT, "max_tokens": 24, "n": 2, "logprobs": 1}
    for path, body in ((CHAT, chat), (COMPLETION, completion)):
        status, headers, text = fleet.gateway.ask(path, body, **{"X-Request-Id": "mine"})
        got, wanted = json.loads(text), fleet.library.answer(**body)
        equal((status, headers["Content-Type"], headers["X-Request-Id"]), (200, "application/json", "mine"), path)
        for each in (got, wanted):
            del each["id"], each["created"]
        equal(got, wanted, path)
        _, response = fleet.gateway.connect(path, {**body, "n": 1, "stream": True})
        equal((response.status, response.headers["Content-Type"]), (200, "text/event-stream"), f"a stream, {path}")
        text, last = read_stream(response)
        choice = wanted["choices"][0]
        whole = choice["message"]["content"] if path == CHAT else choice["text"]
        equal((text, last), (whole, "[DONE]"), f"a stream, {path}")
    first, start = None, time.monotonic()
    for event in events(fleet.gateway.connect(COMPLETION, {**LONG, "max_tokens": 300, "stream": True})[1]):
        first = first or time.monotonic() - start
    expect(first < (time.monotonic() - start) / 2, "a stream comes all at once")
    equal(json.loads(fleet.gateway.ask("/v1/models")[2])["data"][0]["id"], "demo", "models")
    equal(json.loads(fleet.gateway.ask("/v1/models/demo")[2])["object"], "model", "a model")


def wrong_requests(fleet):
    """Wrong requests get OpenAI's errors, and no replica is blamed for them."""
    good = {**GREEDY, "prompt": PROMPT, "max_tokens": 2}
    big = {**good, "prompt": "a" * (5 << 20)}
    for path, body, status, code, says in (
            (COMPLETION, {**good, "temperature": -1}, 400, None, "temperature is -1"),
            (COMPLETION, {**good, "stream": True, "n": 0}, 400, None, "n is 0"),
            (COMPLETION, {**good, "model": "other"}, 404, "model_not_found", "no model"),
            (COMPLETION, {"prompt": "a"}, 400, None, "model is missing"), (CHAT, good, 400, None, "messages"),
            (COMPLETION, {**good, "prompt": [300] * 5000}, 400, "context_length_exceeded", "context"),
            (COMPLETION, b"", 400, None, "not JSON"), (COMPLETION, b"{\"model\":\xff", 400, None, "not JSON"),
            (COMPLETION, b"[" * 100_000, 400, None, "nested too deep"),
            (COMPLETION, b"[]", 400, None, "not a JSON object"),
            (COMPLETION, {**good, "cos": 7, "messages": 8}, 400, None, "cos"),
            (COMPLETION, big, 413, None, "too large"),
            ("/v1/embeddings", good, 404, None, "nothing at this path"), ("/nothing", None, 404, None, "nothing at"),
            (COMPLETION, None, 405, None, "other methods"), ("/health", good, 405, None, "other methods"),
            ("/v1/models/x", None, 404, "model_not_found", "no such model")):
        got, _, text = fleet.gateway.ask(path, body)
        error = json.loads(text)["error"]
        equal((got, error["type"], error["code"]), (status, "invalid_request_error", code), f"{path} {str(body)[:80]}")
        expect(says in error["message"], text)
    equal(fleet.gateway.ask(COMPLETION, good, **{"X-Request-Id": "caf\xe9"})[0], 200, "an id that is not UTF-8")
    equal(fleet.ready(), REPLICAS, "replicas behind wrong requests")
    expect(all(entry["tries"] <= 1 for entry in fleet.gateway.entries()), "a wrong request is tried twice")


def routing(fleet):
    """What begins alike goes to one replica, and the rest to all."""
    before = fleet.gateway.settled()
    messages = [{"role": "user", "content": QUESTION}]
    for turn in range(6):
        status, answer = fleet.gateway.complete({**GREEDY, "messages": messages, "max_tokens": 1}, CHAT)
        equal(status, 200, f"turn {turn}: {answer}")
        messages += [answer["choices"][0]["message"], {"role": "user", "content": f"And {turn}?"}]
    turns = {entry["replica"] for entry in fleet.gateway.entries(before + 6)[before:]}
    equal(len(turns), 1, "replicas of the turns of a chat")
    def client(bodies):
        for body in bodies:
            equal(fleet.gateway.complete(body)[0], 200, "a prompt")

    bodies = prompts(60, 1)
    at_once([lambda i=i: client(bodies[i::4]) for i in range(4)])
    counts = collections.Counter(entry["replica"] for entry in fleet.gateway.entries(before + 66)[before + 6:])
    equal(set(counts), set(fleet.addresses), "replicas of 60 prompts")
    expect(min(counts.values()) >= 6, f"requests of the replicas: {counts}")
    equal(fleet.gateway.metrics()["cos_gateway_spills_total"], 0, "spills without load")


def full(fleet):
    """A hot prefix spills over. What is too much for all replicas is refused."""
    for options, clients, refused in (({"batch": 2}, 12, 0), ({"max_in_flight": 1}, REPLICAS + 2, 2)):
        gateway = Gateway(fleet.addresses, drain_delay="0s", **options)
        wait_for(lambda: sum(value for name, value in gateway.metrics().items() if "replica_ready" in name) == REPLICAS,
                 "the second gateway is not ready")
        streams = []
        body = {**LONG, "max_tokens": 200, "stream": True}
        at_once([lambda: streams.append(gateway.connect(COMPLETION, body))] * clients)
        statuses = [response.status for _, response in streams]
        equal((statuses.count(200), statuses.count(429)), (clients - refused, refused), f"statuses with {options}")
        loads = [gateway.metrics()[f"cos_gateway_replica_requests{{replica={each}}}"] for each in fleet.addresses]
        expect(min(loads) >= 1 and max(loads) <= 1.25 * clients / REPLICAS + 1, f"loads with {options}: {loads}")
        expect(gateway.metrics()["cos_gateway_spills_total"] > 0, f"no spills with {options}")
        for connection, response in streams:
            if response.status == 429:
                equal(response.headers["Retry-After"], "1", "Retry-After")
                equal(json.loads(response.read())["error"]["code"], "rate_limit_exceeded", "the error of a full fleet")
            else:  # to the end: cancelled streams crash Triton 2.51 now and then, see README.md
                equal(read_stream(response)[1], "[DONE]", "a stream of a full fleet")
            connection.close()
        gateway.terminate()
        equal(gateway.process.wait(10), 0, "the exit status")
        gateway.close()


def settled(fleet):
    """Wait until no replica decodes."""
    wait_for(lambda: not fleet.running(), "requests go on without their clients")


def leaving(fleet):
    """A client that leaves ends its request, streamed or not."""
    settled(fleet)
    for streams in (True, False):
        connection, body = None, json.dumps({**LONG, "max_tokens": 1900, "stream": streams}).encode()
        if streams:
            connection, response = fleet.gateway.connect(COMPLETION, body)
            next(events(response))
            response.close()
        else:
            connection = socket.create_connection(("127.0.0.1", fleet.gateway.port))
            head = f"POST {COMPLETION} HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body)
            wait_for(lambda: fleet.running(), "nothing is decoded")
        connection.close()
        settled(fleet)
        wait_for(lambda: fleet.gateway.entries()[-1]["status"] == 499, "no 499 in the log")
    equal(fleet.gateway.metrics()["cos_gateway_requests_total{code=499}"], 2, "clients that left")


class Traffic:
    """Clients that ask until they are stopped. Every other one streams."""

    def __init__(self, fleet, clients=4, tokens=20):
        self.fleet, self.stopped, self.done, self.broken, self.faults = fleet, threading.Event(), 0, [], []
        self.bodies = prompts(clients, tokens)
        self.wanted = [fleet.wanted(body) for body in self.bodies]
        self.threads = [threading.Thread(target=self.client, args=(i,)) for i in range(clients)]
        for thread in self.threads:
            thread.start()

    def client(self, i):
        while not self.stopped.is_set():
            try:
                connection, response = self.fleet.gateway.connect(COMPLETION, {**self.bodies[i], "stream": i % 2 == 0})
                if response.status != 200:
                    self.faults.append((response.status, response.read()))
                elif i % 2:
                    equal(json.loads(response.read())["choices"][0]["text"], self.wanted[i], "a text under traffic")
                else:
                    text, last = read_stream(response)
                    if last != "[DONE]":
                        self.broken.append(json.loads(last))
                        expect(self.wanted[i].startswith(text), f"{text!r} is no beginning of {self.wanted[i]!r}")
                    else:
                        equal(text, self.wanted[i], "a stream under traffic")
                self.done += 1
                connection.close()
            except Exception as error:  # counted, so that all of them are told
                self.faults.append(error)

    def stop(self):
        self.stopped.set()
        for thread in self.threads:
            thread.join()
        equal(self.faults[:3], [], "faults under traffic")


def killed(fleet):
    """A replica is killed: what it had begun to tell ends with an error, and all else is answered by others."""
    victim = fleet.tritons[0]
    own = [body for body in prompts(30, 1) if home(fleet, body) == fleet.addresses[0]][:4]
    silent = [{**body, "max_tokens": 30} for body in own[2:]]
    equal(len(silent), 2, "prompts of the replica")
    wanted, told = [fleet.wanted(body) for body in silent], []
    traffic = Traffic(fleet)
    long = [{**LONG, "prompt": body["prompt"], "stream": True} for body in own[:2]]
    begun = [fleet.gateway.connect(COMPLETION, body)[1] for body in long]
    first = [next(events(response)) for response in begun]
    victim.process.send_signal(signal.SIGSTOP)  # it gets requests, and tells nothing of them
    threads = [threading.Thread(target=lambda body=body: told.append(fleet.gateway.complete(body))) for body in silent]
    for thread in threads:
        thread.start()
    load = f"cos_gateway_replica_requests{{replica={fleet.addresses[0]}}}"
    wait_for(lambda: fleet.gateway.metrics()[load] >= 4, "the replica does not have the requests")
    victim.process.kill()
    victim.process.wait()
    for response, event in zip(begun, first):
        last = read_stream(response)[1]
        expect(json.loads(event)["choices"] and "lost" in json.loads(last)["error"]["message"], f"{event}, {last}")
    for thread in threads:
        thread.join()
    texts = sorted(answer["choices"][0]["text"] for status, answer in told if status == 200)
    equal(texts, sorted(wanted), "what the killed replica had not told")
    wait_for(lambda: fleet.ready() == REPLICAS - 1, "the killed replica is ready")
    victim.start()
    fleet.wait_ready(REPLICAS)
    traffic.stop()
    expect(traffic.done > 20, f"only {traffic.done} requests")
    retries = fleet.gateway.metrics()["cos_gateway_retries_total"]
    expect(retries >= len(silent), f"{retries} retries")
    return f"{traffic.done} requests, {retries:.0f} tried again, {len(begun) + len(traffic.broken)} streams broken"


def home(fleet, body):
    """The replica that a body goes to."""
    before = fleet.gateway.settled()
    equal(fleet.gateway.complete({**body, "max_tokens": 1})[0], 200, "a request")
    return fleet.gateway.entries(before + 1)[-1]["replica"]


def rolling_restart(fleet):
    """Replicas get SIGTERM, one after the other, under traffic. Nothing is lost."""
    traffic = Traffic(fleet)
    for triton in fleet.tritons:
        triton.terminate()
        equal(triton.process.wait(60), 0, "the exit status of a replica")
        triton.start()
        fleet.wait_ready(REPLICAS)
    traffic.stop()
    equal(traffic.broken, [], "broken streams")
    return f"{traffic.done} requests"


def no_fleet(fleet):
    """Without replicas, requests are refused, and the gateway waits for replicas."""
    [port] = free_ports(1)
    gateway = Gateway(["nowhere.invalid:8001", f"127.0.0.1:{port}"], resolve="100ms")
    equal((gateway.ask("/health")[0], gateway.ask("/ready")[0]), (200, 503), "health without replicas")
    status, headers, text = gateway.ask(COMPLETION, {**GREEDY, "prompt": "a"})
    equal((status, headers["Retry-After"]), (503, "1"), "a request without replicas")
    expect("no replica is ready" in text, text)
    wait_for(lambda: "name is not resolved" in gateway.said(), "the log says nothing of the name")
    gateway.close()
    # A name that does not resolve, and a replica that never answers, do not disturb the others.
    gateway = Gateway([f"localhost:{fleet.tritons[0].grpc}", "nowhere.invalid:8001", NO_ROUTE])
    wait_for(lambda: gateway.ask("/ready")[0] == 200, "one replica is ready, and the gateway is not")
    equal(gateway.complete({**GREEDY, "prompt": PROMPT, "max_tokens": 2})[0], 200, "a request to the only replica")
    gateway.close()


def drain(fleet):
    """SIGTERM: /ready says so, what comes late is still answered, and streams are finished. The last check."""
    _, response = fleet.gateway.connect(COMPLETION, {**LONG, "max_tokens": 800, "stream": True})
    next(events(response))
    start = time.monotonic()
    fleet.gateway.terminate()
    wait_for(lambda: fleet.gateway.ask("/ready")[0] == 503, "/ready does not say that it drains", 3)
    equal(fleet.gateway.complete({**GREEDY, "prompt": PROMPT, "max_tokens": 2})[0], 200, "a late request")
    equal(read_stream(response)[1], "[DONE]", "a stream that was running")
    equal(fleet.gateway.process.wait(30), 0, "the exit status")
    expect(time.monotonic() - start >= 5, "it did not wait for load balancers")


def main():
    checks = (answers, wrong_requests, routing, full, leaving, killed, rolling_restart, no_fleet, drain)
    fleet = Fleet()
    try:
        for check in checks:
            start = time.monotonic()
            try:
                note = check(fleet)
            except Exception as error:  # the next checks need the whole fleet
                print(fleet.gateway.said()[-3000:], file=sys.stderr)
                sys.exit(f"gateway: {check.__name__}: FAILED: {type(error).__name__}: {error}")
            seconds = time.monotonic() - start
            print(f"gateway: {check.__name__}: ok, {seconds:.1f} s{'; ' + note if note else ''}", flush=True)
    finally:
        fleet.close()
    print(f"gateway: {len(checks)} checks passed")


if __name__ == "__main__":
    main()
