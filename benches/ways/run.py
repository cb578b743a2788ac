"""Start each server that was built, and compare the ways to plug CoS in. Further arguments go to the program `ways`."""

import argparse
import contextlib
import importlib.util
import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
DEMO = ROOT / "models" / "demo" / "engine.json"
JAR = ROOT / "bindings" / "java" / "examples" / "server" / "target" / "cosrt-server-0.1.0.jar"
SERVERS = {"C++": [TARGET / "cpp" / "server"], "Go": [TARGET / "ways-go"], "Java": ["java", "-jar", JAR]}


def module(path):
    """A module of another folder of tests."""
    spec = importlib.util.spec_from_file_location(path.replace("/", "_"), ROOT / path / "server.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="C++,Go,Java,Triton", help="ways, by comma")
    arguments, others = parser.parse_known_args()
    only = arguments.only.split(",")
    # The library in Java's jar has no ONNX Runtime beside it.
    os.environ.setdefault("ORT_DYLIB_PATH", str(next((TARGET / "onnxruntime").glob("libonnxruntime.so.*"))))
    with contextlib.ExitStack() as stack:
        ways = []
        for name, command in SERVERS.items():
            if name not in only or not pathlib.Path(command[-1]).exists():
                continue
            server = module("tests/servers").Server([str(part) for part in command], 64, prepare=10)
            stack.callback(server.close)
            ways.append(f"{name}=http://127.0.0.1:{server.port}")
        if "Triton" in only and (TARGET / "triton" / "backends" / "cos").exists():
            triton = module("bindings/triton/tests").Triton(engine={"parameters": {"prepare_seconds": 10}})
            stack.callback(triton.close)
            ways.append(f"Triton=grpc://127.0.0.1:{triton.grpc}")
        subprocess.run([TARGET / "ways", *others, DEMO, *ways], check=True)


if __name__ == "__main__":
    main()
