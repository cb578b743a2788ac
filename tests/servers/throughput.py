"""Compare the tokens per second of a server, with several clients, with threads that call the library in this process.

The script `throughput` runs this with the server's command.

Each round measures both in turn, so that noise of the machine hits both alike; the ratio is the median of the rounds'.
"""

import argparse
import concurrent.futures
import functools
import json
import statistics
import time

from inprocess import STRATEGIES, InProcess
from server import ROOT, Server

PROMPTS = ROOT / "models" / "demo" / "prompts" / "gsm8k.jsonl"


def measure(complete, tokens, prompts, length, clients, seconds):
    """Each client asks one request after the other for a while; only tokens within that while count."""
    before, start = tokens(), time.monotonic()
    end = start + seconds

    def ask(client):
        number, latencies = client, []
        while time.monotonic() < end:
            asked = time.monotonic()
            complete(prompts[number % len(prompts)], max_tokens=length, temperature=1, seed=number)
            latencies.append(time.monotonic() - asked)
            number += clients
        return latencies

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        answers = [pool.submit(ask, client) for client in range(clients)]
        time.sleep(max(0, end - time.monotonic()))
        speed = (tokens() - before) / (time.monotonic() - start)
        latencies = [latency for answer in answers for latency in answer.result()]
    return speed, statistics.median(latencies)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=lambda text: [int(word) for word in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of a completion")
    parser.add_argument("--prompt", help="the same prompt for all, in place of some 100 tokens of questions")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--strategy", choices=STRATEGIES, default="auto")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    with open(PROMPTS, encoding="utf-8") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    if arguments.prompt is not None:
        prompts = [arguments.prompt]
    server, alone = Server(arguments.command, max(arguments.clients)), InProcess()
    asked = {"extra_body": {"cos": {"strategy": arguments.strategy}}}
    served = (functools.partial(server.complete, **asked), lambda: server.metrics()["cos_tokens_total"])
    called = (functools.partial(alone.complete, strategy=STRATEGIES.index(arguments.strategy)), alone.tokens)
    try:
        for each in (served, called):
            measure(*each, prompts, arguments.tokens, 1, 1)  # warms up
        print("clients   server tokens/s, over the first   in-process tokens/s   ratio (range)"
              "       a request, server / in-process")
        first = None
        for clients in arguments.clients:
            asked = (prompts, arguments.tokens, clients, arguments.seconds)
            rounds = [[measure(*each, *asked) for each in (served, called)] for _ in range(arguments.rounds)]
            ratios = [there[0] / here[0] for there, here in rounds]
            (there, there_latency), (here, here_latency) = [
                [statistics.median(values) for values in zip(*(one[index] for one in rounds))] for index in (0, 1)]
            first = first or there
            print(f"{clients:7} {there:17.1f} {there / first:15.2f} {here:21.1f}   {statistics.median(ratios):.2f} "
                  f"({min(ratios):.2f}-{max(ratios):.2f}) {there_latency:13.2f} s / {here_latency:.2f} s", flush=True)
    finally:
        server.close()


if __name__ == "__main__":
    main()
