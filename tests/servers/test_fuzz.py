"""Fuzz a server by docs/openapi.json with schemathesis. fuzz/hooks.py says what is sent, and what is expected.

COS_FUZZ_EXAMPLES is how many bodies are drawn for each path in each run, beside those that cover every bound of the
file. COS_SEED draws others. COS_FUZZ_RUNS names runs, by comma, in place of all. The library reads bodies, so all runs
are needed with one server only. COS_FUZZ_MIB is how much memory a server may keep.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

from checks import PROMPTS, equal, expect, pieces
from server import DEMO, ROOT, Server

HERE = pathlib.Path(__file__).resolve().parent / "fuzz"
EXAMPLES = int(os.environ.get("COS_FUZZ_EXAMPLES", 20))
SEED = os.environ.get("COS_SEED", "1")
ONLY = os.environ.get("COS_FUZZ_RUNS", "accepted,refused,anything").split(",")
SESSIONS, TOKENS = 8, 4  # so few tokens that decoding takes little time
# What a server may keep: caches, grammars and second sessions of the library, and the heap of Java.
GROWTH = int(os.environ.get("COS_FUZZ_MIB", 512)) << 20
KEY = "a-key"
TEMPLATE = """{% for message in messages %}{{ message.role ~ ": " ~ message.content ~ "\n" }}
{%- for call in message.tool_calls or [] %}{{ call | tojson }}{% endfor %}{% endfor %}
{%- if tools %}{{ tools | tojson }}{% endif %}{% if documents %}{{ documents | tojson }}{% endif %}
{%- if enable_thinking %}think{% endif %}{% if add_generation_prompt %}assistant:{% endif %}"""

# What each run checks. Some have more.
ALWAYS = ["not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
          "response_schema_conformance", "streamed"]
RUNS = {
    "accepted": ("positive", [*ALWAYS, "positive_data_acceptance", "answered"]),
    "refused": ("negative", [*ALWAYS, "negative_data_rejection", "unsupported_method", "allow_header_conformance"]),
    "anything": ("positive", ALWAYS),  # members that contradict each other are refused, so acceptance is not checked
    "keys": ("all", [*ALWAYS, "ignored_auth", "missing_required_header"]),
}
# Not checked: use_after_free, ensure_resource_availability and object_level_authorization, because no request makes or
# removes anything.


def environment():
    """The program of schemathesis, or why there is none."""
    # The program runs in another folder.
    venv = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"), "servers-fuzz-venv").absolute()
    made = subprocess.run([ROOT / "scripts" / "make-venv", venv, HERE / "requirements.txt"], text=True,
                          capture_output=True)
    if made.returncode:
        return None, f"skipped, because schemathesis cannot be installed ({made.stderr.strip()[-200:]})"
    return venv / "bin" / "st", None


def configuration(folder):
    """The demo engine with a chat template that reads all that a request may have."""
    base = folder / "base"
    base.mkdir()
    for file in (DEMO.parent / "base").iterdir():
        if file.name != "chat_template.jinja":
            (base / file.name).symlink_to(file)
    (base / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    config = folder / "fuzzed.json"
    # Caches of a fixed size, because the free memory would bound them otherwise.
    models = [{"path": str(path), "cache_bytes": 64 << 20} for path in (base, DEMO.parent / "math")]
    config.write_text(json.dumps({"models": models, "combine": {"kind": "weighted", "weights": [0.5, 0.5]}}))
    return config


def run(program, server, name, folder):
    """One run of schemathesis, which keeps files in a folder. How many requests it has sent."""
    mode, checks = RUNS[name]
    tokenizer = json.loads((DEMO.parent / "base" / "tokenizer.json").read_text(encoding="utf-8"))
    facts = {"run": name, "model": server.model, "sessions": SESSIONS, "tokens": TOKENS, "models": 2,
             "vocabulary": len(tokenizer["model"]["vocab"]), "keys": name == "keys"}
    # Phases: "coverage" goes to each bound of the file, and "fuzzing" draws. Workers share state that is not safe.
    command = [program, "--config-file", HERE / "schemathesis.toml", "run", ROOT / "docs" / "openapi.json",
               "--url", f"http://127.0.0.1:{server.port}", "--mode", mode, "--checks", ",".join(checks),
               "--phases", "fuzzing" if name == "anything" else "coverage,fuzzing",
               "--max-examples", 3 if name == "keys" else EXAMPLES, "--seed", SEED, "--workers", 1,
               "--generation-database", "none", "--continue-on-failure", "--no-color",
               "--output-sanitize", "false"]
    if name == "keys":
        command += ["--header", f"Authorization: Bearer {KEY}"]
    variables = {**os.environ, "COS_FUZZ": json.dumps(facts), "PYTHONPATH": HERE, "SCHEMATHESIS_HOOKS": "hooks",
                 "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([str(word) for word in command], env=variables, cwd=folder, text=True, capture_output=True,
                          timeout=300 + 4 * EXAMPLES)
    said = done.stdout + done.stderr
    if done.returncode:
        found = re.search(r"^=+ (ERRORS|FAILURES) =+$", said, re.MULTILINE)
        raise AssertionError(f"{name}, with COS_SEED={SEED}:\n{said[found.start() if found else -4000:]}")
    return int(re.search(r"(\d+) generated", said)[1])


def memory(server):
    """Bytes of memory that the server has."""
    status = pathlib.Path(f"/proc/{server.process.pid}/status").read_text(encoding="utf-8")
    return int(re.search(r"^VmRSS:\s+(\d+) kB", status, re.MULTILINE)[1]) << 10


def drained(server):
    """SIGTERM lets a stream finish."""
    stream = server.complete(PROMPTS[0], max_tokens=TOKENS, temperature=0, stream=True)
    server.terminate()
    expect(pieces(stream)[1] in ("stop", "length"), "a stream is cut off by SIGTERM")
    equal(server.process.wait(timeout=20), 0, "the exit status")


def fuzz(server):
    """Whatever is sent, answers are those of docs/openapi.json, and the server stays as it was."""
    program, why = environment()
    if why:
        return why
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        config = configuration(pathlib.Path(folder))
        keys = pathlib.Path(folder, "keys")
        keys.write_text(KEY, encoding="utf-8")
        limits = {"prepare": 0, "queue": 64, "max_tokens": TOKENS}
        private = Server(server.command, SESSIONS, config, api_keys=keys, **limits)
        stack.callback(private.close)
        sent = run(program, private, "keys", folder)
        private.close()
        fuzzed = Server(server.command, SESSIONS, config, **limits)
        stack.callback(fuzzed.close)

        def text():
            return fuzzed.complete(PROMPTS[0], max_tokens=TOKENS, temperature=0).choices[0].text

        before = text()
        kept = memory(fuzzed)
        # At once, so that requests meet.
        with concurrent.futures.ThreadPoolExecutor() as pool:
            sent += sum(pool.map(lambda name: run(program, fuzzed, name, folder), ONLY))
        expect(fuzzed.idle(10) is not None, "requests go on after their clients have ended")
        equal(text(), before, "the greedy text after all that")
        kept = memory(fuzzed) - kept
        expect(kept < GROWTH, f"the server keeps {kept >> 20} MiB more than before")
        drained(fuzzed)
        return f"{sent} requests, {kept >> 20} MiB kept"


CHECKS = (fuzz,)


def main():
    if len(sys.argv) < 2:
        sys.exit("usage: long COMMAND...")
    server = Server(sys.argv[1:], SESSIONS, prepare=0)
    start = time.monotonic()
    try:
        print(f"server: fuzz: {fuzz(server)}, {time.monotonic() - start:.0f} s")
    finally:
        server.close()


if __name__ == "__main__":
    main()
