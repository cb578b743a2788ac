"""Triton with the backend, started, asked and stopped."""

import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

ROOT = pathlib.Path(__file__).resolve().parents[3]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
DEMO = ROOT / "models" / "demo"


def free_ports(count):
    """Ports that nobody uses now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Triton:
    """A server with a model repository of its own, in which `models` names folders and their engines."""

    def __init__(self, **models):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="cos-triton-"))
        self.repository = self.folder / "models"
        for name, model in models.items():
            self.write(name, **model)
        self.log = open(self.folder / "log", "w+", encoding="utf-8")
        self.http, self.grpc, self.metrics_port = free_ports(3)
        self.command = [TARGET / "triton" / "server" / "pytriton" / "tritonserver" / "bin" / "tritonserver",
                        f"--model-repository={self.repository}",
                        f"--backend-directory={TARGET / 'triton' / 'backends'}", "--model-control-mode=explicit",
                        "--exit-timeout-secs=60", "--allow-gpu-metrics=false", "--pinned-memory-pool-byte-size=0"]
        for name, port in (("http", self.http), ("grpc", self.grpc), ("metrics", self.metrics_port)):
            self.command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
        self.command += [f"--load-model={name}" for name in models]
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.close()
            raise

    def start(self):
        """Start the process, also once more with the same ports."""
        # The library beside the backend is to be found by the backend itself.
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DYLIB_PATH"}
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log, env=environment)

    def write(self, name, engine="engine.json", parameters=None, config=""):
        """Write a model into the repository. `engine` is a configuration of the demo, or a dictionary."""
        folder = self.repository / name / "1"
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(engine, str):
            engine = json.loads((DEMO / engine).read_text())
            for model in engine["models"]:
                if "path" in model:
                    model["path"] = str(DEMO / model["path"])
        (folder / "model.json").write_text(json.dumps(engine))
        parameters = {"prepare_seconds": 0, **(parameters or {})}
        lines = [f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
                 for key, value in parameters.items()]
        (folder.parent / "config.pbtxt").write_text("\n".join(['backend: "cos"', *lines, config]))

    def wait_ready(self):
        until = time.monotonic() + 120
        while time.monotonic() < until:
            if self.process.poll() is not None:
                raise AssertionError(f"Triton ended with {self.process.returncode}: {self.said()[-3000:]}")
            try:
                if self.request("/v2/health/ready")[0] == 200:
                    return
            except urllib.error.URLError:
                pass
            time.sleep(0.1)
        raise AssertionError(f"Triton is not ready: {self.said()[-3000:]}")

    def request(self, path, body=None, port=None):
        """A request as JSON: the status and the body as text."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.http}{path}", data)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def generate(self, model, **members):
        """POST generate: the status and the answer."""
        status, text = self.request(f"/v2/models/{model}/generate", members)
        return status, json.loads(text)

    def stream(self, model, **members):
        """POST generate_stream: the events."""
        status, text = self.request(f"/v2/models/{model}/generate_stream", {"stream": True, **members})
        assert status == 200, f"{status}: {text}"
        return [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line]

    def load(self, model):
        return self.request(f"/v2/repository/models/{model}/load", {})

    def unload(self, model):
        return self.request(f"/v2/repository/models/{model}/unload", {})

    def metrics(self, model):
        """The samples of a model: the name, without the labels of the model, and the value."""
        status, text = self.request("/metrics", port=self.metrics_port)
        assert status == 200
        samples = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = {key: value for key, value in sample.labels.items() if key not in ("model", "version")}
                if sample.labels.get("model") == model:
                    samples[sample.name + "".join(f"{{{key}={value}}}" for key, value in labels.items())] = sample.value
        return samples

    def said(self):
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def close(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)
