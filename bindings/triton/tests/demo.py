"""Show Triton at work: a stream, many clients at once, a sequence of turns, and the metrics."""

import json
import threading
import time

from server import Triton
from test_triton import PROMPT, QUESTION, Stream, texts

CLIENTS = 64
TOKENS = 48


def main():
    print("Triton loads the engine models/demo/engine.json: two models that decode together ...", flush=True)
    triton = Triton(demo={"parameters": {"prepare_seconds": 5}})
    try:
        address = f"http://127.0.0.1:{triton.http}/v2/models/demo"
        print(f"\ncurl -N {address}/generate_stream -d '{{\"text_input\": {json.dumps(PROMPT)}, \"stream\": true}}'\n")
        stream = Stream(triton)
        stream.ask("demo", {"stream": True, "text_input": PROMPT, "max_tokens": TOKENS, "temperature": 0.0})
        for result in stream.responses():
            print("".join(texts(result)), end="", flush=True)
            time.sleep(0.02)  # so that people see it
        print("\n")

        speeds = {}
        for count in (1, CLIENTS):
            streams = [Stream(triton) for _ in range(count)]
            tokens = [0] * count
            def client(i):
                streams[i].ask("demo", {"stream": True, "text_input": f"{PROMPT} {i}", "max_tokens": TOKENS,
                                        "ignore_eos": True})
                tokens[i] = sum(len(result.as_numpy("tokens")) for result in streams[i].responses())

            start = time.monotonic()
            threads = [threading.Thread(target=client, args=(i,)) for i in range(count)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            speeds[count] = sum(tokens) / (time.monotonic() - start)
            for each in streams:
                each.close()
        print(f"1 client: {speeds[1]:.0f} tokens/s. {CLIENTS} clients at once: {speeds[CLIENTS]:.0f} tokens/s.\n")

        for i, message in enumerate((QUESTION, "And two dogs?")):
            messages = json.dumps([{"role": "user", "content": message}])
            stream.ask("demo", {"messages": messages, "max_tokens": 24, "temperature": 0.0}, sequence_id=1,
                       sequence_start=i == 0, sequence_end=i == 1)
            answer = "".join(text for result in stream.responses() for text in texts(result))
            print(f"turn {i + 1}: {message!r}: {answer!r}")
        stream.close()

        metrics = triton.metrics("demo")
        tested, accepted = metrics["cos_tested_total"], metrics["cos_accepted_total"]
        print(f"\nmetrics: {metrics['cos_tokens_total']:.0f} tokens, {accepted / tested:.0%} of the drafts accepted, "
              f"{metrics['cos_batch_choices_sum'] / metrics['cos_batch_choices_count']:.1f} choices in a pass")
    finally:
        triton.close()


if __name__ == "__main__":
    main()
