"""A server program under test: started, asked, and stopped."""

import http.client
import json
import pathlib
import re
import select
import signal
import socket
import subprocess
import tempfile
import time

import openai
from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "models" / "demo" / "engine.json"


class Server:
    def __init__(self, command, sessions, config=DEMO, prepare=1, **options):
        self.model = pathlib.Path(config).stem
        self.command = command
        options = {"port": 0, "max_sessions": sessions, "queue": 0, "prepare": prepare, **options}
        arguments = [str(config)]
        for name, value in options.items():
            arguments += ["--" + name.replace("_", "-"), str(value)]
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8")
        self.process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=self.log, text=True)
        try:
            self.port = self._listening(deadline=time.monotonic() + 120)
        except BaseException:
            self.process.kill()
            raise
        # No retries: what the server says is what is tested.
        url = f"http://127.0.0.1:{self.port}/v1"
        self.client = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120)

    def _listening(self, deadline):
        while time.monotonic() < deadline:
            if not select.select([self.process.stdout], [], [], 1)[0]:
                continue
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(f"the server ended with {self.process.wait()} before it listened: {self.said()}")
            if found := re.fullmatch(r"listening on 127\.0\.0\.1:(\d+)\s*", line):
                return int(found[1])
        raise AssertionError("the server does not say that it listens")

    def said(self):
        """The log so far."""
        self.log.seek(0)
        return self.log.read()

    def complete(self, prompt, **options):
        return self.client.completions.create(model=self.model, prompt=prompt, **options)

    def chat(self, *messages, **options):
        """An answer to messages of a user and the assistant in turns."""
        roles = ("user", "assistant")
        messages = [{"role": roles[index % 2], "content": content} for index, content in enumerate(messages)]
        return self.client.chat.completions.create(model=self.model, messages=messages, **options)

    def request(self, method, path, body=None, **headers):
        """A request as bytes, past OpenAI's client: the status and the body."""
        status, _, text = self.answer(method, path, body, **headers)
        return status, text

    def answer(self, method, path, body=None, **headers):
        """The same with the headers: the status, the headers and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": "application/json", **headers})
            response = connection.getresponse()
            return response.status, response.headers, response.read().decode("utf-8")
        finally:
            connection.close()

    def abandon(self, body, seconds):
        """Begin a completion, and close the connection after a while without having read anything."""
        body = json.dumps({"model": self.model, **body}).encode()
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
            time.sleep(seconds)

    def metrics(self):
        """All samples: the name, with its labels, and the value."""
        def full_name(sample):
            labels = ",".join(f'{label}="{value}"' for label, value in sample.labels.items())
            return f"{sample.name}{{{labels}}}" if labels else sample.name

        return {full_name(sample): sample.value for family in self.families() for sample in family.samples}

    def families(self):
        """The metrics as Prometheus' parser reads them."""
        status, headers, text = self.answer("GET", "/metrics")
        assert status == 200, f"/metrics gives {status}"
        assert headers["Content-Type"].startswith("text/plain; version=0.0.4"), headers["Content-Type"]
        return list(text_string_to_metric_families(text))

    def idle(self, seconds):
        """Wait until no completion runs. How long that took, or None."""
        start = time.monotonic()
        while time.monotonic() - start < seconds:
            if self.metrics()["cos_requests_running"] == 0:
                return time.monotonic() - start
            time.sleep(0.02)
        return None

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def close(self):
        self.client.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()
