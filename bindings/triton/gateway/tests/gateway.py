"""The gateway, started, asked and stopped."""

import atexit
import http.client
import json
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading
import time

TRITON_TESTS = pathlib.Path(__file__).resolve().parents[2] / "tests"
sys.path.insert(0, str(TRITON_TESTS))

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402

from server import TARGET  # noqa: E402

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"


class Gateway:
    """A gateway before `replicas`, which are addresses."""

    def __init__(self, replicas, **options):
        options = {"listen": "127.0.0.1:0", "model": "demo", "replicas": ",".join(replicas), **options}
        self.log = tempfile.NamedTemporaryFile("w+", prefix="cos-gateway-", suffix=".log")
        command = [str(TARGET / "triton" / "gateway")]
        for name, value in options.items():
            command += ["--" + name.replace("_", "-"), str(value)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self.log, text=True)
        atexit.register(self.close)  # also if a check fails
        line = self.process.stdout.readline()
        assert line.startswith("listening on "), f"{line!r}, {self.said()}"
        self.port = int(line.rsplit(":", 1)[1])

    def connect(self, path, body=None, **headers):
        """A request whose answer is not read yet: the connection and the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, body, headers)
        return connection, connection.getresponse()

    def ask(self, path, body=None, **headers):
        """A request: the status, the headers, and the answer as text."""
        connection, response = self.connect(path, body, **headers)
        text = response.read().decode()
        connection.close()
        return response.status, response.headers, text

    def complete(self, body, path=COMPLETION):
        """The status and the answer as JSON."""
        status, _, text = self.ask(path, body)
        return status, json.loads(text)

    def stream(self, body, path=COMPLETION):
        """The text of a stream, and its last event."""
        _, response = self.connect(path, {**body, "stream": True})
        return read_stream(response)

    def metrics(self):
        """Samples by name and labels."""
        samples = {}
        for family in text_string_to_metric_families(self.ask("/metrics")[2]):
            for sample in family.samples:
                labels = "".join(f"{{{key}={value}}}" for key, value in sample.labels.items())
                samples[sample.name + labels] = sample.value
        return samples

    def said(self):
        return pathlib.Path(self.log.name).read_text(encoding="utf-8")

    def entries(self, count=0):
        """The lines of the log about requests, once there are so many. A line comes behind the answer."""
        until = time.monotonic() + 10
        while True:
            lines = [json.loads(line) for line in self.said().splitlines()]
            entries = [line for line in lines if line["msg"] == "request"]
            if len(entries) >= count:
                return entries
            assert time.monotonic() < until, f"{len(entries)} lines of the log, not {count}"
            time.sleep(0.02)

    def settled(self):
        """Wait until all requests are in the log, and return how many there are."""
        while any(value for name, value in self.metrics().items() if name.startswith("cos_gateway_replica_requests")):
            time.sleep(0.02)
        ended = sum(value for name, value in self.metrics().items() if name.startswith("cos_gateway_requests_total"))
        return len(self.entries(ended))

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


def events(response):
    """The events of a stream, as they come. The last one is whatever came last."""
    for line in response:
        if line.strip():
            yield line.decode().strip().removeprefix("data: ")


def read_stream(response):
    """The text of a stream whose answer has begun, and its last event."""
    text, last = "", None
    for last in events(response):
        choice = {} if last == "[DONE]" else json.loads(last).get("choices", [{}])[0]
        text += choice.get("text", choice.get("delta", {}).get("content", ""))
    return text, last


def at_once(functions):
    """Call functions on threads of their own, and raise the first of their errors."""
    faults = []
    def run(function):
        try:
            function()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=run, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
