#!/usr/bin/env python3
"""Decodes a batch of texts with several models by PyTorch, as a peer for `make bench-sessions`.

  bench_torch_batch.py DEVICE MODEL...    DEVICE is cpu (fp32) or cuda (fp16), the models are Hugging Face folders

Standard decoding of a mixture with equal weights, at temperature 1: caches of a fixed length, and sampling on the
device. On a GPU, a step of all models is captured in a CUDA graph.

The first line of output is {"versions": {…}} or {"error"}. Each line of input has {"batch", "prompt", "tokens",
"threads"}. The answer is {"tokens": [], "seconds"} or {"error"}. The clock runs from the prompts to the last token.
"""

import json
import os
import sys
import time


class Batch:
    def __init__(self, device, paths):
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        self.torch, self.static_cache, self.device = torch, transformers.StaticCache, device
        dtype, where = torch.float32, "CPU"
        if device == "cuda":
            dtype, where = torch.float16, torch.cuda.get_device_name()
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.models = [load(path, dtype=dtype).to(device).eval() for path in paths]
        self.versions = {"torch": f"{torch.__version__}, {where}", "transformers": transformers.__version__}
        self.kept = {}  # by batch and length: caches, the graph, and its token

    def step(self, caches, tokens, mask=None):
        """Runs all models over tokens [batch, width], and draws a token for each text: [batch, 1]. The mask [batch,
        length] is 0 for places of the caches that are padding."""
        rows = [model(input_ids=tokens, attention_mask=mask, past_key_values=cache, use_cache=True,
                      logits_to_keep=1).logits[:, -1] for model, cache in zip(self.models, caches)]
        mixture = sum(row.float().softmax(-1) for row in rows)
        return mixture.multinomial(1)

    def capture(self, caches, batch, mask=None):
        """A graph of one step, and the tensor that it takes the last tokens from and writes the next ones to."""
        torch = self.torch
        token, stream = torch.zeros([batch, 1], dtype=torch.long, device=self.device), torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step(caches, token, mask)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            token.copy_(self.step(caches, token, mask))
        return graph, token

    def run(self, batch, prompt, tokens, threads):
        torch = self.torch
        torch.set_num_threads(threads)
        length = prompt + tokens
        with torch.inference_mode():
            if (batch, length) not in self.kept:
                caches = [self.static_cache(config=model.config, max_cache_len=length) for model in self.models]
                self.step(caches, torch.zeros([batch, prompt], dtype=torch.long, device=self.device))
                self.kept[batch, length] = caches, self.capture(caches, batch) if self.device == "cuda" else None
            caches, captured = self.kept[batch, length]
            for cache in caches:
                cache.reset()
            texts = torch.arange(batch * prompt, device=self.device).reshape(batch, prompt) % 3900 + 100
            start = time.perf_counter()
            token = self.step(caches, texts)
            if captured:
                graph, last = captured
                last.copy_(token)
            drawn = [token.clone()]
            for _ in range(tokens - 1):
                if captured:
                    graph.replay()
                    token = last.clone()
                else:
                    token = self.step(caches, token)
                drawn.append(token)
            torch.cat(drawn, 1).cpu()
            return time.perf_counter() - start


def main():
    # Answers go to the original standard output. Output of libraries goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    device, *paths = sys.argv[1:]
    try:
        batch = Batch(device, paths)
    except Exception as error:  # a package, a library or a model is missing
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({"versions": batch.versions}), file=answers)
    for line in sys.stdin:
        try:
            result = {"tokens": [], "seconds": batch.run(**json.loads(line))}
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
