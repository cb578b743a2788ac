"""Mixed traffic for long: the C++ server, and Triton behind the gateway, each with several clients.

Prints the memory of the processes, and what went wrong, every minute. Ends with 1 if anything went wrong, or if a
process has more memory at its end than a quarter of the time before, by more than the share --growth."""

import argparse
import collections
import contextlib
import http.client
import json
import pathlib
import random
import sys
import tempfile
import threading
import time

from run import DEMO, ROOT, SERVERS, TARGET, module

sys.path.insert(0, str(ROOT / "bindings" / "triton" / "gateway" / "tests"))

CHAT, COMPLETION = "/v1/chat/completions", "/v1/completions"
SCHEMA = {"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
          "required": ["name", "age"], "additionalProperties": False}


def body(random, kind):
    """A request of a kind, with the path that it goes to."""
    prompt = f"Question {random.randrange(40)}: " + "How many legs do three cats have? " * random.randrange(1, 12)
    common = {"model": "engine", "temperature": random.choice([0, 0.7, 1.2]), "seed": random.randrange(1 << 30),
              "max_tokens": random.randrange(1, 80)}
    if kind == "chat":
        turns = [{"role": ("user", "assistant")[i % 2], "content": prompt} for i in range(random.choice([1, 3, 5]))]
        return CHAT, {**common, "messages": turns}
    more = {
        "choices": {"n": random.randrange(2, 5)},
        "prompts": {"prompt": [prompt, "Once upon a time", prompt + "!"]},
        "schema": {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        "penalties": {"frequency_penalty": 0.5, "repetition_penalty": 1.1, "logit_bias": {"20": 2}, "top_k": 40},
        "logprobs": {"logprobs": 3, "cos": {"token_origins": True}},
        "stop": {"stop": ["\n", "."]},
        "batch": {"cos": {"priority": "batch", "strategy": "standard", "scope": f"tenant {random.randrange(3)}"}},
        "wrong": {"max_tokens": -1},
    }
    return COMPLETION, {**common, "prompt": prompt, **more.get(kind, {})}


KINDS = ["plain", "plain", "chat", "chat", "choices", "prompts", "schema", "penalties", "logprobs", "stop", "batch",
         "wrong", "leaves"]


def ask(port, random, counts):
    """One request, and what became of it."""
    kind = random.choice(KINDS)
    path, asked = body(random, kind)
    streams = kind == "leaves" or random.random() < 0.6
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        text = json.dumps({**asked, "stream": streams})
        connection.request("POST", path, text, {"Content-Type": "application/json"})
        if kind == "leaves":
            time.sleep(random.random() * 0.2)
            counts["left"] += 1
            return
        response = connection.getresponse()
        answer = response.read().decode()
        wanted = 400 if kind == "wrong" else 200
        is_whole = wanted == 400 or (answer.endswith("data: [DONE]\n\n") if streams else '"usage"' in answer)
        if response.status == 429:
            counts["full"] += 1
        elif response.status != wanted or not is_whole:
            raise ValueError(f"{kind}: {response.status} {answer[-300:]}")
        counts["answered"] += 1
    finally:
        connection.close()


def bounded():
    """The engine of the demo with small caches. By default they may grow to half of the free memory."""
    engine = json.loads(DEMO.read_text(encoding="utf-8"))
    for model in engine["models"]:
        model |= {"path": str(DEMO.parent / model["path"]), "cache_bytes": 64 << 20}
    return engine


def memory(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--clients", type=int, default=4, help="of each server")
    parser.add_argument("--growth", type=float, default=0.05)
    parser.add_argument("--no-triton", action="store_true")
    arguments = parser.parse_args()
    counts, faults, stop = collections.Counter(), [], threading.Event()
    with contextlib.ExitStack() as stack:
        config = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory())) / "engine.json"
        config.write_text(json.dumps(bounded()), encoding="utf-8")
        server = module("tests/servers").Server([str(part) for part in SERVERS["C++"]], 32, config, queue=64)
        stack.callback(server.close)
        processes, ports = {"C++ server": server.process}, {"C++ server": server.port}
        if not arguments.no_triton:
            triton = module("bindings/triton/tests").Triton(
                engine={"engine": bounded(), "parameters": {"max_sessions": 32}})
            stack.callback(triton.close)
            from gateway import Gateway
            gateway = Gateway([f"127.0.0.1:{triton.grpc}"], model="engine")
            stack.callback(gateway.close)
            processes |= {"Triton": triton.process, "gateway": gateway.process}
            ports["gateway"] = gateway.port
            while gateway.ask("/ready")[0] != 200:
                time.sleep(0.1)

        def client(name, number):
            numbers = random.Random(number)
            while not stop.is_set():
                try:
                    ask(ports[name], numbers, counts)
                except Exception as error:
                    faults.append(f"{name}: {type(error).__name__}: {error}")
                    print(faults[-1], flush=True)
                    time.sleep(0.1)

        threads = [threading.Thread(target=client, args=(name, number), daemon=True)
                   for name in ports for number in range(arguments.clients)]
        for thread in threads:
            thread.start()
        print("minute | requests | left | faults | " + " | ".join(f"{name} MiB" for name in processes), flush=True)
        begin, history = time.monotonic(), []
        while (elapsed := (time.monotonic() - begin) / 60) < arguments.minutes:
            time.sleep(min(60, 60 * (arguments.minutes - elapsed)))
            history.append([memory(process) for process in processes.values()])
            print(f"{(time.monotonic() - begin) / 60:6.1f} | {counts['answered']} | {counts['left']} | {len(faults)} | "
                  + " | ".join(f"{each:.0f}" for each in history[-1]), flush=True)
        stop.set()
        for thread in threads:
            thread.join(180)
        grown = [name for name, before, end in zip(processes, history[3 * len(history) // 4], history[-1])
                 if end > before * (1 + arguments.growth)]
        print(f"{len(faults)} faults; grown: {', '.join(grown) or 'none'}")
        sys.exit(bool(faults or grown))


if __name__ == "__main__":
    main()
