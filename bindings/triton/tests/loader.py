"""Measure Triton against the library in-process: the same requests, at the same time, in rounds that alternate."""

import argparse
import statistics
import threading
import time

from library import Library
from server import Triton
from test_triton import PROMPT, Stream, texts


def body(i, tokens):
    return {"max_tokens": tokens, "temperature": 1.0, "seed": i, "ignore_eos": True}


class Clients:
    """Clients of a server, each with a stream that stays open."""

    def __init__(self, triton, count):
        self.streams = [Stream(triton) for _ in range(count)]

    def round(self, tokens):
        """Tokens per second of all clients, and the median time to the first token."""
        firsts, counts = [], []
        start = time.monotonic()
        def client(i, stream):
            stream.ask("demo", {"stream": True, "text_input": f"{PROMPT} {i}", **body(i, tokens)})
            responses = stream.responses()
            count = len(next(responses).as_numpy("tokens"))
            firsts.append(time.monotonic() - start)
            counts.append(count + sum(len(result.as_numpy("tokens")) for result in responses))

        threads = [threading.Thread(target=client, args=each) for each in enumerate(self.streams)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(counts) / (time.monotonic() - start), statistics.median(firsts)

    def close(self):
        for stream in self.streams:
            stream.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 16, 64])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    triton, library = Triton(demo={"parameters": {"prepare_seconds": 5}}), Library()
    try:
        print("clients  in-process  Triton  ratio  first token")
        for count in arguments.clients:
            clients, here, there, firsts = Clients(triton, count), [], [], []
            bodies = [{"prompt": f"{PROMPT} {i}", **body(i, arguments.tokens)} for i in range(count)]
            for number in range(arguments.rounds + 1):
                answers, seconds = library.answers(bodies)
                speed, first = clients.round(arguments.tokens)
                if number:  # the first round warms both up
                    here.append(sum(answer["usage"]["completion_tokens"] for answer in answers) / seconds)
                    there.append(speed), firsts.append(first)
            ratio = statistics.median(b / a for a, b in zip(here, there))
            print(f"{count:7}  {statistics.median(here):10.0f}  {statistics.median(there):6.0f}  {ratio:5.2f}  "
                  f"{1000 * statistics.median(firsts):8.1f} ms", flush=True)
            clients.close()
    finally:
        triton.close()


if __name__ == "__main__":
    main()
