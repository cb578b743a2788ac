#!/usr/bin/env python3
"""Serves clients by other libraries, as peers for `make bench-serve`: a worker that answers lines of JSON.

  bench_serve.py genai DEVICE MODEL             the Engine of onnxruntime-genai over an export. It batches continuously
                                                if the export has paged attention, and statically if not
  bench_serve.py transformers DEVICE MODEL      continuous batching of Hugging Face transformers
  bench_serve.py torch DEVICE MODEL...          a PyTorch loop over the mixture of models, with static caches: a batch
                                                runs until all of its texts have ended, by a CUDA graph on a GPU

DEVICE is cpu (fp32) or cuda (fp16). All sample at temperature 1.

The first line of output is {"versions": {…}} or {"error"}. Each line of input has {"clients", "prompts", "tokens",
"seconds"}: each client takes the next prompt as soon as its last text has ended. The measured time begins when as many
texts have ended as there are clients, and lasts so many seconds, or longer, until as many have ended again. The answer
is {"served": [{"arrived", "started", "bursts": [[seconds, tokens]…], "whole"}…], "window": {"start", "end"}, "note"} or
{"error"}.
"""

import json
import os
import sys
import time

from bench_torch_batch import Batch


class Genai:
    def __init__(self, device, path):
        import numpy
        import onnxruntime_genai

        self.numpy, self.genai, self.device, self.path = numpy, onnxruntime_genai, device, path
        name = getattr(onnxruntime_genai, "__id__", "onnxruntime-genai")
        self.versions, self.engine = {name: onnxruntime_genai.__version__}, None

    def begin(self, clients, longest):
        # Blocks for all clients, and some to spare.
        block = 256
        paged = {"block_size": block, "num_blocks": (clients + 1) * (longest // block + 2), "max_batch_size": clients}
        try:
            self.engine = self.load({"dynamic_batching": paged})
            how = "continuous batching"
        except RuntimeError as error:
            self.engine = self.load({"static_batching": {"max_batch_size": clients}})
            how = f"static batching, because: {error}"
        drafts = self.engine.max_draft_tokens_per_proposal()
        self.note = f"{how}; it takes {drafts} draft tokens"
        self.events, self.indices = self.engine.create_event_buffer(1024), {}

    def load(self, batching):
        config = self.genai.Config(self.path)
        config.clear_providers()
        if self.device == "cuda":
            config.append_provider("cuda")
        # CoS runs without a stop token. Here there must be one, so it is a rare token.
        with open(os.path.join(self.path, "genai_config.json")) as file:
            rare = json.load(file)["model"]["vocab_size"] - 1
        config.overlay(json.dumps({"engine": batching, "model": {"eos_token_id": rare}}))
        return self.genai.Engine(self.genai.Model(config))

    def start(self, prompt, tokens):
        request = self.engine.create_request()
        options = self.genai.TurnOptions(request)
        options.set_do_sample(True)
        options.set_temperature(1.0)
        options.set_top_k(0)
        options.set_top_p(1.0)
        options.set_max_generated_tokens(tokens)
        request.begin_turn(self.numpy.array(prompt, dtype=self.numpy.int32), options)
        self.indices[request] = len(self.indices)

    def step(self):
        flags = self.genai.EngineEventFlags
        for event in self.engine.run(self.events):
            if event.flags & flags.FAILED:
                raise RuntimeError(f"a request failed: {event.error_code}")
            ended = bool(event.flags & flags.TURN_FINISHED)
            yield self.indices[event.request], int(bool(event.flags & flags.TOKEN)), ended
            if ended:
                event.request.close()

    def end(self):
        self.indices, self.events, self.engine = {}, None, None


class Transformers:
    def __init__(self, device, path):
        os.environ["HF_HUB_OFFLINE"] = "1"
        import torch
        import transformers

        transformers.utils.logging.set_verbosity_error()
        self.transformers, dtype = transformers, torch.float32 if device == "cpu" else torch.float16
        load = transformers.AutoModelForCausalLM.from_pretrained
        self.model = load(path, dtype=dtype, attn_implementation="sdpa").to(device).eval()
        self.versions = {"torch": torch.__version__, "transformers": transformers.__version__}

    def begin(self, clients, longest):
        config = self.transformers.GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                                                    eos_token_id=-1, pad_token_id=0, max_new_tokens=1)
        # Prompts that come again are not found, since CoS does not find them either.
        batching = self.transformers.ContinuousBatchingConfig(
            allow_block_sharing=False, block_size=32, num_blocks=(clients + 1) * (longest // 32 + 2),
            max_batch_tokens=max(512, 2 * clients), max_requests_per_batch=clients)
        self.manager = self.model.init_continuous_batching(config, batching)
        self.manager.warmup()
        self.manager.start()
        self.indices, self.seen = {}, {}

    def start(self, prompt, tokens):
        name = self.manager.add_request(prompt, max_new_tokens=tokens, streaming=True)
        self.indices[name] = len(self.indices)

    def step(self):
        result = self.manager.get_result(timeout=60)
        if result is None or result.error:
            raise RuntimeError(f"no result: {result and result.error}")
        index, tokens = self.indices[result.request_id], len(result.generated_tokens)
        came = tokens - self.seen.get(index, 0)
        self.seen[index] = tokens
        yield index, came, result.is_finished()

    def end(self):
        self.manager.stop(block=True)


class Torch:
    def __init__(self, device, *paths):
        self.batch = Batch(device, paths)
        self.torch, self.device, self.versions = self.batch.torch, device, self.batch.versions

    def begin(self, clients, longest):
        self.clients, self.taken, self.queue, self.texts = clients, 0, [], []

    def start(self, prompt, tokens):
        self.queue.append((self.taken, prompt, tokens))
        self.taken += 1

    def step(self):
        torch = self.torch
        with torch.inference_mode():
            if not self.texts:
                self.texts, self.queue = self.queue, []
                last = self.fill()
            elif self.graph:
                self.graph[0].replay()
                last = self.graph[1]
            else:
                last = self.last = self.batch.step(self.caches, self.last, self.mask)
            last.cpu()  # as a server has to
        self.steps += 1
        texts = [text for text in self.texts if text[2] >= self.steps]
        if all(text[2] == self.steps for text in texts):
            self.texts = []
        for index, _, tokens in texts:
            yield index, 1, tokens == self.steps

    def fill(self):
        """Runs the prompts of a batch, padded on their left, and returns the first tokens."""
        torch, texts = self.torch, self.texts
        width = max(len(prompt) for _, prompt, _ in texts)
        width += -width % 64  # so that caches and graphs serve other batches too
        length = width + max(tokens for _, _, tokens in texts)
        length += -length % 64
        kept = self.batch.kept.get((self.clients, length))
        if kept is None:
            caches = [self.batch.static_cache(config=model.config, max_cache_len=length) for model in self.batch.models]
            self.mask = torch.ones([self.clients, length], dtype=torch.long, device=self.device)
            blank = torch.zeros([self.clients, 1], dtype=torch.long, device=self.device)
            self.batch.step(caches, blank, self.mask)
            graph = self.batch.capture(caches, self.clients, self.mask) if self.device == "cuda" else None
            kept = self.batch.kept[self.clients, length] = caches, graph, self.mask
        self.caches, self.graph, self.mask = kept
        for cache in self.caches:
            cache.reset()
        tokens, mask = torch.zeros([self.clients, width], dtype=torch.long), torch.ones([self.clients, length]).long()
        for row, (_, prompt, _) in enumerate(texts):
            tokens[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, : width - len(prompt)] = 0
        self.mask.copy_(mask)
        self.steps, self.last = 0, self.batch.step(self.caches, tokens.to(self.device), self.mask)
        if self.graph:
            self.graph[1].copy_(self.last)
        return self.last

    def end(self):
        self.texts, self.queue, self.batch.kept = [], [], {}


def serve(backend, clients, prompts, tokens, seconds):
    """A closed loop. Returns the requests as their clients saw them, and the measured time."""
    served, ended_texts, start, before = [], 0, None, 0
    backend.begin(clients, max(map(len, prompts)) + max(tokens))
    begin = time.perf_counter()

    def now():
        return time.perf_counter() - begin

    def ask():
        index = len(served)
        served.append({"arrived": now(), "started": now(), "bursts": [], "whole": False})
        backend.start(prompts[index % len(prompts)], tokens[index % len(tokens)])

    try:
        for _ in range(clients):
            ask()
        while start is None or now() < start + seconds or ended_texts < before + clients:
            for index, came, ended in backend.step():
                if came:
                    served[index]["bursts"].append([now(), came])
                if ended:
                    served[index]["whole"] = True
                    ended_texts += 1
                    ask()
            if start is None and now() >= seconds / 4 and ended_texts >= clients:
                start, before = now(), ended_texts
        window = {"start": start, "end": now()}
    finally:
        backend.end()
    return {"served": served, "window": window, "note": getattr(backend, "note", None)}


def main():
    # Answers go to the original standard output. Output of libraries goes to standard error.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    kind, device, *paths = sys.argv[1:]
    try:
        backend = {"genai": Genai, "torch": Torch, "transformers": Transformers}[kind](device, *paths)
    except Exception as error:  # a package, a library or a model is missing
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}), file=answers)
        return
    print(json.dumps({"versions": backend.versions}), file=answers)
    for line in sys.stdin:
        try:
            result = serve(backend, **json.loads(line))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(result), file=answers)


if __name__ == "__main__":
    main()
