"""Tokens per second of a server with some clients at once. Run by the script `throughput`, with the server's command."""

import argparse
import concurrent.futures
import json
import statistics
import time

from server import ROOT, Server

TOKENS = 64
PROMPTS = ROOT / "models" / "demo" / "prompts" / "gsm8k.jsonl"


def measure(server, prompts, clients, seconds):
    """Each client asks one request after the other for a while; only tokens within that while count."""
    before, start = server.metrics(), time.monotonic()
    end = start + seconds

    def ask(client):
        number, latencies = client, []
        while time.monotonic() < end:
            start = time.monotonic()
            server.complete(prompts[number % len(prompts)], max_tokens=TOKENS, temperature=1, seed=number)
            latencies.append(time.monotonic() - start)
            number += clients
        return latencies

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        answers = [pool.submit(ask, client) for client in range(clients)]
        time.sleep(max(0, end - time.monotonic()))
        after, elapsed = server.metrics(), time.monotonic() - start
        latencies = [latency for answer in answers for latency in answer.result()]
    tokens = after["cos_tokens_total"] - before["cos_tokens_total"]
    return tokens / elapsed, statistics.median(latencies), len(latencies)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--clients", type=lambda text: [int(word) for word in text.split(",")], default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    arguments = parser.parse_args()
    with open(PROMPTS, encoding="utf-8") as lines:
        prompts = [json.loads(line)["prompt"] for line in lines]
    server = Server(arguments.command, max(arguments.clients))
    try:
        measure(server, prompts, 1, 1)  # warms up
        print(f"{'clients':>8} {'tokens/s':>9} {'median of a request':>20}")
        for clients in arguments.clients:
            speed, latency, count = measure(server, prompts, clients, arguments.seconds)
            print(f"{clients:8} {speed:9.1f} {latency:18.2f} s    ({count} requests of up to {TOKENS} tokens)", flush=True)
    finally:
        server.close()


if __name__ == "__main__":
    main()
